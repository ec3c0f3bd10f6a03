"""The log on a real Cassandra while nodes die, and with much in it: the long form, of `make cassandra`.

No node keeps hints here. What a region missed it has never, and all has to come out right all the same.
"""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from replication.frames import Entry, Frame, Kind, Stream
from replication.inbox import Ask, Inbox
from replication.log import cursor as cursors
from replication.log.contract import LogError, LogStore
from replication.log.cursor import advance
from replication.log.exporter import Exporter
from replication.log.search import Place
from replication.outbox import append as append_outbox
from replication.outbox import begin as begin_outbox
from tests.replication.log.contract import beats, ledger_row

pytest.importorskip("cassandra", reason="no cassandra-driver")

from replication.log.cassandra import store
from tests.replication.log.cassandra.pair import CassandraLogs
from tests.replication.log.cassandra.server import Nodes

pytestmark = [pytest.mark.live, pytest.mark.tool("cassandra"), pytest.mark.timeout(300)]

# A write that is not answered by then is given up between the nodes as well (write_request_timeout).
GIVEN_UP_S = 2.5
PATIENCE_S = 60.0


async def patiently(log: LogStore, stream: Stream, want: int, via: str | None, least: int) -> list[Frame]:
    """Read until so many frames are found; a node that came back is reconnected to within a second or so."""
    found: tuple[Frame, ...] = ()
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            found = (await log.read(stream, want, frames_max=1000, via=via)).frames
        except LogError:
            found = ()
        if len(found) >= least:
            return list(found)
        await asyncio.sleep(0.1)
    raise AssertionError(f"{len(found)} frames of {least} through {via} after {PATIENCE_S} s")


async def test_a_region_that_was_away_sees_what_it_missed_through_the_source(
    nodes: Nodes, logs: CassandraLogs
):
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 60)
    for frame in frames[:10]:
        await logs.a.append(stream, frame)
    assert await patiently(logs.b, stream, 1, None, 10) == frames[:10]
    nodes.kill("b")
    for frame in frames[10:50]:
        await logs.a.append(stream, frame)
    await asyncio.sleep(GIVEN_UP_S)
    await asyncio.to_thread(nodes.launch, "b")
    await asyncio.to_thread(nodes.wait_until_ready, "a", "b")
    await patiently(logs.b, stream, 1, None, 10)
    for frame in frames[50:]:
        await logs.a.append(stream, frame)
    here = await patiently(logs.b, stream, 1, None, 20)
    assert here == frames[:10] + frames[50:], "a hole, for ever"
    assert await patiently(logs.b, stream, 11, "a", 50) == frames[10:]


async def test_more_rows_than_the_driver_has_on_a_page(logs: CassandraLogs):
    namespace = logs.name("namespace")
    rows = [ledger_row(namespace, version, "a") for version in range(1, 5101)]
    await asyncio.gather(*[logs.a.append_ledger(row) for row in rows])
    assert await logs.a.read_ledger(namespace) == rows[::-1]


async def test_what_was_acknowledged_survives_the_death_of_the_node(nodes: Nodes, logs: CassandraLogs):
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 3000)
    acknowledged: set[int] = set()

    async def write(frame: Frame) -> None:
        try:
            await logs.a.append(stream, frame)
        except LogError:
            return
        acknowledged.add(frame.first_seq)

    writes = [asyncio.ensure_future(write(frame)) for frame in frames]
    while len(acknowledged) < 500:
        await asyncio.sleep(0.005)
    nodes.kill("a")
    await asyncio.gather(*writes)
    assert len(acknowledged) < len(frames), "it died too late to tell anything"
    await asyncio.to_thread(nodes.launch, "a")
    await asyncio.to_thread(nodes.wait_until_ready, "a", "b")
    await patiently(logs.a, stream, 1, None, 1)
    there = {frame.first_seq for frame in (await logs.a.read(stream, 1, frames_max=4000)).frames}
    assert acknowledged <= there


class Source:
    """A shard that tells: what it committed, and the exporter that writes it to the log."""

    def __init__(self, log: LogStore, stream: Stream) -> None:
        self.log = log
        self.tip = begin_outbox(stream)
        self.kept: list[Frame] = []
        self.told: list[bytes] = []
        self.exporter = Exporter(self.tip, 0, random.Random(1).randrange)
        self.tasks: set[asyncio.Task[None]] = set()

    def transaction(self, now: int, sizes: list[int]) -> None:
        first = len(self.told)
        payloads = [(first + i).to_bytes(8, "big") + bytes(size) for i, size in enumerate(sizes)]
        entries = [Entry(Kind.EVENTS, "n", 1, "w", "r", 0, payload) for payload in payloads]
        made, self.tip = append_outbox(self.tip, entries, now)
        self.told += payloads
        self.kept += made
        for frame in made:
            self.exporter.committed(frame)

    def step(self, now: int) -> None:
        want = self.exporter.wants()
        if want is not None:
            self.exporter.refill([frame for frame in self.kept if frame.first_seq >= want])
        for frame in self.exporter.ready(now):
            task = asyncio.get_running_loop().create_task(self.write(frame))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def write(self, frame: Frame) -> None:
        try:
            await self.log.append(self.tip.stream, frame)
        except LogError:
            self.exporter.failed(frame.first_seq, _now())
        else:
            self.exporter.wrote(frame.first_seq)


class Reader:
    """A shard that reads: its cursor, and what it applied."""

    def __init__(self, log: LogStore, stream: Stream) -> None:
        self.log = log
        self.cursor = cursors.begin(stream)
        self.inbox = Inbox(self.cursor, [], _now())
        self.applied: list[bytes] = []
        self.tasks: set[asyncio.Task[None]] = set()

    def step(self, now: int) -> None:
        for ask in self.inbox.asks(now):
            task = asyncio.get_running_loop().create_task(self.put(ask))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
        while (batch := self.inbox.take(1 << 20, now)) is not None:
            self.cursor, taken = advance(self.cursor, batch)
            self.applied += [entry.payload for opened in taken for entry in opened.entries]
        assert self.inbox.halted is None, self.inbox.halted

    async def put(self, ask: Ask) -> None:
        if ask.place is Place.PULL:
            self.inbox.failed(ask, _now())  # the log alone has to do
            return
        via = ask.region if ask.place is Place.SOURCE else None
        try:
            found = await self.log.read(self.cursor.stream, ask.want, frames_max=ask.frames_max, via=via)
        except LogError:
            self.inbox.failed(ask, _now())
        else:
            self.inbox.answered(ask, found, _now())


def _now() -> int:
    return int(time.monotonic() * 1000)


async def test_a_stream_arrives_whole_while_both_regions_die_in_turn(nodes: Nodes, rng: random.Random):
    stream = Stream("a", rng.getrandbits(30), 1)  # of the region that the reader asks when rows are missing
    logs = [await store.connect(nodes.options(region, request_timeout_s=1.0)) for region in "ab"]
    source, reader = Source(logs[0], stream), Reader(logs[1], stream)

    async def live(seconds: float, *, writes: bool) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if writes and rng.random() < 0.3:
                source.transaction(_now(), [rng.choice([0, 500, 4000, 70_000])] * rng.choice([1, 1, 3]))
            source.step(_now())
            reader.step(_now())
            await asyncio.sleep(0.01)

    await live(2, writes=True)
    for centre in ("b", "a"):
        nodes.kill(centre)
        await live(GIVEN_UP_S, writes=True)
        nodes.launch(centre)
        back = asyncio.ensure_future(asyncio.to_thread(nodes.wait_until_ready, "a", "b"))
        while not back.done():
            await live(0.2, writes=True)
        await back
        await live(1, writes=True)
    nodes.freeze("b")
    await live(3, writes=True)
    nodes.thaw("b")
    until = time.monotonic() + PATIENCE_S
    while reader.cursor.seq < source.tip.seq and time.monotonic() < until:
        await live(0.2, writes=False)
    assert reader.applied == source.told
    assert len(source.told) > 300
    places = {place: count for place, count in reader.inbox.counts.items() if count}
    assert places.get(str(Place.SOURCE), 0) > 0, f"nothing was missing: {places}"
    await asyncio.gather(*source.tasks, *reader.tasks)
    await asyncio.gather(*[log.close() for log in logs])
