"""Task queues and workers as people see them, and the system's own description."""

from __future__ import annotations

from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import common_pb2, task_queue_pb2
from temporalio.api.errordetails.v1.message_pb2 import NotFoundFailure
from temporalio.api.taskqueue.v1.message_pb2 import StickyExecutionAttributes, TaskQueue
from temporalio.api.worker.v1.message_pb2 import WorkerHeartbeat
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.health import Health
from cluster.frontend.schema import message_class
from cluster.frontend.services import system
from cluster.frontend.services.base import OPERATOR_SERVICE, WORKFLOW_SERVICE
from tests.cluster.frontend.services.conftest import NOW, SECOND, FakeCall, FakeConnection, Harness

WORKFLOW = task_queue_pb2.TASK_QUEUE_TYPE_WORKFLOW
ACTIVITY = task_queue_pb2.TASK_QUEUE_TYPE_ACTIVITY
STICKY = task_queue_pb2.TASK_QUEUE_KIND_STICKY
ENHANCED = task_queue_pb2.DESCRIBE_TASK_QUEUE_MODE_ENHANCED


def queue_request(**fields: object) -> wire.DescribeTaskQueueRequest:
    request = wire.DescribeTaskQueueRequest(namespace="default", **fields)  # type: ignore[arg-type]
    request.task_queue.name = "q"
    return request


def poll_request(queue: str = "q", key: str = "", sticky: bool = False) -> wire.PollWorkflowTaskQueueRequest:
    request = wire.PollWorkflowTaskQueueRequest(
        namespace="default", identity="me@host", worker_instance_key=key
    )
    request.task_queue.name = queue
    if sticky:
        request.task_queue.kind = STICKY
        request.task_queue.normal_name = "q"
    return request


async def test_backlog_and_pollers(harness: Harness) -> None:
    await harness.start("a")
    await harness.start("b")
    harness.clock.advance(4)
    found = await harness.call(queue_request(report_stats=True, include_task_queue_status=True))
    assert found.stats.approximate_backlog_count == 2
    assert found.stats.approximate_backlog_age.ToNanoseconds() == 4 * SECOND
    assert found.stats.tasks_add_rate > 0
    assert found.task_queue_status.backlog_count_hint == 2
    assert not found.pollers
    assert found.versioning_info.current_version == "__unversioned__"
    await harness.poll()
    await harness.poll()
    found = await harness.call(queue_request(report_stats=True))
    assert found.stats.approximate_backlog_count == 0
    (poller,) = found.pollers
    assert poller.identity == "worker"
    assert poller.last_access_time.ToNanoseconds() == NOW + 4 * SECOND
    assert not found.HasField("task_queue_status")
    other = await harness.call(queue_request(task_queue_type=ACTIVITY, report_stats=True))
    assert not other.pollers


async def test_enhanced_form(harness: Harness) -> None:
    await harness.start("a")
    request = queue_request(
        api_mode=ENHANCED, report_stats=True, report_pollers=True, report_task_reachability=True
    )
    request.versions.unversioned = True
    request.versions.build_ids.append("1.0")
    found = await harness.call(request)
    assert set(found.versions_info) == {"", "1.0"}
    ours = found.versions_info[""]
    assert ours.types_info[WORKFLOW].stats.approximate_backlog_count == 1
    assert ours.types_info[ACTIVITY].stats.approximate_backlog_count == 0
    assert ours.task_reachability == task_queue_pb2.BUILD_ID_TASK_REACHABILITY_REACHABLE
    assert (
        found.versions_info["1.0"].task_reachability == task_queue_pb2.BUILD_ID_TASK_REACHABILITY_UNREACHABLE
    )


async def test_one_partition(harness: Harness) -> None:
    request = wire.ListTaskQueuePartitionsRequest(namespace="default", task_queue=TaskQueue(name="q"))
    found = await harness.call(request)
    assert [one.key for one in found.workflow_task_queue_partitions] == ["q"]
    assert [one.key for one in found.activity_task_queue_partitions] == ["q"]


async def test_reset_sticky(harness: Harness) -> None:
    run_id = await harness.start("a")
    task = await harness.poll()
    sticky = StickyExecutionAttributes(
        worker_task_queue=TaskQueue(name="sticky", kind=STICKY, normal_name="q")
    )
    sticky.schedule_to_start_timeout.seconds = 10
    await harness.complete(task.task_token, sticky_attributes=sticky)
    _, run = harness.services.run(harness.node.meta.get("default").id, "a", run_id)
    assert run.state.sticky_queue == "sticky"
    execution = WorkflowExecution(workflow_id="a")
    await harness.call(wire.ResetStickyTaskQueueRequest(namespace="default", execution=execution))
    assert run.state.sticky_queue == ""
    execution = WorkflowExecution(workflow_id="absent")
    error = await harness.refused(wire.ResetStickyTaskQueueRequest(namespace="default", execution=execution))
    assert error.code == 5


def heartbeat(key: str, queue: str = "q") -> WorkerHeartbeat:
    return WorkerHeartbeat(worker_instance_key=key, worker_identity="me@host", task_queue=queue)


async def test_workers_tell_of_themselves(harness: Harness) -> None:
    request = wire.RecordWorkerHeartbeatRequest(
        namespace="default", worker_heartbeat=[heartbeat("k1"), heartbeat("k2", "other")]
    )
    await harness.call(request)
    listed = await harness.call(wire.ListWorkersRequest(namespace="default", query="TaskQueue = 'other'"))
    assert [info.worker_heartbeat.worker_instance_key for info in listed.workers_info] == ["k2"]
    counted = await harness.call(wire.CountWorkersRequest(namespace="default"))
    assert counted.count == 2
    described = await harness.call(wire.DescribeWorkerRequest(namespace="default", worker_instance_key="k1"))
    assert described.worker_info.worker_heartbeat.task_queue == "q"
    error = await harness.refused(wire.DescribeWorkerRequest(namespace="default", worker_instance_key="k3"))
    assert error.code == 5
    error.detail(NotFoundFailure)


async def test_shutdown_ends_the_polls_of_that_worker_only(harness: Harness) -> None:
    mine = [harness.begin(poll_request(queue, "k1", sticky=queue != "q")) for queue in ("q", "sticky")]
    another = harness.begin(poll_request("q", "k2"))
    request = wire.ShutdownWorkerRequest(
        namespace="default", sticky_task_queue="sticky", identity="me@host", worker_instance_key="k1",
        task_queue="q", task_queue_types=[WORKFLOW, ACTIVITY], worker_heartbeat=heartbeat("k1"),
    )  # fmt: skip
    request.worker_heartbeat.status = common_pb2.WORKER_STATUS_SHUTTING_DOWN
    await harness.call(request)
    assert [call.answer.result() for call in mine] == [b"", b""]
    assert not another.done
    assert (await harness.call(wire.CountWorkersRequest(namespace="default"))).count == 1
    late = harness.begin(poll_request("q", "k1"))
    assert late.answer.result() == b""
    another.cancel()


async def test_shutdown_hands_the_sticky_queue_over(harness: Harness) -> None:
    await harness.start("a")
    task = await harness.poll()
    sticky = StickyExecutionAttributes(
        worker_task_queue=TaskQueue(name="sticky", kind=STICKY, normal_name="q")
    )
    sticky.schedule_to_start_timeout.seconds = 10
    await harness.complete(task.task_token, sticky_attributes=sticky)
    # The worker polls its sticky queue (the poll ends) and then a task comes for it: it waits there.
    call = harness.begin(poll_request("sticky", "k1", sticky=True))
    call.cancel()
    signal = wire.SignalWorkflowExecutionRequest(
        namespace="default", workflow_execution=WorkflowExecution(workflow_id="a"), signal_name="s"
    )
    await harness.call(signal)
    colleague = harness.begin(poll_request("q", "k2"), connection=FakeConnection())
    await harness.turn()
    assert not colleague.done
    await harness.call(
        wire.ShutdownWorkerRequest(namespace="default", sticky_task_queue="sticky", worker_instance_key="k1")
    )
    given = await harness.end(poll_request(), colleague)
    assert given.workflow_execution.workflow_id == "a"


async def test_system_and_cluster(harness: Harness) -> None:
    found = await harness.call(wire.GetSystemInfoRequest())
    assert found.server_version == "1.32.0"
    advertised = {field.name for field, value in found.capabilities.ListFields() if value}
    assert advertised == {
        "signal_and_query_header", "internal_error_differentiation", "activity_failure_include_heartbeat",
        "encoded_failure_attributes", "upsert_memo", "eager_workflow_start", "sdk_metadata",
        "count_group_by_execution_status",
    }  # fmt: skip
    cluster = await harness.call(wire.GetClusterInfoRequest())
    assert cluster.cluster_id == harness.node.cluster_id
    assert cluster.history_shard_count == 2
    assert cluster.supported_clients["temporal-python"] == "<2.0.0"
    assert cluster.version_info.current.notes.startswith("Holdfast ")


async def test_health_follows_the_server() -> None:
    health = Health()
    check = health.methods["/grpc.health.v1.Health/Check"]
    answer = message_class("grpc.health.v1.HealthCheckResponse")

    def status(service: str) -> int:
        request = message_class("grpc.health.v1.HealthCheckRequest")(service=service).SerializeToString()
        body = check(FakeCall("/grpc.health.v1.Health/Check", request, None, FakeConnection()))
        found: int = answer.FromString(body).status
        return found

    for serving, expected in ((True, 1), (False, 2)):
        system.announce(health, serving)
        for service in ("", WORKFLOW_SERVICE, OPERATOR_SERVICE):
            assert status(service) == expected
