"""SIGKILL at random instants: every acknowledged round is there, and no half of any."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from history_store.storage.sqlite import SqliteStorage

CHILD = Path(__file__).with_name("writer_child.py")
ROOT = Path(__file__).parents[3]
KILLS = int(os.environ.get("HOLDFAST_STORAGE_KILLS", "4"))
BASE_SEED = int(os.environ.get("HOLDFAST_STORAGE_SEED", "1"))


def run_and_kill(path: Path, seed: int, delay_s: float, folds: bool) -> int:
    """The last acknowledged round."""
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(path), str(seed), *["folds"][:folds]],
        stdout=subprocess.PIPE, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert child.stdout is not None
    first = child.stdout.readline()  # it is at work
    time.sleep(delay_s)  # the instant of the kill is what is varied here
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read()
    child.stdout.close()
    child.wait()
    lines = (first + rest).split(b"\n")
    assert first, "the writer must have got as far as one round"
    return int(lines[-2])  # what follows the last newline was not said


def check(path: Path, acknowledged: int, folds: bool) -> None:
    storage = SqliteStorage(path)
    try:
        logs = storage.load()
        last = logs[1].compacted + len(logs[1].entries)
        assert last in (acknowledged, acknowledged + 1)
        assert logs[2].compacted + len(logs[2].entries) == 2 * last
        for group, per_round in ((1, 1), (2, 2)):
            for entry in logs[group].entries:
                assert int(entry.data.split(b":")[0]) == -(-entry.index // per_round)
        applied = logs[1].applied
        assert applied == last - last % 3 or (folds and applied % 3 == 0 and applied < last)
        assert logs[2].applied == 2 * applied
        found = {value.split(b":")[0] for _, value in storage.scan(b"", b"\xff")}
        assert found == ({b"%d" % applied} if applied else set())
        connection = storage.visibility_connection()
        shown = connection.execute("SELECT history_length FROM visibility_executions").fetchall()
        connection.close()
        assert shown == ([(applied,)] if applied else [])
        compacted = logs[1].compacted
        if folds:  # what was to be folded when an earlier life ended never was
            assert compacted <= applied
            assert compacted % 6 in (0, 4)
        else:
            assert compacted == max(last // 6 * 6 - 2, 0)
        assert storage.verify() == []
    finally:
        storage.close()


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("run", range(KILLS))
def test_killed_at_a_random_instant(tmp_path, run, folds):
    """Three lives on one file, so that what a kill leaves is also written upon."""
    seed = BASE_SEED * 1000 + run
    print(f"reproduce with: HOLDFAST_STORAGE_SEED={BASE_SEED} and run {run} (seed {seed})")
    rng = random.Random(seed)
    path = tmp_path / "node.db"
    for life in range(3):
        acknowledged = run_and_kill(path, seed + life, rng.random() ** 2 * 0.25, folds)
        if rng.random() < 0.7:
            check(path, acknowledged, folds)
