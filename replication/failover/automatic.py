"""Whether a region takes over by itself: from probes, limits and what is known of lag, without a clock.

Theory of operation. Every site (region or witness) probes every region through its front door. A suspect is
down if a majority of the other sites say so, each of them from a row of failed probes of its own; a site
that reaches nobody else is the one that is cut off, and its word does not count. Or it is down because the
suspect's own nodes report too many shards without a leader for too long. With two regions and no witness
the only other site is the one that would take over, and it cannot tell a cut line from a death: automatic
failover is off, unless the operator said after how long he assumes the latter.

The decision is carried out by the target's meta group as any forced failover, or as a hybrid one where the
source still answers; so what is wrong here costs availability or causes two owners for a while, never a
fork that does not heal. It is asked again and again; limits keep it from swinging to and fro.

Lineage: failure detection by independent vantage points as in managed databases' failover observers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from replication.failover.isolation import majority
from replication.failover.readiness import Lag, RegionView, failback_unready, seconds

FAILURES_MIN = 5  # in a row, one a second
REPORT_NS_MAX = 5_000_000_000  # a site's word is as old as that at most
LEADERLESS_SHARE_MAX = 0.2
LEADERLESS_NS_MIN = 10_000_000_000
PAUSE_NS = 600_000_000_000  # between two automatic failovers of a namespace, and before going back
LAG_NS_MAX = 30_000_000_000
GRACEFUL_NS = 2_000_000_000  # for the attempt to ask a source that still answers
BATCH_MAX = 20  # namespaces decided at once


class Probes(NamedTuple):
    """What one site says of the suspect."""

    failures: int  # in a row, up to now
    failing_ns: int  # since the first of them
    age_ns: int  # of this report


class Leaderless(NamedTuple):
    """What the suspect's own nodes say."""

    shards: int
    without_leader: int
    lasting_ns: int  # the share has been above the limit for so long


class Sites(NamedTuple):
    """Who watches, and what the watchers say of the suspect."""

    all: frozenset[int]  # indexes of regions, and of witnesses, which are above 99
    probes: Mapping[int, Probes]
    reaches: Mapping[int, Collection[int]]  # site -> sites that it reaches, from the newest reports
    leaderless: Leaderless | None = None


class Diagnosis(NamedTuple):
    """Whether the suspect is down, and why or why not."""

    down: bool
    why: str


def diagnose(suspect: int, sites: Sites, *, assume_dead_after_ns: int | None = None) -> Diagnosis:
    """Whether the suspect is down. `assume_dead_after_ns`: only for two sites; None: automatic mode is
    off.
    """
    others = sites.all - {suspect}
    if len(others) < 2:
        return _alone(suspect, sites, others, assume_dead_after_ns)
    failing = {site for site in others if _is_failing(site, suspect, sites)}
    needed = majority(len(others))
    if len(failing) >= needed:
        return Diagnosis(True, f"{len(failing)} of {len(others)} sites fail to reach region {suspect}")
    if _is_leaderless(sites.leaderless):
        return Diagnosis(True, f"too many shards of region {suspect} have no leader")
    return Diagnosis(False, f"{len(failing)} of {len(others)} sites fail to reach region {suspect}")


def _alone(
    suspect: int, sites: Sites, others: Collection[int], assume_dead_after_ns: int | None
) -> Diagnosis:
    if assume_dead_after_ns is None:
        return Diagnosis(False, "two regions without a witness: automatic failover is off")
    failing_ns = max(
        (sites.probes[site].failing_ns for site in others if _is_failing(site, suspect, sites, alone=True)),
        default=0,
    )
    if failing_ns >= assume_dead_after_ns > 0:
        return Diagnosis(True, f"region {suspect} has not answered for {seconds(failing_ns)}")
    if _is_leaderless(sites.leaderless):
        return Diagnosis(True, f"too many shards of region {suspect} have no leader")
    return Diagnosis(False, f"region {suspect} is not assumed dead yet")


def _is_failing(site: int, suspect: int, sites: Sites, *, alone: bool = False) -> bool:
    probes = sites.probes.get(site)
    if probes is None or probes.age_ns > REPORT_NS_MAX or probes.failures < FAILURES_MIN:
        return False
    return alone or bool(set(sites.reaches.get(site, ())) & (sites.all - {suspect, site}))


def _is_leaderless(leaderless: Leaderless | None) -> bool:
    if leaderless is None or leaderless.shards == 0:
        return False
    share = leaderless.without_leader / leaderless.shards
    return share > LEADERLESS_SHARE_MAX and leaderless.lasting_ns >= LEADERLESS_NS_MIN


# ---- who moves, and where


class Candidate(NamedTuple):
    """A namespace of the suspect."""

    namespace_id: str
    priority: int  # the largest first
    regions: tuple[int, ...]  # that hold it, the preferred first
    lag: Lag  # of this region
    enabled: bool = True
    since_automatic_ns: int | None = None  # since its last automatic failover; None: there was none


class Takeover(NamedTuple):
    """What this region's meta group is to do now."""

    graceful_ns: int  # ask the source first, for so long; 0: force at once
    namespaces: list[str]  # in order, BATCH_MAX at most
    left: dict[str, str]  # namespace -> why not, or not yet


def plan_takeover(
    own: int,
    suspect: int,
    diagnosis: Diagnosis,
    candidates: Iterable[Candidate],
    *,
    views: Mapping[int, RegionView],
    source_answers: bool,
    lag_ns_max: int = LAG_NS_MAX,
    batch_max: int = BATCH_MAX,
) -> Takeover:
    """What region `own` takes over from the suspect. `views`: of all regions, the own one included."""
    chosen: list[str] = []
    left: dict[str, str] = {}
    for candidate in sorted(candidates, key=lambda c: (-c.priority, c.namespace_id)):
        name = candidate.namespace_id
        problem = (
            diagnosis.why if not diagnosis.down else _problem(own, suspect, candidate, views, lag_ns_max)
        )
        if not problem and len(chosen) >= batch_max:
            problem = "the next batch"
        if problem:
            left[name] = problem
        else:
            chosen.append(name)
    return Takeover(GRACEFUL_NS if source_answers else 0, chosen, left)


def _problem(
    own: int, suspect: int, candidate: Candidate, views: Mapping[int, RegionView], lag_ns_max: int
) -> str:
    if not candidate.enabled:
        return "automatic failover is off for it"
    since = candidate.since_automatic_ns
    if since is not None and since < PAUSE_NS:
        return f"its last automatic failover was {seconds(since)} ago"
    able = [region for region in candidate.regions if region != suspect and _is_able(views.get(region))]
    if own not in able:
        return "this region is not able to take it"
    if able[0] != own:
        return f"region {able[0]} is preferred"
    if candidate.lag.lag_ns is None or candidate.lag.lag_ns > lag_ns_max:
        return f"it is {seconds(candidate.lag.lag_ns)} behind"
    return ""


def _is_able(view: RegionView | None) -> bool:
    return view is not None and view.reachable and view.healthy and not view.bootstrapping


def failback_problem(
    *,
    automatic: bool,
    enabled: bool,
    healthy_ns: int,
    old: RegionView,
    lag: Lag,
    outbox: Mapping[int, int],
) -> str:
    """Why the namespace does not go back by itself, gracefully, to where it was; "": it does.

    `automatic`: it came by an automatic failover. `healthy_ns`: its old region has been well for so long.
    """
    if not automatic or not enabled:
        return "only what moved by itself goes back by itself, where that is not switched off"
    if healthy_ns < PAUSE_NS:
        return f"the old region has been well for {seconds(healthy_ns)} only"
    return "; ".join(failback_unready(old, lag, outbox))
