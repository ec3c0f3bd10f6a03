"""Recording what clients did: files that come back as they were, and files that cannot be trusted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from chaos.checkers.__main__ import main
from chaos.checkers.history import (
    Call,
    Describe,
    Described,
    Failed,
    Operation,
    Reason,
    Recorder,
    Refused,
    Signal,
    Signaled,
    Start,
    Started,
    Status,
    Terminate,
    Update,
    Updated,
    load,
    save,
)

ANSWERED: list[tuple[Call, object]] = [
    (Start("s"), Started("r")),
    (Signal("a", closes=True), Signaled()),
    (Update("u", 3), Updated(3)),
    (Update("v", 1, "r"), Updated()),
    (Describe(), Described(Status.RUNNING, "r", 1, 4, 9, exact=False)),
    (Terminate(), Refused(Reason.CLOSED)),
    (Signal("b"), Failed("RESOURCE_EXHAUSTED")),
]


def record(path: Path, *, closed: bool = True) -> Recorder:
    with path.open("wb") as file:
        recorder = Recorder(file)
        for call, answer in ANSWERED:
            with recorder.op("c1", "w", call) as attempt:
                attempt.answer(answer)  # type: ignore[arg-type]
        with pytest.raises(ConnectionError), recorder.op("c2", "w", Signal("c")):
            raise ConnectionError
        with recorder.op("c2", "w", Signal("d")):
            pass
        recorder.op("c3", "w", Signal("e")).__enter__()
        if closed:
            recorder.close()
    return recorder


def test_what_was_recorded_comes_back(tmp_path: Path) -> None:
    recorder = record(tmp_path / "h")
    loaded = load([tmp_path / "h"])
    assert loaded.doubts == []
    assert loaded.operations == recorder.operations
    assert [(each.call, each.answer) for each in loaded.operations[: len(ANSWERED)]] == ANSWERED
    lost = loaded.operations[len(ANSWERED) :]
    assert [each.call for each in lost] == [Signal("c"), Signal("d"), Signal("e")]
    assert all(each.answer is None and each.returned is None for each in lost)
    times = [time for each in loaded.operations for time in (each.invoked, each.returned) if time is not None]
    assert times == sorted(set(times))


def test_save_writes_what_load_reads(tmp_path: Path) -> None:
    operations = record(tmp_path / "h").operations
    save(operations, tmp_path / "again")
    assert load([tmp_path / "again"]).operations == operations


def test_a_recording_without_its_end_is_doubted(tmp_path: Path) -> None:
    record(tmp_path / "h", closed=False)
    (doubt,) = load([tmp_path / "h"]).doubts
    assert "has no end" in doubt


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], "10 operations were recorded, but 9 are there"),
        (lambda lines: [*lines[:2], lines[2][:-5], *lines[3:]], "not readable"),
        (lambda lines: [*lines, lines[1]], "follows the end"),
        (lambda lines: lines[:-2], "has no end"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_doubted(tmp_path: Path, change: object, expected: str) -> None:
    assert callable(change)
    record(tmp_path / "h")
    lines = (tmp_path / "h").read_bytes().splitlines()
    (tmp_path / "h").write_bytes(b"\n".join(change(lines)) + b"\n")
    assert any(expected in doubt for doubt in load([tmp_path / "h"]).doubts)
    ran = CliRunner().invoke(main, [str(tmp_path / "h")])
    assert ran.exit_code == 1
    assert ran.stdout.startswith("unknown")


@pytest.mark.parametrize("content", [b"", b"{}\n", b"no history\n", b'{"format":99,"clock":"counter"}\n'])
def test_what_is_no_history_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "h").write_bytes(content)
    with pytest.raises(ValueError, match="h"):
        load([tmp_path / "h"])
    assert CliRunner().invoke(main, [str(tmp_path / "h")]).exit_code == 2


def test_several_files_need_a_clock_in_common(tmp_path: Path) -> None:
    for name, clock in [("a", "monotonic"), ("b", "monotonic"), ("c", "")]:
        with (tmp_path / name).open("wb") as file:
            ticks = iter(range(100))
            recorder = Recorder(file, (lambda: next(ticks)) if clock else None, clock)  # noqa: B023
            with recorder.op(name, "w", Start("s")) as attempt:
                attempt.answer(Started("r"))
            recorder.close()
    assert len(load([tmp_path / "a", tmp_path / "b"]).operations) == 2
    with pytest.raises(ValueError, match="no clock in common"):
        load([tmp_path / "a", tmp_path / "c"])
    with pytest.raises(ValueError, match="no clock in common"):
        load([tmp_path / "c", tmp_path / "c"])


def test_impossible_operations_do_not_construct() -> None:
    with pytest.raises(ValueError, match="before it was invoked"):
        Operation("c", "w", Signal("a"), 5, 4, Signaled())
    with pytest.raises(ValueError, match="if, and only if"):
        Operation("c", "w", Signal("a"), 5, 6)
    with pytest.raises(ValueError, match="above 0"):
        Update("u", 0)


def test_an_attempt_is_answered_once() -> None:
    recorder = Recorder()
    with recorder.op("c", "w", Signal("a")) as attempt:
        attempt.answer(Signaled())
        with pytest.raises(AssertionError):
            attempt.answer(Signaled())
    recorder.close()
    with pytest.raises(AssertionError, match="closed"), recorder.op("c", "w", Signal("b")) as attempt:
        attempt.answer(Signaled())


def test_the_command_says_ok(tmp_path: Path) -> None:
    record(tmp_path / "h")
    ran = CliRunner().invoke(main, [str(tmp_path / "h")])
    # the last signals but one were refused: the closing one worked
    assert ran.stdout == "ok: 10 operations on 1 workflow ids, 3 of unknown outcome\n"
    assert ran.exit_code == 0
    ran = CliRunner().invoke(main, [str(tmp_path / "h"), "--json"])
    assert json.loads(ran.stdout)["verdict"] == "ok"


def test_the_command_shows_what_is_broken(tmp_path: Path) -> None:
    operations = [
        Operation("c1", "w", Start("s"), 1, 2, Started("r")),
        Operation("c1", "w", Signal("a"), 3, 4, Signaled()),
        Operation("c2", "w", Describe(), 5, 6, Described(Status.RUNNING, signals=0)),
    ]
    save(operations, tmp_path / "h")
    ran = CliRunner().invoke(main, [str(tmp_path / "h")])
    assert ran.exit_code == 1
    assert ran.stdout.startswith("broken: 3 operations")
    assert "* c2" in ran.stderr
    answer = json.loads(CliRunner().invoke(main, [str(tmp_path / "h"), "--json"]).stdout)
    assert answer["verdict"] == "broken"
    assert len(answer["problems"]) == 1
