"""Whatever three regions do to a workflow id, and however they hear of it: they agree, and nothing is lost.

`--seeds N` plays N hundred histories of each kind, `--seed S` one hundred again.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest

from .judges import check
from .model import World

HISTORIES = 100
# Histories in which one of these does not happen test less than they say.
RARE = frozenset({
    "Rebuild", "Suppress", "Revive", "Hold", "Release", "Park", "Unpark", "Salvage", "CloseTask", "Settle",
    "RaiseVersion", "Reapply APPEND", "Reapply RESET", "Reapply NOWHERE", "second root", "duplicate",
    "Delete", "deleted", "pruned",
})  # fmt: skip


@pytest.mark.parametrize(
    ("names", "deletes", "steps", "lulls"),
    [(1, False, 45, None), (2, False, 45, None), (1, True, 45, None), (1, True, 120, 0.1)],
    ids=["one workflow id", "two workflow ids", "with deletions", "long, and much is forgotten"],
)
def test_regions_converge(
    seed: int, rng: random.Random, names: int, deletes: bool, steps: int, lulls: float | None
) -> None:
    for number in range(HISTORIES):
        try:
            check(World(random.Random(f"{seed}/{number}"), names, deletes, steps, lulls))
        except AssertionError as error:
            raise AssertionError(f"history {number} of seed {seed}: {error}") from error


def test_histories_are_not_tame() -> None:
    reached: Counter[str] = Counter()
    for number in range(HISTORIES):
        reached += World(random.Random(f"not tame/{number}"), deletes=number % 2 == 1).reached
    assert set(reached) >= RARE, f"never reached: {RARE - set(reached)}"
