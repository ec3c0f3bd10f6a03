"""Scenes: updates."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.hosting.play import accept, activity, command, done, execution, reject, respond
from tests.history_store.engine.story import Story, start


def _outcome(call: object) -> str:
    answer = wire.UpdateWorkflowExecutionResponse.FromString(call.answer.result())  # type: ignore[attr-defined]
    outcome = answer.outcome.failure.message or ",".join(
        p.data.decode() for p in answer.outcome.success.payloads
    )
    return f"stage {answer.stage} {outcome}".strip()


async def accepted_and_completed(story: Story) -> None:
    """In one task, in two, and found again afterwards."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("one"))
    await play.settle()
    await story.tell()
    await play.next(messages=[accept("one"), respond("one", "1")])
    story.say(_outcome(call))
    await story.tell()
    early, late = play.begin(play.update_request("two", 2)), play.begin(play.update_request("two", 3))
    await play.settle()
    await play.next(messages=[accept("two")])
    story.say(f"accepted: {_outcome(early)}; completed: {late.done}")
    await play.signal()
    await play.next(messages=[respond("two", "2")])
    story.say(_outcome(late))
    again = play.begin(play.update_request("one"))
    await play.settle()
    story.say(f"again: {_outcome(again)}")
    await story.tell()


async def rejected(story: Story) -> None:
    """A speculative task whose updates are all rejected leaves no event; the worker is set back."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("no"))
    await play.settle()
    task = await play.poll()
    story.say(
        f"task: {[e.event_id for e in task.history.events][-2:]}, messages {[m.id for m in task.messages]}"
    )
    answer = await play.complete(task.task_token, messages=[reject("no")])
    story.say(f"reset to event {answer.reset_history_event_id}; {_outcome(call)}")
    await story.tell()
    again = play.begin(play.update_request("no"))
    await play.settle()
    story.say(f"asked again: {'answered' if again.done else 'waits for a worker'}")
    await play.next(messages=[accept("no"), respond("no")])
    await story.tell()


async def rejected_beside_a_signal(story: Story) -> None:
    """A signal makes the task a real one: its events stay though the update is rejected."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("no"))
    await play.settle()
    await play.signal()
    await play.next(messages=[reject("no")])
    story.say(_outcome(call))
    await story.tell()


async def a_worker_that_knows_no_updates(story: Story) -> None:
    """It completes the task without a word on the update: rejected."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("u"))
    await play.settle()
    await play.next()
    story.say(_outcome(call))
    await story.tell()


async def before_the_first_task(story: Story) -> None:
    """The update goes with the first task."""
    play = story.play
    await play.start("w")
    call = play.begin(play.update_request("u"))
    await play.settle()
    task = await play.next(activity(), messages=[accept("u"), respond("u")])
    story.say(f"messages {[m.id for m in task.messages]}; {_outcome(call)}")
    await story.tell()


async def nobody_takes_the_speculative_task(story: Story) -> None:
    """After a while it becomes a real one, which outlives the leader."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("u"))
    await play.settle()
    play.clock.advance(5)
    from cluster.frontend.services.updates import expire_speculative

    for shard in play.node.shards:
        for run in list(shard.cache.runs.values()):
            expire_speculative(shard, run, run.state.task.stamp if run.state.task else 0)
    await play.settle()
    await story.tell()
    await play.next(messages=[accept("u"), respond("u")])
    story.say(_outcome(call))
    await story.tell()


async def the_speculative_task_fails(story: Story) -> None:
    """Its events are written, and the update goes with the next attempt."""
    play = story.play
    await play.first()
    call = play.begin(play.update_request("u"))
    await play.settle()
    task = await play.poll()
    await play.call(wire.RespondWorkflowTaskFailedRequest(namespace="default", task_token=task.task_token))
    await story.tell()
    task = await play.next(messages=[accept("u"), respond("u")])
    story.say(f"attempt {task.attempt}, messages {[m.id for m in task.messages]}; {_outcome(call)}")
    await story.tell()


async def the_run_ends(story: Story) -> None:
    """Accepted updates fail with the run, others are refused; afterwards only what is known is answered."""
    play = story.play
    await play.first()
    accepted = play.begin(play.update_request("accepted"))
    await play.settle()
    await play.next(messages=[accept("accepted")])
    waiting_request = play.update_request("waiting")
    waiting = play.begin(waiting_request)
    await play.settle()
    await play.terminate()
    await play.settle()
    story.say(_outcome(accepted))
    story.answer(waiting_request, waiting)
    await story.ask(play.update_request("new"))
    await story.ask(play.update_request("accepted"))
    await story.tell()


async def the_run_continues_as_new(story: Story) -> None:
    """An update that nobody has accepted goes on to the next run."""
    play = story.play
    await play.first()
    await play.signal()
    held = await play.poll()
    call = play.begin(play.update_request("u"))
    await play.settle()
    await play.complete(held.task_token, command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION"))
    await play.settle()
    task = await play.next(messages=[accept("u"), respond("u")])
    story.say(f"messages {[m.id for m in task.messages]}; {_outcome(call)}")
    await story.tell()


async def limits(story: Story) -> None:
    """Ten in flight; messages that do not fit fail the task."""
    play = story.play
    await play.first()
    for number in range(11):
        await story.ask(play.update_request(f"u{number}"))
    task = await play.poll()
    wrong = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, messages=[accept("u0"), accept("u0")]
    )
    wrong.messages[1].id = "again"
    await story.ask(wrong)
    await story.tell()
    task = await play.poll()
    wrong = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, messages=[respond("stranger")]
    )
    await story.ask(wrong)
    await story.tell()


async def polls(story: Story) -> None:
    """PollWorkflowExecutionUpdate: unknown, under way, completed."""
    play = story.play
    await play.first()

    def poll(update_id: str, stage: int) -> wire.PollWorkflowExecutionUpdateRequest:
        request = wire.PollWorkflowExecutionUpdateRequest(namespace="default")
        request.update_ref.workflow_execution.CopyFrom(execution("w"))
        request.update_ref.update_id = update_id
        request.wait_policy.lifecycle_stage = stage  # type: ignore[assignment]
        return request

    await story.ask(poll("u", 3))
    play.begin(play.update_request("u", 2))
    await play.settle()
    await play.next(messages=[accept("u")])
    await story.ask(poll("u", 2))
    waiting = play.begin(poll("u", 3))
    await play.signal()
    await play.next(messages=[respond("u", "x")])
    story.answer(poll("u", 3), waiting)
    await story.ask(poll("u", 0))


async def update_with_start(story: Story) -> None:
    """Both or none; a repeated call finds both, and starts nothing; the policies of a start hold."""
    play = story.play

    def both(request_id: str, update_id: str, conflict: int) -> wire.ExecuteMultiOperationRequest:
        request = wire.ExecuteMultiOperationRequest(namespace="default")
        request.operations.add().start_workflow.CopyFrom(
            start(request_id=request_id, workflow_id_conflict_policy=conflict)
        )  # type: ignore[arg-type]
        request.operations.add().update_workflow.CopyFrom(play.update_request(update_id))
        return request

    calls = [play.begin(both("r", "u", 1)), play.begin(both("r", "u", 1))]
    await play.settle()
    await story.tell()
    task = await play.next(messages=[accept("u"), respond("u")])
    story.say(f"messages {[m.id for m in task.messages]}")
    for call in calls:
        answer = wire.ExecuteMultiOperationResponse.FromString(call.answer.result())
        begun, updated = answer.responses[0].start_workflow, answer.responses[1].update_workflow
        story.say(f"started {begun.started}, stage {updated.stage}")
    await story.tell()
    await story.ask(both("other", "u2", 1))
    await story.ask(both("other", "u2", 2))
    await play.next(messages=[reject("u2")])
    await story.tell()
    await story.ask(both("new", "u3", 3))
    await play.next(done(), messages=[accept("u3"), respond("u3")])
    await story.tell()
    await story.ask(both("new", "u3", 2))
    await story.ask(both("newer", "u3", 2))
