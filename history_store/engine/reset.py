"""A run goes back to an earlier workflow task: a new run begins with a copy of its history up to there.

The base run may be open or closed. The new run replays the prefix of its history, its workflow task fails
with cause RESET_WORKFLOW, what came from outside after that point (signals, updates, options, the fate of
children) is applied again, also from the runs that continued it as new, and a workflow task is scheduled.
The run that is open under the workflow id is terminated in the same transaction. Cancel requests are not
carried over. Behaviour: Temporal server, workflow resetter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2, reset_pb2, workflow_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import activity as activities
from history_store.engine import children, close, deadlines, inputs, keys, options, updates, workflow_task
from history_store.engine.errors import invalid
from history_store.engine.replay import HistoryBroken, replay
from history_store.engine.run import ID_BUFFERED, frame
from history_store.engine.state import EXTERNAL_SIGNAL

if TYPE_CHECKING:
    from temporalio.api.common.v1.message_pb2 import Link
    from temporalio.api.update.v1.message_pb2 import Request
    from temporalio.api.workflow.v1.message_pb2 import PostResetOperation

    from history_store.engine.run import Run, Transaction

E = event_type_pb2
HISTORY_SERVICE = "history-service"
CAUSE = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
NON_RETRYABLE = workflow_pb2.RETRY_STATE_NON_RETRYABLE_FAILURE
EXCLUDE_SIGNAL = reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL
EXCLUDE_UPDATE = reset_pb2.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE
EXCLUDE_ALL = frozenset(int(value) for value in reset_pb2.ResetReapplyExcludeType.values() if value)

Batches = Callable[["Run"], Sequence[bytes]]
Find = Callable[[str], "Run | None"]


class Reset:
    """What was asked for."""

    __slots__ = ("excluded", "finish_id", "identity", "operations", "reason", "request_id")

    def __init__(
        self,
        finish_id: int,
        reason: str,
        request_id: str,
        reapply: int = 0,
        exclude: Iterable[int] = (),
        operations: Sequence[PostResetOperation] = (),
        identity: str = "",
    ) -> None:
        self.finish_id = finish_id  # the first event that is not kept
        self.reason = reason
        self.request_id = request_id
        self.excluded = excluded_types(reapply, exclude)
        self.operations = operations
        self.identity = identity


def excluded_types(reapply: int, exclude: Iterable[int]) -> frozenset[int]:
    """What is not applied again: the newer field says it, the older one says what is."""
    excluded = set(exclude)
    if reapply == reset_pb2.RESET_REAPPLY_TYPE_SIGNAL:
        excluded.add(EXCLUDE_UPDATE)
    elif reapply == reset_pb2.RESET_REAPPLY_TYPE_NONE:
        excluded |= {EXCLUDE_SIGNAL, EXCLUDE_UPDATE}
    return frozenset(excluded)


def made_by(current: Run | None, request_id: str) -> bool:
    """Whether the current run is what this very request made: it is answered with it."""
    if current is None:
        return False
    known = current.state.request_ids.get(request_id)
    return known is not None and known[0] == E.EVENT_TYPE_WORKFLOW_TASK_FAILED


def reset(
    tx: Transaction, base: Run, current: Run | None, wanted: Reset, batches: Batches, find: Find
) -> Run:
    """Make the new run. `batches` reads a run's stored history, `find` another run of the workflow id."""
    if not 1 < wanted.finish_id < base.state.next_event_id:
        raise invalid("Workflow task finish ID must be > 1 && <= workflow last event ID.")
    stored = list(batches(base))
    new_id = tx.env.new_id()
    run = _rebuild(tx, base, wanted.finish_id, stored, new_id)
    _keep_promises(base, run)
    tx.open(base)
    base.state.reset_run_id = new_id
    if current is not None and current.running:
        close.terminate(tx, tx.open(current), wanted.reason, None, close.RESETTER)
    if current is not None:
        current.current_dirty = False
    tx.open(run)
    _begin_again(tx, run)
    _fail_task(tx, run, base, wanted)
    _fail_started_activities(tx, run, wanted.reason)
    if not wanted.excluded >= EXCLUDE_ALL:
        for event in _later_events(base, wanted.finish_id, stored, batches, find):
            _reapply(tx, run, event, wanted.excluded)
    for operation in wanted.operations:
        _operate(tx, run, operation, wanted)
    workflow_task.schedule(tx, run)
    _resume(tx, run)
    run.current_dirty = run.visible = True
    deadlines.rebuild(run, tx.env.retention(run.state.namespace_id))
    return run


# ---- the prefix


def _prefix(stored: Iterable[bytes], end: int) -> list[tuple[int, bytes]]:
    """Batches of events before `end`, each with its first event id; the last one may be cut."""
    kept = []
    for data in stored:
        found = history.History.FromString(data).events
        first = found[0].event_id
        if first >= end:
            break
        if found[-1].event_id >= end:
            part = b"".join(frame(event.SerializeToString()) for event in found if event.event_id < end)
            kept.append((first, part))
            break
        kept.append((first, data))
    return kept


def _rebuild(tx: Transaction, base: Run, finish_id: int, stored: Iterable[bytes], new_id: str) -> Run:
    """The run as it was before `finish_id`, with a copy of that history in rows of its own."""
    kept = _prefix(stored, finish_id)
    state = base.state
    try:
        run = replay(
            state.namespace_id,
            new_id,
            [data for _, data in kept],
            state.start_request_id,
            tx.env.new_id,
            tx.env.limits.reset_points_max,
        )
    except HistoryBroken as broken:
        raise invalid(f"Cannot reset workflow to event ID {finish_id}: {broken}") from broken
    if run.state.task is None:
        raise invalid(
            "Can only reset workflow to event ID in range "
            f"[WorkflowTaskScheduled +1, WorkflowTaskStarted + 1]: {finish_id}"
        )
    run.state.version = max(state.version, tx.version)
    run.state.earlier_starts = state.earlier_starts
    # Held in memory too, like the newest events of any run: what follows reads them before they are stored.
    ends = [first for first, _ in kept[1:]] + [run.state.next_event_id]
    for (first, data), end in zip(kept, ends, strict=True):
        tx.rows.append((keys.history(run.slot, run.raw, run.state.branch, first), data))
        run.tail.append((first, end, data))
    run.tail_first = 1
    run.tail_bytes = run.state.history_size_bytes
    return run


def _keep_promises(base: Run, run: Run) -> None:
    """Requests to other runs that are still under way keep their ids, so that nothing is done there twice."""
    for initiated_id, child in run.children.items():
        known = base.children.get(initiated_id)
        if known is not None:
            child.request_id = known.request_id
    for initiated_id, request in run.external.items():
        sent = base.external.get(initiated_id)
        if sent is not None:
            request.request_id = sent.request_id


def _begin_again(tx: Transaction, run: Run) -> None:
    """The new run's own times: its time-outs count from now."""
    state = run.state
    state.original_start_time = state.start_time
    state.start_time = state.execution_time = state.last_reset_time = tx.now
    state.first_backoff_until = 0
    if state.execution_timeout:
        state.execution_expiration = tx.now + state.execution_timeout
    if state.run_timeout:
        state.run_expiration = tx.now + state.run_timeout
        if state.execution_timeout:
            state.run_expiration = min(state.run_expiration, state.execution_expiration)


def _fail_task(tx: Transaction, run: Run, base: Run, wanted: Reset) -> None:
    """The workflow task at the end of the prefix fails because of the reset."""
    state = run.state
    task = state.task
    assert task is not None, "checked when the run was rebuilt"
    if task.scheduled_id >= state.next_event_id:
        workflow_task.materialize(run, task)
    task.attempt = state.task_attempt = 1
    if not task.started_id:
        workflow_task.start(tx, run, tx.env.new_id(), HISTORY_SERVICE)
    failure = Failure(message=wanted.reason)
    failure.reset_workflow_failure_info.SetInParent()
    workflow_task.fail(
        tx, run, task, CAUSE, failure, HISTORY_SERVICE, base_run_id=base.state.run_id, new_run_id=state.run_id
    )
    state.task_attempt = 1
    state.task_last_failure = b""
    state.task_last_cause = 0
    state.request_ids[wanted.request_id] = (E.EVENT_TYPE_WORKFLOW_TASK_FAILED, state.next_event_id - 1)


def _fail_started_activities(tx: Transaction, run: Run, reason: str) -> None:
    """An activity whose start is in the prefix but not its end has no worker any more; others begin anew."""
    for activity in list(run.activities.values()):
        if not activity.started_id:
            activity.scheduled_time = activity.first_scheduled_time = tx.now
            if activity.schedule_to_close:
                activity.expiration = tx.now + activity.schedule_to_close
            continue
        failure = Failure(message=reason)
        failure.reset_workflow_failure_info.SetInParent()
        run.event(
            E.EVENT_TYPE_ACTIVITY_TASK_FAILED,
            activity_task_failed_event_attributes=history.ActivityTaskFailedEventAttributes(
                failure=failure,
                scheduled_event_id=activity.scheduled_id,
                started_event_id=activity.started_id,
                identity=activity.identity,
                retry_state=NON_RETRYABLE,
            ),
        )
        run.drop_activity(activity)


# ---- what came later


def _later_events(
    base: Run,
    finish_id: int,
    stored: Iterable[bytes],
    batches: Batches,
    find: Find,
) -> list[history.HistoryEvent]:
    """Events from `finish_id` on, and those of the runs that continued the base as new."""
    out: list[history.HistoryEvent] = []
    run: Run | None = base
    first = finish_id
    while run is not None:
        data = stored if run is base else batches(run)
        # Events of this transaction (the current run was just terminated) are not stored yet.
        events = list(history.History.FromString(b"".join(data)).events) + run.events
        out += [event for event in events if event.event_id >= first]
        last = events[-1]
        if last.event_type != E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW:
            break
        run = find(last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id)
        first = 1
    return out


def _reapply(tx: Transaction, run: Run, event: history.HistoryEvent, excluded: frozenset[int]) -> None:
    kind = event.event_type
    if kind == E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
        if EXCLUDE_SIGNAL not in excluded:
            signal = event.workflow_execution_signaled_event_attributes
            _signal(tx, run, signal, signal.identity, signal.request_id, event.links)
    elif kind == E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED:
        if EXCLUDE_UPDATE not in excluded:
            admitted = event.workflow_execution_update_admitted_event_attributes
            _admit(run, admitted.request, admitted.origin, event)
    elif kind == E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
        accepted = event.workflow_execution_update_accepted_event_attributes
        # Without its request an accepted update was admitted by an event, which is applied again itself.
        if EXCLUDE_UPDATE not in excluded and accepted.HasField("accepted_request"):
            _admit(run, accepted.accepted_request, updates.REAPPLIED, event)
    elif kind == E.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED:
        changed = event.workflow_execution_options_updated_event_attributes
        if changed.attached_request_id not in run.state.request_ids:
            again = run.event(
                kind,
                workflow_execution_options_updated_event_attributes=changed,
                links=event.links,
                worker_may_ignore=True,
            )
            options.apply(run, again)
    elif kind in CHILD_EVENTS:
        _reapply_child(run, event)


def _admit(run: Run, request: Request, origin: int, event: history.HistoryEvent) -> None:
    update_id = request.meta.update_id
    if update_id in run.updates_state:
        return
    updates.admit_again(run, request, event.links, origin)


CHILD_EVENTS = frozenset(
    (
        E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
    )
)


def _reapply_child(run: Run, event: history.HistoryEvent) -> None:
    """A child from before the reset went on meanwhile: the new run learns how."""
    name = event.WhichOneof("attributes")
    assert name is not None
    attributes: Any = getattr(event, name)
    child = run.children.get(attributes.initiated_event_id)
    if child is None:
        return
    started = event.event_type == E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED
    if started and child.started_id:
        return
    again = run.event(event.event_type, **{name: attributes})
    if started:
        child.started_id = again.event_id
        child.run_id = attributes.workflow_execution.run_id
        run.touch_child(child)
        return
    if event.event_type != E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED:
        copied: Any = getattr(again, name)
        copied.started_event_id = max(child.started_id, 0)
    run.drop_child(child)


def _operate(tx: Transaction, run: Run, operation: PostResetOperation, wanted: Reset) -> None:
    """What is to be done to the new run before its worker sees it."""
    if operation.WhichOneof("variant") == "update_workflow_options":
        change = operation.update_workflow_options
        options.update(tx, run, change.workflow_execution_options, change.update_mask.paths, wanted.identity)
        return
    signal = operation.signal_workflow
    _signal(tx, run, signal, wanted.identity, "", signal.links)


# ---- what was under way


def _resume(tx: Transaction, run: Run) -> None:
    """Offer pending activities again, and ask other runs again for what they have not answered."""
    for activity in run.activities.values():
        activities.offer(run, activity)
        activities.arm(run, activity)
    for child in run.children.values():
        if child.started_id in (0, ID_BUFFERED):
            tx.act(
                children.action(
                    "start_child",
                    run,
                    child.initiated_id,
                    child.batch_id,
                    child.namespace_id,
                    child.workflow_id,
                    "",
                    child.request_id,
                    child.parent_close_policy,
                )
            )
    for request in run.external.values():
        initiated = tx.env.load_event(run, request.batch_id, request.initiated_id)
        if request.kind == EXTERNAL_SIGNAL:
            asked: Any = initiated.signal_external_workflow_execution_initiated_event_attributes
        else:
            asked = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
        tx.act(
            children.action(
                "signal" if request.kind == EXTERNAL_SIGNAL else "cancel",
                run,
                request.initiated_id,
                request.batch_id,
                asked.namespace_id,
                asked.workflow_execution.workflow_id,
                asked.workflow_execution.run_id,
                request.request_id,
            )
        )


def _signal(
    tx: Transaction,
    run: Run,
    signal: history.WorkflowExecutionSignaledEventAttributes | PostResetOperation.SignalWorkflow,
    identity: str,
    request_id: str,
    links: Iterable[Link],
) -> None:
    inputs.signal(
        tx,
        run,
        signal.signal_name,
        signal.input if signal.HasField("input") else None,
        signal.header if signal.HasField("header") else None,
        identity,
        request_id,
        links,
        skip_task=True,
    )
