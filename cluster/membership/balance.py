"""Things that are on one of several possible nodes each: who should give one to whom.

Used for leaderships (a group is led by one of its voters) and for replicas that need a new home. Taking from
the busiest and giving to the idlest is not enough: a may share groups with b only, and b with c. So a thing
is passed along a path, each node on it keeping its count. When no path is left, no assignment is more even
(the classical argument of augmenting paths); a fixed point therefore exists and yields no more moves.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

GAP = 2  # a difference of one cannot be made smaller by moving one


class Hop(NamedTuple):
    """One thing goes from one node to another."""

    thing: int
    source: int
    target: int


def relief(
    owners: Mapping[int, int], allowed: Mapping[int, Sequence[int]], load: Mapping[int, int]
) -> list[Hop]:
    """The hops that take one from a busy node and give it to one with at least GAP fewer; [] if it is level.

    `owners`: thing -> node; `allowed`: where else each may be; `load`: node -> count, with things that cannot
    be moved. The hop into the idle node comes first, so that nobody on the way gets busier than it was, and
    doing only the first few is progress. O(things) for each busy node that cannot be relieved.
    """
    edges: dict[int, list[tuple[int, int]]] = {}
    for thing, node in sorted(owners.items()):
        edges.setdefault(node, []).extend((target, thing) for target in allowed.get(thing, ()))
    least = min(load.values(), default=0)
    for busy in sorted(edges, key=lambda node: (-load[node], node)):
        if load[busy] - least < GAP:
            return []
        path = _path(busy, edges, load)
        if path:
            return path
    return []


def _path(busy: int, edges: Mapping[int, list[tuple[int, int]]], load: Mapping[int, int]) -> list[Hop]:
    came: dict[int, Hop | None] = {busy: None}
    waiting = deque([busy])
    best = busy
    while waiting:
        node = waiting.popleft()
        for target, thing in edges.get(node, ()):
            if target not in came:
                came[target] = Hop(thing, node, target)
                waiting.append(target)
                if load[target] < load[best]:  # breadth first: among equals the nearest stays
                    best = target
    if load[busy] - load[best] < GAP:
        return []
    path: list[Hop] = []
    hop = came[best]
    while hop is not None:
        path.append(hop)
        hop = came[hop.source]
    return path


def level(owners: dict[int, int], allowed: Mapping[int, Sequence[int]], load: dict[int, int]) -> None:
    """Change `owners` and `load` until no assignment is more even."""
    while hops := relief(owners, allowed, load):
        for thing, source, target in hops:
            owners[thing] = target
            load[source] -= 1
            load[target] += 1
