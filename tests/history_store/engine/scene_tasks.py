"""Scenes: workflow tasks, and what waits for them."""

from __future__ import annotations

from temporalio.api.enums.v1 import failed_cause_pb2
from temporalio.api.query.v1.message_pb2 import WorkflowQueryResult
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.frontend.services.conftest import FakeConnection
from tests.cluster.hosting.play import activity, child, command, done, execution, payloads, timer
from tests.history_store.engine.story import Story


async def events_while_a_task_is_held(story: Story) -> None:
    """They get their ids when it ends: signals first, then what ended, each behind its start."""
    play = story.play
    await play.first(activity("a"), timer("t", 3), child())
    held = await play.activity()
    task = await play.poll()
    await play.signal(name="one")
    await play.activity_done(held.task_token)
    await play.advance(3)
    await play.next(done(), queue="cq")
    await play.cancel()
    await play.signal(name="two")
    await story.tell()
    await play.complete(task.task_token, timer("second"))
    await story.tell()


async def a_close_that_has_not_seen_everything(story: Story) -> None:
    """The run does not end over a signal that its worker has not seen."""
    play = story.play
    await play.start("w")
    task = await play.poll()
    await play.signal()
    await story.ask(
        wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[done()]
        )
    )
    await story.tell()
    await play.next(done())
    await story.tell()


async def a_timer_cancelled_after_it_fired(story: Story) -> None:
    """It fired while the task was held; the command takes the event back before anybody saw it."""
    play = story.play
    await play.first(timer("t", 3), timer("other", 3))
    await play.signal()
    task = await play.poll()
    await play.advance(3)
    await play.complete(task.task_token, command("CANCEL_TIMER", timer_id="t"))
    await story.tell()


async def tasks_that_fail(story: Story) -> None:
    """The first failure is an event, later ones are silent; a signal between makes it count anew."""
    play = story.play
    await play.start("w")
    for number in range(3):
        task = await play.poll()
        story.say(f"attempt {task.attempt}, last event {task.history.events[-1].event_id}")
        await play.call(
            wire.RespondWorkflowTaskFailedRequest(
                namespace="default",
                task_token=task.task_token,
                cause=failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR,
            )
        )
        if number == 1:
            await play.signal()
    await story.tell()
    task = await play.next(done())
    story.say(f"attempt {task.attempt}")
    await story.tell()


async def tasks_that_time_out(story: Story) -> None:
    """The same for workers that say nothing; a signal meanwhile is buffered and gets its place."""
    play = story.play
    await play.call(_start(task_seconds=4))
    await play.poll()
    await play.signal()
    await play.advance(4)
    await play.poll()
    await play.advance(4)
    task = await play.poll()
    story.say(f"attempt {task.attempt}")
    await play.advance(4)
    await story.tell()
    await play.next()
    await story.tell()


def _start(task_seconds: int) -> wire.StartWorkflowExecutionRequest:
    request = wire.StartWorkflowExecutionRequest(namespace="default", workflow_id="w", request_id="r")
    request.workflow_type.name = "W"
    request.task_queue.name = "q"
    request.workflow_task_timeout.seconds = task_seconds
    return request


async def commands_that_do_not_fit(story: Story) -> None:
    """Each rule fails the task with a cause of its own; nothing of the answer is kept."""
    play = story.play
    long = "x" * 1001
    bad = {
        "activity without an id": [activity("")],
        "activity without a time-out": [activity("a", start_to_close_timeout={})],
        "two activities of one id": [activity("a"), activity("a")],
        "timer without an id": [timer("")],
        "timer of no duration": [timer("t", 0)],
        "timer of negative duration": [timer("t", -1)],
        "two timers of one id": [timer("t"), timer("t")],
        "cancel of a timer that is not": [command("CANCEL_TIMER", timer_id="none")],
        "cancel of an activity that is not": [command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=77)],
        "marker without a name": [command("RECORD_MARKER")],
        "child without an id": [child("")],
        "child with a long id": [child(long)],
        "child in an unknown namespace": [child("c", namespace="nowhere")],
        "signal without a name": [command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", execution=execution("x"))],
        "signal to nobody": [command("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION", signal_name="x")],
        "cancel of nobody": [command("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION")],
        "failure without one": [command("FAIL_WORKFLOW_EXECUTION")],
        "continue with a negative time-out": [
            command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_run_timeout={"seconds": -1})
        ],
        "unknown search attribute": [
            command(
                "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
                search_attributes={"indexed_fields": {"Nothing": payloads("x").payloads[0]}},
            )
        ],
        "empty upsert": [command("UPSERT_WORKFLOW_SEARCH_ATTRIBUTES")],
        "empty properties": [command("MODIFY_WORKFLOW_PROPERTIES")],
        "message that is not there": [command("PROTOCOL_MESSAGE", message_id="m")],
    }
    for number, (what, commands) in enumerate(bad.items()):
        name = f"w{number}"
        await play.start(name, task_queue={"name": name})
        task = await play.poll(name)
        request = wire.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=task.task_token, commands=[timer("kept?"), *commands]
        )
        story.title(what)
        await story.ask(request)
        story.say(await play.table(name, first=4))


async def queries(story: Story) -> None:
    """Direct, with a held task, of a closed run, rejected; none leaves a trace."""
    play = story.play
    await play.start("w")
    early = _query()
    waiting = play.begin(early)
    task = await play.poll()
    story.say(f"with the first task: {[q.query_type for q in task.queries.values()]}")
    (query_id,) = task.queries
    await play.complete(
        task.task_token, query_results={query_id: WorkflowQueryResult(result_type=1, answer=payloads("1"))}
    )  # type: ignore[arg-type]
    story.answer(early, waiting)
    direct = play.begin(_query())
    asked = await play.poll()
    story.say(f"direct: {asked.query.query_type}, history up to {asked.history.events[-1].event_id}")
    await play.call(
        wire.RespondQueryTaskCompletedRequest(
            namespace="default",
            task_token=asked.task_token,
            completed_type=2,
            error_message="no such query",  # type: ignore[arg-type]
        )
    )
    story.answer(early, direct)
    await play.signal()
    held = await play.poll()
    during = play.begin(_query())
    await play.settle()
    story.answer(early, during)
    await play.complete(held.task_token)
    asked = await play.poll()
    story.say(f"after the held task: {asked.query.query_type}")
    during.cancel()
    await play.terminate()
    for condition in (2, 3):
        request = _query()
        request.query_reject_condition = condition  # type: ignore[assignment]
        answer = await story.ask(request)
        story.say(str(wire.QueryWorkflowResponse.FromString(answer)).replace("\n", " "))
    closed = play.begin(_query())
    asked = await play.poll()
    story.say(f"closed: {asked.query.query_type}, history up to {asked.history.events[-1].event_id}")
    closed.cancel()
    await story.tell()


def _query() -> wire.QueryWorkflowRequest:
    request = wire.QueryWorkflowRequest(namespace="default", execution=execution("w"))
    request.query.query_type = "how"
    return request


async def a_sticky_query(story: Story) -> None:
    """The worker that has the run in its cache is asked, and sent what is new only."""
    play = story.play
    await play.start("w")
    task = await play.poll()
    sticky = {"worker_task_queue": {"name": "mine", "kind": 2}, "schedule_to_start_timeout": {"seconds": 10}}
    await play.complete(task.task_token, sticky_attributes=sticky)
    worker = FakeConnection()
    poll = play.begin_poll("mine", connection=worker, sticky=True)
    play.begin(_query())
    await play.settle()
    asked = wire.PollWorkflowTaskQueueResponse.FromString(poll.answer.result())
    story.say(f"{asked.query.query_type}, events {[e.event_id for e in asked.history.events]}")
    await story.tell()


async def heartbeats_of_a_workflow_task(story: Story) -> None:
    """Local activities that take long: a task after a task, in the answers."""
    play = story.play
    await play.start("w")
    token = (await play.poll()).task_token
    for _ in range(2):
        answer = await play.complete(
            token, return_new_workflow_task=True, force_create_new_workflow_task=True
        )
        token = answer.workflow_task.task_token
    await play.complete(token, command("RECORD_MARKER", marker_name="local"), done())
    await story.tell()
