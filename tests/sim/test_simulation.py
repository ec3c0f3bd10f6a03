"""A region under faults keeps its promises: random seeds, fresh ones in each run.

`make sim SEEDS=5000` for a long form; `python -m chaos.sim.run --seed N --trace` to look at one.
"""

from __future__ import annotations

from chaos.sim.run import simulate


def test_simulation_of_a_region_under_faults(seed: int) -> None:
    report = simulate(seed)
    problems = "\n".join(report.problems)
    replay = f"python -m chaos.sim.run --seed {seed} --trace"
    assert report.ok, f"{problems}\nunseed {report.unseed}, faults {report.faults}; {replay}"
    assert report.operations, "clients did something"
