"""Task queues: who waits for work, who gets it."""

from cluster.matching.broker import Matching
from cluster.matching.contract import Clock, Connection, Poller, QueueKey, QueueKind, Source, Task
from cluster.matching.stats import PollerInfo, QueueStats

__all__ = [
    "Clock",
    "Connection",
    "Matching",
    "Poller",
    "PollerInfo",
    "QueueKey",
    "QueueKind",
    "QueueStats",
    "Source",
    "Task",
]
