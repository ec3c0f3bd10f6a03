"""Serving after a restart and in isolation; and leases that exclude each other whatever the clocks say."""

from __future__ import annotations

import random

import pytest

from replication.failover.isolation import (
    ISOLATION_CHECK_NS,
    LEASE_NS,
    SKEW_NS_MAX,
    Contact,
    Promise,
    Serving,
    lease_until_ns,
    may_activate_ns,
    self_fence_problem,
    serving,
)

NOW = 100 * ISOLATION_CHECK_NS
LONG_AGO = NOW - ISOLATION_CHECK_NS


@pytest.mark.parametrize(
    ("contact", "plain", "fencing"),
    [
        # restarted a moment ago: asks everybody before it serves
        (Contact(NOW, {2: None, 3: NOW}, NOW, True), Serving.HOLD, Serving.HOLD),
        (Contact(NOW, {2: NOW, 3: NOW}, None, True), Serving.HOLD, Serving.HOLD),
        (Contact(NOW, {2: NOW, 3: NOW}, NOW, False), Serving.HOLD, Serving.HOLD),
        (Contact(NOW, {2: NOW, 3: NOW}, NOW, True), Serving.SERVE, Serving.SERVE),
        # who does not answer for long is not waited for
        (Contact(LONG_AGO, {2: None, 3: NOW}, NOW, True), Serving.SERVE, Serving.SERVE),
        (Contact(LONG_AGO, {2: None, 3: None}, NOW, True), Serving.ALARM, Serving.HOLD),
        # contact lost while it ran
        (Contact(0, {2: LONG_AGO, 3: LONG_AGO + 1}, NOW, True), Serving.SERVE, Serving.SERVE),
        (Contact(0, {2: LONG_AGO, 3: LONG_AGO}, NOW, True), Serving.ALARM, Serving.HOLD),
        # what was heard has to be in the log, however long that takes
        (Contact(0, {2: NOW}, NOW, False), Serving.HOLD, Serving.HOLD),
        (Contact(NOW, {}, None, True), Serving.SERVE, Serving.SERVE),
    ],
)
def test_whether_to_serve(contact: Contact, plain: Serving, fencing: Serving) -> None:
    assert serving(contact, NOW) is plain
    assert serving(contact, NOW, self_fence=True) is fencing


def test_self_fencing_takes_three_sites() -> None:
    assert "witness" in self_fence_problem(2)
    assert not self_fence_problem(3)


def test_a_lease_is_what_a_majority_granted_counted_from_the_asking() -> None:
    sites = [1, 2, 3]
    assert lease_until_ns({1: 50, 2: 40, 3: 10}, sites) == 40 + LEASE_NS
    assert lease_until_ns({1: 50, 3: 10}, sites) == 10 + LEASE_NS
    assert lease_until_ns({1: 50, 9: 60}, sites) == 0
    assert lease_until_ns({}, sites) == 0


def test_activation_waits_for_promises_of_a_majority_and_for_the_lease() -> None:
    assert may_activate_ns({3: 10}, [1, 2, 3]) is None
    assert may_activate_ns({3: 10, 2: 30}, [1, 2, 3]) == 30 + LEASE_NS + SKEW_NS_MAX
    assert may_activate_ns({3: 10, 9: 30}, [1, 2, 3]) is None


def test_a_promise_is_never_taken_back() -> None:
    promise = Promise(1).promised(102).promised(2)
    assert [promise.grants(version) for version in (1, 2, 102, 201)] == [False, False, True, True]


def overlap(rng: random.Random, skew_ns_max: int) -> bool:
    """One forced failover against a renewing active region; clocks are apart and drift. Both at one
    instant?
    """
    sites = list(range(1, rng.choice([3, 4, 5]) + 1))
    # The target's clock is fast: what it waits is shorter in truth, by what SKEW_NS_MAX has to cover.
    rate = 1 + rng.random() * SKEW_NS_MAX / (LEASE_NS + SKEW_NS_MAX)
    offset = rng.randrange(-(10**12), 10**12)
    promises = dict.fromkeys(sites, Promise(1))
    granted: dict[int, int] = {}
    promised: dict[int, int] = {}
    events: list[tuple[int, str, int, int]] = []
    for asked in range(0, 30 * LEASE_NS, LEASE_NS // 4):
        events += [(asked + rng.randrange(LEASE_NS), "renew", s, asked) for s in sites if rng.random() < 0.8]
    start = rng.randrange(10 * LEASE_NS)
    events += [(start + rng.randrange(LEASE_NS), "promise", site, 0) for site in sites]
    opens = None
    for at, kind, site, asked in sorted(events):
        if kind == "renew" and promises[site].grants(1):
            granted[site] = max(granted.get(site, 0), asked)
        elif kind == "promise":
            promises[site] = promises[site].promised(2)
            promised[site] = offset + int(at * rate)
    opens = may_activate_ns(promised, sites, skew_ns_max=skew_ns_max)
    assert opens is not None
    return lease_until_ns(granted, sites) > (opens - offset) / rate


def test_lease_and_activation_never_overlap(rng: random.Random) -> None:
    assert not any(overlap(rng, SKEW_NS_MAX) for _ in range(200))


def test_without_the_wait_they_would(rng: random.Random) -> None:
    assert any(overlap(rng, -LEASE_NS) for _ in range(200))
