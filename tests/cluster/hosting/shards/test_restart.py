"""A node that stops, orderly or not, and goes on where it was: every pending thing, one by one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.actions import Actions
from cluster.hosting.shards.host import ShardHost
from history_store.engine.state import Action
from tests.cluster.hosting.play import (
    Play,
    accept,
    activity,
    child,
    command,
    done,
    execution,
    payloads,
    respond,
    timer,
)  # fmt: skip

Restart = Callable[[Play], Awaitable[Play]]


async def _crash(play: Play) -> Play:
    return await play.crash()


async def _crash_after_flush(play: Play) -> Play:
    play.node.committer.folder._due()
    await play.settle()
    return await play.crash()


async def _orderly(play: Play) -> Play:
    return await play.reopen()


@pytest.fixture(params=[_crash, _crash_after_flush, _orderly], ids=["crash", "flushed", "orderly"])
def restart(request: pytest.FixtureRequest) -> Restart:
    chosen: Restart = request.param
    return chosen


async def test_a_waiting_workflow_task(restart: Restart) -> None:
    play = Play()
    await play.start("w")
    play = await restart(play)
    await play.next(done())
    assert (await play.describe("w")).workflow_execution_info.status == 2
    await play.close()


async def test_a_started_workflow_task_is_answered_after_the_restart(restart: Restart) -> None:
    play = Play()
    await play.start("w")
    task = await play.poll()
    play = await restart(play)
    await play.complete(task.task_token, done())
    assert (await play.describe("w")).workflow_execution_info.status == 2
    await play.close()


async def test_activities(restart: Restart) -> None:
    """Waiting, started, in backoff, with details of a heartbeat."""
    play = Play()
    await play.first(*(activity(name) for name in ("waits", "runs", "fails")))
    taken = {}
    for _ in range(3):
        task = await play.activity()
        taken[task.activity_id] = task
        if task.activity_id == "runs":
            break
    assert set(taken) == {"waits", "runs"}  # in their order
    await play.activity_failed(taken["waits"].task_token)
    await play.call(
        wire.RecordActivityTaskHeartbeatRequest(
            namespace="default", task_token=taken["runs"].task_token, details=payloads("half")
        )
    )
    play = await restart(play)
    third = await play.activity()
    assert third.activity_id == "fails"
    await play.activity_done(third.task_token)
    await play.activity_done(taken["runs"].task_token)
    await play.advance(2)
    again = await play.activity()
    assert (again.activity_id, again.attempt) == ("waits", 2)
    play = await restart(play)
    await play.advance(10)
    await play.advance(5)
    third_try = await play.activity()
    assert third_try.attempt == 3, "its start-to-close time-out was kept"
    await play.activity_done(third_try.task_token)
    await play.next(done())
    await play.close()


async def test_timers(restart: Restart) -> None:
    play = Play()
    await play.first(timer("t", 30))
    await play.advance(10)
    play = await restart(play)
    await play.advance(19)
    assert "TimerFired" not in await play.table("w")
    await play.advance(1)
    assert "TimerFired" in await play.table("w")
    await play.close()


async def test_a_timer_that_came_due_while_nobody_was_there(restart: Restart) -> None:
    play = Play()
    await play.first(timer("t", 30))
    play.clock.advance(100)
    play = await restart(play)
    await play.advance(0)
    assert "TimerFired" in await play.table("w")
    await play.close()


async def test_children(restart: Restart) -> None:
    play = Play()
    await play.first(child())
    play = await restart(play)
    await play.next(done("x"), queue="cq")
    play = await restart(play)
    assert "ChildWorkflowExecutionCompleted" in await play.table("w")
    assert (await play.table("w")).count("ChildWorkflowExecutionStarted") == 1
    await play.next(done())
    await play.close()


async def test_buffered_events(restart: Restart) -> None:
    play = Play()
    await play.first(activity())
    held = await play.activity()
    await play.signal(name="one")
    task = await play.poll()
    await play.signal(name="two", request_id="two")
    await play.activity_done(held.task_token)
    play = await restart(play)
    await play.signal(name="two", request_id="two")
    await play.signal(name="three")
    await play.complete(task.task_token)
    table = await play.table("w", first=9)
    assert table == (
        " 9 WorkflowTaskCompleted scheduled=7 started=8\n"
        "10 WorkflowExecutionSignaled signal_name=two\n"
        "11 ActivityTaskStarted scheduled=5\n"
        "12 WorkflowExecutionSignaled signal_name=three\n"
        '13 ActivityTaskCompleted result="ok" scheduled=5 started=11\n'
        "14 WorkflowTaskScheduled"
    ), table
    await play.next(done())
    await play.close()


async def test_an_accepted_update(restart: Restart) -> None:
    play = Play()
    await play.first()
    call = play.begin(play.update_request("u", 2))
    await play.settle()
    await play.next(messages=[accept("u")])
    assert call.done
    play = await restart(play)
    waiting = play.begin(play.update_request("u"))
    await play.settle()
    assert not waiting.done
    await play.signal()
    await play.next(messages=[respond("u", "yes")])
    assert waiting.done
    play = await restart(play)
    answer = await play.call(play.update_request("u"))
    assert answer.outcome.success == payloads("yes")
    await play.close()


async def test_an_update_that_nobody_has_seen_is_made_again(restart: Restart) -> None:
    """It was in the dead leader's memory only; the caller's retry brings it back."""
    play = Play()
    await play.first()
    lost = play.begin(play.update_request("u"))
    await play.settle()
    if restart is _orderly:
        lost.cancel()
    play = await restart(play)
    again = play.begin(play.update_request("u"))
    await play.settle()
    task = await play.next(messages=[accept("u"), respond("u")])
    assert [m.protocol_instance_id for m in task.messages] == ["u"]
    await play.settle()
    assert again.done
    await play.close()


async def test_an_update_whose_worker_outlives_the_leader(restart: Restart) -> None:
    """The worker accepts an update of a speculative task that the new leader never saw."""
    play = Play()
    await play.first()
    play.begin(play.update_request("u"))
    await play.settle()
    task = await play.poll()
    play = await restart(play)
    request = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, messages=[accept("u"), respond("u")]
    )
    assert (await play.refused(request)).code == 5
    again = play.begin(play.update_request("u"))
    await play.settle()
    await play.next(messages=[accept("u"), respond("u")])
    assert again.done
    await play.close()


async def test_a_sticky_queue(restart: Restart) -> None:
    play = Play()
    await play.start("w")
    task = await play.poll()
    sticky = {"worker_task_queue": {"name": "mine", "kind": 2}, "schedule_to_start_timeout": {"seconds": 10}}
    await play.complete(task.task_token, sticky_attributes=sticky)
    first = play.begin_poll("mine", sticky=True)
    play = await restart(play)
    assert first is not None
    parked = play.begin_poll("mine", sticky=True)
    await play.signal()
    await play.settle()
    assert parked.done, "the worker kept its cache, and its queue"
    await play.close()


async def test_everything_that_a_run_may_wait_for_at_its_end(restart: Restart) -> None:
    """Close, delete and retention are as durable as the rest."""
    play = Play()
    await play.first(done("result"))
    play = await restart(play)
    assert 'WorkflowExecutionCompleted result="result"' in await play.table("w")
    await play.advance(3 * 86_400 + 1)
    assert not [key for key in play.rows() if key[:1] in b"rhict"]
    play = await restart(play)
    assert not [key for key in play.rows() if key[:1] in b"rhict"]
    await play.close()


# ---- actions are done at least once, to the same end


class Stopped(Exception):
    """The node dies here."""


@pytest.mark.parametrize("where", ["before", "target"])
@pytest.mark.parametrize("kind", ["start_child", "signal", "cancel", "close_child", "child_closed"])
async def test_an_action_that_is_cut_off(kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node dies before an action is done, or between its effect and the record of it."""
    play = Play(shards=4)
    await play.start("target", task_queue={"name": "tq"})
    await play.start("w")
    task = await play.poll()
    do, finish = Actions.do, Actions._finish

    def cut_do(self: Actions, shard: ShardHost, key: bytes, action: Action) -> None:
        if action.kind == kind and where == "before":
            return
        do(self, shard, key, action)

    def cut_finish(self: Actions, shard: ShardHost, key: bytes, *rest: object) -> None:
        value = shard.rows.get(key)
        assert value is not None
        if kind in str(value):
            return
        finish(self, shard, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Actions, "do", cut_do)
    if where == "target":
        monkeypatch.setattr(Actions, "_finish", cut_finish)
    asked = {
        "start_child": child(),
        "signal": command(
            "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("target"), signal_name="s"
        ),
        "cancel": command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION", workflow_id="target"),
        "close_child": child(),
        "child_closed": child(),
    }[kind]
    await play.complete(task.task_token, asked)
    await play.settle()
    if kind == "close_child":
        await play.terminate("w")
        await play.settle()
    elif kind == "child_closed":
        await play.next(done("x"), queue="cq")
    assert [key for key in play.rows() if key[:1] == b"x"], "the action is not done with"
    monkeypatch.undo()
    play = await play.crash()
    await play.settle()
    assert not [key for key in play.rows() if key[:1] == b"x"]
    await _check_the_end(play, kind)
    await play.close()


async def _check_the_end(play: Play, kind: str) -> None:
    mine = await play.table("w")
    if kind == "start_child":
        assert mine.count("ChildWorkflowExecutionStarted") == 1
        assert (await play.table("child")).count("WorkflowExecutionStarted") == 1
    elif kind == "signal":
        assert mine.count("ExternalWorkflowExecutionSignaled") == 1
        assert (await play.table("target")).count("WorkflowExecutionSignaled") == 1
    elif kind == "cancel":
        assert mine.count("ExternalWorkflowExecutionCancelRequested") == 1
        assert (await play.table("target")).count("WorkflowExecutionCancelRequested") == 1
    elif kind == "close_child":
        assert (await play.table("child")).count("WorkflowExecutionTerminated") == 1
    else:
        assert mine.count("ChildWorkflowExecutionCompleted") == 1
