"""What a worker is given: poll answers, made of stored bytes where there are any."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1.message_pb2 import RetryPolicy, WorkflowExecution, WorkflowType
from temporalio.api.history.v1.message_pb2 import History
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.tasks.tokens import (
    ACTIVITY_TASK,
    QUERY_TASK,
    WORKFLOW_TASK,
    HistoryToken,
    TaskToken,
    encode,
)
from history_store.engine import activity as activities
from history_store.engine import updates, workflow_task
from history_store.engine.durations import from_ns, timestamp_from_ns
from history_store.shard import runs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from temporalio.api.query.v1.message_pb2 import WorkflowQuery

    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run
    from history_store.engine.state import ActivityState

ANSWER_HISTORY_BYTES_MAX = 3 << 20  # the rest comes by pages; a default client takes 4 MiB a message
HISTORY_FIELD = b"\x42"  # PollWorkflowTaskQueueResponse.history = 8, length-delimited


def varint(n: int) -> bytes:
    """Protobuf's variable-length integer."""
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    out.append(n)
    return bytes(out)


def with_history(answer: wire.PollWorkflowTaskQueueResponse, history: bytes) -> bytes:
    """The answer's bytes with a history that stays bytes."""
    return answer.SerializeToString() + HISTORY_FIELD + varint(len(history)) + history


def workflow_task_answer(
    shard: ShardHost,
    run: Run,
    sticky: bool,
    queries: Mapping[str, WorkflowQuery] | None = None,
    backlog: int = 0,
) -> bytes:
    """The started workflow task of a run. `sticky`: the worker has the history up to its last task."""
    state = run.state
    task = state.task
    assert task is not None
    assert task.started_id
    answer = wire.PollWorkflowTaskQueueResponse(
        task_token=encode(
            TaskToken(
                WORKFLOW_TASK,
                state.namespace_id,
                state.workflow_id,
                state.run_id,
                task.scheduled_id,
                task.attempt,
                task.stamp,
            )
        ),
        workflow_execution=WorkflowExecution(workflow_id=state.workflow_id, run_id=state.run_id),
        workflow_type=WorkflowType(name=state.workflow_type),
        previous_started_event_id=state.last_started_id,
        started_event_id=task.started_id,
        attempt=task.attempt,
        backlog_count_hint=backlog,
        workflow_execution_task_queue=TaskQueue(name=state.task_queue, kind=workflow_task.NORMAL_KIND),
        messages=updates.messages(run),
    )
    timestamp_from_ns(task.scheduled_time, answer.scheduled_time)
    timestamp_from_ns(task.started_time, answer.started_time)
    if queries:
        for key, query in queries.items():
            answer.queries[key].CopyFrom(query)
    first = state.last_started_id + 1 if sticky else 1
    history, after = runs.history(shard.rows, run, first, ANSWER_HISTORY_BYTES_MAX)
    transient = workflow_task.transient_events(run)
    if after < state.next_event_id:
        answer.next_page_token = encode(
            HistoryToken(state.run_id, after, False, state.next_event_id, task.stamp if transient else 0)
        )
    elif transient:
        history += History(events=transient).SerializeToString()
    return with_history(answer, history)


def query_answer(shard: ShardHost, run: Run, query_id: str, query: WorkflowQuery, sticky: bool) -> bytes:
    """A query by itself, for a run that has no workflow task under way."""
    state = run.state
    answer = wire.PollWorkflowTaskQueueResponse(
        task_token=encode(
            TaskToken(QUERY_TASK, state.namespace_id, state.workflow_id, state.run_id, 0, 1, 0, query_id)
        ),
        workflow_execution=WorkflowExecution(workflow_id=state.workflow_id, run_id=state.run_id),
        workflow_type=WorkflowType(name=state.workflow_type),
        previous_started_event_id=state.last_started_id,
        attempt=1,
        query=query,
        workflow_execution_task_queue=TaskQueue(name=state.task_queue, kind=workflow_task.NORMAL_KIND),
    )
    if sticky:
        history, after = runs.history(shard.rows, run, state.last_started_id + 1, ANSWER_HISTORY_BYTES_MAX)
    else:
        history, after = runs.history(shard.rows, run, 1, ANSWER_HISTORY_BYTES_MAX)
    if after < state.next_event_id:
        answer.next_page_token = encode(HistoryToken(state.run_id, after, False, state.next_event_id))
    return with_history(answer, history)


def activity_answer(shard: ShardHost, run: Run, activity: ActivityState) -> bytes:
    """The started attempt of an activity."""
    return activity_message(shard, run, activity).SerializeToString()


def activity_message(
    shard: ShardHost, run: Run, activity: ActivityState
) -> wire.PollActivityTaskQueueResponse:
    """The same, as a message (eager activities ride in another answer)."""
    state = run.state
    scheduled = activities.scheduled_attributes(shard, run, activity)
    answer = wire.PollActivityTaskQueueResponse(
        task_token=encode(
            TaskToken(
                ACTIVITY_TASK,
                state.namespace_id,
                state.workflow_id,
                state.run_id,
                activity.scheduled_id,
                activity.attempt,
                activity.stamp,
                activity.activity_id,
            )
        ),
        workflow_namespace=shard.namespace_name_of(state.namespace_id),
        workflow_type=WorkflowType(name=state.workflow_type),
        workflow_execution=WorkflowExecution(workflow_id=state.workflow_id, run_id=state.run_id),
        activity_type=scheduled.activity_type,
        activity_id=activity.activity_id,
        attempt=activity.attempt,
    )
    if scheduled.HasField("header"):
        answer.header.CopyFrom(scheduled.header)
    if scheduled.HasField("input"):
        answer.input.CopyFrom(scheduled.input)
    if activity.heartbeat_details:
        answer.heartbeat_details.ParseFromString(activity.heartbeat_details)
    timestamp_from_ns(activity.first_scheduled_time, answer.scheduled_time)
    timestamp_from_ns(activity.scheduled_time, answer.current_attempt_scheduled_time)
    timestamp_from_ns(activity.started_time, answer.started_time)
    # Both are there even if zero, which means no limit: the TypeScript SDK fails an attempt without them.
    from_ns(activity.schedule_to_close, answer.schedule_to_close_timeout)
    from_ns(activity.start_to_close, answer.start_to_close_timeout)
    if activity.heartbeat_timeout:
        from_ns(activity.heartbeat_timeout, answer.heartbeat_timeout)
    if activity.retry_policy:
        answer.retry_policy.CopyFrom(RetryPolicy.FromString(activity.retry_policy))
    if activity.priority or state.priority:
        answer.priority.CopyFrom(activities.effective_priority(run, activity))
    return answer
