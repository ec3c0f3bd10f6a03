"""The judge of the region suite: what was acknowledged is there once, what ran is what the events say.

Pure. Whether the answers fit together in time is the business of chaos.checkers.linearizability.

* an acknowledged start made the run it named; an acknowledged signal or update is in exactly one event;
  one of unknown outcome in at most one; one that was refused, and one nobody asked for, in none;
* a run that a client was told has completed is completed, and every run has ended;
* an activity ends once; its code ran at most once for each attempt, and never for an attempt that the
  events do not know;
* each run's events are whole, and List shows every run once (chaos.live.checker);
* no client that must not see an error saw one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from chaos.live.checker import Judgement, judged, listing_problems, run_problems
from chaos.live.history import Final
from chaos.live.region_record import RegionRecord, Traces, Want


def judge_region(record: RegionRecord, runs: Sequence[Traces], final: Final) -> Judgement:
    """Look at everything; `final` has List and what could not be read."""
    problems = [*record.alarms, *record.errors]
    problems += _wishes(record, runs)
    for run in runs:
        problems += run_problems(run.state)
        if run.state.status == "RUNNING":
            problems.append(f"{_where(run)}: never ended")
    problems += _executions(record, runs)
    problems += listing_problems(final)
    doubts = list(final.unread)
    if not any(wish.acknowledged for wish in record.wishes):
        doubts.append("nothing was ever acknowledged, so nothing was tested")
    return judged(problems, doubts)


def _where(run: Traces) -> str:
    return f"run {run.state.run_id} of {run.state.workflow_id}"


def _wishes(record: RegionRecord, runs: Sequence[Traces]) -> Iterator[str]:
    there: Counter[tuple[str, str, str]] = Counter()
    by_id: defaultdict[str, list[Traces]] = defaultdict(list)
    for run in runs:
        workflow_id = run.state.workflow_id
        by_id[workflow_id].append(run)
        for what, names in (
            ("signaled", run.signals),
            ("accepted", run.accepted),
            ("completed", run.completed),
        ):
            for name, count in names.items():
                there[workflow_id, what, name] += count
    asked: set[tuple[str, str, str]] = set()
    started: set[str] = set()
    for wish in record.wishes:
        match wish.want:
            case Want.START:
                started.add(wish.workflow_id)
                ids = {run.state.run_id for run in by_id[wish.workflow_id]}
                if wish.acknowledged and wish.name not in ids:
                    yield f"the start of {wish.workflow_id} made run {wish.name}, which does not exist"
            case Want.FINISH:
                if wish.acknowledged and not any(
                    run.state.run_id == wish.name and run.state.status == "COMPLETED"
                    for run in by_id[wish.workflow_id]
                ):
                    yield f"run {wish.name} of {wish.workflow_id} was said to be completed, and is not"
            case Want.SIGNAL | Want.UPDATE:
                traces = ("signaled",) if wish.want is Want.SIGNAL else ("accepted", "completed")
                for what in traces:
                    asked.add((wish.workflow_id, what, wish.name))
                    count = there[wish.workflow_id, what, wish.name]
                    where = f"{wish.want} {wish.name} of {wish.workflow_id}"
                    if count > 1:
                        yield f"{where}: {what} is there {count} times"
                    elif count and wish.refused:
                        yield f"{where}: {what} is there, although it was refused"
                    elif wish.acknowledged and not count:
                        yield f"{where}: acknowledged, but {what} is not there"
    for workflow_id, what, name in sorted(there.keys() - asked):
        if there[workflow_id, what, name]:
            yield f"{workflow_id}: {what} of {name!r}, which nobody sent"
    for workflow_id in sorted(by_id.keys() - started):
        if by_id[workflow_id]:
            yield f"{workflow_id} exists, and nobody started it"


def _executions(record: RegionRecord, runs: Sequence[Traces]) -> Iterator[str]:
    known = {run.state.run_id: run for run in runs}
    for execution, count in Counter(record.executions).items():
        where = f"activity {execution.activity_id} of run {execution.run_id}"
        if count > 1:
            yield f"{where}: attempt {execution.attempt} was executed {count} times"
        run = known.get(execution.run_id)
        if run is None:
            yield f"{where} was executed, but there is no such run"
            continue
        attempts = run.attempts.get(execution.activity_id, 0)
        if attempts and execution.attempt > attempts:
            yield f"{where}: attempt {execution.attempt} was executed, the events say {attempts}"
    executed = {(one.run_id, one.activity_id, one.attempt) for one in record.executions}
    for run in runs:
        for activity_id, count in run.activities.items():
            where = f"{_where(run)}: activity {activity_id}"
            if count > 1:
                yield f"{where} completed {count} times"
            if (run.state.run_id, activity_id, run.attempts.get(activity_id, 0)) not in executed:
                yield f"{where} completed, but this attempt was never executed"
