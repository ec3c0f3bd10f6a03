"""Starts the server that is measured, on a core of its own, and reads what it costs from /proc."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from temporalio.api.workflowservice.v1 import GetSystemInfoResponse

from benchmarks.raw_client import Connection, RpcError, connect, workflow_path

TICKS = os.sysconf("SC_CLK_TCK")
READY_SECONDS_MAX = 60.0
HOST = "127.0.0.1"
SYSTEM_INFO = workflow_path("GetSystemInfo")


@cache
def cores() -> tuple[set[int], set[int]]:
    """Return the cores of the server and of the clients; the same set on a machine of one core.

    The first answer is kept, since this process then moves to the clients' cores.
    """
    every = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return ({every[0]}, set(every[1:])) if len(every) > 1 else (set(every), set(every))


def pinned(command: list[str], on: set[int], **options: object) -> subprocess.Popen[bytes]:
    """Start a process that may run on these cores only (a child inherits its parent's affinity)."""
    if not on or not hasattr(os, "sched_setaffinity"):
        return subprocess.Popen(command, **options)  # type: ignore[call-overload, no-any-return]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, on)
    try:
        return subprocess.Popen(command, **options)  # type: ignore[call-overload, no-any-return]
    finally:
        os.sched_setaffinity(0, before)


def free_port() -> int:
    """Ask the kernel for a port that nobody uses."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def process_tree(pid: int) -> list[int]:
    """List a process and all its descendants."""
    found, todo = [], [pid]
    while todo:
        each = todo.pop()
        found.append(each)
        for listing in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                todo += map(int, listing.read_text().split())
            except OSError:
                continue
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process tree, finished children included."""
    total = 0
    for each in process_tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / TICKS


def rss_mib(pid: int) -> float:
    """Resident memory of a process tree in MiB."""
    total = 0
    for each in process_tree(pid):
        try:
            status = Path(f"/proc/{each}/status").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return total / 1024


class Server:
    """A durable dev server in a directory of its own, or one that runs already at an address."""

    def __init__(self, holdfast: str, directory: Path, arguments: list[str]) -> None:
        self._holdfast = holdfast
        self._arguments = arguments
        self.directory = directory
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_seconds = 0.0

    @property
    def address(self) -> str:
        """Where clients connect."""
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self.process is not None, "the server does not run"
        return self.process.pid

    async def start(self) -> None:
        """Start it and wait until it answers GetSystemInfo."""
        self.port = free_port()
        command = [self._holdfast, "server", "start-dev", "--port", str(self.port), "--headless"]
        command += [
            "--db-filename",
            str(self.directory / "bench.db"),
            "--log-level",
            "warn",
            *self._arguments,
        ]
        with (self.directory / "server.log").open("ab") as log:
            began = time.perf_counter()
            self.process = pinned(command, cores()[0], stdout=log, stderr=log)
        while True:
            if self.process.poll() is not None or time.perf_counter() - began > READY_SECONDS_MAX:
                raise SystemExit(f"the server did not start; its log:\n{self.log_tail()}")
            try:
                connection = await connect(HOST, self.port)
            except (OSError, RpcError):
                await asyncio.sleep(0.005)
                continue
            try:
                GetSystemInfoResponse.FromString(await connection.call(SYSTEM_INFO, b""))
                break
            except RpcError:
                await asyncio.sleep(0.005)
            finally:
                connection.close()
        self.ready_seconds = time.perf_counter() - began

    async def connect(self) -> Connection:
        """Open a connection to it."""
        return await connect(HOST, self.port)

    def stop(self, how: int = signal.SIGTERM) -> None:
        """End it; SIGKILL when it does not go."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def cpu(self) -> float:
        """CPU seconds so far."""
        return cpu_seconds(self.pid)

    def rss(self) -> float:
        """Resident memory in MiB."""
        return rss_mib(self.pid)

    def log_tail(self) -> str:
        """Return the end of its log."""
        return (self.directory / "server.log").read_text(errors="replace")[-2000:]


@asynccontextmanager
async def running(holdfast: str, where: str | None, arguments: list[str]) -> AsyncIterator[Server]:
    """Run a server for the length of a block, with a fresh file that is removed afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=where))
    server = Server(holdfast, directory, arguments)
    try:
        await server.start()
        yield server
    except RpcError:
        print(f"the server's log ends:\n{server.log_tail()}", file=sys.stderr)
        raise
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def sdk_worker(address: str, queue: str, *options: str) -> AsyncIterator[int]:
    """Run a worker of the Python SDK as a process; give its pid. It may use every core: an SDK needs more."""
    command = ["-m", "benchmarks.sdk_worker", address, queue, *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent
    )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, set.union(*cores()))
    assert process.stdout is not None
    try:
        if await asyncio.wait_for(process.stdout.readline(), 30) != b"ready\n":
            raise SystemExit("the SDK worker did not start")
        yield process.pid
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
