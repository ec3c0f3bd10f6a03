"""What comes out of a region's log: events, inputs that wait in a buffer, deletions, what is left out.

The rules of this room look at an event's id, version and kind, and at the few fields that are named below;
its bytes are opaque. A kind here is a class of events that one rule covers, so it is coarser than Temporal's
event types: whoever makes an `Event` maps them, and an event type nobody has mapped must be refused there,
not put into a class.

Keys. An input from outside (a signal, an update, ...) is made again when its branch loses, and must not be
made twice. It has one name that travels with it wherever it is copied (`Event.key`): the client's request
id, else the origin of the buffered input, else its first position, (run, event id, version). Whoever writes
a copy (reapplied, or copied by a reset) writes the name it had. Lineage: Temporal's deduplication by (run
id, event id, version); we add request ids.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

import msgspec

from replication.merge.history import History, Item, extended, problem, tip
from replication.versions import VersionError, owner_of


class Kind(enum.IntEnum):
    """Classes of events. The numbers are stored: never change one, never use one again."""

    STARTED = 1
    CLOSED = 2  # completed, failed, timed out or canceled
    CONTINUED = 3  # closed, and a successor goes on: continue-as-new, retry, cron
    TERMINATED = 4
    SIGNALED = 5
    UPDATE_ADMITTED = 6
    UPDATE_ACCEPTED = 7
    UPDATE_COMPLETED = 8
    CANCEL_REQUESTED = 9
    OPTIONS_UPDATED = 10  # callbacks attached, too
    PAUSED = 11
    UNPAUSED = 12
    ACTIVITY = 13  # scheduled, started, cancel requested
    ACTIVITY_COMPLETED = 14
    ACTIVITY_FAILED = 15  # for good: a failure that is tried again is no event
    ACTIVITY_CANCELED = 16
    ACTIVITY_TIMED_OUT = 17
    TIMER = 18  # started, fired, canceled
    WORKFLOW_TASK = 19
    MARKER = 20
    CHILD = 21
    EXTERNAL = 22  # signals and cancellations that the run sent to others


CLOSING = frozenset({Kind.CLOSED, Kind.CONTINUED, Kind.TERMINATED})
ENDS_OF_ACTIVITIES = frozenset({
    Kind.ACTIVITY_COMPLETED, Kind.ACTIVITY_FAILED, Kind.ACTIVITY_CANCELED, Kind.ACTIVITY_TIMED_OUT,
})  # fmt: skip


class Event(msgspec.Struct, array_like=True, frozen=True):
    """One event of a run, or (id 0) an input that has not become one yet."""

    id: int
    version: int
    kind: Kind
    payload: bytes = b""
    key: str = (
        ""  # see the module's docstring; "" for an event that no rule copies, or that its position names
    )
    about: str = ""  # of updates: the update id. Of an activity's end: the id of its scheduled event
    # False: not an input that can be made again. An acceptance without the request in it; a termination that
    # the server itself made.
    whole: bool = True


class Origin(NamedTuple):
    """Where an entry was numbered. Within one incarnation of a shard of a region, seq is gapless from 1."""

    region: int
    shard: int
    incarnation: int
    seq: int


class OrderKey(NamedTuple):
    """Which of two runs is newer: that of the last event of its current branch.

    Two events of one version were numbered by one log, so seq orders them; a successor that was born in the
    entry that closed its predecessor comes after it by `ordinal`. No clock is in it.
    """

    version: int
    seq: int
    ordinal: int


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Contiguous events of one run, and the path they follow on."""

    run: str
    parent: History  # up to the event before the first; () if the run begins here
    events: tuple[Event, ...]

    def history(self) -> History:
        """The path after the batch."""
        return extended(self.parent, (Item(event.id, event.version) for event in self.events))


class Events(msgspec.Struct, array_like=True, frozen=True, tag="events"):
    """Events of one run; with the first ones of its successor, if it closes and another goes on."""

    origin: Origin
    hlc: int  # hybrid logical clock of the entry, opaque but for its order
    namespace_version: int
    batch: Batch
    successor: Batch | None = None


class Buffer(msgspec.Struct, array_like=True, frozen=True, tag="buffer"):
    """Inputs that were accepted while a workflow task was in flight. Events of id 0, each with its key."""

    origin: Origin
    hlc: int
    namespace_version: int
    run: str
    parent: History  # of the branch that was current
    inputs: tuple[Event, ...]


class Tomb(msgspec.Struct, array_like=True, frozen=True, tag="tomb"):
    """The run was deleted.

    What it was to others goes with it, and is not the same in regions that had heard more or less of it. So
    the entry says which inputs are done with because of it (reapply.done_with).
    """

    origin: Origin
    hlc: int
    namespace_version: int
    run: str
    keys: tuple[str, ...] = ()  # ascending


class Anchor(NamedTuple):
    """Where a decision was taken: the last event of the run that was current then.

    Of id 0: there was none, since that run had been deleted.
    """

    run: str
    event_id: int
    version: int


class Settled(msgspec.Struct, array_like=True, frozen=True, tag="settled"):
    """Inputs that the active region has left out: by a rule, or because nobody was there to take them.

    Whoever is active next would find them once more, and give them to a run that began since. What spoke
    against them is on the path up to `at`, so the decision counts where that path does: if a branch wins that
    had parted before, they are pending as ever.
    """

    origin: Origin
    hlc: int
    namespace_version: int
    at: Anchor
    keys: tuple[str, ...]  # ascending


Entry = Events | Buffer | Tomb | Settled


def run_of(entry: Entry) -> str:
    """The run that the entry is about; not its successor."""
    match entry:
        case Events():
            return entry.batch.run
        case Settled():
            return entry.at.run
        case _:
            return entry.run


def origin_key(origin: Origin, ordinal: int) -> str:
    """The name of an input that was accepted into the buffer by this entry, the ordinal-th of it."""
    return f"origin/{origin.region}/{origin.shard}/{origin.incarnation}/{origin.seq}/{ordinal}"


def request_key(kind: Kind, request_id: str) -> str:
    """The name of an input that its client has named. A request id counts for one kind of request."""
    return f"request/{int(kind)}/{request_id}"


def update_key(run: str, update_id: str) -> str:
    """The name of an update: its id, which is unique in its run. Its later events have it, too."""
    return f"update/{run}/{update_id}"


def key_of(run: str, event: Event) -> str:
    """The event's name among the inputs of its workflow id."""
    return event.key or f"event/{run}/{event.id}/{event.version}"


def entry_problem(entry: Entry) -> str:
    """Why no rule can be applied to the entry, whatever is known here; "" if it is well formed."""
    try:
        owner_of(entry.namespace_version)
    except VersionError as error:
        return str(error)
    match entry:
        case Tomb():
            return _version_problem(entry, entry.namespace_version)
        case Settled():
            if not entry.keys:
                return "nothing is settled"
            if entry.at.version > entry.namespace_version:
                return f"settled after version {entry.at.version}, which is above its namespace's"
            return _version_problem(entry, entry.namespace_version)
        case Buffer():
            if not entry.inputs:
                return "a buffer without inputs"
            if any(not event.key or event.id != 0 for event in entry.inputs):
                return "a buffered input has no key, or an event id"
            return _version_problem(entry, max(event.version for event in entry.inputs))
        case Events():
            return _events_problem(entry)


def _events_problem(entry: Events) -> str:
    found = _batch_problem(entry.batch) or _version_problem(entry, entry.batch.events[-1].version)
    if found:
        return found
    last, successor = entry.batch.events[-1], entry.successor
    if successor is None:
        return "continued, but without its successor" if last.kind is Kind.CONTINUED else ""
    if last.kind not in CLOSING:
        return "a successor of a run that has not closed"
    if successor.run == entry.batch.run:
        return "a run is its own successor"
    if successor.parent:
        return "a successor does not begin with its first event"
    return _batch_problem(successor) or _version_problem(entry, successor.events[-1].version)


def _batch_problem(batch: Batch) -> str:
    if not batch.events:
        return "a batch without events"
    found = problem(batch.parent)
    if found:
        return found
    before = tip(batch.parent)
    for event in batch.events:
        if event.id != before.event_id + 1:
            return f"event {event.id} after {before.event_id}"
        if event.version < before.version or event.version < 1:
            return f"version {event.version} after {before.version}"
        if (event.id == 1) is not (event.kind is Kind.STARTED):
            return f"event {event.id} is of kind {event.kind.name}"
        if event.kind in ENDS_OF_ACTIVITIES and not _names_earlier(event):
            return f"event {event.id} ends an activity that is not scheduled before it: {event.about!r}"
        before = Item(event.id, event.version)
    if any(event.kind in CLOSING for event in batch.events[:-1]):
        return "events after a close"
    return ""


def _names_earlier(event: Event) -> bool:
    digits = event.about.isascii() and event.about.isdecimal()
    return digits and len(event.about) < 20 and 1 < int(event.about) < event.id


def _version_problem(entry: Entry, version: int) -> str:
    try:
        writer = owner_of(version)
    except VersionError as error:
        return str(error)
    if writer != entry.origin.region:
        return f"version {version} was written by region {entry.origin.region}, which does not own it"
    if version > entry.namespace_version:
        return f"version {version} is above its namespace's, {entry.namespace_version}"
    return ""
