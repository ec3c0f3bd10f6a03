"""After a version rose: shards are told until they confirm, regions until they acknowledge."""

from __future__ import annotations

from replication.failover.commands import Activate, Commit, Deactivate, Learn, Settle, ShardCommand, Told
from replication.failover.handover import Propose, Send
from replication.failover.meta import MetaState
from replication.failover.records import Point, Source
from replication.failover.switching import (
    Notify,
    Observed,
    Position,
    WriteLedger,
    acknowledge,
    plan_learn,
    settled_everywhere,
    switching_steps,
)

from .conftest import MARKERS, NS, SHARDS, draining, meta_state, row

TOLD = {1: {NS: 99999}, 2: {NS: 99999}, 3: {NS: 99999}}
CUT = {Source(1, 1): Point(7, 4)}


def sends(state: MetaState, observed: Observed) -> list[Send]:
    return [action for action in switching_steps(state, observed) if isinstance(action, Send)]


def test_the_owner_activates_and_the_others_deactivate() -> None:
    followers: dict[int, ShardCommand] = {
        1: Deactivate({NS: 2}),
        2: Activate({NS: 2}),
        3: Deactivate({NS: 2}),
    }
    for region, command in followers.items():
        state = meta_state(region)
        state.apply(Learn({}, (row(2, base=1),)))
        assert sends(state, Observed(SHARDS)) == [Send(1, command), Send(2, command)]


def test_a_version_that_was_only_seen_is_no_activation() -> None:
    state = meta_state(2)
    state.apply(Learn({NS: 2}))
    seen = {(1, NS): Position(2, None), (2, NS): Position(2, CUT)}
    assert sends(state, Observed(SHARDS, seen)) == [Send(1, Activate({NS: 2}))]


def test_when_all_shards_have_confirmed_it_is_settled_with_the_cut() -> None:
    state = meta_state(2)
    state.apply(Learn({NS: 2}))
    observed = Observed(SHARDS, {(s, NS): Position(2, CUT) for s in SHARDS})
    settle = Settle({NS: 2}, {1: CUT, 2: CUT})
    assert Propose(settle) in switching_steps(state, observed)
    state.apply(settle)
    assert not sends(state, observed)


def test_a_region_that_is_not_active_settles_without_a_cut() -> None:
    state = meta_state(3)
    state.apply(Learn({NS: 2}))
    observed = Observed(SHARDS, {(s, NS): Position(2, None) for s in SHARDS})
    assert not sends(state, observed)
    assert Propose(Settle({NS: 2}, {})) in switching_steps(state, observed)


def test_every_region_is_told_until_its_ledger_has_it() -> None:
    state = meta_state(2)
    new = row(2, base=1)
    state.apply(Learn({}, (new,)))
    actions = switching_steps(state, Observed(SHARDS, acknowledged={3: {NS: 2}, 1: {NS: 1}}))
    assert Notify(1, (new,)) in actions
    assert Propose(Told(3, {NS: 2})) in actions
    assert WriteLedger((new,)) in actions
    state.apply(Told(3, {NS: 2}))
    actions = switching_steps(state, Observed(SHARDS, written={NS: 2}))
    assert [a.region for a in actions if isinstance(a, Notify)] == [1]
    assert not [a for a in actions if isinstance(a, WriteLedger)]


def test_a_region_acknowledges_rows_not_versions_it_has_only_seen() -> None:
    state = meta_state(3)
    state.apply(Learn({NS: 2}))
    assert acknowledge(state, [NS, "unknown"]) == {NS: 1}
    learn = plan_learn(state, [row(1), row(2, base=1), row(2, "unknown")])
    assert learn == Learn({}, (row(2, base=1),))
    state.apply(learn)
    assert acknowledge(state, [NS]) == {NS: 2}
    assert plan_learn(state, [row(2, base=1)]) is None


def test_what_anybody_has_seen_is_learnt_by_the_meta_group() -> None:
    state = meta_state(1)
    actions = switching_steps(state, Observed(SHARDS, acknowledged=TOLD, seen={NS: 102, "unknown": 5}))
    assert actions[0] == Propose(Learn({NS: 102}))
    assert Propose(Learn({})) not in switching_steps(state, Observed(SHARDS, seen={NS: 1}))


def test_a_commit_is_followed_when_our_shards_and_the_target_know() -> None:
    state = draining()
    state.apply(Commit(1, MARKERS, {}, 5))
    assert not settled_everywhere(state, state.handovers[1])
    state.apply(Settle({NS: 2}, {}))
    assert not settled_everywhere(state, state.handovers[1])
    state.apply(Told(2, {NS: 2}))
    assert settled_everywhere(state, state.handovers[1])
