"""The ledger: a line on disk for every model call, so that what was paid can be counted afterwards.

A call is written down, and synced, *before* it is made. So the ledger never has fewer calls than were
made, whoever dies when. A second line says how it ended. A call without a second line counts as paid,
since the endpoint may have answered after its caller died; a refused one does not.

The ledger only counts. Nobody asks it whether a call is still to be made: the event history knows that.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class State(StrEnum):
    """What is known of a call."""

    ASKED = "asked"
    ANSWERED = "answered"
    REFUSED = "refused"


@dataclass(frozen=True)
class Entry:
    """One line."""

    key: str  # idempotency key: run id / activity id
    activity: str
    attempt: int
    state: State
    model: str
    worker: int  # process id
    tokens: int  # of question and answer, once it is known


class Ledger:
    """The file, appended to by workers and read by everybody."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, entry: Entry) -> None:
        """Append one line, and return when it is on the disk."""
        line = json.dumps({**asdict(entry), "state": entry.state.value}) + "\n"
        # One write of one line in append mode: lines of concurrent calls do not mix.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode())
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def entries(self) -> list[Entry]:
        """All lines."""
        if not self._path.exists():
            return []
        found = []
        for line in self._path.read_text().splitlines():
            fields = json.loads(line)
            found.append(Entry(**{**fields, "state": State(fields["state"])}))
        return found


def paid(entries: list[Entry]) -> Counter[str]:
    """How often each key was paid: calls asked, less those that were refused."""
    calls = Counter(entry.key for entry in entries if entry.state is State.ASKED)
    calls.subtract(entry.key for entry in entries if entry.state is State.REFUSED)
    return +calls
