"""Statuses, the same from every front: an exception becomes a code, a message and google.rpc.Status bytes."""

from __future__ import annotations

from typing import Final, NamedTuple

import structlog
from google.protobuf import any_pb2
from google.rpc import status_pb2

from history_store.engine.errors import Code, ServiceError

_log: Final = structlog.get_logger("frontend")

_DETAIL_TYPE_PREFIX: Final = "type.googleapis.com/"


class Status(NamedTuple):
    """What a caller is told instead of a response."""

    code: int
    message: str
    details: bytes | None  # a serialized google.rpc.Status


def status_of(error: BaseException, method: str, peer: str) -> Status:
    """The status for what a handler raised. What it did not mean to raise is logged, and told only in
    short.
    """
    if isinstance(error, ServiceError):
        return Status(int(error.code), error.message, status_details(error))
    _log.error("handler failed", method=method, peer=peer, exc_info=error)
    return Status(Code.INTERNAL, f"internal error: {type(error).__name__}", None)


def status_details(error: ServiceError) -> bytes | None:
    """google.rpc.Status of an error with a typed detail; None if it has none, since code and message say
    all.
    """
    if error.detail is None:
        return None
    packed = any_pb2.Any(
        type_url=_DETAIL_TYPE_PREFIX + error.detail.DESCRIPTOR.full_name,
        value=error.detail.SerializeToString(),
    )
    status = status_pb2.Status(code=int(error.code), message=error.message, details=[packed])
    return status.SerializeToString()
