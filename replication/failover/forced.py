"""A forced failover, from the side of the target, which decides alone; and when a hybrid one becomes forced.

Theory of operation. The source is not asked, so what it acknowledged and had not yet sent is not there when
the target begins to serve. It is lost only if the source's log is: otherwise it arrives later, as a losing
branch. The operator is told beforehand how much that is, as far as can be known. The version is chosen
above everything that anybody here has seen, for a version below one that a shard has seen would open
nothing.

Two regions may serve the namespace at once until the old one has learnt of it. That is inherent in not
asking; only a lease at a majority of sites prevents it (isolation.py).

Invariant: the version is the target's, and not below any that is known in the region; above any other
owner's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

from replication.failover.commands import Fence, Force
from replication.failover.ledger import digest_of
from replication.failover.meta import MetaState
from replication.failover.readiness import Lag, Refusal, RegionView, seconds
from replication.failover.records import UNDECIDED, Handover, Marker, Mode, Phase, Switch
from replication.versions import bump_version, next_version, owner_of

LAG_NS_UNASKED_MAX = 5_000_000_000  # of the worst shard; above it the operator has to say yes
DRAIN_NS_MAX = 2_000_000_000  # what can still be read is applied first, for so long at most
HYBRID_NS_MAX = 10_000_000_000  # for the graceful attempt: Temporal Cloud's hybrid mode has the same


class Assessment(NamedTuple):
    """What the operator is told before a forced failover."""

    refusal: Refusal | None
    needs_yes: bool
    lines: list[str]


def assess(
    lag: Lag,
    own: RegionView,
    *,
    versions: Mapping[str, int],
    fences: Mapping[int, Fence | None],
    applied: Mapping[int, Marker],
    regions: Collection[int],
    lag_ns_max: int = LAG_NS_UNASKED_MAX,
) -> Assessment:
    """What would be lost. `own`: this region. `versions`: of the namespaces to be taken, as known here.

    Of each shard of the source, `fences`: the newest fence of these namespaces that was applied here, None if
    it has ended: the source wrote nothing of them after it that it acknowledged, unless it aborted since;
    `applied`: what is applied here, as in Ack. `regions`: third ones that hold the namespaces.
    """
    if not own.healthy:
        why = Refusal("this region has shards without a leader", "repair it, or force another region")
        return Assessment(why, False, [])
    if own.bootstrapping:
        why = Refusal("this region is bootstrapping", "wait until it has copied everything")
        return Assessment(why, False, [])
    dirty = lag.parked + lag.quarantined
    if _all_here(versions, fences, applied, regions) and not lag.unknown and not lag.entries and not dirty:
        line = (
            "all markers of a handover are applied here: nothing is lost, unless the source aborted it since"
        )
        return Assessment(None, False, [line])
    lines = [f"{lag.entries} entries are not applied; shard {lag.worst} is {seconds(lag.lag_ns)} behind"]
    if lag.unknown:
        lines.append(f"of shards {list(lag.unknown)} it is not known how far behind they are")
    if dirty:
        lines.append(f"{lag.parked} runs are parked and {lag.quarantined} quarantined")
    needs_yes = lag.lag_ns is None or lag.lag_ns > lag_ns_max or dirty > 0
    return Assessment(None, needs_yes, lines)


def _all_here(
    versions: Mapping[str, int],
    fences: Mapping[int, Fence | None],
    applied: Mapping[int, Marker],
    regions: Collection[int],
) -> bool:
    """Whether all shards were fenced for these by one handover, and what they had then is applied here."""
    numbers = {fence.number if fence is not None else 0 for fence in fences.values()}
    return (
        len(numbers) == 1
        and numbers != {0}
        and all(
            fence is not None
            and fence.marker is not None
            and versions.items() <= fence.versions.items()
            and shard in applied
            and applied[shard].covers(fence.marker, regions)
            for shard, fence in fences.items()
        )
    )


def is_drained(lag: Lag, started_ns: int, now_ns: int, drain_ns_max: int = DRAIN_NS_MAX) -> bool:
    """Whether to go on: all that can be read is applied, or the time for it is up. One clock for both
    times.
    """
    return (not lag.unknown and lag.entries == 0) or now_ns - started_ns >= drain_ns_max


def base_of(state: MetaState, namespace_id: str, *, shared: int, seen: int) -> int:
    """What the version is chosen from. `shared`: the truth of the shared ledger. `seen`: the largest
    version in any entry, gate or call of this region. 0 each: nothing is known.
    """
    return max(state.truth(namespace_id), shared, seen)


def plan_force(
    state: MetaState,
    namespaces: Iterable[str],
    *,
    shared: Mapping[str, int],
    seen: Mapping[str, int],
    cut: Mapping[int, Marker],
    hlc: int,
    operator: str,
    reason: str = "",
) -> Force | Refusal:
    """The command that takes namespaces into this region. Those that are here already are left out; none left
    is a refusal that says so. `cut`: what of the old owner's each shard has applied now.
    """
    switches: list[Switch] = []
    for name in namespaces:
        record = state.namespaces.get(name)
        if record is None:
            return Refusal(f"there is no namespace {name}", "look at the list of namespaces")
        if state.region not in record.config.regions:
            return Refusal(f"region {state.region} does not hold namespace {name}", "add it to its regions")
        base = base_of(state, name, shared=shared.get(name, 0), seen=seen.get(name, 0))
        version = next_version(state.region, base)
        if version > state.truth(name):
            switches.append(Switch(name, base, version))
    if not switches:
        return Refusal(f"region {state.region} is active already", "nothing is to be done")
    return Force(Mode.FORCED, tuple(switches), operator, reason, digest_of(cut), hlc)


def plan_bump(
    state: MetaState,
    *,
    shared: Mapping[str, int],
    seen: Mapping[str, int],
    hlc: int,
    operator: str,
    reason: str = "",
) -> Force | None:
    """New versions of the same owner for every namespace that is active here; None: there is none.

    After a restore, before anything is served: events that were lost had versions that may not be used twice.
    """
    switches: list[Switch] = []
    for name in sorted(state.namespaces):
        base = base_of(state, name, shared=shared.get(name, 0), seen=seen.get(name, 0))
        if owner_of(base) == state.region:
            switches.append(Switch(name, base, bump_version(state.region, base)))
    return Force(Mode.BUMP, tuple(switches), operator, reason, b"", hlc) if switches else None


class Hybrid(Enum):
    """What a hybrid failover does next."""

    WAIT = "wait"
    DONE = "done"
    FORCE = "force"


def hybrid_next(handover: Handover | None, *, source_answers: bool, began_ns: int, now_ns: int) -> Hybrid:
    """Graceful first, forced if that ended in ABORT or nobody can say how it ends.

    `handover`: as the source last showed it, None: it has not begun there. Times by one clock. Forced after a
    COMMIT that nobody heard of takes the same version for the same region, so the two are one.
    """
    if handover is not None and handover.phase in (Phase.COMMITTED, Phase.DONE):
        return Hybrid.DONE
    if handover is not None and handover.phase is Phase.ABORTED:
        return Hybrid.FORCE
    if not source_answers:
        return Hybrid.FORCE
    assert handover is None or handover.phase in UNDECIDED, "a phase that is neither decided nor undecided"
    # A source that answers decides by itself at its deadline; this is for one that answers and does nothing.
    return Hybrid.FORCE if now_ns - began_ns >= 2 * HYBRID_NS_MAX else Hybrid.WAIT
