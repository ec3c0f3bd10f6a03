"""A shard's image on its way to another replica: cut into chunks, put together again, named on disk. Pure.

An image is all rows of a shard as of one entry, and with each run's core row the record that List shows of
it, since the projection is not made of rows. It travels as chunks, each whole in itself (number, checksum);
the last one has no rows, but the totals of all before it. `Progress` is what the receiving side has: chunks
count in their order, each once, whatever a connection does to them.

On disk an image arrives beside the rows that it will replace, under a *generation*: a number of this node
only, that stands where a group's number does in a row's key. A group's first generation has the group's own
number. Which one counts is stored with `applied`, in front of the members (`wrap_conf`), so that one durable
write replaces all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from zlib import crc32

import msgspec

from history_store.engine import keys
from history_store.visibility.record import ExecutionRecord

FORMAT_VERSION = 1
# Big enough that a round that stores one is mostly rows, small enough that nobody waits long behind it.
CHUNK_BYTES = 256 << 10

# Kind of the rows that hold a generation's records until they are shown. Not a shard's own: images leave it
# out, and nothing else is called so.
RECORD = b"\x00"
ROWS = b"\x01"  # a shard's own kinds are not below
GENERATION_FIRST = 1 << 31  # of those that came as images; groups have lower numbers
_WRAPPED = b"\xc1"  # msgpack never begins with it, and plain members are msgpack

RunName = tuple[str, str]  # namespace id, run id
Lookup = Callable[[list[RunName]], list[ExecutionRecord]]


class Damaged(ValueError):
    """The bytes are no chunk of this image: send it again."""


class Incomplete(ValueError):
    """The chunks are whole, but do not make the image that was sent: begin again."""


class Totals(msgspec.Struct, array_like=True, frozen=True):
    """What all chunks of an image come to."""

    rows: int
    records: int
    checksum: int


class Chunk(msgspec.Struct, array_like=True, gc=False):
    """A piece of an image."""

    version: int
    image: int  # the image's number, which its sender drew
    sequence: int  # from 0
    rows: list[tuple[bytes, bytes]]  # keys without the generation's four bytes
    records: list[ExecutionRecord]
    totals: Totals | None = None  # in the last chunk: of those before it


class _RunName(msgspec.Struct, array_like=True, gc=False):
    """The beginning of a run's core row."""

    namespace_id: str
    workflow_id: str
    run_id: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Chunk).decode
_decode_name = msgspec.msgpack.Decoder(_RunName).decode
_decode_conf = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
_decode_record = msgspec.msgpack.Decoder(ExecutionRecord).decode


# ------------------------------------------------------------------------------------------------- chunks


def cut(
    image: int, rows: Iterable[tuple[bytes, bytes]], lookup: Lookup | None, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """The chunks of an image, encoded. Rows come in any order, their keys without a generation.

    `lookup` finds the records of runs; None: these rows are not of runs. A row is never divided, so a chunk
    is as large as its largest row at least.
    """
    progress = Progress()
    held: list[tuple[bytes, bytes]] = []
    names: list[RunName] = []
    size = 0
    for key, value in rows:
        held.append((key, value))
        size += len(key) + len(value)
        if lookup is not None and key[:1] == keys.RUN:
            names.append(run_name(value))
        if size >= chunk_bytes:
            yield _sealed(progress, image, held, lookup(names) if lookup is not None and names else [])
            held, names, size = [], [], 0
    if held:
        yield _sealed(progress, image, held, lookup(names) if lookup is not None and names else [])
    yield _sealed(progress, image, [], [], Totals(progress.rows, progress.records, progress.checksum))


def _sealed(
    progress: Progress,
    image: int,
    rows: list[tuple[bytes, bytes]],
    records: list[ExecutionRecord],
    totals: Totals | None = None,
) -> bytes:
    body = _encode(Chunk(FORMAT_VERSION, image, progress.next, rows, records, totals))
    progress.next += 1
    progress.rows += len(rows)
    progress.records += len(records)
    progress.checksum = crc32(body, progress.checksum)
    return crc32(body).to_bytes(4, "big") + body


class Progress(msgspec.Struct, array_like=True):
    """How far an image has come. Stored with the rows of each chunk, so a restart goes on from there."""

    next: int = 0  # the chunk that is awaited
    rows: int = 0
    records: int = 0
    checksum: int = 0  # of all chunks so far, in their order
    complete: bool = False

    def take(self, image: int, data: bytes) -> Chunk | None:
        """The chunk, if it is the awaited one; None if it is another. Damaged, Incomplete."""
        body = memoryview(data)[4:]
        if len(data) < 4 or crc32(body) != int.from_bytes(data[:4], "big"):
            raise Damaged("a chunk's checksum does not fit")
        try:
            chunk = _decode(body)
        except msgspec.DecodeError as error:
            raise Damaged(f"not a chunk: {error}") from error
        if chunk.version > FORMAT_VERSION:
            raise Incomplete(f"an image of format {chunk.version}; this version reads up to {FORMAT_VERSION}")
        if chunk.image != image or self.complete or chunk.sequence != self.next:
            return None
        if chunk.totals is not None:
            found = Totals(self.rows, self.records, self.checksum)
            if chunk.totals != found:
                raise Incomplete(f"the image is {chunk.totals}, what arrived {found}")
            self.complete = True
        self.next += 1
        self.rows += len(chunk.rows)
        self.records += len(chunk.records)
        self.checksum = crc32(body, self.checksum)
        return chunk

    def copy(self) -> Progress:
        """As it is now."""
        return Progress(self.next, self.rows, self.records, self.checksum, self.complete)


# ------------------------------------------------------------------------------------------------- on disk


def run_name(core: bytes) -> RunName:
    """Whose core row this is."""
    name = _decode_name(core)
    return name.namespace_id, name.run_id


def prefix(generation: int) -> bytes:
    """What the keys of a generation begin with."""
    return generation.to_bytes(4, "big")


def prefix_end(generation: int) -> bytes:
    """The first key behind them."""
    return (generation + 1).to_bytes(4, "big")


def record_key(namespace_id: str, run_id: str) -> bytes:
    """Where a generation keeps a record that is not shown yet, after its four bytes."""
    return RECORD + f"{namespace_id}/{run_id}".encode()


def records_of(generation: int) -> tuple[bytes, bytes]:
    """The range of keys of all of them."""
    start = prefix(generation)
    return start + RECORD, start + ROWS


def encode_record(record: ExecutionRecord) -> bytes:
    """A record as such a row's value."""
    return _encode(record)


def decode_record(value: bytes) -> ExecutionRecord:
    """The record again."""
    return _decode_record(value)


def wrap_conf(group: int, generation: int, conf: bytes) -> bytes:
    """A group's members as stored with `applied`, and the generation that its rows have."""
    return conf if generation == group else _WRAPPED + _encode((generation, conf))


def unwrap_conf(group: int, stored: bytes) -> tuple[int, bytes]:
    """Generation and members. Plain members are those of a group that never took an image."""
    return _decode_conf(memoryview(stored)[1:]) if stored[:1] == _WRAPPED else (group, stored)
