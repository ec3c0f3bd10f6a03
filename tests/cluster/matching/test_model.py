"""Random histories of one or several queues against a model that knows what must hold.

A task is started at most once; a durable one is never lost; a queue's tasks are started by priority, then
sequence; a poll that was cancelled or whose connection closed is never given one; no task waits while a
poller of its queue waits. The shards (the source) are the truth; memory is kept tiny, so that queues overflow
often.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from cluster.matching import Matching, QueueKey, broker, task_queue


@dataclass(eq=False)
class FakeConnection:
    closed: bool = False


@dataclass(eq=False)
class FakePoller:
    world: World
    queue: QueueKey
    connection: FakeConnection
    identity: str
    worker_instance_key: str
    versioning: object = None
    rate_per_second: float | None = None
    open: bool = True  # nobody answered it and its client still listens


@dataclass(eq=False)
class FakeTask:
    world: World
    queue: QueueKey
    priority: int
    sequence: int
    durable: bool
    created_ns: int
    void: bool = False
    started_by: FakePoller | None = None

    def start(self, poller: FakePoller) -> bool:
        return self.world.started(self, poller)

    def reroute(self) -> None:
        self.world.rerouted(self)


@dataclass(eq=False)
class World:
    """Shards, workers and clock; `matching` is what is tested."""

    rng: random.Random
    now: int = 1_000_000_000_000
    waiting: dict[int, FakeTask] = field(default_factory=dict)  # by sequence: neither started nor void
    lagging: dict[int, FakeTask] = field(default_factory=dict)  # started, and the source still names them
    pollers: list[FakePoller] = field(default_factory=list)
    connections: list[FakeConnection] = field(default_factory=list)
    sequence: int = 0
    starts: int = 0
    depth: int = 0
    nested: bool = True  # start() calls back into matching
    check_order: bool = True

    def __post_init__(self) -> None:
        self.matching = Matching(self, self, self.abandoned)
        self.abandoned_queues: list[QueueKey] = []
        self.reroute_to: QueueKey | None = None

    def now_ns(self) -> int:
        return self.now

    def fetch(self, queue: QueueKey, limit: int) -> list[FakeTask]:
        rows = [
            task
            for task in [*self.waiting.values(), *self.lagging.values()]
            if task.durable and task.queue == queue
        ]
        return sorted(rows, key=lambda task: (task.priority, task.sequence))[:limit]

    def count(self, queue: QueueKey) -> int:
        return len(self.fetch(queue, 1 << 60))

    def abandoned(self, queue: QueueKey) -> None:
        self.abandoned_queues.append(queue)

    def started(self, task: FakeTask, poller: FakePoller) -> bool:
        assert self.depth == 0, "start() must not nest"
        assert task.queue == poller.queue
        if task.started_by is not None or task.void:
            self.waiting.pop(task.sequence, None)
            return False
        assert poller.open
        assert not poller.connection.closed
        assert task.sequence in self.waiting
        if self.check_order:
            best = min(
                (t.priority, t.sequence)
                for t in self.waiting.values()
                if t.queue == task.queue and not t.void
            )
            assert (task.priority, task.sequence) == best
        self.starts += 1
        task.started_by = poller
        poller.open = False
        del self.waiting[task.sequence]
        if task.durable and self.rng.random() < 0.3:
            self.lagging[task.sequence] = task
        if self.nested and self.rng.random() < 0.5:
            self.depth += 1
            try:
                self.step(nested=True)
            finally:
                self.depth -= 1
        return True

    def rerouted(self, task: FakeTask) -> None:
        if task.void or task.started_by is not None:
            return
        assert self.reroute_to is not None
        self.waiting.pop(task.sequence)
        self.offer(self.reroute_to, task.priority, task.durable)

    def offer(self, queue: QueueKey, priority: int, durable: bool) -> FakeTask:
        self.sequence += 1
        # Shards number on their own, so that a later offer may come before an earlier one.
        sequence = (self.sequence - self.rng.choice([0, 0, 0, 40])) * 1000 + self.sequence
        task = FakeTask(self, queue, priority, sequence, durable, self.now)
        self.waiting[sequence] = task
        if not self.matching.offer(task):
            assert not durable
            del self.waiting[sequence]
        return task

    def connection(self) -> FakeConnection:
        if not self.connections or self.rng.random() < 0.1:
            self.connections.append(FakeConnection())
        return self.rng.choice(self.connections)

    def poll(self, queue: QueueKey, sticky: bool = False) -> FakePoller:
        connection = self.connection()
        name = f"w{self.connections.index(connection)}"
        poller = FakePoller(self, queue, connection, name, name)
        self.pollers.append(poller)
        given = self.matching.poll(queue, poller, sticky)
        assert given == (not poller.open)
        return poller

    def step(self, nested: bool = False) -> None:
        rng = self.rng
        self.now += rng.choice([1, 1_000_000, 100_000_000])
        queue = rng.choice(QUEUES)
        action = rng.choices(
            ["offer", "poll", "void", "cancel", "close", "settle", "shutdown", "resync", "forget"],
            [30, self.poll_weight, 4, 4, 1, 6, 0.5, 0.3, 0.3],
        )[0]
        if action == "offer":
            self.offer(queue, rng.choice([1, 3, 3, 3, 5]), rng.random() < 0.9)
        elif action == "poll":
            self.poll(queue)
        elif action == "void" and self.waiting:
            task = self.waiting.pop(rng.choice(list(self.waiting)))
            task.void = True
            if rng.random() < 0.5:
                self.matching.withdraw(task)
        elif action == "cancel" and self.pollers:
            poller = rng.choice(self.pollers)
            was_open, poller.open = poller.open, False
            assert self.matching.cancel_poll(poller.queue, poller) == was_open
        elif action == "close" and self.connections:
            self.close(rng.choice(self.connections))
        elif action == "settle":
            self.lagging.clear()
        elif action == "shutdown" and self.connections:
            key = f"w{rng.randrange(len(self.connections))}"
            for poller in self.matching.cancel_worker_polls(key, "n"):
                assert poller.worker_instance_key == key
                assert poller.open
                poller.open = False
        elif action == "resync" and not nested:
            self.matching.resync()
        elif action == "forget" and not nested:
            self.matching.forget_idle(self.now + rng.choice([0, broker.IDLE_QUEUE_NS]))

    def close(self, connection: FakeConnection) -> None:
        connection.closed = True
        for poller in self.pollers:
            if poller.connection is connection:
                poller.open = False
        self.matching.connection_closed(connection)

    def check(self) -> None:
        self.pollers = [poller for poller in self.pollers if poller.open]
        self.connections = [c for c in self.connections if not c.closed]
        for queue in QUEUES:
            parked = [poller for poller in self.pollers if poller.queue == queue]
            tasks = [task for task in self.waiting.values() if task.queue == queue]
            assert not (parked and tasks), (queue, len(parked), len(tasks))
            assert not parked or self.matching.has_live_poller(queue)
            state = self.matching._queues.get(queue)
            if state is not None:
                assert len(state.window) <= task_queue.WINDOW_TASKS
                assert len(state.volatile) <= task_queue.VOLATILE_TASKS
                assert list(state.parked) == parked  # in the order they came
                places = [entry[:2] for entry in state.window]
                assert places == sorted(set(places))

    poll_weight: float = 30


QUEUES = [QueueKey("n", 1, "a"), QueueKey("n", 2, "a"), QueueKey("n", 1, "b")]


@pytest.fixture
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queue, "WINDOW_TASKS", 8)
    monkeypatch.setattr(task_queue, "WINDOW_LOW_TASKS", 2)
    monkeypatch.setattr(task_queue, "VOLATILE_TASKS", 6)


@pytest.mark.usefixtures("small_window")
def test_random_histories_keep_every_promise(rng: random.Random) -> None:
    world = World(rng)
    for index in range(2_000):
        if index % 200 == 0:  # a backlog grows, then it drains
            world.poll_weight = world.rng.choice([5, 20, 35, 60])
        world.step()
        world.check()
    # Liveness: with enough polls everything that waits is started.
    world.nested = False
    for queue in QUEUES:
        while any(task.queue == queue for task in world.waiting.values()):
            before = world.starts
            world.poll(queue)
            assert world.starts == before + 1
    assert world.starts > 100
