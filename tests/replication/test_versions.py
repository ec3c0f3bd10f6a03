"""Version arithmetic: the worked sequences, and what holds for all numbers."""

from __future__ import annotations

import random

import pytest

from replication.versions import INC, VersionError, bump_version, next_version, owner_of


@pytest.mark.parametrize(
    ("increment", "path", "versions"),
    [
        (10, (1, 2, 1, 2), [1, 2, 11, 12]),
        (10, (2, 1, 2), [2, 11, 12]),
        (100, (1, 2, 1, 2, 2, 1), [1, 2, 101, 102, 102, 201]),
        (10, (1, 3, 2, 1), [1, 3, 12, 21]),
    ],
)
def test_worked_sequences(increment: int, path: tuple[int, ...], versions: list[int]) -> None:
    version, found = 0, []
    for region in path:
        version = next_version(region, version, increment)
        found.append(version)
    assert found == versions


def test_properties_of_next(rng: random.Random) -> None:
    for _ in range(5_000):
        increment = rng.choice((2, 10, INC, 1000))
        region, current = rng.randrange(1, increment), rng.randrange(0, 10**6)
        version = next_version(region, current, increment)
        assert current <= version < current + increment
        assert owner_of(version, increment) == region
        assert next_version(region, version, increment) == version
        other = rng.randrange(1, increment)
        assert (next_version(other, current, increment) == version) is (other == region)


def test_a_bump_is_the_next_version_that_was_never_used(rng: random.Random) -> None:
    for _ in range(5_000):
        region, current = rng.randrange(1, INC), rng.randrange(0, 10**6)
        version = bump_version(region, current)
        assert current < version <= current + INC
        assert owner_of(version) == region
    assert bump_version(1, 101) == 201
    assert bump_version(1, 102) == 201


@pytest.mark.parametrize("region", [0, -1, INC, INC + 1])
def test_what_is_no_region_is_refused(region: int) -> None:
    with pytest.raises(VersionError, match="is not the initial version"):
        next_version(region, 5)


@pytest.mark.parametrize("version", [0, -99, 100, 4200])
def test_what_nobody_owns_is_no_version(version: int) -> None:
    with pytest.raises(VersionError, match="no region owns it"):
        owner_of(version)


def test_a_negative_version_is_no_base() -> None:
    with pytest.raises(VersionError, match="is not a version"):
        next_version(1, -1)
