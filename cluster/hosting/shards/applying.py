"""What other regions tell, on its way into one transaction of a shard.

Theory of operation. An entry that begins where the workflow id is here is stored as it is. One that does
not is judged (replication/branches.py): known already; or of a losing branch, so that its inputs are kept
and what fits of it besides; or of a winning branch, or in want of something that another region has still to
tell: then it is parked, and what comes after it for its workflow id behind it. Each new entry is an occasion
to try what is parked again, in the order of its stream.

An entry that cannot be taken at all puts its workflow id into quarantine: its entries are parked as they
come, until an operator has them tried again or dropped. Nothing else is held up.

Invariant: of a stream, the entries of a workflow id are taken in their order, and each once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog
from google.protobuf.message import DecodeError

from cluster.hosting.shards.workflow_rows import Sight, gather
from history_store.engine import keys
from history_store.engine.state import CurrentRun, RunState
from replication import branches, inputs, shipment
from replication.branches import Held, Verdict
from replication.failover.records import Source
from replication.frames import NUMBER_MAX, Entry, Kind, decode_entry, encode_entry
from replication.shipment import UNTOLD, Row, Shipment, Stamp
from replication.versions import owner_of

if TYPE_CHECKING:
    from cluster.hosting.shards.conflicts import ShardConflicts
    from history_store.engine.run import Transaction
    from history_store.visibility.record import VisibilityOp
    from history_store.visibility.sql import Slots
    from replication.log.cursor import Opened

log = structlog.get_logger("streams")

PARKED = keys.STREAM + b"p"
QUARANTINE = keys.STREAM + b"b"

# The kinds of rows that a shipment has.
SHIPPED = frozenset((
    keys.CURRENT, keys.RUN, keys.ITEM, keys.HISTORY, keys.TASK, keys.WAKE, keys.ACTION,
))  # fmt: skip
SHIPPED_ALONG = frozenset((branches.TOMB, inputs.PENDING))

# What taking an entry that is damaged, or was made by a broken rule, may raise. Never what a disk raises.
BAD = (ValueError, KeyError, IndexError, StopIteration, AssertionError, msgspec.MsgspecError, DecodeError)

Workflow = tuple[str, str]  # namespace id, workflow id

_state = msgspec.msgpack.Decoder(RunState).decode
_current = msgspec.msgpack.Decoder(CurrentRun).decode
_pack = msgspec.msgpack.Encoder().encode

ZOMBIE = Stamp(-1, -1)  # nothing begins there


class Parked(NamedTuple):
    """An entry that waits."""

    source: Source
    seq: int
    entry: Entry

    @property
    def key(self) -> bytes:
        """Its row."""
        return parked_key(self.source, self.seq)


class Quarantined(msgspec.Struct, frozen=True, array_like=True):
    """The row of a workflow id that is in quarantine."""

    namespace_id: str
    workflow_id: str
    why: str
    region: int = 0  # who told the entry that is to blame; 0: it is a state
    shard: int = 0
    seq: int = 0


decode_quarantined = msgspec.msgpack.Decoder(Quarantined).decode


class Applying:
    """One transaction's worth of what other regions tell."""

    def __init__(self, conflicts: ShardConflicts, slots: Slots, tx: Transaction) -> None:
        self._conflicts = conflicts
        self._host = conflicts.host
        self._slots = slots
        self._tx = tx
        self._sight = Sight(self._host.rows)
        self.changed: dict[str, Workflow] = {}  # run ids
        # As they are behind this transaction, of the workflow ids that it has to do with.
        self.parked: dict[Workflow, list[Parked]] = {}
        self.quarantined: dict[Workflow, Quarantined | None] = {}  # None: not any more
        self.stuck: dict[Workflow, tuple[Verdict, Source]] = {}
        self.waiting_inputs: dict[Workflow, bool] = {}

    # ---- entries

    def take(self, source: Source, opened: Opened) -> None:
        """All entries of a frame."""
        for ordinal, entry in enumerate(opened.entries):
            shipped = entry.kind in (Kind.EVENTS, Kind.SIDE)
            if shipped and within(slot_of(entry), self._slots):
                self._write(self._host.gates.raised(entry.namespace_id, entry.namespace_version))
                self._entry(Parked(source, opened.frame.first_seq + ordinal, entry))

    def _entry(self, one: Parked) -> None:
        workflow = one.entry.namespace_id, one.entry.workflow_id
        if self._parked(workflow) or self._is_quarantined(workflow):
            self._park(workflow, one)
            self.again(workflow)
            return
        verdict = self._try(workflow, one)
        if verdict is not None:
            self._park(workflow, one)
            self.stuck[workflow] = verdict, one.source

    def again(self, workflow: Workflow) -> None:
        """Try what is parked: of each stream the first, until nothing moves."""
        moved = True
        while moved and not self._is_quarantined(workflow):
            moved = False
            self.stuck.pop(workflow, None)
            tried: set[Source] = set()
            for one in list(self._parked(workflow)):
                if one.source in tried:
                    continue
                tried.add(one.source)
                verdict = self._try(workflow, one)
                if self._is_quarantined(workflow):
                    return
                if verdict is None:
                    self._unpark(workflow, one)
                    moved = True
                elif verdict is Verdict.FETCH or workflow not in self.stuck:
                    self.stuck[workflow] = verdict, one.source

    def _try(self, workflow: Workflow, one: Parked) -> Verdict | None:
        """Take an entry. A verdict: it waits."""
        try:
            return self._taken(workflow, one)
        except BAD as error:
            self._quarantine(workflow, error, one.source, one.seq)
            return Verdict.WAIT

    def _taken(self, workflow: Workflow, one: Parked) -> Verdict | None:
        sent = shipment.unpack(one.entry.payload)
        _check(sent, one.source)
        fits = shipment.fit(sent, lambda run: self._stamp(workflow, run), lambda: self._pointer(workflow))
        newest = max((change.after for change in sent.changes), default=UNTOLD)
        if fits.fits and not (sent.moves_pointer and self._rank(workflow) > newest):
            after = {change.run_id for change in sent.changes}
            self._write(sent.rows, sent.visibility)
            self.changed.update(dict.fromkeys(after, workflow))
            return None
        held = self._held(workflow)
        verdict = branches.judge(held, sent)
        log.info(
            "regions wrote to a workflow id at once", workflow=workflow[1], why=fits.why, verdict=verdict.name
        )
        if verdict is Verdict.KNOWN:
            return None
        if verdict is not Verdict.TAKE:
            return verdict
        self._become(workflow, held, branches.take(held, sent, self._host.retention(workflow[0])))
        return None

    def _stamp(self, workflow: Workflow, run_id: str) -> Stamp | None:
        key = keys.run(keys.slot_bytes(keys.slot_of(*workflow)), keys.raw_id(run_id))
        data = self._sight.get(key)
        if data is None:
            return None
        state = _state(data)
        return ZOMBIE if state.zombie else shipment.stamp_of(state.told)

    def _pointer(self, workflow: Workflow) -> str:
        slot = keys.slot_bytes(keys.slot_of(*workflow))
        data = self._sight.get(keys.current(slot, keys.raw_id(workflow[0]), workflow[1]))
        return _current(data).run_id if data is not None else ""

    def _rank(self, workflow: Workflow) -> tuple[int, int]:
        """Of the current run."""
        key = keys.run(keys.slot_bytes(keys.slot_of(*workflow)), keys.raw_id(self._pointer(workflow)))
        data = self._sight.get(key)
        return _state(data).rank if data is not None else UNTOLD

    # ---- states

    def join(self, workflow: Workflow, there: Held, source: Source, upto: int) -> None:
        """Another region's state, with all that it told of the workflow id up to a number."""
        here = self._held(workflow)
        try:
            joined = branches.join(here, there, self._host.retention(workflow[0]))
            self._become(workflow, here, joined)
        except BAD as error:
            self._quarantine(workflow, error, source, 0)
            return
        for one in list(self._parked(workflow)):
            if one.source == source and one.seq <= upto:
                self._unpark(workflow, one)
        self.again(workflow)

    def _held(self, workflow: Workflow) -> Held:
        return branches.of_rows(*workflow, gather(self._sight, *workflow))

    def _become(self, workflow: Workflow, before: Held, after: Held) -> None:
        rows, visibility, changed = branches.changes(before, after)
        self._write(rows, visibility)
        self.changed.update(dict.fromkeys(changed, workflow))
        self.waiting_inputs[workflow] = bool(after.inputs)

    # ---- what waits

    def _parked(self, workflow: Workflow) -> list[Parked]:
        known = self.parked.get(workflow)
        return known if known is not None else self._conflicts.parked.get(workflow, [])

    def _is_quarantined(self, workflow: Workflow) -> bool:
        if workflow in self.quarantined:
            return self.quarantined[workflow] is not None
        return workflow in self._conflicts.quarantined

    def _park(self, workflow: Workflow, one: Parked) -> None:
        self.parked[workflow] = sorted([*self._parked(workflow), one], key=lambda each: each[:2])
        self._write([(one.key, encode_entry(one.entry))])

    def _unpark(self, workflow: Workflow, one: Parked) -> None:
        self.parked[workflow] = [each for each in self._parked(workflow) if each is not one]
        self._write([(one.key, None)])

    def _quarantine(self, workflow: Workflow, error: Exception, source: Source, seq: int) -> None:
        why = f"{type(error).__name__}: {error}"
        log.error("what another region told cannot be taken; the workflow waits", workflow=workflow, why=why)
        made = self.quarantined[workflow] = Quarantined(*workflow, why, *source, seq)
        self._write([(quarantine_key(workflow), _pack(made))])

    def let_out(self, workflow: Workflow, blamed: Quarantined | None) -> None:
        """End a quarantine: try what is parked, without the entry that is to blame, if one is given."""
        self.quarantined[workflow] = None
        self._write([(quarantine_key(workflow), None)])
        if blamed is not None:
            source = Source(blamed.region, blamed.shard)
            for one in self._parked(workflow):
                if (one.source, one.seq) == (source, blamed.seq):
                    self._unpark(workflow, one)
        self.again(workflow)

    def _write(self, rows: Iterable[Row], visibility: Iterable[VisibilityOp] = ()) -> None:
        kept = list(rows)
        self._sight.latest.update(kept)
        self._tx.rows.extend(kept)
        self._tx.visibility.extend(visibility)


def _check(sent: Shipment, source: Source) -> None:
    """What no region tells that keeps the rules: ValueError."""
    strange = [key for key, _ in sent.rows if key[:1] not in SHIPPED and key[:2] not in SHIPPED_ALONG]
    if strange:
        raise ValueError(f"rows that no shipment has: {strange[0][:2]!r}")
    for change in sent.changes:
        version = change.after.version
        if version and owner_of(version) != source.region:
            raise ValueError(f"version {version} is not for region {source.region} to write at")


def slot_of(entry: Entry) -> int:
    """The slot that an entry is about."""
    return keys.slot_of(entry.namespace_id, entry.workflow_id)


def within(slot: int, slots: Slots) -> bool:
    """Whether it is one of them."""
    return any(first <= slot <= last for first, last in slots)


def parked_key(source: Source, seq: int) -> bytes:
    """The row of an entry that waits."""
    assert 0 < seq <= NUMBER_MAX
    return PARKED + packed(source) + seq.to_bytes(8, "big")


def parked_of(key: bytes, value: bytes) -> Parked:
    """That entry."""
    body = key[len(PARKED) :]
    return Parked(unpacked(body[:5]), int.from_bytes(body[5:13], "big"), decode_entry(value))


def quarantine_key(workflow: Workflow) -> bytes:
    """The row of a workflow id that is in quarantine."""
    namespace_id, workflow_id = workflow
    slot = keys.slot_bytes(keys.slot_of(namespace_id, workflow_id))
    return QUARANTINE + slot + inputs.digest(f"{namespace_id}\0{workflow_id}")


def packed(source: Source) -> bytes:
    """A source in a key."""
    return bytes((source.region,)) + source.shard.to_bytes(4, "big")


def unpacked(data: bytes) -> Source:
    """That source."""
    return Source(data[0], int.from_bytes(data[1:5], "big"))
