"""The filter of ListWorkers and CountWorkers: the visibility language over the fields of a heartbeat.

Text fields know =, !=, STARTS_WITH and IN; times (RFC 3339, or nanoseconds since the epoch) know comparisons
and BETWEEN; both know IS NULL. Names are case-sensitive. We differ from Temporal where it would answer with
no workers and no error: a field that does not exist, or an operator that does not fit it, is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import assert_never

from temporalio.api.enums.v1 import WorkerStatus
from temporalio.api.worker.v1 import WorkerHeartbeat

from history_store.engine.errors import ServiceError, invalid
from history_store.visibility.literals import parse_datetime
from history_store.visibility.syntax import (
    And,
    Between,
    Comparison,
    Expression,
    In,
    IsNull,
    Literal,
    Not,
    Or,
    parse,
)

Predicate = Callable[[WorkerHeartbeat], bool]


def _status(heartbeat: WorkerHeartbeat) -> str:
    """The status as Temporal prints it: Running, ShuttingDown."""
    try:
        name = WorkerStatus.Name(heartbeat.status)
    except ValueError:  # of a newer SDK
        return str(int(heartbeat.status))
    return name.removeprefix("WORKER_STATUS_").title().replace("_", "")


_TEXTS: dict[str, Callable[[WorkerHeartbeat], str]] = {
    "WorkerInstanceKey": lambda heartbeat: heartbeat.worker_instance_key,
    "WorkerIdentity": lambda heartbeat: heartbeat.worker_identity,
    "HostName": lambda heartbeat: heartbeat.host_info.host_name,
    "TaskQueue": lambda heartbeat: heartbeat.task_queue,
    "DeploymentName": lambda heartbeat: heartbeat.deployment_version.deployment_name,
    "BuildId": lambda heartbeat: heartbeat.deployment_version.build_id,
    "SdkName": lambda heartbeat: heartbeat.sdk_name,
    "SdkVersion": lambda heartbeat: heartbeat.sdk_version,
    "WorkerStatus": _status,
    "Status": _status,
    "status": _status,
}
# None: the heartbeat does not say.
_TIMES: dict[str, Callable[[WorkerHeartbeat], int | None]] = {
    "StartTime": lambda heartbeat: (
        heartbeat.start_time.ToNanoseconds() if heartbeat.HasField("start_time") else None
    ),
    "HeartbeatTime": lambda heartbeat: (
        heartbeat.heartbeat_time.ToNanoseconds() if heartbeat.HasField("heartbeat_time") else None
    ),
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def compile_query(text: str) -> Predicate:
    """A predicate over heartbeats; ServiceError (INVALID_ARGUMENT) names what is wrong with the query."""
    if not text.strip():
        return lambda _: True
    query = parse(text)
    if query.group_by or query.order_by:
        raise _unsupported("'GROUP BY' and 'ORDER BY' clauses")
    if query.where is None:
        raise _unsupported("a query without a condition")
    return _compile(query.where)


def _compile(expression: Expression) -> Predicate:
    if isinstance(expression, And):
        every = [_compile(item) for item in expression.items]
        return lambda heartbeat: all(predicate(heartbeat) for predicate in every)
    if isinstance(expression, Or):
        some = [_compile(item) for item in expression.items]
        return lambda heartbeat: any(predicate(heartbeat) for predicate in some)
    if isinstance(expression, Not):
        inner = _compile(expression.item)
        return lambda heartbeat: not inner(heartbeat)
    name = expression.name.text
    if name in _TEXTS:
        return _compile_text(name, expression)
    if name in _TIMES:
        return _compile_time(name, expression)
    raise invalid(f"unknown or unsupported worker heartbeat search field: {name}")


def _compile_text(name: str, expression: Comparison | Between | In | IsNull) -> Predicate:
    field = _TEXTS[name]
    negated = expression.negated
    if isinstance(expression, IsNull):
        return lambda heartbeat: (field(heartbeat) == "") != negated
    if isinstance(expression, In):
        values = frozenset(_text(name, literal) for literal in expression.literals)
        return lambda heartbeat: (field(heartbeat) in values) != negated
    if isinstance(expression, Comparison):
        value = _text(name, expression.literal)
        match expression.operator:
            case "=":
                return lambda heartbeat: field(heartbeat) == value
            case "!=":
                return lambda heartbeat: field(heartbeat) != value
            case "STARTS_WITH":
                return lambda heartbeat: field(heartbeat).startswith(value) != negated
            case _:
                raise _unfit(expression.operator, name)
    if isinstance(expression, Between):
        raise _unfit("BETWEEN", name)
    assert_never(expression)


def _compile_time(name: str, expression: Comparison | Between | In | IsNull) -> Predicate:
    field = _TIMES[name]
    negated = expression.negated
    if isinstance(expression, IsNull):
        return lambda heartbeat: (field(heartbeat) is None) != negated
    if isinstance(expression, Between):
        low, high = _time(name, expression.low), _time(name, expression.high)
        return lambda heartbeat: (value := field(heartbeat)) is not None and (low <= value <= high) != negated
    if isinstance(expression, Comparison):
        compare = _COMPARE.get(expression.operator)
        if compare is None:
            raise _unfit(expression.operator, name)
        bound = _time(name, expression.literal)
        # A time that is not given compares as the epoch, as in Temporal.
        return lambda heartbeat: compare(field(heartbeat) or 0, bound)
    if isinstance(expression, In):
        raise _unfit("IN", name)
    assert_never(expression)


def _text(name: str, literal: Literal) -> str:
    value = literal.value
    if not isinstance(value, str):
        raise invalid(f"invalid value for {name}: value {value} is not a string value")
    if not value:
        raise invalid(f"{name} cannot be empty")
    return value


def _time(name: str, literal: Literal) -> int:
    value = literal.value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return parse_datetime(value)
        except ValueError:
            raise invalid(f"invalid value for {name}: '{value[:100]}' is not an RFC 3339 time") from None
    raise invalid(f"invalid value for {name}: value {value} is not a time")


def _unfit(operation: str, name: str) -> ServiceError:
    return invalid(f"invalid expression: operation {operation} is not supported for {name} column")


def _unsupported(what: str) -> ServiceError:
    return invalid(f"operation is not supported: {what}")
