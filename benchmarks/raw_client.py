"""A gRPC client for benchmarks: HTTP/2 frames by hand, raw bytes in and out, little CPU a call.

When client and server share a machine, a client that costs ten times what the server costs measures itself.
So this one does only what a conversation with our own server needs: unary calls, many streams on one
connection, flow control both ways. Three things make it cheap. It announces a header table of size zero, so
that the server's header blocks are self-contained and one dictionary look-up replaces HPACK decoding. It
keeps its own headers in the server's dynamic table, so that a request's block is about twelve bytes and is
encoded once. And all frames of one turn of the event loop leave in one write.

It is not a general client: no TLS, no compression, no retry, no streaming, and it trusts its server.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import unquote

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_MAX = 2**31 - 1
WINDOW_DEFAULT = 65_535
FRAME_DEFAULT = 16_384
HEADER_CACHE_MAX = 4_096
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8

# Replenish the connection's receive window after this much; a quarter keeps the server from ever waiting.
CREDIT_BYTES = WINDOW_MAX // 4

_FRAME = struct.Struct(">HBBBI")
_SETTING = struct.Struct(">HI")
_LONG = struct.Struct(">I")


class RpcError(Exception):
    """A call that did not end with status 0; codes are gRPC's numbers."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class _Stream:
    __slots__ = ("body", "future")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future
        self.body: bytes | bytearray = b""


class _Blocked:
    """A request body that does not fit the windows yet."""

    __slots__ = ("rest", "stream_id", "window")

    def __init__(self, stream_id: int, rest: bytes, window: int) -> None:
        self.stream_id, self.rest, self.window = stream_id, rest, window


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 8, size & 255, kind, flags, stream_id) + payload


def _literal(text: bytes) -> bytes:
    assert len(text) < 127, "longer strings would need a longer length prefix"
    return bytes((len(text),)) + text


class HeaderWriter:
    """Encodes request headers against the peer's dynamic table; a block seen before is one look-up."""

    STATIC_NAMES = {b":path": 4, b":authority": 1, b"content-type": 31, b"user-agent": 58}
    STATIC_LENGTH = 61
    TABLE_BYTES_MAX = 4_096

    def __init__(self, authority: str) -> None:
        self._always = (
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"holdfast-bench/1"),
            (b"client-name", b"holdfast-bench"),
            (b"client-version", b"1.0.0"),
        )
        self._positions: dict[tuple[bytes, bytes], int] = {}
        self._bytes = 0
        self._blocks: dict[tuple[bytes, bytes], bytes] = {}

    def block(self, path: bytes, timeout: bytes) -> bytes:
        """Encode a request's headers; must be sent in the order in which it was asked for."""
        key = (path, timeout)
        known = self._blocks.get(key)
        if known is not None:
            return known
        before = len(self._positions)
        fields = ((b":path", path), *self._always, (b"grpc-timeout", timeout))
        out = b"\x83\x86" + b"".join(map(self._field, fields))  # :method POST, :scheme http
        if len(self._positions) != before:
            self._blocks.clear()  # entries moved: every index of an older block is wrong now
        else:
            self._blocks[key] = out
        return out

    def _field(self, field: tuple[bytes, bytes]) -> bytes:
        position = self._positions.get(field)
        if position is not None:
            index = self.STATIC_LENGTH + len(self._positions) - position
            assert index < 127, "an index that long would need a second byte"
            return bytes((0x80 | index,))
        name, value = field
        self._bytes += len(name) + len(value) + 32
        assert self._bytes <= self.TABLE_BYTES_MAX, "the table would evict, and indexes would lie"
        self._positions[field] = len(self._positions)
        static = self.STATIC_NAMES.get(name)
        head = bytes((0x40 | static,)) if static else b"\x40" + _literal(name)
        return head + _literal(value)


class HeaderReader:
    """Reads the status out of response headers; blocks are self-contained: equal bytes, equal headers."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int | None, str]] = {}

    def status(self, block: bytes) -> tuple[int | None, str]:
        """Return grpc-status (None when the block has none, as leading headers do) and grpc-message."""
        known = self._known.get(block)
        if known is None:
            known = self._decode(block)
            if len(self._known) < HEADER_CACHE_MAX:
                self._known[block] = known
        return known

    @staticmethod
    def _decode(block: bytes) -> tuple[int | None, str]:
        decoder = hpack.Decoder()
        decoder.header_table_size = 0
        decoder.max_allowed_table_size = 0
        fields: dict[bytes, bytes] = dict(decoder.decode(block, raw=True))
        status = fields.get(b"grpc-status")
        message = unquote(fields.get(b"grpc-message", b"").decode("latin-1"))
        if status is None and fields.get(b":status", b"200") != b"200":
            return 14, f"HTTP status {fields[b':status'].decode()}"
        return (None if status is None else int(status)), message


class Connection(asyncio.Protocol):
    """One HTTP/2 connection. `call` never blocks: it returns a future of the response's bytes."""

    def __init__(self, authority: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._headers = HeaderWriter(authority)
        self._reader = HeaderReader()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._next_id = 1
        self._out: list[bytes] = []
        self._flushing = False
        self._rest = b""
        self._window = WINDOW_DEFAULT
        self._peer_window = WINDOW_DEFAULT
        self._streams_max = 100
        self._frame_max = FRAME_DEFAULT
        self._received = 0
        self._blocked: dict[int, _Blocked] = {}
        self._waiting: deque[tuple[bytes, bytes, bytes, asyncio.Future[bytes]]] = deque()
        self._fragments = b""
        self._fragment_flags = 0
        self.ready: asyncio.Future[None] = self._loop.create_future()
        self.calls = 0

    # ------------------------------------------------------------------ calling

    def call(self, path: bytes, message: bytes, timeout: bytes = b"10S") -> asyncio.Future[bytes]:
        """Make a unary call; the future ends with the response's bytes or an RpcError."""
        future: asyncio.Future[bytes] = self._loop.create_future()
        if self._transport is None:
            future.set_exception(RpcError(14, "the connection is closed"))
        elif len(self._streams) >= self._streams_max:
            self._waiting.append((path, message, timeout, future))
        else:
            self._send(path, message, timeout, future)
        return future

    def _send(self, path: bytes, message: bytes, timeout: bytes, future: asyncio.Future[bytes]) -> None:
        stream_id = self._next_id
        self._next_id = stream_id + 2
        self._streams[stream_id] = _Stream(future)
        self.calls += 1
        block = self._headers.block(path, timeout)
        size = len(message)
        total = size + 5
        out = self._out
        out.append(_FRAME.pack(0, len(block), HEADERS, END_HEADERS, stream_id))
        out.append(block)
        if total <= self._window and total <= self._peer_window and total <= self._frame_max:
            self._window -= total
            out.append(_FRAME.pack(total >> 8, total & 255, DATA, END_STREAM, stream_id))
            out.append(b"\0" + _LONG.pack(size))
            out.append(message)
        else:
            body = b"\0" + _LONG.pack(size) + message
            self._blocked[stream_id] = _Blocked(stream_id, body, self._peer_window)
            self._send_blocked()
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _send_blocked(self) -> None:
        for blocked in list(self._blocked.values()):
            while blocked.rest:
                allowed = min(self._window, blocked.window, self._frame_max, len(blocked.rest))
                if allowed <= 0:
                    break
                piece, blocked.rest = blocked.rest[:allowed], blocked.rest[allowed:]
                self._window -= allowed
                blocked.window -= allowed
                flags = 0 if blocked.rest else END_STREAM
                self._out.append(_frame(DATA, flags, blocked.stream_id, piece))
            if not blocked.rest:
                del self._blocked[blocked.stream_id]

    def _flush(self) -> None:
        self._flushing = False
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Close the connection; calls that are open end with UNAVAILABLE."""
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ the transport's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface; with stream windows at their largest only the connection's is replenished."""
        transport = cast("asyncio.Transport", transport)  # uvloop's transports inherit from nothing
        self._transport = transport
        settings = b"".join(_SETTING.pack(*pair) for pair in ((1, 0), (2, 0), (4, WINDOW_MAX)))
        credit = _LONG.pack(WINDOW_MAX - WINDOW_DEFAULT)
        transport.write(PREFACE + _frame(SETTINGS, 0, 0, settings) + _frame(WINDOW_UPDATE, 0, 0, credit))

    def connection_lost(self, exc: Exception | None) -> None:
        """End every open call."""
        self._transport = None
        error = RpcError(14, f"the connection was lost: {exc}")
        for future in [stream.future for stream in self._streams.values()] + [w[3] for w in self._waiting]:
            if not future.done():
                future.set_exception(error)
        self._streams.clear()
        self._waiting.clear()
        if not self.ready.done():
            self.ready.set_exception(error)

    def data_received(self, data: bytes) -> None:
        """Take in frames; DATA and trailers are the hot ones."""
        buffer = self._rest + data if self._rest else data
        position, size = 0, len(buffer)
        unpack = _FRAME.unpack_from
        while size - position >= 9:
            high, low, kind, flags, stream_id = unpack(buffer, position)
            start = position + 9
            end = start + (high << 8 | low)
            if end > size:
                break
            position = end
            if kind == DATA:
                stream = self._streams.get(stream_id)
                self._received += end - start
                assert not flags & PADDED, "this server pads nothing"
                if stream is not None:
                    stream.body = stream.body + buffer[start:end] if stream.body else buffer[start:end]
            elif kind == HEADERS and flags & END_HEADERS:
                self._headers_received(stream_id, flags, buffer[start:end])
            else:
                self._other(kind, flags, stream_id, buffer[start:end])
        self._rest = buffer[position:]
        if self._received > CREDIT_BYTES:
            self._out.append(_frame(WINDOW_UPDATE, 0, 0, _LONG.pack(self._received)))
            self._received = 0
            self._flush_soon()

    def _headers_received(self, stream_id: int, flags: int, block: bytes) -> None:
        status, text = self._reader.status(block)
        if not flags & END_STREAM:
            return
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        future = stream.future
        if not future.done():
            if status == 0:
                future.set_result(bytes(stream.body[5:]))
            else:
                future.set_exception(RpcError(2 if status is None else status, text))
        if self._waiting:
            self._send(*self._waiting.popleft())

    def _other(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == SETTINGS:
            if not flags & ACK:
                self._settings(payload)
        elif kind == WINDOW_UPDATE:
            self._credit(stream_id, _LONG.unpack(payload)[0])
        elif kind == PING:
            if not flags & ACK:
                self._out.append(_frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            stream = self._streams.pop(stream_id, None)
            if stream is not None and not stream.future.done():
                stream.future.set_exception(RpcError(14, f"stream reset: {_LONG.unpack(payload)[0]}"))
        elif kind == GOAWAY:
            self.close()
        elif kind == HEADERS:
            self._fragments, self._fragment_flags = payload, flags
        elif kind == CONTINUATION:
            self._fragments += payload
            if flags & END_HEADERS:
                self._headers_received(stream_id, self._fragment_flags, self._fragments)
        self._flush_soon()

    def _settings(self, payload: bytes) -> None:
        for key, value in _SETTING.iter_unpack(payload):
            if key == 1:
                assert value >= HeaderWriter.TABLE_BYTES_MAX, "the server keeps too small a header table"
            elif key == 3:
                self._streams_max = value
            elif key == 4:
                for blocked in self._blocked.values():
                    blocked.window += value - self._peer_window
                self._peer_window = value
            elif key == 5:
                self._frame_max = value
        self._out.append(_frame(SETTINGS, ACK, 0, b""))
        if not self.ready.done():
            self.ready.set_result(None)
        while self._waiting and len(self._streams) < self._streams_max:
            self._send(*self._waiting.popleft())

    def _credit(self, stream_id: int, amount: int) -> None:
        if stream_id == 0:
            self._window += amount
        elif stream_id in self._blocked:
            self._blocked[stream_id].window += amount
        if self._blocked:
            self._send_blocked()


async def connect(host: str, port: int) -> Connection:
    """Open a connection and wait for the server's settings."""
    loop = asyncio.get_running_loop()
    make: Callable[[], Connection] = lambda: Connection(f"{host}:{port}")  # noqa: E731
    _, connection = await loop.create_connection(make, host, port)
    try:
        await connection.ready
    except BaseException:
        connection.close()
        raise
    return connection


def service_path(service: str, method: str) -> bytes:
    """Name a method as HTTP/2 does."""
    return f"/{service}/{method}".encode()


def workflow_path(method: str) -> bytes:
    """Name a method of WorkflowService."""
    return service_path("temporal.api.workflowservice.v1.WorkflowService", method)


def serialize(message: Any) -> bytes:
    """Serialize a protobuf message (typed loosely: the generated classes share no useful base)."""
    out: bytes = message.SerializeToString()
    return out
