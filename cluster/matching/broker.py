"""The broker: hands each task to a worker that waits, and keeps what cannot be handed over yet.

Theory of operation. A queue is two ordered things: pollers in the order they came, and tasks by
(priority, sequence). While both are non-empty there is work to do, and `_match_one` does one piece of it.
Everything else only adds or removes pollers and tasks.

*Pollers are served longest-waiting first.* Newest-first would keep one worker's caches warm, but it also
gives nearly everything to whichever process re-polls fastest while others idle, and what gains from a warm
cache (the next workflow task of a run) goes to a sticky queue anyway. It is Temporal's order too.

*Memory holds a window, the shards hold the queue.* A durable task is a row of its shard until it is started,
so memory may forget it. Invariant: in a queue that is not `overflowed`, the window holds every durable task;
in one that is, every durable task outside the window comes after all those inside. Hence an overflowed queue
admits an offered task only in front of its last one, and refills from the source when it runs low. A queue
that was just made is overflowed: nobody has asked the shards yet. So a restart costs nothing until somebody
polls, and a backlog nobody polls costs no memory.

*Starting a task may call back* (an offer, a poll, a closed connection). Calls made meanwhile only record what
they bring and mark the queue; the outermost call goes on with marked queues in turn, one match each, so that
depth is constant and no queue starves another.

Not here: deadlines of polls (the caller cancels), which worker version may take a task, anything on disk.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable

from cluster.matching.contract import Clock, Connection, Poller, QueueKey, Source, Task
from cluster.matching.stats import DEFAULT_RATE_PER_SECOND, PollerInfo, QueueStats, Rate
from cluster.matching.throttle import Throttle

WINDOW_TASKS = 1_000  # durable tasks of one queue in memory
WINDOW_LOW_TASKS = 250  # an overflowed queue with fewer asks the source for more
VOLATILE_TASKS = 500  # tasks of one queue that no shard keeps (queries)
HISTORY_POLLERS = 1_000  # identities one queue remembers, as Temporal's poller history does
HISTORY_TTL_NS = 300_000_000_000  # how long DescribeTaskQueue shows a worker after its last poll
LIVE_POLL_NS = 10_000_000_000  # a worker that polled this lately and is still connected is alive, only busy
IDLE_QUEUE_NS = 300_000_000_000  # a queue nobody polled or offered to for this long is forgotten

SHUT_DOWN_TTL_NS = 30_000_000_000  # how long polls of a worker that has shut down are refused
SHUT_DOWN_WORKERS = 10_000  # how many such workers are remembered

assert 0 < WINDOW_LOW_TASKS < WINDOW_TASKS
assert LIVE_POLL_NS < IDLE_QUEUE_NS

_Entry = tuple[int, int, Task]  # (priority, sequence, task): the first two are unique, so tasks never compare


class _Presence:
    """One connection that polled one queue."""

    __slots__ = ("parked", "seen_ns")

    def __init__(self) -> None:
        self.parked: set[Poller] = set()
        self.seen_ns = 0  # when a poll of it was last open, not counting those parked now


class _History:
    """What is remembered of one identity."""

    __slots__ = ("access_ns", "rate_per_second", "versioning")

    def __init__(self) -> None:
        self.access_ns = 0
        self.rate_per_second: float | None = None
        self.versioning: object = None


class _Queue:
    """The state of one queue. It keeps its own lists consistent and never calls out."""

    __slots__ = (
        "active_ns",
        "added",
        "dispatched",
        "history",
        "key",
        "marked",
        "overflowed",
        "parked",
        "presences",
        "sticky",
        "taken",
        "throttle",
        "volatile",
        "window",
    )

    def __init__(self, key: QueueKey, now_ns: int) -> None:
        self.key = key
        self.window: list[_Entry] = []  # durable tasks, sorted; at most WINDOW_TASKS
        self.volatile: list[_Entry] = []  # the others, sorted; at most VOLATILE_TASKS
        self.overflowed = True  # the source may have durable tasks that the window has not
        # Sequences handed out or found void while overflowed: a source that lags behind may name them again.
        self.taken: set[int] = set()
        self.parked: OrderedDict[Poller, _Presence] = OrderedDict()  # longest-waiting first
        self.presences: dict[Connection, _Presence] = {}  # of open connections only
        self.history: OrderedDict[str, _History] = OrderedDict()  # identity; least recent first
        self.throttle: Throttle | None = None  # the limit that the latest poll asked for
        self.sticky = False
        self.marked = False  # it is in the broker's list of queues to look at
        self.active_ns = now_ns
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
        _insert(self.window if task.durable else self.volatile, task.priority, task.sequence, task)

    def remove(self, task: Task) -> None:
        """Drop a task if it is held."""
        entries = self.window if task.durable else self.volatile
        index = bisect_left(entries, (task.priority, task.sequence))
        if index < len(entries) and entries[index][1] == task.sequence:
            del entries[index]

    def take(self) -> Task | None:
        """Remove and return the first task that is held."""
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
        entries = sorted(self.window + self.volatile, key=_place)
        if self.overflowed:
            self.taken.update(entry[1] for entry in self.window)
        self.window.clear()
        self.volatile.clear()
        return [entry[2] for entry in entries]

    def refill(self, source: Source) -> None:
        """Fetch the head of the queue into the window."""
        taken = self.taken
        limit = WINDOW_TASKS + len(taken)
        fetched = source.fetch(self.key, limit)
        window = self.window
        held = {entry[:2] for entry in window}
        for task in fetched:
            place = (task.priority, task.sequence)
            if place not in held and place[1] not in taken:
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
        presence.parked.discard(poller)
        presence.seen_ns = now_ns
        return True

    def next_poller(self, now_ns: int) -> Poller | None:
        """Remove and return the longest-waiting poller that is still connected."""
        while self.parked:
            poller, presence = self.parked.popitem(last=False)
            presence.parked.discard(poller)
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
            presence.parked.add(poller)

    def remember(self, poller: Poller, now_ns: int) -> None:
        """Note who polled, for DescribeTaskQueue."""
        history = self.history
        identity = poller.identity
        seen = history.get(identity)
        if seen is None:
            seen = history[identity] = _History()
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


class Matching:
    """All task queues of this node. Event-loop only: no method waits."""

    def __init__(
        self,
        source: Source,
        clock: Clock,
        on_queue_abandoned: Callable[[QueueKey], None] | None = None,
        on_throttled: Callable[[QueueKey, int], None] | None = None,
    ) -> None:
        """`on_throttled(queue, ns)`: a limit holds its tasks back; call `resume(queue)` after that time."""
        self._source = source
        self._on_throttled = on_throttled
        self._now_ns = clock.now_ns
        self._on_queue_abandoned = on_queue_abandoned
        self._queues: dict[QueueKey, _Queue] = {}
        # The inner dictionaries are sets that keep their order, so that a seed repeats a run.
        self._queues_by_connection: dict[Connection, dict[_Queue, None]] = {}
        self._shut_down: OrderedDict[str, int] = OrderedDict()  # worker instance key -> until when, in order
        self._running = False  # a call of ours is on the stack: others only record and mark
        self._marked: deque[_Queue] = deque()
        self._in_hand: Poller | None = None  # it is being given a task; None if it was cancelled meanwhile
        self._asking: Poller | None = None  # the poller of the outermost poll call ...
        self._answered = False  # ... and whether a task was started for it

    def __len__(self) -> int:
        return len(self._queues)

    # ------------------------------------------------------------------------------------------- tasks

    def offer(self, task: Task) -> bool:
        """A task is to be given to a worker: now if one waits, else when one comes.

        False: it was refused, because it is not durable and too many such tasks wait already.
        """
        now_ns = self._now_ns()
        queue = self._queues.get(task.queue) or self._make(task.queue, now_ns)
        queue.active_ns = now_ns
        if not queue.admit(task):
            return False
        added = queue.added
        if now_ns >= added.bucket_end_ns:
            added.advance(now_ns)
        added.count += 1
        if queue.parked:
            self._run(queue)
        return True

    def withdraw(self, task: Task) -> None:
        """A task is void without having been started (its run closed, its query timed out)."""
        queue = self._queues.get(task.queue)
        if queue is not None:
            queue.remove(task)

    def resync(self, key: QueueKey | None = None) -> None:
        """The shards hold tasks that were never offered here (this node has just begun to lead a shard)."""
        if key is None:
            queues = list(self._queues.values())
        else:
            found = self._queues.get(key)
            queues = [] if found is None else [found]
        for queue in queues:
            queue.overflowed = True
            # What the window holds need not come first any more: the next refill decides.
            queue.window.clear()
            queue.taken.clear()
            if queue.parked:
                self._run(queue)

    # ----------------------------------------------------------------------------------------- pollers

    def poll(self, key: QueueKey, poller: Poller, sticky: bool = False) -> bool:
        """A worker asks for a task. True: it was given one at once; False: it waits (or is gone already).

        `sticky` says that the queue belongs to one worker process: its tasks are rerouted when that dies.
        """
        connection = poller.connection
        if connection.closed:
            return False
        now_ns = self._now_ns()
        queue = self._queues.get(key) or self._make(key, now_ns)
        queue.active_ns = now_ns
        queue.sticky = sticky
        presence = queue.presences.get(connection)
        if presence is None:
            presence = queue.presences[connection] = _Presence()
            self._queues_by_connection.setdefault(connection, {})[queue] = None
        queue.remember(poller, now_ns)
        rate = poller.rate_per_second
        if rate is not None:
            if queue.throttle is None:
                queue.throttle = Throttle(rate, now_ns)
            else:
                queue.throttle.set(rate, now_ns)
        queue.parked[poller] = presence
        presence.parked.add(poller)
        if not (queue.window or queue.overflowed or queue.volatile):
            return False
        if self._running:
            self._mark(queue)
            return False
        self._asking, self._answered = poller, False
        try:
            self._run(queue)
            return self._answered
        except BaseException:
            queue.unpark(poller, now_ns)  # its call fails; it must not swallow a task later
            raise
        finally:
            self._asking = None

    def cancel_poll(self, key: QueueKey, poller: Poller) -> bool:
        """The poll's client is gone or its time is over. False: it was not waiting (it has its task)."""
        if poller is self._in_hand:
            self._in_hand = None
            return False
        queue = self._queues.get(key)
        return queue is not None and queue.unpark(poller, self._now_ns())

    def cancel_worker_polls(
        self, worker_instance_key: str, namespace_id: str, identity: str = ""
    ) -> list[Poller]:
        """A worker shuts down: its waiting polls end (the caller answers them, empty), and it is forgotten.

        `identity` is the worker's, to be no longer shown in DescribeTaskQueue.
        """
        now_ns = self._now_ns()
        if worker_instance_key:
            self._shut_down[worker_instance_key] = now_ns + SHUT_DOWN_TTL_NS
            self._shut_down.move_to_end(worker_instance_key)
            if len(self._shut_down) > SHUT_DOWN_WORKERS:
                self._shut_down.popitem(last=False)
        cancelled: list[Poller] = []
        for queue in self._queues.values():
            if queue.key.namespace_id != namespace_id:
                continue
            queue.history.pop(identity, None)
            if not worker_instance_key or not queue.parked:
                continue
            leaving = [poller for poller in queue.parked if poller.worker_instance_key == worker_instance_key]
            for poller in leaving:
                queue.unpark(poller, now_ns)
                queue.history.pop(poller.identity, None)
            cancelled += leaving
        return cancelled

    def is_shut_down(self, worker_instance_key: str) -> bool:
        """Whether this worker has shut down lately: a poll of it that was still on its way gets nothing."""
        until_ns = self._shut_down.get(worker_instance_key)
        return until_ns is not None and self._now_ns() < until_ns

    def connection_closed(self, connection: Connection) -> None:
        """A client's connection is gone: so are its polls, and the sticky queues that were only its own."""
        now_ns = self._now_ns()
        for queue in self._queues_by_connection.pop(connection, ()):
            presence = queue.presences.pop(connection)
            for poller in presence.parked:
                del queue.parked[poller]
            if queue.sticky and not queue.live(now_ns):
                self.abandon(queue.key)

    def abandon(self, key: QueueKey) -> None:
        """The worker of a sticky queue is gone for good: its tasks are rerouted, and it is forgotten."""
        queue = self._queues.get(key)
        if queue is None:
            return
        outermost = not self._running
        self._running = True
        try:
            self._reroute_all(queue)
            unused = not queue.parked and not queue.window and not queue.volatile
            if unused and self._queues.get(key) is queue:  # a reroute may have called back
                self._forget(queue)
            if self._on_queue_abandoned is not None:
                self._on_queue_abandoned(key)
            if outermost:
                self._run_marked()
        finally:
            if outermost:
                self._running = False

    def has_live_poller(self, key: QueueKey) -> bool:
        """Whether a worker waits on this queue, or did so lately and is still connected."""
        queue = self._queues.get(key)
        return queue is not None and queue.live(self._now_ns())

    # --------------------------------------------------------------------------------------- knowledge

    def describe(self, key: QueueKey) -> QueueStats:
        """What is known of a queue. Asking does not make one."""
        now_ns = self._now_ns()
        queue = self._queues.get(key)
        overflowed = queue is None or queue.overflowed
        held = [] if queue is None else queue.window
        volatile = [] if queue is None else queue.volatile
        count = len(volatile) + (self._source.count(key) if overflowed else len(held))
        heads = [entries[0][2] for entries in (held, volatile) if entries]
        if overflowed and not held:
            heads += self._source.fetch(key, 1)
        oldest_ns = min((task.created_ns for task in heads), default=now_ns)
        return QueueStats(
            pollers=[] if queue is None else _pollers(queue, now_ns),
            backlog_count=count,
            backlog_age_ns=max(0, now_ns - oldest_ns),
            tasks_add_rate=0.0 if queue is None else queue.added.per_second(now_ns),
            tasks_dispatch_rate=0.0 if queue is None else queue.dispatched.per_second(now_ns),
        )

    def forget_idle(self, now_ns: int) -> int:
        """Forget queues that nobody has used for a while; how many. To be called every minute or so."""
        oldest_ns = now_ns - IDLE_QUEUE_NS
        idle = [
            queue
            for queue in self._queues.values()
            if queue.active_ns <= oldest_ns and not queue.parked and not queue.volatile
        ]
        for queue in idle:
            self._forget(queue)
        while self._shut_down and next(iter(self._shut_down.values())) <= now_ns:
            self._shut_down.popitem(last=False)
        return len(idle)

    # --------------------------------------------------------------------------------------- the engine

    def _make(self, key: QueueKey, now_ns: int) -> _Queue:
        queue = self._queues[key] = _Queue(key, now_ns)
        return queue

    def _forget(self, queue: _Queue) -> None:
        """Durable tasks in its window are not lost: the next poll finds them in their shards."""
        del self._queues[queue.key]
        for connection in queue.presences:
            queues = self._queues_by_connection.get(connection)
            if queues is not None:
                queues.pop(queue, None)
                if not queues:
                    del self._queues_by_connection[connection]

    def _mark(self, queue: _Queue) -> None:
        if not queue.marked:
            queue.marked = True
            self._marked.append(queue)

    def _run(self, queue: _Queue) -> None:
        """Match what can be matched, unless a call further up the stack will."""
        self._mark(queue)
        if self._running:
            return
        self._running = True
        try:
            self._run_marked()
        finally:
            self._running = False

    def _run_marked(self) -> None:
        marked = self._marked
        while marked:
            queue = marked.popleft()
            queue.marked = False
            if self._match_one(queue) and queue.parked:
                self._mark(queue)

    def _match_one(self, queue: _Queue) -> bool:
        """Start the first task for the longest-waiting poller. False: there is no task, or no poller."""
        if queue.overflowed and len(queue.window) < WINDOW_LOW_TASKS:
            queue.refill(self._source)
        if not queue.window and not queue.volatile:
            return False
        if queue.throttle is not None and self._throttled(queue, queue.throttle):
            return False
        poller = queue.next_poller(self._now_ns())
        if poller is None:
            return False
        self._in_hand = poller
        while True:
            task = queue.take()
            if task is None:
                break
            try:
                started = task.start(poller)
            except BaseException:
                queue.restore(task)
                if self._in_hand is not None:
                    queue.repark(poller)
                    self._in_hand = None
                raise
            if started:
                self._in_hand = None
                if poller is self._asking:
                    self._answered = True
                queue.dispatched.add(self._now_ns())
                if queue.throttle is not None:
                    queue.throttle.take()
                return True
            if self._in_hand is None:
                return True  # it was cancelled meanwhile
            if queue.overflowed and len(queue.window) < WINDOW_LOW_TASKS:
                queue.refill(self._source)
        self._in_hand = None
        queue.repark(poller)
        return False

    def _throttled(self, queue: _Queue, throttle: Throttle) -> bool:
        """Whether the queue's limit holds its tasks back; if so, a wake-up is asked for."""
        wait_ns = throttle.wait_ns(self._now_ns())
        if wait_ns and not throttle.waiting and queue.parked and self._on_throttled is not None:
            throttle.waiting = True
            self._on_throttled(queue.key, wait_ns)
        return wait_ns > 0

    def resume(self, key: QueueKey) -> None:
        """The time is over for which a limit held the queue back."""
        queue = self._queues.get(key)
        if queue is not None and queue.throttle is not None:
            queue.throttle.waiting = False
            if queue.parked:
                self._run(queue)

    def _reroute_all(self, queue: _Queue) -> None:
        while True:
            if queue.overflowed:
                queue.refill(self._source)
            tasks = queue.take_all()
            for task in tasks:
                task.reroute()
            if not queue.overflowed or not tasks:
                return


def _pollers(queue: _Queue, now_ns: int) -> list[PollerInfo]:
    oldest_ns = now_ns - HISTORY_TTL_NS
    return [
        PollerInfo(
            identity=identity,
            last_access_ns=seen.access_ns,
            rate_per_second=DEFAULT_RATE_PER_SECOND if seen.rate_per_second is None else seen.rate_per_second,
            versioning=seen.versioning,
        )
        for identity, seen in queue.history.items()
        if seen.access_ns > oldest_ns
    ]
