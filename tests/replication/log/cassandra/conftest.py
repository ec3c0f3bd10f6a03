"""One cluster of real nodes for all tests of a run, with the tables that an operator made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from cluster.local.cassandra.jars import MissingError
from tests.replication.log.cassandra.pair import CassandraLogs


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    from replication.log.cassandra import store
    from tests.replication.log.cassandra import server

    try:
        nodes = server.Nodes(tmp_path_factory.mktemp("cassandra"), ["a", "b"])
    except MissingError as missing:
        pytest.skip(str(missing))
    try:
        nodes.start()
        asyncio.run(store.create_schema(nodes.operator("a"), {"a": 1, "b": 1}))
        nodes.let_in(server.USER[0], "holdfast", "SELECT", "MODIFY")
        yield nodes
    finally:
        nodes.stop()


@pytest.fixture
async def logs(nodes) -> AsyncIterator[CassandraLogs]:
    from replication.log.cassandra import store

    a, b = await asyncio.gather(*[store.connect(nodes.options(region)) for region in "ab"])
    yield CassandraLogs(a, b)
    await asyncio.gather(a.close(), b.close())
