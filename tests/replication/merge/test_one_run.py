"""What becomes of a batch of events of one run: one test for each rule."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from replication.merge import Entry, Environment, Item, Kind, Record, Refused, merge, write
from replication.merge import effects as fx
from replication.merge.history import ROOT
from replication.merge.merging import discard, retry
from replication.merge.record import Link, current_branch

from .conftest import (
    CLOSED,
    CONTINUED,
    SCHEDULED,
    STARTED,
    TASK,
    active,
    batch,
    buffered,
    events,
    histories,
    kinds_of,
    only,
    path,
    record_of,
    signal,
    standby,
    tomb,
)

FIRST = events(1, 1, [STARTED, TASK, TASK])
KNOWN = record_of(FIRST)


def test_a_run_begins_with_its_first_batch() -> None:
    outcome = merge(Record(), FIRST, standby(1))
    assert kinds_of(outcome) == ["CreateRun", "Fork", "Append", "Advance", "SetCurrent"]
    assert only(outcome, fx.Fork) == fx.Fork("x", 1, 0, ROOT)
    assert outcome.record.current == "x"


def test_a_higher_namespace_version_is_raised_first() -> None:
    outcome = merge(Record(), events(1, 1, [STARTED], namespace=102), standby(1))
    assert outcome.effects[0] == fx.RaiseVersion(102)


def test_whoever_learns_of_a_higher_version_writes_nothing_any_more() -> None:
    record = record_of(FIRST, events(2, 1, [signal("s")], path((3, 1))))
    outcome = merge(record, events(1, 2, [TASK], path((3, 1))), active(1))
    assert outcome.effects[0] == fx.RaiseVersion(2)
    assert "Reapply" not in kinds_of(outcome)


def test_events_at_the_tip_are_appended_and_applied() -> None:
    entry = events(2, 1, [TASK], path((3, 1)))
    outcome = merge(KNOWN, entry, standby(1))
    assert outcome.effects == (fx.Append("x", 1, entry.batch.events), fx.Advance("x", entry.batch.events))
    assert histories(outcome.record) == [path((4, 1))]


def test_what_is_known_is_a_duplicate() -> None:
    outcome = merge(KNOWN, FIRST, standby(1))
    assert outcome.effects == (fx.Skip("x", "duplicate"),)
    assert outcome.record == KNOWN


def test_what_is_half_known_is_cut() -> None:
    entry = events(2, 1, [TASK, TASK, TASK], path((2, 1)))
    outcome = merge(KNOWN, entry, standby(1))
    assert only(outcome, fx.Append).events == entry.batch.events[1:]
    assert histories(outcome.record) == [path((5, 1))]


def test_a_gap_is_parked_and_says_what_is_missing() -> None:
    outcome = merge(KNOWN, events(9, 2, [TASK], path((5, 1))), standby(2))
    parked = only(outcome, fx.Park)
    assert (parked.have, parked.need) == (Item(3, 1), Item(5, 1))
    assert histories(outcome.record) == [path((3, 1))]
    assert not outcome.record.clean


def test_an_unknown_run_that_does_not_begin_is_parked() -> None:
    outcome = merge(Record(), events(9, 1, [TASK], path((5, 1))), standby(1))
    assert only(outcome, fx.Park).have == ROOT


def test_what_was_parked_follows_when_the_gap_is_closed() -> None:
    later, latest = events(9, 2, [TASK], path((5, 1))), events(10, 2, [CLOSED], path((5, 1), (6, 2)))
    record = record_of(FIRST, latest, later)
    assert len(record.parked) == 2
    outcome = merge(record, events(2, 1, [TASK, TASK], path((3, 1))), standby(2))
    assert kinds_of(outcome).count("Unpark") == 2
    assert outcome.record.clean
    assert histories(outcome.record) == [path((5, 1), (7, 2))]


def test_an_entry_is_parked_once() -> None:
    entry = events(9, 2, [TASK], path((5, 1)))
    outcome = merge(record_of(FIRST, entry), entry, standby(2))
    assert len(outcome.record.parked) == 1
    assert outcome.effects == (fx.Skip("x", "duplicate"),)


def test_events_after_an_older_one_fork_a_branch() -> None:
    outcome = merge(KNOWN, events(1, 2, [TASK], path((2, 1))), standby(2))
    assert only(outcome, fx.Fork) == fx.Fork("x", 2, 1, Item(2, 1))
    assert histories(outcome.record) == [path((2, 1), (3, 2)), path((3, 1))]


def test_the_higher_version_wins_however_short_its_branch() -> None:
    long = record_of(FIRST, events(2, 1, [TASK] * 20, path((3, 1))))
    outcome = merge(long, events(1, 2, [TASK], path((2, 1))), standby(2))
    assert only(outcome, fx.Rebuild) == fx.Rebuild("x", 2)
    assert "Advance" not in kinds_of(outcome)


def test_a_stale_batch_is_stored_and_nothing_else() -> None:
    record = record_of(FIRST, events(1, 2, [TASK], path((2, 1))))
    outcome = merge(record, events(2, 1, [TASK], path((3, 1))), standby(2))
    assert kinds_of(outcome) == ["Append"]
    assert outcome.record.runs["x"].branch.history == path((2, 1), (3, 2))


def test_a_run_may_have_two_roots() -> None:
    outcome = merge(KNOWN, events(1, 2, [STARTED, TASK]), standby(2))
    assert only(outcome, fx.Fork) == fx.Fork("x", 2, 0, ROOT)
    assert histories(outcome.record) == [path((2, 2)), path((3, 1))]


def test_the_current_branch_does_not_depend_on_the_order_of_arrival(rng: random.Random) -> None:
    branches = list(
        record_of(FIRST, events(1, 2, [TASK] * 5, path((2, 1))), events(1, 3, [TASK], path((1, 1))))
        .runs["x"]
        .branches
    )
    for _ in range(6):
        rng.shuffle(branches)
        assert current_branch(tuple(branches)).history == path((1, 1), (2, 3))


def test_one_version_on_two_branches_is_quarantined() -> None:
    record = record_of(FIRST, events(1, 2, [TASK], path((2, 1))))
    outcome = merge(record, events(2, 2, [TASK], path((3, 1))), standby(2))
    assert only(outcome, fx.Isolate).reason == "two branches of run x end at version 2"
    assert outcome.record.runs == record.runs


def test_events_after_a_close_are_quarantined() -> None:
    record = record_of(FIRST, events(2, 1, [CLOSED], path((3, 1))))
    outcome = merge(record, events(3, 1, [TASK], path((4, 1))), standby(1))
    assert "after the close" in only(outcome, fx.Isolate).reason


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (events(2, 1, [], path((3, 1)))  , "without events"),
        (events(2, 2, [TASK], path((3, 1)), namespace=1), "above its namespace's"),
        (events(2, 1, [TASK], path((3, 1), (3, 1))), "event id 3 after 3"),
        (events(2, 1, [CLOSED, TASK], path((3, 1))), "events after a close"),
        (events(2, 1, [CONTINUED], path((3, 1))), "without its successor"),
        (events(2, 1, [TASK], path((3, 1)), successor=batch(1, [STARTED], run="y")), "has not closed"),
        (events(2, 1, [CLOSED], path((3, 1)), successor=batch(1, [STARTED])), "its own successor"),
        (events(2, 1, [TASK]), "event 1 is of kind WORKFLOW_TASK"),
        (events(2, 1, [TASK], path((3, 1)), namespace=200), "no region owns it"),
        (events(2, 1, [replace(TASK, kind=Kind.ACTIVITY_FAILED)], path((3, 1))), "before it: ''"),
        (events(2, 1, [replace(TASK, kind=Kind.ACTIVITY_FAILED, about="4")], path((3, 1))), "before it: '4'"),
        (buffered(2, 1, []), "without inputs"),
        (buffered(2, 1, [signal()]), "no key"),
        (buffered(2, 1, [replace(signal(key="k"), id=4)]), "or an event id"),
    ],
)  # fmt: skip
def test_a_broken_entry_is_quarantined_and_only_its_run(entry: Entry, why: str) -> None:
    record = record_of(FIRST, events(2, 1, [CLOSED], path((3, 1))), events(3, 1, [STARTED], run="y"))
    outcome = merge(record, entry, standby(1))
    assert why in only(outcome, fx.Isolate).reason
    assert outcome.record.runs == record.runs
    more = merge(outcome.record, events(5, 1, [TASK], path((4, 1))), standby(1))
    assert len(more.record.quarantine["x"].entries) == 2
    other = merge(more.record, events(6, 1, [TASK], path((1, 1)), run="y"), standby(1))
    assert kinds_of(other) == ["Append", "Advance"]


def test_another_regions_version_is_not_believed() -> None:
    forged = events(2, 1, [TASK], path((3, 1)))
    forged = type(forged)(forged.origin._replace(region=2), 2, 1, forged.batch)
    assert "does not own it" in only(merge(KNOWN, forged, standby(1)), fx.Isolate).reason


def test_a_run_let_out_of_quarantine_catches_up() -> None:
    broken = events(2, 1, [CLOSED, TASK], path((3, 1)))
    record = record_of(FIRST, broken, events(3, 1, [TASK], path((3, 1))))
    assert not record.clean
    again = retry(record, "x", standby(1))
    assert [len(q.entries) for q in again.record.quarantine.values()] == [2]
    outcome = discard(record, "x", standby(1))
    assert outcome.record.clean
    assert histories(outcome.record) == [path((4, 1))]
    with pytest.raises(Refused, match="not in quarantine"):
        retry(outcome.record, "x", standby(1))


def test_a_run_in_quarantine_can_be_deleted() -> None:
    record = record_of(FIRST, events(2, 1, [CLOSED, TASK], path((3, 1))))
    outcome = merge(record, tomb(3, 1), standby(1))
    assert (outcome.record.runs, outcome.record.quarantine) == ({}, {})


# ---- runs that go on as others, runs that are deleted


def test_a_successor_is_born_in_the_entry_that_closes() -> None:
    entry = events(2, 1, [CONTINUED], path((3, 1)), successor=batch(1, [STARTED], run="y"))
    outcome = merge(KNOWN, entry, standby(1))
    assert outcome.record.current == "y"
    assert outcome.record.runs["y"].previous == Link("x", 4, 1)
    assert outcome.record.runs["x"].closed


def test_a_successor_waits_with_its_predecessor() -> None:
    entry = events(9, 2, [CONTINUED], path((5, 1)), successor=batch(2, [STARTED], run="y"))
    follows = events(10, 2, [TASK], path((1, 2)), run="y")
    record = record_of(FIRST, entry, follows)
    assert set(record.runs) == {"x"}
    outcome = merge(record, events(2, 1, [TASK, TASK], path((3, 1))), standby(2))
    assert histories(outcome.record, "y") == [path((2, 2))]
    assert outcome.record.clean


def test_a_deleted_run_never_reappears() -> None:
    outcome = merge(KNOWN, tomb(2, 1), standby(1))
    assert kinds_of(outcome) == ["Delete", "SetCurrent"]
    for entry in (FIRST, events(1, 2, [TASK], path((3, 1))), buffered(2, 2, [signal(key="k")])):
        late = merge(outcome.record, entry, standby(2))
        assert only(late, fx.Skip).why == "deleted"
        assert late.record.runs == {}


def test_a_tombstone_may_come_first() -> None:
    record = record_of(tomb(2, 1), FIRST)
    assert record.runs == {}
    assert record == record_of(FIRST, tomb(2, 1))


def test_the_successor_of_a_deleted_run_lives() -> None:
    entry = events(2, 1, [CONTINUED], path((3, 1)), successor=batch(1, [STARTED], run="y"))
    outcome = merge(record_of(FIRST, tomb(1, 2)), entry, standby(2))
    assert set(outcome.record.runs) == {"y"}


# ---- what the engine of the active region writes


def test_the_active_region_writes_at_the_tip() -> None:
    outcome = write(KNOWN, events(2, 1, [SCHEDULED], path((3, 1))), active(1))
    assert kinds_of(outcome) == ["Append"]  # the engine has the state already


@pytest.mark.parametrize(
    ("entry", "env", "why"),
    [
        (events(2, 1, [TASK], path((3, 1))), standby(1), "not active"),
        (events(2, 1, [TASK], path((3, 1))), active(2), "is region 1's"),
        (events(2, 1, [TASK], path((3, 1))), active(101), "is at version 101"),
        (events(2, 1, [TASK], path((3, 1)), namespace=101), active(101), "events of version 1"),
        (events(2, 1, [TASK], path((2, 1))), active(1), "do not follow"),
        (events(2, 1, [TASK], path((3, 1)), run="y"), active(1), "is not the current one"),
        (events(2, 1, [STARTED], run="y"), active(1), "run x is running"),
        (events(2, 1, [CLOSED, TASK], path((3, 1))), active(1), "after a close"),
        (buffered(2, 1, [signal(key="k")], run="y"), active(1), "run y is not running"),
        (tomb(2, 1, run="y"), active(1), "there is no run y"),
    ],
)
def test_what_the_active_region_must_not_write_is_refused(entry: Entry, env: Environment, why: str) -> None:
    with pytest.raises(Refused, match=why):
        write(KNOWN, entry, env)


def test_a_closed_run_takes_no_input() -> None:
    record = write(KNOWN, events(2, 1, [CLOSED], path((3, 1))), active(1)).record
    with pytest.raises(Refused, match="run x is not running"):
        write(record, buffered(3, 1, [signal(key="k")]), active(1))


def test_a_run_does_not_close_with_inputs_in_its_buffer() -> None:
    record = write(KNOWN, buffered(2, 1, [signal(key="k")]), active(1)).record
    with pytest.raises(Refused, match="inputs in its buffer"):
        write(record, events(3, 1, [CLOSED], path((3, 1))), active(1))
    outcome = write(record, events(3, 1, [signal(key="k"), CLOSED], path((3, 1))), active(1))
    assert only(outcome, fx.Release).keys == ("k",)
    assert outcome.record.waiting == ()
