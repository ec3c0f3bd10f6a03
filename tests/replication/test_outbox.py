"""What a shard keeps of what it told (replication/outbox.py)."""

import random
from itertools import pairwise

import msgspec
import pytest

from replication import outbox
from replication.frames import START, Entry, Frame, Kind, Stream, Tail, check_follows, open_frame
from replication.log import cursor as cursors
from replication.log.cursor import Opened
from replication.outbox import (
    Acks,
    Limits,
    OutboxError,
    Tip,
    answer_pull,
    append,
    begin,
    mark_exported,
    ring,
    trim,
)

STREAM = Stream("a", 7, 0x5EED)
BEAT = Entry(Kind.BEAT)
MINUTE = 60_000


def told(*transactions: list[Entry], now_ms: int = 1000) -> tuple[list[Frame], Tip]:
    tip = begin(STREAM)
    kept: list[Frame] = []
    for entries in transactions:
        frames, tip = append(tip, entries, now_ms)
        kept += frames
    return kept, tip


def opened(*frames: Frame) -> tuple[Opened, ...]:
    return tuple(Opened(frame, []) for frame in frames)


def entry(size: int) -> Entry:
    return Entry(Kind.SIDE, payload=bytes(size))


# ---------------------------------------------------------------------------------------------------- telling


def test_every_transaction_goes_on_where_the_last_one_ended():
    kept, tip = told([BEAT, BEAT], [], [entry(100_000), BEAT], [BEAT])
    assert [(frame.first_seq, frame.last_seq) for frame in kept] == [(1, 2), (3, 3), (4, 4), (5, 5)]
    tail = START
    for frame in kept:
        tail = check_follows(STREAM, tail, frame)
    assert tail == tip.tail
    assert tip.seq == 5
    assert tip.kept_bytes == sum(len(frame.content) for frame in kept)


def test_times_grow_though_the_clock_goes_back():
    tip = begin(STREAM)
    hlcs = []
    for now_ms in (1000, 900, 900, 1001):
        frames, tip = append(tip, [BEAT], now_ms)
        hlcs.append(frames[0].hlc)
    assert all(one < two for one, two in pairwise(hlcs))


def test_two_leaders_make_the_same_rows(rng):
    """I4: the new leader goes on from rows, and what it repeats is what the old one had."""
    transactions = [[entry(rng.randrange(3000)) for _ in range(rng.randrange(1, 40))] for _ in range(30)]
    kept, tip = told(*transactions)
    cut = rng.randrange(30)
    _, before = told(*transactions[:cut])
    again = []
    after = outbox.decode_tip(outbox.encode_tip(before))  # what a replica has
    for entries in transactions[cut:]:
        frames, after = append(after, entries, 1000)
        again += frames
    assert after == tip
    assert again == kept[len(kept) - len(again) :]


def test_rows_come_back_and_stand_in_the_order_of_their_numbers():
    kept, tip = told([BEAT], [BEAT])
    assert outbox.decode_tip(outbox.encode_tip(tip)) == tip
    assert [outbox.decode_row(outbox.encode_row(frame)) for frame in kept] == kept
    assert outbox.row_key(255) < outbox.row_key(256) < outbox.row_key(1 << 40)
    assert len(outbox.row_key(1)) == outbox.KEY_BYTES


@pytest.mark.parametrize("decode", [outbox.decode_tip, outbox.decode_row])
@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode([2, ["a", 7, 1]])])
def test_rows_that_are_none_of_ours_are_refused(decode, data):
    with pytest.raises(OutboxError):
        decode(data)


def test_a_row_of_a_newer_format_is_refused_by_its_number():
    kept, tip = told([BEAT])
    with pytest.raises(OutboxError, match="tip has format 2; this release reads 1"):
        outbox.decode_tip(outbox.encode_tip(msgspec.structs.replace(tip, format=2)))
    with pytest.raises(OutboxError, match="frame of the outbox has format 9"):
        outbox.decode_row(msgspec.msgpack.encode([9, kept[0]]))


def test_a_restored_shard_begins_anew_under_another_incarnation():
    tip = begin(Stream("a", 7, 0xBEEF))
    (frame,), tip = append(tip, [BEAT], 1)
    assert frame.first_seq == 1
    assert open_frame(tip.stream, frame) == [BEAT]


def test_a_shard_that_parts_goes_on_above_its_parent():
    """Numbers order the events of one version, and a workflow id may have some on both sides of the split."""
    kept, parent = told([BEAT], [BEAT, BEAT])
    tip = outbox.part(parent, Stream("a", 9, 0xC0DE))
    assert max(tip.lost, tip.trimmed) <= tip.exported <= tip.seq == 3
    (frame,), after = append(tip, [BEAT], 1)
    assert (frame.first_seq, after.stream.shard) == (4, 9)
    assert after.hlc > parent.hlc, "though the clock went back"
    assert after.kept_bytes == len(frame.content)
    cursor, _ = cursors.advance(cursors.begin(STREAM), cursors.Batch(STREAM, opened(*kept)))
    child, taken = cursors.advance(cursors.part(cursor, tip.stream), cursors.Batch(tip.stream, opened(frame)))
    assert len(taken) == 1
    assert child.tail == after.tail
    assert answer_pull(tip, 1, ()).oldest == 4, "who begins below needs a snapshot"
    with pytest.raises(AssertionError, match="from itself"):
        outbox.part(parent, STREAM._replace(incarnation=1))


# --------------------------------------------------------------------------------------------------- trimming


def test_what_is_exported_and_acknowledged_goes():
    kept, tip = told([BEAT], [BEAT, BEAT], [BEAT], [BEAT])
    tip = mark_exported(tip, 4)
    gone, tip = trim(tip, kept, 3, 1000)
    assert gone == [1, 2]
    assert (tip.trimmed, tip.lost, tip.exported) == (3, 0, 4)
    assert tip.kept_bytes == sum(len(frame.content) for frame in kept[2:])
    gone, tip = trim(tip, kept[2:], 5, 1000)
    assert gone == [4], "5 is acknowledged, and not in the log"


def test_an_acknowledgement_inside_a_frame_frees_nothing():
    kept, tip = told([BEAT, BEAT])
    gone, _ = trim(mark_exported(tip, 2), kept, 1, 1000)
    assert gone == []


def test_acknowledged_and_not_exported_stays():
    kept, tip = told([BEAT], [BEAT])
    assert trim(tip, kept, 2, 1000 + 60 * MINUTE) == ([], tip)


def test_exported_and_old_goes_whoever_is_missing():
    kept, tip = told([BEAT], [BEAT])
    tip = mark_exported(tip, 1)
    assert trim(tip, kept, 0, 1000 + 10 * MINUTE - 1) == ([], tip)
    gone, tip = trim(tip, kept, 0, 1000 + 10 * MINUTE)
    assert gone == [1]
    assert tip.lost == 0


def test_too_much_that_is_exported_goes_oldest_first():
    limits = Limits(kept_bytes_max=3000, unexported_bytes_max=100_000)
    kept, tip = told(*[[entry(1000)] for _ in range(6)])
    gone, tip = trim(mark_exported(tip, 5), kept, 0, 1000, limits)
    assert gone == [1, 2, 3, 4]
    assert 2000 < tip.kept_bytes <= 3000
    assert tip.lost == 0


def test_too_much_that_is_not_exported_is_given_up_by_name():
    """Scenario 30: the log was away for too long. Readers that want what is lost need a snapshot."""
    limits = Limits(kept_bytes_max=1000, unexported_bytes_max=4000)
    kept, tip = told(*[[entry(1000)] for _ in range(6)])
    gone, tip = trim(mark_exported(tip, 1), kept, 0, 1000, limits)
    assert gone == [1, 2, 3]
    assert (tip.trimmed, tip.lost, tip.exported) == (3, 3, 3)
    assert tip.kept_bytes <= 4000
    assert trim(tip, kept[3:], 0, 1000, limits) == ([], tip)


def test_marks_and_rows_that_cannot_be_are_bugs():
    kept, tip = told([BEAT], [BEAT])
    with pytest.raises(AssertionError, match="never made"):
        mark_exported(tip, 3)
    with pytest.raises(AssertionError, match="is missing"):
        trim(mark_exported(tip, 2), kept[1:], 2, 1000)
    assert mark_exported(mark_exported(tip, 2), 1).exported == 2


def test_trimming_keeps_its_bounds(rng: random.Random):
    """I20, for any order of events: trimmed <= exported, and not trimmed unless somebody has it."""
    limits = Limits(kept_bytes_max=5000, unexported_bytes_max=20_000, age_ms_max=500)
    tip, kept, now_ms, acknowledged = begin(STREAM), [], 1000, 0
    for _ in range(300):
        now_ms += rng.randrange(100)
        match rng.randrange(4):
            case 0 | 1:
                frames, tip = append(tip, [entry(rng.randrange(1500))], now_ms)
                kept += frames
            case 2:
                tip = mark_exported(tip, rng.randint(tip.exported, tip.seq))
            case _:
                acknowledged = rng.randint(acknowledged, tip.seq)
        before = tip.exported
        gone, tip = trim(tip, kept, acknowledged, now_ms, limits)
        assert gone == [frame.first_seq for frame in kept[: len(gone)]]
        kept = kept[len(gone) :]
        assert max(tip.trimmed, tip.lost) <= tip.exported <= tip.seq
        assert tip.trimmed <= max(before, tip.lost)
        assert tip.kept_bytes == sum(len(frame.content) for frame in kept) <= 20_000


# --------------------------------------------------------------------------------------- to the other regions


def test_a_doorbell_carries_what_is_small():
    kept, _ = told([entry(10)], [entry(70_000)])
    assert ring(STREAM, kept[0]).frame == kept[0]
    assert ring(STREAM, kept[1]) == outbox.Doorbell(STREAM, 2, None)


def test_a_pull_is_answered_with_what_is_kept_up_to_a_size():
    kept, tip = told(*[[entry(1000)] for _ in range(5)])
    _, tip = trim(mark_exported(tip, 1), kept, 1, 1000)
    some = answer_pull(tip, 3, iter(kept[2:]), Limits(pull_bytes_max=2500))
    assert (some.oldest, some.last_seq) == (2, 5)
    assert [frame.first_seq for frame in some.frames] == [3, 4]
    assert len(answer_pull(tip, 3, kept[2:], Limits(pull_bytes_max=1)).frames) == 1
    assert answer_pull(tip, 1, ()).oldest == 2


def test_acknowledgements_only_go_up_and_never_beyond_what_was_told():
    _, tip = told([BEAT] * 5)
    acks = Acks(STREAM)
    assert acks.least(["b", "c"]) == 0
    assert acks.heard("b", STREAM, 4, tip)
    assert not acks.heard("b", STREAM, 3, tip)
    assert not acks.heard("b", STREAM, 6, tip), "nobody has what was never told"
    assert not acks.heard("c", Stream("a", 7, 1), 5, tip), "that was another incarnation"
    assert acks.least(["b", "c"]) == 0
    assert acks.heard("c", STREAM, 2, tip)
    assert acks.least(["b", "c"]) == 2
    assert acks.least([]) >= tip.seq


def test_what_a_tail_is():
    assert begin(STREAM).tail == START == Tail(0, bytes(32))
