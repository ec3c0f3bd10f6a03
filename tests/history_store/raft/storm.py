"""Bad weather for a group of replicas: faults that come together at the worst moment, not evenly spread.

The even chaos of `test_simulation` rarely makes two things coincide, and most mistakes in a consensus core
need that: a crash between a promise and its write, a second candidate while the first one's votes are on
their way, a leader that is cut off while clients still read from it. A storm is a row of episodes, each of
which does one such thing for about as long as an election takes; everything is decided by one seed.

Judged after every turn of messages, by the judge of `world` and by that of `promises`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from history_store.raft import (
    Change,
    ChangeOp,
    ConfChange,
    Config,
    Kind,
    Message,
    RaftError,
    RawNode,
    Transition,
)
from tests.history_store.raft.promises import Promises
from tests.history_store.raft.test_simulation import converge
from tests.history_store.raft.world import Replica, World

PROMISES = (Kind.VOTE, Kind.VOTE_RESPONSE, Kind.APPEND_RESPONSE)
VOTES = (Kind.VOTE, Kind.PRE_VOTE)
NETWORK_MAX = 1000


@dataclass(frozen=True)
class Climate:
    """What kind of storms a test wants."""

    voters: tuple[int, ...] = (1, 2, 3)
    others: tuple[int, ...] = ()  # replicas that begin outside the group
    lease_reads: bool = False
    pre_vote: bool | None = None  # None = as the seed decides
    check_quorum: bool | None = None
    append_entries_max: int = 4
    compacts: float = 0.03  # how often a replica forgets what its rows cover
    heartbeats: tuple[int, ...] = (1, 3)  # ticks between two, one of these
    patience: tuple[int, ...] = (4, 6, 10)  # an election timeout in ticks, one of these
    ticks: int = 200
    spite: float = 0.1  # how often a replica crashes right after it sent a promise
    duel: float = 0.3  # how often another one stands, too, when one stands


CLIMATES = {
    "three": Climate(),
    "five": Climate((1, 2, 3, 4, 5)),
    "hectic": Climate(pre_vote=False, check_quorum=False, spite=0.4, duel=0.6, compacts=0.0),
    "hectic five": Climate(
        (1, 2, 3, 4, 5), pre_vote=False, check_quorum=False, spite=0.3, duel=0.4, compacts=0.0
    ),
    # A removed member that was not told disturbs a group without these two (section 6 of the paper).
    "members": Climate(others=(4, 5), pre_vote=True, check_quorum=True),
    "snapshots": Climate(compacts=0.3, append_entries_max=2, heartbeats=(1,)),
    "leases": Climate(
        heartbeats=(1,), patience=(6, 10), lease_reads=True, check_quorum=True, spite=0.02, duel=0.1
    ),
    "lease members": Climate(
        others=(4, 5), lease_reads=True, pre_vote=True, check_quorum=True, spite=0.02, duel=0.1
    ),
}


def ticks_after_a_pause(missed: int, election_ticks: int) -> int:
    """What a host gives after a pause, before anything else."""
    return min(missed, election_ticks)


@dataclass
class Weather:
    """What is wrong during one episode."""

    cut: set[tuple[int, int]] = field(default_factory=set)
    slow_links: set[tuple[int, int]] = field(default_factory=set)
    late_links: set[tuple[int, int]] = field(default_factory=set)
    slow_disks: set[int] = field(default_factory=set)
    busy: set[int] = field(default_factory=set)  # hosts that seldom look at what is ready
    busyness: float = 0.8
    paused: set[int] = field(default_factory=set)
    loss: float = 0.0
    repeat: float = 0.0
    hold: float = 0.0


class Storm:
    """One world and one row of episodes."""

    def __init__(self, rng: random.Random, climate: Climate) -> None:
        self.rng = rng
        self.climate = climate
        self.patience = rng.choice(climate.patience)
        quorum = rng.random() < 0.5 if climate.check_quorum is None else climate.check_quorum
        pre_vote = rng.random() < 0.5 if climate.pre_vote is None else climate.pre_vote
        config = Config(
            1,
            election_ticks=self.patience,
            heartbeat_ticks=rng.choice(climate.heartbeats),
            pre_vote=pre_vote,
            check_quorum=quorum,
            lease_reads=climate.lease_reads,
            lease_margin_ticks=2,
            append_entries_max=climate.append_entries_max,
            append_bytes_max=1024,
            inflight_messages_max=3,
            inflight_bytes_max=4096,
            snapshot_ticks_max=20,
            commit_at_once=rng.random() < 0.5,
        )
        nodes = (*climate.voters, *climate.others)
        self.world = World(
            rng,
            [
                replace(config, node_id=node, voters=climate.voters if node in climate.voters else ())
                for node in nodes
            ],
        )
        self.nodes = list(nodes)
        self.weather = Weather()
        self.missed: Counter[int] = Counter()
        self.promises = Promises()
        self.ticks = 0

    def run(self) -> None:
        """Break everything, demanding safety; then heal, and demand progress."""
        while self.ticks < self.climate.ticks:
            self._episode()
        self.weather = Weather()
        self._resume_all()
        self.world.cut = set()
        for replica in self.world.replicas.values():
            if replica.node is None:
                replica.start()
        converge(self.world)

    # ------------------------------------------------------------------------------------- episodes

    def _episode(self) -> None:
        rng = self.rng
        weather = Weather(
            loss=rng.choice((0.0, 0.0, 0.1)),
            repeat=rng.choice((0.0, 0.1)),
            hold=rng.choice((0.0, 0.2, 0.5)),
        )
        if rng.random() < 0.4:
            weather.slow_disks = {node for node in self.nodes if rng.random() < 0.4}
        if rng.random() < 0.3:
            weather.busy = {rng.choice(self.nodes)}
        if rng.random() < 0.3:
            weather.slow_links = {(a, b) for a in self.nodes for b in self.nodes if rng.random() < 0.3}
        acts: list[Callable[[Weather], None]] = [
            self._calm, self._calm, self._isolate_leader, self._isolate_leader, self._split, self._threads,
            self._pause, self._crash_some, self._crash_leader, self._transfer, self._restart_followers,
            self._several_stand, self._deafen_leader,
        ]  # fmt: skip
        if self.climate.others:
            acts += [self._change_members] * 6
        if self.climate.lease_reads:
            acts += [self._deafen_leader] * 3
        self._resume_all()
        self.world.cut = set()
        if rng.random() < 0.5:
            # A fault that meets a group at work shows more than one that meets the ruins of the last fault.
            self.weather = Weather()
            for _ in range(rng.randrange(self.patience)):
                self._tick()
        self.weather = weather
        rng.choice(acts)(weather)
        self.world.cut = weather.cut
        for _ in range(rng.randrange(2, 3 * self.patience)):
            self._tick()

    def _leader(self) -> int:
        """The newest leader, or anybody."""
        leaders = sorted(self.world.leaders(), key=lambda replica: replica.up.term)
        return leaders[-1].config.node_id if leaders else self.rng.choice(self.nodes)

    def _calm(self, weather: Weather) -> None:
        weather.loss = weather.hold = 0.0
        weather.slow_disks.clear()

    def _isolate_leader(self, weather: Weather) -> None:
        leader = self._leader()
        one_way = self.rng.random() < 0.3
        companion = self.rng.choice(self.nodes) if self.rng.random() < 0.3 else leader
        for node in self.nodes:
            if node not in (leader, companion):
                weather.cut |= {(node, leader), (node, companion)}
                if not one_way:
                    weather.cut |= {(leader, node), (companion, node)}

    def _deafen_leader(self, weather: Weather) -> None:
        """Nobody hears the leader, and what they had said to it arrives very late."""
        leader = self._leader()
        others = [node for node in self.nodes if node != leader]
        weather.late_links = {(node, leader) for node in others}
        weather.hold = 0.0
        for _ in range(self.rng.randrange(4)):
            self._turn()
        weather.cut = {(leader, node) for node in others}
        weather.slow_disks.clear()
        self._several_stand(weather)

    def _split(self, weather: Weather) -> None:
        side = {node for node in self.nodes if self.rng.random() < 0.5}
        weather.cut = {(a, b) for a in self.nodes for b in self.nodes if (a in side) != (b in side)}

    def _threads(self, weather: Weather) -> None:
        """Only some links are left, each way by itself."""
        weather.cut = {(a, b) for a in self.nodes for b in self.nodes if self.rng.random() < 0.5}

    def _pause(self, weather: Weather) -> None:
        weather.paused = {self._leader()} if self.rng.random() < 0.7 else {self.rng.choice(self.nodes)}

    def _crash(self, replica: Replica, *, landed: float) -> None:
        if replica.node is None:
            return
        replica.crash(write_landed=self.rng.random() < landed)
        self.missed.pop(replica.config.node_id, None)
        self.promises.restarted(replica)
        if self.rng.random() < 0.7:
            replica.start()

    def _crash_some(self, weather: Weather) -> None:
        landed = self.rng.choice((0.0, 0.5))
        for replica in self.world.replicas.values():
            if self.rng.random() < 0.6:
                self._crash(replica, landed=landed)

    def _crash_leader(self, weather: Weather) -> None:
        self._crash(self.world.replicas[self._leader()], landed=0.3)

    def _restart_followers(self, weather: Weather) -> None:
        """The leader is cut off, and the others come back eager to elect one of them."""
        leader = self._leader()
        for node, replica in self.world.replicas.items():
            if node != leader:
                self._crash(replica, landed=0.5)
                weather.cut |= {(node, leader), (leader, node)}
        self._several_stand(weather)
        weather.hold = 0.0

    def _transfer(self, weather: Weather) -> None:
        """Leadership is handed over; sometimes the old leader hears no more of it."""
        for replica in self.world.leaders():
            others = [node for node in self.nodes if node != replica.config.node_id]
            self._hand_over(replica, self.rng.choice(others))
        weather.slow_disks.clear()
        if self.rng.random() < 0.7:
            weather.hold = weather.loss = 0.0
            old = self._leader()
            for _ in range(self.rng.randrange(1, 4)):
                self._turn()
            weather.cut = {(a, b) for a in self.nodes for b in self.nodes if (a == old) != (b == old)}

    def _hand_over(self, replica: Replica, to: int) -> None:
        with suppress(RaftError):
            replica.up.transfer_leader(to)

    def _several_stand(self, weather: Weather) -> None:
        for replica in self.world.living():
            if self.rng.random() < 0.5:
                replica.up.campaign()

    def _propose(self, node: RawNode, change: ConfChange) -> None:
        """Newcomers learn before they vote; so that some may vote later, let all learn that do not yet."""
        with suppress(RaftError):
            node.propose_conf_change(change)
            return
        strangers = [Change(ChangeOp.ADD_LEARNER, one) for one in self.nodes if one not in node.conf.members]
        if strangers:
            with suppress(RaftError):
                node.propose_conf_change(ConfChange(tuple(strangers)))

    def _change_members(self, weather: Weather) -> None:
        rng = self.rng
        for replica in self.world.leaders():
            if rng.random() < 0.3:
                change = ConfChange()
            elif rng.random() < 0.5:
                changes = [
                    Change(ChangeOp.ADD_VOTER if rng.random() < 0.6 else ChangeOp.REMOVE, node)
                    for node in self.nodes
                    if rng.random() < 0.7
                ]
                change = ConfChange(tuple(changes), rng.choice(list(Transition)))
            else:
                op = rng.choice(list(ChangeOp))
                change = ConfChange((Change(op, rng.choice(self.nodes)),), rng.choice(list(Transition)))
            self._propose(replica.up, change)
        if rng.random() < 0.3:
            weather.busy = {node for node in self.nodes if rng.random() < 0.5}
            weather.busyness = 0.97
        if rng.random() < 0.7:
            for _ in range(rng.randrange(8)):
                self._turn()
            if rng.random() < 0.3:
                for replica in self.world.leaders():
                    self._hand_over(replica, rng.choice(self.nodes))
            acts = (self._split_by_membership, self._split_by_membership, self._isolate_leader, self._threads)
            rng.choice(acts)(weather)

    def _split_by_membership(self, weather: Weather) -> None:
        """Who votes (now, or before the change) on one side; the others, perhaps the leader, on the other."""
        leader = self._leader()
        replica = self.world.replicas[leader]
        if replica.node is None:
            return
        conf = replica.up.conf
        halves = (conf.voters, conf.outgoing, conf.learners, (*conf.learners, leader), (*conf.voters, leader))
        side = set(self.rng.choice([half for half in halves if half]))
        if self.rng.random() < 0.3:
            side ^= {leader}
        weather.cut = {(a, b) for a in self.nodes for b in self.nodes if (a in side) != (b in side)}

    # ---------------------------------------------------------------------------------------- turns

    def _resume_all(self) -> None:
        for node, missed in self.missed.items():
            replica = self.world.replicas[node]
            if replica.node is not None:
                self._give_ticks(replica, ticks_after_a_pause(missed, replica.config.election_ticks))
        self.missed.clear()
        self.weather.paused = set()

    def _give_ticks(self, replica: Replica, count: int) -> None:
        for left in range(count, 0, -1):
            self.promises.clock[replica.config.node_id] += 1
            replica.up.tick(missed=left > 1)
            self.promises.stood(replica)

    def _running(self) -> list[Replica]:
        return [
            replica for replica in self.world.living() if replica.config.node_id not in self.weather.paused
        ]

    def _tick(self) -> None:
        self.ticks += 1
        for node in self.weather.paused:
            self.missed[node] += 1
        for replica in self._running():
            self._give_ticks(replica, 1)
        for replica in self.world.replicas.values():
            if replica.node is None and self.rng.random() < 0.15:
                replica.start()
        for _ in range(3):
            self._turn()

    def _turn(self) -> None:
        world = self.world
        running = self._running()
        self.rng.shuffle(running)
        for replica in running:
            self._work(replica)
        promised = {message.sender for each in running for message in each.outbox if message.kind in PROMISES}
        standing = any(message.kind in VOTES for each in running for message in each.outbox)
        world.post()
        if standing and self.rng.random() < self.climate.duel:
            self.rng.choice(running).up.campaign()
        self._judge()
        for node in sorted(promised):
            if self.rng.random() < self.climate.spite:
                self._crash(world.replicas[node], landed=0.1)
        self._deliver()

    def _work(self, replica: Replica) -> None:
        rng, world, node = self.rng, self.world, replica.up
        if node.is_leader and rng.random() < 0.4:
            for _ in range(rng.randrange(1, 4)):
                world.proposals += 1
                with suppress(RaftError):
                    node.propose(b"%d" % world.proposals)
        if rng.random() < 0.02:
            node.report_unreachable(rng.choice(self.nodes))
        if rng.random() < (0.4 if node.is_leader else 0.05):
            self.promises.asks(replica, b"%d" % len(world.reads))
            with suppress(RaftError):
                world.ask(replica)
        if node.is_leader and rng.random() < 0.4:
            index = node.read_index_now()
            if index is not None:
                assert index >= world.judge.acknowledged, "a read at once missed what was answered before it"
                self.promises.reads_at_once(replica, world.living())
        if rng.random() < self.climate.compacts:
            replica.compact(rng.randrange(4))
        me = replica.config.node_id
        if me in self.weather.busy and rng.random() < self.weather.busyness:
            return
        # A write that begins in this turn is mostly still under way when its messages leave.
        slow = 0.9 if me in self.weather.slow_disks else 0.1
        if rng.random() >= slow:
            self._end(replica)
        while self._begin(replica) and rng.random() < 0.3 and rng.random() >= slow:
            self._end(replica)

    def _begin(self, replica: Replica) -> bool:
        said = len(replica.outbox)
        began = replica.begin()
        for message in replica.outbox[said:]:
            self.promises.says(replica, message)
        return began

    def _end(self, replica: Replica) -> None:
        said = len(replica.outbox)
        replica.end()
        for message in replica.outbox[said:]:
            self.promises.says(replica, message)

    def _deliver(self) -> None:
        rng, world, weather = self.rng, self.world, self.weather
        held: list[Message] = []
        batch, world.network = world.network, []
        rng.shuffle(batch)
        for message in batch:
            link = (message.sender, message.to)
            hold = 0.97 if link in weather.late_links else 0.9 if link in weather.slow_links else weather.hold
            if message.snapshot is not None:
                hold = max(hold, 0.8)  # images are big
            if message.to in weather.paused or rng.random() < hold:
                held.append(message)
                continue
            if rng.random() < weather.loss:
                sender = world.replicas[message.sender]
                if message.snapshot is not None and sender.node is not None:
                    sender.up.report_snapshot(message.to, arrived=False)
                continue
            if rng.random() < weather.repeat:
                held.append(message)
            target = world.replicas[message.to]
            if target.node is not None:
                before = (target.up.term, target.up._core.vote)
                world.deliver(message)
                self.promises.delivered(target, message, before)
        world.network = held[-NETWORK_MAX:]

    def _judge(self) -> None:
        self.promises.look(self.world.replicas)
        self.world.look()
