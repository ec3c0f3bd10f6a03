"""The relay: a Unix socket that an SDK client takes for its HTTP CONNECT proxy; behind it are endpoints.

A Temporal client takes one address. Here each connection that it opens is led to the endpoint that is best
at that moment (endpoints.py); the bytes are passed on as they are. So everything that an SDK does with a
connection goes on working, long polls and raw calls too, and when a connection breaks, the SDK opens
another, as it always does, and comes out elsewhere.

* *An endpoint dies*: its connections break, and what was in flight is tried again by the SDK's own retries.
* *An endpoint falls silent* (a network that swallows, a machine that stands still): nothing breaks by
  itself. Who carries calls and sent nothing for a second is asked by the SDK's health check, on a
  connection of its own; who is silent twice is lost, and its connections are cut.
* *All are lost*: the relay itself answers each call, with UNAVAILABLE and what is wrong with each endpoint;
  the SDK tries again for as long as it always does, and then the application gets that error.
* *A better one is well again*: its calls are to come home, and nothing may break for that; an activity that
  was on its way in a cut poll would wait for its time-out. So the relay says GOAWAY to the client, between
  two frames, as a server does before a graceful stop: new calls use a new connection, those in flight end
  on the old one.

For GOAWAY the relay has to see frames, so it is the relay that speaks TLS, with each endpoint by that
endpoint's name; between the SDK and the relay the bytes are in the clear, within one process. The socket is
no way in for others: it is made in a directory that only this user can enter, and on Linux its file is
removed at once and the SDK connects by way of /proc/self/fd, so that a killed process leaves nothing
behind. It is no TCP port because the SDK leaves Nagle's algorithm on towards a proxy: every call of a quiet
client took 40 ms more.

It runs on a thread and an event loop of its own: what a user's coroutine blocks, it does not block.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import ssl
import tempfile
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from sdk.endpoints import Endpoint, Endpoints, EndpointState
from sdk.frames import GOAWAY, Frames, Refusal

CONNECT_MAX_S = 2.0  # TCP and TLS to one endpoint; then the next is tried
ASK_MAX_S = 2.0
HEAD_BYTES_MAX = 8192  # of a CONNECT request
BUFFER_BYTES_MAX = 1 << 20  # that one side may be behind the other
NAMELESS = Path("/proc/self/fd")

log = logging.getLogger("sdk.relay")

Ask = Callable[[str], Awaitable[str]]  # address -> why it does not serve; empty if it does


@dataclass(frozen=True)
class Security:
    """How to speak TLS with endpoints."""

    context: ssl.SSLContext
    name: str | None  # that their certificates have; None: each its own host's


class _Owner(Protocol):
    """What a pipe asks of the relay."""

    endpoints: Endpoints
    security: Security | None

    def opened(self, pipe: Pipe) -> None: ...
    def closed(self, pipe: Pipe) -> None: ...
    def failed(self, endpoint: Endpoint, why: str) -> None: ...


class Pipe(asyncio.Protocol):
    """A connection of the client, and the one to an endpoint that it was led to."""

    def __init__(self, owner: _Owner) -> None:
        self._owner = owner
        self._head = b""
        self._client: asyncio.Transport | None = None
        self._far: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._refusal: Refusal | None = None  # where no endpoint can be reached
        self._frames = Frames()
        self._leaving = False  # as soon as a frame is whole
        self.left = False
        self._heard = False  # a byte of the endpoint
        self.endpoint: Endpoint | None = None

    # ------------------------------------------------------------------------ the client's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The SDK opened a connection."""
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(BUFFER_BYTES_MAX)
        self._client = transport

    def data_received(self, data: bytes) -> None:
        """What the SDK sends: first a CONNECT request, then what the endpoint is to get."""
        if self._far is not None:
            self._far.write(data)
            return
        self._head += data
        if self._refusal is not None:
            self._refuse()
            return
        end = self._head.find(b"\r\n\r\n")
        if self._connecting is None and end >= 0:
            self._head = self._head[end + 4 :]
            self._connecting = asyncio.ensure_future(self._lead())
        elif len(self._head) > HEAD_BYTES_MAX:
            self.cut()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """The SDK closed it, or we did."""
        self.cut()

    def pause_writing(self) -> None:
        """The SDK reads slower than the endpoint writes."""
        if self._far is not None:
            self._far.pause_reading()

    def resume_writing(self) -> None:
        """It has caught up."""
        if self._far is not None:
            self._far.resume_reading()

    # ---------------------------------------------------------------------- the endpoint's side

    def far_received(self, data: bytes) -> None:
        """What the endpoint sends."""
        assert self.endpoint is not None
        assert self._client is not None
        self._heard = True
        self.endpoint.heard(asyncio.get_running_loop().time())
        self._frames.feed(data)
        self._client.write(data)
        if self._leaving:
            self.leave()

    def far_lost(self) -> None:
        """The endpoint closed the connection, or died."""
        if self._client is None or self._client.is_closing():
            return
        if self.endpoint is not None and not self._heard:
            # What accepts connections may be a balancer or a proxy with nobody behind it.
            self._owner.failed(self.endpoint, "it closes connections")
        self.cut()

    def far_paused(self, paused: bool) -> None:
        """The endpoint reads slower than the SDK writes, or has caught up."""
        if self._client is not None and not self._client.is_closing():
            self._client.pause_reading() if paused else self._client.resume_reading()

    # ------------------------------------------------------------------------------ its life

    async def _lead(self) -> None:
        """Find an endpoint for it."""
        for endpoint in self._owner.endpoints.order():
            try:
                far = await self._reach(endpoint)
            except (OSError, TimeoutError) as error:
                self._owner.failed(endpoint, _reason(error))
                continue
            assert self._client is not None
            if self._client.is_closing():
                far.abort()
                return
            self._far, self.endpoint = far, endpoint
            self._client.write(b"HTTP/1.1 200 OK\r\n\r\n")
            if self._head:
                far.write(self._head)
                self._head = b""
            self._owner.opened(self)
            return
        assert self._client is not None
        self._client.write(b"HTTP/1.1 200 OK\r\n\r\n")
        whys = (f"{endpoint.address}: {endpoint.why}" for endpoint in self._owner.endpoints.all)
        self._refusal = Refusal(f"no endpoint can be reached: {'; '.join(whys)}")
        self._refuse()

    async def _reach(self, endpoint: Endpoint) -> asyncio.Transport:
        host, _, port = endpoint.address.rpartition(":")
        host = host.strip("[]")
        security = self._owner.security
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_MAX_S):
            far, _ = await loop.create_connection(
                lambda: _Far(self),
                host,
                int(port),
                ssl=security.context if security else None,
                server_hostname=(security.name or host) if security else None,
            )
        far.set_write_buffer_limits(BUFFER_BYTES_MAX)
        return far

    def leave(self) -> None:
        """Have the client make its next calls on another connection; it closes this one when it is empty."""
        self.left = True
        self._leaving = not self._frames.between
        if not self._leaving and self._client is not None and not self._client.is_closing():
            self._client.write(GOAWAY)

    def cut(self) -> None:
        """Close both sides."""
        if self._connecting is not None:
            self._connecting.cancel()
        for side in (self._client, self._far):
            if side is not None and not side.is_closing():
                side.close()
        if self.endpoint is not None:
            self._owner.closed(self)
            self.endpoint = None

    def abort(self) -> None:
        """Close both sides without waiting for what an endpoint that is lost does not take any more."""
        if self._far is not None:
            self._far.abort()
        self.cut()

    def _refuse(self) -> None:
        """Answer what has come, and leave: the next call is to look for an endpoint again."""
        assert self._client is not None
        assert self._refusal is not None
        data, self._head = self._head, b""
        self._client.write(self._refusal.answer(data))
        if self._refusal.answered:
            self._client.close()


class _Far(asyncio.Protocol):
    """The other side of a pipe."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def data_received(self, data: bytes) -> None:
        self._pipe.far_received(data)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._pipe.far_lost()

    def pause_writing(self) -> None:
        self._pipe.far_paused(True)

    def resume_writing(self) -> None:
        self._pipe.far_paused(False)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no connection within {CONNECT_MAX_S:g} s"
    if isinstance(error, ssl.SSLError):
        return getattr(error, "verify_message", "") or error.reason or str(error)
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()
    return str(error)


class Relay:
    """The socket, its thread, and what is known of the endpoints."""

    def __init__(self, endpoints: Endpoints, security: Security | None, ask: Ask) -> None:
        self.endpoints = endpoints
        self.security = security
        self._ask_one = ask
        self._pipes: set[Pipe] = set()
        self._asking: dict[Endpoint, asyncio.Task[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._closing: asyncio.Event | None = None
        self._measured = False
        self._thread = threading.Thread(target=self._run, name="sdk.relay", daemon=True)
        self._directory: Path | None = None
        self._handle = -1  # descriptor of the socket's file, which has no name any more
        self.address = ""  # as the SDK wants a proxy's

    def start(self, *, measured: bool) -> None:
        """Open the socket; `measured`: and ask every endpoint once. Blocks for some seconds at most."""
        self._measured = measured
        self._thread.start()
        self._ready.wait()
        if not self.address:
            raise OSError("the relay's socket could not be opened")

    def close(self) -> None:
        """Cut everything and end the thread. May be called twice, and from any thread."""
        with suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._close)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def states(self) -> list[EndpointState]:
        """What is known of the endpoints, best first."""
        return [endpoint.state() for endpoint in self.endpoints.order()]

    # ---------------------------------------------------------------------- asked by pipes

    def opened(self, pipe: Pipe) -> None:
        """A pipe is at an endpoint."""
        assert pipe.endpoint is not None
        self._pipes.add(pipe)
        pipe.endpoint.connections += 1
        log.debug("a connection goes to %s", pipe.endpoint.address)

    def closed(self, pipe: Pipe) -> None:
        """A pipe was closed."""
        if pipe in self._pipes:
            assert pipe.endpoint is not None
            self._pipes.remove(pipe)
            pipe.endpoint.connections -= 1

    def failed(self, endpoint: Endpoint, why: str) -> None:
        """A connection could not be made, or ended without a byte. Others to it may live: they are left."""
        if not endpoint.lost:
            log.warning("%s is lost: %s", endpoint.address, why)
        endpoint.refused(self._loop.time(), why)

    # ------------------------------------------------------------------------------ inside

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._ready.set()
            self._loop.close()
            if self._handle >= 0:
                os.close(self._handle)
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)

    def _listen(self) -> socket.socket:
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._directory = Path(tempfile.mkdtemp(prefix="sdk-relay-"))
        path = self._directory / "socket"
        listening.bind(str(path))
        if NAMELESS.is_dir():
            self._handle = os.open(path, os.O_PATH)
            shutil.rmtree(self._directory)
            self._directory, path = None, NAMELESS / str(self._handle)
        self.address = f"unix:{path}"
        return listening

    async def _serve(self) -> None:
        self._closing = asyncio.Event()
        server = await self._loop.create_unix_server(lambda: Pipe(self), sock=self._listen())
        if self._measured:
            await asyncio.gather(*(self._ask(endpoint) for endpoint in self.endpoints.all))
        self._ready.set()
        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(self._watch(endpoint)) for endpoint in self.endpoints.all]
            await self._closing.wait()
            server.close()
            for pipe in list(self._pipes):
                pipe.cut()
            for task in asking:
                task.cancel()

    def _close(self) -> None:
        if self._closing is not None:
            self._closing.set()

    async def _watch(self, endpoint: Endpoint) -> None:
        """Ask an endpoint how it is, when that is due; have its connections go home."""
        while True:
            # Whether it is due may change at any moment, by a connection; a second's delay is as good.
            await asyncio.sleep(min(1.0, max(0.01, endpoint.due_s(self._loop.time()))))
            if endpoint.due_s(self._loop.time()) <= 0:
                await self._ask(endpoint)

    async def _ask(self, endpoint: Endpoint) -> None:
        began = self._loop.time()
        try:
            async with asyncio.timeout(ASK_MAX_S):
                why = await self._ask_one(endpoint.address)
        except TimeoutError:
            why = f"no answer within {ASK_MAX_S:g} s"
        now = self._loop.time()
        if why:
            lost = endpoint.lost
            if endpoint.missed(now, why):
                self._lost(endpoint, told=lost)
        else:
            if endpoint.answered(now, now - began):
                log.warning("%s is well again", endpoint.address)
            self._bring_home()

    def _lost(self, endpoint: Endpoint, *, told: bool) -> None:
        if not told:
            log.warning("%s is lost: %s", endpoint.address, endpoint.why)
        for pipe in list(self._pipes):
            if pipe.endpoint is endpoint:
                pipe.abort()

    def _bring_home(self) -> None:
        for pipe in list(self._pipes):
            assert pipe.endpoint is not None
            if (better := self.endpoints.better(pipe.endpoint)) is not None and not pipe.left:
                log.info("calls move from %s to %s", pipe.endpoint.address, better.address)
                pipe.leave()
