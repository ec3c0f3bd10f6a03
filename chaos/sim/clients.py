"""Clients of the simulated region: what they ask, and the record of what they were answered.

Each speaks to some node until that fails it, tries again under the same request id where the outcome is not
known (as an SDK does), and takes every attempt down for the judge of linearizability. A few workflow ids are
shared by all, so that calls race.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc.status_pb2 import Status as RpcStatus
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.enums.v1.update_pb2 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.enums.v1.workflow_pb2 import WorkflowExecutionStatus, WorkflowIdReusePolicy
from temporalio.api.errordetails.v1.message_pb2 import WorkflowExecutionAlreadyStartedFailure
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.update.v1.message_pb2 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.checkers import history as record
from chaos.sim import program
from chaos.sim.calls import Channel, Refused
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from chaos.sim.record import Notes
    from chaos.sim.world import World

NAMESPACE = "default"
QUEUE = "work"
SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"
CALL_S = 4.0
BACKOFF_S = (0.05, 0.4)
PAGE = 200

# Whether it happened is not known, or it did not and may be tried again.
AGAIN = frozenset(
    (
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.RESOURCE_EXHAUSTED,
        Code.CANCELLED,
        Code.ABORTED,
        Code.UNKNOWN,
        Code.INTERNAL,
    )
)
# No honest answer to a well-formed request.
ALARMING = frozenset((Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS, Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED))

Response = TypeVar("Response", bound=Message)
_STATUS = {
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING: record.Status.RUNNING,
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_COMPLETED: record.Status.COMPLETED,
    WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_TERMINATED: record.Status.TERMINATED,
}


class Caller:
    """Somebody with a connection: makes calls, and connects anew where it broke."""

    def __init__(self, world: World, notes: Notes, rng: random.Random, label: str) -> None:
        self.world = world
        self.notes = notes
        self.rng = rng
        self.label = label
        self.channel: Channel | None = None

    async def call(
        self, method: str, request: Message, response: type[Response], timeout_s: float = CALL_S
    ) -> Response:
        """One attempt. Raises Refused."""
        channel = self.channel
        if channel is None or channel.broken:
            channel = self.channel = self.world.connect(self.rng, self.label)
        began = self.world.loop.time()
        try:
            body = await channel.call(SERVICE + method, request.SerializeToString(), timeout_s)
        except Refused as refused:
            if refused.code in ALARMING and not self.notes.excuses(method, refused):
                self.notes.trace.problem(f"{method} was answered with {refused}")
            if self.notes.healthy_since is not None and began > self.notes.healthy_since:
                self.notes.judge_healthy(method, refused, channel.host)
            raise
        return response.FromString(body)

    async def again(
        self, method: str, request: Message, response: type[Response], patience_s: float = 10.0
    ) -> Response:
        """Attempts until one is answered with yes or a definite no."""
        until = self.world.loop.time() + patience_s
        while True:
            try:
                return await self.call(method, request, response)
            except Refused as refused:
                if refused.code not in AGAIN or self.world.loop.time() > until:
                    raise
                self.move_on()
            await self.pause()

    async def pause(self) -> None:
        """Before another attempt."""
        await asyncio.sleep(self.rng.uniform(*BACKOFF_S))

    def move_on(self) -> None:
        """Perhaps another node does better."""
        if self.channel is not None and self.rng.random() < 0.5:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the connection."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    async def read_history(self, workflow_id: str, run_id: str = "") -> tuple[str, list[HistoryEvent]]:
        """All events of a run, and its id. Raises Refused."""
        events: list[HistoryEvent] = []
        request = wire.GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE,
            execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
            maximum_page_size=PAGE,
        )
        method, kind = "GetWorkflowExecutionHistory", wire.GetWorkflowExecutionHistoryResponse
        while True:
            answer = await self.call(method, request, kind)
            events.extend(answer.history.events)
            if not answer.next_page_token:
                break
            request.next_page_token = answer.next_page_token
        if not run_id:
            run_id = events[0].workflow_execution_started_event_attributes.original_execution_run_id
        self.notes.saw(run_id, events)
        return run_id, events


class Client(Caller):
    """Starts, signals, updates, reads and terminates at random."""

    def __init__(
        self,
        world: World,
        notes: Notes,
        rng: random.Random,
        label: str,
        ids: list[str],
        pause_s: float,
        *,
        updates: bool = True,
    ) -> None:
        """`updates`: whether any client of the run sends some."""
        super().__init__(world, notes, rng, label)
        self._updates = updates
        self._ids = ids
        self._pause_s = pause_s
        self._numbers = 0
        self.stopping = False

    def name(self, what: str) -> str:
        """A name nobody else uses."""
        self._numbers += 1
        return f"{what}-{self.label}-{self._numbers}"

    async def run(self) -> None:
        """Until `stopping`."""
        rng = self.rng
        while not self.stopping:
            await asyncio.sleep(rng.expovariate(1 / self._pause_s))
            workflow_id = rng.choice(self._ids)
            dice = rng.random()
            if dice < 0.22:
                await self.start(workflow_id)
            elif dice < 0.52:
                await self.signal(workflow_id, rng.choice(program.WISHES))
            elif dice < 0.58:
                await self.signal(workflow_id, program.CLOSE)
            elif dice < 0.74 and self._updates:
                await self.update(workflow_id, rng.choice((0, 1, 1, 2, 3)))
            elif dice < 0.86:
                await self.describe(workflow_id)
            elif dice < 0.96:
                await self.look(workflow_id)
            else:
                await self.terminate(workflow_id)
            if rng.random() < 0.05:
                self.hang_up()

    async def _operate(
        self,
        workflow_id: str,
        asked: record.Call,
        method: str,
        request: Message,
        response: type[Response],
        read: Callable[[Response], record.Answer | None],
        refused_as: Callable[[Refused], record.Answer | None],
    ) -> Response | None:
        """An operation; again while nobody knows what came of it, for a while. None: it was refused."""
        attempts = self.rng.randint(1, 5)
        while True:
            with self.notes.recorder.op(self.label, workflow_id, asked) as attempt:
                self._note(workflow_id, asked, "?")
                try:
                    answer = await self.call(method, request, response)
                except Refused as refused:
                    known = refused_as(refused)
                    self._note(workflow_id, asked, known or refused)
                    if known is not None:
                        attempt.answer(known)
                        return None
                    if refused.code not in AGAIN:
                        self.notes.trace.problem(f"{method} of {workflow_id} was refused with {refused}")
                        return None
                    if not refused.reached or refused.code is Code.RESOURCE_EXHAUSTED:
                        attempt.answer(record.Failed(refused.message))
                else:
                    said = read(answer)
                    self._note(workflow_id, asked, said)
                    if said is not None:
                        attempt.answer(said)
                        return answer
            attempts -= 1
            if attempts == 0 and not self.stopping:
                return None
            if attempts < -8:
                return None
            self.move_on()
            await self.pause()

    def _note(self, workflow_id: str, asked: record.Call, answered: object) -> None:
        self.notes.trace.note(f"{self.label} {workflow_id} {asked} -> {answered}")

    # ---- operations

    async def start(self, workflow_id: str) -> None:
        """StartWorkflowExecution."""
        reuse = self.rng.random() < 0.85
        request_id = self.name("start")
        policy = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
        if not reuse:
            policy = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
        request = wire.StartWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_id=workflow_id,
            workflow_type=WorkflowType(name="sim"),
            task_queue=TaskQueue(name=QUEUE),
            workflow_task_timeout=program.seconds(program.TASK_S),
            identity=self.label,
            request_id=request_id,
            workflow_id_reuse_policy=policy,
        )
        answer = await self._operate(
            workflow_id, record.Start(request_id, reuse), "StartWorkflowExecution", request,
            wire.StartWorkflowExecutionResponse, lambda found: record.Started(found.run_id), _already_started,
        )  # fmt: skip
        if answer is not None:
            self.notes.started(workflow_id, answer.run_id, request_id)

    async def signal(self, workflow_id: str, wish: str) -> None:
        """SignalWorkflowExecution."""
        name = self.name(wish)
        request = wire.SignalWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name=wish,
            identity=name,
            request_id=name,
        )
        asked = record.Signal(name, closes=wish == program.CLOSE)
        answer = await self._operate(
            workflow_id, asked, "SignalWorkflowExecution", request, wire.SignalWorkflowExecutionResponse,
            lambda _: record.Signaled(), _not_found,
        )  # fmt: skip
        self.notes.signaled(workflow_id, name, acknowledged=answer is not None)

    async def update(self, workflow_id: str, add: int) -> None:
        """UpdateWorkflowExecution, until it is completed. An `add` of 0 is one that will be rejected."""
        name = self.name("update")
        request = wire.UpdateWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            wait_policy=WaitPolicy(lifecycle_stage=Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED),
            request=Request(
                meta=Meta(update_id=name, identity=self.label),
                input=Input(name="add", args=program.payloads(str(add))),
            ),
        )
        answer = await self._operate(
            workflow_id, record.Update(name, max(add, 1)), "UpdateWorkflowExecution", request,
            wire.UpdateWorkflowExecutionResponse, self._updated, _not_updated,
        )  # fmt: skip
        if answer is not None and answer.outcome.HasField("success"):
            self.notes.updated(workflow_id, name, int(program.text_of(answer.outcome.success)))

    def _updated(self, answer: wire.UpdateWorkflowExecutionResponse) -> record.Answer | None:
        if answer.outcome.HasField("success"):
            return record.Updated(int(program.text_of(answer.outcome.success)))
        if answer.outcome.HasField("failure"):
            if answer.outcome.failure.message == program.REJECTED:
                return record.Refused(record.Reason.REJECTED)
            self.notes.trace.note(f"an update failed: {answer.outcome.failure.message}")
            return None
        accepted = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
        return record.Updated() if answer.stage == accepted else None

    async def describe(self, workflow_id: str) -> None:
        """DescribeWorkflowExecution."""
        request = wire.DescribeWorkflowExecutionRequest(
            namespace=NAMESPACE, execution=WorkflowExecution(workflow_id=workflow_id)
        )

        def read(found: wire.DescribeWorkflowExecutionResponse) -> record.Answer:
            info = found.workflow_execution_info
            return record.Described(_STATUS[info.status], info.execution.run_id, events=info.history_length)

        await self._operate(
            workflow_id, record.Describe(), "DescribeWorkflowExecution", request,
            wire.DescribeWorkflowExecutionResponse, read, _not_found,
        )  # fmt: skip

    async def look(self, workflow_id: str) -> None:
        """Read the history, and count in it."""
        with self.notes.recorder.op(self.label, workflow_id, record.Describe()) as attempt:
            try:
                run_id, events = await self.read_history(workflow_id)
            except Refused as refused:
                known = _not_found(refused)
                if known is not None:
                    attempt.answer(known)
                return
            attempt.answer(described(run_id, events, updates=self._updates))

    async def terminate(self, workflow_id: str) -> None:
        """TerminateWorkflowExecution."""
        request = wire.TerminateWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            reason="enough", identity=self.label,
        )  # fmt: skip
        await self._operate(
            workflow_id, record.Terminate(), "TerminateWorkflowExecution", request,
            wire.TerminateWorkflowExecutionResponse, lambda _: record.Terminated(), _not_found,
        )  # fmt: skip


def described(run_id: str, events: list[HistoryEvent], *, updates: bool) -> record.Described:
    """What a history shows of its run. Signals that came while a worker had a task are not in it yet.

    A task that exists for an update only has no event, so with updates no open run shows all its signals.
    """
    signals = value = 0
    task_over = True
    for event in events:
        kind = event.event_type
        if kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            signals += 1
        elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
            accepted = event.workflow_execution_update_accepted_event_attributes
            value += int(program.text_of(accepted.accepted_request.input.args))
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            task_over = True
        elif kind in (
            EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
            EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
            EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED,
        ):
            task_over = False  # or one that no event shows is under way
    status = record.Status.RUNNING
    last = events[-1].event_type
    if last == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
        status = record.Status.COMPLETED
    elif last == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
        status = record.Status.TERMINATED
    exact = (task_over and not updates) or status is not record.Status.RUNNING
    return record.Described(status, run_id, signals, value, exact=exact)


def detail(refused: Refused, kind: type[Response]) -> Response | None:
    """The typed detail of an error, if it has one of this kind."""
    if refused.details is None:
        return None
    found = kind()
    packed: list[Packed] = list(RpcStatus.FromString(refused.details).details)
    for each in packed:
        if each.Unpack(found):
            return found
    return None


def _not_found(refused: Refused) -> record.Answer | None:
    return record.Refused(record.Reason.NOT_FOUND) if refused.code is Code.NOT_FOUND else None


def _not_updated(refused: Refused) -> record.Answer | None:
    if refused.code is Code.FAILED_PRECONDITION:  # its workflow task fails again and again
        return record.Failed(refused.message)
    return _not_found(refused)


def _already_started(refused: Refused) -> record.Answer | None:
    if refused.code is not Code.ALREADY_EXISTS:
        return None
    found = detail(refused, WorkflowExecutionAlreadyStartedFailure)
    return record.AlreadyStarted(found.run_id if found is not None else "")
