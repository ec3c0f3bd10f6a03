"""List and Count: read-your-writes, paging, groups, the older calls, and their refusals."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import command_type_pb2, common_pb2, workflow_pb2
from temporalio.api.operatorservice.v1 import request_response_pb2 as operator
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine.errors import Code
from history_store.storage.contract import Round, StorageFull
from history_store.storage.memory import MemoryStorage
from tests.cluster.frontend.services.conftest import NOW, SECOND, Harness

if TYPE_CHECKING:
    from history_store.visibility.record import VisibilityOp

COMPLETED = workflow_pb2.WORKFLOW_EXECUTION_STATUS_COMPLETED
TERMINATED = workflow_pb2.WORKFLOW_EXECUTION_STATUS_TERMINATED
RUNNING = workflow_pb2.WORKFLOW_EXECUTION_STATUS_RUNNING


def listing(query: str = "", **fields: object) -> wire.ListWorkflowExecutionsRequest:
    return wire.ListWorkflowExecutionsRequest(namespace="default", query=query, **fields)  # type: ignore[arg-type]


async def ids(harness: Harness, query: str = "") -> list[str]:
    response = await harness.call(listing(query))
    return [info.execution.workflow_id for info in response.executions]


async def terminate(harness: Harness, workflow_id: str) -> None:
    execution = WorkflowExecution(workflow_id=workflow_id)
    await harness.call(
        wire.TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=execution)
    )


async def test_what_was_answered_is_listed_at_once(harness: Harness) -> None:
    for number in range(20):
        await harness.start(f"w{number}")
        assert f"w{number}" in await ids(harness)


async def test_fields_of_a_closed_run(harness: Harness) -> None:
    added = operator.AddSearchAttributesRequest(
        namespace="default", search_attributes={"Team": common_pb2.INDEXED_VALUE_TYPE_KEYWORD}
    )
    await harness.call(added)
    request = wire.StartWorkflowExecutionRequest()
    request.memo.fields["m"].data = b"1"
    request.search_attributes.indexed_fields["Team"].data = b'"red"'
    run_id = await harness.start("a", memo=request.memo, search_attributes=request.search_attributes)
    harness.clock.advance(3)
    task = await harness.poll()
    end = Command(command_type=command_type_pb2.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    end.complete_workflow_execution_command_attributes.SetInParent()
    await harness.complete(task.task_token, end)
    (info,) = (await harness.call(listing("Team = 'red'"))).executions
    assert info.execution == WorkflowExecution(workflow_id="a", run_id=run_id)
    assert info.root_execution == info.execution
    assert (info.type.name, info.task_queue, info.status) == ("W", "q", COMPLETED)
    assert info.start_time.ToNanoseconds() == info.execution_time.ToNanoseconds() == NOW
    assert info.close_time.ToNanoseconds() == NOW + 3 * SECOND
    assert info.execution_duration.ToNanoseconds() == 3 * SECOND
    assert info.history_length == 5
    assert info.history_size_bytes > 0
    assert info.memo.fields["m"].data == b"1"
    assert info.search_attributes.indexed_fields["Team"].data == b'"red"'
    assert info.search_attributes.indexed_fields["Team"].metadata["type"] == b"Keyword"
    assert not info.HasField("parent_execution")


async def test_pages(harness: Harness) -> None:
    for number in range(5):
        await harness.start(f"w{number}")
        harness.clock.advance(1)
    seen: list[str] = []
    token = b""
    for _ in range(3):
        page = await harness.call(listing("", page_size=2, next_page_token=token))
        seen += [info.execution.workflow_id for info in page.executions]
        token = page.next_page_token
    assert seen == ["w4", "w3", "w2", "w1", "w0"]
    assert token == b""
    scanned = await harness.call(wire.ScanWorkflowExecutionsRequest(namespace="default", page_size=3))
    assert [info.execution.workflow_id for info in scanned.executions] == ["w4", "w3", "w2"]
    error = await harness.refused(listing("", next_page_token=b"no token"))
    assert error.code == 3


async def test_count_and_groups(harness: Harness) -> None:
    for number in range(3):
        await harness.start(f"w{number}")
    await terminate(harness, "w0")
    counted = await harness.call(wire.CountWorkflowExecutionsRequest(namespace="default"))
    assert (counted.count, len(counted.groups)) == (3, 0)
    request = wire.CountWorkflowExecutionsRequest(namespace="default", query="GROUP BY ExecutionStatus")
    counted = await harness.call(request)
    found = {group.group_values[0].data: group.count for group in counted.groups}
    assert counted.count == 3
    assert found == {b'"Running"': 2, b'"Terminated"': 1}
    assert counted.groups[0].group_values[0].metadata == {"encoding": b"json/plain", "type": b"Keyword"}


async def test_older_calls(harness: Harness) -> None:
    await harness.start("old")
    harness.clock.advance(10)
    await harness.start("open")
    await terminate(harness, "old")
    listed = await harness.call(wire.ListOpenWorkflowExecutionsRequest(namespace="default"))
    assert [info.execution.workflow_id for info in listed.executions] == ["open"]
    closed = wire.ListClosedWorkflowExecutionsRequest(namespace="default")
    closed.status_filter.status = TERMINATED
    listed = await harness.call(closed)
    assert [info.execution.workflow_id for info in listed.executions] == ["old"]
    closed.execution_filter.workflow_id = "another"
    assert not (await harness.call(closed)).executions
    early = wire.ListOpenWorkflowExecutionsRequest(namespace="default")
    early.start_time_filter.latest_time.FromNanoseconds(NOW + SECOND)
    assert not (await harness.call(early)).executions
    error = await harness.refused(wire.ListArchivedWorkflowExecutionsRequest(namespace="default"))
    assert (error.code, error.message) == (3, "Cluster is not configured for visibility archival.")


async def test_refusals(harness: Harness) -> None:
    for query, words in (
        ("Nope = 1", "invalid search attribute: Nope"),
        ("WorkflowId =", "invalid query"),
        ("GROUP BY ExecutionStatus", "not supported"),
    ):
        error = await harness.refused(listing(query))
        assert error.code == 3
        assert words in error.message
    error = await harness.refused(wire.CountWorkflowExecutionsRequest(namespace="nope"))
    assert (error.code, error.message) == (5, "Namespace nope is not found.")


async def test_attributes_of_all_namespaces(harness: Harness) -> None:
    added = operator.AddSearchAttributesRequest(
        namespace="default", search_attributes={"Size": common_pb2.INDEXED_VALUE_TYPE_INT}
    )
    await harness.call(added)
    keys = (await harness.call(wire.GetSearchAttributesRequest())).keys
    assert keys["Size"] == common_pb2.INDEXED_VALUE_TYPE_INT
    assert keys["CloseTime"] == common_pb2.INDEXED_VALUE_TYPE_DATETIME
    assert keys["BuildIds"] == common_pb2.INDEXED_VALUE_TYPE_KEYWORD_LIST


class HeldStorage(MemoryStorage):
    """A disk that takes its time over records for List: the writer thread waits to be let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()
        self.holding = threading.Event()

    def write(self, batch: Round) -> None:
        records: list[VisibilityOp] = batch.visibility
        if records and not self.let_go.is_set():
            self.holding.set()
            assert self.let_go.wait(10)
        super().write(batch)


async def test_a_list_waits_for_the_round_that_carries_what_it_must_show() -> None:
    storage = HeldStorage()
    harness = Harness(storage, inline=False)
    await harness.start("a")
    first = harness.begin(listing())
    assert await asyncio.to_thread(storage.holding.wait, 60)  # the round is under way, its records taken out
    assert harness.node.committer.visibility_pending
    second = harness.begin(listing())
    await harness.turn()
    assert not first.done
    assert not second.done
    storage.let_go.set()
    for call in (first, second):
        page = await harness.end(listing(), call)
        assert [info.execution.workflow_id for info in page.executions] == ["a"]
    await harness.close()


@pytest.mark.parametrize("then", ["cancel", "close"])
async def test_a_list_nobody_waits_for(harness: Harness, then: str) -> None:
    await harness.start("a")
    call = harness.begin(listing())
    call.cancel()
    if then == "cancel":
        assert await ids(harness) == ["a"]


async def test_a_full_disk_shows_what_it_has() -> None:
    storage = MemoryStorage()
    harness = Harness(storage)
    await harness.start("a")
    assert await ids(harness) == ["a"]
    storage.fail_next(StorageFull("no space"))
    lost = harness.begin(
        wire.SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id="a"), signal_name="s"
        )
    )
    await harness.turn()
    assert harness.node.committer.refusal is not None
    assert lost.done
    lost.answer.exception()
    assert await ids(harness) == ["a"]
    await until_it_writes(harness)
    await harness.close()


async def until_it_writes(harness: Harness) -> None:
    for _ in range(100):
        if harness.node.committer.refusal is None:
            break
        await asyncio.sleep(0.05)


async def test_over_a_full_disk_nothing_acknowledged_is_left_out() -> None:
    storage = MemoryStorage()
    harness = Harness(storage)
    await harness.start("a")  # acknowledged; its rows come later
    storage.fail_next(StorageFull("no space"))
    lost = harness.begin(
        wire.SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id="a"), signal_name="s"
        )
    )
    await harness.turn()
    lost.answer.exception()
    for request in (listing(), wire.CountWorkflowExecutionsRequest(namespace="default")):
        refused = await harness.refused(request)
        assert refused.code == Code.UNAVAILABLE
        assert "List and Count cannot show what was acknowledged last: " in refused.message
        assert "no space" in refused.message
    await until_it_writes(harness)
    assert await ids(harness) == ["a"]
    await harness.close()
