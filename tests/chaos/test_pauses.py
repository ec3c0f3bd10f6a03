"""Nodes that stand still for a while, and what they make of the ticks they missed.

A follower wakes up with heartbeats of its leader in its sockets and an election timeout of ticks behind. If
it answered first and counted then, it would break at once what it had just promised. A leader wakes up with
answers in its sockets: if it counted first and read then, it would think itself alone. And a leader whose
disk stands still is not one that stands still.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from chaos.sim.trace import Trace
from chaos.sim.world import Node, Shape, World
from cluster.peers import virtual_time
from cluster.peers.virtual_time import VirtualLoop
from history_store.shard import image

SHARD = 1
BEGIN_S = 30.0


def has_lease(node: Node) -> bool:
    group = node.groups()[SHARD]
    return group.leading and node.call(group.read_index_now) is not None


def leads_after(node: Node, leader: Node) -> bool:
    group = node.groups()[SHARD]
    return group.leading and group.raft.term > leader.groups()[SHARD].raft.term


def play(scene: Callable[[World, random.Random], Awaitable[int]], draw: int) -> int:
    """In virtual time."""
    now: list[Callable[[], float]] = [lambda: 0.0]
    worlds: list[World] = []

    async def whole() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        now[0] = loop.time
        worlds.append(World(loop, draw, trace, Shape(shards=2)))
        return await scene(worlds[0], random.Random(f"x{draw}"))

    with Trace(lambda: now[0]()) as trace:
        found = virtual_time.run(whole(), random.Random(f"{draw}/loop"))
    worlds[0].scrap()
    assert not trace.problems, trace.problems
    return found


async def lease_scene(world: World, rng: random.Random) -> int:
    """How often two nodes were found that both may read."""
    world.start()
    assert await world.until_whole(BEGIN_S), "a new region serves"
    await asyncio.sleep(3.0)
    leader = world.leader(SHARD)
    assert leader is not None
    paused, other = [node for node in world.nodes.values() if node is not leader]
    for node in world.nodes.values():
        node.call(node.groups()[SHARD].raft.wake)
    await asyncio.sleep(rng.uniform(0.2, 0.7))
    paused.process.pause()
    await asyncio.sleep(rng.uniform(0.05, 0.3))
    world.network.cut(leader.name, other.name)
    world.network.cut(other.name, leader.name)
    await asyncio.sleep(rng.uniform(0.5, 0.75))
    paused.process.resume()
    cut, both = False, 0
    for _ in range(1000):
        await asyncio.sleep(0.001)
        lease = has_lease(leader)
        if lease and not cut:  # it has heard the paused one, and will not hear more of it
            world.network.cut(paused.name, leader.name)
            cut = True
        both += lease and (leads_after(paused, leader) or leads_after(other, leader))
    world.heal()
    assert await world.until_whole(BEGIN_S)
    await asyncio.gather(*(node.stop() for node in world.nodes.values()))
    return both


async def leads_on_scene(world: World, rng: random.Random, stalls: bool) -> int:
    """How many elections it costs when a leader, or its disk, stands still, and nothing else goes on."""
    world.start()
    assert await world.until_whole(BEGIN_S)
    await asyncio.sleep(3.0)
    leader = world.leader(SHARD)
    assert leader is not None
    group = leader.groups()[SHARD]
    term = group.raft.term
    if stalls:
        leader.disk.sync_s = (1.6, 1.6)
        leader.call(group.propose, image.encode([], []), [], [])
        await asyncio.sleep(1.5)
    else:
        leader.call(group.raft.wake)
        await asyncio.sleep(rng.uniform(0.3, 0.4))
        leader.process.pause()
        await asyncio.sleep(0.55)  # the others wait for half a second to a whole one
        leader.process.resume()
        await asyncio.sleep(1.0)
    terms = group.raft.term - term
    world.heal()
    assert await world.until_whole(BEGIN_S)
    await asyncio.gather(*(node.stop() for node in world.nodes.values()))
    return terms


@pytest.mark.parametrize("draw", [1, 4, 5, 9, 11, 15, 17, 19])  # drawn once: each met it when it was wrong
def test_a_lease_outlasts_no_pause(draw: int) -> None:
    assert not play(lease_scene, draw)


@pytest.mark.parametrize("draw", [2, 3, 5, 13])  # as above
@pytest.mark.parametrize("stalls", [False, True], ids=["pause", "disk"])
def test_a_leader_that_everybody_hears_leads_on(draw: int, stalls: bool) -> None:
    assert play(partial(leads_on_scene, stalls=stalls), draw) == 0
