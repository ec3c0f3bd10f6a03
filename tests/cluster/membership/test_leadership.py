"""Leaders are spread evenly, and leave nodes that go, are slow or overloaded."""

from __future__ import annotations

import random
from collections import Counter

from msgspec.structs import replace

from cluster.membership import (
    GroupReport,
    NodeHealth,
    Refusal,
    Transfer,
    leader_moves,
    plan_drain,
    plan_join,
    plan_move,
    plan_split,
    plan_transfer,
)
from cluster.membership.records import row_of
from history_store.raft.configuration import Configuration

from .conftest import Region, members, newcomer

UP = NodeHealth()
FINE = {1: UP, 2: UP, 3: UP}


def spread(*counts: int) -> dict[int, int]:
    """Groups from 0 on, led by node 1 (so many), node 2 (so many), ..."""
    leaders = [node for node, count in enumerate(counts, start=1) for _ in range(count)]
    return dict(enumerate(leaders))


def targets(moves: list[Transfer]) -> list[int]:
    return [move.to for move in moves]


def test_level_leaders_stay() -> None:
    region = Region(3, shards=7)
    assert leader_moves(region.table, region.reports(spread(3, 3, 2)), FINE) == []


def test_after_a_restart_a_node_gets_its_share_back_a_few_at_a_time() -> None:
    region = Region(3, shards=8)
    leaders = spread(5, 4, 0)
    moves = leader_moves(region.table, region.reports(leaders), FINE, at_once=2)
    assert targets(moves) == [3, 3]
    assert moves[0].why == "n1 leads 5 groups and n3 0"
    pending = {move.group: move.to for move in moves}
    more = leader_moves(region.table, region.reports(leaders), FINE, pending=pending, at_once=3)
    assert targets(more) == [3]
    assert not pending.keys() & {move.group for move in more}
    assert leader_moves(region.table, region.reports(leaders), FINE, pending=pending, at_once=2) == []


def test_a_draining_node_gives_everything_away_evenly() -> None:
    region = Region(3, shards=8)
    region.take(plan_drain(region.table, 1))
    moves = leader_moves(region.table, region.reports(spread(3, 3, 3)), FINE)
    assert Counter(targets(moves)) == {2: 2, 3: 1}
    assert {move.why for move in moves} == {"n1 is draining"}


def test_a_node_that_is_being_stopped_need_not_be_in_the_table_as_draining() -> None:
    region = Region(3)
    moves = leader_moves(
        region.table, region.reports(spread(1, 2, 2)), {**FINE, 1: UP._replace(draining=True)}
    )
    assert [move.group for move in moves] == [0]


def test_nobody_is_given_a_group_whose_log_he_lacks_or_while_he_is_down() -> None:
    region = Region(3, shards=2)
    region.take(plan_drain(region.table, 1))
    reports = region.reports(spread(3, 0, 0), behind={2})
    assert targets(leader_moves(region.table, reports, FINE)) == [3, 3, 3]
    assert leader_moves(region.table, reports, {**FINE, 3: NodeHealth(up=False)}) == []
    assert leader_moves(region.table, reports, {1: UP, 2: UP}) == []


def test_a_leader_that_is_down_is_not_asked() -> None:
    region = Region(3, shards=8)
    reports = region.reports(spread(9, 0, 0))
    assert leader_moves(region.table, reports, {**FINE, 1: NodeHealth(up=False)}) == []


def test_a_slow_node_leads_nothing_if_others_are_better() -> None:
    region = Region(3, shards=2)
    slow = {**FINE, 1: UP._replace(slow=True)}
    moves = leader_moves(region.table, region.reports(spread(1, 1, 1)), slow)
    assert [move.why for move in moves] == ["n1 is slow"]
    all_slow = dict.fromkeys(FINE, UP._replace(slow=True))
    assert leader_moves(region.table, region.reports(spread(3, 0, 0)), all_slow) == []


def test_the_meta_group_is_not_moved_for_evenness() -> None:
    region = Region(3, shards=8)
    moves = leader_moves(region.table, region.reports(spread(9, 0, 0)), FINE)
    assert len(moves) == 4
    assert 0 not in {move.group for move in moves}


def test_who_cannot_talk_to_all_leads_nothing_if_somebody_can() -> None:
    """The first and the third are cut off from each other; the second talks to both."""
    region = Region(3, shards=5)
    reports = region.reports(spread(2, 2, 2))
    deaf = UP._replace(deaf=1)
    cut = {1: deaf._replace(cut_off=True), 2: UP, 3: deaf._replace(cut_off=True)}
    moves = leader_moves(region.table, reports, cut)
    assert [move.to for move in moves] == [2, 2, 2, 2]
    assert {move.why for move in moves} == {"n1 is cut off from others", "n3 is cut off from others"}
    assert leader_moves(region.table, region.reports(spread(0, 6, 0)), cut) == [], "nor gets it back"
    assert leader_moves(region.table, reports, {1: deaf, 2: UP, 3: deaf}) == [], "one may have just come"
    assert leader_moves(region.table, reports, dict.fromkeys(FINE, cut[1])) == [], "nobody is better off"


def test_an_overloaded_node_sheds_one_at_a_time_and_does_not_get_it_back_at_once() -> None:
    region = Region(3, shards=8)
    hot = {1: UP._replace(load=0.95), 2: UP._replace(load=0.3), 3: UP._replace(load=0.4)}
    moves = leader_moves(region.table, region.reports(spread(3, 3, 3)), hot)
    assert [move.why for move in moves] == ["n1 is overloaded"]
    assert moves[0].group != 0
    cooler = {**hot, 1: UP._replace(load=0.8)}
    assert leader_moves(region.table, region.reports(spread(2, 4, 3)), cooler) == []


def test_an_overloaded_node_does_not_shed_to_one_that_leads_more_than_its_share() -> None:
    region = Region(3, shards=8)
    hot = {1: UP._replace(load=0.95), 2: UP, 3: UP._replace(load=0.75)}
    assert leader_moves(region.table, region.reports(spread(2, 4, 3)), hot) == []
    assert len(leader_moves(region.table, region.reports(spread(3, 3, 3)), hot)) == 1


def test_a_single_hot_group_is_not_passed_around() -> None:
    region = Region(3, shards=2)
    hot = {1: UP._replace(load=1.0), 2: UP, 3: UP}
    assert leader_moves(region.table, region.reports(spread(1, 1, 1)), hot) == []


def test_a_busy_node_is_not_given_more_for_evenness() -> None:
    region = Region(3, shards=8)
    busy = {**FINE, 3: UP._replace(load=0.75)}
    moves = leader_moves(region.table, region.reports(spread(6, 3, 0)), busy)
    assert set(targets(moves)) == {2}


def test_a_group_between_two_memberships_and_one_that_is_split_are_left_alone() -> None:
    region = Region(3, shards=4)
    region.take(plan_split(region.table, 1))
    region.take(plan_drain(region.table, 1))
    reports = {g: r for g, r in region.reports(dict.fromkeys(range(3), 1)).items() if g}
    joint = Configuration(voters=(1, 2), outgoing=(1, 2, 3), auto_leave=True).check()
    reports[2] = reports[2]._replace(conf=joint)
    assert leader_moves(region.table, reports, FINE) == []


def test_a_voter_that_is_to_go_is_given_nothing() -> None:
    region = Region(4, shards=1)
    outside = next(i for i in range(1, 5) if i not in region.table.replicas_of(1))
    conf = members(region.table.replicas_of(1))
    leader, going, stays = region.table.replicas_of(1)
    region.take(plan_move(region.table, 1, going, outside))
    health = dict.fromkeys(range(1, 5), UP) | {leader: UP._replace(draining=True)}
    assert targets(leader_moves(region.table, {1: GroupReport(leader, conf)}, health)) == [stays]


def test_leaders_pass_along_a_chain_when_there_is_no_direct_way() -> None:
    """n1 shares groups with n2 only, and n2 with n3."""
    region = Region(3, shards=6, replicas=2)
    pairs = {group: (1, 2) if group < 4 else (2, 3) for group in range(1, 7)}
    region.table.apply([row_of(replace(region.table.shards[g], replicas=pair)) for g, pair in pairs.items()])
    leaders = {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}
    reports = {g: GroupReport(leaders[g], members(pair)) for g, pair in pairs.items()}
    moves = leader_moves(region.table, reports, FINE)
    assert [(move.group, move.to) for move in moves] == [(4, 3), (1, 2)]


def test_an_operator_chooses_a_leader_that_can() -> None:
    region = Region(3, shards=1)
    conf = members(region.table.replicas_of(1))
    leader, heir, late = region.table.replicas_of(1)
    reports = {1: GroupReport(leader, conf, frozenset({late}))}
    assert plan_transfer(region.table, reports, FINE, 1, heir) == Transfer(1, heir, "asked for")
    assert plan_transfer(region.table, reports, FINE, 1, leader) is None
    refused = plan_transfer(region.table, reports, FINE, 1, late)
    assert isinstance(refused, Refusal)
    assert refused.do == f"choose one of: n{heir}"
    for health in (NodeHealth(up=False), NodeHealth(draining=True)):
        assert isinstance(plan_transfer(region.table, reports, FINE | {heir: health}, 1, heir), Refusal)
    assert isinstance(plan_transfer(region.table, {}, FINE, 1, heir), Refusal)


def test_any_leaders_get_level_and_then_stay(rng: random.Random) -> None:
    """With level replicas of three, leaders can always be level within one; never more moves than leaders."""
    nodes = rng.randint(3, 9)
    region = Region(3, shards=rng.randint(1, 60))
    for number in range(4, nodes + 1):
        region.take(plan_join(region.table, newcomer(number)))
    health = dict.fromkeys(range(1, nodes + 1), UP)
    favourite = rng.randint(1, nodes)
    leaders = {
        group: favourite if favourite in wanted and rng.random() < 0.7 else rng.choice(wanted)
        for group, wanted in region.wanted().items()
    }
    done = 0
    while moves := leader_moves(region.table, region.reports(leaders), health, at_once=rng.randint(1, 5)):
        for move in moves:
            if rng.random() < 0.8:  # some hand-overs come to nothing
                leaders[move.group] = move.to
                done += 1
    counts = Counter(leaders.values())
    by_node = [counts[i] for i in health]
    assert max(by_node) - min(by_node) <= 1, by_node
    assert done <= 2 * len(leaders)
