"""Reads back what a server has: every run with its history, and what List says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from zlib import crc32

import grpc
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.enums.v1.workflow_pb2 import PendingWorkflowTaskState, WorkflowExecutionStatus
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.workflowservice.v1.request_response_pb2 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse,
)

from chaos.live.client import Client, Refused
from chaos.live.history import Event, Final, History, Kind, RunState

NAMESPACE = "default"
READS_AT_ONCE = 8
PAGE = 500
READ_S = 120.0  # both: of a busy machine
TASK_S_MAX = 60.0
TASK_PAUSE_S = 0.05

# Events of a workflow task that is not finished: not part of what was promised, they may be replaced.
_PASSING = {
    EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
    EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED,
}


def settled(events: list[HistoryEvent]) -> list[HistoryEvent]:
    """Without the workflow task that is under way at the end."""
    end = len(events)
    while end and events[end - 1].event_type in _PASSING:
        end -= 1
    return events[:end]


def digests(events: Iterable[HistoryEvent]) -> list[int]:
    """Checksums of the first 0, 1, 2, … events."""
    found = [0]
    for event in events:
        found.append(crc32(event.SerializeToString(deterministic=True), found[-1]))
    return found


def summary(event: HistoryEvent) -> Event:
    """What judges look at."""
    made = Event(event.event_id, EventType.Name(event.event_type).removeprefix("EVENT_TYPE_"))
    which = event.WhichOneof("attributes")
    attributes = getattr(event, which) if which else None
    match event.event_type:
        case (
            EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
            | EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
            | EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED
            | EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED
        ):
            made.name = attributes.identity  # type: ignore[union-attr]
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
            made.name = attributes.protocol_instance_id  # type: ignore[union-attr]
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
            made.name = attributes.meta.update_id  # type: ignore[union-attr]
        case EventType.EVENT_TYPE_TIMER_STARTED | EventType.EVENT_TYPE_TIMER_FIRED:
            made.subject = attributes.timer_id  # type: ignore[union-attr]
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            made.subject = str(event.event_id)
        case _ if made.type.startswith("ACTIVITY_TASK_"):
            made.subject = str(attributes.scheduled_event_id)  # type: ignore[union-attr]
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                made.name = attributes.identity  # type: ignore[union-attr]
        case _:
            pass
    return made


async def read_history(client: Client, workflow_id: str, run_id: str = "") -> list[HistoryEvent]:
    """All events of a run. Raises Refused."""
    events: list[HistoryEvent] = []
    request = GetWorkflowExecutionHistoryRequest(
        namespace=NAMESPACE,
        execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id),
        maximum_page_size=1000,
    )
    while True:
        answer = await client.call(
            "GetWorkflowExecutionHistory", request, GetWorkflowExecutionHistoryResponse, READ_S
        )
        events.extend(answer.history.events)
        if not answer.next_page_token:
            return events
        request.next_page_token = answer.next_page_token


async def read_list(client: Client, query: str = "") -> list[tuple[str, str, str]]:
    """(workflow id, run id, status) of everything that List shows. Raises Refused."""
    found: list[tuple[str, str, str]] = []
    request = ListWorkflowExecutionsRequest(namespace=NAMESPACE, query=query, page_size=PAGE)
    while True:
        answer = await client.call("ListWorkflowExecutions", request, ListWorkflowExecutionsResponse, READ_S)
        found += [(e.execution.workflow_id, e.execution.run_id, _status(e.status)) for e in answer.executions]
        if not answer.next_page_token:
            return found
        request.next_page_token = answer.next_page_token


async def read_run(client: Client, workflow_id: str, run_id: str = "") -> RunState:
    """One run; the current one if no run id is given. Raises Refused.

    While a worker has a workflow task, signals and results that arrive are kept apart and are no events yet.
    So a run is read when its task has been answered or has timed out.
    """
    execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    request = DescribeWorkflowExecutionRequest(namespace=NAMESPACE, execution=execution)
    for _ in range(round(TASK_S_MAX / TASK_PAUSE_S)):
        described = await client.call(
            "DescribeWorkflowExecution", request, DescribeWorkflowExecutionResponse, READ_S
        )
        if (
            described.pending_workflow_task.state
            != PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
        ):
            break
        await asyncio.sleep(TASK_PAUSE_S)
    else:
        raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "its workflow task neither ends nor times out")
    info = described.workflow_execution_info
    events = settled(await read_history(client, workflow_id, info.execution.run_id))
    return RunState(
        workflow_id=workflow_id,
        run_id=info.execution.run_id,
        status=_status(info.status),
        events=[summary(event) for event in events],
        digests=digests(events),
    )


async def read_everything(client: Client, history: History) -> Final:
    """What List shows and what anybody ever started, each read by itself."""
    final = Final()
    try:
        final.listed = await read_list(client)
    except Refused as refused:
        final.unread.append(f"List: {refused}")
    wanted: dict[tuple[str, str], None] = {
        (workflow_id, run_id): None for workflow_id, run_id, _ in final.listed
    }
    listed = {workflow_id for workflow_id, _, _ in final.listed}
    for operation in history.operations:
        if operation.kind in (Kind.START, Kind.SIGNAL_WITH_START) and operation.workflow_id not in listed:
            wanted[operation.workflow_id, ""] = None
    gate = asyncio.Semaphore(READS_AT_ONCE)

    async def read(workflow_id: str, run_id: str) -> None:
        async with gate:
            try:
                final.runs.append(await read_run(client, workflow_id, run_id))
            except Refused as refused:
                # Not there is an answer: whether that is right is the judge's business.
                if refused.code is not grpc.StatusCode.NOT_FOUND:
                    final.unread.append(f"{workflow_id}: {refused}")

    await asyncio.gather(*(read(*which) for which in wanted))
    return final


def _status(number: WorkflowExecutionStatus.ValueType) -> str:
    return WorkflowExecutionStatus.Name(number).removeprefix("WORKFLOW_EXECUTION_STATUS_")
