"""Regions that know each other: introduced once, reached by all nodes, kept up with, and never mixed up.

Two regions, or three, of members without a front, on one network in virtual time.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any

import msgspec
import pytest

from cluster.hosting.region.introducing import read_card
from cluster.hosting.region.joining import Told
from cluster.hosting.region.regions import CARD
from cluster.membership import FORMAT, RemoteNode, RemoteRecord, Table
from cluster.peers import virtual_time
from cluster.peers.abroad import abroad, home
from history_store.engine.errors import Code
from tests.cluster.hosting.settlement import PORT, Settlement, Settler

KIND = 90  # of messages of parts above


class Ear:
    """A `Foreign` that remembers: ("up", region, node), ("down", region, node), (region, node, message)."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def message(self, region: int, node: int, message: list[Any]) -> None:
        self.heard.append((region, node, message))

    def up(self, region: int, node: int) -> None:
        self.heard.append(("up", region, node))

    def down(self, region: int, node: int) -> None:
        self.heard.append(("down", region, node))


class Continents:
    """Regions a, b and c, with the indices 1, 2 and 3; made when they are asked for."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.a = Settlement(rng, index=1)
        self.all = [self.a]
        self.ears: dict[str, Ear] = {}
        self.a.foreign = self._ear

    def another(self, region: str, index: int, machines: str = "xyz") -> Settlement:
        made = Settlement(self.rng, machines, region, index, self.a.network)
        made.foreign = self._ear
        self.all.append(made)
        return made

    def _ear(self, settler: Settler) -> Ear:
        return self.ears.setdefault(settler.name, Ear())

    async def introduced(self) -> Settlement:
        """Regions a and b, which know each other, and all whose nodes can talk."""
        b = self.another("b", 2)
        await self.a.found()
        await b.found()
        told = await self.a.do("a/2", "introduce", at=[f"b-3:{PORT}"])
        assert (told["changed"], told["region"], told["index"]) == (True, "b", 2)
        await self.a.until(lambda: whole(self.a, b))
        return b


def reach(source: Settlement, target: Settlement) -> list[list[int]]:
    """Which nodes of another region each node reaches."""
    return [one.member.regions.nodes_up(target.index) for one in source.running() if hasattr(one, "member")]


def whole(one: Settlement, other: Settlement) -> bool:
    """Whether every node reaches every node of the other region."""
    return all(
        reach(source, target)
        == [sorted(settler.node_id for settler in target.running())] * len(source.running())
        for source, target in ((one, other), (other, one))
    )


def unchanged(world: Settlement) -> bool:
    return all(not settler.table.remotes for settler in world.running())


Scene = Callable[[Continents], Coroutine[Any, Any, None]]


@pytest.fixture
def play(rng: random.Random) -> Callable[[Scene], None]:
    def run(scene: Scene) -> None:
        async def played() -> None:
            world = Continents(rng)
            try:
                await scene(world)
            finally:
                for region in world.all:
                    region.end()

        virtual_time.run(played(), random.Random(rng.getrandbits(64)))

    return run


Play = Callable[[Scene], None]


def refused(told: Told) -> tuple[str, str]:
    """What is wrong, and what to do about it."""
    assert told.code == Code.FAILED_PRECONDITION, told
    what, _, do = told.message.partition(": ")
    assert do, "a refusal says what to do"
    return what, do


# ------------------------------------------------------------------------------------------ introducing


def test_both_write_each_other_down_and_all_nodes_talk(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for here, there in ((a, b), (b, a)):
            for settler in here.running():
                (remote,) = settler.table.others()
                assert (remote.index, remote.name) == (there.index, there.region)
                assert remote.cluster_id == there.cluster_id
                assert remote.nodes == tuple(
                    RemoteNode(one.node_id, f"{one.host}:{PORT}", f"{one.host}:7233")
                    for one in there.settlers.values()
                )
                regions = settler.member.regions
                assert (regions.own, regions.others()) == (here.index, [there.index])
                assert regions.name_of(there.index) == there.region
                assert regions.index_of(there.region) == there.index
                assert (regions.name_of(here.index), regions.index_of("nobody")) == (here.region, 0)
                await a.until(partial(stored, settler))
                settler.process.call(settler.member.replicas.reload)
                assert settler.table.others() == [remote], "as after an image"

    play(scene)


def test_messages_go_both_ways_in_order(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for here, there in ((a, b), (b, a)):
            for source in here.running():
                for target in there.running():
                    send = source.member.regions.send
                    for number in range(5):
                        assert source.process.call(
                            send, there.index, target.node_id, [KIND, source.name, number]
                        )
                    assert source.process.call(send, there.index, target.node_id, [KIND, "bulk"], True)
        await a.until(lambda: all(len(said(ear)) == 18 for ear in world.ears.values()))
        for name, ear in world.ears.items():
            other = 1 if name.startswith("b") else 2
            for node in (1, 2, 3):
                heard = [message for region, one, message in said(ear) if (region, one) == (other, node)]
                sender = f"{'a' if other == 1 else 'b'}/{node}"
                assert [one for one in heard if one[1] != "bulk"] == [[KIND, sender, n] for n in range(5)]
                assert [KIND, "bulk"] in heard

    play(scene)


def stored(settler: Settler) -> bool:
    """Whether what the node's table says is in the rows of its meta group, too."""
    rows = settler.member.node.meta.group.rows
    return bool(list(rows.scan(b"R", b"S"))) and bool(list(rows.scan(b"N", b"O")))


def said(ear: Ear, kinds: Collection[int] = (KIND,)) -> list[tuple[Any, ...]]:
    """What was sent by these tests: the parts of a node talk, too."""
    return [one for one in ear.heard if isinstance(one[0], int) and one[2][0] in kinds]


def test_own_nodes_stay_what_they_were(play: Play) -> None:
    """Nodes of another region with the ids of own ones are no peers; no region is unwell for them."""

    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for settler in a.running():
            assert settler.member.peers_up() == [one for one in (1, 2, 3) if one != settler.node_id]
            assert settler.member.node.peers() == settler.member.peers_up()
        for name in ("b/1", "b/2", "b/3"):
            b[name].kill()
        await a.until(lambda: reach(a, b) == [[], [], []])
        assert await a.is_well()
        a["a/1"].kill()
        await a.until(lambda: a["a/2"].member.peers_up() == [3])

    play(scene)


def test_what_only_own_nodes_may_say_is_not_heard_from_abroad(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        target, handed = a["a/1"].member, []
        for part in (target.replicas, target.steward, target.forward, target.takeovers, target.snapshots):
            setattr(part, "received", lambda node, message: handed.append((node, message)))  # noqa: B010
        kinds = (1, 10, 20, 30, 40, 41)
        sent = [[kind, 0, b""] for kind in kinds]
        for message in sent:
            b["b/2"].process.call(b["b/2"].member.regions.send, 1, 1, message)
        await a.until(lambda: len(said(world.ears["a/1"], kinds)) == len(sent))
        assert [message for _, node, message in said(world.ears["a/1"], kinds) if node == 2] == sent
        assert not [message for _, message in handed if message in sent]

    play(scene)


def test_introducing_again_changes_nothing(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        before = a["a/1"].table.changes, b["b/1"].table.changes
        for at in (f"b-1:{PORT}", f"b-2:{PORT}"):
            told = await a.do("a/1", "introduce", at=[at])
            assert (told["changed"], told["region"]) == (False, "b")
        assert not (await b.do("b/2", "introduce", at=[f"a-2:{PORT}"]))["changed"]
        assert (a["a/1"].table.changes, b["b/1"].table.changes) == before

    play(scene)


def test_one_address_that_answers_is_enough(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, world.another("b", 2)
        await a.found()
        await b.found()
        b["b/1"].kill()
        assert (await a.do("a/1", "introduce", at=["nobody:7000", f"b-1:{PORT}", f"b-2:{PORT}"]))["changed"]
        b["b/1"].boot()
        await a.until(lambda: whole(a, b))

    play(scene)


@pytest.mark.parametrize(
    ("region", "index", "words"),
    [
        ("b", 1, "b and a both have the index 1|a and b both have the index 1"),
        ("a", 2, "both regions are called a"),
    ],
)
def test_what_could_not_be_told_apart_is_refused_without_change(
    play: Play, region: str, index: int, words: str
) -> None:
    async def scene(world: Continents) -> None:
        import re

        a, b = world.a, world.another("b" if region == "b" else "x", index)
        if region == "a":
            b.region, b.cluster_id = "a", "another"
        await a.found()
        await b.found()
        host = next(iter(b.settlers.values())).host
        what, do = refused(await a.told("a/1", "introduce", at=[f"{host}:{PORT}"]))
        assert re.search(words, what), what
        assert "anew with another" in do
        assert unchanged(a)
        assert unchanged(b)

    play(scene)


def test_a_region_is_not_introduced_to_itself_or_to_nobody(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a = world.a
        await a.found()
        what, _ = refused(await a.told("a/1", "introduce", at=[f"a-3:{PORT}"]))
        assert "the address is one of region a itself" in what
        what, do = refused(await a.told("a/1", "introduce", at=["nobody:7000"]))
        assert "does not answer" in what
        assert "nobody:7000" in what
        assert "give the command again" in do
        assert (await a.told("a/1", "introduce", at=[])).code == Code.INVALID_ARGUMENT
        assert (await a.told("a/1", "introduce", at=["b"])).code == Code.INVALID_ARGUMENT
        assert unchanged(a)

    play(scene)


def test_an_index_that_a_third_region_has_is_refused_by_who_knows_it(play: Play) -> None:
    """b and c have the same index; a knows b. It is refused whoever of a and c is asked."""

    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        c = world.another("c", 2)
        await c.found()
        for at, other in (("a/1", c), ("c/1", a)):
            region = a if at == "a/1" else c
            host = next(iter(other.settlers.values())).host
            what, do = refused(await region.told(at, "introduce", at=[f"{host}:{PORT}"]))
            assert "a knows b by the index 2" in what
            assert "region.index" in do
        assert unchanged(c)
        assert [remote.name for remote in a["a/1"].table.remotes.values()] == ["b"]
        assert whole(a, b)

    play(scene)


# ------------------------------------------------------------------------------------------- afterwards


def test_restarted_nodes_are_talked_to_again(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for region, name in ((a, "a/2"), (b, "b/1")):
            region[name].kill()
            index, node = region.index, region[name].node_id
            other = b if region is a else a
            await a.until(lambda o=other, r=region, n=node: all(n not in found for found in reach(o, r)))
            for settler in other.running():
                assert ("down", index, node) in world.ears[settler.name].heard
            region[name].boot()
            await a.until(lambda: whole(a, b))
            assert world.ears[next(iter(other.settlers))].heard.count(("up", index, node)) == 2

    play(scene)


def test_whole_regions_come_back(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for settler in [*a.running(), *b.running()]:
            settler.kill()
        for settler in [*a.settlers.values(), *b.settlers.values()]:
            settler.boot()
        await a.until(lambda: len(a.running()) == 3 and all(hasattr(one, "member") for one in a.running()))
        await a.until(lambda: whole(a, b))

    play(scene)


def test_a_node_that_joins_is_known_abroad(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        fourth = await b.come("b/4", "w")
        await a.until(lambda: whole(a, b))
        assert fourth.member.regions.own == 2, "it was not told, and learned it from the table"
        fourth.process.call(fourth.member.regions.send, 1, 3, [KIND, "hello"])
        await a.until(lambda: (2, 4, [KIND, "hello"]) in world.ears["a/3"].heard)

    play(scene)


def test_a_node_that_is_removed_is_forgotten_abroad(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        await b.come("b/4", "w")
        await a.until(lambda: whole(a, b))
        b["b/2"].kill()
        await b.do("b/1", "remove", node="b/2", force=True)
        await a.until(lambda: [one.id for one in a["a/1"].table.remotes[2].nodes] == [1, 3, 4])
        await a.until(lambda: whole(a, b))

    play(scene)


def test_a_region_that_nobody_reaches_keeps_its_record_and_is_found_again_elsewhere(play: Play) -> None:
    """All nodes of b come back at other addresses; only b can say so, at addresses of a that it knows."""

    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        known = a["a/1"].table.remotes[2].nodes
        for settler in b.running():
            settler.kill()
        await a.until(lambda: reach(a, b) == [[], [], []])
        assert a["a/1"].table.remotes[2].nodes == known
        for name in b.founders:
            b[name].host = "moved-" + b[name].host
            b[name].boot()
        move(b, a)
        await a.until(lambda: reach(a, b) == [[1, 2, 3]] * 3)
        await a.until(lambda: whole(a, b))
        assert {one.peers_address for one in a["a/1"].table.remotes[2].nodes} == {
            f"moved-b-{number}:{PORT}" for number in (1, 2, 3)
        }

    play(scene)


def move(region: Settlement, other: Settlement) -> None:
    """The old machines' names lead to the new ones, for own peers, and nowhere from another region."""
    network = region.network
    for name in region.founders:
        host = region[name].host
        old = network.machine(host.removeprefix("moved-"))
        old.listeners = network.machine(host).listeners
        for one in other.founders:
            network.cut(other[one].host, old.name)


def test_an_introduction_that_was_left_half_done_is_completed(play: Play) -> None:
    """b wrote a down, and a ended before it wrote b."""

    async def scene(world: Continents) -> None:
        a, b = world.a, world.another("b", 2)
        await a.found()
        await b.found()
        card = RemoteRecord(
            FORMAT,
            1,
            "a",
            a.cluster_id,
            tuple(RemoteNode(n, f"a-{n}:{PORT}", f"a-{n}:7233") for n in (1, 2, 3)),
        )
        settler = b["b/1"]
        request = msgspec.json.encode({"do": "met", "remote": card})
        answers: list[Told] = []
        settler.process.call(settler.member.doorkeeper.ask, request, answers.append)
        await b.until(lambda: bool(answers))
        assert answers[0].code == Code.OK
        assert unchanged(a)
        await a.until(lambda: whole(a, b))

    play(scene)


def test_only_the_answer_to_the_last_question_counts_and_only_of_who_was_asked(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, _ = world.a, await world.introduced()
        leader = next(one for one in a.running() if one.member.node.meta.group.leading)
        regions, known = leader.member.regions, leader.table.remotes[2]
        fewer = msgspec.structs.replace(known, nodes=known.nodes[:1])

        def tell(index: int, number: int, card: RemoteRecord) -> None:
            regions.received(index, 1, [CARD, number, msgspec.to_builtins(card)])

        def ask() -> int:
            regions._ask(2, 1)
            return regions._last[2]

        before = leader.table.changes
        number = leader.process.call(ask)
        leader.process.call(tell, 2, number - 1, fewer)
        leader.process.call(tell, 3, number, fewer)
        regions._last[3] = number
        leader.process.call(tell, 3, number, fewer)
        await asyncio.sleep(0.5)
        assert leader.table.changes == before
        assert leader.table.remotes == {2: known}
        leader.process.call(tell, 2, leader.process.call(ask), fewer)
        await a.until(lambda: leader.table.changes == before + 2 and leader.table.remotes == {2: known})

    play(scene)


# -------------------------------------------------------------------------------------------- removing


def test_a_removed_region_is_gone_and_stays_gone(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        assert (await a.do("a/3", "part", region="b"))["changed"]
        assert not (await a.do("a/3", "part", region="b"))["changed"]
        await a.until(lambda: reach(a, b) == [[], [], []] and reach(b, a) == [[], [], []])
        for settler in a.running():
            regions = settler.member.regions
            assert (regions.others(), regions.name_of(2), regions.index_of("b")) == ([], "b", 2)
            assert not settler.process.call(regions.send, 2, 1, [KIND])
        what, _ = refused(await a.told("a/1", "introduce", at=[f"b-1:{PORT}"]))
        assert "region b was removed from a, and does not come back" in what
        what, _ = refused(await b.told("b/1", "introduce", at=[f"a-1:{PORT}"]))
        assert "region b was removed from a, and does not come back" in what
        anew = world.another("c", 2)
        await anew.found()
        what, _ = refused(await a.told("a/1", "introduce", at=[f"c-1:{PORT}"]))
        assert "a knows b, which was removed, by the index 2" in what

        async def b_says_so() -> bool:
            rows = (await b.do("b/1", "regions"))["regions"]
            return "was removed from a" in rows[1]["problem"]

        await b.until(b_says_so)

    play(scene)


def test_what_is_not_there_cannot_be_removed(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, _ = world.a, await world.introduced()
        what, do = refused(await a.told("a/1", "part", region="c"))
        assert "no other region 'c'" in what
        assert "choose one of b" in do
        what, _ = refused(await a.told("a/1", "part", region="a"))
        assert "a is this region itself" in what

    play(scene)


def test_regions_are_listed_from_any_node(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a, b = world.a, await world.introduced()
        for name in a.founders:
            rows = (await a.do(name, "regions"))["regions"]
            assert [(row["name"], row["index"], row["state"]) for row in rows] == [
                ("a", 1, "here"),
                ("b", 2, "up"),
            ]
            assert [node["up"] for node in rows[1]["nodes"]] == [True] * 3
        b["b/1"].kill()
        await a.until(lambda: reach(a, b) == [[2, 3]] * 3)
        seen = await a.do("a/1", "regions", here=True)
        assert seen["seen_by"] == "a/1"
        assert [node["up"] for node in seen["regions"][1]["nodes"]] == [False, True, True]

    play(scene)


# -------------------------------------------------------------------------------------------- the index


def test_a_node_with_another_index_is_refused(play: Play) -> None:
    async def scene(world: Continents) -> None:
        a = world.a
        await a.found()
        assert {settler.member.regions.own for settler in a.running()} == {1}
        a["a/2"].kill()
        a.index = 7
        a["a/2"].boot()
        await a.until(lambda: bool(a["a/2"].refusal))
        assert a["a/2"].broken, "before it talks to anybody"
        assert "region.index is 7 here, and region a was made with the index 1" in a["a/2"].refusal

    play(scene)


def test_numbers_abroad() -> None:
    assert home(abroad(7, 3)) == (7, 3)
    assert home(3) == (0, 3)
    assert len({abroad(index, node) for index in (1, 2, 99) for node in (1, 2, 65535)}) == 9
    for index, node in ((0, 1), (100, 1), (1, 0), (1, 65536)):
        with pytest.raises(AssertionError):
            abroad(index, node)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"index": 0}, "with the index 0"),
        ({"index": 100}, "with the index 100"),
        ({"name": ""}, "a region ''"),
        ({"cluster_id": ""}, "a region"),
        ({"nodes": ()}, "has the nodes"),
        ({"nodes": (RemoteNode(1, "a:1", ""), RemoteNode(1, "b:1", ""))}, r"has the nodes \[1, 1\]"),
        ({"nodes": (RemoteNode(65536, "a:1", ""),)}, "has the nodes"),
        ({"nodes": (RemoteNode(1, "a", ""),)}, "'a' has to be host:port"),
        ({"nodes": 5}, "Expected"),
    ],
)
def test_a_card_that_makes_no_sense_is_not_written_down(change: dict[str, Any], words: str) -> None:
    good = RemoteRecord(FORMAT, 2, "b", "c", (RemoteNode(1, "a:1", ""),))
    assert read_card(msgspec.to_builtins(good)) == good
    with pytest.raises(ValueError, match=words):
        read_card(msgspec.to_builtins(msgspec.structs.replace(good, **change)))


def test_a_table_without_regions_knows_none() -> None:
    assert Table().others() == []
    assert Table().other_named("b") is None
