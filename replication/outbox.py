"""The outbox: what a shard has told other regions, and may have to tell again.

Theory of operation. The outbox is rows of the shard: one `Tip`, and one row a frame that is still kept. The
leader computes them with the transaction that they belong to (`append`) and proposes all in one entry of the
Raft log. Replicas hold identical rows, and a new leader goes on from its own.

The leader also writes committed frames to the replication log (log/exporter.py). `exported` is the number up
to which every frame is known to be there. It is proposed now and then, and a new leader writes again
what is behind it.

A frame is kept until it is exported, and until all other regions have acknowledged it, or it is older than
`age_ms_max`, or too many bytes are kept: then readers find it in the log. What is *not* exported is given up
only when the outbox would fill the disk: `lost` then says up to where, for ever, and a reader that wants
anything up to there needs a snapshot. Nothing is skipped in silence.

Acknowledgements are hints about when a row may go. They never go down, and they move no reader.

Lineage: the transactional outbox; the replication slot of PostgreSQL; Kafka's idempotent producer. We differ:
there is no fencing of old leaders, since what they write late is what is there already. Invariant: lost and
trimmed <= exported <= seq.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from replication.frames import GENESIS, NUMBER_MAX, Entry, Frame, Stream, Tail, hlc_ms, hlc_next, make_frames

FORMAT = 1
KEY_BYTES = 8


class OutboxError(ValueError):
    """Rows that are damaged or of a newer format. Definite: nothing was done."""


class Parted(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a shard's stream parted from its parent's: what is up to there is in that one."""

    parent: Stream
    seq: int
    digest: bytes
    hlc: int


class Tip(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Where a shard's stream ends. New fields go to the end and have defaults."""

    format: int
    stream: Stream
    seq: int = 0  # the last number given
    digest: bytes = GENESIS  # of the last frame
    hlc: int = 0  # of the last frame
    exported: int = 0  # every frame up to here is in the log, or lost
    trimmed: int = 0  # no frame up to here is kept
    lost: int = 0  # a frame up to here may be missing in the log for ever
    kept_bytes: int = 0  # of the frames that are kept
    parted: Parted | None = None  # None: it begins with 1

    @property
    def tail(self) -> Tail:
        """What the next frame follows."""
        return Tail(self.seq, self.digest)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept, and how much is told at once."""

    # How long another region may be away and still be fed from memory and rows of the source.
    age_ms_max: int = 600_000
    # Of frames that are in the log already, a shard.
    kept_bytes_max: int = 256 << 20
    # Of frames that are not: an hour without Cassandra at 1000 entries of 300 bytes a second. Beyond, the
    # disk would fill, and the region's own writes would stop.
    unexported_bytes_max: int = 1 << 30

    # A doorbell carries frames up to this size: all but those of one large entry.
    doorbell_bytes_max: int = 64 << 10
    # Frames of one answer to a pull, unless the first alone is larger: some hundred milliseconds of a link.
    pull_bytes_max: int = 1 << 20

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        assert self.kept_bytes_max <= self.unexported_bytes_max, "what is in the log goes first"


LIMITS = Limits()


# ---------------------------------------------------------------------------------------- rows of the shard


def begin(stream: Stream) -> Tip:
    """The tip of a shard that has told nothing. A restored shard begins too, with a new incarnation."""
    assert 0 < stream.incarnation <= NUMBER_MAX
    return Tip(FORMAT, stream)


def part(parent: Tip, stream: Stream) -> Tip:
    """The tip of a shard that parts from its parent here: its numbers, chain and time go on from there.

    Of two events of one version the one with the larger number is the later, also across the split. What is
    below is in the parent's stream: a reader of this one parts with it (cursor.part), or needs a snapshot.
    """
    assert 0 < stream.incarnation <= NUMBER_MAX
    assert stream[:2] != parent.stream[:2], "a shard does not part from itself"
    seq = parent.seq
    parted = Parted(parent.stream, seq, parent.digest, parent.hlc)
    return Tip(
        FORMAT, stream, seq, parent.digest, parent.hlc, exported=seq, trimmed=seq, lost=seq, parted=parted
    )


def append(tip: Tip, entries: Sequence[Entry], now_ms: int) -> tuple[list[Frame], Tip]:
    """The frames of one transaction, and the tip behind them; both go into the transaction's own Raft entry.

    `now_ms` is the wall clock. Raises ValueError if an entry is too large for a frame.
    """
    if not entries:
        return [], tip
    hlc = hlc_next(tip.hlc, now_ms)
    frames = make_frames(tip.stream, tip.tail, entries, hlc)
    kept = tip.kept_bytes + sum(len(frame.content) for frame in frames)
    last = frames[-1]
    return frames, msgspec.structs.replace(
        tip, seq=last.last_seq, digest=last.digest, hlc=hlc, kept_bytes=kept
    )


def mark_exported(tip: Tip, upto: int) -> Tip:
    """Every frame up to `upto` is in the log. An older mark, proposed by an older leader, changes nothing."""
    assert upto <= tip.seq, "a frame was exported that was never made"
    return msgspec.structs.replace(tip, exported=max(tip.exported, upto))


def trim(
    tip: Tip, kept: Iterable[Frame], acknowledged: int, now_ms: int, limits: Limits = LIMITS
) -> tuple[list[int], Tip]:
    """Which rows to delete (first numbers), and the tip without them.

    `kept` are the frames behind `tip.trimmed` in order; it is read no further than needed. `acknowledged` is
    what all other regions have (`Acks.least`). `now_ms` is the wall clock.
    """
    gone: list[int] = []
    trimmed, lost, exported, size = tip.trimmed, tip.lost, tip.exported, tip.kept_bytes
    for frame in kept:
        assert frame.first_seq == trimmed + 1, "a row of the outbox is missing"
        last = frame.last_seq
        if last <= exported:
            old = now_ms - hlc_ms(frame.hlc) >= limits.age_ms_max
            if not (last <= acknowledged or old or size > limits.kept_bytes_max):
                break
        elif size > limits.unexported_bytes_max:
            lost = exported = last
        else:
            break
        gone.append(frame.first_seq)
        trimmed = last
        size -= len(frame.content)
    return gone, msgspec.structs.replace(tip, trimmed=trimmed, lost=lost, exported=exported, kept_bytes=size)


def row_key(first_seq: int) -> bytes:
    """The end of a frame's key: rows are in the order of their numbers."""
    return first_seq.to_bytes(KEY_BYTES, "big")


class _Row(msgspec.Struct, frozen=True, array_like=True):
    format: int
    frame: Frame


_encoder = msgspec.msgpack.Encoder()
_tips = msgspec.msgpack.Decoder(Tip)
_rows = msgspec.msgpack.Decoder(_Row)


def encode_tip(tip: Tip) -> bytes:
    """The tip's row."""
    return _encoder.encode(tip)


def decode_tip(data: bytes) -> Tip:
    """A tip from its row. Raises OutboxError."""
    try:
        tip = _tips.decode(data)
    except msgspec.DecodeError as error:
        raise OutboxError(f"the outbox's tip is no such row: {error}") from None
    if tip.format != FORMAT:
        raise OutboxError(f"the outbox's tip has format {tip.format}; this release reads {FORMAT}")
    return tip


def encode_row(frame: Frame) -> bytes:
    """A kept frame's row."""
    return _encoder.encode(_Row(FORMAT, frame))


def decode_row(data: bytes) -> Frame:
    """A kept frame from its row. Raises OutboxError."""
    try:
        row = _rows.decode(data)
    except msgspec.DecodeError as error:
        raise OutboxError(f"a frame of the outbox is no such row: {error}") from None
    if row.format != FORMAT:
        raise OutboxError(f"a frame of the outbox has format {row.format}; this release reads {FORMAT}")
    return row.frame


# --------------------------------------------------------------------------------------- to the other regions


class Doorbell(msgspec.Struct, frozen=True, array_like=True):
    """Told to every other region when a frame is committed. Nothing depends on its arrival."""

    stream: Stream
    last_seq: int  # everything up to here is committed
    frame: Frame | None  # if it is small


class Pulled(msgspec.Struct, frozen=True, array_like=True):
    """What the leader of the source shard answers to "what do you have from this number on?"."""

    stream: Stream  # with the incarnation of now, whichever was asked for
    oldest: int  # the first number that is still kept
    last_seq: int  # everything up to here is committed
    frames: tuple[Frame, ...]  # from the number asked for, if that is kept
    parted: Parted | None = None


def ring(stream: Stream, frame: Frame, limits: Limits = LIMITS) -> Doorbell:
    """What to tell all other regions when this frame is committed."""
    small = len(frame.content) <= limits.doorbell_bytes_max
    return Doorbell(stream, frame.last_seq, frame if small else None)


def answer_pull(tip: Tip, want: int, kept: Iterable[Frame], limits: Limits = LIMITS) -> Pulled:
    """The answer to a region that wants frames from `want` on.

    `kept` are the committed frames from `want` on, in order, if `want` is kept; it is read no further than
    needed.
    """
    frames: list[Frame] = []
    size = 0
    for frame in kept:
        assert frame.first_seq >= want
        size += len(frame.content)
        if frames and size > limits.pull_bytes_max:
            break
        frames.append(frame)
    return Pulled(tip.stream, tip.trimmed + 1, tip.seq, tuple(frames), tip.parted)


class Acks:
    """How far other regions are with one stream, as they said: for trimming and lag, never for reading."""

    __slots__ = ("_seqs", "_stream")

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._seqs: dict[str, int] = {}

    def heard(self, region: str, stream: Stream, seq: int, tip: Tip) -> bool:
        """A region says that it applied everything up to `seq`. False if that cannot be, or is not news."""
        if stream != self._stream or seq > tip.seq or seq <= self._seqs.get(region, 0):
            return False
        self._seqs[region] = seq
        return True

    def of(self, region: str) -> int:
        """The highest number that a region said it has; 0 before it said anything."""
        return self._seqs.get(region, 0)

    def least(self, regions: Collection[str]) -> int:
        """What all of these have. Of no regions: everything, so that a lone region keeps nothing."""
        return min((self.of(region) for region in regions), default=NUMBER_MAX)
