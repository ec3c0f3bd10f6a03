"""Inputs of branches that lost: which are made again, where, and that none is made twice."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from replication.merge import (
    Anchor,
    Event,
    History,
    Kind,
    Origin,
    Outcome,
    Policy,
    Record,
    Refused,
    Settled,
    activate,
    done_with,
    merge,
    write,
)
from replication.merge import effects as fx
from replication.merge.children import child_request_id, child_run_id, is_orphan
from replication.merge.entries import key_of, origin_key, request_key, update_key
from replication.merge.reapply import INDEXED, RULES, Action, covered, held

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
    kinds_of,
    only,
    path,
    record_of,
    signal,
    standby,
    tomb,
)

FORK = path((2, 1))
OURS = record_of(
    events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [TASK], FORK)
)  # b has taken over after event 2


def event(kind: Kind, key: str = "", about: str = "", whole: bool = True) -> Event:
    return Event(0, 0, kind, b"", key, about, whole)


def stale(*inputs: Event, record: Record = OURS, parent: History = FORK) -> Outcome:
    """What b does, which is active at 2, about what a has written at 1."""
    return merge(record, events(2, 1, inputs, parent), active(2))


def copies(outcome: Outcome) -> list[tuple[str, Kind]]:
    return [(each.key, each.kind) for each in only(outcome, fx.Reapply).inputs]


def left_out(outcome: Outcome) -> set[str]:
    return set(only(outcome, fx.Settle).keys)


def told(outcome: Outcome, seq: int = 20) -> Settled:
    """What b writes into its log because of the outcome."""
    settle = only(outcome, fx.Settle)
    return Settled(Origin(2, 0, 1, seq), seq, 2, settle.at, settle.keys)


def test_the_table_has_a_line_for_every_kind() -> None:
    assert set(RULES) == set(Kind)
    assert {kind for kind, rule in RULES.items() if rule.action is not Action.NOTHING} <= INDEXED


@pytest.mark.parametrize(
    ("kind", "becomes"),
    [
        (Kind.SIGNALED, Kind.SIGNALED),
        (Kind.UPDATE_ADMITTED, Kind.UPDATE_ADMITTED),
        (Kind.UPDATE_ACCEPTED, Kind.UPDATE_ADMITTED),
        (Kind.CANCEL_REQUESTED, Kind.CANCEL_REQUESTED),
        (Kind.TERMINATED, Kind.TERMINATED),
        (Kind.OPTIONS_UPDATED, Kind.OPTIONS_UPDATED),
        (Kind.PAUSED, Kind.PAUSED),
        (Kind.UNPAUSED, Kind.UNPAUSED),
    ],
)
def test_inputs_are_made_again(kind: Kind, becomes: Kind) -> None:
    outcome = stale(event(kind, "k", "u"))
    assert only(outcome, fx.Reapply) == fx.Reapply(
        "x", fx.Place.APPEND, (fx.Source("x", 3, 1, becomes, "k", "u"),)
    )


@pytest.mark.parametrize(
    "kind",
    [
        Kind.UPDATE_COMPLETED,
        Kind.TIMER,
        Kind.WORKFLOW_TASK,
        Kind.MARKER,
        Kind.CHILD,
        Kind.EXTERNAL,
        Kind.ACTIVITY,
        Kind.ACTIVITY_TIMED_OUT,
        Kind.CLOSED,
    ],
)
def test_work_of_the_run_is_not(kind: Kind) -> None:
    assert kinds_of(stale(event(kind, "k", "2"))) == ["Fork", "Append"]


def test_an_acceptance_without_its_request_and_the_servers_own_termination_are_not() -> None:
    outcome = stale(event(Kind.UPDATE_ACCEPTED, "k", "u", whole=False), event(Kind.TERMINATED, whole=False))
    assert kinds_of(outcome) == ["Fork", "Append"]


def test_a_standby_makes_nothing_again() -> None:
    outcome = merge(OURS, events(2, 1, [signal(key="k")], FORK), standby(2))
    assert kinds_of(outcome) == ["Fork", "Append"]


def test_what_a_standby_has_stored_is_made_again_when_it_becomes_active() -> None:
    record = merge(OURS, events(2, 1, [signal(key="k")], FORK), standby(2)).record
    outcome = activate(record, active(3))
    assert kinds_of(outcome) == ["CloseTask", "Reapply"]
    assert copies(outcome) == [("k", Kind.SIGNALED)]


def made_again(outcome: Outcome, seq: int = 8) -> Record:
    """The record after the engine has taken the reapply."""
    record = outcome.record
    inputs = [Event(0, 0, s.kind, b"", s.key, s.about) for s in only(outcome, fx.Reapply).inputs]
    entry = events(seq, 2, inputs, record.runs[record.current].branch.history, record.current)
    return write(record, entry, active(2)).record


def test_what_was_made_again_is_not_asked_for_again() -> None:
    record = made_again(stale(signal(key="k")))
    outcome = merge(record, events(3, 1, [signal(key="l")], path((3, 1))), active(2))
    assert copies(outcome) == [("l", Kind.SIGNALED)]
    assert kinds_of(activate(made_again(outcome, 9), active(2))) == []


def test_a_copy_keeps_the_name_through_two_failovers() -> None:
    record = made_again(stale(signal()))
    assert covered(record) >= {"event/x/3/1"}
    # c took over without having heard of b: it has the original, and the copy is stale.
    third = merge(record, events(1, 3, [TASK], path((3, 1))), standby(3)).record
    assert third.runs["x"].branch.history == path((3, 1), (4, 3))
    assert kinds_of(activate(third, active(3))) == []


def test_two_stale_copies_of_one_input_are_one() -> None:
    record = stale(signal(key="k"), TASK).record
    outcome = merge(record, events(1, 3, [signal(key="k")], path((1, 1))), standby(3))
    again = merge(outcome.record, events(9, 102, [TASK], path((2, 1), (3, 2))), standby(102))
    assert copies(activate(again.record, active(102))) == [("k", Kind.SIGNALED)]


def test_an_update_whose_id_is_known_is_left_out() -> None:
    record = record_of(
        events(1, 1, [STARTED, SCHEDULED]),
        events(1, 2, [event(Kind.UPDATE_ADMITTED, "other", "u")], FORK),
    )
    assert "Reapply" not in kinds_of(stale(event(Kind.UPDATE_ADMITTED, "k", "u"), record=record))


def test_an_admitted_and_accepted_update_is_admitted_once() -> None:
    key = update_key("x", "u")
    outcome = stale(event(Kind.UPDATE_ADMITTED, key, "u"), event(Kind.UPDATE_ACCEPTED, key, "u"))
    assert copies(outcome) == [(key, Kind.UPDATE_ADMITTED)]


def test_a_run_is_asked_to_cancel_once() -> None:
    requests = [event(Kind.CANCEL_REQUESTED, "k"), event(Kind.CANCEL_REQUESTED, "l")]
    outcome = stale(*requests)
    assert copies(outcome) == [("k", Kind.CANCEL_REQUESTED)]
    assert left_out(outcome) == {"l"}


def test_a_termination_comes_last() -> None:
    outcome = stale(event(Kind.TERMINATED, "t"), record=OURS)
    outcome = merge(outcome.record, buffered(3, 1, [signal(key="late")]), active(2))
    assert copies(outcome) == [("late", Kind.SIGNALED), ("t", Kind.TERMINATED)]


def test_ends_of_activities_come_before_a_termination() -> None:
    outcome = stale(event(Kind.ACTIVITY_COMPLETED, about="2"), event(Kind.TERMINATED, "t"))
    assert kinds_of(outcome) == ["Fork", "Append", "Salvage", "Reapply"]


def test_a_run_that_started_later_is_not_terminated() -> None:
    record = record_of(
        events(1, 2, [STARTED], run="y"),
        events(1, 1, [STARTED]),
        events(1, 3, [TASK], path((1, 1))),
        events(2, 3, [TASK], path((1, 2)), run="y"),
    )
    assert record.current == "y"
    outcome = merge(record, events(2, 1, [event(Kind.TERMINATED, "t")], path((1, 1))), active(3))
    assert "Reapply" not in kinds_of(outcome)
    assert left_out(outcome) == {"t"}


def test_of_pauses_the_last_counts() -> None:
    outcome = stale(event(Kind.PAUSED, "p"))
    outcome = merge(outcome.record, events(7, 1, [event(Kind.UNPAUSED, "q")], path((3, 1))), active(2))
    assert copies(outcome) == [("q", Kind.UNPAUSED)]
    assert left_out(outcome) == {"p"}


def test_what_was_left_out_is_left_out_by_whoever_is_active_next() -> None:
    """y has been asked to cancel, so x's request is moot. It is not given to w, which began later."""
    old = events(1, 1, [STARTED, event(Kind.CANCEL_REQUESTED, "old")])
    log = [events(1, 2, [STARTED, event(Kind.CANCEL_REQUESTED, "own")], run="y")]
    outcome = merge(record_of(*log), old, active(2))
    settled = told(outcome)
    assert write(outcome.record, settled, active(2)).effects == ()
    log += [events(3, 2, [CLOSED], path((2, 2)), "y"), events(4, 2, [STARTED], run="w")]
    assert copies(activate(record_of(*log, old), active(3))) == [("old", Kind.CANCEL_REQUESTED)]
    for heard in ([*log, old, settled], [settled, old, *log], [old, settled, settled, *log]):
        assert kinds_of(activate(record_of(*heard), active(3))) == ["CloseTask"]


def test_a_decision_of_a_branch_that_lost_takes_no_input_with_it() -> None:
    """b had closed the run and dropped the signal; c, which had not heard of it, goes on with the run."""
    log = [events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [CLOSED], FORK)]
    dropped = [events(2, 1, [signal(key="k")], FORK), buffered(3, 1, [signal(key="l")])]
    outcome = merge(record_of(*log, dropped[0]), dropped[1], active(2), Policy(reset_closed=False))
    assert (only(outcome, fx.Settle).at, left_out(outcome)) == (Anchor("x", 3, 2), {"k", "l"})
    written = write(outcome.record, told(outcome), active(2)).record
    assert kinds_of(activate(written, active(102))) == []
    won = merge(written, events(1, 3, [TASK], FORK), standby(3))
    assert [each.key for each in only(won, fx.Hold).inputs] == ["l"]
    assert copies(activate(won.record, active(3))) == [("k", Kind.SIGNALED), ("l", Kind.SIGNALED)]
    late = record_of(*log, told(outcome), *dropped, events(1, 3, [TASK], FORK))
    assert copies(activate(late, active(3))) == [("k", Kind.SIGNALED), ("l", Kind.SIGNALED)]
    again = merge(won.record, events(30, 102, [TASK], path((2, 1), (3, 2))), standby(102))
    assert again.record.quarantine, "nothing follows a close"


def test_what_is_settled_is_what_a_region_that_is_there_has_left_out() -> None:
    record = record_of(events(1, 1, [STARTED]), events(1, 2, [TASK], path((1, 1))))
    at = Anchor("x", 2, 2)
    good = Settled(Origin(2, 0, 1, 9), 9, 2, at, ("k",))
    assert write(record, good, active(2)).record.decisions
    for away in (Anchor("x", 2, 1), Anchor("x", 3, 2), Anchor("y", 1, 2), Anchor("x", 0, 0)):
        with pytest.raises(Refused, match="is not where"):
            write(record, replace(good, at=away), active(2))
    for forged in (
        replace(good, namespace_version=3),
        replace(good, keys=()),
        replace(good, at=at._replace(version=3)),
    ):
        assert kinds_of(merge(record, forged, standby(2)))[-1] == "Isolate"


# ---- where to


def test_inputs_of_a_zombie_go_to_the_current_run() -> None:
    record = record_of(events(1, 2, [STARTED], run="y"))
    outcome = merge(record, events(1, 1, [STARTED, signal(key="k")]), active(2))
    assert only(outcome, fx.Reapply).run == "y"


def test_a_closed_run_is_reset_for_a_signal() -> None:
    record = record_of(events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [CLOSED], FORK))
    outcome = stale(signal(key="k"), event(Kind.CANCEL_REQUESTED, "c"), record=record)
    assert only(outcome, fx.Reapply) == fx.Reapply(
        "x", fx.Place.RESET, (fx.Source("x", 3, 1, Kind.SIGNALED, "k"),)
    )


def test_a_closed_run_is_not_reset_if_the_namespace_does_not_want_it() -> None:
    record = record_of(events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [CLOSED], FORK))
    entry = events(2, 1, [signal(key="k")], FORK)
    outcome = merge(record, entry, active(2), Policy(reset_closed=False))
    assert only(outcome, fx.Reapply).place is fx.Place.NOWHERE
    assert left_out(outcome) == {"k"}


def test_a_closed_run_is_not_reset_for_a_cancellation() -> None:
    record = record_of(events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [CLOSED], FORK))
    assert "Reapply" not in kinds_of(stale(event(Kind.CANCEL_REQUESTED, "c"), record=record))


def test_nothing_is_salvaged_for_a_closed_run() -> None:
    record = record_of(events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [CLOSED], FORK))
    assert kinds_of(stale(event(Kind.ACTIVITY_COMPLETED, about="2"), record=record)) == ["Fork", "Append"]


def test_inputs_for_a_closed_run_go_to_the_newer_one() -> None:
    record = record_of(
        events(1, 1, [STARTED, SCHEDULED]),
        events(1, 2, [CONTINUED], FORK, successor=batch(2, [STARTED], run="y")),
    )
    reapply = only(stale(signal(key="k"), record=record), fx.Reapply)
    assert (reapply.run, reapply.place) == ("y", fx.Place.APPEND)


def test_inputs_for_a_workflow_id_that_is_gone_are_dropped_and_counted() -> None:
    record = record_of(events(1, 2, [STARTED], run="y"), tomb(2, 2, run="y"))
    outcome = merge(record, events(1, 1, [STARTED, signal(key="k")]), active(2))
    assert only(outcome, fx.Reapply).place is fx.Place.NOWHERE
    assert len(only(outcome, fx.Reapply).inputs) == 1
    assert left_out(outcome) == {"k"}


def test_inputs_of_a_run_that_had_closed_are_its_own() -> None:
    record = record_of(events(1, 2, [STARTED], run="y"))
    outcome = merge(record, events(1, 1, [STARTED, signal(key="k"), CLOSED]), active(2))
    assert "Reapply" not in kinds_of(outcome)


def test_what_led_to_the_current_run_is_done_with() -> None:
    """x continued as y before b, which had not heard of it, terminated x; then y went on."""
    record = record_of(
        events(1, 1, [STARTED, signal(key="k"), CONTINUED], successor=batch(1, [STARTED], run="y")),
        events(1, 2, [TASK], path((1, 1))),
        events(2, 101, [TASK], path((1, 1)), run="y"),
    )
    assert record.current == "y"
    assert record.zombies() == {"x"}
    assert kinds_of(activate(record, active(101))) == []


def test_what_led_to_the_current_run_may_be_deleted() -> None:
    successor = batch(2, [STARTED], run="y")
    record = record_of(events(1, 2, [STARTED, CONTINUED], successor=successor), tomb(2, 2))
    outcome = merge(record, events(1, 1, [STARTED, signal(key="k")], run="z"), active(2))
    assert only(outcome, fx.Reapply).run == "y"


def test_what_led_to_an_older_run_is_not() -> None:
    record = record_of(
        events(1, 1, [STARTED, signal(key="k"), CONTINUED], successor=batch(1, [STARTED, CLOSED], run="y")),
        events(1, 2, [TASK], path((1, 1))),
    )
    assert record.current == "x"
    assert copies(activate(record, active(2))) == [("k", Kind.SIGNALED)]


def test_a_quarantined_runs_inputs_wait() -> None:
    record = stale(signal(key="k")).record
    record = merge(record, events(3, 1, [CLOSED, TASK], path((3, 1))), standby(2)).record
    assert "Reapply" not in kinds_of(activate(record, active(2)))


# ---- the buffer


def test_the_buffer_is_replicated_and_released_by_name() -> None:
    record = record_of(events(1, 1, [STARTED]))
    held = merge(record, buffered(2, 1, [signal(key="k")]), standby(1))
    assert kinds_of(held) == ["Hold"]
    flushed = merge(held.record, events(3, 1, [TASK, signal(key="k")], path((1, 1))), standby(1))
    assert only(flushed, fx.Release) == fx.Release("x", ("k",))
    assert flushed.record.waiting == ()
    assert kinds_of(merge(flushed.record, buffered(2, 1, [signal(key="k")]), standby(1))) == ["Skip"]


def test_a_buffer_is_flushed_by_whoever_takes_over() -> None:
    record = record_of(events(1, 1, [STARTED]), buffered(2, 1, [signal(key="k")]))
    outcome = activate(record, active(2))
    assert outcome.effects == (
        fx.CloseTask("x"),
        fx.Reapply("x", fx.Place.APPEND, (fx.Source("x", 0, 1, Kind.SIGNALED, "k"),)),
    )


def test_what_a_rule_left_out_waits_no_longer() -> None:
    """Else the engine, which has it in its buffer, would pause the run after all, and last."""
    pauses = buffered(2, 1, [event(Kind.PAUSED, "p")]), buffered(3, 1, [event(Kind.UNPAUSED, "q")])
    outcome = activate(record_of(events(1, 1, [STARTED]), *pauses), active(2))
    assert copies(outcome) == [("q", Kind.UNPAUSED)]
    written = write(outcome.record, told(outcome), active(2))
    assert only(written, fx.Release).keys == ("p",)
    assert [waiting.event.key for waiting in held(written.record)] == ["q"]
    assert only(merge(written.record, pauses[0], active(2)), fx.Skip).why == "duplicate"
    assert copies(activate(written.record, active(2))) == [("q", Kind.UNPAUSED)]


def test_what_was_too_late_for_one_run_still_waits_in_another() -> None:
    """A client that had no answer asked b, too, when z had been closed there and x had begun."""
    cancel = event(Kind.CANCEL_REQUESTED, "k")
    log = [
        events(1, 1, [STARTED, SCHEDULED], run="z"),
        events(1, 2, [CLOSED], FORK, run="z"),
        events(2, 2, [STARTED]),
        buffered(3, 2, [cancel]),
    ]
    moot = events(2, 1, [cancel], FORK, run="z")
    outcome = merge(record_of(*log), moot, active(2))
    assert "Release" not in kinds_of(outcome)
    for record in (outcome.record, record_of(log[0], moot, *log[1:])):
        assert [(each.run, each.event.key) for each in held(record)] == [("x", "k")]
        assert copies(activate(record, active(3))) == [("k", Kind.CANCEL_REQUESTED)]
    zombies = events(1, 1, [STARTED, cancel], run="y")
    outcome = merge(outcome.record, zombies, active(2))
    assert only(outcome, fx.Release) == fx.Release("x", ("k",)), "it comes as an event"
    assert copies(outcome) == [("k", Kind.CANCEL_REQUESTED)]


def test_what_came_while_the_shard_was_fenced_is_made_again_after_the_fence() -> None:
    fenced = replace(active(2), active=False)
    outcome = merge(OURS, events(2, 1, [signal(key="k")], FORK), fenced)
    assert kinds_of(outcome) == ["Fork", "Append"]
    assert kinds_of(activate(outcome.record, active(2))) == ["Reapply"]


def test_what_waits_at_the_namespaces_version_is_alive() -> None:
    record = write(record_of(events(1, 1, [STARTED])), buffered(2, 1, [signal(key="k")]), active(1)).record
    assert kinds_of(activate(record, active(1))) == []
    assert kinds_of(merge(record, events(1, 2, [TASK], path((1, 1)), namespace=2), standby(2))) != []


def test_a_flush_at_the_old_version_is_not_made_again() -> None:
    record = record_of(events(1, 1, [STARTED]), buffered(2, 1, [signal(key="k")]))
    taken = made_again(activate(record, active(2)))
    assert taken.waiting == ()
    outcome = merge(taken, events(3, 1, [signal(key="k")], path((1, 1))), active(2))
    assert "Reapply" not in kinds_of(outcome)


def test_a_buffer_of_an_unknown_run_is_parked() -> None:
    outcome = merge(Record(), buffered(2, 1, [signal(key="k")]), standby(1))
    assert kinds_of(outcome) == ["Park"]
    followed = merge(outcome.record, events(1, 1, [STARTED]), standby(1))
    assert kinds_of(followed)[-3:] == ["Unpark", "SetCurrent", "Hold"]


def test_what_waits_for_a_run_that_has_lost_is_not_alive() -> None:
    record = record_of(events(1, 2, [STARTED], run="y"), buffered(2, 2, [signal(key="k")], run="y"))
    outcome = merge(record, events(1, 3, [STARTED, CLOSED]), standby(3))
    record = merge(outcome.record, events(9, 3, [STARTED], run="z"), standby(3)).record
    # Still the version at which it was accepted, as far as b knows, but y is not current any more.
    assert copies(activate(record, active(2))) == [("k", Kind.SIGNALED)]


def test_a_tomb_says_the_same_before_its_run_and_after_it() -> None:
    """A signal of zombie x was made again in y. y was deleted: w, which began later, does not get it."""
    zombie = events(1, 1, [STARTED, signal(key="k"), signal(key="l")])
    log = [events(1, 2, [STARTED, signal(key="k")], run="y"), events(2, 2, [CLOSED], path((2, 2)), "y")]
    before = record_of(zombie, *log)
    grave = tomb(3, 2, "y", done_with(before, "y"))
    assert grave.keys == ("k",)
    assert write(before, grave, active(2)).record.tombstones
    for keys in ((), ("k", "l")):
        with pytest.raises(Refused, match="other inputs are done with"):
            write(before, tomb(3, 2, "y", keys), active(2))
    began = events(4, 2, [STARTED], run="w")
    records = [record_of(*order) for order in itertools.permutations([zombie, *log, grave, began])]
    assert {copies(activate(record, active(3))) == [("l", Kind.SIGNALED)] for record in records} == {True}
    assert all(record.decisions == records[0].decisions for record in records)


def test_a_tomb_names_what_counts_only_because_the_run_is_here() -> None:
    """y was asked to cancel, so x's request was left out there."""
    old = events(1, 1, [STARTED, event(Kind.CANCEL_REQUESTED, "old")])
    record = record_of(events(1, 2, [STARTED, event(Kind.CANCEL_REQUESTED, "own")], run="y"), old)
    record = write(record, told(activate(record, active(2))), active(2)).record
    assert done_with(record, "y") == ("old", "own")
    assert done_with(record, "x") == ()


def test_what_a_deleted_run_had_is_done_with() -> None:
    record = made_again(stale(signal(key="k"), record=successors()))
    assert record.current == "y"
    record = merge(record, events(20, 2, [CLOSED], path((2, 2)), run="y"), standby(2)).record
    record = merge(record, events(21, 2, [STARTED], run="z"), standby(2)).record
    record = merge(record, tomb(22, 2, "y", done_with(record, "y")), standby(2)).record
    assert kinds_of(activate(record, active(2))) == []


def successors() -> Record:
    """x, which b has continued as y after an event that a has written more after."""
    return record_of(
        events(1, 1, [STARTED, SCHEDULED]),
        events(1, 2, [CONTINUED], FORK, successor=batch(2, [STARTED], run="y")),
    )


# ---- salvage


def test_the_end_of_an_activity_from_before_the_fork_is_salvaged() -> None:
    outcome = stale(event(Kind.ACTIVITY_COMPLETED, about="2"))
    assert only(outcome, fx.Salvage) == fx.Salvage(
        "x", (fx.Source("x", 3, 1, Kind.ACTIVITY_COMPLETED, "event/x/3/1", "2"),)
    )
    off = merge(
        OURS,
        events(2, 1, [event(Kind.ACTIVITY_COMPLETED, about="2")], FORK),
        active(2),
        Policy(salvage=False),
    )
    assert "Salvage" not in kinds_of(off)


@pytest.mark.parametrize("end", [Kind.ACTIVITY_COMPLETED, Kind.ACTIVITY_FAILED, Kind.ACTIVITY_TIMED_OUT])
def test_an_activity_that_has_ended_here_is_not_salvaged(end: Kind) -> None:
    record = record_of(events(1, 1, [STARTED, SCHEDULED]), events(1, 2, [event(end, about="2")], FORK))
    assert "Salvage" not in kinds_of(stale(event(Kind.ACTIVITY_COMPLETED, about="2"), record=record))


def test_an_activity_from_after_the_fork_is_not_salvaged() -> None:
    assert "Salvage" not in kinds_of(stale(SCHEDULED, event(Kind.ACTIVITY_COMPLETED, about="3")))


def test_an_activity_ends_once() -> None:
    outcome = stale(event(Kind.ACTIVITY_FAILED, about="2"))
    record = merge(
        outcome.record, events(1, 3, [event(Kind.ACTIVITY_COMPLETED, about="2")], FORK), standby(3)
    ).record
    record = merge(record, events(9, 102, [TASK], path((2, 1), (3, 2))), standby(102)).record
    assert len(only(activate(record, active(102)), fx.Salvage).ends) == 1


# ---- names


def test_names_of_inputs() -> None:
    entry = buffered(2, 1, [signal(key="k")])
    assert origin_key(entry.origin, 3) == "origin/1/0/1/2/3"
    assert request_key(Kind.SIGNALED, "r") != request_key(Kind.CANCEL_REQUESTED, "r")
    plain = Event(7, 101, Kind.SIGNALED)
    assert key_of("x", plain) == "event/x/7/101"
    assert key_of("x", replace(plain, key="k")) == "k"


def test_a_child_that_is_made_again_is_the_same_run() -> None:
    run = child_run_id("p", 5, 1)
    assert run == "ef12e86f-d175-87c3-92e9-c79905d1d55a"
    assert len({run, child_run_id("p", 5, 2), child_run_id("p", 6, 1), child_run_id("q", 5, 1)}) == 4
    assert run[14] == "8"
    assert run[19] in "89ab"
    assert child_request_id("p", 5, 1) != child_request_id("p", 5, 2)


def test_a_child_whose_beginning_lost_is_an_orphan() -> None:
    assert is_orphan(path((2, 1), (9, 2)), 5, 1)
    assert not is_orphan(path((2, 1), (9, 2)), 5, 2)
