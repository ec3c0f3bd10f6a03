"""Could one server that does one thing at a time have given these answers? The judge of concurrent clients.

Theory of operation. A history is linearizable if every operation can be given one moment between its
invocation and its return, so that the answers, in the order of the moments, are those of the model (Herlihy
and Wing). Operations of unknown outcome may have a moment anywhere behind their invocation, or none.
Linearizability is local: a history is linearizable if that of each workflow id is, so each is judged alone.

For one workflow id, the search of Wing and Gong: take an operation that no other one must come before,
step the model, go on; go back where nothing fits. Lowe's memory keeps it from entering the same
(operations taken, state) twice. More cuts, none of which loses an order:

* an operation that fits and changes nothing (a read, a refusal) is taken at once, unless it might change
  something later: whatever order exists with it later exists with it here;
* of operations that could stand in for each other (two signals), only the one that returns first is tried;
* operations of unknown outcome are tried last, when the answers do not fit without them, and only those
  that can change what the next answer depends on;
* nothing is tried behind a state at which an operation that is due has become impossible for good, or one
  of the next few that name a run.

The search counts its steps, not time, so a verdict is repeatable: where `steps_max` is spent on one id,
nobody can say. `unknown` is never a pass.

Where no order exists, the furthest that any order came says which operation could not be placed: everything
that returned before it could be ordered, and it could not follow. That operation, those that overlap it,
and the states possible at that point are the counterexample.

Lineage: Wing and Gong 1993; Lowe 2017, "Testing for linearizability"; Porcupine. We differ in the treatment
of unknown outcomes and in the cuts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from chaos.checkers.history import Failed, Operation, Record
from chaos.checkers.picture import draw
from chaos.checkers.verdict import Verdict
from chaos.checkers.workflow import WorkflowModel

# Model steps for one workflow id. A sound id of a thousand operations takes some thousands; a million is a
# few seconds, and the memory of a search that long is some hundred megabytes.
STEPS_MAX = 1_000_000
# What a person reads of a counterexample.
SHOWN_STATES_MAX = 4
SHOWN_OPERATIONS_MAX = 16
SHOWN_OPEN_MAX = 6
SHOWN_BEFORE_MAX = 3

# So many operations that name a run are looked at ahead of a change: a run that closed or was replaced too
# early is known by them, long before the search would come there.
AHEAD = 8

NEVER = 1 << 80  # the return of an operation that may still take effect; later than any clock

S = TypeVar("S", bound=Hashable)
# How far an order is: the first required operation not taken, which behind it are taken (bits), which of
# those of unknown outcome are taken (bits), and the state.
Place = tuple[int, int, int, S]


class Model(Protocol[S]):
    """What the search wants to know of the thing that is judged."""

    @property
    def initial(self) -> S:
        """The state before everything."""

    def step(self, state: S, operation: Operation) -> list[S]:
        """The states that the operation may lead to; none if it is impossible here."""

    def symmetry(self, operation: Operation) -> Hashable:
        """Equal for operations that could stand in for each other anywhere; None for all others."""

    def changes(self, operation: Operation) -> int:
        """What the call can change, as bits; 0 = nothing."""

    def may_change(self, operation: Operation) -> bool:
        """Whether an operation with this answer that changes nothing at one state may change another."""

    def misses(self, state: S, operation: Operation, open_: int) -> int:
        """Which changes (bits) right before the operation some order may need.

        `open_` are all changes that operations of unknown outcome may still make. Answering too much only
        costs time; answering too little calls sound histories broken.
        """

    def names_run(self, operation: Operation) -> bool:
        """Whether its answer names a run, so that it can become hopeless."""

    def is_hopeless(self, state: S, operation: Operation) -> bool:
        """Whether an operation that is impossible at this state is so for ever after."""

    def show(self, state: S) -> str:
        """A state in words."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """What cannot be ordered. Times are the history's."""

    workflow_id: str
    culprit: Operation  # everything that returned before it can be ordered; it cannot be placed
    window: list[Operation]  # those that overlap it, itself included, by invocation
    before: list[Operation]  # the last ones that returned before the window
    states: list[str]  # possible where it had to be placed

    def __str__(self) -> str:
        lines = [f"{self.workflow_id}: no order of these operations explains their answers"]
        lines += draw(self.window, self.culprit, self.before)
        lines.append("the marked one fits none of the states that were possible:")
        lines += [f"  {state}" for state in self.states]
        return "\n".join(lines)


@dataclass(slots=True)
class Judgement:
    """A verdict with its reasons."""

    verdict: Verdict
    problems: list[Counterexample] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)  # why nobody can say
    operations: int = 0
    unknown_outcomes: int = 0
    workflow_ids: int = 0
    steps: int = 0


def check(record: Record, *, steps_max: int = STEPS_MAX) -> Judgement:
    """Judge a history by the model of workflows.

    Where the history may lack operations nothing is `broken`, either: the missing one may explain everything.
    """
    parts: defaultdict[str, list[Operation]] = defaultdict(list)
    for operation in record.operations:
        parts[operation.workflow_id].append(operation)
    found = Judgement(Verdict.OK, doubts=list(record.doubts), workflow_ids=len(parts))
    found.operations = len(record.operations)
    found.unknown_outcomes = sum(operation.answer is None for operation in record.operations)
    acknowledged = 0
    for workflow_id, operations in sorted(parts.items()):
        search = Search(WorkflowModel(operations), operations, steps_max)
        verdict = search.run()
        acknowledged += len(search.required)
        found.steps += search.steps
        if verdict is Verdict.BROKEN:
            found.problems.append(search.counterexample(workflow_id))
        elif verdict is Verdict.UNKNOWN:
            found.doubts.append(
                f"{workflow_id}: no verdict within {steps_max} steps; "
                f"the search came as far as {search.furthest} of the history's time"
            )
    if not acknowledged:
        found.doubts.append("nothing was ever answered, so nothing was tested")
    if found.problems and not record.doubts:
        found.verdict = Verdict.BROKEN
    elif found.problems or found.doubts:
        found.verdict = Verdict.UNKNOWN
    return found


class Search(Generic[S]):
    """The search for an order of one workflow id's operations."""

    def __init__(self, model: Model[S], operations: Sequence[Operation], steps_max: int) -> None:
        self.model = model
        self.steps_max = steps_max
        self.steps = 0
        told = [each for each in operations if type(each.answer) is not Failed]
        self.required = sorted([each for each in told if each.answer is not None], key=_invoked)
        self.optional = sorted(
            [each for each in told if each.answer is None and model.changes(each)], key=_invoked
        )
        self._invoked = [each.invoked for each in self.required]
        self._returned = [each.returned or 0 for each in self.required]
        self._symmetry = [model.symmetry(each) for each in self.required]
        self._may_change = [model.may_change(each) for each in self.required]
        self._optional_symmetry = [model.symmetry(each) for each in self.optional]
        self._changes = [model.changes(each) for each in self.optional]
        self._naming = [index for index, each in enumerate(self.required) if model.names_run(each)]
        self._ahead = 0
        self.furthest = -1  # the latest return before which everything that returned could be ordered
        self.stuck: list[Place[S]] = []  # where it could

    def run(self) -> Verdict:
        """Look for an order, depth first."""
        self._ahead = AHEAD
        verdict = self._search()
        if verdict is Verdict.BROKEN:
            # Who looked ahead turned back early. For people: how far does any order come?
            self._ahead, self.steps, self.furthest = 0, 0, -1
            self.stuck.clear()
            self._search()
        return verdict

    def _search(self) -> Verdict:
        count = len(self.required)
        start: Place[S] = (0, 0, 0, self.model.initial)
        if count == 0:
            return Verdict.OK
        seen = {start}
        path = [self._moves(start)]
        while path:
            for place in path[-1]:
                if place[0] == count:
                    return Verdict.OK
                if place not in seen:
                    seen.add(place)
                    path.append(self._moves(place))
                    break
            else:
                path.pop()
            if self.steps > self.steps_max:
                return Verdict.UNKNOWN
        return Verdict.BROKEN

    def _moves(self, place: Place[S]) -> Iterator[Place[S]]:
        """Every place that one more operation leads to, the most promising first."""
        low, taken, assumed, state = place
        candidates, deadline = self._candidates(low, taken)
        if deadline >= self.furthest:
            if deadline > self.furthest:
                self.furthest = deadline
                self.stuck.clear()
            self.stuck.append(place)
        step, required = self.model.step, self.required
        moves: list[Place[S]] = []
        for index in candidates:
            self.steps += 1
            nexts = step(state, required[index])
            if nexts:
                after, bits = _taken(low, taken, index)
                if self._ahead:
                    nexts = [new for new in nexts if new == state or self._has_future(after, bits, new)]
                if len(nexts) == 1 and nexts[0] == state and not self._may_change[index]:
                    yield (after, bits, assumed, state)
                    return
                moves += [(after, bits, assumed, new) for new in nexts]
            elif self.model.is_hopeless(state, required[index]):
                return
        yield from moves
        yield from self._guesses(place, candidates, deadline)

    def _guesses(self, place: Place[S], candidates: list[int], deadline: int) -> Iterator[Place[S]]:
        """Places after one more operation of unknown outcome, as far as it may help with what comes next."""
        low, taken, assumed, state = place
        open_: list[int] = []
        changes = 0
        for index, operation in enumerate(self.optional):
            if operation.invoked > deadline:
                break
            if not assumed >> index & 1:
                open_.append(index)
                changes |= self._changes[index]
        if not open_:
            return
        missed = 0
        for index in candidates:
            missed |= self.model.misses(state, self.required[index], changes)
        tried = {self._symmetry[index] for index in candidates}
        tried.discard(None)
        for index in reversed(open_):  # what takes effect mostly does so soon
            kind = self._optional_symmetry[index]
            if kind in tried or not self._changes[index] & missed:
                continue
            if kind is not None:
                tried.add(kind)
            self.steps += 1
            for new in self.model.step(state, self.optional[index]):
                if not self._ahead or self._has_future(low, taken, new):
                    yield (low, taken, assumed | 1 << index, new)

    def _has_future(self, low: int, taken: int, state: S) -> bool:
        """Whether none of the next few operations that name a run has become impossible for good."""
        model, required = self.model, self.required
        first = bisect_left(self._naming, low)
        for index in self._naming[first : first + self._ahead]:
            if taken >> (index - low) & 1:
                continue
            operation = required[index]
            if model.is_hopeless(state, operation) and not model.step(state, operation):
                return False
        return True

    def _candidates(self, low: int, taken: int) -> tuple[list[int], int]:
        """The operations that no other one must come before, and the time the next one must be taken by."""
        invoked, returned, symmetry = self._invoked, self._returned, self._symmetry
        found: list[int] = []
        kinds: dict[Hashable, int] = {}
        deadline = NEVER
        for index in range(low, len(invoked)):
            if invoked[index] > deadline:
                break
            if not taken & 1:
                ends = returned[index]
                deadline = min(deadline, ends)
                kind = symmetry[index]
                if kind is None:
                    found.append(index)
                elif kind not in kinds or ends < returned[kinds[kind]]:
                    kinds[kind] = index
            taken >>= 1
        found += kinds.values()
        return found, deadline

    def counterexample(self, workflow_id: str) -> Counterexample:
        """Why there is no order, after `run` said so."""
        end = self.furthest
        culprit = next(each for each in self.required if each.returned == end)
        # Of many that overlap a slow operation, the last ones: the earlier ones are settled.
        overlapping = [
            each
            for each in sorted(self.required, key=_ended)
            if each is not culprit and each.invoked <= end and _ended(each) >= culprit.invoked
        ][-SHOWN_OPERATIONS_MAX:]
        open_ = [each for each in self.optional if each.invoked <= end][-SHOWN_OPEN_MAX:]
        window = sorted([culprit, *overlapping, *open_], key=_invoked)
        before = [
            each
            for each in self.required
            if each.returned is not None and each.returned < culprit.invoked and self.model.changes(each)
        ]
        states = list(dict.fromkeys(self.model.show(place[3]) for place in self.stuck))
        if len(states) > SHOWN_STATES_MAX:
            states = [*states[:SHOWN_STATES_MAX], f"… and {len(states) - SHOWN_STATES_MAX} more"]
        before.sort(key=_ended)
        return Counterexample(workflow_id, culprit, window, before[-SHOWN_BEFORE_MAX:], states)


def _taken(low: int, bits: int, index: int) -> tuple[int, int]:
    bits |= 1 << (index - low)
    while bits & 1:
        bits >>= 1
        low += 1
    return low, bits


def _invoked(operation: Operation) -> int:
    return operation.invoked


def _ended(operation: Operation) -> int:
    return operation.returned or NEVER
