"""A client of the public gRPC API, and what its errors mean: did it happen or not?

Deliberately not an SDK: an SDK tries again by itself, which would hide from the judge what the server said.
"""

from __future__ import annotations

import asyncio
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


class Refused(Exception):
    """A call that was not answered with success."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message

    @property
    def outcome(self) -> Outcome:
        """Whether it may have happened."""
        return Outcome.FAIL if self.code in DEFINITE else Outcome.INDEFINITE


class Client:
    """One connection to one life of the server."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._closed = False
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
        except asyncio.CancelledError:
            if not self._closed:
                raise
            # grpcio cancels whoever waits for a call on a channel that is closed
            raise Refused(grpc.StatusCode.CANCELLED, "the connection was closed") from None
        except grpc.aio.UsageError:
            raise Refused(grpc.StatusCode.CANCELLED, "the connection was closed") from None

    async def close(self) -> None:
        """Close the connection; open calls end."""
        self._closed = True
        await self._channel.close(None)
