"""Runs read from a shard's rows, and their history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from temporalio.api.history.v1.message_pb2 import History, HistoryEvent

from history_store.engine import deadlines, keys
from history_store.engine.run import Run
from history_store.engine.state import (
    ActivityState,
    ChildState,
    CurrentRun,
    ExternalState,
    RunState,
    TimerState,
    UpdateState,
)

if TYPE_CHECKING:
    from history_store.shard.rows import Rows

_core = msgspec.msgpack.Decoder(RunState).decode
_current = msgspec.msgpack.Decoder(CurrentRun).decode
_activity = msgspec.msgpack.Decoder(ActivityState).decode
_timer = msgspec.msgpack.Decoder(TimerState).decode
_child = msgspec.msgpack.Decoder(ChildState).decode
_external = msgspec.msgpack.Decoder(ExternalState).decode
_update = msgspec.msgpack.Decoder(UpdateState).decode


def current(rows: Rows, namespace_id: str, workflow_id: str) -> CurrentRun | None:
    """What a workflow id means now."""
    slot = keys.slot_bytes(keys.slot_of(namespace_id, workflow_id))
    data = rows.get(keys.current(slot, keys.raw_id(namespace_id), workflow_id))
    return _current(data) if data is not None else None


def load(rows: Rows, namespace_id: str, workflow_id: str, run_id: str, retention: int) -> Run | None:
    """The run, or None if there is none (or it belongs to another workflow id). Retention in nanoseconds.

    ValueError if an id is no UUID.
    """
    slot = keys.slot_bytes(keys.slot_of(namespace_id, workflow_id))
    raw = keys.raw_id(run_id)
    data = rows.get(keys.run(slot, raw))
    if data is None:
        return None
    state = _core(data)
    if state.workflow_id != workflow_id or state.namespace_id != namespace_id or state.run_id != run_id:
        return None  # an id written otherwise (in capitals, say) is another name, else one run had two copies
    run = Run(state, slot)
    run.core_bytes = len(data)
    prefix = keys.items(slot, raw)
    for key, value in rows.scan(prefix, keys.prefix_end(prefix)):
        run.note_item(key[len(prefix) :], value)
        _add_item(run, key[len(prefix) : len(prefix) + 1], key[len(prefix) + 1 :], value)
    deadlines.rebuild(run, retention)
    return run


def _add_item(run: Run, kind: bytes, ident: bytes, value: bytes) -> None:
    if kind == keys.ITEM_ACTIVITY:
        activity = _activity(value)
        run.activities[activity.scheduled_id] = activity
        run.activity_ids[activity.activity_id] = activity.scheduled_id
    elif kind == keys.ITEM_TIMER:
        timer = _timer(value)
        run.timers[timer.timer_id] = timer
    elif kind == keys.ITEM_CHILD:
        child = _child(value)
        run.children[child.initiated_id] = child
    elif kind == keys.ITEM_EXTERNAL:
        request = _external(value)
        run.external[request.initiated_id] = request
    elif kind == keys.ITEM_UPDATE:
        update = _update(value)
        run.updates_state[update.update_id] = update
    elif kind == keys.ITEM_SIGNAL_ID:
        run.signal_ids.add(ident.decode())
    elif kind != keys.ITEM_MADE:
        assert kind == keys.ITEM_BUFFERED, f"unknown item kind {kind!r}"
        event = HistoryEvent.FromString(value)
        run.buffered.append(event)
        run.buffered_rows = len(run.buffered)


def history(rows: Rows, run: Run, first: int, bytes_max: int = 0) -> tuple[bytes, int]:
    """Framed events from event `first` on, whole batches from there: (bytes, next event id).

    Stops after the batch that passes `bytes_max` (0: everything). The result is a serialized History.
    """
    if first >= run.tail_first:
        return _from_tail(run, first, bytes_max)
    state = run.state
    parts: list[bytes] = []
    size = 0
    after = first
    start = _batch_start(rows, run, first)
    low = keys.history(run.slot, run.raw, state.branch, start)
    high = keys.history(run.slot, run.raw, state.branch, state.next_event_id)
    for key, value in rows.scan(low, high):
        batch_first = int.from_bytes(key[-8:], "big")
        if batch_first < first:
            value = skip(value, first - batch_first)
        parts.append(value)
        size += len(value)
        after = max(after, first) + count(value)
        if bytes_max and size >= bytes_max:
            break
    return b"".join(parts), after


def _from_tail(run: Run, first: int, bytes_max: int) -> tuple[bytes, int]:
    parts: list[bytes] = []
    size = 0
    after = first
    for batch_first, batch_next, value in run.tail:
        if batch_next <= first:
            continue
        data = skip(value, first - batch_first) if batch_first < first else value
        parts.append(data)
        size += len(data)
        after = batch_next
        if bytes_max and size >= bytes_max:
            break
    return parts[0] if len(parts) == 1 else b"".join(parts), after


def _batch_start(rows: Rows, run: Run, event_id: int) -> int:
    """First event id of the batch that holds the event."""
    low = keys.history(run.slot, run.raw, run.state.branch, 1)
    high = keys.history(run.slot, run.raw, run.state.branch, event_id + 1)
    for key, _ in rows.scan(low, high, 1, reverse=True):
        return int.from_bytes(key[-8:], "big")
    return event_id


def _element(data: bytes, at: int) -> int:
    """Where the framed event that starts at `at` ends."""
    assert data[at] == 0x0A, "history rows are framed events"
    length = shift = 0
    at += 1
    while True:
        byte = data[at]
        length |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return at + length
        shift += 7


def skip(data: bytes, events: int) -> bytes:
    """The framed events after the first `events` ones."""
    at = 0
    for _ in range(events):
        at = _element(data, at)
    return data[at:]


def count(data: bytes) -> int:
    """How many framed events there are."""
    at = found = 0
    end = len(data)
    while at < end:
        at = _element(data, at)
        found += 1
    return found


def cut(data: bytes, events: int) -> bytes:
    """The first `events` framed events."""
    at = 0
    end = len(data)
    for _ in range(events):
        if at >= end:
            break
        at = _element(data, at)
    return data[:at]


def event(rows: Rows, run: Run, batch_id: int, event_id: int) -> HistoryEvent:
    """One event by its id and the first id of its batch. KeyError if it is not there."""
    for batch_first, batch_next, value in run.tail:
        if batch_first <= event_id < batch_next:
            return _pick(value, event_id)
    if run.events and run.events[0].event_id <= event_id <= run.events[-1].event_id:
        return run.events[event_id - run.events[0].event_id]
    key = keys.history(run.slot, run.raw, run.state.branch, batch_id)
    data = rows.get(key)
    if data is None:
        raise KeyError(f"run {run.state.run_id} has no event {event_id} in batch {batch_id}")
    return _pick(data, event_id)


def _pick(data: bytes, event_id: int) -> HistoryEvent:
    for found in History.FromString(data).events:
        if found.event_id == event_id:
            return found
    raise KeyError(f"no event {event_id}")
