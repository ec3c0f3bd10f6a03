"""The judge of concurrent clients: what one server could have answered passes, and nothing else does."""

from __future__ import annotations

import random
import time

import msgspec
import pytest

from chaos.checkers.history import (
    AlreadyStarted,
    Answer,
    Call,
    Describe,
    Described,
    Failed,
    Operation,
    Reason,
    Record,
    Refused,
    Signal,
    Signaled,
    Start,
    Started,
    Status,
    Terminate,
    Terminated,
    Update,
    Updated,
)
from chaos.checkers.linearizability import check
from chaos.checkers.verdict import Verdict
from chaos.checkers.workflow import EARLIER_STARTS, State, WorkflowModel
from history_store.engine.state import EARLIER_STARTS_MAX
from tests.chaos.linearizable_server import Clients, FakeWorkflow, Fault, FaultyWorkflow

RUNNING, COMPLETED, TERMINATED = Status.RUNNING, Status.COMPLETED, Status.TERMINATED
CLOSED, NOT_FOUND, REJECTED = Refused(Reason.CLOSED), Refused(Reason.NOT_FOUND), Refused(Reason.REJECTED)

# (invoked, returned or None, call, answer or None)
Line = tuple[int, int | None, Call, Answer | None]
START: Line = (1, 2, Start("s"), Started("r"))


def operations(*lines: Line) -> list[Operation]:
    return [
        Operation(f"c{number}", "w", call, invoked, returned, answer)
        for number, (invoked, returned, call, answer) in enumerate(lines)
    ]


def verdict(*lines: Line) -> Verdict:
    return check(Record(operations(*lines))).verdict


def signal(name: str, at: int, until: int | None) -> Line:
    return (at, until, Signal(name), None if until is None else Signaled())


def add(name: str, at: int, until: int | None, value: int | None = None, n: int = 1) -> Line:
    return (at, until, Update(name, n), None if until is None else Updated(value))


def see(at: int, until: int, **shown: object) -> Line:
    return (at, until, Describe(), Described(shown.pop("status", RUNNING), **shown))  # type: ignore[arg-type]


def _runs(count: int) -> list[Line]:
    """One after the other, each terminated before the next."""
    lines: list[Line] = []
    for number in range(count):
        at = 10 * number
        lines.append((at + 1, at + 2, Start(f"s{number}"), Started(f"r{number}")))
        lines.append((at + 3, at + 4, Terminate(), Terminated()))
    return lines


OK: dict[str, list[Line]] = {
    "one after the other": [START, signal("a", 3, 4), see(5, 6, run_id="r", signals=1, value=0)],
    "a read during a signal sees it": [START, signal("a", 3, 9), see(4, 5, signals=1)],
    "a read during a signal does not see it": [START, signal("a", 3, 9), see(4, 5, signals=0)],
    "sums tell the order, not the times": [START, add("u", 3, 9, 2), add("v", 4, 8, 1)],
    "an unknown signal happened": [START, signal("a", 3, None), see(5, 6, signals=1)],
    "an unknown signal happened late": [
        START, signal("a", 3, None), see(5, 6, signals=0), see(7, 8, signals=1),
    ],
    "an unknown signal never happened": [START, signal("a", 3, None), see(50, 60, signals=0)],
    "one of two unknown signals": [
        START, signal("a", 3, None), signal("b", 3, None), see(5, 6, signals=1),
    ],
    "a signal and its repetition are one": [
        START, signal("a", 3, None), signal("a", 5, 6), see(7, 8, signals=1),
    ],
    "an update and its repetition have one sum": [
        START, add("u", 3, None), add("v", 5, 6, 2), add("u", 7, 8, 1),
    ],
    "a start and its repetition": [
        (1, None, Start("s"), None), (3, 4, Start("s"), Started("r")), (5, 6, Start("s"), Started("r")),
    ],
    "a start repeated when another run is there": [
        (1, None, Start("s"), None), see(3, 4, run_id="r"), (5, 6, Terminate(), Terminated()),
        (7, 8, Start("t"), Started("r2")), (9, 10, Start("s"), Started("r")), see(11, 12, run_id="r2"),
    ],
    "a start repeated whose run nobody was shown": [
        (1, None, Start("s"), None), (5, 6, Terminate(), Terminated()),
        (7, 8, Start("t"), Started("r2")), (9, 10, Start("s"), Started("r")), see(11, 12, run_id="r2"),
    ],
    "a start repeated after the longest time": [
        *_runs(EARLIER_STARTS + 1), (101, 102, Start("s0"), Started("r0")),
    ],
    "a start repeated after too long": [*_runs(EARLIER_STARTS + 2), (111, 112, Start("s0"), Started("r"))],
    "an update and its repetition in the next run": [
        START, add("u", 3, None), add("v", 4, 5, 3, n=2), (6, 7, Terminate(), Terminated()),
        add("u", 8, 20, 1), (9, 10, Start("t"), Started("r2")), add("w", 21, 22, 2),
    ],
    "a signal and its repetition in the next run": [
        START, signal("a", 3, None), see(4, 5, signals=1), signal("a", 6, 20),
        (7, 8, Terminate(), Terminated()), (9, 10, Start("t"), Started("r2")),
        see(21, 22, run_id="r2", signals=1),
    ],
    "a start of unknown outcome made a run": [
        (1, None, Start("s"), None), (3, 4, Start("t"), AlreadyStarted("r")), see(5, 6, run_id="r"),
    ],
    "two starts at once": [(1, 9, Start("s"), Started("r")), (2, 8, Start("t"), AlreadyStarted("r"))],
    "a new run after a terminated one": [
        START, signal("a", 3, 4), (5, 6, Terminate(), Terminated()), (7, 8, Signal("b"), CLOSED),
        see(9, 10, status=TERMINATED, signals=1), (11, 12, Start("t"), Started("r2")),
        see(13, 14, run_id="r2", signals=0),
        (15, 16, Describe("r"), Described(TERMINATED, "r", 1)),
        (17, 18, Describe("r3"), NOT_FOUND),
    ],
    "the id of a closed run may be protected": [
        START, (3, 4, Terminate(), Terminated()), (5, 6, Start("t", reuse=False), AlreadyStarted("r")),
    ],
    "a closing signal works later": [
        START, (3, 4, Signal("a", closes=True), Signaled()), signal("b", 5, 6), see(7, 8, signals=2),
        see(9, 10, status=COMPLETED, signals=2), (11, 12, Signal("c"), CLOSED),
    ],
    "nothing is there before the start": [
        (1, 2, Signal("a"), NOT_FOUND), (3, 4, Describe(), NOT_FOUND), (5, 6, Update("u"), NOT_FOUND),
        (7, 8, Terminate(), NOT_FOUND), (9, 10, Start("s"), Started("r")),
    ],
    "a rejected update adds nothing": [START, (3, 4, Update("u"), REJECTED), see(5, 6, value=0)],
    "what failed did not happen": [START, (3, 4, Signal("a"), Failed("busy")), see(5, 6, signals=0)],
    "buffered signals are not shown yet": [
        START, signal("a", 3, 4), signal("b", 5, 6), see(7, 8, signals=1, exact=False), see(9, 10, signals=2),
    ],
    "the sum was not waited for": [START, add("u", 3, 4), add("v", 5, 6, 2)],
    "the sum was not waited for, and a repetition tells who was before": [
        START, add("u", 3, None), add("v", 5, 6, n=2), add("u", 7, 8, 1),
    ],
    "the sum was not waited for, and its repetition tells it": [
        START, add("u", 3, None), add("v", 5, 6, n=2), add("v", 7, 8, 3, n=2),
    ],
    "an unknown termination": [
        START, (3, None, Terminate(), None), signal("a", 5, 6), (7, 8, Signal("b"), CLOSED),
    ],
}  # fmt: skip

BROKEN: dict[str, list[Line]] = {
    "stale read": [START, signal("a", 3, 4), signal("b", 5, 6), see(7, 8, signals=1)],
    "reads go backwards": [START, signal("a", 3, 20), see(4, 5, signals=1), see(6, 7, signals=0)],
    "a stale status": [START, (3, 4, Terminate(), Terminated()), see(5, 6)],
    "the events go backwards": [START, see(3, 4, events=7), see(5, 6, events=6)],
    "a lost signal": [START, signal("a", 3, 4), see(5, 6, signals=1), see(7, 8, signals=0)],
    "a lost update": [START, add("u", 3, 4, 1), add("v", 5, 6, 1)],
    "a lost start": [START, (3, 4, Describe(), NOT_FOUND)],
    "a signal done twice": [START, signal("a", 3, 4), see(5, 6, signals=2)],
    "a repeated signal done twice": [START, signal("a", 3, None), signal("a", 5, 6), see(7, 8, signals=2)],
    "a repeated update done twice": [START, add("u", 3, 4, 1), add("u", 5, 6, 2)],
    "a repeated start done twice": [
        START, (3, 4, Terminate(), Terminated()), (5, 6, Start("s"), Started("r2")),
    ],
    "a repeated start done twice, with another between": [
        *_runs(2), (21, 22, Start("s0"), Started("r2")),
    ],
    "a repeated start refused": [*_runs(2), (21, 22, Start("s0", reuse=False), AlreadyStarted("r1"))],
    "a repeated start answered with another run": [*_runs(2), (21, 22, Start("s0"), Started("r1"))],
    "two runs at once": [(1, 9, Start("s"), Started("r")), (2, 8, Start("t"), Started("r2"))],
    "reordered": [START, add("u", 3, 4, 2), add("v", 5, 6, 1)],
    "one sum for two": [START, add("u", 3, 9, 1), add("v", 4, 8, 1)],
    "read of the future": [START, see(3, 4, signals=1), signal("a", 5, 6)],
    "an effect before its cause": [START, see(3, 4, signals=1), signal("a", 5, None)],
    "a run nobody started": [see(1, 2, run_id="r"), (3, 4, Start("s"), Started("r"))],
    "another run than the current": [START, (3, 4, Start("t"), AlreadyStarted("r9"))],
    "a run id twice": [START, (3, 4, Terminate(), Terminated()), (5, 6, Start("t"), Started("r"))],
    "refused, and nevertheless there": [START, (3, 4, Signal("a"), CLOSED)],
    "refused without a reason": [START, (3, 4, Start("t", reuse=False), Started("r2"))],
    "failed, and nevertheless there": [START, (3, 4, Signal("a"), Failed("busy")), see(5, 6, signals=1)],
    "rejected, and nevertheless there": [START, (3, 4, Update("u"), REJECTED), see(5, 6, value=1)],
    "done after the end": [START, (3, 4, Terminate(), Terminated()), signal("a", 5, 6)],
    "closed for no reason": [START, see(3, 4, status=COMPLETED)],
    "open again": [
        START, (3, 4, Signal("a", closes=True), Signaled()), see(5, 6, status=COMPLETED), see(7, 8),
    ],
    "buffered signals are forgotten": [
        START, signal("a", 3, 4), see(5, 6, signals=1, exact=False), see(7, 8, signals=0, exact=False),
    ],
    "buffered signals were shown before": [
        START, signal("a", 3, 4), see(5, 6, signals=1), see(7, 8, signals=0, exact=False),
    ],
    "more than all unknown ones": [START, signal("a", 3, None), see(5, 6, signals=2)],
    "two names of one run": [
        (1, None, Start("s"), None), see(3, 4, run_id="r"), see(5, 6, run_id="r2"),
    ],
}  # fmt: skip


def test_the_model_remembers_as_many_starts_as_the_server() -> None:
    assert EARLIER_STARTS == EARLIER_STARTS_MAX


@pytest.mark.parametrize("name", OK)
def test_ok(name: str) -> None:
    assert verdict(*OK[name]) is Verdict.OK


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str) -> None:
    assert verdict(*BROKEN[name]) is Verdict.BROKEN


def test_the_order_in_the_file_does_not_matter(seed: int, rng: random.Random) -> None:
    for lines, expected in [(OK, Verdict.OK), (BROKEN, Verdict.BROKEN)]:
        for name, each in lines.items():
            assert verdict(*rng.sample(each, len(each))) is expected, name


def test_each_workflow_id_is_judged_alone() -> None:
    sound = operations(*OK["one after the other"])
    stale = [
        Operation(each.client, "other", each.call, each.invoked, each.returned, each.answer)
        for each in operations(*BROKEN["stale read"])
    ]
    found = check(Record(sound + stale))
    assert found.verdict is Verdict.BROKEN
    assert [problem.workflow_id for problem in found.problems] == ["other"]
    assert found.workflow_ids == 2


def test_a_history_that_lacks_something_is_never_a_pass_and_never_broken() -> None:
    for lines in (OK["one after the other"], BROKEN["stale read"]):
        found = check(Record(operations(*lines), ["the recording has no end"]))
        assert found.verdict is Verdict.UNKNOWN


def test_nothing_tested_is_no_pass() -> None:
    assert check(Record([])).verdict is Verdict.UNKNOWN
    assert verdict((1, None, Start("s"), None)) is Verdict.UNKNOWN
    assert verdict((1, 2, Start("s"), Failed("busy"))) is Verdict.UNKNOWN


def test_the_tries_of_one_call_are_one_thought() -> None:
    """Four tries each of three calls, none answered: not sixteen times as many orders."""
    tries: list[Line] = []
    for at in range(10, 50, 10):
        tries += [add("u", at, None), (at + 1, None, Signal("a"), None), (at + 2, None, Signal("b"), None)]
    found = check(
        Record(
            operations(
                *(START, *tries, add("v", 60, 160, 2, n=2), (100, 101, Terminate(), Terminated())),
                *((110, 111, Start("t"), Started("r2")), (120, 121, Terminate(), Terminated())),
                *((130, 131, Start("s2"), Started("r3")), add("w", 170, 171, 3)),
            )
        ),
        steps_max=3_000,
    )
    assert found.verdict is Verdict.OK, found.doubts


def test_of_many_unknown_outcomes_the_newest_is_thought_of_first() -> None:
    """What takes effect mostly does so soon; the oldest first took the search millions of steps here."""
    long_ago: list[Line] = []
    for number in range(5):
        long_ago.append(add(f"u{number}", 10 + number, None, n=number + 1))
        long_ago.append((20 + number, None, Signal(f"c{number}", closes=True), None))
        long_ago.append((30 + number, None, Start(f"s{number}"), None))
    found = check(
        Record(
            operations(
                *long_ago,
                *(START, signal("a", 40, 41), add("v", 42, 43, 1)),
                *((50, None, Terminate(), None), (51, 52, Signal("b"), CLOSED)),
                *(see(53, 54, run_id="r", status=TERMINATED, signals=1, value=1), signal("d", 60, None)),
            )
        ),
        steps_max=500,
    )
    assert found.verdict is Verdict.OK, found.doubts


def test_a_run_that_is_seen_open_later_is_not_replaced_in_thought() -> None:
    """In another run a sum could be reached in very many ways; that the first goes on forbids them all."""
    unknown: list[Line] = [add(f"u{number}", 10 + number, None, n=1 << number) for number in range(8)]
    unknown += [(20, None, Terminate(), None), (21, None, Start("t"), None)]
    lines = [START, *unknown, add("v", 30, 31, 85), see(40, 41, run_id="r", value=85)]
    found = check(Record(operations(*lines)), steps_max=200)
    assert found.verdict is Verdict.OK, found.doubts


def test_a_spent_budget_is_no_pass() -> None:
    lines: list[Line] = [START]
    lines += [add(f"u{n}", 3, 100, None, n=1 << n) for n in range(12)]
    lines.append(see(101, 102, value=-2))
    found = check(Record(operations(*lines)), steps_max=1000)
    assert found.verdict is Verdict.UNKNOWN
    assert "no verdict within 1000 steps" in found.doubts[0]


PICTURE = """\
w: no order of these operations explains their answers
  c0  start s -> started run_id=r  [1, 2]
  c1  signal a -> signaled  [3, 4]
  then:
  c2  |-----------|                    signal b -> signaled  [5, 11]
* c3        |-----------------|        describe -> described status=running signals=0  [10, 13]
  c4                    |----------->  signal c -> ?  [12, ]
the marked one fits none of the states that were possible:
  run r running, signals 2, value 0\
"""


def test_the_counterexample_names_the_operation_and_shows_the_window() -> None:
    lines = [START, signal("a", 3, 4), signal("b", 5, 11), see(10, 13, signals=0), signal("c", 12, None)]
    (problem,) = check(Record(operations(*lines))).problems
    assert problem.culprit.call == Describe()
    assert str(problem) == PICTURE


def test_the_counterexample_says_how_far_any_order_comes_not_where_the_search_turned_back() -> None:
    lines = [START, (3, 4, Terminate(), Terminated()), (5, 6, Signal("a"), CLOSED), see(7, 8, run_id="r")]
    (problem,) = check(Record(operations(*lines))).problems
    assert problem.culprit.call == Describe()
    assert problem.states == ["run r terminated, signals 0, value 0"]


# ------------------------------------------------------------------------------------ random histories

WORKFLOWS = 3


def linearizable_by_trying_everything(history: list[Operation]) -> bool:
    """The definition, without any cut but the memory of what was tried."""
    told = [each for each in history if not isinstance(each.answer, Failed)]
    model = WorkflowModel(told)
    seen: set[tuple[frozenset[int], State]] = set()

    def search(left: frozenset[int], state: State) -> bool:
        if all(told[index].answer is None for index in left):
            return True
        if (left, state) in seen:
            return False
        seen.add((left, state))
        first = min(told[index].returned or 1 << 60 for index in left)
        return any(
            search(left - {index}, new)
            for index in left
            if told[index].invoked <= first
            for new in model.step(state, told[index])
        )

    return search(frozenset(range(len(told))), model.initial)


def damaged(rng: random.Random, history: list[Operation]) -> list[Operation]:
    """A history that may be impossible: one answer is another's, or one operation is gone."""
    changed = list(history)
    place = rng.randrange(len(changed))
    if rng.random() < 0.3:
        del changed[place]
        return changed
    same = [each for each in changed if type(each.call) is type(changed[place].call) and each.answer]
    if same and changed[place].answer is not None:
        changed[place] = msgspec.structs.replace(changed[place], answer=rng.choice(same).answer)
    return changed


def test_the_cuts_lose_no_order_and_invent_none(seed: int, rng: random.Random) -> None:
    """The search agrees with the plain definition, on sound histories and on damaged ones."""
    for _ in range(40):
        workflow = FakeWorkflow("w")
        clients = Clients(
            rng, {"w": workflow}, clients=rng.choice((2, 3)), operations=6, indefinite=rng.choice((0.0, 0.4)),
            looks_back=rng.random() < 0.5, ends=rng.choice((0.02, 0.3)),
        )  # fmt: skip
        history = clients.run()
        for each in (history, damaged(rng, history), damaged(rng, damaged(rng, history))):
            if all(operation.answer is None for operation in each):
                continue
            expected = Verdict.OK if linearizable_by_trying_everything(each) else Verdict.BROKEN
            found = check(Record(each))
            assert found.verdict is expected, "\n".join([*map(repr, each), *map(str, found.problems)])


def test_what_a_real_server_answers_is_ok(seed: int, rng: random.Random) -> None:
    for indefinite in (0.0, 0.02, 0.05):
        workflows: dict[str, FakeWorkflow] = {f"w{n}": FakeWorkflow(f"w{n}") for n in range(WORKFLOWS)}
        history = Clients(
            rng, workflows, clients=rng.choice((2, 5, 8)), operations=60, indefinite=indefinite
        ).run()
        found = check(Record(history))
        assert found.verdict is Verdict.OK, "\n".join([*map(str, found.problems), *found.doubts])


def test_storms_of_unknown_outcomes_are_never_called_broken(seed: int, rng: random.Random) -> None:
    workflows: dict[str, FakeWorkflow] = {"w": FakeWorkflow("w")}
    history = Clients(rng, workflows, clients=5, operations=40, indefinite=0.3).run()
    assert check(Record(history), steps_max=20_000).verdict is not Verdict.BROKEN


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE])
def test_a_fault_is_caught(seed: int, rng: random.Random, fault: Fault) -> None:
    """Not every fault can be seen from outside, but most can, and none makes a verdict unknown."""
    caught = done = 0
    for _ in range(6):
        workflow = FaultyWorkflow("w", fault, after=rng.randrange(10, 60))
        history = Clients(rng, {"w": workflow}, clients=rng.choice((2, 4)), operations=60).run()
        found = check(Record(history))
        assert found.verdict is not Verdict.UNKNOWN
        assert workflow.done or found.verdict is Verdict.OK
        done += workflow.done
        caught += found.verdict is Verdict.BROKEN
    assert caught * 2 >= done, f"{caught} of {done} were caught"


def test_fifty_thousand_operations_take_seconds() -> None:
    rng = random.Random(1)
    workflows: dict[str, FakeWorkflow] = {f"w{n}": FakeWorkflow(f"w{n}") for n in range(50)}
    history = Clients(rng, workflows, clients=10, operations=5000, indefinite=0.01).run()
    assert len(history) == 50_000
    began = time.process_time()
    found = check(Record(history))
    took = time.process_time() - began
    assert found.verdict is Verdict.OK
    assert found.steps < 1_000_000
    assert took < 120, f"{took:.1f} s; a machine of this decade needs about two"
