"""What a record may forget, when, and that nobody notices."""

from __future__ import annotations

import pytest

from replication.merge import Anchor, Event, Heard, Kind, Origin, Settled, activate, horizon, merge, prune
from replication.merge.rows import from_rows, to_rows

from .conftest import (
    CLOSED,
    STARTED,
    TASK,
    active,
    buffered,
    events,
    kinds_of,
    path,
    record_of,
    signal,
    standby,
    tomb,
)

OWN = {(2, 1): 70, (2, 4): 50, (3, 1): 60}  # region 2's shard has parted
SAYS = {
    2: Heard({1: 55, 4: 50}, {(1, 1): 45, (3, 1): 55}),
    3: Heard({1: 60}, {(1, 1): 41, (2, 1): 65, (2, 4): 44}),
}
BOTH = (2, 3)


def test_the_horizon_is_what_everybody_has_of_every_log() -> None:
    assert horizon(1, OWN, SAYS, BOTH, keep_ms=0) == 41
    assert (
        horizon(1, OWN, {**SAYS, 3: Heard({1: 60}, {(1, 1): 48, (2, 1): 65, (2, 4): 44})}, BOTH, keep_ms=0)
        == 44
    )
    assert (
        horizon(1, {**OWN, (3, 1): 90}, {**SAYS, 2: Heard({1: 9}, {(1, 1): 45, (3, 1): 40})}, BOTH, keep_ms=0)
        == 40
    )
    assert horizon(1, {(2, 1): 30}, {2: Heard({1: 20}, {(1, 1): 45})}, [2], keep_ms=0) == 30
    assert horizon(1, {}, {}, [], keep_ms=0) == 0


@pytest.mark.parametrize(
    ("own", "heard"),
    [
        ({**OWN, (2, 4): 49}, SAYS),  # region 2 wrote something before it said so that is not here
        ({**OWN, (2, 1): 54}, SAYS),  # nor is what another of its shards did, whose clock is ahead
        ({(2, 1): 70, (3, 1): 60}, SAYS),  # it has parted, and we have not come there
        ({(2, 1): 70, (2, 4): 50}, SAYS),  # nothing was read of region 3
        (OWN, {2: SAYS[2]}),  # it has said nothing
        (OWN, {**SAYS, 3: Heard({1: 60}, {(2, 1): 65, (2, 4): 44})}),  # it has read nothing of ours
        (OWN, {**SAYS, 3: Heard({1: 60}, {(1, 1): 41})}),
    ],
)
def test_who_is_cut_off_holds_everything_back(
    own: dict[tuple[int, int], int], heard: dict[int, Heard]
) -> None:
    assert horizon(1, own, heard, BOTH, keep_ms=0) == 0


def test_a_region_that_was_removed_holds_nothing_back() -> None:
    says = {2: Heard({1: 55, 4: 50}, {(1, 1): 45, (3, 1): 5})}
    assert horizon(1, {**OWN, (3, 1): 2}, says, [2], keep_ms=0) == 45


def test_what_is_stable_is_kept_for_a_while() -> None:
    now = 1 << 60
    own, says = {(2, 1): now}, {2: Heard({1: now}, {(1, 1): now})}
    assert horizon(1, own, says, [2]) == now - (7 * 24 * 3600 * 1000 << 16)


GONE = record_of(
    events(1, 2, [STARTED, CLOSED], run="a"),
    events(2, 2, [STARTED, CLOSED], run="b"),
    events(3, 2, [STARTED], run="c"),
    tomb(4, 2, "a"),
    tomb(5, 2, "b"),
)


def test_the_greatest_tombstone_stays_and_newer_ones() -> None:
    assert set(prune(GONE, 3).tombstones) == {"a", "b"}
    assert prune(GONE, 3) is GONE
    assert set(prune(GONE, 4).tombstones) == {"b"}
    assert set(prune(GONE, 99).tombstones) == {"b"}
    nobodys = merge(GONE, tomb(6, 2, "c"), standby(2)).record
    assert nobodys.current == prune(nobodys, 99).current == ""
    assert set(prune(nobodys, 99).tombstones) == {"c"}


CANCEL = Event(0, 0, Kind.CANCEL_REQUESTED, b"", "c")
LEFT_OUT = Settled(Origin(2, 0, 1, 3), 3, 2, Anchor("y", 1, 2), ("c", "d"))
# x, a zombie, was asked to cancel, which y was spared; then y closed, and w began.
LOG = (
    events(1, 2, [STARTED], run="y"),
    events(1, 1, [STARTED, CANCEL]),
    LEFT_OUT,
    events(4, 2, [CLOSED], path((1, 2)), "y"),
    events(5, 2, [STARTED], run="w"),
)


def test_a_decision_stays_while_what_it_leaves_out_is_here() -> None:
    record = record_of(*LOG)
    assert prune(record, 2) is record
    pruned = prune(record, 3)
    assert [each.keys for each in pruned.decisions.values()] == [("c",)]
    assert kinds_of(activate(pruned, active(3))) == ["CloseTask"]
    assert from_rows(to_rows(pruned)) == pruned
    without = merge(pruned, tomb(7, 2), standby(2)).record
    assert not prune(without, 6).decisions
    assert set(prune(without, 6).tombstones) == {"x"}


def test_a_decision_that_counts_no_more_stays_while_it_might_count_again() -> None:
    """What beats its branch may be news: b, which has not heard of it, goes on there, and wins."""
    lost = merge(record_of(*LOG[:3]), events(8, 1, [STARTED], run="y"), standby(2)).record
    lost = merge(lost, events(9, 3, [TASK], path((1, 1)), "y"), standby(3)).record
    assert kinds_of(activate(lost, active(3))) == ["Reapply"]
    pruned = prune(lost, 3)
    assert activate(pruned, active(3)).effects == activate(lost, active(3)).effects
    back = merge(pruned, events(10, 102, [TASK], path((1, 2)), "y"), standby(102)).record
    assert kinds_of(activate(back, active(103))) == ["CloseTask"]
    gone = merge(pruned, tomb(11, 3, "y"), standby(3)).record
    assert not prune(gone, 3).decisions, "it will not count again"
    assert not prune(merge(pruned, tomb(11, 3), standby(3)).record, 3).decisions, "nothing to leave out"


def test_the_tombstone_that_a_decision_stands_on_stays_with_it() -> None:
    """y was deleted, and what counted there with it; then z was deleted, which had begun later."""
    record = record_of(*LOG[:2], tomb(3, 2, "y", ("c",)), events(5, 2, [STARTED], run="z"), tomb(6, 2, "z"))
    pruned = prune(record, 99)
    assert set(pruned.tombstones) == {"y", "z"}
    assert kinds_of(activate(pruned, active(3))) == []
    assert set(prune(merge(pruned, tomb(7, 2), standby(2)).record, 99).tombstones) == {"z"}


HELD = buffered(2, 1, [Event(0, 0, Kind.CANCEL_REQUESTED, b"", "d"), signal(key="s")])


def test_what_was_left_out_of_a_buffer_stays_until_nothing_can_bring_it_back() -> None:
    """y, where it was left out, is closed by b at 2, continued by c at 3, and loses to b's w at 102."""
    record = record_of(*LOG[:3], HELD)
    pruned = prune(record, 3)
    assert [each.event.key for each in pruned.waiting] == ["d", "s"]
    assert [each.keys for each in pruned.decisions.values()] == [("c", "d")]
    late = [
        *LOG[3:],
        events(4, 3, [TASK], path((1, 2)), "y"),
        events(6, 102, [TASK], path((1, 2)), "w"),
    ]
    for entry in late:
        record = merge(record, entry, standby(entry.namespace_version)).record
        pruned = prune(merge(pruned, entry, standby(entry.namespace_version)).record, 3)
    assert pruned.is_zombie("y")
    assert activate(pruned, active(102)).effects == activate(record, active(102)).effects


def test_what_a_deletion_is_done_with_leaves_the_buffer() -> None:
    record = record_of(*LOG[:2], HELD, tomb(3, 2, "y", ("c", "d")), events(5, 2, [STARTED], run="w"))
    pruned = prune(record, 3)
    assert [each.event.key for each in pruned.waiting] == ["s"]
    assert [each.keys for each in pruned.decisions.values()] == [("c",)]


def test_nothing_is_forgotten_while_something_is_parked() -> None:
    record = merge(record_of(*LOG), events(20, 1, [TASK], path((7, 1))), standby(2)).record
    assert prune(record, 99) is record
