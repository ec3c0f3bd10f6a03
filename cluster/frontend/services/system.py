"""GetSystemInfo and GetClusterInfo: what this server is; and its state for health checks."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.health import Health, Serving
from cluster.frontend.services.base import OPERATOR_SERVICE, WORKFLOW_SERVICE, Services, rpc
from cluster.frontend.services.global_namespaces import CLUSTER_NAME

if TYPE_CHECKING:
    from cluster.frontend.contract import Call

# The release of Temporal whose API and behaviour this server follows. Tools read it as that (the web UI
# compares it as a plain semantic version), so our own version stands elsewhere: GetClusterInfo.version_info.
SERVER_VERSION = "1.32.0"
SUPPORTED_CLIENTS = {
    "temporal-go": "<2.0.0",
    "temporal-java": "<2.0.0",
    "temporal-php": "<2.0.0",
    "temporal-typescript": "<2.0.0",
    "temporal-python": "<2.0.0",
    "temporal-cli": "<2.0.0",
    "temporal-server": "<2.0.0",
    "temporal-ui": "<3.0.0",
}
CAPABILITIES = wire.GetSystemInfoResponse.Capabilities(
    signal_and_query_header=True,
    internal_error_differentiation=True,
    activity_failure_include_heartbeat=True,
    encoded_failure_attributes=True,
    upsert_memo=True,
    eager_workflow_start=True,
    sdk_metadata=True,
    count_group_by_execution_status=True,
    # Not yet, so not advertised: supports_schedules, build_id_based_versioning, nexus, server_scaled_*.
)
SYSTEM_INFO = wire.GetSystemInfoResponse(
    server_version=SERVER_VERSION, capabilities=CAPABILITIES
).SerializeToString()


@rpc(wire.GetSystemInfoRequest)
def get_system_info(_services: Services, _call: Call, _request: wire.GetSystemInfoRequest) -> bytes:
    """GetSystemInfo."""
    return SYSTEM_INFO


@rpc(wire.GetClusterInfoRequest)
def get_cluster_info(services: Services, _call: Call, _request: wire.GetClusterInfoRequest) -> bytes:
    """GetClusterInfo."""
    response = wire.GetClusterInfoResponse(
        supported_clients=SUPPORTED_CLIENTS,
        server_version=SERVER_VERSION,
        cluster_id=services.node.cluster_id,
        cluster_name=CLUSTER_NAME,
        history_shard_count=services.node.shard_count,
        persistence_store="holdfast",
        visibility_store="holdfast",
        initial_failover_version=1,
        failover_version_increment=10,
    )
    response.version_info.current.version = SERVER_VERSION
    response.version_info.current.notes = f"Holdfast {own_version()}"
    return response.SerializeToString()


@cache
def own_version() -> str:
    """The version of this distribution ("unknown" in a tree that was never installed)."""
    try:
        return metadata.version("holdfast")
    except metadata.PackageNotFoundError:
        return "unknown"


def announce(health: Health, serving: bool) -> None:
    """Tell health checks of the server as a whole and of each of its services."""
    state = Serving.SERVING if serving else Serving.NOT_SERVING
    for service in (WORKFLOW_SERVICE, OPERATOR_SERVICE, ""):
        health.set(service, state)
