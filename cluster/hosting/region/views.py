"""What operators are shown of a region: its nodes, its shards, its problems. Pure."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import TYPE_CHECKING, Any

from cluster.membership import META_GROUP, NodeState, ShardState

if TYPE_CHECKING:
    from cluster.hosting.region.health import Problem
    from cluster.membership import GroupReport, NodeHealth, Table

Health = Mapping[int, "NodeHealth"]
Reports = Mapping[int, "GroupReport"]


def served(table: Table) -> list[int]:
    """The groups that are to have a leader: not the coming halves of splits."""
    coming = {one.id for one in table.shards.values() if one.state is ShardState.PREPARING}
    return [group for group in table.groups() if group not in coming]


def nodes(table: Table, health: Health, reports: Reports, *, removed: bool, alone: bool) -> dict[str, Any]:
    """The nodes and how they are; `removed`: those as well; `alone`: how busy they are is unknown."""
    shown = []
    for node in sorted(table.nodes.values(), key=lambda node: node.id):
        if node.state is NodeState.REMOVED and not removed:
            continue
        one = health.get(node.id)
        up = one is not None and one.up
        held = [
            group
            for group, report in reports.items()
            if group != META_GROUP
            and node.id in (*report.conf.voters, *report.conf.outgoing, *report.conf.learners)
        ]
        shown.append(
            {
                "id": node.id,
                "name": node.name,
                "state": node.state.name.lower(),
                "up": up,
                "machine": node.machine,
                "peers": node.peers_address,
                "grpc": node.grpc_address,
                "metrics": node.metrics_address,
                "version": node.version,
                "leads": sum(report.leader == node.id for report in reports.values()),
                "replicas": len(held),
                "wanted": len([group for group in table.groups_of(node.id) if group != META_GROUP]),
                "load": one.load if one is not None and up and not alone else None,
                "slow": None if alone else one is not None and one.slow,
                "joined_ns": node.joined_ns,
            }
        )
    return {"nodes": shown, "complete": all(group in reports for group in served(table))}


def shards(
    table: Table, health: Health, reports: Reports, waits: Mapping[int, str], known: Container[int]
) -> dict[str, Any]:
    """The shards and their replicas; the meta group is number 0.

    `waits`: what a group's change waits for. `known`: the groups of which it is known who is behind.
    """

    def names(ids: Any) -> list[str | None]:
        return [table.nodes[node].name if node in table.nodes else None for node in ids]

    shown = []
    for group in table.groups():
        report, shard, wanted = reports.get(group), table.shards.get(group), table.replicas_of(group)
        voters = report.conf.voters if report is not None else ()
        settled = (
            report is not None
            and set(voters) == set(wanted)
            and not report.conf.outgoing
            and set(report.conf.learners) <= set(table.learners_of(group))
        )
        ranges = shard.ranges if shard is not None else ()
        state = shard.state if shard is not None else ShardState.SERVING
        shown.append(
            {
                "id": group,
                "state": state.name.lower(),
                "slots": [list(one) for one in ranges],
                "slot_count": sum(last - first + 1 for first, last in ranges),
                "leader": names([report.leader])[0] if report is not None else None,
                "wanted": names(wanted),
                "voters": names(voters),
                "learners": names(report.conf.learners) if report is not None else [],
                "behind": names(sorted(report.behind)) if report is not None and group in known else None,
                "down": names(one for one in wanted if one not in health or not health[one].up),
                "settled": settled,
                "waits": waits.get(group, ""),
            }
        )
    return {"shards": shown}


def problems(found: list[Problem]) -> dict[str, Any]:
    """The answer to `health`."""
    shown = [{"what": one.what, "where": one.where, "since_ns": one.since_ns, "do": one.do} for one in found]
    return {"ok": not shown, "problems": shown}
