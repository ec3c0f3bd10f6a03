"""Version histories against the trees of events that they describe."""

from __future__ import annotations

import random

import pytest

from replication.merge.history import (
    ROOT,
    History,
    Item,
    choose_branch,
    contains,
    extended,
    lowest_common_ancestor,
    prefix,
    problem,
    tip,
)

Path = tuple[tuple[int, int], ...]  # every event's (id, version), the first one first


def random_tree(rng: random.Random) -> list[Path]:
    """Paths of a tree as regions make it: each version is one line of events, after any of a lower one."""
    paths: list[Path] = [()]
    for version in sorted(rng.sample(range(1, 400), rng.randrange(1, 8))):
        start = rng.choice(paths)
        cut = rng.randrange(len(start) + 1) if rng.random() < 0.7 else len(start)
        path = start[:cut]
        for _ in range(rng.randrange(1, 5)):
            path = (*path, (len(path) + 1, version))
            paths.append(path)
    return paths


def history_of(path: Path) -> History:
    return extended((), (Item(*event) for event in path))


def by_brute_force(one: Path, other: Path) -> Item:
    common = [mine for mine, theirs in zip(one, other, strict=False) if mine == theirs]
    return Item(*common[-1]) if common else ROOT


def test_the_ancestor_is_the_last_common_event(rng: random.Random) -> None:
    for _ in range(300):
        paths = random_tree(rng)
        for _ in range(20):
            one, other = rng.choice(paths), rng.choice(paths)
            ancestor = lowest_common_ancestor(history_of(one), history_of(other))
            assert ancestor == by_brute_force(one, other)
            assert ancestor == lowest_common_ancestor(history_of(other), history_of(one))


def test_the_items_say_which_events_are_on_a_path(rng: random.Random) -> None:
    for _ in range(200):
        paths = random_tree(rng)
        every = {event for path in paths for event in path}
        path = rng.choice(paths)
        history = history_of(path)
        assert problem(history) == ""
        assert {event for event in every if contains(history, *event)} == set(path)
        assert tip(history) == (path[-1] if path else ROOT)
        for cut in range(len(path) + 1):
            assert prefix(history, Item(*path[cut - 1]) if cut else ROOT) == history_of(path[:cut])


def test_two_roots_have_only_the_virtual_root_in_common() -> None:
    assert lowest_common_ancestor((Item(4, 1),), (Item(9, 2),)) == ROOT
    assert lowest_common_ancestor((), (Item(9, 2),)) == ROOT
    assert contains((Item(4, 1),), *ROOT)


def test_an_example_with_three_versions() -> None:
    one = (Item(5, 1), Item(8, 3), Item(12, 101))
    assert lowest_common_ancestor(one, (Item(5, 1), Item(10, 3))) == Item(8, 3)
    assert lowest_common_ancestor(one, (Item(5, 1), Item(6, 2))) == Item(5, 1)
    assert lowest_common_ancestor(one, (Item(4, 1), Item(6, 102))) == Item(4, 1)


def test_the_highest_ancestor_chooses_the_branch() -> None:
    branches = [(Item(3, 1), Item(9, 2)), (Item(3, 1), Item(5, 3))]
    assert choose_branch(branches, (Item(3, 1), Item(7, 2))) == (0, Item(7, 2))
    assert choose_branch(branches, (Item(3, 1), Item(5, 3), Item(6, 101))) == (1, Item(5, 3))


def test_of_equal_ancestors_the_branch_with_the_fewest_items_is_chosen() -> None:
    long, short = (Item(3, 1), Item(4, 2), Item(5, 3)), (Item(3, 1), Item(9, 4))
    assert choose_branch([long, short], (Item(3, 1), Item(4, 101))) == (1, Item(3, 1))
    assert choose_branch([short, long], (Item(3, 1), Item(4, 101))) == (0, Item(3, 1))


@pytest.mark.parametrize(
    ("history", "why"),
    [
        ((Item(0, 1),), "event id 0 after 0"),
        ((Item(3, 2), Item(3, 3)), "event id 3 after 3"),
        ((Item(3, 2), Item(4, 2)), "version 2 after 2"),
        ((Item(3, 2), Item(4, 1)), "version 1 after 2"),
        ((Item(3, 0),), "version 0 after 0"),
    ],
)
def test_ids_and_versions_strictly_increase(history: History, why: str) -> None:
    assert problem(history) == why


def test_a_gap_or_a_falling_version_does_not_extend() -> None:
    with pytest.raises(AssertionError, match="event 5 after 3"):
        extended((Item(3, 1),), [Item(5, 1)])
    with pytest.raises(AssertionError, match="version 1 after 2"):
        extended((Item(3, 2),), [Item(4, 1)])
