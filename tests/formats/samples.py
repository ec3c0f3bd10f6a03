"""What lasts or travels, one sample of each: how it is written, and how it is read.

A sample is made from the types alone, each field with a value of its own, so that a field that changes its
place or its type cannot hide behind a default. `FORMATS` of cluster/membership/records.py is the number of
the whole; `tests/fixtures/formats/<number>` holds what a release of that number wrote (generate.py).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, NamedTuple

import msgspec
from google.protobuf.message import Message as Protobuf

from cluster.hosting.calls import deeds
from cluster.hosting.replicas import generations
from cluster.hosting.shards import meta
from cluster.hosting.tasks import tokens
from cluster.membership import records
from cluster.peers import contract, frames, handshake
from history_store.engine import state
from history_store.raft import configuration, messages
from history_store.shard import image, snapshot, split
from history_store.storage import frames as log_rows
from history_store.storage.contract import Entry, HardState
from history_store.visibility import record

SEQUENCE = 7


class Sample(NamedTuple):
    """A format: bytes of one value, and what reads them."""

    name: str
    write: Callable[[], bytes]
    read: Callable[[bytes], Any]


class Filler:
    """Values by type, no two alike."""

    def __init__(self) -> None:
        self._count = 0

    def next(self) -> int:
        self._count += 1
        return self._count

    def value(self, kind: Any) -> Any:
        """Some value of the type."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self.value(next(one for one in arguments if one is not type(None)))
        if origin is list:
            return [self.value(arguments[0])]
        if origin is dict:
            return {self.value(arguments[0]): self.value(arguments[1])}
        if origin is tuple:
            return tuple(self.value(one) for one in arguments if one is not Ellipsis)
        if kind is bool:
            return True
        for plain, make in ((bytes, lambda n: b"b%d" % n), (str, "s{}".format), (float, lambda n: n + 0.5)):
            if kind is plain:
                return make(self.next())
        if isinstance(kind, type) and issubclass(kind, Enum):
            return list(kind)[-1]
        if kind is int:
            return self.next()
        return self._compound(kind)

    def _compound(self, kind: Any) -> Any:
        if issubclass(kind, Protobuf):
            return kind()
        hints = typing.get_type_hints(kind)
        names = kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else kind._fields
        return kind(*(self.value(hints[name]) for name in names))


def pack(value: Any) -> bytes:
    """As the modules that keep such a struct write it."""
    return msgspec.msgpack.encode(value, enc_hook=lambda message: message.SerializeToString())


def plain(value: Any) -> Any:
    """What was read, as JSON can hold it and tests compare it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return "0x" + bytes(value).hex()
    if isinstance(value, Protobuf):
        return plain(value.SerializeToString())
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, msgspec.Struct):
        return [plain(getattr(value, name)) for name in value.__struct_fields__]
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, dict):
        return {str(plain(key)): plain(one) for key, one in value.items()}
    return value


# Rows and what hosting keeps or sends, each a struct that is an array.
STRUCTS: tuple[type[msgspec.Struct], ...] = (
    state.RunState, state.WorkflowTask, state.ActivityState, state.TimerState, state.ChildState,
    state.ExternalState, state.UpdateState, state.CurrentRun, state.TaskRow, state.WakeRow, state.Action,
    record.ExecutionRecord, record.DeleteRecord, meta.Namespace, meta.Settings, generations.Staged,
    split.Split, split.Copy, split.Parting,
)  # fmt: skip
RECORDS = (records.RegionRecord, records.NodeRecord, records.RemoteRecord, records.ShardRecord)
# What is made by functions rather than by filling a type.
OTHERS = (
    Entry, HardState, image.Image, snapshot.Chunk, snapshot.Totals, snapshot.Progress, messages.Message,
    messages.SnapshotMeta, configuration.Change, configuration.ConfChange, configuration.Configuration,
    contract.Identity, handshake.Hello, handshake.Welcome, deeds.Target, deeds.Done, deeds.Refused,
    tokens.TaskToken, tokens.HistoryToken,
)  # fmt: skip
DEEDS = (deeds.StartChild, deeds.ChildClosed, deeds.CloseChild, deeds.Signal, deeds.Cancel)


def fields() -> dict[str, list[str]]:
    """The fields of each type, in the order in which they are written: two of one type may change places."""
    types_of_ours: tuple[Any, ...] = (*STRUCTS, *RECORDS, *DEEDS, *OTHERS)
    return {
        kind.__name__: list(kind.__struct_fields__ if issubclass(kind, msgspec.Struct) else kind._fields)
        for kind in types_of_ours
    }


def samples() -> Iterator[Sample]:
    """All of them."""
    for struct in STRUCTS:
        yield _of_struct(struct)
    yield Sample("log row", _log_row, lambda data: log_rows.decode(SEQUENCE, data))
    yield Sample("transaction", _transaction, image.decode)
    yield Sample("split", lambda: image.encode_split([(b"srow", b"slots"), (b"rgone", None)]), image.decode)
    yield from _raft()
    yield from _images()
    for one in RECORDS:
        yield _of_record(one)
    yield from _peers()
    for kind in DEEDS:
        yield Sample(f"deed {kind.__name__}", _deed(kind), deeds.decode)
    for outcome in (deeds.Done("run-1"), deeds.Refused(3)):
        yield Sample(f"outcome {type(outcome).__name__}", _outcome(outcome), deeds.decode_outcome)
    yield Sample("task token", _token(tokens.TaskToken), tokens.task_token)
    yield Sample("history token", _token(tokens.HistoryToken), tokens.history_token)


def _of_struct(struct: type[msgspec.Struct]) -> Sample:
    read = msgspec.msgpack.Decoder(struct).decode
    return Sample(f"row {struct.__name__}", lambda: pack(Filler().value(struct)), read)


def _of_record(kind: type[records.Record]) -> Sample:
    def write() -> bytes:
        value = Filler().value(kind)
        _, row = records.row_of(msgspec.structs.replace(value, format=records.FORMAT, **_id(value)))
        assert row is not None
        return row

    key = {"RegionRecord": records.REGION}.get(kind.__name__, (kind.__name__[:1] + "\0\0\0\2").encode())
    return Sample(f"table {kind.__name__}", write, lambda data: records.decode(key, data))


def _id(value: Any) -> dict[str, int]:
    if isinstance(value, records.RemoteRecord):
        return {"index": 2}
    return {"id": 2} if hasattr(value, "id") else {}


def _log_row() -> bytes:
    buffer = bytearray()
    entries = [(3, [Entry(1, 2, 0, b"data"), Entry(1, 3, 1, b"")]), (4, [Entry(5, 6, 2, b"conf")])]
    log_rows.encode(SEQUENCE, entries, [(3, HardState(1, 2, 3))], buffer)
    return bytes(buffer)


def _transaction() -> bytes:
    fill = Filler()
    shown, hidden = fill.value(record.ExecutionRecord), fill.value(record.DeleteRecord)
    return image.encode([(b"rkey", b"value"), (b"qgone", None)], [shown, hidden])


def _raft() -> Iterator[Sample]:
    for kind in messages.Kind:
        yield Sample(f"raft {kind.name}", _raft_message(kind), messages.decode)
    conf = configuration.Configuration((1, 2), (2, 3, 4), (5,), (4,), True)
    yield Sample("raft configuration", conf.encode, configuration.decode_configuration)
    change = configuration.ConfChange(
        (configuration.Change(configuration.ChangeOp.ADD_LEARNER, 4),),
        configuration.Transition.JOINT_IMPLICIT,
        b"context",
    )
    yield Sample("raft change", change.encode, configuration.decode_change)


def _raft_message(kind: messages.Kind) -> Callable[[], bytes]:
    return lambda: messages.encode(msgspec.structs.replace(Filler().value(messages.Message), kind=kind))


CORE_FIELDS = 73


def _images() -> Iterator[Sample]:
    found = Filler().value(record.ExecutionRecord)
    # A core row is a row to an image, and has samples of its own: this one keeps the fields that it had.
    core = pack(msgspec.msgpack.decode(pack(Filler().value(state.RunState)))[:CORE_FIELDS])

    def chunks() -> list[bytes]:
        return list(snapshot.cut(9, [(b"rkey", core), (b"tkey", b"wake")], lambda _: [found]))

    def read(data: bytes) -> Any:
        progress = snapshot.Progress()
        first = progress.take(9, chunks()[0])
        return first if data == chunks()[0] else progress.take(9, data)

    yield Sample("image chunk", lambda: chunks()[0], lambda data: snapshot.Progress().take(9, data))
    yield Sample("image totals", lambda: chunks()[1], read)
    yield Sample(
        "image members", lambda: snapshot.wrap_conf(3, 1 << 31, b"conf"), lambda d: snapshot.unwrap_conf(3, d)
    )


def _peers() -> Iterator[Sample]:
    mine = contract.Identity("cluster", "region", 2, "a/2", "incarnation", "disk", 4)
    for name, message, read in (
        ("hello", handshake.hello(mine, (1, 1), 3), handshake.read_hello),
        ("welcome", handshake.welcome(1, mine), handshake.read_welcome),
        ("ping", [frames.PING, 1234], lambda message: message),
    ):
        yield Sample(f"frame {name}", _framed(message), _unframed(read))


def _framed(message: list[Any]) -> Callable[[], bytes]:
    return lambda: frames.control(message)


def _unframed(read: Callable[[list[Any]], Any]) -> Callable[[bytes], Any]:
    def unframe(data: bytes) -> Any:
        reader = _Reader()
        reader.get_buffer(-1)[: len(data)] = data
        reader.buffer_updated(len(data))
        return read(reader.messages[0])

    return unframe


class _Reader(frames.FrameReader):
    def __init__(self) -> None:
        super().__init__(4096)
        self.messages: list[list[Any]] = []

    def _body(self, body: memoryview) -> None:
        self.messages += frames.decode(body)

    def _fault(self, why: str) -> None:
        raise ValueError(why)


def _deed(kind: type[Any]) -> Callable[[], bytes]:
    return lambda: deeds.encode(Filler().value(kind))


def _outcome(value: deeds.Done | deeds.Refused) -> Callable[[], bytes]:
    return lambda: deeds.encode(value)


def _token(kind: type[Any]) -> Callable[[], bytes]:
    return lambda: tokens.encode(Filler().value(kind))
