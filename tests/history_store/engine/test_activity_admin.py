"""Pausing, resetting and changing pending activities: what waits, what runs, and what comes next."""

from __future__ import annotations

import json
from typing import Any

import pytest
from temporalio.api.activity.v1.message_pb2 import ActivityOptions
from temporalio.api.common.v1.message_pb2 import RetryPolicy, SearchAttributes
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue

from history_store.engine import activity as activities
from history_store.engine import activity_admin as admin
from history_store.engine import state as st
from history_store.engine.errors import Code, ServiceError
from history_store.engine.run import Run
from history_store.engine.state import ActivityState
from tests.history_store.engine.world import World, application_failure, payloads, schedule_activity, seconds

NEGATIVE = RetryPolicy(maximum_attempts=-1)


class Scene:
    """One run with one activity."""

    def __init__(self, **fields: Any) -> None:
        self.world = World()
        self.run: Run = self.world.start()
        self.world.start_task(self.run)
        self.world.complete_task(self.run, schedule_activity("a", **fields))
        self.events = len(self.world.events(self.run))

    @property
    def activity(self) -> ActivityState:
        return next(iter(self.run.activities.values()))

    @property
    def waiting(self) -> bool:
        """Whether a worker could have its task."""
        return bool(self.activity.task_key) and self.world.rows.get(self.activity.task_key) is not None

    def do(self, change: Any, *args: Any, **fields: Any) -> Any:
        return self.world.transact(lambda tx: change(tx, tx.open(self.run), self.activity, *args, **fields))

    def pause(self, request_id: str = "p") -> None:
        self.do(admin.pause, "operator", "why", request_id)

    def start(self) -> None:
        self.do(activities.start, "r", "w")

    def fail(self) -> None:
        self.do(activities.fail, application_failure(), "w")

    def unwritten(self) -> bool:
        return len(self.world.events(self.run)) == self.events


# ---- pause


def test_a_waiting_task_is_withdrawn_and_offered_again() -> None:
    scene = Scene()
    stamp = scene.activity.stamp
    assert scene.waiting
    scene.pause()
    assert not scene.waiting
    assert scene.activity.stamp != stamp, "a task that is on its way to a worker is void"
    scene.do(admin.unpause)
    assert scene.waiting
    assert scene.unwritten()


def test_unpause_within_jitter() -> None:
    scene = Scene()
    scene.pause()
    scene.do(admin.unpause, jitter=10 * st.SECOND)
    assert not scene.waiting
    assert scene.world.now < scene.activity.backoff_until < scene.world.now + 10 * st.SECOND
    scene.world.advance(10)
    assert scene.waiting


def test_an_attempt_that_runs_may_end() -> None:
    scene = Scene()
    scene.start()
    stamp = scene.activity.stamp
    scene.pause()
    assert scene.activity.stamp == stamp
    found = activities.find(scene.run, scene.activity.scheduled_id, "", stamp)
    assert found.paused
    scene.do(activities.complete, payloads("x"), "w")
    assert not scene.run.activities


def test_a_failed_attempt_waits_while_paused() -> None:
    scene = Scene()
    scene.start()
    scene.pause()
    scene.fail()
    scene.world.advance(1_000)
    assert (scene.activity.attempt, scene.activity.started_id, scene.waiting) == (2, 0, False)
    scene.do(admin.unpause)
    assert scene.waiting


def test_a_failure_that_may_not_be_retried_ends_it_all_the_same() -> None:
    scene = Scene()
    scene.start()
    scene.pause()
    scene.do(activities.fail, application_failure(non_retryable=True), "w")
    assert not scene.run.activities


def test_time_stands_still_while_paused() -> None:
    scene = Scene(schedule_to_close_timeout=seconds(60), schedule_to_start_timeout=seconds(5))
    scene.pause()
    scene.world.advance(30)
    assert scene.run.activities
    scene.do(admin.unpause)
    scene.world.advance(6)
    assert not scene.run.activities, "schedule-to-start counts from the unpause"


def test_a_dead_worker_of_a_paused_activity_is_noticed() -> None:
    scene = Scene(heartbeat_timeout=seconds(2))
    scene.start()
    scene.pause()
    scene.world.advance(3)
    assert (scene.activity.started_id, scene.activity.attempt) == (0, 2)


def test_the_same_pause_twice_is_one() -> None:
    scene = Scene()
    scene.pause("p1")
    scene.pause("p1")
    with pytest.raises(ServiceError, match="activity is already paused") as refused:
        scene.pause("p2")
    assert refused.value.code == Code.FAILED_PRECONDITION


def test_pauses_can_be_searched_for() -> None:
    scene = Scene()

    def shown() -> list[str]:
        fields = SearchAttributes.FromString(scene.run.state.search_attributes).indexed_fields
        return list(json.loads(fields["TemporalPauseInfo"].data)) if "TemporalPauseInfo" in fields else []

    scene.pause()
    assert shown() == ["property:activityType=A"]
    scene.do(admin.unpause)
    assert shown() == []
    scene.start()
    scene.pause()
    scene.do(activities.complete, None, "w")
    assert shown() == []


def test_unpause_can_reset() -> None:
    scene = Scene()
    scene.start()
    scene.do(activities.heartbeat, payloads("so far"))
    scene.fail()
    scene.pause()
    scene.do(admin.unpause, reset_attempts=True, reset_heartbeat=True)
    assert (scene.activity.attempt, scene.activity.heartbeat_details) == (1, b"")


# ---- reset


def test_a_waiting_retry_begins_at_once() -> None:
    scene = Scene()
    for _ in range(3):
        scene.world.advance(10)
        scene.start()
        scene.fail()
    assert not scene.waiting
    scene.do(admin.reset)
    assert scene.waiting
    assert scene.activity.attempt == 1
    assert scene.unwritten()


def test_a_running_attempt_is_told_and_may_still_answer() -> None:
    scene = Scene()
    scene.start()
    scene.fail()
    scene.world.advance(10)
    scene.start()
    stamp = scene.activity.stamp
    scene.do(admin.reset)
    assert scene.activity.activity_reset
    assert activities.find(scene.run, scene.activity.scheduled_id, "", stamp) is scene.activity
    scene.fail()
    assert not scene.activity.activity_reset
    assert scene.activity.attempt == 2, "the attempt that ran counts as the first"
    with pytest.raises(ServiceError):
        activities.find(scene.run, scene.activity.scheduled_id, "", stamp)


def test_reset_respects_the_last_attempt() -> None:
    scene = Scene(attempts=1)
    scene.start()
    scene.do(admin.reset)
    scene.fail()
    assert not scene.run.activities


def test_heartbeats_are_forgotten_with_the_next_attempt() -> None:
    scene = Scene()
    scene.start()
    scene.do(activities.heartbeat, payloads("so far"))
    scene.do(admin.reset, reset_heartbeat=True)
    assert scene.activity.heartbeat_details, "the running attempt goes on"
    scene.fail()
    assert scene.activity.heartbeat_details == b""


def test_reset_lets_go_on_unless_told_otherwise() -> None:
    scene = Scene()
    scene.pause()
    scene.do(admin.reset, keep_paused=True)
    assert scene.activity.paused
    assert not scene.waiting
    scene.do(admin.reset)
    assert not scene.activity.paused
    assert scene.waiting


# ---- options


def change(scene: Scene, options: ActivityOptions, *paths: str) -> ActivityOptions:
    made: ActivityOptions = scene.do(admin.update_options, options, paths)
    return made


def test_only_what_the_mask_names_changes() -> None:
    scene = Scene(heartbeat_timeout=seconds(3))
    options = ActivityOptions(start_to_close_timeout=seconds(99), heartbeat_timeout=seconds(1))
    now = change(scene, options, "start_to_close_timeout")
    assert now.start_to_close_timeout == seconds(99)
    assert now.heartbeat_timeout == seconds(3)
    assert scene.activity.start_to_close == 99 * st.SECOND
    assert scene.unwritten()


@pytest.mark.parametrize("path", ["task_queue.name", "taskQueue.name", "TaskQueue.Name"])
def test_a_waiting_task_moves_to_another_queue(path: str) -> None:
    scene = Scene()
    before = scene.activity.task_key
    change(scene, ActivityOptions(task_queue=TaskQueue(name="elsewhere")), path)
    assert scene.world.rows.get(before) is None
    assert scene.waiting
    assert b"elsewhere" in scene.activity.task_key


def test_a_retry_is_reckoned_anew() -> None:
    scene = Scene()
    scene.start()
    scene.fail()
    options = ActivityOptions(
        retry_policy=RetryPolicy(initial_interval=seconds(20), maximum_interval=seconds(100))
    )
    change(scene, options, "retry_policy.initial_interval", "retry_policy.maximum_interval")
    assert scene.activity.backoff_until == scene.world.now + 20 * st.SECOND
    change(
        scene,
        ActivityOptions(retry_policy=RetryPolicy(initial_interval=seconds(0.001))),
        "retryPolicy.initialInterval",
    )
    scene.world.advance(0.1)
    assert scene.waiting


def test_a_running_attempt_gets_the_new_time_outs() -> None:
    scene = Scene()
    scene.start()
    stamp = scene.activity.stamp
    change(scene, ActivityOptions(start_to_close_timeout=seconds(1)), "start_to_close_timeout")
    assert activities.find(scene.run, scene.activity.scheduled_id, "", stamp) is scene.activity
    scene.world.advance(2)
    assert scene.activity.attempt == 2


def test_a_paused_activity_stays_paused() -> None:
    scene = Scene()
    scene.pause()
    change(scene, ActivityOptions(task_queue=TaskQueue(name="elsewhere")), "task_queue.name")
    assert not scene.waiting


def test_options_are_restored() -> None:
    scene = Scene()
    was = admin.current_options(scene.activity)
    change(scene, ActivityOptions(start_to_close_timeout=seconds(99), task_queue=TaskQueue(name="elsewhere")),
           "start_to_close_timeout", "task_queue.name")  # fmt: skip
    scene.do(admin.restore_options)
    assert admin.current_options(scene.activity) == was


@pytest.mark.parametrize(
    ("options", "path", "message"),
    [
        (ActivityOptions(), "retry_policy", "RetryPolicy is not provided"),
        (ActivityOptions(), "priority.priority_key", "Priority is not provided"),
        (ActivityOptions(), "task_queue.name", "TaskQueue is not provided"),
        (
            ActivityOptions(),
            "start_to_close_timeout",
            "a valid StartToCloseTimeout or",
        ),
        (
            ActivityOptions(retry_policy=RetryPolicy(maximum_attempts=-1)),
            "retry_policy.maximum_attempts",
            "MaximumAttempts",
        ),
        (ActivityOptions(heartbeat_timeout=seconds(-1)), "heartbeat_timeout", "HeartbeatTimeout"),
    ],
)
def test_options_that_do_not_fit(options: ActivityOptions, path: str, message: str) -> None:
    scene = Scene()
    with pytest.raises(ServiceError, match=message) as refused:
        change(scene, options, path)
    assert refused.value.code == Code.INVALID_ARGUMENT
    found = scene.world.find("wf")
    assert found is not None
    assert next(iter(found.activities.values())).start_to_close == 10 * st.SECOND


def test_which_activities_are_meant() -> None:
    scene = Scene()
    assert admin.chosen(scene.run, activity_id="a") == [scene.activity]
    assert admin.chosen(scene.run, activity_type="A") == [scene.activity]
    assert admin.chosen(scene.run, everything=True) == [scene.activity]
    for activity_id, activity_type in (("b", ""), ("", "B")):
        with pytest.raises(ServiceError, match="Can't find pending activity") as refused:
            admin.chosen(scene.run, activity_id, activity_type)
        assert refused.value.code == Code.NOT_FOUND
