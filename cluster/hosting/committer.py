"""Rounds: one durable write serves every group that has something to say.

A round takes a Ready from each dirty group, writes them all with one `Storage.write` on the writer thread,
then advances the groups and tells who waited. While a round syncs the next one forms. Rows of committed
entries are written later, many at once, riding on a round's sync (or on a round of their own when it is
quiet).

When the disk is full the round stays as it is and is tried again until there is space: what is in it was
never acknowledged. New writes are refused meanwhile (`refusal`). Any other write error has an unknown
outcome, so the node stops and lets the log decide at its next start.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog

from cluster.hosting.group import Group, Images, RowList, Send, Stored, Waiter, notify
from history_store.engine.errors import Code, Indefinite, ServiceError
from history_store.raft import Config
from history_store.storage.contract import Round, Storage, StorageError, StorageFull, StorageReadOnly

if TYPE_CHECKING:
    import random

    from history_store.raft import Ready
    from history_store.storage.contract import GroupLog

log = structlog.get_logger("storage")

FLUSH_AGE_S = 0.5  # rows lag the log by about this; replay at start is bounded by it and the next limit
FLUSH_BYTES_MAX = 8 << 20
FULL_RETRY_S = 0.25

Done = Callable[[], None]


class Committer:
    """All groups of a node, and its one writer thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        inline: bool,
        on_broken: Callable[[BaseException], None],
        node_id: int = 1,
        send: Send | None = None,
    ) -> None:
        self.loop = loop
        self.storage = storage
        self.node_id = node_id
        self._send = send
        self.groups: dict[int, Group] = {}
        self.images: Images | None = None
        self.refusal: ServiceError | None = None  # why new writes are refused
        self.rounds = 0
        self.entries = 0
        self._inline = inline
        self._on_broken = on_broken
        self._dirty: dict[Group, None] = {}  # in the order they came, the same in every run of a test
        self._busy = False
        self._projecting = False  # the round under way carries records for List
        self._scheduled = False
        self._pumping = False
        self._began = 0.0  # when the round under way was handed to the thread
        self._longest_s = 0.0
        self._flush_wanted = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._flush_waiters: list[Waiter] = []
        self._stores: list[tuple[Callable[[Round], None], Done]] = []
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to write."""
        if not self._inline:
            self._thread = threading.Thread(target=self._write_forever, name="writer", daemon=True)
            self._thread.start()

    def add(
        self, group: int, found: GroupLog | None, rng: random.Random, config: Config | None = None
    ) -> Group:
        """Open a group; its log has been loaded (None: it is new). A group without others leads at once."""
        if config is None:
            config = Config(node_id=self.node_id, voters=(self.node_id,))
        made = self.groups[group] = Group(self, group, self.storage, found, rng.randrange, config, self._send)
        made.recover()
        if self.images is not None:
            self.images.opened(made)
        return made

    def write_now(self, group: Group, ready: Ready) -> None:
        """Write a Ready at once: before anything else runs."""
        batch = Round()
        group.collect(batch, ready)
        self.storage.write(batch)

    # ---- forming rounds

    def mark(self, group: Group) -> None:
        """The group has something to write."""
        self._dirty[group] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._busy:
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._begin)
        elif self._send is not None and not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def _pump(self) -> None:
        """While a round is being written: appends leave for other replicas, and what they have is applied.

        So a follower's sync overlaps ours, and an entry that a quorum of others has does not wait for ours.
        """
        self._pumping = False
        if self._stopped:
            return
        for group in list(self._dirty):
            group.send(group.raft.take_messages())
            committed = group.raft.take_committed()
            if committed:
                group.apply(committed)
                group.tell()

    def _take_readies(self, batch: Round, readies: list[tuple[Group, Ready]]) -> None:
        """A Ready of each dirty group: what must be durable goes in the round, the rest is done here."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for group in dirty:
                if not group.raft.has_ready():
                    continue
                ready = group.raft.ready()
                group.note_state(ready)
                group.send(ready.messages)
                if ready.must_sync:
                    group.collect(batch, ready)
                    readies.append((group, ready))
                    # Committed and durable before this Ready: nobody needs to wait for the disk.
                    group.apply(ready.committed_entries)
                else:
                    group.apply(ready.committed_entries)
                    group.apply(group.raft.advance(ready))
                    group.send(ready.messages_after)
                    if group.raft.has_ready():
                        self._dirty[group] = None
                group.tell()

    def _begin(self) -> None:
        self._scheduled = False
        if self._busy or self._stopped:
            return
        batch = Round()
        readies: list[tuple[Group, Ready]] = []
        self._take_readies(batch, readies)
        flushed: list[Done] = []
        told, self._flush_waiters = self._flush_waiters, []
        if self._flush_wanted or told:
            self._flush_wanted = False
            self._take_flush(batch, flushed)
        stores, self._stores = self._stores, []
        for fill, done in stores:
            fill(batch)
            flushed.append(done)
        if not (batch.entries or batch.rows or batch.visibility or batch.applied or readies or flushed):
            for waiter in told:
                notify(waiter, None)
            self._plan_flush()
            return
        self._busy = True
        self._began = self.loop.time()
        self._projecting = bool(batch.visibility)
        self.rounds += 1
        if self._inline:
            try:
                self.storage.write(batch)
                error = None
            except StorageError as problem:
                error = problem
            self._written(batch, readies, flushed, told, error)
        else:
            self._jobs.put((batch, readies, flushed, told))

    def store(self, fill: Callable[[Round], None], done: Done) -> None:
        """Write rows that are no entry's: `fill` puts them into a round, after the flush that it may have.

        `done` is called when they are durable. There is no flush under way while `fill` is called, so what it
        reads from storage is what a flush in the same round comes after.
        """
        self._stores.append((fill, done))
        self._schedule()

    def _take_flush(self, batch: Round, flushed: list[Done]) -> None:
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        for group in self.groups.values():
            taken = group.rows.take_flush()
            if taken is None:
                continue
            rows, visibility, index, term = taken
            batch.rows.extend(rows)
            batch.visibility.extend(visibility)
            batch.applied.append((group.id, index, term, group.conf_stored))
            stored = Stored(index, term, group.raft.conf_bytes)
            keep = group.compactable(index, term)
            if keep is not None:
                batch.compact.append((group.id, *keep))
            flushed.append(partial(self._flush_stored, group, rows, stored, keep))

    @staticmethod
    def _flush_stored(group: Group, rows: RowList, stored: Stored, keep: tuple[int, int] | None) -> None:
        group.rows.stored(rows, stored.index)
        group.note_stored(stored)
        if keep is not None:
            group.raft.compact(*keep)

    def flush(self, waiter: Waiter) -> None:
        """Store the rows of everything committed so far, then call back."""
        if not any(group.rows.pending_entries for group in self.groups.values()) and not self._busy:
            waiter(None)
            return
        self._flush_waiters.append(waiter)
        self._schedule()

    @property
    def unsettled(self) -> list[Group]:
        """Groups that have proposed what is not committed yet."""
        return [group for group in self.groups.values() if group.proposed > group.committed]

    @property
    def visibility_pending(self) -> bool:
        """Whether a List would miss something that is committed."""
        return self._projecting or any(group.rows.visibility_pending for group in self.groups.values())

    def longest_round_s(self) -> float:
        """The longest round since this was last asked, one that is still being written included."""
        longest, self._longest_s = self._longest_s, 0.0
        return max(longest, self.loop.time() - self._began if self._busy else 0.0)

    # ---- the writer thread

    def _write_forever(self) -> None:
        maintain = getattr(self.storage, "maintain", None)
        while True:
            job = self._jobs.get()
            if job is None:
                return
            batch, readies, flushed, told = job
            try:
                self.storage.write(batch)
                error: BaseException | None = None
            except BaseException as problem:  # noqa: BLE001 - the loop's thread decides what it means
                error = problem
            self.loop.call_soon_threadsafe(self._written, batch, readies, flushed, told, error)
            if maintain is not None and error is None:
                maintain()

    def _written(
        self,
        batch: Round,
        readies: list[tuple[Group, Ready]],
        flushed: list[Done],
        told: list[Waiter],
        error: BaseException | None,
    ) -> None:
        if error is not None:
            self._write_failed(batch, readies, flushed, told, error)
            return
        if self.refusal is not None:
            log.warning("the disk takes writes again")
            self.refusal = None
        self._busy = self._projecting = False
        self._longest_s = max(self._longest_s, self.loop.time() - self._began)
        for done in flushed:
            done()
        for group, ready in readies:
            if ready.snapshot is not None:
                assert self.images is not None, "somebody installed it"
                self.images.installed(group)
            group.apply(group.raft.advance(ready))
            group.send(ready.messages_after)
            self.entries += len(ready.entries)
        for group, _ in readies:
            group.tell()
            if group.raft.has_ready():
                self._dirty[group] = None
        for waiter in told:
            notify(waiter, None)
        self._plan_flush()
        if self._dirty or self._flush_wanted or self._flush_waiters or self._stores:
            self._schedule()

    def _plan_flush(self) -> None:
        pending = sum(group.rows.committed_bytes for group in self.groups.values())
        if pending > FLUSH_BYTES_MAX:
            self._flush_wanted = True
        elif self._flush_timer is None and any(group.rows.pending_entries for group in self.groups.values()):
            self._flush_timer = self.loop.call_later(FLUSH_AGE_S, self._flush_due)

    def _flush_due(self) -> None:
        self._flush_timer = None
        self._flush_wanted = True
        self._schedule()

    def _write_failed(
        self,
        batch: Round,
        readies: list[tuple[Group, Ready]],
        flushed: list[Done],
        told: list[Waiter],
        error: BaseException,
    ) -> None:
        if not isinstance(error, StorageFull | StorageReadOnly):
            told, self._flush_waiters = [*told, *self._flush_waiters], []
            self.stop_for(error, told)
            return
        if self.refusal is None:
            log.error("the disk takes no writes; refusing new ones until it does", error=str(error))
            self.refusal = ServiceError(Code.RESOURCE_EXHAUSTED, f"this node takes no writes: {error}")
            waits = Indefinite(f"the write waits for the disk and may still happen: {error}")
            for group in self.groups.values():
                group.fail_waiters(waits)
        for waiter in told:
            notify(waiter, self.refusal)
        self.loop.call_later(FULL_RETRY_S, self._retry, batch, readies, flushed)

    def _retry(self, batch: Round, readies: list[tuple[Group, Ready]], flushed: list[Done]) -> None:
        if self._stopped:
            return
        if self._inline:
            try:
                self.storage.write(batch)
            except StorageError as problem:
                self._written(batch, readies, flushed, [], problem)
            else:
                self._written(batch, readies, flushed, [], None)
        else:
            self._jobs.put((batch, readies, flushed, []))

    def stop_for(self, error: BaseException, told: Iterable[Waiter] = ()) -> None:
        """The storage failed, and what it holds is unknown: stop; the log decides at the next start."""
        log.critical("the disk failed; stopping", error=str(error))
        self._stopped = True
        self.refusal = Indefinite(f"this node's disk failed, and it stops: {error}")
        for group in self.groups.values():
            group.fail_waiters(self.refusal)
        for waiter in told:
            notify(waiter, self.refusal)
        self._on_broken(error)

    async def close(self) -> None:
        """Store everything committed, then stop the thread."""
        if not self._stopped and self.refusal is None:
            done: asyncio.Future[ServiceError | None] = self.loop.create_future()
            self.flush(done.set_result)
            await done
        self._stopped = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
