"""A workflow id in two regions that wrote to it without knowing of each other: which state counts. Pure.

Theory of operation. Of each run two regions may have different states. Their stamps (shipment.py) say which
one counts: that of the higher version; of one version, the later, which the earlier leads to. So what
several regions know is joined run by run, and the order in which they hear of each other does not matter.
Of the runs that is the current one which was open the latest (`RunState.rank`): what is done to a run
that has ended does not count. A deletion leaves a stamp and a rank as well (`Tomb`).

An open run that is not current is a *zombie*: nothing of it is dispatched, and clients see it terminated.
That follows from its rows alone (`zombified`), so every region has the same rows of it, and no region tells
it to another: an event told would make the loser look newer than the winner. What goes on in its own region
still is stored, and it is a zombie again. If it should win after all, that comes as a state of another
region, where it is none.

Of a losing state nothing is kept but its inputs, which are made again (inputs.py).

Lineage: state-based replication (Shapiro et al., "Conflict-free Replicated Data Types", 2011): the join is a
maximum of each part. Invariant: a join is commutative, associative and idempotent, and never lowers a stamp.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1.message_pb2 import (
    History,
    HistoryEvent,
    WorkflowExecutionTerminatedEventAttributes,
)

from history_store.engine import keys
from history_store.engine.record import record_of
from history_store.engine.run import frame
from history_store.engine.state import (
    RUNNING,
    TERMINATED,
    Action,
    ActivityState,
    CurrentRun,
    RunState,
    TaskRow,
    WakeRow,
)
from history_store.visibility.record import DeleteRecord, VisibilityOp
from replication import inputs, shipment
from replication.inputs import Input, Kind, Pending
from replication.shipment import UNTOLD, Row, Shipment, Stamp

TOMB = keys.STREAM + b"g"
_PENDING_THINGS = (keys.ITEM_ACTIVITY, keys.ITEM_TIMER, keys.ITEM_CHILD, keys.ITEM_EXTERNAL)
_OF_RUN = (keys.RUN, keys.ITEM, keys.HISTORY)

_pack = msgspec.msgpack.Encoder().encode
_state = msgspec.msgpack.Decoder(RunState).decode
_current = msgspec.msgpack.Decoder(CurrentRun).decode
_task = msgspec.msgpack.Decoder(TaskRow).decode
_action = msgspec.msgpack.Decoder(Action).decode
_activity = msgspec.msgpack.Decoder(ActivityState).decode

Rows = dict[bytes, bytes]


class Tomb(msgspec.Struct, frozen=True, array_like=True):
    """What is left of a run that was deleted, so that what others still tell of it does not bring it back."""

    namespace_id: str
    workflow_id: str
    run_id: str
    stamp: Stamp
    rank: Stamp
    at: int  # nanoseconds since 1970


decode_tomb = msgspec.msgpack.Decoder(Tomb).decode


def tomb_row(slot: bytes, tomb: Tomb) -> tuple[bytes, bytes]:
    """Its row."""
    return TOMB + slot + keys.raw_id(tomb.run_id), _pack(tomb)


@dataclass
class Held:
    """All that a region has of a workflow id. Rows of a run: r i h, and those of q t x that are about it."""

    namespace_id: str
    workflow_id: str
    runs: dict[str, RunState] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)  # by run id; never changed in place
    tombs: dict[str, Tomb] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)  # that wait, by name
    current: str = ""  # run id

    @property
    def slot(self) -> bytes:
        """The workflow id's slot, as keys have it."""
        return keys.slot_bytes(keys.slot_of(self.namespace_id, self.workflow_id))

    @property
    def top(self) -> Stamp:
        """The highest rank."""
        return max(self._ranks(), default=((0, 0), False, 0, ""))[0]  # type: ignore[return-value]

    @property
    def leading(self) -> str:
        """The run that has the workflow id, "" if that was deleted or there is none."""
        return max(self._ranks(), default=((0, 0), False, 0, ""))[3]

    def _ranks(self) -> Iterator[tuple[tuple[int, int], bool, int, str]]:
        for s in self.runs.values():  # of two that one transaction changed, one has ended
            yield s.rank, s.zombie or s.status == RUNNING, s.start_time, s.run_id
        for tomb in self.tombs.values():
            yield tomb.rank, False, 0, ""

    def stamp(self, run_id: str) -> Stamp | None:
        """Of a run, deleted ones included."""
        state, tomb = self.runs.get(run_id), self.tombs.get(run_id)
        if state is not None:
            return shipment.stamp_of(state.told)
        return tomb.stamp if tomb is not None else None

    def contains(self, run_id: str, stamp: Stamp) -> bool:
        """Whether a change of a run is part of what is here."""
        state, tomb = self.runs.get(run_id), self.tombs.get(run_id)
        if state is not None:
            return shipment.contains(state.told, stamp)
        return tomb is not None and tomb.stamp >= stamp

    def live(self) -> list[str]:
        """The runs that are no zombies: what they were given counts as delivered."""
        return [run_id for run_id, state in self.runs.items() if not state.zombie]

    def copy(self) -> Held:
        """Another one to be changed."""
        return replace(
            self,
            runs=dict(self.runs), rows=dict(self.rows), tombs=dict(self.tombs), inputs=dict(self.inputs),
        )  # fmt: skip

    def put(self, run_id: str, rows: Rows) -> None:
        """A run is this now."""
        self.rows[run_id] = rows
        self.runs[run_id] = _state(rows[keys.run(self.slot, keys.raw_id(run_id))])

    def drop(self, run_id: str) -> None:
        """It is no more."""
        self.rows.pop(run_id, None)
        self.runs.pop(run_id, None)

    def flat(self) -> Rows:
        """All of it as rows."""
        namespace, slot = keys.raw_id(self.namespace_id), self.slot
        found: Rows = {}
        for rows in self.rows.values():
            found |= rows
        found.update(tomb_row(slot, tomb) for tomb in self.tombs.values())
        found.update(
            inputs.pending_row(slot, namespace, Pending(self.namespace_id, self.workflow_id, one))
            for one in self.inputs.values()
        )
        if self.current:
            key = keys.current(slot, namespace, self.workflow_id)
            found[key] = _pack(_pointer(self.runs[self.current]))
        return found


def _pointer(s: RunState) -> CurrentRun:
    return CurrentRun(
        s.run_id, s.status, s.start_request_id, s.start_time, s.close_time, s.first_run_id, s.earlier_starts
    )


def of_rows(namespace_id: str, workflow_id: str, rows: Iterable[tuple[bytes, bytes]]) -> Held:
    """What a region has, from its rows."""
    held = Held(namespace_id, workflow_id)
    kept = list(rows)
    raws: dict[bytes, str] = {}
    for key, value in kept:
        if key[:1] == keys.RUN:
            state = _state(value)
            held.runs[state.run_id] = state
            held.rows[state.run_id] = {}
            raws[key[3:19]] = state.run_id
    for key, value in kept:
        if key[:2] == TOMB:
            tomb = decode_tomb(value)
            held.tombs[tomb.run_id] = tomb
        elif key[:2] == inputs.PENDING:
            one = inputs.decode_pending(value).input
            held.inputs[one.name] = one
        elif key[:1] == keys.CURRENT:
            held.current = _current(value).run_id
        else:
            run_id = _run_of(key, value, raws)
            if run_id in held.rows:
                held.rows[run_id][key] = value
    return held


def _run_of(key: bytes, value: bytes, raws: dict[bytes, str]) -> str:
    kind = key[:1]
    if kind in _OF_RUN:
        return raws.get(key[3:19], "")
    if kind == keys.WAKE:
        return raws.get(key[9:25], "")
    if kind == keys.TASK:
        return _task(value).run_id
    if kind == keys.ACTION:
        return _action(value).run_id
    return ""


def task_keys(state: RunState, rows: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """The keys of a run's waiting tasks."""
    if state.task is not None and state.task.task_key:
        yield state.task.task_key
    for key, value in rows:
        if key[:1] == keys.ITEM and key[19:20] == keys.ITEM_ACTIVITY:
            activity = _activity(value)
            if activity.task_key:
                yield activity.task_key


# ---- what another region's entry is to what is here


class Verdict(enum.Enum):
    """What to do with an entry that does not fit as a whole."""

    KNOWN = enum.auto()  # all of it came by another way
    TAKE = enum.auto()  # what fits is stored, of the rest the inputs
    FETCH = enum.auto()  # the sender's state is newer, on another branch: that is needed
    WAIT = enum.auto()  # it follows on something that may be on its way


def judge(held: Held, sent: Shipment) -> Verdict:
    """Compare an entry to what is here."""
    newest = max((change.after for change in sent.changes), default=UNTOLD)
    known = 0
    for change in sent.changes:
        here = held.stamp(change.run_id)
        if held.contains(change.run_id, change.after):
            known += 1
        elif (here != change.before or change.run_id in held.tombs) and (here is None or change.after > here):
            parted = change.before is None or held.contains(change.run_id, change.before)
            return Verdict.FETCH if parted else Verdict.WAIT
    if known == len(sent.changes):
        return Verdict.KNOWN
    zombie = any(change.run_id in held.runs and held.runs[change.run_id].zombie for change in sent.changes)
    return (
        Verdict.FETCH if zombie and newest > held.top else Verdict.TAKE
    )  # its tasks are gone: it cannot go on


def take(held: Held, sent: Shipment, retention: int) -> Held:
    """What is here with those runs of an entry that fit, and the inputs of the others. After `judge`."""
    after = held.copy()
    raws = {keys.raw_id(change.run_id): change.run_id for change in sent.changes}
    candidates = dict(held.inputs)
    for change in sent.changes:
        run_id = change.run_id
        if held.contains(run_id, change.after):
            continue
        rows = [row for row in sent.rows if row[1] is None or _run_of(row[0], row[1], raws) == run_id]
        if held.stamp(run_id) == change.before:
            _store(after, run_id, rows)
        else:
            lineage = _lineage_in(rows, keys.run(held.slot, keys.raw_id(run_id)))
            candidates |= inputs.found_in(run_id, rows, lineage)
    for key, value in sent.rows:
        if key[:2] == TOMB and value is not None:
            tomb = decode_tomb(value)
            if tomb.run_id not in after.runs:
                after.tombs[tomb.run_id] = tomb
    return settled(held, after, candidates, retention)


def _store(held: Held, run_id: str, rows: list[Row]) -> None:
    """A run goes on as another region's rows say."""
    kept = dict(held.rows.get(run_id, {}))
    state = held.runs.get(run_id)
    if state is not None and state.zombie:  # the end that a zombie shows was never told
        kept.pop(keys.history(held.slot, keys.raw_id(run_id), state.branch, state.completion_batch_id), None)
    for key, value in rows:
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value
    if keys.run(held.slot, keys.raw_id(run_id)) in kept:
        held.put(run_id, kept)
    else:
        held.drop(run_id)


def _lineage_in(rows: list[Row], key: bytes) -> shipment.Lineage:
    value = next((value for at, value in rows if at == key), None)
    return _state(value).told if value is not None else ()


# ---- joining states


def join(here: Held, there: Held, retention: int) -> Held:
    """What is here with what another region has. Of runs with the stamp that is here it may send no more."""
    after = here.copy()
    candidates = here.inputs | there.inputs
    for run_id, tomb in there.tombs.items():
        known = after.tombs.get(run_id)
        if known is None or known.stamp < tomb.stamp:
            after.tombs[run_id] = tomb
    for run_id, state in there.runs.items():
        known_state = here.runs.get(run_id)
        stamp = shipment.stamp_of(state.told)
        before = shipment.stamp_of(known_state.told) if known_state is not None else None
        revived = before == stamp and known_state is not None and known_state.zombie and not state.zombie
        if before is None or before < stamp or revived:
            after.put(run_id, there.rows[run_id])
        if before is not None and before > stamp:
            candidates |= inputs.found_in(run_id, there.rows[run_id].items(), state.told)
    for run_id, tomb in list(after.tombs.items()):
        if run_id in after.runs:
            if tomb.stamp >= shipment.stamp_of(after.runs[run_id].told):
                after.drop(run_id)
            else:
                del after.tombs[run_id]
    return settled(here, after, candidates, retention)


def settled(before: Held, after: Held, candidates: dict[str, Input], retention: int) -> Held:
    """What is here then: open runs that are not current are zombies, and inputs that no run has wait."""
    after.current = after.leading
    found = dict(candidates)
    for run_id in before.runs.keys() | after.runs.keys():
        old, new = before.rows.get(run_id), after.rows.get(run_id)
        if old is not None and old is not new:
            found |= inputs.found_in(run_id, old.items(), before.runs[run_id].told)
        if new is not None and old is not new:
            found |= inputs.found_in(run_id, new.items(), after.runs[run_id].told)
    for run_id, state in list(after.runs.items()):
        if state.status == RUNNING and run_id != after.current:
            found |= inputs.found_in(run_id, after.rows[run_id].items(), state.told)
            after.put(run_id, zombified(after.slot, state, after.rows[run_id], retention))
    after.inputs = wanting(after, found)
    return after


def wanting(held: Held, found: dict[str, Input]) -> dict[str, Input]:
    """Those inputs that no run has that counts."""
    if not found:
        return {}
    had: set[str] = set()
    for run_id in held.live():
        had |= inputs.names_in(run_id, held.rows[run_id].items())
    return {
        name: one
        for name, one in found.items()
        if name not in had and (one.kind is not Kind.ACTIVITY or ends_here(held, one))
    }


def ends_here(held: Held, end: Input) -> bool:
    """Whether the activity that ended elsewhere is the very one that is pending here.

    It is if its run had the same history up to where it was scheduled.
    """
    state = held.runs.get(end.run_id)
    if state is None or state.status != RUNNING:
        return False
    rows, raw = held.rows[end.run_id], keys.raw_id(end.run_id)
    scheduled_id = inputs.activity_of(HistoryEvent.FromString(end.event))
    item = rows.get(keys.items(held.slot, raw) + keys.ITEM_ACTIVITY + keys.number(scheduled_id))
    if item is None:
        return False
    batch = rows[keys.history(held.slot, raw, state.branch, _activity(item).batch_id)]
    scheduled = next(e for e in History.FromString(batch).events if e.event_id == scheduled_id)
    if scheduled.version == end.version:
        return True
    here = dict(state.told).get(scheduled.version, 0)
    return dict(end.lineage).get(scheduled.version, -1) >= here


# ---- zombies


def zombified(slot: bytes, state: RunState, rows: Rows, retention: int) -> Rows:
    """The rows of an open run that has lost its workflow id."""
    raw = keys.raw_id(state.run_id)
    last_batch = max(key for key in rows if key[:1] == keys.HISTORY)
    last = History.FromString(rows[last_batch]).events[-1]
    ended = HistoryEvent(
        event_id=state.next_event_id,
        event_time=Timestamp(seconds=last.event_time.seconds, nanos=last.event_time.nanos),
        event_type=event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        version=state.version,
        workflow_execution_terminated_event_attributes=WorkflowExecutionTerminatedEventAttributes(
            reason="version conflict: another region's run has the workflow id", identity=inputs.CONFLICT
        ),
    )
    data = frame(ended.SerializeToString())
    closed = ended.event_time.ToNanoseconds()
    after = msgspec.structs.replace(
        state,
        status=TERMINATED, zombie=True, task=None, close_time=closed, wake=closed + retention,
        completion_batch_id=state.next_event_id, next_event_id=state.next_event_id + 1,
        history_size_bytes=state.history_size_bytes + len(data),
    )  # fmt: skip
    kept = {key: value for key, value in rows.items() if _stays(key)}
    kept[keys.history(slot, raw, state.branch, state.next_event_id)] = data
    kept[keys.run(slot, raw)] = _pack(after)
    owner = WakeRow(state.namespace_id, state.workflow_id, state.run_id)
    kept[keys.wake(after.wake, raw)] = _pack(owner)
    return kept


def _stays(key: bytes) -> bool:
    kind = key[:1]
    if kind == keys.ITEM:
        return key[19:20] not in _PENDING_THINGS
    return kind in _OF_RUN


# ---- what to write


def changes(before: Held, after: Held) -> tuple[list[Row], list[VisibilityOp], set[str]]:
    """The rows and the records that make one of the other, and the runs that are other than before."""
    old, new = before.flat(), after.flat()
    rows: list[Row] = [(key, None) for key in old if key not in new]
    rows += [(key, value) for key, value in new.items() if old.get(key) != value]
    shown: list[VisibilityOp] = []
    changed = set()
    for run_id in before.runs.keys() | after.runs.keys():
        if before.rows.get(run_id) == after.rows.get(run_id):
            continue
        changed.add(run_id)
        state = after.runs.get(run_id)
        shown.append(record_of(state) if state is not None else DeleteRecord(before.namespace_id, run_id))
    return rows, sorted(shown, key=lambda op: op.run_id), changed
