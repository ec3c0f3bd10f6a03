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
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import structlog

from history_store.engine.errors import Code, Indefinite, ServiceError
from history_store.raft import DATA, Config, RawNode
from history_store.shard.rows import Rows
from history_store.storage.contract import Round, Storage, StorageError, StorageFull, StorageReadOnly

if TYPE_CHECKING:
    import random

    from history_store.raft import Ready
    from history_store.storage.contract import Entry, GroupLog
    from history_store.visibility.record import VisibilityOp

log = structlog.get_logger("storage")

FLUSH_AGE_S = 0.5  # rows lag the log by about this; replay at start is bounded by it and the next limit
FLUSH_BYTES_MAX = 8 << 20
FULL_RETRY_S = 0.25

Waiter = Callable[[ServiceError | None], None]


def nobody(error: ServiceError | None) -> None:
    """The waiter of a commit that nobody waits for."""


class Group:
    """One Raft group on this node: its replica, its rows, and who waits for its entries."""

    def __init__(
        self, committer: Committer, group: int, storage: Storage, found: GroupLog | None, rng: random.Random
    ) -> None:
        self.id = group
        self.committer = committer
        self.rows = Rows(storage, group)
        config = Config(node_id=1, voters=(1,))
        self.raft = RawNode(config, rng.randrange, found)
        self._waiters: deque[tuple[int, Waiter, bool]] = deque()
        self._written: dict[int, tuple[list[tuple[bytes, bytes | None]], list[VisibilityOp]]] = {}
        self.proposed = 0
        self.committed = 0
        if found is not None:
            self.proposed = self.committed = found.applied

    def recover(self) -> None:
        """Become leader (alone, at once) and rebuild the overlay from what the log has after `applied`."""
        assert self.raft.campaign(), "the only voter leads"
        while self.raft.has_ready():
            ready = self.raft.ready()
            self._apply_found(ready.committed_entries)
            batch = Round()
            collect(batch, self, ready)
            self.committer.storage.write(batch)
            self._apply_found(self.raft.advance(ready))

    def _apply_found(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.committed = self.proposed = entry.index
            if entry.kind == DATA:
                self.rows.replay(entry)
            else:
                self.rows.commit(entry.index, entry.term, [], [], 0)

    def propose(
        self, data: bytes, rows: list[tuple[bytes, bytes | None]], visibility: list[VisibilityOp]
    ) -> int:
        """Append; the rows are visible here from now on. Raises a definite error if it cannot be taken."""
        if self.committer.refusal is not None:
            raise self.committer.refusal
        index = self.raft.propose(data)
        self.proposed = index
        self.rows.propose(index, rows)
        self._written[index] = (rows, visibility)
        self.committer.mark(self)
        return index

    def when_committed(self, waiter: Waiter, *, patient: bool = False, index: int | None = None) -> None:
        """Call back when everything proposed so far is committed (at once if it is, or if `index` is).

        While the disk takes no writes a waiter hears an indefinite error, since a client must not hang; a
        patient one (the node's own doings) waits until it is true.
        """
        if self.committed >= (self.proposed if index is None else index):
            waiter(None)
        elif self.committer.refusal is not None and not patient:
            waiter(Indefinite(f"this waits for the disk: {self.committer.refusal.message}"))
        else:
            self._waiters.append((self.proposed, waiter, patient))

    def applied(self, entries: list[Entry]) -> None:
        """These entries are committed: rows may be stored, waiters hear of it."""
        written = self._written
        for entry in entries:
            rows, visibility = written.pop(entry.index, ([], []))
            self.rows.commit(entry.index, entry.term, rows, visibility, len(entry.data))
            self.committed = entry.index

    def tell(self) -> None:
        """Call the waiters whose entries are committed."""
        waiters, committed = self._waiters, self.committed
        while waiters and waiters[0][0] <= committed:
            notify(waiters.popleft()[1], None)

    def fail_waiters(self, error: ServiceError) -> None:
        """The round cannot be written now: whoever is not patient hears that it may or may not happen."""
        waiters, self._waiters = self._waiters, deque()
        for index, waiter, patient in waiters:
            if patient:
                self._waiters.append((index, waiter, True))
            else:
                notify(waiter, error)


def notify(waiter: Waiter, error: ServiceError | None) -> None:
    """Tell one who waits: whatever is wrong with it, the others are to hear."""
    try:
        waiter(error)
    except Exception:
        log.exception("somebody who waited for the disk could not be told")


def collect(batch: Round, group: Group, ready: Ready) -> None:
    """Put a Ready into a round."""
    if ready.entries:
        batch.entries.append((group.id, ready.entries))
    if ready.hard_state is not None:
        batch.hard_states.append((group.id, ready.hard_state))


class Committer:
    """All groups of a node, and its one writer thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        inline: bool,
        on_broken: Callable[[BaseException], None],
    ) -> None:
        self.loop = loop
        self.storage = storage
        self.groups: dict[int, Group] = {}
        self.refusal: ServiceError | None = None  # why new writes are refused
        self.rounds = 0
        self.entries = 0
        self._inline = inline
        self._on_broken = on_broken
        self._dirty: dict[Group, None] = {}  # in the order they came, the same in every run of a test
        self._busy = False
        self._projecting = False  # the round under way carries records for List
        self._scheduled = False
        self._flush_wanted = False
        self._flush_timer: asyncio.TimerHandle | None = None
        self._flush_waiters: list[Waiter] = []
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to write."""
        if not self._inline:
            self._thread = threading.Thread(target=self._write_forever, name="writer", daemon=True)
            self._thread.start()

    def add(self, group: int, found: GroupLog | None, rng: random.Random) -> Group:
        """Open a group; its log has been loaded."""
        made = self.groups[group] = Group(self, group, self.storage, found, rng)
        made.recover()
        return made

    # ---- forming rounds

    def mark(self, group: Group) -> None:
        """The group has something to write."""
        self._dirty[group] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._busy:
            self._scheduled = True
            self.loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._scheduled = False
        if self._busy or self._stopped:
            return
        batch = Round()
        readies: list[tuple[Group, Ready]] = []
        for group in self._dirty:
            if group.raft.has_ready():
                ready = group.raft.ready()
                collect(batch, group, ready)
                readies.append((group, ready))
        self._dirty.clear()
        flushed: list[tuple[Group, list[tuple[bytes, bytes | None]], int, int]] = []
        told, self._flush_waiters = self._flush_waiters, []
        if self._flush_wanted or told:
            self._flush_wanted = False
            self._take_flush(batch, flushed)
        if not (batch.entries or batch.rows or batch.visibility or batch.applied or readies):
            for waiter in told:
                notify(waiter, None)
            return
        self._busy = True
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

    def _take_flush(self, batch: Round, flushed: list[Any]) -> None:
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
            batch.applied.append((group.id, index, term, group.raft.conf_bytes))
            batch.compact.append((group.id, index, term))
            flushed.append((group, rows, index, term))

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
        flushed: list[Any],
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
        for group, rows, index, term in flushed:
            group.rows.stored(rows, index)
            group.raft.compact(index, term)
        for group, ready in readies:
            group.applied(ready.committed_entries)
            group.applied(group.raft.advance(ready))
            self.entries += len(ready.entries)
        for group, _ in readies:
            group.tell()
            if group.raft.has_ready():
                self._dirty[group] = None
        for waiter in told:
            notify(waiter, None)
        self._plan_flush()
        if self._dirty or self._flush_wanted or self._flush_waiters:
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
        flushed: list[Any],
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

    def _retry(self, batch: Round, readies: list[tuple[Group, Ready]], flushed: list[Any]) -> None:
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
