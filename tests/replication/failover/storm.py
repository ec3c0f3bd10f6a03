"""Storms: operators, disturbances and time in a world of regions; then healing, and the last judgement.

What has to hold while it storms is judged in model.py. Here is what has to hold afterwards: with the source
well every handover ends although no other region can be reached, and with all well all agree.
"""

from __future__ import annotations

from collections.abc import Callable

from replication.failover import forced, handover
from replication.failover.commands import Abort, Force, Unfence
from replication.failover.gates import GateState, state_of
from replication.failover.ledger import Confirmation, Verdict, confirm
from replication.failover.readiness import Refusal, RegionView
from replication.failover.records import UNDECIDED, Phase, id_of
from replication.versions import owner_of

from .model import LIMITS, MS, Operation, Region, Violation, World


class Storm(World):
    """A world in which things go wrong."""

    # ---- operators

    def operate(self) -> None:
        name = self.rng.choice(self.names)
        target = self.rng.choice(list(self.regions))
        if self.operations and self.chance(0.3):  # the same command once more
            name, target = self.operations[-1].namespace, self.operations[-1].target
        if not self.graceful_only and self.chance(0.6):
            behind = [
                (n, r.index)
                for r in self.regions.values()
                for n in self.names
                if any(n in s.gates and s.gates[n].version > r.state.truth(n) for s in r.shards.values())
            ]
            if behind:  # where the meta group knows less than its shards
                name, target = self.rng.choice(behind)
            self.force(name, target)
        else:
            self.hand_over(name, target)

    def hand_over(self, name: str, target: int) -> None:
        asked = self.regions[self.rng.choice(list(self.regions))].leaders[-1]
        self.follow(asked)
        region = self.regions[owner_of(asked.state.truth(name))]
        leader = self.rng.choice(region.leaders)
        names = [name] if self.chance(0.6) else self.names
        view = RegionView(reachable=self.linked(region.index, target))
        began = handover.plan_handover(
            leader.state,
            names,
            target,
            view=view,
            shards=tuple(region.shards),
            now_ns=self.now_ns + leader.skew_ns,
            request_id=f"request {len(self.operations)}",
            operator="operator",
            limits=LIMITS,
        )
        if isinstance(began, Refusal):
            return
        self.operations += [
            Operation(s.namespace_id, target, region.index, False, began.request_id, s.version)
            for s in began.switches
        ]
        self.propose(region, began)

    def force(self, name: str, target: int) -> None:
        region = self.regions[target]
        leader = region.leaders[-1]
        self.follow(leader)
        plan = forced.plan_force(
            leader.state,
            [name],
            shared={},
            seen={
                n: max((s.gates[n].version for s in region.shards.values() if n in s.gates), default=0)
                for n in self.names
            },
            cut={},
            hlc=self.now_ns + leader.skew_ns,
            operator=f"operator {len(self.operations)}",
        )
        if isinstance(plan, Force):
            self.operations.append(Operation(name, target, target, True, "", plan.switches[0].version))
            self.propose(region, plan)

    def report(self, operation: Operation) -> None:
        """The tool that an operator waits at: until the decision is there, then the confirm rule."""
        region = self.regions[operation.region]
        if operation.report is not None or operation.aborted:
            return
        if not operation.decided:
            self.await_decision(operation, region)
            return
        others = [i for i in self.regions if i != region.index and i not in operation.reads]
        if others:
            other = others[0]
            readable = self.linked(region.index, other)
            if readable or self.calm or self.chance(0.1):
                truth = self.regions[other].state.truth(operation.namespace)
                operation.reads[other] = truth if readable else None
            return
        own = region.state.truth(operation.namespace)
        operation.report = confirm(operation.version, own, operation.reads)
        self.reached.add(operation.report.verdict.name)
        self.judge_report(operation, operation.report)

    def await_decision(self, operation: Operation, region: Region) -> None:
        name = operation.namespace
        ledger = region.state.ledgers[name]
        row = ledger.row(operation.version)
        if operation.forced:
            operation.decided = row is not None
        else:
            record = region.state.requested(operation.request_id)
            if record is None:
                return
            operation.aborted = record.phase is Phase.ABORTED
            operation.decided = record.phase in (Phase.COMMITTED, Phase.DONE) and name in record.committed
            if operation.decided and (row is None or row.base >= row.version):
                raise Violation(f"I18: {id_of(region.index, record.number)} is committed without a row")
        operation.read_began = len(self.journal)

    def judge_report(self, operation: Operation, report: Confirmation) -> None:
        """Confirmed: when the reading began, nobody had decided on a newer owner. Lost: somebody has."""
        known = max(v for name, v, _ in self.journal[: operation.read_began] if name == operation.namespace)
        known = max(known, report.truth)  # decided by the same target since: who was in between has lost
        if report.verdict is Verdict.CONFIRMED and owner_of(known) != operation.target:
            raise Violation(f"I18: confirmed {operation} in spite of {known}")
        if report.verdict is Verdict.LOST_RACE and not any(
            name == operation.namespace and version == report.truth for name, version, _ in self.journal
        ):
            raise Violation(f"I18: lost {operation} to nobody")

    # ---- a run

    def disturb(self) -> None:
        """Something goes wrong, or right again."""
        region = self.rng.choice(list(self.regions.values()))
        match self.rng.randrange(5):
            case 0:
                self.elect(region)
            case 1:
                region.up = self.rng.random() < 0.7
            case 2:
                shard = self.rng.choice(list(region.shards.values()))
                shard.up = self.rng.random() < 0.7
            case 3:
                pair = sorted(self.rng.sample(list(self.regions), 2))
                self.cut ^= {(pair[0], pair[1])}
            case _:
                open_ = [h for h in region.state.handovers.values() if h.phase in UNDECIDED]
                if open_:
                    self.propose(region, Abort(self.rng.choice(open_).number, "an operator"))

    def turn(self) -> None:
        self.now_ns += self.rng.randint(1, 20) * MS
        for region in self.regions.values():
            for leader in region.leaders:
                if self.calm or self.rng.random() < 0.5:
                    self.act(leader)
            if self.calm or self.rng.random() < 0.5:
                self.measure(region.leaders[-1])
        if self.broken == "unfence by timer":
            self.unfence_by_timer()
        for _ in range(self.rng.randint(1, 30)):
            self.deliver()
        # As often for each log that is read, however many there are.
        for _ in range(sum(len(s.applied) for r in self.regions.values() for s in r.shards.values()) // 4):
            self.replicate()
        self.mutate()
        for operation in self.operations:
            self.report(operation)
        for messages in (self.flying, self.late):  # what is too late is lost
            if len(messages) > 200:
                self.rng.shuffle(messages)
                del messages[100:]

    def unfence_by_timer(self) -> None:
        """What the spec forbids: shards that open themselves at their deadline, by clocks of their own."""
        for region in self.regions.values():
            for shard_id, shard in region.shards.items():
                for number, fenced in list(shard.fenced_ns.items()):
                    if self.now_ns - fenced > LIMITS.fence_ns_max - self.rng.randint(0, 1000) * MS:
                        versions = {n: g.version for n, g in shard.gates.items() if g.fence == number}
                        self.log(region, shard_id, Unfence(number, versions))
                        del shard.fenced_ns[number]

    def storm(self, turns: int) -> None:
        for _ in range(turns):
            if self.rng.random() < 0.05:
                self.disturb()
            if self.rng.random() < 0.06:
                self.operate()
            if self.rng.random() < 0.03:
                self.split()
            self.turn()

    def heal_inside(self) -> None:
        """Regions are well, with new leaders and no links: every handover has to end (I9)."""
        for region in self.regions.values():
            self.elect(region)
            region.up = True
            for shard in region.shards.values():
                shard.up = True
        self.cut = {(a, b) for a in self.regions for b in self.regions if a < b}
        self.calm = True
        self.until(self.all_decided, "a handover is stuck though its source is well")

    def heal(self) -> None:
        """All is well: everything converges."""
        self.cut = set()
        self.until(self.converged, "the regions do not agree")

    def leave_all(self) -> None:
        """All is well, so every namespace can go somewhere else; chance may keep a log back, so try again."""
        for name in self.names:
            source = self.regions[owner_of(self.regions[1].state.truth(name))]
            target = self.rng.choice([index for index in self.regions if index != source.index])
            if not any(self.leave(source, name, target, f"last of {name}, {n}") for n in range(3)):
                raise Violation(f"{name} cannot leave region {source.index}")

    def leave(self, source: Region, name: str, target: int, request_id: str) -> bool:
        """Hand it over, and wait. False: aborted."""
        self.elect(source)
        leader, number = source.leaders[-1], source.state.last_number + 1
        self.follow(leader)
        began = handover.plan_handover(
            leader.state,
            [name],
            target,
            view=RegionView(),
            shards=tuple(source.shards),
            now_ns=self.now_ns + leader.skew_ns,
            request_id=request_id,
            operator="operator",
            limits=LIMITS,
        )
        if isinstance(began, Refusal):
            raise Violation(f"I9: handover of {name}: the one before it was aborted, and yet {began}")
        self.append(source, began)
        self.until(lambda: source.state.handovers[number].closed, "a handover never ends")
        return source.state.handovers[number].phase is Phase.DONE

    def until(self, done: Callable[[], bool], what: str) -> None:
        # Clocks that are minutes apart may cost a handover both its times, at each change of leader.
        for _ in range(1500):
            if done() and not self.late:
                return
            while self.late and done():
                self.late.pop()()
            self.turn()
            while self.flying:
                self.deliver()
        raise Violation(f"{what}: {self.told()}")

    def all_decided(self) -> bool:
        for region in self.regions.values():
            for record in region.state.handovers.values():
                if record.phase in UNDECIDED or (record.phase is Phase.ABORTED and not record.closed):
                    return False
            for shard in region.shards.values():
                for name, gate in shard.gates.items():
                    ours = owner_of(gate.version) == region.index
                    if ours and gate.version == region.state.truth(name) and gate.fence:
                        return False
        return True

    def converged(self) -> bool:
        for name in self.names:
            truths = {region.state.ledgers[name].truth for region in self.regions.values()}
            versions = {region.state.truth(name) for region in self.regions.values()}
            if len(truths) > 1 or truths != versions:
                return False
            for region in self.regions.values():
                expected = owner_of(max(truths)) == region.index
                for shard in region.shards.values():
                    gate = shard.gates.get(name)
                    if gate is None or (state_of(gate, region.index) is GateState.OPEN) != expected:
                        return False
        handovers = [h for region in self.regions.values() for h in region.state.handovers.values()]
        return all(h.closed for h in handovers) and all(o.report or self.over(o) for o in self.operations)

    def over(self, operation: Operation) -> bool:
        """Whether nothing will ever be reported: refused, aborted, or taken before it was decided."""
        return operation.aborted or not operation.decided

    def told(self) -> str:
        return "; ".join(
            f"region {r.index}: "
            + str([(h.number, h.phase.name, h.closed) for h in r.state.handovers.values()])
            for r in self.regions.values()
        )

    def judge_end(self) -> None:
        """Every report against the final truth: it names it, or who came later is in the journal."""
        for operation in self.operations:
            if operation.report is None or operation.report.verdict is not Verdict.CONFIRMED:
                continue
            truth = max(version for name, version, _ in self.journal if name == operation.namespace)
            later = [v for name, v, _ in self.journal[operation.read_began :] if name == operation.namespace]
            if owner_of(truth) != operation.target and truth not in later:
                raise Violation(f"I18: {operation} was confirmed, and the truth is {truth}")
