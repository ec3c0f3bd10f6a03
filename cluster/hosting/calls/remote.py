"""A call that came by way of another node, and the client's connection there, as handlers see them.

What travels between the two nodes is forward.py's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.frontend.plain import PlainCall, PlainConnection

if TYPE_CHECKING:
    from cluster.hosting.calls.forward import Forward
    from history_store.visibility.sql import Slots

# Peer messages between the two: [kind, ...]
CALL, CANCEL, ANSWER, ERROR, LOST, HUNG_UP, SCATTER, PART = 10, 11, 12, 13, 14, 15, 16, 17
MET = 26  # which run a call has met that named none, and waits for
KINDS = (CALL, CANCEL, ANSWER, ERROR, LOST, HUNG_UP, SCATTER, PART, MET)


class RemoteConnection(PlainConnection):
    """A client's connection to another node."""

    __slots__ = ("key",)

    def __init__(self, key: tuple[int, int], peer: str) -> None:
        super().__init__(peer)
        self.key = key


class RemoteCall(PlainCall):
    """A call that came by way of another node (a `contract.Call`)."""

    __slots__ = (
        "_forward", "connection", "hops", "node_id", "number", "run_id", "scattered", "seen", "slots",
    )  # fmt: skip

    def __init__(
        self, forward: Forward, node_id: int, number: int, method: str, request: bytes,
        deadline: float | None, connection: RemoteConnection,
    ) -> None:  # fmt: skip
        super().__init__(method, request, deadline)
        self._forward = forward
        self.node_id = node_id
        self.number = number
        self.connection = connection
        self.hops = 0  # it may be handed on so often
        self.scattered = False  # every node is asked for what it knows itself
        self.slots: Slots | None = None  # it is asked for these slots' part of the answer, and no more
        self.run_id = ""  # that it has met and waits for, although it named none
        self.seen = False  # by who tells the client's node of that

    def finish(self, body: bytes) -> None:
        """Send the answer back."""
        if not self.done:
            self._close()
            self._forward.tell(self.node_id, [ANSWER, self.number, body])

    def fail(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Send the status back."""
        if not self.done:
            self._close()
            self._forward.tell(self.node_id, [ERROR, self.number, int(code), message, details])

    def lost(self, *, in_doubt: bool, group: int = 0, leader: int = 0) -> None:
        """We do not lead (any more): the node that has the client asks another, perhaps `leader`."""
        if not self.done:
            self._close()
            # The request says by now which run was meant, if it was found and the call may be in doubt.
            named = self.request if in_doubt else None
            self._forward.tell(self.node_id, [LOST, self.number, in_doubt, group, leader, named])

    def _close(self) -> None:
        self.end()
        self._forward.served.pop((self.node_id, self.number), None)
