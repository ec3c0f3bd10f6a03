"""`holdfast workflow why`: ask the server about one run and say what it waits for.

The reasoning is in why.py; here are the RPCs it needs and the two forms of the answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from cluster.admin.connection import Connection, Server, connect, connection_options, run
from cluster.admin.output import Group, json_option, moment, print_json

if TYPE_CHECKING:
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse, DescribeWorkflowExecutionResponse

    from cluster.admin.why import Digest, Evidence, Finding, Queue

SHOWN_MAX = 25  # findings in words; --json has all
HISTORY_PAGE = 1000  # events


@click.group(cls=Group)
def workflow() -> None:
    """Say what a workflow run is waiting for.

    \b
    Example:
      holdfast workflow why order-17
    """


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@click.option("--run", "run_id", default="", help="Run id; without it, the current or latest run.")
@connection_options
@json_option
def why(workflow_id: str, run_id: str, connection: Connection, as_json: bool) -> None:
    """Say in plain words what a run waits for, and what to do about it.

    Tells of task queues nobody polls, failing workflow tasks, activities in backoff with
    the error that put them there, timers and when they fire, children, undelivered signals,
    running updates, pauses; of a closed run, how and when it ended.

    \b
    Examples:
      holdfast workflow why order-17
      holdfast workflow why order-17 --run 0197b8a4-6d1c-7c80-a3f1-0d6f5a1e8d5e --json
    """
    run(answer(connection, workflow_id, run_id, as_json))


async def answer(connection: Connection, workflow_id: str, run_id: str, as_json: bool) -> None:
    """Ask, think, tell."""
    from cluster.admin.why import findings

    server = await connect(connection)
    evidence = await gather(server, workflow_id, run_id)
    found = findings(evidence)
    if as_json:
        print_json(_as_json(evidence, found))
    else:
        click.echo(_in_words(evidence, found))


async def gather(server: Server, workflow_id: str, run_id: str) -> Evidence:
    """Make the RPCs: describe, the history, and the task queues on which something waits."""
    from temporalio.api.common.v1 import WorkflowExecution
    from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest

    from cluster.admin.why import Evidence, queues_involved

    execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    service = server.client.workflow_service
    described = await server.call(
        service.describe_workflow_execution,
        DescribeWorkflowExecutionRequest(namespace=server.namespace, execution=execution),
    )
    digest = await _history(server, described)
    now = time.time_ns()
    queues = {queue: await _queue(server, queue) for queue in queues_involved(described, digest, now)}
    return Evidence(described, digest, queues, now)


async def _history(server: Server, described: DescribeWorkflowExecutionResponse) -> Digest:
    """All of the history of an open run; of a closed one the last event is enough."""
    from temporalio.api.enums.v1 import HistoryEventFilterType
    from temporalio.api.history.v1 import HistoryEvent
    from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest

    from cluster.admin.why import digest, is_open

    only_close = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
    every = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT
    events: list[HistoryEvent] = []
    token = b""
    while True:
        page = await server.call(
            server.client.workflow_service.get_workflow_execution_history,
            GetWorkflowExecutionHistoryRequest(
                namespace=server.namespace,
                execution=described.workflow_execution_info.execution,
                maximum_page_size=HISTORY_PAGE,
                next_page_token=token,
                history_event_filter_type=every if is_open(described) else only_close,
            ),
        )
        events += page.history.events
        token = page.next_page_token
        if not token:
            return digest(events)


async def _queue(server: Server, queue: Queue) -> DescribeTaskQueueResponse:
    from temporalio.api.taskqueue.v1 import TaskQueue
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

    return await server.call(
        server.client.workflow_service.describe_task_queue,
        DescribeTaskQueueRequest(
            namespace=server.namespace,
            task_queue=TaskQueue(name=queue.name),
            task_queue_type=queue.type,
            report_stats=True,
        ),
    )


def _heading(evidence: Evidence) -> tuple[str, str, str, str]:
    from temporalio.api.enums.v1 import WorkflowExecutionStatus

    info = evidence.described.workflow_execution_info
    status = WorkflowExecutionStatus.Name(info.status).removeprefix("WORKFLOW_EXECUTION_STATUS_").lower()
    return info.execution.workflow_id, info.execution.run_id, info.type.name, status


def _as_json(evidence: Evidence, found: list[Finding]) -> dict[str, object]:
    workflow_id, run_id, type_name, status = _heading(evidence)
    return {
        "workflow_id": workflow_id,
        "run_id": run_id,
        "type": type_name,
        "status": status,
        "started": moment(evidence.described.workflow_execution_info.start_time.ToNanoseconds()),
        "waits_for": [finding.as_json() for finding in found],
    }


def _in_words(evidence: Evidence, found: list[Finding]) -> str:
    workflow_id, run_id, type_name, status = _heading(evidence)
    lines = [f"{workflow_id} ({type_name}, run {run_id}) is {status.replace('_', ' ')}"]
    for finding in found[:SHOWN_MAX]:
        lines.append(f"  - {finding.text}")
        if finding.do:
            lines.append(f"    do: {finding.do}")
    if len(found) > SHOWN_MAX:
        lines.append(f"  … and {len(found) - SHOWN_MAX} more; --json tells all")
    return "\n".join(lines)
