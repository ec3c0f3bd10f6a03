"""A peer that speaks HTTP/2 by the byte: frames in and out of a connection that has no socket."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterable
from typing import Any, NamedTuple

from hpack import Decoder, Encoder

from cluster.frontend.contract import Handler
from cluster.frontend.http2 import Http2Front, Limits
from cluster.frontend.http2.connection import Http2Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
HEADERS_END, ALL_END = 4, 5


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBL", len(payload) >> 8, len(payload) & 255, kind, flags, stream) + payload


def message(body: bytes, *, compressed: bool = False) -> bytes:
    return bytes((compressed,)) + len(body).to_bytes(4, "big") + body


def settings(**values: int) -> bytes:
    keys = {"window": 4, "frame": 5, "header_list": 6}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HL", keys[k], v) for k, v in values.items()))


def word(value: int) -> bytes:
    return value.to_bytes(4, "big")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


class MemoryTransport(asyncio.Transport):
    """Takes what is written; can be told to stop reading it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.unread = 0  # bytes that a peer who does not read leaves behind
        self.reading_stopped = False
        self.stuck = False
        self.closed = self.aborted = False
        self.high = 1 << 16
        self.protocol: Any = None

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 5000) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or 0

    def get_write_buffer_size(self) -> int:
        return self.unread

    def write(self, data: Any) -> None:
        assert not self.closed, "written to after close"
        self.written += data
        if self.stuck:
            self.unread += len(data)
            if self.unread > self.high and not self.reading_stopped:
                self.protocol.pause_writing()

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def pause_reading(self) -> None:
        self.reading_stopped = True

    def resume_reading(self) -> None:
        self.reading_stopped = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def _close(self) -> None:
        asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def close(self) -> None:
        if not self.is_closing():
            self.closed = True
            self._close()

    def abort(self) -> None:
        if not self.is_closing():
            self.aborted = True
            self._close()


class Peer:
    """One client, up to its first SETTINGS unless told otherwise."""

    def __init__(
        self,
        methods: dict[str, Handler] | None = None,
        streaming: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        front: Http2Front | None = None,
        greet: bool = True,
        **announced: int,
    ) -> None:
        if front is None:
            named = {f"/t.T/{name}": handler for name, handler in (methods or {}).items()}
            front = Http2Front(named, [f"/t.T/{name}" for name in streaming], limits=limits)
            front.loop = asyncio.get_running_loop()
        self.front = front
        self.transport = MemoryTransport()
        self.connection = Http2Connection(front, "192.0.2.1")
        self.transport.protocol = self.connection
        front.adopt(self.connection.host)
        self.connection.connection_made(self.transport)
        self.encoder, self.decoder = Encoder(), Decoder()
        self._seen = 0
        if greet:
            self.send(PREFACE + settings(**announced))
            self.frames()

    @property
    def gone(self) -> bool:
        return self.transport.is_closing()

    def send(self, *parts: bytes) -> Peer:
        if not self.gone:
            self.transport.protocol.data_received(b"".join(parts))
        return self

    def head(self, path: str = "/t.T/Echo", **extra: str) -> bytes:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *((name.replace("_", "-"), value) for name, value in extra.items()),
        ]
        block: bytes = self.encoder.encode(fields)
        return block

    def request(self, stream: int, body: bytes = b"", method: str = "Echo", **extra: str) -> bytes:
        """A whole call as bytes."""
        return frame(HEADERS, HEADERS_END, stream, self.head(f"/t.T/{method}", **extra)) + frame(
            DATA, 1, stream, message(body)
        )

    def frames(self) -> list[Frame]:
        """What was written since the last look."""
        self.connection.flush()
        data = bytes(self.transport.written[self._seen :])
        self._seen = len(self.transport.written)
        out = []
        while data:
            length = int.from_bytes(data[:3], "big")
            kind, flags, stream = struct.unpack(">BBL", data[3:9])
            out.append(Frame(kind, flags, stream, data[9 : 9 + length]))
            data = data[9 + length :]
        return out

    def answers(self) -> dict[int, tuple[dict[str, str], bytes]]:
        """Complete calls among the new frames: stream -> (headers and trailers, DATA payload)."""
        fields: dict[int, dict[str, str]] = {}
        bodies: dict[int, bytes] = {}
        blocks: dict[int, bytes] = {}
        for kind, flags, stream, payload in self.frames():
            if kind in (HEADERS, CONTINUATION):
                blocks[stream] = blocks.get(stream, b"") + payload
                if flags & 4:
                    fields.setdefault(stream, {}).update(self.decoder.decode(blocks.pop(stream)))
            elif kind == DATA:
                bodies[stream] = bodies.get(stream, b"") + payload
        return {stream: (found, bodies.get(stream, b"")) for stream, found in fields.items()}

    def status(self, stream: int) -> tuple[int, str]:
        """The one answer there is, as (grpc-status, grpc-message)."""
        found = self.answers()
        assert stream in found, f"no answer on stream {stream}: {found}"
        return int(found[stream][0]["grpc-status"]), found[stream][0].get("grpc-message", "")

    def goodbye(self) -> tuple[int, str] | None:
        """Error code and reason of the last GOAWAY, None if there was none."""
        for kind, _, _, payload in reversed(self.frames()):
            if kind == GOAWAY:
                return int.from_bytes(payload[4:8], "big"), payload[8:].decode()
        return None

    def resets(self) -> dict[int, int]:
        return {f.stream: int.from_bytes(f.payload, "big") for f in self.frames() if f.kind == RST}
