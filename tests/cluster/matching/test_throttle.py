"""The limit a worker asks for its queue."""

from __future__ import annotations

import random

from cluster.matching.throttle import SECOND_NS, Throttle


def test_a_slow_limit_lets_one_through_and_then_makes_wait() -> None:
    throttle = Throttle(0.5, 0)
    assert throttle.wait_ns(0) == 0
    throttle.take()
    assert throttle.wait_ns(0) == 2 * SECOND_NS
    assert throttle.wait_ns(SECOND_NS) == SECOND_NS
    assert throttle.wait_ns(2 * SECOND_NS) == 0


def test_zero_holds_everything_until_a_poll_lifts_it() -> None:
    throttle = Throttle(0.0, 0)
    assert throttle.wait_ns(3600 * SECOND_NS) > 0
    throttle.set(10.0, 3600 * SECOND_NS)
    assert throttle.wait_ns(3601 * SECOND_NS) == 0


def test_over_any_stretch_no_more_than_burst_and_rate(rng: random.Random) -> None:
    rate = rng.choice([1.0, 2.5, 7.0, 100.0])
    throttle = Throttle(rate, 0)
    now = 0
    taken: list[int] = []
    for _ in range(2_000):
        now += rng.randrange(0, SECOND_NS // 20)
        if throttle.wait_ns(now) == 0:
            throttle.take()
            taken.append(now)
    for start in rng.sample(range(len(taken)), min(50, len(taken))):
        count = sum(1 for at in taken[start:] if at - taken[start] <= 3 * SECOND_NS)
        assert count <= throttle.burst + 3 * rate + 1
