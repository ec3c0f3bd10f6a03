"""`holdfast local` where nothing runs: what is refused, in which words and with which code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from cluster.local.plan import LogPlan, planned, ports_from

Run = Callable[..., Result]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """The directory of a cluster that is down."""
    plan = planned(("a",), 3, ports_from(7300, 3), ("false",), {})
    (tmp_path / "cluster.json").write_bytes(msgspec.json.encode(plan))
    (tmp_path / "a/1").mkdir(parents=True)
    (tmp_path / "a/1/node.log").write_text("one\ntwo\n[error    ] three\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--regions", "a,a"), "two regions are called a"),
        (("--regions", "a,b", "--nodes", "17"), "a local cluster has at most 32 nodes"),
        (("--regions", "cassandra", "--log", "cassandra"), "is in the way of the log's own directory"),
        (("--nodes", "0"), "a local region has from 1 to 32"),
        (("--port-base", "80"), "3 nodes need the ports 80 to 102"),
        (("--regions", "A"), "no name of a region"),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    holdfast: Run, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = holdfast("local", "up", "--dir", str(tmp_path / "c"), *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert "  do: " in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "c/cluster.json").exists()


def test_a_directory_with_other_things_is_left_alone(holdfast: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    result = holdfast("local", "up", "--dir", str(tmp_path))
    assert result.exit_code == 2
    assert "has other things in it (thesis.tex)" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("status",),
        ("kill", "a/1"),
        ("pause", "a/1"),
        ("resume", "a/1"),
        ("restart", "a/1"),
        ("logs", "a/1"),
        ("down",),
    ],
)
def test_no_cluster_there(holdfast: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    result = holdfast("local", *arguments, "--dir", str(tmp_path), "--json")
    assert result.exit_code == 1
    assert f"no local cluster in {tmp_path}" in result.stderr
    assert "`holdfast local up` makes one" in result.stderr


@pytest.mark.parametrize("command", ["kill", "pause", "resume", "restart"])
def test_a_cluster_that_is_down_takes_no_orders(holdfast: Run, stopped: Path, command: str) -> None:
    result = holdfast("local", command, "a/1", "--dir", str(stopped))
    assert result.exit_code == 1
    assert "is down" in result.stderr
    assert "`holdfast local up` starts it" in result.stderr


def test_a_node_that_does_not_exist_is_a_usage_error(holdfast: Run, stopped: Path) -> None:
    result = holdfast("local", "kill", "a/9", "--dir", str(stopped))
    assert result.exit_code == 2
    assert "name one of a/1, a/2, a/3" in result.stderr


def test_the_status_of_one_that_is_down(holdfast: Run, stopped: Path) -> None:
    status: dict[str, Any] = json.loads(holdfast("local", "status", "--dir", str(stopped), "--json").stdout)
    assert not status["running"]
    assert status["supervisor"] is None
    nodes = status["regions"][0]["nodes"]
    assert [(node["state"], node["pid"], node["serving"]) for node in nodes] == [("stopped", None, False)] * 3
    assert nodes[0]["errors"] == ["[error    ] three"]
    result = holdfast("local", "status", "--dir", str(stopped))
    assert "a/1: [error    ] three" in result.stdout
    assert "is down" in result.stderr


def test_the_log_between_regions_is_shown_with_the_nodes(holdfast: Run, tmp_path: Path) -> None:
    log = LogPlan("cassandra/a", "a", "127.9.9.1", 17000)
    plan = planned(("a",), 1, ports_from(7300, 1), ("false",), {}, [log])
    (tmp_path / "cluster.json").write_bytes(msgspec.json.encode(plan))
    (tmp_path / "cassandra/a").mkdir(parents=True)
    log.log(tmp_path).write_text("10:34:26.069 ERROR [main] X:1 it cannot be\n")
    status: dict[str, Any] = json.loads(holdfast("local", "status", "--dir", str(tmp_path), "--json").stdout)
    assert status["log"]["kind"] == "cassandra"
    (row,) = status["log"]["nodes"]
    assert (row["name"], row["state"], row["serving"]) == ("cassandra/a", "stopped", False)
    assert row["errors"] == ["10:34:26.069 ERROR [main] X:1 it cannot be"]
    shown = holdfast("local", "status", "--dir", str(tmp_path)).stdout
    assert "cassandra/a" in shown
    assert "it cannot be" in shown
    assert "it cannot be" in holdfast("local", "logs", "cassandra/a", "--dir", str(tmp_path)).stdout
    refused = holdfast("local", "kill", "cassandra/a", "--dir", str(tmp_path))
    assert "is down" in refused.stderr
    result = holdfast("local", "up", "--dir", str(tmp_path), "--log", "embedded")
    assert result.exit_code == 2
    assert "has --log cassandra, not embedded" in result.stderr
    assert holdfast("local", "down", "--delete", "--dir", str(tmp_path)).exit_code == 0
    assert not (tmp_path / "cassandra").exists()


def test_the_end_of_a_log(holdfast: Run, stopped: Path) -> None:
    result = holdfast("local", "logs", "a/1", "--dir", str(stopped), "--lines", "2")
    assert result.stdout == "two\n[error    ] three\n"
    shown = json.loads(holdfast("local", "logs", "a/1", "--dir", str(stopped), "--json").stdout)
    assert shown["lines"] == ["one", "two", "[error    ] three"]
    assert shown["file"] == str(stopped / "a/1/node.log")


def test_down_removes_what_is_ours_and_nothing_else(holdfast: Run, stopped: Path) -> None:
    (stopped / "thesis.tex").write_text("dear")
    result = holdfast("local", "down", "--delete", "--dir", str(stopped), "--json")
    assert json.loads(result.stdout) == {"dir": str(stopped), "deleted": True}
    assert [path.name for path in stopped.iterdir()] == ["thesis.tex"]


def test_the_command_line_finds_the_local_cluster(
    holdfast: Run, scripted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TEMPORAL_CONFIG_FILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    context = tmp_path / ".holdfast/context.toml"
    context.parent.mkdir()
    context.write_text(f'[profile.default]\naddress = "{scripted.address}"\n')
    assert json.loads(holdfast("cluster", "version", "--json").stdout)["address"] == scripted.address
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    assert "127.0.0.1:1" in holdfast("cluster", "version").stderr, "a variable comes first"
    result = holdfast("cluster", "version", "--context", str(context), "--json")
    assert json.loads(result.stdout)["server"] == "1.29.0"
