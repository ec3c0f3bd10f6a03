"""Reads in a region that does not serve the namespace: from what is there, and it says how old that is."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.calls.test_abroad import answer, poll, refusal, start
from tests.cluster.hosting.calls.two_regions import Regions, play_scene
from tests.cluster.hosting.play import accept

SAID = {
    "holdfast-region": "region2",
    "holdfast-active-region": "region1",
    "holdfast-namespace-version": "1",
}


def describe(workflow_id: str) -> Any:
    request = wire.DescribeWorkflowExecutionRequest(namespace="default")
    request.execution.workflow_id = workflow_id
    return request


def history(workflow_id: str, **fields: Any) -> Any:
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default", **fields)
    request.execution.workflow_id = workflow_id
    return request


def signal(workflow_id: str) -> Any:
    request = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    request.workflow_execution.workflow_id = workflow_id
    return request


async def behind(world: Regions, workflow_id: str = "b") -> None:
    """Region 2 has the run's start, and lacks a signal."""
    world.share(1)
    await answer(world, world.a.begin(start(workflow_id)), start(workflow_id))
    world.ship(world.z if workflow_id.startswith("z") else world.b)
    await world.settle()
    await answer(world, world.a.begin(signal(workflow_id)), signal(workflow_id))
    world.crossed.clear()


@pytest.mark.parametrize("workflow_id", ["b", "z"])
def test_a_read_is_answered_here_and_says_how_old_it_may_be(workflow_id: str) -> None:
    async def scene(world: Regions) -> None:
        await behind(world, workflow_id)
        world.two.lag_ms = 250
        for request in (describe(workflow_id), history(workflow_id)):
            call = world.b.begin(request)
            found = await answer(world, call, request)
            assert call.told == {**SAID, "holdfast-lag-ms": "250"}
            if request.DESCRIPTOR.name.startswith("Get"):
                assert len(found.history.events) == 2
            else:
                assert found.workflow_execution_info.history_length == 2
        world.two.lag_ms = None
        call = world.b.begin(describe(workflow_id))
        await answer(world, call, describe(workflow_id))
        assert call.told == SAID
        assert world.crossed == []

    play_scene(scene)


def test_the_active_region_says_so_too_and_a_namespace_of_one_region_says_nothing() -> None:
    async def scene(world: Regions) -> None:
        await answer(world, world.a.begin(start("x")), start("x"))
        call = world.a.begin(describe("x"))
        await answer(world, call, describe("x"))
        assert not hasattr(call, "told")
        world.share(1)
        call = world.a.begin(describe("x"))
        await answer(world, call, describe("x"))
        assert call.told["holdfast-active-region"] == call.told["holdfast-region"] == "region1"

    play_scene(scene)


@pytest.mark.parametrize("workflow_id", ["b", "z"])
def test_a_strong_read_is_answered_where_the_newest_is(workflow_id: str) -> None:
    async def scene(world: Regions) -> None:
        await behind(world, workflow_id)
        request = describe(workflow_id)
        found = await answer(world, world.b.begin(request, consistency="strong"), request)
        assert found.workflow_execution_info.history_length == 3
        world.two.views.clear()  # the shard alone knows: the wish has gone with the call to its leader
        found = await answer(world, world.b.begin(request, consistency="strong"), request)
        assert found.workflow_execution_info.history_length == 3

    play_scene(scene)


def test_who_waits_for_news_waits_where_it_comes_first() -> None:
    async def scene(world: Regions) -> None:
        await behind(world)
        request = history("b", wait_new_event=True)
        found = await answer(world, world.b.begin(request), request)
        assert len(found.history.events) == 3
        request.next_page_token = found.next_page_token
        call = world.b.begin(request)
        await world.settle(1.0)
        assert not call.done
        await answer(world, world.b.begin(signal("b")), signal("b"))
        assert len((await answer(world, call, request)).history.events) == 1

    play_scene(scene)


def test_a_page_of_what_is_not_here_yet_comes_from_there() -> None:
    """A worker's token says how far its history goes; this region has less of it, or nothing at all."""

    async def scene(world: Regions) -> None:
        world.share(1)
        for workflow_id in ("b", "b2"):
            await answer(world, world.a.begin(start(workflow_id)), start(workflow_id))
        world.ship()
        await world.settle()
        await answer(world, world.a.begin(start("b3")), start("b3"))
        for workflow_id in ("b2", "b3"):
            await answer(world, world.a.begin(signal(workflow_id)), signal(workflow_id))
            request = history(workflow_id, maximum_page_size=1)
            request.next_page_token = (await answer(world, world.a.begin(request), request)).next_page_token
            request.maximum_page_size = 10
            found = await answer(world, world.b.begin(request), request)
            assert [event.event_id for event in found.history.events] == [2, 3]
        request = history("b", maximum_page_size=1)
        request.next_page_token = (await answer(world, world.a.begin(request), request)).next_page_token
        world.crossed.clear()
        await answer(world, world.b.begin(request), request)
        assert world.crossed == [], "all of this one is here"

    play_scene(scene)


def test_a_worker_whose_polls_wait_there_reads_histories_there() -> None:
    async def scene(world: Regions) -> None:
        await behind(world)
        await answer(world, world.b.begin(poll()), poll())
        found = await answer(world, world.b.begin(history("b")), history("b"))
        assert len(found.history.events) == 4
        world.b.play.connection.close()

    play_scene(scene)


def test_a_read_that_was_sent_there_is_not_answered_there_once_the_namespace_has_left() -> None:
    """The other region's leader knows, its other node does not: the call goes back, and waits for news."""

    async def scene(world: Regions) -> None:
        world.share(2)
        await answer(world, world.b.begin(start("z")), start("z"))
        world.a.begin(poll())
        await world.settle()
        world.two.gate(101)
        world.two.views.clear()
        call = world.a.begin(history("z"))
        await world.settle(1.0)
        assert not call.done
        world.one.hears(101)
        await world.settle(1.0)
        assert refusal(call).code == 5, "of its own it has none"

    play_scene(scene)


def test_queries_updates_and_queues_are_asked_after_there() -> None:
    async def scene(world: Regions) -> None:
        await behind(world)
        task = await answer(world, world.b.begin(poll()), poll())
        update = world.a.play.update_request("u", 2, "b")
        asked = world.b.begin(update)
        complete = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token)
        await answer(world, world.b.begin(complete), complete)
        task = await answer(world, world.b.begin(poll()), poll())
        complete.task_token = task.task_token
        complete.messages.add().CopyFrom(accept("u"))
        await answer(world, world.b.begin(complete), complete)
        await answer(world, asked, update)
        wait = wire.PollWorkflowExecutionUpdateRequest(namespace="default")
        wait.update_ref.update_id, wait.update_ref.workflow_execution.workflow_id = "u", "b"
        wait.wait_policy.lifecycle_stage = 2  # type: ignore[assignment]
        assert (await answer(world, world.b.begin(wait), wait)).stage == 2
        await world.settle()
        queue = wire.DescribeTaskQueueRequest(namespace="default")
        queue.task_queue.name = "q"
        found = await answer(world, world.b.begin(queue), queue)
        assert [poller.identity for poller in found.pollers] == ["worker"]
        query = wire.QueryWorkflowRequest(namespace="default")
        query.execution.workflow_id, query.query.query_type = "b", "Q"
        call = world.b.begin(query)
        task = await answer(world, world.b.begin(poll()), poll())
        told = wire.RespondQueryTaskCompletedRequest(
            namespace="default", task_token=task.task_token, completed_type=1
        )
        await answer(world, world.b.begin(told), told)
        await answer(world, call, query)

    play_scene(scene)


def test_a_read_of_a_run_that_has_not_come_yet_is_answered_here() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        await answer(world, world.a.begin(start("b")), start("b"))
        call = world.b.begin(describe("b"))
        await world.settle()
        assert refusal(call).code == 5
        assert call.told == SAID

    play_scene(scene)
