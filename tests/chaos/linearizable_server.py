"""A server that does one thing at a time, clients that see it through delays, and ways for it to be wrong.

Written from what the calls mean, not from the checker's model, so that the two can disagree.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

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
from history_store.engine.state import EARLIER_STARTS_MAX


class Fault(Enum):
    """One thing that a server may do wrong, once."""

    NONE = 0
    STALE_READ = 1  # answers a read from a state before the last acknowledged change
    LOST = 2  # acknowledges a change and forgets it
    DUPLICATED = 3  # does a change twice
    FUTURE = 4  # shows what nobody asked for


@dataclass
class FakeRun:
    run_id: str
    request_id: str
    status: Status = Status.RUNNING
    signals: set[str] = field(default_factory=set)
    doubled: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    value: int = 0

    def shown(self) -> Described:
        count = len(self.signals) + self.doubled
        return Described(self.status, self.run_id, count, self.value, 5 + count + 2 * len(self.sums))


class FakeWorkflow:
    """All runs of one workflow id."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: list[FakeRun] = []

    def find(self, run_id: str) -> FakeRun | None:
        if not run_id:
            return self.runs[-1] if self.runs else None
        return next((run for run in self.runs if run.run_id == run_id), None)

    def apply(self, call: Call) -> Answer:
        if isinstance(call, Start):
            return self.start(call)
        run = self.find(call.run_id)
        if run is None:
            return Refused(Reason.NOT_FOUND)
        if isinstance(call, Describe):
            return run.shown()
        if isinstance(call, Update) and call.update_id in run.sums:
            return Updated(run.sums[call.update_id])
        if run.status is not Status.RUNNING:
            return Refused(Reason.CLOSED)
        if isinstance(call, Signal):
            run.signals.add(call.request_id)
            if call.closes:
                run.status = Status.COMPLETED
            return Signaled()
        if isinstance(call, Update):
            run.value += call.add
            run.sums[call.update_id] = run.value
            return Updated(run.value)
        run.status = Status.TERMINATED
        return Terminated()

    def start(self, call: Start) -> Answer:
        current = self.find("")
        if current is not None:
            for run in reversed(self.runs[-1 - EARLIER_STARTS_MAX :]):
                if run.request_id == call.request_id:
                    return Started(run.run_id)
            if current.status is Status.RUNNING or not call.reuse:
                return AlreadyStarted(current.run_id)
        run_id = f"{self.name}-r{len(self.runs) + 1}"
        self.runs.append(FakeRun(run_id, call.request_id))
        return Started(run_id)


class FaultyWorkflow(FakeWorkflow):
    """Does its fault once, at the first chance after a number of calls."""

    def __init__(self, name: str, fault: Fault, after: int) -> None:
        super().__init__(name)
        self.fault = fault
        self.after = after
        self.done = False
        self.old: Described | None = None

    def apply(self, call: Call) -> Answer:
        self.after -= 1
        run = self.find("")
        due = self.after < 0 and not self.done and run is not None and run.status is Status.RUNNING
        if not due or run is None:
            return super().apply(call)
        shown = run.shown()
        if isinstance(call, Describe) and self.fault in (Fault.STALE_READ, Fault.FUTURE):
            if self.fault is Fault.FUTURE:
                self.done = True
                # More than could be under way.
                return Described(shown.status, shown.run_id, shown.signals + 9, shown.value, shown.events)
            if self.old is None or self.old.run_id != shown.run_id:
                self.old = shown
            elif self.old.signals + 5 < shown.signals:
                self.done = True
                return self.old
        if isinstance(call, Update) and call.add and call.update_id not in run.sums:
            if self.fault is Fault.LOST:
                self.done = True
                return Updated(run.value + call.add)
            if self.fault is Fault.DUPLICATED:
                self.done = True
                run.value += call.add
        if isinstance(call, Signal) and call.request_id not in run.signals and not call.closes:
            if self.fault is Fault.LOST:
                self.done = True
                return Signaled()
            if self.fault is Fault.DUPLICATED:
                self.done = True
                run.doubled += 1
        return super().apply(call)


@dataclass(order=True)
class _Moment:
    at: int
    tie: int
    act: Callable[[int], None] = field(compare=False)


class Clients:
    """Clients in virtual time: each has one operation under way, on one of several workflow ids."""

    def __init__(
        self,
        rng: random.Random,
        workflows: dict[str, FakeWorkflow],
        *,
        clients: int,
        operations: int,
        indefinite: float = 0.0,
        looks_back: bool = False,
        ends: float = 0.015,
    ) -> None:
        self.rng = rng
        self.workflows = workflows
        self.names = list(workflows)
        self.left = [operations] * clients
        self.indefinite = indefinite
        self.looks_back = looks_back
        self.ends = ends
        self.history: list[Operation] = []
        self.numbers = 0
        self.again: list[tuple[str, Call]] = []
        self.moments: list[_Moment] = []
        self.tie = 0

    def run(self) -> list[Operation]:
        for client in range(len(self.left)):
            self._at(self.rng.randrange(1, 10), lambda at, client=client: self._begin(at, client))  # type: ignore[misc]
        while self.moments:
            moment = heapq.heappop(self.moments)
            moment.act(moment.at)
        return self.history

    def _at(self, at: int, act: Callable[[int], None]) -> None:
        self.tie += 1
        heapq.heappush(self.moments, _Moment(at, self.tie, act))

    def _call(self, name_of_id: str) -> Call:
        rng = self.rng
        self.numbers += 1
        name = f"{self.numbers}"
        chance = rng.random()
        if chance < 0.12:
            return Start(f"start-{name}", rng.random() < 0.9)
        if chance < 0.4:
            return Signal(f"signal-{name}", closes=rng.random() < self.ends)
        if chance < 0.65:
            return Update(f"update-{name}", rng.randrange(1, 4))
        if chance < 1 - self.ends:
            run_id = f"{name_of_id}-r{rng.randrange(1, 4)}" if self.looks_back and rng.random() < 0.5 else ""
            return Describe(run_id)
        return Terminate()

    def _begin(self, at: int, client: int) -> None:
        rng = self.rng
        if not self.left[client]:
            return
        self.left[client] -= 1
        if self.again and rng.random() < 0.5:
            name, call = self.again.pop()
        else:
            name = rng.choice(self.names)
            call = self._call(name)
        takes = rng.randrange(1, 10)
        ends = at + takes + rng.randrange(1, 10)
        if rng.random() < self.indefinite:
            if not isinstance(call, Describe | Terminate) and rng.random() < 0.5:
                self.again.append((name, call))
            self.history.append(Operation(f"c{client}", name, call, at))
            if rng.random() < 0.6:  # it happens nevertheless, perhaps long after
                self._at(at + takes * rng.choice((1, 1, 10)), lambda _: self._happen(name, call))
            self._at(ends, lambda then: self._begin(then + 1, client))
        else:
            self._at(at + takes, lambda _: self._answer(at, ends, client, name, call))

    def _happen(self, name: str, call: Call) -> None:
        self.workflows[name].apply(call)

    def _answer(self, at: int, ends: int, client: int, name: str, call: Call) -> None:
        answer = self.workflows[name].apply(call)
        self.history.append(Operation(f"c{client}", name, call, at, ends, answer))
        self._at(ends, lambda then: self._begin(then + self.rng.randrange(1, 4), client))
