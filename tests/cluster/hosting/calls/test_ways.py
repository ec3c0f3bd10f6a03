"""Calls that find their way to a leader whom the client's node does not reach."""

from __future__ import annotations

import asyncio

from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.engine.keys import slot_of
from tests.cluster.hosting.calls.test_parts import Play, Region, play

__all__ = ["play"]


def test_a_leader_that_others_reach_is_asked_by_way_of_them(play: Play) -> None:
    """A node has no replica of the shard, and those that have one name a leader that it does not reach."""

    async def scene(region: Region) -> None:
        world, rng = region.world, region.rng
        await region.start("w")
        node = region.nodes[0].member.node
        slot = slot_of(node.meta.by_name["default"].id, "w")
        group = node.slot_owners[slot]
        leader = next(one for one in region.nodes if group in one.member.node.led)
        without = [one for one in region.nodes if group not in one.member.node.committer.groups]
        asker = rng.choice(without)
        for two in ((asker.name, leader.name), (leader.name, asker.name)):
            world.network.cut(*two)
        while leader.node_id in asker.member.node.peers():
            await asyncio.sleep(0.01)
        forward = asker.member.forward
        before = forward.forwarded
        request = wire.DescribeWorkflowExecutionRequest(
            namespace="default", execution=WorkflowExecution(workflow_id="w")
        )
        found = await region.once(request, wire.DescribeWorkflowExecutionResponse, asker)
        assert found.workflow_execution_info.execution.workflow_id == "w"
        assert forward.forwarded - before < 50, "it does not ask again and again"

    play(scene)
