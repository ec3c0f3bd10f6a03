"""What is done to a region while clients use it.

Each run draws which kinds of faults it has and how often; several may be there at the same time. Every fault
ends by itself after a while, and `stop` ends them all.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

from chaos.sim.operators import Operator
from chaos.sim.world import Node

if TYPE_CHECKING:
    from chaos.sim.workers import Worker
    from chaos.sim.world import World

SKEW_S_MAX = 0.9  # of one node: two nodes' clocks differ by less than takeover.SKEW_NS
DOWN_S = (0.05, 3.0)
PAUSE_S = (0.1, 4.0)
CUT_S = (0.2, 4.0)
SLOW_S = (0.5, 5.0)
FULL_S = (0.2, 2.0)
OPERATED = 0.4  # the share of runs whose region has operators who change its members

Fault = Callable[[], Coroutine[None, None, None]]


class Faults:
    """Attacks the region until it is stopped."""

    def __init__(
        self,
        world: World,
        rng: random.Random,
        workers: list[Worker],
        new_worker: Callable[[], None],
        hang_up: Callable[[], None],
        kinds: frozenset[str] | None = None,
    ) -> None:
        self._world = world
        self._rng = rng
        self._workers = workers
        self._new_worker = new_worker
        self._hang_up = hang_up
        self._tasks: dict[asyncio.Task[None], None] = {}
        known: dict[str, Fault] = {
            "kill": self._kill,
            "restart": self._restart,
            "pause": self._pause,
            "pause-leader": self._pause_leader,
            "partition": self._partition,
            "one-way": self._one_way,
            "isolate-leader": self._isolate_leader,
            "freeze-leader": self._freeze_leader,
            "strand": self._strand,
            "lag": self._lag,
            "slow-link": self._slow_link,
            "lossy-link": self._lossy_link,
            "slow-disk": self._slow_disk,
            "full-disk": self._full_disk,
            "broken-disk": self._broken_disk,
            "clock": self._clock,
            "transfer": self._transfer,
            "load": self._load,
            "worker": self._kill_worker,
            "connection": self._reset_connection,
        }
        self._operator = Operator(world, random.Random(rng.getrandbits(32)))
        operating = self._operator.faults()
        if kinds is not None or rng.random() < OPERATED:
            known |= operating
        drawn = [kind for kind in known if rng.random() < 0.55] or ["kill", "partition"]
        self.kinds = [kind for kind in known if kind in kinds] if kinds is not None else drawn
        self._known = known
        self.pause_s = rng.choice((0.3, 0.7, 1.5, 3.0))  # mean, between two faults
        self.done: dict[str, int] = {}

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(self._rng.expovariate(1 / self.pause_s))
            kind = self._rng.choice(self.kinds)
            self.done[kind] = self.done.get(kind, 0) + 1
            task = asyncio.get_running_loop().create_task(self._known[kind]())
            self._tasks[task] = None
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._world.trace.problem(f"a fault failed: {error!r}")

    async def stop(self) -> None:
        """No faults any more; what they left behind is `World.heal`'s, and here what operators began."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def resume(self) -> None:
        """Nodes that were drained may lead again."""
        for name in sorted(self._world.drained & self._world.nodes.keys()):
            await self._operator.ask("resume", node=name)

    # ---- helpers

    def _note(self, what: str) -> None:
        self._world.trace.note(f"fault: {what}")

    def _node(self) -> Node:
        return self._rng.choice(list(self._world.nodes.values()))

    async def _wait(self, span: tuple[float, float]) -> None:
        await asyncio.sleep(self._rng.uniform(*span))

    def _names(self) -> list[str]:
        return list(self._world.nodes)

    # ---- processes

    async def _kill(self) -> None:
        node = self._node()
        if not node.running:
            return
        self._note(f"kill {node.name}")
        node.kill()
        await self._wait(DOWN_S)
        node.start_again()

    async def _restart(self) -> None:
        node = self._node()
        if not node.serves or node.process.paused or node.stopping:
            return
        self._note(f"restart {node.name}")
        if not await node.stop():
            self._note(f"{node.name} did not stop, and is killed")
        await self._wait(DOWN_S)
        node.start_again()

    async def _pause(self) -> None:
        await self._pause_one(self._node())

    async def _pause_leader(self) -> None:
        leader = self._world.leader(self._rng.choice(self._world.numbers()))
        if leader is not None:
            await self._pause_one(leader)

    async def _pause_one(self, node: Node) -> None:
        if not node.running or node.process.paused:
            return
        process = node.process
        self._note(f"pause {node.name}")
        process.pause()
        await self._wait(PAUSE_S)
        if not process.dead and process.paused:
            self._note(f"resume {node.name}")
            process.resume()

    # ---- the network

    async def _cut(self, cuts: list[tuple[str, str]]) -> None:
        network = self._world.network
        for source, target in cuts:
            network.cut(source, target)
        await self._wait(CUT_S)
        self._note(f"heal {cuts}")
        for source, target in cuts:
            network.heal(source, target)

    async def _partition(self) -> None:
        names = self._names()
        alone = self._rng.sample(names, self._rng.randint(1, max(1, len(names) // 2)))
        self._note(f"partition {alone}")
        rest = [name for name in names if name not in alone]
        await self._cut([way for one in alone for other in rest for way in ((one, other), (other, one))])

    async def _one_way(self) -> None:
        source, target = self._rng.sample(self._names(), 2)
        self._note(f"cut {source} to {target}")
        await self._cut([(source, target)])

    async def _isolate_leader(self) -> None:
        leader = self._world.leader(self._rng.choice(self._world.numbers()))
        if leader is None:
            return
        others = [name for name in self._names() if name != leader.name]
        deaf, mute = self._rng.choice(((True, True), (True, False), (False, True)))
        self._note(f"isolate {leader.name} deaf={deaf} mute={mute}")
        cuts = [(name, leader.name) for name in others] if deaf else []
        cuts += [(leader.name, name) for name in others] if mute else []
        await self._cut(cuts)

    async def _freeze_leader(self) -> None:
        """It sleeps through its own deposition, and wakes up where nobody can tell it."""
        leader = self._world.leader(self._rng.choice(self._world.numbers()))
        if leader is None or leader.process.paused:
            return
        process, network = leader.process, self._world.network
        others = [name for name in self._names() if name != leader.name]
        self._note(f"freeze {leader.name}")
        for name in others:
            network.cut(name, leader.name)
            network.cut(leader.name, name)
        process.pause()
        await self._wait(PAUSE_S)
        if not process.dead and process.paused:
            process.resume()
        await self._wait((0.0, 1.0))
        self._note(f"thaw {leader.name}")
        for name in others:
            network.heal(name, leader.name)
            network.heal(leader.name, name)

    async def _strand(self) -> None:
        """What a leader sends to one node is held up while a third takes over."""
        number = self._rng.choice([number for number in self._world.numbers() if number])
        leader = self._world.leader(number)
        if leader is None or leader.process.paused or len(self._names()) < 3:
            return
        others = [node for node in self._world.nodes.values() if node is not leader]
        far, heir = self._rng.sample(others, 2)
        self._note(f"strand what {leader.name} sends to {far.name}; {heir.name} gets group {number}")
        self._world.network.cut(leader.name, far.name)
        await self._wait((0.1, 0.4))
        if leader.serves and not leader.process.paused:
            leader.call(leader.member.steward._transfer, number, heir.node_id)
        await self._wait((0.05, 0.25))
        self._note("deliver what was stranded")
        self._world.network.heal(leader.name, far.name)

    async def _lag(self) -> None:
        """A node falls behind the logs, and dies while images come to it on slow links."""
        node = self._node()
        network = self._world.network
        others = [name for name in self._names() if name != node.name]
        self._note(f"{node.name} lags")
        await self._cut([way for name in others for way in ((node.name, name), (name, node.name))])
        paths = [network.path(name, node.name) for name in others]
        for path in paths:
            path.delay_s = (0.05, 0.1)
        await self._wait((0.2, 1.5))
        if node.running and node.name in self._world.nodes:
            self._note(f"kill {node.name}, which lags")
            node.kill()
            await self._wait((0.05, 0.5))
            node.start_again()
        await self._wait((0.5, 2.0))
        for path in paths:
            path.delay_s = (0.0002, 0.001)

    async def _slow_link(self) -> None:
        source, target = self._rng.sample(self._names(), 2)
        path = self._world.network.path(source, target)
        before = path.delay_s
        low = self._rng.choice((0.01, 0.05, 0.2))
        self._note(f"slow {source} to {target}: {low} s")
        path.delay_s = (low, low * 2)
        await self._wait(SLOW_S)
        path.delay_s = before

    async def _lossy_link(self) -> None:
        source, target = self._rng.sample(self._names(), 2)
        path = self._world.network.path(source, target)
        self._note(f"loss {source} to {target}")
        path.loss, path.breaks = self._rng.choice(((0.05, 0.0), (0.0, 0.01), (0.02, 0.005)))
        await self._wait(SLOW_S)
        path.loss = path.breaks = 0.0

    # ---- disks and clocks

    async def _slow_disk(self) -> None:
        node = self._node()
        low = self._rng.choice((0.005, 0.03, 0.2))
        self._note(f"slow disk {node.name}: {low} s")
        node.disk.sync_s = (low, low * 3)
        await self._wait(SLOW_S)
        node.disk.sync_s = (0.0002, 0.001)

    async def _full_disk(self) -> None:
        node = self._node()
        self._note(f"full disk {node.name}")
        node.disk.full = True
        await self._wait(FULL_S)
        node.disk.full = False

    async def _broken_disk(self) -> None:
        node = self._node()
        if node.running:
            self._note(f"broken disk {node.name}")
            node.disk.break_next()

    async def _clock(self) -> None:
        node = self._node()
        node.skew_s = self._rng.uniform(-SKEW_S_MAX, SKEW_S_MAX)
        self._note(f"clock of {node.name} {node.skew_s:+.3f} s")

    # ---- what operators and the steward do

    async def _transfer(self) -> None:
        number = self._rng.choice(self._world.numbers())
        leader = self._world.leader(number)
        if leader is None or leader.process.paused:
            return
        to = self._rng.choice([other for other in self._world.nodes.values() if other is not leader])
        self._note(f"transfer group {number} from {leader.name} to {to.name}")
        steward = leader.member.steward
        leader.call(steward._transfer, number, to.node_id)

    async def _load(self) -> None:
        node = self._node()
        node.load = self._rng.random()
        self._note(f"load of {node.name} {node.load:.2f}")

    # ---- clients and workers

    async def _kill_worker(self) -> None:
        if self._workers:
            worker = self._workers.pop(self._rng.randrange(len(self._workers)))
            self._note(f"kill {worker.label}")
            await worker.stop()
            self._new_worker()

    async def _reset_connection(self) -> None:
        self._note("reset a connection")
        self._hang_up()
