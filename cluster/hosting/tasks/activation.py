"""A namespace comes to this region, or leaves it: what becomes of its tasks, polls and workers here.

While another region serves a namespace its waiting tasks are dormant rows: matching holds none of them, and
no worker is given one. When a shard is told to serve it, matching asks the shard again, and a sweep finds
the workflow tasks that workers of the other region held (`ShardHost.find` fails them, and schedules others
on the normal queue). An update that is admitted in a history has its workflow task in the same entry, so
none of them is without one.

When the namespace leaves, tasks that wait for workers are forgotten, here and where they are lent; polls that
wait are tried again as calls, and so find the region that serves it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import structlog

from cluster.hosting.shards.wakes import wake_row
from history_store.engine import keys
from history_store.engine.errors import ServiceError

if TYPE_CHECKING:
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost

log = structlog.get_logger("activation")

ROWS_AT_ONCE = 64  # wake rows looked at in one turn of the loop


class Sweep:
    """Finds every run of some namespaces whose workflow task a worker held when they came here.

    Such a run has a wake row no later than the time-out of that task. A shard that gets another leader
    meanwhile is swept no further: that one looks for tasks of dead workers anyway (dispatch.py, `Orphans`),
    and what it misses is found when its time-out comes.
    """

    def __init__(self, shard: ShardHost, namespaces: Collection[str]) -> None:
        limits = shard.limits
        longest = limits.workflow_task_timeout_max + limits.workflow_task_retry_max
        self._shard = shard
        self._namespaces = frozenset(namespaces)
        self._from = keys.WAKE
        self._end = keys.WAKE + keys.number(shard.clock.now_ns() + longest)

    def go_on(self) -> None:
        """Look at the next few; then again, until all have been seen."""
        shard = self._shard
        if shard.retired:
            return
        found = list(shard.rows.scan(self._from, self._end, ROWS_AT_ONCE))
        for _, value in found:
            row = wake_row(value)
            if row.namespace_id in self._namespaces:
                try:
                    shard.find(row.namespace_id, row.workflow_id, row.run_id)
                except ServiceError as error:
                    log.warning("a run could not be looked at", run=row.run_id, error=error.message)
        if len(found) == ROWS_AT_ONCE:
            self._from = found[-1][0] + b"\0"
            shard.loop.call_soon(self.go_on)


def activated(node: Node, shard: ShardHost, namespaces: Collection[str]) -> None:
    """A shard serves these namespaces from now on."""
    node.recount(namespaces)
    Sweep(shard, namespaces).go_on()
    node.matching.resync()


def deactivated(node: Node, shard: ShardHost, namespaces: Collection[str]) -> None:
    """A shard does not serve them any more."""
    node.recount(namespaces)

    def void(task: Any) -> bool:
        return getattr(task, "shard", None) is shard and task.queue.namespace_id in namespaces

    drop = node.exchange.drop_shard if node.exchange is not None else node.matching.drop
    drop(void)


def try_polls_elsewhere(node: Node, namespace_id: str) -> None:
    """Another region serves the namespace, or soon will: polls that wait here wait in vain.

    One that has been given a task waits no more: its answer is on its way.
    """
    for poll in [poll for poll in node.polls if poll.queue.namespace_id == namespace_id]:
        if node.matching.cancel_poll(poll.queue, poll):
            poll.move()
