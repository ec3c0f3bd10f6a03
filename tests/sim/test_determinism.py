"""One seed is one run, in every process: whatever the order of sets, the memory's layout, or the clock."""

from __future__ import annotations

import os
import subprocess
import sys

SECONDS = "4"


def _unseed(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "chaos.sim.run", "--seed", str(seed), "--seconds", SECONDS]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert "unseed" in done.stdout, done.stderr
    return done.stdout.splitlines()[0]


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    assert _unseed(2, "1") == _unseed(2, "2")


def test_another_seed_is_another_run() -> None:
    assert _unseed(2, "1").split()[3] != _unseed(3, "1").split()[3]
