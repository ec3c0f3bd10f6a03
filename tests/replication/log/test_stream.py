"""A source, the log, and a reader together, with every fault, from a seed: the sequence, once, without a gap.

The source's rows and the reader's cursor are what their shards have committed. All else is lost now and
then: the source's leader (whose writes go on arriving), the reader, doorbells, answers. At the end the log
heals, though not its holes, and all has to arrive: safety first, then liveness.
"""

import asyncio
import random
from collections.abc import Coroutine

import pytest

from replication.frames import Entry, Frame, Kind, Stream, Tail
from replication.inbox import Ask, Inbox, Limits, Reason
from replication.log import cursor as cursors
from replication.log.contract import Ack, Head, LogError
from replication.log.cursor import Batch, Cursor, adopt, advance
from replication.log.exporter import Exporter
from replication.log.exporter import Limits as ExportLimits
from replication.log.memory import MemoryWorld
from replication.log.search import Place
from replication.outbox import Acks, Doorbell, Tip, answer_pull, append, mark_exported, ring, trim
from replication.outbox import Limits as OutboxLimits
from replication.outbox import begin as begin_outbox
from tests.replication.log.timeline import Timeline

STEP_MS = 10
STORM_MS = 20_000
CALM_MS = 30_000
EXPORT = ExportLimits(in_flight_max=4, window_frames_max=12, waiting_frames_max=8)
READ = Limits(ready_bytes_max=20_000, early_bytes_max=20_000, early_frames_max=20)


class Source:
    """The shard that tells. `tip` and `kept` are committed; the exporter belongs to one leadership."""

    def __init__(self, world: "World", limits: OutboxLimits) -> None:
        self.world = world
        self.limits = limits
        self.tip: Tip = begin_outbox(Stream("a", 7, world.rng.getrandbits(62) + 1))
        self.kept: list[Frame] = []
        self.told: list[tuple[int, bytes]] = []  # every entry ever, by number
        self.acks = Acks(self.tip.stream)
        self.exporter = Exporter(self.tip, 0, world.rng.randrange, EXPORT)

    def transaction(self) -> None:
        rng = self.world.rng
        entries = []
        for _ in range(rng.choice([1, 1, 2, 3, 40])):
            size = rng.choice([0, 10, 500, 500, 30_000, 300_000 if rng.random() < 0.1 else 0])
            number = self.tip.seq + 1 + len(entries)
            entries.append(Entry(Kind.EVENTS, "n", 1, "w", "r", 0, number.to_bytes(8, "big") + bytes(size)))
        made, self.tip = append(self.tip, entries, self.world.time.now())
        self.kept += made
        self.told += [(self.tip.seq - len(entries) + 1 + i, e.payload) for i, e in enumerate(entries)]
        for frame in made:
            self.exporter.committed(frame)
            self.world.bell(ring(self.tip.stream, frame, self.limits))

    def new_leader(self) -> None:
        self.exporter = Exporter(self.tip, self.world.time.now(), self.world.rng.randrange, EXPORT)

    def step(self) -> None:
        now, exporter = self.world.time.now(), self.exporter
        first = exporter.wants()
        if first is not None:
            exporter.refill([frame for frame in self.kept if frame.first_seq >= first])
        for frame in exporter.ready(now):
            self.world.spawn(self.write(exporter, frame))
        mark = exporter.mark(now)
        if mark is not None:
            self.tip = mark_exported(self.tip, mark)
            head = Head(self.tip.stream, self.tip.exported, self.tip.lost + 1, self.tip.hlc)
            self.world.spawn(self.world.log("a").put_head(head))
        gone, self.tip = trim(self.tip, self.kept, self.acks.least(["b"]), now, self.limits)
        self.kept = self.kept[len(gone) :]
        exporter.lost(self.tip.lost)
        assert max(self.tip.lost, self.tip.trimmed) <= self.tip.exported, "I20"

    async def write(self, exporter: Exporter, frame: Frame) -> None:
        try:
            await self.world.log("a").append(self.tip.stream, frame)
        except LogError:
            exporter.failed(frame.first_seq, self.world.time.now())
        else:
            exporter.wrote(frame.first_seq)


class Reader:
    """The shard that reads. `cursor` and `applied` are committed; the inbox belongs to one leadership."""

    def __init__(self, world: "World", stream: Stream) -> None:
        self.world = world
        self.cursor: Cursor = cursors.begin(stream)
        self.applied: list[tuple[int, bytes]] = []
        self.snapshots: list[Reason] = []
        self.inbox = Inbox(self.cursor, ["c"], 0, READ)

    def crash(self) -> None:
        self.inbox = Inbox(
            cursors.decode_cursor(cursors.encode_cursor(self.cursor)), ["c"], self.world.time.now(), READ
        )

    def step(self) -> None:
        inbox, now, rng = self.inbox, self.world.time.now(), self.world.rng
        for ask in inbox.asks(now):
            self.world.spawn(self.put(inbox, ask))
        if rng.random() < 0.7 and (batch := inbox.take(rng.choice([1, 5000, 1 << 20]), now)) is not None:
            self.world.spawn(self.commit(batch))
        if inbox.halted is not None:
            self.snapshot(inbox.halted.reason)

    async def commit(self, batch: Batch) -> None:
        """A Raft entry takes its time; after a crash, another leader may propose the same again."""
        await self.world.time.sleep(5)
        before = self.cursor.seq
        self.cursor, taken = advance(self.cursor, batch)
        for opened in taken:
            assert opened.frame.first_seq == self.cursor_end() + 1
            self.applied += [
                (opened.frame.first_seq + i, entry.payload) for i, entry in enumerate(opened.entries)
            ]
        assert self.cursor.seq >= before

    def cursor_end(self) -> int:
        return self.applied[-1][0] if self.applied else 0

    def snapshot(self, reason: Reason) -> None:
        """A consistent cut of the source brings all up to its tip."""
        self.snapshots.append(reason)
        tip = self.world.source.tip
        self.cursor = adopt(self.cursor, tip.stream, tip.tail, tip.hlc)
        self.applied = list(self.world.source.told)
        self.crash()

    async def put(self, inbox: Inbox, ask: Ask) -> None:
        world = self.world
        try:
            if ask.place is Place.PULL:
                await world.time.sleep(world.rng.randint(1, 50))
                if world.rng.random() < world.pull_failures:
                    raise LogError("nobody leads")
                source = world.source
                whole = ask.want > source.tip.trimmed
                kept = [frame for frame in source.kept if frame.first_seq >= ask.want] if whole else []
                inbox.answered(ask, answer_pull(source.tip, ask.want, kept), world.time.now())
                return
            via = {Place.OWN: None, Place.SOURCE: ask.region, Place.THIRD: ask.region}[ask.place]
            found = await world.log("b").read(
                self.cursor.stream, ask.want, frames_max=ask.frames_max, via=via
            )
        except LogError:
            inbox.failed(ask, world.time.now())
        else:
            inbox.answered(ask, found, world.time.now())


class World:
    """Both shards, the log between them, and what is lost on the way."""

    def __init__(self, rng: random.Random, limits: OutboxLimits) -> None:
        self.rng = rng
        self.time = Timeline()
        self.logs = MemoryWorld("abc", rng, self.time.now, self.time.sleep, one_way_ms=20)
        self.tasks: set[asyncio.Task[None]] = set()
        self.bells_lost = self.pull_failures = 0.0
        self.source = Source(self, limits)
        self.reader = Reader(self, self.source.tip.stream)

    def log(self, region: str):
        return self.logs.log(region)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.ended)

    def ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, LogError):
            raise error

    def bell(self, bell: Doorbell) -> None:
        if self.rng.random() >= self.bells_lost:
            self.spawn(self.deliver(bell))

    async def deliver(self, bell: Doorbell) -> None:
        await self.time.sleep(self.rng.randint(10, 60))
        self.reader.inbox.doorbell(bell, self.time.now())

    async def acknowledge(self) -> None:
        ack = Ack(self.reader.cursor.stream, "b", self.reader.cursor.seq, 0)
        self.spawn(self.log("b").put_ack(ack))
        try:
            found = await self.log("a").acks("a", 7)
        except LogError:
            return
        for each in found:
            self.source.acks.heard(each.region, each.stream, each.seq, self.source.tip)
        head = await self.log("b").head("a", 7)
        if head is not None:
            self.reader.inbox.head(head, self.time.now())

    def new_weather(self) -> None:
        rng = self.rng
        for region in "abc":
            faults = self.logs.faults(region)
            faults.late = rng.choice([0, 0, 0.05, 0.5])
            faults.late_ms = rng.choice([100, 5000])
            faults.holes = rng.choice([0, 0, 0.02, 0.3])
            faults.duplicates = rng.choice([0, 0.2])
            faults.timeouts_applied = rng.choice([0, 0, 0.2])
            faults.timeouts_lost = rng.choice([0, 0, 0.2])
            faults.read_failures = rng.choice([0, 0, 0.3])
            faults.slow_ms = rng.choice([0, 20, 300])
            faults.down = rng.random() < 0.1
        self.logs.cut = {frozenset("ab")} if rng.random() < 0.2 else set()
        self.bells_lost = rng.choice([0, 0.1, 1])
        self.pull_failures = rng.choice([0, 0.5, 1])

    async def step(self, *, calm: bool) -> None:
        rng, now = self.rng, self.time.now()
        if now % 1000 == 0:
            if not calm:
                self.new_weather()
            self.source.transaction()  # BEAT
            self.spawn(self.acknowledge())
        if not calm:
            if rng.random() < 0.08:
                self.source.transaction()
            if rng.random() < 0.01:
                self.source.new_leader()
            if rng.random() < 0.01:
                self.reader.crash()
            if rng.random() < 0.01:  # from before a restore, and the reader began after it
                self.bell(Doorbell(self.source.tip.stream._replace(incarnation=1), 1 << 40, None))
        self.source.step()
        self.reader.step()
        await self.time.run(now + STEP_MS)
        applied = self.reader.applied
        assert applied == self.source.told[: len(applied)] if now % 1000 == 0 else True, "I3"

    async def run(self) -> None:
        while self.time.now() < STORM_MS:
            await self.step(calm=False)
        self.logs.heal()
        self.bells_lost = self.pull_failures = 0.0
        while self.time.now() < STORM_MS + CALM_MS:
            await self.step(calm=True)
            if self.reader.cursor.seq == self.source.tip.seq and self.time.now() > STORM_MS + 5000:
                break
        assert self.reader.applied == self.source.told[: len(self.reader.applied)], "I3"
        assert self.reader.cursor.seq == self.source.tip.seq, "all arrives when the log has healed"
        assert self.reader.cursor.tail == Tail(self.source.tip.seq, self.source.tip.digest)
        assert self.logs.conflicts == [], "I4: two leaders write identical rows"
        for task in list(self.tasks):
            task.cancel()


async def test_the_sequence_once_without_a_gap(rng: random.Random):
    world = World(rng, OutboxLimits(age_ms_max=3000, kept_bytes_max=1 << 20))
    await world.run()
    assert world.reader.snapshots == [], "nothing expired and nothing was given up: no reason to halt"
    assert len(world.reader.applied) > 200


async def test_with_expiry_and_an_outbox_that_overflows_by_snapshot_if_it_must(rng: random.Random):
    world = World(rng, OutboxLimits(age_ms_max=500, kept_bytes_max=100_000, unexported_bytes_max=150_000))
    world.logs.ttl_ms = 3000
    await world.run()
    assert set(world.reader.snapshots) <= {Reason.BELOW_OLDEST}


async def test_a_reader_far_behind_takes_a_snapshot_and_goes_on(rng: random.Random):
    """Scenario 12: the reader's region was away for longer than rows live."""
    world = World(rng, OutboxLimits(age_ms_max=500))
    world.logs.ttl_ms = 2000
    for step in range(1500):
        if step == 100:
            world.logs.faults("b").down = True
            world.logs.cut |= {frozenset("ab"), frozenset("bc")}
            world.bells_lost = world.pull_failures = 1.0
        if step == 900:
            world.logs.heal()
            world.bells_lost = world.pull_failures = 0.0
        await world.step(calm=True)
    assert world.reader.snapshots == [Reason.BELOW_OLDEST]
    assert world.reader.cursor.seq >= world.source.tip.seq - 50
    assert world.reader.applied == world.source.told[: len(world.reader.applied)]


@pytest.mark.parametrize("broken", ["doorbell", "log", "both"])
async def test_either_way_is_enough(rng: random.Random, broken: str):
    """Scenario 13: without doorbells the log carries all, without the log doorbells and pulls do."""
    world = World(rng, OutboxLimits())
    if broken != "log":
        world.bells_lost = 1.0
    if broken != "doorbell":
        for region in "abc":
            world.logs.faults(region).down = True
    for _ in range(1000):
        await world.step(calm=True)
        if rng.random() < 0.1:
            world.source.transaction()
    for _ in range(500):
        await world.step(calm=True)
    assert world.reader.snapshots == []
    assert world.reader.cursor.seq >= world.source.told[-1][0] - 50
    assert world.reader.applied == world.source.told[: len(world.reader.applied)]
