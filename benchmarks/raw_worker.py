"""Plays starter and worker without an SDK: the calls of a real one, in the same order, at a tenth of the CPU.

A `Program` is the code of a workflow: it looks at a workflow task and says which commands complete it. A
`Worker` polls like an SDK does (a normal and a sticky queue, several polls at once, the next poll sent before
the answer), and a `Starter` starts workflows and waits for their end by long poll. Request bytes are made
once by protobuf and then patched: all ids have one length, so a request is a join of constant pieces.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import (
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ProtocolMessageCommandAttributes,
    ScheduleActivityTaskCommandAttributes,
    StartTimerCommandAttributes,
)
from temporalio.api.common.v1 import ActivityType, Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import (
    CommandType,
    EventType,
    HistoryEventFilterType,
    TaskQueueKind,
    UpdateWorkflowExecutionLifecycleStage,
)
from temporalio.api.protocol.v1 import Message
from temporalio.api.taskqueue.v1 import StickyExecutionAttributes, TaskQueue
from temporalio.api.update.v1 import Acceptance, Input, Meta, Outcome, Request, Response, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
    UpdateWorkflowExecutionRequest,
)

from benchmarks.raw_client import Connection, RpcError, serialize, workflow_path

NAMESPACE = "default"
IDENTITY = "holdfast-bench"
POLL_TIMEOUT = b"70S"  # what Temporal's SDKs send with a poll
LONG_TIMEOUT = b"60S"
ID_LENGTH = 36

START = workflow_path("StartWorkflowExecution")
POLL_WORKFLOW = workflow_path("PollWorkflowTaskQueue")
COMPLETE_WORKFLOW_TASK = workflow_path("RespondWorkflowTaskCompleted")
POLL_ACTIVITY = workflow_path("PollActivityTaskQueue")
COMPLETE_ACTIVITY = workflow_path("RespondActivityTaskCompleted")
HISTORY = workflow_path("GetWorkflowExecutionHistory")
SIGNAL = workflow_path("SignalWorkflowExecution")
UPDATE = workflow_path("UpdateWorkflowExecution")

ACTIVITY_DONE = EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED
TIMER_FIRED = EventType.EVENT_TYPE_TIMER_FIRED


def payloads(text: str) -> Payloads:
    """Wrap a JSON text as an SDK would."""
    return Payloads(payloads=[Payload(metadata={"encoding": b"json/plain"}, data=text.encode())])


class Ids:
    """Workflow ids and request ids of one length, in the form of a UUID; unique to a process."""

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count()

    def next(self) -> bytes:
        """Return the next id."""
        return b"%s-0000-4000-8000-%012x" % (self._prefix.encode(), next(self._numbers))


class Template:
    """Serialized bytes with holes: each placeholder is a text of the length of what will stand there."""

    def __init__(self, message: Any, *placeholders: str) -> None:
        rest = serialize(message)
        self._pieces: list[bytes] = []
        for placeholder in placeholders:
            piece, found, rest = rest.partition(placeholder.encode())
            assert found, f"{placeholder!r} is not in the message, or not in this order"
            self._pieces.append(piece)
        self._last = rest

    def fill(self, *values: bytes) -> bytes:
        """Put values into the holes."""
        out = []
        for piece, value in zip(self._pieces, values, strict=True):
            out.append(piece)
            out.append(value)
        out.append(self._last)
        return b"".join(out)


def _token_field(token: bytes) -> bytes:
    """Encode field 1, bytes: the task token of both completions."""
    size = len(token)
    head = bytes((10, size)) if size < 128 else bytes((10, size & 127 | 128, size >> 7))
    return head + token


def _commands(*commands: Command) -> bytes:
    return serialize(RespondWorkflowTaskCompletedRequest(commands=commands))


def _schedule(number: int, queue: str, *, eager: bool) -> bytes:
    attributes = ScheduleActivityTaskCommandAttributes(
        activity_id=str(number),
        activity_type=ActivityType(name="noop"),
        task_queue=TaskQueue(name=queue),
        input=payloads('"hello"'),
        schedule_to_close_timeout=Duration(seconds=120),
        start_to_close_timeout=Duration(seconds=60),
        request_eager_execution=eager,
    )
    kind = CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK
    return _commands(Command(command_type=kind, schedule_activity_task_command_attributes=attributes))


def _timer(number: int, seconds: float) -> bytes:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    attributes = StartTimerCommandAttributes(timer_id=str(number), start_to_fire_timeout=duration)
    kind = CommandType.COMMAND_TYPE_START_TIMER
    return _commands(Command(command_type=kind, start_timer_command_attributes=attributes))


def _finish() -> bytes:
    attributes = CompleteWorkflowExecutionCommandAttributes(result=payloads('"done"'))
    kind = CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION
    return _commands(Command(command_type=kind, complete_workflow_execution_command_attributes=attributes))


FINISH = _finish()


class Program(Protocol):
    """The code of a workflow."""

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:
        """Return serialized fields of RespondWorkflowTaskCompletedRequest (commands, messages)."""
        ...


class FinishAtOnce:
    """A workflow that does nothing and completes."""

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:  # noqa: ARG002 - the protocol's signature
        return FINISH


class Idle:
    """A workflow that waits for ever, accepts every signal and completes every update."""

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:
        return b"".join(map(_answer_update, task.messages)) if task.messages else b""


class ActivitiesInSequence:
    """A workflow of `count` activities, one after another; one is the standard case."""

    def __init__(self, queue: str, count: int = 1, *, eager: bool = False) -> None:
        self._schedule = [_schedule(number, queue, eager=eager) for number in range(count)]
        self._done: dict[str, int] = {}

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:
        if not task.previous_started_event_id:
            return self._schedule[0]
        if len(self._schedule) == 1:
            return FINISH
        run = task.workflow_execution.run_id
        done = self._done.get(run, 0) + 1
        if done == len(self._schedule):
            self._done.pop(run, None)
            return FINISH
        self._done[run] = done
        return self._schedule[done]


class ActivitiesAtOnce:
    """A workflow that schedules `count` activities in its first task and waits for all of them."""

    def __init__(self, queue: str, count: int, *, eager: bool = False) -> None:
        self._count = count
        self._schedule = b"".join(_schedule(number, queue, eager=eager) for number in range(count))
        self._done: dict[str, int] = {}

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:
        if not task.previous_started_event_id:
            return self._schedule
        run = task.workflow_execution.run_id
        events = task.history.events
        before = 0 if events and events[0].event_id == 1 else self._done.get(run, 0)
        done = before + sum(event.event_type == ACTIVITY_DONE for event in events)
        self._done[run] = done
        return FINISH if done >= self._count else b""


class Timers:
    """Workflows of one timer each; the length is drawn from the workflow's number."""

    def __init__(self, lengths: list[float]) -> None:
        self._start = [_timer(0, length) for length in lengths]
        self._next = itertools.count()

    def decide(self, task: PollWorkflowTaskQueueResponse) -> bytes:
        if not task.previous_started_event_id:
            return self._start[next(self._next) % len(self._start)]
        return FINISH


def _answer_update(message: Message) -> bytes:
    """Accept and complete an update in one workflow task, as a handler that never waits does."""
    request = Request()
    message.body.Unpack(request)
    accepted, answered = Message(id=f"{message.id}/accept"), Message(id=f"{message.id}/complete")
    accepted.protocol_instance_id = answered.protocol_instance_id = message.protocol_instance_id
    accepted.body.Pack(
        Acceptance(
            accepted_request_message_id=message.id,
            accepted_request_sequencing_event_id=message.event_id,
            accepted_request=request,
        )
    )
    answered.body.Pack(Response(meta=request.meta, outcome=Outcome(success=payloads('"ok"'))))
    kind = CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE
    return serialize(
        RespondWorkflowTaskCompletedRequest(
            commands=[
                Command(
                    command_type=kind,
                    protocol_message_command_attributes=ProtocolMessageCommandAttributes(message_id=each.id),
                )
                for each in (accepted, answered)
            ],
            messages=[accepted, answered],
        )
    )


@dataclass
class WorkerOptions:
    """How a worker behaves; the defaults are an SDK's."""

    workflow_polls: int = 5
    activity_polls: int = 5
    sticky: bool = True
    return_new_workflow_task: bool = True


@dataclass
class WorkerCounts:
    """What a worker did; errors are kept by their text, since a stale task is no failure."""

    workflow_tasks: int = 0
    activities: int = 0
    empty_polls: int = 0
    errors: dict[str, int] = field(default_factory=dict)


class Worker:
    """Polls workflow and activity tasks of one queue and completes them; runs until `stop`."""

    def __init__(
        self, connection: Connection, queue: str, program: Program, options: WorkerOptions | None = None
    ) -> None:
        self._connection = connection
        self._program = program
        self._options = options or WorkerOptions()
        self._tasks: list[asyncio.Task[None]] = []
        self._sticky = f"{IDENTITY}-{secrets.token_hex(8)}"
        self.counts = WorkerCounts()
        normal = TaskQueue(name=queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
        sticky = TaskQueue(name=self._sticky, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=queue)
        self._poll_normal = serialize(
            PollWorkflowTaskQueueRequest(namespace=NAMESPACE, task_queue=normal, identity=IDENTITY)
        )
        self._poll_sticky = serialize(
            PollWorkflowTaskQueueRequest(namespace=NAMESPACE, task_queue=sticky, identity=IDENTITY)
        )
        self._poll_activity = serialize(
            PollActivityTaskQueueRequest(namespace=NAMESPACE, task_queue=normal, identity=IDENTITY)
        )
        completion = RespondWorkflowTaskCompletedRequest(
            identity=IDENTITY,
            namespace=NAMESPACE,
            return_new_workflow_task=self._options.return_new_workflow_task,
        )
        if self._options.sticky:
            completion.sticky_attributes.CopyFrom(
                StickyExecutionAttributes(
                    worker_task_queue=sticky, schedule_to_start_timeout=Duration(seconds=10)
                )
            )
        self._completion = serialize(completion)
        self._activity_completion = serialize(
            RespondActivityTaskCompletedRequest(
                result=payloads('"hello"'), identity=IDENTITY, namespace=NAMESPACE
            )
        )

    def start(self) -> None:
        """Begin polling; a few polls stay on the normal queue, as many more on the sticky one."""
        options = self._options
        polls = [(POLL_WORKFLOW, self._poll_normal, self._workflow_task)] * options.workflow_polls
        if options.sticky:
            polls += [(POLL_WORKFLOW, self._poll_sticky, self._workflow_task)] * options.workflow_polls
        polls += [(POLL_ACTIVITY, self._poll_activity, self._activity_task)] * options.activity_polls
        self._tasks = [asyncio.ensure_future(self._poll(*poll)) for poll in polls]

    async def stop(self) -> None:
        """End all polls. The connection stays; the server drops a poll when its connection closes."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _poll(self, path: bytes, request: bytes, handle: Any) -> None:
        call = self._connection.call
        while True:
            try:
                answer = await call(path, request, POLL_TIMEOUT)
            except RpcError as error:
                self._count(error)
                if error.code == 14:
                    return
                await asyncio.sleep(0.05)
                continue
            if answer:
                handle(answer)
            else:
                self.counts.empty_polls += 1

    def _workflow_task(self, answer: bytes) -> None:
        task = PollWorkflowTaskQueueResponse.FromString(answer)
        if task.task_token:
            self._decide(task)
        else:
            self.counts.empty_polls += 1

    def _decide(self, task: PollWorkflowTaskQueueResponse) -> None:
        self.counts.workflow_tasks += 1
        body = _token_field(task.task_token) + self._program.decide(task) + self._completion
        self._connection.call(COMPLETE_WORKFLOW_TASK, body).add_done_callback(self._completed)

    def _completed(self, future: asyncio.Future[bytes]) -> None:
        """Go on with what the answer brings along: a next workflow task, activities to run at once."""
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._count(error)
            return
        answer = future.result()
        if answer:
            response = RespondWorkflowTaskCompletedResponse.FromString(answer)
            if response.workflow_task.task_token:
                self._decide(response.workflow_task)
            for activity in response.activity_tasks:
                self._run_activity(activity.task_token)

    def _activity_task(self, answer: bytes) -> None:
        task = PollActivityTaskQueueResponse.FromString(answer)
        if task.task_token:
            self._run_activity(task.task_token)
        else:
            self.counts.empty_polls += 1

    def _run_activity(self, token: bytes) -> None:
        self.counts.activities += 1
        body = _token_field(token) + self._activity_completion
        self._connection.call(COMPLETE_ACTIVITY, body).add_done_callback(self._activity_completed)

    def _activity_completed(self, future: asyncio.Future[bytes]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self._count(error)

    def _count(self, error: BaseException) -> None:
        self.counts.errors[str(error)] = self.counts.errors.get(str(error), 0) + 1


class Starter:
    """Starts workflows of one type on one queue, waits for their end, signals and updates them."""

    def __init__(
        self, connection: Connection, queue: str, workflow_type: str = "bench", argument: str = "null"
    ) -> None:
        self._connection = connection
        self._ids = Ids()
        hole, request, run = "w" * ID_LENGTH, "q" * ID_LENGTH, "r" * ID_LENGTH
        self._start = Template(
            StartWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_id=hole,
                workflow_type=WorkflowType(name=workflow_type),
                task_queue=TaskQueue(name=queue),
                input=payloads(argument),
                identity=IDENTITY,
                request_id=request,
            ),
            hole,
            request,
        )
        self._history = Template(
            GetWorkflowExecutionHistoryRequest(
                namespace=NAMESPACE,
                execution=WorkflowExecution(workflow_id=hole, run_id=run),
                wait_new_event=True,
                history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
                skip_archival=True,
            ),
            hole,
            run,
        )
        self._signal = Template(
            SignalWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_execution=WorkflowExecution(workflow_id=hole),
                signal_name="wake",
                input=payloads('"hello"'),
                identity=IDENTITY,
                request_id=request,
            ),
            hole,
            request,
        )
        self._update = Template(
            UpdateWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_execution=WorkflowExecution(workflow_id=hole),
                wait_policy=WaitPolicy(
                    lifecycle_stage=UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
                ),
                request=Request(
                    meta=Meta(update_id=request, identity=IDENTITY),
                    input=Input(name="set", args=payloads('"hello"')),
                ),
            ),
            hole,
            request,
        )

    def start_nowait(self) -> tuple[bytes, asyncio.Future[bytes]]:
        """Start a workflow; return its id and the future of the response."""
        workflow_id = self._ids.next()
        request = self._start.fill(workflow_id, self._ids.next())
        return workflow_id, self._connection.call(START, request)

    async def start(self) -> tuple[bytes, bytes]:
        """Start a workflow; return its id and its run's id."""
        workflow_id, future = self.start_nowait()
        run_id = StartWorkflowExecutionResponse.FromString(await future).run_id.encode()
        assert len(run_id) == ID_LENGTH, f"a run id is a UUID's text, not {run_id!r}"
        return workflow_id, run_id

    async def wait_closed(self, workflow_id: bytes, run_id: bytes) -> Any:
        """Wait for the closing event by long poll, as every SDK does for a result; return that event."""
        request = self._history.fill(workflow_id, run_id)
        token = b""
        while True:
            answer = await self._connection.call(HISTORY, request + token, LONG_TIMEOUT)
            response = GetWorkflowExecutionHistoryResponse.FromString(answer)
            if response.history.events:
                return response.history.events[-1]
            next_page = response.next_page_token
            token = serialize(GetWorkflowExecutionHistoryRequest(next_page_token=next_page))

    async def run(self) -> None:
        """Start a workflow and wait for its end."""
        await self.wait_closed(*await self.start())

    def signal(self, workflow_id: bytes) -> asyncio.Future[bytes]:
        """Signal a workflow."""
        return self._connection.call(SIGNAL, self._signal.fill(workflow_id, self._ids.next()))

    def update(self, workflow_id: bytes) -> asyncio.Future[bytes]:
        """Update a workflow and wait until the update is complete."""
        return self._connection.call(UPDATE, self._update.fill(workflow_id, self._ids.next()))

    async def history(self, workflow_id: bytes, run_id: bytes) -> list[Any]:
        """Read the whole event history."""
        events: list[Any] = []
        request = GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE,
            execution=WorkflowExecution(workflow_id=workflow_id.decode(), run_id=run_id.decode()),
        )
        while True:
            answer = await self._connection.call(HISTORY, serialize(request))
            response = GetWorkflowExecutionHistoryResponse.FromString(answer)
            events.extend(response.history.events)
            if not response.next_page_token:
                return events
            request.next_page_token = response.next_page_token


async def start_many(starter: Starter, count: int, in_flight: int = 64) -> deque[bytes]:
    """Start many workflows as fast as the server takes them; return their ids."""
    ids: deque[bytes] = deque()

    async def some() -> None:
        while len(ids) < count:
            workflow_id, future = starter.start_nowait()
            ids.append(workflow_id)
            await future

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(some())
    return ids
