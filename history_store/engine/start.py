"""A run begins: by a client, as a child, as the next of a chain (continue-as-new, retry, cron), by a reset.

All of them come down to one thing: the attributes of WorkflowExecutionStarted, from which the state follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import event_type_pb2, workflow_pb2
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine import cron, keys, workflow_task
from history_store.engine.durations import from_ns, timestamp_from_ns, to_ns
from history_store.engine.run import DUE_EXECUTION_TIMEOUT, DUE_FIRST_TASK, DUE_RUN_TIMEOUT, Run
from history_store.engine.state import RUNNING, RunState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from temporalio.api.common.v1.message_pb2 import Link
    from temporalio.api.sdk.v1.user_metadata_pb2 import UserMetadata
    from temporalio.api.workflowservice.v1.request_response_pb2 import StartWorkflowExecutionRequest

    from history_store.engine.environment import Environment
    from history_store.engine.run import Transaction

E = event_type_pb2
Started = history.WorkflowExecutionStartedEventAttributes


def attributes_of_request(
    env: Environment, request: StartWorkflowExecutionRequest, run_id: str, now: int
) -> Started:
    """What a client's request says in the started event's form, time-outs defaulted as Temporal does."""
    attributes = Started(
        workflow_type=request.workflow_type,
        task_queue=request.task_queue,
        identity=request.identity,
        cron_schedule=request.cron_schedule,
        workflow_id=request.workflow_id,
        attempt=1,
        original_execution_run_id=run_id,
        first_execution_run_id=run_id,
        completion_callbacks=request.completion_callbacks,
    )
    attributes.task_queue.kind = workflow_task.NORMAL_KIND
    for name in (
        "input",
        "memo",
        "search_attributes",
        "header",
        "last_completion_result",
        "continued_failure",
        "retry_policy",
        "priority",
        "versioning_override",
    ):
        if request.HasField(name):
            getattr(attributes, name).CopyFrom(getattr(request, name))
    set_timeouts(
        env,
        attributes,
        to_ns(request.workflow_execution_timeout),
        to_ns(request.workflow_run_timeout),
        to_ns(request.workflow_task_timeout),
    )
    backoff = to_ns(request.workflow_start_delay)
    if request.cron_schedule:
        backoff = cron.first_backoff(request.cron_schedule, now)
        attributes.initiator = workflow_pb2.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    if backoff:
        from_ns(backoff, attributes.first_workflow_task_backoff)
    execution_timeout = to_ns(attributes.workflow_execution_timeout)
    if execution_timeout:
        timestamp_from_ns(now + execution_timeout + backoff, attributes.workflow_execution_expiration_time)
    return attributes


def set_timeouts(env: Environment, attributes: Started, execution: int, run: int, task: int) -> None:
    """Write the three time-outs: a run lives no longer than its execution, a task no longer than its run."""
    if execution and (run == 0 or run > execution):
        run = execution
    task = min(task or env.limits.workflow_task_timeout_default, env.limits.workflow_task_timeout_max)
    if run:
        task = min(task, run)
    if execution:
        from_ns(execution, attributes.workflow_execution_timeout)
    if run:
        from_ns(run, attributes.workflow_run_timeout)
    from_ns(task, attributes.workflow_task_timeout)


def state_of(
    namespace_id: str, run_id: str, attributes: Started, now: int, request_id: str, version: int
) -> RunState:
    """The core row that a started event implies."""
    backoff = to_ns(attributes.first_workflow_task_backoff)
    run_timeout = to_ns(attributes.workflow_run_timeout)
    execution_expiration = to_ns(attributes.workflow_execution_expiration_time)
    run_expiration = now + backoff + run_timeout if run_timeout else 0
    if execution_expiration and (not run_expiration or run_expiration > execution_expiration):
        run_expiration = execution_expiration
    parent = attributes.parent_workflow_execution
    root = attributes.root_workflow_execution
    state = RunState(
        namespace_id=namespace_id,
        workflow_id=attributes.workflow_id,
        run_id=run_id,
        workflow_type=attributes.workflow_type.name,
        task_queue=attributes.task_queue.name,
        status=RUNNING,
        version=version,
        branch=0,
        first_run_id=attributes.first_execution_run_id or run_id,
        original_run_id=attributes.original_execution_run_id or run_id,
        start_request_id=request_id,
        start_time=now,
        execution_time=now + backoff,
        execution_timeout=to_ns(attributes.workflow_execution_timeout),
        run_timeout=run_timeout,
        task_timeout=to_ns(attributes.workflow_task_timeout),
        execution_expiration=execution_expiration,
        run_expiration=run_expiration,
        attempt=attributes.attempt,
        cron_schedule=attributes.cron_schedule,
        continued_from_run_id=attributes.continued_execution_run_id,
        parent_namespace=attributes.parent_workflow_namespace,
        parent_namespace_id=attributes.parent_workflow_namespace_id,
        parent_workflow_id=parent.workflow_id,
        parent_run_id=parent.run_id,
        parent_initiated_id=attributes.parent_initiated_event_id,
        root_workflow_id=root.workflow_id or attributes.workflow_id,
        root_run_id=root.run_id or run_id,
        original_start_time=now,
    )
    if attributes.HasField("retry_policy"):
        state.retry_policy = attributes.retry_policy.SerializeToString()
    if attributes.HasField("memo"):
        state.memo = attributes.memo.SerializeToString()
    if attributes.HasField("search_attributes"):
        state.search_attributes = attributes.search_attributes.SerializeToString()
    if attributes.HasField("priority"):
        state.priority = attributes.priority.SerializeToString()
    if attributes.HasField("versioning_override"):
        state.versioning_override = attributes.versioning_override.SerializeToString()
    state.completion_callbacks = tuple(c.SerializeToString() for c in attributes.completion_callbacks)
    if attributes.HasField("prev_auto_reset_points"):
        state.reset_points = attributes.prev_auto_reset_points.SerializeToString()
    return state


def create(
    tx: Transaction,
    namespace_id: str,
    run_id: str,
    attributes: Started,
    request_id: str,
    links: Iterable[Link] = (),
    user_metadata: UserMetadata | None = None,
    version: int = 0,
    bypass_matching: bool = False,
    schedule: bool = True,
) -> Run:
    """Make the run: WorkflowExecutionStarted, and its first workflow task unless that is to wait."""
    if not attributes.HasField("root_workflow_execution"):
        attributes.root_workflow_execution.workflow_id = attributes.workflow_id
        attributes.root_workflow_execution.run_id = run_id
    state = state_of(namespace_id, run_id, attributes, tx.now, request_id, version)
    run = tx.open(Run(state, keys.slot_bytes(keys.slot_of(namespace_id, attributes.workflow_id))))
    event = run.event(
        E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        workflow_execution_started_event_attributes=attributes,
        links=links,
    )
    if user_metadata is not None:
        event.user_metadata.CopyFrom(user_metadata)
        state.user_metadata = user_metadata.SerializeToString()
    state.request_ids[request_id] = (E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED, event.event_id)
    run.current_dirty = True
    run.visible = True
    arm(run)
    if schedule and not state.first_backoff_until:
        workflow_task.schedule(tx, run, bypass_matching=bypass_matching)
    return run


def arm(run: Run) -> None:
    """Set the deadlines that a start brings."""
    state = run.state
    run.wake_at(state.run_expiration, DUE_RUN_TIMEOUT)
    run.wake_at(state.execution_expiration, DUE_EXECUTION_TIMEOUT)
    if state.execution_time > state.start_time:
        state.first_backoff_until = state.execution_time
        run.wake_at(state.execution_time, DUE_FIRST_TASK)
