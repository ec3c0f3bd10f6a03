"""Opaque tokens that workers and clients bring back: task tokens and page tokens.

Msgpack arrays, typed at decoding: garbage is INVALID_ARGUMENT, never a crash. They carry names, not secrets.
"""

from __future__ import annotations

import msgspec

from history_store.engine.errors import invalid

EVENT_ID_END = 1 << 62  # no history comes near; what is beyond it is no event id

# TaskToken.kind
WORKFLOW_TASK = 1
ACTIVITY_TASK = 2
QUERY_TASK = 3


class TaskToken(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Which attempt of which task a worker holds."""

    kind: int
    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_id: int  # of a query: 0
    attempt: int
    stamp: int = 0  # of a workflow task: which scheduling
    ref: str = ""  # activity id, or query id


class HistoryToken(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Where the next page of a history begins."""

    run_id: str
    next_id: int
    waiting: bool = False  # a long poll: wait for events after `next_id`
    end_id: int = 0  # 0: as far as history goes
    transient: int = 0  # stamp of the started task whose unwritten events end the last page


_encode = msgspec.msgpack.Encoder().encode
_task = msgspec.msgpack.Decoder(TaskToken).decode
_history = msgspec.msgpack.Decoder(HistoryToken).decode


def encode(token: TaskToken | HistoryToken) -> bytes:
    """The token's bytes."""
    return _encode(token)


def task_token(data: bytes) -> TaskToken:
    """INVALID_ARGUMENT if it is no task token."""
    if not data:
        raise invalid("Task token not set on request.")
    try:
        return _task(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        raise invalid("Error deserializing task token.") from None


def history_token(data: bytes) -> HistoryToken:
    """INVALID_ARGUMENT if it is no page token."""
    try:
        token = _history(data)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        raise invalid("Invalid NextPageToken.") from None
    if not (0 < token.next_id < EVENT_ID_END and 0 <= token.end_id < EVENT_ID_END):
        raise invalid("Invalid NextPageToken.")
    return token
