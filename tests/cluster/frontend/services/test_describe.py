"""DescribeWorkflowExecution shows a run with all that is pending in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Callback, Payload, WorkflowExecution
from temporalio.api.enums.v1 import command_type_pb2, common_pb2, workflow_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

if TYPE_CHECKING:
    from tests.cluster.frontend.services.conftest import Harness

C = command_type_pb2
W = workflow_pb2
SECOND = 1_000_000_000
NOW = 1_770_000_000_000_000_000


def activity_command(activity_id: str, queue: str = "q", attempts: int = 0) -> Command:
    command = Command(command_type=C.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    attributes = command.schedule_activity_task_command_attributes
    attributes.activity_id = activity_id
    attributes.activity_type.name = "A"
    attributes.task_queue.name = queue
    attributes.start_to_close_timeout.seconds = 30
    attributes.heartbeat_timeout.seconds = 10
    attributes.schedule_to_close_timeout.seconds = 300
    attributes.retry_policy.maximum_attempts = attempts
    attributes.retry_policy.initial_interval.seconds = 7
    attributes.retry_policy.backoff_coefficient = 2.0
    return command


def poll_activity(queue: str = "q") -> wire.PollActivityTaskQueueRequest:
    request = wire.PollActivityTaskQueueRequest(namespace="default", identity="doer")
    request.task_queue.name = queue
    return request


async def test_fresh_run(harness: Harness) -> None:
    request = wire.StartWorkflowExecutionRequest()
    request.memo.fields["m"].data = b"1"
    request.workflow_execution_timeout.seconds = 100
    request.workflow_run_timeout.seconds = 50
    request.workflow_task_timeout.seconds = 5
    request.user_metadata.summary.data = b'"what it is"'
    request.priority.priority_key = 2
    run_id = await harness.start(
        "a", memo=request.memo, user_metadata=request.user_metadata, priority=request.priority,
        workflow_execution_timeout=request.workflow_execution_timeout,
        workflow_run_timeout=request.workflow_run_timeout,
        workflow_task_timeout=request.workflow_task_timeout,
        completion_callbacks=[Callback(nexus=Callback.Nexus(url="http://localhost/done"))],
    )  # fmt: skip
    found = await harness.describe("a")
    config, info, more = found.execution_config, found.workflow_execution_info, found.workflow_extended_info
    assert config.task_queue.name == "q"
    assert config.workflow_execution_timeout.seconds == 100
    assert config.workflow_run_timeout.seconds == 50
    assert config.default_workflow_task_timeout.seconds == 5
    assert config.user_metadata.summary.data == b'"what it is"'
    assert info.execution == WorkflowExecution(workflow_id="a", run_id=run_id)
    assert info.root_execution == info.execution
    assert info.first_run_id == run_id
    assert info.status == W.WORKFLOW_EXECUTION_STATUS_RUNNING
    assert info.history_length == 2
    assert info.history_size_bytes > 0
    assert info.start_time.ToNanoseconds() == info.execution_time.ToNanoseconds() == NOW
    assert info.memo.fields["m"].data == b"1"
    assert info.priority.priority_key == 2
    assert not info.HasField("close_time")
    assert not info.HasField("parent_execution")
    assert more.execution_expiration_time.ToNanoseconds() == NOW + 100 * SECOND
    assert more.run_expiration_time.ToNanoseconds() == NOW + 50 * SECOND
    assert more.original_start_time.ToNanoseconds() == NOW
    assert more.request_id_infos["start-a"].event_id == 1
    assert [callback.state for callback in found.callbacks] == [common_pb2.CALLBACK_STATE_STANDBY]
    task = found.pending_workflow_task
    assert (task.state, task.attempt) == (W.PENDING_WORKFLOW_TASK_STATE_SCHEDULED, 1)
    assert task.scheduled_time.ToNanoseconds() == task.original_scheduled_time.ToNanoseconds() == NOW


async def test_started_task_then_closed(harness: Harness) -> None:
    await harness.start("a")
    harness.clock.advance(2)
    task = await harness.poll()
    pending = (await harness.describe("a")).pending_workflow_task
    assert pending.state == W.PENDING_WORKFLOW_TASK_STATE_STARTED
    assert pending.started_time.ToNanoseconds() == NOW + 2 * SECOND
    end = Command(command_type=C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    end.complete_workflow_execution_command_attributes.SetInParent()
    await harness.complete(task.task_token, end)
    found = await harness.describe("a", task.workflow_execution.run_id)
    info = found.workflow_execution_info
    assert info.status == W.WORKFLOW_EXECUTION_STATUS_COMPLETED
    assert info.history_length == 5
    assert info.close_time.ToNanoseconds() == NOW + 2 * SECOND
    assert info.execution_duration.ToNanoseconds() == 2 * SECOND
    assert not found.HasField("pending_workflow_task")


async def test_activity_from_scheduled_to_backoff(harness: Harness) -> None:
    await harness.start("a")
    task = await harness.poll()
    await harness.complete(task.task_token, activity_command("1", attempts=5))
    (pending,) = (await harness.describe("a")).pending_activities
    assert (pending.activity_id, pending.activity_type.name, pending.attempt) == ("1", "A", 1)
    assert pending.state == W.PENDING_ACTIVITY_STATE_SCHEDULED
    assert pending.maximum_attempts == 5
    assert pending.expiration_time.ToNanoseconds() == NOW + 300 * SECOND
    options = pending.activity_options
    assert options.task_queue.name == "q"
    assert (options.start_to_close_timeout.seconds, options.heartbeat_timeout.seconds) == (30, 10)
    assert options.retry_policy.initial_interval.seconds == 7
    assert not pending.HasField("next_attempt_schedule_time")
    assert not pending.HasField("last_started_time")

    work = await harness.call(poll_activity())
    harness.clock.advance(1)
    beat = wire.RecordActivityTaskHeartbeatRequest(namespace="default", task_token=work.task_token)
    beat.details.payloads.add(data=b"half")
    await harness.call(beat)
    (pending,) = (await harness.describe("a")).pending_activities
    assert pending.state == W.PENDING_ACTIVITY_STATE_STARTED
    assert pending.last_worker_identity == "doer"
    assert pending.last_started_time.ToNanoseconds() == NOW
    assert pending.last_heartbeat_time.ToNanoseconds() == NOW + SECOND
    assert pending.heartbeat_details.payloads[0].data == b"half"

    failure = Failure(message="no luck")
    failure.application_failure_info.type = "Luck"
    request = wire.RespondActivityTaskFailedRequest(
        namespace="default", task_token=work.task_token, failure=failure
    )
    await harness.call(request)
    (pending,) = (await harness.describe("a")).pending_activities
    assert pending.state == W.PENDING_ACTIVITY_STATE_SCHEDULED
    assert pending.attempt == 2
    assert pending.last_failure.message == "no luck"
    assert pending.last_worker_identity == "doer"
    assert pending.next_attempt_schedule_time.ToNanoseconds() == NOW + 8 * SECOND
    assert pending.current_retry_interval.ToNanoseconds() == 7 * SECOND
    assert pending.last_attempt_complete_time.ToNanoseconds() == NOW + SECOND


async def test_activity_states_of_pause_and_cancel(harness: Harness) -> None:
    run_id = await harness.start("a")
    task = await harness.poll()
    await harness.complete(task.task_token, activity_command("1"))
    _, run = harness.services.run(harness.node.meta.get("default").id, "a", run_id)
    (activity,) = run.activities.values()

    async def state() -> int:
        (pending,) = (await harness.describe("a")).pending_activities
        return pending.state

    activity.paused, activity.pause_identity, activity.pause_time = True, "me", NOW
    (pending,) = (await harness.describe("a")).pending_activities
    assert pending.state == W.PENDING_ACTIVITY_STATE_PAUSED
    assert pending.paused
    assert pending.pause_info.manual.identity == "me"
    activity.started_id = -1
    assert await state() == W.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
    activity.cancel_requested = True
    assert await state() == W.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED


async def test_parent_and_child_show_each_other(harness: Harness) -> None:
    parent_run = await harness.start("parent")
    task = await harness.poll()
    command = Command(command_type=C.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    attributes = command.start_child_workflow_execution_command_attributes
    attributes.workflow_id = "child"
    attributes.workflow_type.name = "C"
    attributes.task_queue.name = "q"
    attributes.parent_close_policy = W.PARENT_CLOSE_POLICY_TERMINATE
    await harness.complete(task.task_token, command)
    child_task = await harness.poll()
    if child_task.workflow_execution.workflow_id == "parent":
        child_task = await harness.poll()
    (pending,) = (await harness.describe("parent")).pending_children
    child = (await harness.describe("child")).workflow_execution_info
    assert (pending.workflow_id, pending.workflow_type_name) == ("child", "C")
    assert pending.run_id == child.execution.run_id == child_task.workflow_execution.run_id
    assert pending.parent_close_policy == W.PARENT_CLOSE_POLICY_TERMINATE
    assert child.parent_execution == WorkflowExecution(workflow_id="parent", run_id=parent_run)
    assert child.root_execution == child.parent_execution
    assert child.parent_namespace_id == harness.node.meta.get("default").id


async def test_refusals(harness: Harness) -> None:
    execution = WorkflowExecution(workflow_id="absent")
    request = wire.DescribeWorkflowExecutionRequest(namespace="default", execution=execution)
    error = await harness.refused(request)
    assert (error.code, error.message) == (5, "workflow not found for ID: absent")
    request.namespace = "nope"
    error = await harness.refused(request)
    assert (error.code, error.message) == (5, "Namespace nope is not found.")


async def test_memo_survives_as_it_came(harness: Harness) -> None:
    request = wire.StartWorkflowExecutionRequest()
    request.memo.fields["k"].CopyFrom(Payload(metadata={"encoding": b"x"}, data=b"\x00\xff"))
    await harness.start("a", memo=request.memo)
    assert (await harness.describe("a")).workflow_execution_info.memo == request.memo
