"""One seed is one run, in every process: whatever the order of sets, the memory's layout, or the clock."""

from __future__ import annotations

import os
import subprocess
import sys

SECONDS = "3"


def _begin(seed: int, hash_seed: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "chaos.sim.run", "--seed", str(seed), "--seconds", SECONDS]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _end(process: subprocess.Popen[str]) -> str:
    said, complaints = process.communicate()
    assert "unseed" in said, complaints
    return said.splitlines()[0]


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    one, same, other = [_end(each) for each in [_begin(2, "1"), _begin(2, "2"), _begin(3, "1")]]
    assert one == same
    assert one.split()[3] != other.split()[3]
