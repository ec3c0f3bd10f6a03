"""Everybody outside the engine: clients, workers, other runs, operators and time, as one seed decides.

Each `step` does one random thing that could happen to one open run of a `World`. Same seed, same runs, to the
byte.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import RetryPolicy
from temporalio.api.enums.v1 import command_type_pb2, failed_cause_pb2
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.workflow.v1.message_pb2 import WorkflowExecutionOptions

from history_store.engine import activity as activities
from history_store.engine import (
    activity_admin,
    children,
    close,
    inputs,
    options,
    reset,
    updates,
    workflow_task,
)
from history_store.engine import state as st
from history_store.engine.errors import ServiceError
from history_store.engine.run import Run, Transaction
from history_store.engine.state import ActivityState
from tests.history_store.engine.world import (
    World,
    accept_message,
    admit,
    application_failure,
    cancel_external,
    complete_workflow,
    continue_as_new,
    payload,
    payloads,
    reject_message,
    response_message,
    schedule_activity,
    seconds,
    sent_request,
    signal_external,
    start_child,
    start_timer,
)

C = command_type_pb2


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
            (3, self.answer_action), (2, self.child_closes), (2, self.update), (3, self.wait),
            (1, self.terminate), (1, self.attach), (1, self.restart), (1, self.change_options),
            (1, self.start_run),
        ]  # fmt: skip
        if admin:
            self.moves += [(2, self.administer), (1, self.reset)]

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
        # What a reset admitted is not sent: the worker reads it in the history.
        admitted = [u.update_id for u in run.updates_state.values() if u.stage == updates.ADMITTED]
        sent += [sent_request(update_id) for update_id in admitted]
        answers: list[Message] = []
        wanted: list[Command] = []
        for message in sent:
            if dice.random() < 0.3:
                answers.append(reject_message(message))
                continue
            answers.append(accept_message(message))
            if dice.random() < 0.5:
                answers.append(response_message(message.protocol_instance_id))
        accepted = [u.update_id for u in run.updates_state.values() if u.stage == updates.ACCEPTED]
        answers.extend(response_message(update_id) for update_id in accepted if dice.random() < 0.3)
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
            command = Command(command_type=C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION)
            command.cancel_workflow_execution_command_attributes.SetInParent()
            return command
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
            tx.action_done(key, action)
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

    def reset(self, run: Run) -> None:
        """An operator resets the run, or an earlier one of its workflow id, to some event."""
        same = [r for r in self.world.every_run() if r.state.workflow_id == run.state.workflow_id]
        base = self.dice.choice(same)
        wanted = reset.Reset(
            self.dice.randrange(2, base.state.next_event_id + 1),
            "why",
            self.fresh("reset"),
            self.dice.choice((0, 1, 2)),
        )
        self.world.reset(base, wanted)
