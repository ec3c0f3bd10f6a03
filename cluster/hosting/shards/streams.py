"""What a shard has told other regions, and how far it has taken what theirs tell: rows, at its leader.

    o t                       the tip: where the outgoing stream ends (replication/outbox.py)
    o f  first number         a frame of it that is kept
    o c  region  shard        a cursor: how far another region's stream is applied (replication/log/cursor.py)
    o n  region  shard        the newest fence in that stream, as long as it has not ended
    o p, b, g, i              where regions wrote to one workflow id at once (conflicts.py)

Theory of operation. Whatever a transaction has to tell goes into its own Raft entry as rows, numbered by the
leader from the tip. What another region tells is stored with the cursor behind it, again in one entry. So
neither can be done twice or by halves, whoever leads, and there is nothing to take up after a change of
leaders but to read these rows.

The stream of a shard begins when it first has something to tell, or is first asked.

Invariant: the tip and the cursors in memory are those of the rows, proposals included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import structlog

from cluster.hosting.groups.group import nobody
from cluster.hosting.shards.applying import packed, unpacked
from cluster.hosting.shards.conflicts import ShardConflicts, tombs
from cluster.hosting.shards.gates import Gates
from history_store.engine import keys
from history_store.engine.errors import ServiceError
from replication import outbox, shipment
from replication.failover import commands
from replication.failover.readiness import ShardLag
from replication.failover.records import Point, Source
from replication.frames import Entry, Frame, Kind, Stream
from replication.log import cursor as cursors
from replication.shipment import Change, Stamp

if TYPE_CHECKING:
    from cluster.hosting.groups.group import RowList, Waiter
    from cluster.hosting.shards.applying import Parked, Workflow
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Run, Transaction
    from history_store.visibility.sql import Slots
    from replication.failover.commands import Fence
    from replication.log.cursor import Batch, Cursor, Opened
    from replication.outbox import Tip

log = structlog.get_logger("streams")

TIP = keys.STREAM + b"t"
FRAME = keys.STREAM + b"f"
CURSOR = keys.STREAM + b"c"
FENCED = keys.STREAM + b"n"


class Abroad(Protocol):
    """What a shard has to know of regions."""

    @property
    def region(self) -> tuple[int, str]:
        """Index and name of this region."""

    def is_told(self, namespace_id: str) -> bool:
        """Whether other regions hold the namespace, too."""

    def lag(self, shard: int, source: Source) -> tuple[int, int] | None:
        """Entries and milliseconds by which a reader is behind; None: it is not known."""

    def new_incarnation(self) -> int:
        """A number from 1 to NUMBER_MAX, by chance."""

    def told(self, streams: ShardStreams, frames: Sequence[Frame]) -> None:
        """These frames are committed."""


class ShardStreams:
    """The outgoing stream of a shard that is led here, and its cursors in others'."""

    def __init__(self, host: ShardHost, abroad: Abroad) -> None:
        self.host = host
        self.abroad = abroad
        self.tip: Tip | None = None
        self.committed = 0  # numbers up to here may be told
        self.applied: dict[Source, Cursor] = {}
        self._begun: dict[Source, Cursor] = {}  # where streams begin of which nothing is applied yet
        self._fences: dict[Source, Fence] = {}  # of each stream the newest one, until it ends
        self.conflicts = ShardConflicts(host)
        self.acks: outbox.Acks | None = None
        self._load()

    def _load(self) -> None:
        rows = self.host.rows
        data = rows.get(TIP)
        if data is not None:
            self._began(outbox.decode_tip(data))
            assert self.tip is not None
            self.committed = self.tip.seq  # who leads has all that was committed, and nothing else
        for key, value in rows.scan(CURSOR, keys.prefix_end(CURSOR)):
            self.applied[unpacked(key[len(CURSOR) :])] = cursors.decode_cursor(value)
        for key, value in rows.scan(FENCED, keys.prefix_end(FENCED)):
            fence = commands.decode_shard(value)
            assert isinstance(fence, commands.Fence), "nothing else is kept there"
            self._fences[unpacked(key[len(FENCED) :])] = fence

    def _began(self, tip: Tip) -> None:
        self.tip = tip
        self.acks = outbox.Acks(tip.stream)

    @property
    def parked(self) -> dict[Workflow, list[Parked]]:
        """The entries that wait, of each workflow id."""
        return self.conflicts.parked

    @property
    def shard(self) -> int:
        """The number of the shard."""
        return self.host.group.id

    # ---- what gates ask

    def offered(self) -> Point:
        """Where the next entry of the stream will be."""
        tip = self._tip()
        return Point(tip.stream.incarnation, tip.seq + 1)

    def cursors(self) -> dict[Source, Point]:
        """How far each stream is applied that is read."""
        return {
            source: Point(cursor.stream.incarnation, cursor.seq)
            for source, cursor in {**self._begun, **self.applied}.items()
        }

    def fences(self) -> dict[Source, Fence | None]:
        """Of each stream that is read here the newest fence that was applied; None: there is none now."""
        return {source: self._fences.get(source) for source in {**self._begun, **self.applied}}

    def lag(self, source: Source) -> ShardLag:
        """What is not here yet of a stream."""
        behind = self.abroad.lag(self.shard, source)
        parked = len(self.conflicts.parked)
        if behind is None:
            return ShardLag(None, None, parked)
        entries, lag_ms = behind
        return ShardLag(lag_ms * 1_000_000, entries, parked)

    def has_all(self, namespace_id: str) -> bool:  # noqa: ARG002 - none comes to a region later than its runs
        """Whether the runs that the namespace had before it was told of here have all come."""
        return True

    def _tip(self) -> Tip:
        if self.tip is None:
            _, name = self.abroad.region
            self._began(outbox.begin(Stream(name, self.shard, self.abroad.new_incarnation())))
        assert self.tip is not None
        return self.tip

    # ---- telling

    def seal(self, tx: Transaction, told: Sequence[Entry]) -> tuple[list[Frame], Tip | None]:
        """Seal a transaction, with what other regions are to hear of it. No tip: they are to hear nothing."""
        changes = self._stamp(tx)
        tx.seal()
        tx.rows.extend(tombs(tx, changes))
        entries = [*self._entries(tx, changes), *told]
        return self._write(tx.rows, entries) if entries else ([], None)

    def _stamp(self, tx: Transaction) -> list[Change]:
        """Before it is sealed: name what it changes. Empty: it is nobody else's business."""
        if not tx.runs or not self.abroad.is_told(tx.runs[0].state.namespace_id):
            return []
        seq = self._tip().seq + 1
        changes: list[Change] = []
        for run in tx.runs:
            state = run.state
            before = shipment.stamp_of(state.told) if state.transitions else None
            after = Stamp(state.version, seq)
            state.told = shipment.followed(state.told, after)
            if run.running or run.closed_now:
                state.rank = after
            changes.append(Change(state.run_id, after, before))
        return changes

    def _entries(self, tx: Transaction, changes: list[Change]) -> list[Entry]:
        """After it is sealed: what is told of it."""
        if not changes:
            return self._without_run(tx)
        first = tx.runs[0]
        state = first.state
        assert all(run.state.workflow_id == state.workflow_id for run in tx.runs), (
            "a transaction is about one workflow id"
        )
        pointer = self._pointer_before(tx, first)
        payload = shipment.pack(changes, tx.rows, tx.visibility, pointer)
        return [
            Entry(
                Kind.EVENTS,
                state.namespace_id,
                max(change.after.version for change in changes),
                state.workflow_id,
                changes[0].run_id,
                shipment.CODEC,
                payload,
            )
        ]

    def _without_run(self, tx: Transaction) -> list[Entry]:
        """An action is done with, and its run has gone or does not want to know."""
        if tx.about is None or tx.runs or not self.abroad.is_told(tx.about[0]):
            return []
        namespace_id, workflow_id = tx.about
        payload = shipment.pack([], tx.rows, [], None)
        return [Entry(Kind.SIDE, namespace_id, 0, workflow_id, "", shipment.CODEC, payload)]

    def _pointer_before(self, tx: Transaction, run: Run) -> str | None:
        key = keys.current(run.slot, run.namespace_raw, run.state.workflow_id)
        if all(row[0] != key for row in tx.rows):
            return None
        now = self.host.current(run.state.namespace_id, run.state.workflow_id)
        return now.run_id if now is not None else ""

    def _write(self, rows: RowList, entries: Sequence[Entry]) -> tuple[list[Frame], Tip]:
        """The frames of a transaction, and the tip behind them; their rows are added to its own."""
        now_ms = self.host.clock.now_ns() // 1_000_000
        frames, tip = outbox.append(self._tip(), entries, now_ms)
        rows.extend((FRAME + outbox.row_key(frame.first_seq), outbox.encode_row(frame)) for frame in frames)
        rows.append((TIP, outbox.encode_tip(tip)))
        return frames, tip

    def proposed(self, frames: list[Frame], tip: Tip) -> None:
        """They are proposed, and told when they are committed."""
        self.tip = tip
        if frames:
            self.host.group.when_committed(lambda lost: self._committed(frames, lost), patient=True)

    def _committed(self, frames: list[Frame], lost: object) -> None:
        if lost is None and not self.host.retired:
            self.committed = max(self.committed, frames[-1].last_seq)
            self.abroad.told(self, frames)

    def begin(self, waiter: Waiter) -> None:
        """Have a stream, so that others may ask for it."""
        if self.host.rows.get(TIP) is None:
            tx = self.host.begin_beside()
            tx.rows.append((TIP, outbox.encode_tip(self._tip())))
            self.host.commit(tx, waiter)
        else:
            waiter(None)

    def committed_tip(self) -> Tip:
        """The tip as of what is committed: for who begins to write from there."""
        return msgspec.structs.replace(self._tip(), seq=self.committed)

    def kept(self, want: int) -> Iterator[Frame]:
        """Committed frames from this number on, as far as they are kept."""
        low = FRAME + outbox.row_key(want)
        for _, value in self.host.rows.scan(low, keys.prefix_end(FRAME)):
            frame = outbox.decode_row(value)
            if frame.last_seq > self.committed:
                return
            yield frame

    def pulled(self, want: int) -> outbox.Pulled:
        """The answer to a reader."""
        tip = self._tip()
        answer = outbox.answer_pull(tip, want, self.kept(want))
        return msgspec.structs.replace(answer, last_seq=self.committed)

    def trim(self, acknowledged: int, exported: int | None) -> None:
        """Let go of what is in the log, and all others have, or had long enough to take.

        `acknowledged`: what all other regions have applied. `exported`: what the log between regions is now
        known to have; None: no more than the rows say.
        """
        tip = self.tip
        if tip is None or tip.seq == tip.trimmed:
            return
        upto = min(exported or 0, self.committed)
        marked = outbox.mark_exported(tip, upto) if upto > tip.exported else tip
        now_ms = self.host.clock.now_ns() // 1_000_000
        gone, trimmed = outbox.trim(marked, self.kept(tip.trimmed + 1), acknowledged, now_ms)
        if trimmed == tip:
            return
        tx = self.host.begin_beside()
        tx.rows.extend((FRAME + outbox.row_key(first), None) for first in gone)
        tx.rows.append((TIP, outbox.encode_tip(trimmed)))
        self.host.commit(tx, nobody)
        self.tip = trimmed
        if trimmed.lost > tip.lost:
            log.error(
                "the outbox is full: other regions need a snapshot", shard=self.shard, upto=trimmed.lost
            )

    # ---- a split

    def heritage(self, child: int, slots: Slots) -> RowList:
        """What the other half of this shard begins with, where a split is proposed now."""
        rows: RowList = [
            row for kind in (CURSOR, FENCED) for row in self.host.rows.scan(kind, keys.prefix_end(kind))
        ]
        rows += self.conflicts.heritage(slots)
        if self.tip is not None:
            _, name = self.abroad.region
            stream = Stream(name, child, self.abroad.new_incarnation())
            rows.append((TIP, outbox.encode_tip(outbox.part(self.tip, stream))))
        return [*rows]

    # ---- copies, for who cannot read from the beginning

    def end(self) -> Cursor:
        """Where a reader stands that has all that was told so far, proposals included: asked for first."""
        tip = self._tip()
        return cursors.parted(tip.stream, tip.seq, tip.digest, tip.hlc)

    def jump(self, source: Source, cursor: Cursor, waiter: Waiter) -> None:
        """Go on from here with a stream: all that it told before has come as states. Raises as a proposal."""
        tx = self.host.begin_beside()
        tx.rows.append((cursor_key(source), cursors.encode_cursor(cursor)))
        self.host.commit(tx, waiter)
        self.applied[source] = cursor

    # ---- taking

    def cursor(self, source: Source) -> Cursor | None:
        """How far a stream is applied, or where it begins; None: that is not known yet."""
        return self.applied.get(source) or self._begun.get(source)

    def read_from(self, source: Source, cursor: Cursor) -> None:
        """A stream begins here, of which nothing is applied yet."""
        self._begun[source] = cursor

    def apply(self, source: Source, batch: Batch, slots: Slots, waiter: Waiter) -> None:
        """Store what a batch says, and where it ends, in one entry. Raises what a proposal does.

        `slots`: those that this shard has.
        """
        before = self.cursor(source)
        assert before is not None, "nothing is applied of a stream that did not begin"
        after, taken = cursors.advance(before, batch)
        if not taken:
            waiter(None)
            return
        tx = self.host.begin_beside()
        applying = self.conflicts.begin(slots, tx)
        for opened in taken:
            applying.take(source, opened)
        tx.rows.append((cursor_key(source), cursors.encode_cursor(after)))
        fenced = self._fencing(source, taken, tx)
        try:
            self.conflicts.commit(applying, tx, waiter)
        except ServiceError:
            if isinstance(self.host.gates, Gates):
                self.host.gates.load()
            raise
        self.applied[source] = after
        if fenced:
            self._fences.pop(source, None)
            if fenced[-1] is not None:
                self._fences[source] = fenced[-1]

    def _fencing(self, source: Source, taken: Sequence[Opened], tx: Transaction) -> list[Fence | None]:
        """What the source says of handovers: the newest fence from here on, None for none; empty: nothing."""
        before = self._fences.get(source)
        said: list[Fence | None] = []
        for entry in (entry for opened in taken for entry in opened.entries):
            if entry.kind not in (Kind.FENCE, Kind.UNFENCE):
                continue
            command = commands.decode_shard(entry.payload)
            if isinstance(command, commands.Fence):
                before = command
            elif isinstance(command, commands.Unfence) and before and before.number == command.number:
                before = None
            else:
                continue  # the end of an older one
            said = [before]
            tx.rows.append((FENCED + packed(source), entry.payload if before is not None else None))
        return said


def cursor_key(source: Source) -> bytes:
    """The row of a cursor."""
    return CURSOR + packed(source)
