"""HTTP/2 frames (RFC 9113): their numbers, their nine-byte header, and the fault that ends a connection."""

from __future__ import annotations

import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# Frame types. Plain integers, not an enum: they are compared for every frame received.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

# Flags.
ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

# Settings.
SETTINGS_HEADER_TABLE_SIZE: Final = 0x1
SETTINGS_ENABLE_PUSH: Final = 0x2
SETTINGS_MAX_CONCURRENT_STREAMS: Final = 0x3
SETTINGS_INITIAL_WINDOW_SIZE: Final = 0x4
SETTINGS_MAX_FRAME_SIZE: Final = 0x5
SETTINGS_MAX_HEADER_LIST_SIZE: Final = 0x6

# Error codes.
NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
INTERNAL_ERROR: Final = 0x2
FLOW_CONTROL_ERROR: Final = 0x3
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

FRAME_BYTES_MAX: Final = 16_384  # we never announce more, so nobody may send more
WINDOW_MAX: Final = 0x7FFF_FFFF
WINDOW_DEFAULT: Final = 65_535
STREAM_ID_MAX: Final = 0x7FFF_FFFF

# The 24-bit length is split in two, since struct has no three-byte integer.
_HEADER = struct.Struct(">HBBBL")
unpack_header = _HEADER.unpack_from
_pack_header = _HEADER.pack


def header(length: int, kind: int, flags: int, stream: int) -> bytes:
    """A frame's first nine bytes."""
    return _pack_header(length >> 8, length & 0xFF, kind, flags, stream)


def rst_stream(stream: int, code: int) -> bytes:
    """A whole RST_STREAM frame."""
    return header(4, RST_STREAM, 0, stream) + code.to_bytes(4, "big")


def window_update(stream: int, increment: int) -> bytes:
    """A whole WINDOW_UPDATE frame."""
    return header(4, WINDOW_UPDATE, 0, stream) + increment.to_bytes(4, "big")


def ping(payload: bytes, *, ack: bool) -> bytes:
    """A whole PING frame."""
    return header(8, PING, ACK if ack else 0, 0) + payload


def goaway(last_stream: int, code: int, reason: str = "") -> bytes:
    """A whole GOAWAY frame."""
    payload = last_stream.to_bytes(4, "big") + code.to_bytes(4, "big") + reason.encode()
    return header(len(payload), GOAWAY, 0, 0) + payload


def settings(values: dict[int, int]) -> bytes:
    """A whole SETTINGS frame."""
    payload = b"".join(struct.pack(">HL", key, value) for key, value in values.items())
    return header(len(payload), SETTINGS, 0, 0) + payload


class ConnectionFault(Exception):
    """The peer broke the protocol or a limit in a way that ends the whole connection."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
