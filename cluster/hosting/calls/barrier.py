"""A barrier: waits until what is read here is not older than the question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from history_store.engine.errors import Code, ServiceError

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group, Waiter
    from cluster.hosting.node import Node

READ_S = 5.0  # what a read of all shards gets to find their leaders
READ_RETRY_S = 0.05


class Barrier:
    """Waits until several groups are current here; asks again where leadership moved meanwhile."""

    def __init__(self, node: Node, groups: list[Group], waiter: Waiter, seconds: float = READ_S) -> None:
        self.waits_for = {group.id for group in groups}  # those of them that are not
        self._loop = node.loop
        self._waiter: Waiter | None = waiter
        self._groups = groups
        self._until = node.loop.time() + seconds
        self._timer = node.loop.call_at(self._until, self._give_up)

    def begin(self) -> None:
        """Ask. UNAVAILABLE if one of them cannot confirm it in time."""
        for group in self._groups:
            self._ask(group)

    def _ask(self, group: Group) -> None:
        if self._waiter is None:
            return

        def heard(error: ServiceError | None) -> None:
            if error is None:
                self.waits_for.discard(group.id)
                if not self.waits_for:
                    self._end(None)
            elif self._loop.time() < self._until:
                self._loop.call_later(READ_RETRY_S, self._ask, group)

        if group.damage and not group.has_others:
            heard(None)  # what List shows is not among its rows, and nobody else could confirm it
        else:
            group.when_current(heard)

    def _give_up(self) -> None:
        self._end(ServiceError(Code.UNAVAILABLE, "a shard's quorum does not answer; try again"))

    def _end(self, error: ServiceError | None) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._timer.cancel()
            waiter(error)
