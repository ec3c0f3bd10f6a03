"""What is started for a poll of another node, and does not reach it."""

from __future__ import annotations

from typing import Any

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.forward import Forward
from cluster.hosting.tasks.dispatch import WORKFLOW
from cluster.hosting.tasks.exchange import EXCHANGE, ExchangeHost
from tests.cluster.hosting.play import Play, execution

OTHER = 2  # the other node


class Neighbour:
    """Another node, as far as its messages go; it has one worker, on queue "q"."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.heard: list[list[Any]] = []
        self.polls = 0
        node = play.node
        self.host = ExchangeHost(node, Forward(node, self._hear), self._hear)
        node.exchange = self.host.exchange
        self.host.up(OTHER)
        self.queue = [play.services.namespace("default").id, WORKFLOW, "q"]
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

    async def lose(self) -> None:
        """A task is offered, and the worker's poll asks for it; it has gone when the task comes."""
        loan_id = (await self.next("offer"))[3]
        self.polls += 1
        self.say("start", loan_id, self.polls, 0, 0, ["worker", 7, "worker:1"])
        self.say("absent", *self.queue)
        _, _, receipt, number = await self.next("task")
        self.say("undelivered", receipt, number)


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
