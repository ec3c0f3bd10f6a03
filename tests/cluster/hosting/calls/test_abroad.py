"""Calls for namespaces that the other region serves: sent there, sent back, tried again, hung up."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from temporalio.api.common.v1.message_pb2 import Payloads
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.remote import ABROAD, ANSWER, CALL, CANCEL, ELSEWHERE, HUNG_UP, UNDELIVERED
from history_store.engine.errors import Code
from tests.cluster.frontend.services.conftest import RPCS, FakeConnection, Refused
from tests.cluster.hosting.calls.two_regions import AnsweredCall, Regions, Site, play_scene
from tests.cluster.hosting.play import activity, command, done


def start(workflow_id: str, request_id: str = "r") -> wire.StartWorkflowExecutionRequest:
    request = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=request_id
    )
    request.workflow_type.name, request.task_queue.name = "W", "q"
    return request


def poll(kind: str = "Workflow", queue: str = "q") -> Any:
    request = getattr(wire, f"Poll{kind}TaskQueueRequest")(namespace="default", identity="worker")
    request.task_queue.name = queue
    return request


async def answer(world: Regions, call: AnsweredCall, request: Any, seconds: float = 0.2) -> Any:
    """What the client hears."""
    await world.settle(seconds)
    assert call.done, "no answer yet"
    return RPCS[request.DESCRIPTOR.full_name].response.FromString(call.answer.result())


def refusal(call: AnsweredCall) -> Refused:
    assert call.done
    error = call.answer.exception()
    assert isinstance(error, Refused)
    return error


def has(site: Site, workflow_id: str) -> bool:
    return site.shard.current(site.region.world.namespace_id, workflow_id) is not None


@pytest.mark.parametrize("workflow_id", ["b", "z"])
def test_a_start_in_a_standby_is_done_where_the_namespace_is_active(workflow_id: str) -> None:
    """Also where another node of that region leads the shard: the usual hop."""

    async def scene(world: Regions) -> None:
        world.share(2)
        request = start(workflow_id)
        call = world.a.begin(request)
        assert (await answer(world, call, request)).started
        leader = world.z if workflow_id == "z" else world.b
        assert has(leader, workflow_id)
        assert not has(world.a, workflow_id)
        assert world.kinds() == [CALL + ABROAD, ANSWER + ABROAD]
        assert world.crossed[0][3] == call.request, "as it came"
        run = leader.shard.find(world.namespace_id, workflow_id)
        assert run is not None
        assert run.state.version == 2
        assert [event.version for event in await events(leader, workflow_id)] == [2, 2]

    play_scene(scene)


async def events(site: Site, workflow_id: str) -> Any:
    request = wire.GetWorkflowExecutionHistoryRequest(namespace="default")
    request.execution.workflow_id = workflow_id
    call = site.begin(request)
    found = await answer(site.region.world, call, request)
    return found.history.events


def test_both_ways(seed: int) -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        request = start("x")
        call = world.z.begin(request)
        assert (await answer(world, call, request)).started
        assert has(world.a, "x")
        assert not has(world.z, "x")

    play_scene(scene, seed)


def test_a_namespace_of_one_region_goes_nowhere() -> None:
    async def scene(world: Regions) -> None:
        request = start("x")
        assert (await answer(world, world.a.begin(request), request)).started
        assert has(world.a, "x")
        assert world.crossed == []

    play_scene(scene)


def test_a_shard_has_the_last_word_where_the_node_has_not_heard() -> None:
    async def scene(world: Regions) -> None:
        world.share(2)
        for region in (world.one, world.two):
            region.views.clear()
        request = start("z")
        assert (await answer(world, world.a.begin(request), request)).started
        assert has(world.z, "z")
        signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
        signal.workflow_execution.workflow_id = "z"  # of which the standby's copy knows nothing
        await answer(world, world.a.begin(signal), signal)

    play_scene(scene)


def test_no_transaction_begins_for_a_namespace_that_another_region_serves() -> None:
    async def scene(world: Regions) -> None:
        request = start("x")
        await answer(world, world.a.begin(request), request)
        world.share(2)
        shard = world.a.shard
        with pytest.raises(Exception, match="not active here"):
            shard.begin(world.namespace_id)
        run = shard.find(world.namespace_id, "x")
        assert run is not None
        with pytest.raises(Exception, match="not active here"):
            shard.change(run, lambda tx: lambda _: None)
        other = shard.begin("another namespace's id")
        other.open(run)
        with pytest.raises(AssertionError, match="its gate was asked"):
            shard.commit(other, lambda _: None)

    play_scene(scene)


def test_a_region_that_does_not_serve_either_sends_back_what_it_knows() -> None:
    """Region 1 thinks that 2 serves; 2 knows that it is 1's again. The call waits until 1 has heard so."""

    async def scene(world: Regions) -> None:
        world.share(2)
        world.two.hears(101)
        request = start("x")
        call = world.a.begin(request)
        await world.settle(1.0)
        assert not call.done
        assert len(world.a.forward.parking) == 1
        assert world.kinds()[:2] == [CALL + ABROAD, ELSEWHERE + ABROAD]
        crossed = world.kinds().count(CALL + ABROAD)
        assert crossed == 1, "what it has learnt it need not be told again"
        world.one.hears(101)
        assert (await answer(world, call, request)).started
        assert has(world.a, "x")

    play_scene(scene)


def test_a_region_that_is_yet_to_hear_lets_the_call_wait() -> None:
    """Region 1 knows that 2 serves, which 2 does not: it goes by what came with the call."""

    async def scene(world: Regions) -> None:
        world.share(1)
        world.one.hears(2)
        request = start("z")
        call = world.a.begin(request)
        await world.settle(1.0)
        assert not call.done
        assert world.kinds() == [CALL + ABROAD]
        world.two.hears(2)
        assert (await answer(world, call, request)).started
        assert has(world.z, "z")

    play_scene(scene)


def test_two_regions_that_each_name_the_other_do_not_play_ball() -> None:
    async def scene(world: Regions) -> None:
        world.share(2)
        world.two.gate(1)
        world.two.view(1)
        request = start("x")
        call = world.a.begin(request)
        await world.settle(10.0)
        assert refusal(call).code == Code.UNAVAILABLE
        assert world.kinds().count(CALL + ABROAD) == 1

    play_scene(scene)


def test_a_client_that_gives_up_is_not_worked_for() -> None:
    async def scene(world: Regions) -> None:
        world.share(2)
        call = world.a.begin(poll())
        await world.settle()
        assert [len(site.node.polls) for site in world.sites].count(1) == 1
        call.cancel()
        await world.settle()
        assert not any(site.node.polls for site in world.sites)
        assert CANCEL + ABROAD in world.kinds()

    play_scene(scene)


@pytest.mark.parametrize("kind", ["Workflow", "Activity", "Nexus"])
def test_polls_wait_where_the_tasks_are(kind: str) -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        call = world.a.begin(poll(kind))
        await world.settle()
        assert len(world.b.node.polls) == 1
        assert not world.a.node.polls
        if kind == "Workflow":
            await answer(world, world.b.begin(start("b")), start("b"))
            assert (await answer(world, call, poll())).workflow_execution.workflow_id == "b"
        else:
            await world.settle(40.0)
            assert call.answer.result() == b""

    play_scene(scene)


def test_a_worker_works_by_way_of_the_other_region() -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        await answer(world, world.a.begin(start("b")), start("b"))
        task = await answer(world, world.a.begin(poll()), poll())
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[activity()]
        )
        await answer(world, world.a.begin(complete), complete)
        work = await answer(world, world.a.begin(poll("Activity")), poll("Activity"))
        finish = wire.RespondActivityTaskCompletedRequest(
            namespace="default", task_token=work.task_token, result=Payloads()
        )
        await answer(world, world.a.begin(finish), finish)
        task = await answer(world, world.a.begin(poll()), poll())
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[done()]
        )
        await answer(world, world.a.begin(complete), complete)
        run = world.b.shard.find(world.namespace_id, "b")
        assert run is not None
        assert not run.running

    play_scene(scene)


@pytest.mark.parametrize("how", ["hangs up", "link"])
def test_a_worker_that_is_gone_leaves_its_task_to_others(how: str) -> None:
    """Long before the task's time-out: its connection is known in the other region, too."""

    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        await answer(world, world.a.begin(start("b")), start("b"))
        connection = FakeConnection()
        await answer(world, world.a.begin(poll(), connection=connection), poll())
        other = world.b.begin(poll())
        await world.settle()
        assert not other.done
        if how == "link":
            world.cut_link()
        else:
            connection.close()
            await world.settle()
            assert HUNG_UP + ABROAD in world.kinds()
        assert (await answer(world, other, poll())).workflow_execution.workflow_id == "b"
        assert not world.a.forward.abroad._workers or how == "link"

    play_scene(scene)


def test_a_task_whose_answer_finds_nobody_waits_again() -> None:
    """The worker gives up while the task is on its way to it."""

    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        await answer(world, world.a.begin(start("b")), start("b"))
        task = await answer(world, world.b.begin(poll()), poll())
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[activity()]
        )
        call = world.a.begin(poll("Activity"))
        await world.settle()
        assert len(world.b.node.polls) == 1
        world.delay_s = 0.5
        world.b.begin(complete)
        await world.settle(0.1)
        call.cancel()
        await world.settle(2.0)
        assert UNDELIVERED + ABROAD in world.kinds()
        world.delay_s = 0.01
        found = await answer(world, world.b.begin(poll("Activity")), poll("Activity"))
        assert found.workflow_execution.workflow_id == "b"
        assert found.attempt == 1

    play_scene(scene)


def test_a_start_whose_answer_is_lost_is_the_same_request_again() -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        request = start("b", "")
        call = world.a.begin(request)
        await world.settle()
        world.delay_s = 0.01
        assert call.done
        second = start("b2", "")
        call = world.a.begin(second)
        world.held = []
        await world.settle(0.05)
        held, world.held = world.held, None
        for arrive in held:
            arrive()  # it is done there
        world.delay_s = 5.0  # its answer is still on the way
        await world.settle(0.1)
        assert has(world.b, "b2")
        world.cut_link()
        await world.settle(0.2)
        world.cut = False
        world.delay_s = 0.01
        assert (await answer(world, call, second)).started
        now = world.b.shard.current(world.namespace_id, "b2")
        assert now is not None
        assert now.start_request_id == wire.StartWorkflowExecutionRequest.FromString(call.request).request_id

    play_scene(scene)


def test_a_call_that_might_change_another_run_is_in_doubt_when_the_link_breaks() -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        await answer(world, world.a.begin(start("b")), start("b"))
        request = wire.TerminateWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = "b"
        world.delay_s = 1.0
        call = world.a.begin(request)
        await world.settle(0.1)
        world.cut_link()
        assert refusal(call).code == Code.UNAVAILABLE
        assert "whether it was done is not known" in refusal(call).message

    play_scene(scene)


def test_without_a_link_calls_hear_so_and_polls_end_empty() -> None:
    async def scene(world: Regions) -> None:
        world.share(2)
        world.cut_link()
        call, waiting = world.a.begin(start("x")), world.a.begin(poll(), deadline_s=60.0)
        await world.settle(12.0)
        assert refusal(call).code == Code.UNAVAILABLE
        assert "region2" in refusal(call).message
        assert waiting.answer.result() == b""

    play_scene(scene)


def test_internal_methods_are_not_served_to_other_regions() -> None:
    async def scene(world: Regions) -> None:
        asked: list[Any] = []
        world.b.forward.handlers = {"/holdfast.internal.v1.Region/Do": asked.append}
        name = "/holdfast.internal.v1.Region/Do"
        message = [CALL + ABROAD, 1, name, b"", 1000, 1, "client", 0, {}, 2]
        world.b.forward.abroad.received(1, 1, message)
        assert not asked
        assert world.crossed[-1][2] == Code.UNIMPLEMENTED

    play_scene(scene)


def test_a_child_in_a_namespace_that_the_other_region_serves_is_started_there() -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        request = start("parent")
        await answer(world, world.a.begin(request), request)
        task = await answer(world, world.a.begin(poll()), poll())
        theirs = await second_namespace(world)
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default",
            task_token=task.task_token,
            commands=[
                command(
                    "START_CHILD_WORKFLOW_EXECUTION",
                    workflow_id="b",
                    namespace="theirs",
                    workflow_type={"name": "C"},
                    task_queue={"name": "cq"},
                )
            ],
        )
        await answer(world, world.a.begin(complete), complete)
        await world.settle(3.0)
        assert world.b.shard.current(theirs, "b") is not None
        assert world.a.shard.current(theirs, "b") is None
        table = await world.a.play.table("parent")
        assert "ChildWorkflowExecutionStarted" in table
        assert not [key for key in world.a.play.rows() if key[:1] == b"x"]

    play_scene(scene)


async def second_namespace(world: Regions) -> str:
    """It is held by both regions, and served by the second."""
    made = replace(world.a.play.services.namespace("default"), id=world.a.node.new_id(), name="theirs")
    for site in world.sites:
        site.node.meta.put(made, lambda _: None)
    await world.settle()
    before, world.namespace_id = world.namespace_id, made.id
    world.share(2)
    world.namespace_id = before
    return made.id


def test_a_stopping_node_ends_its_polls_wherever_they_wait() -> None:
    async def scene(world: Regions) -> None:
        world.two.sites.pop(2)
        world.share(2)
        there = world.a.begin(poll())
        await world.settle()
        later = world.a.begin(poll())
        await world.settle()
        assert len(world.b.node.polls) == 2
        world.cut = True
        parked = world.a.begin(poll())
        start_there = world.a.begin(start("x"))
        await world.settle()
        world.cut = False
        world.a.node.end_polls()
        assert [call.answer.result() for call in (there, later, parked)] == [b""] * 3
        assert not start_there.done
        await world.settle(0.2)
        assert not world.b.node.polls
        assert start_there.done

    play_scene(scene)


def test_a_call_that_waits_with_a_leader_elsewhere_finds_the_region_that_serves_now() -> None:
    """For as long as it waited: it is not told that nobody leads the shard."""

    async def scene(world: Regions) -> None:
        world.share(2)
        await answer(world, world.b.begin(start("z")), start("z"))
        history = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
        history.execution.workflow_id = "z"
        first = await answer(world, world.b.begin(history), history)
        history.next_page_token = first.next_page_token
        call = world.b.begin(history)
        await world.settle(10.0)
        assert not call.done
        world.one.hears(101)
        world.two.hears(101)
        await world.settle(0.5)
        assert refusal(call).code == Code.NOT_FOUND, "region 1 was asked, which has not got the run"

    play_scene(scene)
