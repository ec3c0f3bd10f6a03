"""Whatever a peer sends, in whatever pieces: nothing escapes, nothing leaks, and others are answered."""

from __future__ import annotations

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cluster.frontend.http2 import fuzz, wire

COMMON = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])

heads = st.sampled_from(("/t.T/Echo", "/t.T/Park", "/t.T/Task", "/t.T/Chat", "/t.T/Big", "/t.T/Nope"))
stream_ids = st.one_of(st.integers(0, 12), st.integers(0, 2**31 - 1))
payloads = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 2**32 - 1).map(wire.word),
    st.binary(max_size=20).map(wire.message),
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2**32 - 1)), max_size=4).map(
        lambda pairs: b"".join(key.to_bytes(2, "big") + wire.word(value) for key, value in pairs)
    ),
)
any_frames = st.builds(wire.frame, st.integers(0, 11), st.integers(0, 255), stream_ids, payloads)


@st.composite
def calls(draw: st.DrawFn) -> bytes:
    """A call that is mostly right."""
    stream = draw(st.sampled_from((1, 3, 5, 7, 9)))
    head = wire.frame(wire.HEADERS, draw(st.sampled_from((4, 4, 4, 5, 0))), stream, fuzz.head(draw(heads)))
    body = wire.frame(wire.DATA, draw(st.sampled_from((1, 1, 0, 9))), stream, draw(payloads))
    return head + body


talk = st.lists(st.one_of(any_frames, calls(), st.binary(max_size=12)), max_size=25)


@COMMON
@given(talk, st.lists(st.integers(1, 60), max_size=6))
def test_frames(parts: list[bytes], cuts: list[int]) -> None:
    asyncio.run(fuzz.converse(wire.PREFACE + wire.settings() + b"".join(parts), cuts))


@COMMON
@given(st.binary(max_size=200), st.lists(st.integers(1, 60), max_size=6))
def test_bytes(data: bytes, cuts: list[int]) -> None:
    asyncio.run(fuzz.converse(data, cuts))


@COMMON
@given(st.binary(max_size=200))
def test_header_blocks(block: bytes) -> None:
    frames = wire.frame(wire.HEADERS, 5, 1, block) + wire.frame(wire.HEADERS, 5, 3, fuzz.head("/t.T/Echo"))
    asyncio.run(fuzz.converse(wire.PREFACE + wire.settings() + frames, []))


@COMMON
@given(
    st.lists(
        st.sampled_from(
            (b"GET ", b"/healthz", b" HTTP/1.1", b"\r\n", b"\r\n\r\n", b"content-length: 4", b"\0", b"x")
        ),
        max_size=30,
    ),
    st.lists(st.integers(1, 9), max_size=9),
)
def test_http1(words: list[bytes], cuts: list[int]) -> None:
    asyncio.run(fuzz.converse(b"".join(words), cuts))
