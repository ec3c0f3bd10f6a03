"""A worker that never heard that its answer was taken repeats it: activities that ride on it come again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.frontend.services.conftest import FakeConnection
from tests.cluster.hosting.play import Play, activity, done, timer

Completed = wire.RespondWorkflowTaskCompletedResponse
NOT_FOUND = 5


@pytest_asyncio.fixture
async def play() -> AsyncIterator[Play]:
    made = Play()
    yield made
    await made.close()


def eager(activity_id: str) -> Command:
    return activity(activity_id, request_eager_execution=True)


async def completion(play: Play, *commands: Command) -> wire.RespondWorkflowTaskCompletedRequest:
    """The answer to the first task of a new run."""
    await play.start("w")
    task = await play.poll("q")
    request = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token)
    request.commands.extend(commands)
    return request


def ids(response: Completed) -> list[str]:
    return [task.activity_id for task in response.activity_tasks]


async def test_the_repeat_is_the_first_answer(play: Play) -> None:
    request = await completion(play, eager("a"), timer(), activity("polled"), eager("b"))
    first = await play.call(request)
    assert ids(first) == ["a", "b"]
    play.clock.advance(1.0)
    assert await play.call(request) == first
    assert (await play.activity()).activity_id == "polled"
    again = await play.call(request)
    assert again == first, "what was polled is somebody's, and not given out twice"
    await play.activity_done(again.activity_tasks[0].task_token)
    await play.activity_done(again.activity_tasks[1].task_token)


async def test_after_a_crash(play: Play) -> None:
    request = await completion(play, eager("a"))
    first = await play.call(request)
    after = await play.crash()
    assert await after.call(request) == first
    await after.close()


async def test_another_answer_with_the_same_token(play: Play) -> None:
    request = await completion(play, eager("a"))
    await play.call(request)
    request.commands[0].CopyFrom(done())
    assert (await play.refused(request)).code == NOT_FOUND


async def test_what_is_over_does_not_come_again(play: Play) -> None:
    request = await completion(play, eager("a"), eager("b"), eager("c"))
    first = await play.call(request)
    await play.activity_failed(first.activity_tasks[1].task_token)
    assert ids(await play.call(request)) == ["a", "c"], "b waits to be tried again"
    await play.advance(1.5)
    assert (await play.activity()).attempt == 2
    assert ids(await play.call(request)) == ["a", "c"]


async def test_a_later_task_ends_it(play: Play) -> None:
    request = await completion(play, eager("a"))
    await play.call(request)
    await play.signal("w")
    assert (await play.refused(request)).code == NOT_FOUND


async def test_a_task_that_timed_out_was_not_completed(play: Play) -> None:
    request = await completion(play, eager("a"))
    await play.advance(11.0)
    assert (await play.refused(request)).code == NOT_FOUND


async def test_a_run_that_ended(play: Play) -> None:
    request = await completion(play, done())
    await play.call(request)
    assert (await play.refused(request)).code == NOT_FOUND


@pytest.mark.parametrize("gone", ["before the commit", "after it"])
async def test_who_does_not_listen_gets_nothing(play: Play, gone: str) -> None:
    request = await completion(play, eager("a"))
    connection = FakeConnection()
    call = play.begin(request, connection=connection)
    if gone == "before the commit":
        assert not call.done
        call.cancel()
        await play.settle()
        assert (await play.refused(request)).code == NOT_FOUND
        task = await play.activity()
        assert (task.activity_id, task.attempt) == ("a", 1)
        await play.activity_done(task.task_token)
    else:
        await play.settle()
        assert call.done
        connection.close()
        assert await play.idle(kind="Activity"), "it may be under way"
        assert ids(await play.call(request)) == ["a"]
