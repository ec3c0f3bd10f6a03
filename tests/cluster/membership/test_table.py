"""The table follows rows; what contradicts its invariants is named."""

from __future__ import annotations

import random
import re

import msgspec
import pytest
from msgspec.structs import replace

from cluster.membership import (
    FORMAT,
    META_GROUP,
    NO_SHARD,
    NodeState,
    RegionRecord,
    ShardRecord,
    ShardState,
    Table,
    TableError,
    plan_join,
    plan_split,
    plan_split_done,
)
from cluster.membership.records import Row, row_of
from history_store.engine.keys import SLOTS

from .conftest import Region, newcomer


def rows_of(table: Table) -> list[tuple[bytes, bytes]]:
    records = [table.region, *table.nodes.values(), *table.shards.values()]
    return [(key, value) for key, value in (row_of(r) for r in records if r) if value is not None]


def test_every_slot_has_the_shard_whose_range_it_is_in(three: Region) -> None:
    assert [three.table.shard_of_slot(slot) for slot in (0, 4095, 4096, 8191, 12288, 16383)] == [
        1, 1, 2, 2, 4, 4,
    ]  # fmt: skip
    assert Table().shard_of_slot(7) == NO_SHARD


def test_shards_that_do_not_divide_the_slots_evenly_own_them_all() -> None:
    table = Region(1, shards=7).table
    assert set(table.owners) == set(range(1, 8))


def test_rows_of_others_are_passed_over(three: Region) -> None:
    before = three.table.changes
    assert not three.table.apply([(b"n" + bytes(16), b"a namespace"), (b"s", None)])
    assert three.table.changes == before


def test_a_table_read_again_is_the_same(rng: random.Random) -> None:
    region = Region(4, shards=rng.randint(1, 20))
    region.take(plan_split(region.table, 1))
    region.take(plan_join(region.table, newcomer(5, "rack 1")))
    again = Table(sorted(rows_of(region.table)))
    assert (again.region, again.nodes, again.shards) == (
        region.table.region,
        region.table.nodes,
        region.table.shards,
    )
    assert again.owners == region.table.owners


def test_a_split_changes_owners_in_one_transaction_in_either_order(three: Region) -> None:
    three.take(plan_split(three.table, 2, at=5000))
    assert three.table.shard_of_slot(6000) == 2
    plan = plan_split_done(three.table, 5)
    backwards = three.table.copy()
    three.take(plan)  # type: ignore[arg-type]
    backwards.apply(plan.rows[::-1])  # type: ignore[union-attr]
    for table in (three.table, backwards):
        assert [table.shard_of_slot(slot) for slot in (4999, 5000, 8191, 8192)] == [2, 5, 5, 3]
    assert three.table.shards[2].epoch == three.table.shards[5].epoch == 2


def test_slots_that_a_shard_gave_up_are_nobodys(three: Region) -> None:
    """Not by a plan of ours; but what is committed is followed as it is written."""
    three.table.apply([changed_shard(three.table, 1, ranges=((0, 99),), epoch=2)])
    assert [three.table.shard_of_slot(slot) for slot in (99, 100, 4095, 4096)] == [1, NO_SHARD, NO_SHARD, 2]


def test_the_list_of_owners_stays_the_same_object(three: Region) -> None:
    owners = three.table.owners
    three.take(plan_split(three.table, 2))
    three.take(plan_split_done(three.table, 5))
    assert owners is three.table.owners
    assert 5 in owners


def test_a_newer_format_is_refused_and_nothing_applied(three: Region) -> None:
    newer = replace(three.table.nodes[1], name="later")
    key, value = row_of(newer)
    assert value is not None
    raw = msgspec.msgpack.decode(value)
    raw[0] = FORMAT + 1
    with pytest.raises(TableError, match="format 2, and this version reads up to 1"):
        three.table.apply([row_of(newer), (key, msgspec.msgpack.encode(raw))])
    assert three.table.nodes[1].name == "n1"


def test_a_field_that_a_later_version_adds_is_skipped(three: Region) -> None:
    key, value = row_of(three.table.nodes[1])
    assert value is not None
    raw = msgspec.msgpack.encode([*msgspec.msgpack.decode(value), "what is to come"])
    three.table.apply([(key, raw)])
    assert three.table.nodes[1].name == "n1"


@pytest.mark.parametrize("value", [b"", b"\x93\x01", b"\x80", b"\x91\x01", b"\xc1"])
def test_damaged_rows_are_refused(three: Region, value: bytes) -> None:
    with pytest.raises(TableError):
        three.table.apply([(b"N\0\0\0\1", value)])


def test_a_row_under_another_key_is_refused(three: Region) -> None:
    _, value = row_of(three.table.nodes[1])
    with pytest.raises(TableError, match="belongs to"):
        three.table.apply([(b"N\0\0\0\2", value)])


def test_everybody_without_a_vote_learns_the_meta_group() -> None:
    table = Region(5).table
    voters = table.replicas_of(META_GROUP)
    assert len(voters) == 3
    assert sorted((*voters, *table.learners_of(META_GROUP))) == [1, 2, 3, 4, 5]
    assert table.learners_of(1) == ()


def test_the_oldest_version_counts() -> None:
    region = Region(1)
    region.take(plan_join(region.table, newcomer(2, version="0.10.0")))
    region.take(plan_join(region.table, newcomer(3, version="0.9.12")))
    assert region.table.oldest_version() == "0.1.0"
    region.table.apply([row_of(replace(region.table.nodes[1], version="0.10.1"))])
    assert region.table.oldest_version() == "0.9.12"


def changed_shard(table: Table, group: int, **fields: object) -> Row:
    return row_of(replace(table.shards[group], **fields))


def changed_node(table: Table, node_id: int, **fields: object) -> Row:
    return row_of(replace(table.nodes[node_id], **fields))


def test_what_breaks_the_table_is_named() -> None:
    table = Region(4, machines="aabc").table
    for row, said in (
        (changed_shard(table, 1, ranges=((0, 4000),), epoch=2), "slot 4001 is owned by no shard"),
        (changed_shard(table, 1, ranges=((0, 4096),), epoch=2), "slot 4096 is owned by shard 1 and by"),
        (changed_shard(table, 1, ranges=((0, 9), (10, 4095)), epoch=2), r"\(10, 4095\) is no range"),
        (changed_shard(table, 4, ranges=((12288, SLOTS),), epoch=2), "is no range"),
        (changed_shard(table, 1, ranges=((0, 4095), (5000, 5000))), "its epoch would not"),
        (changed_shard(table, 1, ranges=(), state=ShardState.RETIRED), "owned by no shard"),
        (changed_shard(table, 1, parent=2), "group numbers are never given twice"),
        (changed_shard(table, 1, replicas=()), "shard 1 has no replicas"),
        (changed_shard(table, 1, replicas=(1, 2, 3)), "nodes 1 and 2, which are both on machine a"),
        (changed_shard(table, 1, replicas=(3, 3)), "two replicas on node 3"),
        (changed_shard(table, 1, replicas=(3, 9)), "node 9, which is not there"),
        (changed_node(table, 4, state=NodeState.REMOVED), "wants a replica on node 4, which is not there"),
        (changed_node(table, 4, name="n1"), "nodes 1 and 4 have the same name, n1"),
        (changed_node(table, 4, name="new"), "ids are never given twice"),
        ((b"N\0\0\0\1", None), "the row of a node is never deleted"),
        ((b"S\0\0\0\1", None), "the row of a shard is never deleted"),
        ((b"G", None), "another region"),
    ):
        found = table.problems_with([row])
        assert any(re.search(said, problem) for problem in found), (said, found)
    assert not table.problems()


def test_a_removed_node_does_not_come_back() -> None:
    region = Region(4, shards=1, replicas=1)
    gone = next(i for i in range(1, 5) if not region.table.groups_of(i))
    region.table.apply([changed_node(region.table, gone, state=NodeState.REMOVED)])
    assert not region.table.problems()
    assert "cannot come back" in str(
        region.table.problems_with([changed_node(region.table, gone, state=NodeState.ACTIVE)])
    )
    assert region.table.next_node_id() == 5


# Rows as version 0.1.0 wrote them. Every later version reads them so: add to these, never edit them.
WRITTEN = {
    "47": "9601a9636c75737465722d31a161030193020103",
    "4e00000002": "9a0102a26e32ad31302e302e302e323a37323430ad31302e302e302e323a37323333"
    "ad31302e302e302e323a39303930a00101a5302e312e30",
    "5300000001": "980101919200cd0fff9303010202009303010201",
}


def test_rows_of_old_are_read() -> None:
    table = Table((bytes.fromhex(key), bytes.fromhex(value)) for key, value in WRITTEN.items())
    assert table.region == RegionRecord(1, "cluster-1", "a", 3, 1, (2, 1, 3))
    assert table.nodes[2] == replace(newcomer(2), id=2, formats=1)
    assert table.shards[1] == ShardRecord(
        1, 1, ((0, 4095),), (3, 1, 2), ShardState.SERVING, parent=0, first=(3, 1, 2), epoch=1
    )
