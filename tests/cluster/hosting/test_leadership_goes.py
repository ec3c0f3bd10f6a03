"""What is left behind where leadership has gone, and what finds its way to the leader."""

from __future__ import annotations

import random
from typing import Any

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.updates import expire_speculative
from cluster.hosting.dispatch import Orphans, expire_unwritten
from tests.cluster.hosting.play import Play, execution
from tests.cluster.hosting.test_actions_region import Member, Region


async def test_timers_of_a_shard_that_is_led_elsewhere_do_nothing(play: Play) -> None:
    await play.first()
    await play.signal("w", "s")
    await play.poll()
    shard = next(shard for shard in play.node.shards if shard.runs)
    run = next(iter(shard.runs.values()))
    task = run.state.task
    assert task is not None
    assert task.started_id
    orphans = Orphans(shard, shard.clock.now_ns() + 1)
    shard.retire()
    orphans.hand_over()
    expire_unwritten(shard, run, task.stamp)
    expire_speculative(shard, run, task.stamp)
    assert run.state.task is task


async def test_a_query_is_answered_by_way_of_any_node(rng: random.Random) -> None:
    region = Region(rng.getrandbits(32))
    await region.found()
    await _start(region, "w")
    leader = region.leader_of("w")
    assert leader is not None
    for through in region.members.values():
        query = wire.QueryWorkflowRequest(namespace="default", execution=execution("w"))
        query.query.query_type = "how"
        asked = leader.begin(query, deadline_s=None)
        poll = leader.begin_poll("w")
        await region.until(lambda poll=poll: poll.done)  # type: ignore[misc]
        task = await leader.end(wire.PollWorkflowTaskQueueRequest(), poll)
        answer = wire.RespondQueryTaskCompletedRequest(namespace="default", task_token=task.task_token)
        answer.completed_type = 1  # type: ignore[assignment]
        await region.request(through, answer)
        await region.until(lambda asked=asked: asked.done)  # type: ignore[misc]
    await region.close()


async def _start(region: Region, workflow_id: str) -> None:
    """A run whose first task is done. Its queue has its name."""
    anyone: Member = region.members[1]
    request: Any = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id="start", identity="client"
    )
    request.workflow_type.name = "W"
    request.task_queue.name = workflow_id
    await region.request(anyone, request)
    await region.work(workflow_id, then="WorkflowTaskCompleted")
