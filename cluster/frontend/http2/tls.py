"""TLS on the port of clients, where who is refused hears why, and so does the log.

asyncio and uvloop drop what OpenSSL has to say when a handshake fails: the alert ("certificate required",
"unknown ca") stays in memory, and the client sees a connection that was closed. So the object that shakes
hands takes the alert along with the error, and the front, which has kept the socket open, sends it. The
client may have sent more behind its handshake; closing with that unread would be a reset, which makes its
kernel forget the alert. So what it sends is read for a moment more.

Anybody may knock as often as he likes: lines in the log are counted, not written, beyond a few a minute.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, Final

import structlog

_log: Final = structlog.get_logger("frontend")

LINES_MAX: Final = 10  # in the log, in each `LINES_S`
LINES_S: Final = 60.0
LINGER_S: Final = 1.0
_READ_BYTES: Final = 64 << 10
_LINGER_READS_MAX: Final = 64  # 4 MiB: a client that pours on is not read for ever
_PLAIN: Final = frozenset({"HTTP_REQUEST", "WRONG_VERSION_NUMBER", "BAD_VERSION_NUMBER", "UNKNOWN_PROTOCOL"})


class _Handshake(ssl.SSLObject):
    """One side of a connection, between two buffers."""

    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        """Go on with it."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            error.alert = self.outgoing.read()  # type: ignore[attr-defined]
            raise


class ServerContext(ssl.SSLContext):
    """A context whose failed handshakes have their alert with them."""

    sslobject_class = _Handshake

    def __new__(cls) -> ServerContext:
        """For servers."""
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        assert isinstance(made, ServerContext)
        return made

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *rest: Any, **more: Any) -> Any:
        """The event loop asks for it."""
        made = super().wrap_bio(incoming, outgoing, *rest, **more)
        assert isinstance(made, _Handshake)
        made.outgoing = outgoing
        return made


def server_context(certificate: str, key: str, client_ca: str | None) -> ServerContext:
    """From PEM files; with an authority, a client must show a certificate that it signed. OSError."""
    context = ServerContext()
    context.load_cert_chain(certificate, key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class Refusals:
    """Of one front: handshakes that came to nothing."""

    def __init__(self) -> None:
        self.refused = 0
        self._lines = 0
        self._since = 0.0
        self._unsaid = 0

    async def tell(self, error: ssl.SSLError, spare: socket.socket, host: str) -> None:
        """Tell the peer, and the log. `spare` is another descriptor of its socket."""
        loop = asyncio.get_running_loop()
        self._note(error, host, loop.time())
        with suppress(OSError):
            async with asyncio.timeout(LINGER_S):
                await loop.sock_sendall(spare, getattr(error, "alert", b""))
                spare.shutdown(socket.SHUT_WR)
                for _ in range(_LINGER_READS_MAX):
                    if not await loop.sock_recv(spare, _READ_BYTES):
                        break

    def _note(self, error: ssl.SSLError, host: str, now: float) -> None:
        self.refused += 1
        if now - self._since >= LINES_S or not self._lines:
            self._lines, self._since = 0, now
        if self._lines >= LINES_MAX:
            self._unsaid += 1
            return
        self._lines += 1
        more = {"unsaid_before": self._unsaid} if self._unsaid else {}
        self._unsaid = 0
        _log.warning("a client was refused by TLS", peer=host, why=_why(error), **more)


def _why(error: ssl.SSLError) -> str:
    reason: str = getattr(error, "reason", None) or ""
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it showed no certificate, and one is required (the authority for clients is given)"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one that the authority for clients signed: {error.verify_message}"
    if reason in _PLAIN:
        return "it does not speak TLS"
    if "ALERT" in reason:
        return f"it refused our certificate, or what we asked of it: {reason}"
    return reason or str(error)
