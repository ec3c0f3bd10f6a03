"""Marks of damaged rows: how a read finds them, and where the node notes them. See replicas/repair.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec

from history_store.engine.errors import Code, ServiceError
from history_store.shard import snapshot
from history_store.storage.contract import StorageCorrupt

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group
    from history_store.storage.contract import Storage

_BOOK = snapshot.prefix(0xFFFFFFFF)  # replicas/generations.py keeps it
_DAMAGED = b"x"
_pack = msgspec.msgpack.Encoder().encode
_what = msgspec.msgpack.Decoder(str).decode


def note_key(group: int) -> bytes:
    """Where the book has it that a group's rows are damaged."""
    return _BOOK + _DAMAGED + snapshot.prefix(group)


def note(group: Group) -> tuple[bytes, bytes]:
    """The row of the book that says what is damaged of a group."""
    return note_key(group.id), _pack(group.damage)


def noted(storage: Storage, group: int) -> str:
    """What was found damaged of a group's rows, by this process or one before; "" = nothing."""
    found = storage.get(note_key(group))
    return _what(found) if found is not None else ""


class Reads:
    """Storage as a group's rows read it: damage makes the group damaged."""

    __slots__ = ("_on_damage", "_storage")

    def __init__(self, storage: Storage, on_damage: Callable[[StorageCorrupt], Exception]) -> None:
        """`on_damage` answers what the reader is to be told instead."""
        self._storage = storage
        self._on_damage = on_damage

    def get(self, key: bytes) -> bytes | None:
        """See `Storage`."""
        try:
            return self._storage.get(key)
        except StorageCorrupt as error:
            raise self._on_damage(error) from None

    def scan(
        self, start: bytes, end: bytes, limit: int = 0, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """See `Storage`."""
        try:
            yield from self._storage.scan(start, end, limit, reverse)
        except StorageCorrupt as error:
            raise self._on_damage(error) from None


def data_loss(group: Group) -> ServiceError:
    """What who asks hears where nobody else has the shard."""
    return ServiceError(
        Code.DATA_LOSS, f"shard {group.id} is damaged on this server's disk, and not served: {group.damage}"
    )
