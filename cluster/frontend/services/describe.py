"""DescribeWorkflowExecution: a run with everything that is pending in it.

The answer is built from memory at once and sent when what it shows is committed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import RetryPolicy
from temporalio.api.enums.v1 import common_pb2, task_queue_pb2, workflow_pb2
from temporalio.api.workflow.v1 import message_pb2 as shown
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, answering, rpc
from history_store.engine.durations import from_ns, timestamp_from_ns

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from history_store.engine.run import Run
    from history_store.engine.state import ActivityState, RunState

W = workflow_pb2
SCHEDULED_ATTEMPT = W.PENDING_ACTIVITY_STATE_SCHEDULED
PAUSE_REQUESTED = W.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
NORMAL = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
STANDBY = common_pb2.CALLBACK_STATE_STANDBY
SCHEDULED = common_pb2.CALLBACK_STATE_SCHEDULED


@rpc(wire.DescribeWorkflowExecutionRequest)
def describe_workflow(services: Services, call: Call, request: wire.DescribeWorkflowExecutionRequest) -> None:
    """DescribeWorkflowExecution."""
    namespace = services.namespace(request.namespace)
    shard, run = services.run(namespace.id, request.execution.workflow_id, request.execution.run_id)
    body = description(run, services.node.clock.now_ns()).SerializeToString()
    shard.when_seen(run, answering(call, body))


def description(run: Run, now: int) -> wire.DescribeWorkflowExecutionResponse:
    """The run at this moment."""
    state = run.state
    response = wire.DescribeWorkflowExecutionResponse()
    _config(state, response.execution_config)
    _info(run, response.workflow_execution_info)
    _extended(state, response.workflow_extended_info)
    for activity in run.activities.values():
        pending_activity(activity, now, response.pending_activities.add())
    for child in run.children.values():
        response.pending_children.add(
            workflow_id=child.workflow_id,
            run_id=child.run_id,
            workflow_type_name=child.workflow_type,
            initiated_id=child.initiated_id,
            parent_close_policy=child.parent_close_policy,
        )
    if state.task is not None:
        _pending_task(run, response.pending_workflow_task)
    for raw in state.completion_callbacks:
        _callback(run, raw, response.callbacks.add())
    return response


def _config(state: RunState, config: shown.WorkflowExecutionConfig) -> None:
    config.task_queue.name = state.task_queue
    config.task_queue.kind = NORMAL
    from_ns(state.execution_timeout, config.workflow_execution_timeout)
    from_ns(state.run_timeout, config.workflow_run_timeout)
    from_ns(state.task_timeout, config.default_workflow_task_timeout)
    if state.user_metadata:
        config.user_metadata.ParseFromString(state.user_metadata)


def _info(run: Run, info: shown.WorkflowExecutionInfo) -> None:
    state = run.state
    info.execution.workflow_id = state.workflow_id
    info.execution.run_id = state.run_id
    info.type.name = state.workflow_type
    info.status = state.status  # type: ignore[assignment]
    info.task_queue = state.task_queue
    info.history_length = state.next_event_id - 1
    info.history_size_bytes = state.history_size_bytes
    info.state_transition_count = state.transitions
    info.first_run_id = state.first_run_id
    info.external_payload_size_bytes = state.external_payload_bytes
    info.external_payload_count = state.external_payload_count
    timestamp_from_ns(state.start_time, info.start_time)
    timestamp_from_ns(state.execution_time, info.execution_time)
    if not run.running:
        timestamp_from_ns(state.close_time, info.close_time)
        from_ns(max(0, state.close_time - state.execution_time), info.execution_duration)
    if state.parent_run_id:
        info.parent_namespace_id = state.parent_namespace_id
        info.parent_execution.workflow_id = state.parent_workflow_id
        info.parent_execution.run_id = state.parent_run_id
    info.root_execution.workflow_id = state.root_workflow_id or state.workflow_id
    info.root_execution.run_id = state.root_run_id or state.run_id
    info.memo.MergeFromString(state.memo)
    info.memo.SetInParent()
    info.search_attributes.MergeFromString(state.search_attributes)
    info.search_attributes.SetInParent()
    if state.reset_points:
        info.auto_reset_points.ParseFromString(state.reset_points)
    if state.priority:
        info.priority.ParseFromString(state.priority)
    _versioning(state, info)


def _versioning(state: RunState, info: shown.WorkflowExecutionInfo) -> None:
    """What workers told of their versions; only present where one did."""
    if state.build_id:
        info.most_recent_worker_version_stamp.build_id = state.build_id
    info.worker_deployment_name = state.worker_deployment_name
    if state.versioning_behavior:
        info.versioning_info.behavior = state.versioning_behavior  # type: ignore[assignment]
        if state.worker_deployment_name and state.build_id:
            version = info.versioning_info.deployment_version
            version.deployment_name = state.worker_deployment_name
            version.build_id = state.build_id
    if state.versioning_override:
        info.versioning_info.versioning_override.ParseFromString(state.versioning_override)


def _extended(state: RunState, extended: shown.WorkflowExecutionExtendedInfo) -> None:
    if state.execution_expiration:
        timestamp_from_ns(state.execution_expiration, extended.execution_expiration_time)
    if state.run_expiration:
        timestamp_from_ns(state.run_expiration, extended.run_expiration_time)
    extended.cancel_requested = state.cancel_requested
    if state.last_reset_time:
        timestamp_from_ns(state.last_reset_time, extended.last_reset_time)
    timestamp_from_ns(state.original_start_time or state.start_time, extended.original_start_time)
    extended.reset_run_id = state.reset_run_id
    for request_id, (event_type, event_id) in state.request_ids.items():
        known = extended.request_id_infos[request_id]
        known.event_type = event_type  # type: ignore[assignment]
        if event_id > 0:
            known.event_id = event_id
        else:
            known.buffered = True


def _activity_state(activity: ActivityState) -> int:
    if activity.cancel_requested:
        return W.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
    if activity.started_id:
        return PAUSE_REQUESTED if activity.paused else W.PENDING_ACTIVITY_STATE_STARTED
    return W.PENDING_ACTIVITY_STATE_PAUSED if activity.paused else SCHEDULED_ATTEMPT


def pending_activity(activity: ActivityState, now: int, info: shown.PendingActivityInfo) -> None:
    """One pending activity as of `now`."""
    state = _activity_state(activity)
    info.activity_id = activity.activity_id
    info.activity_type.name = activity.activity_type
    info.state = state  # type: ignore[assignment]
    info.attempt = max(1, activity.attempt)
    timestamp_from_ns(activity.scheduled_time, info.scheduled_time)
    if activity.started_time:
        timestamp_from_ns(activity.started_time, info.last_started_time)
    if activity.last_complete_time:
        timestamp_from_ns(activity.last_complete_time, info.last_attempt_complete_time)
    if state == SCHEDULED_ATTEMPT and now < activity.scheduled_time:
        timestamp_from_ns(activity.scheduled_time, info.next_attempt_schedule_time)
        from_ns(activity.scheduled_time - activity.last_complete_time, info.current_retry_interval)
    if activity.expiration:
        timestamp_from_ns(activity.expiration, info.expiration_time)
    if activity.heartbeat_time:
        timestamp_from_ns(activity.heartbeat_time, info.last_heartbeat_time)
    if activity.heartbeat_details:
        info.heartbeat_details.ParseFromString(activity.heartbeat_details)
    if activity.last_failure:
        info.last_failure.ParseFromString(activity.last_failure)
    info.last_worker_identity = activity.identity or activity.last_identity
    if activity.priority:
        info.priority.ParseFromString(activity.priority)
    if activity.paused:
        info.paused = True
        timestamp_from_ns(activity.pause_time, info.pause_info.pause_time)
        info.pause_info.manual.identity = activity.pause_identity
        info.pause_info.manual.reason = activity.pause_reason
    _activity_options(activity, info)


def _activity_options(activity: ActivityState, info: shown.PendingActivityInfo) -> None:
    options = info.activity_options
    options.task_queue.name = activity.task_queue
    options.task_queue.normal_name = activity.task_queue
    from_ns(activity.schedule_to_close, options.schedule_to_close_timeout)
    from_ns(activity.schedule_to_start, options.schedule_to_start_timeout)
    from_ns(activity.start_to_close, options.start_to_close_timeout)
    from_ns(activity.heartbeat_timeout, options.heartbeat_timeout)
    if activity.retry_policy:
        policy = RetryPolicy.FromString(activity.retry_policy)
        info.maximum_attempts = policy.maximum_attempts
        options.retry_policy.CopyFrom(policy)
    if activity.priority:
        options.priority.ParseFromString(activity.priority)


def _pending_task(run: Run, info: shown.PendingWorkflowTaskInfo) -> None:
    task = run.state.task
    assert task is not None
    info.state = W.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
    info.attempt = task.attempt
    timestamp_from_ns(task.scheduled_time, info.scheduled_time)
    timestamp_from_ns(task.original_scheduled_time, info.original_scheduled_time)
    if task.started_id:
        info.state = W.PENDING_WORKFLOW_TASK_STATE_STARTED
        timestamp_from_ns(task.started_time, info.started_time)


def _callback(run: Run, raw: bytes, info: shown.CallbackInfo) -> None:
    """A completion callback. It is for the end of the chain: a run with a successor leaves it standing by."""
    info.callback.ParseFromString(raw)
    info.trigger.workflow_closed.SetInParent()
    timestamp_from_ns(run.state.start_time, info.registration_time)
    info.state = STANDBY if run.running or run.state.successor_run_id else SCHEDULED
