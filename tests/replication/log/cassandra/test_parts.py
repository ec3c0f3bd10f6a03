"""Statements and the bridge, without a Cassandra (replication/log/cassandra)."""

import asyncio
import threading

import pytest

from replication.log.cassandra import statements
from replication.log.cassandra.bridge import Bridge
from replication.log.contract import SCHEMA_VERSION


def test_the_schema_is_made_for_the_regions_that_there_are():
    made = statements.schema("holdfast", {"eu-west": 3, "us": 1})
    assert made[0] == (
        "CREATE KEYSPACE IF NOT EXISTS holdfast WITH replication = "
        "{'class': 'NetworkTopologyStrategy', 'eu-west': 3, 'us': 1}"
    )
    assert all(each.startswith("CREATE TABLE IF NOT EXISTS holdfast.") for each in made[1:-1])
    assert made[-1].endswith(f"VALUES (1, {SCHEMA_VERSION})"), "the version comes when all tables are there"
    assert not any("$" in each or "--" in each for each in made)


def test_every_query_is_of_a_table_that_there_is():
    tables = {each.split()[5].partition(".")[2] for each in statements.schema("k", {"a": 1})[1:-1]}
    queries = statements.queries("k")
    assert len(queries) == 12
    used = {
        word.partition(".")[2]
        for query in queries.values()
        for word in query.split()
        if word.startswith("k.")
    }
    assert used == tables


@pytest.mark.parametrize("word", ["DELETE", "BATCH", " IF ", "TIMESTAMP", "ALLOW FILTERING"])
def test_what_no_query_does(word):
    """No tombstones, no transactions, nothing written in the past, no scans."""
    assert not any(word in query for query in statements.queries("k").values())


@pytest.mark.parametrize("name", ["", "Upper", "1k", "k; DROP KEYSPACE k", "k" * 49])
def test_names_that_are_no_keyspaces_are_refused(name):
    with pytest.raises(ValueError, match="is no name of a keyspace"):
        statements.queries(name)
    with pytest.raises(ValueError, match="is no name of a keyspace"):
        statements.schema(name, {"a": 1})


def test_names_that_are_no_data_centres_are_refused():
    with pytest.raises(ValueError, match="is no name of a data centre"):
        statements.schema("k", {"a': 1}; --": 1})


class Response:
    """A request that ends when the test says so, on another thread."""

    def __init__(self) -> None:
        self.callbacks = None

    def add_callbacks(self, callback, errback):
        self.callbacks = (callback, errback)


class ScriptedSession:
    def __init__(self) -> None:
        self.sent: list[tuple[object, object, str]] = []
        self.responses: list[Response] = []

    def execute_async(self, query, parameters, *, execution_profile):
        self.sent.append((query, parameters, execution_profile))
        self.responses.append(Response())
        return self.responses[-1]

    def end(self, *results: object) -> None:
        """All results come on the driver's thread, before the loop turns."""

        def run() -> None:
            for response, result in zip(self.responses, results, strict=False):
                response.callbacks[isinstance(result, Exception)](result)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_results_of_one_moment_cost_one_wake_up(monkeypatch):
    session = ScriptedSession()
    bridge = Bridge(session, 10)
    tasks = [asyncio.create_task(bridge.execute(f"q{n}", (n,), "local")) for n in range(3)]
    await turns()
    assert session.sent == [("q0", (0,), "local"), ("q1", (1,), "local"), ("q2", (2,), "local")]
    woken = []
    loop = asyncio.get_running_loop()
    original = loop.call_soon_threadsafe
    monkeypatch.setattr(
        loop, "call_soon_threadsafe", lambda *args, **more: woken.append(args) or original(*args, **more)
    )
    session.end([(1,)], ValueError("no"), None)
    assert len(woken) == 1
    await turns()
    assert await tasks[0] == [(1,)]
    with pytest.raises(ValueError, match="no"):
        await tasks[1]
    assert await tasks[2] == []


async def test_after_a_drain_the_next_result_wakes_again():
    session = ScriptedSession()
    bridge = Bridge(session, 10)
    for _ in range(3):
        session.responses.clear()
        task = asyncio.create_task(bridge.execute("q", (), "local"))
        await turns()
        session.end([(7,)])
        assert await task == [(7,)]


async def test_no_more_than_so_many_are_under_way():
    session = ScriptedSession()
    bridge = Bridge(session, 2)
    tasks = [asyncio.create_task(bridge.execute("q", (), "local")) for _ in range(3)]
    await turns()
    assert len(session.sent) == 2
    session.end([(1,)])
    await turns()
    assert len(session.sent) == 3
    session.responses = session.responses[1:]
    session.end([(2,)], [(3,)])
    assert await asyncio.gather(*tasks) == [[(1,)], [(2,)], [(3,)]]


async def test_who_hangs_up_keeps_its_place_until_the_answer():
    """Else callers that give up would together have more under way than the driver has numbers for."""
    session = ScriptedSession()
    bridge = Bridge(session, 1)
    first = asyncio.create_task(bridge.execute("q", (), "local"))
    await turns()
    first.cancel()
    second = asyncio.create_task(bridge.execute("q", (), "local"))
    await turns()
    assert len(session.sent) == 1
    session.end([(1,)])
    await turns()
    assert len(session.sent) == 2
    session.responses = session.responses[1:]
    session.end([(2,)])
    assert await second == [(2,)]


async def test_a_request_that_is_answered_twice_ends_once():
    """As one that was sent to a second node is."""
    session = ScriptedSession()
    bridge = Bridge(session, 1)
    first = asyncio.create_task(bridge.execute("q", (), "local"))
    await turns()
    session.end([(1,)])
    session.end(ValueError("the second node's"))
    assert await first == [(1,)]
    tasks = [asyncio.create_task(bridge.execute("q", (), "local")) for _ in range(2)]
    await turns()
    assert len(session.sent) == 2, "one place, not two"
    session.responses = session.responses[1:]
    session.end([(2,)])
    await turns()
    session.responses = session.responses[1:]
    session.end([(3,)])
    assert await asyncio.gather(*tasks) == [[(2,)], [(3,)]]


async def test_a_request_that_is_not_sent_has_no_place():
    class Broken:
        def execute_async(self, query, parameters, *, execution_profile):
            raise TypeError("a number is none")

    bridge = Bridge(Broken(), 1)
    for _ in range(3):
        with pytest.raises(TypeError):
            await bridge.execute("q", (), "local")


async def test_a_result_that_nobody_waits_for_is_dropped():
    session = ScriptedSession()
    bridge = Bridge(session, 2)
    task = asyncio.create_task(bridge.execute("q", (), "local"))
    await turns()
    task.cancel()
    await turns()
    session.end([(1,)])
    await turns()
    assert task.cancelled()
