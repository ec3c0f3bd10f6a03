"""Questions about failover: to shards of the own region, wherever they are led, and to other regions.

Whoever asks hears the answer or, after a while, None: then it asks again, for all that is asked may be done
twice. What a node is asked as a shard's leader it answers when that is durable; what another region asks is
answered where the meta group is led.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import structlog

from cluster.hosting.region.failover_words import (
    REGION_ASK,
    REGION_SAID,
    SEEN,
    SHARD_ASK,
    SHARD_SAID,
    Failed,
    Followed,
    RegionAnswer,
    RegionQuestion,
    ShardAnswer,
    ShardQuestion,
    Stand,
    Stands,
    Tell,
    encode,
    region_answer,
    region_question,
    shard_answer,
    shard_question,
)
from cluster.hosting.shards.gates import Gates
from history_store.engine.errors import Code, ServiceError
from replication.failover import commands
from replication.failover.records import FormatError

if TYPE_CHECKING:
    from cluster.hosting.node import Node
    from replication.failover.gates import Answer

log = structlog.get_logger("failover")

ASK_S = 2.0  # for an answer; asking again is harmless

HeardShard = Callable[[ShardAnswer | None], None]
HeardRegion = Callable[[RegionAnswer | None], None]
Send = Callable[[int, list[Any]], bool]


class Regions(Protocol):
    """The other regions, as far as failover needs them."""

    @property
    def own(self) -> int:
        """Index of this one."""

    def others(self) -> list[int]:
        """Their indexes."""

    def name_of(self, index: int) -> str:
        """A region's name."""

    def index_of(self, name: str) -> int:
        """Its index; 0: no region has the name."""

    def nodes_up(self, index: int) -> list[int]:
        """Nodes of a region that can be talked to now."""

    def send(self, index: int, node: int, message: list[Any], bulk: bool = False) -> bool:
        """A message leaves. False: it does not."""


class Asker(NamedTuple):
    """Who wants an answer: a node of another region."""

    region: int
    node: int
    number: int


class _Asked(NamedTuple):
    heard: Callable[[Any], None]
    decoder: msgspec.msgpack.Decoder[Any]
    until: float


class Asking:
    """One per node."""

    def __init__(self, node: Node, send: Send, regions: Regions) -> None:
        self._node = node
        self._send = send
        self._regions = regions
        self._numbers = 0
        self._asked: dict[int, _Asked] = {}
        self.on_asked: Callable[[RegionQuestion, Asker], None]  # where the meta group is led
        self.on_seen: Callable[[dict[str, int]], None]

    # ---- asking

    def shard(self, number: int, question: ShardQuestion, heard: HeardShard) -> None:
        """Ask the leader of a shard of the own region."""
        leader = self._node.leader_of(number)
        body = encode(question)
        if not leader:
            self._later(heard)
        elif leader == self._node.node_id:
            # As if it had travelled: whoever asks is never called back from within.
            asked = self._ask(heard, shard_answer)
            self._node.loop.call_soon(self._answer_shard, 0, asked, number, body)
        else:
            asked = self._ask(heard, shard_answer)
            if not self._send(leader, [SHARD_ASK, asked, number, body]):
                self._gone(asked)

    def region(
        self, index: int, question: RegionQuestion, heard: HeardRegion, *, patience_s: float = ASK_S
    ) -> None:
        """Ask another region."""
        nodes = self._regions.nodes_up(index)
        if not nodes:
            self._later(heard)
            return
        asked = self._ask(heard, region_answer, patience_s)
        message = [REGION_ASK, asked, self._regions.own, self._node.node_id, encode(question)]
        if not self._regions.send(index, self._node.choose(nodes), message):
            self._gone(asked)

    def tell_seen(self, leader: int, versions: dict[str, int]) -> None:
        """Tell the node that leads the meta group of versions that were seen here."""
        self._send(leader, [SEEN, versions])

    def _ask(
        self, heard: Callable[[Any], None], decoder: msgspec.msgpack.Decoder[Any], patience_s: float = ASK_S
    ) -> int:
        self._numbers += 1
        self._asked[self._numbers] = _Asked(heard, decoder, self._node.loop.time() + patience_s)
        return self._numbers

    def _later(self, heard: Callable[[Any], None]) -> None:
        self._node.loop.call_soon(heard, None)

    def _gone(self, number: int) -> None:
        asked = self._asked.pop(number, None)
        if asked is not None:
            self._later(asked.heard)

    def expire(self) -> None:
        """Those whose answers are late hear that there is none. Called now and then."""
        now = self._node.loop.time()
        late = [number for number, asked in self._asked.items() if asked.until <= now]
        for number in late:
            self._asked.pop(number).heard(None)

    # ---- hearing

    def received(self, node_id: int, message: list[Any]) -> None:
        """From a node of the own region."""
        kind = message[0]
        if kind == SHARD_ASK:
            self._answer_shard(node_id, message[1], message[2], message[3])
        elif kind == SHARD_SAID:
            self._said(message)
        elif kind == REGION_ASK:
            self._asked_by_region(message, handed_on=True)
        elif kind == SEEN:
            self.on_seen(message[1])

    def foreign(self, region: int, node: int, message: list[Any]) -> None:
        """From a node of another region."""
        kind = message[0]
        if kind == REGION_ASK:
            self._asked_by_region([REGION_ASK, message[1], region, node, message[4]], handed_on=False)
        elif kind == REGION_SAID:
            self._said(message)

    def _said(self, message: list[Any]) -> None:
        asked = self._asked.pop(message[1], None)
        if asked is None:
            return
        try:
            answer = asked.decoder.decode(message[2])
        except msgspec.MsgspecError as error:
            log.warning("an answer cannot be read; is that node newer?", why=str(error))
            answer = None
        asked.heard(answer)

    # ---- answering for the region

    def _asked_by_region(self, message: list[Any], *, handed_on: bool) -> None:
        meta = self._node.meta.group
        if not meta.leading:
            leader = meta.raft.leader
            if not handed_on and leader not in (0, self._node.node_id):
                self._send(leader, message)
            return  # one hop; who asks will ask again
        try:
            question = region_question.decode(message[4])
        except msgspec.MsgspecError as error:
            log.warning("another region's question cannot be read; is it newer?", why=str(error))
            return
        self.on_asked(question, Asker(message[2], message[3], message[1]))

    def answer(self, asker: Asker, answer: RegionAnswer) -> None:
        """Answer another region's question."""
        self._regions.send(asker.region, asker.node, [REGION_SAID, asker.number, encode(answer)])

    # ---- answering for a shard

    def _answer_shard(self, node_id: int, asked: int, number: int, body: bytes) -> None:
        def answer(word: ShardAnswer) -> None:
            message = [SHARD_SAID, asked, encode(word)]
            if node_id:
                self._send(node_id, message)
            else:
                self._said(message)

        shard = self._node.led.get(number)
        gates = shard.gates if shard is not None else None
        if not isinstance(gates, Gates):
            answer(Failed(int(Code.UNAVAILABLE), "this node does not lead the shard"))
            return
        try:
            question = shard_question.decode(body)
            if isinstance(question, Tell):
                command = commands.decode_shard(question.command)
                gates.command(command, lambda said: answer(followed(gates, said)))
            else:
                self._stand(gates, question, answer)
        except (msgspec.MsgspecError, FormatError) as error:
            answer(Failed(int(Code.INVALID_ARGUMENT), str(error)))

    def _stand(self, gates: Gates, question: Stand, answer: Callable[[ShardAnswer], None]) -> None:
        found = stands(gates, question)

        def durable(error: ServiceError | None) -> None:
            answer(found if error is None else Failed(int(error.code), error.message))

        gates.when_committed(durable)


def followed(gates: Gates, said: Answer | ServiceError) -> ShardAnswer:
    """What a shard answers to a command."""
    if isinstance(said, ServiceError):
        return Failed(int(said.code), said.message)
    inherited = said.marker is not None and gates.inherited(said.marker)
    return Followed(said.marker, said.versions, said.cuts, inherited, gates.children())


def stands(gates: Gates, question: Stand) -> Stands:
    """Where a shard stands, as of all that it has proposed."""
    streams = gates.streams
    cursors = dict(streams.cursors())
    return Stands(
        cursors,
        {source: streams.lag(source) for source in cursors},
        {source: commands.encode(fence) for source, fence in streams.fences().items() if fence is not None},
        {name: gates.version(name) for name in question.namespaces},
        tuple(name for name in question.namespaces if not streams.has_all(name)),
        gates.children(),
    )
