"""Task queues as people see them: who polls, what waits; and the sticky queue of a run, forgotten on request.

There are no partitions here, and no versions yet: all workers of a queue are the unversioned ones.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from temporalio.api.deployment.v1.message_pb2 import WorkerDeploymentOptions
from temporalio.api.enums.v1 import task_queue_pb2
from temporalio.api.taskqueue.v1 import message_pb2 as shown
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.hosting.calls.attempt import scattered
from cluster.matching import QueueKey
from cluster.matching.stats import DEFAULT_RATE_PER_SECOND
from history_store.engine.durations import from_ns, timestamp_from_ns

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

    from cluster.frontend.contract import Call
    from cluster.matching import PollerInfo, QueueStats
    from history_store.engine.run import Transaction

Q = task_queue_pb2
WORKFLOW = Q.TASK_QUEUE_TYPE_WORKFLOW
ACTIVITY = Q.TASK_QUEUE_TYPE_ACTIVITY
ENHANCED = Q.DESCRIBE_TASK_QUEUE_MODE_ENHANCED
REACHABLE = Q.BUILD_ID_TASK_REACHABILITY_REACHABLE
UNREACHABLE = Q.BUILD_ID_TASK_REACHABILITY_UNREACHABLE
RATE_BY_SYSTEM = Q.RATE_LIMIT_SOURCE_SYSTEM
RATE_BY_WORKER = Q.RATE_LIMIT_SOURCE_WORKER
UNVERSIONED = "__unversioned__"


@rpc(wire.DescribeTaskQueueRequest)
def describe_queue(services: Services, call: Call, request: wire.DescribeTaskQueueRequest) -> bytes | None:
    """DescribeTaskQueue, in both forms: in a region, all nodes' parts of the queue together."""
    forward = services.node.forward
    if forward is None or scattered(call):
        return _describe_here(services, request).SerializeToString()

    def together(others: list[bytes]) -> None:
        found = _describe_here(services, request)
        for other in others:
            _merge(found, wire.DescribeTaskQueueResponse.FromString(other))
        call.finish(found.SerializeToString())

    forward.scatter(call, together)
    return None


def _merge(into: wire.DescribeTaskQueueResponse, other: wire.DescribeTaskQueueResponse) -> None:
    """Add another node's part of the queue."""
    _merge_pollers(into.pollers, other.pollers)
    _merge_stats(into.stats, other.stats)
    into.task_queue_status.backlog_count_hint += other.task_queue_status.backlog_count_hint
    if 0 < other.effective_rate_limit.requests_per_second < into.effective_rate_limit.requests_per_second:
        into.effective_rate_limit.CopyFrom(other.effective_rate_limit)
        if into.HasField("task_queue_status"):
            into.task_queue_status.rate_per_second = other.effective_rate_limit.requests_per_second
    for build_id, version in other.versions_info.items():
        for kind, info in version.types_info.items():
            ours = into.versions_info[build_id].types_info[kind]
            _merge_pollers(ours.pollers, info.pollers)
            _merge_stats(ours.stats, info.stats)


def _merge_pollers(
    into: RepeatedCompositeFieldContainer[shown.PollerInfo],
    others: RepeatedCompositeFieldContainer[shown.PollerInfo],
) -> None:
    """One line a worker, with its latest poll."""
    known = {info.identity: info for info in into}
    for info in others:
        ours = known.get(info.identity)
        if ours is None:
            into.append(info)
        elif info.last_access_time.ToNanoseconds() > ours.last_access_time.ToNanoseconds():
            ours.CopyFrom(info)


def _merge_stats(into: shown.TaskQueueStats, other: shown.TaskQueueStats) -> None:
    into.approximate_backlog_count += other.approximate_backlog_count
    if other.approximate_backlog_age.ToNanoseconds() > into.approximate_backlog_age.ToNanoseconds():
        into.approximate_backlog_age.CopyFrom(other.approximate_backlog_age)
    into.tasks_add_rate += other.tasks_add_rate
    into.tasks_dispatch_rate += other.tasks_dispatch_rate


def _describe_here(
    services: Services, request: wire.DescribeTaskQueueRequest
) -> wire.DescribeTaskQueueResponse:
    namespace = services.namespace(request.namespace)
    if request.api_mode == ENHANCED:
        return _enhanced(services, namespace.id, request)
    kind = request.task_queue_type or WORKFLOW
    found = services.node.matching.describe(QueueKey(namespace.id, kind, request.task_queue.name))
    response = wire.DescribeTaskQueueResponse()
    _pollers(found.pollers, response.pollers)
    rate = min((poller.rate_per_second for poller in found.pollers), default=DEFAULT_RATE_PER_SECOND)
    if request.include_task_queue_status:
        response.task_queue_status.backlog_count_hint = found.backlog_count
        response.task_queue_status.rate_per_second = rate
    if request.report_stats:
        _stats(found, response.stats)
    response.versioning_info.current_version = UNVERSIONED
    response.effective_rate_limit.requests_per_second = rate
    response.effective_rate_limit.rate_limit_source = (
        RATE_BY_WORKER if rate < DEFAULT_RATE_PER_SECOND else RATE_BY_SYSTEM
    )
    return response


def _enhanced(
    services: Services, namespace_id: str, request: wire.DescribeTaskQueueRequest
) -> wire.DescribeTaskQueueResponse:
    """The form by build ids, of which only "" (unversioned) has workers and tasks."""
    response = wire.DescribeTaskQueueResponse()
    wanted = set(request.versions.build_ids)
    if not request.HasField("versions") or request.versions.unversioned or request.versions.all_active:
        wanted.add("")
    kinds = list(request.task_queue_types) or [WORKFLOW, ACTIVITY]
    for build_id in sorted(wanted):
        version = response.versions_info[build_id]
        for kind in kinds:
            info = version.types_info[kind]
            if build_id:
                continue
            found = services.node.matching.describe(QueueKey(namespace_id, kind, request.task_queue.name))
            if request.report_pollers:
                _pollers(found.pollers, info.pollers)
            if request.report_stats:
                _stats(found, info.stats)
        if request.report_task_reachability:
            version.task_reachability = UNREACHABLE if build_id else REACHABLE
    return response


def _pollers(found: list[PollerInfo], into: RepeatedCompositeFieldContainer[shown.PollerInfo]) -> None:
    for poller in found:
        info = into.add(identity=poller.identity, rate_per_second=poller.rate_per_second)
        timestamp_from_ns(poller.last_access_ns, info.last_access_time)
        if isinstance(poller.versioning, WorkerDeploymentOptions):
            info.deployment_options.CopyFrom(poller.versioning)


def _stats(found: QueueStats, into: shown.TaskQueueStats) -> None:
    into.approximate_backlog_count = found.backlog_count
    from_ns(found.backlog_age_ns, into.approximate_backlog_age)
    into.tasks_add_rate = found.tasks_add_rate
    into.tasks_dispatch_rate = found.tasks_dispatch_rate


@rpc(wire.ListTaskQueuePartitionsRequest)
def list_partitions(services: Services, _call: Call, request: wire.ListTaskQueuePartitionsRequest) -> bytes:
    """ListTaskQueuePartitions: one, the queue itself, on this host."""
    services.namespace(request.namespace)
    partition = shown.TaskQueuePartitionMetadata(
        key=request.task_queue.name, owner_host_name=socket.gethostname()
    )
    return wire.ListTaskQueuePartitionsResponse(
        activity_task_queue_partitions=[partition], workflow_task_queue_partitions=[partition]
    ).SerializeToString()


@rpc(wire.ResetStickyTaskQueueRequest)
def reset_sticky(services: Services, call: Call, request: wire.ResetStickyTaskQueueRequest) -> None:
    """ResetStickyTaskQueue: the next workflow task goes to the normal queue. One that waits already stays."""
    namespace = services.namespace(request.namespace)
    shard, run = services.open_run(namespace.id, request.execution.workflow_id, request.execution.run_id)

    def change(tx: Transaction) -> bytes:
        if run.state.sticky_queue:
            tx.open(run)
            run.state.sticky_queue = ""
            run.state.sticky_timeout = 0
        return b""

    services.transact(call, shard, namespace.id, change)
