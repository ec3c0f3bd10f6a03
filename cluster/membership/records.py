"""What is written down about a region: itself, its nodes, its shards. Rows of the meta group.

Keys: one kind byte, then the id in four bytes, so that a scan of a kind goes by id. The kinds are capital
letters; the meta group's other rows use small ones.

    G            the region
    N  node      a node, for ever: a removed one keeps its row, so that its id is never given again
    R  index     another region, for ever, for the same reason
    S  group     a shard, for ever, for the same reason

A value is a msgpack array whose first element is the format. New fields go to the end and have defaults: a
node that does not know them skips them, and loses them when it rewrites the row; so nobody may rely on a new
field before all nodes know it. What would be misread otherwise takes a new format.

All that lasts (log entries, the rows in them, images, these records) has one more number, `FORMATS`, that
grows by one with a release that changes any of it. A node says with its record which it reads; the region
writes `RegionRecord.formats`, which is raised when all nodes read more and is never lowered.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, TypeAlias

import msgspec

FORMAT = 1
FORMATS = 3  # the newest that this program reads; it writes what the region's record says
ABANDONED_SPLITS = 2  # from this number on the log and the table have a word for them
OTHER_REGIONS = 3  # from this number on the table has rows for them

REGION = b"G"
NODE = b"N"
REMOTE = b"R"
SHARD = b"S"
KINDS = (REGION, NODE, REMOTE, SHARD)
INDEX_DEFAULT = 1  # of a region; versions say with it who wrote them, so it never changes

META_GROUP = 0  # the Raft group of these rows; shards are numbered from 1

Row: TypeAlias = tuple[bytes, bytes | None]  # key, value; None deletes


class TableError(ValueError):
    """Rows that are damaged or of a newer format. Definite: they were not applied."""


class NodeState(IntEnum):
    """What a node is good for."""

    ACTIVE = 1
    DRAINING = 2  # leads nothing and is given nothing, but keeps its replicas: it will be back
    LEAVING = 3  # its replicas go elsewhere; REMOVED when the last is gone
    REMOVED = 4  # for ever


class ShardState(IntEnum):
    """Whether a shard owns slots."""

    PREPARING = 1  # the coming half of a split: its ranges are still its parent's
    SERVING = 2
    RETIRED = 3  # owns nothing, for ever


class RegionRecord(msgspec.Struct, array_like=True, frozen=True):
    """The region as a whole."""

    format: int
    cluster_id: str
    region: str
    replicas: int  # how many a shard is to have; fewer where there are not enough machines
    created_ns: int
    meta_replicas: tuple[int, ...] = ()  # wanted voters of the meta group; the other nodes are its learners
    formats: int = 1  # that its nodes write; never lowered
    index: int = INDEX_DEFAULT  # its number among regions that work together, for ever


class NodeRecord(msgspec.Struct, array_like=True, frozen=True):
    """A node. Addresses are host:port."""

    format: int
    id: int  # >= 1
    name: str
    peers_address: str
    grpc_address: str
    metrics_address: str
    machine: str  # what fails together; "" = a machine of its own
    state: NodeState
    joined_ns: int
    version: str  # of the program
    disk: str = ""  # drawn when the node's data was made; "" = it has not said yet
    formats: int = 1  # that it reads, at most


class RemoteNode(NamedTuple):
    """A node of another region. Addresses are host:port."""

    id: int
    peers_address: str
    grpc_address: str


class RemoteRecord(msgspec.Struct, array_like=True, frozen=True):
    """Another region, as it said it is when it was asked last."""

    format: int
    index: int
    name: str
    cluster_id: str
    nodes: tuple[RemoteNode, ...]  # those present there, by id
    removed: bool = False  # for ever: nothing is exchanged with it any more


class ShardRecord(msgspec.Struct, array_like=True, frozen=True):
    """A shard. Ranges of slots are (first, last), both included, ascending, not touching each other."""

    format: int
    id: int  # the number of its Raft group, >= 1
    ranges: tuple[tuple[int, int], ...]
    replicas: tuple[int, ...]  # wanted, distinct; the first is the preferred leader
    state: ShardState
    parent: int = 0  # the shard it was split from; 0 = made at bootstrap
    first: tuple[int, ...] = ()  # voters of the new group at bootstrap; () = the members bring the others in
    epoch: int = 1  # grows with every change of the ranges, so that an old route can be told from a new one
    abandoned: bool = False  # of a coming half: it is not wanted any more; the parent's log decides


Record: TypeAlias = RegionRecord | NodeRecord | RemoteRecord | ShardRecord


class _Head(msgspec.Struct, array_like=True):
    format: int


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_Head).decode
_DECODERS: dict[bytes, msgspec.msgpack.Decoder[Record]] = {
    REGION: msgspec.msgpack.Decoder(RegionRecord),
    NODE: msgspec.msgpack.Decoder(NodeRecord),
    REMOTE: msgspec.msgpack.Decoder(RemoteRecord),
    SHARD: msgspec.msgpack.Decoder(ShardRecord),
}


def key_of(record: Record) -> bytes:
    """The key of a record's row."""
    match record:
        case RegionRecord():
            return REGION
        case NodeRecord():
            return NODE + record.id.to_bytes(4, "big")
        case RemoteRecord():
            return REMOTE + record.index.to_bytes(4, "big")
        case ShardRecord():
            return SHARD + record.id.to_bytes(4, "big")


def row_of(record: Record) -> Row:
    """The row that keeps a record."""
    assert record.format == FORMAT, "this version writes one format"
    return key_of(record), _encode(record)


def is_ours(key: bytes) -> bool:
    """Whether a row of the meta group is one of these."""
    return key[:1] in KINDS


def decode(key: bytes, value: bytes) -> Record:
    """The record of a row of ours. Raises TableError if it is none, or of a newer format."""
    try:
        written = _head(value).format
        if written > FORMAT:
            raise TableError(
                f"row {key.hex()} is of format {written}, and this version reads up to {FORMAT}; "
                "start a version that is as new as the one that wrote it"
            )
        record: Record = _DECODERS[key[:1]].decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise TableError(f"row {key.hex()} is no record of the region's table: {error}") from error
    if key_of(record) != key:
        raise TableError(f"row {key.hex()} holds a record that belongs to {key_of(record).hex()}")
    return record
