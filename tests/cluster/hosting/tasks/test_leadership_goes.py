"""What is left behind where leadership has gone, and what finds its way to the leader."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.updates import expire_speculative
from cluster.hosting.config.node_config import RaftSection
from cluster.hosting.groups import folder
from cluster.hosting.groups.group import NotLeading
from cluster.hosting.region import steward
from cluster.hosting.region.steward import Steward
from cluster.hosting.replicas.replicas import Replicas
from cluster.hosting.tasks.dispatch import WORKFLOW, Orphans, ShardTask, expire_unwritten
from cluster.matching.contract import QueueKey
from cluster.membership import Plan
from history_store.raft.messages import Kind, Message, encode
from history_store.storage.contract import Round, StorageFull
from tests.cluster.frontend.services.conftest import Refused
from tests.cluster.hosting.calls.test_actions_region import Member, Region
from tests.cluster.hosting.play import Play, execution


async def test_timers_of_a_shard_that_is_led_elsewhere_do_nothing(play: Play) -> None:
    await play.first()
    await play.signal("w", "s")
    await play.poll()
    shard = next(shard for shard in play.node.shards if shard.cache.runs)
    run = next(iter(shard.cache.runs.values()))
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


async def test_reads_are_answered_in_a_term_that_has_no_lease_any_more(rng: random.Random) -> None:
    region = Region(rng.getrandbits(32))
    await region.found()
    await _start(region, "w")
    leader = region.leader_of("w")
    assert leader is not None
    group = leader.node.shard_of(leader.node.meta.by_name["default"].id, "w").group
    group.raft._core.lease_ceded = True  # a hand-over was begun, and came to nothing
    for through in region.members.values():
        asked = wire.DescribeWorkflowExecutionRequest(namespace="default", execution=execution("w"))
        await region.request(through, asked)
    assert group.leading
    assert group.raft._core.lease_ceded
    await region.close()


def signal(workflow_id: str, request_id: str) -> Any:
    return wire.SignalWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution(workflow_id),
        signal_name="s",
        request_id=request_id,
    )


async def _start(region: Region, workflow_id: str) -> None:
    """A run whose first task is done. Its queue has its name."""
    await region.request(region.members[1], _start_request(workflow_id))
    await region.work(workflow_id, then="WorkflowTaskCompleted")


def _start_request(workflow_id: str) -> Any:
    request: Any = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id="start", identity="client"
    )
    request.workflow_type.name = "W"
    request.task_queue.name = workflow_id
    return request


class FullDisk:
    """A member's disk that takes no rounds until it is freed."""

    def __init__(self, member: Member) -> None:
        lane: Any = member.node.committer._lane
        self._lane = lane
        self._write = lane._write
        lane._write = self._refuse

    def _refuse(self, _batch: Round) -> None:
        raise StorageFull("no space left")

    def free(self) -> None:
        self._lane._write = self._write


@pytest.mark.parametrize("itself", [False, True])
async def test_a_read_that_was_lost_is_over_with_its_term(rng: random.Random, itself: bool) -> None:
    """Whoever leads the next term, the same node included, never heard of it."""
    region = Region(rng.getrandbits(32))
    await region.found()
    leader = next(m for m in region.members.values() if m.node.committer.groups[1].leading)
    asker = next(m for m in region.members.values() if m is not leader)
    group = asker.node.committer.groups[1]
    region.deaf.add((1, asker.number))
    told: list[Any] = []
    group.when_current(told.append)
    for _ in range(12):
        await asyncio.sleep(0)
    assert not told
    region.deaf.clear()
    if itself:
        leader.node.committer.groups[1].raft.transfer_leader(asker.number)
        leader.node.committer.mark(leader.node.committer.groups[1])
        await region.until(lambda: group.leading)
    else:
        later = Message(Kind.HEARTBEAT, asker.number, leader.number, group.raft.term + 1, round=1)
        asker.step(1, encode(later))
        for _ in range(12):
            await asyncio.sleep(0)
    assert [type(error) for error in told] == [NotLeading]
    await region.close()


async def test_a_node_whose_disk_is_full_leads_nothing(
    rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steward, "PERIOD_S", 0.01)
    monkeypatch.setattr(folder, "FULL_RETRY_S", 0.01)
    region = Region(rng.getrandbits(32))
    await region.found()
    await _start(region, "w")
    leader = region.leader_of("w")
    assert leader is not None
    replicas = Replicas(leader.number, RaftSection(), lambda _to, _message: True)
    replicas.take(leader.node)
    minder = Steward(leader.node, replicas, lambda _to, _message: True, lambda _node: True, lambda: 0.0)
    minder.start()
    disk = FullDisk(leader)
    with suppress(Refused):
        await leader.signal("w", "refused", "r1")
    await region.until(lambda: not replicas.leads())  # while the disk is full
    assert leader.node.committer.refusal is not None
    other = region.members[leader.number % 3 + 1]
    for through in (other, leader):  # by way of any node, also of this one
        await region.request(through, signal("w", f"r-{through.number}"))
    disk.free()
    await region.until(lambda: leader.node.committer.refusal is None)
    minder.close()
    assert (await region.table("w")).count("WorkflowExecutionSignaled signal_name=s") == 2
    await region.close()


async def test_the_steward_writes_nothing_while_the_registry_is_handed_over(rng: random.Random) -> None:
    region = Region(rng.getrandbits(32))
    await region.found()
    leader = next(member for member in region.members.values() if member.node.meta.group.leading)
    replicas = Replicas(leader.number, RaftSection(), lambda _to, _message: True)
    minder = Steward(leader.node, replicas, lambda _to, _message: True, lambda _node: True, lambda: 0.0)
    group = leader.node.meta.group
    region.cut_off(leader.number % 3 + 1)
    group.raft.transfer_leader(leader.number % 3 + 1)
    assert group.raft.transferee
    last = group.raft.last_index
    assert not minder.propose(Plan([(b"N", b"a row")], [], "a plan"))
    assert group.raft.last_index == last
    await region.close()


async def test_a_poll_passes_over_a_task_whose_leader_is_another_by_now(rng: random.Random) -> None:
    """The core has heard of the next term, the shard not yet: the poll waits on, without an error."""
    region = Region(rng.getrandbits(32))
    await region.found()
    await _start(region, "w")
    leader = region.leader_of("w")
    assert leader is not None
    await region.request(leader, signal("w", "r"))
    shard = leader.node.shard_of(leader.node.meta.by_name["default"].id, "w")
    raft = shard.group.raft
    other = leader.number % 3 + 1
    raft.step(Message(Kind.HEARTBEAT, leader.number, other, raft.term + 1))
    assert not raft.is_leader
    assert not shard.retired
    assert leader.node.forward is not None
    forwarded = leader.node.forward.forwarded
    poll = leader.begin_poll("w")
    assert not poll.done
    assert len(leader.node.polls) == 1
    assert leader.node.forward.forwarded == forwarded  # it is not another node's business
    poll.cancel()
    await region.close()


async def test_a_sticky_task_is_rerouted_after_a_hand_over_that_was_under_way(rng: random.Random) -> None:
    """The sticky worker's node dies while the shard's leadership is on its way to another one."""
    region = Region(rng.getrandbits(32))
    await region.found()
    await region.request(region.members[1], _start_request("w"))
    await region.until_led()
    leader = region.leader_of("w")
    assert leader is not None
    poll = leader.begin_poll("w")
    await region.until(lambda: poll.done)
    task = await leader.end(wire.PollWorkflowTaskQueueRequest(), poll)
    sticky = wire.RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token)
    sticky.sticky_attributes.worker_task_queue.name = "sticky"
    sticky.sticky_attributes.schedule_to_start_timeout.seconds = 3600
    await region.request(leader, sticky)
    worker = leader.begin_poll("sticky")
    await region.pass_time(1)
    worker.cancel()  # between two polls: it counts as alive
    await region.request(leader, signal("w", "r"))
    namespace = leader.node.meta.by_name["default"].id
    shard = leader.node.shard_of(namespace, "w")
    run = shard.find(namespace, "w")
    assert run is not None
    assert run.state.task is not None
    assert run.state.task.sticky
    queue = QueueKey(namespace, WORKFLOW, "sticky")
    run_id, stamp = run.state.run_id, run.state.task.stamp
    waiting = ShardTask(shard, queue, "w", run_id, 0, stamp, 1, 1, region.clock.now, False, "w", b"")
    shard.group.raft.transfer_leader(leader.number % 3 + 1)
    assert shard.group.raft.transferee
    waiting.reroute()
    region.cut_off(leader.number % 3 + 1)  # so that it comes to nothing
    await region.until(lambda: not shard.group.raft.transferee)
    again = leader.begin_poll("w")
    await region.until(lambda: again.done)
    await region.close()
