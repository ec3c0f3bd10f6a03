"""Scenes: one run after another."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.play import activity, command, done, failed, payloads, timer
from tests.history_store.engine.story import Story, start


async def continue_as_new(story: Story) -> None:
    """A fresh history for the same id; what is pending is left behind."""
    play = story.play
    run_id = await play.first(timer(), activity(), memo={"fields": {"m": payloads("x").payloads[0]}})
    await play.signal()
    await play.next(
        command(
            "CONTINUE_AS_NEW_WORKFLOW_EXECUTION", input=payloads("next"), workflow_run_timeout={"seconds": 60}
        )
    )
    await story.tell("w", run_id)
    await story.tell()
    await play.next(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", backoff_start_interval={"seconds": 30}))
    await story.tell()
    await play.advance(30)
    await story.tell()


async def retry_chain(story: Story) -> None:
    """A failed run is followed by the next attempt after its interval, until the attempts are used up."""
    play = story.play
    await play.call(start(retry_policy={"initial_interval": {"seconds": 1}, "maximum_attempts": 3}))
    for wait in (1, 2, 0):
        run_id = (await play.describe("w")).workflow_execution_info.execution.run_id
        await play.next(failed("no luck"))
        await story.tell("w", run_id)
        await play.advance(wait)
    await story.tell("w", run_id)


async def a_failure_that_is_final(story: Story) -> None:
    """A non-retryable failure ends the chain at once."""
    from tests.cluster.hosting.play import failure

    play = story.play
    await play.call(start(retry_policy={"initial_interval": {"seconds": 1}}))
    await play.next(command("FAIL_WORKFLOW_EXECUTION", failure=failure("final", final=True)))
    await story.tell()


async def cron_chain(story: Story) -> None:
    """Every run is followed by the next; results and failures are handed on; termination ends it."""
    play = story.play
    await play.call(start(cron_schedule="@every 60s"))
    await story.tell()
    await play.advance(60)
    first = (await play.describe("w")).workflow_execution_info.execution.run_id
    await play.next(done("one"))
    await story.tell("w", first)
    await story.tell()
    await play.advance(60)
    second = (await play.describe("w")).workflow_execution_info.execution.run_id
    await play.next(failed("two"))
    await story.tell("w", second)
    await story.tell()
    await play.terminate()
    await story.tell()


async def the_second_run_of_a_chain_is_signalled(story: Story) -> None:
    """While a cron run waits for its time, signals are taken and no task is scheduled."""
    play = story.play
    await play.call(start(cron_schedule="@every 60s"))
    await play.advance(60)
    await play.next(done())
    await play.signal()
    await story.tell()
    await play.advance(60)
    await story.tell()


async def first_run_id_guards(story: Story) -> None:
    """Terminate and cancel by the first run's id reach the present run of that chain and no other."""
    play = story.play
    first = await play.first(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION"))
    for kind in (wire.RequestCancelWorkflowExecutionRequest, wire.TerminateWorkflowExecutionRequest):
        for chain in ("0190e1f4-9c5e-7d5a-8b1a-1234567890ab", first):
            request = kind(namespace="default", first_execution_run_id=chain)
            request.workflow_execution.workflow_id = "w"
            await story.ask(request)
    await story.tell()
