"""The region's table in memory: which node is who, which shard owns a slot, where replicas are wanted.

Every node keeps one, made from the meta group's rows and followed row by row as they are committed. It says
what is *wanted*; what *is*, the groups' leaders report (reports.py), and steps.py closes the gap.

A follower applies whatever is committed and refuses only what it cannot read: a node must not stop because
of a rule that the proposer's version did not have. The proposer asks `problems_with` before it proposes.

Invariants (`problems`): every slot is owned by exactly one serving shard; replicas of a group are on distinct
nodes and machines, none on a removed node; ids are never given twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.membership.records import (
    META_GROUP,
    NODE,
    REMOTE,
    NodeRecord,
    NodeState,
    RegionRecord,
    RemoteRecord,
    Row,
    ShardRecord,
    ShardState,
    TableError,
    decode,
    is_ours,
)
from history_store.engine.keys import SLOTS

NO_SHARD = 0  # of a slot before bootstrap


class Table:
    """Made from rows, changed by rows."""

    def __init__(self, rows: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.region: RegionRecord | None = None
        self.nodes: dict[int, NodeRecord] = {}  # by id, removed ones too
        self.remotes: dict[int, RemoteRecord] = {}  # other regions by index, removed ones too
        self.shards: dict[int, ShardRecord] = {}  # by group number, retired ones too
        # slot -> group. Changed in place, so that a hot path may hold on to it.
        self.owners: list[int] = [NO_SHARD] * SLOTS
        self._halves: dict[int, int] = {}  # of splits under way: parent -> child, child -> parent
        self.changes = 0  # grows whenever something changed: what is derived from the table is old then
        self.apply(rows)

    def copy(self) -> Table:
        """Another one, with the same records."""
        other = Table()
        other.region = self.region
        other.nodes = dict(self.nodes)
        other.remotes = dict(self.remotes)
        other.shards = dict(self.shards)
        other.owners = list(self.owners)
        other._halves = dict(self._halves)
        other.changes = self.changes
        return other

    # ---- following the rows

    def apply(self, rows: Iterable[Row]) -> bool:
        """Take one transaction's rows, all or none. True if any of them was ours. TableError: unreadable."""
        read = [
            (key, decode(key, value) if value is not None else None) for key, value in rows if is_ours(key)
        ]
        changed: list[ShardRecord] = []
        for key, record in read:
            match record:
                case RegionRecord():
                    self.region = record
                case NodeRecord():
                    self.nodes[record.id] = record
                case RemoteRecord():
                    self.remotes[record.index] = record
                case ShardRecord():
                    self._let_go(self.shards.get(record.id))
                    self.shards[record.id] = record
                    if record.state is ShardState.PREPARING:
                        self._halves |= {record.id: record.parent, record.parent: record.id}
                    changed.append(record)
                case None:
                    self._delete(key)
        # Only now: a slot that goes from one shard to another may be named by two of the rows.
        for shard in changed:
            if shard.state is ShardState.SERVING and self.shards.get(shard.id) is shard:
                for first, last in shard.ranges:
                    self.owners[first : last + 1] = [shard.id] * (last + 1 - first)
        self.changes += bool(read)
        return bool(read)

    def _let_go(self, shard: ShardRecord | None) -> None:
        """Forget what the shard's row said."""
        if shard is not None and shard.state is ShardState.PREPARING:
            self._halves.pop(shard.id, None)
            self._halves.pop(shard.parent, None)
        if shard is None or shard.state is not ShardState.SERVING:
            return
        for first, last in shard.ranges:
            for slot in range(first, last + 1):
                if self.owners[slot] == shard.id:
                    self.owners[slot] = NO_SHARD

    def _delete(self, key: bytes) -> None:
        number = int.from_bytes(key[1:], "big")
        if not key[1:]:
            self.region = None
        elif key[:1] == NODE:
            self.nodes.pop(number, None)
        elif key[:1] == REMOTE:
            self.remotes.pop(number, None)
        else:
            self._let_go(self.shards.pop(number, None))

    # ---- questions

    def shard_of_slot(self, slot: int) -> int:
        """The group that owns the slot; NO_SHARD before bootstrap."""
        return self.owners[slot]

    def replicas_of(self, group: int) -> tuple[int, ...]:
        """The voters that a group is to have, the preferred leader first. () if there is no such group."""
        if group == META_GROUP:
            return self.region.meta_replicas if self.region is not None else ()
        shard = self.shards.get(group)
        return shard.replicas if shard is not None and shard.state is not ShardState.RETIRED else ()

    def learners_of(self, group: int) -> tuple[int, ...]:
        """The learners that a group is to have for good: of the meta group everybody who has no vote."""
        if group != META_GROUP:
            return ()
        voters = self.replicas_of(META_GROUP)
        return tuple(node.id for node in self.present() if node.id not in voters)

    def groups(self) -> list[int]:
        """Groups that are to be served: the meta group, then the shards, ascending."""
        shards = sorted(i for i, shard in self.shards.items() if shard.state is not ShardState.RETIRED)
        return [META_GROUP, *shards] if self.region is not None else shards

    def groups_of(self, node_id: int) -> list[int]:
        """Groups that want a voter on the node, ascending."""
        return [group for group in self.groups() if node_id in self.replicas_of(group)]

    def present(self) -> list[NodeRecord]:
        """Nodes that are not removed, by id."""
        return [node for _, node in sorted(self.nodes.items()) if node.state is not NodeState.REMOVED]

    def active(self) -> list[NodeRecord]:
        """Nodes that may be given something, by id."""
        return [node for node in self.present() if node.state is NodeState.ACTIVE]

    def node_named(self, name: str) -> NodeRecord | None:
        """The node of this name that is not removed. A name may be used again, an id may not."""
        return next((node for node in self.present() if node.name == name), None)

    def others(self) -> list[RemoteRecord]:
        """Regions that this one works with, by index."""
        return [remote for _, remote in sorted(self.remotes.items()) if not remote.removed]

    def other_named(self, name: str) -> RemoteRecord | None:
        """The other region of this name, removed or not: a name is never used again."""
        return next((remote for remote in self.remotes.values() if remote.name == name), None)

    def machine_of(self, node_id: int) -> str:
        """What the node fails together with."""
        node = self.nodes[node_id]
        return node.machine or f"node {node.id}"

    def splitting(self, group: int) -> int:
        """The other half of a split that is under way; 0 if there is none."""
        return self._halves.get(group, 0)

    def next_node_id(self) -> int:
        """An id that no node ever had."""
        return max(self.nodes, default=0) + 1

    def next_shard_id(self) -> int:
        """A group number that no shard ever had."""
        return max(self.shards, default=META_GROUP) + 1

    def oldest_version(self) -> str:
        """The oldest program among the nodes: what every node understands. "" without nodes."""
        return min((node.version for node in self.present()), key=_version_order, default="")

    # ---- checks

    def problems(self) -> list[str]:
        """What contradicts the invariants, in sentences; empty if nothing does."""
        return [
            *self._slot_problems(),
            *self._replica_problems(),
            *self._name_problems(),
            *self._remote_problems(),
        ]

    def problems_with(self, rows: Iterable[Row]) -> list[str]:
        """What would contradict the invariants after these rows, and whether ids stay what they were."""
        after = self.copy()
        try:
            after.apply(rows)
        except TableError as error:
            return [str(error)]
        return [*after.problems(), *self._history_problems(after)]

    def _slot_problems(self) -> Iterator[str]:
        if not self.shards:
            return
        seen = [NO_SHARD] * SLOTS
        for group, shard in sorted(self.shards.items()):
            before = -2
            for first, last in shard.ranges:
                if not before + 1 < first <= last < SLOTS:
                    yield f"shard {group}: ({first}, {last}) is no range of slots that can stand there"
                    return
                before = last
            if bool(shard.ranges) is (shard.state is ShardState.RETIRED):
                yield f"shard {group} is {shard.state.name} with {len(shard.ranges)} ranges"
            for first, last in shard.ranges:
                if shard.state is ShardState.PREPARING:
                    owners = set(self.owners[first : last + 1]) - {shard.parent}
                    if owners or shard.parent not in self.shards:
                        yield f"shard {group} is to take slots {first} to {last}; some are not its parent's"
                    continue
                taken = next((i for i in range(first, last + 1) if seen[i]), None)
                if taken is not None:
                    yield f"slot {taken} is owned by shard {seen[taken]} and by shard {group}"
                seen[first : last + 1] = [group] * (last + 1 - first)
        if NO_SHARD in seen:
            yield f"slot {seen.index(NO_SHARD)} is owned by no shard"
        elif seen != self.owners:
            yield "the map of slots is not what the shards' ranges say"

    def _replica_problems(self) -> Iterator[str]:
        for group in self.groups():
            replicas = self.replicas_of(group)
            if not replicas:
                yield f"{name_of(group)} has no replicas"
            machines: dict[str, int] = {}
            for node_id in replicas:
                node = self.nodes.get(node_id)
                if node is None or node.state is NodeState.REMOVED:
                    yield f"{name_of(group)} wants a replica on node {node_id}, which is not there"
                    continue
                other = machines.setdefault(self.machine_of(node_id), node_id)
                if replicas.count(node_id) > 1:
                    yield f"{name_of(group)} has two replicas on node {node_id}"
                elif other != node_id:
                    yield (
                        f"{name_of(group)} has replicas on nodes {other} and {node_id}, "
                        f"which are both on machine {node.machine}"
                    )

    def _name_problems(self) -> Iterator[str]:
        for what in ("name", "peers_address"):
            taken: dict[str, int] = {}
            for node in self.present():
                value: str = getattr(node, what)
                other = taken.setdefault(value, node.id)
                if other != node.id:
                    yield f"nodes {other} and {node.id} have the same {what}, {value}"

    def _remote_problems(self) -> Iterator[str]:
        own = self.region
        seen: list[tuple[int, str, str]] = [(own.index, own.region, own.cluster_id)] if own else []
        for _, remote in sorted(self.remotes.items()):
            for index, name, cluster_id in seen:
                if remote.index == index or remote.name == name or remote.cluster_id == cluster_id:
                    yield f"regions {name} and {remote.name} have the same index, name or cluster id"
            seen.append((remote.index, remote.name, remote.cluster_id))

    def _history_problems(self, after: Table) -> Iterator[str]:
        for node_id, node in self.nodes.items():
            now = after.nodes.get(node_id)
            if now is None:
                yield f"node {node_id}: the row of a node is never deleted"
            elif (now.name, now.joined_ns) != (node.name, node.joined_ns):
                yield f"node {node_id} would become another node: ids are never given twice"
            elif node.state is NodeState.REMOVED is not now.state:
                yield f"node {node_id} is removed and cannot come back; let it join under a new id"
        for group, shard in self.shards.items():
            then = after.shards.get(group)
            if then is None:
                yield f"shard {group}: the row of a shard is never deleted"
            elif shard.state is ShardState.RETIRED is not then.state:
                yield f"shard {group} is retired and cannot come back"
            elif then.parent != shard.parent:
                yield f"shard {group} would become another shard: group numbers are never given twice"
            elif then.ranges != shard.ranges and then.epoch <= shard.epoch:
                yield f"shard {group}: its ranges would change and its epoch would not"
        if self.region is not None:
            region = after.region
            if region is None or region.cluster_id != self.region.cluster_id:
                yield "the region would become another region"
            elif region.index != self.region.index:
                yield f"the region's index is {self.region.index} for ever, and would become {region.index}"
        for index, remote in self.remotes.items():
            other = after.remotes.get(index)
            if other is None:
                yield f"region {remote.name}: the row of another region is never deleted"
            elif (other.name, other.cluster_id) != (remote.name, remote.cluster_id):
                yield f"index {index} is that of {remote.name}, and would become that of {other.name}"
            elif remote.removed and not other.removed:
                yield f"region {remote.name} is removed and cannot come back"


def slots_of(shard: ShardRecord) -> Iterator[int]:
    """The slots of its ranges, ascending."""
    for first, last in shard.ranges:
        yield from range(first, last + 1)


def name_of(group: int) -> str:
    """What a group is called in a sentence."""
    return "the meta group" if group == META_GROUP else f"shard {group}"


def _version_order(version: str) -> tuple[tuple[int, str], ...]:
    # "0.10.0" is newer than "0.9.1"; what is no number goes by its letters, before numbers.
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in version.split("."))
