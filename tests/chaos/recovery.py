"""How long a fault is felt by clients of the nodes that are well: a whole region in virtual time.

Clients of every node start workflows at a steady pace, each call tried again as an SDK does it. What a fault
costs is the longest that one of them waited for its answer, in seconds of virtual time: the same for a seed
on every machine.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim.calls import Channel, Refused
from chaos.sim.trace import Trace
from chaos.sim.world import Node, Shape, World
from cluster.frontend.services.base import WORKFLOW_SERVICE
from cluster.peers import virtual_time
from cluster.peers.virtual_time import VirtualLoop
from history_store.engine.errors import Code

START = f"/{WORKFLOW_SERVICE}/StartWorkflowExecution"
SHARDS = 4
PACE_S = 0.08  # between two starts of one client
CALL_S = 10.0  # an SDK's own time-out of a try
AGAIN_S = 0.1  # an SDK's first pause
BEGIN_S = 30.0
QUIET_S = 2.0  # before the fault: leaders find their places
AFTER_S = 3.0
PATIENCE_S = 60.0
SHOWN_MAX = 8

Fault = Callable[[World, Node], Awaitable[None]]


@dataclass
class Felt:
    """What clients waited for, from the fault on."""

    victims: frozenset[str] = frozenset()
    waits: list[tuple[float, str, float]] = field(default_factory=list)  # (begun, node, seconds)
    errors: list[str] = field(default_factory=list)
    leaders: dict[int, str] = field(default_factory=dict)  # while the fault lasts, at its end

    @property
    def longest_s(self) -> float:
        """Of clients whose node is well."""
        return max((wait for _, node, wait in self.waits if node not in self.victims), default=0.0)

    def worst(self) -> str:
        """The longest waits, for a failed test."""
        ordered = sorted(self.waits, key=lambda wait: wait[2], reverse=True)
        lines = (f"{node} at {at:+.2f} s waited {wait:.2f} s" for at, node, wait in ordered[:SHOWN_MAX])
        return f"victims {sorted(self.victims)}: " + "; ".join(lines)


class Region:
    """The scene."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.felt = Felt()
        self._seed = seed
        self._since = 0.0
        self._numbers = 0
        self._open: set[asyncio.Task[None]] = set()

    async def load(self, node: Node) -> None:
        """Start workflows through this node, whatever becomes of those before."""
        rng = random.Random(f"{self._seed}/{node.name}")
        channel: Channel | None = None
        while True:
            await asyncio.sleep(PACE_S)
            if channel is None or channel.broken:
                channel = self.world.connect(rng, f"client-{node.name}", to=node)
            self._numbers += 1
            task = asyncio.ensure_future(self._start(node, channel, rng, f"w{self._numbers}"))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _start(self, node: Node, channel: Channel, rng: random.Random, workflow_id: str) -> None:
        loop = self.world.loop
        began = loop.time()
        request = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, request_id=workflow_id
        )
        request.workflow_type.name = request.task_queue.name = "x"
        while True:
            try:
                await channel.call(START, request.SerializeToString(), CALL_S)
                break
            except Refused as refused:
                if refused.code is not Code.UNAVAILABLE:
                    self.felt.errors.append(f"{node.name}: {refused}")
                if channel.broken:
                    channel = self.world.connect(rng, f"client-{node.name}", to=node)
            await asyncio.sleep(AGAIN_S)
        self.felt.waits.append((began - self._since, node.name, loop.time() - began))

    async def play(self, victim: Callable[[World], Node], fault: Fault, lasts_s: float) -> Felt:
        """Calm, the fault, its end, calm."""
        world, loop = self.world, self.world.loop
        world.start()
        assert await world.until_whole(BEGIN_S), "a new region serves"
        loads = [asyncio.ensure_future(self.load(node)) for node in world.nodes.values()]
        await asyncio.sleep(QUIET_S)
        self.felt.waits.clear()
        self._since = loop.time()
        node = victim(world)
        self.felt.victims = frozenset((node.name,))
        await fault(world, node)
        await asyncio.sleep(lasts_s)
        for number in world.numbers():
            leader = world.leader(number)
            self.felt.leaders[number] = leader.name if leader is not None else ""
        world.heal()
        await asyncio.sleep(AFTER_S)
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        if self._open:
            await asyncio.wait(self._open, timeout=PATIENCE_S)
        # An orderly end leaves no task behind.
        await asyncio.gather(*(node.stop() for node in world.nodes.values() if node.running))
        return self.felt


def felt(
    seed: int, fault: Fault, *, victim: Callable[[World], Node], lasts_s: float = 6.0, nodes: int = 3
) -> Felt:
    """Play it in virtual time."""
    now: list[Callable[[], float]] = [lambda: 0.0]
    worlds: list[World] = []

    async def whole() -> Felt:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        now[0] = loop.time
        world = World(loop, seed, trace, Shape(nodes=nodes, shards=SHARDS))
        worlds.append(world)
        return await Region(world, seed).play(victim, fault, lasts_s)

    with Trace(lambda: now[0]()) as trace:
        found = virtual_time.run(whole(), random.Random(f"{seed}/loop"))
    for world in worlds:
        world.scrap()
    assert not trace.problems, trace.problems
    return found
