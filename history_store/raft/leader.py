"""Leading: appending, replicating, committing, reads, handing over (Raft, sections 5.3, 5.4.2, 6, 8).

Sending is lazy: what happens here only notes that somebody lacks something, and `flush` writes the messages
when hosting collects them. So all proposals and reads of one turn of hosting's loop share one append and
one heartbeat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from history_store.raft.configuration import ConfChange, changed, decode_change
from history_store.raft.log import entry_bytes
from history_store.raft.messages import (
    CONF_CHANGE,
    NEEDS_IMAGE,
    NOBODY,
    NOOP,
    ConfChangeRefused,
    Kind,
    Message,
    ProposalDropped,
    ReadState,
    SnapshotMeta,
)
from history_store.raft.progress import Flow, Progress
from history_store.raft.quorum import Verdict, joint_mark, joint_verdict
from history_store.raft.reads import NO_LEASE
from history_store.raft.roles import Role
from history_store.rare import reached
from history_store.storage.contract import Entry

if TYPE_CHECKING:
    from history_store.raft.core import Core


# ------------------------------------------------------------------------------------------ beginning


def begin(core: Core) -> None:
    """Know nothing of the others, and put an entry of the new term into the log."""
    log = core.log
    following = log.last_index + 1
    for member in core.conf.members:
        core.progress[member] = Progress(0, following)
    own = core.progress[core.id]
    own.match = log.stable
    own.become_replicate()
    # A change among the entries that we inherited may be on its way; wait until all of them are applied.
    core.pending_conf_index = log.last_index
    # Only an entry of our own term may be counted as committed (section 5.4.2), and carries the older ones
    # along.
    append(core, NOOP, b"")


def append(core: Core, kind: int, data: bytes) -> int:
    """Put one entry into our log; answer its index."""
    log = core.log
    index = log.last_index + 1
    log.append(Entry(core.term, index, kind, data))
    core.uncommitted_bytes += len(data)
    core.idle_ticks = 0
    if not core.alone:
        core.append_wanted = True
    return index


# ------------------------------------------------------------------------------------------ proposals


def propose(core: Core, kind: int, data: bytes) -> int:
    """Take a proposal or raise ProposalDropped."""
    assert core.role is Role.LEADER
    config = core.config
    if core.transferee:
        raise ProposalDropped(f"leadership is being handed to node {core.transferee}")
    if len(data) > config.entry_bytes_max:
        raise ProposalDropped(
            f"an entry of {len(data)} bytes is over entry_bytes_max ({config.entry_bytes_max})"
        )
    # A single entry may pass the limit when nothing else is under way, or it could never be proposed.
    if core.uncommitted_bytes and core.uncommitted_bytes + len(data) > config.uncommitted_bytes_max:
        raise ProposalDropped(
            f"{core.uncommitted_bytes} bytes are not committed yet: the quorum or the disk is slow"
        )
    if core.quiet:
        core.wake()
    return append(core, kind, data)


def propose_conf_change(core: Core, change: ConfChange) -> int:
    """Take a membership change or raise ConfChangeRefused."""
    if core.pending_conf_index > core.log.handed:
        raise ConfChangeRefused(f"the membership change at {core.pending_conf_index} is not applied yet")
    # Raises where it makes no sense; at most one is under way, so it will make sense.
    after = changed(core.conf, change)
    for voter in after.voters:
        # A replica without an image knows no members and votes for nobody: one failure more, and the group
        # might never elect a leader again (thesis, 4.2.1).
        if voter not in core.conf.voters and voter != core.id and not _has_something(core, voter):
            raise ConfChangeRefused(f"node {voter} has nothing of the group yet: let it learn first")
    index = propose(core, CONF_CHANGE, change.encode())
    core.pending_conf_index = index
    return index


def _has_something(core: Core, member: int) -> bool:
    progress = core.progress.get(member)
    return progress is not None and progress.match > 0


def _proposed_by_other(core: Core, message: Message) -> None:
    """A follower passed its client's proposals on. A refusal is silent: nobody counts on this path."""
    for entry in message.entries:
        try:
            if entry.kind == CONF_CHANGE:
                propose_conf_change(core, decode_change(entry.data))
            else:
                propose(core, entry.kind, entry.data)
        except ProposalDropped:
            return


# ------------------------------------------------------------------------------------------ committing


def became_stable(core: Core) -> None:
    """Our own disk has more than before."""
    if core.alone:
        _commit(core, core.log.stable)
    else:
        core.progress[core.id].accepted(core.log.stable)
        maybe_commit(core)


def maybe_commit(core: Core) -> None:
    """Commit what a quorum has."""
    progress = core.progress
    _commit(core, joint_mark(core.conf.voters, core.conf.outgoing, lambda voter: progress[voter].match))


def _commit(core: Core, mark: int) -> None:
    log = core.log
    before = log.committed
    # Entries of earlier terms are committed by one of ours behind them, never by counting (section 5.4.2,
    # figure 8).
    if mark <= before or log.term(mark) != core.term:
        return
    log.commit_to(mark)
    if mark == log.compacted + len(log.entries):
        core.uncommitted_bytes = 0
    else:
        first = before - log.compacted
        freed = sum([len(entry.data) for entry in log.entries[first : mark - log.compacted]])
        core.uncommitted_bytes = max(0, core.uncommitted_bytes - freed)
    if core.config.commit_at_once and not core.alone:
        core.append_wanted = True
    if core.reads.postponed:
        postponed, core.reads.postponed = core.reads.postponed, []
        for requester, context in postponed:
            read(core, requester, context)


# ----------------------------------------------------------------------------------------- replicating


def flush(core: Core) -> None:
    """Write the messages that were noted as wanted."""
    if core.reads.wanted:
        heartbeat(core)
    if core.append_wanted:
        core.append_wanted = False
        for member, progress in core.progress.items():
            if member != core.id:
                send_appends(core, member, progress)


def send_appends(core: Core, member: int, progress: Progress, *, probe: bool = False) -> None:
    """Send a member what it lacks, as far as its window allows; `probe` = an empty append, too."""
    log, config = core.log, core.config
    while not progress.is_paused(config.inflight_messages_max, config.inflight_bytes_max):
        previous = progress.next - 1
        if previous < log.compacted:
            _send_snapshot(core, member, progress)
            return
        entries = log.slice(progress.next, config.append_entries_max, config.append_bytes_max)
        if not entries and not probe:
            to_tell = log.committed if config.commit_at_once else core.commit_to_tell
            if progress.sent_commit >= to_tell:
                return
        term = log.term(previous)
        assert term >= 0, f"the entry {previous} before the append is neither in the log nor compacted"
        core.send(Message(Kind.APPEND, member, core.id, core.term, previous, term, log.committed, entries))
        progress.sent_commit = log.committed
        progress.sent(previous + len(entries), entry_bytes(entries))
        if not entries:
            return


def _send_snapshot(core: Core, member: int, progress: Progress) -> None:
    """Ask hosting to send its image; a later one than the one named here will do."""
    log = core.log
    if progress.silent_ticks >= core.config.election_ticks or log.handed == 0:
        return  # nobody there to take it, or nothing to give
    meta = SnapshotMeta(log.handed, log.term(log.handed), core.conf_bytes)
    assert meta.index >= log.compacted
    progress.become_snapshot(meta.index)
    core.send(Message(Kind.SNAPSHOT, member, core.id, core.term, snapshot=meta))


def heartbeat(core: Core, *, quiet: bool = False) -> None:
    """Ask everybody, in a new round, whether we still lead."""
    log = core.log
    number = core.reads.open_round(core.ticks, keep=core.config.lease_reads)
    for member, progress in core.progress.items():
        if member != core.id:
            core.send(
                Message(
                    Kind.HEARTBEAT,
                    member,
                    core.id,
                    core.term,
                    log.last_index,
                    # Not beyond what is known to be there: the rest of its log may be of another term.
                    commit=min(progress.match, log.committed),
                    round=number,
                    quiet=quiet,
                )
            )
    _confirm_reads(core)


def step(core: Core, message: Message) -> None:
    """A message of our term for the leader."""
    kind = message.kind
    if kind is Kind.PROPOSE:
        _proposed_by_other(core, message)
        return
    if kind is Kind.READ_INDEX:
        if len(core.reads) < core.config.reads_max:
            read(core, message.sender, message.context)
        return
    assert kind not in (Kind.APPEND, Kind.HEARTBEAT, Kind.SNAPSHOT), f"a second leader in term {core.term}"
    progress = core.progress.get(message.sender)
    if progress is None:
        return  # no member any more
    if kind is Kind.APPEND_RESPONSE:
        progress.silent_ticks = 0
        if message.reject:
            _append_rejected(core, message, progress)
        else:
            _append_accepted(core, message, progress)
    elif kind is Kind.HEARTBEAT_RESPONSE:
        _heartbeat_answered(core, message, progress)


def _append_rejected(core: Core, message: Message, progress: Progress) -> None:
    if message.hint == NEEDS_IMAGE:
        if progress.flow is not Flow.SNAPSHOT:
            _send_snapshot(core, message.sender, progress)
        return
    following = message.hint
    if message.log_term >= 0:
        # Skip our entries of terms later than the follower's at that place: they cannot match.
        following, _ = core.log.last_index_of_term_up_to(message.hint, message.log_term)
    if progress.rejected(message.index, following + 1):
        if progress.flow is Flow.REPLICATE:
            progress.become_probe()
        send_appends(core, message.sender, progress)


def _append_accepted(core: Core, message: Message, progress: Progress) -> None:
    log = core.log
    assert message.index <= log.last_index, f"node {message.sender} has entries that its leader never sent"
    if not progress.accepted(message.index) and not (
        progress.flow is Flow.PROBE and progress.match == message.index
    ):
        return
    if progress.flow is Flow.PROBE:
        progress.become_replicate()
    elif progress.flow is Flow.REPLICATE:
        progress.answered(message.index)
    elif progress.match >= log.compacted:
        progress.become_replicate()
    maybe_commit(core)
    send_appends(core, message.sender, progress)
    if message.sender == core.transferee and progress.match == log.last_index:
        _send_timeout_now(core)


def _heartbeat_answered(core: Core, message: Message, progress: Progress) -> None:
    progress.silent_ticks = 0
    progress.probe_sent = False
    if progress.flow is Flow.REPLICATE and progress.is_paused(
        core.config.inflight_messages_max, core.config.inflight_bytes_max
    ):
        progress.free_oldest()
    if progress.match < core.log.last_index:
        # Perhaps it works on what we sent; perhaps that was lost, and the answer to an empty append will
        # tell.
        send_appends(core, message.sender, progress, probe=True)
    if message.round > progress.acked_round:
        progress.acked_round = message.round
        _confirm_reads(core)


# ---------------------------------------------------------------------------------------------- reads


def read(core: Core, requester: int, context: bytes) -> None:
    """Answer a read at once where that is right, else let it wait."""
    log = core.log
    if log.term(log.committed) != core.term:
        core.reads.postponed.append((requester, context))
    elif may_read_now(core):
        _answer_read(core, requester, log.committed, context)
    else:
        if core.quiet:
            core.wake()
        core.idle_ticks = 0
        core.reads.ask(requester, log.committed, context)


def may_read_now(core: Core) -> bool:
    """Whether nobody else can lead now: we decide alone, or a quorum's promise holds."""
    config = core.config
    if core.sole_voter:
        return True
    if not config.lease_reads or core.lease_ceded:
        return False
    return core.ticks < core.reads.lease_tick + config.election_ticks - config.lease_margin_ticks


def _answer_read(core: Core, requester: int, index: int, context: bytes) -> None:
    if requester == core.id:
        core.read_states.append(ReadState(context, index))
    else:
        progress = core.progress.get(requester)
        # It has to apply up to `index`: what it is known to have of that is committed, as in heartbeats.
        known = min(progress.match, index) if progress is not None else 0
        core.send(
            Message(
                Kind.READ_INDEX_RESPONSE, requester, core.id, core.term, index, commit=known, context=context
            )
        )


def _confirm_reads(core: Core) -> None:
    progress, own = core.progress, core.id
    newest = core.reads.round
    upto = joint_mark(
        core.conf.voters,
        core.conf.outgoing,
        lambda voter: newest if voter == own else progress[voter].acked_round,
    )
    for waiting in core.reads.confirm(upto):
        _answer_read(core, waiting.requester, waiting.index, waiting.context)


# ------------------------------------------------------------------------------------- time and quiet


def tick(core: Core, *, missed: bool) -> None:
    """One tick of a leader that has somebody to lead; missed = we slept through it."""
    config = core.config
    core.idle_ticks += 1
    # What others said while we slept is still to be read: that silence was ours.
    if not missed:
        for progress in core.progress.values():
            progress.silent_ticks += 1
        if not _quorum_is_heard(core):
            _give_up(core)
            return
    if core.transferee:
        core.transfer_elapsed += 1
        if core.transfer_elapsed >= config.election_ticks:
            reached("hand-over came to nothing")
            core.transferee = NOBODY  # it did not take over in time: go on
            maybe_leave_joint(core)
    for progress in core.progress.values():
        if progress.flow is Flow.SNAPSHOT:
            progress.snapshot_ticks += 1
            patience = config.election_ticks if progress.snapshot_arrived else config.snapshot_ticks_max
            if progress.snapshot_ticks >= patience:
                snapshot_reported(progress, arrived=False)
    if config.quiet_after_ticks and core.idle_ticks >= config.quiet_after_ticks and _may_fall_quiet(core):
        heartbeat(core, quiet=True)
        core.quiet = True
        # Our own ticks stand still now, so they measure no promise.
        core.reads.lease_tick = NO_LEASE
        core.reads.sent.clear()
        return
    core.heartbeat_elapsed += 1
    if core.heartbeat_elapsed >= config.heartbeat_ticks:
        core.heartbeat_elapsed = 0
        heartbeat(core)


def _quorum_is_heard(core: Core) -> bool:
    """Whether a quorum said something within an election timeout."""
    config, own = core.config, core.id
    heard = {
        member: member == own or progress.silent_ticks < config.election_ticks
        for member, progress in core.progress.items()
    }
    if all(heard.values()) or not config.check_quorum:
        return True
    return joint_verdict(core.conf.voters, core.conf.outgoing, heard) is Verdict.WON


def _give_up(core: Core) -> None:
    """Lead no more: a quorum has been silent for an election timeout.

    Perhaps it is only their answers that do not arrive (a cut one way), and as long as they hear us they
    stand by us. So one of them is told to stand at once, without waiting for its timeout: who has most of the
    log and, of those who have the same, who was heard last (another may be dead for long).
    """
    reached("leader without a quorum steps down")
    progress, patience = core.progress, core.config.election_ticks
    silent = [
        voter for voter in core.conf.voters if voter != core.id and progress[voter].silent_ticks >= patience
    ]
    if silent:
        successor = max(silent, key=lambda voter: (progress[voter].match, -progress[voter].silent_ticks))
        core.send(Message(Kind.TIMEOUT_NOW, successor, core.id, core.term))
    core.become_follower(core.term, NOBODY)


def _may_fall_quiet(core: Core) -> bool:
    log = core.log
    last = log.last_index
    if core.transferee or len(core.reads) or core.conf.outgoing:
        return False
    if log.committed != last or log.handed != last:
        return False
    return all(progress.match == last for progress in core.progress.values())


def wake(core: Core) -> None:
    """The group is busy again: everybody's timers must know at once."""
    for progress in core.progress.values():
        progress.silent_ticks = 0  # nobody had anything to say
    heartbeat(core)


# -------------------------------------------------------------------------- membership and hand-over


def conf_changed(core: Core) -> None:
    """The leader's members are others than before."""
    conf, log = core.conf, core.log
    core.reads.lease_tick = NO_LEASE  # promised by a quorum of the members before
    core.reads.sent.clear()
    members = conf.members
    for member in [known for known in core.progress if known not in members and known != core.id]:
        # It may never learn that it was removed; a last append, with this commit mark, is the most we can do.
        send_appends(core, member, core.progress[member], probe=True)
        del core.progress[member]
    for member in members:
        if member not in core.progress:
            core.progress[member] = Progress(0, log.last_index + 1)
    if core.transferee and not conf.is_voter(core.transferee):
        core.transferee = NOBODY
    core.append_wanted = not core.alone
    # Who was removed may end now: if we ended, too, those who do not know could elect nobody.
    core.commit_to_tell = log.committed
    if not conf.is_voter(core.id):
        # We led until the change that removes us was committed (section 6); now others must. Heartbeats
        # pass full windows, so that they bring the commit mark; then the voter with the longest log is
        # asked to stand.
        flush(core)
        heartbeat(core)
        successor = max(conf.voters, key=lambda voter: core.progress[voter].match)
        core.send(Message(Kind.TIMEOUT_NOW, successor, core.id, core.term))
        core.become_follower(core.term, NOBODY)
        return
    maybe_commit(core)
    _confirm_reads(core)


def maybe_leave_joint(core: Core) -> None:
    """Propose to leave a joint configuration that wants to be left, once nothing is pending."""
    if core.conf.auto_leave and core.pending_conf_index <= core.log.handed and not core.transferee:
        core.pending_conf_index = append(core, CONF_CHANGE, ConfChange().encode())


def transfer(core: Core, to: int) -> None:
    """Hand leadership over to a voter, as soon as it has our whole log (thesis, 3.10)."""
    if to not in core.conf.voters:
        raise ProposalDropped(f"node {to} is no voter of the group; leadership cannot go there")
    if to in (core.id, core.transferee):
        return
    if lacks_image(core, core.progress[to]):
        # Nothing could be proposed for an election timeout, and then we would lead on.
        raise ProposalDropped(f"node {to} needs an image of the group first; leadership cannot go there")
    if core.quiet:
        core.wake()
    core.idle_ticks = 0
    core.transferee = to
    core.transfer_elapsed = 0
    progress = core.progress[to]
    if progress.match == core.log.last_index:
        _send_timeout_now(core)
    else:
        send_appends(core, to, progress, probe=True)


def lacks_image(core: Core, progress: Progress) -> bool:
    """Whether the member is known to lack entries that our log no longer has."""
    return progress.flow is Flow.SNAPSHOT or 0 < progress.match < core.log.compacted


def _send_timeout_now(core: Core) -> None:
    # From here on somebody else may be elected at any time, also when this message arrives very late. So the
    # lease is over for the rest of the term, even if the hand-over comes to nothing.
    core.lease_ceded = True
    core.send(Message(Kind.TIMEOUT_NOW, core.transferee, core.id, core.term))


def snapshot_reported(progress: Progress, *, arrived: bool) -> None:
    """Hosting knows how sending an image ended. Arrived: the member's own answer will say how far it is.

    That answer may be lost with a connection, or never be given, by a member that was restarted with the
    image in place and does not know yet who leads: after an election timeout we ask.
    """
    if progress.flow is Flow.SNAPSHOT and arrived:
        progress.snapshot_arrived = True
        progress.snapshot_ticks = 0
    elif progress.flow is Flow.SNAPSHOT:
        progress.snapshot_index = 0
        progress.become_probe()
        progress.probe_sent = True  # wait for a sign of life before the next attempt


def unreachable_reported(progress: Progress) -> None:
    """Hosting could not send: what is in flight is probably lost, so find out where the member is."""
    if progress.flow is Flow.REPLICATE:
        progress.become_probe()
