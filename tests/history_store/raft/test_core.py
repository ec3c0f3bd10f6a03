"""Single facts about the core: limits, refusals, marks, encodings, and what a restart refuses to believe."""

from __future__ import annotations

import itertools
import random
from typing import Any

import msgspec
import pytest

from history_store.raft import (
    CONF_CHANGE,
    DATA,
    Change,
    ChangeOp,
    ConfChange,
    ConfChangeRefused,
    Config,
    Configuration,
    Kind,
    Message,
    NotLeader,
    ProposalDropped,
    RawNode,
    SnapshotMeta,
    Transition,
    decode,
    decode_change,
    decode_configuration,
    encode,
)
from history_store.raft.configuration import changed
from history_store.raft.log import RaftLog
from history_store.raft.progress import Flow
from history_store.raft.quorum import Verdict, joint_mark, joint_verdict, majority_mark, majority_verdict
from history_store.storage.contract import Entry, GroupLog, HardState


def settle(node: RawNode) -> list[Message]:
    sent = []
    while node.has_ready():
        ready = node.ready()
        sent += ready.messages
        node.advance(ready)
        sent += ready.messages_after
    return sent


def single(**config: Any) -> RawNode:
    node = RawNode(Config(1, voters=(1,), **config), random.Random(1).randrange)
    assert node.campaign()
    settle(node)
    return node


def leader_of_three(**config: Any) -> RawNode:
    node = RawNode(Config(1, voters=(1, 2, 3), pre_vote=False, **config), random.Random(1).randrange)
    assert node.campaign()
    settle(node)
    node.step(Message(Kind.VOTE_RESPONSE, 1, 2, 1))
    settle(node)
    for follower in (2, 3):
        node.step(Message(Kind.APPEND_RESPONSE, 1, follower, 1, 1))
    settle(node)
    assert node.handed == 1
    return node


# ------------------------------------------------------------------------------------------ limits


@pytest.mark.parametrize("make", [single, leader_of_three])
def test_uncommitted_bytes_are_bounded_but_one_entry_always_passes(make: Any) -> None:
    node = make(uncommitted_bytes_max=100)
    first = node.propose(b"x" * 150)
    with pytest.raises(ProposalDropped, match="150 bytes are not committed"):
        node.propose(b"y")
    settle(node)
    if not node.is_quiet:
        node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, first))
    assert node.committed == first
    assert node.propose(b"y") == first + 1, "the refused proposal left no trace"


@pytest.mark.parametrize("make", [single, leader_of_three])
def test_an_entry_over_its_limit_is_refused(make: Any) -> None:
    with pytest.raises(ProposalDropped, match="over entry_bytes_max"):
        make(entry_bytes_max=10).propose(b"x" * 11)


def test_waiting_reads_are_bounded() -> None:
    node = leader_of_three(reads_max=2)
    node.read_index(b"1")
    node.read_index(b"2")
    with pytest.raises(ProposalDropped, match="2 reads wait"):
        node.read_index(b"3")
    node.step(Message(Kind.READ_INDEX, 1, 2, context=b"4"))
    assert len(node._core.reads) == 2


def test_a_batch_to_apply_is_bounded() -> None:
    node = single(apply_entries_max=4)
    for _ in range(10):
        node.propose(b"x")
    ready = node.ready()
    sizes = [len(node.advance(ready))]
    while node.has_ready():
        ready = node.ready()
        sizes.append(len(ready.committed_entries))
        sizes.append(len(node.advance(ready)))
    assert sum(sizes) == 10
    assert max(sizes) == 4


# ---------------------------------------------------------------------------------------- refusals


def test_only_a_leader_takes_requests() -> None:
    node = RawNode(Config(1, voters=(1, 2, 3)), random.Random(1).randrange)
    for request in (
        lambda: node.propose(b"x"),
        lambda: node.propose_conf_change(ConfChange()),
        lambda: node.transfer_leader(2),
        lambda: node.read_index(b"r"),
    ):
        with pytest.raises(NotLeader, match="none is known"):
            request()
    assert node.read_index_now() is None


def test_leadership_goes_to_voters_only() -> None:
    node = leader_of_three()
    with pytest.raises(ProposalDropped, match="node 9 is no voter"):
        node.transfer_leader(9)
    node.transfer_leader(1)
    assert node.transferee == 0, "we have it already"


def test_who_needs_an_image_does_not_get_to_lead() -> None:
    """A hand-over to it would hold up all proposals until it is given up."""
    node = leader_of_three()
    for _ in range(3):
        node.propose(b"x")
    settle(node)
    node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, 4))
    settle(node)
    assert node.lagging(10) == []
    node.compact(3, 1)
    assert node.lagging(10) == [3]
    with pytest.raises(ProposalDropped, match="node 3 needs an image"):
        node.transfer_leader(3)
    assert node.transferee == 0
    node.propose(b"y")
    node.step(Message(Kind.APPEND_RESPONSE, 1, 3, 1, 4))
    assert node.lagging(10) == []
    node.transfer_leader(3)
    assert node.transferee == 3


def test_a_follower_that_hears_its_leader_does_not_stand_when_asked_to() -> None:
    node = RawNode(Config(1, voters=(1, 2, 3)), random.Random(1).randrange)
    node.step(Message(Kind.HEARTBEAT, 1, 2, 1))
    assert not node.campaign()


def test_proposals_that_a_follower_passed_on() -> None:
    node = leader_of_three(uncommitted_bytes_max=10)
    change = ConfChange((Change(ChangeOp.ADD_LEARNER, 4),))
    inner = (
        Entry(0, 0, DATA, b"0123456789"),
        Entry(0, 0, CONF_CHANGE, change.encode()),
        Entry(0, 0, DATA, b"dropped"),
    )
    node.step(Message(Kind.PROPOSE, 1, 2, entries=inner[:1]))
    node.step(Message(Kind.PROPOSE, 1, 2, entries=inner[1:]))
    assert node.last_index == 2, "the second message came over the limit"
    node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, 2))
    settle(node)
    node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, 2))
    node.step(Message(Kind.PROPOSE, 1, 2, entries=inner[1:2]))
    assert node.last_index == 3


# --------------------------------------------------------------------------- reports about followers


def test_an_unreachable_follower_is_probed() -> None:
    node = leader_of_three()
    node.report_unreachable(2)
    node.report_unreachable(9)
    assert node._core.progress[2].flow is Flow.PROBE
    node.propose(b"a")
    assert {message.to for message in node.take_messages()} == {2, 3}
    node.propose(b"b")
    assert {message.to for message in node.take_messages()} == {3}, "one probe until it answers"


def test_a_lost_snapshot_report_does_not_stall_a_follower_for_ever() -> None:
    node = leader_of_three(snapshot_ticks_max=3, check_quorum=False)
    node.report_snapshot(9, arrived=True)
    node._core.progress[3].become_snapshot(1)
    for _ in range(3):
        node.tick()
    assert node._core.progress[3].flow is Flow.PROBE


def test_a_member_that_took_an_image_and_could_not_say_so_is_asked() -> None:
    node = leader_of_three(election_ticks=3, check_quorum=False)
    node._core.progress[3].become_snapshot(1)
    node.report_snapshot(3, arrived=True)
    for _ in range(3):
        assert node._core.progress[3].flow is Flow.SNAPSHOT
        node.tick()
    assert node._core.progress[3].flow is Flow.PROBE


def test_a_leader_that_slept_does_not_hold_it_against_the_others() -> None:
    node = leader_of_three(election_ticks=4)
    for _ in range(20):
        node.tick(missed=True)  # what they said meanwhile is still in the sockets
    assert node.is_leader
    for _ in range(4):
        assert node.is_leader
        node.tick()
    assert not node.is_leader


def test_a_leader_that_slept_relies_on_no_lease() -> None:
    node = leader_of_three(election_ticks=4, lease_reads=True, lease_margin_ticks=1)
    node.read_index(b"r")
    (round_, *_) = {message.round for message in node.take_messages() if message.kind is Kind.HEARTBEAT}
    node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 2, 1, round=round_))
    assert node.read_index_now() == 1
    for _ in range(4):
        node.tick(missed=True)
    assert node.is_leader
    assert node.read_index_now() is None


def test_waking_a_group_gives_its_members_a_whole_timeout() -> None:
    node = leader_of_three(quiet_after_ticks=4, election_ticks=5)
    for _ in range(4):
        node.tick()
    assert node.is_quiet
    node.propose(b"x")
    for _ in range(5):
        assert node.is_leader, "the silence before was agreed"
        node.tick()
    assert not node.is_leader


def gives_up_to(node: RawNode, ticks: int) -> list[int]:
    for _ in range(ticks):
        assert node.is_leader
        node.tick()
    assert not node.is_leader
    return [message.to for message in node.take_messages() if message.kind is Kind.TIMEOUT_NOW]


def test_a_leader_that_gives_up_names_who_has_most_of_the_log() -> None:
    node = leader_of_three(election_ticks=4)
    index = node.propose(b"x")
    settle(node)
    node.step(Message(Kind.APPEND_RESPONSE, 1, 3, 1, index))
    node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 2, 1))
    assert gives_up_to(node, 4) == [3]


def test_of_equals_it_names_who_was_heard_last() -> None:
    node = leader_of_three(election_ticks=4)
    for _ in range(2):
        node.tick()
    node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 3, 1))
    assert gives_up_to(node, 4) == [3]


def test_heartbeats_are_there_to_send_while_a_write_takes_its_time() -> None:
    node = leader_of_three()
    node.propose(b"x")
    out = node.ready()
    assert not node.has_messages()
    node.tick()
    assert not node.has_ready()
    assert node.has_messages()
    assert {message.kind for message in node.take_messages()} == {Kind.HEARTBEAT}
    assert not node.has_messages()
    node.propose(b"y")
    assert node.has_messages(), "the others are to have it, too"
    node.take_messages()
    assert not node.has_messages()
    node.read_index(b"r")
    assert node.has_messages(), "the others are to be asked whether this one leads"
    node.advance(out)


def test_a_read_wakes_a_quiet_group() -> None:
    follower = RawNode(Config(1, voters=(1, 2, 3)), random.Random(1).randrange)
    follower.step(Message(Kind.HEARTBEAT, 1, 2, 1, quiet=True))
    assert follower.is_quiet
    follower.read_index(b"r")
    assert not follower.is_quiet
    leader = leader_of_three(quiet_after_ticks=1)
    leader.tick()
    assert leader.is_quiet
    leader.read_index(b"r")
    assert not leader.is_quiet


# ----------------------------------------------------------------------------------- single voter


def test_one_write_at_a_time_and_messages_meanwhile() -> None:
    node = leader_of_three()
    node.propose(b"a")
    ready = node.ready()
    assert not node.has_ready()
    with pytest.raises(AssertionError, match="one durable write at a time"):
        node.ready()
    node.propose(b"b")
    assert [message.entries[0].data for message in node.take_messages()] == [b"b", b"b"]
    node.advance(ready)
    with pytest.raises(AssertionError, match="not out"):
        node.advance(ready)
    assert [entry.data for entry in node.ready().entries] == [b"b"]


def test_a_single_voter_reads_at_once() -> None:
    node = single()
    assert node.read_index_now() == 1
    node.read_index(b"r")
    assert node.ready().read_states == [(b"r", 1)]


def test_a_membership_change_ends_its_batch() -> None:
    node = single()
    node.propose(b"before")
    node.propose_conf_change(ConfChange((Change(ChangeOp.ADD_LEARNER, 2),)))
    node.propose(b"after")
    ready = node.ready()
    assert [entry.kind for entry in node.advance(ready)] == [DATA, CONF_CHANGE]
    assert decode_configuration(node.conf_bytes) == Configuration((1,), learners=(2,))
    assert [entry.data for entry in node.take_committed()] == [b"after"]


def test_a_restart_hands_out_what_the_rows_lack(seed: int, rng: random.Random) -> None:
    node = single()
    for _ in range(rng.randrange(1, 30)):
        node.propose(b"x" * rng.randrange(5))
        if rng.random() < 0.5:
            settle(node)
    settle(node)
    log = list(node._core.log.entries)
    applied = rng.randrange(1, len(log) + 1)
    compacted = rng.randrange(applied)
    commit = rng.randrange(len(log) + 1)
    stored = GroupLog(
        HardState(1, 1, commit), applied, 1, compacted, int(compacted > 0), log[compacted:], b""
    )
    again = RawNode.restart(Config(1, voters=(1,)), stored, rng.randrange)
    assert again.campaign()
    handed: list[Entry] = []
    while again.has_ready():
        ready = again.ready()
        handed += ready.committed_entries
        handed += again.advance(ready)
    assert handed[:-1] == log[applied:]
    assert (handed[-1].term, again.term) == (2, 2)


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        (GroupLog(HardState(1, 0, 5), 0, 0, 0, 0, [Entry(1, 1, 0, b"")]), "commit 5 is beyond"),
        (GroupLog(HardState(1, 0, 0), 2, 1, 0, 0, [Entry(1, 1, 0, b"")]), "rows at 2, log ends at 1"),
        (GroupLog(HardState(1, 0, 0), 0, 0, 0, 0, [Entry(1, 2, 0, b"")]), "does not follow its compaction"),
        (GroupLog(HardState(1, 0, 0), 1, 1, 2, 1, []), "lost data"),
        (GroupLog(HardState(1, 0, 0), 0, 0, 0, 0, [Entry(2, 1, 0, b"")]), "later term than the hard state"),
        (GroupLog(HardState(2, 0, 0), 1, 2, 0, 0, [Entry(1, 1, 0, b"")]), "rows are of term 2"),
        (
            GroupLog(HardState(1, 0, 0), 0, 0, 0, 0, [Entry(1, 1, 0, b""), Entry(1, 3, 0, b"")]),
            "has a gap",
        ),
    ],
)
def test_a_restart_refuses_a_disk_that_contradicts_itself(stored: GroupLog, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        RawNode.restart(Config(1, voters=(1,)), stored, random.Random(1).randrange)


# -------------------------------------------------------------------------------------------- log


def test_what_is_cut_while_it_is_written_is_written_again() -> None:
    log = RaftLog(0, 0, [], 0, 0)
    log.merge(0, [Entry(1, index, 0, b"") for index in (1, 2, 3)])
    assert [entry.index for entry in log.unwritten()] == [1, 2, 3]
    log.merge(1, [Entry(2, 2, 0, b"")])
    log.merge(1, [Entry(3, 2, 0, b""), Entry(3, 3, 0, b"")])
    log.written()
    assert log.stable == 1
    assert log.unwritten() == [Entry(3, 2, 0, b""), Entry(3, 3, 0, b"")]


def test_log_bytes_are_those_of_its_entries(seed: int, rng: random.Random) -> None:
    node = single()
    for _ in range(100):
        if rng.random() < 0.2 and node.handed > node.compacted:
            index = rng.randrange(node.compacted, node.handed + 1)
            node.compact(index, node.term_of(index))
        else:
            node.propose(b"x" * rng.randrange(1000))
            settle(node)
        fresh = RaftLog(node.compacted, 1, list(node._core.log.entries), 0, node.compacted)
        assert node.log_bytes == fresh.bytes


def test_what_is_committed_cannot_be_cut_or_compacted_too_early() -> None:
    log = RaftLog(0, 0, [Entry(1, 1, 0, b""), Entry(1, 2, 0, b"")], 1, 0)
    with pytest.raises(AssertionError, match="split brain"):
        log.merge(0, [Entry(2, 1, 0, b"")])
    with pytest.raises(AssertionError, match="only 0 was handed out"):
        log.compact(1, 1)
    log.compact(0, 0)


# ---------------------------------------------------------------------------------- quorum, members


@pytest.mark.parametrize("size", range(1, 8))
def test_a_majority_mark_is_what_a_majority_reached(seed: int, rng: random.Random, size: int) -> None:
    voters = tuple(range(1, size + 1))
    marks = {voter: rng.randrange(5) for voter in voters}
    best = max(level for level in range(5) if sum(mark >= level for mark in marks.values()) * 2 > size)
    assert majority_mark(voters, marks.__getitem__) == best
    assert joint_mark(voters, voters[:1], marks.__getitem__) == min(best, marks[1])


def test_verdicts_agree_with_counting() -> None:
    for votes in itertools.product((None, True, False), repeat=4):
        known = {voter: vote for voter, vote in enumerate(votes, start=1) if vote is not None}
        yes, no = sum(vote is True for vote in votes[:3]), sum(vote is False for vote in votes[:3])
        first = Verdict.WON if yes >= 2 else Verdict.LOST if no >= 2 else Verdict.PENDING
        assert majority_verdict((1, 2, 3), known) is first
        second = {None: Verdict.PENDING, True: Verdict.WON, False: Verdict.LOST}[votes[3]]
        both = {first, second}
        joint = (
            Verdict.LOST
            if Verdict.LOST in both
            else Verdict.PENDING
            if Verdict.PENDING in both
            else Verdict.WON
        )
        assert joint_verdict((1, 2, 3), (4,), known) is joint
    assert majority_verdict((), {}) is Verdict.WON


def test_random_changes_keep_the_members_sane(seed: int, rng: random.Random) -> None:
    conf = Configuration((1, 2, 3))
    for _ in range(300):
        changes = tuple(
            [Change(rng.choice(list(ChangeOp)), rng.randrange(7)) for _ in range(rng.randrange(4))]
        )
        change = ConfChange(changes, rng.choice(list(Transition)), b"address")
        assert decode_change(change.encode()) == change
        try:
            after = changed(conf, change)
        except ConfChangeRefused:
            continue
        assert decode_configuration(after.encode()) == after
        assert after.voters
        joint = bool(after.outgoing) or bool(conf.outgoing)
        assert joint or len(set(after.voters) ^ set(conf.voters)) <= 1, "majorities must overlap"
        conf = after


# ---------------------------------------------------------------------------------------- messages


def test_messages_survive_their_encoding() -> None:
    meta = SnapshotMeta(7, 2, Configuration((1,)).encode())
    message = Message(
        Kind.APPEND, 1, 2, 3, 4, 5, 6, (Entry(1, 2, 0, b"\n\x00"),), True, 8, 9, True, True, meta, b"context"
    )
    again = decode(encode(message))
    assert again == message
    assert isinstance(again.entries[0], Entry)
    assert isinstance(again.snapshot, SnapshotMeta)


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x90", encode(Message(Kind.VOTE, 1, 2))[:-1], b"\x93\x63\x01\x02"]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode(data)


# --------------------------------------------------------------------------- fewer messages a commit


def test_a_commit_may_wait_for_the_next_message_to_followers() -> None:
    node = leader_of_three(commit_at_once=False, heartbeat_ticks=2, election_ticks=10, lease_reads=True)
    index = node.propose(b"x")
    assert [(m.kind, m.commit) for m in settle(node)] == [(Kind.APPEND, index - 1)] * 2
    for follower in (2, 3):
        node.step(Message(Kind.APPEND_RESPONSE, 1, follower, 1, index))
    assert node.committed == index
    assert settle(node) == [], "nobody is told at once"
    node.step(Message(Kind.READ_INDEX, 1, 3, context=b"r"))
    node.tick()
    node.tick()
    heartbeats = settle(node)
    assert [(m.kind, m.commit) for m in heartbeats] == [(Kind.HEARTBEAT, index)] * 2
    node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 2, 1, index, round=heartbeats[0].round))
    (answer,) = [m for m in settle(node) if m.kind is Kind.READ_INDEX_RESPONSE]
    assert (answer.to, answer.index, answer.commit) == (3, index, index), "who reads hears of it at once"


def test_a_read_is_told_of_no_commit_that_the_reader_may_not_have() -> None:
    node = leader_of_three(commit_at_once=False)
    index = node.propose(b"x")
    settle(node)
    node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, index))
    node.step(Message(Kind.READ_INDEX, 1, 3, context=b"r"))
    (beat, _) = [m for m in settle(node) if m.kind is Kind.HEARTBEAT]
    node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 2, 1, index, round=beat.round))
    (answer,) = [m for m in settle(node) if m.kind is Kind.READ_INDEX_RESPONSE]
    assert (answer.to, answer.index, answer.commit) == (3, index, index - 1)


def test_a_read_brings_the_commit_mark() -> None:
    node = RawNode(Config(1, voters=(1, 2, 3)), random.Random(1).randrange)
    node.step(Message(Kind.APPEND, 1, 2, 1, 0, 0, entries=(Entry(1, 1, 0, b"x"), Entry(1, 2, 0, b"y"))))
    settle(node)
    node.step(Message(Kind.READ_INDEX_RESPONSE, 1, 2, 1, 2, commit=2, context=b"r"))
    assert node.ready().committed_entries[-1].index == 2


def test_one_answer_for_all_appends_that_one_write_covers() -> None:
    node = RawNode(Config(1, voters=(1, 2, 3)), random.Random(1).randrange)
    for index in (1, 2, 3):
        node.step(
            Message(Kind.APPEND, 1, 2, 1, index - 1, int(index > 1), entries=(Entry(1, index, 0, b""),))
        )
    node.step(Message(Kind.APPEND, 1, 2, 1, 9, 1))
    node.step(Message(Kind.APPEND, 1, 2, 1, 3, 1, entries=(Entry(1, 4, 0, b""),)))
    answers = [(m.index, m.reject) for m in settle(node)]
    assert answers == [(3, False), (9, True), (4, False)], "a rejection is not left out"
