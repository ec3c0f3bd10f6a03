"""Activities of a workflow: scheduled, started, heartbeating, retried, completed, timed out, paused.

An attempt that will be retried leaves no events: started and its end are written together when the last
attempt ends, so a history holds one scheduled, one started and one closing event whatever the number of
attempts. Between, the truth is the activity's own row. Behaviour: Temporal server, activity state in mutable
state, retryActivity, timer queue executors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import Payload, Payloads, Priority, RetryPolicy
from temporalio.api.enums.v1 import event_type_pb2, task_queue_pb2, workflow_pb2
from temporalio.api.errordetails.v1.message_pb2 import NotFoundFailure
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1 import message_pb2 as history
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue

from history_store.engine import retry, workflow_task
from history_store.engine.durations import to_ns
from history_store.engine.errors import Code, ServiceError
from history_store.engine.inputs import not_running
from history_store.engine.pending import activity_due
from history_store.engine.run import DUE_ACTIVITY
from history_store.engine.state import ActivityState

if TYPE_CHECKING:
    from temporalio.api.command.v1.message_pb2 import Command, ScheduleActivityTaskCommandAttributes

    from history_store.engine.environment import Environment
    from history_store.engine.run import Run, Transaction

E = event_type_pb2
ACTIVITY_QUEUE = task_queue_pb2.TASK_QUEUE_TYPE_ACTIVITY
IN_PROGRESS = workflow_pb2.RETRY_STATE_IN_PROGRESS
RETRY_TIMEOUT = workflow_pb2.RETRY_STATE_TIMEOUT
CANCEL_REQUESTED = workflow_pb2.RETRY_STATE_CANCEL_REQUESTED
SCHEDULE_TO_START = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START
SCHEDULE_TO_CLOSE = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
START_TO_CLOSE = workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE
HEARTBEAT = workflow_pb2.TIMEOUT_TYPE_HEARTBEAT
TIMEOUT_NAMES: dict[int, str] = {
    SCHEDULE_TO_START: "ScheduleToStart",
    SCHEDULE_TO_CLOSE: "ScheduleToClose",
    START_TO_CLOSE: "StartToClose",
    HEARTBEAT: "Heartbeat",
}

NOT_STARTED = Payloads(
    payloads=[Payload(metadata={"encoding": b"json/plain"}, data=b'"ACTIVITY_ID_NOT_STARTED"')]
)
NO_TIME_FOR_RETRY = (
    "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying"
)


def not_found(message: str = "activity task not found or already completed") -> ServiceError:
    """What a worker hears when its activity is not there any more: the SDK cancels it."""
    return ServiceError(Code.NOT_FOUND, message, NotFoundFailure())


# ---- scheduled and started


def schedule(tx: Transaction, run: Run, command: Command, completed_id: int, eager: bool) -> ActivityState:
    """A worker's command schedules an activity. `eager`: it goes with the answer, so no task is offered."""
    wanted = command.schedule_activity_task_command_attributes
    attributes = _scheduled_attributes(run, wanted, completed_id)
    event = run.event(
        E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED, activity_task_scheduled_event_attributes=attributes
    )
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)
    schedule_to_close = to_ns(attributes.schedule_to_close_timeout)
    activity = ActivityState(
        scheduled_id=event.event_id,
        batch_id=run.batch_first,
        activity_id=attributes.activity_id,
        activity_type=attributes.activity_type.name,
        task_queue=attributes.task_queue.name,
        scheduled_time=tx.now,
        first_scheduled_time=tx.now,
        schedule_to_close=schedule_to_close,
        schedule_to_start=to_ns(attributes.schedule_to_start_timeout),
        start_to_close=to_ns(attributes.start_to_close_timeout),
        heartbeat_timeout=to_ns(attributes.heartbeat_timeout),
        retry_policy=attributes.retry_policy.SerializeToString()
        if attributes.HasField("retry_policy")
        else b"",
        priority=attributes.priority.SerializeToString() if attributes.HasField("priority") else b"",
        expiration=tx.now + schedule_to_close if schedule_to_close else 0,
    )
    run.keep_scheduled(event)
    run.put_activity(activity)
    if not eager:
        offer(run, activity)
    arm(run, activity)
    return activity


def _scheduled_attributes(
    run: Run,
    wanted: ScheduleActivityTaskCommandAttributes,
    completed_id: int,
) -> history.ActivityTaskScheduledEventAttributes:
    attributes = history.ActivityTaskScheduledEventAttributes(
        activity_id=wanted.activity_id,
        activity_type=wanted.activity_type,
        task_queue=TaskQueue(
            name=wanted.task_queue.name or run.state.task_queue, kind=workflow_task.NORMAL_KIND
        ),
        schedule_to_close_timeout=wanted.schedule_to_close_timeout,
        schedule_to_start_timeout=wanted.schedule_to_start_timeout,
        start_to_close_timeout=wanted.start_to_close_timeout,
        heartbeat_timeout=wanted.heartbeat_timeout,
        workflow_task_completed_event_id=completed_id,
        use_workflow_build_id=wanted.use_workflow_build_id,
    )
    if wanted.HasField("header"):
        attributes.header.CopyFrom(wanted.header)
    if wanted.HasField("input"):
        attributes.input.CopyFrom(wanted.input)
    if wanted.HasField("retry_policy"):
        attributes.retry_policy.CopyFrom(wanted.retry_policy)
    retry.fill_defaults(attributes.retry_policy)
    if wanted.HasField("priority"):
        attributes.priority.CopyFrom(wanted.priority)
    return attributes


def effective_priority(run: Run, activity: ActivityState) -> Priority:
    """The activity's own priority over the workflow's, field by field."""
    merged = Priority.FromString(run.state.priority)
    if activity.priority:
        own = Priority.FromString(activity.priority)
        merged.priority_key = own.priority_key or merged.priority_key
        merged.fairness_key = own.fairness_key or merged.fairness_key
        merged.fairness_weight = own.fairness_weight or merged.fairness_weight
    return merged


def offer(run: Run, activity: ActivityState) -> None:
    """Leave the activity's task for matching."""
    priority = 3
    if activity.priority or run.state.priority:
        priority = effective_priority(run, activity).priority_key or 3
    activity.task_key = run.offer(
        ACTIVITY_QUEUE, activity.task_queue, priority, activity.scheduled_id, activity.stamp, True
    )


def arm(run: Run, activity: ActivityState) -> None:
    """Write the activity's row and set its next deadline."""
    run.touch_activity(activity)
    run.wake_at(activity_due(activity), DUE_ACTIVITY, activity.scheduled_id)


def start(tx: Transaction, run: Run, activity: ActivityState, request_id: str, identity: str) -> None:
    """A worker takes the attempt. No event: it is written when the last attempt ends."""
    assert activity.started_id == 0, "an attempt is started once"
    run.withdraw_activity_task(activity)
    activity.started_id = -1
    activity.started_time = tx.now
    activity.request_id = request_id
    activity.identity = identity
    activity.heartbeat_time = 0
    activity.build_id = ""
    arm(run, activity)


def unstart(run: Run, activity: ActivityState) -> None:
    """The attempt never reached a worker: it waits again, and does not count."""
    activity.stamp += 1
    activity.started_id = 0
    activity.started_time = 0
    activity.request_id = ""
    activity.identity = ""
    if not activity.paused:
        offer(run, activity)
    arm(run, activity)


def scheduled_attributes(
    env: Environment, run: Run, activity: ActivityState
) -> history.ActivityTaskScheduledEventAttributes:
    """The attributes of the scheduled event: input, header, what the poll's answer needs."""
    event = run.attributes.get(activity.scheduled_id)
    if event is None:
        event = env.load_event(run, activity.batch_id, activity.scheduled_id)
        run.keep_scheduled(event)
    return event.activity_task_scheduled_event_attributes


def _write_started(run: Run, activity: ActivityState) -> int:
    """The started event, written with the closing one. Returns its id (0 while it is buffered)."""
    attributes = history.ActivityTaskStartedEventAttributes(
        scheduled_event_id=activity.scheduled_id,
        identity=activity.identity,
        request_id=activity.request_id,
        attempt=activity.attempt,
    )
    if activity.last_failure:
        attributes.last_failure.ParseFromString(activity.last_failure)
    event = run.outside_event(
        E.EVENT_TYPE_ACTIVITY_TASK_STARTED, activity_task_started_event_attributes=attributes
    )
    event.event_time.FromNanoseconds(activity.started_time)
    return event.event_id


# ---- the worker's answers


def find(run: Run, scheduled_id: int, activity_id: str, stamp: int | None) -> ActivityState:
    """The activity that a token or id names (`stamp`: a token's). NOT_FOUND if it is gone, or began anew."""
    if not run.running:
        raise not_running()
    if not scheduled_id:
        scheduled_id = run.activity_ids.get(activity_id, 0)
        if not scheduled_id:
            raise not_found(
                f"cannot find pending activity with ActivityID {activity_id}, "
                "check if activity already completed or timed out"
            )
    activity = run.activities.get(scheduled_id)
    # The stamp tells attempts apart even after a reset, which counts them from one again.
    if activity is None or (stamp is not None and (activity.stamp != stamp or activity.started_id == 0)):
        raise not_found()
    return activity


def complete(
    tx: Transaction, run: Run, activity: ActivityState, result: Payloads | None, identity: str
) -> None:
    """The activity is done."""
    if activity.started_id == 0:
        activity.started_time = tx.now
        activity.identity = identity
    started = _write_started(run, activity)
    attributes = history.ActivityTaskCompletedEventAttributes(
        scheduled_event_id=activity.scheduled_id, started_event_id=started, identity=identity
    )
    if result is not None:
        attributes.result.CopyFrom(result)
    run.outside_event(
        E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED, activity_task_completed_event_attributes=attributes
    )
    run.drop_activity(activity)
    workflow_task.ensure(tx, run)


def cancel(
    tx: Transaction, run: Run, activity: ActivityState, details: Payloads | None, identity: str
) -> None:
    """The worker reports that the activity was cancelled (only when that was asked for)."""
    if not activity.cancel_requested:
        raise ServiceError(
            Code.INVALID_ARGUMENT, "unable to cancel activity that was not requested to be canceled"
        )
    started = _write_started(run, activity) if activity.started_id else 0
    _write_canceled(run, activity, started, details, identity)
    run.drop_activity(activity)
    workflow_task.ensure(tx, run)


def _write_canceled(
    run: Run, activity: ActivityState, started: int, details: Payloads | None, identity: str
) -> None:
    attributes = history.ActivityTaskCanceledEventAttributes(
        scheduled_event_id=activity.scheduled_id,
        started_event_id=started,
        latest_cancel_requested_event_id=activity.cancel_requested_id,
        identity=identity,
    )
    if details is not None:
        attributes.details.CopyFrom(details)
    run.outside_event(E.EVENT_TYPE_ACTIVITY_TASK_CANCELED, activity_task_canceled_event_attributes=attributes)


def fail(
    tx: Transaction,
    run: Run,
    activity: ActivityState,
    failure: Failure,
    identity: str,
    heartbeat_details: Payloads | None = None,
) -> None:
    """The attempt failed: retry it, or end the activity."""
    if heartbeat_details is not None:
        activity.heartbeat_details = heartbeat_details.SerializeToString()
    state = retry_or(tx, run, activity, failure)
    if state == IN_PROGRESS:
        return
    started = _write_started(run, activity)
    attributes = history.ActivityTaskFailedEventAttributes(
        failure=failure,
        scheduled_event_id=activity.scheduled_id,
        started_event_id=started,
        identity=identity,
        retry_state=state,  # type: ignore[arg-type]
    )
    run.outside_event(E.EVENT_TYPE_ACTIVITY_TASK_FAILED, activity_task_failed_event_attributes=attributes)
    run.drop_activity(activity)
    workflow_task.ensure(tx, run)


def retry_or(tx: Transaction, run: Run, activity: ActivityState, failure: Failure) -> int:
    """Schedule the next attempt if the policy permits one. Returns the RetryState (IN_PROGRESS: it does)."""
    if activity.cancel_requested:
        return CANCEL_REQUESTED
    policy = RetryPolicy.FromString(activity.retry_policy) if activity.retry_policy else None
    if (
        failure.timeout_failure_info.timeout_type in (SCHEDULE_TO_START, SCHEDULE_TO_CLOSE)
        and policy is not None
    ):
        return RETRY_TIMEOUT
    if (
        activity.paused
        and policy is not None
        and retry.is_retryable(failure, policy.non_retryable_error_types)
    ):
        # The next attempt waits until it is let go on, whatever the policy says of intervals.
        _next_attempt(tx, run, activity, failure, 0)
        return IN_PROGRESS
    interval, state = retry.next_backoff(policy, activity.attempt, tx.now, activity.expiration, failure)
    if interval is None:
        return state
    _next_attempt(tx, run, activity, failure, interval)
    return IN_PROGRESS


def _next_attempt(
    tx: Transaction, run: Run, activity: ActivityState, failure: Failure, interval: int
) -> None:
    run.withdraw_activity_task(activity)
    activity.attempt += 1
    activity.stamp += 1
    activity.last_failure = failure.SerializeToString()
    activity.last_identity = activity.identity
    activity.last_complete_time = tx.now
    activity.started_id = 0
    activity.started_time = 0
    activity.request_id = ""
    activity.identity = ""
    activity.retry_interval = interval
    activity.backoff_until = tx.now + interval
    activity.scheduled_time = tx.now + interval
    activity.activity_reset = False
    if activity.reset_heartbeats:
        activity.reset_heartbeats = False
        activity.heartbeat_details = b""
        activity.heartbeat_time = 0
    arm(run, activity)


def heartbeat(tx: Transaction, run: Run, activity: ActivityState, details: Payloads | None) -> None:
    """The worker is alive; its details are kept for the next attempt."""
    activity.heartbeat_time = tx.now
    activity.heartbeat_details = details.SerializeToString() if details is not None else b""
    arm(run, activity)


def end_as(tx: Transaction, run: Run, activity: ActivityState, event: history.HistoryEvent) -> None:
    """The activity ends as it did in another region, whose branch of the run did not win: with that event."""
    name = event.WhichOneof("attributes")
    assert name is not None
    attributes = type(getattr(event, name))()
    attributes.CopyFrom(getattr(event, name))
    started = attributes.started_event_id != 0 or event.event_type != E.EVENT_TYPE_ACTIVITY_TASK_CANCELED
    if activity.started_id == 0 and started:
        activity.started_time = tx.now
        activity.identity = attributes.identity
    attributes.started_event_id = _write_started(run, activity) if started else 0
    run.outside_event(event.event_type, **{name: attributes})
    run.drop_activity(activity)
    workflow_task.ensure(tx, run)


# ---- cancellation asked for by the workflow


def request_cancel(run: Run, scheduled_id: int, completed_id: int, identity: str) -> bool:
    """A worker's command asks for cancellation. False: no such pending activity.

    One that no worker has started ends here; the worker must then see that in a new workflow task.
    """
    activity = run.activities.get(scheduled_id)
    if activity is None:
        return False
    if activity.cancel_requested:
        return True
    event = run.event(
        E.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED,
        activity_task_cancel_requested_event_attributes=history.ActivityTaskCancelRequestedEventAttributes(
            scheduled_event_id=scheduled_id, workflow_task_completed_event_id=completed_id
        ),
    )
    activity.cancel_requested = True
    activity.cancel_requested_id = event.event_id
    run.touch_activity(activity)
    if activity.started_id == 0:
        _write_canceled(run, activity, 0, NOT_STARTED, identity)
        run.drop_activity(activity)
    return True


# ---- time


def fire(tx: Transaction, run: Run, activity: ActivityState) -> None:
    """Something of this activity is due: the next attempt, or a time-out."""
    now = tx.now
    if (
        activity.started_id == 0
        and activity.backoff_until
        and activity.backoff_until <= now
        and not (activity.expiration and activity.expiration <= now)
        and not activity.paused
    ):
        activity.backoff_until = 0
        offer(run, activity)
        arm(run, activity)
        return
    kind = _timed_out(activity, now)
    if kind == 0:
        arm(run, activity)
        return
    failure = _timeout_failure(activity, kind, f"activity {TIMEOUT_NAMES[kind]} timeout")
    state = retry_or(tx, run, activity, failure)
    if state == IN_PROGRESS:
        return
    if state == RETRY_TIMEOUT and kind != SCHEDULE_TO_START:
        failure = _timeout_failure(activity, SCHEDULE_TO_CLOSE, NO_TIME_FOR_RETRY)
    if activity.last_failure:
        failure.cause.ParseFromString(activity.last_failure)
    started = _write_started(run, activity) if activity.started_id else 0
    run.outside_event(
        E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
        activity_task_timed_out_event_attributes=history.ActivityTaskTimedOutEventAttributes(
            failure=failure,
            scheduled_event_id=activity.scheduled_id,
            started_event_id=started,
            retry_state=state,  # type: ignore[arg-type]
        ),
    )
    run.drop_activity(activity)
    workflow_task.ensure(tx, run)


def _timed_out(activity: ActivityState, now: int) -> int:
    if activity.expiration and activity.expiration <= now and not activity.paused:
        return SCHEDULE_TO_CLOSE
    if activity.started_id:
        if activity.start_to_close and activity.started_time + activity.start_to_close <= now:
            return START_TO_CLOSE
        last = max(activity.heartbeat_time, activity.started_time)
        if activity.heartbeat_timeout and last + activity.heartbeat_timeout <= now:
            return HEARTBEAT
    elif (
        not activity.paused
        and not activity.backoff_until
        and activity.schedule_to_start
        and activity.scheduled_time + activity.schedule_to_start <= now
    ):
        return SCHEDULE_TO_START
    return 0


def _timeout_failure(activity: ActivityState, kind: int, message: str) -> Failure:
    failure = Failure(message=message, source="Server")
    failure.timeout_failure_info.timeout_type = kind  # type: ignore[assignment]
    if activity.heartbeat_details:
        failure.timeout_failure_info.last_heartbeat_details.ParseFromString(activity.heartbeat_details)
    return failure
