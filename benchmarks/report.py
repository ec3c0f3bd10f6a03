"""Runs benchmarks one after another and tells their figures: as a table, as JSON, in docs/performance.md."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import uvloop

from benchmarks.measure import Figure

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"

Bench = TypeVar("Bench")
Cases = Mapping[str, Callable[[Bench], Awaitable[list[Figure]]]]


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


def options_of(program: str, about: str, cases: Mapping[str, object]) -> argparse.ArgumentParser:
    """The options that all have."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="NAME", help=f"one of: {', '.join(cases)}")
    parser.add_argument("--quick", action="store_true", help="short rounds, and less of everything")
    parser.add_argument("--json", action="store_true", help="print figures as JSON instead of a table")
    parser.add_argument("--dir", help="where servers keep their files (default: the temporary directory)")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    parser.add_argument("--raise-errors", action="store_true", help="stop at the first broken benchmark")
    return parser


def parse(
    parser: argparse.ArgumentParser, cases: Mapping[str, object]
) -> tuple[argparse.Namespace, list[str]]:
    """What was asked for, and the names of the benchmarks."""
    options = parser.parse_args()
    names = options.only or list(cases)
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return options, names


async def _run(
    cases: Cases[Bench], bench: Bench, names: list[str], minutes_max: float, raise_errors: bool
) -> tuple[list[Figure], list[str]]:
    """One after another; one that breaks is named, and the others still run."""
    figures: list[Figure] = []
    broken: list[str] = []
    for name in names:
        began = time.perf_counter()
        print(f"{name}: {(cases[name].__doc__ or '').splitlines()[0]}", file=sys.stderr)
        try:
            async with asyncio.timeout(minutes_max * 60):
                got = await cases[name](bench)
        except Exception as error:
            broken.append(f"{name}: {error!r}")
            print(f"    BROKEN: {error!r}", file=sys.stderr)
            if raise_errors:
                raise
            continue
        figures += got
        for figure in got:
            goal = "" if figure.target is None else f"  ({figure.better} {number(figure.target)})"
            line = f"    {figure.what:<58}{number(figure.value):>10} {figure.unit}{goal} {figure.verdict}"
            print(line.rstrip(), file=sys.stderr)
        print(f"    took {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return figures, broken


def run(
    cases: Cases[Bench], bench: Bench, names: list[str], options: argparse.Namespace, *, minutes_max: float,
    about: str, marks: tuple[str, str],
) -> int:  # fmt: skip
    """Run them and tell; `marks`: the lines of the page that the table stands between.

    1 when a target is missed or a benchmark breaks.
    """
    figures, broken = uvloop.run(_run(cases, bench, names, minutes_max, options.raise_errors))
    if options.json:
        result = {"about": about, "broken": broken, "figures": [figure.as_json() for figure in figures]}
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(table(figures)))
    if options.write_docs:
        begin, end = marks
        head, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
        assert found, f"{PAGE} has no line {begin}"
        body = "\n".join([begin, "", about, "", *table(figures), "", end])
        PAGE.write_text(head + body + rest.partition(end)[2], encoding="utf-8")
    return 1 if broken or any(figure.verdict == "MISSED" for figure in figures) else 0
