"""The files of a local cluster: state, locks, logs, and marks of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local import logs
from cluster.local.life import Phase
from cluster.local.plan import LocalError
from cluster.local.processes import end, lives, mark_of, wait_until
from cluster.local.state import NodeState, RunState, locked, read_state, replace


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    state = RunState(1, "m", "/s", [NodeState("a/1", Phase.FAILED, exit_code=-9, retry_ns=5)])
    state.write(tmp_path)
    assert read_state(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"], "nothing is left beside it"


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(LocalError, match="cannot be read"):
        read_state(tmp_path)


def test_a_reader_finds_the_old_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "x"
    replace(file, b"old")
    with file.open("rb") as reader:
        replace(file, b"new")
        assert reader.read() == b"old"
    assert file.read_bytes() == b"new"


def test_a_lock_is_held_by_one_and_freed_at_the_end(tmp_path: Path) -> None:
    refusal = LocalError("taken", "wait")
    again = locked(tmp_path / "lock", 0.0, refusal)
    with locked(tmp_path / "lock", 0.0, refusal), pytest.raises(LocalError, match="taken"):
        again.__enter__()
    with locked(tmp_path / "lock", 0.0, refusal):
        pass


def test_a_process_is_told_from_a_later_one() -> None:
    mine = mark_of(os.getpid())
    assert mine is not None
    assert lives(os.getpid(), mine)
    assert not lives(os.getpid(), f"{mine}0")
    assert not lives(None, mine)


def test_only_the_process_that_was_meant_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = mark_of(process.pid)
        assert mark is not None
        end(process.pid, f"{mark}0")
        assert process.poll() is None
        end(process.pid, mark)
        assert process.wait() == -9
        assert mark_of(process.pid) is None


HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
ctypes.CDLL(None).pthread_exit(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells by /proc")
def test_a_process_whose_first_thread_has_ended_is_not_gone() -> None:
    """That is how one looks that was killed a moment ago, and it still has its ports."""
    with subprocess.Popen([sys.executable, "-c", HEADLESS]) as process:
        mark = mark_of(process.pid)
        assert mark is not None
        stat = Path(f"/proc/{process.pid}/stat")
        try:
            assert wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", 60.0)
            assert lives(process.pid, mark)
            end(process.pid, mark)
            assert mark_of(process.pid) is None
        finally:
            process.kill()


LOG = """\
2026-01-01T00:00:00Z [info     ] all is well
2026-01-01T00:00:00Z [error    ] it is not
Traceback (most recent call last):
  File "x.py", line 1
ValueError: no
{"level": "error", "event": "e"}
holdfast: it ends
"""


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    assert logs.tail(log, 5) == []
    assert logs.errors(log) == []
    log.write_text(LOG)
    assert logs.tail(log, 1) == ["holdfast: it ends"]
    assert logs.tail(log, 0) == []
    assert len(logs.tail(log, 100)) == 7
    assert logs.errors(log) == [
        "2026-01-01T00:00:00Z [error    ] it is not",
        "ValueError: no",
        '{"level": "error", "event": "e"}',
        "holdfast: it ends",
    ]


def test_errors_are_those_of_the_last_process_that_had_any(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("holdfast: long ago\n")
    with log.open("ab") as file:
        file.write(logs.begin("a/1", "2026-01-01T00:00:00Z") + b"holdfast: it ends\n  do: this\n")
        file.write(logs.begin("a/1", "2026-01-01T00:00:01Z") + b"all is well\n")
    assert logs.errors(log) == ["holdfast: it ends", "  do: this"]
    assert logs.errors(log, now=True) == []


def test_following_a_log(tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("one\ntwo\n")
    lines = logs.follow(log, 1)
    assert next(lines) == "two"
    with log.open("a") as file:
        file.write("three\nfo")
    assert next(lines) == "three"
    with log.open("a") as file:
        file.write("ur\n")
    assert next(lines) == "four"
    log.write_text("x\n")  # it was put aside, and begun again
    assert next(lines) == "x"
