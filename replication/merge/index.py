"""A run's index: the events that a rule may have to look for later, without their bytes.

Theory of operation. An index is a value, like the rest of a record, and a run may have 50,000 of these
events: copying them for each entry would make a long run slow. So an index is a length of a list that others
share, with the ways to find something in it. Who adds to the longest value that there is adds to the list;
who adds to a shorter one (an outcome that was not stored was thrown away) gets a list of its own, once.

On a path or not: events of one version are one linear sequence, in the order of their ids, and a path has
them up to some id. So what is on a path, and what is not, is a slice of each version's.

Invariant: nothing that a value shows ever changes. Lineage: fat nodes of persistent data structures
(Driscoll et al. 1989), for one line of descent.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator

import msgspec

from replication.merge.entries import Kind
from replication.merge.history import History


class Indexed(msgspec.Struct, array_like=True, frozen=True):
    """An event that a rule may look for: everything of it but its bytes."""

    id: int
    version: int
    kind: Kind
    key: str
    about: str
    whole: bool
    hlc: int
    seq: int


class _Shared:
    """The list, and where in it to find a key, or the events of a version. Only ever added to."""

    __slots__ = ("by_key", "by_version", "events")

    def __init__(self, events: Iterable[Indexed]) -> None:
        self.events: list[Indexed] = []
        self.by_key: dict[str, list[int]] = {}  # ordinals, ascending
        self.by_version: dict[int, list[int]] = {}
        self.add(events)

    def add(self, events: Iterable[Indexed]) -> None:
        for ordinal, event in enumerate(events, start=len(self.events)):
            self.events.append(event)
            self.by_key.setdefault(event.key, []).append(ordinal)
            self.by_version.setdefault(event.version, []).append(ordinal)


class Index:
    """Indexed events in the order of their arrival. A value."""

    __slots__ = ("_length", "_shared")

    def __init__(self, events: Iterable[Indexed] = ()) -> None:
        self._shared = _Shared(events)
        self._length = len(self._shared.events)

    def extended(self, events: Iterable[Indexed]) -> Index:
        """These events after the others; takes as long as they are many."""
        after = Index.__new__(Index)
        after._shared = self._shared
        # The empty one is every run's default: it must not come to keep the events of one of them.
        if not self._length or self._length < len(self._shared.events):
            after._shared = _Shared(self)
        after._shared.add(events)
        after._length = len(after._shared.events)
        return after

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Indexed]:
        return self.since(0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Index):
            return NotImplemented
        if self._shared is other._shared:
            return self._length == other._length
        return list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Index({list(self)!r})"

    def since(self, length: int) -> Iterator[Indexed]:
        """The events after so many."""
        return (self._shared.events[ordinal] for ordinal in range(length, self._length))

    def continues(self, before: Index) -> bool:
        """Whether it is known, without looking at the events, that `before` is the beginning of this one."""
        return self._shared is before._shared and before._length <= self._length

    def of_key(self, key: str) -> Iterator[Indexed]:
        """The events of this key."""
        for ordinal in self._shared.by_key.get(key, ()):
            if ordinal < self._length:
                yield self._shared.events[ordinal]

    def __contains__(self, key: object) -> bool:
        ordinals = self._shared.by_key.get(key) if isinstance(key, str) else None
        return ordinals is not None and ordinals[0] < self._length

    def on_path(self, path: History) -> Iterator[Indexed]:
        """The events that are on the path, in its order."""
        first = 1
        for item in path:
            yield from self._of_version(item.version, first, item.event_id + 1)
            first = item.event_id + 1

    def off_path(self, path: History) -> Iterator[Indexed]:
        """The events that are not."""
        bounds: dict[int, tuple[int, int]] = {}
        first = 1
        for item in path:
            bounds[item.version] = (first, item.event_id + 1)
            first = item.event_id + 1
        for version in self._shared.by_version:
            low, high = bounds.get(version, (0, 0))
            if high:
                yield from self._of_version(version, 0, low)
            yield from self._of_version(version, high, None)

    def _of_version(self, version: int, first: int, end: int | None) -> Iterator[Indexed]:
        """Those of the version whose ids are from `first` to before `end`."""
        events, ordinals = self._shared.events, self._shared.by_version.get(version, [])
        high = bisect_left(ordinals, self._length)
        low = bisect_left(ordinals, first, hi=high, key=lambda ordinal: events[ordinal].id)
        if end is not None:
            high = bisect_right(ordinals, end - 1, lo=low, hi=high, key=lambda ordinal: events[ordinal].id)
        return (events[ordinals[at]] for at in range(low, high))
