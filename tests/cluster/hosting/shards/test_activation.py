"""A namespace comes to a region and leaves it: timers, actions and tasks are dormant, and come to life."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards import wakes
from cluster.hosting.tasks import activation
from cluster.matching import QueueKey
from history_store.engine import keys
from history_store.engine.errors import Code, ServiceError
from tests.cluster.hosting.calls.test_abroad import answer, poll, refusal, second_namespace, start
from tests.cluster.hosting.calls.two_regions import Regions, play_scene
from tests.cluster.hosting.play import accept, activity, child, done, timer


async def begun(world: Regions, workflow_id: str, *commands: Any) -> None:
    """A run of region 1 whose first task was answered with these commands."""
    await answer(world, world.a.begin(start(workflow_id)), start(workflow_id))
    task = await answer(world, world.a.begin(poll()), poll())
    complete = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, commands=commands
    )
    await answer(world, world.a.begin(complete), complete)


def move(world: Regions, version: int = 2) -> None:
    """Region 2 serves from now on."""
    world.two.hears(version)
    world.one.hears(version)


def rows(world: Regions, kind: bytes) -> list[bytes]:
    """What region 2 has of a kind."""
    return [key for key in world.b.play.rows() if key[:1] == kind]


def one_node(world: Regions) -> None:
    world.two.sites.pop(2)
    world.share(1)


def test_a_dormant_timer_does_not_fire_until_the_namespace_comes() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        await begun(world, "w", timer("t", 5))
        world.cut_link()
        world.ship()
        await world.settle()
        world.b.shard.recover()  # as a new leader does
        assert world.b.shard.wakes.heap == []
        await world.settle(60.0)
        assert "TimerFired" not in await world.b.play.table("w")
        assert len(rows(world, keys.WAKE)) == 1
        assert world.b.shard.wakes.heap == []
        move(world)
        await world.settle(1.0)
        assert "TimerFired" in await world.b.play.table("w")
        assert [event.version for event in await world.b.play.events("w")][-2:] == [2, 2]

    play_scene(scene)


class Counted:
    """The rows of a shard, and how many wake rows were read of them."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.wakes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def scan(self, start: bytes, *args: Any, **options: Any) -> Any:
        found = list(self._rows.scan(start, *args, **options))
        self.wakes += len(found) if start[:1] == keys.WAKE else 0
        return iter(found)


def test_dormant_wakes_do_not_clog_the_clock_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than memory holds, all overdue; they are read once."""
    monkeypatch.setattr(wakes, "WAKES_MAX", 8)

    async def scene(world: Regions) -> None:
        one_node(world)
        for number in range(50):
            await begun(world, f"w{number}", timer("t", 100))
        world.one.gate(1, open_=True, fence=1)  # or region 1 would fire them
        world.ship()
        world.cut_link()
        await world.settle(100.0)
        theirs, world.namespace_id = world.namespace_id, await second_namespace(world)
        request = start("mine")
        request.namespace = "theirs"
        await answer(world, world.b.begin(request), request)
        shard = world.b.shard
        rows = shard.rows = Counted(shard.rows)
        shard.wakes.refill()
        assert len(shard.wakes.heap) <= 8
        wait = poll()
        wait.namespace = "theirs"
        task = await answer(world, world.b.begin(wait), wait)
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="theirs", task_token=task.task_token, commands=[timer("t", 5)]
        )
        await answer(world, world.b.begin(complete), complete)
        await world.settle(10.0)
        task = await answer(world, world.b.begin(wait), wait)
        assert task.workflow_execution.workflow_id == "mine"
        assert 0 < rows.wakes <= 60, "the dormant rows are passed over once"
        assert len(shard.wakes.heap) <= 8
        world.namespace_id = theirs
        move(world)
        await world.settle(2.0)
        for number in range(50):
            assert "TimerFired" in await world.b.play.table(f"w{number}")

    play_scene(scene)


def test_waiting_tasks_are_nobodys_until_the_namespace_comes() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        await begun(world, "w", activity())
        world.cut_link()
        world.ship()
        waiting = world.b.begin(poll("Activity"), deadline_s=5.0)
        shard = world.b.shard
        (key,) = rows(world, keys.TASK)
        assert shard.fetch_tasks(_queue(world), 9) == []
        await world.settle(10.0)
        assert waiting.answer.result() == b""
        assert rows(world, keys.TASK) == [key]
        assert world.b.node.backlog(_queue(world)) == 0
        move(world)
        assert world.b.node.backlog(_queue(world)) == 1
        task = await answer(world, world.b.begin(poll("Activity")), poll("Activity"))
        assert task.workflow_execution.workflow_id == "w"

    play_scene(scene)


def _queue(world: Regions) -> QueueKey:
    return QueueKey(world.namespace_id, 2, "q")


def test_a_poll_that_waits_gets_its_task_when_the_namespace_comes() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        await begun(world, "w")
        signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
        signal.workflow_execution.workflow_id = "w"
        await answer(world, world.a.begin(signal), signal)
        world.ship()
        world.cut_link()
        world.two.view(2)
        waiting = world.b.begin(poll())
        await world.settle()
        assert not waiting.done
        move(world)
        assert (await answer(world, waiting, poll())).workflow_execution.workflow_id == "w"

    play_scene(scene)


def test_actions_wait_for_the_region_that_serves() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        world.a.node.actions.do = lambda *_: None  # type: ignore[method-assign]
        await begun(world, "w", child("c"))
        world.cut_link()
        world.ship()
        begun_here: list[Any] = []
        begin = world.b.node.actions._begin
        world.b.node.actions._begin = lambda *args: begun_here.append(args)  # type: ignore[method-assign]
        world.b.shard.recover()  # as a new leader does
        await world.settle(3.0)
        assert len(rows(world, keys.ACTION)) == 1
        assert begun_here == []
        world.b.node.actions._begin = begin  # type: ignore[method-assign]
        assert world.b.shard.current(world.namespace_id, "c") is None
        move(world)
        await world.settle(1.0)
        assert not rows(world, keys.ACTION)
        assert "ChildWorkflowExecutionStarted" in await world.b.play.table("w")
        assert [event.version for event in await world.b.play.events("c")] == [2, 2]

    play_scene(scene)


def test_the_sweep_fails_what_workers_of_the_other_region_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "ROWS_AT_ONCE", 2)

    async def scene(world: Regions) -> None:
        one_node(world)
        held: dict[str, bytes] = {}
        for number in range(7):
            await answer(world, world.a.begin(start(f"w{number}")), start(f"w{number}"))
            task = await answer(world, world.a.begin(poll()), poll())
            held[task.workflow_execution.workflow_id] = task.task_token
        await answer(world, world.a.begin(start("waits")), start("waits"))
        world.ship()
        await world.settle()
        move(world)
        await world.settle()
        assert len(rows(world, keys.TASK)) == 8, "without anybody having asked for them"
        for workflow_id, token in held.items():
            assert (await world.b.play.table(workflow_id, first=4)).splitlines() == [
                " 4 WorkflowTaskFailed scheduled=2 started=3 cause=FAILOVER_CLOSE_COMMAND",
                " 5 WorkflowTaskScheduled",
            ]
            complete = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=token)
            call = world.a.begin(complete)
            await world.settle()
            assert refusal(call).code == 5
        assert len(await world.b.play.events("waits")) == 2, "nobody held its task"
        seen = set()
        for _ in range(8):
            task = await answer(world, world.a.begin(poll()), poll())
            seen.add(task.workflow_execution.workflow_id)
            complete = wire.RespondWorkflowTaskCompletedRequest(
                namespace="default", task_token=task.task_token, commands=[done()]
            )
            await answer(world, world.a.begin(complete), complete)
        assert seen == {*held, "waits"}

    play_scene(scene)


def test_who_touches_such_a_run_before_the_sweep_does_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation.Sweep, "go_on", lambda _: None)

    async def scene(world: Regions) -> None:
        one_node(world)
        await answer(world, world.a.begin(start("w")), start("w"))
        task = await answer(world, world.a.begin(poll()), poll())
        signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
        signal.workflow_execution.workflow_id = "w"
        await answer(world, world.a.begin(signal), signal)
        world.ship()
        await world.settle()
        move(world)
        await world.settle()
        signal.signal_name = "late"
        complete = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token)
        call = world.b.begin(complete)
        await world.settle()
        assert refusal(call).code == 5
        await answer(world, world.b.begin(signal), signal)
        assert (await world.b.play.table("w", first=4)).splitlines() == [
            " 4 WorkflowTaskFailed scheduled=2 started=3 cause=FAILOVER_CLOSE_COMMAND",
            " 5 WorkflowExecutionSignaled signal_name=s",
            " 6 WorkflowTaskScheduled",
            " 7 WorkflowExecutionSignaled signal_name=late",
        ]

    play_scene(scene)


def test_a_run_is_read_although_the_disk_is_full() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        await answer(world, world.a.begin(start("w")), start("w"))
        await answer(world, world.a.begin(poll()), poll())
        world.ship()
        await world.settle()
        propose = world.b.shard.group.propose
        full = True

        def refuse(*args: Any, **options: Any) -> int:
            if full:
                raise ServiceError(Code.RESOURCE_EXHAUSTED, "the disk is full")
            return propose(*args, **options)

        world.b.shard.group.propose = refuse  # type: ignore[method-assign]
        move(world)
        await world.settle()
        assert len(await world.b.play.events("w")) == 3
        full = False
        assert len(await world.b.play.events("w")) == 5

    play_scene(scene)


def test_what_waits_here_is_tried_where_the_namespace_went() -> None:
    """Polls, waiting reads and updates; tasks that no worker took are forgotten."""

    async def scene(world: Regions) -> None:
        one_node(world)
        await begun(world, "w")
        other = world.a.begin(poll(queue="else"))
        history = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
        history.execution.workflow_id = "w"
        history.history_event_filter_type = 2  # type: ignore[assignment]
        result = world.a.begin(history)
        update = world.a.play.update_request("u", 2)
        updated = world.a.begin(update)
        await world.settle()
        signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
        signal.workflow_execution.workflow_id = "w"
        await answer(world, world.a.begin(signal), signal)
        world.ship()
        await world.settle()
        assert [call.done for call in (other, result, updated)] == [False] * 3
        move(world)
        await world.settle(0.5)
        assert not world.a.node.polls
        assert not world.a.shard.attempts
        assert not world.a.shard.cache.runs
        assert [waiting.queue.name for waiting in world.b.node.polls] == ["else"]
        assert world.a.node.matching._queues[_queue(world)._replace(kind=1)].window == []
        task = await answer(world, world.b.begin(poll()), poll())
        assert [message.protocol_instance_id for message in task.messages] == ["u"]
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, messages=[accept("u")]
        )
        await answer(world, world.a.begin(complete), complete)
        await answer(world, updated, update)
        await answer(world, world.a.begin(signal), signal)
        task = await answer(world, world.b.begin(poll()), poll())
        complete = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[done()]
        )
        await answer(world, world.a.begin(complete), complete)
        closed = await answer(world, result, history)
        assert closed.history.events[0].HasField("workflow_execution_completed_event_attributes")
        assert other.done is False

    play_scene(scene)


def test_a_poll_that_has_been_given_a_task_is_not_taken_from_its_worker() -> None:
    async def scene(world: Regions) -> None:
        one_node(world)
        call = world.a.begin(poll())
        await world.settle()
        request = start("w")
        begun = world.a.begin(request)
        while not world.a.shard.cache.runs or not world.a.shard.find(world.namespace_id, "w").task_started:  # type: ignore[union-attr]
            await asyncio.sleep(0)
        assert not call.done
        world.one.view(2)
        assert (await answer(world, call, poll())).workflow_execution.workflow_id == "w"
        assert begun.done
        assert world.crossed == []

    play_scene(scene)
