"""A world of regions for the failover functions: the test plays networks, Raft groups and clocks, and judges.

A Raft group is a list of commands and the state they make. It accepts a proposal from anybody at any time
while it has a majority: also one that its old leader sent long ago. A region has one leader of its meta
group that knows the whole log, and sometimes one that was deposed and does not know it yet. Each has a
clock of its own. Messages are delivered in any order, late, twice, or never; links between regions are cut
and joined.

The judges know the true time and all regions at once:

I7   graceful only: what was acknowledged is in the target's shard before that opens, and nothing is
     acknowledged at the old version after the marker of a handover that is committed
I9   graceful only: no two regions have an open gate of one namespace; one decision a handover
I17  versions never fall; who writes owns the version it writes at
I18  what an operator was told is true
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from msgspec.structs import replace

from replication.failover import gates, handover, meta, switching
from replication.failover.commands import (
    Abort,
    Activate,
    Commit,
    Create,
    Deactivate,
    Fence,
    Force,
    Learn,
    MetaCommand,
    ShardCommand,
    Unfence,
)
from replication.failover.gates import Answer, Call, GateState, admit, state_of
from replication.failover.ledger import Confirmation
from replication.failover.readiness import RegionView, ShardLag
from replication.failover.records import (
    FORMAT,
    Config,
    Gate,
    LedgerRow,
    Limits,
    Marker,
    Mode,
    Phase,
    Point,
    Source,
    meet,
)
from replication.versions import owner_of

MS = 1_000_000
SECOND = 1000 * MS
LIMITS = Limits(lag_ns_max=SECOND, wait_ns_max=2 * SECOND, fence_ns_max=SECOND, allow_dirty=False)
SHARDS = (1, 2, 3)  # as every region begins
SLOTS_PER_SHARD = 4  # of the keys; a split gives half of them to the new shard
SHARDS_MAX = 7


class Violation(AssertionError):
    """A judge has seen something."""


@dataclass
class Write:
    """A mutation that was acknowledged."""

    namespace: str
    version: int
    slot: int


@dataclass
class Parted:
    """The shard of this number took these slots away; its log goes on from here."""

    shard: int
    slots: frozenset[int]


@dataclass
class Shard:
    """One shard of one region: what its log made of it."""

    incarnation: int
    slots: frozenset[int]
    born: frozenset[int]  # the slots that it began with: its log had keys of these
    up: bool = True
    gates: dict[str, Gate] = field(default_factory=dict)
    base: int = 0  # it parted from its parent here
    out: list[Write | Parted | ShardCommand] = field(default_factory=list)  # entry i has seq base + i + 1
    received: dict[Source, int] = field(default_factory=dict)  # what it reads -> seq
    applied: dict[Source, int] = field(default_factory=dict)
    fenced_ns: dict[int, int] = field(default_factory=dict)  # handover -> true time: for a broken timer

    @property
    def offered(self) -> Point:
        return Point(self.incarnation, self.end + 1)

    @property
    def end(self) -> int:
        return self.base + len(self.out)

    def after(self, seq: int) -> list[Write | Parted | ShardCommand]:
        return self.out[max(seq - self.base, 0) :]


@dataclass
class Leader:
    """Who leads, or believes to lead, a meta group; with all it has been told since."""

    region: int
    skew_ns: int
    state: meta.MetaState
    position: int = 0  # of the log; a deposed leader's stays behind
    since: dict[tuple[int, Phase], int] = field(default_factory=dict)
    lags: dict[tuple[int, int], ShardLag] = field(default_factory=dict)  # (target, shard)
    answers: dict[int, dict[int, Answer]] = field(default_factory=dict)
    acks: dict[int, dict[int, handover.Ack]] = field(default_factory=dict)
    unfenced: dict[int, set[int]] = field(default_factory=dict)
    positions: dict[tuple[int, str], switching.Position] = field(default_factory=dict)
    acknowledged: dict[int, dict[str, int]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)


@dataclass
class Region:
    """A region: its meta group, its shards, who leads."""

    index: int
    log: list[MetaCommand]
    state: meta.MetaState
    shards: dict[int, Shard]
    leaders: list[Leader] = field(default_factory=list)  # the last one is the true one
    up: bool = True  # its meta group has a majority


@dataclass
class Operation:
    """An operator's failover, from the wish to the report."""

    namespace: str
    target: int
    region: int  # whose meta group decides
    forced: bool
    request_id: str = ""
    version: int = 0
    decided: bool = False
    reads: dict[int, int | None] = field(default_factory=dict)
    read_began: int = 0  # entry of the world's journal
    report: Confirmation | None = None
    aborted: bool = False


class World:
    """Regions, what is on its way between them, and the judges."""

    def __init__(
        self,
        rng: random.Random,
        *,
        regions: int = 2,
        namespaces: int = 2,
        graceful_only: bool = True,
        broken: str = "",
    ) -> None:
        self.rng = rng
        self.graceful_only = graceful_only
        self.broken = broken
        self.now_ns = 1_000 * SECOND
        self.names = [f"ns{i}" for i in range(namespaces)]
        self.flying: list[Callable[[], None]] = []
        self.late: list[Callable[[], None]] = []  # delivered long after, also when all else is calm
        self.cut: set[tuple[int, int]] = set()
        self.loss = rng.choice([0.1, 0.3, 0.9])  # of messages between regions; their logs always go on
        self.calm = False  # nothing is lost, late or cut any more
        self.operations: list[Operation] = []
        self.decisions: dict[tuple[int, int], list[str]] = {}
        self.journal: list[tuple[str, int, int]] = []  # (namespace, version, region) as decided, true order
        self.committed: dict[str, int] = {}  # namespace -> the largest version that a COMMIT gave up
        self.reached: set[str] = set()
        self.ids = 0
        indexes = tuple(range(1, regions + 1))
        self.regions = {
            i: Region(i, [], meta.MetaState(i), {s: self.shard(i, s, indexes) for s in SHARDS})
            for i in indexes
        }
        for name in self.names:
            home = rng.choice(indexes)
            row = LedgerRow(FORMAT, name, home, Mode.CREATE, 0, home, "", "", "", b"", 0)
            self.journal.append((name, home, home))
            for region in self.regions.values():
                region.log.append(Create(Config(home, 1, indexes), row))
                assert region.state.apply(region.log[-1]).accepted
        for region in self.regions.values():
            self.elect(region)

    def shard(self, region: int, number: int, indexes: tuple[int, ...]) -> Shard:
        first = (number - 1) * SLOTS_PER_SHARD
        read = {Source(i, number): 0 for i in indexes if i != region}
        slots = frozenset(range(first, first + SLOTS_PER_SHARD))
        return Shard(region * 100 + number, slots, slots, received=dict(read), applied=dict(read))

    # ---- chance, network, clocks

    def chance(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def linked(self, a: int, b: int) -> bool:
        return a == b or (min(a, b), max(a, b)) not in self.cut

    def send(self, source: int, target: int, act: Callable[[], None]) -> None:
        """A message: it arrives never, once or twice, after any number of others."""
        if self.chance(0.15 if source == target else self.loss):
            return

        def arrive() -> None:
            if self.linked(source, target):
                act()

        self.flying.append(arrive)
        if self.chance(0.1):
            self.late.append(arrive)

    def deliver(self) -> None:
        if self.late and self.rng.random() < 0.02:
            self.late.pop(self.rng.randrange(len(self.late)))()
        if self.flying:
            last = len(self.flying) - 1
            at = self.rng.randint(0, last)
            # Most messages are quick, some are very late.
            if self.chance(0.3):
                at = last
            self.flying[at], self.flying[last] = self.flying[last], self.flying[at]
            self.flying.pop()()

    def elect(self, region: Region) -> None:
        """A new leader, with a clock of its own; the old one may not notice for a while."""
        skew = self.rng.choice([0, -SECOND, SECOND, -700 * MS, 900 * MS, 600 * SECOND, -600 * SECOND])
        state = meta.MetaState(region.index)
        region.leaders = region.leaders[-1:] if self.chance(0.7) else []
        region.leaders.append(Leader(region.index, skew, state))

    # ---- meta groups

    def propose(self, region: Region, command: MetaCommand) -> None:
        def append() -> None:
            if region.up:
                self.append(region, command)

        self.send(region.index, region.index, append)

    def append(self, region: Region, command: MetaCommand) -> None:
        before = {name: region.state.truth(name) for name in self.names}
        region.log.append(command)
        outcome = region.state.apply(command)
        for name in self.names:
            if region.state.truth(name) < before[name]:
                raise Violation(f"I17: {name} fell in region {region.index}")
        if outcome.accepted and isinstance(command, Commit | Abort):
            self.judge_decision(region, command)
        if outcome.accepted and isinstance(command, Force):
            for switch in command.switches:
                self.judge_force(region, switch.namespace_id, switch.version)
                self.journal.append((switch.namespace_id, switch.version, region.index))

    def judge_decision(self, region: Region, command: Commit | Abort) -> None:
        decisions = self.decisions.setdefault((region.index, command.number), [])
        decisions.append(type(command).__name__)
        self.reached.add(decisions[-1])
        if len(decisions) > 1:
            raise Violation(f"I9: handover {command.number} of region {region.index}: {decisions}")
        record = region.state.handovers[command.number]
        if isinstance(command, Abort):
            return
        for switch in record.switches:
            if switch.namespace_id not in record.committed:
                self.reached.add("taken by a newer version")
                continue
            name, base = switch.namespace_id, switch.base
            self.journal.append((name, switch.version, record.target))
            self.committed[name] = max(self.committed.get(name, 0), base)
            for shard_id, marker in record.markers.items():
                after = region.shards[shard_id].after(marker.own.seq)
                if any(isinstance(e, Write) and e.namespace == name and e.version == base for e in after):
                    raise Violation(f"I7: {name} was written in shard {shard_id} after the marker")

    def judge_force(self, region: Region, name: str, version: int) -> None:
        known = max((s.gates[name].version for s in region.shards.values() if name in s.gates), default=0)
        if known > version:
            raise Violation(f"I18: {name} was forced to {version} where {known} had been seen")

    def follow(self, leader: Leader) -> None:
        """The true leader knows the log; a deposed one learns it slowly."""
        region = self.regions[leader.region]
        true = leader is region.leaders[-1]
        end = len(region.log) if true else min(leader.position + self.rng.randint(0, 1), len(region.log))
        while leader.position < end:
            leader.state.apply(region.log[leader.position])
            leader.position += 1

    def act(self, leader: Leader) -> None:
        """All that the leader would do now."""
        region = self.regions[leader.region]
        self.follow(leader)
        clock = self.now_ns + leader.skew_ns
        for number, record in sorted(leader.state.handovers.items()):
            if not record.closed:
                leader.since.setdefault((number, record.phase), clock)
                observed = self.observe(leader, number)
                for action in handover.steps(record, observed, clock).actions:
                    self.do(leader, region, number, action)
        observed_switches = switching.Observed(
            tuple(region.shards),
            leader.positions,
            leader.acknowledged,
            dict.fromkeys(self.names, 1 << 60),
            leader.seen,
        )
        for what in switching.switching_steps(leader.state, observed_switches):
            self.do(leader, region, 0, what)

    def observe(self, leader: Leader, number: int) -> handover.Observed:
        record = leader.state.handovers[number]
        taken = [s.namespace_id for s in record.switches if leader.state.truth(s.namespace_id) != s.base]
        followed = record.phase is Phase.COMMITTED and switching.settled_everywhere(leader.state, record)
        return handover.Observed(
            since_ns=leader.since[number, record.phase],
            hlc=self.now_ns + leader.skew_ns,
            target=RegionView(reachable=self.linked(leader.region, record.target)),
            lags={s: lag for (target, s), lag in leader.lags.items() if target == record.target},
            answers=leader.answers.get(number, {}),
            acks=leader.acks.get(number, {}),
            unfenced=leader.unfenced.get(number, set()),
            shards=tuple(self.regions[leader.region].shards),
            taken=taken,
            followed=followed,
        )

    def do(self, leader: Leader, region: Region, number: int, action: Any) -> None:
        match action:
            case handover.Propose(command):
                self.propose(region, command)
            case handover.Send(shard, command):
                self.send(region.index, region.index, lambda: self.command(leader, shard, command))
            case handover.AskAcks(target, _, markers, versions):
                for shard, marker in markers.items():
                    asked = partial(self.ask, leader, target, number, shard, marker, versions)
                    self.send(region.index, target, asked)
            case switching.Notify(other, rows):
                self.send(region.index, other, lambda: self.notified(leader, other, rows))
            case switching.WriteLedger():
                pass
            case _:
                raise AssertionError(action)

    # ---- shards

    def command(self, leader: Leader, shard_id: int, command: ShardCommand) -> None:
        """A command reaches a shard of the leader's own region; the answer may be lost."""
        region = self.regions[leader.region]
        shard = region.shards[shard_id]
        if not shard.up:
            return
        effect = self.log(region, shard_id, command)

        def answered() -> None:
            if leader not in region.leaders:
                return
            if isinstance(command, Fence):
                leader.answers.setdefault(command.number, {})[shard_id] = effect.answer
            elif isinstance(command, Unfence):
                leader.unfenced.setdefault(command.number, set()).add(shard_id)
            for name, version in effect.answer.versions.items():
                leader.seen[name] = max(leader.seen.get(name, 0), version)
                known = leader.positions.get((shard_id, name))
                if isinstance(command, Activate | Deactivate) and (known is None or known.version <= version):
                    position = switching.Position(version, effect.answer.cuts.get(name))
                    leader.positions[shard_id, name] = position

        self.send(region.index, region.index, answered)

    def log(self, region: Region, shard_id: int, command: ShardCommand) -> gates.Effect:
        shard = region.shards[shard_id]
        effect = gates.apply(
            shard.gates,
            command,
            region=region.index,
            offered=shard.offered,
            cursors=self.cursors(region, shard_id),
        )
        if effect.emits is not None:
            shard.out.append(effect.emits)
        if isinstance(command, Fence) and effect.gates:
            shard.fenced_ns[command.number] = self.now_ns
        for gate in effect.gates:
            self.move(region, shard_id, gate)
        return effect

    def cursors(self, region: Region, shard_id: int, *, received: bool = False) -> dict[Source, Point]:
        shard = region.shards[shard_id]
        reached = shard.received if received else shard.applied
        if self.broken == "a point for each region":
            return {Source(i, 0): Point(1, max(reached[s] for s in reached if s.region == i))
                    for i in {s.region for s in reached}}  # fmt: skip
        return {s: Point(self.regions[s.region].shards[s.shard].incarnation, n) for s, n in reached.items()}

    def split(self) -> None:
        """A shard gives half of its slots to a new one, which has its gates and cursors, above it."""
        region = self.rng.choice(list(self.regions.values()))
        parent = region.shards[self.rng.choice(list(region.shards))]
        if not parent.up or len(parent.slots) < 2 or len(region.shards) >= SHARDS_MAX:
            return
        number = max(region.shards) + 1
        slots = frozenset(self.rng.sample(sorted(parent.slots), len(parent.slots) // 2))
        parent.out.append(Parted(number, slots))
        parent.slots -= slots
        child = region.shards[number] = Shard(
            region.index * 100 + number,
            slots,
            slots,
            gates=dict(parent.gates),
            base=parent.end,
            received=dict(parent.received),
            applied=dict(parent.applied),
        )
        if self.broken != "logs of others' keys":
            for shard in (parent, child):
                for source in [s for s in shard.applied if not self.born(s) & shard.slots]:
                    del shard.received[source], shard.applied[source]
        self.reached.add("split")

    def born(self, source: Source) -> frozenset[int]:
        return self.regions[source.region].shards[source.shard].born

    def move(self, region: Region, shard_id: int, gate: Gate) -> None:
        """A gate changes: what the judges say to it."""
        shard, name = region.shards[shard_id], gate.namespace_id
        before = shard.gates.get(name)
        if before is not None and gate.version < before.version:
            raise Violation(f"I17: the gate of {name} fell")
        shard.gates[name] = gate
        opens = state_of(gate, region.index) is GateState.OPEN
        if not opens or not self.graceful_only:
            return
        for other in self.regions.values():
            if other is region:
                continue
            if any(
                name in s.gates and state_of(s.gates[name], other.index) is GateState.OPEN
                for s in other.shards.values()
            ):
                raise Violation(f"I9: {name} is open in regions {region.index} and {other.index}")
            for number, source in other.shards.items():
                missing = source.after(shard.applied.get(Source(other.index, number), 0))
                if any(
                    isinstance(e, Write) and e.namespace == name and e.slot in shard.slots for e in missing
                ):
                    raise Violation(f"I7: shard {shard_id} opened {name} without all of region {other.index}")

    def mutate(self) -> None:
        """A caller somewhere wants to write."""
        region = self.rng.choice(list(self.regions.values()))
        shard_id, name = self.rng.choice(list(region.shards)), self.rng.choice(self.names)
        shard = region.shards[shard_id]
        admission = admit(shard.gates.get(name), Call.MUTATION, region=region.index)
        if not shard.up or admission.verdict is not gates.Verdict.ALLOW:
            return
        if owner_of(admission.version) != region.index:
            raise Violation(f"I17: region {region.index} writes at version {admission.version}")
        if self.graceful_only and admission.version <= self.committed.get(name, 0):
            raise Violation(f"I7: {name} was written at {admission.version}, which was given up")
        shard.out.append(Write(name, admission.version, self.rng.choice(sorted(shard.slots))))

    def replicate(self) -> None:
        """A shard receives and applies some more of another region's log."""
        target = self.rng.choice(list(self.regions))
        shard_id = self.rng.choice(list(self.regions[target].shards))
        shard = self.regions[target].shards[shard_id]
        source = self.rng.choice(list(shard.applied))
        log = self.regions[source.region].shards[source.shard]
        if self.linked(source.region, target):
            room = log.end - shard.received[source]
            shard.received[source] += room if self.calm else self.rng.randint(0, min(room, 8))
        while shard.up and shard.applied[source] < shard.received[source]:
            if self.chance(0.4):
                break
            entry = log.after(shard.applied[source])[0]
            shard.applied[source] += 1
            if isinstance(entry, Write):
                self.header(self.regions[target], shard_id, entry)
            elif isinstance(entry, Parted) and entry.slots & shard.slots:
                child, seq = Source(source.region, entry.shard), shard.applied[source]
                shard.received[child] = shard.applied[child] = seq

    def header(self, region: Region, shard_id: int, entry: Write) -> None:
        """The version in an entry's header is news like any other."""
        gate = region.shards[shard_id].gates.get(entry.namespace) or Gate(FORMAT, entry.namespace, 0)
        if entry.version > gate.version:
            self.move(region, shard_id, gates.raised(gate, entry.version))
            if self.chance(0.8):
                return  # the word to the meta group is lost; others will tell it
            for leader in region.leaders:
                leader.seen[entry.namespace] = max(leader.seen.get(entry.namespace, 0), entry.version)

    # ---- between regions

    def ask(
        self,
        leader: Leader,
        target: int,
        number: int,
        shard_id: int,
        marker: Marker,
        versions: dict[str, int],
    ) -> None:
        source, region = self.regions[leader.region], self.regions[target]
        # What parted since the fence is in the log up to there.
        now = self.broken == "shards that share keys now"
        slots = source.shards[shard_id].slots if now else source.shards[shard_id].born
        readers = [each for each, shard in region.shards.items() if shard.slots & slots]
        if self.broken == "one shard answers for all":
            readers = readers[:1]
        if not all(region.shards[each].up for each in readers):
            return
        applied = meet(self.applied(region, each, Source(source.index, shard_id)) for each in readers)
        newer: dict[str, int] = {}
        for each in readers:
            for name, gate in region.shards[each].gates.items():
                if name in versions and gate.version > max(versions[name], newer.get(name, 0)):
                    newer[name] = gate.version
        ack = handover.Ack(applied, 0, newer)

        def acked() -> None:
            known = leader.acks.setdefault(number, {}).get(shard_id)
            if known is None or known.applied.own.seq <= ack.applied.own.seq:
                leader.acks[number][shard_id] = ack

        self.send(target, leader.region, acked)
        if self.broken == "activate before commit" and applied.covers(
            marker, set(self.regions) - {source.index, target}
        ):
            record = source.state.handovers[number]
            early = {s.namespace_id: s.version for s in record.switches}
            self.append(self.regions[target], Learn(early))

    def applied(self, region: Region, shard_id: int, source: Source) -> Marker:
        counted = self.cursors(region, shard_id, received=self.broken == "ack before applied")
        if self.broken == "a point for each region":
            own = Point(self.regions[source.region].shards[source.shard].incarnation, 0)
            own = replace(own, seq=counted.pop(Source(source.region, 0)).seq)
        else:
            own = counted.pop(source, Point(0, 0))
        return Marker(own, counted)

    def notified(self, leader: Leader, target: int, rows: tuple[LedgerRow, ...]) -> None:
        region = self.regions[target]
        heard = region.leaders[-1]
        self.follow(heard)
        learn = switching.plan_learn(heard.state, rows)
        if learn is not None:
            self.propose(region, learn)
        truths = switching.acknowledge(heard.state, [row.namespace_id for row in rows])

        def answered() -> None:
            known = leader.acknowledged.setdefault(target, {})
            for name, truth in truths.items():
                known[name] = max(known.get(name, 0), truth)

        self.send(target, leader.region, answered)

    def measure(self, leader: Leader) -> None:
        """Lags, as the targets report them; sometimes old ones."""
        for target in self.regions:
            if target != leader.region and self.linked(leader.region, target):
                for shard_id, shard in self.regions[leader.region].shards.items():
                    source = Source(leader.region, shard_id)
                    read = [s.applied.get(source) for s in self.regions[target].shards.values()]
                    behind = shard.end - min((seq for seq in read if seq is not None), default=shard.base)
                    leader.lags[target, shard_id] = ShardLag(behind * 50 * MS, behind)
