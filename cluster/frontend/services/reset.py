"""ResetWorkflowExecution: a new run from an earlier point of an old one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, answering, rpc
from history_store.engine import keys, reset

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction


def stored_batches(shard: ShardHost, run: Run) -> list[bytes]:
    """A run's history as it is stored, a batch of events each."""
    prefix = keys.HISTORY + run.slot + run.raw
    return [data for _, data in shard.rows.scan(prefix, keys.prefix_end(prefix))]


@rpc(wire.ResetWorkflowExecutionRequest)
def reset_workflow(services: Services, call: Call, request: wire.ResetWorkflowExecutionRequest) -> None:
    """ResetWorkflowExecution. The same request twice makes one run."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    workflow_id = execution.workflow_id
    shard, base = services.run(namespace.id, workflow_id, execution.run_id)
    current = shard.find(namespace.id, workflow_id)
    if current is not None and reset.made_by(current, request.request_id):
        same = wire.ResetWorkflowExecutionResponse(run_id=current.state.run_id)
        shard.group.when_committed(answering(call, same.SerializeToString()))
        return
    wanted = reset.Reset(
        request.workflow_task_finish_event_id,
        request.reason,
        request.request_id,
        request.reset_reapply_type,
        request.reset_reapply_exclude_types,
        request.post_reset_operations,
        request.identity,
    )

    def change(tx: Transaction) -> bytes:
        run = reset.reset(
            tx,
            base,
            current,
            wanted,
            lambda one: stored_batches(shard, one),
            lambda run_id: shard.find(namespace.id, workflow_id, run_id),
        )
        return wire.ResetWorkflowExecutionResponse(run_id=run.state.run_id).SerializeToString()

    services.transact(call, shard, namespace.id, change)
    if current is not None:
        services.node.queries.settle(current)
