"""A node that comes with other data than it had is not talked to: it would vote against what it voted for."""

from __future__ import annotations

from typing import Any

from tests.cluster.peers.conftest import Arena
from tests.cluster.peers.worlds import World


async def both_up(world: World) -> None:
    await world.until(lambda: all(node.is_told_up(3 - node.node_id) for node in world.nodes.values()))


def test_the_data_that_a_node_is_known_by(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1, says={"disk": "x"})
        two = await world.start(2, says={"disk": "y"})
        one.peers.set_peers({2: world.address(2)}, {2: "y"})
        two.peers.set_peers({1: world.address(1)}, {1: ""})
        await both_up(world)

    arena(scene)


def test_a_node_with_other_data_is_refused(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1, says={"disk": "x"})
        two = await world.start(2, says={"disk": "new"})
        one.peers.set_peers({2: world.address(2)}, {2: "y"})
        two.peers.set_peers({1: world.address(1)})
        await world.until(lambda: "has lost its data" in two.peers.states()[0].problem)
        assert not one.is_told_up(2)
        assert not two.is_told_up(1)

    arena(scene)


def test_who_is_up_already_is_hung_up_on(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1, says={"disk": "x"})
        two = await world.start(2, says={"disk": "new"})
        world.connect()
        await both_up(world)
        told: dict[int, Any] = {2: world.address(2)}
        process = one.process
        tell = process.call if process is not None else lambda function, *given: function(*given)
        tell(one.peers.set_peers, told, {2: "new"})
        assert one.is_told_up(2)
        tell(one.peers.set_peers, told, {2: "y"})
        assert not one.is_told_up(2)
        await world.until(lambda: "has lost its data" in two.peers.states()[0].problem)

    arena(scene)
