"""Actions in a region of three nodes whose leaders come and go.

Real Raft groups, one process, one seed: nodes are cut off while parents start children and signal them, and
stale leaders go on believing for a while. In the end every deed is done, and done once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services import everything
from cluster.frontend.services.base import Services
from cluster.hosting.calls import actions, deeds, forward
from cluster.hosting.calls.forward import Forward
from cluster.hosting.clock import Identifiers
from cluster.hosting.node import Membership, Node
from cluster.hosting.shards.meta import REGISTERED, Namespace
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import ServiceError
from history_store.engine.keys import SLOTS, slot_of
from history_store.engine.limits import Limits
from history_store.raft import Config, Message, decode, encode
from tests.cluster.frontend.services.conftest import FakeConnection, MovableClock, Refused
from tests.cluster.hosting.play import Disk, Play, child, command, done, execution

MEMBERS = (1, 2, 3)
SHARDS = 4
TICK_S = 0.1


class Member(Play):
    """One node of the region."""

    def __init__(self, region: Region, number: int, seed: int) -> None:
        self.region = region
        self.number = number
        self.storage = Disk()
        self.clock = region.clock
        self.broken: list[BaseException] = []
        rng = random.Random(seed)
        self.node = Node(
            asyncio.get_running_loop(), self.storage, self.clock, Identifiers(self.clock, rng), rng,
            EngineLimits(), inline=True, shards=SHARDS, cluster_id="00000000-0000-7000-8000-00000000c105",
            on_broken=self.broken.append,
            member=Membership(number, self._config, self._letter, lambda: region.reached(number)),
        )  # fmt: skip
        self.node.meta.group.on_lose = self.node.meta.lost
        peers = self.node.forward = Forward(self.node, self._message)
        for group in range(1, SHARDS + 1):
            self.node.open_shard(group)
        self.node.own_slots([slot % SHARDS + 1 for slot in range(SLOTS)])
        self.node.start()
        everything()
        self.services = Services(self.node, Limits(), long_poll_s=60.0)
        own = self.services.handlers()
        peers.handlers = {**own, **self.node.actions.deeds.handlers()}
        self.handlers = {name: peers.wrap(handler) for name, handler in own.items()}
        self.connection = FakeConnection()

    def _config(self, _group: int) -> Config:
        return Config(node_id=self.number, voters=MEMBERS, lease_reads=True)

    def _letter(self, group: int, message: Message) -> None:
        if (group, self.number) in self.region.deaf or (group, message.to) in self.region.deaf:
            return
        self.region.carry(self.number, message.to, lambda to: to.step(group, encode(message)))

    def _message(self, to: int, message: list[Any]) -> bool:
        body = msgspec.msgpack.encode(message)

        def arrive(at: Member) -> None:
            assert at.node.forward is not None
            at.node.forward.received(self.number, msgspec.msgpack.decode(body))

        return self.region.carry(self.number, to, arrive)

    def step(self, group: int, letter: bytes) -> None:
        """A Raft message arrives."""
        found = self.node.committer.groups[group]
        found.raft.step(decode(letter))
        self.node.committer.mark(found)

    def tick(self) -> None:
        """Every group's clock goes on."""
        for group in self.node.committer.groups.values():
            group.raft.tick()
            self.node.committer.mark(group)


class Region:
    """Three nodes and what is between them."""

    def __init__(self, seed: int) -> None:
        self.clock = MovableClock()
        self.cut: set[int] = set()
        self.deaf: set[tuple[int, int]] = set()  # (group, node): the group's letters neither come nor go
        self.members = {number: Member(self, number, seed * 7 + number) for number in MEMBERS}

    def reached(self, origin: int) -> list[int]:
        """Whom a node reaches."""
        return [n for n in MEMBERS if n != origin and not {n, origin} & self.cut]

    def carry(self, origin: int, to: int, arrive: Callable[[Member], None]) -> bool:
        """One message; what is on its way when the line is cut is lost."""
        if to not in self.reached(origin):
            return False

        def at_last() -> None:
            if to in self.reached(origin):
                arrive(self.members[to])

        asyncio.get_running_loop().call_soon(at_last)
        return True

    def cut_off(self, number: int) -> None:
        """The node hears nobody; it finds out about its peers as they do about it."""
        self.cut.add(number)
        for one in MEMBERS:
            for other in MEMBERS:
                peers = self.members[one].node.forward
                if one != other and number in (one, other) and peers is not None:
                    peers.down(other)

    async def pass_time(self, ticks: int) -> None:
        """Ticks for everybody, and what follows from each."""
        for _ in range(ticks):
            self.clock.advance(TICK_S)
            for member in self.members.values():
                member.tick()
                for shard in member.node.shards:
                    if shard.wakes.heap and shard.wakes.heap[0][0] <= self.clock.now:
                        shard.wakes.fire()
            for _ in range(12):
                await asyncio.sleep(0)
            await asyncio.sleep(0.001)

    async def until(self, what: Callable[[], bool]) -> None:
        """Let time pass until it is so."""
        for _ in range(1_000):
            if what():
                return
            await self.pass_time(1)
        raise AssertionError("it never comes to that")

    async def until_led(self) -> None:
        """Every group has a leader that its majority follows."""

        def led() -> bool:
            up = [self.members[n] for n in MEMBERS if n not in self.cut]
            return all(
                sum(member.node.committer.groups[group].leading for member in up) == 1
                for group in range(SHARDS + 1)
            )

        await self.until(led)

    async def found(self) -> None:
        """The first leaders, and a namespace."""
        await self.until_led()
        leader = next(m for m in self.members.values() if m.node.meta.group.leading)
        made = Namespace(leader.node.new_id(), "default", REGISTERED, self.clock.now)
        leader.node.meta.create(made, lambda _: None)
        await self.until(lambda: all("default" in m.node.meta.by_name for m in self.members.values()))

    def leader_of(self, workflow_id: str) -> Member | None:
        """The node that leads the workflow's shard, if one does that is not cut off."""
        for number, member in self.members.items():
            if number in self.cut:
                continue
            try:
                member.node.shard_of(member.node.meta.by_name["default"].id, workflow_id)
            except ServiceError:
                continue
            return member
        return None

    async def request(self, at: Member, request: Any) -> Any:
        """One call, while time passes."""
        call = at.begin(request, deadline_s=None)
        await self.until(lambda: call.done)
        return await at.end(request, call)

    async def table(self, workflow_id: str) -> str:
        """The workflow's history, from whoever leads it by then."""
        while True:
            await self.until(lambda: self.leader_of(workflow_id) is not None)
            leader = self.leader_of(workflow_id)
            assert leader is not None
            try:
                return await leader.table(workflow_id)
            except (Refused, TimeoutError):
                await self.pass_time(1)

    async def work(
        self, workflow_id: str, *commands: Command, then: str, trouble: Callable[[], Any] | None = None
    ) -> None:
        """Answer the workflow's task until its history says `then`. Its queue has its name.

        `trouble` begins some turns of the loop after the first answer left.
        """
        for _ in range(400):
            member = self.leader_of(workflow_id)
            if member is None:
                await self.pass_time(1)
                continue
            poll = member.begin_poll(workflow_id)
            await self.pass_time(1)
            task = wire.PollWorkflowTaskQueueResponse()
            if poll.done:
                task.MergeFromString(poll.answer.result())
            else:
                poll.cancel()
            if then in await self.table(workflow_id):
                return  # the task is the next one: nobody answers it
            if not task.task_token:
                continue
            answer = member.begin(
                wire.RespondWorkflowTaskCompletedRequest(
                    namespace="default", task_token=task.task_token, identity="worker", commands=commands
                ),
                deadline_s=None,
            )
            if trouble is not None:
                await trouble()
                trouble = None
            for _ in range(20):
                if answer.done:
                    break
                await self.pass_time(1)
            answer.cancel()
            if not answer.answer.cancelled():
                answer.answer.exception()  # whatever it was: the history tells
        raise AssertionError(f"no task for {workflow_id}")

    def actions_left(self) -> int:
        """Rows of actions, as the leaders see them."""
        return sum(
            1
            for member in self.members.values()
            for shard in member.node.shards
            for _ in shard.rows.scan(b"x", b"y")
        )

    async def close(self) -> None:
        """Stop all."""
        for member in self.members.values():
            for callback in member.services.on_close:
                callback()
        for member in self.members.values():
            member.stop_dead()
            assert not member.broken
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actions, "RETRY_S", 0.01)
    monkeypatch.setattr(deeds, "ASK_S", 0.05)
    monkeypatch.setattr(forward, "RETRY_S", 0.002)


def signal(workflow_id: str) -> Command:
    return command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution(workflow_id), signal_name="s")


async def test_every_deed_is_done_once_while_leaders_come_and_go(rng: random.Random) -> None:
    region = Region(rng.randrange(1 << 30))
    await region.found()

    async def trouble() -> None:
        for _ in range(rng.randrange(40)):
            await asyncio.sleep(0)
        if rng.random() < 0.8:
            region.cut_off(rng.choice(MEMBERS))

    count = 6
    for number in range(count):
        parent, name, other = f"w{number}", f"c{number}", f"o{number}"
        for workflow_id in (other, parent):
            request = wire.StartWorkflowExecutionRequest(
                namespace="default", workflow_id=workflow_id, request_id=f"r-{workflow_id}"
            )
            request.workflow_type.name = "W"
            request.task_queue.name = workflow_id
            await region.request(region.members[rng.choice(MEMBERS)], request)
        wants = child(name, task_queue={"name": name})
        await region.work(parent, wants, signal(other), then="ExecutionInitiated", trouble=trouble)
        await region.pass_time(rng.randrange(10))
        region.cut.clear()
        if rng.random() < 0.6:
            await region.work(name, done("out"), then="WorkflowExecutionCompleted", trouble=trouble)
            await region.pass_time(rng.randrange(10))
            region.cut.clear()
        await region.until_led()
    await region.until(lambda: not region.actions_left())
    await region.pass_time(int(11 / TICK_S))  # open workflow tasks time out: events that they held up come
    for number in range(count):
        mine, born, other = [await region.table(f"{kind}{number}") for kind in "wco"]
        assert mine.count("ChildWorkflowExecutionStarted") == 1, mine
        assert mine.count("ExternalWorkflowExecutionSignaled") == 1, mine
        assert "Failed cause" not in mine
        assert mine.count("ChildWorkflowExecutionCompleted") == ("ExecutionCompleted" in born), mine
        assert other.count("WorkflowExecutionSignaled") == 1, other
    await region.close()


def _group(workflow_id: str, region: Region) -> int:
    namespace = region.members[1].node.meta.by_name["default"].id
    return slot_of(namespace, workflow_id) % SHARDS + 1


async def _two_groups_of_one_leader(region: Region) -> tuple[Member, str, str]:
    """A node that leads two groups, and a workflow id of each."""
    for _ in range(50):
        await region.until_led()
        for member in region.members.values():
            led = [group for group in range(1, SHARDS + 1) if member.node.committer.groups[group].leading]
            if len(led) > 1:
                first, second = (
                    next(f"{kind}{n}" for n in range(1_000) if _group(f"{kind}{n}", region) == group)
                    for kind, group in (("w", led[0]), ("c", led[1]))
                )
                return member, first, second
    raise AssertionError("four groups of three nodes: some node leads two")


async def test_a_leader_that_is_not_heard_records_nothing(rng: random.Random) -> None:
    """One node leads both shards, but its quorum hears nothing of the child's: there is no child yet.

    When another leads there, and the entry of the first try is void, that one is asked.
    """
    region = Region(rng.randrange(1 << 30))
    await region.found()
    leader, parent, name = await _two_groups_of_one_leader(region)
    await leader.start(parent, task_queue={"name": parent})
    target = _group(name, region)
    there = leader.node.committer.groups[target]
    region.deaf.add((target, leader.number))
    poll = leader.begin_poll(parent)
    await region.pass_time(1)
    task = wire.PollWorkflowTaskQueueResponse.FromString(poll.answer.result())
    leader.begin(
        wire.RespondWorkflowTaskCompletedRequest(
            namespace="default",
            task_token=task.task_token,
            commands=[child(name, task_queue={"name": name})],
        )
    )
    await region.pass_time(2)
    assert there.leading
    assert there.proposed > there.committed, "the child is in the log of one"
    mine = await leader.table(parent)
    assert "StartChildWorkflowExecutionInitiated" in mine
    assert "ChildWorkflowExecutionStarted" not in mine
    others = [member for member in region.members.values() if member is not leader]
    await region.until(lambda: any(member.node.committer.groups[target].leading for member in others))
    region.deaf.clear()
    await region.until(lambda: not region.actions_left())
    assert leader.node.committer.groups[_group(parent, region)].leading, "the source's leader is the same"
    assert (await region.table(parent)).count("ChildWorkflowExecutionStarted") == 1
    assert (await region.table(name)).count("WorkflowExecutionStarted") == 1
    await region.close()
