"""Which frames a leader writes next, and up to where the log has all (replication/log/exporter.py)."""

import random

import pytest

from replication.frames import Entry, Frame, Kind, Stream
from replication.log.exporter import Exporter, Limits
from replication.outbox import Tip, append, begin, mark_exported

STREAM = Stream("a", 7, 0x5EED)


def no_dice(sides: int) -> int:
    return 0


def told(count: int, size: int = 0, each: int = 1) -> tuple[list[Frame], Tip]:
    tip, kept = begin(STREAM), []
    for _ in range(count):
        frames, tip = append(tip, [Entry(Kind.SIDE, payload=bytes(size))] * each, 1000)
        kept += frames
    return kept, tip


def exporter_of(kept: list[Frame], limits: Limits | None = None) -> Exporter:
    """The exporter of a shard that had told nothing when this leadership began."""
    exporter = Exporter(begin(STREAM), 0, no_dice, limits or Limits())
    for frame in kept:
        exporter.committed(frame)
    return exporter


def firsts(frames: list[Frame]) -> list[int]:
    return [frame.first_seq for frame in frames]


def test_some_are_under_way_at_once_and_no_more():
    kept, _ = told(20)
    exporter = exporter_of(kept)
    assert firsts(exporter.ready(0)) == list(range(1, 17))
    assert exporter.ready(0) == []
    exporter.wrote(3)
    assert firsts(exporter.ready(0)) == [17]


def test_any_order_of_endings_and_the_mark_has_no_gap():
    kept, _ = told(4, each=2)
    exporter = exporter_of(kept)
    exporter.ready(0)
    seen = []
    for first in (3, 7, 1, 5):
        exporter.wrote(first)
        seen.append(exporter.exported)
    assert seen == [0, 0, 4, 8]


def test_a_failed_write_is_tried_again_later_and_for_ever():
    kept, _ = told(1)
    exporter = exporter_of(kept)
    now, waits = 0, []
    for _ in range(12):
        (frame,) = exporter.ready(now)
        assert frame == kept[0]
        exporter.failed(1, now)
        due = exporter.timer()
        assert due is not None
        assert exporter.ready(due - 1) == []
        waits.append(due - now)
        now = due
    assert waits == [100, 200, 400, 800, 1600, 3200] + [5000] * 6
    exporter.ready(now)
    exporter.wrote(1)
    assert exporter.exported == 1


def test_after_a_failure_one_write_feels_whether_the_log_is_back():
    kept, _ = told(10)
    exporter = exporter_of(kept)
    exporter.ready(0)
    for first in range(1, 11):
        exporter.failed(first, 0)
    assert firsts(exporter.ready(100)) == [1], "ten failures of one moment are one"
    assert exporter.ready(100) == []
    exporter.wrote(1)
    assert firsts(exporter.ready(100)) == list(range(2, 11))
    assert exporter.retried == 10


def test_backoff_is_spread():
    kept, _ = told(1)
    exporter = Exporter(begin(STREAM), 0, lambda sides: sides - 1)
    exporter.committed(kept[0])
    exporter.ready(0)
    exporter.failed(1, 0)
    assert exporter.timer() == 150


def test_one_stuck_write_lets_the_others_run_ahead_only_so_far():
    kept, _ = told(50)
    exporter = exporter_of(kept, Limits(window_frames_max=20))
    written = 0
    while frames := exporter.ready(0):
        for frame in frames:
            if frame.first_seq != 1:
                exporter.wrote(frame.first_seq)
                written += 1
    assert written == 19
    assert exporter.exported == 0
    exporter.wrote(1)
    assert exporter.exported == 20


def test_a_new_leader_writes_again_what_is_behind_the_mark():
    kept, tip = told(5)
    exporter = Exporter(mark_exported(tip, 2), 0, no_dice)
    assert exporter.ready(0) == []
    assert exporter.wants() == 3
    exporter.refill(kept[2:])
    assert exporter.wants() is None
    assert firsts(exporter.ready(0)) == [3, 4, 5]
    exporter.wrote(4)
    exporter.wrote(3)
    assert exporter.exported == 4


def test_what_has_no_room_in_memory_is_read_from_its_rows():
    kept, _ = told(100, size=100)
    exporter = exporter_of(kept, Limits(waiting_frames_max=20, in_flight_max=16))
    assert exporter.wants() is None
    written = []
    while exporter.exported < 100:
        if (first := exporter.wants()) is not None:
            exporter.refill(kept[first - 1 :])
        for frame in exporter.ready(0):
            written.append(frame.first_seq)
            exporter.wrote(frame.first_seq)
    assert written == list(range(1, 101))


def test_memory_is_bounded_in_bytes_and_a_large_frame_passes():
    kept, _ = told(10, size=1000)
    exporter = exporter_of(kept, Limits(waiting_bytes_max=2500, in_flight_max=1))
    assert firsts(exporter.ready(0)) == [1]
    exporter.wrote(1)
    assert firsts(exporter.ready(0)) == [2]
    tiny = exporter_of(kept, Limits(waiting_bytes_max=1, in_flight_max=1))
    assert firsts(tiny.ready(0)) == [1]
    tiny.wrote(1)
    assert tiny.wants() == 2
    tiny.refill(kept[1:])
    assert firsts(tiny.ready(0)) == [2]


def test_the_mark_is_proposed_now_and_then():
    kept, _ = told(3, each=600)
    exporter = exporter_of(kept)
    exporter.ready(0)
    assert exporter.mark(5000) is None
    exporter.wrote(1)
    assert exporter.timer() == 1000
    assert exporter.mark(999) is None
    assert exporter.mark(1000) == 600
    assert exporter.mark(9000) is None
    exporter.wrote(601)
    exporter.wrote(1201)
    assert exporter.mark(1001) == 1800, "more than a thousand do not wait"


@pytest.mark.parametrize("upto", [2, 6, 12])
def test_what_the_outbox_gave_up_is_not_waited_for(upto):
    kept, _ = told(20)
    exporter = exporter_of(kept, Limits(in_flight_max=4))
    exporter.ready(0)
    exporter.wrote(3)
    exporter.failed(1, 0)
    exporter.lost(upto)
    assert exporter.exported == max(upto, 3)
    exporter.failed(2, 0)
    exporter.wrote(2)
    while exporter.exported < 20:
        for frame in exporter.ready(10_000):
            exporter.wrote(frame.first_seq)
        exporter.wrote(4)
    exporter.lost(1)
    assert exporter.exported == 20


def test_any_order_any_failure_any_leader_all_is_written(rng: random.Random):
    """The mark never passes a frame that is not written, whoever leads; and in the end all are."""
    kept, tip = told(0)
    log: set[int] = set()
    limits = Limits(in_flight_max=4, window_frames_max=8, waiting_frames_max=6)
    exporter, now, under_way = Exporter(tip, 0, rng.randrange, limits), 0, []
    for step in range(2000):
        now += rng.randrange(50)
        heal = step > 1500
        if not heal and rng.random() < 0.3:
            frames, tip = append(tip, [Entry(Kind.BEAT)] * rng.randint(1, 5), 1000)
            kept += frames
            for frame in frames:
                exporter.committed(frame)
        if not heal and rng.random() < 0.01:
            exporter, under_way = Exporter(tip, now, rng.randrange, limits), []
        if (first := exporter.wants()) is not None:
            exporter.refill([frame for frame in kept if frame.first_seq >= first])
        under_way += exporter.ready(now)
        assert len(under_way) <= 4
        while under_way and rng.random() < 0.7:
            frame = under_way.pop(rng.randrange(len(under_way)))
            fails = not heal and rng.random() < 0.3
            if not fails or rng.random() < 0.5:
                log.add(frame.first_seq)  # a write that failed may have been done
            if fails:
                exporter.failed(frame.first_seq, now)
            else:
                exporter.wrote(frame.first_seq)
        assert all(frame.first_seq in log for frame in kept if frame.last_seq <= exporter.exported)
        if (mark := exporter.mark(now)) is not None:
            tip = mark_exported(tip, mark)
    assert exporter.exported == tip.seq
    assert log == {frame.first_seq for frame in kept}
