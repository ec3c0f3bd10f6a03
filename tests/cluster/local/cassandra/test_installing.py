"""A local cluster's log on Cassandra: plan and files, what is said where it cannot be, who is asked."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.hosting.config.node_config import load
from cluster.local.cassandra import installing, jars
from cluster.local.cassandra.installing import make_tables, planned_logs, prepare
from cluster.local.cassandra.server import HEADER_BYTES, SUPPORTED, answers, command, token_of
from cluster.local.plan import LocalError, LogPlan, Plan, checked, node_toml, planned, ports_from, topology
from cluster.local.supervisor import refuse_taken_ports

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a network on loopback is Linux's")


def plan_of(rng: random.Random) -> Plan:
    logs = planned_logs(["a", "b"], rng)
    return planned(("a", "b"), 1, ports_from(7300, 2), ("program",), {}, logs)


def test_every_region_has_a_node_at_an_address_that_nobody_uses(rng: random.Random) -> None:
    one, two = planned_logs(["a", "b"], rng)
    assert (one.name, two.name) == ("cassandra/a", "cassandra/b")
    assert one.address.startswith("127.")
    assert one.address != two.address
    with socket.socket() as taken:
        taken.bind((one.address, 9042))
        taken.listen()
        again = random.Random()
        again.setstate(rng.getstate())
        assert one.address not in {log.address for log in planned_logs(["a"], again)}


def test_a_node_finds_the_log_of_its_own_region(tmp_path: Path, rng: random.Random) -> None:
    plan = plan_of(rng)
    region, log = plan.regions[1], plan.logs[1]
    file = region.nodes[0].config(tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text(node_toml(region, region.nodes[0], {}, log))
    config = load(file)
    assert config.replication.log == "cassandra"
    assert config.cassandra is not None
    assert config.cassandra.contact_points == (log.address,)


def test_its_processes_are_known_by_name(rng: random.Random) -> None:
    plan = plan_of(rng)
    assert plan.process("cassandra/b") == plan.logs[1]
    assert plan.process("b/1") == plan.nodes[1]
    with pytest.raises(LocalError, match="no process 'cassandra/c'") as refused:
        plan.process("cassandra/c")
    assert refused.value.do == "name one of a/1, b/1, cassandra/a, cassandra/b"


def test_a_plan_of_an_earlier_release_has_none(tmp_path: Path, rng: random.Random) -> None:
    old = msgspec.json.decode(msgspec.json.encode(plan_of(rng)))
    del old["logs"]
    (tmp_path / "cluster.json").write_bytes(msgspec.json.encode(old))
    assert Plan.read(tmp_path).logs == ()


def test_what_up_prints_names_them(tmp_path: Path, rng: random.Random) -> None:
    plan = plan_of(rng)
    shown = topology(tmp_path, plan, {"cassandra/a": 7})["log"]
    assert shown["kind"] == "cassandra"
    assert shown["nodes"][0] == {"name": "cassandra/a", "pid": 7, "address": plan.logs[0].address}


def test_a_region_cannot_be_called_like_the_log(rng: random.Random) -> None:
    checked(["cassandra"], 1, "embedded")
    with pytest.raises(LocalError, match="is in the way of the log's own directory"):
        checked(["a", "cassandra"], 1, "cassandra")


def test_an_address_that_somebody_took_meanwhile_is_refused(rng: random.Random) -> None:
    plan = msgspec.structs.replace(plan_of(rng), regions=())
    refuse_taken_ports(plan)
    with socket.socket() as taken:
        taken.bind((plan.logs[1].address, 7000))
        taken.listen()
        with pytest.raises(LocalError, match=f"port 7000 at {plan.logs[1].address}, which cassandra/b"):
            refuse_taken_ports(plan)


# ------------------------------------------------------------------------------------------------- its files


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "jars"
    folder.mkdir()
    for name in ("b.jar", "a.jar"):
        (folder / name).write_text("")
    monkeypatch.setattr(jars, "absent", lambda: 2)
    monkeypatch.setattr(jars, "folder", lambda: folder)
    monkeypatch.setattr(jars, "java", lambda: "/some/java")
    return folder


def test_the_files_are_written_once_and_the_command_anew(
    tmp_path: Path, rng: random.Random, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(rng)
    told: list[str] = []
    prepare(tmp_path, plan, told.append)
    assert told == ["fetching Cassandra: 2 jars, once"]
    yaml = tmp_path / "cassandra/a/cassandra.yaml"
    one, two = plan.logs
    text = yaml.read_text()
    assert f"listen_address: {one.address}\n" in text
    assert f'seeds: "{one.address}:7000,{two.address}:7000"' in text
    assert "$" not in text
    assert "authenticator" not in text
    tokens = {
        (tmp_path / log.name / "cassandra.yaml").read_text().partition("initial_token: ")[2].split()[0]
        for log in plan.logs
    }
    assert len(tokens) == 2
    assert (tmp_path / "cassandra/b/rackdc.properties").read_text() == "dc=b\nrack=r1\n"
    yaml.write_text("edited")
    monkeypatch.setattr(jars, "java", lambda: "/another/java")
    prepare(tmp_path, plan, told.append)
    assert yaml.read_text() == "edited"
    words = json.loads(one.command(tmp_path).read_text())
    assert words == command(tmp_path / one.name, "/another/java", fetched, one.jmx)
    assert f"{fetched}/a.jar:{fetched}/b.jar" in words


def test_nothing_is_prepared_for_an_embedded_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(jars, "folder")
    prepare(tmp_path, planned(("a",), 1, ports_from(7300, 1), (), {}), lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_without_java_and_network_it_says_what_to_do(
    tmp_path: Path, rng: random.Random, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> str:
        raise jars.MissingError("no Cassandra: needs Java 17; this machine has none")

    monkeypatch.setattr(jars, "java", none)
    with pytest.raises(LocalError, match="needs Java 17; this machine has none") as refused:
        prepare(tmp_path, plan_of(rng), lambda _: None)
    assert "install Java 17; name a Maven repository" in refused.value.do
    assert not refused.value.usage


def test_tokens_are_apart() -> None:
    tokens = [token_of(number, 3) for number in (1, 2, 3)]
    assert sorted(set(tokens)) == tokens
    assert tokens[-1] < 1 << 63


# ------------------------------------------------------------------------------------------------ its tables

COMMAND = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[0]).with_name("answers.json")
answers = json.loads(file.read_text())
answer = answers.pop(0)
answer.setdefault("argv", sys.argv[1:])
file.write_text(json.dumps(answers))
file.with_name("asked.json").write_text(json.dumps(sys.argv[1:]))
print(answer.get("out", ""))
print(answer.get("err", ""), file=sys.stderr)
sys.exit(answer["code"])
"""
NOT_YET = {"code": 1, "err": json.dumps({"error": "there is no data centre b", "do": "wait"})}


class Command:
    """In the place of `holdfast`."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = directory / "command.py"
        self.file.write_text(COMMAND)
        monkeypatch.setattr(installing, "HOLDFAST", (sys.executable, str(self.file)))
        monkeypatch.setattr(installing, "AGAIN_S", 0.0)

    def answers(self, *answers: dict[str, Any]) -> None:
        self.file.with_name("answers.json").write_text(json.dumps(answers))

    @property
    def asked(self) -> list[str]:
        words: list[str] = json.loads(self.file.with_name("asked.json").read_text())
        return words


@pytest.fixture
def holdfast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, monkeypatch)


def test_the_tables_are_made_as_an_operator_does(
    tmp_path: Path, rng: random.Random, holdfast: Command
) -> None:
    """Until the nodes have heard of each other it is too early."""
    holdfast.answers(NOT_YET, NOT_YET, {"code": 0, "out": '{"made": true}'})
    told: list[str] = []
    make_tables(tmp_path, plan_of(rng), 60, told.append)
    assert told == ["the tables of the log between a, b are made"]
    assert holdfast.asked[:3] == ["replication", "log", "init"]
    assert holdfast.asked[3:] == [
        *("--config", str(tmp_path / "a/1/node.toml"), "--regions", "a,b", "--copies", "1", "--json"),
    ]
    holdfast.answers({"code": 0, "out": '{"made": false}'})
    make_tables(tmp_path, plan_of(rng), 60, told.append)
    assert len(told) == 1


def test_tables_that_cannot_be_made(tmp_path: Path, rng: random.Random, holdfast: Command) -> None:
    holdfast.answers(NOT_YET)
    with pytest.raises(LocalError, match="cannot be made: there is no data centre b") as refused:
        make_tables(tmp_path, plan_of(rng), 0, lambda _: None)
    assert refused.value.do == "wait"
    holdfast.answers(NOT_YET | {"code": 2})
    with pytest.raises(LocalError, match="cannot be made"):
        make_tables(tmp_path, plan_of(rng), 60, lambda _: None)
    holdfast.answers({"code": 1, "err": "Traceback"})
    with pytest.raises(LocalError, match="cannot be made: Traceback"):
        make_tables(tmp_path, plan_of(rng), 60, lambda _: None)


# ----------------------------------------------------------------------------------------- whether it answers


def server_that_says(answer: bytes) -> tuple[socket.socket, threading.Thread]:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            for byte in answer:
                connection.sendall(bytes([byte]))

    thread = threading.Thread(target=serve)
    thread.start()
    return listener, thread


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (bytes([0x84, 0, 0, 0, SUPPORTED]) + bytes(4), True),
        (bytes([0x84, 0, 0, 0, 0x00]) + bytes(4), False),
        (b"HTTP/1.1 400 Bad Request", False),
        (bytes(HEADER_BYTES - 1), False),
        (b"", False),
    ],
)
def test_who_answers_as_cassandra_does(answer: bytes, expected: bool) -> None:
    listener, thread = server_that_says(answer)
    with listener:
        assert answers("127.0.0.1", listener.getsockname()[1], 10) is expected
        thread.join()


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert not answers("127.0.0.1", port)


def test_a_log_plan_names_its_files(tmp_path: Path) -> None:
    plan = LogPlan("cassandra/a", "a", "127.9.9.1", 17000)
    assert plan.log(tmp_path) == tmp_path / "cassandra/a/node.log"
