"""How far the target of a failover is behind, and what that stands in the way of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from replication.failover.records import Limits


class Refusal(NamedTuple):
    """Nothing is to be done: why, and what to do about it."""

    why: str
    do: str

    def __str__(self) -> str:
        return f"{self.why}: {self.do}"


class RegionView(NamedTuple):
    """What is known here of another region, now."""

    reachable: bool = True  # its meta group's leader answers
    healthy: bool = True  # all its shards have leaders
    bootstrapping: bool = False  # it is still copying a snapshot: it may not become active


class ShardLag(NamedTuple):
    """What one shard of the target lacks of what the source has: its own log, and what it has applied of
    third regions'. None: not known.
    """

    lag_ns: int | None
    entries: int | None
    parked: int = 0  # runs whose entries wait for an ancestor
    quarantined: int = 0  # runs that could not be applied


class Lag(NamedTuple):
    """All shards together."""

    worst: int  # shard with the longest lag, unknown counting as longest; 0: there is no shard
    lag_ns: int | None  # of that one
    entries: int  # sum of what is known
    parked: int
    quarantined: int
    unknown: tuple[int, ...]  # shards of which nothing is known


def lag_of(shards: Iterable[int], lags: Mapping[int, ShardLag]) -> Lag:
    """The lags of these shards together; a shard without an entry is unknown."""
    unheard = ShardLag(None, None)
    of = {shard: lags.get(shard, unheard) for shard in sorted(shards)}
    unknown = tuple(shard for shard, lag in of.items() if lag.lag_ns is None)
    worst = unknown[0] if unknown else max(of, key=lambda shard: of[shard].lag_ns or 0, default=0)
    return Lag(
        worst,
        of[worst].lag_ns if worst else 0,
        sum(lag.entries or 0 for lag in of.values()),
        sum(lag.parked for lag in of.values()),
        sum(lag.quarantined for lag in of.values()),
        unknown,
    )


def unready(target: RegionView, lag: Lag, lag_ns_max: int, *, allow_dirty: bool = False) -> list[str]:
    """What stands in the way of handing over to the target now. Nothing: it may begin."""
    found: list[str] = []
    if not target.reachable:
        found.append("the target cannot be reached")
    if not target.healthy:
        found.append("the target has shards without a leader")
    if target.bootstrapping:
        found.append("the target is bootstrapping")
    if lag.unknown:
        found.append(f"the lag of shards {list(lag.unknown)} is not known")
    elif lag.lag_ns is None or lag.lag_ns > lag_ns_max:
        found.append(
            f"shard {lag.worst} is {seconds(lag.lag_ns)} behind, at most {seconds(lag_ns_max)} is allowed"
        )
    if lag.parked + lag.quarantined and not allow_dirty:
        found.append(f"{lag.parked} runs are parked and {lag.quarantined} quarantined")
    return found


def handover_unready(target: RegionView, lag: Lag, limits: Limits) -> list[str]:
    """As `unready`, by a handover's limits."""
    return unready(target, lag, limits.lag_ns_max, allow_dirty=limits.allow_dirty)


FAILBACK_LAG_NS_MAX = 1_000_000_000


def failback_unready(old: RegionView, lag: Lag, outbox: Mapping[int, int]) -> list[str]:
    """What stands in the way of going back to the region that was active before.

    `outbox`: shard -> entries of the old region's own tail, up to its DEACTIVATE, that are not applied here.
    An old region that has not answered for a shard may have a tail there.
    """
    found = unready(old, lag, FAILBACK_LAG_NS_MAX)
    left = sum(outbox.values())
    if left:
        found.append(
            f"{left} entries that the old region wrote before it heard of the switch are not here yet"
        )
    return found


def seconds(duration_ns: int | None) -> str:
    """A duration, for people."""
    return "an unknown time" if duration_ns is None else f"{duration_ns / 1e9:.1f} s"
