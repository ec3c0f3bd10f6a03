"""What a measurement is: figures with a unit, a target and a verdict; closed and open loops; percentiles."""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.server import Server


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark. `better` is `<=` or `>=`; without a target it only informs."""

    benchmark: str
    what: str
    value: float
    unit: str
    target: float | None = None
    better: str = "<="

    @property
    def verdict(self) -> str:
        """Say ok, MISSED, or nothing when there is no target."""
        if self.target is None:
            return ""
        good = self.value <= self.target if self.better == "<=" else self.value >= self.target
        return "ok" if good else "MISSED"

    def as_json(self) -> dict[str, Any]:
        """Return the figure with its verdict."""
        return asdict(self) | {"verdict": self.verdict}


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which a share of the values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Round:
    """One round of a closed loop."""

    per_second: float
    server_cpu_ms: float
    client_cpu_ms: float


@dataclass(frozen=True)
class Rounds:
    """Medians over rounds."""

    per_second: float
    server_cpu_ms: float
    client_cpu_ms: float


async def closed_loop(
    server: Server, one: Callable[[], Awaitable[object]], *, in_flight: int, seconds: float
) -> Round:
    """Keep `in_flight` of them going for a while; count what ended, and what it cost both sides each."""
    deadline = time.perf_counter() + seconds
    done = 0

    async def again_and_again() -> None:
        nonlocal done
        while time.perf_counter() < deadline:
            await one()
            done += 1

    began, server_cpu, client_cpu = time.perf_counter(), server.cpu(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(again_and_again())
    took = time.perf_counter() - began
    return Round(
        done / took,
        1000 * (server.cpu() - server_cpu) / done,
        1000 * (time.process_time() - client_cpu) / done,
    )


async def rounds(
    server: Server,
    one: Callable[[], Awaitable[object]],
    *,
    in_flight: int,
    seconds: float,
    count: int,
    warm_up: float = 0.5,
) -> Rounds:
    """Run a closed loop several times after a warm-up, and take medians."""
    await closed_loop(server, one, in_flight=in_flight, seconds=warm_up)
    each = [await closed_loop(server, one, in_flight=in_flight, seconds=seconds) for _ in range(count)]
    return Rounds(
        statistics.median(r.per_second for r in each),
        statistics.median(r.server_cpu_ms for r in each),
        statistics.median(r.client_cpu_ms for r in each),
    )


async def open_loop(
    call: Callable[[], asyncio.Future[bytes]], *, per_second: float, seconds: float
) -> list[float]:
    """Make calls at a fixed rate whether or not earlier ones have ended; return each one's milliseconds.

    Time counts from the instant at which a call was due, so that a stall is charged to every call it delayed.
    """
    now = time.perf_counter  # the loop's own clock is cached, and counts whole milliseconds on uvloop
    latencies: list[float] = []
    pending: list[asyncio.Future[bytes]] = []

    def _note(since: float, _: asyncio.Future[bytes]) -> None:
        latencies.append(1000 * (now() - since))

    began = now() + 0.05
    for number in range(round(per_second * seconds)):
        due = began + number / per_second
        if (wait := due - now()) > 0:
            await asyncio.sleep(wait)
        # A sleep ends up to a millisecond late. That is this client's lateness and not the server's, unless
        # the loop itself was held up by more than a period.
        since = now() if now() - due < 1 / per_second else due
        future = call()
        future.add_done_callback(partial(_note, since))
        pending.append(future)
    await asyncio.gather(*pending)
    return latencies


def fdatasync_us(directory: Path, count: int = 200, *, pause_s: float = 0.0) -> float:
    """Median time of appending 4 KiB and syncing it, in the directory where the server keeps its file.

    With a pause before each: what it takes a disk, and a core, that have gone to sleep.
    """
    path = directory / "fdatasync.probe"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    times = []
    try:
        for _ in range(count):
            time.sleep(pause_s)
            began = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fdatasync(descriptor)
            times.append(time.perf_counter() - began)
    finally:
        os.close(descriptor)
        path.unlink()
    return 1e6 * statistics.median(times)


def python_ms() -> float:
    """Best time of a fixed piece of Python: how fast this machine's core is today."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        table: dict[int, int] = {}
        for number in range(200_000):
            table[number & 1023] = table.get(number & 511, 0) + number
        times.append(time.perf_counter() - began)
    return 1000 * min(times)
