"""Clients and workers of the region suite: an SDK client, a worker and a raw client for each node.

SDK clients are unmodified, with the retry policy they come with: what they show is what a user would see.
They work on counters, together, and every call is recorded for the judge of linearizability. Raw clients
start one-activity workflows at a steady pace, whatever becomes of those before: their ends, which come as
regularly, are what throughput is measured by.

Where this process itself did not get to run for STALL_S, the nodes on the same machine did not either: what a
client then saw says nothing about them (`excused`).

A refusal that an SDK client hears may be that of a second try, whose first one did it. So it counts as an
answer only where no fault was near; elsewhere its outcome is unknown.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.enums.v1.workflow_pb2 import HistoryEventFilterType
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire
from temporalio.client import (
    Client as SdkClient,
)
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from chaos.checkers.history import (
    AlreadyStarted,
    Answer,
    Call,
    Describe,
    Described,
    Reason,
    Recorder,
    Refused,
    Signal,
    Signaled,
    Start,
    Started,
    Status,
    Terminate,
    Terminated,
    Update,
    Updated,
)
from chaos.live.client import ALARMING, Client
from chaos.live.client import Refused as RawRefused
from chaos.live.program import seconds
from chaos.live.readback import NAMESPACE, read_list
from chaos.live.region_program import QUEUE, QUIET, Counter, worker
from chaos.live.region_record import RegionRecord, Want, Wish

TALKERS = 2  # a node
PAUSE_S = 0.12  # about, between the calls of one talker
OPEN_MAX = 8  # counters at a time
OPERATIONS_MIN = 20  # of a counter, before somebody ends it
CALL_S_MAX = 30.0  # a call that takes longer will never be answered, as far as a user is concerned
RAW_CALL_S = 5.0
RAW_PAUSE_S = 0.05  # the first; half as much again each time
RAW_PAUSE_S_MAX = 0.5
RACE = 0.15  # of all starts, so many have a rival with the same id
SETTLE_S_MAX = 240.0  # of a busy machine
LOOK_S = 0.1
STALL_S = 1.0  # an election's time-out: a machine that stands still for longer changes leaders by itself
KIND_CHARACTERS = 60  # of an error's message tell its kind
STATUSES = {
    WorkflowExecutionStatus.RUNNING: Status.RUNNING,
    WorkflowExecutionStatus.COMPLETED: Status.COMPLETED,
    WorkflowExecutionStatus.TERMINATED: Status.TERMINATED,
}


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that a client waited for has happened. Times are the loop's, in seconds."""

    at: float
    node: str  # the one that the client talks to
    took: float
    paced: bool  # of the steady load, which throughput is measured by
    error: str = ""
    what: str = ""


class Shared:
    """What all clients know of the counters."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.operations: dict[str, int] = {}
        self.ending: set[str] = set()  # somebody has asked for its end
        self.numbers = 0

    def name(self, prefix: str) -> str:
        """A new one."""
        self.numbers += 1
        return f"{prefix}-{self.numbers}"


class RegionWorkload:
    """All of it."""

    def __init__(self, rng: random.Random, addresses: dict[str, str], pace: float) -> None:
        """`addresses` by node name; `pace`: one-activity workflows a second, on each node."""
        self.rng = rng
        self.addresses = addresses
        self.record = RegionRecord()
        self.recorder = Recorder()
        self.marks: list[Mark] = []
        self.raw_errors: dict[str, int] = {}  # what raw clients heard and tried again
        self.failures: list[str] = []  # of the suite itself
        self.excused: list[str] = []  # errors of clients while the machine stood still
        self.stalls: list[tuple[float, float]] = []  # since when, and for how long
        self.victims: set[str] = set()  # nodes whose clients may see errors now
        self.disturbed = asyncio.Event()  # set while a fault, or its echo, is there
        self.faults = 0  # so far
        self._pace = pace
        self._shared = Shared()
        self._stopping = False
        self._raw: dict[str, Client] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._paced: set[asyncio.Task[None]] = set()
        self._workers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect to all nodes and begin."""
        for number, (node, address) in enumerate(self.addresses.items()):
            client = await SdkClient.connect(address, identity=f"sdk-{node}", runtime=QUIET)
            self._raw[node] = Client(address)
            self._workers.append(asyncio.ensure_future(worker(client, self.record.executions.append).run()))
            for talker in range(TALKERS):
                self._begin(self._talk(node, f"{node}.{talker}", client, random.Random(self.rng.random())))
            self._begin(self._load(node, number / len(self.addresses)))
        self._workers.append(asyncio.ensure_future(self._watch()))

    async def _watch(self) -> None:
        """Notice when the machine does not let this process run."""
        while True:
            before = self._now
            await asyncio.sleep(LOOK_S)
            late = self._now - before - LOOK_S
            if late > STALL_S:
                self.stalls.append((before, late))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(f"a client failed: {error!r}")

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    # ---- counters, by SDK clients

    async def _talk(self, node: str, name: str, client: SdkClient, rng: random.Random) -> None:
        shared = self._shared
        while not self._stopping:
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            if len(shared.open) < OPEN_MAX // 2 or (len(shared.open) < OPEN_MAX and rng.random() < 0.1):
                await self._start(node, name, client, rng)
                continue
            workflow_id = rng.choice(shared.open)
            shared.operations[workflow_id] += 1
            dice = rng.random()
            if shared.operations[workflow_id] > OPERATIONS_MIN and dice < 0.15:
                await self._end(node, name, client, workflow_id, terminate=rng.random() < 0.5)
            elif dice < 0.45:
                await self._update(node, name, client, workflow_id, rng.randint(1, 5))
            elif dice < 0.75:
                await self._signal(node, name, client, workflow_id, "bump")
            elif dice < 0.9:
                await self._query(node, name, client, workflow_id)
            else:
                await self._describe(node, name, client, workflow_id)

    async def _start(self, node: str, name: str, client: SdkClient, rng: random.Random) -> None:
        workflow_id = self._shared.name("counter")
        rivals = 2 if rng.random() < RACE else 1
        await asyncio.gather(
            *(self._start_one(node, f"{name}.{rival}", client, workflow_id) for rival in range(rivals))
        )
        self._shared.operations[workflow_id] = 0
        self._shared.open.append(workflow_id)

    async def _start_one(self, node: str, name: str, client: SdkClient, workflow_id: str) -> None:
        wish = self.record.wish(Want.START, workflow_id)

        async def work() -> Answer:
            try:
                handle = await client.start_workflow(Counter.run, id=workflow_id, task_queue=QUEUE)
            except WorkflowAlreadyStartedError as error:
                return AlreadyStarted(error.run_id or "")
            wish.name = handle.result_run_id or ""
            return Started(wish.name)

        answer = await self._call(node, name, workflow_id, Start(self._shared.name("start")), work)
        wish.acknowledged = isinstance(answer, Started)

    async def _signal(self, node: str, name: str, client: SdkClient, workflow_id: str, signal: str) -> None:
        sent = self._shared.name(signal)
        wish = self.record.wish(Want.SIGNAL, workflow_id, sent)

        async def work() -> Answer:
            await client.get_workflow_handle(workflow_id).signal(signal, sent)
            return Signaled()

        call = Signal(sent, closes=signal == "close")
        _take(wish, await self._call(node, name, workflow_id, call, work))

    async def _update(self, node: str, name: str, client: SdkClient, workflow_id: str, by: int) -> None:
        sent = self._shared.name("add")
        wish = self.record.wish(Want.UPDATE, workflow_id, sent)

        async def work() -> Answer:
            handle = client.get_workflow_handle(workflow_id)
            return Updated(await handle.execute_update(Counter.add, by, id=sent))

        _take(wish, await self._call(node, name, workflow_id, Update(sent, by), work))

    async def _describe(self, node: str, name: str, client: SdkClient, workflow_id: str) -> None:
        async def work() -> Answer:
            found = await client.get_workflow_handle(workflow_id).describe()
            assert found.status is not None
            return Described(STATUSES[found.status], found.run_id)

        await self._call(node, name, workflow_id, Describe(), work)

    async def _query(self, node: str, name: str, client: SdkClient, workflow_id: str) -> None:
        """What it shows counts only while nobody has asked for the end: a query does not tell of that."""

        async def work() -> Answer | None:
            value, _ = await client.get_workflow_handle(workflow_id).query(Counter.shown)
            if workflow_id in self._shared.ending:
                return None
            return Described(Status.RUNNING, value=value)

        await self._call(node, name, workflow_id, Describe(), work)

    async def _end(
        self, node: str, name: str, client: SdkClient, workflow_id: str, *, terminate: bool
    ) -> None:
        self._shared.ending.add(workflow_id)
        with suppress(ValueError):
            self._shared.open.remove(workflow_id)
        if not terminate:
            await self._signal(node, name, client, workflow_id, "close")
            return

        async def work() -> Answer:
            await client.get_workflow_handle(workflow_id).terminate()
            return Terminated()

        await self._call(node, name, workflow_id, Terminate(), work)

    async def _call(
        self, node: str, name: str, workflow_id: str, call: Call, work: Callable[[], Awaitable[Answer | None]]
    ) -> Answer | None:
        """Do it, and record it. None: nobody knows what became of it."""
        began, faults = self._now, self.faults
        excused = node in self.victims
        answer: Answer | None = None
        error = ""
        with self.recorder.op(name, workflow_id, call) as attempt:
            try:
                async with asyncio.timeout(CALL_S_MAX):
                    answer = await work()
            except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):  # the latter: an update's wait
                error = f"no answer within {CALL_S_MAX:g} s"
            except WorkflowUpdateFailedError as failed:
                if workflow_id not in self._shared.ending:
                    error = f"{failed}: {failed.cause}"
            except RPCError as refused:
                if refused.status is RPCStatusCode.NOT_FOUND and workflow_id in self._shared.ending:
                    if not self.disturbed.is_set() and faults == self.faults:
                        answer = Refused(Reason.NOT_FOUND)
                else:
                    error = f"{refused.status.name}: {refused.message}"
            if answer is not None:
                attempt.answer(answer)
        self.marks.append(
            Mark(self._now, node, self._now - began, False, error, f"{type(call).__name__} of {workflow_id}")
        )
        if error and not excused and node not in self.victims:
            stalled = any(since + late > began for since, late in self.stalls)
            (self.excused if stalled else self.record.errors).append(
                f"an SDK client of {node}, which was well, saw for {type(call).__name__} of {workflow_id} "
                f"after {self._now - began:.1f} s: {error}"
            )
        return answer

    # ---- one-activity workflows, by raw clients

    async def _load(self, node: str, phase: float) -> None:
        due = self._now + phase / self._pace
        while not self._stopping:
            await asyncio.sleep(max(0.0, due - self._now))
            task = asyncio.ensure_future(self._once(node))
            self._paced.add(task)
            task.add_done_callback(self._paced.discard)
            task.add_done_callback(self._ended)
            due += 1 / self._pace

    async def _once(self, node: str) -> None:
        began = self._now
        workflow_id = self._shared.name("once")
        wish = self.record.wish(Want.START, workflow_id)
        start = wire.StartWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_id=workflow_id, workflow_type=WorkflowType(name="once"),
            task_queue=TaskQueue(name=QUEUE), workflow_task_timeout=seconds(5), identity=workflow_id,
            request_id=workflow_id,
        )  # fmt: skip
        payload = start.input.payloads.add(data=f'"{workflow_id}"'.encode())
        payload.metadata["encoding"] = b"json/plain"
        started = await self._raw_call(
            node, "StartWorkflowExecution", start, wire.StartWorkflowExecutionResponse
        )
        wish.name, wish.acknowledged = started.run_id, True
        self.marks.append(Mark(self._now, node, self._now - began, True, what=f"Start of {workflow_id}"))
        finish = self.record.wish(Want.FINISH, workflow_id, started.run_id)
        watch = wire.GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE, wait_new_event=True,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=started.run_id),
            history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
        )  # fmt: skip
        while True:
            found = await self._raw_call(
                node, "GetWorkflowExecutionHistory", watch, wire.GetWorkflowExecutionHistoryResponse
            )
            if found.history.events:
                break
            watch.next_page_token = found.next_page_token
        if found.history.events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
            finish.acknowledged = True
        else:
            self.record.alarms.append(f"{workflow_id} ended by {found.history.events[-1]}")
        self.marks.append(Mark(self._now, node, self._now - began, True, what=f"End of {workflow_id}"))

    async def _raw_call(self, node: str, method: str, request: Any, answer: type[Any]) -> Any:
        """Until it is answered: the same request, with the same request id."""
        pause_s = RAW_PAUSE_S
        while True:
            try:
                return await self._raw[node].call(method, request, answer, RAW_CALL_S)
            except RawRefused as refused:
                if refused.code is grpc.StatusCode.DEADLINE_EXCEEDED and "History" in method:
                    continue  # nothing new so far
                who = "victim" if node in self.victims else "survivor"
                what = f"{who}: {method}: {refused.code.name}: {_kind_of(refused.message)}"
                self.raw_errors[what] = self.raw_errors.get(what, 0) + 1
                if refused.code in ALARMING or refused.code in (
                    grpc.StatusCode.NOT_FOUND, grpc.StatusCode.ALREADY_EXISTS,
                ):  # fmt: skip
                    self.record.alarms.append(f"{method} of {node} was answered with {refused}")
                    if refused.code not in ALARMING:
                        raise
            await asyncio.sleep(pause_s)
            pause_s = min(1.5 * pause_s, RAW_PAUSE_S_MAX)

    # ---- the end

    async def settle(self) -> None:
        """All nodes are well: what was begun ends, and counters are closed."""
        self._stopping = True
        async with asyncio.timeout(CALL_S_MAX + SETTLE_S_MAX):
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._paced:
            await asyncio.wait(self._paced, timeout=SETTLE_S_MAX)
        node, address = next(iter(self.addresses.items()))
        client = await SdkClient.connect(address, runtime=QUIET)
        for workflow_id in self._shared.operations.keys() - self._shared.ending:
            await self._end(node, "settle", client, workflow_id, terminate=False)
        deadline = self._now + SETTLE_S_MAX
        running = True
        while running and self._now < deadline:
            await asyncio.sleep(0.1)
            running = bool(await read_list(self._raw[node], "ExecutionStatus = 'Running'"))
        self.recorder.close()

    async def stop(self) -> None:
        """End everything."""
        self._stopping = True
        tasks = [*self._tasks, *self._paced, *self._workers]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in self._raw.values():
            await client.close()


def _kind_of(message: str) -> str:
    """The head of an error's message, without what differs from one to the next."""
    return re.sub(r"[0-9][0-9.:]*", "#", message)[:KIND_CHARACTERS]


def _take(wish: Wish, answer: Answer | None) -> None:
    wish.acknowledged = isinstance(answer, Signaled | Updated)
    wish.refused = isinstance(answer, Refused)
