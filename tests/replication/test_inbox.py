"""What a reader takes, asks for, and refuses (replication/inbox.py): one rule a test."""

import random
from itertools import pairwise

import msgspec
import pytest

from replication import frames as frames_module
from replication.frames import START, ChainBroken, Entry, Frame, Kind, Stream, Tail, make_frames
from replication.inbox import Ask, Inbox, Limits, Reason
from replication.log import cursor as cursors
from replication.log.contract import Head, Slice
from replication.log.cursor import Batch, Cursor, CursorError, Opened, adopt, advance
from replication.log.search import Place
from replication.outbox import Doorbell, Pulled, append, ring
from replication.outbox import begin as begin_outbox

STREAM = Stream("a", 7, 0x5EED)


def told(*counts: int, size: int = 0, stream: Stream = STREAM) -> list[Frame]:
    tip, kept = begin_outbox(stream), []
    for count in counts:
        made, tip = append(tip, [Entry(Kind.SIDE, payload=bytes(size))] * count, 1000)
        kept += made
    return kept


def reader(
    cursor: Cursor | None = None, limits: Limits | None = None, thirds: tuple[str, ...] = ("c",)
) -> Inbox:
    return Inbox(cursor or cursors.begin(STREAM), thirds, 0, limits or Limits())


def slice_of(*found: Frame) -> Slice:
    return Slice(tuple(found), max((frame.last_seq for frame in found), default=0))


def pulled(*found: Frame, oldest: int = 1, last_seq: int = 0, stream: Stream = STREAM) -> Pulled:
    return Pulled(stream, oldest, last_seq or max((frame.last_seq for frame in found), default=0), found)


def taken(inbox: Inbox) -> list[int]:
    batch = inbox.take(1 << 30, 0)
    return [opened.frame.first_seq for opened in batch.frames] if batch else []


def asked(inbox: Inbox, now: int, place: Place) -> Ask:
    """The one question for a place."""
    (ask,) = [ask for ask in inbox.asks(now) if ask.place is place]
    return ask


def changed(frame: Frame) -> Frame:
    return msgspec.structs.replace(frame, content=frame.content[:-1] + b"\xc1")


class Shell:
    """Puts questions to places that answer at once, from given frames; counts them."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.now = 0
        self.has: dict[Place, list[Frame] | None] = dict.fromkeys(Place)  # None: does not answer
        self.oldest = 1
        self.last_seq = 0
        self.stream = STREAM
        self.asked: list[tuple[int, Place]] = []

    def run(self, until: int) -> None:
        while (due := self.inbox.timer()) is not None and due <= until:
            self.now = max(self.now, due)
            for ask in self.inbox.asks(self.now):
                self.asked.append((self.now, ask.place))
                self.answer(ask)
        self.now = until

    def answer(self, ask: Ask) -> None:
        has = self.has[ask.place]
        if has is None:
            self.inbox.failed(ask, self.now)
            return
        found = [frame for frame in has if frame.first_seq >= ask.want][: ask.frames_max]
        if ask.place is Place.PULL:
            whole = ask.want >= self.oldest
            answer = Pulled(self.stream, self.oldest, self.last_seq, tuple(found) if whole else ())
            self.inbox.answered(ask, answer, self.now)
        else:
            self.inbox.answered(ask, slice_of(*found), self.now)

    def times(self, place: Place) -> list[int]:
        return [now for now, asked_place in self.asked if asked_place is place]


# ----------------------------------------------------------------------------------------------------- taking


def test_what_the_own_region_has_is_taken_in_order():
    kept = told(1, 3, 2)
    inbox = reader()
    ask = asked(inbox, 0, Place.OWN)
    assert (ask.want, ask.region) == (1, "")
    inbox.answered(ask, slice_of(*kept), 1)
    assert inbox.want == 7
    assert taken(inbox) == [1, 2, 5]
    assert inbox.take(1 << 30, 1) is None


def test_only_the_prefix_without_a_gap_is_taken():
    kept = told(1, 1, 1, 1)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(kept[0], kept[2], kept[3]), 1)
    assert taken(inbox) == [1]
    assert inbox.want == 2
    assert inbox.behind == 3
    inbox.answered(asked(inbox, 100, Place.OWN), slice_of(kept[1]), 101)
    assert taken(inbox) == [2, 3, 4], "what came early has waited"
    assert inbox.behind == 0


def test_time_alone_passes_no_hole():
    kept = told(1, 1, 1)
    shell = Shell(reader())
    shell.has = {place: [kept[0], kept[2]] for place in Place}
    shell.last_seq = 3
    shell.run(24 * 3_600_000)
    assert taken(shell.inbox) == [1]
    assert shell.inbox.want == 2
    assert shell.inbox.halted is None


def test_duplicates_are_counted_and_not_taken():
    kept = told(1, 2)
    inbox = reader()
    for bell in [ring(STREAM, frame) for frame in [*kept, *kept]]:
        inbox.doorbell(bell, 0)
    assert taken(inbox) == [1, 2]
    assert inbox.counts["duplicates"] == 2


def test_a_doorbell_with_the_next_frame_needs_no_question():
    kept = told(1, 1)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(), 0)
    for frame in kept:
        inbox.doorbell(ring(STREAM, frame), 10)
    assert taken(inbox) == [1, 2]
    assert inbox.counts[Place.DOORBELL] == 2
    assert inbox.asks(10) == []


def test_a_doorbell_without_the_frame_makes_the_reader_look():
    (frame,) = told(1, size=100_000)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(), 0)
    inbox.doorbell(ring(STREAM, frame), 5)
    assert inbox.missing_at == 5
    assert asked(inbox, 5, Place.OWN).want == 1


def test_a_batch_is_as_large_as_it_may_be_and_at_least_one_frame():
    kept = told(1, 1, 1, size=1000)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(*kept), 0)
    first = inbox.take(10, 0)
    assert first is not None
    assert len(first.frames) == 1
    second = inbox.take(2 * len(kept[0].content), 0)
    assert second is not None
    assert len(second.frames) == 2


def test_frames_of_an_inbox_that_crashed_are_read_again():
    kept = told(1, 1, 1)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(*kept), 0)
    batch = inbox.take(len(kept[0].content), 0)
    assert batch is not None
    cursor, applied = advance(cursors.begin(STREAM), batch)
    assert [opened.frame for opened in applied] == kept[:1]
    inbox = reader(cursor)
    assert asked(inbox, 0, Place.OWN).want == 2


# -------------------------------------------------------------------------------------------------- searching


def test_a_hole_is_looked_for_at_ever_more_places_in_their_order():
    kept = told(1, 1)
    shell = Shell(reader(thirds=("c", "d")))
    shell.has = {place: [] for place in Place}
    shell.has[Place.OWN] = [kept[1]]
    shell.last_seq = 2
    shell.run(600)
    elsewhere = [(now, place) for now, place in shell.asked if place is not Place.OWN]
    assert elsewhere[:4] == [
        (200, Place.SOURCE),
        (200, Place.PULL),
        (200, Place.THIRD),
        (200, Place.THIRD),
    ]
    assert elsewhere[4][0] == 400, "after a pause, again"


def test_a_hole_that_fills_in_time_asks_nobody_else():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.OWN] = [kept[1]]
    shell.run(140)
    shell.has[Place.OWN] = kept
    shell.run(500)
    assert taken(shell.inbox) == [1, 2]
    assert {place for _, place in shell.asked} == {Place.OWN}


@pytest.mark.parametrize("place", [Place.SOURCE, Place.PULL, Place.THIRD])
def test_whoever_has_the_hole_fills_it(place):
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.OWN] = [kept[1]]
    shell.has[place] = kept
    shell.last_seq = 2
    shell.run(300)
    assert taken(shell.inbox) == [1, 2]
    assert shell.inbox.counts[place] == 1


def test_a_place_that_has_frames_is_asked_again_at_once():
    """A region that misses a thousand rows does not wait 200 ms for each hole."""
    kept = told(*[1] * 500)
    shell = Shell(reader())
    shell.has[Place.OWN] = kept[4::5]
    shell.has[Place.SOURCE] = kept
    shell.run(210)
    assert shell.inbox.want == 501
    assert len(shell.times(Place.SOURCE)) <= 6


def test_rounds_are_ever_more_seldom_and_never_end():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.OWN] = [kept[1]]
    shell.run(60_000)
    times = shell.times(Place.SOURCE)
    pauses = [two - one for one, two in pairwise(times)]
    assert pauses[:6] == [200, 400, 800, 1600, 3200, 5000]
    assert set(pauses[6:]) == {5000}
    shell.has[Place.SOURCE] = kept
    shell.run(66_000)
    assert taken(shell.inbox) == [1, 2]


def test_who_comes_back_is_asked_soon():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.run(60_000)
    assert shell.inbox.want == 1
    shell.has[Place.SOURCE] = kept
    shell.inbox.doorbell(Doorbell(STREAM, 2, None), 60_000)
    shell.run(60_200)
    assert taken(shell.inbox) == [1, 2]
    shell.has[Place.SOURCE] = None
    shell.inbox.doorbell(Doorbell(STREAM, 3, None), 60_200)
    shell.run(120_000)
    shell.has[Place.SOURCE] = told(1, 1, 1)
    shell.has[Place.OWN] = []
    shell.run(120_250)
    assert taken(shell.inbox) == [3]


def test_polling_is_fast_while_something_comes_and_slow_while_nothing_does():
    shell = Shell(reader())
    shell.has[Place.OWN] = []
    shell.run(1000)
    assert shell.times(Place.OWN) == [0, 100, 300, 550, 800]
    shell.asked.clear()
    shell.inbox.doorbell(Doorbell(STREAM, 0, None), 1000)
    shell.run(3500)
    assert shell.times(Place.OWN) == [1050, 1550, 2550]
    shell.has[Place.OWN] = told(1)
    shell.asked.clear()
    shell.run(3650)
    assert shell.times(Place.OWN) == [3550, 3600]


def test_an_answer_as_large_as_it_may_be_is_followed_at_once():
    shell = Shell(reader())
    shell.has[Place.OWN] = told(*[1] * 250)
    shell.run(0)
    assert shell.inbox.want == 251


def test_a_hole_is_watched_with_small_reads():
    kept = told(*[1] * 50)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(*kept[1:]), 0)
    assert asked(inbox, 50, Place.OWN).frames_max == 8


def test_an_own_region_that_does_not_answer_is_read_around():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.SOURCE] = kept
    shell.run(1000)
    assert taken(shell.inbox) == [1, 2]
    assert shell.times(Place.SOURCE)[0] == 200
    assert shell.times(Place.OWN)[-1] > 500, "and asked all the same"


def test_a_stream_that_is_silent_is_asked_for_at_its_source():
    """The own region may have neither the last rows nor a hint of them."""
    kept = told(1)
    shell = Shell(reader())
    shell.has[Place.OWN] = []
    shell.has[Place.SOURCE] = []
    shell.has[Place.PULL] = kept
    shell.last_seq = 1
    shell.run(2999)
    assert {place for _, place in shell.asked} == {Place.OWN}
    shell.run(3000)
    assert taken(shell.inbox) == [1]


def test_one_place_elsewhere_is_asked_at_a_time():
    kept = told(1, 1)
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(kept[1]), 0)
    assert asked(inbox, 200, Place.SOURCE).want == 1
    assert [ask for now in range(200, 10_000, 50) for ask in inbox.asks(now)] == [], "two are open"


def test_a_silent_stream_with_much_to_read_is_read_at_once():
    shell = Shell(reader())
    shell.has[Place.OWN] = []
    shell.has[Place.SOURCE] = told(*[1] * 250)
    shell.run(3000)
    assert shell.inbox.want == 251


def test_a_source_that_has_no_more_is_left_in_peace():
    shell = Shell(reader())
    shell.has[Place.OWN] = shell.has[Place.SOURCE] = shell.has[Place.PULL] = []
    shell.run(30_000)
    assert 8 <= len(shell.times(Place.PULL)) <= 10
    assert shell.times(Place.THIRD) == []


def test_a_dead_source_is_read_from_a_third_region():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.OWN] = kept[:1]
    shell.has[Place.THIRD] = kept
    shell.run(3500)
    assert taken(shell.inbox) == [1, 2]


def test_a_head_says_where_to_look_and_moves_nothing():
    shell = Shell(reader())
    shell.has[Place.OWN] = []
    shell.run(100)
    shell.inbox.head(Head(STREAM, 9, 1, 0), 100)
    assert shell.inbox.want == 1
    assert shell.inbox.behind == 9
    assert shell.inbox.missing_at == 100
    shell.inbox.head(Head(STREAM, 3, 1, 0), 110)
    assert shell.inbox.behind == 9
    shell.inbox.head(Head(STREAM._replace(incarnation=1), 30, 40, 0), 110)
    assert shell.inbox.behind == 9, "heads are by the last writer, who may be the older one"
    assert shell.inbox.halted is None


def test_a_frame_of_which_chunks_are_missing_is_known_and_not_there():
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), Slice((), 4), 0)
    assert inbox.behind == 4
    assert inbox.missing_at == 0


# ----------------------------------------------------------------------------------------------------- limits


def test_what_came_early_is_bounded_and_the_farthest_goes():
    kept = told(*[1] * 10)
    inbox = reader(limits=Limits(early_frames_max=3))
    for frame in [*kept[5:], kept[1], kept[2]]:
        inbox.doorbell(ring(STREAM, frame), 0)
    inbox.doorbell(ring(STREAM, kept[0]), 0)
    assert taken(inbox) == [1, 2, 3]
    for frame in kept[3:5]:
        inbox.doorbell(ring(STREAM, frame), 0)
    assert taken(inbox) == [4, 5, 6]


def test_what_came_early_is_bounded_in_bytes():
    kept = told(*[1] * 10, size=1000)
    inbox = reader(limits=Limits(early_bytes_max=2500))
    for frame in kept[1:]:
        inbox.doorbell(ring(STREAM, frame), 0)
    inbox.doorbell(ring(STREAM, kept[0]), 0)
    assert taken(inbox) == [1, 2, 3]


def test_a_reader_that_is_full_asks_for_nothing_and_goes_on_when_it_is_not():
    kept = told(*[1] * 6, size=1000)
    inbox = reader(limits=Limits(ready_bytes_max=2500))
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(*kept[:5]), 0)
    assert inbox.want == 4
    assert inbox.asks(1000) == []
    assert inbox.timer() is None
    assert taken(inbox) == [1, 2, 3]
    assert inbox.want == 6
    assert asked(inbox, 1000, Place.OWN).want == 6
    assert taken(inbox) == [4, 5]


# ---------------------------------------------------------------------------------------------------- halting


@pytest.mark.parametrize("by", ["doorbell", "pull"])
def test_another_incarnation_needs_a_snapshot(by):
    inbox = reader()
    other = STREAM._replace(incarnation=0xBEEF)
    if by == "doorbell":
        inbox.doorbell(Doorbell(other, 5, None), 0)
        assert inbox.halted is None
        inbox.answered(asked(inbox, 0, Place.PULL), pulled(stream=other), 10)
    else:
        inbox.asks(0)
        inbox.answered(asked(inbox, 3000, Place.SOURCE), slice_of(), 3000)
        inbox.answered(asked(inbox, 3000, Place.PULL), pulled(stream=other), 3000)
    assert inbox.halted is not None
    assert inbox.halted.reason is Reason.UNKNOWN_INCARNATION
    assert inbox.halted.needs_snapshot
    assert inbox.asks(10_000) == []
    assert inbox.timer() is None


def test_an_incarnation_that_was_left_behind_is_no_news():
    old = STREAM._replace(incarnation=0xBEEF)
    cursor = adopt(cursors.begin(old), STREAM, START, 0)
    inbox = reader(cursor)
    inbox.doorbell(Doorbell(old, 5, None), 0)
    assert inbox.halted is None
    assert inbox.behind == 0


def test_a_late_doorbell_of_an_incarnation_that_was_never_read_stops_nothing():
    """The reader began after the restore: it retired nothing, and somebody's message of before comes now."""
    kept = told(1, 1, 1)
    shell = Shell(reader())
    shell.has[Place.PULL], shell.last_seq = kept[:2], 2
    shell.inbox.doorbell(Doorbell(STREAM._replace(incarnation=0xBEEF), 50, None), 0)
    shell.run(10)
    assert shell.times(Place.PULL) == [0]
    assert (shell.inbox.halted, shell.inbox.want) == (None, 3)
    shell.inbox.doorbell(ring(STREAM, kept[2]), 20)
    assert (shell.inbox.want, shell.inbox.behind) == (4, 0)
    for now in range(30, 40):  # while one question is open, another doubt asks nothing
        shell.inbox.doorbell(Doorbell(STREAM._replace(incarnation=0xBEEF), 50, None), now)
    assert (
        len([ask for now in range(30, 40) for ask in shell.inbox.asks(now) if ask.place is Place.PULL]) == 1
    )


def below_the_oldest() -> Shell:
    kept = told(1, 1, 1)
    shell = Shell(reader())
    shell.has = dict.fromkeys(Place, kept[2:])
    shell.oldest, shell.last_seq = 3, 3
    return shell


def test_what_the_source_keeps_nowhere_needs_a_snapshot():
    shell = below_the_oldest()
    shell.run(200)
    assert shell.inbox.halted is None, "the log was asked before the source said that it trimmed"
    shell.run(1000)
    assert shell.inbox.halted is not None
    assert shell.inbox.halted.reason is Reason.BELOW_OLDEST


def test_trimmed_at_the_source_and_in_its_log_is_no_reason():
    shell = below_the_oldest()
    shell.run(200)
    shell.has[Place.SOURCE] = told(1, 1, 1)
    shell.run(1000)
    assert shell.inbox.halted is None
    assert taken(shell.inbox) == [1, 2, 3]


@pytest.mark.parametrize("silent", [Place.SOURCE, Place.PULL])
def test_without_an_answer_of_both_nothing_is_decided(silent):
    shell = below_the_oldest()
    shell.has[silent] = None
    shell.run(3_600_000)
    assert shell.inbox.halted is None


def test_a_third_region_is_asked_before_a_snapshot():
    shell = below_the_oldest()
    shell.has[Place.THIRD] = told(1, 1, 1)
    shell.run(1000)
    assert shell.inbox.halted is None
    assert taken(shell.inbox) == [1, 2, 3]


def test_a_head_may_say_that_nothing_is_kept():
    """Scenario 30: the outbox gave up what the log never got."""
    shell = Shell(reader())
    shell.has = {place: [] for place in Place}
    shell.oldest, shell.last_seq = 3, 3
    shell.inbox.head(Head(STREAM, 3, 3, 0), 0)
    shell.run(200)
    assert shell.inbox.halted is not None
    assert shell.inbox.halted.reason is Reason.BELOW_OLDEST


@pytest.mark.parametrize("place", [Place.OWN, Place.SOURCE, Place.PULL])
def test_another_history_needs_a_snapshot(place):
    kept = told(1, 1)
    (other,) = make_frames(STREAM, Tail(1, b"x" * 32), [Entry(Kind.BEAT)], 9)
    shell = Shell(reader(advance(cursors.begin(STREAM), batch_of(kept[0]))[0]))
    shell.has[place] = [other]
    shell.last_seq = 2
    shell.run(4000)
    assert shell.inbox.halted is not None
    assert shell.inbox.halted.reason is Reason.OTHER_HISTORY
    assert "frame 2: previous digest" in shell.inbox.halted.detail
    assert taken(shell.inbox) == []


@pytest.mark.parametrize("place", [Place.DOORBELL, Place.THIRD])
def test_who_does_not_speak_for_the_source_is_only_not_believed(place):
    kept = told(1, 1)
    (other,) = make_frames(STREAM, Tail(1, b"x" * 32), [Entry(Kind.BEAT)], 9)
    shell = Shell(reader(advance(cursors.begin(STREAM), batch_of(kept[0]))[0]))
    shell.has[place] = [other]
    shell.inbox.doorbell(Doorbell(STREAM, 2, other if place is Place.DOORBELL else None), 0)
    shell.run(1000)
    assert shell.inbox.counts["strange"] >= 1
    assert shell.inbox.halted is None
    shell.has[Place.SOURCE] = kept
    shell.run(10_000)
    assert taken(shell.inbox) == [2]


def test_borders_that_are_not_those_of_the_source_need_a_snapshot():
    """Numbers 1 to 3 were applied as one frame; the log has 3 and 4 as one."""
    shell = Shell(reader(advance(cursors.begin(STREAM), batch_of(*told(3)))[0]))
    shell.has[Place.OWN] = make_frames(STREAM, Tail(2, b"x" * 32), [Entry(Kind.BEAT)] * 2, 9)
    ask = asked(shell.inbox, 0, Place.OWN)
    shell.inbox.answered(ask, slice_of(*shell.has[Place.OWN]), 0)
    assert shell.inbox.halted is not None
    assert shell.inbox.halted.reason is Reason.OTHER_HISTORY


def test_a_damaged_copy_is_not_taken_and_another_one_is():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has[Place.OWN] = [changed(kept[0]), kept[1]]
    shell.has[Place.SOURCE] = kept
    shell.run(190)
    assert taken(shell.inbox) == []
    shell.run(1000)
    assert taken(shell.inbox) == [1, 2]
    assert shell.inbox.halted is None
    assert shell.inbox.counts["damaged"] > 0


def test_damaged_wherever_it_is_kept_needs_a_snapshot():
    """Scenario 17."""
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has = {place: [changed(kept[0]), kept[1]] for place in Place}
    shell.last_seq = 2
    shell.run(1000)
    assert shell.inbox.halted is not None
    assert shell.inbox.halted.reason is Reason.DAMAGED


def test_damaged_in_the_log_and_perhaps_whole_in_the_outbox_is_waited_for():
    kept = told(1, 1)
    shell = Shell(reader())
    shell.has = {place: [changed(kept[0]), kept[1]] for place in Place}
    shell.has[Place.PULL] = None
    shell.run(3_600_000)
    assert shell.inbox.halted is None
    shell.has[Place.PULL], shell.last_seq = kept, 2
    shell.run(3_610_000)
    assert taken(shell.inbox) == [1, 2]


def newer(kind: int = 99, number: int = 1, previous: bytes = frames_module.GENESIS) -> Frame:
    content = previous + msgspec.msgpack.encode([number, *STREAM, 1, 5, [[kind]]])
    return Frame(1, 1, 5, content, frames_module.digest_of(content))


@pytest.mark.parametrize("frame", [newer(), newer(kind=8, number=2)])
def test_what_is_not_known_stops_the_stream_and_is_not_skipped(frame):
    """Scenario 21."""
    inbox = reader()
    inbox.answered(asked(inbox, 0, Place.OWN), slice_of(frame), 0)
    assert inbox.halted is not None
    assert inbox.halted.reason is Reason.NEWER_RELEASE
    assert not inbox.halted.needs_snapshot
    assert taken(inbox) == []


def test_what_is_not_known_and_not_ours_is_no_reason():
    inbox = reader()
    inbox.doorbell(Doorbell(STREAM, 1, newer(previous=b"y" * 32)), 0)
    assert inbox.halted is None


def test_what_was_checked_before_a_halt_may_be_taken():
    kept = told(1)
    inbox = reader()
    inbox.doorbell(ring(STREAM, kept[0]), 0)
    inbox.doorbell(Doorbell(STREAM._replace(incarnation=3), 1, None), 0)
    inbox.answered(asked(inbox, 0, Place.PULL), pulled(stream=STREAM._replace(incarnation=3)), 10)
    assert inbox.halted is not None
    assert taken(inbox) == [1]


# ----------------------------------------------------------------------------------------------------- cursor


def batch_of(*kept: Frame) -> Batch:
    return Batch(STREAM, tuple(Opened(frame, []) for frame in kept))


def test_the_cursor_moves_over_what_is_new_and_only_that():
    kept = told(1, 2, 1)
    cursor, applied = advance(cursors.begin(STREAM), batch_of(*kept[:2]))
    assert (cursor.seq, len(applied)) == (3, 2)
    again, applied = advance(cursor, batch_of(*kept[:2]))
    assert (again, applied) == (cursor, [])
    further, applied = advance(cursor, batch_of(*kept))
    assert [opened.frame for opened in applied] == kept[2:]
    assert further.tail == Tail(4, kept[2].digest)
    assert further.hlc == kept[2].hlc


def test_a_batch_that_begins_too_late_or_elsewhere_moves_nothing():
    kept = told(1, 1)
    cursor = cursors.begin(STREAM)
    assert advance(cursor, batch_of(kept[1])) == (cursor, [])
    assert advance(cursor, Batch(STREAM._replace(incarnation=1), batch_of(kept[0]).frames)) == (cursor, [])


def test_a_batch_of_another_history_is_refused():
    kept = told(1)
    cursor, _ = advance(cursors.begin(STREAM), batch_of(*kept))
    with pytest.raises(ChainBroken):
        advance(cursor, batch_of(*make_frames(STREAM, Tail(1, b"x" * 32), [Entry(Kind.BEAT)], 9)))


def test_a_snapshot_leads_forward_and_remembers_what_is_left_behind():
    cursor = adopt(cursors.begin(STREAM), STREAM, Tail(7, b"d" * 32), 5)
    assert (cursor.seq, cursor.digest, cursor.retired) == (7, b"d" * 32, ())
    with pytest.raises(AssertionError, match="leads nobody back"):
        adopt(cursor, STREAM, Tail(6, b"d" * 32), 5)
    for incarnation in range(1, 12):
        cursor = adopt(cursor, STREAM._replace(incarnation=incarnation), START, 0)
    assert cursor.seq == 0
    assert cursor.retired == (10, 9, 8, 7, 6, 5, 4, 3)


def test_the_cursors_row_comes_back_or_is_refused():
    cursor = adopt(cursors.begin(STREAM), STREAM._replace(incarnation=3), Tail(7, b"d" * 32), 5)
    assert cursors.decode_cursor(cursors.encode_cursor(cursor)) == cursor
    with pytest.raises(CursorError, match="has format 2"):
        cursors.decode_cursor(cursors.encode_cursor(msgspec.structs.replace(cursor, format=2)))
    with pytest.raises(CursorError):
        cursors.decode_cursor(b"\xc1")


def test_any_order_of_doorbells_gives_the_sequence(rng: random.Random):
    kept = told(*[rng.randint(1, 4) for _ in range(40)])
    bells = [frame for frame in kept for _ in range(rng.randint(1, 3))]
    rng.shuffle(bells)
    inbox, found = reader(), []
    for frame in bells:
        inbox.doorbell(ring(STREAM, frame), 0)
        found += taken(inbox)
    assert found == [frame.first_seq for frame in kept]
