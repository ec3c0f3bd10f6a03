"""From the members that a group has to those that it should have: the next step of each group.

Theory of operation. The table says which voters are wanted, the group's leader reports which members there
are. A newcomer is first a learner, until its log is about as long as the leader's; so a slow or empty one
never holds up a commit. Then it gets its vote in the same joint change in which the one it replaces loses it,
so that the group has neither a voter too many nor one too few at any time. Each step is computed from the
present, nothing is remembered: a step that was lost, refused, or overtaken by a new leader or a new plan is
simply computed again, or not.

Safety is Raft's. What is kept here is availability: a step is taken only if, by what is known, a majority of
the voters before are up, and of those after a majority are up and have the log, and not fewer of them than a
majority of the wanted number.

Lineage: the replicate queue of CockroachDB and PD's schedulers do the same from a central view. We differ in
that a whole group's replacement is one joint change, however many voters it concerns.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from cluster.membership.records import META_GROUP, NodeState
from cluster.membership.reports import (
    GroupReport,
    Health,
    Reports,
    health_of,
    is_up,
    steps_back,
)
from cluster.membership.table import Table
from history_store.raft.configuration import Change, ChangeOp, ConfChange, Transition

# Newcomers cost a snapshot each, sent and written beside the work of the day.
STEPS_MAX = 4


class StepKind(Enum):
    """What the group's leader is to do."""

    ADD_LEARNERS = "add learners"
    SWAP = "change voters"
    DROP = "drop learners"
    LEAVE_JOINT = "leave the joint configuration"
    TRANSFER = "hand over"


class Step(NamedTuple):
    """The next step of one group."""

    group: int
    kind: StepKind
    change: ConfChange | None  # to propose to the group; None for TRANSFER
    to: int  # TRANSFER: the next leader; otherwise 0
    why: str


class Work(NamedTuple):
    """What to do now, and what cannot be done yet: group -> why, for the operator."""

    steps: list[Step]
    waits: dict[int, str]


def replica_steps(
    table: Table,
    reports: Reports,
    health: Health,
    *,
    busy: Collection[int] = (),
    at_once: int = STEPS_MAX,
) -> Work:
    """At most one step a group, at most `at_once` groups under way. No steps and no waits: all is as wanted.

    `busy`: groups that a step is being executed in. Groups without a report (no leader) are left alone.
    """
    steps: list[Step] = []
    waits: dict[int, str] = {}
    asked: list[Step] = []
    under_way = set(busy)
    for group in table.groups():
        report = reports.get(group)
        if report is None or group in busy:
            continue
        if table.splitting(group):
            if set(report.conf.voters) != set(table.replicas_of(group)):
                waits[group] = "a split is under way"
            continue
        found = _Group(table, group, report, health).next()
        if isinstance(found, Step):
            asked.append(found)
        elif found is not None:
            waits[group] = found
        if _is_catching_up(table, group, report, health):
            under_way.add(group)
    # What ends something comes before what begins something.
    for step in sorted(asked, key=lambda step: (step.kind is StepKind.ADD_LEARNERS, step.group)):
        if step.kind is not StepKind.ADD_LEARNERS:
            steps.append(step)
        elif step.group in under_way or len(under_way) < at_once:
            under_way.add(step.group)
            steps.append(step)
        else:
            waits[step.group] = f"{at_once} groups are changing already"
    return Work(steps, waits)


def _is_catching_up(table: Table, group: int, report: GroupReport, health: Health) -> bool:
    wanted = table.replicas_of(group)
    # One that is down costs nothing and must not keep others waiting.
    return bool(report.conf.outgoing) or any(i in wanted and is_up(health, i) for i in report.conf.learners)


def majority(count: int) -> int:
    """How many of so many decide."""
    return count // 2 + 1


class _Group:
    """One group's way from what it has to what it should have."""

    def __init__(self, table: Table, group: int, report: GroupReport, health: Health) -> None:
        self.table = table
        self.group = group
        self.report = report
        self.health = health
        self.wanted = table.replicas_of(group)
        self.wanted_learners = table.learners_of(group)
        self.voters = report.conf.voters
        self.learners = report.conf.learners

    def next(self) -> Step | str | None:
        """The step, or why there is none yet, or None: nothing is left to do."""
        conf = self.report.conf
        if conf.outgoing:
            if conf.auto_leave:
                return "it is between two memberships"
            return self._step(StepKind.LEAVE_JOINT, (), "the change before is complete")
        # As sets, cheaply: this is the answer nearly always.
        if (
            len(self.voters) == len(self.wanted)
            and set(self.voters) == set(self.wanted)
            and set(self.learners) == set(self.wanted_learners)
        ):
            return None
        if self._live(self.voters) < majority(len(self.voters)):
            return f"{self._live(self.voters)} of its {len(self.voters)} voters are up: no majority"
        return self._add_learners() or self._swap() or self._drop()

    # ---- the three kinds of change

    def _add_learners(self) -> Step | None:
        members = {*self.voters, *self.learners}
        missing = [i for i in (*self.wanted, *self.wanted_learners) if i not in members and self._up(i)]
        if not missing:
            return None
        changes = [Change(ChangeOp.ADD_LEARNER, i) for i in missing]
        changes += [Change(ChangeOp.REMOVE, i) for i in self._stray_learners()]
        return self._step(StepKind.ADD_LEARNERS, changes, f"to catch up: {self._names(missing)}")

    def _swap(self) -> Step | str | None:
        """Votes for those who have caught up; as many votes less for those who are not wanted."""
        coming = [i for i in self.wanted if i not in self.voters]
        going = [i for i in self.voters if i not in self.wanted]
        if not coming and not going:
            return None
        ready = [i for i in coming if i in self.learners and self._up(i) and i not in self.report.behind]
        late = [i for i in coming if i not in ready and self._up(i)]
        if late:
            return f"not caught up yet: {self._names(late)}"
        # Never below the wanted number on the way: a replacement that is down holds up the vote it replaces.
        gone = self._first_to_go(going)[: max(len(self.voters) + len(ready) - len(self.wanted), 0)]
        if not ready and not gone:
            return f"down: {self._names(coming)}"
        after = [i for i in (*self.voters, *ready) if i not in gone]
        needed = max(majority(len(after)), majority(len(self.wanted)))
        # One that is up but far behind decides nothing until it has caught up: the group would stand still.
        able = sum(self._up(i) and i not in self.report.behind for i in after)
        if able < needed:
            return f"voters up and not behind after it: {able}, needed: {needed}"
        if self.report.leader in gone:
            heir = self._heir(after)
            if heir:
                why = f"{self._name(self.report.leader)} is not to keep its replica"
                return Step(self.group, StepKind.TRANSFER, None, heir, why)
        return self._step(StepKind.SWAP, self._votes(ready, gone), self._told(ready, gone))

    def _votes(self, ready: list[int], gone: list[int]) -> list[Change]:
        changes = [Change(ChangeOp.ADD_VOTER, i) for i in ready]
        for node_id in gone:
            stays = node_id in self.wanted_learners
            changes.append(Change(ChangeOp.ADD_LEARNER if stays else ChangeOp.REMOVE, node_id))
        return changes + [Change(ChangeOp.REMOVE, i) for i in self._stray_learners()]

    def _drop(self) -> Step | str | None:
        stray = self._stray_learners()
        if stray:
            changes = [Change(ChangeOp.REMOVE, i) for i in stray]
            return self._step(StepKind.DROP, changes, f"not wanted any more: {self._names(stray)}")
        absent = [i for i in self.wanted_learners if i not in self.learners]
        return f"down: {self._names(absent)}" if absent else None

    # ---- what they ask

    def _first_to_go(self, going: list[int]) -> list[int]:
        """The dead first, the leader last: what costs availability is taken away as late as possible."""
        return sorted(going, key=lambda i: (self._up(i), i == self.report.leader, i))

    def _heir(self, after: Iterable[int]) -> int:
        """Who could lead instead of a leader that is to lose its vote; 0 if nobody can yet."""
        able = [
            i
            for i in after
            if i in self.voters
            and i in self.wanted
            and i not in self.report.behind
            and self._up(i)
            and not steps_back(self.table, self.health, i)
        ]
        return min(able, key=lambda i: (health_of(self.health, i).slow, self.wanted.index(i)), default=0)

    def _stray_learners(self) -> list[int]:
        return [i for i in self.learners if i not in self.wanted and i not in self.wanted_learners]

    def _up(self, node_id: int) -> bool:
        return is_up(self.health, node_id)

    def _live(self, nodes: Iterable[int]) -> int:
        return sum(self._up(i) for i in nodes)

    def _step(self, kind: StepKind, changes: Iterable[Change], why: str) -> Step:
        # AUTO: one vote changes straight, several through a joint configuration that is left by itself.
        change = ConfChange(tuple(changes), Transition.AUTO)
        return Step(self.group, kind, change, 0, why)

    def _name(self, node_id: int) -> str:
        node = self.table.nodes.get(node_id)
        return node.name if node is not None else f"node {node_id}"

    def _names(self, nodes: Iterable[int]) -> str:
        return ", ".join(self._name(i) for i in nodes)

    def _told(self, ready: list[int], gone: list[int]) -> str:
        if ready and gone:
            return f"{self._names(ready)} for {self._names(gone)}"
        return f"caught up: {self._names(ready)}" if ready else f"too many: {self._names(gone)}"


def emptied(table: Table, reports: Mapping[int, GroupReport]) -> list[int]:
    """Leaving nodes that no group counts on any more: they may be marked as removed (plan_removed).

    Only if every group has reported. A learner's place in the meta group does not count: it is how the node
    learns that it is removed.
    """
    groups = table.groups()
    if any(group not in reports for group in groups):
        return []
    kept: set[int] = set()
    for group in groups:
        conf = reports[group].conf
        kept.update(conf.voters, conf.outgoing, () if group == META_GROUP else conf.learners)
    leaving = (node.id for node in table.present() if node.state is NodeState.LEAVING)
    return [node_id for node_id in leaving if node_id not in kept]
