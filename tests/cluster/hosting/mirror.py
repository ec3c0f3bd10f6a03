"""A second region of one node, that is told what the first one does: in the end both have the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards.streams import ShardStreams
from history_store.engine.errors import ServiceError
from history_store.storage.memory import MemoryStorage
from replication.failover.gates import Admission, Call, Verdict
from replication.failover.records import Source
from replication.frames import Frame, Stream, open_frame
from replication.log import cursor as cursors
from replication.log.cursor import Batch, Opened

if TYPE_CHECKING:
    from cluster.hosting.shards.host import ShardHost
    from replication.shipment import Row
    from tests.cluster.hosting.play import Play


class Passive:
    """Gates of a region that does what it is asked to, and nothing with what others tell it."""

    def admit(self, namespace_id: str, call: Call) -> Admission:
        """What is asked of it."""
        asked = call in (Call.MUTATION, Call.TASK, Call.POLL, Call.READ, Call.STRONG_READ)
        return Admission(Verdict.ALLOW if asked else Verdict.HOLD, 0, 0)

    def raised(self, namespace_id: str, version: int) -> Sequence[Row]:
        """It has none."""
        return ()


class Region:
    """What a shard has to know of regions, for tests: every namespace is told."""

    def __init__(self, index: int, name: str) -> None:
        self.region = (index, name)
        self.incarnations = 0x5EED
        self.rung: list[tuple[ShardStreams, Sequence[Frame]]] = []

    def is_told(self, namespace_id: str) -> bool:
        """All are."""
        return bool(namespace_id)

    def lag(self, shard: int, source: Source) -> tuple[int, int] | None:
        """Nobody reads."""
        return None

    def new_incarnation(self) -> int:
        """The next one."""
        self.incarnations += 1
        return self.incarnations

    def told(self, streams: ShardStreams, frames: Sequence[Frame]) -> None:
        """Remember it."""
        self.rung.append((streams, frames))


def listen(play: Play, region: Region) -> None:
    """Have every shard of a node tell."""
    for host in play.node.shards:
        host.streams = ShardStreams(host, region)
        host.gates = Passive()


def frames_of(host: ShardHost) -> list[Frame]:
    """All that a shard has told."""
    assert host.streams is not None
    return list(host.streams.kept(1))


def stream_of(host: ShardHost) -> Stream:
    """Its stream."""
    assert host.streams is not None
    assert host.streams.tip is not None
    return host.streams.tip.stream


def feed(host: ShardHost, source: Source, stream: Stream, frames: Sequence[Frame]) -> None:
    """Apply frames, as a reader would."""
    assert host.streams is not None
    opened = tuple(Opened(frame, open_frame(stream, frame)) for frame in frames)
    failed: list[ServiceError | None] = []
    slots = host.node.ranges.get(host.group.id, ())  # type: ignore[attr-defined]
    host.streams.read_from(source, cursors.begin(stream))
    host.streams.apply(source, Batch(stream, opened), slots, failed.append)
    assert failed in ([], [None]), failed


def copy(play: Play, mirror: Play) -> None:
    """Tell the mirror all that the node has told."""
    for theirs in play.node.shards:
        told = frames_of(theirs)
        if told:
            for ours in mirror.node.shards:
                feed(ours, Source(1, theirs.group.id), stream_of(theirs), told)


async def shown_by(play: Play) -> list[str]:
    """What List shows, all of it."""
    found: list[str] = []
    for name in sorted(play.node.meta.by_name):
        listed = await play.call(wire.ListWorkflowExecutionsRequest(namespace=name, page_size=1000))
        found += sorted(str(one) for one in listed.executions)
    return found


async def check(play: Play) -> None:
    """Tell all that a node did to another region's: in the end both have the same rows, and show the same."""
    await play.settle()
    for shards in (2, 3):
        mirror = mirror_of(play, shards)
        try:
            copy(play, mirror)
            await mirror.settle()
            parked = [host.streams.parked for host in mirror.node.shards if host.streams is not None]
            assert not any(parked), "everything fits"
            assert mirror.rows() == play.rows()
            assert await shown_by(mirror) == await shown_by(play)
        finally:
            await mirror.close()


def mirror_of(play: Play, shards: int) -> Play:
    """An empty node with the namespaces of another."""
    from tests.cluster.hosting.play import Play

    namespaces = play.node.meta.by_id.values()
    made = Play(MemoryStorage(), clock=play.clock, seed=7, shards=shards, namespaces=namespaces)
    listen(made, Region(2, "b"))
    return made
