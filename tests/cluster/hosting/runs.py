"""What was written to a region's shards and is acknowledged, and where that should be on its nodes' disks."""

from __future__ import annotations

from functools import partial

import msgspec

from cluster.hosting.groups.group import Group, nobody
from history_store.engine import keys
from history_store.engine.errors import ServiceError
from history_store.raft import RaftError
from history_store.shard import image, snapshot
from history_store.visibility import search
from history_store.visibility.record import ExecutionRecord, VisibilityOp
from tests.cluster.hosting.settlement import SHARDS, Settlement, Settler

NAMESPACE = "00000000-0000-0000-0000-00000000000a"


class Runs:
    """What was written, and is acknowledged."""

    def __init__(self, world: Settlement) -> None:
        self.world = world
        self.of: dict[int, dict[bytes, bytes]] = {shard: {} for shard in range(1, SHARDS + 1)}

    def leader(self, shard: int) -> Settler | None:
        for settler in self.world.running():
            if hasattr(settler, "member") and shard in settler.member.node.led:
                return settler
        return None

    def write(self, shard: int) -> None:
        """A run, if somebody leads the shard."""
        settler = self.leader(shard)
        if settler is not None:
            settler.process.call(partial(self._write, settler.member.node.led[shard].group))

    def _write(self, group: Group) -> None:
        rng = self.world.rng
        raw = bytes((group.id,)) * 14 + rng.randbytes(2)
        slot = keys.slot_bytes(next(s for s, owner in enumerate(self._owners()) if owner == group.id))
        key = keys.run(slot, raw)
        value = msgspec.msgpack.encode((NAMESPACE, "w", raw.hex(), "W", rng.getrandbits(60)))
        rows: list[tuple[bytes, bytes | None]] = [(key, value), (keys.history(slot, raw, 0, 1), value * 20)]
        shown: list[VisibilityOp] = [
            ExecutionRecord(NAMESPACE, "w", raw.hex(), "W", 1, 1, 0, 0, "q", 0, 0, 1, 0, b"memo", b"")
        ]
        try:
            group.propose(image.encode(rows, shown), rows, shown)
        except (ServiceError, RaftError):
            return  # it leads no more, or hands over

        def committed(error: ServiceError | None) -> None:
            if error is None:
                self.of[group.id][key] = value

        group.when_committed(committed, patient=True)

    def _owners(self) -> list[int]:
        return next(s for s in self.world.running() if s.table.region is not None).table.owners

    async def some(self, shards: list[int], count: int) -> None:
        for shard in shards:
            goal = len(self.of[shard]) + count

            def enough(shard: int = shard, goal: int = goal) -> bool:
                self.write(shard)
                return len(self.of[shard]) >= goal

            await self.world.until(enough)

    def missing(self, settler: Settler) -> str:
        """What a node should have on its disk, and has not; "" if nothing."""
        for shard, group in settler.member.node.committer.groups.items():
            for key, value in self.of.get(shard, {}).items():
                if settler.disk.get(snapshot.prefix(group.rows.generation) + key) != value:
                    return f"{settler.name} lacks a run of shard {shard}"
        return ""

    def too_many(self, settler: Settler) -> str:
        """What is on a node's disk, or is listed, without a replica there; "" if nothing."""
        groups = settler.member.node.committer.groups
        known = {group.rows.generation for group in groups.values()} | {0xFFFFFFFF}
        found = {int.from_bytes(key[:4], "big") for key, _ in settler.disk.scan(b"", b"\xff" * 5)}
        connection = settler.disk.visibility_connection()
        listed, _ = search.list_executions(connection, NAMESPACE, "", {}, 100_000)
        connection.close()
        shown = {int(record.run_id[:2], 16) for record in listed}
        if found - known or shown - set(groups):
            return f"{settler.name} has {found - known}, lists {shown - set(groups)}"
        return ""

    async def at_rest(self) -> None:
        """Everything is where it belongs, and nowhere else."""
        await self.world.until(self.world.is_well)
        told = ""

        def settled() -> bool:
            nonlocal told
            if not all(hasattr(settler, "member") for settler in self.world.running()):
                return False
            for settler in self.world.running():
                settler.process.call(settler.member.node.committer.flush, nobody)
            open_ = {
                settler.name: set(settler.member.node.committer.groups) - {0}
                for settler in self.world.running()
            }
            wanted = {
                settler.name: set(settler.table.groups_of(settler.node_id)) - {0}
                for settler in self.world.running()
            }
            told = f"{open_} is not {wanted}" if open_ != wanted else ""
            for settler in self.world.running():
                told = told or self.missing(settler) or self.too_many(settler)
            return not told

        try:
            await self.world.until(settled)
        except TimeoutError:
            raise AssertionError(told) from None
