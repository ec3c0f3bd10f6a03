"""Several regions of one node each, in virtual time: who serves is set by hand, and nobody has to agree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from cluster.hosting.groups.lanes import InlineLane, Write
from cluster.hosting.region.streaming import Streaming, meet
from cluster.peers import virtual_time
from history_store.engine import keys
from history_store.storage.memory import MemoryStorage
from replication.failover.gates import Admission, Call, Verdict
from replication.failover.records import Point, Source
from replication.shipment import Row
from replication.versions import next_version, owner_of
from tests.cluster.hosting.play import Play

SHARDS = (2, 3, 1)


NOTHING = Point(0, 0)


class Wire:
    """One region's ends of the wires to all others."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.own = place.index
        self.cut: set[int] = set()  # regions that hear nothing from here, nor we of them
        self.drop: Callable[[list[Any]], bool] = lambda message: False
        self.sent: list[list[Any]] = []

    def others(self) -> list[int]:
        return [place.index for place in self.place.world.places if place is not self.place]

    def name_of(self, index: int) -> str:
        return "?abc"[index]

    def index_of(self, name: str) -> int:
        return "?abc".index(name)

    def nodes_up(self, index: int) -> list[int]:
        return [] if index in self.cut else [1]

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        if index in self.cut:
            return False
        carried = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
        if not self.drop(carried):
            self.sent.append(carried)
            far = self.place.world.places[index - 1]
            asyncio.get_running_loop().call_soon(far.end.message, self.own, 1, carried)
        return True


class Place:
    """One region: a node, who serves there as far as it knows, and its end of the streams."""

    def __init__(self, world: World, index: int, play: Play) -> None:
        self.world = world
        self.index = index
        self.play = play
        self.version = 1  # of every namespace, as this region knows
        self.active = index == 1
        play.node.version_of = lambda namespace_id: self.version  # type: ignore[method-assign]
        self.wire = Wire(self)
        loop = asyncio.get_running_loop()
        rng = random.Random(f"{world.seed}/{index}")
        self.end = Streaming(play.node, self.wire, self, loop, rng)
        for host in play.node.shards:
            host.gates = self

    def is_told(self, namespace_id: str) -> bool:
        return True

    def is_held(self, namespace_id: str) -> bool | None:
        return True

    def admit(self, namespace_id: str, call: Call) -> Admission:
        if self.active:
            return Admission(Verdict.ALLOW, 0, self.version)
        return Admission(Verdict.FORWARD, owner_of(self.version), self.version)

    def raised(self, namespace_id: str, version: int) -> Sequence[Row]:
        if version > self.version:
            self.version, self.active = version, False
        return ()

    def take_over(self) -> None:
        """This region serves from now on, whatever others think."""
        self.version = next_version(self.index, self.version)
        self.active = True
        for host in self.play.node.shards:
            assert host.streams is not None
            host.activated(self.play.node.meta.by_id)

    def waits(self) -> list[Any]:
        """What is not settled here."""
        found: list[Any] = []
        for host in self.play.node.shards:
            assert host.streams is not None
            conflicts = host.streams.conflicts
            found += [*conflicts.parked, *conflicts.quarantined]
            if self.active:
                found += conflicts.waiting_inputs
        return found

    def pending(self) -> int:
        """How many inputs wait as rows."""
        return sum(
            1
            for host in self.play.node.shards
            for _ in host.rows.scan(keys.STREAM + b"i", keys.prefix_end(keys.STREAM + b"i"))
        )


class World:
    """The regions."""

    def __init__(self, seed: int, regions: int) -> None:
        self.seed = seed

        # Virtual time waits for no thread.
        def lane(name: str, write: Write, after: object) -> InlineLane:
            return InlineLane(write)

        first = Play(shards=SHARDS[0], seed=1, make_lane=lane)
        namespaces = list(first.node.meta.by_id.values())
        plays = [first] + [
            Play(
                MemoryStorage(),
                shards=SHARDS[n],
                seed=n + 1,
                clock=first.clock,
                namespaces=namespaces,
                make_lane=lane,
            )
            for n in range(1, regions)
        ]
        self.places: list[Place] = []
        for number, play in enumerate(plays):
            self.places.append(Place(self, number + 1, play))

    def start(self) -> None:
        for place in self.places:
            place.end.start()

    def part(self, one: Place, other: Place) -> None:
        """They hear nothing of each other any more."""
        for here, there in ((one, other), (other, one)):
            here.wire.cut.add(there.index)
            here.end.down(there.index, 1)

    def heal(self) -> None:
        """All hear each other again, and know who serves: the highest version does."""
        for place in self.places:
            place.wire.cut.clear()
        serving = self.serving
        for place in self.places:
            place.active = place is serving
            place.version = serving.version
        for place in self.places:
            for index in place.wire.others():
                place.end.up(index, 1)

    @property
    def serving(self) -> Place:
        """The region of the highest version."""
        return self.places[owner_of(max(place.version for place in self.places)) - 1]

    async def same(self) -> None:
        """Wait until all regions have the same, and nothing waits."""
        for _ in range(200):
            await asyncio.sleep(0.25)
            if self.all_read() and self.equal() and not any(place.waits() for place in self.places):
                return
        assert self.all_read()
        for place in self.places:
            assert not place.waits(), place.index
        first = self.places[0].play.rows()
        for place in self.places[1:]:
            assert place.play.rows() == first, place.index

    def all_read(self) -> bool:
        """Whether every shard has read all that others tell of its slots."""
        return all(
            ours.streams.cursors().get(Source(there.index, theirs.group.id), NOTHING).seq
            == theirs.streams.tip.seq
            for here in self.places
            for there in self.places
            if here is not there
            for ours in here.play.node.shards
            for theirs in there.play.node.shards
            if ours.streams is not None and theirs.streams is not None and theirs.streams.tip is not None
            if meet(here.play.node.ranges[ours.group.id], there.play.node.ranges[theirs.group.id])
        )

    def equal(self) -> bool:
        """Whether all regions have the same rows."""
        first = self.places[0].play.rows()
        return all(place.play.rows() == first for place in self.places[1:])

    async def close(self) -> None:
        for place in self.places:
            place.end.close()
        for place in self.places:
            await place.play.close()


def play_regions(seed: int, regions: int, story: Callable[[World], Awaitable[None]]) -> None:
    """Play a story with some regions, in virtual time."""

    async def whole() -> None:
        world = World(seed, regions)
        try:
            await story(world)
        finally:
            await world.close()

    virtual_time.run(whole(), random.Random(f"{seed}/loop"))
