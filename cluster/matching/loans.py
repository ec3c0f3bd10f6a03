"""What a node keeps of its exchange of tasks with the others: their polls, the loans, what it told them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from cluster.matching.contract import NodeId, Poller, QueueKey, Task

if TYPE_CHECKING:
    from cluster.matching.exchange import Exchange
    from cluster.matching.task_queue import Queue

RAISE_NEVER = 1 << 60


class Peer:
    """Another node, from one `peer_up` or hello to the next loss of messages."""

    __slots__ = ("ack_waits", "acked", "borrowed", "lent", "node", "pollers", "received", "unacked")

    def __init__(self, node: NodeId) -> None:
        self.node = node
        self.pollers: dict[QueueKey, PeerPoller] = {}  # the queues that its workers poll
        self.lent: dict[int, tuple[Task, PeerPoller]] = {}  # by loan id: tasks it has not started yet
        self.borrowed: dict[int, BorrowedTask] = {}  # by its loan id: those that wait for a poll of ours
        # Started tasks sent to it whose reception it has not told: (number, receipt), numbers ascending.
        self.unacked: deque[tuple[int, object]] = deque()
        self.received = 0  # number of the latest started task it sent us
        self.acked = 0  # the number we told it last
        self.ack_waits = False  # a timer will tell it


class PeerPoller:
    """The polls of one queue at another node."""

    __slots__ = ("credit", "idle", "key", "lent", "node", "peer", "queue", "sticky")

    def __init__(self, peer: Peer, queue: Queue, sticky: bool) -> None:
        self.peer = peer
        self.node = peer.node
        self.queue = queue
        self.key = queue.key
        self.sticky = sticky
        self.credit = 0  # how many tasks it may be lent at once
        self.lent = 0  # how many it is lent and has neither started nor refused
        self.idle = 0  # how many polls wait there for nothing, less what we sent since; an estimate


class BorrowedTask:
    """A task of another node that may be given to a poll of ours, if that node agrees when the time comes."""

    __slots__ = (
        "arrived_ns",
        "created_ns",
        "exchange",
        "loan_id",
        "node",
        "priority",
        "queue",
        "sequence",
    )

    durable = False

    def __init__(
        self,
        exchange: Exchange,
        node: NodeId,
        loan_id: int,
        queue: QueueKey,
        priority: int,
        sequence: int,
        created_ns: int,
        arrived_ns: int,
    ) -> None:
        self.exchange = exchange
        self.node = node
        self.loan_id = loan_id
        self.queue = queue
        self.priority = priority
        self.sequence = sequence
        self.created_ns = created_ns
        self.arrived_ns = arrived_ns

    def start(self, poller: Poller) -> bool:
        """Ask its node to start it for this poll, which waits for the outcome outside the queue."""
        return self.exchange.matched(self, poller)

    def reroute(self) -> None:
        """Its worker is gone: its node decides what becomes of it."""
        self.exchange.refuse(self)


class Told:
    """What one node believes of our polls of one queue."""

    __slots__ = ("credit", "idle")

    def __init__(self) -> None:
        self.credit = -1  # -1: it does not know that the queue is polled here
        self.idle = 0  # how many polls we said wait for nothing


class Demand:
    """Our polls of one queue, as the other nodes see them. It is there while a worker of ours is alive."""

    __slots__ = ("noticed", "polled_ns", "queue", "quiet", "raise_at", "sticky", "told")

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.sticky = queue.sticky
        self.told: dict[NodeId, Told] = {}  # every peer that is up
        self.raise_at = 0  # with so many polls waiting, some node is to be told a larger credit
        self.quiet = False  # some node believes that no poll waits here
        self.noticed = False  # a timer will look whether that is so
        self.polled_ns = 0  # when a poll last came


class Awaiting:
    """A poll of ours for which another node is starting a task."""

    __slots__ = ("key", "node", "poller", "sticky")

    def __init__(self, poller: Poller, key: QueueKey, sticky: bool, node: NodeId) -> None:
        self.poller: Poller | None = poller  # None: nobody waits for it any more
        self.key = key
        self.sticky = sticky
        self.node = node
