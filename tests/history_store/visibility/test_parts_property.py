"""What several nodes answer for their slots, put together, is what one projection answers.

Every node has all records of the slots it answers for, and of others what it once knew: of shards that left
it, as they were then.
"""

from __future__ import annotations

import pathlib
import random
import sqlite3
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from history_store.engine.keys import SLOTS, slot_of
from history_store.storage import files
from history_store.storage.contract import Round
from history_store.storage.sqlite import SqliteStorage
from history_store.visibility import pages, projection, search
from history_store.visibility.record import DeleteRecord, ExecutionRecord
from tests.history_store.visibility.test_search_property import (
    built,
    histories,
    oracle,
    orders,
    probes,
    queries,
    text_of,
)


def with_slots(batches: list[list[Any]]) -> list[list[tuple[int, Any]]]:
    """The operations, each with the slot of what it is about; a deletion says no workflow id."""
    slots: dict[tuple[str, str], int] = {}
    found: list[list[tuple[int, Any]]] = []
    for batch in batches:
        found.append([])
        for op in batch:
            key = (op.namespace_id, op.run_id)
            if not isinstance(op, DeleteRecord):
                slot = slot_of(op.namespace_id, op.workflow_id)
                if slots.get(key, slot) != slot:  # another execution that took this one's run id: no node
                    found[-1].append((slot, DeleteRecord(*key)))  # would take it for the same
                slots[key] = slot
            found[-1].append((slots.get(key, 0), op))
    return found


class Shared:
    """The same history as one projection, and as several nodes'."""

    def __init__(self, batches: list[list[Any]], nodes: int, rng: random.Random) -> None:
        self.whole = built(batches)
        of_ops = with_slots(batches)
        found = sorted({slot for batch in of_ops for slot, _ in batch} | {rng.randrange(SLOTS)})
        self.owners = {slot: rng.randrange(nodes) for slot in found}
        first, self.slots = 0, [[] for _ in range(nodes)]  # type: ignore[var-annotated]
        for slot in found:
            last = SLOTS - 1 if slot == found[-1] else slot
            self.slots[self.owners[slot]].append((first, last))
            first = last + 1
        self.nodes = [self._node(of_ops, node, rng) for node in range(nodes)]

    def _node(
        self, batches: list[list[tuple[int, Any]]], node: int, rng: random.Random
    ) -> sqlite3.Connection:
        left = {slot: rng.randint(0, len(batches)) for slot in self.owners}  # when the shard left the node
        connection = sqlite3.connect(":memory:")
        projection.create(connection)
        for number, batch in enumerate(batches):
            known = [op for slot, op in batch if self.owners[slot] == node or number < left[slot]]
            projection.apply(connection, known)
        return connection

    def page(self, text: str, size: int, token: bytes) -> tuple[list[Any], bytes]:
        """One page, as a node that asks others puts it together."""
        parts = [
            search.list_part(connection, "ns1", text, oracle.CUSTOM, size, token, tuple(slots))
            for connection, slots in zip(self.nodes, self.slots, strict=True)
        ]
        records, last = pages.merge(parts, search.directions(text, oracle.CUSTOM), size)
        return records, b"" if last is None else pages.write_token(pages.digest("ns1", text), last)

    def count(self, text: str) -> search.Tally:
        """A count, the same way."""
        alias, total = search.grouped_by(text, oracle.CUSTOM), search.Tally()
        for connection, slots in zip(self.nodes, self.slots, strict=True):
            total.add(search.count_part(connection, "ns1", text, oracle.CUSTOM, tuple(slots)), alias)
        return total

    def close(self) -> None:
        for connection in (self.whole, *self.nodes):
            connection.close()


@settings(max_examples=100, deadline=None)
@given(histories(), queries, orders, st.integers(1, 4), st.integers(0, 10**6), probes, st.integers(1, 4))
def test_pages_of_all_nodes_are_those_of_one(
    history: Any, query: Any, order: list[tuple[str, bool]], size: int, seed: int, probe: int, nodes: int
) -> None:
    """Also if others answer for a slot with each page."""
    shared = Shared(history[0], nodes, random.Random(seed))
    search._PROBE = probe
    try:
        text = text_of(query, order, seed)
        expected, _ = search.list_executions(shared.whole, "ns1", text, oracle.CUSTOM)
        found, token = shared.page(text, size, b"")
        while token:
            shared.close()
            seed += 1
            shared = Shared(history[0], nodes, random.Random(seed))
            page, token = shared.page(text, size, token)
            assert page
            found += page
        assert found == expected, text
    finally:
        search._PROBE = 30_000
        shared.close()


@settings(max_examples=100, deadline=None)
@given(
    histories(),
    queries,
    st.sampled_from(["", "ExecutionStatus", "WorkflowType", "K", "TaskQueue"]),
    st.integers(0, 10**6),
    probes,
    st.integers(1, 4),
)
def test_counts_of_all_nodes_are_those_of_one(
    history: Any, query: Any, group: str, seed: int, probe: int, nodes: int
) -> None:
    shared = Shared(history[0], nodes, random.Random(seed))
    search._PROBE = probe
    try:
        text = text_of(query, [], seed) + (f" GROUP BY {group}" if group else "")
        count, groups = search.count_executions(shared.whole, "ns1", text, oracle.CUSTOM)
        total = shared.count(text)
        assert (total.count, total.groups()) == (count, groups), text
    finally:
        search._PROBE = 30_000
        shared.close()


def test_a_part_that_was_cut_short_shortens_the_page() -> None:
    """Behind its last row the other part's rows may not be shown yet: it may have more in between."""
    cut: pages.Part[str] = pages.Part(["a", "c"], [(1,), (3,)], more=True)
    other: pages.Part[str] = pages.Part(["b", "d", "e"], [(2,), (4,), (5,)], more=False)
    assert pages.merge([cut, other], [False], 5) == (["a", "b", "c"], (3,))
    assert pages.merge([cut, other], [False], 2) == (["a", "b"], (2,))
    assert pages.merge([other], [False], 5) == (["b", "d", "e"], None)


def without_slots(connection: sqlite3.Connection) -> None:
    """Make the tables what they were."""
    connection.execute("DROP INDEX visibility_by_order")
    connection.execute("ALTER TABLE visibility_executions DROP COLUMN slot")
    connection.execute(
        "CREATE INDEX visibility_by_order"
        " ON visibility_executions (scope, order_key, start_time, status, workflow_type)"
    )


def test_a_file_of_before_there_were_slots_is_brought_to_this_version(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.db"
    records = [
        ExecutionRecord("ns1", f"w{n}", f"run{n:03d}", "t", 1, n + 1, 0, 0, "q", 1, 1, 1, 0, b"", b"")
        for n in range(1_000)
    ]
    storage = SqliteStorage(path)
    storage.load()
    storage.write(Round(visibility=list(records)))
    storage.close()
    with sqlite3.connect(path) as connection:
        without_slots(connection)
        connection.execute("PRAGMA user_version=2")
    connection.close()
    for _ in range(2):
        storage = SqliteStorage(path)
        assert pathlib.Path(f"{path}-wal").stat().st_size < 40_000, "what was rewritten is in the file"
        storage.load()
        reader = storage.visibility_connection()
        half = ((0, SLOTS // 2),)
        found = search.list_part(reader, "ns1", "", {}, 1_000, b"", half).items
        wanted = [record for record in records if slot_of("ns1", record.workflow_id) <= SLOTS // 2]
        assert found == wanted[::-1]
        assert reader.execute("PRAGMA user_version").fetchone() == (files.FORMAT_VERSION,)
        reader.close()
        storage.close()


def test_tables_of_before_there_were_slots_get_them() -> None:
    """And answer as those that were made with them."""
    rows = [
        oracle.Row(namespace, f"run{n:02d}", {
            "WorkflowId": f"w{n}", "RunId": f"run{n:02d}", "StartTime": n + 1, "WorkflowType": "t",
            "TaskQueue": "q", "ExecutionTime": 1, "HistoryLength": 1, "ExecutionStatus": 1,
            **({"TemporalNamespaceDivision": "a"} if n % 3 == 0 else {}),
        })
        for n in range(20)
        for namespace in ("ns1", "ns2")
    ]  # fmt: skip
    fresh = built([[row.record() for row in rows]])
    old = built([[row.record() for row in rows]])
    slots = "SELECT run_id, scope, slot FROM visibility_executions ORDER BY run_id, scope"
    expected = fresh.execute(slots).fetchall()
    assert len({slot for *_, slot in expected}) > 30
    without_slots(old)
    projection.create(old)
    assert old.execute(slots).fetchall() == expected
    index = "SELECT sql FROM sqlite_schema WHERE name = 'visibility_by_order'"
    assert old.execute(index).fetchall() == fresh.execute(index).fetchall()
    old.close()
    fresh.close()
