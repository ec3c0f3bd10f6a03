"""Other regions: which there are, which of their nodes can be reached, and messages to them.

The meta group's table has a record of each (`RemoteRecord`), with the nodes that it had when it was heard
of last; every node of this region has sessions with every node there, as with its own (cluster/peers). So
what is above says `send(index, node, message)`, and hears what comes from there as a `Foreign`.

The records are kept fresh by whoever leads the meta group: every few seconds, and whenever a session opens,
it asks one node of each region which nodes there are now, and writes what changed. Who is asked answers
when it is current itself; an answer counts only if it is that to the last question, so that an old one
never replaces a newer one. A region of which nobody can be reached keeps its record. It is called as a
stranger then, at an address of that record, and told who is here: it may know other addresses of this
region, or not know it yet, where an introduction was left half done.

Invariant: an index is one region's, for ever; a message that is received from a region is that region's.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import structlog

from cluster.hosting.config.addresses import split_address
from cluster.hosting.region.administration import ask
from cluster.hosting.region.introducing import read_card
from cluster.membership import RemoteRecord, card, plan_refresh
from cluster.peers.abroad import Other, abroad
from cluster.peers.contract import PeerError

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from cluster.hosting.node import Node
    from cluster.hosting.region.joining import Asker, Told
    from cluster.hosting.region.steward import Steward
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.peers.contract import Address, Peers
    from history_store.engine.errors import ServiceError

log = structlog.get_logger("regions")

# [ASK_CARD, number]: which nodes are there? [CARD, number, card]: the answer to that question.
ASK_CARD, CARD = 60, 61
KINDS: Final = range(60, 64)

REFRESH_S: Final = 3.0
CALL_S: Final = 10.0  # between calls to a region of which nobody can be reached


class Foreign(Protocol):
    """Who hears of nodes of other regions, and from them. Called on the loop; must not block."""

    def message(self, region: int, node: int, message: list[Any], /) -> None:
        """Of a node that is up; in the order in which it sent them."""

    def up(self, region: int, node: int, /) -> None:
        """It can be talked to. Before its first message."""

    def down(self, region: int, node: int, /) -> None:
        """It cannot: what was sent and not answered is unknown."""


class Regions:
    """One per node."""

    def __init__(
        self,
        node: Node,
        replicas: Replicas,
        steward: Steward,
        peers: Peers,
        asker: Asker,
        rng: random.Random,
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._steward = steward
        self._peers = peers
        self._asker = asker
        self._rng = rng
        self._timer: asyncio.TimerHandle | None = None
        self._asked = 0  # questions, ever
        self._last: dict[int, int] = {}  # by region: the last question
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._called_at: dict[int, float] = {}
        self.refusals: dict[int, str] = {}  # by region: why it would not have us, when it was called last

    # ---- which there are

    @property
    def own(self) -> int:
        """The index of this region; 0 until it is made, as far as is known here."""
        region = self._replicas.table.region
        return region.index if region is not None else 0

    def others(self) -> list[int]:
        """The indices of the regions that this one works with, ascending."""
        return [remote.index for remote in self._replicas.table.others()]

    def name_of(self, index: int) -> str:
        """The name of a region, this one or another, removed or not; "" if nobody ever had that index."""
        table = self._replicas.table
        if table.region is not None and table.region.index == index:
            return table.region.region
        remote = table.remotes.get(index)
        return remote.name if remote is not None else ""

    def index_of(self, name: str) -> int:
        """The index of a region, this one or another, removed or not; 0 if there never was one."""
        table = self._replicas.table
        if table.region is not None and table.region.region == name:
            return table.region.index
        remote = table.other_named(name)
        return remote.index if remote is not None else 0

    # ---- who is there

    def nodes_up(self, index: int) -> list[int]:
        """The nodes of another region that can be reached from this node, ascending."""
        remote = self._replicas.table.remotes.get(index)
        if remote is None or remote.removed:
            return []
        return [one.id for one in remote.nodes if self._peers.is_up(abroad(index, one.id))]

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        """A message leaves with this turn's frame, or, `bulk`, when there is little else. False: it does not.

        As `Peers.send`: it may be lost if the session ends, and is otherwise received in order.
        """
        return self._peers.send(abroad(index, node), message, bulk)

    def addresses(self) -> dict[int, Address]:
        """Where the nodes of other regions are, by what they are called here."""
        return {
            abroad(remote.index, one.id): split_address(one.peers_address)
            for remote in self._replicas.table.others()
            for one in remote.nodes
        }

    def known(self) -> Mapping[int, Other]:
        """What nodes of other regions have to say of themselves, by index."""
        return {
            remote.index: Other(remote.name, remote.cluster_id) for remote in self._replicas.table.others()
        }

    # ---- keeping the records fresh

    def start(self) -> None:
        """Begin."""
        self._timer = self._node.loop.call_later(REFRESH_S, self._turn)

    def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._calls.values():
            task.cancel()

    def up(self, index: int, node: int) -> None:
        """A session has opened."""
        self.refusals.pop(index, None)
        if self._node.meta.group.leading:
            self._ask(index, node)

    def _turn(self) -> None:
        self._timer = self._node.loop.call_later(REFRESH_S, self._turn)
        if not self._node.meta.group.leading:
            self.refusals.clear()
            return
        for index in self.others():
            up = self.nodes_up(index)
            if up:
                self._ask(index, self._rng.choice(up))
            elif self._node.loop.time() - self._called_at.get(index, -CALL_S) >= CALL_S:
                self._call(index)

    def _ask(self, index: int, node: int) -> None:
        self._asked += 1
        self._last[index] = self._asked
        self.send(index, node, [ASK_CARD, self._asked])

    def received(self, index: int, node: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        if message[0] == ASK_CARD:

            def current(error: ServiceError | None) -> None:
                if error is None:  # or there is no leader here now, and the next question may find one
                    told = msgspec.to_builtins(card(self._replicas.table))
                    self.send(index, node, [CARD, message[1], told])

            self._node.meta.group.when_current(current)
        elif message[0] == CARD and self._last.get(index) == message[1]:
            self._written(index, read_card(message[2]))

    def _written(self, index: int, said: RemoteRecord) -> None:
        """Write down what changed, if this node may."""
        if said.index != index or not self._node.meta.group.leading or self._steward.changing:
            return  # it is asked again soon
        plan = plan_refresh(self._replicas.table, said)
        if plan is not None:
            self._steward.propose(plan)

    # ---- calling as a stranger

    async def ask(self, address: Address, request: bytes) -> Told:
        """Put a question to whoever leads the region of which a node is at this address. PeerError."""
        return await self._asker.ask(address, request)

    def _call(self, index: int) -> None:
        if index in self._calls:
            return
        self._called_at[index] = self._node.loop.time()
        nodes = self._replicas.table.remotes[index].nodes
        address = split_address(self._rng.choice(nodes).peers_address)
        task = self._calls[index] = self._node.loop.create_task(self._introduce(index, address), name="call")
        task.add_done_callback(partial(self._called, index))

    async def _introduce(self, index: int, address: Address) -> None:
        """Tell a region of which nobody can be reached who is here."""
        try:
            told = await self.ask(address, ask("met", remote=card(self._replicas.table)))
        except PeerError:
            return  # it is down, as far as can be seen from here
        if told.final:
            if self.refusals.get(index) != told.message:
                log.warning(
                    "another region will not have this one", region=self.name_of(index), why=told.message
                )
            self.refusals[index] = told.message
        elif not told.code:
            self.refusals.pop(index, None)
            self._written(index, read_card(msgspec.json.decode(told.body)["card"]))

    def _called(self, index: int, task: asyncio.Task[None]) -> None:
        del self._calls[index]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a call to another region failed", region=self.name_of(index), error=repr(error))
