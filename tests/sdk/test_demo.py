"""`holdfast demo` as a user runs it: a process, its exit code, its JSON, and what it leaves behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

HOLDFAST = Path(sys.executable).parent / "holdfast"
DEMO_MAX_S = 1100  # it takes 10, on two regions 40; a test machine may be busy
GONE_MAX_S = 240  # for processes that were told to end


def environment(scratch: Path) -> dict[str, str]:
    """This one without a model's endpoint, and with a place of its own for temporary files."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return {**kept, "TMPDIR": str(scratch)}


def demo(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOLDFAST), "demo", *arguments],
        env=environment(scratch),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_MAX_S,
        check=False,
    )


def processes_of(scratch: Path) -> list[psutil.Process]:
    """Those that say this directory on their command lines: worker, supervisor, nodes."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(scratch) in word for word in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    path = tmp_path / "scratch"
    path.mkdir()
    return path


@pytest.mark.live
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("nodes", "regions", "checks"),
    [("3", "2", 26), ("3", "1", 18), ("1", "1", 13)],
    ids=["two regions", "region", "single server"],
)
def test_kills_and_nothing_is_paid_twice(nodes: str, regions: str, checks: int, scratch: Path) -> None:
    done = demo(scratch, "--json", "--nodes", nodes, "--regions", regions)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["ok"]
    assert told["approved"]
    assert told["model"]["stand_in"]
    assert all(check["ok"] for check in told["checks"])
    assert len(told["checks"]) == checks

    worker, server, *rest = told["deaths"]
    assert (worker["who"], server["who"]) == ("worker", "server")
    assert [(death["who"], death["node"]) for death in rest] == ([("region", "b")] if regions == "2" else [])
    assert worker["in_flight"] == [f"follow-up-{number}" for number in range(1, 5)]
    assert server["in_flight"] == ["sources"]
    assert worker["events_before"] < server["events_before"] < told["totals"]["events"]

    calls = {step["name"]: step["attempt"] for step in told["timeline"] if step["kind"] == "model call"}
    assert calls == dict.fromkeys(["plan", "read-1", "read-2", "read-3", "read-4", "outline", "write"], 1)
    assert told["totals"]["model_calls_paid"] == told["totals"]["model_activities"] == 7
    tools = {step["name"]: step for step in told["timeline"] if step["kind"] == "tool"}
    assert tools["check-1"]["attempt"] == 3
    assert tools["follow-up-1"]["last_failure"] == "heartbeat time-out"
    assert sorted(event for step in told["timeline"] for event in step["events"]) == list(
        range(1, told["totals"]["events"] + 1)
    )

    quoted = told["findings"][0]
    assert f"[{quoted['document']}:{quoted['line']}]" in told["report"]
    for pid in (worker["pid"], worker["successor"], server["pid"], server["successor"]):
        assert not psutil.pid_exists(pid)
    assert not processes_of(scratch)
    assert not list(scratch.iterdir())

    takeover = told["takeover"]
    assert (takeover is None) == (nodes == "1")
    if takeover is not None:
        assert server["node"] == takeover["killed"] == takeover["led_before"] != takeover["led_after"]
        assert takeover["calls"] > 2
        assert takeover["longest_wait_s"] > 0.1, "nobody noticed: was it the leader that died?"
    assert (told["failovers"] is None) == (regions == "1")
    if regions == "2":
        failed_over(told)


def failed_over(told: dict[str, Any]) -> None:
    """There and back: gracefully to b, by force from b when it is dead, gracefully back to it."""
    failovers = told["failovers"]
    index = failovers["regions"]
    made = failovers["made"]
    assert [(each["mode"], each["source"], each["target"]) for each in made] == [
        ("graceful", "a", "b"),
        ("forced", "b", "a"),
        ("graceful", "a", "b"),
    ]
    versions = [each["version"] for each in made]
    assert versions == sorted(versions)
    assert [version % 100 for version in versions] == [index["b"], index["a"], index["b"]]
    seen = list(dict.fromkeys(version for step in told["timeline"] for version in step["versions"]))
    assert sorted(seen)[1:] == versions
    assert failovers["rpo"] == {"events": 0, "signals": 0}
    assert made[0]["outage_s"] == made[0]["paused_s"] > 0
    assert made[1]["paused_s"] is None
    assert made[1]["outage_s"] > 0.05, "nobody noticed: was it the region that died?"
    assert failovers["signals"] > 20
    tools = {step["name"]: step for step in told["timeline"] if step["kind"] == "tool"}
    # Begun in one region, ended in the other, by one worker and in one attempt.
    assert tools["recheck"]["versions"] == versions[:2]
    assert tools["deliver"]["versions"] == versions[1:]
    assert tools["recheck"]["attempt"] == tools["deliver"]["attempt"] == 1


@pytest.mark.live
@pytest.mark.timeout(1200)
def test_documents_of_ones_own_in_words_and_kept(scratch: Path, tmp_path: Path) -> None:
    documents = tmp_path / "notes"
    documents.mkdir()
    (documents / "retries.txt").write_text(
        "We decided in March that payments are retried for three days with growing pauses.\n\n"
        "Retries of refunds were discussed at length, and nothing was decided about them.\n"
    )
    kept = tmp_path / "kept"
    question = "What did we decide about retries of payments?"
    arguments = ["--documents", str(documents), "--question", question, "--keep", str(kept)]
    done = demo(scratch, *arguments, "--regions", "1")
    assert done.returncode == 0, done.stderr
    assert "payments are retried for three days" in done.stdout
    assert "SIGKILL: worker" in done.stdout
    assert "SIGKILL: node a/" in done.stdout
    assert "everything held" in done.stdout
    assert "kill -9" in done.stderr
    names = {path.name for path in kept.iterdir()}
    assert {"region", "history.json", "ledger.jsonl", "worker.log"} <= names
    assert len(list(kept.glob("region/a/*/node.log"))) == 3
    assert not [name for name in names if name.startswith("hold-")]


def test_both_command_lines_have_the_same_flags() -> None:
    """The program's, which cannot import the demo, and the demo's."""
    helps = [
        subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
        for command in ([str(HOLDFAST), "demo"], [sys.executable, "-m", "sdk.demo"])
    ]
    flags = [set(re.findall(r"^ +(?:-h, )?(--[a-z]+)", text, re.MULTILINE)) for text in helps]
    assert flags[0] == flags[1]
    assert "--documents" in flags[0]
    assert all("holdfast demo --documents" in text for text in helps)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--documents", "/nowhere/at/all"], "is not a folder"),
        (["--question", " "], "--question"),
        (["--frobnicate"], "--frobnicate"),
        (["--keep", "/dev/null"], "--keep"),
        (["--nodes", "2"], "--nodes"),
        (["--regions", "3"], "--regions"),
        (["--nodes", "1", "--regions", "2"], "do not go together"),
        (["--regions", "1", "--log", "cassandra"], "there is one region"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, scratch: Path) -> None:
    done = demo(scratch, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert not done.stdout


@pytest.mark.live
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("sign", "word"),
    [(signal.SIGINT, "worker:"), (signal.SIGTERM, "worker:"), (signal.SIGINT, "model:")],
    ids=["SIGINT", "SIGTERM", "while the region comes up"],
)
def test_interrupted_it_takes_its_processes_with_it(sign: signal.Signals, word: str, scratch: Path) -> None:
    process = subprocess.Popen(
        [str(HOLDFAST), "demo", "--approve"],
        env=environment(scratch),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in a shell's background has SIGINT ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith(word):
                break
        else:
            pytest.fail(f"it ended by itself:\n{''.join(said)}")
        end = time.monotonic() + GONE_MAX_S
        while not (running := processes_of(scratch)) and time.monotonic() < end:
            time.sleep(0.01)
        assert running
        process.send_signal(sign)
        rest = process.stderr.read()
        assert process.wait(timeout=GONE_MAX_S) == 1, rest
        assert "interrupted" in rest
        assert "Traceback" not in rest
    end = time.monotonic() + GONE_MAX_S
    while processes_of(scratch) and time.monotonic() < end:
        time.sleep(0.01)
    assert not processes_of(scratch)
    assert not list(scratch.iterdir())
