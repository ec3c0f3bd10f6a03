"""grpc.health.v1, asked by the official stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.frontend.health import Health, Serving
from cluster.frontend.http2 import Http2Front

WATCHED = "temporal.api.workflowservice.v1.WorkflowService"


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
async def stub(health: Health) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    front = Http2Front(health.methods, health.streaming)
    await front.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)
    await front.drain(1)


async def test_check(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
    async def check(service: str) -> int:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        return answer.status

    assert await check("") == health_pb2.HealthCheckResponse.NOT_SERVING
    health.set("", Serving.SERVING)
    health.set(WATCHED, Serving.SERVING)
    assert await check("") == await check(WATCHED) == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check("no.Such")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    health.shut_down()
    assert await check(WATCHED) == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_watch_tells_every_change_and_only_changes(
    health: Health, stub: health_pb2_grpc.HealthStub
) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=WATCHED))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    health.set(WATCHED, Serving.SERVING)
    health.set(WATCHED, Serving.SERVING)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    health.shut_down()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await watch.read() is grpc.aio.EOF


async def test_a_watcher_that_leaves_is_forgotten(health: Health, stub: health_pb2_grpc.HealthStub) -> None:
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    await watch.read()
    watch.cancel()
    while health.watchers:
        # Another call of the same connection: when it is answered, the reset before it has been read.
        await stub.Check(health_pb2.HealthCheckRequest())


async def test_garbage_is_refused(stub: health_pb2_grpc.HealthStub, health: Health) -> None:
    front = Http2Front(health.methods, health.streaming)
    await front.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"\x0a\x7f")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await front.drain(1)
