"""What `holdfast region` asks, and makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result

from tests.cluster.admin.test_region_commands import Script, refuse, script

__all__ = ["script"]

Run = Callable[..., Result]
ADDED = {"why": "region b (index 2) works with this one", "changed": True, "region": "b", "index": 2}


def a_row(name: str, index: int, state: str, up: int, **other: Any) -> dict[str, Any]:
    nodes = [
        {"id": n, "peers": f"10.{index}.0.{n}:7301", "grpc": f"10.{index}.0.{n}:7233", "up": n <= up}
        for n in (1, 2)
    ]
    return {
        "name": name, "index": index, "state": state, "nodes": nodes, "cluster_id": "", "problem": "", **other
    }  # fmt: skip


def listed(state: str, up: int, **other: Any) -> dict[str, Any]:
    return {"regions": [a_row("a", 1, "here", 2), a_row("b", 2, state, up, **other)]}


def test_add_asks_once_and_waits_until_the_other_can_be_reached(holdfast: Run, script: Script) -> None:
    script.answers = {"introduce": [ADDED], "regions": [listed("down", 0), listed("up", 1)]}
    result = holdfast("region", "add", "10.2.0.1:7301", "10.2.0.2:7301")
    assert (result.exit_code, result.stdout) == (0, "done: region b (index 2) works with this one\n")
    assert "no node of region b can be reached yet" in result.stderr
    assert [one["do"] for one in script.asked] == ["introduce", "regions", "regions"]
    assert script.asked[0]["at"] == ["10.2.0.1:7301", "10.2.0.2:7301"]


def test_add_need_not_wait(holdfast: Run, script: Script) -> None:
    script.answers = {"introduce": [ADDED]}
    result = holdfast("region", "add", "10.2.0.1:7301", "--no-wait", "--json")
    assert json.loads(result.stdout) == {**ADDED, "done": False}


@pytest.mark.parametrize("address", ["10.2.0.1", "10.2.0.1:x", "10.2.0.1:70000"])
def test_what_is_no_address_is_not_asked_for(holdfast: Run, script: Script, address: str) -> None:
    result = holdfast("region", "add", address)
    assert result.exit_code == 2
    assert "port" in result.stderr
    assert not script.asked


def test_a_refusal_says_what_to_do(holdfast: Run, script: Script) -> None:
    refuse(
        script,
        grpc.StatusCode.FAILED_PRECONDITION,
        "both regions are called a: make a anew with another name",
    )
    result = holdfast("region", "add", "10.2.0.1:7301")
    assert result.exit_code == 1
    assert "both regions are called a\n  do: make a anew with another name" in result.stderr


def test_a_lost_answer_leaves_it_open(holdfast: Run, script: Script) -> None:
    refuse(script, grpc.StatusCode.UNAVAILABLE, "the connection broke; it may have happened there")
    assert holdfast("region", "add", "10.2.0.1:7301").exit_code == 3


def test_list_shows_who_is_reached_and_who_will_not_have_us(holdfast: Run, script: Script) -> None:
    problem = "region b was removed from a, and does not come back"
    script.answers = {"regions": [listed("down", 0, problem=problem)]}
    result = holdfast("region", "list")
    assert result.exit_code == 0
    heading, own, other, note = result.stdout.splitlines()
    assert heading.split() == ["region", "index", "state", "nodes", "peers"]
    assert own.split()[:4] == ["a", "1", "here", "2"]
    assert other.split() == ["b", "2", "down", "0", "of", "2", "10.2.0.1:7301,", "10.2.0.2:7301"]
    assert note == f"b will not have this region: {problem}"
    assert json.loads(holdfast("region", "list", "--json").stdout) == listed("down", 0, problem=problem)


def test_remove_wants_to_be_meant(holdfast: Run, script: Script) -> None:
    script.answers = {"part": [{"why": "region b is removed", "changed": True, "region": "b"}]}
    result = holdfast("region", "remove", "b")
    assert result.exit_code == 2
    assert "add --yes" in result.stderr
    assert not script.asked
    result = holdfast("region", "remove", "b", "--yes")
    assert (result.exit_code, result.stdout) == (0, "region b is removed\n")
    assert "remove this one there, too" in result.stderr
    assert script.asked == [{"do": "part", "region": "b"}]
    assert json.loads(holdfast("region", "remove", "b", "--yes", "--json").stdout)["changed"]
