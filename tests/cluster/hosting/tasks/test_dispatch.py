"""Tasks and those who take them: nobody who is gone swallows one, and a dead worker's go on at once."""

from __future__ import annotations

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards import run_cache
from tests.cluster.frontend.services.conftest import FakeConnection
from tests.cluster.hosting.play import Play, activity, done, execution


async def test_a_poll_whose_client_is_gone_gets_nothing(play: Play) -> None:
    call = play.begin_poll()
    call.cancel()
    await play.start("w")
    assert not play.node.polls
    assert (await play.poll()).attempt == 1


async def test_a_client_that_goes_while_its_task_is_started(play: Play) -> None:
    """The commit of "started" was under way when the client went: the task goes back."""
    await play.first(activity())
    await play.start("v")
    workflow, task = play.begin_poll(), play.begin_poll("q", "Activity")
    workflow.cancel()
    task.cancel()
    await play.settle()
    assert (await play.poll()).workflow_execution.workflow_id == "v"
    again = await play.activity()
    assert again.attempt == 1, "an attempt that nobody got does not count"
    await play.activity_done(again.task_token)
    assert "ActivityTaskCompleted" in await play.table("w")


async def test_a_worker_that_dies_gives_its_workflow_task_back_at_once(play: Play) -> None:
    worker = FakeConnection()
    await play.start("w")
    call = play.begin_poll(connection=worker)
    await play.settle()
    assert call.done
    assert await play.idle()
    worker.close()
    await play.settle()
    assert (await play.poll()).attempt == 2
    assert (await play.table("w", first=3)) == (
        " 3 WorkflowTaskStarted scheduled=2\n"
        " 4 WorkflowTaskTimedOut scheduled=2 started=3 timeout_type=START_TO_CLOSE"
    )


async def test_a_dead_workers_task_goes_on_although_its_run_left_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of many starts in one round, what is done for the first delivery takes the room of the next."""
    monkeypatch.setattr(run_cache, "RUNS_MAX", 1)
    play = Play(shards=1)
    await play.settle()
    gone, worker = FakeConnection(), FakeConnection()
    first, second = play.begin_poll(connection=gone), play.begin_poll(connection=worker)
    for name in ("v", "w"):
        request = wire.StartWorkflowExecutionRequest(namespace="default", workflow_id=name, request_id=name)
        request.workflow_type.name = "W"
        request.task_queue.name = "q"
        play.begin(request)
    first.cancel()
    await play.settle()
    assert second.done
    assert (await play.poll()).workflow_execution.workflow_id == "v"
    assert await play.idle()
    worker.close()
    await play.settle()
    assert not await play.idle()
    await play.close()


async def test_a_worker_that_dies_loses_its_sticky_queue(play: Play) -> None:
    worker = FakeConnection()
    await play.start("w")
    task = await play.poll()
    sticky = {"worker_task_queue": {"name": "mine", "kind": 2}, "schedule_to_start_timeout": {"seconds": 10}}
    await play.complete(task.task_token, sticky_attributes=sticky)
    parked = play.begin_poll("mine", connection=worker, sticky=True)
    await play.settle()
    assert not parked.done
    worker.close()
    parked.cancel()
    await play.signal()
    await play.settle()
    assert (await play.poll()).workflow_execution.workflow_id == "w", "it waits on the normal queue"


async def test_a_task_that_waits_for_a_dead_worker_is_rerouted(play: Play) -> None:
    worker = FakeConnection()
    await play.start("w")
    task = await play.poll()
    sticky = {"worker_task_queue": {"name": "mine", "kind": 2}, "schedule_to_start_timeout": {"seconds": 10}}
    await play.complete(task.task_token, sticky_attributes=sticky)
    first = play.begin_poll("mine", connection=worker, sticky=True)
    await play.signal()
    await play.settle()
    assert first.done
    held = wire.PollWorkflowTaskQueueResponse.FromString(first.answer.result())
    await play.complete(held.task_token, sticky_attributes=sticky)
    await play.signal()  # the worker is busy: nobody polls
    assert await play.idle()
    worker.close()
    await play.settle()
    task = await play.poll()
    assert task.workflow_execution.workflow_id == "w"
    assert task.history.events[0].event_id == 1, "another worker needs all of it"
    await play.complete(task.task_token, done())


async def test_a_sticky_worker_that_is_slow_loses_the_task_in_time(play: Play) -> None:
    await play.start("w")
    task = await play.poll()
    sticky = {"worker_task_queue": {"name": "mine", "kind": 2}, "schedule_to_start_timeout": {"seconds": 10}}
    await play.complete(task.task_token, sticky_attributes=sticky)
    slow = play.begin_poll("mine", sticky=True)
    slow.cancel()
    await play.signal()
    assert await play.idle()
    await play.advance(10)
    assert (await play.table("w", first=6)) == (
        " 6 WorkflowTaskScheduled\n"
        " 7 WorkflowTaskTimedOut scheduled=6 timeout_type=SCHEDULE_TO_START\n"
        " 8 WorkflowTaskScheduled"
    )
    await play.next(done())


async def test_an_answer_after_the_worker_was_given_up(play: Play) -> None:
    worker = FakeConnection()
    await play.start("w")
    call = play.begin_poll(connection=worker)
    await play.settle()
    late = wire.PollWorkflowTaskQueueResponse.FromString(call.answer.result())
    worker.close()
    await play.settle()
    request = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=late.task_token, commands=[done()]
    )
    assert (await play.refused(request)).code == 5
    await play.next(done())


async def test_a_second_worker_on_the_same_connection_keeps_its_own(play: Play) -> None:
    """One worker process, many runs: all it held goes back, and nothing else."""
    worker, other = FakeConnection(), FakeConnection()
    calls = []
    for number in range(5):
        await play.start(f"w{number}")
        calls.append(play.begin_poll(connection=worker))
    await play.start("safe")
    kept = play.begin_poll(connection=other)
    await play.settle()
    assert all(call.done for call in calls)
    worker.close()
    await play.settle()
    back = {(await play.poll()).workflow_execution.workflow_id for _ in range(5)}
    assert back == {f"w{number}" for number in range(5)}
    assert await play.idle()
    task = wire.PollWorkflowTaskQueueResponse.FromString(kept.answer.result())
    await play.complete(task.task_token, done())


async def test_a_query_outlives_the_worker_that_was_asked(play: Play) -> None:
    await play.first()
    query = wire.QueryWorkflowRequest(namespace="default", execution=execution("w"))
    query.query.query_type = "how"
    asked = play.begin(query)
    worker = FakeConnection()
    poll = play.begin_poll(connection=worker)
    await play.settle()
    assert poll.done
    worker.close()
    await play.settle()
    task = await play.poll()
    assert task.query.query_type == "how"
    answer = wire.RespondQueryTaskCompletedRequest(
        namespace="default", task_token=task.task_token, completed_type=1
    )  # type: ignore[arg-type]
    await play.call(answer)
    assert asked.done


async def test_a_query_of_a_run_that_ends_or_goes(play: Play) -> None:
    """Questions that wait for a workflow task do not wait for ever when none comes any more."""
    for name, end in (("timed", "time"), ("stopped", "terminate"), ("gone", "delete")):
        await play.start(name, workflow_run_timeout={"seconds": 100}, task_queue={"name": name})
        held = await play.poll(name)
        await play.complete(held.task_token)
        await play.signal(name)
        held = await play.poll(name)
        query = wire.QueryWorkflowRequest(namespace="default", execution=execution(name))
        query.query.query_type = "how"
        asked = play.begin(query)
        await play.settle()
        assert not asked.done
        if end == "time":
            await play.advance(100)
        elif end == "terminate":
            await play.terminate(name)
        else:
            await play.call(
                wire.DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution(name))
            )
        await play.settle()
        if end == "delete":
            assert asked.done, name
            continue
        task = await play.poll(name)
        assert task.query.query_type == "how", name
        await play.call(
            wire.RespondQueryTaskCompletedRequest(
                namespace="default", task_token=task.task_token, completed_type=1
            )  # type: ignore[arg-type]
        )
        assert asked.done, name
