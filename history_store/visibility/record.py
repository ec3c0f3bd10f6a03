"""One execution as List shows it, and the two things a commit can do to it."""

from __future__ import annotations

import msgspec


class ExecutionRecord(msgspec.Struct, array_like=True, gc=False):
    """A row of the projection. Times are nanoseconds since the epoch; 0 = not set."""

    namespace_id: str
    workflow_id: str
    run_id: str
    workflow_type: str
    status: int  # temporal.api.enums.v1.WorkflowExecutionStatus
    start_time: int
    execution_time: int
    close_time: int
    task_queue: str
    history_length: int
    history_size_bytes: int
    state_transition_count: int
    execution_duration: int  # close - execution time, nanoseconds
    memo: bytes  # serialized temporal.api.common.v1.Memo
    search_attributes: (
        bytes  # serialized temporal.api.common.v1.SearchAttributes, custom ones and SDK-set system ones
    )
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    root_workflow_id: str = ""
    root_run_id: str = ""


class DeleteRecord(msgspec.Struct, array_like=True, gc=False):
    """Takes a row out of the projection."""

    namespace_id: str
    run_id: str


VisibilityOp = ExecutionRecord | DeleteRecord
