"""The steps of a merge: a draft of the record that is being made, and what each kind of change does to it.

A draft lives for one call and is never seen outside of the room: either the call returns an outcome made
from it, or the draft is dropped and the caller's record is as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

from msgspec.structs import replace

from replication.merge.effects import (
    Advance,
    Append,
    CreateRun,
    Delete,
    Effect,
    Fork,
    Hold,
    Isolate,
    Outcome,
    Rebuild,
    Release,
    Revive,
    SetCurrent,
    Skip,
    Suppress,
)
from replication.merge.entries import (
    Anchor,
    Batch,
    Buffer,
    Entry,
    Event,
    Events,
    OrderKey,
    Settled,
    Tomb,
    key_of,
    run_of,
)
from replication.merge.history import ROOT, History, Item, extended, prefix
from replication.merge.index import Indexed
from replication.merge.placing import Broken, Deleted, Gap, Known, NewBranch, NewRun, Placing, Tip
from replication.merge.reapply import INDEXED, held
from replication.merge.record import (
    Branch,
    Grave,
    Link,
    Quarantine,
    Record,
    Run,
    Waiting,
    current_branch,
    current_run,
)


class Draft:
    """A record being made, and the effects so far."""

    def __init__(self, record: Record) -> None:
        self.before = record
        self.record = record
        self.effects: list[Effect] = []

    def outcome(self) -> Outcome:
        """What has come of it, the workflow id's current run settled."""
        self._choose_current()
        self._tell_buffers()
        return Outcome(self.record, tuple(self.effects))

    # ---- events

    def take(
        self,
        entry: Events,
        batch: Batch,
        placing: Placing,
        previous: Link | None = None,
        local: bool = False,
    ) -> None:
        """Store the batch where it belongs; it is not parked and contradicts nothing.

        `local`: this region's engine made the events, and has the state that they lead to.
        """
        key = OrderKey(batch.events[-1].version, entry.origin.seq, int(batch is entry.successor))
        match placing:
            case Deleted():
                graves = self.record.tombstones
                grave = graves[batch.run]
                graves = graves | {batch.run: grave._replace(key=max(grave.key, key))}
                self.record = replace(self.record, tombstones=graves)
                self.effects.append(Skip(batch.run, "deleted"))
            case Known():
                self.effects.append(Skip(batch.run, "duplicate"))
            case NewRun():
                branch = self._branch(1, (), batch.events, key)
                run = Run(batch.run, (branch,), 1, previous, key, next_number=2)
                self.effects += [CreateRun(run.id), Fork(run.id, 1, 0, ROOT)]
                self._grown(entry, run, 1, batch.events, local)
            case NewBranch(base, at, events):
                run = self.record.runs[batch.run]
                path = prefix(run.numbered(base).history, at) if base else ()
                branch = self._branch(run.next_number, path, events, key)
                self.effects.append(Fork(run.id, branch.number, base, at))
                run = replace(run, branches=(*run.branches, branch), next_number=branch.number + 1)
                self._grown(entry, run, branch.number, events, local)
            case Tip(number, events):
                run = self.record.runs[batch.run]
                longer = self._branch(number, run.numbered(number).history, events, key)
                branches = tuple(longer if each.number == number else each for each in run.branches)
                self._grown(entry, replace(run, branches=branches), number, events, local)
            case Gap() | Broken():
                raise AssertionError(f"{placing} is not to be stored")

    def _branch(self, number: int, path: History, events: tuple[Event, ...], key: OrderKey) -> Branch:
        history = extended(path, (Item(event.id, event.version) for event in events))
        return Branch(number, history, key, events[-1].kind)

    def _grown(self, entry: Events, run: Run, number: int, events: tuple[Event, ...], local: bool) -> None:
        """The run's branch of this number has been given these events: store, index, release, follow."""
        before = self.record.runs.get(run.id)
        current = current_branch(run.branches).number
        found = tuple(
            Indexed(e.id, e.version, e.kind, key_of(run.id, e), e.about, e.whole, entry.hlc, entry.origin.seq)
            for e in events
            if e.kind in INDEXED
        )
        run = replace(run, current=current, index=run.index.extended(found))
        self.record = replace(self.record, runs=self.record.runs | {run.id: run})
        self.effects.append(Append(run.id, number, events))
        self._release(run.id, {indexed.key for indexed in found})
        if before is not None and before.current != current:
            self.effects.append(Rebuild(run.id, current))
        elif number == current and not local:
            self.effects.append(Advance(run.id, events))

    # ---- the buffer

    def hold(self, entry: Buffer) -> None:
        """Keep the inputs that are not here already, nor events of their run."""
        run, here = entry.run, {_place(each) for each in self.record.waiting}
        written = self.record.runs[run].index
        new = [
            waiting
            for ordinal, event in enumerate(entry.inputs)
            if event.key not in written
            and _place(waiting := Waiting(run, event, entry.hlc, entry.origin.seq, ordinal)) not in here
        ]
        if not new:
            self.effects.append(Skip(run, "duplicate"))
            return
        self.record = replace(self.record, waiting=tuple(sorted([*self.record.waiting, *new], key=_place)))

    def _release(self, run: str, keys: Set[str]) -> None:
        """These inputs have become events of their run."""
        waiting = self.record.waiting
        staying = tuple(each for each in waiting if each.run != run or each.event.key not in keys)
        if len(staying) < len(waiting):
            self.record = replace(self.record, waiting=staying)

    def _tell_buffers(self) -> None:
        """Say what came into the buffers of the runs' states, and what left: a deleted run took its own."""
        were, are = held(self.before), held(self.record)
        if were is are:
            return
        here, there = ({(each.run, each.event.key) for each in some} for some in (are, were))
        for run, gone in _by_run(each for each in were if (each.run, each.event.key) not in here):
            if run in self.record.runs:
                self.effects.append(Release(run, tuple(each.event.key for each in gone)))
        for run, new in _by_run(each for each in are if (each.run, each.event.key) not in there):
            self.effects.append(Hold(run, tuple(each.event for each in new)))

    def decide(self, entry: Settled) -> None:
        """Remember what a region, this one maybe, has left out."""
        if entry.origin in self.record.decisions:
            self.effects.append(Skip(entry.at.run, "duplicate"))
            return
        self.record = replace(self.record, decisions=self.record.decisions | {entry.origin: entry})

    # ---- runs that go, runs that halt

    def delete(self, entry: Tomb) -> None:
        """The run goes; its name and its place among the runs of the workflow id stay."""
        record, run_id = self.record, entry.run
        run, grave = record.runs.get(run_id), record.tombstones.get(run_id)
        if entry.keys and entry.origin not in record.decisions:
            gone = Settled(entry.origin, entry.hlc, entry.namespace_version, Anchor(run_id, 0, 0), entry.keys)
            record = replace(record, decisions=record.decisions | {entry.origin: gone})
        place = run.branch.key if run is not None else OrderKey(0, 0, 0)
        if grave is None:
            grave = Grave(place, entry.hlc)
            self.effects.append(Delete(run_id))
        else:
            grave = grave._replace(hlc=max(grave.hlc, entry.hlc))
            self.effects.append(Skip(run_id, "duplicate"))
        self.record = replace(
            record,
            runs={each.id: each for each in record.runs.values() if each.id != run_id},
            tombstones=record.tombstones | {run_id: grave},
            waiting=tuple(waiting for waiting in record.waiting if waiting.run != run_id),
            quarantine={name: q for name, q in record.quarantine.items() if name != run_id},
        )

    def isolate(self, entry: Entry, reason: str) -> None:
        """The entry's run halts, this entry the first or a further one of those that are kept."""
        run = run_of(entry)
        before = self.record.quarantine.get(run)
        kept = Quarantine(run, reason, (entry,))
        if before is not None:
            kept = replace(before, entries=(*before.entries, entry))
        self.record = replace(self.record, quarantine=self.record.quarantine | {run: kept})
        self.effects.append(Isolate(run, reason, entry))

    # ---- whose workflow id it is

    def _choose_current(self) -> None:
        """Settle the current run; say who became a zombie, or came as one, and who is none any more."""
        before, record = self.before, self.record
        current = current_run(record.runs, record.tombstones)
        self.record = record = replace(record, current=current)
        were, are = before.zombies(), record.zombies()
        self.effects += [Suppress(run, current) for run in sorted(are - were)]
        if current != before.current:
            self.effects.append(SetCurrent(current))
        self.effects += [Revive(run) for run in sorted(were - are) if run in record.runs]


def _place(waiting: Waiting) -> tuple[int, int, int]:
    return waiting.event.version, waiting.seq, waiting.ordinal


def _by_run(waiting: Iterable[Waiting]) -> Iterator[tuple[str, list[Waiting]]]:
    by_run: dict[str, list[Waiting]] = {}
    for each in waiting:
        by_run.setdefault(each.run, []).append(each)
    yield from by_run.items()
