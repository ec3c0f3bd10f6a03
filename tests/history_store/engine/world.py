"""The engine in a world of its own: rows in a dictionary, a clock that stands still, identifiers from a seed.

`World` is what a shard is to the engine: it opens transactions, seals them, keeps their rows, and can
forget every decoded run, as a new leader would. Below it, the commands and messages that tests send.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Payload, Payloads, RetryPolicy, SearchAttributes
from temporalio.api.enums.v1 import command_type_pb2, failed_cause_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1.message_pb2 import History, HistoryEvent
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.update.v1.message_pb2 import Acceptance, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine import activity as activities
from history_store.engine import (
    commands,
    deadlines,
    inputs,
    keys,
    reset,
    start,
    updates,
    workflow_task,
)
from history_store.engine import state as st
from history_store.engine.command_rules import BadCommand
from history_store.engine.environment import EngineLimits
from history_store.engine.run import Run, Transaction
from history_store.engine.state import Action
from history_store.shard import runs

NAMESPACE = "11111111-1111-4111-8111-111111111111"
RETENTION = 3 * 86_400 * st.SECOND
EPOCH = 1_700_000_000 * st.SECOND
C = command_type_pb2
UNHANDLED = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND


class MemoryRows:
    """Rows as `history_store.shard.rows.Rows` shows them."""

    def __init__(self) -> None:
        self.data: dict[bytes, bytes] = {}

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        return self.data.get(key)

    def scan(
        self, first: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with first <= key < end in key order."""
        found = sorted((k for k in self.data if first <= k < end), reverse=reverse)
        for key in found[: limit or None]:
            yield key, self.data[key]


class World:
    """A shard without a node: the engine's Environment, and who keeps its rows."""

    def __init__(self, seed: int = 0, limits: EngineLimits | None = None) -> None:
        self.dice = random.Random(seed)
        self.limits = limits or EngineLimits()
        self.rows: Any = MemoryRows()
        self.now = EPOCH
        self.sequence = 0
        self.runs: dict[str, Run] = {}
        self.actions: list[tuple[bytes, Action]] = []

    # ---- engine.Environment

    def new_id(self) -> str:
        """A fresh UUID."""
        text = f"{self.dice.getrandbits(128):032x}"
        return f"{text[:8]}-{text[8:12]}-7{text[13:16]}-8{text[17:20]}-{text[20:]}"

    def next_sequence(self) -> int:
        """The next number."""
        self.sequence += 1
        return self.sequence

    def load_event(self, run: Run, batch_id: int, event_id: int) -> HistoryEvent:
        """An event of the run."""
        return runs.event(self.rows, run, batch_id, event_id)

    def retention(self, namespace_id: str) -> int:
        """Retention of closed runs."""
        return RETENTION

    def check_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """Every name is known here."""

    def namespace_id_of(self, name: str) -> str | None:
        """One namespace."""
        return NAMESPACE if name == "default" else None

    def namespace_name_of(self, namespace_id: str) -> str:
        """One namespace."""
        return "default"

    # ---- what a shard does

    def find(self, workflow_id: str, run_id: str = "") -> Run | None:
        """The run, or the current one of the workflow id."""
        if not run_id:
            now = runs.current(self.rows, NAMESPACE, workflow_id)
            if now is None:
                return None
            run_id = now.run_id
        run = self.runs.get(run_id)
        if run is None:
            run = runs.load(self.rows, NAMESPACE, workflow_id, run_id, RETENTION)
            if run is not None:
                self.runs[run_id] = run
        return run

    def transact(self, change: Callable[[Transaction], Any]) -> Any:
        """One transaction; what `change` raises undoes it."""
        tx = Transaction(self, self.now)
        try:
            result = change(tx)
        except BaseException:
            self.abort(tx)
            raise
        self.commit(tx)
        return result

    def commit(self, tx: Transaction) -> None:
        """Keep the rows."""
        tx.seal()
        for key, value in tx.rows:
            if value is None:
                self.rows.data.pop(key, None)
            else:
                self.rows.data[key] = value
        self.actions.extend(tx.actions)
        for run in tx.runs:
            if run.deleted:
                self.runs.pop(run.state.run_id, None)
                continue
            self.runs[run.state.run_id] = run
            if run.updates is not None and run.updates.changed:
                run.updates.settle(run.updates.take_changed())
            run.committed()

    def abort(self, tx: Transaction) -> None:
        """Read again what the transaction spoiled."""
        for run in tx.runs:
            s = run.state
            self.runs.pop(s.run_id, None)
            fresh = runs.load(self.rows, s.namespace_id, s.workflow_id, s.run_id, RETENTION)
            if fresh is None:
                continue
            fresh.updates = run.updates
            if fresh.updates is not None:
                fresh.updates.roll_back()
            fresh.keep_speculative(run)
            self.runs[s.run_id] = fresh

    def restart(self) -> None:
        """Forget everything that is not in rows."""
        self.runs.clear()

    def every_run(self) -> list[Run]:
        """All runs, read from their rows where they are not in memory."""
        found = []
        for key, value in sorted(self.rows.data.items()):
            if key[:1] == keys.RUN:
                state = runs._core(value)
                run = self.find(state.workflow_id, state.run_id)
                assert run is not None
                found.append(run)
        return found

    def batches(self, run: Run) -> list[bytes]:
        """The run's history, a batch each."""
        prefix = keys.HISTORY + run.slot + run.raw
        return [value for _, value in self.rows.scan(prefix, keys.prefix_end(prefix))]

    def events(self, run: Run) -> list[HistoryEvent]:
        """The run's history."""
        return list(History.FromString(b"".join(self.batches(run))).events)

    def reset(self, base: Run, wanted: reset.Reset) -> Run:
        """A run goes back to an earlier event."""
        workflow_id = base.state.workflow_id
        current = self.find(workflow_id)
        run: Run = self.transact(
            lambda tx: reset.reset(
                tx, base, current, wanted, self.batches, lambda run_id: self.find(workflow_id, run_id)
            )
        )
        return run

    # ---- what tests ask for again and again

    def start(self, workflow_id: str = "wf", **fields: Any) -> Run:
        """A run of workflow type T on queue q."""
        request = wire.StartWorkflowExecutionRequest(workflow_id=workflow_id, **fields)
        request.workflow_type.name = request.workflow_type.name or "T"
        request.task_queue.name = request.task_queue.name or "q"

        def change(tx: Transaction) -> Run:
            run_id = self.new_id()
            attributes = start.attributes_of_request(self, request, run_id, tx.now)
            metadata = request.user_metadata if request.HasField("user_metadata") else None
            return start.create(
                tx, NAMESPACE, run_id, attributes, request.request_id or self.new_id(), user_metadata=metadata
            )

        run: Run = self.transact(change)
        return run

    def start_task(self, run: Run, identity: str = "worker") -> list[Message]:
        """A worker takes the workflow task. Returns the messages it carries."""
        self.transact(lambda tx: workflow_task.start(tx, tx.open(run), self.new_id(), identity))
        return updates.messages(run)

    def complete_task(self, run: Run, *wanted: Command, **fields: Any) -> Run:
        """A worker completes the started workflow task; one command that does not fit fails it."""
        request = wire.RespondWorkflowTaskCompletedRequest(commands=wanted, identity="worker", **fields)

        def change(tx: Transaction) -> commands.Completion:
            tx.open(run)
            done = commands.complete_task(tx, run, request, 3)
            for activity in done.eager:
                activities.start(tx, run, activity, self.new_id(), "worker")
            if done.new_task:
                workflow_task.start(tx, run, self.new_id(), "worker")
            return done

        try:
            self.transact(change)
        except BadCommand as bad:
            return self._bad_command(run, bad)
        return self.runs[run.state.run_id]

    def _bad_command(self, run: Run, bad: BadCommand) -> Run:
        again = self.find(run.state.workflow_id, run.state.run_id)
        assert again is not None
        task = again.state.task
        assert task is not None

        def fail(tx: Transaction) -> None:
            workflow_task.fail(tx, tx.open(again), task, bad.cause, Failure(message=bad.text), "worker")
            if bad.cause == UNHANDLED:
                again.state.task_attempt = 1

        self.transact(fail)
        return again

    def signal(self, run: Run, name: str = "s", request_id: str = "") -> None:
        """A client signals."""
        self.transact(
            lambda tx: inputs.signal(tx, tx.open(run), name, payloads(name), None, "client", request_id)
        )

    def advance(self, seconds: float) -> None:
        """Time passes, and what is due in it happens, in order."""
        end = self.now + int(seconds * st.SECOND)
        while True:
            due = [(run.next_due(), run.state.run_id, run) for run in self.every_run()]
            due = [entry for entry in due if 0 < entry[0] <= end]
            if not due:
                break
            at, _, run = min(due)
            self.now = max(self.now, at)
            self.transact(partial(self._fire, run=run))
        self.now = end

    def _fire(self, tx: Transaction, run: Run) -> None:
        deadlines.fire(tx, tx.open(run))
        if run.deleted:
            for prefix in (keys.items(run.slot, run.raw), keys.HISTORY + run.slot + run.raw):
                tx.rows.extend((key, None) for key, _ in self.rows.scan(prefix, keys.prefix_end(prefix)))


# ---- messages


def payloads(text: str) -> Payloads:
    """One JSON string."""
    return Payloads(payloads=[payload(text)])


def payload(text: str) -> Payload:
    """A JSON string."""
    return Payload(metadata={"encoding": b"json/plain"}, data=b'"' + text.encode() + b'"')


def seconds(value: float) -> Duration:
    """A duration."""
    whole = int(value)
    return Duration(seconds=whole, nanos=int((value - whole) * 1e9))


def application_failure(message: str = "no", kind: str = "E", non_retryable: bool = False) -> Failure:
    """What a worker's code raised."""
    failure = Failure(message=message)
    failure.application_failure_info.type = kind
    failure.application_failure_info.non_retryable = non_retryable
    return failure


def schedule_activity(activity_id: str, queue: str = "q", attempts: int = 0, **fields: Any) -> Command:
    """ScheduleActivityTask of type A."""
    command = Command(command_type=C.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    attributes = command.schedule_activity_task_command_attributes
    attributes.MergeFrom(type(attributes)(activity_id=activity_id, **fields))
    attributes.activity_type.name = attributes.activity_type.name or "A"
    attributes.task_queue.name = queue
    if not attributes.HasField("schedule_to_close_timeout"):
        attributes.start_to_close_timeout.CopyFrom(seconds(10))
    attributes.input.CopyFrom(payloads(activity_id))
    attributes.retry_policy.CopyFrom(RetryPolicy(maximum_attempts=attempts))
    return command


def start_timer(timer_id: str, after: float) -> Command:
    """StartTimer."""
    command = Command(command_type=C.COMMAND_TYPE_START_TIMER)
    command.start_timer_command_attributes.timer_id = timer_id
    command.start_timer_command_attributes.start_to_fire_timeout.CopyFrom(seconds(after))
    return command


def complete_workflow(result: str = "done") -> Command:
    """CompleteWorkflowExecution."""
    command = Command(command_type=C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads(result))
    return command


def start_child(workflow_id: str, policy: int = 1) -> Command:
    """StartChildWorkflowExecution of type K."""
    command = Command(command_type=C.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    attributes = command.start_child_workflow_execution_command_attributes
    attributes.workflow_id = workflow_id
    attributes.workflow_type.name = "K"
    attributes.task_queue.name = "q"
    attributes.parent_close_policy = policy  # type: ignore[assignment]
    return command


def continue_as_new() -> Command:
    """ContinueAsNewWorkflowExecution."""
    command = Command(command_type=C.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    command.continue_as_new_workflow_execution_command_attributes.workflow_type.name = "T"
    return command


def signal_external(workflow_id: str) -> Command:
    """SignalExternalWorkflowExecution."""
    command = Command(command_type=C.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
    attributes = command.signal_external_workflow_execution_command_attributes
    attributes.execution.workflow_id = workflow_id
    attributes.signal_name = "hello"
    return command


def cancel_external(workflow_id: str) -> Command:
    """RequestCancelExternalWorkflowExecution."""
    command = Command(command_type=C.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION)
    command.request_cancel_external_workflow_execution_command_attributes.workflow_id = workflow_id
    return command


def update_request(update_id: str) -> Request:
    """An update called U."""
    request = Request()
    request.meta.update_id = update_id
    request.meta.identity = "client"
    request.input.name = "U"
    return request


def admit(world: World, run: Run, update_id: str) -> None:
    """A client asks for an update."""
    world.transact(lambda tx: updates.admit(tx, tx.open(run), update_request(update_id)))


def sent_request(update_id: str) -> Message:
    """The message that a worker makes of an admitted update in its history."""
    message = Message(id=f"{update_id}/request", protocol_instance_id=update_id)
    message.body.Pack(update_request(update_id))
    return message


def accept_message(message: Message) -> Message:
    """The worker's acceptance of an update it was sent."""
    body = Acceptance(
        accepted_request_message_id=message.id, accepted_request_sequencing_event_id=message.event_id
    )
    body.accepted_request.CopyFrom(Request.FromString(message.body.value))
    answer = Message(
        id=f"{message.protocol_instance_id}/accept", protocol_instance_id=message.protocol_instance_id
    )
    answer.body.Pack(body)
    return answer


def reject_message(message: Message) -> Message:
    """The worker's rejection."""
    body = Rejection(rejected_request_message_id=message.id, failure=application_failure("rejected"))
    answer = Message(
        id=f"{message.protocol_instance_id}/reject", protocol_instance_id=message.protocol_instance_id
    )
    answer.body.Pack(body)
    return answer


def response_message(update_id: str) -> Message:
    """The worker's result of an accepted update."""
    body = Response()
    body.meta.update_id = update_id
    body.outcome.success.CopyFrom(payloads("ok"))
    answer = Message(id=f"{update_id}/complete", protocol_instance_id=update_id)
    answer.body.Pack(body)
    return answer
