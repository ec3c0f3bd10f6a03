"""A bit turns over in a record that List shows: the next commit puts it right, and the node lives on.

Damage is done to the table alone, as on a page: indexes know nothing of it.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from temporalio.api.common.v1 import SearchAttributes

from history_store.visibility import audit, projection, search
from history_store.visibility.record import DeleteRecord, ExecutionRecord
from tests.history_store.visibility import oracle
from tests.history_store.visibility.test_language import record

DAMAGE: dict[str, tuple[Any, ...]] = {
    "scope": (7, "x", b"\xff"),
    "run_id": ("rum", b"\xff"),
    "slot": (3, b"\xff"),
    "workflow_id": ("x", b"\xff\xfe"),
    "workflow_type": ("x", b"\xff"),
    "start_time": (1, "x"),
    "status": (2, 77, "x"),
    "order_key": (5, "x", 1 << 62),
    "execution_time": ("x",),
    "task_queue": (b"\xff",),
    "history_length": ("x",),
    "attributes": ('{"1":"Bik', '{"1":{}}', '{"k":1}', b'{"1":"\xff"}', 7, "[]", None),
    "memo": ("x",),
    "search_attributes": (b"\xff", 7),
}
CASES = [(column, value) for column, values in DAMAGE.items() for value in values]


def damaged(connection: sqlite3.Connection, column: str, value: object) -> sqlite3.Connection:
    """The same database, in which a value of the last row is another one; the connection is closed."""
    found = "type = 'index' AND sql IS NOT NULL AND tbl_name = 'visibility_executions'"
    indexes = connection.execute(f"SELECT * FROM sqlite_master WHERE {found}").fetchall()

    def again(open_connection: sqlite3.Connection) -> sqlite3.Connection:
        open_connection.commit()
        image = open_connection.serialize()
        open_connection.close()
        made = sqlite3.connect(":memory:")
        made.deserialize(image)
        made.execute("PRAGMA writable_schema=ON")
        return made

    connection = again(connection)
    connection.execute(f"DELETE FROM sqlite_master WHERE {found}")
    connection = again(connection)
    last = "id = (SELECT max(id) FROM visibility_executions)"
    connection.execute(f"UPDATE visibility_executions SET {column} = ? WHERE {last}", (value,))
    connection.executemany("INSERT INTO sqlite_master VALUES (?, ?, ?, ?, ?)", indexes)
    return again(connection)


def attributes(value: str) -> bytes:
    payload = oracle.payload(value, 2)
    return SearchAttributes(indexed_fields={"Kw": payload}).SerializeToString()


def built(*ops: ExecutionRecord | DeleteRecord) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    projection.create(connection)
    for op in ops:
        projection.apply(connection, [op])
    return connection


def seen(connection: sqlite3.Connection) -> list[Any]:
    """What lists show, by every index there is."""
    queries = ("", "Kw = 'a'", "Kw = 'b'", "WorkflowId = 'w'", "WorkflowType = 'T'", "ExecutionStatus = 2")
    found = [search.list_executions(connection, "ns", query, {"Kw": 2})[0] for query in queries]
    return [connection.execute("PRAGMA integrity_check").fetchall(), found]


def audited(connection: sqlite3.Connection, record: ExecutionRecord) -> list[ExecutionRecord]:
    connection.text_factory = bytes
    try:
        return audit.unlike(connection, [record])
    finally:
        connection.text_factory = str


@pytest.mark.parametrize(("column", "value"), CASES)
def test_what_is_damaged_is_found_and_written_anew(column: str, value: object) -> None:
    shown = record("run", search_attributes=attributes("a"))
    others = [record(f"r{n}", search_attributes=attributes("ab"[n % 2])) for n in range(3)]
    ops = [record("run", namespace_id="other"), *others, shown]
    connection = built(*ops)
    assert not any(audited(connection, op) for op in ops)
    connection = damaged(connection, column, value)
    assert audited(connection, shown) == [shown]
    connection.execute("BEGIN")
    projection.renew(connection, [shown])
    connection.commit()
    assert not any(audited(connection, op) for op in ops)
    assert seen(connection) == seen(built(*ops))


@pytest.mark.parametrize(("column", "value"), CASES)
@pytest.mark.parametrize("what", ["closes", "changes", "goes", "comes back"])
def test_a_damaged_record_is_nobodys_end(column: str, value: object, what: str) -> None:
    before = record("run", search_attributes=attributes("a"))
    changes: dict[str, list[ExecutionRecord | DeleteRecord]] = {
        "closes": [
            record("run", status=2, close_time=before.start_time + 5, search_attributes=attributes("a"))
        ],
        "changes": [record("run", search_attributes=attributes("b"))],
        "goes": [DeleteRecord("ns", "run")],
        "comes back": [DeleteRecord("ns", "run"), record("run", search_attributes=attributes("b"))],
    }
    now = changes[what]
    connection = damaged(built(record("r1"), before), column, value)
    connection.execute("BEGIN")
    projection.apply(connection, now)
    connection.commit()
    assert not audited(connection, record("r1"))
    if column == "attributes" and isinstance(value, str | bytes) and value not in ('{"k":1}', "[]"):
        whole = built(record("r1"), before, *now)
        assert seen(connection) == seen(whole)
