"""Workflow tasks that a node had handed out before it died."""

from __future__ import annotations

from cluster.hosting.tasks.dispatch import Orphans
from tests.cluster.hosting.play import Play, done


async def test_a_task_that_nobody_answers_after_a_restart_goes_to_whoever_polls() -> None:
    play = Play()
    await play.start("w")
    await play.poll()
    play = await play.crash()
    orphans = [Orphans(shard, play.clock.now_ns()) for shard in play.node.shards]
    play.clock.advance(1.0)
    for each in orphans:
        each.hand_over()
    await play.settle()
    await play.next(done())
    assert (await play.describe("w")).workflow_execution_info.status == 2
    await play.close()


async def test_a_task_of_this_life_is_left_to_its_worker() -> None:
    play = Play()
    await play.start("w")
    play = await play.crash()
    orphans = [Orphans(shard, play.clock.now_ns()) for shard in play.node.shards]
    play.clock.advance(1.0)
    held = await play.poll()
    for each in orphans:
        each.hand_over()
    await play.settle()
    assert held.attempt == 1
    assert (await play.describe("w")).pending_workflow_task.attempt == 1
    await play.close()
