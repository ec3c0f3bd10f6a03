"""A proxy between the nodes of a region: a small TCP proxy of our own that cuts one way between two nodes.

    python -m chaos.live.proxy a/1=30003:30001 a/2=30013:30011     name=port:port of the node itself

Nodes know each other by the proxy's ports. Who dials is read from the first frame, which is why no general
proxy would do: all nodes have to be given the same list of addresses. Orders come on stdin, one line of
JSON each, and every one is answered by a line when it is done:

    {"cut": [["a/1", "a/2"]]}      what a/1 says does not reach a/2 any more; a list replaces the one before

A cut loses nothing: bytes wait, and so does the end of a connection, as with a short break of a network that
sends again. So old messages arrive late, when the cut is healed, on connections that are long replaced.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from cluster.peers.frames import HEAD, Fault, decode
from cluster.peers.handshake import read_hello

HOST: Final = "127.0.0.1"
HELLO_BYTES_MAX: Final = 64 << 10
READ_BYTES: Final = 256 << 10
UNKNOWN: Final = ""  # who says no hello is cut off from nobody


class Proxy:
    """All listeners, and which ways are cut."""

    def __init__(self) -> None:
        self._cut: frozenset[tuple[str, str]] = frozenset()
        self._changed = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    def cut(self, ways: Iterable[tuple[str, str]]) -> None:
        """These are cut from now on, and no others."""
        self._cut = frozenset(ways)
        self._changed.set()
        self._changed = asyncio.Event()

    async def listen(self, name: str, port: int, target: int) -> int:
        """Stand before a node; the port, which is any free one for 0. OSError."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
            try:
                with suppress(OSError, EOFError):
                    await self._connect(name, target, reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(accepted, HOST, port)
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Hang up everywhere."""
        for server in self._servers:
            server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connect(
        self, name: str, target: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        head = await reader.readexactly(HEAD.size)
        length = HEAD.unpack(head)[0]
        body = await reader.readexactly(min(length, HELLO_BYTES_MAX))
        dialer = _dialer(body)
        await self._open(dialer, name)
        there, back = await asyncio.open_connection(HOST, target)
        back.write(head + body)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(dialer, name, reader, back))
                both.create_task(self._pump(name, dialer, there, writer))
        except* OSError:  # one of the nodes is gone
            pass
        finally:
            back.close()

    async def _pump(
        self, source: str, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Bytes of one way, until there are no more."""
        while data := await reader.read(READ_BYTES):
            if (source, target) in self._cut:
                await self._open(source, target)
            writer.write(data)
            await writer.drain()
        await self._open(source, target)
        raise ConnectionResetError(f"{source} hung up")

    async def _open(self, source: str, target: str) -> None:
        while (source, target) in self._cut:
            await self._changed.wait()


def _dialer(body: bytes) -> str:
    try:
        return read_hello(decode(memoryview(body))[0]).identity.name
    except (Fault, ValueError):
        return UNKNOWN


async def serve(places: Iterable[str]) -> None:
    """Until stdin ends."""
    proxy = Proxy()
    for place in places:
        name, _, ports = place.rpartition("=")
        port, target = ports.split(":")
        await proxy.listen(name, int(port), int(target))
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    _say({"ready": True})
    while line := await orders.readline():
        ways = [(source, target) for source, target in json.loads(line)["cut"]]
        proxy.cut(ways)
        _say({"cut": ways})


def _say(words: object) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
