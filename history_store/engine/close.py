"""How a run ends: completed, failed, cancelled, terminated, timed out, continued as new; and what follows it.

A retry policy or a cron schedule makes a successor in the same transaction. Parents hear of an end by an
action after the commit, children by their parent-close policy. Completion callbacks go with the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import Payload, Payloads, RetryPolicy
from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2, workflow_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import cron, keys, retry, start, updates, workflow_task
from history_store.engine import state as st
from history_store.engine.durations import from_ns, timestamp_from_ns, to_ns
from history_store.engine.run import DUE_RETENTION
from history_store.engine.state import Action, passed_on

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message
    from temporalio.api.command.v1.message_pb2 import ContinueAsNewWorkflowExecutionCommandAttributes
    from temporalio.api.common.v1.message_pb2 import Link

    from history_store.engine.run import Run, Transaction

E = event_type_pb2
IN_PROGRESS = workflow_pb2.RETRY_STATE_IN_PROGRESS
BY_WORKFLOW = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_WORKFLOW
BY_RETRY = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_RETRY
BY_CRON = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
ABANDON = workflow_pb2.PARENT_CLOSE_POLICY_ABANDON
RESETTER = "history-resetter"  # the identity that terminates a run because another takes its place


# ---- ends


def complete(tx: Transaction, run: Run, result: Payloads | None, completed_id: int) -> None:
    """The workflow returned."""
    attributes = history.WorkflowExecutionCompletedEventAttributes(
        workflow_task_completed_event_id=completed_id
    )
    if result is not None:
        attributes.result.CopyFrom(result)
    successor = ""
    backoff = _cron_backoff(tx, run)
    if backoff is not None:
        successor = attributes.new_execution_run_id = tx.env.new_id()
    run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED, workflow_execution_completed_event_attributes=attributes
    )
    _closed(tx, run, st.COMPLETED, attributes, successor)
    if backoff is not None:
        _follow(tx, run, successor, BY_CRON, backoff, None, attributes.result if result is not None else None)


def fail(tx: Transaction, run: Run, failure: Failure, completed_id: int) -> None:
    """The workflow failed: retry it, wait for the next cron time, or close it for good."""
    attributes = history.WorkflowExecutionFailedEventAttributes(
        failure=failure, workflow_task_completed_event_id=completed_id
    )
    backoff, initiator, state = _next_attempt(tx, run, failure)
    attributes.retry_state = state  # type: ignore[assignment]
    successor = ""
    if backoff is not None:
        successor = attributes.new_execution_run_id = tx.env.new_id()
    run.event(E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED, workflow_execution_failed_event_attributes=attributes)
    _closed(tx, run, st.FAILED, attributes, successor)
    if backoff is not None:
        _follow(tx, run, successor, initiator, backoff, failure, None)


def time_out_run(tx: Transaction, run: Run) -> None:
    """The run (or the whole execution, which nothing follows) has run out of time."""
    _stop_task(tx, run)
    failure = Failure(message="workflow timeout", source="Server")
    failure.timeout_failure_info.timeout_type = workflow_pb2.TIMEOUT_TYPE_START_TO_CLOSE
    backoff, initiator, state = None, 0, int(workflow_pb2.RETRY_STATE_TIMEOUT)
    if not run.state.execution_expiration or run.state.execution_expiration > tx.now:
        backoff, initiator, state = _next_attempt(tx, run, failure)
    attributes = history.WorkflowExecutionTimedOutEventAttributes(retry_state=state)  # type: ignore[arg-type]
    successor = ""
    if backoff is not None:
        successor = attributes.new_execution_run_id = tx.env.new_id()
    run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT, workflow_execution_timed_out_event_attributes=attributes
    )
    _closed(tx, run, st.TIMED_OUT, attributes, successor)
    if backoff is not None:
        _follow(tx, run, successor, initiator, backoff, failure, None)


def cancel(tx: Transaction, run: Run, details: Payloads | None, completed_id: int) -> None:
    """The workflow ended by cancellation."""
    attributes = history.WorkflowExecutionCanceledEventAttributes(
        workflow_task_completed_event_id=completed_id
    )
    if details is not None:
        attributes.details.CopyFrom(details)
    run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED, workflow_execution_canceled_event_attributes=attributes
    )
    _closed(tx, run, st.CANCELED, attributes, "")


def terminate(
    tx: Transaction,
    run: Run,
    reason: str,
    details: Payloads | None,
    identity: str,
    links: Iterable[Link] = (),
) -> None:
    """Closed from outside, at once."""
    _stop_task(tx, run)
    attributes = history.WorkflowExecutionTerminatedEventAttributes(reason=reason, identity=identity)
    if details is not None:
        attributes.details.CopyFrom(details)
    run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        workflow_execution_terminated_event_attributes=attributes,
        links=links,
    )
    _closed(tx, run, st.TERMINATED, attributes, "")


def give_way(tx: Transaction, run: Run, successor: str) -> None:
    """The id is wanted for a new run: the open one is terminated with it, in Temporal's words."""
    why = Payload(
        metadata={"encoding": b"json/plain"}, data=f'"terminated by new runID: {successor}"'.encode()
    )
    details = Payloads(payloads=[why])
    terminate(tx, run, "TerminateIfRunning WorkflowIdReusePolicy", details, "history-service")
    run.current_dirty = False  # the new run's pointer is the one that counts


def continue_as_new(
    tx: Transaction, run: Run, command: ContinueAsNewWorkflowExecutionCommandAttributes, completed_id: int
) -> Run:
    """The workflow asks for a fresh history."""
    state = run.state
    successor = tx.env.new_id()
    backoff = to_ns(command.backoff_start_interval)
    attributes = history.WorkflowExecutionContinuedAsNewEventAttributes(
        new_execution_run_id=successor,
        workflow_type=command.workflow_type,
        task_queue=command.task_queue,
        workflow_task_completed_event_id=completed_id,
        initiator=command.initiator or BY_WORKFLOW,
    )
    if not attributes.workflow_type.name:
        attributes.workflow_type.name = state.workflow_type
    if not attributes.task_queue.name:
        attributes.task_queue.name = state.task_queue
    attributes.task_queue.kind = workflow_task.NORMAL_KIND
    for name in ("input", "failure", "last_completion_result", "header", "memo", "search_attributes"):
        if command.HasField(name):
            getattr(attributes, name).CopyFrom(getattr(command, name))
    run_timeout = to_ns(command.workflow_run_timeout) or state.run_timeout
    task_timeout = to_ns(command.workflow_task_timeout) or state.task_timeout
    if run_timeout:
        from_ns(run_timeout, attributes.workflow_run_timeout)
    from_ns(task_timeout, attributes.workflow_task_timeout)
    if backoff:
        from_ns(backoff, attributes.backoff_start_interval)
    run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
        workflow_execution_continued_as_new_event_attributes=attributes,
    )
    started = _inherit(run, successor, attributes.initiator)
    started.workflow_type.CopyFrom(attributes.workflow_type)
    started.task_queue.CopyFrom(attributes.task_queue)
    for name in ("input", "header", "last_completion_result"):
        if attributes.HasField(name):  # type: ignore[arg-type]
            getattr(started, name).CopyFrom(getattr(attributes, name))
    if attributes.HasField("failure"):
        started.continued_failure.CopyFrom(attributes.failure)
    # These are as the command says: SDKs put in it what is to be kept.
    for name in ("memo", "search_attributes", "retry_policy"):
        started.ClearField(name)  # type: ignore[arg-type]
        if command.HasField(name):  # type: ignore[arg-type]
            getattr(started, name).CopyFrom(getattr(command, name))
    if command.HasField("retry_policy"):
        retry.fill_defaults(started.retry_policy)
    started.cron_schedule = command.cron_schedule
    start.set_timeouts(tx.env, started, state.execution_timeout, run_timeout, task_timeout)
    if backoff:
        from_ns(backoff, started.first_workflow_task_backoff)
    _closed(tx, run, st.CONTINUED_AS_NEW, attributes, successor)
    return _create(tx, run, successor, started)


def enforce_history_limits(tx: Transaction, run: Run) -> None:
    """A history past its limit ends the run: nothing could replay it any more. Temporal's words."""
    state, limits = run.state, tx.env.limits
    if limits.history_events_max and state.next_event_id - 1 > limits.history_events_max:
        terminate(tx, run, "Workflow history count exceeds limit.", None, "history-service")
    elif limits.history_bytes_max and state.history_size_bytes > limits.history_bytes_max:
        terminate(tx, run, "Workflow history size exceeds limit.", None, "history-service")


# ---- what an end does


def _stop_task(tx: Transaction, run: Run) -> None:
    """A pending workflow task ends with the run; buffered events get their place before the closing one."""
    task = run.state.task
    if task is None:
        return
    if task.started_id:
        workflow_task.fail(
            tx,
            run,
            task,
            failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
            None,
            "history-service",
            reschedule=False,
        )
    else:
        workflow_task.clear(run)


def _closed(tx: Transaction, run: Run, status: int, attributes: Message, successor: str) -> None:
    state = run.state
    if state.task is not None:
        workflow_task.clear(run)
    run.buffered.clear()
    for index in range(run.buffered_rows):
        run.dirty[keys.ITEM_BUFFERED + keys.number(index)] = None
    run.buffered_rows = state.buffered_count = 0
    state.status = status
    state.close_time = tx.now
    state.completion_batch_id = run.batch_first
    state.successor_run_id = successor
    run.visible = run.current_dirty = run.closed_now = True
    updates.abort_all(run, continuing=bool(successor))
    by_reset = status == st.TERMINATED and getattr(attributes, "identity", "") == RESETTER
    _release_children(tx, run, keep=by_reset and bool(state.reset_run_id))
    for activity in list(run.activities.values()):
        run.drop_activity(activity)
    for timer in list(run.timers.values()):
        run.drop_timer(timer)
    for request in list(run.external.values()):
        run.drop_external(request)
    if state.parent_workflow_id and not successor and not by_reset:
        _tell_parent(tx, run, status, attributes)
    due = tx.now + tx.env.retention(state.namespace_id)
    run.deadlines.clear()
    run.wake_at(due, DUE_RETENTION, due)
    if state.wake:
        tx.rows.append((keys.wake(state.wake, run.raw), None))
        state.wake = 0


def _release_children(tx: Transaction, run: Run, keep: bool) -> None:
    """`keep`: the run that takes this one's place goes on with them."""
    state = run.state
    for child in list(run.children.values()):
        if child.parent_close_policy != ABANDON and not keep:
            tx.act(
                Action(
                    "close_child",
                    state.namespace_id,
                    state.workflow_id,
                    state.run_id,
                    child.initiated_id,
                    child.batch_id,
                    child.namespace_id,
                    child.workflow_id,
                    child.run_id,
                    child.parent_close_policy,
                    request_id=child.request_id,
                )
            )
        run.drop_child(child)


def _tell_parent(tx: Transaction, run: Run, status: int, attributes: Message) -> None:
    state = run.state
    tx.act(
        Action(
            "child_closed",
            state.namespace_id,
            state.workflow_id,
            state.run_id,
            state.parent_initiated_id,
            0,
            state.parent_namespace_id,
            state.parent_workflow_id,
            state.parent_run_id,
            status,
            attributes.SerializeToString(),
            state.first_run_id,
        )
    )


# ---- what follows


def _cron_backoff(tx: Transaction, run: Run) -> int | None:
    state = run.state
    if not state.cron_schedule:
        return None
    backoff = cron.next_backoff(state.cron_schedule, state.execution_time, tx.now)
    if backoff is None:
        return None
    if state.execution_expiration and tx.now + backoff > state.execution_expiration:
        return None
    return backoff


def _next_attempt(tx: Transaction, run: Run, failure: Failure) -> tuple[int | None, int, int]:
    """(backoff or None, initiator, RetryState) of what follows a failed run."""
    state = run.state
    policy = RetryPolicy.FromString(state.retry_policy) if state.retry_policy else None
    backoff, retry_state = retry.next_backoff(
        policy, state.attempt, tx.now, state.execution_expiration, failure
    )
    if backoff is not None:
        return backoff, BY_RETRY, IN_PROGRESS
    backoff = _cron_backoff(tx, run)
    if backoff is not None:
        return backoff, BY_CRON, retry_state
    return None, 0, retry_state


def _follow(
    tx: Transaction,
    run: Run,
    successor: str,
    initiator: int,
    backoff: int,
    failure: Failure | None,
    result: Payloads | None,
) -> None:
    """Make the next run of a retry or cron chain: as the one before, after `backoff`."""
    previous = tx.env.load_event(run, 1, 1).workflow_execution_started_event_attributes
    started = _inherit(run, successor, initiator)
    # As it was started: what the run changed in its memo or attributes ends with it.
    for name in ("input", "header", "memo", "search_attributes"):
        started.ClearField(name)
        if previous.HasField(name):
            getattr(started, name).CopyFrom(getattr(previous, name))
    if initiator == BY_CRON:
        del started.completion_callbacks[:]  # they hear of the run they were given with
    started.workflow_type.CopyFrom(previous.workflow_type)
    started.task_queue.CopyFrom(previous.task_queue)
    state = run.state
    start.set_timeouts(tx.env, started, state.execution_timeout, state.run_timeout, state.task_timeout)
    from_ns(backoff, started.first_workflow_task_backoff)
    if result is not None:
        started.last_completion_result.CopyFrom(result)
    elif previous.HasField("last_completion_result"):
        started.last_completion_result.CopyFrom(previous.last_completion_result)
    if failure is not None:
        started.continued_failure.CopyFrom(failure)
    started.attempt = state.attempt + 1 if initiator == BY_RETRY else 1
    _create(tx, run, successor, started)


def _inherit(run: Run, successor: str, initiator: int) -> start.Started:
    """The started attributes that every successor takes over."""
    s = run.state
    started = start.Started(
        workflow_id=s.workflow_id,
        parent_workflow_namespace=s.parent_namespace,
        parent_workflow_namespace_id=s.parent_namespace_id,
        parent_initiated_event_id=s.parent_initiated_id,
        continued_execution_run_id=s.run_id,
        initiator=initiator,  # type: ignore[arg-type]
        original_execution_run_id=successor,
        first_execution_run_id=s.first_run_id,
        attempt=1,
        cron_schedule=s.cron_schedule,
    )
    if s.parent_workflow_id:
        started.parent_workflow_execution.workflow_id = s.parent_workflow_id
        started.parent_workflow_execution.run_id = s.parent_run_id
    started.root_workflow_execution.workflow_id = s.root_workflow_id
    started.root_workflow_execution.run_id = s.root_run_id
    if s.execution_expiration:
        timestamp_from_ns(s.execution_expiration, started.workflow_execution_expiration_time)
    for raw, name in (
        (s.retry_policy, "retry_policy"),
        (s.memo, "memo"),
        (s.search_attributes, "search_attributes"),
        (s.priority, "priority"),
        (s.versioning_override, "versioning_override"),
        (s.reset_points, "prev_auto_reset_points"),
    ):
        if raw:
            getattr(started, name).ParseFromString(raw)
    for callback in s.completion_callbacks:
        started.completion_callbacks.add().ParseFromString(callback)
    return started


def _create(tx: Transaction, run: Run, successor: str, started: start.Started) -> Run:
    s = run.state
    # The closed run's pointer must not be written after the successor's: only the newest run is current.
    run.current_dirty = False
    follower = start.create(tx, s.namespace_id, successor, started, tx.env.new_id(), version=s.version)
    follower.state.original_start_time = s.original_start_time
    follower.state.earlier_starts = passed_on(s.start_request_id, s.run_id, s.earlier_starts)
    if s.execution_expiration:
        follower.state.execution_expiration = s.execution_expiration
    return follower
