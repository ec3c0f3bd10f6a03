"""A local cluster whose log between regions is on Cassandra: supervised, with a stand-in; then the real one.

The real one is the short form of what `make cassandra` does with dying nodes.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from cluster.hosting.config.node_config import load
from cluster.hosting.process.region_log import open_log
from cluster.local import LocalCluster, LocalError
from cluster.local import cluster as cluster_module
from cluster.local.cassandra import jars
from cluster.local.life import Phase
from cluster.local.plan import Plan
from replication.log.contract import LogError, LogStore
from tests.live.patience import PATIENCE_S

pytestmark = [
    pytest.mark.live,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="a network of addresses on loopback is Linux's"),
]

NODE = (sys.executable, str(Path(__file__).parents[1] / "cluster/local/standin.py"))
HOLDFAST = (sys.executable, "-P", "-m", "cluster.admin.main")
# Answers what a client asks first, as Cassandra does; ends at once where a file says so.
CASSANDRA = """
import pathlib, socket, sys
print("Cassandra begins", flush=True)
if pathlib.Path(sys.argv[2], "exit").exists():
    sys.exit(3)
with socket.create_server((sys.argv[1], 9042)) as listener:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(9)
            connection.sendall(bytes([0x84, 0, 0, 0, 6, 0, 0, 0, 0]))
"""


class Standins:
    """In the place of what prepares Cassandra, and of who makes its tables."""

    def __init__(self) -> None:
        self.tables = 0
        self.nodes_before: list[Phase] = []

    def prepare(self, directory: Path, plan: Plan, tell: Callable[[str], None]) -> None:
        for one in plan.logs:
            one.files(directory).mkdir(parents=True, exist_ok=True)
            words = [sys.executable, "-c", CASSANDRA, one.address, str(one.files(directory))]
            one.command(directory).write_text(json.dumps(words))

    def make_tables(self, directory: Path, *_: object) -> None:
        cluster = LocalCluster(directory)
        assert cluster.node_state("cassandra/a").state is Phase.RUNNING
        self.nodes_before = [cluster.node_state(name).state for name in cluster.node_names()]
        self.tables += 1


@pytest.fixture
def standins(monkeypatch: pytest.MonkeyPatch) -> Standins:
    made = Standins()
    monkeypatch.setattr(cluster_module, "prepare", made.prepare)
    monkeypatch.setattr(cluster_module, "make_tables", made.make_tables)
    return made


def of(directory: Path) -> LocalCluster:
    return LocalCluster(
        directory, regions=["a"], nodes=2, log="cassandra", program=NODE, ready_max_s=PATIENCE_S
    )


def test_the_log_is_there_before_the_nodes_and_obeys_as_they_do(tmp_path: Path, standins: Standins) -> None:
    told: list[str] = []
    cluster = of(tmp_path / "c")
    cluster.up(told.append)
    try:
        assert standins.nodes_before == [Phase.STOPPED] * 2
        assert told.index("cassandra/a serves") < told.index("a/1 serves")
        (row,) = cluster.status()["log"]["nodes"]
        assert (row["state"], row["serving"], row["restarts"]) == ("running", True, 0)
        assert "Cassandra begins" in cluster.log_file("cassandra/a").read_text()
        cluster.pause("cassandra/a")
        assert cluster.node_state("cassandra/a").state is Phase.PAUSED
        cluster.resume("cassandra/a")
        cluster.kill("cassandra/a")
        assert not cluster.status()["log"]["nodes"][0]["serving"]
        assert [cluster.node_state(name).state for name in cluster.node_names()] == [Phase.RUNNING] * 2
        cluster.restart("cassandra/a")
        assert cluster.status()["log"]["nodes"][0]["serving"]
        cluster.up(told.append)
        assert standins.tables == 1, "the nodes run: there is nothing to make"
    finally:
        cluster.down()
    assert cluster.status()["log"]["nodes"][0]["state"] == "stopped"
    with of(tmp_path / "c") as again:
        assert again.status()["log"]["nodes"][0]["serving"]
    assert standins.tables == 2
    cluster.down(delete=True)
    assert not (tmp_path / "c").exists()


def test_a_log_that_does_not_come_up_is_told_and_no_node_is_started(
    tmp_path: Path, standins: Standins
) -> None:
    (tmp_path / "c/cassandra/a").mkdir(parents=True)
    (tmp_path / "c/cassandra/a/exit").write_text("")
    cluster = of(tmp_path / "c")
    with pytest.raises(LocalError, match="cassandra/a ended with 3"):
        cluster.up()
    assert standins.tables == 0
    assert not cluster.status()["running"]
    assert not cluster.log_file("a/1").exists()


# --------------------------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    pytest.importorskip("cassandra", reason="no cassandra-driver")
    try:
        jars.java()
        jars.folder()
    except jars.MissingError as missing:
        pytest.skip(str(missing))
    cluster = LocalCluster(
        tmp_path_factory.mktemp("cassandra") / "c",
        regions=["a", "b"],
        nodes=1,
        log="cassandra",
        ready_max_s=PATIENCE_S,
    )
    with cluster:
        yield cluster


def holdfast(cluster: LocalCluster, *words: str) -> dict[str, Any]:
    address = cluster.endpoints()[0]
    done = subprocess.run(
        [*HOLDFAST, *words, "--address", address, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def figure(cluster: LocalCluster, name: str) -> float:
    """Of the first node: the sum over its shards."""
    port = Plan.read(cluster.directory).nodes[0].metrics
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.2)


async def exported(log: LogStore) -> int:
    """What the first region's shards say is in the log, in all."""
    try:
        heads = [await log.head("a", shard) for shard in range(1, 9)]
    except LogError:
        return -1
    return sum(head.exported for head in heads if head is not None)


@pytest.mark.tool("cassandra")
async def test_what_is_told_is_in_the_log_and_an_outage_of_it_costs_nothing(real: LocalCluster) -> None:
    holdfast(real, "namespace", "add-region", "default", "b")
    client = await Client.connect(real.endpoints()[0])
    log = await open_log(load(Plan.read(real.directory).nodes[1].config(real.directory)))
    count = 0

    async def start() -> None:
        nonlocal count
        count += 1
        await client.start_workflow("W", id=f"w-{count}", task_queue="q")

    async def reaches(least: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await exported(log) < least:
                await asyncio.sleep(0.2)

    try:
        async with asyncio.timeout(PATIENCE_S):
            while await exported(log) <= 0:  # it is told as soon as the region has heard of it
                await start()
                await asyncio.sleep(0.5)
        await until(lambda: figure(real, "holdfast_log_behind_entries") == 0)
        before = await exported(log)
        await asyncio.to_thread(real.kill, "cassandra/a")
        for _ in range(20):
            await start()
        await until(lambda: figure(real, "holdfast_log_failing{") or figure(real, "holdfast_log_failing "))
        assert figure(real, "holdfast_log_behind_entries") > 0
        problems = holdfast(real, "cluster", "health")["problems"]
        assert any("cannot write to the log between regions" in one["what"] for one in problems), problems
        await asyncio.to_thread(real.restart, "cassandra/a")
        await until(lambda: figure(real, "holdfast_log_behind_entries") == 0)
        await reaches(before + 20)
        assert figure(real, "holdfast_log_failing ") == 0
        assert figure(real, "holdfast_log_writes_again_total") > 0
    finally:
        await log.close()
