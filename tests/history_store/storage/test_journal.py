"""The journal by itself: laps, torn ends, damage, and files that are not the right one."""

import os
import random
import struct
from pathlib import Path

import pytest

from history_store.storage.contract import Entry, StorageCorrupt, StorageReadOnly
from history_store.storage.frames import encode
from history_store.storage.journal import (
    BLOCK_BYTES,
    BYTES_MIN,
    Journal,
    Mark,
    is_empty,
    newest,
    read_epoch,
    records,
)

EPOCH = 0x1234567890ABCDE


def frame(sequence: int, size: int) -> bytearray:
    body = bytearray()
    encode(sequence, [(1, [Entry(1, sequence, 0, random.Random(sequence).randbytes(size))])], [], body)
    return body


def found(path: Path, mark: Mark) -> list[tuple[int, bytes]]:
    return [(record.sequence, record.body) for record in records(path, EPOCH, mark.number, mark.offset)]


def filled(path: Path, sizes: list[int]) -> tuple[Mark, list[tuple[int, bytes]]]:
    """A journal with rounds of these sizes; returns where they begin, and what should be found."""
    journal = Journal(path, EPOCH, BYTES_MIN)
    mark, written = journal.mark, []
    for sequence, size in enumerate(sizes, 100):
        body = frame(sequence, size)
        assert journal.append(sequence, body)
        written.append((sequence, bytes(body)))
    journal.close()
    return mark, written


def test_laps_of_rounds_of_any_size_are_found_again(tmp_path, rng):
    """At every moment, what has not been released is found, in order, and nothing else."""
    path = tmp_path / "x.db-log"
    journal = Journal(path, EPOCH, rng.choice([BYTES_MIN, 3 * BYTES_MIN + 999]))
    size = path.stat().st_size
    assert size % BLOCK_BYTES == 0
    kept: list[tuple[int, bytes]] = []
    floor, laps = journal.mark, 0
    for sequence in range(1, 500):
        body = frame(sequence, rng.choice([0, 50, 1500, 4000, 5000, 20_000]))
        before = journal.mark
        if not journal.append(sequence, body):
            assert journal.mark == before
            assert kept, "an empty journal has room for a round of this size"
            floor, kept = journal.mark, []
            journal.release(floor)
            assert journal.append(sequence, body)
        laps += journal.mark.offset < before.offset
        kept.append((sequence, bytes(body)))
        if rng.random() < 0.1:
            assert found(path, floor) == kept
        if rng.random() < 0.05:
            floor, kept = journal.mark, []
            journal.release(floor)
    assert found(path, floor) == kept
    assert laps > 2
    assert path.stat().st_size == size
    journal.close()


def test_a_round_that_is_too_long_has_no_room_ever(tmp_path):
    journal = Journal(tmp_path / "x.db-log", EPOCH, BYTES_MIN)
    assert not journal.append(1, frame(1, BYTES_MIN))
    assert journal.append(1, frame(1, BYTES_MIN // 3))
    journal.close()


def test_a_full_journal_has_room_again_when_it_is_released(tmp_path):
    journal = Journal(tmp_path / "x.db-log", EPOCH, BYTES_MIN)
    count = 0
    while journal.append(count, frame(count, 100)):
        count += 1
    assert count == BYTES_MIN // BLOCK_BYTES - 1
    journal.release(journal.mark)
    assert journal.append(count, frame(count, 100))
    journal.close()


def test_a_torn_end_is_dropped_wherever_it_tore(tmp_path, rng):
    path = tmp_path / "x.db-log"
    mark, written = filled(path, [100, 9000, 300, 9000])
    offset, _ = newest(path)[-1]
    data = path.read_bytes()
    end = offset + 9000
    for at in [offset, end, *(rng.randrange(offset, end) for _ in range(50))]:
        for junk in (bytes(end + 200 - at), rng.randbytes(end + 200 - at)):
            path.write_bytes(data[:at] + junk + data[at + len(junk) :])
            assert found(path, mark) == written[:3]


def test_no_flipped_bit_loses_what_was_acknowledged(tmp_path, rng):
    """Whatever bit of the file is flipped: everything is found, or an error says that it is not.

    The last round is another matter: that it is damaged looks like a crash amid its write.
    """
    path = tmp_path / "x.db-log"
    mark, written = filled(path, [100, 9000, 300, 5000, 200])
    data = path.read_bytes()
    last, _ = newest(path)[-1]
    refused = 0
    for _ in range(400):
        at = rng.randrange(rng.choice([60, last, len(data)]))
        bad = bytearray(data)
        bad[at] ^= 1 << rng.randrange(8)
        path.write_bytes(bad)
        try:
            got = found(path, mark)
        except StorageCorrupt as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 either outcome is right
        else:
            assert got == written or (at >= last and got == written[:-1]), at
    assert refused > 50


def test_damage_in_the_middle_names_the_place(tmp_path):
    path = tmp_path / "x.db-log"
    mark, _ = filled(path, [100] * 6)
    offset, number = newest(path)[2]
    data = bytearray(path.read_bytes())
    data[offset + 70] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageCorrupt, match=f"record {number} at byte {offset} .* acknowledged rounds"):
        found(path, mark)


@pytest.mark.parametrize("keep", [0, 1, 40, BLOCK_BYTES, BYTES_MIN - BLOCK_BYTES, BYTES_MIN - 1])
def test_a_file_that_is_too_short_is_refused(tmp_path, keep):
    path = tmp_path / "x.db-log"
    mark, _ = filled(path, [100])
    os.truncate(path, keep)
    with pytest.raises(StorageCorrupt, match="damaged"):
        found(path, mark)


def test_a_file_of_another_time_is_refused(tmp_path):
    path = tmp_path / "x.db-log"
    mark, _ = filled(path, [100])
    with pytest.raises(StorageCorrupt, match="another time"):
        records(path, EPOCH + 1, mark.number, mark.offset)
    assert not is_empty(read_epoch(path)[1], EPOCH)
    assert is_empty(read_epoch(path)[1], EPOCH + 1)


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "x.db-log"
    filled(path, [])
    head = bytearray(path.read_bytes())
    struct.pack_into("<I", head, 12, 2)
    from zlib import crc32

    head[:4] = crc32(head[4:32]).to_bytes(4, "little")
    path.write_bytes(head)
    with pytest.raises(StorageCorrupt, match="newer Holdfast"):
        read_epoch(path)


def test_an_older_file_is_replaced_and_none_is_left_half_made(tmp_path):
    path = tmp_path / "x.db-log"
    filled(path, [100] * 3)
    journal = Journal(path, EPOCH + 1, BYTES_MIN)
    epoch, data = read_epoch(path)
    assert epoch == EPOCH + 1
    assert is_empty(data, EPOCH)
    assert os.listdir(tmp_path) == ["x.db-log"]
    journal.remove()
    assert os.listdir(tmp_path) == []
    with pytest.raises(StorageReadOnly, match="does not exist"):
        Journal(tmp_path / "nowhere" / "x.db-log", EPOCH, BYTES_MIN)
