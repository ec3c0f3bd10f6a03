"""What happens when something is due: every time-out, timer, retry and retention of a run."""

from __future__ import annotations

from heapq import heappop
from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import activity, close, keys, workflow_task
from history_store.engine import run as due
from history_store.engine.pending import activity_due, workflow_task_due

if TYPE_CHECKING:
    from history_store.engine.run import Run, Transaction


def rebuild(run: Run, retention: int) -> None:
    """Fill the heap from the state (after reading a run from its rows)."""
    state = run.state
    run.deadlines.clear()
    if not run.running:
        run.wake_at(state.close_time + retention, due.DUE_RETENTION, state.close_time + retention)
        return
    run.wake_at(state.run_expiration, due.DUE_RUN_TIMEOUT)
    run.wake_at(state.execution_expiration, due.DUE_EXECUTION_TIMEOUT)
    run.wake_at(state.first_backoff_until, due.DUE_FIRST_TASK)
    run.wake_at(workflow_task_due(state.task), due.DUE_WORKFLOW_TASK)
    for timer in run.timers.values():
        run.wake_at(timer.fire_time, due.DUE_TIMER, timer.timer_id)
    for pending in run.activities.values():
        run.wake_at(activity_due(pending), due.DUE_ACTIVITY, pending.scheduled_id)


def fire(tx: Transaction, run: Run) -> None:
    """Do everything that is due at `tx.now`; a deadline that has become void is dropped."""
    heap, state = run.deadlines, run.state
    if state.wake and state.wake <= tx.now:
        tx.rows.append((keys.wake(state.wake, run.raw), None))
        state.wake = 0
    while heap and heap[0][0] <= tx.now:
        at, kind, key = heappop(heap)
        if run.due_of(kind, key) != at:
            continue
        match kind:
            case due.DUE_WORKFLOW_TASK:
                workflow_task.time_out(tx, run)
            case due.DUE_ACTIVITY:
                activity.fire(tx, run, run.activities[key])
            case due.DUE_TIMER:
                fire_timer(tx, run, key)
            case due.DUE_FIRST_TASK:
                state.first_backoff_until = 0
                if run.task is None:
                    workflow_task.schedule(tx, run)
            case due.DUE_RETENTION:
                run.deleted = True
                return
            case _:
                close.time_out_run(tx, run)


def fire_timer(tx: Transaction, run: Run, timer_id: str) -> None:
    """A user timer fires."""
    timer = run.timers[timer_id]
    run.outside_event(
        event_type_pb2.EVENT_TYPE_TIMER_FIRED,
        timer_fired_event_attributes=history.TimerFiredEventAttributes(
            timer_id=timer_id, started_event_id=timer.started_id
        ),
    )
    run.drop_timer(timer)
    workflow_task.ensure(tx, run)
