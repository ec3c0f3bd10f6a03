"""What replication asks of the log between regions: rows that every region will see, some late, some never.

A `LogStore` belongs to one region and is used through it. A write that returned is durable in a majority
of that region's copies: a read *through that region* sees it from then on. Other regions see it later, in
any order, or never, and there is no bound. So a row that is not there in the own region proves nothing;
one that is not there through the region that wrote it was not written, has expired, or is being written.

All methods are idempotent: who does not know whether a write happened does it again. Two writers of one frame
write the same bytes. Nothing here is checked against damage: `replication.frames` does that.

Heads and acknowledgements are hints; the last writer wins, also when it is the older one. Rows of the ledger
are for ever. Numbers are below 2**63, times are hybrid (`frames.hlc_next`), a day is `day_of` one.

Lineage: Akka Persistence's journal on Cassandra (partitions by sequence number), restate's loglet (one small
port, one suite of tests for all implementations).
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple, Protocol

import msgspec

from replication.frames import Frame, Stream, hlc_ms

SCHEMA_VERSION = 1

# Frames of one read: some megabytes at the usual size, and a few round trips' worth of work to apply.
READ_FRAMES_MAX = 100

DAY_MS = 86_400_000


class LogError(Exception):
    """Base of the log's refusals. `definite`: it did not happen; else a write may have."""

    definite = False


class LogUnavailable(LogError):
    """No answer, or not from enough copies: nobody knows. Try the same again, for ever if need be."""


class LogDenied(LogUnavailable):
    """Whoever asked may not: a wrong password, or a right that is missing. An operator may give it."""


class LogRefused(LogError):
    """The log cannot do this, and will not later. Nothing was changed."""

    definite = True


class SchemaMismatch(LogRefused):
    """The tables are missing, or not those of this release. An operator has to act."""


class LogClosed(LogRefused):
    """`close` was called."""


class Slice(NamedTuple):
    """What a read found. Frames have all their chunks, are in order, and may have holes between them."""

    frames: tuple[Frame, ...]
    # The last number of any row that was seen, also of frames that are not whole; 0 if there was none. Beyond
    # the frames it says that something is there and not complete.
    highest: int


class Head(msgspec.Struct, frozen=True, array_like=True):
    """Up to where a source says that its stream is in the log. A hint: it may be an old one."""

    stream: Stream
    exported: int  # everything up to here was written
    oldest: int  # the first number that may be expected: what is below and missing will not come
    hlc: int


class Ack(msgspec.Struct, frozen=True, array_like=True):
    """Up to where a region says that it has applied a stream. A hint."""

    stream: Stream
    region: str  # that applied
    seq: int
    hlc: int


class Mode(StrEnum):
    """How a namespace came to a version."""

    CREATE = "create"
    GRACEFUL = "graceful"
    FORCED = "forced"
    BUMP = "bump"


class LedgerRow(msgspec.Struct, frozen=True, array_like=True):
    """A namespace was given a failover version. The truth is the highest version; rows never change."""

    namespace_id: str
    version: int
    mode: Mode
    base: int  # the version that this one follows
    target: str  # the region that owns the version
    origin: str  # the region that wrote the row
    operator: str
    reason: str
    handover_id: str
    cut_digest: bytes  # of the shards' cuts
    hlc: int


class LedgerHint(NamedTuple):
    """A namespace's ledger has grown."""

    hlc: int
    namespace_id: str
    version: int


def day_of(hlc: int) -> int:
    """The day of a hybrid time, counted from 1970."""
    return hlc_ms(hlc) // DAY_MS


class LogStore(Protocol):
    """The port. Every method but `close` may raise LogUnavailable and LogClosed.

    `via` names a region whose copies are to answer instead of the own region's.
    """

    @property
    def region(self) -> str:
        """The region that this belongs to."""
        ...

    async def check_schema(self) -> None:
        """Raises SchemaMismatch unless the tables are those of SCHEMA_VERSION."""
        ...

    async def append(self, stream: Stream, frame: Frame) -> None:
        """Write a committed frame. Raises LogRefused if it is larger than the log takes."""
        ...

    async def read(
        self, stream: Stream, want: int, *, frames_max: int = READ_FRAMES_MAX, via: str | None = None
    ) -> Slice:
        """Frames whose first number is `want` or more, of the partition that a frame `want` would be in.

        At least one frame if one is there and whole. `want` must be the number after a frame's last.
        """
        ...

    async def put_head(self, head: Head) -> None:
        """Say how far a stream is."""
        ...

    async def head(self, region: str, shard: int, *, via: str | None = None) -> Head | None:
        """What the shard of a region said last, as far as it is seen here."""
        ...

    async def put_ack(self, ack: Ack) -> None:
        """Say how far this region is with a stream."""
        ...

    async def acks(self, region: str, shard: int) -> list[Ack]:
        """What each region said last about the stream of a shard, in the order of their names."""
        ...

    async def append_ledger(self, row: LedgerRow) -> None:
        """Write a row of the ledger, then the hint that others find it by."""
        ...

    async def read_ledger(self, namespace_id: str, *, via: str | None = None) -> list[LedgerRow]:
        """All rows of a namespace, the highest version first."""
        ...

    async def ledger_feed(self, origin: str, day: int, after_hlc: int) -> list[LedgerHint]:
        """What a region added to the ledger on a day, later than `after_hlc`, in the order of time.

        Rows come late, with times in the past: ask for more than is new. What is truth is in the ledger.
        """
        ...

    async def close(self) -> None:
        """End. What is under way may raise LogClosed or LogUnavailable."""
        ...
