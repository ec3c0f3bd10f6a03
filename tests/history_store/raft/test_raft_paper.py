"""What the Raft paper (Ongaro, Ousterhout; extended version) says in sections 5 to 8, one by one.

The name of each test begins with the section. One replica is observed; the test plays all others.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from history_store.raft import (
    NOOP,
    Change,
    ChangeOp,
    ConfChange,
    Config,
    Configuration,
    Kind,
    Message,
    NotLeader,
    RawNode,
    Role,
    SnapshotMeta,
    Transition,
)
from history_store.storage.contract import Entry, GroupLog, HardState

THREE = (1, 2, 3)
FIVE = (1, 2, 3, 4, 5)


def entries(*terms: int) -> list[Entry]:
    """A log: one entry for each term named."""
    return [Entry(term, index, 0, b"%d" % term) for index, term in enumerate(terms, start=1)]


class Observed:
    """A replica and everything it said."""

    def __init__(
        self,
        voters: tuple[int, ...] = THREE,
        log: tuple[int, ...] = (),
        term: int = 0,
        commit: int = 0,
        **config: Any,
    ) -> None:
        config = {"pre_vote": False, "check_quorum": False, **config}
        stored = GroupLog(HardState(term or max(log, default=0), 0, commit), 0, 0, 0, 0, entries(*log))
        self.node = RawNode.restart(Config(1, voters=voters, **config), stored, random.Random(7).randrange)
        self.applied: list[Entry] = []
        self.hard = stored.hard_state

    def run(self) -> list[Message]:
        """Do all that is ready; answer what was sent."""
        node, sent = self.node, []
        while node.has_ready():
            ready = node.ready()
            self.hard = ready.hard_state or self.hard
            self.applied += ready.committed_entries
            sent += ready.messages
            self.applied += node.advance(ready)
            sent += ready.messages_after
        return sent

    def say(self, kind: Kind, sender: int, term: int, *args: Any, **fields: Any) -> list[Message]:
        self.node.step(Message(kind, 1, sender, term, *args, **fields))
        return self.run()

    def ticks(self, count: int) -> list[Message]:
        for _ in range(count):
            self.node.tick()
        return self.run()

    def lead(self, supporters: tuple[int, ...] = (2,)) -> list[Message]:
        """Win an election."""
        assert self.node.campaign()
        sent = self.run()
        for supporter in supporters:
            sent = self.say(Kind.VOTE_RESPONSE, supporter, self.node.term)
        assert self.node.is_leader
        return sent

    def log_terms(self) -> list[int]:
        return [self.node.term_of(index) for index in range(1, self.node.last_index + 1)]


def only(messages: list[Message], kind: Kind) -> list[Message]:
    return [message for message in messages if message.kind is kind]


# ----------------------------------------------------------------------------- 5.1 terms and roles


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.CANDIDATE, Role.LEADER])
def test_5_1_a_later_term_is_adopted_and_ends_any_role(role: Role) -> None:
    replica = Observed()
    if role is Role.CANDIDATE:
        replica.node.campaign()
        replica.run()
    elif role is Role.LEADER:
        replica.lead()
    assert replica.node.role is role
    replica.say(Kind.APPEND, 2, 9)
    assert (replica.node.role, replica.node.term, replica.hard.term) == (Role.FOLLOWER, 9, 9)


def test_5_1_a_message_of_an_earlier_term_is_rejected() -> None:
    replica = Observed(term=5)
    assert replica.say(Kind.VOTE, 2, 4, 9, 4) == []
    replica.say(Kind.APPEND, 2, 4, 0, 0, entries=tuple(entries(4)))
    assert (replica.node.last_index, replica.node.leader, replica.node.term) == (0, 0, 5)


def test_5_1_a_term_has_at_most_one_leader_so_a_second_is_a_bug() -> None:
    replica = Observed()
    replica.say(Kind.HEARTBEAT, 2, 1)
    with pytest.raises(AssertionError, match="two leaders in term 1"):
        replica.say(Kind.HEARTBEAT, 3, 1)


def test_5_1_clients_are_sent_from_followers_to_the_leader() -> None:
    replica = Observed()
    replica.say(Kind.HEARTBEAT, 3, 1)
    with pytest.raises(NotLeader) as refusal:
        replica.node.propose(b"x")
    assert refusal.value.leader_hint == 3
    (forwarded,) = replica.say(Kind.PROPOSE, 2, 0, entries=(Entry(0, 0, 0, b"x"),))
    assert (forwarded.kind, forwarded.to) == (Kind.PROPOSE, 3)


# ---------------------------------------------------------------------------------- 5.2 elections


def test_5_2_a_server_starts_as_follower() -> None:
    assert Observed().node.role is Role.FOLLOWER


@pytest.mark.parametrize("kind", [Kind.HEARTBEAT, Kind.APPEND])
def test_5_2_a_follower_stays_one_while_it_hears_a_leader(kind: Kind) -> None:
    replica = Observed()
    for _ in range(30):
        replica.ticks(9)
        replica.say(kind, 2, 1)
    assert (replica.node.role, replica.node.term) == (Role.FOLLOWER, 1)


def test_5_2_a_leader_sends_heartbeats_to_all() -> None:
    replica = Observed(heartbeat_ticks=2)
    replica.lead()
    assert only(replica.ticks(1), Kind.HEARTBEAT) == []
    assert [message.to for message in only(replica.ticks(1), Kind.HEARTBEAT)] == [2, 3]


def test_5_2_silence_for_an_election_timeout_begins_an_election() -> None:
    replica = Observed(term=3)
    sent = replica.ticks(20)
    assert (replica.node.role, replica.node.term, replica.hard.vote) == (Role.CANDIDATE, 4, 1)
    assert [(message.kind, message.to, message.term) for message in sent] == [
        (Kind.VOTE, 2, 4),
        (Kind.VOTE, 3, 4),
    ]


@pytest.mark.parametrize(
    ("voters", "granted", "refused", "role"),
    [
        ((1,), (), (), Role.LEADER),
        (THREE, (2,), (), Role.LEADER),
        (THREE, (), (), Role.CANDIDATE),
        (THREE, (), (2,), Role.CANDIDATE),
        (THREE, (), (2, 3), Role.FOLLOWER),
        (THREE, (2,), (3,), Role.LEADER),
        (FIVE, (2, 3), (), Role.LEADER),
        (FIVE, (2,), (3, 4), Role.CANDIDATE),
        (FIVE, (2,), (3, 4, 5), Role.FOLLOWER),
        (FIVE, (2, 2, 2), (), Role.CANDIDATE),
    ],
)
def test_5_2_a_majority_of_votes_wins(
    voters: tuple[int, ...], granted: tuple[int, ...], refused: tuple[int, ...], role: Role
) -> None:
    replica = Observed(voters)
    replica.node.campaign()
    replica.run()
    for voter in refused:
        replica.say(Kind.VOTE_RESPONSE, voter, 1, reject=True)
    for voter in granted:
        replica.say(Kind.VOTE_RESPONSE, voter, 1)
    assert replica.node.role is role


def test_5_2_votes_of_an_earlier_term_do_not_count() -> None:
    replica = Observed()
    replica.node.campaign()
    replica.run()
    replica.ticks(20)
    assert replica.node.term == 2
    replica.say(Kind.VOTE_RESPONSE, 2, 1)
    assert replica.node.role is Role.CANDIDATE


def test_5_2_a_server_votes_once_in_a_term_first_come_first_served() -> None:
    replica = Observed()
    (first,) = replica.say(Kind.VOTE, 2, 1)
    (second,) = replica.say(Kind.VOTE, 3, 1)
    (again,) = replica.say(Kind.VOTE, 2, 1)
    assert [first.reject, second.reject, again.reject] == [False, True, False]


def test_5_2_a_vote_survives_a_restart() -> None:
    replica = Observed()
    replica.say(Kind.VOTE, 2, 1)
    stored = GroupLog(replica.hard, 0, 0, 0, 0, [])
    config = Config(1, voters=THREE, pre_vote=False, check_quorum=False)
    replica.node = RawNode.restart(config, stored, random.Random(1).randrange)
    (answer,) = replica.say(Kind.VOTE, 3, 1)
    assert answer.reject


def test_5_2_no_vote_leaves_before_it_is_durable() -> None:
    replica = Observed()
    replica.node.step(Message(Kind.VOTE, 1, 2, 1))
    ready = replica.node.ready()
    assert ready.must_sync
    assert ready.hard_state == HardState(1, 2, 0)
    assert ready.messages == []
    assert [message.kind for message in ready.messages_after] == [Kind.VOTE_RESPONSE]


@pytest.mark.parametrize("kind", [Kind.HEARTBEAT, Kind.APPEND])
def test_5_2_a_candidate_that_hears_a_leader_of_its_term_follows(kind: Kind) -> None:
    replica = Observed()
    replica.node.campaign()
    replica.run()
    replica.say(kind, 3, 1)
    assert (replica.node.role, replica.node.leader, replica.node.term) == (Role.FOLLOWER, 3, 1)


def test_5_2_a_candidate_ignores_a_leader_of_an_earlier_term() -> None:
    replica = Observed(term=4)
    replica.node.campaign()
    replica.run()
    replica.say(Kind.HEARTBEAT, 3, 4)
    assert replica.node.role is Role.CANDIDATE


def test_5_2_a_split_vote_ends_with_a_new_election_in_a_new_term() -> None:
    replica = Observed()
    replica.ticks(20)
    term = replica.node.term
    replica.ticks(20)
    assert (replica.node.role, replica.node.term) == (Role.CANDIDATE, term + 1)


def test_5_2_election_timeouts_are_random_between_one_and_two_times_the_setting(
    seed: int, rng: random.Random
) -> None:
    seen = set()
    for _ in range(300):
        node = RawNode(Config(1, voters=THREE, pre_vote=False), rng.randrange)
        ticks = 0
        while node.role is Role.FOLLOWER:
            node.tick()
            ticks += 1
        seen.add(ticks)
    assert seen == set(range(10, 20))


# ---------------------------------------------------------------------------------- 5.3 replication


def test_5_3_a_leader_appends_a_command_and_sends_it_to_all() -> None:
    replica = Observed()
    replica.lead()
    for follower in (2, 3):
        replica.say(Kind.APPEND_RESPONSE, follower, 1, 1)
    assert replica.node.propose(b"x") == 2
    sent = replica.run()
    assert [(message.to, message.index, message.log_term) for message in sent] == [(2, 1, 1), (3, 1, 1)]
    assert {message.entries for message in sent} == {(Entry(1, 2, 0, b"x"),)}


@pytest.mark.parametrize(
    ("voters", "acks", "committed"),
    [((1,), (), True), (THREE, (), False), (THREE, (2,), True), (FIVE, (2,), False), (FIVE, (2, 4), True)],
)
def test_5_3_an_entry_is_committed_when_a_majority_has_it(
    voters: tuple[int, ...], acks: tuple[int, ...], committed: bool
) -> None:
    replica = Observed(voters)
    replica.lead(tuple(range(2, len(voters) // 2 + 2)))
    index = replica.node.propose(b"x")
    replica.run()
    for follower in acks:
        replica.say(Kind.APPEND_RESPONSE, follower, 1, index)
    assert (replica.node.committed >= index) is committed
    assert (replica.applied[-1:] == [Entry(1, index, 0, b"x")]) is committed


def test_5_3_committing_an_entry_commits_all_before_it_of_earlier_leaders_too() -> None:
    replica = Observed(log=(1, 1, 2))
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 3, 4)
    assert [entry.term for entry in replica.applied] == [1, 1, 2, 3]


def test_5_3_followers_learn_the_commit_mark_and_apply_in_order() -> None:
    replica = Observed()
    replica.say(Kind.APPEND, 2, 1, 0, 0, entries=tuple(entries(1, 1, 1)))
    assert replica.applied == []
    replica.say(Kind.APPEND, 2, 1, 3, 1, 2)
    assert [entry.index for entry in replica.applied] == [1, 2]
    replica.say(Kind.HEARTBEAT, 2, 1, commit=3)
    assert [entry.index for entry in replica.applied] == [1, 2, 3]


def test_5_3_a_commit_mark_counts_only_as_far_as_the_message_covers_the_log() -> None:
    replica = Observed(log=(1, 1, 1))
    replica.say(Kind.APPEND, 2, 2, 1, 1, 3)
    assert replica.node.committed == 1


@pytest.mark.parametrize(
    ("index", "term", "fits"), [(0, 0, True), (2, 2, True), (2, 1, False), (3, 2, False)]
)
def test_5_3_a_follower_refuses_entries_that_do_not_follow_what_it_has(
    index: int, term: int, fits: bool
) -> None:
    replica = Observed(log=(1, 2))
    (answer,) = replica.say(Kind.APPEND, 2, 2, index, term)
    assert answer.reject is not fits


@pytest.mark.parametrize(
    ("log", "sent_after", "sent", "result"),
    [
        ((1, 1), (2, 1), (2,), [1, 1, 2]),
        ((1, 1, 2), (1, 1), (3, 3), [1, 3, 3]),
        ((1, 1, 2, 2), (2, 1), (3,), [1, 1, 3]),
        ((1, 1, 2), (1, 1), (1,), [1, 1, 2]),
        ((), (0, 0), (1, 2), [1, 2]),
    ],
)
def test_5_3_conflicting_entries_give_way_to_the_leader_and_only_those(
    log: tuple[int, ...], sent_after: tuple[int, int], sent: tuple[int, ...], result: list[int]
) -> None:
    replica = Observed(log=log)
    index, term = sent_after
    new = tuple([Entry(term_of, index + 1 + offset, 0, b"") for offset, term_of in enumerate(sent)])
    replica.say(Kind.APPEND, 2, 9, index, term, entries=new)
    assert replica.log_terms() == result


def test_5_3_a_leader_goes_back_until_the_logs_meet_skipping_whole_terms() -> None:
    # The follower has 1 1 2 2 2; the leader 1 1 3 3 and its no-op of term 4.
    replica = Observed(log=(1, 1, 3, 3))
    replica.lead()
    (probe,) = replica.say(Kind.APPEND_RESPONSE, 2, 4, 4, 2, reject=True, hint=4)
    assert (probe.index, probe.log_term) == (2, 1)
    assert [entry.term for entry in probe.entries] == [3, 3, 4]


def test_5_3_a_leader_never_changes_its_own_log() -> None:
    replica = Observed(log=(1, 1))
    replica.lead()
    with pytest.raises(AssertionError, match="second leader"):
        replica.say(Kind.APPEND, 2, 2, 0, 0, entries=tuple(entries(2)))
    assert replica.log_terms() == [1, 1, 2]


def test_5_3_a_leader_retries_for_ever_also_after_it_answered_the_client() -> None:
    replica = Observed()
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 1, 1)
    for round_number in range(1, 20):
        replica.ticks(1)
        sent = replica.say(Kind.HEARTBEAT_RESPONSE, 3, 1, round=round_number)
        assert [message.entries for message in only(sent, Kind.APPEND)] == [(Entry(1, 1, NOOP, b""),)]


# ------------------------------------------------------------------------------------- 5.4 safety


@pytest.mark.parametrize(
    ("log", "last", "granted"),
    [
        ((1,), (1, 1), True),
        ((1,), (2, 1), True),
        ((1, 1), (1, 1), False),
        ((1,), (1, 2), True),
        ((1, 1), (1, 2), True),
        ((2,), (1, 1), False),
        ((2,), (2, 1), False),
        ((1, 2), (9, 1), False),
    ],
)
def test_5_4_1_no_vote_for_a_log_less_up_to_date(
    log: tuple[int, ...], last: tuple[int, int], granted: bool
) -> None:
    (answer,) = Observed(log=log).say(Kind.VOTE, 2, 5, *last)
    assert answer.reject is not granted


def test_5_4_1_a_candidate_tells_where_its_log_ends() -> None:
    replica = Observed(log=(1, 1, 4))
    sent = replica.ticks(20)
    assert {(message.index, message.log_term) for message in sent} == {(3, 4)}


@pytest.mark.parametrize(("match", "committed"), [(1, 0), (2, 0), (3, 3)])
def test_5_4_2_only_entries_of_the_leaders_own_term_are_committed_by_counting(
    match: int, committed: int
) -> None:
    # Figure 8: entries of terms 1 and 2 on a majority may yet be overwritten; with one of term 3, not.
    replica = Observed(log=(1, 2))
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 3, match)
    assert replica.node.committed == committed


# ---------------------------------------------------------------------- 5.5 and 5.6 crashes and timing


def test_5_5_a_repeated_append_changes_nothing() -> None:
    replica = Observed()
    first = replica.say(Kind.APPEND, 2, 1, 0, 0, entries=tuple(entries(1, 1)))
    assert replica.say(Kind.APPEND, 2, 1, 0, 0, entries=tuple(entries(1, 1))) == first
    assert replica.log_terms() == [1, 1]


def test_5_5_a_follower_answers_only_when_the_entries_are_durable() -> None:
    replica = Observed()
    replica.node.step(Message(Kind.APPEND, 1, 2, 1, entries=tuple(entries(1))))
    ready = replica.node.ready()
    assert ready.must_sync
    assert ready.messages == []
    assert [message.index for message in ready.messages_after] == [1]


def test_5_5_a_leaders_own_copy_counts_only_when_it_is_durable() -> None:
    replica = Observed()
    replica.lead()
    index = replica.node.propose(b"x")
    ready = replica.node.ready()
    replica.node.step(Message(Kind.APPEND_RESPONSE, 1, 2, 1, index))
    assert replica.node.committed < index
    assert replica.node.advance(ready)[-1].index == index


def test_5_6_heartbeats_come_much_more_often_than_election_timeouts() -> None:
    config = Config(1, voters=THREE)
    assert config.heartbeat_ticks * 10 <= config.election_ticks
    with pytest.raises(AssertionError):
        Config(1, voters=THREE, heartbeat_ticks=10)


# ----------------------------------------------------------------------------------- 6 membership


def joint_leader() -> Observed:
    """Leads in voters 1, 4, 5 and 1, 2, 3."""
    replica = Observed()
    replica.lead()
    changes = (Change(ChangeOp.ADD_VOTER, 4), Change(ChangeOp.ADD_VOTER, 5))
    gone = (Change(ChangeOp.REMOVE, 2), Change(ChangeOp.REMOVE, 3))
    replica.say(Kind.APPEND_RESPONSE, 2, 1, 1)
    learn = (Change(ChangeOp.ADD_LEARNER, 4), Change(ChangeOp.ADD_LEARNER, 5))
    index = replica.node.propose_conf_change(ConfChange(learn, Transition.AUTO))
    replica.run()
    for sender in (2, 4, 5):
        replica.say(Kind.APPEND_RESPONSE, sender, 1, index)
    index = replica.node.propose_conf_change(ConfChange(changes + gone, Transition.JOINT_EXPLICIT))
    replica.run()
    replica.say(Kind.APPEND_RESPONSE, 2, 1, index)
    assert replica.node.conf == Configuration((1, 4, 5), (1, 2, 3))
    return replica


@pytest.mark.parametrize(("acks", "committed"), [((2, 3), False), ((4, 5), False), ((2, 4), True)])
def test_6_entries_need_both_majorities(acks: tuple[int, ...], committed: bool) -> None:
    replica = joint_leader()
    index = replica.node.propose(b"x")
    sent = replica.run()
    assert {message.to for message in sent} <= {2, 3, 4, 5}
    for follower in acks:
        replica.say(Kind.APPEND_RESPONSE, follower, 1, index)
    assert (replica.node.committed >= index) is committed


@pytest.mark.parametrize(("votes", "won"), [((2, 3), False), ((4, 5), False), ((2, 4), True)])
def test_6_elections_need_both_majorities(votes: tuple[int, ...], won: bool) -> None:
    replica = joint_leader()
    replica.say(Kind.VOTE, 2, 5, 9, 4)
    replica.node.campaign()
    assert {message.to for message in only(replica.run(), Kind.VOTE)} == {2, 3, 4, 5}
    for voter in votes:
        replica.say(Kind.VOTE_RESPONSE, voter, replica.node.term)
    assert replica.node.is_leader is won


def test_6_new_servers_first_get_entries_without_a_vote() -> None:
    replica = Observed((1,))
    replica.lead(())
    replica.node.propose_conf_change(ConfChange((Change(ChangeOp.ADD_LEARNER, 2),)))
    sent = replica.run()
    assert {message.to for message in sent} == {2}
    index = replica.node.propose(b"x")
    replica.run()
    assert replica.node.committed == index, "a learner is not waited for"


def test_6_a_learner_does_not_stand() -> None:
    config = Config(3, voters=(1, 2), learners=(3,))
    node = RawNode(config, random.Random(1).randrange)
    for _ in range(100):
        node.tick()
    assert not node.has_ready()
    assert not node.campaign()


def test_6_a_leader_that_is_not_in_the_new_membership_steps_down_when_it_is_committed() -> None:
    replica = Observed()
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 1, 1)
    index = replica.node.propose_conf_change(ConfChange((Change(ChangeOp.REMOVE, 1),)))
    replica.run()
    assert replica.node.is_leader
    sent = replica.say(Kind.APPEND_RESPONSE, 2, 1, index)
    assert replica.node.role is Role.FOLLOWER
    assert [message.to for message in only(sent, Kind.TIMEOUT_NOW)] == [2]


def test_6_removed_servers_cannot_disturb_a_group_that_hears_its_leader() -> None:
    replica = Observed(check_quorum=True)
    replica.say(Kind.HEARTBEAT, 2, 1)
    assert replica.say(Kind.VOTE, 3, 7, 9, 6) == []
    assert replica.node.term == 1
    replica.ticks(10)
    (answer,) = only(replica.say(Kind.VOTE, 3, 7, 9, 6), Kind.VOTE_RESPONSE)
    assert not answer.reject, "after an election timeout without the leader, it may"


# ------------------------------------------------------------------------------------ 7 compaction


def test_7_a_compacted_log_still_answers_for_the_entry_before_it() -> None:
    replica = Observed(log=(1, 1, 2), commit=3)
    replica.run()
    replica.node.compact(2, 1)
    assert (replica.node.compacted, replica.node.term_of(2), replica.node.term_of(1)) == (2, 1, -1)
    (answer,) = replica.say(Kind.APPEND, 2, 2, 3, 2)
    assert not answer.reject


def test_7_a_leader_sends_an_image_when_it_has_discarded_what_a_follower_needs() -> None:
    replica = Observed(log=(1, 1, 2))
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 3, 4)
    replica.node.compact(4, 3)
    sent = replica.say(Kind.APPEND_RESPONSE, 3, 3, 3, 0, reject=True, hint=0)
    (image,) = only(sent, Kind.SNAPSHOT)
    assert image.snapshot == SnapshotMeta(4, 3, replica.node.conf_bytes)
    assert only(replica.ticks(1), Kind.APPEND) == [], "nothing else until it has arrived"
    replica.say(Kind.APPEND_RESPONSE, 3, 3, 4)
    replica.node.propose(b"x")
    assert {message.to for message in only(replica.run(), Kind.APPEND)} == {2, 3}


def image(index: int, term: int, voters: tuple[int, ...] = THREE) -> SnapshotMeta:
    return SnapshotMeta(index, term, Configuration(voters).encode())


def test_7_an_image_replaces_a_log_that_conflicts_with_it_and_brings_the_members() -> None:
    replica = Observed(log=(1, 1, 1))
    replica.node.step(Message(Kind.SNAPSHOT, 1, 2, 4, snapshot=image(2, 3, FIVE)))
    ready = replica.node.ready()
    assert ready.snapshot == image(2, 3, FIVE)
    assert ready.must_sync
    assert [message.index for message in ready.messages_after] == [2]
    replica.node.advance(ready)
    assert (replica.node.last_index, replica.node.compacted, replica.node.committed) == (2, 2, 2)
    assert replica.node.conf.voters == FIVE


def test_7_entries_behind_an_image_that_the_log_agrees_with_are_kept() -> None:
    replica = Observed(log=(1, 1, 1))
    (answer,) = replica.say(Kind.SNAPSHOT, 2, 4, snapshot=image(2, 1))
    assert replica.log_terms() == [1, 1, 1]
    assert (answer.index, replica.node.committed) == (2, 2)


def test_7_an_old_image_is_ignored() -> None:
    replica = Observed(log=(1, 1, 1), commit=3)
    (answer,) = replica.say(Kind.SNAPSHOT, 2, 4, snapshot=image(2, 1))
    assert answer.index == 3
    assert replica.node.last_index == 3


def test_7_a_replica_that_was_a_member_before_promises_nothing_until_a_later_image_is_there() -> None:
    """It has forgotten what it acknowledged: old members must not count it, whatever they say to it."""
    stored = GroupLog(HardState(4, 2, 9), 9, 3, 9, 3, [], Configuration().encode())
    replica = Observed()
    replica.node = RawNode.restart(Config(1, voters=THREE), stored, random.Random(7).randrange)
    replica.ticks(100)
    assert replica.node.role is Role.FOLLOWER
    (answer,) = only(replica.say(Kind.VOTE, 3, 5, 20, 4), Kind.VOTE_RESPONSE)
    assert answer.reject
    (answer,) = only(replica.say(Kind.PRE_VOTE, 3, 6, 20, 4), Kind.PRE_VOTE_RESPONSE)
    assert answer.reject
    (answer,) = only(replica.say(Kind.HEARTBEAT, 3, 4), Kind.APPEND_RESPONSE)
    assert answer.term == 5, "an old leader hears that it is one, and not that it leads"
    replica.say(Kind.HEARTBEAT, 3, 5, 30, commit=30)
    assert replica.node.committed == 9, "what another replica under this number has had"
    (answer,) = only(replica.say(Kind.APPEND, 3, 5, 9, 3, 10, entries(5)), Kind.APPEND_RESPONSE)
    assert answer.reject
    for index in (8, 9):
        replica.say(Kind.SNAPSHOT, 3, 5, snapshot=image(index, 3))
        assert replica.node.conf.voters == (), "it may be of a time when this node was a member before"
    replica.say(Kind.SNAPSHOT, 3, 5, snapshot=image(10, 3))
    assert replica.node.conf.voters == THREE
    (answer,) = only(replica.say(Kind.VOTE, 2, 6, 10, 3, force=True), Kind.VOTE_RESPONSE)
    assert not answer.reject


# --------------------------------------------------------------------------------------- 8 clients


def test_8_a_leader_commits_a_blank_entry_at_the_start_of_its_term() -> None:
    replica = Observed(log=(1,))
    sent = replica.lead()
    assert {message.entries for message in sent} == {(Entry(2, 2, NOOP, b""),)}


def test_8_a_read_waits_until_the_leader_knows_what_is_committed() -> None:
    replica = Observed(log=(1,))
    replica.lead()
    replica.node.read_index(b"r")
    assert only(replica.run(), Kind.HEARTBEAT) == []
    sent = replica.say(Kind.APPEND_RESPONSE, 2, 2, 2)
    assert only(sent, Kind.HEARTBEAT), "now it asks whether it still leads"


def test_8_a_read_waits_for_a_majority_to_say_that_the_leader_still_leads() -> None:
    replica = Observed(FIVE)
    replica.lead((2, 3))
    for follower in (2, 3):
        replica.say(Kind.APPEND_RESPONSE, follower, 1, 1)
    replica.node.read_index(b"r")
    (first, *_) = only(replica.run(), Kind.HEARTBEAT)
    replica.say(Kind.HEARTBEAT_RESPONSE, 2, 1, round=first.round)
    assert replica.node.read_index_now() is None
    replica.node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 3, 1, round=first.round))
    assert replica.node.ready().read_states == [(b"r", 1)]


def test_8_an_answer_to_an_earlier_round_does_not_confirm_a_later_read() -> None:
    replica = Observed()
    replica.lead()
    replica.say(Kind.APPEND_RESPONSE, 2, 1, 1)
    replica.ticks(1)
    replica.node.read_index(b"r")
    replica.run()
    replica.node.step(Message(Kind.HEARTBEAT_RESPONSE, 1, 2, 1, round=1))
    assert not replica.node.has_ready()
