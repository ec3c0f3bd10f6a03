"""Streams between regions, at a node: what its shards tell, and who of them reads what.

Theory of operation. A shard's leader reads the streams of those shards of every other region that have its
slots (`reader.py`). It asks any node there which shards these are, and pulls from their leaders. Who has
pulled is a subscriber: from then on the source rings at every commit, with the frame if it is small, and
once a second if there is nothing, so that a reader knows how old what it sees is. A subscriber says what it
has applied. All this is told once and may be lost: a reader that hears nothing asks again, and a source whose
leader moves is found again.

    LIST     ranges                             which shards have these slots, and who leads them?
    LISTED   [(shard, ranges, leader), …]
    PULL     number, shard, want, reader's shard and ranges
    PULLED   number, stream, oldest, last, frames
    MOVED    number, leader                     another node leads it; 0: none that is known
    BELL     reader's shard, stream, last, frame or None
    APPLIED  shard, incarnation, number, reader's shard

and those of `states.py`, where regions disagree.

Invariant: only what is committed leaves a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import structlog

from cluster.hosting.calls.coverage import joined, within
from cluster.hosting.region.exporting import Exporting
from cluster.hosting.region.reader import Reader
from cluster.hosting.region.states import ELSEWHERE, STATE, WANTED, States
from cluster.hosting.shards.streams import ShardStreams
from history_store.engine.errors import ServiceError
from replication import outbox
from replication.failover.records import Source
from replication.frames import NUMBER_MAX, Frame

if TYPE_CHECKING:
    import asyncio
    import random

    from cluster.hosting.groups.group import RowList
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost
    from history_store.visibility.sql import Slots
    from replication.log.contract import LogStore

log = structlog.get_logger("streams")

LIST, LISTED, PULL, PULLED, MOVED, BELL, APPLIED = 70, 71, 72, 73, 74, 75, 76
KINDS = range(LIST, ELSEWHERE + 1)

BEAT_S = 1.0
LIST_S = 5.0  # how old what is known of the other region's shards may be


class Links(Protocol):
    """Nodes of other regions."""

    @property
    def own(self) -> int:
        """Index of this region."""

    def others(self) -> list[int]:
        """Indexes of the others."""

    def name_of(self, index: int) -> str:
        """A region's name."""

    def index_of(self, name: str) -> int:
        """Its index; 0: there is none of this name."""

    def nodes_up(self, index: int) -> list[int]:
        """Nodes there that can be reached now."""

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        """A message to one of them. False: it does not leave."""


class Namespaces(Protocol):
    """Which region holds which namespace."""

    def is_told(self, namespace_id: str) -> bool:
        """Whether others hold it as well as we."""

    def is_held(self, namespace_id: str) -> bool | None:
        """Whether this region holds it; None: it has not heard of it yet."""


class Subscriber(NamedTuple):
    """A shard of another region that reads one of ours."""

    region: int
    node: int
    shard: int


class _Standing:
    """How far a subscriber is."""

    __slots__ = ("applied", "ranges")

    def __init__(self, ranges: Slots) -> None:
        self.ranges = ranges
        self.applied = 0


class Streaming:
    """A node's part in streams between regions."""

    def __init__(
        self,
        node: Node,
        links: Links,
        namespaces: Namespaces,
        loop: asyncio.AbstractEventLoop,
        rng: random.Random,
        store: LogStore | None = None,
    ) -> None:
        """`store`: the log between regions; None: frames come from their source alone."""
        self.node = node
        self.links = links
        self.namespaces = namespaces
        self.loop = loop
        self.rng = rng
        self.store = store
        self.states = States(self)
        self._subscribers: dict[int, dict[Subscriber, _Standing]] = {}  # by our shard
        self._readers: dict[int, dict[Source, Reader]] = {}  # by our shard
        self._exporters: dict[int, Exporting] = {}  # by our shard
        self._listed_at: dict[tuple[int, int], float] = {}  # (our shard, region)
        self._asked: dict[int, tuple[Reader, int]] = {}  # by number: who asked, and which node
        self._numbers = 0
        self._timer: asyncio.TimerHandle | None = None
        node.on_shard_led = self.led
        node.on_shard_lost = self.lost
        for host in node.shards:  # a node without others leads from the first moment
            self.led(host)

    def start(self) -> None:
        """Begin."""
        self._turn()

    def close(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
        for number in list(self._readers):
            self._stop(number)

    # ---- shards come and go

    def led(self, host: ShardHost) -> None:
        """A shard is led here from now on."""
        host.streams = ShardStreams(host, self)
        self._subscribers[host.group.id] = {}
        self._readers[host.group.id] = {}
        if self._timer is not None:
            self.loop.call_soon(self._discover)

    def lost(self, host: ShardHost) -> None:
        """It is not any more."""
        self._stop(host.group.id)

    def _stop(self, shard: int) -> None:
        self._subscribers.pop(shard, None)
        exporting = self._exporters.pop(shard, None)
        if exporting is not None:
            exporting.close()
        for reader in self._readers.pop(shard, {}).values():
            reader.close()
        for number in [n for n, (reader, _) in self._asked.items() if reader.closed]:
            del self._asked[number]
        for key in [key for key in self._listed_at if key[0] == shard]:
            del self._listed_at[key]

    def heritage(self, shard: int, child: int, ranges: Slots) -> RowList:
        """What the other half of a shard begins with, besides its slots."""
        host = self.node.led.get(shard)
        return host.streams.heritage(child, ranges) if host is not None and host.streams is not None else []

    def exporting(self) -> Mapping[int, Exporting]:
        """Who writes the log, by shard that is led here."""
        return self._exporters

    # ---- streams.Abroad

    @property
    def region(self) -> tuple[int, str]:
        """Index and name of this region."""
        return self.links.own, self.links.name_of(self.links.own)

    def is_told(self, namespace_id: str) -> bool:
        """Whether other regions hold the namespace, too."""
        return self.namespaces.is_told(namespace_id)

    def lag(self, shard: int, source: Source) -> tuple[int, int] | None:
        """Entries and milliseconds by which a reader is behind."""
        reader = self._readers.get(shard, {}).get(source)
        return reader.lag() if reader is not None else None

    def new_incarnation(self) -> int:
        """A number by chance."""
        return self.rng.randrange(1, NUMBER_MAX)

    def told(self, streams: ShardStreams, frames: Sequence[Frame]) -> None:
        """These frames are committed: ring, and write them to the log."""
        if self.store is not None:
            known = self._exporters.get(streams.shard)
            if known is None:
                self._exporting(streams)  # it begins behind them, and reads them from their rows
            else:
                known.committed(frames)
        for subscriber in list(self._subscribers.get(streams.shard, ())):
            for frame in frames:
                self._ring(streams, subscriber, frame)

    def _exporting(self, streams: ShardStreams) -> Exporting:
        assert self.store is not None
        found = self._exporters.get(streams.shard)
        if found is None:
            found = self._exporters[streams.shard] = Exporting(streams, self.store, self.loop, self.rng)
        return found

    def _ring(self, streams: ShardStreams, subscriber: Subscriber, frame: Frame | None) -> None:
        tip = streams.tip
        assert tip is not None
        small = (
            frame if frame is not None and len(frame.content) <= outbox.LIMITS.doorbell_bytes_max else None
        )
        last = frame.last_seq if frame is not None else streams.committed
        message = [BELL, subscriber.shard, tip.stream, last, msgspec.to_builtins(small)]
        self.links.send(subscriber.region, subscriber.node, message)

    # ---- time

    def _turn(self) -> None:
        self._timer = self.loop.call_later(BEAT_S, self._turn)
        self._discover()
        for host in self.node.shards:
            try:
                self._beat(host)
                if host.streams is not None:
                    host.streams.conflicts.turn()
                    self.states.ask(host)
            except ServiceError as error:  # the lead moves, or the disk is full
                log.info("a stream waits", shard=host.group.id, why=error.message)

    def _beat(self, host: ShardHost) -> None:
        streams = host.streams
        if streams is None or streams.tip is None:
            return
        subscribers = self._subscribers.get(host.group.id, {})
        for subscriber in subscribers:
            self._ring(streams, subscriber, None)
        acknowledged = self._acknowledged(host, subscribers)
        if self.store is None:  # what all others have is as good as in a log
            streams.trim(acknowledged, acknowledged)
            return
        exporting = self._exporting(streams)
        exporting.beat()
        streams.trim(acknowledged, exporting.mark())
        exporting.lost(streams.tip.lost)

    def _acknowledged(self, host: ShardHost, subscribers: dict[Subscriber, _Standing]) -> int:
        """What all other regions have applied: of each, all shards together that have our slots."""
        ours = self.node.ranges.get(host.group.id, ())
        least = NUMBER_MAX
        for region in self.links.others():
            standing = [s for subscriber, s in subscribers.items() if subscriber.region == region]
            if within({0: joined(s.ranges for s in standing)}, ours).get(0, ()) != tuple(ours):
                return 0  # some of them do not read, or not yet
            least = min(least, *(s.applied for s in standing))
        return least

    def _discover(self) -> None:
        """Ask which streams there are, now and then, and at once where nothing is known."""
        now = self.loop.time()
        for host in self.node.shards:
            number = host.group.id
            ranges = self.node.ranges.get(number)
            if ranges is None:
                continue
            for region in self.links.others():
                if now < self._listed_at.get((number, region), -LIST_S) + LIST_S:
                    continue
                up = self.links.nodes_up(region)
                if up and self.links.send(region, self.rng.choice(up), [LIST, number, ranges]):
                    self._listed_at[number, region] = now

    # ---- messages

    def message(self, region: int, node: int, message: list[Any]) -> None:
        """Of another region's node; of this module's kinds."""
        kind = message[0]
        if kind == LIST:
            self.links.send(region, node, [LISTED, message[1], self._list(message[2])])
        elif kind == LISTED:
            self._listed(region, message[1], message[2])
        elif kind == PULL:
            self._pull(region, node, message)
        elif kind in (PULLED, MOVED):
            self._answered(message)
        elif kind == BELL:
            self._rang(region, message)
        elif kind == APPLIED:
            self._applied(region, node, message)
        elif kind in (WANTED, STATE, ELSEWHERE):
            self.states.message(region, node, message)

    def up(self, region: int, node: int) -> None:  # noqa: ARG002 - whichever it is
        """A node of another region can be talked to."""
        for key in [key for key in self._listed_at if key[1] == region]:
            del self._listed_at[key]
        self._discover()

    def down(self, region: int, node: int) -> None:
        """It cannot any more: what it was asked is not answered, and it reads nothing."""
        for subscribers in self._subscribers.values():
            for gone in [s for s in subscribers if (s.region, s.node) == (region, node)]:
                del subscribers[gone]
        for number, (reader, asked) in list(self._asked.items()):
            if reader.source.region == region and asked == node:
                del self._asked[number]
                reader.failed(number)

    def _list(self, ranges: Slots) -> list[tuple[int, Slots, int]]:
        wanted = tuple((first, last) for first, last in ranges)
        return [
            (shard, owned, self.node.leader_of(shard) if shard not in self.node.led else self.node.node_id)
            for shard, owned in self.node.ranges.items()
            if shard and meet(owned, wanted)
        ]

    def _listed(self, region: int, shard: int, found: Sequence[tuple[int, Slots, int]]) -> None:
        host, readers = self.node.led.get(shard), self._readers.get(shard)
        if host is None or readers is None:
            return
        for theirs, _, leader in found:
            source = Source(region, theirs)
            reader = readers.get(source)
            if reader is None:
                reader = readers[source] = Reader(self, host, source)
            if leader:
                reader.leader = leader
            reader.start()

    def _pull(self, region: int, node: int, message: list[Any]) -> None:
        _, number, shard, want, reader, ranges = message
        host = self.node.led.get(shard)
        if host is None or host.streams is None:
            self.links.send(region, node, [MOVED, number, self.node.leader_of(shard)])
            return
        streams = host.streams

        def begun(error: ServiceError | None) -> None:
            if error is not None or host.retired:
                return  # who asked will ask again
            subscribers = self._subscribers[shard]
            subscriber = Subscriber(region, node, reader)
            for old in [s for s in subscribers if s[::2] == subscriber[::2] and s != subscriber]:
                subscribers[subscriber] = subscribers.pop(old)  # it has another leader
            slots = tuple((first, last) for first, last in ranges)
            subscribers.setdefault(subscriber, _Standing(slots)).ranges = slots
            pulled = msgspec.to_builtins(streams.pulled(want))
            self.links.send(region, node, [PULLED, number, *pulled], True)

        try:
            streams.begin(begun)
        except ServiceError as error:
            log.info("a stream cannot begin now", shard=shard, why=error.message)

    def _answered(self, message: list[Any]) -> None:
        asked = self._asked.pop(message[1], None)
        if asked is None:
            return
        reader, _ = asked
        if message[0] == MOVED:
            reader.moved(message[1], message[2])
        else:
            reader.pulled(message[1], msgspec.convert(message[2:], outbox.Pulled))

    def _rang(self, region: int, message: list[Any]) -> None:
        _, shard, stream, last, frame = message
        bell = msgspec.convert([stream, last, frame], outbox.Doorbell)
        reader = self._readers.get(shard, {}).get(Source(region, bell.stream.shard))
        if reader is not None:
            reader.rang(bell)

    def _applied(self, region: int, node: int, message: list[Any]) -> None:
        _, shard, incarnation, seq, reader = message
        host = self.node.led.get(shard)
        standing = self._subscribers.get(shard, {}).get(Subscriber(region, node, reader))
        if host is None or host.streams is None or standing is None:
            return
        tip = host.streams.tip
        if tip is not None and tip.stream.incarnation == incarnation and seq <= tip.seq:
            standing.applied = max(standing.applied, seq)

    # ---- what readers ask

    def pull(self, reader: Reader, want: int) -> int:
        """Ask the source; the question's number, 0: nobody can be asked."""
        region = reader.source.region
        up = self.links.nodes_up(region)
        node = reader.leader if reader.leader in up else (self.rng.choice(up) if up else 0)
        if not node:
            return 0
        self._numbers += 1
        ranges = self.node.ranges.get(reader.shard, ())
        message = [PULL, self._numbers, reader.source.shard, want, reader.shard, ranges]
        if not self.links.send(region, node, message):
            return 0
        self._asked[self._numbers] = (reader, node)
        return self._numbers

    def forget(self, number: int) -> None:
        """The answer is not waited for any more."""
        self._asked.pop(number, None)

    def acknowledge(self, reader: Reader, incarnation: int, seq: int) -> None:
        """Tell the source what is applied."""
        if reader.leader:
            message = [APPLIED, reader.source.shard, incarnation, seq, reader.shard]
            self.links.send(reader.source.region, reader.leader, message)

    # ---- for people, and for those who decide

    def readers(self, shard: int) -> list[Reader]:
        """Who reads for a shard that is led here."""
        return list(self._readers.get(shard, {}).values())


def meet(some: Slots, others: Slots) -> bool:
    """Whether they have a slot in common."""
    return any(first <= top and low <= last for first, last in some for low, top in others)
