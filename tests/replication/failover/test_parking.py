"""The frontend's gate: what waits, how long, how much, and in which order it leaves."""

from __future__ import annotations

import random

import pytest

from replication.failover.commands import Abort, Close, Commit, Drain, Learn, StartFencing
from replication.failover.parking import (
    MARGIN_NS,
    PARKED_NS_MAX,
    Arrival,
    GateView,
    Kind,
    ParkingGate,
    Passage,
    Route,
    gate_view,
    redirected,
)

from .conftest import MARKERS, NS, begin, meta_state

FAR = 10**15
OPEN = GateView(1, 0, False, Passage.OPEN, 0)
PARKED = GateView(1, 1, False, Passage.PARKED, 0)
AGAIN = GateView(1, 1, True, Passage.OPEN, 0)
MOVED = GateView(2, 0, False, Passage.FORWARD, 2)


def parked(*sizes: int, **limits: int) -> ParkingGate:
    gate = ParkingGate(PARKED, **limits)
    for call_id, size in enumerate(sizes):
        assert gate.arrive(call_id, size, Kind.CALL, 0, FAR) is Arrival.WAIT
    return gate


def test_the_view_follows_the_meta_group() -> None:
    state = meta_state()
    views = [gate_view(state, NS)]
    for command in (
        begin(),
        StartFencing(1, 9),
        Drain(1, MARKERS, {}),
        Abort(1, ""),
        begin(2),
        StartFencing(2, 9),
    ):
        assert state.apply(command).accepted
        views.append(gate_view(state, NS))
    passages = [view.passage for view in views if view is not None]
    o, p = Passage.OPEN, Passage.PARKED
    assert passages == [o, o, p, p, o, o, p]
    for decided in (Drain(2, MARKERS, {}), Commit(2, MARKERS, {}, 1), Close(2)):
        assert state.apply(decided).accepted
    assert gate_view(state, NS) == MOVED
    state.apply(Learn({NS: 101}))
    assert gate_view(state, NS) == GateView(101, 0, False, Passage.OPEN, 0)
    assert gate_view(state, "unknown") is None


def test_views_in_any_order_end_with_the_newest(rng: random.Random) -> None:
    state = meta_state()
    views = [gate_view(state, NS)]
    for command in (
        begin(),
        StartFencing(1, 9),
        Abort(1, ""),
        begin(2, target=3),
        StartFencing(2, 9),
        Abort(2, ""),
        begin(3),
        StartFencing(3, 9),
        Drain(3, MARKERS, {}),
        Commit(3, MARKERS, {}, 1),
    ):
        assert state.apply(command).accepted
        views.append(gate_view(state, NS))
    pushes = [view for view in views if view is not None]
    for end in range(1, len(pushes) + 1):
        some = pushes[:end] * 2
        rng.shuffle(some)
        gate = ParkingGate(OPEN)
        for view in some:
            gate.push(view)
        assert gate.view == pushes[end - 1]


def test_open_and_forward_let_pass() -> None:
    for view in (OPEN, MOVED):
        assert ParkingGate(view).arrive(1, 9, Kind.CALL, 0, FAR) is Arrival.GO


@pytest.mark.parametrize(
    ("deadline", "until"),
    [(FAR, PARKED_NS_MAX), (PARKED_NS_MAX, PARKED_NS_MAX - MARGIN_NS), (MARGIN_NS + 5, 5)],
)
def test_a_call_waits_until_shortly_before_its_deadline_and_never_long(deadline: int, until: int) -> None:
    gate = ParkingGate(PARKED)
    gate.arrive(1, 9, Kind.POLL, 0, deadline)
    assert gate.next_ns() == until
    assert gate.expire(until - 1) == []
    assert [(w.call_id, w.kind) for w in gate.expire(until)] == [(1, Kind.POLL)]
    assert (len(gate), gate.parked_bytes, gate.next_ns()) == (0, 0, None)


def test_a_call_without_time_is_not_parked() -> None:
    assert ParkingGate(PARKED).arrive(1, 9, Kind.CALL, 0, MARGIN_NS) is Arrival.OVERFLOW


def test_number_and_bytes_are_bounded() -> None:
    assert parked(1, 1, calls_max=2).arrive(9, 1, Kind.CALL, 0, FAR) is Arrival.OVERFLOW
    gate = parked(50, 40, bytes_max=100)
    assert gate.arrive(8, 11, Kind.CALL, 0, FAR) is Arrival.OVERFLOW
    assert gate.arrive(9, 10, Kind.CALL, 0, FAR) is Arrival.WAIT
    gate.gone(1)
    assert (len(gate), gate.parked_bytes) == (2, 60)


@pytest.mark.parametrize("view", [AGAIN, MOVED])
def test_they_leave_in_order_some_at_a_time_and_newcomers_queue_behind(view: GateView) -> None:
    gate = parked(1, 1, 1, released_max=2)
    assert gate.leave() == []
    assert gate.push(view)
    assert [(left.call_id, left.view) for left in gate.leave()] == [(0, view), (1, view)]
    assert gate.leave() == []
    assert gate.arrive(3, 1, Kind.CALL, 0, FAR) is Arrival.WAIT
    gate.finished(0)
    assert [left.call_id for left in gate.leave()] == [2]
    gate.finished(1)
    gate.finished(2)
    assert [left.call_id for left in gate.leave()] == [3]
    assert gate.arrive(4, 1, Kind.CALL, 0, FAR) is Arrival.GO


def test_an_old_push_is_ignored() -> None:
    gate = ParkingGate(MOVED)
    assert not gate.push(PARKED)
    assert not gate.push(MOVED)
    assert gate.view == MOVED


def test_who_was_parked_by_the_shard_waits_for_the_push() -> None:
    """The frontend's gate is stale: open, where the shard is fenced already."""
    gate = ParkingGate(OPEN)
    assert gate.arrive(1, 9, Kind.CALL, 0, FAR) is Arrival.GO
    assert gate.refused(1, 9, Kind.CALL, 5, FAR) is Arrival.WAIT
    assert gate.push(PARKED)
    assert gate.leave() == []
    assert gate.push(MOVED)
    assert [left.call_id for left in gate.leave()] == [1]


def test_a_call_is_redirected_once_and_only_by_who_knows_more() -> None:
    route = Route(2, 2)
    assert redirected(route, attached=103, redirects=0) == Route(3, 103)
    assert redirected(route, attached=103, redirects=1) == Route(0, 103)
    assert redirected(route, attached=1, redirects=0) == Route(0, 2)
    assert redirected(route, attached=2, redirects=0) == Route(0, 2)
