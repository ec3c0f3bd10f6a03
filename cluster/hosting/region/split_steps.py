"""Splits of shards: every node says how far it is with its rows, and the steward decides what is next.

    [SPLITS, ready, parted, abandoned]   to the steward: children whose rows are here; of parents led here
                                         those that their logs have split off, and those that they will not
    [SPLIT_NOW, child]                   to the parent's leader: propose it
    [SPLIT_NEVER, child]                 to the parent's leader: propose that it stays whole

As with all of the steward's work nothing is remembered: it is said again every half second while the table
has a split under way, and at once when something is new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog

from cluster.hosting.shards.splitting import Asked
from cluster.membership import ShardState, plan_split_abandoned, plan_split_done, split_steps
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

SPLITS, SPLIT_NOW, SPLIT_NEVER = 48, 49, 51
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
        self._said: dict[int, tuple[float, list[list[int]]]] = {}  # by node: when, what follows SPLITS
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
            Asked(shard.parent, shard.id, shard.ranges, shard.abandoned)
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
        splitting = self._splitting
        message = [SPLITS, splitting.ready(), splitting.parted(), splitting.abandoned()]
        steward = self._node.meta.group.raft.leader
        if steward == self._node.node_id:
            self.received(steward, message)
        elif steward:
            self._send(steward, message)

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        if message[0] == SPLITS:
            self._said[node_id] = (self._node.loop.time(), message[1:])
            self._decide()
        elif message[0] == SPLIT_NOW:
            self._splitting.split(message[1])
        elif message[0] == SPLIT_NEVER:
            self._splitting.abandon(message[1])

    def _decide(self) -> None:
        """Where the meta group is led: the next step of each split."""
        if not self._node.meta.group.leading:
            return
        oldest = self._node.loop.time() - STALE_S
        said = {node_id: what for node_id, (at, what) in self._said.items() if at >= oldest}
        health, reports = self._steward.health()
        table = self._replicas.table
        work = split_steps(
            table,
            reports,
            health,
            {node_id: what[0] for node_id, what in said.items()},
            {child for what in said.values() for child in what[1]},
            {
                child for what in said.values() for told in what[2:] for child in told
            },  # older nodes do not say
        )
        self.waits.clear()
        self.waits.update(work.waits)
        for child, leader in work.now:
            self._tell_leader(leader, [SPLIT_NOW, child])
        for child, leader in work.stop:
            self._tell_leader(leader, [SPLIT_NEVER, child])
        if not (work.done or work.stopped) or self._steward.changing:
            return  # a plan is good only for the table it was made from
        if work.done:
            plan = plan_split_done(table, work.done[0])
        else:
            plan = plan_split_abandoned(table, work.stopped[0])
        try:
            self._steward.propose(plan)
        except (RaftError, ServiceError) as error:  # the lead moves, or the disk is full
            log.info("the table cannot say now what came of a split", why=str(error))

    def _tell_leader(self, leader: int, message: list[Any]) -> None:
        if leader == self._node.node_id:
            self.received(leader, message)
        else:
            self._send(leader, message)
