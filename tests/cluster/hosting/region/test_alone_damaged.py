"""A server that is alone, with damage on its disk: health checks, `shard list` and the log say so."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from cluster.frontend.health import Serving
from cluster.hosting.config.options import ServerOptions
from cluster.hosting.process.metrics import MetricsServer
from cluster.hosting.process.server import Server
from cluster.hosting.region.administration import METHOD
from history_store.shard import image, snapshot
from tests.cluster.frontend.services.conftest import FakeCall, FakeConnection
from tests.cluster.hosting.replicas.test_damage import flip, spoil

KEY = b"hkey"


async def running(path: Path) -> Server:
    server = Server(ServerOptions(port=0, db_path=str(path), shards=2))
    await server.start(lambda error: None)
    server.node.scrub.close()
    return server


def ask(server: Server, what: str) -> dict[str, Any]:
    call = FakeCall(METHOD, json.dumps({"do": what}).encode(), None, FakeConnection())
    answer: dict[str, Any] = json.loads(server._handlers()[METHOD](call))  # type: ignore[arg-type]
    return answer


async def filled(path: Path) -> None:
    """A file with a row in each of its two shards."""
    server = await running(path)
    rows: list[tuple[bytes, bytes | None]] = [(KEY, b"value")]
    for group in (1, 2):
        server.node.committer.groups[group].propose(image.encode(rows, []), rows, [])
        stored = asyncio.get_running_loop().create_future()
        server.node.committer.groups[group].when_committed(stored.set_result)
        assert await stored is None
    await server.stop(graceful=True)


def serving(server: Server) -> Serving:
    return server.health._states[""]


def counted(server: Server) -> str:
    lines = MetricsServer(server.node).text().decode().splitlines()
    return next(line for line in lines if line.startswith("holdfast_damaged_rows_total"))


async def read(server: Server, group: int) -> None:
    """Somebody reads the row; what is found takes effect in the next turn."""
    with pytest.raises(Exception, match="damaged"):
        server.node.committer.groups[group].rows.get(KEY)
    await asyncio.sleep(0)


async def test_damaged_shards_are_told_and_the_server_serves_while_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await filled(path)
    for group in (1, 2):
        flip(path, snapshot.prefix(group) + KEY)
    server = await running(path)
    assert ask(server, "health") == {"ok": True, "problems": []}
    await read(server, 1)
    (problem,) = ask(server, "health")["problems"]
    assert problem["what"].startswith("rows of shard 1 are damaged on its disk, and they are not served: ")
    assert "Restore it from a backup" in problem["do"]
    shown = {one["id"]: (one["state"], one["leader"]) for one in ask(server, "shards")["shards"]}
    assert shown[1] == ("damaged", None)
    assert shown[2] == shown[0] == ("serving", "this server")
    assert ask(server, "nodes")["nodes"][0]["leads"] == 2
    assert serving(server) == Serving.SERVING, "clients of the other shard are not to go away"
    assert counted(server).endswith(" 1.0")

    await read(server, 2)
    (problem,) = ask(server, "health")["problems"]
    assert problem["what"].startswith("rows of shards 1, 2 are damaged")
    assert serving(server) == Serving.NOT_SERVING
    await server.stop(graceful=True)

    server = await running(path)
    assert not ask(server, "health")["ok"], "it was noted on the disk"
    assert serving(server) == Serving.NOT_SERVING
    await server.stop(graceful=True)


async def test_a_file_that_is_malformed_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await filled(path)
    spoil(path)
    server = await running(path)
    with structlog.testing.capture_logs() as said:
        for _ in range(20):  # pieces
            if not server.node.damages.file:
                server.node.scrub._closed = False
                server.node.scrub._read_now()
                server.node.scrub.close()
    (line,) = [one for one in said if one["event"] == "the data file is damaged"]
    assert "Restore it from a backup" in line["do"]
    (problem,) = ask(server, "health")["problems"]
    assert problem["what"].startswith(f"the data file is damaged: {path} is damaged: ")
    assert "malformed" in problem["what"]
    assert problem["do"].startswith("stop it, ")
    assert counted(server).endswith(" 1.0")
    await server.stop(graceful=False)


async def test_what_the_scrub_finds_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    await filled(path)
    server = await running(path)
    server.node.scrub._row(snapshot.prefix(1) + KEY)
    await asyncio.sleep(0)
    assert counted(server).endswith(" 1.0")
    server.node.scrub._row(snapshot.prefix(1) + b"rother")
    assert counted(server).endswith(" 2.0")
    await server.stop(graceful=True)
