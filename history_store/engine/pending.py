"""When a pending task or activity runs out of time: arithmetic on the state alone."""

from __future__ import annotations

from history_store.engine.state import ActivityState, WorkflowTask


def workflow_task_due(task: WorkflowTask | None) -> int:
    """When the pending workflow task times out (0: never)."""
    if task is None:
        return 0
    if task.started_id:
        return task.started_time + task.timeout
    if task.schedule_to_start:
        return task.scheduled_time + task.schedule_to_start
    return 0


def activity_due(activity: ActivityState) -> int:
    """The earliest of the activity's retry and time-outs (0: none)."""
    due = 0 if activity.paused else activity.expiration  # as long as it is paused, its time stands still
    if activity.started_id:
        if activity.start_to_close:
            due = _earlier(due, activity.started_time + activity.start_to_close)
        if activity.heartbeat_timeout:
            last = max(activity.heartbeat_time, activity.started_time)
            due = _earlier(due, last + activity.heartbeat_timeout)
    elif not activity.paused:
        if activity.backoff_until:
            due = _earlier(due, activity.backoff_until)
        elif activity.schedule_to_start:
            due = _earlier(due, activity.scheduled_time + activity.schedule_to_start)
    return due


def _earlier(a: int, b: int) -> int:
    return b if a == 0 or b < a else a
