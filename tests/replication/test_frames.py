"""Numbers, borders, digests and refusals of the frames that cross regions (replication/frames.py)."""

import hashlib
import random
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import frames, merge
from replication.failover import commands
from replication.frames import (
    START,
    ChainBroken,
    Entry,
    Frame,
    FrameDamaged,
    FrameUnknown,
    Kind,
    Stream,
    Tail,
    bucket_of,
    check_follows,
    chunks_of,
    hlc_ms,
    hlc_next,
    join_chunks,
    make_frames,
    open_frame,
)

STREAM = Stream("a", 7, 0x5EED)


def events(payload: bytes, run: str = "r") -> Entry:
    return Entry(Kind.EVENTS, "ns", 101, "w", run, 1, payload)


def sealed(content: bytes, first_seq: int = 1, count: int = 1, hlc: int = 5) -> Frame:
    """A frame whose digest is right, whatever it holds."""
    return Frame(first_seq, count, hlc, content, frames.digest_of(content))


def body(*entries: object, number: int = 1, region: str = "a", first_seq: int = 1) -> bytes:
    return frames.GENESIS + msgspec.msgpack.encode([number, region, 7, 0x5EED, first_seq, 5, list(entries)])


def test_entries_come_back_as_they_were():
    entries = [events(b"1"), Entry(Kind.BEAT), Entry(Kind.TOMB, "ns", 3, "w", "r")]
    (frame,) = make_frames(STREAM, START, entries, 77)
    assert (frame.first_seq, frame.count, frame.last_seq, frame.hlc) == (1, 3, 3, 77)
    assert open_frame(STREAM, frame) == entries


def test_numbers_go_on_without_a_gap_and_digests_stand_for_what_is_before():
    first = make_frames(STREAM, START, [events(b"1"), events(b"2")], 1)
    second = make_frames(STREAM, Tail(2, first[-1].digest), [events(b"3")], 2)
    assert second[0].first_seq == 3
    assert second[0].previous == first[0].digest
    other = make_frames(STREAM, START, [events(b"1"), events(b"other")], 1)
    third = make_frames(STREAM, Tail(2, other[-1].digest), [events(b"3")], 2)
    assert third[0].digest != second[0].digest


def test_the_bytes_of_a_frame_are_for_all_time():
    """Other regions run other releases. Whoever changes these bytes needs a new format."""
    (frame,) = make_frames(
        STREAM, START, [events(b"payload"), Entry(Kind.FENCE, payload=b"x")], hlc_next(0, 9)
    )
    assert hashlib.sha256(frame.content + frame.digest).hexdigest()[:16] == "8e70048986813a7b"


def test_nothing_to_tell_is_no_frame():
    assert make_frames(STREAM, START, [], 1) == []


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ([1000] * 10, [10]),
        ([30 << 10] * 5, [2, 2, 1]),
        ([10, 300 << 10, 10, 10], [1, 1, 2]),
        ([0] * 2500, [1024, 1024, 452]),
        ([70 << 10, 70 << 10], [1, 1]),
    ],
)
def test_where_a_large_transaction_is_cut(sizes, counts):
    found = make_frames(STREAM, START, [events(bytes(size)) for size in sizes], 1)
    assert [frame.count for frame in found] == counts
    tail = START
    for frame in found:
        tail = check_follows(STREAM, tail, frame)
        if frame.count > 1:
            assert len(frame.content) <= 64 << 10, "a doorbell carries it"
    assert tail.seq == len(sizes)


def test_an_entry_that_is_too_large_is_refused_before_anything_is_numbered(monkeypatch):
    monkeypatch.setattr(frames, "ENTRY_BYTES_MAX", 1000)
    with pytest.raises(ValueError, match=r"an entry of run big has 10\d\d bytes, over 1000"):
        make_frames(STREAM, START, [events(b""), events(bytes(1000), "big")], 1)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=60), st.integers(1, 6000))
def test_borders_depend_on_the_transaction_alone(sizes, before):
    """Not on who cuts, nor on what came before."""
    entries = [events(random.Random(size).randbytes(size * 40)) for size in sizes]
    here = make_frames(STREAM, START, entries, 1)
    there = make_frames(STREAM, Tail(before, b"d" * 32), entries, 2)
    assert [frame.count for frame in here] == [frame.count for frame in there]
    assert [e for frame in there for e in open_frame(STREAM, frame)] == entries


def test_a_frame_lives_in_the_bucket_of_its_first_number():
    (frame,) = make_frames(STREAM, Tail(4090, b"d" * 32), [Entry(Kind.BEAT)] * 20, 1)
    assert bucket_of(frame.first_seq) == 0
    assert bucket_of(frame.last_seq + 1) == 1
    assert bucket_of(4095) == 0
    assert bucket_of(4096) == 1


def test_chunks_are_the_whole_frame_in_order():
    (frame,) = make_frames(STREAM, START, [events(random.Random(1).randbytes(600 << 10))], 1)
    chunks = chunks_of(frame)
    assert [len(chunk) for chunk in chunks[:2]] == [256 << 10, 256 << 10]
    assert len(chunks) == 3
    assert join_chunks(chunks) == frame.content
    (small,) = make_frames(STREAM, START, [Entry(Kind.BEAT)], 1)
    assert chunks_of(small) == [small.content]


# -------------------------------------------------------------------------------------------------- refusals


@given(st.data())
def test_no_changed_byte_goes_unseen(data):
    (frame,) = make_frames(STREAM, START, [events(b"abc"), Entry(Kind.BEAT)], 1)
    at = data.draw(st.integers(0, len(frame.content) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    content = frame.content[:at] + bytes([frame.content[at] ^ bit]) + frame.content[at + 1 :]
    with pytest.raises(FrameDamaged, match="a/7@5eed: frame 1: digest: is not"):
        open_frame(STREAM, msgspec.structs.replace(frame, content=content))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"first_seq": 2}, "first_seq"),
        ({"count": 3}, "count"),
        ({"hlc": 9}, "hlc"),
    ],
)
def test_a_row_in_the_wrong_place_is_refused_by_its_field(change, field):
    (frame,) = make_frames(STREAM, START, [events(b"abc"), Entry(Kind.BEAT)], 1)
    with pytest.raises(FrameDamaged) as caught:
        open_frame(STREAM, msgspec.structs.replace(frame, **change))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("stream", "field"),
    [
        (Stream("b", 7, 0x5EED), "region"),
        (Stream("a", 8, 0x5EED), "shard"),
        (Stream("a", 7, 1), "incarnation"),
    ],
)
def test_a_frame_of_another_stream_is_refused(stream, field):
    (frame,) = make_frames(stream, START, [Entry(Kind.BEAT)], 1)
    with pytest.raises(FrameDamaged) as caught:
        open_frame(STREAM, frame)
    assert caught.value.field == field


def test_a_newer_format_is_refused_by_its_number_and_is_no_damage():
    with pytest.raises(FrameUnknown, match="frame 1: format: is 2; this release reads 1"):
        open_frame(STREAM, sealed(body([8], number=2)))


def test_an_unknown_kind_is_refused_by_its_number_and_place():
    with pytest.raises(FrameUnknown, match="frame 1: entry 2: kind: is 99, which is not known here"):
        open_frame(STREAM, sealed(body([8], [99, {"a": 1}]), count=2))


def test_a_field_that_a_later_release_adds_is_skipped():
    assert open_frame(STREAM, sealed(body([2, "ns", 1, "w", "r", 0, b"p", "later"]))) == [
        Entry(Kind.BUFFER, "ns", 1, "w", "r", 0, b"p")
    ]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (frames.GENESIS, "body"),
        (frames.GENESIS + b"\xc1", "body"),
        (body(), "count"),
        (body([1, 5]), "entry 1"),
        (body("x"), "entry 1"),
        (body([8])[:-1], "body"),
        (b"short", "body"),
    ],
)
def test_what_is_no_frame_is_refused_by_its_field(content, field):
    with pytest.raises(FrameDamaged) as caught:
        open_frame(STREAM, sealed(content))
    assert caught.value.field == field


def test_an_empty_frame_is_refused():
    with pytest.raises(FrameDamaged, match="entries: are none"):
        open_frame(STREAM, sealed(body(), count=0))


def test_what_does_not_follow_is_refused():
    first = make_frames(STREAM, START, [events(b"1")], 1)[0]
    other = make_frames(STREAM, START, [events(b"other")], 1)[0]
    second = make_frames(STREAM, Tail(1, first.digest), [events(b"2")], 1)[0]
    assert check_follows(STREAM, Tail(1, first.digest), second) == Tail(2, second.digest)
    with pytest.raises(ChainBroken, match="previous digest"):
        check_follows(STREAM, Tail(1, other.digest), second)
    with pytest.raises(ChainBroken, match="first_seq: follows 0"):
        check_follows(STREAM, START, second)


# ----------------------------------------------------------------------------------------------------- clock


def test_time_goes_on_when_the_clock_does_not():
    first = hlc_next(0, 1000)
    assert hlc_ms(first) == 1000
    second = hlc_next(first, 900)
    assert second == first + 1
    assert hlc_ms(second) == 1000
    assert hlc_ms(hlc_next(second, 1001)) == 1001


@pytest.mark.parametrize("entry", [*get_args(merge.Entry), commands.Fence, commands.Unfence])
def test_what_rules_write_into_a_log_has_a_kind(entry: type[msgspec.Struct]) -> None:
    """A kind that came with a later release would halt the streams of this one."""
    tag = entry.__struct_config__.tag
    assert isinstance(tag, str)
    assert tag.upper() in Kind.__members__
