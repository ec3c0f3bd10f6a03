"""A node's way to the others, over any network that carries streams of bytes: TCP, or simulated memory."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from typing import Final

import structlog

from cluster.peers import handshake
from cluster.peers.abroad import FIRST, Other, home
from cluster.peers.contract import (
    VERSIONS,
    Address,
    Identity,
    Limits,
    Listener,
    Message,
    Network,
    PeerState,
    Receiver,
    StrangerReceiver,
)
from cluster.peers.links import Accepted, Dialed
from cluster.peers.sessions import Session
from cluster.peers.strangers import Stranger

_log: Final = structlog.get_logger("peers")

_CLOSE_GRACE_S: Final = 1.0
# Lines about callers who are not of the region: whoever finds the port must not fill the disk.
_COMPLAINTS_MAX: Final = 10
_COMPLAINTS_S: Final = 10.0
# The same sentence is repeated in the log no sooner than after so long; so many are remembered.
_REFUSALS_S: Final = 60.0
_REFUSALS_MAX: Final = 100


class StreamPeers:
    """contract.Peers.

    identity: of this process; its node_id is not 0. rng: for the spread of waiting times. stranger: answers
    callers that are no nodes; None refuses them. versions: of the protocol, lowest and highest."""

    def __init__(
        self,
        identity: Identity,
        receiver: Receiver,
        network: Network,
        *,
        rng: random.Random,
        limits: Limits | None = None,
        stranger: StrangerReceiver | None = None,
        versions: tuple[int, int] = VERSIONS,
    ) -> None:
        assert identity.node_id > 0, "only a node has peers; who has no id yet asks with ask_stranger"
        assert identity.incarnation, "a process must be told from the one before"
        assert 1 <= versions[0] <= versions[1], "versions are a range"
        self.identity = identity
        self.receiver = receiver
        self.network = network
        self.rng = rng
        self.limits = limits or Limits()
        self.versions = versions
        self._stranger_receiver = stranger
        self._sessions: dict[int, Session] = {}
        self._disks: Mapping[int, str] = {}
        self._regions: Mapping[int, Other] = {}
        self._up: dict[int, Dialed] = {}
        self._to_flush: list[Dialed] = []
        self._arrivals: dict[Accepted, None] = {}  # have not said who they are
        self._strangers: dict[Accepted, Stranger] = {}
        self._listener: Listener | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self.closed = False
        self._refusals: dict[str, float] = {}
        self._refused = _Lines("refused a connection")
        self._complaints = _Lines("cut off a caller")
        self._loop: asyncio.AbstractEventLoop

    # ------------------------------------------------------------------ contract.Peers

    @property
    def port(self) -> int:
        """The port it listens on; after start."""
        assert self._listener is not None, "it listens after start"
        return self._listener.port

    async def start(self, host: str, port: int) -> None:
        """Listen, and dial the peers. OSError: cannot listen."""
        assert self._listener is None, "it starts once"
        assert not self.closed, "it starts once"
        self._loop = asyncio.get_running_loop()
        self._listener = await self.network.listen(host, port, self._accepting)
        for session in self._sessions.values():
            session.start()
        self._ticking = self._loop.call_later(self.limits.tick_s, self._tick)

    async def close(self) -> None:
        """Send what is queued, hang up, listen no more. The receiver hears nothing from its begin on."""
        if self.closed:
            return
        self.closed = True
        if self._listener is not None:
            self._listener.close()
        if self._ticking is not None:
            self._ticking.cancel()
        self.flush()
        self._up.clear()
        for link in [*self._arrivals, *self._strangers]:
            link.drop()
        await asyncio.gather(*(session.close(_CLOSE_GRACE_S) for session in self._sessions.values()))
        self._sessions.clear()

    def set_peers(
        self,
        addresses: dict[int, Address],
        disks: Mapping[int, str] | None = None,
        regions: Mapping[int, Other] | None = None,
    ) -> None:
        """Talk to these nodes and no others."""
        assert not self.closed, "closed"
        before, self._regions = self._regions, dict(regions or {})
        self._disks = disks or {}
        wanted = {node: address for node, address in addresses.items() if node != self.identity.node_id}
        assert all(node > 0 and (node < FIRST or home(node)[0] in self._regions) for node in wanted)
        for node_id, session in list(self._sessions.items()):
            index, _ = home(node_id)
            # A node that was new, and whose address is known now, goes on with the connection it dialed.
            stays = wanted.get(node_id) == session.address or session.address is None
            if not stays or self._regions.get(index) != before.get(index) or not self._shows(session):
                del self._sessions[node_id]
                session.remove()
        for node_id, address in wanted.items():
            if node_id not in self._sessions:
                self._sessions[node_id] = Session(self, node_id, address)
            session = self._sessions[node_id]
            session.address = address
            if self._listener is not None:
                session.start()

    def _shows(self, session: Session) -> bool:
        return session.shows(self._disks.get(session.node_id, ""))

    def region_of(self, index: int) -> Other:
        """What nodes of a region say of it; 0 is the own one."""
        return self._regions[index] if index else Other(self.identity.region, self.identity.cluster_id)

    def send(self, node_id: int, message: Message, bulk: bool = False) -> bool:
        """Queue a message; it leaves at the end of the loop's turn."""
        link = self._up.get(node_id)
        if link is None:
            return False
        accepted = link.send_bulk(message) if bulk else link.send(message)
        if not link.queued:
            link.queued = True
            if not self._to_flush:
                self._loop.call_soon(self.flush)
            self._to_flush.append(link)
        return accepted

    def flush(self) -> None:
        """Write what is queued now, rather than at the end of the turn."""
        if self._to_flush:
            links, self._to_flush = self._to_flush, []
            for link in links:
                link.flush()

    def is_up(self, node_id: int) -> bool:
        """Whether a session with it is open."""
        return node_id in self._up

    def version(self, node_id: int) -> int:
        """The protocol version spoken with a peer that is up; 0 if it is not."""
        link = self._up.get(node_id)
        return link.version if link is not None else 0

    def states(self) -> list[PeerState]:
        """All peers, by id."""
        return [session.state() for _, session in sorted(self._sessions.items())]

    # ------------------------------------------------------------------ from the sessions

    def opened(self, session: Session, link: Dialed, incarnation: str) -> None:
        """A session is open."""
        self._up[session.node_id] = link
        self.receiver.up(session.node_id, incarnation)

    def ended(self, session: Session) -> None:
        """A session that was open is over."""
        self._up.pop(session.node_id, None)
        if not self.closed:
            self.receiver.down(session.node_id)

    def unknown_left(self, session: Session) -> None:
        """A node of another region, whose address is not known, is not there any more."""
        if self._sessions.get(session.node_id) is session:
            del self._sessions[session.node_id]

    def _tick(self) -> None:
        self._ticking = self._loop.call_later(self.limits.tick_s, self._tick)
        for session in list(self._sessions.values()):
            session.tick()

    # ------------------------------------------------------------------ from those who call

    def _accepting(self) -> Accepted | None:
        if self.closed or len(self._arrivals) >= self.limits.handshakes_max:
            return None
        return Accepted(self)

    def arrived(self, link: Accepted) -> None:
        """It is connected."""
        if self.closed:
            link.drop()
        else:
            self._arrivals[link] = None

    def departed(self, link: Accepted) -> None:
        """It is gone."""
        self._arrivals.pop(link, None)
        stranger = self._strangers.pop(link, None)
        if stranger is not None:
            stranger.gone = True

    def objection(self, said: handshake.Hello) -> str:
        """Why not; "" if we will talk."""
        strangers = self._stranger_receiver is not None
        sentence = handshake.objection(
            self.identity, self.versions, said, self._sessions, self._disks, strangers, self._regions
        )
        if sentence:
            return sentence
        caller = said.identity
        if caller.node_id:
            session = self._sessions.get(handshake.number_of(self.identity, caller))
            if session is not None:
                taken = session.is_taken(caller.incarnation)
                return handshake.two_processes(caller, self.identity) if taken else ""
            if sum(one.address is None for one in self._sessions.values()) >= self.limits.newcomers_max:
                return (
                    f"node {self.identity.name!r} waits for the addresses of too many nodes: try again later"
                )
            return ""
        if len(self._strangers) >= self.limits.strangers_max:
            return f"node {self.identity.name!r} is busy with {len(self._strangers)} callers: try again later"
        return ""

    def identified(self, link: Accepted) -> None:
        """It said who it is, and was welcomed."""
        self._arrivals.pop(link, None)
        assert link.identity is not None, "identified"
        if link.stranger:
            self._strangers[link] = Stranger(link)
        else:
            number = handshake.number_of(self.identity, link.identity)
            session = self._sessions.get(number)
            if session is None:  # of another region, and new there
                session = self._sessions[number] = Session(self, number, None)
            session.accepted_open(link)

    def stranger_message(self, link: Accepted, message: Message) -> None:
        """A stranger asks."""
        assert self._stranger_receiver is not None, "strangers are welcome"
        self._stranger_receiver(self._strangers[link], message)

    def refused(self, host: str, sentence: str) -> None:
        """A caller, who will try again and again."""
        now = self._loop.time()
        if now - self._refusals.get(sentence, -math.inf) < _REFUSALS_S:
            return
        if len(self._refusals) >= _REFUSALS_MAX:
            self._refusals.clear()
        self._refusals[sentence] = now
        self._refused.write(now, host, sentence)

    def complain(self, host: str, why: str) -> None:
        """About a caller that never said who it is."""
        if not self.closed:
            self._complaints.write(self._loop.time(), host, why)


class _Lines:
    """Lines of one kind in the log: so many in a while, and then how many more there were."""

    def __init__(self, event: str) -> None:
        self._event = event
        self._count = 0
        self._since = 0.0

    def write(self, now: float, host: str, why: str) -> None:
        if now - self._since > _COMPLAINTS_S:
            if self._count > _COMPLAINTS_MAX:
                _log.warning(f"{self._event}, and more", count=self._count - _COMPLAINTS_MAX)
            self._since = now
            self._count = 0
        self._count += 1
        if self._count <= _COMPLAINTS_MAX:
            _log.warning(self._event, caller=host, why=why)
