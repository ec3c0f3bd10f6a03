"""The cursor: how far a shard has applied another region's stream, and the rule by which it moves.

Theory of operation. The cursor is a row of the reading shard. The Raft entry that applies frames carries the
cursor behind them, and nothing else moves it, so a frame is applied once however often it comes: whoever
leads computes `advance` from the rows as of that entry. A snapshot moves it too (`adopt`), never back within
a stream.

Lineage: the offset that is committed with the output, as in Kafka's exactly-once sinks and Flink. Invariant:
the cursor stands on the border of a frame, and its digest stands for all that was applied.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from replication.frames import GENESIS, Entry, Frame, Stream, Tail, check_follows

FORMAT = 1
# Incarnations that were left behind: what is still on its way from them is no news.
RETIRED_MAX = 8


class Cursor(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a shard has applied a stream: a row of the shard. New fields go to the end, with defaults."""

    format: int
    stream: Stream
    seq: int = 0
    digest: bytes = GENESIS  # of the last frame
    hlc: int = 0  # of the last frame: how old what is seen here is
    retired: tuple[int, ...] = ()  # incarnations that were left behind, the last one first

    @property
    def tail(self) -> Tail:
        """What the next frame follows."""
        return Tail(self.seq, self.digest)


class Opened(NamedTuple):
    """A frame and what is in it."""

    frame: Frame
    entries: list[Entry]


class Batch(NamedTuple):
    """Frames that follow each other and were checked, for one Raft entry of the reading shard."""

    stream: Stream
    frames: tuple[Opened, ...]


def begin(stream: Stream) -> Cursor:
    """The cursor of a shard that reads a stream from its first number."""
    return Cursor(FORMAT, stream)


def part(parent: Cursor, stream: Stream) -> Cursor:
    """The cursor for the stream of a shard that parted from its parent where `parent` stands.

    That is the frame which says so, the last one of the parent that the new stream follows.
    """
    assert stream.region == parent.stream.region
    assert stream.shard != parent.stream.shard
    return msgspec.structs.replace(parent, stream=stream, retired=())


def parted(stream: Stream, seq: int, digest: bytes, hlc: int) -> Cursor:
    """As `part`, for who has passed that place in the parent's stream: what the source says of it."""
    return Cursor(FORMAT, stream, seq, digest, hlc)


def advance(cursor: Cursor, batch: Batch) -> tuple[Cursor, list[Opened]]:
    """What of a batch is to be applied, and the cursor that goes with it into the same Raft entry.

    What was applied before is left out; of a batch that begins behind the next number, or of another stream,
    nothing is taken. Raises ChainBroken if it follows another history.
    """
    if batch.stream != cursor.stream:
        return cursor, []
    taken: list[Opened] = []
    tail, hlc = cursor.tail, cursor.hlc
    for opened in batch.frames:
        frame = opened.frame
        if frame.last_seq <= tail.seq:
            continue
        if frame.first_seq > tail.seq + 1:
            break
        tail = check_follows(cursor.stream, tail, frame)
        hlc = frame.hlc
        taken.append(opened)
    return msgspec.structs.replace(cursor, seq=tail.seq, digest=tail.digest, hlc=hlc), taken


def adopt(cursor: Cursor, stream: Stream, tail: Tail, hlc: int) -> Cursor:
    """The cursor behind a snapshot that was taken where `stream` ended with `tail`."""
    if stream == cursor.stream:
        assert tail.seq >= cursor.seq, "a snapshot leads nobody back"
        return msgspec.structs.replace(cursor, seq=tail.seq, digest=tail.digest, hlc=hlc)
    assert stream[:2] == cursor.stream[:2]
    retired = (cursor.stream.incarnation, *cursor.retired)[:RETIRED_MAX]
    return Cursor(FORMAT, stream, tail.seq, tail.digest, hlc, retired)


class CursorError(ValueError):
    """A row that is damaged or of a newer format. Definite: nothing was done."""


_encoder = msgspec.msgpack.Encoder()
_cursors = msgspec.msgpack.Decoder(Cursor)


def encode_cursor(cursor: Cursor) -> bytes:
    """The cursor's row."""
    return _encoder.encode(cursor)


def decode_cursor(data: bytes) -> Cursor:
    """A cursor from its row. Raises CursorError."""
    try:
        cursor = _cursors.decode(data)
    except msgspec.DecodeError as error:
        raise CursorError(f"the cursor is no such row: {error}") from None
    if cursor.format != FORMAT:
        raise CursorError(f"the cursor has format {cursor.format}; this release reads {FORMAT}")
    return cursor
