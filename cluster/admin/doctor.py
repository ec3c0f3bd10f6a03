"""The checks of `holdfast doctor`: is this machine fit to keep promises?

Each check looks at one thing and returns a `Result`; none changes anything that outlives it. The
thresholds are named here, with the reason.
"""

from __future__ import annotations

import errno
import fcntl
import importlib.util
import os
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.hosting.config.node_config import NodeConfig

PYTHON_MIN = (3, 11)
FSYNC_ROUNDS = 40
FSYNC_BLOCK_BYTES = 4096  # one small commit
FSYNC_SLOW_S = 0.010  # a commit waits for one; above this every call is felt
FSYNC_TOO_FAST_S = 0.000_010  # no medium confirms a write in less: it only says so
SPACE_LOW_BYTES = 1 << 30
SPACE_NONE_BYTES = 64 << 20  # the server refuses writes when it runs out; this is minutes away from it
FILES_MIN = 4096  # a connection is a file; workers and clients keep theirs open
PEER_S = 2.0  # for another machine to answer
CLOCK_MIN = 1_735_689_600  # 2025-01-01: a clock before this was never set


class Verdict(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Result:
    """One thing looked at."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""

    def as_json(self) -> dict[str, str]:
        """For --json."""
        return {key: str(value) for key, value in asdict(self).items()}


def check_python() -> Result:
    """The interpreter is new enough."""
    found = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro} at {sys.executable}"
    if sys.version_info >= PYTHON_MIN:
        return Result("python", Verdict.OK, found)
    return Result(
        "python", Verdict.FAIL, found, "install Python 3.11 or newer and make the environment again"
    )


def check_uvloop() -> Result:
    """The fast event loop is there."""
    if importlib.util.find_spec("uvloop") is not None:
        return Result("uvloop", Verdict.OK, "installed")
    return Result(
        "uvloop", Verdict.FAIL, "not installed", "run `pip install uvloop` in the server's environment"
    )


def check_fsync(directory: Path) -> Result:
    """How long a durable write takes where the data file is or will be."""
    block = os.urandom(FSYNC_BLOCK_BYTES)
    taken: list[float] = []
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            for _ in range(FSYNC_ROUNDS):
                file.write(block)
                file.flush()
                before = time.perf_counter()
                os.fdatasync(file.fileno())
                taken.append(time.perf_counter() - before)
    except OSError as error:
        do = f"make {directory} a directory that this user may write to, on a disk with space"
        return Result("disk", Verdict.FAIL, f"cannot write in {directory}: {error.strerror}", do)
    taken.sort()
    median, worst = taken[len(taken) // 2], taken[-1]
    found = (
        f"fsync in {directory}: median {median * 1000:.2f} ms, worst {worst * 1000:.2f} ms of {FSYNC_ROUNDS}"
    )
    if median > FSYNC_SLOW_S:
        return Result("disk", Verdict.WARN, found, "use a local SSD: every commit waits for one such write")
    if median < FSYNC_TOO_FAST_S:
        do = "memory file system, or a disk that lies? What is acknowledged there is lost with the power"
        return Result("disk", Verdict.WARN, found, do)
    return Result("disk", Verdict.OK, found)


def check_space(directory: Path) -> Result:
    """Free space beside the data file."""
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        return Result("space", Verdict.FAIL, f"{directory}: {error.strerror}", "name an existing directory")
    found = f"{free / (1 << 30):.1f} GiB free in {directory}"
    if free < SPACE_NONE_BYTES:
        return Result(
            "space", Verdict.FAIL, found, "free space now: the server refuses writes on a full disk"
        )
    if free < SPACE_LOW_BYTES:
        return Result("space", Verdict.WARN, found, "free space, or shorten the retention of namespaces")
    return Result("space", Verdict.OK, found)


def check_files() -> Result:
    """How many files, and so connections, a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} open files allowed (at most {hard if hard != resource.RLIM_INFINITY else 'unlimited'})"
    if soft >= FILES_MIN or soft == resource.RLIM_INFINITY:
        return Result("files", Verdict.OK, found)
    return Result("files", Verdict.WARN, found, f"run `ulimit -n {FILES_MIN}` before starting the server")


def check_port(ip: str, port: int, change: str = "choose another --ip or --port") -> Result:
    """Whether the server's port can be had; `change`: what to do if not."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as attempt:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            attempt.bind((ip, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                do = "right if the server runs already; else `ss -ltnp` shows whose it is"
                return Result("port", Verdict.WARN, f"{ip}:{port} is in use", do)
            return Result("port", Verdict.FAIL, f"{ip}:{port}: {error.strerror}", change)
    return Result("port", Verdict.OK, f"{ip}:{port} is free")


def check_peer(name: str, host: str, port: int) -> Result:
    """Whether another node's port for peers can be reached from here."""
    try:
        socket.create_connection((host, port), timeout=PEER_S).close()
    except OSError as error:
        found = f"{name} does not answer at {host}:{port}: {error.strerror or error}"
        do = "right while that node is not started; else open the port between the machines"
        return Result("peer", Verdict.WARN, found, do)
    return Result("peer", Verdict.OK, f"{name} answers at {host}:{port}")


def check_certificates(config: NodeConfig) -> Result:
    """Two nodes with these certificates would let each other in, and clients could be served."""
    from cluster.admin import certificates

    problems = certificates.of_one(config)
    if problems:
        found, _, do = problems[0].partition(". ")
        return Result("certificates", Verdict.FAIL, found, do)
    return Result("certificates", Verdict.OK, "a handshake with them comes about")


def check_clock(database: Path | None) -> Result:
    """The clock was set, and does not stand before what the data file has seen."""
    now = time.time_ns() // 1_000_000_000
    if now < CLOCK_MIN:
        return Result(
            "clock", Verdict.FAIL, f"it says {time.ctime(now)}", "set it, and run a time service (NTP)"
        )
    if database is not None and database.exists():
        ahead = database.stat().st_mtime - now
        if ahead > 1:
            found = f"it stands {ahead:.0f} s before the last change of {database}"
            return Result("clock", Verdict.WARN, found, "set it: timers would fire late by that much")
    return Result("clock", Verdict.OK, "plausible")


def check_database(database: Path, if_damaged: str = "see the server's log") -> Result:
    """The data file, if there is one, is ours, whole, and of a version that this program reads."""
    from history_store.storage.contract import StorageDamaged, StorageError
    from history_store.storage.files import JOURNAL_SUFFIX, inspect
    from history_store.storage.journal import read_epoch

    if not database.exists():
        return Result("database", Verdict.OK, f"{database} does not exist yet; the server makes it")
    holder = _holder(database)
    if holder:
        # A file that is being written is never whole for a reader beside it: its server is the judge.
        return Result("database", Verdict.OK, f"{database} is in use by {holder}; not examined")
    journal = database.with_name(database.name + JOURNAL_SUFFIX)
    try:
        inspect(database)
        left = journal.exists()
        if left:
            read_epoch(journal)
    except StorageDamaged as error:
        return Result("database", Verdict.FAIL, str(error), if_damaged)
    except StorageError as error:
        found, _, do = str(error).partition(". ")
        return Result("database", Verdict.FAIL, found, do or "see the server's log")
    size = f"{database}: {database.stat().st_size / (1 << 20):.1f} MiB"
    unclean = "; not closed cleanly, the next start reads its journal" if left else ""
    return Result("database", Verdict.OK, size + unclean)


def _holder(database: Path) -> str:
    """Who has the data file open, in words; empty if nobody. Leaves no lock and no lock file behind."""
    try:
        with database.with_name(database.name + "-lock").open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode(errors="replace").strip() or "another process"
    except OSError:
        return ""
    return ""


def examine(database: Path | None, ip: str, port: int) -> list[Result]:
    """All checks of a single server, in the order in which trouble should be mended."""
    from cluster.hosting.replicas.repair import RESTORE

    directory = database.resolve().parent if database is not None else Path.cwd()
    return _examine(directory, database, [lambda: check_port(ip, port)], RESTORE)


def examine_node(config: NodeConfig) -> list[Result]:
    """Those of a region's node, as its node.toml has it: its directory, its ports, and the other nodes."""
    from cluster.hosting.process.region_server import DATA_FILE
    from cluster.hosting.replicas.repair import replacing

    data = Path(config.node.data_dir)
    listen = config.listen
    network: list[Callable[[], Result]] = [
        partial(check_port, listen.host, port, f"correct [listen] in {config.file}")
        for port in (listen.grpc, listen.peers, listen.metrics)
        if port is not None
    ]
    others = [(one.name, one.host, one.port) for one in config.members if one.name != config.node.name]
    for name, host, port in others or [("a node to join", *seed) for seed in config.seeds]:
        network.append(partial(check_peer, name, host, port))
    if config.tls.peers is not None or config.tls.grpc is not None:
        network.append(partial(check_certificates, config))
    # The start makes the directory, if it is not there.
    directory = next(one for one in (data, *data.parents) if one.is_dir())
    return _examine(directory, data / DATA_FILE, network, replacing(config.node.name, str(data)))


def _examine(
    directory: Path, database: Path | None, network: list[Callable[[], Result]], if_damaged: str
) -> list[Result]:
    checks: list[Callable[[], Result]] = [
        check_python,
        check_uvloop,
        lambda: check_fsync(directory),
        lambda: check_space(directory),
        check_files,
        *network,
        lambda: check_clock(database),
    ]
    if database is not None:
        checks.append(lambda: check_database(database, if_damaged))
    return [check() for check in checks]
