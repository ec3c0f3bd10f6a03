"""Checks of requests that look for executions: list, scan, count, the older lists of open and closed ones.

The query language has its own errors, raised by whoever parses it. A page size out of range is no error
(`page_size`), except in the archive.
"""

from __future__ import annotations

from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.filter.v1 import StartTimeFilter
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    ListArchivedWorkflowExecutionsRequest,
    ListClosedWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
    ScanWorkflowExecutionsRequest,
)

from history_store.engine.durations import to_ns
from history_store.engine.errors import invalid
from history_store.engine.limits import Limits

_NOT_CLOSED = (
    int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED),
    int(WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING),
)


def page_size(asked: int, limits: Limits) -> int:
    """How many executions a page has."""
    return asked if 0 < asked <= limits.visibility_page_max else limits.visibility_page_max


def check_list(
    _request: ListWorkflowExecutionsRequest | ScanWorkflowExecutionsRequest | CountWorkflowExecutionsRequest,
    _limits: Limits,
) -> None:
    """ListWorkflowExecutions, ScanWorkflowExecutions, CountWorkflowExecutions: the query says it all."""


def check_list_open(request: ListOpenWorkflowExecutionsRequest, _limits: Limits) -> None:
    """ListOpenWorkflowExecutions."""
    _check_times(request.start_time_filter)


def check_list_closed(request: ListClosedWorkflowExecutionsRequest, _limits: Limits) -> None:
    """ListClosedWorkflowExecutions."""
    _check_times(request.start_time_filter)
    if request.WhichOneof("filters") == "status_filter" and request.status_filter.status in _NOT_CLOSED:
        raise invalid("StatusFilter must be specified and must be not Running.")


def check_list_archived(request: ListArchivedWorkflowExecutionsRequest, limits: Limits) -> None:
    """ListArchivedWorkflowExecutions: refused, since nothing is archived for it."""
    if request.page_size > limits.archival_page_max:
        raise invalid(f"PageSize is larger than allowed {limits.archival_page_max}.")
    raise invalid("Cluster is not configured for visibility archival.")


def _check_times(times: StartTimeFilter) -> None:
    if times.HasField("earliest_time") and times.HasField("latest_time"):
        latest = to_ns(times.latest_time)
        if latest and to_ns(times.earliest_time) > latest:
            raise invalid("EarliestTime in StartTimeFilter should not be larger than LatestTime.")
