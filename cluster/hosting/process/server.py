"""The process: opens the storage, starts the node and its front, and ends when told to."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import secrets
import signal
import ssl
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

import structlog
import uvloop

from cluster.frontend.health import Health
from cluster.frontend.http2.front import Http2Front
from cluster.frontend.http2.limits import Limits
from cluster.frontend.reflection import Reflection
from cluster.frontend.services import everything
from cluster.frontend.services.base import OPERATOR_SERVICE, WORKFLOW_SERVICE, Services
from cluster.frontend.services.deletion import Deletions
from cluster.frontend.services.system import announce
from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.config import dynamic_config
from cluster.hosting.config.addresses import join_address
from cluster.hosting.config.options import SEARCH_ATTRIBUTE_TYPES, ServerOptions
from cluster.hosting.node import Node
from cluster.hosting.process import logs
from cluster.hosting.region.alone import Alone
from cluster.hosting.shards.meta import REGISTERED, Namespace
from history_store.storage.contract import StorageError
from history_store.storage.memory import MemoryStorage
from history_store.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from cluster.frontend.contract import Front, Handler
    from history_store.engine.environment import EngineLimits
    from history_store.storage.contract import Storage

__all__ = ["Server", "ServerOptions", "serve"]

log = structlog.get_logger("server")

DRAIN_S = 2.0  # what open calls get at a stop; long polls are ended at once
LONG_POLL_S = 60.0
SWITCH_INTERVAL_S = 0.0001  # the writer thread gets the interpreter back soon after its sync (see decisions)


def serve(options: ServerOptions) -> int:
    """Run until SIGTERM or SIGINT. Returns 0, or 1 if the disk failed.

    Raises StorageError or OSError if it cannot start.
    """
    return run(Server(options))


def run(server: Server) -> int:
    """Run a server until SIGTERM or SIGINT."""
    logs.configure(server.options.log_level, server.options.log_format)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return uvloop.run(_run(server))


async def _run(server: Server) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[int] = loop.create_future()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _settle, stop, 0)
    starting = asyncio.ensure_future(server.start(on_broken=lambda _: _settle(stop, 1)))
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # it waits for others, and is not to wait any longer
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return stop.result()
    await starting
    gc.collect()
    gc.freeze()  # what was made at the start lives for ever: the collector need not look at it again
    gc.set_threshold(50_000, 20, 50)
    if server.options.on_ready is not None:
        server.options.on_ready(server.port)
    code = await stop
    await server.stop(graceful=code == 0)
    return code


def _settle(stop: asyncio.Future[int], code: int) -> None:
    if not stop.done():
        stop.set_result(code)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[None]:
    """Say in an OSError which of the addresses could not be had."""
    try:
        yield
    except OSError as error:
        words = f"cannot listen on {join_address(host, port)}: {error.strerror or error}"
        raise OSError(error.errno, words) from error


class Server:
    """One embedded node with its front."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.node: Node
        self.services: Services
        self.front: Front
        self._metrics: Any = None

    @property
    def port(self) -> int:
        """The gRPC port."""
        return self.front.port

    async def start(self, on_broken: Any) -> None:
        """Open, recover, listen. OSError, StorageError."""
        options = self.options
        engine_limits, limits = dynamic_config.read(options.dynamic_config)
        storage = self._open_storage()
        try:
            self.node = self._make_node(storage, engine_limits, on_broken)
            self.node.start()
            self.services = Services(self.node, limits, LONG_POLL_S)
            everything()
            await self._become_ready()
            await self._listen()
            self.services.part(Deletions).resume()
            announce(self.health, True)
        except BaseException:
            if hasattr(self, "node"):
                self.node.committer.abandon()
            storage.close()
            raise

    def _open_storage(self) -> Storage:
        return MemoryStorage() if self.options.db_path is None else SqliteStorage(self.options.db_path)

    def _make_node(self, storage: Storage, limits: EngineLimits, on_broken: Any) -> Node:
        rng = random.Random(secrets.randbits(64))
        clock = Clock()
        return Node(
            asyncio.get_running_loop(),
            storage,
            clock,
            Identifiers(clock, rng),
            rng,
            limits,
            inline=self.options.db_path is None,
            shards=self.options.shards,
            cluster_id=Identifiers(clock, rng).new(),
            on_broken=on_broken,
        )

    def _handlers(self) -> dict[str, Handler]:
        alone = Alone(
            self.node, metadata.version("holdfast"), lambda: join_address(self.options.ip, self.port)
        )
        return {**self.services.handlers(), **alone.handlers()}

    async def _listen(self) -> None:
        options = self.options
        self.health = Health()
        reflection = Reflection([WORKFLOW_SERVICE, OPERATOR_SERVICE, "grpc.health.v1.Health"])
        methods = {**self._handlers(), **self.health.methods, **reflection.methods}
        self.front = _front(options, methods, self.health.streaming | reflection.streaming)
        tls = _tls(options)
        with listening(options.ip, options.port):
            await self.front.start(options.ip, options.port, tls)
        if options.metrics_port is not None:
            from cluster.hosting.process.metrics import MetricsServer  # costs memory, so only if asked for

            self._metrics = MetricsServer(self.node, self._collectors())
            with listening(options.ip, options.metrics_port):
                await self._metrics.start(options.ip, options.metrics_port)

    def _collectors(self) -> list[Collector]:
        """Figures of this kind of server, besides the node's."""
        return []

    async def _become_ready(self) -> None:
        await self._namespaces()

    async def _namespaces(self) -> None:
        """Make sure that the namespaces and search attributes of the options exist."""
        meta = self.node.meta
        wanted = {
            name: SEARCH_ATTRIBUTE_TYPES.index(kind) for name, kind in self.options.search_attributes.items()
        }
        types = {name: _INDEXED_VALUE_TYPES[SEARCH_ATTRIBUTE_TYPES[index]] for name, index in wanted.items()}
        done = []
        for name in dict.fromkeys(["default", *self.options.namespaces]):
            known = meta.by_name.get(name)
            if known is None:
                known = Namespace(self.node.new_id(), name, REGISTERED, self.node.clock.now_ns())
            elif all(known.search_attributes.get(n) == t for n, t in types.items()):
                continue
            known.search_attributes = {**known.search_attributes, **types}
            future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            meta.put(known, future.set_result)
            done.append(future)
        for error in await asyncio.gather(*done):
            if error is not None:
                raise StorageError(error.message)

    async def stop(self, *, graceful: bool) -> None:
        """Let calls end, store everything, close."""
        self.health.shut_down()
        if self._metrics is not None:
            self._metrics.close()
        self.node.end_polls()
        await self.front.drain(DRAIN_S if graceful else 0.0)
        for callback in self.services.on_close:
            callback()
        if graceful:
            await self.node.close()


_INDEXED_VALUE_TYPES = {
    "Text": 1,
    "Keyword": 2,
    "Int": 3,
    "Double": 4,
    "Bool": 5,
    "Datetime": 6,
    "KeywordList": 7,
}


def _front(options: ServerOptions, methods: Any, streaming: Any) -> Front:
    if options.front == "grpcio":
        from cluster.frontend.grpcio_front import GrpcioFront  # grpcio is optional

        return GrpcioFront(methods, streaming)
    return Http2Front(methods, streaming, limits=Limits(message_bytes_max=options.message_bytes_max))


def _tls(options: ServerOptions) -> Any:
    """What the front takes for TLS: an SSLContext, or grpcio's own credentials; None without TLS."""
    if options.tls_cert is None or options.tls_key is None:
        return None
    if options.front == "grpcio":
        from cluster.frontend.grpcio_front import credentials

        return credentials(options.tls_cert, options.tls_key, options.tls_ca)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.tls_cert, options.tls_key)
    if options.tls_ca is not None:
        context.load_verify_locations(options.tls_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
