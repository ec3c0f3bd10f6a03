"""What is started for a poll of another node, and does not reach it."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.forward import Forward
from cluster.hosting.tasks.dispatch import ACTIVITY, WORKFLOW
from cluster.hosting.tasks.exchange import EXCHANGE, ExchangeHost
from cluster.hosting.tasks.takeover import ASK, DENY, Takeovers
from tests.cluster.hosting.play import Play, activity, execution

OTHER = 2  # the other node


class Neighbour:
    """Another node, as far as its messages go; it has one worker, on queue "q"."""

    def __init__(self, play: Play, kind: int = WORKFLOW) -> None:
        self.play = play
        self.heard: list[list[Any]] = []
        self.polls = 0
        node = play.node
        self.host = ExchangeHost(node, Forward(node, self._hear), self._hear)
        node.exchange = self.host.exchange
        node.takeovers = self.takeovers = Takeovers(node, self._hear)
        self.host.up(OTHER)
        self.queue = [play.services.namespace("default").id, kind, "q"]
        self.say("credit", *self.queue, False, 1, 1)

    def _hear(self, node_id: int, message: list[Any]) -> bool:
        assert node_id == OTHER
        self.heard.append(message)
        return True

    def say(self, *message: Any) -> None:
        self.host.received(OTHER, [EXCHANGE, *message])

    async def next(self, kind: str) -> list[Any]:
        """The next message of a kind."""
        await self.play.settle()
        found = next(message for message in self.heard if message[:2] == [EXCHANGE, kind])
        self.heard.remove(found)
        return found[2:]

    async def take(self) -> list[Any]:
        """A task is offered, and the worker's poll asks for it: what comes."""
        loan_id = (await self.next("offer"))[3]
        self.polls += 1
        self.say("start", loan_id, self.polls, 0, 0, ["worker", 7, "worker:1"])
        return await self.next("task")

    async def lose(self) -> None:
        """The same, but the poll has gone when the task comes."""
        _, _, receipt, number = await self.take()
        self.say("absent", *self.queue)
        self.say("undelivered", receipt, number)

    async def part(self) -> None:
        """The two nodes cannot talk for a moment, and what was on its way is lost."""
        self.host.down(OTHER)
        await self.play.settle()
        self.heard.clear()
        self.host.up(OTHER)
        self.takeovers.up(OTHER)
        await self.play.settle()

    def asked(self) -> tuple[int, list[Any]]:
        """What it is asked of started tasks."""
        (question,) = (message for message in self.heard if message[0] == ASK)
        return question[1], question[2]


async def test_a_query_whose_poll_has_gone_is_asked_again(play: Play) -> None:
    await play.first()
    other = Neighbour(play)
    query = wire.QueryWorkflowRequest(namespace="default", execution=execution("w"))
    query.query.query_type = "how"
    asked = play.begin(query, deadline_s=None)
    await other.lose()
    task = await play.poll()
    assert task.query.query_type == "how"
    answer = wire.RespondQueryTaskCompletedRequest(namespace="default", task_token=task.task_token)
    answer.completed_type = 1  # type: ignore[assignment]
    await play.call(answer)
    assert asked.done


async def test_a_workflow_task_whose_poll_has_gone_waits_again(play: Play) -> None:
    other = Neighbour(play)
    await play.start("w")
    await other.lose()
    task = await play.poll()
    assert task.attempt == 2
    assert task.workflow_execution.workflow_id == "w"


@pytest.mark.parametrize("arrived", [False, True])
async def test_an_activity_that_was_on_its_way_when_the_nodes_parted(play: Play, arrived: bool) -> None:
    other = Neighbour(play, ACTIVITY)
    await play.first(activity(start_to_close_timeout={"seconds": 3600}))
    _, _, receipt, _ = await other.take()
    await other.part()
    number, doubts = other.asked()
    assert [found for found, _ in doubts] == [tuple(receipt)]
    other.takeovers.received(OTHER, [DENY, number, [] if arrived else [receipt]])
    call = play.begin_poll("q", "Activity")
    await play.settle()
    assert call.done is not arrived
    call.cancel()
    await other.part()
    assert not any(message[0] == ASK for message in other.heard), "it has answered"
