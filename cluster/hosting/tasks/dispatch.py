"""Between matching and the shards: waiting tasks, open polls, and workers that die.

A task is started by its shard when matching hands it a poll: one transaction, and the poll is answered when
that is committed. A poll whose client went away meanwhile gives its task back at once. A connection that
closes takes its worker with it: what that worker held is handed to another without waiting for time-outs.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
from temporalio.api.workflowservice.v1.request_response_pb2 import PollActivityTaskQueueRequest

from cluster.hosting.groups.group import NotLeading, nobody
from cluster.hosting.shards.gates import NotActive
from cluster.hosting.tasks import answers
from cluster.hosting.tasks.starts import named_for
from cluster.matching.contract import NotNow, QueueKey
from history_store.engine import activity as activities
from history_store.engine import workflow_task
from history_store.engine.errors import ServiceError
from history_store.engine.state import WFT_SPECULATIVE
from history_store.engine.workflow_task import STICKY_KIND
from history_store.rare import reached
from replication.failover.gates import Verdict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from cluster.frontend.contract import Call, Connection
    from cluster.hosting.groups.group import Waiter
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from cluster.hosting.tasks.exchange import RemotePoll
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import TaskRow

log = structlog.get_logger("dispatch")

EXPIRE_RETRY_S = 1.0  # after a write was refused (a full disk)
ORPHAN_GRACE_S = 2.0  # a worker whose server was restarted is back within a second, and retries its answer
ORPHAN_TIMEOUT_NS_MAX = 120_000_000_000  # the longest time-out of a workflow task: later wakes are others'
ORPHANS_AT_ONCE = 64
GIVE_BACK_RETRY_S = 1.0
REROUTE_RETRY_S = 1.0

RATE_MAX = 1e9  # tasks a second; beyond it there is no limit
WORKFLOW = 1
ACTIVITY = 2


class Poll:
    """One open poll call; what matching knows as a poller."""

    __slots__ = (
        "call",
        "connection",
        "identity",
        "node",
        "queue",
        "rate_per_second",
        "request",
        "timer",
        "versioning",
        "worker_instance_key",
    )

    def __init__(self, node: Node, call: Call, queue: QueueKey, request: Any) -> None:
        self.node = node
        self.call = call
        self.queue = queue
        self.request = request
        self.identity: str = request.identity
        self.connection = call.connection
        self.worker_instance_key: str = request.worker_instance_key
        self.versioning: Any = request.deployment_options if request.HasField("deployment_options") else None
        self.rate_per_second = _rate_of(request)
        self.timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> bool:
        """Whether somebody still listens."""
        return not self.call.done

    def answer(self, body: bytes) -> None:
        """Give the worker its task, or nothing (an empty body)."""
        self._stop_waiting()
        self.call.finish(body)

    def name_start(self) -> str:
        """The request id of a start for this poll; among nodes it says which one has the poll."""
        node = self.node
        return (
            node.new_id() if node.takeovers is None else named_for(node.new_id(), node.node_id, node.region)
        )

    def wait_on(self) -> None:
        """There was nothing for it after all."""
        sticky = self.request.task_queue.kind == STICKY_KIND
        self.node.matching.poll(self.queue, self, sticky)

    def move(self) -> None:
        """It waits in vain here: the call is tried again, and finds where it has to wait."""
        self._stop_waiting()
        call: Any = self.call  # an attempt: a node that knows of other regions has no other calls
        call.lost(moved=True)

    def unless_delivered(self, undone: Callable[[], None]) -> None:
        """If the answer turns out to have come to nobody, undo what was done for it."""
        if self.node.regions is not None:
            call: Any = self.call  # an attempt, as above
            call.unless_delivered(undone)

    def gone(self) -> None:
        """The client cancelled or its deadline came."""
        self._stop_waiting()
        self.node.matching.cancel_poll(self.queue, self)

    def expire(self) -> None:
        """Answer empty, shortly before the client would give up."""
        self.gone()
        self.call.finish(b"")

    def _stop_waiting(self) -> None:
        self.node.polls.pop(self, None)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def _rate_of(request: Any) -> float | None:
    """The limit that the worker asks for its whole activity queue; None if it asks for none."""
    if isinstance(request, PollActivityTaskQueueRequest) and request.HasField("task_queue_metadata"):
        metadata = request.task_queue_metadata
        if metadata.HasField("max_tasks_per_second"):
            rate = metadata.max_tasks_per_second.value
            return rate if 0.0 <= rate <= RATE_MAX else None  # NaN and infinity are no limits
    return None


class ShardTask:
    """A workflow or activity task that waits; what matching knows as a task."""

    __slots__ = (
        "created_ns",
        "durable",
        "key",
        "normal_queue",
        "priority",
        "queue",
        "ref",
        "run_id",
        "sequence",
        "shard",
        "stamp",
        "workflow_id",
    )

    def __init__(
        self,
        shard: ShardHost,
        queue: QueueKey,
        workflow_id: str,
        run_id: str,
        ref: int,
        stamp: int,
        priority: int,
        sequence: int,
        created: int,
        durable: bool,
        normal_queue: str,
        key: bytes,
    ) -> None:
        self.shard = shard
        self.queue = queue
        self.workflow_id = workflow_id
        self.run_id = run_id
        self.ref = ref
        self.stamp = stamp
        self.priority = priority
        self.sequence = sequence
        self.created_ns = created
        self.durable = durable
        self.normal_queue = normal_queue
        self.key = key

    def _run(self) -> Run | None:
        return self.shard.find(self.queue.namespace_id, self.workflow_id, self.run_id)

    def start(self, poller: Any) -> bool:
        """Record that it is started, and answer the poll at the commit. NotNow."""
        try:
            run = self._run()
            if run is None or not run.running:
                return self._void()
            if self.queue.kind == WORKFLOW:
                return self._start_workflow_task(run, poller)
            return self._start_activity(run, poller)
        except ServiceError as error:
            if self.shard.retired:
                # Who leads the shard now has the task as one of its own. If that is this node again, matching
                # has held this one, perhaps lent, in the other's place.
                poller.node.loop.call_soon(poller.node.matching.resync, self.queue)
                return False
            if isinstance(error, NotLeading) and not self.shard.group.raft.is_leader:
                return False  # the next leader has the task
            # A full disk, or leadership that is being handed over, which may yet fail.
            raise NotNow(error.message) from error

    def _void(self) -> bool:
        """Nothing to start: a row that is left of it goes."""
        if self.durable and self.shard.rows.get(self.key) is not None:
            tx = self.shard.begin(self.queue.namespace_id)
            tx.rows.append((self.key, None))
            self.shard.commit(tx, nobody)
        return False

    def _start_workflow_task(self, run: Run, poller: Poll | RemotePoll) -> bool:
        task = run.state.task
        if task is None or task.stamp != self.stamp or task.started_id:
            return self._void()
        shard, node = self.shard, poller.node
        sticky = task.sticky
        delivery = Delivery(shard, run, WORKFLOW, task.stamp, poller)

        tx = shard.begin(self.queue.namespace_id)
        try:
            tx.open(run)
            workflow_task.start(tx, run, poller.name_start(), poller.identity)
        except BaseException:
            shard.abort(tx)
            raise
        unwritten = task.kind == WFT_SPECULATIVE and shard.leave_unwritten(tx, run)
        if not unwritten:
            shard.commit(tx, delivery.committed, patient=True)
        if run.running:  # the start may have been the event too many that ends a run
            delivery.body = answers.workflow_task_answer(
                shard, run, sticky, node.queries.take(run), node.backlog_hint(self.queue)
            )
        if unwritten:
            shard.loop.call_later(task.timeout / 1e9, expire_unwritten, shard, run, task.stamp)
            shard.group.when_committed(delivery.committed, patient=True)
        return True

    def _start_activity(self, run: Run, poller: Poll | RemotePoll) -> bool:
        activity = run.activities.get(self.ref)
        if activity is None or activity.stamp != self.stamp or activity.started_id or activity.paused:
            return self._void()
        shard = self.shard

        def start(tx: Transaction) -> Waiter:
            activities.start(tx, run, activity, poller.name_start(), poller.identity)
            delivery = Delivery(shard, run, ACTIVITY, activity.stamp, poller, activity.scheduled_id)
            delivery.body = answers.activity_answer(shard, run, activity)
            return delivery.committed

        shard.change(run, start, patient=True)
        return True

    def reroute(self) -> None:
        """The sticky worker is gone: the task goes to the normal queue."""
        shard = self.shard
        if shard.retired or not shard.serves(self.queue.namespace_id):
            return  # the next leader, or another region, finds out
        run = self._run()
        if run is None or not run.running or self.queue.kind != WORKFLOW:
            return
        tx = shard.begin(self.queue.namespace_id)
        tx.open(run)
        if not workflow_task.reroute(tx, run, self.stamp):
            run.committed()
            return
        try:
            shard.commit(tx, nobody)
        except ServiceError as error:  # a full disk
            log.warning("a task whose sticky worker is gone waits", error=error.message)
            shard.loop.call_later(REROUTE_RETRY_S, self.reroute)


class Delivery:
    """A started task on its way to a worker."""

    __slots__ = ("body", "kind", "poll", "ref", "run", "shard", "stamp")

    def __init__(
        self, shard: ShardHost, run: Run, kind: int, stamp: int, poll: Poll | RemotePoll, ref: int = 0
    ) -> None:
        self.shard = shard
        self.run = run
        self.kind = kind
        self.stamp = stamp
        self.poll = poll
        self.ref = ref
        self.body = b""
        if not isinstance(poll, Poll):
            state = run.state
            poll.receipt = [state.namespace_id, state.workflow_id, state.run_id, kind, stamp, ref]

    def committed(self, error: ServiceError | None) -> None:
        """It is started for good: deliver it, or give it back if nobody is there any more."""
        poll = self.poll
        if error is not None:
            reached("start of a task in doubt")
            # Another node leads the shard: whether the task was started is its business, and it gives it to
            # somebody. The worker polls again.
            if poll.open:
                poll.wait_on()
            return
        if poll.open and self._handed_over():
            if isinstance(poll, Poll):
                poll.unless_delivered(self._undoing())
            poll.answer(self.body)
            if self.kind == WORKFLOW:
                poll.node.holders.hold(poll.connection, self.shard, self.run, self.stamp)
            return
        self._undoing()()

    def _undoing(self) -> Callable[[], None]:
        """What gives the task back. It is kept for a while: names, and nothing that is large."""
        state = self.run.state
        named = (state.namespace_id, state.workflow_id, state.run_id)
        return partial(give_back, self.shard, *named, self.kind, self.stamp, self.ref)

    def _handed_over(self) -> bool:
        """Note that our client gets it. False: a later leader of the shard was told that it does not."""
        takeovers = self.poll.node.takeovers
        if takeovers is None or not isinstance(self.poll, Poll):
            return True  # there is no other leader, or the poll's node keeps the note
        state = self.run.state
        receipt = (state.namespace_id, state.workflow_id, state.run_id, self.kind, self.stamp, self.ref)
        return takeovers.receipts.give(receipt, self.poll.node.clock.now_ns())


def give_back(
    shard: ShardHost, namespace_id: str, workflow_id: str, run_id: str, kind: int, stamp: int, ref: int
) -> None:
    """A started task reached nobody: it waits again."""
    reached("task given back")
    if shard.retired:
        return
    run = shard.find(namespace_id, workflow_id, run_id)
    if run is None or not run.running:
        return
    try:
        if kind == WORKFLOW:
            release(shard, run, stamp)
            return
        activity = run.activities.get(ref)
        if activity is None or activity.stamp != stamp or not activity.started_id:
            return
        tx = shard.begin(namespace_id)
        tx.open(run)
        activities.unstart(run, activity)
        shard.commit(tx, nobody)
    except ServiceError as error:  # a full disk; some activities have no time-out of an attempt
        if isinstance(error, NotActive) and error.verdict is Verdict.FORWARD:
            return  # the region that serves it now fails the task, or waits for its time-out
        log.warning("a task that nobody took waits", error=error.message)
        again = (shard, namespace_id, workflow_id, run_id, kind, stamp, ref)
        shard.loop.call_later(GIVE_BACK_RETRY_S, give_back, *again)


def take_back(shard: ShardHost, run: Run, stamp: int) -> None:
    """Nobody listens any more to whom this started workflow task would go."""
    state = run.state
    give_back(shard, state.namespace_id, state.workflow_id, state.run_id, WORKFLOW, stamp, 0)


class Holders:
    """Which connection's worker holds which workflow tasks."""

    __slots__ = ("_held", "_holder")

    def __init__(self) -> None:
        self._held: dict[Connection, dict[str, tuple[ShardHost, Run, int]]] = {}  # by run id
        self._holder: dict[str, Connection] = {}  # run id -> who holds its task

    def watch(self, connection: Connection) -> bool:
        """Begin to watch a connection; False if it is watched already."""
        if connection in self._held:
            return False
        self._held[connection] = {}
        return True

    def hold(self, connection: Connection, shard: ShardHost, run: Run, stamp: int) -> None:
        """The worker behind `connection` has the task."""
        held = self._held.get(connection)
        if held is None:
            if connection.closed:
                take_back(shard, run, stamp)
            return
        state = run.state
        run_id = state.run_id
        self.done(run_id)
        if shard.retired:
            return
        # Not only in memory: since the commit another run may have taken its place there.
        now = shard.find(state.namespace_id, state.workflow_id, run_id)
        if now is None or now.state.task is None or now.state.task.stamp != stamp:
            return  # it ended before anybody heard of it
        held[run_id] = (shard, run, stamp)
        self._holder[run_id] = connection

    def deliver(self, call: Call, shard: ShardHost, run: Run, stamp: int) -> None:
        """A started task rides on the answer of `call`; if nobody listens any more it is given back."""
        if call.done:
            take_back(shard, run, stamp)
        else:
            self.hold(call.connection, shard, run, stamp)

    def done(self, run_id: str) -> None:
        """The task was answered (perhaps on another connection of the same worker)."""
        connection = self._holder.pop(run_id, None)
        if connection is not None:
            self._held[connection].pop(run_id, None)

    def forget(self, shard: ShardHost) -> None:
        """Another node leads the shard: it hands over what its workers hold."""
        for held in self._held.values():
            for run_id in [run_id for run_id, (owner, _, _) in held.items() if owner is shard]:
                del held[run_id]
                self._holder.pop(run_id, None)

    def closed(self, connection: Connection) -> None:
        """The connection is gone: whoever held tasks there will not answer."""
        for shard, run, stamp in self._held.pop(connection, {}).values():
            self._holder.pop(run.state.run_id, None)
            found = shard.find(run.state.namespace_id, run.state.workflow_id, run.state.run_id)
            if found is not None:
                try:
                    release(shard, found, stamp)
                except ServiceError as error:
                    log.warning("a dead worker's task waits for its time-out", error=error.message)
                except Exception:  # the others it held are not to wait
                    log.exception("a dead worker's task could not be handed over", run=run.state.run_id)


def release(shard: ShardHost, run: Run, stamp: int) -> None:
    """A started workflow task will not be answered: time it out now."""
    task = run.state.task
    if not run.running or task is None or task.stamp != stamp or not task.started_id:
        return
    if not shard.serves(run.state.namespace_id):
        return  # the region that serves it fails the task

    def end(tx: Transaction) -> Waiter:
        workflow_task.time_out(tx, run)
        return nobody

    shard.change(run, end)


def expire_unwritten(shard: ShardHost, run: Run, stamp: int) -> None:
    """A started speculative task has no wake row: this is its start-to-close time-out."""
    if shard.retired:
        return  # the next leader knows nothing of the task
    found = shard.find(run.state.namespace_id, run.state.workflow_id, run.state.run_id)
    if found is None:
        return
    try:
        release(shard, found, stamp)
    except ServiceError as error:
        log.warning("a speculative task's time-out waits", error=error.message)
        shard.loop.call_later(EXPIRE_RETRY_S, expire_unwritten, shard, run, stamp)


class Orphans:
    """Workflow tasks that were started before this process began, and that nobody has answered since.

    The connections of their workers ended with the process before; whether the answer to the poll ever came
    through is unknown. A worker that has the task reconnects and answers within the grace; after that it goes
    to whoever polls, long before its time-out.
    """

    def __init__(self, shard: ShardHost, before: int) -> None:
        self._shard = shard
        self._before = before  # nanoseconds since the epoch: when this process took the shard up
        self._rows = shard.wakes_until(before + ORPHAN_TIMEOUT_NS_MAX)

    def hand_over(self) -> None:
        """Look at the next few; then again, until all have been seen."""
        shard = self._shard
        if shard.retired:
            return  # they are the next leader's
        rows = list(itertools.islice(self._rows, ORPHANS_AT_ONCE))
        for row in rows:
            if not shard.serves(row.namespace_id):
                continue
            run = shard.find(row.namespace_id, row.workflow_id, row.run_id)
            task = run.state.task if run is not None else None
            if run is not None and task is not None and 0 < task.started_time < self._before:
                try:
                    release(shard, run, task.stamp)
                except ServiceError as error:
                    log.warning("an orphaned task waits for its time-out", error=error.message)
        if rows:
            shard.loop.call_soon(self.hand_over)


def task_of_row(shard: ShardHost, queue: QueueKey, key: bytes, row: TaskRow) -> ShardTask:
    """A waiting task from its row."""
    return ShardTask(
        shard,
        queue,
        row.workflow_id,
        row.run_id,
        row.ref,
        row.stamp,
        key[-9],
        int.from_bytes(key[-8:], "big"),
        row.created,
        True,
        row.normal_queue,
        key,
    )
