"""OperatorService: search attributes of a namespace, deleting a namespace, the clusters there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from temporalio.api.operatorservice.v1 import request_response_pb2 as wire

from cluster.frontend.services import global_namespaces
from cluster.frontend.services.base import OPERATOR_SERVICE, Services, answering, rpc
from cluster.frontend.services.deletion import Deletions
from cluster.frontend.services.global_namespaces import CLUSTER_NAME
from cluster.hosting.shards.meta import DELETED, Namespace, not_found
from history_store.engine.durations import to_ns
from history_store.engine.errors import Code, ServiceError, invalid
from history_store.visibility import attributes

if TYPE_CHECKING:
    from cluster.frontend.contract import Call

# Temporal's SQL stores have a few columns a type; here an attribute costs some bytes of the namespace's
# record, which is rewritten as a whole.
ATTRIBUTES_MAX = 500
SUFFIX_CHARACTERS = 5  # of the id, behind the name of a deleted namespace


@rpc(wire.AddSearchAttributesRequest, OPERATOR_SERVICE)
def add_search_attributes(services: Services, call: Call, request: wire.AddSearchAttributesRequest) -> None:
    """AddSearchAttributes. One that exists with the same type is passed over, as in Temporal."""
    namespace = services.namespace(request.namespace)
    known = namespace.search_attributes
    new = dict(known)
    for name, value_type in request.search_attributes.items():
        old = known.get(name)
        if old is not None and old != value_type:
            # Temporal keeps the old type without a word, and every later write of the new one fails.
            shown = attributes.TYPE_NAMES[old]
            raise ServiceError(
                Code.ALREADY_EXISTS, f"Search attribute {name} already exists with type {shown}."
            )
        new[name] = value_type
    if len(new) > ATTRIBUTES_MAX:
        raise invalid(
            f"Unable to create search attributes: cannot have more than {ATTRIBUTES_MAX} in a namespace."
        )
    _put_attributes(services, call, namespace, new)


@rpc(wire.RemoveSearchAttributesRequest, OPERATOR_SERVICE)
def remove_search_attributes(
    services: Services, call: Call, request: wire.RemoveSearchAttributesRequest
) -> None:
    """RemoveSearchAttributes. One that does not exist is passed over. What runs carry stays with them."""
    namespace = services.namespace(request.namespace)
    gone = set(request.search_attributes)
    left = {name: value_type for name, value_type in namespace.search_attributes.items() if name not in gone}
    _put_attributes(services, call, namespace, left)


def _put_attributes(services: Services, call: Call, old: Namespace, found: dict[str, int]) -> None:
    if found == old.search_attributes:
        services.meta.group.when_committed(answering(call, b""))
        return
    new = msgspec.structs.replace(old, search_attributes=found, config_version=old.config_version + 1)
    global_namespaces.put(services, new, answering(call, b""))


@rpc(wire.ListSearchAttributesRequest, OPERATOR_SERVICE)
def list_search_attributes(services: Services, call: Call, request: wire.ListSearchAttributesRequest) -> None:
    """ListSearchAttributes. There is no storage schema to show: an attribute has no column."""
    namespace = services.namespace(request.namespace)
    response = wire.ListSearchAttributesResponse()
    response.custom_attributes.update(namespace.search_attributes)  # type: ignore[arg-type]
    response.system_attributes.update(attributes.SYSTEM)  # type: ignore[arg-type]
    response.system_attributes.update(attributes.PREDEFINED)  # type: ignore[arg-type]
    services.meta.group.when_committed(answering(call, response.SerializeToString()))


@rpc(wire.DeleteNamespaceRequest, OPERATOR_SERVICE)
def delete_namespace(services: Services, call: Call, request: wire.DeleteNamespaceRequest) -> None:
    """DeleteNamespace: unreachable with the answer, its runs deleted in the background afterwards."""
    meta = services.meta
    name_or_id = request.namespace or request.namespace_id
    old = meta.by_name.get(name_or_id) if request.namespace else meta.by_id.get(name_or_id)
    if old is None or old.state == DELETED:
        raise not_found(name_or_id)
    global_namespaces.check_delete(services, old)
    name = _deleted_name(services, old)
    keep = to_ns(request.namespace_delete_delay)
    gone = msgspec.structs.replace(
        old,
        name=name,
        state=DELETED,
        config_version=old.config_version + 1,
        forget_after=services.node.clock.now_ns() + keep if keep else 0,
    )
    reply = answering(call, wire.DeleteNamespaceResponse(deleted_namespace=name).SerializeToString())

    def committed(error: ServiceError | None) -> None:
        reply(error)
        if error is None:
            services.part(Deletions).begin(gone)

    meta.put(gone, committed)


def _deleted_name(services: Services, namespace: Namespace) -> str:
    """Name and a piece of the id, longer where another namespace has that name."""
    taken = {other.name for other in services.meta.by_id.values()}
    for length in range(SUFFIX_CHARACTERS, len(namespace.id)):
        name = f"{namespace.name}-deleted-{namespace.id[:length]}"
        if name not in taken:
            return name
    return f"{namespace.name}-deleted-{namespace.id}"


@rpc(wire.ListClustersRequest, OPERATOR_SERVICE)
def list_clusters(services: Services, _call: Call, _request: wire.ListClustersRequest) -> bytes:
    """ListClusters: this one."""
    response = wire.ListClustersResponse()
    response.clusters.add(
        cluster_name=CLUSTER_NAME,
        cluster_id=services.node.cluster_id,
        initial_failover_version=1,
        history_shard_count=services.node.shard_count,
        is_connection_enabled=True,
    )
    return response.SerializeToString()
