"""node.toml: what it says when it is right, and every complaint when it is wrong."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.hosting.config.addresses import join_address, split_address
from cluster.hosting.config.agreement import disagreements
from cluster.hosting.config.node_config import (
    OPTIONAL_SECTIONS,
    SECTIONS,
    ConfigError,
    NodeConfig,
    load,
    settings,
)

NODES = ["a/1=127.0.0.1:7301", "a/2=127.0.0.1:7311", "a/3=127.0.0.1:7321"]


def text_of(tables: dict[str, dict[str, Any]]) -> str:
    """TOML of sections and values."""
    from cluster.hosting.config.reading import toml_value

    return "\n".join(
        f"[{section}]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in keys.items())
        for section, keys in tables.items()
    )


def written(path: Path, name: str = "node.toml", /, **changes: Any) -> Path:
    """A right file, changed: `raft={"tick_ms": 5}`; None removes the key; tls_peers is "tls.peers"."""
    tables: dict[str, dict[str, Any]] = {
        "node": {"name": "a/1", "data_dir": "data", "machine": "one"},
        "region": {"name": "a", "nodes": NODES},
    }
    for section, keys in changes.items():
        table = tables.setdefault(section.replace("tls_", "tls."), {})
        table.update(keys)
        for key in [key for key, value in keys.items() if value is None]:
            del table[key]
    file = path / name
    file.write_text(text_of(tables))
    return file


def problems(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == "\n".join(f"{file}: {problem}" for problem in caught.value.problems)
    return caught.value.problems


def test_the_least_of_a_file_has_all_defaults(tmp_path: Path) -> None:
    config = load(written(tmp_path, node={"machine": None}))
    assert config.given == {"node.name", "node.data_dir", "region.name", "region.nodes"}
    assert config.node.machine == socket.gethostname()
    assert config.node.data_dir == str(tmp_path / "data")
    assert (config.region.index, config.region.shards, config.region.replicas) == (1, 8, 3)
    assert config.advertise.grpc == "127.0.0.1:7233"
    assert config.advertise.peers == "127.0.0.1:7301"
    assert [(one.name, one.host, one.port) for one in config.members][2] == ("a/3", "127.0.0.1", 7321)
    assert config.tls.peers is None
    assert config.dynamic_values == {}


def test_everything_can_be_said(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem", "ca.pem"):
        (tmp_path / name).write_text("-")
    (tmp_path / "limits.toml").write_text('"limit.maxIDLength" = 100\nlimit.blobSize.error = 5\n')
    config = load(
        written(
            tmp_path,
            region={"nodes": None, "join": ["[::1]:7301", "b.example:7301"]},
            listen={"host": "0.0.0.0", "grpc": 1, "peers": 2, "metrics": 3},
            advertise={"grpc": "h.example:1", "peers": "[fd00::1]:2"},
            tls_peers={"cert": "c.pem", "key": "k.pem", "ca": "ca.pem"},
            tls_grpc={"cert": "c.pem", "key": "k.pem"},
            raft={"tick_ms": 10, "election_ticks": 20, "heartbeat_ticks": 3},
            front={"kind": "grpcio"},
            log={"level": "debug", "format": "json"},
            dynamic_config={"path": "limits.toml"},
        )
    )
    assert config.seeds == (("::1", 7301), ("b.example", 7301))
    assert config.members == ()
    assert config.tls.peers is not None
    assert config.tls.peers.ca == str(tmp_path / "ca.pem")
    assert config.tls.grpc is not None
    assert config.tls.grpc.client_ca is None
    assert config.dynamic_values == {"limit.maxIDLength": 100, "limit.blobSize.error": 5}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "range",
        {"raft": {"tick_ms": 5}},
        "raft.tick_ms = 5: it has to be a whole number from 10 to 1000 (millis",
    ),
    (
        "type",
        {"listen": {"grpc": "7233"}},
        'listen.grpc = "7233": it has to be a whole number from 1 to 65535.',
    ),
    ("bool", {"raft": {"tick_ms": True}}, "raft.tick_ms = true: it has to be a whole number"),
    ("choice", {"log": {"level": "loud"}}, 'log.level = "loud": it has to be "debug", "info", "warn"'),
    ("default told", {"log": {"level": "loud"}}, 'leave it out: the default is "info"'),
    ("unknown", {"raft": {"tickms": 50}}, "[raft] has no such key. Did you mean tick_ms?"),
    (
        "elsewhere",
        {"node": {"replicas": 3}},
        "node.replicas = 3: [node] has no such key. Write it below [region]",
    ),
    ("no section", {"rafts": {"a": 1}}, "[rafts]: there is no such section. Did you mean [raft]?"),
    ("no idea", {"zzz": {"a": 1}}, "[zzz]: there is no such section. There are [node], [region]"),
    (
        "missing",
        {"node": {"data_dir": None}},
        "node.data_dir is missing: it has to be the path of a directory",
    ),
    (
        "node name",
        {"node": {"name": "a1"}},
        'node.name = "a1": it has to be REGION/NAME, like "a/1". Change it.',
    ),
    ("line end", {"node": {"name": "a/1\n"}}, "it has to be REGION/NAME"),
    ("region", {"node": {"name": "b/1"}}, 'begin with the region\'s name, "a/". Write name = "a/1"'),
    ("neither", {"region": {"nodes": None}}, "region.nodes is missing, and so is region.join"),
    ("both", {"region": {"join": ["h:1"]}}, "region.nodes and region.join are both given"),
    (
        "joined",
        {"region": {"nodes": None, "join": ["h:1"], "shards": 4}},
        "region.shards = 4: it belongs to the mak",
    ),
    (
        "joined index",
        {"region": {"nodes": None, "join": ["h:1"], "index": 2}},
        "region.index = 2: it belongs to the mak",
    ),
    ("no index", {"region": {"index": 0}}, "region.index = 0: it has to be"),
    ("large index", {"region": {"index": 100}}, "region.index = 100: it has to be"),
    ("seed", {"region": {"nodes": None, "join": ["h:0"]}}, "with a port from 1 to 65535"),
    ("own name", {"node": {"name": "a/4"}}, "this node, a/4, is not in it. Add it"),
    ("twice", {"region": {"nodes": [*NODES, "a/1=h:1"]}}, "the name a/1 is there more than once"),
    (
        "same place",
        {"region": {"nodes": [*NODES, "a/4=127.0.0.1:7301"]}},
        "the address 127.0.0.1:7301 is there more",
    ),
    ("stranger", {"region": {"nodes": [*NODES, "b/4=h:1"]}}, 'begin with "a/", and b/4 does not'),
    ("port", {"region": {"nodes": [*NODES, "a/4=h:70000"]}}, "with a port from 1 to 65535"),
    ("form", {"region": {"nodes": ["a/1"]}}, "a list of at most 128 strings NAME=HOST:PORT"),
    ("which", {"region": {"nodes": [*NODES, "a/4=h"]}}, '7301", and "a/4=h" is not of that form. Change'),
    (
        "few",
        {"region": {"nodes": NODES[:1]}},
        "region.replicas = 3: 3 replicas need as many nodes, and there are 1",
    ),
    ("even", {"region": {"replicas": 2}}, "region.replicas = 2: it has to be 1, 3 or 5"),
    ("own port", {"listen": {"grpc": 7301}}, "listen.peers = 7301: listen.grpc has this port already"),
    (
        "wildcard",
        {"listen": {"host": "0.0.0.0"}},
        'advertise.grpc = "0.0.0.0:7233": 0.0.0.0 is no address of one',
    ),
    ("mapped", {"listen": {"peers": 7302}}, "listen.peers = 7302: region.nodes has port 7301 for this node"),
    ("advertised", {"advertise": {"peers": "h:7301"}}, "region.nodes says 127.0.0.1:7301 for this node"),
    ("half TLS", {"tls_peers": {"cert": "c.pem"}}, "tls.peers.key is missing"),
    ("empty TLS", {"tls_grpc": {}}, "tls.grpc.cert is missing"),
    ("no file", {"tls_grpc": {"cert": "c.pem", "key": "k.pem"}}, "there is no such file. Correct the path"),
    ("calm", {"raft": {"election_ticks": 4}}, "more than twice raft.heartbeat_ticks (2). Take at least 5"),
    (
        "appends",
        {"raft": {"append_bytes_max": 1 << 20, "inflight_bytes_max": 1 << 16}},
        "at most raft.inflight_by",
    ),
    ("limits", {"dynamic_config": {"path": "none.toml"}}, 'none.toml": there is no such file'),
]


@pytest.mark.parametrize(
    ("changes", "sentence"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_one_wrong_thing_is_one_sentence(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    found = problems(written(tmp_path, **changes))
    assert any(sentence in problem for problem in found), found
    # `few` and others may break two rules at once; none of these breaks more.
    assert len(found) <= 2, found
    assert all(problem.endswith((".", "?")) for problem in found)


def test_all_problems_are_told_at_once_in_the_order_of_the_sections(tmp_path: Path) -> None:
    found = problems(written(tmp_path, log={"level": "loud"}, raft={"tick_ms": 5}, node={"data_dir": None}))
    assert [problem.split()[0] for problem in found] == ["node.data_dir", "raft.tick_ms", "log.level"]


def test_rules_stay_silent_about_keys_that_are_wrong_in_themselves(tmp_path: Path) -> None:
    (problem,) = problems(written(tmp_path, region={"nodes": "a/1=127.0.0.1:7301"}))
    assert problem.startswith("region.nodes = ")


def test_a_key_outside_and_a_section_that_is_a_value(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text("tick_ms = 5\nraft = 3\ntls = {peers = 1}\n" + file.read_text())
    found = "\n".join(problems(file))
    assert "tick_ms = 5: there is no such key. Write it below [raft]." in found
    assert "raft = 3: raft is no key. Write [raft] on a line of its own" in found
    assert "tls.peers = 1: tls.peers is no key. Write [tls.peers] on a line" in found


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "there is no such file"), (b"[node\n", "it is not TOML: "), (b"\xff", "byte 0 is not UTF-8")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "node.toml"
    if content is not None:
        file.write_bytes(content)
    (problem,) = problems(file)
    assert words in problem


def test_every_setting_says_what_is_allowed_and_what_it_means() -> None:
    rows = settings()
    assert len({row.key for row in rows}) == len(rows)
    assert {row.section for row in rows} == set(SECTIONS)
    for row in rows:
        assert row.allowed, row.key
        assert row.description.endswith("."), row.key


def test_defaults_are_within_their_own_bounds(tmp_path: Path) -> None:
    """What a reader copies from the page of defaults into the file is accepted."""
    changes: dict[str, dict[str, Any]] = {}
    for row in settings():
        if row.default not in (None, "", []) and not row.required and row.section not in OPTIONAL_SECTIONS:
            changes.setdefault(row.section, {})[row.name] = row.default
    assert load(written(tmp_path, **changes)).raft == load(written(tmp_path)).raft


@pytest.mark.parametrize("address", ["10.0.0.1:1", "[::1]:65535", "host.example:7301"])
def test_an_address_comes_apart_and_together(address: str) -> None:
    assert join_address(*split_address(address)) == address


POINT = {"contact_points": ["10.0.0.5"]}
ON_CASSANDRA = {"log": "cassandra"}


class TestCassandra:
    """The log between regions, as a file describes it."""

    def log_of(self, path: Path, **keys: Any) -> NodeConfig:
        return load(written(path, replication=ON_CASSANDRA, cassandra=POINT | keys))

    def test_nothing_is_said_and_there_is_nothing_to_run(self, tmp_path: Path) -> None:
        config = load(written(tmp_path))
        assert config.replication.log == "embedded"
        assert config.cassandra is None

    def test_the_least_of_it(self, tmp_path: Path) -> None:
        found = self.log_of(tmp_path).cassandra
        assert found is not None
        assert (found.contact_points, found.port, found.keyspace) == (("10.0.0.5",), 9042, "holdfast")
        assert found.password({}) == ""

    def test_everything_can_be_said_and_paths_are_absolute(self, tmp_path: Path) -> None:
        for name in ("ca.pem", "c.pem", "k.pem"):
            (tmp_path / name).write_text("-")
        (tmp_path / "word").write_text("a pass word \n")
        tls = {"tls_ca": "ca.pem", "tls_cert": "c.pem", "tls_key": "k.pem"}
        found = self.log_of(tmp_path, user="u", password_file="word", **tls).cassandra
        assert found is not None
        assert found.tls_ca == str(tmp_path / "ca.pem")
        assert found.password({}) == "a pass word ", "but for the end of the line"
        assert "pass word" not in repr(found)

    def test_a_password_may_be_in_the_environment(self, tmp_path: Path) -> None:
        found = self.log_of(tmp_path, user="u", password_env="WORD").cassandra
        assert found is not None
        assert found.password({"WORD": "w"}) == "w"
        for environment in ({}, {"WORD": ""}):
            with pytest.raises(ValueError, match="there is no such environment variable"):
                found.password(environment)

    def test_a_password_file_that_says_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "word").write_text("\n")
        found = self.log_of(tmp_path, user="u", password_file="word").cassandra
        assert found is not None
        with pytest.raises(ValueError, match="is empty"):
            found.password({})
        (tmp_path / "word").unlink()
        with pytest.raises(ValueError, match="cannot be read"):
            found.password({})

    WRONG: tuple[tuple[dict[str, Any], str], ...] = (
        ({"contact_points": []}, "cassandra.contact_points = []: it has to be a list of at most 32"),
        ({"contact_points": None}, "cassandra.contact_points is missing"),
        ({"contact_points": ["10.0.0.5:9042"]}, 'and "10.0.0.5:9042" is not of that form'),
        ({"keyspace": "Up; DROP"}, "cassandra.keyspace"),
        ({"port": 0}, "cassandra.port = 0: it has to be a whole number from 1 to 65535"),
        ({"user": "u"}, "it needs a password, and there is none. Give password_file or password_env"),
        ({"password_env": "A"}, "a password without cassandra.user is nobody's"),
        ({"user": "u", "password_env": "A", "password_file": "x.pem"}, "and there are two"),
        ({"user": "u", "password_file": "none"}, "there is no such file. Correct the path"),
        ({"tls_cert": "x.pem", "tls_ca": "x.pem"}, "it belongs to cassandra.tls_key, which is not given"),
        ({"tls_key": "x.pem"}, "it belongs to cassandra.tls_cert"),
        ({"tls_cert": "x.pem", "tls_key": "x.pem"}, "without cassandra.tls_ca there is no TLS"),
        ({"tls_ca": "none.pem"}, "cassandra.tls_ca"),
    )

    @pytest.mark.parametrize(("keys", "words"), WRONG)
    def test_what_is_wrong(self, tmp_path: Path, keys: dict[str, Any], words: str) -> None:
        (tmp_path / "x.pem").write_text("-")
        (found,) = problems(written(tmp_path, replication=ON_CASSANDRA, cassandra=POINT | keys))
        assert words in found

    def test_one_without_the_other(self, tmp_path: Path) -> None:
        (found,) = problems(written(tmp_path, replication=ON_CASSANDRA))
        assert "there is no [cassandra]. Write [cassandra] with contact_points" in found
        (found,) = problems(written(tmp_path, cassandra=POINT))
        assert '[cassandra] is not read unless replication.log is "cassandra"' in found


class TestAgreement:
    """Of the files of three nodes."""

    def three(self, path: Path, **of_second: Any) -> list[NodeConfig]:
        configs = []
        for index in (1, 2, 3):
            changes: dict[str, Any] = {
                "node": {"name": f"a/{index}", "data_dir": f"data{index}", "machine": f"m{index}"},
                "listen": {"grpc": 7290 + 10 * index, "peers": 7291 + 10 * index},
            }
            for section, keys in (of_second if index == 2 else {}).items():
                changes[section] = {**changes.get(section, {}), **keys}
            configs.append(load(written(path, f"{index}.toml", **changes)))
        return configs

    def test_they_agree(self, tmp_path: Path) -> None:
        assert disagreements(self.three(tmp_path)) == []

    CASES: tuple[tuple[dict[str, Any], str], ...] = (
        ({"region": {"cluster_name": "x"}}, 'region.cluster_name is "holdfast" in'),
        ({"region": {"nodes": NODES[::-1]}}, "region.nodes is"),
        ({"region": {"shards": 16}}, "region.shards is 8 in"),
        ({"region": {"index": 2}}, "region.index is 1 in"),
        ({"raft": {"tick_ms": 60}}, "raft.tick_ms is 50 in"),
        ({"node": {"data_dir": "data1"}}, "a directory belongs to one node"),
        ({"listen": {"grpc": 7300}}, "listen.grpc of"),
        ({"listen": {"metrics": 7321}}, "are both port 7321 at 127.0.0.1:7321"),
        ({"replication": ON_CASSANDRA, "cassandra": POINT}, 'replication.log is "embedded" in'),
        ({"node": {"machine": "m1"}}, "the first members have 2 different node.machine"),
    )

    @pytest.mark.parametrize(("changes", "words"), CASES)
    def test_they_do_not(self, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
        found = disagreements(self.three(tmp_path, **changes))
        assert any(words in problem for problem in found), found
        assert len(found) <= 2, found

    def test_a_keyspace_is_of_all(self, tmp_path: Path) -> None:
        one, two = [
            load(
                written(
                    tmp_path,
                    f"{keyspace}.toml",
                    node={"name": f"a/{index}", "data_dir": keyspace, "machine": keyspace},
                    listen={"grpc": 7290 + 10 * index, "peers": 7291 + 10 * index},
                    replication=ON_CASSANDRA,
                    cassandra=POINT | {"keyspace": keyspace},
                )
            )
            for index, keyspace in ((1, "one"), (2, "two"))
        ]
        (found,) = disagreements([one, two])
        assert 'cassandra.keyspace is "one" in' in found

    def test_one_node_twice(self, tmp_path: Path) -> None:
        found = disagreements([self.three(tmp_path)[0]] * 2)
        assert 'node.name is "a/1" in' in found[0]

    def test_tls_is_for_all_or_none(self, tmp_path: Path) -> None:
        (tmp_path / "x.pem").write_text("-")
        pem = {"cert": "x.pem", "key": "x.pem", "ca": "x.pem"}
        (found,) = disagreements(self.three(tmp_path, tls_peers=pem))
        assert "has [tls.peers] and" in found

    def everywhere(self, path: Path, machines: tuple[str, str]) -> list[NodeConfig]:
        """Two nodes that listen on all addresses, with the same ports."""
        return [
            load(
                written(
                    path,
                    f"{index}.toml",
                    node={"name": f"a/{index}", "data_dir": f"data{index}", "machine": machine},
                    region={"replicas": 1, "nodes": ["a/1=10.0.0.1:7301", "a/2=10.0.0.2:7301"]},
                    listen={"host": "0.0.0.0"},
                    advertise={"grpc": f"10.0.0.{index}:7233"},
                )
            )
            for index, machine in enumerate(machines, start=1)
        ]

    def test_all_addresses_of_two_machines_are_no_clash(self, tmp_path: Path) -> None:
        assert disagreements(self.everywhere(tmp_path, ("m1", "m2"))) == []
        grpc, peers = disagreements(self.everywhere(tmp_path, ("m1", "m1")))
        assert "are both port 7233 at 0.0.0.0:7233" in grpc
        assert "are both port 7301" in peers

    def test_another_machine_may_use_the_same_ports(self, tmp_path: Path) -> None:
        nodes = ["a/1=10.0.0.1:7301", "a/2=10.0.0.2:7301", "a/3=10.0.0.3:7301"]
        configs = [
            load(
                written(
                    tmp_path,
                    f"{index}.toml",
                    node={"name": f"a/{index}", "machine": f"m{index}"},
                    region={"nodes": nodes},
                    listen={"host": f"10.0.0.{index}"},
                )
            )
            for index in (1, 2, 3)
        ]
        assert disagreements(configs) == []
