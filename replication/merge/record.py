"""What a region knows about one workflow id: its runs with their branches, and what waits.

A record is a value: nothing in it is ever changed, a rule makes another one that shares what stayed the
same. So no rule can leave it half changed, and what has to be stored is found by comparing two (rows.py).

It holds no event. It holds where branches part (version histories) and an index of the events that a rule
might have to look for later: inputs from outside, and ends of activities. An event of a run is named by (id,
version), and is on a branch if the branch's version history says so; the index therefore does not name
branches.

Invariants: a run's branches are the leaves of its tree of events, so none is the beginning of another, and
their last versions differ. `current` has the greatest order key of all runs and tombstones, or is "" if a
tombstone has it. An open run that is not current is a zombie: that is the definition, so it is not stored. A
run is not both known and deleted.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from replication.merge.entries import CLOSING, Entry, Event, Kind, OrderKey, Origin, Settled
from replication.merge.history import History, Item, tip
from replication.merge.index import Index


class Branch(msgspec.Struct, array_like=True, frozen=True):
    """A path from the run's root to a leaf."""

    number: int  # names the branch in this region only; from 1, never used again in its run
    history: History
    key: OrderKey  # of its last event
    last_kind: Kind

    @property
    def closed(self) -> bool:
        """Whether the run has ended on this branch."""
        return self.last_kind in CLOSING


class Link(NamedTuple):
    """The event of another run, with which that one closed and this one began."""

    run: str
    event_id: int
    version: int


class Run(msgspec.Struct, array_like=True, frozen=True):
    """A run: its branches, which of them is current, its index."""

    id: str
    branches: tuple[Branch, ...]  # by number; at least one
    current: int  # a branch's number
    previous: Link | None
    started: OrderKey  # of its first entry that was seen here
    index: Index = Index()
    next_number: int = 1

    @property
    def branch(self) -> Branch:
        """The current branch."""
        return self.numbered(self.current)

    def numbered(self, number: int) -> Branch:
        """The branch of this number."""
        return next(branch for branch in self.branches if branch.number == number)

    @property
    def closed(self) -> bool:
        """Whether its current branch says that it has ended."""
        return self.branch.closed

    @property
    def last_version(self) -> int:
        """The version of the last event of the current branch."""
        return tip(self.branch.history).version


class Waiting(msgspec.Struct, array_like=True, frozen=True):
    """An input that was accepted into a buffer, and is no event of its run that is known here.

    It may be an event of another run, or have been left out (reapply.held tells): then it stays, because that
    run may be deleted, and what spoke against it may come to nothing.
    """

    run: str
    event: Event  # id 0
    hlc: int
    seq: int
    ordinal: int  # in the entry of this seq


class Grave(NamedTuple):
    """What is kept of a run that was deleted."""

    key: OrderKey  # the greatest of anything ever seen of it
    hlc: int  # of the entry that said so, the last one


class Parked(msgspec.Struct, array_like=True, frozen=True):
    """An entry whose run is not known here up to where the entry begins."""

    entry: Entry
    have: Item  # the last event before it that is known; ROOT if none
    need: Item  # the event just before it


class Quarantine(msgspec.Struct, array_like=True, frozen=True):
    """A run that halts, because a rule was broken: its entries are kept as they came, in order."""

    run: str
    reason: str
    entries: tuple[Entry, ...]


class Record(msgspec.Struct, frozen=True):
    """Everything about one workflow id of a namespace. See the module's docstring for what holds."""

    runs: dict[str, Run] = {}
    current: str = ""  # run id
    tombstones: dict[str, Grave] = {}  # by run id
    waiting: tuple[Waiting, ...] = ()  # by version, number and ordinal: as they were accepted
    # What any region has left out, and what went with deleted runs. Which of them count is a function of the
    # branches (reapply.settled).
    decisions: dict[Origin, Settled] = {}
    parked: tuple[Parked, ...] = ()  # by origin, so that a log's are in their order
    quarantine: dict[str, Quarantine] = {}

    def is_zombie(self, run: str) -> bool:
        """Whether the run is open but lost its workflow id to another."""
        return run != self.current and run in self.runs and not self.runs[run].closed

    def zombies(self) -> frozenset[str]:
        """Run ids of all zombies."""
        return frozenset(run for run in self.runs if self.is_zombie(run))

    @property
    def clean(self) -> bool:
        """Whether nothing waits for another entry or for an operator; failovers ask this."""
        return not self.parked and not self.quarantine


def current_branch(branches: tuple[Branch, ...]) -> Branch:
    """The branch whose last version is the highest; it defines the run's state.

    A function of what is known and of nothing else. Last versions differ, because a version is one linear
    sequence of events in a run.
    """
    return max(branches, key=lambda branch: tip(branch.history).version)


def current_run(runs: dict[str, Run], tombstones: dict[str, Grave]) -> str:
    """The run that has the workflow id: that of the greatest order key. "": that one was deleted, or none is.

    A function of the known branches, so regions that know the same choose the same, in whatever order they
    heard. A deleted run keeps its place: the end of a winner's retention must not bring a zombie to life.
    """
    keys = {run.branch.key: run.id for run in runs.values()}
    keys.update(dict.fromkeys((grave.key for grave in tombstones.values()), ""))
    return keys[max(keys)] if keys else ""
