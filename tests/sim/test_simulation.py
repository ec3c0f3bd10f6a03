"""A region under faults keeps its promises: a few seeds that stay the same, so that they are a fact.

Fresh ones, hundreds and thousands of them, are `make sim` (`SEEDS=5000` for the long form), and
`python -m chaos.sim.run --seed N --trace` looks at one.
"""

from __future__ import annotations

import pytest

from chaos.sim.run import rare_branches, simulate


@pytest.mark.parametrize("seed_of_region", [1, 2, 3, 5])
def test_simulation_of_a_region_under_faults(seed_of_region: int) -> None:
    report = simulate(seed_of_region)
    problems = "\n".join(report.problems)
    replay = f"python -m chaos.sim.run --seed {seed_of_region} --trace"
    assert report.ok, f"{problems}\nunseed {report.unseed}, faults {report.faults}; {replay}"
    assert report.operations, "clients did something"
    assert report.rare.keys() <= set(rare_branches())


def test_rare_branches_have_names_of_their_own() -> None:
    names = rare_branches()
    assert "log truncated" in names
    assert len(set(names)) == len(names), "each name stands in one place"
