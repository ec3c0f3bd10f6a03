"""Short words for entries and for what comes of them. Region 1 is a, 2 is b, 3 is c."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from msgspec.structs import replace

from replication.merge import (
    Batch,
    Buffer,
    Effect,
    Entry,
    Environment,
    Event,
    Events,
    Item,
    Kind,
    Origin,
    Outcome,
    Record,
    Tomb,
    merge,
)
from replication.merge.history import History, tip
from replication.versions import owner_of

T = TypeVar("T", bound=Effect)

STARTED = Event(1, 0, Kind.STARTED)
TASK = Event(0, 0, Kind.WORKFLOW_TASK)
SCHEDULED = Event(0, 0, Kind.ACTIVITY)
CLOSED = Event(0, 0, Kind.CLOSED)
CONTINUED = Event(0, 0, Kind.CONTINUED)


def signal(payload: str = "", key: str = "") -> Event:
    return Event(0, 0, Kind.SIGNALED, payload.encode(), key)


def path(*items: tuple[int, int]) -> History:
    return tuple(Item(*item) for item in items)


def batch(version: int, kinds: Sequence[Event], parent: History = (), run: str = "x") -> Batch:
    first = tip(parent).event_id + 1
    events = [replace(event, id=first + n, version=version) for n, event in enumerate(kinds)]
    return Batch(run, parent, tuple(events))


def events(
    seq: int,
    version: int,
    kinds: Sequence[Event],
    parent: History = (),
    run: str = "x",
    successor: Batch | None = None,
    namespace: int = 0,
) -> Events:
    """Events that the version's owner wrote after `parent`."""
    origin = Origin(owner_of(version), 0, 1, seq)
    return Events(origin, seq, namespace or version, batch(version, kinds, parent, run), successor)


def buffered(seq: int, version: int, inputs: Iterable[Event], run: str = "x") -> Buffer:
    held = tuple(replace(event, version=version) for event in inputs)
    return Buffer(Origin(owner_of(version), 0, 1, seq), seq, version, run, path((1, 1)), held)


def tomb(seq: int, version: int, run: str = "x", keys: tuple[str, ...] = ()) -> Tomb:
    return Tomb(Origin(owner_of(version), 0, 1, seq), seq, version, run, keys)


def standby(version: int) -> Environment:
    return Environment(3, version, False)


def active(version: int) -> Environment:
    return Environment(owner_of(version), version, True)


def record_of(*entries: Entry, env: Environment | None = None) -> Record:
    """What a standby has that has read these."""
    record = Record()
    for entry in entries:
        record = merge(record, entry, env or standby(entry.namespace_version)).record
    return record


def only(outcome: Outcome, kind: type[T]) -> T:
    found = [effect for effect in outcome.effects if isinstance(effect, kind)]
    assert len(found) == 1, outcome.effects
    return found[0]


def kinds_of(outcome: Outcome) -> list[str]:
    return [type(effect).__name__ for effect in outcome.effects]


def histories(record: Record, run: str = "x") -> list[History]:
    return sorted(branch.history for branch in record.runs[run].branches)
