"""The log in memory keeps the port's promises, and breaks what it is told to (replication/log/memory.py)."""

import asyncio
import itertools
import random

import pytest

from replication.frames import Frame, Stream
from replication.log.contract import Head, LogStore, LogUnavailable, SchemaMismatch
from replication.log.memory import MemoryWorld
from tests.replication.log.contract import NOON, LogContract, beats, large
from tests.replication.log.timeline import Timeline

STREAM = Stream("a", 7, 0x5EED)
_names = itertools.count()


class MemoryLogs:
    """Two regions, and a third that nobody asks."""

    def __init__(self) -> None:
        self.time = Timeline()
        self.world = MemoryWorld(["a", "b", "c"], random.Random(1), self.time.now, self.time.sleep)
        self.a: LogStore = self.world.log("a")
        self.b: LogStore = self.world.log("b")

    def name(self, word: str) -> str:
        return f"{word}{next(_names)}"

    async def pause(self) -> None:
        await self.time.run(self.time.time + 1000)


@pytest.fixture
def logs() -> MemoryLogs:
    return MemoryLogs()


class TestContract(LogContract):
    pass


async def written(logs: MemoryLogs, count: int = 10) -> list[Frame]:
    frames = beats(STREAM, 0, *[1] * count)
    for frame in frames:
        await logs.a.append(STREAM, frame)
    return frames


async def numbers(log: LogStore, via: str | None = None) -> list[int]:
    return [frame.first_seq for frame in (await log.read(STREAM, 1, via=via)).frames]


async def test_late_rows_come_in_the_end_in_any_order(logs):
    logs.world.faults("b").late = 1.0
    await written(logs)
    seen = []
    for _ in range(30):
        logs.time.time += 2000
        seen.append(await numbers(logs.b))
    assert seen[0] != list(range(1, 11))
    assert any(some != list(range(1, len(some) + 1)) for some in seen), "there were holes meanwhile"
    assert seen[-1] == list(range(1, 11))


async def test_a_hole_stays_until_repair_and_is_seen_through_the_source(logs):
    logs.world.faults("b").holes = 0.5
    await written(logs)
    logs.time.time += 10_000_000
    here = await numbers(logs.b)
    assert 0 < len(here) < 10
    assert await numbers(logs.b, "a") == list(range(1, 11))
    logs.world.heal()
    assert await numbers(logs.b) == here
    logs.world.repair()
    assert await numbers(logs.b) == list(range(1, 11))


async def test_a_frame_that_lacks_a_chunk_is_not_there(logs):
    frame = large(STREAM, 0, 2000 << 10)
    logs.world.faults("b").holes = 0.5
    await logs.a.append(STREAM, frame)
    assert await logs.b.read(STREAM, 1) == ((), 1)
    logs.world.repair()
    assert (await logs.b.read(STREAM, 1)).frames == (frame,)


async def test_what_timed_out_may_have_happened_or_not(logs):
    frames = beats(STREAM, 0, 1, 1)
    logs.world.faults("a").timeouts_lost = 1.0
    with pytest.raises(LogUnavailable) as caught:
        await logs.a.append(STREAM, frames[0])
    assert not caught.value.definite
    assert await logs.b.read(STREAM, 1, via="a") == ((), 0)
    logs.world.heal()
    logs.world.faults("a").timeouts_applied = 1.0
    with pytest.raises(LogUnavailable):
        await logs.a.append(STREAM, frames[1])
    assert (await logs.b.read(STREAM, 1, via="a")).frames == (frames[1],)


async def test_a_region_that_is_down_answers_nobody_and_gets_what_it_missed(logs):
    logs.world.faults("b").down = True
    with pytest.raises(LogUnavailable):
        await logs.b.read(STREAM, 1)
    with pytest.raises(LogUnavailable):
        await logs.a.read(STREAM, 1, via="b")
    with pytest.raises(LogUnavailable):
        await logs.b.put_head(Head(STREAM, 1, 1, NOON))
    frames = await written(logs)
    assert await numbers(logs.b, "a") == list(range(1, 11))
    logs.world.heal()
    assert (await logs.b.read(STREAM, 1)).frames == tuple(frames)


async def test_a_cut_is_between_two_regions(logs):
    await written(logs)
    logs.world.cut.add(frozenset(("a", "b")))
    with pytest.raises(LogUnavailable):
        await logs.b.read(STREAM, 1, via="a")
    assert await numbers(logs.world.log("c"), "a") == list(range(1, 11))
    assert await numbers(logs.b, "b") == list(range(1, 11))


async def test_reads_fail_and_nothing_else_happens(logs):
    await written(logs)
    logs.world.faults("b").read_failures = 1.0
    with pytest.raises(LogUnavailable):
        await logs.b.read(STREAM, 1)
    logs.world.heal()
    assert await numbers(logs.b) == list(range(1, 11))


async def test_rows_expire_by_age_everywhere_and_duplicates_do_not_bring_them_back(logs):
    logs.world.ttl_ms = 1000
    logs.world.faults("b").duplicates = 1.0
    await written(logs, 5)
    logs.time.time += 999
    assert await numbers(logs.b) == [1, 2, 3, 4, 5]
    logs.time.time += 1
    assert await numbers(logs.b) == await numbers(logs.a) == []
    logs.time.time += 100_000
    assert await numbers(logs.b) == []


async def test_rows_expire_by_number_on_demand(logs):
    logs.world.faults("b").late = 1.0
    await written(logs)
    logs.world.expire(STREAM, 4)
    logs.time.time += 100_000
    assert await numbers(logs.b) == await numbers(logs.a) == [5, 6, 7, 8, 9, 10]


async def test_slow_is_slow(logs):
    logs.world.faults("a").slow_ms = 100
    task = asyncio.create_task(written(logs, 20))
    await logs.time.run(10)
    assert not task.done()
    await logs.time.run(2000)
    assert len(await task) == 20


async def test_damage_is_in_one_region(logs):
    frames = await written(logs, 2)
    logs.world.damage("a", STREAM, 2)
    one, two = (await logs.a.read(STREAM, 1)).frames
    assert one == frames[0]
    assert two != frames[1]
    assert (await logs.b.read(STREAM, 1)).frames == tuple(frames)


async def test_two_writers_that_disagree_are_seen(logs):
    (frame,) = beats(STREAM, 0, 1)
    (other,) = beats(STREAM, 0, 2)
    await logs.a.append(STREAM, frame)
    await logs.b.append(STREAM, frame)
    assert logs.world.conflicts == []
    await logs.a.append(STREAM, other)
    assert len(logs.world.conflicts) == 1


async def test_tables_of_another_release_are_refused(logs):
    logs.world.schema_ok = False
    with pytest.raises(SchemaMismatch):
        await logs.a.check_schema()
