"""A forced failover, where the target's meta group is led: what would be lost, and the command that takes it.

The rules are `replication.failover.forced`; here they get what the region's own shards say. Of the source
nothing is asked: which shards it has is what the shards here read of it.

The version is chosen above every one that any gate here has seen. There is no ledger that regions share, so
none is read; what another region decided meanwhile is found by the confirm rule, afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from cluster.hosting.region.standing import lacking, marker_of, worst
from replication.failover import commands
from replication.failover.commands import Fence
from replication.failover.forced import Assessment, assess, is_drained, plan_force
from replication.failover.readiness import Lag, Refusal, RegionView, lag_of
from replication.failover.records import Marker, Source, meet
from replication.versions import owner_of

if TYPE_CHECKING:
    from cluster.hosting.region.failover import Failover
    from cluster.hosting.region.failover_words import Stands
    from replication.failover.records import NamespaceRecord

LOOK_S = 0.1  # between two looks at what can still be read


class Found(NamedTuple):
    """What the shards here have of the old owner's."""

    lag: Lag
    own: RegionView
    applied: dict[int, Marker]
    fences: dict[int, Fence | None]
    seen: int  # the largest version of the namespace in any gate
    refusal: Refusal | None
    needs_yes: bool
    lossless: bool  # unless the source took a handover back that is complete here
    lines: list[str]


class LeaderOfTarget:
    """One per node; used where the meta group is led."""

    def __init__(self, failover: Failover) -> None:
        self._failover = failover
        self._node = failover.node

    async def assess(self, record: NamespaceRecord) -> Found:
        """What taking the namespace here would lose."""
        found, silent = await self._gather(record.id)
        old = owner_of(record.version)
        readers: dict[int, list[Stands]] = {}
        for stands in found.values():
            for source in stands.cursors:
                if source.region == old:
                    readers.setdefault(source.shard, []).append(stands)
        applied = {
            shard: meet(marker_of(Source(old, shard), each) for each in stands)
            for shard, stands in readers.items()
        }
        lag = lag_of(
            readers,
            {
                shard: worst(each.lags[Source(old, shard)] for each in stands)
                for shard, stands in readers.items()
            },
        )
        fences = {
            shard: _fence([each.fences for each in stands], Source(old, shard), record.id)
            for shard, stands in readers.items()
        }
        healthy = not silent and self._failover.surveyor.is_healthy()
        own = RegionView(True, healthy, record.id in lacking(found.values()))
        third = set(record.config.regions) - {old, self._failover.regions.own}
        versions = {record.id: record.version}
        said: Assessment = assess(lag, own, versions=versions, fences=fences, applied=applied, regions=third)
        lines, needs_yes = said.lines, said.needs_yes
        lossless = bool(readers) and said.refusal is None and _is_lossless(lag, fences, applied, third)
        if not readers and said.refusal is None:
            lines, needs_yes = ["nothing was ever read of the region where it is active"], True
        seen = max((stands.versions.get(record.id, 0) for stands in found.values()), default=0)
        return Found(lag, own, applied, fences, seen, said.refusal, needs_yes, lossless, lines)

    async def _gather(self, namespace_id: str) -> tuple[dict[int, Stands], set[int]]:
        future: asyncio.Future[tuple[dict[int, Stands], set[int]]] = self._node.loop.create_future()

        def heard(found: dict[int, Stands], silent: set[int]) -> None:
            if not future.done():
                future.set_result((found, silent))

        self._failover.surveyor.gather([namespace_id], heard)
        return await future

    async def drained(self, record: NamespaceRecord) -> Found:
        """Wait a while for what can still be read; what there is then."""
        clock = self._node.clock
        started_ns = clock.now_ns()
        while True:
            found = await self.assess(record)
            if is_drained(found.lag, started_ns, clock.now_ns()):
                return found
            await asyncio.sleep(LOOK_S)

    def force(self, record: NamespaceRecord, found: Found, operator: str, reason: str) -> int | str:
        """Propose it: the version that was taken, or why it was not."""
        meta = self._failover.meta
        command = plan_force(
            meta.ahead,
            [record.id],
            shared={},
            seen={record.id: found.seen},
            cut=found.applied,
            hlc=self._node.clock.now_ns(),
            operator=operator,
            reason=reason,
        )
        if isinstance(command, Refusal):
            return str(command)
        outcome = meta.propose(command)
        return (
            command.switches[0].version if outcome.accepted else f"{outcome.why}: look at its failover status"
        )


def _is_lossless(
    lag: Lag, fences: Mapping[int, Fence | None], applied: Mapping[int, Marker], third: set[int]
) -> bool:
    """Whether `assess` found all markers of a handover here."""
    known = [fence.marker for fence in fences.values() if fence is not None and fence.marker is not None]
    return (
        len(known) == len(applied)
        and not (lag.unknown or lag.entries or lag.parked or lag.quarantined)
        and all(applied[shard].covers(marker, third) for shard, marker in zip(fences, known, strict=True))
        and len({fence.number for fence in fences.values() if fence is not None}) == 1
    )


def _fence(found: list[Mapping[Source, bytes]], source: Source, namespace_id: str) -> Fence | None:
    """The fence that all readers of a log have applied; None if one of them has another or none."""
    fences: list[Fence | None] = []
    for each in found:
        body = each.get(source)
        fence = commands.decode_shard(body) if body is not None else None
        matches = isinstance(fence, Fence) and namespace_id in fence.versions
        fences.append(fence if matches and isinstance(fence, Fence) else None)
    first = fences[0] if fences else None
    return first if first is not None and all(one == first for one in fences) else None
