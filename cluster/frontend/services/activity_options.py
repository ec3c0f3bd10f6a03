"""Pending activities from the operator's side: pause, unpause, reset, other options.

Each has two RPCs. The older names activities of a workflow; the newer (`…ActivityExecution`), which is all
that newer clients use, names one activity: of a workflow if it has a workflow id, and else a standalone one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.api.activity.v1.message_pb2 import ActivityOptions
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc, unimplemented
from history_store.engine import activity_admin
from history_store.engine.durations import to_ns

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import ActivityState

EVERYTHING = frozenset(("match_all", "unpause_all"))

Change = Callable[["Transaction", "Run", "ActivityState"], None]


def _each(
    services: Services, call: Call, request: Any, change: Change, answer: Callable[[], bytes] = lambda: b""
) -> None:
    """Do it to every activity that the request means, in one transaction."""
    namespace = services.namespace(request.namespace)
    execution = request.execution
    shard, run = services.open_run(namespace.id, execution.workflow_id, execution.run_id)
    by = request.WhichOneof("activity")
    if by in EVERYTHING:
        found = activity_admin.chosen(run, everything=True)
    else:
        found = activity_admin.chosen(run, request.id, request.type)

    def apply(tx: Transaction) -> bytes:
        tx.open(run)
        for activity in found:
            change(tx, run, activity)
        return answer()

    services.transact(call, shard, namespace.id, apply)


@rpc(wire.PauseActivityRequest)
def pause(services: Services, call: Call, request: wire.PauseActivityRequest) -> None:
    """PauseActivity."""

    def change(tx: Transaction, run: Run, activity: ActivityState) -> None:
        activity_admin.pause(tx, run, activity, request.identity, request.reason, request.request_id)

    _each(services, call, request, change)


@rpc(wire.UnpauseActivityRequest)
def unpause(services: Services, call: Call, request: wire.UnpauseActivityRequest) -> None:
    """UnpauseActivity."""
    jitter = to_ns(request.jitter)

    def change(tx: Transaction, run: Run, activity: ActivityState) -> None:
        activity_admin.unpause(tx, run, activity, request.reset_attempts, request.reset_heartbeat, jitter)

    _each(services, call, request, change)


@rpc(wire.ResetActivityRequest)
def reset(services: Services, call: Call, request: wire.ResetActivityRequest) -> None:
    """ResetActivity."""
    jitter = to_ns(request.jitter)

    def change(tx: Transaction, run: Run, activity: ActivityState) -> None:
        activity_admin.reset(
            tx,
            run,
            activity,
            request.reset_heartbeat,
            request.keep_paused,
            request.restore_original_options,
            jitter,
        )

    _each(services, call, request, change)


@rpc(wire.UpdateActivityOptionsRequest)
def update_options(services: Services, call: Call, request: wire.UpdateActivityOptionsRequest) -> None:
    """UpdateActivityOptions. Answers with the options of the last activity it changed."""
    options = ActivityOptions()

    def change(tx: Transaction, run: Run, activity: ActivityState) -> None:
        if request.restore_original:
            now = activity_admin.restore_options(tx, run, activity)
        else:
            now = activity_admin.update_options(
                tx, run, activity, request.activity_options, request.update_mask.paths
            )
        options.CopyFrom(now)

    _each(
        services,
        call,
        request,
        change,
        lambda: wire.UpdateActivityOptionsResponse(activity_options=options).SerializeToString(),
    )


# ---- the newer RPCs, for activities of workflows


def _of_workflow(request: Any) -> dict[str, Any]:
    """What the older request has in place of the newer one's ids."""
    if not request.workflow_id:
        name = request.DESCRIPTOR.name.removesuffix("Request")
        raise unimplemented(name, "standalone activities come with a later release")
    return {
        "namespace": request.namespace,
        "execution": WorkflowExecution(workflow_id=request.workflow_id, run_id=request.run_id),
        "id": request.activity_id,
        "identity": request.identity,
    }


@rpc(wire.PauseActivityExecutionRequest)
def pause_one(services: Services, call: Call, request: wire.PauseActivityExecutionRequest) -> None:
    """PauseActivityExecution."""
    target = _of_workflow(request)
    older = wire.PauseActivityRequest(**target, reason=request.reason, request_id=request.request_id)
    pause(services, call, older)


@rpc(wire.UnpauseActivityExecutionRequest)
def unpause_one(services: Services, call: Call, request: wire.UnpauseActivityExecutionRequest) -> None:
    """UnpauseActivityExecution."""
    unpause(services, call, wire.UnpauseActivityRequest(**_of_workflow(request), jitter=request.jitter))


@rpc(wire.ResetActivityExecutionRequest)
def reset_one(services: Services, call: Call, request: wire.ResetActivityExecutionRequest) -> None:
    """ResetActivityExecution."""
    older = wire.ResetActivityRequest(
        **_of_workflow(request),
        reset_heartbeat=request.reset_heartbeat,
        keep_paused=request.keep_paused,
        jitter=request.jitter,
        restore_original_options=request.restore_original_options,
    )
    reset(services, call, older)


@rpc(wire.UpdateActivityExecutionOptionsRequest)
def update_options_of_one(
    services: Services, call: Call, request: wire.UpdateActivityExecutionOptionsRequest
) -> None:
    """UpdateActivityExecutionOptions. The answers of both RPCs have the same field."""
    older = wire.UpdateActivityOptionsRequest(
        **_of_workflow(request),
        activity_options=request.activity_options,
        update_mask=request.update_mask,
        restore_original=request.restore_original,
    )
    update_options(services, call, older)
