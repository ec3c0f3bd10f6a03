"""Tasks for polls of other nodes: the matching room's exchange, joined to shards, polls and the network.

A task that is lent is started here for a `RemotePoll`; its answer travels to the node that has the worker.
The receipt that travels with it names the task, so that either side can see to it that no task is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from cluster.hosting.tasks.dispatch import WORKFLOW, give_back
from cluster.hosting.tasks.starts import named_for
from cluster.matching.exchange import Exchange
from history_store.engine.errors import ServiceError

if TYPE_CHECKING:
    from cluster.frontend.contract import Connection
    from cluster.hosting.node import Node
    from cluster.matching.contract import NodeId, Poller, Task

log = structlog.get_logger("matching")

EXCHANGE = 50  # [EXCHANGE, name, field, ...]
AGAIN_S = 1.0  # after a message could not be sent to a node that is up


class RemotePoll:
    """A poll of another node, for which a task of ours is started."""

    __slots__ = ("_host", "_poll_id", "_told", "connection", "identity", "node", "node_id", "receipt")

    def __init__(
        self, host: ExchangeHost, node_id: int, poll_id: int, identity: str, connection: Connection
    ) -> None:
        self._host = host
        self._poll_id = poll_id
        self._told = False
        self.node = host.node
        self.node_id = node_id
        self.identity = identity
        self.connection = connection
        self.receipt: list[Any] = []

    @property
    def open(self) -> bool:
        """Whether somebody still listens, as far as is known here."""
        return not self._told and not self.connection.closed

    def name_start(self) -> str:
        """The request id of a start for this poll: it says which node has it."""
        return named_for(self.node.new_id(), self.node_id, self.node.region)

    def answer(self, body: bytes) -> None:
        """Send the worker its task; with nothing it goes on waiting."""
        if not body:
            self.wait_on()
        elif not self._told:
            self._told = True
            if not self._host.exchange.deliver(self.node_id, self._poll_id, body, self.receipt):
                self._host.undelivered(self.node_id, self.receipt, certain=True)

    def wait_on(self) -> None:
        """There is nothing for it after all."""
        if not self._told:
            self._told = True
            self._host.exchange.void(self.node_id, self._poll_id)


class Connections(Protocol):
    """Clients' connections, as nodes speak of them (calls/forward.py)."""

    def number_of(self, connection: Connection) -> int:
        """By which other nodes know a client's connection; they hear when it closes."""

    def connection_of(self, node_id: int, number: int, peer: str) -> Connection:
        """A client's connection to another node, as one object for all its calls."""


class ExchangeHost:
    """What the exchange asks of its node (`cluster.matching.contract.Host`)."""

    def __init__(self, node: Node, connections: Connections, send: Callable[[int, list[Any]], bool]) -> None:
        self.node = node
        self._connections = connections
        self._send = send
        self._broken: set[int] = set()  # a message to it was lost: nothing may follow before a new beginning
        self.exchange = Exchange(node.matching, node.clock, self)

    # ---- peers

    def up(self, node_id: int) -> None:
        """A peer can be talked to."""
        self._broken.discard(node_id)
        self.exchange.peer_up(node_id)

    def down(self, node_id: int) -> None:
        """A peer is gone."""
        self._broken.add(node_id)
        self.exchange.peer_down(node_id)

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of the exchange."""
        try:
            self.exchange.received(node_id, message[1:])
        except ServiceError as error:  # the shard's lead moves, or its disk is full: the task waits again
            log.info("a task could not be started for another node", node=node_id, why=error.message)

    # ---- Host

    def send(self, node: NodeId, message: list[object]) -> None:
        """In order, or not at all."""
        if node in self._broken:
            return
        if not self._send(node, [EXCHANGE, *message]):
            self._broken.add(node)
            self.node.loop.call_soon(self._begin_anew, node)

    def _begin_anew(self, node: NodeId) -> None:
        log.warning("messages to a node were lost; exchanging tasks with it anew", node=node)
        self.exchange.peer_down(node)
        self.node.loop.call_later(AGAIN_S, self._try_again, node)

    def _try_again(self, node: NodeId) -> None:
        if node in self._broken and node in self.node.peers():
            self.up(node)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> object:
        """Once."""
        return self.node.loop.call_later(delay_s, callback)

    def poll_fields(self, poller: Poller) -> list[object]:
        """Who polls, and on which connection."""
        connection: Any = poller.connection
        return [poller.identity, self._connections.number_of(connection), connection.peer]

    def start_lent(self, task: Task, node: NodeId, poll_id: int, fields: list[object]) -> bool:
        """Start a task for a poll of another node."""
        identity, number, peer = fields[:3]
        connection = self._connections.connection_of(node, number, peer)  # type: ignore[arg-type]
        self.node.watch(connection)
        poll: Any = RemotePoll(self, node, poll_id, identity, connection)  # type: ignore[arg-type]
        return task.start(poll)

    def answer(self, poller: Poller, node: NodeId, body: bytes, receipt: object) -> bool:  # noqa: ARG002
        """A poll of ours gets what another node started for it. That node watches the worker's connection."""
        poll: Any = poller
        if not poll.open:
            return False
        takeovers = self.node.takeovers
        if takeovers is not None and isinstance(receipt, list) and len(receipt) == 6:
            named: Any = tuple(receipt)
            if not takeovers.receipts.give(named, self.node.clock.now_ns()):
                poll.wait_on()  # its shard has another leader by now, which gave the task to somebody else
                return True
        poll.answer(body)
        return True

    def undelivered(self, node: NodeId, receipt: object, *, certain: bool) -> None:
        """What was started for a poll of `node` did not arrive there."""
        if not isinstance(receipt, list) or len(receipt) not in (1, 6):
            return  # of another release
        try:
            if len(receipt) == 1:
                self.node.queries.undelivered(receipt[0])
                return
            namespace_id, workflow_id, run_id, kind, stamp, ref = receipt
            shard = self.node.shard_of(namespace_id, workflow_id)
            if certain or kind == WORKFLOW:
                give_back(shard, namespace_id, workflow_id, run_id, kind, stamp, ref)
            elif self.node.takeovers is not None:  # the worker may have it: that node knows
                self.node.takeovers.doubt(node, shard, (namespace_id, workflow_id, run_id, kind, stamp, ref))
        except ServiceError as error:
            log.info("a task that reached nobody waits for its time-out", node=node, why=error.message)
