"""An index against a plain list, as values that part; and what an entry of a long run costs."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from replication.merge import Entry, Environment, History, Item, Kind, Record, merge
from replication.merge.history import contains, tip
from replication.merge.index import Index, Indexed
from replication.merge.rows import changes

from .conftest import STARTED, TASK, active, buffered, events, path, record_of, signal, standby


def indexed(number: int, version: int, key: str) -> Indexed:
    return Indexed(number, version, Kind.SIGNALED, key, "", True, 0, 0)


def agree(index: Index, plain: list[Indexed], paths: list[History]) -> None:
    assert (len(index), list(index), index == Index(plain)) == (len(plain), plain, True)
    for key in "abcdefgh":
        found = [event for event in plain if event.key == key]
        assert list(index.of_key(key)) == found
        assert (key in index) == bool(found)
    for way in paths:
        on = [event for event in plain if contains(way, event.id, event.version)]
        assert sorted(index.on_path(way), key=repr) == sorted(on, key=repr)
        assert sorted(index.off_path(way), key=repr) == sorted((e for e in plain if e not in on), key=repr)


def test_values_that_part_show_what_they_showed(rng: random.Random) -> None:
    for _ in range(40):
        values: list[tuple[Index, list[Indexed], dict[int, int]]] = [(Index(), [], {})]
        paths: list[History] = [
            (),
            (Item(4, 2),),
            (Item(2, 1), Item(6, 3)),
            (Item(1, 1), Item(3, 2), Item(9, 4)),
        ]
        for _ in range(12):
            index, plain, last = rng.choice(values[-3:])
            more, last = [], dict(last)
            for _ in range(rng.randrange(4)):
                version = rng.randrange(1, 5)
                last[version] = last.get(version, 0) + rng.randint(1, 2)  # not all events are indexed
                more.append(indexed(last[version], version, rng.choice("abcdefgh")))
            after = index.extended(more)
            assert not after.continues(index) or [*after.since(len(index))] == more
            values.append((after, plain + more, last))
        for index, plain, _ in values:
            agree(index, plain, paths)


def test_an_empty_index_is_everybodys() -> None:
    empty = Index()
    first, second = empty.extended([indexed(1, 1, "a")]), empty.extended([indexed(1, 1, "b")])
    assert ([e.key for e in first], [e.key for e in second], len(empty)) == (["a"], ["b"], 0)
    assert not first.continues(empty), "the default of all runs would keep the first one's events for ever"


def test_indexes_are_equal_if_their_events_are() -> None:
    one = Index([indexed(1, 1, "a")])
    longer = one.extended([indexed(2, 1, "b")])
    assert one == Index([indexed(1, 1, "a")])
    assert one != longer != Index([indexed(1, 1, "a"), indexed(2, 1, "c")])
    assert one != [indexed(1, 1, "a")]


def steps(work: Callable[[], object]) -> int:
    """How many calls the work makes: the same on every machine."""
    count = 0

    def counted(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def long_run(signals: int) -> Record:
    return record_of(events(1, 1, [STARTED, *(signal(key=f"k{n}") for n in range(signals))]))


def parted(signals: int) -> Record:
    """b, which is active, has taken the run over; a's tail of two events is stale, and one made again."""
    before = long_run(signals)
    history = before.runs["x"].branch.history
    record = merge(before, events(1, 2, [signal(key="s")], history), standby(2)).record
    return merge(record, events(2, 1, [signal(key="s"), TASK], history), standby(2)).record


@pytest.mark.parametrize("what", ["append", "buffer", "append while one waits", "stale"])
def test_an_entry_costs_no_more_in_a_long_run(what: str) -> None:
    costs = []
    for signals in (20, 2000):
        record = parted(signals) if what == "stale" else long_run(signals)
        if what == "append while one waits":
            record = merge(record, buffered(2, 1, [signal(key="w")]), standby(1)).record
        env: Environment = active(2) if what == "stale" else standby(1)
        at = path((tip(record.runs["x"].branches[0].history).event_id, 1))
        entry: Entry = events(3, 1, [signal(key="s" if what == "stale" else "new")], at)
        if what == "buffer":
            entry = buffered(3, 1, [signal(key="new")])

        def work(record: Record = record, entry: Entry = entry, env: Environment = env) -> None:
            after = merge(record, entry, env).record
            assert len(changes(record, after)) <= 2

        costs.append(steps(work))
    assert costs[1] <= costs[0] + 40, "no more than a search by halves"
