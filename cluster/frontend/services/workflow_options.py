"""Options of an open run, changed from outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, answering, rpc
from history_store.engine import options

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from history_store.engine.run import Transaction


@rpc(wire.UpdateWorkflowExecutionOptionsRequest)
def update_options(
    services: Services, call: Call, request: wire.UpdateWorkflowExecutionOptionsRequest
) -> None:
    """UpdateWorkflowExecutionOptions. What changes nothing writes no event."""
    namespace = services.namespace(request.namespace)
    execution = request.workflow_execution
    shard, run = services.open_run(namespace.id, execution.workflow_id, execution.run_id)
    wanted, paths = request.workflow_execution_options, request.update_mask.paths
    unchanged = options.merge(options.current(run), wanted, paths)
    if unchanged == options.current(run):
        same = wire.UpdateWorkflowExecutionOptionsResponse(workflow_execution_options=unchanged)
        shard.group.when_committed(answering(call, same.SerializeToString()))
        return

    def change(tx: Transaction) -> bytes:
        tx.open(run)
        now, _ = options.update(tx, run, wanted, paths, request.identity)
        response = wire.UpdateWorkflowExecutionOptionsResponse(workflow_execution_options=now)
        response.update_time.CopyFrom(tx.time)
        return response.SerializeToString()

    services.transact(call, shard, namespace.id, change)
