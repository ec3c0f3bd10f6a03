"""The engine in a world of its own: rows in a dictionary, a clock that stands still, identifiers from a seed.

`World` is what a shard is to the engine: it opens transactions, seals them, keeps their rows, and can forget
every decoded run, as a new leader would. `Player` plays everybody outside: clients, workers, other runs, time;
each `step` does one random thing that could happen. Same seed, same run, to the byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Payload, Payloads, RetryPolicy, SearchAttributes
from temporalio.api.enums.v1 import command_type_pb2, failed_cause_pb2, workflow_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1.message_pb2 import History, HistoryEvent
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.update.v1.message_pb2 import Acceptance, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine import activity as activities
from history_store.engine import (
    activity_admin,
    children,
    close,
    commands,
    deadlines,
    inputs,
    keys,
    options,
    start,
    updates,
    workflow_task,
)
from history_store.engine import state as st
from history_store.engine.command_rules import BadCommand
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import ServiceError
from history_store.engine.run import Run, Transaction
from history_store.engine.state import Action, ActivityState
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
        """A worker completes the started workflow task; a command that does not fit fails it. Returns the run."""
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
            self.transact(lambda tx, run=run: self._fire(tx, run))
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


# ---- everybody outside


class Player:
    """One random thing after another."""

    def __init__(self, world: World, dice: random.Random, admin: bool = False) -> None:
        self.world = world
        self.dice = dice
        self.count = 0
        self.sent: dict[str, list[Message]] = {}  # run id -> messages of its started workflow task
        self.log: list[str] = []
        self.moves: list[tuple[int, Callable[[Run], None]]] = [
            (6, self.take_task), (9, self.complete), (1, self.fail_task), (3, self.signal), (1, self.cancel),
            (3, self.start_activity), (4, self.end_activity), (1, self.heartbeat), (1, self.unstart),
            (3, self.answer_action), (2, self.child_closes), (2, self.update), (3, self.wait), (1, self.terminate),
            (1, self.attach), (1, self.restart), (1, self.change_options), (1, self.start_run),
        ]  # fmt: skip
        if admin:
            self.moves.append((2, self.administer))

    def fresh(self, prefix: str) -> str:
        """A name not used before."""
        self.count += 1
        return f"{prefix}{self.count}"

    def start_run(self, _run: Run | None = None) -> None:
        """A client starts a workflow."""
        dice = self.dice
        fields: dict[str, Any] = {"request_id": self.fresh("start")}
        if dice.random() < 0.2:
            fields["workflow_run_timeout"] = seconds(dice.choice((5, 60)))
        if dice.random() < 0.2:
            fields["workflow_execution_timeout"] = seconds(dice.choice((20, 300)))
        if dice.random() < 0.3:
            fields["retry_policy"] = RetryPolicy(maximum_attempts=3)
        elif dice.random() < 0.1:
            fields["cron_schedule"] = "* * * * *"
        if dice.random() < 0.1 and "cron_schedule" not in fields:
            fields["workflow_start_delay"] = seconds(3)
        if dice.random() < 0.3:
            fields["user_metadata"] = {"summary": payload("summary")}
        if dice.random() < 0.3:
            fields["memo"] = {"fields": {"m": payload("memo")}}
        self.world.start(self.fresh("wf"), **fields)

    def step(self) -> None:
        """One thing happens to one run."""
        open_runs = [run for run in self.world.every_run() if run.running]
        if not open_runs:
            self.start_run()
            return
        run = self.dice.choice(open_runs)
        move = self.dice.choices([m for _, m in self.moves], [w for w, _ in self.moves])[0]
        self.log.append(f"{self.world.now} {move.__name__} {run.state.workflow_id} {run.state.run_id}")
        try:
            move(run)
        except ServiceError as error:
            self.log.append(f"    refused: {error.message}")

    # ---- workers

    def take_task(self, run: Run) -> None:
        """A worker polls."""
        if run.task is not None and not run.task_started:
            self.sent[run.state.run_id] = self.world.start_task(run)

    def complete(self, run: Run) -> None:
        """A worker answers."""
        if not run.task_started:
            return
        dice = self.dice
        sent = self.sent.pop(run.state.run_id, [])
        answers: list[Message] = []
        wanted: list[Command] = []
        for message in sent:
            if dice.random() < 0.3:
                answers.append(reject_message(message))
                continue
            answers.append(accept_message(message))
            if dice.random() < 0.5:
                answers.append(response_message(message.protocol_instance_id))
        for known in list(run.updates_state.values()):
            if known.stage == updates.ACCEPTED and dice.random() < 0.3:
                answers.append(response_message(known.update_id))
        only_rejections = bool(answers) and all(m.id.endswith("/reject") for m in answers)
        if not only_rejections or dice.random() < 0.3:
            wanted = [command for command in (self.command(run) for _ in range(dice.randrange(4))) if command]
            if dice.random() < 0.07:
                wanted.append(self.closing())
        fields: dict[str, Any] = {"messages": answers, "return_new_workflow_task": dice.random() < 0.3}
        fields["force_create_new_workflow_task"] = dice.random() < 0.05
        if dice.random() < 0.3:
            fields["binary_checksum"] = dice.choice("abc")
        if dice.random() < 0.5:
            fields["sticky_attributes"] = {
                "worker_task_queue": {"name": "sticky"}, "schedule_to_start_timeout": seconds(5),
            }  # fmt: skip
        run = self.world.complete_task(run, *wanted, **fields)
        if run.running and run.task_started:
            self.sent[run.state.run_id] = updates.messages(run)

    def closing(self) -> Command:
        """One of the commands that end a run."""
        kind = self.dice.randrange(4)
        if kind == 0:
            return complete_workflow()
        if kind == 1:
            command = Command(command_type=C.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
            command.fail_workflow_execution_command_attributes.failure.CopyFrom(application_failure())
            return command
        if kind == 2:
            return Command(command_type=C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION,
                           cancel_workflow_execution_command_attributes={})  # fmt: skip
        return continue_as_new()

    def command(self, run: Run) -> Command | None:
        """Any other command that fits, and at times one that does not."""
        dice = self.dice
        kind = dice.randrange(12)
        if kind <= 2:
            fields: dict[str, Any] = {"request_eager_execution": dice.random() < 0.3}
            if dice.random() < 0.3:
                fields["heartbeat_timeout"] = seconds(2)
            if dice.random() < 0.3:
                fields["schedule_to_start_timeout"] = seconds(4)
            if dice.random() < 0.3:
                fields["schedule_to_close_timeout"] = seconds(30)
            return schedule_activity(self.fresh("a"), attempts=dice.choice((0, 1, 3)), **fields)
        if kind == 3 and run.activities:
            command = Command(command_type=C.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
            wanted = dice.choice(sorted(run.activities))
            command.request_cancel_activity_task_command_attributes.scheduled_event_id = wanted
            return command
        if kind <= 5:
            return start_timer(self.fresh("t"), dice.choice((1, 3, 10)))
        if kind == 6 and run.timers:
            command = Command(command_type=C.COMMAND_TYPE_CANCEL_TIMER)
            command.cancel_timer_command_attributes.timer_id = dice.choice(sorted(run.timers))
            return command
        if kind == 7:
            return start_child(self.fresh("child"), dice.choice((1, 2, 3)))
        if kind == 8:
            return dice.choice((signal_external, cancel_external))(self.fresh("other"))
        return self.attribute_command(kind)

    def attribute_command(self, kind: int) -> Command | None:
        """Markers, search attributes, memo."""
        if kind == 9:
            command = Command(command_type=C.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
            fields = (
                command.upsert_workflow_search_attributes_command_attributes.search_attributes.indexed_fields
            )
            fields[self.dice.choice("xyz")].CopyFrom(payload(self.fresh("v")))
            return command
        if kind == 10:
            command = Command(command_type=C.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES)
            fields = command.modify_workflow_properties_command_attributes.upserted_memo.fields
            fields[self.dice.choice("mno")].CopyFrom(payload(self.fresh("v")))
            return command
        command = Command(command_type=C.COMMAND_TYPE_RECORD_MARKER)
        command.record_marker_command_attributes.marker_name = "Version"
        return command

    def fail_task(self, run: Run) -> None:
        """A worker cannot go on."""
        task = run.task
        if task is None or not task.started_id:
            return
        self.sent.pop(run.state.run_id, None)
        cause = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE

        def change(tx: Transaction) -> None:
            tx.open(run)
            if run.updates is not None:
                run.updates.unsend()
            workflow_task.fail(tx, run, task, cause, application_failure(), "worker")

        self.world.transact(change)

    def _activity(self, run: Run, started: bool) -> ActivityState | None:
        found = [a for _, a in sorted(run.activities.items()) if bool(a.started_id) == started]
        return self.dice.choice(found) if found else None

    def start_activity(self, run: Run) -> None:
        """A worker takes an activity."""
        activity = self._activity(run, False)
        if activity is not None and not activity.backoff_until and not activity.paused:
            self.world.transact(
                lambda tx: activities.start(tx, tx.open(run), activity, self.fresh("r"), "worker")
            )

    def end_activity(self, run: Run) -> None:
        """A worker answers."""
        activity = self._activity(run, True)
        if activity is None:
            return
        kind = self.dice.randrange(4)
        failure = application_failure(non_retryable=self.dice.random() < 0.2)

        def change(tx: Transaction) -> None:
            tx.open(run)
            if activity.cancel_requested and kind < 2:
                activities.cancel(tx, run, activity, None, "worker")
            elif kind == 0:
                activities.fail(tx, run, activity, failure, "worker", None)
            elif kind == 1:
                activities.fail(tx, run, activity, failure, "worker", payloads("so far"))
            else:
                activities.complete(tx, run, activity, payloads("result"), "worker")

        self.world.transact(change)

    def heartbeat(self, run: Run) -> None:
        """An activity is alive."""
        activity = self._activity(run, True)
        if activity is not None:
            self.world.transact(
                lambda tx: activities.heartbeat(tx, tx.open(run), activity, payloads("so far"))
            )

    def unstart(self, run: Run) -> None:
        """A started activity never reached its worker."""
        activity = self._activity(run, True)
        if activity is not None:
            self.world.transact(lambda tx: activities.unstart(tx.open(run), activity))

    # ---- clients and other runs

    def signal(self, run: Run) -> None:
        """A client signals, at times twice."""
        self.world.signal(run, "s", self.dice.choice(("", self.fresh("sig"), "same")))

    def cancel(self, run: Run) -> None:
        """A client asks for cancellation."""
        self.world.transact(
            lambda tx: inputs.request_cancel(tx, tx.open(run), "client", self.fresh("c"), "why")
        )

    def terminate(self, run: Run) -> None:
        """A client terminates, now and then."""
        if self.dice.random() < 0.2:
            self.world.transact(lambda tx: close.terminate(tx, tx.open(run), "why", None, "client"))

    def update(self, run: Run) -> None:
        """A client asks for an update."""
        admit(self.world, run, self.fresh("u"))

    def attach(self, run: Run) -> None:
        """A start request finds the run open."""
        self.world.transact(
            lambda tx: options.attach(tx, tx.open(run), "client", self.fresh("attach"), [], [])
        )

    def change_options(self, run: Run) -> None:
        """An operator changes the priority."""
        from temporalio.api.workflow.v1.message_pb2 import WorkflowExecutionOptions

        wanted = WorkflowExecutionOptions()
        wanted.priority.priority_key = self.dice.randrange(1, 6)
        paths = [self.dice.choice(("priority", "priority.priority_key", "priority.fairness_key"))]
        self.world.transact(lambda tx: options.update(tx, tx.open(run), wanted, paths, "operator"))

    def answer_action(self, _run: Run) -> None:
        """Another run answers what was asked of it."""
        if not self.world.actions:
            return
        key, action = self.world.actions.pop(self.dice.randrange(len(self.world.actions)))
        run = self.world.find(action.workflow_id, action.run_id)
        refused = self.dice.random() < 0.3

        def change(tx: Transaction) -> None:
            tx.action_done(key)
            if run is None or not run.running:
                return
            if action.kind == "start_child":
                child = run.children.get(action.event_id)
                if child is not None and refused:
                    children.child_start_failed(tx, tx.open(run), child, 1)
                elif child is not None:
                    children.child_started(tx, tx.open(run), child, self.world.new_id())
            elif action.kind in ("signal", "cancel"):
                pending = run.external.get(action.event_id)
                if pending is not None:
                    children.external_done(tx, tx.open(run), pending, 1 if refused else 0)

        self.world.transact(change)

    def child_closes(self, run: Run) -> None:
        """A child ends."""
        found = [child for _, child in sorted(run.children.items()) if child.started_id]
        if not found:
            return
        child = self.dice.choice(found)
        status = self.dice.choice((st.COMPLETED, st.FAILED, st.CANCELED, st.TERMINATED, st.TIMED_OUT))
        self.world.transact(
            lambda tx: children.child_closed(tx, tx.open(run), child, status, b"", child.run_id)
        )

    # ---- time, leaders, operators

    def wait(self, _run: Run) -> None:
        """Time passes."""
        self.world.advance(self.dice.choice((0.1, 1, 1, 5, 12)))

    def restart(self, _run: Run) -> None:
        """A new leader reads everything from its rows; workers' messages are lost."""
        self.world.restart()
        for found in self.world.every_run():
            if found.running and found.task is None:
                self.sent.pop(found.state.run_id, None)

    def administer(self, run: Run) -> None:
        """An operator pauses, unpauses or resets an activity."""
        found = [a for _, a in sorted(run.activities.items())]
        if not found:
            return
        activity, kind = self.dice.choice(found), self.dice.randrange(4)

        def change(tx: Transaction) -> None:
            tx.open(run)
            if kind == 0:
                activity_admin.pause(tx, run, activity, "operator", "why", self.fresh("p"))
            elif kind == 1:
                activity_admin.unpause(tx, run, activity, jitter=self.dice.choice((0, st.SECOND)))
            elif kind == 2:
                activity_admin.reset(tx, run, activity, keep_paused=self.dice.random() < 0.5)
            else:
                activity_admin.restore_options(tx, run, activity)

        self.world.transact(change)


def reason_of(value: int) -> str:
    """The name of a parent-close policy (for messages)."""
    return workflow_pb2.ParentClosePolicy.Name(value)  # type: ignore[arg-type]
