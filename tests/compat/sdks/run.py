"""The SDK checks by hand: run them all, and write docs/sdks.md from what they say.

.venv/bin/python -m tests.compat.sdks.run                        all SDKs that this machine can run
.venv/bin/python -m tests.compat.sdks.run --only java            one of them
.venv/bin/python -m tests.compat.sdks.run --only go --check timers --address HOST:PORT
.venv/bin/python -m tests.compat.sdks.run --build-cli            build the `temporal` command line first
.venv/bin/python -m tests.compat.sdks.run --write-docs           put the results into docs/sdks.md
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from chaos.live.server import Server
from tests.compat.sdks import programs

REPO = Path(__file__).parents[3]
PAGE = REPO / "docs/sdks.md"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"


def _against(program: programs.Program, address: str, only: str) -> list[programs.Outcome]:
    outcomes = programs.run(program, address, only)
    for outcome in outcomes:
        verdict = "ok" if outcome.passed else "FAIL"
        what = f"{program.language:11} {verdict:4} {outcome.name:27} {outcome.took_ms:6} ms"
        print(f"{what} {outcome.why}".rstrip())
    return outcomes


async def _fresh(program: programs.Program, only: str) -> list[programs.Outcome]:
    """Run a program against a server of its own."""
    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory) / "data.db")
        await server.start()
        try:
            return await asyncio.to_thread(_against, program, server.address, only)
        finally:
            await server.kill()


def _command_line() -> tuple[str, int, int]:
    """The command line's version, and how many of its tests passed and failed."""
    path = programs.cli()
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\S+)", said)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        str(Path(__file__).parent / "cli"),
    ]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    print(done.stdout)
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed)", done.stdout)}
    version = os.environ.get("HOLDFAST_TEMPORAL_CLI_VERSION") or (found.group(1) if found else "?")
    return version, counts.get("passed", 0), counts.get("failed", 0)


def _row(title: str, version: str, passed: int, failed: list[str]) -> str:
    verdict = "all pass" if not failed else "fail: " + ", ".join(failed)
    return f"| {title} | {version} | {passed + len(failed)} | {verdict} |\n"


def _write(rows: list[str], names: dict[str, list[str]]) -> None:
    """Replace the part of the page that is made."""
    text = PAGE.read_text()
    table = "| SDK | version | checks | result |\n|---|---|--:|---|\n" + "".join(rows)
    every = sorted(set.intersection(*(set(found) for found in names.values()))) if names else []
    table += "\nEvery SDK's program: " + ", ".join(every) + ".\n"
    for language, found in names.items():
        more = [name for name in found if name not in every]
        if more:
            table += f"Besides, {programs.PROGRAMS[language].title.split(',')[0]}: {', '.join(more)}.\n"
    head, rest = text.split(BEGIN)
    PAGE.write_text(head + BEGIN + table + END + rest.split(END)[1])


def main() -> int:
    """Run; exit 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Temporal's SDKs and command line against holdfast")
    parser.add_argument("--only", choices=[*programs.PROGRAMS, "cli"])
    parser.add_argument("--check", default="", help="only checks whose name has this in it")
    parser.add_argument("--address", help="a server that is there; without it each SDK gets a fresh one")
    parser.add_argument("--build-cli", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    options = parser.parse_args()
    if options.build_cli:
        print(programs.build_cli())
    rows, names, passed = [], {}, True
    for program in programs.PROGRAMS.values():
        if options.only not in (None, program.language):
            continue
        try:
            if options.address:
                outcomes = _against(program, options.address, options.check)
            else:
                outcomes = asyncio.run(_fresh(program, options.check))
        except programs.MissingError as missing:
            print(f"{program.language}: skipped: {missing}", file=sys.stderr)
            continue
        failed = [outcome.name for outcome in outcomes if not outcome.passed]
        rows.append(_row(program.title, program.version, len(outcomes) - len(failed), failed))
        names[program.language] = [outcome.name for outcome in outcomes]
        passed = passed and not failed
    if options.only in (None, "cli") and not options.address:
        try:
            version, good, bad = _command_line()
            rows.append(_row("the `temporal` command line", version, good, ["see the log"] * bad))
            passed = passed and not bad
        except programs.MissingError as missing:
            print(f"cli: skipped: {missing}", file=sys.stderr)
    if options.write_docs:
        _write(rows, names)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
