"""Rare branches, by name: the code says where it is, and a simulation counts who came there.

    reached("log truncated")

Faults that never lead anywhere prove nothing, and a branch that no run of a whole batch has reached is one
that nobody tests (chaos/sim/run.py fails such a batch). While nobody counts, and so in production always,
this is one comparison; it is for branches that are rare, and not for the hot path.

Every name stands in one place of the code, as a literal: that is how they are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_counts: dict[str, int] | None = None


def reached(name: str) -> None:
    """The rare branch of this name is being run."""
    if _counts is not None:
        _counts[name] = _counts.get(name, 0) + 1


@contextmanager
def counting() -> Iterator[dict[str, int]]:
    """Count until the end of the block: name -> times. Not within another count."""
    global _counts
    assert _counts is None, "somebody counts already"
    found: dict[str, int] = {}
    _counts = found
    try:
        yield found
    finally:
        _counts = None
