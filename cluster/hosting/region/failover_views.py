"""Failover as it is shown to operators: of one namespace, as one region knows it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from replication.failover.records import UNDECIDED, Phase
from replication.versions import owner_of

if TYPE_CHECKING:
    from cluster.hosting.region.failover import Progress
    from replication.failover.meta import MetaState
    from replication.failover.records import Handover, LedgerRow

MS = 1_000_000


class Overview(NamedTuple):
    """What a region knows."""

    name: str
    id: str
    state: MetaState
    progress: Progress | None  # of the handover, where this node has led it
    number: int  # of the handover that is to be shown, 0: none
    name_of: Callable[[int], str]
    own: int
    reaches: Callable[[int], bool]


def overview(known: Overview) -> dict[str, Any]:
    """A namespace's failover as JSON."""
    record = known.state.namespaces.get(known.id)
    shown: dict[str, Any] = {
        "namespace": known.name,
        "id": known.id,
        "region": known.name_of(known.own),
        "version": record.version if record is not None else 0,
        "active": known.name_of(owner_of(record.version) if record is not None else known.own),
        "regions": [
            known.name_of(r) for r in (record.config.regions if record is not None else (known.own,))
        ],
        "state": "normal",
        "settled": record is None or record.settled == record.version,
        "history": [],
        "handover": None,
    }
    if record is not None:
        others = [region for region in record.config.regions if region != known.own]
        shown["told"] = [known.name_of(region) for region in record.told]
        shown["unreachable"] = [known.name_of(region) for region in others if not known.reaches(region)]
        if known.id in known.state.busy():
            shown["state"] = "handover"
        elif not shown["settled"]:
            shown["state"] = "activating" if owner_of(record.version) == known.own else "deactivating"
        ledger = known.state.ledgers.get(known.id)
        shown["history"] = [_row(row, known.name_of) for row in (ledger.history() if ledger else [])]
    handover = known.state.handovers.get(known.number)
    if handover is not None:
        shown["handover"] = _handover(handover, known)
    return shown


def _row(row: LedgerRow, name_of: Callable[[int], str]) -> dict[str, Any]:
    return {
        "version": row.version,
        "mode": row.mode.name.lower(),
        "base": row.base,
        "active": name_of(row.target),
        "operator": row.operator,
        "reason": row.reason,
        "at_ms": row.hlc // MS,
    }


def _handover(handover: Handover, known: Overview) -> dict[str, Any]:
    switch = next(s for s in handover.switches if s.namespace_id == known.id)
    moved = known.id in handover.committed
    found: dict[str, Any] = {
        "number": handover.number,
        "request_id": handover.request_id,
        "phase": handover.phase.name.lower(),
        "decided": handover.phase not in UNDECIDED,
        "moved": moved,
        "closed": handover.closed,
        "source": known.name_of(handover.source),
        "target": known.name_of(handover.target),
        "base": switch.base,
        "version": switch.version,
        "why": handover.why,
        "shards": len(handover.shards),
        "waits": "",
        "paused_ms": None,
        "lag_ms": None,
        "entries": None,
    }
    progress = known.progress
    if progress is not None:
        found["waits"] = "" if handover.closed else progress.why
        began = progress.times.get(Phase.FENCING)
        ended = progress.times.get(Phase.ABORTED, progress.times.get(Phase.COMMITTED))
        if began is not None and ended is not None:
            found["paused_ms"] = (ended - began) // MS
        lags = [lag for lag in progress.lags.values() if lag.lag_ns is not None]
        if lags:
            found["lag_ms"] = max(lag.lag_ns or 0 for lag in lags) // MS
            found["entries"] = sum(lag.entries or 0 for lag in lags)
    return found
