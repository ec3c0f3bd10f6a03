"""Reading what nobody reads: whether rows and log rows are still what was written, a piece at a time.

A follower's rows are read when it comes to lead, and a log row at the next start. Damage should be found
before that, while others have what was damaged. A piece is read on a connection of its own, on any thread.

Records have no checksums: they are compared with the core rows of their runs, as both are at one moment.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from history_store.engine.keys import RUN
from history_store.storage import frames, tables
from history_store.visibility import audit

_ROWS_AT_ONCE = 64
_RECORD_BYTES = 4096  # what comparing a record costs, in terms of bytes read


class Checked(NamedTuple):
    """What came of a piece."""

    place: bytes  # where the next one begins; b"" = at the beginning: a lap is over
    read_bytes: int
    damaged: list[bytes]  # keys of rows that are not what was written
    problems: list[str]  # what else is not, in sentences
    unlike: list[
        bytes
    ]  # keys of runs' core rows that the projection's records are not like, if they are to be


def check(connection: sqlite3.Connection, place: bytes, bytes_max: int) -> Checked:
    """Check some rows behind a place that an earlier call answered; b"" = from the beginning.

    The connection is the caller's alone, and closed afterwards: it is left in a transaction.
    """
    if not place:
        return Checked(b"r", 0, [], _log_problems(connection), [])
    connection.execute("BEGIN")
    kind, after = place[:1], place[1:]
    table = "rows" if kind == b"r" else "history"
    # By key: the order in which what is written meanwhile is met once, or never.
    text = f"SELECT key, value, crc FROM {table} WHERE key > ? ORDER BY key LIMIT ?"  # noqa: S608 our names
    damaged: list[bytes] = []
    unlike: list[bytes] = []
    read_bytes = 0
    while read_bytes < bytes_max:
        found = connection.execute(text, (after, _ROWS_AT_ONCE)).fetchall()
        runs: list[tuple[bytes, bytes]] = []
        for key, value, crc in found:
            if not tables.intact(key, value, crc):
                damaged.append(key if type(key) is bytes else b"")
            elif key[4:5] == RUN:
                runs.append((key, value))
            read_bytes += len(value) if type(value) is bytes else 0
        if runs:
            unlike += _unlike(connection, runs)
            read_bytes += _RECORD_BYTES * len(runs)
        if len(found) < _ROWS_AT_ONCE:
            break
        last = found[-1][0]
        if type(last) is not bytes or last <= after:
            break  # no place to go on from
        after = last
        read_bytes += 64 * len(found)  # what is around the values
    else:
        return Checked(kind + after, read_bytes, damaged, [], unlike)
    return Checked(b"h" if kind == b"r" else b"", read_bytes, damaged, [], unlike)


def _unlike(connection: sqlite3.Connection, rows: list[tuple[bytes, bytes]]) -> list[bytes]:
    records = {key: record for key, value in rows if (record := audit.record_in(value)) is not None}
    wrong = {record.run_id for record in audit.unlike(connection, list(records.values()))}
    return [key for key, record in records.items() if record.run_id in wrong]


def _log_problems(connection: sqlite3.Connection) -> list[str]:
    problems = [
        f"log row {sequence} is not what was written"
        for sequence, body in connection.execute("SELECT sequence, body FROM log")
        if type(body) is not bytes or not frames.is_whole(sequence, body)
    ]
    groups = tables.group_rows(connection)
    if isinstance(groups, int):
        problems.append(f"the row of group {groups} in table groups is not what was written")
    return problems
