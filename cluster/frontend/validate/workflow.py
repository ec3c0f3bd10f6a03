"""Checks of requests about one workflow that exists: signal, query, cancel, terminate, reset, describe."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import QueryRejectCondition, ResetReapplyType
from temporalio.api.workflow.v1 import WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
    PauseWorkflowExecutionRequest,
    QueryWorkflowRequest,
    RequestCancelWorkflowExecutionRequest,
    ResetStickyTaskQueueRequest,
    ResetWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UnpauseWorkflowExecutionRequest,
    UpdateWorkflowExecutionOptionsRequest,
)

from cluster.frontend.validate import fields
from history_store.engine.errors import invalid
from history_store.engine.field_rules import byte_length, check_priority, check_versioning_override, too_long
from history_store.engine.limits import Limits

_REAPPLY_TYPES = tuple(int(value) for value in ResetReapplyType.values())
_LEGACY_OVERRIDE = ("versioning_override.behavior", "versioning_override.deployment")
_REJECT_CONDITIONS = tuple(int(value) for value in QueryRejectCondition.values())


def check_signal(request: SignalWorkflowExecutionRequest, limits: Limits) -> None:
    """SignalWorkflowExecution."""
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))
    if not request.signal_name:
        raise invalid("SignalName is not set on request.")
    if too_long(request.signal_name, limits.id_bytes_max):
        raise fields.over("SignalName length", byte_length(request.signal_name), limits.id_bytes_max)
    fields.check_request_id(request.request_id, limits)
    if request.links:
        fields.check_links(request.links, limits)
    if request.HasField("input"):
        fields.check_blob(request.input, limits.blob_bytes_max)


def check_query(request: QueryWorkflowRequest, limits: Limits) -> None:
    """QueryWorkflow."""
    fields.check_execution(request.execution, present=request.HasField("execution"))
    if not request.HasField("query"):
        raise invalid("WorkflowQuery is not set on request.")
    if not request.query.query_type:
        raise invalid("QueryType is not set on request.")
    fields.check_enum(request.query_reject_condition, _REJECT_CONDITIONS, "QueryRejectCondition")
    if request.query.HasField("query_args"):
        fields.check_blob(request.query.query_args, limits.blob_bytes_max)


def check_cancel(request: RequestCancelWorkflowExecutionRequest, limits: Limits) -> None:
    """RequestCancelWorkflowExecution."""
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))
    if request.links:
        fields.check_links(request.links, limits)


def check_terminate(request: TerminateWorkflowExecutionRequest, limits: Limits) -> None:
    """TerminateWorkflowExecution."""
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))
    if request.links:
        fields.check_links(request.links, limits)
    if request.HasField("details"):
        fields.check_blob(request.details, limits.blob_bytes_max)


def check_delete(request: DeleteWorkflowExecutionRequest, _limits: Limits) -> None:
    """DeleteWorkflowExecution."""
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))


def check_reset(request: ResetWorkflowExecutionRequest, limits: Limits) -> None:
    """ResetWorkflowExecution. That the event is one a run can be reset to is for the engine."""
    if not request.request_id:
        raise invalid("RequestId is not set on request.")
    fields.check_request_id(request.request_id, limits)
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))
    if request.reset_reapply_type not in _REAPPLY_TYPES:
        raise invalid(f"unknown reset reapply type: {request.reset_reapply_type}")
    if request.workflow_task_finish_event_id <= 1:
        raise invalid("Workflow task finish ID must be > 1 && <= workflow last event ID.")
    for operation in request.post_reset_operations:
        kind = operation.WhichOneof("variant")
        if kind == "update_workflow_options":
            change = operation.update_workflow_options
            _check_options(change.workflow_execution_options)
            _check_mask(change.update_mask.paths)
        elif kind is None:
            raise invalid("unsupported post reset operation: none")


def check_describe(request: DescribeWorkflowExecutionRequest, _limits: Limits) -> None:
    """DescribeWorkflowExecution."""
    fields.check_execution(request.execution, present=request.HasField("execution"))


def check_history(request: GetWorkflowExecutionHistoryRequest, _limits: Limits) -> None:
    """GetWorkflowExecutionHistory. A page size out of range is no error: see `history_page_size`."""
    fields.check_execution(request.execution, present=request.HasField("execution"))


def check_history_reverse(request: GetWorkflowExecutionHistoryReverseRequest, _limits: Limits) -> None:
    """GetWorkflowExecutionHistoryReverse."""
    fields.check_execution(request.execution, present=request.HasField("execution"))


def history_page_size(asked: int, limits: Limits) -> int:
    """How many events a page has."""
    return asked if 0 < asked <= limits.history_page_events_max else limits.history_page_events_max


def check_reset_sticky(request: ResetStickyTaskQueueRequest, _limits: Limits) -> None:
    """ResetStickyTaskQueue."""
    fields.check_execution(request.execution, present=request.HasField("execution"))


def check_pause(
    request: PauseWorkflowExecutionRequest | UnpauseWorkflowExecutionRequest, limits: Limits
) -> None:
    """PauseWorkflowExecution and UnpauseWorkflowExecution."""
    for label, value in (
        ("reason", request.reason),
        ("request id", request.request_id),
        ("identity", request.identity),
    ):
        if too_long(value, limits.id_bytes_max):
            raise invalid(f"{label} is too long.")
    execution = WorkflowExecution(workflow_id=request.workflow_id, run_id=request.run_id)
    fields.check_execution(execution, present=True)


def check_options(request: UpdateWorkflowExecutionOptionsRequest, _limits: Limits) -> None:
    """UpdateWorkflowExecutionOptions."""
    if not request.workflow_execution.workflow_id:
        raise invalid("WorkflowId is not set on request.")
    fields.check_execution(request.workflow_execution, present=True)
    if not request.HasField("update_mask"):
        raise invalid("UpdateMask is required")
    if not request.HasField("workflow_execution_options"):
        raise invalid("WorkflowExecutionOptions is required")
    _check_mask(request.update_mask.paths)
    _check_options(request.workflow_execution_options)


def _check_options(options: WorkflowExecutionOptions) -> None:
    if options.HasField("priority"):
        check_priority(options.priority)
    if options.HasField("time_skipping_config"):
        raise fields.refuse_time_skipping()
    if options.HasField("versioning_override"):
        check_versioning_override(options.versioning_override)


def _check_mask(paths: Sequence[str]) -> None:
    """Every path names a field of the options; what changes only as a whole is not named in part."""
    for path in paths:
        if not is_field_path(path, WorkflowExecutionOptions()):
            name = WorkflowExecutionOptions.DESCRIPTOR.full_name
            raise invalid(f'error parsing UpdateMask: proto: invalid path "{path}" for message "{name}"')
    # The two halves of the override's first form may be named one by one, if both are.
    if sum(half in paths for half in _LEGACY_OVERRIDE) == 1:
        raise invalid("versioning_override fields must be updated together")
    for path in paths:
        if path.startswith("versioning_override.") and path not in _LEGACY_OVERRIDE:
            raise invalid("versioning_override doesn't support partial updates")
        if path.startswith("time_skipping_config."):
            raise invalid("time_skipping_config doesn't support partial update")


def is_field_path(path: str, message: Message) -> bool:
    """Whether a dotted path of a field mask leads to a field of the message."""
    descriptor = message.DESCRIPTOR
    *parents, last = path.split(".")
    for name in parents:
        field = descriptor.fields_by_name.get(name)
        if field is None or field.message_type is None:
            return False
        descriptor = field.message_type
    return last in descriptor.fields_by_name
