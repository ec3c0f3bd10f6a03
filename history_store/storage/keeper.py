"""Which log rows are still needed, and what each group's durable state is: the bookkeeping beside the file.

A log row holds entries of many groups and may go when none of them is needed. Three things make that less
simple than "delete what is compacted", and this module is where they are kept straight:

* A group may be idle for ever with one entry that is not compacted, so rows go from the middle, too.
* A row that replaced entries of an older row must outlive that older row, or the replaced entries would come
  back at the next load. So the newer row waits for the older one (`_waiting`).
* A row whose entries were replaced may stay for other groups after the row before it went. A load then finds
  entries with a gap before them: `adrift`, until the row that replaced them turns up; it must.
* A snapshot may replace a whole log. Then `floor` says that older rows hold nothing of this group.

Hard states live in log rows, and are carried over to the groups table before their row goes.

A round that goes to the database also says which log rows that very round makes needless (`_dying`): most
rows are in the journal only when that happens, and never get to the database at all.

Pure: nothing here reads a file. A round is planned first (`plan`), written by the caller, and only then
taken over (`commit`), so that a write that failed leaves no trace. Between the two of a round without entries
and hard states (a fold), rounds that only append may be planned and taken over, each at once; their
sequences are higher, so that what the fold says about older rows does not touch them.
Invariant: for each group, `compacted <= last`, and its holders' `last` never decrease.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from history_store.storage.contract import Entry, GroupLog, HardState, Round


class GroupRow(NamedTuple):
    """A row of the groups table."""

    group: int
    applied: int = 0
    applied_term: int = 0
    conf: bytes = b""
    compacted: int = 0
    compacted_term: int = 0
    floor: int = 0  # log rows with a lower sequence hold nothing of this group
    hard_floor: int = 0  # log rows with a lower sequence hold no newer hard state than this row
    term: int = 0
    vote: int = 0
    commit: int = 0


@dataclass(slots=True)
class Plan:
    """What one round comes to, before it is written."""

    sequence: int
    log: bool  # the round needs a log row
    groups: list[GroupRow]
    drop: list[int]  # log rows that nobody needs once this round is durable
    resets: set[int]  # groups whose older log is void


class LogGap(ValueError):
    """Entries do not follow what the log has."""


@dataclass(slots=True)
class _Group:
    row: GroupRow
    hard: HardState
    last: int  # index of the last entry, or `compacted` when there is none
    terms: list[tuple[int, int]] = field(default_factory=list)  # (first index, term) of each run of one term
    holders: deque[tuple[int, int]] = field(default_factory=deque)  # (sequence, last index needed there)
    adrift: list[tuple[int, int]] = field(
        default_factory=list
    )  # loading: (sequence, first index) after a gap

    def term_at(self, index: int) -> int:
        at = bisect_right(self.terms, index, key=lambda run: run[0]) - 1
        return self.terms[at][1] if at >= 0 else 0


class LogKeeper:
    """State of all groups of one storage."""

    def __init__(self, rows: list[GroupRow]) -> None:
        self._groups = {
            row.group: _Group(row, HardState(row.term, row.vote, row.commit), row.compacted) for row in rows
        }
        self._dirty: set[int] = set()  # groups whose hard state is newer than their row in the groups table
        self._needed: dict[int, int] = {}  # sequence -> how many reasons there are to keep that log row
        self._waiting: dict[int, list[int]] = {}  # sequence -> rows that must not go before it
        self._dead: list[int] = []
        self.next_sequence = max((max(row.floor, row.hard_floor) for row in rows), default=1) or 1

    # ------------------------------------------------------------------------------------------- loading

    def replay(
        self, sequence: int, entries: list[tuple[int, list[Entry]]], hard_states: list[tuple[int, HardState]]
    ) -> list[tuple[int, list[Entry]]]:
        """Take a log row found on disk; returns what of it counts. `LogGap` if that is no run of entries."""
        self.next_sequence = max(self.next_sequence, sequence + 1)
        counting = []
        self._needed[sequence] = 1  # held while we work, so that it cannot die before it is whole
        for group, found in entries:
            state = self._group(group)
            if sequence < state.row.floor or not found:
                continue
            if found[0].index > state.last + 1:
                state.adrift.append((sequence, found[0].index))
                self._needed[sequence] += 1
                continue
            check_follows(group, found, state.last)
            for held, _ in state.adrift:  # all of it is replaced by this row, which therefore outlives it
                self._waiting.setdefault(held, []).append(sequence)
                self._needed[sequence] += 1
                self._unneed(held)
            state.adrift.clear()
            self._append(sequence, group, found)
            counting.append((group, found))
        for group, hard in hard_states:
            if sequence >= self._group(group).row.hard_floor:
                self._group(group).hard = hard
                self._dirty.add(group)
        self._unneed(sequence)
        return counting

    def replayed(self) -> None:
        """All rows have been taken. `LogGap` if entries are missing that nothing replaced."""
        for group, state in self._groups.items():
            if state.adrift:
                sequence, first = state.adrift[0]
                raise LogGap(
                    f"its log row {sequence} cannot be used: "
                    f"group {group}: entry {first} does not follow entry {state.last}"
                )

    def logs(self) -> dict[int, GroupLog]:
        """Every group, without its entries."""
        return {
            group: GroupLog(
                hard_state=state.hard,
                applied=state.row.applied,
                applied_term=state.row.applied_term,
                compacted=state.row.compacted,
                compacted_term=state.row.compacted_term,
                entries=[],
                conf=state.row.conf,
            )
            for group, state in self._groups.items()
        }

    # ------------------------------------------------------------------------------------------- writing

    def plan(self, batch: Round, *, drop: bool = False) -> Plan:
        """Check the round against the log, and say what has to be written. Changes nothing.

        `drop`: the round goes to the database, also if it changes no group.
        """
        hard = dict(batch.hard_states)
        sequence = self.next_sequence
        plan = Plan(sequence, bool(batch.entries), [], [], set())
        for group, state in hard.items():
            if state[:2] != self._group(group).hard[:2]:
                plan.log = True  # a term or a vote; a commit index alone can be worked out again
        rows: dict[int, GroupRow] = {}
        for group, index, term in batch.compact:
            row = rows.get(group) or self._group(group).row
            wiped = group in batch.wipe or group in batch.void
            if index > row.compacted or (wiped and index == row.compacted):
                if wiped or self._is_void(group, index, term):
                    plan.resets.add(group)
                    row = row._replace(floor=sequence)
                rows[group] = row._replace(compacted=index, compacted_term=term)
        for group, index, term, conf in batch.applied:
            row = rows.get(group) or self._group(group).row
            rows[group] = row._replace(applied=index, applied_term=term, conf=conf)
        if batch.entries:
            self._check_all(batch, rows, plan.resets)
        if rows or drop:
            plan.drop = self._dead + self._dying(rows)
        if plan.drop:
            for group in self._dirty:
                rows.setdefault(group, self._groups[group].row)
        for group, row in rows.items():
            newest = hard.get(group) or self._groups[group].hard
            plan.groups.append(
                row._replace(
                    hard_floor=sequence + 1, term=newest.term, vote=newest.vote, commit=newest.commit
                )
            )
        return plan

    def commit(self, batch: Round, plan: Plan) -> None:
        """The round is durable: take it over."""
        for group, hard in batch.hard_states:
            state = self._group(group)
            if hard[:2] != state.hard[:2]:
                self._dirty.add(group)
            state.hard = hard
        for row in plan.groups:
            state = self._groups[row.group]
            state.row = row
            if state.hard[:2] == (row.term, row.vote):
                self._dirty.discard(row.group)
            if row.group in plan.resets:
                state.last = row.compacted
                state.terms.clear()
            state.last = max(state.last, row.compacted)
            self._release(state)
        if plan.drop:
            gone = set(plan.drop)
            self._dead = [sequence for sequence in self._dead if sequence not in gone]
        if plan.log or plan.groups:
            self.next_sequence = max(self.next_sequence, plan.sequence + 1)
        if plan.log:
            self._needed[plan.sequence] = 1
            for group, entries in batch.entries:
                self._append(plan.sequence, group, entries)
            self._unneed(plan.sequence)

    # ------------------------------------------------------------------------------------------- helpers

    def _group(self, group: int) -> _Group:
        state = self._groups.get(group)
        if state is None:
            state = self._groups[group] = _Group(GroupRow(group), HardState(), 0)
        return state

    def _is_void(self, group: int, index: int, term: int) -> bool:
        """Whether a snapshot at (index, term) contradicts the log, so that all of it must go (Raft 7)."""
        state = self._group(group)
        return index > state.last or state.term_at(index) != term

    def _dying(self, rows: dict[int, GroupRow]) -> list[int]:
        """Which log rows nobody needs any more once the groups are as in `rows`. As `_release` does it."""
        needs: dict[int, int] = {}
        dying: list[int] = []

        def unneed(sequence: int) -> None:
            left = needs.get(sequence, self._needed[sequence]) - 1
            needs[sequence] = left
            if left == 0:
                dying.append(sequence)

        for group, row in rows.items():
            for sequence, last in self._groups[group].holders:
                if last > row.compacted and sequence >= row.floor:
                    break
                unneed(sequence)
        for sequence in dying:  # it grows meanwhile
            for waiting in self._waiting.get(sequence, ()):
                unneed(waiting)
        return dying

    def _check_all(self, batch: Round, rows: dict[int, GroupRow], resets: set[int]) -> None:
        lasts: dict[int, int] = {}
        for group, entries in batch.entries:
            row = rows.get(group) or self._group(group).row
            last = lasts.get(group)
            if last is None:
                last = row.compacted if group in resets else self._group(group).last
            lasts[group] = max(check_follows(group, entries, last), row.compacted)

    def _append(self, sequence: int, group: int, entries: list[Entry]) -> None:
        if not entries:
            return
        state = self._groups[group]
        first, last = entries[0].index, entries[-1].index
        if first <= state.last:
            self._truncate(state, sequence, first)
        if last > state.row.compacted:
            state.holders.append((sequence, last))
            self._needed[sequence] += 1
        state.last = max(last, state.row.compacted)
        self._note_terms(state, entries)

    @staticmethod
    def _note_terms(state: _Group, entries: list[Entry]) -> None:
        term = state.terms[-1][1] if state.terms else -1
        if entries[-1].term == term:  # terms never decrease along a log, so all between are the same
            return
        for entry in entries:
            if entry.term != term:
                state.terms.append((entry.index, entry.term))
                term = entry.term

    def _truncate(self, state: _Group, sequence: int, first: int) -> None:
        """Entries from `first` on are replaced by the row `sequence`."""
        cut: list[tuple[int, int]] = []
        while state.holders and state.holders[-1][1] >= first:
            held, _ = state.holders.pop()
            cut.append((held, first - 1))
            if held != sequence:
                self._waiting.setdefault(held, []).append(sequence)
                self._needed[sequence] += 1
        state.holders.extend(reversed(cut))
        while state.terms and state.terms[-1][0] >= first:
            state.terms.pop()
        state.last = first - 1
        self._release(state)

    def _release(self, state: _Group) -> None:
        holders = state.holders
        compacted = state.row.compacted
        while holders and (holders[0][1] <= compacted or holders[0][0] < state.row.floor):
            self._unneed(holders.popleft()[0])
        if len(state.terms) > 1 and state.terms[1][0] <= compacted:
            keep = bisect_right(state.terms, compacted, key=lambda run: run[0]) - 1
            del state.terms[:keep]

    def _unneed(self, sequence: int) -> None:
        """One reason less to keep that row; when it goes, those that waited for it have one less, too."""
        ready = [sequence]
        while ready:
            row = ready.pop()
            self._needed[row] -= 1
            if self._needed[row] == 0:
                del self._needed[row]
                self._dead.append(row)
                ready.extend(self._waiting.pop(row, ()))


def check_follows(group: int, entries: list[Entry], last: int) -> int:
    """Whether `entries` are gapless and join a log that ends at `last`; returns where it ends then."""
    if not entries:
        return last
    first, final = entries[0].index, entries[-1].index
    if first < 1 or first > last + 1:
        raise LogGap(f"group {group}: entry {first} does not follow entry {last}")
    if final - first + 1 != len(entries):
        raise LogGap(f"group {group}: entries {first} to {final} are {len(entries)} entries")
    return final
