"""Who is refused by TLS hears why, and so does the log, which nobody can fill."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from cluster.frontend.http2.front import Http2Front
from cluster.frontend.http2.tls import LINES_MAX, Refusals, server_context
from tests.cluster.peers.certificates import Authority, Pair

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def shake(port: int, ca: Path, pair: Pair | None) -> str:
    """What a client hears that connects, speaks first as HTTP/2 does, and reads; "" = it is served."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    if pair is not None:
        context.load_cert_chain(pair.certificate, pair.key)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                return "" if secure.recv(100) else "closed"
        except OSError as error:
            return str(getattr(error, "reason", error))


@pytest.fixture(params=list(LOOPS))
def knock(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., tuple[list[str], list[Any]]]:
    authority = Authority(tmp_path, "authority")
    mine = authority.issue("server")

    def run(*pairs: Pair | None, trusts: Path | None = None) -> tuple[list[str], list[Any]]:
        async def whole() -> list[str]:
            front = Http2Front({})
            context = server_context(str(mine.certificate), str(mine.key), str(authority.certificate))
            await front.start("127.0.0.1", 0, context)
            ca = trusts or authority.certificate
            heard = [await asyncio.to_thread(shake, front.port, ca, pair) for pair in pairs]
            await front.drain(1.0)
            return heard

        with capture_logs() as said, asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            heard = runner.run(whole())
        return heard, [one for one in said if one["event"] == "a client was refused by TLS"]

    run.authority = authority  # type: ignore[attr-defined]
    return run


def test_without_a_certificate_it_hears_that_one_is_required(knock: Any) -> None:
    heard, said = knock(None)
    assert heard[0].endswith("ALERT_CERTIFICATE_REQUIRED")
    assert [(one["peer"], one["log_level"]) for one in said] == [("127.0.0.1", "warning")]
    assert "it showed no certificate" in said[0]["why"]


def test_with_somebody_else_s_certificate_it_hears_that_its_authority_is_unknown(
    knock: Any, tmp_path: Path
) -> None:
    theirs = Authority(tmp_path, "theirs").issue("stranger")
    heard, (line,) = knock(theirs)
    assert heard[0].endswith("ALERT_UNKNOWN_CA")
    assert "not one that the authority for clients signed: " in line["why"]


def test_with_the_right_one_it_is_served(knock: Any) -> None:
    assert knock(knock.authority.issue("client")) == ([""], [])


def test_a_client_that_does_not_trust_us_is_noted(knock: Any, tmp_path: Path) -> None:
    _, (line,) = knock(None, trusts=Authority(tmp_path, "theirs").certificate)
    assert "it refused our certificate" in line["why"]


def test_a_scanner_cannot_fill_the_log() -> None:
    refusals, error = Refusals(), ssl.SSLError(1, "no")
    with capture_logs() as said:
        for number in range(1000):
            refusals._note(error, "10.0.0.1", 100.0 + number / 100)
        assert len(said) == LINES_MAX
        refusals._note(error, "10.0.0.1", 170.0)
    assert said[-1]["unsaid_before"] == 1000 - LINES_MAX
    assert refusals.refused == 1001
