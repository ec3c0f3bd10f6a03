"""Runs that speak to other runs: children, signals and cancel requests to the outside, and the answers.

The asking run writes an Initiated event and leaves an action behind. After the commit the action is done on
the other run (which deduplicates by request id), and its outcome is written back here; then the action's row
goes. If the node dies between, the action is done again and comes to the same end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import cron, retry, start, workflow_task
from history_store.engine import state as st
from history_store.engine.command_rules import BadCommand
from history_store.engine.durations import from_ns, timestamp_from_ns, to_ns
from history_store.engine.run import ID_BUFFERED
from history_store.engine.state import EXTERNAL_CANCEL, EXTERNAL_SIGNAL, Action, ChildState, ExternalState

if TYPE_CHECKING:
    from temporalio.api.command.v1.message_pb2 import Command

    from history_store.engine.run import Run, Transaction

E = event_type_pb2
F = failed_cause_pb2


def _namespace(tx: Transaction, run: Run, name: str, cause: int) -> tuple[str, str]:
    """(name, id) of the namespace a command means; its own if it names none."""
    if not name:
        return tx.env.namespace_name_of(run.state.namespace_id), run.state.namespace_id
    found = tx.env.namespace_id_of(name)
    if found is None:
        raise BadCommand(cause, f"Namespace {name} is not found.")
    return name, found


# ---- children


def initiate(tx: Transaction, run: Run, command: Command, completed_id: int) -> None:
    """A worker's command starts a child."""
    wanted = command.start_child_workflow_execution_command_attributes
    cause = F.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_CHILD_EXECUTION_ATTRIBUTES
    name, namespace_id = _namespace(tx, run, wanted.namespace, cause)
    tx.env.check_search_attributes(namespace_id, wanted.search_attributes)
    attributes = history.StartChildWorkflowExecutionInitiatedEventAttributes(
        namespace=name,
        namespace_id=namespace_id,
        workflow_id=wanted.workflow_id,
        workflow_type=wanted.workflow_type,
        task_queue=wanted.task_queue,
        workflow_execution_timeout=wanted.workflow_execution_timeout,
        workflow_run_timeout=wanted.workflow_run_timeout,
        workflow_task_timeout=wanted.workflow_task_timeout,
        parent_close_policy=wanted.parent_close_policy or workflow_pb2.PARENT_CLOSE_POLICY_TERMINATE,
        control=wanted.control,
        workflow_task_completed_event_id=completed_id,
        workflow_id_reuse_policy=wanted.workflow_id_reuse_policy
        or workflow_pb2.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE,
        cron_schedule=wanted.cron_schedule,
        inherit_build_id=wanted.inherit_build_id,
    )
    if not attributes.task_queue.name:
        attributes.task_queue.name = run.state.task_queue
    attributes.task_queue.kind = workflow_task.NORMAL_KIND
    for field in (
        "input",
        "retry_policy",
        "header",
        "memo",
        "search_attributes",
        "priority",
        "versioning_override",
    ):
        if wanted.HasField(field):
            getattr(attributes, field).CopyFrom(getattr(wanted, field))
    if attributes.HasField("retry_policy"):
        retry.fill_defaults(attributes.retry_policy)
    event = run.event(
        E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
        start_child_workflow_execution_initiated_event_attributes=attributes,
    )
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)
    child = ChildState(
        event.event_id,
        run.batch_first,
        name,
        namespace_id,
        wanted.workflow_id,
        wanted.workflow_type.name,
        attributes.parent_close_policy,
        tx.env.new_id(),
    )
    run.touch_child(child)
    tx.act(
        action(
            "start_child",
            run,
            child.initiated_id,
            run.batch_first,
            namespace_id,
            wanted.workflow_id,
            "",
            child.request_id,
            policy=attributes.parent_close_policy,
        )
    )


def action(
    kind: str,
    run: Run,
    event_id: int,
    batch_id: int,
    namespace_id: str,
    workflow_id: str,
    run_id: str,
    request_id: str,
    policy: int = 0,
) -> Action:
    """What the run asks of another one: its event, and the batch that has that."""
    s = run.state
    return Action(
        kind,
        s.namespace_id,
        s.workflow_id,
        s.run_id,
        event_id,
        batch_id,
        namespace_id,
        workflow_id,
        run_id,
        policy,
        b"",
        request_id,
    )


def child_attributes(
    tx: Transaction, parent: Run, initiated: history.HistoryEvent, run_id: str
) -> start.Started:
    """The started attributes of a child, from its parent's Initiated event."""
    wanted = initiated.start_child_workflow_execution_initiated_event_attributes
    p = parent.state
    attributes = start.Started(
        workflow_id=wanted.workflow_id,
        workflow_type=wanted.workflow_type,
        task_queue=wanted.task_queue,
        parent_workflow_namespace=tx.env.namespace_name_of(p.namespace_id),
        parent_workflow_namespace_id=p.namespace_id,
        parent_workflow_execution=WorkflowExecution(workflow_id=p.workflow_id, run_id=p.run_id),
        parent_initiated_event_id=initiated.event_id,
        parent_initiated_event_version=initiated.version,
        root_workflow_execution=WorkflowExecution(workflow_id=p.root_workflow_id, run_id=p.root_run_id),
        original_execution_run_id=run_id,
        first_execution_run_id=run_id,
        cron_schedule=wanted.cron_schedule,
        attempt=1,
    )
    for field in (
        "input",
        "retry_policy",
        "header",
        "memo",
        "search_attributes",
        "priority",
        "versioning_override",
    ):
        if wanted.HasField(field):
            getattr(attributes, field).CopyFrom(getattr(wanted, field))
    if not attributes.HasField("priority") and p.priority:
        attributes.priority.ParseFromString(p.priority)
    execution_timeout = to_ns(wanted.workflow_execution_timeout)
    start.set_timeouts(
        tx.env,
        attributes,
        execution_timeout,
        to_ns(wanted.workflow_run_timeout),
        to_ns(wanted.workflow_task_timeout),
    )
    backoff = 0
    if wanted.cron_schedule:
        backoff = cron.first_backoff(wanted.cron_schedule, tx.now)
        from_ns(backoff, attributes.first_workflow_task_backoff)
        attributes.initiator = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    if execution_timeout:
        timestamp_from_ns(tx.now + execution_timeout + backoff, attributes.workflow_execution_expiration_time)
    return attributes


def child_started(tx: Transaction, run: Run, child: ChildState, run_id: str) -> None:
    """The child runs."""
    if child.started_id or not run.running:
        return
    initiated = tx.env.load_event(run, child.batch_id, child.initiated_id)
    wanted = initiated.start_child_workflow_execution_initiated_event_attributes
    attributes = history.ChildWorkflowExecutionStartedEventAttributes(
        namespace=child.namespace,
        namespace_id=child.namespace_id,
        initiated_event_id=child.initiated_id,
        workflow_execution=WorkflowExecution(workflow_id=child.workflow_id, run_id=run_id),
        workflow_type=WorkflowType(name=child.workflow_type),
    )
    if wanted.HasField("header"):
        attributes.header.CopyFrom(wanted.header)
    event = run.outside_event(
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED,
        child_workflow_execution_started_event_attributes=attributes,
    )
    child.started_id = event.event_id or ID_BUFFERED
    child.run_id = run_id
    run.touch_child(child)
    workflow_task.ensure(tx, run)


def child_start_failed(tx: Transaction, run: Run, child: ChildState, cause: int) -> None:
    """The child could not be started."""
    if not run.running:
        return
    initiated = tx.env.load_event(run, child.batch_id, child.initiated_id)
    wanted = initiated.start_child_workflow_execution_initiated_event_attributes
    run.outside_event(
        E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED,
        start_child_workflow_execution_failed_event_attributes=(
            history.StartChildWorkflowExecutionFailedEventAttributes(
                namespace=child.namespace,
                namespace_id=child.namespace_id,
                workflow_id=child.workflow_id,
                workflow_type=WorkflowType(name=child.workflow_type),
                cause=cause,  # type: ignore[arg-type]
                control=wanted.control,
                initiated_event_id=child.initiated_id,
                workflow_task_completed_event_id=wanted.workflow_task_completed_event_id,
            )
        ),
    )
    run.drop_child(child)
    workflow_task.ensure(tx, run)


def child_closed(
    tx: Transaction,
    run: Run,
    child: ChildState,
    status: int,
    payload: bytes,
    first_run_id: str,
    run_id: str = "",
) -> None:
    """The child (its whole chain) has ended; `payload` is its closing event's attributes.

    `run_id` is the run that ended last, if it is not the first one.
    """
    if not run.running:
        return
    if not child.started_id:
        child_started(tx, run, child, first_run_id)
    common: dict[str, Any] = {
        "namespace": child.namespace,
        "namespace_id": child.namespace_id,
        "workflow_execution": WorkflowExecution(workflow_id=child.workflow_id, run_id=run_id or first_run_id),
        "workflow_type": WorkflowType(name=child.workflow_type),
        "initiated_event_id": child.initiated_id,
        "started_event_id": max(child.started_id, 0),
    }
    if status == st.COMPLETED:
        done = history.WorkflowExecutionCompletedEventAttributes.FromString(payload)
        completed = history.ChildWorkflowExecutionCompletedEventAttributes(**common)
        if done.HasField("result"):
            completed.result.CopyFrom(done.result)
        run.outside_event(
            E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
            child_workflow_execution_completed_event_attributes=completed,
        )
    elif status == st.FAILED:
        gone = history.WorkflowExecutionFailedEventAttributes.FromString(payload)
        run.outside_event(
            E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
            child_workflow_execution_failed_event_attributes=history.ChildWorkflowExecutionFailedEventAttributes(
                failure=gone.failure, retry_state=gone.retry_state, **common
            ),
        )
    elif status == st.CANCELED:
        canceled = history.ChildWorkflowExecutionCanceledEventAttributes(**common)
        left = history.WorkflowExecutionCanceledEventAttributes.FromString(payload)
        if left.HasField("details"):
            canceled.details.CopyFrom(left.details)
        run.outside_event(
            E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
            child_workflow_execution_canceled_event_attributes=canceled,
        )
    elif status == st.TIMED_OUT:
        late = history.WorkflowExecutionTimedOutEventAttributes.FromString(payload)
        run.outside_event(
            E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
            child_workflow_execution_timed_out_event_attributes=history.ChildWorkflowExecutionTimedOutEventAttributes(
                retry_state=late.retry_state, **common
            ),
        )
    else:
        assert status == st.TERMINATED, f"a chain does not end with status {status}"
        run.outside_event(
            E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
            child_workflow_execution_terminated_event_attributes=(
                history.ChildWorkflowExecutionTerminatedEventAttributes(**common)
            ),
        )
    run.drop_child(child)
    workflow_task.ensure(tx, run)


# ---- signals and cancel requests to other workflows


def signal_external(tx: Transaction, run: Run, command: Command, completed_id: int) -> None:
    """A worker's command signals another workflow."""
    wanted = command.signal_external_workflow_execution_command_attributes
    cause = F.WORKFLOW_TASK_FAILED_CAUSE_BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES
    name, namespace_id = _namespace(tx, run, wanted.namespace, cause)
    attributes = history.SignalExternalWorkflowExecutionInitiatedEventAttributes(
        workflow_task_completed_event_id=completed_id,
        namespace=name,
        namespace_id=namespace_id,
        workflow_execution=wanted.execution,
        signal_name=wanted.signal_name,
        control=wanted.control,
        child_workflow_only=wanted.child_workflow_only,
    )
    for field in ("input", "header"):
        if wanted.HasField(field):
            getattr(attributes, field).CopyFrom(getattr(wanted, field))
    event = run.event(
        E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        signal_external_workflow_execution_initiated_event_attributes=attributes,
    )
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)
    request = ExternalState(event.event_id, run.batch_first, EXTERNAL_SIGNAL, tx.env.new_id())
    run.put_external(request)
    tx.act(
        action(
            "signal",
            run,
            event.event_id,
            run.batch_first,
            namespace_id,
            wanted.execution.workflow_id,
            wanted.execution.run_id,
            request.request_id,
        )
    )


def cancel_external(tx: Transaction, run: Run, command: Command, completed_id: int) -> None:
    """A worker's command asks another workflow to cancel."""
    wanted = command.request_cancel_external_workflow_execution_command_attributes
    cause = F.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES
    name, namespace_id = _namespace(tx, run, wanted.namespace, cause)
    event = run.event(
        E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        request_cancel_external_workflow_execution_initiated_event_attributes=(
            history.RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(
                workflow_task_completed_event_id=completed_id,
                namespace=name,
                namespace_id=namespace_id,
                workflow_execution=WorkflowExecution(workflow_id=wanted.workflow_id, run_id=wanted.run_id),
                control=wanted.control,
                child_workflow_only=wanted.child_workflow_only,
                reason=wanted.reason,
            )
        ),
    )
    if command.HasField("user_metadata"):
        event.user_metadata.CopyFrom(command.user_metadata)
    request = ExternalState(event.event_id, run.batch_first, EXTERNAL_CANCEL, tx.env.new_id())
    run.put_external(request)
    tx.act(
        action(
            "cancel",
            run,
            event.event_id,
            run.batch_first,
            namespace_id,
            wanted.workflow_id,
            wanted.run_id,
            request.request_id,
        )
    )


def external_done(tx: Transaction, run: Run, request: ExternalState, failed_cause: int) -> None:
    """The other workflow has the signal or cancel request, or cannot have it (`failed_cause`)."""
    if not run.running:
        return
    initiated = tx.env.load_event(run, request.batch_id, request.initiated_id)
    if request.kind == EXTERNAL_SIGNAL:
        _signal_done(run, request, initiated, failed_cause)
    else:
        _cancel_done(run, request, initiated, failed_cause)
    run.drop_external(request)
    workflow_task.ensure(tx, run)


def _signal_done(
    run: Run, request: ExternalState, initiated: history.HistoryEvent, failed_cause: int
) -> None:
    asked = initiated.signal_external_workflow_execution_initiated_event_attributes
    common: dict[str, Any] = {
        "initiated_event_id": request.initiated_id,
        "namespace": asked.namespace,
        "namespace_id": asked.namespace_id,
        "workflow_execution": asked.workflow_execution,
        "control": asked.control,
    }
    if failed_cause:
        run.outside_event(
            E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED,
            signal_external_workflow_execution_failed_event_attributes=(
                history.SignalExternalWorkflowExecutionFailedEventAttributes(
                    cause=failed_cause,  # type: ignore[arg-type]
                    workflow_task_completed_event_id=asked.workflow_task_completed_event_id,
                    **common,
                )
            ),
        )
        return
    run.outside_event(
        E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED,
        external_workflow_execution_signaled_event_attributes=(
            history.ExternalWorkflowExecutionSignaledEventAttributes(**common)
        ),
    )


def _cancel_done(
    run: Run, request: ExternalState, initiated: history.HistoryEvent, failed_cause: int
) -> None:
    asked = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
    common: dict[str, Any] = {
        "initiated_event_id": request.initiated_id,
        "namespace": asked.namespace,
        "namespace_id": asked.namespace_id,
        "workflow_execution": asked.workflow_execution,
    }
    if failed_cause:
        run.outside_event(
            E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED,
            request_cancel_external_workflow_execution_failed_event_attributes=(
                history.RequestCancelExternalWorkflowExecutionFailedEventAttributes(
                    cause=failed_cause,  # type: ignore[arg-type]
                    workflow_task_completed_event_id=asked.workflow_task_completed_event_id,
                    control=asked.control,
                    **common,
                )
            ),
        )
        return
    run.outside_event(
        E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED,
        external_workflow_execution_cancel_requested_event_attributes=(
            history.ExternalWorkflowExecutionCancelRequestedEventAttributes(**common)
        ),
    )
