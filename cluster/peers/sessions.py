"""A session with one peer: when it opens, when it ends, and dialing in between.

Theory of operation. Each side dials the other; nothing decides between the two connections, because each is
used in one direction. The session is open when we have both: ours was welcomed, theirs said hello. The loss
of either ends it, and then both are closed, so that

* the other side learns of it at once, through whichever of the two still carries anything: a cut in one
  direction is seen by the side that hears nothing, and told through the reset that it sends;
* no message of one session arrives in the next.

A peer that dials us is there, so it is dialed without waiting. Not so after connections that did not last:
two that break each other's sessions (one's address still leads to an older process, say) would go round and
round.

The two sides do not open a session at the same moment. Who is first may send at once; the other holds what it
reads until its own welcome is there. If that never comes, then the connection it dialed ends, and with it the
session of the first.

A new hello on top of an open session means that the peer has lost its side of it (or its process): the old
session ends before the new one begins. This cannot go on for ever: a side whose old connections are gone on
the other side, too, loses nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from cluster.peers.abroad import called, label
from cluster.peers.contract import Address, PeerError, PeerState
from cluster.peers.links import Accepted, Dialed

if TYPE_CHECKING:
    from cluster.peers.stream import StreamPeers

_log: Final = structlog.get_logger("peers")

IN_VAIN_MAX: Final = 2  # both sides may lose the first ones as they find each other


class Session:
    """All that this node has with one peer, up or not, until the peer is removed.

    `address`: None, and nobody is dialed, of a node of another region that came before its address was heard
    of. It is let go again when it hangs up."""

    def __init__(self, peers: StreamPeers, node_id: int, address: Address | None) -> None:
        self.peers = peers
        self.node_id = node_id
        self.address = address
        self.dialed: Dialed | None = None  # welcomed
        self.accepted: Accepted | None = None  # has said hello
        self.up = False
        self._over = False  # removed, or the node closes
        self._problem = ""
        self._wake = asyncio.Event()
        self._dialing: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------ dialing

    def start(self) -> None:
        """Begin to dial, unless that was begun, or nobody knows where."""
        if self._dialing is not None or self.address is None:
            return
        self._dialing = asyncio.get_running_loop().create_task(self._dial(), name=f"dial {self.node_id}")
        self._dialing.add_done_callback(self._dialed_last)

    async def _dial(self) -> None:
        assert self.address is not None, "an address stays"
        limits = self.peers.limits
        loop = asyncio.get_running_loop()
        wait_s = limits.backoff_min_s
        in_vain = 0  # connections in a row that were welcomed and did not last
        while not self._over:
            self._wake.clear()
            link = Dialed(self.peers, self)
            try:
                async with asyncio.timeout(limits.handshake_s):
                    await self.peers.network.connect(self.address, link)
                    await link.welcomed
                began = loop.time()
                await link.gone
                if self._over:
                    return
                in_vain += 1
                if loop.time() - began > limits.backoff_max_s:
                    wait_s = limits.backoff_min_s
                    in_vain = 0
            except TimeoutError:
                self._dial_failed(f"no answer within {limits.handshake_s:g} s")
            except (OSError, PeerError) as error:
                self._dial_failed(str(error))
            finally:
                link.drop()
            pause_s = wait_s * self.peers.rng.uniform(0.5, 1.0)
            if in_vain > IN_VAIN_MAX:
                await asyncio.sleep(pause_s)
                wait_s = min(wait_s * 2, limits.backoff_max_s)
                continue
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
            except TimeoutError:
                wait_s = min(wait_s * 2, limits.backoff_max_s)

    def _dialed_last(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # Not to be lost with the task: the process decides what an error nobody foresaw means.
            message = f"dialing {called(self.node_id)} failed"
            context = {"message": message, "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)

    def _dial_failed(self, why: str) -> None:
        if why != self._problem:
            assert self.address is not None, "it was dialed"
            host, port = self.address
            _log.warning("cannot reach a node", node=label(self.node_id), address=f"{host}:{port}", why=why)
            self._problem = why

    # ------------------------------------------------------------------ from the links

    def dialed_open(self, link: Dialed) -> None:
        """We were welcomed."""
        assert self.dialed is None, "one connection is dialed at a time"
        if self._over:
            link.drop()
            return
        if self.accepted is not None and _incarnation(self.accepted) != _incarnation(link):
            accepted, self.accepted = self.accepted, None
            accepted.drop()
        self.dialed = link
        self._problem = "it has not dialed this node"
        self._open_if_both()

    def accepted_open(self, link: Accepted) -> None:
        """They said hello, and were welcomed."""
        link.session = self
        if self.accepted is not None:
            self._lose("it dialed again")
        if self.dialed is not None and _incarnation(self.dialed) != _incarnation(link):
            self._lose("it was restarted")
        if self._over:  # the receiver may have removed the peer when it heard that it is down
            link.drop()
            return
        self.accepted = link
        if self.dialed is None:
            self._wake.set()
        self._open_if_both()

    def is_taken(self, incarnation: str) -> bool:
        """Whether another process of this node talked to us a moment ago. The sockets of a process that dies
        are closed before the next one dials; where the machine died, silence tells."""
        accepted = self.accepted
        return accepted is not None and accepted.talks and _incarnation(accepted) != incarnation

    def shows(self, disk: str) -> bool:
        """Whether the peer, if it is connected, comes with this data; "" is any."""
        accepted = self.accepted
        return not disk or accepted is None or accepted.identity is None or accepted.identity.disk == disk

    def link_lost(self, link: Dialed | Accepted, why: str) -> None:
        """One of ours, or one that was replaced long ago."""
        if not self._over and (link is self.dialed or link is self.accepted):
            self._lose(why)
            if self.address is None:
                self.peers.unknown_left(self)

    def _open_if_both(self) -> None:
        if self.up or self.dialed is None or self.accepted is None:
            return
        self.up = True
        self._problem = ""
        identity = self.dialed.identity
        assert identity is not None, "a welcome names who is there"
        _log.info("a node is up", node=label(self.node_id), name=identity.name, version=self.dialed.version)
        accepted = self.accepted
        self.peers.opened(self, self.dialed, identity.incarnation)
        if accepted is self.accepted:  # not lost on the way
            accepted.release()

    def _lose(self, why: str) -> None:
        dialed, self.dialed = self.dialed, None
        accepted, self.accepted = self.accepted, None
        was_up, self.up = self.up, False
        if dialed is not None:
            dialed.drop()
        if accepted is not None:
            accepted.drop()
        self._problem = why
        if was_up:
            if not self._over:
                _log.warning("a node is down", node=label(self.node_id), why=why)
            self.peers.ended(self)

    # ------------------------------------------------------------------ from the node

    def tick(self) -> None:
        """A quarter of a second or so has passed."""
        if self.dialed is not None:
            self.dialed.tick()
        if self.accepted is not None:
            self.accepted.tick()

    def remove(self) -> None:
        """Hang up and dial no more; the receiver hears `down` if it was up."""
        self._over = True
        if self._dialing is not None:
            self._dialing.cancel()
        self._lose("the node is no peer any more")

    async def close(self, grace_s: float) -> None:
        """Hang up once what is queued is out; the receiver hears nothing."""
        self._over = True
        accepted = self.accepted
        if self.dialed is not None and accepted is not None:
            # The peer ends the session as soon as it sees the end of either connection, and then reads no
            # more. So it is for the peer to close the other one, when it has read everything.
            self.dialed.finish()
            await asyncio.wait([accepted.gone], timeout=grace_s)
        self.up = False
        if self._dialing is not None:
            self._dialing.cancel()
            await asyncio.gather(self._dialing, return_exceptions=True)
        self._lose("this node closes")

    def state(self) -> PeerState:
        """For people."""
        link = self.dialed or self.accepted
        identity = link.identity if link is not None else None
        return PeerState(
            node_id=self.node_id,
            address=self.address,
            up=self.up,
            name=identity.name if identity is not None else "",
            incarnation=identity.incarnation if identity is not None else "",
            version=self.dialed.version if self.up and self.dialed is not None else 0,
            queued_bytes=self.dialed.queued_bytes if self.dialed is not None else 0,
            bulk_queued_bytes=self.dialed.bulk_queued_bytes if self.dialed is not None else 0,
            problem="" if self.up else self._problem,
        )


def _incarnation(link: Dialed | Accepted) -> str:
    assert link.identity is not None, "an open connection knows who is at the other end"
    return link.identity.incarnation
