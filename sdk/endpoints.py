"""Which of several endpoints a new connection goes to: decided from what was seen of them.

Pure: it is told what happened, with the time, and answers who comes next and who is to be asked how it is.

* The order is the one that was given, or, with `nearest`, that of the shortest round trip that was
  measured; who has not answered yet comes last.
* An endpoint is lost when a connection to it could not be made, or when it left two questions in a row
  unanswered, so that a single late answer moves nobody. A connection that breaks says nothing: it may have
  been idle for too long. It is well again after three good answers in a row, so that one that comes and
  goes is left alone.
* Who is lost is tried last, and is tried nevertheless: if all are lost, one of them may be back before it
  is asked again.

Invariant: `order` has every endpoint once, all that are well before all that are lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MISSED_MAX = 2
GOOD_MIN = 3
ASK_EVERY_S = 1.0  # who carries calls and is silent, or is lost
ASK_IDLE_EVERY_S = 30.0  # all others: they are only kept measured
NEARER = 1.5  # times; of two that are about equally near, now this one seems nearer, now that


@dataclass(frozen=True)
class EndpointState:
    """What is known of an endpoint."""

    address: str
    lost: bool
    why: str  # it is lost; empty if it is well
    connections: int  # that calls are made by now
    round_trip_s: float | None  # the shortest that was measured


class Endpoint:
    """One endpoint, as it was last seen."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.connections = 0
        self.lost = False
        self.why = ""
        self.round_trip_s: float | None = None
        self._missed = 0
        self._good = 0
        self._seen_at = float("-inf")

    def heard(self, now: float) -> None:
        """Something came from it: who talks need not be asked."""
        if not self.lost:
            self._missed = 0
            self._seen_at = now

    def answered(self, now: float, took_s: float) -> bool:
        """It answered a question well; whether it is well again by that."""
        self._seen_at = now
        self._missed = 0
        self._good += 1
        self.round_trip_s = took_s if self.round_trip_s is None else min(self.round_trip_s, took_s)
        if not self.lost or self._good < GOOD_MIN:
            return False
        self.lost, self.why = False, ""
        return True

    def missed(self, now: float, why: str) -> bool:
        """It did not answer a question, or said that it does not serve; whether its connections are dead."""
        self._seen_at = now
        self._good = 0
        self._missed += 1
        if self._missed < MISSED_MAX:
            return False
        self.lost, self.why = True, why
        return True

    def refused(self, now: float, why: str) -> None:
        """No connection could be made."""
        self._seen_at = now
        self._good = 0
        self.lost, self.why = True, why

    def due_s(self, now: float) -> float:
        """How long from now until it is to be asked how it is."""
        every = ASK_EVERY_S if self.lost or self.connections else ASK_IDLE_EVERY_S
        return max(0.0, self._seen_at + every - now)

    def state(self) -> EndpointState:
        """For whoever asks."""
        return EndpointState(self.address, self.lost, self.why, self.connections, self.round_trip_s)


class Endpoints:
    """All of them, in order."""

    def __init__(self, addresses: Sequence[str], *, nearest: bool) -> None:
        assert addresses
        self._nearest = nearest
        self.all = [Endpoint(address) for address in addresses]

    def order(self) -> list[Endpoint]:
        """Who is tried for a new connection, first to last."""

        def rank(endpoint: Endpoint) -> tuple[bool, float]:
            trip = endpoint.round_trip_s if self._nearest else 0.0
            return endpoint.lost, float("inf") if trip is None else trip

        return sorted(self.all, key=rank)  # stable: equals stay as they were given

    def better(self, than: Endpoint) -> Endpoint | None:
        """Who is to be preferred to an endpoint that carries calls; None if it is as good as any."""
        first = self.order()[0]
        if first is than or first.lost:
            return None
        if than.lost or not self._nearest:
            return first
        if first.round_trip_s is None or than.round_trip_s is None:
            return None
        return first if first.round_trip_s * NEARER < than.round_trip_s else None
