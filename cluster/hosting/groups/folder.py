"""The second lane to the disk: rows of committed entries, written many at once while rounds go on.

A round appends to the journal and is quick; rows go into the database and take some milliseconds, for which
nobody waits. So they have a thread of their own (`Storage.fold`). They lag the log by about `FLUSH_AGE_S`;
replay at start is bounded by that and by `FLUSH_BYTES_MAX` a group.

Only one thing must not run beside it: a round that puts an image in a group's place (`exclusive`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from cluster.hosting.groups.group import Group, RowList, Stored, Waiter, notify
from history_store.storage.contract import Round

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.groups.committer import Committer
    from cluster.hosting.groups.lanes import MakeLane

FLUSH_AGE_S = 0.5
FLUSH_BYTES_MAX = 2 << 20  # of one group
FULL_RETRY_S = 0.25

Done = Callable[[], None]
Late = dict[Group, int]  # what is committed, but not applied yet, since our disk does not have it


class Folder:
    """Writes rows, one batch at a time."""

    def __init__(self, committer: Committer, make_lane: MakeLane) -> None:
        self._committer = committer
        storage = committer.storage
        self._lane = make_lane("folder", storage.fold, storage.maintain)
        self.busy = False
        self.projecting = False  # the batch under way carries records for List
        self._wanted = False
        self._scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._waiters: list[tuple[Waiter, Late]] = []
        self._stores: list[tuple[Callable[[Round], None], Done]] = []

    def start(self) -> None:
        """Begin to write."""
        self._lane.start()

    def stop(self) -> None:
        """End when it has written what it has."""
        self.cancel()
        self._lane.stop()

    def cancel(self) -> None:
        """No more flushes by themselves."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- what there is to write

    @property
    def waits(self) -> bool:
        """Whether there is something to be written now."""
        return bool(self._wanted or self._waiters or self._stores)

    def plan(self, groups: Iterable[Group]) -> None:
        """Entries of these groups were committed: their rows are to be stored soon."""
        pending = False
        for group in groups:
            if group.rows.committed_bytes > FLUSH_BYTES_MAX:
                self._due()
                return
            pending = pending or group.rows.pending_entries > 0
        if pending and self._timer is None:
            self._timer = self._committer.loop.call_later(FLUSH_AGE_S, self._due)

    def _due(self) -> None:
        self.cancel()
        self._wanted = True
        self._schedule()

    def flush(self, waiter: Waiter) -> None:
        """Store the rows of everything committed so far, then call back."""
        groups = self._committer.groups.values()
        late = {group: group.committed for group in groups if group.applied < group.committed}
        if not self.busy and not late and not any(group.rows.pending_entries for group in groups):
            waiter(None)
            return
        self._waiters.append((waiter, late))
        self._schedule()

    def store(self, fill: Callable[[Round], None], done: Done) -> None:
        """Write rows that are no entry's: `fill` puts them into a batch, after the flush that it may have.

        `done` is called when they are durable. There is no flush under way while `fill` is called, so what it
        reads from storage is what a flush in the same batch comes after.
        """
        self._stores.append((fill, done))
        self._schedule()

    def _schedule(self) -> None:
        if not self.busy and not self._scheduled:
            self._scheduled = True
            self._committer.loop.call_soon(self.begin)

    # ---- a batch

    def begin(self) -> None:
        """Write what waits, unless something is being written."""
        self._scheduled = False
        committer = self._committer
        if self.busy or committer.exclusive or committer.stopped:
            return
        if not self.waits:
            return
        batch = Round()
        done: list[Done] = []
        told, self._waiters = self._waiters, []
        if self._wanted or told:
            self._wanted = False
            self._take_flush(batch, done)
        stores, self._stores = self._stores, []
        for fill, after in stores:
            fill(batch)
            done.append(after)
        if not (batch.rows or batch.visibility or batch.applied or done):
            self._tell(told)
            self.plan(committer.groups.values())
            return
        self.busy = True
        self.projecting = bool(batch.visibility)
        committer.rounds += 1
        self._give(batch, done, told)

    def _take_flush(self, batch: Round, done: list[Done]) -> None:
        self.cancel()
        for group in self._committer.groups.values():
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
            done.append(partial(_flush_stored, group, rows, stored, keep))

    def _tell(self, told: list[tuple[Waiter, Late]]) -> None:
        """A batch is written. Who waits for what is late waits on: for a round, then for another batch."""
        groups, refusal = self._committer.groups, self._committer.refusal
        for waiter, late in told:
            unmet = {
                group: index
                for group, index in late.items()
                if group.stored.index < index and groups.get(group.id) is group
            }
            if unmet and refusal is None:
                self._waiters.append((waiter, unmet))
            else:
                notify(waiter, refusal if unmet else None)

    def _give(self, batch: Round, done: list[Done], told: list[tuple[Waiter, Late]]) -> None:
        self._lane.put(batch, partial(self._folded, batch, done, told))

    def _folded(
        self, batch: Round, done: list[Done], told: list[tuple[Waiter, Late]], error: BaseException | None
    ) -> None:
        committer = self._committer
        if error is not None:
            waiters = [waiter for waiter, _ in told]
            refusal = committer.failed(self, error, waiters)
            if refusal is not None:
                for waiter in (*waiters, *self.give_up()):
                    notify(waiter, refusal)
                committer.loop.call_later(FULL_RETRY_S, self._retry, batch, done)
            return
        committer.succeeded(self)
        self.busy = self.projecting = False
        for after in done:
            after()
        self._tell(told)
        self.plan(committer.groups.values())
        if self.waits:
            self._schedule()
        committer.folded()

    def _retry(self, batch: Round, done: list[Done]) -> None:
        if not self._committer.stopped:
            self._give(batch, done, [])

    def give_up(self) -> list[Waiter]:
        """The disk takes nothing: those who still wait for it."""
        told, self._waiters = self._waiters, []
        return [waiter for waiter, _ in told]


def _flush_stored(group: Group, rows: RowList, stored: Stored, keep: tuple[int, int] | None) -> None:
    group.rows.stored(rows, stored.index)
    group.note_stored(stored)
    if keep is not None:
        group.raft.compact(*keep)
