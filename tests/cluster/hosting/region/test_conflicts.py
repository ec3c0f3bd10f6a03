"""Regions that wrote to the same workflow ids without knowing of each other: what becomes of it."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.region import states
from cluster.hosting.region.states import STATE, WANTED
from cluster.hosting.shards import conflicts
from history_store.engine import keys
from replication import shipment
from replication.failover.records import Source
from tests.cluster.hosting.play import Play, accept, activity, command, done, respond, timer
from tests.cluster.hosting.region.chances import Chances
from tests.cluster.hosting.region.several import Place, World, play_regions

E = event_type_pb2


async def signals(play: Play, workflow_id: str = "w") -> list[str]:
    """The names of the signals in the current run, in order."""
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in await play.events(workflow_id)
        if event.event_type == E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]


def left_out(place: Place) -> int:
    """How many inputs no run could be given there."""
    return sum(host.streams.conflicts.left_out for host in place.play.node.shards if host.streams is not None)


def test_what_the_old_region_accepted_is_made_again_in_the_new_one(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.signal(name="old1")
        await a.play.signal(name="old2", request_id="r")
        b.take_over()
        await b.play.signal(name="new")
        world.heal()
        await world.same()
        assert await signals(b.play) == ["new", "old1", "old2"]
        assert await a.play.table("w") == await b.play.table("w")
        assert a.pending() == b.pending() == 0
        await b.play.next(done())
        await world.same()

    play_regions(seed, 2, story)


def test_what_fits_goes_on_where_it_is_served_now(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.first(timer(seconds=5), workflow_id="timed")
        await a.play.signal(name="late")
        b.take_over()
        call = b.play.begin_poll()
        await b.play.settle()
        assert not call.done
        world.heal()
        await world.same()
        assert call.done, "who polls already is given what comes from elsewhere"
        assert await signals(b.play) == ["late"]
        await b.play.advance(6)
        assert "TimerFired" in await b.play.table("timed")

    play_regions(seed, 2, story)


def test_a_task_that_was_started_elsewhere_comes_to_nothing(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.start("w")
        await world.same()
        world.part(a, b)
        await a.play.poll()
        b.take_over()
        world.heal()
        await world.same()
        assert "FAILOVER_CLOSE_COMMAND" in await b.play.table("w")
        await b.play.next(done())
        await world.same()

    play_regions(seed, 2, story)


def test_two_runs_of_one_workflow_id_begun_at_once(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        world.part(a, b)
        old = await a.play.first(activity(), workflow_id="w")
        await a.play.signal(name="to the old run")
        b.take_over()
        new = await b.play.first(timer(seconds=3600), workflow_id="w")
        world.heal()
        await world.same()
        for place in (a, b):
            described = await place.play.describe("w")
            assert described.workflow_execution_info.execution.run_id == new
            assert await signals(place.play) == ["to the old run"]
            lost = await place.play.describe("w", old)
            assert lost.workflow_execution_info.status == 5
            listed = await place.play.call(wire.ListWorkflowExecutionsRequest(namespace="default"))
            assert len(listed.executions) == 2
        await b.play.next(done())
        await world.same()

    play_regions(seed, 2, story)


@pytest.mark.parametrize("regions", [2, 3])
def test_random_lives_end_the_same_and_nothing_is_lost(rng: random.Random, seed: int, regions: int) -> None:
    async def story(world: World) -> None:
        world.start()
        chances = Chances(world, rng)
        await chances.run(120)
        await chances.judge()

    play_regions(seed, regions, story)


def test_the_result_of_an_activity_is_not_lost_with_the_branch(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(activity("kept"), activity("begun later"))
        first, second = await a.play.activity(), await a.play.activity()
        await world.same()
        world.part(a, b)
        await a.play.activity_done(first.task_token, "from the old region")
        b.take_over()
        await b.play.signal(name="new")
        world.heal()
        await world.same()
        table = await b.play.table("w")
        assert table.count("ActivityTaskCompleted") == 1
        assert 'result="from the old region"' in table
        described = await b.play.describe("w")
        assert [one.activity_id for one in described.pending_activities] == ["begun later"]
        assert second.task_token

    play_regions(seed, 2, story)


def test_an_update_is_admitted_again_and_a_second_cancellation_is_not(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        a.play.begin(a.play.update_request("u1", 2))
        await a.play.settle()
        task = await a.play.poll()
        await a.play.complete(task.task_token, messages=[accept("u1"), respond("u1", "old")])
        await a.play.cancel()
        b.take_over()
        await b.play.cancel()
        world.heal()
        await world.same()
        table = await b.play.table("w")
        assert table.count("UpdateAdmitted") == 1
        assert table.count("CancelRequested") == 1
        assert left_out(b) == 1
        assert "UpdateCompleted" not in table, "the workflow has to say so again"
        task = await b.play.poll()
        await b.play.complete(task.task_token, messages=[accept("u1"), respond("u1", "new")])
        await world.same()
        outcome = await a.play.call(a.play.update_request("u1"))
        assert "new" in str(outcome)

    play_regions(seed, 2, story)


def test_signals_for_a_run_that_has_ended_elsewhere_reset_it(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        old = await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.signal(name="too late")
        b.take_over()
        await b.play.signal(name="in time")
        await b.play.next(done())
        world.heal()
        await world.same()
        described = await b.play.describe("w")
        assert described.workflow_execution_info.execution.run_id != old
        assert described.workflow_execution_info.status == 1
        assert "too late" in await signals(b.play)

    play_regions(seed, 2, story)


def test_a_successor_that_lost_gives_its_inputs_to_the_run_that_won(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        first = await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.signal(name="one")
        again = {"workflow_type": {"name": "W"}, "task_queue": {"name": "q"}}
        await a.play.next(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", **again))
        await a.play.signal(name="two")
        b.take_over()
        await b.play.signal(name="three")
        world.heal()
        await world.same()
        described = await a.play.describe("w")
        assert described.workflow_execution_info.execution.run_id == first
        assert sorted(await signals(b.play)) == ["one", "three", "two"]

    play_regions(seed, 2, story)


def test_a_third_region_waits_for_what_is_on_its_way(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conflicts, "PATIENCE_S", 10.0)

    async def story(world: World) -> None:
        a, b, c = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, c)
        await a.play.signal(name="one")
        await asyncio.sleep(1.0)
        b.take_over()
        a.active = False
        await b.play.signal(name="two")
        await asyncio.sleep(0.5)
        assert c.waits(), "it follows on what c has not"
        assert not any(message[0] == WANTED for message in c.wire.sent), "which may come by itself"
        c.wire.cut.clear()
        a.wire.cut.clear()
        c.end.up(1, 1)
        a.end.up(3, 1)
        await asyncio.sleep(5.0)
        assert not c.waits()
        assert not any(message[0] == WANTED for message in c.wire.sent)
        await world.same()
        assert await signals(c.play) == ["one", "two"]

    play_regions(seed, 3, story)


def test_a_third_region_asks_for_what_does_not_come(seed: int) -> None:
    async def story(world: World) -> None:
        a, b, c = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, c)
        await a.play.signal(name="one")
        await asyncio.sleep(1.0)
        b.take_over()
        a.active = False
        await b.play.signal(name="two")
        await asyncio.sleep(10.0)
        assert any(message[0] == WANTED for message in c.wire.sent)
        assert c.play.rows() == b.play.rows()

    play_regions(seed, 3, story)


def test_a_large_state_comes_in_parts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "PART_BYTES_MAX", 300)

    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.signal(name="old")
        b.take_over()
        for number in range(20):
            await b.play.signal(name=f"new{number}")
        lost: list[int] = []

        def drop(message: list[Any]) -> bool:
            if message[0] != STATE or message[-3] != 2 or lost:
                return False
            lost.append(message[-3])
            return True

        b.wire.drop = drop
        world.heal()
        await world.same()
        assert lost
        assert sum(message[0] == STATE for message in b.wire.sent) > 5
        assert len(await signals(a.play)) == 21

    play_regions(seed, 2, story)


def test_an_entry_that_cannot_be_taken_holds_up_its_workflow_alone(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600), workflow_id="bad")
        await world.same()

        def unpack(payload: bytes) -> shipment.Shipment:
            sent = whole(payload)
            if any(b"poison" in (value or b"") for _, value in sent.rows):
                raise shipment.ShipmentError("made up")
            return sent

        whole = shipment.unpack
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shipment, "unpack", unpack)
            await a.play.signal("bad", "poison")
            await a.play.next(timer("t2", 60))
            await a.play.first(done(), workflow_id="good")
            await asyncio.sleep(1.0)
            found = [
                (host, workflow, one)
                for host in b.play.node.shards
                if host.streams is not None
                for workflow, one in host.streams.conflicts.quarantined.items()
            ]
            assert [workflow[1] for _, workflow, _ in found] == ["bad"]
            assert "made up" in found[0][2].why
            assert (await b.play.describe("good")).workflow_execution_info.status == 2
            host, workflow, _ = found[0]
            b.end.lost(host)
            b.end.led(host)
            streams = host.streams  # a new leader's
            assert streams is not None
            assert workflow in streams.conflicts.quarantined
            assert len(streams.conflicts.parked[workflow]) > 1
            assert streams.conflicts.retry(workflow)
            assert workflow in streams.conflicts.quarantined, "it is as bad as before"
        assert streams.conflicts.retry(workflow)
        assert not streams.conflicts.quarantined
        assert not streams.conflicts.retry(workflow)
        await world.same()

    play_regions(seed, 2, story)


def _refuse(payload: bytes) -> shipment.Shipment:
    raise shipment.ShipmentError(f"{len(payload)} bytes")


def test_what_an_operator_skips_is_made_up_for_by_a_state(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shipment, "unpack", _refuse)
            await a.play.signal(name="one")
            await asyncio.sleep(1.0)
        await a.play.signal(name="two")
        await asyncio.sleep(1.0)
        [(host, workflow)] = [
            (host, workflow)
            for host in b.play.node.shards
            if host.streams is not None
            for workflow in host.streams.conflicts.quarantined
        ]
        assert host.streams is not None
        assert host.streams.conflicts.skip(workflow)
        await world.same()
        assert await signals(b.play) == ["one", "two"]

    play_regions(seed, 2, story)


def test_a_deleted_run_does_not_come_back(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.signal(name="to nobody")
        b.take_over()
        request = wire.DeleteWorkflowExecutionRequest(namespace="default")
        request.workflow_execution.workflow_id = "w"
        await b.play.call(request)
        await b.play.settle()
        world.heal()
        await world.same()
        assert not [key for key in b.play.rows() if key[:1] in (keys.RUN, keys.CURRENT, keys.HISTORY)]

    play_regions(seed, 2, story)


def test_a_region_that_is_new_gets_a_copy_while_runs_go_on(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conflicts, "COPY_BYTES", 1)

    async def story(world: World) -> None:
        a, b = world.places
        for number in range(12):
            await a.play.first(activity(), workflow_id=f"w{number}")
        failures: list[object] = []
        pieces = 0
        for theirs in a.play.node.shards:
            assert theirs.streams is not None
            begun, first = theirs.streams.end(), 0
            while first < keys.SLOTS:
                copied = theirs.streams.conflicts.states(a.play.node.meta.by_name["default"].id, first)
                pieces += 1
                first = copied.after
                await a.play.signal(f"w{pieces % 12}", f"meanwhile{pieces}")
                for ours in b.play.node.shards:
                    assert ours.streams is not None
                    slots = b.play.node.ranges[ours.group.id]
                    source = Source(a.index, theirs.group.id)
                    for workflow, data in [*copied.states, *copied.states]:  # a piece may come twice
                        ours.streams.conflicts.store_state(workflow, source, 0, data, slots, failures.append)
            for ours in b.play.node.shards:
                assert ours.streams is not None
                ours.streams.jump(Source(a.index, theirs.group.id), begun, failures.append)
        assert pieces > 6
        assert not any(failures)
        world.start()
        await world.same()
        assert len([key for key in b.play.rows() if key[:1] == keys.CURRENT]) == 12

    play_regions(seed, 2, story)


def test_a_run_begun_where_the_one_before_had_another_end_loses(seed: int) -> None:
    async def story(world: World) -> None:
        a, b = world.places
        world.start()
        first = await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        await a.play.terminate()
        request = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id="w", request_id="another"
        )
        request.workflow_type.name = "W"
        request.task_queue.name = "q"
        second = (await a.play.call(request)).run_id
        b.take_over()
        await b.play.signal()
        await b.play.next(done())
        world.heal()
        await world.same()
        for place in (a, b):
            described = await place.play.describe("w")
            assert described.workflow_execution_info.execution.run_id == first
            assert described.workflow_execution_info.status == 2
            lost = await place.play.describe("w", second)
            assert lost.workflow_execution_info.status == 5

    play_regions(seed, 2, story)


def test_what_one_region_has_seen_to_another_does_not_keep(seed: int) -> None:
    async def story(world: World) -> None:
        a, b, c = world.places
        world.start()
        await a.play.first(timer(seconds=3600))
        await world.same()
        world.part(a, b)
        world.part(a, c)
        await a.play.cancel()
        b.take_over()
        await b.play.signal(name="new")
        a.active = False
        a.wire.cut.discard(2)
        b.wire.cut.discard(1)
        a.end.up(2, 1)
        b.end.up(1, 1)
        await asyncio.sleep(10.0)
        assert (await c.play.table("w")).count("CancelRequested") == 1
        world.heal()
        await world.same()
        assert c.pending() == 0, "it hears of the first request after the second"

    play_regions(seed, 3, story)
