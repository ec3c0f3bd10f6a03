"""What nodes write to each other: one message of each kind, from a region under virtual time and faults."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from chaos.sim.run import Options, simulate
from chaos.sim.trace import Trace
from chaos.sim.world import Shape, World
from cluster.hosting.replicas.replicas import RAFT
from cluster.hosting.tasks.exchange import EXCHANGE
from cluster.peers import virtual_time
from cluster.peers.stream import StreamPeers
from cluster.peers.virtual_time import VirtualLoop

SEEDS = range(1, 4)
SECONDS = 8.0
MESSAGE_BYTES_MAX = 2_000


def kind_of(message: Any) -> str:
    """What a message is, in the words of who sends it. Raft's own are samples (samples.py)."""
    return f"{message[0]} {message[1]}" if message[0] == EXCHANGE else str(message[0])


@contextlib.contextmanager
def recorded(into: dict[str, list[Any]]) -> Iterator[None]:
    """Keep the richest message of each kind that is sent meanwhile, of those that are not large."""
    whole = StreamPeers.send
    sizes: dict[str, int] = {}

    def send(self: StreamPeers, node_id: int, message: Any, bulk: bool = False) -> bool:
        if message[0] != RAFT:
            kind, data = kind_of(message), msgspec.msgpack.encode(message)
            if sizes.get(kind, 0) < len(data) <= MESSAGE_BYTES_MAX:
                sizes[kind], into[kind] = len(data), msgspec.msgpack.decode(data)
        return whole(self, node_id, message, bulk)

    StreamPeers.send = send  # type: ignore[method-assign]
    try:
        yield
    finally:
        StreamPeers.send = whole  # type: ignore[method-assign]


def record(seeds: Iterable[int] = SEEDS) -> dict[str, list[Any]]:
    """Messages by kind."""
    found: dict[str, list[Any]] = {}
    with recorded(found):
        for seed in seeds:
            simulate(seed, Options(seconds=SECONDS))
    return dict(sorted(found.items()))


def heard(messages: Iterable[list[Any]]) -> list[str]:
    """What is wrong after a node that serves has been sent these by another: lines of its log."""
    now: list[Callable[[], float]] = [lambda: 0.0]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        now[0] = loop.time
        world = World(loop, 1, trace, Shape())
        world.start()
        assert await world.until_whole(30.0)
        first, second = list(world.nodes.values())[:2]
        for message in messages:
            first.call(first.member.message, second.node_id, message)
        await asyncio.sleep(1.0)
        assert await world.until_whole(30.0), "the region serves on"
        for node in world.nodes.values():
            node.kill()
        world.scrap()

    with Trace(lambda: now[0]()) as trace:
        virtual_time.run(main(), random.Random(1), limit_s=200.0)
    return trace.problems
