"""The filters of the older list calls (open, closed, archived), as queries of the one language.

ListOpenWorkflowExecutions and ListClosedWorkflowExecutions have fields instead of a text; here the fields
become a tree, so that no value is ever quoted into a text. Open executions are filtered by start time,
closed ones by close time, as in Temporal.
"""

from __future__ import annotations

from history_store.visibility.syntax import And, Between, Comparison, Condition, IsNull, Literal, Name, Query


def open_executions(
    earliest: int = 0, latest: int = 0, workflow_id: str = "", workflow_type: str = ""
) -> Query:
    """Running executions that started within [earliest, latest] (nanoseconds; 0 = no bound)."""
    return _query([IsNull(Name("CloseTime"))], "StartTime", earliest, latest, workflow_id, workflow_type)


def closed_executions(
    earliest: int = 0, latest: int = 0, workflow_id: str = "", workflow_type: str = "", status: int = 0
) -> Query:
    """Closed executions that ended within [earliest, latest] (as above), with this status if not 0."""
    conditions: list[Condition] = [IsNull(Name("CloseTime"), negated=True)]
    if status:
        conditions.append(Comparison(Name("ExecutionStatus"), "=", Literal(status)))
    return _query(conditions, "CloseTime", earliest, latest, workflow_id, workflow_type)


def _query(
    conditions: list[Condition], time: str, earliest: int, latest: int, workflow_id: str, workflow_type: str
) -> Query:
    if earliest and latest:
        conditions.append(Between(Name(time), Literal(earliest), Literal(latest)))
    elif earliest:
        conditions.append(Comparison(Name(time), ">=", Literal(earliest)))
    elif latest:
        conditions.append(Comparison(Name(time), "<=", Literal(latest)))
    if workflow_id:
        conditions.append(Comparison(Name("WorkflowId"), "=", Literal(workflow_id)))
    if workflow_type:
        conditions.append(Comparison(Name("WorkflowType"), "=", Literal(workflow_type)))
    return Query(And(tuple(conditions)))
