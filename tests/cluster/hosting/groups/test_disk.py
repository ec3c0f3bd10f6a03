"""Rounds and the disk: one write for all, refusals while it is full, nothing acknowledged is ever lost."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.groups import folder
from history_store.engine.errors import Code
from history_store.storage.contract import Round, StorageBroken, StorageError, StorageFull
from tests.cluster.frontend.services.conftest import FakeCall, Refused
from tests.cluster.hosting.play import Disk, Play, activity, done, payloads, timer


class FullDisk(Disk):
    """Takes no writes while `full`."""

    def __init__(self) -> None:
        super().__init__()
        self.full: StorageError | None = None
        self.rounds: list[Round] = []

    def write(self, batch: Round) -> None:
        """See the port."""
        if self.full is not None:
            raise self.full
        self.rounds.append(batch)
        super().write(batch)

    def fold(self, batch: Round) -> None:
        """See the port."""
        if self.full is not None:
            raise self.full
        super().fold(batch)


def start_request(workflow_id: str) -> wire.StartWorkflowExecutionRequest:
    request = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=f"r-{workflow_id}"
    )
    request.workflow_type.name = "W"
    request.task_queue.name = "elsewhere"
    return request


def code(call: FakeCall) -> int:
    error = call.answer.exception()
    assert isinstance(error, Refused)
    return error.code


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is tried again at once, so that no test waits for it."""
    monkeypatch.setattr(folder, "FULL_RETRY_S", 0.001)


async def until_it_writes(play: Play) -> None:
    while play.node.committer.refusal is not None:
        await asyncio.sleep(0.001)
    await play.settle()


async def test_what_comes_together_is_written_together() -> None:
    disk = FullDisk()
    play = Play(disk, shards=4)
    await play.settle()
    disk.rounds.clear()
    calls = [play.begin(start_request(f"w{n}")) for n in range(40)]
    assert not any(call.done for call in calls), "nobody is answered before the write"
    await play.turn()
    assert all(call.done for call in calls)
    (written,) = [batch for batch in disk.rounds if batch.entries]  # rows may be stored beside it
    assert len(written.entries) == 4, "all shards share it"
    await play.close()


async def test_rows_follow_the_log_many_at_once() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.first(timer())
    await play.settle()
    assert not any(batch.rows for batch in disk.rounds), "rows are stored later"
    play.node.committer.folder._due()
    await play.settle()
    (flushed,) = [batch for batch in disk.rounds if batch.rows]
    for group, index, _, _ in flushed.applied:
        for batch in disk.rounds[: disk.rounds.index(flushed)]:
            for number, entries in batch.entries:
                assert number != group or entries[-1].index <= index, "no row is stored ahead of its entry"
    written = [key for key, _ in flushed.rows]
    assert len(written) == len(set(written)), "a row that changed often is stored once"
    await play.close()


async def test_a_full_disk_refuses_and_recovers() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.first(activity())
    disk.full = StorageFull("no space left")
    under_way = play.begin(start_request("under-way"))
    await play.settle()
    assert code(under_way) == Code.UNAVAILABLE, "it may still happen"
    refused = play.begin(start_request("refused"))
    await play.settle()
    assert code(refused) == Code.RESOURCE_EXHAUSTED
    assert await play.table("w"), "what is there can be read"
    disk.full = None
    await until_it_writes(play)
    assert (await play.describe("under-way")).workflow_execution_info.status == 1, "it did happen"
    with pytest.raises(Refused):
        await play.describe("refused")
    await play.activity_done((await play.activity()).task_token)
    await play.next(done())
    again = await play.crash()
    assert (await again.describe("w")).workflow_execution_info.status == 2
    assert (await again.describe("under-way")).workflow_execution_info.status == 1
    await again.close()


async def test_a_full_disk_in_the_middle_of_everything(rng: random.Random) -> None:
    """Whatever was under way goes on when there is space again: polls, actions, updates, timers."""
    disk = FullDisk()
    play = Play(disk)
    await play.first(activity(), timer())
    poll = play.begin_poll("q", "Activity")
    update = play.update_request("u", 2)
    moments = [
        lambda: play.begin(start_request("x")),
        lambda: play.begin(update),
        lambda: play.begin_poll(),
        lambda: play.begin_poll("q", "Activity"),
    ]
    rng.shuffle(moments)
    for number, moment in enumerate(moments):
        if number == rng.randrange(len(moments)):
            disk.full = StorageFull("no space left")
        moment()
        if rng.random() < 0.5:
            await play.settle()
    disk.full = StorageFull("no space left")
    await play.settle()
    play.clock.advance(6)
    for shard in play.node.shards:
        shard.wakes.fire()
    disk.full = None
    await until_it_writes(play)
    for shard in play.node.shards:
        shard.wakes.refill()
    await play.advance(30)
    await play.advance(30)
    assert "TimerFired" in await play.table("w")
    poll.cancel()
    for shard in play.node.shards:
        for run in shard.cache.runs.values():
            assert run.tx is None
    for left in list(play.node.polls):
        left.expire()
    play = await play.crash()
    assert "TimerFired" in await play.table("w")
    await play.advance(30)  # what a worker of the dead node held comes back
    await play.next(done())
    assert (await play.describe("w")).workflow_execution_info.status == 2
    await play.close()


async def test_actions_wait_for_space() -> None:
    """A child is started once although the disk was full between the parent's commit and the child's."""
    from tests.cluster.hosting.play import child

    disk = FullDisk()
    play = Play(disk)
    await play.start("w")
    task = await play.poll()
    request = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, commands=[child()]
    )
    disk.full = StorageFull("no space left")
    call = play.begin(request)
    await play.settle()
    assert code(call) == Code.UNAVAILABLE
    disk.full = None
    await until_it_writes(play)
    assert "ChildWorkflowExecutionStarted" in await play.table("w")
    assert (await play.describe("child")).workflow_execution_info.status == 1
    assert not [key for key in play.rows() if key[:1] == b"x"], "the action is done"
    await play.close()


async def test_an_update_over_a_full_disk() -> None:
    """Its outcome is found when the write happens after all, though the first caller was told UNAVAILABLE."""
    from tests.cluster.hosting.play import accept, respond

    disk = FullDisk()
    play = Play(disk)
    await play.first()
    waiting = play.begin(play.update_request("u"))
    await play.settle()
    task = await play.poll()
    disk.full = StorageFull("no space left")
    request = wire.RespondWorkflowTaskCompletedRequest(
        namespace="default", task_token=task.task_token, messages=[accept("u"), respond("u", "yes")]
    )
    play.begin(request)
    await play.settle()
    disk.full = None
    await until_it_writes(play)
    if not waiting.done:
        waiting.cancel()
    answer = await play.call(play.update_request("u"))
    assert answer.outcome.success == payloads("yes")
    await play.close()


async def test_a_broken_disk_stops_the_node() -> None:
    disk = FullDisk()
    play = Play(disk)
    await play.start("w")
    disk.full = StorageBroken("an I/O error")
    call = play.begin(start_request("lost"))
    await play.settle()
    assert code(call) == Code.UNAVAILABLE, "nobody knows whether it happened"
    assert [str(error) for error in play.broken] == ["an I/O error"]
    after = play.begin(start_request("after"))
    await play.settle()
    assert code(after) == Code.UNAVAILABLE
    disk.full = None
    assert not disk.rounds or disk.rounds[-1].entries is not None
    again = await play.crash()
    assert (await again.describe("w")).workflow_execution_info.status == 1
    await again.close()


@pytest.mark.parametrize("applied", [False, True])
async def test_a_write_whose_outcome_nobody_knows(applied: bool) -> None:
    """The log decides at the next start."""
    play = Play()
    await play.start("w")
    play.storage.fail_next(StorageBroken("an I/O error"), applied=applied)
    call = play.begin(start_request("maybe"))
    await play.settle()
    assert code(call) == Code.UNAVAILABLE
    again = await play.crash()
    request = wire.DescribeWorkflowExecutionRequest(namespace="default")
    request.execution.workflow_id = "maybe"
    found = again.begin(request)
    assert (found.answer.exception() is None) == applied
    assert (await again.describe("w")).workflow_execution_info.status == 1
    await again.close()


class Client:
    """Does things at random, and remembers what it was told."""

    def __init__(self, play: Play, rng: random.Random) -> None:
        self.play = play
        self.rng = rng
        self.calls: list[tuple[str, str, FakeCall]] = []
        self.acknowledged: list[tuple[str, str]] = []
        self.count = 0

    def act(self) -> None:
        self.count += 1
        name = f"w{self.rng.randrange(6)}"
        request: Any
        if self.rng.random() < 0.4:
            kind, request = "start", start_request(name)
        else:
            kind = f"signal-{self.count}"
            request = wire.SignalWorkflowExecutionRequest(
                namespace="default", signal_name=kind, request_id=kind
            )
            request.workflow_execution.workflow_id = name
        self.calls.append((kind, name, self.play.begin(request)))

    def listen(self) -> None:
        for kind, name, call in self.calls:
            if call.done and call.answer.exception() is None:
                self.acknowledged.append((kind, name))
        self.calls = [item for item in self.calls if not item[2].done]


async def test_everything_acknowledged_survives_a_crash_at_any_point(rng: random.Random) -> None:
    play = Play()
    client = Client(play, rng)
    for _ in range(4):
        client.play = play
        for _ in range(rng.randrange(1, 40)):
            match rng.randrange(8):
                case 0:
                    await asyncio.sleep(0)
                case 1:
                    await play.settle()
                case 2:
                    play.node.committer.folder._due()
                case _:
                    client.act()
            client.listen()
        for _, _, call in client.calls:
            call.cancel()
        client.calls.clear()
        play = await play.crash()
        tables = {f"w{n}": "" for n in range(6)}
        for kind, name in client.acknowledged:
            tables[name] = tables[name] or await play.table(name)
            if kind != "start":
                assert tables[name].count(f"signal_name={kind}\n") + tables[name].endswith(kind) == 1, (
                    kind,
                    name,
                )
    await play.close()
