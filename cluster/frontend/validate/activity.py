"""Checks of requests about activities of a workflow: their results; pausing, resetting, changing them."""

from __future__ import annotations

from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import (
    PauseActivityRequest,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    ResetActivityRequest,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    UnpauseActivityRequest,
    UpdateActivityExecutionOptionsRequest,
    UpdateActivityOptionsRequest,
)

from cluster.frontend.validate import fields
from history_store.engine.durations import check_and_cap
from history_store.engine.errors import invalid
from history_store.engine.field_rules import check_priority, is_uuid
from history_store.engine.limits import Limits

# Protobuf's own limit for a duration: ten thousand years.
_DURATION_SECONDS_MAX = 315_576_000_000


def check_completed(
    request: RespondActivityTaskCompletedRequest | RespondActivityTaskCanceledRequest, limits: Limits
) -> None:
    """RespondActivityTaskCompleted and RespondActivityTaskCanceled."""
    fields.check_task_token(request.task_token)
    fields.check_identity(request.identity, limits)


def check_failed(request: RespondActivityTaskFailedRequest, limits: Limits) -> None:
    """RespondActivityTaskFailed."""
    fields.check_task_token(request.task_token)
    if request.HasField("failure"):
        _check_failure(request.failure)
    fields.check_identity(request.identity, limits)


def check_heartbeat(request: RecordActivityTaskHeartbeatRequest, _limits: Limits) -> None:
    """RecordActivityTaskHeartbeat."""
    fields.check_task_token(request.task_token)


def check_by_id(
    request: RespondActivityTaskCompletedByIdRequest
    | RespondActivityTaskCanceledByIdRequest
    | RecordActivityTaskHeartbeatByIdRequest,
    limits: Limits,
) -> None:
    """The forms that name the activity: without a workflow it is a standalone one."""
    if not request.activity_id:
        raise invalid("ActivityId is not set on request.")
    if request.run_id and not is_uuid(request.run_id):
        raise fields.bad_run_id(request.run_id)
    fields.check_identity(request.identity, limits)


def check_failed_by_id(request: RespondActivityTaskFailedByIdRequest, limits: Limits) -> None:
    """RespondActivityTaskFailedById."""
    if not request.activity_id:
        raise invalid("ActivityId is not set on request.")
    if request.run_id and not is_uuid(request.run_id):
        raise fields.bad_run_id(request.run_id)
    if request.HasField("failure"):
        _check_failure(request.failure)
    fields.check_identity(request.identity, limits)


def _check_failure(failure: Failure) -> None:
    """A worker reports what its code raised; other kinds of failure are the server's to make."""
    if not failure.HasField("application_failure_info"):
        raise invalid("Failure must have ApplicationFailureInfo.")
    current = failure
    while True:
        delay = current.application_failure_info.next_retry_delay
        if delay.seconds or delay.nanos:
            seconds, nanos = delay.seconds, delay.nanos
            shown = f"proto: duration (seconds:{seconds} nanos:{nanos})"
            if abs(seconds) > _DURATION_SECONDS_MAX:
                raise invalid(f"NextRetryDelay is not a valid duration: {shown} exceeds +-10000 years")
            if abs(nanos) >= 1_000_000_000:
                raise invalid(f"NextRetryDelay is not a valid duration: {shown} has out-of-range nanos")
            if (seconds > 0 and nanos < 0) or (seconds < 0 and nanos > 0):
                raise invalid(
                    f"NextRetryDelay is not a valid duration: {shown} "
                    "has seconds and nanos with different signs"
                )
        if not current.HasField("cause"):
            return
        current = current.cause


# ------------------------------------------------------------------------ while the activity is pending


def check_pause(request: PauseActivityRequest, limits: Limits) -> None:
    """PauseActivity."""
    _check_target(request)
    fields.check_identity(request.identity, limits)
    fields.check_request_id(request.request_id, limits)


def check_unpause(request: UnpauseActivityRequest | ResetActivityRequest, limits: Limits) -> None:
    """UnpauseActivity and ResetActivity."""
    _check_target(request)
    fields.check_identity(request.identity, limits)
    problem = check_and_cap(request.jitter)
    if problem is not None:
        raise invalid(f"invalid jitter: {problem}")


def check_options(request: UpdateActivityOptionsRequest, limits: Limits) -> None:
    """UpdateActivityOptions. The merged options are judged by the engine."""
    _check_target(request)
    fields.check_identity(request.identity, limits)
    check_priority(request.activity_options.priority)
    check_change(request)


def check_change(request: UpdateActivityOptionsRequest | UpdateActivityExecutionOptionsRequest) -> None:
    """Options are given with a mask, or it is said that the original ones are to come back."""
    if request.restore_original:
        if request.update_mask.paths:
            raise invalid("Both UpdateMask and RestoreOriginal are provided")
        return
    if not request.HasField("activity_options"):
        raise invalid("ActivityOptions are not provided")
    if not request.HasField("update_mask"):
        raise invalid("UpdateMask is not provided")


def _check_target(
    request: PauseActivityRequest
    | UnpauseActivityRequest
    | ResetActivityRequest
    | UpdateActivityOptionsRequest,
) -> None:
    if not request.execution.workflow_id:
        raise invalid("WorkflowId is not set on request.")
    fields.check_execution(request.execution, present=True)
    if request.WhichOneof("activity") is None:
        raise invalid("Either Activity.Id or Activity.Type should be set on request.")
