"""Checks of requests that may start a workflow: start, signal-with-start, update-with-start.

A check completes the request in place where Temporal does before it writes the first event: unset fields of
the retry policy get their defaults, and durations beyond a century are cut.
"""

from __future__ import annotations

from google.protobuf.any_pb2 import Any as AnyMessage
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy, WorkflowIdReusePolicy
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure
from temporalio.api.failure.v1 import MultiOperationExecutionAborted
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    SignalWithStartWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)

from cluster.frontend.validate import fields
from cluster.frontend.validate.update import check_update
from history_store.engine import cron
from history_store.engine.durations import to_ns
from history_store.engine.errors import Code, ServiceError, invalid
from history_store.engine.field_rules import (
    byte_length,
    check_duration,
    check_priority,
    check_versioning_override,
    too_long,
)
from history_store.engine.limits import Limits

_REUSE_POLICIES = tuple(int(value) for value in WorkflowIdReusePolicy.values())
_CONFLICT_POLICIES = tuple(int(value) for value in WorkflowIdConflictPolicy.values())
_TERMINATE_IF_RUNNING = int(WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING)
_REJECT_DUPLICATE = int(WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE)
_TERMINATE_EXISTING = int(WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING)
_FAIL = int(WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL)

_Start = StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest

_NOT_EXECUTED = "Update-with-Start could not be executed."
_NOT_START_AND_UPDATE = "Operations have to be exactly [Start, Update]."


def check_start(request: StartWorkflowExecutionRequest, limits: Limits) -> None:
    """StartWorkflowExecution."""
    fields.check_workflow_id(request.workflow_id, limits)
    if request.HasField("retry_policy"):
        fields.check_retry_policy(request.retry_policy)
    _check_start_delay(request)
    if request.cron_schedule:
        cron.validate(request.cron_schedule)
    workflow_type = request.workflow_type.name
    if not workflow_type:
        raise invalid("WorkflowType is not set on request.")
    if too_long(workflow_type, limits.id_bytes_max):
        raise fields.over("WorkflowType length", byte_length(workflow_type), limits.id_bytes_max)
    fields.check_user_queue(request.task_queue, limits, present=request.HasField("task_queue"))
    _check_timeouts(request)
    fields.check_request_id(request.request_id, limits)
    _check_id_policies(request)
    options = request.on_conflict_options
    if options.attach_completion_callbacks and not options.attach_request_id:
        raise invalid("attaching request ID is required for attaching completion callbacks")
    _check_properties(request, limits)
    if request.links or request.completion_callbacks:
        fields.check_links_and_callbacks(request.links, request.completion_callbacks, limits)
    _check_rest(request, limits)


def check_signal_with_start(request: SignalWithStartWorkflowExecutionRequest, limits: Limits) -> None:
    """SignalWithStartWorkflowExecution."""
    if request.cron_schedule:
        cron.validate(request.cron_schedule)
    fields.check_workflow_id(request.workflow_id, limits)
    if not request.signal_name:
        raise invalid("signal not set")
    _check_length("signal name", request.signal_name, limits)
    if not request.workflow_type.name:
        raise invalid("workflow type not set")
    _check_length("workflow type name", request.workflow_type.name, limits)
    fields.check_user_queue(request.task_queue, limits, present=request.HasField("task_queue"))
    _check_length("Request ID", request.request_id, limits)
    _check_timeouts(request)
    if request.HasField("retry_policy"):
        fields.check_retry_policy(request.retry_policy)
    _check_start_delay(request)
    _check_id_policies(request)
    if request.workflow_id_conflict_policy == _FAIL:
        raise invalid(
            "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL "
            "is not supported for this operation."
        )
    _check_properties(request, limits)
    if request.links:
        fields.check_links(request.links, limits)
    if request.HasField("signal_input"):
        fields.check_blob(request.signal_input, limits.blob_bytes_max)
    _check_rest(request, limits)


def check_multi_operation(request: ExecuteMultiOperationRequest, limits: Limits) -> None:
    """ExecuteMultiOperation: a start and an update of one workflow. The error tells each operation's own."""
    operations = request.operations
    if (
        len(operations) != 2
        or operations[0].WhichOneof("operation") != "start_workflow"
        or operations[1].WhichOneof("operation") != "update_workflow"
    ):
        raise invalid(_NOT_START_AND_UPDATE)
    start, update = operations[0].start_workflow, operations[1].update_workflow
    errors: list[ServiceError | None] = [None, None]
    try:
        _check_start_operation(start, request.namespace, limits)
    except ServiceError as error:
        errors[0] = error
    try:
        _check_update_operation(update, request.namespace, limits)
        if errors[0] is None and update.workflow_execution.workflow_id != start.workflow_id:
            raise invalid("WorkflowId is not consistent with previous operation(s).")
    except ServiceError as error:
        errors[1] = error
    if errors != [None, None]:
        raise multi_operation_error(errors)


def multi_operation_error(errors: list[ServiceError | None]) -> ServiceError:
    """One error for a request of several operations: None marks one that was good but not done."""
    failure = MultiOperationExecutionFailure()
    code = Code.ABORTED
    for error in errors:
        status = failure.statuses.add()
        if error is None:
            status.code = int(Code.ABORTED)
            status.message = "Operation was aborted."
            detail: AnyMessage = status.details.add()
            detail.Pack(MultiOperationExecutionAborted())
            continue
        status.code = int(error.code)
        status.message = error.message
        if error.detail is not None:
            status.details.add().Pack(error.detail)
        if code is Code.ABORTED:
            code = error.code
    return ServiceError(code, _NOT_EXECUTED, failure)


def _check_start_operation(start: StartWorkflowExecutionRequest, namespace: str, limits: Limits) -> None:
    if start.namespace and start.namespace != namespace:
        raise invalid("Operation namespace did not match request's namespace.")
    check_start(start, limits)
    if start.cron_schedule:
        raise invalid("CronSchedule is not allowed.")
    if start.request_eager_execution:
        raise invalid("RequestEagerExecution is not supported.")
    if to_ns(start.workflow_start_delay) > 0:
        raise invalid("WorkflowStartDelay is not supported.")


def _check_update_operation(update: UpdateWorkflowExecutionRequest, namespace: str, limits: Limits) -> None:
    if update.namespace and update.namespace != namespace:
        raise invalid("Operation namespace did not match request's namespace.")
    check_update(update, limits)
    if update.first_execution_run_id:
        raise invalid("FirstExecutionRunId is not allowed.")
    if update.workflow_execution.run_id:
        raise invalid("RunId is not allowed.")


def _check_length(label: str, value: str, limits: Limits) -> None:
    if too_long(value, limits.id_bytes_max):
        raise invalid(f"{label} exceeds maximum allowed length ({byte_length(value)}/{limits.id_bytes_max})")


def _check_start_delay(request: _Start) -> None:
    if not request.HasField("workflow_start_delay"):
        return
    if request.cron_schedule:
        raise invalid("CronSchedule and WorkflowStartDelay may not be used together.")
    check_duration(
        request.workflow_start_delay, "An invalid WorkflowStartDelaySeconds is set on request. cause: "
    )


def _check_timeouts(request: _Start) -> None:
    if request.HasField("workflow_execution_timeout"):
        check_duration(
            request.workflow_execution_timeout,
            "An invalid WorkflowExecutionTimeoutSeconds is set on request. cause: ",
        )
    if request.HasField("workflow_run_timeout"):
        check_duration(
            request.workflow_run_timeout, "An invalid WorkflowRunTimeoutSeconds is set on request. cause: "
        )
    if request.HasField("workflow_task_timeout"):
        check_duration(
            request.workflow_task_timeout, "An invalid WorkflowTaskTimeoutSeconds is set on request. cause: "
        )


def _check_id_policies(request: _Start) -> None:
    reuse, conflict = request.workflow_id_reuse_policy, request.workflow_id_conflict_policy
    if not reuse and not conflict:
        return
    fields.check_enum(reuse, _REUSE_POLICIES, "WorkflowIdReusePolicy")
    fields.check_enum(conflict, _CONFLICT_POLICIES, "WorkflowIdConflictPolicy")
    if conflict and reuse == _TERMINATE_IF_RUNNING:
        raise invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING "
            "cannot be used together with a WorkflowIDConflictPolicy"
        )
    if conflict == _TERMINATE_EXISTING and reuse == _REJECT_DUPLICATE:
        raise invalid(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used "
            "together with WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"
        )


def _check_properties(request: _Start, limits: Limits) -> None:
    if request.HasField("search_attributes"):
        fields.check_search_attributes(request.search_attributes, limits)
    if request.HasField("priority"):
        check_priority(request.priority)


def _check_rest(request: _Start, limits: Limits) -> None:
    """What Temporal looks at last: modes it may not offer, versions, and sizes."""
    if request.HasField("time_skipping_config"):
        raise fields.refuse_time_skipping()
    if request.HasField("input"):
        fields.check_blob(request.input, limits.blob_bytes_max)
    if request.HasField("memo"):
        fields.check_memo(request.memo, limits)
    if request.HasField("versioning_override"):
        check_versioning_override(request.versioning_override)
