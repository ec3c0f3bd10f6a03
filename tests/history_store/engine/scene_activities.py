"""Scenes: activities."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.play import activity, command, done, failure, payloads
from tests.history_store.engine.story import Story

ONCE = {"maximum_attempts": 1}
TWICE = {"initial_interval": {"seconds": 1}, "maximum_attempts": 2}


async def done_at_once(story: Story) -> None:
    """Scheduled, started, completed."""
    play = story.play
    await play.first(activity())
    await play.activity_done((await play.activity()).task_token)
    await story.tell()


async def retried(story: Story) -> None:
    """Attempts that are retried leave no events; the last one has the failure before it."""
    play = story.play
    await play.first(activity(retry_policy={"initial_interval": {"seconds": 1}}))
    for wait in (1, 2):
        await play.activity_failed((await play.activity()).task_token)
        assert await play.idle("q", "Activity")
        await play.advance(wait)
    last = await play.activity()
    story.say(f"attempt {last.attempt}")
    await play.activity_done(last.task_token)
    await story.tell()


async def not_retryable(story: Story) -> None:
    """By the failure, by its type, by the number of attempts, by the time that is left."""
    play = story.play
    await play.first(
        activity("failure"),
        activity("type", retry_policy={"non_retryable_error_types": ["Bad"]}),
        activity("attempts", retry_policy=ONCE),
        activity(
            "time",
            schedule_to_close_timeout={"seconds": 3},
            retry_policy={"initial_interval": {"seconds": 5}},
        ),
    )
    for _ in range(4):
        task = await play.activity()
        await play.activity_failed(task.task_token, failure("bad", final=task.activity_id == "failure"))
    await story.tell()


async def four_time_outs(story: Story) -> None:
    """Schedule-to-start is final; start-to-close and heartbeat are retried; schedule-to-close ends it all."""
    play = story.play
    await play.first(
        activity("never", schedule_to_start_timeout={"seconds": 4}, task_queue={"name": "nobody"}),
        activity("slow", start_to_close_timeout={"seconds": 5}, retry_policy=TWICE),
        activity(
            "silent",
            start_to_close_timeout={"seconds": 60},
            heartbeat_timeout={"seconds": 2},
            retry_policy=TWICE,
        ),
        activity("long", start_to_close_timeout={"seconds": 60}, schedule_to_close_timeout={"seconds": 9}),
    )
    for _ in range(3):
        task = await play.activity()
        if task.activity_id == "silent":
            await play.call(
                wire.RecordActivityTaskHeartbeatRequest(
                    namespace="default", task_token=task.task_token, details=payloads("half")
                )
            )
    for _ in range(20):
        await play.advance(1)
        while not await _nothing(story):
            pass
    await story.tell()


async def _nothing(story: Story) -> bool:
    call = story.play.begin_poll("q", "Activity")
    await story.play.settle()
    if not call.done:
        call.cancel()
        return True
    task = wire.PollActivityTaskQueueResponse.FromString(call.answer.result())
    details = ",".join(p.data.decode() for p in task.heartbeat_details.payloads)
    story.say(f"{task.activity_id} attempt {task.attempt} {details}".rstrip())
    return False


async def cancelled_before_it_starts(story: Story) -> None:
    """It ends at once, and a workflow task tells of it; also one that waits for its next attempt."""
    play = story.play
    await play.first(activity("backs-off"), activity("waits"))
    first = await play.activity()
    story.say(f"{first.activity_id} fails")
    await play.activity_failed(first.task_token)
    await play.signal()
    await play.next(
        command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=5),
        command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=6),
    )
    await story.tell()
    assert await play.idle("q", "Activity")


async def cancelled_while_it_runs(story: Story) -> None:
    """The worker hears of it at its heartbeat, and says how it ended; a failure then is not retried."""
    play = story.play
    await play.first(activity("a"), activity("b"))
    tasks = [await play.activity() for _ in range(2)]
    early = wire.RespondActivityTaskCanceledRequest(namespace="default", task_token=tasks[0].task_token)
    await story.ask(early)
    await play.signal()
    await play.next(
        *(command("REQUEST_CANCEL_ACTIVITY_TASK", scheduled_event_id=number) for number in (5, 6, 5))
    )
    beat = await play.call(
        wire.RecordActivityTaskHeartbeatRequest(namespace="default", task_token=tasks[0].task_token)
    )
    story.say(f"cancel requested: {beat.cancel_requested}")
    early.details.CopyFrom(payloads("cleaned up"))
    await story.ask(early)
    await play.activity_failed(tasks[1].task_token)
    await story.tell()


async def answers_too_late(story: Story) -> None:
    """An attempt that is over, an activity that is over, a run that is over, one that never started."""
    play = story.play
    await play.first(
        activity(
            "a", start_to_close_timeout={"seconds": 5}, retry_policy={"initial_interval": {"seconds": 1}}
        )
    )
    old = await play.activity()
    await play.advance(7)
    done_request = wire.RespondActivityTaskCompletedRequest(namespace="default", task_token=old.task_token)
    await story.ask(done_request)
    for kind in (
        wire.RespondActivityTaskFailedByIdRequest, wire.RespondActivityTaskCanceledByIdRequest,
        wire.RecordActivityTaskHeartbeatByIdRequest,
    ):  # fmt: skip
        await story.ask(kind(namespace="default", workflow_id="w", activity_id="a"))
    await story.ask(
        wire.RespondActivityTaskCompletedByIdRequest(
            namespace="default", workflow_id="w", activity_id="a", identity="me"
        )
    )
    await story.ask(
        wire.RespondActivityTaskCompletedByIdRequest(namespace="default", workflow_id="w", activity_id="a")
    )
    await play.next(done())
    await story.ask(done_request)
    await story.tell()


async def the_next_delay_of_a_failure(story: Story) -> None:
    """A failure may name the delay before the next attempt."""
    play = story.play
    await play.first(activity())
    why = failure("later")
    why.application_failure_info.next_retry_delay.seconds = 20
    await play.activity_failed((await play.activity()).task_token, why)
    await play.advance(19)
    story.say(f"idle: {await play.idle('q', 'Activity')}")
    await play.advance(1)
    story.say(f"attempt {(await play.activity()).attempt}")
