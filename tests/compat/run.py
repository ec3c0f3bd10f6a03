"""Runs Temporal's own sdk-python suite against this server, and says what passes (see README.md beside this).

By default the suite starts the server itself, exactly as it starts Temporal's: through an executable in its
temporary directory. So the drop-in contract of `holdfast server start-dev` is tested along with the rest, and
no test that insists on a local server skips itself. With `--address` it uses a server that runs already.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.compat import report, suite

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
PAGE = PROJECT / "docs" / "compatibility.md"
RETRIES_MAX = 40  # more failures than this are no matter of a busy machine


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.compat.run", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--suite-dir", help="an export of the suite (else HOLDFAST_COMPAT_SUITE, else the cache)"
    )
    parser.add_argument("--fetch", action="store_true", help="get the suite from GitHub if it is not there")
    parser.add_argument("--tier", default="1,2", help="tiers to run, e.g. 1 or 1,2,3 (default 1,2)")
    parser.add_argument("-k", dest="expression", help="pytest's -k")
    parser.add_argument("-n", dest="workers", default="2", help="processes (0: in this one; default 2)")
    parser.add_argument("--timeout", default="60", help="seconds a test may take")
    parser.add_argument("--minutes", type=float, default=30, help="minutes the whole run may take")
    parser.add_argument("--address", help="HOST:PORT of a running server, instead of starting one")
    parser.add_argument("--db", action="store_true", help="let the servers keep their state in a file")
    parser.add_argument("--holdfast", default=str(Path(sys.executable).parent / "holdfast"))
    parser.add_argument("--no-retry", action="store_true", help="do not repeat failed tests alone")
    parser.add_argument(
        "--report", type=Path, help="where to keep the JSON report (default: build/compat-report.json)"
    )
    parser.add_argument("--from-report", type=Path, help="run nothing; judge this report and write the page")
    parser.add_argument("--no-docs", action="store_true", help="leave docs/compatibility.md alone")
    parser.add_argument(
        "--print-server", action="store_true", help="print how to start a server for --address"
    )
    parser.add_argument("tests", nargs="*", help="test ids or files of the suite, instead of tiers")
    return parser.parse_args(arguments)


def server_command(holdfast: str, port: int) -> list[str]:
    """Start a server by hand with what the suite would have passed."""
    command = [holdfast, "server", "start-dev", "--port", str(port), "--headless"]
    for setting in suite.DYNAMIC_CONFIG:
        command += ["--dynamic-config-value", setting]
    return command


def pytest_run(
    python: Path, directory: Path, where: Path, options: argparse.Namespace, selected: list[str], workers: str
) -> dict[str, Any]:
    """Run pytest once inside the suite and return its report; a run that writes none is an error."""
    out = where / f"report-{workers}.json"
    out.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-p", "holdfast_compat", f"--compat-report={out}", "-q", "-q"]
    command += ["-p", "no:cacheprovider", "--tb=short", "-rN", "-E", options.address or "local"]
    command += ["--timeout", options.timeout, "--continue-on-collection-errors"]
    command += ["-n", workers, "--dist=worksteal"] if workers != "0" else []
    command += ["-k", options.expression] if options.expression else []
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment |= {"TMPDIR": str(where), "PYTHONPATH": str(HERE / "plugin"), "PYTHONDONTWRITEBYTECODE": "1"}
    with (where / f"pytest-{workers}.log").open("wb") as log:
        # A group of its own, so that a run that is over time ends with all its workers and servers.
        process = subprocess.Popen(
            [*command, *selected],
            cwd=directory,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            process.wait(options.minutes * 60)
        except subprocess.TimeoutExpired:
            print(f"the run took longer than {options.minutes} minutes and was ended", file=sys.stderr)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
    if not out.exists():
        tail = (where / f"pytest-{workers}.log").read_text(errors="replace")[-3000:]
        raise SystemExit(f"pytest wrote no report (exit {process.returncode}):\n{tail}")
    loaded: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return loaded


def repeat_failures(
    python: Path, directory: Path, where: Path, options: argparse.Namespace, tests: dict[str, Any]
) -> None:
    """Run unexplained failures again, one by one: what passes then is flaky, and told apart."""
    reasons = report.load_reasons(HERE / "expected.toml")
    failed = [name for name, _ in report.judge(tests, reasons).unexplained]
    if not failed or len(failed) > RETRIES_MAX or options.no_retry or options.workers == "0":
        return
    print(f"repeating {len(failed)} failed tests alone", file=sys.stderr)
    again = pytest_run(python, directory, where, options, failed, "0")["tests"]
    for name in failed:
        if again.get(name, {}).get("outcome") == "passed":
            tests[name] |= {"outcome": "flaky"}


def about(options: argparse.Namespace, seconds: float) -> dict[str, str]:
    """Say what ran, where and how."""
    version = re.search(r'^version = "(.*)"', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)
    return {
        "suite": f"temporalio/sdk-python {suite.VERSION}, tiers {options.tier}",
        "server": f"holdfast {version.group(1) if version else '?'}, "
        + ("state in a file" if options.db else "state in memory")
        + (", started beforehand" if options.address else ", started by the suite as its dev server"),
        "machine": f"Python {platform.python_version()}, {os.cpu_count()} cores; "
        f"{options.workers} test processes, {seconds:.0f} s",
        "to repeat": "`make compat`",
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the suite and return the whole report."""
    directory = suite.find(options.suite_dir, fetch=options.fetch)
    python = suite.environment()
    tiers = {int(tier) for tier in options.tier.split(",")}
    selected = options.tests or suite.selection(tiers)
    began = time.monotonic()
    where = Path(tempfile.mkdtemp(prefix="holdfast-compat-"))
    suite.install_executables(where, Path(options.holdfast).absolute(), durable=options.db)
    print(f"logs of pytest and of the servers: {where}", file=sys.stderr)
    tests = pytest_run(python, directory, where, options, selected, options.workers)["tests"]
    repeat_failures(python, directory, where, options, tests)
    return {"about": about(options, time.monotonic() - began), "tests": tests}


def main(arguments: list[str] | None = None) -> int:
    """Run, judge, write; 0 = nothing unexplained (or no suite on this machine), 1 otherwise."""
    options = parse(arguments)
    if options.print_server:
        print(
            " ".join(f"'{word}'" if '"' in word else word for word in server_command(options.holdfast, 7233))
        )
        return 0
    if options.from_report:
        result = json.loads(options.from_report.read_text(encoding="utf-8"))
    else:
        try:
            result = run(options)
        except suite.SuiteMissing as missing:
            print(f"SKIPPED: {missing}", file=sys.stderr)
            return 0
        kept = options.report or PROJECT / "build" / "compat-report.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"report: {kept}", file=sys.stderr)
    verdict = report.judge(result["tests"], report.load_reasons(HERE / "expected.toml"))
    whole = not (options.tests or options.expression) and {"1", "2"} <= set(options.tier.split(","))
    if whole and not options.no_docs:
        PAGE.write_text(report.page(verdict, result["about"]), encoding="utf-8")
        print(f"wrote {PAGE.relative_to(PROJECT)}", file=sys.stderr)
    print(report.summary(verdict))
    return 0 if verdict.ok else 1


if __name__ == "__main__":
    raise SystemExit(main())
