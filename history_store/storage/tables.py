"""The tables of the database file, the statements on them, and how a connection is opened.

Rows are in two tables by the kind byte of their key (4 bytes group, 1 byte kind, rest): history (kind `h`),
which is long and read in ranges, in a table whose values do not crowd the keys' tree; all others in the
keys' tree itself. A key and its value carry one CRC-32, checked at every read: SQLite has none of its own.
Group rows and the journal's state carry theirs.

Every SQLite step lets go of the GIL and has to get it back from a busy event loop, so rows are written some
dozens to a statement. `executemany` asks for no last row id, which would be one more hand-over.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import msgspec

from history_store.storage import files
from history_store.storage.contract import StorageCorrupt
from history_store.storage.keeper import GroupRow
from history_store.storage.wal import PAGE_BYTES
from history_store.visibility import projection

BUSY_MS = 5000  # another program (a backup) may hold SQLite's write lock that long
_STATEMENT_ROWS_MAX = 64  # rows a statement: one text for each count stays in the statement cache
_STATEMENTS_MAX = 400
_KIND_HISTORY = 0x68  # b"h"

_JOURNAL = (
    "CREATE TABLE journal(id INTEGER PRIMARY KEY, epoch INTEGER, next_epoch INTEGER, live INTEGER, "
    "floor INTEGER, place INTEGER, crc INTEGER NOT NULL)"
)
_SCHEMA = (
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE log(sequence INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE TABLE groups(id INTEGER PRIMARY KEY, applied INTEGER, applied_term INTEGER, conf BLOB, "
    "compacted INTEGER, compacted_term INTEGER, floor INTEGER, hard_floor INTEGER, "
    "term INTEGER, vote INTEGER, commit_index INTEGER, crc INTEGER NOT NULL)",
    "CREATE TABLE rows(key BLOB PRIMARY KEY, crc INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE history("
    "id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, crc INTEGER NOT NULL, value BLOB NOT NULL)",
    _JOURNAL,
)
GET_ROW = "SELECT value, crc FROM rows WHERE key=?"
GET_HISTORY = "SELECT value, crc FROM history WHERE key=?"
_PUT_JOURNAL = "INSERT OR REPLACE INTO journal VALUES (1,?,?,?,?,?,?)"


def _texts(head: str, item: str, tail: str = "") -> list[str]:
    """The statement for each number of items."""
    return [head + ",".join([item] * count) + tail for count in range(_STATEMENT_ROWS_MAX + 1)]


_PUT_ROWS = _texts("INSERT OR REPLACE INTO rows VALUES ", "(?,?,?)")
_PUT_HISTORY = _texts("INSERT OR REPLACE INTO history(key, crc, value) VALUES ", "(?,?,?)")
_DELETE_ROWS = _texts("DELETE FROM rows WHERE key IN (", "?", ")")
_DELETE_HISTORY = _texts("DELETE FROM history WHERE key IN (", "?", ")")
_PUT_LOG = _texts("INSERT INTO log VALUES ", "(?,?)")
_DELETE_LOG = _texts("DELETE FROM log WHERE sequence IN (", "?", ")")
_PUT_GROUPS = _texts("INSERT OR REPLACE INTO groups VALUES ", "(?,?,?,?,?,?,?,?,?,?,?,?)")


def _scan_texts(order: str) -> dict[str, str]:
    one = "SELECT key, value, crc FROM {} WHERE key >= ?1 AND key < ?2"
    tail = f" ORDER BY key {order} LIMIT ?3"
    rows, history = one.format("rows"), one.format("history")
    return {"rows": rows + tail, "history": history + tail, "both": f"{rows} UNION ALL {history}{tail}"}


_SCANS = (_scan_texts("ASC"), _scan_texts("DESC"))
_encode_fields = msgspec.msgpack.Encoder().encode


class Identity(NamedTuple):
    """Whose data a file holds."""

    cluster_id: str
    node_id: int
    disk: str = ""  # drawn when the file was made: another file of the same node has another one


class JournalState(NamedTuple):
    """What the database knows of the journal beside it."""

    epoch: int = 0  # of the journal in use, or of the last one; 0 = there was none
    next_epoch: int = 0  # of one that is being made, so that it can be told from a stranger's
    live: int = 0  # 1: there must be a journal, and rounds may be in it alone
    floor: int = 1  # the number of the first record that the database does not cover
    place: int = 0  # where in the file that is


# --------------------------------------------------------------------------------------------------- opening


def connect(path: Path) -> sqlite3.Connection:
    """A connection with what all of ours have in common."""
    connection = sqlite3.connect(
        path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False,
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


def open_reader(path: Path, cache_bytes: int) -> sqlite3.Connection:
    """A connection that cannot write."""
    connection = connect(path)
    connection.execute(f"PRAGMA cache_size=-{cache_bytes >> 10}")
    connection.execute("PRAGMA query_only=ON")
    return connection


def create(path: Path, cluster_id: str, node_id: int, disk: str) -> None:
    """Make the file under another name first: under its own it is whole or not there."""
    for suffix in files.DATA_SUFFIXES[1:]:
        left = path.with_name(path.name + suffix)
        if left.exists() and left.stat().st_size:
            raise StorageCorrupt(
                f"{path} is missing, but its log {left} is there. Put it back, or move both away"
            )
    new = path.with_name(path.name + "-new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        new.with_name(new.name + suffix).unlink(missing_ok=True)
    connection = connect(new)
    try:
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA application_id={files.APPLICATION_ID}")
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        projection.create(connection)
        check = str(crc32(f"{node_id} {cluster_id}".encode()))
        identity = [
            ("cluster_id", cluster_id), ("node_id", str(node_id)), ("check", check), ("disk", disk)
        ]  # fmt: skip
        connection.executemany("INSERT INTO meta VALUES (?,?)", identity)
        put_journal(connection, JournalState())
        connection.execute(f"PRAGMA user_version={files.FORMAT_VERSION}")
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    new.rename(path)
    files.sync_directory(path.parent)


def upgrade(connection: sqlite3.Connection) -> bool:
    """Bring a file of an older version to ours, in the caller's transaction: all of it or nothing.

    True: it was older. Then much may have been written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < 2:
        connection.execute(_JOURNAL)
        put_journal(connection, JournalState())
    projection.create(connection)
    if version < files.FORMAT_VERSION:
        connection.execute(f"PRAGMA user_version={files.FORMAT_VERSION}")
    return int(version) < files.FORMAT_VERSION


def draw_epoch() -> int:
    """A number that no other journal has. SQLite's integers have a sign."""
    return secrets.randbits(62) + 1


# --------------------------------------------------------------------------------------------------- reading


def intact(key: object, value: object, crc: object) -> bool:
    """Whether a row is what was written. Damage can change a value's type as well."""
    return type(key) is bytes and type(value) is bytes and crc32(value, crc32(key)) == crc


def scan_text(start: bytes, end: bytes, reverse: bool) -> str:
    """The statement that finds the rows of a range of keys."""
    return _SCANS[reverse][_tables(start, end)]


def _tables(start: bytes, end: bytes) -> str:
    """Which tables a range of keys may meet."""
    if start[:5] == end[:5]:
        return "history" if start[4:5] == b"h" else "rows"
    if start[4:5] == b"h" and len(start) >= 5 and end == start[:4] + b"i":
        return "history"
    if start[:4] == end[:4] and (start[4:5] > b"h" or end[4:] <= b"h"):
        return "rows"
    return "both"


def group_bounds(group: int) -> tuple[bytes, bytes]:
    """The range of all keys of a group. Keys are longer than their group's four bytes."""
    start = group.to_bytes(4, "big")
    return start, (group + 1).to_bytes(4, "big") if group < 0xFFFFFFFF else start + b"\xff" * 1024


def group_rows(connection: sqlite3.Connection, group: int | None = None) -> list[GroupRow] | int:
    """The rows of table groups (of one group, if named); the number of a group whose row is damaged."""
    text = "SELECT * FROM groups ORDER BY id" if group is None else "SELECT * FROM groups WHERE id=?"
    rows = []
    for *fields, crc in connection.execute(text, () if group is None else (group,)):
        row = GroupRow(*fields)
        if _crc(row) != crc:
            return row.group
        rows.append(row)
    return rows


def journal_state(connection: sqlite3.Connection) -> JournalState | None:
    """What the database says of the journal; None if that is damaged."""
    for row in connection.execute(
        "SELECT epoch, next_epoch, live, floor, place, crc FROM journal WHERE id=1"
    ):
        state = JournalState(*row[:5])
        return state if _crc(state) == row[5] else None
    return None


def _crc(row: GroupRow | JournalState) -> int:
    return crc32(_encode_fields(row))


# --------------------------------------------------------------------------------------------------- writing


def put_journal(connection: sqlite3.Connection, state: JournalState) -> None:
    """Note where the journal stands."""
    connection.executemany(_PUT_JOURNAL, ((*state, _crc(state)),))


def put_log(connection: sqlite3.Connection, rows: Sequence[tuple[int, bytes | bytearray]]) -> None:
    """Add log rows (sequence, body)."""
    _in_batches(connection, _PUT_LOG, rows)


def drop_log(connection: sqlite3.Connection, sequences: Iterable[int]) -> None:
    """Take log rows away."""
    _in_batches(connection, _DELETE_LOG, [(sequence,) for sequence in sequences])


def put_groups(connection: sqlite3.Connection, rows: Iterable[GroupRow]) -> None:
    """Set the durable state of groups."""
    _in_batches(connection, _PUT_GROUPS, [(*row, _crc(row)) for row in rows])


def wipe(connection: sqlite3.Connection, group: int) -> None:
    """Take away all rows of a group."""
    bounds = group_bounds(group)
    for table in ("rows", "history"):
        connection.execute(f"DELETE FROM {table} WHERE key >= ? AND key < ?", bounds)  # noqa: S608 our names


def put_rows(connection: sqlite3.Connection, latest: dict[bytes, bytes | None]) -> None:
    """Put rows; a value of None takes the row away."""
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
            connection.executemany(texts[len(part) // 3], (part,))
    _in_batches(connection, _DELETE_ROWS, gone_rows)
    _in_batches(connection, _DELETE_HISTORY, gone_history)


def _in_batches(
    connection: sqlite3.Connection, texts: list[str], items: Sequence[tuple[object, ...]]
) -> None:
    """Execute for all items, some dozens at a time."""
    for start in range(0, len(items), _STATEMENT_ROWS_MAX):
        part = items[start : start + _STATEMENT_ROWS_MAX]
        values = [value for item in part for value in item]
        connection.executemany(texts[len(part)], (values,))
