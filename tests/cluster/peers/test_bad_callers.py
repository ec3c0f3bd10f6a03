"""Whoever finds the port: garbage, slow handshakes, frames that are too large or damaged. They are cut off,
with a line in the log, and nobody else notices."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any
from zlib import crc32

import msgspec
import pytest

from cluster.peers import handshake
from cluster.peers.contract import Identity
from cluster.peers.frames import HEAD, PING, control, encode, seal
from tests.cluster.peers.conftest import Arena
from tests.cluster.peers.test_contract import pair
from tests.cluster.peers.worlds import LIMITS, World


class Raw(asyncio.BufferedProtocol):
    """A connection that says what the test says."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.buffer = bytearray(1 << 16)
        self.heard = b""
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.heard += self.buffer[:nbytes]

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone.set()


async def call(world: World, *said: bytes) -> Raw:
    """Connect to node 1 and say it."""
    raw = Raw()
    await world.network().connect(world.address(1), raw)
    for data in said:
        raw.transport.write(data)
    return raw


async def cut_off(raw: Raw) -> None:
    async with asyncio.timeout(LIMITS.handshake_s * 20):
        await raw.gone.wait()
    raw.transport.abort()


def hello(node_id: int, **changes: Any) -> bytes:
    who = Identity("c", "r", node_id, f"r/{node_id}", "raw")
    return control(handshake.hello(msgspec.structs.replace(who, **changes), (1, 1), 1))


def batch(*messages: Any) -> bytes:
    return b"".join(seal([encode(message) for message in messages]))


def damaged(frame: bytes) -> bytes:
    return frame[:-1] + bytes((frame[-1] ^ 1,))


def sealed(body: bytes) -> bytes:
    return HEAD.pack(len(body), 1, crc32(body)) + body


GARBAGE = {
    "http": (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "an HTTP request"),
    "http2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "an HTTP request"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "configure it on both sides"),
    "zeros": (bytes(100), "no frame"),
    "too large": (HEAD.pack(LIMITS.hello_bytes_max + 1, 1, 0), "are allowed"),
    "damaged": (damaged(hello(2)), "checksum"),
    "no msgpack": (b"".join([HEAD.pack(1, 1, 0xA505DF1B), b"\x01"]), "checksum"),
    "a message first": (batch([1, "x"]), "before hello"),
    "a ping first": (control([PING, 0]), "no hello"),
    "not a list": (batch({"kind": 1}), "holds no messages"),
    "an empty message": (batch([]), "an empty one"),
    "too deep": (sealed(b"\x91" * 2000), "holds no messages"),
    "no text": (sealed(b"\x91\x92\xff\xa1\xff"), "holds no messages"),
    "a kind that is none": (batch(["x"]), "a message of kind 'x'"),
    "half a hello": (control([-1, 1]), "makes no sense"),
    "silence": (b"", "did not say who it is"),
    "slowly": (hello(2)[:20], "did not say who it is"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_cut_off_with_a_reason(arena: Arena, log: list[Any], name: str) -> None:
    said, why = GARBAGE[name]

    async def scene(world: World) -> None:
        one, two = await pair(world)
        await cut_off(await call(world, *([said] if said else [])))
        assert one.peers.send(2, [1])
        await world.until(lambda: bool(two.messages(1)))
        assert one.events == [("up", 2, "first")]

    arena(scene)
    assert any(why in line["why"] for line in log if line["event"] == "cut off a caller"), log


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (damaged(batch([1, "x"])), "a damaged frame"),
        (hello(3), "a second hello"),
        (HEAD.pack(LIMITS.frame_bytes_max + 1, 1, 0), "are allowed"),
        (control([-9]), "a frame of kind -9"),
    ],
)
def test_a_peer_that_sends_what_it_must_not_is_down(
    arena: Arena, log: list[Any], said: bytes, why: str
) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        dialed = one.peers._sessions[2].dialed
        assert dialed is not None
        dialed.transport.write(said)
        await world.until(lambda: two.events[-1] == ("down", 1))
        await world.until(lambda: two.peers.is_up(1))

    arena(scene)
    assert any(why in line.get("why", "") for line in log if line["event"] == "a node is down"), log


def test_handshakes_that_hang_keep_nobody_out_for_long(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        hanging = []
        for _ in range(LIMITS.handshakes_max * 2):
            with contextlib.suppress(ConnectionError):  # those over the limit, during their TLS handshake
                hanging.append(await call(world, b"\x00"))
        three = await world.start(3)
        world.connect()
        await world.until(lambda: one.peers.is_up(3) and three.peers.is_up(1))
        assert len(one.peers._arrivals) <= LIMITS.handshakes_max
        for raw in hanging:
            await cut_off(raw)
        assert not one.peers._arrivals
        assert len(two.events) == 2

    arena(scene)


def test_a_caller_that_is_no_peer_gets_nothing_but_the_refusal(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, _ = await pair(world)
        raw = await call(world, hello(7) + batch([1, "x"]))
        await cut_off(raw)
        assert b"not among the nodes" in raw.heard
        assert one.events == [("up", 2, "first")]

    arena(scene)


def test_many_complaints_are_counted_rather_than_written(arena: Arena, log: list[Any]) -> None:
    async def scene(world: World) -> None:
        await world.start(1)
        for _ in range(30):
            await cut_off(await call(world, bytes(20)))

    arena(scene)
    assert [line["event"] for line in log].count("cut off a caller") in range(10, 30)


def test_many_refusals_are_counted_too(arena: Arena, log: list[Any]) -> None:
    """Each caller has another name, and is told another sentence."""

    async def scene(world: World) -> None:
        await world.start(1)
        for number in range(30):
            await cut_off(await call(world, hello(7, name=f"stray {number}")))

    arena(scene)
    assert [line["event"] for line in log].count("refused a connection") in range(10, 30)


def test_any_bytes_at_all(arena: Arena, log: list[Any]) -> None:
    """Mutations of what an honest caller says, cut anywhere: no exception, and the peers stay up."""

    async def scene(world: World) -> None:
        one, two = await pair(world)
        rng = world.rng
        honest = [hello(0), hello(3), batch([1, "x"], [2]), control([PING, 5]), control([-3, "no"])]
        for _ in range(40):
            said = b"".join(rng.choice(honest) for _ in range(rng.randint(1, 4)))
            await mutate_and_call(world, rng, said)
        assert one.peers.send(2, [1])
        await world.until(lambda: bool(two.messages(1)))
        assert one.events[0] == ("up", 2, "first")
        assert all(event[0] == "stranger" for event in one.events[1:])

    arena(scene)


async def mutate_and_call(world: World, rng: random.Random, said: bytes) -> None:
    data = bytearray(said)
    for _ in range(rng.choice((0, 0, 1, 3))):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(1, len(data)) :]
    raw = await call(world)
    while data and not raw.gone.is_set():
        size = rng.randint(1, len(data))
        raw.transport.write(bytes(data[:size]))
        del data[:size]
        await asyncio.sleep(0)
    raw.transport.close()
    await asyncio.sleep(0)
