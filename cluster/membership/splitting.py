"""What splits that are under way wait for, and which can take their next step. Pure; nothing is remembered.

A split is proposed when its parent's leader and a majority of the voters have the rows of the coming shard,
and every other voter that is up and is to stay has them as well: who has not would do without its replica of
the new shard until it has copied them. One that is to go may have no replica any more, and copy nothing.

One that an operator abandons is not proposed any more. The parent's leader is asked to have its log say so,
and the table follows the log: whichever of the two entries it has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from cluster.membership.records import ShardState
from cluster.membership.reports import Health, Reports, is_up
from cluster.membership.steps import majority
from cluster.membership.table import Table


class SplitWork(NamedTuple):
    """What to do now, and what cannot be done yet: child -> why, for the operator."""

    now: list[tuple[int, int]]  # (child, the node that leads its parent): the rows are there
    done: list[int]  # children that the parent's log has split off: the table may say so
    waits: dict[int, str]
    stop: list[tuple[int, int]]  # (child, the node that leads its parent): it is wanted no more
    stopped: list[int]  # children that, as the parent's log says, will not come: the table may say so


def split_steps(
    table: Table,
    reports: Reports,
    health: Health,
    ready: Mapping[int, Collection[int]],
    parted: Collection[int],
    abandoned: Collection[int] = (),
) -> SplitWork:
    """`ready`: node -> children whose rows it has; `parted`: children that their parents have split off.

    `abandoned`: children that their parents will not split off.
    """
    work = SplitWork([], [], {}, [], [])
    for child, shard in sorted(table.shards.items()):
        if shard.state is not ShardState.PREPARING:
            continue
        if child in parted:
            work.done.append(child)
            continue
        if child in abandoned:
            work.stopped.append(child)
            continue
        report = reports.get(shard.parent)
        if report is None:
            work.waits[child] = f"shard {shard.parent} has no leader"
            continue
        if shard.abandoned:
            work.stop.append((child, report.leader))
            work.waits[child] = "it is being abandoned"
            continue
        voters = report.conf.voters
        has = [node_id for node_id in voters if child in ready.get(node_id, ())]
        stay = table.replicas_of(shard.parent)
        late = [i for i in voters if i not in has and i in stay and is_up(health, i)]
        if report.conf.outgoing:
            work.waits[child] = f"the replicas of shard {shard.parent} are moving"
        elif late or len(has) < majority(len(voters)):
            names = ", ".join(_name(table, node_id) for node_id in late) or "a majority"
            work.waits[child] = f"its rows are being copied on {names}"
        else:
            work.now.append((child, report.leader))
    return work


def _name(table: Table, node_id: int) -> str:
    node = table.nodes.get(node_id)
    return node.name if node is not None else f"node {node_id}"
