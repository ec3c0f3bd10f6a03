"""Where a batch of events belongs in what is known of its run.

A function of the record and the batch that decides and changes nothing; applying.py does. Lineage:
Temporal's ndc branch manager and the order checks of its replicator; we park what has a gap, and allow a
second root.
"""

from __future__ import annotations

from typing import NamedTuple

from replication.merge.entries import Batch, Event
from replication.merge.history import ROOT, Item, choose_branch, tip
from replication.merge.record import Record


class Deleted(NamedTuple):
    """The run has a tombstone."""


class Known(NamedTuple):
    """All of it is here already."""


class Gap(NamedTuple):
    """The events after `have`, up to and with `need`, must come first."""

    have: Item
    need: Item


class Broken(NamedTuple):
    """What is known here contradicts it: an invariant of the whole system is broken."""

    reason: str


class NewRun(NamedTuple):
    """It is the beginning of a run that is not known."""


class Tip(NamedTuple):
    """These events follow the last one of the branch."""

    branch: int
    events: tuple[Event, ...]


class NewBranch(NamedTuple):
    """These events follow `at`, which is inside the branch `base`; 0 and ROOT: a second root."""

    base: int
    at: Item
    events: tuple[Event, ...]


Placing = Deleted | Known | Gap | Broken | NewRun | Tip | NewBranch


def place(record: Record, batch: Batch) -> Placing:
    """Where the batch, which is well formed, belongs."""
    if batch.run in record.tombstones:
        return Deleted()
    run = record.runs.get(batch.run)
    need = tip(batch.parent)
    if run is None:
        return NewRun() if need == ROOT else Gap(ROOT, need)
    after = batch.history()
    index, ancestor = choose_branch([branch.history for branch in run.branches], after)
    branch = run.branches[index]
    if ancestor.event_id < need.event_id:
        return Gap(ancestor, need)
    if ancestor == tip(after):
        return Known()
    events = batch.events[ancestor.event_id - need.event_id :]
    grows = ancestor == tip(branch.history)
    written = tip(after).version
    others = (each for each in run.branches if not (grows and each is branch))
    if any(tip(each.history).version == written for each in others):
        return Broken(f"two branches of run {run.id} end at version {written}")
    if grows:
        if branch.closed:
            return Broken(f"events after the close of run {run.id}, at {ancestor.event_id}")
        return Tip(branch.number, events)
    return NewBranch(branch.number if ancestor != ROOT else 0, ancestor, events)
