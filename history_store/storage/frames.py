"""The bytes of one log row: everything one round adds to the Raft logs of all groups.

A row is one version byte, the CRC-32 of its sequence and the rest (little-endian), then msgpack of
`[[[group, [[term, index, kind, data], ...]], ...], [[group, [term, vote, commit]], ...]]`.
One row a round keeps a commit at one SQLite step, whatever the number of groups and entries.
"""

from __future__ import annotations

import struct
from zlib import crc32

import msgspec

from history_store.storage.contract import Entry, HardState

ROW_VERSION = 1
_HEADER = struct.Struct("<BI")
HEAD_BYTES = _HEADER.size  # version and checksum
# zlib lets go of the GIL above 5 KiB; getting it back from a busy event loop costs more than the checksum
_CHECKSUM_SLICE_BYTES = 4096

Entries = list[tuple[int, list[Entry]]]
HardStates = list[tuple[int, HardState]]

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Entries, HardStates])


class FrameError(ValueError):
    """The bytes are not a log row that this version wrote."""


def encode(sequence: int, entries: Entries, hard_states: HardStates, buffer: bytearray) -> None:
    """Fill `buffer` (reused by the caller, so that no round allocates it anew) with the row."""
    _encoder.encode_into((entries, hard_states), buffer, _HEADER.size)
    _HEADER.pack_into(buffer, 0, ROW_VERSION, _checksum(sequence, buffer))


def decode(sequence: int, body: bytes) -> tuple[Entries, HardStates]:
    """The inverse; `FrameError` when a bit is not what it was."""
    if type(body) is not bytes:
        raise FrameError(f"it is of type {type(body).__name__}")  # damage can change a value's type
    if len(body) < _HEADER.size:
        raise FrameError(f"it is {len(body)} bytes long, too short for its header")
    version, expected = _HEADER.unpack_from(body)
    actual = crc32(memoryview(body)[_HEADER.size :], sequence & 0xFFFFFFFF)
    if version != ROW_VERSION and actual == expected:
        raise FrameError(
            f"it was written by a newer Holdfast (log row version {version}, we know {ROW_VERSION})"
        )
    if version != ROW_VERSION or actual != expected:
        raise FrameError(f"its checksum is {actual:08x} and should be {expected:08x}")
    try:
        return _decoder.decode(memoryview(body)[_HEADER.size :])
    except msgspec.MsgspecError as error:
        raise FrameError(f"its checksum is right but its content is not: {error}") from error


def is_whole(sequence: int, body: bytes) -> bool:
    """Whether the checksum is right, whatever the version."""
    if len(body) < _HEADER.size:
        return False
    expected: int = _HEADER.unpack_from(body)[1]
    return crc32(memoryview(body)[_HEADER.size :], sequence & 0xFFFFFFFF) == expected


def _checksum(sequence: int, buffer: bytearray) -> int:
    value = sequence & 0xFFFFFFFF
    with memoryview(buffer) as view:
        for start in range(_HEADER.size, len(buffer), _CHECKSUM_SLICE_BYTES):
            value = crc32(view[start : start + _CHECKSUM_SLICE_BYTES], value)
    return value
