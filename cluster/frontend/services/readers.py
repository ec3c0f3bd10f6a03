"""Threads that read the projection, so that a long List never holds the loop up."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from sqlite3 import Connection
from typing import TYPE_CHECKING

from cluster.frontend.services.base import Services, fail
from cluster.frontend.status import status_of
from cluster.hosting.calls.attempt import slots_asked
from cluster.hosting.calls.parts import Answer, Lacking, Part, Question, Then, Work, write_part
from history_store.engine.errors import Code, ServiceError

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

    def ask(self, call: Call, question: Question) -> None:
        """Answer the call: with all there is in the region, or with the part that another node asks for."""

        def answer(found: bytes | None, error: BaseException | None) -> None:
            _answer(call, found, error)

        if self._node.forward is None:
            self.read(call, question.whole, answer)
            return
        slots = slots_asked(call)
        if slots is None:
            Answer(self._node, call, question, self, answer).begin()
            return

        def heard(found: bytes | Lacking | BaseException) -> None:
            if isinstance(found, BaseException):
                answer(None, found)
            else:
                answer(write_part(found), None)

        Part(self._node, call, question, slots, self, heard, alone=False).begin()

    # ---- cluster.hosting.calls.parts.Reader

    def read(self, call: Call, work: Work, then: Then) -> None:
        """Work on the projection, once everything committed so far can be seen in it."""
        committer = self._node.committer

        def look(error: ServiceError | None) -> None:
            if error is not None:
                then(None, error)
            else:
                self._start(call, lambda: work(self._connection()), then)

        if not committer.visibility_pending:
            look(None)
        elif committer.refusal is None:
            committer.flush(look)
        else:
            # An answer without what was acknowledged would be a wrong one, and nobody could tell.
            why = f"List and Count cannot show what was acknowledged last: {committer.refusal.message}"
            look(ServiceError(Code.UNAVAILABLE, why))

    def compute(self, call: Call, work: Callable[[], bytes], then: Then) -> None:
        """Work that needs no projection."""
        self._start(call, work, then)

    def _start(self, call: Call, work: Callable[[], bytes], then: Then) -> None:
        if call.done:
            return
        if not self._node.threads:
            future: Future[bytes] = Future()
            try:
                future.set_result(_work(call, work))
            except Exception as error:  # noqa: BLE001 - as the pool does
                future.set_exception(error)
            _tell(then, future)
            return
        try:
            future = self._pool.submit(_work, call, work)
        except RuntimeError:  # the pool is closed: the server stops, and so does the connection
            return
        future.add_done_callback(lambda done: self._done(then, done))

    def _connection(self) -> Connection:
        connection: Connection | None = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = self._node.storage.visibility_connection()
            self._connections.append(connection)
        return connection

    def _done(self, then: Then, future: Future[bytes]) -> None:
        if not future.cancelled():
            self._loop.call_soon_threadsafe(_tell, then, future)

    def close(self) -> None:
        """Finish what is being read, and close the connections."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self._connections.clear()


def _work(call: Call, work: Callable[[], bytes]) -> bytes:
    return b"" if call.done else work()  # it may have waited in vain


def _tell(then: Then, future: Future[bytes]) -> None:
    error = future.exception()
    then(None if error is not None else future.result(), error)


def _answer(call: Call, found: bytes | None, error: BaseException | None) -> None:
    if isinstance(error, ServiceError):
        fail(call, error)
    elif error is not None:
        status = status_of(error, call.method, call.connection.peer)
        call.fail(status.code, status.message, status.details)
    elif found is not None:
        call.finish(found)
