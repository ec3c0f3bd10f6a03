"""Two regions in virtual time, with a wire between them, and stand-ins for what tells one of the other.

Of each region the nodes are members without a front (settlement.py). The wire hands every message over after
a moment, encoded and decoded, unless it is cut. `Outgoing` is a shard's stream to the other region: its tip
and its cursors are rows of the shard, so that a new leader goes on from them; `Ferry` brings entries over.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from cluster.hosting.region.failover_operations import Answer
from cluster.hosting.region.joining import Told
from cluster.hosting.region.member import Abroad
from cluster.hosting.shards.gates import Gates
from cluster.hosting.shards.host import ShardHost
from cluster.hosting.shards.meta import REGISTERED, Namespace
from history_store.engine.errors import Code, ServiceError
from history_store.shard import image
from replication.failover import commands
from replication.failover.commands import Fence
from replication.failover.gates import GateState
from replication.failover.readiness import ShardLag
from replication.failover.records import Handover, NamespaceRecord, Point, Row, Source
from replication.frames import Entry, Kind
from tests.cluster.hosting.settlement import Settlement, Settler

MS = 1_000_000
NAMES = {1: "a", 2: "b"}
WIRE_S = 0.02
FERRY_S = 0.01
ENTRY, CURSOR, NEWEST = b"o", b"u", b"w"  # kinds of rows that nothing else has

pack = msgspec.msgpack.encode
unpack = msgspec.msgpack.decode


class Outgoing:
    """What a shard tells the other region, and has applied of it."""

    def __init__(self, world: World, region: int, shard: ShardHost) -> None:
        self.world = world
        self.region = region
        self.shard = shard

    @property
    def incarnation(self) -> int:
        return self.region * 1000 + self.shard.group.id

    def entries(self) -> list[Entry]:
        found = self.shard.rows.scan(ENTRY, b"p")
        return [msgspec.msgpack.decode(value, type=Entry) for _, value in found]

    def offered(self) -> Point:
        return Point(self.incarnation, len(self.entries()) + 1)

    def told(self, entries: Sequence[Entry]) -> list[Row]:
        first = len(self.entries()) + 1
        return [(ENTRY + n.to_bytes(8, "big"), pack(e)) for n, e in enumerate(entries, first)]

    def write(self, namespace_id: str) -> bool:
        """A mutation of the namespace, if it is served here."""
        gates = self.shard.gates
        assert gates is not None
        if gates.state(namespace_id) is not GateState.OPEN or not self.shard.group.leading:
            return False
        tx = self.shard.begin()
        entry = Entry(Kind.EVENTS, namespace_id, gates.version(namespace_id))
        self.shard.commit(tx, lambda error: None, told=[entry])
        return True

    def cursors(self) -> Mapping[Source, Point]:
        found = self.shard.rows.scan(CURSOR, b"v")
        return {Source(*unpack(key[1:])): Point(*unpack(value)) for key, value in found}

    def lag(self, source: Source) -> ShardLag:
        at = self.cursors().get(source)
        host = self.world.led(source.region).get(source.shard)
        if at is None or host is None or self.world.blind:
            return ShardLag(None, None)
        behind = len(self.world.outgoing(host).entries()) - at.seq
        return ShardLag(behind * 50 * MS, behind)

    def fences(self) -> Mapping[Source, Fence | None]:
        found: dict[Source, Fence | None] = {}
        for key, value in self.shard.rows.scan(NEWEST, b"x"):
            command = commands.decode_shard(value)
            found[Source(*unpack(key[1:]))] = command if isinstance(command, Fence) else None
        return found

    def has_all(self, namespace_id: str) -> bool:
        return namespace_id not in self.world.bootstrapping

    def apply(self, source: Source, entries: list[Entry], at: Point) -> None:
        """Entries of the other region, with the cursor that counts them."""
        gates = self.shard.gates
        assert gates is not None
        key = pack(list(source))
        rows: list[Row] = [(CURSOR + key, pack((at.incarnation, at.seq)))]
        for entry in entries:
            if entry.kind in (Kind.FENCE, Kind.UNFENCE):
                rows.append((NEWEST + key, entry.payload))
            elif entry.namespace_version:
                rows += gates.raised(entry.namespace_id, entry.namespace_version)
        self.shard.group.propose(image.encode(rows, []), rows, [])


class Wire:
    """The other regions as one node sees them."""

    def __init__(self, world: World, own: int, settler: Settler) -> None:
        self.world = world
        self.own = own
        self.settler = settler

    def others(self) -> list[int]:
        return [index for index in NAMES if index != self.own]

    def name_of(self, index: int) -> str:
        return NAMES[index]

    def index_of(self, name: str) -> int:
        return next((index for index, known in NAMES.items() if known == name), 0)

    def nodes_up(self, index: int) -> list[int]:
        if self.world.cut:
            return []
        return [settler.node_id for settler in self.world.settlers(index)]

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        world, body = self.world, pack(message)
        if world.cut:
            return False

        def arrive() -> None:
            for settler in world.settlers(index):
                if settler.node_id == node and not world.cut:
                    heard = settler.member.failover
                    assert heard is not None
                    settler.process.call(heard.asking.foreign, self.own, self.settler.node_id, unpack(body))

        world.outside(WIRE_S, arrive)
        return True


class World:
    """Both regions."""

    def __init__(self, rng: random.Random, machines: str = "xyz") -> None:
        self.rng = rng
        self.cut = False
        self.blind = False  # nobody knows how far behind anybody is
        self.bootstrapping: set[str] = set()  # namespaces
        self.ferrying = True
        self.regions = {
            index: Settlement(rng, machines, name, self._abroad(index)) for index, name in NAMES.items()
        }
        self.loop = self.regions[1].loop
        self._outside = self.loop.process("outside")
        self._task: asyncio.Task[None] | None = None

    def _abroad(self, index: int) -> Callable[[Settler], Abroad]:
        def of(settler: Settler) -> Abroad:
            return Abroad(Wire(self, index, settler), lambda shard: Outgoing(self, index, shard))

        return of

    def outside(self, delay_s: float, what: Callable[[], None]) -> None:
        """Later, whoever dies meanwhile."""
        self._outside.call(self.loop.call_later, delay_s, what)

    async def found(self) -> None:
        for region in self.regions.values():
            await region.found()
        self._task = self.loop.create_task(self._ferry())

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for region in self.regions.values():
            region.end()

    # ---- who is where

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
        assert isinstance(shard.streams, Outgoing)
        return shard.streams

    def gates(self, index: int) -> dict[int, Gates]:
        return {number: shard.gates for number, shard in self.led(index).items() if shard.gates is not None}

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

    # ---- streams

    async def _ferry(self) -> None:
        while True:
            await asyncio.sleep(FERRY_S)
            if self.cut or not self.ferrying:
                continue
            for index in NAMES:
                for shard in self.led(3 - index).values():
                    self._bring(index, shard)

    def _bring(self, index: int, shard: ShardHost) -> None:
        """Everything that a shard reads of a region's shards."""
        for number, theirs in self.led(index).items():
            if not self._overlap(shard, theirs):
                continue
            origin, out = Source(index, number), self.outgoing(shard)
            entries = self.outgoing(theirs).entries()
            at = out.cursors().get(origin)
            if theirs.group.proposed > theirs.group.committed:
                continue  # what is not committed is not there
            incarnation = self.outgoing(theirs).incarnation
            if at is not None and at.seq >= len(entries):
                continue
            try:
                new = entries[at.seq if at is not None else 0 :]
                out.apply(origin, new, Point(incarnation, len(entries)))
            except ServiceError:
                continue

    def _overlap(self, shard: ShardHost, theirs: ShardHost) -> bool:
        ours, others = self.ranges(shard), self.ranges(theirs)
        return any(a <= d and c <= b for a, b in ours for c, d in others)

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
