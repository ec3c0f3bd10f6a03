"""The exchange: tasks of one node and polls of another come together.

Theory of operation. No node owns a queue. Each has the waiting tasks of the shards it leads and the polls
of the clients connected to it, and its broker brings these together at no cost. What is left is exchanged:

    P, which has polls                     S, which has tasks
      credit(queue, credit, idle)  ------->  a PeerPoller in S's broker, served when no poll of S waits
      a BorrowedTask in P's broker <-------  offer(queue, loan, priority, sequence)
      its poll waits for the task  ------->  start(loan, poll): the shard records it as started
      the poll is answered         <-------  task(poll, bytes), or void(poll): the poll waits again

*A loan is a right to ask, not a task.* S remembers what it lent and decides at `start`, so whatever happens
to P or to messages, a task is started once. A loan that P cannot use goes back (`refuse`).

*A credit is a window, not a count of polls.* S may lend `credit` tasks at a time; a started one makes room
for the next. So a worker that polls again and again costs no messages. A credit grows when twice as many
polls wait, and ends when a loan is refused: then the next poll grants a new one. (Neither side needs to ask
the other what it believes: both change it at the same messages, in order.)

*Idle polls come first.* With its credit P says how many polls wait for nothing, and again with every start.
S lends to nodes with idle polls. A node whose polls are all busy is granted to as well, but used only by
nodes that have no worker at all: otherwise the tasks of a node without workers would wait behind all tasks
of the others. Conversely P gives a loan back as soon as it has no poll for it and knows that some other
node has.

*A sticky queue lives where its worker is.* A credit, even of zero, says that a worker of the queue is alive
at P; `absent` says that none is. When the last one is gone the queue is abandoned at every node.

*Losing messages is losing everything.* Whoever may have lost messages to a peer forgets all it knows of it
(`peer_down`), and says hello when it is up again, whereupon the other forgets as well: tasks that were lent
wait again, polls that were promised something wait again, borrowed tasks vanish, credits are told anew. Ids
are never used twice, not even by a later process of the node, so that a late message finds nothing.

Started tasks on their way to P are kept until P says that it has them, so that they can be given back if it
dies.

Not here: who is up (the caller says), what is in a task, and what is done with one that was not delivered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.matching.broker import AGAIN_NS, Matching
from cluster.matching.contract import Clock, Host, NodeId, NotNow, Poller, QueueKey, Task
from cluster.matching.loans import RAISE_NEVER, Awaiting, BorrowedTask, Demand, Peer, PeerPoller, Told
from cluster.matching.task_queue import LIVE_POLL_NS, Queue

LOAN_S = 0.1  # a borrowed task that no poll has come for goes back
LOAN_S_MAX = 1.0  # and after this even if polls come: they are given others
NOTICE_S = 0.005  # how long polls may wait for nothing while a node believes that none does
ACK_S = 0.05  # started tasks are acknowledged at the next start, or after this
AGAIN_S = AGAIN_NS / 1e9  # until a task that could not be started may be lent again
PRESENCE_S = LIVE_POLL_NS / 2e9  # how often it is looked whether a worker still polls
CREDIT_MAX = 256  # tasks of one queue that one node may lend another at a time
CREDIT_BUSY = 2  # the credit of a node whose polls never wait: one to start, one on its way

LOAN_NS = int(LOAN_S * 1e9)
LOAN_NS_MAX = int(LOAN_S_MAX * 1e9)

assert NOTICE_S < LOAN_S < LOAN_S_MAX

Message = list[Any]


class Exchange:
    """This node's part in the exchange. Event-loop only: no method waits. Without peers it does nothing."""

    def __init__(self, matching: Matching, clock: Clock, host: Host) -> None:
        self._matching = matching
        self._host = host
        self._send = host.send
        self._now_ns = clock.now_ns
        self._peers: dict[NodeId, Peer] = {}  # those that are up
        self._demands: dict[QueueKey, Demand] = {}  # the queues that our workers poll
        self._present: dict[QueueKey, dict[NodeId, PeerPoller]] = {}  # the queues that others' workers poll
        self._awaiting: dict[int, Awaiting] = {}  # by poll id: polls that are promised a task
        # Ids of loans, polls and deliveries: a later process of this node begins with larger ones.
        self._last_id = clock.now_ns()
        self._noticed: list[Demand] = []
        self._sweeping = False
        self._checking = False
        self._handlers: dict[str, Callable[[Peer, Message], None]] = {
            "offer": self._offered,
            "start": self._started,
            "task": self._delivered,
            "void": self._voided,
            "credit": self._credited,
            "refuse": self._refused,
            "taken": self._acknowledged,
            "undelivered": self._undelivered,
            "withdraw": self._withdrawn,
            "absent": self._absented,
            "hello": self._greeted,
        }

    # ------------------------------------------------------------------------------- peers and messages

    def peer_up(self, node: NodeId) -> None:
        """A node can be reached, and nothing sent to it from now on will be lost before `peer_down`."""
        self.peer_down(node)
        self._matching.exchange = self
        self._send(node, ["hello"])
        self._welcome(node)

    def peer_down(self, node: NodeId) -> None:
        """A node is gone, or messages to it may have been lost. What it sends is ignored until it is up."""
        peer = self._peers.get(node)
        if peer is not None:
            self._forget(peer)

    def received(self, node: NodeId, message: Message) -> None:
        """A message of a peer. One of a kind that a later version added is ignored."""
        peer = self._peers.get(node)
        handler = self._handlers.get(message[0])
        if peer is not None and handler is not None:
            handler(peer, message)

    def _greeted(self, peer: Peer, _message: Message) -> None:
        """It has forgotten all it knew of us: start anew."""
        self._forget(peer)
        self._welcome(peer.node)

    def _welcome(self, node: NodeId) -> None:
        """Begin with a peer: tell it what our workers poll."""
        self._peers[node] = Peer(node)
        for demand in self._demands.values():
            demand.told[node] = Told()
            self._grant(demand)
        for queue in self._matching.polled_queues():
            if queue.demand is None:
                self._grant(self._make_demand(queue))

    def _forget(self, peer: Peer) -> None:
        """End with a peer: what it held of ours is ours again."""
        node = peer.node
        del self._peers[node]
        for demand in self._demands.values():
            demand.told.pop(node, None)
        for task in peer.borrowed.values():
            self._unborrow(task)
        peer.borrowed.clear()
        pollers = list(peer.pollers.values())
        for poller in pollers:
            self._remove(poller)
        back: dict[Queue, list[Task]] = {}
        for lent, poller in peer.lent.values():
            back.setdefault(poller.queue, []).append(lent)
        peer.lent.clear()
        for queue, tasks in back.items():
            self._matching.take_back(queue, tasks)
        # The last one goes to the front last, so that the first is first again.
        promised = [poll_id for poll_id, awaiting in self._awaiting.items() if awaiting.node == node]
        for poll_id in reversed(promised):
            self._repark(self._awaiting.pop(poll_id))
        for queue in {**back, **{poller.queue: [] for poller in pollers}}:
            self._abandon_if_dead(queue)
        for _, receipt in peer.unacked:
            self._host.undelivered(node, receipt, certain=False)

    # ----------------------------------------------------------------------- our polls: what others know

    def polled(self, queue: Queue, now_ns: int) -> None:
        """A poll came, and has its task or waits; or waits again."""
        demand = queue.demand
        if demand is None:
            demand = self._make_demand(queue)
        demand.polled_ns = now_ns
        parked = len(queue.parked)
        if parked >= demand.raise_at:
            self._grant(demand)
        elif parked and demand.quiet and not demand.noticed:
            self._notice(demand)

    def absent(self, queue: Queue) -> None:
        """No worker of ours is alive on this queue any more."""
        demand = queue.demand
        if demand is None:
            return
        queue.demand = None
        del self._demands[queue.key]
        borrowed, queue.borrowed = queue.borrowed, []
        for _, _, task in borrowed:
            self.refuse(task)
        for node in demand.told:
            self._send(node, ["absent", *queue.key])

    def _make_demand(self, queue: Queue) -> Demand:
        demand = queue.demand = self._demands[queue.key] = Demand(queue)
        demand.told = {node: Told() for node in self._peers}
        self._matching.share_limit(queue, self.nodes(queue.key))
        if not self._checking:
            self._checking = True
            self._host.call_later(PRESENCE_S, self._check_presence)
        return demand

    def _check_presence(self) -> None:
        now_ns = self._now_ns()
        for demand in list(self._demands.values()):
            if not demand.queue.live(now_ns):
                self.absent(demand.queue)
        self._checking = bool(self._demands)
        if self._checking:
            self._host.call_later(PRESENCE_S, self._check_presence)

    def _grant(self, demand: Demand) -> None:
        """Tell a larger credit to those who know of none, or of one that has become much too small."""
        queue = demand.queue
        parked = len(queue.parked)
        credit = self._credit(queue)
        lowest = RAISE_NEVER
        for node, told in demand.told.items():
            if credit > told.credit and (told.credit <= 0 or parked >= 2 * told.credit):
                self._tell(demand, node, told, credit)
            if told.credit < lowest:
                lowest = told.credit
            if not told.idle:
                demand.quiet = True
        demand.raise_at = RAISE_NEVER if lowest >= CREDIT_MAX else max(0, 2 * lowest)
        if parked and demand.quiet:
            self._notice(demand)

    def _credit(self, queue: Queue) -> int:
        """What we could be lent: no more than the queue's limit lets through."""
        credit = min(len(queue.parked) or CREDIT_BUSY, CREDIT_MAX)
        dispatchable = self._matching.dispatchable(queue)
        return credit if dispatchable is None else min(credit, dispatchable)

    def _tell(self, demand: Demand, node: NodeId, told: Told, credit: int) -> None:
        told.credit = credit
        told.idle = min(credit, len(demand.queue.parked))
        self._send(node, ["credit", *demand.queue.key, demand.sticky, credit, told.idle])

    def _notice(self, demand: Demand) -> None:
        """Polls wait for nothing, and some node believes that none does: tell it if that lasts.

        Unless we are the only ones with workers: then it has no choice anyway.
        """
        if not demand.noticed and demand.queue.key in self._present:
            demand.noticed = True
            if not self._noticed:
                self._host.call_later(NOTICE_S, self._look)
            self._noticed.append(demand)

    def _look(self) -> None:
        noticed, self._noticed = self._noticed, []
        for demand in noticed:
            demand.noticed = False
            queue = demand.queue
            if queue.demand is not demand or not queue.parked:
                continue
            credit = self._credit(queue)
            for node, told in demand.told.items():
                if not told.idle and credit > 0:
                    self._tell(demand, node, told, max(told.credit, credit))
            demand.quiet = credit <= 0

    # ------------------------------------------------------------------------ our polls: borrowed tasks

    def matched(self, task: BorrowedTask, poller: Poller) -> bool:
        """A borrowed task is to be started for a poll of ours."""
        fields = self._host.poll_fields(poller)
        peer = self._peers.get(task.node)
        if peer is None or peer.borrowed.pop(task.loan_id, None) is None:
            return False
        self._last_id = poll_id = self._last_id + 1
        key = task.queue
        idle = 0
        sticky = False
        demand = self._demands.get(key)
        if demand is not None:
            sticky = demand.sticky
            idle = len(demand.queue.parked)
            demand.told[task.node].idle = idle
            if not idle:
                demand.quiet = True
        self._awaiting[poll_id] = Awaiting(poller, key, sticky, task.node)
        peer.acked = peer.received
        self._send(task.node, ["start", task.loan_id, poll_id, idle, peer.received, fields])
        return True

    def refuse(self, task: BorrowedTask) -> None:
        """We cannot use a borrowed task; its node takes this as the end of our credit."""
        peer = self._peers.get(task.node)
        if peer is None or peer.borrowed.pop(task.loan_id, None) is None:
            return
        demand = self._demands.get(task.queue)
        if demand is not None:
            demand.queue.unborrow(task)
            told = demand.told[task.node]
            told.credit = min(told.credit, 0)
            told.idle = 0
            demand.quiet = True
            demand.raise_at = 0
        self._send(task.node, ["refuse", task.loan_id])

    def poll_gone(self, poller: Poller) -> None:
        """A poll ended that does not wait in its queue: perhaps it is promised a task."""
        for awaiting in self._awaiting.values():
            if awaiting.poller is poller:
                awaiting.poller = None

    def worker_gone(self, worker_instance_key: str, namespace_id: str) -> list[Poller]:
        """A worker shuts down: those of its polls that are promised a task end too."""
        gone: list[Poller] = []
        for awaiting in self._awaiting.values():
            poller = awaiting.poller
            if (
                poller is not None
                and not poller.connection.closed
                and poller.worker_instance_key == worker_instance_key
                and awaiting.key.namespace_id == namespace_id
            ):
                gone.append(poller)
                awaiting.poller = None
        return gone

    def give_back(self, node: NodeId, receipt: object) -> None:
        """A worker of ours is gone that holds a task which `node` started. Without effect if that is down."""
        if node in self._peers:
            self._send(node, ["undelivered", receipt, 0])

    def _offered(self, peer: Peer, message: Message) -> None:
        _, namespace_id, kind, name, loan_id, priority, sequence, created_ns = message[:8]
        key = QueueKey(namespace_id, kind, name)
        now_ns = self._now_ns()
        task = BorrowedTask(self, peer.node, loan_id, key, priority, sequence, created_ns, now_ns)
        peer.borrowed[loan_id] = task
        demand = self._demands.get(key)
        if demand is None:
            self.refuse(task)
            return
        queue = demand.queue
        if not queue.parked and any(other.idle > 0 for other in queue.peers.values()):
            self.refuse(task)
            return
        queue.borrow(task)
        if queue.parked:
            self._matching.match(queue)
        if not self._sweeping and loan_id in peer.borrowed:
            self._sweeping = True
            self._host.call_later(LOAN_S, self._sweep)

    def _sweep(self) -> None:
        """Give back what waits in vain."""
        now_ns = self._now_ns()
        oldest_ns = 0
        for peer in self._peers.values():
            for task in list(peer.borrowed.values()):
                waited_ns = now_ns - task.arrived_ns
                if waited_ns >= LOAN_NS_MAX or (waited_ns >= LOAN_NS and not self._moves(task, now_ns)):
                    self.refuse(task)
                else:
                    oldest_ns = max(oldest_ns, waited_ns)
        self._sweeping = any(peer.borrowed for peer in self._peers.values())
        if self._sweeping:
            self._host.call_later(max(LOAN_S / 4, (LOAN_NS - oldest_ns) / 1e9), self._sweep)

    def _moves(self, task: BorrowedTask, now_ns: int) -> bool:
        """Whether polls of its queue come, and were given other tasks."""
        demand = self._demands.get(task.queue)
        return demand is not None and not demand.queue.parked and demand.polled_ns > now_ns - LOAN_NS

    def _withdrawn(self, peer: Peer, message: Message) -> None:
        task = peer.borrowed.pop(message[1], None)
        if task is not None:
            self._unborrow(task)

    def _unborrow(self, task: BorrowedTask) -> None:
        demand = self._demands.get(task.queue)
        if demand is not None:  # without workers of ours nothing is borrowed
            demand.queue.unborrow(task)

    def _delivered(self, peer: Peer, message: Message) -> None:
        _, poll_id, body, receipt, number = message[:5]
        peer.received = number
        awaiting = self._awaiting.pop(poll_id, None)
        poller = None if awaiting is None else awaiting.poller
        if poller is None or not self._host.answer(poller, peer.node, body, receipt):
            peer.acked = number
            self._send(peer.node, ["undelivered", receipt, number])
        elif not peer.ack_waits:
            peer.ack_waits = True
            self._host.call_later(ACK_S, lambda: self._acknowledge(peer))

    def _acknowledge(self, peer: Peer) -> None:
        peer.ack_waits = False
        if self._peers.get(peer.node) is peer and peer.acked != peer.received:
            peer.acked = peer.received
            self._send(peer.node, ["taken", peer.received])

    def _voided(self, peer: Peer, message: Message) -> None:
        awaiting = self._awaiting.get(message[1])
        if awaiting is not None and awaiting.node == peer.node:
            del self._awaiting[message[1]]
            self._repark(awaiting)

    def _repark(self, awaiting: Awaiting) -> None:
        if awaiting.poller is not None:
            self._matching.take_back_poll(awaiting.key, awaiting.poller, awaiting.sticky)

    # -------------------------------------------------------------------------- our tasks: others' polls

    def is_present(self, key: QueueKey) -> bool:
        """Whether a worker of another node is alive on this queue."""
        return key in self._present

    def nodes(self, key: QueueKey) -> int:
        """How many nodes have workers of this queue, this one included."""
        return 1 + len(self._present.get(key, ()))

    def lend(self, poller: PeerPoller, task: Task) -> None:
        """The broker has matched a task with polls of another node."""
        self._last_id = loan_id = self._last_id + 1
        poller.lent += 1
        poller.idle -= 1
        poller.peer.lent[loan_id] = (task, poller)
        namespace_id, kind, name = poller.key
        self._send(
            poller.node,
            ["offer", namespace_id, kind, name, loan_id, task.priority, task.sequence, task.created_ns],
        )

    def deliver(self, node: NodeId, poll_id: int, body: bytes, receipt: object) -> bool:
        """A task that was started for a poll of `node` is committed: here is the poll's answer.

        False: the node is down, nothing was sent. Else `Host.undelivered` is told if it does not arrive.
        """
        peer = self._peers.get(node)
        if peer is None:
            return False
        self._last_id = number = self._last_id + 1
        peer.unacked.append((number, receipt))
        self._send(node, ["task", poll_id, body, receipt, number])
        return True

    def void(self, node: NodeId, poll_id: int) -> None:
        """A task that was to be started for a poll of `node` is void after all: the poll waits on."""
        if node in self._peers:
            self._send(node, ["void", poll_id])

    def withdrawn(self, task: Task) -> None:
        """A task is void that does not wait in its queue: perhaps it is lent."""
        self._take_loans(lambda lent: lent.sequence == task.sequence and lent.queue == task.queue)

    def drop_shard(self, lost: Callable[[Task], bool]) -> None:
        """This node leads a shard no more: forget its tasks (those for which `lost` is true), lent or not."""
        self._matching.drop(lost)
        self._take_loans(lost)

    def _take_loans(self, void: Callable[[Task], bool]) -> None:
        """Forget loans and tell the borrowers; then lend others in their place."""
        freed: dict[Queue, None] = {}
        for peer in self._peers.values():
            found = [(loan_id, poller) for loan_id, (task, poller) in peer.lent.items() if void(task)]
            for loan_id, poller in found:
                task, _ = peer.lent.pop(loan_id)
                poller.queue.lent.discard(task.sequence)
                poller.lent -= 1
                poller.idle += 1
                freed[poller.queue] = None
                self._send(peer.node, ["withdraw", loan_id])
        for queue in freed:
            self._matching.match(queue)

    def _credited(self, peer: Peer, message: Message) -> None:
        _, namespace_id, kind, name, sticky, credit, idle = message[:7]
        key = QueueKey(namespace_id, kind, name)
        poller = peer.pollers.get(key)
        if poller is None:
            poller = self._meet(peer, key, sticky)
        poller.credit = credit
        poller.idle = idle - poller.lent
        queue = poller.queue
        if poller.lent < credit:
            self._matching.match(queue)
        if poller.idle > 0 and queue.borrowed and not queue.parked:
            for _, _, task in queue.borrowed[: poller.idle]:
                self.refuse(task)

    def _meet(self, peer: Peer, key: QueueKey, sticky: bool) -> PeerPoller:
        """A peer's workers begin to poll a queue."""
        queue = self._matching.queue(key)
        queue.sticky = queue.sticky or sticky
        poller = peer.pollers[key] = queue.peers[peer.node] = PeerPoller(peer, queue, sticky)
        self._present.setdefault(key, {})[peer.node] = poller
        self._matching.share_limit(queue, self.nodes(key))
        demand = queue.demand
        if demand is not None and demand.quiet and queue.parked:
            self._notice(demand)
        return poller

    def _absented(self, peer: Peer, message: Message) -> None:
        poller = peer.pollers.get(QueueKey(*message[1:4]))
        if poller is not None:
            self._remove(poller)
            self._abandon_if_dead(poller.queue)

    def _remove(self, poller: PeerPoller) -> None:
        """A peer's workers of a queue are gone."""
        key = poller.key
        del poller.peer.pollers[key]
        del poller.queue.peers[poller.node]
        present = self._present[key]
        del present[poller.node]
        if not present:
            del self._present[key]
        self._matching.share_limit(poller.queue, self.nodes(key))

    def _abandon_if_dead(self, queue: Queue) -> None:
        if queue.sticky and not self._matching.has_live_poller(queue.key):
            self._matching.abandon(queue.key)

    def _started(self, peer: Peer, message: Message) -> None:
        _, loan_id, poll_id, idle, number, fields = message[:6]
        self._acknowledge_until(peer, number)
        loan = peer.lent.pop(loan_id, None)
        if loan is None:
            self._send(peer.node, ["void", poll_id])
            return
        task, poller = loan
        poller.lent -= 1
        poller.idle = idle - poller.lent
        queue = poller.queue
        try:
            started = self._host.start_lent(task, peer.node, poll_id, fields)
        except NotNow:
            self.void(peer.node, poll_id)
            # Lent again at once, it would come back at once.
            self._host.call_later(AGAIN_S, lambda: self._matching.take_back(queue, [task]))
            return
        except BaseException:
            self._matching.take_back(queue, [task])
            self.void(peer.node, poll_id)
            raise
        queue.lent.discard(task.sequence)
        if not started:
            self.void(peer.node, poll_id)
        if poller.lent < poller.credit:
            self._matching.match(queue)

    def _refused(self, peer: Peer, message: Message) -> None:
        loan = peer.lent.pop(message[1], None)
        if loan is None:
            return
        task, poller = loan
        poller.lent -= 1
        poller.credit = 0
        poller.idle = 0
        self._matching.take_back(poller.queue, [task])
        self._abandon_if_dead(poller.queue)

    def _acknowledged(self, peer: Peer, message: Message) -> None:
        self._acknowledge_until(peer, message[1])

    def _acknowledge_until(self, peer: Peer, number: int) -> None:
        unacked = peer.unacked
        while unacked and unacked[0][0] <= number:
            unacked.popleft()

    def _undelivered(self, peer: Peer, message: Message) -> None:
        self._acknowledge_until(peer, message[2])
        self._host.undelivered(peer.node, message[1], certain=True)
