"""What the region's controller is told: how nodes are, and what leaders of groups say of their members.

Snapshots of facts, possibly old. Every decision made from them is safe when they are wrong (Raft decides who
leads and who votes) and is made again from newer ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cluster.membership.records import NodeState
from cluster.membership.table import Table
from history_store.raft.configuration import Configuration

# A node at or above OVERLOADED gives leadership away; only one below CALM is given any for being idle. What
# lies between is left alone, or a leadership would go to and fro as the load follows it.
OVERLOADED = 0.9
CALM = 0.7


class NodeHealth(NamedTuple):
    """How a node is."""

    up: bool = True  # heard from lately
    draining: bool = False  # it said so itself, e.g. it is being stopped; the table may not know yet
    load: float = 0.0  # 0..1, the busiest of what it can run out of
    slow: bool = False  # its disk or its loop answers late
    deaf: int = 0  # it cannot talk to so many of the nodes that others can talk to
    cut_off: bool = False  # and that is so for a while: no node that has just come or gone


class GroupReport(NamedTuple):
    """What the leader of a group says. A group without a leader has no report."""

    leader: int
    conf: Configuration
    behind: frozenset[int] = frozenset()  # members whose log ends too far before the leader's


Health = Mapping[int, NodeHealth]
Reports = Mapping[int, GroupReport]

_UNKNOWN = NodeHealth(up=False)


def health_of(health: Health, node_id: int) -> NodeHealth:
    """How a node is; nobody heard of it: down."""
    return health.get(node_id, _UNKNOWN)


def is_up(health: Health, node_id: int) -> bool:
    """Whether the node can take part in decisions."""
    return health_of(health, node_id).up


def steps_back(table: Table, health: Health, node_id: int) -> bool:
    """Whether the node is to lead nothing because it goes away, for a while or for ever."""
    node = table.nodes.get(node_id)
    return node is None or node.state is not NodeState.ACTIVE or health_of(health, node_id).draining
