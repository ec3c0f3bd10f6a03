"""Local clusters: real node processes on loopback, supervised. Invariant: no process outlives `down`."""

from __future__ import annotations

from cluster.local.cluster import LocalCluster
from cluster.local.plan import LocalError

__all__ = ["LocalCluster", "LocalError"]
