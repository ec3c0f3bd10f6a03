"""Where Temporal's sdk-python suite comes from, and the environment it runs in; nothing of it is kept here.

The suite of tag 1.31.0 is the oracle. It is not in any package on PyPI (the sdist holds no tests), so it has
to come from a checkout or an archive of the tag: a directory that somebody names, the one in the cache, or a
download from GitHub where that is reachable and asked for. Its packages live in a virtual environment of
their own, with the versions of the suite's lock file, so that the SDK under test is exactly 1.31.0.

How the suite finds our server: the SDK's core library looks for an executable `$TMPDIR/temporal-<version>`
and runs it without any download. We put small shell scripts under those names, which `exec` holdfast.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tarfile
import urllib.request
from pathlib import Path

VERSION = "1.31.0"
CACHE = Path(os.environ.get("HOLDFAST_TOOLS_CACHE", "~/.cache/holdfast-tools")).expanduser()
ARCHIVE_URL = f"https://github.com/temporalio/sdk-python/archive/refs/tags/{VERSION}.tar.gz"
WANTED = ("tests/", "scripts/", "pyproject.toml", "README.md")

# The versions of the suite's own lock file. pytest-asyncio must stay at 0.21: the suite replaces its event
# loop fixture, which later versions no longer have.
REQUIREMENTS = (
    f"temporalio=={VERSION}",
    "nexus-rpc==1.4.0",
    "protobuf==6.33.6",
    "googleapis-common-protos==1.75.0",
    "grpcio==1.81.1",
    "opentelemetry-api==1.41.1",
    "opentelemetry-sdk==1.41.1",
    "pydantic==2.13.4",
    "psutil==5.9.8",
    "cryptography==49.0.0",
    "httpx>=0.28.1",
    "pytest==9.0.3",
    "pytest-asyncio==0.21.2",
    "pytest-timeout==2.4.0",
    "pytest-xdist==3.8.0",
)

# The tiers of the facts that everybody quotes: what a tier adds to the one before it.
TIER_1 = (
    "tests/worker/test_workflow.py",
    "tests/worker/test_activity.py",
    "tests/test_client.py",
    "tests/worker/test_worker.py",
    "tests/test_service.py",
)
TIER_3 = ("tests/test_activity.py",)
TIER_4 = ("tests/nexus",)
TIER_5 = ("tests/contrib",)

SERVER_NAMES = ("temporal-v1.7.1-system-nexus-operations", f"temporal-sdk-python-{VERSION}")
TIME_SKIPPING_NAME = f"temporal-test-server-sdk-python-{VERSION}"

# What the suite's conftest.py hands to the server that it starts; a server we start for it gets the same.
DYNAMIC_CONFIG = (
    "system.forceSearchAttributesCacheRefreshOnRead=true",
    "limit.historyCount.suggestContinueAsNew=50",
    "system.enableEagerWorkflowStart=true",
    "frontend.enableExecuteMultiOperation=true",
    "frontend.workerVersioningWorkflowAPIs=true",
    "frontend.workerVersioningDataAPIs=true",
    "system.enableDeploymentVersions=true",
    "frontend.activityAPIsEnabled=true",
    "frontend.enableCancelWorkerPollsOnShutdown=true",
    "component.nexusoperations.recordCancelRequestCompletionEvents=true",
    "activity.enableStandalone=true",
    "activity.startDelayEnabled=true",
    "history.enableChasm=true",
    "history.enableTransitionHistory=true",
    "history.enableCHASMCallbacks=true",
    "history.enableCHASMSignalBacklinks=true",
    "nexusoperation.enableStandalone=true",
    'system.system.refreshNexusEndpointsMinWait="0s"',
    "history.enableSignalWithStartFromWorkflow=true",
    "history.enableUpdateCallbacks=true",
)


class SuiteMissing(Exception):
    """The suite is not on this machine, and nobody asked to fetch it."""


def selection(tiers: set[int]) -> list[str]:
    """Turn tiers into pytest arguments; tier 2 is everything that no other tier names."""
    later = {3: TIER_3, 4: TIER_4, 5: TIER_5}
    if 2 not in tiers:
        return [path for tier in sorted(tiers) for path in ({1: TIER_1} | later)[tier]]
    left_out = [] if 1 in tiers else list(TIER_1)
    for tier, paths in later.items():
        left_out += [] if tier in tiers else list(paths)
    return ["tests", *(f"--ignore={path}" for path in left_out)]


def is_suite(directory: Path) -> bool:
    """Tell whether a directory is an export of the right tag."""
    project = directory / "pyproject.toml"
    return (
        project.is_file()
        and f'version = "{VERSION}"' in project.read_text(encoding="utf-8")
        and (directory / "tests" / "conftest.py").is_file()
    )


def find(given: str | None, *, fetch: bool) -> Path:
    """Find the suite: the directory given, the environment's, the cache, or (only when asked) GitHub."""
    named = given or os.environ.get("HOLDFAST_COMPAT_SUITE")
    cached = CACHE / f"sdk-python-{VERSION}"
    directory = Path(named).expanduser().resolve() if named else cached
    if fetch and not named and not is_suite(cached):
        download(ARCHIVE_URL, cached)
    if not is_suite(directory):
        raise SuiteMissing(
            f"sdk-python's tests of tag {VERSION} are not in {directory}; they are in no PyPI package. Name "
            "an export of the tag with --suite-dir (or HOLDFAST_COMPAT_SUITE), or use --fetch (GitHub)."
        )
    if (directory / "temporalio").exists():
        raise SuiteMissing(
            f"{directory} holds the SDK's sources beside the tests, and they would be imported instead of "
            f"the wheel; export only the tests: git archive {VERSION} {' '.join(WANTED)} | tar x -C DIR"
        )
    return directory


def download(url: str, target: Path) -> None:
    """Unpack what the suite needs from an archive of the tag, and nothing beside it."""
    target.mkdir(parents=True, exist_ok=True)
    with (
        urllib.request.urlopen(url, timeout=60) as answer,
        tarfile.open(fileobj=answer, mode="r|gz") as archive,
    ):
        for member in archive:
            inside = member.name.partition("/")[2]
            if inside.startswith(WANTED):
                member.name = inside
                archive.extract(member, target, filter="data")


def environment() -> Path:
    """Make (once) the virtual environment of the suite, and return its interpreter."""
    directory = CACHE / f"compat-{VERSION}"
    python = directory / "bin" / "python"
    digest = hashlib.sha256("\n".join(REQUIREMENTS).encode()).hexdigest()
    stamp = directory / ".holdfast-requirements"
    if stamp.is_file() and stamp.read_text() == digest and python.is_file():
        return python
    print(f"installing the suite's environment into {directory} (once)", file=sys.stderr)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(directory)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS]
    subprocess.run(install, check=True)
    stamp.write_text(digest)
    return python


def install_executables(directory: Path, program_line: list[str], *, durable: bool) -> None:
    """Put our server under the names that the SDK's core library looks for in its temporary directory."""
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    program, log = shlex.join(program_line), f'"{logs}/server-$$.log"'
    database = f' --db-filename "{directory}/server-$$.db"' if durable else ""
    script = f'#!/bin/sh\nexec {program} "$@"{database} 2>>{log}\n'
    for name in SERVER_NAMES:
        _write_executable(directory / name, script)
    _write_executable(
        directory / TIME_SKIPPING_NAME, f'#!/bin/sh\nexec {program} server start-test "$@" 2>>{log}\n'
    )


def _write_executable(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
