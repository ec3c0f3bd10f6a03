"""The rows a leader sees against a dictionary: whatever is proposed, committed, stored or lost in a crash."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from history_store.engine import keys
from history_store.shard import image
from history_store.shard.rows import Rows
from history_store.storage.contract import Entry, Round
from history_store.storage.memory import MemoryStorage
from history_store.visibility.record import DeleteRecord

GROUP = 3
STEPS = 300


def some_key(rng: random.Random) -> bytes:
    """A key of any kind, of few runs, so that overlay and storage meet often."""
    slot = keys.slot_bytes(rng.choice((0, 7, 16_383)))
    run = bytes((rng.choice((0, 1, 255)),)) * 16
    match rng.randrange(6):
        case 0:
            return keys.current(slot, run, rng.choice(("", "a", "b")))
        case 1:
            return keys.run(slot, run)
        case 2:
            return (
                keys.items(slot, run)
                + rng.choice((keys.ITEM_TIMER, keys.ITEM_ACTIVITY))
                + keys.number(rng.randrange(3))
            )
        case 3:
            return keys.history(slot, run, 0, rng.randrange(1, 6))
        case 4:
            return keys.task(
                run, rng.choice((1, 2)), rng.choice(("q", "q2")), rng.choice((1, 3)), rng.randrange(4)
            )
        case _:
            return keys.wake(rng.randrange(5), run)


def ranges(rng: random.Random) -> tuple[bytes, bytes]:
    """Bounds within one kind."""
    key = some_key(rng)
    if rng.random() < 0.3:
        return key[:1], bytes((key[0] + 1,))
    if key[:1] in (keys.ITEM, keys.HISTORY):
        prefix = key[:19]
        other = prefix + rng.randbytes(4)
    else:
        other = some_key(rng)
        while other[:1] != key[:1]:
            other = some_key(rng)
    low, high = sorted((key, other))
    return low, high


class Shard:
    """Rows over a storage, entries as Raft would bring them, and the dictionary that says what is right."""

    def __init__(self) -> None:
        self.storage = MemoryStorage()
        self.rows = Rows(self.storage, GROUP, GROUP)
        self.model: dict[bytes, bytes] = {}
        self.log: list[Entry] = []
        self.committed = 0
        self.applied = 0
        self.flight: tuple[list[tuple[bytes, bytes | None]], int] | None = None

    def propose(self, changes: list[tuple[bytes, bytes | None]]) -> None:
        entry = Entry(1, len(self.log) + 1, 0, image.encode(changes, [DeleteRecord("n", "r")]))
        self.log.append(entry)
        self.rows.propose(entry.index, changes)
        for key, value in changes:
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    def commit(self) -> None:
        if self.committed < len(self.log):
            entry = self.log[self.committed]
            found = image.decode(entry.data)
            self.rows.commit(entry.index, 1, found.rows, [*found.hidden], len(entry.data))
            self.committed += 1

    def begin_flush(self) -> None:
        taken = self.rows.take_flush() if self.flight is None else None
        if taken is not None:
            changes, visibility, index, _ = taken
            assert len(visibility) == 1, "the latest record of a run is enough"
            self.storage.write(Round(rows=changes))
            self.flight = (changes, index)

    def end_flush(self) -> None:
        if self.flight is not None:
            self.rows.stored(*self.flight)
            self.applied = self.flight[1]
            self.flight = None

    def crash(self) -> None:
        """Start again from storage and log; a flush that was under way may or may not have been noted."""
        if self.flight is not None:
            self.applied = self.flight[1]
            self.flight = None
        self.rows = Rows(self.storage, GROUP, GROUP)
        for entry in self.log[self.applied :]:
            self.rows.receive(entry)
        self.committed = len(self.log)

    def scan(self, low: bytes, high: bytes, limit: int, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        found = sorted((item for item in self.model.items() if low <= item[0] < high), reverse=reverse)
        return iter(found[:limit] if limit else found)


def test_rows_are_what_was_written(rng: random.Random) -> None:
    shard = Shard()
    for _ in range(STEPS):
        match rng.randrange(10):
            case 0 | 1 | 2:
                count = rng.randrange(1, 6)
                shard.propose([(some_key(rng), rng.choice((None, rng.randbytes(3)))) for _ in range(count)])
            case 3 | 4 | 5:
                shard.commit()
            case 6:
                shard.begin_flush()
            case 7:
                shard.end_flush()
            case 8 if rng.random() < 0.1:
                shard.crash()
            case _:
                low, high = ranges(rng)
                if low[:1] in (keys.ITEM, keys.HISTORY) and low[:19] != high[:19]:
                    continue  # such scans stay within one run
                limit, reverse = rng.choice((0, 0, 1, 3)), rng.random() < 0.5
                assert list(shard.rows.scan(low, high, limit, reverse)) == list(
                    shard.scan(low, high, limit, reverse)
                )
                key = some_key(rng)
                assert shard.rows.get(key) == shard.model.get(key)


def test_nothing_stays_in_the_overlay(rng: random.Random) -> None:
    """What storage has is not held in memory as well."""
    shard = Shard()
    for _ in range(50):
        shard.propose([(some_key(rng), b"v")])
        shard.commit()
    shard.begin_flush()
    assert shard.rows.pending_entries == 0
    shard.propose([(some_key(rng), b"later")])
    shard.end_flush()
    held = [bucket for bucket in shard.rows._buckets.values() if bucket]
    assert sum(len(bucket) for bucket in held) == 1
    assert len(held) == len(shard.rows._buckets)


def test_a_scan_stays_within_one_kind() -> None:
    with pytest.raises(AssertionError, match="one kind"):
        list(Rows(MemoryStorage(), 1, 1).scan(keys.RUN, keys.WAKE))
