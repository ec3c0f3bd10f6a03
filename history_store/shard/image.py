"""A transaction as a Raft entry: the rows and visibility records it writes, already computed by the leader.

Followers apply it without an engine (proposer-evaluated replication), so nodes of different versions cannot
diverge. Format: one msgpack array, its first element the version. Readers accept every version up to theirs.

Version 1 is a transaction; version 2 has the same fields and is the entry that splits a shard (split.py): a
program that does not know what that means must not take it for rows.
"""

from __future__ import annotations

import msgspec

from history_store.visibility.record import DeleteRecord, ExecutionRecord, VisibilityOp

TRANSACTION = 1
SPLIT = 2
FORMAT_VERSION = SPLIT  # what this version reads


class Image(msgspec.Struct, array_like=True, gc=False):
    """What one entry changes."""

    version: int
    rows: list[tuple[bytes, bytes | None]]  # keys without the group's four bytes; None deletes
    shown: list[ExecutionRecord] = []
    hidden: list[DeleteRecord] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Image).decode


def encode(rows: list[tuple[bytes, bytes | None]], visibility: list[VisibilityOp]) -> bytes:
    """The entry's bytes."""
    if not visibility:
        return _encode((TRANSACTION, rows))
    shown = [op for op in visibility if isinstance(op, ExecutionRecord)]
    hidden = [op for op in visibility if isinstance(op, DeleteRecord)]
    return _encode((TRANSACTION, rows, shown, hidden))


def encode_split(rows: list[tuple[bytes, bytes | None]]) -> bytes:
    """The bytes of an entry that splits a shard."""
    return _encode((SPLIT, rows))


def is_split(data: bytes) -> bool:
    """Whether a data entry splits its shard. Cheap: it is asked of each one that is committed."""
    return data[1:2] == b"\x02"  # behind the array's head, which is one byte


def decode(data: bytes) -> Image:
    """The entry again. ValueError for bytes that are none, or of a newer version."""
    try:
        image = _decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a shard transaction: {error}") from error
    if image.version > FORMAT_VERSION:
        raise ValueError(
            f"a shard transaction of format {image.version}; this version reads up to {FORMAT_VERSION}"
        )
    return image
