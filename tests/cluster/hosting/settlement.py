"""A region in virtual time, whose nodes join, lose their disks and are thrown out: members without a front.

Each node has a machine in the memory network, a disk that outlives its processes, and what it says of itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec

from cluster.hosting.clock import Clock
from cluster.hosting.config.node_config import RaftSection
from cluster.hosting.groups.lanes import InlineLane
from cluster.hosting.region.administration import METHOD
from cluster.hosting.region.joining import Asker, InnerCall, NotAdmitted, Place, Told, join
from cluster.hosting.region.member import Founding, Member, Surroundings, Virtual
from cluster.hosting.region.regions import Foreign
from cluster.membership import FORMAT, FORMATS, NodeRecord, NodeState, Table, initial_ids
from cluster.peers.contract import Identity
from cluster.peers.memory import MemoryNetwork
from cluster.peers.virtual_time import Process, VirtualLoop
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import Code
from history_store.storage.memory import MemoryStorage

PORT = 7000
CLUSTER = "c"
SHARDS = 4
PATIENCE_S = 60.0


class VirtualClock(Clock):
    __slots__ = ("_loop",)

    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def now_ns(self) -> int:
        self._last = max(self._last + 1, 1_000_000_000_000_000_000 + int(self._loop.time() * 1e9))
        return self._last


class Settler:
    """One machine, and the node on it."""

    def __init__(self, world: Settlement, name: str, machine: str) -> None:
        self.world = world
        self.name = name
        self.machine = machine
        self.host = name.replace("/", "-")
        self.disk = MemoryStorage()
        self.key = f"{name} {world.rng.getrandbits(32)}"
        self.node_id = 0
        self.peers: dict[int, Any] | None = None
        self.release = ("0.1.0", FORMATS)  # and the formats that it reads
        self.process: Process
        self.member: Member
        self.broken: list[BaseException] = []

    def record(self) -> NodeRecord:
        return NodeRecord(
            FORMAT, self.node_id, self.name, f"{self.host}:{PORT}", f"{self.host}:7233", "", self.machine,
            NodeState.ACTIVE, 0, self.release[0], self.key, self.release[1],
        )  # fmt: skip

    def boot(self) -> None:
        """A new process; the node's identity is known."""
        world = self.world
        self.__dict__.pop("member", None)  # until the new one is there, nobody is to talk to the old one
        self.process = world.loop.process(self.name)
        self.process.spawn(self._run(self.process))

    async def _run(self, process: Process) -> None:
        world = self.world
        rng = random.Random(world.rng.getrandbits(64))
        around = Surroundings(
            world.loop, self.disk, world.network.host(self.host, process), VirtualClock(world.loop), rng,
            EngineLimits(), RaftSection(), self.broken.append,
            Virtual(lambda name, write, after: InlineLane(write), lambda: 0.0),
        )  # fmt: skip
        first = self.name in world.founders
        members = {name: (name.replace("/", "-"), PORT) for name in world.founders} if first else {}
        self.member = Member(
            Identity(
                world.cluster_id,
                world.region,
                self.node_id,
                self.name,
                f"{rng.getrandbits(64):x}",
                self.key,
                world.index if first else 0,
            ),
            Founding(members, SHARDS, 3),
            around,
            self.record(),
        )
        foreign = world.foreign(self)
        if foreign is not None:
            for name in ("message", "up", "down"):
                setattr(self.member.across, name, getattr(foreign, name))
        self.member.node.start()
        try:
            await self.member.start(self.host, PORT, {}, self.peers)
        except NotAdmitted as error:
            self.broken.append(error)

    async def join(self) -> Place:
        """Ask the nodes of the region for a place. NotAdmitted."""
        network = self.world.network.host(self.host, self.world.loop.process(f"{self.name} asks"))
        asker = Asker(network, cluster_id="", region=self.world.region, name=self.name)
        seeds = [(settler.host, PORT) for settler in self.world.running()]
        place = await join(asker, seeds, self.record(), self.world.rng)
        self.node_id, self.peers = place.node_id, place.peers
        return place

    def kill(self) -> None:
        self.process.kill()
        self.disk.crash()

    def lose_disk(self) -> None:
        """It comes back empty, and with another name."""
        self.disk.close()
        self.disk = MemoryStorage()
        self.key += " again"

    @property
    def alive(self) -> bool:
        return hasattr(self, "process") and not self.process.dead

    @property
    def refusal(self) -> str:
        """Why it was not admitted; "" if it was, as far as is known."""
        if not hasattr(self, "member"):
            return ""
        ready = self.member.ready
        error = ready.exception() if ready.done() else None
        found = [*self.broken, *([error] if error is not None else [])]
        assert all(isinstance(one, NotAdmitted) for one in found), found
        return str(found[0]) if found else ""

    @property
    def table(self) -> Table:
        return self.member.replicas.table if hasattr(self, "member") else Table()


class Settlement:
    """The region; or one of several on one network."""

    def __init__(
        self,
        rng: random.Random,
        machines: str = "xyz",
        region: str = "a",
        index: int = 0,
        network: MemoryNetwork | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.rng = rng
        self.region, self.index = region, index
        self.cluster_id = CLUSTER if region == "a" else f"{CLUSTER} of {region}"
        self.foreign: Callable[[Settler], Foreign | None] = lambda _: None  # who hears of other regions there
        self.network = network or MemoryNetwork(loop, rng)
        self.founders = [f"{region}/{number}" for number in range(1, len(machines) + 1)]
        self.settlers: dict[str, Settler] = {}
        ids = initial_ids(self.founders)
        for name, machine in zip(self.founders, machines, strict=True):
            self.add(name, machine).node_id = ids[name]

    def __getitem__(self, name: str) -> Settler:
        return self.settlers[name]

    def add(self, name: str, machine: str) -> Settler:
        if name in self.settlers:
            self[name].disk.close()
        made = self.settlers[name] = Settler(self, name, machine)
        return made

    def running(self) -> list[Settler]:
        return [settler for settler in self.settlers.values() if settler.alive]

    async def found(self) -> None:
        for name in self.founders:
            self[name].boot()
        await self.until(self.is_well)

    async def come(self, name: str, machine: str) -> Settler:
        """A node joins, and everything comes to rest."""
        settler = self.add(name, machine)
        await settler.join()
        settler.boot()
        await self.until(self.is_well)
        return settler

    def end(self) -> None:
        """The world ends."""
        for settler in self.settlers.values():
            if settler.alive:
                settler.kill()
            settler.disk.close()

    async def until(self, happened: Callable[[], Any]) -> None:
        """Wait for it; `happened` may be a coroutine function."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = happened()
                if found is True or (asyncio.iscoroutine(found) and await found):
                    return
                await asyncio.sleep(0.05)

    async def told(self, at: str, /, do: str, **fields: Any) -> Told:
        """What a node answers to an operator."""
        settler = self[at]
        request = msgspec.json.encode({"do": do, **fields})
        future: asyncio.Future[Told] = self.loop.create_future()

        def ask() -> None:
            forward = settler.member.forward
            call = InnerCall(self.loop, request, future.set_result, METHOD)
            forward.wrap(forward.handlers[METHOD])(call)

        await asyncio.sleep(0)
        settler.process.call(ask)
        return await future

    async def do(self, at: str, /, do: str, **fields: Any) -> Any:
        told = await self.told(at, do, **fields)
        assert told.code == Code.OK, told
        return msgspec.json.decode(told.body)

    async def is_well(self) -> bool:
        """Whether the region says that nothing is wrong."""
        for settler in self.running():
            if hasattr(settler, "member") and settler.member.forward.handlers and not settler.refusal:
                told = await self.told(settler.name, "health")
                return told.code == Code.OK and bool(msgspec.json.decode(told.body)["ok"])
        return False

    async def nodes(self, at: str = "") -> dict[str, Any]:
        return {
            one["name"]: one for one in (await self.do(at or f"{self.region}/3", "nodes", all=True))["nodes"]
        }

    async def problems(self, at: str = "") -> list[str]:
        return [one["what"] for one in (await self.do(at or f"{self.region}/3", "health"))["problems"]]
