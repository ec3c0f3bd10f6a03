"""One Raft group on this node: its replica, its rows, and who waits for its entries.

A group *leads* here once an entry of its own term is committed: then everything before it is, too, its rows
are current, and the shard on top may read and propose. It stops to lead with the first sign of another
leader or a lost quorum: what was proposed and not committed is then *indefinite* (it may yet be committed by
whoever leads next), and everybody who waits hears so.

The storage's contract with the core is in `history_store.raft`; the rounds are committer.py's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import structlog

from cluster.hosting.groups.damage import Reads, data_loss, noted
from history_store.engine.errors import Code, Indefinite, ServiceError
from history_store.raft import DATA, Kind, NotLeader, RaftError, RawNode
from history_store.rare import reached
from history_store.shard import image, snapshot, split
from history_store.shard.rows import Rows

if TYPE_CHECKING:
    from cluster.hosting.groups.committer import Committer
    from history_store.raft import Config, Dice, Message, Ready, SnapshotMeta
    from history_store.shard.split import Ranges, Slots, Split
    from history_store.storage.contract import Entry, GroupLog, Round, Storage, StorageCorrupt
    from history_store.visibility.record import VisibilityOp

log = structlog.get_logger("raft")

# While an image is on its way: what the image lacks, or it would come in vain. After a split: the entry.
LOG_BYTES_HELD_MAX = 64 << 20

Waiter = Callable[[ServiceError | None], None]
Send = Callable[[int, "Message"], None]  # (group, message)
RowList = list[tuple[bytes, bytes | None]]


def nobody(error: ServiceError | None) -> None:
    """The waiter of a commit that nobody waits for."""


class LostLeadership(Indefinite):
    """The entry may or may not be committed: another node leads now. The front asks there again."""


class NotLeading(ServiceError):
    """This node does not lead the group (definite: nothing happened). `leader` is who does, 0 if unknown."""

    def __init__(self, leader: int, group: int = 0) -> None:
        super().__init__(Code.UNAVAILABLE, "this node does not lead the shard")
        self.leader = leader
        self.group = group


class NotReadable(ServiceError):
    """Whether this node still leads has to be confirmed first: ask again from `group.when_readable`."""

    def __init__(self, group: Group) -> None:
        super().__init__(Code.UNAVAILABLE, "the shard's quorum has not answered yet")
        self.group = group


class Stored(NamedTuple):
    """What a group's rows in storage are exact for."""

    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here
    term: int
    conf: bytes


class Images(Protocol):
    """Who moves whole images between replicas (replicas/snapshots.py)."""

    def opened(self, group: Group) -> None:
        """The node has this replica."""

    def wanted(self, group: Group, message: Message) -> None:
        """A replica needs what our log no longer has."""

    def install(self, group: Group, meta: SnapshotMeta, batch: Round) -> None:
        """The core took an image: put what makes it the group's rows into the round."""

    def installed(self, group: Group) -> None:
        """That round is durable."""

    def closed(self, group: Group) -> None:
        """The node has this replica no more."""

    def hiding(self, group: int | None) -> bool:
        """Whether List still shows what the group (None: any) had before, and has no more."""


class Repairs(Protocol):
    """Who sees to damaged rows (replicas/repair.py)."""

    advice: str  # what to do about a damaged file

    def found(self, group: Group, error: StorageCorrupt) -> None:
        """A group's rows are damaged, and it has stopped to lead."""

    def mended(self, group: Group) -> None:
        """It has rows that are whole."""


class Splits(Protocol):
    """Who brings rows over to the other half of a shard (shards/splitting.py)."""

    def opening(self, group: Group) -> None:
        """The node is making this replica; nothing was applied yet."""

    def applied(self, group: Group, split: Split) -> None:
        """An entry that splits the group is committed, and its rows have been taken."""

    def parent_of(self, child: int) -> Group | None:
        """The replica here of the shard that this one was split from a moment ago."""

    def gone_from(self, group: Group, index: int) -> Ranges:
        """Slots whose rows storage has of the group, at that entry, although they are not its any more."""

    def heirs(self, slot: int, group: int) -> list[int]:
        """To which groups the slot went from this one, and on: as the logs say, before the table does."""

    def replaced(self, group: Group) -> None:
        """An image takes the place of all rows in the round that is being formed."""

    def installed(self, group: Group) -> None:
        """That round is durable."""


class Group:
    """The replica of one group."""

    def __init__(
        self,
        committer: Committer,
        group: int,
        storage: Storage,
        found: GroupLog | None,
        dice: Dice,
        config: Config,
        send: Send | None = None,
    ) -> None:
        self.id = group
        self.committer = committer
        generation = group
        self.stored = Stored(0, 0, b"")
        if found is not None:
            generation, found.conf = snapshot.unwrap_conf(group, found.conf)
            self.stored = Stored(found.applied, found.applied_term, found.conf)
        self.damage = noted(storage, group)  # what of its rows is not what was written: it never leads then
        self.rows = Rows(cast("Storage", Reads(storage, self.damaged)), group, generation)
        if generation != group:
            waiting = snapshot.records_of(generation)
            self.rows.records_wait = next(storage.scan(*waiting, 1), None) is not None
        self.raft = RawNode(config, dice, found)
        self.raft.bar(barred=bool(self.damage))
        self.log_bytes_max = config.log_bytes_max  # kept for replicas that lag; more, and they get an image
        self.leading = False
        self.on_lead: Callable[[], None] = _nothing
        self.on_lose: Callable[[], None] = _nothing
        self.on_leader: Callable[[], None] = _nothing  # another node leads, or none that is known
        # Rows of committed entries, also on followers; True: this node proposed them, in its present term.
        self.on_rows: Callable[[RowList, bool], None] | None = None
        self.on_image: Callable[[], None] = _nothing  # all rows may have changed, without entries
        self.holds: dict[int, int] = {}  # by peer: the index of the image that is on its way there
        self.hold_from = 0  # the log keeps this entry and what is behind it; 0 = whatever it needs
        self.given: Slots | None = None  # that another shard has by now: nothing of them is to be found here
        self.frozen = False  # the last entry splits the shard: nothing comes behind it before it is applied
        self.leaving: Slots | None = None  # what that entry gives up, and others may have before we apply it
        self._send = send
        self._leads_from = 0  # index of the first entry of our term; 0 = we are not elected
        self._leads_term = 0
        self._waiters: deque[tuple[int, Waiter, bool]] = deque()
        self._written: dict[int, tuple[RowList, list[VisibilityOp]]] = {}
        self._written_bytes = 0  # of these entries
        self._written_bytes_max = config.uncommitted_bytes_max
        self._reads: dict[bytes, Waiter] = {}  # asked, and not confirmed
        self._reads_term = 0  # in which the first of them was
        self._current: list[tuple[int, Waiter]] = []  # confirmed, and the index not yet applied here
        self._read_number = 0
        self.proposed = 0
        self.committed = 0  # as far as waiters were told; the leader of a shard tells before it applies
        self.applied = 0
        if found is not None:
            self.proposed = self.committed = self.applied = found.applied
        self.rows.follow()
        if committer.splits is not None:
            committer.splits.opening(self)

    def recover(self) -> None:
        """A replica without others leads at once if it may; others wait for an election."""
        voters = self.raft.conf.voters
        if voters != (self.committer.node_id,) or self.raft.conf.outgoing:
            return
        if not self.raft.campaign():
            return  # it promised a leader of before not to; its clock will tell when that is over
        if self.committer.running:  # a thread writes, and this one must not: a round, then
            self.committer.mark(self)
            return
        while self.raft.has_ready():
            ready = self.raft.ready()
            self.note_state(ready)
            self.apply(ready.committed_entries)
            self.committer.write_now(self, ready)
            self.apply(self.raft.advance(ready))
        assert self.leading, "the only voter has committed its first entry"

    # ---- what the shard asks

    def propose(self, data: bytes, rows: RowList, visibility: list[VisibilityOp]) -> int:
        """Append; the rows are visible here from now on. Raises a definite error if it cannot be taken."""
        if self.committer.refusal is not None:
            raise self.committer.refusal.with_traceback(None)  # one object is raised again and again
        if not self.leading:
            raise NotLeading(self.raft.leader, self.id)
        if self.frozen:
            raise NotLeading(0, self.id)  # until our own disk has the split: milliseconds if it is well
        if self._written_bytes and self._written_bytes + len(data) > self._written_bytes_max:
            # A quorum of others may be quick while our disk is slow, and holds nobody up.
            why = f"{self._written_bytes} bytes are not applied yet: the quorum or the disk is slow"
            raise ServiceError(Code.RESOURCE_EXHAUSTED, f"the shard takes no writes now: {why}")
        try:
            index = self.raft.propose(data)
        except NotLeader as error:  # noticed by the core, not yet by us
            raise NotLeading(error.leader_hint, self.id) from error
        except RaftError as error:
            if self.raft.transferee:  # another node leads in a moment: the front asks there
                raise NotLeading(0, self.id) from error
            raise ServiceError(Code.RESOURCE_EXHAUSTED, f"the shard takes no writes now: {error}") from error
        self.proposed = index
        self.rows.propose(index, rows)
        self._written[index] = (rows, visibility)
        self._written_bytes += len(data)
        self.committer.mark(self)
        return index

    def propose_split(self, data: bytes, rows: RowList, leaving: Slots | None) -> None:
        """As `propose`; nothing more is taken until it is applied, or another leads.

        Nor is anything asked here of the slots that leave: with a slow disk others may have applied it
        before, and serve them.
        """
        self.propose(data, rows, [])
        self.frozen = True
        self.leaving = leaving

    def lead_anew(self) -> None:
        """Part of what the leader remembers is of rows that are gone: as if another had led meanwhile."""
        self.frozen, self.leaving = False, None
        if self.leading:
            self.on_lose()
            self.on_lead()

    def when_committed(self, waiter: Waiter, *, patient: bool = False, index: int | None = None) -> None:
        """Call back when everything proposed so far is committed (at once if it is, or if `index` is).

        While the disk takes no writes a waiter hears an indefinite error, since a client must not hang; a
        patient one (the node's own doings) waits until it is true. Both hear `LostLeadership`.
        """
        if self.committed >= (self.proposed if index is None else index):
            waiter(None)
        elif self.committer.refusal is not None and not patient:
            waiter(Indefinite(f"this waits for the disk: {self.committer.refusal.message}"))
        else:
            self._waiters.append((self.proposed, waiter, patient))

    @property
    def readable(self) -> bool:
        """Whether what is committed here is all that is committed anywhere, for certain, at this moment."""
        return self.leading and self.read_index_now() is not None

    def read_index_now(self) -> int | None:
        """What a read must see applied, if that is certain at once; None: a quorum has to be asked."""
        self.committer.catch_up()
        return self.raft.read_index_now()

    def when_readable(self, waiter: Waiter) -> None:
        """Call back when a quorum has confirmed that this node still leads. NotLeading, LostLeadership."""
        if not self.leading:
            waiter(NotLeading(self.raft.leader, self.id))
            return
        if self.read_index_now() is not None:
            waiter(None)
            return
        self.when_current(waiter)

    def when_current(self, waiter: Waiter) -> None:
        """Call back when everything that is committed anywhere at this moment is applied here, leader or not.

        ServiceError UNAVAILABLE if that cannot be found out: no leader, or it changed meanwhile.
        """
        now = self.read_index_now() if self.leading else None
        if now is not None:
            if now <= self.committed:
                waiter(None)
            else:  # what follows from the meta group's entries comes about where they are applied
                self._current.append((now, waiter))
                self.committer.mark(self)
            return
        if not self._reads:
            self._reads_term = self.raft.term
        self._read_number += 1
        context = self._read_number.to_bytes(8, "big")
        self._reads[context] = waiter
        try:
            self.raft.read_index(context)
        except NotLeader as error:
            del self._reads[context]
            waiter(NotLeading(error.leader_hint, self.id))
            return
        except RaftError as error:
            del self._reads[context]
            waiter(ServiceError(Code.UNAVAILABLE, f"group {self.id} cannot confirm a read: {error}"))
            return
        self.committer.mark(self)

    # ---- what the committer asks

    def collect(self, batch: Round, ready: Ready) -> None:
        """Put a Ready into a round."""
        if ready.snapshot is not None:
            assert self.committer.images is not None, "an image came from nowhere"
            self.committer.images.install(self, ready.snapshot, batch)
        if ready.entries:
            batch.entries.append((self.id, ready.entries))
        if ready.hard_state is not None:
            batch.hard_states.append((self.id, ready.hard_state))

    def compactable(self, index: int, term: int) -> tuple[int, int] | None:
        """Up to where (index, term) the log may be forgotten once rows up to `index` are stored."""
        raft = self.raft
        if self.damage and raft.log_bytes <= LOG_BYTES_HELD_MAX:
            return None  # an image that comes for the rows may be as of any of these
        if raft.is_alone:
            return index, term
        # Others may lag a little: an entry is cheaper to send than an image. Their lag is bounded by bytes.
        low = raft.lowest_match(index)
        if raft.log_bytes > self.log_bytes_max:
            held = self.holds and raft.log_bytes <= LOG_BYTES_HELD_MAX
            low = min(index, *self.holds.values()) if held else index
        if self.hold_from and raft.log_bytes <= LOG_BYTES_HELD_MAX:
            low = min(low, self.hold_from - 1)
        if low <= raft.compacted:
            return None
        return low, raft.term_of(low)

    def send(self, messages: list[Message]) -> None:
        """Messages to the other replicas."""
        if messages:
            assert self._send is not None, "a replica without others has nobody to write to"
            for message in messages:
                if message.kind is Kind.SNAPSHOT and self.committer.images is not None:
                    self.committer.images.wanted(self, message)
                else:
                    self._send(self.id, message)

    @property
    def conf_stored(self) -> bytes:
        """Members and generation, as they go with `applied`."""
        return snapshot.wrap_conf(self.id, self.rows.generation, self.raft.conf_bytes)

    def note_stored(self, stored: Stored) -> None:
        """Storage has the rows up to there."""
        if stored.index > self.stored.index:
            self.stored = stored

    def note_image(self, stored: Stored) -> None:
        """An image is in place, durable: all rows are others than before."""
        self.note_stored(stored)
        self.committed = self.applied = self.proposed = stored.index
        self.on_image()

    def note_state(self, ready: Ready) -> None:
        """Who leads may have changed, and reads may have been confirmed."""
        raft = self.raft
        if self.leading and raft.is_alone and not ready.read_states:
            return  # nobody else can lead
        self.note_loss()
        if not self._leads_from and raft.is_leader and not self.damage:
            self._leads_from = raft.last_index  # the entry that begins our term: nothing was proposed yet
            self._leads_term = raft.term
        if ready.soft_state is not None:
            self.on_leader()
        other = raft.term != self._reads_term or (ready.soft_state is not None and not raft.is_leader)
        if self._reads and other:
            # What was asked of the leader before may never be answered, nor by the same one in a later term.
            reads, self._reads = self._reads, {}
            for waiter in reads.values():
                notify(waiter, NotLeading(0 if raft.is_leader else raft.leader, self.id))
        for state in ready.read_states:
            found = self._reads.pop(state.context, None)
            if found is not None:
                self._current.append((state.index, found))

    def note_loss(self) -> None:
        """Another may lead by now: that does not wait for our disk."""
        raft = self.raft
        if self._leads_from and (raft.term != self._leads_term or not raft.is_leader):
            self._lose()

    def apply(self, entries: list[Entry]) -> None:
        """These entries are committed: rows may be stored; waiters hear of it in `tell`."""
        written = self._written
        rows = self.rows
        splits = self.committer.splits
        for entry in entries:
            known = written.pop(entry.index, None)
            if known is not None:
                self._written_bytes -= len(entry.data)
                rows.commit(entry.index, entry.term, known[0], known[1], len(entry.data))
            elif entry.kind == DATA:
                rows.receive(entry)
            else:
                rows.commit(entry.index, entry.term, [], [], 0)
            self.applied = entry.index
            if entry.index > self.committed:
                self.committed = entry.index
            if splits is not None and entry.kind == DATA and image.is_split(entry.data):
                for found in split.splits_in(image.decode(entry.data).rows):
                    splits.applied(self, found)
            if self.on_rows is not None and entry.kind == DATA:
                if known is not None:
                    self.on_rows(known[0], True)
                else:
                    self.on_rows(image.decode(entry.data).rows, False)
        if self._leads_from and not self.leading and self.applied >= self._leads_from:
            self.note_loss()  # the entry that begins our term may be committed by who leads after us
            if self._leads_from:
                self._lead()

    def tell(self) -> None:
        """Call the waiters whose entries are committed.

        The leader of a shard has what it proposed before its eyes, so it need not apply it first, which
        would wait for its own disk (Raft thesis, 10.2.1: a quorum of others may have it before).
        """
        raft = self.raft
        if raft.committed > self.committed and self._sees_what_is_committed():
            if raft.committed > raft.stable:
                reached("commit before our own disk")
            self.committed = raft.committed
        waiters, committed = self._waiters, self.committed
        while waiters and waiters[0][0] <= committed:
            notify(waiters.popleft()[1], None)
        if self._current:
            ready = [waiter for index, waiter in self._current if index <= committed]
            self._current = [item for item in self._current if item[0] > committed]
            for waiter in ready:
                notify(waiter, None)

    def _sees_what_is_committed(self) -> bool:
        """Whether all that is committed behind `applied` was proposed here, as transactions of a shard."""
        raft = self.raft
        return self.leading and self.on_rows is None and raft.is_leader and raft.term == self._leads_term

    def fail_waiters(self, error: ServiceError) -> None:
        """The round cannot be written now: whoever is not patient hears that it may or may not happen."""
        waiters, self._waiters = self._waiters, deque()
        for index, waiter, patient in waiters:
            if patient:
                self._waiters.append((index, waiter, True))
            else:
                notify(waiter, error)

    def close(self) -> None:
        """The node has this replica no more: whoever waits hears so."""
        self._lose()
        current, self._current = self._current, []
        for _, waiter in current:
            notify(waiter, NotLeading(0, self.id))

    # ---- damage (see damage.py)

    def damaged(self, error: StorageCorrupt) -> Exception:
        """A row is not what was written: what is to be raised instead. It is served here no more.

        This may be amid a transaction, so it takes effect in the next turn of the loop. What cannot be read
        while the node is being made, the registry, is the node's end.
        """
        if not self.committer.running:
            return error
        if not self.damage:
            self.damage = str(error)
            self.raft.bar(barred=True)
            self.committer.loop.call_soon(self._damaged, error)
        return NotLeading(0, self.id) if self.has_others else data_loss(self)

    def _damaged(self, error: StorageCorrupt) -> None:
        if self.committer.groups.get(self.id) is not self:
            return  # closed meanwhile
        self._lose()
        if self.committer.damages is not None:
            self.committer.damages.found(self, error)

    @property
    def has_others(self) -> bool:
        """Whether another replica could serve instead of this one."""
        return len(self.raft.conf.voters) > 1

    def mend(self, stored: Stored) -> None:
        """An image of the rows is in place of the damaged ones, durable; entries behind it are in the log."""
        self.stored = stored
        self.damage = ""
        self.raft.bar(barred=False)

    # ---- leadership

    def _lead(self) -> None:
        self.leading = True
        self.proposed = max(self.committed, self.raft.last_index)
        self.rows.lead()
        log.debug("leads", group=self.id, term=self.raft.term, index=self.committed)
        try:
            self.on_lead()
        except ServiceError:
            if not self.damage:  # found just now, by whoever took up what the last leader left
                raise

    def _lose(self) -> None:
        self._leads_from = 0
        led, self.leading = self.leading, False
        self.frozen, self.leaving = False, None
        waiters, self._waiters = self._waiters, deque()
        reads, self._reads = self._reads, {}
        self._written.clear()
        self._written_bytes = 0
        self.rows.follow()
        self.proposed = self.committed
        if led:
            log.info("leads no more", group=self.id, term=self.raft.term, leader=self.raft.leader)
            self.on_lose()
        if waiters:
            reached("writes in doubt at the end of leadership")
        lost = LostLeadership("another node took over the shard meanwhile; whether it was done is not known")
        for _, waiter, _ in waiters:
            notify(waiter, lost)
        gone = NotLeading(self.raft.leader, self.id)
        for waiter in reads.values():
            notify(waiter, gone)


def _nothing() -> None:
    """Nobody wants to know."""


def notify(waiter: Waiter, error: ServiceError | None) -> None:
    """Tell one who waits: whatever is wrong with it, the others are to hear."""
    try:
        waiter(error)
    except Exception:
        log.exception("somebody who waited for the disk could not be told")
