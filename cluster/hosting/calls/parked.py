"""Calls that wait for a namespace to have an owner: the queue of one node (replication/failover/parking.py).

A call that comes here was refused, by its shard's gate or by what this node knows of the namespace, and has
had no effect. It waits for its turn and is tried again; what comes meanwhile queues behind it (`queues`).
While somebody waits, what the node knows of the namespace is looked at a few times a second, so that a lost
word of the meta group costs a moment; `look` is for whoever knows that it has changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.errordetails.v1.message_pb2 import NamespaceUnavailableFailure

from cluster.frontend.status import status_details
from history_store.engine.errors import Code, ServiceError
from history_store.rare import reached
from replication.failover.parking import (
    MARGIN_NS,
    PARKED_NS_MAX,
    Arrival,
    GateView,
    Kind,
    ParkingGate,
    Passage,
)

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.calls.attempt import Attempt
    from cluster.hosting.calls.forward import Forward

LOOK_S = 0.1
SECOND_NS = 1_000_000_000


class Parking:
    """One per node."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._loop = forward.loop
        self._gates: dict[str, ParkingGate] = {}  # by namespace id, while anybody waits or has just left
        self._waiting: dict[int, Attempt] = {}
        self._left: dict[int, str] = {}  # those whose turn has come: number -> namespace id
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[Attempt]:
        """Who waits."""
        return list(self._waiting.values())

    def queues(self, namespace_id: str) -> bool:
        """Whether a call that comes now has to wait behind others."""
        gate = self._gates.get(namespace_id)
        return gate is not None and len(gate) > 0

    def park(self, attempt: Attempt, namespace_id: str, version: int) -> None:
        """The call waits until the namespace is served, here or elsewhere. `version`: as it was refused."""
        if attempt.done:
            return
        gate = self._gates.get(namespace_id)
        if gate is None:
            gate = self._gates[namespace_id] = ParkingGate(self._view(namespace_id, version))
        if not attempt.parked:
            self._numbers += 1
            attempt.parked = self._numbers
            deadline = attempt.deadline
            latest = self._now() + PARKED_NS_MAX + MARGIN_NS
            attempt.parked_until = latest if deadline is None else min(latest, int(deadline * SECOND_NS))
        number, now, until = attempt.parked, self._now(), attempt.parked_until
        attempt.released = False
        self._left.pop(number, None)
        kind = Kind.POLL if attempt.is_poll else Kind.CALL
        if gate.refused(number, len(attempt.request), kind, now, until) is Arrival.OVERFLOW:
            reached("call not parked: no room, or no time")
            self._in_vain(attempt, namespace_id, kind)
            self._forget(namespace_id)
            return
        self._waiting[number] = attempt
        if self._timer is None:
            self._timer = self._loop.call_later(LOOK_S, self._turn)

    def ended(self, attempt: Attempt) -> None:
        """It is answered, or nobody waits for it any more."""
        number = attempt.parked
        namespace_id = self._left.pop(number, None)
        if namespace_id is not None:
            self._gates[namespace_id].finished(number)
            if self.queues(namespace_id):
                self._loop.call_soon(self.look, namespace_id)
            else:
                self._forget(namespace_id)
        elif self._waiting.pop(number, None) is not None:
            for namespace_id, gate in list(self._gates.items()):
                gate.gone(number)
                self._forget(namespace_id)

    def look(self, namespace_id: str) -> None:
        """Let go who may."""
        gate = self._gates.get(namespace_id)
        if gate is None:
            return
        view = self._forward.node.passage(namespace_id)
        if view is not None:
            gate.push(view)
        for waiting in gate.expire(self._now()):
            attempt = self._waiting.pop(waiting.call_id)
            self._in_vain(attempt, namespace_id, waiting.kind)
        for leaving in gate.leave():
            attempt = self._waiting.pop(leaving.call_id)
            self._left[leaving.call_id] = namespace_id
            attempt.released = True
            self._loop.call_soon(self._go, attempt)
        self._forget(namespace_id)

    def _go(self, attempt: Attempt) -> None:
        if not attempt.done:
            attempt.run()

    def _turn(self) -> None:
        self._timer = None
        for namespace_id in list(self._gates):
            self.look(namespace_id)
        if self._waiting:
            self._timer = self._loop.call_later(LOOK_S, self._turn)

    def _view(self, namespace_id: str, version: int) -> GateView:
        # A shard knows of the namespace what this node is yet to hear.
        view = self._forward.node.passage(namespace_id)
        return view if view is not None else GateView(version, 0, False, Passage.OPEN, 0)

    def _in_vain(self, attempt: Attempt, namespace_id: str, kind: Kind) -> None:
        """Nobody serves it in time. A poll ends as any long poll does; others are told to try again."""
        if attempt.done:
            return
        if kind is Kind.POLL:
            attempt.finish(b"")
            return
        name = self._forward.node.namespace_name_of(namespace_id)
        error = ServiceError(
            Code.UNAVAILABLE,
            f"namespace {name} is being handed over between regions; try again",
            NamespaceUnavailableFailure(namespace=name),
        )
        attempt.fail(int(error.code), error.message, status_details(error))

    def _forget(self, namespace_id: str) -> None:
        gate = self._gates.get(namespace_id)
        if gate is not None and not len(gate) and namespace_id not in self._left.values():
            del self._gates[namespace_id]

    def _now(self) -> int:
        return int(self._loop.time() * SECOND_NS)
