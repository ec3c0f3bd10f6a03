"""A client of the public gRPC API, and what its errors mean: did it happen or not?

Deliberately not an SDK: an SDK tries again by itself, which would hide from the judge what the server said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from chaos.live.history import Outcome

SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"
MESSAGE_BYTES_MAX = 64 << 20

# These codes are a server's decision, taken before anything was done.
DEFINITE = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.OUT_OF_RANGE,
    }
)
# These are never an honest answer to a well-formed request, whatever happened to the process or its disk.
ALARMING = frozenset({grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS})

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True, slots=True)
class Refused(Exception):
    """A call that was not answered with success."""

    code: grpc.StatusCode
    message: str

    @property
    def outcome(self) -> Outcome:
        """Whether it may have happened."""
        return Outcome.FAIL if self.code in DEFINITE else Outcome.INDEFINITE

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Client:
    """One connection to one life of the server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
                ("grpc.enable_retries", 0),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Message, Message]] = {}

    async def call(
        self, method: str, request: Message, answer: type[Answer], timeout_s: float = 5.0
    ) -> Answer:
        """One attempt. Raises Refused."""
        made = self._methods.get(method)
        if made is None:
            made = self._methods[method] = self._channel.unary_unary(
                SERVICE + method,
                request_serializer=type(request).SerializeToString,
                response_deserializer=answer.FromString,
            )
        try:
            return cast("Answer", await made(request, timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise Refused(error.code(), error.details() or "") from None

    async def close(self) -> None:
        """Close the connection; open calls end."""
        await self._channel.close(None)
