"""Splits of shards: every node says how far it is with its rows, and the steward decides what is next.

    [SPLITS, ready, parted]   to the steward: children whose rows are here; children of parents led here
    [SPLIT_NOW, child]        to the parent's leader: propose it

As with all of the steward's work nothing is remembered: it is said again every half second while the table
has a split under way, and at once when something is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from cluster.hosting.shards.splitting import Asked
from cluster.membership import ShardState, plan_split_done, split_steps
from history_store.engine.errors import ServiceError
from history_store.raft import RaftError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from cluster.hosting.node import Node
    from cluster.hosting.region.steward import Steward
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.hosting.shards.splitting import Splitting
    from cluster.membership import ShardRecord

log = structlog.get_logger("splits")

SPLITS, SPLIT_NOW = 48, 49
PERIOD_S = 0.5
STALE_S = 2.5


class SplitSteps:
    """One per node; it decides only where the meta group is led."""

    def __init__(
        self,
        node: Node,
        replicas: Replicas,
        steward: Steward,
        splitting: Splitting,
        send: Callable[[int, list[Any]], bool],
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._steward = steward
        self._splitting = splitting
        self._send = send
        self._said: dict[int, tuple[float, list[int], list[int]]] = {}  # by node: when, ready, parted
        self.waits: dict[int, str] = {}  # child -> what its split waits for
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin."""
        self._splitting.recover()
        self._replicas.on_table.append(self.table_changed)
        self.table_changed()
        self._turn()

    def close(self) -> None:
        """End."""
        self._splitting.close()
        if self._timer is not None:
            self._timer.cancel()

    def _preparing(self) -> list[Asked]:
        return [
            Asked(shard.parent, shard.id, shard.ranges)
            for shard in self._replicas.table.shards.values()
            if shard.state is ShardState.PREPARING
        ]

    def may_open(self, shard: ShardRecord) -> bool:
        """Whether a shard that is wanted here may be opened empty, to wait for an image."""
        if not shard.parent:
            return True
        wanted = self._node.node_id in self._replicas.replicas_of(shard.parent)
        serving = shard.state is ShardState.SERVING
        return self._splitting.may_open(shard.id, shard.parent, serving=serving, wanted=wanted)

    def table_changed(self) -> None:
        """Which splits are wanted."""
        self._splitting.ask(self._preparing())

    def _turn(self) -> None:
        self._timer = self._node.loop.call_later(PERIOD_S, self._turn)
        self.tell()

    def news(self) -> None:
        """Something is ready, split, or to be opened."""
        self._replicas.reconcile(again=True)
        self.tell()

    def tell(self) -> None:
        """Say how far we are, if anybody wants to know."""
        if not self._preparing():
            self.waits.clear()
            return
        message = [SPLITS, self._splitting.ready(), self._splitting.parted()]
        steward = self._node.meta.group.raft.leader
        if steward == self._node.node_id:
            self.received(steward, message)
        elif steward:
            self._send(steward, message)

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        if message[0] == SPLITS:
            self._said[node_id] = (self._node.loop.time(), message[1], message[2])
            self._decide()
        elif message[0] == SPLIT_NOW:
            self._splitting.split(message[1])

    def _decide(self) -> None:
        """Where the meta group is led: the next step of each split."""
        if not self._node.meta.group.leading:
            return
        oldest = self._node.loop.time() - STALE_S
        said = {node_id: one for node_id, one in self._said.items() if one[0] >= oldest}
        health, reports = self._steward.health()
        work = split_steps(
            self._replicas.table,
            reports,
            health,
            {node_id: ready for node_id, (_, ready, _) in said.items()},
            {child for _, _, parted in said.values() for child in parted},
        )
        self.waits.clear()
        self.waits.update(work.waits)
        for child, leader in work.now:
            if leader == self._node.node_id:
                self._splitting.split(child)
            else:
                self._send(leader, [SPLIT_NOW, child])
        if not work.done or self._steward.changing:  # a plan is good only for the table it was made from
            return
        try:
            self._steward.propose(plan_split_done(self._replicas.table, work.done[0]))
        except (RaftError, ServiceError) as error:  # the lead moves, or the disk is full
            log.info("the table cannot say now that a shard is split", child=work.done[0], why=str(error))
