"""What nodes promise each other about messages, and what whoever carries them promises the nodes.

A *session* with a peer is a pair of connections: one that this node dialed and sends on, one that it
accepted and receives on. `up` opens a session, `down` ends it, and the loss of either connection ends it on
both sides.
Within a session messages arrive in the order in which they were sent, each once, none left out; those that
were under way when it ended may or may not have been received. Bulk messages keep their order among
themselves; ordinary ones overtake them.

Peers are the nodes of the own region, and of other regions that it knows. Those have numbers of their own
here, made of both regions' (abroad.py); all else is the same for them.

Nothing here knows what a message means, except that it begins with a kind that is not negative.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from cluster.peers.abroad import Other

# [kind: int >= 0, field, ...]: what msgpack can carry. Sent tuples arrive as lists, sent buffers as bytes.
Message = list[Any]
Address = tuple[str, int]

# Of frames and of what the messages in them mean. A node speaks two versions, so that nodes one release apart
# work together; the connection uses the highest that both speak.
VERSIONS: Final = (1, 1)


class Identity(msgspec.Struct, frozen=True, array_like=True):
    """Who a process is."""

    cluster_id: str
    region: str
    node_id: int  # 0: it has none yet
    name: str
    incarnation: str  # random, another one in each process
    disk: str = ""  # drawn when its data was made: a node whose data was lost comes with another one
    index: int = 0  # of its region, among several; 0: it does not say


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer, or whoever finds the port, may cost."""

    # A snapshot's chunk or a log entry of 64 MiB, and room for what surrounds it.
    frame_bytes_max: int = (64 << 20) + (1 << 20)
    # A round of more than this leaves as several frames, so that the receiver's loop gets to breathe.
    frame_bytes_split: int = 1 << 20
    # Not yet written to one peer. Beyond it `send` says False; a single message always fits an empty queue.
    queue_bytes_max: int = 64 << 20
    bulk_queue_bytes_max: int = 16 << 20
    # Bulk is written only while less than this, everything counted, is on its way and not yet read by the
    # peer. It bounds what an ordinary message may find in front of it; 512 KiB a round trip is 512 MB/s at
    # 1 ms. Twice as much measured slower, and made questions wait three times as long.
    window_bytes: int = 512 << 10
    # The receiver reports what it read whenever it is this much more; well below window_bytes, or bulk would
    # stop and go.
    report_bytes: int = 128 << 10
    # Given to the operating system for one peer before frames wait with us, where they can still be joined.
    write_buffer_bytes: int = 1 << 20

    tick_s: float = 0.25
    ping_s: float = 0.5  # of having nothing to say
    dead_s: float = 2.0  # of hearing nothing
    handshake_s: float = 2.0  # to connect, for TLS and for the first frame
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0

    hello_bytes_max: int = 4 << 10
    handshakes_max: int = 256  # connections that have not said who they are
    newcomers_max: int = 64  # nodes of other regions whose addresses are not known yet
    strangers_max: int = 64
    stranger_frame_bytes_max: int = 1 << 20
    stranger_bytes_max: int = 8 << 20  # that one connection of a stranger may send in its life
    stranger_answer_bytes_max: int = 16 << 20  # that wait for a stranger to read them
    stranger_s: float = 60.0  # a stranger's connection lives no longer

    def __post_init__(self) -> None:
        assert 0 < self.report_bytes * 2 <= self.window_bytes, "reports must come before the window is full"
        assert self.tick_s <= self.ping_s < self.dead_s, "a ping must be due before silence means death"
        assert self.backoff_min_s <= self.backoff_max_s, "the first wait is the shortest"


class PeerError(Exception):
    """Something between two nodes went wrong; `definite`: the other side has not acted on it."""

    definite = True


class Refused(PeerError):
    """The other side would not talk to us; its sentence says why and what to do."""


class Unreachable(PeerError):
    """No connection came about, or it broke before anything was asked."""


class Unanswered(PeerError):
    """The question was sent and no answer came: it may have been acted on."""

    definite = False


class Receiver(Protocol):
    """Who gets the messages. Called on the loop; must not block; an exception costs the connection."""

    def message(self, node_id: int, message: Message) -> None:
        """Of a peer that is up; in the order in which it sent them."""

    def up(self, node_id: int, incarnation: str) -> None:
        """Both directions work. Before the session's first message."""

    def down(self, node_id: int) -> None:
        """The session is over: what was sent and not answered is unknown. Also called by set_peers for a
        peer that is removed while it is up."""


class StrangerConnection(Protocol):
    """A connection of somebody who is no node of the region: one that wants to join, or the admin CLI."""

    @property
    def identity(self) -> Identity:
        """What it says of itself; node_id is 0."""

    @property
    def host(self) -> str:
        """The address it called from."""

    def send(self, message: Message) -> bool:
        """Answer. False: the connection is gone, or does not read what it was sent."""

    def close(self) -> None:
        """Hang up once what was sent is out."""


class StrangerReceiver(Protocol):
    """Who answers strangers. Called on the loop; must not block."""

    def __call__(self, connection: StrangerConnection, message: Message, /) -> None:
        """One question; the answer may come later."""


class PeerState(NamedTuple):
    """What is known of a peer, for people and metrics."""

    node_id: int
    address: Address | None  # None: of a node of another region, not heard of yet
    up: bool
    name: str  # "" while unknown
    incarnation: str  # "" while unknown
    version: int  # of the protocol; 0 while not up
    queued_bytes: int
    bulk_queued_bytes: int
    problem: str  # why it is not up; "" if it is, or nothing was tried yet


class Peers(Protocol):
    """A node's way to the others."""

    @property
    def port(self) -> int:
        """The port it listens on; after start."""

    async def start(self, host: str, port: int) -> None:
        """Listen, and dial the peers. Port 0: any free one. OSError: cannot listen."""

    async def close(self) -> None:
        """Send what is queued, hang up, listen no more. The receiver hears nothing from its begin on."""

    def set_peers(
        self,
        addresses: dict[int, Address],
        disks: Mapping[int, str] | None = None,
        regions: Mapping[int, Other] | None = None,
    ) -> None:
        """Talk to these nodes and no others: dial new ones, hang up on removed ones, redial those whose
        address changed. The node's own id is left out. `disks`: what data they must come with; a node that
        is not there, or with "", may come with any. `regions`: others, by index. Who comes from one of
        them is welcome before its address is known, since it may be new there; its session opens once this
        node could dial it, too."""

    def send(self, node_id: int, message: Message, bulk: bool = False) -> bool:
        """Queue a message; it leaves at the end of the loop's turn. It is encoded here: what the caller
        changes afterwards is not sent. False: not connected or its queue is full, and the message is dropped.
        ValueError: it can never be sent, it is over frame_bytes_max. TypeError: msgpack cannot carry it."""

    def flush(self) -> None:
        """Write what is queued now, rather than at the end of the turn."""

    def is_up(self, node_id: int) -> bool:
        """Whether a session with it is open."""

    def version(self, node_id: int) -> int:
        """The protocol version spoken with a peer that is up; 0 if it is not."""

    def states(self) -> list[PeerState]:
        """All peers, by id."""


class Listener(Protocol):
    """A port that is open."""

    @property
    def port(self) -> int:
        """Its number."""

    def close(self) -> None:
        """Accept no more. Connections stay."""


class Accepting(Protocol):
    """Who is called for every connection that comes in; None: it is one too many."""

    def __call__(self) -> asyncio.BufferedProtocol | None:
        """What handles the connection."""


class Network(Protocol):
    """What carries bytes: TCP, or memory in a simulation. Transports are asyncio's; of them are used write,
    writelines, close, abort, is_closing, pause_reading, resume_reading, set_write_buffer_limits,
    get_write_buffer_size and get_extra_info("peername")."""

    async def listen(self, host: str, port: int, accepting: Accepting) -> Listener:
        """OSError: cannot."""

    async def connect(self, address: Address, protocol: asyncio.BufferedProtocol) -> None:
        """Connected, TLS included. OSError: no."""
