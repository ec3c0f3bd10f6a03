"""Local clusters as processes: supervision with a stand-in for the node, then a real region by command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.client import Client

from cluster.local import LocalCluster, LocalError
from cluster.local.life import Phase
from cluster.local.probe import serving
from cluster.local.processes import mark_of, wait_until
from cluster.local.state import read_state
from tests.live.patience import PATIENCE_S, faults

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]

STANDIN = (sys.executable, str(Path(__file__).parents[1] / "cluster/local/standin.py"))
SUPERVISOR = "cluster.local.supervisor"
HOLDFAST = Path(sys.executable).parent / "holdfast"


def standins(directory: Path, nodes: int = 2, **more: Any) -> LocalCluster:
    return LocalCluster(directory, nodes=nodes, program=STANDIN, ready_max_s=PATIENCE_S, **more)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails in the middle leaves no processes; supervisors, which restart nodes, go first."""
    yield
    for process in [*processes_of(tmp_path, SUPERVISOR), *processes_of(tmp_path)]:
        with suppress(psutil.Error):  # it has ended meanwhile
            process.kill()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Two stand-ins that serve."""
    with standins(tmp_path / "c") as running:
        yield running
    assert processes_of(tmp_path) == []


def processes_of(directory: Path, program: str = "") -> list[psutil.Process]:
    """Every process that has something to do with the directory, the tests' own left out."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if process.pid != os.getpid() and str(directory) in words and program in words:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_it_comes_up_and_goes_down(tmp_path: Path) -> None:
    words: list[str] = []
    cluster = standins(tmp_path / "c", nodes=3)
    try:
        topology = cluster.up(words.append)
        nodes = topology["regions"][0]["nodes"]
        assert [node["name"] for node in nodes] == cluster.node_names() == ["a/1", "a/2", "a/3"]
        assert [node["grpc"] for node in nodes] == cluster.endpoints()
        assert all(psutil.pid_exists(node["pid"]) for node in nodes)
        assert {"a/1 serves", "a/2 serves", "a/3 serves"} <= set(words)
        assert all(node["serving"] for node in cluster.status()["regions"][0]["nodes"])
    finally:
        cluster.down()
    assert processes_of(tmp_path) == []
    assert not any(psutil.pid_exists(node["pid"]) for node in nodes)
    assert not cluster.status()["running"]
    assert not (tmp_path / "c/context.toml").exists()


def test_a_node_that_ends_by_itself_comes_back_and_a_killed_one_does_not(cluster: LocalCluster) -> None:
    cluster.kill("a/2")
    assert cluster.node_state("a/2").state is Phase.KILLED
    for _ in range(2):
        before = cluster.pid("a/1")
        assert before is not None
        os.kill(before, signal.SIGKILL)
        assert wait_until(lambda was=before: cluster.pid("a/1") not in (None, was), PATIENCE_S)  # type: ignore[misc]
        cluster.wait_serving("a/1", PATIENCE_S)
    assert cluster.node_state("a/1").restarts == 2
    assert cluster.node_state("a/2").state is Phase.KILLED
    with pytest.raises(LocalError, match="a/2 is killed already"):
        cluster.kill("a/2")
    cluster.restart("a/2")
    assert cluster.node_state("a/2").restarts == 0


def test_a_paused_node_answers_nothing_until_it_goes_on(cluster: LocalCluster) -> None:
    pid = cluster.pid("a/1")
    assert pid is not None
    port = int(cluster.endpoints()[0].rpartition(":")[2])
    cluster.pause("a/1")
    assert wait_until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, PATIENCE_S)
    assert not serving("127.0.0.1", port, timeout_s=0.2)
    with pytest.raises(LocalError, match="a/1 is paused") as refused:
        cluster.up()
    assert "resume" in refused.value.do
    cluster.resume("a/1")
    assert wait_until(lambda: serving("127.0.0.1", port), PATIENCE_S)
    assert cluster.pid("a/1") == pid


def test_a_restart_is_another_process(cluster: LocalCluster) -> None:
    before = cluster.pid("a/1")
    cluster.restart("a/1")
    assert cluster.pid("a/1") not in (None, before)
    assert cluster.node_state("a/1").exit_code == 0, "it was asked to end, and did"


def test_sigterm_ends_even_a_paused_node(cluster: LocalCluster) -> None:
    cluster.pause("a/1")
    cluster.kill("a/1", signal.SIGTERM)
    state = cluster.node_state("a/1")
    assert (state.state, state.exit_code) == (Phase.KILLED, 0)


def test_it_resumes_on_the_same_ports_and_keeps_its_shape(tmp_path: Path) -> None:
    cluster = standins(tmp_path / "c")
    try:
        first = cluster.up()
        (tmp_path / "c/a/1/data").mkdir()
        words: list[str] = []
        assert LocalCluster(tmp_path / "c").up(words.append) == first
        assert any("runs already" in word for word in words)
        cluster.down()
        second = LocalCluster(tmp_path / "c").up()
        assert [node["grpc"] for node in second["regions"][0]["nodes"]] == cluster.endpoints()
        assert second["regions"][0]["nodes"][0]["pid"] != first["regions"][0]["nodes"][0]["pid"]
        assert (tmp_path / "c/a/1/data").exists()
        with pytest.raises(LocalError, match="has --nodes 2, not 3") as refused:
            LocalCluster(tmp_path / "c", nodes=3).up()
        assert refused.value.usage
    finally:
        cluster.down(delete=True)
    assert not (tmp_path / "c").exists()


def test_a_node_that_does_not_come_up_is_told_and_nothing_is_left_running(tmp_path: Path) -> None:
    directory = tmp_path / "c"
    cluster = standins(directory)
    cluster.up()
    cluster.down()
    for code, words in (("2", "its configuration cannot be used"), ("1", "it ends again")):
        (directory / "a/2/exit").write_text(code)
        with pytest.raises(LocalError, match=f"a/2 ended with {code}") as failed:
            cluster.up()
        assert words in str(failed.value)
        assert f"holdfast: told to end with {code}" in str(failed.value), "the last error of its log"
        assert processes_of(tmp_path) == []
    (directory / "a/2/exit").unlink()
    cluster.up()
    cluster.down()


def test_configurations_are_looked_at_before_anything_is_started(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"raft\.tick_ms = 1: it has to be") as refused:
        standins(tmp_path / "c", settings={"raft": {"tick_ms": 1}}).up()
    assert refused.value.usage
    file = tmp_path / "c/a/1/node.toml"
    for path in (file, tmp_path / "c/a/2/node.toml"):
        path.write_text(path.read_text().replace("tick_ms = 1", "tick_ms = 20"))
    file.write_text(re.sub(r"grpc = \d+", "grpc = 1025", file.read_text()))
    with pytest.raises(LocalError, match=r"node\.toml: it has to be node a/1 at "):
        standins(tmp_path / "c").up()
    assert processes_of(tmp_path) == []


def test_a_node_that_does_not_serve_in_time(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", nodes=1, program=STANDIN, ready_max_s=PATIENCE_S)
    cluster.up()
    cluster.down()
    (tmp_path / "c/a/1/deaf").touch()
    with pytest.raises(LocalError, match=r"a/1 does not serve after 1\.5 s"):
        LocalCluster(tmp_path / "c", ready_max_s=1.5).up()
    assert processes_of(tmp_path) == []


def test_one_that_does_not_hear_sigterm_is_killed(tmp_path: Path) -> None:
    cluster = standins(tmp_path / "c", nodes=1)
    cluster.up()
    (tmp_path / "c/a/1/stubborn").touch()
    cluster.restart("a/1")
    pid = cluster.pid("a/1")
    cluster.down(stop_max_s=0.2)
    assert pid is not None
    assert not psutil.pid_exists(pid)


def test_nodes_of_a_supervisor_that_was_killed_do_not_outlive_the_next_up_or_down(tmp_path: Path) -> None:
    cluster = standins(tmp_path / "c", nodes=1)
    cluster.up()
    for act in (cluster.up, cluster.down):
        orphan = cluster.pid("a/1")
        assert orphan is not None
        os.kill(cluster.status()["supervisor"], signal.SIGKILL)
        assert wait_until(lambda: not cluster.status()["running"], PATIENCE_S)
        assert cluster.node_state("a/1").state is Phase.RUNNING, "it goes on without"
        with pytest.raises(LocalError, match="is down"):
            cluster.kill("a/1")
        left = read_state(tmp_path / "c")
        act()
        assert left is not None
        assert not Path(left.socket).parent.exists()
        assert mark_of(orphan) is None, "gone, or a zombie that init has not seen yet"
    assert processes_of(tmp_path) == []


def test_an_owned_cluster_ends_with_its_owner(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster.local import LocalCluster\n"
        f"LocalCluster({str(tmp_path / 'c')!r}, nodes=1, program={STANDIN!r}).up(owned=True)\n"
        "print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        assert LocalCluster(tmp_path / "c").status()["running"]
        owner.kill()
    assert wait_until(lambda: processes_of(tmp_path) == [], PATIENCE_S)


def test_two_who_start_it_at_once_start_one(tmp_path: Path) -> None:
    answers: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda: answers.append(standins(tmp_path / "c").up())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert len(answers) == 3
        assert answers[0] == answers[1] == answers[2]
    finally:
        LocalCluster(tmp_path / "c").down()
    assert processes_of(tmp_path) == []


def test_a_temporary_cluster_leaves_nothing() -> None:
    with LocalCluster(nodes=1, program=STANDIN, environment={"X": "1"}) as cluster:
        directory = cluster.directory
        pid = cluster.pid("a/1")
        assert pid is not None
        assert psutil.Process(pid).environ()["X"] == "1"
    assert not directory.exists()
    assert not psutil.pid_exists(pid)


def test_a_long_way_to_temporary_files_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket may have a hundred bytes."""
    far = tmp_path / ("x" * 100)
    far.mkdir()
    monkeypatch.setenv("TMPDIR", str(far))
    with standins(tmp_path / "c", nodes=1) as cluster:
        cluster.kill("a/1")
    assert processes_of(tmp_path) == []
    assert not list(far.iterdir())


# ------------------------------------------------------------------------------------------ the real thing


def holdfast(directory: Path, *arguments: str) -> Any:
    """`holdfast local … --json` in that directory, as a process of its own; what it printed."""
    result = subprocess.run(
        [str(HOLDFAST), *arguments, "--json"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        start_new_session=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return json.loads(result.stdout)


def health_of(directory: Path) -> dict[str, Any]:
    """What is wrong with the region, which the command finds by the current directory."""
    result = subprocess.run(
        [str(HOLDFAST), "cluster", "health", "--json"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout, result.stderr
    told: dict[str, Any] = json.loads(result.stdout)
    return told


async def test_a_region_of_three_nodes_by_the_command_line(tmp_path: Path) -> None:
    """Up, a workflow through each node, a node killed and brought back, down, up on the same data."""
    try:
        nodes = holdfast(tmp_path, "local", "up")["regions"][0]["nodes"]
        assert wait_until(lambda: not faults(health_of(tmp_path)), PATIENCE_S)
        for number, node in enumerate(nodes):
            client = await Client.connect(node["grpc"])
            await client.start_workflow("W", id=f"w{number}", task_queue="q")
        assert holdfast(tmp_path, "local", "kill", "a/1") == {"name": "a/1", "state": "killed", "pid": None}
        client = await Client.connect(nodes[1]["grpc"])
        for number in range(3):
            assert (await client.get_workflow_handle(f"w{number}").describe()).workflow_type == "W"
        holdfast(tmp_path, "local", "restart", "a/1")
        status = holdfast(tmp_path, "local", "status")
        assert [node["serving"] for node in status["regions"][0]["nodes"]] == [True] * 3
        assert [node["restarts"] for node in status["regions"][0]["nodes"]] == [0] * 3
        assert holdfast(tmp_path, "local", "logs", "a/1")["lines"]
        holdfast(tmp_path, "local", "down")
        assert holdfast(tmp_path, "local", "up")["regions"][0]["endpoint"] == nodes[0]["grpc"]
        client = await Client.connect(nodes[2]["grpc"])
        assert (await client.get_workflow_handle("w0").describe()).workflow_type == "W"
    finally:
        holdfast(tmp_path, "local", "down", "--delete")
    assert not (tmp_path / ".holdfast").exists()
    assert processes_of(tmp_path) == []


def test_two_regions_by_the_command_line(tmp_path: Path) -> None:
    """Up, and they know each other; one is killed and comes back; introduced again, and parted."""

    def seen(region: int) -> list[tuple[str, int, str]]:
        endpoint = up["regions"][region]["endpoint"]
        rows = holdfast(tmp_path, "region", "list", "--address", endpoint)["regions"]
        return [(row["name"], row["index"], row["state"]) for row in rows]

    try:
        up = holdfast(tmp_path, "local", "up", "--regions", "a,b", "--nodes", "1")
        assert [node["name"] for region in up["regions"] for node in region["nodes"]] == ["a/1", "b/1"]
        a, b = (region["endpoint"] for region in up["regions"])
        assert seen(0) == [("a", 1, "here"), ("b", 2, "up")]
        assert wait_until(lambda: seen(1) == [("b", 2, "here"), ("a", 1, "up")], PATIENCE_S)
        peers = [
            node["peers"]
            for region in holdfast(tmp_path, "local", "status")["regions"]
            for node in region["nodes"]
        ]
        assert not holdfast(tmp_path, "region", "add", peers[0], "--address", b)["changed"]
        holdfast(tmp_path, "local", "kill", "b/1")
        assert wait_until(lambda: seen(0)[1] == ("b", 2, "down"), PATIENCE_S)
        holdfast(tmp_path, "local", "restart", "b/1")
        assert wait_until(lambda: seen(0)[1] == ("b", 2, "up"), PATIENCE_S)
        assert holdfast(tmp_path, "local", "up") != up, "b/1 is another process"
        assert holdfast(tmp_path, "region", "remove", "b", "--yes", "--address", a)["changed"]
        assert seen(0) == [("a", 1, "here"), ("b", 2, "removed")]
        holdfast(tmp_path, "local", "down")
        holdfast(tmp_path, "local", "up")
        assert seen(0) == [("a", 1, "here"), ("b", 2, "removed")], "what was parted is not introduced again"
    finally:
        holdfast(tmp_path, "local", "down", "--delete")
    assert processes_of(tmp_path) == []
