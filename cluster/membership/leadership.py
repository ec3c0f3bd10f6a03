"""Who should lead what: away from nodes that go, are slow or overloaded, and evenly over the others.

A decision is a function of the present alone, so it must not be undone by the next one. It is not: a move
either takes a leadership from a node that may get none, or makes the spread strictly more even.

Deliberately absent: elections. A group whose leader died elects one by itself; this evens out afterwards.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from cluster.membership.balance import GAP, relief
from cluster.membership.plans import Refusal
from cluster.membership.records import META_GROUP, NodeState
from cluster.membership.reports import (
    CALM,
    OVERLOADED,
    GroupReport,
    Health,
    Reports,
    health_of,
    is_up,
    steps_back,
)
from cluster.membership.table import Table

# Each hand-over makes its group wait for about a round trip; a few at a time are not noticed.
TRANSFERS_MAX = 4


class Transfer(NamedTuple):
    """The leader of the group is to hand over."""

    group: int
    to: int
    why: str


def preferred_leader(table: Table, group: int) -> int:
    """Who stands first when the group starts cold, so that leaders are spread from the beginning. 0: nobody.

    Replicas are written so that each node is the first of about equally many groups.
    """
    replicas = table.replicas_of(group)
    active = (i for i in replicas if i in table.nodes and table.nodes[i].state is NodeState.ACTIVE)
    return next(active, replicas[0] if replicas else 0)


def leader_moves(
    table: Table,
    reports: Reports,
    health: Health,
    *,
    pending: Mapping[int, int] | None = None,
    chosen: Collection[int] = (),
    at_once: int = TRANSFERS_MAX,
) -> list[Transfer]:
    """The hand-overs to ask for now; [] when the leaders are where they should be.

    `pending`: group -> node of hand-overs that are under way; they count against `at_once`. `chosen`: groups
    that have the leader that an operator wants: others move for evenness's sake.
    """
    plan = _Plan(table, reports, health, pending or {}, chosen)
    room = max(at_once - len(plan.pending), 0)
    moves: list[Transfer] = []
    for move in plan.moves():
        if len(moves) == room:
            break
        moves.append(move)
    return moves


def plan_transfer(
    table: Table, reports: Reports, health: Health, group: int, to: int
) -> Transfer | Refusal | None:
    """An operator wants this node to lead. None: it does already."""
    report = reports.get(group)
    if report is None:
        known = group in table.groups()
        return (
            Refusal(f"shard {group} has no leader", "see `holdfast cluster health`")
            if known
            else Refusal(f"there is no shard {group}", "choose one that `holdfast shard list` shows")
        )
    if report.leader == to:
        return None
    plan = _Plan(table, reports, health, {})
    able = plan.targets(group, report)
    if to in able:
        return Transfer(group, to, "asked for")
    others = ", ".join(plan.name(i) for i in able) or "none at present"
    return Refusal(
        f"{plan.name(to)} cannot take over shard {group}: only a voter that is up, keeps up and stays can",
        f"choose one of: {others}",
    )


class _Plan:
    def __init__(
        self,
        table: Table,
        reports: Reports,
        health: Health,
        pending: Mapping[int, int],
        chosen: Collection[int] = (),
    ) -> None:
        self.table = table
        self.chosen = chosen
        self.health = health
        self.pending = {group: to for group, to in pending.items() if group in reports}
        self.leaders = {group: report.leader for group, report in reports.items()} | self.pending
        self.leads = {node.id: 0 for node in table.present()}
        for leader in self.leaders.values():
            self.leads[leader] = self.leads.get(leader, 0) + 1
        # A group between two memberships will be out of it in a moment; a split must not lose its leader.
        self.movable = {
            group: report
            for group, report in sorted(reports.items())
            if group not in self.pending
            and not report.conf.outgoing
            and is_up(health, report.leader)
            and not table.splitting(group)
        }
        self.able = [
            node.id
            for node in table.present()
            if is_up(health, node.id) and not steps_back(table, health, node.id)
        ]
        self.fair = -(-len(reports) // len(self.able)) if self.able else 0

    def moves(self) -> Iterator[Transfer]:
        """The most urgent first."""
        for group, report in list(self.movable.items()):
            if steps_back(self.table, self.health, report.leader):
                yield from self._away(group, report, self._goes(report.leader), None)
        for group, report in list(self.movable.items()):
            if health_of(self.health, report.leader).slow:
                yield from self._away(group, report, "is slow", OVERLOADED)
        for group, report in list(self.movable.items()):
            yield from self._away_from_deaf(group, report)
        yield from self._shed()
        yield from self._even()

    def name(self, node_id: int) -> str:
        """For people."""
        node = self.table.nodes.get(node_id)
        return node.name if node is not None else f"node {node_id}"

    def _goes(self, node_id: int) -> str:
        node = self.table.nodes.get(node_id)
        return "is leaving" if node is not None and node.state is NodeState.LEAVING else "is draining"

    def targets(self, group: int, report: GroupReport) -> list[int]:
        """Voters that could take over at once, the best first."""
        wanted = self.table.replicas_of(group)
        preferred = preferred_leader(self.table, group)
        found = [
            node_id
            for node_id in report.conf.voters
            if node_id in wanted
            and node_id != report.leader
            and node_id not in report.behind
            and is_up(self.health, node_id)
            and not steps_back(self.table, self.health, node_id)
        ]
        return sorted(found, key=lambda i: (self._worry(i), self.leads[i], i != preferred, i))

    def _worry(self, node_id: int) -> int:
        health = health_of(self.health, node_id)
        if health.deaf:
            return 4
        if health.slow:
            return 3
        return 2 if health.load >= OVERLOADED else int(health.load >= CALM)

    def _away(self, group: int, report: GroupReport, why: str, load_max: float | None) -> Iterator[Transfer]:
        """Off this leader; with `load_max` only to a node that is better, without to any that can."""
        for target in self.targets(group, report):
            health = health_of(self.health, target)
            if load_max is None or (not health.slow and health.load < load_max):
                yield self._move(group, target, f"{self.name(report.leader)} {why}")
                return

    def _away_from_deaf(self, group: int, report: GroupReport) -> Iterator[Transfer]:
        """Off a leader that not all nodes can talk to, to one that more of them can."""
        health = health_of(self.health, report.leader)
        if not health.cut_off:
            return
        for target in self.targets(group, report):
            if health_of(self.health, target).deaf < health.deaf:
                yield self._move(group, target, f"{self.name(report.leader)} is cut off from others")
                return

    def _move(self, group: int, target: int, why: str) -> Transfer:
        self.leads[self.leaders[group]] -= 1
        self.leads[target] += 1
        self.leaders[group] = target
        del self.movable[group]
        return Transfer(group, target, why)

    def _share(self, node_id: int) -> float:
        """The load that a leadership is guessed to bring along."""
        return health_of(self.health, node_id).load / max(self.leads[node_id], 1)

    def _shed(self) -> Iterator[Transfer]:
        """One leadership off each overloaded node, to one that can bear it: then its load is looked at again.

        A node that leads one group keeps it: the hot spot would only move.
        """
        for node_id in sorted(self.leads):
            health = health_of(self.health, node_id)
            if not (health.up and health.load >= OVERLOADED) or self.leads[node_id] < 2:
                continue
            for group, report in self.movable.items():
                if report.leader != node_id or group == META_GROUP or group in self.chosen:
                    continue
                takers = [i for i in self._takers(group, report) if self.leads[i] <= self.fair]
                if takers:
                    yield self._move(group, takers[0], f"{self.name(node_id)} is overloaded")
                    break

    def _takers(self, group: int, report: GroupReport) -> list[int]:
        """Targets that are idle enough to be given something for evenness's sake."""
        share = self._share(report.leader)
        return [
            i
            for i in self.targets(group, report)
            if self._worry(i) == 0 and health_of(self.health, i).load + share < OVERLOADED
        ]

    def _even(self) -> Iterator[Transfer]:
        """Until no node leads two more than another that could take one.

        The meta group stays: its leader decides all this, and another one has to learn first how things are.
        """
        allowed: dict[int, list[int]] | None = None
        while self.able:
            # The usual case, and cheap: this is asked every second or so, for a thousand groups.
            if max(self.leads.values()) - min(self.leads[i] for i in self.able) < GAP:
                return
            free = [group for group in self.movable if group not in self.chosen and group != META_GROUP]
            if allowed is None:
                allowed = {group: self._takers(group, self.movable[group]) for group in free}
            owners = {group: self.leaders[group] for group in free}
            hops = relief(owners, allowed, self.leads)
            if not hops:
                return
            for group, source, target in hops:
                counts = f"leads {self.leads[source]} groups and {self.name(target)} {self.leads[target]}"
                yield self._move(group, target, f"{self.name(source)} {counts}")
