"""When a region may serve what it believes it owns: after a restart, and when it hears from nobody.

Theory of operation. A region that was cut off or stopped may have been replaced by a forced failover. So
before it serves after a restart it asks the shared ledger and its peers for newer versions, and waits for
all of them as long as `isolation_check_ns`. A region that runs and loses all its peers for as long is
alarmed. Unless a namespace is self-fencing it serves then all the same: nobody can tell a dead peer from a
cut line, and a region that stopped whenever it was alone would turn the loss of one into the loss of both.

Self-fencing. The active region renews a lease at the sites (regions and a witness), and mutates only while a
majority of them has granted it within the lease's length, counted on its own clock from when it asked. A
site that has promised a larger version grants no more below it. A forced failover collects promises of a
majority, and waits the lease and a bound for skew from the last promise it needed, on its own clock.
Majorities share a site; its last grant was asked for before its promise arrived, so the lease has run out.
Clocks are never compared, only durations: `skew_ns_max` has to cover what two clocks differ in while one
lease runs.

Invariant (self-fencing): a mutation at a version is admitted only before any larger version is activated.

Lineage: leases, Gray and Cheriton 1989; promises as in Paxos.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import NamedTuple

ISOLATION_CHECK_NS = 5_000_000_000
LEASE_NS = 5_000_000_000
SKEW_NS_MAX = (
    1_000_000_000  # far above what clocks drift in LEASE_NS; a paused machine has a monotonic clock too
)


class Serving(Enum):
    """Whether a region's shards may take mutations of what the region owns."""

    SERVE = "serve"
    ALARM = "serve, and tell the operator"
    HOLD = "hold"  # callers are parked; gates.admit with serving=False


class Contact(NamedTuple):
    """What a region's meta leader has heard. Times by its own clock."""

    started_ns: int  # it began to lead, or the region was restarted: the later one
    peers: Mapping[
        int, int | None
    ]  # other region of the namespace -> last answer, None: none since the start
    ledger_ns: int | None  # the shared ledger was last read, None: not since the start
    learnt: bool  # all that was heard is committed in the meta group


def serving(
    contact: Contact,
    now_ns: int,
    *,
    self_fence: bool = False,
    isolation_check_ns: int = ISOLATION_CHECK_NS,
) -> Serving:
    """Whether to serve. Without other regions there is nobody who could have taken over."""
    if not contact.learnt:
        return Serving.HOLD
    if not contact.peers:
        return Serving.SERVE
    asked_all = contact.ledger_ns is not None and None not in contact.peers.values()
    if not asked_all and now_ns - contact.started_ns < isolation_check_ns:
        return Serving.HOLD
    last_ns = max((at for at in contact.peers.values() if at is not None), default=None)
    if last_ns is not None and now_ns - last_ns < isolation_check_ns:
        return Serving.SERVE
    if self_fence:
        return Serving.HOLD
    return Serving.ALARM


# ---- self-fencing


def majority(sites: int) -> int:
    """How many sites decide."""
    return sites // 2 + 1


def self_fence_problem(sites: int) -> str:
    """Why a namespace cannot be self-fencing with so many sites; "": it can."""
    if sites < 3:
        return f"{sites} sites have no majority without one of them: self-fencing takes three, or a witness"
    return ""


class Promise(NamedTuple):
    """What one site keeps of one namespace, durably: nothing is granted below this version."""

    version: int

    def grants(self, version: int) -> bool:
        """Whether the site grants a lease at the version."""
        return version >= self.version

    def promised(self, version: int) -> Promise:
        """After a larger version's failover asked for it; idempotent."""
        return Promise(max(self.version, version))


def lease_until_ns(granted: Mapping[int, int], sites: Iterable[int], lease_ns: int = LEASE_NS) -> int:
    """Until when the active region may mutate; 0: it may not. `granted`: site -> when the region asked for
    the newest lease which that site granted, by the region's clock. The region itself is one of the sites.
    """
    sites = set(sites)
    asked = sorted((at for site, at in granted.items() if site in sites), reverse=True)
    needed = majority(len(sites))
    return asked[needed - 1] + lease_ns if len(asked) >= needed else 0


def may_activate_ns(
    promised: Mapping[int, int],
    sites: Iterable[int],
    lease_ns: int = LEASE_NS,
    skew_ns_max: int = SKEW_NS_MAX,
) -> int | None:
    """From when a forced failover of a self-fencing namespace may be proposed; None: promises are missing.

    `promised`: site -> when its promise arrived, by the target's clock.
    """
    sites = set(sites)
    arrived = sorted(at for site, at in promised.items() if site in sites)
    needed = majority(len(sites))
    if len(arrived) < needed:
        return None
    return arrived[needed - 1] + lease_ns + skew_ns_max
