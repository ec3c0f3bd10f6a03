"""What is not there yet says so, by name; nothing is left without an answer."""

from __future__ import annotations

import pytest
from google.protobuf.message_factory import GetMessageClass
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from cluster.frontend.services import unimplemented
from tests.cluster.frontend.services.conftest import RPCS, Harness

METHODS = [
    method
    for file in (workflow_service, operator_service)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
THERE = {
    "DescribeWorkflowExecution", "ListWorkflowExecutions", "ScanWorkflowExecutions",
    "CountWorkflowExecutions", "ListOpenWorkflowExecutions", "ListClosedWorkflowExecutions",
    "ListArchivedWorkflowExecutions", "GetSearchAttributes", "RegisterNamespace", "DescribeNamespace",
    "ListNamespaces", "UpdateNamespace", "DeprecateNamespace", "DeleteNamespace", "AddSearchAttributes",
    "RemoveSearchAttributes", "ListSearchAttributes", "ListClusters", "GetSystemInfo", "GetClusterInfo",
    "DescribeTaskQueue", "ListTaskQueuePartitions", "ResetStickyTaskQueue", "RecordWorkerHeartbeat",
    "ListWorkers", "CountWorkers", "DescribeWorker", "ShutdownWorker",
}  # fmt: skip


async def test_every_rpc_has_a_handler_and_a_state(harness: Harness) -> None:
    assert set(harness.handlers) == {rpc.name for rpc in RPCS.values()}
    table = unimplemented.states()
    assert [name for name, _, _ in table] == [method.name for method in METHODS]
    for name, state, reason in table:
        assert state in ("implemented", "later")
        assert (state == "later") == bool(reason), name
        assert reason != "it belongs to a newer API", f"{name} needs a sentence of its own"
    assert {name for name, state, _ in table if state == "implemented"} >= THERE


@pytest.mark.parametrize(
    ("name", "feature"),
    [
        ("CreateSchedule", "schedules"),
        ("StartBatchOperation", "batch operations"),
        ("SetWorkerDeploymentCurrentVersion", "worker deployments"),
        ("UpdateWorkerBuildIdCompatibility", "versioning by build id"),
        ("ListNexusEndpoints", "Nexus"),
        ("StartActivityExecution", "standalone activities"),
        ("CreateWorkflowRule", "workflow rules"),
        ("PauseWorkflowExecution", "pausing a workflow"),
        ("UpdateTaskQueueConfig", "rate limits"),
        ("FetchWorkerConfig", "configuration of workers"),
        ("PollWorkflowExecutionTimeSkipping", "time skipping"),
        ("AddOrUpdateRemoteCluster", "several clusters"),
    ],
)
def test_reasons_name_the_feature(name: str, feature: str) -> None:
    assert feature in unimplemented.reason(name)


async def test_refusal(harness: Harness) -> None:
    method = next(method for method in METHODS if method.name == "CreateSchedule")
    error = await harness.refused(GetMessageClass(method.input_type)(namespace="default"))
    assert error.code == 12
    assert error.message == (
        "CreateSchedule is not part of this release of Holdfast: schedules come with a later release"
    )
    again = await harness.refused(wire.ListSchedulesRequest(namespace="default"))
    assert again.code == 12
