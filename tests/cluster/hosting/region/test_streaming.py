"""Two regions of one node each: what is done in one arrives in the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from cluster.hosting.region import reader as readers
from cluster.hosting.region.streaming import BELL, PULLED, Streaming
from cluster.hosting.shards.streams import ShardStreams
from history_store.storage.memory import MemoryStorage
from replication.failover.commands import Fence, Unfence, encode
from replication.failover.records import Marker, Point, Source
from replication.frames import Entry, Kind
from replication.log.contract import LogStore
from replication.log.memory import MemoryWorld
from tests.cluster.hosting.play import Play, activity, done, timer

NAMES = {1: "a", 2: "b"}


class Link:
    """One region's end of a wire between two."""

    def __init__(self, own: int) -> None:
        self.own = own
        self.far: Streaming | None = None
        self.up = True
        self.drop: Callable[[list[Any]], bool] = lambda message: False
        self.sent = 0

    def others(self) -> list[int]:
        return [3 - self.own]

    def name_of(self, index: int) -> str:
        return NAMES[index]

    def index_of(self, name: str) -> int:
        return {"a": 1, "b": 2}[name]

    def nodes_up(self, index: int) -> list[int]:
        assert index == 3 - self.own
        return [1] if self.up else []

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        assert (index, node) == (3 - self.own, 1)
        if not self.up or self.far is None:
            return False
        carried = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
        if not self.drop(carried):
            self.sent += 1
            asyncio.get_running_loop().call_soon(self.far.message, self.own, 1, carried)
        return True


class Held:
    """Which namespaces are held."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.unknown: set[str] = set()

    def is_told(self, namespace_id: str) -> bool:
        return True

    def is_held(self, namespace_id: str) -> bool | None:
        return None if namespace_id in self.unknown else True


class Pair:
    """Region a, which acts, and region b, which stands by."""

    def __init__(self, seed: int, *stores: LogStore) -> None:
        self.a = Play(shards=2, seed=1)
        self.b = Play(
            MemoryStorage(), shards=3, seed=2, clock=self.a.clock, namespaces=self.a.node.meta.by_id.values()
        )
        loop = asyncio.get_running_loop()
        self.links = Link(1), Link(2)
        self.held = Held(self.a), Held(self.b)
        self.ends = tuple(
            Streaming(play.node, link, held, loop, random.Random(f"{seed}/{link.own}"), store)
            for play, link, held, store in zip(
                (self.a, self.b), self.links, self.held, stores or (None, None), strict=True
            )
        )
        self.links[0].far, self.links[1].far = self.ends[1], self.ends[0]

    def start(self) -> None:
        for end in self.ends:
            end.start()

    async def same(self) -> None:
        """Wait until b has what a has."""
        for _ in range(2000):
            await asyncio.sleep(0.002)
            if self.b.rows() == self.a.rows():
                return
        assert self.b.rows() == self.a.rows()

    def cut(self) -> None:
        for link, end in zip(self.links, self.ends, strict=True):
            link.up = False
            end.down(3 - link.own, 1)

    def heal(self) -> None:
        for link in self.links:
            link.up = True
        for link, end in zip(self.links, self.ends, strict=True):
            end.up(3 - link.own, 1)

    async def close(self) -> None:
        for end in self.ends:
            end.close()
        await self.a.close()
        await self.b.close()


@pytest_asyncio.fixture
async def pair(seed: int) -> AsyncIterator[Pair]:
    made = Pair(seed)
    yield made
    await made.close()


async def work(play: Play, name: str) -> None:
    await play.first(activity(), timer(seconds=3600), workflow_id=name)
    task = await play.activity()
    await play.signal(name)
    await play.activity_done(task.task_token)
    await play.next()


async def test_what_is_done_here_arrives_there_at_once(pair: Pair) -> None:
    pair.start()
    for number in range(5):
        await work(pair.a, f"w{number}")
    await pair.same()
    assert pair.b.rows(), "there was something to tell"
    assert await pair.b.table("w3") == await pair.a.table("w3")


async def test_what_was_done_before_anybody_read_arrives(pair: Pair) -> None:
    for number in range(5):
        await work(pair.a, f"w{number}")
    pair.start()
    await pair.same()


async def test_after_a_cut_the_rest_arrives_once(pair: Pair) -> None:
    pair.start()
    await work(pair.a, "before")
    await pair.same()
    pair.cut()
    for number in range(5):
        await work(pair.a, f"during{number}")
    assert pair.b.rows() != pair.a.rows()
    pair.heal()
    await pair.same()


async def test_what_is_lost_on_the_way_is_asked_for(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ANSWER_S", 0.05)
    dice = random.Random(5)
    pair.links[0].drop = lambda message: message[0] in (BELL, PULLED) and dice.random() < 0.4
    pair.start()
    for number in range(10):
        await work(pair.a, f"w{number}")
    await pair.same()


async def test_a_namespace_that_is_not_known_yet_is_waited_for(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "RETRY_S", 0.005)
    pair.held[1].unknown.add(pair.a.node.meta.by_name["default"].id)
    pair.start()
    await work(pair.a, "w")
    await asyncio.sleep(0.03)
    assert not pair.b.rows()
    pair.held[1].unknown.clear()
    await pair.same()


async def test_what_all_have_is_let_go(pair: Pair) -> None:
    pair.start()
    for number in range(5):
        await work(pair.a, f"w{number}")
    await pair.same()
    for _ in range(100):
        await asyncio.sleep(0.002)
        for host in pair.a.node.shards:
            pair.ends[0]._beat(host)
        tips = [host.streams.tip for host in pair.a.node.shards if host.streams is not None]
        if all(tip is not None and tip.trimmed == tip.seq for tip in tips):
            break
    assert all(tip is not None and 0 < tip.trimmed == tip.seq for tip in tips)
    await work(pair.a, "later")
    await pair.same()


async def test_it_goes_both_ways(pair: Pair) -> None:
    pair.start()
    await work(pair.a, "mine")
    await pair.same()
    await pair.b.first(done(), workflow_id="theirs")
    for _ in range(2000):
        await asyncio.sleep(0.002)
        if pair.a.rows() == pair.b.rows():
            break
    assert pair.a.rows() == pair.b.rows()


async def test_a_new_leader_reads_on_where_the_old_one_stood(pair: Pair) -> None:
    pair.start()
    await work(pair.a, "w")
    await pair.same()
    hosts = pair.b.node.shards
    before = {host.group.id: host.streams.cursors() for host in hosts if host.streams is not None}
    taken: list[int] = []
    for host in hosts:
        pair.ends[1].lost(host)
        pair.ends[1].led(host)
        assert host.streams is not None
        applied = {source: point for source, point in before[host.group.id].items() if point.seq}
        assert host.streams.cursors() == applied
        taken += [point.seq for point in host.streams.cursors().values()]
    assert any(taken)
    await work(pair.a, "v")
    await pair.same()
    assert all(
        reader.halted is None for host in pair.b.node.shards for reader in pair.ends[1].readers(host.group.id)
    )


async def test_what_an_old_leader_told_nobody_its_successor_tells(pair: Pair) -> None:
    await work(pair.a, "w")
    for host in pair.a.node.shards:
        pair.ends[0].lost(host)
        pair.ends[0].led(host)
    pair.start()
    await pair.same()


class Logged(Pair):
    """The two with a log between them."""

    def __init__(self, seed: int) -> None:
        loop = asyncio.get_running_loop()

        async def sleep(ms: int) -> None:
            await asyncio.sleep(ms / 1000)

        self.world = MemoryWorld(("a", "b"), random.Random(seed), lambda: int(loop.time() * 1000), sleep)
        super().__init__(seed, self.world.log("a"), self.world.log("b"))


@pytest_asyncio.fixture
async def logged(seed: int) -> AsyncIterator[Logged]:
    made = Logged(seed)
    yield made
    await made.close()
    assert not made.world.conflicts, "what is written twice is the same"


async def test_the_log_is_enough_where_no_doorbell_is_heard(logged: Logged) -> None:
    logged.start()
    await work(logged.a, "first")
    await logged.same()
    for link in logged.links:
        link.drop = lambda message: True
    for number in range(5):
        await work(logged.a, f"w{number}")
    await logged.same()


async def test_what_the_log_refuses_is_written_when_it_is_back(logged: Logged) -> None:
    logged.start()
    logged.world.faults("a").down = True
    for number in range(3):
        await work(logged.a, f"w{number}")
    await logged.same()  # by doorbells
    exporters = list(logged.ends[0]._exporters.values())
    assert any(exporter.failing for exporter in exporters)
    logged.world.faults("a").down = False
    for _ in range(500):
        await asyncio.sleep(0.005)
        tips = [host.streams.tip for host in logged.a.node.shards if host.streams is not None]
        if all(tip is None or e.exported == tip.seq for e, tip in zip(exporters, tips, strict=False)):
            break
    assert all(tip is None or e.exported == tip.seq for e, tip in zip(exporters, tips, strict=False))
    assert not any(exporter.failing for exporter in exporters)


async def test_rows_that_never_come_here_are_read_where_they_were_written(logged: Logged) -> None:
    logged.start()
    await work(logged.a, "first")
    await logged.same()
    logged.world.faults("b").holes = 0.5
    logged.links[0].drop = lambda message: (
        message[0] == PULLED or (message[0] == BELL and message[-1] is not None)
    )
    for number in range(5):
        await work(logged.a, f"w{number}")
    await logged.same()


async def test_a_new_leader_writes_what_the_old_one_did_not(logged: Logged) -> None:
    logged.start()
    logged.world.faults("a").down = True
    await work(logged.a, "w")
    for host in logged.a.node.shards:
        logged.ends[0].lost(host)
        logged.ends[0].led(host)
    logged.world.faults("a").down = False
    await work(logged.a, "v")
    for link in logged.links:
        link.drop = lambda message: message[0] in (BELL, PULLED)
    await logged.same()


def marked(number: int, kind: Kind) -> Entry:
    """An entry that fences, or ends a fence."""
    marker = Marker(Point(1, number))
    fence = Fence(number, 2, {"n": 1}, marker) if kind is Kind.FENCE else Unfence(number, {"n": 1})
    return Entry(kind, payload=encode(fence))


def number_of(fence: Fence | None) -> int:
    return fence.number if fence is not None else 0


async def test_the_newest_fence_of_a_stream_is_known_where_it_is_read(pair: Pair) -> None:
    pair.start()
    await work(pair.a, "w")
    await pair.same()
    host = next(
        host for host in pair.a.node.shards if host.streams is not None and host.streams.tip is not None
    )
    source = Source(1, host.group.id)

    async def told(*entries: Entry) -> set[int]:
        host.commit(host.begin_beside(), lambda error: None, told=entries)
        assert host.streams is not None
        assert host.streams.tip is not None
        for _ in range(500):
            await asyncio.sleep(0.002)
            theirs = [other.streams for other in pair.b.node.shards if other.streams is not None]
            readers = [one for one in theirs if source in one.applied]
            if all(one.applied[source].seq == host.streams.tip.seq for one in readers):
                break
        found = {number_of(one.fences()[source]) for one in readers}
        again = [ShardStreams(one.host, one.abroad).fences().get(source) for one in readers]
        assert again == [one.fences().get(source) for one in readers], "the rows say the same"
        return found

    assert await told(marked(1, Kind.FENCE)) == {1}
    assert await told(marked(1, Kind.UNFENCE)) == {0}
    assert await told(marked(2, Kind.FENCE), marked(3, Kind.FENCE)) == {3}
    assert await told(marked(2, Kind.UNFENCE)) == {3}, "that was another one"
    assert await told(marked(3, Kind.UNFENCE), marked(4, Kind.FENCE)) == {4}
