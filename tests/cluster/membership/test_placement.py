"""Nodes come and go; shards are split and moved. Examples first, then any order of them."""

from __future__ import annotations

import random

from msgspec.structs import replace

from cluster.membership import (
    FORMATS,
    META_GROUP,
    Move,
    NodeState,
    Plan,
    Refusal,
    ShardState,
    Table,
    first_table,
    initial_ids,
    plan_announce,
    plan_drain,
    plan_formats,
    plan_join,
    plan_move,
    plan_rebalance,
    plan_remove,
    plan_removed,
    plan_replace,
    plan_replicas,
    plan_resume,
    plan_split,
    plan_split_abandoned,
    plan_split_done,
    preferred_leader,
)
from cluster.membership.records import row_of

from .conftest import RACKS, Region, newcomer


def shard_moves(plan: Plan) -> list[Move]:
    return [move for move in plan.moves if move.group != META_GROUP]


# ---------------------------------------------------------------------------------------- bootstrap


def test_all_first_nodes_compute_the_same_rows(rng: random.Random) -> None:
    nodes = [newcomer(i) for i in range(1, 6)]
    plans = []
    for _ in range(3):
        rng.shuffle(nodes)
        plans.append(first_table(nodes, 16, 3, "cluster-1", "a", created_ns=1))
    assert plans[0] == plans[1] == plans[2]
    assert initial_ids(node.name for node in nodes) == {f"n{i}": i for i in range(1, 6)}


def test_three_nodes_hold_everything_and_are_preferred_evenly() -> None:
    region = Region(3, shards=8)
    assert all(sorted(wanted) == [1, 2, 3] for wanted in region.wanted().values())
    preferred = [preferred_leader(region.table, group) for group in region.table.groups()]
    assert sorted(preferred) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert region.table.shards[5].first == region.table.shards[5].replicas


def test_fewer_nodes_than_replicas_begin_with_what_is_there() -> None:
    for nodes in (1, 2):
        plan = first_table([newcomer(i + 1) for i in range(nodes)], 4, 3, "c", "a", 1)
        assert isinstance(plan, Plan)
        assert "(of 3 wanted: there are no more machines)" in plan.why
        assert {len(Table(plan.rows).replicas_of(g)) for g in range(5)} == {nodes}  # type: ignore[arg-type]


def test_two_nodes_of_one_machine_never_hold_the_same_shard() -> None:
    region = Region(4, shards=8, machines="aabc")
    assert all(not {1, 2} <= set(wanted) for wanted in region.wanted().values())
    assert region.load() == {1: 4, 2: 4, 3: 8, 4: 8}
    assert {len(wanted) for wanted in Region(3, machines="aab").wanted().values()} == {2}


def test_nodes_of_one_name_or_address_make_no_region() -> None:
    refused = first_table([newcomer(1), newcomer(1)], 4, 3, "c", "a", 1)
    assert isinstance(refused, Refusal)
    assert "names of their own" in refused.why


# --------------------------------------------------------------------------------------------- join


def test_a_second_and_a_third_node_complete_the_replicas() -> None:
    region = Region(1)
    plan = region.take(plan_join(region.table, newcomer(2)))
    assert plan.moves == [Move(group, 0, 2) for group in range(5)]
    region.take(plan_join(region.table, newcomer(3)))
    assert all(sorted(wanted) == [1, 2, 3] for wanted in region.wanted().values())
    preferred = [preferred_leader(region.table, group) for group in range(5)]
    assert max(map(preferred.count, (1, 2, 3))) <= 2


def test_a_fourth_node_takes_its_share_and_nothing_else_moves() -> None:
    region = Region(3, shards=8)
    plan = region.take(plan_join(region.table, newcomer(4)))
    assert region.load() == {1: 6, 2: 6, 3: 6, 4: 6}
    assert len(plan.moves) == 6
    assert {move.target for move in plan.moves} == {4}


def test_a_name_or_address_that_is_taken_is_refused(three: Region) -> None:
    assert str(plan_join(three.table, newcomer(2))) == (
        "n2 is in the region already, as node 2: give the new node another name, or remove the old one first"
    )
    same_address = replace(newcomer(9), peers_address="10.0.0.1:7240")
    assert "10.0.0.1:7240 is the address of n1" in str(plan_join(three.table, same_address))


# ---------------------------------------------------------------------------- drain, remove, replace


def test_draining_moves_no_replica_and_can_be_ended(three: Region) -> None:
    plan = three.take(plan_drain(three.table, 2))
    assert plan.moves == []
    assert three.table.nodes[2].state is NodeState.DRAINING
    assert all(preferred_leader(three.table, group) != 2 for group in three.table.groups())
    three.take(plan_resume(three.table, 2))
    assert three.table.nodes[2].state is NodeState.ACTIVE
    assert three.take(plan_resume(three.table, 2)).rows == []


def test_the_last_node_that_could_lead_does_not_drain() -> None:
    region = Region(2)
    region.take(plan_drain(region.table, 1))
    assert str(plan_drain(region.table, 2)) == (
        "nobody but n2 could lead the meta group: end another node's draining or add a node first, or --force"
    )
    region.take(plan_drain(region.table, 2, force=True))


def test_one_of_three_cannot_be_removed_without_a_fourth(three: Region) -> None:
    refused = plan_remove(three.table, 3)
    assert str(refused) == "replicas would be 2 of 3: add a node first, or --force"
    assert str(plan_drain(three.table, 3, evacuate=True)) == str(refused)
    three.take(plan_remove(three.table, 3, force=True))
    assert all(sorted(wanted) == [1, 2] for wanted in three.wanted().values())


def test_a_node_on_a_machine_that_has_replicas_already_is_no_help() -> None:
    region = Region(4, machines="aabc")
    assert str(plan_remove(region.table, 3)) == (
        "replicas would be 2 of 3: add a node on another machine first, or --force"
    )
    region.take(plan_remove(region.table, 1))
    assert region.load() == {2: 4, 3: 4, 4: 4}


def test_the_only_replica_is_not_given_up_by_force() -> None:
    assert str(plan_remove(Region(1).table, 1, force=True)) == (
        "n1 has the only replica of the meta group: add a node first"
    )


def test_a_node_that_is_down_is_given_nothing() -> None:
    region = Region(5, shards=10)
    plan = region.take(plan_remove(region.table, 1, down={5}))
    assert plan.moves
    assert all(move.target != 5 for move in plan.moves)


def test_a_removal_chooses_homes_so_that_nothing_else_need_move() -> None:
    """Shard 2 may go to n3 or n4, shard 3 to n2 or n3: with the first choice for both, another would move."""
    region = Region(4, shards=3, replicas=2)
    for group, pair in ((1, (2, 3)), (2, (1, 2)), (3, (1, 4))):
        region.table.apply([row_of(replace(region.table.shards[group], replicas=pair))])
    plan = region.take(plan_remove(region.table, 1))
    assert shard_moves(plan) == [Move(2, 1, 4), Move(3, 1, 3)]
    assert region.load() == {2: 2, 3: 2, 4: 2}


def test_removed_for_ever_when_it_is_empty(three: Region) -> None:
    three.take(plan_join(three.table, newcomer(4)))
    assert "not leaving" in str(plan_removed(three.table, 1))
    three.take(plan_remove(three.table, 1))
    assert three.table.nodes[1].state is NodeState.LEAVING
    three.take(plan_removed(three.table, 1))
    assert str(plan_resume(three.table, 1)) == "n1 was removed: choose another node"
    assert three.take(plan_join(three.table, newcomer(1))).why == "n1 joins"
    assert three.table.node_named("n1") == three.table.nodes[5]


def test_a_replacement_takes_over_exactly_what_the_old_one_had(three: Region) -> None:
    before = three.wanted()
    plan = three.take(plan_replace(three.table, 2, newcomer(4)))
    assert plan.moves == [Move(group, 2, 4) for group in range(5)]
    assert three.wanted() == {
        group: tuple(4 if i == 2 else i for i in wanted) for group, wanted in before.items()
    }
    assert three.table.nodes[2].state is NodeState.LEAVING


def test_a_replacement_on_the_same_machine() -> None:
    region = Region(3, machines="abc")
    region.take(plan_replace(region.table, 2, newcomer(4, "b")))
    assert str(plan_replace(region.table, 1, newcomer(5, "b"))).startswith("replicas would be 2 of 3")


def test_an_active_node_replaces_another_where_it_can() -> None:
    region = Region(4, shards=8)
    region.take(plan_replace(region.table, 2, 4))
    assert region.load() == {1: 8, 3: 8, 4: 8}
    assert "cannot take anything over" in str(plan_replace(region.table, 1, 2))
    assert "there is no node 9" in str(plan_replace(region.table, 9, 1))


def test_a_restarted_node_may_have_moved(three: Region) -> None:
    moved = replace(newcomer(2), id=2, peers_address="10.1.0.2:7240", version="0.2.0", joined_ns=77)
    plan = three.take(plan_announce(three.table, moved))
    assert plan.why == "n2 is at 10.1.0.2:7240, version 0.2.0"
    assert three.table.nodes[2].joined_ns == 1
    assert three.take(plan_announce(three.table, moved)).rows == []
    assert "there is no node 2 named n3" in str(plan_announce(three.table, replace(newcomer(3), id=2)))


def test_a_restarted_node_may_not_sit_down_beside_another_replica() -> None:
    region = Region(3, machines="abc")
    assert "nodes 1 and 2, which are both on machine a" in str(
        plan_announce(region.table, replace(newcomer(2, "a"), id=2))
    ).replace("nodes 2 and 1", "nodes 1 and 2")


def test_a_node_whose_machine_was_not_known_steps_aside() -> None:
    region = Region(4, shards=8)
    region.take(plan_announce(region.table, replace(newcomer(1, "a"), id=1)))
    held = {group for group in region.table.groups_of(2) if 1 in region.table.replicas_of(group)}
    plan = region.take(plan_announce(region.table, replace(newcomer(2, "a"), id=2)))
    assert {move.group for move in plan.moves} == held
    assert {move.source for move in plan.moves} == {2}
    assert all(move.target in (0, 3, 4) for move in plan.moves)
    assert min(len(replicas) for replicas in region.wanted().values()) == 3


def test_a_machine_of_two_nodes_out_of_three_has_one_replica_of_each_group() -> None:
    region = Region(3, shards=4)
    for number in (1, 2):
        region.take(plan_announce(region.table, replace(newcomer(number, "a"), id=number)))
    assert all(set(replicas) == {1, 3} for replicas in region.wanted().values())


def test_a_node_that_lost_its_data_is_not_who_it_was(three: Region) -> None:
    known = replace(newcomer(2), id=2, disk="first")
    three.take(plan_announce(three.table, known))
    assert three.take(plan_announce(three.table, known)).rows == []
    refused = str(plan_announce(three.table, replace(known, disk="second")))
    assert refused.startswith("node 2 (n2) has lost its data")
    assert "node replace n2" in refused


def test_five_replicas_for_those_who_want_them() -> None:
    region = Region(5, shards=10)
    assert "5 machines" not in str(plan_replicas(region.table, 5))
    region.take(plan_replicas(region.table, 5))
    assert set(region.load().values()) == {10}
    region.take(plan_replicas(region.table, 3))
    assert set(region.load().values()) == {6}
    assert str(plan_replicas(region.table, 7)).startswith("7 replicas need as many machines, and there are 5")


# ------------------------------------------------------------------------------------------- shards


def test_a_split_in_the_middle(three: Region) -> None:
    plan = three.take(plan_split(three.table, 1))
    assert plan.why == "shard 1 is split at slot 2048 into itself and shard 5"
    assert three.table.shards[5].state is ShardState.PREPARING
    assert preferred_leader(three.table, 5) != preferred_leader(three.table, 1)
    assert "being split already" in str(plan_split(three.table, 1))
    assert "there is no shard 5 that serves" in str(plan_split(three.table, 5))
    three.take(plan_split_done(three.table, 5))
    assert three.table.shards[1].ranges == ((0, 2047),)
    assert three.table.shards[5].ranges == ((2048, 4095),)


def test_a_split_that_came_to_nothing_uses_up_its_number(three: Region) -> None:
    three.take(plan_split(three.table, 1))
    three.take(plan_split_abandoned(three.table, 5))
    assert three.table.shard_of_slot(4000) == 1
    three.take(plan_split(three.table, 1))
    assert three.table.splitting(1) == 6
    assert "nothing is to be done" in str(plan_split_done(three.table, 5))


def test_a_split_needs_a_slot_inside(three: Region) -> None:
    assert "choose one from 1 to 4095" in str(plan_split(three.table, 1, at=0))
    assert "choose one from 4097 to 8191" in str(plan_split(three.table, 2, at=8192))
    three.take(plan_split(three.table, 1, at=1))
    three.take(plan_split_done(three.table, 5))
    assert str(plan_split(three.table, 1)) == "shard 1 owns one slot: move it to an idle node instead"


def test_a_move_as_the_operator_says() -> None:
    region = Region(4, machines="abcc")
    group = next(g for g in range(1, 5) if 3 in region.table.replicas_of(g))
    plan = region.take(plan_move(region.table, group, 3, 4))
    assert plan.moves == [Move(group, 3, 4)]
    assert "has a replica" in str(plan_move(region.table, group, 1, 3))
    assert "no replica on n3" in str(plan_move(region.table, group, 3, 1))
    assert "node 9 is not active" in str(plan_move(region.table, group, 4, 9))
    assert "there is no shard 77" in str(plan_move(region.table, 77, 4, 1))


def test_levelling_by_weight() -> None:
    """One shard is as big as all others together: it stays, others leave its nodes."""
    region = Region(4, shards=9, replicas=1)
    weights = {group: 100 if group == 1 else 10 for group in range(1, 10)}
    big = region.table.replicas_of(1)[0]
    region.take(plan_rebalance(region.table, weights))
    assert region.table.groups_of(big) in ([1], [0, 1])
    assert plan_rebalance(region.table, weights).rows == []


def test_levelling_stops_at_its_limit_and_says_so() -> None:
    region = Region(3, shards=12)
    for number in (4, 5):
        region.take(plan_join(region.table, newcomer(number)))
    for group in range(1, 13):
        for source, target in ((4, 1), (4, 2), (4, 3), (5, 1), (5, 2), (5, 3)):
            plan = plan_move(region.table, group, source, target)
            if isinstance(plan, Plan):
                region.take(plan)
    assert region.load()[4] == 0
    plan = region.take(plan_rebalance(region.table, moves_max=3))
    assert plan.why == "the first 3 moves; more are useful after them"
    assert len(plan.moves) == 3
    region.take(plan_rebalance(region.table))
    assert plan_rebalance(region.table) == Plan([], [], "replicas spread evenly")


# ------------------------------------------------------------------------------------ any order of it


def test_joins_and_removals_in_any_order_keep_the_load_level_and_move_little(rng: random.Random) -> None:
    region = Region(rng.randint(1, 6), shards=rng.randint(1, 40), replicas=rng.choice((1, 2, 3, 5)))
    number = 6
    for _ in range(25):
        before = region.load()
        if rng.random() < 0.5 or len(before) < 2:
            number += 1
            full = len(before) >= region.table.region.replicas  # type: ignore[union-attr]
            plan = region.take(plan_join(region.table, newcomer(number)))
            if full:
                assert len(shard_moves(plan)) == region.load()[max(region.table.nodes)]
        else:
            node_id = rng.choice(sorted(before))
            plan = plan_remove(region.table, node_id)  # type: ignore[assignment]
            if isinstance(plan, Refusal):
                assert len(before) <= region.table.region.replicas  # type: ignore[union-attr]
                continue
            region.take(plan)
            moves = shard_moves(plan)
            # What stands out afterwards was just put there, so it is no more than the node held.
            assert len(moves) <= 2 * before[node_id]
        load = region.load()
        assert max(load.values()) - min(load.values()) <= 1, load
        machines = len(load)
        want = min(region.table.region.replicas, machines)  # type: ignore[union-attr]
        assert {len(wanted) for wanted in region.wanted().values()} == {want}


def test_machines_of_any_size(rng: random.Random) -> None:
    """Replicas of a shard are on distinct machines throughout, and levelling finds an end."""
    region = Region(rng.randint(3, 6), shards=rng.randint(1, 30), machines="abcabc")
    number = 6
    for _ in range(20):
        if rng.random() < 0.6:
            number += 1
            region.take(plan_join(region.table, newcomer(number, rng.choice(RACKS[:5]))))
        else:
            plan = plan_remove(region.table, rng.choice(sorted(region.load())))
            if isinstance(plan, Plan):
                region.take(plan)
        assert plan_rebalance(region.table).rows == []
    assert not region.table.problems()


# ------------------------------------------------------------------------------------------ upgrades


def test_a_region_writes_what_its_oldest_node_reads_and_never_goes_back() -> None:
    region = Region(3)
    newer = [replace(node, formats=FORMATS + 1, version="0.2.0") for node in region.table.present()]
    for node in newer[:2]:
        region.take(plan_announce(region.table, node))
        assert plan_formats(region.table) is None  # the third could not read it
    region.take(plan_announce(region.table, newer[2]))
    raised = plan_formats(region.table)
    assert raised is not None
    region.take(raised)
    assert region.table.region is not None
    assert region.table.region.formats == FORMATS + 1
    assert plan_formats(region.table) is None
    for plan in (
        plan_announce(region.table, replace(newer[0], formats=FORMATS, version="0.1.0")),
        plan_join(region.table, newcomer(4)),
    ):
        assert isinstance(plan, Refusal)
        assert f"the region writes format {FORMATS + 1}" in plan.why
        assert "version 0.2.0 or newer" in plan.do
    region.take(plan_join(region.table, replace(newcomer(4, version="0.3.0"), formats=FORMATS + 2)))
    assert plan_formats(region.table) is None


def test_a_node_that_is_gone_for_ever_holds_no_upgrade_up() -> None:
    region = Region(4)
    for number in (1, 2, 3):
        region.take(plan_announce(region.table, replace(region.table.nodes[number], formats=FORMATS + 1)))
    assert plan_formats(region.table) is None
    region.take(plan_remove(region.table, 4))
    assert plan_formats(region.table) is None  # it still has replicas
    region.take(plan_removed(region.table, 4))
    assert plan_formats(region.table) is not None
