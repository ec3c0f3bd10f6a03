"""Random histories of the projection, random queries: SQL and the oracle find the same, in the same order."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import random
import sqlite3
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history_store.engine.errors import Code, ServiceError
from history_store.visibility import pages, projection, search
from history_store.visibility.record import DeleteRecord

_spec = importlib.util.spec_from_file_location(
    "visibility_oracle", pathlib.Path(__file__).with_name("oracle.py")
)
assert _spec is not None
assert _spec.loader is not None
oracle = importlib.util.module_from_spec(_spec)
sys.modules["visibility_oracle"] = oracle
_spec.loader.exec_module(oracle)

keywords = st.sampled_from(oracle.KEYWORDS)
times = st.sampled_from(oracle.TIMES)
ints = st.sampled_from(oracle.INTS)
closed_statuses = st.sampled_from([number for number in sorted(oracle.STATUSES) if number != 1])
doubles = st.sampled_from(oracle.DOUBLES)
texts = st.lists(st.sampled_from(oracle.WORDS), min_size=1, max_size=3).map(" ".join)
POOLS: dict[str, st.SearchStrategy[Any]] = {
    "K": keywords,
    "K2": keywords,
    "KL": keywords,
    "T": texts,
    "I": ints,
    "D": doubles,
    "B": st.booleans(),
    "DT": times,
    "BuildIds": keywords,
    "TemporalSchedulePaused": st.booleans(),
    "TemporalNamespaceDivision": st.sampled_from(["a", "ab", "b"]),
    "WorkflowId": keywords,
    "RunId": st.integers(0, 12).map(lambda n: f"run{n:02d}"),
    "WorkflowType": keywords,
    "TaskQueue": keywords,
    "ParentWorkflowId": keywords,
    "RootWorkflowId": keywords,
    "StartTime": times,
    "ExecutionTime": times,
    "CloseTime": times,
    "ExecutionStatus": st.sampled_from(sorted(oracle.STATUSES)),
    "HistoryLength": st.integers(0, 3),
    "ExecutionDuration": st.integers(0, 3),
}
FIXED = ("WorkflowId", "WorkflowType", "StartTime", "ParentWorkflowId", "RootWorkflowId")
OPTIONAL = [
    "K",
    "K2",
    "KL",
    "T",
    "I",
    "D",
    "B",
    "DT",
    "BuildIds",
    "TemporalSchedulePaused",
]


@st.composite
def rows(draw: st.DrawFn, namespace: str, run: int, before: Any = None) -> Any:
    values: dict[str, Any] = {}
    for name in FIXED:  # a run never changes these
        values[name] = before.values[name] if before is not None else draw(POOLS[name])
    for name in ("TaskQueue", "HistoryLength", "ExecutionTime"):
        values[name] = draw(POOLS[name])
    for name in draw(st.lists(st.sampled_from(OPTIONAL), unique=True)):
        if name in ("KL", "BuildIds"):
            values[name] = draw(st.lists(keywords, min_size=1, max_size=3))
        else:
            values[name] = draw(POOLS[name])
    if draw(st.booleans()):
        values["ExecutionStatus"] = 1
    else:
        values.update({name: draw(POOLS[name]) for name in ("CloseTime", "ExecutionDuration")})
        values["ExecutionStatus"] = draw(closed_statuses)  # Running means "without close time"
    if draw(st.integers(0, 4)) == 0:
        values["TemporalNamespaceDivision"] = draw(POOLS["TemporalNamespaceDivision"])
    run_id = f"run{run:02d}"
    values["RunId"] = run_id
    return oracle.Row(namespace, run_id, values)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[Any]], list[Any]]:
    """Batches of operations, and the rows that should be left."""
    model: dict[tuple[str, str], Any] = {}
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        batch: list[Any] = []
        for _ in range(draw(st.integers(1, 8))):
            namespace, run = draw(st.sampled_from(["ns1", "ns1", "ns2"])), draw(st.integers(0, 12))
            key = (namespace, f"run{run:02d}")
            if draw(st.integers(0, 9)) == 0:
                batch.append(DeleteRecord(*key))
                model.pop(key, None)
            else:
                # the same run after a delete in an earlier batch may be another execution altogether
                row = draw(rows(namespace, run, model.get(key)))
                batch.append(row.record())
                model[key] = row
        batches.append(batch)
    return batches, list(model.values())


@st.composite
def conditions(draw: st.DrawFn) -> tuple[Any, ...]:
    name = draw(st.sampled_from(sorted(POOLS)))
    kind = oracle.TYPES[name]
    pool = POOLS[name]
    shapes = ["cmp", "null"]
    if kind != 1:
        shapes.append("in")
    if kind not in (1, 5, 7):
        shapes.append("between")
    if kind == 2:
        shapes += ["starts", "cmp"]
    match draw(st.sampled_from(shapes)):
        case "null":
            return ("null", name, draw(st.booleans()))
        case "in":
            return ("in", name, draw(st.lists(pool, min_size=1, max_size=3)), draw(st.booleans()))
        case "between":
            return ("between", name, draw(pool), draw(pool), draw(st.booleans()))
        case "starts":
            return ("starts", name, draw(pool), draw(st.booleans()))
        case _:
            operators = ["=", "!="] if kind in (1, 7) else ["=", "=", "!=", "<", "<=", ">", ">="]
            return ("cmp", name, draw(st.sampled_from(operators)), draw(pool))


probes = st.sampled_from(
    [1, 2, 30_000]
)  # how many entries make an index unattractive: every plan gets its turn
queries = st.none() | st.recursive(
    conditions(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map(lambda items: ("and", *items)),
        st.lists(inner, min_size=2, max_size=3).map(lambda items: ("or", *items)),
        inner.map(lambda item: ("not", item)),
    ),
    max_leaves=6,
)
SORTABLE = [
    name for name, kind in oracle.TYPES.items() if kind not in (1, 7) and name != "TemporalNamespaceDivision"
]
orders = st.lists(
    st.tuples(st.sampled_from(SORTABLE), st.booleans()), max_size=2, unique_by=lambda term: term[0]
)


def built(batches: list[list[Any]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    projection.create(connection)
    for batch in batches:
        projection.apply(connection, batch)
    return connection


def text_of(query: Any, order: list[tuple[str, bool]], seed: int) -> str:
    text = "" if query is None else oracle.render(query, random.Random(seed))
    if order:
        text += " ORDER BY " + ", ".join(name + (" DESC" if down else "") for name, down in order)
    return text


@settings(max_examples=100, deadline=None)
@given(histories(), queries, orders, st.integers(1, 4), st.integers(0, 10**6), probes)
def test_list_agrees(
    history: Any, query: Any, order: list[tuple[str, bool]], page_size: int, seed: int, probe: int
) -> None:
    batches, model = history
    connection = built(batches)
    search._PROBE = probe
    try:
        text = text_of(query, order, seed)
        expected = [row.record() for row in oracle.in_order(oracle.found(model, "ns1", query), order)]
        whole, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, 1000)
        assert whole == expected, text
        assert token == b""
        paged, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, page_size)
        while token:
            assert paged
            page, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, page_size, token)
            assert page
            paged += page
        assert paged == expected, text
    finally:
        search._PROBE = 30_000
        connection.close()


LONG = projection.REGULAR_NS
# start and close times on either side of what is irregular, of the epoch, and of what an order key holds
EDGES = [oracle.BASE + d for d in (-1, 0, 1, LONG - 1, LONG, LONG + 1, 2 * LONG, 3 * LONG)]
EDGES += [1, LONG, LONG + 1, projection.OPEN_BASE - 1, projection.OPEN_BASE - LONG]
edges = st.sampled_from(EDGES)
start_bounds = st.one_of(
    st.tuples(
        st.just("cmp"), st.just("StartTime"), st.sampled_from(["<", "<=", ">", ">=", "="]),
        st.one_of(edges, st.sampled_from([0, -1, -(2**63), 2**63 - 1])),
    ),
    st.tuples(st.just("between"), st.just("StartTime"), edges, edges, st.just(False)),
)  # fmt: skip
other_bounds = st.one_of(
    st.tuples(st.just("cmp"), st.just("CloseTime"), st.sampled_from(["<", "<=", ">", ">=", "="]), edges),
    st.tuples(st.just("null"), st.just("CloseTime"), st.booleans()),
    st.tuples(st.just("cmp"), st.just("ExecutionStatus"), st.just("="), st.sampled_from([1, 2, 3])),
    st.tuples(st.just("cmp"), st.just("K"), st.just("="), st.just("a")),
    st.tuples(st.just("cmp"), st.just("WorkflowType"), st.just("="), st.just("a")),
    start_bounds,
)


def timed_row(run: int, start: int, close: int = 0) -> Any:
    values = {"WorkflowId": "w", "RunId": f"run{run:05d}", "WorkflowType": "a", "TaskQueue": "q", "K": "a"}
    values.update({"HistoryLength": 1, "StartTime": start, "ExecutionTime": start, "ExecutionStatus": 1})
    if close:
        values.update({"CloseTime": close, "ExecutionStatus": 2})
    return oracle.Row("ns1", values["RunId"], values)


@st.composite
def timed_rows(draw: st.DrawFn, run: int) -> Any:
    values: dict[str, Any] = {"WorkflowId": "w", "RunId": f"run{run:02d}", "TaskQueue": "q"}
    values.update({"WorkflowType": draw(st.sampled_from("ab")), "K": draw(st.sampled_from("ab"))})
    values.update({"StartTime": draw(edges), "ExecutionTime": 1, "HistoryLength": 1, "ExecutionStatus": 1})
    if draw(st.integers(0, 3)):
        values.update({"CloseTime": draw(edges), "ExecutionDuration": 1})
        values["ExecutionStatus"] = draw(st.sampled_from([2, 3]))
    return oracle.Row("ns1", values["RunId"], values)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 16).flatmap(lambda n: st.tuples(*[timed_rows(run) for run in range(n)])),
    start_bounds,
    st.lists(other_bounds, max_size=2),
    st.integers(1, 3),
    st.integers(0, 10**6),
    probes,
)
def test_stretches_of_the_default_order_leave_nothing_out(
    model: Any, bound: Any, others: list[Any], page_size: int, seed: int, probe: int
) -> None:
    """Start times are no range of the default order: long executions, and clocks that run backwards."""
    connection = built([[row.record() for row in model]])
    search._PROBE = probe
    try:
        query = ("and", bound, *others) if others else bound
        text = text_of(query, [], seed)
        expected = [row.record() for row in oracle.in_order(oracle.found(list(model), "ns1", query), [])]
        paged, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, page_size)
        while token:
            page, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, page_size, token)
            assert page
            paged += page
        assert paged == expected, text
    finally:
        search._PROBE = 30_000
        connection.close()


@settings(max_examples=100, deadline=None)
@given(
    histories(),
    queries,
    st.sampled_from(["", "ExecutionStatus", "WorkflowType", "K", "TaskQueue", "TemporalNamespaceDivision"]),
    st.integers(0, 10**6),
    probes,
)
def test_count_agrees(history: Any, query: Any, group: str, seed: int, probe: int) -> None:
    batches, model = history
    connection = built(batches)
    search._PROBE = probe
    try:
        text = text_of(query, [], seed) + (f" GROUP BY {group}" if group else "")
        if group == "TemporalNamespaceDivision" and not oracle.mentions(query, group):
            query = ("or", ("null", group, False), ("null", group, True)) if query is None else (
                "and", query, ("or", ("null", group, False), ("null", group, True)))  # fmt: skip
        rows_found = oracle.found(model, "ns1", query)
        count, groups = search.count_executions(connection, "ns1", text, oracle.CUSTOM)
        assert count == len(rows_found), text
        if not group:
            assert groups == []
            return
        expected = Counter(oracle.value_of(row, group) for row in rows_found)
        if group == "ExecutionStatus":
            expected = Counter({oracle.STATUSES[value]: n for value, n in expected.items()})
        shown = {
            (
                json.loads(g.values[0].data) if g.values[0].metadata["encoding"] == b"json/plain" else None
            ): g.count
            for g in groups
        }
        assert shown == dict(expected), text
        assert [g.count for g in groups] == sorted(expected.values(), reverse=True)
    finally:
        search._PROBE = 30_000
        connection.close()


@settings(max_examples=60, deadline=None)
@given(histories())
def test_values_match_rows(history: Any) -> None:
    """Every value in the index belongs to a row that has it, and none is missing: as if built afresh."""
    batches, model = history
    connection, fresh = built(batches), built([[row.record() for row in model]] if model else [])
    select = """SELECT n.name, v.value, v.order_key, e.run_id, s.namespace_id, s.division
        FROM visibility_values v JOIN visibility_names n ON n.id = v.name
        LEFT JOIN visibility_executions e ON e.id = v.id AND e.scope = v.scope AND e.order_key = v.order_key
        LEFT JOIN visibility_scopes s ON s.id = v.scope"""
    try:
        assert Counter(connection.execute(select)) == Counter(fresh.execute(select))
    finally:
        connection.close()
        fresh.close()


VOCABULARY = [
    *oracle.TYPES,
    *["=", "!=", "<>", "<", "<=", ">", ">=", "(", ")", ",", "'", '"', "`", "\\", "-", "+", ".", "%"],
    "AND",
    "OR",
    "NOT",
    "IN",
    "IS",
    "NULL",
]
VOCABULARY += [
    "BETWEEN",
    "STARTS_WITH",
    "ORDER",
    "GROUP",
    "BY",
    "ASC",
    "DESC",
    "LIMIT",
    "LIKE",
    "TRUE",
    "FALSE",
    "'x'",
    "5",
    "1e9",
]
VOCABULARY += [
    "'2024-01-01T00:00:00Z'",
    "'5m'",
    "Nope",
    "\0",
    "\ud800",
    "é",
    "9" * 30,
    "1e999",
    "0x1F",
    "1.5.2",
    "--",
    "/*",
    ";",
]


@pytest.fixture(scope="module")
def one_row() -> Any:
    row = oracle.Row("ns1", "run01", {
        "WorkflowId": "a", "WorkflowType": "b", "StartTime": 5, "ExecutionTime": 5, "TaskQueue": "q",
        "HistoryLength": 3, "ExecutionStatus": 1, "K": "x", "KL": ["x", "y"], "T": "red", "D": 1.5,
    })  # fmt: skip
    connection = built([[row.record()]])
    yield connection
    connection.close()


@settings(max_examples=600, deadline=None)
@given(st.lists(st.sampled_from(VOCABULARY), max_size=14).map(" ".join) | st.text(max_size=60))
def test_any_text_is_answered_or_refused(one_row: sqlite3.Connection, text: str) -> None:
    for call in (search.list_executions, search.count_executions):
        refused = None
        try:
            call(one_row, "ns1", text, oracle.CUSTOM)
        except ServiceError as error:
            refused = error
        if refused is not None:
            assert refused.code == Code.INVALID_ARGUMENT
            assert refused.message.startswith("invalid query: ")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 40), st.integers(0, 255))
def test_any_token_is_answered_or_refused(
    one_row: sqlite3.Connection, token: bytes, place: int, byte: int
) -> None:
    if token:
        with pytest.raises(ServiceError, match="Invalid NextPageToken"):
            search.list_executions(one_row, "ns1", "", {}, 1, token)
    good = bytearray(pages.write_token(pages.digest("ns1", ""), (1, 2, "x")))
    search.list_executions(one_row, "ns1", "", {}, 1, bytes(good))
    if place < len(good) and good[place] != byte:
        good[place] = byte
        with pytest.raises(ServiceError, match="Invalid NextPageToken"):
            search.list_executions(one_row, "ns1", "", {}, 1, bytes(good))


def test_every_edge_of_a_stretch() -> None:
    """Executions from each edge to each edge, and every bound at an edge."""
    times = [(start, close) for start in EDGES for close in (0, *EDGES)]
    model = [timed_row(run, *both) for run, both in enumerate(times)]
    connection = built([[row.record() for row in model]])
    search._PROBE = 1
    try:
        for operator in ("<", "<=", ">", ">=", "="):
            for edge in EDGES:
                query = ("cmp", "StartTime", operator, edge)
                expected = [row.record() for row in oracle.in_order(oracle.found(model, "ns1", query), [])]
                text = f"StartTime {operator} {edge}"
                found, _ = search.list_executions(connection, "ns1", text, oracle.CUSTOM)
                assert found == expected, text
    finally:
        search._PROBE = 30_000
        connection.close()


def test_old_executions_are_found_without_looking_at_the_newer_ones() -> None:
    """And a file made before the index of irregular ones gets it when it is opened."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    second = 1_000_000_000
    model = []
    for n in range(12_000):
        start = oracle.BASE + n * 10 * second
        close = start + (3 * LONG if n % 1_000 == 500 else second * (n % 100))
        model.append(timed_row(n, start, close))
    connection = built([[row.record() for row in model]])
    connection.execute("DROP INDEX visibility_by_irregular")
    projection.create(connection)
    search._PROBE, search._PROBE_START = 1_000, 500
    try:
        for more in ("", " AND ExecutionStatus = 'Completed'", " AND WorkflowType = 'a'", " AND K = 'a'"):
            text = f"StartTime < {oracle.BASE + 1_100 * 10 * second}{more}"
            expected = [row.record() for row in oracle.in_order(model[:1_100], [])]
            connection.set_progress_handler(step, 100)
            steps = 0
            found, token = search.list_executions(connection, "ns1", text, oracle.CUSTOM, 100)
            second_page, _ = search.list_executions(connection, "ns1", text, oracle.CUSTOM, 100, token)
            connection.set_progress_handler(None, 0)
            assert found + second_page == expected[:200]
            assert steps < 600, f"{text}: {steps * 100} steps"  # looking at each takes more than 100,000
    finally:
        search._PROBE, search._PROBE_START = 30_000, 10_000
        connection.close()


@pytest.mark.parametrize(
    "query",
    [
        "B = false AND ParentWorkflowId = ''",
        "ParentWorkflowId = 'a' AND (B = true OR (B = false AND WorkflowType = 'x'))",
        "ParentWorkflowId = 'a' AND (B is null OR WorkflowType = 'x')",
    ],
)
def test_a_condition_that_the_data_decides_does_not_take_the_index_away(
    one_row: sqlite3.Connection, query: str
) -> None:
    """Nothing has an attribute B: SQLite dropped the other test, and with it what its partial index needs."""
    assert search.count_executions(one_row, "ns1", query, oracle.CUSTOM) == (0, [])
    assert search.list_executions(one_row, "ns1", query, oracle.CUSTOM, 10, b"")[0] == []
