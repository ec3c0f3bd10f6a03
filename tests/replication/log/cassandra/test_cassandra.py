"""The log on a real Cassandra keeps the port's promises (replication/log/cassandra)."""

from __future__ import annotations

import asyncio
import time

import pytest

from replication.frames import Stream
from replication.log.contract import LogClosed, LogDenied, LogRefused, LogUnavailable, SchemaMismatch
from tests.replication.log.contract import LogContract, arrives, beats, ledger_row

pytest.importorskip("cassandra", reason="no cassandra-driver")

from replication.log.cassandra import store
from tests.replication.log.cassandra.pair import CassandraLogs
from tests.replication.log.cassandra.server import Nodes

pytestmark = [pytest.mark.live, pytest.mark.tool("cassandra")]


class TestContract(LogContract):
    pass


# ------------------------------------------------------------------------------------------------- the tables


async def test_making_the_tables_again_changes_nothing(nodes: Nodes, logs: CassandraLogs):
    await store.create_schema(nodes.operator("b"), {"a": 1, "b": 1})
    await logs.a.check_schema()


async def test_a_region_that_is_new_gets_copies(nodes: Nodes):
    made = await store.create_schema(nodes.operator("a", keyspace="grows"), {"a": 1})
    assert made == (True, ())
    made = await store.create_schema(nodes.operator("a", keyspace="grows"), {"a": 1, "b": 1})
    assert made == (False, ("b",))
    log = await store.connect(nodes.operator("b", keyspace="grows"))
    await log.check_schema()
    await log.close()


async def test_copies_need_nodes_to_be_on(nodes: Nodes):
    with pytest.raises(LogRefused, match="no data centre elsewhere; there are a, b"):
        await store.create_schema(nodes.operator("a", keyspace="few"), {"a": 1, "elsewhere": 1})
    with pytest.raises(LogRefused, match=r"data centre b has fewer nodes \(1\) than copies \(3\)"):
        await store.create_schema(nodes.operator("a", keyspace="few"), {"a": 1, "b": 3})


async def test_tables_are_made_everywhere_or_the_operator_hears_of_it(nodes: Nodes):
    """A region that missed the version would say for ever that it has no tables."""
    nodes.freeze("b")
    try:
        with pytest.raises(LogUnavailable):
            await store.create_schema(nodes.operator("a"), {"a": 1, "b": 1})
    finally:
        nodes.thaw("b")
    nodes.wait_until_ready("b")


async def test_without_tables_there_is_no_log(nodes: Nodes):
    with pytest.raises(SchemaMismatch, match="keyspace nothing_here"):
        await store.connect(nodes.operator("a", keyspace="nothing_here"))


async def test_tables_of_another_release_are_refused(nodes: Nodes, logs: CassandraLogs, monkeypatch):
    monkeypatch.setattr(store, "SCHEMA_VERSION", 99)
    with pytest.raises(SchemaMismatch, match="have version 1; this release needs 99"):
        await logs.a.check_schema()
    with pytest.raises(SchemaMismatch, match="have version 1; this release needs 99"):
        await store.create_schema(nodes.operator("a"), {"a": 1, "b": 1})


async def test_tables_without_copies_in_the_own_region_are_refused(nodes: Nodes):
    await store.create_schema(nodes.operator("a", keyspace="elsewhere"), {"a": 1})
    log = await store.connect(nodes.operator("b", keyspace="elsewhere"))
    with pytest.raises(SchemaMismatch, match="keyspace elsewhere has no copies in b"):
        await log.check_schema()
    await log.close()


async def test_a_row_of_a_newer_release_is_refused_by_name(nodes: Nodes, logs: CassandraLogs):
    namespace = logs.name("namespace")
    await logs.a.append_ledger(ledger_row(namespace, 1, "a"))
    nodes.execute(
        "a",
        f"UPDATE holdfast.ns_ledger SET mode = 'lottery' WHERE namespace_id = '{namespace}' AND version = 1",
    )
    with pytest.raises(LogRefused, match="lottery"):
        await logs.a.read_ledger(namespace)


# ------------------------------------------------------------------------------------ who connects, and where


async def test_a_region_that_is_not_known_is_refused(logs: CassandraLogs):
    with pytest.raises(LogRefused, match="nowhere is no region"):
        await logs.a.read(Stream("a", 1, 1), 1, via="nowhere")


async def test_a_region_without_a_data_centre_is_refused(nodes: Nodes):
    misnamed = store.Options("eu", [nodes.addresses["a"]], **_secrets(nodes.options("a")))
    with pytest.raises(LogRefused, match="no data centre eu; there are a, b"):
        await store.connect(misnamed)


def _secrets(options: store.Options) -> dict[str, object]:
    return {"tls": options.tls, "user": options.user, "password": options.password}


async def test_nobody_there(nodes: Nodes):
    with pytest.raises(LogUnavailable):
        await store.connect(store.Options("a", ["127.0.0.1"], port=1))


async def test_who_has_no_certificate_or_password_is_not_let_in(nodes: Nodes):
    stranger = nodes.authority.client(None)
    for wrong in ({"tls": stranger}, {"tls": None}, {"password": "guess"}, {"user": ""}):
        with pytest.raises(LogDenied if "password" in wrong else LogUnavailable):
            await store.connect(nodes.options("a", **wrong))


async def test_a_server_that_another_authority_vouches_for_is_not_trusted(nodes: Nodes, tmp_path):
    other = type(nodes.authority)(tmp_path / "other")
    with pytest.raises(LogUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        await store.connect(nodes.options("a", tls=other.client(None)))


async def test_who_may_not_write_is_told_so(nodes: Nodes):
    nodes.execute("a", "CREATE ROLE IF NOT EXISTS guest WITH PASSWORD = 'guest' AND LOGIN = true")
    nodes.let_in("guest", "holdfast", "SELECT")
    stream = Stream("forbidden", 7, 1)
    log = await store.connect(nodes.options("a", user="guest", password="guest"))
    with pytest.raises(LogUnavailable, match="guest"):
        await log.append(stream, beats(stream, 0, 1)[0])
    assert await log.read(stream, 1) == ((), 0)
    await log.close()


# ----------------------------------------------------------------------------------------------- many at once


async def test_many_writes_at_once(logs: CassandraLogs):
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 500)
    await asyncio.gather(*[logs.a.append(stream, frame) for frame in frames])
    found = await logs.a.read(stream, 1, frames_max=1000)
    assert found == (tuple(frames), 500)


async def test_what_is_under_way_when_the_log_is_closed_ends(logs: CassandraLogs):
    stream = Stream(logs.name("region"), 7, 1)
    frames = beats(stream, 0, *[1] * 2000)
    writes = [asyncio.ensure_future(logs.a.append(stream, frame)) for frame in frames]
    await asyncio.sleep(0.05)
    await logs.a.close()
    ended = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 10)
    assert {type(each) for each in ended} <= {type(None), LogClosed, LogUnavailable}
    assert ended[-1] is not None


# -------------------------------------------------------------------------------------- a region stands still


async def test_a_region_that_stands_still_is_unknown_and_comes_back(nodes: Nodes):
    """Writes in the own region go on; what the other one answers is nothing, then all."""
    a, b = [await store.connect(nodes.options(region, request_timeout_s=0.5)) for region in "ab"]
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


async def test_a_region_begins_while_another_stands_still(nodes: Nodes):
    nodes.freeze("b")
    try:
        began = time.monotonic()
        log = await store.connect(nodes.options("a"))
        took_s = time.monotonic() - began
        await log.check_schema()
        await log.close()
    finally:
        nodes.thaw("b")
    nodes.wait_until_ready("b")
    assert took_s < 10
