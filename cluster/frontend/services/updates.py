"""Updates from outside: update, poll for one, and update with start (ExecuteMultiOperation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.errordetails.v1.message_pb2 import MultiOperationExecutionFailure
from temporalio.api.failure.v1.message_pb2 import MultiOperationExecutionAborted
from temporalio.api.update.v1.message_pb2 import Outcome
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services import workflows
from cluster.frontend.services.base import Services, execution_not_found, fail, rpc
from cluster.frontend.status import status_of
from cluster.hosting.groups.group import nobody
from history_store.engine import state as st
from history_store.engine import updates, workflow_task
from history_store.engine.errors import Code, ServiceError
from history_store.engine.inputs import not_running
from history_store.engine.pending import workflow_task_due

if TYPE_CHECKING:
    from collections.abc import Callable

    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from cluster.hosting.shards.meta import Namespace
    from history_store.engine.run import Run
    from history_store.engine.state import CurrentRun, UpdateState

WAIT_S = 20.0
MARGIN_S = 0.5
EXPIRE_RETRY_S = 1.0
RESTARTS_MAX = 10  # how often an update follows a chain of runs that continue as new under it


class Wait:
    """A caller who waits for a stage of an update."""

    def __init__(
        self,
        services: Services,
        call: Call,
        run: Run,
        update: updates.Update,
        stage: int,
        answer: Callable[[int, Outcome | None], None],
        refuse: Callable[[ServiceError], None],
    ) -> None:
        self.services = services
        self.call = call
        self.run = run
        self.update = update
        self.stage = stage
        self.answer = answer
        self.refuse = refuse
        self.timer: Any = None

    def look(self) -> None:
        """Answer if the stage is reached, else wait. Whatever fails here is this caller's matter alone."""
        try:
            self._look()
        except Exception as problem:  # noqa: BLE001 - the call hears of it, and the log
            self.stop()
            self.call.fail(*status_of(problem, self.call.method, self.call.connection.peer))

    def _look(self) -> None:
        update = self.update
        if self.call.done:
            self.stop()
        elif update.error is not None:
            self.stop()
            self.refuse(update.error)
        elif update.prior == updates.COMPLETED:
            self.stop()
            self.answer(updates.COMPLETED, update.outcome)
        elif update.prior >= self.stage and self.stage != updates.COMPLETED:
            self.stop()
            self.answer(update.prior, None)
        else:
            update.listeners.append(self.look)
            if self.timer is None:
                self.call.on_cancel = self.stop
                left = WAIT_S
                if self.call.deadline is not None:
                    left = min(left, max(0.05, self.call.deadline - self.services.loop.time() - MARGIN_S))
                self.timer = self.services.loop.call_later(left, self.expire)

    def expire(self) -> None:
        """Not yet: say how far it is, the caller asks again."""
        self.stop()
        self.answer(self.update.prior, None)

    def stop(self) -> None:
        """Stop the clock, and listen no more: an update may be under way for days of such waits."""
        if self.look in self.update.listeners:
            self.update.listeners.remove(self.look)
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def outcome_loader(shard: ShardHost, run: Run) -> Callable[[UpdateState], Outcome]:
    """Reads the outcome of an update that history knows as completed."""

    def load(known: UpdateState) -> Outcome:
        return updates.outcome_of(shard.load_event(run, known.batch_id, known.event_id))

    return load


def reference(run: Run, update_id: str) -> dict[str, Any]:
    """The update_ref fields."""
    return {
        "workflow_execution": WorkflowExecution(workflow_id=run.state.workflow_id, run_id=run.state.run_id),
        "update_id": update_id,
    }


@rpc(wire.UpdateWorkflowExecutionRequest)
def update_workflow(services: Services, call: Call, request: wire.UpdateWorkflowExecutionRequest) -> None:
    """UpdateWorkflowExecution."""
    namespace = services.namespace(request.namespace)

    def answer(run: Run, stage: int, outcome: Outcome | None) -> None:
        call.finish(response_of(run, request, stage, outcome).SerializeToString())

    submit(services, call, namespace, request, answer, lambda error: fail(call, error))


def response_of(
    run: Run, request: wire.UpdateWorkflowExecutionRequest, stage: int, outcome: Outcome | None
) -> wire.UpdateWorkflowExecutionResponse:
    """UpdateWorkflowExecutionResponse."""
    response = wire.UpdateWorkflowExecutionResponse(stage=stage)  # type: ignore[arg-type]
    response.update_ref.workflow_execution.workflow_id = run.state.workflow_id
    response.update_ref.workflow_execution.run_id = run.state.run_id
    response.update_ref.update_id = request.request.meta.update_id
    if outcome is not None:
        response.outcome.CopyFrom(outcome)
    return response


def submit(
    services: Services,
    call: Call,
    namespace: Namespace,
    request: wire.UpdateWorkflowExecutionRequest,
    answer: Callable[[Run, int, Outcome | None], None],
    refuse: Callable[[ServiceError], None],
    tries: int = 0,
) -> None:
    """Admit the update (or find it) and wait for its stage. Follows a run that continues as new."""
    execution = request.workflow_execution
    if not request.request.meta.update_id:
        request.request.meta.update_id = services.node.new_id()
    update_id = request.request.meta.update_id
    shard, run = services.run(namespace.id, execution.workflow_id, execution.run_id)
    if request.first_execution_run_id and run.state.first_run_id != request.first_execution_run_id:
        raise execution_not_found()
    update = updates.find(run, update_id, outcome_loader(shard, run))
    if update is None:
        if not run.running:
            raise not_running()
        tx = shard.begin(namespace.id)
        try:
            update = updates.admit(tx, tx.open(run), request.request)
        except BaseException:
            shard.abort(tx)
            raise
        speculate(services, shard, tx, run)

    def refused(error: ServiceError) -> None:
        if error.code == Code.ABORTED and not execution.run_id and tries < RESTARTS_MAX:
            try:
                submit(services, call, namespace, request, answer, refuse, tries + 1)
            except ServiceError as problem:
                refuse(problem)
        else:
            refuse(error)

    found = run
    wait = Wait(
        services,
        call,
        run,
        update,
        request.wait_policy.lifecycle_stage,
        lambda stage, outcome: answer(found, stage, outcome),
        refused,
    )
    shard.group.when_committed(lambda error: refuse(error) if error is not None else wait.look())


def speculate(services: Services, shard: ShardHost, tx: Any, run: Run) -> None:
    """Admission wrote nothing but perhaps scheduled a speculative task: offer that without a log entry."""
    if run.events or run.dirty or tx.rows:
        shard.commit(tx, nobody)
        return
    offers = run.offers
    due = workflow_task_due(run.state.task)
    run.committed()
    shard.cache.keep(run)
    for spec in offers:
        services.node.offered(shard, spec)
    if offers and due:
        stamp = offers[0].stamp
        delay = max(0.0, (due - shard.clock.now_ns()) / 1e9)
        services.loop.call_later(delay + 0.001, expire_speculative, shard, run, stamp)


def expire_speculative(shard: ShardHost, run: Run, stamp: int) -> None:
    """No worker took the speculative task in time: a normal one follows, which outlives this leader."""
    if shard.retired or not shard.serves(run.state.namespace_id):
        return  # the next leader knows nothing of the task, nor does another region
    found = shard.find(run.state.namespace_id, run.state.workflow_id, run.state.run_id)
    if found is None or not found.running:
        return
    task = found.state.task
    if task is None or task.stamp != stamp or task.started_id:
        return
    tx = shard.begin(found.state.namespace_id)
    tx.open(found)
    workflow_task.time_out(tx, found)
    try:
        shard.commit(tx, nobody)
    except ServiceError:  # a full disk: its updates still wait
        shard.loop.call_later(EXPIRE_RETRY_S, expire_speculative, shard, run, stamp)


@rpc(wire.PollWorkflowExecutionUpdateRequest)
def poll_update(services: Services, call: Call, request: wire.PollWorkflowExecutionUpdateRequest) -> None:
    """PollWorkflowExecutionUpdate."""
    namespace = services.namespace(request.namespace)
    execution = request.update_ref.workflow_execution
    update_id = request.update_ref.update_id
    shard, run = services.run(namespace.id, execution.workflow_id, execution.run_id)
    update = updates.find(run, update_id, outcome_loader(shard, run))
    if update is None:
        raise ServiceError(Code.NOT_FOUND, f'update "{update_id}" not found')

    def answer(stage: int, outcome: Outcome | None) -> None:
        response = wire.PollWorkflowExecutionUpdateResponse(stage=stage, update_ref=reference(run, update_id))  # type: ignore[arg-type]
        if outcome is not None:
            response.outcome.CopyFrom(outcome)
        call.finish(response.SerializeToString())

    wait = Wait(
        services,
        call,
        run,
        update,
        request.wait_policy.lifecycle_stage,
        answer,
        lambda error: fail(call, error),
    )
    shard.group.when_committed(lambda error: fail(call, error) if error is not None else wait.look())


# ---- update with start


@rpc(wire.ExecuteMultiOperationRequest)
def execute_multi_operation(
    services: Services, call: Call, request: wire.ExecuteMultiOperationRequest
) -> None:
    """ExecuteMultiOperation: one start, then one update of the same workflow."""
    MultiOperation(services, call, request).run()


class MultiOperation:
    """A start and an update that are answered together."""

    def __init__(self, services: Services, call: Call, request: wire.ExecuteMultiOperationRequest) -> None:
        self.services = services
        self.call = call
        self.namespace = services.namespace(request.namespace)
        self.start = request.operations[0].start_workflow
        self.update = request.operations[1].update_workflow
        if not self.start.request_id:
            self.start.request_id = services.node.new_id()
        if not self.update.request.meta.update_id:
            self.update.request.meta.update_id = services.node.new_id()
        self.retried = False

    def run(self) -> None:
        """Join the run that has the update or may take it, else start one; then update."""
        shard = self.services.node.shard_of(self.namespace.id, self.start.workflow_id)
        now = shard.current(self.namespace.id, self.start.workflow_id)
        begun = now.started_by(self.start.request_id) if now is not None else ""
        over = now is not None and begun not in ("", now.run_id)
        if over and shard.find(self.namespace.id, self.start.workflow_id, begun) is not None:
            self._update(begun, started=True)  # the run that this very call began
            return
        if now is not None and self._joins(shard, now):
            self._update(now.run_id, started=now.start_request_id == self.start.request_id)
            return
        self._start(shard, now)

    def _joins(self, shard: ShardHost, now: CurrentRun) -> bool:
        """Whether the update goes to the current run: Temporal, multioperation Invoke."""
        run = shard.find(self.namespace.id, self.start.workflow_id, now.run_id)
        assert run is not None, "the current run is there"
        update_id = self.update.request.meta.update_id
        known = run.updates_state.get(update_id)
        if known is not None and known.stage == updates.COMPLETED:
            return True  # whatever the policies say, this update has its outcome already
        if now.start_request_id == self.start.request_id:
            return True
        if not run.running:
            return False
        policy = self.start.workflow_id_conflict_policy
        return (
            policy == workflows.W.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
            or known is not None
            or update_id in updates.registry(run).updates
        )

    def _start(self, shard: ShardHost, now: Any) -> None:
        services = self.services
        run_id = services.node.new_id()
        tx = shard.begin(self.namespace.id)
        try:
            services.node.validate_search_attributes(self.namespace.id, self.start.search_attributes)
            if now is not None:
                workflows.make_room(shard, tx, self.namespace, self.start, now, run_id)
            run = workflows.create(tx, self.namespace, self.start, self.start.request_id, run_id, now)
            # Now, not after the commit: the first workflow task must carry it.
            updates.admit(tx, run, self.update.request)
        except ServiceError as error:
            shard.abort(tx)
            self._refuse_start(error)
            return
        except BaseException:
            shard.abort(tx)
            raise
        shard.commit(tx, lambda error: self._refuse_start(error) if error is not None else None)
        self._update(run_id, started=True)

    def _update(self, run_id: str, *, started: bool) -> None:
        self.update.workflow_execution.workflow_id = self.start.workflow_id
        self.update.workflow_execution.run_id = run_id

        def answer(run: Run, stage: int, outcome: Outcome | None) -> None:
            response = wire.ExecuteMultiOperationResponse()
            begun = response.responses.add().start_workflow
            begun.run_id = run_id
            begun.first_execution_run_id = run.state.first_run_id
            begun.started = started
            begun.status = st.RUNNING if started else run.state.status  # type: ignore[assignment]
            begun.link.CopyFrom(
                workflows.started_link(self.namespace, workflows.CurrentRunOf(self.start.workflow_id, run_id))
            )
            response.responses.add().update_workflow.CopyFrom(response_of(run, self.update, stage, outcome))
            self.call.finish(response.SerializeToString())

        def refuse(error: ServiceError) -> None:
            closing = error.code == Code.NOT_FOUND and error.message == updates.ABORTED_BY_CLOSING
            if closing and not started and not self.retried:
                # The joined run closed under the update: unlike a plain update, this can start the next.
                self.retried = True
                self.run()
            elif closing and not started:
                self._refuse_update(ServiceError(Code.ABORTED, error.message))
            else:
                self._refuse_update(error)

        try:
            submit(self.services, self.call, self.namespace, self.update, answer, refuse)
        except ServiceError as error:
            self._refuse_update(error)

    def _refuse_start(self, error: ServiceError) -> None:
        aborted = ServiceError(Code.ABORTED, "Operation was aborted.")
        self._refuse(error, error, aborted)

    def _refuse_update(self, error: ServiceError) -> None:
        aborted = ServiceError(Code.ABORTED, "Operation was aborted.")
        self._refuse(error, aborted, error)

    def _refuse(self, main: ServiceError, first: ServiceError, second: ServiceError) -> None:
        """The code of what went wrong; one status for each operation in the detail."""
        detail = MultiOperationExecutionFailure()
        for error in (first, second):
            status = detail.statuses.add(code=int(error.code), message=error.message)
            if error.code == Code.ABORTED and error.message == "Operation was aborted.":
                status.details.add().Pack(MultiOperationExecutionAborted())
            elif error.detail is not None:
                status.details.add().Pack(error.detail)
        what = "Start failed" if main is first else "Update failed"
        fail(self.call, ServiceError(main.code, f"MultiOperation could not be executed: {what}.", detail))
