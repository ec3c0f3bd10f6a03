"""Time: wake rows, more timers than memory holds, and what retention leaves of a run: nothing."""

from __future__ import annotations

import pytest

from cluster.hosting.shards import wakes
from history_store.engine import deadlines
from history_store.engine.run import Run, Transaction
from tests.cluster.hosting.play import Play, activity, child, done, timer

DAY = 86_400


async def test_one_wake_row_a_run(play: Play) -> None:
    run_id = await play.first(timer("a", 50), timer("b", 20), timer("c", 90), activity())
    found = [key for key in play.rows() if key[:1] == b"t"]
    assert len(found) == 1
    await play.advance(19.9)
    assert "TimerFired" not in await play.table("w")
    await play.advance(0.1)
    assert "TimerFired timer_id=b" in await play.table("w")
    await play.next(done())
    found = [key for key in play.rows() if key[:1] == b"t"]
    assert len(found) == 1, "retention"
    assert found[0][9:] == bytes.fromhex(run_id.replace("-", ""))


async def test_timers_fire_in_order_and_at_their_time(play: Play) -> None:
    await play.first(timer("late", 30), timer("early", 10), timer("between", 20))
    await play.advance(60)
    fired = [e for e in await play.events("w") if e.HasField("timer_fired_event_attributes")]
    assert [e.timer_fired_event_attributes.timer_id for e in fired] == ["early", "between", "late"]
    start = (await play.events("w"))[0].event_time.ToNanoseconds()
    assert [(e.event_time.ToNanoseconds() - start) // 10**9 for e in fired] == [10, 20, 30]


@pytest.mark.parametrize("together", [True, False])
async def test_more_timers_than_memory_holds(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    monkeypatch.setattr(wakes, "WAKES_MAX", 8)
    monkeypatch.setattr(wakes, "FIRES_AT_ONCE", 3)
    play = Play(shards=1)
    (shard,) = play.node.shards
    for number in range(60):
        await play.first(timer("t", 100 if together else 10 + number), workflow_id=f"w{number}")
    assert len(shard.wakes.heap) <= 4 * 8
    await play.advance(5)
    play = await play.crash()
    (shard,) = play.node.shards
    assert len(shard.wakes.heap) <= 8
    reads = 0
    read_on = shard.wakes.read_on

    def counted() -> None:
        nonlocal reads
        reads += 1
        read_on()

    monkeypatch.setattr(shard.wakes, "read_on", counted)
    await play.advance(100)
    for number in range(60):
        assert "TimerFired" in await play.table(f"w{number}"), number
    assert 5 < reads < 40, "the rows are not read again for every few timers"
    await play.close()


async def test_timers_beyond_the_window_are_found_when_they_come_near(play: Play) -> None:
    await play.first(timer("far", 3 * 3600))
    await play.advance(3 * 3600 - 1)
    assert "TimerFired" not in await play.table("w")
    await play.advance(1)
    assert "TimerFired" in await play.table("w")


async def test_a_run_that_cannot_be_woken_stops_nobody_else(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.first(timer("t", 10), workflow_id="bad")
    await play.first(timer("t", 10), workflow_id="good")
    await play.first(timer("t", 20), workflow_id="later")
    fire = deadlines.fire

    def fire_or_fail(tx: Transaction, run: Run) -> None:
        if run.state.workflow_id == "bad":
            raise AssertionError("a bug")
        fire(tx, run)

    monkeypatch.setattr(deadlines, "fire", fire_or_fail)
    await play.advance(30)
    assert "TimerFired" in await play.table("good")
    assert "TimerFired" in await play.table("later")
    assert "TimerFired" not in await play.table("bad")
    monkeypatch.setattr(deadlines, "fire", fire)
    await play.advance(1300)
    assert "TimerFired" in await play.table("bad"), "it is tried again"


async def test_retention_takes_everything_of_a_run_and_nothing_of_others(play: Play) -> None:
    run_id = await play.first(timer("other", 30 * DAY), workflow_id="other")
    other = bytes.fromhex(run_id.replace("-", ""))
    before = play.rows()
    await play.first(activity("a"), timer("t", 7), child("kid", parent_close_policy=1), workflow_id="w")
    await play.signal(request_id="dedup")
    request = play.update_request("u", 2)
    call = play.begin(request)
    await play.settle()
    from tests.cluster.hosting.play import accept

    task = await play.poll()
    await play.complete(task.task_token, messages=[accept("u")])
    assert call.done
    await play.signal()
    task = await play.poll()
    await play.signal(name="buffered")
    await play.terminate()
    await play.settle()
    await play.advance(3 * DAY - 1)
    assert (await play.describe("w")).workflow_execution_info.status == 5
    await play.advance(2)
    left = set(play.rows()) - set(before)
    assert all(other in key for key in left), "rows are left"


async def test_retention_of_an_older_run_leaves_the_current_one(play: Play) -> None:
    first = await play.first(done())
    await play.advance(DAY)
    second = (await play.call(_start_again())).run_id
    assert second != first
    await play.advance(2 * DAY + 1)
    assert (await play.describe("w")).workflow_execution_info.execution.run_id == second
    assert await play.table("w", second)
    await play.next(done())


def _start_again() -> object:
    from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

    request = wire.StartWorkflowExecutionRequest(namespace="default", workflow_id="w", request_id="again")
    request.workflow_type.name = "W"
    request.task_queue.name = "q"
    return request
