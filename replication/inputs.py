"""Inputs: what came to a run from outside, and has to be made again where the run's branch loses.

Theory of operation. Where two regions wrote to one workflow id at once, the state of one of them counts
(branches.py). What clients were told is accepted by the other one must not be lost with it: signals, updates,
cancellations, terminations, callbacks, and the ends of activities that are still pending. Such inputs are
found among the events of rows, kept by their names, and made again by the region that serves the namespace.

An input has one name, wherever it is. A signal is named by its request id, an update by the run that it was
sent to and its own id, callbacks by their request id, the rest by (run, version, number of the event): the
number is given when the input comes, and stays when it leaves the buffer. A signal that is made again carries
its name as its request id; of the others the run that got them keeps a row with the name (`ITEM_MADE`).

Lineage: Temporal's reapplication of events with its deduplication by (run, event id, version); the request
ids are ours. Invariant: a name stands for one input, and an input for one name.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from hashlib import blake2b

import msgspec
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1.message_pb2 import History, HistoryEvent

from history_store.engine import keys
from replication.shipment import Lineage, Row

E = event_type_pb2

# Who terminates runs without being asked by a client: rules of the engine, which hold on each branch by
# themselves. The last is what a version conflict leaves (branches.py).
CONFLICT = "history-version-conflict"
OURSELVES = frozenset(("history-service", "history-resetter", "namespace-deletion", CONFLICT))
DELETION = "Delete workflow execution"

NAME_DIGEST_BYTES = 16


class Kind(enum.IntEnum):
    """What is made again. The numbers are stored."""

    SIGNAL = 1
    UPDATE = 2
    CANCEL = 3
    OPTIONS = 4
    ACTIVITY = 5  # an end: completed, failed for good, canceled
    TERMINATE = 6


KINDS = {
    E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED: Kind.SIGNAL,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED: Kind.UPDATE,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: Kind.UPDATE,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED: Kind.CANCEL,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED: Kind.OPTIONS,
    E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: Kind.ACTIVITY,
    E.EVENT_TYPE_ACTIVITY_TASK_FAILED: Kind.ACTIVITY,
    E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: Kind.ACTIVITY,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: Kind.TERMINATE,
}


class Input(msgspec.Struct, frozen=True, array_like=True):
    """One of them, as it was. New fields go to the end and have defaults."""

    name: str
    kind: Kind
    run_id: str
    event: bytes
    version: int
    number: int  # orders the inputs of one version
    lineage: Lineage = ()  # of the run where an activity ended


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """The row of an input that waits to be made again."""

    namespace_id: str
    workflow_id: str
    input: Input


class Made(msgspec.Struct, frozen=True, array_like=True):
    """The row of a run that was given an input again, or spared it."""

    name: str


PENDING = keys.STREAM + b"i"

encode = msgspec.msgpack.Encoder().encode
decode_pending = msgspec.msgpack.Decoder(Pending).decode
_made = msgspec.msgpack.Decoder(Made).decode


def digest(text: str) -> bytes:
    """A short stand-in for a name in a key."""
    return blake2b(text.encode(), digest_size=NAME_DIGEST_BYTES).digest()


def pending_prefix(slot: bytes, namespace: bytes, workflow_id: str) -> bytes:
    """Where the inputs lie that wait for a workflow id."""
    return PENDING + slot + namespace + digest(workflow_id)


def pending_row(slot: bytes, namespace: bytes, pending: Pending) -> tuple[bytes, bytes]:
    """The row of one of them."""
    key = pending_prefix(slot, namespace, pending.workflow_id) + digest(pending.input.name)
    return key, encode(pending)


def made_suffix(name: str) -> bytes:
    """The item of a run that says that this input is done with."""
    return keys.ITEM_MADE + digest(name)


def made_value(name: str) -> bytes:
    """Its value."""
    return encode(Made(name))


def order(one: Input) -> tuple[bool, bool, int, int, str]:
    """Ends of activities first: a termination closes the run. Terminations last: they do."""
    return one.kind is Kind.TERMINATE, one.kind is not Kind.ACTIVITY, one.version, one.number, one.name


def found_in(run_id: str, rows: Iterable[Row], lineage: Lineage) -> dict[str, Input]:
    """The inputs among a run's rows, of history and of its buffer, by name."""
    found: dict[str, Input] = {}
    for event in events_in(rows):
        one = input_of(run_id, event, lineage)
        if one is not None:
            found.setdefault(one.name, one)
    return found


def names_in(run_id: str, rows: Iterable[Row]) -> set[str]:
    """The names of all inputs that a run has had, made again ones included."""
    kept = list(rows)
    names = {_made(value).name for key, value in kept if value is not None and _item(key) == keys.ITEM_MADE}
    return names | found_in(run_id, kept, ()).keys()


def events_in(rows: Iterable[Row]) -> Iterator[HistoryEvent]:
    """The events among a run's rows."""
    for key, value in rows:
        if value is None:
            continue
        if key[:1] == keys.HISTORY:
            yield from History.FromString(value).events
        elif _item(key) == keys.ITEM_BUFFERED:
            yield HistoryEvent.FromString(value)


def _item(key: bytes) -> bytes:
    return key[19:20] if key[:1] == keys.ITEM else b""


def input_of(run_id: str, event: HistoryEvent, lineage: Lineage) -> Input | None:
    """The input that an event is; None if no rule makes it again."""
    kind = KINDS.get(event.event_type)
    if kind is None:
        return None
    name = f"{run_id}/{event.version}/{event.task_id}"
    if kind is Kind.SIGNAL:
        name = event.workflow_execution_signaled_event_attributes.request_id or name
    elif kind is Kind.UPDATE:
        update_id = _update_id(event)
        if not update_id:
            return None
        name = f"{run_id}/update/{update_id}"
    elif kind is Kind.OPTIONS:
        attached = event.workflow_execution_options_updated_event_attributes.attached_request_id
        name = f"callbacks/{attached}" if attached else name
    elif kind is Kind.TERMINATE:
        ended = event.workflow_execution_terminated_event_attributes
        if ended.identity in OURSELVES or ended.reason == DELETION:
            return None
    return Input(
        name,
        kind,
        run_id,
        event.SerializeToString(),
        event.version,
        event.task_id,
        lineage if kind is Kind.ACTIVITY else (),
    )


def _update_id(event: HistoryEvent) -> str:
    """Of an event that has the update's request: without it another one admitted it, which is an input."""
    if event.event_type == E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED:
        return event.workflow_execution_update_admitted_event_attributes.request.meta.update_id
    accepted = event.workflow_execution_update_accepted_event_attributes
    return accepted.accepted_request.meta.update_id if accepted.HasField("accepted_request") else ""


def activity_of(event: HistoryEvent) -> int:
    """The scheduled event of the activity that ended."""
    match event.event_type:
        case E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            return event.activity_task_completed_event_attributes.scheduled_event_id
        case E.EVENT_TYPE_ACTIVITY_TASK_FAILED:
            return event.activity_task_failed_event_attributes.scheduled_event_id
        case _:
            return event.activity_task_canceled_event_attributes.scheduled_event_id
