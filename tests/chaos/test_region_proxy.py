"""The proxy between nodes: it knows who dials, cuts one way, and loses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from chaos.live.proxy import HOST, Proxy
from chaos.live.region import CUT_IN, CUT_OUT, PAIR, PARTITION, ways
from cluster.peers.contract import Identity
from cluster.peers.frames import control
from cluster.peers.handshake import hello

PATIENCE_S = 60.0


@pytest.fixture
async def proxy(ports: list[int]) -> AsyncIterator[Proxy]:
    open_: set[asyncio.StreamWriter] = set()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.add(writer)
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, HOST, 0)
    made = Proxy()
    ports.append(await made.listen("a/2", 0, server.sockets[0].getsockname()[1]))
    yield made
    await made.close()
    server.close()
    for writer in open_:
        writer.close()
        await writer.wait_closed()


@pytest.fixture
def ports() -> list[int]:
    """Where the proxy listens: filled by it."""
    return []


async def dial(port: int, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(HOST, port)
    identity = Identity("cluster", "a", 1, name, "incarnation", "disk")
    greeting = control(hello(identity, (1, 1), 2))
    writer.write(greeting)
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(len(greeting)) == greeting
    return reader, writer


async def hang_up(*writers: asyncio.StreamWriter) -> None:
    for writer in writers:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("way", [("a/1", "a/2"), ("a/2", "a/1")])
async def test_a_cut_holds_and_loses_nothing(proxy: Proxy, ports: list[int], way: tuple[str, str]) -> None:
    reader, writer = await dial(ports[0], "a/1")
    other_reader, other_writer = await dial(ports[0], "a/3")
    proxy.cut([way])
    writer.write(b"held")
    other_writer.write(b"free")
    async with asyncio.timeout(PATIENCE_S):
        assert await other_reader.readexactly(4) == b"free"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)
    proxy.cut([])
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.readexactly(4) == b"held"
    await hang_up(writer, other_writer)


async def test_a_hang_up_passes(proxy: Proxy, ports: list[int]) -> None:
    reader, writer = await dial(ports[0], "a/1")
    writer.write_eof()
    async with asyncio.timeout(PATIENCE_S):
        assert await reader.read() == b""
    await hang_up(writer)


def test_what_is_cut() -> None:
    out, into = {("v", "x"), ("v", "y")}, {("x", "v"), ("y", "v")}
    assert set(ways(CUT_OUT, "v", ["x", "y"])) == out
    assert set(ways(CUT_IN, "v", ["x", "y"])) == into
    assert set(ways(PARTITION, "v", ["x", "y"])) == out | into
    assert set(ways(PAIR, "v", ["x", "y"])) == {("v", "x"), ("x", "v")}
