"""A call that came by way of another node, and the client's connection there, as handlers see them.

What travels between the two nodes is forward.py's. Nodes of other regions have addresses: numbers beyond
those of nodes, so that whatever is sent, served and remembered by node is so by address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from cluster.frontend.plain import PlainCall, PlainConnection

if TYPE_CHECKING:
    from cluster.hosting.calls.forward import Forward
    from cluster.hosting.shards.gates import NotActive
    from history_store.visibility.sql import Slots

# Peer messages between the two: [kind, ...]
CALL, CANCEL, ANSWER, ERROR, LOST, HUNG_UP, SCATTER, PART, ELSEWHERE, UNDELIVERED = range(10, 20)
MET = 26  # which run a call has met that named none, and waits for
KINDS = (*range(CALL, UNDELIVERED + 1), MET)
ABROAD = 80  # is added to the kind of a message that goes to another region
KINDS_ABROAD = tuple(kind + ABROAD for kind in KINDS)

FOREIGN = 1 << 32  # addresses from here on are of nodes of other regions

Metadata = Mapping[str, str | bytes]
Pairs = Iterable[tuple[str, str | bytes]]

CONSISTENCY, STRONG = "x-consistency", "strong"
MATTERING = (CONSISTENCY,)  # what handlers look at of the client's metadata: it goes where the call goes


def address_of(region: int, node_id: int) -> int:
    """Of a node of another region."""
    return region * FOREIGN + node_id


def region_of(address: int) -> int:
    """0: this one."""
    return address // FOREIGN


class RemoteConnection(PlainConnection):
    """A client's connection to another node."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[int, int], peer: str) -> None:
        super().__init__(peer)
        self.key = key


class _Sent(PlainCall):
    """What came by way of another node: its end is told there."""

    __slots__ = ("_forward", "_metadata", "_told", "connection", "node_id", "number", "run_id", "seen")

    def __init__(
        self, forward: Forward, node_id: int, number: int, method: str, request: bytes,
        deadline: float | None, connection: RemoteConnection, metadata: Metadata,
    ) -> None:  # fmt: skip
        super().__init__(method, request, deadline)
        self._forward = forward
        self._metadata = metadata
        self._told: list[tuple[str, str | bytes]] = []
        self.node_id = node_id
        self.number = number
        self.connection = connection
        self.run_id = ""  # that it has met and waits for, although it named none
        self.seen = False  # by who tells the client's node of that

    @property
    def metadata(self) -> Metadata:
        """Of the client's what handlers look at."""
        return self._metadata

    def set_metadata(self, *, initial: Pairs = (), trailing: Pairs = ()) -> None:
        """What goes before the answer goes with it; nothing here has any that goes behind."""
        assert not tuple(trailing), "no handler has trailing metadata"
        self._told = list(initial)

    def finish(self, body: bytes) -> None:
        """Send the answer back."""
        if not self.done:
            self._close()
            told = [self._told] if self._told else []
            self._forward.tell(self.node_id, [ANSWER, self.number, body, *told])

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Send the status back."""
        if not self.done:
            self._close()
            self._forward.tell(self.node_id, [ERROR, self.number, int(code), message, details])

    def elsewhere(self, error: NotActive, *, in_doubt: bool) -> None:
        """The namespace is not served here: whoever sent the call sees to it."""
        if not self.done:
            self._close()
            named = self.request if in_doubt else None
            said = [error.namespace_id, error.verdict.value, error.region, error.version]
            self._forward.tell(self.node_id, [ELSEWHERE, self.number, in_doubt, named, *said])

    def _close(self) -> None:
        self.end()
        self._forward.served.pop((self.node_id, self.number), None)


class RemoteCall(_Sent):
    """A call that came by way of another node of the region (a `contract.Call`)."""

    __slots__ = ("hops", "scattered", "slots")

    def __init__(
        self, forward: Forward, node_id: int, number: int, method: str, request: bytes,
        deadline: float | None, connection: RemoteConnection, metadata: Metadata | None = None,
    ) -> None:  # fmt: skip
        super().__init__(forward, node_id, number, method, request, deadline, connection, metadata or {})
        self.hops = 0  # it may be handed on so often
        self.scattered = False  # every node is asked for what it knows itself
        self.slots: Slots | None = None  # it is asked for these slots' part of the answer, and no more

    def lost(self, *, in_doubt: bool, group: int = 0, leader: int = 0) -> None:
        """We do not lead (any more): the node that has the client asks another, perhaps `leader`."""
        if not self.done:
            self._close()
            # The request says by now which run was meant, if it was found and the call may be in doubt.
            named = self.request if in_doubt else None
            self._forward.tell(self.node_id, [LOST, self.number, in_doubt, group, leader, named])


class ForeignCall(_Sent):
    """A call of another region (a `contract.Call`): this node looks for the leader, as for a client.

    It goes to no third region: if the namespace is not served here either, it goes back.
    """

    __slots__ = ("undone", "version")

    def __init__(
        self, forward: Forward, address: int, number: int, method: str, request: bytes,
        deadline: float | None, connection: RemoteConnection, metadata: Metadata, version: int,
    ) -> None:  # fmt: skip
        super().__init__(forward, address, number, method, request, deadline, connection, metadata)
        self.version = version  # of the namespace, as that region knows it
        self.undone: Callable[[], None] | None = None  # if the answer came to nobody

    def finish(self, body: bytes) -> None:
        """Send the answer back."""
        if not self.done and self.undone is not None:
            self._forward.abroad.handed(self.node_id, self.number, self.undone)
        super().finish(body)
