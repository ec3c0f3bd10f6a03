"""When a split takes its next step, and what it waits for."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from cluster.membership import (
    GroupReport,
    NodeHealth,
    Plan,
    Refusal,
    ShardState,
    SplitWork,
    plan_abandon,
    plan_split,
    plan_split_abandoned,
    plan_split_done,
    split_at,
    split_of,
    split_steps,
)
from cluster.membership.records import ABANDONED_SPLITS, row_of
from history_store.raft.configuration import Configuration

from .conftest import Region, members

UP, DOWN = NodeHealth(), NodeHealth(up=False)
PARENT, CHILD = 1, 5


def work(
    region: Region,
    ready: tuple[int, ...],
    *,
    down: tuple[int, ...] = (),
    parted: tuple[int, ...] = (),
    abandoned: tuple[int, ...] = (),
    conf: Configuration | None = None,
) -> SplitWork:
    """Node 1 leads the parent; these nodes have the rows."""
    reports = {PARENT: GroupReport(1, conf or members((1, 2, 3)))}
    health = {node_id: DOWN if node_id in down else UP for node_id in (1, 2, 3)}
    return split_steps(region.table, reports, health, dict.fromkeys(ready, (CHILD,)), parted, abandoned)


def test_nothing_is_to_be_done_without_a_split(three: Region) -> None:
    assert work(three, (1, 2, 3)) == SplitWork([], [], {}, [], [])


def test_whoever_is_up_has_the_rows_first(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    slots = three.table.shards[CHILD].ranges
    assert split_at(three.table, PARENT, slots[0][0]) == CHILD
    assert split_at(three.table, PARENT, slots[0][0] + 1) == 0
    two, three_name = (three.table.nodes[number].name for number in (2, 3))
    assert work(three, ()).waits[CHILD].endswith(f", {two}, {three_name}")
    assert work(three, (1, 2)).waits == {CHILD: f"its rows are being copied on {three_name}"}
    assert work(three, (1, 2), down=(3,)).now == [(CHILD, 1)], "who is down is not waited for"
    assert work(three, (1,), down=(2, 3)).now == [], "but a majority is"
    assert work(three, (1, 2, 3)) == SplitWork([(CHILD, 1)], [], {}, [], [])


def test_a_voter_that_is_to_go_is_not_waited_for(three: Region) -> None:
    """It may have no replica any more. Members do not change during a split, so both would wait for ever."""
    three.take(plan_split(three.table, PARENT))
    assert 4 not in three.table.replicas_of(PARENT)
    reports = {PARENT: GroupReport(1, members((1, 2, 4)))}
    health = dict.fromkeys((1, 2, 3, 4), UP)
    ready = dict.fromkeys((1, 2), (CHILD,))
    assert split_steps(three.table, reports, health, ready, ()).now == [(CHILD, 1)]
    ready = {1: (CHILD,)}
    assert split_steps(three.table, reports, health, ready, ()).now == [], "a majority is"


def test_a_change_of_members_and_an_election_are_waited_for(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    between = Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3))
    assert "moving" in work(three, (1, 2, 3), conf=between).waits[CHILD]
    nobody = split_steps(three.table, {}, {}, {}, ())
    assert nobody.waits == {CHILD: f"shard {PARENT} has no leader"}


def test_what_the_log_says_is_said_by_the_table(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    assert work(three, (), parted=(CHILD,)) == SplitWork([], [CHILD], {}, [], [])
    assert work(three, (1, 2, 3), abandoned=(CHILD,)) == SplitWork([], [], {}, [], [CHILD])


@pytest.mark.parametrize("named", [PARENT, CHILD])
def test_a_split_that_is_abandoned_is_not_proposed_and_its_number_is_used_up(
    three: Region, named: int
) -> None:
    before = three.table.shards[PARENT]
    three.take(plan_split(three.table, PARENT))
    assert three.take(plan_abandon(three.table, named)).rows
    assert not three.take(plan_abandon(three.table, named)).rows, "said again"
    assert isinstance(plan_split(three.table, PARENT), Refusal)
    waits = {CHILD: "it is being abandoned"}
    moving = Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3))
    for conf in (None, moving):
        assert work(three, (1, 2, 3), conf=conf) == SplitWork([], [], waits, [(CHILD, 1)], [])
    three.take(plan_split_abandoned(three.table, CHILD))
    assert three.table.shards[PARENT] == before
    assert work(three, (1, 2, 3), abandoned=(CHILD,)) == SplitWork([], [], {}, [], [])
    assert not three.take(plan_abandon(three.table, named)).rows, "and again"
    three.take(plan_split(three.table, PARENT))
    assert three.table.splitting(PARENT) == CHILD + 1


def test_all_nodes_have_to_know_what_it_is_to_abandon(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    assert three.table.region is not None
    three.table.apply([row_of(replace(three.table.region, formats=ABANDONED_SPLITS - 1))])
    assert "the region still writes format 1" in str(plan_abandon(three.table, CHILD))


def test_what_serves_is_not_abandoned(three: Region) -> None:
    assert "is not being split" in str(plan_abandon(three.table, PARENT))
    assert "there is no shard 99" in str(plan_abandon(three.table, 99))
    three.take(plan_split(three.table, PARENT))
    three.take(plan_split_done(three.table, CHILD))
    for named in (PARENT, CHILD):
        assert str(plan_abandon(three.table, named)).startswith(
            f"it is too late, shard {CHILD} serves what shard {PARENT} gave up: "
        )


def test_of_a_split_and_its_end_the_log_has_one_and_the_table_says_the_same(
    three: Region, rng: random.Random
) -> None:
    """Shards are split and that is abandoned; whoever leads has one of the two said, and is heard later."""
    log: dict[int, str] = {}
    table = three.table
    for _ in range(400):
        serving = [one.id for one in table.shards.values() if one.state is ShardState.SERVING]
        match rng.randrange(4):
            case 0:
                plan = plan_split(table, rng.choice(serving))
                if isinstance(plan, Plan) and len(table.shards) < 40:
                    three.take(plan)
            case 1:
                preparing = [one.id for one in table.shards.values() if one.state is ShardState.PREPARING]
                number = rng.choice(preparing if preparing and rng.random() < 0.7 else list(table.shards))
                known, plan = split_of(table, number), plan_abandon(table, number)
                if isinstance(plan, Plan):
                    three.take(plan)
                    assert log.get(known) != "split" or table.shards[known].state is ShardState.PREPARING
                else:
                    assert not known or log[known] == "split"
            case _:
                reports = {group: GroupReport(1, members((1, 2, 3))) for group in serving}
                heard = [child for child in log if rng.random() < 0.5]
                parted = [child for child in heard if log[child] == "split"]
                stopped = [child for child in heard if log[child] == "end"]
                ready = dict.fromkeys((1, 2, 3), table.shards)
                health = dict.fromkeys((1, 2, 3), UP)
                work = split_steps(table, reports, health, ready, parted, stopped)
                asked = [(child, "split") for child, _ in work.now] + [
                    (child, "end") for child, _ in work.stop
                ]
                for child, what in asked:
                    if rng.random() < 0.5:
                        log.setdefault(child, what)  # of which another leader may have had the other said
                for child in work.done:
                    three.take(plan_split_done(table, child))
                for child in work.stopped:
                    three.take(plan_split_abandoned(table, child))
        for child, shard in table.shards.items():
            if shard.parent and shard.state is not ShardState.PREPARING:
                said = ShardState.SERVING if log[child] == "split" else ShardState.RETIRED
                assert shard.state is said
    assert {"split", "end"} == set(log.values())
