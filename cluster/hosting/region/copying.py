"""A region that is new to a namespace gets the runs that the namespace had before.

    COPY     number, source's shard, reader's shard, namespace, slot, reader's ranges
    COPIED   number, incarnation, seq, states: [(workflow id, bytes), …], next slot

Theory of operation. From the moment on at which a namespace is shared, its changes come by the streams. What
was there before is copied: each shard asks the leaders of those shards of the active region that have its
slots, piece by piece, and joins what comes (`ShardConflicts.store_state`): a state that the stream has
overtaken changes nothing. When all pieces are durable the shard says so with a row. Until then it lacks the
namespace (`ShardStreams.has_all`), and the region cannot become active in it.

A piece that is lost is asked for again; a shard that gets another leader begins anew, which does no harm.

Invariant: the row is written after the last state, in the same log.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog

from history_store.engine import keys
from history_store.engine.errors import ServiceError
from replication.failover.records import Source

if TYPE_CHECKING:
    from cluster.hosting.region.streaming import Streaming
    from cluster.hosting.shards.host import ShardHost
    from history_store.visibility.sql import Slots

log = structlog.get_logger("streams")

COPY, COPIED = 110, 111
KINDS: Final = (COPY, COPIED)

PIECE_S: Final = 3.0  # for an answer; then the piece is asked for again
RETRY_S: Final = 0.5


class Shares(Protocol):
    """Which regions hold a namespace."""

    def copied_from(self, namespace_id: str) -> int:
        """The region that has all of it; 0: it is this one, or nobody shares it."""

    def shared(self) -> Sequence[str]:
        """Ids of the namespaces that this region shares with others."""

    def is_held(self, namespace_id: str) -> bool | None:
        """Whether this region has it; None: it has never heard of it."""

    def is_held_by(self, namespace_id: str, region: int) -> bool:
        """Whether a region is to have it."""


class _Copy:
    """One namespace for one shard, from one shard of another region."""

    __slots__ = ("asked_at", "done", "number", "slot", "storing")

    def __init__(self) -> None:
        self.slot = 0  # to go on with
        self.number = 0  # of the question
        self.asked_at = 0.0  # 0: none is open
        self.storing = 0  # states that are proposed and not committed
        self.done = False


class Copying:
    """A node's part in it."""

    def __init__(self, streaming: Streaming, shares: Shares) -> None:
        self._streaming = streaming
        self._shares = shares
        self._numbers = 0
        self._copies: dict[tuple[ShardHost, str], dict[Source, _Copy]] = {}
        self._asked: dict[int, tuple[ShardHost, str, Source]] = {}

    def turn(self, host: ShardHost) -> None:
        """Now and then, and after each piece: what this shard lacks is asked for."""
        streams = host.streams
        if streams is None or host.retired:
            return
        streams.leave_out(self._shares.is_held)
        for namespace_id in self._shares.shared():
            region = self._shares.copied_from(namespace_id)
            if not region or streams.has_all(namespace_id):
                continue
            readers = [r for r in self._streaming.readers(host.group.id) if r.source.region == region]
            if readers and self._covered(host, [r.source for r in readers]):
                self._go_on(host, namespace_id, [(r.source, r.leader) for r in readers])

    def lost(self, host: ShardHost) -> None:
        """The shard has another leader."""
        for key in [key for key in self._copies if key[0] is host]:
            del self._copies[key]
        for number in [number for number, asked in self._asked.items() if asked[0] is host]:
            del self._asked[number]

    def _covered(self, host: ShardHost, sources: Sequence[Source]) -> bool:
        """Whether all shards there are known that have this one's slots."""
        return self._streaming.is_covered(host.group.id, sources)

    def _go_on(self, host: ShardHost, namespace_id: str, sources: list[tuple[Source, int]]) -> None:
        copies = self._copies.setdefault((host, namespace_id), {})
        now = self._streaming.loop.time()
        for source, leader in sources:
            copy = copies.setdefault(source, _Copy())
            if copy.done or copy.storing or (copy.asked_at and now < copy.asked_at + PIECE_S):
                continue
            self._ask(host, namespace_id, source, leader, copy)
        if all(copies[source].done and not copies[source].storing for source, _ in sources):
            self._finish(host, namespace_id)

    def _ask(self, host: ShardHost, namespace_id: str, source: Source, leader: int, copy: _Copy) -> None:
        links = self._streaming.links
        up = links.nodes_up(source.region)
        if leader not in up:
            return
        self._asked.pop(copy.number, None)
        self._numbers += 1
        copy.number, copy.asked_at = self._numbers, self._streaming.loop.time()
        self._asked[copy.number] = host, namespace_id, source
        ranges = self._streaming.node.ranges.get(host.group.id, ())
        question = [COPY, copy.number, source.shard, host.group.id, namespace_id, copy.slot, ranges]
        links.send(source.region, leader, question)

    # ---- messages

    def message(self, region: int, node: int, message: list[Any]) -> None:
        """Of another region's node."""
        if message[0] == COPY:
            self._asked_for(region, node, message)
        else:
            self._came(message)

    def _asked_for(self, region: int, node: int, message: list[Any]) -> None:
        _, number, shard, _, namespace_id, slot, _ = message
        host = self._streaming.node.led.get(shard)
        if host is None or host.streams is None or not self._shares.is_held_by(namespace_id, region):
            return  # who asks will ask again, another
        streams = host.streams

        def begun(error: ServiceError | None) -> None:
            if error is not None or host.retired or streams.tip is None:
                return
            tip = streams.tip
            try:
                found = streams.conflicts.states(namespace_id, slot)
            except ServiceError as why:
                log.info("a namespace cannot be copied now", shard=shard, why=why.message)
                return
            states = [(workflow_id, data) for (_, workflow_id), data in found.states]
            answer = [COPIED, number, tip.stream.incarnation, tip.seq, states, found.after]
            # What it says may not be committed yet.
            host.group.when_committed(lambda lost: None if lost else self._answer(region, node, answer))

        try:
            streams.begin(begun)
        except ServiceError as error:
            log.info("a stream cannot begin now", shard=shard, why=error.message)

    def _answer(self, region: int, node: int, answer: list[Any]) -> None:
        self._streaming.links.send(region, node, answer, True)

    def _came(self, message: list[Any]) -> None:
        _, number, incarnation, seq, states, after = message
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        host, namespace_id, source = asked
        copy = self._copies.get((host, namespace_id), {}).get(source)
        streams = host.streams
        if copy is None or streams is None or host.retired:
            return
        cursor = streams.cursor(source)
        upto = seq if cursor is not None and cursor.stream.incarnation == incarnation else 0
        slots = self._streaming.node.ranges.get(host.group.id, ())
        failed = False
        for workflow_id, data in states:
            workflow = namespace_id, workflow_id
            try:
                copy.storing += 1
                streams.conflicts.store_state(
                    workflow, source, upto, data, slots, lambda error: self._stored(host, copy, error)
                )
                if not _within(keys.slot_of(*workflow), slots):
                    copy.storing -= 1  # nothing was proposed
            except (ServiceError, ValueError) as error:
                copy.storing -= 1
                failed = True
                log.warning("a state cannot be joined now", workflow=workflow_id, why=str(error))
        if failed:
            return  # the piece is asked for again when its time is up
        copy.asked_at = 0.0
        copy.slot = after
        copy.done = after >= keys.SLOTS
        self._again(host)

    def _stored(self, host: ShardHost, copy: _Copy, error: ServiceError | None) -> None:
        copy.storing -= 1
        if error is not None:
            copy.slot, copy.done = 0, False  # whatever it was: all of it once more
        self._again(host)

    def _again(self, host: ShardHost) -> None:
        if not host.retired:
            self._streaming.loop.call_soon(self.turn, host)

    def _finish(self, host: ShardHost, namespace_id: str) -> None:
        streams = host.streams
        assert streams is not None
        try:
            streams.complete(namespace_id)
        except ServiceError as error:
            log.info("a copy cannot be finished now", shard=host.group.id, why=error.message)
            self._streaming.loop.call_later(RETRY_S, self.turn, host)
            return
        self._copies.pop((host, namespace_id), None)
        log.info("a namespace is copied", shard=host.group.id, namespace=namespace_id)


def _within(slot: int, slots: Slots) -> bool:
    return any(first <= slot <= last for first, last in slots)
