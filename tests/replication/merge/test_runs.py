"""Between the runs of one workflow id: who is current, who is a zombie."""

from __future__ import annotations

import itertools
import random

import pytest

from replication.merge import Entry, Event, Record, merge
from replication.merge import effects as fx
from replication.merge.entries import OrderKey

from .conftest import (
    CLOSED,
    CONTINUED,
    STARTED,
    TASK,
    batch,
    events,
    kinds_of,
    only,
    path,
    record_of,
    standby,
    tomb,
)


def test_of_two_open_runs_the_newer_is_current_and_the_other_a_zombie() -> None:
    outcome = merge(record_of(events(9, 1, [STARTED, TASK])), events(1, 2, [STARTED], run="y"), standby(2))
    assert only(outcome, fx.Suppress) == fx.Suppress("x", "y")
    assert only(outcome, fx.SetCurrent) == fx.SetCurrent("y")
    assert outcome.record.zombies() == {"x"}
    assert not any(isinstance(effect, fx.Append) and effect.run == "x" for effect in outcome.effects)


def test_an_older_open_run_comes_as_a_zombie() -> None:
    outcome = merge(record_of(events(1, 2, [STARTED], run="y")), events(9, 1, [STARTED]), standby(2))
    assert only(outcome, fx.Suppress) == fx.Suppress("x", "y")
    assert "SetCurrent" not in kinds_of(outcome)


def test_an_older_closed_run_is_history_and_no_zombie() -> None:
    outcome = merge(record_of(events(1, 2, [STARTED], run="y")), events(9, 1, [STARTED, CLOSED]), standby(2))
    assert outcome.record.zombies() == frozenset()
    assert outcome.record.current == "y"


def test_a_newer_run_takes_over_from_a_closed_one() -> None:
    outcome = merge(record_of(events(1, 1, [STARTED, CLOSED])), events(2, 1, [STARTED], run="y"), standby(1))
    assert outcome.record.current == "y"
    assert "Suppress" not in kinds_of(outcome)


def test_a_zombie_revives_when_a_later_entry_makes_it_the_newest() -> None:
    record = record_of(events(9, 1, [STARTED]), events(1, 2, [STARTED], run="y"))
    outcome = merge(record, events(10, 101, [TASK], path((1, 1))), standby(101))
    assert only(outcome, fx.Revive).run == "x"
    assert only(outcome, fx.Suppress) == fx.Suppress("y", "x")
    assert outcome.record.current == "x"


def test_a_zombie_whose_close_comes_is_none_any_more() -> None:
    record = record_of(events(9, 1, [STARTED]), events(1, 2, [STARTED], run="y"))
    outcome = merge(record, events(10, 1, [CLOSED], path((1, 1))), standby(2))
    assert only(outcome, fx.Revive).run == "x"
    assert outcome.record.current == "y"


def test_at_one_version_the_log_decides() -> None:
    first, second = events(1, 1, [STARTED, CLOSED]), events(2, 1, [STARTED], run="y")
    for entries in ((first, second), (second, first)):
        assert record_of(*entries).current == "y"


def test_a_successor_is_newer_than_the_run_it_follows() -> None:
    entry = events(1, 1, [STARTED, CONTINUED], successor=batch(1, [STARTED], run="a"))
    record = record_of(entry)
    assert record.runs["x"].branch.key < record.runs["a"].branch.key == OrderKey(1, 1, 1)
    assert record.current == "a"


def test_a_deleted_winner_brings_no_zombie_back() -> None:
    record = record_of(events(9, 1, [STARTED]), events(1, 2, [STARTED, CLOSED], run="y"), tomb(2, 2, run="y"))
    assert record.current == ""
    assert record.zombies() == {"x"}
    assert record_of(events(3, 2, [STARTED], run="z"), env=standby(2)).current == "z"


def test_late_entries_of_a_deleted_run_keep_its_place() -> None:
    newest = events(5, 2, [TASK], path((1, 1)), run="y")
    entries: tuple[Entry, ...] = (
        events(3, 1, [STARTED], run="y"),
        newest,
        tomb(4, 1, run="y"),
        events(1, 1, [STARTED]),
    )
    records = {record_of(*order).current for order in itertools.permutations(entries)}
    assert records == {""}


def test_the_current_run_does_not_depend_on_the_order_of_arrival(rng: random.Random) -> None:
    logs: list[list[Entry]] = [
        [
            events(1, 1, [STARTED]),
            events(2, 1, [CONTINUED], path((1, 1)), successor=batch(1, [STARTED], run="y")),
            events(3, 101, [TASK], path((1, 1)), run="y"),
        ],
        [
            events(1, 2, [TASK, CLOSED], path((1, 1))),
            events(2, 2, [STARTED], run="z"),
            events(3, 102, [TASK], path((1, 2)), run="z"),
        ],
        [events(1, 3, [STARTED], run="y"), events(2, 3, [STARTED, TASK], run="w")],
    ]
    expected: tuple[object, ...] | None = None
    for _ in range(200):
        queues = [list(log) for log in logs]
        record = Record()
        while any(queues):
            queue = rng.choice([queue for queue in queues if queue])
            record = merge(record, queue.pop(0), standby(102)).record
        found = (
            record.current,
            record.zombies(),
            sorted(branch.history for run in record.runs.values() for branch in run.branches),
        )
        expected = expected or found
        assert found == expected
        assert record.current == "z"


@pytest.mark.parametrize("older", [[STARTED], [STARTED, CLOSED]])
def test_suppression_is_no_event(older: list[Event]) -> None:
    """Nothing written because of the conflict may raise the loser's key."""
    record = record_of(events(9, 1, older))
    outcome = merge(record, events(1, 2, [STARTED], run="y"), standby(2))
    assert outcome.record.runs["x"] == record.runs["x"]
