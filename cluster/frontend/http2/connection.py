"""One client connection: frames in, calls started, frames out (RFC 9113), and nothing a peer can blow up.

`data_received` parses every complete frame of what arrived, starts the calls they complete, and writes all
answers with one `write`. Answers that come later gather until the next loop iteration for the same reason.

What a peer may do without being asked is bounded in four ways: windows bound what it sends ahead; `hold`
counts the bytes that unfinished calls keep alive; `_strike` is a leaky bucket for frames that are legal but
only cost us (resets, pings, settings, empty frames, our own resets that it provoked); `check` ends what does
not move.

Not here: what a head means (head.py), what a call does (call.py), HTTP/1.1 (http1.py), accepting (front.py).
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, cast

import structlog

from cluster.frontend.http2 import frames, intake
from cluster.frontend.http2 import head as heads
from cluster.frontend.http2.call import Http2Call
from cluster.frontend.http2.frames import ConnectionFault, header, rst_stream, unpack_header, window_update
from cluster.frontend.http2.head import Head
from cluster.frontend.http2.hpack import Decoder, Field, HpackError, literal
from cluster.frontend.http2.writer import FrameWriter
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from cluster.frontend.http2.front import Http2Front

_log: Final = structlog.get_logger("frontend")

# Phases of a connection's opening.
_PREFACE, _SETTINGS, _OPEN = range(3)

_CACHED_HEADS_MAX: Final = 64
_CACHED_BLOCK_BYTES_MAX: Final = 2048
_LARGE_BLOCK_BYTES: Final = 4096
_CONTINUATIONS_MAX: Final = 8
_LINGER_S: Final = 0.25  # a client that was told to go closes by itself; if not, we do after this
_GOODBYE_S: Final = 1.0  # for a client that does not answer the ping behind the first GOAWAY
_DRAIN_PING: Final = b"drain..."
_ALIVE_PING: Final = b"alive..."
# Pings and window updates that an honest peer sends between two pieces of real traffic. grpc-go sends a ping
# per round trip while data flows, to measure the bandwidth-delay product, and a window update per 16 KiB it
# reads.
_CONTROL_FRAMES_FREE: Final = 200
_CUT_SHORT_MAX: Final = 1000
_SMALL_DATA_BYTES: Final = 64
_TRAILER_BYTES_MIN: Final = 512  # a status must fit, whatever the peer announces


class Http2Connection(FrameWriter):
    """A connection; also `contract.Connection`."""

    def __init__(self, front: Http2Front, host: str) -> None:
        super().__init__(front)
        self.host = host
        self.opened_at = self.now
        self.joined = False  # its socket is open, and the front knows of it
        self.expires_at: float | None = None
        self.draining = False  # told to go, or gone: close when the last call is over
        self._moved = self.now  # when the peer last sent anything
        self._phase = _PREFACE
        self._partial = b""  # the beginning of a frame
        self._partial_since = 0.0
        self._window_in = self.limits.connection_window_bytes
        self._window_in_low = self.limits.connection_window_bytes >> 1
        self._decoder = Decoder(self.limits.header_bytes_max)
        # Two caches of heads: by the block's bytes, as long as the dynamic table stays as it is; and by the
        # table entries, whatever the timeout. A client that repeats itself costs no decoding and no
        # validation.
        self._by_block: dict[bytes, tuple[Head, float | None]] = {}
        self._by_fields: dict[tuple[Field, ...], Head] = {}
        self._block: bytearray | None = None  # a header block that CONTINUATION frames go on with
        self._block_since = 0.0
        self._block_stream = self._block_flags = self._continuations = 0
        self._last_stream = -1
        self._skipped_streams = False
        self._cut_short: dict[
            int, None
        ] = {}  # the last streams that we reset: their DATA may still be coming
        self._goodbye = False  # the GOAWAY that names the last stream is out
        self._calm_debt = self._calm_at = 0.0
        self._ping_sent_at: float | None = None
        self._close_callbacks: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ contract.Connection

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the connection is gone."""
        if self.closed:
            callback()
        else:
            self._close_callbacks.append(callback)

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is accepted, and its TLS handshake done."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            host = f"[{name[0]}]" if ":" in name[0] else name[0]
            self.peer = f"{host}:{name[1]}"
        self.set_write_limits()
        self.front.joined(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the cause changes nothing
        """The socket is gone: so is everybody who waited for an answer on it."""
        self.closed = True
        self.front.left(self)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        for call in list(self.streams.values()):
            call.cancel()
        self.streams.clear()
        self.ready.clear()
        self.out.clear()
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the others must be called too
                _log.exception("close callback failed", peer=self.peer)

    def data_received(self, data: bytes) -> None:
        """Parse, act, answer."""
        if self._goodbye and not self.streams:
            return  # whatever comes after the last answer was told to go elsewhere
        self.now = self._moved = self.loop.time()
        if self._partial:
            data = self._partial + data
        self.reading = True
        try:
            if self._phase == _PREFACE:
                self._partial = data
                if not self._open(data):
                    return
                data = data[len(frames.PREFACE) :]
            self._partial = self._frames(data)
        except ConnectionFault as fault:
            self._end_with(fault)
        finally:
            self.reading = False
        if self.out:
            self.flush()

    # ------------------------------------------------------------------ opening and ending

    def _open(self, data: bytes) -> bool:
        """Whether the preface is complete; what is no preface is HTTP/1.1's, or garbage, and no longer
        ours.
        """
        if data[:24] != frames.PREFACE[: len(data)]:
            self.closed = True
            self.front.switch_to_http1(self, self._transport, data)
            return False
        if len(data) < 24:
            return False
        limits = self.limits
        self._phase = _SETTINGS
        self.out += (
            frames.settings(
                {
                    frames.SETTINGS_MAX_CONCURRENT_STREAMS: limits.streams_max,
                    frames.SETTINGS_INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                    frames.SETTINGS_MAX_HEADER_LIST_SIZE: limits.header_bytes_max,
                }
            ),
            window_update(0, limits.connection_window_bytes - frames.WINDOW_DEFAULT),
        )
        return True

    def _end_with(self, fault: ConnectionFault) -> None:
        self.out.append(frames.goaway(max(self._last_stream, 0), fault.code, fault.reason))
        self.flush()
        self._goodbye = self.draining = True
        for call in list(self.streams.values()):
            call.cancel()
        self.streams.clear()
        self._transport.close()

    def drain(self) -> None:
        """Ask the peer to leave, without losing what it has already sent.

        The first GOAWAY refuses nothing: calls that cross it on the wire are served. When the ping behind it
        comes back, the peer has seen it, and the second one names the last call that counts.
        """
        if self.draining or self.closed:
            return
        self.draining = True
        if self._phase == _PREFACE:
            self._transport.close()
            return
        self.out.append(frames.goaway(frames.STREAM_ID_MAX, frames.NO_ERROR, "shutting down"))
        self.out.append(frames.ping(_DRAIN_PING, ack=False))
        self.flush()
        self.loop.call_later(_GOODBYE_S, self._say_goodbye)

    def _say_goodbye(self) -> None:
        if self._goodbye or self.closed:
            return
        self._goodbye = True
        self.out.append(frames.goaway(max(self._last_stream, 0), frames.NO_ERROR, "shutting down"))
        self.flush_soon()
        if not self.streams:
            self.loop.call_later(_LINGER_S, self._transport.close)

    def check(self, now: float) -> None:
        """End what does not move. Called every second or so."""
        limits = self.limits
        if self.expires_at is not None and now > self.expires_at:
            if now > self.expires_at + limits.connection_age_grace_s:
                self.abort("too old")
            self.drain()
        reason = self._stuck(now)
        if reason is not None:
            self.abort(reason)
        elif not self.paused and now - self._moved > limits.keepalive_s and self._ping_sent_at is None:
            self._ping_sent_at = now
            self.out.append(frames.ping(_ALIVE_PING, ack=False))
        for call in [call for call in self.streams.values() if call.stalled(now, limits.stall_timeout_s)]:
            self._end_stream(call.stream, frames.CANCEL)
        if self.out:
            self.flush_soon()

    def _stuck(self, now: float) -> str | None:
        """Why this connection leads nowhere, if so."""
        timeout_s = self.limits.handshake_timeout_s
        if self._phase != _OPEN:
            return "no HTTP/2 preface" if now - self.opened_at > timeout_s else None
        if self._partial and now - self._partial_since > timeout_s:
            return "half a frame"
        if self._block is not None and now - self._block_since > timeout_s:
            return "half a header block"
        if self._transport.is_closing() and now - self._moved > timeout_s:
            return "does not read our last words"
        if self._ping_sent_at is not None and not self.paused:
            if self._moved > self._ping_sent_at:
                self._ping_sent_at = None  # anything that arrives is a sign of life
            elif now - self._ping_sent_at > self.limits.keepalive_s:
                return "does not answer pings"
        return None

    # ------------------------------------------------------------------ frames in

    def _frames(self, data: bytes) -> bytes:
        """Handle every complete frame; returns the rest."""
        position, size, streams = 0, len(data), self.streams
        while size - position >= 9:
            high, low, kind, flags, stream = unpack_header(data, position)
            length = high << 8 | low
            if length > frames.FRAME_BYTES_MAX:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "frame larger than announced")
            start = position + 9
            end = start + length
            if end > size:
                break
            position = end
            stream &= 0x7FFFFFFF
            if self._block is not None and (kind != 9 or stream != self._block_stream):
                raise ConnectionFault(frames.PROTOCOL_ERROR, "header block interrupted")
            if kind == 0:
                self._window_in -= length
                call = streams.get(stream)
                if (
                    flags == 1  # the last frame, without padding
                    and call is not None
                    and call.fresh
                    and (call.head.content_length is None or call.head.content_length == length)
                    and 5 <= length <= call.window_in
                    and not data[start]  # not compressed
                    and int.from_bytes(data[start + 1 : start + 5], "big") == length - 5
                    and self._window_in >= self._window_in_low
                ):
                    call.fresh = False
                    call.ended = True
                    call.request = data[start + 5 : end]
                    call.start()
                else:
                    self._on_data(stream, flags, data, start, end)
            elif kind == 1 and flags & 0xC == 4 and self._phase == _OPEN:  # complete, and without padding
                if flags & 0x20:
                    start = self._skip_priority(stream, data, start, end)
                self._on_block(stream, flags, data[start:end])
            else:
                self._on_other(kind, flags, stream, data[start:end])
        if position == size:
            return b""
        if position or not self._partial:
            self._partial_since = self.now  # a frame that drips in byte by byte keeps its first time
        return data[position:]

    def _on_other(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if self._phase == _SETTINGS:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "first frame is not SETTINGS")
            self._phase = _OPEN
        handle = _HANDLERS.get(kind)
        if handle is None:
            self._strike(0.2)  # unknown types must be ignored
        else:
            handle(self, flags, stream, payload)

    def _on_headers(self, flags: int, stream: int, payload: bytes) -> None:
        start, end = 0, len(payload)
        if flags & frames.PADDED:
            if not payload or payload[0] >= end:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "padding longer than the frame")
            end -= payload[0]
            start = 1
        if flags & frames.PRIORITIZED:
            start = self._skip_priority(stream, payload, start, end)
        if flags & frames.END_HEADERS:
            self._on_block(stream, flags, payload[start:end])
        else:
            self._block = bytearray(payload[start:end])
            self._block_stream, self._block_flags, self._continuations = stream, flags, 0
            self._block_since = self.now

    def _skip_priority(self, stream: int, data: bytes, start: int, end: int) -> int:
        """Where the block begins behind the five bytes of priority, which mean nothing any more."""
        if end - start < 5:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "HEADERS too short")
        if int.from_bytes(data[start : start + 4], "big") & 0x7FFFFFFF == stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "stream depends on itself")
        return start + 5

    def _on_continuation(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - checked before
        block = self._block
        if block is None:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
        block += payload
        self._continuations += 1
        if len(block) > self.limits.header_block_bytes_max or self._continuations > _CONTINUATIONS_MAX:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "header block too large")
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(self._block_stream, self._block_flags, bytes(block))

    def _on_block(self, stream: int, flags: int, block: bytes) -> None:
        """A complete header block: a new call, or a request's trailers."""
        known = self._by_block.get(block)
        if known is None:
            known = self._decode(block)
        head, timeout = known
        if not stream & 1:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "HEADERS on a stream that is not a client's")
        if stream <= self._last_stream:
            self._on_trailers(stream, flags, head)
            return
        if stream != self._last_stream + 2 and stream != 1:
            self._skipped_streams = True
        self._last_stream = stream
        self._control_frames = 0
        ended = flags & frames.END_STREAM
        if head.kind == heads.MALFORMED:
            self._strike(1)
            self._end_stream(stream, frames.PROTOCOL_ERROR)
            return
        if len(self.streams) >= self.limits.streams_max or self._goodbye:
            self._strike(0.5)
            self._end_stream(stream, frames.REFUSED_STREAM)
            return
        call = self.streams[stream] = Http2Call(self, stream, head, timeout)
        if ended:
            call.ended, call.fresh = True, False
        if head.kind != heads.GRPC or ended:
            self._on_unusual(call)

    def _on_unusual(self, call: Http2Call) -> None:
        """A call that cannot start, or that has ended with its head."""
        head = call.head
        if call.ended and head.content_length:
            self.reset(call, frames.PROTOCOL_ERROR)
        elif head.kind == heads.OVERSIZED:
            self._strike(10)
            limit = self.limits.header_bytes_max
            call.fail(Code.RESOURCE_EXHAUSTED, f"request headers are larger than {limit} bytes")
        elif head.kind == heads.UNKNOWN_METHOD:
            call.fail(Code.UNIMPLEMENTED, f"unknown method {call.method}")
        elif call.ended:
            intake.end(self, call)

    def _on_trailers(self, stream: int, flags: int, head: Head) -> None:
        call = self.streams.get(stream)
        if call is None:
            code = frames.PROTOCOL_ERROR if self._skipped_streams else frames.STREAM_CLOSED
            raise ConnectionFault(code, "HEADERS on a closed stream")
        if call.ended:
            self.reset(call, frames.STREAM_CLOSED)
        elif not flags & frames.END_STREAM or any(field.name[:1] == b":" for field in head.fields):
            self.reset(call, frames.PROTOCOL_ERROR)
        else:
            call.ended, call.fresh = True, False
            intake.end(self, call)

    def _decode(self, block: bytes) -> tuple[Head, float | None]:
        """Decode a block that is not in the first cache, and find or make its head."""
        if len(block) > _LARGE_BLOCK_BYTES:
            self._strike(len(block) / 256)
        try:
            fields = self._decoder.decode(block)
        except HpackError as error:
            raise ConnectionFault(frames.COMPRESSION_ERROR, str(error)) from None
        fields, text = heads.split_timeout(fields)
        key = tuple(fields)
        head = self._by_fields.get(key)
        if head is None or self._decoder.oversized:
            head = self._parse(key)
        timeout = None if text is None else heads.timeout_s(text)
        if text is not None and timeout is None and head.kind != heads.OVERSIZED:
            head = heads.MALFORMED_HEAD
        known = head, timeout
        if self._decoder.changed:
            self._by_block.clear()
        elif len(block) <= _CACHED_BLOCK_BYTES_MAX and head.kind != heads.OVERSIZED:
            if len(self._by_block) >= _CACHED_HEADS_MAX:
                self._by_block.clear()
            self._by_block[block] = known
        return known

    def _parse(self, key: tuple[Field, ...]) -> Head:
        head = heads.parse(key)
        if self._decoder.oversized:
            head.kind = heads.OVERSIZED
            return head
        self.front.resolve(head)
        if sum(field.size for field in key) <= _CACHED_BLOCK_BYTES_MAX:
            if len(self._by_fields) >= _CACHED_HEADS_MAX:
                self._by_fields.clear()
            self._by_fields[key] = head
        return head

    # ------------------------------------------------------------------ requests in

    def _on_data(self, stream: int, flags: int, data: bytes, start: int, end: int) -> None:
        """A DATA frame that is not the whole of a plain request; the connection window is already charged."""
        if not stream or self._phase != _OPEN:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "DATA without a stream")
        length = end - start
        if self._window_in < self.limits.connection_window_bytes >> 1:
            if self._window_in < 0:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "more DATA than the window allows")
            self.out.append(window_update(0, self.limits.connection_window_bytes - self._window_in))
            self._window_in = self.limits.connection_window_bytes
        if flags & frames.PADDED:
            if not length or data[start] >= length:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "padding longer than the frame")
            end -= data[start]
            start += 1
        call = self.streams.get(stream)
        if call is None:
            if stream > self._last_stream:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "DATA on an idle stream")
            if stream in self._cut_short:
                self._strike(0.2)  # it was on its way when we reset the stream
                return
            self._strike(1)
            self.out.append(rst_stream(stream, frames.STREAM_CLOSED))
            return
        call.window_in -= length
        call.fresh = False
        if call.ended or call.window_in < 0:
            self.reset(call, frames.STREAM_CLOSED if call.ended else frames.FLOW_CONTROL_ERROR)
            return
        if flags & frames.END_STREAM:
            call.ended = True
        elif end - start < _SMALL_DATA_BYTES:
            self._strike(1 if end == start else 0.1)
        call.moved = self.now
        call.received += end - start
        if call.done:
            return  # answered before it was asked to the end
        if call.head.kind == heads.GRPC and not intake.take(self, call, data[start:end]):
            return
        if call.ended:
            intake.end(self, call)
            return
        if call.head.streaming:
            intake.stream_messages(self, call)
        if call.window_in < self.limits.stream_window_bytes >> 1 and not call.done:
            self.out.append(window_update(stream, self.limits.stream_window_bytes - call.window_in))
            call.window_in = self.limits.stream_window_bytes

    # ------------------------------------------------------------------ control frames

    def _on_rst_stream(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - it has no flags
        if len(payload) != 4:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "RST_STREAM of a wrong length")
        if not stream or stream > self._last_stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        call = self.streams.pop(stream, None)
        if call is not None:
            call.cancel()
            self._stream_gone()
        # Resets right after the request are an attack's; those of calls that waited are the clients'
        # deadlines.
        self._strike(0.1 if call is not None and self.now - call.born > 1.0 else 1)

    def _on_settings(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.ACK:
            if payload:
                raise ConnectionFault(frames.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        if len(payload) % 6:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._strike(1 + len(payload) / 600 + len(self.streams) / 100)
        self.out.append(header(0, frames.SETTINGS, frames.ACK, 0))
        for key, value in struct.iter_unpack(">HL", payload):
            if key == frames.SETTINGS_INITIAL_WINDOW_SIZE:
                self._on_initial_window(value)
            elif key == frames.SETTINGS_MAX_FRAME_SIZE:
                if not 16_384 <= value <= 16_777_215:
                    raise ConnectionFault(frames.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
                self.set_frame_bytes_max(value)
            elif key == frames.SETTINGS_ENABLE_PUSH and value > 1:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH out of range")
            elif key == frames.SETTINGS_MAX_HEADER_LIST_SIZE:
                self.trailer_bytes_max = max(min(value, self.limits.trailer_bytes_max), _TRAILER_BYTES_MIN)

    def _on_initial_window(self, value: int) -> None:
        if value > frames.WINDOW_MAX:
            raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
        delta = value - self.peer_window
        self.peer_window = value
        for call in self.streams.values():
            if not call.resize_window(delta):
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "window overflow")
            if call.chunks and not call.queued and call.window_out > 0:
                call.queued = True
                self.ready.append(call)
        self.pump()

    def _on_ping(self, flags: int, stream: int, payload: bytes) -> None:
        if stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "PING of a wrong length")
        if flags & frames.ACK:
            self._ping_sent_at = None
            if payload == _DRAIN_PING:
                self._say_goodbye()
            return
        self._control_frames += 1
        if self._control_frames > _CONTROL_FRAMES_FREE:
            self._strike(1)
        self.out.append(frames.ping(payload, ack=True))

    def _on_goaway(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - why it leaves is its affair
        if stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "GOAWAY on a stream")

    def _on_window_update(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - it has no flags
        if len(payload) != 4:
            raise ConnectionFault(frames.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong length")
        self._control_frames += 1
        if self._control_frames > _CONTROL_FRAMES_FREE:
            self._strike(0.5)
        increment = int.from_bytes(payload, "big") & 0x7FFFFFFF
        if not stream:
            if not increment:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
            self.window_out += increment
            if self.window_out > frames.WINDOW_MAX:
                raise ConnectionFault(frames.FLOW_CONTROL_ERROR, "window overflow")
            self.pump()
            return
        call = self.streams.get(stream)
        if call is None:
            if stream > self._last_stream:
                raise ConnectionFault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        elif not increment:
            self.reset(call, frames.PROTOCOL_ERROR)
        elif not call.resize_window(increment):
            self.reset(call, frames.FLOW_CONTROL_ERROR)
        elif call.chunks:
            self.enqueue(call)

    def _on_priority(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - it has no flags
        if not stream:
            raise ConnectionFault(frames.PROTOCOL_ERROR, "PRIORITY without a stream")
        self._strike(0.2)
        if len(payload) != 5:
            self._reset_stream(stream, frames.FRAME_SIZE_ERROR)
        elif int.from_bytes(payload[:4], "big") & 0x7FFFFFFF == stream:
            self._reset_stream(stream, frames.PROTOCOL_ERROR)

    def _on_push_promise(self, flags: int, stream: int, payload: bytes) -> None:  # noqa: ARG002 - never allowed
        raise ConnectionFault(frames.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    def _strike(self, weight: float) -> None:
        """Count a frame that only costs us; too many in too short a time end the connection."""
        limits, now = self.limits, self.now
        self._calm_debt = max(0.0, self._calm_debt - (now - self._calm_at) * limits.calm_per_s) + weight
        self._calm_at = now
        if self._calm_debt > limits.calm_burst:
            raise ConnectionFault(frames.ENHANCE_YOUR_CALM, "too many control frames")

    # ------------------------------------------------------------------ streams

    def answer_http(self, call: Http2Call) -> None:
        """An ordinary HTTP request over HTTP/2."""
        head = call.head
        status, content_type, body = self.front.answer_http(
            head.http_method.decode("latin-1"), head.path.decode("latin-1")
        )
        block = literal(b":status", str(status).encode()) + literal(b"content-type", content_type.encode())
        call.answer_plain(block, body)

    def reset(self, call: Http2Call, code: int) -> None:
        """End one call for the peer's fault in it."""
        self._reset_stream(call.stream, code)

    def _reset_stream(self, stream: int, code: int) -> None:
        # Counted like the peer's own resets: provoking ours (CVE-2025-8671) would be the same attack.
        self._strike(1)
        self._end_stream(stream, code)

    def _end_stream(self, stream: int, code: int) -> None:
        self.out.append(rst_stream(stream, code))
        if len(self._cut_short) >= _CUT_SHORT_MAX:
            del self._cut_short[next(iter(self._cut_short))]
        self._cut_short[stream] = None
        call = self.streams.pop(stream, None)
        if call is not None:
            call.cancel()
            self._stream_gone()

    def close_stream(self, call: Http2Call) -> None:
        """The answer is complete."""
        if self.streams.pop(call.stream, None) is None:
            return
        if call.held:
            self.release(call, call.held)
        if not call.ended:
            self._end_stream(call.stream, frames.NO_ERROR)  # it need not send the rest
        self._stream_gone()

    def _stream_gone(self) -> None:
        if self._goodbye and not self.streams:
            self.flush_soon()
            self.loop.call_later(_LINGER_S, self._transport.close)


_HANDLERS: Final[dict[int, Callable[[Http2Connection, int, int, bytes], None]]] = {
    frames.HEADERS: Http2Connection._on_headers,
    frames.PRIORITY: Http2Connection._on_priority,
    frames.RST_STREAM: Http2Connection._on_rst_stream,
    frames.SETTINGS: Http2Connection._on_settings,
    frames.PUSH_PROMISE: Http2Connection._on_push_promise,
    frames.PING: Http2Connection._on_ping,
    frames.GOAWAY: Http2Connection._on_goaway,
    frames.WINDOW_UPDATE: Http2Connection._on_window_update,
    frames.CONTINUATION: Http2Connection._on_continuation,
}
