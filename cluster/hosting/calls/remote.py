"""A call that came by way of another node, and the client's connection there, as handlers see them.

What travels between the two nodes is forward.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from cluster.hosting.calls.forward import Forward
    from history_store.visibility.sql import Slots

log = structlog.get_logger("forward")

# Peer messages between the two: [kind, ...]
CALL, CANCEL, ANSWER, ERROR, LOST, HUNG_UP, SCATTER, PART = 10, 11, 12, 13, 14, 15, 16, 17
KINDS = range(CALL, PART + 1)


class RemoteConnection:
    """A client's connection to another node."""

    __slots__ = ("_callbacks", "closed", "key", "peer")

    def __init__(self, key: tuple[int, int], peer: str) -> None:
        self.key = key
        self.peer = peer
        self.closed = False
        self._callbacks: list[Callable[[], None]] = []

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when it is gone."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def close(self) -> None:
        """It is gone, or its node is."""
        self.closed = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the others are to hear, too
                log.exception("what hung on a connection could not be told that it closed")


class RemoteCall:
    """A call that came by way of another node (a `contract.Call`)."""

    __slots__ = ("_forward", "connection", "deadline", "done", "hops", "method", "node_id", "number",
                 "on_cancel", "on_message", "request", "scattered", "slots")  # fmt: skip

    def __init__(
        self, forward: Forward, node_id: int, number: int, method: str, request: bytes,
        deadline: float | None, connection: RemoteConnection,
    ) -> None:  # fmt: skip
        self._forward = forward
        self.node_id = node_id
        self.number = number
        self.method = method
        self.request = request
        self.deadline = deadline
        self.connection = connection
        self.hops = 0  # it may be handed on so often
        self.scattered = False  # every node is asked for what it knows itself
        self.slots: Slots | None = None  # it is asked for these slots' part of the answer, and no more
        self.done = False
        self.on_cancel: Callable[[], None] | None = None
        self.on_message: Callable[[bytes | None], None] | None = None

    @property
    def metadata(self) -> Mapping[str, str | bytes]:
        """Handlers of shards look at none."""
        return {}

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
        self.done = True
        self._forward.served.pop((self.node_id, self.number), None)

    def set_metadata(
        self,
        *,
        initial: Iterable[tuple[str, str | bytes]] = (),
        trailing: Iterable[tuple[str, str | bytes]] = (),
    ) -> None:
        """Nothing that a shard's handler sets is for clients."""

    def write(self, body: bytes) -> None:
        """Streams are not sent on."""
        raise NotImplementedError(f"{self.method} is no stream")
