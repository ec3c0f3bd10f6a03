"""What goes wrong with one run, caller or action stays with it: others neither wait nor lose anything."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services import updates as service
from cluster.hosting.calls import actions
from cluster.hosting.calls.actions import Actions
from cluster.hosting.groups import folder
from history_store.engine import updates, workflow_task
from history_store.engine.environment import EngineLimits
from history_store.engine.errors import Code, ServiceError
from history_store.engine.run import Run
from history_store.storage.contract import StorageBroken, StorageFull
from tests.cluster.frontend.services.conftest import FakeConnection
from tests.cluster.hosting.groups.test_disk import FullDisk, code, start_request, until_it_writes
from tests.cluster.hosting.play import Play, accept, child, command, done, execution, timer


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "FULL_RETRY_S", 0.001)


def run_of(play: Play, workflow_id: str = "w") -> Run:
    _, run = play.services.run(play.services.namespace("default").id, workflow_id)
    return run


def raises(_error: ServiceError | None) -> None:
    raise RuntimeError("a waiter that is broken")


# ---- those who wait for the disk


async def test_a_broken_waiter_does_not_silence_the_others_on_a_full_disk() -> None:
    disk = FullDisk()
    play = Play(disk)
    disk.full = StorageFull("no space left")
    call = play.begin(start_request("w"))
    group = next(shard.group for shard in play.node.shards if shard.group.proposed > shard.group.committed)
    heard: list[str] = []
    group._waiters.appendleft((group.proposed, raises, False))
    group.when_committed(lambda _: heard.append("patient"), patient=True)
    await play.settle()
    assert code(call) == Code.UNAVAILABLE or call.done
    disk.full = None
    await until_it_writes(play)
    assert heard == ["patient"]
    await play.close()


async def test_a_broken_flush_waiter_does_not_stop_the_rounds() -> None:
    play = Play()
    await play.start("w")
    play.node.committer.flush(raises)
    play.begin(start_request("v"))
    await play.settle()
    assert (await play.describe("v")).workflow_execution_info.status == 1
    await play.close()


async def test_a_disk_that_breaks_answers_those_who_wait_for_a_flush() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.start("w")
    heard: list[ServiceError | None] = []
    disk.full = StorageBroken("the disk is gone")
    play.node.committer.flush(heard.append)
    await play.settle()
    assert len(heard) == 1
    assert heard[0] is not None
    play.stop_dead()


async def test_a_full_disk_answers_those_who_asked_for_a_flush_beside_what_it_refused() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.start("w")
    committer = play.node.committer
    heard: list[ServiceError | None] = []
    disk.full = StorageFull("no space left on device")
    committer.store(lambda batch: batch.rows.append((b"\xff\xff\xff\xffx", b"")), lambda: None)
    while not committer.folder.busy:
        await asyncio.sleep(0)
    committer.flush(heard.append)
    while not heard:  # it is tried again soon
        await asyncio.sleep(0.001)
    assert heard[0] is not None
    disk.full = None
    await until_it_writes(play)
    await play.close()


# ---- runs


async def test_a_transaction_that_fails_in_the_middle_leaves_the_run_usable(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.start("w")

    def broken(*_: Any) -> None:
        raise KeyError("a page that is not there")

    with monkeypatch.context() as patch:
        patch.setattr("cluster.hosting.tasks.dispatch.workflow_task.start", broken)
        call = play.begin_poll()
        await play.settle()
    call.cancel()
    await play.next(timer("t", 5))
    await play.advance(6)
    await play.next(done())
    assert "WorkflowExecutionCompleted" in await play.table("w")


async def test_a_seal_that_fails_leaves_the_run_as_it_was(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.start("w")
    with monkeypatch.context() as patch:
        patch.setattr("history_store.engine.run.Run._seal_events", lambda *_: 1 / 0)
        with pytest.raises(Exception, match=r"."):
            await play.signal("w", "lost")
    await play.signal("w", "kept")
    table = await play.table("w")
    assert "lost" not in table
    assert "kept" in table


async def test_a_start_that_is_one_event_too_many_ends_the_run_and_the_poll() -> None:
    play = Play(limits=EngineLimits(history_events_max=2))
    await play.start("w")
    task = await play.poll()
    assert not task.task_token
    await play.settle()
    assert "exceeds limit" in await play.table("w")
    assert not any(play.node.holders._held.values())
    await play.start("v")
    await play.close()


async def test_a_timer_that_was_refused_is_not_put_off_by_an_earlier_one() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.first(timer("t", 5))
    shard = play.node.shard_of(play.services.namespace("default").id, "w")
    disk.full = StorageFull("no space left")
    other = play.begin(start_request("blocker"))
    await play.settle()
    assert other.done
    play.clock.advance(6)
    shard.wakes.fire()  # refused: the disk is full
    disk.full = None
    await until_it_writes(play)
    shard.wakes.note(play.clock.now + 1_000_000, b"\0" * 16)  # some other run's, sooner than the retry
    async with asyncio.timeout(60):
        while "TimerFired" not in await play.table("w"):
            await asyncio.sleep(0.01)
            await play.settle()
    await play.close()


async def test_the_clock_is_told_of_a_wake_once(play: Play) -> None:
    await play.first(timer("t", 500))
    shard = play.node.shard_of(play.services.namespace("default").id, "w")
    before = len(shard.wakes.heap)
    for number in range(20):
        await play.signal("w", request_id=f"s{number}")
    assert len(shard.wakes.heap) == before


async def test_a_long_poll_survives_a_transaction_that_is_void_while_another_commits(play: Play) -> None:
    """Its watcher is on the run's old object when the new one takes its place."""
    await play.start("w")
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
    request.execution.workflow_id = "w"
    first = await play.call(request)
    request.next_page_token = first.next_page_token
    call = play.begin(request)
    await play.settle()
    assert not call.done
    run = run_of(play)
    shard = play.node.shard_of(run.state.namespace_id, "w")
    tx = shard.begin(run.state.namespace_id)
    tx.open(run)
    workflow_task.start(tx, run, "r", "worker")
    shard.commit(tx, lambda _: None)
    void = shard.begin(run.state.namespace_id)
    void.open(run)
    shard.abort(void)
    fresh = run_of(play)
    assert fresh is not run
    await play.settle()
    assert call.done
    assert fresh.watchers == []


# ---- actions


async def test_an_action_that_fails_does_not_hold_up_those_behind_it(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actions, "RETRY_BROKEN_S", 0.01)
    whole = Actions._close_child
    tried: list[str] = []

    def sometimes(self: Actions, shard: Any, key: bytes, action: Any) -> None:
        tried.append(action.target_workflow_id)
        if len(tried) == 1:
            raise KeyError("a page that is not there")
        whole(self, shard, key, action)

    await play.first(child("c1"), child("c2"))
    await play.settle()
    monkeypatch.setattr(Actions, "_close_child", sometimes)
    await play.terminate("w")
    await play.settle()
    assert sorted(tried[:2]) == ["c1", "c2"], "the second of them, before the first again"
    second = tried[1]
    assert (await play.describe(second)).workflow_execution_info.status == 5
    async with asyncio.timeout(60):
        while (await play.describe(tried[0])).workflow_execution_info.status != 5:
            await asyncio.sleep(0.01)
            await play.settle()


async def test_a_signal_to_itself_fails_as_in_temporal(play: Play) -> None:
    await play.first(command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("w"), signal_name="s"))
    await play.settle()
    table = await play.table("w")
    assert "SignalExternalWorkflowExecutionFailed" in table
    assert "WorkflowExecutionSignaled" not in table


# ---- queries and updates


async def test_a_query_on_a_full_disk_takes_no_poll_with_it() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.first()
    poll = play.begin_poll()
    signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    await play.settle()
    disk.full = StorageFull("no space left")
    shard = play.node.shard_of(play.services.namespace("default").id, "w")
    run = run_of(play)
    tx = shard.begin(run.state.namespace_id)
    tx.open(run).state.signal_count += 1
    shard.commit(tx, lambda _: None)
    await play.settle()
    query = wire.QueryWorkflowRequest(namespace="default", execution=execution("w"))
    query.query.query_type = "q"
    asked = play.begin(query)
    await play.settle()
    assert asked.done
    assert not poll.done
    disk.full = None
    await until_it_writes(play)
    signal.workflow_execution.workflow_id = "w"
    await play.call(signal)
    await play.settle()
    assert poll.done, "the poll still waits in its queue"
    await play.close()


async def test_an_accepted_update_of_a_run_that_closed_is_over_after_a_restart() -> None:
    play = Play()
    await play.first()
    request = play.update_request("u", 2)
    call = play.begin(request)
    await play.next(messages=[accept("u")])
    await play.settle()
    assert call.done
    await play.terminate("w")
    again = await play.reopen()
    poll = wire.PollWorkflowExecutionUpdateRequest(namespace="default")
    poll.update_ref.workflow_execution.workflow_id = "w"
    poll.update_ref.update_id = "u"
    poll.wait_policy.lifecycle_stage = 3  # type: ignore[assignment]
    answer = await again.call(poll)
    assert answer.outcome.failure.message == updates.CLOSED_BEFORE_COMPLETED.message
    await again.close()


async def test_a_wait_for_an_update_that_ended_leaves_nothing_behind(play: Play) -> None:
    await play.first()
    call = play.begin(play.update_request("u", 2))
    await play.next(messages=[accept("u")])
    await play.settle()
    assert call.done
    for _ in range(3):
        waiting = play.begin(play.update_request("u", 3), connection=FakeConnection())
        await play.settle()
        waiting.cancel()
    run = run_of(play)
    assert run.updates is not None
    assert run.updates.updates["u"].listeners == []


async def test_a_refused_end_leaves_an_accepted_update_accepted() -> None:
    """Its acceptance was proposed, though not committed, when the run's end was refused."""
    disk = FullDisk()
    play = Play(disk)
    await play.first()
    update = play.begin(play.update_request("u", 2))
    task = await play.poll()
    disk.full = StorageFull("no space left")
    completion = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, messages=[accept("u")]
    )
    play.begin(completion)
    await play.settle()
    end = wire.TerminateWorkflowExecutionRequest(namespace="default")
    end.workflow_execution.workflow_id = "w"
    assert code(play.begin(end)) == Code.RESOURCE_EXHAUSTED
    run = run_of(play)
    assert run.updates is not None
    assert run.updates.updates["u"].stage == updates.ACCEPTED
    disk.full = None
    await until_it_writes(play)
    assert update.done
    assert run_of(play).updates.updates["u"].prior == updates.ACCEPTED  # type: ignore[union-attr]
    await play.close()


async def test_a_speculative_task_is_not_timed_out_by_another_deadline(play: Play) -> None:
    await play.first(timer("t", 1))
    call = play.begin(play.update_request("u", 2))
    play.clock.advance(0.9995)  # the timer is due in a moment, the task is not
    other = play.update_request("v", 2)
    second = play.begin(other)
    await asyncio.sleep(0.05)
    assert "TimedOut" not in await play.table("w")
    call.cancel()
    second.cancel()


# ---- what is not committed is not told


async def test_an_error_that_tells_of_a_change_waits_for_its_commit() -> None:
    disk = FullDisk()
    play = Play(disk, inline=True)
    await play.first()
    end = wire.TerminateWorkflowExecutionRequest(namespace="default")
    end.workflow_execution.workflow_id = "w"
    signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    signal.workflow_execution.workflow_id = "w"
    ended, signalled = play.begin(end), play.begin(signal)
    again = play.begin(start_request("x")), play.begin(start_request("x"))
    assert not ended.done
    assert not signalled.done
    await play.settle()
    assert code(signalled) == Code.NOT_FOUND
    assert all(call.done for call in again)
    await play.close()


async def test_an_error_that_tells_of_a_change_is_unsure_on_a_full_disk() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.first()
    disk.full = StorageFull("no space left")
    end = wire.TerminateWorkflowExecutionRequest(namespace="default")
    end.workflow_execution.workflow_id = "w"
    signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    signal.workflow_execution.workflow_id = "w"
    ended, signalled = play.begin(end), play.begin(signal)
    await play.settle()
    assert code(ended) == code(signalled)
    assert code(signalled) != Code.NOT_FOUND
    disk.full = None
    await until_it_writes(play)
    assert (await play.refused(signal)).code == Code.NOT_FOUND
    await play.close()


async def test_a_long_poll_whose_answer_fails_is_answered(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.start("w")
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
    request.execution.workflow_id = "w"
    request.next_page_token = (await play.call(request)).next_page_token
    call = play.begin(request)
    await play.settle()
    monkeypatch.setattr("history_store.shard.runs.history", lambda *_: 1 / 0)
    await play.signal("w")
    await play.settle()
    assert code(call) == Code.INTERNAL


async def test_a_long_poll_of_a_run_that_is_deleted_finds_nothing(play: Play) -> None:
    await play.start("w")
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
    request.execution.workflow_id = "w"
    request.next_page_token = (await play.call(request)).next_page_token
    call = play.begin(request)
    await play.call(
        wire.DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution("w"))
    )
    await play.settle()
    assert code(call) == Code.NOT_FOUND


async def test_one_answer_to_an_update_that_fails_leaves_the_others(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    await play.first()
    first, second = play.begin(play.update_request("u", 2)), play.begin(play.update_request("u", 2))
    whole, asked = service.response_of, []

    def once(*args: Any) -> wire.UpdateWorkflowExecutionResponse:
        asked.append(args)
        if len(asked) == 1:
            raise KeyError("a page that is not there")
        return whole(*args)

    monkeypatch.setattr(service, "response_of", once)
    await play.next(messages=[accept("u")])
    await play.settle()
    assert code(first) == Code.INTERNAL
    assert second.done
    assert second.answer.exception() is None
