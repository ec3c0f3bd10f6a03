"""What a region's meta group knows about failover, and what a committed command makes of it.

Theory of operation. The state is a function of the group's log, so every node of the region that has applied
the same entries has the same state. Commands come from whoever leads the group, or believed it led when it
proposed; they may come twice, late and in any order, and what they find decides: a command that does not fit
is refused and changes nothing. So COMMIT and ABORT of a handover need no agreement besides the log's order:
the first of them in the log is the decision, and the other finds it taken.

Invariant: a namespace's version never falls; a decided handover stays as it was decided; of the undecided
handovers no two have a namespace in common.

Lineage: commit in two phases with the coordinator's log as the only decider (Gray 1978; Lampson and Sturgis),
which here is itself a Raft group; a namespace's version as a max register is Temporal's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, assert_never

from msgspec.structs import replace

from replication.failover.commands import (
    Abort,
    Begin,
    Close,
    Commit,
    Configure,
    Create,
    Drain,
    Force,
    Learn,
    MetaCommand,
    Settle,
    StartFencing,
    Told,
)
from replication.failover.ledger import Ledger, digest_of
from replication.failover.records import (
    FORMAT,
    HANDOVER,
    NAMESPACES_MAX,
    UNDECIDED,
    Gate,
    Handover,
    LedgerRow,
    Mode,
    NamespaceRecord,
    Phase,
    Record,
    Report,
    Row,
    Switch,
    decode,
    id_of,
    key_of,
    row_of,
)
from replication.versions import VersionError, bump_version, next_version, owner_of

CLOSED_MAX = 100  # handovers that have nothing left to do and are kept for the operator to look at


class Outcome(NamedTuple):
    """What a command did: rows to store in the transaction of its log entry, or why it was refused."""

    accepted: bool
    why: str  # "" if accepted
    rows: list[Row]


class Refused(Exception):
    """The command does not fit what it finds. Definite: nothing changed."""


class MetaState:
    """The failover part of one region's meta group."""

    def __init__(self, region: int, rows: Iterable[Row] = ()) -> None:
        """`region`: index of this region. `rows`: what was stored; others' are passed over by the caller.

        Raises FormatError.
        """
        self.region = region
        self.namespaces: dict[str, NamespaceRecord] = {}
        self.ledgers: dict[str, Ledger] = {}
        self.handovers: dict[int, Handover] = {}
        self.reports: dict[tuple[str, int], Report] = {}
        self._rows: list[Row] = []
        self.take(rows)

    def take(self, rows: Iterable[Row]) -> None:
        """Follow the rows of a committed entry that another node made; others' are passed over by the caller.

        Raises FormatError.
        """
        for key, value in rows:
            if value is not None:
                self._take(decode(key, value))
            elif key[:2] == HANDOVER:
                self.handovers.pop(int.from_bytes(key[2:], "big"), None)

    # ---- reading

    @property
    def last_number(self) -> int:
        """The number of the newest handover; 0: there was none."""
        return max(self.handovers, default=0)

    def truth(self, namespace_id: str) -> int:
        """The largest version known here; 0: the namespace is unknown."""
        record = self.namespaces.get(namespace_id)
        return record.version if record is not None else 0

    def requested(self, request_id: str) -> Handover | None:
        """The handover that an operator's command began; the only way to tell it from another's."""
        return next((h for h in self.handovers.values() if h.request_id == request_id), None)

    def busy(self) -> dict[str, int]:
        """Namespace -> the undecided handover it is in."""
        return {
            switch.namespace_id: handover.number
            for handover in self.handovers.values()
            if handover.phase in UNDECIDED
            for switch in handover.switches
        }

    # ---- commands

    def apply(self, command: MetaCommand) -> Outcome:
        """Apply the next committed command of the log."""
        self._rows = []
        try:
            self._apply(command)
        except Refused as refusal:
            assert not self._rows, "a command that is refused has changed nothing"
            return Outcome(False, str(refusal), [])
        return Outcome(True, "", self._rows)

    def _apply(self, command: MetaCommand) -> None:
        match command:
            case Create():
                self._create(command)
            case Configure():
                self._configure(command)
            case Begin():
                self._begin(command)
            case StartFencing():
                handover = self._in(command.number, Phase.PREPARE)
                self._put(replace(handover, phase=Phase.FENCING, deadline_ns=command.deadline_ns))
            case Drain():
                self._drain(command)
            case Commit():
                self._commit(command)
            case Abort():
                handover = self._in(command.number, *UNDECIDED)
                self._put(replace(handover, phase=Phase.ABORTED, deadline_ns=0, why=command.why))
            case Close():
                self._close(command)
            case Learn():
                self._learn(command)
            case Force():
                self._force(command)
            case Settle():
                self._settle(command)
            case Told():
                self._told(command)
            case _:
                assert_never(command)

    def _create(self, command: Create) -> None:
        namespace_id, version = command.row.namespace_id, command.row.version
        _check_rows([command.row])
        if namespace_id in self.namespaces:
            raise Refused(f"namespace {namespace_id} exists")
        self._put(NamespaceRecord(FORMAT, namespace_id, command.config, version))
        self._append(command.row)

    def _configure(self, command: Configure) -> None:
        record = self._namespace(command.namespace_id)
        if command.config <= record.config:
            raise Refused(f"namespace {record.id} has a configuration as new as this one")
        # A region that is new in the list has been told nothing yet, one that was removed need not be.
        self._put(replace(record, config=command.config))

    def _begin(self, command: Begin) -> None:
        begun = self.requested(command.request_id)
        if begun is not None:
            raise Refused(f"request {command.request_id} began handover {begun.number}")
        if command.number != self.last_number + 1:
            raise Refused(f"the next handover has number {self.last_number + 1}")
        problem = switches_problem(self, command.target, command.switches)
        if problem:
            raise Refused(problem)
        if not command.shards:
            raise Refused("without shards nothing would be fenced")
        held = {r for s in command.switches for r in self.namespaces[s.namespace_id].config.regions}
        self._put(
            Handover(
                FORMAT,
                command.number,
                self.region,
                command.target,
                command.switches,
                tuple(sorted(command.shards)),
                tuple(sorted(held - {self.region, command.target})),
                command.request_id,
                command.operator,
                command.reason,
                command.limits,
                Phase.PREPARE,
                command.deadline_ns,
            )
        )
        closed = [number for number in sorted(self.handovers) if self.handovers[number].closed]
        for number in closed[: -CLOSED_MAX or None]:
            self._rows.append((key_of(self.handovers.pop(number)), None))

    def _drain(self, command: Drain) -> None:
        handover = self._in(command.number, Phase.FENCING)
        missing = [shard for shard in handover.shards if shard not in command.markers]
        if missing:
            raise Refused(f"shards {missing} are not fenced")
        _check_versions(command.newer.values())
        self._raise(command.newer)
        shards = tuple(sorted(command.markers))  # with those that a split has made since it began
        self._put(replace(handover, phase=Phase.DRAINING, shards=shards, markers=command.markers))

    def _commit(self, command: Commit) -> None:
        """The decision. What a newer version has taken meanwhile is not moved back."""
        handover = self._in(command.number, Phase.DRAINING)
        for shard in handover.shards:
            ack, marker = command.acks.get(shard), handover.markers[shard]
            if ack is None or not ack.covers(marker, handover.regions):
                raise Refused(f"the target has not applied shard {shard} up to {marker}: {ack}")
        _check_versions(command.newer.values())
        self._raise(command.newer)
        digest = digest_of(handover.markers)
        moved = [switch for switch in handover.switches if self.truth(switch.namespace_id) == switch.base]
        for switch in moved:
            row = LedgerRow(
                FORMAT,
                switch.namespace_id,
                switch.version,
                Mode.GRACEFUL,
                switch.base,
                handover.target,
                handover.operator,
                handover.reason,
                id_of(self.region, handover.number),
                digest,
                command.hlc,
            )
            self._append(row)
        committed = tuple(switch.namespace_id for switch in moved)
        decided = replace(handover, phase=Phase.COMMITTED, deadline_ns=0, committed=committed)
        self._put(replace(decided, acks=command.acks))

    def _close(self, command: Close) -> None:
        handover = self._in(command.number, Phase.COMMITTED, Phase.ABORTED)
        if handover.closed:
            raise Refused(f"handover {command.number} is closed")
        phase = Phase.DONE if handover.phase is Phase.COMMITTED else Phase.ABORTED
        self._put(replace(handover, phase=phase, closed=True))

    def _learn(self, command: Learn) -> None:
        _check_rows(command.rows)
        _check_versions(command.versions.values())
        for row in command.rows:
            if row.namespace_id in self.namespaces:
                self._append(row)
        self._raise(command.versions)

    def _force(self, command: Force) -> None:
        choose = bump_version if command.mode is Mode.BUMP else next_version
        for switch in command.switches:
            record = self._namespace(switch.namespace_id)
            if self.region not in record.config.regions:
                raise Refused(f"region {self.region} is not in the list of namespace {record.id}")
            if record.version > switch.base:
                raise Refused(f"namespace {record.id} is at version {record.version}, not {switch.base}")
            if switch.version != choose(self.region, switch.base) or switch.version <= record.version:
                raise Refused(f"version {switch.version} does not follow {switch.base}")
        for switch in command.switches:
            row = LedgerRow(
                FORMAT,
                switch.namespace_id,
                switch.version,
                command.mode,
                switch.base,
                self.region,
                command.operator,
                command.reason,
                "",
                command.cut_digest,
                command.hlc,
            )
            self._append(row)

    def _settle(self, command: Settle) -> None:
        for namespace_id, version in command.versions.items():
            record = self.namespaces.get(namespace_id)
            if record is None or not record.settled < version <= record.version:
                continue
            self._put(replace(record, settled=version))
            if owner_of(version) == self.region:
                self._put(Report(FORMAT, namespace_id, version, command.cuts))

    def _told(self, command: Told) -> None:
        for namespace_id, version in command.versions.items():
            record = self.namespaces.get(namespace_id)
            if record is not None and version >= record.version and command.region not in record.told:
                self._put(replace(record, told=tuple(sorted({*record.told, command.region}))))

    # ---- what they are made of

    def _namespace(self, namespace_id: str) -> NamespaceRecord:
        record = self.namespaces.get(namespace_id)
        if record is None:
            raise Refused(f"there is no namespace {namespace_id}")
        return record

    def _in(self, number: int, *phases: Phase) -> Handover:
        handover = self.handovers.get(number)
        if handover is None:
            raise Refused(f"there is no handover {number}")
        if handover.phase not in phases:
            raise Refused(f"handover {number} is {handover.phase.name}")
        return handover

    def _raise(self, versions: Mapping[str, int]) -> None:
        """Raise the max registers. Who was told of the old version has not been told of the new one."""
        for namespace_id, version in versions.items():
            record = self.namespaces.get(namespace_id)
            if record is not None and version > record.version:
                self._put(replace(record, version=version, told=()))

    def _append(self, row: LedgerRow) -> None:
        if self.ledgers.setdefault(row.namespace_id, Ledger()).append(row):
            self._rows.append(row_of(row))
        self._raise({row.namespace_id: row.version})

    def _put(self, record: Record) -> None:
        self._take(record)
        self._rows.append(row_of(record))

    def _take(self, record: Record) -> None:
        match record:
            case NamespaceRecord():
                self.namespaces[record.id] = record
            case LedgerRow():
                self.ledgers.setdefault(record.namespace_id, Ledger()).append(record)
            case Handover():
                self.handovers[record.number] = record
            case Report():
                self.reports[record.namespace_id, record.version] = record
            case Gate():
                raise AssertionError(f"the gate of {record.namespace_id} belongs to a shard")
            case _:
                assert_never(record)


def _check_versions(versions: Iterable[int]) -> None:
    """Refuse what no region owns: once it were in the state, everybody who asked for its owner would fail."""
    for version in versions:
        try:
            owner_of(version)
        except VersionError as error:
            raise Refused(str(error)) from None


def _check_rows(rows: Iterable[LedgerRow]) -> None:
    for row in rows:
        _check_versions([row.version])
        if row.target != owner_of(row.version):
            raise Refused(f"version {row.version} of {row.namespace_id} is not region {row.target}'s")


def switches_problem(state: MetaState, target: int, switches: Iterable[Switch]) -> str:
    """Why the region cannot hand these namespaces to the target; "": it can."""
    switches = list(switches)
    if not 1 <= len(switches) <= NAMESPACES_MAX:
        return f"a handover is of 1 to {NAMESPACES_MAX} namespaces, not of {len(switches)}"
    if len({switch.namespace_id for switch in switches}) < len(switches):
        return "a namespace is named twice"
    busy = state.busy()
    for switch in switches:
        record = state.namespaces.get(switch.namespace_id)
        if record is None:
            return f"there is no namespace {switch.namespace_id}"
        if record.version != switch.base:
            return f"namespace {record.id} is at version {record.version}, not {switch.base}"
        if owner_of(record.version) != state.region:
            return f"namespace {record.id} is active in region {owner_of(record.version)}"
        if target == state.region or target not in record.config.regions:
            return (
                f"namespace {record.id} cannot go to region {target}: its regions are {record.config.regions}"
            )
        if switch.version != next_version(target, switch.base):
            return f"version {switch.version} of namespace {record.id} does not follow {switch.base}"
        if record.id in busy:
            return f"namespace {record.id} is in handover {busy[record.id]}"
    return ""
