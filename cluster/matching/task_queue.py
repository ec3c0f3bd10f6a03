"""One task queue: its tasks, its pollers, and what is remembered of both.

*Memory holds a window, the shards hold the queue.* A durable task is a row of its shard until it is started,
so memory may forget it. Invariant: in a queue that is not `overflowed`, the window holds every durable task;
in one that is, every durable task outside the window comes after all those inside. Hence an overflowed queue
admits an offered task only in front of its last one, and refills from the source when it runs low. A queue
that was just made is overflowed: nobody has asked the shards yet. So a restart costs nothing until somebody
polls, and a backlog nobody polls costs no memory.

With tasks lent to other nodes the invariant is: the window holds every durable task that is not lent.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from typing import TYPE_CHECKING

from cluster.matching.contract import Connection, NodeId, Poller, QueueKey, Source, Task
from cluster.matching.loans import BorrowedTask
from cluster.matching.stats import DEFAULT_RATE_PER_SECOND, PollerInfo, Rate
from cluster.matching.throttle import Throttle

if TYPE_CHECKING:
    from cluster.matching.loans import Demand, PeerPoller

WINDOW_TASKS = 1_000  # durable tasks of one queue in memory
WINDOW_LOW_TASKS = 250  # an overflowed queue with fewer asks the source for more
VOLATILE_TASKS = 500  # tasks of one queue that no shard keeps (queries)
HISTORY_POLLERS = 1_000  # identities one queue remembers, as Temporal's poller history does
HISTORY_TTL_NS = 300_000_000_000  # how long DescribeTaskQueue shows a worker after its last poll
LIVE_POLL_NS = 10_000_000_000  # a worker that polled this lately and is still connected is alive, only busy

assert 0 < WINDOW_LOW_TASKS < WINDOW_TASKS

_Entry = tuple[int, int, Task]  # (priority, sequence, task): the first two are unique, so tasks never compare


class Presence:
    """One connection that polled one queue."""

    __slots__ = ("parked", "seen_ns")

    def __init__(self) -> None:
        self.parked: dict[Poller, None] = {}
        self.seen_ns = 0  # when a poll of it was last open, not counting those parked now


class History:
    """What is remembered of one identity."""

    __slots__ = ("access_ns", "rate_per_second", "versioning")

    def __init__(self) -> None:
        self.access_ns = 0
        self.rate_per_second: float | None = None
        self.versioning: object = None


class Queue:
    """The state of one queue. It keeps its own lists consistent and never calls out."""

    __slots__ = (
        "active_ns",
        "added",
        "borrowed",
        "demand",
        "dispatched",
        "history",
        "key",
        "lent",
        "marked",
        "overflowed",
        "parked",
        "peers",
        "presences",
        "rate_per_second",
        "sticky",
        "taken",
        "throttle",
        "volatile",
        "waits",
        "window",
    )

    def __init__(self, key: QueueKey, now_ns: int) -> None:
        self.key = key
        self.window: list[_Entry] = []  # durable tasks, sorted; at most WINDOW_TASKS
        self.volatile: list[_Entry] = []  # the others, sorted; at most VOLATILE_TASKS
        self.overflowed = True  # the source may have durable tasks that the window has not
        # Sequences handed out or found void while overflowed: a source that lags behind may name them again.
        self.taken: set[int] = set()
        self.parked: OrderedDict[Poller, Presence] = OrderedDict()  # longest-waiting first
        self.presences: dict[Connection, Presence] = {}  # of open connections only
        self.history: OrderedDict[str, History] = OrderedDict()  # identity; least recent first
        self.throttle: Throttle | None = None  # this node's share of the limit that the latest poll asked for
        self.rate_per_second = 0.0  # that limit, for the whole region
        self.sticky = False
        self.waits = False  # a task could not be started: matched again a little later
        self.marked = False  # it is in the broker's list of queues to look at
        self.active_ns = now_ns
        self.peers: dict[NodeId, PeerPoller] = {}  # pollers of other nodes; the one to be served next first
        self.lent: set[int] = set()  # sequences of tasks that other nodes hold for now
        self.borrowed: list[tuple[int, int, BorrowedTask]] = []  # other nodes' tasks, sorted
        self.demand: Demand | None = None  # what the other nodes were told of our polls
        self.added = Rate(now_ns)
        self.dispatched = Rate(now_ns)

    def admit(self, task: Task) -> bool:
        """Take a task in, or leave a durable one to its shard. False: no room for one that no shard keeps."""
        priority, sequence = task.priority, task.sequence
        if not task.durable:
            if len(self.volatile) >= VOLATILE_TASKS:
                return False
            _insert(self.volatile, priority, sequence, task)
            return True
        window = self.window
        if self.overflowed:
            self.taken.discard(sequence)
            if not window or (priority, sequence) > window[-1][:2]:
                return True  # others that the window has not may come before it
        _insert(window, priority, sequence, task)
        if len(window) > WINDOW_TASKS:
            window.pop()
            self.overflowed = True
        return True

    def restore(self, task: Task) -> None:
        """Put back a task that was taken but could not be tried."""
        self.taken.discard(task.sequence)
        if isinstance(task, BorrowedTask):
            self.borrow(task)
        else:
            _insert(self.window if task.durable else self.volatile, task.priority, task.sequence, task)

    def remove(self, task: Task) -> None:
        """Drop a task if it is held."""
        entries = self.window if task.durable else self.volatile
        index = bisect_left(entries, (task.priority, task.sequence))
        if index < len(entries) and entries[index][1] == task.sequence:
            del entries[index]

    def take(self) -> Task | None:
        """Remove and return the first task that is held."""
        borrowed = self.borrowed
        if borrowed:
            place = borrowed[0][:2]
            if not (self.window and self.window[0][:2] < place) and not (
                self.volatile and self.volatile[0][:2] < place
            ):
                return borrowed.pop(0)[2]
        return self.take_own()

    def take_own(self) -> Task | None:
        """Remove and return the first task that is this node's own."""
        window, volatile = self.window, self.volatile
        if volatile and (not window or volatile[0][:2] < window[0][:2]):
            return volatile.pop(0)[2]
        if not window:
            return None
        _, sequence, task = window.pop(0)
        if self.overflowed:
            self.taken.add(sequence)
        return task

    def take_all(self) -> list[Task]:
        """Remove and return everything that is held, in order."""
        entries = sorted([*self.window, *self.volatile, *self.borrowed], key=_place)
        if self.overflowed:
            self.taken.update(entry[1] for entry in self.window)
        self.window.clear()
        self.volatile.clear()
        self.borrowed.clear()
        return [entry[2] for entry in entries]

    def refill(self, source: Source) -> None:
        """Fetch the head of the queue into the window."""
        taken, lent = self.taken, self.lent
        limit = WINDOW_TASKS + len(taken) + len(lent)
        fetched = source.fetch(self.key, limit)
        window = self.window
        held = {entry[:2] for entry in window}
        for task in fetched:
            place = (task.priority, task.sequence)
            if place not in held and place[1] not in taken and place[1] not in lent:
                window.append((*place, task))
        # What is held but was not named stays: its start tells whether it is void.
        window.sort(key=_place)
        self.overflowed = len(fetched) >= limit or len(window) > WINDOW_TASKS
        del window[WINDOW_TASKS:]
        if self.overflowed:
            taken.intersection_update([task.sequence for task in fetched])
        else:
            taken.clear()

    def unpark(self, poller: Poller, now_ns: int) -> bool:
        """Forget that a poller waits. False: it did not."""
        presence = self.parked.pop(poller, None)
        if presence is None:
            return False
        presence.parked.pop(poller, None)
        presence.seen_ns = now_ns
        return True

    def next_poller(self, now_ns: int) -> Poller | None:
        """Remove and return the longest-waiting poller that is still connected."""
        while self.parked:
            poller, presence = self.parked.popitem(last=False)
            presence.parked.pop(poller, None)
            presence.seen_ns = now_ns
            if not poller.connection.closed:
                return poller
        return None

    def repark(self, poller: Poller) -> None:
        """Put a poller that got nothing back to the front, if its connection is still there."""
        presence = self.presences.get(poller.connection)
        if presence is not None:
            self.parked[poller] = presence
            self.parked.move_to_end(poller, last=False)
            presence.parked[poller] = None

    def next_peer(self) -> PeerPoller | None:
        """The node to lend a task to: one with idle polls, in turn.

        If no worker is connected to this node, one whose polls are all busy will do: the task then waits in
        that node's order, instead of behind every task of that node.
        """
        found = None
        for peer in self.peers.values():
            if peer.lent < peer.credit:
                if peer.idle > 0:
                    found = peer
                    break
                if found is None and not self.presences:
                    found = peer
        if found is not None and len(self.peers) > 1:
            del self.peers[found.node]
            self.peers[found.node] = found
        return found

    def borrow(self, task: BorrowedTask) -> None:
        """Take in another node's task. Where two nodes' tasks share a place, the first to come is first."""
        insort(self.borrowed, (task.priority, task.sequence, task), key=_place)

    def unborrow(self, task: BorrowedTask) -> None:
        """Drop a borrowed task if it is held. Its place may be another node's task's too."""
        borrowed = self.borrowed
        index = bisect_left(borrowed, (task.priority, task.sequence), key=_place)
        while index < len(borrowed) and borrowed[index][1] == task.sequence:
            if borrowed[index][2] is task:
                del borrowed[index]
                return
            index += 1

    def remember(self, poller: Poller, now_ns: int) -> None:
        """Note who polled, for DescribeTaskQueue."""
        history = self.history
        identity = poller.identity
        seen = history.get(identity)
        if seen is None:
            seen = history[identity] = History()
            if len(history) > HISTORY_POLLERS:
                history.popitem(last=False)
        else:
            history.move_to_end(identity)
        seen.access_ns = now_ns
        seen.rate_per_second = poller.rate_per_second
        seen.versioning = poller.versioning

    def live(self, now_ns: int) -> bool:
        """Whether a worker waits here, or did so lately on a connection that is still open."""
        oldest_ns = now_ns - LIVE_POLL_NS
        return any(
            (presence.parked or presence.seen_ns > oldest_ns) and not connection.closed
            for connection, presence in self.presences.items()
        )

    def runs_low(self) -> bool:
        """Whether an overflowed queue is to ask the source for more."""
        return len(self.window) < WINDOW_LOW_TASKS

    @property
    def unused(self) -> bool:
        """Whether nothing would be lost with it that no shard keeps."""
        return not (self.parked or self.volatile or self.borrowed or self.lent or self.peers)

    def pollers(self, now_ns: int) -> list[PollerInfo]:
        """Who polled lately."""
        oldest_ns = now_ns - HISTORY_TTL_NS
        return [
            PollerInfo(
                identity=identity,
                last_access_ns=seen.access_ns,
                rate_per_second=(
                    DEFAULT_RATE_PER_SECOND if seen.rate_per_second is None else seen.rate_per_second
                ),
                versioning=seen.versioning,
            )
            for identity, seen in self.history.items()
            if seen.access_ns > oldest_ns
        ]


def _place(entry: _Entry) -> tuple[int, int]:
    return entry[:2]


def _insert(entries: list[_Entry], priority: int, sequence: int, task: Task) -> None:
    """Insert in order; a task that is there already is left alone."""
    place = (priority, sequence)
    if not entries or entries[-1][:2] < place:
        entries.append((priority, sequence, task))
        return
    index = bisect_left(entries, place)
    if entries[index][:2] != place:
        entries.insert(index, (priority, sequence, task))
