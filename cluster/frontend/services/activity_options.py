"""Pending activities from the operator's side: pause, unpause, reset, other options."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.api.activity.v1.message_pb2 import ActivityOptions
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
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

    services.transact(call, shard, apply)


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
