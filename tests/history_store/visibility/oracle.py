"""An independent reading of the filter language: records as dictionaries, queries as nested tuples,
three-valued truth.

Nothing here is shared with the code under test: no parser, no SQL, no stored forms. A query is rendered to
text for the code under test and evaluated directly here.
"""

from __future__ import annotations

import datetime
import json
import random
from dataclasses import dataclass, field
from typing import Any

from temporalio.api.common.v1 import Payload, SearchAttributes

from history_store.visibility.record import ExecutionRecord

CUSTOM = {"K": 2, "K2": 2, "KL": 7, "T": 1, "I": 3, "D": 4, "B": 5, "DT": 6}
TYPE_NAMES = {1: "Text", 2: "Keyword", 3: "Int", 4: "Double", 5: "Bool", 6: "Datetime", 7: "KeywordList"}
TYPES: dict[str, int] = {
    **CUSTOM,
    "BuildIds": 7,
    "TemporalSchedulePaused": 5,
    "TemporalNamespaceDivision": 2,
    "WorkflowId": 2,
    "RunId": 2,
    "WorkflowType": 2,
    "TaskQueue": 2,
    "ParentWorkflowId": 2,
    "RootWorkflowId": 2,
    "StartTime": 6,
    "ExecutionTime": 6,
    "CloseTime": 6,
    "ExecutionStatus": 0,
    "HistoryLength": 3,
    "ExecutionDuration": 3,
}
STATUSES = {
    1: "Running",
    2: "Completed",
    3: "Failed",
    4: "Canceled",
    5: "Terminated",
    6: "ContinuedAsNew",
    7: "TimedOut",
}
BASE = 1_700_000_000_000_000_000
TIMES = [BASE, BASE + 1, BASE + 2, BASE + 999, BASE + 1_000_000_007, BASE + 60_000_000_000, 1, 4 * 10**18]
KEYWORDS = [
    "",
    "a",
    "ab",
    "abc",
    "b",
    "it's",
    'say "x"',
    "back\\slash",
    "ünï",
    "z%",
    "日本",
    "\U0001f600",
    "a\nb",
]
WORDS = ["red", "green", "blue", "Blue", "GREEN", "x1"]
INTS = [0, 1, -1, 5, 2**63 - 1, -(2**63), 1000]
DOUBLES = [0.0, -0.0, 1.5, -2.25, 1e300, 0.1, 3.0, -1e-9]


@dataclass
class Row:
    """A record, by attribute name; absent = missing."""

    namespace: str
    run_id: str
    values: dict[str, Any] = field(default_factory=dict)

    def record(self) -> ExecutionRecord:
        v = self.values
        fields = {
            name: payload(v[name], TYPES[name])
            for name in [*CUSTOM, "BuildIds", "TemporalSchedulePaused", "TemporalNamespaceDivision"]
            if name in v
        }
        return ExecutionRecord(
            namespace_id=self.namespace,
            workflow_id=v["WorkflowId"],
            run_id=self.run_id,
            workflow_type=v["WorkflowType"],
            status=v["ExecutionStatus"],
            start_time=v["StartTime"],
            execution_time=v["ExecutionTime"],
            close_time=v.get("CloseTime", 0),
            task_queue=v["TaskQueue"],
            history_length=v["HistoryLength"],
            history_size_bytes=v["HistoryLength"] * 100,
            state_transition_count=3,
            execution_duration=v.get("ExecutionDuration", 0),
            memo=b"memo " + self.run_id.encode(),
            search_attributes=SearchAttributes(indexed_fields=fields).SerializeToString() if fields else b"",
            parent_workflow_id=v.get("ParentWorkflowId", ""),
            parent_run_id="",
            root_workflow_id=v.get("RootWorkflowId", ""),
            root_run_id="",
        )


def rfc3339(ns: int, rng: random.Random | None = None) -> str:
    seconds, fraction = divmod(ns, 10**9)
    hours = rng.choice([0, 0, 2, -7]) if rng else 0
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC) + datetime.timedelta(hours=hours)
    zone = "Z" if hours == 0 else f"{'+' if hours > 0 else '-'}{abs(hours):02d}:00"
    return moment.strftime("%Y-%m-%dT%H:%M:%S") + (f".{fraction:09d}".rstrip("0") if fraction else "") + zone


def payload(value: Any, value_type: int) -> Payload:
    data = rfc3339(value) if value_type == 6 else value
    return Payload(
        metadata={"encoding": b"json/plain", "type": TYPE_NAMES[value_type].encode()},
        data=json.dumps(data).encode(),
    )


# ------------------------------------------------------------------------------------- queries as tuples
# ("and", q, …) ("or", q, …) ("not", q) ("cmp", name, op, value) ("between", name, low, high, negated)
# ("in", name, values, negated) ("starts", name, prefix, negated) ("null", name, negated)


def quote(text: str, rng: random.Random) -> str:
    if rng.random() < 0.5:
        return "'" + text.replace("\\", "\\\\").replace("'", rng.choice(["''", "\\'"])) + "'"
    return '"' + text.replace("\\", "\\\\").replace('"', rng.choice(['""', '\\"'])) + '"'


def literal(name: str, value: Any, rng: random.Random) -> str:
    kind = TYPES[name]
    if name == "ExecutionStatus":
        scream = {"ContinuedAsNew": "CONTINUED_AS_NEW", "TimedOut": "TIMED_OUT"}.get(
            STATUSES[value], STATUSES[value].upper()
        )
        return rng.choice([f"'{STATUSES[value]}'", str(value), f"'WORKFLOW_EXECUTION_STATUS_{scream}'"])
    if name == "ExecutionDuration":
        return rng.choice([str(value), f"'{value}ns'", f"'{value}'"])
    if kind == 6:
        return rng.choice([f"'{rfc3339(value, rng)}'", str(value)])
    if kind == 5:
        return rng.choice(["true", "TRUE"]) if value else rng.choice(["false", "False"])
    if kind in (3, 4):
        return repr(value)
    return quote(value, rng)


def render(q: tuple[Any, ...], rng: random.Random) -> str:
    def name(n: str) -> str:
        return f"`{n}`" if rng.random() < 0.2 else n

    def word(w: str) -> str:
        return w.lower() if rng.random() < 0.3 else w

    match q:
        case ("and" | "or") as op, *items:
            return "(" + f" {word(op.upper())} ".join(render(i, rng) for i in items) + ")"
        case "not", item:
            return f"{word('NOT')} {render(item, rng)}"
        case "cmp", n, op, v:
            return f"{name(n)} {'<>' if op == '!=' and rng.random() < 0.5 else op} {literal(n, v, rng)}"
        case "between", n, low, high, negated:
            ends = f"{literal(n, low, rng)} AND {literal(n, high, rng)}"
            return f"{name(n)} {'NOT ' if negated else ''}{word('BETWEEN')} {ends}"
        case "in", n, values, negated:
            listed = ", ".join(literal(n, v, rng) for v in values)
            return f"{name(n)} {'NOT ' if negated else ''}{word('IN')} ({listed})"
        case "starts", n, prefix, negated:
            return f"{name(n)} {'NOT ' if negated else ''}{word('STARTS_WITH')} {quote(prefix, rng)}"
        case "null", n, negated:
            return f"{name(n)} IS {'NOT ' if negated else ''}{word('NULL')}"
    raise AssertionError(q)


def mentions(q: tuple[Any, ...] | None, wanted: str) -> bool:
    if q is None:
        return False
    if q[0] in ("and", "or", "not"):
        return any(mentions(item, wanted) for item in q[1:])
    return bool(q[1] == wanted)


def value_of(row: Row, name: str) -> Any:
    value = row.values.get(name)
    if name in ("ParentWorkflowId", "RootWorkflowId", "TaskQueue") and value == "":
        return None
    if name == "KL" and value == []:
        return None
    return value


def folded(text: str) -> set[str]:
    return {w.lower() for w in text.split()}


def truth(q: tuple[Any, ...], row: Row) -> bool | None:
    match q:
        case "and", *items:
            found = [truth(i, row) for i in items]
            return False if False in found else None if None in found else True
        case "or", *items:
            found = [truth(i, row) for i in items]
            return True if True in found else None if None in found else False
        case "not", item:
            inner = truth(item, row)
            return None if inner is None else not inner
        case "null", n, negated:
            return (value_of(row, n) is None) != negated
    name, value = q[1], value_of(row, q[1])
    if TYPES[name] == 7:
        wanted = q[2] if q[0] == "in" else [q[2]]
        has = any(w in (value or []) for w in wanted)
        negated = q[3] if q[0] == "in" else q[2] == "!="
        if q[0] == "cmp":
            has = q[3] in (value or [])
        return has != negated
    if TYPES[name] == 1:
        return bool(folded(q[3]) & folded(value or "")) != (q[2] == "!=")
    if value is None:
        return None
    match q:
        case "cmp", _, op, v:
            return {
                "=": value == v,
                "!=": value != v,
                "<": value < v,
                "<=": value <= v,
                ">": value > v,
                ">=": value >= v,
            }[op]
        case "between", _, low, high, negated:
            return (low <= value <= high) != negated
        case "in", _, values, negated:
            return (value in values) != negated
        case "starts", _, prefix, negated:
            return value.startswith(prefix) != negated
    raise AssertionError(q)


def found(rows: list[Row], namespace: str, q: tuple[Any, ...] | None) -> list[Row]:
    hidden = not mentions(q, "TemporalNamespaceDivision")
    return [
        row
        for row in rows
        if row.namespace == namespace
        and not (hidden and "TemporalNamespaceDivision" in row.values)
        and (q is None or truth(q, row) is True)
    ]


def in_order(rows: list[Row], order: list[tuple[str, bool]]) -> list[Row]:
    """Sorted as asked (missing last), by run id at the end; default: open, last closed, last started."""
    rows = sorted(rows, key=lambda row: row.run_id)
    if not order:
        rows.sort(key=lambda row: -row.values["StartTime"])
        rows.sort(key=lambda row: -row.values.get("CloseTime", 2**70))
        return rows
    for name, descending in reversed(order):
        present = [row for row in rows if value_of(row, name) is not None]
        missing = [row for row in rows if value_of(row, name) is None]
        present.sort(key=lambda row: value_of(row, name), reverse=descending)
        if descending:  # a stable sort in reverse keeps equal ones in place
            pass
        rows = present + missing
    return rows
