"""The ledger: rows for ever, the largest is the truth, and what an operator may be told."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from replication.failover.ledger import HISTORY_ROWS, Ledger, Verdict, confirm, digest_of
from replication.failover.records import Marker, Point, Source

from .conftest import row


def test_the_truth_is_the_largest_version_in_any_order(rng: random.Random) -> None:
    rows = [row(v) for v in (1, 2, 101, 203, 302)]
    rng.shuffle(rows)
    ledger = Ledger()
    for each in rows:
        ledger.append(each)
    assert ledger.truth == 302


def test_appending_again_changes_nothing() -> None:
    ledger = Ledger()
    assert ledger.append(row(2))
    assert not ledger.append(row(2))


def test_of_two_rows_for_one_version_the_same_one_stands_everywhere() -> None:
    early, late = row(2, hlc=1, operator="ann"), row(2, hlc=2, operator="bob")
    for order in ([early, late], [late, early]):
        ledger = Ledger()
        for each in order:
            ledger.append(each)
        assert ledger.row(2) == early


def test_a_row_that_gives_a_version_to_another_region_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to region 2"):
        Ledger().append(replace(row(2), target=3))


def test_the_history_is_the_last_rows_and_nothing_is_forgotten() -> None:
    ledger = Ledger()
    for i in range(30):
        ledger.append(row(100 * i + 1))
    assert [r.version for r in ledger.history()] == [100 * i + 1 for i in range(30 - HISTORY_ROWS, 30)]
    assert ledger.row(1) is not None


@pytest.mark.parametrize(
    ("own", "others", "verdict", "truth"),
    [
        (2, {1: 2, 3: 1}, Verdict.CONFIRMED, 2),
        (2, {1: 2, 3: None}, Verdict.CONFIRMED_LOCALLY, 2),
        (2, {1: 3, 3: None}, Verdict.LOST_RACE, 3),
        (101, {1: 101, 3: 101}, Verdict.LOST_RACE, 101),
        (102, {1: 2, 3: 2}, Verdict.CONFIRMED, 102),  # newer, of the same owner
        (2, {1: 3, 3: 102}, Verdict.CONFIRMED, 102),  # who was in between has lost
    ],
)
def test_the_confirm_rule(own: int, others: dict[int, int | None], verdict: Verdict, truth: int) -> None:
    result = confirm(2, own, others)
    assert (result.verdict, result.truth) == (verdict, truth)


def test_confirming_before_the_row_is_there_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="before version 2"):
        confirm(2, 1, {})


def test_the_digest_of_a_cut_has_everything_in_it() -> None:
    cut = {1: Marker(Point(7, 3), {Source(2, 1): Point(8, 4)}), 2: Marker(Point(7, 5))}
    assert digest_of(cut) == digest_of(dict(reversed(cut.items())))
    others = [
        {**cut, 2: Marker(Point(7, 6))},
        {**cut, 2: Marker(Point(8, 5))},
        {**cut, 1: Marker(Point(7, 3), {Source(2, 1): Point(8, 5)})},
        {**cut, 1: Marker(Point(7, 3), {Source(2, 2): Point(8, 4)})},
        {1: cut[1]},
    ]
    assert len({digest_of(each) for each in [cut, *others]}) == 6
