"""What the leader of the source does next, phase by phase, and what it never does."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from replication.failover.commands import Abort, Begin, Close, Commit, Drain, Fence, StartFencing, Unfence
from replication.failover.gates import Answer
from replication.failover.handover import (
    Ack,
    AskAcks,
    Observed,
    Propose,
    Send,
    plan_abort,
    plan_handover,
    steps,
)
from replication.failover.readiness import Refusal, RegionView, ShardLag
from replication.failover.records import NAMESPACES_MAX, Handover, Limits, Marker, Phase, Point, Switch

from .conftest import MARKERS, NS, SHARDS, begin, draining, meta_state

SECOND = 1_000_000_000
LIMITS = Limits()
CLOSE = {shard: ShardLag(SECOND, 5) for shard in SHARDS}
FENCED = {shard: Answer(MARKERS[shard], {NS: 1}, {}) for shard in SHARDS}
ACKED = {shard: Ack(MARKERS[shard]) for shard in SHARDS}


def record(phase: Phase) -> Handover:
    markers = MARKERS if phase is Phase.DRAINING else {}
    return replace(draining().handovers[1], phase=phase, deadline_ns=100 * SECOND, markers=markers)


def plan(view: RegionView = RegionView(), *names: str, target: int = 2) -> Begin | Refusal:  # noqa: B008
    return plan_handover(
        meta_state(1, *(names or (NS,))),
        names or (NS,),
        target,
        view=view,
        shards=SHARDS,
        now_ns=7,
        request_id="r",
        operator="ann",
    )


def test_a_plan_waits_no_longer_than_its_limit() -> None:
    begun = plan()
    assert isinstance(begun, Begin)
    assert begun.deadline_ns == 7 + LIMITS.wait_ns_max
    assert meta_state().apply(begun).accepted


@pytest.mark.parametrize(
    ("view", "target", "why"),
    [
        (RegionView(reachable=False), 2, "cannot be reached"),
        (RegionView(bootstrapping=True), 2, "bootstrapping"),
        (RegionView(), 9, "its regions are"),
        (RegionView(), 1, "cannot go to region 1"),
    ],
)
def test_a_plan_is_refused(view: RegionView, target: int, why: str) -> None:
    refusal = plan(view, target=target)
    assert isinstance(refusal, Refusal)
    assert why in str(refusal)


def test_a_thousand_namespaces_go_in_one_fence_and_no_more() -> None:
    names = [f"n{i}" for i in range(NAMESPACES_MAX)]
    begun = plan(RegionView(), *names)
    assert isinstance(begun, Begin)
    fenced = steps(replace(record(Phase.FENCING), switches=begun.switches), Observed(0), 1).actions
    assert [len(a.command.versions) for a in fenced if isinstance(a, Send)] == [NAMESPACES_MAX] * len(SHARDS)
    assert isinstance(plan(RegionView(), *names, "more"), Refusal)


@pytest.mark.parametrize(
    ("observed", "why"),
    [
        (Observed(0, target=RegionView(reachable=False), lags=CLOSE), "reached"),
        (Observed(0, target=RegionView(healthy=False), lags=CLOSE), "without a leader"),
        (Observed(0, lags={1: CLOSE[1]}), "not known"),
        (Observed(0, lags={**CLOSE, 2: ShardLag(2 * SECOND + 1, 9)}), "shard 2 is 2.0 s behind"),
        (Observed(0, lags={**CLOSE, 2: ShardLag(0, 0, parked=1)}), "1 runs are parked"),
        (Observed(0, lags={**CLOSE, 2: ShardLag(0, 0, quarantined=1)}), "1 quarantined"),
    ],
)
def test_it_waits_serving_until_the_target_is_ready_and_then_gives_up(observed: Observed, why: str) -> None:
    waiting = steps(record(Phase.PREPARE), observed, SECOND)
    assert (waiting.actions, waiting.until_ns) == ([], 60 * SECOND)
    assert why in waiting.why
    late = steps(record(Phase.PREPARE), observed, 60 * SECOND)
    assert [type(a.command) for a in late.actions if isinstance(a, Propose)] == [Abort]


def test_dirty_runs_stop_nothing_if_that_is_allowed() -> None:
    dirty = replace(record(Phase.PREPARE), limits=replace(LIMITS, allow_dirty=True))
    lags = {shard: ShardLag(0, 0, parked=1) for shard in SHARDS}
    actions = steps(dirty, Observed(0, lags=lags), SECOND).actions
    assert actions == [Propose(StartFencing(1, 11 * SECOND))]


def test_every_shard_is_fenced_and_asked_again_until_it_answers() -> None:
    one = steps(record(Phase.FENCING), Observed(0, answers={1: FENCED[1]}), SECOND)
    assert one.actions == [Send(2, Fence(1, 2, {NS: 1}))]
    late = Answer(None, {NS: 1}, {})
    again = steps(record(Phase.FENCING), Observed(0, answers={1: FENCED[1], 2: late}), SECOND)
    assert again.actions == one.actions
    both = steps(record(Phase.FENCING), Observed(0, answers=FENCED), SECOND)
    assert both.actions == [Propose(Drain(1, MARKERS, {}))]


def test_shards_that_a_split_has_made_since_are_fenced_and_unfenced_too() -> None:
    fencing = steps(record(Phase.FENCING), Observed(0, answers=FENCED, shards=(1, 2, 3)), SECOND)
    assert fencing.actions == [Send(3, Fence(1, 2, {NS: 1}))]
    answers = {**FENCED, 3: Answer(Marker(Point(9, 30)), {NS: 1}, {})}
    (drain,) = steps(record(Phase.FENCING), Observed(0, answers=answers, shards=(1, 2, 3)), SECOND).actions
    assert drain == Propose(Drain(1, {**MARKERS, 3: Marker(Point(9, 30))}, {}))
    aborted = steps(record(Phase.ABORTED), Observed(0, unfenced=SHARDS, shards=(1, 2, 3)), SECOND)
    assert aborted.actions == [Send(3, Unfence(1, {NS: 1}))]


def test_it_commits_on_acknowledged_markers_not_on_fenced_shards() -> None:
    waits = steps(record(Phase.DRAINING), Observed(0, answers=FENCED), SECOND)
    assert waits.actions == [AskAcks(2, 1, MARKERS, {NS: 1})]
    commits = steps(record(Phase.DRAINING), Observed(0, hlc=9, acks=ACKED), SECOND)
    assert commits.actions == [Propose(Commit(1, MARKERS, {}, 9))]


@pytest.mark.parametrize(
    "ack",
    [
        Ack(Marker(Point(7, 19))),
        Ack(Marker(Point(8, 20))),
        Ack(MARKERS[2], dirty=1),
    ],
)
def test_an_acknowledgement_that_does_not_count_is_asked_for_again(ack: Ack) -> None:
    waits = steps(record(Phase.DRAINING), Observed(0, acks={**ACKED, 2: ack}), SECOND)
    assert waits.actions == [AskAcks(2, 1, {2: MARKERS[2]}, {NS: 1})]


def test_what_shards_and_target_know_better_is_in_the_proposals() -> None:
    answers = {**FENCED, 2: Answer(MARKERS[2], {NS: 1, "other": 5}, {})}
    two = replace(record(Phase.FENCING), switches=plan_switches())
    answers[1] = Answer(MARKERS[1], {NS: 1, "b": 3}, {})
    assert steps(two, Observed(0, answers=answers), 1).actions == [Propose(Drain(1, MARKERS, {"b": 3}))]
    acks = {**ACKED, 1: Ack(MARKERS[1], newer={"b": 102})}
    two = replace(record(Phase.DRAINING), switches=plan_switches())
    assert steps(two, Observed(0, acks=acks), 1).actions == [Propose(Commit(1, MARKERS, {"b": 102}, 0))]


def plan_switches() -> tuple[Switch, ...]:
    return begin(1, NS, "b").switches


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.FENCING, Phase.DRAINING])
def test_the_deadline_aborts_and_so_does_the_loss_of_everything(phase: Phase) -> None:
    late = steps(record(phase), Observed(0), 60 * SECOND)
    taken = steps(record(phase), Observed(0, lags=CLOSE, taken=[NS]), SECOND)
    for found in (late, taken):
        assert [type(a.command) for a in found.actions if isinstance(a, Propose)] == [Abort]


@pytest.mark.parametrize("skew", [-600 * SECOND, 600 * SECOND])
def test_a_new_leader_with_another_clock_ends_no_later_than_its_own_limit(skew: int) -> None:
    """The deadline, 100 s by the clock of who wrote it, is minutes away by this one's, or long past."""
    since = 95 * SECOND + skew
    now = since + LIMITS.fence_ns_max
    found = steps(record(Phase.DRAINING), Observed(since), now)
    assert [type(a.command) for a in found.actions if isinstance(a, Propose)] == [Abort]


def test_changes_of_leader_do_not_prolong_a_deadline() -> None:
    waits = steps(record(Phase.DRAINING), Observed(99 * SECOND), 99 * SECOND)
    assert waits.until_ns == 100 * SECOND
    late = steps(record(Phase.DRAINING), Observed(99 * SECOND), 100 * SECOND)
    assert [type(a.command) for a in late.actions if isinstance(a, Propose)] == [Abort]


def test_an_aborted_one_unfences_every_shard_fenced_or_not() -> None:
    aborted = record(Phase.ABORTED)
    first = steps(aborted, Observed(0), SECOND)
    assert first.actions == [Send(shard, Unfence(1, {NS: 1})) for shard in SHARDS]
    assert first.until_ns == 0
    assert steps(aborted, Observed(0, unfenced=SHARDS), SECOND).actions == [Propose(Close(1))]
    assert not steps(replace(aborted, closed=True), Observed(0), SECOND).actions


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.FENCING, Phase.DRAINING, Phase.COMMITTED, Phase.DONE])
@pytest.mark.parametrize("now", [0, 10**18])
def test_nothing_but_the_decision_abort_unfences(phase: Phase, now: int) -> None:
    for observed in (Observed(0), Observed(0, answers=FENCED, acks=ACKED, lags=CLOSE, taken=[NS])):
        actions = steps(record(phase), observed, now).actions
        assert not [a for a in actions if isinstance(a, Send) and isinstance(a.command, Unfence)]


def test_a_committed_one_never_comes_back_and_ends_when_it_is_followed() -> None:
    committed = record(Phase.COMMITTED)
    assert steps(committed, Observed(0), 10**18).actions == []
    assert steps(committed, Observed(0, followed=True), 0).actions == [Propose(Close(1))]
    assert isinstance(plan_abort(committed, ""), Refusal)
    assert plan_abort(record(Phase.DRAINING), "no") == Abort(1, "no")
