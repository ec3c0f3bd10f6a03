"""A shard's leader writes what is committed to the log between regions.

Theory of operation. replication/log/exporter.py says which frames to write now, and what to do about a write
that failed or of which nobody knows; this puts the writes, reads frames again that found no room in memory,
and says once a second, as a hint, how far the log is. A leader that is replaced stops; what it has under way
may still be written, and is the same as what its successor writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from replication.log.contract import Head, LogClosed, LogError
from replication.log.exporter import Exporter

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Coroutine, Sequence

    from cluster.hosting.shards.streams import ShardStreams
    from replication.frames import Frame
    from replication.log.contract import LogStore

log = structlog.get_logger("streams")


class Exporting:
    """Of one stream, as long as its shard is led here."""

    def __init__(
        self,
        streams: ShardStreams,
        store: LogStore,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
    ) -> None:
        assert streams.tip is not None, "there is a stream"
        self._streams = streams
        self._store = store
        self._loop = loop
        self._exporter = Exporter(streams.committed_tip(), self._now(), rng.randrange)
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self.failing = ""  # why the log takes nothing at present; "" if it does
        self._go_on()

    def _now(self) -> int:
        return int(self._loop.time() * 1000)

    @property
    def exported(self) -> int:
        """Every frame up to here is in the log."""
        return self._exporter.exported

    @property
    def behind(self) -> int:
        """Numbers that are committed and not in the log yet."""
        return max(0, self._streams.committed - self.exported)

    @property
    def retried(self) -> int:
        """Writes that were made again."""
        return self._exporter.retried

    def committed(self, frames: Sequence[Frame]) -> None:
        """These follow."""
        for frame in frames:
            self._exporter.committed(frame)
        self._go_on()

    def lost(self, upto: int) -> None:
        """The outbox had to give something up."""
        self._exporter.lost(upto)

    def mark(self) -> int | None:
        """What the shard's rows are to say is exported, if it is time to say more."""
        return self._exporter.mark(self._now())

    def close(self) -> None:
        """The shard has another leader."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()

    def beat(self) -> None:
        """Once a second: say how far the log is."""
        tip = self._streams.tip
        if tip is not None:
            self._begin(self._head(Head(tip.stream, self.exported, tip.trimmed + 1, tip.hlc)))

    def _go_on(self) -> None:
        if self.closed:
            return
        want = self._exporter.wants()
        if want is not None:
            self._exporter.refill(self._streams.kept(want))
        for frame in self._exporter.ready(self._now()):
            self._begin(self._write(frame))
        due = self._exporter.timer()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = self._loop.call_later(max(0.01, due / 1000 - self._loop.time()), self._go_on)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, frame: Frame) -> None:
        tip = self._streams.tip
        assert tip is not None
        try:
            await self._store.append(tip.stream, frame)
        except LogClosed:
            return
        except LogError as error:
            if not self.failing:
                log.warning(
                    "the log between regions takes nothing now", shard=self._streams.shard, why=str(error)
                )
            self.failing = str(error)
            self._exporter.failed(frame.first_seq, self._now())
        else:
            if self.failing:
                log.info("the log between regions takes writes again", shard=self._streams.shard)
            self.failing = ""
            self._exporter.wrote(frame.first_seq)
        self._go_on()

    async def _head(self, head: Head) -> None:
        try:
            await self._store.put_head(head)
        except LogError as error:
            log.debug("the log has no word of how far a stream is", why=str(error))
