"""What a node does together with nodes of other regions: streams, failover, and calls on their way.

The parts are elsewhere: streaming.py (what shards tell and read), failover.py (who is active),
shards/gates.py (what a shard does about it), calls/abroad.py (calls to the region that serves). Here they
are joined to a node, and hear of other regions' nodes. A region without others has the same parts: none of
its namespaces is shared, and every gate costs a look into two empty tables.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.hosting.calls.remote import KINDS_ABROAD
from cluster.hosting.region.caution import TRUTHS, Caution
from cluster.hosting.region.failover import Failover
from cluster.hosting.region.failover_answers import Answers
from cluster.hosting.region.failover_operations import Operations
from cluster.hosting.region.failover_words import KINDS as FAILOVER
from cluster.hosting.region.streaming import KINDS as STREAMS
from cluster.hosting.region.streaming import Streaming
from cluster.hosting.shards.failover_meta import FailoverMeta
from cluster.hosting.shards.gates import Gates
from replication.failover.gates import GateState, state_of
from replication.failover.parking import gate_view

if TYPE_CHECKING:
    import random

    from cluster.hosting.node import Node
    from cluster.hosting.region.asking import Send
    from cluster.hosting.region.regions import Regions
    from cluster.hosting.region.steward import Steward
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.hosting.shards.host import ShardHost
    from replication.failover.parking import GateView
    from replication.failover.records import Gate
    from replication.log.contract import LogStore


class Across:
    """One per node. Made before any shard is led."""

    def __init__(
        self,
        node: Node,
        regions: Regions,
        replicas: Replicas,
        steward: Steward,
        send: Send,
        rng: random.Random,
        store: LogStore | None = None,
    ) -> None:
        self._node = node
        self._regions = regions
        self.meta = node.failover = FailoverMeta(node.meta, regions.own, regions.name_of, regions.index_of)
        self.streaming = Streaming(node, regions, self, node.loop, rng, store)
        self.failover = Failover(node, self.meta, replicas, steward, send, regions)
        self.operations = Operations(self.failover)
        self.meta.elsewhere = self.operations
        self.caution = Caution(node, regions, self.meta, self.failover.saw, self._released)
        Answers(self.failover, self.operations.operate)
        node.regions = regions
        node.gates_of = self._gates_of
        node.on_led.append(self.failover.leads)
        node.passage = self._passage
        node.lag_ms = self._lag_ms
        self.meta.on_change.append(self._changed)
        self._passages: dict[str, GateView | None] = {}

    def start(self) -> None:
        """Begin."""
        self.table_changed()
        self.streaming.start()
        self.failover.start()
        self.caution.start()

    def close(self) -> None:
        """End."""
        self.caution.close()
        self.streaming.close()
        self.failover.close()
        self.operations.close()

    def table_changed(self) -> None:
        """The region's table is known, or another: only with it the region has an index."""
        self.meta.index_is(self._regions.own)

    # ---- streaming.Namespaces

    def is_told(self, namespace_id: str) -> bool:
        """Whether other regions hold a namespace, too."""
        return namespace_id in self.meta.shared

    def is_held(self, namespace_id: str) -> bool | None:
        """Whether this region holds it; None: it has not heard of it."""
        record = self.meta.committed.namespaces.get(namespace_id)
        return self.meta.region in record.config.regions if record is not None else None

    # ---- gates

    def _gates_of(self, shard: ShardHost) -> Gates:
        self.table_changed()  # a replica without others leads before anybody hears of the table
        assert shard.streams is not None, "they come first"
        gates = Gates(shard, shard.streams, self.meta.region, self.meta.shared)
        gates.on_moved.append(partial(self._moved, shard))
        gates.doubts = self._doubts
        return gates

    def _doubts(self, namespace_id: str, version: int) -> bool:
        """Whether a gate of that version is not believed: there is a newer one, or may be (caution.py)."""
        return self.caution.holds or self.meta.version_of(namespace_id) > version

    def _released(self) -> None:
        """What was held goes on, as if it had just been activated."""
        for shard in self._node.shards:
            assert isinstance(shard.gates, Gates)
            opened = [name for name in self.meta.shared if shard.gates.state(name) is GateState.OPEN]
            if opened:
                shard.activated(opened)
        for name in self.meta.shared:
            self._node.passage_changed(name)

    def _moved(self, shard: ShardHost, gates: list[Gate]) -> None:
        states = {gate.namespace_id: state_of(gate, self.meta.region) for gate in gates}
        opened = [name for name, state in states.items() if state is GateState.OPEN]
        closed = [name for name, state in states.items() if state is GateState.INACTIVE]
        if shard.retired:
            return
        if closed:
            shard.deactivated(closed)
        if opened:
            shard.activated(opened)

    def _passage(self, namespace_id: str) -> GateView | None:
        if namespace_id not in self.meta.shared:
            return None
        return gate_view(self.meta.committed, namespace_id)

    def _changed(self) -> None:
        """The meta group has something new: calls that wait may go on."""
        passages = {name: self._passage(name) for name in self.meta.shared}
        moved = [name for name, view in passages.items() if view != self._passages.get(name)]
        self._passages = passages
        for name in moved:
            self._node.passage_changed(name)

    def _lag_ms(self, namespace_id: str, shard: int) -> int | None:
        active = self.meta.active_region(namespace_id)
        if active == self.meta.region:
            return 0
        shards = [shard] if shard else list(self._node.led)
        lags = [
            reader.lag()
            for number in shards
            for reader in self.streaming.readers(number)
            if reader.source.region == active
        ]
        known = [lag[1] for lag in lags if lag is not None]
        return max(known) if known and len(known) == len(lags) else None

    # ---- regions.Foreign

    def message(self, region: int, node: int, message: list[Any]) -> None:
        """Of a node of another region."""
        kind = message[0]
        if kind in STREAMS:
            self.streaming.message(region, node, message)
        elif kind == TRUTHS:
            self.caution.heard(region, message)
        elif kind in FAILOVER:
            self.failover.asking.foreign(region, node, message)
        elif kind in KINDS_ABROAD and self._node.forward is not None:
            self._node.forward.abroad.received(region, node, message)

    def up(self, region: int, node: int) -> None:
        """It can be talked to."""
        self.caution.up(region, node)
        self.streaming.up(region, node)

    def down(self, region: int, node: int) -> None:
        """It cannot any more."""
        self.streaming.down(region, node)
        if self._node.forward is not None:
            self._node.forward.abroad.down(region, node)
