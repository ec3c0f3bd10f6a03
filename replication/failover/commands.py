"""What is proposed to the logs: commands to a region's meta group, and commands to its shards.

A command is written as a msgpack array of the format and the command, whose first element is its name. A name
or a format that is unknown is refused with FormatError: a group that skipped a command would part from the
others for ever.
"""

from __future__ import annotations

from typing import TypeAlias, TypeVar

import msgspec

from replication.failover.records import (
    FORMAT,
    Config,
    FormatError,
    LedgerRow,
    Limits,
    Marker,
    Mode,
    Point,
    Source,
    Switch,
)


class Create(msgspec.Struct, array_like=True, frozen=True, tag="create"):
    """A namespace, as its home region or a notice has it."""

    config: Config
    row: LedgerRow  # of mode CREATE


class Configure(msgspec.Struct, array_like=True, frozen=True, tag="configure"):
    """An edit of a namespace's configuration, ours or another region's. The larger pair stands."""

    namespace_id: str
    config: Config


class Begin(msgspec.Struct, array_like=True, frozen=True, tag="begin"):
    """A handover in phase PREPARE, with the number that follows the last one."""

    number: int
    target: int
    switches: tuple[Switch, ...]
    shards: tuple[int, ...]
    request_id: str
    operator: str
    reason: str
    limits: Limits
    deadline_ns: int


class StartFencing(msgspec.Struct, array_like=True, frozen=True, tag="start fencing"):
    """PREPARE -> FENCING."""

    number: int
    deadline_ns: int


class Drain(msgspec.Struct, array_like=True, frozen=True, tag="drain"):
    """FENCING -> DRAINING: every shard's marker. `newer`: versions above the base that a shard knew of."""

    number: int
    markers: dict[int, Marker]
    newer: dict[str, int]


class Commit(msgspec.Struct, array_like=True, frozen=True, tag="commit"):
    """DRAINING -> COMMITTED, if it is the first decision in the log."""

    number: int
    acks: dict[int, Marker]  # what the target has applied of every shard, covering its marker
    newer: dict[str, int]  # versions above the base that the target knew of: they are not handed over
    hlc: int


class Abort(msgspec.Struct, array_like=True, frozen=True, tag="abort"):
    """-> ABORTED, if it is the first decision in the log."""

    number: int
    why: str


class Close(msgspec.Struct, array_like=True, frozen=True, tag="close"):
    """The decision has been followed everywhere: COMMITTED -> DONE, or an ABORTED one is closed."""

    number: int


class Learn(msgspec.Struct, array_like=True, frozen=True, tag="learn"):
    """Versions seen anywhere, and rows of other regions' ledgers."""

    versions: dict[str, int]
    rows: tuple[LedgerRow, ...] = ()


class Force(msgspec.Struct, array_like=True, frozen=True, tag="force"):
    """This region takes namespaces without asking (FORCED), or a new version of its own (BUMP)."""

    mode: Mode
    switches: tuple[Switch, ...]
    operator: str
    reason: str
    cut_digest: bytes
    hlc: int


class Settle(msgspec.Struct, array_like=True, frozen=True, tag="settle"):
    """All shards of the region have confirmed these versions. `cuts` as in Report, for the active region."""

    versions: dict[str, int]
    cuts: dict[int, dict[Source, Point]]


class Told(msgspec.Struct, array_like=True, frozen=True, tag="told"):
    """A region has acknowledged these versions."""

    region: int
    versions: dict[str, int]


MetaCommand: TypeAlias = (
    Create | Configure | Begin | StartFencing | Drain | Commit | Abort | Close | Learn | Force | Settle | Told
)


class Fence(msgspec.Struct, array_like=True, frozen=True, tag="fence"):
    """From this position of the shard's log on, nothing of these namespaces is changed at these versions."""

    number: int
    target: int
    versions: dict[str, int]  # namespace id -> the version that is given up: Switch.base
    # Only in the outgoing log: where this entry is, and what of other logs the shard had then. Who lost the
    # source finds here whether it has all.
    marker: Marker | None = None


class Unfence(msgspec.Struct, array_like=True, frozen=True, tag="unfence"):
    """The handover was aborted. Sent only by who has read that decision in the meta group's log."""

    number: int
    versions: dict[str, int]


class Activate(msgspec.Struct, array_like=True, frozen=True, tag="activate"):
    """This region serves these namespaces from here on, at versions of its own."""

    versions: dict[str, int]


class Deactivate(msgspec.Struct, array_like=True, frozen=True, tag="deactivate"):
    """Another region owns these namespaces."""

    versions: dict[str, int]


ShardCommand: TypeAlias = Fence | Unfence | Activate | Deactivate

_encode = msgspec.msgpack.Encoder().encode
_envelope = msgspec.msgpack.Decoder(tuple[int, msgspec.Raw]).decode
_meta: msgspec.msgpack.Decoder[MetaCommand] = msgspec.msgpack.Decoder(MetaCommand)
_shard: msgspec.msgpack.Decoder[ShardCommand] = msgspec.msgpack.Decoder(ShardCommand)


def encode(command: MetaCommand | ShardCommand) -> bytes:
    """The bytes of a command."""
    return _encode((FORMAT, command))


def decode_meta(data: bytes) -> MetaCommand:
    """A command to a meta group. Raises FormatError."""
    return _decoded(_meta, data)


def decode_shard(data: bytes) -> ShardCommand:
    """A command to a shard. Raises FormatError."""
    return _decoded(_shard, data)


_Command = TypeVar("_Command")


def _decoded(decoder: msgspec.msgpack.Decoder[_Command], data: bytes) -> _Command:
    try:
        written, body = _envelope(data)
        if written > FORMAT:
            raise FormatError(f"a command of format {written}, and this version reads up to {FORMAT}")
        return decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"no command of failover: {error}") from error
