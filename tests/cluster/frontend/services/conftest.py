"""A node on memory, its services called as a front would call them, without a socket.

`harness.call(request)` is one RPC: it returns the response or raises `Refused`. `harness.begin(request)`
leaves it open (long polls). The clock stands still until a test moves it; the loop's timers are real.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any, NamedTuple

import pytest_asyncio
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc.status_pb2 import Status
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from cluster.frontend.contract import Handler
from cluster.frontend.plain import PlainConnection
from cluster.frontend.services import everything
from cluster.frontend.services.base import OPERATOR_SERVICE, WORKFLOW_SERVICE, Services
from cluster.frontend.status import status_of
from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.groups.lanes import MakeLane
from cluster.hosting.node import Node
from cluster.hosting.shards.meta import REGISTERED, Namespace
from history_store.engine.environment import EngineLimits
from history_store.engine.limits import Limits
from history_store.storage.memory import MemoryStorage

NOW = 1_770_000_000_000_000_000
SECOND = 1_000_000_000
SEED = 20_260_214  # nothing here depends on it; it makes the ids the same in every run


class MovableClock(Clock):
    """Time stands until it is moved."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW

    def now_ns(self) -> int:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


class FakeConnection(PlainConnection):
    """A client's connection."""

    def __init__(self) -> None:
        super().__init__("test:0")


class Refused(Exception):
    """The RPC ended with a status."""

    def __init__(self, code: int, message: str, details: bytes | None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = [] if details is None else list(Status.FromString(details).details)

    def detail(self, kind: type[Message]) -> Any:
        """The first detail, which must be of this type."""
        found = kind()
        assert self.details[0].Unpack(found), self.details
        return found


class FakeCall:
    """One RPC, as `cluster.frontend.contract.Call` has it."""

    def __init__(
        self, method: str, request: bytes, deadline: float | None, connection: FakeConnection
    ) -> None:
        self.method = method
        self.request = request
        self.deadline = deadline
        self.connection = connection
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None
        self.metadata: Mapping[str, str | bytes] = {}
        self.work: asyncio.Task[None] | None = None  # of a method that is a coroutine
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def finish(self, body: bytes) -> None:
        if not self.done:
            self.done = True
            self.answer.set_result(body)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        if not self.done:
            self.done = True
            self.answer.set_exception(Refused(code, message, details))

    def set_metadata(self, *, initial: Iterable[Any] = (), trailing: Iterable[Any] = ()) -> None:
        pass

    def write(self, body: bytes) -> None:
        raise AssertionError("no method of these services streams")

    def cancel(self) -> None:
        """The client goes away."""
        if not self.done:
            self.done = True
            self.answer.cancel()
            if self.on_cancel is not None:
                self.on_cancel()


class Rpc(NamedTuple):
    """What a request's type tells."""

    name: str
    response: type[Message]


def _rpcs() -> dict[str, Rpc]:
    found = {}
    for file, service in ((workflow_service, WORKFLOW_SERVICE), (operator_service, OPERATOR_SERVICE)):
        for method in file.DESCRIPTOR.services_by_name[service.rpartition(".")[2]].methods:
            found[method.input_type.full_name] = Rpc(
                f"/{service}/{method.name}", GetMessageClass(method.output_type)
            )
    return found


RPCS = _rpcs()


class Harness:
    """The node, its services, and short ways to use them."""

    def __init__(
        self,
        storage: MemoryStorage,
        *,
        inline: bool = True,
        shards: int = 2,
        clock: MovableClock | None = None,
        limits: EngineLimits | None = None,
        seed: int = SEED,
        namespaces: Iterable[Namespace] = (),
        make_lane: MakeLane | None = None,
    ) -> None:
        self.storage = storage
        self.clock = clock or MovableClock()
        rng = random.Random(seed)
        ids = Identifiers(self.clock, rng)
        self.broken: list[BaseException] = []
        self.node = Node(
            asyncio.get_running_loop(), storage, self.clock, ids, rng, limits or EngineLimits(),
            inline=inline, shards=shards, cluster_id="00000000-0000-7000-8000-00000000c105",
            on_broken=self.broken.append, make_lane=make_lane,
        )  # fmt: skip
        self.node.start()
        for namespace in namespaces:
            self.node.meta.put(namespace, lambda error: None)
        if "default" not in self.node.meta.by_name:
            made = Namespace(self.node.new_id(), "default", REGISTERED, self.clock.now_ns())
            self.node.meta.create(made, lambda error: None)
        everything()
        self.services = Services(self.node, Limits(), long_poll_s=60.0)
        self.handlers: dict[str, Handler] = self.services.handlers()
        self.connection = FakeConnection()

    def begin(self, request: Message, *, deadline_s: float | None = 10.0,
              connection: FakeConnection | None = None, kind: type[FakeCall] = FakeCall,
              metadata: Mapping[str, str | bytes] | None = None) -> FakeCall:  # fmt: skip
        """Make the call and leave it open."""
        name = RPCS[request.DESCRIPTOR.full_name].name
        return self.send(name, request.SerializeToString(), deadline_s, connection, kind, metadata)

    def send(self, name: str, data: bytes, deadline_s: float | None = 10.0,
             connection: FakeConnection | None = None, kind: type[FakeCall] = FakeCall,
             metadata: Mapping[str, str | bytes] | None = None) -> FakeCall:  # fmt: skip
        """As a front would, whatever the bytes are."""
        loop = asyncio.get_running_loop()
        deadline = None if deadline_s is None else loop.time() + deadline_s
        call = kind(name, data, deadline, connection or self.connection)
        call.metadata = metadata or {}
        try:
            result = self.handlers[name](call)
        except Exception as error:
            call.fail(*status_of(error, name, "test"))
            return call
        if isinstance(result, bytes):
            call.finish(result)
        elif result is not None:
            call.work = loop.create_task(self._drive(call, result))
        return call

    @staticmethod
    async def _drive(call: FakeCall, work: Coroutine[Any, Any, bytes | None]) -> None:
        try:
            if (body := await work) is not None:
                call.finish(body)
        except Exception as error:
            call.fail(*status_of(error, call.method, "test"))

    async def call(self, request: Message, **options: Any) -> Any:
        """One RPC: its response. Raises Refused."""
        return await self.end(request, self.begin(request, **options))

    async def end(self, request: Message, call: FakeCall) -> Any:
        """The response of a call left open."""
        body = await asyncio.wait_for(call.answer, 60.0)
        return RPCS[request.DESCRIPTOR.full_name].response.FromString(body)

    async def refused(self, request: Message, **options: Any) -> Refused:
        """The status of an RPC that must not succeed."""
        try:
            response = await self.call(request, **options)
        except Refused as error:
            return error
        raise AssertionError(f"{request.DESCRIPTOR.name} was answered: {response}")

    # ---- short ways

    async def start(self, workflow_id: str, namespace: str = "default", **fields: Any) -> str:
        """Start a workflow of type W on queue q; its run id."""
        request = wire.StartWorkflowExecutionRequest(
            namespace=namespace, workflow_id=workflow_id, request_id=f"start-{workflow_id}", **fields
        )
        if not request.HasField("workflow_type"):
            request.workflow_type.name = "W"
        if not request.HasField("task_queue"):
            request.task_queue.name = "q"
        run_id: str = (await self.call(request)).run_id
        return run_id

    async def poll(self, queue: str = "q", namespace: str = "default") -> wire.PollWorkflowTaskQueueResponse:
        """The next workflow task."""
        request = wire.PollWorkflowTaskQueueRequest(namespace=namespace, identity="worker")
        request.task_queue.name = queue
        task = await self.call(request)
        assert isinstance(task, wire.PollWorkflowTaskQueueResponse)
        return task

    async def complete(
        self, token: bytes, *commands: Command, namespace: str = "default", **fields: Any
    ) -> wire.RespondWorkflowTaskCompletedResponse:
        """End a workflow task."""
        answer = await self.call(
            wire.RespondWorkflowTaskCompletedRequest(
                namespace=namespace, task_token=token, identity="worker", commands=commands, **fields
            )
        )
        assert isinstance(answer, wire.RespondWorkflowTaskCompletedResponse)
        return answer

    async def turn(self) -> None:
        """Let the loop do what is due now."""
        for _ in range(4):
            await asyncio.sleep(0)

    async def describe(self, workflow_id: str, run_id: str = "", namespace: str = "default"
                       ) -> wire.DescribeWorkflowExecutionResponse:  # fmt: skip
        """DescribeWorkflowExecution."""
        execution = WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
        found = await self.call(
            wire.DescribeWorkflowExecutionRequest(namespace=namespace, execution=execution)
        )
        assert isinstance(found, wire.DescribeWorkflowExecutionResponse)
        return found

    async def close(self) -> None:
        """Stop as the server does."""
        for callback in self.services.on_close:
            callback()
        await self.node.close()
        assert not self.broken


@pytest_asyncio.fixture
async def harness() -> AsyncIterator[Harness]:
    made = Harness(MemoryStorage())
    yield made
    await made.close()
