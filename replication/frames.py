"""Entries and frames: what a shard tells other regions, numbered, cut and chained.

Theory of operation. A transaction of a shard may have entries for other regions. The leader numbers them
1, 2, 3 ... without a gap, and cuts them into frames; a frame is one row of the replication log. Number,
bytes and digest of a frame are rows of the same Raft log entry as the transaction itself, so every replica
holds the same ones, and a new leader goes on where they end.

 * A frame never holds entries of two transactions, and where a large transaction is cut follows from its
   entries alone (`_cut`). So borders are the same whoever writes the frame, and a reader that applied whole
   frames asks for exactly the key of the next one.
 * `content` is the digest of the frame before, then the body. `digest` is that of the content; hence each
   digest stands for everything before it. The chain's place does not depend on the body's format: what this
   release cannot read, it can still tell from damage.
 * A frame larger than a row should be is stored as chunks. A frame that lacks a chunk is not there.

A body is a msgpack array whose first element is the format. New fields of body or entry go to the end and
have defaults: who does not know them skips them. What would be misread otherwise takes a new format. A kind
of entry or a format that is not known is refused by its number: nobody guesses, and nobody skips.

Lineage: the frame is the group commit of a log, as in ARIES and every Raft; the chain is that of Haber and
Stornetta (1991); the clock of Kulkarni et al., "Logical Physical Clocks" (2014). Invariant: the frames of a
stream are a function of what its shard committed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

import msgspec

FORMAT = 1

# Against chance 16 bytes would do. Payloads are users' bytes, and a chain is also evidence: no collisions.
DIGEST_BYTES = 32
GENESIS = bytes(DIGEST_BYTES)  # the digest before the first frame

# Encoded entries of one frame, unless one alone is larger. With its header such a frame fits the 64 KiB that
# a doorbell carries and that Cassandra writes well as one row.
FRAME_ENTRIES_BYTES_MAX = 63 << 10
# A frame of tiny entries: fewer than a bucket holds numbers, and applied without a long pause.
FRAME_ENTRIES_MAX = 1024
# One row of the log. Rows of a megabyte take Cassandra 19 ms, of a quarter 5 ms.
CHUNK_BYTES_MAX = 256 << 10
# One entry, encoded: as much as one entry of the Raft log, which it is a part of.
ENTRY_BYTES_MAX = 80 << 20
# More than the largest frame has.
CHUNKS_MAX = 384
# Numbers of one partition of the log: 16 MiB at 4 KiB an entry, where 10 to 50 MiB are well.
BUCKET_SEQS = 4096

NUMBER_MAX = (1 << 63) - 1  # what the log's columns hold

assert FRAME_ENTRIES_MAX < BUCKET_SEQS
assert ENTRY_BYTES_MAX + FRAME_ENTRIES_BYTES_MAX < CHUNKS_MAX * CHUNK_BYTES_MAX


class Kind(IntEnum):
    """What an entry is about. What the payload means is the business of who made it."""

    EVENTS = 1  # a batch of events of one run, its branch, and what became of the rest of its state
    BUFFER = 2  # events accepted while a workflow task is in flight
    SIDE = 3  # state that is no event: attempts, heartbeats, stamps
    TOMB = 4  # a run was deleted
    SNAP = 5  # a whole run
    FENCE = 6  # nothing for these namespaces follows at this version
    UNFENCE = 7  # the handover ended without a switch
    BEAT = 8  # nothing to tell, but alive at this time
    SETTLED = 9  # inputs were left out, and where that was decided


class Stream(NamedTuple):
    """Which sequence of numbers: one shard of one region, as long as that shard's state lives on.

    A shard whose state was restored from a backup, or recovered without a quorum, draws a new incarnation.
    """

    region: str
    shard: int
    incarnation: int  # drawn at random from 1 to NUMBER_MAX

    def __str__(self) -> str:
        return f"{self.region}/{self.shard}@{self.incarnation:x}"


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing told to other regions. Its number is its place in its frame."""

    kind: Kind
    namespace_id: str = ""
    namespace_version: int = 0  # the failover version of the namespace when this was written
    workflow_id: str = ""
    run_id: str = ""
    codec: int = 0  # how the payload is encoded
    payload: bytes = b""


class Frame(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a row of the log holds, and a row of the outbox. Not known to be whole until `open_frame`."""

    first_seq: int
    count: int  # entries
    hlc: int  # when it was made, to tell the lag by; nothing is ordered by it
    content: bytes  # the digest of the frame before, and the body
    digest: bytes

    @property
    def last_seq(self) -> int:
        """The number of the last entry."""
        return self.first_seq + self.count - 1

    @property
    def previous(self) -> bytes:
        """The digest of the frame before this one, as this one says."""
        return self.content[:DIGEST_BYTES]


class Tail(NamedTuple):
    """Where a sequence of frames ends: for who adds one, and for who checks that one fits."""

    seq: int  # the last number; 0 before the first frame
    digest: bytes


START = Tail(0, GENESIS)


class FrameError(ValueError):
    """A frame that cannot be taken. Definite: nothing of it was used. Says which frame and which field."""

    def __init__(self, stream: Stream, first_seq: int, field: str, reason: str) -> None:
        super().__init__(f"{stream}: frame {first_seq}: {field}: {reason}")
        self.stream = stream
        self.first_seq = first_seq
        self.field = field


class FrameDamaged(FrameError):
    """These are not the bytes that were written, or not in their place. Another copy may be whole."""


class FrameUnknown(FrameError):
    """Whole, but of a format or with a kind of entry that this release does not know. No copy will help."""


class ChainBroken(FrameError):
    """Whole, but it follows another history than the one that was applied here."""


class _Body(msgspec.Struct, frozen=True, array_like=True):
    format: int
    region: str
    shard: int
    incarnation: int
    first_seq: int
    hlc: int
    entries: list[msgspec.Raw]


class _Format(msgspec.Struct, frozen=True, array_like=True):
    """The beginning that every format shares, of bodies (their format) and entries (their kind) alike."""

    number: int


_encoder = msgspec.msgpack.Encoder()
_bodies = msgspec.msgpack.Decoder(_Body)
_entries = msgspec.msgpack.Decoder(Entry)
_numbers = msgspec.msgpack.Decoder(_Format)
_KNOWN_KINDS = frozenset(Kind)


def bucket_of(first_seq: int) -> int:
    """The partition of the log that a frame is stored in: that of its first number, wherever it ends."""
    return first_seq // BUCKET_SEQS


def hlc_next(last: int, now_ms: int) -> int:
    """A time after `last`, and not before the wall clock: 48 bits of milliseconds, 16 that count.

    More than 65,536 in one millisecond run ahead of the clock; it catches up.
    """
    return max(last + 1, now_ms << 16)


def hlc_ms(hlc: int) -> int:
    """The wall clock in a hybrid time, in milliseconds since 1970."""
    return hlc >> 16


def make_frames(stream: Stream, after: Tail, entries: Sequence[Entry], hlc: int) -> list[Frame]:
    """The frames of one transaction's entries, which follow `after`.

    Raises ValueError, before anything is numbered, if an entry is larger than ENTRY_BYTES_MAX.
    """
    frames: list[Frame] = []
    for piece in _cut(entries):
        first = after.seq + 1
        body = _Body(FORMAT, *stream, first, hlc, piece)
        content = after.digest + _encoder.encode(body)
        frame = Frame(first, len(piece), hlc, content, digest_of(content))
        frames.append(frame)
        after = Tail(frame.last_seq, frame.digest)
    assert after.seq <= NUMBER_MAX
    return frames


def _cut(entries: Sequence[Entry]) -> Iterator[list[msgspec.Raw]]:
    """Encoded entries, a frame at a time. Depends on nothing but the entries: borders are for all time."""
    encoded = [_encoder.encode(entry) for entry in entries]
    for data, entry in zip(encoded, entries, strict=True):
        if len(data) > ENTRY_BYTES_MAX:
            raise ValueError(f"an entry of run {entry.run_id} has {len(data)} bytes, over {ENTRY_BYTES_MAX}")
    piece: list[msgspec.Raw] = []
    size = 0
    for data in encoded:
        if piece and (size + len(data) > FRAME_ENTRIES_BYTES_MAX or len(piece) == FRAME_ENTRIES_MAX):
            yield piece
            piece, size = [], 0
        piece.append(msgspec.Raw(data))
        size += len(data)
    if piece:
        yield piece


def digest_of(content: bytes) -> bytes:
    """The digest of a frame's content; with it of all frames before."""
    return blake2b(content, digest_size=DIGEST_BYTES).digest()


def open_frame(stream: Stream, frame: Frame) -> list[Entry]:
    """The entries of a frame that was stored for `stream` at `frame.first_seq`.

    Raises FrameDamaged if it is not what was written there, FrameUnknown if it needs a newer release. Says
    nothing about what comes before it; that is `check_follows`.
    """
    body = _open_body(stream, frame)
    return [
        _open_entry(stream, frame.first_seq, frame.first_seq + ordinal, raw)
        for ordinal, raw in enumerate(body.entries)
    ]


def _open_body(stream: Stream, frame: Frame) -> _Body:
    first = frame.first_seq
    if digest_of(frame.content) != frame.digest:
        raise FrameDamaged(stream, first, "digest", "is not the digest of the content")
    try:
        data = memoryview(frame.content)[DIGEST_BYTES:]
        number = _numbers.decode(data).number
        if number != FORMAT:
            raise FrameUnknown(stream, first, "format", f"is {number}; this release reads {FORMAT}")
        body = _bodies.decode(data)
    except msgspec.DecodeError as error:
        raise FrameDamaged(stream, first, "body", str(error)) from None
    said = (body.region, body.shard, body.incarnation, body.first_seq, len(body.entries), body.hlc)
    expected = (*stream, first, frame.count, frame.hlc)
    fields = ("region", "shard", "incarnation", "first_seq", "count", "hlc")
    for field, is_, should in zip(fields, said, expected, strict=True):
        if is_ != should:
            raise FrameDamaged(stream, first, field, f"is {is_!r} in the body, {should!r} outside")
    if not body.entries:
        raise FrameDamaged(stream, first, "entries", "are none")
    return body


def _open_entry(stream: Stream, first_seq: int, seq: int, raw: msgspec.Raw) -> Entry:
    try:
        kind = _numbers.decode(raw).number
        if kind not in _KNOWN_KINDS:
            raise FrameUnknown(stream, first_seq, f"entry {seq}: kind", f"is {kind}, which is not known here")
        return _entries.decode(raw)
    except msgspec.DecodeError as error:
        raise FrameDamaged(stream, first_seq, f"entry {seq}", str(error)) from None


def encode_entry(entry: Entry) -> bytes:
    """An entry by itself, for a row of its own."""
    return _encoder.encode(entry)


def decode_entry(data: bytes) -> Entry:
    """That entry again. Raises ValueError for bytes that are none, or of a kind that is not known."""
    entry = _entries.decode(data)
    if entry.kind not in _KNOWN_KINDS:
        raise ValueError(f"an entry of kind {entry.kind}, which is not known here")
    return entry


def check_follows(stream: Stream, after: Tail, frame: Frame) -> Tail:
    """Where the sequence ends with this frame. Raises ChainBroken if it is not the one that comes next."""
    if frame.first_seq != after.seq + 1:
        raise ChainBroken(stream, frame.first_seq, "first_seq", f"follows {after.seq}")
    if frame.previous != after.digest:
        reason = f"is {frame.previous.hex()[:16]}, but {after.seq} has {after.digest.hex()[:16]}"
        raise ChainBroken(stream, frame.first_seq, "previous digest", reason)
    return Tail(frame.last_seq, frame.digest)


def chunks_of(frame: Frame) -> list[bytes]:
    """The frame's content in pieces of CHUNK_BYTES_MAX, for as many rows. At least one."""
    content = frame.content
    chunks = [content[at : at + CHUNK_BYTES_MAX] for at in range(0, len(content), CHUNK_BYTES_MAX)]
    assert 0 < len(chunks) <= CHUNKS_MAX
    return chunks


def join_chunks(chunks: Iterable[bytes]) -> bytes:
    """The content of all chunks of a frame, in their order."""
    return b"".join(chunks)
