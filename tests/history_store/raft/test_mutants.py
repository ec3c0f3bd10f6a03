"""Do the judges see? Deliberately broken Rafts must be caught; the right one must weather the same storms.

`pytest tests/history_store/raft/test_mutants.py -s` prints after how many storms each was caught, and by
which judge. The rare ones wait for a long run (`--seeds` of at least 50, as `make sim` gives).
"""

from __future__ import annotations

import random
import traceback

import pytest

from history_store.raft import RaftError
from tests.history_store.raft.mutants import MUTANTS, Mutant
from tests.history_store.raft.storm import CLIMATES, Storm

LONG_RUN_SEEDS = 50

FAST = [mutant for mutant in MUTANTS.values() if not mutant.rare]
RARE = [mutant for mutant in MUTANTS.values() if mutant.rare]


def caught(mutant: Mutant, seed: int) -> str | None:
    """What a judge (or the core's own assertions) said in this storm; None = all was well."""
    with pytest.MonkeyPatch.context() as patch:
        mutant.patch(patch)
        try:
            Storm(random.Random(seed), CLIMATES[mutant.climate]).run()
        except (AssertionError, RaftError) as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{where.filename.rpartition('/')[2]}:{where.name}: {error}"
    return None


def hunt(mutant: Mutant, first: int) -> None:
    for storms in range(1, mutant.storms_max + 1):
        said = caught(mutant, first + storms)
        if said is not None:
            print(f"\n{mutant.name}: caught in storm {storms} ({mutant.climate}) by {said}")
            return
    pytest.fail(f"{mutant.name} was not seen in {mutant.storms_max} storms of climate {mutant.climate!r}")


@pytest.mark.parametrize("mutant", FAST, ids=lambda mutant: mutant.name)
def test_a_broken_raft_is_caught(mutant: Mutant) -> None:
    hunt(mutant, 0)


@pytest.mark.parametrize("mutant", RARE, ids=lambda mutant: mutant.name)
def test_simulation_catches_a_rarely_broken_raft(mutant: Mutant, request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--seeds") < LONG_RUN_SEEDS:
        pytest.skip("takes seconds; make sim runs it")
    hunt(mutant, 0)


@pytest.mark.parametrize("climate", CLIMATES)
def test_simulation_weathers_storms(climate: str, seed: int, rng: random.Random) -> None:
    Storm(rng, CLIMATES[climate]).run()


def test_enough_is_broken() -> None:
    assert len(MUTANTS) >= 40
    assert {mutant.climate for mutant in MUTANTS.values()} <= set(CLIMATES)
