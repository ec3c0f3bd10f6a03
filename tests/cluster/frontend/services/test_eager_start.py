"""An eager start repeated with its request id: its first workflow task comes again while it is out."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from temporalio.api.common.v1.message_pb2 import Payload
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine.environment import EngineLimits
from tests.cluster.frontend.services.conftest import FakeCall, FakeConnection, Refused
from tests.cluster.hosting.play import Play, accept, done, execution, respond, timer

Started = wire.StartWorkflowExecutionResponse
NOT_FOUND = 5
COMPLETED = 2


@pytest_asyncio.fixture
async def play() -> AsyncIterator[Play]:
    made = Play()
    yield made
    await made.close()


def start(
    workflow_id: str = "w", *, eager: bool = True, request_id: str = "r"
) -> wire.StartWorkflowExecutionRequest:
    request = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=request_id, identity="worker",
        request_eager_execution=eager,
    )  # fmt: skip
    request.workflow_type.name = "W"
    request.task_queue.name = "q"
    return request


async def answer(play: Play, request: wire.StartWorkflowExecutionRequest) -> bytes:
    """The answer as it is on the wire."""
    call = play.begin(request)
    await play.settle()
    assert call.done
    return call.answer.result()


def parsed(call: FakeCall) -> Started:
    return Started.FromString(call.answer.result())


def only_the_run(first: Started, again: Started, status: int = 1) -> None:
    expected = Started()
    expected.CopyFrom(first)
    expected.ClearField("eager_workflow_task")
    expected.status = status  # type: ignore[assignment]
    assert again == expected


# ---- the same answer


def random_start(rng: random.Random) -> wire.StartWorkflowExecutionRequest:
    request = start(f"w{rng.randrange(1000)}", request_id=f"r{rng.randrange(1000)}")
    request.identity = rng.choice(("", "worker", "é" * 40))
    for _ in range(rng.randrange(3)):
        request.input.payloads.append(Payload(data=rng.randbytes(rng.choice((0, 1, 200, 70_000)))))
    if rng.random() < 0.5:
        request.memo.fields["m"].data = rng.randbytes(9)
        request.header.fields["h"].data = rng.randbytes(9)
    if rng.random() < 0.5:
        request.priority.priority_key = rng.randint(1, 5)
        request.workflow_task_timeout.seconds = rng.randint(5, 60)
        request.workflow_run_timeout.seconds = rng.randint(100, 200)
    if rng.random() < 0.5:
        request.user_metadata.summary.data = b'"why"'
    return request


async def meanwhile(play: Play, rng: random.Random, workflow_id: str) -> None:
    """What may happen without the task being touched."""
    for _ in range(rng.randrange(4)):
        match rng.randrange(6):
            case 0:
                await play.signal(workflow_id)
            case 1:
                await play.cancel(workflow_id)
            case 2:
                await play.advance(rng.random())
            case 3:
                await play.first(timer(), workflow_id=f"other-{rng.random()}")
            case 4:
                play.begin(play.update_request(f"u{rng.random()}", workflow_id=workflow_id))
            case _:
                await play.describe(workflow_id)


async def test_the_repeat_is_the_first_answer_byte_for_byte(play: Play, rng: random.Random) -> None:
    request = random_start(rng)
    first = await answer(play, request)
    assert Started.FromString(first).eager_workflow_task.attempt == 1
    for _ in range(3):
        await meanwhile(play, rng, request.workflow_id)
        assert await answer(play, request) == first


async def test_what_the_task_holds(play: Play) -> None:
    await play.call(start())
    again = await play.call(start())
    task = again.eager_workflow_task
    assert again.started
    assert task.workflow_execution.run_id == again.run_id
    assert (task.started_event_id, task.attempt, task.previous_started_event_id) == (3, 1, 0)
    assert [event.event_id for event in task.history.events] == [1, 2, 3]


@pytest.mark.parametrize("how", ["crash", "reopen"])
async def test_a_restart_between_the_two(how: str) -> None:
    """The first answer may never have left the process that died."""
    play = Play()
    first = await answer(play, start())
    play = await (play.crash() if how == "crash" else play.reopen())
    assert await answer(play, start()) == first
    await play.complete(Started.FromString(first).eager_workflow_task.task_token, done())
    assert (await play.describe("w")).workflow_execution_info.status == COMPLETED
    await play.close()


async def test_both_before_the_commit(play: Play) -> None:
    calls = [play.begin(start()) for _ in range(3)]
    assert not any(call.done for call in calls), "nobody is answered before the write"
    await play.settle()
    bodies = {call.answer.result() for call in calls}
    assert len(bodies) == 1
    assert Started.FromString(bodies.pop()).eager_workflow_task.task_token


# ---- the token


@pytest.mark.parametrize("winner", [0, 1])
async def test_one_completion_wins(play: Play, winner: int) -> None:
    tokens = [(await play.call(start())).eager_workflow_task.task_token for _ in range(2)]
    await play.complete(tokens[winner], timer())
    late = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=tokens[1 - winner], commands=[done()]
    )
    assert (await play.refused(late)).code == NOT_FOUND
    assert (await play.table("w", first=2)) == (
        " 2 WorkflowTaskScheduled\n"
        " 3 WorkflowTaskStarted scheduled=2\n"
        " 4 WorkflowTaskCompleted scheduled=2 started=3\n"
        " 5 TimerStarted timer_id=t"
    )


async def test_no_poll_gets_the_task_as_well(play: Play) -> None:
    await play.call(start())
    await play.call(start())
    assert await play.idle()


async def test_an_update_that_came_between_waits_for_the_next_task(play: Play) -> None:
    """The first worker does not know of it, and must not be taken to refuse it."""
    token = (await play.call(start())).eager_workflow_task.task_token
    request = play.update_request("u")
    update = play.begin(request)
    again = (await play.call(start())).eager_workflow_task
    assert not again.messages
    await play.complete(token, timer())
    await play.settle()
    assert not update.done
    task = await play.poll()
    assert [message.protocol_instance_id for message in task.messages] == ["u"]
    messages = [accept("u"), respond("u")]
    await play.complete(task.task_token, messages=messages)
    assert (await play.end(request, update)).outcome.HasField("success")


# ---- only the run


async def test_without_asking_for_it(play: Play) -> None:
    first = await play.call(start())
    only_the_run(first, await play.call(start(eager=False)))


async def test_a_start_that_was_not_eager(play: Play) -> None:
    first = await play.call(start(eager=False))
    only_the_run(first, await play.call(start()))
    task = await play.poll()
    only_the_run(first, await play.call(start()))  # a poll started it, so it is the poller's
    await play.complete(task.task_token, done())


async def test_after_the_task_completed(play: Play) -> None:
    first = await play.call(start())
    await play.complete(first.eager_workflow_task.task_token, timer())
    only_the_run(first, await play.call(start()))


async def test_while_the_next_task_is_out(play: Play) -> None:
    first = await play.call(start())
    await play.signal()
    await play.complete(first.eager_workflow_task.task_token)
    await play.poll()
    only_the_run(first, await play.call(start()))


async def test_after_the_run_closed(play: Play) -> None:
    first = await play.call(start())
    await play.complete(first.eager_workflow_task.task_token, done())
    only_the_run(first, await play.call(start()), COMPLETED)


async def test_after_it_was_terminated(play: Play) -> None:
    first = await play.call(start())
    await play.terminate("w")
    only_the_run(first, await play.call(start()), 5)


async def test_after_the_task_failed(play: Play) -> None:
    first = await play.call(start())
    token = first.eager_workflow_task.task_token
    await play.call(wire.RespondWorkflowTaskFailedRequest(namespace="default", task_token=token))
    only_the_run(first, await play.call(start()))
    assert (await play.poll()).attempt == 2
    only_the_run(first, await play.call(start()))


async def test_after_the_task_timed_out(play: Play) -> None:
    first = await play.call(start())
    await play.advance(10)
    only_the_run(first, await play.call(start()))
    assert (await play.poll()).attempt == 2


async def test_after_a_signal_made_the_next_attempt_a_first_one(play: Play) -> None:
    first = await play.call(start())
    await play.signal()
    await play.advance(10)
    only_the_run(first, await play.call(start()))
    assert (await play.poll()).attempt == 1
    only_the_run(first, await play.call(start()))


async def test_a_run_that_its_own_start_ended() -> None:
    """The node allows fewer events than an eager start writes."""
    play = Play(limits=EngineLimits(history_events_max=2))
    first = await play.call(start())
    assert not first.HasField("eager_workflow_task")
    status = (await play.describe("w")).workflow_execution_info.status
    assert status != 1
    only_the_run(first, await play.call(start()), status)
    await play.close()


async def test_when_it_is_over_by_the_commit(play: Play) -> None:
    """The repeat comes while the task is out, and waits for a write; meanwhile the run is terminated."""
    first = await play.call(start())
    await play.settle()
    for workflow_id in ("a", "b", "c", "d"):  # on every shard something is proposed
        play.begin(start(workflow_id))
    again = play.begin(start())
    assert not again.done
    request = wire.TerminateWorkflowExecutionRequest(namespace="default")
    request.workflow_execution.CopyFrom(execution("w"))
    play.begin(request)
    await play.settle()
    only_the_run(first, parsed(again))


async def test_another_request_id(play: Play) -> None:
    await play.call(start())
    assert (await play.refused(start(request_id="other"))).code == 6


async def test_a_delayed_start(play: Play) -> None:
    request = start()
    request.workflow_start_delay.seconds = 30
    first = await play.call(request)
    assert not first.HasField("eager_workflow_task")
    only_the_run(first, await play.call(request))


# ---- whose it is


async def test_the_connection_of_the_repeat_holds_the_task(play: Play) -> None:
    """The client came back on a new connection: the end of the old one takes nothing from it."""
    old, new = FakeConnection(), FakeConnection()
    play.begin(start(), connection=old)
    await play.settle()
    again = await play.call(start(), connection=new)
    old.close()
    await play.settle()
    assert await play.idle()
    await play.complete(again.eager_workflow_task.task_token, timer())
    new.close()
    await play.settle()
    assert await play.idle()


async def test_the_repeats_connection_dies(play: Play) -> None:
    old, new = FakeConnection(), FakeConnection()
    play.begin(start(), connection=old)
    await play.settle()
    await play.call(start(), connection=new)
    new.close()
    await play.settle()
    assert (await play.poll()).attempt == 2


async def test_a_repeat_that_nobody_waits_for_leaves_the_task_where_it_is(play: Play) -> None:
    first = await play.call(start())
    for workflow_id in ("a", "b", "c", "d"):
        play.begin(start(workflow_id))
    again = play.begin(start())
    assert not again.done
    again.cancel()
    await play.settle()
    await play.complete(first.eager_workflow_task.task_token, done())


async def test_a_first_that_nobody_waits_for_gives_the_task_back(play: Play) -> None:
    first, again = play.begin(start()), play.begin(start())
    first.cancel()
    await play.settle()
    assert not parsed(again).HasField("eager_workflow_task")
    assert (await play.poll()).attempt == 2


async def test_it_is_given_back_even_if_a_transaction_failed_meanwhile() -> None:
    """The run is another object then."""
    play = Play(limits=EngineLimits(signals_max=1))
    first = play.begin(start())
    request = wire.SignalWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution("w"), signal_name="s"
    )
    signals = [play.begin(request) for _ in range(2)]
    first.cancel()
    await play.settle()
    assert isinstance(signals[1].answer.exception(), Refused)
    signals[0].answer.result()
    assert (await play.poll()).started_event_id > 3
    await play.close()
