"""Elections: standing, asking, voting and counting (Raft, sections 5.2 and 5.4.1; pre-vote: thesis 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from history_store.raft.messages import NOBODY, Kind, Message
from history_store.raft.quorum import Verdict, joint_verdict
from history_store.raft.roles import Role

if TYPE_CHECKING:
    from history_store.raft.core import Core


def asked_to_stand(core: Core) -> None:
    """The leader wants us to take over: at once, or as soon as the members it led by are ours, too."""
    core.asked_to_stand = not core.may_stand()
    if not core.asked_to_stand:
        campaign(core, force=True)


def campaign(core: Core, *, force: bool = False) -> None:
    """Stand for election; `force` when the leader asked us to, so that its followers' promise is void."""
    assert core.may_stand()
    # Who decides alone need not ask whether it could win.
    if core.config.pre_vote and not force and not core.sole_voter:
        core.become_pre_candidate()
        core.votes[core.id] = True
        _ask(core, Kind.PRE_VOTE, core.term + 1, force=False)
    else:
        _stand(core, force=force)


def _stand(core: Core, *, force: bool) -> None:
    core.become_candidate()
    _ask(core, Kind.VOTE, core.term, force=force)


def _ask(core: Core, kind: Kind, term: int, *, force: bool) -> None:
    log = core.log
    for peer in sorted({*core.conf.voters, *core.conf.outgoing}):
        if peer != core.id:
            core.send(
                Message(
                    kind,
                    peer,
                    core.id,
                    term,
                    log.last_index,
                    log.last_term,
                    commit=log.committed,
                    hint=log.term(log.committed),
                    force=force,
                )
            )


def answer_request(core: Core, message: Message) -> None:
    """Somebody asks for our vote, or whether we would give it."""
    pre = message.kind is Kind.PRE_VOTE
    if core.role is not Role.LEADER:
        _learn_commit(core, message)
    may = core.vote == message.sender or (core.vote == NOBODY and core.leader == NOBODY)
    if pre and message.term > core.term:
        may = True
    # Without members we are empty, and may have been a voter of this group before: of what such a one has
    # promised, and of how long its log was, we know nothing until an image is here.
    may = may and bool(core.conf.voters)
    granted = may and core.log.is_behind_or_equal(message.index, message.log_term)
    response = Kind.PRE_VOTE_RESPONSE if pre else Kind.VOTE_RESPONSE
    # A granted pre-vote answers in the term that was asked about. A refusal answers in ours, which may be
    # later than the asker's, but not in an earlier one than the asker has: it would be ignored, and with it
    # our commit mark.
    term = message.term if granted else max(core.term, message.term - 1 if pre else 0)
    log = core.log
    core.send(
        Message(
            response,
            message.sender,
            core.id,
            term,
            commit=log.committed,
            hint=log.term(log.committed),
            reject=not granted,
        )
    )
    if granted and not pre:
        core.election_elapsed = 0
        core.vote = message.sender


def _learn_commit(core: Core, message: Message) -> None:
    """Votes carry commit marks: what was committed anywhere is committed in every log that has the entry.

    Needed, not only nice: a membership takes effect when it is applied, so a replica that has the entry but
    does not know that it is committed asks the members before it. One of those may have left in the same
    change with a longer log than ours: it will never vote for us, and it will not stand. But it can tell
    us.
    """
    log = core.log
    if message.commit > log.committed and log.matches(message.commit, message.hint):
        log.commit_to(message.commit)
        if core.role is not Role.FOLLOWER and not core.may_stand():
            core.become_follower(core.term, NOBODY)  # a change of the electorate is to be applied first


def count_response(core: Core, message: Message) -> None:
    """An answer to our request."""
    _learn_commit(core, message)
    pre = message.kind is Kind.PRE_VOTE_RESPONSE
    asking = Role.PRE_CANDIDATE if pre else Role.CANDIDATE
    if core.role is asking:
        _count(core, message.sender, granted=not message.reject)


def count_own_vote(core: Core, term: int) -> None:
    """Our vote for ourselves in `term` is durable now."""
    if core.own_vote_pending and core.term == term:
        assert core.role is Role.CANDIDATE
        core.own_vote_pending = False
        _count(core, core.id, granted=True)


def _count(core: Core, voter: int, *, granted: bool) -> None:
    core.votes.setdefault(voter, granted)
    verdict = joint_verdict(core.conf.voters, core.conf.outgoing, core.votes)
    if verdict is Verdict.LOST:
        core.become_follower(core.term, NOBODY)
    elif verdict is Verdict.WON:
        if core.role is Role.PRE_CANDIDATE:
            _stand(core, force=False)
        # The others may suffice; but a leader's own term must survive its crash, or it could lead it twice.
        elif not core.own_vote_pending:
            core.become_leader()
