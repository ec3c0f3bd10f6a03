"""List and Count: a filter's text in, a page of executions or numbers out.

Runs on a reader thread with a read-only connection of its own. Pages are found by the sort values of the
last row shown (keyset paging), so a page costs the same wherever it is, and what is written meanwhile
shifts nothing; see `pages`.

Where a node answers for some hash slots only, because it has no replica of the others or another node answers
for them, the executions of all other slots are left out: what several nodes answer for slots that are not the
same is put together by `pages.merge` and `Tally.add`.
"""

# ruff: noqa: S608 - statements are built of our own names and numbers; values are parameters

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import msgspec
from temporalio.api.common.v1 import Payload

from history_store.engine.errors import ServiceError
from history_store.engine.keys import slot_of
from history_store.visibility import spans, sql, syntax
from history_store.visibility.pages import Part, bad_token, digest, read_token, write_token
from history_store.visibility.record import ExecutionRecord
from history_store.visibility.resolve import STATUS_NAMES, Field, Leaf, Meaning, Resolved, resolve
from history_store.visibility.spans import Stretch
from history_store.visibility.sql import FALSE, Driver, Fragment, Scope, Slots

DEFAULT_PAGE_SIZE = 1_000
MAX_PAGE_SIZE = 10_000
MAX_GROUPS = 10_000

Filter = str | syntax.Query  # what clients send; what `filters` builds

_PROBE = 30_000  # a driver with fewer entries is walked and sorted; above, rather the default order
_PROBE_START = 10_000  # so for start times, which the default order is good at, too (see `spans`)

_RECORD = (
    "e.workflow_id, e.run_id, e.workflow_type, e.status, e.start_time, ifnull(e.execution_time, 0),"
    " ifnull(e.close_time, 0), ifnull(e.task_queue, ''), e.history_length, e.history_size_bytes,"
    " e.state_transition_count, ifnull(e.execution_duration, 0), e.memo, e.search_attributes,"
    " ifnull(e.parent_workflow_id, ''), ifnull(e.parent_run_id, ''),"
    " ifnull(e.root_workflow_id, ''), ifnull(e.root_run_id, '')"
)
_RECORD_FIELDS = 18
_BY_RUN = (
    f"SELECT s.namespace_id, {_RECORD} FROM visibility_executions e"
    " JOIN visibility_scopes s ON s.id = e.scope WHERE e.run_id IN (SELECT value FROM json_each(?))"
)


class Group(msgspec.Struct, frozen=True):
    """One group of a count, ready for CountWorkflowExecutionsResponse."""

    values: list[Payload]
    count: int


@dataclass(frozen=True, slots=True)
class _Term:
    """One term of the order of a page."""

    expression: str
    descending: bool
    nullable: bool = False  # missing values come last, whatever the direction


def list_executions(
    connection: sqlite3.Connection,
    namespace_id: str,
    query: Filter,
    attributes: Mapping[str, int],
    page_size: int = 0,
    page_token: bytes = b"",
) -> tuple[list[ExecutionRecord], bytes]:
    """A page of the executions that the query finds, and the token of the next page (b"" = there is none)."""
    rows, more = _rows(connection, namespace_id, query, attributes, page_size, page_token, None)
    token = write_token(digest(namespace_id, query), rows[-1][_RECORD_FIELDS:]) if more else b""
    return [ExecutionRecord(namespace_id, *row[:_RECORD_FIELDS]) for row in rows], token


def list_part(
    connection: sqlite3.Connection,
    namespace_id: str,
    query: Filter,
    attributes: Mapping[str, int],
    page_size: int = 0,
    page_token: bytes = b"",
    slots: Slots | None = None,
) -> Part[ExecutionRecord]:
    """What this projection has of the same page in these slots (None: in all)."""
    rows, more = _rows(connection, namespace_id, query, attributes, page_size, page_token, slots)
    records = [ExecutionRecord(namespace_id, *row[:_RECORD_FIELDS]) for row in rows]
    return Part(records, [row[_RECORD_FIELDS:] for row in rows], more)


def _rows(
    connection: sqlite3.Connection,
    namespace_id: str,
    query: Filter,
    attributes: Mapping[str, int],
    page_size: int,
    page_token: bytes,
    slots: Slots | None,
) -> tuple[list[tuple[Any, ...]], bool]:
    """The page's rows: fields of the record, then the position. And whether others follow."""
    resolved = _listed(query, attributes)
    after = read_token(page_token, digest(namespace_id, query)) if page_token else None
    size = page_rows(page_size)
    plan = _plan(connection, namespace_id, resolved, True, slots)
    statement = _page(plan, resolved, after, size + 1) if plan is not None else None
    if statement is None:
        return [], False
    rows = connection.execute(statement.text, statement.parameters).fetchall()
    return rows[:size], len(rows) > size


def page_rows(page_size: int) -> int:
    """How many rows a page has that was asked for with this size (0 = it was not said)."""
    return min(page_size, MAX_PAGE_SIZE) if page_size > 0 else DEFAULT_PAGE_SIZE


def directions(query: Filter, attributes: Mapping[str, int]) -> tuple[bool, ...]:
    """Of each term of a list's order: whether it is descending."""
    resolved = _listed(query, attributes)
    if resolved.order_by:
        return (*(descending for _, descending in resolved.order_by), _RUN_ID.descending)
    return tuple(term.descending for term in _default_terms("e"))


def _listed(query: Filter, attributes: Mapping[str, int]) -> Resolved:
    resolved = _understand(query, attributes)
    if resolved.group_by is not None:
        raise syntax.unsupported("'GROUP BY' clause in a list (only a count has groups)")
    return resolved


def slots_of(namespace_id: str, query: Filter, attributes: Mapping[str, int]) -> frozenset[int] | None:
    """The only slots in which the query can find something, where it names workflow ids; None: any."""
    for part in sql.conjuncts(_understand(query, attributes).where):
        if isinstance(part, Leaf) and part.field.name == "WorkflowId" and part.operator in ("=", "in"):
            return frozenset(slot_of(namespace_id, str(value)) for value in part.values)
    return None


def find_records(connection: sqlite3.Connection, runs: Iterable[tuple[str, str]]) -> list[ExecutionRecord]:
    """The records of these runs (namespace id, run id), as far as there are any; in no order."""
    wanted = set(runs)
    found = connection.execute(_BY_RUN, (msgspec.json.encode([run_id for _, run_id in wanted]).decode(),))
    records = [ExecutionRecord(*row) for row in found]
    return [record for record in records if (record.namespace_id, record.run_id) in wanted]


def _page(plan: _Plan, resolved: Resolved, after: list[object] | None, rows: int) -> Fragment | None:
    """The statement that reads a page; None if nothing can be there.

    In the default order it has a part for each stretch; SQLite merges them without reading any to its end.
    """
    if resolved.order_by:
        terms = [
            _Term(sql.expression(field, plan.scope), descending, nullable=field.name not in _ALWAYS_SET)
            for field, descending in resolved.order_by
        ]
        terms.append(_RUN_ID)
        where = list(plan.where)
        if after is not None:
            where += [_beginning(terms[0], after), _beyond(terms, after)]
        if resolved.order_by[0][0].name != "StartTime":
            return _sorted(plan.source, where, terms, rows)
        selects = [_select(plan.source, where, terms)]
    else:
        last = _order_key(after) if after is not None else spans.KEY_MAX
        terms, selects = _default_terms("e"), []
        for stretch in plan.stretches(last):
            source, where, row = plan.stretch(stretch)
            terms = _default_terms(row)
            if after is not None:
                where = [*where, _beyond(terms, after)]
            if not plan.ordered:
                return _sorted(source, where, terms, rows)
            selects.append(_select(source, where, terms))
        if not selects:
            return None
    text = " UNION ALL ".join(select.text for select in selects)
    parameters = tuple(value for select in selects for value in select.parameters)
    return Fragment(f"{text} ORDER BY {_order(terms, by_place=True)} LIMIT {rows}", parameters)


def _order(terms: list[_Term], by_place: bool = False) -> str:
    """What follows ORDER BY: expressions, or, of a UNION, the places of the columns."""
    return ", ".join(
        (str(place) if by_place else term.expression)
        + (" DESC" if term.descending else "")
        + (" NULLS LAST" if term.nullable else "")
        for place, term in enumerate(terms, _RECORD_FIELDS + 1)
    )


def _sorted(source: str, where: list[Fragment], terms: list[_Term], rows: int) -> Fragment:
    """A page of what has to be sorted as a whole: the sorter gets ids, and only the page's rows are read."""
    tested, order = sql.join(where, " AND "), _order(terms)
    page = f"SELECT e.id FROM {source} WHERE {tested.text} ORDER BY {order} LIMIT {rows}"
    found = Fragment(f"e.id IN ({page})", tested.parameters)
    select = _select("visibility_executions e NOT INDEXED", [found], terms)
    return Fragment(f"{select.text} ORDER BY {order}", select.parameters)


def _default_terms(row: str) -> list[_Term]:
    return [_Term(f"{row}.order_key", True), _Term("e.start_time", True), _RUN_ID]


def _select(source: str, where: list[Fragment], terms: list[_Term]) -> Fragment:
    tested = sql.join(where, " AND ")
    sort_values = ", ".join(term.expression for term in terms)
    return Fragment(f"SELECT {_RECORD}, {sort_values} FROM {source} WHERE {tested.text}", tested.parameters)


class Tally(msgspec.Struct, array_like=True):
    """What a count comes to; of one node's slots, or of several nodes' together."""

    count: int = 0
    values: dict[str | None, int] | None = None  # of each value of the attribute to group by, if there is one

    def add(self, other: Tally, alias: str) -> None:
        """Other slots' count. ServiceError if there are too many groups; `alias` is the attribute's name."""
        self.count += other.count
        if other.values is None:
            return
        if self.values is None:
            self.values = {}
        for value, n in other.values.items():
            self.values[value] = self.values.get(value, 0) + n
        if len(self.values) > MAX_GROUPS:
            raise _too_many_groups(alias)

    def groups(self) -> list[Group]:
        """The values, most frequent first."""
        values = self.values or {}
        ranked = sorted(values.items(), key=lambda item: (-item[1], item[0] is not None, item[0] or ""))
        return [Group([_payload(value)], n) for value, n in ranked]


def count_executions(
    connection: sqlite3.Connection, namespace_id: str, query: Filter, attributes: Mapping[str, int]
) -> tuple[int, list[Group]]:
    """How many executions the query finds; with GROUP BY also how many of each value, most frequent first.

    ORDER BY means nothing here and is passed over.
    """
    tally = count_part(connection, namespace_id, query, attributes)
    return tally.count, tally.groups()


def count_part(
    connection: sqlite3.Connection,
    namespace_id: str,
    query: Filter,
    attributes: Mapping[str, int],
    slots: Slots | None = None,
) -> Tally:
    """What this projection has of the same in these slots (None: in all)."""
    resolved = _understand(query, attributes)
    plan = _plan(connection, namespace_id, resolved, False, slots)
    if plan is None:
        return Tally()
    tested = sql.join(plan.where, " AND ")
    if resolved.group_by is None:
        row = connection.execute(
            f"SELECT count(*) FROM {plan.source} WHERE {tested.text}",
            tested.parameters,
        ).fetchone()
        return Tally(row[0])
    if resolved.group_by.name == "ExecutionStatus":
        counted = _statuses(connection, plan, tested)
    else:
        counted = _values(connection, plan, tested, resolved.group_by)
    return Tally(sum(n for _, n in counted), dict(counted))


def grouped_by(query: Filter, attributes: Mapping[str, int]) -> str:
    """What a count groups by, as the query names it; "" = nothing."""
    group_by = _understand(query, attributes).group_by
    return group_by.alias if group_by is not None else ""


def _statuses(connection: sqlite3.Connection, plan: _Plan, tested: Fragment) -> list[tuple[str | None, int]]:
    """One counter a status: less than half the time of GROUP BY, which sorts first."""
    counters = ", ".join(f"count(*) FILTER (WHERE e.status = {number})" for number in STATUS_NAMES)
    row = connection.execute(
        f"SELECT {counters} FROM {plan.source} WHERE {tested.text}", tested.parameters
    ).fetchone()
    return [(name, n) for name, n in zip(STATUS_NAMES.values(), row, strict=True) if n]


def _values(
    connection: sqlite3.Connection, plan: _Plan, tested: Fragment, field: Field
) -> list[tuple[str | None, int]]:
    value = "e.scope" if field.is_division else sql.expression(field, plan.scope)
    rows = connection.execute(
        f"SELECT {value} AS value, count(*) AS n FROM {plan.source} WHERE {tested.text}"
        f" GROUP BY 1 LIMIT {MAX_GROUPS + 1}",
        tested.parameters,
    ).fetchall()
    if len(rows) > MAX_GROUPS:
        raise _too_many_groups(field.alias)
    if field.is_division:
        return [(plan.scope.divisions[scope] or None, n) for scope, n in rows]
    return rows


def _too_many_groups(alias: str) -> ServiceError:
    return syntax.unsupported(f"'GROUP BY' {alias}: more than {MAX_GROUPS} groups")


def check(query: Filter, attributes: Mapping[str, int]) -> None:
    """Raise what List or Count would raise for this query, without reading anything."""
    _understand(query, attributes)


def _payload(value: str | None) -> Payload:
    if value is None:
        return Payload(metadata={"encoding": b"binary/null", "type": b"Keyword"})
    return Payload(metadata={"encoding": b"json/plain", "type": b"Keyword"}, data=msgspec.json.encode(value))


@lru_cache(maxsize=256)
def _parsed(text: str) -> syntax.Query:
    return syntax.parse(text)


def _understand(query: Filter, attributes: Mapping[str, int]) -> Resolved:
    if isinstance(query, str):
        query = _parsed(query) if len(query) <= 1_000 else syntax.parse(query)
    return resolve(query, attributes)


# ------------------------------------------------------------------------------------------------ the plan


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the rows come from, and what is tested of them."""

    scope: Scope
    in_slots: tuple[Fragment, ...]  # the test of the slots that are asked for, if not all are
    parts: tuple[Meaning, ...]
    source: str  # what follows FROM
    where: list[Fragment]
    row: str  # the table whose order_key the index walked goes by
    ordered: bool  # the index walked is in the default order (or nothing better is known)

    def stretches(self, last: int) -> list[Stretch]:
        """What is to be read in the default order, from this order key on."""
        found = (
            spans.stretches(self.parts, last) if self.ordered else [Stretch(spans.whole(self.parts, last))]
        )
        return [stretch for stretch in found if stretch.span]

    def stretch(self, stretch: Stretch) -> tuple[str, list[Fragment], str]:
        """Source, tests and `row` for one stretch of the default order."""
        if not stretch.irregular:
            return self.source, [*self.where, sql.within(self.row, stretch.span)], self.row
        tests = [part for part in self.parts if (found := spans.of_leaf(part)) is None or not found[1]]
        where = [Fragment(self.scope.test("e.scope")), sql.IRREGULAR_ROW, *self.in_slots]
        where += _tests(tests, self.scope)
        where.append(sql.within("e", stretch.span))
        return "visibility_executions e INDEXED BY visibility_by_irregular", where, "e"


_RUN_ID = _Term("e.run_id", False)
_ALWAYS_SET = frozenset(
    {"StartTime", "WorkflowId", "RunId", "WorkflowType", "ExecutionStatus", "HistoryLength"}
    | {"HistorySizeBytes", "StateTransitionCount"}
)


def _plan(
    connection: sqlite3.Connection,
    namespace_id: str,
    resolved: Resolved,
    keep_order: bool,
    slots: Slots | None,
) -> _Plan | None:
    """How to find the rows; None if there can be none."""
    scope = _scope(connection, namespace_id, resolved)
    parts = sql.conjuncts(resolved.where)
    scope = sql.narrowed(scope, parts)
    if not scope.divisions:
        return None
    default_order = keep_order and not resolved.order_by
    walks_start = keep_order and bool(resolved.order_by) and resolved.order_by[0][0].name == "StartTime"
    driver = _choose(connection, sql.drivers(parts, scope), default_order, walks_start)
    if driver is not None and driver.index == "visibility_by_order" and default_order:
        driver = None  # what it says is a span of that order, and all stretches are cut to it
    exact = driver.leaf if driver is not None and driver.exact else None
    rest = [part for part in parts if part is not exact]
    if default_order:
        rest = [part for part in rest if (found := spans.of_leaf(part)) is None or not found[1]]
    in_slots = () if slots is None else (sql.of_slots("e.slot", slots),)
    tests = [*in_slots, *_tests(rest, scope)]
    if FALSE in tests:
        return None
    in_scope = Fragment(scope.test("e.scope"))
    row = "e"
    if driver is None:
        walked = "order"
        if walks_start:
            walked = "start"
        elif not keep_order and not tests:  # counting all: the narrowest index that knows the groups
            group = resolved.group_by.name if resolved.group_by is not None else ""
            walked = {"": "start", "WorkflowType": "type"}.get(group, "order")
        source = f"visibility_executions e INDEXED BY visibility_by_{walked}"
        where = [in_scope, *tests]
    elif driver.index == "ids":
        source, where = "visibility_executions e NOT INDEXED", [driver.test, in_scope, *tests]
    elif driver.index:
        source, where = f"visibility_executions e INDEXED BY {driver.index}", [in_scope, driver.test, *tests]
    elif not tests and not keep_order and resolved.group_by is None:
        source, where = "visibility_values v", [driver.test]  # counted without looking at a row
    else:
        source = "visibility_values v CROSS JOIN visibility_executions e NOT INDEXED ON e.id = v.id"
        where = [driver.test, *tests]
        row = "v"
    return _Plan(scope, in_slots, parts, source, where, row, ordered=driver is None or driver.ordered)


def _tests(parts: Iterable[Meaning], scope: Scope) -> list[Fragment]:
    """The conditions on a row; the scope has seen to those on the division."""
    return [
        sql.condition(part, scope)
        for part in parts
        if not (isinstance(part, Leaf) and part.field.is_division)
    ]


def _scope(connection: sqlite3.Connection, namespace_id: str, resolved: Resolved) -> Scope:
    divisions = dict(
        connection.execute(
            "SELECT id, division FROM visibility_scopes WHERE namespace_id = ?", (namespace_id,)
        ).fetchall()
    )
    if not resolved.names_division:
        divisions = {number: division for number, division in divisions.items() if not division}
    names = connection.execute("SELECT name, type, id FROM visibility_names").fetchall()
    return Scope(divisions, {(name, value_type): number for name, value_type, number in names})


def _choose(
    connection: sqlite3.Connection, drivers: list[Driver], default_order: bool, walks_start: bool
) -> Driver | None:
    """The driver with the fewest entries; where all have many, one that comes in order, or none."""
    if not drivers:
        return None
    first = drivers[0]
    field = first.leaf.field
    equal = first.leaf.operator in ("=", "contains")
    one_run = field.name == "RunId" and first.leaf.operator in ("=", "in")
    if one_run or (len(drivers) == 1 and first.ordered and default_order):
        return first
    best, fewest = None, _PROBE
    for driver in drivers:
        limit = fewest
        if default_order and driver.index == "visibility_by_start":
            limit = min(limit, _PROBE_START)
        entries = connection.execute(
            f"SELECT count(*) FROM ({driver.probe.text} LIMIT {limit})",
            driver.probe.parameters,
        ).fetchone()[0]
        if entries < limit:
            best, fewest = driver, entries
        if fewest == 0:
            break
    if best is not None:
        return best
    if field.name in ("WorkflowId", "ParentWorkflowId") and equal:
        return first  # tens of thousands of runs of one id: still fewer than all
    if default_order:
        return first if first.ordered else None
    return first if equal and not field.column and not walks_start else None


# ------------------------------------------------------------------------------------------- positions


def _beyond(terms: list[_Term], values: list[object]) -> Fragment:
    """Rows after the one with these sort values."""
    if len(values) != len(terms):
        raise bad_token()
    choices = []
    equal: list[Fragment] = []
    for term, value in zip(terms, values, strict=True):
        if value is None and not term.nullable:
            raise bad_token()
        if value is not None:
            after = f"{term.expression} {'<' if term.descending else '>'} ?"
            if term.nullable:
                after = f"({after} OR {term.expression} IS NULL)"
            choices.append(sql.join([*equal, Fragment(after, (value,))], " AND "))
            equal.append(Fragment(f"{term.expression} = ?", (value,)))
        else:
            equal.append(Fragment(f"{term.expression} IS NULL"))
    return sql.join(choices, " OR ") if choices else sql.FALSE


def _beginning(first: _Term, values: list[object]) -> Fragment:
    """What `_beyond` says of the first term by itself: nothing new, but it lets the index begin there."""
    if values[0] is None or first.nullable:
        return Fragment("1")
    return Fragment(f"{first.expression} {'<=' if first.descending else '>='} ?", (values[0],))


def _order_key(values: list[object]) -> int:
    """Where in the default order the page before ended."""
    if not values or not isinstance(values[0], int):
        raise bad_token()
    return values[0]
