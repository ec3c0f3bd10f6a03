"""Images of whole groups between nodes, for replicas that lag behind the log or are new.

The core asks for an image (`Images.wanted`); it is sent (sender.py), arrives under a new generation
(receiver.py), is put in place by one write (`install`), and what it replaced is cleared away
(generations.py). This module knows which images are under way, and keeps their number small: one to a peer,
`OUTGOING_MAX` in all; others wait their turn.

A crash anywhere leaves the old rows or the new ones. The receiver goes on after its restart if the sender is
still there; a sender that restarts, or does not lead any more, begins anew with another image.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from cluster.hosting.groups.damage import note_key
from cluster.hosting.groups.group import Stored
from cluster.hosting.replicas.generations import Generations, Staged
from cluster.hosting.replicas.receiver import Incoming, raft_id
from cluster.hosting.replicas.sender import ACCEPT, ACK, CANCEL, CHUNK, DONE, OFFER, Outgoing
from history_store.raft import Kind, Message, SnapshotMeta
from history_store.rare import reached
from history_store.shard import snapshot
from history_store.shard.snapshot import Progress

if TYPE_CHECKING:
    import random

    from cluster.hosting.groups.committer import Committer
    from cluster.hosting.groups.group import Group
    from history_store.storage.contract import Round

log = structlog.get_logger("snapshots")

KINDS = frozenset((OFFER, ACCEPT, CHUNK, ACK, DONE, CANCEL))
OUTGOING_MAX = 2  # each has a thread, a view that the disk keeps old pages for, and 4 MiB of chunks
CHECK_S = 1.0
WAIT_CHECKS_MAX = 32  # between tries after failures

Result = TypeVar("Result")
SendImage = Callable[[int, list[Any], bool], bool]  # (node, message, bulk): whether it left


class Snapshots:
    """The images that come and go. Made before the committer has groups of a region; `recover` after that."""

    def __init__(
        self, committer: Committer, send: SendImage, rng: random.Random, *, inline: bool = False
    ) -> None:
        """`inline`: read images on the loop's thread, a chunk a turn."""
        self.committer = committer
        self.loop: asyncio.AbstractEventLoop = committer.loop
        self.send = send
        self.generations = Generations(committer, self._kick)
        self.chunk_bytes = snapshot.CHUNK_BYTES
        self.chunks_stored = 0
        self._rng = rng
        self._inline = inline
        self._wanted: dict[tuple[int, int], tuple[Group, int]] = {}  # (group, peer): index
        self._waits: dict[tuple[int, int], tuple[int, int]] = {}  # after failures: checks left, of how many
        self._outgoing: dict[int, Outgoing] = {}  # by peer
        self._incoming: dict[int, Incoming] = {}  # by group
        self._pool: ThreadPoolExecutor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._recovered = False
        self._closed = False
        committer.images = self

    def recover(self) -> None:
        """Take up what was under way when the node ended."""
        for staged in self.generations.recover():
            reached("image taken up after a restart")
            self._incoming[staged.group] = Incoming(self, staged, 0)
        self._recovered = True
        for group in self.committer.groups.values():
            self.opened(group)
        self._arm()

    def close(self) -> None:
        """Let go of all views. Before the storage is closed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self.generations.close()
        self._wanted.clear()
        ended = list(self._outgoing.values())
        for outgoing in ended:
            outgoing.end(arrived=False, why="this node stops")
        if self._pool is not None:
            self._pool.shutdown()
        for outgoing in ended:
            outgoing.release()

    @property
    def busy(self) -> bool:
        """Whether anything is under way."""
        return bool(self._wanted or self._outgoing or self._incoming) or self.generations.busy

    # ---- what the groups say (`Images`)

    def opened(self, group: Group) -> None:
        """The node has this replica; records of its last image may not be shown yet."""
        if self._recovered and group.rows.records_wait:
            self.generations.show(group)

    def wanted(self, group: Group, message: Message) -> None:
        """A replica needs what our log no longer has."""
        assert message.snapshot is not None, "the core says which state is wanted"
        outgoing = self._outgoing.get(message.to)
        if self._closed or (outgoing is not None and outgoing.group is group):
            return  # it is on its way
        self._wanted[group.id, message.to] = (group, message.snapshot.index)
        self.loop.call_soon(self._kick)  # a round is being formed; then everything committed is applied
        self._arm()

    def install(self, group: Group, meta: SnapshotMeta, batch: Round) -> None:
        """The core took an image: one write replaces rows, members and log."""
        incoming = self._incoming[group.id]
        staged = incoming.staged
        assert (staged.index, staged.term) == (meta.index, meta.term), "the core took another image"
        incoming.replaced = group.rows.generation
        batch.applied.append(
            (group.id, meta.index, meta.term, snapshot.wrap_conf(group.id, staged.generation, meta.conf))
        )
        batch.compact.append((group.id, meta.index, meta.term))
        batch.rows.extend(self.generations.switched(staged, incoming.replaced))
        if self.committer.splits is not None:
            self.committer.splits.replaced(group)
        if group.damage:
            batch.rows.append((note_key(group.id), None))
        group.rows.replace(staged.generation)

    def installed(self, group: Group) -> None:
        """That is durable."""
        incoming = self._incoming.pop(group.id)
        staged = incoming.staged
        log.info("an image is in place", group=group.id, index=staged.index, rows=staged.progress.rows)
        stored = Stored(staged.index, staged.term, staged.conf)
        group.note_image(stored)
        if group.damage:
            self._mended(group, stored)
        self.generations.begun(group, incoming.replaced)
        incoming.installed()
        if self.committer.splits is not None:
            self.committer.splits.installed(group)

    def closed(self, group: Group) -> None:
        """The node has this replica no more: nothing comes for it, and nothing goes."""
        for key in [key for key in self._wanted if key[0] == group.id]:
            del self._wanted[key]
        for outgoing in [one for one in self._outgoing.values() if one.group is group]:
            outgoing.end(arrived=False, why="the replica is here no more")
        incoming = self._incoming.get(group.id)
        if incoming is not None:
            incoming.abandon("the replica is here no more")

    def hiding(self, group: int | None) -> bool:
        """Whether List still shows what the group (None: any) had before, and has no more."""
        return self.generations.hiding(group)

    def installing(self, group: Group) -> bool:
        """Whether the round under way puts an image in the group's place, or the next one will."""
        incoming = self._incoming.get(group.id)
        return incoming is not None and incoming.installing

    # ---- images that this node made itself (shards/splitting.py)

    def take(self, staged: Staged) -> None:
        """It is complete, and the group is open: put it in place unless there is something newer."""
        other = self._incoming.get(staged.group)
        if other is not None and other.staged.generation == staged.generation:
            other.install()  # it has waited since a restart
            return
        if other is not None:
            other.abandon("this node has made one itself")
        incoming = Incoming(self, staged, 0)
        if staged.group in self._incoming:
            self.generations.forget(staged)  # the other one is being put in place
        else:
            self._incoming[staged.group] = incoming
            incoming.install()

    def made_here(self) -> list[Staged]:
        """Those that wait for their group."""
        return [incoming.staged for incoming in self._incoming.values() if incoming.staged.local]

    # ---- rows alone, where they are damaged (repair.py)

    def comes(self, group: Group) -> bool:
        """Whether an image is on its way here, and moves: its sender may be gone."""
        incoming = self._incoming.get(group.id)
        return incoming is not None and not incoming.stalled

    def asked(self, group: Group, node_id: int, index: int) -> None:
        """A replica wants our rows, as of that entry or later, although it lacks nothing of the log."""
        outgoing = self._outgoing.get(node_id)
        if not self._closed and (outgoing is None or outgoing.group is not group):
            self._wanted[group.id, node_id] = (group, index)
            self._kick()
            self._arm()

    def repair(self, incoming: Incoming) -> None:
        """It is complete: let it take the place of damaged rows, between two rounds."""
        self.committer.between(partial(self._repair, incoming))

    def _repair(self, incoming: Incoming, batch: Round) -> Callable[[], None] | None:
        group, staged = incoming.group, incoming.staged
        if incoming.over or incoming.installing or group is None or not group.damage:
            return None
        raft = group.raft
        busy = self.committer.folder.busy  # it may be storing rows of the group, and compact its log
        if busy or raft.is_leader or not raft.compacted <= staged.index <= raft.handed:
            return None  # `check` comes again
        assert raft.term_of(staged.index) == staged.term, "two replicas have committed different entries"
        incoming.installing = True
        incoming.replaced = group.rows.generation
        conf = snapshot.wrap_conf(group.id, staged.generation, staged.conf)
        batch.applied.append((group.id, staged.index, staged.term, conf))
        batch.rows.extend(self.generations.switched(staged, incoming.replaced))
        batch.rows.append((note_key(group.id), None))
        first = raft.compacted
        entries = raft.kept_entries()[staged.index - first : raft.handed - first]
        if self.committer.splits is not None:
            self.committer.splits.replaced(group)
        group.rows.rebase(staged.generation, entries)
        return partial(self._repaired, group, incoming)

    def _repaired(self, group: Group, incoming: Incoming) -> None:
        staged = incoming.staged
        del self._incoming[group.id]
        self._mended(group, Stored(staged.index, staged.term, staged.conf))
        if self.committer.splits is not None:
            self.committer.splits.installed(group)
        self.generations.begun(group, incoming.replaced)
        incoming.installed()

    def _mended(self, group: Group, stored: Stored) -> None:
        group.mend(stored)
        if self.committer.damages is not None:
            self.committer.damages.mended(group)

    # ---- peers

    def received(self, node_id: int, message: list[Any]) -> None:
        """A message of `KINDS`."""
        kind, number, image = message[:3]
        if kind == OFFER:
            self._offered(node_id, message)
        elif kind in (CHUNK, CANCEL):
            incoming = self._incoming.get(number)
            if incoming is None or incoming.sender != node_id or incoming.staged.image != image:
                return  # of an image that is not wanted any more; who sends it will ask
            if kind == CHUNK:
                incoming.chunk(message[3])
            elif not incoming.complete:
                incoming.abandon("its sender gave up")
        else:
            outgoing = self._outgoing.get(node_id)
            if outgoing is None or outgoing.group.id != number or outgoing.image != image:
                return
            if kind == ACCEPT:
                outgoing.accepted(message[3])
            elif kind == ACK:
                outgoing.acknowledged(message[3])
            else:
                outgoing.done(message[3], message[4], message[5])

    def up(self, node_id: int) -> None:
        """A connection with the node is there again."""
        outgoing = self._outgoing.get(node_id)
        if outgoing is not None:
            outgoing.offer()
        self._kick()

    def down(self, node_id: int) -> None:
        """The connection with the node broke."""
        outgoing = self._outgoing.get(node_id)
        if outgoing is not None:
            outgoing.down()

    def _offered(self, node_id: int, message: list[Any]) -> None:
        _, number, image, version, term, index, log_term, conf = message
        group = self.committer.groups.get(number)
        if group is None or not self._recovered or self._closed:
            return  # not yet: it will be offered again
        raft = group.raft
        if raft.is_leader or version > snapshot.FORMAT_VERSION:
            why = "it leads itself" if raft.is_leader else f"it cannot read format {version}"
            self.send(node_id, [DONE, number, image, False, raft.committed, why], False)
            return
        incoming = self._incoming.get(number)
        if incoming is not None and incoming.installing:
            incoming.sender, incoming.sender_image = node_id, image
            return
        if index <= raft.committed and not (group.damage and index >= raft.compacted):
            if raft.leader == node_id and raft.term == term:
                # The core's answer to the image may have been lost: it gives it again.
                meta = SnapshotMeta(index, log_term, conf)
                raft.step(Message(Kind.SNAPSHOT, raft_id(group), node_id, term, snapshot=meta))
                self.committer.mark(group)
            self.send(node_id, [DONE, number, image, True, raft.committed, ""], False)
            return
        if incoming is not None:
            if incoming.complete or incoming.staged.image == image:
                incoming.sender, incoming.sender_image = node_id, image
                if incoming.complete:  # this one will do, whoever sent it
                    incoming.install()
                else:
                    incoming.accept()
                return
            incoming.abandon("another image is offered")
        staged = Staged(number, self.generations.allocate(), image, index, log_term, conf, Progress())
        incoming = self._incoming[number] = Incoming(self, staged, node_id)
        incoming.accept()
        self._arm()

    # ---- which are under way

    def _kick(self) -> None:
        """Begin what waits, where there is room."""
        if self._closed:
            return
        for key, (group, index) in list(self._wanted.items()):
            peer = key[1]
            if not group.raft.is_leader:
                del self._wanted[key]
            elif len(self._outgoing) >= OUTGOING_MAX:
                return
            elif (
                peer not in self._outgoing
                and not self._waits.get(key, (0, 0))[0]
                and not group.rows.records_wait  # else records that are to be shown here would be missing
            ):
                del self._wanted[key]
                outgoing = Outgoing(self, group, peer, self._rng.getrandbits(62), index)
                self._outgoing[peer] = outgoing
                outgoing.begin()

    def sent(self, outgoing: Outgoing, *, arrived: bool) -> None:
        """One is over."""
        del self._outgoing[outgoing.peer]
        key = (outgoing.group.id, outgoing.peer)
        if arrived:
            self._waits.pop(key, None)
        else:
            _, before = self._waits.get(key, (0, 0))
            wait = min(before * 2 or 1, WAIT_CHECKS_MAX)
            self._waits[key] = (wait, wait)
        self.loop.call_soon(self._kick)

    def received_all(self, incoming: Incoming) -> None:
        """Nothing more is wanted of one."""
        if self._incoming.get(incoming.staged.group) is incoming:
            del self._incoming[incoming.staged.group]

    # ---- time and threads

    def _arm(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = self.loop.call_later(CHECK_S, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.check()
        if self._wanted or self._outgoing or self._incoming or self._waits:
            self._arm()

    def check(self) -> None:
        """A second went by: what was lost is asked for again, what does not move is given up."""
        for outgoing in list(self._outgoing.values()):
            outgoing.check()
        for incoming in list(self._incoming.values()):
            incoming.check()
        for key, (left, of) in list(self._waits.items()):
            if left > 0:
                self._waits[key] = (left - 1, of)
            elif key not in self._wanted and key[1] not in self._outgoing:
                del self._waits[key]  # nobody asked again
        self._kick()

    def run(
        self, work: Callable[[], Result], then: Callable[[Result | None, BaseException | None], None]
    ) -> None:
        """Do it beside the loop; tell the loop what came of it."""
        if self._inline:
            self.loop.call_soon(self._run_here, work, then)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(OUTGOING_MAX, thread_name_prefix="images")
        self._pool.submit(work).add_done_callback(partial(self._ran, then))

    @staticmethod
    def _run_here(
        work: Callable[[], Result], then: Callable[[Result | None, BaseException | None], None]
    ) -> None:
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - as the thread's future would have it
            then(None, error)
        else:
            then(result, None)

    def _ran(
        self, then: Callable[[Result | None, BaseException | None], None], future: Future[Result]
    ) -> None:
        error = future.exception()
        result = None if error is not None else future.result()
        if self._closed and self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(then, result, error)
