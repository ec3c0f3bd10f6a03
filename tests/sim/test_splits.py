"""Shards are split again and again while clients work and nodes die; then all that was said is read back.

The seeds stay the same, as in test_simulation.py. Others: `python tests/sim/test_splits.py 1 20 kill,clock`.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import Any

import pytest

from chaos.sim.run import Options, Report, Simulation, simulate
from cluster.hosting.region.administration import Request
from cluster.hosting.shards import splitting
from cluster.membership import META_GROUP, ShardState, Table

SPLITS = 5
ASKED_S = 5.0
SPLIT_S = 20.0
ALL_S = 60.0


class Splitter:
    """Splits one shard after the other."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.world = simulation.world
        self.rng = random.Random(f"{simulation.seed}/splits")
        self.done = 0
        self.world.numbers = self.numbers  # type: ignore[method-assign]
        settle = simulation._settle

        async def settled(talking: list[asyncio.Task[None]]) -> None:
            self.world.heal()
            await asyncio.wait_for(self.task, ALL_S)
            await settle(talking)

        simulation._settle = settled  # type: ignore[method-assign]
        self.task = asyncio.ensure_future(self.run())

    def table(self) -> Table | None:
        """The newest that any node has."""
        members = [getattr(node, "member", None) for node in self.world.nodes.values()]
        tables = [member.replicas.table for member in members if member is not None]
        return max(tables, key=lambda table: table.changes, default=None)

    def numbers(self) -> list[int]:
        table = self.table()
        shards = table.shards if table is not None and table.region is not None else None
        return [META_GROUP, *sorted(shards or range(1, self.world.shape.shards + 1))]

    async def run(self) -> None:
        while not self.world.whole:
            await asyncio.sleep(0.05)
        while self.done < SPLITS and not self.simulation.trace.problems:
            await asyncio.sleep(self.rng.uniform(0.1, 1.5))
            leader = self.world.leader(META_GROUP)
            if leader is None or leader.process.paused:
                continue
            table = leader.member.replicas.table
            shards = [one for one in table.shards.values() if one.state is ShardState.SERVING]
            shard = self.rng.choice([one.id for one in shards if not table.splitting(one.id)])
            asking = leader.process.spawn(leader.member.administration.split(Request("split", shard=shard)))
            await asyncio.wait([asking], timeout=ASKED_S)  # the process may die with it
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                self.done += await self.comes(asking.result()["child"])

    async def comes(self, child: int) -> bool:
        """Whether the new shard serves, soon."""
        until = self.world.loop.time() + SPLIT_S
        while self.world.loop.time() < until:
            await asyncio.sleep(0.02)
            table = self.table()
            shard = table.shards.get(child) if table is not None else None
            if shard is not None and shard.state is ShardState.SERVING and self.world.leader(child):
                return True
        return False


def play(seed: int, faults: frozenset[str]) -> tuple[Report, int]:
    """A run, and how many shards were split in it."""
    made: list[Splitter] = []
    options = Options(seconds=8.0, faults=faults)
    report = simulate(seed, options, lambda simulation: made.append(Splitter(simulation)))
    return report, made[0].done


@pytest.mark.parametrize(
    ("seed_of_region", "faults"),
    [
        (1, "kill,transfer"),
        (2, "kill,partition"),
        (3, "isolate-leader,strand"),
        (116, "clock,isolate-leader"),
    ],
)
def test_shards_are_split_while_clients_work_and_nodes_die(
    seed_of_region: int, faults: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "COPIED_ROWS", 16)
    monkeypatch.setattr(splitting, "CLEARED_ROWS", 16)
    report, splits = play(seed_of_region, frozenset(faults.split(",")))
    problems = "\n".join(report.problems)
    assert report.ok, f"{problems}\nunseed {report.unseed}, faults {report.faults}"
    assert splits == SPLITS
    assert report.operations, "clients did something"


def main(arguments: list[str]) -> int:
    """Other seeds."""
    bad = 0
    for seed in range(int(arguments[0]), int(arguments[1])):
        report, splits = play(seed, frozenset(arguments[2].split(",")))
        bad += not report.ok
        said: Any = "ok" if report.ok else report.problems
        sys.stdout.write(f"seed {seed}: {splits} splits, {report.operations} operations, {said}\n")
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
