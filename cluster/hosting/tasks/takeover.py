"""What a shard's new leader has to find out: which tasks its predecessor started, and who never got them.

A task is started by a commit, and its answer travels to the poll's node afterwards. A leader that dies
between the two leaves a task that is started and that no worker has. It would wait for its time-outs, an
activity perhaps for an hour. So every start names the node that has the poll (in the request id it draws),
that node remembers for a while what it handed to its clients, and a new leader asks it about the starts that
are young enough to be in doubt. What was not handed over by then never will be, and goes back to its queue.

The same is asked where the leader stays and the connection between the two nodes breaks, with answers of
started tasks on their way.

A node that does not answer is asked again when it can be reached; one that is gone may have had the worker.
Until then those tasks are left to their time-outs (activities) and to the grace of orphans (workflow tasks).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import structlog

from cluster.hosting.groups.group import nobody
from cluster.hosting.tasks.dispatch import ACTIVITY, WORKFLOW, give_back
from cluster.hosting.tasks.starts import node_of
from cluster.matching.contract import QueueKey
from history_store.engine import keys, workflow_task
from history_store.engine.errors import ServiceError
from history_store.raft import DATA
from history_store.rare import reached
from history_store.shard import image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cluster.hosting.groups.group import Waiter
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction

log = structlog.get_logger("takeover")

# [ASK, number, [(receipt, started, nanoseconds), ...]]; [DENY, number, [receipt, ...]]: those not handed over
ASK, DENY = 30, 31
SKEW_NS = 2_000_000_000  # between two nodes' clocks, at most
RECENT_NS = 20_000_000_000  # a start older than this was handed over, or its node would have said so
STRANDED_S = 1.0  # for other nodes to tell which workers live
REMEMBERED = 65_536  # receipts; about 20 MB
QUESTIONS_MAX = 4_096  # that wait for nodes that do not answer

Receipt = tuple[str, str, str, int, int, int]  # namespace id, workflow id, run id, kind, stamp, ref
Doubt = tuple[Receipt, int]  # and when it was started


class _Owner(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a run's core row."""

    namespace_id: str
    workflow_id: str
    run_id: str


_owner = msgspec.msgpack.Decoder(_Owner).decode


class Receipts:
    """What this node handed to its clients lately, and what it never will."""

    def __init__(self, now_ns: int) -> None:
        self._since = now_ns + SKEW_NS  # what an earlier process handed over is not known
        self._given: OrderedDict[Receipt, int] = OrderedDict()  # and when
        self._denied: OrderedDict[Receipt, None] = OrderedDict()

    def give(self, receipt: Receipt, now_ns: int) -> bool:
        """A task is about to be handed over. False: its shard's leader was told that it was not."""
        if receipt in self._denied:
            return False
        self._given[receipt] = now_ns
        if len(self._given) > REMEMBERED:
            _, given = self._given.popitem(last=False)
            self._since = max(self._since, given + SKEW_NS)  # of what was started before, not all is known
        return True

    def deny(self, doubts: list[Doubt]) -> list[Receipt]:
        """Those that were not handed over; now they cannot be any more."""
        missing = [
            receipt for receipt, started in doubts if started > self._since and receipt not in self._given
        ]
        if missing:
            reached("receipt denied")
        self._denied.update((receipt, None) for receipt in missing)
        while len(self._denied) > REMEMBERED:
            self._denied.popitem(last=False)
        return missing


class Question(NamedTuple):
    """What another node is asked, until it has answered."""

    node_id: int
    shard: ShardHost
    doubts: list[Doubt]


class Takeovers:
    """Asks, and answers."""

    def __init__(self, node: Node, send: Callable[[int, list[Any]], bool]) -> None:
        self._node = node
        self._send = send
        self._numbers = 0
        self._asked: dict[int, Question] = {}  # by number, in order
        self.receipts = Receipts(node.clock.now_ns())

    def take_over(self, shard: ShardHost) -> None:
        """The shard is led here from now on."""
        doubts: dict[int, list[Doubt]] = {}
        runs = list(self._recent_runs(shard))
        self._node.loop.call_later(STRANDED_S, self._reroute_stranded, shard, runs)
        since_ns = self._node.clock.now_ns() - RECENT_NS
        for run in runs:
            for node_id, doubt in _started(run, since_ns, self._node.region):
                doubts.setdefault(node_id, []).append(doubt)
        for node_id, asked in doubts.items():
            if node_id == self._node.node_id:
                self._give_back(shard, self.receipts.deny(asked))
                continue
            self._ask(Question(node_id, shard, asked))
        if doubts:
            log.info("asks who has what was started", shard=shard.group.id, nodes=sorted(doubts))

    def doubt(self, node_id: int, shard: ShardHost, receipt: Receipt) -> None:
        """An activity was started here for a poll of that node, and perhaps its answer never came there."""
        namespace_id, workflow_id, run_id, _, stamp, ref = receipt
        run = shard.find(namespace_id, workflow_id, run_id)
        activity = run.activities.get(ref) if run is not None and run.running else None
        if activity is not None and activity.stamp == stamp and activity.started_id:
            self._ask(Question(node_id, shard, [(receipt, activity.started_time)]))

    def up(self, node_id: int) -> None:
        """The node can be reached again: what it was asked, or what it answered, may be lost."""
        reopened = [number for number, asked in self._asked.items() if asked.node_id == node_id]
        for number in reopened:
            question = self._asked.pop(number)
            if not question.shard.retired:
                self._ask(question)

    def _ask(self, question: Question) -> None:
        self._numbers += 1
        self._asked[self._numbers] = question
        self._send(question.node_id, [ASK, self._numbers, question.doubts])
        if len(self._asked) > QUESTIONS_MAX:
            del self._asked[next(iter(self._asked))]

    def _reroute_stranded(self, shard: ShardHost, runs: list[Run]) -> None:
        """Workflow tasks of sticky queues whose worker is gone would wait for their time-out."""
        for known in runs:
            if shard.retired:
                return
            state = known.state
            run = shard.find(state.namespace_id, state.workflow_id, state.run_id)
            task = run.state.task if run is not None and run.running else None
            if run is None or task is None or not task.sticky or task.started_id:
                continue
            if self._node.matching.has_live_poller(QueueKey(state.namespace_id, WORKFLOW, task.queue)):
                continue

            def change(tx: Transaction, run: Run = run, stamp: int = task.stamp) -> Waiter:
                workflow_task.reroute(tx, run, stamp)
                return nobody

            try:
                shard.change(run, change)
            except ServiceError as error:
                log.info("a task of a worker that is gone waits for its time-out", why=error.message)

    def _recent_runs(self, shard: ShardHost) -> Iterator[Run]:
        """The runs that the newest entries of the log changed: the log keeps some seconds of them."""
        seen: set[bytes] = set()
        entries = list(shard.group.raft.kept_entries())
        splits = self._node.committer.splits
        before = splits.parent_of(shard.group.id) if splits is not None else None
        if before is not None:  # it began a moment ago, and its runs were that one's
            entries += before.raft.kept_entries()
        for entry in entries:
            if entry.kind == DATA:
                seen.update(
                    key for key, value in image.decode(entry.data).rows if key[:1] == keys.RUN and value
                )
        for key in sorted(seen):
            value = shard.rows.get(key)
            if value is None:
                continue
            owner = _owner(value)
            if not shard.serves(owner.namespace_id):
                continue
            run = shard.find(owner.namespace_id, owner.workflow_id, owner.run_id)
            if run is not None and run.running:
                yield run

    def _give_back(self, shard: ShardHost, receipts: list[Receipt]) -> None:
        for receipt in receipts:
            try:
                give_back(shard, *receipt)
            except ServiceError as error:
                log.info("a task that reached nobody waits for its time-out", why=error.message)

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        kind, number, named = message
        if kind == ASK:
            doubts: list[Doubt] = [(tuple(receipt), started) for receipt, started in named]
            self._send(node_id, [DENY, number, self.receipts.deny(doubts)])
        elif kind == DENY:
            question = self._asked.pop(number, None)
            if question is not None and not question.shard.retired:
                self._give_back(question.shard, [tuple(receipt) for receipt in named])


def _started(run: Run, since_ns: int, region: int) -> Iterator[tuple[int, Doubt]]:
    """The run's tasks that were started lately for a poll whose node is known."""
    state = run.state
    task = state.task
    if task is not None and task.started_id and task.started_time >= since_ns:
        node_id = node_of(task.request_id, region)
        if node_id:
            yield node_id, (receipt_of(run, WORKFLOW, task.stamp, 0), task.started_time)
    for activity in run.activities.values():
        if activity.started_id and activity.started_time >= since_ns:
            node_id = node_of(activity.request_id, region)
            if node_id:
                receipt = receipt_of(run, ACTIVITY, activity.stamp, activity.scheduled_id)
                yield node_id, (receipt, activity.started_time)


def receipt_of(run: Run, kind: int, stamp: int, ref: int) -> Receipt:
    """What names a started task."""
    state = run.state
    return state.namespace_id, state.workflow_id, state.run_id, kind, stamp, ref
