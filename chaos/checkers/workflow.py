"""The model of one workflow id: what a server that does one thing at a time would answer.

A state is the tuple of the id's runs; the last one is the current. A step says which states an operation may
lead to: none (that answer is impossible here), one, or several.

Two things are decided by the server and seen late. A run made by a start of unknown outcome has no known run
id until somebody is shown it (`run_id` is empty until then). And a run that got a closing signal completes at
a moment of its own: it stays `closing` until an answer shows that it is closed.

Ids that occur in one operation only cannot be repeated, so states do not remember them: that keeps states few
and small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import IntFlag
from typing import Any, NamedTuple

from chaos.checkers.history import (
    AlreadyStarted,
    Answer,
    Call,
    Describe,
    Described,
    Operation,
    Reason,
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


class Run(NamedTuple):
    """One run of the workflow."""

    run_id: str = ""  # empty = nobody was shown it yet
    request_id: str = ""  # of the start that made it; empty where no other operation has it
    status: Status = Status.RUNNING
    closing: bool = False
    signals: int = 0
    value: int = 0
    shown: int = 0  # so many signals somebody saw
    events: int = 0  # so many events somebody saw
    known: frozenset[str] = frozenset()  # signals that may be repeated
    results: frozenset[tuple[str, int]] = frozenset()  # updates that may be repeated, and their sums


class Aspect(IntFlag):
    """A part of a state that an operation can change."""

    NOTHING = 0
    SIGNALS = 1
    VALUE = 2
    LIFE = 4  # which run is current, and whether it is open
    EVERYTHING = 7


State = tuple[Run, ...]
Step = Callable[["WorkflowModel", State, Any, Answer | None], list[State]]

_RUNNING = Status.RUNNING
# The starts of so many runs before the current one are known again: repeated, they are answered as before.
EARLIER_STARTS = 8


class WorkflowModel:
    """The steps of one workflow id, for one history of it."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        ids: Counter[str] = Counter()
        self._buffers = False  # whether some reader may have been shown fewer signals than there were
        for operation in operations:
            ids[_id_of(operation.call)] += 1
            if type(operation.answer) is Described and not operation.answer.exact:
                self._buffers = True
        # Whether anybody may look at a run that is not the current one any more.
        self._looks_back = any(not isinstance(each.call, Start) and each.call.run_id for each in operations)
        self._repeated = {each for each, times in ids.items() if times > 1 and each}
        # Whether a sum may be told again that some update made long before.
        self._sums_again = any(
            isinstance(each.call, Update) and each.call.update_id in self._repeated for each in operations
        )

    @property
    def initial(self) -> State:
        """Nothing was ever started."""
        return ()

    def step(self, state: State, operation: Operation) -> list[State]:
        """The states after the operation took effect (or was refused) at `state`, as its answer says.

        An unknown outcome allows every effect, but not that there is none: that is no step.
        """
        call, answer = operation.call, operation.answer
        nexts = _STEPS[type(call)](self, state, call, answer)
        return nexts if answer is not None else [each for each in nexts if each != state]

    def symmetry(self, operation: Operation) -> Hashable:
        """Operations with equal keys could stand in for each other anywhere; None = only for itself."""
        call, answer = operation.call, operation.answer
        if _id_of(call) in self._repeated:
            return call if answer is None else None  # tries of one call
        match call:
            case Signal() if answer is None or type(answer) is Signaled:
                return ("signal", call.run_id, call.closes)
            case Update() if answer is None or (type(answer) is Updated and answer.value is None):
                return ("update", call.run_id, call.add)
            case Terminate() if answer is None or type(answer) is Terminated:
                return ("terminate", call.run_id)
            case Start() if answer is None:
                return ("start", call.reuse)
            case _:
                return None

    def changes(self, operation: Operation) -> Aspect:
        """What the call can change."""
        match operation.call:
            case Signal(closes=False):
                return Aspect.SIGNALS
            case Signal():
                return Aspect.SIGNALS | Aspect.LIFE
            case Update():
                return Aspect.VALUE
            case Describe():
                return Aspect.NOTHING
            case _:
                return Aspect.LIFE

    def may_change(self, operation: Operation) -> bool:
        """A signal or update that is known to one run already may be new to the next."""
        return _id_of(operation.call) in self._repeated and type(operation.answer) in (Signaled, Updated)

    def misses(self, state: State, operation: Operation, open_: int) -> int:
        """What would have to be changed right before an operation, for any order to need that.

        `open_` is what the operations that may still take effect can change. A change may be put off until
        right before an operation that depends on it, so changes of signals or sums that this one does not
        need can come later. Numbers only grow: one that is too high already is not helped. What was not
        counted before a run closes, or is replaced, never will be; there everything counts. An update that
        did not wait for its sum has one all the same, and where updates are repeated it may be told later.
        """
        if open_ & Aspect.LIFE and self._looks_back:
            return Aspect.EVERYTHING
        call, answer = operation.call, operation.answer
        run = state[-1] if state else None
        if run is None or run.status is not _RUNNING or (not isinstance(call, Start) and call.run_id):
            return Aspect.EVERYTHING
        match answer:
            case Updated(value=None) if self._sums_again:
                return Aspect.LIFE | Aspect.VALUE
            case Updated(value=None) | Signaled() | AlreadyStarted():
                return Aspect.LIFE
            case Updated(value=int() as value) if not run.results:
                return Aspect.LIFE | (Aspect.VALUE if run.value + call.add < value else 0)  # type: ignore[union-attr]
            case Described(status=Status.RUNNING):
                missed = Aspect.LIFE
                if run.signals < answer.signals:
                    missed |= Aspect.SIGNALS
                if run.value < answer.value:
                    missed |= Aspect.VALUE
                return missed
            case _:
                return Aspect.EVERYTHING

    def names_run(self, operation: Operation) -> bool:
        """Whether its answer names a run."""
        answer = operation.answer
        return isinstance(answer, Described | AlreadyStarted | Started) and bool(answer.run_id)

    def is_hopeless(self, state: State, operation: Operation) -> bool:
        """Whether an answer that is impossible here stays so, whatever happens next.

        Runs are told apart by their ids, only the last one changes (but for its closing), its numbers only
        grow, and a closed run stays closed.
        """
        answer = operation.answer
        if not isinstance(answer, Described | AlreadyStarted | Started) or not answer.run_id:
            return False  # as in `names_run`, for the type checker
        run = next((each for each in state if each.run_id == answer.run_id), None)
        if run is None:
            return False
        if isinstance(answer, Started) and run.request_id and run.request_id == _id_of(operation.call):
            return False  # the same start again
        if not isinstance(answer, Described):
            return run is not state[-1]
        if run is not state[-1] and isinstance(operation.call, Describe) and not operation.call.run_id:
            return True
        if run.status is not _RUNNING and run.status is not answer.status:
            return True
        return (
            run.events > answer.events >= 0
            or run.value > answer.value >= 0
            or (run.signals if answer.exact else run.shown) > answer.signals >= 0
        )

    def show(self, state: State) -> str:
        """A state in words."""
        if not state:
            return "no run"
        run = state[-1]
        parts = [f"run {run.run_id or '(nobody knows its id)'} {run.status.value}"]
        if run.closing:
            parts.append("asked to close")
        parts += [f"signals {run.signals}", f"value {run.value}"]
        if run.events:
            parts.append(f"events >= {run.events}")
        if len(state) > 1:
            parts.append(f"after {len(state) - 1} closed")
        return ", ".join(parts)

    # --------------------------------------------------------------------------------- targets

    def _targets(self, state: State, run_id: str) -> Iterator[tuple[int, Run]]:
        """The runs that a call may mean, each as it may stand: closing ones also as completed."""
        if not run_id:
            if state:
                yield from _views(len(state) - 1, state[-1])
            return
        for position, run in enumerate(state):
            if run.run_id == run_id:
                yield from _views(position, run)
                return
        for position, run in enumerate(state):
            if not run.run_id:
                yield from _views(position, run._replace(run_id=run_id))

    # ----------------------------------------------------------------------------------- steps

    def _start(self, state: State, call: Start, answer: Answer | None) -> list[State]:
        request_id = call.request_id if call.request_id in self._repeated else ""
        run_id = answer.run_id if isinstance(answer, Started | AlreadyStarted) else ""
        taken = bool(run_id) and any(run.run_id == run_id for run in state)
        if not state:
            return [(Run(run_id, request_id),)] if answer is None or type(answer) is Started else []
        nexts: list[State] = []
        for back, earlier in enumerate(reversed(state[:-1]), 1):
            if request_id and earlier.request_id == request_id:
                if type(answer) is Started:
                    nexts += _named(state, len(state) - 1 - back, run_id)
                if back <= EARLIER_STARTS:
                    return nexts
                break
        for _, run in _views(len(state) - 1, state[-1]):
            if request_id and run.request_id == request_id:
                if type(answer) is Started:
                    nexts += _named((*state[:-1], run), len(state) - 1, run_id)
            elif run.status is _RUNNING or not call.reuse:
                if type(answer) is AlreadyStarted:
                    nexts += _named((*state[:-1], run), len(state) - 1, run_id)
            elif answer is None or (type(answer) is Started and not taken):
                nexts.append((*state[:-1], run, Run(run_id, request_id)))
        return nexts

    def _signal(self, state: State, call: Signal, answer: Answer | None) -> list[State]:
        nexts: list[State] = []
        for position, run in self._targets(state, call.run_id):
            if run.status is not _RUNNING:
                if _says_closed(answer):
                    nexts.append(_put(state, position, run))
            elif answer is None or type(answer) is Signaled:
                if call.request_id not in self._repeated:
                    run = run._replace(signals=run.signals + 1, closing=run.closing or call.closes)
                elif call.request_id not in run.known:
                    run = run._replace(
                        signals=run.signals + 1,
                        closing=run.closing or call.closes,
                        known=run.known | {call.request_id},
                    )
                nexts.append(_put(state, position, run))
        return nexts + _nowhere(state, call.run_id, answer)

    def _update(self, state: State, call: Update, answer: Answer | None) -> list[State]:
        nexts: list[State] = []
        repeated = call.update_id in self._repeated
        wanted = answer.value if type(answer) is Updated else None
        for position, run in self._targets(state, call.run_id):
            result = dict(run.results).get(call.update_id) if repeated else None
            if result is not None and (answer is None or type(answer) is Updated):
                if wanted in (None, result):
                    nexts.append(_put(state, position, run))
            elif run.status is not _RUNNING:
                if _says_closed(answer):
                    nexts.append(_put(state, position, run))
            elif answer is None or type(answer) is Updated:
                value = run.value + call.add
                if wanted in (None, value):
                    results = run.results | {(call.update_id, value)} if repeated else run.results
                    nexts.append(_put(state, position, run._replace(value=value, results=results)))
            elif type(answer) is Refused and answer.reason is Reason.REJECTED:
                nexts.append(_put(state, position, run))
        return nexts + _nowhere(state, call.run_id, answer)

    def _terminate(self, state: State, call: Terminate, answer: Answer | None) -> list[State]:
        nexts: list[State] = []
        for position, run in self._targets(state, call.run_id):
            if run.status is not _RUNNING:
                if _says_closed(answer):
                    nexts.append(_put(state, position, run))
            elif answer is None or type(answer) is Terminated:
                closed = run._replace(status=Status.TERMINATED, closing=False)
                nexts.append(_put(state, position, closed))
        return nexts + _nowhere(state, call.run_id, answer)

    def _describe(self, state: State, call: Describe, answer: Answer | None) -> list[State]:
        if type(answer) is not Described:
            return _nowhere(state, call.run_id, answer)
        nexts: list[State] = []
        for position, run in self._targets(state, call.run_id):
            if run.status is not answer.status or run.events > answer.events >= 0:
                continue
            if answer.value not in (-1, run.value):
                continue
            if answer.signals >= 0:
                least = run.signals if answer.exact else run.shown
                if not least <= answer.signals <= run.signals:
                    continue
                if self._buffers and answer.signals > run.shown:
                    run = run._replace(shown=answer.signals)
            if answer.events > run.events:
                run = run._replace(events=answer.events)
            if answer.run_id and run.run_id != answer.run_id:
                if run.run_id or any(other.run_id == answer.run_id for other in state):
                    continue
                run = run._replace(run_id=answer.run_id)
            nexts.append(_put(state, position, run))
        return nexts


_STEPS: dict[type[Call], Step] = {
    Start: WorkflowModel._start,
    Signal: WorkflowModel._signal,
    Update: WorkflowModel._update,
    Terminate: WorkflowModel._terminate,
    Describe: WorkflowModel._describe,
}


def _id_of(call: Call) -> str:
    match call:
        case Start() | Signal():
            return call.request_id
        case Update():
            return call.update_id
        case _:
            return ""


def _views(position: int, run: Run) -> Iterator[tuple[int, Run]]:
    yield position, run
    if run.closing:
        yield position, run._replace(status=Status.COMPLETED, closing=False)


def _put(state: State, position: int, run: Run) -> State:
    if state[position] == run:
        return state
    return (*state[:position], run, *state[position + 1 :])


def _named(state: State, position: int, run_id: str) -> list[State]:
    """The run there was shown under this run id: right, or news, or impossible."""
    run = state[position]
    if not run_id or run.run_id == run_id:
        return [state]
    if run.run_id or any(other.run_id == run_id for other in state):
        return []
    return [_put(state, position, run._replace(run_id=run_id))]


def _says_closed(answer: Answer | None) -> bool:
    return type(answer) is Refused and answer.reason in (Reason.NOT_FOUND, Reason.CLOSED)


def _nowhere(state: State, run_id: str, answer: Answer | None) -> list[State]:
    """Where no run is meant by the call, it is not found."""
    if type(answer) is not Refused or answer.reason is not Reason.NOT_FOUND:
        return []
    missing = all(run.run_id != run_id for run in state) if run_id else not state
    return [state] if missing else []
