"""A log between regions that may come later: a node serves whether Cassandra is there or not.

Theory of operation. The log is opened beside everything else, and again, later each time, until that
succeeds; from then on calls pass through. Before, every call is LogUnavailable, which those who call know
how to bear: what is written is kept and written again, what is read is asked of its source. What connects is
foreign, so whatever it raises is treated as one more reason why the log is not there.

`failure` says whether the log takes what this node writes, and since when. Only writes count: a shard that is
led here says once a second how far it is. A node that leads none has nothing to write, and knows nothing
after a while.

Invariant: what was opened is closed, also if it came when nobody wanted it any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeVar

import structlog

from replication.log.contract import READ_FRAMES_MAX, LogClosed, LogError, LogUnavailable

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Awaitable, Callable

    from replication.frames import Frame, Stream
    from replication.log.contract import Ack, Head, LedgerHint, LedgerRow, LogStore, Slice

    T = TypeVar("T")

log = structlog.get_logger("replication")

AGAIN_S_MIN = 0.5  # between tries to open it
AGAIN_S_MAX = 10.0
# A write that failed says nothing of now when it is older: the exporter tries at least every 7.5 s.
STALE_S = 15.0


class Failure(NamedTuple):
    """The log takes nothing now."""

    why: str
    since_ns: int  # wall clock


class LateLog:
    """The port (`LogStore`), open or not yet. `start` begins."""

    def __init__(
        self,
        region: str,
        open_log: Callable[[], Awaitable[LogStore]],
        loop: asyncio.AbstractEventLoop,
        now_ns: Callable[[], int],
        rng: random.Random,
    ) -> None:
        """`open_log`: connects and looks at the tables, without blocking the loop. LogError."""
        self.region = region
        self._open_log = open_log
        self._loop = loop
        self._now_ns = now_ns
        self._rng = rng
        self._store: LogStore | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._tries = 0
        self._failure: Failure | None = None
        self._failed_at = 0.0  # the last time, by the loop
        self.first: asyncio.Future[LogError | None] = loop.create_future()  # how the first try ended

    @property
    def is_open(self) -> bool:
        """Whether it has been reached."""
        return self._store is not None

    @property
    def failure(self) -> Failure | None:
        """Why it takes nothing now; None if it does, as far as is known."""
        if self._store is not None and self._loop.time() - self._failed_at > STALE_S:
            return None
        return self._failure

    # ---- opening it

    def start(self) -> None:
        """Begin to open it."""
        self._timer = None
        self._tries += 1
        self._opening = self._loop.create_task(self._open(), name="open the log")

    async def _open(self) -> None:
        try:
            store = await self._open_log()
        except LogError as error:
            self._not_open(error)
            return
        except Exception as error:
            log.exception("the log between regions cannot be opened")
            self._not_open(LogUnavailable(repr(error)))
            return
        if self._closed:
            await store.close()
            return
        self._store = store
        if self._failure is not None:
            log.info("the log between regions is there", tries=self._tries)
        self._failure = None
        self._settle(None)

    def _not_open(self, error: LogError) -> None:
        if self._closed:
            return
        self._note(error)
        wait = min(AGAIN_S_MAX, AGAIN_S_MIN * 2 ** min(self._tries - 1, 16))
        if self._tries == 1:
            log.warning("the log between regions is not there; it is tried again", why=str(error))
        self._timer = self._loop.call_later(wait * (1 + self._rng.random() / 2), self.start)
        self._settle(error)

    def _settle(self, error: LogError | None) -> None:
        if not self.first.done():
            self.first.set_result(error)

    def _there(self) -> LogStore:
        if self._closed:
            raise LogClosed("the log is closed")
        if self._store is None:
            why = self._failure.why if self._failure is not None else "it is being opened"
            raise LogUnavailable(f"the log is not open: {why}")
        return self._store

    def _note(self, error: LogError) -> None:
        known = self.failure
        self._failed_at = self._loop.time()
        self._failure = Failure(str(error), known.since_ns if known is not None else self._now_ns())

    async def _writes(self, writing: Awaitable[T]) -> T:
        try:
            result = await writing
        except LogClosed:
            raise
        except LogError as error:
            self._note(error)
            raise
        self._failure = None
        return result

    # ---- replication.log.contract.LogStore

    async def check_schema(self) -> None:
        """See the port."""
        await self._there().check_schema()

    async def append(self, stream: Stream, frame: Frame) -> None:
        """See the port."""
        await self._writes(self._there().append(stream, frame))

    async def read(
        self, stream: Stream, want: int, *, frames_max: int = READ_FRAMES_MAX, via: str | None = None
    ) -> Slice:
        """See the port."""
        return await self._there().read(stream, want, frames_max=frames_max, via=via)

    async def put_head(self, head: Head) -> None:
        """See the port."""
        await self._writes(self._there().put_head(head))

    async def head(self, region: str, shard: int, *, via: str | None = None) -> Head | None:
        """See the port."""
        return await self._there().head(region, shard, via=via)

    async def put_ack(self, ack: Ack) -> None:
        """See the port."""
        await self._writes(self._there().put_ack(ack))

    async def acks(self, region: str, shard: int) -> list[Ack]:
        """See the port."""
        return await self._there().acks(region, shard)

    async def append_ledger(self, row: LedgerRow) -> None:
        """See the port."""
        await self._writes(self._there().append_ledger(row))

    async def read_ledger(self, namespace_id: str, *, via: str | None = None) -> list[LedgerRow]:
        """See the port."""
        return await self._there().read_ledger(namespace_id, via=via)

    async def ledger_feed(self, origin: str, day: int, after_hlc: int) -> list[LedgerHint]:
        """See the port."""
        return await self._there().ledger_feed(origin, day, after_hlc)

    async def close(self) -> None:
        """End. A try to open it that is under way is waited for: what connects cannot be stopped halfway."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:
            await self._opening
        if self._store is not None:
            await self._store.close()
