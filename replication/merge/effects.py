"""What is to be done about an entry: small steps, to be taken in order, all in one Raft entry.

A step names what a caller can do in one move: write rows, tell the engine, count. Whoever takes the first
takes all, and stores the new record with them; whoever cannot take them stores nothing.
"""

from __future__ import annotations

import enum

import msgspec

from replication.merge.entries import Anchor, Entry, Event, Kind, Origin
from replication.merge.history import Item
from replication.merge.record import Record


class RaiseVersion(msgspec.Struct, frozen=True):
    """The namespace is at this version, and the shard did not know: before anything else, and tell meta."""

    version: int


class CreateRun(msgspec.Struct, frozen=True):
    """A run that was not known."""

    run: str


class Fork(msgspec.Struct, frozen=True):
    """A branch of this number begins, with the events of `base` up to `at`. 0 and ROOT: with none."""

    run: str
    branch: int
    base: int
    at: Item


class Append(msgspec.Struct, frozen=True):
    """Store these events at the end of the branch."""

    run: str
    branch: int
    events: tuple[Event, ...]


class Advance(msgspec.Struct, frozen=True):
    """Apply these events, just stored, to the run's state, as a passive transaction."""

    run: str
    events: tuple[Event, ...]


class Rebuild(msgspec.Struct, frozen=True):
    """Throw the run's state away and make it from this branch, which has become the current one."""

    run: str
    branch: int


class SetCurrent(msgspec.Struct, frozen=True):
    """The workflow id belongs to this run; "": to none."""

    run: str


class Suppress(msgspec.Struct, frozen=True):
    """The open run has become a zombie, or comes as one: nothing of it is dispatched, no event written."""

    run: str
    winner: str  # "" if that was deleted


class Revive(msgspec.Struct, frozen=True):
    """The zombie is an ordinary run again: it is current, or its close has come.

    Make its tasks from its state.
    """

    run: str


class Hold(msgspec.Struct, frozen=True):
    """Inputs wait in the buffer of the run's state."""

    run: str
    inputs: tuple[Event, ...]


class Release(msgspec.Struct, frozen=True):
    """Inputs leave the buffer of the run's state: they have become events of a branch, or were left out."""

    run: str
    keys: tuple[str, ...]


class Delete(msgspec.Struct, frozen=True):
    """Everything of the run goes."""

    run: str


class Park(msgspec.Struct, frozen=True):
    """Keep the entry until the events from `have` (exclusive) to `need` (inclusive) are here; fetch them."""

    entry: Entry
    have: Item
    need: Item


class Unpark(msgspec.Struct, frozen=True):
    """The parked entry is being taken now: its effects follow."""

    origin: Origin


class Isolate(msgspec.Struct, frozen=True):
    """The run is in quarantine; the entry is kept as it came. Alarm."""

    run: str
    reason: str
    entry: Entry


class Skip(msgspec.Struct, frozen=True):
    """Nothing to store of the run: it is known ("duplicate"), or was deleted ("deleted"). Count it."""

    run: str
    why: str


class Source(msgspec.Struct, frozen=True):
    """An input of a stale branch, a zombie or an old buffer: where it is, and as what it is made again."""

    run: str
    event_id: int  # 0: in the buffer, by its key
    version: int
    kind: Kind  # of the new event
    key: str  # the new event must carry it
    about: str = ""


class Place(enum.IntEnum):
    """Where inputs are to be made again."""

    APPEND = 1  # on the current run, which is open
    RESET = 2  # on a new run: the current one, closed, reset to its last completed workflow task
    NOWHERE = 3  # drop and count


class Reapply(msgspec.Struct, frozen=True):
    """Make these inputs again, in this order, at the namespace's version."""

    run: str  # "" if NOWHERE
    place: Place
    inputs: tuple[Source, ...]


class Settle(msgspec.Struct, frozen=True):
    """These inputs are left out: write it into the log (`Settled`), so that all regions know."""

    at: Anchor
    keys: tuple[str, ...]  # ascending


class Salvage(msgspec.Struct, frozen=True):
    """Ends of activities that are still pending here: write started if need be, the same end; new stamp."""

    run: str
    ends: tuple[Source, ...]


class CloseTask(msgspec.Struct, frozen=True):
    """If the run has a started workflow task: fail it (failover close), then schedule one, not sticky."""

    run: str


Effect = (
    RaiseVersion | CreateRun | Fork | Append | Advance | Rebuild | SetCurrent | Suppress | Revive | Hold
    | Release | Delete | Park | Unpark | Isolate | Skip | Reapply | Settle | Salvage | CloseTask
)  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """The record afterwards and the steps, in order."""

    record: Record
    effects: tuple[Effect, ...]


class Environment(msgspec.Struct, frozen=True):
    """What a shard knows besides the record."""

    region: int
    version: int  # of the namespace, as known here
    active: bool  # this region serves the namespace now


class Refused(Exception):
    """The caller's fault, definite: nothing has changed. Says which rule."""
