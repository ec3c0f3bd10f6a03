"""What a node asks of its disk: one durable write a round, ordered reads, and the truth after a crash.

A `Round` is everything all Raft groups of the node have to make durable at one moment. `write` is called on
the node's one writer thread, one at a time, and returns when the round is durable (fsync) as a whole or
not at all. Reads are called on the event loop's thread, at any time, also while a write is under way;
they see whole rounds only.

`fold` stores rows without delaying appends: it may be called on a second thread, one at a time, while `write`
goes on, on its own, with rounds that only append (entries and hard states). Such a round never waits for a
fold, unless it finds the journal full; a `write` with more in it waits until the fold has ended. `maintain`
belongs to the thread that folds. A round given to `fold` is about entries that `write` has returned for.
`load`, `write`, `fold` and `close` raise the same errors.

Two kinds of data: the Raft *log* (entries not yet turned into rows for good) and the *rows* (the
state machine's image at `applied`). A round may carry log entries of some groups and, independently, rows of
entries that were committed earlier; rows and the `applied` index that goes with them are one unit.
What is after `applied` is rebuilt from the log at start, so rows may lag the log by any amount.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from history_store.visibility.record import ExecutionRecord, VisibilityOp

if TYPE_CHECKING:
    from history_store.storage.scrub import Checked


class Entry(NamedTuple):
    """One Raft log entry."""

    term: int
    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here
    kind: int  # 0 data, 1 no-op of a new leader, 2 configuration change
    data: bytes


class HardState(NamedTuple):
    """What a Raft group must never forget (Raft, figure 2: persistent state)."""

    term: int = 0
    vote: int = 0  # node id voted for in `term`; 0 = none
    commit: int = 0


@dataclass(slots=True)
class GroupLog:
    """What `load` found of one group."""

    hard_state: HardState
    applied: int  # rows are exact up to here
    applied_term: int  # the term of the entry at `applied`
    compacted: int  # entries up to here are gone from the log
    compacted_term: int
    entries: list[Entry]  # contiguous, first index is compacted + 1
    conf: bytes = b""  # the group's membership as of `applied`, as the raft core encodes it


@dataclass(slots=True)
class Round:
    """One durable write. Every field may be empty."""

    entries: list[tuple[int, list[Entry]]] = field(default_factory=list)
    # (group, entries): appended; where an index exists already, it and all after it are replaced
    hard_states: list[tuple[int, HardState]] = field(default_factory=list)
    rows: list[tuple[bytes, bytes | None]] = field(default_factory=list)
    # (key, value); None deletes; later wins. A key starts with its group's 4 bytes, big-endian
    visibility: list[VisibilityOp] = field(default_factory=list)
    renewed: list[ExecutionRecord] = field(default_factory=list)
    # records that were damaged, to be written anew before `visibility`, whatever is there of their runs
    applied: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    # (group, index, term, conf): the rows above bring the group's image to here
    compact: list[tuple[int, int, int]] = field(default_factory=list)
    # (group, index, term): log entries up to index are not needed any more. An index beyond the log, or a
    # term that contradicts it, voids the group's whole log
    wipe: list[int] = field(default_factory=list)
    # groups whose rows all go, before `rows` are put: for an image that replaces them. With a `compact` of
    # the same group its whole log goes, too. The projection does not know groups: give a DeleteRecord for
    # each run of the old image, before the records of the new one
    void: list[int] = field(default_factory=list)
    # groups whose whole log goes with their `compact`, whatever of it is behind that: for a replica that is
    # no member any more. Rows stay


class GroupImage(NamedTuple):
    """All rows of a group at one moment."""

    applied: int  # what they are exact for
    applied_term: int
    conf: bytes
    rows: Iterator[tuple[bytes, bytes]]  # in key order


class Storage(Protocol):
    """The port. Errors: `StorageFull` (nothing written, try again later), `StorageBroken` (stop the node)."""

    def load(self) -> dict[int, GroupLog]:
        """Read the log of every group. `StorageCorrupt` names file, place and what to do."""

    def write(self, batch: Round) -> None:
        """Make it durable, as a whole."""

    def fold(self, batch: Round) -> None:
        """Make rows, visibility, `applied` and `compact` durable, as a whole; appends go on meanwhile.

        Compaction only up to what the log has: an image from elsewhere goes through `write`.
        """

    def maintain(self) -> None:
        """Work for between rounds: called after those who wait for a round were told."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order (limit 0 = all)."""

    def sweep(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes | None]]:
        """As `scan`, for who takes rows away: None stands for a value that is not what was written."""

    def check(self, place: bytes, bytes_max: int) -> Checked:
        """Whether what is on disk is what was written: a piece of it, see scrub.py. On any one thread."""

    def condemn(self, why: str) -> None:
        """The file as a whole is damaged: it will not be opened again."""

    def image(self, group: int) -> AbstractContextManager[GroupImage]:
        """All rows of a group as they are on disk now, until the block ends; any one thread may read them.

        While it lasts the disk keeps what is replaced, so it should not last for hours.
        """

    def visibility_connection(self) -> sqlite3.Connection:
        """A read-only connection on the projection, for one thread at a time (a new one each call)."""

    def size_bytes(self) -> int:
        """What the data takes on disk."""

    def close(self) -> None:
        """Give everything back; a later open needs no recovery."""


def check_fold(batch: Round) -> None:
    """A fold beside appends has nothing that would have to be ordered among them."""
    if batch.entries or batch.hard_states or batch.wipe or batch.void:
        raise ValueError("entries, hard states, wipes and voids go through write")


class StorageError(Exception):
    """Base of what a disk can do to us; the message says what to do next, if not otherwise noted."""


class StorageFull(StorageError):
    """No space left. Definite: nothing of the round was written; try again when there is space."""


class StorageLocked(StorageError):
    """Another process uses the file. Definite: nothing was read or written."""


class StorageReadOnly(StorageError):
    """The file or file system cannot be written."""


class StorageBroken(StorageError):
    """An I/O error with unknown outcome: the node must stop and recover from the log at start."""


class StorageCorrupt(StorageError):
    """What is on disk is not what was written, or not ours, or of a newer version. Never served."""


class StorageDamaged(StorageCorrupt):
    """A file has lost something. Says what, and not what to do: that depends on who else has it."""


class RowCorrupt(StorageCorrupt):
    """One row is not what was written; the file around it is whole, as far as is known."""

    def __init__(self, message: str, key: bytes) -> None:
        super().__init__(message)
        self.key = key
