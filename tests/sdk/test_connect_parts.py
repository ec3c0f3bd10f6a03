"""The parts of `sdk.connect` that are pure: the choice among endpoints, frames, and how a call is refused."""

from __future__ import annotations

import hpack
import pytest

from sdk.endpoints import ASK_EVERY_S, ASK_IDLE_EVERY_S, Endpoint, Endpoints
from sdk.frames import GOAWAY, PREFACE, Frames, Refusal


def order(endpoints: Endpoints) -> str:
    return "".join(endpoint.address for endpoint in endpoints.order())


def three(*, nearest: bool = False) -> tuple[Endpoints, list[Endpoint]]:
    made = Endpoints("abc", nearest=nearest)
    return made, made.all


def test_the_given_order_counts_and_who_is_lost_comes_last() -> None:
    endpoints, (a, b, _) = three()
    assert order(endpoints) == "abc"
    a.refused(0, "refused")
    assert order(endpoints) == "bca"
    b.refused(0, "refused")
    assert order(endpoints) == "cab"


def test_one_late_answer_moves_nobody_and_two_do() -> None:
    endpoints, (a, _, _) = three()
    assert not a.missed(0, "late")
    assert order(endpoints) == "abc"
    assert not a.answered(1, 0.1)
    assert not a.missed(2, "late")
    assert a.missed(3, "late")
    assert order(endpoints) == "bca"
    assert a.state().why == "late"
    assert a.missed(4, "late"), "what it carries by now is dead as well"


def test_what_it_sends_shows_that_it_lives() -> None:
    _, (a, _, _) = three()
    a.missed(0, "late")
    a.heard(1)
    assert not a.missed(2, "late")


def test_who_was_lost_is_well_after_three_good_answers_in_a_row() -> None:
    endpoints, (a, b, _) = three()
    a.refused(0, "refused")
    assert [a.answered(1, 0.1), a.answered(2, 0.1)] == [False, False]
    a.missed(3, "late")
    assert [a.answered(4, 0.1), a.answered(5, 0.1)] == [False, False]
    assert endpoints.better(b) is None
    assert a.answered(6, 0.1)
    assert order(endpoints) == "abc"
    assert endpoints.better(b) is a


def test_the_nearest_by_its_shortest_way_and_who_never_answered_last() -> None:
    endpoints, (a, b, c) = three(nearest=True)
    a.answered(0, 0.2)
    c.answered(0, 0.1)
    assert order(endpoints) == "cab"
    c.answered(1, 9.0)
    assert order(endpoints) == "cab"
    b.answered(2, 0.09)
    assert order(endpoints) == "bca"
    assert endpoints.better(a) is b
    assert endpoints.better(c) is None, "about as near"
    assert endpoints.better(b) is None
    for endpoint in (a, b, c):
        endpoint.refused(3, "refused")
    assert endpoints.better(c) is None, "nobody is"


def test_who_carries_calls_or_is_lost_is_asked_often() -> None:
    _, (a, b, c) = three()
    for endpoint in (a, b, c):
        assert endpoint.due_s(0) == 0
        endpoint.answered(0, 0.1)
    b.connections = 1
    c.refused(0, "refused")
    assert [a.due_s(0), b.due_s(0), c.due_s(0)] == [ASK_IDLE_EVERY_S, ASK_EVERY_S, ASK_EVERY_S]
    b.heard(0.5)
    c.heard(0.5)
    assert [b.due_s(1), c.due_s(1)] == [ASK_EVERY_S - 0.5, 0]


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_a_stream_is_cut_after_whole_frames_and_not_within_a_header_block(step: int) -> None:
    parts = [
        (frame(4, 0, 0, b"\0" * 6), True),
        (frame(1, 0, 1, b"headers"), False),  # no END_HEADERS
        (frame(9, 4, 1, b"more"), True),
        (frame(0, 0, 1, b""), True),
        (frame(0, 0, 1, b"x" * 20), True),
        (frame(5, 0, 1, b"p"), False),
        (frame(9, 4, 1, b""), True),
    ]
    allowed = {0}
    whole = b""
    for part, between in parts:
        whole += part
        if between:
            allowed.add(len(whole))
    frames = Frames()
    for at in range(0, len(whole), step):
        assert frames.between == (at in allowed)
        frames.feed(whole[at : at + step])
    assert frames.between


@pytest.mark.parametrize("step", [1, 50, 1000])
def test_a_refused_call_is_told_why(step: int) -> None:
    refusal = Refusal("no endpoint: eu:7233: connection refused; ü" + "x" * 200)
    asked = (
        PREFACE + frame(4, 0, 0, b"") + frame(4, 1, 0, b"") + frame(1, 4, 5, b"any") + frame(0, 1, 5, b"q")
    )
    said = b""
    for at in range(0, len(asked), step):
        said += refusal.answer(asked[at : at + step])
    assert refusal.answered
    settings, ack = frame(4, 0, 0, b""), frame(4, 1, 0, b"")
    assert said.startswith(settings + ack)
    assert said.endswith(GOAWAY)
    head = said[len(settings + ack) :]
    length = int.from_bytes(head[:3], "big")
    assert head[3:9] == bytes([1, 5, 0, 0, 0, 5])
    assert len(head) == 9 + length + len(GOAWAY)
    fields = dict(hpack.Decoder().decode(head[9 : 9 + length]))
    assert fields[":status"] == "200"
    assert fields["grpc-status"] == "14"
    assert fields["grpc-message"] == "no endpoint: eu:7233: connection refused; %C3%BC" + "x" * 200


def test_nothing_is_answered_before_it_is_asked() -> None:
    refusal = Refusal("no")
    refusal.answer(PREFACE + frame(4, 0, 0, b""))
    assert not refusal.answered
