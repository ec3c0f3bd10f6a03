"""Checks of requests that workers make: polls, results of tasks, heartbeats; and of those about task queues.

Too large results are not refused here, since a worker would only send them again: they become failures. See
`oversized_failure` and `OVERSIZED_*`.
"""

from __future__ import annotations

import json

from temporalio.api.enums.v1 import (
    DescribeTaskQueueMode,
    QueryResultType,
    TaskQueueKind,
    TaskQueueType,
    VersioningBehavior,
    WorkerVersioningMode,
)
from temporalio.api.failure.v1 import Failure, ServerFailureInfo
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeWorkerRequest,
    ListTaskQueuePartitionsRequest,
    ListWorkersRequest,
    PollActivityTaskQueueRequest,
    PollNexusTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    RecordWorkerHeartbeatRequest,
    RespondNexusTaskCompletedRequest,
    RespondNexusTaskFailedRequest,
    RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    ShutdownWorkerRequest,
    UpdateTaskQueueConfigRequest,
)

from cluster.frontend.validate import fields
from history_store.engine.command_rules import check_sequence
from history_store.engine.errors import invalid
from history_store.engine.field_rules import (
    FAIRNESS_KEY_BYTES_MAX,
    RESERVED_TASK_QUEUE_PREFIX,
    byte_length,
    too_long,
)
from history_store.engine.limits import Limits

OVERSIZED_RESULT = "Complete result exceeds size limit."
OVERSIZED_FAILURE = "Failure exceeds size limit."
OVERSIZED_CANCEL_DETAILS = "Cancel details exceed size limit."
OVERSIZED_HEARTBEAT = "Heartbeat details exceed size limit."

_BEHAVIORS = tuple(int(value) for value in VersioningBehavior.values())
_RESULT_TYPES = tuple(int(value) for value in QueryResultType.values())
_QUEUE_TYPES = tuple(int(value) for value in TaskQueueType.values())
_MODES = tuple(int(value) for value in DescribeTaskQueueMode.values())
_ENHANCED = int(DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED)
_STICKY = int(TaskQueueKind.TASK_QUEUE_KIND_STICKY)
_WORKFLOW = int(TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
_VERSIONED = int(WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED)
_REASON_BYTES_MAX = 1_000


def oversized_failure(message: str) -> Failure:
    """What is recorded in place of something too large: a failure that is not retried."""
    return Failure(message=message, server_failure_info=ServerFailureInfo(non_retryable=True))


# ------------------------------------------------------------------------------------------------- polls


def check_poll_workflow(request: PollWorkflowTaskQueueRequest, limits: Limits) -> None:
    """PollWorkflowTaskQueue."""
    fields.check_identity(request.identity, limits)
    _check_poller_version(request, limits)
    fields.check_polled_queue(request.task_queue, limits, present=request.HasField("task_queue"))


def check_poll_activity(request: PollActivityTaskQueueRequest, limits: Limits) -> None:
    """PollActivityTaskQueue."""
    fields.check_polled_queue(request.task_queue, limits, present=request.HasField("task_queue"))
    fields.check_identity(request.identity, limits)
    _check_poller_version(request, limits)


def check_poll_nexus(request: PollNexusTaskQueueRequest, limits: Limits) -> None:
    """PollNexusTaskQueue."""
    fields.check_polled_queue(request.task_queue, limits, present=request.HasField("task_queue"))
    fields.check_identity(request.identity, limits)
    _check_poller_version(request, limits)


def _check_poller_version(
    request: PollWorkflowTaskQueueRequest | PollActivityTaskQueueRequest | PollNexusTaskQueueRequest,
    limits: Limits,
) -> None:
    has_options = request.HasField("deployment_options")
    if not has_options and not request.HasField("worker_version_capabilities"):
        return
    capabilities = request.worker_version_capabilities
    fields.check_versioning(
        capabilities.build_id,
        capabilities.use_versioning,
        request.deployment_options,
        request.task_queue,
        limits,
        has_options=has_options,
    )


# ----------------------------------------------------------------------------------------- task results


def check_workflow_task_completed(request: RespondWorkflowTaskCompletedRequest, limits: Limits) -> None:
    """RespondWorkflowTaskCompleted. The commands themselves are judged by the engine: `command_rules`."""
    fields.check_task_token(request.task_token)
    fields.check_identity(request.identity, limits)
    has_options = request.HasField("deployment_options")
    if has_options or request.HasField("worker_version_stamp"):
        stamp = request.worker_version_stamp
        fields.check_versioning(
            stamp.build_id,
            stamp.use_versioning,
            request.deployment_options,
            request.sticky_attributes.worker_task_queue,
            limits,
            has_options=has_options,
        )
    behavior = request.versioning_behavior
    if behavior:
        fields.check_enum(behavior, _BEHAVIORS, "VersioningBehavior")
        if (
            not request.HasField("deployment")
            and request.deployment_options.worker_versioning_mode != _VERSIONED
        ):
            raise invalid(
                "versioning behavior cannot be specified without deployment options "
                "being set with versioned mode"
            )
    check_sequence(request.commands)


def check_workflow_task_failed(request: RespondWorkflowTaskFailedRequest, limits: Limits) -> None:
    """RespondWorkflowTaskFailed."""
    fields.check_task_token(request.task_token)
    fields.check_identity(request.identity, limits)


def check_query_completed(request: RespondQueryTaskCompletedRequest, _limits: Limits) -> None:
    """RespondQueryTaskCompleted."""
    fields.check_task_token(request.task_token)
    fields.check_enum(request.completed_type, _RESULT_TYPES, "QueryResultType")


def check_nexus_completed(request: RespondNexusTaskCompletedRequest, limits: Limits) -> None:
    """RespondNexusTaskCompleted."""
    fields.check_task_token(request.task_token)
    fields.check_identity(request.identity, limits)
    start = request.response.start_operation
    kind = start.WhichOneof("variant")
    if kind == "async_success":
        success = start.async_success
        token = success.operation_token or success.operation_id
        if not token:
            raise invalid("missing operation token in response")
        if too_long(token, limits.nexus_token_bytes_max):
            raise invalid(
                "operation token length exceeds allowed limit "
                f"({byte_length(token)}/{limits.nexus_token_bytes_max})"
            )
    elif kind == "operation_error":
        _check_json(start.operation_error.failure.details)


def check_nexus_failed(request: RespondNexusTaskFailedRequest, limits: Limits) -> None:
    """RespondNexusTaskFailed; `error` is the older form of `failure`."""
    fields.check_task_token(request.task_token)
    fields.check_identity(request.identity, limits)
    has_failure = request.HasField("failure")
    if request.HasField("error"):
        _check_json(request.error.failure.details)
    elif not has_failure:
        raise invalid("request must contain error or failure")
    if has_failure and not request.failure.HasField("nexus_handler_failure_info"):
        raise invalid("request Failure must contain error or failure with NexusHandlerFailureInfo")


def _check_json(details: bytes) -> None:
    if not details:
        return
    try:
        json.loads(details)
    except ValueError:
        raise invalid("failure details must be JSON serializable") from None


# -------------------------------------------------------------------------------------------- workers


def check_shutdown(request: ShutdownWorkerRequest, limits: Limits) -> None:
    """ShutdownWorker."""
    fields.check_identity(request.identity, limits)


def check_heartbeat(request: RecordWorkerHeartbeatRequest, limits: Limits) -> None:
    """RecordWorkerHeartbeat."""
    fields.check_identity(request.identity, limits)


def check_list_workers(_request: ListWorkersRequest, _limits: Limits) -> None:
    """ListWorkers: any page size will do."""


def check_describe_worker(request: DescribeWorkerRequest, _limits: Limits) -> None:
    """DescribeWorker."""
    if not request.worker_instance_key:
        raise invalid("WorkerInstanceKey is not set on request.")


# ---------------------------------------------------------------------------------------- task queues


def check_describe_queue(request: DescribeTaskQueueRequest, limits: Limits) -> None:
    """DescribeTaskQueue."""
    fields.check_enum(request.api_mode, _MODES, "DescribeTaskQueueMode")
    enhanced = request.api_mode == _ENHANCED
    queue = request.task_queue
    if enhanced and queue.name.startswith(RESERVED_TASK_QUEUE_PREFIX):
        raise invalid(
            "Enhanced DescribeTaskQueue is not valid for non-root queue partitions, "
            "use api_mode=UNSPECIFIED or a normal queue root name."
        )
    fields.check_polled_queue(queue, limits, present=request.HasField("task_queue"), root=enhanced)
    for kind in (request.task_queue_type, *request.task_queue_types):
        fields.check_enum(kind, _QUEUE_TYPES, "TaskQueueType")
    if (
        request.report_task_reachability
        and len(request.versions.build_ids) > limits.reachability_build_ids_max
    ):
        raise invalid(
            "Too many build ids queried at once with ReportTaskReachability==true, "
            f"limit: {limits.reachability_build_ids_max}"
        )
    if enhanced and queue.kind == _STICKY:
        raise invalid(
            "Enhanced DescribeTaskQueue is not valid for a sticky queue, "
            "use api_mode=UNSPECIFIED or a normal queue."
        )


def check_list_partitions(request: ListTaskQueuePartitionsRequest, limits: Limits) -> None:
    """ListTaskQueuePartitions."""
    fields.check_polled_queue(request.task_queue, limits, present=request.HasField("task_queue"))


def check_queue_config(request: UpdateTaskQueueConfigRequest, limits: Limits) -> None:
    """UpdateTaskQueueConfig."""
    if not request.task_queue:
        raise invalid("taskQueue is not set")
    workflow = request.task_queue_type == _WORKFLOW
    whole, each = request.update_queue_rate_limit, request.update_fairness_key_rate_limit_default
    if workflow and whole.HasField("rate_limit"):
        raise invalid("Setting rate limit on workflow task queues is not allowed.")
    _check_rate(whole, "UpdateQueueRateLimit")
    if workflow and each.HasField("rate_limit"):
        raise invalid("Setting fairness key rate limit on workflow task queues is not allowed.")
    _check_rate(each, "UpdateFairnessKeyRateLimitDefault")
    if too_long(request.identity, limits.id_bytes_max):
        raise invalid(f"Identity field too long (max {limits.id_bytes_max} characters).")
    _check_fairness(request, limits)


def _check_rate(update: UpdateTaskQueueConfigRequest.RateLimitUpdate, label: str) -> None:
    if not update.HasField("rate_limit"):
        return
    if update.rate_limit.requests_per_second < 0:
        raise invalid(f"RequestsPerSecond for {label} rate limit must be non-negative.")
    if too_long(update.reason, _REASON_BYTES_MAX):
        raise invalid(f"{label}.Reason field too long (max {_REASON_BYTES_MAX} characters).")


def _check_fairness(request: UpdateTaskQueueConfigRequest, limits: Limits) -> None:
    put, drop = request.set_fairness_weight_overrides, request.unset_fairness_weight_overrides
    total = len(put) + len(drop)
    if total > limits.fairness_overrides_max:
        raise invalid(
            f"too many fairness weight overrides in request: got {total}, "
            f"maximum {limits.fairness_overrides_max}"
        )
    for key in (*put, *drop):
        if not key:
            raise invalid("fairness weight override key must not be empty")
        if too_long(key, FAIRNESS_KEY_BYTES_MAX):
            raise invalid("fairness key length exceeds limit")
    for key, weight in put.items():
        if weight <= 0:
            raise invalid(f'invalid fairness weight weight for key "{key}": must be greater than zero')
    for key in drop:
        if key in put:
            raise invalid(f'fairness weight override key "{key}" present in both set and unset lists')
