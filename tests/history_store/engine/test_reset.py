"""Resets: what the new run takes over, what it does again, and what becomes of the old one."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.common.v1.message_pb2 import RetryPolicy
from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2, reset_pb2, update_pb2
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.workflow.v1.message_pb2 import PostResetOperation

from history_store.engine import activity as activities
from history_store.engine import children, updates, workflow_task
from history_store.engine import state as st
from history_store.engine.errors import Code, ServiceError
from history_store.engine.reset import Reset, made_by
from history_store.engine.run import Run
from tests.history_store.engine.world import (
    World,
    accept_message,
    admit,
    application_failure,
    complete_workflow,
    continue_as_new,
    payloads,
    reject_message,
    response_message,
    schedule_activity,
    seconds,
    sent_request,
    signal_external,
    start_child,
    start_timer,
)

E = event_type_pb2
R = reset_pb2


def names(events: list[HistoryEvent]) -> list[str]:
    return [E.EventType.Name(event.event_type).removeprefix("EVENT_TYPE_") for event in events]


def one_task(world: World, run: Run, *wanted: Any) -> Run:
    """The worker takes and completes a workflow task."""
    world.start_task(run)
    return world.complete_task(run, *wanted)


def wanted(finish_id: int = 4, **more: Any) -> Reset:
    return Reset(finish_id, "because", more.pop("request_id", "reset-1"), **more)


def events_after(world: World, run: Run, first: int) -> list[HistoryEvent]:
    return [event for event in world.events(run) if event.event_id >= first]


def test_the_new_run_begins_with_the_old_ones_history() -> None:
    world = World()
    base = world.start(workflow_run_timeout=seconds(100))
    base = one_task(world, base, start_timer("t", 50))
    world.advance(7)
    run = world.reset(base, wanted())
    before, after = world.events(base), world.events(run)
    assert after[:3] == before[:3]
    assert names(after[3:]) == ["WORKFLOW_TASK_FAILED", "WORKFLOW_TASK_SCHEDULED"]
    failed = after[3].workflow_task_failed_event_attributes
    assert failed.cause == failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW
    assert (failed.base_run_id, failed.new_run_id) == (base.state.run_id, run.state.run_id)
    assert (failed.scheduled_event_id, failed.started_event_id) == (2, 3)
    assert failed.failure.message == "because"
    assert failed.failure.HasField("reset_workflow_failure_info")
    assert not run.timers, "the timer was started after the point"
    state = run.state
    assert (state.first_run_id, state.original_run_id) == (base.state.run_id, base.state.run_id)
    assert (state.start_time, state.original_start_time) == (world.now, base.state.start_time)
    assert state.run_expiration == world.now + 100 * st.SECOND
    assert state.task is not None
    assert state.task.attempt == 1


def test_the_open_run_is_terminated() -> None:
    world = World()
    base = one_task(world, world.start())
    run = world.reset(base, wanted())
    assert base.state.status == st.TERMINATED
    last = world.events(base)[-1].workflow_execution_terminated_event_attributes
    assert (last.reason, last.identity) == ("because", "history-resetter")
    assert base.state.reset_run_id == run.state.run_id
    assert world.find("wf") is run


def test_a_closed_run_is_reset_as_it_is() -> None:
    world = World()
    base = one_task(world, world.start(), complete_workflow())
    run = world.reset(base, wanted())
    assert base.state.status == st.COMPLETED
    assert base.state.reset_run_id == run.state.run_id
    assert world.find("wf") is run
    run = one_task(world, run, complete_workflow())
    assert run.state.status == st.COMPLETED


@pytest.mark.parametrize("finish_id", [0, 1, 6])
def test_an_event_outside_the_history(finish_id: int) -> None:
    world = World()
    base = one_task(world, world.start(), start_timer("t", 5))
    with pytest.raises(ServiceError, match="Workflow task finish ID must be > 1") as refused:
        world.reset(base, wanted(finish_id))
    assert refused.value.code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize(("finish_id", "allowed"), [(2, False), (3, True), (4, True), (5, False)])
def test_only_where_a_workflow_task_is_under_way(finish_id: int, allowed: bool) -> None:
    world = World()
    base = one_task(world, world.start(), start_timer("t", 5))
    if allowed:
        run = world.reset(base, wanted(finish_id))
        assert names(world.events(run))[1:4] == [
            "WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_FAILED",
        ]  # fmt: skip
        return
    with pytest.raises(ServiceError, match="Can only reset workflow to event ID in range"):
        world.reset(base, wanted(finish_id))
    found = world.find("wf")
    assert found is not None
    assert found.running, "a refused reset changes nothing"


def test_after_a_failed_workflow_task() -> None:
    """The attempt that was to follow is written, and fails because of the reset."""
    world = World()
    base = world.start()
    world.start_task(base)
    task = base.state.task
    assert task is not None
    cause = failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
    world.transact(lambda tx: workflow_task.fail(tx, tx.open(base), task, cause, application_failure(), "w"))
    world.signal(base)
    run = world.reset(base, wanted(5))
    assert names(world.events(run)[4:]) == [
        "WORKFLOW_TASK_SCHEDULED", "WORKFLOW_TASK_STARTED", "WORKFLOW_TASK_FAILED",
        "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip


# ---- what came from outside


@pytest.mark.parametrize(
    ("more", "kept"),
    [
        ({}, True),
        ({"reapply": R.RESET_REAPPLY_TYPE_SIGNAL}, True),
        ({"reapply": R.RESET_REAPPLY_TYPE_NONE}, False),
        ({"exclude": [R.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL]}, False),
        ({"exclude": [R.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE]}, True),
    ],
)
def test_signals(more: dict[str, Any], kept: bool) -> None:
    world = World()
    base = one_task(world, world.start())
    world.signal(base, "before-the-end", "r1")
    world.start_task(base)
    world.signal(base, "buffered", "r2")
    run = world.reset(base, wanted(**more))
    found = [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in world.events(run)
        if event.event_type == E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
    assert found == (["before-the-end", "buffered"] if kept else [])
    assert run.signal_ids == ({"r1", "r2"} if kept else set())


def test_signals_of_the_runs_that_continued_it() -> None:
    world = World()
    base = one_task(world, world.start(), continue_as_new())
    second = world.find("wf")
    assert second is not None
    world.signal(second, "to-the-second")
    second = one_task(world, second, continue_as_new())
    third = world.find("wf")
    assert third is not None
    world.signal(third, "to-the-third")
    run = world.reset(base, wanted())
    assert third.state.status == st.TERMINATED
    assert not third.state.reset_run_id
    assert [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in world.events(run)
        if event.event_type == E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ] == ["to-the-second", "to-the-third"]


def with_accepted_update(world: World) -> Run:
    """A run whose second workflow task accepted update u."""
    base = one_task(world, world.start())
    admit(world, base, "u")
    messages = world.start_task(base)
    return world.complete_task(base, messages=[accept_message(m) for m in messages])


def test_updates_are_admitted_again() -> None:
    world = World()
    base = with_accepted_update(world)
    run = world.reset(base, wanted())
    admitted = world.events(run)[-2].workflow_execution_update_admitted_event_attributes
    assert admitted.request.meta.update_id == "u"
    assert admitted.request.input.name == "U"
    assert admitted.origin == update_pb2.UPDATE_ADMITTED_EVENT_ORIGIN_REAPPLY
    world.restart()
    again = world.find("wf")
    assert again is not None
    assert not world.start_task(again), "the worker reads it in the history"
    again = world.complete_task(again, messages=[accept_message(sent_request("u")), response_message("u")])
    assert again.updates_state["u"].stage == updates.COMPLETED
    accepted = world.events(again)[-2].workflow_execution_update_accepted_event_attributes
    assert not accepted.HasField("accepted_request"), "its admission has the request"


def test_an_update_that_is_rejected_after_the_reset_is_forgotten() -> None:
    world = World()
    run = world.reset(with_accepted_update(world), wanted())
    world.start_task(run)
    run = world.complete_task(run, messages=[reject_message(sent_request("u"))])
    assert not run.updates_state
    assert run.task is None, "nothing waits to be sent"
    world.restart()
    again = world.find("wf")
    assert again is not None
    assert not again.updates_state


def test_updates_can_be_left_out() -> None:
    world = World()
    run = world.reset(with_accepted_update(world), wanted(exclude=[R.RESET_REAPPLY_EXCLUDE_TYPE_UPDATE]))
    assert not run.updates_state


# ---- what was under way


def test_pending_activities_begin_anew() -> None:
    world = World()
    base = one_task(world, world.start(), schedule_activity("a", retry_policy=RetryPolicy()))
    activity = next(iter(base.activities.values()))
    world.transact(lambda tx: activities.start(tx, tx.open(base), activity, "r", "w"))
    world.transact(lambda tx: activities.fail(tx, tx.open(base), activity, application_failure(), "w"))
    world.signal(base)
    base = one_task(world, base)
    world.advance(3)
    point = base.state.last_completed_id
    run = world.reset(base, wanted(point))
    again = run.activities[activity.scheduled_id]
    assert (again.attempt, again.started_id, again.scheduled_time) == (1, 0, world.now)
    assert world.rows.get(again.task_key) is not None
    world.transact(lambda tx: activities.start(tx, tx.open(run), again, "r", "w"))
    world.transact(lambda tx: activities.complete(tx, tx.open(run), again, payloads("x"), "w"))


def test_timers_keep_their_time() -> None:
    world = World()
    base = one_task(world, world.start(), start_timer("t", 10))
    world.signal(base)
    base = one_task(world, base)
    run = world.reset(base, wanted(base.state.last_completed_id))
    world.advance(11)
    run_events = names(world.events(run))
    assert run_events.count("TIMER_FIRED") == 1


def parent_with_child(world: World, started: bool) -> tuple[Run, st.ChildState]:
    base = one_task(world, world.start(), start_child("child"))
    child = next(iter(base.children.values()))
    if started:
        world.transact(lambda tx: children.child_started(tx, tx.open(base), child, world.new_id()))
    else:
        world.signal(base)
    return one_task(world, base), child


def test_a_child_goes_on_with_the_new_run() -> None:
    world = World()
    base, child = parent_with_child(world, started=True)
    world.actions.clear()
    run = world.reset(base, wanted(base.state.last_completed_id))
    assert run.children[child.initiated_id].run_id == child.run_id
    assert not world.actions, "neither closed by the old run's end nor started again"
    world.transact(
        lambda tx: children.child_closed(
            tx, tx.open(run), run.children[child.initiated_id], st.COMPLETED, b"", child.run_id
        )
    )
    assert not run.children


def test_a_child_that_ended_meanwhile() -> None:
    world = World()
    base, child = parent_with_child(world, started=True)
    point = base.state.last_completed_id
    world.transact(
        lambda tx: children.child_closed(tx, tx.open(base), child, st.COMPLETED, b"", child.run_id)
    )
    run = world.reset(base, wanted(point))
    assert not run.children
    done = world.events(run)[-2].child_workflow_execution_completed_event_attributes
    assert done.initiated_event_id == child.initiated_id
    assert names([world.events(run)[done.started_event_id - 1]]) == ["CHILD_WORKFLOW_EXECUTION_STARTED"]


def test_a_child_not_yet_started_is_asked_for_again_with_the_same_id() -> None:
    world = World()
    base, child = parent_with_child(world, started=False)
    world.actions.clear()
    run = world.reset(base, wanted(base.state.last_completed_id))
    [(_, action)] = world.actions
    assert (action.kind, action.request_id, action.run_id) == (
        "start_child",
        child.request_id,
        run.state.run_id,
    )
    assert world.load_event(run, action.batch_id, action.event_id).event_id == child.initiated_id


def test_a_signal_to_another_workflow_is_sent_again_with_the_same_id() -> None:
    world = World()
    base = one_task(world, world.start(), signal_external("other"))
    sent = world.actions[-1][1].request_id
    world.signal(base)
    base = one_task(world, base)
    world.actions.clear()
    world.reset(base, wanted(base.state.last_completed_id))
    [(_, action)] = world.actions
    assert (action.kind, action.request_id, action.target_workflow_id) == ("signal", sent, "other")


def test_the_parent_of_a_run_that_is_reset_hears_of_no_end() -> None:
    world = World()
    base = world.start()
    base.state.parent_workflow_id = "parent"
    base = one_task(world, base)
    world.actions.clear()
    world.reset(base, wanted())
    assert not world.actions


# ---- the request


def test_the_same_request_is_known() -> None:
    world = World()
    base = one_task(world, world.start(request_id="start-1"))
    assert not made_by(base, "reset-1")
    run = world.reset(base, wanted())
    assert made_by(run, "reset-1")
    assert not made_by(run, "start-1")
    assert run.state.start_request_id == "start-1", "a start that is retried finds the new run"


def test_operations_on_the_new_run() -> None:
    world = World()
    base = one_task(world, world.start())
    signal, change = PostResetOperation(), PostResetOperation()
    signal.signal_workflow.signal_name = "go"
    change.update_workflow_options.workflow_execution_options.priority.priority_key = 2
    change.update_workflow_options.update_mask.paths.append("priority")
    run = world.reset(base, wanted(operations=[signal, change]))
    assert names(events_after(world, run, 5)) == [
        "WORKFLOW_EXECUTION_SIGNALED", "WORKFLOW_EXECUTION_OPTIONS_UPDATED", "WORKFLOW_TASK_SCHEDULED",
    ]  # fmt: skip
    assert run.state.priority


def test_a_reset_run_can_be_reset() -> None:
    world = World()
    base = one_task(world, world.start())
    world.signal(base, "one")
    second = world.reset(base, wanted())
    world.signal(second, "two")
    second = one_task(world, second)
    third = world.reset(second, wanted(request_id="reset-2"))
    assert names(world.events(third)).count("WORKFLOW_EXECUTION_SIGNALED") == 2
    assert third.state.original_run_id == base.state.run_id
    assert third.state.first_run_id == base.state.run_id
