"""Identifiers are UUIDs of version 7 that sort by time; tokens are what they were, or refused."""

from __future__ import annotations

import random
import uuid

import msgspec
import pytest

from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.tasks.tokens import HistoryToken, TaskToken, encode, history_token, task_token
from history_store.engine.errors import Code, ServiceError
from history_store.engine.keys import raw_id
from tests.cluster.frontend.services.conftest import MovableClock


def test_identifiers_are_version_7(rng: random.Random) -> None:
    clock = MovableClock()
    ids = Identifiers(clock, rng)
    before = ""
    seen = set()
    for _ in range(500):
        made = ids.new()
        parsed = uuid.UUID(made)
        assert str(parsed) == made, "canonical form"
        assert parsed.version == 7
        assert parsed.variant == uuid.RFC_4122
        assert parsed.int >> 80 == clock.now_ns() // 1_000_000
        assert raw_id(made) == parsed.bytes
        seen.add(made)
        clock.advance(0.001)
        assert made[:13] >= before[:13]
        before = made
    assert len(seen) == 500


def test_the_clock_never_runs_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter((5, 3, 9, 8, 10))
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    clock = Clock()
    assert [clock.now_ns() for _ in range(5)] == [5, 5, 9, 9, 10]


def test_tokens_come_back(rng: random.Random) -> None:
    for _ in range(50):
        token = TaskToken(rng.randrange(1, 4), "n", "w\0é", "r", rng.getrandbits(40), 1, 2, "ref")
        assert task_token(encode(token)) == token
        page = HistoryToken("r", rng.randrange(1, 2**40), rng.random() < 0.5, rng.randrange(2**40))
        assert history_token(encode(page)) == page


def test_garbage_is_no_token(rng: random.Random) -> None:
    task = encode(TaskToken(1, "n", "w", "r", 5, 1))
    page = encode(HistoryToken("r", 5))
    wrong = [
        b"\xc1", b"\x00", rng.randbytes(30), task[:-1], page[:-1],
        msgspec.msgpack.encode({"kind": 1}),
        msgspec.msgpack.encode([1, "n", "w", "r", "five", 1]), b"\x96\x01\xa1\xff\xa1w\xa1r\x05\x01",
        b"\xdd" * 9,
    ]  # fmt: skip
    for data in wrong:
        for decode in (task_token, history_token):
            with pytest.raises(ServiceError) as caught:
                decode(data)
            assert caught.value.code == Code.INVALID_ARGUMENT
    with pytest.raises(ServiceError, match=r"Task token not set on request\."):
        task_token(b"")
