"""The judge of the kill suite: from what clients saw and what was read back, was anything lost or doubled?

Pure: no server, no clock. The rules, each a promise of docs/durability.md:

* what was acknowledged is there, exactly once; what was refused is not there; what nobody knows is there at
  most once;
* a start that was acknowledged with a run id made that run;
* the events of a run are numbered 1, 2, 3, … and begin with the start; a closed run ends with its one close;
* of the signals to one workflow, one that was acknowledged before another was sent comes first;
* what a reader or a worker was shown is a prefix of what is there now;
* a timer fires once, an activity ends once, both only after they were begun;
* List shows every run that exists, once, with its status.

With `tail_lost` (a disk that forgot its newest writes) acknowledged operations may be missing, but only from
the end: nothing may be there that was asked for after something missing had been acknowledged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from chaos.checkers.verdict import Verdict
from chaos.live.history import Final, History, Kind, Operation, Outcome, RunState

PROBLEMS_MAX = 50

EFFECTS: dict[Kind, tuple[str, ...]] = {
    Kind.START: ("WORKFLOW_EXECUTION_STARTED",),
    Kind.SIGNAL: ("WORKFLOW_EXECUTION_SIGNALED",),
    Kind.SIGNAL_WITH_START: ("WORKFLOW_EXECUTION_STARTED", "WORKFLOW_EXECUTION_SIGNALED"),
    Kind.UPDATE: ("WORKFLOW_EXECUTION_UPDATE_ACCEPTED", "WORKFLOW_EXECUTION_UPDATE_COMPLETED"),
    Kind.TERMINATE: ("WORKFLOW_EXECUTION_TERMINATED",),
    Kind.TASK: ("WORKFLOW_TASK_COMPLETED",),
    Kind.ACTIVITY: ("ACTIVITY_TASK_COMPLETED",),
}
CLOSES = {
    "WORKFLOW_EXECUTION_COMPLETED": "COMPLETED",
    "WORKFLOW_EXECUTION_TERMINATED": "TERMINATED",
    "WORKFLOW_EXECUTION_FAILED": "FAILED",
    "WORKFLOW_EXECUTION_TIMED_OUT": "TIMED_OUT",
    "WORKFLOW_EXECUTION_CANCELED": "CANCELED",
    "WORKFLOW_EXECUTION_CONTINUED_AS_NEW": "CONTINUED_AS_NEW",
}
BEGINS = {"TIMER_STARTED": "timer", "ACTIVITY_TASK_SCHEDULED": "activity"}
ENDS = {
    "TIMER_FIRED": "timer",
    "TIMER_CANCELED": "timer",
    "ACTIVITY_TASK_COMPLETED": "activity",
    "ACTIVITY_TASK_FAILED": "activity",
    "ACTIVITY_TASK_TIMED_OUT": "activity",
    "ACTIVITY_TASK_CANCELED": "activity",
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons."""

    verdict: Verdict
    problems: list[str]  # promises that were broken, in sentences
    doubts: list[str]  # why nobody can say


def judge(history: History, final: Final, *, tail_lost: bool = False) -> Judgement:
    """Look at everything."""
    problems = list(history.alarms)
    problems += _operations(history, final, tail_lost=tail_lost)
    for run in final.runs:
        problems += run_problems(run)
    problems += _shape(history, final)
    problems += _signal_order(history, final)
    if not tail_lost:
        problems += _sights(history, final)
    problems += listing_problems(final)
    doubts = list(final.unread)
    if not any(operation.acknowledged for operation in history.operations):
        doubts.append("nothing was ever acknowledged, so nothing was tested")
    return judged(problems, doubts)


def judged(problems: list[str], doubts: list[str]) -> Judgement:
    """`broken` wins over `unknown`, `unknown` over `ok`."""
    if problems:
        more = len(problems) - PROBLEMS_MAX
        shown = problems[:PROBLEMS_MAX] + ([f"… and {more} more"] if more > 0 else [])
        return Judgement(Verdict.BROKEN, shown, doubts)
    return Judgement(Verdict.UNKNOWN if doubts else Verdict.OK, [], doubts)


def _where(operation: Operation) -> str:
    return (
        f"{operation.kind} {operation.name} of {operation.workflow_id} (invoked at {operation.invoked}, "
        f"{operation.outcome} at {operation.acknowledged or operation.ended}, {operation.attempts} attempts)"
    )


def _operations(history: History, final: Final, *, tail_lost: bool) -> Iterator[str]:
    """Each operation's events: exactly once, at most once, or not at all."""
    found = Counter((run.workflow_id, event.type, event.name) for run in final.runs for event in run.events)
    runs = {(run.workflow_id, run.run_id) for run in final.runs}
    missing: list[Operation] = []
    present: list[Operation] = []
    for operation in history.operations:
        for effect in EFFECTS[operation.kind]:
            count = found[operation.workflow_id, effect, operation.name]
            if count > 1:
                yield f"{_where(operation)}: {effect} is there {count} times"
            elif count and (operation.outcome is Outcome.FAIL or operation.rejected):
                refused = "was rejected by its workflow" if operation.rejected else f"said {operation.error}"
                yield f"{_where(operation)}: {effect} is there, although it {refused}"
            elif count:
                present.append(operation)
            elif operation.acknowledged and not operation.rejected and not operation.optional:
                missing.append(operation)
                if not tail_lost:
                    yield f"{_where(operation)}: acknowledged, but {effect} is not there"
        if (
            operation.kind in (Kind.START, Kind.SIGNAL_WITH_START)
            and operation.acknowledged
            and (operation.workflow_id, operation.run_id) not in runs
            and not tail_lost
        ):
            yield f"{_where(operation)}: its run {operation.run_id} does not exist"
    if tail_lost and missing and present:
        lost = min(missing, key=lambda operation: operation.acknowledged)
        kept = max(present, key=lambda operation: operation.invoked)
        if kept.invoked > lost.acknowledged:
            yield f"not a prefix: {_where(kept)} is there, but {_where(lost)} is not"


def run_problems(run: RunState) -> Iterator[str]:
    """One run's history by itself."""
    where = f"run {run.run_id} of {run.workflow_id}"
    for expected, event in enumerate(run.events, 1):
        if event.id != expected:
            yield f"{where}: event {event.id} is at place {expected}"
            break
    if not run.events or run.events[0].type != "WORKFLOW_EXECUTION_STARTED":
        yield f"{where}: does not begin with its start"
        return
    closes = [event for event in run.events if event.type in CLOSES]
    if len(closes) > 1:
        yield f"{where}: closed {len(closes)} times, at {[event.id for event in closes]}"
    elif closes:
        if closes[0] is not run.events[-1]:
            yield f"{where}: event {run.events[-1].id} {run.events[-1].type} comes after its close"
        if CLOSES[closes[0].type] != run.status:
            yield f"{where}: is said to be {run.status}, but its history ends with {closes[0].type}"
    elif run.status != "RUNNING":
        yield f"{where}: is said to be {run.status}, but has no close event"
    begun: set[tuple[str, str]] = set()
    ended: set[tuple[str, str]] = set()
    for event in run.events:
        if event.type in BEGINS:
            thing = (BEGINS[event.type], event.subject)
            if thing in begun:
                yield f"{where}: {thing[0]} {event.subject} was begun twice"
            begun.add(thing)
        elif event.type in ENDS:
            thing = (ENDS[event.type], event.subject)
            if thing not in begun:
                yield f"{where}: {thing[0]} {event.subject} ended before it was begun"
            if thing in ended:
                yield f"{where}: {thing[0]} {event.subject} ended twice"
            ended.add(thing)


def _shape(history: History, final: Final) -> Iterator[str]:
    """Nothing is there that nobody asked for."""
    known: dict[tuple[str, str], Operation] = {
        (operation.workflow_id, operation.name): operation for operation in history.operations
    }
    caused = {effect for effects in EFFECTS.values() for effect in effects}
    twice = Counter(run.run_id for run in final.runs)
    for run_id, count in twice.items():
        if count > 1:
            yield f"run {run_id} exists {count} times"
    for run in final.runs:
        for event in run.events:
            if event.type in caused and (run.workflow_id, event.name) not in known:
                where = f"run {run.run_id} of {run.workflow_id}"
                yield f"{where}: event {event.id} {event.type} of unknown {event.name!r}"


def _signal_order(history: History, final: Final) -> Iterator[str]:
    """Signals of one workflow that did not overlap are in the order in which they were sent."""
    known = {operation.name: operation for operation in history.operations}
    for run in final.runs:
        latest: Operation | None = None  # of those passed, the one that was invoked last
        for event in run.events:
            if event.type != "WORKFLOW_EXECUTION_SIGNALED" or event.name not in known:
                continue
            operation = known[event.name]
            if latest is not None and operation.acknowledged and operation.acknowledged < latest.invoked:
                yield f"{_where(operation)} comes after {_where(latest)} in run {run.run_id}"
            if latest is None or operation.invoked > latest.invoked:
                latest = operation


def _sights(history: History, final: Final) -> Iterator[str]:
    """What was shown is still so."""
    states = {run.run_id: run for run in final.runs}
    for sight in history.sights:
        where = f"run {sight.run_id} of {sight.workflow_id}: {sight.length} events were shown at {sight.at}"
        run = states.get(sight.run_id)
        if run is None:
            yield f"{where}, but it does not exist"
        elif sight.length > len(run.events):
            yield f"{where}, but it has {len(run.events)}"
        elif run.digests[sight.length] != sight.digest:
            yield f"{where}, and are other ones now"


def listing_problems(final: Final) -> Iterator[str]:
    """List agrees with the runs."""
    listed = Counter(final.listed)
    for (workflow_id, run_id, status), count in listed.items():
        if count > 1:
            yield f"List shows run {run_id} of {workflow_id} {count} times as {status}"
    exists = {(run.workflow_id, run.run_id, run.status) for run in final.runs}
    for workflow_id, run_id, status in sorted(exists - listed.keys()):
        yield f"run {run_id} of {workflow_id} is {status}, but List does not show it so"
    for workflow_id, run_id, status in sorted(listed.keys() - exists):
        yield f"List shows run {run_id} of {workflow_id} as {status}, but it is not"
