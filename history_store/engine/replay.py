"""A run's state from its history: event for event, what the engine knew when it wrote them.

A reset rebuilds a run from a prefix of its history, and a region rebuilds one from frames that it received.
What events do not say cannot come back: attempts in progress, heartbeats, pauses, sticky queues, the request
ids of children and external requests (fresh ones are drawn, by `ids`), what began earlier runs. A failed
or timed out workflow task leaves its successor's attempt as a transient task, as the engine does.
Lineage: Temporal server, mutable_state_rebuilder.

Invariant: after any whole batch of any run, what is rebuilt equals what the engine holds in all that is
written (tests/history_store/engine/test_replay.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from temporalio.api.enums.v1 import event_type_pb2, task_queue_pb2, workflow_pb2
from temporalio.api.history.v1.message_pb2 import History, HistoryEvent

from history_store.engine import commands, keys, options, start
from history_store.engine import state as st
from history_store.engine.durations import to_ns
from history_store.engine.run import Run
from history_store.engine.state import (
    EXTERNAL_CANCEL,
    EXTERNAL_SIGNAL,
    WFT_NORMAL,
    ActivityState,
    ChildState,
    ExternalState,
    TimerState,
    UpdateState,
    WorkflowTask,
)
from history_store.engine.updates import ACCEPTED, ADMITTED, COMPLETED

E = event_type_pb2
STICKY = task_queue_pb2.TASK_QUEUE_KIND_STICKY
SCHEDULE_TO_START = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START


class HistoryBroken(Exception):
    """The events do not follow from one another: this is no history, or a part of it is missing."""


def replay(
    namespace_id: str,
    run_id: str,
    batches: Iterable[bytes],
    request_id: str,
    ids: Callable[[], str],
    reset_points_max: int = 20,
) -> Run:
    """The run that these batches of framed events make. Its rows are all marked as changed."""
    replayer = Replayer(namespace_id, run_id, request_id, ids, reset_points_max)
    for data in batches:
        replayer.batch(data)
    return replayer.finish()


class Replayer:
    """One replay under way."""

    def __init__(
        self,
        namespace_id: str,
        run_id: str,
        request_id: str,
        ids: Callable[[], str],
        reset_points_max: int = 20,
    ) -> None:
        self.namespace_id = namespace_id
        self.run_id = run_id
        self.request_id = request_id
        self.ids = ids
        self.reset_points_max = reset_points_max
        self.batch_id = 0
        self._run: Run | None = None

    @property
    def run(self) -> Run:
        """The run so far. HistoryBroken before its first event."""
        if self._run is None:
            raise HistoryBroken("a history begins with WorkflowExecutionStarted")
        return self._run

    def batch(self, data: bytes) -> None:
        """Apply one batch: the framed events of one transaction."""
        events = History.FromString(data).events
        self.batch_id = events[0].event_id
        for event in events:
            self.event(event)
        self.run.state.history_size_bytes += len(data)

    def event(self, event: HistoryEvent) -> None:
        """Apply one event."""
        apply = APPLY.get(event.event_type)
        if apply is None:
            raise HistoryBroken(f"event {event.event_id} is of unknown type {event.event_type}")
        if self._run is None:
            if event.event_type != E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED or event.event_id != 1:
                raise HistoryBroken("a history begins with WorkflowExecutionStarted")
            apply(self, event)
        else:
            state = self._run.state
            if event.event_id != state.next_event_id:
                raise HistoryBroken(f"event {event.event_id} where {state.next_event_id} was to follow")
            apply(self, event)
        state = self.run.state
        state.next_event_id = event.event_id + 1
        state.version = event.version

    def finish(self) -> Run:
        """The run, with all its rows to be written and none to be deleted."""
        run = self.run
        run.dirty = {key: item for key, item in run.dirty.items() if item is not None}
        run.tail_first = run.batch_first = run.state.next_event_id
        run.visible = run.task_changed = False
        return run

    # ---- the run itself

    def started(self, event: HistoryEvent) -> None:
        """WorkflowExecutionStarted."""
        attributes = event.workflow_execution_started_event_attributes
        now = to_ns(event.event_time)
        state = start.state_of(
            self.namespace_id, self.run_id, attributes, now, self.request_id, event.version
        )
        state.request_ids = {self.request_id: (event.event_type, event.event_id)}
        if event.HasField("user_metadata"):
            state.user_metadata = event.user_metadata.SerializeToString()
        if state.execution_time > state.start_time:
            state.first_backoff_until = state.execution_time
        self._run = Run(state, keys.slot_bytes(keys.slot_of(self.namespace_id, attributes.workflow_id)))

    def signaled(self, event: HistoryEvent) -> None:
        """WorkflowExecutionSignaled."""
        self.run.state.signal_count += 1
        request_id = event.workflow_execution_signaled_event_attributes.request_id
        if request_id:
            self.run.put_signal_id(request_id)

    def cancel_requested(self, _event: HistoryEvent) -> None:
        """WorkflowExecutionCancelRequested."""
        self.run.state.cancel_requested = True

    def options_updated(self, event: HistoryEvent) -> None:
        """WorkflowExecutionOptionsUpdated."""
        options.apply(self.run, event)

    def search_attributes(self, event: HistoryEvent) -> None:
        """UpsertWorkflowSearchAttributes."""
        attributes = event.upsert_workflow_search_attributes_event_attributes
        commands.merge_search_attributes(self.run, attributes.search_attributes)

    def properties(self, event: HistoryEvent) -> None:
        """WorkflowPropertiesModified."""
        commands.merge_memo(self.run, event.workflow_properties_modified_event_attributes.upserted_memo)

    def nothing(self, event: HistoryEvent) -> None:
        """An event that only the worker reads."""

    def closed(self, event: HistoryEvent) -> None:
        """Any of the six ends."""
        run, state = self.run, self.run.state
        attributes = getattr(event, event.WhichOneof("attributes") or "")
        state.status = STATUS[event.event_type]
        state.close_time = to_ns(event.event_time)
        state.completion_batch_id = self.batch_id
        if event.event_type != E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED:
            state.successor_run_id = getattr(attributes, "new_execution_run_id", "")
        state.task = None
        for activity in list(run.activities.values()):
            run.drop_activity(activity)
        for timer in list(run.timers.values()):
            run.drop_timer(timer)
        for child in list(run.children.values()):
            run.drop_child(child)
        for request in list(run.external.values()):
            run.drop_external(request)

    # ---- the workflow task

    def task_scheduled(self, event: HistoryEvent) -> None:
        """WorkflowTaskScheduled."""
        attributes = event.workflow_task_scheduled_event_attributes
        state = self.run.state
        now = to_ns(event.event_time)
        state.first_backoff_until = 0
        state.task_attempt = attributes.attempt
        state.task_stamp += 1
        state.task = WorkflowTask(
            scheduled_id=event.event_id,
            attempt=attributes.attempt,
            kind=WFT_NORMAL,
            scheduled_time=now,
            original_scheduled_time=now,
            timeout=to_ns(attributes.start_to_close_timeout),
            queue=attributes.task_queue.name,
            sticky=attributes.task_queue.kind == STICKY,
            stamp=state.task_stamp,
            first_of_run=state.last_started_id == 0,
        )

    def task_started(self, event: HistoryEvent) -> None:
        """WorkflowTaskStarted."""
        attributes = event.workflow_task_started_event_attributes
        task = self._task(attributes.scheduled_event_id)
        task.started_id = event.event_id
        task.started_time = to_ns(event.event_time)
        task.request_id = attributes.request_id
        task.identity = attributes.identity
        task.suggest_continue_as_new = attributes.suggest_continue_as_new
        task.suggest_reasons = tuple(int(r) for r in attributes.suggest_continue_as_new_reasons)
        task.history_size_bytes = attributes.history_size_bytes

    def task_completed(self, event: HistoryEvent) -> None:
        """WorkflowTaskCompleted."""
        attributes = event.workflow_task_completed_event_attributes
        state = self.run.state
        self._task(attributes.scheduled_event_id)
        state.task = None
        state.task_attempt = 1
        state.last_started_id = attributes.started_event_id
        state.last_completed_id = event.event_id
        commands.reset_point(
            self.run,
            attributes.binary_checksum,
            attributes.worker_version.build_id,
            event.event_id,
            event.event_time,
            self.reset_points_max,
        )

    def task_failed(self, event: HistoryEvent) -> None:
        """WorkflowTaskFailed: the next attempt is transient."""
        attributes = event.workflow_task_failed_event_attributes
        attempt = self._task(attributes.scheduled_event_id).attempt
        state = self.run.state
        state.task_last_cause = attributes.cause
        if attributes.HasField("failure"):
            state.task_last_failure = attributes.failure.SerializeToString()
        self._transient(event, attempt + 1)

    def task_timed_out(self, event: HistoryEvent) -> None:
        """WorkflowTaskTimedOut: after a start the next attempt is transient."""
        attributes = event.workflow_task_timed_out_event_attributes
        attempt = self._task(attributes.scheduled_event_id).attempt
        if attributes.timeout_type == SCHEDULE_TO_START:
            self.run.state.task = None
            return
        self.run.state.task_last_cause = 0
        self._transient(event, attempt + 1)

    def _task(self, scheduled_id: int) -> WorkflowTask:
        task = self.run.state.task
        if task is None or task.scheduled_id != scheduled_id:
            raise HistoryBroken(f"no workflow task was scheduled by event {scheduled_id}")
        return task

    def _transient(self, event: HistoryEvent, attempt: int) -> None:
        state = self.run.state
        now = to_ns(event.event_time)
        state.task_attempt = attempt
        state.task_stamp += 1
        state.task = WorkflowTask(
            scheduled_id=event.event_id + 1,
            attempt=attempt,
            kind=WFT_NORMAL,
            scheduled_time=now,
            original_scheduled_time=now,
            timeout=state.task_timeout,
            queue=state.task_queue,
            sticky=False,
            stamp=state.task_stamp,
            first_of_run=state.last_started_id == 0,
        )

    # ---- activities

    def activity_scheduled(self, event: HistoryEvent) -> None:
        """ActivityTaskScheduled."""
        attributes = event.activity_task_scheduled_event_attributes
        now = to_ns(event.event_time)
        schedule_to_close = to_ns(attributes.schedule_to_close_timeout)
        self.run.put_activity(
            ActivityState(
                scheduled_id=event.event_id,
                batch_id=self.batch_id,
                activity_id=attributes.activity_id,
                activity_type=attributes.activity_type.name,
                task_queue=attributes.task_queue.name,
                scheduled_time=now,
                first_scheduled_time=now,
                schedule_to_close=schedule_to_close,
                schedule_to_start=to_ns(attributes.schedule_to_start_timeout),
                start_to_close=to_ns(attributes.start_to_close_timeout),
                heartbeat_timeout=to_ns(attributes.heartbeat_timeout),
                retry_policy=_bytes(attributes, "retry_policy"),
                priority=_bytes(attributes, "priority"),
                expiration=now + schedule_to_close if schedule_to_close else 0,
            )
        )

    def activity_started(self, event: HistoryEvent) -> None:
        """ActivityTaskStarted: written with the end of the last attempt."""
        attributes = event.activity_task_started_event_attributes
        activity = self._activity(attributes.scheduled_event_id)
        activity.started_id = event.event_id
        activity.started_time = to_ns(event.event_time)
        activity.attempt = attributes.attempt
        activity.request_id = attributes.request_id
        activity.identity = attributes.identity

    def activity_cancel_requested(self, event: HistoryEvent) -> None:
        """ActivityTaskCancelRequested. The activity's end may have come before it, unseen by the worker."""
        scheduled_id = event.activity_task_cancel_requested_event_attributes.scheduled_event_id
        activity = self.run.activities.get(scheduled_id)
        if activity is not None and not activity.cancel_requested:
            activity.cancel_requested = True
            activity.cancel_requested_id = event.event_id

    def activity_ended(self, event: HistoryEvent) -> None:
        """Completed, failed, timed out or cancelled."""
        attributes = getattr(event, event.WhichOneof("attributes") or "")
        self.run.drop_activity(self._activity(attributes.scheduled_event_id))

    def _activity(self, scheduled_id: int) -> ActivityState:
        activity = self.run.activities.get(scheduled_id)
        if activity is None:
            raise HistoryBroken(f"no pending activity was scheduled by event {scheduled_id}")
        return activity

    # ---- timers

    def timer_started(self, event: HistoryEvent) -> None:
        """TimerStarted."""
        attributes = event.timer_started_event_attributes
        due = to_ns(event.event_time) + to_ns(attributes.start_to_fire_timeout)
        self.run.put_timer(TimerState(attributes.timer_id, event.event_id, due))

    def timer_fired(self, event: HistoryEvent) -> None:
        """TimerFired."""
        self._drop_timer(event.timer_fired_event_attributes.timer_id)

    def timer_canceled(self, event: HistoryEvent) -> None:
        """TimerCanceled."""
        self._drop_timer(event.timer_canceled_event_attributes.timer_id)

    def _drop_timer(self, timer_id: str) -> None:
        timer = self.run.timers.get(timer_id)
        if timer is None:
            raise HistoryBroken(f"no timer {timer_id} is pending")
        self.run.drop_timer(timer)

    # ---- other runs

    def child_initiated(self, event: HistoryEvent) -> None:
        """StartChildWorkflowExecutionInitiated."""
        attributes = event.start_child_workflow_execution_initiated_event_attributes
        self.run.touch_child(
            ChildState(
                event.event_id,
                self.batch_id,
                attributes.namespace,
                attributes.namespace_id,
                attributes.workflow_id,
                attributes.workflow_type.name,
                attributes.parent_close_policy,
                self.ids(),
            )
        )

    def child_started(self, event: HistoryEvent) -> None:
        """ChildWorkflowExecutionStarted."""
        attributes = event.child_workflow_execution_started_event_attributes
        child = self._child(attributes.initiated_event_id)
        child.started_id = event.event_id
        child.run_id = attributes.workflow_execution.run_id

    def child_ended(self, event: HistoryEvent) -> None:
        """Any of the five ends of a child, or that it could not be started."""
        attributes = getattr(event, event.WhichOneof("attributes") or "")
        self.run.drop_child(self._child(attributes.initiated_event_id))

    def _child(self, initiated_id: int) -> ChildState:
        child = self.run.children.get(initiated_id)
        if child is None:
            raise HistoryBroken(f"no pending child was initiated by event {initiated_id}")
        return child

    def external_initiated(self, event: HistoryEvent) -> None:
        """A signal or cancel request to another workflow."""
        signal = event.event_type == E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
        kind = EXTERNAL_SIGNAL if signal else EXTERNAL_CANCEL
        self.run.put_external(ExternalState(event.event_id, self.batch_id, kind, self.ids()))

    def external_done(self, event: HistoryEvent) -> None:
        """The other workflow has it, or cannot have it."""
        attributes = getattr(event, event.WhichOneof("attributes") or "")
        request = self.run.external.get(attributes.initiated_event_id)
        if request is None:
            raise HistoryBroken(f"no external request was initiated by event {attributes.initiated_event_id}")
        self.run.drop_external(request)

    # ---- updates

    def update_admitted(self, event: HistoryEvent) -> None:
        """WorkflowExecutionUpdateAdmitted: written by a reset for what it carries over."""
        update_id = event.workflow_execution_update_admitted_event_attributes.request.meta.update_id
        self.run.put_update(UpdateState(update_id, ADMITTED, event.event_id, self.batch_id))

    def update_accepted(self, event: HistoryEvent) -> None:
        """WorkflowExecutionUpdateAccepted."""
        attributes = event.workflow_execution_update_accepted_event_attributes
        self.run.state.update_count += 1
        self.run.put_update(
            UpdateState(
                attributes.protocol_instance_id,
                ACCEPTED,
                event.event_id,
                self.batch_id,
                event.event_id,
                attributes.accepted_request_message_id,
            )
        )

    def update_completed(self, event: HistoryEvent) -> None:
        """WorkflowExecutionUpdateCompleted."""
        attributes = event.workflow_execution_update_completed_event_attributes
        self.run.put_update(
            UpdateState(
                attributes.meta.update_id,
                COMPLETED,
                event.event_id,
                self.batch_id,
                attributes.accepted_event_id,
            )
        )


def _bytes(message: Any, name: str) -> bytes:
    data: bytes = getattr(message, name).SerializeToString() if message.HasField(name) else b""
    return data


STATUS = {
    E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: st.COMPLETED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: st.FAILED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: st.CANCELED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: st.TERMINATED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: st.CONTINUED_AS_NEW,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: st.TIMED_OUT,
}

APPLY: dict[int, Callable[[Replayer, HistoryEvent], None]] = {
    E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED: Replayer.started,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED: Replayer.signaled,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED: Replayer.cancel_requested,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED: Replayer.options_updated,
    E.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES: Replayer.search_attributes,
    E.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED: Replayer.properties,
    E.EVENT_TYPE_MARKER_RECORDED: Replayer.nothing,
    E.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED: Replayer.task_scheduled,
    E.EVENT_TYPE_WORKFLOW_TASK_STARTED: Replayer.task_started,
    E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED: Replayer.task_completed,
    E.EVENT_TYPE_WORKFLOW_TASK_FAILED: Replayer.task_failed,
    E.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT: Replayer.task_timed_out,
    E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: Replayer.activity_scheduled,
    E.EVENT_TYPE_ACTIVITY_TASK_STARTED: Replayer.activity_started,
    E.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED: Replayer.activity_cancel_requested,
    E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: Replayer.activity_ended,
    E.EVENT_TYPE_ACTIVITY_TASK_FAILED: Replayer.activity_ended,
    E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: Replayer.activity_ended,
    E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: Replayer.activity_ended,
    E.EVENT_TYPE_TIMER_STARTED: Replayer.timer_started,
    E.EVENT_TYPE_TIMER_FIRED: Replayer.timer_fired,
    E.EVENT_TYPE_TIMER_CANCELED: Replayer.timer_canceled,
    E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: Replayer.child_initiated,
    E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: Replayer.child_ended,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED: Replayer.child_started,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: Replayer.child_ended,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: Replayer.child_ended,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: Replayer.child_ended,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: Replayer.child_ended,
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: Replayer.child_ended,
    E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: Replayer.external_initiated,
    E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: Replayer.external_done,
    E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED: Replayer.external_done,
    E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: Replayer.external_initiated,
    E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: Replayer.external_done,
    E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED: Replayer.external_done,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED: Replayer.update_admitted,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: Replayer.update_accepted,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED: Replayer.update_completed,
    **dict.fromkeys(STATUS, Replayer.closed),
}
