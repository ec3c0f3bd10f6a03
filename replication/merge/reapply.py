"""Reapply and salvage: inputs of branches that lost are made again where work goes on.

Theory of operation. What is pending is a function of the record, not of the entry that has just arrived:
every input known to this region that is on no path that counts. So the active region may ask after every
entry, and again when it is activated, and an input that a standby region stored while nobody was active is
not forgotten; asking twice gives nothing twice, because the copies that were written carry the keys.

A path counts if it is the current branch of a run that is no zombie, or led to the beginning of such a run
(continue-as-new) from one that is older. An input whose key is on a path that counts has reached a workflow.
What counted in a run that was deleted is in its tomb.

What a rule leaves out is told to all regions, with the place where the active one stood (entries.Settled). It
is settled as long as that place is on a path that counts. The reasons (the update is there, a cancellation
was asked for, the run has ended) are on that path, or are siblings, which are pending again if their
copies lose. So a decision of a branch that lost takes nothing with it.

Copies go to the current run, whichever run they were meant for: the same run if it is current, else the
newer one. A closed run is reset for the sake of signals and updates only; what else comes too late for it is
moot.

Lineage: Temporal's events reapplier, which looks at the branch that is just being stored, and knows
positions only. Not here: writing the new events (the engine does), finding the point of a reset, side state
of activities.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from replication.merge.effects import Effect, Place, Reapply, Salvage, Settle, Source
from replication.merge.entries import ENDS_OF_ACTIVITIES, Anchor, Kind
from replication.merge.history import History, Item, contains, lowest_common_ancestor, prefix, tip
from replication.merge.index import Indexed
from replication.merge.record import Record, Run, Waiting


class Action(enum.Enum):
    """What is done about a stale event."""

    COPY = enum.auto()
    SALVAGE = enum.auto()
    NOTHING = enum.auto()


class Unless(enum.Enum):
    """When a copy is left out; `target` is the current run."""

    NEVER = enum.auto()
    UPDATE_KNOWN = enum.auto()  # target has an update of this id
    CANCEL_REQUESTED = enum.auto()  # target has been asked already
    STARTED_LATER = enum.auto()  # target is another run, which started after this
    NOT_THE_LAST = enum.auto()  # a later pause or unpause is known (by hybrid logical clock)


class Rule(NamedTuple):
    """One line of the table."""

    action: Action
    becomes: Kind | None = None  # None: an event of the same kind
    unless: Unless = Unless.NEVER
    reopens: bool = False  # a closed run is reset to take it


_NOTHING = Rule(Action.NOTHING)
_UPDATE = Rule(Action.COPY, Kind.UPDATE_ADMITTED, Unless.UPDATE_KNOWN, reopens=True)

RULES: dict[Kind, Rule] = {
    Kind.SIGNALED: Rule(Action.COPY, reopens=True),
    Kind.UPDATE_ADMITTED: _UPDATE,
    Kind.UPDATE_ACCEPTED: _UPDATE,  # only if it is whole: the request is in it
    Kind.UPDATE_COMPLETED: _NOTHING,  # the workflow must produce it again
    Kind.CANCEL_REQUESTED: Rule(Action.COPY, unless=Unless.CANCEL_REQUESTED),
    Kind.TERMINATED: Rule(Action.COPY, unless=Unless.STARTED_LATER),
    Kind.OPTIONS_UPDATED: Rule(Action.COPY),
    Kind.PAUSED: Rule(Action.COPY, unless=Unless.NOT_THE_LAST),
    Kind.UNPAUSED: Rule(Action.COPY, unless=Unless.NOT_THE_LAST),
    Kind.ACTIVITY_COMPLETED: Rule(Action.SALVAGE),
    Kind.ACTIVITY_FAILED: Rule(Action.SALVAGE),
    Kind.ACTIVITY_CANCELED: Rule(Action.SALVAGE),
    Kind.ACTIVITY_TIMED_OUT: _NOTHING,  # it will time out here by itself
    Kind.ACTIVITY: _NOTHING,
    Kind.TIMER: _NOTHING,  # timers of the common beginning fire here by themselves
    Kind.WORKFLOW_TASK: _NOTHING,
    Kind.MARKER: _NOTHING,
    Kind.CHILD: _NOTHING,  # the child's side notifies again
    Kind.EXTERNAL: _NOTHING,  # what was sent cannot be recalled; who got it knows the request id
    Kind.STARTED: _NOTHING,
    Kind.CLOSED: _NOTHING,
    Kind.CONTINUED: _NOTHING,  # its successor is a zombie, whose inputs are pending in their turn
}

PAUSES = frozenset({Kind.PAUSED, Kind.UNPAUSED})
# What a rule may look for: only this is indexed.
INDEXED = frozenset(kind for kind, rule in RULES.items() if rule is not _NOTHING) | ENDS_OF_ACTIVITIES


class Policy(NamedTuple):
    """What the namespace wants."""

    reset_closed: bool = True  # False: inputs for a closed run are dropped
    salvage: bool = True


class Stale(NamedTuple):
    """An input on no path that counts."""

    run: str
    event: Indexed  # id 0: in the buffer


def covered(record: Record) -> frozenset[str]:
    """Keys of inputs that are done with: on a path that counts, or settled."""
    keys = set(settled(record))
    for run in record.runs.values():
        if not record.is_zombie(run.id):
            for each, path in _paths(record, run):
                keys.update(event.key for event in each.index.on_path(path))
    return frozenset(keys)


def _covered_of(record: Record, keys: set[str]) -> frozenset[str]:
    """Those of the keys that are covered."""
    paths = [
        each for run in record.runs.values() if not record.is_zombie(run.id) for each in _paths(record, run)
    ]
    out = settled(record)
    return frozenset(
        key
        for key in keys
        if key in out
        or any(
            contains(path, event.id, event.version) for run, path in paths for event in run.index.of_key(key)
        )
    )


def settled(record: Record) -> frozenset[str]:
    """Keys of inputs that are done with although no branch has them."""
    keys: set[str] = set()
    for decision in record.decisions.values():
        if not keys.issuperset(decision.keys) and counts(record, decision.at):
            keys.update(decision.keys)
    return frozenset(keys)


def counts(record: Record, at: Anchor) -> bool:
    """Whether the place is on a path that counts, so that what was decided there does."""
    if at.event_id == 0:
        return at.run in record.tombstones
    return any(
        each.id == at.run and contains(path, at.event_id, at.version)
        for run in record.runs.values()
        if not record.is_zombie(run.id)
        for each, path in _paths(record, run)
    )


def done_with(record: Record, run: str) -> tuple[str, ...]:
    """Keys of inputs that are done with and, once the run is deleted, nothing else would say so. Ascending.

    Those on its paths that count, its own and what led from it to another; and what is covered only because
    the run is here: earlier runs' inputs, and what was left out there.
    """
    keys = {
        event.key
        for each in record.runs.values()
        if not record.is_zombie(each.id)
        for passed, path in _paths(record, each)
        if passed.id == run
        for event in passed.index.on_path(path)
    }
    # Whose workflow id it is after that changes nothing: a deleted run keeps its place.
    rest = replace(record, runs={each.id: each for each in record.runs.values() if each.id != run})
    return tuple(sorted(keys | (covered(record) - covered(rest))))


def held(record: Record) -> tuple[Waiting, ...]:
    """What is in the buffers of the runs' states. Each key once.

    Not what was left out, nor what is done with, or will be made again, as an event. An event that comes to
    nothing says nothing: a cancellation that was too late for one run is not too late for another.
    """
    if not record.waiting:
        return ()
    keys = {each.event.key for each in record.waiting}
    gone = _covered_of(record, keys)
    first: dict[tuple[str, str], Waiting] = {}
    for each in record.waiting:
        key = each.event.key
        if key not in gone and not _made_again(record, key):
            first.setdefault((each.run, key), each)
    return tuple(first.values())


def _made_again(record: Record, key: str) -> bool:
    """Whether an event of this key, which is on no path that counts, is or was made again."""
    return any(
        _may_be_copied(record, run, event)
        for run in record.runs.values()
        if run.id not in record.quarantine
        for event in run.index.of_key(key)
    )


def _paths(record: Record, run: Run) -> Iterator[tuple[Run, History]]:
    """The current branch, and the paths in earlier runs that led to the run's beginning.

    An earlier run that has become newer than this one went another way: the path it left does not count.
    """
    path, newest = run.branch.history, run.branch.key
    while True:
        yield run, path
        link = run.previous
        if link is None or link.run not in record.runs or record.runs[link.run].branch.key > newest:
            return
        run, item = record.runs[link.run], Item(link.event_id, link.version)
        holding = [branch.history for branch in run.branches if contains(branch.history, *item)]
        if not holding:
            return
        path = prefix(holding[0], item)


def candidates(record: Record, version: int) -> list[Stale]:
    """Inputs to copy if the rules say so, one of each key, in the order to make them in.

    Terminations come last: what comes after one finds its run closed. Inputs in the buffer that were accepted
    at this version (of the namespace) for the run that is open are not stale but alive.
    """
    live = record.current if record.current and not record.runs[record.current].closed else ""
    old = [each for each in record.waiting if each.event.version < version or each.run != live]
    if not old and all(len(run.branches) == 1 for run in record.runs.values()) and not record.zombies():
        return []
    found = [
        Stale(run.id, event)
        for run in record.runs.values()
        if run.id not in record.quarantine
        for event in (run.index if record.is_zombie(run.id) else run.index.off_path(run.branch.history))
        if _may_be_copied(record, run, event)
    ]
    for run_id, event, hlc, seq in ((w.run, w.event, w.hlc, w.seq) for w in old):
        as_indexed = Indexed(0, event.version, event.kind, event.key, event.about, event.whole, hlc, seq)
        if RULES[event.kind].action is Action.COPY:
            found.append(Stale(run_id, as_indexed))
    found.sort(key=_order)
    done = _covered_of(record, {stale.event.key for stale in found}) if found else frozenset()
    first_of_key: dict[str, Stale] = {}
    for stale in found:
        if stale.event.key not in done:
            first_of_key.setdefault(stale.event.key, stale)
    return list(first_of_key.values())


def _order(stale: Stale) -> tuple[bool, int, int, int, str]:
    event = stale.event
    return event.kind is Kind.TERMINATED, event.version, event.seq, event.id, event.key


def _may_be_copied(record: Record, run: Run, event: Indexed) -> bool:
    rule = RULES[event.kind]
    if rule.action is not Action.COPY or not event.whole:
        return False
    return record.is_zombie(run.id) or rule.reopens or not run.closed


def pending(record: Record, version: int, policy: Policy) -> tuple[Effect, ...]:
    """What the active region has to do about stale inputs now.

    `version`: the namespace's. Whoever takes the effects writes events that carry the sources' keys.
    """
    stale = candidates(record, version)
    # Ends of activities come before the inputs: a termination among these closes the run.
    effects: list[Effect] = [*_salvage(record)] if policy.salvage else []
    if stale:
        target = record.runs.get(record.current)
        if target is not None and target.id in record.quarantine:
            return ()  # it will be asked again when the run is let out
        taken = _taken(stale, target)
        out = {each.event.key for each in stale} - {each.event.key for each in taken}
        if target is not None and target.closed:
            reset = policy.reset_closed and any(RULES[each.event.kind].reopens for each in taken)
            place = Place.RESET if reset else Place.NOWHERE
        else:
            place = Place.APPEND if target is not None else Place.NOWHERE
        if place is Place.NOWHERE:
            out |= {each.event.key for each in taken}
        if out:
            effects.append(Settle(_anchor(record), tuple(sorted(out))))
        if taken:
            run = target.id if target is not None and place is not Place.NOWHERE else ""
            effects.append(Reapply(run, place, tuple(_source(each) for each in taken)))
    return tuple(effects)


def _anchor(record: Record) -> Anchor:
    """Where the workflow id is: the last event of the current run, or the deleted one that has it."""
    if record.current:
        return Anchor(record.current, *tip(record.runs[record.current].branch.history))
    deleted = max(record.tombstones, key=lambda run: record.tombstones[run].key)
    return Anchor(deleted, 0, 0)


def _taken(stale: list[Stale], target: Run | None) -> list[Stale]:
    """Those that the rules do not leave out."""
    if target is None:
        return stale
    here = list(target.index.on_path(target.branch.history))
    updates = {event.about for event in here if RULES[event.kind] is _UPDATE}
    canceled = any(event.kind is Kind.CANCEL_REQUESTED for event in here)
    pauses = [each.event for each in stale if each.event.kind in PAUSES]
    last_pause = max(
        ((e.hlc, e.key) for e in [*pauses, *(e for e in here if e.kind in PAUSES)]), default=None
    )
    taken = []
    for each in stale:
        event, out = each.event, False
        match RULES[event.kind].unless:
            case Unless.NEVER:
                pass
            case Unless.UPDATE_KNOWN:
                out = event.about in updates
                updates.add(event.about)
            case Unless.CANCEL_REQUESTED:
                out, canceled = canceled, True
            case Unless.STARTED_LATER:
                begun = (target.started.version, target.started.seq)
                out = target.closed or (target.id != each.run and begun > (event.version, event.seq))
            case Unless.NOT_THE_LAST:
                out = (event.hlc, event.key) != last_pause
        if not out:
            taken.append(each)
    return taken


def _source(stale: Stale) -> Source:
    event = stale.event
    becomes = RULES[event.kind].becomes or event.kind
    return Source(stale.run, event.id, event.version, becomes, event.key, event.about)


def _salvage(record: Record) -> list[Effect]:
    """Ends of activities on losing branches of the current run, whose scheduled event the current one has."""
    run = record.runs.get(record.current)
    if run is None or run.closed or len(run.branches) == 1 or run.id in record.quarantine:
        return []
    here = run.branch.history
    lost = [event for event in run.index.off_path(here) if RULES[event.kind].action is Action.SALVAGE]
    if not lost:
        return []
    ended = {event.about for event in run.index.on_path(here) if event.kind in ENDS_OF_ACTIVITIES}
    found = []
    for event in sorted(lost, key=lambda event: (event.version, event.seq, event.id)):
        if event.about in ended:
            continue
        if int(event.about) <= _last_common(run, event):
            ended.add(event.about)
            found.append(event)
    ends = tuple(_source(Stale(run.id, event)) for event in found)
    return [Salvage(run.id, ends)] if ends else []


def _last_common(run: Run, event: Indexed) -> int:
    """The id of the last event that the current branch shares with those that have this one."""
    holding = (branch.history for branch in run.branches if contains(branch.history, event.id, event.version))
    return max(lowest_common_ancestor(path, run.branch.history).event_id for path in holding)
