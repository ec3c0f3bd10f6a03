"""Workers that tell of themselves: heartbeats, lists of workers, and their last words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.hosting.calls.attempt import scattered
from cluster.hosting.tasks.dispatch import WORKFLOW, Poll
from cluster.matching import QueueKey

if TYPE_CHECKING:
    from cluster.frontend.contract import Call


@rpc(wire.RecordWorkerHeartbeatRequest)
def record_heartbeat(services: Services, call: Call, request: wire.RecordWorkerHeartbeatRequest) -> bytes:
    """RecordWorkerHeartbeat. Every node keeps all of them: who asks may ask any."""
    _tell_others(services, call)
    services.node.workers.record(services.namespace(request.namespace).id, request.worker_heartbeat)
    return b""


def _tell_others(services: Services, call: Call) -> None:
    """The same at the other nodes. One that misses it hears the next heartbeat, or sees the worker expire."""
    if services.node.forward is not None and not scattered(call):
        services.node.forward.scatter(call, lambda _: None)


@rpc(wire.ListWorkersRequest)
def list_workers(services: Services, _call: Call, request: wire.ListWorkersRequest) -> bytes:
    """ListWorkers."""
    namespace = services.namespace(request.namespace)
    return services.node.workers.list_workers(namespace.id, request).SerializeToString()


@rpc(wire.CountWorkersRequest)
def count_workers(services: Services, _call: Call, request: wire.CountWorkersRequest) -> bytes:
    """CountWorkers."""
    namespace = services.namespace(request.namespace)
    return services.node.workers.count_workers(namespace.id, request).SerializeToString()


@rpc(wire.DescribeWorkerRequest)
def describe_worker(services: Services, _call: Call, request: wire.DescribeWorkerRequest) -> bytes:
    """DescribeWorker."""
    namespace = services.namespace(request.namespace)
    return services.node.workers.describe_worker(namespace.id, request).SerializeToString()


@rpc(wire.ShutdownWorkerRequest)
def shutdown_worker(services: Services, call: Call, request: wire.ShutdownWorkerRequest) -> bytes:
    """ShutdownWorker: its polls end now, and what waits in its sticky queue goes to the other workers.

    Polls are found by the worker's key over all queues of the namespace: the request names one queue and its
    types, but the sticky queue's polls must end too.
    """
    namespace, node = services.namespace(request.namespace), services.node
    _tell_others(services, call)
    if request.HasField("worker_heartbeat"):
        node.workers.record(namespace.id, (request.worker_heartbeat,))
    for poll in node.matching.cancel_worker_polls(
        request.worker_instance_key, namespace.id, request.identity
    ):
        assert isinstance(poll, Poll), "whoever polls here is a call"
        poll.answer(b"")
    if request.sticky_task_queue:
        node.matching.abandon(QueueKey(namespace.id, WORKFLOW, request.sticky_task_queue))
    return b""
