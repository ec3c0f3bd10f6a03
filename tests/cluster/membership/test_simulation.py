"""Random regions in simulation: everything happens at once, and steps fail; in the end all is as wanted.

The model performs what the decisions ask for with the Raft core's own arithmetic of members: a change is
refused where the core would refuse it, a joint configuration is left some time later, a learner catches up or
does not, a hand-over succeeds or does not, leaders are elected among live voters. The adversary crashes nodes
as long as every group keeps its majorities; so if a majority is ever lost, it is a step's doing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from cluster.membership import (
    META_GROUP,
    GroupReport,
    NodeHealth,
    NodeState,
    Plan,
    Refusal,
    ShardState,
    StepKind,
    emptied,
    leader_moves,
    plan_drain,
    plan_join,
    plan_move,
    plan_rebalance,
    plan_remove,
    plan_removed,
    plan_replace,
    plan_replicas,
    plan_resume,
    plan_split,
    plan_split_abandoned,
    plan_split_done,
    replica_steps,
)
from history_store.raft.configuration import ConfChange, Configuration, changed

from .conftest import RACKS, Region, members, newcomer

EVENTS = 60
ROUNDS_MAX = 400


class World:
    """What is: members, leaders, who is up, whose log is long enough."""

    def __init__(self, rng: random.Random, region: Region) -> None:
        self.rng = rng
        self.region = region
        self.table = region.table
        self.confs: dict[int, Configuration] = {
            group: members(self.table.replicas_of(group), self.table.learners_of(group))
            for group in self.table.groups()
        }
        self.leaders: dict[int, int] = {}
        self.behind: dict[int, set[int]] = {group: set() for group in self.confs}
        self.down: set[int] = set()
        self.number = 100
        self.reliability = 0.7
        self.elect()

    # ---- what happens by itself

    def has_majority(self, conf: Configuration, down: set[int]) -> bool:
        halves = [conf.voters, conf.outgoing] if conf.outgoing else [conf.voters]
        return all(2 * len([i for i in half if i not in down]) > len(half) for half in halves)

    def elect(self) -> None:
        for group, conf in self.confs.items():
            leader = self.leaders.get(group)
            if leader is None or leader in self.down or not conf.is_voter(leader):
                able = [i for i in conf.voters if i not in self.down and i not in self.behind[group]]
                assert able, f"group {group}: nobody can lead {conf}"
                self.leaders[group] = self.rng.choice(able)

    def pass_time(self) -> None:
        for group, conf in self.confs.items():
            assert self.has_majority(conf, self.down), f"group {group} lost its majority: {conf} {self.down}"
            if conf.auto_leave and self.luck():
                self.confs[group] = changed(conf, ConfChange())
            for node_id in sorted(self.behind[group]):
                if node_id not in self.down and self.luck():
                    self.behind[group].discard(node_id)
        self.elect()

    def luck(self) -> bool:
        return self.rng.random() < self.reliability

    def crash(self) -> None:
        up = sorted({i for conf in self.confs.values() for i in conf.members} - self.down)
        victim = self.rng.choice(up)
        if all(self.has_majority(conf, self.down | {victim}) for conf in self.confs.values()):
            self.down.add(victim)
            for group, conf in self.confs.items():
                # It misses what is written meanwhile; voters of the majority that is left have it all.
                if victim in conf.members:
                    self.behind[group].add(victim)
            # Who is behind cannot lead, so a majority of those that are up must not be.
            for group, conf in self.confs.items():
                self.behind[group] -= {i for i in conf.voters + conf.outgoing if i not in self.down}
        self.elect()

    # ---- the controller

    def health(self) -> dict[int, NodeHealth]:
        return {i: NodeHealth(up=i not in self.down) for i in self.table.nodes}

    def reports(self) -> dict[int, GroupReport]:
        return {
            group: GroupReport(leader, self.confs[group], frozenset(self.behind[group]))
            for group, leader in self.leaders.items()
        }

    def control(self) -> bool:
        """One round of the controller. False if there is nothing to do."""
        reports, health = self.reports(), self.health()
        work = replica_steps(self.table, reports, health)
        for step in work.steps:
            if self.luck():
                self.perform(step.group, step.kind, step.change, step.to)
        moves = leader_moves(self.table, self.reports(), health)
        for move in moves:
            assert move.to not in self.down
            if self.luck():
                self.hand_over(move.group, move.to)
        gone = emptied(self.table, reports)
        for node_id in gone:
            self.region.take(plan_removed(self.table, node_id))
        return bool(work.steps or work.waits or moves or gone)

    def perform(self, group: int, kind: StepKind, change: ConfChange | None, to: int) -> None:
        if change is None:
            self.hand_over(group, to)
            return
        before = self.confs[group]
        after = changed(before, change)
        wanted = self.table.replicas_of(group)
        live = len([i for i in after.voters if i not in self.down])
        if kind is StepKind.SWAP:
            assert self.has_majority(after, self.down)
            assert 2 * live > len(wanted), f"{live} live voters of {len(wanted)} wanted"
            assert len(after.voters) >= min(len(before.voters), len(wanted))
            assert not self.behind[group] & (set(after.voters) - set(before.voters))
        else:
            assert after.voters == before.voters
        self.confs[group] = after
        self.behind[group] |= set(after.members) - set(before.members)
        self.behind[group] &= set(after.members)

    def hand_over(self, group: int, to: int) -> None:
        assert to in self.confs[group].voters
        assert to not in self.behind[group]
        self.leaders[group] = to

    # ---- the operator

    def decide(self) -> None:
        """Any command, with any arguments; most are refused."""
        rng, table = self.rng, self.table
        node_id = rng.choice(sorted(table.nodes))
        group = rng.choice([i for i in table.groups() if i != META_GROUP])
        self.number += 1
        fresh = newcomer(self.number, rng.choice(["", rng.choice(RACKS)]))
        down = self.down
        commands: list[Callable[[], object]] = [
            lambda: plan_join(table, fresh, down=down),
            lambda: plan_join(table, fresh, down=down),
            lambda: plan_drain(table, node_id, evacuate=rng.random() < 0.3, down=down),
            lambda: plan_resume(table, node_id),
            lambda: plan_remove(table, node_id, force=rng.random() < 0.2, down=down),
            lambda: plan_remove(table, rng.choice(sorted(down) or [node_id]), down=down),
            lambda: plan_replace(table, node_id, fresh, down=down),
            lambda: plan_move(table, group, *rng.choices(sorted(table.nodes), k=2)),
            lambda: plan_rebalance(table, down=down),
            lambda: plan_rebalance(table, {i: rng.randint(1, 1000) for i in table.groups()}, down=down),
            lambda: plan_replicas(table, rng.choice((1, 3, 3, 5))),
        ]
        plan = rng.choice(commands)()
        if isinstance(plan, Plan):
            self.region.take(plan)
        self.split(group)

    def come_or_go(self) -> Plan | Refusal:
        """A node joins, leaves, or replaces another."""
        self.number += 1
        fresh, gone = newcomer(self.number), self.rng.choice(sorted(self.table.nodes))
        match self.rng.randrange(3):
            case 0:
                return plan_join(self.table, fresh)
            case 1:
                return plan_remove(self.table, gone)
            case _:
                return plan_replace(self.table, gone, fresh)

    def split(self, group: int) -> None:
        """Begin a split, or go on with one: the new group begins with its parent's members."""
        table = self.table
        waiting = [shard for shard in table.shards.values() if shard.state is ShardState.PREPARING]
        for shard in waiting:
            if self.rng.random() < 0.3:
                self.region.take(plan_split_abandoned(table, shard.id))
            elif not self.confs[shard.parent].outgoing:
                self.confs[shard.id] = self.confs[shard.parent]
                self.behind[shard.id] = set(self.behind[shard.parent])
                self.region.take(plan_split_done(table, shard.id))
        if not waiting and len(table.groups()) < 16 and self.rng.random() < 0.2:
            plan = plan_split(table, group)
            if isinstance(plan, Plan):
                self.region.take(plan)
        self.elect()

    def settle(self) -> None:
        """Everybody is up, nothing more is asked for: it must come to rest, and stay there."""
        self.down.clear()
        self.reliability = 0.9
        while any(shard.state is ShardState.PREPARING for shard in self.table.shards.values()):
            self.pass_time()
            self.split(1)
        for node in self.table.present():
            if node.state is NodeState.DRAINING:
                self.region.take(plan_resume(self.table, node.id))
        while plan := plan_rebalance(self.table):
            self.region.take(plan)
            if not plan.rows:
                break
        for _ in range(ROUNDS_MAX):
            self.pass_time()
            if not self.control():
                break
        else:
            raise AssertionError(f"no rest after {ROUNDS_MAX} rounds")


def random_region(rng: random.Random) -> Region:
    machines = rng.choice(["", "", "abcabcab", "aabbccdd"])
    return Region(
        rng.randint(1, 6), shards=rng.randint(1, 8), replicas=rng.choice((1, 3, 3, 5)), machines=machines
    )


def test_simulation_any_history_comes_to_the_wanted_rest(rng: random.Random) -> None:
    world = World(rng, random_region(rng))
    for _ in range(EVENTS):
        what = rng.random()
        if what < 0.35:
            world.decide()
        elif what < 0.5:
            world.crash()
        elif what < 0.65 and world.down:
            world.down.discard(rng.choice(sorted(world.down)))
        world.pass_time()
        world.control()
    world.settle()
    table = world.table
    for group in table.groups():
        conf = world.confs[group]
        assert conf == members(table.replicas_of(group), table.learners_of(group)), f"group {group}"
    assert not world.control()
    assert NodeState.LEAVING not in {node.state for node in table.present() if not table.groups_of(node.id)}


def test_simulation_leaders_and_replicas_end_up_level(rng: random.Random) -> None:
    """Where every node is a machine of its own: within one of each other, whatever happened before."""
    nodes = rng.randint(3, 7)
    world = World(rng, Region(nodes, shards=rng.randint(3, 24)))
    for _ in range(EVENTS):
        what = rng.random()
        if what < 0.2:
            plan = world.come_or_go()
            if isinstance(plan, Plan):
                world.region.take(plan)
        elif what < 0.4:
            world.crash()
        else:
            world.down.clear()
        world.pass_time()
        world.control()
    world.settle()
    active = [node.id for node in world.table.active()]
    load = world.region.load()
    assert max(load.values()) - min(load.values()) <= 1, load
    counts = Counter(world.leaders[group] for group in world.table.groups())
    leads = [counts[i] for i in active]
    assert max(leads) - min(leads) <= 1, leads
