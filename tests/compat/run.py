"""Runs Temporal's own sdk-python suite against this server, and says what passes (see README.md beside this).

By default the suite starts the server itself, exactly as it starts Temporal's: through an executable in its
temporary directory. So the drop-in contract of `holdfast server start-dev` is tested along with the rest, and
no test that insists on a local server skips itself. With `--address` it uses a server that runs already;
with `--region 3` a region of three nodes that it starts: every connection of the suite leads to one of them,
and what passes on one node and not there is named.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.local import LocalCluster
from tests.compat import doorway, report, suite

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
    parser.add_argument("--region", type=int, default=0, metavar="NODES", help="against a region of so many")
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
        + (", started beforehand" if options.address else ", started by the suite as its dev server")
        if not options.region
        else f"holdfast {version.group(1) if version else '?'}, a region of {options.region} nodes",
        "machine": f"Python {platform.python_version()}, {os.cpu_count()} cores; "
        f"{options.workers} test processes, {seconds:.0f} s",
        "to repeat": f"`make compat REGION={options.region}`" if options.region else "`make compat`",
    }


@contextlib.contextmanager
def region(options: argparse.Namespace, where: Path) -> Iterator[None]:
    """A region for the suite's servers to be ways to, while this lasts; without `--region`, nothing."""
    if not options.region:
        suite.install_executables(where, [str(Path(options.holdfast).absolute())], durable=options.db)
        yield
        return
    settings = where / "dynamic.toml"
    pairs = (setting.partition("=") for setting in suite.DYNAMIC_CONFIG)
    settings.write_text("".join(f'"{key}" = {value}\n' for key, _, value in pairs), encoding="utf-8")
    directory = where / "region"
    cluster = LocalCluster(
        directory, nodes=options.region, settings={"dynamic_config": {"path": str(settings)}}
    )
    try:
        cluster.up(owned=True)
        os.environ |= {
            doorway.NODES: ",".join(cluster.endpoints()),
            doorway.SETTINGS: "\n".join(suite.DYNAMIC_CONFIG),
            doorway.PROGRAM: str(Path(options.holdfast).absolute()),
        }
        # By its path: where it is started another project's `tests` is in the way.
        suite.install_executables(where, [sys.executable, "-P", str(HERE / "doorway.py")], durable=False)
        yield
    finally:
        cluster.down()


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the suite and return the whole report."""
    directory = suite.find(options.suite_dir, fetch=options.fetch)
    python = suite.environment()
    tiers = {int(tier) for tier in options.tier.split(",")}
    selected = options.tests or suite.selection(tiers)
    began = time.monotonic()
    where = Path(tempfile.mkdtemp(prefix="holdfast-compat-"))
    print(f"logs of pytest and of the servers: {where}", file=sys.stderr)
    with region(options, where):
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
        kept = options.report or PROJECT / "build" / _name(options)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(result, indent=1), encoding="utf-8")
        print(f"report: {kept}", file=sys.stderr)
    verdict = report.judge(result["tests"], report.load_reasons(HERE / "expected.toml"))
    whole = not (options.tests or options.expression) and {"1", "2"} <= set(options.tier.split(","))
    if whole and not options.no_docs:
        before = PAGE.read_text(encoding="utf-8")
        if options.region:
            page = report.with_region(before, report.region_section(verdict, result["about"]))
        else:
            page = report.with_region(report.page(verdict, result["about"]), report.region_of(before))
        PAGE.write_text(page, encoding="utf-8")
        print(f"wrote {PAGE.relative_to(PROJECT)}", file=sys.stderr)
    print(report.summary(verdict))
    same = True
    if options.region:
        same = tell_differences(result["tests"], PROJECT / "build" / "compat-report.json", whole=whole)
    return 0 if verdict.ok and same else 1


def _name(options: argparse.Namespace) -> str:
    return "compat-region-report.json" if options.region else "compat-report.json"


def tell_differences(tests: dict[str, Any], alone: Path, *, whole: bool) -> bool:
    """Name what passes on one node, as its last report has it, and not in the region. True: nothing."""
    if not alone.exists():
        print(f"no report of one node at {alone}: the list of known failures stands in for it")
        return True
    known = json.loads(alone.read_text(encoding="utf-8"))["tests"]
    worse, better = report.differences(known, tests)
    left = [name for name in known if name not in tests] if whole else []
    for name in left:
        print(f"ran on one node and not in the region: {name}")
    for name in worse:
        print(f"passes on one node and not in the region: {name}")
    for name in better:
        print(f"passes in the region and not on one node: {name}")
    print(f"against one node: {len(worse)} worse, {len(better)} better, {len(left)} not run")
    return not worse and not left


if __name__ == "__main__":
    raise SystemExit(main())
