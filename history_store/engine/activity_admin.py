"""A pending activity from the operator's side: paused, let go on, begun anew, given other options.

None of this writes events: the truth about a pending activity is its own row. An attempt that a worker
holds is never taken away from it; the worker hears of the pause or reset with its next heartbeat, and what
was asked for counts from the attempt after it. Behaviour: Temporal server, PauseActivity and its siblings.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from temporalio.api.activity.v1.message_pb2 import ActivityOptions
from temporalio.api.common.v1.message_pb2 import RetryPolicy

from history_store.engine import activity as activities
from history_store.engine import command_rules, field_rules, pauses, retry
from history_store.engine.durations import from_ns, to_ns
from history_store.engine.errors import failed_precondition, invalid
from history_store.engine.inputs import require_running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from temporalio.api.history.v1.message_pb2 import ActivityTaskScheduledEventAttributes

    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import ActivityState

NO_SUCH = "Can't find pending activity with such ID. Invalid activityID or activity already completed"
TIMEOUTS = (
    "schedule_to_close_timeout",
    "schedule_to_start_timeout",
    "start_to_close_timeout",
    "heartbeat_timeout",
)
# The parts of a priority and of a retry policy that a mask can name one by one.
PARTS = {
    "priority": ("priority_key", "fairness_key", "fairness_weight"),
    "retry_policy": ("initial_interval", "backoff_coefficient", "maximum_interval", "maximum_attempts"),
}
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def chosen(
    run: Run, activity_id: str = "", activity_type: str = "", everything: bool = False
) -> list[ActivityState]:
    """The pending activities that an id, a type or "all" means. NOT_FOUND if there are none."""
    require_running(run)
    if everything:
        found = list(run.activities.values())
    elif activity_id:
        scheduled_id = run.activity_ids.get(activity_id)
        found = [] if scheduled_id is None else [run.activities[scheduled_id]]
    else:
        found = [pending for pending in run.activities.values() if pending.activity_type == activity_type]
    if not found:
        raise activities.not_found(NO_SUCH)
    return found


# ---- pause and unpause


def pause(
    tx: Transaction, run: Run, activity: ActivityState, identity: str, reason: str, request_id: str
) -> None:
    """No further attempt begins; one that runs may end. The same request twice is one pause."""
    if activity.paused:
        if activity.pause_request_id == request_id:
            return
        raise failed_precondition("activity is already paused")
    if activity.started_id == 0:
        run.withdraw_activity_task(activity)
        activity.stamp += 1
    activity.paused = True
    activity.pause_time = tx.now
    activity.pause_identity = identity
    activity.pause_reason = reason
    activity.pause_request_id = request_id
    activities.arm(run, activity)
    pauses.show(run)


def unpause(
    tx: Transaction,
    run: Run,
    activity: ActivityState,
    reset_attempts: bool = False,
    reset_heartbeat: bool = False,
    jitter: int = 0,
) -> None:
    """Let it go on: at once, or within `jitter`. One that is not paused stays as it is."""
    if not activity.paused:
        return
    _clear_pause(activity)
    if reset_attempts:
        activity.attempt = 1
    if reset_heartbeat:
        activity.heartbeat_details = b""
        activity.heartbeat_time = 0
    if activity.started_id == 0:
        _dispatch(run, activity, tx.now, tx.now + _offset(tx, jitter))
    else:
        activities.arm(run, activity)
    pauses.show(run)


def _clear_pause(activity: ActivityState) -> None:
    activity.paused = False
    activity.pause_time = 0
    activity.pause_identity = activity.pause_reason = activity.pause_request_id = ""


def _offset(tx: Transaction, jitter: int) -> int:
    """Somewhere in [0, jitter): the random part of a fresh id, so the engine needs no dice of its own."""
    return int(tx.env.new_id().replace("-", "")[-12:], 16) % jitter if jitter > 0 else 0


def _dispatch(run: Run, activity: ActivityState, now: int, at: int) -> None:
    """The next attempt is for `at`; whatever was arranged before is void."""
    run.withdraw_activity_task(activity)
    activity.stamp += 1
    activity.activity_reset = activity.reset_heartbeats = False
    if at > now:
        activity.scheduled_time = activity.backoff_until = at
        activity.retry_interval = at - now
    else:
        activity.scheduled_time = now
        activity.backoff_until = activity.retry_interval = 0
        activities.offer(run, activity)
    activities.arm(run, activity)


# ---- reset


def reset(
    tx: Transaction,
    run: Run,
    activity: ActivityState,
    reset_heartbeat: bool = False,
    keep_paused: bool = False,
    restore_options: bool = False,
    jitter: int = 0,
) -> None:
    """Count attempts from one again. A waiting attempt begins at once; one that runs is told to stop."""
    activity.attempt = 1
    activity.activity_reset = True
    if reset_heartbeat:
        activity.reset_heartbeats = True
    if restore_options:
        original = activities.scheduled_attributes(tx.env, run, activity)
        _apply(activity, _original(original), original.retry_policy.non_retryable_error_types)
    if activity.paused and not keep_paused:
        _clear_pause(activity)
        pauses.show(run)
    if activity.started_id or activity.paused:
        activities.arm(run, activity)
        return
    if reset_heartbeat:
        activity.heartbeat_details = b""
        activity.heartbeat_time = 0
    _dispatch(run, activity, tx.now, tx.now + _offset(tx, jitter))


# ---- options


def current_options(activity: ActivityState) -> ActivityOptions:
    """The options as they are now."""
    options = ActivityOptions()
    options.task_queue.name = activity.task_queue
    from_ns(activity.schedule_to_close, options.schedule_to_close_timeout)
    from_ns(activity.schedule_to_start, options.schedule_to_start_timeout)
    from_ns(activity.start_to_close, options.start_to_close_timeout)
    from_ns(activity.heartbeat_timeout, options.heartbeat_timeout)
    if activity.priority:
        options.priority.ParseFromString(activity.priority)
    policy = RetryPolicy.FromString(activity.retry_policy)
    del policy.non_retryable_error_types[:]
    options.retry_policy.CopyFrom(policy)
    return options


def _original(scheduled: ActivityTaskScheduledEventAttributes) -> ActivityOptions:
    options = ActivityOptions(retry_policy=scheduled.retry_policy)
    options.task_queue.name = scheduled.task_queue.name
    for name in TIMEOUTS:
        getattr(options, name).CopyFrom(getattr(scheduled, name))
    if scheduled.HasField("priority"):
        options.priority.CopyFrom(scheduled.priority)
    return options


def snake_case(path: str) -> str:
    """A field path in protobuf's spelling: masks arrive in JSON's as well."""
    return _CAPITAL.sub("_", path).lower()


def merge(into: ActivityOptions, wanted: ActivityOptions, paths: Iterable[str]) -> bool:
    """Copy what the mask names. Returns whether a part of the retry policy was named."""
    named = {snake_case(path) for path in paths}
    if "task_queue.name" in named or "task_queue" in named:
        _provided(wanted, "task_queue", "TaskQueue")
        into.task_queue.name = wanted.task_queue.name
    for name in TIMEOUTS:
        if name in named:
            _copy(into, wanted, name)
    if "priority" in named:
        _copy(into, wanted, "priority")
    if "retry_policy" in named:
        _provided(wanted, "retry_policy", "RetryPolicy")
        _copy(into, wanted, "retry_policy")
    for whole, parts in PARTS.items():
        for part in parts:
            if f"{whole}.{part}" in named:
                _provided(wanted, whole, "Priority" if whole == "priority" else "RetryPolicy")
                _copy(getattr(into, whole), getattr(wanted, whole), part)
    return any(path.startswith("retry_policy") for path in named)


def _provided(wanted: ActivityOptions, name: str, label: str) -> None:
    if not wanted.HasField(name):  # type: ignore[arg-type]
        raise invalid(f"{label} is not provided")


def _copy(into: Any, wanted: Any, name: str) -> None:
    field = into.DESCRIPTOR.fields_by_name[name]
    if field.message_type is None:
        setattr(into, name, getattr(wanted, name))
    elif wanted.HasField(name):
        getattr(into, name).CopyFrom(getattr(wanted, name))
    else:
        into.ClearField(name)


def update_options(
    tx: Transaction, run: Run, activity: ActivityState, wanted: ActivityOptions, paths: Iterable[str]
) -> ActivityOptions:
    """Change what the mask names; the options as they are then. INVALID_ARGUMENT if they do not fit."""
    options = current_options(activity)
    if merge(options, wanted, paths):
        retry.fill_defaults(options.retry_policy)
        retry.validate(options.retry_policy)
    field_rules.check_user_task_queue(options.task_queue, tx.env.limits, run.state.task_queue)
    command_rules.complete_activity_timeouts(options, 0, activity.activity_id, activity.activity_type)
    kept = RetryPolicy.FromString(activity.retry_policy).non_retryable_error_types
    _apply(activity, options, options.retry_policy.non_retryable_error_types or kept)
    _rearrange(tx, run, activity)
    return options


def restore_options(tx: Transaction, run: Run, activity: ActivityState) -> ActivityOptions:
    """Give it back what it was scheduled with."""
    scheduled = activities.scheduled_attributes(tx.env, run, activity)
    options = _original(scheduled)
    _apply(activity, options, scheduled.retry_policy.non_retryable_error_types)
    _rearrange(tx, run, activity)
    return options


def _apply(activity: ActivityState, options: ActivityOptions, non_retryable: Iterable[str]) -> None:
    activity.task_queue = options.task_queue.name
    activity.schedule_to_close = to_ns(options.schedule_to_close_timeout)
    activity.schedule_to_start = to_ns(options.schedule_to_start_timeout)
    activity.start_to_close = to_ns(options.start_to_close_timeout)
    activity.heartbeat_timeout = to_ns(options.heartbeat_timeout)
    activity.priority = options.priority.SerializeToString() if options.HasField("priority") else b""
    activity.expiration = 0
    if activity.schedule_to_close:
        activity.expiration = activity.first_scheduled_time + activity.schedule_to_close
    policy = RetryPolicy()
    policy.CopyFrom(options.retry_policy)
    names = list(non_retryable)
    del policy.non_retryable_error_types[:]
    policy.non_retryable_error_types.extend(names)
    activity.retry_policy = policy.SerializeToString()


def _rearrange(tx: Transaction, run: Run, activity: ActivityState) -> None:
    """A waiting attempt is for the time (and goes to the queue) that the new options say."""
    if activity.started_id or activity.paused or activity.cancel_requested:
        activities.arm(run, activity)
        return
    at = activity.scheduled_time
    if activity.attempt > 1:
        policy = RetryPolicy.FromString(activity.retry_policy)
        interval = retry.exponential_ns(
            to_ns(policy.initial_interval), policy.backoff_coefficient, activity.attempt - 1
        )
        maximum = to_ns(policy.maximum_interval)
        if maximum and (interval <= 0 or interval > maximum):
            interval = maximum
        at = activity.last_complete_time + interval
    scheduled = activity.scheduled_time
    _dispatch(run, activity, tx.now, at)
    if at <= tx.now:
        # It has been waiting since then: schedule-to-start goes on counting.
        activity.scheduled_time = min(scheduled, tx.now)
        activities.arm(run, activity)
