"""Executions as lists and counts: List, Scan, Count, the older lists, and the attributes there are.

A reply is put together on the reader's thread, of bytes where the projection has bytes: memo and search
attributes of an execution are messages already, and go out as they came in. Where several nodes have a part
each of the answer (see `cluster.hosting.calls.parts`), a part of a list has the executions as they will go
out, and what they sort by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from sqlite3 import Connection
from typing import TYPE_CHECKING

import msgspec
from temporalio.api.workflow.v1.message_pb2 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.frontend.services.readers import Readers
from cluster.frontend.validate.visibility import page_size
from cluster.hosting.tasks.answers import varint
from history_store.engine.durations import from_ns, timestamp_from_ns, to_ns
from history_store.engine.errors import invalid
from history_store.visibility import attributes, filters, pages, search

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from history_store.visibility.record import ExecutionRecord
    from history_store.visibility.sql import Slots

Old = wire.ListOpenWorkflowExecutionsRequest | wire.ListClosedWorkflowExecutionsRequest

# Length-delimited fields, as protobuf tags them.
EXECUTIONS_FIELD = b"\x0a"  # of all the list responses: executions = 1
TOKEN_FIELD = b"\x12"  # next_page_token = 2
MEMO_FIELD = b"\x52"  # WorkflowExecutionInfo.memo = 10
ATTRIBUTES_FIELD = b"\x5a"  # WorkflowExecutionInfo.search_attributes = 11

PART_BYTES = 8 << 20  # of one node's part: other messages to the same node wait behind it
SHORT_QUERY = 1_000  # characters; such a query is read once, and remembered (`search`)

_encode = msgspec.msgpack.Encoder().encode
_decode_part = msgspec.msgpack.Decoder(tuple[list[bytes], list[pages.Position], bool]).decode
_decode_tally = msgspec.msgpack.Decoder(search.Tally).decode


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
    question = _Count(namespace.id, request.query, namespace.search_attributes)
    services.part(Readers).ask(call, question)


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
    size = page_size(asked, services.limits)
    services.part(Readers).ask(
        call, _List(namespace.id, query, dict(namespace.search_attributes), size, token)
    )


@dataclass(frozen=True, slots=True)
class _Question:
    """What both have in common."""

    namespace_id: str
    query: search.Filter
    known: Mapping[str, int]  # the namespace's search attributes

    def slots(self) -> frozenset[int] | None:
        """Those of the workflow ids that the query names."""
        if isinstance(self.query, str) and len(self.query) > SHORT_QUERY:
            return None  # reading it takes a while, and that is not for the loop
        return search.slots_of(self.namespace_id, self.query, self.known)


@dataclass(frozen=True, slots=True)
class _List(_Question):
    """A page of executions (a `parts.Question`)."""

    size: int
    token: bytes

    def whole(self, connection: Connection) -> bytes:
        """The page, of all there is here."""
        records, following = search.list_executions(
            connection, self.namespace_id, self.query, self.known, self.size, self.token
        )
        return page(map(execution, records), following)

    def part(self, connection: Connection, slots: Slots | None) -> bytes:
        """What there is here of it, cut where it is too long for one message."""
        found = search.list_part(
            connection, self.namespace_id, self.query, self.known, self.size, self.token, slots
        )
        infos: list[bytes] = []
        size = 0
        for record in found.items:
            infos.append(execution(record))
            size += len(infos[-1])
            if size > PART_BYTES:
                break
        more = found.more or len(infos) < len(found.items)
        return _encode((infos, found.positions[: len(infos)], more))

    def together(self, parts: list[bytes]) -> bytes:
        """The page, of all nodes' parts."""
        found = [pages.Part(*_decode_part(part)) for part in parts]
        descending = search.directions(self.query, self.known)
        infos, last = pages.merge(found, descending, search.page_rows(self.size))
        digest = pages.digest(self.namespace_id, self.query)
        return page(infos, b"" if last is None else pages.write_token(digest, last))


@dataclass(frozen=True, slots=True)
class _Count(_Question):
    """How many there are (a `parts.Question`)."""

    def whole(self, connection: Connection) -> bytes:
        """The count of all there is here."""
        return counted(search.count_part(connection, self.namespace_id, self.query, self.known))

    def part(self, connection: Connection, slots: Slots | None) -> bytes:
        """The count in these slots."""
        return _encode(search.count_part(connection, self.namespace_id, self.query, self.known, slots))

    def together(self, parts: list[bytes]) -> bytes:
        """The count of all."""
        grouped_by, total = search.grouped_by(self.query, self.known), search.Tally()
        for part in parts:
            total.add(_decode_tally(part), grouped_by)
        return counted(total)


def counted(tally: search.Tally) -> bytes:
    """A count's response."""
    response = wire.CountWorkflowExecutionsResponse(count=tally.count)
    for group in tally.groups():
        response.groups.add(group_values=group.values, count=group.count)
    return response.SerializeToString()


def page(infos: Iterable[bytes], token: bytes) -> bytes:
    """A list response of serialized WorkflowExecutionInfos: all of them have the same two fields."""
    parts = []
    for info in infos:
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
