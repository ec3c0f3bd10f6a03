"""What a committed command makes of the meta group's state: one decision, versions that never fall, rows."""

from __future__ import annotations

import msgspec
import pytest
from msgspec.structs import replace

from replication.failover.commands import (
    Abort,
    Begin,
    Close,
    Commit,
    Configure,
    Create,
    Drain,
    Force,
    Learn,
    MetaCommand,
    Settle,
    StartFencing,
    Told,
    decode_meta,
    decode_shard,
    encode,
)
from replication.failover.meta import CLOSED_MAX, MetaState
from replication.failover.records import (
    Config,
    FormatError,
    Marker,
    Mode,
    Phase,
    Point,
    Row,
    Source,
    Switch,
    decode,
    is_ours,
    meet,
)

from .conftest import MARKERS, NS, begin, draining, meta_state, row

COMMIT = Commit(1, MARKERS, {}, 5)
ABORT = Abort(1, "late")


def test_the_first_of_commit_and_abort_is_the_decision() -> None:
    state = draining()
    assert state.apply(COMMIT).accepted
    refused = state.apply(ABORT)
    assert (refused.accepted, refused.rows) == (False, [])
    assert (state.handovers[1].phase, state.truth(NS)) == (Phase.COMMITTED, 2)

    state = draining()
    assert state.apply(ABORT).accepted
    assert not state.apply(COMMIT).accepted
    assert (state.handovers[1].phase, state.truth(NS)) == (Phase.ABORTED, 1)


@pytest.mark.parametrize(
    "ack",
    [
        None,
        Marker(Point(7, 19)),  # not there yet
        Marker(Point(8, 20)),  # of another incarnation
    ],
)
def test_a_commit_whose_acknowledgements_do_not_cover_the_markers_is_refused(ack: Marker | None) -> None:
    acks = {**MARKERS, 2: ack} if ack is not None else {1: MARKERS[1]}
    state = draining()
    assert not state.apply(Commit(1, acks, {}, 5)).accepted
    assert state.handovers[1].phase is Phase.DRAINING


def test_a_marker_covers_third_regions_but_not_the_target_itself() -> None:
    third = Source(3, 1)
    marker = Marker(Point(7, 10), {Source(2, 1): Point(5, 50), third: Point(6, 60)})
    assert Marker(Point(7, 10), {third: Point(6, 60)}).covers(marker, [3])
    assert not Marker(Point(7, 10), {third: Point(6, 59)}).covers(marker, [3])
    assert not Marker(Point(7, 10)).covers(marker, [3])


def test_a_marker_tells_the_logs_of_one_region_apart() -> None:
    """After a split in region 3 a shard reads two logs of it."""
    marker = Marker(Point(7, 10), {Source(3, 1): Point(6, 60), Source(3, 4): Point(8, 65)})
    assert not Marker(Point(7, 10), {Source(3, 1): Point(6, 90)}).covers(marker, [3])
    assert not Marker(Point(7, 10), {**marker.others, Source(3, 4): Point(8, 64)}).covers(marker, [3])
    assert marker.covers(marker, [3])


def test_a_region_that_was_removed_holds_up_no_handover() -> None:
    """What it wrote was drained before it was removed; its place in the cursors stays."""
    markers = {s: Marker(m.own, {Source(3, s): Point(6, 60)}) for s, m in MARKERS.items()}
    for regions, accepted in (((1, 2, 3), False), ((1, 2), True)):
        state = meta_state(regions=regions)
        for command in (begin(), StartFencing(1, 2000), Drain(1, markers, {})):
            assert state.apply(command).accepted
        assert state.apply(COMMIT).accepted is accepted


def test_a_third_region_counts_if_it_holds_any_of_the_namespaces() -> None:
    state = meta_state(1, "a", regions=(1, 2))
    assert state.apply(Create(Config(1, 1, (1, 2, 3)), row(1, "b"))).accepted
    assert state.apply(begin(1, "a", "b")).accepted
    assert state.handovers[1].regions == (3,)


def test_several_shards_of_the_target_have_what_the_last_of_them_has() -> None:
    one = Marker(Point(7, 10), {Source(3, 1): Point(6, 60), Source(3, 4): Point(8, 65)})
    other = Marker(Point(7, 9), {Source(3, 1): Point(6, 61)})
    assert meet([one]) == one
    both = Marker(Point(7, 9), {Source(3, 1): Point(6, 60), Source(3, 4): Point(8, 65)})
    assert meet([one, other]) == meet([other, one]) == both
    restored = Marker(Point(77, 11))
    for order in ([one, restored], [restored, one]):
        assert not meet(order).covers(Marker(Point(7, 1)), [])
        assert not meet(order).covers(Marker(Point(77, 1)), [])


def test_a_commit_moves_what_nobody_took_meanwhile() -> None:
    state = draining("a", "b")
    state.apply(Learn({"a": 3}))
    assert state.apply(COMMIT).accepted
    assert state.handovers[1].committed == ("b",)
    assert (state.truth("a"), state.truth("b")) == (3, 2)


def test_what_the_target_knows_better_goes_into_the_commit() -> None:
    state = draining("a", "b")
    assert state.apply(Commit(1, MARKERS, {"a": 102}, 5)).accepted
    assert (state.truth("a"), state.handovers[1].committed) == (102, ("b",))


def test_a_handover_of_a_busy_namespace_is_refused_until_the_decision() -> None:
    state = draining()
    assert not state.apply(begin(2, target=3)).accepted
    assert state.apply(ABORT).accepted
    assert state.apply(begin(2, target=3)).accepted


@pytest.mark.parametrize(
    "command",
    [
        begin(2),  # numbers have no gap
        begin(1, target=1),  # to itself
        begin(1, target=9),  # not in the list
        begin(1, base=101),  # from a version that it does not have
        begin(1, "nobody"),
        begin(1, NS, NS),
        Begin(1, 2, (Switch(NS, 1, 102),), (1,), "r", "", "", begin().limits, 0),
        replace(begin(), shards=()),
    ],
)
def test_a_handover_that_does_not_fit_is_refused(command: MetaCommand) -> None:
    state = meta_state()
    assert not state.apply(command).accepted
    assert not state.handovers


def test_the_same_request_begins_one_handover() -> None:
    state = meta_state()
    assert state.apply(begin(1, request="r")).accepted
    state.apply(ABORT)
    assert not state.apply(begin(2, request="r")).accepted
    found = state.requested("r")
    assert found is not None
    assert found.number == 1


def test_phases_are_not_skipped() -> None:
    state = meta_state()
    state.apply(begin())
    for early in (COMMIT, Drain(1, MARKERS, {}), Close(1)):
        assert not state.apply(early).accepted
    assert state.apply(StartFencing(1, 9)).accepted
    assert not state.apply(Drain(1, {1: MARKERS[1]}, {})).accepted  # shard 2 is not fenced


def test_versions_only_rise_and_rows_give_the_version() -> None:
    state = meta_state()
    assert state.apply(Learn({NS: 102}, (row(3, base=1),))).accepted
    assert state.truth(NS) == 102
    state.apply(Learn({NS: 2, "unknown": 5}, (row(2, base=1), row(2, "unknown"))))
    assert (state.truth(NS), state.ledgers[NS].truth) == (102, 3)
    assert set(state.namespaces) == set(state.ledgers) == {NS}


def test_a_row_for_the_wrong_owner_changes_nothing() -> None:
    state = meta_state()
    assert not state.apply(Learn({NS: 5}, (row(2), replace(row(3), target=4)))).accepted
    assert state.truth(NS) == 1


@pytest.mark.parametrize(
    "command",
    [
        Learn({NS: 100}),
        Learn({}, (replace(row(2), version=100, target=0),)),
        Create(Config(1, 1, (1, 2)), replace(row(2, "new"), target=1)),
        Create(Config(1, 1, (1, 2)), replace(row(2, "new"), version=0)),
        Commit(1, MARKERS, {NS: 100}, 5),
    ],
)
def test_a_version_that_no_region_owns_is_refused(command: MetaCommand) -> None:
    """Whatever is in the log is applied by every node, for ever: nothing may be raised there."""
    state = draining()
    assert not state.apply(command).accepted
    assert (state.truth(NS), list(state.namespaces)) == (1, [NS])


def test_a_drain_counts_the_shards_that_a_split_has_made() -> None:
    state = meta_state()
    for command in (begin(), StartFencing(1, 9), Drain(1, {**MARKERS, 3: Marker(Point(9, 30))}, {})):
        assert state.apply(command).accepted
    assert not state.apply(COMMIT).accepted, "shard 3 is not acknowledged"
    assert state.handovers[1].shards == (1, 2, 3)


def test_who_was_told_of_the_old_version_is_told_again() -> None:
    state = meta_state()
    state.apply(Told(2, {NS: 1}))
    assert state.namespaces[NS].told == (2,)
    state.apply(Learn({NS: 3}))
    state.apply(Told(2, {NS: 1}))  # late
    assert state.namespaces[NS].told == ()


def test_settling_late_settles_nothing() -> None:
    state = meta_state(2)
    state.apply(Settle({NS: 5}, {}))
    assert state.namespaces[NS].settled == 0
    state.apply(Learn({NS: 2}))
    state.apply(Settle({NS: 2}, {1: {Source(1, 1): Point(7, 4)}}))
    assert state.namespaces[NS].settled == 2
    assert state.reports[NS, 2].cuts == {1: {Source(1, 1): Point(7, 4)}}


@pytest.mark.parametrize(
    ("switch", "mode", "accepted"),
    [
        (Switch(NS, 1, 2), Mode.FORCED, True),
        (Switch(NS, 3, 102), Mode.FORCED, True),  # a shard has seen 3
        (Switch(NS, 1, 102), Mode.FORCED, False),  # not the smallest
        (Switch(NS, 1, 3), Mode.FORCED, False),  # another region's
        (Switch(NS, 102, 202), Mode.BUMP, True),
    ],
)
def test_forcing_takes_the_version_that_follows_its_base(switch: Switch, mode: Mode, accepted: bool) -> None:
    state = meta_state(2)
    assert state.apply(Force(mode, (switch,), "", "", b"", 1)).accepted == accepted


def test_forcing_from_an_old_base_is_refused() -> None:
    state = meta_state(2)
    state.apply(Learn({NS: 3}))
    outcome = state.apply(Force(Mode.FORCED, (Switch(NS, 1, 2),), "", "", b"", 1))
    assert not outcome.accepted
    assert "version 3" in outcome.why


def test_an_edit_under_a_newer_version_beats_a_higher_number_under_an_older() -> None:
    state = meta_state()
    assert state.apply(Configure(NS, Config(1, 9, (1, 2), b"old"))).accepted
    assert state.apply(Configure(NS, Config(2, 1, (1, 2), b"new"))).accepted
    assert not state.apply(Configure(NS, Config(1, 99, (1, 2), b"late"))).accepted
    assert state.namespaces[NS].config.blob == b"new"


def test_the_state_is_what_its_rows_say() -> None:
    state = MetaState(1)
    rows: dict[bytes, bytes | None] = {}

    def apply(command: MetaCommand) -> None:
        rows.update(state.apply(decode_meta(encode(command))).rows)

    apply(Create(Config(1, 1, (1, 2)), row(1)))
    for command in (begin(), StartFencing(1, 5), Drain(1, MARKERS, {}), COMMIT, Told(2, {NS: 2})):
        apply(command)
    apply(Settle({NS: 2}, {}))
    apply(Close(1))
    assert all(is_ours(key) for key in rows)
    again = MetaState(1, list(rows.items()))
    assert again.namespaces == state.namespaces
    assert again.handovers == state.handovers
    assert again.ledgers[NS].history() == state.ledgers[NS].history()


def test_closed_handovers_are_forgotten_but_not_their_numbers() -> None:
    state = meta_state()
    dropped: list[Row] = []
    for number in range(1, CLOSED_MAX + 4):
        dropped += [r for r in state.apply(begin(number)).rows if r[1] is None]
        state.apply(Abort(number, ""))
        state.apply(Close(number))
    assert len(state.handovers) == CLOSED_MAX + 1
    assert len(dropped) == 2
    assert state.last_number == CLOSED_MAX + 3


def test_unknown_kinds_and_newer_formats_are_refused_by_name() -> None:
    pack = msgspec.msgpack.encode
    for data, name in [(pack((1, ["explode", 1])), "explode"), (pack((2, ["abort", 1, ""])), "format 2")]:
        with pytest.raises(FormatError, match=name):
            decode_meta(data)
    with pytest.raises(FormatError):
        decode_shard(b"\xc1")
    with pytest.raises(FormatError, match="fz"):
        decode(b"fzx", b"")
    with pytest.raises(FormatError, match="format 9"):
        decode(b"fnx", pack([9]))
