"""The workflow task: scheduled, started, completed, failed or timed out.

Three forms. A *normal* one writes its events as they happen. A *transient* one (attempt > 1, after a failure
or time-out) writes nothing until it completes, so that a run that fails for days has a short history. A
*speculative* one carries updates to a worker and writes nothing at all if they are rejected.
Transient and speculative tasks become normal when other events appear before they are started.
Behaviour: Temporal server, workflow_task_state_machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1.message_pb2 import Priority
from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2, task_queue_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue

from history_store.engine.durations import from_ns
from history_store.engine.run import DUE_WORKFLOW_TASK
from history_store.engine.state import WFT_NORMAL, WFT_SPECULATIVE, WorkflowTask

if TYPE_CHECKING:
    from temporalio.api.failure.v1.message_pb2 import Failure

    from history_store.engine.run import Run, Transaction

E = event_type_pb2
WORKFLOW_QUEUE = task_queue_pb2.TASK_QUEUE_TYPE_WORKFLOW
NORMAL_KIND = task_queue_pb2.TASK_QUEUE_KIND_NORMAL
STICKY_KIND = task_queue_pb2.TASK_QUEUE_KIND_STICKY
START_TO_CLOSE = workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE
SCHEDULE_TO_START = workflow_pb2.TIMEOUT_TYPE_SCHEDULE_TO_START
REASON_SIZE = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_HISTORY_SIZE_TOO_LARGE
REASON_EVENTS = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_HISTORY_EVENTS
REASON_UPDATES = workflow_pb2.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_UPDATES
HISTORY_SERVICE = "history-service"  # who fails a task that no worker failed
RETRY_ATTEMPTS_MIN = 3  # from this attempt on, a failing task's time-out grows (Temporal's default)


def task_queue_message(run: Run, task: WorkflowTask) -> TaskQueue:
    """The queue of a task as events show it."""
    if task.sticky:
        return TaskQueue(name=task.queue, kind=STICKY_KIND, normal_name=run.state.task_queue)
    return TaskQueue(name=task.queue, kind=NORMAL_KIND)


def priority_key(run: Run) -> int:
    """1 (first) to 5; 3 if the run has none."""
    raw = run.state.priority
    if not raw:
        return 3
    return Priority.FromString(raw).priority_key or 3


def _timeout(tx: Transaction, run: Run, attempt: int) -> int:
    """Start-to-close of an attempt: grows from the fourth on, so that a broken worker is not hammered."""
    base = run.state.task_timeout
    if attempt <= RETRY_ATTEMPTS_MIN:
        return base
    limits = tx.env.limits
    exponent = min(attempt - RETRY_ATTEMPTS_MIN - 1, 20)
    grown: int = limits.workflow_task_retry_first << exponent
    return base + min(grown, limits.workflow_task_retry_max)


def schedule(
    tx: Transaction, run: Run, kind: int = WFT_NORMAL, original_time: int = 0, bypass_matching: bool = False
) -> WorkflowTask:
    """Schedule the workflow task. `bypass_matching`: the caller starts it at once, so no task is offered."""
    state = run.state
    assert state.task is None, "one workflow task at a time"
    # Not a counter: a speculative task is never written, and after a restart no other may have its stamp.
    state.task_stamp = tx.env.next_sequence()
    if run.flush_buffered():
        state.task_attempt = 1
        kind = WFT_NORMAL
    attempt = state.task_attempt
    if attempt > 1:
        kind = WFT_NORMAL
    sticky = bool(state.sticky_queue)
    task = WorkflowTask(
        scheduled_id=state.next_event_id,
        attempt=attempt,
        kind=kind,
        scheduled_time=tx.now,
        original_scheduled_time=original_time or tx.now,
        timeout=_timeout(tx, run, attempt),
        queue=state.sticky_queue or state.task_queue,
        sticky=sticky,
        stamp=state.task_stamp,
        schedule_to_start=state.sticky_timeout if sticky else 0,
        first_of_run=state.last_started_id == 0,
    )
    state.task = task
    if attempt == 1 and kind == WFT_NORMAL:
        _write_scheduled(run, task)
    if kind == WFT_SPECULATIVE:
        task.schedule_to_start = tx.env.limits.speculative_timeout
    run.task_changed = True
    if not bypass_matching:
        _offer(run, task)
    return task


def _offer(run: Run, task: WorkflowTask) -> None:
    normal = run.state.task_queue if task.sticky else ""
    task.task_key = run.offer(
        WORKFLOW_QUEUE,
        task.queue,
        priority_key(run),
        task.scheduled_id,
        task.stamp,
        task.kind != WFT_SPECULATIVE,
        normal,
    )
    if task.schedule_to_start:
        run.wake_at(task.scheduled_time + task.schedule_to_start, DUE_WORKFLOW_TASK)


def _write_scheduled(run: Run, task: WorkflowTask, at: int = 0) -> None:
    attributes = history.WorkflowTaskScheduledEventAttributes(
        task_queue=task_queue_message(run, task), attempt=task.attempt
    )
    from_ns(task.timeout, attributes.start_to_close_timeout)
    event = run.event(
        E.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED, workflow_task_scheduled_event_attributes=attributes
    )
    if at:
        event.event_time.FromNanoseconds(at)
    task.scheduled_id = event.event_id


def _write_started(run: Run, task: WorkflowTask, at: int = 0) -> None:
    attributes = history.WorkflowTaskStartedEventAttributes(
        scheduled_event_id=task.scheduled_id,
        identity=task.identity,
        request_id=task.request_id,
        history_size_bytes=task.history_size_bytes,
    )
    if task.suggest_continue_as_new:
        attributes.suggest_continue_as_new = True
        attributes.suggest_continue_as_new_reasons.extend(task.suggest_reasons)  # type: ignore[arg-type]
    event = run.event(E.EVENT_TYPE_WORKFLOW_TASK_STARTED, workflow_task_started_event_attributes=attributes)
    if at:
        event.event_time.FromNanoseconds(at)
    task.started_id = event.event_id


def reroute(tx: Transaction, run: Run, stamp: int) -> bool:
    """The sticky worker is gone: offer the waiting task on the normal queue. False: the task is void."""
    task = run.state.task
    run.state.sticky_queue = ""
    if task is None or task.stamp != stamp or task.started_id:
        return False
    run.withdraw_workflow_task(task)
    task.queue = run.state.task_queue
    task.sticky = False
    task.schedule_to_start = tx.env.limits.speculative_timeout if task.kind == WFT_SPECULATIVE else 0
    task.stamp = run.state.task_stamp = tx.env.next_sequence()
    _offer(run, task)
    return True


def start(tx: Transaction, run: Run, request_id: str, identity: str) -> WorkflowTask:
    """A worker takes the scheduled task."""
    state = run.state
    task = state.task
    assert task is not None
    assert task.started_id == 0, "a workflow task is started once"
    run.withdraw_workflow_task(task)
    task.started_time = tx.now
    task.request_id = request_id
    task.identity = identity
    _suggest(tx, run, task)
    written = task.attempt == 1 and task.kind == WFT_NORMAL
    if not written and task.scheduled_id != state.next_event_id:
        task.attempt = state.task_attempt = 1
        task.kind = WFT_NORMAL
        _write_scheduled(run, task)
        written = True
    if written:
        _write_started(run, task)
    else:
        task.started_id = task.scheduled_id + 1
    run.task_changed = True
    run.wake_at(task.started_time + task.timeout, DUE_WORKFLOW_TASK)
    return task


def _suggest(tx: Transaction, run: Run, task: WorkflowTask) -> None:
    state, limits = run.state, tx.env.limits
    task.history_size_bytes = state.history_size_bytes
    reasons = []
    if state.history_size_bytes >= limits.history_bytes_suggest:
        reasons.append(REASON_SIZE)
    if state.next_event_id > limits.history_events_suggest:
        reasons.append(REASON_EVENTS)
    if run.updates is not None or state.update_count:
        in_flight = run.updates.in_flight if run.updates is not None else 0
        if state.update_count + in_flight >= limits.updates_total_max * limits.updates_suggest_fraction:
            reasons.append(REASON_UPDATES)
    task.suggest_continue_as_new = bool(reasons)
    task.suggest_reasons = tuple(reasons)


def transient_events(run: Run) -> list[history.HistoryEvent]:
    """Scheduled and started events of a started task that history does not hold yet (for the worker only)."""
    task = run.state.task
    if task is None or task.started_id == 0 or (task.attempt == 1 and task.kind == WFT_NORMAL):
        return []
    scheduled = history.HistoryEvent(
        event_id=task.scheduled_id,
        event_type=E.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        version=run.state.version,
        workflow_task_scheduled_event_attributes=history.WorkflowTaskScheduledEventAttributes(
            task_queue=task_queue_message(run, task), attempt=task.attempt
        ),
    )
    scheduled.event_time.FromNanoseconds(task.scheduled_time)
    from_ns(task.timeout, scheduled.workflow_task_scheduled_event_attributes.start_to_close_timeout)
    started = history.HistoryEvent(
        event_id=task.started_id,
        event_type=E.EVENT_TYPE_WORKFLOW_TASK_STARTED,
        version=run.state.version,
        workflow_task_started_event_attributes=history.WorkflowTaskStartedEventAttributes(
            scheduled_event_id=task.scheduled_id,
            identity=task.identity,
            request_id=task.request_id,
            suggest_continue_as_new=task.suggest_continue_as_new,
            suggest_continue_as_new_reasons=task.suggest_reasons,  # type: ignore[arg-type]
            history_size_bytes=task.history_size_bytes,
        ),
    )
    started.event_time.FromNanoseconds(task.started_time)
    return [scheduled, started]


def materialize(run: Run, task: WorkflowTask) -> None:
    """Write the scheduled and started events of a transient or speculative task."""
    if task.attempt == 1 and task.kind == WFT_NORMAL:
        return
    _write_scheduled(run, task, task.scheduled_time)
    if task.started_id:
        _write_started(run, task, task.started_time)


def clear(run: Run) -> None:
    """The task is over."""
    task = run.state.task
    assert task is not None
    run.withdraw_workflow_task(task)
    run.state.task = None
    run.task_changed = True


def complete(run: Run, task: WorkflowTask, request: Any) -> history.HistoryEvent:
    """Write the completed event (and, for transient and speculative tasks, the two before it)."""
    state = run.state
    materialize(run, task)
    clear(run)
    state.task_attempt = 1
    state.task_last_failure = b""
    state.task_last_cause = 0
    attributes = history.WorkflowTaskCompletedEventAttributes(
        scheduled_event_id=task.scheduled_id,
        started_event_id=task.started_id,
        identity=request.identity,
        binary_checksum=request.binary_checksum,
        versioning_behavior=request.versioning_behavior,
    )
    if request.HasField("worker_version_stamp"):
        attributes.worker_version.CopyFrom(request.worker_version_stamp)
    build_id = request.deployment_options.build_id or request.binary_checksum
    if build_id and not attributes.worker_version.build_id:
        # Which code made the decision: SDKs read it back as the run's current build id.
        attributes.worker_version.build_id = build_id
    if request.HasField("sdk_metadata"):
        attributes.sdk_metadata.CopyFrom(request.sdk_metadata)
    if request.HasField("metering_metadata"):
        attributes.metering_metadata.CopyFrom(request.metering_metadata)
    if request.HasField("deployment_options") and request.deployment_options.deployment_name:
        attributes.worker_deployment_name = request.deployment_options.deployment_name
        attributes.deployment_version.deployment_name = request.deployment_options.deployment_name
        attributes.deployment_version.build_id = request.deployment_options.build_id
    event = run.event(
        E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, workflow_task_completed_event_attributes=attributes
    )
    state.last_started_id = task.started_id
    state.last_completed_id = event.event_id
    return event


def fail(
    tx: Transaction,
    run: Run,
    task: WorkflowTask,
    cause: int,
    failure: Failure | None,
    identity: str,
    base_run_id: str = "",
    new_run_id: str = "",
    reschedule: bool = True,
    binary_checksum: str = "",
    worker_version: Any = None,
) -> None:
    """The attempt failed. History says so of first and speculative attempts; later ones are silent."""
    state = run.state
    _unsend_updates(run)
    speculative = task.kind == WFT_SPECULATIVE
    if speculative:
        materialize(run, task)
    clear(run)
    if task.attempt == 1 or speculative:
        attributes = history.WorkflowTaskFailedEventAttributes(
            scheduled_event_id=task.scheduled_id,
            started_event_id=task.started_id,
            cause=cause,  # type: ignore[arg-type]
            identity=identity,
            base_run_id=base_run_id,
            new_run_id=new_run_id,
            binary_checksum=binary_checksum,
        )
        if failure is not None:
            attributes.failure.CopyFrom(failure)
        if worker_version is not None:
            attributes.worker_version.CopyFrom(worker_version)
        run.event(E.EVENT_TYPE_WORKFLOW_TASK_FAILED, workflow_task_failed_event_attributes=attributes)
    state.task_attempt = task.attempt + 1
    state.sticky_queue = ""
    state.task_last_cause = cause
    state.task_last_failure = failure.SerializeToString() if failure is not None else b""
    if not reschedule:
        run.flush_buffered()
    elif cause != failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW:
        schedule(tx, run)


def fail_over(tx: Transaction, run: Run) -> None:
    """The run has come to another region while a worker held its task: fail that, and schedule another.

    What waited behind the task is flushed at the new version, so that versions never fall in a history. The
    next attempt is a first one: a transient task would continue failures that this region has not seen.
    """
    task = run.state.task
    assert task is not None
    assert task.started_id, "a task that nobody has started fails nobody over"
    cause = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_FAILOVER_CLOSE_COMMAND
    fail(tx, run, task, cause, None, HISTORY_SERVICE, reschedule=False)
    run.state.task_attempt = 1
    schedule(tx, run)


def _unsend_updates(run: Run) -> None:
    """The task ends without an answer: the next one carries its updates again."""
    if run.updates is not None:
        run.updates.unsend()


def time_out(tx: Transaction, run: Run) -> None:
    """The pending task ran out of time: a started one counts as failed, a sticky one goes back to normal."""
    state = run.state
    task = state.task
    assert task is not None
    _unsend_updates(run)
    if task.started_id == 0:
        if task.kind == WFT_SPECULATIVE:
            _write_scheduled(run, task, task.scheduled_time)
        clear(run)
        _write_timed_out(run, task, 0, SCHEDULE_TO_START)
        state.sticky_queue = ""
        schedule(tx, run)
        return
    if task.kind == WFT_SPECULATIVE:
        materialize(run, task)
    clear(run)
    if task.attempt == 1 or task.kind == WFT_SPECULATIVE:
        _write_timed_out(run, task, task.started_id, START_TO_CLOSE)
    state.task_attempt = task.attempt + 1
    state.sticky_queue = ""
    state.task_last_cause = 0
    schedule(tx, run)


def _write_timed_out(run: Run, task: WorkflowTask, started_id: int, timeout_type: int) -> None:
    run.event(
        E.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
        workflow_task_timed_out_event_attributes=history.WorkflowTaskTimedOutEventAttributes(
            scheduled_event_id=task.scheduled_id,
            started_event_id=started_id,
            timeout_type=timeout_type,  # type: ignore[arg-type]
        ),
    )


def ensure(tx: Transaction, run: Run) -> None:
    """Something happened that the workflow must see: schedule a task unless one is pending or not yet due."""
    state = run.state
    if not run.running or state.first_backoff_until:
        return
    task = state.task
    if task is None:
        schedule(tx, run)
    elif task.started_id == 0 and task.kind == WFT_SPECULATIVE and run.events:
        _make_durable(tx, run)


def _make_durable(tx: Transaction, run: Run) -> None:
    """A speculative task that now also has events to deliver must survive the leader: it becomes normal."""
    clear(run)
    schedule(tx, run)
