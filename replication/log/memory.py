"""The log of several regions in memory, with all that can go wrong between them: for tests and simulations.

Theory of operation. Every region has its own copy of all rows. A write is applied in the region of the
writer, or fails there; to each other region it is on its way for some time, for long (`late`), or for ever
(`holes`, until `repair`). What is written twice arrives twice. While a region is down its clients get no
answer, and what others write is seen there later. Rows expire everywhere at the same age.

All chances come from one `rng`, times from `now` and `sleep`, which are given: with virtual ones a run is a
function of its seed. A fault is drawn for each row and each region, so that a frame of several rows may be
there in part.

The fake also judges: a row of the log that is written again with other bytes is kept in `conflicts`, since
two writers of one frame must write the same.

Lineage: the simulated disk and network of TigerBeetle's VOPR, with Cassandra's promises: a quorum of the own
data centre, hints that may be lost, last write wins.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from replication.frames import Frame, Stream, bucket_of
from replication.log.contract import (
    READ_FRAMES_MAX,
    Ack,
    Head,
    LedgerHint,
    LedgerRow,
    LogClosed,
    LogUnavailable,
    SchemaMismatch,
    Slice,
    day_of,
)
from replication.log.rows import Row, rows_of, slice_of

Value: TypeAlias = Row | Head | Ack | LedgerRow | LedgerHint
Partition: TypeAlias = tuple[Hashable, ...]  # the table's name first
Key: TypeAlias = tuple[int | str, ...]  # within the partition; of one shape in a table

NEVER = 1 << 62


@dataclass(slots=True)
class Faults:
    """What goes wrong in one region. Chances from 0 to 1, times in milliseconds."""

    late: float = 0.0  # a row from elsewhere takes up to `late_ms` more
    late_ms: int = 60_000
    holes: float = 0.0  # a row from elsewhere does not arrive until `repair`
    duplicates: float = 0.0  # a row is applied once more, up to `late_ms` later
    timeouts_applied: float = 0.0  # a write is answered LogUnavailable, and has happened
    timeouts_lost: float = 0.0  # a write is answered LogUnavailable, and has not
    read_failures: float = 0.0
    slow_ms: int = 0  # every call takes up to this long
    down: bool = False  # nobody answers, nothing arrives


class _Cell(NamedTuple):
    order: int  # of all writes; the last one wins
    written_at: int
    value: Value


@dataclass(slots=True)
class _Region:
    faults: Faults = field(default_factory=Faults)
    tables: dict[Partition, dict[Key, _Cell]] = field(default_factory=dict)
    # What is on its way here: (time, order, partition, key, cell).
    arrivals: list[tuple[int, int, Partition, Key, _Cell]] = field(default_factory=list)
    missing: list[tuple[Partition, Key, _Cell]] = field(default_factory=list)  # until `repair`


class MemoryWorld:
    """All regions' copies. `now` gives milliseconds, `sleep` takes them."""

    def __init__(
        self,
        regions: Iterable[str],
        rng: random.Random,
        now: Callable[[], int],
        sleep: Callable[[int], Awaitable[None]],
        *,
        one_way_ms: int = 0,
        ttl_ms: int = NEVER,
    ) -> None:
        self._regions = {region: _Region() for region in regions}
        self._rng = rng
        self._now = now
        self._sleep = sleep
        self._order = itertools.count()
        self.one_way_ms = one_way_ms
        self.ttl_ms = ttl_ms  # of rows of the log
        self.cut: set[frozenset[str]] = set()  # pairs of regions between which no call passes
        self.schema_ok = True
        self.conflicts: list[tuple[Partition, Row, Row]] = []  # rows that were written with other bytes

    def log(self, region: str) -> MemoryLog:
        """The port of a region."""
        assert region in self._regions
        return MemoryLog(self, region)

    def faults(self, region: str) -> Faults:
        """What goes wrong there; to be changed at will."""
        return self._regions[region].faults

    def heal(self) -> None:
        """No more faults. What is late arrives at once; what is missing stays so."""
        self.cut.clear()
        for region in self._regions.values():
            region.faults = Faults()
            region.arrivals = [(self._now(), *rest) for _, *rest in region.arrivals]  # type: ignore[misc]
            heapq.heapify(region.arrivals)

    def repair(self) -> None:
        """Bring what is missing, everywhere."""
        for region in self._regions.values():
            for partition, key, cell in region.missing:
                self._apply(region, partition, key, cell)
            region.missing.clear()

    def expire(self, stream: Stream, upto: int) -> None:
        """The frames that begin at `upto` or before are gone everywhere, also those on their way."""
        for region in self._regions.values():
            region.arrivals = [each for each in region.arrivals if not _expires(stream, upto, *each[2:4])]
            heapq.heapify(region.arrivals)
            region.missing = [each for each in region.missing if not _expires(stream, upto, *each[:2])]
            for partition, rows in region.tables.items():
                for key in [key for key in rows if _expires(stream, upto, partition, key)]:
                    del rows[key]

    def damage(self, region: str, stream: Stream, first_seq: int) -> None:
        """The copy of a frame in one region is not what was written any more."""
        rows = self._regions[region].tables[_log_partition(stream, first_seq)]
        cell = rows[first_seq, 0]
        assert isinstance(cell.value, Row)
        content = bytearray(cell.value.content)
        content[self._rng.randrange(len(content))] ^= 1 << self._rng.randrange(8)
        rows[first_seq, 0] = cell._replace(value=cell.value._replace(content=bytes(content)))

    # ------------------------------------------------------------------------------------------ for the ports

    async def enter(self, region: str, via: str) -> None:
        """A call of a client of `region` to the copies of `via` begins. Raises LogUnavailable."""
        faults = self._regions[via].faults
        if faults.slow_ms:
            await self._sleep(self._rng.randint(0, faults.slow_ms))
        if via != region and self.one_way_ms:
            await self._sleep(2 * self.one_way_ms)
        if faults.down:
            raise LogUnavailable(f"{via} does not answer")
        if frozenset((region, via)) in self.cut:
            raise LogUnavailable(f"{via} is not reached from {region}")

    async def write(self, region: str, partition: Partition, key: Key, value: Value) -> None:
        """Apply a row here and send it to all others."""
        await self.enter(region, region)
        faults = self._regions[region].faults
        if self._rng.random() < faults.timeouts_lost:
            raise LogUnavailable(f"{region}: the write was not answered in time")
        cell = _Cell(next(self._order), self._now(), value)
        for name, copy in self._regions.items():
            if name == region:
                self._apply(copy, partition, key, cell)
            else:
                self._send(copy, partition, key, cell)
        if self._rng.random() < faults.timeouts_applied:
            raise LogUnavailable(f"{region}: the write was not answered in time")

    def _send(self, copy: _Region, partition: Partition, key: Key, cell: _Cell) -> None:
        faults, rng = copy.faults, self._rng
        if rng.random() < faults.holes:
            copy.missing.append((partition, key, cell))
            return
        at = self._now() + self.one_way_ms
        if rng.random() < faults.late:
            at += rng.randint(1, faults.late_ms)
        heapq.heappush(copy.arrivals, (at, next(self._order), partition, key, cell))
        if rng.random() < faults.duplicates:
            again = at + rng.randint(1, faults.late_ms)
            heapq.heappush(copy.arrivals, (again, next(self._order), partition, key, cell))

    def _apply(self, copy: _Region, partition: Partition, key: Key, cell: _Cell) -> None:
        rows = copy.tables.setdefault(partition, {})
        present = rows.get(key)
        if present is None:
            rows[key] = cell
            return
        old, new = present.value, cell.value
        if isinstance(old, Row) and isinstance(new, Row) and old != new:
            self.conflicts.append((partition, old, new))
        if cell.order > present.order:
            rows[key] = cell

    async def read(
        self, region: str, via: str | None, partition: Partition, start: Key | None = None
    ) -> list[tuple[Key, Value]]:
        """The rows of a partition from `start` on, as the copies of `via` have them, in the order of keys."""
        via = region if via is None else via
        await self.enter(region, via)
        copy = self._regions[via]
        if self._rng.random() < copy.faults.read_failures:
            raise LogUnavailable(f"{via}: the read was not answered in time")
        now = self._now()
        while copy.arrivals and copy.arrivals[0][0] <= now:
            _, _, where, key, cell = heapq.heappop(copy.arrivals)
            if self._lives(cell, now):
                self._apply(copy, where, key, cell)
        found = copy.tables.get(partition, {})
        return [
            (key, found[key].value)
            for key in sorted(key for key in found if start is None or key >= start)
            if self._lives(found[key], now)
        ]

    def _lives(self, cell: _Cell, now: int) -> bool:
        return not isinstance(cell.value, Row) or now < cell.written_at + self.ttl_ms


def _log_partition(stream: Stream, seq: int) -> Partition:
    return ("log", stream, bucket_of(seq))


def _expires(stream: Stream, upto: int, partition: Partition, key: Key) -> bool:
    first_seq = key[0]
    return partition[:2] == ("log", stream) and isinstance(first_seq, int) and first_seq <= upto


class MemoryLog:
    """The port of one region."""

    def __init__(self, world: MemoryWorld, region: str) -> None:
        self._world = world
        self._region = region
        self._closed = False

    @property
    def region(self) -> str:
        """The region that this belongs to."""
        return self._region

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosed("the log is closed")

    async def _write(self, partition: Partition, key: Key, value: Value) -> None:
        self._check_open()
        await self._world.write(self._region, partition, key, value)

    async def _read(
        self, partition: Partition, via: str | None = None, start: Key | None = None
    ) -> list[Value]:
        self._check_open()
        rows = await self._world.read(self._region, via, partition, start)
        return [value for _, value in rows]

    async def check_schema(self) -> None:
        """Raises SchemaMismatch if the world says so."""
        self._check_open()
        await self._world.enter(self._region, self._region)
        if not self._world.schema_ok:
            raise SchemaMismatch("the world has no such tables")

    async def append(self, stream: Stream, frame: Frame) -> None:
        """Write a committed frame."""
        partition = _log_partition(stream, frame.first_seq)
        for row in rows_of(frame):
            await self._write(partition, (row.first_seq, row.chunk), row)

    async def read(
        self, stream: Stream, want: int, *, frames_max: int = READ_FRAMES_MAX, via: str | None = None
    ) -> Slice:
        """Frames from `want` on, of its partition."""
        rows = await self._read(_log_partition(stream, want), via, (want, 0))
        return slice_of([row for row in rows if isinstance(row, Row)], frames_max)

    async def put_head(self, head: Head) -> None:
        """Say how far a stream is."""
        await self._write(("head", head.stream.region, head.stream.shard), (), head)

    async def head(self, region: str, shard: int, *, via: str | None = None) -> Head | None:
        """What the shard of a region said last."""
        rows = await self._read(("head", region, shard), via)
        return next((row for row in rows if isinstance(row, Head)), None)

    async def put_ack(self, ack: Ack) -> None:
        """Say how far this region is with a stream."""
        await self._write(("ack", ack.stream.region, ack.stream.shard), (ack.region,), ack)

    async def acks(self, region: str, shard: int) -> list[Ack]:
        """What each region said last."""
        rows = await self._read(("ack", region, shard))
        return [row for row in rows if isinstance(row, Ack)]

    async def append_ledger(self, row: LedgerRow) -> None:
        """Write a row of the ledger, then the hint."""
        await self._write(("ledger", row.namespace_id), (-row.version,), row)
        hint = LedgerHint(row.hlc, row.namespace_id, row.version)
        await self._write(("feed", day_of(row.hlc), row.origin), tuple(hint), hint)

    async def read_ledger(self, namespace_id: str, *, via: str | None = None) -> list[LedgerRow]:
        """All rows of a namespace, the highest version first."""
        rows = await self._read(("ledger", namespace_id), via)
        return [row for row in rows if isinstance(row, LedgerRow)]

    async def ledger_feed(self, origin: str, day: int, after_hlc: int) -> list[LedgerHint]:
        """What a region added to the ledger on a day, later than a time."""
        rows = await self._read(("feed", day, origin), None, (after_hlc + 1,))
        return [row for row in rows if isinstance(row, LedgerHint)]

    async def close(self) -> None:
        """End."""
        self._closed = True
