"""Measures a region of several nodes on this machine (`python -m benchmarks.region`).

Every benchmark starts a fresh local cluster (`cluster.local.LocalCluster`, sync on, quorum of two where there
are three replicas) and puts a raw client and a raw worker on every node, so two of three calls come to a node
that does not lead the shard. Nodes and client share all cores: figures are for the whole machine.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Awaitable, Callable

from benchmarks import region_cases, report
from benchmarks.measure import Figure
from benchmarks.region_cases import Bench

BEGIN, END = "<!-- figures of a region: begin -->", "<!-- figures of a region: end -->"
MINUTES_MAX = 20
LOAD_MAX = 1.5  # a busier machine gives figures that nobody can repeat

CASES: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    case.__name__: case
    for case in (
        region_cases.one_node,
        region_cases.three_nodes,
        region_cases.five_nodes,
        region_cases.sdk_worker,
        region_cases.start_latency,
        region_cases.where_time_goes,
        region_cases.kill_one,
        region_cases.idle_groups,
    )
}


def about(quick: bool) -> str:
    """Say where and how the figures were taken."""
    how = "short rounds (--quick)" if quick else f"medians of {region_cases.ROUNDS} rounds"
    return (
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}; {how}; all nodes and the client on the same cores."
    )


def main() -> int:
    """Run what was asked for; exit 1 when a target is missed or a benchmark breaks."""
    parser = report.options_of("benchmarks.region", __doc__, CASES)
    options, names = report.parse(parser, CASES)
    if options.write_docs and (load := os.getloadavg()[0]) >= LOAD_MAX:
        parser.error(f"--write-docs: the machine is busy (load average {load:.1f}); wait until it is not")
    bench = Bench(options.dir, options.quick, options.raise_errors)
    return report.run(
        CASES, bench, names, options, minutes_max=MINUTES_MAX, about=about(options.quick), marks=(BEGIN, END)
    )


if __name__ == "__main__":
    raise SystemExit(main())
