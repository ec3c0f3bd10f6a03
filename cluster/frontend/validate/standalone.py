"""Checks of requests about standalone activities: jobs of one activity, without a workflow around them."""

from __future__ import annotations

from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.enums.v1 import ActivityIdConflictPolicy, ActivityIdReusePolicy
from temporalio.api.workflowservice.v1 import (
    DeleteActivityExecutionRequest,
    DescribeActivityExecutionRequest,
    PauseActivityExecutionRequest,
    PollActivityExecutionRequest,
    RequestCancelActivityExecutionRequest,
    ResetActivityExecutionRequest,
    StartActivityExecutionRequest,
    TerminateActivityExecutionRequest,
    UnpauseActivityExecutionRequest,
    UpdateActivityExecutionOptionsRequest,
)

from cluster.frontend.validate import fields
from cluster.frontend.validate.activity import check_change
from history_store.engine import retry
from history_store.engine.command_rules import complete_activity_timeouts
from history_store.engine.durations import check_and_cap
from history_store.engine.errors import ServiceError, invalid
from history_store.engine.field_rules import byte_length, check_duration, check_priority, is_uuid, too_long
from history_store.engine.limits import Limits

_REUSE_POLICIES = tuple(int(value) for value in ActivityIdReusePolicy.values())
_CONFLICT_POLICIES = tuple(int(value) for value in ActivityIdConflictPolicy.values())

# What an update may change; the retry policy's list of errors is not among it.
OPTION_PATHS = frozenset(
    {
        "task_queue.name", "schedule_to_close_timeout", "schedule_to_start_timeout", "start_to_close_timeout",
        "heartbeat_timeout", "priority", "priority.priority_key", "priority.fairness_key",
        "priority.fairness_weight", "retry_policy", "retry_policy.initial_interval",
        "retry_policy.backoff_coefficient", "retry_policy.maximum_interval", "retry_policy.maximum_attempts",
        "start_delay",
    }
)  # fmt: skip


def check_start(request: StartActivityExecutionRequest, limits: Limits) -> None:
    """StartActivityExecution. Fills in timeouts that follow from others, and the retry policy's defaults."""
    if request.HasField("start_delay"):
        check_duration(request.start_delay, "invalid StartDelay: ")
    fields.check_user_queue(request.task_queue, limits, present=request.HasField("task_queue"))
    activity_id, activity_type = request.activity_id, request.activity_type.name
    if not activity_id:
        raise invalid("activityId is not set")
    if not activity_type:
        raise invalid("activityType is not set")
    fields.check_retry_policy(request.retry_policy)
    _check_length("activityId", activity_id, limits)
    _check_length("activityType", activity_type, limits)
    if request.HasField("priority"):
        try:
            check_priority(request.priority)
        except ServiceError as error:
            raise invalid(f"invalid priorities: {error.message}") from None
    complete_activity_timeouts(request, 0, activity_id, activity_type)
    _check_length("request ID", request.request_id, limits)
    _check_length("identity", request.identity, limits)
    fields.check_enum(request.id_reuse_policy, _REUSE_POLICIES, "ActivityIdReusePolicy")
    fields.check_enum(request.id_conflict_policy, _CONFLICT_POLICIES, "ActivityIdConflictPolicy")
    if request.HasField("input") and request.input.ByteSize() > limits.blob_bytes_max:
        raise invalid("input exceeds length limit")
    if request.HasField("user_metadata"):
        metadata = request.user_metadata
        fields.check_user_metadata(metadata.summary, metadata.details, limits)
    if request.HasField("search_attributes"):
        fields.check_search_attributes(request.search_attributes, limits)
    if request.links or request.completion_callbacks:
        fields.check_links_and_callbacks(request.links, request.completion_callbacks, limits)
    _check_conflict_options(request)


def _check_conflict_options(request: StartActivityExecutionRequest) -> None:
    options = request.on_conflict_options
    if options.attach_completion_callbacks and not options.attach_request_id:
        raise invalid("on_conflict_options: attach_completion_callbacks requires attach_request_id to be set")
    if options.attach_request_id and not request.completion_callbacks and not request.links:
        raise invalid(
            "on_conflict_options: attach_request_id requires at least one completion callback or link"
        )


def check_describe(request: DescribeActivityExecutionRequest, limits: Limits) -> None:
    """DescribeActivityExecution; its long poll goes on about one run."""
    _check_activity_id(request.activity_id, limits)
    if request.long_poll_token and not request.run_id:
        raise invalid("run id is required when long poll token is provided")
    _check_run_id(request.run_id)


def check_poll(
    request: PollActivityExecutionRequest | DeleteActivityExecutionRequest, limits: Limits
) -> None:
    """PollActivityExecution and DeleteActivityExecution."""
    _check_activity_id(request.activity_id, limits)
    _check_run_id(request.run_id)


def check_end(
    request: RequestCancelActivityExecutionRequest
    | TerminateActivityExecutionRequest
    | PauseActivityExecutionRequest,
    limits: Limits,
) -> None:
    """RequestCancel-, Terminate- and PauseActivityExecution: who, what and why."""
    _check_activity_id(request.activity_id, limits)
    _check_length("request ID", request.request_id, limits)
    _check_length("identity", request.identity, limits)
    _check_run_id(request.run_id)
    if too_long(request.reason, limits.blob_bytes_max):
        raise invalid("reason exceeds length limit")


def check_unpause(
    request: UnpauseActivityExecutionRequest | ResetActivityExecutionRequest, limits: Limits
) -> None:
    """UnpauseActivityExecution and ResetActivityExecution."""
    _check_length("request ID", request.request_id, limits)
    _check_activity_id(request.activity_id, limits)
    _check_length("identity", request.identity, limits)
    _check_run_id(request.run_id)
    problem = check_and_cap(request.jitter)
    if problem is not None:
        raise invalid(f"invalid jitter: {problem}")


def check_options(request: UpdateActivityExecutionOptionsRequest, limits: Limits) -> None:
    """UpdateActivityExecutionOptions."""
    _check_length("request ID", request.request_id, limits)
    _check_activity_id(request.activity_id, limits)
    _check_length("identity", request.identity, limits)
    _check_run_id(request.run_id)
    check_change(request)
    if request.restore_original:
        return
    paths = request.update_mask.paths
    if not paths:
        raise invalid("UpdateMask must specify at least one path")
    for path in paths:
        if _snake_case(path) not in OPTION_PATHS:
            raise invalid(f'unsupported update_mask path: "{path}"')
    _check_changed_options(request.activity_options, {_snake_case(path) for path in paths}, limits)


def _check_changed_options(options: ActivityOptions, changed: set[str], limits: Limits) -> None:
    """Only what the mask names counts; the rest of the message is not read."""
    if "task_queue.name" in changed:
        fields.check_user_queue(options.task_queue, limits, present=options.HasField("task_queue"))
    for path, label, value in (
        ("schedule_to_close_timeout", "invalid ScheduleToCloseTimeout: ", options.schedule_to_close_timeout),
        ("schedule_to_start_timeout", "invalid ScheduleToStartTimeout: ", options.schedule_to_start_timeout),
        ("start_to_close_timeout", "invalid StartToCloseTimeout: ", options.start_to_close_timeout),
        ("heartbeat_timeout", "invalid HeartbeatTimeout: ", options.heartbeat_timeout),
    ):
        if path in changed:
            check_duration(value, label)
    if changed & {"priority", "priority.priority_key", "priority.fairness_key", "priority.fairness_weight"}:
        check_priority(options.priority)
    policy = options.retry_policy
    if "retry_policy" in changed:
        retry.complete(policy)
    if "retry_policy.initial_interval" in changed:
        check_duration(policy.initial_interval, "invalid InitialInterval set on retry policy: ")
    if "retry_policy.backoff_coefficient" in changed:
        retry.check_finite(policy)
        if policy.backoff_coefficient < 1:
            raise invalid("BackoffCoefficient cannot be less than 1 on retry policy.")
    if "retry_policy.maximum_interval" in changed:
        check_duration(policy.maximum_interval, "invalid MaximumInterval set on retry policy: ")
    if "retry_policy.maximum_attempts" in changed and policy.maximum_attempts < 0:
        raise invalid("MaximumAttempts cannot be negative on retry policy.")


def _snake_case(path: str) -> str:
    """A path as protobuf writes it; clients may send JSON's form (retryPolicy.maximumAttempts)."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in path)


def _check_activity_id(activity_id: str, limits: Limits) -> None:
    if not activity_id:
        raise invalid("activity ID is required")
    _check_length("activity ID", activity_id, limits)


def _check_run_id(run_id: str) -> None:
    if run_id and not is_uuid(run_id):
        raise invalid("invalid run id: must be a valid UUID")


def _check_length(label: str, value: str, limits: Limits) -> None:
    if too_long(value, limits.id_bytes_max):
        raise invalid(
            f"{label} exceeds length limit. Length={byte_length(value)} Limit={limits.id_bytes_max}"
        )
