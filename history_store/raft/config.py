"""What a Raft group may be told: who it is, its timing in ticks, and every limit it keeps.

A tick is whatever period hosting calls `tick()` with; the core knows no other time. Each limit says its
unit in its name and its reason above it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# The source of chance: `dice(n)` answers a number in [0, n). `random.Random(seed).randrange` is one.
Dice = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one replica of one group. Checked when it is made."""

    node_id: int  # who we are among the members; 0 means "nobody" everywhere in the core

    # The members a group begins with. Read only while the log carries no configuration of its own, so every
    # first replica must be given the same ones; a replica that joins later is given none.
    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()

    # A follower that hears nothing for this long (to twice this long, by the dice) stands for election. Ten
    # heartbeats may be late or lost before anybody worries.
    election_ticks: int = 10
    heartbeat_ticks: int = 1

    # Ask before standing, so that a replica that was cut off does not depose a healthy leader on its return.
    pre_vote: bool = True
    # A leader that cannot reach a quorum steps down; followers that hear a leader refuse to vote.
    check_quorum: bool = True

    # Reads at the leader without a round of messages, as long as a quorum promised not to elect another.
    # Needs check_quorum, and ticks that run at nearly one speed on all nodes; off is always right, only
    # slower.
    lease_reads: bool = False
    # How many ticks before the followers' promise ends the leader stops trusting it: one for the phase
    # between two tick counters, the rest for clocks that drift.
    lease_margin_ticks: int = 3

    # One append message. A megabyte fills a fast link for a millisecond and is copied without a pause.
    append_bytes_max: int = 1 << 20
    append_entries_max: int = 1024
    # Appends sent to one follower and not answered: enough to fill a long link, not the follower's memory.
    inflight_messages_max: int = 256
    inflight_bytes_max: int = 16 << 20
    # Entries proposed and not committed. More means that the quorum or the disk does not follow: refuse.
    uncommitted_bytes_max: int = 64 << 20
    # One entry. A transaction of the largest request that the front takes (64 MiB is its ceiling), and its
    # rows.
    entry_bytes_max: int = 80 << 20
    # Committed entries handed out in one batch: bounds how long hosting is busy without returning to its
    # loop.
    apply_entries_max: int = 4096
    # Reads waiting for their confirmation. A read is some dozens of bytes; more than this is a stuck quorum.
    reads_max: int = 65536

    # After so many ticks without work a leader whose followers have everything lets the group fall quiet: no
    # heartbeats, no election timers. 0 = never. Hosting wakes a group when the leader's node seems gone.
    quiet_after_ticks: int = 0
    # Tell followers of a commit by an append of its own. Otherwise they learn of it with the next entries,
    # heartbeat or read: half the messages, and a follower's state lags by a heartbeat at most.
    commit_at_once: bool = True
    # A follower that did not report on its snapshot for so long is probed again (the report may be lost).
    snapshot_ticks_max: int = 600
    # Not used by the core: hosting compacts when `log_bytes` is over this and the rows are durable.
    log_bytes_max: int = 64 << 20

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        assert self.node_id > 0, "node ids start at 1; 0 means nobody"
        assert self.heartbeat_ticks > 0
        assert self.election_ticks > self.heartbeat_ticks, "followers would depose every leader"
        assert len(set(self.voters + self.learners)) == len(self.voters) + len(self.learners)
        assert 0 not in self.voters + self.learners
        assert self.append_entries_max > 0
        assert self.inflight_messages_max > 0
        assert self.append_bytes_max <= self.inflight_bytes_max
        assert self.apply_entries_max > 0
        if self.lease_reads:
            assert self.check_quorum, "without check_quorum followers promise nothing, and a lease is void"
            assert 0 < self.lease_margin_ticks < self.election_ticks, "the lease would last no tick"
