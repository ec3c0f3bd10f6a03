"""Promises of the broker, one test each: order, overflow, sticky queues, re-entrancy, what it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from cluster.matching import Matching, QueueKey, broker, task_queue
from cluster.matching.stats import DEFAULT_RATE_PER_SECOND, Rate

QUEUE = QueueKey("n", 1, "q")
STICKY = QueueKey("n", 1, "worker-1:sticky")
SECOND = 1_000_000_000


@dataclass(eq=False)
class Wire:
    closed: bool = False


@dataclass(eq=False)
class Worker:
    connection: Wire = field(default_factory=Wire)
    identity: str = "worker"
    worker_instance_key: str = "key"
    versioning: object = None
    rate_per_second: float | None = None


class Shards:
    """The clock and the durable rows."""

    def __init__(self) -> None:
        self.now = 1_000 * SECOND
        self.rows: dict[int, Item] = {}
        self.fetches = 0
        self.started: list[tuple[int, Worker]] = []
        self.abandoned: list[QueueKey] = []
        self.matching = Matching(self, self, self.abandoned.append)

    def now_ns(self) -> int:
        return self.now

    def fetch(self, queue: QueueKey, limit: int) -> list[Item]:
        self.fetches += 1
        rows = [row for row in self.rows.values() if row.queue == queue]
        rows.sort(key=lambda row: (row.priority, row.sequence))
        return rows[:limit]

    def count(self, queue: QueueKey) -> int:
        return sum(row.queue == queue for row in self.rows.values())

    def offer(self, sequence: int, priority: int = 3, queue: QueueKey = QUEUE, durable: bool = True) -> Item:
        item = Item(self, queue, priority, sequence, durable, self.now)
        if durable:
            self.rows[sequence] = item
        item.accepted = self.matching.offer(item)
        return item

    def order(self) -> list[int]:
        return [sequence for sequence, _ in self.started]


@dataclass(eq=False)
class Item:
    shards: Shards
    queue: QueueKey
    priority: int
    sequence: int
    durable: bool
    created_ns: int
    void: bool = False
    accepted: bool = True
    then: Callable[[], object] | None = None
    reroute_to: QueueKey | None = None

    def start(self, poller: Worker) -> bool:
        self.shards.rows.pop(self.sequence, None)
        if self.void:
            return False
        self.shards.started.append((self.sequence, poller))
        if self.then is not None:
            self.then()
        return True

    def reroute(self) -> None:
        assert self.reroute_to is not None
        self.shards.rows.pop(self.sequence, None)
        self.shards.offer(self.sequence, self.priority, self.reroute_to, self.durable)


@pytest.fixture
def shards() -> Shards:
    return Shards()


def test_a_task_goes_to_the_poller_that_waits_longest(shards: Shards) -> None:
    first, second = Worker(), Worker()
    assert not shards.matching.poll(QUEUE, first)
    assert not shards.matching.poll(QUEUE, second)
    shards.offer(1)
    shards.offer(2)
    assert shards.started == [(1, first), (2, second)]


def test_a_poll_is_answered_at_once_from_the_backlog(shards: Shards) -> None:
    for sequence, priority in [(5, 3), (3, 3), (9, 1), (1, 5)]:
        shards.offer(sequence, priority)
    assert [shards.matching.poll(QUEUE, Worker()) for _ in range(5)] == [True, True, True, True, False]
    assert shards.order() == [9, 3, 5, 1]


def test_a_new_queue_asks_the_shards_what_they_hold(shards: Shards) -> None:
    shards.rows[7] = Item(shards, QUEUE, 3, 7, True, shards.now)
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [7]


def test_a_queue_that_was_fetched_to_its_end_is_not_fetched_again(shards: Shards) -> None:
    shards.matching.poll(QUEUE, Worker())
    fetches = shards.fetches
    for sequence in range(1, 100):
        shards.offer(sequence)
        shards.matching.poll(QUEUE, Worker())
    assert shards.fetches == fetches


def test_void_tasks_are_passed_over(shards: Shards) -> None:
    for sequence in (1, 2, 3):
        shards.offer(sequence).void = sequence < 3
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [3]


def test_a_poller_that_met_only_void_tasks_keeps_its_place(shards: Shards) -> None:
    shards.offer(1).void = True
    first, second = Worker(), Worker()
    assert not shards.matching.poll(QUEUE, first)
    assert not shards.matching.poll(QUEUE, second)
    shards.offer(2)
    assert shards.started == [(2, first)]


def test_a_withdrawn_task_is_never_started(shards: Shards) -> None:
    shards.matching.poll(QUEUE, gone := Worker())
    shards.matching.cancel_poll(QUEUE, gone)
    item = shards.offer(1)
    del shards.rows[1]
    shards.matching.withdraw(item)
    shards.matching.withdraw(item)
    assert not shards.matching.poll(QUEUE, Worker())
    assert shards.started == []


def test_a_poll_whose_client_has_gone_swallows_nothing(shards: Shards) -> None:
    cancelled, closed, deaf, alive = Worker(), Worker(), Worker(), Worker()
    for worker in (cancelled, closed, deaf, alive):
        shards.matching.poll(QUEUE, worker)
    assert shards.matching.cancel_poll(QUEUE, cancelled)
    assert not shards.matching.cancel_poll(QUEUE, cancelled)
    closed.connection.closed = True
    shards.matching.connection_closed(closed.connection)
    deaf.connection.closed = True  # and nobody has told matching yet
    shards.offer(1)
    assert shards.started == [(1, alive)]
    assert not shards.matching.poll(QUEUE, deaf)
    assert not shards.matching.cancel_poll(QUEUE, deaf)


def test_a_backlog_stays_in_the_shards_and_drains_in_order(shards: Shards) -> None:
    shards.matching.poll(QUEUE, gone := Worker())
    shards.matching.cancel_poll(QUEUE, gone)
    total = 20 * task_queue.WINDOW_TASKS
    for sequence in range(1, total + 1):
        shards.offer(sequence)
    queue = shards.matching._queues[QUEUE]
    assert len(queue.window) == task_queue.WINDOW_TASKS
    assert queue.overflowed
    urgent = shards.offer(total + 1, priority=1)
    assert len(queue.window) == task_queue.WINDOW_TASKS
    assert shards.matching.describe(QUEUE).backlog_count == total + 1
    fetches = shards.fetches
    while shards.matching.poll(QUEUE, Worker()):
        assert len(queue.window) <= task_queue.WINDOW_TASKS
        assert len(queue.taken) <= 2 * task_queue.WINDOW_TASKS
    assert shards.order() == [urgent.sequence, *range(1, total + 1)]
    # Batches: about one fetch for each window but its low mark.
    assert shards.fetches - fetches < 2 * total // task_queue.WINDOW_TASKS
    assert not queue.overflowed
    assert not queue.taken


def test_a_backlog_nobody_polls_costs_no_memory(shards: Shards) -> None:
    for sequence in range(1, 5_000):
        shards.offer(sequence)
    assert shards.matching._queues[QUEUE].window == []
    assert shards.matching.describe(QUEUE).backlog_count == 4_999
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [1]


def test_queries_are_bounded_and_never_dropped(shards: Shards) -> None:
    queries = [shards.offer(10 + n, durable=False) for n in range(task_queue.VOLATILE_TASKS + 1)]
    assert [query.accepted for query in queries].count(False) == 1
    assert not queries[-1].accepted
    shards.offer(1)
    shards.matching.withdraw(queries[0])
    while shards.matching.poll(QUEUE, Worker()):
        pass
    assert shards.order() == [1, *(query.sequence for query in queries[1:-1])]


def test_resync_finds_what_was_never_offered(shards: Shards) -> None:
    shards.matching.poll(QUEUE, Worker())
    shards.rows[4] = Item(shards, QUEUE, 3, 4, True, shards.now)
    assert shards.started == []
    shards.matching.resync()
    assert shards.order() == [4]


def test_resync_serves_everybody_who_waits(shards: Shards) -> None:
    waiting = [Worker() for _ in range(3)]
    for worker in waiting:
        shards.matching.poll(QUEUE, worker)
    for sequence in (6, 4, 5):
        shards.rows[sequence] = Item(shards, QUEUE, 3, sequence, True, shards.now)
    shards.matching.resync(QUEUE)
    assert shards.started == list(zip((4, 5, 6), waiting, strict=True))


def test_a_poll_cancelled_by_a_void_task_gets_nothing_more(shards: Shards) -> None:
    leaving, staying = Worker(), Worker()
    shards.matching.poll(QUEUE, leaving)
    shards.matching.poll(QUEUE, staying)

    class Cancelling(Item):
        def start(self, poller: Worker) -> bool:
            shards.rows.pop(self.sequence)
            assert not shards.matching.cancel_poll(QUEUE, poller)
            return False

    shards.rows[1] = Cancelling(shards, QUEUE, 3, 1, True, shards.now)
    shards.rows[2] = Item(shards, QUEUE, 3, 2, True, shards.now)
    shards.matching.resync()
    assert shards.started == [(2, staying)]


def test_a_dead_worker_hands_its_sticky_queue_over_at_once(shards: Shards) -> None:
    dying, other = Worker(), Worker()
    shards.matching.poll(STICKY, dying, sticky=True)
    shards.matching.poll(QUEUE, other)
    shards.offer(1, queue=STICKY)  # the worker is busy with it
    for sequence in (2, 3):
        shards.offer(sequence, queue=STICKY).reroute_to = QUEUE
    shards.offer(4, queue=STICKY, durable=False).reroute_to = QUEUE
    assert shards.matching.has_live_poller(STICKY)
    dying.connection.closed = True
    assert not shards.matching.has_live_poller(STICKY)
    shards.matching.connection_closed(dying.connection)
    assert shards.started == [(1, dying), (2, other)]
    assert shards.abandoned == [STICKY]
    assert shards.matching.poll(QUEUE, other)
    assert shards.matching.poll(QUEUE, other)
    assert shards.order() == [1, 2, 3, 4]
    assert STICKY not in shards.matching._queues


def test_a_sticky_queue_lives_while_one_connection_does(shards: Shards) -> None:
    one, two = Worker(), Worker()
    shards.matching.poll(STICKY, one, sticky=True)
    shards.matching.poll(STICKY, two, sticky=True)
    one.connection.closed = True
    shards.matching.connection_closed(one.connection)
    assert shards.abandoned == []
    assert shards.matching.has_live_poller(STICKY)


def test_an_overflowed_sticky_queue_is_rerouted_whole(shards: Shards) -> None:
    total = 3 * task_queue.WINDOW_TASKS
    shards.matching.poll(STICKY, gone := Worker(), sticky=True)
    for sequence in range(total + 1):
        shards.offer(sequence, queue=STICKY).reroute_to = QUEUE
    gone.connection.closed = True
    shards.matching.connection_closed(gone.connection)
    assert shards.count(STICKY) == 0
    assert shards.count(QUEUE) == total
    while shards.matching.poll(QUEUE, Worker()):
        pass
    assert shards.order() == list(range(total + 1))


def test_a_normal_queue_keeps_its_tasks_when_its_worker_dies(shards: Shards) -> None:
    shards.matching.poll(QUEUE, dying := Worker())
    shards.offer(1)
    shards.offer(2)
    dying.connection.closed = True
    shards.matching.connection_closed(dying.connection)
    assert shards.abandoned == []
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [1, 2]


def test_a_busy_worker_is_alive_for_a_while(shards: Shards) -> None:
    assert not shards.matching.has_live_poller(QUEUE)
    shards.matching.poll(QUEUE, Worker())
    shards.now += 50 * SECOND  # parked all the time
    shards.offer(1)
    assert shards.matching.has_live_poller(QUEUE)
    shards.now += task_queue.LIVE_POLL_NS
    assert not shards.matching.has_live_poller(QUEUE)


def test_shutdown_ends_the_polls_of_one_worker(shards: Shards) -> None:
    leaving = [Worker(worker_instance_key="a", identity="a") for _ in range(2)]
    staying = Worker(worker_instance_key="b", identity="b")
    for worker in [*leaving, staying]:
        shards.matching.poll(QUEUE, worker)
    assert shards.matching.cancel_worker_polls("", "n") == []
    assert shards.matching.cancel_worker_polls("a", "another namespace") == []
    assert shards.matching.cancel_worker_polls("a", "n", "a") == leaving
    assert [info.identity for info in shards.matching.describe(QUEUE).pollers] == ["b"]
    assert shards.matching.is_shut_down("a")
    assert not shards.matching.is_shut_down("b")
    shards.now += broker.SHUT_DOWN_TTL_NS
    assert not shards.matching.is_shut_down("a")
    shards.matching.forget_idle(shards.now)
    assert not shards.matching._shut_down
    shards.offer(1)
    assert shards.started == [(1, staying)]


def test_abandon_reroutes_what_a_worker_that_shut_down_leaves(shards: Shards) -> None:
    shards.matching.poll(STICKY, leaving := Worker(), sticky=True)
    shards.offer(1, queue=STICKY)
    shards.offer(2, queue=STICKY).reroute_to = QUEUE
    assert shards.matching.cancel_worker_polls(leaving.worker_instance_key, "n") == []
    shards.matching.abandon(STICKY)
    assert not shards.matching.has_live_poller(STICKY)
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [1, 2]
    shards.matching.abandon(STICKY)  # nothing left to do
    assert shards.abandoned == [STICKY]


def test_starting_a_task_may_offer_the_next_a_thousand_deep(shards: Shards) -> None:
    workers = [Worker() for _ in range(5_000)]
    for worker in workers:
        shards.matching.poll(QUEUE, worker)

    def offer_next(sequence: int) -> None:
        item = Item(shards, QUEUE, 3, sequence, True, shards.now)
        if sequence < len(workers):
            item.then = lambda: offer_next(sequence + 1)
        shards.rows[sequence] = item
        shards.matching.offer(item)

    offer_next(1)
    assert shards.started == list(zip(range(1, 5_001), workers, strict=True))


def test_queues_take_turns_when_one_call_feeds_several(shards: Shards) -> None:
    other = QueueKey("n", 2, "q")
    for _ in range(3):
        shards.matching.poll(QUEUE, Worker())
        shards.matching.poll(other, Worker())

    def feed() -> None:
        for sequence in (2, 4):
            shards.offer(sequence, queue=QUEUE)
        for sequence in (3, 5):
            shards.offer(sequence, queue=other)

    item = Item(shards, QUEUE, 3, 1, True, shards.now, then=feed)
    shards.rows[1] = item
    shards.matching.offer(item)
    assert shards.order() == [1, 2, 3, 4, 5]


def test_a_start_that_fails_loses_neither_task_nor_older_poller(shards: Shards) -> None:
    shards.matching.poll(QUEUE, waiting := Worker())

    def fail() -> None:
        shards.started.pop()
        raise OSError("disk full")

    item = Item(shards, QUEUE, 3, 1, True, shards.now, then=fail)
    with pytest.raises(OSError, match="disk full"):
        shards.matching.offer(item)
    item.then = None
    shards.rows[1] = item
    assert not shards.matching.poll(QUEUE, Worker())
    assert shards.started == [(1, waiting)]


def test_a_poll_whose_start_fails_does_not_wait_on(shards: Shards) -> None:
    def fail() -> None:
        shards.started.pop()
        raise OSError("disk full")

    item = shards.offer(1)
    item.then = fail
    with pytest.raises(OSError, match="disk full"):
        shards.matching.poll(QUEUE, Worker())
    item.then = None
    assert not shards.matching._queues[QUEUE].parked
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [1]


def test_idle_queues_are_forgotten_with_their_connections(shards: Shards) -> None:
    wire = Wire()
    for number in range(100):
        key = QueueKey("n", 1, f"sticky-{number}")
        shards.matching.poll(key, worker := Worker(wire), sticky=True)
        shards.matching.cancel_poll(key, worker)
    shards.matching.poll(QUEUE, Worker(wire))
    assert shards.matching.forget_idle(shards.now) == 0
    assert shards.matching.forget_idle(shards.now + broker.IDLE_QUEUE_NS) == 100
    assert len(shards.matching) == 1
    assert len(shards.matching._queues_by_connection[wire]) == 1
    wire.closed = True
    shards.matching.connection_closed(wire)
    assert shards.matching.forget_idle(shards.now + broker.IDLE_QUEUE_NS) == 1
    assert not shards.matching._queues_by_connection


def test_tasks_of_a_forgotten_queue_are_found_again(shards: Shards) -> None:
    shards.matching.poll(QUEUE, Worker())
    shards.offer(1)
    shards.offer(2)
    assert shards.matching.forget_idle(shards.now + broker.IDLE_QUEUE_NS) == 1
    assert shards.matching.poll(QUEUE, Worker())
    assert shards.order() == [1, 2]


def test_describe_tells_pollers_backlog_and_rates(shards: Shards) -> None:
    empty = shards.matching.describe(QUEUE)
    assert (empty.pollers, empty.backlog_count, empty.backlog_age_ns) == ([], 0, 0)
    assert len(shards.matching) == 0
    versioned = Worker(identity="v", versioning=("deployment", "build"), rate_per_second=5.0)
    shards.matching.poll(QUEUE, Worker())
    shards.now += SECOND
    shards.matching.poll(QUEUE, versioned)
    for sequence in range(12):
        shards.offer(sequence)
    shards.now += 9 * SECOND
    stats = shards.matching.describe(QUEUE)
    assert [(p.identity, p.rate_per_second, p.versioning) for p in stats.pollers] == [
        ("worker", DEFAULT_RATE_PER_SECOND, None),
        ("v", 5.0, ("deployment", "build")),
    ]
    assert stats.pollers[0].last_access_ns == shards.now - 10 * SECOND
    assert stats.backlog_count == 10
    assert stats.backlog_age_ns == 9 * SECOND
    assert stats.tasks_add_rate == pytest.approx(1.2)
    assert stats.tasks_dispatch_rate == pytest.approx(0.2)
    shards.now += task_queue.HISTORY_TTL_NS
    assert shards.matching.describe(QUEUE).pollers == []


def test_the_history_of_identities_is_bounded(shards: Shards) -> None:
    for number in range(task_queue.HISTORY_POLLERS + 5):
        shards.matching.poll(QUEUE, worker := Worker(identity=f"w{number}"))
        shards.matching.cancel_poll(QUEUE, worker)
    pollers = shards.matching.describe(QUEUE).pollers
    assert len(pollers) == task_queue.HISTORY_POLLERS
    assert pollers[0].identity == "w5"


def test_a_rate_looks_back_thirty_seconds() -> None:
    rate = Rate(0)
    assert rate.per_second(0) == 0.0
    for second in range(60):
        for _ in range(10):
            rate.add(second * SECOND)
    assert rate.per_second(60 * SECOND) == pytest.approx(10.0)
    assert rate.per_second(75 * SECOND) == pytest.approx(5.0)
    assert rate.per_second(1_000 * SECOND) == 0.0
