"""Node 1 is real; node 2 is played by hand, so that it can do what a real one does only when luck has it. In
memory, where nothing else moves the clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import pytest

from cluster.peers import handshake, virtual_time
from cluster.peers.contract import Identity, Limits, Message
from cluster.peers.frames import HELLO, PING, FrameReader, control, decode, encode, seal
from cluster.peers.memory import MemoryHost
from tests.cluster.peers.worlds import LIMITS, MemoryWorld, Node

REAL = msgspec.structs.replace(LIMITS, dead_s=2.0, tick_s=0.25, ping_s=0.5, handshake_s=2.0)


class ByHand(FrameReader):
    """One end of a connection; welcomes whoever says hello."""

    def __init__(self, incarnation: str) -> None:
        super().__init__(1 << 20)
        self.identity = Identity("c", "r", 2, "r/2", incarnation)
        self.transport: Any = None
        self.heard: list[Message] = []
        self.is_gone = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True

    def eof_received(self) -> bool:
        return False

    def _body(self, body: memoryview) -> None:
        messages = decode(body)
        self.heard.extend(messages)
        if messages[0][0] == HELLO:
            self.say(handshake.welcome(1, self.identity))

    def _fault(self, sentence: str) -> None:
        raise AssertionError(sentence)

    def say(self, message: Message) -> None:
        self.transport.write(control(message))

    def send(self, *messages: Message) -> None:
        self.transport.writelines(seal([encode(message) for message in messages]))


class Played:
    """Node 2."""

    def __init__(self, world: MemoryWorld) -> None:
        self.world = world
        self.host: MemoryHost = world.net.host("n2", world.loop.process("n2"))
        self.accepted: list[ByHand] = []

    async def listen(self, incarnation: str) -> None:
        def accept() -> ByHand:
            self.accepted.append(ByHand(incarnation))
            return self.accepted[-1]

        await self.host.listen("", 7000, accept)

    async def dial(self, incarnation: str) -> ByHand:
        link = ByHand(incarnation)
        await self.host.connect(("n1", 7000), link)
        link.say(handshake.hello(link.identity, (1, 1), 1))
        return link


def play(
    scene: Callable[[MemoryWorld, Node, Played], Coroutine[Any, Any, None]],
    rng: random.Random,
    limits: Limits = REAL,
) -> None:
    async def main() -> None:
        world = MemoryWorld(rng)
        world.limits = limits
        node = await world.start(1)
        node.peers.set_peers({2: ("n2", 7000)})
        await scene(world, node, Played(world))
        await world.close()

    virtual_time.run(main(), rng)


def test_what_comes_before_we_are_up_is_held_and_more_is_not_read(rng: random.Random) -> None:
    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        link = await two.dial("first")
        link.send([1], [2])
        await asyncio.sleep(0.1)
        link.send([3])
        await asyncio.sleep(0.1)
        session = one.peers._sessions[2]
        assert session.accepted is not None
        assert session.accepted.transport._reading_paused  # type: ignore[attr-defined]
        assert one.events == []
        await two.listen("first")
        await world.until(lambda: len(one.messages(2)) == 3)
        link.send([4])
        await world.until(lambda: len(one.messages(2)) == 4)
        assert one.events == [("up", 2, "first"), *((2, [number]) for number in (1, 2, 3, 4))]

    play(scene, rng)


def test_who_sends_before_we_are_up_and_never_welcomes_us_is_cut_off(rng: random.Random) -> None:
    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        link = await two.dial("first")
        link.send([1])
        await asyncio.sleep(REAL.dead_s + 1.0)
        assert link.is_gone
        assert one.events == []

    play(scene, rng)


def test_a_dialed_connection_to_a_process_that_is_no_more_opens_no_session(rng: random.Random) -> None:
    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        await two.listen("old")
        session = one.peers._sessions[2]
        await world.until(lambda: session.dialed is not None)
        assert "has not dialed" in session.state().problem
        world.net.switch_off("n2")
        world.net.machine("n2").on = True  # and the reset that it owes us gets lost
        again = Played(world)
        await again.listen("new")
        await again.dial("new")
        await world.until(lambda: one.peers.is_up(2))
        assert one.events == [("up", 2, "new")]

    play(scene, rng)


@pytest.mark.parametrize("ping", [[PING], [PING, "much"], [PING, 1, 2]])
def test_a_ping_that_makes_no_sense_ends_the_session(rng: random.Random, ping: Message) -> None:
    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        await two.listen("first")
        await two.dial("first")
        await world.until(lambda: one.peers.is_up(2))
        two.accepted[0].say(ping)
        await world.until(lambda: not one.peers.is_up(2))
        assert "a ping that is" in one.peers.states()[0].problem

    play(scene, rng)


def test_sessions_that_do_not_last_are_opened_ever_more_slowly(rng: random.Random) -> None:
    """Whatever breaks them, and however eager the other side is. One that lasts is soon found again."""
    limits = msgspec.structs.replace(REAL, backoff_min_s=0.05, backoff_max_s=1.0)

    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        await two.listen("first")
        loop = asyncio.get_running_loop()
        end = loop.time() + 6.0
        while loop.time() < end:
            link = await two.dial("first")
            await asyncio.sleep(0.02)
            link.transport.abort()
        assert 3 <= len(two.accepted) < 30, len(two.accepted)
        lasting = await two.dial("first")
        await world.until(lambda: one.peers.is_up(2))
        for _ in range(12):
            await asyncio.sleep(0.25)
            two.accepted[-1].say([PING, 0])
            lasting.say([PING, 0])
        assert one.peers.is_up(2)
        lasting.transport.abort()
        await two.dial("first")
        began = loop.time()
        await world.until(lambda: one.peers.is_up(2))
        assert loop.time() - began < limits.backoff_min_s

    play(scene, rng, limits)


def test_who_does_not_read_stops_our_writing_and_then_our_taking(rng: random.Random) -> None:
    limits = msgspec.structs.replace(REAL, queue_bytes_max=4 << 20, write_buffer_bytes=1 << 20)

    async def scene(world: MemoryWorld, one: Node, two: Played) -> None:
        await two.listen("first")
        link = await two.dial("first")
        await world.until(lambda: one.peers.is_up(2))
        two.accepted[0].transport.pause_reading()
        taken = 0
        for _ in range(200):
            taken += one.peers.send(2, [1, b"x" * 100_000])
            await asyncio.sleep(0.001)
        state = one.peers.states()[0]
        assert (4 << 20) - 100_100 < state.queued_bytes <= 4 << 20
        given = taken * 100_008 - state.queued_bytes
        assert 1 << 20 < given < (1 << 20) + (1 << 20), "kernels, the write buffer, and one frame"
        two.accepted[0].transport.resume_reading()
        for _ in range(20):
            two.accepted[0].say([PING, two.accepted[0].received])
            link.say([PING, 0])
            await asyncio.sleep(0.1)
        assert len([message for message in two.accepted[0].heard if message[0] == 1]) == taken
        assert one.peers.states()[0].queued_bytes == 0
        assert one.events == [("up", 2, "first")]

    play(scene, rng, limits)


def test_bulk_takes_a_window_a_round_trip(rng: random.Random) -> None:
    async def main() -> None:
        world = MemoryWorld(rng)
        world.limits = Limits()
        one, two = await world.start(1), await world.start(2)
        for way in (("n1", "n2"), ("n2", "n1")):
            world.net.path(*way).delay_s = (0.001, 0.001)
        world.connect()
        await world.until(lambda: one.peers.is_up(2) and two.peers.is_up(1))
        began = world.loop.time()
        for _ in range(60):
            assert one.peers.send(2, [1, bytes(256 << 10)], bulk=True)
        await world.until(lambda: len(two.messages(1)) == 60)
        took = world.loop.time() - began
        # 15 MiB at no more than two windows (one is begun before the last is full) in 2 ms, and no less than
        # one in three round trips.
        assert 0.025 < took < 0.18, took
        await world.close()

    virtual_time.run(main(), rng)
