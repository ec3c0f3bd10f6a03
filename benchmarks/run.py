"""Measures a durable server and says whether it meets its targets (`make bench`).

Each benchmark starts its own server (`holdfast server start-dev --db-filename`, sync on) on the first core
and keeps its client on the others. Figures of one machine are compared with each other, and with the
benchmark `machine` of the same run; they are no promise about another machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from benchmarks import cases_scale, cases_speed, report
from benchmarks.cases_speed import Bench
from benchmarks.measure import Figure
from benchmarks.server import cores

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
MINUTES_MAX = 30

CASES: dict[str, Callable[[Bench], Awaitable[list[Figure]]]] = {
    case.__name__: case
    for case in (
        cases_speed.machine,
        cases_speed.start_time,
        cases_speed.one_activity,
        cases_speed.one_activity_variants,
        cases_speed.one_activity_sdk,
        cases_speed.start_latency,
        cases_speed.signal_latency,
        cases_speed.update_latency,
        cases_speed.parallel_activities,
        cases_speed.sequential_activities,
        cases_speed.timers,
        cases_speed.connections,
        cases_scale.memory,
        cases_scale.open_idle,
        cases_scale.backlog,
    )
}


def about(options: argparse.Namespace) -> str:
    """Say where and how the figures were taken."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")), "?"
    )
    how = "short rounds (--quick)" if options.quick else "medians of three rounds"
    return (
        f"{os.cpu_count()} cores ({model}), {platform.system()} {platform.release()}, Python "
        f"{platform.python_version()}; {how}; the server on one core, clients on the rest."
    )


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def main() -> int:
    """Run what was asked for; exit 1 when a target is missed or a benchmark breaks."""
    parser = report.options_of("benchmarks.run", __doc__, CASES)
    parser.add_argument("--holdfast", default=str(Path(sys.executable).parent / "holdfast"))
    parser.add_argument("--server-argument", action="append", default=[], help="pass on, e.g. --front=grpcio")
    options, names = report.parse(parser, CASES)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[1])
    bench = Bench(options.holdfast, options.dir, options.server_argument, options.quick)
    return report.run(
        CASES, bench, names, options, minutes_max=MINUTES_MAX, about=about(options), marks=(BEGIN, END)
    )


if __name__ == "__main__":
    raise SystemExit(main())
