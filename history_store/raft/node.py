"""RawNode: the replica as hosting holds it: put things in, take what is ready, say when it is durable.

The duties that come with it are the numbered contract in the package's docstring. All calls are made from one
thread and none of them waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from history_store.raft import candidate, leader
from history_store.raft.config import Config, Dice
from history_store.raft.configuration import ConfChange, Configuration
from history_store.raft.core import Core
from history_store.raft.log import ENTRY_OVERHEAD_BYTES
from history_store.raft.messages import (
    CONF_CHANGE,
    DATA,
    NOBODY,
    Kind,
    Message,
    NotLeader,
    ProposalDropped,
    ReadState,
    SnapshotMeta,
)
from history_store.raft.roles import Role
from history_store.storage.contract import Entry, GroupLog, HardState

KEPT_ENTRIES = 1024  # a follower that becomes leader can serve others that lag by so much without an image

_LEADER = Role.LEADER  # a global is cheaper than an attribute of the enum


class SoftState(NamedTuple):
    """Who leads and what we are: worth knowing, never stored."""

    leader: int
    role: Role


class Ready:
    """What is to be done now. Which of it may happen when: the package's contract."""

    __slots__ = (
        "committed_entries",
        "entries",
        "hard_state",
        "messages",
        "messages_after",
        "must_sync",
        "read_states",
        "snapshot",
        "soft_state",
    )

    def __init__(
        self,
        hard_state: HardState | None,
        entries: list[Entry],
        committed_entries: list[Entry],
        messages: list[Message],
        messages_after: list[Message],
        read_states: list[ReadState],
        soft_state: SoftState | None,
        snapshot: SnapshotMeta | None,
        must_sync: bool,
    ) -> None:
        self.hard_state = hard_state  # None = as before
        self.entries = entries  # to be made durable; the first may replace an older one and all behind it
        self.committed_entries = committed_entries  # to be applied; durable here already
        self.messages = messages  # may be sent at once
        self.messages_after = messages_after  # only after hard_state, entries and snapshot are durable
        self.read_states = read_states
        self.soft_state = soft_state  # None = as before
        self.snapshot = snapshot  # to be installed in place of all rows and of the whole log
        self.must_sync = must_sync  # False: what is there may be written with any later round


class RawNode:
    """One replica of one group."""

    __slots__ = (
        "_core",
        "_in_flight",
        "_saved_commit",
        "_saved_term",
        "_saved_vote",
        "_soft_leader",
        "_soft_role",
    )

    def __init__(self, config: Config, dice: Dice, stored: GroupLog | None = None) -> None:
        core = Core(config, dice, stored)
        self._core = core
        self._in_flight: Ready | None = None
        self._saved_term = core.term
        self._saved_vote = core.vote
        self._saved_commit = stored.hard_state.commit if stored is not None else 0
        self._soft_leader = NOBODY
        self._soft_role = Role.FOLLOWER

    @classmethod
    def restart(cls, config: Config, stored: GroupLog, dice: Dice) -> RawNode:
        """A replica as its disk remembers it. `stored.entries` becomes the replica's own list."""
        return cls(config, dice, stored)

    # ---------------------------------------------------------------------------------------- inputs

    def propose(self, data: bytes) -> int:
        """Append data to the group's log; answer the index it has if it is ever committed.

        Raises NotLeader or ProposalDropped; both are definite.
        """
        core = self._core
        if core.role is not _LEADER:
            raise NotLeader(core.leader)
        if not core.alone:
            return leader.propose(core, DATA, data)
        # Alone, with nobody to tell: the same in fewer steps.
        size = len(data)
        waiting = core.uncommitted_bytes + size
        if size > core.config.entry_bytes_max or (
            waiting > core.config.uncommitted_bytes_max and waiting != size
        ):
            return leader.propose(core, DATA, data)  # says what is wrong
        core.uncommitted_bytes = waiting
        log = core.log
        entries = log.entries
        index = log.compacted + len(entries) + 1
        entries.append(Entry(core.term, index, DATA, data))
        log.bytes += size + ENTRY_OVERHEAD_BYTES
        return index

    def propose_conf_change(self, change: ConfChange) -> int:
        """Append a membership change. All refusals (RaftError) are definite."""
        core = self._core
        if core.role is not _LEADER:
            raise NotLeader(core.leader)
        return leader.propose_conf_change(core, change)

    def read_index(self, context: bytes) -> None:
        """Ask for a ReadState with this context; it never comes if leadership is lost meanwhile."""
        core = self._core
        if core.role is _LEADER:
            if len(core.reads) >= core.config.reads_max:
                raise ProposalDropped(f"{len(core.reads)} reads wait already: the quorum does not answer")
            leader.read(core, core.id, context)
        elif core.leader == NOBODY:
            raise NotLeader(NOBODY)
        else:
            if core.quiet:
                core.wake()
            core.send(Message(Kind.READ_INDEX, core.leader, core.id, context=context))

    def read_index_now(self) -> int | None:
        """The index a read must see applied, if that can be said at once (alone, or by lease); else None."""
        core = self._core
        log = core.log
        if core.role is not _LEADER or log.term(log.committed) != core.term or not leader.may_read_now(core):
            return None
        return log.committed

    def step(self, message: Message) -> None:
        """A message arrived from a peer (for a SNAPSHOT: its image arrived, whole and checked)."""
        self._core.step(message)

    def tick(self, *, missed: bool = False) -> None:
        """One tick of hosting's clock went by.

        `missed`: while this process slept, so that what came meanwhile is still to be stepped. Leases and
        elections count such a tick as any other; a leader does not hold it against its followers.
        """
        self._core.tick(missed=missed)

    def campaign(self) -> bool:
        """Stand for election now. False where that would be wrong: no voter, leads, or hears a leader."""
        core = self._core
        if core.role is _LEADER or not core.may_stand() or core.hears_leader():
            return False
        candidate.campaign(core)
        return True

    def begin_with(self, meta: SnapshotMeta) -> None:
        """A state that our own node has made, whole: where a group begins as the half of another.

        Only for a replica that has nothing yet. It comes out with the next Ready, as an image does.
        """
        core = self._core
        assert not core.conf.voters, "a replica that has members has a beginning"
        if meta.term > core.term:
            core.become_follower(meta.term, NOBODY)
        core.log.restore(meta)
        core.restore_conf(meta.conf)

    def transfer_leader(self, to: int) -> None:
        """Hand leadership to a voter; after an election timeout without success, we go on."""
        core = self._core
        if core.role is not _LEADER:
            raise NotLeader(core.leader)
        leader.transfer(core, to)

    def report_snapshot(self, member: int, *, arrived: bool) -> None:
        """How sending an image to a member ended."""
        progress = self._core.progress.get(member)
        if progress is not None:
            leader.snapshot_reported(progress, arrived=arrived)

    def report_unreachable(self, member: int) -> None:
        """Messages to a member could not be sent."""
        progress = self._core.progress.get(member)
        if progress is not None:
            leader.unreachable_reported(progress)

    def wake(self) -> None:
        """End the group's quiet: its leader's node seems gone, or a client waits."""
        self._core.wake()

    def bar(self, *, barred: bool) -> None:
        """Never stand for election, whoever asks. Log and votes are as good as ever, the rows are not."""
        self._core.barred = barred

    def compact(self, index: int, term: int) -> None:
        """Forget entries up to `index`, whose rows are durable."""
        self._core.log.compact(index, term)

    # --------------------------------------------------------------------------------------- outputs

    def has_ready(self) -> bool:
        """Whether `ready` would have something to say. False while a Ready is out."""
        if self._in_flight is not None:
            return False
        core = self._core
        log = core.log
        return (
            log.stable < log.compacted + len(log.entries)
            or (log.handed < log.committed and log.handed < log.stable)
            or core.append_wanted
            or core.term != self._saved_term
            or core.vote != self._saved_vote
            or core.role is not self._soft_role
            or core.leader != self._soft_leader
            or bool(core.messages or core.messages_after or core.read_states)
            or core.reads.wanted
            or log.snapshot is not None
        )

    def has_messages(self) -> bool:
        """Whether `take_messages` would have some, also while a Ready is out."""
        core = self._core
        return bool(core.messages) or core.append_wanted or core.reads.wanted

    def ready(self) -> Ready:
        """Take what is to be done. The next one only after `advance`."""
        assert self._in_flight is None, "the last Ready was not advanced: one durable write at a time"
        core = self._core
        log = core.log
        if core.append_wanted or core.reads.wanted:
            leader.flush(core)
        # First, since applying a membership change may make the core send.
        committed_entries = self.take_committed() if log.handed < log.committed else []
        must_sync = log.snapshot is not None
        if core.term != self._saved_term or core.vote != self._saved_vote:
            must_sync = True
        hard_state = None
        if must_sync or log.committed != self._saved_commit:
            hard_state = HardState(core.term, core.vote, log.committed)
            self._saved_term, self._saved_vote, self._saved_commit = hard_state
        entries = log.unwritten()
        soft_state = None
        if core.role is not self._soft_role or core.leader != self._soft_leader:
            self._soft_role, self._soft_leader = core.role, core.leader
            soft_state = SoftState(core.leader, core.role)
        snapshot, log.snapshot = log.snapshot, None
        ready = Ready(
            hard_state,
            entries,
            committed_entries,
            core.messages,
            core.messages_after,
            core.read_states,
            soft_state,
            snapshot,
            must_sync or bool(entries),
        )
        # New lists always, also for empty ones: what comes later belongs to the next Ready.
        core.messages, core.messages_after, core.read_states = [], [], []
        self._in_flight = ready
        return ready

    def advance(self, ready: Ready) -> list[Entry]:
        """All of `ready` is durable. Answers what this committed, to be applied now (as `take_committed`)."""
        assert ready is self._in_flight, "advanced a Ready that is not out"
        self._in_flight = None
        core = self._core
        log = core.log
        if ready.entries:
            log.written()
            if core.role is _LEADER:
                leader.became_stable(core)
        if core.own_vote_pending and ready.hard_state is not None:
            candidate.count_own_vote(core, ready.hard_state.term)
        return self.take_committed() if log.handed < log.committed else []

    def take_committed(self) -> list[Entry]:
        """Committed entries to apply, in order, each handed out once; callable at any time.

        A membership change is always the last of what one call answers, so that `conf_bytes` is the
        membership as of the end of the batch. What is behind it comes with the next call or Ready.
        """
        core = self._core
        log = core.log
        entries = log.take_committed(core.config.apply_entries_max)
        for position, entry in enumerate(entries):
            if entry.kind == CONF_CHANGE:
                log.handed = entry.index
                core.apply_conf_change(entry)
                entries = entries[: position + 1]
                break
        if core.conf.outgoing and core.role is _LEADER:
            leader.maybe_leave_joint(core)
        return entries

    def take_messages(self) -> list[Message]:
        """Messages that may be sent at once, also while a Ready is out."""
        core = self._core
        if core.append_wanted or core.reads.wanted:
            leader.flush(core)
        messages, core.messages = core.messages, []
        return messages

    # ---------------------------------------------------------------------------------------- status

    @property
    def is_leader(self) -> bool:
        """Whether we lead, as far as we know."""
        return self._core.role is _LEADER

    @property
    def role(self) -> Role:
        """What we are in our term."""
        return self._core.role

    @property
    def leader(self) -> int:
        """Who leads our term, as far as we know; 0 = nobody."""
        return self._core.leader

    @property
    def term(self) -> int:
        """Our term."""
        return self._core.term

    @property
    def vote(self) -> int:
        """Whom we voted for in our term; 0 = nobody."""
        return self._core.vote

    @property
    def committed(self) -> int:
        """The last index known to be committed."""
        return self._core.log.committed

    @property
    def handed(self) -> int:
        """The last index given out to be applied."""
        return self._core.log.handed

    @property
    def stable(self) -> int:
        """The last index that is durable here."""
        return self._core.log.stable

    @property
    def last_index(self) -> int:
        """The last index of our log."""
        return self._core.log.last_index

    @property
    def compacted(self) -> int:
        """Entries up to here are gone from the log."""
        return self._core.log.compacted

    @property
    def log_bytes(self) -> int:
        """What the log takes in memory, about."""
        return self._core.log.bytes

    @property
    def conf(self) -> Configuration:
        """The members as of `handed`."""
        return self._core.conf

    @property
    def conf_changes(self) -> bool:
        """At the leader: whether a change of members is under way."""
        core = self._core
        return bool(core.conf.outgoing) or core.pending_conf_index > core.log.handed

    @property
    def conf_bytes(self) -> bytes:
        """The members as of `handed`, as `GroupLog.conf` keeps them."""
        return self._core.conf_bytes

    @property
    def is_quiet(self) -> bool:
        """Whether the group sleeps: ticks do nothing until something happens."""
        return self._core.quiet or (self._core.alone and self._core.role is _LEADER)

    def kept_entries(self) -> list[Entry]:
        """The entries that the log still has in memory, oldest first; not to be changed."""
        return self._core.log.entries

    @property
    def is_alone(self) -> bool:
        """Whether the group has no other member."""
        return self._core.alone

    def lowest_match(self, index: int) -> int:
        """At the leader: the last entry up to `index` that every member is known to have, learners included.

        A follower does not know what others have: it answers with `index` less what a leader may still need
        of it, should it be elected: nothing is forgotten here before it is `KEPT_ENTRIES` old.
        """
        core = self._core
        if core.role is _LEADER:
            return min([index, *(p.match for p in core.progress.values())])
        return max(index - KEPT_ENTRIES, 0)

    def lagging(self, entries: int) -> list[int]:
        """At the leader: members whose log is known to end more than so many entries before ours.

        And who needs an image, and learners that have nothing yet: a vote that cannot be given is worse than
        none.
        """
        core = self._core
        if core.role is not _LEADER or core.quiet:  # a group sleeps only when all have everything
            return []
        low, learners = core.log.last_index - entries, core.conf.learners
        return [
            member
            for member, progress in core.progress.items()
            if progress.match < low
            or (progress.match == 0 and member in learners)
            or leader.lacks_image(core, progress)
        ]

    def heir(self, able: Callable[[int], bool]) -> int:
        """At the leader: the other voter whose log is longest, among those that are able; 0 = nobody."""
        core = self._core
        if core.role is not _LEADER:
            return NOBODY
        others = [m for m in core.conf.voters if m != core.id and m in core.progress and able(m)]
        return max(others, key=lambda member: core.progress[member].match, default=NOBODY)

    @property
    def transferee(self) -> int:
        """To whom leadership is being handed; 0 = nobody."""
        return self._core.transferee

    def term_of(self, index: int) -> int:
        """The term of an entry; -1 if it is compacted or not there."""
        return self._core.log.term(index)
