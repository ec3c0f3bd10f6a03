"""Whether a node believes what its gates say: not before it has heard from the other regions.

A region that was stopped or cut off may have lost a namespace to a forced failover, and its gates stand open
as it left them. So a node that starts holds what several regions share (calls wait, timers and tasks stay
where they are) until each other region has told it which versions it knows and the meta group has those, or
until `isolation.ISOLATION_CHECK_NS` have passed in silence: a dead region must not stop those that live.

    TRUTHS   {namespace id: version}     said by both sides whenever a session between two regions opens

Lineage: replication/failover/isolation.py, which has the rule.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import structlog

from replication.failover.isolation import ISOLATION_CHECK_NS, Contact, Serving, serving

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.node import Node
    from cluster.hosting.region.regions import Regions
    from cluster.hosting.shards.failover_meta import FailoverMeta
    from history_store.engine.errors import ServiceError

log = structlog.get_logger("failover")

TRUTHS: Final = 86
LOOK_S: Final = 0.05


class Caution:
    """One per node."""

    def __init__(
        self,
        node: Node,
        regions: Regions,
        meta: FailoverMeta,
        saw: Callable[[dict[str, int]], None],
        released: Callable[[], None],
    ) -> None:
        """`saw`: hears versions that another region knows; `released`: when the gates are believed."""
        self._node = node
        self._regions = regions
        self._meta = meta
        self._saw = saw
        self._released = released
        self._started_ns = self._now_ns()
        self._heard_ns: dict[int, int] = {}  # by region
        self._versions: dict[str, int] = {}  # the largest that was heard of each namespace
        self._timer: asyncio.TimerHandle | None = None
        self._current = False  # the table says which other regions there are
        self.holds = True

    def _now_ns(self) -> int:
        return int(self._node.loop.time() * 1e9)

    def start(self) -> None:
        """Begin to count."""
        self._started_ns = self._now_ns()
        self._find_out()

    def _find_out(self) -> None:
        """Which regions there are: what the disk has of the table may be old."""

        def current(error: ServiceError | None) -> None:
            if error is not None:
                self._timer = self._node.loop.call_later(LOOK_S, self._find_out)
                return
            self._current = True
            self._look()

        self._node.meta.group.when_current(current)

    def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()

    def up(self, region: int, node: int) -> None:
        """A node of another region can be talked to."""
        versions = {name: self._meta.version_of(name) for name in self._meta.shared}
        self._regions.send(region, node, [TRUTHS, versions])

    def heard(self, region: int, message: list[Any]) -> None:
        """What a region knows."""
        self._heard_ns[region] = self._now_ns()
        for name, version in message[1].items():
            self._versions[name] = max(version, self._versions.get(name, 0))
        self._saw(message[1])
        self._look()

    def _look(self) -> None:
        if self._timer is not None and self._current:
            self._timer.cancel()
            self._timer = None
        if not self.holds or not self._current:
            return
        peers = {region: self._heard_ns.get(region) for region in self._regions.others()}
        all_heard = max((at for at in peers.values() if at is not None), default=None)
        # No ledger is shared but by the regions' own answers: it is read when all have answered.
        ledger_ns = all_heard if None not in peers.values() else None
        # A namespace that is not known here has nothing that could be served.
        news = {name: v for name, v in self._versions.items() if 0 < self._meta.version_of(name) < v}
        if news:
            self._saw(news)  # nobody may have led when it came
        contact = Contact(self._started_ns, peers, ledger_ns, learnt=not news)
        verdict = serving(contact, self._now_ns())
        if verdict is Serving.HOLD:
            self._timer = self._node.loop.call_later(LOOK_S, self._look)
            return
        self.holds = False
        silent = [self._regions.name_of(region) for region, at in peers.items() if at is None]
        if silent:
            seconds = ISOLATION_CHECK_NS // 1_000_000_000
            log.warning("serves without having heard from other regions", silent=silent, waited_s=seconds)
        self._released()
