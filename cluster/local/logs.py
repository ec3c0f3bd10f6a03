"""Reads the end of a node's log: last lines, and those that tell of errors."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TAIL_BYTES_MAX: Final = 1 << 20  # looked at from the end; a line of a log has a few hundred
ERROR_LINES_MAX: Final = 5
FOLLOW_EVERY_S: Final = 0.1

# An error of our log in its forms text and json, of a command that ends, and the last line of a traceback.
ERROR: Final = re.compile(
    r"\[(error|critical)\s*\]|\"level\": ?\"(error|critical)\"|^holdfast: |^[A-Za-z_.]+(Error|Exception)\b"
)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines; none if there is no log."""
    if lines <= 0:
        return []
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES_MAX))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]


def errors(log: Path) -> list[str]:
    """The last lines that tell of an error."""
    return [line for line in tail(log, 1000) if ERROR.search(line)][-ERROR_LINES_MAX:]


def follow(log: Path, lines: int) -> Iterator[str]:
    """The last lines, then every new one; for ever. A log that is put aside is left for the new one."""
    yield from tail(log, lines)
    size = log.stat().st_size if log.exists() else 0
    rest = ""
    while True:
        now = log.stat().st_size if log.exists() else 0
        if now < size:
            size = 0
        if now > size:
            with log.open("rb") as file:
                file.seek(size)
                rest += file.read(now - size).decode(errors="replace")
            size = now
            *whole, rest = rest.split("\n")
            yield from whole
        else:
            time.sleep(FOLLOW_EVERY_S)  # noqa: TID251 - waits for another process, which no clock of ours moves
