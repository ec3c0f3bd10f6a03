"""A run in the leader's memory: its rows decoded, and what the present transaction changes in it.

Theory of operation. Every engine function takes a `Transaction` and a `Run`, changes the run in place and
leaves behind what must be written: events (one history row a transaction), items, the core row, task rows,
a wake row, a visibility record. `Transaction.seal` turns all that into rows. If a function raises, the run
is spoiled: the caller forgets it and reads it again, which is why nothing here undoes anything.

Event ids. An event gets its id when it is added, except while a workflow task is started: then events that
come from outside are *buffered* (no id) until the task ends, since the worker's commands must follow the task
they answer. At the flush, completions move behind the rest and learn the ids of started events that were
buffered with them (Temporal: history builder's reorder and wire).

Deadlines. A heap of (due, kind, key) with lazy deletion: an entry is void unless `due_of` still says the
same. The earliest one is kept as one wake row a run; a wake row that is too early is harmless.

Invariant: 1 <= batch_first <= state.next_event_id; events in `events` are contiguous from batch_first.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1.message_pb2 import HistoryEvent

from history_store.engine import keys, pauses
from history_store.engine.pending import activity_due, workflow_task_due
from history_store.engine.record import record_of
from history_store.engine.state import (
    RUNNING,
    WFT_SPECULATIVE,
    Action,
    ActivityState,
    ChildState,
    CurrentRun,
    ExternalState,
    RunState,
    TaskRow,
    TimerState,
    UpdateState,
    WakeRow,
    WorkflowTask,
)
from history_store.visibility.record import DeleteRecord, VisibilityOp

if TYPE_CHECKING:
    from history_store.engine.environment import Environment
    from history_store.engine.updates import UpdateRegistry

E = event_type_pb2

# Kinds of deadline, in the order they are looked at when due at the same instant.
DUE_RUN_TIMEOUT = 1
DUE_EXECUTION_TIMEOUT = 2
DUE_FIRST_TASK = 3
DUE_WORKFLOW_TASK = 4
DUE_TIMER = 5
DUE_ACTIVITY = 6
DUE_RETENTION = 7

ID_BUFFERED = -1  # "started" of a child whose started event is still buffered

_MOVED_BACK = frozenset(
    (
        E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED,
        E.EVENT_TYPE_ACTIVITY_TASK_FAILED,
        E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
        E.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
    )
)

# The event types whose attributes carry (scheduled or initiated id, started id) to be wired at the flush.
_WIRED: dict[int, tuple[str, str]] = {
    E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: ("activity_task_completed_event_attributes", "scheduled_event_id"),
    E.EVENT_TYPE_ACTIVITY_TASK_FAILED: ("activity_task_failed_event_attributes", "scheduled_event_id"),
    E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: ("activity_task_timed_out_event_attributes", "scheduled_event_id"),
    E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: ("activity_task_canceled_event_attributes", "scheduled_event_id"),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: (
        "child_workflow_execution_completed_event_attributes",
        "initiated_event_id",
    ),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: (
        "child_workflow_execution_failed_event_attributes",
        "initiated_event_id",
    ),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: (
        "child_workflow_execution_canceled_event_attributes",
        "initiated_event_id",
    ),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: (
        "child_workflow_execution_timed_out_event_attributes",
        "initiated_event_id",
    ),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: (
        "child_workflow_execution_terminated_event_attributes",
        "initiated_event_id",
    ),
}

LARGE_ITEM_BYTES = 1024  # an item's row from which on it is counted; smaller ones are like the run itself

pack = msgspec.msgpack.Encoder().encode


class TaskSpec(NamedTuple):
    """A task for matching, as the engine leaves it behind."""

    run: Run
    kind: int  # TaskQueueType
    queue: str
    priority: int
    sequence: int
    ref: int
    stamp: int
    durable: bool  # it has a row
    key: bytes
    normal_queue: str  # of a sticky task
    created: int


def frame(event: bytes) -> bytes:
    """One element of History.events, as protobuf writes it: such elements concatenate into a History."""
    n = len(event)
    if n < 128:
        return b"\x0a" + bytes((n,)) + event
    head = bytearray(b"\x0a")
    while n > 127:
        head.append(n & 127 | 128)
        n >>= 7
    head.append(n)
    return bytes(head) + event


class Transaction:
    """One synchronous step: some runs changed together, one Raft entry."""

    __slots__ = (
        "about", "actions", "env", "namespace_id", "now", "rows", "runs", "time", "version", "visibility",
    )  # fmt: skip

    def __init__(self, env: Environment, now: int, namespace_id: str = "", version: int = 0) -> None:
        """`namespace_id`: of all runs in it. `version`: the failover version that what it writes carries."""
        self.env = env
        self.now = now
        self.namespace_id = namespace_id
        self.version = version
        self.time = Timestamp(seconds=now // 1_000_000_000, nanos=now % 1_000_000_000)
        self.runs: list[Run] = []
        self.rows: list[tuple[bytes, bytes | None]] = []
        self.visibility: list[VisibilityOp] = []
        self.actions: list[tuple[bytes, Action]] = []
        self.about: tuple[str, str] | None = None  # namespace id and workflow id, if no run is opened

    def open(self, run: Run) -> Run:
        """Make the run part of this transaction."""
        if run.tx is not self:
            assert run.tx is None, "a run is in one transaction at a time"
            run.tx = self
            state = run.state
            run.batch_first = state.next_event_id
            if state.version < self.version:
                state.version = self.version
            task = state.task
            if task is not None and task.kind == WFT_SPECULATIVE:
                run.speculative = msgspec.structs.replace(task)
            self.runs.append(run)
        return run

    def act(self, action: Action) -> None:
        """Leave an action on another run behind; it is done after the commit."""
        key = keys.action(self.env.next_sequence())
        self.actions.append((key, action))
        self.rows.append((key, pack(action)))

    def action_done(self, key: bytes, action: Action) -> None:
        """The action at `key` need not be done again."""
        self.rows.append((key, None))
        self.about = action.namespace_id, action.workflow_id

    def seal(self) -> None:
        """Turn what changed into rows and visibility records."""
        for run in self.runs:
            run.seal(self)


class Run:
    """One run: decoded rows, deadlines, and the changes of the open transaction."""

    __slots__ = (
        "activities",
        "activity_ids",
        "attributes",
        "attributes_bytes",
        "batch_first",
        "buffered",
        "buffered_rows",
        "children",
        "closed_now",
        "core_bytes",
        "current_dirty",
        "deadlines",
        "deleted",
        "dirty",
        "events",
        "external",
        "large_bytes",
        "large_items",
        "namespace_raw",
        "noted",
        "offers",
        "proposed",
        "queries",
        "raw",
        "signal_ids",
        "slot",
        "speculative",
        "state",
        "tail",
        "tail_bytes",
        "tail_first",
        "task_changed",
        "timers",
        "tx",
        "updates",
        "updates_state",
        "visible",
        "watchers",
        "withdrawn",
    )

    def __init__(self, state: RunState, slot: bytes) -> None:
        self.state = state
        self.slot = slot
        self.raw = keys.raw_id(state.run_id)
        self.namespace_raw = keys.raw_id(state.namespace_id)
        self.activities: dict[int, ActivityState] = {}
        self.activity_ids: dict[str, int] = {}
        self.timers: dict[str, TimerState] = {}
        self.children: dict[int, ChildState] = {}
        self.external: dict[int, ExternalState] = {}
        self.updates_state: dict[str, UpdateState] = {}
        self.signal_ids: set[str] = set()
        self.buffered: list[HistoryEvent] = []
        self.buffered_rows = 0
        self.deadlines: list[tuple[int, int, Any]] = []
        # Never written: dies with the leader
        self.updates: UpdateRegistry | None = None
        self.speculative: WorkflowTask | None = None  # as it was before the transaction
        self.queries: dict[str, Any] = {}
        self.attributes: dict[int, HistoryEvent] = {}  # scheduled events of pending activities
        self.attributes_bytes = 0
        self.watchers: list[Callable[[], None]] = []  # told after every committed change
        self.noted = 0  # the wake that the clock of this shard has been told of
        self.proposed = 0  # the log's index of its latest change; until that is committed nobody may see it
        # The newest events, kept so that a poll's answer need not read the disk
        self.tail: list[tuple[int, int, bytes]] = []  # (first id, next id, framed events)
        self.tail_first = state.next_event_id
        self.tail_bytes = 0
        self.core_bytes = 0  # of the state, when it was last written or read
        # Of items with what clients sent: buffered events, heartbeats' details. By their keys' suffixes.
        self.large_items: dict[bytes, int] = {}
        self.large_bytes = 0
        self._reset_transaction()

    def _reset_transaction(self) -> None:
        self.tx: Transaction | None = None
        self.batch_first = self.state.next_event_id
        self.events: list[HistoryEvent] = []
        self.dirty: dict[bytes, Any] = {}
        self.offers: list[TaskSpec] = []
        self.withdrawn: list[tuple[int, str]] = []
        self.current_dirty = False
        self.visible = False
        self.task_changed = False
        self.closed_now = False
        self.deleted = False

    # ---- what it is

    @property
    def running(self) -> bool:
        """Whether the run is open."""
        return self.state.status == RUNNING

    @property
    def held_bytes(self) -> int:
        """About what it takes in memory, as far as that depends on what clients sent."""
        return self.tail_bytes + self.core_bytes + self.large_bytes + self.attributes_bytes

    @property
    def task(self) -> WorkflowTask | None:
        """The pending workflow task."""
        return self.state.task

    @property
    def task_started(self) -> bool:
        """Whether a worker holds the workflow task: events from outside are buffered."""
        task = self.state.task
        return task is not None and task.started_id != 0

    # ---- events

    def event(self, event_type: int, **fields: Any) -> HistoryEvent:
        """Add an event with the next id. Fields: the attributes message by its field name, links, …"""
        tx = self.tx
        assert tx is not None, "events are added inside a transaction"
        state = self.state
        event = HistoryEvent(
            event_id=state.next_event_id,
            event_time=tx.time,
            event_type=event_type,  # type: ignore[arg-type]
            version=state.version,
            task_id=tx.env.next_sequence() & 0x7FFFFFFFFFFFFFFF,
            **fields,
        )
        state.next_event_id += 1
        self.events.append(event)
        return event

    def outside_event(self, event_type: int, **fields: Any) -> HistoryEvent:
        """Add an event that comes from outside the worker: buffered while a workflow task is started."""
        if not self.task_started:
            return self.event(event_type, **fields)
        tx = self.tx
        assert tx is not None
        event = HistoryEvent(
            event_time=tx.time,
            event_type=event_type,  # type: ignore[arg-type]
            version=self.state.version,
            task_id=tx.env.next_sequence() & 0x7FFFFFFFFFFFFFFF,  # names it until it has an id, and after
            **fields,
        )
        self.buffered.append(event)
        self.state.buffered_count += 1
        return event

    def ends_buffered(self, scheduled_id: int) -> bool:
        """Whether the end of this activity waits in the buffer."""
        return any(
            event.event_type in _WIRED
            and _WIRED[event.event_type][1] == "scheduled_event_id"
            and getattr(event, _WIRED[event.event_type][0]).scheduled_event_id == scheduled_id
            for event in self.buffered
        )

    def flush_buffered(self) -> bool:
        """Give buffered events their ids. Returns whether there were any."""
        if not self.buffered:
            return False
        tx = self.tx
        assert tx is not None
        first = [e for e in self.buffered if e.event_type not in _MOVED_BACK]
        later = [e for e in self.buffered if e.event_type in _MOVED_BACK]
        started: dict[tuple[bool, int], int] = {}
        for event in first + later:
            event.event_id = self.state.next_event_id
            event.version = self.state.version  # the run may have come to another region since
            if not event.task_id:  # of a release that gave it none before
                event.task_id = tx.env.next_sequence() & 0x7FFFFFFFFFFFFFFF
            self.state.next_event_id += 1
            self._wire(event, started)
            self.events.append(event)
        for index in range(self.buffered_rows):
            self.dirty[keys.ITEM_BUFFERED + keys.number(index)] = None
        self.buffered = []
        self.buffered_rows = 0
        self.state.buffered_count = 0
        return True

    def _wire(self, event: HistoryEvent, started: dict[tuple[bool, int], int]) -> None:
        kind = event.event_type
        if kind == E.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            started[False, event.activity_task_started_event_attributes.scheduled_event_id] = event.event_id
        elif kind == E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED:
            initiated = event.child_workflow_execution_started_event_attributes.initiated_event_id
            started[True, initiated] = event.event_id
            child = self.children.get(initiated)
            if child is not None:
                child.started_id = event.event_id
                self.touch_child(child)
        elif kind == E.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED:
            attached = event.workflow_execution_options_updated_event_attributes.attached_request_id
            if attached:
                self.state.request_ids[attached] = (kind, event.event_id)
        elif kind in _WIRED:
            name, ref = _WIRED[kind]
            attributes = getattr(event, name)
            if attributes.started_event_id <= 0:
                key = (ref == "initiated_event_id", getattr(attributes, ref))
                attributes.started_event_id = started.get(key, 0)

    # ---- items: changed ones are written at the seal

    def touch_activity(self, activity: ActivityState) -> None:
        """Write the activity's row."""
        self.dirty[keys.ITEM_ACTIVITY + keys.number(activity.scheduled_id)] = activity

    def put_activity(self, activity: ActivityState) -> None:
        """Add a pending activity."""
        self.activities[activity.scheduled_id] = activity
        self.activity_ids[activity.activity_id] = activity.scheduled_id
        self.touch_activity(activity)

    def note_item(self, suffix: bytes, row: bytes | None) -> None:
        """An item's row is this (None: it is no more): large ones count."""
        size = len(row) if row is not None and len(row) >= LARGE_ITEM_BYTES else 0
        before = self.large_items.pop(suffix, 0)
        if size:
            self.large_items[suffix] = size
        self.large_bytes += size - before

    def keep_scheduled(self, event: HistoryEvent) -> None:
        """Hold a pending activity's scheduled event: whoever starts it is told what it says."""
        self.attributes[event.event_id] = event
        self.attributes_bytes += event.ByteSize()

    def drop_activity(self, activity: ActivityState) -> None:
        """The activity is not pending any more."""
        del self.activities[activity.scheduled_id]
        self.activity_ids.pop(activity.activity_id, None)
        scheduled = self.attributes.pop(activity.scheduled_id, None)
        if scheduled is not None:
            self.attributes_bytes -= scheduled.ByteSize()
        self.dirty[keys.ITEM_ACTIVITY + keys.number(activity.scheduled_id)] = None
        self.withdraw_activity_task(activity)
        if activity.paused:
            pauses.show(self)

    def put_timer(self, timer: TimerState) -> None:
        """Add a pending timer."""
        self.timers[timer.timer_id] = timer
        self.dirty[keys.ITEM_TIMER + timer.timer_id.encode()] = timer
        heappush(self.deadlines, (timer.fire_time, DUE_TIMER, timer.timer_id))

    def drop_timer(self, timer: TimerState) -> None:
        """The timer is not pending any more."""
        del self.timers[timer.timer_id]
        self.dirty[keys.ITEM_TIMER + timer.timer_id.encode()] = None

    def touch_child(self, child: ChildState) -> None:
        """Add a child or write its row."""
        self.children[child.initiated_id] = child
        self.dirty[keys.ITEM_CHILD + keys.number(child.initiated_id)] = child

    def drop_child(self, child: ChildState) -> None:
        """The child is not pending any more."""
        del self.children[child.initiated_id]
        self.dirty[keys.ITEM_CHILD + keys.number(child.initiated_id)] = None

    def put_external(self, request: ExternalState) -> None:
        """Add a pending signal or cancel request to another workflow."""
        self.external[request.initiated_id] = request
        self.dirty[keys.ITEM_EXTERNAL + keys.number(request.initiated_id)] = request

    def drop_external(self, request: ExternalState) -> None:
        """The other workflow has answered."""
        del self.external[request.initiated_id]
        self.dirty[keys.ITEM_EXTERNAL + keys.number(request.initiated_id)] = None

    def put_update(self, update: UpdateState) -> None:
        """Add an update to what history knows, or change its stage."""
        self.updates_state[update.update_id] = update
        self.dirty[keys.ITEM_UPDATE + update.update_id.encode()] = update

    def drop_update(self, update_id: str) -> None:
        """An admitted update was rejected: history holds no more of it than its admission."""
        del self.updates_state[update_id]
        self.dirty[keys.ITEM_UPDATE + update_id.encode()] = None

    def put_signal_id(self, request_id: str) -> None:
        """Remember a signal's request id, so that the same signal is not recorded twice."""
        self.signal_ids.add(request_id)
        self.dirty[keys.ITEM_SIGNAL_ID + request_id.encode()] = True

    # ---- tasks for matching

    def offer(
        self,
        kind: int,
        queue: str,
        priority: int,
        ref: int,
        stamp: int,
        durable: bool,
        normal_queue: str = "",
    ) -> bytes:
        """Leave a task for matching behind; returns the key of its row (b"" if it has none)."""
        tx = self.tx
        assert tx is not None
        sequence = tx.env.next_sequence()
        key = b""
        state = self.state
        if durable:
            key = keys.task(self.namespace_raw, kind, queue, priority, sequence)
            row = TaskRow(
                state.namespace_id, state.workflow_id, state.run_id, kind, ref, stamp, tx.now, normal_queue
            )
            tx.rows.append((key, pack(row)))
        self.offers.append(
            TaskSpec(self, kind, queue, priority, sequence, ref, stamp, durable, key, normal_queue, tx.now)
        )
        return key

    def withdraw_activity_task(self, activity: ActivityState) -> None:
        """Take the activity's waiting task back."""
        if activity.task_key:
            self._withdraw(activity.task_key)
            activity.task_key = b""

    def withdraw_workflow_task(self, task: WorkflowTask) -> None:
        """Take the workflow task's waiting row back."""
        if task.task_key:
            self._withdraw(task.task_key)
            task.task_key = b""

    def _withdraw(self, key: bytes) -> None:
        tx = self.tx
        assert tx is not None
        tx.rows.append((key, None))
        # q namespace(16) kind(1) queue ff priority(1) sequence(8)
        self.withdrawn.append((key[17], key[18:-10].decode()))

    # ---- deadlines

    def wake_at(self, due: int, kind: int, key: Any = 0) -> None:
        """Look at this run again at `due`."""
        if due:
            heappush(self.deadlines, (due, kind, key))

    def due_of(self, kind: int, key: Any) -> int:
        """When this deadline is due as the state says now (0: it is void)."""
        state = self.state
        if kind == DUE_RETENTION:
            return int(key)
        if state.status != RUNNING:
            return 0
        if kind == DUE_WORKFLOW_TASK:
            return workflow_task_due(state.task)
        if kind == DUE_ACTIVITY:
            activity = self.activities.get(key)
            return activity_due(activity) if activity is not None else 0
        if kind == DUE_TIMER:
            timer = self.timers.get(key)
            return timer.fire_time if timer is not None else 0
        if kind == DUE_RUN_TIMEOUT:
            return state.run_expiration
        if kind == DUE_EXECUTION_TIMEOUT:
            return state.execution_expiration
        assert kind == DUE_FIRST_TASK
        return state.first_backoff_until

    def next_due(self) -> int:
        """The earliest valid deadline (0: none)."""
        heap = self.deadlines
        while heap:
            due, kind, key = heap[0]
            if self.due_of(kind, key) == due:
                return due
            heappop(heap)
        return 0

    # ---- the end of a transaction

    def seal(self, tx: Transaction) -> None:
        """Write what changed."""
        assert self.tx is tx
        state, rows = self.state, tx.rows
        if self.deleted:
            self._seal_deleted(rows)
            tx.visibility.append(DeleteRecord(state.namespace_id, state.run_id))
            return
        if self.events:
            self._seal_events(rows)
        if len(self.buffered) > self.buffered_rows:
            for index in range(self.buffered_rows, len(self.buffered)):
                self.dirty[keys.ITEM_BUFFERED + keys.number(index)] = self.buffered[index].SerializeToString()
            self.buffered_rows = len(self.buffered)
        if self.dirty:
            prefix = keys.ITEM + self.slot + self.raw
            for suffix, item in self.dirty.items():
                row = None if item is None else item if type(item) is bytes else pack(item)
                self.note_item(suffix, row)
                rows.append((prefix + suffix, row))
        due = self.next_due()
        if due and (state.wake == 0 or due < state.wake):
            if state.wake:
                rows.append((keys.wake(state.wake, self.raw), None))
            state.wake = due
            rows.append(
                (keys.wake(due, self.raw), pack(WakeRow(state.namespace_id, state.workflow_id, state.run_id)))
            )
        elif not due and state.wake:
            rows.append((keys.wake(state.wake, self.raw), None))
            state.wake = 0
        state.transitions += 1
        core = self._pack_core()
        self.core_bytes = len(core)
        rows.append((keys.run(self.slot, self.raw), core))
        if self.current_dirty:
            current = CurrentRun(
                state.run_id,
                state.status,
                state.start_request_id,
                state.start_time,
                state.close_time,
                state.first_run_id,
                state.earlier_starts,
            )
            rows.append((keys.current(self.slot, self.namespace_raw, state.workflow_id), pack(current)))
        if self.visible:
            tx.visibility.append(record_of(state))

    def _pack_core(self) -> bytes:
        """A speculative workflow task is never written: it dies with the leader, its updates are retried."""
        state = self.state
        task = state.task
        if task is not None and task.kind == WFT_SPECULATIVE:
            state.task = None
            try:
                return pack(state)
            finally:
                state.task = task
        return pack(state)

    def _seal_events(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        state = self.state
        first = self.events[0].event_id
        assert first == self.batch_first, f"batch starts at {first}, expected {self.batch_first}"
        assert self.events[-1].event_id == state.next_event_id - 1
        data = b"".join([frame(event.SerializeToString()) for event in self.events])
        rows.append((keys.history(self.slot, self.raw, state.branch, first), data))
        state.history_size_bytes += len(data)
        self.tail.append((first, state.next_event_id, data))
        self.tail_bytes += len(data)

    def _seal_deleted(self, rows: list[tuple[bytes, bytes | None]]) -> None:
        """Rows of the run other than history and items, which the caller deletes by range."""
        state = self.state
        if state.wake:
            rows.append((keys.wake(state.wake, self.raw), None))
        rows.append((keys.run(self.slot, self.raw), None))

    def keep_speculative(self, spoiled: Run) -> None:
        """This run was read again after a failed transaction: its speculative task is in no row."""
        task = spoiled.speculative
        if task is not None and self.state.task is None and self.running:
            self.state.task = task
            self.state.task_stamp = max(self.state.task_stamp, task.stamp)
            self.wake_at(workflow_task_due(task), DUE_WORKFLOW_TASK)

    def committed(self) -> None:
        """The transaction has been proposed: forget its changes."""
        self.speculative = None
        self._reset_transaction()
