"""List and Count, wherever the shards are: what each node has of the answer, and how it is put together.

Theory of operation. A question is about all slots, or about those of the workflow ids that it names. The node
that is asked answers alone, from its own projection, if it has a current replica of each of their shards.
Otherwise it answers for the shards it has, and asks other nodes for the rest, as few as can be; each answers
for the slots it is asked for and no others, whatever else its projection has (`Part`), so no execution is
counted twice. A node answers for a slot only if

* its table names the slot's shard as of after the question came (the meta group is asked, too),
* it has a replica of that shard, all of whose records are in the projection (`whole`),
* that replica has applied all that was committed when the question came,
* and none of its replicas came or went while it read.

What a node cannot answer for, or does not because it died, another is asked for. If nobody is left for
`RELAY_S`, the client's call goes to some other node, which may reach more than this one; there, after
`PATIENCE_S`, the question fails, and says which shard is missing. What is read is not one moment of all
shards, but later than the question everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from cluster.hosting.calls.barrier import Barrier
from cluster.hosting.calls.coverage import cover, joined, within
from cluster.membership import META_GROUP
from history_store.engine.errors import Code, ServiceError
from history_store.engine.keys import SLOTS

if TYPE_CHECKING:
    from sqlite3 import Connection

    from cluster.frontend.contract import Call
    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from history_store.visibility.sql import Slots

CONFIRM_S = 2.0  # what a node's replicas get to become current, before another node is asked
PATIENCE_S = 5.0  # for finding a node for every shard: leaders may be elected meanwhile
RELAY_S = 1.5  # then another node is asked for all of it: it may reach nodes that this one cannot
RETRY_S = 0.05  # between tries while nobody answers for some shard

ALL_SLOTS: Slots = ((0, SLOTS - 1),)

Work = Callable[["Connection"], bytes]
Then = Callable[["bytes | None", "BaseException | None"], None]


class Reader(Protocol):
    """Threads beside the loop. `then` hears what came of the work, unless the call is done."""

    def read(self, call: Call, work: Work, then: Then) -> None:
        """Work on the projection, once everything that is committed here can be seen in it."""

    def compute(self, call: Call, work: Callable[[], bytes], then: Then) -> None:
        """Work that needs no projection."""


class Question(Protocol):
    """What is asked of the projection."""

    def slots(self) -> frozenset[int] | None:
        """The only slots in which something can be found; None: any."""

    def whole(self, connection: Connection) -> bytes:
        """The answer, from all of this projection."""

    def part(self, connection: Connection, slots: Slots | None) -> bytes:
        """What this projection has of it in these slots (None: it has no others)."""

    def together(self, parts: list[bytes]) -> bytes:
        """The answer, from parts that have every slot once."""


class Lacking(NamedTuple):
    """Why a node does not answer for slots that it was asked for."""

    slots: Slots
    why: str


def whole(node: Node, number: int) -> Group | None:
    """The group's replica here, if the projection has exactly its records, and it is one that others know."""
    group = node.committer.groups.get(number) if number != META_GROUP else None  # of slots without a shard
    if group is None or group.rows.records_wait or not group.committed:
        return None
    raft = group.raft
    if not raft.leader or node.node_id not in raft.conf.members:
        return None  # it came a moment ago, or will go: others are sooner up to date
    images = node.committer.images
    return None if images is not None and images.hiding(number) else group


class Part:
    """What this node answers from its own projection for some slots."""

    def __init__(
        self,
        node: Node,
        call: Call,
        question: Question,
        slots: Slots,
        reader: Reader,
        heard: Callable[[bytes | Lacking | BaseException], None],
        *,
        alone: bool,
    ) -> None:
        """`heard`: the part, or why there is none. `alone`: it is to be the whole answer."""
        self._node = node
        self._call = call
        self._question = question
        self._slots = slots
        self._reader = reader
        self._heard = heard
        self._alone = alone
        self._current: dict[int, Group] = {}  # replicas that are as new as the question
        self._epoch = 0

    def begin(self) -> None:
        """Look which replicas are needed, and wait until they are current."""
        if self._call.done:
            return
        node = self._node
        wanted = within(node.ranges, self._slots) if self._slots != ALL_SLOTS else node.ranges
        missing = [number for number in wanted if whole(node, number) is None]
        if missing:
            self._lack(missing, f"node {node.node_id} has no whole replica of it")
            return
        groups = [node.committer.groups[number] for number in wanted]
        asked = [group for group in groups if self._current.get(group.id) is not group]
        if not asked:
            self._read(wanted)
            return
        if META_GROUP not in self._current:
            asked.append(node.meta.group)  # whose slots they are may have changed
        barrier = Barrier(node, asked, lambda error: self._confirmed(asked, barrier, error), CONFIRM_S)
        barrier.begin()

    def _confirmed(self, asked: list[Group], barrier: Barrier, error: ServiceError | None) -> None:
        if error is None:
            self._current |= {group.id: group for group in asked}
            self.begin()
            return
        late, name = barrier.waits_for, f"node {self._node.node_id}"
        if META_GROUP in late:
            self._lack([], f"{name} does not learn whether it knows the newest table")
        else:
            self._lack(sorted(late), f"{name} does not learn whether it is up to date")

    def _read(self, wanted: Mapping[int, Slots]) -> None:
        node, question, slots = self._node, self._question, self._slots
        self._epoch = node.replicas_epoch
        if self._alone:
            work: Work = question.whole
        elif node.has_no_others(wanted):

            def work(connection: Connection) -> bytes:
                return question.part(connection, None)
        else:

            def work(connection: Connection) -> bytes:
                return question.part(connection, slots)

        self._reader.read(self._call, work, self._was_read)

    def _was_read(self, found: bytes | None, error: BaseException | None) -> None:
        if error is not None:
            self._heard(error)
        elif self._epoch != self._node.replicas_epoch:
            self._current.clear()  # records may have come or gone while we read
            self.begin()
        elif found is not None:
            self._heard(found)

    def _lack(self, groups: list[int], why: str) -> None:
        """Without any group: nothing can be said of any slot."""
        ranges = self._node.ranges
        lacking = joined(ranges.get(group, ()) for group in groups)
        self._heard(Lacking(within({0: lacking}, self._slots).get(0, ()) if groups else self._slots, why))


class Answer:
    """The answer to a question that a client asked of this node."""

    def __init__(self, node: Node, call: Call, question: Question, reader: Reader, then: Then) -> None:
        """`then` hears the answer, or why there is none: a ServiceError, as a rule."""
        self._node = node
        self._loop = node.loop
        self._call = call
        self._question = question
        self._reader = reader
        self._then = then
        self._until = self._loop.time() + PATIENCE_S
        self._parts: list[bytes] = []
        self._under_way = 0  # parts, and looks for somebody to ask
        self._asked: dict[int, _Elsewhere] = {}  # by number
        self._left: Slots = ALL_SLOTS  # nobody has answered for them, and nobody is asked now
        self._tried: set[tuple[int, int]] = set()  # (node, group): has said that it cannot
        self._whys: dict[int, str] = {}  # what was said last of a group
        self._waits = False
        self._over = False

    def begin(self) -> None:
        """Ask."""
        named = self._question.slots()
        if named:
            self._left = joined(((slot, slot),) for slot in named)
        self._call.on_cancel = self._cancelled
        self._ask()

    # ---- whom to ask

    def _ask(self) -> None:
        """Find somebody for what is left."""
        self._waits = False
        if self._over or self._call.done:
            return
        node = self._node
        self._under_way += 1
        alone = self._under_way == 1 and not self._parts
        left, self._left = self._left, ()
        wanted = within(node.ranges, left) if left != ALL_SLOTS else node.ranges
        here = {
            number: slots
            for number, slots in wanted.items()
            if (node.node_id, number) not in self._tried and whole(node, number) is not None
        }
        if here:
            alone = alone and len(here) == len(wanted)
            self._ask_here(left if alone else joined(here.values()), alone=alone)
        up = set(node.peers())
        holders = {
            number: found for number in wanted if number not in here and (found := self._holders(number, up))
        }
        for peer, numbers in cover(holders, node.node_id).items():
            self._ask_there(peer, joined(wanted[number] for number in numbers), numbers)
        nobody = [number for number in wanted if number not in here and number not in holders]
        if nobody:
            self._leave(joined(wanted[number] for number in nobody))
        self._under_way -= 1
        self._look_whether_all()

    def _holders(self, number: int, up: set[int]) -> list[int]:
        """Who may have a replica: nodes that are to have one; or else any, while replicas move."""
        up = {peer for peer in up if (peer, number) not in self._tried}
        return sorted(up.intersection(self._node.replicas_of(number)) or up)

    def _leave(self, slots: Slots) -> None:
        """Nobody can be asked for these now: somebody may a moment later."""
        self._left = joined((self._left, slots))
        if self._waits:
            return
        now = self._loop.time()
        if now >= self._until:
            self._fail()
            return
        if now >= self._until - PATIENCE_S + RELAY_S and self._relay():
            return
        self._waits = True
        self._tried.clear()
        self._loop.call_later(RETRY_S, self._ask)

    def _relay(self) -> bool:
        forward = self._node.forward
        if forward is None or not forward.relay(self._call):
            return False
        self._over = True
        self._stop_asking()
        return True

    def _fail(self) -> None:
        missing = sorted(within(self._node.ranges, self._left))
        number = missing[0]
        others = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
        replicas = ", ".join(map(str, self._node.replicas_of(number))) or "none"
        why = self._whys.get(number, "none of them can be reached")
        text = (
            f"nobody can answer for shard {number}{others} at present; its replicas are on {replicas}, and "
            f"{why}. See `holdfast cluster health`, and try again"
        )
        self._end(None, ServiceError(Code.UNAVAILABLE, text))

    # ---- what is asked

    def _ask_here(self, slots: Slots, *, alone: bool) -> None:
        self._under_way += 1

        def heard(found: bytes | Lacking | BaseException) -> None:
            self._under_way -= 1
            if alone and isinstance(found, bytes) and not self._over:
                self._end(found, None)
            else:
                self._heard(self._node.node_id, slots, found)

        Part(self._node, self._call, self._question, slots, self._reader, heard, alone=alone).begin()

    def _ask_there(self, peer: int, slots: Slots, groups: list[int]) -> None:
        forward = self._node.forward
        assert forward is not None, "there are other nodes"
        question = _Elsewhere(self, peer, slots)
        number = forward.ask(peer, self._call, slots, question)
        if number:
            question.number = number
            self._asked[number] = question
            self._under_way += 1
        else:
            self._tried |= {(peer, group) for group in groups}
            self._leave(slots)

    def answered(self, asked: _Elsewhere, found: bytes | Lacking | BaseException) -> None:
        """Another node has, or it is gone."""
        if self._asked.pop(asked.number, None) is not None:
            forward = self._node.forward
            assert forward is not None, "another node was asked"
            forward.forget(asked)
            self._under_way -= 1
            self._heard(asked.peer, asked.slots, found)

    def _heard(self, node_id: int, slots: Slots, found: bytes | Lacking | BaseException) -> None:
        if self._over:
            return
        if isinstance(found, bytes):
            self._parts.append(found)
            self._look_whether_all()
        elif isinstance(found, Lacking):
            for group in within(self._node.ranges, found.slots):
                self._tried.add((node_id, group))
                self._whys[group] = found.why
            self._left = joined((self._left, slots))
            if not self._waits:
                self._ask()
        else:
            self._end(None, found)

    # ---- the end

    def _look_whether_all(self) -> None:
        if not self._over and self._parts and not self._under_way and not self._left:
            self._over = True
            parts, self._parts = self._parts, []
            self._reader.compute(self._call, lambda: self._question.together(parts), self._then)

    def _end(self, found: bytes | None, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._stop_asking()
            self._then(found, error)

    def _cancelled(self) -> None:
        self._over = True
        self._stop_asking()

    def _stop_asking(self) -> None:
        asked, self._asked = self._asked, {}
        forward = self._node.forward
        for number, question in asked.items():
            assert forward is not None, "somebody was asked"
            forward.ask_no_more(question.peer, number)


class _Elsewhere:
    """A part that another node was asked for (a `forward.Hearer`)."""

    __slots__ = ("_answer", "number", "peer", "slots")

    def __init__(self, answer: Answer, peer: int, slots: Slots) -> None:
        self._answer = answer
        self.peer = peer
        self.slots = slots
        self.number = 0

    def heard(self, node_id: int, body: bytes | None, error: ServiceError | None = None) -> None:
        """The other's answer; None: it has none."""
        if node_id != self.peer:
            return  # a node went down, but not this one
        found: bytes | Lacking | BaseException
        if body is not None:
            found = read_part(body, self.slots)
        elif error is not None and error.code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND):
            found = error
        else:
            found = Lacking(self.slots, f"node {node_id} {error.message if error is not None else 'is gone'}")
        self._answer.answered(self, found)


# What a part looks like between nodes: [None, bytes], or [why not, slots that are lacking].
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str | None, Any]).decode


def write_part(found: bytes | Lacking) -> bytes:
    """A part, or why there is none, for the node that asked."""
    return _encode((found.why, found.slots) if isinstance(found, Lacking) else (None, found))


def read_part(body: bytes, asked: Slots) -> bytes | Lacking:
    """The same again."""
    why, found = _decode(body)
    if why is None:
        return bytes(found)
    return Lacking(tuple((first, last) for first, last in found) or asked, why)
