"""Storage in one SQLite file and a journal beside it: the log, the rows and the projection of executions.

Theory of operation. A round that only appends to logs is one write into the journal (journal.py), and durable
when that returns. Everything else is one SQLite transaction (`_store`): rows, visibility, compaction, and
with them the log rows of all rounds that are in the journal only and still needed; those nobody needs any
more, which is most, never get to SQLite. The journal's blocks are free again then. When it is full, the next
round is such a transaction, too. A clean end folds all of the journal into the database and removes it.

Who may call what: `write` one thread; `fold` and `maintain` that one or one other, beside it. Two locks keep
them apart: `_storing` is held by whoever writes to SQLite, `_appending` for as long as the journal and the
keeper are changed, so that a fold takes its plan between two appends, and appends go on while it is carried
out. Order: `_storing` first. `_turn` gives a fold that waits for `_appending` its turn.

One connection writes, one reads (the loop's thread); SQLite's write-ahead log lets them work side by side,
and synchronous=FULL makes a commit durable when it returns. That log is copied into the file by `maintain`,
between rounds; if nobody calls it, by a round that has rows.
Which log rows may go is keeper.py's business; what is checked before SQLite opens the file is files.py's;
tables and statements are in tables.py.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from heapq import merge
from pathlib import Path
from zlib import crc32

from history_store.storage import files, recovery, scrub, tables
from history_store.storage.contract import (
    GroupImage,
    GroupLog,
    Round,
    RowCorrupt,
    StorageBroken,
    StorageCorrupt,
    StorageDamaged,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
    check_fold,
)
from history_store.storage.frames import FrameError, decode, encode
from history_store.storage.keeper import GroupRow, LogGap, LogKeeper, Plan
from history_store.storage.memory import merge_entries
from history_store.storage.tables import Identity, JournalState, intact
from history_store.storage.wal import PAGE_BYTES, WalLength
from history_store.visibility import projection

_SCANNERS_MAX = 2  # connections kept for long scans
# A scan that fits is one read; a longer one gets a connection of its own, and is read as it is used.
_SCAN_ROWS, _SCAN_BYTES = 256, 1 << 20
_WRITER_CACHE_BYTES_MAX = 8 << 20  # both caches count towards the 100 MB of an idle server
_READER_CACHE_BYTES_MAX = 8 << 20
_SCAN_CACHE_BYTES_MAX = 2 << 20


class SqliteStorage:
    """The port, on one file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cluster_id: str = "",
        node_id: int = 0,
        disk: str = "",
        checkpoint_bytes: int = 4 << 20,
        pages_max: int = 0,
        journal_bytes: int = 16 << 20,
    ) -> None:
        """Open the file, or make it. An empty `cluster_id` or zero `node_id` takes what the file says.

        `disk`: the name of a file that is made here; "" draws one.
        `checkpoint_bytes`: how long the write-ahead log gets before it is copied into the file.
        `pages_max`: a limit of the file in pages, 0 = the disk's.
        `journal_bytes`: the length of the journal; it takes that space while the storage is open.
        """
        self.path = Path(os.path.realpath(path))
        self._broken = ""
        self._keeper: LogKeeper | None = None
        self._body = bytearray()
        self._pending: dict[int, bytes] = {}  # log rows that are in the journal only, by sequence
        self._storing = threading.Lock()
        self._appending = threading.Lock()
        self._turn = threading.Lock()
        self._pages_max = pages_max
        self._checkpoint_frames = max(checkpoint_bytes // PAGE_BYTES, 16)
        self._wal = WalLength(self.path)
        self._scanners: list[sqlite3.Connection] = []
        self._closed = False
        self._lock = files.FileLock(self.path)
        try:
            if self.path.exists():
                files.inspect(self.path)
            else:
                disk = disk or secrets.token_hex(8)
                tables.create(self.path, cluster_id or secrets.token_hex(8), node_id or 1, disk)
            self._writer = self._open(_WRITER_CACHE_BYTES_MAX)
            try:
                self.identity = self._check_identity(cluster_id, node_id)
                self._reader = self._open_reader(_READER_CACHE_BYTES_MAX)
                try:
                    self._journal, self._journal_known = recovery.begin(
                        self._writer, self.path, journal_bytes
                    )
                except BaseException:
                    self._reader.close()
                    raise
            except BaseException:
                self._rollback()
                self._writer.close()
                raise
        except sqlite3.Error as error:
            self._lock.release()
            raise self._translate(error, "opening it") from error
        except BaseException:
            self._lock.release()
            raise

    # ------------------------------------------------------------------------------------------------ port

    def load(self) -> dict[int, GroupLog]:
        """Read the log of every group."""
        with self._storing, self._appending:
            return self._load()

    def _load(self) -> dict[int, GroupLog]:
        try:
            for table in ("log", "groups"):  # a damaged page can hide rows, and no checksum misses them
                (said,) = self._writer.execute(f"PRAGMA quick_check({table})").fetchone()
                if said != "ok":
                    raise self._corrupt(f"table {table}: {said}")
            keeper = LogKeeper(self._group_rows(self._writer))
            logs = keeper.logs()
            found_rows = self._writer.execute("SELECT sequence, body FROM log ORDER BY sequence")
            for sequence, body in merge(found_rows, sorted(self._pending.items())):
                try:
                    entries, hard_states = decode(sequence, body)
                    counting = keeper.replay(sequence, entries, hard_states)
                except (FrameError, LogGap) as error:
                    raise self._corrupt(f"its log row {sequence} cannot be used: {error}") from error
                for group, found in counting:
                    if group not in logs:
                        logs[group] = keeper.logs()[group]
                    merge_entries(logs[group], found)
            keeper.replayed()
        except LogGap as error:
            raise self._corrupt(str(error)) from error
        except sqlite3.Error as error:
            raise self._translate(error, "reading the log") from error
        for group, log in keeper.logs().items():
            log.entries = logs[group].entries if group in logs else []
            logs[group] = log
        self._keeper = keeper
        return logs

    def write(self, batch: Round) -> None:
        """Make it durable, as a whole. On one thread."""
        if self._broken:
            raise StorageBroken(self._broken)
        if self._keeper is None:
            self.load()
        if batch.rows or batch.visibility or batch.renewed or batch.applied or batch.compact or batch.wipe:
            with self._storing:
                self._store(batch, fold=False)
        elif not self._append(batch):
            with self._storing:  # a fold under way ends first, and may make room
                if not self._append(batch):
                    self._store(batch, fold=False)

    def fold(self, batch: Round) -> None:
        """Store rows and what goes with them, and give the journal's space back; `write` may run beside."""
        check_fold(batch)
        if self._broken:
            raise StorageBroken(self._broken)
        if self._keeper is None:
            self.load()
        with self._storing:
            self._store(batch, fold=True)

    def maintain(self) -> None:
        """Copy the write-ahead log into the file when it has grown. Does not wait for a fold."""
        if self._wal.pages > self._checkpoint_frames and not self._broken and self._storing.acquire(False):
            try:
                self._checkpoint()
            finally:
                self._storing.release()

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        text = tables.GET_HISTORY if key[4:5] == b"h" else tables.GET_ROW
        try:
            row = self._reader.execute(text, (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._translate(error, "reading a row") from error
        if row is None:
            return None
        value: bytes = row[0]
        if not intact(key, value, row[1]):
            raise self._bad_row(key)
        return value

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order, all as they were at one moment.

        That is the moment of the call, or, when there are many or large ones, that of the first `next`.
        """
        text = tables.scan_text(start, end, reverse)
        first = min(limit, _SCAN_ROWS) if limit else _SCAN_ROWS
        try:
            # one more than needed, so that running to the end tells whether there is more, and ends the read
            cursor = self._reader.execute(text, (start, end, first if first == limit else first + 1))
            found, size = [], 0
            for row in cursor:
                found.append(row)
                size += len(row[1]) if type(row[1]) is bytes else 0  # damage can make anything of it
                if size > _SCAN_BYTES:
                    break
            cursor.close()
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        if len(found) > first or size > _SCAN_BYTES:
            return self._scan_long(text, (start, end, limit or -1))
        return iter([self._checked(row) for row in found])

    def sweep(self, start: bytes, end: bytes, limit: int) -> list[tuple[bytes, bytes | None]]:
        """As `scan`, for who takes rows away: None stands for a value that is not what was written."""
        try:
            found = self._reader.execute(tables.scan_text(start, end, False), (start, end, limit)).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        return [(key, value if intact(key, value, crc) else None) for key, value, crc in found]

    def check(self, place: bytes, bytes_max: int) -> scrub.Checked:
        """Whether what is on disk is what was written: a piece of it. On any one thread."""
        connection = self._open_reader(_SCAN_CACHE_BYTES_MAX)
        try:
            return scrub.check(connection, place, bytes_max)
        except sqlite3.Error as error:
            raise self._translate(error, "checking it") from error
        finally:
            connection.close()

    def condemn(self, why: str) -> None:
        """The file as a whole is damaged: it will not be opened again."""
        files.condemn(self.path, why)

    @contextmanager
    def image(self, group: int) -> Iterator[GroupImage]:
        """All rows of a group and what they are exact for, at one moment, for as long as the block lasts."""
        connection = self.visibility_connection()
        try:
            connection.execute("BEGIN")
            found = self._group_rows(connection, group)
            row = found[0] if found else GroupRow(group)
            start, end = tables.group_bounds(group)
            cursor = connection.execute(tables.scan_text(start, end, False), (start, end, -1))
            yield GroupImage(row.applied, row.applied_term, row.conf, map(self._checked, cursor))
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        finally:
            connection.close()

    def visibility_connection(self) -> sqlite3.Connection:
        """A read-only connection on the projection."""
        try:
            return tables.open_reader(self.path, _SCAN_CACHE_BYTES_MAX)
        except sqlite3.Error as error:
            raise self._translate(error, "opening it") from error

    def size_bytes(self) -> int:
        """What the data takes on disk."""
        total = 0
        for suffix in (*files.DATA_SUFFIXES, "-shm"):
            with suppress(FileNotFoundError):
                total += os.stat(f"{self.path}{suffix}").st_blocks * 512
        return total

    def close(self) -> None:
        """Give everything back; a later open needs no recovery."""
        self._closed = True
        for connection in (*self._scanners, self._reader):
            connection.close()
        self._scanners.clear()
        with self._storing:
            if not self._broken:
                # what cannot be brought into the file now is safe where it is
                with suppress(StorageError):
                    self._close_journal()
                with suppress(sqlite3.Error):
                    self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._journal.close()
            self._writer.close()
        self._lock.release()

    # ---------------------------------------------------------------------------------------- for operators

    def verify(self, say: Callable[[str], None] = lambda _: None) -> list[str]:
        """Read and check everything: structure, checksums, log. Returns what is wrong, in sentences. Slow."""
        problems: list[str] = []
        try:
            say("structure")
            for (line,) in self._writer.execute("PRAGMA integrity_check(20)"):
                if line != "ok":
                    problems.append(f"{self.path}: {line}")
            for table in ("rows", "history"):
                say(table)
                for key, value, crc in self._writer.execute(f"SELECT key, value, crc FROM {table}"):  # noqa: S608 our names
                    if not intact(key, value, crc):
                        problems.append(str(self._bad_row(key)))
            say("log")
            for sequence, body in self._writer.execute("SELECT sequence, body FROM log"):
                try:
                    decode(sequence, body)
                except FrameError as error:
                    problems.append(f"{self.path}: log row {sequence}: {error}")
            say("journal")
            with self._storing, self._appending:
                problems += recovery.verify(self._writer, self.path, self._journal_known, self._journal)
        except sqlite3.Error as error:
            problems.append(str(self._translate(error, "verifying it")))
        return problems

    # ------------------------------------------------------------------------------------------- opening

    def _open(self, cache_bytes: int) -> sqlite3.Connection:
        connection = tables.connect(self.path)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise StorageReadOnly(  # noqa: TRY301 it closes the connection on the way, like all others
                    f"{self.path}: the file system has no shared memory for SQLite. Use a local disk"
                )
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={self._checkpoint_frames * PAGE_BYTES * 4}")
            connection.execute(
                "PRAGMA secure_delete=OFF"
            )  # some builds overwrite what is deleted: twice the writes
            connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
            connection.execute("BEGIN IMMEDIATE")
            upgraded = tables.upgrade(connection)
            connection.execute("COMMIT")
            if upgraded:  # a long write-ahead log would have to be checked at the next start
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if self._pages_max:
                connection.execute(f"PRAGMA max_page_count={self._pages_max}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _close_journal(self) -> None:
        """Everything into the database; then the journal may go."""
        if self._keeper is None:  # nothing was read, so nothing was written
            self._keeper = LogKeeper([])
        self._store(Round(), fold=True, last=True)
        self._journal.remove()

    def _check_identity(self, cluster_id: str, node_id: int) -> Identity:
        meta: dict[str, str] = dict(self._writer.execute("SELECT name, value FROM meta").fetchall())
        name, number = meta.get("cluster_id", ""), meta.get("node_id", "")
        if meta.get("check") != str(crc32(f"{number} {name}".encode())):
            raise self._corrupt("its identity (table meta) is not what was written")
        found = Identity(name, int(number), meta.get("disk", ""))
        if (cluster_id and cluster_id != found.cluster_id) or (node_id and node_id != found.node_id):
            raise StorageCorrupt(
                f"{self.path} belongs to node {found.node_id} of cluster {found.cluster_id}, not to "
                f"node {node_id or found.node_id} of cluster {cluster_id or found.cluster_id}. "
                "Name the right file"
            )
        return found

    # -------------------------------------------------------------------------------------------- writing

    def _append(self, batch: Round) -> bool:
        """Write a round that only appends to logs into the journal; False if that has no room for it."""
        with self._turn:
            self._appending.acquire()
        try:
            keeper = self._keeper
            assert keeper is not None, "load sets the keeper"
            plan = keeper.plan(batch)
            if plan.log:
                body = self._body
                encode(plan.sequence, batch.entries, batch.hard_states, body)
                try:
                    if not self._journal.append(plan.sequence, body):
                        return False
                except StorageBroken as error:
                    self._broken = str(error)
                    raise
                self._pending[plan.sequence] = bytes(body)
            keeper.commit(batch, plan)
        finally:
            self._appending.release()
        return True

    def _store(self, batch: Round, *, fold: bool, last: bool = False) -> None:
        """One SQLite transaction: the round, what is needed of the journal, and that it has been taken.

        `fold`: rounds may be appended meanwhile, so this one has nothing that must be ordered among them.
        `last`: the journal is not needed any more. The caller holds `_storing`.
        """
        keeper = self._keeper
        assert keeper is not None, "load sets the keeper"
        with self._turn:
            self._appending.acquire()
        try:
            plan = keeper.plan(batch, drop=True)
            if plan.resets and fold:
                raise LogGap(f"groups {sorted(plan.resets)}: a fold compacts beyond the log; use write")
            keeper.next_sequence = plan.sequence + 1  # appends beside us are later
            gone = set(plan.drop)
            taken = list(self._pending)
            moved = [(sequence, self._pending[sequence]) for sequence in taken if sequence not in gone]
            dropped = [sequence for sequence in plan.drop if sequence not in self._pending]
            mark = self._journal.mark
        finally:
            self._appending.release()
        if self._wal.pages > 4 * self._checkpoint_frames:
            self._checkpoint()
        before = self._journal_known
        state = before._replace(floor=mark.number, place=mark.offset) if not last else recovery.ended(before)
        try:
            self._transaction(batch, plan, moved, dropped, state)
        except BaseException as error:
            self._rollback()
            # an error without a code is of Python's binding, about a value; SQLite has not seen it
            if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode"):
                raise self._write_failed(error) from error
            raise
        with self._turn:
            self._appending.acquire()
        try:
            keeper.commit(batch, plan)
            for sequence in taken:
                del self._pending[sequence]
            self._journal.release(mark)
            self._journal_known = state
        finally:
            self._appending.release()

    def _transaction(
        self,
        batch: Round,
        plan: Plan,
        moved: list[tuple[int, bytes]],
        dropped: list[int],
        state: JournalState,
    ) -> None:
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        if moved:
            tables.put_log(writer, moved)
        if plan.log:
            encode(plan.sequence, batch.entries, batch.hard_states, self._body)
            tables.put_log(writer, [(plan.sequence, self._body)])
        for group in batch.wipe:
            tables.wipe(writer, group)
        if batch.rows:
            tables.put_rows(writer, dict(batch.rows))
        if batch.renewed:
            projection.renew(writer, batch.renewed)
        if batch.visibility:
            projection.apply(writer, batch.visibility)
        if plan.groups:
            tables.put_groups(writer, plan.groups)
        if dropped:
            tables.drop_log(writer, dropped)
        tables.put_journal(writer, state)
        writer.execute("COMMIT")
        filled = sum(len(body) for _, body in moved) + plan.log * len(self._body)
        filled += sum(len(value) for _, value in batch.rows if value and len(value) > PAGE_BYTES)
        self._wal.wrote(3 + len(batch.rows) + 4 * len(batch.visibility) + len(dropped) / 8, filled)

    def _checkpoint(self) -> None:
        """Copy all of the write-ahead log, so that the next round starts it from its beginning."""
        try:
            _, frames, copied = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            failure = self._translate(error, "copying the write-ahead log")
            if isinstance(failure, StorageFull | StorageLocked):
                self._wal.failed()
                return
            self._broken = str(failure)
            raise failure from error
        self._wal.copied(frames, copied)

    # --------------------------------------------------------------------------------------------- reading

    def _open_reader(self, cache_bytes: int) -> sqlite3.Connection:
        """A connection for rows. Damage can make a text of a value, which is that row's checksum's affair."""
        try:
            connection = tables.open_reader(self.path, cache_bytes)
        except sqlite3.Error as error:
            raise self._translate(error, "opening it") from error
        connection.text_factory = bytes
        return connection

    def _scan_long(self, text: str, arguments: tuple[bytes, bytes, int]) -> Iterator[tuple[bytes, bytes]]:
        """A scan of many rows has its own connection: an open read would keep the reader in the past."""
        connection = self._scanners.pop() if self._scanners else self._open_reader(_SCAN_CACHE_BYTES_MAX)
        try:
            with closing(connection.execute(text, arguments)) as cursor:
                for row in cursor:
                    yield self._checked(row)
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        finally:
            if self._closed or len(self._scanners) >= _SCANNERS_MAX:
                connection.close()
            else:
                self._scanners.append(connection)

    def _checked(self, row: tuple[bytes, bytes, int]) -> tuple[bytes, bytes]:
        key, value, crc = row
        if not intact(key, value, crc):
            raise self._bad_row(key)
        return key, value

    def _group_rows(self, connection: sqlite3.Connection, group: int | None = None) -> list[GroupRow]:
        found = tables.group_rows(connection, group)
        if isinstance(found, int):
            raise self._corrupt(f"the row of group {found} in table groups is not what was written")
        return found

    # ---------------------------------------------------------------------------------------------- errors

    def _rollback(self) -> None:
        if self._writer.in_transaction:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")

    def _write_failed(self, error: sqlite3.Error) -> StorageError:
        failure = self._translate(error, "writing a round")
        if not isinstance(failure, StorageFull | StorageLocked | StorageReadOnly):
            self._broken = str(failure)
        return failure

    def _corrupt(self, what: str) -> StorageDamaged:
        return StorageDamaged(f"{self.path} is damaged: {what}")

    def _bad_row(self, key: object) -> StorageCorrupt:
        name = key.hex() if isinstance(key, bytes) else repr(key)
        what = f"row {name} is not what was written"
        if not isinstance(key, bytes):
            return self._corrupt(what)
        return RowCorrupt(f"{self.path} is damaged: {what}", key)  # what to do depends on who else has it

    def _translate(self, error: sqlite3.Error, doing: str) -> StorageError:
        if type(error) is sqlite3.OperationalError and not hasattr(error, "sqlite_errorcode"):
            return self._corrupt(f"{error} (while {doing})")  # Python's binding could not decode a text
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_IOERR_SHMSIZE:
            # The write-ahead log's index could not grow. A round that met this may be whole in the log, but
            # is not part of it until the index says so: the same round, tried again, takes its place.
            code = sqlite3.SQLITE_FULL
        match code:
            case sqlite3.SQLITE_FULL:
                return StorageFull(
                    f"no space left while {doing}: {self.path}. Nothing of it was written; free some space"
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return StorageReadOnly(
                    f"{self.path} cannot be written ({name} while {doing}). "
                    "Make the file and its directory writable"
                )
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return StorageLocked(
                    f"another program keeps {self.path} locked ({name} while {doing}). Stop it"
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return self._corrupt(f"{error} ({name} while {doing})")
            case _:
                return StorageBroken(
                    f"{self.path}: {error} ({name} while {doing}); whether it was written is not known. "
                    "Check the disk, then restart the node: it recovers from its log"
                )
