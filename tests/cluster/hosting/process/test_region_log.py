"""A node and its log between regions on Cassandra: what a start refuses, and what it does without."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.hosting.config.node_config import NodeConfig, load
from cluster.hosting.process import region_log
from cluster.hosting.process.region_log import LogNotUsable, explained, options_of
from cluster.hosting.process.region_server import RegionServer
from cluster.local.ports import free_ports
from replication.log.contract import (
    LogClosed,
    LogDenied,
    LogError,
    LogRefused,
    LogStore,
    LogUnavailable,
    SchemaMismatch,
)
from replication.log.memory import MemoryWorld

FILE = """
[node]
name = "a/1"
data_dir = "data"
[region]
name = "a"
nodes = ["a/1=127.0.0.1:{peers}"]
replicas = 1
shards = 1
[listen]
grpc = {grpc}
peers = {peers}
metrics = {metrics}
[replication]
log = "cassandra"
[cassandra]
contact_points = ["127.0.0.9", "[::1]"]
user = "holdfast"
password_env = "SECRET_WORD"
"""


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    grpc, peers, metrics = free_ports(3, random.Random(os.getpid()))
    file = tmp_path / "node.toml"
    file.write_text(FILE.format(grpc=grpc, peers=peers, metrics=metrics))
    return load(file)


class Cassandra:
    """In its place: a log in memory, or an error."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.why: LogError | None = None
        self.world = MemoryWorld(["a"], random.Random(1), lambda: int(loop.time() * 1000), self._sleep)
        self.opened: list[LogStore] = []

    async def _sleep(self, ms: int) -> None:
        await asyncio.sleep(ms / 1000)

    async def open(self, config: NodeConfig) -> LogStore:
        assert config.region.name == "a"
        if self.why is not None:
            raise self.why
        self.opened.append(self.world.log("a"))
        return self.opened[-1]


@pytest.fixture
async def cassandra(monkeypatch: pytest.MonkeyPatch) -> Cassandra:
    made = Cassandra()
    monkeypatch.setattr(region_log, "open_log", made.open)
    return made


async def started(config: NodeConfig) -> RegionServer:
    server = RegionServer(config)
    await server.start(lambda error: None)
    return server


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.05)


def metrics(server: RegionServer) -> dict[str, str]:
    lines = server._metrics.text().decode().splitlines()
    return dict(line.rsplit(" ", 1) for line in lines if line.startswith("holdfast_log"))


@pytest.mark.parametrize("why", [LogDenied("bad credentials"), SchemaMismatch("keyspace holdfast: none")])
async def test_the_first_start_refuses_a_log_that_is_described_wrong(
    config: NodeConfig, cassandra: Cassandra, why: LogError
) -> None:
    cassandra.why = why
    with pytest.raises(LogNotUsable, match=str(why)):
        await started(config)
    assert not (Path(config.node.data_dir) / "node.db").exists(), "the next start is the first one as well"


async def test_a_later_start_serves_without_it_and_takes_it_when_it_comes(
    config: NodeConfig, cassandra: Cassandra
) -> None:
    await (await started(config)).stop(graceful=True)
    cassandra.why = LogDenied("bad credentials")
    server = await started(config)
    assert server.member.ready.done()
    log = server.member.across.streaming.store
    assert log is not None
    with pytest.raises(LogUnavailable, match="bad credentials"):
        await log.check_schema()
    assert metrics(server)["holdfast_log_open"] == "0.0"
    assert metrics(server)["holdfast_log_failing"] == "1.0"
    steward = server.member.steward
    await until(lambda: [one.log_failure for one in steward.statuses.values()] == ["bad credentials"])
    cassandra.why = None
    await until(lambda: metrics(server)["holdfast_log_open"] == "1.0")
    await log.check_schema()
    await until(lambda: [one.log_failure for one in steward.statuses.values()] == [""])
    await server.stop(graceful=True)
    with pytest.raises(LogClosed):
        await cassandra.opened[-1].check_schema()


async def test_one_that_is_down_at_the_first_start_is_waited_for_in_the_background(
    config: NodeConfig, cassandra: Cassandra
) -> None:
    cassandra.why = LogUnavailable("nobody there")
    server = await started(config)
    assert server.member.ready.done()
    await server.stop(graceful=True)


async def test_a_start_that_fails_closes_the_log(
    config: NodeConfig, cassandra: Cassandra, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(self: RegionServer) -> Any:
        raise OSError("no room")

    monkeypatch.setattr(RegionServer, "_open_storage", no_room)
    with pytest.raises(OSError, match="no room"):
        await started(config)
    (opened,) = cassandra.opened
    with pytest.raises(LogClosed):
        await opened.check_schema()


# ------------------------------------------------------------------------------------------------ in words


def test_how_it_connects(config: NodeConfig) -> None:
    pytest.importorskip("cassandra", reason="no cassandra-driver")
    options = options_of(config, environment={"SECRET_WORD": "a pass word"})
    assert (options.region, options.port, options.keyspace) == ("a", 9042, "holdfast")
    assert list(options.contact_points) == ["127.0.0.9", "::1"]
    assert (options.user, options.password, options.tls) == ("holdfast", "a pass word", None)
    assert "a pass word" not in repr(options)
    assert options_of(config, ("admin", "w"), {}).user == "admin"
    with pytest.raises(LogRefused, match=r"SECRET_WORD.*Set it"):
        options_of(config, environment={})


@pytest.mark.parametrize(
    ("error", "what", "do"),
    [
        (LogDenied("AuthenticationFailed: x"), "does not let holdfast in", "correct cassandra.user"),
        (LogUnavailable("NoHostAvailable"), "at 127.0.0.9, [::1], port 9042 does not answer", "start Cass"),
        (SchemaMismatch("keyspace holdfast: no"), "tables of the log are not", "replication log init"),
        (
            SchemaMismatch("the tables have version 2; this release needs 1"),
            "have version 2",
            "run the release that made them",
        ),
        (LogRefused("there is no data centre a; there are x"), "there is no data centre a", "name data"),
        (LogRefused("the driver is not installed. Install it."), "is not installed", "Install it"),
    ],
)
def test_what_an_error_means_and_what_to_do(config: NodeConfig, error: LogError, what: str, do: str) -> None:
    found = explained(config, error)
    assert what in str(found)
    assert found.do.startswith(do) or do in found.do
