"""A node whose disk can be made slow: the program that the region suite starts in place of `holdfast`.

    python -m chaos.live.slow_disk server start --config DIRECTORY/node.toml

It is the node's own program, with a wait before everything that goes to the disk: rounds and batches of rows,
each on the thread that waits for the disk anyway. How long is read from DIRECTORY/disk-delay before each,
as seconds; no file, no wait. So a fault needs neither a device nor privileges, and the product has no hook
for it. Reads are not slowed: on a machine with memory they come from the page cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Final

from cluster.admin.main import main
from history_store.storage.contract import Round
from history_store.storage.sqlite import SqliteStorage

DELAY_FILE: Final = "disk-delay"
Write = Callable[[SqliteStorage, Round], None]


def delay_s(file: Path) -> float:
    """What the file says; 0 if there is none, or if it is being written."""
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def slowed(write: Write, file: Path) -> Write:
    """The same, after the wait."""

    @wraps(write)
    def waits(storage: SqliteStorage, batch: Round) -> None:
        seconds = delay_s(file)
        if seconds:
            time.sleep(seconds)  # noqa: TID251 - a disk takes real time
        write(storage, batch)

    return waits


if __name__ == "__main__":
    delay_file = Path(sys.argv[-1]).parent / DELAY_FILE
    for name in ("write", "fold"):
        setattr(SqliteStorage, name, slowed(getattr(SqliteStorage, name), delay_file))
    main()
