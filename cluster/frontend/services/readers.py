"""Threads that read the projection, so that a long List never holds the loop up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from sqlite3 import Connection
from typing import TYPE_CHECKING

from cluster.frontend.services.base import Services, fail
from cluster.frontend.status import status_of
from history_store.engine.errors import ServiceError

if TYPE_CHECKING:
    from cluster.frontend.contract import Call

THREADS_MAX = 2  # SQLite reads outside the interpreter's lock; more would only take the loop's core away


class Readers:
    """A few threads, each with a read-only connection of its own."""

    def __init__(self, services: Services) -> None:
        self._node = services.node
        self._loop = services.loop
        self._pool = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="reader")
        self._own = threading.local()
        self._connections: list[Connection] = []
        services.on_close.append(self.close)

    def read(self, call: Call, work: Callable[[Connection], bytes]) -> None:
        """Answer the call with what `work` returns, once everything committed so far can be seen."""
        if self._node.forward is None:
            self._flush(call, work)
            return

        def current(error: ServiceError | None) -> None:
            if error is not None:
                fail(call, error)
            else:
                self._flush(call, work)

        self._node.when_current(current)

    def _flush(self, call: Call, work: Callable[[Connection], bytes]) -> None:
        committer = self._node.committer
        if committer.visibility_pending and committer.refusal is None:
            committer.flush(lambda _: self._start(call, work))
        else:
            # While the disk takes no writes, what it has is shown: better than nothing for hours.
            self._start(call, work)

    def _start(self, call: Call, work: Callable[[Connection], bytes]) -> None:
        if call.done:
            return
        if not self._node.threads:
            future: Future[bytes] = Future()
            try:
                future.set_result(self._work(call, work))
            except Exception as error:  # noqa: BLE001 - as the pool does
                future.set_exception(error)
            _answer(call, future)
            return
        try:
            future = self._pool.submit(self._work, call, work)
        except RuntimeError:  # the pool is closed: the server stops, and so does the connection
            return
        future.add_done_callback(lambda done: self._done(call, done))

    def _work(self, call: Call, work: Callable[[Connection], bytes]) -> bytes:
        if call.done:
            return b""  # it waited in vain
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._node.storage.visibility_connection()
            self._connections.append(connection)
        return work(connection)

    def _done(self, call: Call, future: Future[bytes]) -> None:
        if not future.cancelled():
            self._loop.call_soon_threadsafe(_answer, call, future)

    def close(self) -> None:
        """Finish what is being read, and close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def _answer(call: Call, future: Future[bytes]) -> None:
    error = future.exception()
    if error is None:
        call.finish(future.result())
    elif isinstance(error, ServiceError):
        fail(call, error)
    else:
        status = status_of(error, call.method, call.connection.peer)
        call.fail(status.code, status.message, status.details)
