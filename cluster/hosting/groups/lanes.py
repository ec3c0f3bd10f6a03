"""Lanes: what writes rounds beside the loop, one after the other, and tells the loop of each.

A thread is the usual one. Where a write costs nothing (memory) it is done at once, in the loop. A simulation
brings its own, on which a write takes virtual time and a crash finds it half done.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from history_store.storage.contract import Round, StorageError

if TYPE_CHECKING:
    import asyncio

Write = Callable[[Round], None]
Then = Callable[[BaseException | None], None]


class Lane(Protocol):
    """Takes rounds."""

    def start(self) -> None:
        """Begin to write."""

    def put(self, batch: Round, then: Then) -> None:
        """Write it after those before; then say so in the loop, or why not."""

    def stop(self) -> None:
        """Write what there is, and end."""


# (name, how a round is written, what is done after those who wait for it were told)
MakeLane = Callable[[str, Write, Callable[[], None] | None], Lane]


class InlineLane:
    """In the loop, at once."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def start(self) -> None:
        """Nothing to do."""

    def put(self, batch: Round, then: Then) -> None:
        """See `Lane`."""
        try:
            self._write(batch)
        except StorageError as problem:
            then(problem)
        else:
            then(None)

    def stop(self) -> None:
        """Nothing to do."""


class ThreadLane:
    """A thread of its own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        name: str,
        write: Write,
        after: Callable[[], None] | None = None,
    ) -> None:
        self._loop = loop
        self._name = name
        self._write = write
        self._after = after
        self._jobs: queue.SimpleQueue[tuple[Round, Then] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write."""
        self._thread = threading.Thread(target=self._forever, name=self._name, daemon=True)
        self._thread.start()

    def put(self, batch: Round, then: Then) -> None:
        """See `Lane`."""
        self._jobs.put((batch, then))

    def stop(self) -> None:
        """End the thread when it has written what it has."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()

    def _forever(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            batch, then = job
            try:
                self._write(batch)
                error: BaseException | None = None
            except BaseException as problem:  # noqa: BLE001 - the loop's thread decides what it means
                error = problem
            self._loop.call_soon_threadsafe(then, error)
            if error is None and self._after is not None:
                self._after()


def threads(loop: asyncio.AbstractEventLoop) -> MakeLane:
    """Lanes that are threads."""
    return lambda name, write, after: ThreadLane(loop, name, write, after)


def inline(_name: str, write: Write, _after: Callable[[], None] | None) -> Lane:
    """Lanes that write at once."""
    return InlineLane(write)
