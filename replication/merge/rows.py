"""A record as rows, so that an entry rewrites only what it changed.

One row for the head (current run, names of runs), one for each run, one for each indexed event, one for each
input that waits, each tombstone, each decision to leave inputs out, each parked entry and each run in
quarantine. Keys are relative: the caller puts the namespace and workflow id before them. Every value is
msgpack of [format, body]; an unknown format or kind is refused by name (RowError), never guessed.

Invariant: from_rows(to_rows(r)) == r, and the rows of `before` with changes(before, after) are those of
`after`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from replication.merge.entries import OrderKey, Settled
from replication.merge.index import Index, Indexed
from replication.merge.record import Branch, Grave, Link, Parked, Quarantine, Record, Run, Waiting

FORMAT = 1

HEAD, RUN, INDEX, WAITING, GRAVE = b"h", b"r", b"i", b"w", b"t"
DECISION, PARKED, QUARANTINE = b"d", b"p", b"q"

Row = tuple[bytes, bytes | None]  # None: the row goes


class RowError(ValueError):
    """Definite: stored bytes that this release cannot read. Says which row, and why."""


class Head(msgspec.Struct, array_like=True, frozen=True):
    """What belongs to no single run."""

    current: str
    runs: tuple[str, ...]  # run ids, in the record's order


class RunRow(msgspec.Struct, array_like=True, frozen=True):
    """A run without its index."""

    branches: tuple[Branch, ...]
    current: int
    previous: Link | None
    started: OrderKey
    next_number: int


Body = Head | RunRow | Indexed | Waiting | Grave | Settled | Parked | Quarantine
T = TypeVar("T", Head, RunRow, Indexed, Waiting, Grave, Settled, Parked, Quarantine)

_encode = msgspec.msgpack.Encoder().encode
_raw = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw])


def to_rows(record: Record) -> list[tuple[bytes, bytes]]:
    """All rows of the record, none for an empty one."""
    if record == Record():
        return []
    return [(key, _encode((FORMAT, body))) for key, body in _parts(record).items()]


def changes(before: Record, after: Record) -> list[Row]:
    """What to write so that the rows of `before` become those of `after`.

    Takes as long as there are runs and rows to write: what the two share is not looked at.
    """
    if after == Record():
        return [(key, None) for key, _ in to_rows(before)]
    written: list[Row] = []
    if before == Record() or _head_of(before) != _head_of(after):
        written.append((HEAD, _encode((FORMAT, _head_of(after)))))
    gone: list[bytes] = []
    for run in after.runs.values():
        known = before.runs.get(run.id)
        if run is not known:
            old, new = _differing(known, run)
            _compare(old, new, written, gone)
    for run_id in before.runs:
        if run_id not in after.runs:
            gone += _run_parts(before.runs[run_id])
    _compare(_other_parts(before, after), _other_parts(after, before), written, gone)
    return written + [(key, None) for key in gone]


def _compare(old: dict[bytes, Body], new: dict[bytes, Body], written: list[Row], gone: list[bytes]) -> None:
    for key, body in new.items():
        known = old.get(key)
        if known is not body and known != body:
            written.append((key, _encode((FORMAT, body))))
    gone += (key for key in old if key not in new)


def _differing(before: Run | None, after: Run) -> tuple[dict[bytes, Body], dict[bytes, Body]]:
    """The parts of a run that may be others: of a longer index the new events."""
    if before is None:
        return {}, _run_parts(after)
    since = len(before.index) if after.index.continues(before.index) else 0
    return _run_parts(before, since), _run_parts(after, since)


def from_rows(rows: Iterable[tuple[bytes, bytes]]) -> Record:
    """The record that has these rows, in any order. Raises RowError."""
    head: Head | None = None
    runs: dict[str, RunRow] = {}
    index: dict[str, list[tuple[bytes, Indexed]]] = {}
    waiting: list[tuple[bytes, Waiting]] = []
    tombstones: dict[str, Grave] = {}
    decisions: list[tuple[bytes, Settled]] = []
    parked: list[tuple[bytes, Parked]] = []
    quarantine: dict[str, Quarantine] = {}
    for key, value in rows:
        kind, rest = key[:1], key[1:]
        if kind == HEAD:
            head = _decode(Head, key, value)
        elif kind == RUN:
            runs[rest.decode()] = _decode(RunRow, key, value)
        elif kind == INDEX:
            index.setdefault(rest[:-8].decode(), []).append((rest, _decode(Indexed, key, value)))
        elif kind == WAITING:
            waiting.append((rest, _decode(Waiting, key, value)))
        elif kind == GRAVE:
            tombstones[rest.decode()] = _decode(Grave, key, value)
        elif kind == DECISION:
            decisions.append((rest, _decode(Settled, key, value)))
        elif kind == PARKED:
            parked.append((rest, _decode(Parked, key, value)))
        elif kind == QUARANTINE:
            quarantine[rest.decode()] = _decode(Quarantine, key, value)
        else:
            raise RowError(f"row {key!r} is of no kind that this release knows")
    if head is None:
        if any((runs, index, waiting, tombstones, decisions, parked, quarantine)):
            raise RowError("rows of a workflow id, but not the first of them")
        return Record()
    if set(head.runs) != set(runs) or not set(index) <= set(runs):
        raise RowError("rows of a workflow id that do not belong together")
    return Record(
        runs={run: _run(run, runs[run], index.get(run, [])) for run in head.runs},
        current=head.current,
        tombstones=tombstones,
        waiting=tuple(each for _, each in sorted(waiting, key=lambda pair: pair[0])),
        decisions={each.origin: each for _, each in sorted(decisions, key=lambda pair: pair[0])},
        parked=tuple(each for _, each in sorted(parked, key=lambda pair: pair[0])),
        quarantine=quarantine,
    )


def _run(run: str, row: RunRow, index: list[tuple[bytes, Indexed]]) -> Run:
    index.sort(key=lambda pair: pair[0])
    return Run(
        id=run,
        branches=row.branches,
        current=row.current,
        previous=row.previous,
        started=row.started,
        index=Index(each for _, each in index),
        next_number=row.next_number,
    )


def _parts(record: Record) -> dict[bytes, Body]:
    parts: dict[bytes, Body] = {HEAD: _head_of(record)}
    for run in record.runs.values():
        parts |= _run_parts(run)
    return parts | _other_parts(record, Record())


def _head_of(record: Record) -> Head:
    return Head(record.current, tuple(record.runs))


def _run_parts(run: Run, since: int = 0) -> dict[bytes, Body]:
    """The run's row, and those of its index after so many events."""
    name = run.id.encode()
    parts: dict[bytes, Body] = {
        RUN + name: RunRow(run.branches, run.current, run.previous, run.started, run.next_number)
    }
    for ordinal, indexed in enumerate(run.index.since(since), start=since):
        parts[INDEX + name + ordinal.to_bytes(8, "big")] = indexed
    return parts


def _other_parts(record: Record, other: Record) -> dict[bytes, Body]:
    """All that belongs to no run, but for what the other record has unchanged."""
    parts: dict[bytes, Body] = {}
    if record.waiting is not other.waiting:
        for waiting in record.waiting:
            place = (waiting.event.version, waiting.seq, waiting.ordinal)
            parts[WAITING + _numbers(place)] = waiting
    if record.tombstones is not other.tombstones:
        for deleted, grave in record.tombstones.items():
            parts[GRAVE + deleted.encode()] = grave
    if record.decisions is not other.decisions:
        for decision in record.decisions.values():
            parts[DECISION + _numbers(decision.origin)] = decision
    if record.parked is not other.parked:
        for parked in record.parked:
            parts[PARKED + _numbers(parked.entry.origin)] = parked
    if record.quarantine is not other.quarantine:
        for quarantine in record.quarantine.values():
            parts[QUARANTINE + quarantine.run.encode()] = quarantine
    return parts


def _numbers(numbers: Iterable[int]) -> bytes:
    return b"".join(number.to_bytes(8, "big") for number in numbers)


def _decode(type_: type[T], key: bytes, value: bytes) -> T:
    try:
        number, body = _raw.decode(value)
        if number != FORMAT:
            raise RowError(f"row {key!r} is of format {number}; this release reads {FORMAT}")
        return msgspec.msgpack.decode(body, type=type_)
    except msgspec.DecodeError as error:
        raise RowError(f"row {key!r} cannot be read: {error}") from error
