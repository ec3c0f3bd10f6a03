"""Calls that wait for a namespace to have an owner: in order, within bounds, told nothing that is final."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.remote import ABROAD, CALL
from history_store.engine.errors import Code
from replication.failover import parking
from replication.failover.parking import Passage
from tests.cluster.hosting.calls.test_abroad import answer, has, poll, refusal, start
from tests.cluster.hosting.calls.two_regions import AnsweredCall, Regions, play_scene


def fence(world: Regions) -> None:
    """Region 1 hands the namespace over; nobody has it."""
    world.one.gate(1, open_=True, fence=5)
    world.one.view(1, Passage.PARKED, handover=5)


def unfence(world: Regions) -> None:
    """The handover came to nothing."""
    world.one.gate(1, open_=True)
    world.one.view(1, Passage.OPEN, handover=5)


def ids(world: Regions, index: int) -> list[str]:
    """The workflow ids of a region, in the order in which their runs were started."""
    found = [
        (run.state.start_time, run.state.workflow_id)
        for site in world.regions[index].sites.values()
        for run in site.shard.cache.runs.values()
    ]
    return [workflow_id for _, workflow_id in sorted(found)]


@pytest.mark.parametrize("node_knows", [True, False])
def test_calls_wait_during_a_handover_and_go_on_in_order(node_knows: bool) -> None:
    """The shard parks by its own gate what a node that is behind lets through."""

    async def scene(world: Regions) -> None:
        world.share(1)
        if node_knows:
            fence(world)
        else:
            world.one.gate(1, open_=True, fence=5)
        calls = [world.a.begin(start(f"x{number:02}")) for number in range(60)]
        await world.settle(1.0)
        assert not any(call.done for call in calls)
        if node_knows:
            assert len(world.a.forward.parking) == 60
        unfence(world)
        late = world.a.begin(start("x99"))
        await world.settle(2.0)
        assert all(call.done and call.answer.exception() is None for call in [*calls, late])
        order = ids(world, 1) if node_knows else sorted(ids(world, 1))  # whoever is refused goes behind
        assert order == [f"x{number:02}" for number in range(60)] + ["x99"]
        assert len(world.a.forward.parking) == 0
        assert not world.a.forward.parking._gates
        assert not world.a.forward.parking._left

    play_scene(scene)


def test_they_go_to_the_region_that_the_namespace_moved_to() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        fence(world)
        calls = [world.a.begin(start(f"z{number}")) for number in range(5)]
        await world.settle(3.0)
        world.two.hears(2)
        world.one.hears(2)
        await world.settle(1.0)
        assert all(call.done and call.answer.exception() is None for call in calls)
        assert ids(world, 2) == [f"z{number}" for number in range(5)]
        assert ids(world, 1) == []

    play_scene(scene)


def test_what_comes_while_others_leave_goes_behind_them() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        fence(world)
        calls = [world.a.begin(start(f"z{number:03}")) for number in range(parking.RELEASED_MAX + 1)]
        world.two.hears(2)
        world.one.hears(2)
        calls.append(world.a.begin(start("z999")))
        world.delay_s = 1.0
        await world.settle()
        assert world.kinds() == [CALL + ABROAD] * parking.RELEASED_MAX
        await world.settle(10.0)
        assert all(call.done for call in calls)
        sent = [message[3] for message in world.crossed if message[0] == CALL + ABROAD]
        assert sent == [call.request for call in calls]

    play_scene(scene)


def test_who_waits_in_vain_is_told_to_try_again_and_polls_end_empty() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        fence(world)
        begun = world.loop.time()
        heard: list[float] = []
        call, soon = world.a.begin(start("x"), deadline_s=60.0), world.a.begin(start("y"), deadline_s=3.0)
        waiting = world.a.begin(poll(), deadline_s=60.0)
        for one in (call, soon, waiting):
            one.answer.add_done_callback(lambda _: heard.append(world.loop.time() - begun))
        await world.settle(9.0)
        assert refusal(call).code == refusal(soon).code == Code.UNAVAILABLE
        assert waiting.answer.result() == b""
        assert 2.5 < heard[0] <= 3.0
        assert all(7.9 < when < 8.5 for when in heard[1:])
        assert not world.a.forward.parking._waiting

    play_scene(scene)


@pytest.mark.parametrize("bound", ["calls", "bytes"])
def test_there_is_room_for_so_many(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    size = len(start("x0").SerializeToString())
    defaults = (2, 1 << 20, 32) if bound == "calls" else (1000, 2 * size + 1, 32)
    keyword = dict(zip(("calls_max", "bytes_max", "released_max"), defaults, strict=True))
    monkeypatch.setattr(parking.ParkingGate.__init__, "__kwdefaults__", keyword)

    async def scene(world: Regions) -> None:
        world.share(1)
        fence(world)
        calls = [world.a.begin(start(f"x{number}")) for number in range(3)]
        await world.settle()
        assert [call.done for call in calls] == [False, False, True]
        assert refusal(calls[2]).code == Code.UNAVAILABLE
        unfence(world)
        await world.settle(1.0)
        assert has(world.a, "x0")
        assert has(world.a, "x1")
        assert not has(world.a, "x2")

    play_scene(scene)


def test_a_parked_client_that_leaves_makes_room_and_nothing_is_done_for_it() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        fence(world)
        calls = [world.a.begin(start(f"x{number}")) for number in range(3)]
        await world.settle()
        calls[1].cancel()
        assert len(world.a.forward.parking) == 2
        unfence(world)
        await world.settle(1.0)
        assert ids(world, 1) == ["x0", "x2"]

    play_scene(scene)


def test_a_fence_does_not_hold_what_was_there_before_it() -> None:
    """Reads go on; a waiting poll stays, and gets its task when the handover came to nothing."""

    async def scene(world: Regions) -> None:
        world.share(1)
        await answer(world, world.a.begin(start("x")), start("x"))
        task = await answer(world, world.a.begin(poll()), poll())
        waiting = world.a.begin(poll())
        await world.settle()
        fence(world)
        await world.settle()
        assert not waiting.done
        describe: Any = wire.DescribeWorkflowExecutionRequest(namespace="default")
        describe.execution.workflow_id = "x"
        found = await answer(world, world.a.begin(describe), describe)
        assert found.workflow_execution_info.execution.workflow_id == "x"
        complete = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token)
        call = world.a.begin(complete)
        await world.settle(1.0)
        assert not call.done, "never NOT_FOUND: the worker has its task"
        unfence(world)
        await world.settle(1.0)
        assert call.done
        signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
        signal.workflow_execution.workflow_id = "x"
        await answer(world, world.a.begin(signal), signal)
        assert (await answer(world, waiting, poll())).workflow_execution.workflow_id == "x"

    play_scene(scene)


def test_a_fenced_shard_starts_no_task_and_fires_no_timer() -> None:
    async def scene(world: Regions) -> None:
        world.share(1)
        await answer(world, world.a.begin(start("x")), start("x"))
        world.one.gate(1, open_=True, fence=5)
        waiting: AnsweredCall = world.a.begin(poll())
        await world.settle(2.0)
        assert not waiting.done
        world.one.gate(1, open_=True)
        world.a.shard.activated([world.namespace_id])
        assert (await answer(world, waiting, poll(), 1.0)).workflow_execution.workflow_id == "x"

    play_scene(scene)
