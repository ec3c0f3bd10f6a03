"""The little of HTTP/2 (RFC 9113) that the relay speaks: where streams can be cut, how a call is refused.

Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
from urllib.parse import quote

FRAME_HEAD_BYTES = 9  # section 4.1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # of a client, section 3.4
DATA, HEADERS, SETTINGS, PUSH_PROMISE, PING, CONTINUATION = 0x0, 0x1, 0x4, 0x5, 0x6, 0x9
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
# Stream 0, every stream that the client began is served, no error: section 6.8.
GOAWAY = bytes([0, 0, 8, 0x7, 0, 0, 0, 0, 0]) + (2**31 - 1).to_bytes(4, "big") + bytes(4)
UNAVAILABLE = b"14"  # of gRPC
MESSAGE_BYTES_MAX = 900


class Frames:
    """Where a stream of frames can be cut: after whole frames, and not within a header block."""

    def __init__(self, preface: int = 0) -> None:
        """`preface`: bytes that come before the first frame."""
        self._head = b""
        self._payload = preface  # bytes of the frame that are still to come
        self._block = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take what came; the heads of the frames that began with it."""
        at = 0
        heads = []
        while at < len(data):
            if self._payload:
                step = min(self._payload, len(data) - at)
                self._payload -= step
                at += step
                continue
            step = FRAME_HEAD_BYTES - len(self._head)
            self._head += data[at : at + step]
            at += step
            if len(self._head) == FRAME_HEAD_BYTES:
                head, self._head = self._head, b""
                self._payload = int.from_bytes(head[:3], "big")
                if head[3] in (HEADERS, PUSH_PROMISE, CONTINUATION):
                    self._block = not head[4] & END_HEADERS
                heads.append(head)
        return heads

    @property
    def between(self) -> bool:
        """Whether another frame may begin here."""
        return not self._head and not self._payload and not self._block


class Refusal:
    """A server that answers calls with UNAVAILABLE and a message."""

    def __init__(self, message: str) -> None:
        self._message = quote(message, safe=" :;,.()[]'/=-_").encode()[:MESSAGE_BYTES_MAX]
        self._frames = Frames(len(PREFACE))
        self._greeted = False
        self.answered = False

    def answer(self, data: bytes) -> bytes:
        """What to say to it. Header blocks are not read: every call gets the same answer."""
        said = b"" if self._greeted else _frame(SETTINGS, 0, 0, b"")
        self._greeted = True
        for head in self._frames.feed(data):
            if head[3] == SETTINGS and not head[4] & ACK:
                said += _frame(SETTINGS, ACK, 0, b"")
            elif head[3] == HEADERS:
                stream = int.from_bytes(head[5:], "big")
                said += _frame(HEADERS, END_HEADERS | END_STREAM, stream, self._trailers()) + GOAWAY
                self.answered = True
        return said

    def _trailers(self) -> bytes:
        # HPACK without tables (RFC 7541): 0x88 is the static ":status: 200".
        return b"\x88" + b"".join(
            _literal(name, value)
            for name, value in (
                (b"content-type", b"application/grpc"),
                (b"grpc-status", UNAVAILABLE),
                (b"grpc-message", self._message),
            )
        )


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBL", kind, flags, stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(count: int) -> bytes:
    """An integer with a prefix of seven bits: RFC 7541, 5.1."""
    if count < 127:
        return bytes([count])
    count -= 127
    told = b"\x7f"
    while count >= 128:
        told += bytes([count % 128 + 128])
        count //= 128
    return told + bytes([count])
