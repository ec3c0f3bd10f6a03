"""How much: memory idle, under load and after it; 100,000 open workflows, a restart; a backlog of 100,000."""

from __future__ import annotations

import asyncio
import signal
import time

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest

from benchmarks.cases_speed import QUEUE, Bench, worked
from benchmarks.measure import Figure, closed_loop, percentile
from benchmarks.raw_client import serialize, workflow_path
from benchmarks.raw_worker import (
    NAMESPACE,
    ActivitiesInSequence,
    FinishAtOnce,
    Idle,
    Program,
    Starter,
    WorkerOptions,
    start_many,
)
from benchmarks.server import Server

DESCRIBE = workflow_path("DescribeWorkflowExecution")
MANY_POLLS = WorkerOptions(workflow_polls=32, activity_polls=0, sticky=False)
DRAIN_SECONDS_MAX = 900.0


async def memory(bench: Bench) -> list[Figure]:
    """Memory when idle, under one-activity load, and what finished workflows leave behind."""
    name = "memory"
    per_step = 2_000 if bench.quick else 10_000
    async with bench.server() as server:
        await asyncio.sleep(1)
        idle = server.rss()
        after, peak = [], idle
        async with worked(server, ActivitiesInSequence(QUEUE)) as (starter, _):
            for _ in range(3):
                peak = max(peak, await _finish(server, starter, per_step))
                after.append(server.rss())
    # The first step fills caches of a fixed size; growth is what the steps after it add.
    growth = 1024 * (after[-1] - after[0]) / (2 * per_step)
    return [
        Figure(name, "idle", idle, "MiB", 100),
        Figure(name, "under one-activity load, 32 in flight", peak, "MiB", 250),
        Figure(name, f"after {3 * per_step:,} finished workflows", after[-1], "MiB", 250),
        Figure(name, "growth a finished workflow", growth, "KiB", 0.5),
    ]


async def _finish(server: Server, starter: Starter, count: int) -> float:
    done, peak = 0, 0.0

    async def some() -> None:
        nonlocal done, peak
        while done < count:
            done += 1
            await starter.run()
            if done % 500 == 0:
                peak = max(peak, server.rss())

    async with asyncio.TaskGroup() as group:
        for _ in range(32):
            group.create_task(some())
    return peak


async def _drain(server: Server, program: Program, count: int) -> list[float]:
    """Work off a backlog; return the rates of its ten tenths."""
    rates = []
    async with worked(server, program, MANY_POLLS) as (_, worker):
        last, seen = time.perf_counter(), 0
        deadline = last + DRAIN_SECONDS_MAX
        for tenth in range(1, 11):
            goal = count * tenth // 10
            while worker.counts.workflow_tasks < goal:
                if time.perf_counter() > deadline:
                    raise SystemExit(f"the backlog does not drain: {worker.counts}")
                await asyncio.sleep(0.005)
            now, got = time.perf_counter(), worker.counts.workflow_tasks
            rates.append((got - seen) / (now - last))
            last, seen = now, got
    return rates


async def backlog(bench: Bench) -> list[Figure]:
    """100,000 workflow tasks without a poller, then a worker: does it drain at full speed, without growth?"""
    name = "backlog"
    count = 5_000 if bench.quick else 100_000
    async with bench.server() as server:
        async with worked(server, FinishAtOnce()) as (starter, _):
            fresh = await closed_loop(server, starter.run, in_flight=32, seconds=bench.seconds)
        before = server.rss()
        connection = await server.connect()
        began = time.perf_counter()
        await start_many(Starter(connection, QUEUE), count)
        started = count / (time.perf_counter() - began)
        connection.close()
        full = server.rss()
        rates = await _drain(server, FinishAtOnce(), count)
        drained = server.rss()
    return [
        Figure(name, f"building it: {count:,} starts", started, "/s"),
        Figure(name, "drain rate, first tenth", rates[0], "/s"),
        Figure(name, "drain rate, median", percentile(rates, 0.5), "/s"),
        Figure(name, "drain rate, slowest tenth / first tenth", min(rates) / rates[0], "", 0.7, ">="),
        Figure(name, "drain rate / rate of fresh workflows", percentile(rates, 0.5) / fresh.per_second, ""),
        Figure(name, "memory with the backlog, more than before", full - before, "MiB"),
        Figure(name, "memory after draining, more than with it", drained - full, "MiB", 50),
    ]


async def open_idle(bench: Bench) -> list[Figure]:
    """100,000 workflows that wait for a signal: memory, and a restart after SIGKILL until it serves them."""
    name = "open_idle"
    count = 5_000 if bench.quick else 100_000
    async with bench.server() as server:
        connection = await server.connect()
        ids = await start_many(Starter(connection, QUEUE), count)
        connection.close()
        await _drain(server, Idle(), count)
        await asyncio.sleep(1)
        full = server.rss()
        server.stop(signal.SIGKILL)
        began = time.perf_counter()
        await server.start()
        connection = await server.connect()
        for workflow_id in (ids[0], ids[-1], ids[count // 2]):
            execution = WorkflowExecution(workflow_id=workflow_id.decode())
            request = DescribeWorkflowExecutionRequest(namespace=NAMESPACE, execution=execution)
            await connection.call(DESCRIBE, serialize(request))
        served = time.perf_counter() - began
        starter = Starter(connection, QUEUE)
        began = time.perf_counter()
        await starter.signal(ids[count // 3])
        first_signal = 1000 * (time.perf_counter() - began)
        again = server.rss()
        ready = server.ready_seconds
        connection.close()
    return [
        Figure(name, f"memory with {count:,} open idle workflows", full, "MiB", 400),
        Figure(name, "restart after SIGKILL to ready", ready, "s", 5),
        Figure(name, "restart until three of them are described", served, "s", 5),
        Figure(name, "first signal to one of them", first_signal, "ms"),
        Figure(name, "memory after the restart", again, "MiB", 400),
    ]
