"""When a split takes its next step, and what it waits for."""

from __future__ import annotations

from cluster.membership import GroupReport, NodeHealth, SplitWork, plan_split, split_at, split_steps
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
    conf: Configuration | None = None,
) -> SplitWork:
    """Node 1 leads the parent; these nodes have the rows."""
    reports = {PARENT: GroupReport(1, conf or members((1, 2, 3)))}
    health = {node_id: DOWN if node_id in down else UP for node_id in (1, 2, 3)}
    return split_steps(region.table, reports, health, dict.fromkeys(ready, (CHILD,)), parted)


def test_nothing_is_to_be_done_without_a_split(three: Region) -> None:
    assert work(three, (1, 2, 3)) == SplitWork([], [], {})


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
    assert work(three, (1, 2, 3)) == SplitWork([(CHILD, 1)], [], {})


def test_a_change_of_members_and_an_election_are_waited_for(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    between = Configuration(voters=(1, 2, 4), outgoing=(1, 2, 3))
    assert "moving" in work(three, (1, 2, 3), conf=between).waits[CHILD]
    nobody = split_steps(three.table, {}, {}, {}, ())
    assert nobody.waits == {CHILD: f"shard {PARENT} has no leader"}


def test_what_the_log_says_is_said_by_the_table(three: Region) -> None:
    three.take(plan_split(three.table, PARENT))
    assert work(three, (), parted=(CHILD,)) == SplitWork([], [CHILD], {})
