"""A real server process, and what can be done to it from outside: kill, freeze, photograph its files.

It knows nothing of the server's inside except which files there are, and, to tear a tail, where rounds begin
in the journal.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from history_store.storage.files import DATA_SUFFIXES, JOURNAL_SUFFIX
from history_store.storage.journal import BLOCK_BYTES, newest

READY_S_MAX = 240.0  # a busy machine
STOPPED_S_MAX = 120.0
PROGRAM = (sys.executable, "-m", "cluster.admin.main")
TORN_ROUNDS_MAX = 40


class ServerError(Exception):
    """The server did not do what the suite needs; the message ends with what it said."""


class Server:
    """A data file and the process that serves it, one life after the other."""

    def __init__(
        self, database: Path, program: tuple[str, ...] = PROGRAM, arguments: tuple[str, ...] = ()
    ) -> None:
        self.database = database
        self.log = database.with_suffix(".stderr")
        self.program = program
        self.arguments = arguments
        self.address = ""
        self.process: asyncio.subprocess.Process | None = None
        self.lives = 0
        self.ready_ms: list[float] = []

    @property
    def pid(self) -> int:
        """The process; it must have been started."""
        assert self.process is not None, "the server was never started"
        return self.process.pid

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self.process is not None and self.process.returncode is None

    async def spawn(self) -> None:
        """Start the process, and do not wait for it."""
        assert not self.running, "one process a file"
        command = [*self.program, "server", "start-dev", "--port", "0", "--json"]
        command += ["--db-filename", str(self.database), *self.arguments]
        self.lives += 1
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )

    async def start(self) -> str:
        """Start the process and wait until it serves. Returns the address."""
        began = time.monotonic()
        await self.spawn()
        assert self.process is not None
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(READY_S_MAX):
                line = await self.process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise ServerError(f"it did not serve within {READY_S_MAX} s: {self.said()}") from None
        if not line:
            code = await self.process.wait()
            raise ServerError(f"it ended with {code} at its start: {self.said()}")
        self.ready_ms.append((time.monotonic() - began) * 1e3)
        self.address = json.loads(line)["address"]
        return self.address

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(READY_S_MAX):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            raise ServerError(f"SIGTERM did not end it within {READY_S_MAX} s: {self.said()}") from None

    def freeze(self) -> None:
        """SIGSTOP, and do not return before every thread stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        deadline = time.monotonic() + STOPPED_S_MAX
        while not all(_state(task) in "TZX" for task in Path(f"/proc/{self.pid}/task").iterdir()):
            if time.monotonic() > deadline:
                raise ServerError("SIGSTOP did not stop it")

    def thaw(self) -> None:
        """SIGCONT."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def photograph(self, directory: Path) -> Path:
        """Copy the data files as they are; the process must be frozen or dead. Returns the copy's path.

        That is what a machine finds whose power failed at this instant, had its disk written everything: the
        files of one moment, possibly amid a write.
        """
        directory.mkdir(parents=True)
        for suffix in (*DATA_SUFFIXES, "-shm"):
            with suppress(FileNotFoundError):
                shutil.copyfile(f"{self.database}{suffix}", directory / f"{self.database.name}{suffix}")
        return directory / self.database.name

    def said(self) -> str:
        """The end of what it wrote to stderr."""
        with suppress(FileNotFoundError):
            return self.log.read_text(errors="replace")[-2000:].strip() or "(nothing)"
        return "(nothing)"

    def complaints(self) -> list[str]:
        """Lines of stderr that no fault outside of the process explains."""
        if not self.log.exists():
            return []
        text = self.log.read_text(errors="replace")
        found = [line for line in text.splitlines() if line.startswith("Traceback") or "[error" in line]
        return [f"{line.strip()} (in {self.log})" for line in found[:5]]


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def tear_tail(database: Path, rng: random.Random) -> tuple[int, int]:
    """Cut the last rounds of a photograph's journal at a random byte, as a disk that lies may lose them.

    Only rounds that are in the journal alone are of interest, and they are at its end. Returns how many
    rounds the journal showed, and how many it shows now.
    """
    journal = database.with_name(database.name + JOURNAL_SUFFIX)
    if not journal.exists():
        return 0, 0
    rounds = newest(journal)
    if not rounds:
        return 0, 0
    lost = rounds[-rng.randint(1, min(len(rounds), TORN_ROUNDS_MAX)) :]
    with journal.open("r+b") as file:
        for number, (offset, _) in enumerate(lost):
            at = rng.randrange(BLOCK_BYTES) if number == 0 else 0  # the first of them may be torn anywhere
            file.seek(offset + at)
            # a torn sector may also hold anything
            file.write(rng.randbytes(BLOCK_BYTES - at) if rng.randrange(2) else bytes(BLOCK_BYTES - at))
    return len(rounds), len(newest(journal))
