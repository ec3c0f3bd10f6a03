"""List and Count in a region with more nodes than replicas: every node gives the whole answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from itertools import combinations
from typing import Any

import msgspec
import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim.calls import Refused
from chaos.sim.trace import Trace
from chaos.sim.world import Node, Shape, World
from cluster.hosting.calls import coverage, parts
from cluster.hosting.config.node_config import RaftSection
from cluster.hosting.region.administration import METHOD
from cluster.hosting.replicas import generations
from cluster.peers import virtual_time
from history_store.engine.errors import Code
from history_store.engine.keys import SLOTS, slot_of

SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"
PATIENCE_S = 60.0  # virtual
SHARDS = 8
RAFT = RaftSection(log_bytes_max=1 << 10)  # so that a replica that comes gets an image
COUNTS = ("", "GROUP BY ExecutionStatus", "ExecutionStatus = 'Running' GROUP BY WorkflowType")

Scene = Callable[["Region"], Coroutine[Any, Any, None]]
Play = Callable[[Scene], None]


class Region:
    """Five nodes, three replicas of each shard, and what was written."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.ids: set[str] = set()

    @property
    def nodes(self) -> list[Node]:
        """Those that serve."""
        return [node for node in self.world.nodes.values() if node.serves]

    async def once(self, request: Message, response: Any, node: Node, seconds: float = 10.0) -> Any:
        """One call to one node. Raises Refused."""
        name = SERVICE + request.DESCRIPTOR.name.removesuffix("Request")
        channel = self.world.connect(self.rng, "client", to=node)
        try:
            return response.FromString(await channel.call(name, request.SerializeToString(), seconds))
        finally:
            channel.close()

    async def call(self, request: Message, response: Any, node: Node | None = None) -> Any:
        """The same until it is answered, by a node that serves."""
        until = self.world.loop.time() + PATIENCE_S
        while True:
            try:
                return await self.once(request, response, node or self.rng.choice(self.nodes))
            except Refused as refused:
                if refused.code != Code.UNAVAILABLE or self.world.loop.time() > until:
                    raise
                await asyncio.sleep(0.1)

    async def start(self, workflow_id: str) -> None:
        """A run, by way of any node."""
        request = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, request_id=workflow_id,
            workflow_type=WorkflowType(name=self.rng.choice("AB")), task_queue=TaskQueue(name="q"),
        )  # fmt: skip
        await self.call(request, wire.StartWorkflowExecutionResponse)
        self.ids.add(workflow_id)

    async def terminate(self, workflow_id: str) -> None:
        request = wire.TerminateWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow_id)
        )
        await self.call(request, wire.TerminateWorkflowExecutionResponse)

    async def pages(self, query: str, size: int, node: Node | None = None) -> list[str]:
        """The ids of a list, page by page; from any node each, if none is named."""
        found: list[str] = []
        request = wire.ListWorkflowExecutionsRequest(namespace="default", query=query, page_size=size)
        while True:
            answer = await self.call(request, wire.ListWorkflowExecutionsResponse, node)
            found += [info.execution.workflow_id for info in answer.executions]
            if not answer.next_page_token:
                return found
            request.next_page_token = answer.next_page_token

    async def count(self, query: str = "", node: Node | None = None) -> tuple[int, list[int]]:
        request = wire.CountWorkflowExecutionsRequest(namespace="default", query=query)
        answer = await self.call(request, wire.CountWorkflowExecutionsResponse, node)
        return answer.count, [group.count for group in answer.groups]

    async def refusal(self, request: wire.CountWorkflowExecutionsRequest, node: Node) -> str:
        """Why it is refused at last: a leader's lease outlasts its followers for a while."""
        until = self.world.loop.time() + PATIENCE_S
        while self.world.loop.time() < until:
            try:
                await self.once(request, wire.CountWorkflowExecutionsResponse, node, 30.0)
            except Refused as refused:
                return str(refused)
            await asyncio.sleep(0.1)
        raise AssertionError("it goes on being answered")

    async def agree(self) -> None:
        """Every node lists and counts the same, and that is everything."""
        lists, counts = [], []
        for node in self.nodes:
            lists.append(await self.pages("ORDER BY StartTime DESC", self.rng.randint(1, 9), node))
            counts.append([await self.count(query, node) for query in COUNTS])
            assert await self.pages("", 100, node) == await self.pages("", self.rng.randint(1, 9), node)
        assert Counter(lists[0]) == Counter(self.ids)
        assert counts[0][0] == (len(self.ids), [])
        assert lists == lists[:1] * len(lists)
        assert counts == counts[:1] * len(counts)


@pytest.fixture
def play(seed: int, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a scene in virtual time. What follows an image is done slowly."""
    monkeypatch.setattr(generations, "SHOWN_AT_ONCE", 1)
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 4)
    monkeypatch.setattr(generations, "PAUSE_S", 0.1)

    def run(scene: Scene) -> None:
        rng = random.Random(seed)

        async def whole() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, virtual_time.VirtualLoop)
            with Trace(loop.time) as trace:
                world = World(loop, seed, trace, Shape(nodes=5, shards=SHARDS, raft=RAFT))
                try:
                    world.start()
                    assert await world.until_whole(PATIENCE_S)
                    await scene(Region(world, rng))
                    assert trace.problems == []
                finally:
                    for node in world.nodes.values():
                        if node.running:
                            node.kill()
                    world.scrap()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


def test_what_one_node_was_told_every_other_lists_at_once(play: Play) -> None:
    async def scene(region: Region) -> None:
        for number in range(25):
            await region.start(f"w{number}")
            assert (await region.count())[0] == len(region.ids)
            if number % 3 == 0:
                await region.terminate(f"w{number}")
                assert f"w{number}" not in await region.pages("ExecutionStatus = 'Running'", 7)
            assert await region.pages(f"WorkflowId = 'w{number}'", 3) == [f"w{number}"]
        await region.agree()

    play(scene)


def test_pages_go_on_at_other_nodes_and_after_a_node_died(play: Play) -> None:
    async def scene(region: Region) -> None:
        world = region.world
        for number in range(30):
            await region.start(f"w{number}")
        whole = await region.pages("", 100)
        assert Counter(whole) == Counter(region.ids)
        victim = region.rng.choice(region.nodes)
        request = wire.ListWorkflowExecutionsRequest(namespace="default", page_size=4)
        first = await region.call(request, wire.ListWorkflowExecutionsResponse, victim)
        request.next_page_token = first.next_page_token
        found = [info.execution.workflow_id for info in first.executions]
        victim.kill()
        while request.next_page_token:
            page = await region.call(request, wire.ListWorkflowExecutionsResponse)
            found += [info.execution.workflow_id for info in page.executions]
            request.next_page_token = page.next_page_token
        assert found == whole
        await region.agree()
        victim.start()
        assert await world.until_whole(PATIENCE_S)
        await region.agree()

    play(scene)


def test_pages_go_on_while_replicas_move(play: Play) -> None:
    """No record of a replica that comes counts before all are there, and none that one leaves behind."""

    async def scene(region: Region) -> None:
        rng, world = region.rng, region.world
        for number in range(30):
            await region.start(f"w{number}")
        whole = await region.pages("", 100)
        shards = rng.sample(range(1, SHARDS + 1), 2)
        moved = asyncio.ensure_future(_move(region, shards))
        while not moved.done():
            assert await region.pages("", rng.randint(1, 9)) == whole
            assert (await region.count())[0] == len(whole)
            await asyncio.sleep(0.15)
        assert moved.result() == len(shards), "every move came to its end"
        for number in range(30, 40):
            await region.start(f"w{number}")
            assert (await region.count())[0] == len(region.ids)
        await region.agree()
        assert await world.until_whole(PATIENCE_S)

    play(scene)


def test_pages_go_on_while_shards_are_split(play: Play) -> None:
    """The slots that go from one shard to another are somebody's at every moment, and only his."""

    async def scene(region: Region) -> None:
        rng, world = region.rng, region.world
        for number in range(30):
            await region.start(f"w{number}")
        split = asyncio.ensure_future(_split(region, rng.sample(range(1, SHARDS + 1), 1)))
        more = 30
        while not split.done():
            await region.start(f"w{more}")
            more += 1
            assert (await region.count())[0] == len(region.ids)
            assert Counter(await region.pages("", rng.randint(3, 20))) == Counter(region.ids)
            await asyncio.sleep(0.05)
        await split
        await region.agree()
        rng.choice(region.nodes).kill()
        await region.agree()
        assert len(region.nodes) == 4, "that one stayed away"
        assert world.trace.problems == []

    play(scene)


async def _split(region: Region, shards: list[int]) -> None:
    """These shards give half of their slots to new ones."""
    world = region.world
    for shard in shards:
        channel = world.connect(region.rng, "operator", to=region.nodes[0])
        told = await channel.call(METHOD, msgspec.json.encode({"do": "split", "shard": shard}), PATIENCE_S)
        channel.close()
        child = msgspec.json.decode(told)["child"]
        until = world.loop.time() + 10 * PATIENCE_S
        while any(child not in node.member.node.ranges for node in region.nodes):
            assert world.loop.time() < until, f"shard {shard} is not split"
            await asyncio.sleep(0.2)


async def _move(region: Region, shards: list[int]) -> int:
    """A replica of each of these shards goes to a node that had none."""
    world, rng = region.world, region.rng
    names = {number: name for name, number in world.ids.items()}
    done = 0
    for shard in shards:
        has = region.nodes[0].member.replicas.replicas_of(shard)
        source = names[rng.choice(has)]
        target = names[rng.choice([number for number in names if number not in has])]
        order = {"do": "move", "shard": shard, "node": source, "to": target}
        channel = world.connect(rng, "operator", to=region.nodes[0])
        await channel.call(METHOD, msgspec.json.encode(order), PATIENCE_S)
        channel.close()
        until = world.loop.time() + 10 * PATIENCE_S
        while shard in world.nodes[source].groups() or shard not in world.nodes[target].groups():
            assert world.loop.time() < until, f"shard {shard} does not get from {source} to {target}"
            await asyncio.sleep(0.2)
        done += 1
    return done


def test_a_node_that_was_started_again_answers_where_all_is_quiet(play: Play) -> None:
    """Also one that has no vote about the registry: it hears who leads that, although nothing happens."""

    async def scene(region: Region) -> None:
        world = region.world
        await region.start("w0")
        for node in list(world.nodes.values()):
            while not all(group.raft.is_quiet for one in region.nodes for group in one.groups().values()):
                await asyncio.sleep(0.1)
            node.kill()
            node.start()
            assert await world.until_whole(PATIENCE_S)
            began = world.loop.time()
            assert (await region.count("", node))[0] == 1
            assert world.loop.time() - began < parts.CONFIRM_S, "nobody had to be waited for in vain"

    play(scene)


def test_a_node_that_dies_while_it_is_asked_is_made_up_for(play: Play) -> None:
    """Questions under way when a node dies are answered by others, whole or not at all."""

    async def scene(region: Region) -> None:
        world = region.world
        for number in range(12):
            await region.start(f"w{number}")
        for _ in range(4):
            victim = region.rng.choice(region.nodes)
            asked = [node for node in region.nodes if node is not victim]
            questions = [
                asyncio.ensure_future(_later(region, node, wait_s))
                for node in asked
                for wait_s in (0.0, 0.001, 0.002, 0.004, 0.2)
            ]
            await asyncio.sleep(region.rng.uniform(0.0, 0.006))
            victim.kill()
            for question in questions:
                assert await question == len(region.ids)
            victim.start()
            assert await world.until_whole(PATIENCE_S)

    play(scene)


async def _later(region: Region, node: Node, wait_s: float) -> int:
    await asyncio.sleep(wait_s)
    return (await region.count("", node))[0]


def test_a_node_that_reaches_one_other_only_lets_that_one_answer(play: Play) -> None:
    async def scene(region: Region) -> None:
        world = region.world
        for number in range(10):
            await region.start(f"w{number}")
        names = [node.name for node in region.nodes]
        region.rng.shuffle(names)
        alone, friend, *others = names
        for other in others:
            world.network.cut(alone, other)
            world.network.cut(other, alone)
        for _ in range(3):
            assert (await region.count("", world.nodes[alone]))[0] == 10
        found = await region.pages("", 3, world.nodes[alone])
        assert found == await region.pages("", 100, world.nodes[friend])
        world.network.heal_all()
        await region.agree()

    play(scene)


def test_without_a_quorum_of_some_shard_the_answer_says_which(play: Play) -> None:
    async def scene(region: Region) -> None:
        world = region.world
        workflow_id = "w0"
        await region.start(workflow_id)
        node = region.nodes[0].member.node
        shard = node.slot_owners[slot_of(node.namespace_id_of("default") or "", workflow_id)]
        dead = [name for name in world.nodes if world.ids[name] in node.replicas_of(shard)][:2]
        for name in dead:
            world.nodes[name].kill()
        count = wire.CountWorkflowExecutionsRequest(namespace="default")
        named = wire.CountWorkflowExecutionsRequest(
            namespace="default", query=f"WorkflowId = '{workflow_id}'"
        )
        for other in region.nodes:
            why = await region.refusal(named, other)
            assert f"UNAVAILABLE: nobody can answer for shard {shard} at present" in why
            assert "nobody can answer for shard" in await region.refusal(count, other)
        for name in dead:
            world.nodes[name].start()
        await region.agree()

    play(scene)


def test_as_few_nodes_are_asked_as_can_be(rng: random.Random) -> None:
    for _ in range(200):
        nodes = range(1, rng.randint(1, 7) + 1)
        holders = {
            group: rng.sample(nodes, rng.randint(1, min(3, len(nodes))))
            for group in range(1, rng.randint(1, 12) + 1)
        }
        asked = coverage.cover(holders, rng.choice(nodes))
        assert sorted(group for groups in asked.values() for group in groups) == sorted(holders)
        assert all(node in holders[group] for node, groups in asked.items() for group in groups)
        for fewer in combinations(nodes, len(asked) - 1):
            assert not all(set(group) & set(fewer) for group in holders.values())


def test_slots_as_ranges(rng: random.Random) -> None:
    for _ in range(30):
        owners: list[int] = []
        while len(owners) < SLOTS:
            owners += [rng.randint(1, 5)] * rng.choice((1, 2, 700, 3000))
        del owners[SLOTS:]
        by_group = coverage.ranges_by_group(owners)
        for group, ranges in by_group.items():
            slots = [slot for first, last in ranges for slot in range(first, last + 1)]
            assert slots == [slot for slot, owner in enumerate(owners) if owner == group]
        assert coverage.joined(by_group.values()) == ((0, SLOTS - 1),)
        some = coverage.joined([by_group[owners[0]], ((5, 9), (11, 4000))])
        cut = coverage.within(by_group, some)
        assert coverage.joined(cut.values()) == some
        assert all(coverage.within({0: by_group[group]}, slots) == {0: slots} for group, slots in cut.items())
