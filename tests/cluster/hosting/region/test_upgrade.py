"""A region's nodes get a newer release one after the other; its formats follow when the last one has it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from cluster.hosting.region.administration import INTERNAL_METHOD, ask
from cluster.hosting.region.joining import InnerCall, NotAdmitted, Told
from cluster.membership import FORMATS
from cluster.peers import virtual_time
from tests.cluster.hosting.settlement import Settlement

NEXT = FORMATS + 1  # what a release after this one reads


def play(rng: random.Random, scene: Callable[[Settlement], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = Settlement(rng)
        try:
            await world.found()
            await scene(world)
        finally:
            world.end()

    virtual_time.run(whole(), random.Random(rng.getrandbits(64)))


async def restart(world: Settlement, name: str, release: tuple[str, int]) -> None:
    world[name].kill()
    world[name].release = release
    world[name].boot()
    await world.until(lambda: world[name].table.region is not None)


def formats(world: Settlement, name: str) -> int:
    region = world[name].table.region
    return region.formats if region is not None else 0


def is_known(world: Settlement, name: str, version: str) -> bool:
    """Whether the table that the node has says so of it."""
    return any((node.name, node.version) == (name, version) for node in world[name].table.present())


def test_formats_are_raised_with_the_last_node_and_never_fall(rng: random.Random) -> None:
    async def scene(world: Settlement) -> None:
        names = ["a/1", "a/2", "a/3"]
        rng.shuffle(names)
        for number, name in enumerate(names):
            await world.until(lambda: {formats(world, one) for one in names} == {FORMATS})
            await restart(world, name, ("0.2.0", NEXT))
            await world.until(partial(is_known, world, name, "0.2.0"))
            await world.until(world.is_well)
            told = await world.do(name, "health")
            assert {version: len(nodes) for version, nodes in told["versions"].items()} == {
                version: count for version, count in (("0.1.0", 2 - number), ("0.2.0", number + 1)) if count
            }
        await world.until(lambda: {formats(world, name) for name in names} == {NEXT})
        assert (await world.do(names[0], "health"))["formats"] == NEXT

        back = world[names[0]]
        await restart(world, back.name, ("0.1.0", FORMATS))
        await world.until(lambda: bool(back.refusal))
        assert f"the region writes format {NEXT}" in back.refusal
        assert "start it with version 0.2.0 or newer" in back.refusal
        with pytest.raises(NotAdmitted, match=f"the region writes format {NEXT}"):
            await world.add("a/4", "w").join()
        back.kill()
        await restart(world, back.name, ("0.2.0", NEXT))
        await world.until(world.is_well)

    play(rng, scene)


def test_what_the_last_process_said_of_itself_is_put_right_if_it_comes_late(rng: random.Random) -> None:
    async def scene(world: Settlement) -> None:
        name, at = rng.choice(world.founders), rng.choice(world.founders)
        late = ask("announce", record=world[name].record())
        await restart(world, name, ("0.2.0", NEXT))
        await world.until(partial(is_known, world, name, "0.2.0"))
        await world.until(world.is_well)

        answered: asyncio.Future[Told] = world.loop.create_future()
        changes = world[at].table.changes
        handler = world[at].member.doorkeeper.handler
        assert handler is not None
        handler(InnerCall(world.loop, late, answered.set_result, INTERNAL_METHOD))
        await answered
        # Written down, and put right by a second entry: both are seen here in the end.
        await world.until(lambda: world[at].table.changes >= changes + 2)
        await world.until(partial(is_known, world, name, "0.2.0"))

    play(rng, scene)
