"""`DevServer`: a real server for tests, started as a process of its own on a free port.

    async with DevServer() as server:
        client = await server.connect()
        ...

Nothing is imitated: it is `holdfast server start-dev`, so a test can also kill it (SIGKILL, as a crash
does) and start it again on the same data file and the same port, where clients and workers find it.
Not here: faults other than death (the chaos room has them), and any knowledge of how a server works.
"""

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from temporalio.client import Client

READY_MAX_S = 60.0  # far above the one second it takes: a test machine may be busy
STOP_MAX_S = 30.0  # a graceful stop; what still runs then is killed
POLL_S = 0.01
PORT_ATTEMPTS = 5  # another process may take a free port before the server does
LOG_TAIL_BYTES = 4000


class DevServerError(Exception):
    """The server did not start, or is not running; the message ends with its log."""


class DevServer:
    """One `holdfast server start-dev` process, as an async context manager."""

    def __init__(
        self,
        *,
        db_path: str | os.PathLike[str] | None = None,
        port: int = 0,
        namespaces: Sequence[str] = (),
        search_attributes: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
        log_level: str = "warn",
        executable: str | None = None,
    ) -> None:
        """Describe the server; entering the context starts it.

        Without `db_path` the data is in a file of a temporary directory that goes away with the
        context, so that `restart` finds it. Port 0 is any free port, kept over restarts.
        `arguments` are further flags of `holdfast server start-dev`.
        """
        self._given_db_path = Path(db_path) if db_path is not None else None
        self._given_port = port
        self._namespaces = tuple(namespaces)
        self._search_attributes = dict(search_attributes or {})
        self._arguments = tuple(arguments)
        self._log_level = log_level
        self._executable = executable
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._port = port

    @property
    def port(self) -> int:
        """The port of its gRPC API."""
        return self._port

    @property
    def address(self) -> str:
        """Where it serves, as host:port."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process id, while it runs."""
        return self._running().pid

    @property
    def db_path(self) -> Path:
        """The data file."""
        if self._given_db_path is not None:
            return self._given_db_path
        return self._scratch() / "holdfast.db"

    @property
    def log_path(self) -> Path:
        """What it wrote to stderr, over all of its lives."""
        return self._scratch() / "server.log"

    def log(self) -> str:
        """The log so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    async def connect(self, namespace: str = "default", **settings: Any) -> Client:
        """A client of the official SDK; `settings` are those of `temporalio.client.Client.connect`."""
        return await Client.connect(self.address, namespace=namespace, **settings)

    async def start(self) -> None:
        """Start the process and wait until it answers."""
        if self._process is not None and self._process.poll() is None:
            raise DevServerError(f"already running as process {self._process.pid}")
        attempts = 1 if self._port else PORT_ATTEMPTS
        for _ in range(attempts):
            if attempts > 1:
                self._port = _free_port()
            self._process = self._spawn()
            if await self._answers(self._process):
                return
            if "address already in use" not in self._log_tail().lower():
                break
        code = None if self._process is None else self._process.poll()
        await self.kill()
        what = f"ended with code {code}" if code is not None else f"did not answer within {READY_MAX_S} s"
        raise DevServerError(f"holdfast {what}; its log ends with:\n{self._log_tail()}")

    async def stop(self) -> int:
        """Ask it to end (SIGTERM), wait, and return its exit code; 0 is a clean end."""
        process = self._running()
        process.send_signal(signal.SIGTERM)
        return await self._ended(process)

    async def kill(self) -> None:
        """End it as a crash does (SIGKILL). Nothing it acknowledged may be lost by this."""
        process = self._process
        if process is not None and process.poll() is None:
            process.kill()
            await self._ended(process)

    async def restart(self) -> None:
        """Kill it if it runs, and start it again on the same data and port."""
        await self.kill()
        await self.start()

    async def __aenter__(self) -> DevServer:
        """Start it."""
        try:
            await self.start()
        except BaseException:
            self._clean_up()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it and remove its scratch directory. A given data file stays."""
        await self.kill()
        self._clean_up()
        self._port = self._given_port

    # ------------------------------------------------------------------------------------------ inside

    def _command(self) -> list[str]:
        command = [self._executable] if self._executable else command_of_holdfast()
        command += ["server", "start-dev", "--ip", "127.0.0.1", "--port", str(self._port), "--headless"]
        command += ["--db-filename", str(self.db_path), "--log-level", self._log_level]
        for name in self._namespaces:
            command += ["--namespace", name]
        for name, kind in self._search_attributes.items():
            command += ["--search-attribute", f"{name}={kind}"]
        return [*command, *self._arguments]

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            return subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603 - ours

    async def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the port accepts and GetSystemInfo answers; False if the process ends or time is up."""
        end = time.monotonic() + READY_MAX_S
        while process.poll() is None and time.monotonic() < end:
            if _accepts(self._port):
                try:
                    await Client.connect(self.address, namespace="default")
                except RuntimeError:  # what the SDK raises while the server is not ready yet
                    await asyncio.sleep(POLL_S)
                    continue
                # Another process may have had the port all along: ours must still be there.
                return process.poll() is None
            await asyncio.sleep(POLL_S)
        return False

    async def _ended(self, process: subprocess.Popen[bytes]) -> int:
        end = time.monotonic() + STOP_MAX_S
        while process.poll() is None:
            if time.monotonic() > end:
                process.kill()
            await asyncio.sleep(POLL_S)
        code = process.poll()
        assert code is not None
        return code

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            raise DevServerError("the server is not running")
        return self._process

    def _scratch(self) -> Path:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="holdfast-")
        return Path(self._directory.name)

    def _clean_up(self) -> None:
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None

    def _log_tail(self) -> str:
        return self.log()[-LOG_TAIL_BYTES:]


def command_of_holdfast() -> list[str]:
    """The program of this interpreter's environment, else the one on the PATH."""
    beside = Path(sys.executable).parent / "holdfast"
    if beside.exists():
        return [str(beside)]
    found = shutil.which("holdfast")
    if found is None:
        raise DevServerError(
            "no `holdfast` program beside this Python or on the PATH: install the package first"
        )
    return [found]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
