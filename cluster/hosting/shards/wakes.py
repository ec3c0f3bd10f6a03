"""The clockwork of a shard: runs are looked at when something of them is due.

Theory of operation. A run that waits for a time has one wake row, ordered by that time. Of the rows up to
the *horizon* those whose namespaces are served here are in memory, as a heap; what lies beyond is read when
its time comes near. Rows of namespaces that another region serves are dormant: there may be any number of
them, overdue ones too, so reading passes over them once, some in each turn, and never comes back to them.
When the gate of such a namespace opens, all is read anew (`refill`).

Invariant: every wake row up to the horizon is in the heap, or was left alone, or is dormant.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

import msgspec
import structlog

from cluster.hosting.groups.group import nobody
from history_store.engine import deadlines, keys
from history_store.engine.errors import ServiceError
from history_store.engine.state import WakeRow
from history_store.storage.contract import StorageError

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.shards.host import ShardHost

log = structlog.get_logger("shard")

WAKES_MAX = 10_000  # wake rows held in memory; later ones stay on disk until their time comes near
WAKE_WINDOW_NS = 600_000_000_000
RETRY_S = 1.0  # after a write was refused (a full disk)
FIRES_AT_ONCE = 64  # runs woken in one turn of the loop, so that a burst of timers starves nobody

wake_row = msgspec.msgpack.Decoder(WakeRow).decode


class Wakes:
    """One per shard that is led here."""

    def __init__(self, shard: ShardHost) -> None:
        self._shard = shard
        self.heap: list[tuple[int, bytes]] = []  # (due, run)
        self.horizon = 0
        self._left_alone: list[tuple[int, bytes]] = []  # they could not be woken
        self._from = keys.WAKE  # where to read on
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0  # when it goes off; 0: it is not set

    def note(self, due: int, raw: bytes) -> None:
        """A run has a wake row at or before the horizon."""
        heappush(self.heap, (due, raw))
        if len(self.heap) > 4 * WAKES_MAX:
            self.refill()
        elif self._at == 0 or due < self._at:
            self._arm()

    def refill(self) -> None:
        """Read the wake rows of the near future, from the first one on."""
        self.heap.clear()
        self._left_alone.clear()
        self._from = keys.WAKE
        self.read_on()

    def read_on(self) -> None:
        """Read what follows, up to some number of rows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        shard = self._shard
        end = max(keys.WAKE + keys.number(shard.clock.now_ns() + WAKE_WINDOW_NS), self._from)
        found = list(shard.rows.scan(self._from, end, WAKES_MAX))
        if len(found) == WAKES_MAX:
            self._from = found[-1][0] + b"\0"
        else:
            self._from = end
            for left in self._left_alone:
                heappush(self.heap, left)
            self._left_alone.clear()
        self.horizon = int.from_bytes(self._from[1:9], "big")
        for key, value in found:
            if shard.serves(wake_row(value).namespace_id):
                heappush(self.heap, (int.from_bytes(key[1:9], "big"), key[9:]))
        self._arm()

    def close(self) -> None:
        """Stop."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        due = self.heap[0][0] if self.heap else self.horizon
        due = min(due, self.horizon)
        if self._timer is not None:
            if due == self._at:
                return
            self._timer.cancel()
        self._at = due
        delay = max(0, due - self._shard.clock.now_ns()) / 1e9
        self._timer = self._shard.loop.call_later(delay, self.fire)

    def fire(self) -> None:
        """Wake what is due."""
        shard = self._shard
        if shard.retired:
            return
        try:
            self._fire_due()
        except StorageError as error:
            # A clock that cannot read what is due would stop in silence: the node stops instead.
            shard.group.committer.stop_for(error)
        except ServiceError:
            if not shard.group.damage:  # else another leads in a moment, or nobody
                raise

    def _fire_due(self) -> None:
        self._timer = None
        self._at = 0
        shard = self._shard
        now = shard.clock.now_ns()
        fired = 0
        heap = self.heap
        while heap and heap[0][0] <= now and fired < FIRES_AT_ONCE:
            due, raw = heappop(heap)
            value = shard.rows.get(keys.wake(due, raw))
            if value is None:
                continue
            fired += 1
            try:
                self._wake(due, raw, wake_row(value))
            except ServiceError as error:
                log.warning("runs could not be woken; trying again", error=error.message)
                heappush(heap, (due, raw))  # an earlier wake may re-arm the clock before the retry
                self._at = now + int(RETRY_S * 1e9)
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = shard.loop.call_later(RETRY_S, self.fire)
                return
            except StorageError:
                raise
            except Exception:  # one run that cannot be woken must not stop the clock of all others
                log.exception("a run could not be woken; it is left alone for a while", run=raw.hex())
                self._left_alone.append((due, raw))
        if now >= self.horizon and not (heap and heap[0][0] <= now):
            self.read_on()
        else:
            self._arm()

    def _wake(self, due: int, raw: bytes, row: WakeRow) -> None:
        shard = self._shard
        if not shard.serves(row.namespace_id):
            return  # it is dormant from now on
        run = shard.find(row.namespace_id, row.workflow_id, row.run_id)
        tx = shard.begin(row.namespace_id)
        if run is None:
            tx.rows.append((keys.wake(due, raw), None))
        else:
            try:
                tx.open(run)
                if run.state.wake != due:
                    tx.rows.append((keys.wake(due, raw), None))
                deadlines.fire(tx, run)
                if run.deleted:
                    shard.delete_rows(tx, run)
            except BaseException:
                shard.abort(tx)
                raise
        shard.commit(tx, nobody)
