"""What operators do to the simulated region while clients use it: members come and go, shards move and split.

They ask as the command line does, again while nobody knows what came of it, and take a refusal for an answer.
What they began goes on by itself; the region is whole again when all of it is done.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import msgspec

from chaos.sim.calls import Refused
from chaos.sim.clients import AGAIN, ALARMING
from cluster.hosting.region.administration import METHOD, ask
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from chaos.sim.world import Node, World

ASK_S = 6.0
PATIENCE_S = 12.0
DRAINED_S = (0.2, 3.0)
NODES_MAX = 6
NODES_MIN = 3
SHARDS_MAX = 6
LOOK_S = 0.2
ABANDONED = 0.5  # of the splits; by then some are done
PREPARED_S = (0.0, 0.2)


class Operator:
    """One who changes the region's members. Changes that take nodes away come one at a time."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self._world = world
        self._rng = rng
        self._taking = False  # a node away

    def faults(self) -> dict[str, Callable[[], Coroutine[None, None, None]]]:
        """By the names of their kinds."""
        return {
            "drain": self._drain,
            "move": self._move,
            "rebalance": self._rebalance,
            "split": self._split,
            "join": self._join,
            "remove": self._remove,
            "replace": self._replace,
        }

    async def _send_away(self, node: Node, do: str, **fields: Any) -> dict[str, Any] | None:
        """Ask that a node is taken away. It may go whatever we hear, but for a refusal as the only word."""
        leaving = self._world.leaving
        in_doubt = node.name in leaving  # since it was asked before
        leaving[node.name] = node
        heard: list[Code] = []
        told = await self.ask(do, heard, node=node.name, **fields)
        if heard == [Code.FAILED_PRECONDITION] and not in_doubt:
            leaving.pop(node.name, None)
        return told

    async def ask(self, do: str, heard: list[Code] | None = None, **fields: Any) -> dict[str, Any] | None:
        """The answer of whatever node; None: refused, or nobody answers. `heard`: the refusals."""
        world, loop = self._world, self._world.loop
        until = loop.time() + PATIENCE_S
        while loop.time() < until:
            channel = world.connect(self._rng, "operator")
            try:
                body = await channel.call(METHOD, ask(do, **fields), ASK_S)
            except Refused as refused:
                world.trace.note(f"operator {do} {fields} -> {refused}")
                if heard is not None:
                    heard.append(refused.code)
                if refused.code is Code.FAILED_PRECONDITION:
                    return None
                if refused.code in ALARMING or refused.code not in AGAIN:
                    world.trace.problem(f"{do} {fields} was answered with {refused}")
                    return None
            else:
                found: dict[str, Any] = msgspec.json.decode(body)
                world.trace.note(f"operator {do} {fields} -> {found.get('why')}")
                return found
            finally:
                channel.close()
            await asyncio.sleep(self._rng.uniform(0.1, 0.5))
        return None

    def _note(self, what: str) -> None:
        self._world.trace.note(f"fault: {what}")

    def _node(self) -> Node:
        return self._rng.choice(list(self._world.nodes.values()))

    async def _drain(self) -> None:
        node = self._node()
        self._note(f"drain {node.name}")
        try:
            if await self.ask("drain", node=node.name) is not None:
                await asyncio.sleep(self._rng.uniform(*DRAINED_S))
        finally:
            self._world.drained.add(node.name)
        if node.name in self._world.nodes and await self.ask("resume", node=node.name) is not None:
            self._world.drained.discard(node.name)

    async def _move(self) -> None:
        table = self._world.table()
        if table is None:
            return
        shard = self._rng.choice([number for number in self._world.numbers() if number])
        replicas = table.replicas_of(shard)
        spare = [node.id for node in table.active() if node.id not in replicas]
        if replicas and spare:
            source, to = self._rng.choice(replicas), self._rng.choice(spare)
            self._note(f"move shard {shard} from node {source} to {to}")
            await self.ask("move", shard=shard, node=str(source), to=str(to))

    async def _rebalance(self) -> None:
        self._note("rebalance")
        await self.ask("rebalance")

    async def _split(self) -> None:
        shards = [number for number in self._world.numbers() if number]
        if len(shards) < SHARDS_MAX:
            shard = self._rng.choice(shards)
            self._note(f"split shard {shard}")
            told = await self.ask("split", shard=shard)
            if told is not None and self._rng.random() < ABANDONED:
                await asyncio.sleep(self._rng.uniform(*PREPARED_S))
                named = self._rng.choice((shard, told["child"]))
                self._note(f"abandon the split of shard {shard}")
                await self.ask("abandon", shard=named)

    async def _join(self) -> None:
        if len(self._world.nodes) < NODES_MAX:
            self._note(f"{self._world.add().name} joins")

    async def _remove(self) -> None:
        if self._taking or len(self._world.nodes) <= NODES_MIN:
            return
        self._taking = True
        try:
            node = self._node()
            self._note(f"remove {node.name}")
            if await self._send_away(node, "remove") is not None:
                await self._when_empty(node)
        finally:
            self._taking = False

    async def _replace(self) -> None:
        """A machine dies for good, and another takes its place."""
        if self._taking or len(self._world.nodes) >= NODES_MAX:
            return
        self._taking = True
        try:
            old = self._node()
            new = self._world.add()
            self._note(f"{new.name} is to replace {old.name}")
            until = self._world.loop.time() + PATIENCE_S
            while not new.serves and self._world.loop.time() < until:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(LOOK_S)
            if new.serves and await self._send_away(old, "replace", to=new.name) is not None:
                await self._when_empty(old)
        finally:
            self._taking = False

    async def _when_empty(self, node: Node) -> None:
        """Switch it off when the region has let it go; `World.leave` does so if we do not come to it."""
        world = self._world
        while not world.is_removed(node):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(LOOK_S)
        world.leave()
