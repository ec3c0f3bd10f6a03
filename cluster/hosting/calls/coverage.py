"""Which nodes are asked for which shards, when one of them has not all. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

from history_store.visibility.sql import Slots

TRIED_NODES_MAX = (
    12  # of so many candidates the smallest set is found by trying; of more, nearly the smallest
)


def ranges_by_group(owners: Sequence[int]) -> dict[int, Slots]:
    """The slots of each group, as ranges, from the group of each slot."""
    found: dict[int, list[tuple[int, int]]] = {}
    first = 0
    for slot in range(1, len(owners) + 1):
        if slot == len(owners) or owners[slot] != owners[first]:
            found.setdefault(owners[first], []).append((first, slot - 1))
            first = slot
    return {group: tuple(ranges) for group, ranges in found.items()}


def joined(parts: Iterable[Slots]) -> Slots:
    """All of these ranges as one list of ranges."""
    ranges: list[tuple[int, int]] = []
    for first, last in sorted(pair for part in parts for pair in part):
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(ranges[-1][1], last))
        else:
            ranges.append((first, last))
    return tuple(ranges)


def within(ranges: Mapping[int, Slots], slots: Slots) -> dict[int, Slots]:
    """Of each group's slots those that are among `slots`; without groups that have none."""
    found: dict[int, Slots] = {}
    for group, own in ranges.items():
        common = tuple(
            (max(first, start), min(last, end))
            for first, last in own
            for start, end in slots
            if max(first, start) <= min(last, end)
        )
        if common:
            found[group] = common
    return found


def cover(holders: Mapping[int, Collection[int]], asker: int = 0) -> dict[int, list[int]]:
    """Who is asked for which groups: as few nodes as can be, and about as many groups each.

    `holders`: of each group the nodes that could be asked, at least one. Of sets that are equally good an
    `asker` takes the one that follows it, so that not all ask the same.
    """
    candidates = {node for group in holders.values() for node in group}
    nodes = sorted(candidates, key=lambda node: (node <= asker, node))
    chosen = _fewest(nodes, holders)
    asked: dict[int, list[int]] = {node: [] for node in chosen}
    for group in sorted(holders, key=lambda group: (len(chosen & set(holders[group])), group)):
        asked[min(chosen & set(holders[group]), key=lambda node: (len(asked[node]), node))].append(group)
    return {node: groups for node, groups in asked.items() if groups}


def _fewest(nodes: Sequence[int], holders: Mapping[int, Collection[int]]) -> set[int]:
    if len(nodes) <= TRIED_NODES_MAX:
        for size in range(1, len(nodes) + 1):
            for chosen in combinations(nodes, size):
                if all(any(node in group for node in chosen) for group in holders.values()):
                    return set(chosen)
    found: set[int] = set()
    left = dict(holders)
    while left:
        best = max(nodes, key=lambda node: (sum(node in group for group in left.values()), -node))
        found.add(best)
        left = {number: group for number, group in left.items() if best not in group}
    return found
