"""What every way between nodes must do, on real sockets, with TLS, and in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from cluster.peers.contract import PeerError, Refused, Unanswered, Unreachable
from cluster.peers.virtual_time import VirtualLoop
from tests.cluster.peers.conftest import Arena
from tests.cluster.peers.worlds import LIMITS, Node, World, ask


async def pair(world: World, **options: Any) -> tuple[Node, Node]:
    """Two nodes that are up."""
    nodes = [await world.start(node_id, **dict(options)) for node_id in (1, 2)]
    world.connect()
    await both_up(world, *nodes)
    return nodes[0], nodes[1]


async def both_up(world: World, one: Node, two: Node) -> None:
    await world.until(lambda: one.peers.is_up(two.node_id) and two.peers.is_up(one.node_id))


def test_three_nodes_find_each_other_and_each_hears_up_before_anything_else(arena: Arena) -> None:
    async def scene(world: World) -> None:
        nodes = [await world.start(node_id, f"of {node_id}") for node_id in (1, 2, 3)]
        world.connect()
        for node in nodes:
            others = [other for other in (1, 2, 3) if other != node.node_id]
            await world.until(lambda n=node, o=others: all(map(n.peers.is_up, o)))  # type: ignore[misc]
            assert sorted(node.events) == [("up", other, f"of {other}") for other in others]
            assert [s.name for s in node.peers.states()] == [f"r/{other}" for other in others]
            assert all(s.up and s.version == 1 and not s.problem for s in node.peers.states())

    arena(scene)


def test_messages_arrive_whole_once_and_in_order(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        sent = []
        for turn in range(60):
            for _ in range(world.rng.choice((1, 1, 3, 20))):
                size = world.rng.choice((0, 10, 300, 20_000, 300_000 if turn % 20 == 0 else 100))
                message = [len(sent), world.rng.randbytes(size), None, -5, 1.5, "ü", [True, {"k": [1]}]]
                assert one.peers.send(2, message)
                sent.append(message)
            await asyncio.sleep(0)
        await world.until(lambda: len(two.messages(1)) == len(sent))
        assert two.messages(1) == sent
        assert one.messages(2) == []

    arena(scene)


def test_what_one_turn_sends_is_one_frame_and_one_write(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        link = one.peers._up[2]
        writes: list[int] = []
        write = link.write

        def noted(frame: list[bytes]) -> None:
            writes.append(sum(map(len, frame)))
            write(frame)

        link.write = noted  # type: ignore[method-assign]
        for number in range(16):
            assert one.peers.send(2, [number, b"x" * 200])
        assert not writes, "nothing leaves within the turn"
        await world.until(lambda: len(two.messages(1)) == 16)
        frames = [size for size in writes if size > 100]
        assert len(frames) == 1
        assert frames[0] < 16 * 207 + 20
        assert one.peers.send(2, [16])
        one.peers.flush()
        assert writes[-1] < 20, "flush writes at once"
        await world.until(lambda: len(two.messages(1)) == 17)

    arena(scene)


def test_a_message_is_what_it_was_when_it_was_sent(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        message = [1, bytearray(b"before")]
        assert one.peers.send(2, message)
        message[1][:] = b"after!"
        message.append("more")
        await world.until(lambda: bool(two.messages(1)))
        assert two.messages(1) == [[1, b"before"]]

    arena(scene)


def test_what_cannot_be_sent_costs_nothing_else(arena: Arena) -> None:
    async def scene(world: World) -> None:
        limits = msgspec.structs.replace(LIMITS, frame_bytes_max=100_000)
        one, two = await pair(world, limits=limits)
        assert one.peers.send(2, [1])
        with pytest.raises(TypeError):
            one.peers.send(2, [2, b"begun", object()])
        with pytest.raises(ValueError, match="can never be sent"):
            one.peers.send(2, [3, b"x" * 100_000])
        with pytest.raises(ValueError, match="can never be sent"):
            one.peers.send(2, [4, b"x" * 100_000], bulk=True)
        assert one.peers.send(2, [5, b"x" * 99_000])
        assert one.peers.send(2, [6, b"y" * 99_000]), "two that do not fit one frame"
        assert not one.peers.send(9, [7])
        assert not one.peers.is_up(9)
        await world.until(lambda: len(two.messages(1)) == 3)
        assert [message[0] for message in two.messages(1)] == [1, 5, 6]

    arena(scene)


def test_a_full_queue_says_so_and_goes_on_when_it_drains(arena: Arena) -> None:
    async def scene(world: World) -> None:
        limits = msgspec.structs.replace(
            LIMITS, queue_bytes_max=1 << 20, bulk_queue_bytes_max=1 << 20, dead_s=5.0
        )
        one, two = await pair(world, limits=limits)
        for bulk in (False, True):
            before = len(two.messages(1))
            results = [one.peers.send(2, [n, b"x" * 100_000], bulk=bulk) for n in range(20)]
            assert results == [True] * 10 + [False] * 10
            state = one.peers.states()[0]
            assert 1_000_000 <= (state.bulk_queued_bytes if bulk else state.queued_bytes) <= 1 << 20
            await world.until(lambda b=before: len(two.messages(1)) == b + 10)  # type: ignore[misc]
            state = one.peers.states()[0]
            assert state.queued_bytes == state.bulk_queued_bytes == 0
            assert one.peers.send(2, [0, b"x" * 2_000_000], bulk=bulk), "one always fits an empty queue"
            await world.until(lambda b=before: len(two.messages(1)) == b + 11)  # type: ignore[misc]

    arena(scene)


def test_bulk_is_overtaken_by_what_is_sent_after_it(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        for number in range(100):
            assert one.peers.send(2, [100 + number, b"x" * 160_000], bulk=True)
        await world.until(lambda: len(two.messages(1)) >= 3)
        assert one.peers.send(2, [1])
        await world.until(lambda: len(two.messages(1)) == 101)
        kinds = [message[0] for message in two.messages(1)]
        assert [kind for kind in kinds if kind >= 100] == list(range(100, 200)), "bulk keeps its order"
        # What was under way when the ordinary one was sent is about the window, not the queue.
        assert kinds.index(1) <= 30

    arena(scene)


def test_bulk_alone_never_has_more_than_the_window_under_way(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        link = one.peers._up[2]
        most = 0
        for number in range(100):
            assert one.peers.send(2, [100 + number, b"x" * 100_000], bulk=True)
        while len(two.messages(1)) < 100:
            most = max(most, link.sent - link._read)
            await asyncio.sleep(0.001)
        assert LIMITS.window_bytes // 2 < most <= LIMITS.window_bytes + 100_100

    arena(scene)


def test_a_node_that_crashes_is_down_and_its_next_incarnation_is_up(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, _ = await pair(world)
        await world.crash(2)
        await world.until(lambda: not one.peers.is_up(2))
        assert not one.peers.send(2, [1])
        again = await world.start(2, "second")
        world.connect()
        await both_up(world, one, again)
        assert one.events == [("up", 2, "first"), ("down", 2), ("up", 2, "second")]
        assert one.peers.send(2, [2])
        await world.until(lambda: again.messages(1) == [[2]])

    arena(scene)


def test_a_node_that_closes_sends_what_it_has(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        for number in range(50):
            assert one.peers.send(2, [number, b"x" * 10_000])
        del world.nodes[1]
        await one.peers.close()
        assert one.events == [("up", 2, "first")], "who closes hears nothing"
        assert not one.peers.send(2, [1])
        await world.until(lambda: two.events[-1] == ("down", 1))
        assert [message[0] for message in two.messages(1)] == list(range(50))

    arena(scene)


def test_a_removed_peer_is_down_at_once_and_refused_until_it_is_one_again(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        one.peers.set_peers({})
        assert one.events[-1] == ("down", 2)
        await world.until(lambda: two.events[-1] == ("down", 1))
        await world.until(lambda: "not among the nodes" in two.peers.states()[0].problem)
        world.connect()
        await both_up(world, one, two)

    arena(scene)


def test_a_peer_whose_address_changes_is_dialed_there(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        right = world.address(2)
        one.peers.set_peers({2: (right[0], 1)})
        assert one.events[-1] == ("down", 2)
        await world.until(lambda: bool(one.peers.states()[0].problem))
        one.peers.set_peers({1: world.address(1), 2: right})
        await both_up(world, one, two)

    arena(scene)


@pytest.mark.parametrize("ways", [[(1, 2)], [(2, 1)], [(1, 2), (2, 1)]], ids=["forth", "back", "both"])
def test_a_cut_even_one_way_is_down_on_both_sides(arena: Arena, ways: list[tuple[int, int]]) -> None:
    async def scene(world: World) -> None:
        for node_id in (1, 2, 3):
            await world.start(node_id)
        for source, target in ((1, 2), (2, 1)):
            await world.relay(source, target)  # type: ignore[attr-defined]
        world.connect()
        one, two, three = world.nodes.values()
        await both_up(world, one, two)
        await both_up(world, two, three)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for way in ways:
            world.cut(*way)
        await world.until(lambda: not one.peers.is_up(2) and not two.peers.is_up(1))
        assert loop.time() - began < LIMITS.dead_s * (3 if isinstance(loop, VirtualLoop) else 30)
        await asyncio.sleep(LIMITS.handshake_s * 2)
        assert not one.is_told_up(2)
        assert not two.is_told_up(1)
        await world.until(lambda: three.peers.is_up(1) and three.peers.is_up(2))
        for way in ways:
            world.heal(*way)
        # Attempts from before may still arrive and end the first new session; then there is a second.
        await world.until(lambda: one.peers.send(2, [7]) and [7] in two.messages(1))

    arena(scene)


def test_idle_nodes_stay_up(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        await asyncio.sleep(LIMITS.dead_s * 4)
        assert len(one.events) == len(two.events) == 1

    arena(scene)


def test_a_session_that_ends_does_not_leak_into_the_next(arena: Arena) -> None:
    """Whatever breaks: messages of a session are a prefix of what was sent in it, in order."""

    async def scene(world: World) -> None:
        one, two = await pair(world)
        session, number = 0, 0
        for _ in range(6):
            for _ in range(30):
                for _ in range(world.rng.randint(1, 10)):
                    number += one.peers.send(2, [session, number, b"x" * world.rng.choice((10, 5000))])
                if world.rng.random() < 0.2:
                    await asyncio.sleep(0.001)
            broken = world.rng.choice([one.peers._sessions[2].dialed, two.peers._sessions[1].dialed])
            assert broken is not None
            broken.end("the test says so")
            await world.until(lambda: not one.peers.is_up(2) or not two.peers.is_up(1))
            await world.until(lambda: one.events[-1][0] == "up" and one.peers.is_up(2))
            await both_up(world, one, two)
            session, number = session + 1, 0
        ups = [event for event in two.events if event[0] == "up"]
        assert len(ups) == 7
        expected = 0
        current: Any = None
        for event in two.events:
            if event[0] in ("up", "down"):
                current, expected = None, 0
                continue
            _, (of, place, _) = event
            current = of if current is None else current
            assert of == current, "two sessions of the sender in one of the receiver"
            assert place == expected, "a gap or a repetition"
            expected += 1

    arena(scene)


# ---------------------------------------------------------------------- refusals

WRONG = [
    ({"says": {"cluster_id": "other"}}, "belongs to cluster 'other'"),
    ({"says": {"region": "elsewhere"}}, "belongs to region 'elsewhere'"),
    ({"versions": (2, 3)}, "speaks protocol versions 2 to 3"),
]


@pytest.mark.parametrize(("options", "sentence"), WRONG)
def test_a_node_that_does_not_belong_is_refused_and_told_why(
    arena: Arena, options: dict[str, Any], sentence: str
) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1)
        two = await world.start(2, **dict(options))
        world.connect()
        await world.until(lambda: sentence in two.peers.states()[0].problem)
        assert one.events == two.events == []

    arena(scene)


def test_the_sentence_is_in_both_logs(arena: Arena, log: list[Any]) -> None:
    async def scene(world: World) -> None:
        await world.start(1)
        two = await world.start(2, says={"cluster_id": "other"})
        two.peers.set_peers({1: world.address(1)})
        await world.until(lambda: bool(two.peers.states()[0].problem))

    arena(scene)
    by_event = {line["event"]: line for line in log}
    assert by_event["refused a connection"]["why"] == by_event["cannot reach a node"]["why"]
    assert "correct the address" in by_event["cannot reach a node"]["why"]
    assert [line["event"] for line in log].count("cannot reach a node") == 1, "once, not at every attempt"


def test_a_wrong_address_is_found_out(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1)
        await world.start(2)
        one.peers.set_peers({3: world.address(2)})
        await world.until(lambda: "dialed node 3 and reached node 'r/2'" in one.peers.states()[0].problem)
        one.peers.set_peers({3: world.address(1)})
        await world.until(lambda: "dialed node 3 and reached node 'r/1'" in one.peers.states()[0].problem)

    arena(scene)


def test_of_two_processes_with_one_id_the_second_is_refused_while_the_first_lives(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        twin = await world.start(3, "of a copied directory", says={"node_id": 2, "name": "copy"})
        twin.peers.set_peers({1: world.address(1)})
        await world.until(lambda: "two processes" in twin.peers.states()[0].problem)
        await asyncio.sleep(LIMITS.dead_s * 2)
        assert len(one.events) == len(two.events) == 1
        await world.crash(2)
        await world.until(lambda: "two processes" not in twin.peers.states()[0].problem)

    arena(scene)


def test_the_highest_common_version_is_spoken(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1, versions=(1, 2))
        two = await world.start(2, versions=(2, 3))
        world.connect()
        await both_up(world, one, two)
        assert (one.peers.version(2), two.peers.version(1), one.peers.version(9)) == (2, 2, 0)

    arena(scene)


# ---------------------------------------------------------------------- strangers


def test_a_stranger_asks_and_is_answered(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1)
        assert await ask(world, [1, b"join"], name="cli") == [2, 1, "cli", b"join"]
        assert await ask(world, [1], cluster_id="c", region="r") == [2, 1, ""]
        assert one.events == [("stranger", [1, b"join"]), ("stranger", [1])]
        await world.until(lambda: not one.peers._strangers)
        assert not world.strangers[0].send([1]), "it is gone"

    arena(scene)


def test_what_a_stranger_is_told_when_there_is_no_answer(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one = await world.start(1)
        with pytest.raises(Refused, match="belongs to cluster 'x'") as refused:
            await ask(world, [1], cluster_id="x")
        with pytest.raises(Refused, match="belongs to region 'x'"):
            await ask(world, [1], region="x")
        with pytest.raises(Unanswered, match="hung up") as unanswered:
            await ask(world, [3])
        with pytest.raises(Unanswered):  # the node lets nobody stay for longer
            await ask(world, [4])
        assert refused.value.definite
        assert not unanswered.value.definite
        asking = [asyncio.ensure_future(ask(world, [4])) for _ in range(LIMITS.strangers_max)]
        await world.until(lambda: len(one.peers._strangers) == LIMITS.strangers_max)
        with pytest.raises(Refused, match="try again later"):
            await ask(world, [1])
        assert all(isinstance(e, Unanswered) for e in await asyncio.gather(*asking, return_exceptions=True))
        await one.peers.close()
        with pytest.raises(Unreachable, match="cannot connect") as unreachable:
            await ask(world, [1])
        assert unreachable.value.definite
        assert isinstance(unreachable.value, PeerError)

    arena(scene)


def test_a_node_that_answers_no_strangers(arena: Arena) -> None:
    async def scene(world: World) -> None:
        await world.start(1, strangers=False)
        with pytest.raises(Refused, match="nodes of its region only"):
            await ask(world, [1])

    arena(scene)


def test_a_stranger_may_not_send_what_it_likes(arena: Arena) -> None:
    async def scene(world: World) -> None:
        one, two = await pair(world)
        for message in ([-3, "x"], ["kind"], [1, b"x" * (LIMITS.stranger_frame_bytes_max + 1)]):
            with pytest.raises(Unanswered):
                await ask(world, message)
        assert not [event for event in one.events if event[0] == "stranger"]
        assert len(two.events) == 1, "nobody else was harmed"

    arena(scene)
