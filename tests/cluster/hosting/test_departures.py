"""A replica that the region takes away from a node leaves nothing there, and comes back as if it were new."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import msgspec
import pytest

from cluster.hosting import generations
from cluster.hosting.group import Group, nobody
from cluster.peers import virtual_time
from history_store.engine import keys
from history_store.engine.errors import ServiceError
from history_store.raft import RaftError
from history_store.shard import image, snapshot
from history_store.visibility import search
from history_store.visibility.record import ExecutionRecord
from tests.cluster.hosting.settlement import SHARDS, Settlement, Settler

NAMESPACE = "00000000-0000-0000-0000-00000000000a"
Play = Callable[..., None]


@pytest.fixture
def play(rng: random.Random, monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a scene in virtual time, in a region of three nodes that a fourth has joined."""
    monkeypatch.setattr(generations, "DELETED_AT_ONCE", 7)

    def run(scene: Callable[[Settlement], Coroutine[Any, Any, None]]) -> None:
        async def whole() -> None:
            world = Settlement(rng)
            try:
                await world.found()
                await world.come("a/4", "w")
                await scene(world)
            finally:
                world.end()

        virtual_time.run(whole(), random.Random(rng.getrandbits(64)))

    return run


class Runs:
    """What was written, and is acknowledged."""

    def __init__(self, world: Settlement) -> None:
        self.world = world
        self.of: dict[int, dict[bytes, bytes]] = {shard: {} for shard in range(1, SHARDS + 1)}

    def leader(self, shard: int) -> Settler | None:
        for settler in self.world.running():
            if hasattr(settler, "member") and shard in settler.member.node.led:
                return settler
        return None

    def write(self, shard: int) -> None:
        """A run, if somebody leads the shard."""
        settler = self.leader(shard)
        if settler is not None:
            settler.process.call(partial(self._write, settler.member.node.led[shard].group))

    def _write(self, group: Group) -> None:
        rng = self.world.rng
        raw = bytes((group.id,)) * 14 + rng.randbytes(2)
        slot = keys.slot_bytes(next(s for s, owner in enumerate(self._owners()) if owner == group.id))
        key = keys.run(slot, raw)
        value = msgspec.msgpack.encode((NAMESPACE, "w", raw.hex(), "W", rng.getrandbits(60)))
        rows: list[tuple[bytes, bytes | None]] = [(key, value), (keys.history(slot, raw, 0, 1), value * 20)]
        shown = [ExecutionRecord(NAMESPACE, "w", raw.hex(), "W", 1, 1, 0, 0, "q", 0, 0, 1, 0, b"memo", b"")]
        try:
            group.propose(image.encode(rows, shown), rows, list(shown))
        except (ServiceError, RaftError):
            return  # it leads no more, or hands over

        def committed(error: ServiceError | None) -> None:
            if error is None:
                self.of[group.id][key] = value

        group.when_committed(committed, patient=True)

    def _owners(self) -> list[int]:
        return next(s for s in self.world.running() if s.table.region is not None).table.owners

    async def some(self, shards: list[int], count: int) -> None:
        for shard in shards:
            goal = len(self.of[shard]) + count

            def enough(shard: int = shard, goal: int = goal) -> bool:
                self.write(shard)
                return len(self.of[shard]) >= goal

            await self.world.until(enough)

    def missing(self, settler: Settler) -> str:
        """What a node should have on its disk, and has not; "" if nothing."""
        for shard, group in settler.member.node.committer.groups.items():
            for key, value in self.of.get(shard, {}).items():
                if settler.disk.get(snapshot.prefix(group.rows.generation) + key) != value:
                    return f"{settler.name} lacks a run of shard {shard}"
        return ""

    def too_many(self, settler: Settler) -> str:
        """What is on a node's disk, or is listed, without a replica there; "" if nothing."""
        groups = settler.member.node.committer.groups
        known = {group.rows.generation for group in groups.values()} | {0xFFFFFFFF}
        found = {int.from_bytes(key[:4], "big") for key, _ in settler.disk.scan(b"", b"\xff" * 5)}
        connection = settler.disk.visibility_connection()
        listed, _ = search.list_executions(connection, NAMESPACE, "", {}, 100_000)
        connection.close()
        shown = {int(record.run_id[:2], 16) for record in listed}
        if found - known or shown - set(groups):
            return f"{settler.name} has {found - known}, lists {shown - set(groups)}"
        return ""

    async def at_rest(self) -> None:
        """Everything is where it belongs, and nowhere else."""
        await self.world.until(self.world.is_well)
        told = ""

        def settled() -> bool:
            nonlocal told
            for settler in self.world.running():
                settler.process.call(settler.member.node.committer.flush, nobody)
            open_ = {
                settler.name: set(settler.member.node.committer.groups) - {0}
                for settler in self.world.running()
            }
            wanted = {
                settler.name: set(settler.table.groups_of(settler.node_id)) - {0}
                for settler in self.world.running()
            }
            told = f"{open_} is not {wanted}" if open_ != wanted else ""
            for settler in self.world.running():
                told = told or self.missing(settler) or self.too_many(settler)
            return not told

        try:
            await self.world.until(settled)
        except TimeoutError:
            raise AssertionError(told) from None


async def move(world: Settlement, shard: int, source: str, target: str) -> None:
    await world.do("a/3" if source != "a/3" else "a/2", "move", shard=shard, node=source, to=target)


def places(world: Settlement) -> tuple[int, str, str]:
    """A shard, a node that has it, and one that has not."""
    table = next(s for s in world.running() if s.table.region is not None).table
    shard = world.rng.randrange(1, SHARDS + 1)
    has = table.replicas_of(shard)
    (without,) = {1, 2, 3, 4} - set(has)
    return shard, f"a/{world.rng.choice(has)}", f"a/{without}"


def test_a_replica_leaves_nothing_and_comes_back(play: Play) -> None:
    """Whether its node was there when the members changed, or down and hears of it later."""

    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 12)
        shard, source, target = places(world)
        former, was_down = world[source], rng.random() < 0.5
        if was_down:
            former.kill()
            others = world.running()
            await world.until(lambda: not any(s.member.peers.is_up(former.node_id) for s in others))
        await move(world, shard, source, target)
        if was_down:
            await world.until(partial(is_moved, world, shard, source, target))
            await runs.some([shard], 5)
            former.boot()
            await world.until(lambda: hasattr(former, "member") and former.alive)
        await runs.at_rest()
        left = former.disk.load()[shard]
        assert left.entries == []
        assert left.hard_state.term > 0, "what it promised in this term is not forgotten"
        if rng.random() < 0.5:
            former.kill()
            former.boot()
            await runs.at_rest()
        await runs.some([shard], 5)
        await move(world, shard, target, source)
        await runs.at_rest()
        raft = former.member.node.committer.groups[shard].raft
        assert former.node_id in raft.conf.voters
        assert raft.term >= left.hard_state.term
        await runs.some(list(runs.of), 3)
        await runs.at_rest()

    play(scene)


async def is_moved(world: Settlement, shard: int, source: str, target: str) -> bool:
    at = next(s.name for s in world.running() if s.name != source)
    shown = (await world.do(at, "shards"))["shards"]
    return any(
        one["id"] == shard and target in one["voters"] and source not in one["voters"] for one in shown
    )


def test_replicas_come_and_go_while_nodes_die(play: Play) -> None:
    """No acknowledged run is lost, and in the end nothing lies where it does not belong."""

    async def scene(world: Settlement) -> None:
        runs, rng = Runs(world), world.rng
        await runs.some(list(runs.of), 4)
        for _ in range(30):
            running = world.running()
            match rng.randrange(8):
                case 0 if len(running) == 4:
                    rng.choice(running).kill()
                case 1 | 2:
                    for settler in world.settlers.values():
                        if not settler.alive:
                            settler.boot()
                case 3 | 4:
                    shard, source, target = places(world)
                    at = rng.choice(running).name
                    asked = world.told(at, "move", shard=shard, node=source, to=target)
                    asking = asyncio.ensure_future(asked)
                    await asyncio.sleep(rng.uniform(0.0, 3.0))
                    asking.cancel()
                case _:
                    for _ in range(rng.randrange(12)):
                        runs.write(rng.randrange(1, SHARDS + 1))
                        await asyncio.sleep(rng.uniform(0.0, 0.1))
            await asyncio.sleep(rng.choice([0.0, 0.3, 1.5]))
        for settler in world.settlers.values():
            if not settler.alive:
                settler.boot()
        await runs.at_rest()
        await runs.some(list(runs.of), 2)
        await runs.at_rest()

    play(scene)
