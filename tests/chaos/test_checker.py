"""The judge itself: a sound history passes, and each kind of damage that it exists to find is found."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from chaos.checkers.verdict import Verdict
from chaos.live.checker import judge
from chaos.live.history import Event, Final, History, Kind, Outcome, RunState, load, save

WORKFLOW, RUN = "workflow-1", "run-1"
EVENTS = (
    ("WORKFLOW_EXECUTION_STARTED", "start-1", ""),
    ("WORKFLOW_TASK_SCHEDULED", "", ""),
    ("WORKFLOW_TASK_STARTED", "", ""),
    ("WORKFLOW_TASK_COMPLETED", "task-1", ""),
    ("ACTIVITY_TASK_SCHEDULED", "", "5"),
    ("TIMER_STARTED", "", "timer"),
    ("WORKFLOW_EXECUTION_SIGNALED", "signal-1", ""),
    ("WORKFLOW_EXECUTION_SIGNALED", "signal-2", ""),
    ("ACTIVITY_TASK_STARTED", "", "5"),
    ("ACTIVITY_TASK_COMPLETED", "activity-1", "5"),
    ("TIMER_FIRED", "", "timer"),
    ("WORKFLOW_EXECUTION_UPDATE_ACCEPTED", "update-1", ""),
    ("WORKFLOW_EXECUTION_UPDATE_COMPLETED", "update-1", ""),
    ("WORKFLOW_EXECUTION_TERMINATED", "terminate-1", ""),
)
OPERATIONS = (
    ("start-1", Kind.START), ("task-1", Kind.TASK), ("signal-1", Kind.SIGNAL), ("signal-2", Kind.SIGNAL),
    ("activity-1", Kind.ACTIVITY), ("update-1", Kind.UPDATE), ("terminate-1", Kind.TERMINATE),
)  # fmt: skip


def sound() -> tuple[History, Final]:
    """A history without a flaw: one run in which everything happens once."""
    history = History()
    for name, kind in OPERATIONS:
        history.end(history.invoke(name, kind, WORKFLOW, RUN), Outcome.OK)
    refused = history.invoke("signal-3", Kind.SIGNAL, WORKFLOW)
    history.end(refused, Outcome.FAIL, "NOT_FOUND")
    open_ = history.invoke("signal-4", Kind.SIGNAL, WORKFLOW)
    history.end(open_, Outcome.INDEFINITE, "UNAVAILABLE")
    rejected = history.invoke("update-2", Kind.UPDATE, WORKFLOW)
    rejected.rejected = True
    history.end(rejected, Outcome.OK)
    events = [Event(number, *each) for number, each in enumerate(EVENTS, 1)]
    run = RunState(WORKFLOW, RUN, "TERMINATED", events, list(range(100, 101 + len(events))))
    history.saw(WORKFLOW, RUN, 4, run.digests[4])
    return history, Final([run], [(WORKFLOW, RUN, "TERMINATED")])


def drop(name: str, type_: str) -> Callable[[History, Final], None]:
    """Take an event away, and close the gap, so that only its absence can be noticed."""

    def change(_: History, final: Final) -> None:
        run = final.runs[0]
        run.events = [each for each in run.events if (each.name, each.type) != (name, type_)]
        for number, event in enumerate(run.events, 1):
            event.id = number

    return change


def insert(at: int, *event: str) -> Callable[[History, Final], None]:
    """Put an event in, and number all anew."""

    def change(_: History, final: Final) -> None:
        run = final.runs[0]
        run.events.insert(at, Event(0, *event))
        run.digests.append(0)
        for number, each in enumerate(run.events, 1):
            each.id = number

    return change


def swap_signals(_: History, final: Final) -> None:
    first, second = final.runs[0].events[6:8]
    first.name, second.name = second.name, first.name


def change_what_was_shown(_: History, final: Final) -> None:
    final.runs[0].digests[4] = 7


def forget_the_tail(_: History, final: Final) -> None:
    final.runs[0].events = final.runs[0].events[:3]


def lose_the_run(_: History, final: Final) -> None:
    final.runs.clear()
    final.listed.clear()


def make_a_gap(_: History, final: Final) -> None:
    for event in final.runs[0].events[5:]:
        event.id += 1


def say_it_runs(_: History, final: Final) -> None:
    final.runs[0].status = "RUNNING"
    final.listed = [(WORKFLOW, RUN, "RUNNING")]


def not_listed(_: History, final: Final) -> None:
    final.listed.clear()


def listed_twice(_: History, final: Final) -> None:
    final.listed *= 2


def listed_otherwise(_: History, final: Final) -> None:
    final.listed = [(WORKFLOW, RUN, "RUNNING")]


def another_run(_: History, final: Final) -> None:
    final.runs[0].run_id = "run-2"
    final.listed = [(WORKFLOW, "run-2", "TERMINATED")]


def alarm(history: History, _: Final) -> None:
    history.alarms.append("answered with INTERNAL")


DAMAGE = {
    "acknowledged start is gone": lose_the_run,
    "its run is another": another_run,
    "acknowledged signal is gone": drop("signal-2", "WORKFLOW_EXECUTION_SIGNALED"),
    "acknowledged activity is gone": drop("activity-1", "ACTIVITY_TASK_COMPLETED"),
    "acknowledged update is half there": drop("update-1", "WORKFLOW_EXECUTION_UPDATE_COMPLETED"),
    "acknowledged task is gone": drop("task-1", "WORKFLOW_TASK_COMPLETED"),
    "acknowledged terminate is gone": drop("terminate-1", "WORKFLOW_EXECUTION_TERMINATED"),
    "signal is there twice": insert(9, "WORKFLOW_EXECUTION_SIGNALED", "signal-1"),
    "indefinite signal is there twice": lambda history, final: [
        insert(9, "WORKFLOW_EXECUTION_SIGNALED", "signal-4")(history, final) for _ in range(2)
    ],
    "refused signal is there": insert(9, "WORKFLOW_EXECUTION_SIGNALED", "signal-3"),
    "rejected update is there": insert(9, "WORKFLOW_EXECUTION_UPDATE_ACCEPTED", "update-2"),
    "signal of nobody": insert(9, "WORKFLOW_EXECUTION_SIGNALED", "signal-99"),
    "signals out of order": swap_signals,
    "timer fires twice": insert(11, "TIMER_FIRED", "", "timer"),
    "timer fires before it is started": insert(5, "TIMER_FIRED", "", "other"),
    "activity is scheduled twice": insert(9, "ACTIVITY_TASK_SCHEDULED", "", "5"),
    "gap in the numbers": make_a_gap,
    "closed twice": insert(9, "WORKFLOW_EXECUTION_COMPLETED"),
    "event after the close": insert(14, "WORKFLOW_TASK_SCHEDULED"),
    "closed, but said to run": say_it_runs,
    "not listed": not_listed,
    "listed twice": listed_twice,
    "listed with another status": listed_otherwise,
    "shown events changed": change_what_was_shown,
    "shown events are gone": forget_the_tail,
    "an answer no server should give": alarm,
}


def test_a_sound_history_passes() -> None:
    found = judge(*sound())
    assert found.verdict is Verdict.OK, found


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_found(damage: Callable[[History, Final], None]) -> None:
    history, final = sound()
    damage(history, final)
    found = judge(history, final)
    assert found.verdict is Verdict.BROKEN
    assert found.problems


def test_an_indefinite_operation_may_be_there_once() -> None:
    history, final = sound()
    insert(9, "WORKFLOW_EXECUTION_SIGNALED", "signal-4")(history, final)
    assert judge(history, final).verdict is Verdict.OK


def test_what_could_not_be_read_is_no_pass() -> None:
    history, final = sound()
    final.unread.append("workflow-9: DEADLINE_EXCEEDED")
    assert judge(history, final).verdict is Verdict.UNKNOWN


def test_nothing_acknowledged_is_no_pass() -> None:
    assert judge(History(), Final()).verdict is Verdict.UNKNOWN


def test_a_lost_tail_must_be_a_tail() -> None:
    """With a disk that forgot its newest writes the end may be missing, but nothing from the middle."""
    history, final = sound()
    run = final.runs[0]
    run.events, run.status, final.listed = run.events[:7], "RUNNING", [(WORKFLOW, RUN, "RUNNING")]
    assert judge(history, final).verdict is Verdict.BROKEN
    assert judge(history, final, tail_lost=True).verdict is Verdict.OK
    history, final = sound()
    drop("signal-1", "WORKFLOW_EXECUTION_SIGNALED")(history, final)
    found = judge(history, final, tail_lost=True)
    assert found.verdict is Verdict.BROKEN
    assert "not a prefix" in found.problems[0]


def test_an_earlier_moment_of_a_history() -> None:
    """What had not ended by then is indefinite, and what had not begun is not there."""
    history, _ = sound()
    start, task, *_ = history.operations
    cut = history.until(task.invoked)
    assert [operation.name for operation in cut.operations] == ["start-1", "task-1"]
    assert [operation.outcome for operation in cut.operations] == [Outcome.OK, Outcome.INDEFINITE]
    assert cut.sights == []
    assert task.outcome is Outcome.OK, "the history itself is left alone"
    assert start is cut.operations[0]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([Outcome.OK], Outcome.OK),
        ([Outcome.FAIL], Outcome.FAIL),
        ([Outcome.INDEFINITE, Outcome.OK], Outcome.OK),
        # The first attempt may have happened, and be the very reason why the second was refused.
        ([Outcome.INDEFINITE, Outcome.FAIL], Outcome.INDEFINITE),
        ([Outcome.INDEFINITE, Outcome.INDEFINITE], Outcome.INDEFINITE),
    ],
)
def test_attempts_of_one_operation(ends: list[Outcome], expected: Outcome) -> None:
    history = History()
    operation = history.invoke("signal-1", Kind.SIGNAL, WORKFLOW)
    for number, end in enumerate(ends):
        if number:
            history.again(operation)
        history.end(operation, end)
    assert operation.outcome is expected
    assert bool(operation.acknowledged) is (expected is Outcome.OK)


def test_a_record_can_be_judged_again(tmp_path) -> None:
    history, final = sound()
    save(history, final, tmp_path)
    assert load(tmp_path) == (history, final)
