"""The newer RPCs about a pending activity do for a workflow's activity what the older ones do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf.message import Message
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.enums.v1 import command_type_pb2, workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

if TYPE_CHECKING:
    from tests.cluster.frontend.services.conftest import Harness

PAUSED = workflow_pb2.PENDING_ACTIVITY_STATE_PAUSED
SCHEDULED = workflow_pb2.PENDING_ACTIVITY_STATE_SCHEDULED


async def _with_an_activity(harness: Harness) -> dict[str, str]:
    await harness.start("w")
    command = Command(command_type=command_type_pb2.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    attributes = command.schedule_activity_task_command_attributes
    attributes.activity_id = "a"
    attributes.activity_type.name = "A"
    attributes.task_queue.name = "q"
    attributes.start_to_close_timeout.seconds = 30
    await harness.complete((await harness.poll()).task_token, command)
    return {"namespace": "default", "workflow_id": "w", "activity_id": "a"}


async def _pending(harness: Harness) -> Any:
    return (await harness.describe("w")).pending_activities[0]


async def test_pause_options_reset_unpause(harness: Harness) -> None:
    one = await _with_an_activity(harness)
    await harness.call(wire.PauseActivityExecutionRequest(**one, identity="me", reason="a look"))
    pending = await _pending(harness)
    assert pending.state == PAUSED
    assert (pending.pause_info.manual.identity, pending.pause_info.manual.reason) == ("me", "a look")
    change = wire.UpdateActivityExecutionOptionsRequest(**one)
    change.update_mask.paths.append("start_to_close_timeout")
    change.activity_options.start_to_close_timeout.seconds = 420
    changed = await harness.call(change)
    assert changed.activity_options.start_to_close_timeout.seconds == 420
    await harness.call(
        wire.ResetActivityExecutionRequest(**one, keep_paused=True, restore_original_options=True)
    )
    pending = await _pending(harness)
    assert pending.state == PAUSED
    assert pending.activity_options.start_to_close_timeout.seconds == 30
    await harness.call(wire.UnpauseActivityExecutionRequest(**one))
    assert (await _pending(harness)).state == SCHEDULED


@pytest.mark.parametrize(
    "request_type",
    [
        wire.PauseActivityExecutionRequest,
        wire.UnpauseActivityExecutionRequest,
        wire.ResetActivityExecutionRequest,
        wire.UpdateActivityExecutionOptionsRequest,
    ],
)
async def test_without_a_workflow_it_comes_later(harness: Harness, request_type: type[Message]) -> None:
    request = request_type(namespace="default", activity_id="a")
    if isinstance(request, wire.UpdateActivityExecutionOptionsRequest):
        request.restore_original = True
    refused = await harness.refused(request)
    assert refused.code == 12
    assert "standalone activities" in refused.message


async def test_a_task_names_both_limits_also_if_there_is_none(harness: Harness) -> None:
    # The TypeScript SDK fails an attempt whose schedule-to-close time-out is not in the task.
    await _with_an_activity(harness)
    poll = wire.PollActivityTaskQueueRequest(namespace="default", identity="doer")
    poll.task_queue.name = "q"
    task = await harness.call(poll)
    assert task.HasField("schedule_to_close_timeout")
    assert task.schedule_to_close_timeout.seconds == 0
    assert task.start_to_close_timeout.seconds == 30
