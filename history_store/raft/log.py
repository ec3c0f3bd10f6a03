"""The log in memory: what was appended, what of it is durable, committed and handed to the state machine.

Entries after `compacted` are all here, so reading never waits for a disk. Four marks move along it:

    compacted <= handed <= committed          handed <= stable <= last_index

`stable` is what our own disk has. Nothing is handed out before it is durable here, so the rows of the state
machine can never be ahead of the log beside them. One write may be in flight (`in_flight` is its last
index); when the log is cut back meanwhile, both marks are cut with it, and everything after the cut is
written again.

Lineage: etcd-io/raft log.go and log_unstable.go, in one, because our whole tail is in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from history_store.raft.messages import SnapshotMeta
from history_store.rare import reached
from history_store.storage.contract import Entry

# What an entry costs besides its data: tuple, integers, bytes header. Counted, so that a million empty
# entries do not look free.
ENTRY_OVERHEAD_BYTES = 160


def entry_bytes(entries: Sequence[Entry]) -> int:
    """What these entries take in memory, about."""
    return sum([len(entry.data) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)


class RaftLog:
    """The entries of one group after `compacted`."""

    __slots__ = (
        "bytes",
        "committed",
        "compacted",
        "compacted_term",
        "entries",
        "handed",
        "in_flight",
        "snapshot",
        "stable",
    )

    def __init__(
        self, compacted: int, compacted_term: int, entries: list[Entry], committed: int, applied: int
    ) -> None:
        assert 0 <= compacted <= applied, (
            f"rows at {applied}, but the log before {compacted} is gone: lost data"
        )
        assert not entries or entries[0].index == compacted + 1, "the log does not follow its compaction"
        last = compacted + len(entries)
        assert not entries or entries[-1].index == last, "the log has a gap"
        assert applied <= last, f"rows at {applied}, log ends at {last}: was the log truncated or lost?"
        committed = max(committed, applied)
        assert committed <= last, (
            f"commit {committed} is beyond the log's end {last}: was the log truncated or lost?"
        )
        self.compacted = compacted
        self.compacted_term = compacted_term
        self.entries = entries
        self.stable = last
        self.committed = committed
        self.handed = applied
        self.in_flight = 0
        self.snapshot: SnapshotMeta | None = None  # arrived and not yet given out to be made durable
        self.bytes = entry_bytes(entries)

    @property
    def last_index(self) -> int:
        """The index of the last entry (of the compaction, if there is none)."""
        return self.compacted + len(self.entries)

    @property
    def last_term(self) -> int:
        """The term of the last entry."""
        return self.entries[-1].term if self.entries else self.compacted_term

    def term(self, index: int) -> int:
        """The term of the entry at `index`; -1 where we do not know (compacted, or not there yet)."""
        offset = index - self.compacted
        if offset > 0:
            return self.entries[offset - 1].term if offset <= len(self.entries) else -1
        return self.compacted_term if offset == 0 else -1

    def append(self, entry: Entry) -> None:
        """Add one entry of our own (the leader's way)."""
        assert entry.index == self.compacted + len(self.entries) + 1
        assert entry.term >= self.last_term, "terms never go back along a log"
        self.entries.append(entry)
        self.bytes += len(entry.data) + ENTRY_OVERHEAD_BYTES

    def merge(self, previous: int, entries: Sequence[Entry]) -> int:
        """Take a leader's entries after `previous`, which matches; answer the last index they cover.

        Entries that we have already are skipped: a late, shorter message must not cut off a longer later one.
        """
        covered = previous + len(entries)
        for position, entry in enumerate(entries):
            assert entry.index == previous + 1 + position, "a leader sent a gap"
            if self.term(entry.index) != entry.term:
                if entry.index <= self.last_index:
                    self._cut(entry.index)
                self._extend(entries[position:])
                break
        return covered

    def _extend(self, entries: Sequence[Entry]) -> None:
        assert entries[0].index == self.last_index + 1
        self.entries.extend(entries)
        self.bytes += entry_bytes(entries)

    def _cut(self, index: int) -> None:
        """Drop `index` and all after it; another leader put something else there."""
        assert index > self.committed, (
            f"entry {index} conflicts with a committed one ({self.committed}): split brain"
        )
        reached("log truncated")
        offset = index - self.compacted - 1
        self.bytes -= entry_bytes(self.entries[offset:])
        del self.entries[offset:]
        self.stable = min(self.stable, index - 1)
        self.in_flight = min(self.in_flight, index - 1)

    def matches(self, index: int, term: int) -> bool:
        """Whether our entry at `index` is the one of that term (then all before it agree, too)."""
        return self.term(index) == term

    def is_behind_or_equal(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends so is at least as up to date as ours (Raft, section 5.4.1)."""
        ours = self.last_term
        return last_term > ours or (last_term == ours and last_index >= self.last_index)

    def last_index_of_term_up_to(self, index: int, term: int) -> tuple[int, int]:
        """The largest index <= `index` whose term is <= `term`, and its term (-1 if compacted).

        Both sides use it to skip a whole term in one step when looking for the place where two logs part.
        """
        index = min(index, self.last_index)
        while index > self.compacted and self.entries[index - self.compacted - 1].term > term:
            index -= 1
        return index, self.term(index)

    def commit_to(self, index: int) -> bool:
        """Raise the commit mark; it never goes back. True if it moved."""
        if index <= self.committed:
            return False
        assert index <= self.last_index, (
            f"commit {index} is beyond the end {self.last_index}: was the log lost?"
        )
        self.committed = index
        return True

    def unwritten(self) -> list[Entry]:
        """What is to be made durable; the caller writes it, then calls `written`."""
        assert self.in_flight == 0, "one write at a time"
        entries = self.entries[self.stable - self.compacted :]
        if entries:
            self.in_flight = entries[-1].index
        return entries

    def written(self) -> None:
        """The write in flight is durable (as far as the log was not cut meanwhile)."""
        if self.in_flight > self.stable:
            self.stable = self.in_flight
        self.in_flight = 0

    def has_committed(self) -> bool:
        """Whether there is something to hand to the state machine."""
        return self.handed < self.committed and self.handed < self.stable

    def take_committed(self, count_max: int) -> list[Entry]:
        """Hand out what is committed and durable here, in order, each entry once."""
        upto = min(self.committed, self.stable, self.handed + count_max)
        if upto <= self.handed:
            return []
        offset = self.compacted
        entries = self.entries[self.handed - offset : upto - offset]
        assert entries[0].index == self.handed + 1
        self.handed = upto
        return entries

    def slice(self, first: int, count_max: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from `first` on, at least one if there is one, within both limits."""
        assert first > self.compacted, "compacted entries are sent as a snapshot"
        offset = first - self.compacted - 1
        entries = self.entries[offset : offset + count_max]
        size = 0
        for position, entry in enumerate(entries):
            size += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if size > bytes_max and position > 0:
                return tuple(entries[:position])
        return tuple(entries)

    def compact(self, index: int, term: int) -> None:
        """Forget entries up to `index`, whose rows are durable."""
        if index <= self.compacted:
            return
        assert index <= self.handed, (
            f"compacting {index}, but only {self.handed} was handed out to be applied"
        )
        assert self.term(index) == term, "the rows are not of this log: term differs at the compaction"
        count = index - self.compacted
        self.bytes -= entry_bytes(self.entries[:count])
        del self.entries[:count]
        self.compacted = index
        self.compacted_term = term

    def restore(self, snapshot: SnapshotMeta) -> None:
        """Begin again after a snapshot; everything here is older than it or was never committed."""
        assert snapshot.index > self.committed, "a snapshot must not take back what was committed"
        self.compacted = snapshot.index
        self.compacted_term = snapshot.term
        self.entries = []
        self.bytes = 0
        self.stable = snapshot.index
        self.committed = snapshot.index
        self.handed = snapshot.index
        self.in_flight = 0
        self.snapshot = snapshot
