"""Records of the projection that are not what was written: taken out, so that they can be written anew.

SQLite has no checksums, and records have none either, for all of a record is made of its run's core row,
which has one. So a record that cannot be read, or whose indexes do not fit it any more, is no loss and must
not become the node's end, again at each start when the log brings the same commit: it is removed with
everything that refers to it, and what the commit says takes its place.

Slow: all values are looked at and all indexes made anew, some seconds a million records. Nobody comes here
unless a bit has turned over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

import msgspec


def may_mend(error: Exception) -> bool:
    """Whether this is what is felt of a damaged record. False: of the disk, or of the file as a whole."""
    if isinstance(error, msgspec.DecodeError):
        return True
    name = getattr(error, "sqlite_errorname", "")
    if not name:  # Python's binding could not decode a text
        return isinstance(error, sqlite3.OperationalError)
    # SQLITE_ERROR: "JSON cannot hold BLOB values". A constraint: a row that is there was taken for another.
    return name in ("SQLITE_ERROR", "SQLITE_CORRUPT_INDEX") or name.startswith("SQLITE_CONSTRAINT")


def clear(connection: sqlite3.Connection, runs: Collection[tuple[str, str]]) -> None:
    """Take out all that is known of these runs (namespace id, run id), whatever of it is damaged."""
    namespaces = msgspec.json.encode([namespace_id for namespace_id, _ in runs]).decode()
    names = msgspec.json.encode([run_id for _, run_id in runs]).decode()
    ids = _ids(connection, names, namespaces)  # by the index, which may know better than the row
    connection.execute("REINDEX visibility_executions")
    ids |= _ids(connection, names, namespaces)
    gone = msgspec.json.encode(sorted(ids)).decode()
    for table in ("visibility_values", "visibility_executions"):
        connection.execute(f"DELETE FROM {table} WHERE id IN (SELECT value FROM json_each(?))", (gone,))  # noqa: S608


def _ids(connection: sqlite3.Connection, names: str, namespaces: str) -> set[int]:
    # Where the scope is damaged nobody knows whose it is: nobody's.
    found = connection.execute(
        "SELECT id FROM visibility_executions WHERE run_id IN (SELECT value FROM json_each(?1))"
        " AND scope NOT IN (SELECT id FROM visibility_scopes"
        " WHERE namespace_id NOT IN (SELECT value FROM json_each(?2)))",
        (names, namespaces),
    )
    return {row_id for (row_id,) in found}
