"""Conversations with one connection, frame by frame: what a peer says, what it hears."""

from __future__ import annotations

import asyncio
import gzip
from base64 import b64decode

import pytest

from cluster.frontend.contract import Call
from cluster.frontend.http2 import Limits
from cluster.frontend.http2.frames import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    STREAM_CLOSED,
)
from tests.cluster.frontend.http2 import wire
from tests.cluster.frontend.http2.wire import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    RST,
    SETTINGS,
    WINDOW,
    Peer,
    frame,
    message,
    settings,
    word,
)


def echo(call: Call) -> bytes:
    return call.request


def park(call: Call) -> None:
    return None


async def ended(peer: Peer) -> None:
    """Let connection_lost be delivered."""
    await asyncio.sleep(0)
    assert peer.connection.closed
    assert peer.connection.held == peer.front.held == 0


async def test_the_usual_call_is_three_frames() -> None:
    peer = Peer({"Echo": echo}).send(wire.frame(PING, 0, 0, b"12345678"))
    assert [(f.kind, f.flags) for f in peer.frames()] == [(PING, 1)]
    peer.send(peer.request(1, b"hello"))
    headers, data, trailers = peer.frames()
    assert (headers.kind, headers.flags, data.kind, data.flags) == (HEADERS, 4, DATA, 0)
    assert data.payload == message(b"hello")
    assert (trailers.kind, trailers.flags) == (HEADERS, 5)
    assert dict(peer.decoder.decode(headers.payload)) == {
        ":status": "200",
        "content-type": "application/grpc",
    }
    assert dict(peer.decoder.decode(trailers.payload)) == {"grpc-status": "0"}
    assert not peer.connection.streams


async def test_any_cut_of_the_same_bytes_says_the_same() -> None:
    talk = Peer({"Echo": echo}, greet=False)
    whole = wire.PREFACE + settings() + b"".join(talk.request(s, b"m" * s) for s in range(1, 40, 2))
    talk.send(whole)
    expected = bytes(talk.transport.written)
    for size in (1, 2, 7, 24, 25, 100):
        peer = Peer({"Echo": echo}, greet=False)
        for start in range(0, len(whole), size):
            peer.send(whole[start : start + size])
        assert bytes(peer.transport.written) == expected, f"cut into pieces of {size}"


async def test_a_request_in_pieces_and_padded() -> None:
    peer = Peer({"Echo": echo})
    block = peer.head()
    peer.send(
        frame(HEADERS, 0x8 | 0x20, 1, b"\x03" + word(0) + b"\x10" + block[:10] + b"\0\0\0"),
        frame(CONTINUATION, 0, 1, block[10:20]),
        frame(CONTINUATION, 4, 1, block[20:]),
        frame(DATA, 0, 1, b"\0\0"),
        frame(DATA, 0x8, 1, b"\x02" + b"\0\0\x03a" + b"\0\0"),
        frame(DATA, 0, 1, b"bc"),
        frame(DATA, 1, 1, b""),
    )
    assert peer.answers()[1][1] == message(b"abc")


async def test_a_gzip_request_and_a_gzip_response() -> None:
    peer = Peer({"Echo": echo}, window=1 << 20, limits=Limits(gzip_bytes_min=1000))
    peer.send(frame(WINDOW, 0, 0, word(1 << 20)))
    body = b"history " * 1000
    peer.send(
        frame(HEADERS, 4, 1, peer.head(grpc_encoding="gzip", grpc_accept_encoding="identity, gzip")),
        frame(DATA, 1, 1, message(gzip.compress(body), compressed=True)),
        peer.request(3, b"short", grpc_accept_encoding="gzip"),
        peer.request(5, body),
        peer.request(7, bytes(range(256)) * 4, grpc_accept_encoding="gzip"),
    )
    found = peer.answers()
    assert found[1][0]["grpc-encoding"] == "gzip"
    assert found[1][1][0] == 1
    assert gzip.decompress(found[1][1][5:]) == body
    assert found[3][1] == message(b"short")  # too small to be worth it
    assert found[5][1] == message(body)  # a client that did not ask for it
    assert found[7][1][0] in (0, 1)


@pytest.mark.parametrize(
    ("head", "payload", "code"),
    [
        ({"grpc_encoding": "gzip"}, message(b"not gzip", compressed=True), 13),
        ({"grpc_encoding": "gzip"}, message(gzip.compress(b"abc", mtime=0)[:-4], compressed=True), 13),
        ({"grpc_encoding": "snappy"}, message(b"?", compressed=True), 12),
        ({}, message(b"?", compressed=True), 12),
        ({}, b"", 13),
        ({}, b"\0\0\0\0\5abc", 13),
        ({}, message(b"one") + message(b"two"), 13),
        ({}, b"\0\xff\xff\xff\xff", 8),
    ],
)
async def test_requests_that_are_no_message(head: dict[str, str], payload: bytes, code: int) -> None:
    peer = Peer({"Echo": echo})
    peer.send(frame(HEADERS, 4, 1, peer.head(**head)), frame(DATA, 1, 1, payload))
    assert peer.status(1)[0] == code
    assert not peer.gone
    assert peer.front.held == 0


async def test_a_message_too_large_is_refused_before_it_is_sent() -> None:
    peer = Peer({"Echo": echo})
    peer.send(frame(HEADERS, 4, 1, peer.head()), frame(DATA, 0, 1, b"\0\x7f\xff\xff\xff"))
    frames = peer.frames()
    assert [f.kind for f in frames] == [HEADERS, RST]
    assert dict(peer.decoder.decode(frames[0].payload))["grpc-message"].endswith("(2147483647 vs. 67108864)")
    assert frames[1].payload == word(NO_ERROR)


async def test_responses_wait_for_windows_and_share_them() -> None:
    peer = Peer({"Big": lambda call: bytes(50_000)}, window=20_000)
    peer.send(peer.request(1, method="Big"), peer.request(3, method="Big"))
    sent = {1: 0, 3: 0}
    for f in peer.frames():
        if f.kind == DATA:
            sent[f.stream] += len(f.payload)
    assert sent == {1: 20_000, 3: 20_000}
    assert peer.connection.held > 50_000
    peer.send(frame(WINDOW, 0, 1, word(100_000)), frame(WINDOW, 0, 3, word(100_000)))
    assert (
        sum(len(f.payload) for f in peer.frames() if f.kind == DATA) == 25_535
    )  # the connection's own window
    peer.send(frame(WINDOW, 0, 0, word(1 << 20)))
    frames = peer.frames()
    assert [f.stream for f in frames if f.kind == HEADERS and f.flags == 5] == [1, 3]
    assert peer.connection.held == 0


async def test_a_shrinking_window_may_go_below_zero() -> None:
    peer = Peer({"Big": lambda call: bytes(30_000)}, window=10_000)
    peer.send(peer.request(1, method="Big"), settings(window=100))
    assert sum(len(f.payload) for f in peer.frames() if f.kind == DATA) == 10_000
    peer.send(frame(WINDOW, 0, 1, word(9_900)))
    assert not [f for f in peer.frames() if f.kind == DATA]
    peer.send(settings(window=40_000))
    assert sum(len(f.payload) for f in peer.frames() if f.kind == DATA) == 20_005


async def test_big_requests_get_new_windows() -> None:
    peer = Peer({"Size": lambda call: b"%d" % len(call.request)})
    peer.send(frame(HEADERS, 4, 1, peer.head("/t.T/Size")))
    data = message(bytes(9 << 20))
    for start in range(0, len(data), 16_384):
        last = start + 16_384 >= len(data)
        peer.send(frame(DATA, int(last), 1, data[start : start + 16_384]))
    frames = peer.frames()
    assert {f.stream for f in frames if f.kind == WINDOW} == {0, 1}
    assert [f.payload for f in frames if f.kind == DATA] == [message(b"%d" % (9 << 20))]


async def test_a_cancelled_call_is_told_and_forgotten() -> None:
    told: list[str] = []

    def wait(call: Call) -> None:
        call.on_cancel = lambda: told.append("gone")

    peer = Peer({"Wait": wait})
    peer.send(peer.request(1, method="Wait"))
    assert peer.connection.held > 2000
    peer.send(frame(RST, 0, 1, word(CANCEL)))
    assert told == ["gone"]
    assert not peer.connection.streams
    assert peer.connection.held == 0


async def test_a_lost_connection_cancels_its_calls_and_tells_who_asked() -> None:
    told: list[str] = []

    def wait(call: Call) -> None:
        call.on_cancel = lambda: told.append("call")
        call.connection.on_close(lambda: told.append("connection"))

    peer = Peer({"Wait": wait})
    peer.send(peer.request(1, method="Wait"), peer.request(3, method="Wait"))
    peer.transport.abort()
    await ended(peer)
    assert told == ["call", "call", "connection", "connection"]
    peer.connection.on_close(lambda: told.append("late"))
    assert told[-1] == "late"


async def test_a_callback_that_fails_spares_the_others() -> None:
    told: list[str] = []

    def wait(call: Call) -> None:
        call.on_cancel = lambda: 1 / 0  # type: ignore[assignment,return-value]
        call.connection.on_close(lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        call.connection.on_close(lambda: told.append("told"))

    peer = Peer({"Wait": wait})
    peer.send(peer.request(1, method="Wait"), peer.request(3, method="Wait"))
    peer.transport.abort()
    await ended(peer)
    assert told == ["told", "told"]


# ---------------------------------------------------------------------------------- heads


@pytest.mark.parametrize(
    "fields",
    [
        [("x-a", "1\r\nx-b: 2")],
        [("x-a", "nul\0")],
        [("x a", "1")],
        [("x-ä", "1")],
        [("X-Upper", "1")],
        [("connection", "close")],
        [("te", "gzip")],
        [(":path", "/again")],
        [(":unknown", "1")],
        [("grpc-timeout", "1S"), ("grpc-timeout", "2S")],
        [("grpc-timeout", "1x")],
        [("grpc-timeout", "-1S")],
        [("grpc-timeout", "1_0S")],
        [("grpc-timeout", "123456789S")],
        [("content-length", "1x")],
    ],
)
async def test_malformed_heads_reset_the_stream_only(fields: list[tuple[str, str]]) -> None:
    peer = Peer({"Echo": echo})
    base = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/t.T/Echo"),
        ("content-type", "application/grpc"),
    ]
    peer.send(frame(HEADERS, 4, 1, peer.encoder.encode(base + fields)))
    assert peer.resets() == {1: PROTOCOL_ERROR}
    peer.send(peer.request(3, b"fine"))
    assert peer.answers()[3][1] == message(b"fine")


@pytest.mark.parametrize("timeout", ["0n", "1H", "99999999H", "5000m", "1u"])
async def test_timeouts(timeout: str) -> None:
    peer = Peer({"Echo": echo})
    peer.send(peer.request(1, b"x", grpc_timeout=timeout), peer.request(3, b"y", grpc_timeout=timeout))
    assert {s: body for s, (_, body) in peer.answers().items()} == {1: message(b"x"), 3: message(b"y")}


async def test_a_head_too_large_refuses_the_call_and_keeps_the_tables_right() -> None:
    peer = Peer({"Echo": echo})
    # Ten references to one entry of the table: a small block, a large list.
    peer.send(peer.request(1, x_big="v" * 2000))
    peer.frames()
    block = peer.head() + peer.encoder.encode([("x-big", "v" * 2000)]) * 10
    assert len(block) < 100
    peer.send(frame(HEADERS, 4, 3, block), frame(DATA, 1, 3, message(b"x")))
    code, text = peer.status(3)
    assert (code, text) == (8, "request headers are larger than 16384 bytes")
    peer.send(peer.request(5, b"fine", x_big="v" * 2000))
    assert peer.answers()[5][1] == message(b"fine")


async def test_an_ordinary_http_request_over_http2() -> None:
    peer = Peer({})
    get = [(":method", "GET"), (":scheme", "http"), (":path", "/healthz"), (":authority", "x")]
    peer.send(frame(HEADERS, 5, 1, peer.encoder.encode(get)))
    frames = peer.frames()
    assert dict(peer.decoder.decode(frames[0].payload))[":status"] == "200"
    assert (frames[1].kind, frames[1].flags, frames[1].payload) == (DATA, 1, b"ok\n")


# ---------------------------------------------------------------------------------- answers


async def test_statuses_are_trailers_only_and_escaped() -> None:
    def refuse(call: Call) -> None:
        call.fail(9, "100% \u20ac\r\nx", b"\x08\x09")

    peer = Peer({"Refuse": refuse})
    peer.send(peer.request(1, method="Refuse"))
    (answer,) = peer.frames()
    assert (answer.kind, answer.flags) == (HEADERS, 5)
    fields = dict(peer.decoder.decode(answer.payload))
    assert fields["grpc-message"] == "100%25 %E2%82%AC%0D%0Ax"
    assert b64decode(fields["grpc-status-details-bin"] + "==") == b"\x08\x09"


@pytest.mark.parametrize("announced", [16_384, 2_000])
async def test_trailers_that_do_not_fit_lose_their_details_first(announced: int) -> None:
    def refuse(call: Call) -> None:
        size = int(call.request)
        call.fail(3, "€" * size, bytes(20_000))

    peer = Peer({"Refuse": refuse}, header_list=announced)
    for stream, size in ((1, 10), (3, 5_000)):
        peer.send(peer.request(stream, b"%d" % size, method="Refuse"))
        (found, _) = peer.answers()[stream]
        assert found["grpc-status"] == "3"
        assert "grpc-status-details-bin" not in found
        assert sum(len(k) + len(v) + 32 for k, v in found.items()) <= announced
        assert found["grpc-message"].count("%") % 3 == 0 or found["grpc-message"].endswith("...")


async def test_metadata_longer_than_a_frame_continues_in_another() -> None:
    def lots(call: Call) -> bytes:
        call.set_metadata(initial=[("x-long", "v" * 40_000)])
        return b"ok"

    peer = Peer({"Lots": lots})
    peer.decoder.max_header_list_size = 100_000
    peer.send(peer.request(1, method="Lots"))
    fields, body = peer.answers()[1]
    assert (fields["x-long"], fields["grpc-status"], body) == ("v" * 40_000, "0", message(b"ok"))


async def test_an_answer_before_the_request_has_ended() -> None:
    peer = Peer({"Echo": echo})
    peer.send(frame(HEADERS, 4, 1, peer.head("/t.T/Nope")))
    frames = peer.frames()
    assert [f.kind for f in frames] == [HEADERS, RST]
    peer.send(frame(DATA, 1, 1, b"late"))
    assert not peer.frames()  # it was on its way
    peer.send(peer.request(3))
    peer.frames()
    peer.send(frame(DATA, 1, 3, b"after the end"))
    assert peer.resets() == {3: STREAM_CLOSED}
    assert not peer.gone


async def test_a_deadline_in_the_handlers_hands() -> None:
    calls: list[Call] = []
    peer = Peer({"Wait": lambda call: calls.append(call)})  # type: ignore[func-returns-value]
    peer.send(peer.request(1, method="Wait", grpc_timeout="1m"))
    await asyncio.sleep(0.01)
    assert peer.status(1) == (4, "Deadline Exceeded")
    assert calls[0].done


# ---------------------------------------------------------------------------------- limits and leaving


async def test_streams_over_the_limit_are_refused_unharmed() -> None:
    peer = Peer({"Park": park}, limits=Limits(streams_max=2))
    peer.send(*(peer.request(stream, method="Park") for stream in (1, 3, 5)))
    assert peer.resets() == {5: REFUSED_STREAM}
    assert len(peer.connection.streams) == 2


async def test_draining_is_in_two_steps_and_loses_nothing() -> None:
    calls: list[Call] = []
    peer = Peer({"Wait": lambda call: calls.append(call), "Echo": echo})  # type: ignore[func-returns-value]
    peer.send(peer.request(1, method="Wait"))
    peer.connection.drain()
    first, ping = peer.frames()
    assert (first.kind, first.payload[:8]) == (GOAWAY, word(2**31 - 1) + word(NO_ERROR))
    peer.send(peer.request(3, b"crossed it on the wire"))
    assert peer.answers()[3][1] == message(b"crossed it on the wire")
    peer.send(frame(PING, 1, 0, ping.payload))
    (second,) = peer.frames()
    assert (second.kind, second.payload[:8]) == (GOAWAY, word(3) + word(NO_ERROR))
    peer.send(peer.request(5, b"too late"))
    assert peer.resets() == {5: REFUSED_STREAM}
    assert not peer.gone
    calls[0].finish(b"done")
    assert peer.answers()[1][1] == message(b"done")
    await asyncio.sleep(0.3)
    assert peer.transport.closed


async def test_a_request_share_refuses_the_call_that_is_too_much() -> None:
    limits = Limits(connection_bytes_max=100_000, total_bytes_max=1_000_000)
    peer = Peer({"Echo": echo}, limits=limits, window=0)
    piece = message(bytes(80_000))
    for stream in (1, 3):
        peer.send(frame(HEADERS, 4, stream, peer.head()))
        for start in range(0, 64_000, 16_000):
            peer.send(frame(DATA, 0, stream, piece[start : start + 16_000]))
    assert peer.status(3) == (8, "this connection holds too many bytes in unfinished requests")
    assert peer.connection.held == 64_000
    peer.send(frame(DATA, 0, 1, piece[64_000:80_000]), frame(DATA, 1, 1, piece[80_000:]))
    assert peer.connection.held >= 80_000  # its response, which waits for a window
    peer.send(frame(WINDOW, 0, 0, word(1 << 20)), frame(WINDOW, 0, 1, word(1 << 20)))
    assert peer.connection.held == 0


async def test_an_unread_response_share() -> None:
    limits = Limits(connection_bytes_max=100_000, total_bytes_max=1_000_000)
    peer = Peer({"Big": lambda call: bytes(90_000)}, limits=limits, window=0)
    peer.send(peer.request(1, method="Big"), peer.request(3, method="Big"))
    assert peer.status(3)[0] == 8
    assert 90_000 <= peer.connection.held <= 100_000


async def test_over_the_total_the_greediest_has_to_go() -> None:
    limits = Limits(connection_bytes_max=100_000, total_bytes_max=150_000)
    peers = [Peer({"Big": lambda call: bytes(int(call.request))}, limits=limits, window=0)]
    peers += [Peer(front=peers[0].front, window=0) for _ in range(2)]
    for peer, size in zip(peers, (60_000, 70_000, 50_000), strict=True):
        peer.send(peer.request(1, b"%d" % size, method="Big"))
    assert [peer.transport.aborted for peer in peers] == [False, True, False]
    await asyncio.sleep(0)
    assert peers[0].front.held == peers[0].connection.held + peers[2].connection.held


async def test_a_peer_that_does_not_read_is_cut_off() -> None:
    limits = Limits(stall_timeout_s=0.02)
    peer = Peer({"Big": lambda call: bytes(1 << 20)}, limits=limits, window=1 << 30)
    peer.transport.stuck = True
    peer.send(frame(WINDOW, 0, 0, word(1 << 30)), *(peer.request(s, method="Big") for s in range(1, 21, 2)))
    while not peer.connection.paused:
        await asyncio.sleep(0)
    assert peer.transport.reading_stopped
    assert peer.transport.unread < 3 << 20, "produced into a transport that nobody reads"
    async with asyncio.timeout(60):
        while not peer.transport.aborted:
            await asyncio.sleep(0.01)
    await ended(peer)


async def test_a_slow_reader_is_not_cut_off() -> None:
    peer = Peer({"Big": lambda call: bytes(1 << 20)}, window=1 << 30)
    peer.transport.stuck = True
    peer.send(frame(WINDOW, 0, 0, word(1 << 30)), peer.request(1, method="Big"))
    for _ in range(8):
        peer.transport.unread = max(peer.transport.unread - 1000, 0)
        peer.connection._watch_stall()  # its time-out has passed
    assert not peer.gone
    peer.transport.stuck, peer.transport.unread = False, 0
    peer.connection.resume_writing()
    async with asyncio.timeout(60):
        while peer.connection.streams:
            await asyncio.sleep(0)
    assert len(peer.answers()[1][1]) == (1 << 20) + 5


def later(peer: Peer, seconds: float) -> None:
    peer.connection.check(asyncio.get_running_loop().time() + seconds)


async def test_keepalive() -> None:
    peer = Peer({})
    later(peer, 29)
    assert not peer.frames()
    later(peer, 31)
    (ping,) = peer.frames()
    assert ping.kind == PING
    peer.send(frame(PING, 1, 0, ping.payload))
    later(peer, 29)
    later(peer, 31)
    assert [f.kind for f in peer.frames()] == [PING]
    later(peer, 62)
    assert peer.transport.aborted


@pytest.mark.parametrize("start", [b"", wire.PREFACE[:10], wire.PREFACE])
async def test_who_does_not_open_is_cut_off(start: bytes) -> None:
    peer = Peer({}, greet=False)
    if start:
        peer.send(start)
    later(peer, 9)
    assert not peer.gone
    later(peer, 11)
    assert peer.transport.aborted


async def test_half_a_frame_half_a_head_and_half_a_request_are_cut_off() -> None:
    peer = Peer({})
    peer.send(frame(PING, 0, 0, b"12345678")[:-1])
    later(peer, 9)
    assert not peer.gone
    later(peer, 11)
    assert peer.transport.aborted

    peer = Peer({})
    peer.send(frame(HEADERS, 0, 1, peer.head()))
    later(peer, 11)
    assert peer.transport.aborted

    peer = Peer({"Echo": echo})
    peer.send(frame(HEADERS, 4, 1, peer.head()), frame(DATA, 0, 1, b"\0\0"))
    later(peer, 29)
    assert peer.connection.streams
    later(peer, 31)
    assert peer.resets() == {1: CANCEL}
    assert not peer.gone


async def test_connections_leave_at_their_age() -> None:
    peer = Peer({"Park": park}, limits=Limits(connection_age_max_s=100, connection_age_grace_s=10))
    peer.send(peer.request(1, method="Park"))
    later(peer, 90)
    assert not [f for f in peer.frames() if f.kind == GOAWAY]
    later(peer, 111)
    assert [f for f in peer.frames() if f.kind == GOAWAY]
    assert not peer.gone
    later(peer, 122)
    assert peer.transport.aborted


# ---------------------------------------------------------------------------------- attacks


def flood(peer: Peer, data: bytes, rounds: int = 5000) -> int:
    """Send the same again and again until it is too much; how often that took."""
    for count in range(rounds):
        if peer.gone:
            return count
        peer.send(data)
    return rounds


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(PING, 0, 0, b"12345678") * 10, id="ping"),
        pytest.param(frame(SETTINGS) * 10, id="settings"),
        pytest.param(frame(2, 0, 3, word(1) + b"\1") * 10, id="priority"),
        pytest.param(frame(2, 0, 3, word(3) + b"\1") * 10, id="priority-on-itself"),
        pytest.param(frame(WINDOW, 0, 0, word(1)) * 10, id="window-update"),
        pytest.param(frame(WINDOW, 0, 1, word(1)) * 10, id="window-update-of-a-stream"),
        pytest.param(frame(DATA, 0, 1) * 10, id="empty-data"),
        pytest.param(frame(DATA, 0x8, 1, b"\x10" + bytes(16)) * 10, id="padding-only"),
        pytest.param(frame(0x77, 0, 0, b"?") * 10, id="unknown-frames"),
    ],
)
async def test_a_flood_of_frames_that_only_cost(data: bytes) -> None:
    peer = Peer({"Park": park}, {"Park"})
    peer.send(frame(HEADERS, 4, 1, peer.head("/t.T/Park")), frame(DATA, 0, 1, message(b"")))
    assert flood(peer, data) < 2000
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "too many control frames")
    await ended(peer)


async def test_rapid_reset() -> None:
    peer = Peer({"Park": park})
    sent = 0
    for stream in range(1, 40_001, 2):
        if peer.gone:
            break
        peer.send(peer.request(stream, method="Park"), frame(RST, 0, stream, word(CANCEL)))
        sent += 1
    assert sent < 3000
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "too many control frames")
    await ended(peer)


async def test_made_you_reset() -> None:
    peer = Peer({"Park": park})
    for stream in range(1, 40_001, 2):
        if peer.gone:
            break
        peer.send(peer.request(stream, method="Park"), frame(WINDOW, 0, stream, word(0)))
    assert stream < 6000
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "too many control frames")
    await ended(peer)


async def test_clients_whose_deadlines_pass_are_no_attack() -> None:
    peer = Peer({"Park": park})
    now = asyncio.get_running_loop().time()
    for start in range(1, 20_001, 1000):
        peer.send(*(peer.request(s, method="Park") for s in range(start, start + 1000, 2)))
        for call in peer.connection.streams.values():
            call.born = now - 5
        peer.send(*(frame(RST, 0, s, word(CANCEL)) for s in range(start, start + 1000, 2)))
    assert not peer.gone


@pytest.mark.parametrize("piece", [b"\x00\x01a\x7f\x80\x7e" + b"x" * 16_000, b""])
async def test_a_flood_of_continuations(piece: bytes) -> None:
    peer = Peer({})
    peer.send(frame(HEADERS, 0, 1, peer.head()))
    assert flood(peer, frame(CONTINUATION, 0, 1, piece)) <= 9
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "header block too large")


async def test_a_header_bomb_stays_small() -> None:
    peer = Peer({"Echo": echo})
    head = peer.head() + b"\x40\x01a\x7f" + bytes(((4000 - 127) & 127 | 128, (4000 - 127) >> 7)) + b"v" * 4000
    peer.send(frame(HEADERS, 5, 1, head + b"\xbe" * 8000))
    assert peer.status(1)[0] == 8


async def test_large_heads_count_as_strikes() -> None:
    peer = Peer({})
    padding = "".join(chr(33 + i % 90) for i in range(12_000))
    for stream in range(1, 2000, 2):
        if peer.gone:
            break
        peer.send(frame(HEADERS, 5, stream, peer.head(x_pad=padding)))
    assert stream < 200
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "too many control frames")


async def test_window_overflow() -> None:
    peer = Peer({}).send(frame(WINDOW, 0, 0, word(2**31 - 1)))
    assert peer.goodbye() == (FLOW_CONTROL_ERROR, "window overflow")


async def test_windows_toggled_over_many_unsent_responses() -> None:
    peer = Peer({"Big": lambda call: bytes(1 << 20)}, limits=Limits(connection_bytes_max=10 << 20), window=0)
    peer.send(*(peer.request(stream, method="Big") for stream in range(1, 400, 2)))
    assert peer.connection.held <= 10 << 20
    assert flood(peer, settings(window=0) + settings(window=1)) < 1000
    assert peer.goodbye() == (ENHANCE_YOUR_CALM, "too many control frames")
    await ended(peer)


async def test_grpc_go_measuring_bandwidth_is_no_flood() -> None:
    """A ping for every 16 KiB it reads of a long response, a window update for each of them."""
    peer = Peer({"Big": lambda call: bytes(60 << 20)}, window=65_535)
    peer.send(peer.request(1, method="Big"))
    got = 0
    while got < (60 << 20) + 5:
        read = sum(len(f.payload) for f in peer.frames() if f.kind == DATA)
        assert read
        assert not peer.gone
        got += read
        peer.send(
            frame(PING, 0, 0, b"bdp-ping"), frame(WINDOW, 0, 0, word(read)), frame(WINDOW, 0, 1, word(read))
        )
    assert not peer.connection.streams


async def test_pings_between_calls_are_no_flood() -> None:
    peer = Peer({"Echo": echo})
    for stream in range(1, 20_001, 2):
        peer.send(frame(PING, 0, 0, b"bdp-ping"), peer.request(stream, b"x"))
    assert not peer.gone


async def test_a_slow_drip_of_tiny_data_frames_ends() -> None:
    peer = Peer({"Echo": echo})
    peer.send(frame(HEADERS, 4, 1, peer.head()), frame(DATA, 0, 1, b"\0\0\xff\xff\xff"))
    assert flood(peer, frame(DATA, 0, 1, b"x") * 100) < 1000


async def test_server_streams_are_bounded_too() -> None:
    def pour(call: Call) -> None:
        for _ in range(1000):
            call.write(bytes(10_000))

    limits = Limits(connection_bytes_max=100_000, total_bytes_max=1_000_000)
    peer = Peer({"Pour": pour}, {"Pour"}, limits=limits, window=0)
    peer.send(peer.request(1, method="Pour"))
    assert peer.connection.held <= 100_000
    peer.send(frame(WINDOW, 0, 1, word(1 << 20)), frame(WINDOW, 0, 0, word(1 << 20)))
    fields, _ = peer.answers()[1]
    assert fields["grpc-status"] == "8"


async def test_a_stream_that_ends_within_a_message() -> None:
    def chat(call: Call) -> None:
        call.on_message = lambda m: call.finish(b"") if m is None else call.write(m)

    peer = Peer({"Chat": chat}, {"Chat"})
    peer.send(
        frame(HEADERS, 4, 1, peer.head("/t.T/Chat")),
        frame(DATA, 0, 1, message(b"one") + message(b"two")[:3]),
        frame(DATA, 0, 1, message(b"two")[3:] + message(b"three")),
    )
    assert b"".join(f.payload for f in peer.frames() if f.kind == DATA) == message(b"two") + message(b"three")
    peer.send(frame(DATA, 1, 1, b"\0\0\0"))
    assert peer.status(1)[0] == 13
