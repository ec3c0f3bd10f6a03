"""`holdfast config` and `holdfast server start`: what they print, and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Run = Callable[..., Result]

GOOD = """
[node]
name = "a/{number}"
data_dir = "data{number}"
machine = "m{number}"
[region]
name = "a"
nodes = ["a/1=127.0.0.1:7301", "a/2=127.0.0.1:7311", "a/3=127.0.0.1:7321"]
[listen]
grpc = {grpc}
peers = {peers}
"""


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    result = []
    for number in (1, 2, 3):
        file = tmp_path / f"{number}.toml"
        file.write_text(GOOD.format(number=number, grpc=7290 + 10 * number, peers=7291 + 10 * number))
        result.append(str(file))
    return result


def test_files_that_are_right(holdfast: Run, files: list[str]) -> None:
    result = holdfast("config", "check", *files, "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["ok"]
    assert answer["problems"] == []
    assert [one["node"] for one in answer["files"]] == ["a/1", "a/2", "a/3"]
    assert "node a/1: ok" in holdfast("config", "check", files[0]).stdout


def test_a_file_that_is_wrong(holdfast: Run, files: list[str]) -> None:
    Path(files[1]).write_text(Path(files[1]).read_text() + "[raft]\ntick_ms = 1\n")
    result = holdfast("config", "check", *files, "--json")
    assert result.exit_code == 1
    answer = json.loads(result.stdout)
    assert not answer["ok"]
    assert [len(one["problems"]) for one in answer["files"]] == [0, 1, 0]
    assert f"{files[1]}: raft.tick_ms = 1: " in holdfast("config", "check", files[1]).stdout


def test_files_that_do_not_agree(holdfast: Run, files: list[str]) -> None:
    result = holdfast("config", "check", files[0], files[0], "--json")
    assert result.exit_code == 1
    assert any("node.name" in problem for problem in json.loads(result.stdout)["problems"])


def test_the_defaults_are_shown(holdfast: Run) -> None:
    settings = {
        one["key"]: one for one in json.loads(holdfast("config", "show", "--json").stdout)["settings"]
    }
    assert settings["raft.tick_ms"]["value"] == 50
    assert settings["raft.tick_ms"]["source"] == "default"
    assert settings["node.name"]["source"] == "required"
    assert settings["node.machine"]["source"] == "derived"
    assert "Length of a tick." in holdfast("config", "show").stdout


def test_a_value_says_where_it_comes_from(holdfast: Run, files: list[str]) -> None:
    shown = json.loads(holdfast("config", "show", files[1], "--json").stdout)
    sources = {one["key"]: (one["value"], one["source"]) for one in shown["settings"]}
    assert sources["node.name"] == ("a/2", "file")
    assert sources["raft.tick_ms"] == (50, "default")
    assert sources["advertise.peers"] == ("127.0.0.1:7311", "derived")
    assert sources["tls.peers.cert"] == (None, "absent")
    assert '"a/2"' in holdfast("config", "show", files[1]).stdout


@pytest.mark.parametrize("command", [("config", "show"), ("server", "start", "--config")])
def test_a_configuration_that_cannot_be_used_is_a_usage_error(
    holdfast: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[node]\nname = 3\n")
    result = holdfast(*command, str(file))
    assert result.exit_code == 2
    assert "node.name = 3: it has to be REGION/NAME" in result.stderr
    assert "node.data_dir is missing" in result.stderr
    assert "do: correct the file" in result.stderr
    assert result.stdout == ""
