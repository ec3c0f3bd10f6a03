"""The broker: hands each task to a worker that waits, and keeps what cannot be handed over yet.

Theory of operation. A queue is two ordered things: pollers in the order they came, and tasks by
(priority, sequence). While both are non-empty there is work to do, and `_match_one` does one piece of it.
Everything else only adds or removes pollers and tasks.

*Pollers are served longest-waiting first.* Newest-first would keep one worker's caches warm, but it also
gives nearly everything to whichever process re-polls fastest while others idle, and what gains from a warm
cache (the next workflow task of a run) goes to a sticky queue anyway. It is Temporal's order too.

*Starting a task may call back* (an offer, a poll, a closed connection). Calls made meanwhile only record what
they bring and mark the queue; the outermost call goes on with marked queues in turn, one match each, so that
depth is constant and no queue starves another.

*In a region* (`exchange.py`) a queue may also have pollers of other nodes, which are lent its tasks when no
poller of this node waits, and tasks borrowed from other nodes, which only pollers of this node are given.

What one queue holds, and what it leaves to the shards, is in `task_queue.py`.

Not here: deadlines of polls (the caller cancels), which worker version may take a task, anything on disk.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from cluster.matching.contract import Clock, Connection, NotNow, Poller, QueueKey, Source, Task
from cluster.matching.stats import QueueStats
from cluster.matching.task_queue import LIVE_POLL_NS, Presence, Queue
from cluster.matching.throttle import Throttle

if TYPE_CHECKING:
    from cluster.matching.exchange import Exchange

IDLE_QUEUE_NS = 300_000_000_000  # a queue nobody polled or offered to for this long is forgotten

AGAIN_NS = 250_000_000  # until a queue is looked at again whose task could not be started

SHUT_DOWN_TTL_NS = 30_000_000_000  # how long polls of a worker that has shut down are refused
SHUT_DOWN_WORKERS = 10_000  # how many such workers are remembered

assert LIVE_POLL_NS < IDLE_QUEUE_NS


class Matching:
    """All task queues of this node. Event-loop only: no method waits."""

    def __init__(
        self,
        source: Source,
        clock: Clock,
        on_queue_abandoned: Callable[[QueueKey], None] | None = None,
        on_throttled: Callable[[QueueKey, int], None] | None = None,
    ) -> None:
        """`on_throttled(queue, ns)`: its tasks are held back; call `resume(queue)` after that time."""
        self._source = source
        self._on_throttled = on_throttled
        self._now_ns = clock.now_ns
        self._on_queue_abandoned = on_queue_abandoned
        self._queues: dict[QueueKey, Queue] = {}
        # The inner dictionaries are sets that keep their order, so that a seed repeats a run.
        self._queues_by_connection: dict[Connection, dict[Queue, None]] = {}
        self._shut_down: OrderedDict[str, int] = OrderedDict()  # worker instance key -> until when, in order
        self.exchange: Exchange | None = None  # the other nodes; None while there are none
        self._running = False  # a call of ours is on the stack: others only record and mark
        self._marked: deque[Queue] = deque()
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
        if queue.parked or queue.peers:
            self._run(queue)
        return True

    def withdraw(self, task: Task) -> None:
        """A task is void without having been started (its run closed, its query timed out)."""
        queue = self._queues.get(task.queue)
        if queue is not None:
            queue.remove(task)
        if self.exchange is not None:
            self.exchange.withdrawn(task)

    def drop(self, void: Callable[[Task], bool]) -> None:
        """Forget the tasks for which `void` is true: their shard is led elsewhere now."""
        for queue in self._queues.values():
            for entries in (queue.window, queue.volatile):
                if any(void(entry[2]) for entry in entries):
                    entries[:] = [entry for entry in entries if not void(entry[2])]

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
            if queue.parked or queue.peers:
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
            presence = queue.presences[connection] = Presence()
            self._queues_by_connection.setdefault(connection, {})[queue] = None
        queue.remember(poller, now_ns)
        rate = poller.rate_per_second
        if rate is not None:
            self._limit(queue, rate, now_ns)
        queue.parked[poller] = presence
        presence.parked[poller] = None
        exchange = self.exchange
        if self._running or not (queue.window or queue.overflowed or queue.volatile or queue.borrowed):
            if self._running:
                self._mark(queue)
            if exchange is not None:
                exchange.polled(queue, now_ns)
            return False
        self._asking, self._answered = poller, False
        try:
            self._run(queue)
            if exchange is not None:
                exchange.polled(queue, now_ns)
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
        if queue is not None and queue.unpark(poller, self._now_ns()):
            return True
        if self.exchange is not None:
            self.exchange.poll_gone(poller)
        return False

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
        if self.exchange is not None and worker_instance_key:
            cancelled += self.exchange.worker_gone(worker_instance_key, namespace_id)
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
            if queue.live(now_ns):
                continue
            if self.exchange is not None:
                self.exchange.absent(queue)
            if queue.sticky and not self.has_live_poller(queue.key):
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
            if not queue.parked and self._queues.get(key) is queue:  # a reroute may have called back
                if queue.unused and not queue.window:
                    self._forget(queue)
                elif self.exchange is not None:
                    self._forget_workers(queue)
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
        if queue is not None and queue.live(self._now_ns()):
            return True
        return self.exchange is not None and self.exchange.is_present(key)

    # --------------------------------------------------------------------------------------- knowledge

    def describe(self, key: QueueKey) -> QueueStats:
        """What is known of a queue. Asking does not make one."""
        now_ns = self._now_ns()
        queue = self._queues.get(key)
        overflowed = queue is None or queue.overflowed
        held = [] if queue is None else queue.window
        volatile = [] if queue is None else queue.volatile
        count = len(volatile) + (self._source.count(key) if overflowed else len(held))
        if queue is not None and not overflowed:
            count += len(queue.lent)
        heads = [entries[0][2] for entries in (held, volatile) if entries]
        if overflowed and not held:
            heads += self._source.fetch(key, 1)
        oldest_ns = min((task.created_ns for task in heads), default=now_ns)
        return QueueStats(
            pollers=[] if queue is None else queue.pollers(now_ns),
            backlog_count=count,
            backlog_age_ns=max(0, now_ns - oldest_ns),
            tasks_add_rate=0.0 if queue is None else queue.added.per_second(now_ns),
            tasks_dispatch_rate=0.0 if queue is None else queue.dispatched.per_second(now_ns),
        )

    def forget_idle(self, now_ns: int) -> int:
        """Forget queues that nobody has used for a while; how many. To be called every minute or so."""
        oldest_ns = now_ns - IDLE_QUEUE_NS
        idle = [queue for queue in self._queues.values() if queue.active_ns <= oldest_ns and queue.unused]
        for queue in idle:
            self._forget(queue)
        while self._shut_down and next(iter(self._shut_down.values())) <= now_ns:
            self._shut_down.popitem(last=False)
        return len(idle)

    # --------------------------------------------------------------------- other nodes, for the exchange

    def queue(self, key: QueueKey) -> Queue:
        """A queue, made if it is not there."""
        return self._queues.get(key) or self._make(key, self._now_ns())

    def polled_queues(self) -> list[Queue]:
        """The queues that a worker of this node polls."""
        now_ns = self._now_ns()
        return [queue for queue in self._queues.values() if queue.live(now_ns)]

    def match(self, queue: Queue) -> None:
        """Match what can be matched: another node has room for a task, or a task was borrowed."""
        if queue.window or queue.overflowed or queue.volatile or queue.borrowed:
            self._run(queue)

    def take_back(self, queue: Queue, tasks: Iterable[Task]) -> None:
        """Tasks that were lent wait here again."""
        for task in tasks:
            queue.lent.discard(task.sequence)
            if task.durable:
                queue.admit(task)
            else:
                queue.restore(task)
        if queue.parked or queue.peers:
            self._run(queue)

    def take_back_poll(self, key: QueueKey, poller: Poller, sticky: bool) -> None:
        """A poll that was given a task which turned out void waits again, before all others."""
        queue = self._queues.get(key)
        if queue is None or poller.connection not in queue.presences:
            self.poll(key, poller, sticky)  # its queue was forgotten meanwhile
            return
        if queue.throttle is not None:
            queue.throttle.give_back()
        queue.repark(poller)
        self.match(queue)
        if self.exchange is not None:
            self.exchange.polled(queue, self._now_ns())

    def share_limit(self, queue: Queue, nodes: int) -> None:
        """The queue's limit is shared by so many nodes."""
        if queue.throttle is not None:
            queue.throttle.set(queue.rate_per_second / nodes, self._now_ns())

    def dispatchable(self, queue: Queue) -> int | None:
        """How many tasks the queue's limit lets through now; None: it has no limit.

        If that is none, `on_throttled` is told when to look again.
        """
        throttle = queue.throttle
        if throttle is None:
            return None
        return 0 if self._throttled(queue, throttle) else throttle.available

    # --------------------------------------------------------------------------------------- the engine

    def _make(self, key: QueueKey, now_ns: int) -> Queue:
        queue = self._queues[key] = Queue(key, now_ns)
        return queue

    def _forget(self, queue: Queue) -> None:
        """Durable tasks in its window are not lost: the next poll finds them in their shards."""
        del self._queues[queue.key]
        self._forget_workers(queue)

    def _forget_workers(self, queue: Queue) -> None:
        if self.exchange is not None:
            self.exchange.absent(queue)
        for connection in queue.presences:
            queues = self._queues_by_connection.get(connection)
            if queues is not None:
                queues.pop(queue, None)
                if not queues:
                    del self._queues_by_connection[connection]
        queue.presences.clear()

    def _mark(self, queue: Queue) -> None:
        if not queue.marked:
            queue.marked = True
            self._marked.append(queue)

    def _run(self, queue: Queue) -> None:
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
            if self._match_one(queue) and (queue.parked or queue.peers):
                self._mark(queue)

    def _match_one(self, queue: Queue) -> bool:
        """Start the first task for the longest-waiting poller. False: there is no task, or no poller."""
        if queue.overflowed and queue.runs_low():
            queue.refill(self._source)
        if not queue.window and not queue.volatile and not queue.borrowed:
            return False
        if queue.throttle is not None and self._throttled(queue, queue.throttle):
            return self._lend_one(queue)
        poller = queue.next_poller(self._now_ns())
        if poller is None:
            return self._lend_one(queue)
        self._in_hand = poller
        while True:
            task = queue.take()
            if task is None:
                break
            try:
                started = task.start(poller)
            except BaseException as error:
                queue.restore(task)
                if self._in_hand is not None:
                    queue.repark(poller)
                    self._in_hand = None
                if isinstance(error, NotNow):
                    self._wait(queue)
                    return False
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
            if queue.overflowed and queue.runs_low():
                queue.refill(self._source)
        self._in_hand = None
        queue.repark(poller)
        return False

    def _lend_one(self, queue: Queue) -> bool:
        """Lend the first task of this node to another. False: there is no task, or nobody wants one."""
        exchange = self.exchange
        if exchange is None or not queue.peers:
            return False
        peer = queue.next_peer()
        if peer is None:
            return False
        task = queue.take_own()
        if task is None:
            return False
        queue.lent.add(task.sequence)
        exchange.lend(peer, task)
        return True

    def _throttled(self, queue: Queue, throttle: Throttle) -> bool:
        """Whether the queue's limit holds its tasks back; if so, a wake-up is asked for."""
        wait_ns = throttle.wait_ns(self._now_ns())
        if wait_ns and not throttle.waiting and queue.parked and self._on_throttled is not None:
            throttle.waiting = True
            self._on_throttled(queue.key, wait_ns)
        return wait_ns > 0

    def resume(self, key: QueueKey) -> None:
        """The time is over for which the queue was held back."""
        queue = self._queues.get(key)
        if queue is None:
            return
        queue.waits = False
        if queue.throttle is not None:
            queue.throttle.waiting = False
        if queue.parked:
            self._run(queue)
            if self.exchange is not None and queue.parked:
                self.exchange.polled(queue, self._now_ns())

    def _wait(self, queue: Queue) -> None:
        """Its tasks cannot be started now: look again a little later."""
        if not queue.waits and self._on_throttled is not None:
            queue.waits = True
            self._on_throttled(queue.key, AGAIN_NS)

    def _limit(self, queue: Queue, rate: float, now_ns: int) -> None:
        """A poll asks for a limit of the whole queue: this node keeps its share of it."""
        queue.rate_per_second = rate
        if self.exchange is not None:
            rate /= self.exchange.nodes(queue.key)
        if queue.throttle is None:
            queue.throttle = Throttle(rate, now_ns)
        else:
            queue.throttle.set(rate, now_ns)

    def _reroute_all(self, queue: Queue) -> None:
        while True:
            if queue.overflowed:
                queue.refill(self._source)
            tasks = queue.take_all()
            for task in tasks:
                task.reroute()
            if not queue.overflowed or not tasks:
                return
