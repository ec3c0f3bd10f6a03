"""Whether the projection shows what runs' core rows say: records have no checksum, but those rows have one.

A record is made of its run's core row alone (`engine.record`) and written in the transaction that writes the
row, so at any one moment the two agree, but for the count of transitions, which goes on after the last change
that List shows. What does not agree has been damaged (or was written by another version): it is to be written
anew (`projection.renew`). Seen are a record's columns, its entry in the index that most queries walk, and its
entries among the values. Not seen: a record of a run that has no row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from history_store.engine.record import record_of
from history_store.engine.state import RunState
from history_store.visibility.projection import COLUMNS, expected
from history_store.visibility.record import ExecutionRecord

_COMPARED = tuple(name for name in COLUMNS[1:] if name != "state_transition_count")
_PLACES = [place for place, name in enumerate(COLUMNS[1:]) if name in _COMPARED]
# By id, or what the index has of a column would be taken for what the row has.
_SELECT = (
    f"SELECT run_id, id, {', '.join(_COMPARED)} FROM visibility_executions NOT INDEXED"  # noqa: S608 our names
    " WHERE id IN (SELECT id FROM visibility_executions WHERE run_id IN (SELECT value FROM json_each(?)))"
)
_INDEXED = ("scope", "order_key", "start_time", "status", "workflow_type", "slot")
_IN_INDEX = (
    "SELECT 1 FROM visibility_executions INDEXED BY visibility_by_order WHERE "  # noqa: S608 our names
    + " AND ".join(f"{name} = ?" for name in (*_INDEXED, "id"))
)
_IN_VALUES = (
    "SELECT 1 FROM visibility_values WHERE scope = ? AND name = ? AND value = ? AND order_key = ? AND id = ?"
)
_decode = msgspec.msgpack.Decoder(RunState).decode


def record_in(core: bytes) -> ExecutionRecord | None:
    """The record that a run's core row makes; None if it is no such row."""
    try:
        return record_of(_decode(core))
    except (msgspec.DecodeError, UnicodeDecodeError):  # the latter: of a text in it
        return None


def unlike(connection: sqlite3.Connection, records: Sequence[ExecutionRecord]) -> list[ExecutionRecord]:
    """Those that the projection does not have, or has otherwise.

    The connection gives texts as bytes (`text_factory`), for they may be none any more.
    """
    scopes = {
        (_text(namespace_id), _text(division)): number
        for number, namespace_id, division in connection.execute(
            "SELECT id, namespace_id, division FROM visibility_scopes"
        )
    }
    names = {
        (_text(name), value_type): number
        for number, name, value_type in connection.execute("SELECT id, name, type FROM visibility_names")
    }
    runs = msgspec.json.encode([record.run_id for record in records]).decode()
    found: dict[object, list[tuple[object, ...]]] = {}
    for run_id, *rest in connection.execute(_SELECT, (runs,)):
        found.setdefault(run_id, []).append(tuple(rest))
    asked = {record.namespace_id for record in records}
    others = {number for (namespace_id, _), number in scopes.items() if namespace_id not in asked}
    wrong: list[ExecutionRecord] = []
    for record in records:
        rows = [row for row in found.get(record.run_id.encode(), ()) if row[1] not in others]
        wanted = expected(record, scopes, names)
        if wanted is None or len(rows) != 1 or not _is_so(connection, rows[0], *wanted):
            wrong.append(record)
    return wrong


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _is_so(
    connection: sqlite3.Connection,
    row: tuple[object, ...],
    columns: tuple[object, ...],
    entries: list[tuple[int, int, int | str, int]],
) -> bool:
    row_id, *there = row
    wanted = [columns[place] for place in _PLACES]
    if there != [value.encode() if isinstance(value, str) else value for value in wanted]:
        return False
    values = dict(zip(_COMPARED, wanted, strict=True))
    if connection.execute(_IN_INDEX, (*(values[name] for name in _INDEXED), row_id)).fetchone() is None:
        return False
    return all(connection.execute(_IN_VALUES, (*entry, row_id)).fetchone() is not None for entry in entries)
