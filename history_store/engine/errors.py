"""What a caller is told when a request cannot be done: Temporal's code, its words and its typed detail.

Every error raised here is definite: the request was refused and nothing changed. Errors that may have
happened (a lost leader, a disk that failed while the commit was under way) are `Indefinite`.
Codes are gRPC's numbers, named here so that the pure rooms need no gRPC.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Code(IntEnum):
    """gRPC status codes (the numbers are the wire's)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """A request that is refused: code, message, and the typed detail that Temporal's SDKs look for."""

    def __init__(self, code: Code, message: str, detail: Message | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail


class Indefinite(ServiceError):
    """It may or may not have happened: the commit was under way when this node could not finish it."""

    def __init__(self, message: str) -> None:
        super().__init__(Code.UNAVAILABLE, message)


def invalid(message: str) -> ServiceError:
    """INVALID_ARGUMENT: the request can never succeed as it is."""
    return ServiceError(Code.INVALID_ARGUMENT, message)


def failed_precondition(message: str, detail: Message | None = None) -> ServiceError:
    """FAILED_PRECONDITION: the request does not fit the present state."""
    return ServiceError(Code.FAILED_PRECONDITION, message, detail)
