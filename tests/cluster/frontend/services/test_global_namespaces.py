"""Namespaces of a region that has others: which of them hold one, where it is active, who may change it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from temporalio.api.enums.v1 import common_pb2, namespace_pb2
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.groups.group import nobody
from cluster.hosting.shards.failover_meta import FailoverMeta
from history_store.engine.errors import Code, failed_precondition
from replication.failover.commands import Begin, Learn, MetaCommand
from replication.failover.records import Limits, Switch
from tests.cluster.frontend.services.conftest import NOW, Harness

KEYWORD = common_pb2.INDEXED_VALUE_TYPE_KEYWORD
NAMES = {1: "a", 2: "b", 3: "c"}


class Others:
    """What other regions would answer."""

    def __init__(self) -> None:
        self.asked: list[tuple[object, ...]] = []
        self.taken: set[int] = set()

    async def may_hold(self, region: int, namespace_id: str, name: str) -> None:
        self.asked.append((region, name))
        if region in self.taken:
            raise failed_precondition(f"region {NAMES[region]} has another namespace with the name {name}")

    async def change_regions(self, name: str, regions: Sequence[str]) -> None:
        self.asked.append((name, *regions))

    async def make_active(self, name: str, region: str) -> None:
        self.asked.append((name, region))


class Region:
    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.others = Others()
        index = {name: number for number, name in NAMES.items()}
        self.meta = FailoverMeta(harness.node.meta, 1, NAMES.__getitem__, lambda name: index.get(name, 0))
        self.meta.elsewhere = self.others
        harness.node.failover = self.meta

    async def propose(self, command: MetaCommand) -> None:
        """And wait for the commit: nothing is described before."""
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        assert self.meta.propose(command, future.set_result).accepted
        assert await future is None

    def request(self, *clusters: str, active: str = "") -> wire.RegisterNamespaceRequest:
        request = wire.RegisterNamespaceRequest(
            namespace="orders", is_global_namespace=len(clusters) > 1, active_cluster_name=active
        )
        request.workflow_execution_retention_period.seconds = 86_400
        for name in clusters:
            request.clusters.add(cluster_name=name)
        return request

    async def register(self, *clusters: str) -> str:
        """Its id."""
        await self.harness.call(self.request(*clusters))
        found = await self.describe()
        return found.namespace_info.id

    async def describe(self) -> wire.DescribeNamespaceResponse:
        found = await self.harness.call(wire.DescribeNamespaceRequest(namespace="orders"))
        assert isinstance(found, wire.DescribeNamespaceResponse)
        return found

    def update(self, **info: str) -> wire.UpdateNamespaceRequest:
        request = wire.UpdateNamespaceRequest(namespace="orders")
        if info:
            request.update_info.description = info["description"]
        return request


@pytest.fixture
def region(harness: Harness) -> Region:
    return Region(harness)


async def test_a_namespace_is_described_with_its_regions(region: Region) -> None:
    namespace_id = await region.register("a", "b")
    assert region.others.asked == [(2, "orders")]
    found = await region.describe()
    assert found.is_global_namespace
    assert found.failover_version == 1
    assert found.replication_config.active_cluster_name == "a"
    assert [one.cluster_name for one in found.replication_config.clusters] == ["a", "b"]
    assert found.replication_config.state == namespace_pb2.REPLICATION_STATE_NORMAL
    (row,) = found.failover_history
    assert (row.failover_version, row.failover_time.ToNanoseconds()) == (1, NOW)
    await region.propose(Learn({namespace_id: 102}))
    found = await region.describe()
    assert (found.failover_version, found.replication_config.active_cluster_name) == (102, "b")
    listed = await region.harness.call(wire.ListNamespacesRequest())
    assert found in listed.namespaces


async def test_one_without_clusters_is_the_regions_own_and_has_a_version(region: Region) -> None:
    namespace_id = await region.register()
    found = await region.describe()
    assert not found.is_global_namespace
    assert found.failover_version == 1
    assert [one.cluster_name for one in found.replication_config.clusters] == ["a"]
    assert namespace_id not in region.meta.shared


async def test_one_that_was_there_before_the_others_has_none(region: Region) -> None:
    found = await region.harness.call(wire.DescribeNamespaceRequest(namespace="default"))
    assert found.failover_version == 0
    assert found.replication_config.active_cluster_name == "a"


async def test_a_handover_is_seen(region: Region) -> None:
    namespace_id = await region.register("a", "b")
    begin = Begin(1, 2, (Switch(namespace_id, 1, 2),), (1,), "r", "", "", Limits(), NOW)
    await region.propose(begin)
    found = await region.describe()
    assert found.replication_config.state == namespace_pb2.REPLICATION_STATE_HANDOVER
    refused = await region.harness.refused(region.update(description="new"))
    assert refused.code == Code.UNAVAILABLE
    assert "being handed over" in str(refused)


@pytest.mark.parametrize(
    ("clusters", "active", "why"),
    [
        (("a", "x"), "", "Invalid cluster name: x"),
        (("a", "b"), "x", "Invalid cluster name: x"),
        (("a", "b"), "b", "register it in b"),
        (("b", "c"), "", "not contained"),
    ],
)
async def test_a_registration_that_cannot_be(
    region: Region, clusters: tuple[str, ...], active: str, why: str
) -> None:
    refused = await region.harness.refused(region.request(*clusters, active=active))
    assert refused.code == Code.INVALID_ARGUMENT
    assert why in str(refused)
    assert "orders" not in region.harness.node.meta.by_name


async def test_a_name_that_another_region_has_is_not_registered(region: Region) -> None:
    region.others.taken.add(3)
    refused = await region.harness.refused(region.request("a", "b", "c"))
    assert refused.code == Code.FAILED_PRECONDITION
    assert "orders" not in region.harness.node.meta.by_name
    local = region.request("a", "b")
    local.is_global_namespace = False
    assert (await region.harness.refused(local)).code == Code.INVALID_ARGUMENT


async def test_an_edit_is_one_of_the_register(region: Region) -> None:
    namespace_id = await region.register("a", "b")
    changed = await region.harness.call(region.update(description="new"))
    assert changed.namespace_info.description == "new"
    record = region.meta.record(namespace_id)
    assert record is not None
    assert (record.config.failover_version, record.config.config_version) == (1, 2)
    attributes = operator.AddSearchAttributesRequest(namespace="orders")
    attributes.search_attributes["Color"] = KEYWORD
    await region.harness.call(attributes)
    after = region.meta.record(namespace_id)
    assert after is not None
    assert after.config.config_version == 3
    assert b"Color" in after.config.blob


async def test_another_regions_namespace_is_not_changed_here(region: Region) -> None:
    namespace_id = await region.register("a", "b")
    await region.propose(Learn({namespace_id: 2}))
    attributes = operator.AddSearchAttributesRequest(namespace="orders")
    attributes.search_attributes["Color"] = KEYWORD
    for request in (
        region.update(description="new"),
        attributes,
        wire.DeprecateNamespaceRequest(namespace="orders"),
        operator.DeleteNamespaceRequest(namespace="orders"),
    ):
        refused = await region.harness.refused(request)
        assert refused.code == Code.UNAVAILABLE
        assert "in region b" in str(refused)
    assert (await region.describe()).namespace_info.description == ""


async def test_one_that_others_hold_is_not_deleted(region: Region) -> None:
    await region.register("a", "b")
    refused = await region.harness.refused(operator.DeleteNamespaceRequest(namespace="orders"))
    assert refused.code == Code.FAILED_PRECONDITION
    assert "remove-region orders b" in str(refused)


async def test_an_update_of_regions_goes_where_they_are_asked(region: Region) -> None:
    await region.register("a", "b")
    region.others.asked.clear()
    request = region.update()
    for name in ("a", "c"):
        request.replication_config.clusters.add(cluster_name=name)
    await region.harness.call(request)
    same = region.update()
    same.replication_config.active_cluster_name = "a"
    found = await region.harness.call(same)  # nothing is to be done
    assert found.failover_version == 1
    move = region.update()
    move.replication_config.active_cluster_name = "b"
    await region.harness.call(move)
    assert region.others.asked == [("orders", "a", "c"), ("orders", "b")]
    move.update_info.description = "and more"
    assert (await region.harness.refused(move)).code == Code.INVALID_ARGUMENT


async def test_what_cannot_be_written_was_not_changed(region: Region) -> None:
    """The group takes nothing: what this leader thinks it proposed is gone as well."""
    namespace_id = await region.register("a", "b")
    group = region.harness.node.meta.group
    group.committer.refusal = failed_precondition("full")
    await region.harness.refused(region.update(description="new"))
    with pytest.raises(Exception, match="full"):
        region.meta.propose(Learn({namespace_id: 2}), nobody)
    group.committer.refusal = None
    assert region.meta.ahead.truth(namespace_id) == 1
    record = region.meta.ahead.namespaces[namespace_id]
    assert record.config.config_version == 1
