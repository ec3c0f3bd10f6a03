"""What is written down about failover: namespaces, ledger rows and handovers by the meta group, gates by
shards.

Keys share the first letter `f`; the second says the kind, so that a scan of a kind goes by id.

    fn  namespace id                     a namespace: two max registers, and how far its switch has come here
    fl  namespace id, 00, version        a row of the ledger, for ever
    fh  number                           a handover whose source is this region
    fr  namespace id, 00, version        what is told of a failover besides its ledger row
    fg  namespace id                     (in a shard) the gate of a namespace

A value is a msgpack array whose first element is the format. New fields go to the end and have defaults; what
would be misread otherwise takes a new format. A kind or a format that is unknown is refused by name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import IntEnum
from typing import NamedTuple, TypeAlias

import msgspec

FORMAT = 1
NAMESPACE, LEDGER, HANDOVER, REPORT, GATE = b"fn", b"fl", b"fh", b"fr", b"fg"

Row: TypeAlias = tuple[bytes, bytes | None]  # key, value; None deletes


class FormatError(ValueError):
    """Bytes that are damaged, of a newer format or of an unknown kind. Definite: they were not applied."""


class Mode(IntEnum):
    """How a version came to be."""

    CREATE = 1
    GRACEFUL = 2  # the source handed over: nothing is lost
    FORCED = 3  # the target decided alone
    BUMP = 4  # the owner stayed: after a restore


class Phase(IntEnum):
    """Where a handover is. COMMITTED, DONE and ABORTED are decisions: nothing leads from one to another."""

    PREPARE = 1  # still serving; waits until the target is close enough behind
    FENCING = 2  # shards are being fenced
    DRAINING = 3  # all shards are fenced; the target applies up to the markers
    COMMITTED = 4  # the target owns the namespaces; who is concerned is being told
    DONE = 5
    ABORTED = 6  # the versions stay as they were; shards are being unfenced


UNDECIDED = (Phase.PREPARE, Phase.FENCING, Phase.DRAINING)


class Switch(msgspec.Struct, array_like=True, frozen=True):
    """One namespace's way from a version to another."""

    namespace_id: str
    base: int  # the version that the choice was made from
    version: int  # > base


class Config(msgspec.Struct, array_like=True, frozen=True, order=True):
    """A max register: the larger pair (failover version of the edit, config version) is the truth.

    A config version alone would not do: two regions that both edit after a forced failover would produce the
    same number with different contents. The fields after the pair break a tie that should not happen.
    """

    failover_version: int  # of the namespace when it was edited
    config_version: int
    regions: tuple[int, ...] = ()  # indexes of the regions that hold the namespace, in order of preference
    blob: bytes = b""


class NamespaceRecord(msgspec.Struct, array_like=True, frozen=True):
    """A namespace. Its active region is owner_of(version), which is stored nowhere else."""

    format: int
    id: str
    config: Config
    version: int  # a max register; never falls
    settled: int = 0  # all shards of this region have confirmed this version or a newer one; <= version
    told: tuple[int, ...] = ()  # regions whose ledgers are known to have `version`, ascending


class LedgerRow(msgspec.Struct, array_like=True, frozen=True):
    """One failover of one namespace, for ever."""

    format: int
    namespace_id: str
    version: int
    mode: Mode
    base: int  # 0 with CREATE
    target: int  # owner_of(version), written out for whoever reads the table by hand
    operator: str
    reason: str
    handover: str  # id_of a handover; "" unless GRACEFUL
    cut_digest: bytes  # graceful: of the markers. forced: of what was applied when it was decided
    hlc: int


class Source(NamedTuple):
    """Whose outgoing log: a shard of a region. After splits a shard reads several of one region."""

    region: int
    shard: int


class Point(msgspec.Struct, array_like=True, frozen=True):
    """A position in the outgoing log of a shard: points of one incarnation are ordered by seq."""

    incarnation: int
    seq: int


class Marker(msgspec.Struct, array_like=True, frozen=True):
    """Where the fence of a handover is in a shard, or how far the target is.

    The own log alone would not do with three regions: what the source itself got from a third region, the
    target may not have, and it is as acknowledged as the rest.
    """

    own: Point  # in the source shard's outgoing log: the fence, or what the target has applied
    # What of each other outgoing log is applied that ever had keys of this shard. When the shard parts, both
    # halves leave out the logs that never had theirs: maybe no shard of the target that has them reads those.
    others: dict[Source, Point] = {}

    def covers(self, marker: Marker, regions: Collection[int]) -> bool:
        """Whether a target that is here has all that the source had at the marker, of these regions' logs.

        Leave out the target: its own log is not to be waited for. Leave out who does not hold the namespaces:
        a region that was removed for ever keeps its place in the cursors, and nobody would ever reach it.
        """
        return _reaches(self.own, marker.own) and all(
            _reaches(self.others.get(source), point)
            for source, point in marker.others.items()
            if source.region in regions
        )


def meet(markers: Iterable[Marker]) -> Marker:
    """What several shards of the target have all applied: those that have keys of the source's shard. Not
    empty.

    A log that a shard does not read never had its keys, or the shard has not come to where its parent
    parted; then what is applied of the parent tells. So it is left out, and a parent must stay.
    """
    first, *rest = markers
    own, others = first.own, dict(first.others)
    for marker in rest:
        own = _lower(own, marker.own)
        for source, point in marker.others.items():
            others[source] = _lower(others.get(source, point), point)
    return Marker(own, others)


def _lower(one: Point, other: Point) -> Point:
    """The lower of two points; of two incarnations none is, and no point says so: nothing is applied."""
    if one.incarnation != other.incarnation:
        return Point(0, 0)  # incarnations are drawn from 1 on, so this reaches nothing
    return min(one, other, key=lambda point: point.seq)


def _reaches(here: Point | None, point: Point) -> bool:
    return here is not None and here.incarnation == point.incarnation and here.seq >= point.seq


class Limits(msgspec.Struct, array_like=True, frozen=True):
    """What a handover waits for, and how long. Durations in nanoseconds."""

    lag_ns_max: int = 2_000_000_000  # of each shard, before anything is fenced
    wait_ns_max: int = 60_000_000_000  # for that; the namespace is served meanwhile
    fence_ns_max: int = 10_000_000_000  # from the first fence to the decision: callers are parked
    allow_dirty: bool = False  # hand over in spite of parked or quarantined runs


class Handover(msgspec.Struct, array_like=True, frozen=True):
    """A graceful failover of some namespaces, kept by the meta group of their source."""

    format: int
    number: int  # grows with every handover of this region: of two fences the one with the larger is newer
    source: int
    target: int
    switches: tuple[Switch, ...]  # 1..NAMESPACES_MAX, no namespace twice
    shards: tuple[int, ...]  # that have to be fenced: all of the region's; fixed from DRAINING on
    regions: tuple[int, ...]  # third ones, that hold a namespace of it: the target needs their logs too
    request_id: str  # of the operator's command: the same one again begins nothing
    operator: str
    reason: str
    limits: Limits
    phase: Phase
    deadline_ns: int  # of the present phase, by the clock of the leader that wrote it; 0 = decided
    markers: dict[int, Marker] = {}  # shard -> marker; all shards from DRAINING on
    acks: dict[int, Marker] = {}  # shard -> what the target had applied at COMMITTED; covers the marker
    committed: tuple[str, ...] = ()  # namespaces that moved; the others were taken by a higher version
    why: str = ""  # it was aborted
    closed: bool = False  # nothing is left to do: all shards followed the decision


class Report(msgspec.Struct, array_like=True, frozen=True):
    """Where each shard of the target stood when it began to serve."""

    format: int
    namespace_id: str
    version: int
    cuts: dict[int, dict[Source, Point]]  # shard -> the last entry applied of each log


class Gate(msgspec.Struct, array_like=True, frozen=True):
    """Whether a shard changes anything of a namespace. Kept with the shard's rows, changed by its log
    only.
    """

    format: int
    namespace_id: str
    version: int  # the largest seen; never falls
    activated: int = 0  # the version this region was told to serve at; 0 = never. <= version
    fence: int = 0  # number of the handover that fenced it at `version`; 0 = none
    marker: Marker | None = None  # of that fence
    ended: int = 0  # no handover up to this number may fence it at `version`: they are decided
    cut: dict[Source, Point] = {}  # when it was activated: the last entry applied of each log


Record: TypeAlias = NamespaceRecord | LedgerRow | Handover | Report | Gate

NAMESPACES_MAX = 1000  # of one handover: a fence is one log entry per shard, of some 60 kB then


def id_of(source: int, number: int) -> str:
    """A handover's id, unique among all regions."""
    return f"{source}-{number}"


class _Head(msgspec.Struct, array_like=True):
    format: int


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(_Head).decode
_DECODERS: dict[bytes, msgspec.msgpack.Decoder[Record]] = {
    NAMESPACE: msgspec.msgpack.Decoder(NamespaceRecord),
    LEDGER: msgspec.msgpack.Decoder(LedgerRow),
    HANDOVER: msgspec.msgpack.Decoder(Handover),
    REPORT: msgspec.msgpack.Decoder(Report),
    GATE: msgspec.msgpack.Decoder(Gate),
}


def key_of(record: Record) -> bytes:
    """The key of a record's row."""
    match record:
        case NamespaceRecord():
            return NAMESPACE + record.id.encode()
        case LedgerRow():
            return LEDGER + record.namespace_id.encode() + b"\0" + record.version.to_bytes(8, "big")
        case Handover():
            return HANDOVER + record.number.to_bytes(8, "big")
        case Report():
            return REPORT + record.namespace_id.encode() + b"\0" + record.version.to_bytes(8, "big")
        case Gate():
            return GATE + record.namespace_id.encode()


def row_of(record: Record) -> Row:
    """The row that keeps a record."""
    assert record.format == FORMAT, "this version writes one format"
    return key_of(record), _encode(record)


def is_ours(key: bytes) -> bool:
    """Whether a row of the meta group is one of these."""
    return key[:2] in _DECODERS


def decode(key: bytes, value: bytes) -> Record:
    """The record of a row of ours. Raises FormatError if it is none, or of a newer format."""
    decoder = _DECODERS.get(key[:2])
    if decoder is None:
        raise FormatError(f"row {key.hex()} is of the unknown kind {key[:2]!r}")
    try:
        written = _head(value).format
        if written > FORMAT:
            raise FormatError(
                f"row {key.hex()} is of format {written}, and this version reads up to {FORMAT}"
            )
        record: Record = decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(f"row {key.hex()} is no record of failover: {error}") from error
    if key_of(record) != key:
        raise FormatError(f"row {key.hex()} holds a record that belongs to {key_of(record).hex()}")
    return record
