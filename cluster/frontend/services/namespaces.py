"""Namespaces: register, describe, list, update, deprecate.

What is advertised is what the SDKs go by: a capability is set only where it is there, and limits are those
that are enforced. What regions have to do with a namespace is in global_namespaces.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from temporalio.api.enums.v1 import namespace_pb2
from temporalio.api.errordetails.v1.message_pb2 import NamespaceAlreadyExistsFailure
from temporalio.api.namespace.v1 import message_pb2 as shown
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services import global_namespaces
from cluster.frontend.services.base import Services, answering, rpc
from cluster.hosting.groups.group import nobody
from cluster.hosting.shards.meta import DELETED, DEPRECATED, REGISTERED, Namespace, not_found
from history_store.engine.durations import from_ns, to_ns
from history_store.engine.errors import Code, ServiceError, invalid

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from cluster.frontend.contract import Call

ARCHIVAL_DISABLED = namespace_pb2.ARCHIVAL_STATE_DISABLED
PAGE_DEFAULT = 100
PAGE_MAX = 1_000  # a description takes about 300 bytes


@rpc(wire.RegisterNamespaceRequest)
def register(
    services: Services, call: Call, request: wire.RegisterNamespaceRequest
) -> Coroutine[Any, Any, bytes] | None:
    """RegisterNamespace."""
    alone = services.node.failover is None
    if request.is_global_namespace and alone:
        raise invalid("Cannot register global namespace when not enabled")
    clusters = [cluster.cluster_name for cluster in request.clusters]
    active, is_global = request.active_cluster_name, request.is_global_namespace
    global_namespaces.check_clusters(services, active, clusters, is_global=is_global)
    if request.namespace in services.meta.by_name:
        raise ServiceError(
            Code.ALREADY_EXISTS,
            f'Namespace "{request.namespace}" already exists',
            NamespaceAlreadyExistsFailure(),
        )
    made = Namespace(
        id=services.node.new_id(),
        name=request.namespace,
        state=REGISTERED,
        created=services.node.clock.now_ns(),
        retention=to_ns(request.workflow_execution_retention_period),
        description=request.description,
        owner_email=request.owner_email,
        data=dict(request.data),
    )
    if not alone:
        return global_namespaces.register(services, request, made)
    services.meta.create(made, answering(call, b""))
    return None


@rpc(wire.DescribeNamespaceRequest)
def describe_namespace(services: Services, call: Call, request: wire.DescribeNamespaceRequest) -> None:
    """DescribeNamespace, by name or by id; one that is being deleted is still shown."""
    found = find(services, request.namespace, request.id)
    body = description(services, found).SerializeToString()
    services.meta.group.when_committed(answering(call, body))


@rpc(wire.ListNamespacesRequest)
def list_namespaces(services: Services, call: Call, request: wire.ListNamespacesRequest) -> None:
    """ListNamespaces, by id (so: by age). The token of a page is the last id of the one before."""
    deleted_too = request.namespace_filter.include_deleted
    after = _page_token(request.next_page_token)
    size = min(request.page_size or PAGE_DEFAULT, PAGE_MAX)
    ids = sorted(
        found.id
        for found in services.meta.by_id.values()
        if found.id > after and (deleted_too or found.state != DELETED)
    )
    response = wire.ListNamespacesResponse()
    for namespace_id in ids[:size]:
        response.namespaces.append(description(services, services.meta.by_id[namespace_id]))
    if len(ids) > size:
        response.next_page_token = ids[size - 1].encode()
    services.meta.group.when_committed(answering(call, response.SerializeToString()))


@rpc(wire.UpdateNamespaceRequest)
def update_namespace(
    services: Services, call: Call, request: wire.UpdateNamespaceRequest
) -> Coroutine[Any, Any, bytes] | None:
    """UpdateNamespace: what is set changes, data is merged."""
    old = services.meta.get(request.namespace)
    if request.promote_namespace:
        raise invalid(
            "global namespace is not enabled on this cluster, "
            f"cannot update global namespace or promote local namespace: {old.name}"
        )
    if request.delete_bad_binary:
        raise invalid(f"Bad binary checksum {request.delete_bad_binary} doesn't exists.")
    replication = request.replication_config
    clusters = [cluster.cluster_name for cluster in replication.clusters]
    global_namespaces.check_clusters(services, replication.active_cluster_name, clusters, is_global=True)
    if global_namespaces.concerns_regions(services, request):
        return _update_regions(services, request, old)
    body = _update(services, request, old)
    services.meta.group.when_committed(answering(call, body))
    return None


async def _update_regions(services: Services, request: wire.UpdateNamespaceRequest, old: Namespace) -> bytes:
    await global_namespaces.update(services, request, old)
    body = _update(services, request, services.meta.get(request.namespace))
    await global_namespaces.committed(services)
    return body


def _update(services: Services, request: wire.UpdateNamespaceRequest, old: Namespace) -> bytes:
    new = _updated(old, request)
    if new != old:
        new.config_version += 1
        global_namespaces.put(services, new, nobody)  # the answer waits for the commit by itself
    response = wire.UpdateNamespaceResponse()
    _describe(services, new, response)
    return response.SerializeToString()


@rpc(wire.DeprecateNamespaceRequest)
def deprecate(services: Services, call: Call, request: wire.DeprecateNamespaceRequest) -> None:
    """DeprecateNamespace: runs go on, none may be started."""
    old = services.meta.get(request.namespace)
    changed = msgspec.structs.replace(old, state=DEPRECATED, config_version=old.config_version + 1)
    global_namespaces.put(services, changed, answering(call, b""))


def find(services: Services, name: str, namespace_id: str) -> Namespace:
    """The namespace by name or id, also one that is being deleted."""
    by_id = services.meta.by_id
    if namespace_id:
        found = by_id.get(namespace_id)
    else:
        found = services.meta.by_name.get(name)
        if found is None:
            deleted = (gone for gone in by_id.values() if gone.state == DELETED)
            found = next((gone for gone in deleted if gone.name == name), None)
    if found is None:
        raise not_found(name or namespace_id)
    return found


def description(services: Services, namespace: Namespace) -> wire.DescribeNamespaceResponse:
    """What DescribeNamespace says of it."""
    response = wire.DescribeNamespaceResponse()
    _describe(services, namespace, response)
    return response


def _describe(services: Services, namespace: Namespace, response: global_namespaces.Description) -> None:
    info = response.namespace_info
    info.id = namespace.id
    info.name = namespace.name
    info.state = namespace.state  # type: ignore[assignment]
    info.description = namespace.description
    info.owner_email = namespace.owner_email
    info.data.update(namespace.data)
    info.capabilities.CopyFrom(CAPABILITIES)
    info.limits.blob_size_limit_error = services.limits.blob_bytes_max
    info.limits.memo_size_limit_error = services.limits.memo_bytes_max
    # workflow_task_completion_size_limit_error stays 0, "no explicit limit": only that of a message counts.
    from_ns(namespace.retention, response.config.workflow_execution_retention_ttl)
    response.config.history_archival_state = ARCHIVAL_DISABLED
    response.config.visibility_archival_state = ARCHIVAL_DISABLED
    response.config.bad_binaries.SetInParent()
    global_namespaces.describe(services, namespace, response)


CAPABILITIES = shown.NamespaceInfo.Capabilities(
    eager_workflow_start=True,
    sync_update=True,
    async_update=True,
    worker_heartbeats=True,
    worker_poll_complete_on_shutdown=True,
    # Not yet, so not advertised: reported_problems_search_attribute, workflow_pause, standalone_*,
    # poller_autoscaling*, worker_commands, workflow_update_callbacks, workflow_task_completion_pagination.
)


def _updated(old: Namespace, request: wire.UpdateNamespaceRequest) -> Namespace:
    new = msgspec.structs.replace(old)
    if request.HasField("update_info"):
        info = request.update_info
        new.description = info.description or old.description
        new.owner_email = info.owner_email or old.owner_email
        if info.data:
            new.data = {**old.data, **info.data}
        if info.state not in (0, old.state):
            new.state = _next_state(old.state, info.state)
    if request.HasField("config") and request.config.HasField("workflow_execution_retention_ttl"):
        new.retention = to_ns(request.config.workflow_execution_retention_ttl)
    return new


def _next_state(old: int, new: int) -> int:
    """Temporal lets an update set DELETED and leaves the runs lying; here only DeleteNamespace deletes."""
    if new == DELETED:
        raise invalid("Invalid namespace state update: a namespace is deleted by DeleteNamespace.")
    if (old, new) != (REGISTERED, DEPRECATED):
        raise invalid("Invalid namespace state update.")
    return new


def _page_token(token: bytes) -> str:
    try:
        return token.decode("ascii")
    except UnicodeDecodeError:
        raise invalid("Invalid NextPageToken.") from None
