"""What a region writes down of others, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from cluster.membership import (
    FORMAT,
    Plan,
    Refusal,
    RemoteNode,
    RemoteRecord,
    Table,
    card,
    first_table,
    plan_introduce,
    plan_part,
    plan_refresh,
)
from cluster.membership.records import KINDS, OTHER_REGIONS, REMOTE, row_of

from .conftest import Region, newcomer

B = RemoteRecord(FORMAT, 2, "b", "cluster-2", (RemoteNode(1, "10.1.0.1:7301", "10.1.0.1:7233"),))


def refused(found: Plan | Refusal | None) -> str:
    assert isinstance(found, Refusal)
    assert found.do
    return str(found)


def test_a_region_is_made_with_its_index_and_keeps_it() -> None:
    table = Table()
    plan = first_table([newcomer(1)], 1, 1, "cluster-1", "a", created_ns=1, index=7)
    assert isinstance(plan, Plan)
    table.apply(plan.rows)
    assert table.region is not None
    assert table.region.index == 7
    row = row_of(replace(table.region, index=8))
    assert table.problems_with([row]) == ["the region's index is 7 for ever, and would become 8"]


def test_a_card_says_who_is_present(three: Region) -> None:
    found = card(three.table)
    assert (found.index, found.name, found.cluster_id, found.removed) == (1, "a", "cluster-1", False)
    assert found.nodes == tuple(RemoteNode(n, f"10.0.0.{n}:7240", f"10.0.0.{n}:7233") for n in (1, 2, 3))


def test_an_introduction_is_written_and_read(three: Region) -> None:
    plan = three.take(plan_introduce(three.table, B))
    assert [key for key, _ in plan.rows] == [b"R\0\0\0\2"]
    assert three.table.remotes == {2: B}
    assert three.table.others() == [B]
    assert three.table.other_named("b") == B
    assert three.table.copy().remotes == {2: B}
    assert Table(plan.rows).remotes == {2: B}
    assert REMOTE in KINDS
    assert plan_introduce(three.table, B).rows == []  # type: ignore[union-attr]
    moved = replace(B, nodes=(RemoteNode(1, "10.1.0.9:7301", ""),))
    three.take(plan_introduce(three.table, moved))
    assert three.table.remotes[2] == moved


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cluster_id": "cluster-1"}, "the address is one of region a itself"),
        ({"index": 1}, "b and a both have the index 1"),
        ({"name": "a"}, "both regions are called a"),
    ],
)
def test_another_region_is_not_like_this_one(three: Region, change: dict[str, Any], words: str) -> None:
    assert words in refused(plan_introduce(three.table, replace(B, **change)))


@pytest.mark.parametrize(
    ("change", "removed", "words"),
    [
        ({"name": "c", "cluster_id": "cluster-3"}, False, "a knows b by the index 2"),
        ({"name": "c", "cluster_id": "cluster-3"}, True, "a knows b, which was removed, by the index 2"),
        ({"index": 3, "cluster_id": "cluster-3"}, False, "a knows another region as b"),
        ({"index": 3, "cluster_id": "cluster-3"}, True, "a knows another region, which was removed, as b"),
        ({"cluster_id": "cluster-3"}, False, "a knows b by the index 2"),
        ({"index": 3}, False, "b says that its index is 3, and is known to a as b with the index 2"),
        ({"name": "c"}, False, "c says that its index is 2, and is known to a as b with the index 2"),
        ({"index": 3, "name": "c"}, True, "region b was removed from a, and does not come back"),
        ({}, True, "region b was removed from a, and does not come back"),
    ],
)
def test_what_a_region_has_is_never_given_again(
    three: Region, change: dict[str, Any], removed: bool, words: str
) -> None:
    three.take(plan_introduce(three.table, B))
    if removed:
        three.take(plan_part(three.table, "b"))
    assert words in refused(plan_introduce(three.table, replace(B, **change)))


def test_all_nodes_have_to_know_what_another_region_is() -> None:
    region = Region(3)
    assert region.table.region is not None
    old = replace(region.table.nodes[2], formats=OTHER_REGIONS - 1)
    region.table.apply([row_of(old), row_of(replace(region.table.region, formats=OTHER_REGIONS - 1))])
    assert "knows of no other regions" in refused(plan_introduce(region.table, B))
    region.table.apply([row_of(replace(old, formats=OTHER_REGIONS))])
    region.take(plan_introduce(region.table, B))
    assert region.table.region.formats == OTHER_REGIONS, "an older node is not let in any more"


def test_only_the_nodes_of_a_known_region_are_refreshed(three: Region) -> None:
    more = replace(B, nodes=(*B.nodes, RemoteNode(2, "10.1.0.2:7301", "")))
    assert plan_refresh(three.table, more) is None, "nobody introduced it"
    three.take(plan_introduce(three.table, B))
    assert plan_refresh(three.table, B) is None
    for other in (
        replace(more, name="c"),
        replace(more, cluster_id="c"),
        replace(more, index=3),
        replace(more, nodes=()),
    ):
        assert plan_refresh(three.table, other) is None
    plan = plan_refresh(three.table, more)
    assert plan is not None
    three.take(plan)
    assert three.table.remotes[2] == more
    three.take(plan_part(three.table, "b"))
    assert plan_refresh(three.table, B) is None


def test_a_region_is_parted_from_once(three: Region) -> None:
    assert "there is no other region 'b'" in refused(plan_part(three.table, "b"))
    three.take(plan_introduce(three.table, B))
    assert "choose one of b" in refused(plan_part(three.table, "c"))
    assert "a is this region itself" in refused(plan_part(three.table, "a"))
    three.take(plan_part(three.table, "b"))
    assert three.table.remotes == {2: replace(B, removed=True)}
    assert three.table.others() == []
    assert plan_part(three.table, "b").rows == []  # type: ignore[union-attr]


def test_what_breaks_the_table_is_named(three: Region) -> None:
    three.take(plan_introduce(three.table, B))
    for row, words in (
        ((b"R\0\0\0\2", None), "the row of another region is never deleted"),
        (row_of(replace(B, name="c")), "index 2 is that of b, and would become that of c"),
        (row_of(replace(B, index=3, cluster_id="x")), "have the same index, name or cluster id"),
        (row_of(replace(B, index=3, name="a", cluster_id="x")), "have the same index, name or cluster id"),
        (row_of(replace(B, index=1, name="x", cluster_id="x")), "have the same index, name or cluster id"),
    ):
        assert any(words in one for one in three.table.problems_with([row])), words
    three.take(plan_part(three.table, "b"))
    assert three.table.problems_with([row_of(B)]) == ["region b is removed and cannot come back"]
    three.table.apply([(b"R\0\0\0\2", None)])
    assert three.table.remotes == {}
