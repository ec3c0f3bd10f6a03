"""Whatever three regions do to one workflow id, and however they hear of it, in the end they agree and nothing is lost.

`--seeds N` plays N hundred histories of each kind, `--seed S` one hundred again.
"""

from __future__ import annotations

import random

import pytest

from .model import World, check

HISTORIES = 100


@pytest.mark.parametrize(
    ("names", "deletes"),
    [(1, False), (2, False), (1, True)],
    ids=["one workflow id", "two workflow ids", "with deletions"],
)
def test_regions_converge(seed: int, rng: random.Random, names: int, deletes: bool) -> None:
    for number in range(HISTORIES):
        world = World(random.Random(f"{seed}/{number}"), names, deletes)
        try:
            check(world)
        except AssertionError as error:
            raise AssertionError(f"history {number} of seed {seed}: {error}") from error
