"""Server reflection, asked by the official stubs: what it sends is enough to rebuild the API elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest
import temporalio.api.workflowservice.v1.service_pb2  # noqa: F401 - what is reflected
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.frontend.http2 import Http2Front
from cluster.frontend.reflection import Reflection

SERVICE = "temporal.api.workflowservice.v1.WorkflowService"
Ask = Callable[..., Any]


@pytest.fixture
async def ask() -> AsyncIterator[Ask]:
    reflection = Reflection([SERVICE, "grpc.health.v1.Health"])
    front = Http2Front(reflection.methods, reflection.streaming)
    await front.start("127.0.0.1", 0)
    async with grpc.aio.insecure_channel(
        f"127.0.0.1:{front.port}", options=[("grpc.max_receive_message_length", -1)]
    ) as channel:
        stream = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()

        async def one(**request: Any) -> Any:
            await stream.write(reflection_pb2.ServerReflectionRequest(**request))
            return await stream.read()

        yield one
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF
    await front.drain(1)


async def test_list(ask: Ask) -> None:
    answer = await ask(list_services="*")
    assert [service.name for service in answer.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        SERVICE,
    ]


@pytest.mark.parametrize("symbol", [SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"])
async def test_the_files_of_a_symbol_are_complete(ask: Ask, symbol: str) -> None:
    answer = await ask(file_containing_symbol=symbol)
    files = {}
    for raw in answer.file_descriptor_response.file_descriptor_proto:
        proto = descriptor_pb2.FileDescriptorProto.FromString(raw)
        files[proto.name] = proto
    pool = descriptor_pool.DescriptorPool()

    def add(name: str) -> None:
        proto = files.pop(name, None)
        if proto is not None:
            for dependency in proto.dependency:
                add(dependency)
            pool.Add(proto)

    while files:
        add(next(iter(files)))
    assert pool.FindServiceByName(symbol).methods


async def test_what_was_sent_is_not_sent_again_unless_it_is_asked_for(ask: Ask) -> None:
    first = await ask(file_containing_symbol=SERVICE)
    assert len(first.file_descriptor_response.file_descriptor_proto) > 50
    second = await ask(file_by_filename="temporal/api/common/v1/message.proto")
    assert len(second.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize(
    "symbol",
    [
        SERVICE + ".StartWorkflowExecution",
        "temporal.api.common.v1.Payload",
        "temporal.api.common.v1.Payload.data",
    ],
)
async def test_methods_messages_and_fields_are_symbols(ask: Ask, symbol: str) -> None:
    assert (await ask(file_containing_symbol=symbol)).HasField("file_descriptor_response")


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"file_containing_symbol": "no.Such"}, 5),
        ({"file_containing_symbol": ""}, 5),
        ({"file_containing_symbol": SERVICE + ".NoSuch"}, 5),
        ({"file_by_filename": "no/such.proto"}, 5),
        ({"all_extension_numbers_of_type": "no.Such"}, 5),
        ({}, 3),
    ],
)
async def test_what_is_not_known_is_an_answer_too(ask: Ask, request_: dict[str, str], code: int) -> None:
    assert (await ask(**request_)).error_response.error_code == code


async def test_extensions(ask: Ask) -> None:
    answer = await ask(all_extension_numbers_of_type="google.protobuf.MethodOptions")
    numbers = answer.all_extension_numbers_response.extension_number
    assert 72295728 in numbers  # google.api.http
    extension = {"containing_type": "google.protobuf.MethodOptions", "extension_number": 72295728}
    found = (await ask(file_containing_extension=extension)).file_descriptor_response.file_descriptor_proto
    assert descriptor_pb2.FileDescriptorProto.FromString(found[0]).name == "google/api/annotations.proto"
