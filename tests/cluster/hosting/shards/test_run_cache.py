"""Runs that are held decoded: as many and as heavy as may be, and what has no rows yet stays."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
from temporalio.api.common.v1.message_pb2 import Payload, Payloads
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards import run_cache
from cluster.hosting.shards.run_cache import RunCache
from tests.cluster.hosting.play import Play, activity

MIB = 1 << 20


class Held:
    """A cache with a model of it: the runs by age, which may go."""

    def __init__(self, bytes_max: int) -> None:
        self.committed = 0
        self.bytes_max = bytes_max
        self.cache = RunCache(lambda: self.committed, lambda: self.bytes_max)

    def run(self, name: int, *, proposed: int = 0, tail: int = 0, watched: bool = False) -> Any:
        state = SimpleNamespace(run_id=str(name), namespace_id="n", workflow_id=f"w{name}", task=None)
        return SimpleNamespace(
            state=state, running=True, proposed=proposed, held_bytes=tail + 100, queries={},
            watchers=[print] if watched else [], tx=None, updates=None,
        )  # fmt: skip


def test_the_heaviest_memory_is_bounded_and_the_last_used_stay() -> None:
    held = Held(8 * MIB)
    for name in range(1000):
        held.cache.keep(held.run(name, tail=MIB))
        held.cache.get("3")  # somebody always asks for that one
    assert 4 * MIB < held.cache.bytes <= 8 * MIB
    assert held.cache.bytes == sum(r.held_bytes for r in held.cache.runs.values())
    assert "3" in held.cache.runs
    assert held.cache.open_run("n", "w3") is held.cache.runs["3"]
    assert held.cache.open_run("n", "w500") is None
    assert len(held.cache) == 7


def test_what_is_not_committed_or_watched_stays() -> None:
    held = Held(4 * MIB)
    for name in range(20):
        held.cache.keep(held.run(name, tail=MIB, proposed=name + 1, watched=name == 2))
    assert len(held.cache) == 20
    held.committed = 20
    for name in range(20, 40):
        held.cache.keep(held.run(name, tail=MIB))
    assert "2" in held.cache.runs
    assert held.cache.bytes <= 4 * MIB


def test_a_run_that_is_larger_than_the_bound_is_held_alone() -> None:
    held = Held(4 * MIB)
    held.cache.keep(held.run(1))
    held.cache.keep(held.run(2, tail=9 * MIB))
    assert list(held.cache.runs) == ["2"]


def test_a_shard_at_rest_gives_back_what_is_its_share_no_more() -> None:
    held = Held(64 * MIB)
    for name in range(60):
        held.cache.keep(held.run(name, tail=MIB, watched=name == 0))
    held.bytes_max = 4 * MIB
    held.cache.shrink()
    assert list(held.cache.runs) == ["58", "59", "0"]
    assert held.cache.bytes <= 4 * MIB
    held.bytes_max = 0
    held.cache.shrink()
    assert list(held.cache.runs) == ["0"]


def test_many_small_ones_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "RUNS_MAX", 10)
    held = Held(4 * MIB)
    for name in range(100):
        held.cache.keep(held.run(name, tail=MIB // 2))
    assert len(held.cache) == 7


def test_closed_ones_stay_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_cache, "CLOSED_MAX", 3)
    held = Held(4 * MIB)
    for name in range(10):
        run = held.run(name)
        held.cache.keep(run)
        run.running = False
        held.cache.closed(run.state.run_id)
    assert list(held.cache.runs) == ["7", "8", "9"]
    assert held.cache.open_run("n", "w9") is None


def test_bytes_are_counted_once_whatever_is_kept_dropped_and_grows(rng: random.Random) -> None:
    held = Held(4 * MIB)
    made = [held.run(name) for name in range(50)]
    for _ in range(2000):
        run = rng.choice(made)
        if rng.random() < 0.3:
            held.cache.drop(run)
        else:
            run.held_bytes = rng.randrange(MIB)
            held.cache.keep(run)
        assert held.cache.bytes == sum(held.cache._weights.values())
    for run in made:
        held.cache.drop(run)
    assert (held.cache.bytes, len(held.cache), held.cache._open) == (0, 0, {})


async def test_large_inputs_do_not_fill_the_memory(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are 200 KiB each; the histories that left are whole when they are asked for."""
    monkeypatch.setattr("cluster.hosting.node.NODE_BYTES_MAX", 8 * MIB)
    large = Payloads(payloads=[Payload(data=b"x" * 200_000)])
    names = [f"w{n}" for n in range(300)]
    for name in names:
        await play.start(name, input=large)
    assert 4 * MIB < sum(shard.cache.bytes for shard in play.node.shards) < 10 * MIB
    for name in names:
        events = await play.events(name)
        assert events[0].workflow_execution_started_event_attributes.input == large
        assert [e.event_id for e in events] == list(range(1, len(events) + 1))
    task = await play.poll()
    assert task.workflow_execution.workflow_id == "w0"
    assert len(task.history.events) == 3


async def test_inputs_of_pending_activities_do_not_fill_the_memory(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.hosting.node.NODE_BYTES_MAX", 8 * MIB)
    large = Payloads(payloads=[Payload(data=b"x" * 200_000)])
    for number in range(60):
        await play.first(activity(input=large), workflow_id=f"w{number}")
    runs = [run for shard in play.node.shards for run in shard.cache.runs.values()]
    held = sum(run.tail_bytes + sum(e.ByteSize() for e in run.attributes.values()) for run in runs)
    assert 4 * MIB < held < 9 * MIB
    for _ in range(60):
        task = await play.activity()
        assert task.input == large


async def test_what_clients_sent_for_a_run_counts_for_as_long_as_it_is_held(play: Play) -> None:
    large = Payloads(payloads=[Payload(data=b"x" * 100_000)])
    await play.first(activity(input=large))
    shard = next(shard for shard in play.node.shards if len(shard.cache))
    before = shard.cache.bytes
    task = await play.activity()
    token = task.task_token
    await play.call(
        wire.RecordActivityTaskHeartbeatRequest(namespace="default", task_token=token, details=large)
    )
    assert 100_000 < shard.cache.bytes - before < 110_000
    await play.signal()
    held = await play.poll()
    signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s", input=large)
    signal.workflow_execution.workflow_id = "w"
    await play.call(signal)
    assert shard.cache.bytes - before > 200_000, "it is buffered"
    (run,) = shard.cache.runs.values()
    assert (len(run.large_items), run.attributes_bytes > 100_000) == (2, True)
    large_bytes = run.large_bytes
    shard.cache.drop(run)
    assert shard.cache.bytes == 0
    await play.describe("w")
    (run,) = shard.cache.runs.values()
    assert (run.large_bytes, run.attributes_bytes, run.tail_bytes) == (large_bytes, 0, 0)
    await play.complete(held.task_token)
    await play.activity_done(token)
    assert (run.large_bytes, run.large_items, run.attributes_bytes) == (0, {}, 0)
    assert shard.cache.bytes == run.tail_bytes + run.core_bytes


async def test_where_more_shards_are_led_the_idle_ones_make_room(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Payloads(payloads=[Payload(data=b"x" * 200_000)])
    for number in range(80):
        await play.start(f"w{number}", input=large)
    caches = [shard.cache for shard in play.node.shards]
    assert sum(cache.bytes for cache in caches) > 15 * MIB
    monkeypatch.setattr("cluster.hosting.node.NODE_BYTES_MAX", 8 * MIB)  # as if it led more
    assert play.node._sweep is not None
    play.node._sweep.cancel()
    play.node._forget_queues()
    assert all(cache.bytes <= 4 * MIB for cache in caches)
