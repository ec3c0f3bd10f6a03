"""Processes that are not our children: whether one still lives, and ending it.

A process id alone may belong to somebody else by now. Its mark, the time it was started, tells.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

POLL_S = 0.02


def mark_of(pid: int) -> str | None:
    """What tells this process from a later one with the same id; None if it is gone (or a zombie).

    One whose first thread has ended before the others still has its ports and locks: that is no zombie yet.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
        ended = fields[0] in "ZX" and int(fields[17]) <= 1  # threads, itself included
        return None if ended else fields[19]
    shown = subprocess.run(  # noqa: S603 - a number
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    state, _, started = shown.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def lives(pid: int | None, mark: str | None) -> bool:
    """Whether exactly this process is still there."""
    return pid is not None and mark is not None and mark_of(pid) == mark


def end(pid: int, mark: str) -> None:
    """SIGKILL it and wait until it is gone. Nothing happens if it is gone already."""
    if lives(pid, mark):
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not lives(pid, mark), 10.0)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Look again and again; whether it came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)  # noqa: TID251 - waits for other processes, which no clock of ours moves
    return True
