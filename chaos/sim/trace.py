"""What happened in a run, as one digest (the "unseed"), and what nobody may log.

Two runs of one seed are the same run if their digests are: every answer that a client got, every fault and
every line that a node logged is in it, with the virtual time. Whatever leaks in from outside (a clock, the
order of a set, another source of chance) shows as another digest.

Nodes log through structlog; while a `Trace` is open it takes their lines instead of the console. Lines of
level error and above are problems, but for those that a fault explains.
"""

from __future__ import annotations

import contextvars
import hashlib
import sys
import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

import structlog

# Set in the context of everything that a node runs.
NODE: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("node", default="")

SHOWN_MAX = 400  # lines kept to be shown where a run is judged bad
PROBLEMS_MAX = 20
SHOWN_FRAMES = 7
GRAVE = frozenset(("error", "critical", "exception"))
# What the faults ask for.
EXPLAINED = frozenset(
    (
        "the disk takes no writes; refusing new ones until it does",
        "the disk failed; stopping",
        "this node is not admitted to the region",  # it was removed
    )
)


class Trace:
    """Takes everything down."""

    def __init__(self, now_s: Callable[[], float], *, keep: bool = False) -> None:
        self._now_s = now_s
        self._hash = hashlib.blake2b(digest_size=8)
        self.lines: deque[str] = deque(maxlen=None if keep else SHOWN_MAX)
        self.problems: list[str] = []
        self.on_log: list[Callable[[str, dict[str, Any]], None]] = []  # (node, line)
        self.steps = 0
        self._before: dict[str, Any] = {}

    def note(self, what: str) -> None:
        """Something happened."""
        line = f"{self._now_s():9.4f} {what}"
        self.steps += 1
        self._hash.update(line.encode())
        self.lines.append(line)

    def problem(self, what: str) -> None:
        """Something that must not be."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(what)
        self.note(f"PROBLEM {what}")

    @property
    def unseed(self) -> str:
        """The digest of all that happened so far."""
        return self._hash.copy().hexdigest()

    # ---- what nodes log

    def __enter__(self) -> Self:
        self._before = structlog.get_config()
        structlog.configure(
            processors=[self._logged],
            wrapper_class=structlog.make_filtering_bound_logger(0),
            cache_logger_on_first_use=False,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        structlog.configure(**self._before)

    def _logged(self, _logger: Any, method: str, line: Any) -> Any:
        event = line.pop("event", "")
        node = NODE.get()
        for listener in self.on_log:
            listener(node, {"event": event, **line})
        cause = line.pop("exc_info", None)
        words = " ".join(f"{key}={value}" for key, value in sorted(line.items()))
        said = f"{node} {method}: {event} {words}"
        if method in GRAVE and event not in EXPLAINED:
            self.problem(f"{said} {told(cause)}")
        else:
            self.note(said)
        raise structlog.DropEvent


def told(cause: Any) -> str:
    """An exception and where it was raised."""
    error = cause if isinstance(cause, BaseException) else sys.exc_info()[1] if cause else None
    if error is None:
        return ""
    frames = traceback.extract_tb(error.__traceback__)[-SHOWN_FRAMES:]
    where = " < ".join(
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in reversed(frames)
    )
    return f"{error!r} at {where}"
