"""The log on a real Cassandra keeps the port's promises (replication/log/cassandra)."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from replication.frames import Stream
from replication.log.contract import LogRefused, LogStore, LogUnavailable, SchemaMismatch
from tests.replication.log.contract import LogContract, arrives, beats

pytest.importorskip("cassandra", reason="no cassandra-driver")

from replication.log.cassandra import store
from tests.replication.log.cassandra import server

pytestmark = [
    pytest.mark.live,
    pytest.mark.tool("cassandra"),
    pytest.mark.skipif(bool(server.why_not()), reason=server.why_not()),
]

_names = itertools.count()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Nodes]:
    nodes = server.Nodes(tmp_path_factory.mktemp("cassandra"), ["a", "b"])
    try:
        nodes.start()
        asyncio.run(store.create_schema(options(nodes, "a", request_timeout_s=30), {"a": 1, "b": 1}))
        yield nodes
    finally:
        nodes.stop()


def options(nodes: server.Nodes, region: str, **more: object) -> store.Options:
    others = [other for other in nodes.addresses if other != region]
    return store.Options(region, [nodes.addresses[region]], others, **more)  # type: ignore[arg-type]


class CassandraLogs:
    def __init__(self, a: LogStore, b: LogStore) -> None:
        self.a = a
        self.b = b

    def name(self, word: str) -> str:
        return f"{word}{next(_names)}"

    async def pause(self) -> None:
        await asyncio.sleep(0.02)


@pytest.fixture
async def logs(nodes: server.Nodes) -> AsyncIterator[CassandraLogs]:
    a, b = await asyncio.gather(*[store.connect(options(nodes, region)) for region in "ab"])
    yield CassandraLogs(a, b)
    await asyncio.gather(a.close(), b.close())


class TestContract(LogContract):
    pass


async def test_making_the_tables_again_changes_nothing(nodes: server.Nodes, logs: CassandraLogs):
    await store.create_schema(options(nodes, "b"), {"a": 1, "b": 1})
    await logs.a.check_schema()


async def test_without_tables_there_is_no_log(nodes: server.Nodes):
    with pytest.raises(SchemaMismatch, match="keyspace nothing_here"):
        await store.connect(options(nodes, "a", keyspace="nothing_here"))


async def test_tables_of_another_release_are_refused(nodes, logs, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA_VERSION", 99)
    with pytest.raises(SchemaMismatch, match="have version 1; this release needs 99"):
        await logs.a.check_schema()


async def test_a_region_that_is_not_known_is_refused(logs: CassandraLogs):
    with pytest.raises(LogRefused, match="nowhere is no region"):
        await logs.a.read(Stream("a", 1, 1), 1, via="nowhere")


async def test_many_writes_at_once(logs: CassandraLogs):
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 500)
    await asyncio.gather(*[logs.a.append(stream, frame) for frame in frames])
    found = await logs.a.read(stream, 1, frames_max=1000)
    assert found == (tuple(frames), 500)


async def test_a_region_that_stands_still_is_unknown_and_comes_back(nodes: server.Nodes):
    """Writes in the own region go on; what the other one answers is nothing, then all."""
    a, b = [await store.connect(options(nodes, region, request_timeout_s=0.5)) for region in "ab"]
    logs = CassandraLogs(a, b)
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 20)
    nodes.freeze("b")
    try:
        for frame in frames:
            await a.append(stream, frame)
        with pytest.raises(LogUnavailable) as caught:
            await a.read(stream, 1, via="b")
        assert not caught.value.definite
        with pytest.raises(LogUnavailable):
            await b.append(stream, frames[0])
        assert (await a.read(stream, 1)).frames == tuple(frames)
    finally:
        nodes.thaw("b")

    async def read_patiently() -> object:
        try:
            return await b.read(stream, 1, via="a")
        except LogUnavailable:
            return None

    await arrives(logs, read_patiently, (tuple(frames), 20))
    await asyncio.gather(a.close(), b.close())


async def test_nobody_there(nodes: server.Nodes):
    with pytest.raises(LogUnavailable):
        await store.connect(store.Options("a", ["127.0.0.1"], port=1))
