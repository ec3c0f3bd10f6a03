"""A replica that the region takes away from a node leaves nothing there, and comes back as if it were new."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from cluster.hosting.replicas import generations
from cluster.peers import virtual_time
from tests.cluster.hosting.runs import Runs
from tests.cluster.hosting.settlement import SHARDS, Settlement

Play = Callable[..., None]


@pytest.fixture
def play(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a scene in virtual time, in a region of three nodes that a fourth has joined."""
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 7)

    def run(scene: Callable[[Settlement], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            world = Settlement(rng)
            try:
                await world.found()
                await world.come("a/4", "w")
                await scene(world)
            finally:
                world.end()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


async def move(world: Settlement, shard: int, source: str, target: str) -> None:
    await world.do("a/3" if source != "a/3" else "a/2", "move", shard=shard, node=source, to=target)


def places(world: Settlement) -> tuple[int, str, str]:
    """A shard, a node that has it, and one that has not."""
    table = next(s for s in world.running() if s.table.region is not None).table
    shard = world.rng.randrange(1, SHARDS + 1)
    has = table.replicas_of(shard)
    (without,) = {1, 2, 3, 4} - set(has)
    return shard, f"a/{world.rng.choice(has)}", f"a/{without}"


def test_a_replica_leaves_nothing_and_comes_back(play: Play) -> None:
    """Whether its node was there when the members changed, or down and hears of it later."""

    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 12)
        shard, source, target = places(world)
        former, was_down = world[source], rng.random() < 0.5
        if was_down:
            former.kill()
            others = world.running()
            await world.until(lambda: not any(s.member.peers.is_up(former.node_id) for s in others))
        await move(world, shard, source, target)
        if was_down:
            await world.until(partial(is_moved, world, shard, source, target))
            await runs.some([shard], 5)
            former.boot()
            await world.until(lambda: hasattr(former, "member") and former.alive)
        await runs.at_rest()
        left = former.disk.load()[shard]
        assert left.entries == []
        assert left.hard_state.term > 0, "what it promised in this term is not forgotten"
        if rng.random() < 0.5:
            former.kill()
            former.boot()
            await runs.at_rest()
        await runs.some([shard], 5)
        await move(world, shard, target, source)
        await runs.at_rest()
        raft = former.member.node.committer.groups[shard].raft
        assert former.node_id in raft.conf.voters
        assert raft.term >= left.hard_state.term
        await runs.some(list(runs.of), 3)
        await runs.at_rest()

    play(scene)


async def is_moved(world: Settlement, shard: int, source: str, target: str) -> bool:
    at = next(s.name for s in world.running() if s.name != source)
    shown = (await world.do(at, "shards"))["shards"]
    return any(
        one["id"] == shard and target in one["voters"] and source not in one["voters"] for one in shown
    )


def test_replicas_come_and_go_while_nodes_die(play: Play) -> None:
    """No acknowledged run is lost, and in the end nothing lies where it does not belong."""

    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 4)
        for _ in range(30):
            running = world.running()
            match rng.randrange(8):
                case 0 if len(running) == 4:
                    rng.choice(running).kill()
                case 1 | 2:
                    for settler in world.settlers.values():
                        if not settler.alive:
                            settler.boot()
                case 3 | 4:
                    shard, source, target = places(world)
                    at = rng.choice([one for one in running if hasattr(one, "member")]).name
                    asked = world.told(at, "move", shard=shard, node=source, to=target)
                    asking = asyncio.ensure_future(asked)
                    await asyncio.sleep(rng.uniform(0.0, 3.0))
                    asking.cancel()
                case _:
                    for _ in range(rng.randrange(12)):
                        runs.write(rng.randrange(1, SHARDS + 1))
                        await asyncio.sleep(rng.uniform(0.0, 0.1))
            await asyncio.sleep(rng.choice([0.0, 0.3, 1.5]))
        for settler in world.settlers.values():
            if not settler.alive:
                settler.boot()
        await runs.at_rest()
        await runs.some(list(runs.of), 2)
        await runs.at_rest()

    play(scene)
