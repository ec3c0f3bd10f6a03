"""A shard's rows are divided: which go, a copy that is exact at every moment, what is not seen any more."""

from __future__ import annotations

import random

import msgspec
import pytest

from history_store.engine import keys
from history_store.engine.keys import SLOTS, slot_of
from history_store.shard import image, snapshot, split
from history_store.shard.rows import Rows
from history_store.shard.split import Copy, Mirror, Slots, Split
from history_store.storage.contract import Round
from history_store.storage.memory import MemoryStorage

NAMESPACE = "00000000-0000-0000-0000-00000000000a"
GROUP, TARGET = 1, snapshot.GENERATION_FIRST
HALF = ((SLOTS // 2, SLOTS - 1),)

pack = msgspec.msgpack.encode


def row_of(rng: random.Random, workflow: int, number: int) -> tuple[bytes, bytes]:
    """Some row of a workflow, of any kind."""
    workflow_id = f"w{workflow}"
    slot = keys.slot_bytes(slot_of(NAMESPACE, workflow_id))
    namespace, run = keys.raw_id(NAMESPACE), workflow.to_bytes(16, "big")
    owner = (NAMESPACE, workflow_id, run.hex(), rng.random())
    match rng.randrange(7):
        case 0:
            return keys.current(slot, namespace, workflow_id), rng.randbytes(4)
        case 1:
            return keys.run(slot, run), pack(owner)
        case 2:
            return keys.items(slot, run) + keys.ITEM_TIMER + bytes((number % 5,)), rng.randbytes(3)
        case 3:
            return keys.history(slot, run, 0, number % 9 + 1), rng.randbytes(9)
        case 4:
            return keys.task(namespace, 1, f"q{number % 3}", 3, workflow * 100 + number % 7), pack(owner)
        case 5:
            return keys.wake(number % 11, run), pack(owner)
        case _:
            return keys.action(workflow * 100 + number % 5), pack(("signal", *owner))


def in_half(key: bytes, value: bytes) -> bool:
    """As the slot of the row's workflow says; not as the code under test finds it."""
    if key[:1] in (keys.TASK, keys.WAKE):
        workflow_id = msgspec.msgpack.decode(value)[1]
    elif key[:1] == keys.ACTION:
        workflow_id = msgspec.msgpack.decode(value)[2]
    else:
        return int.from_bytes(key[1:3], "big") >= SLOTS // 2
    return slot_of(NAMESPACE, workflow_id) >= SLOTS // 2


def test_a_copy_with_a_mirror_is_exact_whenever_rows_change_meanwhile(rng: random.Random) -> None:
    """Rows are copied span by span, a few at a time; what is stored between is stored twice."""
    storage = MemoryStorage()
    rows = Rows(storage, GROUP, GROUP)
    model: dict[bytes, bytes] = {}
    half = Slots(HALF)
    index = 0

    def change() -> None:
        nonlocal index
        changed: dict[bytes, bytes | None] = {}
        for _ in range(rng.randrange(1, 6)):
            key, value = row_of(rng, rng.randrange(20), rng.randrange(1000))
            gone = sorted(key for key in model if rng.random() < 0.03)
            changed |= {key: value} | dict.fromkeys(gone)
        index += 1
        for key, value_or_none in changed.items():
            if value_or_none is None:
                model.pop(key, None)
            else:
                model[key] = value_or_none
        rows.propose(index, list(changed.items()))
        rows.commit(index, 1, list(changed.items()), [], 100)

    def flush(besides: list[tuple[bytes, bytes | None]]) -> None:
        batch = Round()
        taken = rows.take_flush()
        if taken is not None:
            batch.rows.extend(taken[0])
        batch.rows[:0] = besides
        storage.write(batch)
        if taken is not None:
            rows.stored(taken[0], taken[2])

    for _ in range(40):
        change()
    flush([])
    mirror = Mirror(2, TARGET, half)
    rows.mirrors.append(mirror)
    target = snapshot.prefix(TARGET)
    for start, end in split.spans(HALF):
        after = start
        while True:
            prefix = snapshot.prefix(GROUP)
            found = list(storage.scan(prefix + after, prefix + end, 3))
            besides = [(target + full[4:], value) for full, value in found if half.have(full[4:], value)]
            for _ in range(rng.randrange(3)):
                change()
            flush(list(besides))
            if len(found) < 3:
                break
            after = found[-1][0][4:] + b"\0"
    for _ in range(5):
        change()
    mirror.until = index
    wanted = {key: value for key, value in model.items() if in_half(key, value)}
    kept = {key: value for key, value in model.items() if not in_half(key, value)}
    later = next(row for number in range(1000) if not in_half(*(row := row_of(rng, number, number))))
    rows.propose(index + 1, [later])
    rows.commit(index + 1, 1, [later], [], 10)
    kept[later[0]] = later[1]
    flush([])
    copied = storage.scan(target, snapshot.prefix_end(TARGET))
    assert {full[4:]: value for full, value in copied} == wanted

    rows.gone = half
    for kind in (b"c", b"r", b"i", b"h", b"q", b"t", b"x"):
        seen = list(rows.scan(kind, keys.prefix_end(kind)))
        expected = sorted(item for item in kept.items() if item[0][:1] == kind)
        assert seen == expected
        assert list(rows.scan(kind, keys.prefix_end(kind), 2)) == expected[:2]
        assert list(rows.scan(kind, keys.prefix_end(kind), 2, reverse=True)) == expected[::-1][:2]
    assert all(rows.get(key) is None for key in wanted)
    assert all(rows.get(key) == value for key, value in kept.items())
    everything = storage.scan(snapshot.prefix(GROUP), snapshot.prefix_end(GROUP))
    sent = split.without(((full[4:], value) for full, value in everything), HALF)
    assert dict(sent) == kept


def test_rows_of_the_node_go_with_their_entry_and_not_before() -> None:
    storage = MemoryStorage()
    rows = Rows(storage, GROUP, GROUP)
    rows.commit(1, 1, [(b"c1", b"")], [], 1)
    rows.store_along(2, b"book", b"said")
    first = rows.take_flush()
    assert first is not None
    assert (b"book", b"said") not in first[0]
    rows.commit(2, 1, [(b"c2", b"")], [], 1)
    second = rows.take_flush()
    assert second is not None
    assert (b"book", b"said") in second[0]
    rows.commit(3, 1, [], [], 1)
    third = rows.take_flush()
    assert third is not None
    assert third[0] == []


def test_an_entry_that_splits_is_no_transaction_to_who_does_not_know_it() -> None:
    said = Split(split.SPLIT, 7, HALF, b"members", 12)
    rows: list[tuple[bytes, bytes | None]] = [(split.key_of(7), split.encode(said))]
    data = image.encode_split(rows)
    assert image.is_split(data)
    assert split.splits_in(image.decode(data).rows) == [said]
    assert image.decode(data).version > image.TRANSACTION, "a program of before refuses it"
    for plain in (image.encode(rows, []), image.encode([], []), image.encode([(b"x" * 300, b"y")] * 40, [])):
        assert not image.is_split(plain)
    never = split.abandonment(7, 13)
    assert split.decode(split.encode(never)) == never
    assert never.abandoned
    assert never.version > said.version, "a program that would make a child of it refuses it"
    newer = msgspec.structs.replace(said, version=split.FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match="reads up to"):
        split.decode(split.encode(newer))


def test_a_copy_in_the_book_is_read_back() -> None:
    copy = Copy(1, 7, HALF, 1, TARGET, 3, b"key")
    assert msgspec.msgpack.Decoder(Copy).decode(pack(copy)) == copy
