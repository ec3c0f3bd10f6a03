"""HTTP/1.1 on the gRPC port: health checks, metrics, and a helpful sentence for everybody else.

One request at a time, no request bodies (they are skipped), keep-alive. This is not a web server: what it
answers is small, made by one callback, and never waits.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Final, cast

_HEAD_BYTES_MAX: Final = 8192
_BODY_BYTES_MAX: Final = 64 * 1024  # what is skipped; more closes the connection
_REQUEST_LINE = re.compile(rb"([A-Z]{3,16}) ([\x21-\x7e]{1,4096}) HTTP/1\.([01])").fullmatch
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,12})[ \t]*\r\n", re.IGNORECASE).search
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE).search
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE).search

Answer = tuple[int, str, bytes]  # status, content type, body
Responder = Callable[[str, str], Answer | None]  # (method, path); None: not found

NOT_FOUND_TEXT: Final = (
    b"This port speaks gRPC (Temporal's API) over HTTP/2: point a Temporal SDK or the temporal CLI at it.\n"
    b"Over plain HTTP it answers GET /healthz only, and /metrics where metrics are enabled.\n"
)


class Http1Connection(asyncio.Protocol):
    """A connection that did not open with HTTP/2's preface."""

    def __init__(
        self,
        answer: Callable[[str, str], Answer],
        timeout_s: float,
        on_lost: Callable[[Http1Connection], None],
    ) -> None:
        self._answer = answer
        self._timeout_s = timeout_s
        self._on_lost = on_lost
        self._buffer = b""
        self._skip = 0  # bytes of a request body still to come
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take over the socket; every request must be complete within the timeout."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the cause changes nothing
        """Nothing waits here."""
        self._timer.cancel()
        self._on_lost(self)

    def pause_writing(self) -> None:
        """Answer nothing more until this is read. The timer goes on: who does not read is cut off."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Close behind what has been written."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Answer every complete request."""
        data = self._buffer + data
        while data and not self._transport.is_closing():
            if self._skip:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
                continue
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _HEAD_BYTES_MAX or not _plausible(data):
                    self._transport.close()  # not HTTP at all: nobody would understand an answer
                break
            self._request(data[: end + 4])
            data = data[end + 4 :]
        self._buffer = data

    def _request(self, head: bytes) -> None:
        line = _REQUEST_LINE(head[: head.index(b"\r\n")])
        length = _LENGTH(head)
        if line is None:
            self._transport.close()
            return
        if _CHUNKED(head) is not None:
            self._respond(411, "text/plain", b"Request bodies need a content-length here.\n", close=True)
            return
        self._skip = 0 if length is None else int(length[1])
        method, path = line[1].decode(), line[2].decode()
        status, content_type, body = self._answer(method, path)
        close = _CLOSE(head) is not None or line[3] == b"0" or self._skip > _BODY_BYTES_MAX
        self._respond(status, content_type, body, close=close, with_body=method != "HEAD")

    def _respond(
        self, status: int, content_type: str, body: bytes, *, close: bool, with_body: bool = True
    ) -> None:
        self._timer.cancel()
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        head = (
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
            f"connection: {'close' if close else 'keep-alive'}\r\n\r\n"
        )
        self._transport.write(head.encode("latin-1") + (body if with_body else b""))
        self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._transport.abort)
        if close:
            self._transport.close()


def _plausible(data: bytes) -> bool:
    """Whether it could still become a request: garbage is not waited for."""
    line = data.split(b"\r\n", 1)[0]
    return re.fullmatch(rb"[A-Z]{0,16}( [\x21-\x7e]*( [HTP/1.0]*)?)?", line) is not None
