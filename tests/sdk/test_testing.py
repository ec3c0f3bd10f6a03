"""`DevServer`: the fixture that users' tests, the demo and the chaos room start servers with."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest
from temporalio.common import WorkflowIDConflictPolicy

from sdk.testing import DevServer, DevServerError


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


async def test_a_server_that_ends_at_once_is_an_error_with_its_log(tmp_path: Path) -> None:
    program = script(tmp_path / "holdfast", 'echo "cannot read the file" >&2; exit 1')
    server = DevServer(executable=program)
    with pytest.raises(DevServerError, match=r"ended with code 1(?s:.)*cannot read the file"):
        async with server:
            pass
    with pytest.raises(DevServerError, match="not running"):
        _ = server.pid


@pytest.mark.parametrize(("port", "attempts"), [(0, 5), (1, 1)], ids=["any free port", "a chosen port"])
async def test_a_port_that_another_process_took(port: int, attempts: int, tmp_path: Path) -> None:
    """A free port is looked for again, a chosen one is not."""
    program = script(tmp_path / "holdfast", 'echo >> "$0.runs"; echo "Address already in use" >&2; exit 1')
    with pytest.raises(DevServerError, match="Address already in use"):
        async with DevServer(executable=program, port=port):
            pass
    assert len((tmp_path / "holdfast.runs").read_text().splitlines()) == attempts


@pytest.mark.live
async def test_what_was_acknowledged_is_there_after_a_kill() -> None:
    async with DevServer(search_attributes={"Customer": "Keyword"}) as server:
        client = await server.connect()
        first = server.pid
        handle = await client.start_workflow("Order", id="order-17", task_queue="orders")
        await server.kill()
        await server.restart()
        assert server.pid != first
        client = await server.connect()
        described = await client.get_workflow_handle("order-17").describe()
        assert described.run_id == handle.result_run_id
        assert server.db_path.exists()
        log = server.log_path
    assert not log.exists()


@pytest.mark.live
async def test_a_given_data_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.db"
    async with DevServer(db_path=path, namespaces=["orders"]) as server:
        client = await server.connect("orders")
        await client.start_workflow("Order", id="order-17", task_queue="orders")
        assert await server.stop() == 0
    async with DevServer(db_path=path) as server:
        client = await server.connect("orders")
        await client.start_workflow(
            "Order",
            id="order-17",
            task_queue="orders",
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )
        request = DescribeWorkflowExecutionRequest(namespace="orders")
        request.execution.workflow_id = "order-17"
        described = await client.workflow_service.describe_workflow_execution(request)
        assert described.workflow_execution_info.type.name == "Order"
