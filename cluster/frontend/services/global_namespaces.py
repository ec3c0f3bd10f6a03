"""What regions have to do with a namespace: which of them hold it, where it is active, and its failovers.

Without other regions there is one cluster, "active", as in Temporal's dev server. With others a cluster is a
region, by its name. A namespace begins where it is registered, in all the regions that are to hold it, and is
changed where it is active; a region that cannot be asked whether it can hold it stops a registration, since
a name has to mean one namespace.

UpdateNamespace with another active cluster is a graceful failover, and is answered when that is decided. It
does nothing else: one that took some settings along and not others could not be told from one that did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import namespace_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.groups.group import NotLeading
from cluster.membership import META_GROUP
from history_store.engine.errors import failed_precondition, invalid

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from cluster.frontend.services.base import Services
    from cluster.hosting.groups.group import Waiter
    from cluster.hosting.shards.meta import Namespace
    from history_store.engine.errors import ServiceError

CLUSTER_NAME = "active"
NORMAL = namespace_pb2.REPLICATION_STATE_NORMAL
HANDOVER = namespace_pb2.REPLICATION_STATE_HANDOVER
HISTORY_MAX = 10  # failovers that are described, as in Temporal

Description = wire.DescribeNamespaceResponse | wire.UpdateNamespaceResponse


def check_clusters(services: Services, active: str, clusters: Iterable[str], *, is_global: bool) -> list[int]:
    """The indexes of clusters that a request names, without the own one's order lost. INVALID_ARGUMENT."""
    failover = services.node.failover
    names = list(dict.fromkeys(clusters))
    if failover is None:
        for name in (active, *names):
            if name not in ("", CLUSTER_NAME):
                raise invalid(f"Invalid cluster name: {name}")
        if len(names) > 1:
            raise invalid("Invalid local namespace clusters")
        return []
    indexes = [failover.index_of(name) for name in names]
    for name, index in zip((*names, active), (*indexes, failover.index_of(active)), strict=True):
        if not index and name:
            raise invalid(f"Invalid cluster name: {name}")
    if len(names) > 1 and not is_global:
        raise invalid("Invalid local namespace clusters")
    return indexes


async def register(services: Services, request: wire.RegisterNamespaceRequest, made: Namespace) -> bytes:
    """Register a namespace that begins here, in all the regions that are to hold it."""
    failover = services.node.failover
    assert failover is not None, "there are other regions"
    names = [cluster.cluster_name for cluster in request.clusters]
    regions = check_clusters(
        services, request.active_cluster_name, names, is_global=request.is_global_namespace
    ) or [failover.region]
    own = failover.name_of(failover.region)
    active = request.active_cluster_name or own
    if active != own:
        raise invalid(f"A namespace begins in the region where it is registered: register it in {active}.")
    if failover.region not in regions:
        raise invalid("Active cluster is not contained in all clusters.")
    _lead(services)
    for region in regions:
        if region != failover.region:
            assert failover.elsewhere is not None, "there are other regions"
            await failover.elsewhere.may_hold(region, made.id, made.name)
    _lead(services)
    future, waiter = _waiting(services)
    failover.register(made, regions, failover.creation(made.id, now_ns=made.created), waiter)
    await future
    return b""


async def update(services: Services, request: wire.UpdateNamespaceRequest, old: Namespace) -> None:
    """Do what an update says about regions: one failover, or other regions that hold the namespace."""
    failover = services.node.failover
    assert failover is not None, "there are other regions"
    assert failover.elsewhere is not None, "there are other regions"
    replication = request.replication_config
    names = [cluster.cluster_name for cluster in replication.clusters]
    check_clusters(services, replication.active_cluster_name, names, is_global=True)
    held = [failover.name_of(region) for region in failover.regions_of(old.id)]
    active = failover.name_of(failover.active_region(old.id))
    to = replication.active_cluster_name or active
    moves = bool(names) and set(names) != set(held)
    if to != active:
        if moves or request.HasField("update_info") or request.HasField("config"):
            raise invalid("Cannot set active cluster to current cluster when other parameters are set.")
        await failover.elsewhere.make_active(old.name, to)
    elif moves:
        if active not in names:
            raise invalid("Active cluster is not contained in all clusters.")
        await failover.elsewhere.change_regions(old.name, names)


def concerns_regions(services: Services, request: wire.UpdateNamespaceRequest) -> bool:
    """Whether an update says something about regions."""
    replication = request.replication_config
    return services.node.failover is not None and bool(
        replication.clusters or replication.active_cluster_name
    )


def check_delete(services: Services, namespace: Namespace) -> None:
    """A namespace that other regions hold is not deleted here alone. FAILED_PRECONDITION."""
    failover = services.node.failover
    if failover is None or namespace.id not in failover.shared:
        return
    failover.check_edit(namespace.id)
    others = [failover.name_of(r) for r in failover.regions_of(namespace.id) if r != failover.region]
    raise failed_precondition(
        f"Namespace {namespace.name} is held by {', '.join(others)} as well: take it from them first "
        f"(`holdfast namespace remove-region {namespace.name} {others[0]}`)."
    )


def put(services: Services, namespace: Namespace, waiter: Waiter) -> None:
    """Write a changed namespace, for all regions that hold it. NotActive where it is not active."""
    failover = services.node.failover
    if failover is None:
        services.meta.put(namespace, waiter)
    else:
        failover.edit(namespace, waiter)


def describe(services: Services, namespace: Namespace, response: Description) -> None:
    """What a description says of regions."""
    failover = services.node.failover
    replication = response.replication_config
    replication.state = NORMAL
    if failover is None:
        response.failover_version = namespace.version
        replication.active_cluster_name = CLUSTER_NAME
        replication.clusters.add(cluster_name=CLUSTER_NAME)
        return
    regions = failover.regions_of(namespace.id)
    response.is_global_namespace = len(regions) > 1
    response.failover_version = failover.version_of(namespace.id) or namespace.version
    replication.active_cluster_name = failover.name_of(failover.active_region(namespace.id))
    for region in regions:
        replication.clusters.add(cluster_name=failover.name_of(region))
    if failover.is_handed_over(namespace.id):
        replication.state = HANDOVER
    ledger = failover.committed.ledgers.get(namespace.id)
    if isinstance(response, wire.DescribeNamespaceResponse) and ledger is not None:
        for row in ledger.history()[-HISTORY_MAX:]:
            shown = response.failover_history.add(failover_version=row.version)
            shown.failover_time.FromNanoseconds(row.hlc)


async def committed(services: Services) -> None:
    """Wait until all that was proposed is committed."""
    future, waiter = _waiting(services)
    services.meta.group.when_committed(waiter)
    await future


def _lead(services: Services) -> None:
    """Go on only where the meta group is led. NotLeading."""
    group = services.meta.group
    if not group.leading:
        raise NotLeading(group.raft.leader, META_GROUP)


def _waiting(services: Services) -> tuple[asyncio.Future[None], Waiter]:
    """A future for a commit, and who fulfils it."""
    future: asyncio.Future[None] = services.loop.create_future()

    def heard(error: ServiceError | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    return future, heard
