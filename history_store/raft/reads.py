"""Reads that see every write answered before them, without an entry in the log.

Theory of operation. The leader notes its commit mark when a read arrives and asks everybody "do I still
lead?" in the next heartbeat round. Rounds are numbered; a member that answers round n has answered all
before it. Once a quorum answered, the read may be served as soon as the state machine has applied the noted
mark.

The lease is the same fact turned round: a quorum that answered a round sent at tick t promised not to elect
anybody until `election_ticks` after it heard it, so until shortly before then no question is needed.

Lineage: Raft section 8; Ongaro's thesis 6.4; etcd-io/raft read_only.go. We differ: numbered rounds instead
of contexts, one round for all reads of a turn; and the lease counts from the *sending* of the round that a
quorum answered.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

NO_LEASE = -(1 << 62)


class WaitingRead(NamedTuple):
    """A read that a quorum has yet to confirm."""

    round: int
    requester: int
    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here
    context: bytes


class Reads:
    """The reads of one leadership."""

    __slots__ = ("confirmed", "lease_tick", "postponed", "round", "sent", "waiting", "wanted")

    def __init__(self) -> None:
        self.round = 0  # the last one sent
        self.wanted = False  # some read waits for the next one
        self.confirmed = 0  # the last one that a quorum answered
        self.waiting: deque[WaitingRead] = deque()
        # Reads that came before the leader committed anything of its own term: only then does it know what is
        # committed (Raft, section 8).
        self.postponed: list[tuple[int, bytes]] = []
        self.sent: deque[tuple[int, int]] = deque()  # (round, tick it was sent at), unanswered ones
        self.lease_tick = NO_LEASE  # when the last round that a quorum answered was sent

    def __len__(self) -> int:
        """How many reads wait."""
        return len(self.waiting) + len(self.postponed)

    def ask(self, requester: int, index: int, context: bytes) -> None:
        """Let a read wait for the next round."""
        self.waiting.append(WaitingRead(self.round + 1, requester, index, context))
        self.wanted = True

    def open_round(self, tick: int, *, keep: bool) -> int:
        """Number a round that is being sent now; `keep` its tick, if a lease is to be counted from it."""
        self.round += 1
        self.wanted = False
        if keep:
            self.sent.append((self.round, tick))
        return self.round

    def confirm(self, upto: int) -> list[WaitingRead]:
        """A quorum answered round `upto`: the reads that this lets go."""
        if upto <= self.confirmed:
            return []
        assert upto <= self.round, "a round was answered that was never asked"
        self.confirmed = upto
        while self.sent and self.sent[0][0] <= upto:
            self.lease_tick = self.sent.popleft()[1]
        released: list[WaitingRead] = []
        while self.waiting and self.waiting[0].round <= upto:
            released.append(self.waiting.popleft())
        return released
