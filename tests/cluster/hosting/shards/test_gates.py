"""The gates of a shard on a real ShardHost: what is told to it, what its rows keep, what passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

import msgspec
import pytest
import pytest_asyncio

from cluster.hosting.shards.gates import Gates, NotActive
from cluster.hosting.shards.host import ShardHost
from history_store.engine import keys
from history_store.engine.errors import Code, Indefinite, ServiceError
from history_store.engine.run import Transaction
from replication.failover import commands, records
from replication.failover.commands import Activate, Deactivate, Fence, ShardCommand, Unfence
from replication.failover.gates import Answer, Call, GateState, Verdict
from replication.failover.readiness import ShardLag
from replication.failover.records import Gate, Marker, Point, Source
from replication.frames import Entry, Frame, Kind
from tests.cluster.hosting.play import Play

NS = "00000000-0000-0000-0000-00000000000a"
OTHER = "00000000-0000-0000-0000-00000000000b"
ENTRY = b"o"
THEIRS = Source(2, 1)


class Outgoing:
    """A stream that is rows of the shard."""

    def __init__(self, shard: ShardHost) -> None:
        self.shard = shard
        self.incarnation = 5
        self.read = {THEIRS: Point(9, 4)}

    def entries(self) -> list[Entry]:
        found = self.shard.rows.scan(ENTRY, keys.prefix_end(ENTRY))
        return [msgspec.msgpack.decode(value, type=Entry) for _, value in found]

    def offered(self) -> Point:
        return Point(self.incarnation, len(self.entries()) + 1)

    def seal(self, tx: Transaction, told: Sequence[Entry]) -> tuple[list[Frame], None]:
        first = len(self.entries()) + 1
        tx.seal()
        tx.rows.extend((ENTRY + keys.number(n), msgspec.msgpack.encode(e)) for n, e in enumerate(told, first))
        return [], None

    def cursors(self) -> Mapping[Source, Point]:
        return self.read

    def lag(self, source: Source) -> ShardLag:
        return ShardLag(0, 0)

    def fences(self) -> Mapping[Source, Fence | None]:
        return {}

    def has_all(self, namespace_id: str) -> bool:
        return True


class Led:
    """A shard of region 1 with gates."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.shared = {NS, OTHER}
        self.lead()

    def lead(self) -> None:
        self.host = self.play.node.led[1]
        self.streams = Outgoing(self.host)
        self.host.streams = self.streams
        self.gates = Gates(self.host, self.streams, 1, self.shared)

    async def tell(self, command: ShardCommand) -> Answer:
        heard: list[Answer | ServiceError] = []
        self.gates.command(command, heard.append)
        await self.play.settle()
        (answer,) = heard
        assert isinstance(answer, Answer), answer
        return answer

    def verdict(self, namespace_id: str = NS, call: Call = Call.MUTATION) -> Verdict:
        return self.gates.admit(namespace_id, call).verdict


@pytest_asyncio.fixture
async def led() -> AsyncIterator[Led]:
    play = Play()
    made = Led(play)
    yield made
    await made.play.close()


async def test_a_namespace_of_this_region_alone_is_open(led: Led) -> None:
    led.shared.clear()
    assert led.verdict() is Verdict.ALLOW
    assert led.gates.state(NS) is GateState.OPEN
    assert not list(led.host.rows.scan(records.GATE, keys.prefix_end(records.GATE)))


async def test_one_that_others_hold_is_open_when_the_shard_was_told_so(led: Led) -> None:
    assert led.verdict() is Verdict.PARK
    with pytest.raises(NotActive) as parked:
        led.gates.check(NS, Call.MUTATION)
    assert (parked.value.verdict, parked.value.region, parked.value.code) == (
        Verdict.PARK, 0, Code.UNAVAILABLE,
    )  # fmt: skip
    answer = await led.tell(Activate({NS: 1}))
    assert answer.cuts == {NS: {THEIRS: Point(9, 4)}}
    assert led.verdict() is Verdict.ALLOW
    assert led.gates.version(NS) == 1
    assert led.verdict(OTHER) is Verdict.PARK


async def test_what_was_fenced_stays_so_although_the_registry_knows_of_no_other_region(led: Led) -> None:
    await led.tell(Activate({NS: 1}))
    await led.tell(Fence(7, 2, {NS: 1}))
    led.shared.clear()
    assert led.verdict() is Verdict.PARK


async def test_a_fence_is_an_entry_of_the_outgoing_log_and_its_marker_the_place(led: Led) -> None:
    await led.tell(Activate({NS: 1, OTHER: 1}))
    fence = Fence(7, 2, {NS: 1})
    answer = await led.tell(fence)
    marker = Marker(Point(5, 1), {THEIRS: Point(9, 4)})
    assert answer.marker == marker
    (entry,) = led.streams.entries()
    assert entry.kind is Kind.FENCE
    assert commands.decode_shard(entry.payload) == msgspec.structs.replace(fence, marker=marker)
    assert (led.verdict(), led.verdict(OTHER)) == (Verdict.PARK, Verdict.ALLOW)
    led.streams.read = {THEIRS: Point(9, 8)}
    assert (await led.tell(fence)).marker == marker  # the same again is the same, and tells nobody
    await led.tell(Unfence(7, {NS: 1}))
    assert [one.kind for one in led.streams.entries()] == [Kind.FENCE, Kind.UNFENCE]
    assert led.verdict() is Verdict.ALLOW
    assert (await led.tell(fence)).marker is None  # late
    assert led.verdict() is Verdict.ALLOW


async def test_who_is_not_active_says_who_is(led: Led) -> None:
    await led.tell(Activate({NS: 1}))
    await led.tell(Deactivate({NS: 2}))
    with pytest.raises(NotActive) as away:
        led.gates.check(NS, Call.MUTATION)
    error = away.value
    assert (error.verdict, error.region, error.version, error.namespace_id) == (Verdict.FORWARD, 2, 2, NS)
    assert led.verdict(call=Call.TASK) is Verdict.HOLD
    assert led.verdict(call=Call.READ) is Verdict.ALLOW


async def test_the_next_leader_has_the_gates(led: Led, play: Play) -> None:
    await led.tell(Activate({NS: 1, OTHER: 1}))
    await led.tell(Fence(7, 2, {NS: 1}))
    before = [led.gates.gate(NS), led.gates.gate(OTHER)]
    await play.crash()
    led.lead()
    assert [led.gates.gate(NS), led.gates.gate(OTHER)] == before
    assert (led.verdict(), led.verdict(OTHER)) == (Verdict.PARK, Verdict.ALLOW)


async def test_a_gate_counts_from_the_moment_that_it_is_proposed(led: Led) -> None:
    """What were admitted in between would be behind the fence."""
    await led.tell(Activate({NS: 1}))
    heard: list[Answer | ServiceError] = []
    led.gates.command(Fence(7, 2, {NS: 1}), heard.append)
    assert led.verdict() is Verdict.PARK
    assert not heard
    await led.play.settle()
    assert len(heard) == 1


async def test_a_command_that_cannot_be_proposed_has_moved_nothing(led: Led) -> None:
    await led.tell(Activate({NS: 1}))
    led.host.group.committer.refusal = ServiceError(Code.RESOURCE_EXHAUSTED, "full")
    heard: list[Answer | ServiceError] = []
    led.gates.command(Fence(7, 2, {NS: 1}), heard.append)
    (error,) = heard
    assert isinstance(error, ServiceError)
    assert not isinstance(error, Indefinite)
    assert led.verdict() is Verdict.ALLOW
    led.host.group.committer.refusal = None
    assert (await led.tell(Fence(7, 2, {NS: 1}))).marker is not None


async def test_a_header_with_a_larger_version_shuts_the_gate_with_its_entry(led: Led) -> None:
    await led.tell(Activate({NS: 1}))
    moved: list[Gate] = []
    seen: list[tuple[str, int]] = []
    led.gates.on_moved.append(moved.extend)
    led.gates.on_seen = lambda name, version: seen.append((name, version))
    tx = led.host.begin_beside()
    tx.rows.extend(led.gates.raised(NS, 2))
    assert not moved
    led.host.commit(tx, lambda error: None)
    assert led.verdict() is Verdict.FORWARD
    await led.play.settle()
    assert [(gate.namespace_id, gate.version) for gate in moved] == [(NS, 2)]
    assert seen == [(NS, 2)]
    assert led.gates.raised(NS, 2) == []


async def test_who_watches_hears_when_it_is_durable(led: Led) -> None:
    moved: list[Gate] = []
    led.gates.on_moved.append(moved.extend)
    led.gates.command(Activate({NS: 1}), lambda answer: None)
    assert not moved
    await led.play.settle()
    assert [gate.activated for gate in moved] == [1]
    await led.tell(Activate({NS: 1}))
    assert len(moved) == 1


async def test_a_fence_of_another_stream_is_the_parents(led: Led) -> None:
    await led.tell(Activate({NS: 1}))
    marker = (await led.tell(Fence(7, 2, {NS: 1}))).marker
    assert marker is not None
    assert not led.gates.inherited(marker)
    led.streams.incarnation = 6
    assert led.gates.inherited(marker)
