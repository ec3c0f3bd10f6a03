"""One RPC on an HTTP/2 stream: from a complete request to an answer, a deadline or a cancellation.

The usual call never leaves `start`: a plain handler returns bytes, they fit the windows, and headers, message
and trailers are appended to the connection's output in one go. Everything else (a coroutine, a parked poll, a
big or compressed response, a stream of messages) takes the long way, which also counts the bytes it holds.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from cluster.frontend.http2 import compression
from cluster.frontend.http2 import head as heads
from cluster.frontend.http2.answer import (
    GZIP_HEADER,
    OK_TRAILERS,
    RESPONSE_HEADERS,
    metadata_block,
    status_block,
)
from cluster.frontend.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, WINDOW_MAX
from cluster.frontend.http2.limits import CALL_BYTES
from cluster.frontend.status import status_of
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from cluster.frontend.http2.connection import Http2Connection

# From Python 3.12 a task can take its first step in place: a coroutine that never waits costs no loop
# iteration.
_EAGER: Final = sys.version_info >= (3, 12)

_PREFIX_BYTES: Final = 5  # gRPC's: compressed flag and length
# A whole small response in one pack: HEADERS frame, DATA frame header and message prefix; then the trailers.
_pack_front = struct.Struct(f">HBBBL{len(RESPONSE_HEADERS)}sHBBBLBL").pack
_pack_trailers = struct.Struct(f">HBBBL{len(OK_TRAILERS)}s").pack
_LAST: Final = END_HEADERS | END_STREAM
_HEADERS_LENGTH: Final = len(RESPONSE_HEADERS)
_TRAILERS_LENGTH: Final = len(OK_TRAILERS)


class Http2Call:
    """One RPC. The public part is `contract.Call`; the rest belongs to the connection."""

    __slots__ = (
        "_metadata_out",
        "_task",
        "_timer",
        "born",
        "buffer",
        "chunks",
        "conn",
        "deadline",
        "done",
        "ended",
        "fresh",
        "head",
        "held",
        "moved",
        "on_cancel",
        "on_message",
        "opened",
        "queued",
        "received",
        "request",
        "started",
        "stream",
        "trailers",
        "window_in",
        "window_out",
    )

    def __init__(self, conn: Http2Connection, stream: int, head: heads.Head, timeout: float | None) -> None:
        self.request = b""
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None
        self.conn = conn
        self.stream = stream
        self.head = head
        self.born = self.moved = conn.now  # moved: when the peer last sent for, or took from, this call
        self.deadline = None if timeout is None else conn.now + timeout
        self.window_in = conn.limits.stream_window_bytes
        self.window_out = conn.peer_window
        self.fresh = True  # nothing of the request has come yet
        self.buffer: bytearray | None = None  # the request so far, prefix included, if it came in pieces
        self.received = 0  # bytes of DATA payload
        self.ended = False  # the peer has ended its side
        self.started = False  # the handler has been called
        self.opened = False  # our HEADERS frame is out, so a status goes into trailers
        self.queued = False  # in conn.ready
        self.chunks: deque[memoryview] | None = None  # unsent DATA payload
        self.trailers: bytes | None = (
            None  # to be sent when the chunks are out; empty: end with the last chunk
        )
        self.held = 0  # bytes charged to the connection for this call
        self._task: asyncio.Task[bytes | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._metadata_out: tuple[bytes, bytes] | None = None  # initial and trailing

    # ------------------------------------------------------------------ what handlers see

    @property
    def method(self) -> str:
        """Full method name, as "/package.Service/Method"."""
        return self.head.path.decode("latin-1")

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """What the caller sent along, transport fields excepted."""
        return self.head.metadata

    @property
    def connection(self) -> Http2Connection:
        """The connection it came on."""
        return self.conn

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Metadata to send with the answer."""
        self._metadata_out = metadata_block(initial), metadata_block(trailing)

    def finish(self, body: bytes) -> None:
        """Answer OK. See `contract.Call`."""
        if self.done:
            return
        conn = self.conn
        length = len(body) + _PREFIX_BYTES
        if self._timer is not None:
            self._timer.cancel()
        if (
            length > self.head.inline_bytes_max
            or length > conn.window_out
            or length > self.window_out
            or conn.paused
            or not self.ended
            or self.opened
            or self._metadata_out is not None
            or self.head.streaming
        ):
            self._finish_slow(body)
            return
        self.done = True
        self.on_cancel = None
        if self.held:
            conn.release(self, self.held)
        stream = self.stream
        conn.window_out -= length
        conn.out += (
            _pack_front(
                0,
                _HEADERS_LENGTH,
                HEADERS,
                END_HEADERS,
                stream,
                RESPONSE_HEADERS,
                length >> 8,
                length & 255,
                DATA,
                0,
                stream,
                0,
                length - _PREFIX_BYTES,
            ),
            body,
            _pack_trailers(0, _TRAILERS_LENGTH, HEADERS, _LAST, stream, OK_TRAILERS),
        )
        if conn.draining:
            conn.close_stream(self)
        else:
            del conn.streams[stream]
        if not conn.reading:
            conn.flush_soon()

    def write(self, body: bytes) -> None:
        """Send one message of a stream."""
        if self.done:
            return
        assert self.head.streaming, f"{self.method} is not registered as streaming"
        if len(body) > self.conn.limits.message_bytes_max:
            self._too_large(len(body))
        elif self._reserve(len(body)):
            self._send(body, compressed=False)

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Answer with a status."""
        if self.done:
            return
        self.done = True
        self.on_cancel = self.on_message = None
        if self._timer is not None:
            self._timer.cancel()
        block = status_block(code, message, details, self.conn.trailer_bytes_max)
        if self._metadata_out is not None:
            block += self._metadata_out[1]
        if not self.opened:
            block = RESPONSE_HEADERS + block  # "trailers only": one HEADERS frame is the whole response
        self._finish_with(block)

    # ------------------------------------------------------------------ starting

    def start(self) -> None:
        """Call the handler with the complete request (for a stream: with its first message)."""
        self.started = True
        handler = self.head.handler
        assert handler is not None
        try:
            result = handler(self)
        except Exception as error:  # noqa: BLE001 - a handler's failure is this call's answer, not the connection's
            self._refuse(error)
            return
        if type(result) is bytes:
            self.finish(result)
        elif result is not None:
            self._drive(result)
        if not self.done:
            self._park()

    def _drive(self, result: Coroutine[Any, Any, bytes | None] | bytes) -> None:
        if not asyncio.iscoroutine(result):
            self._refuse(TypeError(f"handler of {self.method} returned {type(result).__name__}"))
            return
        task: asyncio.Task[bytes | None]
        if _EAGER:
            task = asyncio.Task(result, loop=self.conn.loop, eager_start=True)  # type: ignore[call-arg,unused-ignore]
            if task.done():
                self._task_ended(task)
                return
        else:
            # Not stepped in place here: before 3.12 the code up to the first await would run without a
            # current task, and asyncio.timeout and TaskGroup refuse that.
            task = self.conn.loop.create_task(result)
        self._task = task
        task.add_done_callback(self._task_ended)

    def _park(self) -> None:
        """The answer comes later: from here on the call is counted, and timed."""
        if not self.conn.hold(self, len(self.request) + CALL_BYTES):
            self._give_up(Code.RESOURCE_EXHAUSTED, "this connection holds too many bytes in unfinished calls")
        elif self.deadline is not None:
            self._timer = self.conn.loop.call_at(self.deadline, self._expire)

    def _task_ended(self, task: asyncio.Task[bytes | None]) -> None:
        self._task = None
        if task.cancelled():
            self.fail(Code.CANCELLED, "the server cancelled the call")
            return
        error = task.exception()
        if error is not None:
            self._refuse(error)
        elif not self.done:
            result = task.result()
            if type(result) is bytes:
                self.finish(result)
            elif result is None and self.head.streaming:
                self.finish(b"")
            else:
                self._refuse(TypeError(f"handler of {self.method} returned {type(result).__name__}"))

    def _refuse(self, error: BaseException) -> None:
        # Asked even when nobody listens any more: an unexpected exception is logged there.
        code, message, details = status_of(error, self.method, self.conn.peer)
        self.fail(code, message, details)

    def message_arrived(self, message: bytes | None) -> None:
        """A later message of a stream; None when the client has sent its last."""
        if self.on_message is not None and not self.done:
            try:
                self.on_message(message)
            except Exception as error:  # noqa: BLE001 - as in start
                self._refuse(error)

    # ------------------------------------------------------------------ ending

    def _expire(self) -> None:
        self._give_up(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _give_up(self, code: Code, message: str) -> None:
        told = self.on_cancel
        self.fail(code, message)
        self._abandon(told)

    def cancel(self) -> None:
        """The peer has reset the stream or is gone: nothing can be sent any more."""
        if self._timer is not None:
            self._timer.cancel()
        self.chunks = self.trailers = None
        if self.held:
            self.conn.release(self, self.held)
        if not self.done:
            self.done = True
            told, self.on_cancel, self.on_message = self.on_cancel, None, None
            self._abandon(told)

    def _abandon(self, told: Callable[[], None] | None) -> None:
        """Tell the handler that nobody is listening."""
        if self._task is not None:
            self._task.cancel()
        if told is not None:
            try:
                told()
            except Exception as error:  # noqa: BLE001 - must not take the other calls of the connection with it
                status_of(error, self.method, self.conn.peer)

    def answer_plain(self, block: bytes, body: bytes) -> None:
        """Answer a request that is not gRPC."""
        self.done = self.opened = True
        conn = self.conn
        if self.head.http_method == b"HEAD" or not body or not conn.hold(self, len(body)):
            self._finish_with(block)
            return
        conn.send_headers(self.stream, block, end=False)
        self.chunks, self.trailers = deque((memoryview(body),)), b""
        conn.enqueue(self)

    def _too_large(self, length: int) -> None:
        limit = self.conn.limits.message_bytes_max
        self._give_up(
            Code.RESOURCE_EXHAUSTED, f"grpc: trying to send message larger than max ({length} vs. {limit})"
        )

    # ------------------------------------------------------------------ the long way out

    def _finish_slow(self, body: bytes) -> None:
        head, conn = self.head, self.conn
        self.on_cancel = self.on_message = None
        if head.streaming:
            self.done = True
            self._finish_with((b"" if self.opened else RESPONSE_HEADERS) + self._ok_trailers())
        elif len(body) > conn.limits.message_bytes_max:
            self._too_large(len(body))
        elif head.accepts_gzip and len(body) >= conn.limits.gzip_bytes_min:
            self.done = True
            compression.deflate(conn.front.workers, conn.loop, body, self._finish_packed)
        else:
            self.done = True
            self._finish_packed(body, compressed=False)

    def _finish_packed(self, body: bytes, *, compressed: bool) -> None:
        conn = self.conn
        if conn.streams.get(self.stream) is not self:
            return  # reset while it was being compressed
        self.request = b""
        if self.held:
            conn.release(self, self.held)
        self.done = False  # for the refusal of _reserve, which is an answer like any other
        if self._reserve(len(body)):
            self.done = True
            self.trailers = self._ok_trailers()
            self._send(body, compressed=compressed)

    def _ok_trailers(self) -> bytes:
        return OK_TRAILERS if self._metadata_out is None else OK_TRAILERS + self._metadata_out[1]

    def _reserve(self, length: int) -> bool:
        """Charge an unsent message; on refusal the call has failed."""
        if self.conn.hold(self, length + _PREFIX_BYTES):
            return True
        self._give_up(
            Code.RESOURCE_EXHAUSTED, "the client does not read its responses: too many bytes are unsent"
        )
        return False

    def _send(self, body: bytes, *, compressed: bool) -> None:
        """Queue one message, already charged."""
        conn = self.conn
        if not self.opened:
            self.opened = True
            block = RESPONSE_HEADERS + (GZIP_HEADER if compressed else b"")
            if self._metadata_out is not None:
                block += self._metadata_out[0]
            conn.send_headers(self.stream, block, end=False)
        if self.chunks is None:
            self.chunks = deque()
        if not self.chunks:
            self.moved = conn.loop.time()
        self.chunks.append(memoryview(bytes((compressed,)) + len(body).to_bytes(4, "big")))
        if body:
            self.chunks.append(memoryview(body))
        conn.enqueue(self)

    def _finish_with(self, block: bytes) -> None:
        """End the stream with this block, behind whatever is still unsent."""
        conn = self.conn
        if self.chunks:
            self.trailers = block
            return
        if self.held:
            conn.release(self, self.held)
        if conn.streams.get(self.stream) is self:
            conn.send_headers(self.stream, block, end=True)
            conn.close_stream(self)
        if not conn.reading:
            conn.flush_soon()

    # ------------------------------------------------------------------ for the connection

    def resize_window(self, delta: int) -> bool:
        """Move the send window; False if it would overflow."""
        self.window_out += delta
        return self.window_out <= WINDOW_MAX

    def stalled(self, now: float, limit_s: float) -> bool:
        """Whether the peer has neither sent the rest of its request nor read our response for too long."""
        return (bool(self.chunks) or not (self.ended or self.started)) and now - self.moved > limit_s
