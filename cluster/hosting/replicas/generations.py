"""Generations of rows on this node: which are arriving, which are to go, and what is still to be shown.

Rows lie under a generation's number (see `history_store.shard.snapshot`). An image comes under a new one, and
when it is complete one write makes it the group's; then the records that came with it are shown (put into the
projection), the old generation's rows are deleted, and runs that only it had are hidden (`stale`). Both are
done a few rows a round, so that other groups' rounds are short.

What is under way is written in the *book*, rows of this node under a generation that no group has, in the
same rounds as what they speak of:

    g  group        the generation that the group's last image has
    s  group        an image that is arriving, and how far it is (`Staged`)
    d  generation   one that is to go: (group, whether its runs were shown)
    m  shard        rows that are copied for a shard that is to come (shards/splitting.py)
    p  shard        that a shard's rows were given to that one, and are to be cleared away here

So a restart goes on where it was; rows of a generation that the book does not know are leftovers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cluster.membership import META_GROUP
from history_store.engine import keys
from history_store.shard import snapshot
from history_store.shard.snapshot import Progress
from history_store.shard.split import Copy, Parting
from history_store.storage.contract import RowCorrupt, StorageCorrupt
from history_store.visibility.record import DeleteRecord

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.groups.committer import Committer
    from cluster.hosting.groups.group import Group, RowList
    from history_store.storage.contract import Round

log = structlog.get_logger("snapshots")

# A round with so many rows takes some milliseconds.
DELETED_AT_ONCE = 128
SHOWN_AT_ONCE = 64
PAUSE_S = 0.005  # between two such rounds, and as long as they take: this is nobody's hurry

_BOOK = snapshot.prefix(0xFFFFFFFF)
_GENERATION, STAGED, _DROPPED = b"g", b"s", b"d"
COPIED, PARTED = b"m", b"p"


class Staged(msgspec.Struct, array_like=True):
    """An image that is arriving, as the book has it."""

    group: int
    generation: int
    image: int
    index: int
    term: int
    conf: bytes
    progress: Progress
    local: bool = False  # not from a leader: made here


_pack = msgspec.msgpack.Encoder().encode
_staged = msgspec.msgpack.Decoder(Staged).decode
_number = msgspec.msgpack.Decoder(int).decode
_dropped = msgspec.msgpack.Decoder(tuple[int, bool]).decode
decode_copy = msgspec.msgpack.Decoder(Copy).decode
decode_parting = msgspec.msgpack.Decoder(Parting).decode


class Job(Protocol):
    """Work of several rounds."""

    def fill(self, batch: Round) -> bool:
        """Put a little of it into the round. True: that was the last."""

    def done(self) -> None:
        """All of it is durable."""


class Generations:
    """The book, and the work that follows from it."""

    def __init__(self, committer: Committer, on_done: Callable[[], None]) -> None:
        self.committer = committer
        self.storage = committer.storage
        self.deleted = 0  # rows
        self.shown = 0  # records
        self.owner_of: Callable[[int], int] = lambda _slot: META_GROUP  # the group of a slot, by the table
        self._on_done = on_done
        self._next = snapshot.GENERATION_FIRST
        self._jobs: deque[Job] = deque()
        self._working = False
        self._timer: asyncio.TimerHandle | None = None  # of the pause between two rounds
        self._began = 0.0  # the round under way
        self._last = False  # the round under way has the last of the first job
        self._closed = False

    def recover(self) -> list[Staged]:
        """Take up what was under way; answers the images that were arriving."""
        known: set[int] = set()
        staged: list[Staged] = []
        drops: list[_Drop] = []
        for key, value in self.storage.scan(_BOOK, _BOOK + b"\xff"):
            kind = key[4:5]
            if kind == _GENERATION:
                known.add(_number(value))
            elif kind == STAGED:
                staged.append(_staged(value))
                known.add(staged[-1].generation)
            elif kind == COPIED:
                known.add(decode_copy(value).target)
            elif kind == _DROPPED:
                generation = int.from_bytes(key[5:], "big")
                drops.append(_Drop(self, generation, *_dropped(value)))
                known.add(generation)
        for generation in self._on_disk():
            if generation not in known:
                log.warning("rows that nobody refers to are deleted", generation=generation)
                drops.append(_Drop(self, generation, 0, shown=False))
                known.add(generation)
        self._next = max([self._next, *(generation + 1 for generation in known)])
        for drop in drops:
            self.begin(drop)
        return staged

    def _on_disk(self) -> list[int]:
        found: list[int] = []
        start = snapshot.prefix(snapshot.GENERATION_FIRST)
        while (row := next(self.storage.scan(start, _BOOK, 1), None)) is not None:
            found.append(int.from_bytes(row[0][:4], "big"))
            start = snapshot.prefix_end(found[-1])
        return found

    def allocate(self) -> int:
        """A generation that has no rows."""
        self._next += 1
        return self._next - 1

    # ---- the book, for rounds of others

    @staticmethod
    def staged(image: Staged) -> tuple[bytes, bytes]:
        """The row that says how far an image is."""
        return _BOOK + STAGED + snapshot.prefix(image.group), _pack(image)

    def switched(self, image: Staged, old: int) -> RowList:
        """What goes with the write that makes an image the group's rows. Then call `begun`."""
        group = snapshot.prefix(image.group)
        return [
            (_BOOK + _GENERATION + group, _pack(image.generation)),
            (_BOOK + STAGED + group, None),
            (_BOOK + _DROPPED + snapshot.prefix(old), _pack((image.group, True))),
        ]

    def begun(self, group: Group, old: int) -> None:
        """That write is durable: show what came, and take away what was."""
        self.show(group)
        self.begin(_Drop(self, old, group.id, shown=True))

    @staticmethod
    def left(group: int, generation: int, old: int) -> RowList:
        """What goes with the write that takes a replica away: an empty generation. Then call `cleared`."""
        return [
            (_BOOK + _GENERATION + snapshot.prefix(group), _pack(generation)),
            (_BOOK + _DROPPED + snapshot.prefix(old), _pack((group, True))),
        ]

    def cleared(self, group: int, old: int) -> None:
        """That write is durable: take away what was."""
        self.begin(_Drop(self, old, group, shown=True))

    def show(self, group: Group) -> None:
        """Show the records that came with the group's image."""
        self.begin(_Show(self, group))

    def forget(self, image: Staged) -> None:
        """An image will not be needed: its rows go."""
        self.drop(image.generation, image.group, [(self.staged(image)[0], None)])

    def book(self, kind: bytes) -> list[bytes]:
        """The values of all rows of a kind."""
        return [value for _, value in self.storage.scan(_BOOK + kind, _BOOK + kind + b"\xff" * 5)]

    @staticmethod
    def key(kind: bytes, number: int) -> bytes:
        """The key of a row of the book."""
        return _BOOK + kind + snapshot.prefix(number)

    def drop(self, generation: int, group: int, keys_too: RowList) -> None:
        """Rows that were never shown are not needed; these rows of the book go with the first of them."""
        rows: RowList = [(self.key(_DROPPED, generation), _pack((group, False))), *keys_too]
        drop = _Drop(self, generation, group, shown=False)
        self.committer.store(lambda batch: batch.rows.extend(rows), lambda: self.begin(drop))

    # ---- the work

    def begin(self, job: Job) -> None:
        """Do it when those before it are done."""
        self._jobs.append(job)
        if not self._working:
            self._working = True
            self._work()

    def hurry(self) -> None:
        """Pause no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._work()

    def _work(self) -> None:
        self._timer = None
        if not self._closed:
            self.committer.store(self._fill, self._filled)

    def _fill(self, batch: Round) -> None:
        self._began = self.committer.loop.time()
        self._last = self._jobs[0].fill(batch)

    def _filled(self) -> None:
        if self._last:
            self._jobs.popleft().done()
            self._on_done()
        if self._jobs:
            took = self.committer.loop.time() - self._began
            self._timer = self.committer.loop.call_later(PAUSE_S and max(PAUSE_S, took), self._work)
        else:
            self._working = False

    def stale(
        self, group: int, found: Iterable[tuple[bytes, bytes | None]], *, kept: bool
    ) -> list[DeleteRecord]:
        """The records of runs whose rows these are, and which nobody here has any more; keys in full.

        The group had them. `kept`: it has them still where its present rows have them. Otherwise who got the
        slot has to have the row on this disk, or the run was deleted since, or is not for this node. If one
        has it that gave the slot on, that is looked at once more when its rows are cleared away.
        """
        if group == META_GROUP:
            return []
        own = self._rows_of(group) if kept else []
        splits = self.committer.splits
        others: dict[int, list[bytes]] = {}  # by slot
        gone: list[DeleteRecord] = []
        for full, value in found:
            key = full[4:]
            if key[:1] != keys.RUN or value is None:
                continue  # a damaged row: its run stays shown until another image comes
            slot = int.from_bytes(key[1:3], "big")
            if slot not in others:
                heirs = splits.heirs(slot, group) if splits is not None else []
                if not heirs or heirs[-1] not in self.committer.groups:
                    heirs.append(self.owner_of(slot))  # the logs that are here may not say all
                owners = set(heirs) - {group, META_GROUP}
                others[slot] = [start for owner in owners for start in self._rows_of(owner)]
            if not any(self._has(start + key) for start in (*own, *others[slot])):
                gone.append(DeleteRecord(*snapshot.run_name(value)))
        return gone

    def _rows_of(self, group: int) -> list[bytes]:
        """What the keys of a group's rows begin with, and those of what will be its rows with no records."""
        current = self.storage.get(self.key(_GENERATION, group))
        staged = self.storage.get(self.key(STAGED, group))
        found = [snapshot.prefix(group if current is None else _number(current))]
        if staged is not None and (image := _staged(staged)).local:
            found.append(snapshot.prefix(image.generation))
        return found

    def _has(self, key: bytes) -> bool:
        try:
            return self.storage.get(key) is not None
        except StorageCorrupt:
            return True

    def hiding(self, group: int | None) -> bool:
        """Whether runs are to be hidden that the group (None: any) had before."""
        return any(isinstance(job, _Drop) and job.hides(group) for job in self._jobs)

    @property
    def busy(self) -> bool:
        """Whether something is to be deleted or shown."""
        return self._working

    def close(self) -> None:
        """Begin no more; the next start goes on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()


class _Show:
    """Records that came with an image go into the projection. Later ones, of entries, were there first or
    come after them: a flush takes away the record that waits for the same run (`Rows.take_flush`)."""

    def __init__(self, generations: Generations, group: Group) -> None:
        self._generations = generations
        self._group = group
        self._generation = group.rows.generation

    def fill(self, batch: Round) -> bool:
        """A few records, before those that the round has of a flush."""
        if self._group.rows.generation != self._generation:
            return True  # the next image has its own
        start, end = snapshot.records_of(self._generation)
        found = self._generations.storage.sweep(start, end, SHOWN_AT_ONCE)
        batch.visibility[:0] = [snapshot.decode_record(value) for _, value in found if value is not None]
        for key, value in found:
            if value is None:  # another image has it
                self._group.damaged(RowCorrupt(f"record {key.hex()} is not what was written", key))
        batch.rows.extend((key, None) for key, _ in found)
        self._generations.shown += len(found)
        return len(found) < SHOWN_AT_ONCE

    def done(self) -> None:
        """All are shown."""
        if self._group.rows.generation == self._generation:
            self._group.rows.records_wait = False


class _Drop:
    """A generation's rows go."""

    def __init__(self, generations: Generations, generation: int, group: int, shown: bool) -> None:
        self._generations = generations
        self._generation = generation
        self._group = group
        self._shown = shown  # it was the group's: its runs are in the projection

    def fill(self, batch: Round) -> bool:
        """A few rows. Runs that the group has no more are hidden, before what the round has of a flush."""
        storage = self._generations.storage
        start, end = snapshot.prefix(self._generation), snapshot.prefix_end(self._generation)
        found = storage.sweep(start, end, DELETED_AT_ONCE)
        if self._shown:
            batch.visibility[:0] = self._generations.stale(self._group, found, kept=True)
        batch.rows.extend((key, None) for key, _ in found)
        self._generations.deleted += len(found)
        if len(found) == DELETED_AT_ONCE:
            return False
        batch.rows.append((_BOOK + _DROPPED + start, None))
        return True

    def hides(self, group: int | None) -> bool:
        """Until the last of its rows has gone."""
        return self._shown and group in (None, self._group)

    def done(self) -> None:
        """Nothing is left of it."""
        log.debug("a generation of rows is gone", group=self._group, generation=self._generation)
