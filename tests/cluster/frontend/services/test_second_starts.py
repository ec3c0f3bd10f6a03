"""A start whose answer was lost is known again, also when its run is over and another has taken its place."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine.state import EARLIER_STARTS_MAX
from history_store.storage.memory import MemoryStorage
from tests.cluster.frontend.services.conftest import Harness, Refused

RUNNING, TERMINATED = 1, 5


@pytest_asyncio.fixture
async def node() -> AsyncIterator[Harness]:
    yield Harness(MemoryStorage())


def start(request_id: str, kind: Any = wire.StartWorkflowExecutionRequest) -> Any:
    request = kind(namespace="default", workflow_id="w", request_id=request_id)
    request.workflow_type.name = "W"
    request.task_queue.name = "q"
    return request


async def terminate(node: Harness) -> None:
    request = wire.TerminateWorkflowExecutionRequest(namespace="default")
    request.workflow_execution.workflow_id = "w"
    await node.call(request)


async def test_the_run_that_it_began_is_told(node: Harness) -> None:
    first = await node.call(start("a"))
    await terminate(node)
    second = await node.call(start("b"))
    again = await node.call(start("a"))
    assert (again.run_id, again.started, again.status) == (first.run_id, True, TERMINATED)
    assert again.first_execution_run_id == first.run_id
    assert (await node.call(start("b"))).run_id == second.run_id != first.run_id
    assert (await node.call(start("b"))).status == RUNNING


async def test_it_is_remembered_for_some_runs_and_then_forgotten(node: Harness) -> None:
    began = [(await node.call(start("r0"))).run_id]
    for number in range(1, EARLIER_STARTS_MAX + 2):
        await terminate(node)
        began.append((await node.call(start(f"r{number}"))).run_id)
    for number in range(1, EARLIER_STARTS_MAX + 2):
        assert (await node.call(start(f"r{number}"))).run_id == began[number]
    refused = await node.refused(start("r0"))
    assert refused.code == 6, "its run is long gone: another one runs"


async def test_also_when_its_run_went_on_as_another(node: Harness) -> None:
    first = await node.call(start("a"))
    task = await node.poll()
    command = Command(command_type=10)  # type: ignore[arg-type]  # continue as new
    attributes = command.continue_as_new_workflow_execution_command_attributes
    attributes.workflow_type.name = "W"
    attributes.task_queue.name = "q"
    await node.complete(task.task_token, command)
    again = await node.call(start("a"))
    assert again.run_id == first.run_id
    assert (await node.describe("w")).workflow_execution_info.execution.run_id != first.run_id


async def test_a_signal_that_came_with_it_is_not_given_to_another_run(node: Harness) -> None:
    request = start("a", wire.SignalWithStartWorkflowExecutionRequest)
    request.signal_name = "s"
    first = await node.call(request)
    await terminate(node)
    second = await node.call(start("b"))
    again = await node.call(request)
    assert (again.run_id, again.started) == (first.run_id, True)
    history = wire.GetWorkflowExecutionHistoryRequest(namespace="default")
    history.execution.workflow_id = "w"
    history.execution.run_id = second.run_id
    events = (await node.call(history)).history.events
    assert not [event for event in events if event.HasField("workflow_execution_signaled_event_attributes")]


@pytest.mark.parametrize("update_id", ["u"])
async def test_an_update_that_came_with_it_is_asked_of_its_run(node: Harness, update_id: str) -> None:
    request = wire.ExecuteMultiOperationRequest(namespace="default")
    request.operations.add().start_workflow.CopyFrom(start("a"))
    update = request.operations.add().update_workflow
    update.namespace = "default"
    update.workflow_execution.workflow_id = "w"
    update.wait_policy.lifecycle_stage = 2  # type: ignore[assignment]
    update.request.meta.update_id = update_id
    update.request.input.name = "change"
    call = node.begin(request)
    await node.turn()
    await terminate(node)
    with pytest.raises(Refused):
        await node.end(request, call)
    second = await node.call(start("b"))
    await node.refused(request)
    assert (await node.describe("w")).workflow_execution_info.execution.run_id == second.run_id
    assert (await node.describe("w")).workflow_execution_info.status == RUNNING
