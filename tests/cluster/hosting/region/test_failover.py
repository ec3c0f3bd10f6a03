"""Two regions hand a namespace over, or one takes it; leaders die at every step."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.hosting.shards.gates import Gates, NotActive
from cluster.membership import ShardState
from cluster.peers import virtual_time
from history_store.engine.errors import Code, ServiceError
from replication.failover.gates import Call, GateState, Verdict
from replication.failover.records import UNDECIDED, Handover, Phase
from tests.cluster.hosting.two_regions import World

Scene = Callable[[World], Coroutine[Any, Any, None]]
Play = Callable[[Scene], None]


@pytest.fixture
def play(rng: random.Random) -> Play:
    """Play a scene in virtual time, with both regions made."""

    def run(scene: Scene) -> None:
        async def whole() -> None:
            world = World(rng)
            try:
                await world.found()
                await scene(world)
            finally:
                world.end()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


async def begin(world: World, request_id: str = "r", **fields: Any) -> Any:
    """Region 1's namespace goes to region 2."""
    asked = {"namespace": "orders", "to": "b", "mode": "graceful", "request_id": request_id, **fields}
    return await world.do(1, "failover", **asked)


async def refused(world: World, at: int, do: str, **fields: Any) -> str:
    """Why it is not done; nothing may have changed."""
    before = [world.leader_state(index) for index in (1, 2)]
    told = await world.told(at, do, **fields)
    assert told.code in (Code.NOT_FOUND, Code.FAILED_PRECONDITION, Code.INVALID_ARGUMENT), told
    assert [world.leader_state(index) for index in (1, 2)] == before
    return told.message


async def decided(world: World, number: int = 1) -> Handover:
    """The handover once it is decided."""

    def is_decided() -> bool:
        found = world.handover(1, number)
        return found is not None and found.phase not in UNDECIDED

    await world.until(is_decided, 100.0)  # it may wait a minute for what is not known
    found = world.handover(1, number)
    assert found is not None
    return found


async def followed(world: World, ns: str, handover: Handover) -> None:
    """The decision is followed: one region serves, in all of its shards, and nothing is left to do."""
    ours, theirs = {GateState.OPEN}, {GateState.INACTIVE}
    if handover.committed:
        ours, theirs = theirs, ours
    await world.until(lambda: world.states(1, ns) == ours and world.states(2, ns) == theirs)
    await world.until(lambda: all(world.records_agree(ns)))

    def closed() -> bool:
        found = world.handover(1, handover.number)
        assert found is not None
        assert found.committed == handover.committed
        return found.closed

    await world.until(closed)


def test_a_namespace_is_handed_over_and_back(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        for shard in world.led(1).values():
            assert world.outgoing(shard).write(ns)
        begun = await world.do(2, "failover", namespace="orders", to="b", mode="graceful", request_id="r1")
        assert begun["changed"]
        assert begun["handover"]["source"] == "a"
        handover = await decided(world)
        assert handover.committed == (ns,)
        await followed(world, ns, handover)
        shown = await world.do(2, "failover_status", namespace="orders", to="a")
        assert shown["handover"]["phase"] == "done"
        assert shown["handover"]["paused_ms"] < 1_000
        assert shown["active"] == "b"
        assert [row["mode"] for row in shown["history"]] == ["create", "graceful"]
        for shard in world.led(2).values():
            assert world.outgoing(shard).write(ns)
        await world.do(1, "failover", namespace="orders", to="a", mode="graceful", request_id="r2")
        await world.until(lambda: world.states(1, ns) == {GateState.OPEN})
        await world.until(lambda: world.states(2, ns) == {GateState.INACTIVE})
        record = world.record(1, ns)
        assert record is not None
        assert record.version == 101

    play(scene)


def test_the_target_has_all_that_was_written_before_the_fence(play: Play) -> None:
    """It does not serve before, however long that takes, and nothing is written meanwhile."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await begin(world)
        world.ferrying = False
        await world.until(lambda: bool((found := world.handover(1)) and found.phase is Phase.DRAINING))
        assert world.states(1, ns) == {GateState.FENCED}
        assert not any(world.outgoing(shard).write(ns) for shard in world.led(1).values())
        await asyncio.sleep(2.0)
        assert world.states(2, ns) == {GateState.INACTIVE}
        world.ferrying = True
        handover = await decided(world)
        assert handover.committed == (ns,)
        await followed(world, ns, handover)

    play(scene)


@pytest.mark.parametrize(
    "phase", [Phase.PREPARE, Phase.FENCING, Phase.DRAINING, Phase.COMMITTED, Phase.ABORTED]
)
@pytest.mark.parametrize("index", [1, 2])
def test_the_leader_of_a_meta_group_dies(play: Play, phase: Phase, index: int, rng: random.Random) -> None:
    """At every step: one decision comes of it, and it is followed everywhere."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.ferrying = phase is not Phase.ABORTED  # then it ends so at its deadline
        await begin(world)
        await world.until(lambda: bool((found := world.handover(1)) and found.phase >= phase))
        await asyncio.sleep(rng.choice([0.0, 0.01, 0.03, 0.1]))
        leader = world.leader(index)
        assert leader is not None
        leader.kill()
        await asyncio.sleep(rng.choice([0.5, 3.0]))
        leader.boot()
        handover = await decided(world)
        world.ferrying = True
        await followed(world, ns, handover)
        if phase in (Phase.COMMITTED, Phase.ABORTED):
            assert bool(handover.committed) is (phase is Phase.COMMITTED)

    play(scene)


def test_a_target_that_is_cut_off_gets_nothing_and_the_source_serves_again(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        await begin(world)
        world.ferrying = False
        await world.until(lambda: bool((found := world.handover(1)) and found.phase is Phase.DRAINING))
        world.cut = True
        handover = await decided(world)
        assert handover.phase is Phase.ABORTED
        assert handover.why.startswith("the time is up")
        await world.until(lambda: world.states(1, ns) == {GateState.OPEN})
        assert all(world.outgoing(shard).write(ns) for shard in world.led(1).values())
        assert world.states(2, ns) == {GateState.INACTIVE}
        world.cut, world.ferrying = False, True
        await world.until(world.whole)
        await begin(world, "again")
        second = await decided(world, 2)
        assert second.committed == (ns,)
        await followed(world, ns, second)

    play(scene)


def test_before_anything_is_fenced_the_target_has_to_be_close_behind(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.blind = True
        await begin(world, max_wait_ms=3_000)
        await asyncio.sleep(1.0)
        assert world.states(1, ns) == {GateState.OPEN}
        shown = await world.do(1, "failover_status", namespace="orders")
        assert shown["state"] == "handover"
        assert "is not known" in shown["handover"]["waits"]
        handover = await decided(world)
        assert handover.phase is Phase.ABORTED
        assert world.states(1, ns) == {GateState.OPEN}

    play(scene)


def test_a_target_that_goes_away_is_not_waited_for_in_silence(play: Play) -> None:
    async def scene(world: World) -> None:
        await world.global_default()
        world.blind = True
        await begin(world)
        await asyncio.sleep(1.0)
        world.cut = True
        await asyncio.sleep(4.0)
        shown = await world.do(1, "failover_status", namespace="orders")
        assert "cannot be reached" in shown["handover"]["waits"]
        assert shown["unreachable"] == ["b"]

    play(scene)


def test_a_region_that_is_bootstrapping_is_no_target(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.bootstrapping.add(ns)
        asked = {"namespace": "orders", "to": "b", "request_id": "r"}
        assert "is bootstrapping" in await refused(world, 1, "failover", mode="graceful", **asked)
        assert "is bootstrapping" in await refused(world, 1, "failover", mode="forced", yes=True, **asked)
        world.bootstrapping.clear()
        await begin(world)
        assert (await decided(world)).committed

    play(scene)


def test_an_operator_takes_it_back(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.ferrying = False
        await begin(world)
        await world.until(lambda: world.states(1, ns) == {GateState.FENCED})
        taken = await world.do(2, "failover_abort", namespace="orders", operator="ann")
        assert taken["changed"]
        handover = await decided(world)
        assert handover.why == "ann took it back"
        assert not (await world.do(1, "failover_abort", namespace="orders"))["changed"]
        await followed(world, ns, handover)
        world.ferrying = True
        await begin(world, "again")
        second = await decided(world, 2)
        await followed(world, ns, second)
        assert "nothing to be taken back" in await refused(world, 1, "failover_abort", namespace="orders")

    play(scene)


def test_what_cannot_be_is_refused_and_changes_nothing(play: Play) -> None:
    async def scene(world: World) -> None:
        await world.global_default()
        await world.register(1, "alone")
        for at in (1, 2):
            for mode in ("graceful", "forced"):
                asked = {"mode": mode, "request_id": "r", "yes": True}
                name = {"namespace": "orders"}
                assert "no namespace" in await refused(world, at, "failover", namespace="x", to="b", **asked)
                assert "choose one of a, b" in await refused(world, at, "failover", to="c", **name, **asked)
                assert "active in region a already" in await refused(
                    world, at, "failover", to="a", **name, **asked
                )
            asked = {"namespace": "alone", "to": "b", "mode": "graceful", "request_id": "r"}
            assert (await refused(world, at, "failover", **asked)).startswith(
                "region b does not hold" if at == 1 else "there is no namespace"
            )
        orders = {"namespace": "orders", "to": "b"}
        assert "not 'hybrid'" in await refused(world, 1, "failover", mode="hybrid", request_id="r", **orders)
        assert "request id" in await refused(world, 1, "failover", mode="graceful", **orders)
        assert "fail it over" in await refused(world, 2, "remove_region", namespace="orders", to="a")

    play(scene)


def test_a_failover_that_is_wanted_twice_is_one(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        one, two = await asyncio.gather(begin(world), begin(world))
        assert one["handover"]["number"] == two["handover"]["number"] == 1
        assert "in handover 1" in (await world.told(1, "failover", namespace="orders", to="b",
                                                    mode="graceful", request_id="other")).message  # fmt: skip
        handover = await decided(world)
        await followed(world, ns, handover)
        for index in (1, 2):
            again = await world.do(
                index, "failover", namespace="orders", to="b", mode="graceful", request_id="r"
            )
            assert again["handover"]["number"] == 1
            assert again["handover"]["moved"]
        assert set(world.leader_state(1)[1]) == {1}

    play(scene)


def test_a_region_takes_what_it_was_not_given(play: Play) -> None:
    """The other one is cut off: it serves on at its version until it hears, and then no more."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await asyncio.sleep(0.5)
        world.cut = world.blind = True
        for shard in world.led(1).values():
            assert world.outgoing(shard).write(ns)
        asked = {"namespace": "orders", "to": "b", "mode": "forced", "request_id": "f"}
        told = await world.do(2, "failover", **asked)
        assert told["needs_yes"]
        assert not told["changed"]
        assert any("behind" in line or "ever read" in line for line in told["lines"])
        assert world.states(2, ns) == {GateState.INACTIVE}
        told = await world.do(2, "failover", yes=True, dry_run=True, **asked)
        assert not told["changed"]
        told = await world.do(2, "failover", yes=True, reason="fire", **asked)
        assert told["changed"]
        assert told["verdict"] == "confirmed locally"
        assert told["unread"] == ["a"]
        await world.until(lambda: world.states(2, ns) == {GateState.OPEN})
        assert world.states(1, ns) == {GateState.OPEN}  # nobody could tell it
        world.cut = False
        await world.until(lambda: world.states(1, ns) == {GateState.INACTIVE})
        await world.until(lambda: all(world.records_agree(ns)))
        again = await world.do(1, "failover", yes=True, reason="fire", **asked)
        assert again["verdict"] == "confirmed"
        assert again["version"] == told["version"] == 2

    play(scene)


def test_of_two_who_take_it_one_is_told_that_it_lost(play: Play) -> None:
    """From version 2, region a takes 101 while region b, which has not heard, is at 2 and bumps nothing."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await begin(world)
        await followed(world, ns, await decided(world))
        world.cut = True
        asked = {"namespace": "orders", "mode": "forced", "yes": True}
        told = await world.do(1, "failover", to="a", request_id="x", **asked)
        assert told["version"] == 101
        assert told["verdict"] == "confirmed locally"
        world.cut = False
        await world.until(lambda: world.states(2, ns) == {GateState.INACTIVE})
        await world.do(2, "failover", to="b", request_id="y", **asked)
        await world.until(lambda: world.states(2, ns) == {GateState.OPEN})
        again = await world.told(
            1, "failover", namespace="orders", to="a", mode="forced", request_id="x", dry_run=True
        )
        assert again.code == Code.OK
        await world.until(lambda: (record := world.record(1, ns)) is not None and record.version == 102)

    play(scene)


def test_a_shard_that_is_split_while_others_are_fenced(play: Play) -> None:
    """Before its fence or behind it: nothing of the child is forgotten, and none of it stays fenced."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await world.do(1, "split", shard=1)
        await asyncio.sleep(world.rng.choice([0.0, 0.3, 0.5, 0.7, 0.9]))
        world.ferrying = world.rng.random() < 0.5  # without, it is taken back at the deadline
        await begin(world)
        handover = await decided(world)
        world.ferrying = True
        await world.until(lambda: 5 in world.led(1))
        await followed(world, ns, handover)
        assert set(world.gates(1)) == {1, 2, 3, 4, 5}
        if not handover.committed:
            assert all(world.outgoing(shard).write(ns) for shard in world.led(1).values())

    play(scene)


def test_a_child_begins_behind_its_parents_fence(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.ferrying = False
        await begin(world)
        await world.until(lambda: world.states(1, ns) == {GateState.FENCED})
        await world.do(1, "split", shard=1)
        await world.until(lambda: 5 in world.gates(1), 9.0)
        handover = world.handover(1)
        assert handover is not None
        assert handover.phase is Phase.DRAINING, "the split came too late"
        assert world.gates(1)[5].state(ns) is GateState.FENCED
        handover = await decided(world)
        world.ferrying = True
        await followed(world, ns, handover)

    play(scene)


def test_what_a_namespace_is_like_is_the_same_everywhere(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        await world.edit(1, ns, retention=7)
        await world.until(lambda: world.registered(2, ns).get("retention") == 7)
        await world.until(lambda: world.registered(2, ns) == world.registered(1, ns))
        with pytest.raises(NotActive, match="in region a"):
            await world.edit(2, ns, retention=8)
        await begin(world)
        await followed(world, ns, await decided(world))
        world.cut = True
        await world.edit(2, ns, retention=9)
        world.cut = False
        await world.until(lambda: world.registered(1, ns).get("retention") == 9)
        await world.until(lambda: all(world.records_agree(ns)))

    play(scene)


def test_a_region_holds_a_namespace_no_more(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        gone = await world.do(2, "remove_region", namespace="orders", to="b")
        assert gone["changed"]
        assert gone["regions"] == ["a"]
        await world.until(lambda: not world.registered(2, ns), 5.0)
        assert world.states(1, ns) == {GateState.OPEN}
        assert not (await world.do(1, "remove_region", namespace="orders", to="b"))["changed"]
        await world.until(lambda: world.leader_state(1) == world.leader_state(2))
        asked = {"namespace": "orders", "to": "b", "mode": "graceful", "request_id": "r"}
        assert "does not hold" in await refused(world, 1, "failover", **asked)
        await world.until(lambda: not world.has_all(2, ns))
        await world.do(1, "add_region", namespace="orders", to="b")
        await world.until(lambda: bool(world.registered(2, ns)))
        await world.until(lambda: world.has_all(2, ns))
        await begin(world)
        await followed(world, ns, await decided(world))

    play(scene)


def test_a_name_that_another_has_is_not_taken_from_it(play: Play) -> None:
    async def scene(world: World) -> None:
        own = await world.register(2, "orders")
        await world.register(1, "orders")
        why = await refused(world, 1, "add_region", namespace="orders", to="b")
        assert "region b has another namespace" in why
        world.cut = True
        told = await world.told(1, "add_region", namespace="orders", to="b")
        assert told.code == Code.UNAVAILABLE
        assert world.registered(2, own)["name"] == "orders"

    play(scene)


def test_one_that_was_made_before_there_were_others_gets_a_version(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.register(1, "orders", versioned=False)
        assert world.record(1, ns) is None
        assert {gates.admit(ns, Call.MUTATION).verdict for gates in world.gates(1).values()} == {
            Verdict.ALLOW
        }
        told = await world.do(1, "add_region", namespace="orders", to="b")
        assert (told["version"], told["regions"]) == (1, ["a", "b"])
        await world.until(lambda: all(world.records_agree(ns)))
        await world.until(lambda: world.has_all(2, ns))
        await begin(world)
        await followed(world, ns, await decided(world))

    play(scene)


def test_an_update_that_makes_another_region_active_waits_for_the_end(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        leader = world.leader(1)
        assert leader is not None
        operations = leader.member.administration.operations
        assert operations is not None
        await operations.make_active("orders", "b")
        assert (await decided(world)).committed == (ns,)
        with pytest.raises(NotActive, match="in region b"):
            await operations.make_active("orders", "a")

    play(scene)


def test_an_update_says_why_another_region_is_not_active(play: Play) -> None:
    async def scene(world: World) -> None:
        await world.global_default()
        world.ferrying = False
        leader = world.leader(1)
        assert leader is not None
        operations = leader.member.administration.operations
        assert operations is not None
        with pytest.raises(ServiceError, match="the time is up"):
            await operations.make_active("orders", "b")
        assert (await decided(world)).phase is Phase.ABORTED

    play(scene)


def test_shards_move_and_die_while_they_are_fenced(play: Play, rng: random.Random) -> None:
    """Any node of either region, one after the other."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await begin(world)
        for _ in range(4):
            index = rng.choice([1, 2])
            settler = rng.choice(world.settlers(index))
            settler.kill()
            await asyncio.sleep(rng.choice([0.02, 0.2, 1.5]))
            settler.boot()
            await asyncio.sleep(rng.choice([0.02, 0.5]))
        handover = await decided(world)
        await followed(world, ns, handover)

    play(scene)


def test_what_is_forced_above_a_handover_is_not_handed_over(play: Play) -> None:
    """The target is cut off from a source that fences, takes the namespace, and both hear of each other."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.ferrying = False
        await begin(world)
        await world.until(lambda: world.states(1, ns) == {GateState.FENCED})
        world.cut = True
        await world.do(2, "failover", namespace="orders", to="b", mode="forced", request_id="f", yes=True)
        await world.until(lambda: world.states(2, ns) == {GateState.OPEN})
        world.cut, world.ferrying = False, True
        handover = await decided(world)
        assert not handover.committed
        await world.until(lambda: world.states(1, ns) == {GateState.INACTIVE})
        await world.until(lambda: all(world.records_agree(ns)))
        assert world.states(2, ns) == {GateState.OPEN}

    play(scene)


def test_a_child_that_is_split_off_while_others_are_still_being_fenced(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent's marker stands for it."""
    command = Gates.command

    def all_but_one(gates: Gates, *told: Any) -> None:
        if gates._shard.group.id != 4:
            command(gates, *told)

    async def scene(world: World) -> None:
        ns = await world.global_default()
        monkeypatch.setattr(Gates, "command", all_but_one)
        await begin(world)
        await world.until(lambda: 1 in (gates := world.gates(1)) and gates[1].state(ns) is GateState.FENCED)
        await world.do(1, "split", shard=1)
        await world.until(lambda: 5 in world.gates(1), 9.0)
        await world.until(lambda: world.table(1).shards[5].state is ShardState.SERVING, 5.0)
        await asyncio.sleep(0.5)
        handover = world.handover(1)
        assert handover is not None
        assert handover.phase is Phase.FENCING, "the split came too late"
        assert world.gates(1)[5].state(ns) is GateState.FENCED
        monkeypatch.undo()
        handover = await decided(world)
        assert handover.committed == (ns,)
        assert 5 not in handover.shards
        await followed(world, ns, handover)

    play(scene)


def test_a_split_behind_the_fence_leaves_out_nobody_who_reads_the_old_shard(play: Play) -> None:
    """Region b has two shards for what is one in region a; one of them is not there yet when a's is split."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        await world.do(2, "split", shard=1)
        await world.until(lambda: 5 in world.gates(2))
        await world.until(lambda: len({record.state for record in world.table(2).shards.values()}) == 1)
        await asyncio.sleep(1.0)
        world.stalled.add((2, 5))
        for shard in world.led(1).values():
            world.outgoing(shard).write(ns)
        world.near = True
        await begin(world)
        await world.until(lambda: bool((found := world.handover(1)) and found.phase is Phase.DRAINING))
        await world.do(1, "split", shard=1)
        await world.until(lambda: len(world.table(1).shards) == 5)
        await world.until(lambda: len({record.state for record in world.table(1).shards.values()}) == 1, 8.0)
        handover = world.handover(1)
        assert handover is not None
        assert handover.phase is Phase.DRAINING, "the split came too late"
        handover = await decided(world)
        assert handover.phase is Phase.ABORTED
        world.stalled.clear()
        await followed(world, ns, handover)

    play(scene)


def test_every_node_knows_who_may_change_a_namespace(play: Play) -> None:
    async def scene(world: World) -> None:
        ns = await world.global_default()
        nodes = [settler.member.node.failover for settler in world.settlers(1)]
        for failover in nodes:
            assert failover is not None
            failover.check_edit(ns)
        await begin(world)
        await followed(world, ns, await decided(world))
        for failover in nodes:
            assert failover is not None
            with pytest.raises(NotActive):
                failover.check_edit(ns)

    play(scene)


def test_nobody_is_told_what_a_leader_without_a_majority_thinks(play: Play) -> None:
    """It proposes the decision, hears that the target has everything, and its own region does not answer."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        world.ferrying = False
        await begin(world)
        await world.until(lambda: bool((found := world.handover(1)) and found.phase is Phase.DRAINING))
        leader = world.leader(1)
        assert leader is not None
        others = [settler for settler in world.settlers(1) if settler is not leader]
        world.regions[1].network.partition([leader.host], [settler.host for settler in others])
        world.ferrying = True
        for _ in range(100):
            await asyncio.sleep(0.02)
            known = [settler.member.node.failover for settler in others]
            decided_there = any(
                one is not None and one.committed.handovers[1].phase in (Phase.COMMITTED, Phase.DONE)
                for one in known
            )
            record = world.record(2, ns)
            assert record is not None
            assert decided_there or record.version == 1
        world.regions[1].network.heal_all()
        await followed(world, ns, await decided(world))

    play(scene)


@pytest.mark.parametrize("whole", [True, False])
def test_a_region_that_comes_back_does_not_serve_what_was_taken_from_it(play: Play, whole: bool) -> None:
    """Its gates stand open as they were. It hears from the others first, or waits for them in vain."""

    async def scene(world: World) -> None:
        ns = await world.global_default()
        old = world.settlers(1)
        for settler in old:
            settler.kill()
        if whole:
            await world.do(2, "failover", namespace="orders", to="b", mode="forced", request_id="f", yes=True)
            await world.until(lambda: world.states(2, ns) == {GateState.OPEN})
        else:
            for settler in world.settlers(2):
                settler.kill()
        for settler in old:
            settler.boot()
        wrote_s: float | None = None
        began_s = world.loop.time()
        while world.loop.time() < began_s + 12.0:
            await asyncio.sleep(0.01)
            if any(world.outgoing(shard).write(ns) for shard in world.led(1).values()):
                wrote_s = world.loop.time() - began_s
                break
        if whole:
            assert wrote_s is None, "another region serves it"
            assert world.states(1, ns) == {GateState.INACTIVE}
        else:
            assert wrote_s is not None, "a dead region does not stop one that lives"
            assert wrote_s > 4.5

    play(scene)
