"""The other front: grpcio's asyncio server behind the same contract, as fallback and as oracle of the tests.

It costs several times the CPU of the HTTP/2 front and cannot tell when a connection closes, nor serve
HTTP/1.1 on the same port; everything a handler can observe is otherwise the same, which one contract suite
checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import structlog

from cluster.frontend.contract import Handler
from cluster.frontend.http2.answer import metadata_block
from cluster.frontend.http2.http1 import Responder
from cluster.frontend.http2.limits import Limits
from cluster.frontend.plain import PlainConnection
from cluster.frontend.status import status_of
from history_store.engine.errors import Code

if TYPE_CHECKING:
    import grpc

_log: Final = structlog.get_logger("frontend")

_KEEPALIVE_PING_MIN_S: Final = 5  # clients may ping this often; grpcio's own default punishes honest ones

Pairs = tuple[tuple[str, str | bytes], ...]


def _import_grpc() -> Any:
    try:
        import grpc
        import grpc.aio
    except ImportError as error:
        raise ImportError(
            "the grpcio front needs grpcio: install holdfast[grpcio], or use the default front (http2)"
        ) from error
    return grpc


def credentials(cert: str, key: str, ca: str | None) -> Any:
    """grpcio's ServerCredentials from PEM files; with `ca`, clients must show a certificate. OSError."""
    chain = (Path(key).read_bytes(), Path(cert).read_bytes())
    roots = Path(ca).read_bytes() if ca is not None else None
    return _import_grpc().ssl_server_credentials([chain], roots, ca is not None)


class GrpcioCall:
    """One RPC; `contract.Call`."""

    def __init__(
        self, front: GrpcioFront, context: Any, method: str, request: bytes, *, streaming: bool
    ) -> None:
        self.request = request
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None
        self.method = method
        self.connection = front.connection(_peer(context.peer()))
        self._front = front
        self._context = context
        self._streaming = streaming
        self._loop = asyncio.get_running_loop()
        remaining = context.time_remaining()
        self.deadline: float | None = None if remaining is None else self._loop.time() + remaining
        self._metadata: Mapping[str, str | bytes] | None = None
        self._initial: Pairs = ()
        self._trailing: Pairs = ()
        # What goes out, in order: messages, then None or a status.
        self.outgoing: asyncio.Queue[bytes | tuple[int, str, bytes | None] | None] = asyncio.Queue()
        self._task: asyncio.Task[bytes | None] | None = None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller sent along."""
        if self._metadata is None:
            out: dict[str, str | bytes] = {}
            for key, value in self._context.invocation_metadata() or ():
                before = out.get(key)
                out[key] = value if before is None or isinstance(value, bytes) else f"{before!s},{value}"
            self._metadata = MappingProxyType(out)
        return self._metadata

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Metadata for the answer."""
        pairs = tuple(initial), tuple(trailing)
        metadata_block((*pairs[0], *pairs[1]))  # the same rules, checked at the same moment
        self._initial, self._trailing = pairs

    def finish(self, body: bytes) -> None:
        """Answer OK."""
        if not self.done:
            limit = self._front.limits.message_bytes_max
            if len(body) > limit:
                self.fail(
                    Code.RESOURCE_EXHAUSTED,
                    f"grpc: trying to send message larger than max ({len(body)} vs. {limit})",
                )
                return
            self._end()
            if not self._streaming:
                self.outgoing.put_nowait(body)
            self.outgoing.put_nowait(None)

    def write(self, body: bytes) -> None:
        """Send one message of a stream."""
        if not self.done:
            assert self._streaming, f"{self.method} is not registered as streaming"
            self.outgoing.put_nowait(body)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Answer with a status."""
        if not self.done:
            self._end()
            self.outgoing.put_nowait((int(code), message, details))

    def _end(self) -> None:
        self.done = True
        self.on_cancel = self.on_message = None

    def start(self, handler: Handler) -> None:
        """Call the handler."""
        try:
            result = handler(self)
        except Exception as error:  # noqa: BLE001 - a handler's failure is this call's answer
            self._refuse(error)
            return
        if asyncio.iscoroutine(result):
            self._task = self._loop.create_task(result)
            self._task.add_done_callback(self._task_ended)
        elif result is not None:
            self._result(result)

    def _task_ended(self, task: asyncio.Task[bytes | None]) -> None:
        if task.cancelled():
            self.fail(Code.CANCELLED, "the server cancelled the call")
            return
        error = task.exception()
        if error is not None:
            self._refuse(error)
        elif not self.done:
            self._result(task.result())

    def _result(self, result: bytes | Coroutine[Any, Any, bytes | None] | None) -> None:
        if type(result) is bytes:
            self.finish(result)
        elif result is None and self._streaming:
            self.finish(b"")
        else:
            self._refuse(TypeError(f"handler of {self.method} returned {type(result).__name__}"))

    def _refuse(self, error: BaseException) -> None:
        self.fail(*status_of(error, self.method, self.connection.peer))

    def message_arrived(self, message: bytes | None) -> None:
        """A later message of a stream."""
        if self.on_message is not None and not self.done:
            try:
                self.on_message(message)
            except Exception as error:  # noqa: BLE001 - as in start
                self._refuse(error)

    def cancel(self) -> None:
        """Nobody is listening any more."""
        if self.done:
            return
        callback = self.on_cancel
        self._end()
        if self._task is not None:
            self._task.cancel()
        if callback is not None:
            try:
                callback()
            except Exception as error:  # noqa: BLE001 - grpcio would log it in its own words
                status_of(error, self.method, self.connection.peer)

    async def send(self, write: Callable[[bytes], Coroutine[Any, Any, None]]) -> None:
        """Send what the handler says until it has said its last. Raises grpcio's abort for a status."""
        context, opened = self._context, False
        while True:
            item = await self.outgoing.get()
            if not opened and not isinstance(item, tuple):
                opened = True
                if isinstance(item, bytes) and len(item) >= self._front.limits.gzip_bytes_min:
                    context.set_compression(self._front.gzip)
                if self._initial:
                    await context.send_initial_metadata(self._initial)
            if item is None:
                context.set_trailing_metadata(self._trailing)
                return
            if isinstance(item, bytes):
                await write(item)
                continue
            code, message, details = item
            trailing = self._trailing
            if details is not None and len(details) < self._front.limits.trailer_bytes_max // 2:
                trailing = (*trailing, ("grpc-status-details-bin", details))
            await context.abort(self._front.codes[code], message, trailing)


class GrpcioFront:
    """Serves handlers with grpcio; `contract.Front`."""

    def __init__(
        self,
        methods: Mapping[str, Handler],
        streaming: Iterable[str] = (),
        *,
        limits: Limits | None = None,
        http1: Responder | None = None,
    ) -> None:
        """As `Http2Front`; of the limits, those that grpcio has. `http1` cannot be served here."""
        self._grpc = _import_grpc()
        self.limits = limits or Limits()
        self.gzip = self._grpc.Compression.Gzip
        self.codes: dict[int, grpc.StatusCode] = {code.value[0]: code for code in self._grpc.StatusCode}
        self._methods = dict(methods)
        self._streaming = frozenset(streaming)
        self._http1 = http1
        self._server: Any = None
        self._port = 0
        self._connections: dict[str, PlainConnection] = {}

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    async def start(self, host: str, port: int, ssl_context: Any = None) -> None:
        """Bind and serve. `ssl_context` must be grpcio's own ServerCredentials: it has no use for
        Python's.
        """
        if self._http1 is not None:
            _log.info("HTTP/1.1 is not answered on this port: the grpcio front speaks gRPC only")
        limits = self.limits
        options = [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", limits.message_bytes_max),
            ("grpc.max_send_message_length", limits.message_bytes_max),
            ("grpc.max_concurrent_streams", limits.streams_max),
            ("grpc.absolute_max_metadata_size", limits.header_bytes_max),
            ("grpc.max_metadata_size", limits.header_bytes_max),
            ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
            ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_PING_MIN_S * 1000),
            ("grpc.http2.max_ping_strikes", 0),
        ]
        if limits.connection_age_max_s is not None:
            options.append(("grpc.max_connection_age_ms", int(limits.connection_age_max_s * 1000)))
            options.append(("grpc.max_connection_age_grace_ms", int(limits.connection_age_grace_s * 1000)))
        server = self._grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_methods_handler(self._grpc, self),))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if ssl_context is None:
                self._port = server.add_insecure_port(address)
            else:
                self._port = server.add_secure_port(address, ssl_context)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let calls end, close what is left."""
        if self._server is not None:
            await self._server.stop(grace_s)
        for connection in list(self._connections.values()):
            connection.close()
        self._connections.clear()

    def handler(self, method: str) -> tuple[Handler | None, bool]:
        """A method's handler, and whether it streams."""
        return self._methods.get(method), method in self._streaming

    def connection(self, peer: str) -> PlainConnection:
        """The connection of a client address: one socket has one, and keeps it."""
        connection = self._connections.get(peer)
        if connection is None:
            if len(self._connections) >= self.limits.connections_max:
                # grpcio does not tell which are gone: forget the oldest.
                del self._connections[next(iter(self._connections))]
            connection = self._connections[peer] = PlainConnection(peer)
        return connection


def _methods_handler(grpc: Any, front: GrpcioFront) -> Any:
    """grpcio asks this object for every call."""

    class Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio is imported late, so its types are not known
        def service(self, details: Any) -> Any:
            handler, streaming = front.handler(details.method)
            if handler is None:

                async def unknown(request: bytes, context: Any) -> bytes:  # noqa: ARG001 - grpcio's signature
                    await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"unknown method {details.method}")
                    return b""

                return grpc.unary_unary_rpc_method_handler(unknown)
            if streaming:
                return grpc.stream_stream_rpc_method_handler(_stream(grpc, front, details.method, handler))
            return grpc.unary_unary_rpc_method_handler(_unary(front, details.method, handler))

    return Methods()


def _unary(front: GrpcioFront, method: str, handler: Handler) -> Any:
    async def serve(request: bytes, context: Any) -> bytes:
        call = GrpcioCall(front, context, method, request, streaming=False)
        body = b""

        async def keep(message: bytes) -> None:
            nonlocal body
            body = message

        try:
            call.start(handler)
            await call.send(keep)
        finally:
            call.cancel()
        return body

    return serve


def _stream(grpc: Any, front: GrpcioFront, method: str, handler: Handler) -> Any:
    async def serve(_requests: Any, context: Any) -> None:
        request = await context.read()
        if request is grpc.aio.EOF:
            await context.abort(grpc.StatusCode.INTERNAL, "the request is not one complete gRPC message")
        call = GrpcioCall(front, context, method, request, streaming=True)

        async def read() -> None:
            message = request
            while message is not grpc.aio.EOF:
                message = await context.read()
                call.message_arrived(None if message is grpc.aio.EOF else message)

        call.start(handler)
        reader = asyncio.get_running_loop().create_task(read())
        try:
            await call.send(context.write)
        finally:
            reader.cancel()
            call.cancel()

    return serve


def _peer(text: str) -> str:
    """grpcio's "ipv4:127.0.0.1:5" or "ipv6:%5B::1%5D:5" as "host:port"."""
    return text.partition(":")[2].replace("%5B", "[").replace("%5D", "]")
