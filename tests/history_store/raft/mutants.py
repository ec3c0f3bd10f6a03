"""Rafts that are wrong in one place, each a mistake that somebody could make.

A mutant patches the core, or the hosting of the simulated world where the contract puts the duty there. It is
written so that it works as long as nothing goes wrong: only its judges can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest

from history_store.raft import candidate, core, follower, leader, messages, reads
from history_store.raft.core import Core
from history_store.raft.log import RaftLog
from history_store.raft.messages import Kind, Message, ReadState, SnapshotMeta
from history_store.raft.node import Ready
from history_store.raft.progress import Progress
from history_store.raft.quorum import Verdict, joint_mark, joint_verdict, majority_mark, majority_verdict
from history_store.raft.roles import AFTER_DURABLE, Role
from history_store.storage.contract import Entry, GroupLog, HardState
from tests.history_store.raft import storm
from tests.history_store.raft.world import Disk, Image, Replica

Patch = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """One wrong Raft: in which climate it shows, and within how many storms it must be seen.

    The bound is several times what it took when it was written: any change of the core shuffles the storms.
    """

    name: str
    patch: Patch
    climate: str
    storms_max: int
    rare: bool  # it takes more than a second to find


MUTANTS: dict[str, Mutant] = {}


def mutant(climate: str, storms_max: int, *, rare: bool = False) -> Callable[[Patch], Patch]:
    """Register a patch under its function's name."""

    def register(patch: Patch) -> Patch:
        MUTANTS[patch.__name__] = Mutant(patch.__name__, patch, climate, storms_max, rare)
        return patch

    return register


# ------------------------------------------------------------------------------------- what is durable


def _hard_state_through(patch: pytest.MonkeyPatch, change: Callable[[HardState, Disk], HardState]) -> None:
    write = Disk.write

    def wrong(disk: Disk, ready: Ready, rows: Image, images: dict[SnapshotMeta, Image]) -> None:
        if ready.hard_state is not None:
            ready.hard_state = change(ready.hard_state, disk)
        write(disk, ready, rows, images)

    patch.setattr(Disk, "write", wrong)


@mutant("hectic", 30)
def vote_is_not_persisted(patch: pytest.MonkeyPatch) -> None:
    _hard_state_through(patch, lambda new, _: new._replace(vote=0))


@mutant("hectic", 30)
def term_is_not_persisted_with_a_vote(patch: pytest.MonkeyPatch) -> None:
    """A term is written only together with entries."""
    write = Disk.write

    def wrong(disk: Disk, ready: Ready, rows: Image, images: dict[SnapshotMeta, Image]) -> None:
        if ready.hard_state is not None and not ready.entries and ready.snapshot is None:
            ready.hard_state = ready.hard_state._replace(term=disk.hard_state.term, vote=disk.hard_state.vote)
        write(disk, ready, rows, images)

    patch.setattr(Disk, "write", wrong)


def _sent_at_once(patch: pytest.MonkeyPatch, *kinds: Kind) -> None:
    patch.setattr(core, "AFTER_DURABLE", AFTER_DURABLE - set(kinds))


@mutant("hectic", 30)
def vote_is_sent_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    _sent_at_once(patch, Kind.VOTE_RESPONSE)


@mutant("hectic", 30)
def append_is_acknowledged_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    _sent_at_once(patch, Kind.APPEND_RESPONSE)


@mutant("hectic", 30)
def vote_is_asked_for_and_counted_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    """Either alone does no harm: with the question behind the write, no answer comes before it."""
    _sent_at_once(patch, Kind.VOTE)
    stand = candidate._stand

    def wrong(core: Core, *, force: bool) -> None:
        stand(core, force=force)
        candidate.count_own_vote(core, core.term)

    patch.setattr(candidate, "_stand", wrong)


@mutant("hectic", 30)
def vote_is_asked_for_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    _sent_at_once(patch, Kind.VOTE)


@mutant("hectic", 30)
def host_sends_everything_at_once(patch: pytest.MonkeyPatch) -> None:
    """Against number 4 of the contract."""
    take = Replica.take

    def wrong(replica: Replica, ready: Ready) -> None:
        ready.messages += ready.messages_after
        ready.messages_after = []
        take(replica, ready)

    patch.setattr(Replica, "take", wrong)


@mutant("hectic", 30)
def leader_counts_its_own_entries_before_they_are_durable(patch: pytest.MonkeyPatch) -> None:
    def wrong(core: Core) -> None:
        progress = core.progress
        last = core.log.last_index
        leader._commit(
            core,
            joint_mark(
                core.conf.voters,
                core.conf.outgoing,
                lambda voter: last if voter == core.id else progress[voter].match,
            ),
        )

    patch.setattr(leader, "maybe_commit", wrong)


@mutant("hectic", 30)
def entries_are_applied_before_they_are_durable_here(patch: pytest.MonkeyPatch) -> None:
    def wrong(log: RaftLog, count_max: int) -> list[Entry]:
        upto = min(log.committed, log.handed + count_max)
        entries = log.entries[log.handed - log.compacted : upto - log.compacted]
        log.handed = max(upto, log.handed)
        return entries

    patch.setattr(RaftLog, "take_committed", wrong)


@mutant("snapshots", 30)
def snapshot_leaves_the_log_above_it_on_disk(patch: pytest.MonkeyPatch) -> None:
    """Against number 9 of the contract."""
    write = Disk.write

    def wrong(disk: Disk, ready: Ready, rows: Image, images: dict[SnapshotMeta, Image]) -> None:
        kept = [entry for entry in disk.entries if ready.snapshot and entry.index > ready.snapshot.index]
        if ready.snapshot is not None and kept and kept[0].index == ready.snapshot.index + 1:
            disk.image = replace(images[ready.snapshot])
            disk.entries = kept
            disk.compacted, disk.compacted_term = ready.snapshot.index, ready.snapshot.term
            ready.snapshot = None
        write(disk, ready, rows, images)

    patch.setattr(Disk, "write", wrong)


# ------------------------------------------------------------------------------------------- elections


@mutant("three", 30)
def any_log_is_good_enough_for_a_vote(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "is_behind_or_equal", lambda log, index, term: True)


@mutant("five", 60)
def only_the_length_of_a_log_counts_for_a_vote(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "is_behind_or_equal", lambda log, index, term: index >= log.last_index)


@mutant("three", 30)
def two_votes_in_a_term(patch: pytest.MonkeyPatch) -> None:
    answer = candidate.answer_request

    def wrong(core: Core, message: Message) -> None:
        if message.kind is Kind.VOTE and core.role is Role.FOLLOWER and core.leader == messages.NOBODY:
            core.vote = messages.NOBODY
        answer(core, message)

    patch.setattr(candidate, "answer_request", wrong)


@mutant("hectic", 150, rare=True)
def leaders_word_forgets_the_vote(patch: pytest.MonkeyPatch) -> None:
    """The vote is reset whenever a replica begins to follow, also within the term."""
    follow = Core.become_follower

    def wrong(core: Core, term: int, leader_id: int) -> None:
        follow(core, term, leader_id)
        core.vote = messages.NOBODY

    patch.setattr(Core, "become_follower", wrong)


@mutant("three", 30)
def half_of_the_voters_elect(patch: pytest.MonkeyPatch) -> None:
    def wrong(incoming: tuple[int, ...], outgoing: tuple[int, ...], votes: dict[int, bool]) -> Verdict:
        granted = sum(votes.get(voter) is True for voter in incoming)
        if incoming and granted >= max(1, len(incoming) // 2) and granted < len(incoming):
            return Verdict.WON
        return joint_verdict(incoming, outgoing, votes)

    patch.setattr(candidate, "joint_verdict", wrong)


@mutant("three", 30)
def prevote_begins_a_term(patch: pytest.MonkeyPatch) -> None:
    become = Core.become_pre_candidate

    def wrong(core: Core) -> None:
        become(core)
        core.term += 1
        core.vote = messages.NOBODY

    patch.setattr(Core, "become_pre_candidate", wrong)


@mutant("three", 30)
def prevote_moves_the_others_terms(patch: pytest.MonkeyPatch) -> None:
    meet = Core._meet_later_term

    def wrong(core: Core, message: Message) -> bool:
        heard = meet(core, message)
        if heard and message.kind is Kind.PRE_VOTE:
            core.become_follower(message.term, messages.NOBODY)
        return heard

    patch.setattr(Core, "_meet_later_term", wrong)


# ------------------------------------------------------------------------------------- log and commits


@mutant("three", 30)
def old_terms_are_committed_by_counting(patch: pytest.MonkeyPatch) -> None:
    """Figure 8 of the paper."""
    commit = leader._commit

    def wrong(core: Core, mark: int) -> None:
        log = core.log
        if log.committed < mark and log.term(mark) != core.term:
            log.commit_to(mark)
            core.append_wanted = True
        commit(core, mark)

    patch.setattr(leader, "_commit", wrong)


@mutant("three", 30)
def conflicting_tail_is_kept(patch: pytest.MonkeyPatch) -> None:
    """Entries are replaced one by one, and what was behind them stays."""

    def wrong(log: RaftLog, previous: int, entries: Sequence[Entry]) -> int:
        for entry in entries:
            if log.term(entry.index) == entry.term:
                continue
            if entry.index <= log.last_index:
                log.entries[entry.index - log.compacted - 1] = entry
                log.stable = min(log.stable, entry.index - 1)
                log.in_flight = min(log.in_flight, entry.index - 1)
            else:
                log._extend([entry])
        return previous + len(entries)

    patch.setattr(RaftLog, "merge", wrong)


@mutant("three", 30)
def late_append_cuts_the_log(patch: pytest.MonkeyPatch) -> None:
    merge = RaftLog.merge

    def wrong(log: RaftLog, previous: int, entries: Sequence[Entry]) -> int:
        covered = merge(log, previous, entries)
        if log.committed <= covered < log.last_index:
            log._cut(covered + 1)
        return covered

    patch.setattr(RaftLog, "merge", wrong)


@mutant("five", 40)
def append_is_taken_without_looking_at_what_is_before(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RaftLog, "matches", lambda log, index, term: index <= log.last_index)


def _search_goes_too_far_back(patch: pytest.MonkeyPatch) -> None:
    """Not wrong, only slow: leaders look for the place where logs meet in steps that may pass it.

    The hints of our own search never do. So two mistakes in taking appends would do no harm by themselves,
    until somebody changes the search.
    """
    rejected = Progress.rejected

    def slow(progress: Progress, index: int, following: int) -> bool:
        return rejected(progress, index, max(1, following - 3))

    patch.setattr(Progress, "rejected", slow)


@mutant("three", 400, rare=True)
def commit_passes_the_last_new_entry(patch: pytest.MonkeyPatch) -> None:
    _search_goes_too_far_back(patch)
    append = follower._append

    def wrong(core: Core, message: Message) -> None:
        append(core, message)
        log = core.log
        if message.index >= log.compacted and log.matches(message.index, message.log_term):
            log.commit_to(min(message.commit, log.last_index))

    patch.setattr(follower, "_append", wrong)


@mutant("five", 30)
def heartbeat_commits_what_was_not_compared(patch: pytest.MonkeyPatch) -> None:
    heartbeat = leader.heartbeat

    def wrong(core: Core, *, quiet: bool = False) -> None:
        before = len(core.messages)
        heartbeat(core, quiet=quiet)
        core.messages[before:] = [
            msgspec.structs.replace(message, commit=core.log.committed)
            if message.kind is Kind.HEARTBEAT
            else message
            for message in core.messages[before:]
        ]

    def taken(core: Core, message: Message) -> None:
        heard(core, msgspec.structs.replace(message, commit=min(message.commit, core.log.last_index)))

    heard = follower._heartbeat
    patch.setattr(leader, "heartbeat", wrong)
    patch.setattr(follower, "_heartbeat", taken)


@mutant("five", 40)
def votes_commit_what_was_not_compared(patch: pytest.MonkeyPatch) -> None:
    def wrong(core: Core, message: Message) -> None:
        core.log.commit_to(min(message.commit, core.log.last_index))

    patch.setattr(candidate, "_learn_commit", wrong)


@mutant("five", 60)
def everything_sent_counts_as_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """The answer names the whole log of the follower, not what the append covered."""
    _search_goes_too_far_back(patch)
    append = follower._append

    def wrong(core: Core, message: Message) -> None:
        before = len(core.messages_after)
        append(core, message)
        core.messages_after[before:] = [
            answer if answer.reject else msgspec.structs.replace(answer, index=core.log.last_index)
            for answer in core.messages_after[before:]
        ]

    accepted = leader._append_accepted

    def taken(core: Core, message: Message, progress: Any) -> None:
        index = min(message.index, core.log.last_index)
        accepted(core, msgspec.structs.replace(message, index=index), progress)

    patch.setattr(follower, "_append", wrong)
    patch.setattr(leader, "_append_accepted", taken)


@mutant("snapshots", 1200, rare=True)
def snapshot_replaces_a_log_that_has_it(patch: pytest.MonkeyPatch) -> None:
    """Entries behind the image, acknowledged long ago, are dropped by a late snapshot."""

    def wrong(core: Core, message: Message) -> None:
        snapshot = message.snapshot
        assert snapshot is not None
        if snapshot.index > core.log.committed:
            core.log.restore(snapshot)
            core.restore_conf(snapshot.conf)
        core.send(Message(Kind.APPEND_RESPONSE, message.sender, core.id, core.term, core.log.committed))

    patch.setattr(follower, "_snapshot", wrong)


@mutant("snapshots", 30)
def old_snapshot_is_installed(patch: pytest.MonkeyPatch) -> None:
    """An image older than what was committed here takes rows and log back."""

    def restore(log: RaftLog, snapshot: SnapshotMeta) -> None:
        log.committed = 0
        right(log, snapshot)

    def wrong(core: Core, message: Message) -> None:
        snapshot = message.snapshot
        assert snapshot is not None
        core.log.restore(snapshot)
        core.restore_conf(snapshot.conf)
        core.send(Message(Kind.APPEND_RESPONSE, message.sender, core.id, core.term, core.log.committed))

    right = RaftLog.restore
    patch.setattr(RaftLog, "restore", restore)
    patch.setattr(follower, "_snapshot", wrong)


# ----------------------------------------------------------------------------------------- membership


@mutant("members", 30)
def only_the_incoming_half_decides(patch: pytest.MonkeyPatch) -> None:
    def mark(incoming: tuple[int, ...], outgoing: tuple[int, ...], of: Callable[[int], int]) -> int:
        return majority_mark(incoming, of)

    def verdict(incoming: tuple[int, ...], outgoing: tuple[int, ...], votes: dict[int, bool]) -> Verdict:
        return majority_verdict(incoming, votes)

    patch.setattr(leader, "joint_mark", mark)
    patch.setattr(leader, "joint_verdict", verdict)
    patch.setattr(candidate, "joint_verdict", verdict)


@mutant("members", 30)
def learners_count_for_commits(patch: pytest.MonkeyPatch) -> None:
    def wrong(core: Core) -> None:
        progress = core.progress
        everybody = core.conf.members
        leader._commit(core, majority_mark(everybody, lambda voter: progress[voter].match))

    patch.setattr(leader, "maybe_commit", wrong)


@mutant("members", 30)
def two_changes_at_once(patch: pytest.MonkeyPatch) -> None:
    propose = leader.propose_conf_change

    def wrong(core: Core, change: Any) -> int:
        core.pending_conf_index = 0
        return propose(core, change)

    patch.setattr(leader, "propose_conf_change", wrong)


@mutant("members", 200, rare=True)
def stands_before_it_knows_its_electorate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "may_stand", lambda core: core.conf.is_voter(core.id) and core.log.snapshot is None)


@mutant("members", 30)
def image_comes_without_its_members(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "restore_conf", lambda core, data: None)


# ---------------------------------------------------------------------------------------------- reads


@mutant("three", 30)
def reads_need_no_quorum(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(leader, "may_read_now", lambda core: True)


@mutant("three", 30)
def new_leader_reads_before_it_committed(patch: pytest.MonkeyPatch) -> None:
    def wrong(core: Core, requester: int, context: bytes) -> None:
        if leader.may_read_now(core):
            leader._answer_read(core, requester, core.log.committed, context)
        else:
            core.reads.ask(requester, core.log.committed, context)

    patch.setattr(leader, "read", wrong)


@mutant("three", 30)
def read_is_confirmed_by_an_earlier_round(patch: pytest.MonkeyPatch) -> None:
    def wrong(waiting: reads.Reads, requester: int, index: int, context: bytes) -> None:
        waiting.waiting.append(reads.WaitingRead(max(waiting.round, 1), requester, index, context))
        waiting.wanted = True

    patch.setattr(reads.Reads, "ask", wrong)


@mutant("five", 150, rare=True)
def read_index_is_what_is_applied(patch: pytest.MonkeyPatch) -> None:
    def wrong(core: Core, requester: int, index: int, context: bytes) -> None:
        index = min(index, core.log.handed)
        if requester == core.id:
            core.read_states.append(ReadState(context, index))
        else:
            core.send(
                Message(Kind.READ_INDEX_RESPONSE, requester, core.id, core.term, index, context=context)
            )

    patch.setattr(leader, "_answer_read", wrong)


@mutant("leases", 30)
def lease_never_ends(patch: pytest.MonkeyPatch) -> None:
    may = leader.may_read_now

    def wrong(core: Core) -> bool:
        return may(core) or (core.reads.lease_tick > 0 and not core.lease_ceded)

    patch.setattr(leader, "may_read_now", wrong)


@mutant("leases", 400, rare=True)
def lease_counts_from_the_answer(patch: pytest.MonkeyPatch) -> None:
    confirm = leader._confirm_reads

    def wrong(core: Core) -> None:
        before = core.reads.lease_tick
        confirm(core)
        if core.reads.lease_tick != before:
            core.reads.lease_tick = core.ticks

    patch.setattr(leader, "_confirm_reads", wrong)


@mutant("leases", 100)
def lease_outlives_a_transfer(patch: pytest.MonkeyPatch) -> None:
    send = leader._send_timeout_now

    def wrong(core: Core) -> None:
        send(core)
        core.lease_ceded = False

    patch.setattr(leader, "_send_timeout_now", wrong)


@mutant("leases", 30)
def followers_promise_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Core, "hears_leader", lambda core: False)


@mutant("leases", 30)
def promise_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    begin = Core.__init__

    def wrong(core: Core, config: Any, dice: Any, stored: GroupLog | None) -> None:
        begin(core, config, dice, stored)
        core.promise_ticks = 0

    patch.setattr(Core, "__init__", wrong)


@mutant("leases", 300, rare=True)
def missed_ticks_are_not_given_after_a_pause(patch: pytest.MonkeyPatch) -> None:
    """Against number 10 of the contract: a leader that slept believes its lease."""
    patch.setattr(storm, "ticks_after_a_pause", lambda missed, election_ticks: 0)
