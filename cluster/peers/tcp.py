"""Streams of bytes over TCP, with or without TLS."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from functools import partial
from typing import Any, Final

import structlog

from cluster.peers.contract import Accepting, Address
from cluster.peers.tls import Tls

_log: Final = structlog.get_logger("peers")

_BACKLOG: Final = 128
_ACCEPTS_AT_ONCE: Final = 32
_ACCEPT_PAUSE_S: Final = 0.2
_OUT_OF_FILES: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
# Connections that are in the middle of their TLS handshake, and how long that may take.
_TLS_HANDSHAKES_MAX: Final = 256
_TLS_HANDSHAKE_S: Final = 2.0


class TcpNetwork:
    """contract.Network. `tls`: an SSLContext alone is enough to dial; None speaks plain TCP."""

    def __init__(self, tls: Tls | ssl.SSLContext | None = None) -> None:
        self._server = tls.server if isinstance(tls, Tls) else None
        self._client = tls.client if isinstance(tls, Tls) else tls
        self._server_name = (tls.server_name if isinstance(tls, Tls) else "") or None
        assert tls is None or self._client is not None, "TLS in one direction only"

    async def listen(self, host: str, port: int, accepting: Accepting) -> TcpListener:
        """Bind to all addresses of the host. OSError: cannot."""
        infos = await asyncio.get_running_loop().getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        listener = TcpListener(accepting, self._server)
        try:
            for family, kind, protocol, _, address in dict.fromkeys(infos):
                listener.bind(family, kind, protocol, address)
        except OSError:
            listener.close()
            raise
        listener.start()
        return listener

    async def connect(self, address: Address, protocol: asyncio.BufferedProtocol) -> None:
        """Connected, TLS included. OSError: no."""
        name = None if self._client is None else self._server_name or address[0]
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: protocol, address[0], address[1], ssl=self._client, server_hostname=name
        )
        _tune(transport.get_extra_info("socket"))


class TcpListener:
    """Accepts by itself, because asyncio's servers say nothing about who failed in the TLS handshake."""

    def __init__(self, accepting: Accepting, context: ssl.SSLContext | None) -> None:
        self._accepting = accepting
        self._context = context
        self._sockets: list[socket.socket] = []
        self._joining: dict[asyncio.Task[None], None] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def port(self) -> int:
        """Of the first address; all have the same."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    def bind(self, family: int, kind: int, protocol: int, address: Any) -> None:
        """One more address. OSError: cannot."""
        if self._sockets and not address[1]:
            address = (address[0], self.port, *address[2:])
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setblocking(False)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            raise
        self._sockets.append(listening)

    def start(self) -> None:
        """Accept."""
        for listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    def close(self) -> None:
        """Accept no more."""
        for listening in self._sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._sockets.clear()
        for task in self._joining:
            task.cancel()

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                client, address = listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                _log.warning("cannot accept connections", error=str(error))
                self._loop.remove_reader(listening)
                self._loop.call_later(_ACCEPT_PAUSE_S, self._resume, listening)
                return
            protocol = self._accepting() if len(self._joining) < _TLS_HANDSHAKES_MAX else None
            if protocol is None:
                client.close()
                continue
            client.setblocking(False)
            _tune(client)
            task = self._loop.create_task(self._join(client, protocol, f"{address[0]}:{address[1]}"))
            self._joining[task] = None
            task.add_done_callback(partial(self._joined, client))

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening, self._accept, listening)

    async def _join(self, client: socket.socket, protocol: asyncio.BufferedProtocol, caller: str) -> None:
        limit_s = None if self._context is None else _TLS_HANDSHAKE_S
        try:
            await self._loop.connect_accepted_socket(
                lambda: protocol, client, ssl=self._context, ssl_handshake_timeout=limit_s
            )
        except OSError as error:  # of TLS, too
            client.close()
            _log.warning("a TLS handshake failed", caller=caller, why=str(error) or "it took too long")

    def _joined(self, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._joining.pop(task, None)
        if task.cancelled():
            client.close()  # here, because a task that is cancelled early never ran
        elif (error := task.exception()) is not None:
            context = {"message": "cannot take a connection", "exception": error, "task": task}
            self._loop.call_exception_handler(context)


def _tune(stream: Any) -> None:
    """What we say leaves at once. A peer that is gone is noticed by our own pings; keepalive is for
    connections that have none (a stranger's), and the user time-out for the kernel, which otherwise goes on
    for minutes with what it still has to send on a connection that we closed."""
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000))
    for name, value in options:
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
