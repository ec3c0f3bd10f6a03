"""Nodes of different regions on one port: who is welcome, by what number, and what the others are told."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.peers.abroad import Other, abroad
from tests.cluster.peers.conftest import Arena
from tests.cluster.peers.worlds import Node, World

HERE, THERE = Other("r", "c"), Other("s", "d")
ABROAD = abroad(2, 5)  # the node that the world calls 2, as seen from node 1
BACK = abroad(1, 1)  # node 1, as seen from there


async def two_regions(world: World, **says: Any) -> tuple[Node, Node]:
    """Node 1 of region r, whose index is 1, and one that says it is node 5 of region s, with the index 2."""
    one = await world.start(1, says={"index": 1})
    there = {"cluster_id": "d", "region": "s", "node_id": 5, "name": "s/5", "index": 2, **says}
    two = await world.start(2, says=there)
    return one, two


def tell(world: World, node: Node, *arguments: Any) -> None:
    """set_peers, as that node."""
    if node.process is not None:
        node.process.call(node.peers.set_peers, *arguments)
    else:
        node.peers.set_peers(*arguments)


def know_each_other(world: World, one: Node, two: Node) -> None:
    tell(world, one, {ABROAD: world.address(2)}, None, {2: THERE})
    tell(world, two, {BACK: world.address(1)}, None, {1: HERE})


def test_they_talk_under_numbers_of_their_own(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        know_each_other(world, one, two)
        await world.until(lambda: one.is_told_up(ABROAD) and two.is_told_up(BACK))
        assert one.peers.send(ABROAD, [1, "there"])
        assert two.peers.send(BACK, [1, "back"])
        await world.until(lambda: bool(one.messages(ABROAD) and two.messages(BACK)))
        assert (one.messages(ABROAD), two.messages(BACK)) == ([[1, "back"]], [[1, "there"]])
        assert not one.peers.is_up(5)
        assert not one.peers.send(5, [1])

    arena(scene)


def test_an_own_node_of_the_same_id_is_another_peer(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world, node_id=3)
        three = await world.start(3, says={"index": 1})
        number = abroad(2, 3)
        tell(world, one, {number: world.address(2), 3: world.address(3)}, None, {2: THERE})
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        tell(world, three, {1: world.address(1)})
        await world.until(lambda: one.is_told_up(number) and one.is_told_up(3))
        await world.until(lambda: two.is_told_up(BACK) and three.is_told_up(1))
        two.peers.send(BACK, [1, "foreign"])
        three.peers.send(1, [1, "own"])
        await world.until(lambda: bool(one.messages(number) and one.messages(3)))
        assert (one.messages(number), one.messages(3)) == ([[1, "foreign"]], [[1, "own"]])

    arena(scene)


@pytest.mark.parametrize(
    ("says", "known", "sentence"),
    [
        ({}, {}, "knows of no such region"),
        ({}, {3: THERE}, "knows of no such region"),
        ({"index": 3}, {2: THERE}, "knows of no such region"),
        ({"region": "t"}, {2: THERE}, "knows of no such region"),
        ({"cluster_id": "e"}, {2: THERE}, "knows of no such region"),
        ({"index": 0}, {2: THERE}, "belongs to cluster 'd'"),
        ({"cluster_id": "c"}, {2: THERE}, "belongs to region 's'"),
        ({"region": "r"}, {2: THERE}, "belongs to cluster 'd'"),
    ],
)
def test_who_is_not_known_is_refused_and_told_why(
    arena: Arena, says: dict[str, Any], known: dict[int, Other], sentence: str
) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world, **says)
        addresses = {ABROAD: world.address(2)} if 2 in known else {}
        tell(world, one, addresses, None, known)
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        await world.until(lambda: sentence in two.peers.states()[0].problem)
        assert one.events == two.events == []

    arena(scene)


def test_who_was_dialed_has_to_be_who_was_meant(arena: Arena) -> None:
    """Another node of that region, and another index than ours."""

    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        tell(world, one, {abroad(2, 6): world.address(2)}, None, {2: THERE})
        words = "dialed node 6 of region 2 and reached node 's/5' of region 's', which is node 5 of region 2"
        await world.until(lambda: words in one.peers.states()[-1].problem)
        tell(world, two, {abroad(3, 1): world.address(1)}, None, {3: HERE, 1: HERE})
        await world.until(lambda: "dialed node 1 of region 3" in two.peers.states()[-1].problem)
        assert not [event for event in (*one.events, *two.events) if event[0] == "up"]

    arena(scene)


def test_a_node_that_is_new_there_is_welcome_and_talks_once_its_address_is_known(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        tell(world, one, {}, None, {2: THERE})
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        await world.until(lambda: [state.node_id for state in one.peers.states()] == [ABROAD])
        (state,) = one.peers.states()
        assert (state.address, state.up, state.name) == (None, False, "s/5")
        await world.until(lambda: two.peers.states()[0].problem == "it has not dialed this node")
        tell(world, one, {}, None, {2: THERE})
        assert len(one.peers.states()) == 1, "news of others are none of it"
        assert one.events == two.events == []
        dialed = two.peers._sessions[BACK].dialed
        tell(world, one, {ABROAD: world.address(2)}, None, {2: THERE})
        await world.until(lambda: one.is_told_up(ABROAD) and two.is_told_up(BACK))
        assert len(one.events) == len(two.events) == 1
        assert two.peers._sessions[BACK].dialed is dialed, "on the connection that it had dialed"

    arena(scene)


def test_a_new_node_that_hangs_up_is_forgotten(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        tell(world, one, {}, None, {2: THERE})
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        await world.until(lambda: bool(one.peers.states()))
        tell(world, two, {}, None, {1: HERE})
        await world.until(lambda: not one.peers.states())

    arena(scene)


def test_new_nodes_are_bounded(arena: Arena) -> None:
    async def scene(world: World) -> None:
        import msgspec

        one, two = await two_regions(world)
        one.peers.limits = msgspec.structs.replace(one.peers.limits, newcomers_max=0)
        tell(world, one, {}, None, {2: THERE})
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        await world.until(lambda: "of too many nodes" in two.peers.states()[0].problem)
        assert one.peers.states() == []

    arena(scene)


def test_a_region_that_is_not_known_any_more_is_hung_up_on(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        know_each_other(world, one, two)
        await world.until(lambda: one.is_told_up(ABROAD) and two.is_told_up(BACK))
        tell(world, one, {})
        assert not one.is_told_up(ABROAD)
        await world.until(lambda: not two.is_told_up(BACK))
        await world.until(lambda: "knows of no such region" in two.peers.states()[0].problem)

    arena(scene)


def test_a_new_node_of_a_region_that_is_not_known_any_more_is_hung_up_on(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await two_regions(world)
        tell(world, one, {}, None, {2: THERE})
        tell(world, two, {BACK: world.address(1)}, None, {1: HERE})
        await world.until(lambda: bool(one.peers.states()))
        tell(world, one, {})
        await world.until(lambda: "knows of no such region" in two.peers.states()[0].problem)
        assert one.peers.states() == []

    arena(scene)
