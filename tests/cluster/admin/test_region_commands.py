"""What `holdfast cluster`, `node` and `shard` make of a region's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import Result
from temporalio.api.workflowservice.v1 import DescribeNamespaceResponse

from cluster.admin import region
from cluster.hosting.config.node_config import load

Run = Callable[..., Result]
CHANGED = {"why": "a/2 drains", "changed": True, "moves": []}


def a_node(number: int, **other: Any) -> dict[str, Any]:
    return {
        "id": number, "name": f"a/{number}", "state": "active", "up": True, "machine": f"m{number}",
        "peers": f"10.0.0.{number}:7301", "grpc": f"10.0.0.{number}:7233", "metrics": "", "version": "0.1.0",
        "leads": 3, "replicas": 8, "wanted": 8, "load": 0.25, "slow": False, "joined_ns": 0, **other,
    }  # fmt: skip


def a_shard(number: int, **other: Any) -> dict[str, Any]:
    names = ["a/1", "a/2", "a/3"]
    return {
        "id": number, "state": "serving", "slots": [[0, 2047]], "slot_count": 2048, "leader": "a/1",
        "wanted": names, "voters": names, "learners": [], "behind": [], "settled": True, "waits": "", **other,
    }  # fmt: skip


class Script:
    """What the region answers: to each verb one thing after the other, the last for ever."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[dict[str, Any]] = []
        server.answers["Do"] = self
        server.answers["DescribeNamespace"] = DescribeNamespaceResponse()

    def __call__(self, body: bytes) -> Any:
        request = json.loads(body)
        self.asked.append(request)
        answers = self.answers[request["do"]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return Raw(json.dumps(answer).encode())


class Raw:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def SerializeToString(self) -> bytes:
        return self.body


@pytest.fixture
def script(scripted: Any, holdfast: Run, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Its address is found in the environment, which `holdfast` has emptied."""
    monkeypatch.setattr(region, "LOOK_S", 0.001)
    monkeypatch.setenv("HOLDFAST_ADDRESS", scripted.address)
    return Script(scripted)


def refuse(script: Script, code: grpc.StatusCode, message: str) -> None:
    script.server.answers["Do"] = (code, message)


class TestHealth:
    def test_the_regions_problems_are_ours(self, holdfast: Run, script: Script) -> None:
        problem = {
            "what": "a/2 is down",
            "where": "a/2",
            "since_ns": 1_767_323_045_678_000_000,
            "do": "start it",
        }
        script.answers["health"] = [{"ok": False, "problems": [problem]}]
        result = holdfast("cluster", "health", "--json")
        assert result.exit_code == 1
        (told,) = json.loads(result.stdout)["problems"]
        assert told == {
            "what": "a/2 is down", "where": "a/2", "since": "2026-01-02T03:04:05.678Z", "do": "start it"
        }  # fmt: skip

    def test_a_node_that_was_never_heard_from_is_no_other_version(
        self, holdfast: Run, script: Script
    ) -> None:
        versions = {"0.2.0": ["a/1"], "": ["a/2", "a/3"]}
        script.answers["health"] = [{"ok": True, "problems": [], "versions": versions, "formats": 1}]
        shown = holdfast("cluster", "health").stdout
        assert shown.splitlines() == ["ok", "version 0.2.0: a/1", "not heard from yet: a/2, a/3"]

    def test_versions_are_told_and_an_upgrade_that_is_under_way(self, holdfast: Run, script: Script) -> None:
        versions = {"0.2.0": ["a/1", "a/2"], "0.1.0": ["a/3"]}
        answer = {"ok": True, "problems": [], "versions": versions, "formats": 1}
        script.answers["health"] = [answer, answer]
        assert json.loads(holdfast("cluster", "health", "--json").stdout) == answer
        assert holdfast("cluster", "health").stdout.splitlines() == [
            "ok",
            "version 0.2.0: a/1, a/2",
            "version 0.1.0: a/3",
            "an upgrade is under way; what the nodes write has format 1",
        ]

    def test_a_server_that_has_no_such_method_may_be_well(self, holdfast: Run, script: Script) -> None:
        del script.server.answers["Do"]
        result = holdfast("cluster", "health")
        assert (result.exit_code, result.stdout) == (0, "ok\n")

    def test_without_a_leader_the_node_tells_what_it_sees(self, holdfast: Run, script: Script) -> None:
        problem = {"what": "no steward", "where": "region", "since_ns": 1, "do": "start a majority"}

        def answer(body: bytes) -> Any:
            if not json.loads(body).get("here"):
                raise LookupError("no leader")
            return Raw(json.dumps({"ok": False, "problems": [problem]}).encode())

        script.server.answers["Do"] = answer
        result = holdfast("cluster", "health")
        assert result.exit_code == 1
        assert "no steward" in result.stdout


class TestSeen:
    """Nobody leads the region: what there is to see is shown, and that it may be old is said."""

    @pytest.fixture(autouse=True)
    def leaderless(self, script: Script) -> None:
        shown = {"nodes": [a_node(1), a_node(2, up=False)], "shards": [a_shard(1, leader=None, down=["a/2"])]}

        def answer(body: bytes) -> Any:
            request = json.loads(body)
            if not request.get("here"):
                return grpc.StatusCode.UNAVAILABLE, f"shard 0 has {region.NO_LEADER}"
            return Raw(json.dumps({request["do"]: shown[request["do"]], **self.seen}).encode())

        self.seen = {"seen_by": "a/1"}
        script.server.answers["Do"] = answer

    @pytest.mark.parametrize("arguments", [("cluster", "nodes"), ("node", "list"), ("shard", "list")])
    def test_for_people_and_for_programs(self, holdfast: Run, arguments: tuple[str, ...]) -> None:
        result = holdfast(*arguments)
        assert result.exit_code == 1
        assert "a/1" in result.stdout
        assert "this is what a/1 sees by itself" in result.stderr
        result = holdfast(*arguments, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["seen_by"] == "a/1"
        assert result.stderr == "", "the answer says it"

    def test_what_only_others_know_is_not_shown_as_good(self, holdfast: Run, script: Script) -> None:
        unknown = {
            "nodes": [a_node(1, load=None, slow=None)], "shards": [a_shard(1, behind=None)], **self.seen
        }  # fmt: skip
        script.server.answers["Do"] = lambda body: (
            Raw(json.dumps(unknown).encode())
            if json.loads(body).get("here")
            else (grpc.StatusCode.UNAVAILABLE, region.NO_LEADER)
        )
        assert "%" not in holdfast("node", "list").stdout
        assert holdfast("shard", "list").stdout.splitlines()[-1].endswith("leader elsewhere")

    def test_a_node_of_an_older_release_answers_as_it_can(self, holdfast: Run) -> None:
        self.seen = {}
        for arguments in (("shard", "list"), ("node", "list", "--json")):
            result = holdfast(*arguments)
            assert (result.exit_code, result.stderr) == (0, "")

    def test_it_is_not_what_a_broken_server_is_asked_for(self, holdfast: Run, script: Script) -> None:
        script.server.answers["Do"] = (grpc.StatusCode.INTERNAL, "oh")
        result = holdfast("shard", "list", "--json")
        assert result.exit_code == 1
        assert result.stdout == ""
        told = json.loads(result.stderr)
        assert set(told) == {"error", "do", "exit_code"}
        assert "oh" in told["error"]
        assert [json.loads(body).get("here") for name, body in script.server.asked if name == "Do"] == [None]


class TestNodes:
    def test_the_list(self, holdfast: Run, script: Script) -> None:
        moving = a_node(2, up=False, load=None, replicas=5)
        script.answers["nodes"] = [{"nodes": [a_node(1), moving], "complete": True}]
        lines = holdfast("cluster", "nodes").stdout.splitlines()
        assert "active, down" in lines[2]
        assert "5 of 8" in lines[2]
        shown = json.loads(holdfast("node", "list", "--json", "--all").stdout)
        assert shown["nodes"][0]["joined"] == "1970-01-01T00:00:00.000Z"
        assert [asked.get("all") for asked in script.asked] == [None, True]

    def test_draining_waits_until_it_leads_nothing(self, holdfast: Run, script: Script) -> None:
        script.answers["drain"] = [CHANGED]
        script.answers["nodes"] = [
            {"nodes": [a_node(2, leads=leads)], "complete": True} for leads in (3, 1, 0)
        ]
        result = holdfast("node", "drain", "a/2")
        assert result.exit_code == 0
        assert result.stderr == "a/2 leads 3 groups\na/2 leads 1 groups\n"
        assert result.stdout == "a/2 drains\na/2 is drained\n"
        assert script.asked[0] == {"do": "drain", "node": "a/2"}

    def test_who_drains_a_node_is_told_that_another_is_down(self, holdfast: Run, script: Script) -> None:
        script.answers["drain"] = [CHANGED]
        gone = a_node(3, up=False)
        script.answers["nodes"] = [{"nodes": [a_node(1), a_node(2, leads=0), gone], "complete": True}]
        result = holdfast("node", "drain", "a/2", "--json")
        assert result.exit_code == 0
        assert json.loads(result.stdout)["done"]
        assert result.stderr.startswith("do not stop a/2 yet: a/3 is down, ")

    def test_what_takes_too_long_goes_on_by_itself(self, holdfast: Run, script: Script) -> None:
        script.answers["drain"] = [CHANGED]
        script.answers["nodes"] = [{"nodes": [a_node(2, leads=1)], "complete": True}]
        result = holdfast("node", "drain", "a/2", "--timeout", "20ms")
        assert result.exit_code == 1
        assert "not done after 0.02 s: a/2 leads 1 groups" in result.stderr
        result = holdfast("node", "drain", "a/2", "--no-wait", "--json")
        assert json.loads(result.stdout) == {"node": "a/2", **CHANGED, "done": False}

    def test_a_node_that_restarts_meanwhile_is_waited_for(
        self, holdfast: Run, script: Script, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        script.answers["remove"] = [{**CHANGED, "why": "a/2 leaves"}]
        script.answers["nodes"] = [
            {"nodes": [a_node(1)], "complete": True},  # "there is no node a/2": the asked one lags
            {"nodes": [a_node(2, state="leaving", replicas=1)], "complete": True},
            {"nodes": [a_node(2, state="removed")], "complete": True},
        ]
        result = holdfast("node", "remove", "a/2")
        assert result.exit_code == 0
        assert result.stdout.endswith("a/2 is removed\n")

    def test_a_refusal_says_what_to_do(self, holdfast: Run, script: Script) -> None:
        refuse(
            script,
            grpc.StatusCode.FAILED_PRECONDITION,
            "replicas would be 2 of 3: add a node first, or --force",
        )
        result = holdfast("node", "remove", "a/2")
        assert result.exit_code == 1
        assert result.stderr == "holdfast: replicas would be 2 of 3\n  do: add a node first, or --force\n"

    def test_a_lost_answer_is_indefinite_and_a_look_is_not(self, holdfast: Run, script: Script) -> None:
        refuse(script, grpc.StatusCode.UNAVAILABLE, "no leader")
        assert holdfast("node", "drain", "a/2").exit_code == 3
        assert holdfast("node", "list").exit_code == 1
        assert holdfast("node", "remove", "a/2", "--dry-run").exit_code == 1

    def test_a_region_without_a_leader_is_called_that(self, holdfast: Run, script: Script) -> None:
        refuse(
            script, grpc.StatusCode.UNAVAILABLE, "the shard that is to answer has no leader at present (are"
        )
        for arguments, code in ((("shard", "list"), 1), (("node", "drain", "a/2"), 3)):
            result = holdfast(*arguments)
            assert result.exit_code == code
            assert "nobody leads the region at present" in result.stderr
            assert "do: `holdfast cluster health` says which nodes are missing" in result.stderr

    def test_nobody_listens(self, holdfast: Run) -> None:
        result = holdfast("node", "drain", "a/2", "--address", "127.0.0.1:1")
        assert result.exit_code == 1
        assert "connection refused" in result.stderr


class TestAdd:
    @pytest.fixture(autouse=True)
    def region_of_two(self, script: Script) -> None:
        script.answers["nodes"] = [{"nodes": [a_node(1), a_node(2, up=False)], "complete": True}]

    def test_a_node_would_take_the_file(self, holdfast: Run, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        result = holdfast(
            "node", "add", "a/4", "--peers", "10.0.0.4:7301", "--listen", "0.0.0.0", "--machine", "rack-4",
            "--metrics-port", "9090", "--config-out", str(file),
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        config = load(file)
        assert config.seeds == (("10.0.0.1", 7301),)
        assert (config.node.name, config.node.machine, config.listen.host) == ("a/4", "rack-4", "0.0.0.0")
        assert (config.advertise.peers, config.advertise.grpc) == ("10.0.0.4:7301", "10.0.0.4:7233")
        again = holdfast("node", "add", "a/4", "--peers", "10.0.0.4:7301", "--config-out", str(file))
        assert again.exit_code == 1
        assert "is there already" in again.stderr

    def test_it_is_printed_otherwise(self, holdfast: Run) -> None:
        result = holdfast("node", "add", "a/4", "--peers", "10.0.0.4:7301")
        assert 'join = ["10.0.0.1:7301"]' in result.stdout

    @pytest.mark.parametrize(
        ("name", "peers", "why"),
        [
            ("a/1", "10.0.0.4:7301", "a/1 is in the region already, as node 1"),
            ("a/4", "10.0.0.2:7301", "10.0.0.2:7301 is the address of a/2"),
            ("b/4", "10.0.0.4:7301", "is no name in region 'a'"),
        ],
    )
    def test_what_cannot_join(self, holdfast: Run, name: str, peers: str, why: str) -> None:
        result = holdfast("node", "add", name, "--peers", peers)
        assert result.exit_code == 1
        assert why in result.stderr

    def test_an_address_needs_a_port(self, holdfast: Run) -> None:
        assert holdfast("node", "add", "a/4", "--peers", "10.0.0.4").exit_code == 2

    def test_a_file_that_no_node_would_take_is_not_left(self, holdfast: Run, tmp_path: Path) -> None:
        file = tmp_path / "node.toml"
        result = holdfast(
            "node",
            "add",
            "a/4",
            "--peers",
            "10.0.0.4:7301",
            "--metrics-port",
            "7301",
            "--config-out",
            str(file),
        )
        assert result.exit_code == 1
        assert "listen.metrics" in result.stderr
        assert not file.exists()


class TestShards:
    def test_the_list(self, holdfast: Run, script: Script) -> None:
        moving = a_shard(
            1, wanted=["a/1", "a/2", "a/4"], settled=False, waits="4 groups are changing already"
        )
        half = a_shard(3, down=["a/2"])
        script.answers["shards"] = [{"shards": [a_shard(0), moving, a_shard(2, leader=None), half]}]
        lines = holdfast("shard", "list").stdout.splitlines()
        assert lines[1].split()[:2] == ["0", "(meta)"]
        assert "to a/4; off a/3; 4 groups are changing already" in lines[2]
        assert "no leader" in lines[3]
        assert "down: a/2" in lines[4]

    def test_a_move_is_waited_for(self, holdfast: Run, script: Script) -> None:
        script.answers["move"] = [
            {"why": "w", "changed": True, "moves": [{"shard": 1, "from": "a/1", "to": "a/4"}]}
        ]
        script.answers["shards"] = [{"shards": [a_shard(1, settled=settled)]} for settled in (False, True)]
        result = holdfast("shard", "move", "1", "--from", "a/1", "--to", "a/4")
        assert result.exit_code == 0
        assert script.asked[0] == {"do": "move", "shard": 1, "node": "a/1", "to": "a/4"}
        assert result.stdout == "w\n  shard 1: from a/1 to a/4\ndone\n"
        assert result.stderr == "0 of 1 shards are where they belong\n"

    def test_an_abandoned_split_is_waited_for_and_may_be_too_late(
        self, holdfast: Run, script: Script
    ) -> None:
        why = "shard 1 is to stay whole, without shard 9"
        script.answers["abandon"] = [{"why": why, "changed": True, "moves": [], "shard": 1, "child": 9}]
        coming = a_shard(9, state="preparing", leader=None, settled=False, waits="it is being abandoned")
        script.answers["shards"] = [{"shards": shards} for shards in ([a_shard(1), coming], [a_shard(1)])]
        result = holdfast("shard", "split", "9", "--abandon")
        assert result.exit_code == 0
        assert script.asked[0] == {"do": "abandon", "shard": 9}
        assert result.stdout == f"done: {why}\n"
        assert result.stderr == "shard 9 is coming: it is being abandoned\n"
        script.answers["shards"] = [{"shards": shards} for shards in ([coming], [a_shard(9)])]
        result = holdfast("shard", "split", "1", "--abandon", "--json")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "it was too late, shard 9 serves what shard 1 gave up" in result.stderr
        result = holdfast("shard", "split", "1", "--abandon", "--json", "--no-wait")
        assert json.loads(result.stdout)["done"] is False
        assert holdfast("shard", "split", "1", "--abandon", "--at", "5").exit_code == 2

    def test_who_waits_for_a_split_hears_that_it_was_abandoned(self, holdfast: Run, script: Script) -> None:
        script.answers["split"] = [
            {"why": "w", "changed": True, "moves": [], "shard": 1, "child": 9, "slot": 1024}
        ]
        script.answers["shards"] = [{"shards": [a_shard(1)]}]
        result = holdfast("shard", "split", "1", "--at", "1024")
        assert (result.exit_code, result.stdout) == (1, "")
        assert "the split of shard 1 was abandoned meanwhile" in result.stderr

    def test_a_split_says_its_slot_and_is_waited_for(self, holdfast: Run, script: Script) -> None:
        script.answers["split"] = [
            {"why": "w", "changed": True, "moves": [], "shard": 1, "child": 9, "slot": 1024}
        ]
        coming = a_shard(9, state="preparing", leader=None, settled=False, waits="its rows are being copied")
        script.answers["shards"] = [
            {"shards": shards}
            for shards in (
                [a_shard(1)],
                [a_shard(1), coming],
                [a_shard(1), a_shard(9, leader=None)],
                [a_shard(1), a_shard(9)],
            )
        ]
        result = holdfast("shard", "split", "1")
        assert result.exit_code == 0
        assert script.asked[1] == {"do": "split", "shard": 1, "slot": 1024}, "asked again, it is the same"
        assert result.stdout == "done: w\n"
        assert result.stderr == (
            "shard 9 is coming: its rows are being copied\nshard 9 serves, and is about to have a leader\n"
        )
        script.answers["shards"] = [{"shards": [a_shard(1), coming]}]
        assert "coming: its rows are being copied" in holdfast("shard", "list").stdout

    def test_a_leader_is_waited_for_by_name(self, holdfast: Run, script: Script) -> None:
        script.answers["nodes"] = [{"nodes": [a_node(1), a_node(2)], "complete": True}]
        script.answers["transfer"] = [{"why": "a/2 is to lead", "changed": True, "from": "a/1"}]
        script.answers["shards"] = [
            {"shards": [a_shard(3, leader=name)]} for name in ("a/1", None, "a/3", "a/2")
        ]
        result = holdfast("shard", "transfer", "3", "--to", "a/2")
        assert (result.exit_code, result.stdout) == (0, "done: a/2 leads shard 3\n")
        assert "a/3 leads shard 3" in result.stderr

    def test_a_dry_run_changes_nothing_and_waits_for_nothing(self, holdfast: Run, script: Script) -> None:
        script.answers["rebalance"] = [{"why": "level", "changed": False, "moves": []}]
        assert holdfast("shard", "rebalance", "--dry-run").stdout == "level\n"
        assert script.asked == [{"do": "rebalance", "dry_run": True}]
