"""Actions between runs whose shards are led by different nodes.

Two nodes in one process; workflow ids that begin with "b" are the second one's. A `Line` carries what their
`Forward`s say to each other, as bytes, in order, and can lose, hold or change it. What has to be tried again
is tried after some milliseconds here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Header, Payload, Payloads
from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.sdk.v1.user_metadata_pb2 import UserMetadata
from temporalio.api.workflowservice.v1.request_response_pb2 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
)

from cluster.frontend.services.base import WORKFLOW_SERVICE
from cluster.hosting.calls import actions, deeds
from cluster.hosting.calls.deeds import (
    METHOD,
    Cancel,
    ChildClosed,
    CloseChild,
    Deed,
    Done,
    Refused,
    Signal,
    StartChild,
)
from cluster.hosting.calls.forward import Forward
from cluster.hosting.calls.remote import ANSWER, CALL, LOST
from cluster.hosting.groups import folder
from cluster.hosting.groups.group import NotLeading
from cluster.hosting.shards.host import ShardHost
from cluster.hosting.shards.meta import REGISTERED, Namespace
from history_store.engine.errors import Code, ServiceError
from history_store.engine.start import Started
from history_store.storage.contract import StorageFull
from tests.cluster.frontend.services.conftest import FakeCall, FakeConnection
from tests.cluster.hosting.groups.test_disk import FullDisk, start_request, until_it_writes
from tests.cluster.hosting.play import Play, child, command, done, execution, failed, payloads

ABANDON = workflow_pb2.PARENT_CLOSE_POLICY_ABANDON
REQUEST_CANCEL = workflow_pb2.PARENT_CLOSE_POLICY_REQUEST_CANCEL
CHILD_FIELDS: dict[str, Any] = {
    "input": payloads("in"),
    "workflow_execution_timeout": {"seconds": 90},
    "memo": {"fields": {"m": Payload(data=b"1")}},
    "priority": {"priority_key": 2},
}


class Line:
    """What two nodes say to each other."""

    def __init__(self) -> None:
        self.sides: dict[int, Play] = {}
        self.sent: list[list[Any]] = []
        self.lose: list[int] = []  # kinds of message; each entry loses one
        self.hold_then = False  # when all these are lost, nothing arrives until `release`
        self.held: list[Callable[[], None]] | None = None  # a list: nothing arrives until `release`
        self.change: Callable[[list[Any]], list[Any]] = lambda message: message
        self.cut = False
        self.full: set[int] = set()  # nodes whose queue takes nothing at present

    def sender(self, origin: int) -> Callable[[int, list[Any]], bool]:
        """`Forward.send` of a node."""

        def send(to: int, message: list[Any]) -> bool:
            if self.cut or origin in self.full:
                return False
            self.sent.append(message)
            if message[0] in self.lose:
                self.lose.remove(message[0])
                if self.hold_then and not self.lose:
                    self.hold()
                return True
            body = msgspec.msgpack.encode(self.change(message))
            loop = asyncio.get_running_loop()
            if self.held is not None:
                self.held.append(lambda: self._arrive(origin, to, body))
            else:
                loop.call_soon(self._arrive, origin, to, body)
            return True

        return send

    def _arrive(self, origin: int, to: int, body: bytes) -> None:
        forward = self.sides[to].node.forward
        assert forward is not None
        forward.received(origin, msgspec.msgpack.decode(body))

    def hold(self) -> None:
        """From now on nothing arrives."""
        if self.held is None:
            self.held = []

    def release(self) -> None:
        """What was held arrives, in order, and so does what follows."""
        held, self.held = self.held or [], None
        for arrive in held:
            arrive()

    def kinds(self) -> list[int]:
        """What was sent, in short."""
        return [message[0] for message in self.sent]


class Pair:
    """Two nodes, a and b, that know each other."""

    def __init__(self, disk: FullDisk | None = None) -> None:
        self.line = Line()
        self.a = Play(shards=2, seed=1)
        self.b = Play(disk or FullDisk(), shards=2, seed=2, clock=self.a.clock)
        self.leader_known = True  # a knows that b leads what is b's
        self.namespace = self.a.services.namespace("default")
        self.b.node.meta.forget(self.b.services.namespace("default").id, lambda _: None)
        self.b.node.meta.put(self.namespace, lambda _: None)
        for number, play in ((1, self.a), (2, self.b)):
            node = play.node
            node.node_id = number
            forward = node.forward = Forward(node, self.line.sender(number))
            forward.handlers = {**play.handlers, **node.actions.deeds.handlers()}
            self.line.sides[number] = play
            node.shard_of = self._shard_of(number, node.shard_of)  # type: ignore[method-assign, assignment]

    def _shard_of(
        self, number: int, whole: Callable[[str, str], ShardHost]
    ) -> Callable[[str, str], ShardHost]:
        def shard_of(namespace_id: str, workflow_id: str) -> ShardHost:
            leader = 2 if workflow_id.startswith("b") else 1
            if leader != number or (leader == 2 and not self.leader_known):
                raise NotLeading(leader if self.leader_known else 0)
            return whole(namespace_id, workflow_id)

        return shard_of

    def side(self, workflow_id: str) -> Play:
        """The node that leads the workflow's shard."""
        return self.b if workflow_id.startswith("b") else self.a

    async def settle(self) -> None:
        """Let both do what is due."""
        for _ in range(4):
            await self.a.settle()
            await self.b.settle()

    def actions_left(self) -> int:
        """How many actions are not done with."""
        return sum(key[:1] == b"x" for play in (self.a, self.b) for key in play.rows())

    async def until_done(self) -> None:
        """Wait until no action is left."""
        for _ in range(2_000):
            await self.settle()
            if not self.actions_left():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("actions are left")

    async def table(self, workflow_id: str, run_id: str = "") -> str:
        """The history of a workflow."""
        return await self.side(workflow_id).table(workflow_id, run_id)

    async def begin(self, *commands: Command, workflow_id: str = "w") -> str:
        """A parent's first task is answered with these; its run id. What follows is not waited for."""
        return await self.side(workflow_id).first(*commands, workflow_id=workflow_id)

    def change_leader(self, play: Play) -> None:
        """Each of the node's shards is lost and found again."""
        for group in [shard.group for shard in play.node.shards]:
            play.node._lose(group)
            play.node._lead(group)

    async def close(self) -> None:
        """Stop both."""
        await self.a.close()
        await self.b.close()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "RETRY_S", 0.005)
    monkeypatch.setattr(deeds, "ASK_S", 60.0)
    monkeypatch.setattr(folder, "FULL_RETRY_S", 0.001)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again soon, for tests in which something is lost: elsewhere a slow machine would do it, too."""
    monkeypatch.setattr(deeds, "ASK_S", 0.03)


@pytest_asyncio.fixture
async def pair() -> AsyncIterator[Pair]:
    made = Pair()
    yield made
    await made.close()


def signal(workflow_id: str, **fields: Any) -> Command:
    return command(
        "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
        execution=execution(workflow_id),
        signal_name="s",
        input=payloads("x"),
        **fields,
    )


def cancel(workflow_id: str, **fields: Any) -> Command:
    return command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id=workflow_id, **fields)


# ---- the same as on one node


async def _child_that_completes(pair: Any, name: str) -> None:
    await pair.begin(child(name, **CHILD_FIELDS))
    await pair.settle()
    await pair.side(name).next(done("out"), queue="cq")
    await pair.settle()
    await pair.a.next(done())


async def _child_that_fails(pair: Any, name: str) -> None:
    await pair.begin(child(name))
    await pair.settle()
    await pair.side(name).next(failed(), queue="cq")


async def _child_whose_id_is_taken(pair: Any, name: str) -> None:
    await pair.side(name).start(name, task_queue={"name": "other"})
    await pair.begin(child(name))


async def _child_that_takes_an_id(pair: Any, name: str) -> None:
    await pair.side(name).start(name, task_queue={"name": "other"})
    policy = workflow_pb2.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
    await pair.begin(child(name, workflow_id_reuse_policy=policy))


async def _parent_is_terminated(pair: Any, name: str) -> None:
    await pair.begin(child(name))
    await pair.settle()
    await pair.a.terminate("w")


async def _parent_is_terminated_and_asks(pair: Any, name: str) -> None:
    await pair.begin(child(name, parent_close_policy=REQUEST_CANCEL))
    await pair.settle()
    await pair.a.terminate("w")


async def _parent_abandons(pair: Any, name: str) -> None:
    await pair.begin(child(name, parent_close_policy=ABANDON), done())
    await pair.settle()
    await pair.side(name).next(done(), queue="cq")


async def _signal_and_cancel(pair: Any, name: str) -> None:
    await pair.side(name).start(name, task_queue={"name": "other"})
    await pair.begin(signal(name, header={"fields": {"h": Payload(data=b"1")}}), cancel(name, reason="why"))


async def _signal_nobody(pair: Any, name: str) -> None:
    await pair.begin(signal(name), cancel(name))


async def _signal_a_stranger(pair: Any, name: str) -> None:
    await pair.side(name).start(name, task_queue={"name": "other"})
    await pair.begin(signal(name, child_workflow_only=True), cancel(name, child_workflow_only=True))


async def _signal_a_child(pair: Any, name: str) -> None:
    await pair.begin(child(name))
    await pair.settle()
    await pair.a.next(signal(name, child_workflow_only=True), cancel(name, child_workflow_only=True))


async def _signal_a_closed_one(pair: Any, name: str) -> None:
    await pair.side(name).start(name, task_queue={"name": "other"})
    await pair.side(name).terminate(name)
    await pair.begin(signal(name), cancel(name))


class Alone:
    """One node, with a pair's short words."""

    def __init__(self) -> None:
        self.a = Play(shards=2, seed=1)

    def side(self, _workflow_id: str) -> Play:
        return self.a

    async def begin(self, *commands: Command) -> str:
        return await self.a.first(*commands)

    async def settle(self) -> None:
        await self.a.settle()


@pytest.mark.parametrize(
    "what",
    [
        _child_that_completes,
        _child_that_fails,
        _child_whose_id_is_taken,
        _child_that_takes_an_id,
        _parent_is_terminated,
        _parent_is_terminated_and_asks,
        _parent_abandons,
        _signal_and_cancel,
        _signal_nobody,
        _signal_a_stranger,
        _signal_a_child,
        _signal_a_closed_one,
    ],
    ids=lambda what: what.__name__.strip("_"),
)
async def test_histories_are_those_of_one_node(pair: Pair, what: Callable[[Any, str], Any]) -> None:
    alone = Alone()
    await what(alone, "b")
    await alone.settle()
    await what(pair, "b")
    await pair.until_done()
    assert CALL in pair.line.kinds()
    assert await pair.table("w") == await alone.a.table("w")
    if what is not _signal_nobody:
        assert _without_ids(await pair.table("b")) == _without_ids(await alone.a.table("b"))
    await alone.a.close()


def _without_ids(table: str) -> str:
    """Run ids differ from node to node."""
    return " ".join("ID" if word.count("-") >= 4 else word for word in table.split())


async def test_a_child_is_what_its_parent_wanted(pair: Pair) -> None:
    metadata = UserMetadata(summary=Payload(data=b"sum"))
    wanted = child("b", **CHILD_FIELDS)
    wanted.user_metadata.CopyFrom(metadata)
    run_id = await pair.begin(wanted)
    await pair.until_done()
    event = (await pair.b.events("b"))[0]
    started = event.workflow_execution_started_event_attributes
    assert event.user_metadata == metadata
    assert started.input == payloads("in")
    assert started.parent_workflow_execution == execution("w", run_id)
    assert started.root_workflow_execution == execution("w", run_id)
    assert started.parent_workflow_namespace == "default"
    assert started.workflow_execution_timeout.seconds == 90
    assert started.priority.priority_key == 2
    assert dict(started.memo.fields) == {"m": Payload(data=b"1")}


# ---- what is lost is asked again, and done once


async def _ask_each(pair: Pair, kind: str, lose: list[int]) -> None:
    """An action of this kind, whose messages are lost."""
    if kind in ("signal", "cancel"):
        await pair.b.start("b", task_queue={"name": "other"})
    if kind in ("close_child", "child_closed"):
        await pair.begin(child("b"))
        await pair.until_done()
    pair.line.lose = lose
    match kind:
        case "start_child":
            await pair.begin(child("b"))
        case "signal":
            await pair.begin(signal("b"))
        case "cancel":
            await pair.begin(cancel("b"))
        case "close_child":
            await pair.a.terminate("w")
        case _:
            await pair.b.next(done("x"), queue="cq")


KINDS = ["start_child", "signal", "cancel", "close_child", "child_closed"]


async def _check_once(pair: Pair, kind: str) -> None:
    mine, other = await pair.table("w"), await pair.table("b")
    expected = {
        "start_child": (("ChildWorkflowExecutionStarted", mine), ("WorkflowExecutionStarted", other)),
        "signal": (("ExternalWorkflowExecutionSignaled", mine), (" WorkflowExecutionSignaled", other)),
        "cancel": (
            ("ExternalWorkflowExecutionCancelRequested", mine),
            (" WorkflowExecutionCancelRequested", other),
        ),
        "close_child": ((" WorkflowExecutionTerminated", mine), ("WorkflowExecutionTerminated", other)),
        "child_closed": (
            ("ChildWorkflowExecutionCompleted", mine),
            ("WorkflowExecutionCompleted", other),
        ),
    }[kind]
    for name, table in expected:
        assert table.count(name) == 1, f"{name}\n{table}"
    assert "Failed" not in mine


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lose", [[CALL], [ANSWER], [CALL, ANSWER, ANSWER]], ids=["call", "answer", "more"])
@pytest.mark.parametrize("kind", KINDS)
async def test_what_is_lost_is_asked_again_and_done_once(pair: Pair, kind: str, lose: list[int]) -> None:
    lost = list(lose)
    await _ask_each(pair, kind, lost)
    await pair.until_done()
    assert not lost, "the line lost what it should"
    await _check_once(pair, kind)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", KINDS)
async def test_a_leader_that_falls_after_it_wrote(pair: Pair, kind: str) -> None:
    """Its entry stands, but all that the asking node hears is that leadership was lost."""
    falls = 2

    def fall(message: list[Any]) -> list[Any]:
        nonlocal falls
        if message[0] == ANSWER and falls:
            falls -= 1
            return [LOST, message[1]]
        return message

    pair.line.change = fall
    await _ask_each(pair, kind, [])
    await pair.until_done()
    await _check_once(pair, kind)
    if kind in ("start_child", "signal", "cancel"):
        assert not falls


@pytest.mark.usefixtures("impatient")
async def test_a_signal_is_not_given_to_the_next_run_too(pair: Pair) -> None:
    """The answers are lost, and the signalled run continues as new before it is asked again."""
    first = await pair.b.start("b")
    pair.line.lose = [ANSWER, ANSWER]
    await pair.begin(signal("b"), cancel("b"))
    await pair.settle()
    assert not pair.line.lose
    pair.line.hold()
    await pair.b.next(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_type={"name": "W"}))
    pair.line.release()
    await pair.until_done()
    before, after = await pair.table("b", first), await pair.table("b")
    for name in (" WorkflowExecutionSignaled", " WorkflowExecutionCancelRequested"):
        assert name in before
        assert name not in after
    assert "WorkflowExecutionContinuedAsNew" in before
    mine = await pair.table("w")
    assert mine.count("ExternalWorkflowExecutionSignaled") == 1
    assert mine.count("ExternalWorkflowExecutionCancelRequested") == 1


@pytest.mark.usefixtures("impatient")
async def test_a_signal_is_known_by_a_run_that_closed_since(pair: Pair) -> None:
    await pair.b.start("b")
    pair.line.lose = [ANSWER]
    await pair.begin(signal("b"))
    await pair.settle()
    assert not pair.line.lose
    pair.line.hold()
    await pair.b.next(done())
    pair.line.release()
    await pair.until_done()
    mine = await pair.table("w")
    assert "ExternalWorkflowExecutionSignaled" in mine
    assert "SignalExternalWorkflowExecutionFailed" not in mine


@pytest.mark.usefixtures("impatient")
async def test_a_child_that_came_and_went_is_not_started_again(pair: Pair) -> None:
    """The answer is lost; the child ends, tells its parent, and another takes its id before it is asked."""
    pair.line.lose = [ANSWER]
    await pair.begin(child("b"))
    await pair.settle()
    assert not pair.line.lose
    await pair.b.next(done("x"), queue="cq")
    await pair.settle()
    pair.line.hold()
    await pair.b.start("b", task_queue={"name": "other"})
    await pair.b.terminate("b")
    pair.line.release()
    await pair.until_done()
    mine = await pair.table("w")
    assert mine.count("ChildWorkflowExecutionStarted") == 1
    assert mine.count("ChildWorkflowExecutionCompleted") == 1
    assert "WorkflowExecutionTerminated" in await pair.table("b"), "no third run follows"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("policy", ["terminate", "ask"])
async def test_a_child_is_ended_although_its_parent_never_heard_of_it(pair: Pair, policy: str) -> None:
    """The answer is lost, the child continues as new, and the parent closes before it has asked again."""
    pair.line.lose, pair.line.hold_then = [ANSWER], True
    asks = {"parent_close_policy": REQUEST_CANCEL} if policy == "ask" else {}
    await pair.begin(child("b", **asks))
    await pair.settle()
    assert not pair.line.lose
    await pair.b.next(
        command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_type={"name": "C"}, task_queue={"name": "cq"}),
        queue="cq",
    )
    await pair.a.terminate("w")
    pair.line.release()
    await pair.until_done()
    assert "ChildWorkflowExecutionStarted" not in await pair.table("w")
    found = await pair.table("b")
    wanted = "WorkflowExecutionCancelRequested" if asks else "WorkflowExecutionTerminated"
    assert found.count(wanted) == 1, found


# ---- a queue that is full


async def test_an_answer_waits_for_room_in_the_queue(pair: Pair) -> None:
    """Whoever asked waits for it alone: nobody would ask again while the two can talk."""
    run_id = await pair.b.start("b")
    pair.b.node.peers = lambda: [1]  # type: ignore[method-assign]
    asked = DescribeWorkflowExecutionRequest(namespace="default", execution=execution("b"))
    method = f"/{WORKFLOW_SERVICE}/DescribeWorkflowExecution"
    forward = pair.a.node.forward
    assert forward is not None
    calls = [FakeCall(method, asked.SerializeToString(), None, FakeConnection()) for _ in range(2)]
    for call in calls:
        forward.wrap(pair.a.handlers[method])(call)
    pair.line.full = {2}
    await pair.settle()
    assert pair.b.node.forward is not None
    assert not pair.b.node.forward.served, "both are answered there"
    assert not any(call.done for call in calls)
    pair.line.full = set()
    for call in calls:
        body = await asyncio.wait_for(call.answer, 60.0)
        found = DescribeWorkflowExecutionResponse.FromString(body)
        assert found.workflow_execution_info.execution.run_id == run_id


# ---- leaders, here and there


@pytest.mark.parametrize("kind", KINDS)
async def test_the_next_leader_of_the_source_takes_it_up(pair: Pair, kind: str) -> None:
    """An answer that comes to a shard that is led anew says nothing any more."""
    if kind in ("close_child", "child_closed"):
        await pair.begin(child("b"))
        await pair.until_done()
    elif kind != "start_child":
        await pair.b.start("b", task_queue={"name": "other"})
    pair.line.hold()
    match kind:
        case "start_child":
            await pair.begin(child("b"))
        case "signal":
            await pair.begin(signal("b"))
        case "cancel":
            await pair.begin(cancel("b"))
        case "close_child":
            await pair.a.terminate("w")
        case _:
            await pair.b.next(done("x"), queue="cq")
    await pair.settle()
    assert pair.actions_left() == 1
    old = pair.a.node.shards + pair.b.node.shards
    pair.change_leader(pair.a)
    pair.change_leader(pair.b)
    assert all(shard.retired for shard in old)
    pair.line.release()
    await pair.until_done()
    await _check_once(pair, kind)


async def test_a_retired_shard_asks_no_more(pair: Pair) -> None:
    pair.leader_known = False
    await pair.begin(child("b"))
    await pair.settle()
    for group in [shard.group for shard in pair.a.node.shards]:
        pair.a.node._lose(group)
    pair.leader_known = True
    await asyncio.sleep(0.1)
    await pair.settle()
    assert CALL not in pair.line.kinds()
    for group in pair.a.node.committer.groups.values():
        if group.id:
            pair.a.node._lead(group)
    await pair.until_done()
    assert "ChildWorkflowExecutionStarted" in await pair.table("w")


@pytest.mark.parametrize("how", ["nobody leads", "no way there"])
async def test_an_action_waits_for_a_leader(pair: Pair, how: str) -> None:
    if how == "nobody leads":
        pair.leader_known = False
    else:
        pair.line.cut = True
    await pair.begin(child("b"), signal("b2"))
    await asyncio.sleep(0.1)
    await pair.settle()
    assert pair.actions_left() == 2
    assert "Failed" not in await pair.table("w"), "that nobody leads is no outcome"
    pair.leader_known, pair.line.cut = True, False
    await pair.until_done()
    mine = await pair.table("w")
    assert "ChildWorkflowExecutionStarted" in mine
    assert "SignalExternalWorkflowExecutionFailed" in mine, "there is no b2"


async def test_a_full_disk_there_is_no_outcome() -> None:
    disk = FullDisk()
    pair = Pair(disk)
    await pair.b.start("b2", task_queue={"name": "other"})
    disk.full = StorageFull("no space left")
    blocker = pair.b.begin(start_request("b3"))
    await pair.settle()
    assert blocker.done
    await pair.begin(child("b"), signal("b2"))
    await asyncio.sleep(0.05)
    await pair.settle()
    assert pair.actions_left() == 2
    disk.full = None
    await until_it_writes(pair.b)
    await pair.until_done()
    mine = await pair.table("w")
    assert "ChildWorkflowExecutionStarted" in mine
    assert "ExternalWorkflowExecutionSignaled" in mine
    assert "Failed" not in mine
    await pair.close()


async def test_what_is_not_committed_there_is_no_outcome() -> None:
    """The entries are proposed when the disk turns out to be full."""
    disk = FullDisk()
    pair = Pair(disk)
    await pair.b.start("b2", task_queue={"name": "other"})
    disk.full = StorageFull("no space left")
    await pair.begin(child("b"), signal("b2"))
    async with asyncio.timeout(60):
        while not any(group.proposed > group.committed for group in pair.b.node.committer.groups.values()):
            await asyncio.sleep(0.01)
            await pair.settle()
    mine = await pair.table("w")
    assert "ChildWorkflowExecutionStarted" not in mine
    assert "ExternalWorkflowExecutionSignaled" not in mine
    disk.full = None
    await until_it_writes(pair.b)
    await pair.until_done()
    assert (await pair.table("b2")).count(" WorkflowExecutionSignaled") == 1
    await pair.close()


async def test_the_end_of_a_child_does_not_overtake_its_start(pair: Pair) -> None:
    pair.line.hold()
    await pair.begin(child("b"))
    await pair.settle()
    await pair.a.terminate("w")
    await pair.settle()
    assert pair.line.kinds().count(CALL) == 1, "the second deed waits for the first"
    pair.line.release()
    await pair.until_done()
    assert "WorkflowExecutionTerminated" in await pair.table("b")


async def test_more_deeds_than_may_be_on_their_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deeds, "ASKS_MAX", 3)
    pair.line.hold()
    await pair.begin(*[child(f"b{number}") for number in range(20)])
    await pair.settle()
    assert pair.line.kinds().count(CALL) == 3
    pair.line.release()
    await pair.until_done()
    assert (await pair.table("w")).count("ChildWorkflowExecutionStarted") == 20


# ---- namespaces


async def _parent_of_a_stranger(pair: Pair) -> Namespace:
    """A parent whose child is to run in a namespace that the second node has not heard of."""
    made = Namespace(pair.a.node.new_id(), "other", REGISTERED, pair.a.clock.now)
    pair.a.node.meta.create(made, lambda _: None)
    await pair.begin(child("b", namespace="other"))
    return made


async def test_a_namespace_that_is_not_known_there_yet(pair: Pair) -> None:
    made = await _parent_of_a_stranger(pair)
    await asyncio.sleep(0.05)
    await pair.settle()
    assert pair.actions_left() == 1
    assert "Failed" not in await pair.table("w")
    pair.b.node.meta.put(made, lambda _: None)
    await pair.until_done()
    assert "ChildWorkflowExecutionStarted" in await pair.table("w")
    assert (await pair.b.describe("b", namespace="other")).workflow_execution_info.status == 1


async def test_a_namespace_that_nobody_knows(pair: Pair) -> None:
    pair.line.hold()
    made = await _parent_of_a_stranger(pair)
    pair.a.node.meta.forget(made.id, lambda _: None)
    pair.line.release()
    await pair.until_done()
    assert "StartChildWorkflowExecutionFailed cause=NAMESPACE_NOT_FOUND" in await pair.table("w")


@pytest.mark.usefixtures("impatient")
async def test_a_namespace_that_is_not_known_here_any_more(pair: Pair) -> None:
    """The asking node lags (it was, say, started anew); the other one knows."""
    pair.line.hold()
    made = await _parent_of_a_stranger(pair)
    pair.a.node.meta.forget(made.id, lambda _: None)
    pair.b.node.meta.put(made, lambda _: None)
    pair.line.lose = [CALL]
    pair.change_leader(pair.a)
    pair.line.release()
    await pair.until_done()
    assert "ChildWorkflowExecutionStarted" in await pair.table("w")


# ---- what travels


def _text(rng: random.Random) -> str:
    return "".join(rng.choice("aé\U0001f600-0") for _ in range(rng.randrange(6)))


def _some_deed(rng: random.Random) -> Deed:
    ids = (_text(rng), _text(rng), _text(rng), rng.randrange(1 << 62), rng.random() < 0.5)
    value = payloads(_text(rng)) if rng.random() < 0.5 else None
    match rng.randrange(5):
        case 0:
            metadata = UserMetadata(summary=Payload(data=b"x")) if rng.random() < 0.5 else None
            return StartChild(*ids, _text(rng), rng.randrange(5), Started(workflow_id=_text(rng)), metadata)
        case 1:
            return ChildClosed(*ids, _text(rng), rng.randrange(9), 2, rng.randbytes(3), _text(rng))
        case 2:
            return CloseChild(*ids, _text(rng), 1, _text(rng), _text(rng), rng.randrange(1 << 40))
        case 3:
            header = Header(fields={_text(rng): Payload(data=b"y")}) if rng.random() < 0.5 else None
            only = rng.random() < 0.5
            return Signal(*ids, _text(rng), _text(rng), _text(rng), only, _text(rng), value, header)
        case _:
            return Cancel(*ids, _text(rng), _text(rng), _text(rng), False, _text(rng), rng.randrange(9))


def test_a_deed_travels_whole(rng: random.Random) -> None:
    for _ in range(200):
        deed = _some_deed(rng)
        again = deeds.decode(deeds.encode(deed))
        assert type(again) is type(deed)
        assert again == deed
    for outcome in (Done(), Done("r"), Refused(3)):
        assert deeds.decode_outcome(deeds.encode(outcome)) == outcome


def test_an_empty_message_is_not_a_missing_one() -> None:
    deed = Signal("n", "w", "r", 1, True, "", "v", "s", False, "s", Payloads(), Header())
    assert deeds.decode(deeds.encode(deed)) == deed


TARGET = ("n", "w", "r", 5, True)
FORMAT_1: dict[str, Deed] = {
    "019aab73746172745f6368696c64a16ea177a17205c3a16301c404e2010177c4050a03120178": StartChild(
        *TARGET, "c", 1, Started(workflow_id="w"), UserMetadata(summary=Payload(data=b"x"))
    ),
    "019bac6368696c645f636c6f736564a16ea177a17205c3a1700702c4010aa16c": ChildClosed(
        *TARGET, "p", 7, 2, b"\n", "l"
    ),
    "019bab636c6f73655f6368696c64a16ea177a17205c3a16601a170a17107": CloseChild(*TARGET, "f", 1, "p", "q", 7),
    "019da67369676e616ca16ea177a17205c3a0a176a173c2a46e616d65c400c0": Signal(
        *TARGET, "", "v", "s", False, "name", Payloads(), None
    ),
    "019ca663616e63656ca16ea177a17205c3a178a176a173c2a377687904": Cancel(
        *TARGET, "x", "v", "s", False, "why", 4
    ),
}


@pytest.mark.parametrize("written", FORMAT_1)
def test_a_deed_of_today_is_read_tomorrow(written: str) -> None:
    """The bytes of format 1. They may grow at the end, but must not come to mean something else."""
    assert deeds.decode(bytes.fromhex(written)) == FORMAT_1[written]


@pytest.mark.parametrize("data", [b"", b"\x02\x91\xa1a", b"\x01", b"\x01\x91\xa1a", b"\x01\xc1"])
def test_a_deed_of_another_release_is_refused(data: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        deeds.decode(data)
    assert caught.value.code == Code.UNIMPLEMENTED
    assert isinstance(deeds.decode_outcome(data), deeds.Again)


async def test_a_node_of_an_older_release_is_asked_again_later(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "RETRY_BROKEN_S", 0.02)
    handler = pair.line.sides[2].node.forward
    assert handler is not None
    known = handler.handlers
    handler.handlers = dict(pair.b.handlers)
    await pair.begin(child("b"))
    await asyncio.sleep(0.05)
    assert pair.actions_left() == 1
    handler.handlers = known
    await pair.until_done()
    assert "ChildWorkflowExecutionStarted" in await pair.table("w")


async def test_clients_do_no_deeds(pair: Pair) -> None:
    deed = CloseChild("n", "w", "r", 1, False, "", 1, "p", "q", 5)
    call = FakeCall(METHOD, deeds.encode(deed), None, FakeConnection())
    with pytest.raises(ServiceError) as caught:
        pair.a.node.actions.deeds.serve(call)
    assert caught.value.code == Code.UNIMPLEMENTED
