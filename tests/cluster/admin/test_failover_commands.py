"""What `holdfast namespace failover` and its like make of the regions' answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from click.testing import Result

from cluster.admin import region
from tests.cluster.admin.test_region_commands import Script

Run = Callable[..., Result]


@pytest.fixture
def script(scripted: Any, holdfast: Run, monkeypatch: pytest.MonkeyPatch) -> Script:
    monkeypatch.setattr(region, "LOOK_S", 0.001)
    monkeypatch.setenv("HOLDFAST_ADDRESS", scripted.address)
    return Script(scripted)


def shown(phase: str = "prepare", **other: Any) -> dict[str, Any]:
    """As the source shows it."""
    decided = phase in ("committed", "done", "aborted")
    handover = {
        "number": 1, "phase": phase, "decided": decided, "moved": phase in ("committed", "done"), "why": "",
        "waits": "" if decided else "shard 1 is 9.0 s behind", "source": "a", "target": "b", "base": 1,
        "version": 2, "paused_ms": 140 if decided else None, "lag_ms": 20, "entries": 3, "request_id": "r",
    }  # fmt: skip
    active = "b" if handover["moved"] else "a"
    return {
        "namespace": "orders", "region": "a", "version": 1, "active": active, "regions": ["a", "b"],
        "state": "normal", "settled": True, "handover": handover, "history": [], "unreachable": [], **other,
    }  # fmt: skip


LOSS = {
    "lines": ["7 entries are not applied; shard 3 is 2.0 s behind"], "needs_yes": False, "lossless": False,
    "entries": 7, "lag_ms": 2000,
}  # fmt: skip
FAIL_OVER = ("namespace", "failover", "orders", "--to", "b")


def test_a_graceful_one_is_followed_to_its_end(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown() | {"changed": True}]
    script.answers["failover_status"] = [
        shown(), shown("fencing"), shown("draining"), shown("committed"),
        shown("done", settled=False), shown("done"),
    ]  # fmt: skip
    result = holdfast(*FAIL_OVER, "--request-id", "x", "--reason", "why not", "--max-wait", "5s")
    assert result.exit_code == 0, result.stderr
    begun, *looks = script.asked
    assert (begun["do"], begun["mode"], begun["request_id"]) == ("failover", "graceful", "x graceful")
    assert (begun["reason"], begun["max_wait_ms"], begun["to"]) == ("why not", 5000, "b")
    assert {look["to"] for look in looks[:4]} == {"a"}  # who decides it
    assert {look["to"] for look in looks[4:]} == {"b"}  # who serves then
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [
        "prepare", "fencing", "draining", "committed", "b begins to serve",
    ]  # fmt: skip
    for said in ("b", "140 ms", "3 entries", "20 ms"):
        assert said in result.stdout


def test_as_json_it_says_all_that_happened(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown()]
    script.answers["failover_status"] = [shown("done")]
    result = holdfast(*FAIL_OVER, "--json")
    answer = json.loads(result.stdout)
    assert (answer["mode"], answer["served"], answer["handover"]["paused_ms"]) == ("graceful", True, 140)


def test_one_that_is_taken_back_failed(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown()]
    aborted = shown("aborted")
    aborted["handover"]["why"] = "the time is up"
    script.answers["failover_status"] = [aborted]
    result = holdfast(*FAIL_OVER)
    assert result.exit_code == 1
    assert "orders stays in a: the time is up" in result.stderr
    assert {request.get("mode") for request in script.asked} == {"graceful", None}


def test_a_forced_one_says_what_is_lost_and_does_nothing_unasked(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown() | LOSS]
    result = holdfast(*FAIL_OVER, "--mode", "forced")
    assert result.exit_code == 1
    assert "7 entries are not applied" in result.stderr
    assert "--yes" in result.stderr
    assert [request.get("dry_run") for request in script.asked] == [True]


@pytest.mark.parametrize("lossless", [True, False])
def test_a_forced_one(holdfast: Run, script: Script, lossless: bool) -> None:
    told = shown() | LOSS | {"lossless": lossless, "handover": None}
    done = (
        shown("done")
        | LOSS
        | {"handover": None, "verdict": "confirmed locally", "unread": ["a"], "version": 2}
    )
    script.answers["failover"] = [told, done]
    script.answers["failover_status"] = [done]
    result = holdfast(*FAIL_OVER, "--mode", "forced", *(() if lossless else ("--yes",)))
    assert result.exit_code == 0, result.stderr
    assert [(one.get("dry_run", False), one.get("yes", False)) for one in script.asked[:2]] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert "confirmed locally" in result.stdout
    assert "7 entries" in result.stdout


def test_a_race_that_was_lost_is_no_success(holdfast: Run, script: Script) -> None:
    lost = shown("done") | LOSS | {"handover": None, "verdict": "lost race", "truth": 103, "unread": []}
    script.answers["failover"] = [shown() | LOSS, lost]
    script.answers["failover_status"] = [lost]
    result = holdfast(*FAIL_OVER, "--mode", "forced", "--yes", "--json")
    assert result.exit_code == 1
    assert "103" in result.stderr


def test_hybrid_goes_on_forced_when_graceful_came_to_nothing(holdfast: Run, script: Script) -> None:
    forced = shown("done") | LOSS | {"handover": None, "verdict": "confirmed", "unread": []}
    script.answers["failover"] = [shown(), shown() | LOSS, forced]
    aborted = shown("aborted")
    script.answers["failover_status"] = [aborted, aborted, forced]
    result = holdfast(*FAIL_OVER, "--mode", "hybrid", "--yes", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["mode"] == "forced"
    modes = [(one["mode"], one.get("max_wait_ms")) for one in script.asked if one["do"] == "failover"]
    assert modes == [("graceful", 10_000), ("forced", None), ("forced", None)]


def test_hybrid_does_not_force_what_was_committed(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown()]
    aborted = shown("aborted")
    script.answers["failover_status"] = [aborted, shown("done")]
    result = holdfast(*FAIL_OVER, "--mode", "hybrid", "--yes", "--json")
    assert json.loads(result.stdout)["mode"] == "graceful"
    assert sum(one["do"] == "failover" for one in script.asked) == 1


def test_a_dry_run_changes_nothing(holdfast: Run, script: Script) -> None:
    script.answers["failover"] = [shown() | {"lines": ["the target is bootstrapping"], "changed": False}]
    result = holdfast(*FAIL_OVER, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "the target is bootstrapping\n")
    assert [one["dry_run"] for one in script.asked] == [True]


def test_a_refusal_says_what_to_do(holdfast: Run, script: Script) -> None:
    script.server.answers["Do"] = (
        grpc.StatusCode.FAILED_PRECONDITION, "there is no region 'x': choose one of a, b",
    )  # fmt: skip
    result = holdfast(*FAIL_OVER)
    assert result.exit_code == 1
    assert "do: choose one of a, b" in result.stderr


def test_how_it_stands(holdfast: Run, script: Script) -> None:
    row = {"version": 1, "mode": "create", "base": 0, "active": "a", "operator": "ann", "reason": "new"}
    script.answers["failover_status"] = [shown("draining", history=[row], state="handover")]
    result = holdfast("namespace", "failover-status", "orders", "--at", "a")
    for said in ("handover", "draining, a to b", "shard 1 is 9.0 s behind", "ann"):
        assert said in result.stdout
    assert script.asked[0]["to"] == "a"


@pytest.mark.parametrize("verb", ["add-region", "remove-region"])
def test_who_holds_it(holdfast: Run, script: Script, verb: str) -> None:
    script.answers[verb.replace("-", "_")] = [shown()]
    result = holdfast("namespace", verb, "orders", "b")
    assert result.stdout == "orders is held by a, b\n"
    assert (script.asked[0]["namespace"], script.asked[0]["to"]) == ("orders", "b")


def test_it_is_taken_back(holdfast: Run, script: Script) -> None:
    script.answers["failover_abort"] = [shown("aborted")]
    assert holdfast("namespace", "failover-abort", "orders").stdout == "orders stays in a\n"
