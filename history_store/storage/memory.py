"""Storage that lives as long as the process: for tests, the simulator, and a server without a file.

It keeps the promises of the port except the one about power: rounds are whole, reads see whole rounds, and
`crash` gives what a restart would find. The projection of executions is a real SQLite database in memory, so
that the same queries run against it.

Test hooks: `fail_next` makes the next write fail, before or after it took effect; `damage` makes a row read
as damaged; `crash` restarts the disk.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from history_store.storage.contract import (
    Entry,
    GroupImage,
    GroupLog,
    HardState,
    Round,
    RowCorrupt,
    StorageBroken,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
    check_fold,
)
from history_store.storage.keeper import LogGap, check_follows
from history_store.storage.ordered import OrderedKeys
from history_store.storage.scrub import Checked
from history_store.storage.tables import group_bounds
from history_store.visibility import projection

_numbers = itertools.count(1)
# Failures after which the same storage goes on as if nothing had happened.
_DEFINITE = (StorageFull, StorageReadOnly, StorageLocked)


class MemoryStorage:
    """The port, on dictionaries."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # a round is applied as one, also for the loop's thread
        self._groups: dict[int, GroupLog] = {}
        self._commits: dict[int, int] = {}  # commit indexes newer than the durable hard state
        self._rows: dict[bytes, bytes] = {}
        self._keys = OrderedKeys()
        self._bytes = 0
        self._failure: tuple[StorageError, bool] | None = None
        self._damaged: set[bytes] = set()
        self._broken = ""
        self._uri = f"file:holdfast-{os.getpid()}-{next(_numbers)}?mode=memory&cache=shared"
        self._projection = self._connect()
        projection.create(self._projection)

    # ------------------------------------------------------------------------------------------ test hooks

    def fail_next(self, error: StorageError, *, applied: bool = False) -> None:
        """The next write raises `error`; with `applied`, after it took effect (an outcome nobody knows)."""
        self._failure = (error, applied)

    def damage(self, key: bytes) -> None:
        """A row is not what was written, until it is written again or taken away."""
        assert key in self._rows
        self._damaged.add(key)

    def _check_rows(self, keys: Iterable[bytes]) -> None:
        if self._damaged:
            for key in keys:
                if key in self._damaged:
                    raise RowCorrupt(f"memory is damaged: row {key.hex()} is not what was written", key)

    def crash(self) -> None:
        """Become what a restarted process would find: whole rounds, and no commit index that had no write."""
        with self._lock:
            self._commits.clear()
            self._failure = None
            self._broken = ""

    # ------------------------------------------------------------------------------------------------ port

    def load(self) -> dict[int, GroupLog]:
        """Read the log of every group."""
        with self._lock:
            return {
                group: GroupLog(
                    hard_state=log.hard_state._replace(
                        commit=self._commits.get(group, log.hard_state.commit)
                    ),
                    applied=log.applied,
                    applied_term=log.applied_term,
                    compacted=log.compacted,
                    compacted_term=log.compacted_term,
                    entries=log.entries[:],
                    conf=log.conf,
                )
                for group, log in self._groups.items()
            }

    def write(self, batch: Round) -> None:
        """Take the round, as a whole."""
        if self._broken:
            raise StorageBroken(self._broken)
        failure, self._failure = self._failure, None
        if failure is not None and not failure[1]:
            self._fail(failure[0])
        with self._lock:
            self._check(batch)
            if batch.visibility or batch.renewed:
                self._project(batch)
            self._compact(batch)
            self._append(batch)
            self._take_states(batch)
            for group in batch.wipe:
                for key in self._keys_of(group):
                    self._set(key, None)
            for key, value in batch.rows:
                self._set(key, value)
        if failure is not None:
            self._fail(failure[0])

    def fold(self, batch: Round) -> None:
        """As `write`."""
        check_fold(batch)
        with self._lock:
            for group, index, term in batch.compact:
                log = self._group(group)
                if index > log.compacted and self._is_void(log, index, term):
                    raise LogGap(f"group {group}: a fold compacts beyond the log; use write")
        self.write(batch)

    def maintain(self) -> None:
        """Nothing to do."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        with self._lock:
            self._check_rows((key,))
            return self._rows.get(key)

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order, as they are now."""
        with self._lock:
            rows = self._rows
            found = list(self._keys.between(start, end, limit, reverse))
            self._check_rows(found)
            return iter([(key, rows[key]) for key in found])

    def sweep(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes | None]]:
        """As `scan`, for who takes rows away: None stands for a value that is not what was written."""
        with self._lock:
            found = self._keys.between(start, end, limit, False)
            return [(key, None if key in self._damaged else self._rows[key]) for key in found]

    def check(self, place: bytes, bytes_max: int) -> Checked:  # noqa: ARG002 - all of it at once
        """Whether rows are what was written."""
        with self._lock:
            return Checked(b"", self._bytes, sorted(self._damaged), [], [])

    def condemn(self, why: str) -> None:
        """Nothing opens it again anyway."""

    @contextmanager
    def image(self, group: int) -> Iterator[GroupImage]:
        """All rows of a group, as they are now."""
        with self._lock:
            log = self._groups.get(group) or GroupLog(HardState(), 0, 0, 0, 0, [])
            rows = [(key, self._rows[key]) for key in self._keys_of(group)]
            image = GroupImage(log.applied, log.applied_term, log.conf, iter(rows))
        yield image

    def visibility_connection(self) -> sqlite3.Connection:
        """A read-only connection on the projection."""
        connection = self._connect()
        connection.execute("PRAGMA query_only=ON")
        return connection

    def size_bytes(self) -> int:
        """Keys, values and log data; nothing is on a disk."""
        with self._lock:
            return self._bytes + sum(
                len(entry.data) for log in self._groups.values() for entry in log.entries
            )

    def close(self) -> None:
        """The projection goes with its last connection; the rest with the object."""
        self._projection.close()

    # --------------------------------------------------------------------------------------------- helpers

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._uri, uri=True, isolation_level=None, check_same_thread=False)
        # Connections that share a cache lock tables against each other and do not wait; readers that take no
        # locks cannot stop the writer. They may see a projection some microseconds before its rows.
        connection.execute("PRAGMA read_uncommitted=ON")
        return connection

    def _fail(self, error: StorageError) -> None:
        if not isinstance(error, _DEFINITE):
            self._broken = str(error) or "an earlier write failed"
        raise error

    def _keys_of(self, group: int) -> list[bytes]:
        start, end = group_bounds(group)
        return list(self._keys.between(start, end, 0, False))

    def _group(self, group: int) -> GroupLog:
        log = self._groups.get(group)
        if log is None:
            log = self._groups[group] = GroupLog(HardState(), 0, 0, 0, 0, [])
        return log

    def _check(self, batch: Round) -> None:
        """Refuse a gap before anything is changed."""
        compact = {group: (index, term) for group, index, term in batch.compact}
        lasts: dict[int, int] = {}
        for group, entries in batch.entries:
            log = self._group(group)
            index, term = compact.get(group, (0, 0))
            last = lasts.get(group)
            if last is None:
                last = log.compacted + len(log.entries)
                if self._resets(batch, log, group, index, term):
                    last = index
            lasts[group] = max(check_follows(group, entries, last), log.compacted, index)

    def _resets(self, batch: Round, log: GroupLog, group: int, index: int, term: int) -> bool:
        if group in batch.wipe or group in batch.void:
            return index >= log.compacted and index > 0
        return index > log.compacted and self._is_void(log, index, term)

    @staticmethod
    def _is_void(log: GroupLog, index: int, term: int) -> bool:
        at = index - log.compacted - 1
        return at >= len(log.entries) or log.entries[at].term != term

    def _compact(self, batch: Round) -> None:
        for group, index, term in batch.compact:
            log = self._group(group)
            resets = self._resets(batch, log, group, index, term)
            if index <= log.compacted and not resets:
                continue
            if resets:
                log.entries.clear()
            else:
                del log.entries[: index - log.compacted]
            log.compacted, log.compacted_term = index, term

    def _append(self, batch: Round) -> None:
        for group, entries in batch.entries:
            if entries:
                merge_entries(self._group(group), entries)

    def _take_states(self, batch: Round) -> None:
        wrote = {group for group, *_ in batch.applied} | {group for group, _ in batch.entries}
        for group, hard in batch.hard_states:
            log = self._group(group)
            if hard[:2] != log.hard_state[:2] or group in wrote:
                log.hard_state = hard
                self._commits.pop(group, None)
            else:
                self._commits[group] = hard.commit
        for group, index, term, conf in batch.applied:
            log = self._group(group)
            log.applied, log.applied_term, log.conf = index, term, conf

    def _set(self, key: bytes, value: bytes | None) -> None:
        self._damaged.discard(key)
        old = self._rows.get(key)
        if value is None:
            if old is not None:
                del self._rows[key]
                self._keys.remove(key)
                self._bytes -= len(key) + len(old)
            return
        self._rows[key] = value
        if old is None:
            self._keys.add(key)
            self._bytes += len(key) + len(value)
        else:
            self._bytes += len(value) - len(old)

    def _project(self, batch: Round) -> None:
        self._projection.execute("BEGIN")
        try:
            if batch.renewed:
                projection.renew(self._projection, batch.renewed)
            projection.apply(self._projection, batch.visibility)
        except BaseException:
            self._projection.execute("ROLLBACK")
            raise
        self._projection.execute("COMMIT")


def merge_entries(log: GroupLog, entries: list[Entry]) -> None:
    """Append; where an index exists already, it and all after it are replaced; compacted ones are skipped."""
    at = entries[0].index - log.compacted - 1
    if at < 0:
        entries = entries[-at:]
        at = 0
    del log.entries[at:]
    log.entries.extend(entries)
