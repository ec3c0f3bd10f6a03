"""What clients and workers do while the server is being broken, and the record of it.

Some clients start workflows, signal, update and terminate them at random; some workers poll and complete
tasks, half of them through sticky queues. After an indefinite end an operation is often tried again under its
own name, as a careful client would. The workload outlives the server: `attach` gives it the next address.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress

import grpc
from google.protobuf.message import Message
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.enums.v1.task_queue_pb2 import TaskQueueKind
from temporalio.api.enums.v1.update_pb2 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.taskqueue.v1.message_pb2 import StickyExecutionAttributes, TaskQueue
from temporalio.api.update.v1.message_pb2 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.live import program
from chaos.live.client import ALARMING, Answer, Client, Refused
from chaos.live.history import History, Kind, Operation, Outcome
from chaos.live.readback import NAMESPACE, digests, read_history, read_list, settled

CLIENTS = 8
POLLS = 3  # of each kind: workflow tasks (normal, sticky) and activities
PAUSE_S = 0.04  # mean, between two operations of one client
OPEN_MAX = 30  # workflows that are spoken to at one time
CALL_S = 3.0
POLL_S = 20.0
TASK_S = 2.0  # a workflow task that went to nobody is given out again after this
ATTEMPTS_MAX = 3
SETTLE_S_MAX = 240.0  # of a busy machine


class Workload:
    """Clients and workers of one run of the suite."""

    def __init__(self, rng: random.Random, history: History, queue: str = "chaos") -> None:
        self._rng = rng
        self.history = history
        self.queue = queue
        self._numbers = 0
        self._open: list[str] = []
        self._client: Client | None = None
        self._attached = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.failures: list[
            str
        ] = []  # of clients and workers themselves: nobody knows what they would have found
        self._stopping = False

    # ---- the server's lives

    def attach(self, address: str) -> None:
        """A server serves at this address."""
        self._client = Client(address)
        self._attached.set()

    async def detach(self) -> None:
        """It does not any more."""
        self._attached.clear()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def start(self) -> None:
        """Begin."""
        for _ in range(CLIENTS):
            self._begin(self._talk(random.Random(self._rng.random())))
        for number in range(POLLS):
            self._begin(self._work_workflows(""))
            self._begin(self._work_workflows(f"{self.queue}-sticky-{number}"))
            self._begin(self._work_activities())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if not self._stopping:
                self.failures.append("a client or worker was cancelled by nobody")
        elif (error := task.exception()) is not None:
            self.failures.append(f"a client or worker failed: {error!r}")

    async def stop(self) -> None:
        """End everything."""
        self._stopping = True
        await self._cancel(self._tasks)
        await self.detach()

    async def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()

    # ---- calls

    async def _server(self) -> Client:
        while self._client is None:
            await self._attached.wait()
        return self._client

    async def _call(
        self, method: str, request: Message, answer: type[Answer], timeout_s: float = CALL_S
    ) -> Answer:
        client = await self._server()
        try:
            return await client.call(method, request, answer, timeout_s)
        except Refused as refused:
            if refused.code in ALARMING:
                self.history.alarms.append(f"{method} was answered with {refused}")
            raise

    async def _operate(
        self, operation: Operation, method: str, request: Message, answer: type[Answer], attempts_max: int
    ) -> Answer | None:
        """Do an operation, again after an indefinite end; None unless it was acknowledged."""
        while True:
            try:
                answered = await self._call(method, request, answer)
            except Refused as refused:
                self.history.end(operation, refused.outcome, str(refused))
                if refused.outcome is Outcome.FAIL or operation.attempts >= attempts_max:
                    return None
            else:
                return answered
            await asyncio.sleep(0.02)
            await self._server()
            self.history.again(operation)

    # ---- clients

    async def _talk(self, rng: random.Random) -> None:
        while not self._stopping:
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))
            await self._server()
            attempts = rng.randint(1, ATTEMPTS_MAX)
            dice = rng.random()
            if len(self._open) < 3 or dice < 0.12:
                await self._start(attempts, with_signal=rng.random() < 0.3)
                if len(self._open) > OPEN_MAX:
                    await self._end(self._open.pop(0), attempts, rng)
                continue
            workflow_id = rng.choice(self._open)
            if dice < 0.75:
                await self.signal(workflow_id, rng.choice(program.WISHES), attempts)
            elif dice < 0.9:
                await self._update(workflow_id, attempts, reject=rng.random() < 0.2)
            else:
                await self._look(workflow_id)

    def _name(self, prefix: str) -> str:
        self._numbers += 1
        return f"{prefix}-{self._numbers}"

    async def _start(self, attempts: int, *, with_signal: bool) -> None:
        name, workflow_id = self._name("start"), self._name("workflow")
        common = {
            "namespace": NAMESPACE,
            "workflow_id": workflow_id,
            "workflow_type": WorkflowType(name="chaos"),
            "task_queue": TaskQueue(name=self.queue),
            "workflow_task_timeout": program.seconds(TASK_S),
            "identity": name,
            "request_id": name,
        }
        answer: wire.StartWorkflowExecutionResponse | wire.SignalWithStartWorkflowExecutionResponse | None
        if with_signal:
            operation = self.history.invoke(name, Kind.SIGNAL_WITH_START, workflow_id)
            both = wire.SignalWithStartWorkflowExecutionRequest(**common, signal_name=program.ACTIVITY)  # type: ignore[arg-type]
            answer = await self._operate(
                operation, "SignalWithStartWorkflowExecution", both,
                wire.SignalWithStartWorkflowExecutionResponse, attempts,
            )  # fmt: skip
        else:
            operation = self.history.invoke(name, Kind.START, workflow_id)
            start = wire.StartWorkflowExecutionRequest(**common)  # type: ignore[arg-type]
            answer = await self._operate(
                operation, "StartWorkflowExecution", start, wire.StartWorkflowExecutionResponse, attempts
            )
        if answer is not None:
            operation.run_id = answer.run_id
            self.history.end(operation, Outcome.OK)
        if operation.outcome is not Outcome.FAIL:
            self._open.append(workflow_id)

    async def signal(self, workflow_id: str, wish: str, attempts: int) -> Operation:
        """Send a signal with a name of its own."""
        name = self._name("signal")
        operation = self.history.invoke(name, Kind.SIGNAL, workflow_id)
        request = wire.SignalWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=wish,
            input=program.payloads(name.encode()),
            identity=name,
            request_id=name,
        )
        if await self._operate(
            operation, "SignalWorkflowExecution", request, wire.SignalWorkflowExecutionResponse, attempts
        ):
            self.history.end(operation, Outcome.OK)
        elif operation.outcome is Outcome.FAIL and workflow_id in self._open:
            self._open.remove(workflow_id)
        return operation

    async def _update(self, workflow_id: str, attempts: int, *, reject: bool) -> None:
        name = self._name("update")
        operation = self.history.invoke(name, Kind.UPDATE, workflow_id)
        wished = program.REJECT if reject else name.encode()
        request = wire.UpdateWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            wait_policy=WaitPolicy(lifecycle_stage=Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED),
            request=Request(
                meta=Meta(update_id=name, identity=name),
                input=Input(name="chaos", args=program.payloads(wished)),
            ),
        )
        answer = await self._operate(
            operation, "UpdateWorkflowExecution", request, wire.UpdateWorkflowExecutionResponse, attempts
        )
        if answer is None:
            return
        if not answer.HasField("outcome"):
            self.history.end(operation, Outcome.INDEFINITE, "answered before it was decided")
            return
        if answer.outcome.HasField("failure"):
            if not reject:
                # a workflow that closes aborts its updates, which may have been accepted
                self.history.end(operation, Outcome.INDEFINITE, answer.outcome.failure.message)
                return
            operation.rejected = True
        elif answer.outcome.success != program.payloads(name.encode()):
            self.history.alarms.append(f"update {name} was answered with another one's outcome")
        self.history.end(operation, Outcome.OK)

    async def _end(self, workflow_id: str, attempts: int, rng: random.Random) -> None:
        if rng.random() < 0.7:
            await self.signal(workflow_id, program.CLOSE, attempts)
            return
        name = self._name("terminate")
        operation = self.history.invoke(name, Kind.TERMINATE, workflow_id)
        request = wire.TerminateWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            reason=name,
            identity=name,
        )
        if await self._operate(
            operation,
            "TerminateWorkflowExecution",
            request,
            wire.TerminateWorkflowExecutionResponse,
            attempts,
        ):
            self.history.end(operation, Outcome.OK)

    async def _look(self, workflow_id: str) -> None:
        with suppress(Refused):
            events = await read_history(await self._server(), workflow_id)
            self._saw(workflow_id, events)

    def _saw(self, workflow_id: str, events: list[HistoryEvent], run_id: str = "") -> None:
        run_id = run_id or events[0].workflow_execution_started_event_attributes.original_execution_run_id
        known = settled(events)
        self.history.saw(workflow_id, run_id, len(known), digests(known)[-1])

    # ---- workers

    async def _work_workflows(self, sticky: str) -> None:
        kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY if sticky else TaskQueueKind.TASK_QUEUE_KIND_NORMAL
        polled = TaskQueue(name=sticky or self.queue, kind=kind, normal_name=self.queue if sticky else "")
        poll = wire.PollWorkflowTaskQueueRequest(
            namespace=NAMESPACE, task_queue=polled, identity="chaos-worker"
        )
        number = 0
        while not self._stopping:
            try:
                task = await self._call(
                    "PollWorkflowTaskQueue", poll, wire.PollWorkflowTaskQueueResponse, POLL_S
                )
                if task.task_token:
                    number += 1
                    stick = f"{self.queue}-sticky-{number % POLLS}" if number % 2 else ""
                    await self._complete_task(task, stick)
            except Refused:
                await asyncio.sleep(0.02)

    async def _complete_task(self, task: wire.PollWorkflowTaskQueueResponse, stick: str) -> None:
        run = task.workflow_execution
        events = list(task.history.events)
        if not events or events[0].event_id != 1 or task.next_page_token:
            events = await read_history(await self._server(), run.workflow_id, run.run_id)
        self._saw(run.workflow_id, events, run.run_id)
        commands, messages = program.decide(events, task.messages, self.queue)
        name = self._name("task")
        operation = self.history.invoke(name, Kind.TASK, run.workflow_id, run.run_id)
        operation.optional = bool(task.messages) and not commands
        request = wire.RespondWorkflowTaskCompletedRequest(
            namespace=NAMESPACE,
            task_token=task.task_token,
            commands=commands,
            messages=messages,
            identity=name,
        )
        if stick:
            queue = TaskQueue(name=stick, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=self.queue)
            request.sticky_attributes.CopyFrom(
                StickyExecutionAttributes(
                    worker_task_queue=queue, schedule_to_start_timeout=program.seconds(TASK_S)
                )
            )
        if await self._operate(
            operation, "RespondWorkflowTaskCompleted", request, wire.RespondWorkflowTaskCompletedResponse, 2
        ):
            self.history.end(operation, Outcome.OK)

    async def _work_activities(self) -> None:
        queue = TaskQueue(name=self.queue)
        poll = wire.PollActivityTaskQueueRequest(
            namespace=NAMESPACE, task_queue=queue, identity="chaos-worker"
        )
        while not self._stopping:
            try:
                task = await self._call(
                    "PollActivityTaskQueue", poll, wire.PollActivityTaskQueueResponse, POLL_S
                )
            except Refused:
                await asyncio.sleep(0.02)
                continue
            if not task.task_token:
                continue
            name = self._name("activity")
            run = task.workflow_execution
            operation = self.history.invoke(name, Kind.ACTIVITY, run.workflow_id, run.run_id)
            request = wire.RespondActivityTaskCompletedRequest(
                namespace=NAMESPACE, task_token=task.task_token, identity=name,
                result=program.payloads(name.encode()),
            )  # fmt: skip
            if await self._operate(
                operation, "RespondActivityTaskCompleted", request,
                wire.RespondActivityTaskCompletedResponse, 2,
            ):  # fmt: skip
                self.history.end(operation, Outcome.OK)

    # ---- the end: nothing may be stuck

    async def settle(self) -> None:
        """With the server healed and the workers at work, everything begun must end, and all runs close.

        What does not is an alarm: a run that waits for nothing that will come is as lost as one that is gone.
        """
        clients, self._tasks = self._tasks[:CLIENTS], self._tasks[CLIENTS:]
        for task in clients:
            task.remove_done_callback(self._ended)
        await self._cancel(clients)
        deadline = asyncio.get_running_loop().time() + SETTLE_S_MAX
        await self._until(deadline, self._unfinished, "waits for what does not come")
        client = await self._server()
        for workflow_id, _, _ in await read_list(client, "ExecutionStatus = 'Running'"):
            await self.signal(workflow_id, program.CLOSE, ATTEMPTS_MAX)
        await self._until(deadline, self._running, "does not close")
        self._stopping = True

    async def _until(self, deadline: float, left: object, problem: str) -> None:
        assert callable(left)
        while True:
            found = await left()
            if not found:
                return
            if asyncio.get_running_loop().time() > deadline:
                self.history.alarms.extend(f"{each} {problem}" for each in found[:5])
                return
            await asyncio.sleep(0.1)

    async def _running(self) -> list[str]:
        found = await read_list(await self._server(), "ExecutionStatus = 'Running'")
        return [f"{workflow_id}: " for workflow_id, _, _ in found]

    async def _unfinished(self) -> list[str]:
        found = []
        client = await self._server()
        for workflow_id, run_id, _ in await read_list(client, "ExecutionStatus = 'Running'"):
            try:
                what = program.pending(await read_history(client, workflow_id, run_id))
            except Refused as refused:
                if refused.code is grpc.StatusCode.NOT_FOUND:
                    continue
                raise
            if what:
                found.append(f"{workflow_id}: {what}")
        return found
