"""Runs from outside: start, signal, signal with start, cancel, terminate, delete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1.message_pb2 import Link
from temporalio.api.enums.v1 import event_type_pb2, workflow_pb2
from temporalio.api.errordetails.v1.message_pb2 import WorkflowExecutionAlreadyStartedFailure
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, answering, execution_not_found, rpc
from cluster.frontend.validate import fields
from cluster.hosting.groups.group import nobody
from cluster.hosting.shards.meta import REGISTERED
from cluster.hosting.tasks import answers
from history_store.engine import close, inputs, options, start, workflow_task
from history_store.engine import state as st
from history_store.engine.errors import Code, ServiceError, failed_precondition
from history_store.rare import reached

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from cluster.hosting.shards.meta import Namespace
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import CurrentRun

W = workflow_pb2
STARTED = event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
HISTORY_SERVICE = "history-service"
EAGER_TASK_FIELD = b"\x12"  # StartWorkflowExecutionResponse.eager_workflow_task = 2, length-delimited


# ---- start


@rpc(wire.StartWorkflowExecutionRequest)
def start_workflow(services: Services, call: Call, request: wire.StartWorkflowExecutionRequest) -> None:
    """StartWorkflowExecution."""
    namespace = services.namespace(request.namespace)
    shard = services.node.shard_of(namespace.id, request.workflow_id)
    start_or_join(services, call, namespace, shard, request)


def require_registered(namespace: Namespace) -> None:
    """A deprecated namespace finishes what runs in it and takes nothing new."""
    if namespace.state != REGISTERED:
        raise failed_precondition(
            f"Namespace has invalid state: Deprecated. Must be Registered. Namespace: {namespace.name}"
        )


def start_or_join(
    services: Services,
    call: Call,
    namespace: Namespace,
    shard: ShardHost,
    request: wire.StartWorkflowExecutionRequest,
) -> None:
    """Start a run, or answer with the one that is there, as the policies say."""
    request_id = request.request_id or services.node.new_id()
    now = shard.current(namespace.id, request.workflow_id)
    if now is not None and _joined(services, call, namespace, shard, request, request_id, now):
        return
    require_registered(namespace)
    services.node.validate_search_attributes(namespace.id, request.search_attributes)
    run_id = services.node.new_id()
    tx = shard.begin(namespace.id)
    try:
        if now is not None:
            make_room(shard, tx, namespace, request, now, run_id)
        run = create(tx, namespace, request, request_id, run_id, now)
        eager = request.request_eager_execution and run.state.task is not None
        if eager:
            workflow_task.start(tx, run, request_id, request.identity)
    except BaseException:
        shard.abort(tx)
        raise
    response = wire.StartWorkflowExecutionResponse(
        run_id=run.state.run_id,
        started=True,
        status=st.RUNNING,  # type: ignore[arg-type]
        link=started_link(namespace, run.state),
        first_execution_run_id=run.state.first_run_id,
    )
    body = response.SerializeToString()
    if not eager:
        shard.commit(tx, answering(call, body))
        return
    shard.commit(tx, nobody)
    if run.running:
        _answer_with_task(services, call, shard, run, body, first=True)
    else:  # two events were too many for this node's limit
        shard.group.when_committed(answering(call, body))


def _answer_with_task(
    services: Services, call: Call, shard: ShardHost, run: Run, body: bytes, *, first: bool
) -> None:
    """Answer at the commit with `body` and the started task of the run; with `body` alone if it is over then.

    `first`: nobody else has the task, so it is given back if the caller is gone. A repeated answer that
    nobody waits for leaves the task to whoever got the first.
    """
    state, task = run.state, run.state.task
    assert task is not None
    stamp = task.stamp
    # The task is told as it was started: updates that came since are not in the first answer, and the worker
    # that has it must not be taken to refuse them because the second answer carried them.
    updates, run.updates = run.updates, None
    try:
        message = answers.workflow_task_answer(shard, run, False)
    finally:
        run.updates = updates
    whole = body + EAGER_TASK_FIELD + answers.varint(len(message)) + message

    def deliver(error: ServiceError | None) -> None:
        # Not `run`: a transaction that failed in between has put another object in its place.
        now = shard.find(state.namespace_id, state.workflow_id, state.run_id) if error is None else None
        if now is None or now.state.task is None or now.state.task.stamp != stamp:
            answering(call, body)(error)
            return
        if first or not call.done:
            services.node.watch(call.connection)
            services.node.holders.deliver(call, shard, now, stamp)
        answering(call, whole)(None)

    shard.group.when_committed(deliver)


def create(
    tx: Transaction,
    namespace: Namespace,
    request: wire.StartWorkflowExecutionRequest,
    request_id: str,
    run_id: str,
    before: CurrentRun | None,
    schedule: bool = True,
) -> Run:
    """The new run of a start request. `before`: what the workflow id meant until now."""
    attributes = start.attributes_of_request(tx.env, request, run_id, tx.now)
    if (
        request.request_eager_execution
        and not request.cron_schedule
        and not request.HasField("workflow_start_delay")
    ):
        attributes.eager_execution_accepted = True
    run = start.create(
        tx,
        namespace.id,
        run_id,
        attributes,
        request_id,
        request.links,
        request.user_metadata if request.HasField("user_metadata") else None,
        version=tx.version,
        bypass_matching=attributes.eager_execution_accepted,
        schedule=schedule,
    )
    if before is not None:
        run.state.earlier_starts = before.passed_on()
    return run


def started_link(namespace: Namespace, state: st.RunState | CurrentRunOf) -> Link:
    """Where the started event is."""
    link = Link()
    event = link.workflow_event
    event.namespace = namespace.name
    event.workflow_id = state.workflow_id
    event.run_id = state.run_id
    event.event_ref.event_id = 1
    event.event_ref.event_type = STARTED
    return link


class CurrentRunOf:
    """A workflow id with its run id (what a link needs)."""

    def __init__(self, workflow_id: str, run_id: str) -> None:
        self.workflow_id = workflow_id
        self.run_id = run_id


def _joined(
    services: Services,
    call: Call,
    namespace: Namespace,
    shard: ShardHost,
    request: wire.StartWorkflowExecutionRequest,
    request_id: str,
    now: CurrentRun,
) -> bool:
    """Whether the request is answered by the run that is there: the same request again, or USE_EXISTING."""
    link = started_link(namespace, CurrentRunOf(request.workflow_id, now.run_id))
    if now.start_request_id == request_id:
        reached("start known again")
        response = wire.StartWorkflowExecutionResponse(
            run_id=now.run_id,
            started=True,
            status=now.status,  # type: ignore[arg-type]
            link=link,
            first_execution_run_id=now.first_run_id,
        )
        body = response.SerializeToString()
        run = _eager_again(namespace, shard, request, request_id, now)
        if run is not None:
            _answer_with_task(services, call, shard, run, body, first=False)
        else:
            shard.group.when_committed(answering(call, body))
        return True
    if earlier := now.started_by(request_id):
        shard.group.when_committed(answering(call, _begun_before(namespace, shard, request, earlier)))
        return True
    if now.status != st.RUNNING:
        return False
    if request.workflow_id_conflict_policy != W.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING:
        return False
    run = shard.find(namespace.id, request.workflow_id, now.run_id)
    assert run is not None, "the current run is there"
    attached = request_id in run.state.request_ids
    response = wire.StartWorkflowExecutionResponse(
        run_id=now.run_id,
        started=False,
        status=st.RUNNING,  # type: ignore[arg-type]
        link=link,
        first_execution_run_id=now.first_run_id,
    )
    wanted = request.on_conflict_options if request.HasField("on_conflict_options") else None
    if wanted is None or not wanted.attach_request_id or attached:
        shard.group.when_committed(answering(call, response.SerializeToString()))
        return True

    def change(tx: Transaction) -> bytes:
        tx.open(run)
        options.attach(
            tx,
            run,
            request.identity,
            request_id,
            list(request.completion_callbacks) if wanted.attach_completion_callbacks else [],
            list(request.links) if wanted.attach_links else [],
        )
        return response.SerializeToString()

    services.transact(call, shard, namespace.id, change)
    return True


def _begun_before(
    namespace: Namespace, shard: ShardHost, request: wire.StartWorkflowExecutionRequest, run_id: str
) -> bytes:
    """The answer to a start whose run is not the current one any more, and may be deleted."""
    run = shard.find(namespace.id, request.workflow_id, run_id)
    return wire.StartWorkflowExecutionResponse(
        run_id=run_id,
        started=True,
        status=run.state.status if run is not None else 0,  # type: ignore[arg-type]
        link=started_link(namespace, CurrentRunOf(request.workflow_id, run_id)),
        first_execution_run_id=run.state.first_run_id if run is not None else run_id,
    ).SerializeToString()


def _eager_again(
    namespace: Namespace,
    shard: ShardHost,
    request: wire.StartWorkflowExecutionRequest,
    request_id: str,
    now: CurrentRun,
) -> Run | None:
    """The run whose first workflow task this very request started and nobody has ended, if it asks for it."""
    if not request.request_eager_execution or now.status != st.RUNNING:
        return None
    run = shard.find(namespace.id, request.workflow_id, now.run_id)
    assert run is not None, "the current run is there"
    task = run.state.task
    # Polls have ids of their own, so a task with this one is the first of its run, in its first attempt.
    return run if task is not None and task.started_id and task.request_id == request_id else None


def make_room(
    shard: ShardHost, tx: Transaction, namespace: Namespace, request: Any, now: CurrentRun, run_id: str
) -> None:
    """Let the run `run_id` take the workflow id (terminating the open one if asked), or ALREADY_EXISTS."""
    reuse = request.workflow_id_reuse_policy
    if now.status == st.RUNNING:
        conflict = request.workflow_id_conflict_policy
        if reuse == W.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
            conflict = W.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
        if conflict != W.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING:
            raise already_started(now, "Workflow execution is already running.")
        run = shard.find(namespace.id, request.workflow_id, now.run_id)
        assert run is not None, "the current run is there"
        close.give_way(tx, tx.open(run), run_id)
        return
    if reuse == W.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE:
        raise already_started(
            now,
            f"Workflow execution already finished. WorkflowId: {request.workflow_id}, RunId: {now.run_id}. "
            "Workflow Id reuse policy: reject duplicate workflow Id.",
        )
    if reuse == W.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY and now.status == st.COMPLETED:
        raise already_started(
            now,
            f"Workflow execution already finished successfully. WorkflowId: {request.workflow_id}, "
            f"RunId: {now.run_id}. "
            "Workflow Id reuse policy: allow duplicate workflow Id if last run failed.",
        )


def already_started(now: CurrentRun, message: str) -> ServiceError:
    """ALREADY_EXISTS in the form SDKs look for."""
    return ServiceError(
        Code.ALREADY_EXISTS,
        message,
        WorkflowExecutionAlreadyStartedFailure(start_request_id=now.start_request_id, run_id=now.run_id),
    )


# ---- signals


@rpc(wire.SignalWorkflowExecutionRequest)
def signal_workflow(services: Services, call: Call, request: wire.SignalWorkflowExecutionRequest) -> None:
    """SignalWorkflowExecution."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    shard, run = services.open_run(namespace.id, execution.workflow_id, execution.run_id)

    def change(tx: Transaction) -> bytes:
        signal_run(tx, run, request)
        return wire.SignalWorkflowExecutionResponse(
            link=_signal_link(namespace, run, request.request_id)
        ).SerializeToString()

    services.transact(call, shard, namespace.id, change)


def _signal_link(namespace: Namespace, run: Run, request_id: str) -> Link:
    link = Link()
    event = link.workflow_event
    event.namespace = namespace.name
    event.workflow_id = run.state.workflow_id
    event.run_id = run.state.run_id
    event.request_id_ref.request_id = request_id
    event.request_id_ref.event_type = event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    return link


def signal_run(tx: Transaction, run: Run, request: Any) -> None:
    """Record the request's signal."""
    field = "signal_input" if hasattr(request, "signal_input") else "input"
    if request.request_id and request.request_id in run.signal_ids:
        reached("signal known again")
        return
    inputs.signal(
        tx,
        tx.open(run),
        request.signal_name,
        getattr(request, field) if request.HasField(field) else None,
        request.header if request.HasField("header") else None,
        request.identity,
        request.request_id,
        request.links,
    )


@rpc(wire.SignalWithStartWorkflowExecutionRequest)
def signal_with_start(
    services: Services, call: Call, request: wire.SignalWithStartWorkflowExecutionRequest
) -> None:
    """SignalWithStartWorkflowExecution: the signal goes to the open run, or to the one this starts."""
    namespace = services.namespace(request.namespace)
    shard = services.node.shard_of(namespace.id, request.workflow_id)
    now = shard.current(namespace.id, request.workflow_id)
    if not request.request_id:
        request.request_id = services.node.new_id()
    terminate = (
        request.workflow_id_conflict_policy == W.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
        or request.workflow_id_reuse_policy == W.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
    )
    same = now is not None and now.start_request_id == request.request_id
    earlier = now.started_by(request.request_id) if now is not None and not same else ""
    if earlier and (then := shard.find(namespace.id, request.workflow_id, earlier)) is not None:
        begun = _signaled(namespace, then, request.request_id, True)  # with the signal, in one transaction
        shard.group.when_committed(answering(call, begun))
        return
    if now is not None and now.status == st.RUNNING and (not terminate or same):
        run = shard.find(namespace.id, request.workflow_id, now.run_id)
        assert run is not None, "the current run is there"
        found = run

        def signal(tx: Transaction) -> bytes:
            if not same:
                signal_run(tx, found, request)
            return _signaled(namespace, found, request.request_id, same)

        services.transact(call, shard, namespace.id, signal)
        return
    require_registered(namespace)
    services.node.validate_search_attributes(namespace.id, request.search_attributes)
    run_id = services.node.new_id()

    def begin(tx: Transaction) -> bytes:
        if now is not None:
            make_room(shard, tx, namespace, request, now, run_id)
        run = create(tx, namespace, _start_of(request), request.request_id, run_id, now, schedule=False)
        inputs.signal(
            tx,
            run,
            request.signal_name,
            request.signal_input if request.HasField("signal_input") else None,
            request.header if request.HasField("header") else None,
            request.identity,
            request.request_id,
            request.links,
            skip_task=True,
        )
        workflow_task.ensure(tx, run)
        return _signaled(namespace, run, request.request_id, True)

    services.transact(call, shard, namespace.id, begin)


def _signaled(namespace: Namespace, run: Run, request_id: str, started: bool) -> bytes:
    return wire.SignalWithStartWorkflowExecutionResponse(
        run_id=run.state.run_id,
        started=started,
        signal_link=_signal_link(namespace, run, request_id),
        first_execution_run_id=run.state.first_run_id,
    ).SerializeToString()


def _start_of(request: wire.SignalWithStartWorkflowExecutionRequest) -> wire.StartWorkflowExecutionRequest:
    """The start half of the request."""
    half = wire.StartWorkflowExecutionRequest()
    for field, value in request.ListFields():
        if field.name in half.DESCRIPTOR.fields_by_name:
            if field.is_repeated:
                getattr(half, field.name).extend(value)
            elif field.message_type is not None:
                getattr(half, field.name).CopyFrom(value)
            else:
                setattr(half, field.name, value)
    return half


# ---- ends


@rpc(wire.RequestCancelWorkflowExecutionRequest)
def request_cancel(
    services: Services, call: Call, request: wire.RequestCancelWorkflowExecutionRequest
) -> None:
    """RequestCancelWorkflowExecution. A run that is closed already needs no cancelling: that is a success."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    shard, run = services.run(namespace.id, execution.workflow_id, execution.run_id)
    if request.first_execution_run_id and run.state.first_run_id != request.first_execution_run_id:
        raise execution_not_found()

    def change(tx: Transaction) -> bytes:
        if run.running and not run.state.cancel_requested:
            inputs.request_cancel(
                tx, tx.open(run), request.identity, request.request_id, request.reason, request.links
            )
        return b""

    services.transact(call, shard, namespace.id, change)


@rpc(wire.TerminateWorkflowExecutionRequest)
def terminate(services: Services, call: Call, request: wire.TerminateWorkflowExecutionRequest) -> None:
    """TerminateWorkflowExecution."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    shard, run = services.open_run(
        namespace.id, execution.workflow_id, execution.run_id, request.first_execution_run_id
    )

    def change(tx: Transaction) -> bytes:
        details = request.details if request.HasField("details") else None
        close.terminate(tx, tx.open(run), request.reason, details, request.identity, request.links)
        return b""

    services.transact(call, shard, namespace.id, change)
    services.node.queries.settle(run)


@rpc(wire.DeleteWorkflowExecutionRequest)
def delete(services: Services, call: Call, request: wire.DeleteWorkflowExecutionRequest) -> None:
    """DeleteWorkflowExecution: an open run is terminated first, in the same transaction."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    if execution.run_id and len(execution.run_id) != 36:
        raise fields.bad_run_id(execution.run_id)
    shard, run = services.run(namespace.id, execution.workflow_id, execution.run_id)

    def change(tx: Transaction) -> bytes:
        tx.open(run)
        if run.running:
            close.terminate(tx, run, "Delete workflow execution", None, request.DESCRIPTOR.name)
        shard.delete_rows(tx, run)
        return b""

    services.transact(call, shard, namespace.id, change)
