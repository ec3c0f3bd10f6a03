"""A disk that can be slow, full, broken, and that a crash finds in the middle of a write.

A machine's disk outlives the processes that use it. What a process was writing when it was killed is there or
not, as a whole (the storage room's promise; its own tests tear real files); what it had not been told to be
durable may be gone.
"""

from __future__ import annotations

import contextvars
import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from history_store.storage.contract import Round, StorageBroken, StorageError, StorageFull
from history_store.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from cluster.hosting.groups.lanes import Then, Write
    from cluster.peers.virtual_time import VirtualLoop

_NOBODY = contextvars.Context()
QUICK_S = (0.0002, 0.001)


class Disk(MemoryStorage):
    """One machine's."""

    def __init__(self, loop: VirtualLoop, rng: random.Random) -> None:
        super().__init__()
        self._loop = loop
        self._rng = rng
        self.full = False
        self.sync_s = QUICK_S  # what a round takes
        self._breaks = False
        self._lanes: list[DiskLane] = []

    def break_next(self) -> None:
        """The next write fails, and nobody knows what came of it (EIO)."""
        self._breaks = True

    def heal(self) -> None:
        """It is as good as new."""
        self.full = self._breaks = False
        self.sync_s = QUICK_S

    def lane(self, name: str, write: Write, after: Callable[[], None] | None) -> DiskLane:
        """A lane of the process that uses the disk now (`MakeLane`)."""
        made = DiskLane(self._loop, self, name, write, after)
        self._lanes.append(made)
        return made

    def write(self, batch: Round) -> None:
        """Take the round, as a whole."""
        if self.full:
            raise StorageFull("no space left on device")
        if self._breaks:
            self._breaks = False
            self.fail_next(StorageBroken("input/output error"), applied=self._rng.random() < 0.5)
        super().write(batch)

    def crash(self) -> None:
        """The process was killed: of what it was writing, the first may have been done."""
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.killed(done=self._rng.random() < 0.5)
        self._breaks = False
        super().crash()

    def close(self) -> None:
        """It stays, for the next process."""

    def scrap(self) -> None:
        """The world ends."""
        super().close()

    def wait_s(self) -> float:
        """What the next write takes."""
        return self._rng.uniform(*self.sync_s)


class DiskLane:
    """A lane (`cluster.hosting.groups.lanes.Lane`) on which a write takes virtual time."""

    def __init__(
        self, loop: VirtualLoop, disk: Disk, name: str, write: Write, after: Callable[[], None] | None
    ) -> None:
        self.name = name
        self._loop = loop
        self._disk = disk
        self._write = write
        self._after = after
        self._jobs: deque[tuple[Round, Then]] = deque()  # the first is being written

    def start(self) -> None:
        """Nothing to do."""

    def put(self, batch: Round, then: Then) -> None:
        """See `Lane`."""
        self._jobs.append((batch, then))
        if len(self._jobs) == 1:
            self._begin()

    def _begin(self) -> None:
        process = contextvars.copy_context()
        self._loop.call_later(self._disk.wait_s(), self._sync, self._jobs[0], process, context=_NOBODY)

    def _sync(self, job: tuple[Round, Then], process: contextvars.Context) -> None:
        """The kernel has written it, whatever its process does meanwhile."""
        if self._jobs and self._jobs[0] is job:
            error = self._try(job[0])
            self._jobs[0] = (Round(), job[1])  # if it is killed now, there is nothing left to be written
            self._loop.call_soon(self._written, error, context=process)

    def _written(self, error: StorageError | None) -> None:
        """The process hears of it."""
        if not self._jobs:
            return  # stopped
        _, then = self._jobs.popleft()
        if self._jobs:
            self._begin()
        then(error)
        if error is None and self._after is not None:
            self._after()

    def _try(self, batch: Round) -> StorageError | None:
        try:
            self._write(batch)
        except StorageError as error:
            return error
        return None

    def stop(self) -> None:
        """Write what there is, and end."""
        while self._jobs:
            self._try(self._jobs.popleft()[0])

    def killed(self, *, done: bool) -> None:
        """The process is no more; `done`: what was being written made it."""
        if done and self._jobs:
            self._try(self._jobs[0][0])
        self._jobs.clear()
