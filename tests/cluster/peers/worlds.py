"""Where the contract is tried: real sockets, real sockets with TLS, and the network in memory.

A world has nodes that record what they are told, and can do to them and between them what happens to nodes.
On sockets a cut is made by a relay that stops forwarding one direction; in memory everything is virtual.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from cluster.peers.contract import Address, Identity, Limits, Message, Network, StrangerConnection
from cluster.peers.memory import MemoryNetwork
from cluster.peers.strangers import ask_stranger
from cluster.peers.stream import StreamPeers
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import Tls
from cluster.peers.virtual_time import Process, VirtualLoop

# Real time is short: everything ten times as fast as in production. What a node does not hear because the
# loop was busy does not count, and here all nodes have one loop.
LIMITS = Limits(
    tick_s=0.03, ping_s=0.06, dead_s=0.4, handshake_s=0.4, backoff_min_s=0.01, backoff_max_s=0.05,
    strangers_max=3, handshakes_max=8, stranger_s=1.0, stranger_bytes_max=3 << 20,
)  # fmt: skip
# With a process of its own, which a busy machine may keep waiting.
PATIENT = msgspec.structs.replace(LIMITS, dead_s=2.0, handshake_s=2.0)


class Node:
    """What a node is told, in order: ("up", id, incarnation), ("down", id), (id, message)."""

    def __init__(self, world: World, node_id: int, incarnation: str) -> None:
        self.world = world
        self.node_id = node_id
        self.incarnation = incarnation
        self.events: list[tuple[Any, ...]] = []
        self.process: Process | None = None
        self.peers: StreamPeers

    def message(self, node_id: int, message: Message) -> None:
        assert self.peers.is_up(node_id), "a message of a peer that is not up"
        self.events.append((node_id, message))
        self.world.changed.set()

    def up(self, node_id: int, incarnation: str) -> None:
        assert not self.is_told_up(node_id), "up twice"
        self.events.append(("up", node_id, incarnation))
        self.world.changed.set()

    def down(self, node_id: int) -> None:
        assert self.is_told_up(node_id), "down without up"
        assert not self.peers.is_up(node_id)
        self.events.append(("down", node_id))
        self.world.changed.set()

    def stranger(self, connection: StrangerConnection, message: Message) -> None:
        self.events.append(("stranger", message))
        self.world.strangers.append(connection)
        if message[0] == 1:
            connection.send([2, self.node_id, connection.identity.name, *message[1:]])
        elif message[0] == 3:
            connection.close()
        self.world.changed.set()

    def is_told_up(self, node_id: int) -> bool:
        told = [event[0] for event in self.events if event[0] in ("up", "down") and event[1] == node_id]
        return bool(told) and told[-1] == "up"

    def messages(self, node_id: int) -> list[Message]:
        return [event[1] for event in self.events if event[0] == node_id]


class World(Protocol):
    rng: random.Random
    changed: asyncio.Event
    nodes: dict[int, Node]
    strangers: list[StrangerConnection]
    limits: Limits

    async def start(self, node_id: int, incarnation: str = "first", **options: Any) -> Node: ...
    def connect(self) -> None: ...
    def address(self, node_id: int) -> Address: ...
    def network(self) -> Network: ...
    async def crash(self, node_id: int) -> None: ...
    def cut(self, source: int, target: int) -> None: ...
    def heal(self, source: int, target: int) -> None: ...
    async def until(self, happened: Callable[[], bool]) -> None: ...
    async def close(self) -> None: ...


class _Common:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.changed = asyncio.Event()
        self.nodes: dict[int, Node] = {}
        self.strangers: list[StrangerConnection] = []
        self.limits = LIMITS

    def _peers(self, node: Node, network: Network, options: dict[str, Any]) -> StreamPeers:
        said = {"cluster_id": "c", "region": "r", "node_id": node.node_id, "name": f"r/{node.node_id}"}
        said |= options.pop("says", {})
        return StreamPeers(
            Identity(incarnation=node.incarnation, **said),
            node,
            network,
            rng=self.rng,
            limits=options.pop("limits", self.limits),
            stranger=node.stranger if options.pop("strangers", True) else None,
            **options,
        )

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait for it; what is seen without a callback is looked for every now and then."""
        async with asyncio.timeout(60.0):
            while not happened():
                self.changed.clear()
                try:
                    async with asyncio.timeout(0.01):
                        await self.changed.wait()
                except TimeoutError:
                    pass

    async def close(self) -> None:
        await asyncio.gather(*(node.peers.close() for node in self.nodes.values()))


class Relay:
    """From one node to another, over real sockets; each direction can be stopped."""

    def __init__(self, target: Callable[[], Address]) -> None:
        self._target = target
        self.open = [asyncio.Event(), asyncio.Event()]  # forth, back
        for direction in self.open:
            direction.set()
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        other = None
        try:
            there, other = await asyncio.open_connection(*self._target())
            both = [self._copy(reader, other, 0), self._copy(there, writer, 1)]
            await asyncio.wait([asyncio.ensure_future(copy) for copy in both])
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, other):
                if end is not None:
                    end.transport.abort()
            self._tasks.discard(task)

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: int) -> None:
        try:
            while data := await reader.read(1 << 16):
                await self.open[way].wait()
                writer.write(data)
                await writer.drain()
            # What ends a connection is a packet, too.
            await self.open[way].wait()
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        for direction in self.open:
            direction.set()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class SocketWorld(_Common):
    """Loopback, real time."""

    def __init__(self, rng: random.Random, tls: Tls | None) -> None:
        super().__init__(rng)
        self._tls = tls
        self._ports: dict[int, int] = {}
        self._relays: dict[tuple[int, int], Relay] = {}

    async def start(self, node_id: int, incarnation: str = "first", **options: Any) -> Node:
        node = Node(self, node_id, incarnation)
        node.peers = self._peers(node, self.network(), options)
        await node.peers.start("127.0.0.1", self._ports.get(node_id, 0))
        self._ports[node_id] = node.peers.port
        self.nodes[node_id] = node
        return node

    def connect(self) -> None:
        for node in self.nodes.values():
            node.peers.set_peers({other: self._way(node.node_id, other) for other in self.nodes})

    async def relay(self, source: int, target: int) -> None:
        """From now on `connect` goes through a relay here."""
        relay = self._relays[source, target] = Relay(lambda: self.address(target))
        self._ports[source * 1000 + target] = await relay.start()

    def _way(self, source: int, target: int) -> Address:
        port = self._ports.get(source * 1000 + target) or self._ports[target]
        return ("127.0.0.1", port)

    def address(self, node_id: int) -> Address:
        return ("127.0.0.1", self._ports[node_id])

    def network(self) -> Network:
        return TcpNetwork(self._tls)

    async def crash(self, node_id: int) -> None:
        """As the kernel does it for a process that was killed."""
        node = self.nodes.pop(node_id)
        for session in node.peers._sessions.values():
            for link in (session.dialed, session.accepted):
                if link is not None:
                    link._round = []  # nothing more is sent
                    link.drop()
        node.peers.receiver = Node(self, node_id, "dead")
        await node.peers.close()

    def cut(self, source: int, target: int) -> None:
        self._relays[source, target].open[0].clear()
        self._relays[target, source].open[1].clear()

    def heal(self, source: int, target: int) -> None:
        self._relays[source, target].open[0].set()
        self._relays[target, source].open[1].set()

    async def close(self) -> None:
        await super().close()
        for relay in self._relays.values():
            await relay.close()


class MemoryWorld(_Common):
    """Everything virtual."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.net = MemoryNetwork(loop, rng)

    async def start(self, node_id: int, incarnation: str = "first", **options: Any) -> Node:
        node = Node(self, node_id, incarnation)
        node.process = self.loop.process(f"n{node_id}")
        node.peers = self._peers(node, self.net.host(f"n{node_id}", node.process), options)
        await node.process.spawn(node.peers.start("", 7000))
        self.nodes[node_id] = node
        return node

    def connect(self) -> None:
        addresses = {other: self.address(other) for other in self.nodes}
        for node in self.nodes.values():
            assert node.process is not None
            node.process.call(node.peers.set_peers, addresses)

    async def relay(self, source: int, target: int) -> None:
        """Needs none."""

    def address(self, node_id: int) -> Address:
        return (f"n{node_id}", 7000)

    def network(self) -> Network:
        return self.net.host("elsewhere", self.loop.process("elsewhere"))

    async def crash(self, node_id: int) -> None:
        node = self.nodes.pop(node_id)
        assert node.process is not None
        node.process.kill()

    def cut(self, source: int, target: int) -> None:
        self.net.cut(f"n{source}", f"n{target}")

    def heal(self, source: int, target: int) -> None:
        self.net.heal(f"n{source}", f"n{target}")


async def ask(world: World, message: Message, **options: Any) -> Message:
    """ask_stranger of node 1."""
    return await ask_stranger(world.address(1), message, 2.0, network=world.network(), **options)
