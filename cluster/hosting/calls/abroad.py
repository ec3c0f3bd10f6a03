"""Calls for a namespace that another region serves: sent there as they came, and answered with what it says.

Theory of operation. A call that its shard refuses (`NotActive`) had no effect, so it may be done elsewhere.
The node that has the client sends it to a node of the region named, with the client's deadline and by the
machinery that sends calls to leaders (forward.py); that node serves it as if the client were its own. One
hop between regions at most: a region that does not serve the namespace either sends the call back with the
version that it knows. If that is the larger one, the call goes where that leads, once; otherwise, and after
that, it waits here until this region hears more (parked.py). Both learn: a version that came with a call,
or with a refusal, is remembered, and who knows a larger one is believed.

A worker's connection is known in the other region by the node that has it: there, too, what a worker held is
handed to others as soon as it is gone, or as the link between the regions is.

Invariant: a call is never under way in two regions, unless its way back is lost; then it is tried again by
the rules for leaders that are lost (request ids, or an error that says that it may have been done).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import structlog

from cluster.hosting.calls.deeds import METHOD as DEED
from cluster.hosting.calls.remote import (
    ABROAD,
    FOREIGN,
    HUNG_UP,
    KINDS_ABROAD,
    ForeignCall,
    RemoteCall,
    address_of,
    region_of,
)
from cluster.hosting.shards.gates import NotActive
from history_store.rare import reached
from replication.failover import parking
from replication.failover.gates import Admission, Verdict
from replication.versions import owner_of

if TYPE_CHECKING:
    from cluster.frontend.contract import Connection
    from cluster.hosting.calls.attempt import Attempt
    from cluster.hosting.calls.forward import Forward

log = structlog.get_logger("abroad")

SERVICES = ("/temporal.api.workflowservice.", DEED)  # what other regions may ask for
HANDED_MAX = 4_096  # tasks whose answers are remembered, in case they came to nobody


class Regions(Protocol):
    """The other regions (region/regions.py)."""

    @property
    def own(self) -> int:
        """This region's index."""

    def name_of(self, index: int) -> str:
        """A region's name."""

    def nodes_up(self, index: int) -> list[int]:
        """Its nodes that can be reached from here."""

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        """False: it cannot be sent."""


class Route(NamedTuple):
    """Where a call went."""

    namespace_id: str
    region: int
    version: int  # that it was sent by
    redirects: int


class Abroad:
    """What a node sends to other regions, and does for them."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._known: dict[str, int] = {}  # namespace id -> the largest version that another region named
        self._met: dict[int, set[int]] = {}  # number of a client's connection -> addresses that know of it
        self._workers: set[Connection] = set()  # whose polls were sent there
        self._handed: OrderedDict[tuple[int, int], Callable[[], None]] = OrderedDict()

    # ---- the node that has the client

    def not_active(self, attempt: Attempt, error: NotActive) -> None:
        """A call was refused since its namespace is not served here."""
        if attempt.done:
            return
        call = attempt.call
        if isinstance(call, RemoteCall):
            call.elsewhere(error, in_doubt=attempt.again)
        elif isinstance(call, ForeignCall) and error.version > call.version:
            reached("call of another region sent back")
            call.elsewhere(error, in_doubt=attempt.again)
        elif isinstance(call, ForeignCall) or error.verdict is not Verdict.FORWARD:
            # By the word of the region that sent it, it is served here: that has not come to this node yet.
            self._forward.parking.park(attempt, error.namespace_id, error.version)
        else:
            self._go(attempt, error.namespace_id, error.region, error.version, redirects=0)

    def _go(self, attempt: Attempt, namespace_id: str, region: int, version: int, *, redirects: int) -> None:
        regions = self._forward.node.regions
        assert regions is not None, "who is told of another region knows of regions"
        known = self._known.get(namespace_id, 0)
        if known > version:
            region, version = owner_of(known), known
        if region == regions.own:
            self._forward.parking.park(attempt, namespace_id, version)  # its shard is yet to hear
            return
        attempt.route = Route(namespace_id, region, version, redirects)
        nodes = regions.nodes_up(region)
        if nodes and self._forward.send_abroad(attempt, address_of(region, self._forward.node.choose(nodes))):
            return
        reached("no way to the active region")
        if attempt.is_poll:
            self._forward.parking.park(attempt, namespace_id, version)
        else:
            why = (
                f"region {regions.name_of(region)}, which serves the namespace, cannot be reached at present"
            )
            self._forward.later(attempt, f"{why}; whether an earlier try took effect is not known")

    def sent_back(self, attempt: Attempt, error: NotActive) -> None:
        """The region does not serve the namespace either."""
        route, regions = attempt.route, self._forward.node.regions
        assert route is not None, "it was sent there"
        assert regions is not None, "by way of them"
        self.learn(error.namespace_id, error.version)
        to = parking.redirected(
            parking.Route(route.region, route.version), attached=error.version, redirects=route.redirects
        )
        if to.region in (0, regions.own):
            self._forward.parking.park(attempt, error.namespace_id, to.version)
        else:
            reached("call redirected to a third region")
            self._go(attempt, error.namespace_id, to.region, to.version, redirects=route.redirects + 1)

    def learn(self, namespace_id: str, version: int) -> None:
        """Another region says so."""
        if namespace_id and version > self._known.get(namespace_id, 0):
            self._known[namespace_id] = version

    def met(self, attempt: Attempt, address: int) -> None:
        """A node of another region hears of a client's connection."""
        connection = attempt.connection
        self._met.setdefault(self._forward.number_of(connection), set()).add(address)
        if attempt.is_poll and connection not in self._workers:
            self._workers.add(connection)
            connection.on_close(lambda: self._workers.discard(connection))

    def works_there(self, connection: Connection) -> bool:
        """Whether polls that came on a connection were sent to another region."""
        return connection in self._workers

    def hung_up(self, connection: int) -> None:
        """The client has gone."""
        for address in sorted(self._met.pop(connection, ())):
            self._forward.tell(address, [HUNG_UP, connection])

    # ---- the region that is asked

    def may_ask(self, method: str) -> bool:
        """Whether a call of another region may mean this method."""
        return method.startswith(SERVICES)

    def handed(self, address: int, number: int, undone: Callable[[], None]) -> None:
        """An answer is on its way that is not to be lost."""
        self._handed[address, number] = undone
        if len(self._handed) > HANDED_MAX:
            self._handed.popitem(last=False)

    def undelivered(self, address: int, number: int) -> None:
        """The answer found nobody."""
        undone = self._handed.pop((address, number), None)
        if undone is not None:
            reached("task of another region's poll came to nobody")
            undone()

    # ---- links

    def send(self, address: int, message: list[Any]) -> bool:
        """To a node of another region."""
        regions = self._forward.node.regions
        if regions is None:
            return False
        return regions.send(region_of(address), address % FOREIGN, [message[0] + ABROAD, *message[1:]])

    def reaches(self, address: int) -> bool:
        """Whether a node of another region can be talked to."""
        regions = self._forward.node.regions
        return regions is not None and address % FOREIGN in regions.nodes_up(region_of(address))

    def received(self, region: int, node_id: int, message: list[Any]) -> None:
        """A message of a node of another region, of `KINDS_ABROAD`."""
        assert message[0] in KINDS_ABROAD, f"kind {message[0]} is no call"
        self._forward.received(address_of(region, node_id), [message[0] - ABROAD, *message[1:]])

    def down(self, region: int, node_id: int) -> None:
        """It cannot be talked to any more."""
        address = address_of(region, node_id)
        for addresses in self._met.values():
            addresses.discard(address)
        for key in [key for key in self._handed if key[0] == address]:
            del self._handed[key]
        self._forward.down(address)

    def way_lost(self, attempt: Attempt) -> None:
        """It was under way when the link broke, and may be tried again."""
        assert attempt.route is not None, "it was sent there"
        attempt.until = self._forward.patience(attempt.deadline)
        self._forward.later(attempt)

    def refusal(self, fields: list[Any]) -> NotActive:
        """What `_Sent.elsewhere` said."""
        namespace_id, verdict, region, version = fields
        return NotActive(namespace_id, Admission(Verdict(verdict), region, version))
