"""One image on its way to one peer: read beside the loop, sent as the peer takes it.

    flush -> view -> OFFER ... ACCEPT(n) -> CHUNK n, n+1, ... <- ACK ... <- DONE

The view is of the moment after a flush, so it is exact for what that flush stored; what is written later is
not in it. It is read a chunk at a time on a thread. Chunks are kept until the peer has them on disk, so it
may restart, or the connection may break: the image is offered again, and the peer says from where on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

import structlog

from cluster.membership import META_GROUP
from history_store.rare import reached
from history_store.shard import snapshot, split
from history_store.storage.contract import StorageCorrupt, StorageError
from history_store.visibility.search import find_records

if TYPE_CHECKING:
    import sqlite3

    from cluster.hosting.groups.group import Group, Stored
    from cluster.hosting.replicas.snapshots import Snapshots
    from history_store.engine.errors import ServiceError

log = structlog.get_logger("snapshots")

# Peer messages of images: [kind, group, image, ...]. From the sender:
OFFER, CHUNK, CANCEL = 20, 22, 25  # OFFER: format, index, term, members; CHUNK: bytes
# From the receiver:
ACCEPT, ACK, DONE = 21, 23, 24  # ACCEPT, ACK: next chunk; DONE: whether it is installed, index, why not

WINDOW_CHUNKS = 16  # not known to be on the peer's disk: 4 MiB
OFFER_CHECKS = 3  # of no progress until it is offered again (a message was lost)
PATIENCE_CHECKS = 60  # of no progress until it is given up


class Outgoing:
    """An image for a peer."""

    def __init__(self, room: Snapshots, group: Group, peer: int, image: int, index: int) -> None:
        self.group = group
        self.peer = peer
        self.image = image
        self.over = False
        self.chunks_sent = 0
        self._room = room
        self._index_min = index
        self._stored: Stored | None = None  # what the view is exact for, once there is one
        self._rows: Iterator[tuple[bytes, bytes]] = iter(())
        self._projection: sqlite3.Connection | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._reading = False
        self._read_all = False
        self._accepted = False  # the peer waits for chunks
        self._window: deque[bytes] = deque()  # read, and not known to be on the peer's disk
        self._first = 0  # the number of the first of them
        self._following = 0  # the number of the next to be sent
        self._idle_checks = 0

    def begin(self) -> None:
        """Flush, so that the view is late enough."""
        self._room.committer.flush(self._flushed)

    def _flushed(self, error: ServiceError | None) -> None:
        if self.over:
            return
        if error is not None:
            self.end(arrived=False, why=f"our rows cannot be stored: {error.message}")
            return
        if self.group.rows.flushing:  # another flush is being stored: which of the two would the view see?
            self._room.loop.call_soon(self.begin)
            return
        stored = self.group.stored
        if stored.index < self._index_min:
            self.end(arrived=False, why=f"rows are stored up to {stored.index}, not {self._index_min}")
            return
        try:
            self._open_view()
        except StorageError as error:
            self.end(arrived=False, why=str(error))
            return
        self._stored = stored
        self.group.holds[self.peer] = stored.index
        log.info("sends an image", group=self.group.id, node=self.peer, index=stored.index)
        self.offer()

    def _open_view(self) -> None:
        storage = self._room.committer.storage
        generation = self.group.rows.generation
        start, end = snapshot.prefix(generation) + snapshot.ROWS, snapshot.prefix_end(generation)
        self._rows = storage.scan(start, end)
        first = next(self._rows, None)  # from here on the scan sees this moment, whenever it goes on
        rows = ((key[4:], value) for key, value in chain(() if first is None else (first,), self._rows))
        splits = self._room.committer.splits
        gone = splits.gone_from(self.group, self.group.stored.index) if splits is not None else ()
        if gone:
            rows = split.without(rows, gone)
        lookup = None
        if self.group.id != META_GROUP:
            connection = self._projection = storage.visibility_connection()

            def lookup(runs: list[snapshot.RunName]) -> list[Any]:
                return find_records(connection, runs)

        self._chunks = snapshot.cut(self.image, rows, lookup, self._room.chunk_bytes)

    # ---- what the peer says

    def offer(self) -> None:
        """Say what there is; the peer says from where on it wants it."""
        if self._stored is not None:
            self._accepted = False
            raft = self.group.raft
            self._room.send(
                self.peer,
                [OFFER, self.group.id, self.image, snapshot.FORMAT_VERSION, raft.term, *self._stored],
                False,
            )

    def accepted(self, following: int) -> None:
        """The peer wants chunks from there on."""
        if not self._first <= following <= self._first + len(self._window):
            self.end(arrived=False, why=f"node {self.peer} wants chunk {following}, which is gone")
            return
        if following:
            reached("image resumed")
        self._accepted = True
        self._following = following
        self.pump()

    def acknowledged(self, following: int) -> None:
        """The peer has the chunks before that one on its disk."""
        gone = min(following - self._first, len(self._window))
        if gone > 0:
            for _ in range(gone):
                self._window.popleft()
            self._first += gone
            self._following = max(self._following, self._first)
            self._idle_checks = 0
            self.pump()

    # ---- sending

    def pump(self) -> None:
        """Send what may be sent, read what may be read."""
        while self._accepted and not self.over:
            at = self._following - self._first
            if at < len(self._window):
                try:
                    sent = self._room.send(
                        self.peer, [CHUNK, self.group.id, self.image, self._window[at]], True
                    )
                except ValueError as error:  # a row that no frame holds
                    self.end(arrived=False, why=str(error))
                    return
                if not sent:
                    return  # `check` tries again
                self._following += 1
                self.chunks_sent += 1
                continue
            if not self._reading and not self._read_all and len(self._window) < WINDOW_CHUNKS:
                self._reading = True
                self._room.run(self._read, self._was_read)
            return

    def _read(self) -> bytes | None:
        return next(self._chunks, None)

    def _was_read(self, chunk: bytes | None, error: BaseException | None) -> None:
        self._reading = False
        if self.over:
            self.release()
        elif error is not None:
            log.error("an image cannot be read", group=self.group.id, why=str(error))
            if isinstance(error, StorageCorrupt):
                self.group.damaged(error)
            self.end(arrived=False, why=f"the image cannot be read: {error}")
        elif chunk is None:
            self._read_all = True
        else:
            self._window.append(chunk)
            self.pump()

    # ---- its end

    def check(self) -> None:
        """Time has gone by."""
        if not self.group.raft.is_leader or self.peer not in self.group.raft.conf.members:
            self.end(arrived=False, why="it is not ours to send any more")
            return
        if self._stored is None:
            return  # the flush waits for the disk, and hears of it
        self._idle_checks += 1
        if self._idle_checks > PATIENCE_CHECKS:
            self.end(arrived=False, why=f"node {self.peer} takes nothing")
        elif self._idle_checks % OFFER_CHECKS == 0:
            self.offer()
        else:
            self.pump()

    def down(self) -> None:
        """The connection broke."""
        self._accepted = False

    def done(self, installed: bool, index: int, why: str) -> None:
        """The peer is at `index` now, or does not want the image."""
        # One that came after the log went on without it came in vain.
        arrived = installed and index >= self.group.raft.compacted
        self.end(arrived=arrived, why=why or "the log went on without it", told=True)

    def end(self, *, arrived: bool, why: str = "", told: bool = False) -> None:
        """It is over; the core hears how it went."""
        if self.over:
            return
        self.over = True
        if arrived:
            reached("image sent")
            log.info("an image arrived", group=self.group.id, node=self.peer, chunks=self._first)
        else:
            reached("image given up")
            log.warning("an image did not arrive", group=self.group.id, node=self.peer, why=why)
        if not told:
            self._room.send(self.peer, [CANCEL, self.group.id, self.image], False)
        if self.group.holds.get(self.peer) is not None:
            del self.group.holds[self.peer]
        if not self._reading:
            self.release()
        self.group.raft.report_snapshot(self.peer, arrived=arrived)
        self._room.sent(self, arrived=arrived)

    def release(self) -> None:
        """Let go of the view, so that the disk need not keep what was replaced since."""
        self._chunks = iter(())
        close = getattr(self._rows, "close", None)
        if close is not None:
            close()
        if self._projection is not None:
            self._projection.close()
        self._window.clear()
