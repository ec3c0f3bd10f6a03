"""Entries in the log: they come back as they were, and what is none is refused by name."""

from __future__ import annotations

import random

import msgspec
import pytest

from history_store.shard import image
from history_store.visibility.record import DeleteRecord, ExecutionRecord


def record(rng: random.Random) -> ExecutionRecord:
    return ExecutionRecord(
        namespace_id="n", workflow_id="w", run_id=str(rng.random()), workflow_type="W", status=1,
        start_time=rng.getrandbits(62), execution_time=0, close_time=0, task_queue="q", history_length=0,
        history_size_bytes=0, state_transition_count=0, execution_duration=0, memo=rng.randbytes(9),
        search_attributes=b"", parent_workflow_id="", parent_run_id="", root_workflow_id="w", root_run_id="r",
    )  # fmt: skip


def test_round_trip(rng: random.Random) -> None:
    for _ in range(50):
        rows = [
            (rng.randbytes(rng.randrange(1, 40)), rng.choice((None, rng.randbytes(rng.randrange(300)))))
            for _ in range(rng.randrange(6))
        ]
        shown = [record(rng) for _ in range(rng.randrange(3))]
        hidden = [DeleteRecord("n", "r") for _ in range(rng.randrange(2))]
        found = image.decode(image.encode(rows, [*shown, *hidden]))
        assert found.rows == rows
        assert found.shown == shown
        assert found.hidden == hidden
        assert found.version == image.TRANSACTION


def test_a_newer_version_is_refused_by_number() -> None:
    data = msgspec.msgpack.encode((image.FORMAT_VERSION + 1, [], [], [], "something new"))
    with pytest.raises(ValueError, match=f"format {image.FORMAT_VERSION + 1}; this version reads up to"):
        image.decode(data)


def test_garbage_is_refused(rng: random.Random) -> None:
    whole = image.encode([(b"key", b"value"), (b"gone", None)], [])
    for data in (b"", b"\xc1", b"\xff" * 9, rng.randbytes(40), *(whole[:cut] for cut in range(len(whole)))):
        with pytest.raises(ValueError, match=r"not a shard transaction|of format"):
            image.decode(data)


def test_an_older_entry_without_records_is_read() -> None:
    assert image.decode(msgspec.msgpack.encode((1, [(b"k", b"v")]))).shown == []
