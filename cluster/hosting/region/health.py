"""What is wrong with a region, in sentences: pure, from what the steward knows.

Each problem has a key that stays the same for as long as it lasts, so that `Watch` can say since when. That
is since this node has known: a steward that takes over starts anew, except for a node that was heard from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cluster.hosting.replicas.repair import LOG
from cluster.membership import META_GROUP, GroupReport, NodeHealth, NodeRecord, NodeState, Table
from cluster.membership.reports import OVERLOADED

NAMED_MAX = 8  # groups that a sentence names; a thousand in a row help nobody


class Problem(NamedTuple):
    """One thing that is wrong."""

    key: str
    what: str
    where: str
    do: str
    since_ns: int = 0  # 0: since it was first seen


class Known(NamedTuple):
    """What the steward knows."""

    table: Table
    health: Mapping[int, NodeHealth]
    reports: Mapping[int, GroupReport]
    leaderless: Collection[int]  # groups of whose leader nothing was heard for longer than a hand-over takes
    waits: Mapping[int, str]  # group -> why its members are not yet as wanted
    refusals: Mapping[int, str]  # node -> why it takes no writes
    heard_ns: Mapping[int, int]  # node -> when it was last heard from
    damaged: Mapping[int, Mapping[int, str]] = {}  # node -> group, or the log -> what is not what was written
    log_failures: Mapping[int, str] = {}  # node -> why the log between regions takes nothing from it


def find(known: Known) -> list[Problem]:
    """Everything that is wrong, the worst first."""
    return [*_groups(known), *_nodes(known), *_replicas(known)]


def named(groups: Sequence[int]) -> str:
    """Groups in a sentence."""
    words = ["the meta group"] if META_GROUP in groups else []
    shards = [str(group) for group in groups if group != META_GROUP]
    if shards:
        more = f" and {len(shards) - NAMED_MAX} more" if len(shards) > NAMED_MAX else ""
        words.append(f"shard{'s' * (len(shards) > 1)} {', '.join(shards[:NAMED_MAX])}{more}")
    return " and ".join(words)


def _groups(known: Known) -> Iterator[Problem]:
    """Groups that serve nobody."""
    table = known.table
    without: dict[str, list[int]] = defaultdict(list)
    for group in sorted(known.leaderless):
        wanted = table.replicas_of(group)
        down = sorted(i for i in wanted if not _up(known, i))
        lost = len(wanted) - len(down) <= len(wanted) // 2
        without[", ".join(_name(table, i) for i in down) if lost else ""].append(group)
    for down_names, groups in sorted(without.items()):
        if down_names:
            what = f"{named(groups)}: no majority, since {down_names} cannot be reached"
            do = f"start {down_names}, or mend the network between the nodes"
        else:
            what = f"{named(groups)}: no leader"
            do = "wait a few seconds for an election; if it lasts, see the logs of the nodes"
        yield Problem(f"no leader {down_names}", what, "region", do)


def _nodes(known: Known) -> Iterator[Problem]:
    for node in known.table.present():
        health = known.health.get(node.id, NodeHealth(up=False))
        if not health.up:
            yield Problem(
                f"down {node.id}", f"{node.name} is down: it is not heard from", node.name, _revive(node),
                known.heard_ns.get(node.id, 0),
            )  # fmt: skip
            continue
        if node.id in known.refusals:
            what = f"{node.name} takes no writes: {known.refusals[node.id]}"
            yield Problem(f"refuses {node.id}", what, node.name, "make room on its disk, or mend it")
        yield from _damaged(known, node)
        if node.id in known.log_failures:
            what = f"{node.name} cannot write to the log between regions: {known.log_failures[node.id]}"
            do = "mend Cassandra, as `holdfast config check` of its file says; what is not written is kept"
            yield Problem(f"log {node.id}", what, node.name, do)
        if health.slow:
            what = f"{node.name} is slow: its disk answers late"
            yield Problem(f"slow {node.id}", what, node.name, "see what else uses its disk")
        if health.cut_off:
            what = f"{node.name} cannot talk to {health.deaf} of the nodes that others can talk to"
            yield Problem(f"deaf {node.id}", what, node.name, "mend the network between the nodes")
        if health.load >= OVERLOADED:
            what = f"{node.name} is overloaded: {health.load:.0%} of a core"
            do = "add a node, and `holdfast shard rebalance`; or give clients other nodes to call"
            yield Problem(f"overloaded {node.id}", what, node.name, do)
        yield from _leaving(known, node, health)


def _damaged(known: Known, node: NodeRecord) -> Iterator[Problem]:
    damaged = known.damaged.get(node.id, {})
    groups = sorted(group for group in damaged if group != LOG)
    if groups:
        what = f"{node.name}: rows of {named(groups)} are damaged on its disk: {damaged[groups[0]]}"
        do = f"wait: it fetches them from their leader; if it comes again, mend the disk: {_give_up(node)}"
        yield Problem(f"damaged {node.id}", what, node.name, do)
    if LOG in damaged:
        what = f"{node.name}: the log on its disk is damaged, and it would not start again: {damaged[LOG]}"
        yield Problem(f"damaged log {node.id}", what, node.name, f"replace it now: {_give_up(node)}")


def _give_up(node: NodeRecord) -> str:
    return f"`holdfast node replace {node.name} NEW`, or `holdfast node remove {node.name}`"


def _leaving(known: Known, node: NodeRecord, health: NodeHealth) -> Iterator[Problem]:
    if node.state is NodeState.DRAINING:
        leads = sum(report.leader == node.id for report in known.reports.values())
        what = f"{node.name} drains and still leads {leads} groups" if leads else f"{node.name} is drained"
        do = f"`holdfast node resume {node.name}` when it may lead again"
        yield Problem(f"draining {node.id}", what, node.name, do)
    elif node.state is NodeState.LEAVING:
        held = sum(
            node.id in (*report.conf.voters, *report.conf.learners) for report in known.reports.values()
        )
        what = f"{node.name} is being removed and still has {held} replicas"
        yield Problem(
            f"leaving {node.id}", what, node.name, "wait; `holdfast shard list` shows how far it is"
        )
    elif health.draining and node.id not in known.refusals:
        yield Problem(
            f"stopping {node.id}",
            f"{node.name} is being stopped",
            node.name,
            "start it again when it is down",
        )


def _revive(node: NodeRecord) -> str:
    if node.state is NodeState.LEAVING:
        return "wait until it is removed; `holdfast shard list` shows how far it is"
    return (
        f"start it, or restart it if it hangs; if its data is lost, `holdfast node replace {node.name}`, "
        "and start it with an empty data directory; "
        f"if the machine is lost, `holdfast node replace {node.name} NEW`, or `node remove`"
    )


def _replicas(known: Known) -> Iterator[Problem]:
    """Fewer copies than there should be."""
    table = known.table
    few: dict[int, list[int]] = defaultdict(list)
    missing: dict[int, list[int]] = defaultdict(list)
    behind: dict[int, list[int]] = defaultdict(list)
    assert table.region is not None, "there is a table"
    for group in table.groups():
        wanted = table.replicas_of(group)
        if len(wanted) < table.region.replicas:
            few[len(wanted)].append(group)
        report = known.reports.get(group)
        if report is None:
            continue
        for node_id in wanted:
            if node_id not in report.conf.voters:
                missing[node_id].append(group)
            elif (
                node_id in report.behind
                and _up(known, node_id)
                and group not in known.damaged.get(node_id, ())
            ):
                behind[node_id].append(group)
    for count, groups in sorted(few.items()):
        what = f"{named(groups)}: {count} of {table.region.replicas} replicas are placed"
        do = "add a node on another machine: `holdfast node add`"
        if _room(table, groups):
            do = "`holdfast shard rebalance` places the others"
        yield Problem(f"few {count}", what, "region", do)
    for node_id, groups in sorted(missing.items()):
        name = _name(table, node_id)
        why = next((known.waits[group] for group in groups if group in known.waits), "it is being made")
        what = f"{name} has no vote yet in {named(groups)}: {why}"
        do = "wait: the replica is being copied" if _up(known, node_id) else f"start {name}"
        yield Problem(f"missing {node_id}", what, name, do)
    for node_id, groups in sorted(behind.items()):
        name = _name(table, node_id)
        what = f"{name} is behind in {named(groups)}"
        yield Problem(
            f"behind {node_id}", what, name, "wait: it catches up; if it lasts, see its log and disk"
        )


def _room(table: Table, groups: Iterable[int]) -> bool:
    """Whether an active node could take one more replica of one of these groups."""
    for group in groups:
        taken = {table.machine_of(i) for i in table.replicas_of(group)}
        if any(table.machine_of(node.id) not in taken for node in table.active()):
            return True
    return False


def _up(known: Known, node_id: int) -> bool:
    health = known.health.get(node_id)
    return health is not None and health.up


def _name(table: Table, node_id: int) -> str:
    node = table.nodes.get(node_id)
    return node.name if node is not None else f"node {node_id}"


class Watch:
    """Since when each problem has been there."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}

    def look(self, problems: Iterable[Problem], now_ns: int) -> list[Problem]:
        """The problems with the moment each began; those that are over are forgotten."""
        found = list(problems)
        self._since = {
            problem.key: self._since.get(problem.key, problem.since_ns or now_ns) for problem in found
        }
        return [problem._replace(since_ns=self._since[problem.key]) for problem in found]
