"""What DescribeTaskQueue is told about a queue: who polls, how much waits, how fast it comes and goes.

Rates are averages over the last 30 seconds, in 5-second buckets, as Temporal's are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

RATE_BUCKET_NS = 5_000_000_000
RATE_WINDOW_NS = 30_000_000_000
RATE_BUCKETS = RATE_WINDOW_NS // RATE_BUCKET_NS + 1  # one more than the window: the newest is not full yet

# What Temporal reports for a worker that asked for no limit.
DEFAULT_RATE_PER_SECOND = 100_000.0

assert RATE_WINDOW_NS % RATE_BUCKET_NS == 0


class Rate:
    """Counts events and tells how many a second there were lately.

    `count` and `bucket_end_ns` are public so that a hot path can count without a call:
    `if now_ns >= rate.bucket_end_ns: rate.advance(now_ns)`, then `rate.count += 1`.
    """

    __slots__ = ("_buckets", "_started_ns", "bucket_end_ns", "count")

    def __init__(self, now_ns: int) -> None:
        self.count = 0  # events in the bucket that is being filled
        self.bucket_end_ns = now_ns + RATE_BUCKET_NS
        self._started_ns = now_ns
        self._buckets: list[int] = []  # full buckets, oldest first, at most RATE_BUCKETS - 1

    def add(self, now_ns: int) -> None:
        """Count one event."""
        if now_ns >= self.bucket_end_ns:
            self.advance(now_ns)
        self.count += 1

    def advance(self, now_ns: int) -> None:
        """Close the buckets that ended before `now_ns`."""
        elapsed = (now_ns - self.bucket_end_ns) // RATE_BUCKET_NS + 1
        if elapsed <= 0:
            return
        self._buckets.append(self.count)
        self._buckets.extend([0] * min(elapsed - 1, RATE_BUCKETS))
        del self._buckets[: -(RATE_BUCKETS - 1)]
        self.count = 0
        self.bucket_end_ns += elapsed * RATE_BUCKET_NS

    def per_second(self, now_ns: int) -> float:
        """Events a second, over the window or since the first event if that is less."""
        self.advance(now_ns)
        in_bucket_ns = now_ns - (self.bucket_end_ns - RATE_BUCKET_NS)
        elapsed_ns = min(in_bucket_ns + RATE_WINDOW_NS, now_ns - self._started_ns)
        if elapsed_ns <= 0:
            return 0.0
        return (sum(self._buckets) + self.count) * 1e9 / elapsed_ns


@dataclass(frozen=True, slots=True)
class PollerInfo:
    """One worker that polled lately, by its identity."""

    identity: str
    last_access_ns: int
    rate_per_second: float
    versioning: object


@dataclass(frozen=True, slots=True)
class QueueStats:
    """A queue at one moment. Counts and ages are approximate: a void task counts until somebody tries it."""

    pollers: list[PollerInfo]
    backlog_count: int
    backlog_age_ns: int  # age of the task at the head; 0 without a backlog
    tasks_add_rate: float  # a second
    tasks_dispatch_rate: float  # a second


def merge(parts: Iterable[QueueStats]) -> QueueStats:
    """A queue as all nodes know it: each tells of the tasks of its shards and the polls of its clients."""
    pollers: dict[str, PollerInfo] = {}
    count, age_ns, added, dispatched = 0, 0, 0.0, 0.0
    for part in parts:
        for poller in part.pollers:
            known = pollers.get(poller.identity)
            if known is None or known.last_access_ns < poller.last_access_ns:
                pollers[poller.identity] = poller
        count += part.backlog_count
        age_ns = max(age_ns, part.backlog_age_ns)
        added += part.tasks_add_rate
        dispatched += part.tasks_dispatch_rate
    return QueueStats(list(pollers.values()), count, age_ns, added, dispatched)
