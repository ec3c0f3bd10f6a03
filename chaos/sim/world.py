"""A region in one process: machines with disks and clocks, a network between them, and the nodes on them.

A node is what `holdfast server start` runs (cluster/hosting/process/region_server.py), without its front
and with other surroundings: a disk in memory, a network in memory, a clock that is virtual time and an
offset, chance from the run's seed.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chaos.sim.calls import Channel
from chaos.sim.disk import Disk
from chaos.sim.trace import NODE, Trace
from cluster.frontend.contract import Handler
from cluster.frontend.services import everything
from cluster.frontend.services.base import Services
from cluster.frontend.services.deletion import Deletions
from cluster.hosting.clock import Clock
from cluster.hosting.config.node_config import RaftSection
from cluster.hosting.region.joining import Asker, NotAdmitted, Place, join
from cluster.hosting.region.member import Founding, Member, Surroundings, Virtual
from cluster.membership import FORMAT, FORMATS, META_GROUP, NodeRecord, NodeState, ShardState, initial_ids
from cluster.peers.contract import Identity
from cluster.peers.memory import MemoryNetwork
from history_store.engine.environment import EngineLimits
from history_store.engine.limits import Limits

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group
    from cluster.membership import Table
    from cluster.peers.virtual_time import Process, VirtualLoop

EPOCH_NS: Final = 1_770_000_000_000_000_000
PORT: Final = 7000
CLUSTER_ID: Final = "00000000-0000-7000-8000-00000000c105"
LONG_POLL_S: Final = 60.0
DRAIN_S: Final = 2.0  # what open calls get at an orderly stop
STOP_S: Final = 10.0  # until a supervisor kills what does not stop
SUPERVISOR_S: Final = (0.2, 1.0)  # until a node that ended by itself is started again

_NOBODY = contextvars.Context()


class Shape(NamedTuple):
    """What a region is made of."""

    nodes: int = 3
    shards: int = 3
    replicas: int = 3
    raft: RaftSection = RaftSection()


class SkewedClock(Clock):
    """Virtual time and an offset; never backwards within a process, as the real one."""

    __slots__ = ("_loop", "_machine")

    def __init__(self, loop: VirtualLoop, machine: Node) -> None:
        super().__init__()
        self._loop = loop
        self._machine = machine

    def now_ns(self) -> int:
        """Nanoseconds since the epoch, as this machine believes."""
        now = EPOCH_NS + int((self._loop.time() + self._machine.skew_s) * 1e9)
        self._last = max(self._last, now)
        return self._last


class Node:
    """A machine of the region, and the process on it, if there is one."""

    def __init__(self, world: World, name: str, *, joins: bool = False) -> None:
        self.world = world
        self.name = name
        self.joins = joins  # it is no first member, and asks the others to let it in
        self.place: Place | None = None  # what it was told then; its disk knows
        self.disk = Disk(world.loop, random.Random(f"{world.seed}/disk/{name}"))
        self.skew_s = 0.0
        self._cpu = (0.0, 0.0)  # used until then
        self.load = 0.0  # what its CPU is busy with, as its steward measures it
        self.process: Process
        self.member: Member
        self.handlers: Mapping[str, Handler] = {}
        self.lives = 0
        self.running = False  # a process is there, which may not serve yet, or be paused
        self.stopping = False
        self._services: Services

    @property
    def serves(self) -> bool:
        """Whether clients can connect."""
        return bool(self.handlers) and not self.process.dead

    @property
    def node_id(self) -> int:
        """Its number in the region; 0 until it has one."""
        if not self.joins:
            return self.world.ids[self.name]
        return self.place.node_id if self.place is not None else 0

    def start(self) -> None:
        """A new process."""
        assert not self.running, "one process a machine"
        self.lives += 1
        self.running = True
        self.process = self.world.loop.process(self.name)
        self.process.context.run(NODE.set, self.name)
        self.process.spawn(self._boot(self.process))

    async def _boot(self, process: Process) -> None:
        world, name = self.world, self.name
        rng = random.Random(f"{world.seed}/{name}/{self.lives}")
        key = f"disk-{name}"
        if self.joins and self.place is None and not await self._join(process, rng, key):
            return
        around = Surroundings(
            world.loop,
            self.disk,
            world.network.host(name, process),
            SkewedClock(world.loop, self),
            rng,
            EngineLimits(),
            world.shape.raft,
            lambda error: self._broken(process, error),
            Virtual(self.disk.lane, self._cpu_s),
        )
        incarnation = f"{rng.getrandbits(64):016x}"
        first = {} if self.joins else {other: (other, PORT) for other in world.ids}
        self.member = Member(
            Identity(CLUSTER_ID, "sim", self.node_id, name, incarnation, key),
            Founding(first, world.shape.shards, world.shape.replicas),
            around,
            self._record(self.node_id, key),
        )
        node = self.member.node
        node.start()
        everything()
        self._services = Services(node, Limits(), LONG_POLL_S)
        node.meta.on_change.append(self._services.part(Deletions).resume)
        peers = self.place.peers if self.place is not None else None
        await self.member.start(name, PORT, self._services.handlers(), peers)
        try:
            await self.member.ready
        except NotAdmitted as error:
            world.trace.note(f"{name} is not let in: {error}")
            return  # an operator will switch it off
        self._services.part(Deletions).resume()
        forward = self.member.forward
        self.handlers = {method: forward.wrap(handler) for method, handler in forward.handlers.items()}
        world.trace.note(f"{name} serves")

    async def _join(self, process: Process, rng: random.Random, key: str) -> bool:
        """Ask for a place. False: the region will not have it."""
        world = self.world
        asker = Asker(world.network.host(self.name, process), cluster_id="", region="sim", name=self.name)
        seeds = [(other, PORT) for other in world.nodes if other != self.name]
        try:
            self.place = await join(asker, seeds, self._record(0, key), rng)
        except NotAdmitted as error:
            world.trace.note(f"{self.name} is not let in: {error}")
            return False
        return True

    def _record(self, node_id: int, key: str) -> NodeRecord:
        """What it tells the region of itself."""
        peers, grpc = f"{self.name}:{PORT}", f"{self.name}:{PORT + 1}"
        return NodeRecord(
            FORMAT, node_id, self.name, peers, grpc, "", "", NodeState.ACTIVE, 0, "sim", key, FORMATS
        )

    def _cpu_s(self) -> float:
        """What its process used of the CPU, by its load."""
        now = self.world.loop.time()
        since, used = self._cpu
        self._cpu = now, used + self.load * (now - since)
        return self._cpu[1]

    def _broken(self, process: Process, error: BaseException) -> None:
        """The disk failed: the process ends, and a supervisor starts another one."""
        loop = self.world.loop
        self.world.trace.note(f"{self.name} ends: {error}")

        def end() -> None:
            if not process.dead:
                self.kill()
                wait_s = self.world.rng.uniform(*SUPERVISOR_S)
                loop.call_later(wait_s, self.start_again, context=_NOBODY)

        loop.call_soon(end, context=_NOBODY)

    def start_again(self) -> None:
        """Start, unless somebody did, or the machine is no more."""
        if not self.running and self.name in self.world.nodes:
            self.start()

    def kill(self) -> None:
        """SIGKILL: what was not durable is lost."""
        self.handlers = {}
        self.running = self.stopping = False
        self.process.kill()
        self.disk.crash()

    async def stop(self, patience_s: float = STOP_S) -> bool:
        """SIGTERM, as RegionServer.stop; then SIGKILL. False: it did not stop by itself."""
        process = self.process
        if process.dead:
            return True
        self.stopping = True
        stopping = process.spawn(self._stop())
        until = self.world.loop.time() + patience_s
        while not stopping.done() and not process.dead and self.world.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        if process.dead:
            return True  # by somebody else
        if stopping.done():
            await asyncio.sleep(0.01)
            for task in self.world.loop.tasks_of(process):
                if getattr(task.get_coro(), "__qualname__", "") == "Attempt._drive":
                    continue  # of a call that its client has not given up: it ends with the loop
                self.world.trace.problem(f"{self.name} stopped, and left a task: {task.get_coro()!r}")
        self.kill()
        if not stopping.done():
            return False
        stopping.result()
        return True

    async def _stop(self) -> None:
        await self.member.hand_over()
        self.member.halt()
        self.member.node.end_polls()
        self.handlers = {}
        await asyncio.sleep(self.world.rng.uniform(0.0, DRAIN_S))
        for callback in self._services.on_close:
            callback()
        await self.member.node.close()
        await self.member.peers.close()

    # ---- for faults and judges

    def groups(self) -> dict[int, Group]:
        """Its replicas, by number."""
        return self.member.node.committer.groups

    def call(self, function: Any, *arguments: Any) -> Any:
        """Do something as this node, at once."""
        return self.process.call(function, *arguments)


class World:
    """The region and what surrounds it."""

    def __init__(self, loop: VirtualLoop, seed: int, trace: Trace, shape: Shape) -> None:
        self.loop = loop
        self.seed = seed
        self.trace = trace
        self.shape = shape
        self.rng = random.Random(f"{seed}/world")
        self.network = MemoryNetwork(loop, random.Random(f"{seed}/network"))
        names = [f"n{number}" for number in range(1, shape.nodes + 1)]
        self.ids = initial_ids(names)
        self.nodes = {name: Node(self, name) for name in names}
        self.gone: list[Node] = []
        self.leaving: dict[str, Node] = {}  # by name: what operators told to go
        self.drained: set[str] = set()  # what operators told to lead nothing, and perhaps not to lead again
        self._made = len(names)
        self._peers = 0
        self._numbers = list(range(shape.shards + 1))

    def start(self) -> None:
        """All at once."""
        for node in self.nodes.values():
            node.start()

    def add(self) -> Node:
        """A machine that was never there, whose process asks to join."""
        self._made += 1
        name = f"n{self._made}"
        node = self.nodes[name] = Node(self, name, joins=True)
        node.start()
        return node

    def is_removed(self, node: Node) -> bool:
        """Whether the region has let it go."""
        table = self.table()
        if table is None:
            return False
        known = table.nodes.get(node.node_id)
        if not node.node_id:  # it went before it was told its number
            known = next((one for one in table.nodes.values() if one.name == node.name), None)
        return known is not None and known.state is NodeState.REMOVED

    def leave(self) -> None:
        """The machines of removed nodes are no more."""
        for name, node in list(self.leaving.items()):
            if self.is_removed(node):
                if node.running:
                    node.kill()
                self.gone.append(self.nodes.pop(name))
                del self.leaving[name]

    def connect(self, rng: random.Random, label: str, *, to: Node | None = None) -> Channel:
        """A client's connection to some node that serves, or to one that is given."""
        serving = [node for node in self.nodes.values() if node.serves]
        node = to or rng.choice(serving or list(self.nodes.values()))
        self._peers += 1
        return Channel(self.loop, rng, self.trace, node, f"{label}:{self._peers}")

    def leader(self, group: int) -> Node | None:
        """Who leads a group, if somebody does."""
        for node in self.nodes.values():
            if node.serves and (found := node.groups().get(group)) is not None and found.leading:
                return node
        return None

    def numbers(self) -> list[int]:
        """All groups: that of the registry, and the shards; they become more."""
        table = self.table()
        if table is not None and table.region is not None:
            self._numbers = table.groups()
        return list(self._numbers)

    def table(self) -> Table | None:
        """Who belongs to the region, as who leads its registry has it."""
        leader = self.leader(META_GROUP)
        return leader.member.replicas.table if leader is not None else None

    def heal(self) -> None:
        """No fault any more: everything runs, and everybody hears everybody."""
        self.network.heal_all()
        for source in self.nodes:
            for target in self.nodes:
                path = self.network.path(source, target)
                path.delay_s, path.loss, path.breaks, path.bytes_per_s = (0.0002, 0.001), 0.0, 0.0, 0.0
        for node in self.nodes.values():
            node.disk.heal()
            if node.stopping:
                node.kill()
            if not node.running:
                node.start()
            elif node.process.paused:
                node.process.resume()

    @property
    def whole(self) -> bool:
        """Whether every node serves, and every group has its members and a leader that all of them follow."""
        nodes = list(self.nodes.values())
        table = self.table()
        if table is None or not all(node.serves for node in nodes):
            return False
        if {node.id for node in table.present()} != {node.node_id for node in nodes}:
            return False  # one that was removed is not empty yet
        if any(node.state is NodeState.LEAVING for node in table.present()):
            return False  # one is empty, and about to be removed
        if any(shard.state is ShardState.PREPARING for shard in table.shards.values()):
            return False  # a split is under way
        for number in self.numbers():
            leader = self.leader(number)
            if leader is None:
                return False
            conf = leader.groups()[number].raft.conf
            if conf.outgoing or {*conf.voters} != {*table.replicas_of(number)}:
                return False
            if {*conf.learners} != {*table.learners_of(number)}:
                return False
            if any(
                number in node.groups() and node.groups()[number].raft.leader != leader.node_id
                for node in nodes
            ):
                return False
        return True

    async def until_whole(self, patience_s: float) -> bool:
        """Wait for it. False: in vain."""
        until = self.loop.time() + patience_s
        while not self.whole:
            self.leave()
            if self.loop.time() >= until:
                return False
            await asyncio.sleep(0.05)
        return True

    def end(self) -> None:
        """Nothing runs any more, wherever it was."""
        for node in self.nodes.values():
            if node.running:
                node.process.kill()

    def scrap(self) -> None:
        """The end of the world."""
        for node in (*self.nodes.values(), *self.gone):
            node.disk.scrap()
