"""The region's table, and what to do about it: pure decisions, made by whoever leads the meta group."""

from cluster.membership.leadership import Transfer, leader_moves, plan_transfer, preferred_leader
from cluster.membership.placement import (
    first_table,
    initial_ids,
    plan_announce,
    plan_drain,
    plan_formats,
    plan_join,
    plan_move,
    plan_remove,
    plan_removed,
    plan_replace,
    plan_replicas,
    plan_resume,
)
from cluster.membership.plans import Move, Plan, Refusal
from cluster.membership.records import (
    FORMAT,
    FORMATS,
    META_GROUP,
    NodeRecord,
    NodeState,
    RegionRecord,
    ShardRecord,
    ShardState,
    TableError,
)
from cluster.membership.reports import GroupReport, NodeHealth
from cluster.membership.reshaping import (
    plan_rebalance,
    plan_split,
    plan_split_abandoned,
    plan_split_done,
    split_at,
)
from cluster.membership.splitting import SplitWork, split_steps
from cluster.membership.steps import Step, StepKind, Work, emptied, replica_steps
from cluster.membership.table import NO_SHARD, Table

__all__ = [
    "FORMAT",
    "FORMATS",
    "META_GROUP",
    "NO_SHARD",
    "GroupReport",
    "Move",
    "NodeHealth",
    "NodeRecord",
    "NodeState",
    "Plan",
    "Refusal",
    "RegionRecord",
    "ShardRecord",
    "ShardState",
    "SplitWork",
    "Step",
    "StepKind",
    "Table",
    "TableError",
    "Transfer",
    "Work",
    "emptied",
    "first_table",
    "initial_ids",
    "leader_moves",
    "plan_announce",
    "plan_drain",
    "plan_formats",
    "plan_join",
    "plan_move",
    "plan_rebalance",
    "plan_remove",
    "plan_removed",
    "plan_replace",
    "plan_replicas",
    "plan_resume",
    "plan_split",
    "plan_split_abandoned",
    "plan_split_done",
    "plan_transfer",
    "preferred_leader",
    "replica_steps",
    "split_at",
    "split_steps",
]
