"""The two connections of a session, and those of callers who have not said who they are.

Dialed: says hello, then sends frames; what it reads are pings. Accepted: hears hello, then reads frames; what
it sends are pings. A ping says how many bytes its sender has read from the connection, which is what holds
back bulk (see `Dialed._pump`).

Liveness is counted in ticks of our own timer, not in time: if this process was stopped for a minute, then it
is not the others who were silent.

What a session is and when it opens and ends: sessions.py.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING, Final, cast

import structlog

from cluster.peers import handshake
from cluster.peers.abroad import called, home
from cluster.peers.contract import Identity, Message, Refused, Unreachable
from cluster.peers.frames import (
    BODY_HEAD_BYTES_MAX,
    HELLO,
    PING,
    REFUSED,
    Fault,
    FrameReader,
    control,
    decode,
    encode,
    seal,
    seal_alone,
)

if TYPE_CHECKING:
    from cluster.peers.sessions import Session
    from cluster.peers.stream import StreamPeers

_log: Final = structlog.get_logger("peers")


class Link(FrameReader):
    """A connection, whoever dialed."""

    def __init__(self, peers: StreamPeers) -> None:
        super().__init__(peers.limits.hello_bytes_max)
        self.peers = peers
        self.limits = peers.limits
        self.transport: asyncio.Transport  # once it is connected
        self.host = ""
        self.identity: Identity | None = None  # who is at the other end, once it has said so
        self.version = 0
        self.sent = 0  # bytes
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._spoke = True  # since the last tick
        self._idle_ticks = 0
        self._heard = 0  # what `received` was at the last tick
        self._silent_ticks = 0
        self._ping_ticks = max(1, math.floor(peers.limits.ping_s / peers.limits.tick_s))
        self._dead_ticks = math.ceil(peers.limits.dead_s / peers.limits.tick_s)

    # ------------------------------------------------------------------ asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is open."""
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        name = transport.get_extra_info("peername")
        self.host = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        self.transport.set_write_buffer_limits(high=self.limits.write_buffer_bytes)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.over = True
        if not self.gone.done():
            self.gone.set_result(None)
        self.lost(f"the connection broke: {exc}" if exc is not None else "the other side hung up")

    def eof_received(self) -> bool:
        """Nothing is half open here."""
        return False

    def _fault(self, sentence: str) -> None:
        self.end(sentence)

    def _body(self, body: memoryview) -> None:
        messages = decode(body)
        kind = messages[0][0]
        if type(kind) is not int:
            raise Fault(f"a message of kind {kind!r}")
        if kind < 0:
            self.control(messages[0])
        else:
            self.messages(messages)

    # ------------------------------------------------------------------ for those below

    def control(self, message: Message) -> None:
        """One of the room's own. May raise Fault."""
        raise NotImplementedError

    def messages(self, messages: list[Message]) -> None:
        """A frame of the owner's. May raise Fault."""
        raise NotImplementedError

    def lost(self, why: str) -> None:
        """The connection is over, by whomever; also called after `end`. Called once or more."""
        raise NotImplementedError

    # ------------------------------------------------------------------

    def write(self, frame: list[bytes]) -> None:
        """Hand a frame to the transport, at once."""
        self._spoke = True
        if len(frame) == 1:
            self.sent += len(frame[0])
            self.transport.write(frame[0])
        else:
            self.sent += sum(map(len, frame))
            self.transport.writelines(frame)

    def ping(self) -> None:
        """Say that we are here, and what we have read."""
        self.write([control([PING, self.received])])

    def tick(self) -> None:
        """Ping if there was nothing else to say; die if there was nothing to hear."""
        if self._spoke:
            self._spoke = False
            self._idle_ticks = 0
        self._idle_ticks += 1
        if self._idle_ticks >= self._ping_ticks:
            self.ping()
        if self.received != self._heard:
            self._heard = self.received
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks >= self._dead_ticks:
            self.end(f"nothing was heard for {self.limits.dead_s:g} s")

    def refuse(self, sentence: str) -> None:
        """Tell the other side why, and hang up once that is out."""
        self.over = True
        self.write([control([REFUSED, sentence])])
        self.transport.close()

    def drop(self) -> None:
        """Hang up at once; whatever was queued is dropped. Nobody is told, apart from who is dialing."""
        self.over = True
        if not self.gone.done():
            self.gone.set_result(None)
        if hasattr(self, "transport"):
            self.transport.abort()

    def end(self, why: str) -> None:
        """Hang up at once, and tell why."""
        self.drop()
        self.lost(why)


class Dialed(Link):
    """To a peer: we send on it."""

    def __init__(self, peers: StreamPeers, session: Session) -> None:
        super().__init__(peers)
        self.session = session
        # PeerError: why not.
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queued = False  # for the next flush
        self.queued_bytes = 0
        self.bulk_queued_bytes = 0
        self._round: list[bytes] = []
        self._round_bytes = 0
        self._frames: deque[tuple[list[bytes], int]] = deque()  # sealed and not written; bytes queued in it
        self._bulk: deque[bytes] = deque()
        self._split = min(self.limits.frame_bytes_split, self.limits.frame_bytes_max - BODY_HEAD_BYTES_MAX)
        self._paused = False
        self._read = 0  # bytes that the peer says it has read

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say who we are."""
        super().connection_made(transport)
        mine = self.peers.identity
        self.write([control(handshake.hello(mine, self.peers.versions, self.session.node_id))])

    def control(self, message: Message) -> None:
        """Their answer to hello, then pings."""
        kind = message[0]
        if kind == PING and self.identity is not None:
            if len(message) != 2 or type(message[1]) is not int:
                raise Fault(f"a ping that is {message!r:.100}")
            self._read = message[1]
            if self._bulk:
                self._pump()
        elif kind == REFUSED and len(message) > 1:
            self._over_before_welcome(Refused(str(message[1])))
            self.end("refused")
        elif self.identity is None:
            self._welcome(handshake.read_welcome(message))
        else:
            raise Fault(f"a frame of kind {kind} from a node that was dialed")

    def _welcome(self, said: handshake.Welcome) -> None:
        other, meant = said.identity, self.session.node_id
        index, node_id = home(meant)
        region = self.peers.region_of(index)
        is_it = (other.cluster_id, other.region, other.node_id) == (region.cluster_id, region.name, node_id)
        if not is_it or index not in (0, other.index):
            raise Fault(
                f"a welcome of node {other.node_id} of region {other.region!r} and cluster "
                f"{other.cluster_id!r}, when {called(meant)} was dialed"
            )
        if not self.peers.versions[0] <= said.version <= self.peers.versions[1]:
            raise Fault(f"a welcome in protocol version {said.version}, which was not offered")
        if self.welcomed.done():
            self.drop()  # the time was over, a moment before the answer came
            return
        self.identity = other
        self.version = said.version
        self.welcomed.set_result(None)
        self.session.dialed_open(self)

    def messages(self, messages: list[Message]) -> None:
        """There are none on this side."""
        raise Fault(f"a message of kind {messages[0][0]} from a node that was dialed")

    def lost(self, why: str) -> None:
        """Tell who dials, and the session."""
        self.queued_bytes = self.bulk_queued_bytes = 0
        self._round = []
        self._frames.clear()
        self._bulk.clear()
        self._over_before_welcome(Unreachable(why))
        self.session.link_lost(self, why)

    def drop(self) -> None:
        """As every link's."""
        super().drop()
        self._over_before_welcome(Unreachable("we hung up"))

    def finish(self) -> None:
        """Hang up once what was queued is out, as far as the transport takes it."""
        self.flush()
        self.over = True
        self.transport.close()

    def _over_before_welcome(self, error: Exception) -> None:
        if not self.welcomed.done():
            self.welcomed.set_exception(error)
            self.welcomed.exception()  # nobody may be waiting any more, and that is no reason to log it

    # ------------------------------------------------------------------ sending

    def send(self, message: Message) -> bool:
        """Queue for the next frame."""
        if self.queued_bytes >= self.limits.queue_bytes_max:
            return False
        encoded = encode(message)
        size = len(encoded)
        if self.queued_bytes + size > self.limits.queue_bytes_max and self.queued_bytes:
            self._fits_a_frame(size)
            return False
        if self._round_bytes + size > self._split:
            self._fits_a_frame(size)
            self._seal()
        self._round.append(encoded)
        self._round_bytes += size
        self.queued_bytes += size
        return True

    def send_bulk(self, message: Message) -> bool:
        """Queue for when there is little else."""
        if self.bulk_queued_bytes >= self.limits.bulk_queue_bytes_max:
            return False
        encoded = encode(message)
        size = len(encoded)
        self._fits_a_frame(size)
        if self.bulk_queued_bytes + size > self.limits.bulk_queue_bytes_max and self._bulk:
            return False
        self._bulk.append(encoded)
        self.bulk_queued_bytes += size
        return True

    def _fits_a_frame(self, size: int) -> None:
        if size + BODY_HEAD_BYTES_MAX > self.limits.frame_bytes_max:
            raise ValueError(
                f"a message of {size} bytes can never be sent: frames have at most "
                f"{self.limits.frame_bytes_max}"
            )

    def _seal(self) -> None:
        """Close the frame that is being gathered."""
        if self._round:
            self._frames.append((seal(self._round), self._round_bytes))
            self._round = []
            self._round_bytes = 0

    def flush(self) -> None:
        """Write what the transport takes: ordinary frames, then bulk."""
        self.queued = False
        if self.over or self._paused:
            return
        if self._round and not self._frames:
            # The usual case: one round, one frame, one write.
            frame = seal(self._round)
            self._round = []
            self._round_bytes = self.queued_bytes = 0
            self.write(frame)
        else:
            self._seal()
            while self._frames and not self._paused:
                frame, size = self._frames.popleft()
                self.queued_bytes -= size
                self.write(frame)
        if self._bulk:
            self._pump()

    def _pump(self) -> None:
        """Write bulk while little is under way.

        Under way is what we wrote and the peer has not reported as read, wherever it is: in our transport, in
        the kernels, on the wire. The write buffer alone would not do, because the kernels of both sides take
        megabytes, and an ordinary message would wait behind them."""
        while (
            self._bulk
            and not self._paused
            and not self._frames
            and not self.over
            and self.sent - self._read < self.limits.window_bytes
        ):
            message = self._bulk.popleft()
            self.bulk_queued_bytes -= len(message)
            self.write(seal_alone(message))

    def pause_writing(self) -> None:
        """The kernel takes no more."""
        self._paused = True

    def resume_writing(self) -> None:
        """It takes more."""
        self._paused = False
        self.flush()


class Accepted(Link):
    """From whoever called: a peer whose frames we read, or a stranger."""

    def __init__(self, peers: StreamPeers) -> None:
        super().__init__(peers)
        self.session: Session | None = None
        self._reported = 0
        self._held: list[list[Message]] | None = []  # until the session is up
        self._patience: asyncio.TimerHandle | None = None
        self._lost = False

    @property
    def stranger(self) -> bool:
        """Whether it has said that it is no node."""
        return self.identity is not None and self.identity.node_id == 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has a moment to say who it is."""
        super().connection_made(transport)
        self.peers.arrived(self)
        self._patience = asyncio.get_running_loop().call_later(
            self.limits.handshake_s,
            self.end,
            f"it did not say who it is within {self.limits.handshake_s:g} s",
        )

    def control(self, message: Message) -> None:
        """Hello, then pings."""
        if self.identity is None:
            self._hello(handshake.read_hello(message))
        elif message[0] == PING:
            pass  # it was heard, which is all it is for
        elif message[0] == HELLO:
            raise Fault("a second hello on one connection")
        else:
            raise Fault(f"a frame of kind {message[0]} from a node that dialed")

    def _hello(self, said: handshake.Hello) -> None:
        assert self._patience is not None, "a connection that speaks was made"
        self._patience.cancel()
        sentence = self.peers.objection(said)
        if sentence:
            self.peers.refused(self.host, sentence)
            self.refuse(sentence)
            self._forget()
            return
        self.identity = said.identity
        self.version = handshake.common_version(self.peers.versions, said)
        self.write([control(handshake.welcome(self.version, self.peers.identity))])
        if self.stranger:
            self.accept_frames(self.limits.stranger_frame_bytes_max)
            self.transport.set_write_buffer_limits(high=self.limits.stranger_answer_bytes_max)
            self._patience = asyncio.get_running_loop().call_later(
                self.limits.stranger_s, self.end, f"a stranger is heard for {self.limits.stranger_s:g} s only"
            )
            self.peers.identified(self)
        else:
            self.accept_frames(self.limits.frame_bytes_max)
            self.peers.identified(self)

    # ------------------------------------------------------------------ a peer's

    def messages(self, messages: list[Message]) -> None:
        """Deliver, or hold until the session is up: the peer opens it a moment before we do."""
        if self.identity is None:
            raise Fault("a message before hello")
        if self.stranger:
            self._stranger_messages(messages)
        elif self._held is not None:
            if not self._held:
                self.transport.pause_reading()
            self._held.append(messages)
        else:
            self._deliver(messages)

    def _deliver(self, messages: list[Message]) -> None:
        assert self.session is not None, "a peer's messages are those of a session"
        node_id = self.session.node_id
        receive = self.peers.receiver.message
        for message in messages:
            if self.over or self.peers.closed:
                return  # the owner hung up, perhaps on the way
            receive(node_id, message)
        if self.received - self._reported >= self.limits.report_bytes:
            self.ping()

    def ping(self) -> None:
        """As every link's; remember what was said."""
        self._reported = self.received
        super().ping()

    @property
    def talks(self) -> bool:
        """Whether it has said something in half the time in which silence means death."""
        return self._silent_ticks * 2 < self._dead_ticks

    def release(self) -> None:
        """The session is up."""
        held, self._held = self._held, None
        if held:
            for messages in held:
                self._deliver(messages)
            if not self.over:
                self.transport.resume_reading()

    def tick(self) -> None:
        """As every link's; strangers and those who have not said who they are have a time-out instead."""
        if self.identity is not None and not self.stranger:
            super().tick()

    # ------------------------------------------------------------------ a stranger's

    def _stranger_messages(self, messages: list[Message]) -> None:
        if self.received > self.limits.stranger_bytes_max:
            raise Fault(f"more than {self.limits.stranger_bytes_max} bytes from a stranger")
        for message in messages:
            if type(message[0]) is not int or message[0] < 0:
                raise Fault(f"a message of kind {message[0]!r} from a stranger")
        for message in messages:
            if not self.over:
                self.peers.stranger_message(self, message)

    # ------------------------------------------------------------------ the end

    def lost(self, why: str) -> None:
        """Tell the session, or the log."""
        if self._lost:
            return
        self._forget()
        if self.session is not None:
            self.session.link_lost(self, why)
        elif self.identity is None:
            self.peers.complain(self.host, why)

    def _forget(self) -> None:
        self._lost = True
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        self.peers.departed(self)
