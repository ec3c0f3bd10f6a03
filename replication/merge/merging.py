"""Merging: a record and an entry of another region give a record and what is to be done.

Theory of operation. Every region has every other region's log, each in its own order, but interleaved in any
way. All rules are made so that the record depends on which entries came, not on their interleaving: branches
are the leaves of a tree of events, the current branch and run are functions of the branches, and an entry
that came before what it follows on is parked until that is here. The leader computes the outcome at one
position of its shard's log and proposes it; followers store it.

What the losing region does about its loss is nothing: it writes no event, neither to end the run nor to save
inputs that wait in a buffer. Those were numbered in its log when they were accepted, and the active region
finds them there.

Invariants: the caller's record is never changed. A region that is not active is never told to write an
event. Events at or below a lowest common ancestor never change. Lineage: Temporal's ndc (history replicator,
transaction managers). We differ: zombies instead of terminations, parking instead of asking the source to
send again, and one deterministic step instead of several transactions.
"""

from __future__ import annotations

from msgspec.structs import replace

from replication.merge.applying import Draft
from replication.merge.effects import (
    CloseTask,
    Environment,
    Outcome,
    Park,
    RaiseVersion,
    Refused,
    Skip,
    Unpark,
)
from replication.merge.entries import (
    CLOSING,
    Buffer,
    Entry,
    Events,
    Settled,
    Tomb,
    entry_problem,
    run_of,
)
from replication.merge.history import ROOT, tip
from replication.merge.placing import Broken, Deleted, Gap, NewRun, Placing, place
from replication.merge.reapply import Policy, counts, done_with, held, pending
from replication.merge.record import Link, Parked, Record

DEFAULT_POLICY = Policy()


def merge(record: Record, entry: Entry, env: Environment, policy: Policy = DEFAULT_POLICY) -> Outcome:
    """Take one entry of another region's log. A broken one is isolated; nothing is raised for it.

    The effects are in order: the namespace's version if it is new here; the entry, and what was parked for
    it; which run is current; inputs to make again (active region only).
    """
    draft = Draft(record)
    if entry.namespace_version > env.version and not entry_problem(entry):
        draft.effects.append(RaiseVersion(entry.namespace_version))
        env = replace(env, version=entry.namespace_version, active=False)
    if any(parked.entry.origin == entry.origin for parked in record.parked):
        draft.effects.append(Skip(run_of(entry), "duplicate"))
        return draft.outcome()
    _take(draft, entry)
    _take_parked(draft)
    return _with_pending(draft, env, policy)


def activate(record: Record, env: Environment, policy: Policy = DEFAULT_POLICY) -> Outcome:
    """This region has just become active at env.version: what the workflow id needs before anything else.

    Inputs that wait in a buffer since an older version, and stale inputs that nobody active has made again,
    are made again. May be asked again at any time; what was done is not asked for twice. After a handover
    that was aborted it has to be: what came while the shard was fenced was stored and not made again.
    """
    assert env.active, "only the active region writes"
    draft = Draft(record)
    run = record.runs.get(record.current)
    if run is not None and not run.closed and run.last_version < env.version:
        draft.effects.append(CloseTask(run.id))
    return _with_pending(draft, env, policy)


def write(record: Record, entry: Entry, env: Environment) -> Outcome:
    """Take an entry that this region's own engine has made, before it is proposed. Raises Refused: no change.

    The rules of the active region: it is active, at this version; it writes at the end of the current branch
    of the current run, or begins a run where none is open.
    """
    reason = _why_not(record, entry, env)
    if reason:
        raise Refused(reason)
    draft = Draft(record)
    _take(draft, entry, local=True)
    _take_parked(draft)
    return draft.outcome()


def retry(record: Record, run: str, env: Environment, policy: Policy = DEFAULT_POLICY) -> Outcome:
    """Let the run out of quarantine and take its entries again, in order. Raises Refused: it is not in it."""
    return _released(record, run, env, policy, keep=True)


def discard(record: Record, run: str, env: Environment, policy: Policy = DEFAULT_POLICY) -> Outcome:
    """Let the run out of quarantine without the entry that put it there. Raises Refused: it is not in it."""
    return _released(record, run, env, policy, keep=False)


def _released(record: Record, run: str, env: Environment, policy: Policy, keep: bool) -> Outcome:
    if run not in record.quarantine:
        raise Refused(f"run {run} is not in quarantine")
    entries = record.quarantine[run].entries[0 if keep else 1 :]
    draft = Draft(record)
    rest = {name: each for name, each in record.quarantine.items() if name != run}
    draft.record = replace(record, quarantine=rest)
    for entry in entries:
        _take(draft, entry)
    _take_parked(draft)
    return _with_pending(draft, env, policy)


def _with_pending(draft: Draft, env: Environment, policy: Policy) -> Outcome:
    outcome = draft.outcome()
    if not env.active:
        return outcome
    return Outcome(outcome.record, (*outcome.effects, *pending(outcome.record, env.version, policy)))


# ---- one entry


def _take(draft: Draft, entry: Entry, local: bool = False) -> None:
    """Store, park, isolate or skip the entry: all of it, its successor too, the same way."""
    reason = entry_problem(entry)
    halted = run_of(entry) in draft.record.quarantine and isinstance(entry, Events | Buffer)
    if reason or halted:
        draft.isolate(entry, reason or "the run is in quarantine")
        return
    match entry:
        case Tomb():
            draft.delete(entry)
        case Events():
            _take_events(draft, entry, local)
        case Buffer():
            _take_buffer(draft, entry)
        case Settled():
            draft.decide(entry)


def _take_events(draft: Draft, entry: Events, local: bool) -> None:
    batch, successor = entry.batch, entry.successor
    places: list[Placing] = [place(draft.record, batch)]
    if successor is not None:
        places.append(place(draft.record, successor))
        if successor.run in draft.record.quarantine:
            places.append(Broken(f"its successor {successor.run} is in quarantine"))
    for placing in places:
        if isinstance(placing, Broken):
            draft.isolate(entry, placing.reason)
            return
    for placing in places:
        if isinstance(placing, Gap):
            _park(draft, entry, placing)
            return
    draft.take(entry, batch, places[0], local=local)
    if successor is not None:
        last = batch.events[-1]
        link = Link(batch.run, last.id, last.version)
        draft.take(entry, successor, places[1], link, local=local)


def _take_buffer(draft: Draft, entry: Buffer) -> None:
    if entry.run in draft.record.tombstones:
        draft.effects.append(Skip(entry.run, "deleted"))
    elif entry.run not in draft.record.runs:
        _park(draft, entry, Gap(ROOT, tip(entry.parent)))
    else:
        draft.hold(entry)


def _park(draft: Draft, entry: Entry, gap: Gap) -> None:
    parked = (*draft.record.parked, Parked(entry, gap.have, gap.need))
    in_order = tuple(sorted(parked, key=lambda each: each.entry.origin))
    draft.record = replace(draft.record, parked=in_order)
    draft.effects.append(Park(entry, gap.have, gap.need))


def _take_parked(draft: Draft) -> None:
    """Take what was parked and has now what it follows on, log by log, until nothing moves any more."""
    moved = True
    while moved:
        moved = False
        for parked in draft.record.parked:
            if _still_waits(draft.record, parked.entry):
                continue
            rest = tuple(each for each in draft.record.parked if each is not parked)
            draft.record = replace(draft.record, parked=rest)
            draft.effects.append(Unpark(parked.entry.origin))
            _take(draft, parked.entry)
            moved = True


def _still_waits(record: Record, entry: Entry) -> bool:
    run = run_of(entry)
    if run in record.quarantine:
        return False
    if isinstance(entry, Events):
        return isinstance(place(record, entry.batch), Gap)
    return run not in record.runs and run not in record.tombstones


# ---- rules of the region that writes


def _why_not(record: Record, entry: Entry, env: Environment) -> str:
    """Why this region must not write the entry; "" if it may."""
    run, reason = run_of(entry), entry_problem(entry)
    if reason:
        return reason
    if not env.active:
        return "this region is not active"
    if entry.origin.region != env.region:
        return f"the entry is region {entry.origin.region}'s"
    if entry.namespace_version != env.version:
        return f"the namespace is at version {env.version}, not {entry.namespace_version}"
    if run in record.quarantine:
        return f"run {run} is in quarantine"
    match entry:
        case Tomb():
            if run not in record.runs:
                return f"there is no run {run}"
            return "" if entry.keys == done_with(record, run) else f"other inputs are done with run {run}"
        case Settled():
            return "" if counts(record, entry.at) else f"{entry.at} is not where the workflow id is"
        case Buffer():
            if run != record.current or record.runs[run].closed:
                return f"run {run} is not running"
            at_version = all(event.version == env.version for event in entry.inputs)
            return "" if at_version else "a buffered input is not of the namespace's version"
        case Events():
            return _why_not_events(record, entry, env)


def _why_not_events(record: Record, entry: Events, env: Environment) -> str:
    batch, successor = entry.batch, entry.successor
    if batch.events[-1].version != env.version:
        return f"events of version {batch.events[-1].version}, the namespace is at {env.version}"
    if successor is not None and not isinstance(place(record, successor), NewRun):
        return f"there is, or was, a run {successor.run}"
    placing = place(record, batch)
    if isinstance(placing, NewRun):
        current = record.runs.get(record.current)
        return "" if current is None or current.closed else f"run {current.id} is running"
    if isinstance(placing, Deleted):
        return f"run {batch.run} was deleted"
    if isinstance(placing, Broken):
        return placing.reason
    if batch.run != record.current:
        return f"run {batch.run} is not the current one"
    if record.runs[batch.run].branch.history != batch.parent:
        return f"the events do not follow on the last one of run {batch.run}"
    if batch.events[-1].kind in CLOSING:
        written = {event.key for event in batch.events}
        if any(each.run == batch.run and each.event.key not in written for each in held(record)):
            return f"run {batch.run} closes with inputs in its buffer"
    return ""
