"""The rows of one shard as its leader sees them: storage, and over it what is proposed but not yet stored.

An entry's rows are visible here from the moment it is proposed (the leader pipelines), and leave the overlay
when storage has them. The overlay is always reconstructible: it is exactly the entries after `applied`.
Writing entries' rows late, many at once, lets rows that change often (a run's core row, a task row that is
gone a millisecond later) be written once or never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from history_store.engine.keys import HISTORY, ITEM
from history_store.shard import image

if TYPE_CHECKING:
    from history_store.storage.contract import Entry, Storage
    from history_store.visibility.record import VisibilityOp

BUCKET_BYTES = 19  # kind, slot, run: items and history of one run share a bucket


def _bucket(key: bytes) -> bytes:
    kind = key[:1]
    return key[:BUCKET_BYTES] if kind in (ITEM, HISTORY) else kind


class Rows:
    """Reads through the overlay; collects what a flush has to write."""

    __slots__ = (
        "_buckets",
        "_committed",
        "_prefix",
        "_storage",
        "committed_bytes",
        "group",
        "visibility_pending",
    )

    def __init__(self, storage: Storage, group: int) -> None:
        self._storage = storage
        self.group = group
        self._prefix = group.to_bytes(4, "big")
        self._buckets: dict[bytes, dict[bytes, tuple[int, bytes | None]]] = {}
        self._committed: deque[tuple[int, int, list[tuple[bytes, bytes | None]], list[VisibilityOp]]] = (
            deque()
        )
        self.committed_bytes = 0
        self.visibility_pending = 0

    def propose(self, index: int, rows: list[tuple[bytes, bytes | None]]) -> None:
        """The entry at `index` carries these rows: reads see them from now on."""
        buckets = self._buckets
        for key, value in rows:
            name = _bucket(key)
            bucket = buckets.get(name)
            if bucket is None:
                bucket = buckets[name] = {}
            bucket[key] = (index, value)

    def commit(
        self,
        index: int,
        term: int,
        rows: list[tuple[bytes, bytes | None]],
        visibility: list[VisibilityOp],
        size: int,
    ) -> None:
        """The entry at `index` is committed: its rows may be stored."""
        self._committed.append((index, term, rows, visibility))
        self.committed_bytes += size
        self.visibility_pending += len(visibility)

    def replay(self, entry: Entry) -> None:
        """A committed entry found in the log at start."""
        found = image.decode(entry.data)
        self.propose(entry.index, found.rows)
        self.commit(entry.index, entry.term, found.rows, [*found.shown, *found.hidden], len(entry.data))

    @property
    def pending_entries(self) -> int:
        """Committed entries not yet stored."""
        return len(self._committed)

    def take_flush(self) -> tuple[list[tuple[bytes, bytes | None]], list[VisibilityOp], int, int] | None:
        """Everything committed and not stored, later over earlier: (rows, visibility, index, term)."""
        if not self._committed:
            return None
        latest: dict[bytes, bytes | None] = {}
        visibility: list[VisibilityOp] = []
        for _, _, rows, ops in self._committed:
            latest.update(rows)
            visibility.extend(ops)
        index, term = self._committed[-1][0], self._committed[-1][1]
        self._committed.clear()
        self.committed_bytes = 0
        self.visibility_pending = 0
        prefix = self._prefix
        last: dict[tuple[str, str], VisibilityOp] = {}
        for op in visibility:
            last[op.namespace_id, op.run_id] = op
        return [(prefix + key, value) for key, value in latest.items()], list(last.values()), index, term

    def stored(self, flushed: list[tuple[bytes, bytes | None]], index: int) -> None:
        """Storage has these rows, up to entry `index`: the overlay need not hold them any more."""
        buckets = self._buckets
        for full, _ in flushed:
            key = full[4:]
            name = _bucket(key)
            bucket = buckets.get(name)
            if bucket is None:
                continue
            held = bucket.get(key)
            if held is not None and held[0] <= index:
                del bucket[key]
                if not bucket:
                    del buckets[name]

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        bucket = self._buckets.get(_bucket(key))
        if bucket is not None:
            held = bucket.get(key)
            if held is not None:
                return held[1]
        return self._storage.get(self._prefix + key)

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order. All of the range lies in one kind."""
        assert start[:1] == end[:1] or end == bytes((start[0] + 1,)), "a scan stays within one kind"
        bucket = self._buckets.get(_bucket(start), {})
        over = sorted(((k, v[1]) for k, v in bucket.items() if start <= k < end), reverse=reverse)
        if not over:
            for key, value in self._storage.scan(self._prefix + start, self._prefix + end, limit, reverse):
                yield key[4:], value
            return
        under = self._storage.scan(self._prefix + start, self._prefix + end, 0, reverse)
        yield from _merge(over, under, limit, reverse)


def _merge(
    over: list[tuple[bytes, bytes | None]], under: Iterator[tuple[bytes, bytes]], limit: int, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    count = 0
    position = 0
    below = next(under, None)
    while position < len(over) or below is not None:
        if limit and count >= limit:
            return
        key = below[0][4:] if below is not None else b""
        if position < len(over):
            top, value = over[position]
            ahead = below is None or (top >= key if reverse else top <= key)
            if ahead:
                position += 1
                if below is not None and top == key:
                    below = next(under, None)
                if value is not None:
                    count += 1
                    yield top, value
                continue
        assert below is not None
        count += 1
        yield key, below[1]
        below = next(under, None)
