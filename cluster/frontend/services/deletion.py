"""What follows DeleteNamespace: the namespace's runs and tasks are deleted, then its record.

The record is the plan: it says DELETED until nothing is left, so a restart takes the work up again
(`resume`). Runs are found in the shards' own rows, not in the projection: rows are the truth. A run is
terminated and deleted in one transaction of its own, so parents, children and callers elsewhere hear of its
end. A pass over all shards is repeated until it finds nothing, because a worker's last answer may have made
a run behind it.

A step is one page of keys or a few runs; between steps everybody else has the loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec
import structlog

from cluster.frontend.services.base import Services
from cluster.hosting.groups.group import nobody
from cluster.hosting.shards.meta import DELETED, Namespace
from history_store.engine import close, keys
from history_store.engine.errors import ServiceError

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.shards.host import ShardHost

log = structlog.get_logger("namespaces")

PAGE_ROWS = 512  # keys read in a step; about a millisecond
RUNS_AT_ONCE = 8  # runs deleted in a step, each in a transaction of its own; about 200 µs each
TASKS_AT_ONCE = 512  # task rows deleted in a transaction
STEP_S = 0.002  # pause after a step: at least half of the loop stays with those who wait for it
RETRY_S = 1.0  # after a write was refused (a full disk)
SETTLE_NS = 120_000_000_000  # of a region: how long the record stays at least, so that every node saw it
LOOK_AGAIN_NS = 20_000_000_000
REASON = "the namespace is deleted"


class _Owner(msgspec.Struct, array_like=True, gc=False):
    """The first fields of a run's core row: all that tells whose it is."""

    namespace_id: str
    workflow_id: str
    run_id: str


_owner = msgspec.msgpack.Decoder(_Owner).decode


class Deletions:
    """The deletions under way, by namespace id."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._loop = services.loop
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        services.on_close.append(self.close)

    @property
    def pending(self) -> bool:
        """Whether something is still to be deleted."""
        return bool(self._timers)

    def resume(self) -> None:
        """After a start: go on with what was under way."""
        for namespace in list(self._services.meta.by_id.values()):
            if namespace.state == DELETED:
                self.begin(namespace)

    def begin(self, namespace: Namespace) -> None:
        """Delete everything of a namespace whose record says DELETED."""
        if namespace.id not in self._timers:
            self._services.node.workers.forget_namespace(namespace.id)
            self._later(namespace.id, 0.0, _Sweep(self._services, namespace.id))

    def close(self) -> None:
        """Stop; a restart goes on."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _later(self, namespace_id: str, delay: float, sweep: _Sweep) -> None:
        self._timers[namespace_id] = self._loop.call_later(delay, self._step, namespace_id, sweep)

    def _step(self, namespace_id: str, sweep: _Sweep) -> None:
        delay = STEP_S
        try:
            if sweep.step() and sweep.forget():
                del self._timers[namespace_id]
                return
            if sweep.waits_until:
                delay = max(STEP_S, (sweep.waits_until - self._services.node.clock.now_ns()) / 1e9)
        except ServiceError as error:
            log.warning("a namespace's runs could not be deleted; trying again", error=error.message)
            sweep.restart()
            delay = RETRY_S
        if not self._closed:
            self._later(namespace_id, delay, sweep)


class _Sweep:
    """One namespace's deletion, in steps.

    Nobody waits for its commits: what is lost is done again by the next pass, or after the next start.
    """

    def __init__(self, services: Services, namespace_id: str) -> None:
        self._services = services
        self._id = namespace_id
        self._began = services.node.clock.now_ns()
        self.waits_until = 0  # everything is gone but the record, which stays until then
        self.restart()

    def restart(self) -> None:
        """Begin a pass."""
        self._deleted = 0
        self._steps = self._pass()

    def step(self) -> bool:
        """One step; whether everything is gone."""
        node = self._services.node
        if self.waits_until:
            if node.forward is None or node.clock.now_ns() < self.waits_until:
                return True
            self.waits_until = 0
            self.restart()
        for _ in self._steps:
            return False
        if self._deleted:
            self.restart()
            return False
        return True

    def forget(self) -> bool:
        """Drop the record, unless it is to be kept for a while."""
        found = self._services.meta.by_id.get(self._id)
        node = self._services.node
        if found is not None and node.forward is not None:
            # Shards come and go: what another node led a minute ago may be ours to look through now. The
            # record goes last, by whoever leads the meta group, when all have had their time.
            now = node.clock.now_ns()
            if (
                not self._services.meta.group.leading
                or max(found.forget_after, self._began + SETTLE_NS) > now
            ):
                self.waits_until = now + LOOK_AGAIN_NS
                return False
        if found is not None:
            if found.forget_after > self._services.node.clock.now_ns():
                self.waits_until = found.forget_after
                return False
            self._services.meta.forget(self._id, nobody)
        return True

    def _pass(self) -> Iterator[None]:
        for shard in self._services.node.shards:
            yield from self._runs(shard)
            yield from self._tasks(shard)

    def _runs(self, shard: ShardHost) -> Iterator[None]:
        start, end = keys.RUN, keys.prefix_end(keys.RUN)
        while True:
            rows = list(shard.rows.scan(start, end, PAGE_ROWS))
            yield
            for _, value in rows:
                owner = _owner(value)
                if owner.namespace_id == self._id:
                    self._delete(shard, owner)
                    if self._deleted % RUNS_AT_ONCE == 0:
                        yield
            if len(rows) < PAGE_ROWS:
                return
            start = rows[-1][0] + b"\0"

    def _delete(self, shard: ShardHost, owner: _Owner) -> None:
        run = shard.find(self._id, owner.workflow_id, owner.run_id)
        if run is None:
            return
        self._deleted += 1
        tx = shard.begin(self._id)
        try:
            tx.open(run)
            if run.running:
                close.terminate(tx, run, REASON, None, "namespace-deletion")
            shard.delete_rows(tx, run)
        except BaseException:
            shard.abort(tx)
            raise
        shard.commit(tx, nobody)

    def _tasks(self, shard: ShardHost) -> Iterator[None]:
        """Tasks of runs that are gone (a run takes its own along, but not what a crash left of it)."""
        prefix = keys.TASK + keys.raw_id(self._id)
        while True:
            rows = list(shard.rows.scan(prefix, keys.prefix_end(prefix), TASKS_AT_ONCE))
            if not rows:
                return
            self._deleted += len(rows)
            tx = shard.begin(self._id)
            tx.rows.extend((key, None) for key, _ in rows)
            shard.commit(tx, nobody)
            yield
