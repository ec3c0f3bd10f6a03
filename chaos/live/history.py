"""What clients did, as they saw it: the recorded history that judges read.

An operation is invoked, and ends `ok` (the server said yes), `fail` (it said no: it did not happen) or
`indefinite` (nobody knows: the connection broke, the deadline passed). An operation that is tried again after
an indefinite end keeps its identity, which is what makes "exactly once" a question one can ask: one yes makes
it `ok`, and only when every attempt was refused is it a `fail`.

Positions are a counter, not a clock: they say which came first in the one process that records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

import msgspec


class Outcome(StrEnum):
    """How an operation ended."""

    OK = "ok"
    FAIL = "fail"
    INDEFINITE = "indefinite"


class Kind(StrEnum):
    """What a client or worker asked for."""

    START = "start"
    SIGNAL = "signal"
    SIGNAL_WITH_START = "signal_with_start"
    UPDATE = "update"
    TERMINATE = "terminate"
    TASK = "task"  # completion of a workflow task
    ACTIVITY = "activity"  # completion of an activity


@dataclass(slots=True)
class Operation:
    """One operation; its name is written into the event that it causes."""

    name: str
    kind: Kind
    workflow_id: str
    run_id: str  # empty while nobody knows it
    invoked: int  # position of the first attempt
    ended: int = 0  # position of the last end; 0 = still open
    acknowledged: int = 0  # position of the first yes; 0 = none
    outcome: Outcome = Outcome.INDEFINITE
    attempts: int = 1
    rejected: bool = False  # an update that the workflow refused: leaves no event
    optional: bool = (
        False  # a yes here may leave no event (a speculative task whose updates were all refused)
    )
    error: str = ""


@dataclass(slots=True)
class Sight:
    """Somebody was shown the first `length` events of a run; what was shown once must never change."""

    workflow_id: str
    run_id: str
    length: int
    digest: int
    at: int


@dataclass(slots=True)
class History:
    """Everything that was recorded in one run of a suite."""

    operations: list[Operation] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)  # answers no server should give, whatever happens to it
    position: int = 0

    def now(self) -> int:
        """The next position."""
        self.position += 1
        return self.position

    def invoke(self, name: str, kind: Kind, workflow_id: str, run_id: str = "") -> Operation:
        """A client is about to ask."""
        operation = Operation(name, kind, workflow_id, run_id, self.now())
        self.operations.append(operation)
        return operation

    def again(self, operation: Operation) -> None:
        """The same operation is tried once more."""
        operation.attempts += 1
        operation.ended = 0

    def end(self, operation: Operation, outcome: Outcome, error: str = "") -> None:
        """An attempt ended."""
        operation.ended = self.now()
        operation.error = error
        if outcome is Outcome.OK:
            operation.outcome = Outcome.OK
            operation.acknowledged = operation.acknowledged or operation.ended
        elif operation.outcome is not Outcome.OK:
            refused = outcome is Outcome.FAIL and operation.attempts == 1
            operation.outcome = Outcome.FAIL if refused else Outcome.INDEFINITE

    def saw(self, workflow_id: str, run_id: str, length: int, digest: int) -> None:
        """A reader or worker was shown events."""
        if length:
            self.sights.append(Sight(workflow_id, run_id, length, digest, self.now()))

    def until(self, position: int) -> History:
        """The history as it stood at a position: what had not ended then is indefinite."""
        operations = []
        for operation in self.operations:
            if operation.invoked > position:
                continue
            answered = operation.ended if operation.outcome is Outcome.FAIL else operation.acknowledged
            if answered and answered <= position:
                operations.append(operation)
            else:
                cut = Operation(**asdict(operation))
                cut.outcome, cut.ended, cut.acknowledged, cut.rejected = Outcome.INDEFINITE, 0, 0, False
                operations.append(cut)
        sights = [sight for sight in self.sights if sight.at <= position]
        return History(operations, sights, list(self.alarms), position)


@dataclass(slots=True)
class Event:
    """One event of a run, as far as judges look."""

    id: int
    type: str  # `WORKFLOW_EXECUTION_STARTED`, without the prefix that all have
    name: str = ""  # the operation that caused it, where an event says so
    subject: str = ""  # the id of the timer or activity it is about


@dataclass(slots=True)
class RunState:
    """What was read back of one run."""

    workflow_id: str
    run_id: str
    status: str  # as Describe says; `RUNNING`, `COMPLETED`, …
    events: list[Event]
    digests: list[int]  # digests[n] is that of the first n events


@dataclass(slots=True)
class Final:
    """What was read back of everything."""

    runs: list[RunState] = field(default_factory=list)
    listed: list[tuple[str, str, str]] = field(default_factory=list)  # (workflow id, run id, status) by List
    unread: list[str] = field(
        default_factory=list
    )  # what could not be read, and why: makes a verdict unknown


def save(history: History, final: Final, directory: Path) -> None:
    """Write both where `load` finds them, for a judge to look again."""
    encode = msgspec.json.Encoder().encode
    (directory / "history.json").write_bytes(encode(history))
    (directory / "final.json").write_bytes(encode(final))


def load(directory: Path) -> tuple[History, Final]:
    """Read what `save` wrote."""
    history = msgspec.json.decode((directory / "history.json").read_bytes(), type=History)
    return history, msgspec.json.decode((directory / "final.json").read_bytes(), type=Final)


def counts(operations: Iterable[Operation]) -> dict[str, dict[str, int]]:
    """How many operations of each kind ended how."""
    table: dict[str, dict[str, int]] = {}
    for operation in operations:
        row = table.setdefault(operation.kind.value, {outcome.value: 0 for outcome in Outcome})
        row[operation.outcome.value] += 1
    return dict(sorted(table.items()))
