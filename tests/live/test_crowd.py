"""Two thousand strangers on the port: parked polls, garbage, clients that stall. Normal clients don't notice.

And when the crowd's process is killed, the server gives back what it held for it, and hands it no tasks.
"""

from __future__ import annotations

import asyncio
import random
import resource
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from benchmarks.raw_client import PREFACE, connect, serialize, workflow_path
from chaos.live.client import Client
from chaos.live.server import Server

pytestmark = pytest.mark.live

CROWD = 2_000
CALLS = 100
CALL_S_MAX = 60.0  # a normal call amid the crowd: 1 to 3 ms, but the machine may be busy
WAVES = 3
# Allocators keep what they got, and a queue is remembered for five minutes (DescribeTaskQueue shows who
# polled), so the first crowd leaves a mark. What later ones add is the normal clients' workflows, or a leak.
GROWTH_BYTES_MAX = 6 << 20  # a wave; 2,000 connections that were kept would be 20 MiB
PATIENCE_S = 240.0
FILES_MIN = CROWD + 200


def enough_files() -> bool:
    """Raise the soft limit of open files as far as is needed and allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < FILES_MIN <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MIN, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= FILES_MIN


async def park(host: str, port: int) -> None:
    """Be the crowd: a connection, a queue and a parked poll each; say so and wait to be killed."""
    held = []
    for number in range(CROWD):
        connection = await connect(host, port)
        poll = wire.PollWorkflowTaskQueueRequest(
            namespace="default", task_queue=TaskQueue(name=f"crowd-{number}"), identity=f"stranger {number}"
        )
        held.append(
            (connection, connection.call(workflow_path("PollWorkflowTaskQueue"), serialize(poll), b"70S"))
        )
        if number % 50 == 0:
            await connection.call(workflow_path("GetSystemInfo"), b"")
    await held[-1][0].call(workflow_path("GetSystemInfo"), b"")
    print("parked", flush=True)
    await asyncio.Event().wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    if not enough_files():
        pytest.skip(f"needs {FILES_MIN} open files")
    made = Server(tmp_path / "data.db")
    await made.start()
    yield made
    await made.kill()


async def normal_calls(client: Client, prefix: str) -> float:
    """What a normal client does; every call must succeed. Returns the slowest call's seconds."""
    loop = asyncio.get_running_loop()
    slowest = 0.0
    for number in range(CALLS):
        workflow_id = f"{prefix}-{number}"
        start = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, workflow_type=WorkflowType(name="x"),
            task_queue=TaskQueue(name="normal"), request_id=workflow_id,
        )  # fmt: skip
        execution = WorkflowExecution(workflow_id=workflow_id)
        signal = wire.SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution, signal_name="s", request_id=workflow_id
        )
        describe = wire.DescribeWorkflowExecutionRequest(namespace="default", execution=execution)
        for method, request, answer in (
            ("StartWorkflowExecution", start, wire.StartWorkflowExecutionResponse),
            ("SignalWorkflowExecution", signal, wire.SignalWorkflowExecutionResponse),
            ("DescribeWorkflowExecution", describe, wire.DescribeWorkflowExecutionResponse),
        ):
            began = loop.time()
            await client.call(method, request, answer, CALL_S_MAX)
            slowest = max(slowest, loop.time() - began)
    return slowest


def memory(server: Server) -> int:
    return int(psutil.Process(server.pid).memory_info().rss)


async def test_two_thousand_parked_polls_and_their_death(server: Server) -> None:
    client = Client(server.address)
    await normal_calls(client, "before")
    after = [memory(server)]
    for wave in range(WAVES):
        await crowd_comes_and_dies(server, client, wave)
        after.append(memory(server))
    print("memory before and after each crowd, MiB:", [each >> 20 for each in after])
    assert after[-1] - after[1] < GROWTH_BYTES_MAX * (WAVES - 1)
    await client.close()
    assert await server.stop() == 0, server.said()
    assert server.complaints() == []


async def crowd_comes_and_dies(server: Server, client: Client, wave: int) -> None:
    host, _, port = server.address.rpartition(":")
    descriptors = psutil.Process(server.pid).num_fds()
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, __file__, host, port, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert crowd.stdout is not None
        line = await asyncio.wait_for(crowd.stdout.readline(), PATIENCE_S)
        assert line == b"parked\n"
        assert psutil.Process(server.pid).num_fds() >= descriptors + CROWD
        assert await pollers(client, "crowd-7") == ["stranger 7"]
        assert await normal_calls(client, f"amid-{wave}") < CALL_S_MAX
    finally:
        crowd.kill()
        await crowd.wait()
    async with asyncio.timeout(PATIENCE_S):
        while psutil.Process(server.pid).num_fds() > descriptors + 5:
            await asyncio.sleep(0.05)
    assert await normal_calls(client, f"after-{wave}") < CALL_S_MAX
    # A task of a queue that the crowd polled is given to nobody: it waits for a worker that lives
    assert "stranger 7" not in await started_by(client, "crowd-7")


async def pollers(client: Client, queue: str) -> list[str]:
    request = wire.DescribeTaskQueueRequest(
        namespace="default", task_queue=TaskQueue(name=queue), task_queue_type=1
    )
    answer = await client.call("DescribeTaskQueue", request, wire.DescribeTaskQueueResponse, CALL_S_MAX)
    return [poller.identity for poller in answer.pollers]


async def started_by(client: Client, queue: str) -> list[str]:
    """Start a workflow on the queue: who, if anybody, was given its task?"""
    workflow_id = f"probe-{uuid.uuid4()}"
    start = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, workflow_type=WorkflowType(name="x"),
        task_queue=TaskQueue(name=queue), request_id=workflow_id,
    )  # fmt: skip
    await client.call("StartWorkflowExecution", start, wire.StartWorkflowExecutionResponse, CALL_S_MAX)
    execution = WorkflowExecution(workflow_id=workflow_id)
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default", execution=execution)
    answer = await client.call(
        "GetWorkflowExecutionHistory", request, wire.GetWorkflowExecutionHistoryResponse, CALL_S_MAX
    )
    return [event.workflow_task_started_event_attributes.identity for event in answer.history.events]


async def test_garbage_and_slow_clients(server: Server) -> None:
    """Connections that say nothing, nonsense, half a request, or never read what they asked for."""
    rng = random.Random(20)
    host, _, port = server.address.rpartition(":")
    client = Client(server.address)
    writers: list[asyncio.StreamWriter] = []

    async def intrude(number: int) -> None:
        with suppress(ConnectionError):
            _, writer = await asyncio.open_connection(host, int(port))
            writers.append(writer)
            match number % 5:
                case 0:
                    pass  # says nothing
                case 1:
                    writer.write(rng.randbytes(rng.randrange(1, 5_000)))
                case 2:
                    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")  # and never the empty line
                case 3:
                    writer.write(PREFACE[: rng.randrange(1, len(PREFACE))])
                case 4:
                    writer.write(PREFACE + rng.randbytes(rng.randrange(9, 200)))
            await writer.drain()

    await asyncio.gather(*(intrude(number) for number in range(500)))
    assert await normal_calls(client, "amid") < CALL_S_MAX
    for writer in writers:
        writer.close()
    assert await normal_calls(client, "after") < CALL_S_MAX
    await client.close()
    assert await server.stop() == 0, server.said()
    assert server.complaints() == []


if __name__ == "__main__":
    enough_files()
    asyncio.run(park(sys.argv[1], int(sys.argv[2])))
