"""The sending half of a connection: output gathers, windows decide, a slow reader holds up only itself.

Small responses are appended to `out` by their calls and leave with one `write` a loop iteration. What does
not fit the windows, or is big, waits in its call as chunks and is pumped: one frame a call in turn, at most
`_PUMP_BYTES` an iteration, and nothing while the transport still holds `_WRITE_BUFFER_BYTES`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog

from cluster.frontend.http2 import frames
from cluster.frontend.http2.call import Http2Call
from cluster.frontend.http2.frames import header

if TYPE_CHECKING:
    from cluster.frontend.http2.front import Http2Front

_log: Final = structlog.get_logger("frontend")

_WRITE_BUFFER_BYTES: Final = 256 * 1024  # unsent bytes in the transport at which we stop producing
_PUMP_BYTES: Final = 512 * 1024  # DATA sent for one connection before the others get a turn
_FRAME_BYTES_MAX: Final = 64 * 1024  # larger frames save nothing and delay the other streams


class FrameWriter(asyncio.Protocol):
    """What a connection sends, and the bytes it holds for that and for unfinished calls."""

    def __init__(self, front: Http2Front) -> None:
        self.front = front
        self.loop = front.loop
        self.limits = front.limits
        self.now = self.loop.time()
        self.peer = "unknown"
        self.closed = False
        self.streams: dict[int, Http2Call] = {}
        self.ready: deque[Http2Call] = deque()  # calls with unsent chunks and an open window
        self.out: list[bytes | memoryview] = []
        self.reading = False  # inside data_received, which flushes at its end
        self.paused = False  # the transport holds enough unsent bytes
        self.held = 0  # bytes of unfinished calls
        self.window_out = self.peer_window = frames.WINDOW_DEFAULT
        self.frame_out_max = frames.FRAME_BYTES_MAX
        self.trailer_bytes_max = self.limits.trailer_bytes_max
        self._transport: asyncio.Transport
        self._flushing = self._pumping = False
        self._control_frames = 0  # pings and window updates since the last real traffic
        self._stall_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0

    def abort(self, reason: str) -> None:
        """Close at once, without a word."""
        _log.info("connection aborted", peer=self.peer, reason=reason)
        self._transport.abort()

    def close_stream(self, call: Http2Call) -> None:
        """The answer is complete."""
        raise NotImplementedError

    # ------------------------------------------------------------------ a peer that does not read

    def pause_writing(self) -> None:
        """The peer reads slowly: produce nothing more, and take nothing more from it."""
        self.paused = True
        self._transport.pause_reading()
        self._watch_stall()

    def _watch_stall(self) -> None:
        unread = self._transport.get_write_buffer_size()
        if self._stall_timer is not None and unread >= self._unread_bytes:
            self.abort("does not read")
            return
        self._unread_bytes = unread
        self._stall_timer = self.loop.call_later(self.limits.stall_timeout_s, self._watch_stall)

    def resume_writing(self) -> None:
        """The peer has caught up."""
        self.paused = False
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self.pump()
        self.flush()

    # ------------------------------------------------------------------ bytes held

    def hold(self, call: Http2Call, count: int) -> bool:
        """Charge bytes to a call; False if the connection's share is used up (nothing is charged then)."""
        if self.held and self.held + count > self.limits.connection_bytes_max:
            return False
        call.held += count
        self.held += count
        self.front.hold(count)
        return True

    def release(self, call: Http2Call, count: int) -> None:
        """Give charged bytes back."""
        call.held -= count
        self.held -= count
        self.front.held -= count

    def release_all(self) -> None:
        """Give back what all calls of a connection that was aborted hold."""
        for call in self.streams.values():
            self.release(call, call.held)

    # ------------------------------------------------------------------ frames out

    def flush_soon(self) -> None:
        """Write at the end of this loop iteration, together with what else comes."""
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        out = self.out
        if out:
            self.out = []
            if not self._transport.is_closing():
                self._transport.write(b"".join(out))

    def send_headers(self, stream: int, block: bytes, *, end: bool) -> None:
        """A header block, in as many frames as the peer's frame size asks for."""
        flags = frames.END_STREAM if end else 0
        limit = frames.FRAME_BYTES_MAX
        if len(block) <= limit:
            self.out += (header(len(block), frames.HEADERS, flags | frames.END_HEADERS, stream), block)
            return
        self.out += (header(limit, frames.HEADERS, flags, stream), block[:limit])
        for start in range(limit, len(block), limit):
            piece = block[start : start + limit]
            last = frames.END_HEADERS if start + limit >= len(block) else 0
            self.out += (header(len(piece), frames.CONTINUATION, last, stream), piece)

    def enqueue(self, call: Http2Call) -> None:
        """The call has something to send."""
        if not call.queued and call.window_out > 0:
            call.queued = True
            self.ready.append(call)
        if self.ready and not self._pumping:
            self.pump()

    def pump(self) -> None:
        """Send what the windows allow, one frame a call in turn, and not more than our share of the loop."""
        ready, room = self.ready, _PUMP_BYTES
        self.now = self.loop.time()
        while ready and self.window_out > 0 and not self.paused and not self.closed:
            if room <= 0:
                if not self._pumping:
                    self._pumping = True
                    self.loop.call_soon(self._pump_again)
                break
            call = ready.popleft()
            call.queued = False
            room -= self._send_frame(call)
        if self.out and not self.reading:
            self.flush_soon()

    def _pump_again(self) -> None:
        self._pumping = False
        self.flush()  # tells whether the peer still reads: pause_writing is called from within
        self.pump()

    def _send_frame(self, call: Http2Call) -> int:
        """One DATA frame of a call (and its trailers behind the last one): the bytes sent."""
        chunks = call.chunks
        if not chunks or call.window_out <= 0:
            return 0  # reset, or its window shrank, while it was queued
        chunk = chunks[0]
        length = min(self.frame_out_max, self.window_out, call.window_out, len(chunk))
        end = call.trailers == b"" and len(chunks) == 1 and length == len(chunk)
        self.out += (
            header(length, frames.DATA, frames.END_STREAM if end else 0, call.stream),
            chunk[:length],
        )
        self.window_out -= length
        call.window_out -= length
        call.moved = self.now
        self._control_frames = 0
        self.release(call, min(length, call.held))
        if length < len(chunk):
            chunks[0] = chunk[length:]
        else:
            chunks.popleft()
        if chunks:
            if call.window_out > 0:
                call.queued = True
                self.ready.append(call)
        elif call.trailers is not None:
            if call.trailers:
                self.send_headers(call.stream, call.trailers, end=True)
            self.close_stream(call)
        return length

    def set_frame_bytes_max(self, value: int) -> None:
        """What the peer announced; larger frames than ours would only delay other streams."""
        self.frame_out_max = min(value, _FRAME_BYTES_MAX)

    def set_write_limits(self) -> None:
        """Be told (pause_writing) when the peer does not keep up."""
        self._transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
