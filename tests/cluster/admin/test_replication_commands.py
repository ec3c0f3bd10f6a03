"""`holdfast replication log init` and what `config check` says of the log: words and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import Result

from cluster.hosting.config.node_config import NodeConfig
from cluster.hosting.process import region_log
from cluster.hosting.process.region_log import LogNotUsable
from replication.log.contract import LogDenied, LogStore, SchemaMismatch

Run = Callable[..., Result]

FILE = """
[node]
name = "a/1"
data_dir = "data"
[region]
name = "a"
nodes = ["a/1=127.0.0.1:7301"]
replicas = 1
"""
ON_CASSANDRA = '[replication]\nlog = "cassandra"\n[cassandra]\ncontact_points = ["127.0.0.9"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(FILE + ON_CASSANDRA)
    return path


class Made(NamedTuple):
    made: bool
    added: tuple[str, ...]


class Operator:
    """In Cassandra's place: what was asked for, and what is answered."""

    def __init__(self) -> None:
        self.answer: Made | LogNotUsable = Made(True, ())
        self.asked: list[tuple[dict[str, int], tuple[str, str] | None]] = []

    async def create(
        self, config: NodeConfig, copies: Mapping[str, int], login: tuple[str, str] | None = None
    ) -> Made:
        assert config.cassandra is not None
        self.asked.append((dict(copies), login))
        if isinstance(self.answer, LogNotUsable):
            raise self.answer
        return self.answer


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> Operator:
    made = Operator()
    monkeypatch.setattr(region_log, "create", made.create)
    return made


def init(holdfast: Run, file: Path, *more: str, **settings: str) -> Result:
    return holdfast("replication", "log", "init", "--config", str(file), *more, **settings)


def test_it_is_made_in_all_regions(holdfast: Run, file: Path, operator: Operator) -> None:
    result = init(holdfast, file, "--regions", "a, b,a", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "keyspace": "holdfast",
        "regions": ["a", "b"],
        "made": True,
        "added": [],
    }
    assert operator.asked == [({"a": 3, "b": 3}, None)]
    assert "making keyspace holdfast" in result.stderr


def test_again_there_is_nothing_to_do(holdfast: Run, file: Path, operator: Operator) -> None:
    operator.answer = Made(False, ())
    assert "nothing to do" in init(holdfast, file, "--regions", "a").stdout


def test_a_region_more(holdfast: Run, file: Path, operator: Operator) -> None:
    operator.answer = Made(False, ("b",))
    result = init(holdfast, file, "--regions", "a,b", "--copies", "1")
    assert "has copies in b from now on" in result.stdout
    assert "nodetool rebuild" in result.stderr
    assert operator.asked == [({"a": 1, "b": 1}, None)]


def test_somebody_else_may_make_it(holdfast: Run, file: Path, operator: Operator) -> None:
    result = init(holdfast, file, "--regions", "a", "--user", "admin", input="a pass word\n")
    assert result.exit_code == 0
    assert operator.asked[0][1] == ("admin", "a pass word")
    assert "a pass word" not in result.output


def test_a_refusal_says_what_to_do(holdfast: Run, file: Path, operator: Operator) -> None:
    operator.answer = LogNotUsable("the tables have version 2", "run the release that made them")
    result = init(holdfast, file, "--regions", "a", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    said = json.loads(result.stderr.splitlines()[-1])
    assert said == {
        "error": "the tables have version 2",
        "do": "run the release that made them",
        "exit_code": 1,
    }


def test_what_makes_no_sense_is_a_usage_error(holdfast: Run, file: Path, operator: Operator) -> None:
    assert init(holdfast, file, "--regions", "b,c").exit_code == 2
    file.write_text(FILE)
    result = init(holdfast, file, "--regions", "a")
    assert result.exit_code == 2
    assert "has no log on Cassandra" in result.stderr
    assert operator.asked == []


# ------------------------------------------------------------------------------------------ config check


@pytest.mark.parametrize(
    ("why", "words"),
    [
        (LogDenied("AuthenticationFailed"), "does not let a client without a user in"),
        (SchemaMismatch("keyspace holdfast: none"), "replication log init"),
    ],
)
def test_a_check_says_what_is_wrong_with_the_log(
    holdfast: Run, file: Path, monkeypatch: pytest.MonkeyPatch, why: Exception, words: str
) -> None:
    async def refused(config: NodeConfig) -> LogStore:
        raise why

    monkeypatch.setattr(region_log, "open_log", refused)
    result = holdfast("config", "check", str(file), "--json")
    assert result.exit_code == 1
    (one,) = json.loads(result.stdout)["files"]
    assert words in one["problems"][0]
    assert "node a/1: ok" not in holdfast("config", "check", str(file)).stdout
    offline = holdfast("config", "check", str(file), "--offline")
    assert offline.exit_code == 0
    assert "node a/1: ok" in offline.stdout


def test_without_a_log_a_check_connects_to_nothing(
    holdfast: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(region_log, "open_log")
    file.write_text(FILE)
    assert holdfast("config", "check", str(file)).exit_code == 0
