"""The frontend's gate of a namespace: callers see latency during a switch, not errors.

Theory of operation. The meta group's leader pushes what every namespace's gate is to be; pushes may come late
and in any order, and one that is not newer than the last is ignored. A shard has the last word: it parks or
forwards by its own gate what a stale frontend let through. Parked calls wait, bounded in time, number and
bytes, and leave in the order in which they came, some at a time: a namespace that has just moved is not met
by all its callers in one instant. What comes while others are leaving queues behind them.

A call that is parked or refused here had no effect anywhere, so it may be sent to another region, and its
caller may be told UNAVAILABLE, which SDKs retry. Never NOT_FOUND or FAILED_PRECONDITION: those end workers
and cancel activities. Polls that wait in vain end empty, as any long poll does.

Invariant: no call leaves before one that was parked earlier and still is; none waits past its deadline. A
call that went and was refused by its shard is parked anew, behind all others.

Lineage: Temporal's handover interceptor, which parks until shortly before the deadline, without bounds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from replication.failover.meta import MetaState
from replication.failover.records import Phase
from replication.versions import owner_of

PARKED_NS_MAX = 8_000_000_000  # SDKs give up after 10 s of retries
MARGIN_NS = 250_000_000  # before the caller's deadline: to answer, rather than to be given up on
CALLS_MAX = 1000  # parked per namespace on one frontend
BYTES_MAX = 16 << 20
RELEASED_MAX = 32  # of one namespace under way at once while others are still parked


class Passage(Enum):
    """What a frontend does with calls that want the active region."""

    OPEN = "open"  # it is this one
    PARKED = "parked"
    FORWARD = "forward"


class GateView(NamedTuple):
    """What the meta group says of a namespace's gate. Its first three fields order pushes."""

    version: int
    handover: int  # the newest that concerns this version; 0 = none
    decided: bool  # that one has ended; False without one
    passage: Passage
    region: int  # FORWARD: where to; otherwise 0

    def is_newer_than(self, other: GateView) -> bool:
        """Whether a push of this one replaces the other."""
        return self[:3] > other[:3]


def gate_view(state: MetaState, namespace_id: str) -> GateView | None:
    """What frontends of a region are to do, by its meta group; None: the namespace is unknown."""
    record = state.namespaces.get(namespace_id)
    if record is None:
        return None
    owner = owner_of(record.version)
    if owner != state.region:
        return GateView(record.version, 0, False, Passage.FORWARD, owner)
    concerned = [
        handover
        for handover in state.handovers.values()
        if any(s.namespace_id == namespace_id and s.base == record.version for s in handover.switches)
    ]
    newest = max(concerned, key=lambda handover: handover.number, default=None)
    if newest is None or newest.phase is Phase.PREPARE:
        # While it prepares nothing is different, and the handover before it is over.
        earlier = [handover.number for handover in concerned if handover is not newest]
        return GateView(record.version, max(earlier, default=0), bool(earlier), Passage.OPEN, 0)
    if newest.phase in (Phase.FENCING, Phase.DRAINING):
        return GateView(record.version, newest.number, False, Passage.PARKED, 0)
    return GateView(record.version, newest.number, True, Passage.OPEN, 0)


class Kind(Enum):
    """What a caller gets that waited in vain."""

    CALL = "call"  # UNAVAILABLE
    POLL = "poll"  # an empty answer


class Waiting(NamedTuple):
    """A parked call."""

    call_id: int  # of the caller of this module, never twice
    size_bytes: int
    kind: Kind
    until_ns: int


class Arrival(Enum):
    """What becomes of a call that has just come."""

    GO = "go"  # open: here. forward: to the region. The gate's view says which
    WAIT = "wait"
    OVERFLOW = "overflow"  # UNAVAILABLE at once


class Leaving(NamedTuple):
    """A parked call that leaves: to be executed or forwarded as `view` says."""

    call_id: int
    view: GateView


class ParkingGate:
    """One namespace's gate on one frontend."""

    def __init__(
        self,
        view: GateView,
        *,
        calls_max: int = CALLS_MAX,
        bytes_max: int = BYTES_MAX,
        released_max: int = RELEASED_MAX,
    ) -> None:
        self.view = view
        self.parked_bytes = 0
        self._parked: deque[Waiting] = deque()
        self._released: set[int] = set()  # have left and not finished
        self._calls_max, self._bytes_max, self._released_max = calls_max, bytes_max, released_max

    def __len__(self) -> int:
        """How many are parked."""
        return len(self._parked)

    def push(self, view: GateView) -> bool:
        """The meta group's word; False: it was old. Afterwards ask `leave`."""
        if not view.is_newer_than(self.view):
            return False
        self.view = view
        return True

    def arrive(self, call_id: int, size_bytes: int, kind: Kind, now_ns: int, deadline_ns: int) -> Arrival:
        """A call has come. `deadline_ns`: its caller's, by the clock of `now_ns`."""
        if self.view.passage is not Passage.PARKED and not self._parked:
            return Arrival.GO
        return self._park(Waiting(call_id, size_bytes, kind, _until(now_ns, deadline_ns)), now_ns)

    def refused(self, call_id: int, size_bytes: int, kind: Kind, now_ns: int, deadline_ns: int) -> Arrival:
        """A call that went was parked by its shard, whose gate is ahead of this one: it waits for the next
        push or, where the gate is open, for its turn.
        """
        self._released.discard(call_id)
        return self._park(Waiting(call_id, size_bytes, kind, _until(now_ns, deadline_ns)), now_ns)

    def _park(self, waiting: Waiting, now_ns: int) -> Arrival:
        full = (
            len(self._parked) >= self._calls_max or self.parked_bytes + waiting.size_bytes > self._bytes_max
        )
        if full or waiting.until_ns <= now_ns:
            return Arrival.OVERFLOW
        self._parked.append(waiting)
        self.parked_bytes += waiting.size_bytes
        return Arrival.WAIT

    def leave(self) -> list[Leaving]:
        """Who goes now, in order; each is to be reported by `finished`, or by `refused`."""
        leaving: list[Leaving] = []
        while (
            self._parked
            and self.view.passage is not Passage.PARKED
            and len(self._released) < self._released_max
        ):
            waiting = self._parked.popleft()
            self.parked_bytes -= waiting.size_bytes
            self._released.add(waiting.call_id)
            leaving.append(Leaving(waiting.call_id, self.view))
        return leaving

    def finished(self, call_id: int) -> None:
        """A call that left has been answered. Of others nothing is kept."""
        self._released.discard(call_id)

    def gone(self, call_id: int) -> None:
        """A parked caller hung up."""
        self._keep(lambda waiting: waiting.call_id != call_id)

    def expire(self, now_ns: int) -> list[Waiting]:
        """Who has waited in vain, in order."""
        return self._keep(lambda waiting: waiting.until_ns > now_ns)

    def next_ns(self) -> int | None:
        """When to call `expire`; None: nobody is parked."""
        return min((waiting.until_ns for waiting in self._parked), default=None)

    def _keep(self, wanted: Callable[[Waiting], bool]) -> list[Waiting]:
        out = [waiting for waiting in self._parked if not wanted(waiting)]
        if out:
            self._parked = deque(waiting for waiting in self._parked if wanted(waiting))
            self.parked_bytes -= sum(waiting.size_bytes for waiting in out)
        return out


def _until(now_ns: int, deadline_ns: int) -> int:
    return min(deadline_ns - MARGIN_NS, now_ns + PARKED_NS_MAX)


class Route(NamedTuple):
    """Where a call goes next; region 0: nowhere, it is parked here."""

    region: int
    version: int  # goes with the call


def redirected(route: Route, *, attached: int, redirects: int) -> Route:
    """After a region refused a forwarded call with the version it knows: to the owner of a larger one, once.

    `redirects`: how often that has happened to this call. One that has been redirected already, or that was
    refused by somebody who knows less, waits here for the next push.
    """
    if attached > route.version and redirects == 0:
        return Route(owner_of(attached), attached)
    return Route(0, max(attached, route.version))
