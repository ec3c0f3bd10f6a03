"""The state of one replica and its roles: terms, timers, who we believe leads, what is to be sent.

Theory of operation. Everything that happens is a message stepped, a tick, or a call of hosting's (node.py).
The core changes its state and queues messages; it never acts. What each role does with messages is in
follower.py, candidate.py and leader.py; this module holds what they share and the transitions between
roles.

Two queues: `messages` may leave at once; `messages_after` may leave only when everything that is not yet
durable now has become so, because they promise it (votes, and "I have your entries").

Lineage: Raft sections 5 to 8; etcd-io/raft raft.go. Differences are named where they are.
"""

from __future__ import annotations

from history_store.raft import candidate, follower, leader
from history_store.raft.config import Config, Dice
from history_store.raft.configuration import Configuration, changed, decode_change, decode_configuration
from history_store.raft.log import RaftLog
from history_store.raft.messages import CONF_CHANGE, NOBODY, Kind, Message, ReadState
from history_store.raft.progress import Progress
from history_store.raft.reads import Reads
from history_store.raft.roles import AFTER_DURABLE, FROM_LEADER, RESPONSES, VOTE_REQUESTS, Role
from history_store.rare import reached
from history_store.storage.contract import Entry, GroupLog


class Core:
    """One replica of one group."""

    __slots__ = (
        "alone",
        "append_wanted",
        "asked_to_stand",
        "barred",
        "commit_to_tell",
        "conf",
        "conf_bytes",
        "config",
        "dice",
        "election_elapsed",
        "election_timeout",
        "heartbeat_elapsed",
        "id",
        "idle_ticks",
        "leader",
        "lease_ceded",
        "log",
        "messages",
        "messages_after",
        "own_vote_pending",
        "pending_conf_index",
        "progress",
        "promise_ticks",
        "quiet",
        "read_states",
        "reads",
        "role",
        "sole_voter",
        "term",
        "ticks",
        "transfer_elapsed",
        "transferee",
        "uncommitted_bytes",
        "vote",
        "votes",
    )

    def __init__(self, config: Config, dice: Dice, stored: GroupLog | None) -> None:
        self.config = config
        self.dice = dice
        self.id = config.node_id
        if stored is None:
            self.log = RaftLog(0, 0, [], 0, 0)
            self.term, self.vote = 0, NOBODY
        else:
            hard = stored.hard_state
            self.log = RaftLog(
                stored.compacted, stored.compacted_term, stored.entries, hard.commit, stored.applied
            )
            self.term, self.vote = hard.term, hard.vote
            assert self.log.last_term <= self.term, (
                "the log is of a later term than the hard state: was it lost?"
            )
            known = self.log.term(stored.applied)
            assert stored.applied_term == known, f"rows are of term {stored.applied_term}, the log of {known}"
        self.role = Role.FOLLOWER
        self.leader = NOBODY
        self.votes: dict[int, bool] = {}
        # We voted for ourselves; the vote counts when it is durable.
        self.own_vote_pending = False
        self.asked_to_stand = False  # by the leader, but a membership change is to be applied first
        self.messages: list[Message] = []
        self.messages_after: list[Message] = []
        self.read_states: list[ReadState] = []
        self.ticks = 0  # since the start; only differences mean something
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.election_timeout = 0
        # Before a restart we may have promised a leader not to vote for another; with leases, keep that.
        restarted = stored is not None and self.term > 0
        self.promise_ticks = config.election_ticks if config.lease_reads and restarted else 0
        # Leader only:
        self.progress: dict[int, Progress] = {}
        self.reads = Reads()
        self.append_wanted = False  # some follower may lack an entry or the commit mark
        self.commit_to_tell = 0  # the commit mark that followers are to hear of at once, in any case
        self.pending_conf_index = 0  # no second membership change before this entry is applied
        self.uncommitted_bytes = 0
        self.transferee = NOBODY
        self.transfer_elapsed = 0
        self.lease_ceded = False  # a hand-over was begun in this term: others may be elected early
        self.quiet = False
        self.idle_ticks = 0
        self.barred = False  # hosting has no rows that could be served: never stand
        self.alone = False
        self._set_conf(self._stored_conf(stored))
        self.restart_timer()

    def _stored_conf(self, stored: GroupLog | None) -> Configuration:
        if stored is not None and stored.conf:
            return decode_configuration(stored.conf)
        return Configuration(
            voters=tuple(sorted(self.config.voters)), learners=tuple(sorted(self.config.learners))
        ).check()

    # ------------------------------------------------------------------------------- membership

    def _set_conf(self, conf: Configuration) -> None:
        self.conf = conf
        self.conf_bytes = conf.encode()
        self.alone = conf.members == (self.id,)
        self.sole_voter = {*conf.voters, *conf.outgoing} == {self.id}

    def apply_conf_change(self, entry: Entry) -> None:
        """A membership change is committed and handed out: it takes effect."""
        assert entry.kind == CONF_CHANGE
        self._set_conf(changed(self.conf, decode_change(entry.data)))
        if self.role is Role.LEADER:
            leader.conf_changed(self)
        elif self.asked_to_stand:
            candidate.asked_to_stand(self)

    def restore_conf(self, data: bytes) -> None:
        """A snapshot brought its members along."""
        self._set_conf(decode_configuration(data))

    def may_stand(self) -> bool:
        """Whether we are a voter who knows its electorate."""
        if not self.conf.is_voter(self.id) or self.log.snapshot is not None or self.barred:
            return False
        # A committed change that is not applied yet would make us count votes of the wrong members.
        entries = self.log.entries[
            self.log.handed - self.log.compacted : self.log.committed - self.log.compacted
        ]
        return not any(entry.kind == CONF_CHANGE for entry in entries)

    # ------------------------------------------------------------------------------------- roles

    def restart_timer(self) -> None:
        """Begin to wait for a leader anew, for a time of one to two election timeouts (Raft, section 5.2)."""
        self.election_elapsed = 0
        self.election_timeout = self.config.election_ticks + self.dice(self.config.election_ticks)

    def _reset(self, term: int) -> None:
        assert term >= self.term, "terms never go back"
        if term != self.term:
            self.term = term
            self.vote = NOBODY
        self.leader = NOBODY
        self.votes = {}
        self.own_vote_pending = False
        self.asked_to_stand = False
        self.heartbeat_elapsed = 0
        self.progress = {}
        self.reads = Reads()
        self.append_wanted = False
        self.commit_to_tell = 0
        self.uncommitted_bytes = 0
        self.transferee = NOBODY
        self.lease_ceded = False
        self.quiet = False
        self.idle_ticks = 0
        self.restart_timer()

    def become_follower(self, term: int, leader_id: int) -> None:
        """Follow, `leader_id` if it is known."""
        assert leader_id != self.id
        self._reset(term)
        self.role = Role.FOLLOWER
        self.leader = leader_id

    def become_pre_candidate(self) -> None:
        """Ask whether an election could be won. Neither term nor vote change."""
        assert self.role is not Role.LEADER
        self._reset(self.term)
        self.role = Role.PRE_CANDIDATE

    def become_candidate(self) -> None:
        """Stand in a new term, with our own vote, which counts when it is durable."""
        assert self.role is not Role.LEADER
        self._reset(self.term + 1)
        self.role = Role.CANDIDATE
        self.vote = self.id
        self.own_vote_pending = True

    def become_leader(self) -> None:
        """Lead the term we stood in."""
        assert self.role is Role.CANDIDATE
        assert self.vote == self.id
        self._reset(self.term)
        self.role = Role.LEADER
        self.leader = self.id
        leader.begin(self)

    # ----------------------------------------------------------------------------------- inputs

    def send(self, message: Message) -> None:
        """Queue a message, behind the next durable write if it promises something."""
        assert message.to not in (self.id, NOBODY), "nobody writes letters to himself"
        (self.messages_after if message.kind in AFTER_DURABLE else self.messages).append(message)

    def tick(self, *, missed: bool = False) -> None:
        """One tick went by; missed = we slept through it."""
        self.ticks += 1
        if self.promise_ticks:
            self.promise_ticks -= 1
        if self.quiet:
            return
        if self.role is Role.LEADER:
            if not self.alone:
                leader.tick(self, missed=missed)
            return
        self.election_elapsed += 1
        if self.election_elapsed >= self.election_timeout:
            self.restart_timer()
            if self.may_stand():
                candidate.campaign(self)

    def wake(self) -> None:
        """Something is going on: timers run again."""
        self.idle_ticks = 0
        if self.quiet:
            self.quiet = False
            self.restart_timer()
            if self.role is Role.LEADER:
                leader.wake(self)

    def hears_leader(self) -> bool:
        """Whether we promised a leader, by answering it lately, not to help depose it."""
        if self.promise_ticks:
            return True
        return (
            self.config.check_quorum
            and self.leader != NOBODY
            and (self.quiet or self.election_elapsed < self.config.election_ticks)
        )

    def step(self, message: Message) -> None:
        """A message arrived."""
        assert message.to == self.id, f"a message for {message.to} was given to {self.id}"
        kind = message.kind
        if message.term == 0:
            assert kind in (Kind.PROPOSE, Kind.READ_INDEX), f"{kind.name} without a term"
        elif message.term > self.term:
            if not self._meet_later_term(message):
                return
        elif message.term < self.term:
            self._answer_earlier_term(message)
            return
        if self.quiet and not message.quiet and kind not in RESPONSES:
            self.wake()
        if kind in VOTE_REQUESTS:
            candidate.answer_request(self, message)
        elif self.role is Role.LEADER:
            leader.step(self, message)
        elif kind in (Kind.VOTE_RESPONSE, Kind.PRE_VOTE_RESPONSE):
            candidate.count_response(self, message)
        else:
            follower.step(self, message)

    def _meet_later_term(self, message: Message) -> bool:
        """Move to a later term where the message shows one. False = the message is to be ignored."""
        kind = message.kind
        if kind in VOTE_REQUESTS and not message.force and self.hears_leader():
            reached("vote refused for the leader's sake")
            self.wake()
            return False
        if kind is Kind.PRE_VOTE or (kind is Kind.PRE_VOTE_RESPONSE and not message.reject):
            return True  # a question about a term that nobody has begun
        self.become_follower(message.term, message.sender if kind in FROM_LEADER else NOBODY)
        return True

    def _answer_earlier_term(self, message: Message) -> None:
        """Tell a leader or a would-be candidate of the past what the term is; ignore the rest."""
        if message.kind in FROM_LEADER:
            if self.config.check_quorum or self.config.pre_vote:
                # Its followers cannot depose it by standing (they would be ignored), so this must.
                self.send(Message(Kind.APPEND_RESPONSE, message.sender, self.id, self.term))
        elif message.kind is Kind.PRE_VOTE:
            self.send(Message(Kind.PRE_VOTE_RESPONSE, message.sender, self.id, self.term, reject=True))
