"""Many short lives of a group, each from one seed: first break everything and demand safety, then heal and
demand progress. `pytest tests/history_store/raft -k simulation --seeds=200` runs two hundred.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from history_store.raft import Change, ChangeOp, ConfChange, Config, RaftError, Role, Transition
from tests.history_store.raft.world import Replica, World

ROUNDS = 300
NODES = 5


class Chaos:
    """What goes wrong in one world, as one seed decides."""

    def __init__(
        self, rng: random.Random, config: Config, voters: tuple[int, ...], *, members_change: bool
    ) -> None:
        self.rng = rng
        # In a slow world elections take long; a group that never has a leader proves nothing.
        patience = rng.choice((10, 20, 40))
        configs = [
            replace(config, election_ticks=patience, node_id=node, voters=voters if node in voters else ())
            for node in range(1, NODES + 1)
            if members_change or node in voters
        ]
        self.world = World(rng, configs)
        self.members_change = members_change
        self.loss = rng.choice((0.0, 0.05, 0.2))
        self.repeat = rng.choice((0.0, 0.1))
        self.hold = rng.choice((0.1, 0.5, 0.7))
        self.slow_disk = rng.choice((0.0, 0.5, 0.8))
        self.crash = rng.choice((0.0, 0.01, 0.05))

    def round(self) -> None:
        world = self.world
        for replica in world.living():
            replica.up.tick()
        self._fates()
        for _ in range(3):
            for replica in world.living():
                self._work(replica)
            world.post()
            self._deliver()
        world.look()

    def _fates(self) -> None:
        rng, world = self.rng, self.world
        for replica in world.replicas.values():
            if replica.node is None:
                if rng.random() < 0.1:
                    replica.start()
            elif rng.random() < self.crash:
                replica.crash(write_landed=rng.random() < 0.5)
        if rng.random() < 0.04:
            nodes = list(world.replicas)
            side = {node for node in nodes if rng.random() < 0.5}
            world.cut = {(a, b) for a in nodes for b in nodes if (a in side) != (b in side)}
        elif rng.random() < 0.08:
            world.cut = set()
        elif rng.random() < 0.02:
            world.cut.add((rng.choice(list(world.replicas)), rng.choice(list(world.replicas))))

    def _work(self, replica: Replica) -> None:
        rng, world, node = self.rng, self.world, replica.up
        chance = rng.random()
        try:
            if chance < 0.3:
                for _ in range(rng.randrange(1, 4)):
                    world.proposals += 1
                    node.propose(b"%d" % world.proposals * rng.randrange(1, 20))
            elif chance < 0.4:
                world.ask(replica)
            elif chance < 0.42:
                replica.compact(rng.randrange(8))
            elif chance < 0.43:
                node.transfer_leader(rng.choice(list(world.replicas)))
            elif chance < 0.44:
                node.campaign()
            elif chance < 0.45:
                node.report_unreachable(rng.choice(list(world.replicas)))
            elif chance < 0.46:
                node.wake()
            elif chance < 0.48 and self.members_change:
                node.propose_conf_change(self._change())
        except RaftError:
            pass
        while rng.random() < 0.9 and replica.begin():
            if rng.random() >= self.slow_disk:
                replica.end()
        if rng.random() >= self.slow_disk:
            replica.end()

    def _change(self) -> ConfChange:
        rng = self.rng
        if rng.random() < 0.3:
            return ConfChange()
        nodes = rng.sample(list(self.world.replicas), rng.choice((1, 1, 2, 3)))
        transition = rng.choice(list(Transition))
        return ConfChange(tuple([Change(rng.choice(list(ChangeOp)), node) for node in nodes]), transition)

    def _deliver(self) -> None:
        rng, world = self.rng, self.world
        held = []
        batch, world.network = world.network, []
        rng.shuffle(batch)
        for message in batch:
            if rng.random() < self.loss:
                if message.snapshot is not None and world.replicas[message.sender].node is not None:
                    world.replicas[message.sender].up.report_snapshot(message.to, arrived=False)
                continue
            if rng.random() < self.repeat:
                held.append(message)
            if rng.random() < self.hold:
                held.append(message)
            else:
                world.deliver(message)
        # Bounded, as a real network's memory is: the oldest are lost.
        world.network = held[-2000:]

    def heal(self) -> None:
        world = self.world
        world.cut = set()
        for replica in world.replicas.values():
            if replica.node is None:
                replica.start()


def await_leader(world: World) -> Replica:
    for _ in range(10):
        world.calm(100)  # without pre-vote, clocks in step split many votes
        leader = max(world.leaders(), key=lambda replica: replica.up.term, default=None)
        if leader is not None:
            return leader
    raise AssertionError("liveness: nobody leads a healthy group")


def converge(world: World) -> None:
    """Everybody is up and connected: there must be one leader, who commits, and all members must follow."""
    leader = await_leader(world)
    if leader.up.conf.outgoing:
        if not leader.up.conf.auto_leave:
            leader.up.propose_conf_change(ConfChange())
        world.calm(20)
        leader = await_leader(world)  # another one, if it was removed with the change
        assert not leader.up.conf.outgoing, "liveness: the joint configuration is not left"
    index = leader.up.propose(b"after the storm")
    world.ask(leader)
    answered = world.reads_answered
    world.calm(20)
    assert world.reads_answered > answered, "liveness: a read is not answered"
    for node in leader.up.conf.members:
        member = world.replicas[node].up
        assert member.handed >= index, f"liveness: node {node} is at {member.handed}, not at {index}"
        assert member.leader == leader.config.node_id
        assert member.role in (Role.LEADER, Role.FOLLOWER)


def run(rng: random.Random, config: Config, voters: tuple[int, ...], *, members_change: bool) -> World:
    config = replace(config, commit_at_once=rng.random() < 0.5)
    chaos = Chaos(rng, config, voters, members_change=members_change)
    for _ in range(ROUNDS):
        chaos.round()
    chaos.heal()
    converge(chaos.world)
    return chaos.world


SMALL = Config(
    1,
    append_entries_max=4,
    append_bytes_max=1024,
    inflight_messages_max=3,
    inflight_bytes_max=4096,
    snapshot_ticks_max=20,
)


@pytest.mark.parametrize("voters", [(1,), (1, 2, 3), (1, 2, 3, 4, 5)], ids=["one", "three", "five"])
def test_simulation_fixed_members(seed: int, rng: random.Random, voters: tuple[int, ...]) -> None:
    run(rng, SMALL, voters, members_change=False)


def test_simulation_members_change(seed: int, rng: random.Random) -> None:
    run(rng, SMALL, (1, 2, 3), members_change=True)


def test_simulation_lease_reads(seed: int, rng: random.Random) -> None:
    config = Config(1, snapshot_ticks_max=20, lease_reads=True, lease_margin_ticks=2)
    run(rng, config, (1, 2, 3), members_change=rng.random() < 0.5)


def test_simulation_quiet_groups(seed: int, rng: random.Random) -> None:
    config = Config(1, snapshot_ticks_max=20, quiet_after_ticks=3, lease_reads=rng.random() < 0.5)
    run(rng, config, (1, 2, 3), members_change=rng.random() < 0.3)


def test_simulation_without_prevote_and_quorum_check(seed: int, rng: random.Random) -> None:
    config = Config(1, snapshot_ticks_max=20, pre_vote=rng.random() < 0.5, check_quorum=False)
    run(rng, config, (1, 2, 3, 4, 5), members_change=False)
