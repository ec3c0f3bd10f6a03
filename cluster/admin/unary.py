"""One gRPC call of a method of our own: the client library knows only Temporal's.

A connection a call, on the frames and the HPACK of our front. Not general: no streams, no compression, a
response as large as memory allows but for `RESPONSE_BYTES_MAX`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote

from cluster.frontend.http2 import frames
from cluster.frontend.http2.hpack import Decoder, HpackError, literal

if TYPE_CHECKING:
    from temporalio.service import TLSConfig

RESPONSE_BYTES_MAX = 64 << 20  # a region of a thousand shards is described in half a megabyte
FIELDS_BYTES_MAX = 64 << 10
UNKNOWN = 2
WANTS_CERTIFICATE = "it wants a client's certificate (--tls-cert and --tls-key)"
WANTS_ANOTHER = "it does not take this client's certificate: another authority signed it, or it is over"
HUNG_UP_TLS = "it hung up before it answered (does it want a client's certificate? --tls-cert and --tls-key)"
DO_TLS = (
    "correct the flags: --tls-ca is the authority of the server's certificate; --tls-cert and --tls-key are "
    "the client's own, signed by the authority that the server was given for clients"
)
HUNG_UP = "it hung up before it answered (is that its gRPC port? does it want --tls?)"


_REFUSALS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED")  # in the names of alerts


class Status(NamedTuple):
    """How the call ended: gRPC's code and message; the response if the code is 0."""

    code: int
    message: str
    body: bytes


async def call(
    target: str,
    tls: TLSConfig | bool | None,
    method: str,
    request: bytes,
    metadata: dict[str, str],
    timeout_s: float,
) -> Status:
    """Make the call. OSError, ssl.SSLError, TimeoutError: `connected` tells nothing; ask again only what is
    harmless.
    """
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    context, name = _context(tls, host)
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
        try:
            writer.write(
                _request(target, method, request, metadata, secure=context is not None, timeout_s=timeout_s)
            )
            return await _Response(reader, writer).read()
        finally:
            writer.transport.abort()


def _context(tls: TLSConfig | bool | None, host: str) -> tuple[ssl.SSLContext | None, str | None]:
    if not tls:
        return None, None
    if tls is True:
        context = ssl.create_default_context()
        context.set_alpn_protocols(["h2"])
        return context, host
    roots = tls.server_root_ca_cert
    context = ssl.create_default_context(cadata=roots.decode() if roots else None)
    context.set_alpn_protocols(["h2"])
    if tls.client_cert and tls.client_private_key:
        with tempfile.NamedTemporaryFile() as file:  # the ssl module takes them from files only
            file.write(tls.client_cert + b"\n" + tls.client_private_key)
            file.flush()
            context.load_cert_chain(file.name)
    return context, tls.domain or host


def _request(
    target: str, method: str, request: bytes, metadata: dict[str, str], *, secure: bool, timeout_s: float
) -> bytes:
    fields = {
        ":method": "POST",
        ":scheme": "https" if secure else "http",
        ":path": method,
        ":authority": target,
        "content-type": "application/grpc",
        "te": "trailers",
        "grpc-timeout": f"{int(timeout_s * 1000)}m",
        **{name.lower(): value for name, value in metadata.items()},
    }
    head = b"".join(literal(name.encode(), value.encode()) for name, value in fields.items())
    body = b"\0" + len(request).to_bytes(4, "big") + request
    assert len(head) <= frames.FRAME_BYTES_MAX, "a command's header fields are short"
    assert len(body) <= frames.FRAME_BYTES_MAX, "a command's request is short"
    return b"".join(
        (
            frames.PREFACE,
            frames.settings(
                {frames.SETTINGS_ENABLE_PUSH: 0, frames.SETTINGS_INITIAL_WINDOW_SIZE: frames.WINDOW_MAX}
            ),
            frames.window_update(0, frames.WINDOW_MAX - frames.WINDOW_DEFAULT),
            frames.header(len(head), frames.HEADERS, frames.END_HEADERS, 1),
            head,
            frames.header(len(body), frames.DATA, frames.END_STREAM, 1),
            body,
        )
    )


class _Response:
    """What comes back on the call's stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(FIELDS_BYTES_MAX)
        self._fields: dict[bytes, bytes] = {}
        self._block = b""
        self._body = bytearray()
        self._last = False  # whether the fields that are being read end the call

    async def read(self) -> Status:
        while True:
            try:
                head = await self._reader.readexactly(9)
                length = int.from_bytes(head[:3], "big")
                payload = await self._reader.readexactly(length)
            except asyncio.IncompleteReadError:
                raise ConnectionResetError(HUNG_UP) from None
            if self._take(head[3], head[4], payload):
                return self._status()

    def _take(self, kind: int, flags: int, payload: bytes) -> bool:
        """One frame; True: it was the last."""
        if kind == frames.DATA:
            self._body += _unpadded(flags, payload)
            if len(self._body) > RESPONSE_BYTES_MAX:
                raise ConnectionResetError("the answer has no end")
            return bool(flags & frames.END_STREAM)
        if kind in (frames.HEADERS, frames.CONTINUATION):
            if kind == frames.HEADERS:
                payload = _unpadded(flags, payload)
                payload = payload[5:] if flags & frames.PRIORITIZED else payload
                self._last = bool(flags & frames.END_STREAM)
            self._block += payload
            return bool(flags & frames.END_HEADERS) and self._fields_end()
        if kind == frames.SETTINGS and not flags & frames.ACK:
            self._writer.write(frames.header(0, frames.SETTINGS, frames.ACK, 0))
        elif kind == frames.PING and not flags & frames.ACK:
            self._writer.write(frames.ping(payload, ack=True))
        elif kind in (frames.RST_STREAM, frames.GOAWAY):
            raise ConnectionResetError("the server refused the call")
        return False

    def _fields_end(self) -> bool:
        try:
            for field in self._decoder.decode(self._block):
                self._fields[field.name] = field.value
        except HpackError as error:
            raise ConnectionResetError(f"the answer makes no sense: {error}") from None
        self._block = b""
        return self._last

    def _status(self) -> Status:
        code = self._fields.get(b"grpc-status", b"")
        if not code.isdigit():
            status = self._fields.get(b":status", b"?").decode("ascii", "replace")
            return Status(UNKNOWN, f"the server is no gRPC server: HTTP status {status}", b"")
        message = unquote(self._fields.get(b"grpc-message", b"").decode("ascii", "replace"))
        return Status(int(code), message, bytes(self._body[5:]))


def _unpadded(flags: int, payload: bytes) -> bytes:
    if flags & frames.PADDED:
        return payload[1 : len(payload) - payload[0]]
    return payload


def is_refusal(error: BaseException) -> bool:
    """Whether the server ended the handshake with an alert about the client's certificate."""
    words = str(getattr(error, "reason", "")).upper()
    return isinstance(error, ssl.SSLError) and "ALERT" in words and any(one in words for one in _REFUSALS)


def reason(error: BaseException) -> str:
    """Why a call did not come about, in words."""
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not one that is trusted here: {error.verify_message}"
    if is_refusal(error):
        return WANTS_CERTIFICATE if "CERTIFICATE_REQUIRED" in str(error).upper() else WANTS_ANOTHER
    if isinstance(error, ssl.SSLError) or (isinstance(error, ConnectionError) and not str(error)):
        return "the TLS handshake failed (leave --tls out if it speaks none)"
    if isinstance(error, socket.gaierror):
        return "there is no host of this name"
    text: Any = getattr(error, "strerror", None) or error
    return str(text)
