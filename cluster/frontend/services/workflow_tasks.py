"""Workflow tasks: polled, completed, failed; and queries, which travel with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.enums.v1 import failed_cause_pb2, query_pb2, workflow_pb2
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, answering, fail, rpc
from cluster.frontend.services.polls import wait_for_task
from cluster.hosting.tasks import answers
from cluster.hosting.tasks.dispatch import ACTIVITY, WORKFLOW, give_back
from cluster.hosting.tasks.queries import ANSWERED, Query
from cluster.hosting.tasks.starts import is_without_poll, named_without_poll
from cluster.hosting.tasks.tokens import QUERY_TASK, TaskToken
from history_store.engine import activity as activities
from history_store.engine import close, commands, workflow_task
from history_store.engine.command_rules import BadCommand, check_sequence
from history_store.engine.errors import Code, ServiceError, failed_precondition, invalid
from history_store.engine.inputs import not_running

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import ActivityState, WorkflowTask

EAGER_ACTIVITIES_MAX = 3
UNHANDLED = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
ATTEMPTS_REPORTED = 1  # later attempts that fail are left to time out: a broken worker is not hammered
REJECT_NOT_OPEN = query_pb2.QUERY_REJECT_CONDITION_NOT_OPEN
REJECT_NOT_CLEAN = query_pb2.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY


@rpc(wire.PollWorkflowTaskQueueRequest)
def poll(services: Services, call: Call, request: wire.PollWorkflowTaskQueueRequest) -> bytes | None:
    """PollWorkflowTaskQueue."""
    return wait_for_task(services, call, request, WORKFLOW)


def held_task(services: Services, token: TaskToken) -> tuple[ShardHost, Run, WorkflowTask]:
    """The run and the started task that the token names. NOT_FOUND if that is over."""
    shard, run = services.run(token.namespace_id, token.workflow_id, token.run_id)
    return shard, run, _held(run, token)


def _held(run: Run, token: TaskToken) -> WorkflowTask:
    if not run.running:
        raise not_running()
    task = run.state.task
    if task is None or not task.started_id or task.stamp != token.stamp:
        raise activities.not_found("Workflow task not found.")
    return task


# ---- completed


@rpc(wire.RespondWorkflowTaskCompletedRequest)
def complete(services: Services, call: Call, request: wire.RespondWorkflowTaskCompletedRequest) -> None:
    """RespondWorkflowTaskCompleted."""
    token = services.task_token(request)
    shard, run = services.run(token.namespace_id, token.workflow_id, token.run_id)
    if run.running and run.state.task is None and _owed(run, token, request):
        _answer_again(call, shard, run, token, request)
        return
    _held(run, token)
    check_sequence(request.commands)
    services.node.queries.answered(run, request.query_results)  # they count whatever becomes of the commands
    tx = shard.begin(token.namespace_id)
    try:
        tx.open(run)
        done = commands.complete_task(tx, run, request, EAGER_ACTIVITIES_MAX)
    except BadCommand as bad:
        shard.abort(tx)
        _fail_bad_command(services, call, shard, token, bad, request)
        return
    except BaseException:
        shard.abort(tx)
        raise
    Completed(services, call, shard, run, request).finish(tx, done)


def _owed(
    run: Run, token: TaskToken, request: wire.RespondWorkflowTaskCompletedRequest
) -> list[ActivityState]:
    """Activities that this answer, when it was given before, scheduled and started for who gives it."""
    if run.state.task_stamp != token.stamp:
        return []  # what the answer was taken for is not the latest task
    ids = (command.schedule_activity_task_command_attributes.activity_id for command in request.commands)
    found = (run.activities.get(run.activity_ids.get(activity_id, 0)) for activity_id in ids)
    return [one for one in found if one is not None and one.started_id and is_without_poll(one.request_id)]


def _answer_again(
    call: Call,
    shard: ShardHost,
    run: Run,
    token: TaskToken,
    request: wire.RespondWorkflowTaskCompletedRequest,
) -> None:
    """The worker was never told that its answer was taken: nobody repeats one otherwise. So the activities
    that rode on that come again; they would wait for their time-outs."""
    state = run.state

    def body() -> bytes:
        # Only now: if the first call had gone by the time of its commit, they have just been given back.
        now = shard.find(state.namespace_id, state.workflow_id, state.run_id)
        owed = _owed(now, token, request) if now is not None and now.running else []
        tasks = [answers.activity_message(shard, now, activity) for activity in owed if now is not None]
        return wire.RespondWorkflowTaskCompletedResponse(activity_tasks=tasks).SerializeToString()

    shard.when_seen(run, answering(call, body))


class Completed:
    """A completion on its way to the log, and its answer."""

    def __init__(
        self,
        services: Services,
        call: Call,
        shard: ShardHost,
        run: Run,
        request: wire.RespondWorkflowTaskCompletedRequest,
    ) -> None:
        self.services = services
        self.call = call
        self.shard = shard
        self.run = run
        self.request = request
        self.body = b""
        self.stamp = 0
        self.eager: list[tuple[int, int]] = []  # stamp and scheduled event of each

    def finish(self, tx: Transaction, done: commands.Completion) -> None:
        """Start what goes back with the answer, propose, and answer at the commit."""
        services, run, request = self.services, self.run, self.request
        response = wire.RespondWorkflowTaskCompletedResponse(reset_history_event_id=done.reset_event_id)
        try:
            self._start(tx, done, response)
        except BaseException:
            self.shard.abort(tx)
            raise
        services.node.holders.done(run.state.run_id)
        self.body = response.SerializeToString()
        written = run.events or run.dirty or run.state.task is not None
        if done.dropped and not done.new_task and not written:
            self._forget()
        else:
            self.shard.commit(tx, self._committed)
        if done.new_task and run.running:  # its start may have been the event too many that ends a run
            task = answers.workflow_task_answer(
                self.shard, run, request.HasField("sticky_attributes"), services.node.queries.take(run)
            )
            self.body += b"\x0a" + answers.varint(len(task)) + task
        services.node.queries.settle(run)

    def _start(
        self, tx: Transaction, done: commands.Completion, response: wire.RespondWorkflowTaskCompletedResponse
    ) -> None:
        """What goes back with the answer is this worker's at once."""
        run, request = self.run, self.request
        self.eager = [(activity.stamp, activity.scheduled_id) for activity in done.eager]
        for activity in done.eager:
            activities.start(tx, run, activity, named_without_poll(tx.env.new_id()), request.identity)
            response.activity_tasks.append(answers.activity_message(self.shard, run, activity))
        if done.new_task:
            workflow_task.start(tx, run, tx.env.new_id(), request.identity)
            assert run.state.task is not None
            self.stamp = run.state.task.stamp

    def _forget(self) -> None:
        """A speculative task whose updates were all rejected: nothing to write, only callers to tell."""
        run = self.run
        run.committed()
        if run.updates is not None and run.updates.changed:
            registry, changed = run.updates, run.updates.take_changed()
            self.shard.group.when_committed(
                lambda lost: None if lost else registry.settle(changed), patient=True
            )
        self.shard.group.when_committed(self._committed)

    def _committed(self, error: ServiceError | None) -> None:
        if error is None and self.stamp:
            self.services.node.holders.deliver(self.call, self.shard, self.run, self.stamp)
        if error is None and self.eager and self.call.done:
            self._give_back()
        answering(self.call, self.body)(error)

    def _give_back(self) -> None:
        """Nobody listens any more to whom the activities would go."""
        state = self.run.state
        owner = (self.shard, state.namespace_id, state.workflow_id, state.run_id)
        for stamp, scheduled_id in self.eager:
            give_back(*owner, ACTIVITY, stamp, scheduled_id)


def _fail_bad_command(
    services: Services,
    call: Call,
    shard: ShardHost,
    token: TaskToken,
    bad: BadCommand,
    request: wire.RespondWorkflowTaskCompletedRequest,
) -> None:
    """The commands do not fit: fail the task instead, and tell the worker why."""
    run = shard.find(token.namespace_id, token.workflow_id, token.run_id)
    assert run is not None, "the run was there a moment ago"
    task = run.state.task
    unhandled = bad.cause == UNHANDLED
    refusal = invalid(bad.text)
    if task is None or (task.attempt > ATTEMPTS_REPORTED and not unhandled and not bad.terminate):
        shard.group.when_committed(lambda error: fail(call, error or refusal))
        return
    tx = shard.begin(token.namespace_id)
    tx.open(run)
    failure = Failure(message=bad.text, source="Server")
    failure.server_failure_info.non_retryable = True
    workflow_task.fail(
        tx,
        run,
        task,
        bad.cause,
        failure if not unhandled else None,
        request.identity,
        reschedule=not bad.terminate,
        binary_checksum=request.binary_checksum,
    )
    if unhandled:
        # The worker did nothing wrong: it had not seen everything. Its next attempt is a first one.
        run.state.task_attempt = 1
    if bad.terminate:
        close.terminate(tx, run, bad.text, None, "history-service")
    services.node.holders.done(run.state.run_id)
    shard.commit(tx, lambda error: fail(call, error or refusal))
    services.node.queries.settle(run)


# ---- failed


@rpc(wire.RespondWorkflowTaskFailedRequest)
def failed(services: Services, call: Call, request: wire.RespondWorkflowTaskFailedRequest) -> None:
    """RespondWorkflowTaskFailed."""
    token = services.task_token(request)
    shard, run, task = held_task(services, token)

    def change(tx: Transaction) -> bytes:
        tx.open(run)
        workflow_task.fail(
            tx,
            run,
            task,
            request.cause,
            request.failure if request.HasField("failure") else None,
            request.identity,
            binary_checksum=request.binary_checksum,
            worker_version=request.worker_version if request.HasField("worker_version") else None,
        )
        return b""

    services.node.holders.done(run.state.run_id)
    services.transact(call, shard, run.state.namespace_id, change)


# ---- queries


@rpc(wire.QueryWorkflowRequest)
def query_workflow(services: Services, call: Call, request: wire.QueryWorkflowRequest) -> bytes | None:
    """QueryWorkflow."""
    namespace = services.namespace(request.namespace)
    shard, run = services.run(namespace.id, request.execution.workflow_id, request.execution.run_id)
    status = run.state.status
    condition = request.query_reject_condition
    rejected = (condition == REJECT_NOT_OPEN and not run.running) or (
        condition == REJECT_NOT_CLEAN
        and not run.running
        and status != workflow_pb2.WORKFLOW_EXECUTION_STATUS_COMPLETED
    )
    if rejected:
        response = wire.QueryWorkflowResponse()
        response.query_rejected.status = status  # type: ignore[assignment]
        return response.SerializeToString()
    if run.state.last_started_id == 0:
        if not run.running:
            raise failed_precondition(
                "Workflow was closed before its first workflow task completed: cannot query."
            )
        if run.state.first_backoff_until:
            raise failed_precondition("Workflow has not started yet: its first workflow task is delayed.")
    if run.running and run.state.task_attempt > 3 and run.state.task is not None:
        raise failed_precondition("Cannot query workflow due to Workflow Task in failed state.")
    services.node.queries.ask(Query(services.node, call, shard, run, request.query), run)
    return None


@rpc(wire.RespondQueryTaskCompletedRequest)
def query_completed(services: Services, _call: Call, request: wire.RespondQueryTaskCompletedRequest) -> bytes:
    """RespondQueryTaskCompleted."""
    token = services.task_token(request)
    if token.kind != QUERY_TASK:
        raise invalid("Error deserializing task token.")
    services.node.shard_of(token.namespace_id, token.workflow_id)  # who leads it has the question
    query: Any = services.node.queries.open.get(token.ref)
    if query is None:
        raise activities.not_found("query not found, or already answered")
    if request.completed_type == ANSWERED:
        query.succeed(request.query_result if request.HasField("query_result") else None)
    else:
        query.fail(Code.INVALID_ARGUMENT, request.error_message, request.failure)
    return b""
