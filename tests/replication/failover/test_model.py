"""Failover under storms of faults, judged by I7, I9, I17 and I18; and the judges judged by broken
versions.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Collection

import pytest
from msgspec.structs import replace

from replication.failover import forced, handover
from replication.failover.commands import Fence
from replication.failover.ledger import Verdict
from replication.failover.meta import MetaState
from replication.failover.records import UNDECIDED, Gate, Handover, Marker, Phase, Source
from replication.versions import owner_of

from .model import Region, Violation, World, Write
from .storm import Storm

TURNS = 400


def play(world: Storm, turns: int = TURNS) -> None:
    world.storm(turns)
    world.heal_inside()
    world.heal()
    world.judge_end()
    world.leave_all()


@pytest.mark.parametrize("regions", [2, 3])
def test_graceful_failovers_lose_nothing_and_never_have_two_owners(rng: random.Random, regions: int) -> None:
    play(Storm(rng, regions=regions))


@pytest.mark.parametrize("regions", [2, 3])
def test_forced_failovers_converge_and_reports_are_true(rng: random.Random, regions: int) -> None:
    play(Storm(rng, regions=regions, graceful_only=False))


def test_storms_reach_what_is_rare(rng: random.Random) -> None:
    rare = {"split", "Commit", "Abort", "taken by a newer version", *(verdict.name for verdict in Verdict)}
    reached: set[str] = set()
    for _ in range(400):
        world = Storm(random.Random(rng.getrandbits(64)), regions=3, graceful_only=False)
        play(world)
        reached |= world.reached
        if rare <= reached:
            return
    pytest.fail(f"never reached: {rare - reached}")


# ---- the judges see what is broken on purpose


def seen(
    rng: random.Random, why: str, broken: str = "", *, graceful_only: bool = True, worlds: int = 300
) -> None:
    """Some world in so many violates this; each has other storms."""
    for _ in range(worlds):
        world = Storm(
            random.Random(rng.getrandbits(64)),
            regions=rng.choice([2, 3, 3]),
            graceful_only=graceful_only,
            broken=broken,
        )
        try:
            play(world)
        except Violation as violation:
            if str(violation).startswith(why):
                return
    pytest.fail(f"{worlds} worlds did not show {why}")


def test_a_shard_that_unfences_itself_at_its_deadline_is_seen(rng: random.Random) -> None:
    seen(rng, "I", "unfence by timer")


def test_an_acknowledgement_of_what_is_not_applied_is_seen(rng: random.Random) -> None:
    seen(rng, "I7: shard", "ack before applied")


def test_a_vector_with_one_point_for_each_region_is_seen(rng: random.Random) -> None:
    seen(rng, "I7: shard", "a point for each region")


def test_an_acknowledgement_of_one_of_several_shards_is_seen(rng: random.Random) -> None:
    seen(rng, "I7: shard", "one shard answers for all")


def test_a_vector_with_logs_that_never_had_a_shards_keys_is_seen(rng: random.Random) -> None:
    """No shard of the target that has these keys reads such a log: it would be waited for in vain."""
    seen(rng, "ns", "logs of others' keys")


@pytest.mark.parametrize("broken", ["", "shards that share keys now"])
def test_what_parted_after_the_fence_is_waited_for(rng: random.Random, broken: str) -> None:
    """The target's shard parted, then the source's, which was fenced: the marker is for both halves."""
    world = Storm(rng, broken=broken, namespaces=1)
    world.calm = True
    source = next(r for r in world.regions.values() if r.index == owner_of(r.state.truth("ns0")))
    target = next(r for r in world.regions.values() if r is not source)
    half, other = (frozenset(slots) for slots in ([0, 1], [2, 3]))
    shard, read = source.shards[1], Source(source.index, 1)
    shard.out.append(Write("ns0", source.index, 2))
    target.shards[4] = dataclasses.replace(target.shards[1], slots=other, applied={read: 0})
    target.shards[1].slots = half
    leader = source.leaders[-1]
    fence = Fence(1, target.index, {"ns0": source.index})
    marker = world.log(source, 1, fence).answer.marker
    assert marker is not None
    shard.slots = half
    for reader, at in ((4, 0), (4, 1), (4, 2)):
        target.shards[1].applied[read], target.shards[reader].applied[read] = 2, at
        world.ask(leader, target.index, 1, 1, marker, {})
        while world.flying:
            world.deliver()
        covers = leader.acks[1][1].applied.covers(marker, ())
        assert covers is (at == 2 or bool(broken))


def test_an_activation_before_the_commit_is_seen(rng: random.Random) -> None:
    seen(rng, "I", "activate before commit")


def test_obeying_both_commit_and_abort_is_seen(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    real = MetaState._in

    def lax(self: MetaState, number: int, *phases: Phase) -> Handover:
        decided = (Phase.COMMITTED, Phase.ABORTED) if phases[-1] in UNDECIDED else ()
        return real(self, number, *phases, *decided)

    monkeypatch.setattr(MetaState, "_in", lax)
    seen(rng, "I9: handover")


def test_a_version_that_is_not_from_the_largest_base_is_seen(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    def own_only(state: MetaState, namespace_id: str, *, shared: int, seen: int) -> int:
        return state.truth(namespace_id)

    monkeypatch.setattr(forced, "base_of", own_only)
    seen(rng, "I18", graceful_only=False)


def test_a_commit_before_the_target_has_applied_is_seen(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator counts a shard as drained once it is fenced, and the log takes its word."""

    def fenced(record: Handover, shard: int, acks: dict[int, handover.Ack]) -> bool:
        acks.setdefault(shard, handover.Ack(record.markers[shard]))
        return True

    monkeypatch.setattr(handover, "_is_drained", fenced)
    seen(rng, "I7: shard")


def test_forgetting_what_third_regions_wrote_is_seen(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A to B to C: what B got from A and C did not yet."""

    def of_source_only(self: Marker, marker: Marker, regions: Collection[int]) -> bool:
        return self.own.incarnation == marker.own.incarnation and self.own.seq >= marker.own.seq

    monkeypatch.setattr(Marker, "covers", of_source_only)
    seen(rng, "I7: shard")


def test_a_late_fence_that_is_obeyed_is_seen(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the numbers of ended handovers a fence that comes after its end stays for ever."""
    real = World.move

    def forgetful(self: World, region: Region, shard_id: int, gate: Gate) -> None:
        real(self, region, shard_id, replace(gate, ended=0))

    monkeypatch.setattr(World, "move", forgetful)
    seen(rng, "a handover is stuck")


def test_a_deadline_that_only_its_writer_can_read_is_seen(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader whose clock is minutes behind would wait for minutes."""
    real: Callable[..., handover.Steps] = handover.steps

    def trusting(record: Handover, observed: handover.Observed, now_ns: int) -> handover.Steps:
        return real(record, observed._replace(since_ns=1 << 62), now_ns)

    monkeypatch.setattr(handover, "steps", trusting)
    seen(rng, "a handover is stuck")
