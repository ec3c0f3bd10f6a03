"""The files in which a local cluster's run is kept: replaced as a whole, guarded by locks.

`state.json` has one writer, the supervisor, so readers need no lock. Two locks: the supervisor holds one for
as long as it lives, so that a directory has one supervisor; `up` and `down` hold the other, so that they come
one after the other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from cluster.local.life import Phase
from cluster.local.plan import LocalError
from cluster.local.processes import lives, wait_until

STATE_FILE: Final = "state.json"
SUPERVISOR_LOCK: Final = "supervisor.lock"
COMMAND_LOCK: Final = "command.lock"
COMMAND_LOCK_MAX_S: Final = 120.0  # another `up` may be waiting for its nodes


class NodeState(msgspec.Struct):
    """How one node does."""

    name: str
    state: Phase = Phase.STOPPED
    pid: int | None = None
    mark: str | None = None  # tells the process from a later one with its id
    since_ns: int = 0  # wall clock: when it entered this state
    started_ns: int = 0  # wall clock: when its last process was started
    restarts: int = 0  # times the supervisor started it again after it had ended by itself
    exit_code: int | None = None  # of its last process; negative: the signal's number
    retry_ns: int | None = None  # wall clock: when a failed node is started again; None = never


class RunState(msgspec.Struct):
    """How the cluster does, as of the last change."""

    supervisor_pid: int
    supervisor_mark: str
    socket: str  # where the supervisor takes commands
    nodes: list[NodeState]

    @property
    def supervised(self) -> bool:
        """The supervisor lives."""
        return lives(self.supervisor_pid, self.supervisor_mark)

    def node(self, name: str) -> NodeState:
        """The state of a node of the plan."""
        return next(node for node in self.nodes if node.name == name)

    def forget_socket(self) -> None:
        """Remove the socket and its directory, if a supervisor that was killed has left them."""
        with contextlib.suppress(OSError):
            Path(self.socket).unlink(missing_ok=True)
            Path(self.socket).parent.rmdir()

    def write(self, directory: Path) -> None:
        """Replace the file."""
        replace(directory / STATE_FILE, msgspec.json.format(msgspec.json.encode(self)))


def read_state(directory: Path) -> RunState | None:
    """The last state written; None if the cluster has never been up. LocalError if the file is damaged."""
    try:
        return msgspec.json.decode((directory / STATE_FILE).read_bytes(), type=RunState)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise LocalError(
            f"{directory / STATE_FILE} cannot be read: {error}",
            "end the node processes yourself (`ps` shows them) and remove the file",
        ) from None


def replace(file: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new."""
    beside = file.with_name(f".{file.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(file)


@contextmanager
def locked(file: Path, wait_s: float, otherwise: LocalError) -> Iterator[int]:
    """Hold the lock; `otherwise` is raised if another process keeps it for longer. Yields its descriptor.

    The lock belongs to the open file: a forked child that keeps the descriptor keeps the lock.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not wait_until(lambda: _try_lock(descriptor), wait_s):
            raise otherwise
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
