"""From the meaning of a query to parameterized SQL on the projection, and which index is to be walked.

Theory of operation. Every condition becomes a test of one row (`condition`). A condition that stands for
the whole query (the query itself, or a part of its outermost AND) and that an index answers is also a
*driver*: the index to walk instead of looking at every row. SQLite's own planner has no statistics here, so
`search` asks each driver how many entries it has (up to a bound) and takes the smallest; the statement then
names the index.

Nothing a client wrote gets into the text of a statement: only our own column names and small integers do.
"""

# ruff: noqa: S608 - statements are built of our own names and numbers; values are parameters

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from history_store.visibility.projection import IRREGULAR
from history_store.visibility.resolve import All, Any, Field, Leaf, Meaning, Stored
from history_store.visibility.spans import OPEN, OPEN_STATUSES, Span, of_leaf

_MANY = 50  # longer lists travel as one JSON parameter

Parameters = tuple[object, ...]
Slots = tuple[tuple[int, int], ...]  # hash slots as ranges, both ends included, ascending, apart


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of SQL and the values of its question marks."""

    text: str
    parameters: Parameters = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows a query is about at all: the scopes of its namespace, and the numbers of its attributes."""

    divisions: Mapping[int, str]  # scope -> TemporalNamespaceDivision ("" = none)
    names: Mapping[tuple[str, int], int]  # (name, type) -> number

    def test(self, column: str) -> str:
        """The condition that a row is in one of the scopes."""
        numbers = sorted(self.divisions)
        if len(numbers) == 1:
            return f"{column} = {numbers[0]}"
        return f"{column} IN ({', '.join(map(str, numbers))})"


@dataclass(frozen=True, slots=True)
class Driver:
    """An index, and the range of it that holds every row of the result."""

    leaf: Leaf
    index: str  # name of an index of visibility_executions; "" = walk visibility_values; "ids" = see `test`
    test: Fragment  # on e (an index), on v (values), or `e.id IN (…)` (ids)
    probe: Fragment  # SELECT of the range's entries, one row each
    ordered: bool  # its entries come in the default order
    exact: bool  # the test says all that the leaf says


FALSE, TRUE = Fragment("0"), Fragment("1")


def condition(meaning: Meaning, scope: Scope) -> Fragment:
    """A test of row `e` that holds exactly if the meaning is true."""
    if isinstance(meaning, Leaf):
        return _leaf(meaning, scope)
    parts = [condition(item, scope) for item in meaning.items]
    return join(parts, " AND " if isinstance(meaning, All) else " OR ")


def join(parts: Sequence[Fragment], operator: str) -> Fragment:
    """The parts, combined in pairs: a long chain would be deeper than SQLite allows.

    What is decided already is left out, for SQLite would do the same and then not see any more that a test
    that it has dropped allows a partial index ("no query solution").
    """
    decides, says_nothing = (FALSE, TRUE) if operator == " AND " else (TRUE, FALSE)
    if decides in parts:
        return decides
    return _in_pairs([part for part in parts if part != says_nothing] or [says_nothing], operator)


def _in_pairs(parts: Sequence[Fragment], operator: str) -> Fragment:
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _in_pairs(parts[:middle], operator), _in_pairs(parts[middle:], operator)
    return Fragment(f"({left.text}{operator}{right.text})", left.parameters + right.parameters)


def expression(field: Field, scope: Scope, row: str = "e") -> str:
    """The SQL expression of a field's value (of single-valued fields)."""
    if field.column:
        return f"{row}.{field.column}"
    number = scope.names.get((field.name, field.type))
    if number is None:
        return "NULL"  # nobody ever had it
    return f"json_extract({row}.attributes, '$.\"{number}\"')"


def _leaf(leaf: Leaf, scope: Scope) -> Fragment:
    field = leaf.field
    if field.is_division:
        numbers = [str(number) for number, name in scope.divisions.items() if _division(leaf, name)]
        return Fragment(f"+e.scope IN ({', '.join(numbers)})") if numbers else FALSE
    if leaf.operator in ("contains", "not contains"):
        number = scope.names.get((field.name, field.type))
        if number is None:
            return FALSE if leaf.operator == "contains" else TRUE
        values = one_of("v.value", leaf.values)
        negation = "NOT " if leaf.operator == "not contains" else ""
        return Fragment(
            f"{negation}EXISTS (SELECT 1 FROM visibility_values v WHERE v.scope = e.scope"
            f" AND v.name = {number} AND {values.text} AND v.order_key = e.order_key AND v.id = e.id)",
            values.parameters,
        )
    return test(expression(field, scope), leaf)


def test(column: str, leaf: Leaf) -> Fragment:
    """A single-valued leaf's test of an SQL expression."""
    if column == "NULL":
        return TRUE if leaf.operator == "null" else FALSE
    match leaf.operator:
        case "null":
            return Fragment(f"{column} IS NULL")
        case "not null":
            return Fragment(f"{column} IS NOT NULL")
        case "in":
            return one_of(column, leaf.values)
        case "not in":
            listed = one_of(column, leaf.values)
            return Fragment(f"NOT ({listed.text})", listed.parameters)
        case "between":
            return Fragment(f"({column} >= ? AND {column} <= ?)", leaf.values)
        case "not between":
            return Fragment(f"({column} < ? OR {column} > ?)", leaf.values)
        case "starts" | "not starts":
            return _starts(column, str(leaf.values[0]), leaf.operator == "not starts")
        case "!=":
            return Fragment(f"{column} <> ?", leaf.values)
        case operator:
            return Fragment(f"{column} {operator} ?", leaf.values)


def one_of(column: str, values: Sequence[Stored]) -> Fragment:
    """The column is one of the values."""
    if len(values) == 1:
        return Fragment(f"{column} = ?", (values[0],))
    if len(values) <= _MANY or any(isinstance(value, float) for value in values):
        return Fragment(f"{column} IN ({', '.join('?' * len(values))})", tuple(values))
    return Fragment(f"{column} IN (SELECT value FROM json_each(?))", (msgspec.json.encode(values).decode(),))


def within(row: str, span: Span) -> Fragment:
    """The row's order key is in the span. One bound at either end: SQLite would pick any of several."""
    return Fragment(f"({row}.order_key >= ? AND {row}.order_key <= ?)", (span.low, span.high))


def of_slots(column: str, slots: Slots) -> Fragment:
    """The column is a slot of one of the ranges: a search by halves, however many there are."""
    if not slots:
        return FALSE
    if len(slots) == 1:
        return Fragment(f"({column} >= {slots[0][0]} AND {column} <= {slots[0][1]})")
    middle = len(slots) // 2
    left, right = of_slots(column, slots[:middle]), of_slots(column, slots[middle:])
    return Fragment(f"CASE WHEN {column} < {slots[middle][0]} THEN {left.text} ELSE {right.text} END")


def _starts(column: str, prefix: str, negated: bool) -> Fragment:
    """A prefix is a range of the code point order that SQLite compares by."""
    if not prefix:
        return FALSE if negated else Fragment(f"{column} IS NOT NULL")
    end = _after_prefix(prefix)
    if end is None:
        return Fragment(f"{column} {'<' if negated else '>='} ?", (prefix,))
    if negated:
        return Fragment(f"({column} < ? OR {column} >= ?)", (prefix, end))
    return Fragment(f"({column} >= ? AND {column} < ?)", (prefix, end))


def _after_prefix(prefix: str) -> str | None:
    """The smallest string above all that start with the prefix; None if there is none."""
    while prefix:
        code = ord(prefix[-1]) + 1
        if code <= 0x10FFFF:
            return prefix[:-1] + chr(0xE000 if 0xD800 <= code <= 0xDFFF else code)
        prefix = prefix[:-1]
    return None


def _division(leaf: Leaf, division: str) -> bool:
    """Whether the leaf is true of a row of this division."""
    if not division:
        return leaf.operator == "null"
    values = [str(value) for value in leaf.values]
    match leaf.operator:
        case "null" | "not null":
            return leaf.operator == "not null"
        case "=" | "in":
            return division in values
        case "!=" | "not in":
            return division not in values
        case "starts" | "not starts":
            return division.startswith(values[0]) == (leaf.operator == "starts")
        case "between" | "not between":
            return (values[0] <= division <= values[1]) == (leaf.operator == "between")
        case "<":
            return division < values[0]
        case "<=":
            return division <= values[0]
        case ">":
            return division > values[0]
        case _:
            return division >= values[0]


def conjuncts(meaning: Meaning | None) -> tuple[Meaning, ...]:
    """What must all be true."""
    match meaning:
        case None:
            return ()
        case All(items):
            return tuple(part for item in items for part in conjuncts(item))
        case Leaf() | Any():
            return (meaning,)


def narrowed(scope: Scope, parts: Sequence[Meaning]) -> Scope:
    """The scope without divisions that the query excludes as a whole."""
    leaves = [part for part in parts if isinstance(part, Leaf) and part.field.is_division]
    if not leaves:
        return scope
    left = {
        number: division
        for number, division in scope.divisions.items()
        if all(_division(leaf, division) for leaf in leaves)
    }
    return Scope(left, scope.names)


_INDEXES = {
    "RunId": "visibility_by_run",
    "WorkflowId": "visibility_by_workflow",
    "ParentWorkflowId": "visibility_by_parent",
    "WorkflowType": "visibility_by_type",
    "ExecutionStatus": "visibility_by_status",
    "StartTime": "visibility_by_start",
}
_COMPLETED = 2
IRREGULAR_ROW = Fragment(IRREGULAR.replace("order_key", "e.order_key").replace("start_time", "e.start_time"))
RARE_STATUS = "e.status NOT IN (1, 2)"  # word for word what visibility_by_status is limited to
_INDEXABLE = frozenset({"=", "in", "<", "<=", ">", ">=", "between", "starts", "contains"})


def drivers(parts: Sequence[Meaning], scope: Scope) -> list[Driver]:
    """The indexes that could be walked, best guess first."""
    found = [
        driver for part in parts if isinstance(part, Leaf) and (driver := _driver(part, scope)) is not None
    ]
    preference = ["RunId", "WorkflowId", "ParentWorkflowId", "", "RootWorkflowId", "WorkflowType"]
    preference += ["ExecutionStatus", "CloseTime", "StartTime"]

    def rank(driver: Driver) -> tuple[bool, int]:
        name = driver.leaf.field.name if driver.leaf.field.column else ""
        return not driver.ordered and name != "RunId", preference.index(name)

    found.sort(key=rank)
    return found


def _driver(leaf: Leaf, scope: Scope) -> Driver | None:
    field = leaf.field
    if field.is_division:
        return None
    single = len(scope.divisions) == 1
    if field.name == "CloseTime" and field.column:
        return _close_driver(leaf, scope, single)
    if leaf.operator not in _INDEXABLE:
        return None
    if field.name == "RootWorkflowId" and field.column:
        return _root_driver(leaf, scope)
    if field.column:
        index = _INDEXES.get(field.name)
        if index is None or (leaf.operator == "starts" and not leaf.values[0]):
            return None
        if field.name == "ExecutionStatus":
            return _status_driver(leaf, scope, single)
        tested = test(f"e.{field.column}", leaf)
        return _index_driver(leaf, scope, index, tested, ordered=False)
    return _value_driver(leaf, scope, single)


def _index_driver(leaf: Leaf, scope: Scope, index: str, tested: Fragment, ordered: bool) -> Driver:
    source = f"visibility_executions e INDEXED BY {index}"
    probe = f"SELECT 1 FROM {source} WHERE {scope.test('e.scope')} AND {tested.text}"
    return Driver(leaf, index, tested, Fragment(probe, tested.parameters), ordered, exact=True)


def _status_driver(leaf: Leaf, scope: Scope, single: bool) -> Driver | None:
    """Open executions are at the head of the order; rare statuses have an index; Completed has neither."""
    if leaf.operator not in ("=", "in"):
        return None
    tested = test("e.status", leaf)
    if (found := of_leaf(leaf)) is not None and found[0] == OPEN:
        tested = join([within("e", OPEN), tested], " AND ")
        return _index_driver(leaf, scope, "visibility_by_order", tested, ordered=single)
    if any(value in OPEN_STATUSES or int(value) <= _COMPLETED for value in leaf.values):
        return None
    tested = Fragment(f"({RARE_STATUS} AND {tested.text})", tested.parameters)
    return _index_driver(
        leaf, scope, "visibility_by_status", tested, ordered=single and len(leaf.values) == 1
    )


def _close_driver(leaf: Leaf, scope: Scope, single: bool) -> Driver | None:
    found = of_leaf(leaf)
    if found is None:
        return None
    span, exact = found
    driver = _index_driver(leaf, scope, "visibility_by_order", within("e", span), ordered=single)
    return driver if exact else replace(driver, exact=False)


def _root_driver(leaf: Leaf, scope: Scope) -> Driver | None:
    """A root's own row has no entry in the index of roots: it is found by its workflow id."""
    if leaf.operator not in ("=", "in"):
        return None
    by_root, by_id = test("r.root_workflow_id", leaf), test("r.workflow_id", leaf)
    where = f"WHERE {scope.test('r.scope')} AND"
    ids = Fragment(
        f"SELECT r.id FROM visibility_executions r INDEXED BY visibility_by_root {where} {by_root.text}"
        " AND r.root_workflow_id <> r.workflow_id"
        " UNION SELECT r.id FROM visibility_executions r INDEXED BY visibility_by_workflow"
        f" {where} {by_id.text}",
        by_root.parameters + by_id.parameters,
    )
    return Driver(
        leaf, "ids", Fragment(f"e.id IN ({ids.text})", ids.parameters), ids, ordered=False, exact=False
    )


def _value_driver(leaf: Leaf, scope: Scope, single: bool) -> Driver | None:
    field = leaf.field
    number = scope.names.get((field.name, field.type))
    if number is None:
        return None  # the condition is false of every row: there is nothing to save
    if leaf.operator == "starts" and not leaf.values[0]:
        return None
    tested = one_of("v.value", leaf.values) if leaf.operator == "contains" else test("v.value", leaf)
    tested = Fragment(f"{scope.test('v.scope')} AND v.name = {number} AND {tested.text}", tested.parameters)
    ids = Fragment(f"SELECT v.id FROM visibility_values v WHERE {tested.text}", tested.parameters)
    if single and len(leaf.values) == 1 and leaf.operator in ("=", "contains"):
        return Driver(leaf, "", tested, ids, ordered=True, exact=True)
    inside = Fragment(f"e.id IN ({ids.text})", ids.parameters)
    return Driver(leaf, "ids", inside, ids, ordered=False, exact=True)
