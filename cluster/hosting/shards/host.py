"""A shard at work: runs in memory, transactions on them, the time they wait for.

A transaction is one synchronous step: read, engine, propose. Nothing can come between, so there are no locks.
Later transactions build on earlier ones that are not committed yet, since the log keeps their order; callers
are answered at the commit (`Group.when_committed`).

A transaction is begun for a namespace, and `begin` asks that one's gate: there is no other way to a
transaction, so nothing is proposed for a namespace that another region serves. A caller that would decide
by what it reads asks before (`Node.shard_of`), and the shard's own doings look first (`serves`): their rows
stay where they are, dormant, until the gate opens (`activated`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cluster.hosting.groups.group import NotLeading, nobody
from cluster.hosting.shards.gates import NotActive
from cluster.hosting.shards.run_cache import RunCache
from cluster.hosting.shards.wakes import Wakes, wake_row
from history_store.engine import close, keys, workflow_task
from history_store.engine.errors import ServiceError
from history_store.engine.run import Run, TaskSpec, Transaction
from history_store.engine.state import WFT_SPECULATIVE, Action, CurrentRun, TaskRow, WakeRow
from history_store.rare import reached
from history_store.shard import image, runs
from replication.failover.gates import Admission, Call, Verdict

if TYPE_CHECKING:
    import asyncio

    from temporalio.api.common.v1.message_pb2 import SearchAttributes
    from temporalio.api.history.v1.message_pb2 import HistoryEvent

    from cluster.hosting.clock import Clock
    from cluster.hosting.groups.group import Group, Waiter
    from cluster.hosting.shards.streams import ShardStreams
    from cluster.matching.contract import QueueKey
    from history_store.engine.environment import EngineLimits
    from history_store.engine.updates import Update
    from history_store.shard.rows import Rows
    from replication.frames import Entry, Frame
    from replication.outbox import Tip

log = structlog.get_logger("shard")

TAIL_BYTES_MAX = 128 << 10  # events of a run kept in memory: a poll's answer seldom needs more

# Members of an enumeration are looked up slowly, and these are in the way of every call.
_ALLOW, _MUTATION, _TASK = Verdict.ALLOW, Call.MUTATION, Call.TASK

_task_row = msgspec.msgpack.Decoder(TaskRow).decode
_action_row = msgspec.msgpack.Decoder(Action).decode


class Attempt(Protocol):
    """One try of a call that has met the shard (calls/attempt.py)."""

    @property
    def namespace_id(self) -> str:
        """What it is about."""

    def lost(self, *, moved: bool = False) -> None:
        """The shard has another leader, or the namespace is served by another region."""


class Gates(Protocol):
    """Who may do something of a namespace in this shard now."""

    def admit(self, namespace_id: str, call: Call) -> Admission:
        """As of the newest entry that was proposed."""

    def raised(self, namespace_id: str, version: int) -> Sequence[tuple[bytes, bytes | None]]:
        """Another region wrote at this version: the rows that say so, if that was not known."""


class AllOpen:
    """The gates of a shard without other regions."""

    def admit(self, namespace_id: str, call: Call) -> Admission:  # noqa: ARG002 - as `Gates` has it
        """Yes."""
        return _ADMITTED

    def raised(self, namespace_id: str, version: int) -> Sequence[tuple[bytes, bytes | None]]:  # noqa: ARG002
        """No other region writes."""
        return ()


_ADMITTED = Admission(_ALLOW, 0, 0)


class Outside(Protocol):
    """What a shard needs of its node."""

    limits: EngineLimits

    def version_of(self, namespace_id: str) -> int:
        """The failover version of a namespace of which the shard's gates know none."""

    def activated(self, shard: ShardHost, namespaces: Collection[str]) -> None:
        """The shard serves these namespaces from now on."""

    def deactivated(self, shard: ShardHost, namespaces: Collection[str]) -> None:
        """It does not any more."""

    def run_bytes_max(self) -> int:
        """How many bytes of events and states of runs a shard may hold decoded."""

    def new_id(self) -> str:
        """A fresh UUID."""

    def next_sequence(self) -> int:
        """The node's next sequence number."""

    def retention_of(self, namespace_id: str) -> int:
        """Retention of closed runs, nanoseconds."""

    def namespace_id_of(self, name: str) -> str | None:
        """Id by name."""

    def namespace_name_of(self, namespace_id: str) -> str:
        """Name by id."""

    def check_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """See engine.Environment."""

    def offered(self, shard: ShardHost, spec: TaskSpec) -> None:
        """A task for matching."""

    def withdrawn(self, namespace_id: str, kind: int, queue: str) -> None:
        """A waiting task became void."""

    def acted(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """An action is committed: do it."""

    def asked_after_end(self, run: Run, *, gone: bool) -> None:
        """The run closed (or is deleted) while questions waited for its next workflow task."""

    def run_closed(self, run_id: str) -> None:
        """No worker holds a task of this run any more."""


class ShardHost:
    """One shard of this node; also the engine's Environment."""

    def __init__(self, node: Outside, group: Group, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self.node = node
        self.group = group
        self.rows = group.rows
        self.clock = clock
        self.loop = loop
        self.limits = node.limits
        self.cache = RunCache(lambda: group.committed, node.run_bytes_max)
        self.streams: ShardStreams | None = None  # between regions
        self._foreign: dict[str, int] = {}  # runs that another region changed, and where that is in the log
        self._open: Transaction | None = None  # the latest one begun: there is never a second
        self.gates: Gates = AllOpen()
        self.wakes = Wakes(self)
        # Calls under way here, in order; tried elsewhere if we lose the lead.
        self.attempts: dict[Attempt, None] = {}
        self.retired = False  # another node leads, or will: nothing here is true any more

    # ---- engine.Environment

    def new_id(self) -> str:
        """A fresh UUID."""
        return self.node.new_id()

    def next_sequence(self) -> int:
        """The node's next sequence number."""
        return self.node.next_sequence()

    def load_event(self, run: Run, batch_id: int, event_id: int) -> HistoryEvent:
        """An event of the run's history."""
        return runs.event(self.rows, run, batch_id, event_id)

    def retention(self, namespace_id: str) -> int:
        """Retention of closed runs."""
        return self.node.retention_of(namespace_id)

    def check_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """Validate and normalize."""
        self.node.check_search_attributes(namespace_id, attributes)

    def namespace_id_of(self, name: str) -> str | None:
        """Id by name."""
        return self.node.namespace_id_of(name)

    def namespace_name_of(self, namespace_id: str) -> str:
        """Name by id."""
        return self.node.namespace_name_of(namespace_id)

    # ---- runs

    def current(self, namespace_id: str, workflow_id: str) -> CurrentRun | None:
        """What the workflow id means now."""
        return runs.current(self.rows, namespace_id, workflow_id)

    def find(self, namespace_id: str, workflow_id: str, run_id: str = "") -> Run | None:
        """The run (the current one if no run id is given), or None."""
        if self.retired:
            raise NotLeading(self.group.raft.leader, self.group.id)
        run = self._found(namespace_id, workflow_id, run_id)
        return run if run is None or not run.task_started else self._taken_over(run)

    def _taken_over(self, run: Run) -> Run:
        """The run; a workflow task that was started before the namespace came to this region has failed.

        Whoever finds the run does that first, and the sweep after an activation finds all such runs. What was
        written before there were versions was written here. Inside a transaction another cannot begin: the
        few runs that are found there are found to be closed.
        """
        state = run.state
        admission = self.gates.admit(state.namespace_id, _TASK)
        behind = 0 < state.version < admission.version and admission.verdict is _ALLOW
        if not behind or self._open is not None:
            return run

        def fail(tx: Transaction) -> Waiter:
            workflow_task.fail_over(tx, run)
            return nobody

        try:
            self.change(run, fail)
        except ServiceError as error:  # a full disk: what would be written next is refused as well
            log.info("a task of another region's could not be failed yet", why=error.message)
            return self.cache.runs.get(state.run_id, run)
        reached("workflow task failed over")
        return run

    def _found(self, namespace_id: str, workflow_id: str, run_id: str) -> Run | None:
        if not run_id:
            run = self.cache.open_run(namespace_id, workflow_id)
            if run is not None:  # then it is the current one: no row has to be read
                return run
            now = self.current(namespace_id, workflow_id)
            if now is None:
                return None
            run_id = now.run_id
        run = self.cache.get(run_id)
        if run is not None:
            named = run.state.workflow_id == workflow_id and run.state.namespace_id == namespace_id
            return run if named else None
        try:
            run = runs.load(self.rows, namespace_id, workflow_id, run_id, self.retention(namespace_id))
        except ValueError:
            return None  # not a UUID: names no run
        if run is not None:
            run.proposed = self._foreign.get(run_id, 0)
            self.cache.keep(run)
        return run

    def reload(self, run: Run) -> Run:
        """The run as it was before the failed transaction, with what only the leader knows of it."""
        self.cache.drop(run)
        s = run.state
        fresh = runs.load(self.rows, s.namespace_id, s.workflow_id, s.run_id, self.retention(s.namespace_id))
        assert fresh is not None, "a run that was read is there"
        fresh.updates = run.updates
        if fresh.updates is not None:
            fresh.updates.roll_back()
        fresh.proposed = run.proposed
        fresh.watchers = run.watchers
        fresh.queries = run.queries
        fresh.tail_first = fresh.state.next_event_id
        fresh.keep_speculative(run)
        self.cache.keep(fresh)
        return fresh

    def when_seen(self, run: Run, waiter: Waiter) -> None:
        """Call back when all that is known of the run now is committed, and may be shown.

        Others' changes are not waited for: while the disk is full, runs that did not change can be read.
        """
        self.group.when_committed(waiter, index=run.proposed)

    # ---- transactions

    def serves(self, namespace_id: str) -> bool:
        """Whether the shard's own doings in the namespace are done here: timers, actions, tasks."""
        return self.gates.admit(namespace_id, _TASK).verdict is _ALLOW

    def begin(self, namespace_id: str) -> Transaction:
        """A transaction at the present time, on runs of that namespace. NotActive if its gate is not open."""
        admission = self.gates.admit(namespace_id, _MUTATION)
        if admission.verdict is not _ALLOW:
            raise NotActive(namespace_id, admission)
        version = admission.version or self.node.version_of(namespace_id)
        return self._begin(namespace_id, version)

    def begin_beside(self) -> Transaction:
        """A transaction on no run: for rows that belong to no namespace, or come from another region."""
        return self._begin("", 0)

    def _begin(self, namespace_id: str, version: int) -> Transaction:
        if self.retired:
            raise NotLeading(self.group.raft.leader, self.group.id)
        left = self._open
        if left is not None and any(run.tx is left for run in left.runs):
            # An exception left it half done, or its runs would be shut to every transaction after it.
            log.error("a transaction was left open; it is void", runs=[r.state.run_id for r in left.runs])
            self.abort(left)
        tx = self._open = Transaction(self, self.clock.now_ns(), namespace_id, version)
        return tx

    def abort(self, tx: Transaction) -> None:
        """The engine refused after it had begun: what is in memory is spoiled."""
        self._open = None
        for run in tx.runs:
            if self.cache.runs.get(run.state.run_id) is run:
                self.reload(run)

    def change(self, run: Run, how: Callable[[Transaction], Waiter], *, patient: bool = False) -> None:
        """One transaction on one run: what `how` raises makes it void. It returns who hears of the commit."""
        tx = self.begin(run.state.namespace_id)
        try:
            tx.open(run)
            waiter = how(tx)
        except BaseException:
            self.abort(tx)
            raise
        self.commit(tx, waiter, patient=patient)

    def leave_unwritten(self, tx: Transaction, run: Run) -> bool:
        """Take the transaction as done if it changed a speculative task alone: that lives in memory."""
        if run.events or run.dirty or tx.rows or tx.actions or len(tx.runs) != 1:
            return False
        assert run.task is not None
        assert run.task.kind == WFT_SPECULATIVE
        self._open = None
        run.committed()
        self.cache.keep(run)
        return True

    def commit(
        self, tx: Transaction, waiter: Waiter, *, patient: bool = False, told: Sequence[Entry] = ()
    ) -> None:
        """Propose the transaction; `waiter` hears of the commit. Raises a definite error if refused.

        `told`: what other regions are to hear besides.
        """
        streams = self.streams
        sealed: tuple[list[Frame], Tip | None] = ([], None)
        try:
            for run in tx.runs:
                assert run.state.namespace_id == tx.namespace_id, "its gate was asked, and no other"
                if run.running:
                    close.enforce_history_limits(tx, run)
            if streams is None:
                tx.seal()
            else:
                sealed = streams.seal(tx, told)
            index = self.group.propose(image.encode(tx.rows, tx.visibility), tx.rows, tx.visibility)
        except BaseException:
            self.abort(tx)
            raise
        self._open = None
        frames, tip = sealed
        if streams is not None and tip is not None:
            streams.proposed(frames, tip)
        settle: list[tuple[Run, list[tuple[Update, int]]]] = []
        offers: list[TaskSpec] = []
        asked: list[tuple[Run, bool]] = []
        for run in tx.runs:
            run.proposed = index
            if run.queries and (run.closed_now or run.deleted):
                asked.append((run, run.deleted))
            if run.closed_now:
                self.node.run_closed(run.state.run_id)
                self.cache.closed(run.state.run_id)
            if run.deleted:
                self.cache.drop(run)
            else:
                if run.tail_bytes > TAIL_BYTES_MAX:
                    trim(run)
                self.cache.keep(run)
                wake = run.state.wake
                if wake and wake != run.noted and wake <= self.wakes.horizon:
                    run.noted = wake
                    self.wakes.note(wake, run.raw)
            offers.extend(run.offers)
            for kind, queue in run.withdrawn:
                self.node.withdrawn(run.state.namespace_id, kind, queue)
            if run.updates is not None and run.updates.changed:
                settle.append((run, run.updates.take_changed()))
            elif run.watchers:
                settle.append((run, []))
            run.committed()
        self.group.when_committed(waiter, patient=patient)
        if settle:
            self.group.when_committed(lambda lost: None if lost else tell(settle), patient=True)
        if tx.actions:
            actions = tx.actions
            self.group.when_committed(lambda lost: None if lost else self._act(actions), patient=True)
        for spec in offers:
            try:
                self.node.offered(self, spec)
            except Exception:  # the transaction stands, and its task waits in its row for the next poll
                log.exception("a task could not be offered", run=spec.run.state.run_id)
        for run, gone in asked:
            self.node.asked_after_end(run, gone=gone)

    def commit_foreign(self, tx: Transaction, changed: Collection[str], waiter: Waiter) -> None:
        """Propose rows that another region's leader has computed. `changed`: run ids.

        Raises a definite error if refused.
        """
        try:
            index = self.group.propose(image.encode(tx.rows, tx.visibility), tx.rows, tx.visibility)
        except BaseException:
            self.abort(tx)
            raise
        self._open = None
        watched: list[tuple[Run, list[tuple[Update, int]]]] = []
        for run_id in changed:
            run = self.cache.runs.get(run_id)
            if run is not None:
                self.cache.drop(run)
                if run.watchers:
                    watched.append((run, []))
            self._foreign[run_id] = index

        def committed(lost: ServiceError | None) -> None:
            for run_id in changed:
                if self._foreign.get(run_id) == index:
                    del self._foreign[run_id]
            if lost is None:
                tell(watched)

        self.group.when_committed(waiter)
        self.group.when_committed(committed, patient=True)

    def resume(self, changed: Mapping[str, tuple[str, str]]) -> None:
        """Go on with runs that another region changed, and that are served here: workflow ids by run id."""
        for run_id, (namespace_id, workflow_id) in changed.items():
            run = self.find(namespace_id, workflow_id, run_id)  # a task that a worker there has fails first
            if run is None:
                continue
            wake = run.state.wake
            if wake and wake <= self.wakes.horizon:
                run.noted = wake
                self.wakes.note(wake, run.raw)
            for spec in offers_of(self.rows, run):
                self.node.offered(self, spec)
        for key, value in list(self.rows.scan(keys.ACTION, keys.prefix_end(keys.ACTION))):
            action = _action_row(value)
            if action.run_id in changed:
                self.node.acted(self, key, action)

    def _act(self, actions: Iterable[tuple[bytes, Action]]) -> None:
        for key, action in actions:
            self.node.acted(self, key, action)

    # ---- what was left waiting when the node stopped

    def recover(self, namespaces: Collection[str] | None = None) -> None:
        """Take up timers and actions again; tasks are fetched by matching when polls ask for them.

        `namespaces`: whose actions (None: all).
        """
        self.wakes.refill()
        found = self.rows.scan(keys.ACTION, bytes((keys.ACTION[0] + 1,)))
        for key, action in [(key, _action_row(value)) for key, value in found]:
            if namespaces is None or action.namespace_id in namespaces:
                self.node.acted(self, key, action)

    def activated(self, namespaces: Collection[str]) -> None:
        """The gates of these namespaces are open, and that is committed: what was dormant comes to life."""
        if not self.retired:
            self.recover(namespaces)
            self.node.activated(self, namespaces)
            if self.streams is not None:
                self.streams.conflicts.activated(namespaces)

    def deactivated(self, namespaces: Collection[str]) -> None:
        """Another region serves these namespaces, and that is committed, as is all that was done here before.

        What only memory holds of their runs is forgotten. Calls that wait for something are tried there.
        """
        if self.retired:
            return
        self.node.deactivated(self, namespaces)
        for attempt in [one for one in self.attempts if one.namespace_id in namespaces]:
            attempt.lost(moved=True)
        for run in [run for run in self.cache.runs.values() if run.state.namespace_id in namespaces]:
            self.cache.drop(run)

    def wakes_until(self, due: int) -> Iterator[WakeRow]:
        """The runs that want to be looked at up to `due`, as of now."""
        return iter([wake_row(value) for _, value in self.rows.scan(keys.WAKE, keys.WAKE + keys.number(due))])

    def fetch_tasks(self, queue: QueueKey, limit: int) -> list[tuple[bytes, TaskRow]]:
        """The first waiting tasks of a queue, in order; none while its namespace is not served here."""
        if not self.serves(queue.namespace_id):
            return []
        prefix = keys.task_queue(keys.raw_id(queue.namespace_id), queue.kind, queue.name)
        return [
            (key, _task_row(value)) for key, value in self.rows.scan(prefix, keys.prefix_end(prefix), limit)
        ]

    def count_tasks(self, queue: QueueKey) -> int:
        """How many tasks wait in a queue for workers of this region."""
        if not self.serves(queue.namespace_id):
            return 0
        prefix = keys.task_queue(keys.raw_id(queue.namespace_id), queue.kind, queue.name)
        return sum(1 for _ in self.rows.scan(prefix, keys.prefix_end(prefix)))

    def delete_rows(self, tx: Transaction, run: Run) -> None:
        """Everything of the run but its core row, which the seal takes."""
        run.deleted = True
        s = run.state
        items = keys.items(run.slot, run.raw)
        events = keys.HISTORY + run.slot + run.raw
        for prefix in (items, events):
            tx.rows.extend((key, None) for key, _ in self.rows.scan(prefix, keys.prefix_end(prefix)))
        now = self.current(s.namespace_id, s.workflow_id)
        if now is not None and now.run_id == s.run_id:
            tx.rows.append((keys.current(run.slot, run.namespace_raw, s.workflow_id), None))

    def close(self) -> None:
        """Stop the clockwork."""
        self.wakes.close()

    def retire(self) -> None:
        """This node leads the shard no more: drop all that was speculative, or only the leader's to know."""
        self.retired = True
        self.close()
        self.cache.clear()
        self.wakes.heap.clear()


def tell(settled: Iterable[tuple[Run, list[tuple[Update, int]]]]) -> None:
    """A commit is done: watchers of these runs look again, waiters of updates hear."""
    for run, changed in settled:
        watchers = list(run.watchers)
        run.watchers.clear()  # in place: after a failed transaction the run's new object has the same list
        if changed:
            assert run.updates is not None
            run.updates.settle(changed)
        watcher: Callable[[], None]
        for watcher in watchers:
            try:
                watcher()
            except Exception:  # whatever is wrong with one, the others are to hear
                log.exception("somebody who watched a run could not be told", run=run.state.run_id)


def offers_of(rows: Rows, run: Run) -> Iterator[TaskSpec]:
    """The waiting tasks of a run, for matching."""
    waiting = [activity.task_key for activity in run.activities.values() if activity.task_key]
    if run.state.task is not None and run.state.task.task_key:
        waiting.append(run.state.task.task_key)
    for key in waiting:
        value = rows.get(key)
        if value is not None:
            row = _task_row(value)
            # q namespace(16) kind(1) queue ff priority(1) sequence(8)
            queue, priority, sequence = key[18:-10].decode(), key[-9], int.from_bytes(key[-8:], "big")
            place = queue, priority, sequence, row.ref, row.stamp
            yield TaskSpec(run, row.kind, *place, True, key, row.normal_queue, row.created)


def trim(run: Run) -> None:
    """Keep the newest events only."""
    while run.tail_bytes > TAIL_BYTES_MAX // 2 and len(run.tail) > 1:
        _, after, data = run.tail.pop(0)
        run.tail_bytes -= len(data)
        run.tail_first = after
