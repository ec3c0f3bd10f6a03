"""The clock of the groups: what a leader makes of ticks that come late, and of those it slept through."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.hosting.config.node_config import RaftSection
from cluster.hosting.replicas.replicas import Replicas
from history_store.raft import Config, Kind, Message, RawNode

RAFT = RaftSection()
TICK_S = RAFT.tick_ms / 1000


class Alone:
    """The clock, and a group: its leader, of three, whom nobody answers any more."""

    def __init__(self) -> None:
        self.now = 0.0
        self.raft = RawNode(
            Config(1, voters=(1, 2, 3), election_ticks=RAFT.election_ticks), random.Random(1).randrange
        )
        self.settle()
        self.raft.campaign()
        for kind in (Kind.PRE_VOTE_RESPONSE, Kind.VOTE_RESPONSE):
            self.settle()
            self.raft.step(Message(kind, 1, 2, 1))
        self.settle()
        assert self.raft.is_leader
        self.marked = 0
        self.replicas = Replicas(1, RAFT, lambda _to, _message: True)
        node: Any = SimpleNamespace(
            loop=SimpleNamespace(time=lambda: self.now, call_later=lambda _s, _call: object()),
            committer=SimpleNamespace(awake={self: None}, mark=self.mark),
        )
        self.replicas._node = node
        self.replicas.start()

    def mark(self, _group: object) -> None:
        self.marked += 1

    def settle(self) -> None:
        while self.raft.has_ready():
            self.raft.advance(self.raft.ready())

    def later(self, ticks: int) -> None:
        self.now += ticks * TICK_S
        self.replicas.catch_up()


@pytest.mark.parametrize("at_once", [1, 2, RAFT.election_ticks // 2 - 1])
def test_a_busy_loop_measures_the_silence_of_others_as_it_is(at_once: int) -> None:
    alone = Alone()
    ticks = 0
    while alone.raft.is_leader:
        alone.later(at_once)
        ticks += at_once
    assert RAFT.election_ticks <= ticks < RAFT.election_ticks + at_once


@pytest.mark.parametrize("ticks", [RAFT.election_ticks, 100 * RAFT.election_ticks])
def test_the_silence_of_a_pause_is_not_that_of_others(ticks: int) -> None:
    alone = Alone()
    alone.later(ticks)
    assert alone.raft.is_leader


def test_heartbeats_are_asked_for_while_a_ready_is_out() -> None:
    alone = Alone()
    alone.raft.propose(b"x")
    alone.raft.ready()
    alone.later(RAFT.heartbeat_ticks)
    assert alone.marked == 1
    assert Kind.HEARTBEAT in {message.kind for message in alone.raft.take_messages()}
