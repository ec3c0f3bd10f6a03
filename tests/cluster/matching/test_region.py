"""Three nodes, random workers, tasks and faults: each task is started once, no poll waits while one waits."""

from __future__ import annotations

import random

import pytest

from cluster.matching import QueueKey, task_queue
from tests.cluster.matching.region import LIMITED, MS, NORMAL, SECOND, Node, Region, Worker

# A task may be lent twice in vain: LOAN_S each time, and as long until it is looked at; and the sampling.
STREAK_NS = 500 * MS


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_queue, "WINDOW_TASKS", 8)
    monkeypatch.setattr(task_queue, "WINDOW_LOW_TASKS", 2)


def workers(region: Region, count: int, limited: bool = True) -> list[Worker]:
    queues: list[tuple[QueueKey, float | None]] = [(queue, None) for queue in NORMAL]
    if limited:
        queues.append((LIMITED, 100.0))
    found = [Worker(region, f"w{number}", queues, region.rng.choice([1, 2, 5])) for number in range(count)]
    for worker in found:
        worker.busy_ms = region.rng.choice([1, 20, 300])
    return found


def add_some(region: Region, crowd: list[Worker], limited: bool) -> None:
    rng = region.rng
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        shard = rng.choice(region.shards)
        priority = rng.choice([1, 3, 3, 3, 5])
        durable = rng.random() < 0.9
        if rng.random() < 0.3:
            region.add(rng.choice(crowd).sticky, shard, priority, durable, normal=NORMAL[0])
        else:
            region.add(rng.choice([*NORMAL, LIMITED] if limited else NORMAL), shard, priority, durable)


def hurt(region: Region, crowd: list[Worker]) -> None:
    rng = region.rng
    fault = rng.choices(
        ["cut", "cut_both", "kill", "depose", "worker_dies", "worker_moves", "shutdown"],
        [3, 2, 1, 4, 2, 3, 2],
    )[0]
    a, b = rng.sample(range(3), 2)
    worker = rng.choice(crowd)
    if fault == "cut":
        region.cut(a, b)
    elif fault == "cut_both":
        region.cut(a, b)
        region.cut(b, a)
    elif fault == "kill" and all(node.alive for node in region.nodes):
        region.kill(a)
        region.after(rng.randrange(2 * SECOND), lambda: region.restart(a))
    elif fault == "depose":
        shard = rng.choice(region.shards)
        if shard.leader is not None:
            region.depose(shard)
    elif fault == "worker_dies":
        worker.disconnect()
        region.after(rng.randrange(3 * SECOND), worker.connect)
    elif fault == "worker_moves":
        worker.connect()
    elif fault == "shutdown" and worker.node is not None and worker.node.alive:
        shut_down(worker, worker.node)
        region.after(rng.randrange(SECOND), worker.connect)


def shut_down(worker: Worker, node: Node) -> None:
    for poll in node.matching.cancel_worker_polls(worker.name, "n", worker.name):
        assert poll.open
        poll.open = False
        worker.open.pop(poll, None)
    node.region.shutting_down = True
    node.matching.abandon(worker.sticky)
    node.region.shutting_down = False


def reconnect_the_dead(region: Region, crowd: list[Worker]) -> None:
    for worker in crowd:
        if worker.node is not None and not worker.node.alive:
            worker.connect()


def finish(region: Region, crowd: list[Worker]) -> None:
    """No more faults and no more tasks: everything is done, then everything is forgotten."""
    region.run(3)
    for node in region.nodes:
        assert node.alive
    for worker in crowd:
        worker.busy_ms = 20
        if worker.node is None or not worker.node.alive:
            worker.connect()
    region.run(30)
    region.judge()
    for worker in crowd:
        worker.stop()
    region.run(10)
    region.judge_empty()


def test_every_task_is_started_once_whatever_happens(rng: random.Random) -> None:
    region = Region(rng)
    region.connect_all()
    crowd = workers(region, rng.choice([1, 3, 6]))
    for worker in crowd:
        worker.connect()
    for _ in range(150):
        region.run(rng.choice([0.001, 0.02, 0.1, 0.3]))
        reconnect_the_dead(region, crowd)
        if rng.random() < 0.7:
            add_some(region, crowd, limited=True)
        if rng.random() < 0.25:
            hurt(region, crowd)
        region.check([poll for worker in crowd for poll in worker.open])
    finish(region, crowd)
    for work in region.works.values():
        if work.durable:
            assert work.starts == 1 + work.given_back, work
    assert sum(work.done for work in region.works.values()) > 50


def test_no_poll_waits_while_a_task_waits_anywhere(rng: random.Random) -> None:
    region = Region(rng)
    region.connect_all()
    crowd = workers(region, rng.choice([1, 2, 4]), limited=False)
    for worker in crowd:
        worker.connect()
    since: dict[QueueKey, tuple[int, set[int]]] = {}  # and the tasks that have waited all the time
    for step in range(600):
        region.run(0.02)
        if rng.random() < 0.3:
            add_some(region, crowd, limited=False)
        if step % 60 == 0:
            rng.choice(crowd).connect()
        for queue in NORMAL:
            waiting = {id(work) for node in region.nodes for work in node.works(queue)}
            idle = any(node.matching.queue(queue).parked for node in region.nodes)
            began, same = since.pop(queue, (region.now, waiting))
            if idle and waiting & same:
                assert region.now - began <= STREAK_NS, queue
                since[queue] = began, waiting & same
    finish(region, crowd)
    for work in region.works.values():
        assert work.starts == 1 + work.given_back, work
