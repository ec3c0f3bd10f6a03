"""A server of its own process for foreign clients: a few Temporal methods and some that test the front.

Run as a program; its first line of output says where it listens. SIGTERM drains it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl

import uvloop
from google.rpc import error_details_pb2
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    GetSystemInfoResponse,
    PollWorkflowTaskQueueResponse,
    service_pb2,  # noqa: F401 - what reflection reflects
)

from cluster.frontend.contract import Call, Front, Handler
from cluster.frontend.grpcio_front import GrpcioFront
from cluster.frontend.health import Health, Serving
from cluster.frontend.http2 import Http2Front, Limits
from cluster.frontend.reflection import Reflection
from history_store.engine.errors import Code, ServiceError

SERVICE = "temporal.api.workflowservice.v1.WorkflowService"

told = {"cancelled": 0, "parked": 0}


def get_system_info(call: Call) -> bytes:
    told["custom"] = call.metadata.get("x-custom", "")  # type: ignore[assignment]
    response = GetSystemInfoResponse(server_version="1.2.3")
    response.capabilities.sdk_metadata = True
    return response.SerializeToString()


def describe_namespace(call: Call) -> bytes:
    name = DescribeNamespaceRequest.FromString(call.request).namespace
    if name == "missing":
        detail = error_details_pb2.ErrorInfo(reason="NAMESPACE", domain="test")
        raise ServiceError(Code.NOT_FOUND, "Namespace missing is not found. \u20ac 100%", detail)
    response = DescribeNamespaceResponse()
    response.namespace_info.name = name
    return response.SerializeToString()


async def poll(call: Call) -> bytes:
    told["parked"] += 1
    try:
        await asyncio.sleep(0.5)
    except asyncio.CancelledError:
        told["cancelled"] += 1
        raise
    return PollWorkflowTaskQueueResponse().SerializeToString()


def park(call: Call) -> None:
    def cancelled() -> None:
        told["cancelled"] += 1

    told["parked"] += 1
    call.on_cancel = cancelled


async def slow(call: Call) -> bytes:
    await asyncio.sleep(0.3)
    return b"slow ok"


def meta(call: Call) -> bytes:
    raw = call.metadata.get("x-b-bin", b"")
    call.set_metadata(
        initial=[("x-init", f"i-{call.metadata.get('x-a', '')!s}")],
        trailing=[("x-trail", "t"), ("x-b-bin", raw)],
    )
    return b"ok"


def boom(call: Call) -> bytes:
    raise ServiceError(Code.ABORTED, "boom")


def stats(call: Call) -> bytes:
    return json.dumps(told).encode()


METHODS: dict[str, Handler] = {
    f"/{SERVICE}/GetSystemInfo": get_system_info,
    f"/{SERVICE}/DescribeNamespace": describe_namespace,
    f"/{SERVICE}/PollWorkflowTaskQueue": poll,
    "/t.T/Echo": lambda call: call.request,
    "/t.T/Big": lambda call: b"x" * int(call.request or b"4194000"),
    "/t.T/Park": park,
    "/t.T/Slow": slow,
    "/t.T/Meta": meta,
    "/t.T/Boom": boom,
    "/t.T/Stats": stats,
}


async def serve(arguments: argparse.Namespace) -> None:
    health = Health()
    health.set("", Serving.SERVING)
    reflection = Reflection([SERVICE, "grpc.health.v1.Health"])
    methods = {**METHODS, **health.methods, **reflection.methods}
    streaming = health.streaming | reflection.streaming
    kind = GrpcioFront if arguments.front == "grpcio" else Http2Front
    front: Front = kind(methods, streaming, limits=Limits(message_bytes_max=arguments.message_bytes_max))
    await front.start("127.0.0.1", 0)
    fronts = [front]
    if arguments.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate, arguments.key)
        secure = Http2Front(methods, streaming, limits=Limits(message_bytes_max=arguments.message_bytes_max))
        await secure.start("127.0.0.1", 0, context)
        fronts.append(secure)
    print(*(front.port for front in fronts), flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await asyncio.gather(*(front.drain(5) for front in fronts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--front", default="http2")
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    parser.add_argument("--message-bytes-max", type=int, default=64 << 20)
    uvloop.run(serve(parser.parse_args()))
