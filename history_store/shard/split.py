"""A shard is split in two: which rows go, and how they are brought over while the shard serves. Pure.

One entry of the parent's log says it (`Split`): from there on the parent has nothing to do with some slots,
and a new group, the child, begins with their rows as they are at that entry, and with the parent's members.
The entry leaves a row in the parent for ever, which says so to everybody who reads the parent's rows.

On each replica the child's rows are brought over beforehand: copied a few at a time under a generation of
their own (`Copy`), while whatever the parent stores is stored there as well if it belongs there (`Mirror`). A
copy that is complete is exact at every moment, up to the entry, where it stops. What is left in the parent is
not seen any more (`Slots`), and deleted when the child stands on its own feet.

What is no slot's (which region serves a namespace, how far other regions' streams are read) the child has as
well: the entry has a row with all of it (`heritage`), which becomes rows of the child's.

A split that is not wanted any more is abandoned by an entry as well: of the two that could come, the log has
one. It leaves the row that the other would, without slots.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

import msgspec

from history_store.engine import keys
from history_store.shard import snapshot

SPLIT = 1
ABANDONED = 2  # a program that does not know what that means must not make a child of it
FORMAT_VERSION = ABANDONED  # what this version reads
# Where a child's log begins: behind an entry that nobody has, since its rows are what it stands for.
FIRST_INDEX, FIRST_TERM = 1, 1

_BY_SLOT = (keys.CURRENT, keys.RUN, keys.ITEM, keys.HISTORY)
_BY_VALUE = (keys.TASK, keys.WAKE, keys.ACTION)

# Of the shard as a whole: the child begins with them as they are at the entry, and the parent keeps its own.
_BY_SHARD = (keys.FAILOVER,)

Ranges = tuple[tuple[int, int], ...]
RowList = list[tuple[bytes, bytes | None]]


class Split(msgspec.Struct, array_like=True, frozen=True):
    """What the entry says, as the row that it leaves in the parent."""

    version: int
    child: int  # the group
    ranges: Ranges  # of slots, both ends included; () = abandoned: there will be no such child
    conf: bytes  # the child's first members: those of the parent at the entry
    index: int  # of the entry

    @property
    def abandoned(self) -> bool:
        """Whether all stays the parent's."""
        return not self.ranges


class Copy(msgspec.Struct, array_like=True, frozen=True):
    """How far a child's rows are copied, as this node's book has it."""

    parent: int
    child: int
    ranges: Ranges
    source: int  # the parent's generation
    target: int
    span: int = 0  # the ordinal of the span of keys that is being copied; the number of spans: complete
    after: bytes = b""  # the last key of it that was


class Parting(msgspec.Struct, array_like=True, frozen=True):
    """That this replica applied the entry with its own rows, some of which are still to be cleared away."""

    parent: int
    source: int  # the parent's generation
    split: Split


class _Owner(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a task's row and of a wake row."""

    namespace_id: str
    workflow_id: str


class _Actor(msgspec.Struct, array_like=True, gc=False):
    """Those of an action's row."""

    kind: str
    namespace_id: str
    workflow_id: str


_encode = msgspec.msgpack.Encoder().encode
_decode_rows = msgspec.msgpack.Decoder(RowList).decode
_decode_split = msgspec.msgpack.Decoder(Split).decode
_owner = msgspec.msgpack.Decoder(_Owner).decode
_actor = msgspec.msgpack.Decoder(_Actor).decode


def key_of(child: int) -> bytes:
    """The key of the row that a split leaves in the parent."""
    return keys.SPLIT + child.to_bytes(4, "big")


def heritage_key(child: int) -> bytes:
    """The key of the row with what the child begins with, besides its slots."""
    return keys.STREAM + b"h" + child.to_bytes(4, "big")


def encode_heritage(rows: RowList) -> bytes:
    """That row's value. Keys without the group's bytes."""
    return _encode(rows)


def encode(split: Split) -> bytes:
    """That row's value."""
    return _encode(split)


def abandonment(child: int, index: int) -> Split:
    """What the entry at `index` says that has the parent stay whole."""
    return Split(ABANDONED, child, (), b"", index)


def decode(value: bytes) -> Split:
    """The split again. ValueError for one of a newer version."""
    split = _decode_split(value)
    if split.version > FORMAT_VERSION:
        raise ValueError(f"a split of format {split.version}; this version reads up to {FORMAT_VERSION}")
    return split


def splits_in(rows: Iterable[tuple[bytes, bytes | None]]) -> list[Split]:
    """The splits among an entry's rows."""
    return [decode(value) for key, value in rows if key[:1] == keys.SPLIT and value is not None]


class Slots:
    """Some slots, and whether a row belongs to one of them."""

    __slots__ = ("_in", "ranges")

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self.ranges: Ranges = tuple(ranges)
        self._in = bytearray(keys.SLOTS)
        for first, last in self.ranges:
            self._in[first : last + 1] = b"\1" * (last + 1 - first)

    def __contains__(self, slot: int) -> bool:
        return bool(self._in[slot])

    def have(self, key: bytes, value: bytes | None) -> bool:
        """Whether the row belongs to them. One that is deleted may, if its key does not say."""
        kind = key[:1]
        if kind in _BY_SLOT:
            return bool(self._in[int.from_bytes(key[1:3], "big")])
        if kind not in _BY_VALUE:
            return False
        if value is None:
            return True
        owner = _actor(value) if kind == keys.ACTION else _owner(value)
        return bool(self._in[keys.slot_of(owner.namespace_id, owner.workflow_id)])

    def begin_with(self, key: bytes, value: bytes | None) -> bool:
        """Whether a child with these slots begins with the row: it belongs to them, or to the whole shard."""
        return key[:1] in _BY_SHARD or self.have(key, value)


def spans(ranges: Ranges) -> list[tuple[bytes, bytes]]:
    """The ranges of keys that all rows lie in that a child with these slots begins with, and others'."""
    found = [
        (kind + keys.slot_bytes(first), keys.prefix_end(kind + keys.slot_bytes(last)))
        for kind in _BY_SLOT
        for first, last in ranges
    ]
    return found + [(kind, keys.prefix_end(kind)) for kind in (*_BY_VALUE, *_BY_SHARD)]


def without(rows: Iterable[tuple[bytes, bytes]], ranges: Ranges) -> Generator[tuple[bytes, bytes]]:
    """The rows of a shard without those of slots that it gave up. Keys without a generation."""
    gone = Slots(ranges)
    return ((key, value) for key, value in rows if not gone.have(key, value))


class Mirror:
    """Has what a shard stores stored a second time, as far as it belongs to a child."""

    __slots__ = ("_prefix", "child", "slots", "until")

    def __init__(self, child: int, target: int, slots: Slots, until: int = 0) -> None:
        self.child = child
        self.slots = slots
        self.until = until  # the entry that splits the shard; 0 = it has not come yet
        self._prefix = snapshot.prefix(target)

    def rows(self, committed: Iterable[tuple[int, RowList]]) -> RowList:
        """The rows to be stored besides, with their keys in full. `committed`: (index, rows), in order."""
        latest: dict[bytes, bytes | None] = {}
        for index, rows in committed:
            if self.until and index > self.until:
                break
            latest.update(rows)
        prefix, begins_with = self._prefix, self.slots.begin_with
        theirs = [(prefix + key, value) for key, value in latest.items() if begins_with(key, value)]
        heritage = latest.get(heritage_key(self.child))
        if heritage is not None:
            theirs += [(prefix + key, value) for key, value in _decode_rows(heritage)]
        return theirs
