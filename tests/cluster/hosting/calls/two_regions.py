"""Two regions in one process and in virtual time: gates and links that a test moves.

Region 1 has one node, region 2 has two: "b", and "z", which leads the shards of workflow ids that begin
with "z". Whatever is said between nodes travels as bytes, in order. What a shard of region 1 has can be
shipped: its rows, as they are.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from cluster.hosting.calls.forward import Forward
from cluster.hosting.calls.remote import CONSISTENCY
from cluster.hosting.groups.group import NotLeading
from cluster.hosting.shards.host import ShardHost
from cluster.peers import virtual_time
from history_store.shard import image
from history_store.storage.memory import MemoryStorage
from replication.failover import gates
from replication.failover.gates import Admission
from replication.failover.parking import GateView, Passage
from replication.failover.records import FORMAT, Gate
from replication.versions import owner_of
from tests.cluster.frontend.services.conftest import FakeCall, FakeConnection
from tests.cluster.hosting.play import Play
from tests.cluster.hosting.settlement import VirtualClock

SHIPPED = (b"c", b"r", b"i", b"h", b"q", b"t", b"x")


class Gated:
    """The gates of a shard, as its region's are."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def admit(self, namespace_id: str, call: gates.Call) -> Admission:
        gate = self.site.region.gates.get(namespace_id)
        if gate is None and namespace_id not in self.site.region.shared:
            return Admission(gates.Verdict.ALLOW, 0, 0)
        return gates.admit(gate, call, region=self.site.region.index)


class Links:
    """What a node knows of other regions (`abroad.Regions`)."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.own = site.region.index

    def name_of(self, index: int) -> str:
        return f"region{index}"

    def nodes_up(self, index: int) -> list[int]:
        world = self.site.region.world
        return [] if world.cut else sorted(world.regions[index].sites)

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        world = self.site.region.world
        if world.cut:
            return False
        body = msgspec.msgpack.encode(message)
        world.crossed.append(message)
        region, origin = self.own, self.site.play.node.node_id

        def arrive() -> None:
            if not world.cut:
                forward = world.regions[index].sites[node].forward
                forward.abroad.received(region, origin, msgspec.msgpack.decode(body))

        if world.held is not None:
            world.held.append(arrive)
        else:
            world.loop.call_later(world.delay_s, arrive)
        return True


class AnsweredCall(FakeCall):
    """A client's call, with what comes before its answer."""

    told: dict[str, Any]

    def set_metadata(self, *, initial: Any = (), trailing: Any = ()) -> None:
        self.told = dict(initial)


class Site:
    """A node."""

    def __init__(self, region: Region, node_id: int, clock: VirtualClock, seed: int) -> None:
        self.region = region
        play = self.play = Play(MemoryStorage(), shards=1, clock=clock, seed=seed)  # type: ignore[arg-type]
        node = self.node = play.node
        node.node_id = node_id
        forward = self.forward = node.forward = Forward(node, self._send)
        forward.handlers = {**play.handlers, **node.actions.deeds.handlers()}
        play.handlers = {name: forward.wrap(handler) for name, handler in play.handlers.items()}
        node.regions = Links(self)
        node.passage = lambda namespace_id: region.views.get(namespace_id)
        node.lag_ms = lambda namespace_id, shard: region.lag_ms
        for shard in node.shards:
            shard.gates = Gated(self)
        node.gates_of = lambda shard: Gated(self)
        node.shard_of = self._shard_of(node.shard_of)  # type: ignore[method-assign]

    @property
    def shard(self) -> ShardHost:
        (shard,) = self.node.shards
        return shard

    def _send(self, to: int, message: list[Any]) -> bool:
        origin, other = self.node.node_id, self.region.sites[to]
        body = msgspec.msgpack.encode(message)
        loop = self.node.loop
        loop.call_soon(lambda: other.forward.received(origin, msgspec.msgpack.decode(body)))
        return True

    def _shard_of(self, whole: Callable[[str, str], ShardHost]) -> Callable[[str, str], ShardHost]:
        def shard_of(namespace_id: str, workflow_id: str) -> ShardHost:
            leader = 2 if workflow_id.startswith("z") and 2 in self.region.sites else 1
            if leader != self.node.node_id:
                raise NotLeading(leader, 1)
            return whole(namespace_id, workflow_id)

        return shard_of

    def begin(
        self, request: Any, *, deadline_s: float | None = 30.0, consistency: str = "",
        connection: FakeConnection | None = None,
    ) -> AnsweredCall:  # fmt: skip
        """A client's call to this node."""
        metadata = {CONSISTENCY: consistency} if consistency else {}
        call = self.play.begin(
            request, deadline_s=deadline_s, connection=connection, kind=AnsweredCall, metadata=metadata
        )
        assert isinstance(call, AnsweredCall)
        return call


class Region:
    """One region: its gates, and what its nodes know of them."""

    def __init__(self, world: Regions, index: int) -> None:
        self.world = world
        self.index = index
        self.shared: set[str] = set()
        self.gates: dict[str, Gate] = {}
        self.views: dict[str, GateView] = {}
        self.lag_ms: int | None = None
        self.sites: dict[int, Site] = {}

    def gate(self, version: int, *, open_: bool = False, fence: int = 0) -> None:
        """Every shard's gate of the namespace is this."""
        namespace_id = self.world.namespace_id
        self.gates[namespace_id] = Gate(FORMAT, namespace_id, version, version if open_ else 0, fence)

    def view(self, version: int, passage: Passage | None = None, handover: int = 0) -> None:
        """What the nodes know of it."""
        owner = owner_of(version)
        if passage is None:
            passage = Passage.OPEN if owner == self.index else Passage.FORWARD
        namespace_id = self.world.namespace_id
        region = owner if passage is Passage.FORWARD else 0
        decided = passage is Passage.OPEN and bool(handover)
        self.views[namespace_id] = GateView(version, handover, decided, passage, region)
        for site in self.sites.values():
            site.node.passage_changed(namespace_id)

    def hears(self, version: int) -> None:
        """Its nodes and shards hear of a version; if it is the region's own, it serves."""
        ours = owner_of(version) == self.index
        self.gate(version, open_=ours)
        for site in self.sites.values():
            for shard in site.node.shards:
                (shard.activated if ours else shard.deactivated)([self.world.namespace_id])
        self.view(version)


class Regions:
    """Both."""

    def __init__(self, seed: int) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual_time.VirtualLoop)
        self.loop = loop
        self.cut = False
        self.delay_s = 0.01
        self.held: list[Callable[[], None]] | None = None
        self.crossed: list[list[Any]] = []
        clock = VirtualClock(loop)
        self.regions = {index: Region(self, index) for index in (1, 2)}
        for index, node_id in ((1, 1), (2, 1), (2, 2)):
            region = self.regions[index]
            region.sites[node_id] = Site(region, node_id, clock, seed + 10 * index + node_id)
        self.one, self.two = self.regions[1], self.regions[2]
        self.a, self.b, self.z = self.one.sites[1], self.two.sites[1], self.two.sites[2]
        for (
            region
        ) in self.regions.values():  # calls within a region find their way; polls stay where they are
            for site in region.sites.values():
                mates = [other for other in region.sites if other != site.node.node_id]
                site.node.peers = lambda mates=mates: mates  # type: ignore[method-assign]
        namespace = self.a.play.services.namespace("default")
        self.namespace_id = namespace.id
        for site in (self.b, self.z):
            site.node.meta.forget(site.play.services.namespace("default").id, lambda _: None)
            site.node.meta.put(namespace, lambda _: None)

    @property
    def sites(self) -> list[Site]:
        return [self.a, self.b, self.z]

    def share(self, version: int) -> None:
        """Both regions hold the namespace, and agree who serves it."""
        for region in self.regions.values():
            region.shared.add(self.namespace_id)
            region.hears(version)

    def kinds(self) -> list[int]:
        """What crossed between the regions, in short."""
        return [message[0] for message in self.crossed]

    def cut_link(self) -> None:
        """The regions cannot talk any more; what is under way is lost."""
        self.cut = True
        self.held = None
        self.a.forward.abroad.down(2, 1)
        self.a.forward.abroad.down(2, 2)
        self.b.forward.abroad.down(1, 1)
        self.z.forward.abroad.down(1, 1)

    def ship(self, to: Site | None = None) -> None:
        """Region 2's shard gets what region 1's has: the rows as they are."""
        to = to or self.b
        had = {key: None for key in to.play.rows() if key[:1] in SHIPPED}
        rows: list[tuple[bytes, bytes | None]] = [
            (key, value) for key, value in sorted({**had, **self.a.play.rows()}.items()) if key[:1] in SHIPPED
        ]
        shard = to.shard
        shard.group.propose(image.encode(rows, []), rows, [])

    async def settle(self, seconds: float = 0.0) -> None:
        """Let everybody do what is due."""
        if seconds:
            await asyncio.sleep(seconds)
        for _ in range(6):
            await asyncio.sleep(0.005)

    def end(self) -> None:
        for site in self.sites:
            site.play.stop_dead()
            for poll in list(site.node.polls):
                poll.gone()


Scene = Callable[[Regions], Coroutine[Any, Any, None]]


def play_scene(scene: Scene, seed: int = 1, **_: Any) -> None:
    """Play it in virtual time."""

    async def whole() -> None:
        world = Regions(seed)
        try:
            await scene(world)
            for site in world.sites:
                assert not site.play.broken
        finally:
            world.end()

    virtual_time.run(whole(), random.Random(seed))
