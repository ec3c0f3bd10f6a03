"""Following: entries, heartbeats and snapshots from a leader; requests passed on (Raft, section 5.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from history_store.raft import candidate
from history_store.raft.messages import NEEDS_IMAGE, NOBODY, Kind, Message, ReadState
from history_store.raft.roles import FROM_LEADER, Role

if TYPE_CHECKING:
    from history_store.raft.core import Core


def step(core: Core, message: Message) -> None:
    """A message for a replica that does not lead; a leader's word ends a candidacy."""
    kind = message.kind
    if kind in FROM_LEADER:
        if core.role is not Role.FOLLOWER or core.leader != message.sender:
            assert core.leader == NOBODY, (
                f"two leaders in term {core.term}: {core.leader} and {message.sender}"
            )
            core.become_follower(core.term, message.sender)
        core.election_elapsed = 0
        core.idle_ticks = 0
        if kind is Kind.APPEND:
            _append(core, message)
        elif kind is Kind.HEARTBEAT:
            _heartbeat(core, message)
        else:
            _snapshot(core, message)
    elif kind is Kind.PROPOSE or kind is Kind.READ_INDEX:
        # Passed on once: to the leader we know, unless it was the leader who sent it (it has stepped down
        # since).
        if core.leader not in (NOBODY, message.sender):
            core.send(
                Message(kind, core.leader, message.sender, entries=message.entries, context=message.context)
            )
    elif kind is Kind.READ_INDEX_RESPONSE:
        if core.conf.voters:
            core.log.commit_to(message.commit)
        core.read_states.append(ReadState(message.context, message.index))
    elif kind is Kind.TIMEOUT_NOW:
        candidate.asked_to_stand(core)
    # Answers to an earlier leadership of ours in this term cannot exist; answers to earlier terms were
    # dropped.


def _append(core: Core, message: Message) -> None:
    log = core.log
    if not core.conf.voters:
        # We joined with an empty disk and do not know the group's first members, which are in no entry.
        # Entries without them would lead to a wrong membership: only an image, which carries its members,
        # will do.
        core.send(
            Message(
                Kind.APPEND_RESPONSE,
                message.sender,
                core.id,
                core.term,
                message.index,
                reject=True,
                hint=NEEDS_IMAGE,
            )
        )
    elif message.index < log.committed:
        # Late or repeated. What is committed here equals the leader's log, so this is true and tells more.
        core.send(Message(Kind.APPEND_RESPONSE, message.sender, core.id, core.term, log.committed))
    elif log.matches(message.index, message.log_term):
        covered = log.merge(message.index, message.entries)
        log.commit_to(min(message.commit, covered))
        _accepted(core, message.sender, covered)
    else:
        hint, hint_term = log.last_index_of_term_up_to(message.index, message.log_term)
        core.send(
            Message(
                Kind.APPEND_RESPONSE,
                message.sender,
                core.id,
                core.term,
                message.index,
                hint_term,
                reject=True,
                hint=hint,
            )
        )


def _accepted(core: Core, leader: int, upto: int) -> None:
    """One answer for all appends that one durable write covers: the last says what the others say."""
    answer = Message(Kind.APPEND_RESPONSE, leader, core.id, core.term, upto)
    if core.messages_after:
        last = core.messages_after[-1]
        if (
            last.kind is Kind.APPEND_RESPONSE
            and not last.reject
            and last.to == leader
            and last.term == core.term
            and last.index <= upto
        ):
            core.messages_after[-1] = answer
            return
    core.send(answer)


def _heartbeat(core: Core, message: Message) -> None:
    log = core.log
    # The leader never names a commit mark beyond what it knows to be durable here.
    # To an empty replica it may name one that was known of a replica before us: there is no entry to commit.
    if core.conf.voters:
        log.commit_to(message.commit)
    if message.quiet and log.committed == log.last_index == message.index:
        core.quiet = True
    elif core.quiet:
        core.wake()
    core.send(
        Message(
            Kind.HEARTBEAT_RESPONSE, message.sender, core.id, core.term, log.last_index, round=message.round
        )
    )


def _snapshot(core: Core, message: Message) -> None:
    """An image has arrived whole (hosting put it together)."""
    snapshot = message.snapshot
    assert snapshot is not None, "a snapshot without its metadata"
    log = core.log
    if snapshot.index > log.committed:
        if log.matches(snapshot.index, snapshot.term):
            # We have all it stands for; keep our entries behind it.
            log.commit_to(snapshot.index)
        else:
            log.restore(snapshot)
            core.restore_conf(snapshot.conf)
    core.send(Message(Kind.APPEND_RESPONSE, message.sender, core.id, core.term, log.committed))
