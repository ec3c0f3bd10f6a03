"""Version histories: which branch of a run this is, and where two branches part.

Theory of operation. A run's events form a tree, because two regions may have written after the same event. A
path from the root is named by its version history: an item (last event id, version) for each stretch of
events of one version. As one version names one linear sequence of a run's events (only its owner writes at
it, on one branch), two paths that both have a version have the same events of that version, up to the
shorter one's last. So the lowest common ancestor of two branches is found from their items alone, without
looking at an event.

Two paths may share nothing but the virtual root, id 0: two regions can legally hold runs of the same run id
that have no common event (a child that was re-created because its first events had not arrived).

Invariant: in a history, event ids and versions both strictly increase. Lineage: Temporal's and Cadence's ndc.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Item(NamedTuple):
    """The last event of a stretch of one version."""

    event_id: int
    version: int


History = tuple[Item, ...]
ROOT = Item(0, 0)  # before the first event of every run


def problem(history: History) -> str:
    """Why this is not a version history; "" if it is one. Empty is one: no event yet."""
    before = ROOT
    for item in history:
        if item.event_id <= before.event_id:
            return f"event id {item.event_id} after {before.event_id}"
        if item.version <= before.version:
            return f"version {item.version} after {before.version}"
        before = item
    return ""


def tip(history: History) -> Item:
    """The last event: its id and version. ROOT if there is none."""
    return history[-1] if history else ROOT


def contains(history: History, event_id: int, version: int) -> bool:
    """Whether the event of this id and version is on the path. The root is on every path."""
    if event_id == 0:
        return version == 0
    first = 1
    for item in history:
        if item.version == version:
            return first <= event_id <= item.event_id
        first = item.event_id + 1
    return False


def extended(history: History, events: Iterable[Item]) -> History:
    """The path with these events after it, given as (id, version) each, contiguous and in order.

    AssertionError: an id is left out or repeated, or a version falls.
    """
    items = list(history)
    for event_id, version in events:
        last = items[-1] if items else ROOT
        assert event_id == last.event_id + 1, f"event {event_id} after {last.event_id}"
        assert version >= last.version, f"version {version} after {last.version}"
        if version == last.version:
            items.pop()
        items.append(Item(event_id, version))
    return tuple(items)


def prefix(history: History, last: Item) -> History:
    """The path up to and with this event, which must be on it (else AssertionError). (): up to the root."""
    assert contains(history, *last), f"{last} is not on {history}"
    return (*(item for item in history if item.version < last.version), last) if last != ROOT else ()


def lowest_common_ancestor(one: History, other: History) -> Item:
    """The last event that both paths have; ROOT if they share none.

    Walks both from their ends. Where the versions are equal, the shorter stretch ends at the answer; where
    they differ, the greater version cannot be on the other path any more, and its item is left behind.
    """
    i, j = len(one) - 1, len(other) - 1
    while i >= 0 and j >= 0:
        mine, theirs = one[i], other[j]
        if mine.version == theirs.version:
            return Item(min(mine.event_id, theirs.event_id), mine.version)
        if mine.version > theirs.version:
            i -= 1
        else:
            j -= 1
    return ROOT


def choose_branch(branches: Sequence[History], incoming: History) -> tuple[int, Item]:
    """To which branch incoming events belong: (its index, the lowest common ancestor).

    The highest ancestor wins, then the branch with the fewest items, then the first. `branches` is not empty.
    """
    assert branches, "a run has a branch"
    ancestors = [lowest_common_ancestor(branch, incoming) for branch in branches]
    best = min(range(len(branches)), key=lambda i: (-ancestors[i].event_id, len(branches[i]), i))
    return best, ancestors[best]
