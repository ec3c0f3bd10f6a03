"""A node played by hand: time moves when told to, histories are tables, and it can die and come back.

`Play` is the services' harness with a clock that fires timers, short words for what a worker and a client do,
and `crash`, which gives the node that a restart would find.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Payload, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import command_type_pb2, event_type_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.protocol.v1.message_pb2 import Message as ProtocolMessage
from temporalio.api.update.v1.message_pb2 import Acceptance, Outcome, Rejection, Response
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine import keys
from history_store.storage.memory import MemoryStorage
from tests.cluster.frontend.services.conftest import FakeCall, FakeConnection, Harness
from tests.cluster.hosting import mirror

# What differs from run to run or says nothing.
SILENT = frozenset(
    (
        "identity", "request_id", "namespace_id", "namespace", "task_queue", "workflow_type",
        "activity_type", "original_execution_run_id", "first_execution_run_id", "new_execution_run_id",
        "continued_execution_run_id", "workflow_id", "root_workflow_execution", "history_size_bytes",
        "workflow_task_completed_event_id", "worker_version", "sdk_metadata", "metering_metadata",
        "retry_policy", "workflow_execution", "parent_workflow_namespace_id", "parent_workflow_namespace",
        "workflow_task_timeout", "start_to_close_timeout", "schedule_to_close_timeout",
        "schedule_to_start_timeout", "heartbeat_timeout", "use_workflow_build_id",
        "workflow_id_reuse_policy", "accepted_request_message_id", "accepted_request_sequencing_event_id",
        "workflow_execution_expiration_time", "prev_auto_reset_points", "accepted_request",
        "external_workflow_execution", "input", "eager_execution_accepted", "workflow_run_timeout",
        "workflow_execution_timeout", "parent_workflow_execution", "start_to_fire_timeout",
    )
)  # fmt: skip


def payloads(text: str) -> Payloads:
    """One value."""
    return Payloads(payloads=[Payload(metadata={"encoding": b"json/plain"}, data=f'"{text}"'.encode())])


def failure(message: str, *, final: bool = False) -> Failure:
    """An application failure."""
    made = Failure(message=message)
    made.application_failure_info.type = "Bad"
    made.application_failure_info.non_retryable = final
    return made


def command(kind: str, **fields: Any) -> Command:
    """A command by its type's name, as "START_TIMER"; fields are those of its attributes."""
    made = Command(command_type=command_type_pb2.CommandType.Value(f"COMMAND_TYPE_{kind}"))
    attributes = getattr(made, f"{kind.lower()}_command_attributes")
    attributes.SetInParent()
    attributes.MergeFrom(type(attributes)(**fields))
    return made


def activity(activity_id: str = "a", **fields: Any) -> Command:
    """ScheduleActivityTask."""
    fields.setdefault("start_to_close_timeout", {"seconds": 10})
    fields.setdefault("task_queue", {"name": "q"})
    return command("SCHEDULE_ACTIVITY_TASK", activity_id=activity_id, activity_type={"name": "A"}, **fields)


def timer(timer_id: str = "t", seconds: int = 5) -> Command:
    """StartTimer."""
    return command("START_TIMER", timer_id=timer_id, start_to_fire_timeout={"seconds": seconds})


def child(workflow_id: str = "child", **fields: Any) -> Command:
    """StartChildWorkflowExecution."""
    fields.setdefault("task_queue", {"name": "cq"})
    kind = {"name": "C"}
    return command("START_CHILD_WORKFLOW_EXECUTION", workflow_id=workflow_id, workflow_type=kind, **fields)


def done(text: str = "") -> Command:
    """CompleteWorkflowExecution."""
    return command("COMPLETE_WORKFLOW_EXECUTION", **({"result": payloads(text)} if text else {}))


def failed(message: str = "no") -> Command:
    """FailWorkflowExecution."""
    return command("FAIL_WORKFLOW_EXECUTION", failure=failure(message))


def _fact(field: FieldDescriptor, value: Any) -> str:
    name = field.name.removesuffix("_event_id")
    if isinstance(value, Failure):
        return f"{name}={value.message!r}" + (
            f" because {value.cause.message!r}" if value.HasField("cause") else ""
        )
    if isinstance(value, Payloads):
        return f"{name}=" + ",".join(p.data.decode() for p in value.payloads)
    if isinstance(value, Outcome):
        if value.HasField("failure"):
            return value.failure.message
        return f"success={value.success.payloads[0].data.decode()}"
    if field.enum_type is not None:
        label = field.enum_type.values_by_number[value].name
        prefix = (
            "".join(f"_{c}" if c.isupper() else c for c in field.enum_type.name).upper().lstrip("_") + "_"
        )
        return f"{name}={label.removeprefix(prefix)}"
    if isinstance(value, Message):
        return f"{name}={_plain(MessageToDict(value))}"
    return f"{name}={value}"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + " ".join(f"{key}={_plain(item)}" for key, item in sorted(value.items())) + "}"
    return str(value)


def line(event: HistoryEvent) -> str:
    """An event as a line of a table."""
    name = (
        event_type_pb2.EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").title().replace("_", "")
    )
    attributes = getattr(event, event.WhichOneof("attributes") or "")
    facts = [_fact(field, value) for field, value in attributes.ListFields() if field.name not in SILENT]
    facts = [fact for fact in facts if fact != "attempt=1"]
    return " ".join((f"{event.event_id:>2}", name, *facts))


class Play(Harness):
    """One node and everybody around it."""

    def __init__(self, storage: MemoryStorage | None = None, **options: Any) -> None:
        super().__init__(storage or Disk(), **options)
        self.heir: Play | None = None  # the node after a restart
        mirror.listen(self, mirror.Region(1, "a"))

    # ---- time

    async def advance(self, seconds: float) -> None:
        """Let time pass; what becomes due on the way happens in its order."""
        end = self.clock.now + int(seconds * 1e9)
        await self.settle()
        while True:
            heaps = [shard.wakes.heap for shard in self.node.shards]
            due = min((heap[0][0] for heap in heaps if heap), default=end + 1)
            due = min(due, *(shard.wakes.horizon for shard in self.node.shards))
            if due > end:
                break
            self.clock.now = max(self.clock.now, due)
            for shard in self.node.shards:
                shard.wakes.fire()
            await self.settle()
        self.clock.now = end
        await self.settle()

    async def settle(self) -> None:
        """Let the loop do what is due, and what follows from it."""
        for _ in range(5):
            await self.turn()

    # ---- the end, and what comes after

    def stop_dead(self) -> None:
        """The process dies: nothing more is done or stored."""
        self.node.committer.halt()
        if self.node._sweep is not None:
            self.node._sweep.cancel()
        for shard in self.node.shards:
            shard.close()
        for callback in self.services.on_close:
            callback()

    async def crash(self) -> Play:
        """The node that a restart finds."""
        self.stop_dead()
        self.storage.crash()
        await self.turn()
        self.clock.advance(0.1)  # a restart takes a while; ids and sequences follow the clock
        self.heir = Play(self.storage, clock=self.clock, seed=self.clock.now)
        return self.heir

    async def reopen(self) -> Play:
        """The same after an orderly stop."""
        await self.close()
        self.clock.advance(0.1)
        self.heir = Play(self.storage, clock=self.clock, seed=self.clock.now)
        return self.heir

    # ---- what is there

    async def events(self, workflow_id: str, run_id: str = "") -> list[HistoryEvent]:
        """The whole history."""
        request = wire.GetWorkflowExecutionHistoryRequest(namespace="default")
        request.execution.workflow_id = workflow_id
        request.execution.run_id = run_id
        return list((await self.call(request)).history.events)

    async def table(self, workflow_id: str, run_id: str = "", first: int = 1) -> str:
        """The history from an event on, a line an event."""
        return "\n".join(line(e) for e in await self.events(workflow_id, run_id) if e.event_id >= first)

    def rows(self) -> dict[bytes, bytes]:
        """Every row of every shard as the node sees it, without what is about other regions."""
        found: dict[bytes, bytes] = {}
        for shard in self.node.shards:
            group = shard.group.id
            stored = self.storage.scan(group.to_bytes(4, "big"), (group + 1).to_bytes(4, "big"))
            found.update((key[4:], value) for key, value in stored)
            for bucket in shard.rows._buckets.values():
                for key, (_, value) in bucket.items():
                    if value is None:
                        found.pop(key, None)
                    else:
                        found[key] = value
        return {key: value for key, value in found.items() if key[:1] != keys.STREAM}

    # ---- what clients and workers do

    async def first(self, *commands: Command, workflow_id: str = "w", **fields: Any) -> str:
        """Start a workflow and answer its first task with these commands; its run id."""
        run_id = await self.start(workflow_id, **fields)
        await self.next(*commands)
        return run_id

    async def next(
        self, *commands: Command, queue: str = "q", **fields: Any
    ) -> wire.PollWorkflowTaskQueueResponse:
        """Take the next workflow task and answer it."""
        task = await self.poll(queue)
        assert task.task_token, "no workflow task waits"
        await self.complete(task.task_token, *commands, **fields)
        await self.settle()
        return task

    def begin_poll(self, queue: str = "q", kind: str = "Workflow", connection: FakeConnection | None = None,
                   sticky: bool = False) -> FakeCall:  # fmt: skip
        """A poll that waits."""
        request: Any = getattr(wire, f"Poll{kind}TaskQueueRequest")(namespace="default", identity="worker")
        request.task_queue.name = queue
        if sticky:
            request.task_queue.kind = 2
            request.task_queue.normal_name = "q"
        return self.begin(request, connection=connection)

    async def idle(self, queue: str = "q", kind: str = "Workflow") -> bool:
        """Whether no task waits in the queue."""
        call = self.begin_poll(queue, kind)
        await self.settle()
        nothing = not call.done
        call.cancel()
        return nothing

    async def activity(self, queue: str = "q") -> wire.PollActivityTaskQueueResponse:
        """The next activity task."""
        call = self.begin_poll(queue, "Activity")
        await self.settle()
        assert call.done, "no activity task waits"
        return wire.PollActivityTaskQueueResponse.FromString(call.answer.result())

    async def activity_done(self, token: bytes, text: str = "ok") -> None:
        """RespondActivityTaskCompleted."""
        await self.call(
            wire.RespondActivityTaskCompletedRequest(
                namespace="default", task_token=token, result=payloads(text)
            )
        )

    async def activity_failed(self, token: bytes, why: Failure | None = None) -> None:
        """RespondActivityTaskFailed."""
        await self.call(
            wire.RespondActivityTaskFailedRequest(
                namespace="default", task_token=token, failure=why or failure("bad")
            )
        )

    async def signal(self, workflow_id: str = "w", name: str = "s", request_id: str = "") -> None:
        """SignalWorkflowExecution."""
        request = wire.SignalWorkflowExecutionRequest(
            namespace="default", signal_name=name, request_id=request_id
        )
        request.workflow_execution.workflow_id = workflow_id
        await self.call(request)

    async def cancel(self, workflow_id: str = "w") -> None:
        """RequestCancelWorkflowExecution."""
        request = wire.RequestCancelWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = workflow_id
        await self.call(request)

    async def terminate(self, workflow_id: str = "w", run_id: str = "") -> None:
        """TerminateWorkflowExecution."""
        request = wire.TerminateWorkflowExecutionRequest(namespace="default", reason="enough")
        request.workflow_execution.workflow_id = workflow_id
        request.workflow_execution.run_id = run_id
        await self.call(request)

    def update_request(
        self, update_id: str, stage: int = 3, workflow_id: str = "w"
    ) -> wire.UpdateWorkflowExecutionRequest:
        """UpdateWorkflowExecution; 2 waits for acceptance, 3 for completion."""
        request = wire.UpdateWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = workflow_id
        request.request.meta.update_id = update_id
        request.request.input.name = "U"
        request.wait_policy.lifecycle_stage = stage  # type: ignore[assignment]
        return request


def accept(update_id: str) -> ProtocolMessage:
    """The worker accepts an update."""
    message = ProtocolMessage(id=f"{update_id}/accept", protocol_instance_id=update_id)
    message.body.Pack(Acceptance(accepted_request_message_id=f"{update_id}/request"))
    return message


def respond(update_id: str, text: str = "ok") -> ProtocolMessage:
    """The worker completes an update."""
    message = ProtocolMessage(id=f"{update_id}/respond", protocol_instance_id=update_id)
    response = Response(outcome=Outcome(success=payloads(text)))
    response.meta.update_id = update_id
    message.body.Pack(response)
    return message


def reject(update_id: str, why: str = "not now") -> ProtocolMessage:
    """The worker rejects an update."""
    message = ProtocolMessage(id=f"{update_id}/reject", protocol_instance_id=update_id)
    message.body.Pack(Rejection(failure=failure(why), rejected_request_message_id=f"{update_id}/request"))
    return message


def execution(workflow_id: str, run_id: str = "") -> WorkflowExecution:
    """A workflow execution."""
    return WorkflowExecution(workflow_id=workflow_id, run_id=run_id)


class Disk(MemoryStorage):
    """Memory that a closed node leaves behind for the next one."""

    def close(self) -> None:
        """It stays."""
