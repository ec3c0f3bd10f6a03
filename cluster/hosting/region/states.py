"""Whole workflow ids between regions: a shard asks for the state of one that it cannot bring together itself.

    WANTED     reader's shard, workflow, runs that it has, with their stamps
    STATE      reader's shard, workflow, source shard, incarnation, number, part, parts, bytes
    ELSEWHERE  reader's shard, workflow, leader: another node leads the shard; 0: none that is known

Theory of operation. Any node of the other region is asked; who leads the shard of the workflow id there
answers with its rows, and with the number up to which its stream has told of them. A state is cut into parts,
since bulk messages have a limit. All this is told once and may be lost: the shard asks again after a while
(`ShardConflicts.due`), and a state that nobody waits for any more is joined all the same: that does no harm.

Invariant: only what is committed leaves a node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from history_store.engine import keys
from history_store.engine.errors import ServiceError
from replication.failover.records import Source
from replication.shipment import Stamp

if TYPE_CHECKING:
    from cluster.hosting.region.streaming import Streaming
    from cluster.hosting.shards.applying import Workflow
    from cluster.hosting.shards.host import ShardHost

log = structlog.get_logger("streams")

WANTED, STATE, ELSEWHERE = 77, 78, 79

PART_BYTES_MAX = (1 << 20) - 4096  # of a bulk message, without what else it says
UNFINISHED_MAX = 64  # states of which a part is missing: the oldest is given up, and asked for again

_stamps = dict[str, Stamp]


class States:
    """A node's part in it."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming
        self._parts: dict[tuple[int, str, str], list[bytes]] = {}

    # ---- asking

    def ask(self, host: ShardHost) -> None:
        """Ask for the states that are due."""
        streams = host.streams
        if streams is None or host.retired:
            return
        for workflow, source, known in streams.conflicts.due():
            leader = next((r.leader for r in self._streaming.readers(host.group.id) if r.source == source), 0)
            self._ask(host, workflow, source.region, leader, known)

    def _ask(
        self, host: ShardHost, workflow: Workflow, region: int, leader: int, known: dict[str, Stamp]
    ) -> None:
        up = self._streaming.links.nodes_up(region)
        if up:
            node = leader if leader in up else self._streaming.rng.choice(up)
            self._streaming.links.send(region, node, [WANTED, host.group.id, *workflow, known])

    # ---- messages

    def message(self, region: int, node: int, message: list[Any]) -> None:
        """Of another region's node."""
        kind, shard, namespace_id, workflow_id, *rest = message
        workflow = namespace_id, workflow_id
        if kind == WANTED:
            self._wanted(region, node, shard, workflow, msgspec.convert(rest[0], _stamps))
            return
        host = self._streaming.node.led.get(shard)
        if host is None or host.streams is None:
            return
        if kind == ELSEWHERE:
            if rest[0] and rest[0] != node:
                self._ask(host, workflow, region, rest[0], {})
        else:
            self._part(region, host, workflow, rest)

    def _wanted(
        self, region: int, node: int, shard: int, workflow: Workflow, known: dict[str, Stamp]
    ) -> None:
        ours = self._streaming.node
        owner = ours.slot_owners[keys.slot_of(*workflow)]
        host = ours.led.get(owner)
        if host is None or host.streams is None or host.streams.tip is None:
            self._streaming.links.send(region, node, [ELSEWHERE, shard, *workflow, ours.leader_of(owner)])
            return
        tip = host.streams.tip
        try:
            data = host.streams.conflicts.state(workflow, known)
        except ServiceError as error:
            log.info("the state of a workflow cannot be read now", shard=owner, why=error.message)
            return
        parts = max(1, -(-len(data) // PART_BYTES_MAX))

        def committed(lost: ServiceError | None) -> None:
            if lost is not None or host.retired:
                return
            for part in range(parts):
                piece = data[part * PART_BYTES_MAX : (part + 1) * PART_BYTES_MAX]
                place = [owner, tip.stream.incarnation, tip.seq, part, parts]
                self._streaming.links.send(region, node, [STATE, shard, *workflow, *place, piece], True)

        host.group.when_committed(committed)

    def _part(self, region: int, host: ShardHost, workflow: Workflow, rest: list[Any]) -> None:
        owner, incarnation, upto, part, parts, piece = rest
        key = region, *workflow
        have = self._parts.pop(key, [])
        if part == 0:
            have = []
        if part != len(have):
            return  # one of them was lost on the way: it is asked for again
        have.append(piece)
        if len(have) < parts:
            self._parts[key] = have
            if len(self._parts) > UNFINISHED_MAX:
                del self._parts[next(iter(self._parts))]
            return
        self._store(host, workflow, Source(region, owner), incarnation, upto, b"".join(have))

    def _store(
        self, host: ShardHost, workflow: Workflow, source: Source, incarnation: int, upto: int, data: bytes
    ) -> None:
        streams = host.streams
        assert streams is not None
        cursor = streams.cursor(source)
        if cursor is None or cursor.stream.incarnation != incarnation:
            upto = 0  # nothing that is parked came by this stream

        def committed(error: ServiceError | None) -> None:
            if error is None:
                self.ask(host)  # another region's may be needed as well

        slots = self._streaming.node.ranges.get(host.group.id, ())
        try:
            streams.conflicts.store_state(workflow, source, upto, data, slots, committed)
        except ServiceError as error:
            log.info("a state that came cannot be stored now", shard=host.group.id, why=error.message)
        except ValueError as error:
            log.warning("a state that came cannot be read", workflow=workflow, source=source, why=str(error))
