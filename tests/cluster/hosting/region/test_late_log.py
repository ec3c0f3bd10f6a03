"""A log between regions that is not there at the start, or goes away: what callers and operators hear."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.hosting.process.metrics import LogCollector
from cluster.hosting.region.late_log import AGAIN_S_MAX, STALE_S, LateLog
from cluster.peers import virtual_time
from replication.frames import Stream
from replication.log.contract import (
    Ack,
    Head,
    LogClosed,
    LogDenied,
    LogStore,
    LogUnavailable,
    SchemaMismatch,
)
from replication.log.memory import MemoryWorld
from tests.replication.log.contract import LogContract, beats, ledger_row

STREAM = Stream("a", 7, 1)
(FRAME,) = beats(STREAM, 0, 1)


class Scene:
    """One region whose log can be opened when the test says so."""

    def __init__(self, rng: random.Random) -> None:
        loop = asyncio.get_running_loop()
        self.loop = loop
        self.world = MemoryWorld(["a", "b"], rng, lambda: int(loop.time() * 1000), self.sleep)
        self.why: Exception | None = LogUnavailable("nobody there")
        self.tries: list[float] = []
        self.opened: list[LogStore] = []
        self.opening_s = 0.0
        self.late = LateLog("a", self.open, loop, lambda: int(loop.time() * 1e9), rng)

    async def sleep(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)

    async def open(self) -> LogStore:
        self.tries.append(self.loop.time())
        await asyncio.sleep(self.opening_s)
        if self.why is not None:
            raise self.why
        self.opened.append(self.world.log("a"))
        return self.opened[-1]

    def metrics(self) -> dict[str, float]:
        families = LogCollector(self.late, dict).collect()
        return {sample.name: sample.value for family in families for sample in family.samples}


def play(rng: random.Random, scene: Callable[[Scene], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        await scene(Scene(rng))

    virtual_time.run(whole(), rng)


def test_until_it_is_there_every_call_is_unavailable(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        late = at.late
        at.opening_s = 1.0
        late.start()
        with pytest.raises(LogUnavailable, match="it is being opened"):
            await late.append(STREAM, FRAME)
        assert isinstance(await late.first, LogUnavailable)
        calls: list[Coroutine[Any, Any, object]] = [
            late.check_schema(),
            late.append(STREAM, FRAME),
            late.read(STREAM, 1),
            late.put_head(Head(STREAM, 0, 1, 0)),
            late.head("a", 7),
            late.put_ack(Ack(STREAM, "a", 0, 0)),
            late.acks("a", 7),
            late.append_ledger(ledger_row("n", 1, "a")),
            late.read_ledger("n"),
            late.ledger_feed("a", 1, 0),
        ]
        for call in calls:
            with pytest.raises(LogUnavailable, match="not open: nobody there"):
                await call
        await late.close()

    play(rng, scene)


def test_it_is_tried_again_ever_later_until_it_is_there(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        at.late.start()
        await asyncio.sleep(60)
        pauses = [after - before for before, after in zip(at.tries, at.tries[1:], strict=False)]
        assert 0.5 <= pauses[0] <= 0.75
        assert 8 * pauses[0] < pauses[-1] <= 1.5 * AGAIN_S_MAX
        failure = at.late.failure
        assert failure is not None
        assert failure.why == "nobody there"
        assert failure.since_ns == int(at.tries[0] * 1e9), "since it failed first"
        assert at.metrics()["holdfast_log_failing"] == 1
        at.why = None
        await asyncio.sleep(1.5 * AGAIN_S_MAX)
        assert at.late.failure is None
        await at.late.append(STREAM, FRAME)
        assert (await at.late.read(STREAM, 1)).frames == (FRAME,)
        tried = len(at.tries)
        await asyncio.sleep(60)
        assert len(at.tries) == tried, "it is open, and opened no more"
        await at.late.close()

    play(rng, scene)


@pytest.mark.parametrize("why", [LogDenied("no"), SchemaMismatch("old"), ConnectionError("odd")])
def test_whatever_is_in_the_way_it_is_tried_again(rng: random.Random, why: Exception) -> None:
    """The same node runs on when a password is changed; and a driver may raise anything."""

    async def scene(at: Scene) -> None:
        at.why = why
        at.late.start()
        first = await at.late.first
        assert first is not None
        assert str(why) in str(first)
        at.why = None
        await asyncio.sleep(2)
        assert at.late.is_open
        await at.late.close()

    play(rng, scene)


def test_writes_tell_whether_it_takes_anything_and_since_when(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        at.why = None
        late = at.late
        late.start()
        assert await late.first is None
        assert late.failure is None
        faults = at.world.faults("a")
        faults.down = True
        began = at.loop.time()
        for _ in range(4):
            with pytest.raises(LogUnavailable):
                await late.append(STREAM, FRAME)
            await asyncio.sleep(10)
        assert late.failure is not None
        assert late.failure.since_ns / 1e9 == pytest.approx(began, abs=1.0)
        assert at.metrics()["holdfast_log_failing_since_seconds"] == late.failure.since_ns / 1e9
        faults.down = False
        await late.read(STREAM, 1)
        assert late.failure is not None, "what is read says nothing of what can be written"
        await late.put_head(Head(STREAM, 0, 1, 0))
        assert late.failure is None
        assert at.metrics()["holdfast_log_failing"] == 0
        assert at.metrics()["holdfast_log_failing_since_seconds"] == 0
        await late.close()

    play(rng, scene)


def test_who_writes_nothing_any_more_knows_nothing(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        at.why = None
        at.late.start()
        await at.late.first
        at.world.faults("a").down = True
        with pytest.raises(LogUnavailable):
            await at.late.append(STREAM, FRAME)
        await asyncio.sleep(STALE_S - 1)
        assert at.late.failure is not None
        await asyncio.sleep(2)
        assert at.late.failure is None
        with pytest.raises(LogUnavailable):
            await at.late.append(STREAM, FRAME)
        assert at.late.failure.since_ns > STALE_S * 1e9, "it began anew"
        await at.late.close()

    play(rng, scene)


def test_what_comes_when_nobody_wants_it_any_more_is_closed(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        at.why, at.opening_s = None, 5.0
        at.late.start()
        await asyncio.sleep(1)
        await at.late.close()
        (opened,) = at.opened
        with pytest.raises(LogClosed):
            await opened.append(STREAM, FRAME)
        with pytest.raises(LogClosed):
            await at.late.append(STREAM, FRAME)

    play(rng, scene)


def test_after_the_end_it_is_not_tried_again(rng: random.Random) -> None:
    async def scene(at: Scene) -> None:
        at.late.start()
        await at.late.first
        await at.late.close()
        await at.late.close()
        await asyncio.sleep(60)
        assert len(at.tries) == 1

    play(rng, scene)


class TestContract(LogContract):
    """Once it is open, it is the log."""

    @pytest.fixture
    async def logs(self, rng: random.Random) -> Any:
        loop = asyncio.get_running_loop()
        now_ms = lambda: int(loop.time() * 1000)  # noqa: E731 - a clock
        world = MemoryWorld(["a", "b"], rng, now_ms, lambda ms: asyncio.sleep(ms / 1000))
        late = {}
        for region in "ab":

            async def opened(region: str = region) -> LogStore:
                return world.log(region)

            late[region] = LateLog(region, opened, loop, lambda: 0, rng)
            late[region].start()
            await late[region].first
        yield _Logs(late["a"], late["b"])
        for one in late.values():
            await one.close()


class _Logs:
    def __init__(self, a: LogStore, b: LogStore) -> None:
        self.a, self.b = a, b

    def name(self, word: str) -> str:
        return word

    async def pause(self) -> None:
        await asyncio.sleep(0.001)
