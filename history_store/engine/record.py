"""What List shows of a run: all of it is in the run's core row, so a record can be made again from that.

The scrub relies on it (visibility/audit.py): after a change here all older records would be found damaged.
So such a change brings the projection up to date with the format of the file (`projection.create`).
"""

from __future__ import annotations

from history_store.engine.state import CLOSED_STATUSES, RunState
from history_store.visibility.record import ExecutionRecord


def record_of(state: RunState) -> ExecutionRecord:
    """The run as List shows it."""
    s = state
    closed = s.status in CLOSED_STATUSES
    return ExecutionRecord(
        namespace_id=s.namespace_id,
        workflow_id=s.workflow_id,
        run_id=s.run_id,
        workflow_type=s.workflow_type,
        status=s.status,
        start_time=s.start_time,
        execution_time=s.execution_time,
        close_time=s.close_time,
        task_queue=s.task_queue,
        history_length=s.next_event_id - 1 if closed else 0,
        history_size_bytes=s.history_size_bytes if closed else 0,
        state_transition_count=s.transitions if closed else 0,
        execution_duration=max(0, s.close_time - s.execution_time) if closed else 0,
        memo=s.memo,
        search_attributes=s.search_attributes,
        parent_workflow_id=s.parent_workflow_id,
        parent_run_id=s.parent_run_id,
        root_workflow_id=s.root_workflow_id or s.workflow_id,
        root_run_id=s.root_run_id or s.run_id,
    )
