"""The product is broken on purpose, and the judges see it.

Each test breaks one rule in all nodes and runs seeds with the faults that the rule is for, until a judge
speaks, and begins with a seed that is known to show it. One that is never seen broken would be a rule that
nobody watches.

Not here, since what is left of the product hides them from clients but for moments that hundreds of seeds do
not hit: votes that are forgotten (a node that was started again votes for nobody for an election timeout;
tests/history_store/raft/test_mutants.py breaks them), and denied tasks that come late, and second tries that
may mean another run (tests/cluster/hosting/tasks/test_second_tries.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim import disk
from chaos.sim.run import Options, simulate
from cluster.hosting.calls.attempt import Attempt
from cluster.hosting.groups.group import Group
from cluster.hosting.shards.host import ShardHost
from cluster.hosting.tasks import dispatch, takeover
from cluster.peers.stream import StreamPeers
from history_store.engine.run import Run
from history_store.shard.rows import Rows

SEEDS_MAX = 100
DISORDER = "no order of these operations"

rarely = pytest.mark.skipif("config.getoption('--seeds') < 100", reason="takes many seeds: see `make sim`")


def seen(words: tuple[str, ...], *faults: str, first: int, seconds: float = 4.0) -> int:
    """Which seed lets a judge say one of these things."""
    said: list[str] = []
    for seed in range(first, first + SEEDS_MAX):
        report = simulate(seed, Options(seconds=seconds, faults=frozenset(faults), nodes=3, hasty=True))
        if any(word in problem for problem in report.problems for word in words):
            return seed
        said += report.problems
    raise AssertionError(f"no judge saw it in {SEEDS_MAX} seeds; said was {said[:3]}")


@rarely
def test_reads_without_lease_or_quorum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "read_index_now", lambda self: self.committed)
    seen((DISORDER,), "pause-leader", first=19, seconds=6.0)


@rarely
def test_a_lease_that_a_pause_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "read_index_now", lambda self: self.raft.read_index_now())
    seen((DISORDER,), "freeze-leader", first=1, seconds=12.0)


def test_answers_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_once(self: Group, waiter: Any, *, patient: bool = False, index: int | None = None) -> None:
        waiter(None)

    monkeypatch.setattr(Group, "when_committed", at_once)
    seen((DISORDER, "is lost", "does not finish"), "isolate-leader", "kill", first=1)


@rarely
def test_speculative_rows_that_outlive_leadership(monkeypatch: pytest.MonkeyPatch) -> None:
    def follow(self: Rows) -> None:
        self._leads = False

    monkeypatch.setattr(Rows, "follow", follow)
    seen(
        (DISORDER, "ended twice", "changed", "differ", "is not listed"),
        "isolate-leader",
        "transfer",
        first=13,
        seconds=8.0,
    )


def test_appends_acknowledged_before_they_are_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(self: disk.DiskLane, batch: Any, then: Any) -> None:
        self._loop.call_soon(then, None)
        self._jobs.append((batch, lambda error: None))
        if len(self._jobs) == 1:
            self._begin()

    monkeypatch.setattr(disk.DiskLane, "put", put)
    seen(
        (DISORDER, "is lost", "two contents", "both lead", "nobody caught", "failed"),
        "kill",
        "slow-disk",
        first=2,
    )


@rarely
def test_a_start_that_is_tried_again_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Attempt.lost

    def lost(self: Attempt) -> None:
        if self.method.endswith("/StartWorkflowExecution"):
            request = wire.StartWorkflowExecutionRequest.FromString(self.request)
            request.request_id += "-again"
            self.call.request = request.SerializeToString()
        whole(self)

    monkeypatch.setattr(Attempt, "lost", lost)
    monkeypatch.setattr(Attempt, "again", property(lambda self: False, lambda self, value: None))
    seen((DISORDER,), "isolate-leader", "transfer", "full-disk", first=10)


def test_given_receipts_that_are_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: takeover.Receipts, doubts: Any) -> Any:
        return [receipt for receipt, _ in doubts]

    monkeypatch.setattr(takeover.Receipts, "deny", deny)
    seen(("was handed to",), "transfer", first=3)


def test_signals_that_are_not_known_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "put_signal_id", lambda self, request_id: None)
    seen(("times",), "isolate-leader", "connection", "pause", first=1)


def test_a_replica_that_skips_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Rows.receive

    def receive(self: Rows, entry: Any) -> None:
        if entry.index % 40 == 0:
            self.commit(entry.index, entry.term, [], [], 0)
        else:
            whole(self, entry)

    monkeypatch.setattr(Rows, "receive", receive)
    seen(("differ", "list different"), "transfer", first=1)


def test_polls_that_nobody_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch.Poll, "expire", lambda self: None)
    seen(("DEADLINE_EXCEEDED",), "transfer", first=2)


def test_timers_that_a_new_leader_does_not_take_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardHost, "recover", lambda self: None)
    seen(("does not finish",), "transfer", "kill", first=2)


def test_a_node_that_leaves_tasks_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    async def close(self: StreamPeers) -> None:
        pass

    monkeypatch.setattr(StreamPeers, "close", close)
    seen(("left a task",), "transfer", first=1)


def test_a_waiter_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[..., None] = dispatch.Delivery.committed
    chance = random.Random(1)

    def committed(self: dispatch.Delivery, error: Any) -> None:
        whole(self, error)
        if chance.random() < 0.02:
            raise KeyError("a page that is not there")

    monkeypatch.setattr(dispatch.Delivery, "committed", committed)
    seen(("could not be told",), "transfer", first=1)
