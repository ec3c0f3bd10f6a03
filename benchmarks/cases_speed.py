"""How fast: workflows a second, CPU a workflow, latencies at a fixed rate, activities, timers, start time."""

from __future__ import annotations

import asyncio
import resource
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measure import Figure, closed_loop, fdatasync_us, open_loop, percentile, python_ms, rounds
from benchmarks.raw_client import Connection
from benchmarks.raw_worker import (
    TIMER_FIRED,
    ActivitiesAtOnce,
    ActivitiesInSequence,
    Idle,
    Program,
    Starter,
    Timers,
    Worker,
    WorkerOptions,
    start_many,
)
from benchmarks.server import SYSTEM_INFO, Server, cpu_seconds, running, sdk_worker

QUEUE = "bench"


@dataclass
class Bench:
    """How to run: which program, where its file lies, how long."""

    holdfast: str
    where: str | None = None
    arguments: list[str] = field(default_factory=list)
    quick: bool = False

    @property
    def seconds(self) -> float:
        """Length of a round."""
        return 1.0 if self.quick else 3.0

    @property
    def rounds(self) -> int:
        """Rounds of which the median counts."""
        return 1 if self.quick else 3

    def server(self) -> Any:
        """Run a fresh server for the length of a block."""
        return running(self.holdfast, self.where, self.arguments)


@asynccontextmanager
async def worked(
    server: Server, program: Program, options: WorkerOptions | None = None
) -> AsyncIterator[tuple[Starter, Worker]]:
    """Give a starter and a running worker, each with a connection of its own as in real life."""
    starter_connection, worker_connection = await server.connect(), await server.connect()
    worker = Worker(worker_connection, QUEUE, program, options)
    worker.start()
    try:
        yield Starter(starter_connection, QUEUE), worker
    finally:
        await worker.stop()
        starter_connection.close()
        worker_connection.close()
        if worker.counts.errors:
            print(f"the worker met errors: {worker.counts.errors}", file=sys.stderr)


async def machine(bench: Bench) -> list[Figure]:
    """Measure the machine itself, so that figures of different days can be compared as ratios."""
    name = "machine"
    figures = [Figure(name, "a fixed piece of Python", python_ms(), "ms")]
    async with bench.server() as server:
        figures.append(Figure(name, "append 4 KiB + fdatasync", fdatasync_us(server.directory), "us"))
        # What latencies at 100/s are to be compared with: nothing is warm there.
        slept = fdatasync_us(server.directory, pause_s=0.01)
        figures.append(Figure(name, "append 4 KiB + fdatasync, at 100/s", slept, "us"))
        connection = await server.connect()
        calls = await open_loop(
            lambda: connection.call(SYSTEM_INFO, b""), per_second=100, seconds=bench.seconds
        )
        figures.append(Figure(name, "GetSystemInfo at 100/s: p50", 1000 * percentile(calls, 0.5), "us"))

        async def empty() -> None:
            await connection.call(SYSTEM_INFO, b"")

        for in_flight in (1, 32):
            got = await rounds(server, empty, in_flight=in_flight, seconds=1, count=bench.rounds)
            what = f"GetSystemInfo, {in_flight} in flight"
            figures.append(Figure(name, what, got.per_second, "/s"))
            figures.append(Figure(name, f"{what}: server CPU", 1000 * got.server_cpu_ms, "us"))
            figures.append(Figure(name, f"{what}: client CPU", 1000 * got.client_cpu_ms, "us"))
        connection.close()
    return figures


async def one_activity(bench: Bench) -> list[Figure]:
    """Workflows of one activity, raw client as starter and worker: the standard case."""
    name = "one_activity"
    figures = []
    async with bench.server() as server:
        for in_flight in (1, 8, 32):
            async with worked(server, ActivitiesInSequence(QUEUE)) as (starter, _):
                got = await rounds(
                    server, starter.run, in_flight=in_flight, seconds=bench.seconds, count=bench.rounds
                )
            at = f"raw, {in_flight} in flight"
            most = in_flight == 32
            figures += [
                Figure(name, at, got.per_second, "workflows/s", 400 if most else None, ">="),
                Figure(name, f"{at}: server CPU", got.server_cpu_ms, "ms/workflow", 1.5 if most else None),
                Figure(name, f"{at}: client CPU", got.client_cpu_ms, "ms/workflow"),
            ]
    return figures


async def one_activity_variants(bench: Bench) -> list[Figure]:
    """The same with what saves round trips, each by itself."""
    name = "one_activity_variants"
    variants = {
        "eager activity": (ActivitiesInSequence(QUEUE, eager=True), WorkerOptions()),
        "no sticky queue": (ActivitiesInSequence(QUEUE), WorkerOptions(sticky=False)),
        "no next task in the answer": (
            ActivitiesInSequence(QUEUE),
            WorkerOptions(return_new_workflow_task=False),
        ),
    }
    figures = []
    async with bench.server() as server:
        for what, (program, options) in variants.items():
            async with worked(server, program, options) as (starter, _):
                got = await rounds(server, starter.run, in_flight=32, seconds=bench.seconds, count=1)
            figures.append(Figure(name, f"{what}, 32 in flight", got.per_second, "workflows/s"))
            figures.append(Figure(name, f"{what}: server CPU", got.server_cpu_ms, "ms/workflow"))
    return figures


async def one_activity_sdk(bench: Bench) -> list[Figure]:
    """The same with a worker of the Python SDK: as the SDK makes it by default, and without its sandbox."""
    return [*await _one_activity_sdk(bench, "sandboxed"), *await _one_activity_sdk(bench, "unsandboxed")]


async def _one_activity_sdk(bench: Bench, sandbox: str) -> list[Figure]:
    name = "one_activity_sdk"
    figures = []
    async with bench.server() as server, sdk_worker(server.address, QUEUE, sandbox) as pid:
        connection = await server.connect()
        starter = Starter(connection, QUEUE, "InSequence", "1")
        for in_flight in (1, 8, 32):
            await closed_loop(server, starter.run, in_flight=in_flight, seconds=1)
            before = cpu_seconds(pid)
            got = await closed_loop(server, starter.run, in_flight=in_flight, seconds=2 * bench.seconds)
            done = got.per_second * 2 * bench.seconds
            at = f"SDK worker, {sandbox}, {in_flight} in flight"
            target = 120 if in_flight == 32 else None
            figures += [
                Figure(name, at, got.per_second, "workflows/s", target, ">="),
                Figure(name, f"{at}: server CPU", got.server_cpu_ms, "ms/workflow"),
                Figure(name, f"{at}: worker CPU", 1000 * (cpu_seconds(pid) - before) / done, "ms/workflow"),
            ]
        connection.close()
    return figures


def _latency(name: str, what: str, latencies: list[float]) -> list[Figure]:
    return [
        Figure(name, f"{what}: p50", percentile(latencies, 0.5), "ms", 2),
        Figure(name, f"{what}: p99", percentile(latencies, 0.99), "ms", 10),
    ]


async def start_latency(bench: Bench) -> list[Figure]:
    """StartWorkflowExecution at 100/s."""
    async with bench.server() as server:
        connection = await server.connect()
        starter = Starter(connection, QUEUE)
        await start_many(starter, 200, 8)
        latencies = await open_loop(
            lambda: starter.start_nowait()[1], per_second=100, seconds=5 * bench.seconds
        )
        connection.close()
    return _latency("start_latency", "StartWorkflow at 100/s", latencies)


async def _at_idle_workflows(bench: Bench, method: str) -> list[float]:
    async with bench.server() as server, worked(server, Idle()) as (starter, worker):
        ids = await start_many(starter, 50, 8)
        while worker.counts.workflow_tasks < len(ids):
            await asyncio.sleep(0.01)

        def call() -> asyncio.Future[bytes]:
            ids.rotate(1)
            future: asyncio.Future[bytes] = getattr(starter, method)(ids[0])
            return future

        await open_loop(call, per_second=50, seconds=1)
        return await open_loop(call, per_second=100, seconds=5 * bench.seconds)


async def signal_latency(bench: Bench) -> list[Figure]:
    """Signals at 100/s to 50 idle workflows with a worker."""
    return _latency("signal_latency", "signal at 100/s", await _at_idle_workflows(bench, "signal"))


async def update_latency(bench: Bench) -> list[Figure]:
    """Updates at 100/s to 50 idle workflows, there and back through the worker, until completed."""
    latencies = await _at_idle_workflows(bench, "update")
    return _latency("update_latency", "update until completed, at 100/s", latencies)


async def _seconds_of(starter: Starter, count: int) -> float:
    times = []
    for _ in range(count + 1):
        began = time.perf_counter()
        await starter.run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])  # the first one warms up


async def parallel_activities(bench: Bench) -> list[Figure]:
    """One workflow of 100 activities at once."""
    name = "parallel_activities"
    async with bench.server() as server:
        async with worked(server, ActivitiesAtOnce(QUEUE, 100)) as (starter, _):
            raw = await _seconds_of(starter, bench.rounds)
        async with sdk_worker(server.address, QUEUE):
            connection = await server.connect()
            sdk = await _seconds_of(Starter(connection, QUEUE, "AtOnce", "100"), bench.rounds)
            connection.close()
    return [
        Figure(name, "100 activities at once, raw", raw, "s", 0.5),
        Figure(name, "100 activities at once, SDK worker", sdk, "s", 0.5),
    ]


async def sequential_activities(bench: Bench) -> list[Figure]:
    """One workflow of 500 activities, one after another."""
    name = "sequential_activities"
    async with bench.server() as server:
        async with worked(server, ActivitiesInSequence(QUEUE, 500)) as (starter, _):
            raw = await _seconds_of(starter, 1)
        async with sdk_worker(server.address, QUEUE):
            connection = await server.connect()
            sdk = await _seconds_of(Starter(connection, QUEUE, "InSequence", "500"), 1)
            connection.close()
    return [
        Figure(name, "500 activities in sequence, raw", raw, "s", 5),
        Figure(name, "500 activities in sequence, SDK worker", sdk, "s", 5),
    ]


def _lateness_ms(events: list[Any]) -> float:
    """How much later than due a timer fired, by the server's own clock in the history."""
    due = 0
    for event in events:
        if event.HasField("timer_started_event_attributes"):
            length = event.timer_started_event_attributes.start_to_fire_timeout
            due = event.event_time.ToNanoseconds() + length.ToNanoseconds()
        if event.event_type == TIMER_FIRED:
            return float((event.event_time.ToNanoseconds() - due) / 1e6)
    raise AssertionError("no timer fired in this history")


async def timers(bench: Bench) -> list[Figure]:
    """100 timers of 0.2 to 1.2 s in 100 workflows: how late they fire, and when the worker's answer is in."""
    name = "timers"
    lengths = [0.2 + number / 100 for number in range(100)]
    async with bench.server() as server, worked(server, Timers(lengths)) as (starter, _):
        started = [await starter.start() for _ in lengths]
        closed = await asyncio.gather(*(starter.wait_closed(*run) for run in started))
        histories = [await starter.history(*run) for run in started]
    fired = [_lateness_ms(events) for events in histories]
    ended = [
        (close.event_time.ToNanoseconds() - _fired_at(events)) / 1e6
        for close, events in zip(closed, histories, strict=True)
    ]
    assert min(fired) >= 0, f"a timer fired {-min(fired)} ms early"
    return [
        Figure(name, "fires late: p50", percentile(fired, 0.5), "ms", 10),
        Figure(name, "fires late: p99", percentile(fired, 0.99), "ms", 50),
        Figure(name, "from firing to the workflow's end: p50", percentile(ended, 0.5), "ms"),
    ]


def _fired_at(events: list[Any]) -> int:
    return next(int(e.event_time.ToNanoseconds()) for e in events if e.event_type == TIMER_FIRED)


async def start_time(bench: Bench) -> list[Figure]:
    """From exec to the first answer."""
    times = []
    for _ in range(1 if bench.quick else 5):
        async with bench.server() as server:
            times.append(server.ready_seconds)
    return [Figure("start_time", "start to ready, empty file", statistics.median(times), "s", 1)]


async def connections(bench: Bench) -> list[Figure]:
    """2,000 open connections that say nothing: memory each, and what a call costs beside them."""
    name = "connections"
    count = 200 if bench.quick else 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 2 * count), hard), hard))
    async with bench.server() as server:
        before = server.rss()
        opened: list[Connection] = [await server.connect() for _ in range(count)]

        async def empty() -> None:
            await opened[0].call(SYSTEM_INFO, b"")

        got = await rounds(server, empty, in_flight=1, seconds=1, count=1)
        grown = 1024 * (server.rss() - before) / count
        for connection in opened:
            connection.close()
    return [
        Figure(name, f"memory a connection ({count} open)", grown, "KiB"),
        Figure(name, f"GetSystemInfo beside {count} connections", got.per_second, "/s"),
    ]
