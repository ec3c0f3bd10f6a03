"""The parts of storage by themselves: ordered keys, log rows, the bookkeeping of what may go."""

import random
from bisect import bisect_left

import pytest

from history_store.storage.contract import Entry, HardState, Round
from history_store.storage.frames import FrameError, decode, encode
from history_store.storage.keeper import LogKeeper
from history_store.storage.ordered import OrderedKeys


def test_ordered_keys_are_a_sorted_list(rng):
    keys, model = OrderedKeys(), []
    for number in range(12_000):
        key = (b"%08d" % number) if rng.random() < 0.5 else rng.randbytes(3)
        at = bisect_left(model, key)
        if at < len(model) and model[at] == key:
            keys.remove(key)
            del model[at]
        else:
            keys.add(key)
            model.insert(at, key)
        if number % 200 == 0:
            start, end = sorted((rng.randbytes(2), rng.randbytes(2)))
            limit, reverse = rng.choice([0, 1, 5, 3000]), rng.random() < 0.5
            expected = [k for k in model if start <= k < end]
            expected = (expected[::-1] if reverse else expected)[: limit or None]
            assert keys.between(start, end, limit, reverse) == expected
    for key in rng.sample(model, len(model)):
        keys.remove(key)
    assert keys.between(b"", b"\xff" * 9, 0, False) == []


def sample_row() -> bytes:
    body = bytearray()
    encode(9, [(1, [Entry(1, 1, 0, b"abc" * 3000), Entry(2, 2, 1, b"")])], [(7, HardState(2, 1, 1))], body)
    return bytes(body)


def test_a_log_row_comes_back():
    entries, hard_states = decode(9, sample_row())
    assert entries == [(1, [Entry(1, 1, 0, b"abc" * 3000), Entry(2, 2, 1, b"")])]
    assert hard_states == [(7, HardState(2, 1, 1))]


def test_a_buffer_is_reused_by_a_shorter_row():
    body = bytearray(sample_row())
    encode(10, [], [(1, HardState(1, 0, 0))], body)
    assert decode(10, bytes(body)) == ([], [(1, HardState(1, 0, 0))])


def test_no_flipped_bit_and_no_cut_goes_unseen():
    body = sample_row()
    rng = random.Random(5)
    for _ in range(500):
        bad = bytearray(body)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        with pytest.raises(FrameError):
            decode(9, bytes(bad))
    with pytest.raises(FrameError):
        decode(8, body)  # in another row's place
    for size in (0, 4, 5, 6, len(body) - 1):
        with pytest.raises(FrameError):
            decode(9, body[:size])


def test_a_log_row_of_a_newer_version_is_told_from_a_damaged_one():
    with pytest.raises(FrameError, match="newer Holdfast"):
        decode(9, b"\x02" + sample_row()[1:])


def write(keeper: LogKeeper, batch: Round) -> list[int]:
    """What the round lets the storage delete."""
    plan = keeper.plan(batch)
    keeper.commit(batch, plan)
    return plan.drop


def run(term: int, first: int, last: int) -> list[Entry]:
    return [Entry(term, index, 0, b"") for index in range(first, last + 1)]


def test_a_row_that_replaced_entries_waits_for_the_row_it_replaced():
    keeper = LogKeeper([])
    write(keeper, Round(entries=[(1, run(1, 1, 8)), (2, run(1, 1, 1))]))
    write(keeper, Round(entries=[(1, run(2, 6, 6))]))
    assert write(keeper, Round(compact=[(1, 6, 2)])) == []
    assert write(keeper, Round(compact=[(2, 1, 1)])) == [1, 2]


def test_rows_go_from_the_middle():
    keeper = LogKeeper([])
    write(keeper, Round(entries=[(2, run(1, 1, 1))]))
    for index in (1, 2, 3):
        write(keeper, Round(entries=[(1, run(1, index, index))]))
    assert write(keeper, Round(compact=[(1, 2, 1)])) == [2, 3]
    assert write(keeper, Round(applied=[(1, 3, 1, b"")])) == []


def test_a_plan_that_is_not_carried_out_changes_nothing():
    keeper = LogKeeper([])
    write(keeper, Round(entries=[(1, run(1, 1, 3))], hard_states=[(1, HardState(1, 1, 0))]))
    before = keeper.logs()
    batch = Round(entries=[(1, run(2, 2, 9))], hard_states=[(1, HardState(2, 0, 1))], compact=[(1, 1, 1)])
    assert keeper.plan(batch) == keeper.plan(batch)
    assert keeper.logs() == before


def test_hard_states_are_carried_over_before_their_row_goes():
    keeper = LogKeeper([])
    write(keeper, Round(hard_states=[(5, HardState(3, 2, 0))]))
    plan = keeper.plan(Round(applied=[(1, 0, 0, b"")]))
    assert plan.drop == [1]
    assert [(row.group, row.term, row.vote) for row in plan.groups] == [(1, 0, 0), (5, 3, 2)]
