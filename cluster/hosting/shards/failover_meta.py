"""The failover part of the meta group: who is active, on every node of a region that has others.

Theory of operation. `replication.failover.meta.MetaState` says what a command does. The meta group's leader
applies a command to the state as it will be when all it has proposed is committed (`ahead`), and proposes
the rows that come of it. Everybody follows the rows that are committed (`committed`), the leader as well,
since nobody may be told to act on what may never be. What is ahead is forgotten when another may lead.

A namespace's configuration travels as the blob of its max register. Where a larger one arrives, the
registry's own row of the namespace is written in the same entry, so the two never differ. In a region where
another namespace has the name already, the one that comes is shown by its name and a piece of its id.

Invariant: `committed` is a function of the committed entries of the meta group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from cluster.hosting.groups.group import NotLeading, nobody
from cluster.hosting.shards.gates import NotActive
from cluster.hosting.shards.meta import DELETED, Namespace
from replication.failover import records
from replication.failover.commands import Configure, Create
from replication.failover.gates import Admission, Verdict
from replication.failover.meta import MetaState
from replication.failover.records import FORMAT, Config, LedgerRow, Mode
from replication.versions import next_version, owner_of

if TYPE_CHECKING:
    from cluster.hosting.groups.group import RowList, Waiter
    from cluster.hosting.shards.meta import Meta
    from replication.failover.commands import MetaCommand
    from replication.failover.meta import Outcome
    from replication.failover.records import NamespaceRecord

_KINDS = b"f", b"g"  # all rows of failover begin with an f
_ID_CHARACTERS = 8  # of a namespace's id, behind a name that another has here


class Elsewhere(Protocol):
    """What has to be asked of other regions (region/failover_operations.py)."""

    async def may_hold(self, region: int, namespace_id: str, name: str) -> None:
        """Ask a region whether it can hold a namespace. FAILED_PRECONDITION, UNAVAILABLE."""

    async def change_regions(self, name: str, regions: Sequence[str]) -> None:
        """These regions hold the namespace from now on, and no others."""

    async def make_active(self, name: str, region: str) -> None:
        """A graceful failover, to its end."""


class Settings(msgspec.Struct, array_like=True, frozen=True):
    """What the regions of a namespace have in common of it: the blob of its register."""

    name: str
    state: int
    created: int
    retention: int
    description: str = ""
    owner_email: str = ""
    data: dict[str, str] = {}
    search_attributes: dict[str, int] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Settings).decode


class FailoverMeta:
    """One per node of a region that has an index among others."""

    def __init__(
        self, meta: Meta, region: int, name_of: Callable[[int], str], index_of: Callable[[str], int]
    ) -> None:
        self.region = region
        self.name_of = name_of  # a region's name by its index
        self._index_of = index_of
        self.elsewhere: Elsewhere | None = None
        self.on_change: list[Callable[[], None]] = []
        # Ids of the namespaces that other regions hold, too; kept by `_note` alone, and never replaced.
        self.shared: set[str] = set()
        self.committed = MetaState(region)
        self._meta = meta
        self._ahead: MetaState | None = None
        meta.parts.append(self)
        self.load()

    def index_is(self, region: int) -> None:
        """The region has its index: 0 until it is made."""
        if region != self.region:
            self.region = region
            self.load()

    # ---- meta.Part

    def load(self) -> None:
        """Take what the rows say: at the start, and when an image replaced them."""
        self.committed = MetaState(self.region, self._meta.group.rows.scan(*_KINDS))
        self._ahead = None
        self._note()

    def lost(self) -> None:
        """Forget what was proposed and not committed."""
        self._ahead = None

    def applied(self, rows: RowList, ours: bool) -> None:  # noqa: ARG002 - both kinds are followed alike
        """These rows are committed."""
        found = [row for row in rows if records.is_ours(row[0])]
        if found:
            self.committed.take(found)
            self._note()

    def _note(self) -> None:
        shared = {
            record.id
            for record in self.committed.namespaces.values()
            if record.config.regions != (self.region,)
        }
        self.shared &= shared
        self.shared |= shared
        for callback in self.on_change:
            callback()

    # ---- reading

    def version_of(self, namespace_id: str) -> int:
        """The version of a namespace; 0: it has none, since no region but this one ever held it."""
        return self.committed.truth(namespace_id)

    def regions_of(self, namespace_id: str) -> tuple[int, ...]:
        """The regions that hold it, in order of preference."""
        record = self.committed.namespaces.get(namespace_id)
        return record.config.regions if record is not None else (self.region,)

    def active_region(self, namespace_id: str) -> int:
        """Where it is active."""
        version = self.version_of(namespace_id)
        return owner_of(version) if version else self.region

    def is_handed_over(self, namespace_id: str) -> bool:
        """Whether a handover of it from here is not decided yet."""
        return namespace_id in self.committed.busy()

    def index_of(self, name: str) -> int:
        """A region's index by its name; 0: there is none."""
        return self.region if name == self.name_of(self.region) else self._index_of(name)

    def check_active(self, namespace_id: str) -> None:
        """Whether a namespace is changed here: where it is active. NotActive."""
        record = self.ahead.namespaces.get(namespace_id)
        if record is None or owner_of(record.version) == self.region:
            return
        active = owner_of(record.version)
        admission = Admission(Verdict.FORWARD, active, record.version)
        what = f"namespace {name_of(record)} is changed where it is active: in region {self.name_of(active)}"
        raise NotActive(namespace_id, admission, what)

    def record(self, namespace_id: str) -> NamespaceRecord | None:
        """Its record, as committed."""
        return self.committed.namespaces.get(namespace_id)

    # ---- proposing

    @property
    def ahead(self) -> MetaState:
        """The state with all that this node has proposed, if it leads the meta group."""
        if not self._meta.group.leading:
            return self.committed
        if self._ahead is None:
            # A leader's rows show what it proposed.
            self._ahead = MetaState(self.region, self._meta.group.rows.scan(*_KINDS))
        return self._ahead

    def propose(self, command: MetaCommand, waiter: Waiter = nobody) -> Outcome:
        """Propose what a command does. A refusal changes nothing, and nobody hears of it but the caller.

        What changes no row is not proposed; `waiter` then hears when all before it is committed. Raises a
        definite error if the group takes nothing now.
        """
        outcome = self._apply(command)
        if outcome.accepted:
            if outcome.rows:
                self._write(lambda: self._meta.write(outcome.rows, waiter))
            else:
                self._meta.group.when_committed(waiter)
        return outcome

    def _apply(self, command: MetaCommand) -> Outcome:
        """What the command does to what is ahead, which is to be written at once. NotLeading."""
        group = self._meta.group
        if not group.leading:
            raise NotLeading(group.raft.leader, group.id)
        return self.ahead.apply(command)

    def when_committed(self, waiter: Waiter) -> None:
        """Call back when all that was proposed so far is committed, here."""
        self._meta.group.when_committed(waiter)

    def _write(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException:
            self._ahead = None  # it is a state that was not proposed
            raise

    def register(
        self, namespace: Namespace, regions: Sequence[int], created: LedgerRow, waiter: Waiter
    ) -> None:
        """Register a namespace that is active here. ALREADY_EXISTS."""
        config = Config(created.version, 1, tuple(regions), blob_of(namespace))
        outcome = self._apply(Create(config, created))
        assert outcome.accepted, outcome.why
        self._write(lambda: self._meta.create(namespace, waiter, outcome.rows))

    def creation(self, namespace_id: str, *, now_ns: int, operator: str = "", reason: str = "") -> LedgerRow:
        """The first row of the ledger of a namespace that begins here."""
        version = next_version(self.region, 0)
        return LedgerRow(
            FORMAT, namespace_id, version, Mode.CREATE, 0, self.region, operator, reason, "", b"", now_ns
        )

    def begin_versions(self, namespace: Namespace, created: LedgerRow) -> None:
        """Give versions to a namespace that was made before the region had others, and is its alone."""
        outcome = self._apply(Create(Config(created.version, 1, (self.region,), blob_of(namespace)), created))
        assert outcome.accepted, outcome.why
        self._write(lambda: self._meta.put(namespace, nobody, outcome.rows))

    def edit(
        self, namespace: Namespace, waiter: Waiter = nobody, regions: Sequence[int] | None = None
    ) -> None:
        """Write a changed namespace. `regions`: those that hold it from now on. NotActive."""
        self.check_edit(namespace.id)
        record = self.ahead.namespaces.get(namespace.id)
        if record is None:
            self._meta.put(namespace, waiter)
            return
        blob = blob_of(msgspec.structs.replace(namespace, name=name_of(record) or namespace.name))
        held = tuple(regions) if regions is not None else record.config.regions
        config = Config(record.version, record.config.config_version + 1, held, blob)
        outcome = self._apply(Configure(namespace.id, config))
        assert outcome.accepted, outcome.why
        self._write(lambda: self._meta.put(namespace, waiter, outcome.rows))

    def check_edit(self, namespace_id: str) -> None:
        """Whether a namespace may be edited here: where it is active, and stays so. NotActive."""
        self.check_active(namespace_id)
        record = self.ahead.namespaces.get(namespace_id)
        if record is not None and namespace_id in self.ahead.busy():
            admission = Admission(Verdict.PARK, 0, record.version)
            what = (
                f"namespace {name_of(record)} is being handed over to another region: try again in a moment"
            )
            raise NotActive(namespace_id, admission, what)

    # ---- what other regions say

    def take_config(self, namespace_id: str, config: Config, ledger: Sequence[LedgerRow]) -> bool:
        """Propose another region's configuration where it is larger than ours; whether it was.

        `ledger`: rows of its ledger, for a namespace that is not known here.
        """
        record = self.ahead.namespaces.get(namespace_id)
        if record is None:
            if self.region not in config.regions or not ledger:
                return False
            command: MetaCommand = Create(config, ledger[0])
        elif config <= record.config:
            return False
        else:
            command = Configure(namespace_id, config)
        outcome = self._apply(command)
        if outcome.accepted:
            self._write(lambda: self._write_config(namespace_id, config, outcome.rows))
        return outcome.accepted

    def _write_config(self, namespace_id: str, config: Config, rows: RowList) -> None:
        known = self._meta.by_id.get(namespace_id)
        if self.region in config.regions:
            self._meta.put(self._shown(namespace_id, _decode(config.blob), known), nobody, rows)
        elif known is not None:
            # Its runs stay in the shards, dormant, behind gates that are shut.
            self._meta.forget(namespace_id, nobody, rows)
        else:
            self._meta.write(rows, nobody)

    def _shown(self, namespace_id: str, settings: Settings, known: Namespace | None) -> Namespace:
        """The registry's row of a namespace that another region configured."""
        taken = self._meta.by_name.get(settings.name)
        name = settings.name
        if taken is not None and taken.id != namespace_id:
            name = f"{settings.name}~{namespace_id[-_ID_CHARACTERS:]}"
        return Namespace(
            id=namespace_id,
            name=name,
            state=settings.state,
            created=settings.created,
            retention=settings.retention,
            description=settings.description,
            owner_email=settings.owner_email,
            data=settings.data,
            search_attributes=settings.search_attributes,
            config_version=known.config_version + 1 if known is not None else 0,
        )

    def name_problem(self, name: str, namespace_id: str) -> str:
        """Why a namespace cannot have this name here; "": it can."""
        taken = self._meta.by_name.get(name)
        if taken is None or taken.id == namespace_id or taken.state == DELETED:
            return ""
        return f"region {self.name_of(self.region)} has another namespace with the name {name}"


def blob_of(namespace: Namespace) -> bytes:
    """What other regions are told of a namespace."""
    return _encode(
        Settings(
            namespace.name,
            namespace.state,
            namespace.created,
            namespace.retention,
            namespace.description,
            namespace.owner_email,
            namespace.data,
            namespace.search_attributes,
        )
    )


def name_of(record: NamespaceRecord) -> str:
    """The name of a namespace, the same in all regions; "" if it is not known here yet."""
    return _decode(record.config.blob).name if record.config.blob else ""
