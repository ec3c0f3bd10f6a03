"""The dispatch limit that a worker asks for its whole queue: a token bucket.

A queue's limit is the one its latest poll named (PollActivityTaskQueue.task_queue_metadata), as in Temporal.
The bucket holds one second's worth, at least one task, so that a slow limit still lets single tasks through.
"""

from __future__ import annotations

import math

SECOND_NS = 1_000_000_000
WAIT_NS_MAX = (
    60 * SECOND_NS
)  # look again after this at the latest: a limit of zero may be lifted by a later poll


class Throttle:
    """Tokens that come back at `rate` a second, at most `burst` of them."""

    __slots__ = ("_at_ns", "_tokens", "burst", "rate", "waiting")

    def __init__(self, rate: float, now_ns: int) -> None:
        self.rate = rate
        self.burst = float(max(1, math.ceil(rate)))
        self._tokens = self.burst
        self._at_ns = now_ns
        self.waiting = False  # a wake-up is on its way

    def set(self, rate: float, now_ns: int) -> None:
        """A poll names another limit: what is in the bucket stays, up to the new burst."""
        if rate == self.rate:
            return
        self._refill(now_ns)
        self.rate = rate
        self.burst = float(max(1, math.ceil(rate)))
        self._tokens = min(self._tokens, self.burst)

    def wait_ns(self, now_ns: int) -> int:
        """How long until a task may be dispatched (0: now)."""
        self._refill(now_ns)
        if self.rate <= 0:
            return WAIT_NS_MAX
        if self._tokens >= 1:
            return 0
        return min(WAIT_NS_MAX, max(1, math.ceil((1 - self._tokens) / self.rate * SECOND_NS)))

    def take(self) -> None:
        """A task was dispatched."""
        self._tokens -= 1

    def give_back(self) -> None:
        """What was dispatched turned out void."""
        self._tokens = min(self.burst, self._tokens + 1)

    @property
    def available(self) -> int:
        """How many tasks may be dispatched at once, as of the last look at the clock."""
        return max(0, int(self._tokens))

    def _refill(self, now_ns: int) -> None:
        passed = max(0, now_ns - self._at_ns)
        self._at_ns = max(now_ns, self._at_ns)
        self._tokens = min(self.burst, self._tokens + passed / SECOND_NS * self.rate)
