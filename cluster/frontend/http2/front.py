"""The HTTP/2 front: listens, caps, keeps alive and drains; the work is the connections'."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import ssl
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import Final

import structlog

from cluster.frontend.contract import Handler
from cluster.frontend.http2 import head as heads
from cluster.frontend.http2.connection import Http2Connection
from cluster.frontend.http2.head import Head
from cluster.frontend.http2.http1 import NOT_FOUND_TEXT, Answer, Http1Connection, Responder
from cluster.frontend.http2.limits import Limits
from cluster.frontend.http2.tls import Refusals

_log: Final = structlog.get_logger("frontend")

_BACKLOG: Final = 1024
_ACCEPTS_AT_ONCE: Final = 64  # per loop iteration: a flood of connections must not starve the open ones
_CHECK_INTERVAL_S: Final = 1.0
_RESERVED_FILES: Final = 128  # descriptors that are not for clients: logs, databases, peers
_ACCEPT_PAUSE_S: Final = 0.5  # when the process or the machine has run out of descriptors
_NO_SUCH_ADDRESS: Final = frozenset((errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))
_OUT_OF_FILES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Http2Front:
    """Serves gRPC handlers over HTTP/2, in the running event loop; `contract.Front`."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        streaming: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        http1: Responder | None = None,
    ) -> None:
        """`methods` by full name; those in `streaming` may `write`. `http1` answers ordinary HTTP."""
        self.limits = limits or Limits()
        self.held = 0  # bytes of unfinished calls, all connections together
        self.loop: asyncio.AbstractEventLoop
        self._handlers = {name.encode(): handler for name, handler in methods.items()}
        self._streaming = frozenset(name.encode() for name in streaming)
        assert self._streaming <= self._handlers.keys(), "streaming names methods that have no handler"
        self._http1 = http1
        self._ssl: ssl.SSLContext | None = None
        self._refusals = Refusals()
        self._sockets: list[socket.socket] = []
        self._accepting: set[asyncio.Task[None]] = set()
        self._accepted: Counter[str] = Counter()  # sockets by peer address, those in a handshake included
        self._accepted_total = 0
        self._connections: set[Http2Connection] = set()
        self._http1_connections: set[Http1Connection] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        spare = self.limits.connections_max if files == resource.RLIM_INFINITY else files - _RESERVED_FILES
        self._connections_max = max(1, min(self.limits.connections_max, spare))
        self._age_steps = 0

    # ------------------------------------------------------------------ contract.Front

    @property
    def port(self) -> int:
        """The port it listens on."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    async def start(self, host: str, port: int, ssl_context: ssl.SSLContext | None = None) -> None:
        """Bind and accept."""
        self.loop = asyncio.get_running_loop()
        self._ssl = ssl_context
        if ssl_context is not None:
            ssl_context.set_alpn_protocols(["h2", "http/1.1"])
        infos = await self.loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        refusal: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            # All addresses of a name share the port the kernel chose for the first.
            bound = (address[0], self.port, *address[2:]) if self._sockets and not port else address
            try:
                self._sockets.append(_listen(family, kind, protocol, bound))
            except OSError as error:
                refusal = error
                if error.errno not in _NO_SUCH_ADDRESS:
                    break
        # "localhost" also means ::1 on machines that have no IPv6: one address of a name is enough.
        if refusal is not None and (not self._sockets or refusal.errno not in _NO_SUCH_ADDRESS):
            self._stop_accepting()
            raise refusal
        for listener in self._sockets:
            self.loop.add_reader(listener, self._accept, listener)
        self._tick = self.loop.call_later(_CHECK_INTERVAL_S, self._check)

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let calls end, close what is left."""
        self._stop_accepting()
        for connection in list(self._connections):
            connection.drain()
        for idle in list(self._http1_connections):
            idle.close()
        if self._accepted_total:
            try:
                await asyncio.wait_for(self._empty.wait(), grace_s)
            except TimeoutError:
                _log.warning("draining timed out", connections=len(self._connections), grace_s=grace_s)
        for task in list(self._accepting):
            task.cancel()
        for connection in list(self._connections):
            connection.abort("draining timed out")
        for idle in list(self._http1_connections):
            idle.close()
        await asyncio.sleep(0)  # connection_lost of the aborted ones
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if "workers" in self.__dict__:
            self.workers.shutdown(wait=False)

    # ------------------------------------------------------------------ accepting

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                client, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    raise
                _log.warning("cannot accept connections", error=str(error))
                self.loop.remove_reader(listener)
                self.loop.call_later(_ACCEPT_PAUSE_S, self._resume_accepting, listener)
                return
            host = str(address[0])
            if (
                self._accepted_total >= self._connections_max
                or self._accepted[host] >= self.limits.connections_per_peer_max
            ):
                client.close()
                continue
            self.adopt(host)
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Http2Connection(self, host)
            task = self.loop.create_task(self._serve(connection, client))
            self._accepting.add(task)
            task.add_done_callback(partial(self._served, connection, client))

    def _resume_accepting(self, listener: socket.socket) -> None:
        if listener in self._sockets:
            self.loop.add_reader(listener, self._accept, listener)

    def _stop_accepting(self) -> None:
        for listener in self._sockets:
            self.loop.remove_reader(listener)
            listener.close()
        self._sockets.clear()

    async def _serve(self, connection: Http2Connection, client: socket.socket) -> None:
        timeout_s = None if self._ssl is None else self.limits.handshake_timeout_s
        spare = client.dup() if self._ssl is not None else None  # the loop closes its own before we hear
        try:
            await self.loop.connect_accepted_socket(
                lambda: connection, client, ssl=self._ssl, ssl_handshake_timeout=timeout_s
            )
        except ssl.SSLError as error:
            if spare is not None:
                await self._refusals.tell(error, spare, connection.host)
        except OSError:
            pass  # time-outs, and who goes away amid a handshake: probes do, and are not worth a line
        finally:
            if spare is not None:
                spare.close()

    def _served(self, connection: Http2Connection, client: socket.socket, task: asyncio.Task[None]) -> None:
        self._accepting.discard(task)
        if not connection.joined:  # nobody else will ever say that it is gone
            client.close()
            self._forget(connection.host)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("cannot serve a connection", exc_info=error)

    def _forget(self, host: str) -> None:
        self._accepted_total -= 1
        self._accepted[host] -= 1
        if not self._accepted[host]:
            del self._accepted[host]
        if not self._accepted_total:
            self._empty.set()

    # ------------------------------------------------------------------ for the connections

    def adopt(self, host: str) -> None:
        """Count a socket that was accepted from this address."""
        self._accepted[host] += 1
        self._accepted_total += 1
        self._empty.clear()

    def joined(self, connection: Http2Connection) -> None:
        """Its socket is open and its handshake done."""
        connection.joined = True
        self._connections.add(connection)
        age = self.limits.connection_age_max_s
        if age is not None:
            # Spread over a tenth, so that clients which came together do not all come back together.
            self._age_steps += 1
            age *= 1 + 0.1 * (self._age_steps * _GOLDEN_RATIO % 1)
            connection.expires_at = self.loop.time() + age

    def left(self, connection: Http2Connection) -> None:
        """Its socket is gone."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._forget(connection.host)

    def switch_to_http1(self, connection: Http2Connection, transport: asyncio.Transport, data: bytes) -> None:
        """The peer does not speak HTTP/2."""
        host = connection.host
        self._connections.discard(connection)

        def lost(gone: Http1Connection) -> None:
            self._http1_connections.discard(gone)
            self._forget(host)

        http1 = Http1Connection(self.answer_http, self.limits.handshake_timeout_s, lost)
        self._http1_connections.add(http1)
        transport.set_protocol(http1)
        http1.connection_made(transport)
        http1.data_received(data)

    def resolve(self, head: Head) -> None:
        """Complete a validated head with what this front knows."""
        if head.kind == heads.GRPC:
            head.handler = self._handlers.get(head.path)
            if head.handler is None:
                head.kind = heads.UNKNOWN_METHOD
            head.streaming = head.path in self._streaming
            if head.accepts_gzip:
                head.inline_bytes_max = min(head.inline_bytes_max, self.limits.gzip_bytes_min + 4)

    def answer_http(self, method: str, path: str) -> Answer:
        """Answer an ordinary HTTP request."""
        answer = self._http1(method, path) if self._http1 is not None else None
        if answer is None and method in ("GET", "HEAD") and path == "/healthz":
            answer = (200, "text/plain; charset=utf-8", b"ok\n")
        return answer or (404, "text/plain; charset=utf-8", NOT_FOUND_TEXT)

    def hold(self, count: int) -> None:
        """Charge bytes; over the total, whoever holds most has to go."""
        self.held += count
        if self.held > self.limits.total_bytes_max:
            greediest = max(self._connections, key=lambda connection: connection.held, default=None)
            if greediest is not None and greediest.held:
                _log.warning("too many bytes in unfinished calls", held=self.held, peer=greediest.peer)
                greediest.abort("holds the most bytes")
                greediest.release_all()

    @cached_property
    def workers(self) -> ThreadPoolExecutor:
        """Threads for compressing what is too big for the loop; most servers never need one."""
        return ThreadPoolExecutor(max_workers=2, thread_name_prefix="front-compression")

    def _check(self) -> None:
        now = self.loop.time()
        for connection in list(self._connections):
            connection.check(now)
        self._tick = self.loop.call_later(_CHECK_INTERVAL_S, self._check)


_GOLDEN_RATIO: Final = 0.618_033_988_749_894_8


def _listen(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
