"""What comes in from outside: signals and cancel requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.enums.v1.failed_cause_pb2 import WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND
from temporalio.api.errordetails.v1.message_pb2 import NotFoundFailure
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import workflow_task
from history_store.engine.errors import Code, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from temporalio.api.common.v1.message_pb2 import Header, Link, Payloads, WorkflowExecution

    from history_store.engine.run import Run, Transaction

E = event_type_pb2


def not_running() -> ServiceError:
    """The run is closed."""
    return ServiceError(Code.NOT_FOUND, "workflow execution already completed", NotFoundFailure())


def require_running(run: Run) -> None:
    """NOT_FOUND if the run is closed."""
    if not run.running:
        raise not_running()


def signal(
    tx: Transaction,
    run: Run,
    name: str,
    payloads: Payloads | None,
    header: Header | None,
    identity: str,
    request_id: str,
    links: Iterable[Link] = (),
    external: WorkflowExecution | None = None,
    skip_task: bool = False,
) -> None:
    """Record a signal, once a request id."""
    require_running(run)
    if request_id and request_id in run.signal_ids:
        return
    limit = tx.env.limits.signals_max
    if limit and run.state.signal_count >= limit:
        raise ServiceError(
            Code.RESOURCE_EXHAUSTED, f"exceeded workflow execution limit for signal events ({limit})"
        )
    if len(run.buffered) >= tx.env.limits.buffered_events_max and run.task_started:
        _too_many_buffered(tx, run)
    run.state.signal_count += 1
    attributes = history.WorkflowExecutionSignaledEventAttributes(
        signal_name=name, identity=identity, request_id=request_id
    )
    if payloads is not None:
        attributes.input.CopyFrom(payloads)
    if header is not None:
        attributes.header.CopyFrom(header)
    if external is not None:
        attributes.external_workflow_execution.CopyFrom(external)
    run.outside_event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        workflow_execution_signaled_event_attributes=attributes,
        links=links,
    )
    if request_id:
        run.put_signal_id(request_id)
    if not skip_task:
        workflow_task.ensure(tx, run)


def _too_many_buffered(tx: Transaction, run: Run) -> None:
    """The started workflow task has kept events waiting too long: fail it, so that they get their place."""
    task = run.state.task
    assert task is not None
    workflow_task.fail(tx, run, task, WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND, None, "history-service")


def request_cancel(
    tx: Transaction,
    run: Run,
    identity: str,
    request_id: str,
    cause: str,
    links: Iterable[Link] = (),
    external: WorkflowExecution | None = None,
    initiated_id: int = 0,
) -> None:
    """Record a cancel request. A second one, and one for a closed run, succeed and change nothing."""
    state = run.state
    if not run.running or state.cancel_requested:
        return
    attributes = history.WorkflowExecutionCancelRequestedEventAttributes(cause=cause, identity=identity)
    if external is not None:
        attributes.external_workflow_execution.CopyFrom(external)
        attributes.external_initiated_event_id = initiated_id
    run.outside_event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED,
        workflow_execution_cancel_requested_event_attributes=attributes,
        links=links,
    )
    state.cancel_requested = True
    state.cancel_request_id = request_id
    workflow_task.ensure(tx, run)
