"""The filter language by example: what it accepts, what each refusal says, and what words mean."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import suppress

import pytest

from history_store.engine.errors import Code, ServiceError
from history_store.visibility import filters, pages, projection, search, syntax
from history_store.visibility.literals import parse_datetime, parse_duration, sortable_double, words
from history_store.visibility.record import DeleteRecord, ExecutionRecord
from history_store.visibility.syntax import And, Between, Comparison, In, IsNull, Literal, Name, Not, Or

ATTRIBUTES = {"K": 2, "KL": 7, "T": 1, "I": 3, "D": 4, "B": 5, "DT": 6, "odd name": 2}
SECOND = 1_000_000_000


def record(run: str, **changes: object) -> ExecutionRecord:
    fields: dict[str, object] = {
        "namespace_id": "ns", "workflow_id": "w", "run_id": run, "workflow_type": "T", "status": 1,
        "start_time": 10 * SECOND, "execution_time": 10 * SECOND, "close_time": 0, "task_queue": "q",
        "history_length": 2, "history_size_bytes": 3, "state_transition_count": 4, "execution_duration": 0,
        "memo": b"", "search_attributes": b"",
    }  # fmt: skip
    return ExecutionRecord(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    projection.create(connection)
    yield connection
    connection.close()


def runs(connection: sqlite3.Connection, query: search.Filter) -> list[str]:
    return [found.run_id for found in search.list_executions(connection, "ns", query, ATTRIBUTES)[0]]


def test_tree() -> None:
    query = syntax.parse("a = 'x' OR b > 1 AND NOT (c IN (1, -2.5) OR `d e` IS NOT NULL) ORDER BY a DESC, b")
    b, c, d = Name("b", 12), Name("c", 27), Name("d e", 45)
    assert query.where == Or(
        (
            Comparison(Name("a", 1), "=", Literal("x", 5)),
            And(
                (
                    Comparison(b, ">", Literal(1, 16)),
                    Not(Or((In(c, (Literal(1, 33), Literal(-2.5, 37))), IsNull(d, negated=True)))),
                )
            ),
        )
    )
    assert [(term.name.text, term.descending) for term in query.order_by] == [("a", True), ("b", False)]


def test_between_takes_its_own_and() -> None:
    where = syntax.parse("a between 1 and 2 and b not between 3 and 4").where
    assert where == And(
        (
            Between(Name("a", 1), Literal(1, 11), Literal(2, 17)),
            Between(Name("b", 23), Literal(3, 37), Literal(4, 43), negated=True),
        )
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'it''s'", "it's"),
        (r"'it\'s'", "it's"),
        ('"say ""x"""', 'say "x"'),
        (r'"a\\b\n"', "a\\b\n"),
        ("''", ""),
        ("5", 5),
        ("-5", -5),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9223372036854775808", float(2**63)),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("true", True),
        ("False", False),
    ],
)
def test_literals(text: str, value: object) -> None:
    where = syntax.parse(f"a = {text}").where
    assert isinstance(where, Comparison)
    assert where.literal.value == value
    assert type(where.literal.value) is type(value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("WorkflowId =", "malformed SQL query: syntax error at position 13: the query ends too early"),
        ("WorkflowId = 'x", "malformed SQL query: syntax error at position 14 near ''x'"),
        ("WorkflowId ! 'x'", "malformed SQL query: syntax error at position 12 near '! 'x''"),
        ("(WorkflowId = 'x'", "malformed SQL query: syntax error at position 18: the query ends too early"),
        ("WorkflowId = 'x')", "malformed SQL query: syntax error at position 17 near ')'"),
        ("WorkflowId = 'x' 'y'", "malformed SQL query: syntax error at position 18 near 'y'"),
        ("WorkflowId IN ()", "malformed SQL query: syntax error at position 16 near ')'"),
        ("Foo = 'x'", "invalid search attribute: Foo"),
        ("ORDER BY Foo", "invalid search attribute: Foo"),
        ("WorkflowId", "invalid expression: incomplete expression: 'WorkflowId' at position 1"),
        (
            "WorkflowId = order1",
            "operation is not supported: column name on the right side of comparison expression"
            ' (did you forget to quote "order1"?) at position 14',
        ),
        (
            "5 = 5",
            "invalid expression: must be a search attribute name but was the value '5' at position 1"
            " (a condition is: name, operator, value)",
        ),
        (
            "WorkflowId = 5",
            "invalid expression: invalid value type for search attribute WorkflowId of type Keyword:"
            " 5 (type: int64) at position 14",
        ),
        (
            "HistoryLength > '5'",
            'invalid expression: invalid value type for search attribute HistoryLength of type Int: "5"'
            " (type: string) at position 17",
        ),
        (
            "B = 1",
            "invalid expression: invalid value type for search attribute B of type Bool:"
            " 1 (type: int64) at position 5",
        ),
        (
            "StartTime > 'yesterday'",
            "invalid expression: unable to parse datetime 'yesterday' for search attribute StartTime"
            " at position 13",
        ),
        (
            "ExecutionStatus = 'Done'",
            "invalid expression: invalid ExecutionStatus value 'Done' at position 19",
        ),
        (
            "ExecutionDuration > '5 minutes'",
            "invalid expression: invalid duration value for search attribute ExecutionDuration:"
            " 5 minutes at position 21",
        ),
        (
            "T > 'x'",
            "operation is not supported: operator '>' not supported for Text type search attribute 'T'"
            " (position 1)",
        ),
        (
            "KL STARTS_WITH 'x'",
            "operation is not supported: operator 'STARTS_WITH' not supported for KeywordList type"
            " search attribute 'KL' (position 1)",
        ),
        (
            "T BETWEEN 'a' AND 'b'",
            "invalid expression: cannot do range condition on search attribute 'T' of type Text"
            " at position 1",
        ),
        (
            "T = '!!'",
            "invalid expression: unexpected value for Text type search attribute T:"
            ' "!!" (type: string) at position 5 (no tokens found)',
        ),
        (
            "K LIKE 'x%'",
            "operation is not supported: operator 'LIKE' for search attribute 'K' at position 3",
        ),
        (
            "K = NULL",
            "invalid expression: NULL at position 5 is no value to compare with: use IS [NOT] NULL",
        ),
        (
            "B IS TRUE",
            "invalid expression: 'IS' operator can only be used as 'IS NULL' or 'IS NOT NULL'"
            " (search attribute 'B', position 6)",
        ),
        ("lower(K) = 'x'", "operation is not supported: function expression 'lower' at position 1"),
        ("K = 'x' LIMIT 5", "operation is not supported: 'LIMIT' clause"),
        (
            "GROUP BY ExecutionStatus",
            "operation is not supported: 'GROUP BY' clause in a list (only a count has groups)",
        ),
        ("ORDER BY T", "operation is not supported: unable to sort by search attribute T of type Text"),
        ("(" * 101 + "K = 'x'" + ")" * 101, "malformed SQL query: nested more than 100 deep at position 101"),
        (" OR ".join(["K = 'x'"] * 1001), "malformed SQL query: more than 1000 conditions at position 11001"),
        ("- " * 25_001, "malformed SQL query: more than 25000 words and signs at position 50001"),
        ("x" * 500_001, "malformed SQL query: 500001 characters, more than 500000"),
        (
            f"K IN ({'1,' * 10_000}1)",
            "malformed SQL query: more than 10000 values at position 20007",
        ),
        ("D = 1e999", 'invalid expression: unable to parse value "1e999" at position 5'),
    ],
)  # fmt: skip
def test_refusals(connection: sqlite3.Connection, query: str, message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        search.list_executions(connection, "ns", query, ATTRIBUTES)
    assert caught.value.code == Code.INVALID_ARGUMENT
    assert caught.value.message == f"invalid query: {message}"


@pytest.mark.parametrize("name", ["I", "D", "B", "T", "KL", "DT", "StartTime"])
def test_groups_are_of_keywords(connection: sqlite3.Connection, name: str) -> None:
    with pytest.raises(ServiceError, match="'GROUP BY' clause is not supported for search attribute " + name):
        search.count_executions(connection, "ns", f"GROUP BY {name}", ATTRIBUTES)
    with pytest.raises(ServiceError, match="supports only a single field"):
        search.count_executions(connection, "ns", "GROUP BY K, ExecutionStatus", ATTRIBUTES)


def test_large_queries_run(connection: sqlite3.Connection) -> None:
    projection.apply(connection, [record("r1"), record("r2", workflow_id="other")])
    assert runs(connection, " OR ".join(["WorkflowId = 'w'"] * 1000)) == ["r1"]
    assert runs(connection, "(" * 100 + "WorkflowId = 'w'" + ")" * 100) == ["r1"]
    assert runs(connection, f"WorkflowId IN ({', '.join(repr(f'x{n}') for n in range(9_999))}, 'w')") == [
        "r1"
    ]
    assert runs(connection, "NOT " * 5000 + "WorkflowId = 'w'") == ["r1"]


def test_names(connection: sqlite3.Connection) -> None:
    projection.apply(connection, [record("r1", workflow_id="WorkflowId")])
    assert runs(connection, "`WorkflowId` = 'WorkflowId'") == ["r1"]
    assert runs(connection, "ScheduleId = 'WorkflowId'") == ["r1"]  # what schedules are listed by
    assert runs(connection, "TemporalWorkflowType = 'T' AND SchedulePaused IS NULL") == [
        "r1"
    ]  # prefix optional
    assert runs(connection, "`odd name` IS NULL") == ["r1"]


def test_a_custom_attribute_does_not_hide_a_system_one(connection: sqlite3.Connection) -> None:
    projection.apply(connection, [record("r1")])
    found, _ = search.list_executions(connection, "ns", "WorkflowId = 'w'", {"WorkflowId": 3})
    assert len(found) == 1


def test_nanoseconds(connection: sqlite3.Connection) -> None:
    start = parse_datetime("2024-02-29T12:00:00.123456789Z")
    projection.apply(connection, [record("r1", start_time=start), record("r2", start_time=start + 1)])
    assert runs(connection, "StartTime = '2024-02-29T12:00:00.123456789Z'") == ["r1"]
    assert runs(connection, "StartTime > '2024-02-29T13:00:00.123456789+01:00'") == ["r2"]
    assert runs(connection, f"StartTime BETWEEN {start + 1} AND '2025-01-01T00:00:00Z'") == ["r2"]
    assert runs(connection, "StartTime < '9999-12-31T23:59:59Z' AND StartTime > '0001-01-01T00:00:00Z'") == [
        "r2",
        "r1",
    ]


def test_duration_and_status(connection: sqlite3.Connection) -> None:
    closed = {"close_time": 3700 * SECOND, "execution_duration": 3690 * SECOND}
    projection.apply(connection, [record("r1"), record("r2", status=7, **closed)])
    for text in ("'1h1m30s'", "'01:01:30'", "'3690s'", str(3690 * SECOND), f"'{3690 * SECOND}'"):
        assert runs(connection, f"ExecutionDuration = {text}") == ["r2"]
    for text in ("'TimedOut'", "'TIMED_OUT'", "'WORKFLOW_EXECUTION_STATUS_TIMED_OUT'", "7"):
        assert runs(connection, f"ExecutionStatus = {text}") == ["r2"]
    assert runs(connection, "ExecutionDuration IS NULL") == ["r1"]


def test_filters_of_the_older_calls(connection: sqlite3.Connection) -> None:
    done = {"status": 2, "close_time": 30 * SECOND}
    projection.apply(
        connection,
        [
            record("open1"),
            record("open2", workflow_id="it's", start_time=20 * SECOND),
            record("done1", **done),
            record("done2", workflow_type="U", **done | {"status": 3, "close_time": 40 * SECOND}),
        ],
    )
    assert runs(connection, filters.open_executions()) == ["open2", "open1"]
    assert runs(connection, filters.open_executions(earliest=11 * SECOND, latest=20 * SECOND)) == ["open2"]
    assert runs(connection, filters.open_executions(latest=20 * SECOND - 1)) == ["open1"]
    assert runs(connection, filters.open_executions(workflow_id="it's")) == ["open2"]
    assert runs(connection, filters.open_executions(workflow_type="U")) == []
    assert runs(connection, filters.closed_executions()) == ["done2", "done1"]
    assert runs(connection, filters.closed_executions(earliest=31 * SECOND)) == ["done2"]
    assert runs(connection, filters.closed_executions(status=2)) == ["done1"]
    assert runs(connection, filters.closed_executions(workflow_type="U", latest=40 * SECOND)) == ["done2"]


def test_read_your_writes_and_deletes(connection: sqlite3.Connection) -> None:
    projection.apply(connection, [record("r1"), record("r1", status=2, close_time=11 * SECOND)])
    assert runs(connection, "ExecutionStatus = 'Completed'") == ["r1"]
    projection.apply(connection, [record("r2"), DeleteRecord("ns", "r1"), DeleteRecord("ns", "never")])
    assert runs(connection, "") == ["r2"]
    assert search.count_executions(connection, "elsewhere", "", ATTRIBUTES) == (0, [])


def test_a_broken_map_is_stored_without_its_values(connection: sqlite3.Connection) -> None:
    """A commit cannot be refused any more: what was not validated must not stop the writer."""
    projection.apply(connection, [record("r1", search_attributes=b"\xff\xff\xff")])
    assert runs(connection, "K IS NULL") == ["r1"]


@pytest.mark.parametrize(
    "position", [(), (1 << 63, 1, "a"), (5, 1 << 63, "a"), (-(1 << 63) - 1,), ("x",), (5,)]
)
@pytest.mark.parametrize("query", ["", "ORDER BY StartTime", "ORDER BY K"])
def test_a_token_that_somebody_made_is_refused(
    connection: sqlite3.Connection, position: tuple[int | str, ...], query: str
) -> None:
    projection.apply(connection, [record("a"), record("b")])
    with suppress(OverflowError):  # what msgpack cannot say, nobody can
        token = pages.write_token(pages.digest("ns", query), position)
        with pytest.raises(ServiceError) as caught:
            search.list_executions(connection, "ns", query, ATTRIBUTES, 1, token)
        assert caught.value.code == Code.INVALID_ARGUMENT


def test_a_token_belongs_to_its_query_and_namespace(connection: sqlite3.Connection) -> None:
    projection.apply(connection, [record("r1"), record("r2"), record("r3")])
    _, token = search.list_executions(connection, "ns", "WorkflowId = 'w'", ATTRIBUTES, 1)
    page, _ = search.list_executions(connection, "ns", "WorkflowId = 'w'", ATTRIBUTES, 2, token)
    assert [found.run_id for found in page] == ["r2", "r3"]
    for namespace, query in (("ns", "WorkflowType = 'T'"), ("other", "WorkflowId = 'w'")):
        with pytest.raises(ServiceError, match="made for another query or namespace"):
            search.list_executions(connection, namespace, query, ATTRIBUTES, 1, token)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("300ms", 300_000_000), ("-1.5h", -5_400 * SECOND),
        ("2h45m", 9_900 * SECOND), ("1d", 86_400 * SECOND),
        ("1.5d12h", 172_800 * SECOND), ("10", 10), ("00:00:01", SECOND),
        ("100:00:00", 360_000 * SECOND),
        ("5us", 5_000), ("5µs", 5_000), ("+1ns", 1), (".5s", SECOND // 2),
    ],
)  # fmt: skip
def test_durations(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize("text", ["", "-", "5", "1x", "1:2", "00:60:00", "h", ".s", "1h 2m", "999999999999h"])
def test_no_durations(text: str) -> None:
    if text == "5":
        assert parse_duration(text) == 5
        return
    with pytest.raises(ValueError):
        parse_duration(text)


@pytest.mark.parametrize(
    "text",
    ["2024-02-30T00:00:00Z", "2024-01-01", "2024-01-01T00:00:00", "2024-01-01T24:00:00Z",
     "2024-01-01 00:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01T00:00:00+24:00", "", "٢٠٢٤-01-01T00:00:00Z"],
)  # fmt: skip
def test_no_dates(text: str) -> None:
    with pytest.raises(ValueError):
        parse_datetime(text)


def test_doubles_sort_as_integers() -> None:
    numbers = [float("-inf"), -1e300, -2.5, -1.0, -5e-324, 0.0, 5e-324, 1e-9, 1.0, 2.5, 1e300, float("inf")]
    keys = [sortable_double(number) for number in numbers]
    assert keys == sorted(set(keys))
    assert sortable_double(-0.0) == sortable_double(0.0)


def test_words() -> None:
    assert words("Café-au-lait, CAFÉ! über_x 42") == ["cafe", "au", "lait", "uber", "x", "42"]
    assert words("日本語") == ["日本語"]


def test_a_token_whose_text_is_none_is_refused() -> None:
    of_list = pages.digest("ns", "")
    body = pages._TOKEN_VERSION + of_list + b"\x91\xa1\xff"
    token = body + pages.blake2b(body, digest_size=pages._DIGEST).digest()
    with pytest.raises(ServiceError, match="Invalid NextPageToken"):
        pages.read_token(token, of_list)
