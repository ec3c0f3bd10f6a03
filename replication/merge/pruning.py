"""Pruning: what a record may forget, because no region can ask for it any more.

Theory of operation. A deletion is remembered so that late events of the run do not bring it back, and what
was left out so that nobody makes it again. Both matter to regions that have not heard of it, and to what
such regions wrote. So both may go once every region that holds the namespace has applied them, and all that
these regions had written by then is applied here: they are stable, in the words of causal broadcast.

A region says from time to time how far it has applied every log, and how late it is in its own (`Heard`).
Times are compared only within one log, where they rise, so no clock needs to be right. Logs that are idle say
BEAT. A region that is cut off holds everything back until it is heard again, or removed for ever.

Further KEEP_MS are kept, as long as the log itself: a client may ask again for as long, and the event that a
decision names, which may be another log's, is then as old as the decision, whatever the clocks.

Invariant: what is forgotten changes neither which run is current, nor what is pending, here or in a region
that still remembers. The greatest tombstone of a workflow id stays, for it may say that the id is nobody's.

Lineage: causal stability (Birman's CBCAST), version vectors of garbage collection in Bayou; Cassandra's
gc_grace is the guess at what this knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from replication.merge.entries import Origin, Settled
from replication.merge.reapply import counts
from replication.merge.record import Record

KEEP_MS = 7 * 24 * 3600 * 1000  # as long as a log keeps a frame
CLOCK_BITS = 16  # of a hybrid time, below the milliseconds

Log: TypeAlias = tuple[int, int]  # region and shard


class Heard(NamedTuple):
    """What a region has said of itself: all its shards that have keys of ours."""

    # Shard -> hybrid time of its log: everything that it writes later has a later one, and knows `applied`.
    at: Mapping[int, int]
    applied: Mapping[Log, int]  # of every other log, the time of the last frame that the slowest had applied


def horizon(
    region: int,
    own: Mapping[Log, int],
    heard: Mapping[int, Heard],
    others: Collection[int],
    keep_ms: int = KEEP_MS,
) -> int:
    """Up to which hybrid time everything is stable; 0 or less: nothing is.

    `own`: as Heard.applied, of this shard in this `region`. `others`: the other regions that hold a namespace
    of the shard, and those that did until what they wrote was drained. Logs of yet others do not count.
    """
    floor: list[int] = []
    for other in others:
        word = heard.get(other)
        if word is None or not word.at:
            return 0
        if any((log := (other, shard)) not in own or own[log] < time for shard, time in word.at.items()):
            return 0
        read = {source for source, _ in word.applied}
        if not {region, *others} <= {other, *read}:
            return 0
        floor += (time for (source, _), time in own.items() if source == other)
        floor += (time for (source, _), time in word.applied.items() if source == region or source in others)
    return min(floor) - (keep_ms << CLOCK_BITS) if floor else 0


def prune(record: Record, until: int) -> Record:
    """The record without what is stable at `until` and has no use here any more.

    A decision is needed while an input that it leaves out is here, whether it counts now or not: what makes
    the difference may be newer than `until`, and not the last word. Only a deletion is, so what it is done
    with leaves the buffer.
    """
    if not record.clean:
        return record  # what is parked or in quarantine is not applied yet
    done: set[str] = set()
    for decision in record.decisions.values():
        if decision.hlc <= until and decision.at.event_id == 0 and counts(record, decision.at):
            done.update(decision.keys)
    waiting = tuple(each for each in record.waiting if each.event.key not in done)
    here = {event.key for run in record.runs.values() for event in run.index}
    here.update(each.event.key for each in waiting)
    decisions: dict[Origin, Settled] = {}
    for origin, decision in record.decisions.items():
        if decision.hlc > until:
            decisions[origin] = decision
        elif counts(record, decision.at) or decision.at.run not in record.tombstones:
            left = tuple(key for key in decision.keys if key in here)
            if left:
                decisions[origin] = decision if left == decision.keys else replace(decision, keys=left)
    needed = {decision.at.run for decision in decisions.values()}
    greatest = max(record.tombstones.values(), key=lambda grave: grave.key, default=None)
    tombstones = {
        run: grave
        for run, grave in record.tombstones.items()
        if grave.hlc > until or grave is greatest or run in needed
    }
    pruned = replace(record, decisions=decisions, tombstones=tombstones, waiting=waiting)
    return record if pruned == record else pruned
