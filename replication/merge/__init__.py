"""Merge: what a region knows about a workflow id, and what an entry of another region makes of it. Pure.

`merge` takes an entry of another region's log, `write` one that this region's engine has made, `activate`
answers what a failover to this region asks for; each gives an `Outcome`: the new record and the effects, to
be stored and taken whole. See README.md for the order to read the modules in.
"""

from replication.merge.effects import Effect, Environment, Outcome, Refused
from replication.merge.entries import Anchor, Batch, Buffer, Entry, Event, Events, Kind, Origin, Settled, Tomb
from replication.merge.history import History, Item
from replication.merge.merging import activate, discard, merge, retry, write
from replication.merge.pruning import Heard, horizon, prune
from replication.merge.reapply import Policy, done_with
from replication.merge.record import Record

__all__ = [
    "Anchor",
    "Batch",
    "Buffer",
    "Effect",
    "Entry",
    "Environment",
    "Event",
    "Events",
    "Heard",
    "History",
    "Item",
    "Kind",
    "Origin",
    "Outcome",
    "Policy",
    "Record",
    "Refused",
    "Settled",
    "Tomb",
    "activate",
    "discard",
    "done_with",
    "horizon",
    "merge",
    "prune",
    "retry",
    "write",
]
