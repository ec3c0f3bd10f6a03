"""Frames: how messages lie on a stream of bytes.

    length of the body   4 bytes, big-endian
    frame format         1 byte
    crc32 of the body    4 bytes, big-endian
    body                 a msgpack array of messages, each an array that begins with its kind

Kinds below zero are the room's own (handshake, pings) and lie alone in their frame. Hello, the first frame on
every connection, stays in format 1 for ever: it is how two versions find out that they are two.

A checksum on top of TCP's and of TLS's: what is between two nodes is a Raft log, and 16 bits of checksum have
let damage through before (bad memory in a switch, a broken offload).
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any, Final
from zlib import crc32

import msgspec

from cluster.peers.contract import Message

FORMAT: Final = 1
HEAD: Final = struct.Struct(">IBI")
BODY_HEAD_BYTES_MAX: Final = 5  # of the array

# The room's own kinds.
HELLO: Final = -1
WELCOME: Final = -2
REFUSED: Final = -3
PING: Final = -4  # [PING, bytes read from this connection so far]

# Below, one copy is cheaper than a second buffer in the system call.
_JOINED_BYTES_MAX: Final = 16 << 10
_FIRST_BYTES: Final = 16 << 10  # a buffer is zeroed when it is made, and many connections carry one question
_READ_BYTES: Final = 256 << 10
# A buffer that grew for one large frame is given back.
_KEPT_BYTES_MAX: Final = 1 << 20

# Not a buffer that is used again: for a single message that measured twice as slow (1.3 us, not 0.7), because
# a bytearray is reallocated whenever it shrinks to less than half.
encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Fault(Exception):
    """What came cannot be a frame of ours; the sentence goes to the log."""


def array_head(count: int) -> bytes:
    """How a msgpack array of so many items begins."""
    if count < 16:
        return bytes((0x90 | count,))
    if count < 1 << 16:
        return b"\xdc" + count.to_bytes(2, "big")
    return b"\xdd" + count.to_bytes(4, "big")


def seal(messages: list[bytes]) -> list[bytes]:
    """A frame of encoded messages, as buffers to write one after the other. Takes `messages` over."""
    if len(messages) == 1 and len(messages[0]) >= _JOINED_BYTES_MAX:
        return seal_alone(messages[0])
    messages.insert(0, array_head(len(messages)))
    body = b"".join(messages)
    head = HEAD.pack(len(body), FORMAT, crc32(body))
    return [head + body] if len(body) < _JOINED_BYTES_MAX else [head, body]


def seal_alone(message: bytes) -> list[bytes]:
    """A frame of one large encoded message, which is not copied."""
    start = array_head(1)
    head = HEAD.pack(len(message) + 1, FORMAT, crc32(message, crc32(start)))
    return [head + start, message]


def control(message: Message) -> bytes:
    """A frame of one of the room's own messages."""
    return b"".join(seal([encode(message)]))


def decode(body: memoryview) -> list[Message]:
    """The messages of a frame; at least one, none empty. Fault: it is not one."""
    try:
        messages = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # the last: arrays in arrays
        raise Fault(f"a frame whose checksum is right but which holds no messages: {error}") from None
    if not messages or not all(messages):
        raise Fault("a frame without messages, or with an empty one")
    return messages


class FrameReader(asyncio.BufferedProtocol):
    """Cuts what a transport reads into frames, without copying it: `_body` sees each in the buffer that the
    socket was read into."""

    def __init__(self, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        self._buffer = memoryview(bytearray(HEAD.size + min(frame_bytes_max, _FIRST_BYTES)))
        self._filled = 0
        self.received = 0  # bytes, since the connection began
        self.over = False  # what still arrives is not for us

    def accept_frames(self, frame_bytes_max: int) -> None:
        """The other side has shown who it is: larger frames from now on."""
        self._frame_bytes_max = frame_bytes_max

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the buffer is as large as it is
        """Where to read to."""
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Handle every frame that is whole."""
        self.received += nbytes
        end = self._filled + nbytes
        try:
            start, needed = self._cut(end)
        except Fault as fault:
            self._filled = 0
            self._fault(str(fault))
        else:
            self._keep(start, end, needed)

    def _cut(self, end: int) -> tuple[int, int]:
        """Where the frame begins that is not whole, and how long it is, as far as that is known."""
        buffer = self._buffer
        start = 0
        while end - start >= HEAD.size and not self.over:
            length, form, checksum = HEAD.unpack_from(buffer, start)
            if form != FORMAT or length > self._frame_bytes_max:
                raise Fault(self._not_a_frame(bytes(buffer[start : start + HEAD.size])))
            stop = start + HEAD.size + length
            if stop > end:
                return start, HEAD.size + length
            body = buffer[start + HEAD.size : stop]
            if crc32(body) != checksum:
                raise Fault(f"a damaged frame: {length} bytes whose checksum is not {checksum:08x}")
            self._body(body)
            start = stop
        return start, HEAD.size

    def _keep(self, start: int, end: int, needed: int) -> None:
        """Make room for what is missing of the frame that has begun at `start`."""
        buffer = self._buffer
        rest = end - start
        size = len(buffer)
        if needed > size:
            size = max(needed, _READ_BYTES)
        elif size > _KEPT_BYTES_MAX and needed <= _READ_BYTES:
            size = max(_READ_BYTES, rest + HEAD.size)
        elif size < _READ_BYTES < self._frame_bytes_max:
            size = _READ_BYTES
        if size != len(buffer):
            self._buffer = memoryview(bytearray(size))
            self._buffer[:rest] = buffer[start:end]
        elif rest and start:
            buffer[:rest] = buffer[start:end]
        self._filled = rest

    def _not_a_frame(self, head: bytes) -> str:
        if head[:1] == b"\x16" and head[1:2] == b"\x03":
            return "a TLS handshake on a port that speaks no TLS: configure it on both sides or on neither"
        if head[:4] in (b"GET ", b"POST", b"PUT ", b"HEAD", b"PRI "):
            return "an HTTP request: this port is for the nodes of the region, clients have another one"
        length, form, _ = HEAD.unpack(head)
        if form != FORMAT:
            return f"bytes that are no frame (they begin with {head[:5].hex(' ')})"
        return f"a frame of {length} bytes, when at most {self._frame_bytes_max} are allowed"

    def _body(self, body: memoryview) -> None:
        """A whole frame; the memory is valid during the call. May raise Fault."""
        raise NotImplementedError

    def _fault(self, sentence: str) -> None:
        """Nothing sensible can follow."""
        raise NotImplementedError
