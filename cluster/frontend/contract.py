"""What a front (our HTTP/2, or grpcio) and a handler promise each other.

A front turns bytes on a socket into a `Call`; a handler turns a `Call` into bytes or a status. Neither knows
the other's protocol: the front never parses a message, the handler never sees a frame.

A handler is a plain function or a coroutine function of one argument, the call:

* it returns `bytes`: the response, sent at once;
* it returns a coroutine: the front drives it, its result is the response, and it is cancelled when the call
  is;
* it returns None: it keeps the call and later calls `finish`, `fail`, or (streaming) `write` and `finish`;
* it raises `ServiceError`: the status. Any other exception is INTERNAL, logged with its traceback.

Plain functions are the fast path: a coroutine costs a task before Python 3.12, and a little less from there
on.

A method registered as streaming is called with the client's first message. It may `write` any number of
messages (a coroutine then returns b"" or None); if the client may send more than one message too, the handler
sets `on_message` before it returns.

Exactly one of finish/fail takes effect; later ones are ignored, so a handler need not race the deadline. All
methods are called on the event loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Protocol


class Connection(Protocol):
    """One client connection. Its identity tells one process's calls from another's."""

    @property
    def peer(self) -> str:
        """The client's address, as "host:port"."""

    @property
    def closed(self) -> bool:
        """Whether it is gone."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection is gone, by whatever cause (at once if it already is)."""


class Call(Protocol):
    """One RPC."""

    request: bytes  # the message, uncompressed, without gRPC's five-byte prefix
    deadline: float | None  # loop.time() at which the client gives up; None if it did not say
    done: bool  # answered, cancelled or past its deadline: nobody is listening any more
    # Both are let go of when the call is done: what they hold (the request, megabytes perhaps) would wait for
    # the collector otherwise, since it mostly holds the call.
    on_cancel: Callable[[], None] | None  # called once if the client cancels, goes away or runs out of time
    on_message: (
        Callable[[bytes | None], None] | None
    )  # streams: every later message; None when the client is done

    @property
    def method(self) -> str:
        """Full method name, as "/package.Service/Method"."""

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Lower-case keys; values of keys that end in -bin are bytes, decoded."""

    @property
    def connection(self) -> Connection:
        """The connection it came on."""

    def finish(self, body: bytes) -> None:
        """Answer with OK and this message (for a stream: end it; body is b"" there and not sent)."""

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Answer with a status; `details` is a serialized google.rpc.Status."""

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Metadata for the answer; ValueError on keys and values that gRPC does not allow. Last call
        counts.
        """

    def write(self, body: bytes) -> None:
        """Send one message of a server stream (methods registered as streaming only)."""


Result = bytes | None | Coroutine[Any, Any, bytes | None]
Handler = Callable[[Call], Result]


class Front(Protocol):
    """Serves handlers on a socket."""

    @property
    def port(self) -> int:
        """The port it listens on (the kernel's choice when asked for 0)."""

    async def start(self, host: str, port: int, ssl_context: Any = None) -> None:
        """Bind and accept. OSError if the address is taken."""

    async def drain(self, grace_s: float) -> None:
        """Stop accepting, let calls end for at most `grace_s` seconds, then close what is left."""
