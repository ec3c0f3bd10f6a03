"""What a worker decided: the commands of a completed workflow task, in order, as events.

A command that does not fit raises `BadCommand`: everything the task did is void and the task fails with that
cause instead (the caller reads the run anew and fails the task). A command that closes the run while events
wait in the buffer is not obeyed: the worker has to see them first (UNHANDLED_COMMAND).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1.message_pb2 import Memo, SearchAttributes
from temporalio.api.enums.v1 import command_type_pb2, event_type_pb2, failed_cause_pb2
from temporalio.api.history.v1 import message_pb2 as history
from temporalio.api.workflow.v1.message_pb2 import ResetPoints

from history_store.engine import activity, children, close, command_rules, keys, updates, workflow_task
from history_store.engine.command_rules import BadCommand
from history_store.engine.durations import to_ns
from history_store.engine.state import (
    EXTERNAL_CANCEL,
    EXTERNAL_SIGNAL,
    WFT_NORMAL,
    WFT_SPECULATIVE,
    ActivityState,
    TimerState,
)

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp
    from temporalio.api.command.v1.message_pb2 import Command
    from temporalio.api.protocol.v1.message_pb2 import Message

    from history_store.engine.environment import EngineLimits
    from history_store.engine.run import Run, Transaction

E = event_type_pb2
C = command_type_pb2
F = failed_cause_pb2

CLOSING = frozenset(
    (
        C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
        C.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION,
        C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION,
        C.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION,
    )
)


class Batch:
    """One completion under way."""

    __slots__ = ("can_eager", "completed_id", "eager", "identity", "messages", "new_task", "run", "tx")

    def __init__(
        self, tx: Transaction, run: Run, completed_id: int, messages: list[Message], can_eager: int
    ) -> None:
        self.tx = tx
        self.run = run
        self.completed_id = completed_id
        self.messages = {m.id: m for m in messages}
        self.can_eager = can_eager  # how many activities may go back with the answer
        self.eager: list[ActivityState] = []
        self.identity = ""  # the worker's
        self.new_task = False  # something happened that the worker must see in a new task

    def take_message(self, message_id: str) -> Message:
        """The protocol message that a command refers to."""
        message = self.messages.pop(message_id, None)
        if message is None:
            raise BadCommand(
                F.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE,
                f"ProtocolMessageCommand referenced absent message ID {message_id}",
            )
        return message


def obey(batch: Batch, commands: list[Command]) -> None:
    """Do what the commands say. BadCommand where one does not fit."""
    run = batch.run
    for command in commands:
        handler = HANDLERS.get(command.command_type)
        if handler is None:
            raise BadCommand(
                F.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
                f"Unknown command type: {command.command_type}",
            )
        if not run.running:
            break  # a command after the closing one has no effect
        if command.command_type in CLOSING and run.buffered:
            raise BadCommand(F.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND, "UnhandledCommand")
        handler(batch, command)
    for message in list(batch.messages.values()):
        # A run that has closed takes no more events: its updates are over. A rejection is still an answer.
        if run.running or updates.only_rejections([message]):
            protocol(batch, message)
    batch.messages.clear()


def protocol(batch: Batch, message: Message) -> None:
    """One update message."""
    try:
        updates.handle(batch.run, message)
    except updates.BadMessage as error:
        raise BadCommand(
            F.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE, str(error)
        ) from error


def _schedule_activity(batch: Batch, command: Command) -> None:
    run, tx = batch.run, batch.tx
    attributes = command.schedule_activity_task_command_attributes
    command_rules.check_schedule_activity(
        attributes, tx.env.limits, run.state.run_timeout, run.state.task_queue
    )
    if attributes.activity_id in run.activity_ids:
        raise BadCommand(
            F.WORKFLOW_TASK_FAILED_CAUSE_SCHEDULE_ACTIVITY_DUPLICATE_ID,
            f"ActivityId {attributes.activity_id} is in use",
        )
    _limit(
        len(run.activities),
        tx.env.limits.pending_activities_max,
        F.WORKFLOW_TASK_FAILED_CAUSE_PENDING_ACTIVITIES_LIMIT_EXCEEDED,
        "the number of pending activities, %d, has reached the per-workflow limit of %d",
    )
    eager = (
        attributes.request_eager_execution
        and len(batch.eager) < batch.can_eager
        and (not attributes.task_queue.name or attributes.task_queue.name == run.state.task_queue)
    )
    pending = activity.schedule(tx, run, command, batch.completed_id, eager)
    if eager:
        batch.eager.append(pending)


def _limit(count: int, limit: int, cause: int, message: str) -> None:
    if limit and count >= limit:
        raise BadCommand(cause, message % (count, limit))


def _cancel_activity(batch: Batch, command: Command) -> None:
    attributes = command.request_cancel_activity_task_command_attributes
    command_rules.check_request_cancel_activity(attributes)
    scheduled_id = attributes.scheduled_event_id
    if activity.request_cancel(batch.run, scheduled_id, batch.completed_id, batch.identity):
        batch.new_task = batch.new_task or scheduled_id not in batch.run.activities
    else:
        # The activity may have ended while the task was under way: then its end waits in the buffer.
        if not batch.run.ends_buffered(scheduled_id):
            raise BadCommand(
                F.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES,
                f"no activity was scheduled by event {attributes.scheduled_event_id}",
            )
        batch.run.event(
            E.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED,
            activity_task_cancel_requested_event_attributes=history.ActivityTaskCancelRequestedEventAttributes(
                scheduled_event_id=attributes.scheduled_event_id,
                workflow_task_completed_event_id=batch.completed_id,
            ),
        )


def _start_timer(batch: Batch, command: Command) -> None:
    run = batch.run
    attributes = command.start_timer_command_attributes
    command_rules.check_start_timer(attributes, batch.tx.env.limits)
    if attributes.timer_id in run.timers:
        raise BadCommand(
            F.WORKFLOW_TASK_FAILED_CAUSE_START_TIMER_DUPLICATE_ID,
            f"TimerId {attributes.timer_id} is in use",
        )
    event = run.event(
        E.EVENT_TYPE_TIMER_STARTED,
        timer_started_event_attributes=history.TimerStartedEventAttributes(
            timer_id=attributes.timer_id,
            start_to_fire_timeout=attributes.start_to_fire_timeout,
            workflow_task_completed_event_id=batch.completed_id,
        ),
    )
    _metadata(event, command)
    run.put_timer(
        TimerState(
            attributes.timer_id, event.event_id, batch.tx.now + to_ns(attributes.start_to_fire_timeout)
        )
    )


def _cancel_timer(batch: Batch, command: Command) -> None:
    run = batch.run
    timer_id = command.cancel_timer_command_attributes.timer_id
    command_rules.check_cancel_timer(command.cancel_timer_command_attributes, batch.tx.env.limits)
    timer = run.timers.get(timer_id)
    if timer is not None:
        started_id = timer.started_id
        run.drop_timer(timer)
    else:
        started_id = _unfire(run, timer_id)
        if not started_id:
            raise BadCommand(
                F.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_TIMER_ATTRIBUTES,
                f"no pending timer with TimerId {timer_id}",
            )
    run.event(
        E.EVENT_TYPE_TIMER_CANCELED,
        timer_canceled_event_attributes=history.TimerCanceledEventAttributes(
            timer_id=timer_id,
            started_event_id=started_id,
            workflow_task_completed_event_id=batch.completed_id,
        ),
    )


def _unfire(run: Run, timer_id: str) -> int:
    """Take a timer that fired while the task was under way out of the buffer: cancelled before it was seen.

    Returns the id of its started event, or 0 if no such timer is there.
    """
    for index, event in enumerate(run.buffered):
        if (
            event.event_type == E.EVENT_TYPE_TIMER_FIRED
            and event.timer_fired_event_attributes.timer_id == timer_id
        ):
            started_id: int = event.timer_fired_event_attributes.started_event_id
            del run.buffered[index]
            run.state.buffered_count -= 1
            for row in range(run.buffered_rows):
                run.dirty[keys.ITEM_BUFFERED + keys.number(row)] = None
            run.buffered_rows = 0
            return started_id
    return 0


def _metadata(event: history.HistoryEvent, command: Command) -> None:
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _complete(batch: Batch, command: Command) -> None:
    attributes = command.complete_workflow_execution_command_attributes
    command_rules.check_complete_workflow(attributes, batch.tx.env.limits)
    close.complete(batch.tx, batch.run, _optional(attributes, "result"), batch.completed_id)


def _fail(batch: Batch, command: Command) -> None:
    attributes = command.fail_workflow_execution_command_attributes
    command_rules.check_fail_workflow(attributes, batch.tx.env.limits)
    close.fail(batch.tx, batch.run, attributes.failure, batch.completed_id)


def _cancel(batch: Batch, command: Command) -> None:
    attributes = command.cancel_workflow_execution_command_attributes
    command_rules.check_cancel_workflow(attributes, batch.tx.env.limits)
    close.cancel(batch.tx, batch.run, _optional(attributes, "details"), batch.completed_id)


def _continue_as_new(batch: Batch, command: Command) -> None:
    attributes = command.continue_as_new_workflow_execution_command_attributes
    command_rules.check_continue_as_new(
        attributes, batch.tx.env.limits, batch.run.state.workflow_type, batch.run.state.task_queue
    )
    batch.tx.env.check_search_attributes(batch.run.state.namespace_id, attributes.search_attributes)
    close.continue_as_new(batch.tx, batch.run, attributes, batch.completed_id)


def _marker(batch: Batch, command: Command) -> None:
    attributes = command.record_marker_command_attributes
    command_rules.check_record_marker(attributes, batch.tx.env.limits)
    recorded = history.MarkerRecordedEventAttributes(
        marker_name=attributes.marker_name, workflow_task_completed_event_id=batch.completed_id
    )
    for name, payloads in attributes.details.items():
        recorded.details[name].CopyFrom(payloads)
    if attributes.HasField("header"):
        recorded.header.CopyFrom(attributes.header)
    if attributes.HasField("failure"):
        recorded.failure.CopyFrom(attributes.failure)
    event = batch.run.event(E.EVENT_TYPE_MARKER_RECORDED, marker_recorded_event_attributes=recorded)
    _metadata(event, command)


def _start_child(batch: Batch, command: Command) -> None:
    run, tx = batch.run, batch.tx
    attributes = command.start_child_workflow_execution_command_attributes
    command_rules.check_start_child(attributes, tx.env.limits, run.state.task_queue)
    _limit(
        len(run.children),
        tx.env.limits.pending_children_max,
        F.WORKFLOW_TASK_FAILED_CAUSE_PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED,
        "the number of pending child workflow executions, %d, has reached the per-workflow limit of %d",
    )
    children.initiate(tx, run, command, batch.completed_id)


def _signal_external(batch: Batch, command: Command) -> None:
    run, tx = batch.run, batch.tx
    attributes = command.signal_external_workflow_execution_command_attributes
    command_rules.check_signal_external(attributes, tx.env.limits)
    pending = sum(1 for e in run.external.values() if e.kind == EXTERNAL_SIGNAL)
    _limit(
        pending,
        tx.env.limits.pending_signals_max,
        F.WORKFLOW_TASK_FAILED_CAUSE_PENDING_SIGNALS_LIMIT_EXCEEDED,
        "the number of pending signals to external workflows, %d, has reached the per-workflow limit of %d",
    )
    children.signal_external(tx, run, command, batch.completed_id)


def _cancel_external(batch: Batch, command: Command) -> None:
    run, tx = batch.run, batch.tx
    attributes = command.request_cancel_external_workflow_execution_command_attributes
    command_rules.check_request_cancel_external(attributes, tx.env.limits)
    pending = sum(1 for e in run.external.values() if e.kind == EXTERNAL_CANCEL)
    _limit(
        pending,
        tx.env.limits.pending_cancels_max,
        F.WORKFLOW_TASK_FAILED_CAUSE_PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED,
        "the number of pending requests to cancel external workflows, %d, "
        "has reached the per-workflow limit of %d",
    )
    children.cancel_external(tx, run, command, batch.completed_id)


def _upsert_search_attributes(batch: Batch, command: Command) -> None:
    run = batch.run
    wanted = command.upsert_workflow_search_attributes_command_attributes
    command_rules.check_upsert_search_attributes(wanted, batch.tx.env.limits)
    batch.tx.env.check_search_attributes(run.state.namespace_id, wanted.search_attributes)
    run.event(
        E.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
        upsert_workflow_search_attributes_event_attributes=history.UpsertWorkflowSearchAttributesEventAttributes(
            workflow_task_completed_event_id=batch.completed_id, search_attributes=wanted.search_attributes
        ),
    )
    merge_search_attributes(run, wanted.search_attributes, batch.tx.env.limits)


def merge_search_attributes(run: Run, changed: SearchAttributes, limits: EngineLimits | None = None) -> None:
    """Values replace values; an empty or null one removes the attribute."""
    merged = SearchAttributes.FromString(run.state.search_attributes)
    for name, payload in changed.indexed_fields.items():
        if payload.data in (b"", b"null", b"[]"):
            merged.indexed_fields.pop(name, None)
        else:
            merged.indexed_fields[name].CopyFrom(payload)
    if limits is not None:
        command_rules.check_merged_search_attributes(merged, limits)
    run.state.search_attributes = merged.SerializeToString()
    run.visible = True


def _modify_properties(batch: Batch, command: Command) -> None:
    run = batch.run
    wanted = command.modify_workflow_properties_command_attributes
    command_rules.check_modify_properties(wanted, batch.tx.env.limits)
    run.event(
        E.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED,
        workflow_properties_modified_event_attributes=history.WorkflowPropertiesModifiedEventAttributes(
            workflow_task_completed_event_id=batch.completed_id, upserted_memo=wanted.upserted_memo
        ),
    )
    merge_memo(run, wanted.upserted_memo, batch.tx.env.limits)


def merge_memo(run: Run, changed: Memo, limits: EngineLimits | None = None) -> None:
    """Values replace values; a null one removes the key."""
    merged = Memo.FromString(run.state.memo)
    for name, payload in changed.fields.items():
        if payload.data in (b"", b"null") and payload.metadata.get("encoding") in (
            b"binary/null",
            b"json/plain",
        ):
            merged.fields.pop(name, None)
        else:
            merged.fields[name].CopyFrom(payload)
    data = merged.SerializeToString()
    if limits is not None:
        command_rules.check_merged_memo(len(data), limits)
    run.state.memo = data
    run.visible = True


def _protocol_message(batch: Batch, command: Command) -> None:
    command_rules.check_protocol_message(command.protocol_message_command_attributes)
    protocol(batch, batch.take_message(command.protocol_message_command_attributes.message_id))


def _no_nexus(_batch: Batch, _command: Command) -> None:
    raise BadCommand(
        F.WORKFLOW_TASK_FAILED_CAUSE_FEATURE_DISABLED, "Nexus operations are not part of this release"
    )


HANDLERS: dict[int, Callable[[Batch, Command], None]] = {
    C.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK: _schedule_activity,
    C.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK: _cancel_activity,
    C.COMMAND_TYPE_START_TIMER: _start_timer,
    C.COMMAND_TYPE_CANCEL_TIMER: _cancel_timer,
    C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION: _complete,
    C.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION: _fail,
    C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION: _cancel,
    C.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION: _continue_as_new,
    C.COMMAND_TYPE_RECORD_MARKER: _marker,
    C.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION: _start_child,
    C.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION: _signal_external,
    C.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION: _cancel_external,
    C.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: _upsert_search_attributes,
    C.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES: _modify_properties,
    C.COMMAND_TYPE_PROTOCOL_MESSAGE: _protocol_message,
    C.COMMAND_TYPE_SCHEDULE_NEXUS_OPERATION: _no_nexus,
    C.COMMAND_TYPE_REQUEST_CANCEL_NEXUS_OPERATION: _no_nexus,
}


class Completion:
    """What became of a completed workflow task."""

    __slots__ = ("dropped", "eager", "new_task", "reset_event_id")

    def __init__(self) -> None:
        self.eager: list[ActivityState] = []
        self.new_task = False  # a new one was scheduled and (bypassing matching) is the caller's to start
        self.dropped = False  # a speculative task without a trace
        self.reset_event_id = 0


def complete_task(tx: Transaction, run: Run, request: Any, can_eager: int) -> Completion:
    """RespondWorkflowTaskCompleted. BadCommand where a command or message does not fit."""
    state = run.state
    task = state.task
    assert task is not None
    assert task.started_id
    done = Completion()
    messages = list(request.messages)
    if _may_drop(run, task, request, messages):
        workflow_task.clear(run)
        batch = Batch(tx, run, 0, messages, 0)
        obey(batch, [])
        updates.reject_unprocessed(run, task.stamp)
        _sticky(run, request)
        done.dropped = True
        done.reset_event_id = state.last_started_id
    else:
        event = workflow_task.complete(run, task, request)
        _sticky(run, request)
        reset_point(
            run,
            request.binary_checksum,
            event.workflow_task_completed_event_attributes.worker_version.build_id,
            event.event_id,
            tx.time,
            tx.env.limits.reset_points_max,
        )
        batch = Batch(tx, run, event.event_id, messages, can_eager)
        batch.identity = request.identity
        obey(batch, list(request.commands))
        updates.reject_unprocessed(run, task.stamp)
        # What a later command cancelled, or the run's end, does not go back with the answer.
        done.eager = [pending for pending in batch.eager if pending.scheduled_id in run.activities]
    if run.running and state.task is None:
        return_new = bool(request.return_new_workflow_task)
        original = task.original_scheduled_time if request.force_create_new_workflow_task else 0
        if request.force_create_new_workflow_task or run.buffered or batch.new_task:
            workflow_task.schedule(tx, run, original_time=original, bypass_matching=return_new)
            done.new_task = return_new
        elif run.updates is not None and run.updates.has_unsent():
            kind = WFT_SPECULATIVE if return_new else WFT_NORMAL
            workflow_task.schedule(tx, run, kind, bypass_matching=return_new)
            done.new_task = return_new
    elif state.task is not None and state.task.started_id == 0 and request.return_new_workflow_task:
        # Scheduled on the way (a cancelled activity, say): it goes back with the answer as well.
        _take_back(run)
        done.new_task = True
    return done


def _take_back(run: Run) -> None:
    """A task offered to matching in this same transaction goes to the caller instead."""
    task = run.state.task
    assert task is not None
    run.withdraw_workflow_task(task)
    run.offers = [offer for offer in run.offers if offer.kind != workflow_task.WORKFLOW_QUEUE]


def _may_drop(run: Run, task: Any, request: Any, messages: list[Message]) -> bool:
    """A speculative task whose updates were all rejected leaves no events."""
    if task.kind != WFT_SPECULATIVE or request.commands or request.force_create_new_workflow_task:
        return False
    shown = run.state.next_event_id - (run.state.last_started_id + 2)
    if request.capabilities.discard_speculative_workflow_task_with_events:
        if shown > 10:
            return False
    elif shown > 0:
        return False
    return updates.only_rejections(messages)


def _sticky(run: Run, request: Any) -> None:
    if request.HasField("sticky_attributes") and request.sticky_attributes.worker_task_queue.name:
        run.state.sticky_queue = request.sticky_attributes.worker_task_queue.name
        run.state.sticky_timeout = to_ns(request.sticky_attributes.schedule_to_start_timeout)
    else:
        run.state.sticky_queue = ""


def reset_point(run: Run, checksum: str, build: str, event_id: int, now: Timestamp, points_max: int) -> None:
    """Remember the first task that each binary (or build id) completed: a bad deployment is undone there."""
    known = checksum or build
    if not known or run.state.build_id == known:
        return
    run.state.build_id = known
    points = ResetPoints.FromString(run.state.reset_points)
    if any(
        (p.binary_checksum and p.binary_checksum == checksum) or (build and p.build_id == build)
        for p in points.points
    ):
        return
    point = points.points.add(
        binary_checksum=checksum,
        build_id=build,
        run_id=run.state.run_id,
        first_workflow_task_completed_id=event_id,
        resettable=not (run.children or run.external),
    )
    point.create_time.CopyFrom(now)
    del points.points[:-points_max]
    run.state.reset_points = points.SerializeToString()
