"""What a decision about the region looks like: rows to propose, or a refusal that says what to do instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from cluster.membership.records import (
    META_GROUP,
    NodeRecord,
    Record,
    RegionRecord,
    RemoteRecord,
    Row,
    ShardRecord,
    row_of,
)
from cluster.membership.table import Table


class Move(NamedTuple):
    """A replica that is wanted elsewhere. `source` 0: one more; `target` 0: one fewer."""

    group: int
    source: int
    target: int


class Plan(NamedTuple):
    """Rows of one transaction of the meta group, made from its newest state, proposed before it changes."""

    rows: list[Row]  # empty: everything is so already
    moves: list[Move]
    why: str


class Refusal(NamedTuple):
    """Nothing is to be done: why, and what to do about it."""

    why: str
    do: str

    def __str__(self) -> str:
        return f"{self.why}: {self.do}"


class Draft:
    """A plan in the making: a copy of the table, and which replicas are wanted in it."""

    def __init__(self, table: Table) -> None:
        self.before = table
        self.table = table.copy()
        self.wanted: dict[int, tuple[int, ...]] = {
            group: table.replicas_of(group) for group in table.groups()
        }
        self._records: dict[bytes, Record] = {}

    @property
    def region(self) -> RegionRecord:
        """The region's record."""
        assert self.table.region is not None, "the region is made before anything is planned in it"
        return self.table.region

    def put(self, *records: Record) -> None:
        """Write records."""
        rows = [row_of(record) for record in records]
        self._records.update(zip((key for key, _ in rows), records, strict=True))
        self.table.apply(rows)

    def shards(self) -> list[int]:
        """Groups of shards that are to be served, ascending."""
        return [group for group in self.wanted if group != META_GROUP]

    def load(self, weights: Mapping[int, int] | None = None) -> dict[int, int]:
        """Active node -> sum of the weights (default: 1 each) of the shards that want a replica there."""
        load = {node.id: 0 for node in self.table.active()}
        for group in self.shards():
            for node_id in self.wanted[group]:
                if node_id in load:
                    load[node_id] += weights.get(group, 1) if weights is not None else 1
        return load

    def machines(self, group: int, without: int = 0) -> set[str]:
        """Machines with a replica of the group, that on node `without` not counted."""
        return {self.table.machine_of(i) for i in self.wanted[group] if i != without}

    def fits(self, group: int, node_id: int, without: int = 0) -> bool:
        """Whether a replica of the group may go to the node, if the one on `without` is gone."""
        return node_id not in self.wanted[group] and self.table.machine_of(node_id) not in self.machines(
            group, without
        )

    def exchange(self, group: int, source: int, target: int) -> None:
        """Want the replica on `target` instead; 0 as in Move. The place in the list stays."""
        wanted = self.wanted[group]
        if not target:
            self.wanted[group] = tuple(i for i in wanted if i != source)
        elif not source:
            self.wanted[group] = (*wanted, target)
        else:
            self.wanted[group] = tuple(target if i == source else i for i in wanted)

    def plan(self, why: str) -> Plan:
        """The rows. Asserts that the table stays right: a plan that breaks it is a bug of ours."""
        moves: list[Move] = []
        for group, wanted in self.wanted.items():
            was = self.before.replicas_of(group)
            if wanted == was:
                continue
            moves.extend(_moves(group, was, wanted))
            if group == META_GROUP:
                self.put(msgspec.structs.replace(self.region, meta_replicas=wanted))
            else:
                self.put(msgspec.structs.replace(self.table.shards[group], replicas=wanted))
        rows = [row_of(record) for record in self._records.values() if not self._is_there(record)]
        problems = set(self.before.problems_with(rows)) - set(self.before.problems())
        assert not problems, f"the plan would break the table: {sorted(problems)}"
        return Plan(rows, moves, why)

    def _is_there(self, record: Record) -> bool:
        match record:
            case RegionRecord():
                return record == self.before.region
            case NodeRecord():
                return record == self.before.nodes.get(record.id)
            case RemoteRecord():
                return record == self.before.remotes.get(record.index)
            case ShardRecord():
                return record == self.before.shards.get(record.id)


def _moves(group: int, was: tuple[int, ...], wanted: tuple[int, ...]) -> Iterable[Move]:
    gone = [i for i in was if i not in wanted]
    come = [i for i in wanted if i not in was]
    for index in range(max(len(gone), len(come))):
        source = gone[index] if index < len(gone) else 0
        yield Move(group, source, come[index] if index < len(come) else 0)


def counted(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
