"""From DATA frames to messages: gRPC's five-byte prefix, limits, decompression.

Only requests that come in pieces, are compressed, or belong to a stream get here; a plain request in one
frame is recognised by the connection itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cluster.frontend.http2 import compression, frames
from cluster.frontend.http2 import head as heads
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from cluster.frontend.http2.call import Http2Call
    from cluster.frontend.http2.connection import Http2Connection


def _larger(size: int, limit: int) -> str:
    return f"grpc: received message larger than max ({size} vs. {limit})"  # the words of grpc-go


def take(conn: Http2Connection, call: Http2Call, piece: bytes) -> bool:
    """Add a piece to the request; False if it may not grow any further and has failed."""
    buffer, limit = call.buffer, conn.limits.message_bytes_max
    if buffer is None:
        buffer = call.buffer = bytearray()
    buffer += piece
    if len(buffer) >= 5:
        size = int.from_bytes(buffer[1:5], "big")  # said before it is sent, so refused before it is sent
        if size > limit:
            call.fail(Code.RESOURCE_EXHAUSTED, _larger(size, limit))
            return False
        if len(buffer) > size + 5 and not call.head.streaming:
            call.fail(Code.INTERNAL, "more than one message in a unary request")
            return False
    if not conn.hold(call, len(piece)):
        call.fail(Code.RESOURCE_EXHAUSTED, "this connection holds too many bytes in unfinished requests")
        return False
    return True


def end(conn: Http2Connection, call: Http2Call) -> None:
    """The peer has said all it has to say."""
    head, buffer = call.head, call.buffer or b""
    if head.content_length is not None and head.content_length != call.received:
        conn.reset(call, frames.PROTOCOL_ERROR)
    elif head.kind == heads.NOT_GRPC:
        conn.answer_http(call)
    elif call.done:
        return
    elif head.streaming and (call.started or buffer):
        stream_messages(conn, call)
        if call.buffer and not call.done:
            call.fail(Code.INTERNAL, "the stream ended within a message")
        else:
            call.message_arrived(None)
    elif len(buffer) < 5 or int.from_bytes(buffer[1:5], "big") != len(buffer) - 5:
        call.fail(Code.INTERNAL, "the request is not one complete gRPC message")
    else:
        call.buffer = None
        message = bytes(memoryview(buffer)[5:])
        if buffer[0] & 1:
            _inflate(conn, call, message)
        else:
            _deliver(conn, call, message)


def stream_messages(conn: Http2Connection, call: Http2Call) -> None:
    """Hand over every complete message of a streaming call."""
    buffer = call.buffer
    while buffer is not None and len(buffer) >= 5 and not call.done:
        after = 5 + int.from_bytes(buffer[1:5], "big")
        if len(buffer) < after:
            return
        message, compressed = bytes(memoryview(buffer)[5:after]), buffer[0] & 1
        del buffer[:after]
        conn.release(call, min(after, call.held))
        if compressed:
            unpacked = _inflate_inline(conn, call, message)
            if unpacked is None:
                return
            message = unpacked
        if not call.started:
            _deliver(conn, call, message)
        else:
            call.message_arrived(message)


def _deliver(conn: Http2Connection, call: Http2Call, message: bytes) -> None:
    if call.held and not call.head.streaming:
        conn.release(
            call, call.held
        )  # charged again, with the call itself, if the handler does not answer at once
    call.request = message
    call.start()


def _inflate_inline(conn: Http2Connection, call: Http2Call, message: bytes) -> bytes | None:
    """The inflated message; None if the call has failed or (a unary one) goes on in a thread."""
    if call.head.encoding not in compression.ENCODINGS:
        encoding = (call.head.encoding or b"identity").decode("latin-1")
        call.fail(Code.UNIMPLEMENTED, f"grpc: compression {encoding!r} is not supported")
        return None
    limit = conn.limits.message_bytes_max
    try:
        unpacked = compression.inflate_inline(message, limit)
    except compression.TooLarge:
        call.fail(Code.RESOURCE_EXHAUSTED, _larger(limit + 1, limit))
        return None
    except compression.Damaged as error:
        call.fail(Code.INTERNAL, f"grpc: cannot decompress the message: {error}")
        return None
    if unpacked is None and call.head.streaming:
        call.fail(Code.RESOURCE_EXHAUSTED, "grpc: a compressed message of this stream is too large")
    return unpacked


def _inflate(conn: Http2Connection, call: Http2Call, message: bytes) -> None:
    unpacked = _inflate_inline(conn, call, message)
    if unpacked is not None:
        _deliver(conn, call, unpacked)
    elif not call.done:
        limit = conn.limits.message_bytes_max

        def inflated(future: asyncio.Future[bytes]) -> None:
            error = None if future.cancelled() else future.exception()
            if call.done or future.cancelled():
                return
            if error is None:
                _deliver(conn, call, future.result())
            elif isinstance(error, compression.TooLarge):
                call.fail(Code.RESOURCE_EXHAUSTED, _larger(limit + 1, limit))
            else:
                call.fail(Code.INTERNAL, f"grpc: cannot decompress the message: {error}")

        compression.inflate(conn.front.workers, conn.loop, message, limit, inflated)
