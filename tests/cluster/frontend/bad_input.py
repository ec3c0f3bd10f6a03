"""Bad requests by the thousand: any field, any value, any bytes; and a node that has something to lose.

`Mint` makes requests for an RPC. Most fields get a value that means something to the node (an id, a token, a
name that is there), so that requests get past the first check; some get a hostile one. `broken` then damages
the bytes of some requests.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import command_type_pb2
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.protocol.v1.message_pb2 import Message as ProtocolMessage
from temporalio.api.update.v1.message_pb2 import Acceptance, Rejection, Response
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from cluster.hosting.tasks.tokens import HistoryToken, TaskToken, encode
from history_store.engine.run import Run, pack
from history_store.shard import runs
from tests.cluster.frontend.services.conftest import Harness

DEPTH_MAX = 5
GOOD = 0.85  # how often a field that a plausible request would set has a plausible value
INT64 = (-(2**63), -1, 0, 1, 2, 2**31, 2**53, 2**62, 2**63 - 1)
INT32 = (-(2**31), -1, 0, 1, 2, 255, 256, 1000, 2**31 - 1)
DOUBLES = (0.0, -1.0, 0.5, 1.0, 2.0, 1e308, float("nan"), float("inf"), float("-inf"), 5e-324)
SECONDS = (-(2**63), -1, 0, 1, 60, 3600, 315_576_000_000, 2**62, 2**63 - 1)
NANOS = (-(2**31), -1, 0, 1, 999_999_999, 10**9, 2**31 - 1)
TEXTS = (
    "", " ", "a", "\0", "a\0b", "\x7f\x1b[2J", "x" * 1000, "x" * 1001, "é" * 501, "\U0010ffff" * 3,
    "\u202e\ufeff",
    "/_sys/q/1", "../../etc/passwd", "' OR 1=1 --", "%s%n{}", "*/0 * * * *", "@every 1ns", "@every 99999999h",
    "TZ=Nowhere/At_All * * * * *", "-1", "NaN", "0190E1F4-9C5E-7D5A-8B1A-1234567890AB",
    "0190e1f49c5e7d5a8b1a1234567890ab", "0190e1f4-9c5e-7d5a-8b1a-1234567890ag",
    "WorkflowId = ", "((((" * 40, "ExecutionStatus = 'Running' ORDER BY StartTime DESC",
    "GROUP BY ExecutionStatus",
)  # fmt: skip
BLOBS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\x80" * 40,
    b"x" * 3000,
    b"null",
    b"[]",
    b'"x"',
    b"\xc1",
    b"\x95\x01",
    b"{" * 2000,
)

MUST = frozenset(  # fields without which a request does not get far
    (
        "namespace", "workflow_id", "task_token", "execution", "workflow_execution", "task_queue",
        "workflow_type", "name", "request", "update_ref", "meta", "input", "command_type",
    )
)  # fmt: skip


def rpcs() -> list[tuple[str, type[Message], type[Message]]]:
    """(full method name, request, response) of every RPC of both services."""
    found = []
    for file in (workflow_service, operator_service):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                name = f"/{service.full_name}/{method.name}"
                found.append((name, GetMessageClass(method.input_type), GetMessageClass(method.output_type)))
    return found


class World:
    """A node with runs in many conditions, and the names by which they can be reached."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.workflow_ids: list[str] = []
        self.run_ids: list[str] = []
        self.task_tokens: list[bytes] = []
        self.tokens: dict[str, bytes] = {}  # of the workflow task of a run, and of the activity
        self.page_tokens: list[bytes] = []
        self.update_ids: list[str] = []

    async def build(self) -> None:
        """Runs: waiting, held by a worker, with everything pending, closed, with updates."""
        harness = self.harness
        for name in ("waits", "held", "busy", "closed", "asked"):
            self.workflow_ids.append(name)
            fields: dict[str, Any] = {"task_queue": {"name": name}}
            self.run_ids.append(await harness.start(name, **fields))
        for name in ("held", "busy", "closed", "asked"):
            await self._first_task(name)
        self.page_tokens = [
            encode(HistoryToken(self.run_ids[2], 2)),
            encode(HistoryToken(self.run_ids[2], 4, True)),
            encode(HistoryToken(self.run_ids[3], 2, False, 3)),
        ]

    async def _first_task(self, name: str) -> None:
        harness = self.harness
        task = await harness.poll(name)
        self.task_tokens.append(task.task_token)
        self.tokens[name] = task.task_token
        if name == "busy":
            await harness.complete(task.task_token, *everything_pending())
            poll = wire.PollActivityTaskQueueRequest(namespace="default", identity="w")
            poll.task_queue.name = "busy"
            activity = await harness.call(poll)
            self.task_tokens.append(activity.task_token)
            self.tokens["activity"] = activity.task_token
            self.workflow_ids.append("child")
        elif name == "closed":
            done = Command(command_type=command_type_pb2.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
            done.complete_workflow_execution_command_attributes.SetInParent()
            await harness.complete(task.task_token, done)
        elif name == "asked":
            await harness.complete(task.task_token)
            await self._accepted_update()

    async def _accepted_update(self) -> None:
        harness = self.harness
        request = wire.UpdateWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = "asked"
        request.request.meta.update_id = "u1"
        request.request.input.name = "U"
        request.wait_policy.lifecycle_stage = 2  # type: ignore[assignment]
        call = harness.begin(request)
        task = await harness.poll("asked")
        self.task_tokens.append(task.task_token)
        (asked,) = task.messages
        answer = ProtocolMessage(id="m", protocol_instance_id="u1")
        answer.body.Pack(Acceptance(accepted_request_message_id=asked.id))
        await harness.complete(task.task_token, messages=[answer])
        await harness.end(request, call)
        self.update_ids.append("u1")

    # ---- what must not change

    def digest(self) -> str:
        """Of every row as the node sees it, stored or not, and of what it holds decoded."""
        node = self.harness.node
        found = hashlib.sha256()
        for number, group in sorted(node.committer.groups.items()):
            prefix = number.to_bytes(4, "big")
            merged = {
                key[4:]: value for key, value in node.storage.scan(prefix, (number + 1).to_bytes(4, "big"))
            }
            for bucket in group.rows._buckets.values():
                for key, (_, value) in bucket.items():
                    if value is None:
                        merged.pop(key, None)
                    else:
                        merged[key] = value
            for key in sorted(merged):
                found.update(b"%d %d " % (len(key), len(merged[key])) + key + merged[key])
        for namespace in sorted(node.meta.by_id):
            found.update(pack(node.meta.by_id[namespace]))
        return found.hexdigest()

    def check_memory(self) -> None:
        """What the node holds decoded is what its rows say, and no transaction is left open."""
        for shard in self.harness.node.shards:
            for run in list(shard.cache.runs.values()):
                assert run.tx is None, f"{run.state.workflow_id}: a transaction is open"
                assert not run.events
                assert not run.dirty
                s = run.state
                again = runs.load(shard.rows, s.namespace_id, s.workflow_id, s.run_id, 1)
                assert again is not None, f"{s.workflow_id}: in memory, but not in the rows"
                _same(run, again)


def _same(run: Run, again: Run) -> None:
    core, stored = run._pack_core(), pack(again.state)
    if run.state.task is not None and run.state.task.kind == 2:
        # A speculative task moves the counter of tasks, which is written with the next entry.
        again.state.task_stamp = run.state.task_stamp
        stored = pack(again.state)
    assert core == stored, f"{run.state.workflow_id}: {run.state} in memory, {again.state} in the rows"
    for name in ("activities", "timers", "children", "external", "updates_state", "signal_ids"):
        assert getattr(run, name) == getattr(again, name), f"{run.state.workflow_id}: {name}"
    assert [e.SerializeToString() for e in run.buffered] == [e.SerializeToString() for e in again.buffered]


def everything_pending() -> list[Command]:
    """Commands that leave an activity, a timer and a child pending."""
    activity = Command(command_type=command_type_pb2.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    wanted = activity.schedule_activity_task_command_attributes
    wanted.activity_id = "a1"
    wanted.activity_type.name = "A"
    wanted.task_queue.name = "busy"
    wanted.start_to_close_timeout.seconds = 60
    timer = Command(command_type=command_type_pb2.COMMAND_TYPE_START_TIMER)
    timer.start_timer_command_attributes.timer_id = "t1"
    timer.start_timer_command_attributes.start_to_fire_timeout.seconds = 3600
    child = Command(command_type=command_type_pb2.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    asked = child.start_child_workflow_execution_command_attributes
    asked.workflow_id = "child"
    asked.workflow_type.name = "C"
    asked.task_queue.name = "children"
    return [activity, timer, child]


def _scalars(message: Any) -> Iterator[tuple[Any, FieldDescriptor]]:
    """Every singular value in a message that is not a message itself."""
    for field, value in message.ListFields():
        kind = field.message_type
        if kind is None:
            if not field.is_repeated:
                yield message, field
        elif kind.GetOptions().map_entry:
            if kind.fields_by_name["value"].message_type is not None:
                for item in value.values():
                    yield from _scalars(item)
        elif field.is_repeated:
            for item in value:
                yield from _scalars(item)
        else:
            yield from _scalars(value)


class Mint:
    """Makes requests."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.good = GOOD
        self.density = 0.5
        pick = self.pick
        self._named: dict[str, Callable[[], Any]] = {
            "namespace": lambda: "default",
            "workflow_id": lambda: pick([*world.workflow_ids, "new"]),
            "run_id": lambda: pick(["", *world.run_ids]),
            "first_execution_run_id": lambda: pick(["", "", *world.run_ids]),
            "task_token": lambda: pick(world.task_tokens),
            "next_page_token": lambda: pick([b"", *world.page_tokens]),
            "update_id": lambda: pick([*world.update_ids, "u2", ""]),
            "protocol_instance_id": lambda: pick([*world.update_ids, "u2"]),
            "activity_id": lambda: pick(["a1", "a2"]),
            "timer_id": lambda: pick(["t1", "t2"]),
            "cron_schedule": lambda: pick(["", "", "", "* * * * *", "@every 1h"]),
            "query": lambda: pick(["", "WorkflowId = 'held'", "ExecutionStatus = 'Running'"]),
            "scheduled_event_id": lambda: pick([0, 5, 6]),
            "maximum_page_size": lambda: pick([0, 1, 2, 1000]),
            "maximum_attempts": lambda: pick([0, 1, 3]),
            "backoff_coefficient": lambda: pick([0.0, 1.0, 2.0]),
            "priority_key": lambda: pick([0, 1, 5]),
            "kind": lambda: pick([0, 1]),
            "encoding": lambda: b"json/plain",
            "url": lambda: "http://localhost:1/x",
        }  # fmt: skip

    def pick(self, values: Any) -> Any:
        return values[self.rng.randrange(len(values))]

    def request(self, kind: type[Message]) -> Message:
        """A request with some of its fields set; how many, and how badly, differs from one to the next."""
        self.good = self.pick((1.0, 1.0, 0.95, 0.85, 0.3))
        self.density = self.pick((0.05, 0.2, 0.5, 0.9))
        made = kind()
        base = TEMPLATES.get(made.DESCRIPTOR.name.removesuffix("Request"))
        if base is not None and self.rng.random() < 0.7:
            base(self, made)
            self.good, self.density = self.pick(((1.0, 0.0), (0.9, 0.0), (0.9, 0.1), (0.7, 0.2)))
            if self.density:
                self._add(made)
        else:
            self.fill(made)
        if self.rng.random() < 0.5:
            self.spoil(made)
        return made

    def _add(self, made: Message) -> None:
        """Some more fields for a request that is good as it is."""
        for field in made.DESCRIPTOR.fields:
            if self.rng.random() < self.density and field not in [known for known, _ in made.ListFields()]:
                self._set(made, field, 1)

    def spoil(self, message: Message) -> None:
        """Make one value of it hostile, so that all that is around it passes the checks."""
        places = list(_scalars(message))
        if places:
            owner, field = self.pick(places)
            self.good = 0.0
            setattr(owner, field.name, self._scalar(field))

    def fill(self, message: Any, depth: int = 0) -> None:
        """Set fields."""
        descriptor: Descriptor = message.DESCRIPTOR
        if descriptor.full_name == "google.protobuf.Any":
            self._any(message, depth)
            return
        if descriptor.full_name in ("google.protobuf.Duration", "google.protobuf.Timestamp"):
            self._time(message)
            return
        for field in descriptor.fields:
            if depth > DEPTH_MAX or self.rng.random() > (0.97 if field.name in MUST else self.density):
                continue
            self._set(message, field, depth)
        if descriptor.full_name == Command.DESCRIPTOR.full_name:
            self.agree(message)

    def agree(self, command: Command) -> None:
        """Most commands are of the type of their attributes."""
        chosen = command.WhichOneof("attributes")
        if chosen is not None and self.rng.random() < self.good:
            name = "COMMAND_TYPE_" + chosen.removesuffix("_command_attributes").upper()
            if name in command_type_pb2.CommandType.DESCRIPTOR.values_by_name:
                command.command_type = command_type_pb2.CommandType.Value(name)

    def _set(self, message: Any, field: FieldDescriptor, depth: int) -> None:
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            key, item = kind.fields_by_name["key"], kind.fields_by_name["value"]
            for _ in range(self.rng.randrange(3)):
                if item.message_type is not None:
                    self.fill(value[self._scalar(key)], depth + 1)
                else:
                    value[self._scalar(key)] = self._scalar(item)
        elif field.is_repeated:
            for _ in range(self.rng.randrange(4)):
                if kind is not None:
                    self.fill(value.add(), depth + 1)
                else:
                    value.append(self._scalar(field))
        elif kind is not None:
            value.SetInParent()
            self.fill(value, depth + 1)
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        named = self._named.get(field.name)
        plausible = rng.random() < self.good
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
                return named() if plausible and named is not None else self._blob()
            case FieldDescriptor.CPPTYPE_STRING:
                if plausible:
                    made = named() if named is not None else self.pick(("q", "held", "W", "x"))
                    return made if isinstance(made, str) else str(made)
                return self.pick(TEXTS)
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                value = named() if plausible and named is not None else self.pick(DOUBLES)
                return float(value)
            case FieldDescriptor.CPPTYPE_ENUM:
                numbers = [value.number for value in field.enum_type.values]
                return self.pick(numbers) if plausible else self.pick((-1, 99, 2**31 - 1))
            case FieldDescriptor.CPPTYPE_INT64:
                return named() if plausible and named is not None else self.pick(INT64)
            case FieldDescriptor.CPPTYPE_INT32:
                return named() if plausible and named is not None else self.pick(INT32)
            case _:
                return self.pick((0, 1, 2, 2**31))

    def _time(self, message: Any) -> None:
        if self.rng.random() < self.good:
            message.seconds = self.pick((0, 1, 10, 3600))
            return
        message.seconds = self.pick(SECONDS)
        message.nanos = self.pick(NANOS)

    def _any(self, message: Any, depth: int) -> None:
        if self.rng.random() > self.good:
            message.type_url = self.pick(TEXTS)
            message.value = self._blob()
            return
        body = self.pick((Acceptance, Rejection, Response, WorkflowExecution))()
        self.fill(body, depth + 1)
        message.Pack(body)

    def _blob(self) -> bytes:
        """Garbage, or a token that is one by its form only."""
        rng = self.rng
        if rng.random() < 0.3:
            return bytes(self.pick(BLOBS))
        if rng.random() < 0.3:
            token: bytes = self.pick([*self.world.task_tokens, *self.world.page_tokens])
            return token[: rng.randrange(len(token))] if rng.random() < 0.5 else token
        run_id = self.pick([*self.world.run_ids, "", "zz", "a b", self.world.run_ids[0].upper()])
        if rng.random() < 0.5:
            return self.page_token("busy")
        namespace = self.pick([self.world.harness.node.meta.get("default").id, "", "garbage", "ab"])
        return encode(
            TaskToken(self.pick((0, 1, 2, 3, 9)), namespace, self.pick(self.world.workflow_ids), run_id,
                      self.pick(INT64), self.pick(INT64), self.pick(INT64), self.pick(TEXTS))
        )  # fmt: skip

    def page_token(self, workflow_id: str) -> bytes:
        """A page token of a run, whose numbers may be anything."""
        rng, run_id = self.rng, self.world.run_ids[self.world.workflow_ids.index(workflow_id)]
        numbers = [self.pick(INT64) if rng.random() < 0.3 else rng.randrange(8) for _ in range(3)]
        return encode(HistoryToken(run_id, numbers[0], rng.random() < 0.5, numbers[1], numbers[2]))

    def broken(self, data: bytes) -> bytes:
        """Damaged bytes: cut, flipped, doubled, with a field more, or nothing but noise."""
        rng = self.rng
        match rng.randrange(6):
            case 0:
                return data[: rng.randrange(len(data) + 1)]
            case 1 if data:
                at = rng.randrange(len(data))
                return data[:at] + bytes((data[at] ^ 1 << rng.randrange(8),)) + data[at + 1 :]
            case 2:
                return data + data[: rng.randrange(len(data) + 1)]
            case 3:
                return data + b"\x0a\x04\xff\xfe\xc0\x80"  # field 1 as text that is not UTF-8
            case 4:
                return b"\x0b" * rng.randrange(200) + data  # groups in groups
            case _:
                return rng.randbytes(rng.randrange(60))


# ---- requests that are good, as a start


def _task_token(mint: Mint, made: Any) -> None:
    made.namespace = "default"
    made.task_token = mint.world.tokens["held"]


def _workflow_task_completed(mint: Mint, made: Any) -> None:
    _task_token(mint, made)
    mint.density = mint.pick((0.1, 0.5, 0.9))
    for _ in range(mint.rng.randrange(4)):
        command = made.commands.add()
        mint.good = mint.pick((1.0, 0.97, 0.9))
        attributes = command.DESCRIPTOR.oneofs_by_name["attributes"].fields
        chosen = getattr(command, mint.pick(attributes).name)
        chosen.SetInParent()
        mint.fill(chosen, 1)
        mint.good = 1.0
        mint.agree(command)
    if mint.rng.random() < 0.3:
        mint.fill(made.messages.add(), 1)


def _activity_token(mint: Mint, made: Any) -> None:
    made.namespace = "default"
    made.task_token = mint.world.tokens["activity"]


def _activity_id(mint: Mint, made: Any) -> None:
    made.namespace, made.workflow_id, made.activity_id = "default", "busy", "a1"


def _activity_admin(mint: Mint, made: Any) -> None:
    made.namespace, made.execution.workflow_id, made.id = "default", "busy", "a1"


def _start(mint: Mint, made: Any) -> None:
    made.namespace, made.workflow_id, made.request_id = "default", mint.pick(("new", "waits", "closed")), "r"
    made.workflow_type.name = "W"
    made.task_queue.name = "q"


def _signal_with_start(mint: Mint, made: Any) -> None:
    _start(mint, made)
    made.signal_name = "s"


def _execution(mint: Mint, made: Any) -> None:
    made.namespace = "default"
    if made.DESCRIPTOR.fields_by_name.get("execution") is not None:
        made.execution.workflow_id = mint.pick(mint.world.workflow_ids)
    else:
        made.workflow_execution.workflow_id = mint.pick(mint.world.workflow_ids)


def _history(mint: Mint, made: Any) -> None:
    made.namespace, made.execution.workflow_id = "default", "busy"
    if mint.rng.random() < 0.5:
        made.next_page_token = mint.page_token("busy")


def _signal(mint: Mint, made: Any) -> None:
    _execution(mint, made)
    made.signal_name = "s"


def _query(mint: Mint, made: Any) -> None:
    _execution(mint, made)
    made.query.query_type = "q"


def _update(mint: Mint, made: Any) -> None:
    made.namespace, made.workflow_execution.workflow_id = "default", mint.pick(("held", "asked", "closed"))
    made.request.meta.update_id = mint.pick(("u1", "u2"))
    made.request.input.name = "U"
    made.wait_policy.lifecycle_stage = mint.pick((2, 3))


def _poll_update(mint: Mint, made: Any) -> None:
    made.namespace = "default"
    made.update_ref.workflow_execution.workflow_id = "asked"
    made.update_ref.update_id = mint.pick(("u1", "u2"))


def _multi(mint: Mint, made: Any) -> None:
    made.namespace = "default"
    start = made.operations.add().start_workflow
    _start(mint, start)
    start.workflow_id_conflict_policy = mint.pick((1, 2, 3))
    _update(mint, made.operations.add().update_workflow)
    made.operations[1].update_workflow.workflow_execution.workflow_id = start.workflow_id


def _reset(mint: Mint, made: Any) -> None:
    _execution(mint, made)
    made.request_id = "r"
    made.workflow_task_finish_event_id = mint.pick((3, 4))


def _poll(mint: Mint, made: Any) -> None:
    made.namespace, made.task_queue.name = "default", mint.pick(("waits", "q", "children"))


TEMPLATES: dict[str, Callable[[Mint, Any], None]] = {
    "StartWorkflowExecution": _start,
    "SignalWithStartWorkflowExecution": _signal_with_start,
    "ExecuteMultiOperation": _multi,
    "RespondWorkflowTaskCompleted": _workflow_task_completed,
    "RespondWorkflowTaskFailed": _task_token,
    "RespondActivityTaskCompleted": _activity_token,
    "RespondActivityTaskFailed": _activity_token,
    "RespondActivityTaskCanceled": _activity_token,
    "RecordActivityTaskHeartbeat": _activity_token,
    "RespondActivityTaskCompletedById": _activity_id,
    "RespondActivityTaskFailedById": _activity_id,
    "RespondActivityTaskCanceledById": _activity_id,
    "RecordActivityTaskHeartbeatById": _activity_id,
    "PauseActivity": _activity_admin,
    "UnpauseActivity": _activity_admin,
    "ResetActivity": _activity_admin,
    "UpdateActivityOptions": _activity_admin,
    "SignalWorkflowExecution": _signal,
    "QueryWorkflow": _query,
    "UpdateWorkflowExecution": _update,
    "PollWorkflowExecutionUpdate": _poll_update,
    "RequestCancelWorkflowExecution": _execution,
    "TerminateWorkflowExecution": _execution,
    "DeleteWorkflowExecution": _execution,
    "DescribeWorkflowExecution": _execution,
    "ResetStickyTaskQueue": _execution,
    "ResetWorkflowExecution": _reset,
    "GetWorkflowExecutionHistory": _history,
    "GetWorkflowExecutionHistoryReverse": _history,
    "PollWorkflowTaskQueue": _poll,
    "PollActivityTaskQueue": _poll,
    "DescribeTaskQueue": _poll,
}
