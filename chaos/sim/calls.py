"""Calls without a front: what a client, a connection and a call are where everything is one process.

A client of the public API would speak HTTP/2 to a node's port. Here the same bytes reach the same handlers
after a moment of virtual time, and what happens to connections happens here: a node dies and all its calls
end, nobody listens, a client goes away, a deadline passes on both sides.

The node's half of a call runs as the node's process: held back while that is paused, lost when it is killed.
The client's half belongs to no process.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol
from zlib import crc32

from cluster.frontend.contract import Handler
from cluster.frontend.plain import PlainCall, PlainConnection
from cluster.frontend.status import status_of
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from chaos.sim.trace import Trace
    from cluster.peers.virtual_time import Process, VirtualLoop

DELAY_S = (0.0002, 0.002)  # one way
HUNG_UP = "the connection was closed"
_NOBODY = contextvars.Context()


class Refused(Exception):
    """A call that ended with a status. `code` is gRPC's."""

    def __init__(
        self, code: int, message: str, details: bytes | None = None, *, reached: bool = True
    ) -> None:
        super().__init__(f"{Code(code).name}: {message}")
        self.code = Code(code)
        self.message = message
        self.details = details
        self.reached = reached  # False: the request certainly never left the client


class Host(Protocol):
    """A node, as its clients see it."""

    name: str
    process: Process
    handlers: Mapping[str, Handler]  # empty while it does not serve


class ServerCall(PlainCall):
    """The node's side of a call (a `contract.Call`)."""

    __slots__ = ("_tell", "connection")

    def __init__(
        self,
        method: str,
        request: bytes,
        deadline: float,
        connection: PlainConnection,
        tell: Callable[..., None],
    ) -> None:
        super().__init__(method, request, deadline)
        self.connection = connection
        self._tell = tell

    def finish(self, body: bytes) -> None:
        """Answer."""
        if not self.done:
            self.end()
            self._tell(body, None)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Answer with a status."""
        if not self.done:
            self.end()
            self._tell(b"", Refused(code, message, details))


class Channel:
    """A client's connection to one life of a node. It breaks when that ends."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, trace: Trace, host: Host, peer: str) -> None:
        self.host = host.name
        self.broken = False
        self._loop = loop
        self._rng = rng
        self._trace = trace
        self._node = host
        self._process = host.process
        self._connection = PlainConnection(peer)
        self._open: dict[ServerCall, asyncio.Future[bytes]] = {}
        if self._process.dead or not host.handlers:
            self.broken = True
        else:
            self._process.on_kill.append(self._node_died)

    async def call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        """One attempt. Raises Refused."""
        if self.broken:
            raise Refused(Code.UNAVAILABLE, "nobody listens", reached=False)
        loop = self._loop
        deadline = loop.time() + timeout_s
        future: asyncio.Future[bytes] = loop.create_future()

        def tell(body: bytes, refused: Refused | None) -> None:
            loop.call_later(self._delay(), self._answered, call, body, refused, context=_NOBODY)

        call = ServerCall(method, request, deadline, self._connection, tell)
        self._open[call] = future
        process = self._process.context
        loop.call_later(self._delay(), self._reach, self._arrive, call, context=_NOBODY)
        late = loop.call_at(deadline, self._expired, call, context=_NOBODY)
        there = loop.call_at(deadline, call.cancel, context=process.copy())
        try:
            return await future
        except asyncio.CancelledError:
            self._open.pop(call, None)
            if not self._process.dead:
                loop.call_later(self._delay(), self._reach, call.cancel, context=_NOBODY)
            raise
        finally:
            late.cancel()
            there.cancel()

    def close(self) -> None:
        """Hang up; open calls end."""
        self._break(HUNG_UP)
        if not self._process.dead:
            calls = tuple(self._open)
            self._loop.call_later(self._delay(), self._reach, self._hang_up, calls, context=_NOBODY)
        self._open.clear()

    # ---- the client's side

    def _delay(self) -> float:
        return self._rng.uniform(*DELAY_S)

    def _answered(self, call: ServerCall, body: bytes, refused: Refused | None) -> None:
        future = self._open.pop(call, None)
        if future is None or future.done():
            return
        code = 0 if refused is None else int(refused.code)
        method = call.method.rpartition("/")[2]
        self._trace.note(f"{self._connection.peer} {self.host} {method} {code} {crc32(body):08x}")
        if refused is None:
            future.set_result(body)
        else:
            future.set_exception(refused)

    def _expired(self, call: ServerCall) -> None:
        self._answered(call, b"", Refused(Code.DEADLINE_EXCEEDED, "no answer in time"))

    def _node_died(self) -> None:
        self._loop.call_later(self._delay(), self._break, "the connection was reset", context=_NOBODY)

    def _break(self, why: str) -> None:
        self.broken = True
        for call in list(self._open):
            self._answered(call, b"", Refused(Code.UNAVAILABLE, why))

    # ---- the node's side

    def _reach(self, what: Callable[..., None], *arguments: object) -> None:
        """Bytes have come: the node's loop finds them on its socket."""
        self._loop.call_soon(what, *arguments, context=self._process.context.copy())

    def _arrive(self, call: ServerCall) -> None:
        if call.done:
            return
        handler = self._node.handlers.get(call.method)
        if handler is None:
            call.fail(int(Code.UNAVAILABLE), "the node does not serve (any more)")
            return
        try:
            result: Any = handler(call)
        except Exception as error:  # noqa: BLE001 - as a front does it
            call.fail(*status_of(error, call.method, self._connection.peer))
            return
        if isinstance(result, bytes):
            call.finish(result)
        else:
            assert result is None, "a handler of a region keeps its call"

    def _hang_up(self, calls: tuple[ServerCall, ...]) -> None:
        for call in calls:
            call.cancel()
        self._connection.close()
