"""Nodes come and go: what bootstrap writes, and which replicas are wanted where after each change.

All of it is decided by whoever leads the meta group, from its newest table, and proposed at once: a plan is
good only for the table it was made from. Everything is deterministic: equal input, equal rows.

What moves at most, in replicas of shards: a join what the new node is to hold; a removal what the node held,
and what then still stands out; a replacement exactly what the node held; a drain nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from cluster.membership.plans import Draft, Plan, Refusal, counted
from cluster.membership.records import (
    FORMAT,
    INDEX_DEFAULT,
    META_GROUP,
    NodeRecord,
    NodeState,
    RegionRecord,
    ShardRecord,
    ShardState,
)
from cluster.membership.seating import choose_first, even_out, fill, homes, move_off
from cluster.membership.table import Table, name_of
from history_store.engine.keys import SLOTS

REPLICAS_MAX = 7  # a commit waits for a majority of them; nobody needs to survive four losses at once


def initial_ids(names: Iterable[str]) -> dict[str, int]:
    """The ids of a region's first nodes, from 1, by name: each of them computes the same."""
    return {name: number for number, name in enumerate(sorted(names), start=1)}


def first_table(
    nodes: Sequence[NodeRecord],
    shards: int,
    replicas: int,
    cluster_id: str,
    region: str,
    created_ns: int,
    index: int = INDEX_DEFAULT,
) -> Plan | Refusal:
    """The rows that make a region. Ids and states of `nodes` are set here; their order does not matter.

    With fewer machines than `replicas`, groups start with as many replicas as there are machines, and grow
    when nodes join.
    """
    assert 1 <= shards <= SLOTS, "a shard owns at least one slot"
    assert 1 <= replicas <= REPLICAS_MAX
    ids = initial_ids(node.name for node in nodes)
    if not nodes or len(ids) < len(nodes):
        return Refusal("the first nodes need names of their own", "name each node once in the list")
    if len({node.peers_address for node in nodes}) < len(nodes):
        return Refusal("the first nodes need addresses of their own", "give each node its peers address")
    draft = Draft(Table())
    draft.put(RegionRecord(FORMAT, cluster_id, region, replicas, created_ns, index=index))
    for node in sorted(nodes, key=lambda node: node.name):
        draft.put(replace(node, format=FORMAT, id=ids[node.name], state=NodeState.ACTIVE))
    bounds = [number * SLOTS // shards for number in range(shards + 1)]
    draft.wanted = dict.fromkeys(range(shards + 1), ())
    fill(draft)
    even_out(draft)
    choose_first(draft)
    for group, wanted in draft.wanted.items():
        if group == META_GROUP:
            draft.put(replace(draft.region, meta_replicas=wanted))
        else:
            slots = ((bounds[group - 1], bounds[group] - 1),)
            draft.put(ShardRecord(FORMAT, group, slots, wanted, ShardState.SERVING, first=wanted))
    have = len(draft.wanted[META_GROUP])
    why = f"{counted(len(nodes), 'node')}, {counted(shards, 'shard')}, {counted(have, 'replica')} each"
    if have < replicas:
        why += f" (of {replicas} wanted: there are no more machines)"
    return draft.plan(why)


def plan_join(table: Table, node: NodeRecord, *, down: Collection[int] = ()) -> Plan | Refusal:
    """A node comes. It gets a new id, and its share of the replicas; what lacks replicas gets them first."""
    draft = Draft(table)
    refused = _admit(draft, node)
    if refused:
        return refused
    fill(draft, down)
    even_out(draft, down=down)
    choose_first(draft)
    return draft.plan(f"{node.name} joins")


def plan_formats(table: Table) -> Plan | None:
    """All nodes read newer formats than the region writes: write those from now on."""
    region = table.region
    readable = min((node.formats for node in table.present()), default=0)
    if region is None or readable <= region.formats:
        return None
    draft = Draft(table)
    draft.put(replace(region, formats=readable))
    return draft.plan(f"all nodes read format {readable}")


def _too_old(table: Table, node: NodeRecord) -> Refusal | None:
    """A program that could not read what the others write is not let in."""
    if table.region is None or node.formats >= table.region.formats:
        return None
    return Refusal(
        f"the region writes format {table.region.formats}, and {node.name} (version {node.version}) reads up "
        f"to {node.formats}",
        f"start it with version {table.oldest_version()} or newer: after an upgrade of all nodes there is no "
        "way back",
    )


def _admit(draft: Draft, node: NodeRecord) -> Refusal | None:
    """Write the newcomer under its new id."""
    old = _too_old(draft.table, node)
    if old is not None:
        return old
    for other in draft.table.present():
        if other.name == node.name:
            return Refusal(
                f"{node.name} is in the region already, as node {other.id}",
                "give the new node another name, or remove the old one first",
            )
        if other.peers_address == node.peers_address:
            return Refusal(
                f"{node.peers_address} is the address of {other.name}",
                "give the new node an address of its own",
            )
    draft.put(replace(node, format=FORMAT, id=draft.table.next_node_id(), state=NodeState.ACTIVE))
    return None


def plan_announce(table: Table, node: NodeRecord, *, down: Collection[int] = ()) -> Plan | Refusal:
    """A node that restarted says what it is now: addresses, machine and version may have changed.

    If its machine was not known, and turns out to be another node's, it gives up what both have.
    """
    known = table.nodes.get(node.id)
    if known is None or known.name != node.name:
        return Refusal(f"there is no node {node.id} named {node.name}", "let it join under a new id")
    if known.state is NodeState.REMOVED:
        return Refusal(
            f"node {node.id} ({node.name}) was removed", "start it with an empty data directory, to join anew"
        )
    if known.disk not in ("", node.disk):
        return Refusal(
            f"node {node.id} ({node.name}) has lost its data, or was given another data directory",
            f"give it back its own; or `holdfast node replace {known.name}` on another node, and start this "
            "one again with an empty data directory: it joins anew",
        )
    old = _too_old(table, node)
    if old is not None:
        return old
    node = replace(node, format=FORMAT, state=known.state, joined_ns=known.joined_ns)
    draft = Draft(table)
    draft.put(node if known.machine else replace(node, machine=""))
    new = [problem for problem in draft.table.problems() if problem not in table.problems()]
    if new:
        return Refusal(new[0], "move what collides first")
    if not known.machine and node.machine:
        draft.put(node)
        _stand_apart(draft, node.id, down)
    return draft.plan(f"{node.name} is at {node.peers_address}, version {node.version}")


def _stand_apart(draft: Draft, node_id: int, down: Collection[int]) -> None:
    """Move off the node what another one on its machine has, too. Where there is no place, it is one less."""
    load = draft.load()
    for group, wanted in list(draft.wanted.items()):
        if node_id in wanted and draft.table.machine_of(node_id) in draft.machines(group, node_id):
            free = homes(draft, group, node_id, down)
            target = min(free, key=lambda i: (load[i], i), default=0)
            draft.exchange(group, node_id, target)
            if target:
                load[target] += group != META_GROUP
    choose_first(draft)


def plan_drain(
    table: Table, node_id: int, *, evacuate: bool = False, force: bool = False, down: Collection[int] = ()
) -> Plan | Refusal:
    """A node is to lead nothing for a while. Its replicas stay and vote, unless `evacuate`."""
    node = table.nodes.get(node_id)
    if node is None or node.state in (NodeState.REMOVED, NodeState.LEAVING):
        return _no_such(table, node_id)
    draft = Draft(table)
    draft.put(replace(node, state=NodeState.DRAINING))
    able = {other.id for other in draft.table.active() if other.id not in down}
    for group in table.groups_of(node_id):
        if not force and not able & set(table.replicas_of(group)):
            return Refusal(
                f"nobody but {node.name} could lead {name_of(group)}",
                "end another node's draining or add a node first, or --force",
            )
    if evacuate:
        refused = _clear(draft, node, force, down)
        if refused:
            return refused
    return draft.plan(f"{node.name} drains")


def plan_resume(table: Table, node_id: int) -> Plan | Refusal:
    """A draining or leaving node stays after all. Leaderships come back by themselves; replicas, if some have
    moved off, with plan_rebalance."""
    node = table.nodes.get(node_id)
    if node is None or node.state is NodeState.REMOVED:
        return _no_such(table, node_id)
    draft = Draft(table)
    draft.put(replace(node, state=NodeState.ACTIVE))
    return draft.plan(f"{node.name} is active again")


def plan_remove(
    table: Table, node_id: int, *, force: bool = False, down: Collection[int] = ()
) -> Plan | Refusal:
    """A node goes for ever. It may be down. When nothing counts on it any more: plan_removed."""
    node = table.nodes.get(node_id)
    if node is None or node.state is NodeState.REMOVED:
        return _no_such(table, node_id)
    draft = Draft(table)
    draft.put(replace(node, state=NodeState.LEAVING))
    refused = _clear(draft, node, force, down)
    return refused or draft.plan(f"{node.name} leaves")


def _clear(draft: Draft, node: NodeRecord, force: bool, down: Collection[int]) -> Refusal | None:
    """Move the node's replicas off."""
    short = move_off(draft, node.id, down)
    if short:
        group = min(short, key=lambda group: len(draft.wanted[group]))
        left = len(draft.wanted[group])
        if not left:
            return Refusal(f"{node.name} has the only replica of {name_of(group)}", "add a node first")
        if not force:
            others = draft.machines(group)
            crowded = any(draft.table.machine_of(i.id) in others for i in _spare(draft, group, down))
            add = "add a node on another machine" if crowded else "add a node"
            return Refusal(f"replicas would be {left} of {draft.region.replicas}", f"{add} first, or --force")
    even_out(draft, down=down)
    choose_first(draft)
    return None


def _spare(draft: Draft, group: int, down: Collection[int]) -> list[NodeRecord]:
    """Active nodes without a replica of the group."""
    return [i for i in draft.table.active() if i.id not in down and i.id not in draft.wanted[group]]


def plan_removed(table: Table, node_id: int) -> Plan | Refusal:
    """The leaving node is empty (steps.emptied): mark it, for ever."""
    node = table.nodes.get(node_id)
    if node is None or node.state is not NodeState.LEAVING:
        return Refusal(f"node {node_id} is not leaving", "remove it first")
    if table.groups_of(node_id):
        return Refusal(f"{node.name} is still wanted by groups {table.groups_of(node_id)}", "remove it again")
    draft = Draft(table)
    draft.put(replace(node, state=NodeState.REMOVED))
    return draft.plan(f"{node.name} is removed")


def plan_replace(
    table: Table,
    old_id: int,
    new: NodeRecord | int,
    *,
    force: bool = False,
    down: Collection[int] = (),
) -> Plan | Refusal:
    """`new` takes over what `old` holds, and nothing else moves.

    `new` is a newcomer, or the id of an active node. What it cannot take (it has that shard already, or its
    machine has) goes where there is room, as in a removal.
    """
    old = table.nodes.get(old_id)
    if old is None or old.state is NodeState.REMOVED:
        return _no_such(table, old_id)
    draft = Draft(table)
    if isinstance(new, NodeRecord):
        refused = _admit(draft, new)
        if refused:
            return refused
        new_id = table.next_node_id()
    else:
        new_id = new
    newcomer = draft.table.nodes.get(new_id)
    if newcomer is None or newcomer.state is not NodeState.ACTIVE or new_id == old_id:
        return Refusal(
            f"{_name(table, new_id)} cannot take anything over", "name another node that is active"
        )
    draft.put(replace(old, state=NodeState.LEAVING))
    for group in table.groups_of(old_id):
        if draft.fits(group, new_id, old_id):
            draft.exchange(group, old_id, new_id)
    if old_id in {i for wanted in draft.wanted.values() for i in wanted}:
        refused = _clear(draft, old, force, down)
        if refused:
            return refused
    return draft.plan(f"{newcomer.name} replaces {old.name}")


def plan_replicas(
    table: Table, replicas: int, *, force: bool = False, down: Collection[int] = ()
) -> Plan | Refusal:
    """Another number of replicas for every group."""
    if not 1 <= replicas <= REPLICAS_MAX:
        return Refusal(f"{replicas} replicas", f"choose 1 to {REPLICAS_MAX}")
    draft = Draft(table)
    machines = len({table.machine_of(node.id) for node in table.active()})
    if replicas > machines and not force:
        return Refusal(
            f"{counted(replicas, 'replica')} need as many machines, and there are {machines}",
            "add nodes first, or --force to let the groups grow when nodes join",
        )
    draft.put(replace(draft.region, replicas=replicas))
    load = draft.load()
    for group in draft.wanted:
        while len(draft.wanted[group]) > replicas:
            # Not active: the first to be given up.
            gone = max(draft.wanted[group], key=lambda i: (load.get(i, SLOTS + 1), i))
            draft.exchange(group, gone, 0)
            if gone in load and group != META_GROUP:
                load[gone] -= 1
    fill(draft, down)
    even_out(draft, down=down)
    choose_first(draft)
    return draft.plan(f"{counted(replicas, 'replica')} of every group")


def plan_move(table: Table, group: int, source: int, target: int) -> Plan | Refusal:
    """One replica goes from one node to another, as the operator says."""
    if not table.replicas_of(group):
        return Refusal(f"there is no {name_of(group)}", "choose one that `holdfast shard list` shows")
    if source not in table.replicas_of(group):
        return Refusal(
            f"{name_of(group)} has no replica on {_name(table, source)}", "choose a node that has one"
        )
    if target not in {node.id for node in table.active()}:
        return Refusal(f"{_name(table, target)} is not active", "choose a node that is")
    draft = Draft(table)
    if not draft.fits(group, target, source):
        places = [_name(table, i) for i in homes(draft, group, source)]
        return Refusal(
            f"{_name(table, target)} or its machine has a replica of {name_of(group)} already",
            f"choose one of {', '.join(places)}" if places else "add a node first",
        )
    draft.exchange(group, source, target)
    return draft.plan(f"{name_of(group)}: from {_name(table, source)} to {_name(table, target)}")


def _name(table: Table, node_id: int) -> str:
    node = table.nodes.get(node_id)
    return node.name if node is not None else f"node {node_id}"


def _no_such(table: Table, node_id: int) -> Refusal:
    node = table.nodes.get(node_id)
    if node is None:
        return Refusal(f"there is no node {node_id}", "choose one that `holdfast cluster nodes` shows")
    what = "was removed" if node.state is NodeState.REMOVED else "is leaving already"
    return Refusal(f"{node.name} {what}", "choose another node")
