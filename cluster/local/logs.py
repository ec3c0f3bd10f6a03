"""Reads the end of a node's log: last lines, and those that tell of errors."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

TAIL_BYTES_MAX: Final = 1 << 20  # looked at from the end; a line of a log has a few hundred
LINES_MAX: Final = 1000
ERROR_LINES_MAX: Final = 5
START: Final = "---- "  # begins the line before what a process of the node writes
FOLLOW_EVERY_S: Final = 0.1

# An error of our log in its forms text and json, of a command that ends and what it says to do, the last line
# of a traceback, and an error of Cassandra's log.
ERROR: Final = re.compile(
    r"\[(error|critical)\s*\]|\"level\": ?\"(error|critical)\"|^holdfast: |^  do: "
    r"|^[A-Za-z_.]+(Error|Exception)\b|^[0-9:.]+ ERROR "
)


def tail(log: Path, lines: int) -> list[str]:
    """The last lines; none if there is no log."""
    text, _ = _end(log)
    return text.splitlines()[-lines:] if lines > 0 else []


def begin(name: str, moment: str) -> bytes:
    """What the supervisor writes before each process of a node."""
    return f"{START}{moment} {name} starts\n".encode()


def errors(log: Path, *, now: bool = False) -> list[str]:
    """The last lines that tell of an error, with what to do, of the last process that had any.

    `now`: of the last process, even if it had none. What an earlier one said is no news of one that serves.
    """
    found: list[str] = []
    for line in reversed(tail(log, LINES_MAX)):
        if line.startswith(START) and (found or now):
            break
        if ERROR.search(line):
            found.append(line)
    return list(reversed(found[:ERROR_LINES_MAX]))


def follow(log: Path, lines: int) -> Iterator[str]:
    """The last lines, then every new one; for ever. When the log is put aside, the new one is followed."""
    text, position = _end(log)
    *whole, rest = text.split("\n")
    yield from whole[-lines:] if lines > 0 else []
    while True:
        size = log.stat().st_size if log.exists() else 0
        if size < position:
            position, rest = 0, ""
        if size > position:
            with log.open("rb") as file:
                file.seek(position)
                more = file.read(size - position)
            position += len(more)
            *whole, rest = (rest + more.decode(errors="replace")).split("\n")
            yield from whole
        else:
            time.sleep(FOLLOW_EVERY_S)  # noqa: TID251 - waits for another process, which no clock of ours moves


def _end(log: Path) -> tuple[str, int]:
    """The end of the log, and the position after it; nothing if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES_MAX))
            content = file.read()
            return content.decode(errors="replace"), file.tell()
    except FileNotFoundError:
        return "", 0
