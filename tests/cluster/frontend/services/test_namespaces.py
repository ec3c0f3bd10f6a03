"""Namespaces from registration to deletion, and the operator's calls about them."""

from __future__ import annotations

import asyncio

from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import command_type_pb2, common_pb2, namespace_pb2
from temporalio.api.errordetails.v1.message_pb2 import NamespaceAlreadyExistsFailure, NamespaceNotFoundFailure
from temporalio.api.namespace.v1.message_pb2 import NamespaceFilter, UpdateNamespaceInfo
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.deletion import Deletions
from history_store.engine import keys
from history_store.storage.memory import MemoryStorage
from tests.cluster.frontend.services.conftest import NOW, SECOND, Harness

DAY_S = 86_400
INT = common_pb2.INDEXED_VALUE_TYPE_INT
KEYWORD = common_pb2.INDEXED_VALUE_TYPE_KEYWORD


async def register(harness: Harness, name: str) -> None:
    request = wire.RegisterNamespaceRequest(
        namespace=name, description="d", owner_email="o@x", data={"a": "1"}
    )
    request.workflow_execution_retention_period.seconds = 2 * DAY_S
    await harness.call(request)


async def describe(
    harness: Harness, name: str = "", namespace_id: str = ""
) -> wire.DescribeNamespaceResponse:
    found = await harness.call(wire.DescribeNamespaceRequest(namespace=name, id=namespace_id))
    assert isinstance(found, wire.DescribeNamespaceResponse)
    return found


async def test_register_and_describe(harness: Harness) -> None:
    await register(harness, "n")
    found = await describe(harness, "n")
    info = found.namespace_info
    assert (info.name, info.description, info.owner_email, dict(info.data)) == ("n", "d", "o@x", {"a": "1"})
    assert info.state == namespace_pb2.NAMESPACE_STATE_REGISTERED
    assert found.config.workflow_execution_retention_ttl.seconds == 2 * DAY_S
    assert info.limits.blob_size_limit_error == harness.services.limits.blob_bytes_max
    assert info.limits.memo_size_limit_error == harness.services.limits.memo_bytes_max
    assert found.replication_config.active_cluster_name == "active"
    assert await describe(harness, namespace_id=info.id) == found


async def test_capabilities_are_those_that_are_there(harness: Harness) -> None:
    info = (await describe(harness, "default")).namespace_info
    advertised = {field.name for field, value in info.capabilities.ListFields() if value}
    assert advertised == {
        "eager_workflow_start", "sync_update", "async_update", "worker_heartbeats",
        "worker_poll_complete_on_shutdown",
    }  # fmt: skip
    assert not info.supports_schedules


async def test_unknown_and_taken_names(harness: Harness) -> None:
    error = await harness.refused(wire.DescribeNamespaceRequest(namespace="nope"))
    assert (error.code, error.message) == (5, "Namespace nope is not found.")
    assert error.detail(NamespaceNotFoundFailure).namespace == "nope"
    request = wire.RegisterNamespaceRequest(namespace="default")
    request.workflow_execution_retention_period.seconds = DAY_S
    error = await harness.refused(request)
    assert (error.code, error.message) == (6, 'Namespace "default" already exists')
    error.detail(NamespaceAlreadyExistsFailure)
    request = wire.RegisterNamespaceRequest(namespace="other")
    assert (await harness.refused(request)).message == "A valid retention period is not set on request."
    request.workflow_execution_retention_period.seconds = DAY_S
    request.active_cluster_name = "elsewhere"
    assert (await harness.refused(request)).message == "Invalid cluster name: elsewhere"


async def test_list_in_pages(harness: Harness) -> None:
    for number in range(4):
        harness.clock.advance(1)
        await register(harness, f"n{number}")
    names, token = [], b""
    for _ in range(3):
        page = await harness.call(wire.ListNamespacesRequest(page_size=2, next_page_token=token))
        names += [one.namespace_info.name for one in page.namespaces]
        token = page.next_page_token
    assert names == ["default", "n0", "n1", "n2", "n3"]
    assert token == b""
    assert (await harness.refused(wire.ListNamespacesRequest(next_page_token=b"\xff"))).code == 3


async def test_update_merges_what_is_set(harness: Harness) -> None:
    await register(harness, "n")
    request = wire.UpdateNamespaceRequest(
        namespace="n", update_info=UpdateNamespaceInfo(description="new", data={"b": "2"})
    )
    request.config.workflow_execution_retention_ttl.seconds = DAY_S
    updated = await harness.call(request)
    info = updated.namespace_info
    assert (info.description, info.owner_email, dict(info.data)) == ("new", "o@x", {"a": "1", "b": "2"})
    assert updated.config.workflow_execution_retention_ttl.seconds == DAY_S
    assert (await describe(harness, "n")).namespace_info == info


async def test_states(harness: Harness) -> None:
    await register(harness, "n")
    await harness.call(wire.DeprecateNamespaceRequest(namespace="n"))
    assert (await describe(harness, "n")).namespace_info.state == namespace_pb2.NAMESPACE_STATE_DEPRECATED
    for state in (namespace_pb2.NAMESPACE_STATE_REGISTERED, namespace_pb2.NAMESPACE_STATE_DELETED):
        request = wire.UpdateNamespaceRequest(namespace="n", update_info=UpdateNamespaceInfo(state=state))
        error = await harness.refused(request)
        assert error.code == 3
        assert error.message.startswith("Invalid namespace state update")


async def test_search_attributes(harness: Harness) -> None:
    add = operator.AddSearchAttributesRequest(namespace="default", search_attributes={"A": INT, "B": KEYWORD})
    await harness.call(add)
    await harness.call(add)  # again, the same
    listed = await harness.call(operator.ListSearchAttributesRequest(namespace="default"))
    assert dict(listed.custom_attributes) == {"A": INT, "B": KEYWORD}
    assert listed.system_attributes["RunId"] == KEYWORD
    assert listed.system_attributes["TemporalChangeVersion"] == common_pb2.INDEXED_VALUE_TYPE_KEYWORD_LIST
    add.search_attributes["A"] = KEYWORD
    error = await harness.refused(add)
    assert (error.code, error.message) == (6, "Search attribute A already exists with type Int.")
    remove = operator.RemoveSearchAttributesRequest(namespace="default", search_attributes=["A", "absent"])
    await harness.call(remove)
    listed = await harness.call(operator.ListSearchAttributesRequest(namespace="default"))
    assert dict(listed.custom_attributes) == {"B": KEYWORD}
    remove.search_attributes[:] = ["RunId"]
    error = await harness.refused(remove)
    assert error.message == "Unable to remove non-custom search attributes: RunId."
    error = await harness.refused(operator.ListSearchAttributesRequest(namespace="nope"))
    assert error.code == 5


async def test_clusters(harness: Harness) -> None:
    (only,) = (await harness.call(operator.ListClustersRequest())).clusters
    assert (only.cluster_name, only.history_shard_count) == ("active", 2)
    assert only.cluster_id == harness.node.cluster_id


# ---- deletion


def rows_of(harness: Harness, namespace_id: str) -> int:
    """Rows in which the namespace's raw id or name appears, over all shards."""
    raw, found = keys.raw_id(namespace_id), 0
    for shard in harness.node.shards:
        for kind in (keys.CURRENT, keys.RUN, keys.ITEM, keys.HISTORY, keys.TASK, keys.WAKE, keys.ACTION):
            rows = shard.rows.scan(kind, keys.prefix_end(kind))
            found += sum(raw in key or namespace_id.encode() in value for key, value in rows)
    return found


async def swept(harness: Harness) -> None:
    deletions = harness.services.part(Deletions)
    async with asyncio.timeout(60):
        while deletions.pending:
            await asyncio.sleep(0.005)


async def fill(harness: Harness, name: str) -> None:
    """Runs in every state: waiting, started, with an activity, closed, with a timer."""
    for number in range(6):
        await harness.start(f"w{number}", namespace=name)
    for number in range(3):
        task = await harness.poll(namespace=name)
        command = Command(command_type=command_type_pb2.COMMAND_TYPE_START_TIMER)
        command.start_timer_command_attributes.timer_id = "t"
        command.start_timer_command_attributes.start_to_fire_timeout.seconds = 1000
        if number == 1:
            command = Command(command_type=command_type_pb2.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
            attributes = command.schedule_activity_task_command_attributes
            attributes.activity_id = "1"
            attributes.activity_type.name = "A"
            attributes.task_queue.name = "q"
            attributes.start_to_close_timeout.seconds = 1000
        elif number == 2:
            command = Command(command_type=command_type_pb2.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
            command.complete_workflow_execution_command_attributes.SetInParent()
        await harness.complete(task.task_token, command, namespace=name)


async def test_delete_takes_everything_and_nothing_else(harness: Harness) -> None:
    await register(harness, "n")
    await fill(harness, "n")
    await fill(harness, "default")
    namespace_id = harness.node.meta.get("n").id
    kept_id = harness.node.meta.get("default").id
    kept = rows_of(harness, kept_id)
    assert rows_of(harness, namespace_id) == kept
    deleted = await harness.call(operator.DeleteNamespaceRequest(namespace="n"))
    assert deleted.deleted_namespace == f"n-deleted-{namespace_id[:5]}"
    shown = await describe(harness, deleted.deleted_namespace)
    assert shown.namespace_info.state == namespace_pb2.NAMESPACE_STATE_DELETED
    listed = await harness.call(
        wire.ListNamespacesRequest(namespace_filter=NamespaceFilter(include_deleted=True))
    )
    assert len(listed.namespaces) == 2
    assert len((await harness.call(wire.ListNamespacesRequest())).namespaces) == 1
    error = await harness.refused(wire.ListWorkflowExecutionsRequest(namespace="n"))
    assert (error.code, error.message) == (5, "Namespace n is not found.")
    await swept(harness)
    assert rows_of(harness, namespace_id) == 0
    assert rows_of(harness, kept_id) == kept
    assert namespace_id not in harness.node.meta.by_id
    assert (await harness.refused(wire.DescribeNamespaceRequest(id=namespace_id))).code == 5
    listed = await harness.call(wire.ListWorkflowExecutionsRequest(namespace="default"))
    assert len(listed.executions) == 6
    connection = harness.storage.visibility_connection()
    (records,) = connection.execute("SELECT count(*) FROM visibility_executions").fetchone()
    connection.close()
    assert records == 6


async def test_a_name_is_free_again_at_once(harness: Harness) -> None:
    await register(harness, "n")
    await harness.start("w", namespace="n")
    await harness.call(operator.DeleteNamespaceRequest(namespace_id=harness.node.meta.get("n").id))
    await register(harness, "n")
    execution = WorkflowExecution(workflow_id="w")
    request = wire.DescribeWorkflowExecutionRequest(namespace="n", execution=execution)
    assert (await harness.refused(request)).message == "workflow not found for ID: w"
    await swept(harness)
    await describe(harness, "n")


async def test_a_restart_goes_on_with_the_deletion() -> None:
    storage = MemoryStorage()
    harness = Harness(storage)
    await register(harness, "n")
    await fill(harness, "n")
    namespace_id = harness.node.meta.get("n").id
    await harness.call(operator.DeleteNamespaceRequest(namespace="n"))
    for callback in harness.services.on_close:  # the sweep has not had a turn yet
        callback()
    await harness.turn()
    before = rows_of(harness, namespace_id)
    assert before > 0
    again = Harness(storage)
    assert rows_of(again, namespace_id) == before
    again.services.part(Deletions).resume()
    await swept(again)
    assert rows_of(again, namespace_id) == 0
    assert namespace_id not in again.node.meta.by_id
    await again.close()


async def test_the_record_is_kept_for_the_delay(harness: Harness) -> None:
    await register(harness, "n")
    namespace_id = harness.node.meta.get("n").id
    request = operator.DeleteNamespaceRequest(namespace="n")
    request.namespace_delete_delay.FromNanoseconds(SECOND // 10)
    await harness.call(request)
    assert harness.node.meta.by_id[namespace_id].forget_after == NOW + SECOND // 10
    await asyncio.sleep(0.02)
    assert namespace_id in harness.node.meta.by_id
    harness.clock.advance(0.1)
    await swept(harness)
    assert namespace_id not in harness.node.meta.by_id


async def test_delete_what_is_not_there(harness: Harness) -> None:
    for request in (
        operator.DeleteNamespaceRequest(namespace="nope"),
        operator.DeleteNamespaceRequest(namespace_id="00000000-0000-7000-8000-000000000000"),
    ):
        assert (await harness.refused(request)).code == 5


async def test_a_parent_elsewhere_hears_that_its_child_ended(harness: Harness) -> None:
    await register(harness, "n")
    await harness.start("parent")
    task = await harness.poll()
    command = Command(command_type=command_type_pb2.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    attributes = command.start_child_workflow_execution_command_attributes
    attributes.namespace = "n"
    attributes.workflow_id = "child"
    attributes.workflow_type.name = "C"
    attributes.task_queue.name = "q"
    await harness.complete(task.task_token, command)
    await harness.poll(namespace="n")
    assert (await harness.describe("parent")).pending_children
    await harness.call(operator.DeleteNamespaceRequest(namespace="n"))
    await swept(harness)
    assert not (await harness.describe("parent")).pending_children
