"""A reader: one shard here, and the stream of one shard of another region that it reads.

Theory of operation. replication/inbox.py says what to ask for, and what of the answers is next; this gives
it a clock, puts its questions, and stores what is ready (`ShardStreams.apply`). What was stored is
acknowledged when it is committed. A batch that could not be stored was taken from the inbox in vain: the
inbox is thrown away, and another begins at the cursor.

A stream of which nothing was read yet is begun by a question: the answer says which incarnation it is.
Entries of a namespace that this region has not heard of wait, and with them what is behind them: a cursor
passes nothing.

Invariant: a reader belongs to one leadership of its shard, and is never used after it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from history_store.engine.errors import ServiceError
from replication.failover.records import Source
from replication.frames import hlc_ms
from replication.inbox import Ask, Halted, Inbox, Reason
from replication.log import cursor as cursors
from replication.log.contract import LogError, Slice
from replication.log.search import Place

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.region.streaming import Streaming
    from cluster.hosting.shards.host import ShardHost
    from replication.log.contract import LogStore
    from replication.log.cursor import Batch, Cursor
    from replication.outbox import Doorbell, Pulled

log = structlog.get_logger("streams")

BATCH_BYTES_MAX = 1 << 20  # of one Raft entry: applied without a long pause
UNDER_WAY_MAX = 4  # batches that are proposed and not committed
RETRY_S = 0.2  # after what could not be stored, and for a namespace that is not known yet
TICK_S = 0.001  # the inbox counts milliseconds
ANSWER_S = 3.0  # a question that is not answered by then is lost


class Reader:
    """Reads one stream for one shard."""

    def __init__(self, streaming: Streaming, host: ShardHost, source: Source) -> None:
        self.source = source
        self.leader = 0  # node that leads the source's shard, as far as is known
        self.closed = False
        self.heard_at = 0.0  # when the source last said anything
        self._streaming = streaming
        self._host = host
        self._loop: asyncio.AbstractEventLoop = streaming.loop
        self._inbox: Inbox | None = None
        self._halted: Halted | None = None  # before it began
        self._asks: dict[int, Ask | None] = {}  # by number; None: which stream it is
        self._batches: deque[Batch] = deque()  # taken from the inbox, and not proposed
        self._under_way = 0
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    @property
    def shard(self) -> int:
        """The shard that reads."""
        return self._host.group.id

    @property
    def halted(self) -> Halted | None:
        """Why the stream goes no further by itself."""
        return self._inbox.halted if self._inbox is not None else self._halted

    @property
    def cursor(self) -> Cursor | None:
        """How far it is applied."""
        streams = self._host.streams
        return streams.cursor(self.source) if streams is not None else None

    def start(self) -> None:
        """Begin, if that has not happened."""
        if not self._started:
            self._started = True
            self._anew()

    def close(self) -> None:
        """The shard has another leader."""
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()

    def lag(self) -> tuple[int, int] | None:
        """Entries that are known and not applied, and milliseconds; None: not known."""
        cursor = self.cursor
        if self._inbox is None or cursor is None or not self.heard_at:
            return None
        known = self._inbox.want - 1 + self._inbox.behind
        entries = max(0, known - cursor.seq)
        if entries:
            return entries, max(0, self._host.clock.now_ns() // 1_000_000 - hlc_ms(cursor.hlc))
        return 0, int((self._loop.time() - self.heard_at) * 1000)

    # ---- what comes

    def rang(self, bell: Doorbell) -> None:
        """The source's leader has something, or nothing, to say."""
        self.heard_at = self._loop.time()
        if self._inbox is not None:
            self._inbox.doorbell(bell, self._now())
            self._go_on()

    def pulled(self, number: int, answer: Pulled) -> None:
        """The source's leader answered."""
        if number not in self._asks:
            return
        self.heard_at = self._loop.time()
        ask = self._asks.pop(number)
        if self._inbox is not None and ask is not None:
            self._inbox.answered(ask, answer, self._now())
        elif self._inbox is None:
            self._begin(answer)
        self._go_on()

    def moved(self, number: int, leader: int) -> None:
        """Another node leads the source's shard."""
        self.leader = leader
        self.failed(number)

    def failed(self, number: int) -> None:
        """A question is not answered."""
        if self.closed or number not in self._asks:
            return
        self._streaming.forget(number)
        ask = self._asks.pop(number)
        if ask is not None and self._inbox is not None:
            self._inbox.failed(ask, self._now())
            self._go_on()
        elif self._inbox is None:
            self._in(RETRY_S)

    # ---- the inbox

    def _now(self) -> int:
        return int(self._loop.time() * 1000)

    def _anew(self) -> None:
        """Begin where the cursor is."""
        for number in self._asks:
            self._streaming.forget(number)
        self._asks.clear()
        self._batches.clear()
        cursor = self.cursor
        if cursor is None:
            self._inbox = None
            self._ask(None)
            return
        links = self._streaming.links
        thirds = [links.name_of(index) for index in links.others() if index != self.source.region]
        self._inbox = Inbox(cursor, thirds, self._now())
        self._go_on()

    def _begin(self, answer: Pulled) -> None:
        """Which stream it is, of which nothing was read yet."""
        streams, parted = self._host.streams, answer.parted
        assert streams is not None
        if parted is not None and answer.oldest <= parted.seq + 1:
            before = streams.cursor(Source(self.source.region, parted.parent.shard))
            if before is None or before.stream != parted.parent or before.seq < parted.seq:
                self._in(RETRY_S)  # what the parent told before comes first
                return
            begun = cursors.parted(answer.stream, parted.seq, parted.digest, parted.hlc)
        elif answer.oldest > 1:
            why = f"{answer.stream}: what is before {answer.oldest} is gone"
            self._halted = Halted(Reason.BELOW_OLDEST, why)
            return
        else:
            begun = cursors.begin(answer.stream)
        streams.read_from(self.source, begun)
        self._anew()
        if self._inbox is not None and answer.frames:
            ask = Ask(Place.PULL, self._inbox.want, 0, "", last=False)
            self._inbox.answered(ask, answer, self._now())

    def _go_on(self) -> None:
        """Ask what is to be asked, store what can be stored, and see when to look again."""
        inbox = self._inbox
        if self.closed or inbox is None:
            return
        for ask in inbox.asks(self._now()):
            self._ask(ask)
        self._store()
        due = inbox.timer()
        if due is not None:
            self._in(max(TICK_S, due / 1000 - self._loop.time()))

    def _in(self, pause_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(pause_s, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if self.closed:
            return
        if self._inbox is None:
            if not self._asks and self._halted is None:
                self._ask(None)
        else:
            self._go_on()

    # ---- questions

    def _ask(self, ask: Ask | None) -> None:
        store = self._streaming.store
        if ask is not None and ask.place is not Place.PULL:
            if store is None or ask.place is Place.THIRD:
                self._loop.call_soon(self._nothing, self._inbox, ask)
            else:
                self._loop.create_task(self._read(store, self._inbox, ask))
            return
        number = self._streaming.pull(self, ask.want if ask is not None else 1)
        if number:
            self._asks[number] = ask
            self._loop.call_later(ANSWER_S, self.failed, number)
        elif ask is None:
            self._in(RETRY_S)
        else:
            self._loop.call_soon(self._not_answered, self._inbox, ask)

    def _nothing(self, inbox: Inbox | None, ask: Ask) -> None:
        """There is no such place."""
        if inbox is not None and inbox is self._inbox and not self.closed:
            inbox.answered(ask, Slice((), 0), self._now())
            self._go_on()

    def _not_answered(self, inbox: Inbox | None, ask: Ask) -> None:
        if inbox is not None and inbox is self._inbox and not self.closed:
            inbox.failed(ask, self._now())
            self._go_on()

    async def _read(self, store: LogStore, inbox: Inbox | None, ask: Ask) -> None:
        cursor = self.cursor
        if inbox is None or cursor is None:
            return
        via = ask.region if ask.place is Place.SOURCE else None
        try:
            found = await store.read(cursor.stream, ask.want, frames_max=ask.frames_max, via=via)
        except LogError as error:
            log.debug("the log does not answer", place=ask.place, why=str(error))
            self._not_answered(inbox, ask)
            return
        if inbox is self._inbox and not self.closed:
            inbox.answered(ask, found, self._now())
            self._go_on()

    # ---- storing

    def _store(self) -> None:
        inbox = self._inbox
        while inbox is not None and inbox is self._inbox and self._under_way < UNDER_WAY_MAX:
            if not self._batches:
                batch = inbox.take(BATCH_BYTES_MAX, self._now())
                if batch is None:
                    return
                self._batches.append(batch)
            if not self._known(self._batches[0]):
                self._loop.call_later(RETRY_S, self._go_on)
                return
            self._propose(inbox, self._batches.popleft())

    def _known(self, batch: Batch) -> bool:
        """Whether this region has heard of all namespaces that a batch is about."""
        held = self._streaming.namespaces.is_held
        return all(
            held(entry.namespace_id) is not None
            for opened in batch.frames
            for entry in opened.entries
            if entry.namespace_id
        )

    def _propose(self, inbox: Inbox, batch: Batch) -> None:
        streams = self._host.streams
        assert streams is not None
        last = batch.frames[-1].frame.last_seq

        def committed(error: ServiceError | None) -> None:
            self._under_way -= 1
            if self.closed:
                return
            if error is None:
                self._streaming.acknowledge(self, batch.stream.incarnation, last)
                self._streaming.states.ask(self._host)
                if inbox is self._inbox:
                    self._go_on()
            else:
                self._failed_to_store(inbox, error)

        slots = self._streaming.node.ranges.get(self.shard, ())
        try:
            self._under_way += 1
            streams.apply(self.source, batch, slots, committed)
        except ServiceError as error:
            self._under_way -= 1
            self._failed_to_store(inbox, error)

    def _failed_to_store(self, inbox: Inbox, error: ServiceError) -> None:
        """It is not known how much of what was taken is stored, unless it was refused: begin again."""
        if inbox is not self._inbox:
            return
        log.info("what another region told cannot be stored now", shard=self.shard, why=error.message)
        self._inbox = None
        self._loop.call_later(RETRY_S, self._again)

    def _again(self) -> None:
        if not self.closed and self._inbox is None:
            self._anew()
