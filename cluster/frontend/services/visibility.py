"""Executions as lists and counts: List, Scan, Count, the older lists, and the attributes there are.

A reply is put together on the reader's thread, of bytes where the projection has bytes: memo and search
attributes of an execution are messages already, and go out as they came in.
"""

from __future__ import annotations

from collections.abc import Iterable
from sqlite3 import Connection
from typing import TYPE_CHECKING

from temporalio.api.workflow.v1.message_pb2 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.frontend.services.readers import Readers
from cluster.frontend.validate.visibility import page_size
from cluster.hosting.answers import varint
from history_store.engine.durations import from_ns, timestamp_from_ns, to_ns
from history_store.engine.errors import invalid
from history_store.visibility import attributes, filters, search

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from history_store.visibility.record import ExecutionRecord

Old = wire.ListOpenWorkflowExecutionsRequest | wire.ListClosedWorkflowExecutionsRequest

# Length-delimited fields, as protobuf tags them.
EXECUTIONS_FIELD = b"\x0a"  # of all the list responses: executions = 1
TOKEN_FIELD = b"\x12"  # next_page_token = 2
MEMO_FIELD = b"\x52"  # WorkflowExecutionInfo.memo = 10
ATTRIBUTES_FIELD = b"\x5a"  # WorkflowExecutionInfo.search_attributes = 11


@rpc(wire.ListWorkflowExecutionsRequest)
def list_workflows(services: Services, call: Call, request: wire.ListWorkflowExecutionsRequest) -> None:
    """ListWorkflowExecutions."""
    _list(services, call, request.namespace, request.query, request.page_size, request.next_page_token)


@rpc(wire.ScanWorkflowExecutionsRequest)
def scan_workflows(services: Services, call: Call, request: wire.ScanWorkflowExecutionsRequest) -> None:
    """ScanWorkflowExecutions: the same as List."""
    _list(services, call, request.namespace, request.query, request.page_size, request.next_page_token)


@rpc(wire.ListOpenWorkflowExecutionsRequest)
def list_open(services: Services, call: Call, request: wire.ListOpenWorkflowExecutionsRequest) -> None:
    """ListOpenWorkflowExecutions."""
    earliest, latest = _times(request)
    query = filters.open_executions(
        earliest, latest, request.execution_filter.workflow_id, request.type_filter.name
    )
    _list(services, call, request.namespace, query, request.maximum_page_size, request.next_page_token)


@rpc(wire.ListClosedWorkflowExecutionsRequest)
def list_closed(services: Services, call: Call, request: wire.ListClosedWorkflowExecutionsRequest) -> None:
    """ListClosedWorkflowExecutions."""
    earliest, latest = _times(request)
    query = filters.closed_executions(
        earliest,
        latest,
        request.execution_filter.workflow_id,
        request.type_filter.name,
        request.status_filter.status,
    )
    _list(services, call, request.namespace, query, request.maximum_page_size, request.next_page_token)


@rpc(wire.ListArchivedWorkflowExecutionsRequest)
def list_archived(
    _services: Services, _call: Call, _request: wire.ListArchivedWorkflowExecutionsRequest
) -> bytes:
    """ListArchivedWorkflowExecutions: there is no archive."""
    raise invalid("Cluster is not configured for visibility archival.")


@rpc(wire.CountWorkflowExecutionsRequest)
def count_workflows(services: Services, call: Call, request: wire.CountWorkflowExecutionsRequest) -> None:
    """CountWorkflowExecutions."""
    namespace = services.namespace(request.namespace)
    known, query = namespace.search_attributes, request.query

    def work(connection: Connection) -> bytes:
        count, groups = search.count_executions(connection, namespace.id, query, known)
        response = wire.CountWorkflowExecutionsResponse(count=count)
        for group in groups:
            response.groups.add(group_values=group.values, count=group.count)
        return response.SerializeToString()

    services.part(Readers).read(call, work)


@rpc(wire.GetSearchAttributesRequest)
def get_search_attributes(
    services: Services, _call: Call, _request: wire.GetSearchAttributesRequest
) -> bytes:
    """GetSearchAttributes: it names no namespace, so it tells the attributes of all."""
    response = wire.GetSearchAttributesResponse()
    keys = response.keys
    for namespace in services.meta.by_name.values():
        for name, value_type in namespace.search_attributes.items():
            keys[name] = value_type  # type: ignore[assignment]
    for family in (attributes.SYSTEM, attributes.PREDEFINED):
        for name, value_type in family.items():
            keys[name] = value_type  # type: ignore[assignment]
    return response.SerializeToString()


def _times(request: Old) -> tuple[int, int]:
    times = request.start_time_filter
    return to_ns(times.earliest_time), to_ns(times.latest_time)


def _list(services: Services, call: Call, name: str, query: search.Filter, asked: int, token: bytes) -> None:
    namespace = services.namespace(name)
    known, size = namespace.search_attributes, page_size(asked, services.limits)

    def work(connection: Connection) -> bytes:
        records, following = search.list_executions(connection, namespace.id, query, known, size, token)
        return page(records, following)

    services.part(Readers).read(call, work)


def page(records: Iterable[ExecutionRecord], token: bytes) -> bytes:
    """A list response: all of them have the same two fields."""
    parts = []
    for record in records:
        info = execution(record)
        parts += [EXECUTIONS_FIELD, varint(len(info)), info]
    if token:
        parts += [TOKEN_FIELD, varint(len(token)), token]
    return b"".join(parts)


def execution(record: ExecutionRecord) -> bytes:
    """A serialized WorkflowExecutionInfo."""
    info = WorkflowExecutionInfo(task_queue=record.task_queue, status=record.status)  # type: ignore[arg-type]
    info.execution.workflow_id = record.workflow_id
    info.execution.run_id = record.run_id
    info.type.name = record.workflow_type
    timestamp_from_ns(record.start_time, info.start_time)
    timestamp_from_ns(record.execution_time or record.start_time, info.execution_time)
    info.root_execution.workflow_id = record.root_workflow_id or record.workflow_id
    info.root_execution.run_id = record.root_run_id or record.run_id
    if record.parent_workflow_id:
        info.parent_execution.workflow_id = record.parent_workflow_id
        info.parent_execution.run_id = record.parent_run_id
    if record.close_time:
        timestamp_from_ns(record.close_time, info.close_time)
        from_ns(record.execution_duration, info.execution_duration)
        info.history_length = record.history_length
        info.history_size_bytes = record.history_size_bytes
        info.state_transition_count = record.state_transition_count
    return b"".join(
        (
            info.SerializeToString(),
            MEMO_FIELD,
            varint(len(record.memo)),
            record.memo,
            ATTRIBUTES_FIELD,
            varint(len(record.search_attributes)),
            record.search_attributes,
        )
    )
