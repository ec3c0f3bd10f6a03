"""From what a query says to what it means: names become fields, literals become stored values, NOT
disappears.

Theory of operation. A condition on a missing value is neither true nor false, as in SQL, and NOT of unknown
is unknown. Pushing every NOT down to the conditions (De Morgan's laws hold for three values) leaves a tree
of AND and OR over conditions that each have an opposite: not "= x" is "!= x", and both are not true of a
missing value. A row is found exactly if that tree is true, so the conditions may be tested with two-valued
means (an index, EXISTS). KeywordList and Text are the exception, as in Temporal's own SQL stores: "!= x"
there means "does not contain x", which is true of an execution without the attribute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from temporalio.api.enums.v1 import WorkflowExecutionStatus

from history_store.engine.errors import ServiceError, invalid
from history_store.visibility import attributes as sa
from history_store.visibility import syntax
from history_store.visibility.literals import (
    clamp,
    parse_datetime,
    parse_duration,
    sortable_double,
    storable_text,
    words,
)

COLUMNS: Mapping[str, str] = {
    "WorkflowId": "workflow_id",
    "RunId": "run_id",
    "WorkflowType": "workflow_type",
    "StartTime": "start_time",
    "ExecutionTime": "execution_time",
    "CloseTime": "close_time",
    "ExecutionStatus": "status",
    "TaskQueue": "task_queue",
    "HistoryLength": "history_length",
    "ExecutionDuration": "execution_duration",
    "StateTransitionCount": "state_transition_count",
    "HistorySizeBytes": "history_size_bytes",
    "ParentWorkflowId": "parent_workflow_id",
    "ParentRunId": "parent_run_id",
    "RootWorkflowId": "root_workflow_id",
    "RootRunId": "root_run_id",
}


def _status_names() -> tuple[dict[int, str], dict[str, int]]:
    shown: dict[int, str] = {}
    numbers: dict[str, int] = {}
    prefix = "WORKFLOW_EXECUTION_STATUS_"
    for full, number in WorkflowExecutionStatus.items():
        short = full.removeprefix(prefix)
        camel = "".join(part.capitalize() for part in short.split("_"))
        shown[number] = camel
        numbers.update({full: number, short: number, camel: number})
    return shown, numbers


STATUS_NAMES, STATUS_NUMBERS = _status_names()

Stored = int | float | str

_OPPOSITES = {
    "=": "!=",
    "<": ">=",
    "<=": ">",
    "between": "not between",
    "in": "not in",
    "starts": "not starts",
    "null": "not null",
    "contains": "not contains",
}
OPPOSITES: Mapping[str, str] = {**_OPPOSITES, **{value: key for key, value in _OPPOSITES.items()}}

_ORDERED_TYPES = frozenset({sa.KEYWORD, sa.INT, sa.DOUBLE, sa.DATETIME})


@dataclass(frozen=True, slots=True)
class Field:
    """What a name stands for."""

    alias: str  # as the query wrote it
    name: str
    type: int
    column: str  # of visibility_executions; "" for what is in the attributes

    @property
    def is_division(self) -> bool:
        """Whether it is TemporalNamespaceDivision, which is part of the scope."""
        return self.name == sa.NAMESPACE_DIVISION


@dataclass(frozen=True, slots=True)
class Leaf:
    """A condition in stored values. Operators: the keys of OPPOSITES."""

    field: Field
    operator: str
    values: tuple[Stored, ...] = ()


@dataclass(frozen=True, slots=True)
class All:
    """Every one of them is true."""

    items: tuple[Meaning, ...]


@dataclass(frozen=True, slots=True)
class Any:
    """One of them is true."""

    items: tuple[Meaning, ...]


Meaning = Leaf | All | Any


@dataclass(frozen=True, slots=True)
class Resolved:
    """A query, understood."""

    where: Meaning | None
    group_by: Field | None
    order_by: tuple[tuple[Field, bool], ...]  # (field, descending)
    names_division: bool


def resolve(query: syntax.Query, attributes: Mapping[str, int]) -> Resolved:
    """What the query means in a namespace with these custom attributes; ServiceError if nothing."""
    resolver = _Resolver(attributes)
    where = None if query.where is None else resolver.meaning(query.where, negated=False)
    group_by = resolver.group(query.group_by)
    order_by = tuple((resolver.sortable(term.name), term.descending) for term in query.order_by)
    return Resolved(where, group_by, order_by, resolver.names_division)


class _Resolver:
    def __init__(self, attributes: Mapping[str, int]) -> None:
        self._attributes = attributes
        self.names_division = False

    def field(self, name: syntax.Name) -> Field:
        found = self._lookup(name.text)
        if found is None:
            raise _unknown(name)
        self.names_division = self.names_division or found.is_division
        return found

    def _lookup(self, alias: str) -> Field | None:
        def known(name: str) -> Field | None:
            if (value_type := sa.SYSTEM.get(name)) is not None:
                return Field(alias, name, value_type, COLUMNS[name])
            if (value_type := sa.PREDEFINED.get(name)) is not None:
                return Field(alias, name, value_type, "")
            return None

        if (found := known(alias)) is not None:
            return found
        if (value_type := self._attributes.get(alias)) is not None:
            return Field(alias, alias, value_type, "")
        if alias.removeprefix("Temporal") == "ScheduleId":
            return known("WorkflowId")
        return known(alias.removeprefix("Temporal") if alias.startswith("Temporal") else "Temporal" + alias)

    def group(self, names: tuple[syntax.Name, ...]) -> Field | None:
        if not names:
            return None
        if len(names) > 1:
            raise syntax.unsupported("'GROUP BY' clause supports only a single field")
        field = self.field(names[0])
        if field.type != sa.KEYWORD:
            raise syntax.unsupported(
                f"'GROUP BY' clause is not supported for search attribute {field.alias}"
                f" of type {sa.TYPE_NAMES[field.type]}"
            )
        return field

    def sortable(self, name: syntax.Name) -> Field:
        field = self.field(name)
        if field.type in (sa.TEXT, sa.KEYWORD_LIST) or field.is_division:
            raise syntax.unsupported(
                f"unable to sort by search attribute {field.alias} of type {sa.TYPE_NAMES[field.type]}"
            )
        return field

    def meaning(self, expression: syntax.Expression, negated: bool) -> Meaning:
        match expression:
            case syntax.Not(item):
                return self.meaning(item, not negated)
            case syntax.And(items) | syntax.Or(items):
                parts = tuple(self.meaning(item, negated) for item in items)
                return All(parts) if isinstance(expression, syntax.And) != negated else Any(parts)
            case syntax.IsNull(name, is_not):
                return self._leaf(self.field(name), "null", (), negated != is_not)
            case syntax.In(name, literals, is_not):
                field = self.field(name)
                if field.type == sa.TEXT:
                    raise _operator(field, "NOT IN" if is_not else "IN", name)
                values = tuple(dict.fromkeys(_value(field, literal) for literal in literals))
                operator = "contains" if field.type == sa.KEYWORD_LIST else "in"
                return self._leaf(field, operator, values, negated != is_not)
            case syntax.Between(name, low, high, is_not):
                field = self.field(name)
                if field.type not in _ORDERED_TYPES:
                    raise syntax.invalid_expression(
                        f"cannot do range condition on search attribute '{field.alias}'"
                        f" of type {sa.TYPE_NAMES[field.type]} at position {name.position}"
                    )
                ends = (_value(field, low), _value(field, high))
                return self._leaf(field, "between", ends, negated != is_not)
            case syntax.Comparison():
                return self._comparison(expression, negated)

    def _comparison(self, comparison: syntax.Comparison, negated: bool) -> Meaning:
        name, operator, literal = comparison.name, comparison.operator, comparison.literal
        field = self.field(name)
        if field.type in (sa.KEYWORD_LIST, sa.TEXT):
            if operator not in ("=", "!="):
                raise _operator(field, "NOT " + operator if comparison.negated else operator, name)
            values = _words(field, literal) if field.type == sa.TEXT else (_value(field, literal),)
            return self._leaf(field, "contains", values, negated != (operator == "!="))
        if operator == "STARTS_WITH":
            if field.type != sa.KEYWORD or field.name == "ExecutionStatus":
                raise _operator(field, "NOT STARTS_WITH" if comparison.negated else operator, name)
            return self._leaf(field, "starts", (_value(field, literal),), negated != comparison.negated)
        return self._leaf(field, operator, (_value(field, literal),), negated)

    @staticmethod
    def _leaf(field: Field, operator: str, values: tuple[Stored, ...], negated: bool) -> Leaf:
        return Leaf(field, OPPOSITES[operator] if negated else operator, values)


def _unknown(name: syntax.Name) -> ServiceError:
    return invalid(f"invalid query: invalid search attribute: {name.text[:100]}")


def _operator(field: Field, operator: str, name: syntax.Name) -> ServiceError:
    return syntax.unsupported(
        f"operator '{operator}' not supported for {sa.TYPE_NAMES[field.type]} type"
        f" search attribute '{field.alias}' (position {name.position})"
    )


def _words(field: Field, literal: syntax.Literal) -> tuple[Stored, ...]:
    if not isinstance(literal.value, str):
        raise _wrong_type(field, literal)
    found = words(storable_text(literal.value))
    if not found:
        raise syntax.invalid_expression(
            f"unexpected value for Text type search attribute {field.alias}: {literal}"
            f" at position {literal.position} (no tokens found)"
        )
    return tuple(found)


def _wrong_type(field: Field, literal: syntax.Literal) -> ServiceError:
    return syntax.invalid_expression(
        f"invalid value type for search attribute {field.alias} of type {sa.TYPE_NAMES[field.type]}:"
        f" {literal} at position {literal.position}"
    )


def _value(field: Field, literal: syntax.Literal) -> Stored:
    """The literal as the projection stores values of this field."""
    value = literal.value
    match field.name:
        case "ExecutionStatus":
            return _status(literal)
        case "ExecutionDuration":
            return _duration(literal)
        case _:
            pass
    match field.type:
        case sa.BOOL if isinstance(value, bool):
            return int(value)
        case sa.INT if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        case sa.DOUBLE if isinstance(value, (int, float)) and not isinstance(value, bool):
            return sortable_double(float(value))
        case sa.DATETIME if isinstance(value, int) and not isinstance(value, bool):
            return clamp(value)
        case sa.DATETIME if isinstance(value, str):
            try:
                return parse_datetime(value)
            except ValueError:
                raise syntax.invalid_expression(
                    f"unable to parse datetime '{value[:100]}' for search attribute {field.alias}"
                    f" at position {literal.position}"
                ) from None
        case sa.KEYWORD | sa.KEYWORD_LIST if isinstance(value, str):
            return storable_text(value)
        case _:
            raise _wrong_type(field, literal)


def _status(literal: syntax.Literal) -> int:
    value = literal.value
    if isinstance(value, str) and value in STATUS_NUMBERS:
        return STATUS_NUMBERS[value]
    if isinstance(value, int) and not isinstance(value, bool) and value in STATUS_NAMES:
        return value
    shown = f"'{value[:100]}'" if isinstance(value, str) else str(literal)
    raise syntax.invalid_expression(f"invalid ExecutionStatus value {shown} at position {literal.position}")


def _duration(literal: syntax.Literal) -> int:
    value = literal.value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError:
            pass
    shown = value[:100] if isinstance(value, str) else str(literal)
    raise syntax.invalid_expression(
        f"invalid duration value for search attribute ExecutionDuration: {shown}"
        f" at position {literal.position}"
    )
