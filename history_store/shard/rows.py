"""The rows of one shard: storage, and over it what is committed (or, at the leader, proposed) and not stored.

At the leader an entry's rows are visible from the moment it is proposed (the leader pipelines), and leave the
overlay when storage has them. The overlay is always reconstructible: it is exactly the entries after
`applied`. Writing entries' rows late, many at once, lets rows that change often (a run's core row, a task row
that is gone a millisecond later) be written once or never.

A follower reads no rows, so it keeps no overlay: committed entries wait as they came, and are decoded when
they are stored. `lead` builds the overlay, `follow` drops it with all that was proposed in vain.

While a shard is being split (split.py), what belongs to the coming half is stored twice; afterwards it is not
seen any more, until it is deleted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from history_store.engine.keys import HISTORY, ITEM
from history_store.raft import DATA
from history_store.shard import image, snapshot

if TYPE_CHECKING:
    from history_store.shard.split import Mirror, Slots
    from history_store.storage.contract import Entry, Storage
    from history_store.visibility.record import VisibilityOp

BUCKET_BYTES = 19  # kind, slot, run: items and history of one run share a bucket


def _bucket(key: bytes) -> bytes:
    kind = key[:1]
    return key[:BUCKET_BYTES] if kind in (ITEM, HISTORY) else kind


class _Committed:
    """An entry whose rows storage does not have yet; `data` is what they are decoded from, if not done."""

    __slots__ = ("data", "index", "rows", "term", "visibility")

    def __init__(
        self,
        index: int,
        term: int,
        rows: list[tuple[bytes, bytes | None]] | None,
        visibility: list[VisibilityOp] | None,
        data: bytes,
    ) -> None:
        self.index = index
        self.term = term
        self.rows = rows
        self.visibility = visibility
        self.data = data

    def decode(self) -> None:
        """Make rows and visibility of the data."""
        if self.rows is None:
            self.rows, self.visibility = _decode(self.data)
            self.data = b""


def _decode(data: bytes) -> tuple[list[tuple[bytes, bytes | None]], list[VisibilityOp]]:
    found = image.decode(data)
    return found.rows, [*found.shown, *found.hidden]


class Rows:
    """Reads through the overlay; collects what a flush has to write."""

    __slots__ = (
        "_along",
        "_buckets",
        "_committed",
        "_flushing",
        "_leads",
        "_prefix",
        "_storage",
        "committed_bytes",
        "generation",
        "gone",
        "group",
        "mirrors",
        "records_wait",
        "visibility_pending",
    )

    def __init__(self, storage: Storage, group: int, generation: int) -> None:
        self._storage = storage
        self.group = group
        self.generation = generation  # under which storage has these rows
        self.records_wait = False  # storage has records that came with an image and are not shown yet
        self._prefix = snapshot.prefix(generation)
        self._buckets: dict[bytes, dict[bytes, tuple[int, bytes | None]]] = {}
        self._committed: deque[_Committed] = deque()
        self._flushing: list[_Committed] = []  # taken for storage, which does not have them yet
        self._leads = True
        self.committed_bytes = 0
        self.visibility_pending = 0
        self.gone: Slots | None = None  # given up, and their rows not deleted yet: they are not seen
        self.mirrors: list[Mirror] = []
        self._along: list[tuple[int, tuple[bytes, bytes]]] = []

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
        self._committed.append(_Committed(index, term, rows, visibility, b""))
        self.committed_bytes += size
        self.visibility_pending += len(visibility)

    def receive(self, entry: Entry) -> None:
        """A committed data entry that this node did not propose (in its present term)."""
        if not self._leads:
            self._committed.append(_Committed(entry.index, entry.term, None, None, entry.data))
            self.committed_bytes += len(entry.data)
            self.visibility_pending += 1  # there may be some in it
            return
        rows, visibility = _decode(entry.data)
        self.propose(entry.index, rows)
        self.commit(entry.index, entry.term, rows, visibility, len(entry.data))

    def lead(self) -> None:
        """Everything up to our term's first entry is committed: show what storage does not have yet."""
        if self._leads:
            return
        self._leads = True
        for item in (*self._flushing, *self._committed):
            item.decode()
            assert item.rows is not None
            self.propose(item.index, item.rows)

    def follow(self) -> None:
        """Somebody else leads, or nobody: what was proposed here may never be."""
        self._leads = False
        self._buckets.clear()

    def discard(self) -> None:
        """An image will take the place of all this: nothing of it is to be stored any more."""
        assert not self._leads, "a leader has everything that is committed"
        self._committed.clear()
        self._along.clear()
        self.committed_bytes = self.visibility_pending = 0

    def store_along(self, index: int, key: bytes, value: bytes) -> None:
        """A row of the node's own, which storage is to have if and only if it has entry `index`."""
        self._along.append((index, (key, value)))

    def replace(self, generation: int) -> None:
        """These are the rows from now on: an image, and records that are to be shown."""
        assert not self._committed, "rows of before an image would be written over it"
        self.generation = generation
        self._prefix = snapshot.prefix(generation)
        self.records_wait = True

    def rebase(self, generation: int, entries: list[Entry]) -> None:
        """Put an image in place of these rows, as of the entry before `entries`, which are committed."""
        assert not self._leads, "damaged rows are not served"
        assert not self._flushing, "what is being stored would come after the image"
        self._committed.clear()
        self.committed_bytes = self.visibility_pending = 0
        self.replace(generation)
        for entry in entries:
            if entry.kind == DATA:
                self.receive(entry)
            else:
                self.commit(entry.index, entry.term, [], [], 0)

    @property
    def flushing(self) -> bool:
        """Whether storage is being given rows that it does not have yet."""
        return bool(self._flushing)

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
        for item in self._committed:
            item.decode()
            assert item.rows is not None
            assert item.visibility is not None
            latest.update(item.rows)
            visibility.extend(item.visibility)
        index, term = self._committed[-1].index, self._committed[-1].term
        besides: list[tuple[bytes, bytes | None]] = []
        for mirror in self.mirrors:
            besides += mirror.rows((item.index, item.rows or []) for item in self._committed)
        if self._along:
            besides += [row for at, row in self._along if at <= index]
            self._along = [item for item in self._along if item[0] > index]
        self._flushing.extend(self._committed)
        self._committed.clear()
        self.committed_bytes = 0
        self.visibility_pending = 0
        prefix = self._prefix
        last: dict[tuple[str, str], VisibilityOp] = {}
        for op in visibility:
            last[op.namespace_id, op.run_id] = op
        rows = [(prefix + key, value) for key, value in latest.items()]
        rows += besides
        if self.records_wait:  # these are newer than what the image brought
            rows += [(prefix + snapshot.record_key(*name), None) for name in last]
        return rows, list(last.values()), index, term

    def stored(self, flushed: list[tuple[bytes, bytes | None]], index: int) -> None:
        """Storage has these rows, up to entry `index`: the overlay need not hold them any more."""
        self._flushing = [item for item in self._flushing if item.index > index]
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
        held = bucket.get(key) if bucket is not None else None
        value = held[1] if held is not None else self._storage.get(self._prefix + key)
        if self.gone is not None and value is not None and self.gone.have(key, value):
            return None
        return value

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order. All of the range lies in one kind."""
        if self.gone is None:
            return self._scan(start, end, limit, reverse)
        have = self.gone.have
        kept = (row for row in self._scan(start, end, 0, reverse) if not have(*row))
        return islice(kept, limit) if limit else kept

    def _scan(self, start: bytes, end: bytes, limit: int, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
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
