"""Two regions in virtual time, on one network, that were introduced to each other.

Of each region the nodes are members without a front (settlement.py). What they tell each other goes by their
real links and streams. A test can have the links cut, nobody know how far behind anybody is, what is read not
be applied, and a region be without runs that it should have.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from cluster.hosting.region.failover_operations import Answer
from cluster.hosting.region.joining import Told
from cluster.hosting.region.reader import Reader
from cluster.hosting.region.streaming import Streaming
from cluster.hosting.shards.gates import Gates, NotActive
from cluster.hosting.shards.host import ShardHost
from cluster.hosting.shards.meta import REGISTERED, Namespace
from cluster.hosting.shards.streams import ShardStreams
from cluster.membership import Table
from history_store.engine import keys
from history_store.engine.errors import Code
from replication import shipment
from replication.failover.gates import GateState
from replication.failover.records import Handover, NamespaceRecord, Source
from replication.frames import Entry, Kind
from tests.cluster.hosting.settlement import PORT, Settlement, Settler

MS = 1_000_000
NAMES = {1: "a", 2: "b"}


def within(ranges: list[tuple[int, int]], slot: int) -> bool:
    """Whether a slot is in one of these."""
    return any(first <= slot <= last for first, last in ranges)


class Outgoing:
    """What a shard tells the other region."""

    def __init__(self, world: World, shard: ShardHost) -> None:
        self.world = world
        self.shard = shard

    @property
    def told(self) -> int:
        """How many entries there are so far."""
        streams = self.shard.streams
        assert streams is not None
        return streams.tip.seq if streams.tip is not None else 0

    def write(self, namespace_id: str) -> bool:
        """Something of the namespace, if it is served here."""
        try:
            tx = self.shard.begin(namespace_id)
        except NotActive:
            return False
        assert isinstance(self.shard.gates, Gates)
        ranges = self.world.ranges(self.shard)
        workflow_id = next(
            name
            for number in range(100_000)
            if any(
                first <= keys.slot_of(namespace_id, name := f"w{number}") <= last for first, last in ranges
            )
        )
        version = self.shard.gates.version(namespace_id)
        payload = shipment.pack([], [], [], None)
        entry = Entry(Kind.EVENTS, namespace_id, version, workflow_id, "", shipment.CODEC, payload)
        self.shard.commit(tx, lambda error: None, told=[entry])
        return True


class World:
    """Both regions."""

    def __init__(self, rng: random.Random, machines: str = "xyz") -> None:
        self.rng = rng
        self._cut = False
        self.near = False  # everybody seems to be close behind
        self.blind = False  # nobody knows how far behind anybody is
        self.bootstrapping: set[str] = set()  # namespaces
        self.ferrying = True
        self.stalled: set[tuple[int, int]] = set()  # (region, shard) that reads nothing
        a = Settlement(rng, machines, "a", 1)
        self.regions = {1: a, 2: Settlement(rng, machines, "b", 2, a.network)}
        self.loop = a.loop
        self._restore = self._meddle()

    def _meddle(self) -> Callable[[], None]:
        lag, has_all, store = Streaming.lag, ShardStreams.has_all, Reader._store

        def lags(streaming: Streaming, shard: int, source: Source) -> tuple[int, int] | None:
            if self.blind:
                return None
            return (0, 0) if self.near else lag(streaming, shard, source)

        def has(streams: ShardStreams, namespace_id: str) -> bool:
            return namespace_id not in self.bootstrapping and has_all(streams, namespace_id)

        def stores(reader: Reader) -> None:
            if self.ferrying and (3 - reader.source.region, reader.shard) not in self.stalled:
                store(reader)

        Streaming.lag, ShardStreams.has_all, Reader._store = lags, has, stores  # type: ignore[method-assign]

        def restore() -> None:
            Streaming.lag, ShardStreams.has_all, Reader._store = lag, has_all, store  # type: ignore[method-assign]

        return restore

    @property
    def cut(self) -> bool:
        """Whether nothing passes between the regions."""
        return self._cut

    @cut.setter
    def cut(self, cut: bool) -> None:
        self._cut = cut
        network = self.regions[1].network
        for one in self.settlers(1):
            for other in self.settlers(2):
                for source, target in ((one.host, other.host), (other.host, one.host)):
                    (network.cut if cut else network.heal)(source, target)

    async def found(self) -> None:
        a, b = self.regions.values()
        await a.found()
        await b.found()
        await a.do("a/1", "introduce", at=[f"b-1:{PORT}"])
        await self.until(self.whole)

    def whole(self) -> bool:
        """Whether all nodes reach all of the other region."""
        return all(
            len(settler.member.regions.nodes_up(3 - index)) == len(self.settlers(3 - index))
            for index in NAMES
            for settler in self.settlers(index)
        )

    def end(self) -> None:
        self._restore()
        for region in self.regions.values():
            region.end()

    # ---- who is where

    def table(self, index: int) -> Table:
        """As the leader of the meta group has it; an empty one if nobody leads."""
        leader = self.leader(index)
        return leader.table if leader is not None else Table()

    def settlers(self, index: int) -> list[Settler]:
        return [settler for settler in self.regions[index].running() if hasattr(settler, "member")]

    def led(self, index: int) -> dict[int, ShardHost]:
        found: dict[int, ShardHost] = {}
        for settler in self.settlers(index):
            for number, shard in settler.member.node.led.items():
                if shard.group.leading and not shard.retired:
                    held = found.get(number)
                    if held is None or held.group.raft.term < shard.group.raft.term:
                        found[number] = shard
        return found

    def leader(self, index: int) -> Settler | None:
        """Where the meta group is led."""
        leading = [s for s in self.settlers(index) if s.member.node.meta.group.leading]
        return max(leading, key=lambda s: s.member.node.meta.group.raft.term, default=None)

    def outgoing(self, shard: ShardHost) -> Outgoing:
        return Outgoing(self, shard)

    def gates(self, index: int) -> dict[int, Gates]:
        led = self.led(index).items()
        return {number: shard.gates for number, shard in led if isinstance(shard.gates, Gates)}

    def states(self, index: int, namespace_id: str) -> set[GateState]:
        return {gates.state(namespace_id) for gates in self.gates(index).values()}

    def record(self, index: int, namespace_id: str) -> NamespaceRecord | None:
        for settler in self.settlers(index):
            failover = settler.member.node.failover
            assert failover is not None
            found = failover.record(namespace_id)
            if found is not None:
                return found
        return None

    def records_agree(self, namespace_id: str) -> Iterator[bool]:
        """Of each node: whether it knows what the first one knows of the namespace, and it is followed."""
        first = self.record(1, namespace_id)
        assert first is not None
        for index in NAMES:
            for settler in self.settlers(index):
                failover = settler.member.node.failover
                assert failover is not None
                found = failover.record(namespace_id)
                yield found is not None and (found.version, found.config) == (first.version, first.config)
                yield found is not None and found.settled == found.version
                yield found is not None and len(found.told) == len(found.config.regions) - 1

    def leader_state(self, index: int) -> Any:
        """All that the region has decided."""
        leader = self.leader(index)
        assert leader is not None
        failover = leader.member.node.failover
        assert failover is not None
        state = failover.committed
        versions = {record.id: (record.version, record.config) for record in state.namespaces.values()}
        return versions, {number: one.phase for number, one in state.handovers.items()}

    def handover(self, index: int, number: int = 1) -> Handover | None:
        """As the node shows it that has applied most."""
        shown = []
        for settler in self.settlers(index):
            failover = settler.member.node.failover
            assert failover is not None
            found = failover.committed.handovers.get(number)
            if found is not None:
                shown.append((settler.member.node.meta.group.applied, found))
        return max(shown, key=lambda pair: pair[0])[1] if shown else None

    def ranges(self, shard: ShardHost) -> list[tuple[int, int]]:
        """Those slots that a shard has, as all tables and logs know."""
        for index in NAMES:
            if self.led(index).get(shard.group.id) is shard:
                for settler in self.settlers(index):
                    record = settler.table.shards.get(shard.group.id)
                    if record is not None:
                        return list(record.ranges)
        return []

    # ---- operators

    async def told(self, index: int, do: str, **fields: Any) -> Told:
        leader = self.rng.choice(self.settlers(index))
        return await self.regions[index].told(leader.name, do, **fields)

    async def do(self, index: int, do: str, **fields: Any) -> Answer:
        told = await self.told(index, do, **fields)
        assert told.code == Code.OK, told
        found: Answer = msgspec.json.decode(told.body)
        return found

    async def until(self, happened: Callable[[], Any], patience_s: float = 60.0) -> None:
        async with asyncio.timeout(patience_s):
            while not happened():
                await asyncio.sleep(0.02)

    # ---- namespaces

    async def global_default(self) -> str:
        """Region 1's namespace `orders`, held by both; its id."""
        namespace_id = await self.register(1, "orders")
        await self.do(1, "add_region", namespace="orders", to="b")
        await self.until(lambda: self.states(1, namespace_id) == {GateState.OPEN})
        await self.until(lambda: self.record(2, namespace_id) is not None)
        await self.until(
            lambda: all(g.version(namespace_id) for g in self.gates(2).values()) and bool(self.gates(2))
        )
        return namespace_id

    async def register(self, index: int, name: str, *, versioned: bool = True) -> str:
        await self.until(lambda: self.leader(index) is not None)
        settler = self.leader(index)
        assert settler is not None
        node = settler.member.node
        made = Namespace(node.new_id(), name, REGISTERED, node.clock.now_ns())

        def create() -> None:
            assert node.failover is not None
            if not versioned:
                node.meta.create(made, lambda error: None)
                return
            row = node.failover.creation(made.id, now_ns=made.created)
            node.failover.register(made, [index], row, lambda error: None)

        settler.process.call(create)
        await self.until(lambda: bool(self.registered(index, made.id)))
        return made.id

    async def edit(self, index: int, namespace_id: str, **fields: Any) -> None:
        """Change settings of a namespace. NotActive."""
        settler = self.leader(index)
        assert settler is not None
        node = settler.member.node

        def change() -> None:
            assert node.failover is not None
            node.failover.edit(msgspec.structs.replace(node.meta.by_id[namespace_id], **fields))

        settler.process.call(change)
        await asyncio.sleep(0.1)

    def registered(self, index: int, namespace_id: str) -> dict[str, Any]:
        """How all nodes of a region describe a namespace; {} if they do not, or differ."""
        said = []
        for settler in self.settlers(index):
            found = settler.member.node.meta.by_id.get(namespace_id)
            said.append({} if found is None else msgspec.structs.asdict(found) | {"config_version": 0})
        return said[0] if said and all(one == said[0] for one in said) else {}
