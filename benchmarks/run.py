"""Measures a durable server and says whether it meets its targets (`make bench`).

Each benchmark starts its own server (`holdfast server start-dev --db-filename`, sync on) on the first core
and keeps its client on the others. Figures of one machine are compared with each other, and with the
benchmark `machine` of the same run; they are no promise about another machine.
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
from pathlib import Path

import uvloop

from benchmarks import cases_scale, cases_speed
from benchmarks.cases_speed import Bench
from benchmarks.measure import Figure
from benchmarks.server import cores

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
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


def number(value: float) -> str:
    """Print three significant digits, and no exponent."""
    if value and abs(value) < 0.01:
        return f"{value:.4f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(figures: list[Figure]) -> list[str]:
    """Write figures as the Markdown table of docs/performance.md."""
    rows = ["| benchmark | what | value | target | verdict |", "|---|---|--:|--:|---|"]
    for figure in figures:
        target = "" if figure.target is None else f"{figure.better} {number(figure.target)}"
        cells = [figure.benchmark, figure.what, f"{number(figure.value)} {figure.unit}".strip(), target]
        rows.append("| " + " | ".join([*cells, figure.verdict]) + " |")
    return rows


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


def write_page(figures: list[Figure], options: argparse.Namespace) -> None:
    """Put the table between the marks of docs/performance.md."""
    text = PAGE.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    assert found, f"{PAGE} has no line {BEGIN}"
    tail = rest.partition(END)[2]
    body = "\n".join([BEGIN, "", about(options), "", *table(figures), "", END])
    PAGE.write_text(head + body + tail, encoding="utf-8")


async def run(options: argparse.Namespace, names: list[str]) -> tuple[list[Figure], list[str]]:
    """Run benchmarks one after another; one that breaks is named, and the others still run."""
    bench = Bench(options.holdfast, options.dir, options.server_argument, options.quick)
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
            if options.raise_errors:
                raise
            continue
        figures += got
        for figure in got:
            target = (
                ""
                if figure.target is None
                else f"  ({figure.better} {number(figure.target)}: {figure.verdict})"
            )
            print(f"    {figure.what:<52}{number(figure.value):>10} {figure.unit}{target}", file=sys.stderr)
        print(f"    took {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return figures, broken


def main() -> int:
    """Run what was asked for; exit 1 when a target is missed or a benchmark breaks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of: {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="short rounds and a twentieth of the scale")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    parser.add_argument("--dir", help="where servers keep their files (default: the temporary directory)")
    parser.add_argument("--holdfast", default=str(Path(sys.executable).parent / "holdfast"))
    parser.add_argument("--server-argument", action="append", default=[], help="pass on, e.g. --front=grpcio")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--raise-errors", action="store_true", help="stop at the first broken benchmark")
    options = parser.parse_args()
    names = options.only or list(CASES)
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores()[1])
    figures, broken = uvloop.run(run(options, names))
    if options.json:
        result = {"about": about(options), "broken": broken, "figures": [f.as_json() for f in figures]}
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(table(figures)))
    if options.write_docs:
        write_page(figures, options)
    return 1 if broken or any(figure.verdict == "MISSED" for figure in figures) else 0


if __name__ == "__main__":
    raise SystemExit(main())
