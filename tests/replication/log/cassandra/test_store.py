"""What the log makes of the driver's answers, without a Cassandra (replication/log/cassandra/store.py)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from replication.frames import Stream
from replication.log.contract import LogDenied, LogRefused, LogUnavailable
from replication.log.rows import rows_of
from tests.replication.log.contract import beats, large

pytest.importorskip("cassandra", reason="no cassandra-driver")

from cassandra import AuthenticationFailed, InvalidRequest, OperationTimedOut, Unauthorized, Unavailable
from cassandra.cluster import NoHostAvailable
from cassandra.connection import ConnectionShutdown
from cassandra.protocol import OverloadedErrorMessage, ServerError

from replication.log.cassandra import store

STREAM = Stream("a", 7, 1)


class ScriptedBridge:
    """Answers with what is next; notes how many rows were asked for."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.limits: list[int] = []
        self.profiles: list[str] = []

    async def execute(self, statement, parameters, profile):
        self.limits.append(parameters[-1])
        self.profiles.append(profile)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer[: parameters[-1]]


class ScriptedCluster:
    """Knows which data centres there are, and takes profiles, as slowly as the nodes connect."""

    def __init__(self) -> None:
        self.centres = ["a", "b"]
        self.profiles: dict[str, object] = {}
        self.late = False
        self.metadata = self

    def all_hosts(self) -> list[object]:
        return [SimpleNamespace(datacenter=centre) for centre in self.centres]

    def add_execution_profile(self, name: str, profile: object, pool_wait_timeout: float) -> None:
        assert pool_wait_timeout <= 2
        assert name not in self.profiles, "the driver refuses that"
        self.profiles[name] = profile
        if self.late:
            raise OperationTimedOut("Failed to create all new connection pools")


def log_of(*answers: object) -> tuple[store.CassandraLog, ScriptedBridge]:
    bridge = ScriptedBridge(*answers)
    options = store.Options("b", ["127.0.0.1"])
    made = store.CassandraLog(options, ScriptedCluster(), bridge, {"append": "append", "read": "read"})
    return made, bridge


@pytest.mark.parametrize(
    "error",
    [
        OperationTimedOut(),
        Unavailable("not enough"),
        NoHostAvailable("nobody", {}),
        ConnectionShutdown("closed"),
        Unauthorized("no MODIFY"),
        ServerError(0, "java.lang.RuntimeException", None),
        OverloadedErrorMessage(0x1001, "too much", None),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_may_have_happened_is_not_called_definite(error):
    log, _ = log_of(error)
    with pytest.raises(LogUnavailable) as caught:
        await log.append(STREAM, beats(STREAM, 0, 1)[0])
    assert not caught.value.definite
    assert type(error).__name__ in str(caught.value)


async def test_what_the_tables_do_not_allow_is_definite():
    log, _ = log_of(InvalidRequest("Mutation is too large"))
    with pytest.raises(LogRefused, match="too large") as caught:
        await log.append(STREAM, beats(STREAM, 0, 1)[0])
    assert caught.value.definite


async def test_a_read_that_fails_asks_for_less_until_it_succeeds_and_then_for_more():
    """What is behind may be more than arrives in time: the same question would never be answered."""
    frames = beats(STREAM, 0, *[1] * 200)
    rows = [tuple(row) for frame in frames for row in rows_of(frame)]
    log, bridge = log_of(*[OperationTimedOut()] * 5, *[rows] * 8)
    for _ in range(5):
        with pytest.raises(LogUnavailable):
            await log.read(STREAM, 1, via="a")
    for _ in range(8):
        found = await log.read(STREAM, 1, via="a")
        assert found.frames == tuple(frames[: bridge.limits[-1]])
    assert bridge.limits == [100, 25, 6, 1, 1, 1, 2, 4, 8, 16, 32, 64, 100]


async def test_a_failure_in_one_region_says_nothing_about_another():
    log, bridge = log_of(OperationTimedOut(), [], [])
    with pytest.raises(LogUnavailable):
        await log.read(STREAM, 1, via="a")
    await log.read(STREAM, 1)
    await log.read(STREAM, 1, via="b")
    assert bridge.limits == [100, 100, 100]
    assert bridge.profiles == ["source:a", "local", "local"]


async def test_a_frame_of_more_rows_than_are_asked_for_is_read_whole():
    frame = large(STREAM, 0, 2000 << 10)
    rows = [tuple(row) for row in rows_of(frame)]
    assert len(rows) > 4
    log, bridge = log_of(rows, rows)
    assert (await log.read(STREAM, 1, frames_max=1)).frames == (frame,)
    assert bridge.limits == [1, len(rows)]


def test_a_password_is_not_shown():
    assert "secret" not in repr(store.Options("a", [], user="me", password="secret"))


async def test_the_way_to_another_region_is_made_once_when_it_is_asked_for():
    log, bridge = log_of([], [], [], [])
    cluster = log._cluster
    assert cluster.profiles == {}
    cluster.late = True
    await asyncio.gather(log.read(STREAM, 1, via="a"), log.read(STREAM, 1, via="a"))
    assert bridge.profiles == ["source:a", "source:a"]
    with pytest.raises(LogRefused, match="c is no region"):
        await log.read(STREAM, 1, via="c")
    cluster.centres.append("c")  # regions are added while a node runs
    await log.read(STREAM, 1, via="c")
    assert list(cluster.profiles) == ["source:a", "source:c"]


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationFailed("bad credentials"),
        Unauthorized("no MODIFY"),
        NoHostAvailable("nobody", {"h": OSError("refused"), "i": AuthenticationFailed("bad credentials")}),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_who_may_not_is_told_so(error):
    log, _ = log_of(error)
    with pytest.raises(LogDenied, match=r"bad credentials|no MODIFY"):
        await log.append(STREAM, beats(STREAM, 0, 1)[0])


async def test_only_the_own_region_is_asked_twice():
    """Another region's answer takes longer than a second try waits, as a rule."""
    log, _ = log_of([])
    await log.read(STREAM, 1, via="a")
    profiles = store._cluster(log._options).profile_manager.profiles | log._cluster.profiles
    again = {}
    for name in ("local", "source:a"):
        plan = profiles[name].speculative_execution_policy.new_plan("k", None)
        again[name] = [plan.next_execution(None) for _ in range(3)]
    assert again == {"local": [0.1, -1, -1], "source:a": [-1, -1, -1]}
