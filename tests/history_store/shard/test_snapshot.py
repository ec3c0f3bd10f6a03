"""Chunks of an image: any cut and any accident on the way give the same image, or none."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from history_store.engine import keys
from history_store.shard import snapshot
from history_store.shard.snapshot import Damaged, Incomplete, Progress
from history_store.visibility.record import ExecutionRecord

IMAGE = 77


def record(run: int) -> ExecutionRecord:
    return ExecutionRecord("ns", f"w{run}", f"r{run}", "W", 1, run, 0, 0, "q", 0, 0, 0, 0, b"", b"")


def a_shard(rng: random.Random) -> tuple[list[tuple[bytes, bytes]], dict[str, ExecutionRecord]]:
    """Rows of some runs, some of which List shows."""
    rows: list[tuple[bytes, bytes]] = []
    records: dict[str, ExecutionRecord] = {}
    for run in range(rng.randrange(30)):
        raw = run.to_bytes(16, "big")
        rows.append((keys.run(b"\0\0", raw), msgspec.msgpack.encode(("ns", f"w{run}", f"r{run}", "W", 1))))
        rows += [
            (keys.history(b"\0\0", raw, 0, batch), rng.randbytes(rng.choice((0, 10, 3000))))
            for batch in range(rng.randrange(5))
        ]
        if rng.random() < 0.8:
            records[f"r{run}"] = record(run)
    return sorted(rows), records


def cut(rng: random.Random) -> tuple[list[bytes], list[tuple[bytes, bytes]], dict[str, ExecutionRecord]]:
    rows, records = a_shard(rng)

    def lookup(runs: list[snapshot.RunName]) -> list[ExecutionRecord]:
        assert runs
        return [records[run_id] for _, run_id in runs if run_id in records]

    size = rng.choice((1, 100, 5000, 1 << 20))
    return list(snapshot.cut(IMAGE, iter(rows), lookup, size)), rows, records


def test_whatever_happens_on_the_way_the_image_is_what_was_sent(rng: random.Random) -> None:
    chunks, rows, records = cut(rng)
    progress = Progress()
    kept = progress.copy()  # what the disk has
    got_rows: list[tuple[bytes, bytes]] = []
    got_records: list[ExecutionRecord] = []
    durable = (0, 0)
    for _ in range(100_000):
        if progress.complete:
            break
        match rng.randrange(12):
            case 0:  # a restart: what was not kept is sent again
                progress = kept.copy()
                del got_rows[durable[0] :], got_records[durable[1] :]
            case 1:
                kept = msgspec.msgpack.decode(msgspec.msgpack.encode(progress), type=Progress)
                durable = len(got_rows), len(got_records)
            case 2:
                damaged = bytearray(rng.choice(chunks))
                damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
                before = progress.copy()
                with pytest.raises(Damaged):
                    progress.take(IMAGE, bytes(damaged))
                assert progress == before
            case 3:  # cut short
                with pytest.raises(Damaged):
                    progress.take(IMAGE, chunks[0][: rng.randrange(len(chunks[0]))])
            case 4:  # any chunk, any time
                number = rng.randrange(len(chunks))
                expected = progress.next
                chunk = progress.take(IMAGE, chunks[number])
                assert (chunk is not None) == (number == expected)
                if chunk is not None:
                    got_rows += chunk.rows
                    got_records += chunk.records
            case _:
                chunk = progress.take(IMAGE, chunks[progress.next])
                assert chunk is not None
                got_rows += chunk.rows
                got_records += chunk.records
    assert progress.complete
    assert got_rows == rows
    assert {item.run_id: item for item in got_records} == records
    assert progress.take(IMAGE, chunks[0]) is None, "nothing comes after the end"


def test_a_chunk_that_is_missing_or_of_another_image_never_counts(rng: random.Random) -> None:
    chunks, _, _ = cut(rng)
    other = list(snapshot.cut(IMAGE + 1, iter([(b"x", b"y")]), None))
    progress = Progress()
    assert progress.take(IMAGE, other[0]) is None
    missing = rng.randrange(len(chunks))
    for number, data in enumerate(chunks):
        if number != missing:
            progress.take(IMAGE, data)
    assert progress.next == missing
    assert not progress.complete


def test_totals_that_do_not_fit_are_found_out() -> None:
    def of(value: bytes) -> list[bytes]:
        return list(snapshot.cut(IMAGE, iter([(b"a", value), (b"b", b"")]), None, 1))

    ours, theirs = of(b"1"), of(b"2")
    progress = Progress()
    for data in (ours[0], theirs[1]):
        assert progress.take(IMAGE, data) is not None
    with pytest.raises(Incomplete, match="what arrived"):
        progress.take(IMAGE, theirs[2])
    assert not progress.complete


def test_a_newer_format_is_refused() -> None:
    body = msgspec.msgpack.encode((snapshot.FORMAT_VERSION + 1, IMAGE, 0, [], [], None, "news"))
    with pytest.raises(Incomplete, match="format 2"):
        Progress().take(IMAGE, snapshot.crc32(body).to_bytes(4, "big") + body)


def test_chunks_are_read_one_at_a_time() -> None:
    read = 0

    def rows() -> Iterator[tuple[bytes, bytes]]:
        nonlocal read
        for number in range(1000):
            read += 1
            yield keys.number(number), b"v" * 92

    chunks = snapshot.cut(IMAGE, rows(), None, 1000)
    next(chunks)
    assert read == 10


def test_members_with_a_generation_and_without() -> None:
    plain = msgspec.msgpack.encode(((1, 2, 3), (), (), (), False))
    assert snapshot.unwrap_conf(5, plain) == (5, plain)
    assert snapshot.unwrap_conf(5, b"") == (5, b"")
    assert snapshot.wrap_conf(5, 5, plain) == plain
    wrapped = snapshot.wrap_conf(5, snapshot.GENERATION_FIRST, plain)
    assert snapshot.unwrap_conf(5, wrapped) == (snapshot.GENERATION_FIRST, plain)
