"""Shards change: one is split in two, replicas are levelled by size or load.

A split is three changes. The table names the coming shard (PREPARING: its slots are still its parent's); the
parent's own log says from which entry on the rows belong to the new group, on each replica alike; the table
gives the slots to the new shard. In between the members of both stay as they are (steps.py), since the new
group begins with its parent's. Until the second, the split can be abandoned: the table says that it is
wanted no more, and the parent's log has either the entry that splits the shard or one that says it will not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from msgspec.structs import replace

from cluster.membership.plans import Draft, Plan, Refusal
from cluster.membership.records import ABANDONED_SPLITS, FORMAT, ShardRecord, ShardState
from cluster.membership.seating import choose_first, even_out, fill
from cluster.membership.table import Table, slots_of

# Sizes and loads are never even; replicas are not sent about for less than this part of a node's mean load.
SLACK_PERCENT = 10
# Of one rebalancing: the operator sees what it does before asking for more.
REBALANCE_MOVES_MAX = 16

Ranges = tuple[tuple[int, int], ...]


def plan_split(table: Table, group: int, at: int | None = None) -> Plan | Refusal:
    """Name the shard that takes the slots from `at` on (default: the upper half).

    Its id is what `table.next_shard_id()` says before.
    """
    shard = table.shards.get(group)
    if shard is None or shard.state is not ShardState.SERVING:
        return Refusal(
            f"there is no shard {group} that serves", "choose one that `holdfast shard list` shows"
        )
    other = table.splitting(group)
    if other and table.shards[other].abandoned:
        return Refusal(
            f"the split of shard {group} is being abandoned",
            "give the command again when `holdfast shard list` shows no coming shard for it any more",
        )
    if other:
        return Refusal(
            f"shard {group} is being split already, into itself and shard {other}", "wait until it is done"
        )
    slots = list(slots_of(shard))
    if len(slots) < 2:
        return Refusal(f"shard {group} owns one slot", "move it to an idle node instead")
    if at is None:
        at = slots[len(slots) // 2]
    if not slots[0] < at <= slots[-1]:
        return Refusal(
            f"slot {at} does not divide shard {group}", f"choose one from {slots[0] + 1} to {slots[-1]}"
        )
    draft = Draft(table)
    # The same members in another order: the halves are to be led by different nodes.
    replicas = (*shard.replicas[1:], shard.replicas[0])
    child = table.next_shard_id()
    ranges = _ranges(slot for slot in slots if slot >= at)
    draft.put(ShardRecord(FORMAT, child, ranges, replicas, ShardState.PREPARING, parent=group))
    return draft.plan(f"shard {group} is split at slot {at} into itself and shard {child}")


def split_at(table: Table, group: int, at: int) -> int:
    """The shard that has, or is getting, the slots from `at` on that were this one's; 0 if there is none."""
    for shard in table.shards.values():
        if shard.parent == group and shard.ranges and shard.ranges[0][0] == at and not shard.abandoned:
            return shard.id
    return 0


def plan_split_done(table: Table, child: int) -> Plan | Refusal:
    """The parent's log says so: the new shard has its rows. It serves from here on."""
    shard = table.shards.get(child)
    if shard is None or shard.state is not ShardState.PREPARING:
        return Refusal(f"shard {child} is not the coming half of a split", "nothing is to be done")
    parent = table.shards[shard.parent]
    gone = set(slots_of(shard))
    kept = _ranges(slot for slot in slots_of(parent) if slot not in gone)
    draft = Draft(table)
    # Both in one transaction: in between a slot would have two owners or none.
    draft.put(
        replace(parent, ranges=kept, epoch=parent.epoch + 1),
        replace(shard, state=ShardState.SERVING, epoch=parent.epoch + 1, abandoned=False),
    )
    return draft.plan(f"shard {child} serves what shard {parent.id} gave up")


def split_of(table: Table, group: int) -> int:
    """The newest shard that is, or was to be, split from this one, or this one if it is such; 0: none.

    One that is coming is meant whichever of the two halves is named.
    """
    shard = table.shards.get(group)
    if shard is not None and shard.state is not ShardState.SERVING:
        return group if shard.parent else 0
    children = [one.id for one in table.shards.values() if one.parent == group]
    return max(children, default=group if shard is not None and shard.parent else 0)


def plan_abandon(table: Table, group: int) -> Plan | Refusal:
    """The split of this shard, or the one that this shard is to come from, is wanted no more.

    Whether that is in time, the parent's log says: `plan_split_abandoned` follows, or `plan_split_done`.
    """
    shard = table.shards.get(split_of(table, group))
    if shard is None:
        what = f"shard {group} is not being split" if group in table.shards else f"there is no shard {group}"
        return Refusal(what, "see which shards are coming: `holdfast shard list`")
    if shard.state is ShardState.SERVING:
        return Refusal(
            f"it is too late, shard {shard.id} serves what shard {shard.parent} gave up",
            "leave it so, shards are not joined again; `holdfast shard move` brings it to other nodes",
        )
    written = table.region.formats if table.region is not None else 0
    if shard.state is ShardState.PREPARING and written < ABANDONED_SPLITS:
        return Refusal(  # an older node ends where the log says so, since it cannot read that
            f"the region still writes format {written}; {ABANDONED_SPLITS} is the first with a word for that",
            "finish the upgrade of all nodes first (`holdfast cluster nodes`), or let the split be",
        )
    draft = Draft(table)
    if shard.state is ShardState.PREPARING:
        draft.put(replace(shard, abandoned=True))
    return draft.plan(f"shard {shard.parent} is to stay whole, without shard {shard.id}")


def plan_split_abandoned(table: Table, child: int) -> Plan | Refusal:
    """The parent's log says that it will not give anything up: all stays its. The number is used up."""
    shard = table.shards.get(child)
    if shard is None or shard.state is not ShardState.PREPARING:
        return Refusal(f"shard {child} is not the coming half of a split", "nothing is to be done")
    draft = Draft(table)
    del draft.wanted[child]
    draft.put(replace(shard, ranges=(), state=ShardState.RETIRED, epoch=shard.epoch + 1))
    return draft.plan(f"shard {shard.parent} stays whole")


def plan_rebalance(
    table: Table,
    weights: Mapping[int, int] | None = None,
    *,
    down: Collection[int] = (),
    moves_max: int = REBALANCE_MOVES_MAX,
) -> Plan:
    """Level the nodes: by number of replicas, or by `weights` (group -> bytes, calls a second, ...; >= 0).

    Also fills up what lacks replicas. By weight, nodes count as level when they differ by no more than
    SLACK_PERCENT of the mean. No rows: it is level, or no single move would help.
    """
    draft = Draft(table)
    fill(draft, down)
    slack = 1
    if weights is not None:
        load = draft.load(weights)
        slack = sum(load.values()) * SLACK_PERCENT // (100 * max(len(load), 1))
    complete = even_out(draft, weights, slack=slack, down=down, moves_max=moves_max)
    choose_first(draft)
    return draft.plan(
        "replicas spread evenly" if complete else f"the first {moves_max} moves; more are useful after them"
    )


def _ranges(slots: Iterable[int]) -> Ranges:
    """Ascending slots as ranges."""
    found: list[tuple[int, int]] = []
    for slot in slots:
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return tuple(found)
