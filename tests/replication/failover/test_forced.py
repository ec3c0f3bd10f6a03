"""Forced failover: what the operator is told, the version, and when hybrid becomes forced."""

from __future__ import annotations

import pytest

from replication.failover.commands import Abort, Commit, Fence, Force, Learn
from replication.failover.forced import (
    DRAIN_NS_MAX,
    HYBRID_NS_MAX,
    Hybrid,
    assess,
    hybrid_next,
    is_drained,
    plan_bump,
    plan_force,
)
from replication.failover.meta import MetaState
from replication.failover.readiness import Lag, Refusal, RegionView, ShardLag, failback_unready, lag_of
from replication.failover.records import Marker, Mode, Point, Source, Switch

from .conftest import MARKERS, NS, SHARDS, draining, meta_state

SECOND = 1_000_000_000
NONE = lag_of(SHARDS, {s: ShardLag(0, 0) for s in SHARDS})
SOME = lag_of(SHARDS, {1: ShardLag(SECOND, 3), 2: ShardLag(4 * SECOND, 5)})
MUCH = lag_of(SHARDS, {1: ShardLag(SECOND, 3), 2: ShardLag(6 * SECOND, 5)})
UNKNOWN = lag_of(SHARDS, {1: ShardLag(SECOND, 3)})
DIRTY = lag_of(SHARDS, {1: ShardLag(0, 0, parked=2), 2: ShardLag(0, 0, quarantined=1)})


def force(state: MetaState, *, shared: int = 0, seen: int = 0) -> Force | Refusal:
    return plan_force(state, [NS], shared={NS: shared}, seen={NS: seen}, cut=MARKERS, hlc=5, operator="ann")


@pytest.mark.parametrize(
    ("lag", "needs_yes", "line"),
    [
        (SOME, False, "8 entries are not applied; shard 2 is 4.0 s behind"),
        (MUCH, True, "shard 2 is 6.0 s behind"),
        (UNKNOWN, True, "of shards [2] it is not known"),
        (DIRTY, True, "2 runs are parked and 1 quarantined"),
    ],
)
def test_the_operator_is_told_what_may_be_lost(lag: Lag, needs_yes: bool, line: str) -> None:
    found = assess(lag, RegionView(), versions={NS: 1}, fences={}, applied={}, regions=())
    assert (found.refusal, found.needs_yes) == (None, needs_yes)
    assert any(line in told for told in found.lines)


def fence(shard: int, number: int = 1) -> Fence:
    """As the outgoing log of a shard of region 1 has it: region 3's shard has parted."""
    had = {Source(2, shard): Point(5, 5), Source(3, shard): Point(6, 60), Source(3, 4): Point(8, 65)}
    return Fence(number, 2, {NS: 1}, Marker(Point(7, 10 * shard), had))


HERE = {s: Marker(Point(7, 10 * s), {Source(3, s): Point(6, 61), Source(3, 4): Point(8, 65)}) for s in SHARDS}
BEHIND = Marker(Point(7, 20), {Source(3, 2): Point(6, 61), Source(3, 4): Point(8, 64)})


def test_nothing_is_lost_only_if_all_that_was_fenced_is_here() -> None:
    all_fenced = {1: fence(1), 2: fence(2)}
    for lag, fences, applied, zero in [
        (NONE, all_fenced, HERE, True),
        (NONE, {1: fence(1), 2: None}, HERE, False),
        (NONE, {1: fence(1), 2: fence(2, number=2)}, HERE, False),
        (NONE, {1: None, 2: None}, HERE, False),
        (NONE, {}, {}, False),
        (NONE, all_fenced, {**HERE, 2: BEHIND}, False),
        (NONE, all_fenced, {**HERE, 2: Marker(Point(7, 19), HERE[2].others)}, False),
        (NONE, all_fenced, {1: HERE[1]}, False),
        (SOME, all_fenced, HERE, False),
        (UNKNOWN, all_fenced, HERE, False),
        (DIRTY, all_fenced, HERE, False),
    ]:
        lines = assess(lag, RegionView(), versions={NS: 1}, fences=fences, applied=applied, regions=[3]).lines
        assert ("nothing is lost" in lines[0]) == zero
    told = assess(
        NONE, RegionView(), versions={NS: 1}, fences=all_fenced, applied={**HERE, 2: BEHIND}, regions=[]
    )
    assert "nothing is lost" in told.lines[0]


@pytest.mark.parametrize("versions", [{"other": 1}, {NS: 1, "other": 1}, {NS: 101}])
def test_a_fence_of_another_namespace_or_version_says_nothing(versions: dict[str, int]) -> None:
    """Their source may serve them still."""
    fences = {1: fence(1), 2: fence(2)}
    told = assess(NONE, RegionView(), versions=versions, fences=fences, applied=HERE, regions=[3])
    assert "nothing is lost" not in told.lines[0]


@pytest.mark.parametrize("own", [RegionView(healthy=False), RegionView(bootstrapping=True)])
def test_an_unfit_target_refuses(own: RegionView) -> None:
    assert assess(NONE, own, versions={}, fences={}, applied={}, regions=()).refusal is not None


def test_draining_ends_with_the_last_entry_or_the_time() -> None:
    assert is_drained(NONE, 0, 1)
    assert not is_drained(UNKNOWN, 0, DRAIN_NS_MAX - 1)
    assert is_drained(UNKNOWN, 0, DRAIN_NS_MAX)


@pytest.mark.parametrize(
    ("own", "shared", "seen", "version"),
    [(1, 0, 0, 2), (3, 0, 0, 102), (1, 3, 0, 102), (1, 0, 3, 102), (1, 3, 201, 202)],
)
def test_the_base_is_the_largest_version_known(own: int, shared: int, seen: int, version: int) -> None:
    state = meta_state(2)
    state.apply(Learn({NS: own}))
    plan = force(state, shared=shared, seen=seen)
    assert isinstance(plan, Force)
    assert plan.switches == (Switch(NS, max(own, shared, seen), version),)
    assert state.apply(plan).accepted
    again = force(state)
    assert isinstance(again, Refusal)
    assert "active already" in again.why


def test_a_region_that_does_not_hold_the_namespace_refuses() -> None:
    assert isinstance(force(meta_state(2, regions=(1, 3))), Refusal)


def test_after_a_restore_what_is_active_here_gets_a_version_never_used() -> None:
    state = meta_state(1, "a", "b", "c")
    state.apply(Learn({"b": 2}))
    plan = plan_bump(state, shared={"a": 101}, seen={"c": 103}, hlc=1, operator="restore")
    assert plan is not None
    assert (plan.mode, plan.switches) == (Mode.BUMP, (Switch("a", 101, 201),))
    assert state.apply(plan).accepted


def test_hybrid_forces_when_the_source_aborted_or_does_not_answer() -> None:
    undecided, aborted, committed = draining(), draining(), draining()
    aborted.apply(Abort(1, ""))
    committed.apply(Commit(1, MARKERS, {}, 1))

    def verdict(state: MetaState | None, answers: bool = True, now_ns: int = 0) -> Hybrid:
        handover = state.handovers[1] if state is not None else None
        return hybrid_next(handover, source_answers=answers, began_ns=0, now_ns=now_ns)

    assert verdict(committed, answers=False) is Hybrid.DONE
    assert verdict(aborted) is Hybrid.FORCE
    assert verdict(undecided) is Hybrid.WAIT
    assert verdict(undecided, answers=False) is Hybrid.FORCE
    assert verdict(None, answers=False) is Hybrid.FORCE
    assert verdict(None) is Hybrid.WAIT
    assert verdict(undecided, now_ns=2 * HYBRID_NS_MAX) is Hybrid.FORCE


def test_forced_after_an_unheard_commit_is_the_same_failover() -> None:
    source, target = draining(), meta_state(2)
    plan = force(target)
    assert isinstance(plan, Force)
    source.apply(Commit(1, MARKERS, {}, 1))
    target.apply(plan)
    assert source.truth(NS) == target.truth(NS) == 2


def test_failback_waits_for_the_old_tail_the_lag_and_clean_runs() -> None:
    assert not failback_unready(RegionView(), NONE, {1: 0})
    assert "3 entries" in failback_unready(RegionView(), NONE, {1: 3})[0]
    assert failback_unready(RegionView(), SOME, {})
    assert failback_unready(RegionView(), DIRTY, {})
    assert failback_unready(RegionView(reachable=False), NONE, {})
