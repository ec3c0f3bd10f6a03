"""Where all shards of a region stand with what other regions tell: gathered where the meta group is led.

A shard of another region is read by every shard here that has keys of it, and none speaks for another: what
the region has applied of it is what all of them have. A shard that does not answer leaves open how far the
region is with those that it reads.

What says that a region may not become active yet is one function, `lacking`: a shard that has not got all
runs which a namespace had before it was told of here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from cluster.hosting.region.failover_words import Applied, Ranges, Stand, Stands, Survey, Surveyed
from replication.failover.readiness import ShardLag
from replication.failover.records import Marker, Point, Source, meet

if TYPE_CHECKING:
    from cluster.hosting.node import Node
    from cluster.hosting.region.asking import Asking
    from cluster.hosting.region.failover_words import ShardAnswer
    from cluster.hosting.region.steward import Steward

NOWHERE = Point(0, 0)  # incarnations are drawn from 1 on: it reaches nothing
UNKNOWN = ShardLag(None, None)

Heard = Callable[[dict[int, Stands], set[int]], None]  # what shards said, and those that said nothing


class Surveyor:
    """One per node."""

    def __init__(
        self,
        node: Node,
        steward: Steward,
        asking: Asking,
        shards: Callable[[], Mapping[int, Ranges]],
        on_children: Callable[[dict[int, Ranges]], None],
    ) -> None:
        """`shards`: all of this region. `on_children`: a shard said into which it was split."""
        self._node = node
        self._steward = steward
        self._asking = asking
        self._shards = shards
        self._on_children = on_children

    def gather(self, namespaces: Iterable[str], heard: Heard) -> None:
        """Ask all shards of this region, those of which others spoke as well."""
        question = Stand(tuple(namespaces))
        found: dict[int, Stands] = {}
        silent: set[int] = set()
        waiting: set[int] = set()

        def ask() -> None:
            for shard in self._shards():
                if shard not in found and shard not in silent and shard not in waiting:
                    waiting.add(shard)
                    self._asking.shard(shard, question, partial(said, shard))

        def said(shard: int, answer: ShardAnswer | None) -> None:
            waiting.discard(shard)
            if isinstance(answer, Stands):
                found[shard] = answer
                self._on_children(answer.children)
                ask()
            else:
                silent.add(shard)
            if not waiting:
                heard(found, silent)

        ask()
        if not waiting:
            self._node.loop.call_soon(heard, found, silent)

    def survey(self, region: int, question: Survey, heard: Callable[[Surveyed], None]) -> None:
        """What this region has applied of another's shards."""

        def gathered(found: dict[int, Stands], silent: set[int]) -> None:
            ours = self._shards()
            applied: dict[int, Applied] = {}
            for shard, ranges in question.shards.items():
                readers = [each for each, slots in ours.items() if _overlap(slots, ranges)]
                if readers and all(each in found for each in readers):
                    source = Source(region, shard)
                    applied[shard] = _applied(source, [found[each] for each in readers], question.namespaces)
            healthy = not silent and self.is_healthy()
            heard(Surveyed(applied, healthy, bool(lacking(found.values()))))

        self.gather(question.namespaces, gathered)

    def is_healthy(self) -> bool:
        """Whether all shards of this region have leaders, as far as its steward was told."""
        _, reports = self._steward.health()
        return all(shard in reports for shard in self._shards())


def lacking(found: Iterable[Stands]) -> set[str]:
    """The namespaces that this region is still bootstrapping: it may not become active for them.

    Of those that were asked about; shards that did not answer are not asked again for it, and make the region
    unhealthy.
    """
    return {name for stands in found for name in stands.lacks}


def _applied(source: Source, readers: list[Stands], bases: Mapping[str, int]) -> Applied:
    newer: dict[str, int] = {}
    for stands in readers:
        for name, version in stands.versions.items():
            if version > max(bases.get(name, 0), newer.get(name, 0)):
                newer[name] = version
    marker = meet(marker_of(source, stands) for stands in readers)
    return Applied(marker, worst(stands.lags.get(source, UNKNOWN) for stands in readers), newer)


def marker_of(source: Source, stands: Stands) -> Marker:
    """What a shard has applied, seen from one of the logs that it reads."""
    others = dict(stands.cursors)
    return Marker(others.pop(source, NOWHERE), others)


def worst(lags: Iterable[ShardLag]) -> ShardLag:
    """What several readers of one log lack of it, together."""
    lags = list(lags)
    known = [lag.lag_ns for lag in lags if lag.lag_ns is not None]
    counted = [lag.entries for lag in lags if lag.entries is not None]
    return ShardLag(
        max(known, default=0) if len(known) == len(lags) else None,
        max(counted, default=0) if len(counted) == len(lags) else None,
        sum(lag.parked for lag in lags),
        sum(lag.quarantined for lag in lags),
    )


def _overlap(some: Ranges, others: Ranges) -> bool:
    return any(
        first <= last_other and first_other <= last
        for first, last in some
        for first_other, last_other in others
    )
