"""Regions to plan in."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from cluster.membership import (
    FORMAT,
    FORMATS,
    META_GROUP,
    GroupReport,
    NodeRecord,
    NodeState,
    Plan,
    Refusal,
    Table,
    first_table,
    plan_formats,
)
from history_store.raft.configuration import Configuration

RACKS = "abcdefgh"


class Region:
    """A table, and short words for what is asked of it. Nodes are named n1, n2, ... by their ids."""

    def __init__(self, nodes: int, shards: int = 4, replicas: int = 3, machines: str = "") -> None:
        newcomers = [newcomer(i, machines[i - 1 : i]) for i in range(1, nodes + 1)]
        self.table = Table()
        self.take(first_table(newcomers, shards, replicas, "cluster-1", "a", created_ns=1))
        raised = plan_formats(self.table)
        assert raised is not None
        self.take(raised)

    def take(self, plan: Plan | Refusal) -> Plan:
        """Apply a plan, as if it had been proposed and committed."""
        assert isinstance(plan, Plan), str(plan)
        self.table.apply(plan.rows)
        assert not self.table.problems()
        return plan

    def wanted(self) -> dict[int, tuple[int, ...]]:
        return {group: self.table.replicas_of(group) for group in self.table.groups()}

    def load(self) -> dict[int, int]:
        """Replicas of shards on each active node."""
        return {
            node.id: len([g for g in self.table.groups_of(node.id) if g != META_GROUP])
            for node in self.table.active()
        }

    def reports(self, leaders: dict[int, int], behind: Collection[int] = ()) -> dict[int, GroupReport]:
        """What the leaders say when all members are as wanted."""
        return {
            group: GroupReport(
                leader,
                members(self.table.replicas_of(group), self.table.learners_of(group)),
                frozenset(behind),
            )
            for group, leader in leaders.items()
        }


def newcomer(number: int, machine: str = "", version: str = "0.1.0") -> NodeRecord:
    return NodeRecord(
        FORMAT,
        0,
        f"n{number}",
        f"10.0.0.{number}:7240",
        f"10.0.0.{number}:7233",
        f"10.0.0.{number}:9090",
        machine,
        NodeState.ACTIVE,
        1,
        version,
        formats=FORMATS,
    )


def members(voters: Collection[int], learners: Collection[int] = ()) -> Configuration:
    return Configuration(voters=tuple(sorted(voters)), learners=tuple(sorted(learners))).check()


@pytest.fixture
def three() -> Region:
    return Region(3)
