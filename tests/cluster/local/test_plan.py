"""The plan of a local cluster: what is refused, and that its files are configurations that agree."""

from __future__ import annotations

import random
import socket
import tomllib
from pathlib import Path

import pytest

from cluster.hosting.config.agreement import disagreements
from cluster.hosting.config.node_config import load
from cluster.local.plan import (
    LocalError,
    Plan,
    checked,
    context_toml,
    node_toml,
    planned,
    ports_from,
    replicas_of,
    topology,
)
from cluster.local.ports import free_ports, is_free
from cluster.local.supervisor import refuse_taken_ports


def plan_of(nodes: int) -> Plan:
    return planned(("a",), nodes, ports_from(7300, nodes), ("program",), {})


@pytest.mark.parametrize(
    ("regions", "nodes", "log", "words"),
    [
        (["a", "b", "a"], 3, "embedded", "two regions are called a"),
        (["a", "b", "c"], 11, "embedded", "3 regions of 11 nodes: a local cluster has at most 32"),
        (["a"], 0, "embedded", "from 1 to 32"),
        (["a"], 33, "embedded", "from 1 to 32"),
        (["A/b"], 3, "embedded", "no name of a region"),
        ([], 3, "embedded", "no regions"),
    ],
)
def test_what_cannot_be_is_refused_in_words(regions: list[str], nodes: int, log: str, words: str) -> None:
    with pytest.raises(LocalError, match=words) as refused:
        checked(regions, nodes, log)
    assert refused.value.usage
    assert refused.value.do


@pytest.mark.parametrize(("nodes", "replicas"), [(5, 2), (5, 7), (3, 5), (2, 3), (3, 0)])
def test_replicas_are_an_odd_number_of_nodes(nodes: int, replicas: int) -> None:
    with pytest.raises(LocalError, match=f"--replicas {replicas}: a shard has 1, 3 or 5") as refused:
        checked(["a"], nodes, "embedded", replicas)
    assert refused.value.usage


@pytest.mark.parametrize(("asked", "given"), [(0, 3), (1, 1), (3, 3), (5, 5)])
def test_the_files_have_the_replicas_that_were_asked_for(tmp_path: Path, asked: int, given: int) -> None:
    checked(["a"], 5, "embedded", asked or None)
    plan = planned(("a",), 5, ports_from(7300, 5), ("program",), {}, replicas=asked)
    assert plan.replicas == given
    file = tmp_path / "node.toml"
    file.write_text(node_toml(plan.regions[0], plan.nodes[0], {}, replicas=plan.replicas))
    assert load(file).region.replicas == given


@pytest.mark.parametrize("nodes", [1, 2, 3, 5])
def test_the_files_are_configurations_that_agree(tmp_path: Path, nodes: int) -> None:
    plan = plan_of(nodes)
    configs = []
    for node in plan.nodes:
        node.config(tmp_path).parent.mkdir(parents=True)
        node.config(tmp_path).write_text(node_toml(plan.regions[0], node, {"raft": {"tick_ms": 20}}))
        configs.append(load(node.config(tmp_path)))
    assert disagreements(configs) == []
    assert [config.raft.tick_ms for config in configs] == [20] * nodes
    assert {config.region.replicas for config in configs} == {replicas_of(nodes)}
    assert len({config.node.data_dir for config in configs}) == nodes


def test_regions_have_nodes_ports_and_indices_of_their_own(tmp_path: Path) -> None:
    checked(["a", "b"], 16, "embedded")
    plan = planned(("a", "b"), 3, ports_from(7300, 6), ("program",), {})
    assert [node.name for node in plan.nodes] == ["a/1", "a/2", "a/3", "b/1", "b/2", "b/3"]
    assert [node.grpc for node in plan.nodes] == [7300, 7310, 7320, 7330, 7340, 7350]
    assert [(region.name, region.index) for region in plan.regions] == [("a", 1), ("b", 2)]
    for region in plan.regions:
        configs = []
        for node in region.nodes:
            node.config(tmp_path).parent.mkdir(parents=True)
            node.config(tmp_path).write_text(node_toml(region, node, {}))
            configs.append(load(node.config(tmp_path)))
        assert disagreements(configs) == []
        assert {config.region.index for config in configs} == {region.index}
    profiles = tomllib.loads(context_toml(plan))["profile"]
    assert [profiles[name]["address"] for name in ("default", "a", "b")] == [
        "127.0.0.1:7300", "127.0.0.1:7300", "127.0.0.1:7330",
    ]  # fmt: skip


def test_ports_from_a_base() -> None:
    assert [(node.grpc, node.peers, node.metrics) for node in plan_of(2).nodes] == [
        (7300, 7301, 7302),
        (7310, 7311, 7312),
    ]
    for base in (80, 65530):
        with pytest.raises(LocalError, match=f"--port-base {base}: 3 nodes need the ports"):
            ports_from(base, 3)


def test_the_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    import msgspec

    plan = plan_of(3)
    (tmp_path / "cluster.json").write_bytes(msgspec.json.encode(plan))
    assert Plan.read(tmp_path) == plan
    assert plan.node("a/2").grpc == 7310
    with pytest.raises(LocalError, match="no node 'a/4'") as refused:
        plan.node("a/4")
    assert refused.value.do == "name one of a/1, a/2, a/3"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no local cluster in"),
        (b"{", "cannot be read"),
        (b'{"regions": [], "format": 9}', "is of format 9"),
    ],
)
def test_a_plan_that_cannot_be_read(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / "cluster.json").write_bytes(content)
    with pytest.raises(LocalError, match=words):
        Plan.read(tmp_path)


def test_what_up_prints_has_the_promised_form(tmp_path: Path) -> None:
    assert topology(tmp_path, plan_of(1), {"a/1": 5}) == {
        "dir": str(tmp_path),
        "log": {"kind": "embedded", "nodes": []},
        "regions": [
            {
                "name": "a",
                "endpoint": "127.0.0.1:7300",
                "http": None,
                "nodes": [
                    {
                        "name": "a/1",
                        "pid": 5,
                        "grpc": "127.0.0.1:7300",
                        "http": None,
                        "metrics": "127.0.0.1:7302",
                    }
                ],
            }
        ],
    }


def test_the_context_is_a_client_configuration() -> None:
    profiles = tomllib.loads(context_toml(plan_of(3)))["profile"]
    assert profiles == {
        name: {"address": "127.0.0.1:7300", "namespace": "default"} for name in ("default", "a")
    }


def test_a_port_that_somebody_has_is_refused(rng: random.Random) -> None:
    ports = free_ports(9, rng)
    plan = planned(("a",), 3, ports, ("program",), {})
    refuse_taken_ports(plan)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[4]))
        taken.listen()
        with pytest.raises(LocalError, match=f"port {ports[4]}, which a/2 is to have, is in use"):
            refuse_taken_ports(plan)


def test_free_ports_are_free_and_differ(rng: random.Random) -> None:
    ports = free_ports(9, rng)
    assert len(set(ports)) == 9
    assert all(port < 32768 for port in ports), "not from the kernel's ephemeral range"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", ports[0]))
        taken.listen()
        assert not is_free(ports[0])
    assert is_free(ports[0])
