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
from replication.merge.entries import Batch, Buffer, Entry, Event, Events, OrderKey, Settled, key_of, run_of
from replication.merge.history import ROOT, History, Item, extended, prefix
from replication.merge.placing import Broken, Deleted, Gap, Known, NewBranch, NewRun, Placing, Tip
from replication.merge.reapply import INDEXED, counts, held, keys_of_current_branch
from replication.merge.record import (
    Branch,
    Indexed,
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
                graves = graves | {batch.run: max(graves[batch.run], key)}
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
        run = replace(run, current=current, index=run.index + found)
        self.record = replace(self.record, runs=self.record.runs | {run.id: run})
        self.effects.append(Append(run.id, number, events))
        self._release({indexed.key for indexed in found})
        if before is not None and before.current != current:
            self.effects.append(Rebuild(run.id, current))
        elif number == current and not local:
            self.effects.append(Advance(run.id, events))

    # ---- the buffer

    def hold(self, entry: Buffer) -> None:
        """Keep the inputs that are neither here already nor events of any branch."""
        known = {waiting.event.key for waiting in self.record.waiting}
        for run in self.record.runs.values():
            known.update(indexed.key for indexed in run.index)
        new = tuple(event for event in entry.inputs if event.key not in known)
        if not new:
            self.effects.append(Skip(entry.run, "duplicate"))
            return
        waiting = tuple(Waiting(entry.run, event, entry.hlc, entry.origin.seq) for event in new)
        self.record = replace(self.record, waiting=self.record.waiting + waiting)

    def _release(self, keys: Set[str]) -> None:
        """These inputs have become events."""
        waiting = self.record.waiting
        staying = tuple(each for each in waiting if each.event.key not in keys)
        if len(staying) < len(waiting):
            self.record = replace(self.record, waiting=staying)

    def _tell_buffers(self) -> None:
        """Say what came into the buffers of the runs' states, and what left: a deleted run took its own."""
        were = {each.event.key: each for each in held(self.before)}
        are = {each.event.key: each for each in held(self.record)}
        for run, new in _by_run(each for key, each in are.items() if key not in were):
            self.effects.append(Hold(run, tuple(each.event for each in new)))
        for run, gone in _by_run(each for key, each in were.items() if key not in are):
            if run in self.record.runs:
                self.effects.append(Release(run, tuple(each.event.key for each in gone)))

    def decide(self, entry: Settled) -> None:
        """Remember what a region, this one maybe, has left out."""
        if entry.origin in self.record.decisions:
            self.effects.append(Skip(entry.at.run, "duplicate"))
            return
        self.record = replace(self.record, decisions=self.record.decisions | {entry.origin: entry})

    # ---- runs that go, runs that halt

    def delete(self, run_id: str) -> None:
        """The run goes; its name and its place among the runs of the workflow id stay."""
        record = self.record
        run = record.runs.get(run_id)
        if run is None and run_id in record.tombstones:
            self.effects.append(Skip(run_id, "duplicate"))
            return
        place, settled = OrderKey(0, 0, 0), record.settled
        if run is not None:
            place = run.branch.key
            if not record.is_zombie(run_id):
                settled |= keys_of_current_branch(run)
            for decision in record.decisions.values():
                if decision.at.run == run_id and counts(record, decision.at):
                    settled |= set(decision.keys)
        self.record = replace(
            record,
            runs={each.id: each for each in record.runs.values() if each.id != run_id},
            tombstones=record.tombstones | {run_id: place},
            waiting=tuple(waiting for waiting in record.waiting if waiting.run != run_id),
            settled=settled,
            quarantine={name: q for name, q in record.quarantine.items() if name != run_id},
        )
        self.effects.append(Delete(run_id))

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


def _by_run(waiting: Iterable[Waiting]) -> Iterator[tuple[str, list[Waiting]]]:
    by_run: dict[str, list[Waiting]] = {}
    for each in waiting:
        by_run.setdefault(each.run, []).append(each)
    yield from by_run.items()
