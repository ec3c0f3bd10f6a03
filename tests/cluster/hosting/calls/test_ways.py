"""Calls that find their way to a leader whom the client's node does not reach."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim.calls import Refused
from chaos.sim.world import Node
from cluster.hosting.calls.forward import PATIENCE_S
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


async def _waits(region: Region, node: Node, *, update: bool) -> str:
    """A call that waits for long: what it heard first, "" while nothing."""
    execution = WorkflowExecution(workflow_id="w")
    try:
        if update:
            asked = wire.UpdateWorkflowExecutionRequest(namespace="default", workflow_execution=execution)
            asked.request.meta.update_id = f"u-{node.name}"
            asked.request.input.name = "U"
            asked.wait_policy.lifecycle_stage = 3  # type: ignore[assignment]  # until it is completed
            await region.once(asked, wire.UpdateWorkflowExecutionResponse, node, 60.0)
            return "answered"
        waited = wire.GetWorkflowExecutionHistoryRequest(
            namespace="default", execution=execution, wait_new_event=True,
            history_event_filter_type=HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT,
        )  # fmt: skip
        found = await region.once(waited, wire.GetWorkflowExecutionHistoryResponse, node, 60.0)
        return f"{len(found.history.events)} events"
    except Refused as refused:
        return str(refused)


@pytest.mark.parametrize("how", ["hand over", "kill", "cut off"])
def test_a_call_that_has_waited_for_long_finds_the_next_leader(play: Play, how: str) -> None:
    """However old it is: it has the same patience from the moment when its leader is lost."""

    async def scene(region: Region) -> None:
        world = region.world
        await region.start("w")
        node = region.nodes[0].member.node
        group = node.slot_owners[slot_of(node.meta.by_name["default"].id, "w")]
        leader = next(one for one in region.nodes if group in one.member.node.led)
        asked = [one for one in region.nodes if how == "hand over" or one is not leader]
        waits = {
            (one.name, update): asyncio.ensure_future(_waits(region, one, update=update))
            for one in asked
            for update in (False, True)
        }
        await asyncio.sleep(1.5 * PATIENCE_S)
        early = {key: wait.result() for key, wait in waits.items() if wait.done()}
        assert not early
        others = [one for one in region.nodes if one is not leader]
        if how == "hand over":
            to = next(one for one in others if group in one.member.node.committer.groups)
            leader.call(leader.member.steward._transfer, group, to.node_id)
        elif how == "kill":
            leader.kill()
        else:
            world.network.partition([leader.name])
        await asyncio.sleep(8.0)
        lost = {key: wait.result() for key, wait in waits.items() if wait.done()}
        assert not lost, "they go on waiting, at another leader"
        await region.terminate("w")
        await asyncio.sleep(3.0)
        heard = {key: wait.result() for key, wait in waits.items()}
        assert all(heard[one.name, False] == "1 events" for one in asked), heard

    play(scene)
