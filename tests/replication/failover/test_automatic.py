"""Automatic failover: who is believed, and what keeps a region from taking over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pytest

from replication.failover.automatic import (
    BATCH_MAX,
    FAILURES_MIN,
    GRACEFUL_NS,
    LEADERLESS_NS_MIN,
    PAUSE_NS,
    REPORT_NS_MAX,
    Candidate,
    Diagnosis,
    Leaderless,
    Probes,
    Sites,
    diagnose,
    failback_problem,
    plan_takeover,
)
from replication.failover.readiness import Lag, RegionView

SECOND = 1_000_000_000
FAILS = Probes(FAILURES_MIN, 6 * SECOND, 0)
WORKS = Probes(0, 0, 0)
ALMOST = Probes(FAILURES_MIN - 1, 5 * SECOND, 0)
OLD = Probes(FAILURES_MIN, 6 * SECOND, REPORT_NS_MAX + 1)
WITNESS = 100
DOWN = Diagnosis(True, "it is down")
CLEAN = Lag(1, SECOND, 3, 0, 0, ())
FIT = {1: RegionView(reachable=False), 2: RegionView(), 3: RegionView()}


def sites(
    probes: Mapping[int, Probes],
    reaches: Mapping[int, Collection[int]] | None = None,
    leaderless: Leaderless | None = None,
) -> Sites:
    """Region 1 is suspected by the others, who reach each other unless told otherwise."""
    everyone = frozenset({1, *probes})
    full = {site: everyone - {1} for site in probes}
    return Sites(everyone, probes, full if reaches is None else reaches, leaderless)


@pytest.mark.parametrize(
    ("watch", "down"),
    [
        (sites({2: FAILS, 3: FAILS}), True),
        (sites({2: FAILS, WITNESS: FAILS}), True),
        (sites({2: FAILS, 3: WORKS}), False),
        (sites({2: FAILS, 3: ALMOST}), False),
        (sites({2: FAILS, 3: OLD}), False),
        (sites({2: FAILS, 3: FAILS, WITNESS: WORKS}), True),
        (sites({2: FAILS, 3: WORKS, WITNESS: WORKS}), False),
        # who has not reported says nothing
        (sites({2: FAILS, 3: FAILS})._replace(probes={2: FAILS}), False),
        # who reaches nobody else is the one that is cut off
        (sites({2: FAILS, 3: FAILS}, {2: {2}, 3: {2}}), False),
        (sites({2: FAILS, 3: FAILS}, {2: {1}, 3: {1}}), False),
    ],
)
def test_a_majority_of_the_others_has_to_fail(watch: Sites, down: bool) -> None:
    assert diagnose(1, watch).down == down


@pytest.mark.parametrize(
    ("leaderless", "down"),
    [
        (Leaderless(10, 3, LEADERLESS_NS_MIN), True),
        (Leaderless(10, 2, LEADERLESS_NS_MIN), False),
        (Leaderless(10, 3, LEADERLESS_NS_MIN - 1), False),
        (Leaderless(0, 0, LEADERLESS_NS_MIN), False),
    ],
)
def test_shards_without_leaders_are_enough(leaderless: Leaderless, down: bool) -> None:
    assert diagnose(1, sites({2: WORKS, 3: WORKS}, leaderless=leaderless)).down == down


def test_two_regions_without_a_witness_are_off_unless_asked_for() -> None:
    dead = Leaderless(10, 10, LEADERLESS_NS_MIN)
    assert not diagnose(1, sites({2: FAILS}, leaderless=dead)).down
    assert "off" in diagnose(1, sites({2: FAILS})).why
    assert not diagnose(1, sites({2: FAILS}), assume_dead_after_ns=7 * SECOND).down
    assert diagnose(1, sites({2: FAILS}), assume_dead_after_ns=6 * SECOND).down
    assert not diagnose(1, sites({2: WORKS}), assume_dead_after_ns=6 * SECOND).down


def candidate(name: str = "a") -> Candidate:
    return Candidate(name, 0, (1, 2, 3), CLEAN)


@pytest.mark.parametrize(
    ("kept", "why"),
    [
        (candidate()._replace(enabled=False), "off"),
        (candidate()._replace(since_automatic_ns=PAUSE_NS - 1), "last automatic failover"),
        (candidate()._replace(lag=CLEAN._replace(lag_ns=30 * SECOND + 1)), "behind"),
        (candidate()._replace(lag=CLEAN._replace(lag_ns=None)), "unknown"),
        (candidate()._replace(regions=(1, 3, 2)), "region 3 is preferred"),
        (candidate()._replace(regions=(1, 3)), "not able"),
    ],
)
def test_what_keeps_a_namespace_where_it_is(kept: Candidate, why: str) -> None:
    takeover = plan_takeover(2, 1, DOWN, [kept], views=FIT, source_answers=False)
    assert takeover.namespaces == []
    assert why in takeover.left["a"]


@pytest.mark.parametrize("view", [RegionView(healthy=False), RegionView(bootstrapping=True)])
def test_an_unfit_region_takes_nothing_and_the_next_one_does(view: RegionView) -> None:
    views = {**FIT, 2: view}
    assert not plan_takeover(2, 1, DOWN, [candidate()], views=views, source_answers=False).namespaces
    assert plan_takeover(3, 1, DOWN, [candidate()], views=views, source_answers=False).namespaces == ["a"]


def test_of_all_regions_exactly_one_takes_a_namespace() -> None:
    takers = [
        own
        for own in (2, 3)
        if plan_takeover(own, 1, DOWN, [candidate()], views=FIT, source_answers=False).namespaces
    ]
    assert takers == [2]


def test_the_important_first_in_batches_and_politely_where_the_source_answers() -> None:
    many = [
        candidate(f"n{i:02}")._replace(priority=i % 2, since_automatic_ns=PAUSE_NS)
        for i in range(BATCH_MAX + 10)
    ]
    takeover = plan_takeover(2, 1, DOWN, many, views=FIT, source_answers=True)
    assert len(takeover.namespaces) == BATCH_MAX
    assert takeover.namespaces[0] == "n01"
    assert takeover.namespaces[-1] == "n08"
    assert set(takeover.left.values()) == {"the next batch"}
    assert takeover.graceful_ns == GRACEFUL_NS
    assert plan_takeover(2, 1, DOWN, many, views=FIT, source_answers=False).graceful_ns == 0


def test_a_region_that_is_up_keeps_everything() -> None:
    takeover = plan_takeover(2, 1, Diagnosis(False, "well"), [candidate()], views=FIT, source_answers=True)
    assert (takeover.namespaces, takeover.left) == ([], {"a": "well"})


def test_going_back_is_for_what_moved_by_itself_after_ten_quiet_minutes() -> None:
    def problem(**changes: object) -> str:
        facts: dict[str, object] = {
            "automatic": True,
            "enabled": True,
            "healthy_ns": PAUSE_NS,
            "old": RegionView(),
            "lag": CLEAN,
            "outbox": {1: 0},
        }
        return failback_problem(**(facts | changes))  # type: ignore[arg-type]  # each is of its field's type

    assert problem() == ""
    assert problem(automatic=False)
    assert problem(enabled=False)
    assert problem(healthy_ns=PAUSE_NS - 1)
    assert problem(outbox={1: 1})
    assert problem(lag=CLEAN._replace(lag_ns=2 * SECOND))
    assert problem(lag=CLEAN._replace(parked=1))
