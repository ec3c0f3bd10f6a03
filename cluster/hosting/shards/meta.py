"""The meta group: namespaces and their search attributes, kept as rows of Raft group 0.

All of it is held decoded, on every node. The leader changes what it holds when it proposes, so that changes
can follow each other at once; the others follow what is committed (`applied`), and so does a leader that lost
its office (`lost`): what it proposed last may never be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
from temporalio.api.enums.v1 import namespace_pb2
from temporalio.api.errordetails.v1.message_pb2 import NamespaceAlreadyExistsFailure, NamespaceNotFoundFailure

from history_store.engine import keys
from history_store.engine.errors import Code, ServiceError
from history_store.shard import image

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group, RowList, Waiter

NAMESPACE = b"n"
SETTING = b"s"
DAY = 86_400_000_000_000
RETENTION_DEFAULT = 3 * DAY
REGISTERED = namespace_pb2.NAMESPACE_STATE_REGISTERED
DEPRECATED = namespace_pb2.NAMESPACE_STATE_DEPRECATED
DELETED = namespace_pb2.NAMESPACE_STATE_DELETED

Row = tuple[bytes, bytes | None]


class Namespace(msgspec.Struct, array_like=True):
    """A namespace. Durations are nanoseconds."""

    id: str
    name: str
    state: int
    created: int
    retention: int = RETENTION_DEFAULT
    description: str = ""
    owner_email: str = ""
    data: dict[str, str] = {}
    search_attributes: dict[str, int] = {}  # custom name -> IndexedValueType
    version: int = 0  # failover version of what is written now
    config_version: int = 0
    forget_after: int = 0  # of a deleted one: its record is kept until then


class Settings(msgspec.Struct, array_like=True):
    """What the node's data was made with."""

    shards: int
    cluster_id: str
    format: int = 1


_namespace = msgspec.msgpack.Decoder(Namespace).decode
_settings = msgspec.msgpack.Decoder(Settings).decode
_pack = msgspec.msgpack.Encoder().encode


def not_found(name: str) -> ServiceError:
    """NOT_FOUND in the form that SDKs look for."""
    return ServiceError(
        Code.NOT_FOUND, f"Namespace {name} is not found.", NamespaceNotFoundFailure(namespace=name)
    )


def namespace_row(namespace: Namespace) -> tuple[bytes, bytes | None]:
    """The row that keeps a namespace."""
    return NAMESPACE + keys.raw_id(namespace.id), _pack(namespace)


class Part(Protocol):
    """Something else that lives in the meta group's rows, and follows them as the registry does."""

    def load(self) -> None:
        """All rows may be others."""

    def lost(self) -> None:
        """What was proposed and not committed may never be."""

    def applied(self, rows: RowList, ours: bool) -> None:
        """These rows are committed."""


class Meta:
    """The registry."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.by_id: dict[str, Namespace] = {}
        self.by_name: dict[str, Namespace] = {}
        self.settings: Settings | None = None
        self.on_change: list[Callable[[], None]] = []
        self.parts: list[Part] = []
        self._rows: dict[bytes, bytes] = {}  # as committed
        self.load()
        group.on_rows = self.applied

    def load(self) -> None:
        """Take what the rows say now: at the start, and when an image replaced them."""
        self._rows.clear()
        for kind in (NAMESPACE, SETTING):
            self._rows.update(self.group.rows.scan(kind, bytes((kind[0] + 1,))))
        for part in self.parts:
            part.load()
        self._read()

    def lost(self) -> None:
        """Forget what was proposed and not committed."""
        for part in self.parts:
            part.lost()
        self._read()

    def _read(self) -> None:
        self.by_id.clear()
        self.by_name.clear()
        for key, value in self._rows.items():
            if key[:1] == NAMESPACE:
                self.hold(_namespace(value))
        data = self._rows.get(SETTING)
        self.settings = _settings(data) if data is not None else None
        for callback in self.on_change:
            callback()

    def applied(self, rows: list[tuple[bytes, bytes | None]], ours: bool) -> None:
        """These rows are committed; `ours`: this node proposed them, and holds them already."""
        changed = False
        for part in self.parts:
            part.applied(rows, ours)
        for key, value in rows:
            if key[:1] not in (NAMESPACE, SETTING):
                continue
            old = self._rows.pop(key, None)
            if value is not None:
                self._rows[key] = value
            if ours:
                continue
            changed = True
            if key == SETTING:
                self.settings = _settings(value) if value is not None else None
                continue
            if old is not None:
                was = _namespace(old)
                self.by_id.pop(was.id, None)
                if (found := self.by_name.get(was.name)) is not None and found.id == was.id:
                    del self.by_name[was.name]
            if value is not None:
                self.hold(_namespace(value))
        if changed:
            for callback in self.on_change:
                callback()

    def hold(self, namespace: Namespace) -> None:
        """It is proposed, or committed: know it."""
        self.by_id[namespace.id] = namespace
        if namespace.state != DELETED:
            self.by_name[namespace.name] = namespace

    def get(self, name: str) -> Namespace:
        """The namespace by its name. INVALID_ARGUMENT if it is empty, NOT_FOUND if there is none."""
        found = self.by_name.get(name)
        if found is None:
            if not name:
                raise ServiceError(Code.INVALID_ARGUMENT, "Namespace is empty.")
            raise not_found(name)
        return found

    def named(self, namespace_id: str) -> str:
        """The name of a namespace by its id ("" if it is gone)."""
        found = self.by_id.get(namespace_id)
        return found.name if found is not None else ""

    def write_settings(self, settings: Settings, waiter: Waiter) -> None:
        """Record what the data is made with."""
        self.settings = settings
        self._propose([(SETTING, _pack(settings))], waiter)

    def create(self, namespace: Namespace, waiter: Waiter, also: Sequence[Row] = ()) -> None:
        """Register. ALREADY_EXISTS if the name is taken. `also`: rows of a part, of the same entry."""
        if namespace.name in self.by_name:
            raise ServiceError(
                Code.ALREADY_EXISTS, "Namespace already exists.", NamespaceAlreadyExistsFailure()
            )
        self.put(namespace, waiter, also)

    def put(self, namespace: Namespace, waiter: Waiter, also: Sequence[Row] = ()) -> None:
        """Write a namespace, new or changed. `also`: rows of a part, of the same entry."""
        self._propose([namespace_row(namespace), *also], waiter)
        old = self.by_id.get(namespace.id)
        if old is not None and (old.name != namespace.name or namespace.state == DELETED):
            self.by_name.pop(old.name, None)
        self.hold(namespace)
        for callback in self.on_change:
            callback()

    def forget(self, namespace_id: str, waiter: Waiter, also: Sequence[Row] = ()) -> None:
        """Drop the last of a namespace that is deleted, or held here no more."""
        self._propose([(NAMESPACE + keys.raw_id(namespace_id), None), *also], waiter)
        gone = self.by_id.pop(namespace_id, None)
        if gone is not None and self.by_name.get(gone.name) is gone:
            del self.by_name[gone.name]

    def write(self, rows: RowList, waiter: Waiter) -> None:
        """Write rows of a part."""
        self._propose(rows, waiter)

    def _propose(self, rows: list[tuple[bytes, bytes | None]], waiter: Waiter) -> None:
        self.group.propose(image.encode(rows, []), rows, [])
        self.group.when_committed(waiter)
