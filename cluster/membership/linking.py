"""Regions come to know each other: what each writes down of another, and when it will not.

Both write the same kind of record, each of the other, and both judge by these rules before either writes.
A region's index is in the versions of what it wrote, and its name is in what operators and clients say: so
neither is ever another region's, not even after it was removed.
"""

from __future__ import annotations

from msgspec.structs import replace

from cluster.membership.plans import Draft, Plan, Refusal
from cluster.membership.records import FORMAT, OTHER_REGIONS, RemoteNode, RemoteRecord
from cluster.membership.table import Table


def card(table: Table) -> RemoteRecord:
    """What the region tells others of itself."""
    region = table.region
    assert region is not None, "a region that is made"
    nodes = tuple(RemoteNode(one.id, one.peers_address, one.grpc_address) for one in table.present())
    return RemoteRecord(FORMAT, region.index, region.region, region.cluster_id, nodes)


def plan_introduce(table: Table, other: RemoteRecord) -> Plan | Refusal:
    """Another region is to work with this one. If it does already, its nodes may still have changed."""
    refused = _unfit(table, other) or _clash(table, other)
    if refused:
        return refused
    known = table.remotes.get(other.index)
    draft = Draft(table)
    if draft.region.formats < OTHER_REGIONS:  # all read it, and older nodes must not join any more
        draft.put(replace(draft.region, formats=OTHER_REGIONS))
    draft.put(replace(other, format=FORMAT, removed=False))
    if known is None:
        return draft.plan(f"region {other.name} (index {other.index}) works with this one")
    return draft.plan(f"region {other.name} (index {other.index}) is known already")


def plan_refresh(table: Table, other: RemoteRecord) -> Plan | None:
    """A region that is known says which nodes it has now. None: nothing is to be written."""
    known = table.remotes.get(other.index)
    if known is None or known.removed or not other.nodes:
        return None
    if replace(known, nodes=other.nodes) != replace(other, format=known.format) or known.nodes == other.nodes:
        return None
    draft = Draft(table)
    draft.put(replace(known, format=FORMAT, nodes=other.nodes))
    return draft.plan(f"the nodes of region {known.name} have changed")


def plan_part(table: Table, name: str) -> Plan | Refusal:
    """Nothing is exchanged with a region any more, for ever."""
    known = table.other_named(name)
    if known is None:
        region = table.region
        if region is not None and region.region == name:
            return Refusal(
                f"{name} is this region itself",
                "ask another region to remove it: give --address of a node there",
            )
        names = ", ".join(one.name for one in table.others())
        do = f"choose one of {names}" if names else "`holdfast region list` shows those that it knows"
        return Refusal(f"there is no other region {name!r}", do)
    if known.removed:
        return Plan([], [], f"region {name} is removed")
    draft = Draft(table)
    draft.put(replace(known, format=FORMAT, removed=True))
    return draft.plan(f"region {name} is removed, and its index {known.index} is never used again")


def _unfit(table: Table, other: RemoteRecord) -> Refusal | None:
    """One of the two cannot work with any region."""
    region = table.region
    assert region is not None, "only a region that is made knows others"
    if min(node.formats for node in table.present()) < OTHER_REGIONS:
        return Refusal(
            f"region {region.region} has nodes of a release that knows of no other regions",
            "upgrade them all first; `holdfast cluster health` shows the versions",
        )
    if other.cluster_id == region.cluster_id:
        return Refusal(
            f"the address is one of region {region.region} itself", "give that of a node of another region"
        )
    return None


def _clash(table: Table, other: RemoteRecord) -> Refusal | None:
    """One of the two, or a third, has what has to be a region's own."""
    region = table.region
    assert region is not None, "only a region that is made knows others"
    anew = f"make {other.name} anew with another"
    if other.index == region.index:
        return Refusal(
            f"{other.name} and {region.region} both have the index {other.index}, and the versions of what "
            "they write could not be told apart",
            f"{anew} region.index, which stays what it was at the founding",
        )
    if other.name == region.region:
        return Refusal(f"both regions are called {other.name}", f"{anew} region.name")
    for known in table.remotes.values():
        same = (known.index, known.name, known.cluster_id) == (other.index, other.name, other.cluster_id)
        if same and not known.removed:
            continue
        removed = ", which was removed," if known.removed else ""
        if known.cluster_id == other.cluster_id:
            if not known.removed:  # the same data under another name or index: no region of ours does that
                return Refusal(
                    f"{other.name} says that its index is {other.index}, and is known to {region.region} as "
                    f"{known.name} with the index {known.index}",
                    f"correct region.name and region.index of its nodes, or {anew} data",
                )
            return Refusal(
                f"region {known.name} was removed from {region.region}, and does not come back",
                f"{anew} region.index and region.name",
            )
        if known.index == other.index:
            return Refusal(
                f"{region.region} knows {known.name}{removed} by the index {known.index}, and an index is "
                "never given again",
                f"{anew} region.index",
            )
        if known.name == other.name:
            return Refusal(
                f"{region.region} knows another region{removed} as {known.name}, and a name is never given "
                "again",
                f"{anew} region.name",
            )
    return None
