"""Shipments: what one transaction of a shard wrote, as another region's shard stores it.

Theory of operation. The leader that computed a transaction tells its rows to the other regions as they are:
history, pending things, pointers, tasks and timers, and what List shows. So a region that stands by has what
it needs to go on, and needs no engine to get there. Its copies of tasks and timers are dormant, since the
namespace is served elsewhere.

Rows can be stored as they are only where the workflow id is in the state that the transaction began with.
Each run has a *stamp* that says so: the failover version and the number in the stream of the transaction that
changed it last. A version names its owner, and an owner numbers what it tells, so one stamp is one state, in
every region. A shipment names the stamps that it replaces. Where another is found, two regions have written
without knowing of each other (a forced failover), and rules decide (replication/merge).

Lineage: the rows of a write set, as in Galera's certification; the stamp is its last seqno, here per run.
Invariant: a shipment that fits leaves exactly the rows that its source has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from history_store.engine.state import CurrentRun
from history_store.visibility.record import DeleteRecord, ExecutionRecord, VisibilityOp

CODEC = 1  # of entries whose payload is a shipment (frames.Entry.codec)

Row = tuple[bytes, bytes | None]


class Stamp(NamedTuple):
    """Which transaction changed a run last. (0, 0): one that was told to nobody."""

    version: int
    seq: int


UNTOLD = Stamp(0, 0)

# What a run went through: of each version the last stamp, ascending. What is in it is named by these alone.
Lineage = tuple[tuple[int, int], ...]


def stamp_of(lineage: Lineage) -> Stamp:
    """The last one."""
    return Stamp(*lineage[-1]) if lineage else UNTOLD


def followed(lineage: Lineage, stamp: Stamp) -> Lineage:
    """The lineage behind a change."""
    if lineage and lineage[-1][0] == stamp.version:
        return (*lineage[:-1], (stamp.version, stamp.seq))
    assert not lineage or lineage[-1][0] < stamp.version, "versions do not fall"
    return (*lineage, (stamp.version, stamp.seq))


def contains(lineage: Lineage, stamp: Stamp) -> bool:
    """Whether a change is part of what the run went through."""
    return any(version == stamp.version and stamp.seq <= seq for version, seq in lineage)


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a shipment does to a run. New fields go to the end and have defaults."""

    run_id: str
    after: Stamp
    before: Stamp | None  # None: it begins here


class Shipment(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One transaction on one workflow id. Keys are a shard's, without the group's bytes."""

    changes: list[Change]
    rows: list[Row]
    moves_pointer: bool = False  # it says which run is the current one
    current: str = ""  # run id that was the current one before; "": none was. Given if it moves the pointer
    shown: list[ExecutionRecord] = []
    hidden: list[DeleteRecord] = []

    @property
    def visibility(self) -> list[VisibilityOp]:
        """What List has to show and to hide."""
        return [*self.shown, *self.hidden]


class ShipmentError(ValueError):
    """A payload that is none. Definite: nothing of it was used."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Shipment).decode


def pack(
    changes: list[Change], rows: list[Row], visibility: Iterable[VisibilityOp], pointer: str | None
) -> bytes:
    """The payload of an entry. `pointer`: the current run before, if the transaction says which one is."""
    shown = [op for op in visibility if isinstance(op, ExecutionRecord)]
    hidden = [op for op in visibility if isinstance(op, DeleteRecord)]
    return _encode(Shipment(changes, rows, pointer is not None, pointer or "", shown, hidden))


def unpack(payload: bytes) -> Shipment:
    """A shipment from an entry's payload. Raises ShipmentError."""
    try:
        return _decode(payload)
    except msgspec.DecodeError as error:
        raise ShipmentError(f"the payload is no shipment: {error}") from None


_current = msgspec.msgpack.Decoder(CurrentRun).decode


def pointer_after(sent: Shipment, key: bytes) -> str:
    """The run id that the row `key` names behind a shipment that moves the pointer; "" if it is deleted."""
    value = next(value for at, value in reversed(sent.rows) if at == key)
    return _current(value).run_id if value is not None else ""


class Fit(NamedTuple):
    """Whether a shipment can be stored as it is, and if not, why."""

    fits: bool
    why: str = ""


def fit(shipment: Shipment, stamp_of: Callable[[str], Stamp | None], current: Callable[[], str]) -> Fit:
    """Compare what the shipment begins with to what is here.

    `stamp_of`: of a run by its id, None if it is not here; `current`: run id of the current run, "" if there
    is none.
    """
    for change in shipment.changes:
        here = stamp_of(change.run_id)
        if here != change.before:
            return Fit(False, f"run {change.run_id} is at {_said(here)}, not {_said(change.before)}")
    if shipment.moves_pointer:
        now = current()
        if now != shipment.current:
            return Fit(False, f"the current run is {now or 'none'}, not {shipment.current or 'none'}")
    return Fit(True)


def _said(stamp: Stamp | None) -> str:
    return "no state" if stamp is None else f"version {stamp.version} number {stamp.seq}"
