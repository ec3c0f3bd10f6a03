"""The next step of a group whose members are not the wanted ones."""

from __future__ import annotations

from msgspec.structs import replace

from cluster.membership import (
    META_GROUP,
    GroupReport,
    NodeHealth,
    NodeState,
    Step,
    StepKind,
    Work,
    emptied,
    plan_join,
    plan_move,
    plan_remove,
    plan_removed,
    plan_replace,
    plan_split,
    replica_steps,
)
from cluster.membership.records import row_of
from history_store.raft.configuration import Change, ChangeOp, Configuration, changed

from .conftest import Region, members, newcomer

UP = NodeHealth()
DOWN = NodeHealth(up=False)
VOTER, LEARNER, REMOVE = ChangeOp.ADD_VOTER, ChangeOp.ADD_LEARNER, ChangeOp.REMOVE


def region_wanting(*replicas: int, nodes: int = 6) -> Region:
    """Shard 1 is to have these replicas, of so many nodes."""
    region = Region(nodes, shards=1)
    region.table.apply([row_of(replace(region.table.shards[1], replicas=replicas))])
    return region


def next_step(
    region: Region, conf: Configuration, leader: int, down: tuple[int, ...] = (), behind: tuple[int, ...] = ()
) -> Step | str | None:
    """What is done about shard 1, or why nothing is."""
    health = {i: DOWN if i in down else UP for i in region.table.nodes}
    work = replica_steps(region.table, {1: GroupReport(leader, conf, frozenset(behind))}, health)
    assert len(work.steps) + len(work.waits) <= 1
    return work.steps[0] if work.steps else work.waits.get(1)


def changes(step: Step | str | None) -> tuple[Change, ...]:
    assert isinstance(step, Step), step
    assert step.change is not None
    return step.change.changes


def test_members_as_wanted_need_nothing(three: Region) -> None:
    reports = three.reports(dict.fromkeys(range(5), 1))
    assert replica_steps(three.table, reports, dict.fromkeys((1, 2, 3), UP)) == Work([], {})


def test_a_newcomer_learns_then_votes_instead_of_the_one_it_replaces() -> None:
    region = region_wanting(1, 2, 4)
    conf = members((1, 2, 3))
    step = next_step(region, conf, leader=1)
    assert isinstance(step, Step)
    assert (step.kind, step.why) == (StepKind.ADD_LEARNERS, "to catch up: n4")
    assert changes(step) == (Change(LEARNER, 4),)
    conf = members((1, 2, 3), (4,))
    assert next_step(region, conf, leader=1, behind=(4,)) == "not caught up yet: n4"
    step = next_step(region, conf, leader=1)
    assert isinstance(step, Step)
    assert (step.kind, step.why) == (StepKind.SWAP, "n4 for n3")
    assert changes(step) == (Change(VOTER, 4), Change(REMOVE, 3))
    assert step.change is not None
    joint = changed(conf, step.change)
    assert joint.auto_leave
    assert next_step(region, joint, leader=1) == "it is between two memberships"
    assert next_step(region, members((1, 2, 4)), leader=1) is None


def test_a_whole_group_moves_in_one_joint_change_and_the_leader_last() -> None:
    region = region_wanting(4, 5, 6)
    assert changes(next_step(region, members((1, 2, 3)), leader=2)) == tuple(
        Change(LEARNER, i) for i in (4, 5, 6)
    )
    learning = members((1, 2, 3), (4, 5, 6))
    assert changes(next_step(region, learning, leader=2)) == (
        *(Change(VOTER, i) for i in (4, 5, 6)),
        *(Change(REMOVE, i) for i in (1, 3, 2)),
    )
    # One of the three is down: one of the old, not the leader, keeps its vote until that is solved.
    step = next_step(region, learning, leader=2, down=(5,))
    assert changes(step) == (Change(VOTER, 4), Change(VOTER, 6), Change(REMOVE, 1), Change(REMOVE, 3))


def test_a_leader_that_is_to_go_hands_over_first() -> None:
    region = region_wanting(2, 3, 4)
    step = next_step(region, members((1, 2, 3), (4,)), leader=1)
    assert isinstance(step, Step)
    assert (step.kind, step.to, step.change) == (StepKind.TRANSFER, 2, None)
    assert step.why == "n1 is not to keep its replica"
    later = next_step(region, members((1, 2, 3), (4,)), leader=1, behind=(2,))
    assert isinstance(later, Step)
    assert later.to == 3


def test_a_single_replica_moves_though_nobody_can_take_over_before() -> None:
    region = region_wanting(2)
    assert changes(next_step(region, members((1,), (2,)), leader=1)) == (Change(VOTER, 2), Change(REMOVE, 1))


def test_one_voter_grows_to_three_in_one_change() -> None:
    region = region_wanting(1, 2, 3)
    assert changes(next_step(region, members((1,)), leader=1)) == (Change(LEARNER, 2), Change(LEARNER, 3))
    assert next_step(region, members((1,), (2, 3)), leader=1, behind=(3,)) == "not caught up yet: n3"
    assert changes(next_step(region, members((1,), (2, 3)), leader=1)) == (Change(VOTER, 2), Change(VOTER, 3))


def test_a_dead_voter_is_replaced() -> None:
    region = region_wanting(1, 2, 4)
    assert changes(next_step(region, members((1, 2, 3)), 1, down=(3,))) == (Change(LEARNER, 4),)
    assert changes(next_step(region, members((1, 2, 3), (4,)), 1, down=(3,))) == (
        Change(VOTER, 4),
        Change(REMOVE, 3),
    )


def test_nothing_is_done_that_would_cost_the_majority() -> None:
    shrinking = region_wanting(1, 2)
    assert next_step(shrinking, members((1, 2, 3)), leader=1, down=(2,)) == (
        "voters up and not behind after it: 1, needed: 2"
    )
    assert changes(next_step(shrinking, members((1, 2, 3)), leader=1, down=(3,))) == (Change(REMOVE, 3),)
    assert next_step(shrinking, members((1, 2, 3)), leader=1, down=(2, 3)) == (
        "1 of its 3 voters are up: no majority"
    )


def test_a_vote_is_not_taken_from_the_one_that_has_the_log() -> None:
    region = region_wanting(2)
    conf = members((1, 2))
    assert next_step(region, conf, leader=1, behind=(2,)) == "voters up and not behind after it: 0, needed: 1"
    step = next_step(region, conf, leader=1)
    assert isinstance(step, Step)
    assert (step.kind, step.to) == (StepKind.TRANSFER, 2)


def test_a_replacement_that_is_down_is_waited_for() -> None:
    region = region_wanting(1, 2, 4)
    assert next_step(region, members((1, 2, 3)), leader=1, down=(4,)) == "down: n4"
    assert next_step(region, members((1, 2, 3), (4,)), leader=1, down=(4,)) == "down: n4"


def test_learners_of_an_earlier_plan_are_dropped() -> None:
    region = region_wanting(1, 2, 3)
    step = next_step(region, members((1, 2, 3), (4, 5)), leader=1)
    assert isinstance(step, Step)
    assert (step.kind, step.why) == (StepKind.DROP, "not wanted any more: n4, n5")
    assert changes(step) == (Change(REMOVE, 4), Change(REMOVE, 5))


def test_an_explicit_joint_configuration_is_left() -> None:
    region = region_wanting(1, 2, 3)
    joint = Configuration(voters=(1, 2, 3), outgoing=(1, 2, 4)).check()
    step = next_step(region, joint, leader=1)
    assert isinstance(step, Step)
    assert step.kind is StepKind.LEAVE_JOINT
    assert step.change is not None
    assert changed(joint, step.change) == members((1, 2, 3))


def test_the_meta_group_is_on_every_node() -> None:
    region = Region(3)
    region.take(plan_join(region.table, newcomer(4)))
    health = dict.fromkeys(range(1, 5), UP)
    report = {META_GROUP: GroupReport(1, members((1, 2, 3)))}
    assert changes(replica_steps(region.table, report, health).steps[0]) == (Change(LEARNER, 4),)
    region.take(plan_remove(region.table, 3))
    report = {META_GROUP: GroupReport(1, members((1, 2, 3), (4,)))}
    swap = replica_steps(region.table, report, health).steps[0]
    assert changes(swap) == (Change(VOTER, 4), Change(LEARNER, 3))
    # As a learner it hears that it is removed; then it is dropped.
    region.table.apply([row_of(replace(region.table.nodes[3], state=NodeState.REMOVED))])
    report = {META_GROUP: GroupReport(1, members((1, 2, 4), (3,)))}
    assert changes(replica_steps(region.table, report, health).steps[0]) == (Change(REMOVE, 3),)


def test_few_groups_at_a_time_and_those_that_end_first() -> None:
    region = Region(3, shards=8)
    region.take(plan_replace(region.table, 3, newcomer(4)))
    old = members((1, 2, 3))
    reports = {group: GroupReport(1, old) for group in range(1, 9)}
    reports[8] = GroupReport(1, members((1, 2, 3), (4,)))
    reports[7] = GroupReport(1, members((1, 2, 3), (4,)), frozenset({4}))
    health = dict.fromkeys(range(1, 5), UP)
    work = replica_steps(region.table, reports, health, at_once=4, busy={6})
    assert [(step.group, step.kind) for step in work.steps] == [
        (8, StepKind.SWAP),
        (1, StepKind.ADD_LEARNERS),
    ]
    assert work.waits[2] == "4 groups are changing already"
    assert work.waits[7] == "not caught up yet: n4"
    assert 6 not in work.waits


def test_members_stay_while_a_split_is_under_way() -> None:
    region = Region(4, shards=1)
    leader = region.table.replicas_of(1)[0]
    outside = next(i for i in range(1, 5) if i not in region.table.replicas_of(1))
    conf = members(region.table.replicas_of(1))
    region.take(plan_split(region.table, 1))
    region.take(plan_move(region.table, 1, leader, outside))
    reports = {group: GroupReport(leader, conf) for group in (1, 2)}
    work = replica_steps(region.table, reports, dict.fromkeys(range(1, 5), UP))
    assert work == Work([], {1: "a split is under way"})


def test_a_leaving_node_is_empty_when_every_group_says_so(three: Region) -> None:
    three.take(plan_replace(three.table, 3, newcomer(4)))
    reports = three.reports(dict.fromkeys(range(5), 1))
    assert emptied(three.table, {**reports, 2: GroupReport(1, members((1, 2, 3)))}) == []
    assert emptied(three.table, {**reports, 2: GroupReport(1, members((1, 2, 4), (3,)))}) == []
    assert emptied(three.table, {g: r for g, r in reports.items() if g != 2}) == []
    assert emptied(three.table, reports) == [3]
    three.take(plan_removed(three.table, 3))
    assert emptied(three.table, reports) == []
