"""Scenes: reading histories, and runs that are closed."""

from __future__ import annotations

from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.play import done, execution, timer
from tests.history_store.engine.story import Story, terminate

CLOSE = workflow_pb2.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT


def _history(**fields: object) -> wire.GetWorkflowExecutionHistoryRequest:
    return wire.GetWorkflowExecutionHistoryRequest(namespace="default", execution=execution("w"), **fields)  # type: ignore[arg-type]


def _ids(answer: object) -> str:
    return f"{[e.event_id for e in answer.history.events]}{' …' if answer.next_page_token else ''}"  # type: ignore[attr-defined]


async def pages(story: Story) -> None:
    """By threes, backwards, up to the end as it was at the first page."""
    play = story.play
    await play.first(timer("a"), timer("b"), timer("c"))
    token = b""
    while True:
        answer = await play.call(_history(maximum_page_size=3, next_page_token=token))
        story.say(_ids(answer))
        token = answer.next_page_token
        await play.signal()
        if not token:
            break
    request = wire.GetWorkflowExecutionHistoryReverseRequest(
        namespace="default", execution=execution("w"), maximum_page_size=4
    )
    while True:
        answer = await play.call(request)
        story.say(_ids(answer))
        request.next_page_token = answer.next_page_token
        if not answer.next_page_token:
            break


async def long_polls(story: Story) -> None:
    """Everything that is there, then each change, then the end."""
    play = story.play
    await play.first()
    answer = await play.call(_history(wait_new_event=True))
    story.say(_ids(answer))
    for number in range(3):
        waiting = _history(wait_new_event=True, next_page_token=answer.next_page_token)
        call = play.begin(waiting)
        await play.settle()
        story.answer(waiting, call)
        if number == 0:
            await play.signal()
        elif number == 1:
            await play.poll()
        else:
            await play.terminate()
        await play.settle()
        answer = wire.GetWorkflowExecutionHistoryResponse.FromString(call.answer.result())
        story.say(_ids(answer))


async def the_close_event(story: Story) -> None:
    """Asked for while the run is open, waited for, and asked for afterwards."""
    play = story.play
    await play.first()
    story.say(_ids(await play.call(_history(history_event_filter_type=CLOSE))))
    waiting = _history(wait_new_event=True, history_event_filter_type=CLOSE)
    call = play.begin(waiting)
    await play.signal()
    await play.settle()
    story.answer(waiting, call)
    await play.next(done())
    story.say(_ids(wire.GetWorkflowExecutionHistoryResponse.FromString(call.answer.result())))
    story.say(_ids(await play.call(_history(history_event_filter_type=CLOSE))))


async def after_the_end(story: Story) -> None:
    """Signals, cancels, terminations and answers that come too late."""
    play = story.play
    await play.start("w")
    task = await play.poll()
    await story.ask(terminate())
    await story.ask(terminate())
    await story.ask(
        wire.SignalWorkflowExecutionRequest(
            namespace="default", workflow_execution=execution("w"), signal_name="s"
        )
    )
    await story.ask(
        wire.RequestCancelWorkflowExecutionRequest(namespace="default", workflow_execution=execution("w"))
    )
    await story.ask(wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token))
    await story.ask(wire.RespondWorkflowTaskFailedRequest(namespace="default", task_token=task.task_token))
    await story.tell()


async def deleted(story: Story) -> None:
    """An open run is terminated and gone; so is a closed one; there is no second time."""
    play = story.play
    request = wire.DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution("w"))
    await play.first(timer())
    await story.ask(request)
    await story.ask(request)
    await story.ask(_history())
    story.say(f"rows left: {len(play.rows())}")
    await play.first(done())
    await story.ask(request)
    story.say(f"rows left: {len(play.rows())}")
