"""The gate of a namespace in a shard: repeated, late and reordered commands; who passes."""

from __future__ import annotations

import random

import pytest

from replication.failover.commands import (
    Activate,
    Deactivate,
    Fence,
    ShardCommand,
    Unfence,
    decode_shard,
    encode,
)
from replication.failover.gates import (
    Admission,
    Answer,
    Call,
    Effect,
    GateState,
    Verdict,
    admit,
    apply,
    state_of,
)
from replication.failover.records import Gate, Marker, Point, Source
from replication.versions import owner_of

NS = "orders"


class Shard:
    """A shard of region 1 and what its log made of it."""

    def __init__(self, *commands: ShardCommand) -> None:
        self.gates: dict[str, Gate] = {}
        self.seq = 10
        self.cursors = {Source(2, 1): Point(5, 50)}
        for command in commands:
            self.log(command)

    def log(self, command: ShardCommand) -> Answer:
        return self.effect(command).answer

    def effect(self, command: ShardCommand) -> Effect:
        offered = Point(7, self.seq + 1)
        effect = apply(self.gates, command, region=1, offered=offered, cursors=self.cursors)
        self.gates.update((gate.namespace_id, gate) for gate in effect.gates)
        self.seq += effect.emits is not None
        return effect

    def state(self) -> GateState:
        return state_of(self.gates[NS], 1)


def at(version: int, name: str = NS) -> dict[str, int]:
    return {name: version}


FENCE, UNFENCE = Fence(1, 2, at(1)), Unfence(1, at(1))


def test_a_repeated_fence_answers_with_the_first_marker() -> None:
    shard = Shard(Activate(at(1)))
    first = shard.log(FENCE)
    assert first.marker == Marker(Point(7, 11), {Source(2, 1): Point(5, 50)})
    shard.seq, shard.cursors = 30, {2: Point(5, 60)}
    again = shard.effect(FENCE)
    assert again.answer.marker == first.marker
    assert (again.gates, again.emits) == ([], None)
    assert shard.state() is GateState.FENCED


def test_the_fence_in_the_outgoing_log_says_what_the_shard_had() -> None:
    """Once, however often it is proposed; a target that lost the source finds there whether it has all."""
    shard = Shard(Activate(at(1)))
    shard.cursors = {Source(2, 1): Point(5, 50), Source(2, 4): Point(6, 55)}
    emitted = shard.effect(FENCE).emits
    assert emitted == Fence(1, 2, at(1), Marker(Point(7, 11), shard.cursors))
    assert decode_shard(encode(emitted)) == emitted
    assert shard.effect(FENCE).emits is None


def test_unfencing_opens_and_says_so_once() -> None:
    shard = Shard(Activate(at(1)), FENCE)
    assert shard.effect(UNFENCE).emits
    assert shard.state() is GateState.OPEN
    assert not shard.effect(UNFENCE).gates


def test_a_fence_that_comes_after_its_end_is_ignored() -> None:
    shard = Shard(Activate(at(1)), UNFENCE)
    answer = shard.log(FENCE)
    assert (answer.marker, shard.state()) == (None, GateState.OPEN)


def test_a_fence_that_is_late_for_one_namespace_fences_none() -> None:
    shard = Shard(Activate({"a": 1, "b": 1}), Unfence(1, {"a": 1}))
    effect = shard.effect(Fence(1, 2, {"a": 1, "b": 1}))
    assert (effect.answer.marker, effect.gates, effect.emits) == (None, [], None)


def test_the_end_of_an_older_handover_leaves_the_newer_fence() -> None:
    shard = Shard(Activate(at(1)), FENCE, Fence(2, 3, at(1)), UNFENCE)
    assert shard.state() is GateState.FENCED
    assert shard.log(FENCE).marker is None
    shard.log(Unfence(2, at(1)))
    assert shard.state() is GateState.OPEN


def test_a_fence_of_an_older_version_says_which_is_newer() -> None:
    shard = Shard(Activate(at(1)), Deactivate(at(2)))
    effect = shard.effect(FENCE)
    assert (effect.answer.marker, effect.answer.versions, effect.emits) == (None, at(2), None)


def test_a_fence_may_overtake_the_activation() -> None:
    shard = Shard(Fence(4, 2, at(101)))
    assert shard.state() is GateState.INACTIVE
    shard.log(Activate(at(101)))
    assert shard.state() is GateState.FENCED
    shard.log(Unfence(4, at(101)))
    assert shard.state() is GateState.OPEN


def test_what_was_taken_is_left_out_of_a_fence_and_the_rest_is_fenced() -> None:
    shard = Shard(Activate({"a": 1, "b": 1}), Deactivate({"a": 2}))
    answer = shard.log(Fence(1, 2, {"a": 1, "b": 1}))
    assert answer.marker is not None
    assert answer.versions == {"a": 2, "b": 1}
    assert state_of(shard.gates["b"], 1) is GateState.FENCED


def test_deactivation_takes_the_fence_with_it_and_late_ones_do_nothing() -> None:
    shard = Shard(Activate(at(1)), FENCE, Deactivate(at(2)))
    assert shard.state() is GateState.INACTIVE
    for late in (UNFENCE, Activate(at(1)), Deactivate(at(1)), Deactivate(at(2)), FENCE):
        assert not shard.effect(late).gates
    shard.log(Activate(at(101)))
    assert not shard.effect(Deactivate(at(2))).gates
    assert shard.state() is GateState.OPEN


def test_activation_keeps_the_cut_of_the_first_time() -> None:
    shard = Shard()
    first = shard.log(Activate(at(101)))
    shard.cursors = {2: Point(5, 99)}
    assert shard.log(Activate(at(101))).cuts == first.cuts == {NS: {Source(2, 1): Point(5, 50)}}


def test_a_version_of_ours_that_was_only_seen_opens_nothing() -> None:
    shard = Shard(Deactivate(at(101)))
    assert shard.state() is GateState.INACTIVE
    assert admit(shard.gates[NS], Call.MUTATION, region=1).verdict is Verdict.PARK


def test_serving_at_another_regions_version_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="version 2"):
        Shard(Activate(at(2)))


def test_in_any_order_versions_never_fall_and_the_final_state_is_the_newest(rng: random.Random) -> None:
    """A whole life of a namespace, delivered in any order and any number of times."""
    life: list[ShardCommand] = [
        Activate(at(1)),
        FENCE,
        UNFENCE,
        Fence(2, 2, at(1)),
        Deactivate(at(2)),
        Activate(at(101)),
        Fence(3, 2, at(101)),
        Unfence(3, at(101)),
    ]
    messages = life * 3
    rng.shuffle(messages)
    shard, last = Shard(), 0
    for message in messages:
        shard.log(message)
        assert shard.gates[NS].version >= last
        last = shard.gates[NS].version
    assert shard.state() is GateState.OPEN


EVERY = dict.fromkeys(Call, Verdict.ALLOW)
WAITING = EVERY | {
    Call.MUTATION: Verdict.PARK,
    Call.POLL: Verdict.PARK,
    Call.STRONG_READ: Verdict.PARK,
    Call.TASK: Verdict.HOLD,
    Call.REAPPLY: Verdict.HOLD,
}
ELSEWHERE = WAITING | dict.fromkeys([Call.MUTATION, Call.POLL, Call.STRONG_READ], Verdict.FORWARD)


@pytest.mark.parametrize(
    ("commands", "verdicts"),
    [
        ([Activate(at(1))], EVERY),
        ([Activate(at(1)), FENCE], WAITING),
        ([Deactivate(at(2))], ELSEWHERE),
        ([Activate(at(1)), FENCE, Deactivate(at(2))], ELSEWHERE),
    ],
)
def test_who_passes(commands: list[ShardCommand], verdicts: dict[Call, Verdict]) -> None:
    gate = Shard(*commands).gates[NS]
    for call, verdict in verdicts.items():
        region = owner_of(gate.version) if verdict is Verdict.FORWARD else 0
        assert admit(gate, call, region=1) == Admission(verdict, region, gate.version), call


def test_an_unknown_namespace_and_a_region_that_must_not_serve_park() -> None:
    gate = Shard(Activate(at(1))).gates[NS]
    for call, verdict in WAITING.items():
        assert admit(None, call, region=1).verdict is verdict
        assert admit(gate, call, region=1, serving=False).verdict is verdict
