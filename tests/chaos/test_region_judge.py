"""The judge and the measure of the region suite: what is sound passes, and each kind of damage is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.checkers.verdict import Verdict
from chaos.live.history import Event, Final, RunState
from chaos.live.region_judge import judge_region
from chaos.live.region_measure import Felt, measure
from chaos.live.region_record import Execution, RegionRecord, Traces, Want
from chaos.live.region_workload import Mark

Damage = Callable[[RegionRecord, Traces, Final], None]
WORKFLOW, RUN = "w", "run-1"


def sound() -> tuple[RegionRecord, Traces, Final]:
    """One run in which everything happens once; its activity needed two attempts."""
    record = RegionRecord()
    for want, name in ((Want.START, RUN), (Want.SIGNAL, "s"), (Want.UPDATE, "u"), (Want.FINISH, RUN)):
        record.wish(want, WORKFLOW, name).acknowledged = True
    record.wish(Want.SIGNAL, WORKFLOW, "unknown")
    record.wish(Want.SIGNAL, WORKFLOW, "refused").refused = True
    record.executions = [Execution(RUN, "1", 1), Execution(RUN, "1", 2)]
    events = [
        Event(1, "WORKFLOW_EXECUTION_STARTED"),
        Event(2, "ACTIVITY_TASK_SCHEDULED", subject="2"),
        Event(3, "ACTIVITY_TASK_COMPLETED", subject="2"),
        Event(4, "WORKFLOW_EXECUTION_COMPLETED"),
    ]
    run = Traces(RunState(WORKFLOW, RUN, "COMPLETED", events, []))
    run.signals["s"] = run.accepted["u"] = run.completed["u"] = run.activities["1"] = 1
    run.attempts["1"] = 2
    return record, run, Final([run.state], [(WORKFLOW, RUN, "COMPLETED")])


def test_a_sound_record_is_ok() -> None:
    record, run, final = sound()
    assert judge_region(record, [run], final).problems == []
    run.signals["unknown"] = 1  # it may have happened
    assert judge_region(record, [run], final).verdict is Verdict.OK


def test_what_could_not_be_read_is_no_pass() -> None:
    record, run, final = sound()
    final.unread.append("List: UNAVAILABLE")
    assert judge_region(record, [run], final).verdict is Verdict.UNKNOWN
    assert judge_region(RegionRecord(), [], Final()).verdict is Verdict.UNKNOWN


def lost_signal(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.signals["s"] = 0


def doubled_signal(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.signals["s"] = 2


def refused_signal(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.signals["refused"] = 1


def strange_signal(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.signals["x"] = 1


def half_an_update(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.completed["u"] = 0


def another_run(record: RegionRecord, _run: Traces, _final: Final) -> None:
    record.wishes[0].name = "run-2"


def nobody_started_it(record: RegionRecord, _run: Traces, _final: Final) -> None:
    del record.wishes[0]


def not_completed(_record: RegionRecord, run: Traces, final: Final) -> None:
    run.state.status = "TERMINATED"
    run.state.events[-1].type = "WORKFLOW_EXECUTION_TERMINATED"
    final.listed = [(WORKFLOW, RUN, "TERMINATED")]


def never_ended(record: RegionRecord, run: Traces, final: Final) -> None:
    record.wishes[3].acknowledged = False
    run.state.status = "RUNNING"
    run.state.events.pop()
    final.listed = [(WORKFLOW, RUN, "RUNNING")]


def executed_twice(record: RegionRecord, _run: Traces, _final: Final) -> None:
    record.executions.append(Execution(RUN, "1", 2))


def executed_unknown_attempt(record: RegionRecord, _run: Traces, _final: Final) -> None:
    record.executions.append(Execution(RUN, "1", 3))


def never_executed(record: RegionRecord, _run: Traces, _final: Final) -> None:
    record.executions.pop()


def activity_ended_twice(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.activities["1"] = 2


def not_listed(_record: RegionRecord, _run: Traces, final: Final) -> None:
    final.listed.clear()


def event_missing(_record: RegionRecord, run: Traces, _final: Final) -> None:
    run.state.events[-1].id = 5


def visible_error(record: RegionRecord, _run: Traces, _final: Final) -> None:
    record.errors.append("a client saw UNAVAILABLE")


@pytest.mark.parametrize(
    "damage",
    [
        lost_signal, doubled_signal, refused_signal, strange_signal, half_an_update, another_run,
        nobody_started_it, not_completed, never_ended, executed_twice, executed_unknown_attempt,
        never_executed, activity_ended_twice, not_listed, event_missing, visible_error,
    ],
)  # fmt: skip
def test_damage_is_found(damage: Damage) -> None:
    record, run, final = sound()
    damage(record, run, final)
    found = judge_region(record, [run], final)
    assert found.verdict is Verdict.BROKEN
    assert len(found.problems) <= 2, found.problems


@pytest.mark.parametrize("silent_s", [0.3, 1.0, 3.0])
def test_a_silence_is_measured(silent_s: float) -> None:
    """What was held up comes all at once, and hides nothing; what the victim's clients do does not count."""
    began, pace = 10.0, 40
    marks = []
    for number in range(round(20 * pace)):
        due = number / pace
        at = began + silent_s if began <= due < began + silent_s else due
        marks += [Mark(at, "a/1", at - due, True), Mark(due, "a/2", 0.0, True)]
    marks.sort(key=lambda mark: mark.at)
    felt = Felt("kill", "a/2", 3, True, began, healed=14.0, ended=16.0)
    measure(felt, marks, pace)
    assert felt.before == pytest.approx(pace)
    assert felt.recovery_ms == pytest.approx(1e3 * silent_s, abs=60)
    assert felt.latency_ms_max == pytest.approx(1e3 * silent_s, abs=30)


def test_what_never_comes_back_has_no_figure() -> None:
    marks = [Mark(number / 40, "a/1", 0.0, True) for number in range(400)]
    felt = Felt("kill", "a/2", 3, True, 10.0, healed=14.0, ended=16.0)
    measure(felt, marks, 40.0)
    assert felt.recovery_ms is None
