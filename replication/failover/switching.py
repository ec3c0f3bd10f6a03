"""After a version rose, in every region: its shards follow, the ledger is written, the others are told.

Theory of operation. A namespace's version in the meta group is the only thing that is decided; who was told
of it is derived. As long as the shards have not all confirmed it, they are told again: ACTIVATE where the
version is ours, DEACTIVATE where it is not. As long as a region of the namespace has not acknowledged it in
its ledger, it is sent the row. Every region tells every other, not only the one that decided: it may be
gone by now.

Each shard serves as soon as it is activated itself; nobody waits for the last one.

Invariant: a shard is told to serve only at a version that is committed in its region's meta group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple, TypeAlias

from replication.failover.commands import Activate, Deactivate, Learn, Settle, ShardCommand, Told
from replication.failover.handover import Propose, Send
from replication.failover.meta import MetaState
from replication.failover.records import (
    NAMESPACES_MAX,
    Handover,
    LedgerRow,
    NamespaceRecord,
    Phase,
    Point,
    Source,
)
from replication.versions import owner_of


class Position(NamedTuple):
    """Where the gate of a namespace in a shard is, as the shard answered."""

    version: int
    cut: Mapping[Source, Point] | None  # Gate.cut if it is activated at that version, otherwise None


class Notify(NamedTuple):
    """Send rows to another region, which learns them and answers with its truths (acknowledge)."""

    region: int
    rows: tuple[LedgerRow, ...]


class WriteLedger(NamedTuple):
    """Write rows into the ledger that is shared with other regions."""

    rows: tuple[LedgerRow, ...]


Action: TypeAlias = Propose | Send | Notify | WriteLedger


class Observed(NamedTuple):
    """What this leader has been told since it leads."""

    shards: tuple[int, ...]  # all of this region's, with those that a split is about to make
    positions: Mapping[tuple[int, str], Position] = {}  # (shard, namespace)
    acknowledged: Mapping[int, Mapping[str, int]] = {}  # region -> the truths of its ledger
    written: Mapping[str, int] = {}  # namespace -> version that is in the shared ledger
    seen: Mapping[str, int] = {}  # largest versions in entries, gates, calls, ledgers, notices


def switching_steps(state: MetaState, observed: Observed) -> list[Action]:
    """What the leader of a region's meta group does next about versions. Empty: all have followed."""
    seen = {
        name: version for name, version in sorted(observed.seen.items()) if 0 < state.truth(name) < version
    }
    actions: list[Action] = [Propose(Learn(seen))] if seen else []
    unsettled = [record for record in _ordered(state) if record.settled < record.version]
    untold = [record for record in _ordered(state) if _others(state, record)]
    actions += _settle(state, list(islice(unsettled, NAMESPACES_MAX)), observed)
    actions += _tell(state, untold, observed)
    unwritten = [
        row
        for record in untold
        if (row := _row(state, record)) is not None and observed.written.get(record.id, 0) < record.version
    ]
    if unwritten:
        actions.append(WriteLedger(tuple(unwritten[:NAMESPACES_MAX])))
    return actions


def acknowledge(state: MetaState, namespaces: Iterable[str]) -> dict[str, int]:
    """What a region answers to a notice once it has learnt it: the truths of its ledger."""
    return {name: ledger.truth for name in namespaces if (ledger := state.ledgers.get(name)) is not None}


def plan_learn(state: MetaState, rows: Iterable[LedgerRow]) -> Learn | None:
    """What to propose when rows of another region's ledger have arrived; None: all are known here."""
    unknown = [
        row
        for row in rows
        if row.namespace_id in state.namespaces
        and ((ledger := state.ledgers.get(row.namespace_id)) is None or ledger.row(row.version) is None)
    ]
    return Learn({}, tuple(unknown)) if unknown else None


def settled_everywhere(state: MetaState, handover: Handover) -> bool:
    """Whether a committed handover has been followed: by our shards, and by the target's ledger."""
    assert handover.phase in (Phase.COMMITTED, Phase.DONE), f"handover {handover.number} is not committed"
    for switch in handover.switches:
        record = state.namespaces[switch.namespace_id]
        moved_on = record.version > switch.version
        if record.settled < record.version or not (moved_on or handover.target in record.told):
            return False
    return True


# ---- shards


def _settle(state: MetaState, records: list[NamespaceRecord], observed: Observed) -> list[Action]:
    actions: list[Action] = []
    for shard in observed.shards:
        late = {
            record.id: record.version for record in records if not _follows(state, record, shard, observed)
        }
        ours = {name: version for name, version in late.items() if owner_of(version) == state.region}
        theirs = {name: version for name, version in late.items() if name not in ours}
        commands: list[ShardCommand] = []
        commands += [Activate(ours)] if ours else []
        commands += [Deactivate(theirs)] if theirs else []
        actions += [Send(shard, command) for command in commands]
    done = [
        record for record in records if all(_follows(state, record, s, observed) for s in observed.shards)
    ]
    return actions + [Propose(_settled(record, observed)) for record in done]


def _follows(state: MetaState, record: NamespaceRecord, shard: int, observed: Observed) -> bool:
    position = observed.positions.get((shard, record.id))
    if position is None or position.version < record.version:
        return False
    if position.version > record.version:
        return True  # it knows better; the meta group will learn it from there
    return owner_of(record.version) != state.region or position.cut is not None


def _settled(record: NamespaceRecord, observed: Observed) -> Settle:
    positions = {shard: observed.positions[shard, record.id] for shard in observed.shards}
    cuts = {shard: dict(position.cut) for shard, position in positions.items() if position.cut is not None}
    return Settle({record.id: record.version}, cuts)


# ---- regions


def _tell(state: MetaState, records: list[NamespaceRecord], observed: Observed) -> list[Action]:
    rows: dict[int, list[LedgerRow]] = {}
    told: dict[int, dict[str, int]] = {}
    for record in records:
        row = _row(state, record)
        for region in _others(state, record):
            if observed.acknowledged.get(region, {}).get(record.id, 0) >= record.version:
                told.setdefault(region, {})[record.id] = record.version
            elif row is not None:
                rows.setdefault(region, []).append(row)
    actions: list[Action] = [Propose(Told(region, versions)) for region, versions in sorted(told.items())]
    return actions + [Notify(region, tuple(rows[region][:NAMESPACES_MAX])) for region in sorted(rows)]


def _others(state: MetaState, record: NamespaceRecord) -> list[int]:
    """Regions that are not known to know the version."""
    return [
        region for region in record.config.regions if region != state.region and region not in record.told
    ]


def _row(state: MetaState, record: NamespaceRecord) -> LedgerRow | None:
    """The row of the version; None: the version was seen somewhere, and its row is still on the way."""
    ledger = state.ledgers.get(record.id)
    return ledger.row(record.version) if ledger is not None else None


def _ordered(state: MetaState) -> list[NamespaceRecord]:
    return [state.namespaces[name] for name in sorted(state.namespaces)]
