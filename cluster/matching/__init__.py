"""Task queues: who waits for work, who gets it."""

from cluster.matching.broker import Matching
from cluster.matching.contract import (
    Clock,
    Connection,
    Host,
    NodeId,
    Poller,
    QueueKey,
    QueueKind,
    Source,
    Task,
)
from cluster.matching.exchange import Exchange
from cluster.matching.stats import PollerInfo, QueueStats

__all__ = [
    "Clock",
    "Connection",
    "Exchange",
    "Host",
    "Matching",
    "NodeId",
    "Poller",
    "PollerInfo",
    "QueueKey",
    "QueueKind",
    "QueueStats",
    "Source",
    "Task",
]
