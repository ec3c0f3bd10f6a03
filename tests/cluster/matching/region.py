"""A region in one process under virtual time: real brokers and exchanges; the rest is modelled.

The network keeps the order of a link and loses everything after the first lost message, until it is connected
again. What must hold is asserted where it happens; `Region.judge` says what must hold in the end.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from cluster.matching import Matching, QueueKey
from cluster.matching.exchange import Exchange

SECOND = 1_000_000_000
MS = 1_000_000

NORMAL = [QueueKey("n", 1, "orders"), QueueKey("n", 2, "orders")]
LIMITED = QueueKey("n", 2, "limited")


@dataclass(eq=False)
class Connection:
    closed: bool = False


@dataclass(eq=False)
class Poll:
    node: Node
    queue: QueueKey
    sticky: bool
    connection: Connection
    identity: str
    worker_instance_key: str
    on_answer: Callable[[], None] = lambda: None
    versioning: object = None
    rate_per_second: float | None = None
    open: bool = True


@dataclass(eq=False)
class Work:
    """The truth about a task, as its shard knows it."""

    number: int
    shard: Shard = field(repr=False)
    queue: QueueKey
    normal: QueueKey | None  # of a sticky task: where it goes if its worker dies
    priority: int
    sequence: int
    durable: bool
    created_ns: int
    stamp: int = 0
    waiting: bool = True  # neither started nor void
    done: bool = False  # a worker has it
    lost: bool = False  # it was not durable, and its node died or lost the shard
    starts: int = 0
    given_back: int = 0


@dataclass(eq=False)
class Shard:
    number: int
    leader: Node | None
    term: int = 0
    works: dict[int, Work] = field(default_factory=dict, repr=False)


class Ticket:
    """A task as matching sees it."""

    def __init__(self, node: Node, work: Work) -> None:
        self.node = node
        self.work = work
        self.stamp = work.stamp
        self.queue = work.queue
        self.priority = work.priority
        self.sequence = work.sequence
        self.durable = work.durable
        self.created_ns = work.created_ns

    @property
    def valid(self) -> bool:
        work = self.work
        return work.waiting and work.stamp == self.stamp and work.shard.leader is self.node

    def start(self, poll: Poll) -> bool:
        assert poll.open
        assert not poll.connection.closed
        assert poll.node is self.node
        assert poll.queue == self.queue
        if not self.valid:
            return False
        self.node.check_first(self.queue, self.priority, self.sequence)
        self.node.begin(self.work, poll, None)
        return True

    def reroute(self) -> None:
        if self.valid and self.work.normal is not None:
            assert self.node.region.shutting_down or not self.node.matching.has_live_poller(self.queue)
            self.work.stamp += 1
            self.work.queue, self.work.normal = self.work.normal, None
            self.node.region.rerouted += 1
            self.node.matching.offer(Ticket(self.node, self.work))


class Node:
    """One node: a Source, a Clock and a Host."""

    def __init__(self, region: Region, number: int) -> None:
        self.region = region
        self.number = number
        self.alive = True
        self.matching = Matching(self, self, on_throttled=self.throttled)
        self.exchange = Exchange(self.matching, self, self)
        self.starting: set[Poll] = set()  # polls of ours whose task is about to be committed
        self.offers: dict[tuple[int, int], tuple[QueueKey, int, int]] = {}
        self.sent: dict[str, int] = {}
        self.last_sequence = 0

    # ---- ports

    def now_ns(self) -> int:
        return self.region.now

    def throttled(self, queue: QueueKey, wait_ns: int) -> None:
        self.call_later(wait_ns / 1e9, lambda: self.matching.resume(queue))

    def works(self, queue: QueueKey) -> list[Work]:
        return [
            work
            for shard in self.region.shards
            if shard.leader is self
            for work in shard.works.values()
            if work.waiting and work.queue == queue
        ]

    def fetch(self, queue: QueueKey, limit: int) -> list[Ticket]:
        found = [work for work in self.works(queue) if work.durable]
        found.sort(key=lambda work: (work.priority, work.sequence))
        return [Ticket(self, work) for work in found[:limit]]

    def count(self, queue: QueueKey) -> int:
        return sum(work.durable for work in self.works(queue))

    def send(self, node: int, message: list[Any]) -> None:
        assert self.alive
        self.sent[message[0]] = self.sent.get(message[0], 0) + 1
        if message[0] == "offer":
            lent = [task.sequence for peer in self.exchange._peers.values() for task, _ in peer.lent.values()]
            assert lent.count(message[6]) == 1, "lent twice"
        elif message[0] == "start":
            self.check_first(*self.offers.pop((node, message[1])))
        self.region.send(self.number, node, message)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> None:
        def call() -> None:
            if self.alive:
                callback()

        self.region.after(int(delay_s * SECOND), call)

    def poll_fields(self, poll: Poll) -> list[object]:
        assert poll.open
        assert not poll.connection.closed
        return [poll.identity, poll.worker_instance_key]

    def start_lent(self, ticket: Ticket, node: int, poll_id: int, fields: list[object]) -> bool:
        assert len(fields) == 2
        if not ticket.valid:
            return False
        self.begin(ticket.work, None, (node, poll_id))
        return True

    def answer(self, poll: Poll, node: int, body: bytes, receipt: Any) -> bool:
        if not poll.open:
            return False
        work = self.region.works[receipt[0]]
        assert body == b"%d" % work.number
        assert poll.queue in receipt[2]
        self.region.deliver(work, receipt[1], poll)
        return True

    def undelivered(self, node: int, receipt: Any, *, certain: bool) -> None:
        self.region.give_back(self.region.works[receipt[0]], receipt[1])

    # ---- shards

    def check_first(self, key: QueueKey, priority: int, sequence: int) -> None:
        """Nothing that waits at this node and is not lent comes before this task."""
        place = (priority, sequence)
        queue = self.matching.queue(key)
        assert all(entry[:2] >= place for entry in queue.borrowed)
        for work in self.works(key):
            assert (work.priority, work.sequence) >= place or work.sequence in queue.lent, work

    def begin(self, work: Work, poll: Poll | None, remote: tuple[int, int] | None) -> None:
        """Started; the commit takes a while and may fail."""
        assert work.waiting
        assert not work.done
        work.waiting = False
        work.starts += 1
        shard, term, stamp = work.shard, work.shard.term, work.stamp
        receipt = [work.number, stamp, [work.queue]]
        if poll is not None:
            self.starting.add(poll)

        def committed() -> None:
            if not self.alive:
                return
            if poll is not None:
                self.starting.discard(poll)
            if shard.term != term:  # the shard has dropped the start
                if poll is not None and poll.open:
                    self.matching.poll(poll.queue, poll, poll.sticky)
                elif remote is not None:
                    self.exchange.void(*remote)
            elif poll is not None:
                if poll.open:
                    self.region.deliver(work, stamp, poll)
                else:
                    self.region.give_back(work, stamp)
            elif remote is not None and not self.exchange.deliver(*remote, b"%d" % work.number, receipt):
                self.region.give_back(work, stamp)

        self.region.after(self.region.rng.randrange(20 * MS), committed)

    def offer(self, work: Work) -> None:
        ticket = Ticket(self, work)
        if work.normal is not None and not self.matching.has_live_poller(work.queue):
            ticket.reroute()
        elif not self.matching.offer(ticket):
            work.waiting = False
            work.lost = True


class Region:
    """Nodes, shards, network, time."""

    def __init__(self, rng: random.Random, nodes: int = 3, shards: int = 6, delay_ms: float = 5.0) -> None:
        self.rng = rng
        self.now = 1_000_000 * SECOND
        self.delay_ns = int(delay_ms * MS)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._ticks = itertools.count()
        self._links: dict[tuple[int, int], int] = {}  # connected: its session
        self._arrival: dict[tuple[int, int], int] = {}
        self._sessions = itertools.count(1)
        self.works: dict[int, Work] = {}
        self.rerouted = 0
        self.stale = 0
        self.shutting_down = False  # a worker says that it goes: its sticky queue is abandoned while it lives
        self.nodes = [Node(self, number) for number in range(nodes)]
        self.shards = [Shard(number, self.nodes[number % nodes]) for number in range(shards)]

    # ---- time

    def after(self, delay_ns: int, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_ns, next(self._ticks), call))

    def run(self, seconds: float) -> None:
        end = self.now + int(seconds * SECOND)
        while self._heap and self._heap[0][0] <= end:
            self.now, _, call = heapq.heappop(self._heap)
            call()
        self.now = end

    # ---- network

    def connect_all(self) -> None:
        for a in self.nodes:
            for b in self.nodes:
                if a is not b:
                    self.connect(a.number, b.number)

    def connect(self, a: int, b: int) -> None:
        """a can send to b from now on."""
        if self.nodes[a].alive and self.nodes[b].alive:
            self._links[a, b] = next(self._sessions)
            self.nodes[a].exchange.peer_up(b)

    def send(self, a: int, b: int, message: list[Any]) -> None:
        session = self._links.get((a, b))
        if session is None:
            return
        at = max(self._arrival.get((a, b), 0), self.now + self.rng.randrange(self.delay_ns))
        self._arrival[a, b] = at
        target = self.nodes[b]

        def arrive() -> None:
            if self._links.get((a, b)) == session and target.alive:
                if message[0] == "offer":
                    target.offers[a, message[4]] = (QueueKey(*message[1:4]), message[5], message[6])
                target.exchange.received(a, message)

        self.after(at - self.now, arrive)

    def cut(self, a: int, b: int) -> None:
        """The connection from a to b breaks: a notices, and connects again."""
        rng = self.rng
        if self._links.pop((a, b), None) is None:
            return
        node = self.nodes[a]

        def noticed() -> None:
            if node.alive and node is self.nodes[a]:
                node.exchange.peer_down(b)
                self.after(rng.randrange(500 * MS), again)

        def again() -> None:
            if node.alive and node is self.nodes[a] and (a, b) not in self._links:
                self.connect(a, b)

        self.after(rng.randrange(300 * MS), noticed)

    # ---- nodes and shards

    def kill(self, number: int) -> None:
        node = self.nodes[number]
        node.alive = False
        for link in [link for link in self._links if number in link]:
            del self._links[link]
        for other in self.nodes:
            if other is not node and other.alive:
                other.call_later(self.rng.random() * 0.3, lambda other=other: self.sees_death(other, node))
        for shard in self.shards:
            if shard.leader is node:
                self.depose(shard)

    def sees_death(self, other: Node, node: Node) -> None:
        if (other.number, node.number) not in self._links:
            other.exchange.peer_down(node.number)

    def restart(self, number: int) -> None:
        assert not self.nodes[number].alive
        self.nodes[number] = Node(self, number)
        for other in self.nodes:
            if other.alive and other.number != number:
                for a, b in ((number, other.number), (other.number, number)):
                    self.after(self.rng.randrange(300 * MS), lambda a=a, b=b: self.reconnect(a, b))

    def reconnect(self, a: int, b: int) -> None:
        if (a, b) not in self._links:
            self.connect(a, b)

    def depose(self, shard: Shard) -> None:
        """Its leader is dead or leads no more; another takes over after a while."""
        old, shard.leader = shard.leader, None
        shard.term += 1
        for work in shard.works.values():
            if not work.durable and not work.done:
                work.lost = True
                work.waiting = False
        if old is not None and old.alive:
            old.exchange.drop_shard(lambda task: task.work.shard is shard)
        self.after(self.rng.randrange(500 * MS), lambda: self.elect(shard))

    def elect(self, shard: Shard) -> None:
        alive = [node for node in self.nodes if node.alive]
        if not alive:
            self.after(100 * MS, lambda: self.elect(shard))
            return
        leader = shard.leader = self.rng.choice(alive)
        term = shard.term
        # Started, and whether the worker has it is unknown: after a while it is handed over.
        orphans = [
            (work, work.stamp)
            for work in shard.works.values()
            if not (work.waiting or work.done or work.lost)
        ]

        def hand_over() -> None:
            for work, stamp in orphans:
                if shard.term == term:
                    self.give_back(work, stamp)

        self.after(SECOND, hand_over)
        leader.matching.resync()
        for work in list(shard.works.values()):
            if work.waiting and work.normal and not leader.matching.has_live_poller(work.queue):
                Ticket(leader, work).reroute()

    def add(
        self,
        queue: QueueKey,
        shard: Shard,
        priority: int = 3,
        durable: bool = True,
        normal: QueueKey | None = None,
    ) -> Work | None:
        leader = shard.leader
        if leader is None:
            return None
        sequence = max(leader.last_sequence + 4, self.now * 4 + leader.number)
        leader.last_sequence = sequence
        work = Work(len(self.works), shard, queue, normal, priority, sequence, durable, self.now)
        self.works[work.number] = shard.works[work.number] = work
        leader.offer(work)
        return work

    def deliver(self, work: Work, stamp: int, poll: Poll) -> None:
        """A worker is given a task."""
        assert poll.open
        poll.open = False
        if work.stamp == stamp:
            assert not work.done, "given out twice"
            assert not work.waiting, "given out without a start"
            work.done = True
        else:
            self.stale += 1  # it was given back because nobody knew; the worker will be told so
        poll.on_answer()

    def give_back(self, work: Work, stamp: int) -> None:
        if work.stamp != stamp or work.done or work.lost or work.waiting:
            return
        work.stamp += 1
        work.waiting = True
        work.given_back += 1
        if work.shard.leader is not None:
            work.shard.leader.offer(work)

    # ---- judgement

    def check(self, polls: Iterable[Poll]) -> None:
        """At any time: no poll is forgotten, and no task waits for a worker known to be gone."""
        for poll in polls:
            if poll.open and poll.node.alive:
                waits = poll in poll.node.matching.queue(poll.queue).parked
                promised = [a for a in poll.node.exchange._awaiting.values() if a.poller is poll]
                assert waits + len(promised) + (poll in poll.node.starting) == 1, poll
        for work in self.works.values():
            leader = work.shard.leader
            if work.waiting and work.normal is not None and leader is not None:
                lent = work.sequence in leader.matching.queue(work.queue).lent  # its return decides
                assert lent or leader.matching.has_live_poller(work.queue), work

    def judge(self) -> None:
        for work in self.works.values():
            assert work.done or work.lost, work
            assert not (work.lost and work.durable), work

    def judge_empty(self) -> None:
        """No worker is left and no task: nothing is remembered of any exchange."""
        for node in self.nodes:
            exchange = node.exchange
            assert not exchange._demands
            assert not exchange._present
            assert not exchange._awaiting
            assert not exchange._noticed
            assert not exchange._sweeping
            assert not exchange._checking
            assert len(exchange._peers) == len(self.nodes) - 1
            for peer in exchange._peers.values():
                assert not any([peer.pollers, peer.lent, peer.borrowed, peer.unacked])
            for queue in node.matching._queues.values():
                assert not any([queue.peers, queue.lent, queue.borrowed, queue.parked, queue.volatile])
                assert queue.demand is None
                assert not any(entry[2].valid for entry in queue.window)
            node.matching.forget_idle(self.now + 1_000 * SECOND)
            assert len(node.matching) == 0
            assert not node.matching._queues_by_connection


class Worker:
    """A worker process: some polls on the node it is connected to, of its queues and its sticky queue."""

    def __init__(self, region: Region, name: str, queues: list[tuple[QueueKey, float | None]], polls: int):
        self.region = region
        self.name = name
        self.queues = queues
        self.sticky = QueueKey("n", 1, f"{name}:sticky")
        self.polls = polls
        self.busy_ms = 20
        self.done = 0
        self.node: Node | None = None
        self.connection = Connection(closed=True)
        self.open: dict[Poll, None] = {}
        self.stopped = False

    def connect(self) -> None:
        """To any node that lives."""
        self.disconnect()
        alive = [node for node in self.region.nodes if node.alive]
        if alive and not self.stopped:
            self.connect_to(self.region.rng.choice(alive))

    def connect_to(self, node: Node) -> None:
        self.node = node
        self.connection = Connection()
        for queue, rate in [*self.queues, (self.sticky, None)]:
            for _ in range(self.polls):
                self.poll(queue, rate, self.connection)

    def disconnect(self) -> None:
        node, self.node = self.node, None
        self.connection.closed = True
        for poll in self.open:
            poll.open = False
        self.open.clear()
        if node is not None and node.alive:
            node.matching.connection_closed(self.connection)

    def stop(self) -> None:
        self.stopped = True
        self.disconnect()

    def poll(self, queue: QueueKey, rate: float | None, connection: Connection) -> None:
        node, rng = self.node, self.region.rng
        if node is None or not node.alive or self.connection is not connection:
            return
        poll = Poll(node, queue, queue is self.sticky, connection, self.name, self.name, rate_per_second=rate)
        self.open[poll] = None

        def again() -> None:
            self.poll(queue, rate, connection)

        def answered() -> None:
            self.done += 1
            self.open.pop(poll, None)
            self.region.after(rng.randrange(1 + self.busy_ms * MS), again)

        def expired() -> None:
            if poll.open and node.alive:
                poll.open = False
                self.open.pop(poll, None)
                node.matching.cancel_poll(queue, poll)
                again()

        poll.on_answer = answered
        self.region.after(rng.randrange(200 * MS, 5 * SECOND), expired)
        node.matching.poll(queue, poll, poll.sticky)
