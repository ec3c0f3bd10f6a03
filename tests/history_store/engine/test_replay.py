"""What is written of a run is what replaying its history gives; and what is in memory is what is in rows."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from temporalio.api.workflow.v1.message_pb2 import ResetPoints

from history_store.engine import deadlines
from history_store.engine.replay import HistoryBroken, replay
from history_store.engine.run import Run
from history_store.engine.state import WFT_SPECULATIVE, ActivityState, RunState, WorkflowTask
from history_store.shard import runs
from tests.history_store.engine.player import Player
from tests.history_store.engine.world import (
    NAMESPACE,
    RETENTION,
    World,
    complete_workflow,
    schedule_activity,
)

STEPS = 150

# What no event tells: counters of attempts and writes, who waits, what was promised to a worker's cache.
UNWRITTEN = frozenset((
    "task", "task_stamp", "task_attempt", "task_last_failure", "task_last_cause", "sticky_queue",
    "sticky_timeout", "cancel_request_id", "buffered_count", "transitions", "wake", "first_backoff_until",
    "original_start_time", "earlier_starts",
))  # fmt: skip
SCHEDULED = (
    "scheduled_id", "batch_id", "activity_id", "activity_type", "first_scheduled_time", "retry_policy",
    "priority", "cancel_requested", "cancel_requested_id", "schedule_to_close", "start_to_close",
    "schedule_to_start", "heartbeat_timeout", "task_queue", "expiration",
)  # fmt: skip
TASK = ("scheduled_id", "attempt", "started_id", "started_time", "request_id", "identity")


def core(state: RunState) -> dict[str, Any]:
    """The fields that events tell."""
    fields = {f: getattr(state, f) for f in state.__struct_fields__ if f not in UNWRITTEN}
    points = ResetPoints.FromString(state.reset_points)
    for point in points.points:
        # A child that ended while the task ran counts as gone in the engine, and as pending in the history.
        point.resettable = False
    fields["reset_points"] = points
    return fields


def scheduled(activity: ActivityState) -> dict[str, Any]:
    return {f: getattr(activity, f) for f in SCHEDULED}


def without_request(item: Any) -> dict[str, Any]:
    return {f: getattr(item, f) for f in item.__struct_fields__ if f != "request_id"}


def written_task(task: WorkflowTask | None) -> dict[str, Any] | None:
    """The workflow task, where its events are written."""
    if task is None or task.kind == WFT_SPECULATIVE or task.attempt > 1:
        return None
    return {f: getattr(task, f) for f in TASK}


def replayed(world: World, run: Run) -> Run:
    return replay(NAMESPACE, run.state.run_id, world.batches(run), run.state.start_request_id, world.new_id)


def check_replay(world: World, run: Run) -> None:
    """Replaying the run's whole history comes to the same state."""
    # The replay reads what is written: buffered events and what hangs on them are not.
    if run.buffered:
        return
    again = replayed(world, run)
    assert core(again.state) == core(run.state)
    assert {k: scheduled(a) for k, a in again.activities.items()} == {
        k: scheduled(a) for k, a in run.activities.items()
    }
    assert again.activity_ids == run.activity_ids
    assert again.timers == run.timers
    for mine, theirs in ((again.children, run.children), (again.external, run.external)):
        assert {k: without_request(c) for k, c in mine.items()} == {
            k: without_request(c) for k, c in theirs.items()
        }
    assert again.updates_state == run.updates_state
    assert again.signal_ids == run.signal_ids
    assert written_task(again.state.task) == written_task(run.state.task)


def check_rows(world: World, run: Run) -> None:
    """A new leader would find the run as this one has it."""
    state = run.state
    fresh = runs.load(world.rows, NAMESPACE, state.workflow_id, state.run_id, RETENTION)
    assert fresh is not None
    mine = msgspec.structs.replace(state)
    if mine.task is not None and mine.task.kind == WFT_SPECULATIVE:
        mine.task = None
    assert fresh.state == mine
    for name in (
        "activities",
        "activity_ids",
        "timers",
        "children",
        "external",
        "updates_state",
        "signal_ids",
    ):
        assert getattr(fresh, name) == getattr(run, name), name
    assert fresh.buffered == run.buffered
    assert fresh.buffered_rows == run.buffered_rows
    if state.task is None or state.task.kind != WFT_SPECULATIVE:
        assert fresh.next_due() == run.next_due()
    due = fresh.next_due()
    assert not due or 0 < state.wake <= due, "a run that waits for something has a wake row"


def check_history(world: World, run: Run) -> None:
    events = world.events(run)
    assert [e.event_id for e in events] == list(range(1, run.state.next_event_id))
    for event in events:
        attributes = getattr(event, str(event.WhichOneof("attributes")))
        for name in ("scheduled_event_id", "started_event_id", "initiated_event_id", "accepted_event_id"):
            reference = getattr(attributes, name, 0)
            assert 0 <= reference < event.event_id, f"{name} of event {event.event_id}"


@pytest.mark.parametrize("admin", [False, True])
def test_what_is_written_is_what_was_known(seed: int, admin: bool) -> None:
    world = World(seed)
    player = Player(world, random.Random(seed), admin)
    for _ in range(STEPS):
        player.step()
        for run in world.every_run():
            check_rows(world, run)
    for run in world.every_run():
        check_history(world, run)
        if admin:
            replayed(
                world, run
            )  # what operators do is not all in the history, but the history holds together
        else:
            check_replay(world, run)


def test_replay_at_every_batch(seed: int) -> None:
    """After each transaction, not only at the end."""
    world = World(seed)
    player = Player(world, random.Random(seed))
    for _ in range(STEPS // 2):
        player.step()
        for run in world.every_run():
            check_replay(world, run)


def test_same_seed_same_rows(seed: int) -> None:
    def play() -> dict[bytes, bytes]:
        world = World(seed)
        player = Player(world, random.Random(seed))
        for _ in range(40):
            player.step()
        rows: dict[bytes, bytes] = world.rows.data
        return rows

    assert play() == play()


def test_deadlines_of_a_replayed_run_are_armed_anew() -> None:
    world = World()
    run = world.start()
    world.start_task(run)
    world.complete_task(run, schedule_activity("a", schedule_to_start_timeout={"seconds": 7}))
    again = replayed(world, run)
    deadlines.rebuild(again, RETENTION)
    assert again.next_due() == world.now + 7_000_000_000


def test_a_history_must_be_whole() -> None:
    world = World()
    run = world.start()
    world.start_task(run)
    world.complete_task(run, complete_workflow())
    first, *rest = world.batches(run)
    with pytest.raises(HistoryBroken, match="begins with"):
        replay(NAMESPACE, run.state.run_id, rest, "r", world.new_id)
    with pytest.raises(HistoryBroken, match="was to follow"):
        replay(NAMESPACE, run.state.run_id, [first, rest[-1]], "r", world.new_id)
