"""One image that arrives: chunk by chunk under a generation of its own, each in a round with how far it is.

A chunk is acknowledged when it is on disk. When the last one is there, and the totals are right, the core is
told; it takes the image if it still needs it (`install`), and one write makes it the group's rows. An image
that is complete waits for a leader to be known. It is a committed state, so whoever leads may be said to have
sent it.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import structlog

from cluster.hosting.replicas.sender import ACCEPT, ACK, DONE, WINDOW_CHUNKS
from history_store.raft import Kind, Message, SnapshotMeta
from history_store.rare import reached
from history_store.shard import snapshot
from history_store.shard.snapshot import Chunk, Damaged, Incomplete, Progress

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group
    from cluster.hosting.replicas.generations import Staged
    from cluster.hosting.replicas.snapshots import Snapshots
    from history_store.storage.contract import Round

log = structlog.get_logger("snapshots")

FORGET_CHECKS = 120  # of nothing new until what came is thrown away; longer than a sender's patience
STALLED_CHECKS = 2  # of nothing new until one that was asked for is asked for again
DAMAGED_MAX = 8  # chunks, until we ask for another image


class Incoming:
    """An image for a group of ours."""

    def __init__(self, room: Snapshots, staged: Staged, sender: int) -> None:
        self.staged = staged
        self.sender = sender  # who waits to hear of it; 0: nobody since a restart
        self.sender_image = staged.image  # as what it knows it
        self.over = False
        self.installing = False  # the core took it
        self.replaced = 0  # the generation that it is put in the place of
        self._room = room
        self._received = staged.progress.copy()
        self._queue: deque[tuple[Chunk, Progress]] = deque()  # to be written
        self._writing: Staged | None = None  # as the book has it after the round under way
        self._idle_checks = 0
        self._damaged = 0

    @property
    def group(self) -> Group | None:
        """The replica it is for."""
        return self._room.committer.groups.get(self.staged.group)

    @property
    def complete(self) -> bool:
        """Whether all of it is on disk."""
        return self.staged.progress.complete

    @property
    def stalled(self) -> bool:
        """Whether nothing came of it for a while, although something is lacking."""
        return not self.complete and self._idle_checks > STALLED_CHECKS

    def accept(self) -> None:
        """Tell the sender from where on it is wanted, and what it need not keep any more."""
        self._tell(ACK, self.staged.progress.next)  # ours may have been lost, and its window is full
        self._tell(ACCEPT, self._received.next)

    def _tell(self, kind: int, *fields: object) -> None:
        if self.sender:
            self._room.send(self.sender, [kind, self.staged.group, self.sender_image, *fields], False)

    # ---- chunks

    def chunk(self, data: bytes) -> None:
        """A chunk, whichever it is."""
        if len(self._queue) >= WINDOW_CHUNKS:
            return  # more than was asked for
        try:
            chunk = self._received.take(self.staged.image, data)
        except Damaged as error:
            self._damaged += 1
            log.warning("a chunk of an image is damaged", node=self.sender, why=str(error))
            if self._damaged > DAMAGED_MAX:
                self.abandon(str(error))
            else:
                self.accept()
            return
        except Incomplete as error:
            log.warning("an image is not what was sent", node=self.sender, why=str(error))
            self.abandon(str(error))
            return
        if chunk is None:
            self._tell(ACK, self.staged.progress.next)  # ours may have been lost
            return
        self._idle_checks = 0
        self._queue.append((chunk, self._received.copy()))
        self._write()

    def _write(self) -> None:
        if self._queue and self._writing is None and not self.over:
            chunk, progress = self._queue.popleft()
            self._writing = msgspec.structs.replace(self.staged, progress=progress)
            self._room.committer.store(partial(self._fill, chunk, self._writing), self._written)

    def _fill(self, chunk: Chunk, staged: Staged, batch: Round) -> None:
        """One chunk a round: others' entries wait for no more than that."""
        if self.over:
            return
        start = snapshot.prefix(staged.generation)
        rows = batch.rows
        rows.extend((start + key, value) for key, value in chunk.rows)
        for record in chunk.records:
            key = snapshot.record_key(record.namespace_id, record.run_id)
            rows.append((start + key, snapshot.encode_record(record)))
        rows.append(self._room.generations.staged(staged))
        self._room.chunks_stored += 1

    def _written(self) -> None:
        writing, self._writing = self._writing, None
        assert writing is not None, "a round was under way"
        if self.over:
            return
        self.staged = writing
        self._tell(ACK, self.staged.progress.next)
        self._write()
        if self.complete:
            self.install()

    # ---- its end

    def install(self) -> None:
        """Give it to the core, if it can be taken now."""
        group = self.group
        if group is None or self.installing or self.over:
            return
        raft, staged = group.raft, self.staged
        if group.damage and raft.compacted <= staged.index <= raft.committed:
            self._room.repair(self)
            return
        if raft.is_leader or staged.index <= raft.committed:
            self.abandon("the log was faster", installed=True)
            return
        meta = SnapshotMeta(staged.index, staged.term, staged.conf)
        if staged.local and not raft.conf.voters:
            raft.begin_with(meta)
            self._taken(group)
            return
        if raft.leader == 0:
            return  # `check` tries again
        raft.step(Message(Kind.SNAPSHOT, raft_id(group), raft.leader, raft.term, snapshot=meta))
        self._room.committer.mark(group)
        if raft.compacted < staged.index and group.damage:
            return  # it knows now that it has it all; when that is applied, `check` comes again
        if raft.compacted < staged.index:
            self.abandon("the log had it all", installed=True)  # and knows now that it is committed
            return
        self._taken(group)

    def _taken(self, group: Group) -> None:
        """The core took it: the next round puts it in place."""
        self._room.committer.mark(group)
        self.installing = True
        group.rows.discard()

    def installed(self) -> None:
        """It is in place. Tell the sender, once the core's own answer has left: that makes entries flow."""
        self.over = True
        self._room.loop.call_soon(self._tell, DONE, True, self.staged.index, "")

    def abandon(self, why: str, *, installed: bool = False) -> None:
        """It is not wanted, or cannot be had: what came of it goes."""
        if self.over or self.installing:
            return
        self.over = True
        group = self.group
        self._tell(DONE, installed, group.raft.committed if group is not None else 0, why)
        reached("image thrown away")
        log.info("an image is thrown away", group=self.staged.group, index=self.staged.index, why=why)
        self._queue.clear()
        self._room.generations.forget(self.staged)
        self._room.received_all(self)

    def check(self) -> None:
        """Time has gone by."""
        self._idle_checks += 1
        if self.complete:
            self.install()
        elif self._idle_checks > FORGET_CHECKS:
            self.abandon("nothing more came of it")
        else:
            group = self.group
            late = group is not None and self.staged.index <= group.raft.committed
            if late and group is not None and not group.damage:
                self.abandon("the log was faster", installed=True)


def raft_id(group: Group) -> int:
    """Who the replica is among its members."""
    return group.committer.node_id
