"""Replicas that the region has taken away from this node: found out for certain, closed, cleared away.

Theory of operation. The table says where replicas are *wanted*. One that is not wanted here goes on as Raft
has it, votes and acknowledges, until its group has committed that it is a member no more. It learns so from
its own log, or, since nobody sends entries to who is out, by asking: any replica whose applied members do not
include the asker may answer, with the index that this is true of, and its own term.

Then the replica is closed, and one durable round makes it *absent*: its whole log is void, its members are
none, an empty generation takes the place of its rows, and it counts as compacted at that index. The rows of
before, and what List shows of them, are deleted a few a round (generations.py), also after a restart.

Why that is safe, although acknowledged entries are forgotten (docs/decisions/0015 has all of it):

* Absent is silent: a closed replica answers nobody, as if its node were down. So no election and no entry of
  the members before can count it again.
* If the group comes back here, the replica begins without members: it rejects entries, gives no vote and
  cannot stand, until an image is here. It takes only an image later than its index, thus one that already
  has the entry that took it in again; so what an old leader of the old members may still send does not count.
* Term and vote are kept, so no term sees two votes of this node, and no old leader's heartbeat is answered.
* A replica whose log has a later change of members than the index it would be absent as of does not leave:
  it may be in again, and have acknowledged so.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from cluster.hosting.groups.damage import note_key
from history_store.raft import CONF_CHANGE, Configuration
from history_store.rare import reached
from history_store.shard import snapshot
from history_store.storage.contract import GroupLog, HardState

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from cluster.hosting.groups.group import Group
    from cluster.hosting.node import Node
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.hosting.replicas.snapshots import Snapshots
    from history_store.storage.contract import Round

log = structlog.get_logger("replicas")

# [ASK_MEMBER, group, committed]: am I a member? [NO_MEMBER, group, index, its term, term]: as of there, no.
ASK_MEMBER, NO_MEMBER = 45, 46
CHECK_S = 1.0

_NOBODY = Configuration().encode()


class Out(NamedTuple):
    """As of which entry a replica is no member."""

    index: int  # type: ignore[assignment]  # Raft's word; tuple.index is not used here
    index_term: int
    term: int  # of the group, at least


class Departures:
    """Of one node."""

    def __init__(
        self, node: Node, replicas: Replicas, images: Snapshots, send: Callable[[int, list[Any]], bool]
    ) -> None:
        self._node = node
        self._replicas = replicas
        self._images = images
        self._send = send
        self._timer: asyncio.TimerHandle | None = None
        self._seen: tuple[object, int, int] | None = None  # the table and the replicas as all were wanted
        images.generations.owner_of = lambda slot: replicas.table.shard_of_slot(slot)

    def start(self) -> None:
        """Begin to look."""
        self._timer = self._node.loop.call_later(CHECK_S, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = self._node.loop.call_later(CHECK_S, self._look)
        self.check()

    def check(self) -> None:
        """Look for replicas that are not wanted here."""
        table = self._replicas.table
        now = (table, table.changes, self._node.replicas_epoch)
        if table.region is None or now == self._seen:
            return
        unwanted = [group for group in self._node.committer.groups.values() if not self._is_wanted(group)]
        if not unwanted:
            self._seen = now
        for group in unwanted:
            raft = group.raft
            if self._node.node_id in raft.conf.members:
                self._ask(group)
            else:
                out = Out(raft.handed, raft.term_of(raft.handed), raft.term)
                self._node.committer.between(partial(self._leave, group, out))

    def _is_wanted(self, group: Group) -> bool:
        table, number = self._replicas.table, group.id
        if number not in table.shards:
            return True  # the meta group, or one that the table does not know yet
        return self._node.node_id in table.replicas_of(number)

    def _ask(self, group: Group) -> None:
        others = {*group.raft.conf.members, *self._replicas.table.replicas_of(group.id)}
        for other in sorted(others - {self._node.node_id}):
            self._send(other, [ASK_MEMBER, group.id, group.raft.committed])

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of this module's kinds."""
        group = self._node.committer.groups.get(message[1])
        if group is None:
            return
        raft = group.raft
        if message[0] == ASK_MEMBER:
            conf = raft.conf
            if conf.voters and node_id not in conf.members and raft.handed > message[2]:
                told = [raft.handed, raft.term_of(raft.handed), raft.term]
                self._send(node_id, [NO_MEMBER, group.id, *told])
        elif not self._is_wanted(group):
            self._node.committer.between(partial(self._leave, group, Out(*message[2:5])))

    # ---- leaving

    def _leave(self, group: Group, out: Out, batch: Round) -> Callable[[], None] | None:
        """Between two rounds: close the replica if it is out for certain. If not now, `check` comes again."""
        node, raft = self._node, group.raft
        is_ours = node.committer.groups.get(group.id) is group
        if not is_ours or self._is_wanted(group) or raft.has_ready() or self._images.installing(group):
            return None
        member = node.node_id in raft.conf.members
        if member and out.index <= raft.committed:
            return None  # we know more than who told us
        if any(entry.kind == CONF_CHANGE and entry.index > out.index for entry in raft.kept_entries()):
            self._ask(group)
            return None
        term = max(raft.term, out.term)
        hard = HardState(term, raft.vote if term == raft.term else 0, out.index)
        if not raft.conf.voters:  # it is empty already
            conf = snapshot.wrap_conf(group.id, group.rows.generation, _NOBODY) if raft.compacted else b""
            node.close_shard(group, _absent(out, hard, conf))
            return partial(self._left, group, 0)
        old, generation = group.rows.generation, self._images.generations.allocate()
        conf = snapshot.wrap_conf(group.id, generation, _NOBODY)
        node.close_shard(group, _absent(out, hard, conf))
        batch.hard_states.append((group.id, hard))
        batch.void.append(group.id)
        batch.compact.append((group.id, out.index, out.index_term))
        batch.applied.append((group.id, out.index, out.index_term, conf))
        batch.rows.extend(self._images.generations.left(group.id, generation, old))
        batch.rows.append((note_key(group.id), None))  # damaged or not, they go
        self._replicas.leaving.add(group.id)
        return partial(self._left, group, old)

    def _left(self, group: Group, old: int) -> None:
        """That is durable."""
        reached("replica taken away")
        log.info("a replica is here no more; its rows are being deleted", group=group.id)
        if old:
            self._images.generations.cleared(group.id, old)
        self._replicas.leaving.discard(group.id)
        self._replicas.reconcile(again=True)


def _absent(out: Out, hard: HardState, conf: bytes) -> GroupLog:
    """What the disk has of a replica that left."""
    return GroupLog(hard, out.index, out.index_term, out.index, out.index_term, [], conf)
