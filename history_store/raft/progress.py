"""Progress: what the leader believes about one member's log.

Theory of operation. A follower is in one of three states. PROBE: we do not know where its log meets ours;
one append is sent a heartbeat until it answers. REPLICATE: it follows; appends stream without waiting,
`next` runs ahead of the answers, and the window (count and bytes) bounds how far. SNAPSHOT: what it needs
is compacted; nothing is sent until it has the image.

Lineage: Raft section 5.3; etcd-io/raft tracker/. We differ in that a snapshot's end is seen from the
follower's next answer alone, whatever index the image had, since hosting chooses the image. Invariant: 0 <=
match < next.
"""

from __future__ import annotations

from collections import deque
from enum import Enum


class Flow(Enum):
    """How entries reach a member."""

    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    """One member, seen from the leader. Rebuilt whenever somebody becomes leader."""

    __slots__ = (
        "acked_round",
        "flow",
        "match",
        "next",
        "probe_sent",
        "sent_commit",
        "silent_ticks",
        "snapshot_arrived",
        "snapshot_index",
        "snapshot_ticks",
        "window",
        "window_bytes",
    )

    def __init__(self, match: int, following: int) -> None:
        assert 0 <= match < following
        self.match = match  # known to be durable there and equal to ours
        self.next = following  # the first entry not yet sent
        self.flow = Flow.PROBE
        self.probe_sent = False  # PROBE: an append is out; the next heartbeat's answer allows another
        self.sent_commit = 0  # the commit mark of the last append: repeating it would tell nothing
        self.silent_ticks = 0  # since it was last heard; who is new has an election timeout to show itself
        self.acked_round = 0  # the latest heartbeat round it answered
        self.snapshot_index = 0  # SNAPSHOT: which image was asked for
        self.snapshot_ticks = 0  # SNAPSHOT: how long ago
        self.snapshot_arrived = False  # SNAPSHOT: hosting says so; the member's own answer is still to come
        self.window: deque[tuple[int, int]] = deque()  # REPLICATE: (last index, bytes) of unanswered appends
        self.window_bytes = 0

    def _enter(self, flow: Flow) -> None:
        self.flow = flow
        self.probe_sent = False
        self.window.clear()
        self.window_bytes = 0

    def become_probe(self) -> None:
        """Look for the place where the logs meet, from what is known to match."""
        after_snapshot = self.snapshot_index if self.flow is Flow.SNAPSHOT else 0
        self._enter(Flow.PROBE)
        self.next = max(self.match, after_snapshot) + 1
        self.snapshot_index = 0

    def become_replicate(self) -> None:
        """Stream from behind the match."""
        self._enter(Flow.REPLICATE)
        self.next = self.match + 1
        self.snapshot_index = 0

    def become_snapshot(self, index: int) -> None:
        """Wait for an image."""
        self._enter(Flow.SNAPSHOT)
        self.snapshot_index = index
        self.snapshot_ticks = 0
        self.snapshot_arrived = False

    def sent(self, last: int, size: int) -> None:
        """An append with entries up to `last` is on its way (`last` < next for an empty one)."""
        if self.flow is Flow.REPLICATE:
            if last >= self.next:
                self.next = last + 1
                self.window.append((last, size))
                self.window_bytes += size
        else:
            assert self.flow is Flow.PROBE, "no appends while an image is on its way"
            self.probe_sent = True

    def answered(self, upto: int) -> None:
        """Free the window of all appends that end at or before `upto`."""
        window = self.window
        while window and window[0][0] <= upto:
            self.window_bytes -= window.popleft()[1]
        assert self.window_bytes >= 0

    def free_oldest(self) -> None:
        """An answer to a heartbeat: let one more append pass, in case the answers to the others were lost."""
        if self.window:
            self.window_bytes -= self.window.popleft()[1]

    def is_paused(self, messages_max: int, bytes_max: int) -> bool:
        """Whether nothing may be sent now."""
        if self.flow is Flow.REPLICATE:
            return len(self.window) >= messages_max or self.window_bytes >= bytes_max
        return self.probe_sent if self.flow is Flow.PROBE else True

    def accepted(self, index: int) -> bool:
        """The member has everything up to `index`. True if that is news."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        return True

    def rejected(self, index: int, following: int) -> bool:
        """The append behind `index` did not fit; try from `following`. False if the answer is an old one."""
        if self.flow is Flow.REPLICATE:
            if index <= self.match:
                return False
            self.next = self.match + 1
            return True
        if self.flow is Flow.SNAPSHOT or self.next - 1 != index:
            return False
        self.next = max(min(index, following), self.match + 1)
        self.probe_sent = False
        return True
