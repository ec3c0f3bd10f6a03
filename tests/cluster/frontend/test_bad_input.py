"""Whatever bytes reach an RPC: it answers with a proper status, in time, and what it refuses leaves no trace.

`--seeds=N` runs more of it; a failure prints the seed, `--seed=N` repeats it.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from google.protobuf.message import Message
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.enums.v1 import command_type_pb2, workflow_pb2
from temporalio.api.protocol.v1.message_pb2 import Message as ProtocolMessage
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards.meta import REGISTERED, Namespace
from cluster.hosting.tasks.tokens import HistoryToken, encode
from history_store.engine.errors import Code
from history_store.storage.memory import MemoryStorage
from tests.cluster.frontend.bad_input import Mint, World, rpcs
from tests.cluster.frontend.services.conftest import FakeCall, Harness, Refused

EXAMPLES = 3  # of each RPC and seed
ALL = rpcs()
NEVER = (Code.OK, Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS)
PARKED = frozenset(  # RPCs that may wait for something that may never happen
    (
        "PollWorkflowTaskQueue", "PollActivityTaskQueue", "GetWorkflowExecutionHistory", "QueryWorkflow",
        "UpdateWorkflowExecution", "PollWorkflowExecutionUpdate", "ExecuteMultiOperation",
        "PollNexusTaskQueue",
    )
)  # fmt: skip
TURNS_MAX = 50
THREAD_S = 60.0


async def answered(harness: Harness, name: str, call: FakeCall) -> bool:
    """Whether the call is answered; one that may wait is left to its client, who gives up."""
    for _ in range(TURNS_MAX):
        if call.done:
            return True
        await asyncio.sleep(0)
    if name.rpartition("/")[2] in PARKED:
        call.cancel()
        return False
    # Reads of the projection are done by threads.
    await asyncio.wait([call.answer], timeout=THREAD_S)
    assert call.done, "it hangs"
    return True


def outcome(call: FakeCall) -> Refused | bytes:
    """What an answered call was told."""
    error = call.answer.exception()
    if error is None:
        return call.answer.result()
    assert isinstance(error, Refused)
    return error


async def one(world: World, name: str, response: type[Message], data: bytes) -> bool:
    """One call, and everything that must hold after it. Whether the world is as it was."""
    harness = world.harness
    before = world.digest()
    call = harness.send(name, data)
    if not await answered(harness, name, call):
        return world.digest() == before
    told = outcome(call)
    if isinstance(told, bytes):
        response.FromString(told)
        return world.digest() == before
    assert told.code not in NEVER, f"status {told.code}: {told.message}"
    assert told.message, "a status says what is wrong"
    same = world.digest() == before
    assert same or _told_the_worker(name, told), f"it changed something: {told}"
    return same


def _told_the_worker(name: str, told: Refused) -> bool:
    """Commands that do not fit fail the workflow task: that is recorded, and the worker hears of it."""
    return name.endswith("/RespondWorkflowTaskCompleted") and told.code == Code.INVALID_ARGUMENT


async def still_serves(harness: Harness) -> None:
    """A workflow from start to end, in a namespace of its own."""
    start = wire.StartWorkflowExecutionRequest(namespace="sane", workflow_id="sane", request_id="r")
    start.workflow_type.name = "W"
    start.task_queue.name = "sane"
    run_id = (await harness.call(start)).run_id
    task = await harness.poll("sane", "sane")
    done = Command(command_type=command_type_pb2.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    done.complete_workflow_execution_command_attributes.SetInParent()
    await harness.complete(task.task_token, done, namespace="sane")
    found = await harness.describe("sane", run_id, "sane")
    assert found.workflow_execution_info.status == workflow_pb2.WORKFLOW_EXECUTION_STATUS_COMPLETED


async def populated() -> World:
    harness = Harness(MemoryStorage())
    sane = Namespace(harness.node.new_id(), "sane", REGISTERED, harness.clock.now_ns())
    harness.node.meta.create(sane, lambda error: None)
    world = World(harness)
    await world.build()
    return world


async def attack(rng: random.Random, rpc: tuple[str, type[Message], type[Message]], examples: int) -> None:
    name, request, response = rpc
    world = await populated()
    mint = Mint(world, rng)
    for number in range(examples):
        made = mint.request(request)
        data = made.SerializeToString()
        if rng.random() < 0.2:
            data = mint.broken(data)
        try:
            same = await one(world, name, response, data)
            world.check_memory()
        except Exception as error:
            what = f"{name}, example {number}: {error}\n{data!r}\n{_readable(request, data)}"
            raise AssertionError(what) from error
        if not same:
            await still_serves(world.harness)
            await world.harness.close()
            world = mint.world = await populated()
    await still_serves(world.harness)
    await world.harness.close()


def _readable(request: type[Message], data: bytes) -> Any:
    try:
        return request.FromString(data)
    except Exception:
        return "no message"


@pytest.mark.parametrize("part", range(4))
async def test_every_rpc(part: int, rng: random.Random) -> None:
    for rpc in ALL[part::4]:
        await attack(rng, rpc, EXAMPLES)


def test_every_rpc_is_there() -> None:
    assert len(ALL) > 100


@pytest.mark.parametrize("number", [-(2**63), -1, 0, 2**62, 2**63 - 1])
async def test_page_tokens_with_numbers_that_are_no_event_ids(number: int) -> None:
    world = await populated()
    harness, run_id = world.harness, world.run_ids[2]
    before = world.digest()
    tokens = [(run_id, number), (run_id, number, True), (run_id, 1, False, number)]
    for token in (HistoryToken(*fields) for fields in tokens):
        for kind in (wire.GetWorkflowExecutionHistoryRequest, wire.GetWorkflowExecutionHistoryReverseRequest):
            request: Any = kind(namespace="default", next_page_token=encode(token))
            request.execution.workflow_id = "busy"
            call = harness.begin(request)
            await harness.turn()
            assert call.done
            told = outcome(call)
            assert isinstance(told, bytes) or told.code == Code.INVALID_ARGUMENT
    assert world.digest() == before
    await harness.close()


async def test_a_token_of_another_namespace() -> None:
    """What a client may do in one namespace gives it nothing in another."""
    world = await populated()
    for name, kind in (
        ("held", wire.RespondWorkflowTaskCompletedRequest),
        ("activity", wire.RespondActivityTaskCompletedRequest),
    ):
        error = await world.harness.refused(kind(namespace="sane", task_token=world.tokens[name]))
        assert error.code == Code.INVALID_ARGUMENT
        assert error.message == "Operation requested with a token from a different namespace."
    await world.harness.close()


async def test_a_run_id_in_capitals_names_no_run() -> None:
    world = await populated()
    for run_id in (world.run_ids[0].upper(), world.run_ids[0].replace("-", ""), world.run_ids[0] + " "):
        request = wire.TerminateWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = "waits"
        request.workflow_execution.run_id = run_id
        assert (await world.harness.refused(request)).code in (Code.NOT_FOUND, Code.INVALID_ARGUMENT)
    world.check_memory()
    await world.harness.close()


async def test_a_task_queue_whose_name_begins_another() -> None:
    """A name may hold any character; tasks stay in their own queue all the same."""
    harness = Harness(MemoryStorage())
    names = ["a", "a\0", "a\0b", "a\x01", "ab", "\0", "a\U0010ffff"]
    for number, name in enumerate(names):
        fields: dict[str, Any] = {"task_queue": {"name": name}}
        await harness.start(f"w{number}", **fields)
    for number, name in enumerate(names):
        task = await harness.poll(name)
        assert task.workflow_execution.workflow_id == f"w{number}"
        request = wire.PollWorkflowTaskQueueRequest(namespace="default")
        request.task_queue.name = name
        call = harness.begin(request)
        await harness.turn()
        assert not call.done, "nothing else is in this queue"
        call.cancel()
    await harness.close()


async def test_garbage_in_an_update_message() -> None:
    """A worker's answer to an update that is none fails the workflow task, and says so."""
    world = await populated()
    for type_name in ("Acceptance", "Rejection", "Response"):
        message = ProtocolMessage(id="m", protocol_instance_id="u")
        message.body.type_url = f"type.googleapis.com/temporal.api.update.v1.{type_name}"
        message.body.value = b"\xff\xff"
        await world.harness.call(_start(f"w-{type_name}"))
        task = await world.harness.poll(f"w-{type_name}")
        request = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, messages=[message]
        )
        assert (await world.harness.refused(request)).code == Code.INVALID_ARGUMENT
        world.check_memory()
    await world.harness.close()


def _start(name: str) -> wire.StartWorkflowExecutionRequest:
    request = wire.StartWorkflowExecutionRequest(namespace="default", workflow_id=name, request_id="r")
    request.workflow_type.name = "W"
    request.task_queue.name = name
    return request
