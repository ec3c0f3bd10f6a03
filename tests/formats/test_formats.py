"""Nodes one release apart work together: each reads what the other wrote, on disk and on the wire.

`tests/fixtures/formats/<number>` holds what a program of that number wrote. A test here that fails says that
a format was changed in place: give it a new number (`FORMATS`), go on reading the old one, write it for as
long as the region's record says so, and run `python -m tests.formats.generate`.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.membership import FORMATS
from cluster.peers.contract import VERSIONS
from history_store.engine import state
from tests.formats import disk, wire
from tests.formats.generate import FIXTURES
from tests.formats.samples import STRUCTS, Sample, fields, plain, samples

NUMBERS = [number for number in (FORMATS - 1, FORMATS) if number]
# Kinds of messages that any run has; whether it has the others is up to chance.
COMMON = {"10", "12", "40", "50 hello", "50 credit", "50 offer", "50 start", "50 task"}


def fixture(number: int, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FIXTURES / str(number) / name).read_text())
    return found


def as_sent(value: Any) -> Any:
    """A message out of a fixture."""
    if isinstance(value, str) and value.startswith("0x"):
        return bytes.fromhex(value[2:])
    return [as_sent(one) for one in value] if isinstance(value, list) else value


def extends(new: Any, old: Any) -> bool:
    """Whether a reader of `old` reads `new`: fields were added at the ends of arrays, or nothing changed."""
    if isinstance(old, list) and isinstance(new, list):
        return len(new) >= len(old) and all(extends(n, o) for n, o in zip(new, old, strict=False))
    return bool(new == old)


def has_shape_of(new: list[Any], old: list[Any]) -> bool:
    """Whether the fields of a message are of the types that they were of; new ones may follow."""
    return len(new) >= len(old) and all(
        type(n) is type(o) or n is None or o is None for n, o in zip(new, old, strict=False)
    )


def test_each_number_has_its_fixtures() -> None:
    assert FORMATS >= 1
    assert {int(directory.name) for directory in FIXTURES.iterdir()} == set(range(1, FORMATS + 1))
    assert 0 <= VERSIONS[1] - VERSIONS[0] <= 1, (
        "a node speaks the protocol of its release and of the one before"
    )


def test_each_kind_of_row_has_a_sample() -> None:
    kinds = {
        kind
        for _, kind in inspect.getmembers(state, inspect.isclass)
        if issubclass(kind, msgspec.Struct) and kind.__module__ == state.__name__
    }
    assert kinds <= set(STRUCTS)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_was_written_is_read(number: int) -> None:
    written, wrong = fixture(number, "samples.json"), {}
    known = {sample.name: sample for sample in samples()}
    assert known.keys() >= written.keys(), "what was written once is never forgotten"
    assert number < FORMATS or known.keys() == written.keys(), "a new format has its sample: a new number"
    for name, was in written.items():
        read = plain(known[name].read(bytes.fromhex(was["bytes"])))
        if not extends(read, was["read"]):
            wrong[name] = (read, was["read"])
    assert not wrong


@pytest.mark.parametrize("number", NUMBERS)
def test_fields_stay_in_their_places(number: int) -> None:
    now, moved = fields(), {}
    for kind, names in fixture(number, "fields.json").items():
        places = {name: place for place, name in enumerate(now[kind])}
        if any(places.get(name, place) != place for place, name in enumerate(names)):
            moved[kind] = (names, now[kind])
    assert not moved


def test_what_is_written_can_be_read_by_the_release_before() -> None:
    """It reads arrays up to the fields it knows: our bytes through its eyes."""
    written, wrong = fixture(NUMBERS[0], "samples.json"), {}
    for sample in samples():
        if sample.name in written:
            ours, old = sample.write(), bytes.fromhex(written[sample.name]["bytes"])
            if not (
                extends(plain(sample.read(ours)), written[sample.name]["read"])
                and extends(_plain_array(sample, ours), _plain_array(sample, old))
            ):
                wrong[sample.name] = (ours, old)
    assert not wrong


def _plain_array(sample: Sample, data: bytes) -> Any:
    """The msgpack in it, as a reader sees it that knows no field by its name."""
    if sample.name.startswith(("deed ", "outcome ")):
        return [data[0], msgspec.msgpack.decode(data[1:])]
    if sample.name.startswith(("row ", "table ", "raft ", "transaction", "split")):
        return msgspec.msgpack.decode(data)
    return []


@pytest.mark.parametrize("number", NUMBERS)
def test_a_disk_that_was_written_is_read(number: int, tmp_path: Path) -> None:
    path = disk.unpack(FIXTURES / str(number) / "disk.tar.xz", tmp_path)
    was = fixture(number, "disk.json")
    assert disk.read(path) == was
    assert disk.read(path) == was, "and again, after what the first start changed"


@pytest.mark.parametrize("number", NUMBERS)
def test_messages_of_a_node_of_the_release_before_are_understood(number: int) -> None:
    messages = fixture(number, "wire.json")
    assert messages.keys() >= COMMON
    assert wire.heard(as_sent(message) for message in messages.values()) == []


def test_messages_have_the_shape_that_the_release_before_knows() -> None:
    was, now = fixture(NUMBERS[0], "wire.json"), wire.record()
    assert now.keys() >= COMMON
    odd = {
        kind: (message, was[kind])
        for kind, message in now.items()
        if kind in was and not has_shape_of(message, as_sent(was[kind]))
    }
    assert not odd
