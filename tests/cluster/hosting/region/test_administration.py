"""Nodes join a region, say what they are, step aside and go; what operators ask is answered everywhere."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from cluster.hosting.clock import Identifiers
from cluster.hosting.node import Node
from cluster.hosting.region.administration import Standing, read
from cluster.hosting.region.joining import Asker, NotAdmitted, stands
from cluster.hosting.region.member import FIRST_NAMESPACE
from cluster.hosting.shards.splitting import Splitting
from cluster.membership import FORMATS, META_GROUP
from cluster.peers import virtual_time
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import Code, ServiceError
from history_store.engine.keys import slot_of
from history_store.storage.contract import StorageError
from tests.cluster.hosting.settlement import PORT, SHARDS, Settlement, VirtualClock

Scene = Callable[[Settlement], Coroutine[Any, Any, None]]
Play = Callable[..., None]


@pytest.fixture
def play(rng: random.Random) -> Play:
    """Play a scene in virtual time; by default the region of three nodes is made already."""

    def run(scene: Scene, *, machines: str = "xyz", found: bool = True) -> None:
        async def whole() -> None:
            world = Settlement(rng, machines)
            try:
                if found:
                    await world.found()
                await scene(world)
            finally:
                world.end()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


async def told(world: Settlement, words: str) -> bool:
    """Whether the region knows of this problem."""
    return any(what.startswith(words) for what in await world.problems())


# --------------------------------------------------------------------------------------------- founding


def test_the_first_table_says_what_the_nodes_are(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        for settler in world.running():
            for node in settler.table.present():
                said = world[node.name].record()
                assert (node.machine, node.disk, node.version) == (said.machine, said.disk, "0.1.0")
                assert node.grpc_address == said.grpc_address
            assert not settler.table.problems()

    play(scene)


def test_who_is_late_is_not_waited_for_and_steps_aside(play: Play) -> None:
    """Two of four are on one machine; one of them was not there when the region was made."""

    async def scene(world: Settlement) -> None:
        for name in ("a/1", "a/2", "a/3"):
            world[name].boot()
        await world.until(lambda: world["a/1"].table.region is not None)
        assert world["a/1"].table.nodes[4].machine == ""
        world["a/4"].boot()
        await world.until(lambda: world["a/1"].table.nodes[4].machine == "z")
        await world.until(world.is_well)
        table = world["a/1"].table
        assert not table.problems()
        assert not any({3, 4} <= set(table.replicas_of(group)) for group in table.groups())

    play(scene, machines="xyzz", found=False)


def test_who_is_a_little_late_is_waited_for(play: Play) -> None:
    """So that nothing has to be moved off a machine that two of them share."""

    async def scene(world: Settlement) -> None:
        for name in ("a/1", "a/2", "a/3"):
            world[name].boot()
        await asyncio.sleep(1.5)
        assert world["a/1"].table.region is None
        world["a/4"].boot()
        await world.until(lambda: world["a/1"].table.region is not None)
        assert [node.machine for node in world["a/1"].table.present()] == ["x", "y", "z", "z"]

    play(scene, machines="xyzz", found=False)


def test_replicas_need_machines_of_their_own(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        for settler in world.settlers.values():
            settler.boot()
        await world.until(lambda: any(settler.refusal for settler in world.running()))
        (refusal,) = {settler.refusal for settler in world.running()} - {""}
        assert "3 replicas need as many machines" in refusal

    play(scene, machines="xyy", found=False)


# ---------------------------------------------------------------------------------------------- joining


def test_a_node_joins_and_gets_its_share(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        fourth = await world.come("a/4", "w")
        assert fourth.node_id == 4
        assert fourth.member.ready.done()
        nodes = await world.nodes()
        assert sorted(one["replicas"] for one in nodes.values()) == [3, 3, 3, 3]
        for group in fourth.table.groups_of(4):
            assert 4 in fourth.member.node.committer.groups[group].raft.conf.voters
        assert 4 in fourth.member.node.meta.group.raft.conf.learners, "the fourth hears of everything"

    play(scene)


def test_asking_twice_makes_one_node(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        fourth = world.add("a/4", "w")
        first = await fourth.join()
        assert await fourth.join() == first
        other = world.add("a/4", "v")
        other.key = "another directory"
        with pytest.raises(NotAdmitted, match="a/4 is in the region already, as node 4"):
            await other.join()
        assert len(await world.nodes()) == 4

    play(scene)


def test_two_who_join_at_once_are_two(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        settlers = [world.add(f"a/{number}", f"m{number}") for number in (4, 5, 6)]
        places = await asyncio.gather(*(settler.join() for settler in settlers))
        assert sorted(place.node_id for place in places) == [4, 5, 6]
        for settler in settlers:
            settler.boot()
        await world.until(world.is_well)
        assert not world["a/1"].table.problems()
        # Who had not been heard from yet got nothing from those who came after it.
        await world.do("a/1", "rebalance")
        await world.until(world.is_well)
        assert {one["replicas"] for one in (await world.nodes()).values()} == {SHARDS * 3 // 6}

    play(scene)


def test_who_ended_before_it_had_heard_of_the_region_goes_on(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        fourth = world.add("a/4", "w")
        place = await fourth.join()
        fourth.boot()
        await asyncio.sleep(world.rng.uniform(0.0, 0.6))
        fourth.kill()
        assert (await fourth.join()).node_id == place.node_id
        fourth.boot()
        await world.until(world.is_well)
        assert fourth.member.node.committer.groups.keys() >= set(fourth.table.groups_of(4))

    play(scene)


# --------------------------------------------------------------------------------- who is not admitted


def test_a_voter_that_lost_its_data_does_not_vote(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        lost = world["a/2"]
        lost.kill()
        lost.lose_disk()
        lost.boot()
        await world.until(lambda: bool(lost.refusal))
        assert lost.refusal.startswith("node 2 (a/2) has lost its data")
        assert not lost.member.peers_up()
        assert lost.member.node.meta.group.raft.term == 0 or not lost.member.node.meta.group.leading
        await world.until(lambda: told(world, "a/2 is down"))

    play(scene)


def test_a_removed_node_hears_so_while_it_runs_and_when_it_is_started(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        await world.come("a/4", "w")
        first = world["a/1"]
        await world.do("a/1", "remove", node="a/1")
        await world.until(lambda: bool(first.refusal))
        assert "was removed" in first.refusal
        first.kill()
        first.broken.clear()
        first.boot()
        await world.until(lambda: bool(first.refusal))
        assert "was removed" in first.refusal
        first.kill()
        with pytest.raises(NotAdmitted, match="was removed"):
            await first.join()
        first.lose_disk()
        world.founders.remove("a/1")
        assert (await first.join()).node_id == 5, "an id is never given twice"

    play(scene)


def test_a_node_that_moved_is_found(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        moved = world["a/2"]
        moved.kill()
        moved.host = "elsewhere"
        moved.boot()
        await world.until(lambda: world["a/1"].table.nodes[2].peers_address == "elsewhere:7000")
        await world.until(world.is_well)

    play(scene)


# ---------------------------------------------------------------------------------------------- changes


@pytest.mark.parametrize("at", ["a/1", "a/2", "a/3"])
def test_any_node_can_be_asked(play: Play, at: str) -> None:
    async def scene(world: Settlement) -> None:
        assert await world.do(at, "drain", node="a/2") == {"why": "a/2 drains", "changed": True, "moves": []}
        assert (await world.do(at, "drain", node="2"))["changed"] is False

        async def drained() -> bool:
            return not (await world.nodes(at))["a/2"]["leads"]

        await world.until(drained)
        assert await world.problems(at) == ["a/2 is drained"]
        await world.do(at, "resume", node="a/2")
        assert await world.problems(at) == []

    play(scene)


def test_changes_at_the_same_time_do_not_undo_each_other(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        await world.come("a/4", "w")
        await asyncio.gather(
            *(world.do(at, "drain", node=node) for at, node in (("a/1", "a/1"), ("a/2", "a/4")))
        )
        states = {name: one["state"] for name, one in (await world.nodes()).items()}
        assert states["a/1"] == states["a/4"] == "draining"

    play(scene)


def test_a_node_is_removed_and_its_replicas_are_elsewhere(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        await world.come("a/4", "w")
        plan = await world.do("a/2", "remove", node="a/1", dry_run=True)
        assert plan["changed"] is False
        assert plan["moves"]
        assert (await world.nodes())["a/1"]["state"] == "active"
        assert (await world.do("a/2", "remove", node="a/1"))["moves"] == plan["moves"]

        async def gone() -> bool:
            return bool((await world.nodes())["a/1"]["state"] == "removed")

        await world.until(gone)
        await world.until(world.is_well)
        table = world["a/4"].table
        assert all(set(table.replicas_of(group)) == {2, 3, 4} for group in table.groups())
        for again in ("1", "a/1"):
            assert (await world.do("a/2", "remove", node=again))["changed"] is False, "asked again"

    play(scene)


def test_a_dead_node_is_replaced(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        await world.come("a/4", "w")
        world["a/1"].kill()
        await world.until(lambda: not world["a/3"].member.peers.is_up(1))
        await asyncio.sleep(3.0)
        await world.do("a/2", "replace", node="a/1", to="a/4")
        await world.until(world.is_well)
        assert (await world.nodes())["a/4"]["replicas"] == SHARDS
        again = await world.do("a/2", "replace", node="a/1", to="a/4")
        assert again["changed"] is False, "the first answer may have been lost"

    play(scene)


def test_the_data_of_a_node_is_not_for_a_server_that_is_alone(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        world["a/2"].kill()
        clock = VirtualClock(world.loop)
        rows = len(list(world["a/2"].disk.load()))
        with pytest.raises(StorageError, match="is that of a node of a region"):
            Node(
                world.loop, world["a/2"].disk, clock, Identifiers(clock, world.rng), world.rng,
                EngineLimits(), inline=True, shards=SHARDS, cluster_id="x", on_broken=lambda error: None,
            )  # fmt: skip
        assert len(list(world["a/2"].disk.load())) == rows
        world["a/2"].boot()
        await world.until(world.is_well)

    play(scene)


def test_a_region_starts_without_the_namespace_that_it_was_made_with(play: Play) -> None:
    """Somebody deleted `default`. That was the end of every node that was started afterwards."""

    async def scene(world: Settlement) -> None:
        (leader,) = [one for one in world.running() if one.member.node.meta.group.leading]
        errors: list[Any] = []
        meta = leader.member.node.meta
        first = meta.by_name[FIRST_NAMESPACE].id
        leader.process.call(lambda: meta.forget(first, errors.append))
        await world.until(lambda: all(not one.member.node.meta.by_name for one in world.running()))
        for settler in world.running():  # otherwise the namespace comes again for a moment, from the log
            settler.process.call(partial(settler.member.node.committer.flush, errors.append))
        await world.until(lambda: errors == [None] * 4)
        for settler in world.running():
            settler.kill()
            settler.boot()
        await world.until(lambda: all(hasattr(one, "member") for one in world.running()))
        await world.until(lambda: all(one.member.ready.done() for one in world.running()))

    play(scene)


def test_a_node_whose_data_is_lost_comes_again_under_its_name(play: Play) -> None:
    """The one command, and a start without data, in a region that has no other node to spare."""

    async def scene(world: Settlement) -> None:
        refused = await world.told("a/1", "replace", node="a/2")
        assert "a/2 is up: name the node that is to take over" in refused.message
        lost = world["a/2"]
        assert await standing(world, "a/2") is Standing.LOST, "without its data"
        assert await standing(world, "a/9") is Standing.NEW
        lost.kill()
        lost.lose_disk()
        await world.until(lambda: told(world, "a/2 is down"))
        (problem,) = (await world.do("a/1", "health"))["problems"]
        assert "`holdfast node replace a/2`, and start it with an empty data directory" in problem["do"]
        await world.do("a/1", "replace", node="a/2")
        await world.until(partial(is_new, world, "a/2"))
        assert (await world.do("a/3", "replace", node="2"))["changed"] is False, "asked again"
        world.founders.remove("a/2")
        assert (await lost.join()).node_id == 4
        lost.boot()
        await world.until(world.is_well)
        assert (await world.nodes())["a/2"]["replicas"] == SHARDS

    play(scene)


async def standing(world: Settlement, name: str) -> Standing:
    """What the region says that a first member without data is."""
    network = world.network.host("somewhere", world.loop.process(f"{name} asks"))
    others = [(settler.host, PORT) for settler in world.running() if settler.name != name]
    return await stands(Asker(network, cluster_id="", region="a", name=name), others, name)


async def is_new(world: Settlement, name: str) -> bool:
    return await standing(world, name) is Standing.NEW


def test_a_first_member_that_is_late_makes_the_region_with_the_others(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        assert await standing(world, "a/1") is Standing.FIRST, "nobody is there"
        world["a/1"].boot()
        await asyncio.sleep(1.0)
        assert await standing(world, "a/2") is Standing.FIRST, "there is no region yet"
        world["a/2"].boot()
        await world.until(lambda: world["a/1"].table.region is not None)
        assert await standing(world, "a/3") is Standing.FIRST, "nobody has ever seen its data"
        world["a/3"].boot()
        await world.until(world.is_well)

    play(scene, found=False)


def test_a_replica_moves(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        await world.come("a/4", "w")
        table = world["a/1"].table
        shard = next(group for group in table.groups() if group and 4 not in table.replicas_of(group))
        source = f"a/{table.replicas_of(shard)[0]}"
        await world.do("a/1", "move", shard=shard, node=source, to="a/4")
        assert (await world.do("a/1", "move", shard=shard, node=source, to="a/4"))["changed"] is False
        await world.until(world.is_well)
        shown = next(one for one in (await world.do("a/1", "shards"))["shards"] if one["id"] == shard)
        assert "a/4" in shown["voters"]
        assert source not in shown["voters"]
        assert (await world.do("a/1", "rebalance", dry_run=True))["moves"][0]["from"] == "a/4"
        await world.do("a/1", "rebalance")
        await world.until(world.is_well)
        assert {one["replicas"] for one in (await world.nodes()).values()} == {3}

    play(scene)


@pytest.mark.parametrize("shard", [META_GROUP, 2])
def test_another_replica_leads_when_asked_for(play: Play, shard: int) -> None:
    async def leader(world: Settlement) -> Any:
        return next(one for one in (await world.do("a/2", "shards"))["shards"] if one["id"] == shard)[
            "leader"
        ]

    async def leads(world: Settlement, heir: str) -> bool:
        return bool(await leader(world) == heir)

    async def scene(world: Settlement) -> None:
        await world.until(world.is_well)
        for heir in ("a/1", "a/2", "a/3", "a/1"):
            before = await leader(world)
            told = await world.do("a/2", "transfer", shard=shard, to=heir)
            # Who is asked may lead no more before he has answered; then the next one is, who finds it done.
            assert (told["from"], told["changed"]) in {(before, before != heir), (heir, False)}
            await world.until(partial(leads, world, heir))
            await asyncio.sleep(5.0)
            assert await leads(world, heir), "evenness does not undo it"

    play(scene)


def test_who_gave_a_replica_up_still_finds_its_leader(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        before = world["a/1"].table.copy()
        await world.come("a/4", "w")
        table = world["a/1"].table
        left = [
            (group, f"a/{node_id}")
            for group in range(1, SHARDS + 1)
            for node_id in before.replicas_of(group)
            if node_id not in table.replicas_of(group)
        ]
        assert left
        for group, former in left:
            node = world[former].member.node
            namespace_id = node.namespace_id_of("default") or ""
            names = (f"w{number}" for number in range(1000))
            workflow = next(w for w in names if table.shard_of_slot(slot_of(namespace_id, w)) == group)
            for _ in range(2):  # the former member hears nothing of who leads next
                found = await world.do(former, "locate", namespace="default", workflow=workflow)
                assert found["shard"] == group
                assert found["node"] == found["leader"] != former
                await world.do("a/1", "drain", node=found["leader"])
                await world.until(partial(leads_nothing, world, found["leader"]))
                await world.do("a/1", "resume", node=found["leader"])

    play(scene)


async def leads_nothing(world: Settlement, name: str) -> bool:
    return not (await world.nodes())[name]["leads"]


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"do": "remove", "node": "a/2"}, "replicas would be 2 of 3: add a node first, or --force"),
        ({"do": "drain", "node": "b/9"}, "there is no node 'b/9': choose one of a/1, a/2, a/3"),
        ({"do": "move", "shard": 1, "node": "a/1", "to": "a/2"}, "has a replica of shard 1 already"),
        ({"do": "move", "shard": 99, "node": "a/1", "to": "a/2"}, "there is no shard 99"),
        ({"do": "transfer", "shard": 99, "to": "a/2"}, "there is no shard 99: choose one that"),
        ({"do": "replace", "node": "a/1", "to": "a/1"}, "cannot take anything over"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(play: Play, request_: dict[str, Any], why: str) -> None:
    async def scene(world: Settlement) -> None:
        fields = {key: value for key, value in request_.items() if key != "do"}
        told = await world.told("a/2", request_["do"], **fields)
        assert told.code == Code.FAILED_PRECONDITION
        assert why in told.message

    play(scene)


def test_what_is_no_request(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        assert (await world.told("a/1", "fly")).code == Code.UNIMPLEMENTED
        assert (await world.told("a/1", "join")).code == Code.UNIMPLEMENTED, "not for clients"
        told = await world.told("a/1", "drain", node="a/1", harmless=True)
        assert told.code == Code.INVALID_ARGUMENT, "it may be what makes it harmless"

    play(scene)


# --------------------------------------------------------------------------------------------- questions


def test_a_node_that_dies_is_told_of_with_the_moment(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        world["a/1"].kill()
        at = world.loop.time()

        await world.until(lambda: told(world, "a/1 is down"))
        await asyncio.sleep(5.0)
        (problem,) = (await world.do("a/2", "health"))["problems"]
        since = (problem["since_ns"] - 10**18) / 1e9
        assert at - 1.0 <= since <= at + 4.0
        world["a/1"].boot()
        await world.until(world.is_well)

    play(scene)


def test_without_a_majority_a_node_says_what_it_sees(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        world["a/1"].kill()
        world["a/2"].kill()
        await asyncio.sleep(5.0)
        assert (await world.told("a/3", "health")).code != Code.OK
        whats = [one["what"] for one in (await world.do("a/3", "health", here=True))["problems"]]
        assert any("the meta group has no leader" in what and "a/1, a/2" in what for what in whats)
        seen = await world.do("a/3", "nodes", here=True)
        assert [one["up"] for one in seen["nodes"]] == [False, False, True]
        assert (seen["seen_by"], seen["complete"]) == ("a/3", False)
        shards = (await world.do("a/3", "shards", here=True))["shards"]
        assert [one["id"] for one in shards] == list(range(SHARDS + 1))
        assert {(one["leader"], *sorted(one["down"])) for one in shards} == {(None, "a/1", "a/2")}
        assert {(one["load"], one["slow"]) for one in seen["nodes"]} == {(None, None)}
        assert [one["behind"] for one in shards] == [None] * len(shards)

    play(scene)


def test_who_is_behind_a_node_knows_by_itself_of_what_it_leads(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        for name in ("a/1", "a/2", "a/3"):
            shards = (await world.do(name, "shards", here=True))["shards"]
            assert all(one["leader"] is not None for one in shards)
            assert all(one["behind"] == ([] if one["leader"] == name else None) for one in shards)

    play(scene)


def test_the_shards_are_shown_with_their_members(play: Play) -> None:
    async def scene(world: Settlement) -> None:
        shards = (await world.do("a/2", "shards"))["shards"]
        assert [one["id"] for one in shards] == list(range(SHARDS + 1))
        for one in shards:
            assert one["settled"]
            assert one["voters"] == ["a/1", "a/2", "a/3"]
            assert one["down"] == []
            assert one["leader"] in one["voters"]
        assert sum(one["slot_count"] for one in shards) == 16384
        assert shards[META_GROUP]["slot_count"] == 0

    play(scene)


def test_a_shard_is_split_once_however_often_it_is_asked_for(play: Play) -> None:
    async def shard(world: Settlement, number: int) -> Any:
        return next(one for one in (await world.do("a/2", "shards"))["shards"] if one["id"] == number)

    async def serves(world: Settlement, number: int) -> bool:
        one = await shard(world, number)
        return bool(one["state"] == "serving" and one["leader"])

    async def scene(world: Settlement) -> None:
        await world.until(world.is_well)
        first, last = (await shard(world, 1))["slots"][0]
        assert (await world.told("a/1", "split", shard=99)).code == Code.FAILED_PRECONDITION
        assert (await world.told("a/1", "split", shard=1, slot=first)).code == Code.FAILED_PRECONDITION
        told = await world.do("a/1", "split", shard=1, slot=first + 5)
        assert (told["changed"], told["slot"]) == (True, first + 5)
        child = told["child"]
        again = await world.do("a/3", "split", shard=1, slot=first + 5)
        assert (again["changed"], again["child"]) == (False, child)
        await world.until(partial(serves, world, child))
        again = await world.do("a/2", "split", shard=1, slot=first + 5)
        assert (again["changed"], again["child"]) == (False, child)
        assert (await shard(world, 1))["slots"] == [[first, first + 4]]
        assert (await shard(world, child))["slots"] == [[first + 5, last]]
        world["a/3"].kill()
        world["a/3"].boot()
        await world.until(world.is_well)
        half = await world.do("a/1", "split", shard=child)
        await world.until(partial(serves, world, half["child"]))
        await world.until(world.is_well)

    play(scene)


def test_a_split_is_abandoned_while_its_rows_are_copied(play: Play) -> None:
    async def coming(world: Settlement, number: int) -> Any:
        shards = (await world.do("a/2", "shards"))["shards"]
        return next((one for one in shards if one["id"] == number), None)

    def is_idle(splitting: Splitting) -> bool:
        return not splitting.busy

    async def is_gone(world: Settlement, number: int) -> bool:
        return await coming(world, number) is None

    async def scene(world: Settlement) -> None:
        await world.until(world.is_well)
        await world.until(lambda: world["a/2"].table.region.formats == FORMATS)
        before = await coming(world, 1)
        assert "is not being split: " in (await world.told("a/1", "abandon", shard=1)).message
        for by_child in (False, True):
            for settler in world.running():  # nobody says that it has the rows: it can only be abandoned
                settler.member.splits._splitting.ready = list  # type: ignore[method-assign]
            told = await world.do("a/1", "split", shard=1)
            child, last = told["child"], told["child"] if by_child else 1
            world["a/3"].kill()
            answer = await world.do("a/2", "abandon", shard=last)
            assert (answer["changed"], answer["shard"], answer["child"]) == (True, 1, child)
            await world.until(partial(is_gone, world, child))
            world["a/3"].boot()
            await world.until(world.is_well)
            again = await world.do("a/1", "abandon", shard=last)
            assert (again["changed"], again["child"]) == (False, child)
            assert (await coming(world, 1))["slots"] == before["slots"]
            for settler in world.running():
                await world.until(partial(is_idle, settler.member.splits._splitting))
            for name in ("a/1", "a/2"):
                del world[name].member.splits._splitting.ready
        told = await world.do("a/1", "split", shard=1)

        async def serves() -> bool:
            one = await coming(world, told["child"])
            return bool(one["state"] == "serving" and one["leader"])

        await world.until(serves)
        for number in (1, told["child"]):
            refused = (await world.told("a/1", "abandon", shard=number)).message
            assert f"it is too late, shard {told['child']} serves what shard 1 gave up: " in refused
        await world.until(world.is_well)

    play(scene)


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b'{"do": 1}', b'{"do": "\xff"}'])
def test_bytes_that_are_no_request_are_refused(message: bytes) -> None:
    with pytest.raises(ServiceError) as caught:
        read(message)
    assert caught.value.code is Code.INVALID_ARGUMENT
