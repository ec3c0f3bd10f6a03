"""Which node a replica goes to: on machines that have none of its group, and evenly.

"Even" counts replicas of shards on active nodes. A move is made only if it makes two nodes more even, so the
search ends, and what it ends with yields no further move. Where every node is a machine of its own, no node
then has two more than another: the one with more has a shard that the other has not. Where machines differ
in their number of nodes, no single move would help.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cluster.membership.balance import GAP, level
from cluster.membership.plans import Draft
from cluster.membership.records import META_GROUP


def homes(draft: Draft, group: int, without: int = 0, down: Collection[int] = ()) -> list[int]:
    """Active nodes that may take a replica of the group, if the one on `without` is gone; by id."""
    return [
        node.id
        for node in draft.table.active()
        if node.id not in down and draft.fits(group, node.id, without)
    ]


def fill(draft: Draft, down: Collection[int] = ()) -> None:
    """Want one more replica wherever there are too few and a machine is free, on the idlest such node."""
    load = draft.load()
    for group in draft.wanted:
        while len(draft.wanted[group]) < draft.region.replicas:
            free = homes(draft, group, down=down)
            if not free:
                break
            target = min(free, key=lambda i: (load[i], i))
            draft.exchange(group, 0, target)
            load[target] += group != META_GROUP


def move_off(draft: Draft, node_id: int, down: Collection[int] = ()) -> list[int]:
    """Want the node's replicas elsewhere; as evenly as can be without moving any other.

    Answers the groups for which there is no other place; they only lose this replica.
    """
    there = [group for group, wanted in draft.wanted.items() if node_id in wanted]
    free = {group: homes(draft, group, node_id, down) for group in there}
    load = draft.load()
    load.pop(node_id, None)
    targets: dict[int, int] = {}
    for group in there:
        if free[group]:
            target = min(free[group], key=lambda i: (load[i], i))
            targets[group] = target
            load[target] += group != META_GROUP
    owners = {group: target for group, target in targets.items() if group != META_GROUP}
    level(owners, free, load)
    targets |= owners
    for group in there:
        draft.exchange(group, node_id, targets.get(group, 0))
    return [group for group in there if group not in targets]


def even_out(
    draft: Draft,
    weights: Mapping[int, int] | None = None,
    *,
    slack: int = GAP - 1,
    down: Collection[int] = (),
    moves_max: int | None = None,
) -> bool:
    """Move replicas from busy nodes to idle ones until two that could exchange differ by at most `slack`.

    False if `moves_max` ended it.
    """
    load = {node_id: sum_ for node_id, sum_ in draft.load(weights).items() if node_id not in down}
    done = 0
    while True:
        found = _best_move(draft, load, weights, slack)
        if found is None:
            return True
        if moves_max is not None and done == moves_max:
            return False
        group, source, target = found
        weight = weights.get(group, 1) if weights is not None else 1
        load[source] -= weight
        load[target] += weight
        draft.exchange(group, source, target)
        done += 1


def _best_move(
    draft: Draft, load: Mapping[int, int], weights: Mapping[int, int] | None, slack: int
) -> tuple[int, int, int] | None:
    idle = sorted(load, key=lambda i: (load[i], i))
    for source in reversed(idle):
        for target in idle:
            gap = load[source] - load[target]
            if gap <= slack:
                break
            best, best_gain = 0, 0
            for group in draft.shards():
                weight = weights.get(group, 1) if weights is not None else 1
                gain = weight * (gap - weight)
                if gain > best_gain and source in draft.wanted[group] and draft.fits(group, target, source):
                    best, best_gain = group, gain
            if best:
                return best, source, target
    return None


def choose_first(draft: Draft) -> None:
    """Order the replicas of groups that are changed anyway so that nodes are preferred equally often."""
    load = {node.id: 0 for node in draft.table.present()}
    owners: dict[int, int] = {}
    allowed: dict[int, tuple[int, ...]] = {}
    for group, wanted in draft.wanted.items():
        load[wanted[0]] += 1
        if wanted != draft.before.replicas_of(group):
            owners[group] = wanted[0]
            allowed[group] = wanted
    level(owners, allowed, load)
    for group, first in owners.items():
        others = tuple(i for i in draft.wanted[group] if i != first)
        draft.wanted[group] = (first, *others)
