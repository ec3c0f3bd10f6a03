"""Promises of the exchange, one test each. Three nodes; links deliver within a millisecond."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.matching import QueueKey, QueueStats, exchange, task_queue
from cluster.matching.stats import PollerInfo, merge
from tests.cluster.matching.region import Connection, Node, Poll, Region, Worker

QUEUE = QueueKey("n", 2, "q")
STICKY = QueueKey("n", 1, "w:sticky")
NORMAL = QueueKey("n", 1, "normal")


@pytest.fixture
def region() -> Region:
    region = Region(random.Random(1), shards=3, delay_ms=0.1)
    region.connect_all()
    region.run(0.01)
    return region


def poll(node: Node, queue: QueueKey = QUEUE, connection: Connection | None = None, **more: Any) -> Poll:
    found = Poll(node, queue, queue == STICKY, connection or Connection(), "w", "key", **more)
    node.matching.poll(queue, found, found.sticky)
    return found


def close(polling: Poll) -> None:
    polling.open = False
    polling.connection.closed = True
    polling.node.matching.connection_closed(polling.connection)


def sent(region: Region) -> dict[str, int]:
    total: dict[str, int] = {}
    for node in region.nodes:
        for kind, count in node.sent.items():
            total[kind] = total.get(kind, 0) + count
        node.sent.clear()
    return total


def test_a_task_finds_a_poll_at_another_node(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    assert sent(region) == {"hello": 6, "credit": 2}
    work = region.add(QUEUE, region.shards[0])
    region.run(0.04)
    assert work is not None
    assert work.done
    assert not waiting.open
    assert sent(region) == {"offer": 1, "start": 1, "task": 1}
    region.run(0.1)
    assert sent(region) == {"taken": 1}
    close(waiting)
    region.run(0.01)


def test_a_poll_finds_a_task_that_waits_at_another_node(region: Region) -> None:
    work = region.add(QUEUE, region.shards[0])
    region.run(1)
    waiting = poll(region.nodes[1])
    region.run(0.04)
    assert work is not None
    assert work.done
    assert not waiting.open


def test_polls_of_the_own_node_come_first(region: Region) -> None:
    polls = [poll(region.nodes[1]), poll(region.nodes[0]), poll(region.nodes[0])]
    region.run(0.01)
    for _ in range(2):
        region.add(QUEUE, region.shards[0])
    region.run(0.05)
    assert [waiting.open for waiting in polls] == [True, False, False]
    assert "offer" not in sent(region)


def test_among_nodes_with_idle_polls_each_has_its_turn(region: Region) -> None:
    for _ in range(4):
        poll(region.nodes[1])
        poll(region.nodes[2])
    region.run(0.01)
    for _ in range(4):
        region.add(QUEUE, region.shards[0])
    region.run(0.05)
    assert [len(node.matching.queue(QUEUE).parked) for node in region.nodes] == [0, 2, 2]


def test_a_worker_that_polls_again_and_again_costs_no_credits(region: Region) -> None:
    worker = Worker(region, "w", [(QUEUE, None)], 5)
    worker.busy_ms = 1
    worker.connect_to(region.nodes[1])
    region.run(0.01)
    sent(region)
    for _ in range(500):
        region.add(QUEUE, region.rng.choice(region.shards[:1]))
        region.run(0.002)
    region.run(0.1)
    messages = sent(region)
    assert worker.done == 500
    assert messages["offer"] == messages["start"] == messages["task"] == 500
    assert messages.get("credit", 0) <= 2
    assert "refuse" not in messages


def test_a_credit_grows_with_the_polls_but_not_with_each(region: Region) -> None:
    for _ in range(100):
        poll(region.nodes[1])
    region.run(0.01)
    assert region.nodes[0].matching.queue(QUEUE).peers[1].credit == 64
    assert sent(region)["credit"] == 2 * 7


def test_a_loan_nobody_comes_for_goes_back_and_ends_the_credit(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    region.run(exchange.LOAN_S / 2)
    assert region.nodes[0].exchange._peers[1].lent
    region.run(exchange.LOAN_S)
    assert not region.nodes[0].exchange._peers[1].lent
    assert region.nodes[0].matching.queue(QUEUE).peers[1].credit == 0
    assert work.waiting
    sent(region)
    region.run(1)
    assert sent(region) == {}
    poll(region.nodes[1])
    region.run(0.04)
    assert work.done


def test_a_loan_goes_back_at_once_when_another_node_has_idle_polls(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    works = [region.add(QUEUE, region.shards[0])]
    region.run(0.005)
    assert region.nodes[1].matching.queue(QUEUE).borrowed
    poll(region.nodes[2])
    region.run(0.005)
    assert works[0] is not None
    assert not works[0].waiting
    # And when one is known to have them as the loan comes.
    poll(region.nodes[2])
    again = poll(region.nodes[1])
    region.run(0.05)
    again.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, again)
    region.nodes[0].matching.queue(QUEUE).peers[2].idle = 0  # the lender does not know
    works.append(region.add(QUEUE, region.shards[0]))
    region.run(0.005)
    assert works[1] is not None
    assert not works[1].waiting


def test_the_own_poll_gets_its_loan_back(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    work = region.add(QUEUE, region.shards[0])
    region.run(0.005)
    own = poll(region.nodes[0])
    region.run(0.03)
    assert work is not None
    assert work.done
    assert not own.open


def test_a_poll_whose_task_was_void_waits_again_before_all_others(region: Region) -> None:
    polls = [poll(region.nodes[1]) for _ in range(3)]
    region.run(0.01)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    work.waiting = False  # it is lent, and not started yet
    region.run(0.01)
    assert list(region.nodes[1].matching.queue(QUEUE).parked) == polls
    assert not region.nodes[1].exchange._awaiting
    assert sent(region)["void"] == 1


def test_a_task_whose_client_has_gone_is_given_back(region: Region) -> None:
    polls = [poll(region.nodes[1]), poll(region.nodes[2])]
    region.run(0.01)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    region.run(0.001)
    assert not work.waiting
    promised = next(waiting for waiting in polls if waiting.node.exchange._awaiting)
    promised.open = False
    promised.node.matching.cancel_poll(QUEUE, promised)
    region.run(0.1)
    assert work.given_back == 1
    assert work.done
    assert not any(waiting.open for waiting in polls)


@pytest.mark.parametrize("end", ["cancel", "close", "shut down"])
def test_a_poll_that_ends_while_its_task_turns_out_void_does_not_wait_again(region: Region, end: str) -> None:
    waiting = poll(region.nodes[1])
    node = waiting.node
    region.run(0.01)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    work.waiting = False
    while not node.exchange._awaiting:
        region.run(0.00001)
    if end == "cancel":
        assert not node.matching.cancel_poll(QUEUE, waiting)
    elif end == "close":
        close(waiting)
    else:
        assert node.matching.cancel_worker_polls("key", "other") == []
        assert node.matching.cancel_worker_polls("key", "n") == [waiting]
    waiting.open = False
    region.run(0.01)
    assert not node.exchange._awaiting
    assert not node.matching.queue(QUEUE).parked


def test_what_a_dead_node_was_lent_waits_again(region: Region) -> None:
    poll(region.nodes[1])
    region.run(0.01)
    region.kill(1)
    work = region.add(QUEUE, region.shards[0])
    region.run(0.5)
    assert work is not None
    assert work.waiting
    assert not region.nodes[0].matching.queue(QUEUE).lent
    assert not region.nodes[0].matching.queue(QUEUE).peers
    poll(region.nodes[2])
    region.run(0.05)
    assert work.done


def test_what_a_dead_node_lent_or_promised_is_forgotten(region: Region) -> None:
    busy = poll(region.nodes[1])
    region.run(0.01)
    busy.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, busy)
    region.add(QUEUE, region.shards[0])
    region.run(0.005)
    assert region.nodes[1].matching.queue(QUEUE).borrowed
    region.nodes[1].exchange.peer_down(0)
    assert not region.nodes[1].matching.queue(QUEUE).borrowed
    polls = [poll(region.nodes[1]) for _ in range(3)]
    region.run(0.01)
    for _ in range(2):
        region.add(QUEUE, region.shards[2])
    while len(region.nodes[1].exchange._awaiting) < 2:
        region.run(0.00001)
    region.nodes[1].exchange.peer_down(2)
    assert list(region.nodes[1].matching.queue(QUEUE).parked) == polls
    assert not region.nodes[1].exchange._awaiting


def test_a_node_that_comes_back_is_told_everything(region: Region) -> None:
    waiting = poll(region.nodes[1])
    poll(region.nodes[1], STICKY)
    region.run(0.01)
    region.kill(0)
    region.run(0.6)
    region.restart(0)
    region.run(0.6)
    assert region.nodes[0].matching.has_live_poller(STICKY)
    region.shards[0].leader = region.nodes[0]
    region.add(QUEUE, region.shards[0])
    region.run(0.1)
    assert not waiting.open


def test_a_loss_that_only_one_side_noticed_resets_both(region: Region) -> None:
    """0 loses its connection to 1, which does not notice until 0 says hello on the next one."""
    first = poll(region.nodes[1])
    region.run(0.01)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    while work.waiting:
        region.run(0.00001)
    # The task is on its way from 0 to the poll at 1, and the connection breaks under it.
    del region._links[0, 1]
    region.run(0.1)
    assert first.open
    assert not work.done
    region.nodes[0].exchange.peer_down(1)
    assert work.given_back == 1
    region.connect(0, 1)
    region.run(0.1)
    assert work.done
    assert not first.open


@pytest.mark.parametrize("acknowledged", [True, False])
def test_what_a_dead_node_has_not_acknowledged_is_given_back(region: Region, acknowledged: bool) -> None:
    poll(region.nodes[1])
    region.run(0.01)
    told: list[bool] = []
    lender = region.nodes[0]
    lender.undelivered = lambda node, receipt, certain: told.append(certain)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None
    if acknowledged:
        region.run(0.2)
    else:
        while not lender.exchange._peers[1].unacked:
            region.run(0.0001)
    lender.exchange.peer_down(1)
    assert told == ([] if acknowledged else [False])
    assert not lender.exchange.deliver(1, 5, b"", [])


def test_a_start_acknowledges_what_came_before(region: Region) -> None:
    for _ in range(2):
        poll(region.nodes[1])
    region.run(0.01)
    region.add(QUEUE, region.shards[0])
    region.run(0.02)
    assert region.nodes[0].exchange._peers[1].unacked
    region.add(QUEUE, region.shards[0])
    region.run(0.0002)
    assert not region.nodes[0].exchange._peers[1].unacked
    assert "taken" not in sent(region)


def test_a_lost_shard_takes_its_loans_back(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    region.add(QUEUE, region.shards[0])
    region.add(QUEUE, region.shards[0])
    region.run(0.001)
    assert region.nodes[1].matching.queue(QUEUE).borrowed
    region.nodes[0].exchange.drop_shard(lambda task: True)
    region.run(0.001)
    assert not region.nodes[0].matching.queue(QUEUE).lent
    assert not region.nodes[0].matching.queue(QUEUE).window
    assert not region.nodes[1].matching.queue(QUEUE).borrowed
    assert not region.nodes[1].exchange._peers[0].borrowed


def test_a_withdrawn_query_is_withdrawn_where_it_is_lent(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    region.add(QUEUE, region.shards[0], durable=False)
    region.run(0.001)
    (task, _), *_ = region.nodes[0].exchange._peers[1].lent.values()
    region.nodes[0].matching.withdraw(task)
    region.run(0.001)
    assert not region.nodes[0].exchange._peers[1].lent
    assert not region.nodes[1].matching.queue(QUEUE).borrowed


def test_a_lent_task_is_not_fetched_again(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(QUEUE, waiting)
    region.add(QUEUE, region.shards[0])
    region.run(0.001)
    region.nodes[0].matching.resync()
    own = poll(region.nodes[0])
    assert own.open
    assert region.nodes[0].matching.queue(QUEUE).parked
    assert not region.nodes[0].matching.queue(QUEUE).window
    assert region.nodes[0].matching.describe(QUEUE).backlog_count == 1


def test_a_sticky_queue_is_alive_where_its_worker_is(region: Region) -> None:
    node = region.nodes[0]
    assert not node.matching.has_live_poller(STICKY)
    waiting = poll(region.nodes[1], STICKY)
    region.run(0.01)
    assert node.matching.has_live_poller(STICKY)
    second = poll(region.nodes[2], STICKY)
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(STICKY, waiting)
    second.open = False
    region.nodes[2].matching.cancel_poll(STICKY, second)
    works = [region.add(STICKY, region.shards[n], normal=NORMAL) for n in range(3)]
    region.run(0.5)
    close(waiting)
    region.run(0.01)
    assert all(other.matching.has_live_poller(STICKY) for other in region.nodes)
    assert [work.queue for work in works if work] == [STICKY] * 3
    close(second)
    region.run(0.01)
    assert not any(other.matching.has_live_poller(STICKY) for other in region.nodes)
    assert [work.queue for work in works if work] == [NORMAL] * 3


@pytest.mark.parametrize("lent", [True, False])
def test_sticky_tasks_of_a_dead_node_are_rerouted(region: Region, lent: bool) -> None:
    waiting = poll(region.nodes[1], STICKY)
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(STICKY, waiting)
    work = region.add(STICKY, region.shards[0], normal=NORMAL)
    assert work is not None
    region.run(0.01 if lent else 0.5)
    assert bool(region.nodes[0].exchange._peers[1].lent) == lent
    region.kill(1)
    region.run(0.5)
    assert work.queue == NORMAL


def test_a_sticky_task_comes_back_from_a_dead_node_whose_worker_went_before(region: Region) -> None:
    waiting = poll(region.nodes[1], STICKY)
    region.run(0.01)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(STICKY, waiting)
    work = region.add(STICKY, region.shards[0], normal=NORMAL)
    assert work is not None
    node = region.nodes[0]
    node.exchange.received(1, ["absent", *STICKY])  # and the node dies before it gives the loan back
    assert work.queue == STICKY
    node.exchange.peer_down(1)
    assert work.queue == NORMAL


def test_a_node_with_idle_polls_is_noticed_by_nodes_with_busy_workers(region: Region) -> None:
    """Both nodes have workers; those of 1 were busy when it told of them, and are idle now."""
    poll(region.nodes[0])
    first = poll(region.nodes[1])
    region.run(0.01)
    for number in (0, 1):  # one task each: nobody is idle now, and 0 was told so
        region.add(QUEUE, region.shards[0], priority=1 + 2 * number)
    region.run(0.05)
    assert not first.open
    peer = region.nodes[0].matching.queue(QUEUE).peers[1]
    assert peer.idle == 0
    sent(region)
    poll(region.nodes[1])
    region.run(exchange.NOTICE_S / 2)
    assert peer.idle == 0
    region.run(exchange.NOTICE_S)
    assert peer.idle == 1
    assert sent(region)["credit"] == 1


def test_a_worker_that_shuts_down_takes_its_sticky_queue_with_it_everywhere(region: Region) -> None:
    waiting = poll(region.nodes[1], STICKY)
    region.run(0.01)
    for found in region.nodes[1].matching.cancel_worker_polls("key", "n"):
        found.open = False
    assert not waiting.open
    region.nodes[1].matching.abandon(STICKY)
    region.run(0.01)
    assert not any(node.matching.has_live_poller(STICKY) for node in region.nodes)


def test_a_worker_that_stops_polling_is_absent_after_a_while(region: Region) -> None:
    waiting = poll(region.nodes[1], STICKY)
    region.run(60)
    assert region.nodes[0].matching.has_live_poller(STICKY)
    waiting.open = False
    region.nodes[1].matching.cancel_poll(STICKY, waiting)
    region.run(16)
    assert not region.nodes[0].matching.has_live_poller(STICKY)
    assert not region.nodes[1].exchange._demands


def test_tasks_of_nodes_without_workers_have_their_turn_in_a_backlog(region: Region) -> None:
    """All workers are at one node, which has more tasks of its own than they can do."""
    worker = Worker(region, "w", [(QUEUE, None)], 2)
    worker.busy_ms = 2
    works = [region.add(QUEUE, region.shards[n % 3]) for n in range(900)]
    worker.connect_to(region.nodes[1])
    region.run(1)
    done = [sum(work.done for work in works[n::3] if work) for n in range(3)]
    assert 100 < sum(done) < 700
    assert min(done) > 0.5 * max(done), done


def test_nodes_with_workers_of_their_own_do_not_swap_backlogs(region: Region) -> None:
    for node in region.nodes:
        worker = Worker(region, f"w{node.number}", [(QUEUE, None)], 2)
        worker.busy_ms = 2
        worker.connect_to(node)
    region.run(0.01)
    works = [region.add(QUEUE, region.shards[n % 3]) for n in range(900)]
    sent(region)
    region.run(1)
    done = sum(work.done for work in works if work)
    assert 200 < done < 900
    assert sent(region).get("offer", 0) < done / 10


@pytest.mark.parametrize("nodes", [1, 2, 3])
def test_a_limit_is_shared_by_the_nodes_that_poll(region: Region, nodes: int) -> None:
    for node in region.nodes[:nodes]:
        worker = Worker(region, f"w{node.number}", [(QUEUE, 20.0)], 3)
        worker.busy_ms = 1
        worker.connect_to(node)
    region.run(0.1)
    works = [region.add(QUEUE, region.shards[n % 3]) for n in range(500)]
    region.run(2)
    sent(region)
    before = sum(work.done for work in works if work)
    region.run(10)
    after = sum(work.done for work in works if work)
    assert 180 <= after - before <= 220
    assert sum(sent(region).values()) < 10 * (after - before)


def test_two_nodes_tasks_may_share_a_place(region: Region) -> None:
    waiting = poll(region.nodes[0])
    region.run(0.01)
    waiting.open = False
    region.nodes[0].matching.cancel_poll(QUEUE, waiting)
    node = region.nodes[0]
    for other in (1, 2):
        message = ["offer", *QUEUE, 77, 3, 5, 0]
        node.offers[other, 77] = (QUEUE, 3, 5)
        node.exchange.received(other, message)
    queue = node.matching.queue(QUEUE)
    assert len(queue.borrowed) == 2
    node.exchange.received(2, ["withdraw", 77])
    assert [task.node for _, _, task in queue.borrowed] == [1]


def test_messages_of_strangers_and_of_later_versions_are_ignored(region: Region) -> None:
    node = region.nodes[0]
    node.exchange.received(9, ["offer", *QUEUE, 1, 3, 5, 0])
    node.exchange.received(1, ["novelty", 1, 2])
    node.exchange.received(1, ["refuse", 5, "more"])
    node.exchange.received(1, ["void", 5])
    node.exchange.received(1, ["withdraw", 5])
    node.exchange.received(1, ["absent", *QUEUE])
    sent(region)
    node.exchange.received(1, ["start", 5, 6, 0, 0, [], "more"])
    node.exchange.received(1, ["task", 5, b"", ["receipt"], 9])
    assert sent(region) == {"void": 1, "undelivered": 1}


def test_a_task_whose_start_fails_waits_again(region: Region) -> None:
    waiting = poll(region.nodes[1])
    region.run(0.01)
    work = region.add(QUEUE, region.shards[0])
    assert work is not None

    def fail(*_: object) -> bool:
        raise RuntimeError("disk full")

    node = region.nodes[0]
    start_lent, node.start_lent = node.start_lent, fail
    with pytest.raises(RuntimeError, match="disk full"):
        region.run(0.01)
    node.start_lent = start_lent
    region.run(0.05)
    assert work.done
    assert not waiting.open


def test_a_node_alone_does_nothing() -> None:
    region = Region(random.Random(1), nodes=1, shards=1)
    node = region.nodes[0]
    waiting = poll(node)
    region.add(QUEUE, region.shards[0])
    region.run(0.1)
    assert not waiting.open
    assert node.matching.exchange is None
    assert not node.exchange._demands
    assert not region._heap


def test_statistics_of_nodes_add_up() -> None:
    a = PollerInfo("a", 5, 1.0, None)
    b = PollerInfo("b", 6, 1.0, None)
    later = PollerInfo("a", 7, 2.0, "v")
    merged = merge([QueueStats([a, b], 3, 10, 1.0, 0.5), QueueStats([later], 4, 20, 2.0, 0.25)])
    assert merged == QueueStats([later, b], 7, 20, 3.0, 0.75)
    assert merge([]) == QueueStats([], 0, 0, 0.0, 0.0)


def test_presence_is_looked_at_often_enough() -> None:
    assert exchange.PRESENCE_S * 1e9 < task_queue.LIVE_POLL_NS
