"""The benchmarks of a region: throughput, latency, who does the work, a node's death, idle groups."""

from __future__ import annotations

import asyncio
import statistics
import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
)

from benchmarks import server
from benchmarks.measure import Figure, percentile
from benchmarks.raw_client import Connection, RpcError
from benchmarks.raw_worker import (
    COMPLETE_ACTIVITY,
    COMPLETE_WORKFLOW_TASK,
    HISTORY,
    POLL_ACTIVITY,
    POLL_WORKFLOW,
    START,
    ActivitiesInSequence,
    Starter,
)
from benchmarks.region_cluster import Region, load, region, worked
from cluster.hosting.tasks.tokens import task_token

QUEUE = "bench"
ROUNDS = 3
IN_FLIGHT = 50
SDK_IN_FLIGHT = 32
SHARDS = (1, 8, 64)
STANDARD = (3, 8)  # the targets are for these nodes and shards
IDLE_SHARDS = 1000
SETTLE_S = 15.0  # what the start left to do is done then, and idle groups have become quiet
WINDOW_S = 0.5  # throughput of this long a time is compared with that before a kill
STEP_S = 0.02  # between the beginnings of windows
WORST_WITHIN_S = 3.0  # after a kill; an election takes a second
BACK_SHARE = 0.8
BACK_MAX_S = 30.0


@dataclass
class Bench:
    """How to run: where the files lie, how long."""

    where: str | None = None
    quick: bool = False
    raise_errors: bool = False

    @property
    def seconds(self) -> float:
        """Length of a round."""
        return 1.0 if self.quick else 4.0

    @property
    def rounds(self) -> int:
        """Rounds of which the median counts."""
        return 1 if self.quick else ROUNDS

    def region(self, nodes: int = STANDARD[0], shards: int = STANDARD[1]) -> Any:
        """Run a fresh region for the length of a block."""
        return region(nodes, shards, self.where)


def program() -> ActivitiesInSequence:
    """The standard case: one activity."""
    return ActivitiesInSequence(QUEUE)


async def one_node(bench: Bench) -> list[Figure]:
    """Workflows of one activity, 50 in flight: a region of one node, by the number of shards."""
    return await _by_shards(bench, 1)


async def three_nodes(bench: Bench) -> list[Figure]:
    """The same on three nodes."""
    return await _by_shards(bench, 3)


async def five_nodes(bench: Bench) -> list[Figure]:
    """The same on five nodes, three replicas of each shard."""
    return await _by_shards(bench, 5)


async def _by_shards(bench: Bench, nodes: int) -> list[Figure]:
    figures = []
    for shards in SHARDS:
        figures += await _one_activity(bench, nodes, shards)
    return figures


async def _one_activity(bench: Bench, nodes: int, shards: int) -> list[Figure]:
    name, standard = "region_one_activity", (nodes, shards) == STANDARD
    at = f"{nodes} node{'s' * (nodes > 1)}, {shards} shard{'s' * (shards > 1)}"
    async with bench.region(nodes, shards) as made:
        idle = made.memory()
        async with worked(made, program, QUEUE) as starters:
            await load(made, starters, in_flight=IN_FLIGHT, seconds=bench.seconds / 2)
            each = [
                await load(made, starters, in_flight=IN_FLIGHT, seconds=bench.seconds)
                for _ in range(bench.rounds)
            ]
        used = made.memory()
    rate, cpu, client = (
        statistics.median(getattr(one, what) for one in each)
        for what in ("per_second", "server_cpu_ms", "client_cpu_ms")
    )
    latencies = [latency for one in each for latency in one.latencies]
    figures = [
        Figure(name, f"{at}: throughput", rate, "workflows/s", 250 if standard else None, ">="),
        Figure(name, f"{at}: CPU of all nodes", cpu, "ms/workflow", 4 if standard else None),
        Figure(name, f"{at}: p50", percentile(latencies, 0.5), "ms"),
        Figure(name, f"{at}: p99", percentile(latencies, 0.99), "ms", 300 if standard else None),
        Figure(name, f"{at}: calls that failed", sum(one.failed for one in each), "", 0),
    ]
    if standard:
        figures += [
            Figure(name, f"{at}: client CPU", client, "ms/workflow"),
            Figure(name, f"{at}: memory of a node, idle", statistics.mean(idle), "MiB"),
            Figure(name, f"{at}: memory of a node, after the load", statistics.mean(used), "MiB"),
        ]
    return figures


async def sdk_worker(bench: Bench) -> list[Figure]:
    """The same with one worker of the Python SDK: as the SDK makes it by default, and without its sandbox."""
    return [*await _sdk_worker(bench, "sandboxed"), *await _sdk_worker(bench, "unsandboxed")]


async def _sdk_worker(bench: Bench, sandbox: str) -> list[Figure]:
    async with bench.region() as made:
        connections = [await made.connect(name) for name in made.names]
        starters = [Starter(connection, QUEUE, "InSequence", "1") for connection in connections]
        async with server.sdk_worker(made.addresses[made.names[0]], QUEUE, sandbox) as pid:
            await load(made, starters, in_flight=SDK_IN_FLIGHT, seconds=bench.seconds / 2)
            before = server.cpu_seconds(pid)
            got = await load(made, starters, in_flight=SDK_IN_FLIGHT, seconds=2 * bench.seconds)
            worker_ms = 1000 * (server.cpu_seconds(pid) - before) / len(got.latencies)
        for connection in connections:
            connection.close()
    name, what = "region_sdk_worker", f"SDK worker, {sandbox}, {SDK_IN_FLIGHT} in flight"
    return [
        Figure(name, what, got.per_second, "workflows/s", 100, ">="),
        Figure(name, f"{what}: CPU of all nodes", got.server_cpu_ms, "ms/workflow"),
        Figure(name, f"{what}: CPU of the worker", worker_ms, "ms/workflow"),
    ]


async def start_latency(bench: Bench) -> list[Figure]:
    """StartWorkflowExecution in an idle region, one at a time, by whether it comes to the shard's leader."""
    name, count = "region_start_latency", 100 if bench.quick else 600
    took: dict[bool, list[float]] = {True: [], False: []}
    async with bench.region() as made:
        led_by = await made.leaders()
        starters = [(one, Starter(await made.connect(one), QUEUE)) for one in made.names]
        for number in range(count):
            node, starter = starters[number % len(starters)]
            began = time.perf_counter()
            workflow_id, future = starter.start_nowait()
            await future
            if number >= count // 10:  # the first ones warm up
                took[led_by(workflow_id.decode()) == node].append(1000 * (time.perf_counter() - began))
            await asyncio.sleep(0.01)
    every = took[True] + took[False]
    return [
        Figure(name, "StartWorkflow, idle: p50", percentile(every, 0.5), "ms", 5),
        Figure(name, "StartWorkflow, idle: p99", percentile(every, 0.99), "ms"),
        Figure(name, "StartWorkflow at the shard's leader: p50", percentile(took[True], 0.5), "ms"),
        Figure(name, "StartWorkflow at another node: p50", percentile(took[False], 0.5), "ms"),
    ]


# ------------------------------------------------------------------------------------ where time goes


@dataclass
class Recorded:
    """One call of a client."""

    path: bytes
    node: str
    request: bytes
    answer: bytes
    seconds: float


class Recorder:
    """Stands for a connection, and keeps every call that was answered."""

    def __init__(self, node: str, connection: Connection, calls: list[Recorded]) -> None:
        self._node = node
        self._connection = connection
        self._calls = calls

    def call(self, path: bytes, message: bytes, timeout: bytes = b"10S") -> asyncio.Future[bytes]:
        """Make the call."""
        began = time.perf_counter()
        future = self._connection.call(path, message, timeout)

        def keep(done: asyncio.Future[bytes]) -> None:
            if not done.cancelled() and done.exception() is None:
                took = time.perf_counter() - began
                self._calls.append(Recorded(path, self._node, message, done.result(), took))

        future.add_done_callback(keep)
        return future


def workflow_of(call: Recorded) -> str:
    """The workflow id that a call is about; "" if it is about none."""
    if call.path == START:
        return str(StartWorkflowExecutionRequest.FromString(call.request).workflow_id)
    if call.path == HISTORY:
        return str(GetWorkflowExecutionHistoryRequest.FromString(call.request).execution.workflow_id)
    if call.path == POLL_WORKFLOW:
        return str(PollWorkflowTaskQueueResponse.FromString(call.answer).workflow_execution.workflow_id)
    if call.path == POLL_ACTIVITY:
        return str(PollActivityTaskQueueResponse.FromString(call.answer).workflow_execution.workflow_id)
    if call.path == COMPLETE_WORKFLOW_TASK:
        token = RespondWorkflowTaskCompletedRequest.FromString(call.request).task_token
    elif call.path == COMPLETE_ACTIVITY:
        token = RespondActivityTaskCompletedRequest.FromString(call.request).task_token
    else:
        return ""
    return task_token(token).workflow_id


def by_method(
    calls: list[Recorded], led_by: Callable[[str], str]
) -> dict[str, tuple[list[float], list[float]]]:
    """Milliseconds of the calls of each method: at the shard's leader, and at other nodes."""
    found: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for call in calls:
        workflow_id = workflow_of(call)
        if workflow_id:
            method = call.path.rpartition(b"/")[2].decode()
            found[method][led_by(workflow_id) != call.node].append(1000 * call.seconds)
    return dict(found)


async def where_time_goes(bench: Bench) -> list[Figure]:
    """Each method of the standard case: how often it comes to a node that does not lead, what that adds."""
    name = "region_where_time_goes"
    calls: list[Recorded] = []
    async with bench.region() as made:
        async with worked(made, program, QUEUE) as starters:
            await load(made, starters, in_flight=IN_FLIGHT, seconds=1)
        led_by = await made.leaders()
        wrap = lambda node, connection: Recorder(node, connection, calls)  # noqa: E731
        async with worked(made, program, QUEUE, wrap=wrap) as starters:
            before = await asyncio.to_thread(made.counters)
            got = await load(made, starters, in_flight=8, seconds=bench.seconds)
            after = await asyncio.to_thread(made.counters)
        led_then = await made.leaders()
        sample = map(str, range(1000))
        assert all(led_by(one) == led_then(one) for one in sample), "leaders moved meanwhile; run it again"
    done = len(got.latencies)
    figures = [
        Figure(name, f"{what} a workflow, all nodes", (after[counter] - before[counter]) / done, "")
        for what, counter in (
            ("durable writes (rounds)", "holdfast_rounds_total"),
            ("log entries", "holdfast_entries_total"),
        )
    ]
    for method, (here, elsewhere) in sorted(by_method(calls, led_by).items()):
        share = 100 * len(elsewhere) / (len(here) + len(elsewhere))
        figures.append(Figure(name, f"{method}: by way of another node", share, "%"))
        if method.startswith(("Start", "Respond")):  # the others wait, for work or for the end
            figures += [
                Figure(name, f"{method} {where}: p50", percentile(times, 0.5), "ms")
                for where, times in (("at the leader", here), ("by way of another node", elsewhere))
                if times
            ]
    return figures


# ------------------------------------------------------------------------------------------- a death


def back_after(ends: Sequence[float], killed: float, before: float, until: float) -> float:
    """Seconds from a kill until throughput is back at 80 % of what it was; 0 if it never fell below.

    `ends`: when each workflow ended, in order, in seconds; `before`: a second; `until`: how long was watched.
    What is in flight on living nodes ends right after the kill, so the search begins at the worst window of
    the first seconds. Infinity if no window after that is good.
    """
    needed = BACK_SHARE * before * WINDOW_S
    steps = int((until - WINDOW_S - killed) / STEP_S) + 1
    counts = []
    for step in range(steps):
        start = killed + step * STEP_S
        counts.append(bisect_left(ends, start + WINDOW_S) - bisect_left(ends, start))
    first = counts[: int(WORST_WITHIN_S / STEP_S)]
    if not first or min(first) >= needed:
        return 0.0
    worst = first.index(min(first))
    return next(
        (step * STEP_S for step in range(worst, steps) if counts[step] >= needed),
        float("inf"),
    )


async def kill_one(bench: Bench) -> list[Figure]:
    """SIGKILL of one of three nodes under load; clients and workers are connected to the other two."""
    name = "region_kill_one"
    backs, longest, errors, lost = [], [], Counter[int](), 0
    for _ in range(bench.rounds):
        async with bench.region() as made:
            ends, waits, refused, unended = await _kill_one(bench, made)
        backs.append(ends)
        longest.append(waits)
        errors += refused
        lost += unended
    return [
        Figure(name, "until 80 % of the throughput is back: median", statistics.median(backs), "s", 1),
        Figure(name, "until 80 % of the throughput is back: worst", max(backs), "s", 2),
        Figure(name, "longest that a workflow took: median of the rounds", statistics.median(longest), "s"),
        Figure(name, "calls that failed", sum(errors.values()), "", 0),
        Figure(name, "acknowledged workflows without an end", lost, "", 0),
    ]


async def _kill_one(bench: Bench, made: Region) -> tuple[float, float, Counter[int], int]:
    victim, *others = made.names
    ends: list[float] = []
    errors: Counter[int] = Counter()
    longest = 0.0
    lost = 0
    stopping = False

    async def again_and_again(starter: Starter) -> None:
        nonlocal longest, lost
        while not stopping:
            began = time.perf_counter()
            try:
                run = await starter.start()
            except RpcError as error:
                errors[error.code] += 1
                continue
            try:
                await starter.wait_closed(*run)
            except RpcError as error:
                errors[error.code] += 1
                lost += 1
                continue
            ends.append(time.perf_counter())
            longest = max(longest, ends[-1] - began)

    async with worked(made, program, QUEUE, others) as starters, asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT):
            group.create_task(again_and_again(starters[number % len(starters)]))
        await asyncio.sleep(1)
        measured = time.perf_counter()
        await asyncio.sleep(bench.seconds)
        before = sum(end > measured for end in ends) / (time.perf_counter() - measured)
        killed = time.perf_counter()
        await made.kill(victim)
        await asyncio.sleep(WORST_WITHIN_S + WINDOW_S)
        while (back := back_after(ends, killed, before, time.perf_counter())) == float("inf"):
            if time.perf_counter() - killed > BACK_MAX_S:
                break
            await asyncio.sleep(0.1)
        stopping = True
    return back, longest, errors, lost


# ---------------------------------------------------------------------------------------- idle groups


async def idle_groups(bench: Bench) -> list[Figure]:
    """1,000 shards on three nodes, and nobody calls: CPU and memory; one shard to compare."""
    name, seconds = "region_idle_groups", 5.0 if bench.quick else 30.0
    cost, memory = {}, {}
    for shards in (1, IDLE_SHARDS):
        async with bench.region(3, shards) as made:
            await asyncio.sleep(SETTLE_S)
            began, cpu = time.perf_counter(), made.cpu()
            await asyncio.sleep(seconds)
            cost[shards] = 100 * (made.cpu() - cpu) / (time.perf_counter() - began)
            memory[shards] = statistics.mean(made.memory())
    groups = cost[IDLE_SHARDS] - cost[1]
    return [
        Figure(name, "three nodes, 1 shard: CPU of all nodes", cost[1], "% of a core"),
        Figure(name, f"{IDLE_SHARDS:,} shards: CPU of all nodes", cost[IDLE_SHARDS], "% of a core"),
        Figure(name, f"{IDLE_SHARDS - 1} idle groups: CPU of all nodes", groups, "% of a core", 3),
        Figure(name, f"{IDLE_SHARDS:,} shards: memory of a node", memory[IDLE_SHARDS], "MiB"),
        Figure(name, "1 shard: memory of a node", memory[1], "MiB"),
    ]
