"""Where regions wrote to one workflow id at once: what is parked, states, inputs, quarantine.

    o p  region  shard  seq          an entry that does not fit what is here; its workflow id waits
    o b  slot  workflow id           a workflow id whose entries cannot be taken, and why
    o g  slot  run                   the stamp of a run that was deleted (replication/branches.py)
    o i  slot  workflow id  name     an input that waits to be made again (replication/inputs.py)

Theory of operation. `applying.py` decides about entries; this keeps what it leaves. A workflow id that waits
for another region's state has it fetched: at once if the branches are known to have parted, else after a
patience, since what is missing may be on its way. Where this region serves the namespace, inputs that wait
are made again as soon as nothing else of their workflow id is awaited (`making.py`); elsewhere they are rows,
until it does, or until the rows that come from there show that it was done.

Invariant: what is in memory are the rows, proposals included.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from cluster.hosting.groups.group import nobody
from cluster.hosting.shards import making
from cluster.hosting.shards.applying import (
    PARKED,
    QUARANTINE,
    Applying,
    Parked,
    Quarantined,
    Workflow,
    decode_quarantined,
    parked_of,
    within,
)
from cluster.hosting.shards.workflow_rows import Sight, gather
from history_store.engine import keys
from history_store.engine.errors import ServiceError
from history_store.engine.state import RunState
from replication import branches, inputs
from replication.branches import TOMB, Verdict
from replication.failover.gates import Call
from replication.failover.gates import Verdict as GateVerdict
from replication.frames import encode_entry
from replication.shipment import Stamp

if TYPE_CHECKING:
    from cluster.hosting.groups.group import RowList, Waiter
    from cluster.hosting.shards.host import ShardHost
    from history_store.engine.run import Transaction
    from history_store.visibility.sql import Slots
    from replication.failover.records import Source
    from replication.shipment import Change

log = structlog.get_logger("streams")

PATIENCE_S = 2.0  # what was told before reaches a third region within that time, if it comes at all
ASK_AGAIN_S = 3.0
TOMB_KEPT_NS = 7 * 86_400 * 1_000_000_000  # no stream is read that late
TOMBS_AT_ONCE = 256  # looked at in one turn

# A piece of a copy of a namespace: as much as one entry of the log may well be, unless a slot has more, and a
# look at so many runs as holds nobody up.
COPY_BYTES = 1 << 20
COPY_ROWS = 4096

State = list[tuple[bytes, bytes]]  # the rows of a workflow id

encode_state = msgspec.msgpack.Encoder().encode
_state = msgspec.msgpack.Decoder(RunState).decode
decode_state = msgspec.msgpack.Decoder(State).decode


class Missing(NamedTuple):
    """Another region's state that a workflow id waits for."""

    source: Source
    since: float
    asked: float  # when it was asked for last; -inf: not yet


class Copied(NamedTuple):
    """States of some workflow ids, and where to go on."""

    states: list[tuple[Workflow, bytes]]
    after: int  # the next slot; keys.SLOTS: that was all


class ShardConflicts:
    """Of one led shard."""

    def __init__(self, host: ShardHost) -> None:
        self.host = host
        self.parked: dict[Workflow, list[Parked]] = {}
        self.quarantined: dict[Workflow, Quarantined] = {}
        self.missing: dict[Workflow, tuple[Verdict, Missing]] = {}
        self.waiting_inputs: set[Workflow] = set()
        self.left_out = 0  # inputs that no run could be given
        self._swept = TOMB
        self._load()

    def _load(self) -> None:
        rows, given = self.host.rows, self.host.group.given
        for key, value in rows.scan(PARKED, keys.prefix_end(PARKED)):
            one = parked_of(key, value)
            workflow = one.entry.namespace_id, one.entry.workflow_id
            if given is None or keys.slot_of(*workflow) not in given:
                self.parked.setdefault(workflow, []).append(one)
        for _, value in rows.scan(QUARANTINE, keys.prefix_end(QUARANTINE)):
            found = decode_quarantined(value)
            workflow = found.namespace_id, found.workflow_id
            if given is None or keys.slot_of(*workflow) not in given:
                self.quarantined[workflow] = found
        for _, value in rows.scan(inputs.PENDING, keys.prefix_end(inputs.PENDING)):
            pending = inputs.decode_pending(value)
            workflow = pending.namespace_id, pending.workflow_id
            if given is None or keys.slot_of(*workflow) not in given:
                self.waiting_inputs.add(workflow)
        now = self.host.loop.time()
        for workflow, waiting in self.parked.items():
            if workflow not in self.quarantined:
                self.missing[workflow] = Verdict.WAIT, Missing(waiting[0].source, now, float("-inf"))

    def _is_served(self, namespace_id: str) -> bool:
        """Whether new events may be made of inputs of a losing branch."""
        return self.host.gates.admit(namespace_id, Call.REAPPLY).verdict is GateVerdict.ALLOW

    # ---- what other regions tell

    def begin(self, slots: Slots, tx: Transaction) -> Applying:
        """Take what others tell in this transaction."""
        return Applying(self, slots, tx)

    def commit(self, applying: Applying, tx: Transaction, waiter: Waiter) -> None:
        """Propose what was taken. Raises a definite error if refused."""
        changed = dict(applying.changed)
        self.host.commit_foreign(tx, changed, waiter)
        self.parked.update(applying.parked)
        for workflow in [workflow for workflow in applying.parked if not self.parked[workflow]]:
            del self.parked[workflow]
            self.missing.pop(workflow, None)
        for workflow, quarantined in applying.quarantined.items():
            if quarantined is None:
                self.quarantined.pop(workflow, None)
            else:
                self.quarantined[workflow] = quarantined
                self.missing.pop(workflow, None)
        for workflow, waits in applying.waiting_inputs.items():
            (self.waiting_inputs.add if waits else self.waiting_inputs.discard)(workflow)
        now = self.host.loop.time()
        for workflow, (verdict, source) in applying.stuck.items():
            if workflow in self.quarantined:
                continue
            known = self.missing.get(workflow)
            since = known[1].since if known is not None else now
            asked = known[1].asked if known is not None and known[1].source == source else float("-inf")
            self.missing[workflow] = verdict, Missing(source, since, asked)
        served = {run: w for run, w in changed.items() if self._is_served(w[0])}
        if served or self.waiting_inputs:
            touched = {*changed.values(), *applying.waiting_inputs, *applying.parked}
            self.host.group.when_committed(lambda lost: None if lost else self._go_on(served, touched))

    def _go_on(self, served: dict[str, Workflow], touched: Collection[Workflow]) -> None:
        """What came from elsewhere is committed: what is served here has to go on."""
        if self.host.retired:
            return
        try:
            for workflow in touched:
                self.make(workflow)
            if served:
                self.host.resume(served)
        except ServiceError as error:  # the lead moves, or the disk is full: `turn` tries again
            log.info("inputs that are to be made again wait", why=error.message)

    # ---- inputs that wait

    def make(self, workflow: Workflow) -> None:
        """Make the inputs of a workflow id again, if this region serves it and knows its state."""
        if workflow not in self.waiting_inputs or not self._is_served(workflow[0]):
            return
        if workflow in self.parked:
            return  # the state that counts is still to come
        held = branches.of_rows(*workflow, gather(Sight(self.host.rows), *workflow))
        self.left_out += making.make(self.host, held)
        self.waiting_inputs.discard(workflow)

    def activated(self, namespaces: Collection[str]) -> None:
        """This region serves these namespaces from now on."""
        for workflow in [w for w in self.waiting_inputs if w[0] in namespaces]:
            self.make(workflow)

    # ---- states

    def due(self) -> list[tuple[Workflow, Source, dict[str, Stamp]]]:
        """States to be asked for now, with the runs that are here already: they count as asked for."""
        now = self.host.loop.time()
        found = []
        for workflow, (verdict, missing) in list(self.missing.items()):
            patience = 0.0 if verdict is Verdict.FETCH else PATIENCE_S
            if now < missing.since + patience or now < missing.asked + ASK_AGAIN_S:
                continue
            self.missing[workflow] = verdict, missing._replace(asked=now)
            held = branches.of_rows(*workflow, gather(Sight(self.host.rows), *workflow))
            stamps = {run_id: held.stamp(run_id) for run_id in held.live()}
            known = {run_id: stamp for run_id, stamp in stamps.items() if stamp is not None}
            found.append((workflow, missing.source, known))
        return found

    def state(self, workflow: Workflow, known: dict[str, Stamp]) -> bytes:
        """The state of a workflow id for another region, that has these runs at these stamps."""
        sight = Sight(self.host.rows)
        here = branches.of_rows(*workflow, gather(sight, *workflow, known))
        same = {
            run_id
            for run_id, state in here.runs.items()
            if here.stamp(run_id) == known.get(run_id) and not state.zombie
        }
        return encode_state(gather(sight, *workflow, same))

    def states(self, namespace_id: str, first: int) -> Copied:
        """States of a namespace for a region that is new to it, or has lost the thread: a slot's, or some.

        `first`: the slot to go on with.
        """
        found: dict[Workflow, None] = {}
        size = slot = 0
        low = keys.RUN + keys.slot_bytes(first)
        for count, (key, value) in enumerate(self.host.rows.scan(low, keys.prefix_end(keys.RUN))):
            now = int.from_bytes(key[1:3], "big")
            if now != slot and count and (size >= COPY_BYTES or count >= COPY_ROWS):
                return Copied([(one, self.state(one, {})) for one in found], now)
            slot = now
            state = _state(value)
            if state.namespace_id == namespace_id:
                found[namespace_id, state.workflow_id] = None
                size += len(value) + state.history_size_bytes
        return Copied([(one, self.state(one, {})) for one in found], keys.SLOTS)

    def store_state(
        self, workflow: Workflow, source: Source, upto: int, data: bytes, slots: Slots, waiter: Waiter
    ) -> None:
        """Join another region's state, with all that its stream told of the workflow id up to a number.

        Raises what a proposal does, and ValueError for bytes that are no state.
        """
        if not within(keys.slot_of(*workflow), slots):
            return
        there = branches.of_rows(*workflow, _decoded(data))
        tx = self.host.begin_beside()
        applying = self.begin(slots, tx)
        applying.join(workflow, there, source, upto)
        self.missing.pop(workflow, None)
        self.commit(applying, tx, waiter)

    # ---- operators

    def retry(self, workflow: Workflow, waiter: Waiter = nobody) -> bool:
        """Try again what is parked of a workflow id in quarantine. False: it is in none."""
        return self._let_out(workflow, waiter, skip=False)

    def skip(self, workflow: Workflow, waiter: Waiter = nobody) -> bool:
        """Drop the entry that put a workflow id into quarantine, and try the others. False: it is in none."""
        return self._let_out(workflow, waiter, skip=True)

    def _let_out(self, workflow: Workflow, waiter: Waiter, *, skip: bool) -> bool:
        found = self.quarantined.get(workflow)
        if found is None:
            return False
        if skip:
            log.warning("an operator has an entry of another region dropped", workflow=workflow, entry=found)
        tx = self.host.begin_beside()
        applying = self.begin((), tx)
        applying.let_out(workflow, found if skip else None)
        self.commit(applying, tx, waiter)
        return True

    # ---- now and then

    def turn(self) -> None:
        """Once a second: inputs that could not be made again, and tombs that are old."""
        for workflow in list(self.waiting_inputs):
            self.make(workflow)
        self._sweep()

    def _sweep(self) -> None:
        end = keys.prefix_end(TOMB)
        found = list(self.host.rows.scan(self._swept, end, TOMBS_AT_ONCE))
        self._swept = found[-1][0] + b"\0" if len(found) == TOMBS_AT_ONCE else TOMB
        before = self.host.clock.now_ns() - TOMB_KEPT_NS
        old = [key for key, value in found if branches.decode_tomb(value).at < before]
        if old:
            tx = self.host.begin_beside()
            tx.rows.extend((key, None) for key in old)
            self.host.commit(tx, nobody)

    def heritage(self, slots: Slots) -> RowList:
        """The rows that go with these slots to another shard."""
        found: RowList = [
            (one.key, encode_entry(one.entry))
            for workflow, waiting in self.parked.items()
            if within(keys.slot_of(*workflow), slots)
            for one in waiting
        ]
        for prefix in (QUARANTINE, TOMB, inputs.PENDING):
            rows = self.host.rows.scan(prefix, keys.prefix_end(prefix))
            found += [(key, value) for key, value in rows if within(int.from_bytes(key[2:4], "big"), slots)]
        return found


def tombs(tx: Transaction, changes: Sequence[Change]) -> Iterator[tuple[bytes, bytes]]:
    """The rows that are left of the runs that a transaction deletes. `changes`: what is told of it."""
    for run, change in zip(tx.runs, changes, strict=False):
        if run.deleted:
            s = run.state
            tomb = branches.Tomb(
                s.namespace_id, s.workflow_id, s.run_id, change.after, Stamp(*s.rank), tx.now
            )
            yield branches.tomb_row(run.slot, tomb)


def _decoded(data: bytes) -> State:
    try:
        return decode_state(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not the state of a workflow: {error}") from None
