"""Measures a region of several nodes on this machine (`python -m benchmarks.region`).

Every benchmark starts a fresh local cluster (`cluster.local.LocalCluster`, sync on, quorum of two where there
are three replicas) and puts a raw client and a raw worker on every node, so two of three calls come to a node
that does not lead the shard. Nodes and client share all cores: figures are for the whole machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks import region_cases
from benchmarks.measure import Figure
from benchmarks.region_cases import Bench
from benchmarks.run import PAGE, number, table

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


def write_page(figures: list[Figure], quick: bool) -> None:
    """Put the table between the marks of docs/performance.md."""
    head, found, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    assert found, f"{PAGE} has no line {BEGIN}"
    tail = rest.partition(END)[2]
    body = "\n".join([BEGIN, "", about(quick), "", *table(figures), "", END])
    PAGE.write_text(head + body + tail, encoding="utf-8")


async def run(bench: Bench, names: list[str]) -> tuple[list[Figure], list[str]]:
    """Run benchmarks one after another; one that breaks is named, and the others still run."""
    figures: list[Figure] = []
    broken: list[str] = []
    for name in names:
        began = time.perf_counter()
        print(f"{name}: {(CASES[name].__doc__ or '').splitlines()[0]}", file=sys.stderr)
        try:
            async with asyncio.timeout(MINUTES_MAX * 60):
                got = await CASES[name](bench)
        except Exception as error:
            broken.append(f"{name}: {error!r}")
            print(f"    BROKEN: {error!r}", file=sys.stderr)
            if bench.raise_errors:
                raise
            continue
        figures += got
        for figure in got:
            goal = "" if figure.target is None else f"  ({figure.better} {number(figure.target)})"
            line = f"    {figure.what:<58}{number(figure.value):>10} {figure.unit}{goal} {figure.verdict}"
            print(line.rstrip(), file=sys.stderr)
        print(f"    took {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return figures, broken


def main() -> int:
    """Run what was asked for; exit 1 when a target is missed or a benchmark breaks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.region", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="one short round of each")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    parser.add_argument("--dir", help="where nodes keep their files (default: the temporary directory)")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--raise-errors", action="store_true", help="stop at the first broken benchmark")
    options = parser.parse_args()
    names = options.only or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    if options.write_docs and (load := os.getloadavg()[0]) >= LOAD_MAX:
        parser.error(f"--write-docs: the machine is busy (load average {load:.1f}); wait until it is not")
    figures, broken = uvloop.run(run(Bench(options.dir, options.quick, options.raise_errors), names))
    if options.json:
        result = {"about": about(options.quick), "broken": broken, "figures": [f.as_json() for f in figures]}
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(table(figures)))
    if options.write_docs:
        write_page(figures, options.quick)
    return 1 if broken or any(figure.verdict == "MISSED" for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
