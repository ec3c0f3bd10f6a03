"""Checks of requests about updates: send one, wait for one."""

from __future__ import annotations

from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.workflowservice.v1 import (
    PollWorkflowExecutionUpdateRequest,
    UpdateWorkflowExecutionRequest,
)

from cluster.frontend.validate import fields
from history_store.engine.errors import Code, ServiceError, invalid
from history_store.engine.field_rules import byte_length, too_long
from history_store.engine.limits import Limits

_STAGES = tuple(int(value) for value in Stage.values())
_ADMITTED = int(Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED)


def check_update(request: UpdateWorkflowExecutionRequest, limits: Limits) -> None:
    """UpdateWorkflowExecution. Admitted is no stage to wait for: it is kept nowhere."""
    fields.check_execution(request.workflow_execution, present=request.HasField("workflow_execution"))
    update = request.request
    if not update.HasField("meta"):
        raise invalid("Update meta is not set on request.")
    if too_long(update.meta.update_id, limits.id_bytes_max):
        raise fields.over("UpdateId length", byte_length(update.meta.update_id), limits.id_bytes_max)
    if not update.HasField("input"):
        raise invalid("Update input is not set on request.")
    if not update.input.name:
        raise invalid("Update name is not set on request.")
    _check_stage(request.wait_policy.lifecycle_stage)
    if update.links or update.completion_callbacks:
        fields.check_links_and_callbacks(update.links, update.completion_callbacks, limits)
    if update.input.HasField("args"):
        fields.check_blob(update.input.args, limits.blob_bytes_max)


def check_poll_update(request: PollWorkflowExecutionUpdateRequest, limits: Limits) -> None:
    """PollWorkflowExecutionUpdate."""
    if not request.HasField("update_ref"):
        raise invalid("UpdateRef is not set on request.")
    reference = request.update_ref
    fields.check_execution(reference.workflow_execution, present=reference.HasField("workflow_execution"))
    if too_long(reference.update_id, limits.id_bytes_max):
        raise fields.over("UpdateId length", byte_length(reference.update_id), limits.id_bytes_max)
    fields.check_enum(request.wait_policy.lifecycle_stage, _STAGES, "UpdateWorkflowExecutionLifecycleStage")


def _check_stage(stage: int) -> None:
    fields.check_enum(stage, _STAGES, "UpdateWorkflowExecutionLifecycleStage")
    if stage == _ADMITTED:
        raise ServiceError(
            Code.PERMISSION_DENIED,
            "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported.",
        )
