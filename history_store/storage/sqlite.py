"""Storage in one SQLite file: the log, the rows and the projection of executions, committed together.

Theory of operation. One connection writes (the node's writer thread), one reads (the loop's thread); the
write-ahead log lets them work side by side, and synchronous=FULL makes a commit durable when it returns.
Every SQLite step lets go of the GIL and has to get it back from a busy event loop, so what counts is the
number of steps: a round that only appends to logs is one step (one INSERT of one row, committed by itself),
and rows are written some dozens to a statement.

Rows are in two tables by the kind byte of their key (4 bytes group, 1 byte kind, rest): history (kind `h`),
which is long and read in ranges, in a table whose values do not crowd the keys' tree; all others in the
keys' tree itself. A key and its value carry one CRC-32, checked at every read: SQLite has none of its own.

The write-ahead log is copied into the file by `maintain`, between rounds; if nobody calls it, by `write`.
Which log rows may go is keeper.py's business; what is checked before SQLite opens the file is files.py's.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from history_store.storage import files
from history_store.storage.contract import (
    GroupLog,
    Round,
    StorageBroken,
    StorageCorrupt,
    StorageError,
    StorageFull,
    StorageLocked,
    StorageReadOnly,
)
from history_store.storage.frames import FrameError, decode, encode
from history_store.storage.keeper import GroupRow, LogGap, LogKeeper, Plan
from history_store.storage.memory import merge_entries
from history_store.visibility import projection

_PAGE_BYTES = 4096
_STATEMENT_ROWS_MAX = 64  # rows a statement: one text for each count stays in the statement cache
_STATEMENTS_MAX = 400
_SCANNERS_MAX = 2  # connections kept for long scans
_SCAN_ROWS = 256  # a scan that fits is one read; a longer one gets a connection of its own
_WRITER_CACHE_BYTES_MAX = 8 << 20  # both caches count towards the 100 MB of an idle server
_READER_CACHE_BYTES_MAX = 8 << 20
_SCAN_CACHE_BYTES_MAX = 2 << 20
_BUSY_MS = 5000  # another program (a backup) may hold SQLite's write lock that long
_KIND_HISTORY = 0x68  # b"h"

_SCHEMA = (
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE log(sequence INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE groups(id INTEGER PRIMARY KEY, applied INTEGER, applied_term INTEGER, conf BLOB, "
    "compacted INTEGER, compacted_term INTEGER, floor INTEGER, hard_floor INTEGER, "
    "term INTEGER, vote INTEGER, commit_index INTEGER, crc INTEGER NOT NULL)",
    "CREATE TABLE rows(key BLOB PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE history("
    "id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, value BLOB NOT NULL)",
)
_INSERT_LOG = "INSERT INTO log VALUES (?,?)"
_GET_ROW = "SELECT value, crc FROM rows WHERE key=?"
_GET_HISTORY = "SELECT value, crc FROM history WHERE key=?"


def _texts(head: str, item: str, tail: str = "") -> list[str]:
    """The statement for each number of items."""
    return [head + ",".join([item] * count) + tail for count in range(_STATEMENT_ROWS_MAX + 1)]


_PUT_ROWS = _texts("INSERT OR REPLACE INTO rows VALUES ", "(?,?,?)")
_PUT_HISTORY = _texts("INSERT OR REPLACE INTO history(key, crc, value) VALUES ", "(?,?,?)")
_DELETE_ROWS = _texts("DELETE FROM rows WHERE key IN (", "?", ")")
_DELETE_HISTORY = _texts("DELETE FROM history WHERE key IN (", "?", ")")
_DELETE_LOG = _texts("DELETE FROM log WHERE sequence IN (", "?", ")")
_PUT_GROUPS = _texts("INSERT OR REPLACE INTO groups VALUES ", "(?,?,?,?,?,?,?,?,?,?,?,?)")


def _scan_texts(order: str) -> dict[str, str]:
    one = "SELECT key, value, crc FROM {} WHERE key >= ?1 AND key < ?2"
    tail = f" ORDER BY key {order} LIMIT ?3"
    rows, history = one.format("rows"), one.format("history")
    return {"rows": rows + tail, "history": history + tail, "both": f"{rows} UNION ALL {history}{tail}"}


_SCANS = (_scan_texts("ASC"), _scan_texts("DESC"))


def _intact(key: object, value: object, crc: object) -> bool:
    """Whether a row is what was written. Damage can change a value's type as well."""
    return type(key) is bytes and type(value) is bytes and crc32(value, crc32(key)) == crc


def _group_crc(row: GroupRow) -> int:
    return crc32(_encode_fields(row))


_encode_fields = msgspec.msgpack.Encoder().encode


class Identity(NamedTuple):
    """Whose data a file holds."""

    cluster_id: str
    node_id: int


class SqliteStorage:
    """The port, on one file."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cluster_id: str = "",
        node_id: int = 0,
        checkpoint_bytes: int = 4 << 20,
        pages_max: int = 0,
    ) -> None:
        """Open the file, or make it. An empty `cluster_id` or zero `node_id` takes what the file says.

        `checkpoint_bytes`: how long the write-ahead log gets before it is copied into the file.
        `pages_max`: a limit of the file in pages, 0 = the disk's.
        """
        self.path = Path(os.path.realpath(path))
        self._broken = ""
        self._keeper: LogKeeper | None = None
        self._body = bytearray()
        self._pages_max = pages_max
        self._checkpoint_frames = max(checkpoint_bytes // _PAGE_BYTES, 16)
        self._frames = 0.0  # estimate of what the write-ahead log holds
        self._frames_ratio = 1.0  # what an estimate has to be multiplied with, from the last checkpoint
        self._scanners: list[sqlite3.Connection] = []
        self._closed = False
        self._lock = files.FileLock(self.path)
        try:
            if self.path.exists():
                files.inspect(self.path)
            else:
                self._create(cluster_id or secrets.token_hex(8), node_id or 1)
            self._writer = self._open(_WRITER_CACHE_BYTES_MAX)
            try:
                self.identity = self._check_identity(cluster_id, node_id)
                self._reader = self._open_reader(_READER_CACHE_BYTES_MAX)
            except BaseException:
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
        try:
            for table in ("log", "groups"):  # a damaged page can hide rows, and no checksum misses them
                (said,) = self._writer.execute(f"PRAGMA quick_check({table})").fetchone()
                if said != "ok":
                    raise self._corrupt(f"table {table}: {said}")
            keeper = LogKeeper(self._group_rows())
            logs = keeper.logs()
            for sequence, body in self._writer.execute("SELECT sequence, body FROM log ORDER BY sequence"):
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
        """Make it durable, as a whole."""
        if self._broken:
            raise StorageBroken(self._broken)
        if self._keeper is None:
            self.load()
        keeper = self._keeper
        assert keeper is not None, "load sets the keeper"
        plan = keeper.plan(batch)
        if plan.log or plan.groups or batch.rows or batch.visibility:
            if self._frames > 4 * self._checkpoint_frames:
                self._checkpoint()
            try:
                if plan.groups or batch.rows or batch.visibility:
                    self._transaction(batch, plan)
                else:
                    self._append(batch, plan)
            except BaseException as error:
                self._rollback()
                # an error without a code is of Python's binding, about a value; SQLite has not seen it
                if isinstance(error, sqlite3.Error) and hasattr(error, "sqlite_errorcode"):
                    raise self._write_failed(error) from error
                raise
        keeper.commit(batch, plan)

    def maintain(self) -> None:
        """Copy the write-ahead log into the file when it has grown."""
        if self._frames > self._checkpoint_frames and not self._broken:
            self._checkpoint()

    def get(self, key: bytes) -> bytes | None:
        """The value of a row."""
        text = _GET_HISTORY if key[4:5] == b"h" else _GET_ROW
        try:
            row = self._reader.execute(text, (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._translate(error, "reading a row") from error
        if row is None:
            return None
        value: bytes = row[0]
        if not _intact(key, value, row[1]):
            raise self._bad_row(key)
        return value

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end in key order, all as they were at one moment.

        That is the moment of the call, or, when there are many, that of the first `next`.
        """
        text = _SCANS[reverse][_tables(start, end)]
        first = min(limit, _SCAN_ROWS) if limit else _SCAN_ROWS
        try:
            # one more than needed, so that running to the end tells whether there is more, and ends the read
            found = self._reader.execute(
                text, (start, end, first if first == limit else first + 1)
            ).fetchall()
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        if len(found) > first:
            return self._scan_long(text, (start, end, limit or -1))
        return iter([self._checked(row) for row in found])

    def visibility_connection(self) -> sqlite3.Connection:
        """A read-only connection on the projection."""
        try:
            return self._open_reader(_SCAN_CACHE_BYTES_MAX)
        except sqlite3.Error as error:
            raise self._translate(error, "opening it") from error

    def size_bytes(self) -> int:
        """What the data takes on disk."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += os.stat(f"{self.path}{suffix}").st_blocks * 512
        return total

    def close(self) -> None:
        """Give everything back; a later open needs no recovery."""
        self._closed = True
        for connection in (*self._scanners, self._reader):
            connection.close()
        self._scanners.clear()
        with suppress(sqlite3.Error):  # what cannot be copied now is safe where it is
            if not self._broken:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
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
                    if not _intact(key, value, crc):
                        problems.append(str(self._bad_row(key)))
            say("log")
            for sequence, body in self._writer.execute("SELECT sequence, body FROM log"):
                try:
                    decode(sequence, body)
                except FrameError as error:
                    problems.append(f"{self.path}: log row {sequence}: {error}")
        except sqlite3.Error as error:
            problems.append(str(self._translate(error, "verifying it")))
        return problems

    # ------------------------------------------------------------------------------------------- opening

    def _connect(self, path: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(
            path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False,
            cached_statements=_STATEMENTS_MAX,
        )  # fmt: skip
        try:
            connection.execute("PRAGMA trusted_schema=OFF")
            connection.execute("PRAGMA cell_size_check=ON")
            connection.execute("PRAGMA temp_store=MEMORY")
            connection.execute("PRAGMA mmap_size=0")  # a mapped file that shrinks kills the process
        except BaseException:
            connection.close()
            raise
        return connection

    def _open(self, cache_bytes: int) -> sqlite3.Connection:
        connection = self._connect(self.path)
        try:
            connection.execute("PRAGMA synchronous=FULL")
            (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
            if mode != "wal":
                raise StorageReadOnly(  # noqa: TRY301 it closes the connection on the way, like all others
                    f"{self.path}: the file system has no shared memory for SQLite. Use a local disk"
                )
            connection.execute("PRAGMA wal_autocheckpoint=0")
            connection.execute(f"PRAGMA journal_size_limit={self._checkpoint_frames * _PAGE_BYTES * 4}")
            connection.execute(
                "PRAGMA secure_delete=OFF"
            )  # some builds overwrite what is deleted: twice the writes
            connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
            connection.execute("BEGIN IMMEDIATE")
            projection.create(connection)
            connection.execute("COMMIT")
            if self._pages_max:
                connection.execute(f"PRAGMA max_page_count={self._pages_max}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _open_reader(self, cache_bytes: int) -> sqlite3.Connection:
        connection = self._connect(self.path)
        connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _create(self, cluster_id: str, node_id: int) -> None:
        """Make the file under another name first: under its own it is whole or not there."""
        wal = self.path.with_name(self.path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise StorageCorrupt(
                f"{self.path} is missing, but its log {wal} is there. Put it back, or move both away"
            )
        new = self.path.with_name(self.path.name + "-new")
        for suffix in ("", "-wal", "-shm", "-journal"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        connection = self._connect(new)
        try:
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(f"PRAGMA application_id={files.APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={files.FORMAT_VERSION}")
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA:
                connection.execute(statement)
            projection.create(connection)
            check = str(crc32(f"{node_id} {cluster_id}".encode()))
            identity = [("cluster_id", cluster_id), ("node_id", str(node_id)), ("check", check)]
            connection.executemany("INSERT INTO meta VALUES (?,?)", identity)
            connection.execute("COMMIT")
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()
        new.rename(self.path)
        files.sync_directory(self.path.parent)

    def _check_identity(self, cluster_id: str, node_id: int) -> Identity:
        meta: dict[str, str] = dict(self._writer.execute("SELECT name, value FROM meta").fetchall())
        name, number = meta.get("cluster_id", ""), meta.get("node_id", "")
        if meta.get("check") != str(crc32(f"{number} {name}".encode())):
            raise self._corrupt("its identity (table meta) is not what was written")
        found = Identity(name, int(number))
        if (cluster_id and cluster_id != found.cluster_id) or (node_id and node_id != found.node_id):
            raise StorageCorrupt(
                f"{self.path} belongs to node {found.node_id} of cluster {found.cluster_id}, not to "
                f"node {node_id or found.node_id} of cluster {cluster_id or found.cluster_id}. "
                "Name the right file"
            )
        return found

    # -------------------------------------------------------------------------------------------- writing

    def _append(self, batch: Round, plan: Plan) -> None:
        """Write the log row; by itself it is a transaction of one step."""
        encode(plan.sequence, batch.entries, batch.hard_states, self._body)
        # executemany asks for no last row id, which would be one more hand-over of the GIL
        self._writer.executemany(_INSERT_LOG, ((plan.sequence, self._body),))
        self._frames += (2 + len(self._body) / _PAGE_BYTES) * self._frames_ratio

    def _transaction(self, batch: Round, plan: Plan) -> None:
        writer = self._writer
        writer.execute("BEGIN IMMEDIATE")
        if plan.log:
            self._append(batch, plan)
        if batch.rows:
            self._write_rows(dict(batch.rows))
        if batch.visibility:
            projection.apply(writer, batch.visibility)
        if plan.groups:
            self._in_batches(_PUT_GROUPS, [(*row, _group_crc(row)) for row in plan.groups])
        if plan.drop:
            self._in_batches(_DELETE_LOG, [(sequence,) for sequence in plan.drop])
        writer.execute("COMMIT")
        touched = 2 + len(batch.rows) + 4 * len(batch.visibility) + len(plan.drop) / 8
        self._frames += touched * self._frames_ratio

    def _write_rows(self, latest: dict[bytes, bytes | None]) -> None:
        rows: list[bytes | int] = []
        history: list[bytes | int] = []
        gone_rows: list[tuple[bytes]] = []
        gone_history: list[tuple[bytes]] = []
        for key, value in latest.items():
            if key[4] == _KIND_HISTORY:
                if value is None:
                    gone_history.append((key,))
                else:
                    history += (key, crc32(value, crc32(key)), value)
            elif value is None:
                gone_rows.append((key,))
            else:
                rows += (key, crc32(value, crc32(key)), value)
        for texts, flat in ((_PUT_ROWS, rows), (_PUT_HISTORY, history)):
            step = 3 * _STATEMENT_ROWS_MAX
            for start in range(0, len(flat), step):
                part = flat[start : start + step]
                self._writer.executemany(texts[len(part) // 3], (part,))
        self._in_batches(_DELETE_ROWS, gone_rows)
        self._in_batches(_DELETE_HISTORY, gone_history)

    def _in_batches(self, texts: list[str], items: Sequence[tuple[object, ...]]) -> None:
        """Execute for all items, some dozens at a time."""
        for start in range(0, len(items), _STATEMENT_ROWS_MAX):
            part = items[start : start + _STATEMENT_ROWS_MAX]
            values = [value for item in part for value in item]
            self._writer.executemany(texts[len(part)], (values,))

    def _checkpoint(self) -> None:
        """Copy all of the write-ahead log, so that the next round starts it from its beginning."""
        try:
            _, frames, copied = self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error as error:
            failure = self._translate(error, "copying the write-ahead log")
            if isinstance(failure, StorageFull | StorageLocked):
                self._frames = 0.0  # the data is safe where it is; try again after as much has been written
                return
            self._broken = str(failure)
            raise failure from error
        if self._frames > 1:
            ratio = self._frames_ratio * max(frames, 1) / self._frames
            self._frames_ratio = min(max(ratio, 0.05), 20.0)
        self._frames = float(frames - copied)

    # --------------------------------------------------------------------------------------------- reading

    def _scan_long(self, text: str, arguments: tuple[bytes, bytes, int]) -> Iterator[tuple[bytes, bytes]]:
        """A scan of many rows has its own connection: an open read would keep the reader in the past."""
        connection = self._scanners.pop() if self._scanners else self._open_reader(_SCAN_CACHE_BYTES_MAX)
        cursor = connection.execute(text, arguments)
        try:
            while found := cursor.fetchmany(_SCAN_ROWS):
                for row in found:
                    yield self._checked(row)
        except sqlite3.Error as error:
            raise self._translate(error, "reading rows") from error
        finally:
            cursor.close()
            if self._closed or len(self._scanners) >= _SCANNERS_MAX:
                connection.close()
            else:
                self._scanners.append(connection)

    def _checked(self, row: tuple[bytes, bytes, int]) -> tuple[bytes, bytes]:
        key, value, crc = row
        if not _intact(key, value, crc):
            raise self._bad_row(key)
        return key, value

    def _group_rows(self) -> list[GroupRow]:
        rows = []
        for *fields, crc in self._writer.execute("SELECT * FROM groups ORDER BY id"):
            row = GroupRow(*fields)
            if _group_crc(row) != crc:
                raise self._corrupt(f"the row of group {row.group} in table groups is not what was written")
            rows.append(row)
        return rows

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

    def _corrupt(self, what: str) -> StorageCorrupt:
        return StorageCorrupt(f"{self.path} is damaged: {what}. {files.RESTORE}")

    def _bad_row(self, key: object) -> StorageCorrupt:
        name = key.hex() if isinstance(key, bytes) else repr(key)
        return self._corrupt(f"row {name} is not what was written")

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


def _tables(start: bytes, end: bytes) -> str:
    """Which tables a range of keys may meet."""
    if start[:5] == end[:5]:
        return "history" if start[4:5] == b"h" else "rows"
    if start[4:5] == b"h" and len(start) >= 5 and end == start[:4] + b"i":
        return "history"
    if start[:4] == end[:4] and (start[4:5] > b"h" or end[4:] <= b"h"):
        return "rows"
    return "both"
