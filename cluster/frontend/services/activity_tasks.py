"""Activities of workflows, from their workers' side: polled, completed, failed, cancelled, heartbeating."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.frontend.services.polls import wait_for_task
from cluster.frontend.validate import worker
from cluster.hosting.tasks.dispatch import ACTIVITY
from cluster.hosting.tasks.tokens import ACTIVITY_TASK, TaskToken
from history_store.engine import activity as activities
from history_store.engine.errors import invalid

if TYPE_CHECKING:
    from cluster.frontend.contract import Call
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction
    from history_store.engine.state import ActivityState


@rpc(wire.PollActivityTaskQueueRequest)
def poll(services: Services, call: Call, request: wire.PollActivityTaskQueueRequest) -> bytes | None:
    """PollActivityTaskQueue."""
    return wait_for_task(services, call, request, ACTIVITY)


def by_token(services: Services, request: Any) -> tuple[ShardHost, Run, ActivityState]:
    """The started attempt that a token names. NOT_FOUND if it is over."""
    token = services.task_token(request)
    if token.kind != ACTIVITY_TASK:
        raise invalid("Error deserializing task token.")
    return _found(services, token, "")


def by_id(services: Services, request: Any) -> tuple[ShardHost, Run, ActivityState]:
    """The activity that namespace, workflow and activity id name."""
    namespace = services.namespace(request.namespace)
    token = TaskToken(ACTIVITY_TASK, namespace.id, request.workflow_id, request.run_id, 0, 0)
    return _found(services, token, request.activity_id)


def _found(services: Services, token: TaskToken, activity_id: str) -> tuple[ShardHost, Run, ActivityState]:
    shard, run = services.run(token.namespace_id, token.workflow_id, token.run_id)
    stamp = token.stamp if token.scheduled_id else None
    activity = activities.find(run, token.scheduled_id, activity_id, stamp)
    return shard, run, activity


def _optional(request: Any, name: str) -> Any:
    return getattr(request, name) if request.HasField(name) else None


def _end(
    services: Services,
    call: Call,
    found: tuple[ShardHost, Run, ActivityState],
    how: Callable[[Transaction, Run, ActivityState], None],
) -> None:
    shard, run, activity = found

    def change(tx: Transaction) -> bytes:
        how(tx, tx.open(run), activity)
        return b""

    services.transact(call, shard, run.state.namespace_id, change)


# ---- completed


@rpc(wire.RespondActivityTaskCompletedRequest)
def completed(services: Services, call: Call, request: wire.RespondActivityTaskCompletedRequest) -> None:
    """RespondActivityTaskCompleted."""
    _complete(services, call, by_token(services, request), request)


@rpc(wire.RespondActivityTaskCompletedByIdRequest)
def completed_by_id(
    services: Services, call: Call, request: wire.RespondActivityTaskCompletedByIdRequest
) -> None:
    """RespondActivityTaskCompletedById."""
    _complete(services, call, by_id(services, request), request)


def _complete(
    services: Services, call: Call, found: tuple[ShardHost, Run, ActivityState], request: Any
) -> None:
    result = _optional(request, "result")
    if _oversized(services, result):
        _fail_oversized(services, call, found, request.identity, worker.OVERSIZED_RESULT)
        return
    _end(services, call, found, lambda tx, run, a: activities.complete(tx, run, a, result, request.identity))


def _oversized(services: Services, message: Any) -> bool:
    return message is not None and message.ByteSize() > services.limits.blob_bytes_max


def _fail_oversized(
    services: Services,
    call: Call,
    found: tuple[ShardHost, Run, ActivityState],
    identity: str,
    complaint: str,
) -> None:
    """A worker whose answer is refused would only send it again: the activity fails instead, for good."""
    failure = worker.oversized_failure(complaint)
    _end(services, call, found, lambda tx, run, a: activities.fail(tx, run, a, failure, identity))


# ---- failed


@rpc(wire.RespondActivityTaskFailedRequest)
def failed(services: Services, call: Call, request: wire.RespondActivityTaskFailedRequest) -> None:
    """RespondActivityTaskFailed."""
    _fail(services, call, by_token(services, request), request)


@rpc(wire.RespondActivityTaskFailedByIdRequest)
def failed_by_id(services: Services, call: Call, request: wire.RespondActivityTaskFailedByIdRequest) -> None:
    """RespondActivityTaskFailedById."""
    _fail(services, call, by_id(services, request), request)


def _fail(services: Services, call: Call, found: tuple[ShardHost, Run, ActivityState], request: Any) -> None:
    if not found[2].started_id:
        raise activities.not_found()
    details = _optional(request, "last_heartbeat_details")
    if _oversized(services, request.failure):
        _fail_oversized(services, call, found, request.identity, worker.OVERSIZED_FAILURE)
        return
    _end(
        services,
        call,
        found,
        lambda tx, run, a: activities.fail(tx, run, a, request.failure, request.identity, details),
    )


# ---- cancelled


@rpc(wire.RespondActivityTaskCanceledRequest)
def canceled(services: Services, call: Call, request: wire.RespondActivityTaskCanceledRequest) -> None:
    """RespondActivityTaskCanceled."""
    _cancel(services, call, by_token(services, request), request)


@rpc(wire.RespondActivityTaskCanceledByIdRequest)
def canceled_by_id(
    services: Services, call: Call, request: wire.RespondActivityTaskCanceledByIdRequest
) -> None:
    """RespondActivityTaskCanceledById."""
    _cancel(services, call, by_id(services, request), request)


def _cancel(
    services: Services, call: Call, found: tuple[ShardHost, Run, ActivityState], request: Any
) -> None:
    if not found[2].started_id:
        raise activities.not_found()
    details = _optional(request, "details")
    if _oversized(services, details):
        _fail_oversized(services, call, found, request.identity, worker.OVERSIZED_CANCEL_DETAILS)
        return
    _end(services, call, found, lambda tx, run, a: activities.cancel(tx, run, a, details, request.identity))


# ---- heartbeats


@rpc(wire.RecordActivityTaskHeartbeatRequest)
def heartbeat(services: Services, call: Call, request: wire.RecordActivityTaskHeartbeatRequest) -> None:
    """RecordActivityTaskHeartbeat."""
    _beat(
        services,
        call,
        by_token(services, request),
        request,
        wire.RecordActivityTaskHeartbeatResponse,
    )


@rpc(wire.RecordActivityTaskHeartbeatByIdRequest)
def heartbeat_by_id(
    services: Services, call: Call, request: wire.RecordActivityTaskHeartbeatByIdRequest
) -> None:
    """RecordActivityTaskHeartbeatById."""
    _beat(services, call, by_id(services, request), request, wire.RecordActivityTaskHeartbeatByIdResponse)


def _beat(
    services: Services,
    call: Call,
    found: tuple[ShardHost, Run, ActivityState],
    request: Any,
    response_type: Any,
) -> None:
    shard, run, activity = found
    if not activity.started_id:
        raise activities.not_found()
    if _oversized(services, _optional(request, "details")):
        # As Temporal does: the activity fails, and its worker is told to stop.
        failure = worker.oversized_failure(worker.OVERSIZED_HEARTBEAT)

        def give_up(tx: Transaction) -> bytes:
            activities.fail(tx, tx.open(run), activity, failure, request.identity)
            return bytes(response_type(cancel_requested=True).SerializeToString())

        services.transact(call, shard, run.state.namespace_id, give_up)
        return

    def change(tx: Transaction) -> bytes:
        activities.heartbeat(tx, tx.open(run), activity, _optional(request, "details"))
        response = response_type(
            cancel_requested=activity.cancel_requested,
            activity_paused=activity.paused,
            activity_reset=activity.activity_reset,
        )
        return bytes(response.SerializeToString())

    services.transact(call, shard, run.state.namespace_id, change)
