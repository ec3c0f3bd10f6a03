"""Programs in other languages that check the server: where they come from, how they are built, what they say.

Each SDK's program is one small directory here (`go/`, `typescript/`, `java/`) and needs two things of the
machine: the language's tools, and the SDK from the language's own registry. It is built once into the cache,
again when its sources change. A program takes the server's address, and prints one line for each check:
`ok NAME MILLISECONDS` or `FAIL NAME MILLISECONDS WHY`.

The `temporal` command line is taken from HOLDFAST_TEMPORAL_CLI, the cache, or PATH. A build takes ten minutes
of a core, so it is made by `python -m tests.compat.sdks.run --build-cli` only, never by a test.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("HOLDFAST_TOOLS_CACHE", "~/.cache/holdfast-tools")).expanduser()
PREPARE_S_MAX = 600
RUN_S_MAX = 240

# The newest version whose module builds as it comes from the Go proxy; later ones replace a module by a
# directory that the proxy does not have, so they build from a checkout only.
CLI_MODULE = "github.com/temporalio/cli/cmd/temporal@v1.5.1"


class MissingError(Exception):
    """The machine lacks what a program needs; the message says what."""


@dataclass(frozen=True)
class Outcome:
    """One line of a program."""

    name: str
    passed: bool
    took_ms: int
    why: str


@dataclass(frozen=True)
class Program:
    """A check of one SDK."""

    language: str
    title: str
    version: str
    tools: tuple[str, ...]
    prepare: Callable[[Path], None]
    command: Callable[[Path], list[str]]


def _run(directory: Path, *command: str, **environment: str) -> None:
    """Run one step of a build; a failure is a registry that cannot be reached, or a source that is wrong."""
    done = subprocess.run(
        command,
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=PREPARE_S_MAX,
        check=False,
    )
    if done.returncode:
        said = (done.stderr + done.stdout).strip()
        raise subprocess.CalledProcessError(done.returncode, command, said[:3000])


def _fetch(registry: str, directory: Path, *command: str, **environment: str) -> None:
    try:
        _run(directory, *command, **environment)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise MissingError(f"the SDK cannot be had from {registry}: {error.output}") from None


def _prepare_go(directory: Path) -> None:
    _fetch("the Go module proxy", directory, "go", "mod", "tidy", GOFLAGS="-mod=mod")
    _run(directory, "go", "build", "-buildvcs=false", "-o", "check", ".", GOFLAGS="")


def _prepare_typescript(directory: Path) -> None:
    once = ("--no-audit", "--no-fund", "--fetch-retries=0")
    _fetch("the npm registry", directory, "npm", "install", *once)


def _prepare_java(directory: Path) -> None:
    _fetch("Maven Central", directory, "mvn", "-q", "-B", "dependency:copy-dependencies")
    sources = [str(path) for path in sorted(directory.glob("src/main/java/check/*.java"))]
    _run(directory, "javac", "-parameters", "-d", "classes", "-cp", "target/dependency/*", *sources)


PROGRAMS = {
    program.language: program
    for program in (
        Program(
            "go",
            "Go, `go.temporal.io/sdk`",
            "1.50.0",
            ("go",),
            _prepare_go,
            lambda directory: [str(directory / "check")],
        ),
        Program(
            "typescript",
            "TypeScript, `@temporalio/worker` and `@temporalio/client`",
            "1.24.0",
            ("node", "npm"),
            _prepare_typescript,
            lambda directory: ["node", str(directory / "check.mjs")],
        ),
        Program(
            "java",
            "Java, `io.temporal:temporal-sdk`",
            "1.38.0",
            ("java", "javac", "mvn"),
            _prepare_java,
            lambda directory: [
                "java",
                "-cp",
                f"{directory}/classes:{directory}/target/dependency/*",
                "check.Check",
            ],
        ),
    )
}


def _sources(language: str) -> list[Path]:
    return sorted(path for path in (HERE / language).rglob("*") if path.is_file())


def prepared(program: Program) -> list[str]:
    """Build a program if its sources are new. Returns the command to which the address is added."""
    for tool in program.tools:
        if shutil.which(tool) is None:
            raise MissingError(f"{tool} is not installed")
    sources = _sources(program.language)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    directory = CACHE / f"sdk-check-{program.language}"
    mark = directory / "built"
    if not mark.exists() or mark.read_text() != digest:
        for path in sources:
            target = directory / path.relative_to(HERE / program.language)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        program.prepare(directory)
        mark.write_text(digest)
    return program.command(directory)


def run(program: Program, address: str, only: str = "") -> list[Outcome]:
    """Run a program against a server, and read what it says. Diagnostics of the SDK go to our stderr."""
    command = [*prepared(program), address, *([only] if only else [])]
    done = subprocess.run(
        command, cwd=CACHE, stdout=subprocess.PIPE, text=True, timeout=RUN_S_MAX, check=False
    )
    outcomes = []
    for line in done.stdout.splitlines():
        verdict, _, rest = line.partition(" ")
        if verdict in ("ok", "FAIL"):
            name, took_ms, *why = rest.split(" ", 2)
            outcomes.append(Outcome(name, verdict == "ok", int(took_ms), "".join(why)))
    if not outcomes or (done.returncode != 0 and all(outcome.passed for outcome in outcomes)):
        raise RuntimeError(f"{program.language} ended with {done.returncode}: {done.stdout[-2000:]}")
    return outcomes


def cli() -> Path:
    """Where the `temporal` command line is."""
    named = os.environ.get("HOLDFAST_TEMPORAL_CLI")
    if named is not None:
        return Path(named)
    cached = CACHE / "bin/temporal"
    if cached.exists():
        return cached
    found = shutil.which("temporal")
    if found is None:
        raise MissingError("no temporal CLI; build one: python -m tests.compat.sdks.run --build-cli")
    return Path(found)


def build_cli() -> Path:
    """Build the `temporal` command line from the Go module proxy into the cache; takes minutes."""
    if shutil.which("go") is None:
        raise MissingError("go is not installed")
    target = CACHE / "bin"
    target.mkdir(parents=True, exist_ok=True)
    command = ["go", "install", "-ldflags", "-s -w", CLI_MODULE]
    environment = {**os.environ, "GOBIN": str(target), "GOFLAGS": ""}
    if subprocess.run(command, cwd=target, env=environment, stdout=sys.stderr, check=False).returncode:
        raise MissingError("the temporal CLI cannot be had from the Go module proxy")
    return target / "temporal"
