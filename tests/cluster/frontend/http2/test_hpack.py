"""HPACK against the `hpack` package: what it encodes we decode, what it refuses we refuse."""

from __future__ import annotations

import random

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.frontend.http2.hpack import Decoder, HpackError, huffman_decode, literal

name = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
value = st.binary(max_size=60)
block = st.lists(st.tuples(name, value, st.booleans()), max_size=8)


@settings(max_examples=200, deadline=None)
@given(st.lists(block, max_size=6), st.booleans())
def test_what_an_encoder_says_is_understood(
    blocks: list[list[tuple[str, bytes, bool]]], huffman: bool
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(1 << 20)
    for fields in blocks:
        coded = encoder.encode(
            [hpack.HeaderTuple(k, v) if add else hpack.NeverIndexedHeaderTuple(k, v) for k, v, add in fields],
            huffman=huffman,
        )
        assert [(f.name.decode(), f.value) for f in decoder.decode(coded)] == [(k, v) for k, v, _ in fields]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(block, st.integers(0, 4096)), max_size=6))
def test_table_sizes_may_change(blocks: list[tuple[list[tuple[str, bytes, bool]], int]]) -> None:
    encoder, decoder = hpack.Encoder(), Decoder(1 << 20)
    for fields, size in blocks:
        encoder.header_table_size = size
        coded = encoder.encode([(k, v) for k, v, _ in fields])
        assert [(f.name.decode(), f.value) for f in decoder.decode(coded)] == [(k, v) for k, v, _ in fields]


def test_random_blocks_are_judged_alike(rng: random.Random) -> None:
    judged = 0
    for _ in range(1500):
        ours, theirs = Decoder(1 << 20), hpack.Decoder(max_header_list_size=1 << 20)
        coded = bytes(rng.choices(range(256), k=rng.randrange(1, 24)))
        try:
            expected = [(bytes(k), bytes(v)) for k, v in theirs.decode(coded, raw=True)]
        except (hpack.HPACKError, UnicodeDecodeError):
            with pytest.raises(HpackError):
                ours.decode(coded)
        else:
            assert [(f.name, f.value) for f in ours.decode(coded)] == expected, coded.hex()
            judged += 1
    assert judged > 10


@pytest.mark.parametrize(
    ("coded", "what"),
    [
        (b"\x80", "index 0"),
        (b"\xbe", "an empty table's entry"),
        (b"\xff\xff\xff\xff\xff\xff", "an endless integer"),
        (b"\x82\x20", "a size update behind a field"),
        (b"\x3f\xe2\x1f", "a table of 4,097 bytes"),
        (b"\x00\x05ab", "a truncated string"),
        (b"\x00\x84\xff\xff\xff\xff\x00", "the end-of-string symbol"),
        (b"\x00\x81\x00\x00", "wrong Huffman padding"),
        (b"\x40", "nothing behind a literal"),
    ],
)
def test_what_is_not_hpack(coded: bytes, what: str) -> None:
    with pytest.raises(HpackError):
        Decoder(16384).decode(coded)


def test_a_list_too_large_is_cut_and_keeps_the_table() -> None:
    encoder, decoder = hpack.Encoder(), Decoder(1000)
    decoder.decode(encoder.encode([("a", "1" * 500)]))
    fields = decoder.decode(encoder.encode([("a", "1" * 500), ("a", "1" * 500), ("b", "2")]))
    assert decoder.oversized
    assert len(fields) <= 2
    assert [f.value for f in decoder.decode(encoder.encode([("b", "2"), ("a", "1" * 500)]))] == [
        b"2",
        b"1" * 500,
    ]
    assert not decoder.oversized


@given(st.binary(max_size=300))
def test_huffman(text: bytes) -> None:
    from hpack.huffman import HuffmanEncoder
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

    assert huffman_decode(HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(text)) == text


@given(st.lists(st.tuples(name, st.binary(max_size=400)), max_size=6))
def test_our_literals_are_understood(fields: list[tuple[str, bytes]]) -> None:
    coded = b"".join(literal(k.encode(), v) for k, v in fields)
    got = hpack.Decoder().decode(coded, raw=True)
    assert [(bytes(k), bytes(v)) for k, v in got] == [(k.encode(), v) for k, v in fields]
