"""What every log promises (replication/log/contract.py): one suite for all implementations.

A module that tests one has a class that inherits `LogContract`, and a fixture `logs` that gives a `Logs`.
"""

import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest

from replication.frames import BUCKET_SEQS, Entry, Frame, Kind, Stream, Tail, make_frames, open_frame
from replication.log.contract import Ack, Head, LedgerHint, LedgerRow, LogClosed, LogStore, Mode, day_of

DAY = 20_000  # days since 1970
NOON = (DAY * 86_400_000 + 43_200_000) << 16  # of that day, as a hybrid time


class Logs(Protocol):
    """An implementation under test, with two regions that reach each other."""

    a: LogStore
    b: LogStore

    def name(self, word: str) -> str:
        """A name that no other test uses."""
        ...

    async def pause(self) -> None:
        """Let rows travel for a while."""
        ...


async def arrives(logs: Logs, read: Callable[[], Awaitable[object]], expected: object) -> None:
    """Wait until a read finds what it should."""
    found = None
    for _ in range(200):
        found = await read()
        if found == expected:
            return
        await logs.pause()
    assert found == expected


def stream_of(logs: Logs) -> Stream:
    return Stream(logs.name("region"), 7, 0x7FFF_5EED_5EED_5EED)


def beats(stream: Stream, after: int, *counts: int) -> list[Frame]:
    """Frames with so many entries each, behind number `after`."""
    frames: list[Frame] = []
    tail = Tail(after, after.to_bytes(32, "big"))
    for count in counts:
        frames += make_frames(stream, tail, [Entry(Kind.BEAT)] * count, NOON)
        tail = Tail(frames[-1].last_seq, frames[-1].digest)
    return frames


def large(stream: Stream, after: int, size: int) -> Frame:
    entry = Entry(Kind.EVENTS, "n", 1, "w", "r", 0, random.Random(size).randbytes(size))
    return make_frames(stream, Tail(after, bytes(32)), [entry], NOON)[0]


def ledger_row(namespace_id: str, version: int, origin: str, hlc: int = NOON) -> LedgerRow:
    return LedgerRow(namespace_id, version, Mode.FORCED, 1, "b", origin, "me", "why not", "h", b"\0\xff", hlc)


class LogContract:
    """Every test uses names of its own, so that one log may serve them all."""

    # ------------------------------------------------------------------------------------------------ frames

    async def test_the_schema_is_ours(self, logs: Logs):
        await logs.a.check_schema()
        await logs.b.check_schema()

    async def test_a_log_knows_its_region(self, logs: Logs):
        assert logs.a.region != logs.b.region

    async def test_nothing_is_there_before_it_is_written(self, logs: Logs):
        assert await logs.a.read(stream_of(logs), 1) == ((), 0)

    async def test_what_is_written_is_read_in_its_own_region_at_once(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, 1, 3, 2)
        for frame in reversed(frames):
            await logs.a.append(stream, frame)
        found = await logs.a.read(stream, 1)
        assert found == (tuple(frames), 6)
        assert open_frame(stream, found.frames[1]) == [Entry(Kind.BEAT)] * 3

    async def test_what_is_written_arrives_elsewhere_and_is_seen_through_the_writers_region(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, 1, 1)
        for frame in frames:
            await logs.a.append(stream, frame)
        assert (await logs.b.read(stream, 1, via=logs.a.region)).frames == tuple(frames)
        await arrives(logs, lambda: logs.b.read(stream, 1), (tuple(frames), 2))

    async def test_writing_again_changes_nothing(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, 1, 1)
        for frame in [*frames, *frames]:
            await logs.a.append(stream, frame)
        await arrives(logs, lambda: logs.b.read(stream, 1), (tuple(frames), 2))
        await logs.b.append(stream, frames[0])
        await logs.pause()
        assert (await logs.a.read(stream, 1)).frames == tuple(frames)
        assert (await logs.b.read(stream, 1)).frames == tuple(frames)

    async def test_reading_starts_where_it_is_asked_to(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, 2, 2, 2)
        for frame in frames:
            await logs.a.append(stream, frame)
        assert (await logs.a.read(stream, 3)).frames == tuple(frames[1:])
        assert (await logs.a.read(stream, 7)) == ((), 0)

    async def test_a_hole_is_seen_by_what_is_behind_it(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, 1, 1, 1)
        await logs.a.append(stream, frames[2])
        assert await logs.a.read(stream, 1) == ((frames[2],), 3)

    async def test_as_many_frames_as_are_asked_for(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, 0, *[1] * 9)
        for frame in frames:
            await logs.a.append(stream, frame)
        assert (await logs.a.read(stream, 1, frames_max=4)).frames == tuple(frames[:4])
        assert (await logs.a.read(stream, 5, frames_max=4)).frames == tuple(frames[4:8])

    async def test_a_frame_lives_in_the_bucket_of_its_first_number(self, logs: Logs):
        """A reader that has applied whole frames finds the next one by its number, over any border."""
        stream = stream_of(logs)
        before = BUCKET_SEQS - 11
        frames = beats(stream, before, 5, 20, 5)  # the second begins in one bucket and ends in the next
        for frame in frames:
            await logs.a.append(stream, frame)
        want, found = before + 1, []
        while got := (await logs.a.read(stream, want)).frames:
            found += got
            want = found[-1].last_seq + 1
        assert found == frames

    async def test_a_frame_at_the_border_of_a_bucket(self, logs: Logs):
        stream = stream_of(logs)
        frames = beats(stream, BUCKET_SEQS - 2, 1, 1)
        for frame in frames:
            await logs.a.append(stream, frame)
        assert (await logs.a.read(stream, BUCKET_SEQS - 1)).frames == (frames[0],)
        assert (await logs.a.read(stream, BUCKET_SEQS)).frames == (frames[1],)

    async def test_large_frames_come_back_whole(self, logs: Logs):
        stream = stream_of(logs)
        first = large(stream, 0, 700 << 10)
        second = large(stream, 1, 256 << 10)
        await logs.a.append(stream, first)
        await logs.a.append(stream, second)
        assert (await logs.a.read(stream, 1, frames_max=1)).frames == (first,)
        await arrives(logs, lambda: logs.b.read(stream, 1), ((first, second), 2))

    async def test_streams_do_not_mix(self, logs: Logs):
        stream = stream_of(logs)
        others = [stream._replace(shard=8), stream._replace(incarnation=9), stream._replace(region="other")]
        (frame,) = beats(stream, 0, 1)
        await logs.a.append(stream, frame)
        for other in others:
            assert (await logs.a.read(other, 1)).frames == ()

    # ------------------------------------------------------------------------------------------------- hints

    async def test_a_head_is_the_last_one_said(self, logs: Logs):
        stream = stream_of(logs)
        assert await logs.a.head(stream.region, 7) is None
        await logs.a.put_head(Head(stream, 5, 1, NOON))
        later = Head(stream._replace(incarnation=3), 4, 2, NOON + 1)
        await logs.a.put_head(later)
        assert await logs.a.head(stream.region, 7) == later
        assert await logs.b.head(stream.region, 7, via=logs.a.region) == later
        await arrives(logs, lambda: logs.b.head(stream.region, 7), later)

    async def test_every_region_has_its_acknowledgement(self, logs: Logs):
        stream = stream_of(logs)
        assert await logs.a.acks(stream.region, 7) == []
        await logs.b.put_ack(Ack(stream, "c", 3, NOON))
        await logs.b.put_ack(Ack(stream, "b", 4, NOON))
        await logs.b.put_ack(Ack(stream, "b", 5, NOON + 1))
        expected = [Ack(stream, "b", 5, NOON + 1), Ack(stream, "c", 3, NOON)]
        await arrives(logs, lambda: logs.a.acks(stream.region, 7), expected)

    # ------------------------------------------------------------------------------------------------ ledger

    async def test_a_ledger_has_all_versions_the_highest_first(self, logs: Logs):
        namespace = logs.name("namespace")
        assert await logs.a.read_ledger(namespace) == []
        rows = [ledger_row(namespace, version, "a") for version in (102, 1, 201)]
        for row in [*rows, rows[0]]:
            await logs.a.append_ledger(row)
        expected = sorted(rows, key=lambda row: -row.version)
        assert await logs.a.read_ledger(namespace) == expected
        assert await logs.b.read_ledger(namespace, via=logs.a.region) == expected
        await arrives(logs, lambda: logs.b.read_ledger(namespace), expected)

    async def test_two_rows_of_one_version_are_one_of_both(self, logs: Logs):
        namespace = logs.name("namespace")
        one, two = ledger_row(namespace, 102, "a"), ledger_row(namespace, 102, "b", NOON + 5)
        await logs.a.append_ledger(one)
        await logs.b.append_ledger(two)
        here = await logs.b.read_ledger(namespace)
        assert here in ([one], [two])
        await arrives(logs, lambda: logs.a.read_ledger(namespace), here)

    async def test_the_feed_tells_a_region_and_a_day_in_the_order_of_time(self, logs: Logs):
        origin, namespace = logs.name("origin"), logs.name("namespace")
        tomorrow = NOON + (86_400_000 << 16)
        for version, hlc in ((2, NOON + 2), (1, NOON), (3, tomorrow)):
            await logs.a.append_ledger(ledger_row(namespace, version, origin, hlc))
        await logs.a.append_ledger(ledger_row(namespace, 9, origin + "x", NOON))
        first, second = LedgerHint(NOON, namespace, 1), LedgerHint(NOON + 2, namespace, 2)
        await arrives(logs, lambda: logs.b.ledger_feed(origin, DAY, 0), [first, second])
        assert await logs.b.ledger_feed(origin, DAY, NOON) == [second]
        assert await logs.b.ledger_feed(origin, DAY, NOON + 2) == []
        third = LedgerHint(tomorrow, namespace, 3)
        await arrives(logs, lambda: logs.b.ledger_feed(origin, day_of(tomorrow), 0), [third])

    # --------------------------------------------------------------------------------------------------- end

    async def test_what_is_closed_is_closed(self, logs: Logs):
        stream = stream_of(logs)
        await logs.a.close()
        await logs.a.close()
        with pytest.raises(LogClosed) as caught:
            await logs.a.read(stream, 1)
        assert caught.value.definite
        with pytest.raises(LogClosed):
            await logs.a.append(stream, beats(stream, 0, 1)[0])
        await logs.b.read(stream, 1)
