"""Rounds: one durable write serves every group that has something to say.

A round takes a Ready from each dirty group, writes them all with one `Storage.write` on the writer thread,
then advances the groups and tells who waited. While a round syncs the next one forms. Rows of committed
entries are written beside the rounds, later and many at once (folder.py).

When the disk is full the round stays as it is and is tried again until there is space: this node has
acknowledged nothing of it, unless a quorum of others has it. New writes are refused meanwhile (`refusal`).
Any other write error has an unknown outcome, so the node stops and lets the log decide at its next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import structlog

from cluster.hosting.groups import folder, lanes
from cluster.hosting.groups.folder import Folder
from cluster.hosting.groups.group import Group, Images, Repairs, Send, Splits, Waiter, notify
from history_store.engine.errors import Code, Indefinite, ServiceError
from history_store.raft import Config
from history_store.rare import reached
from history_store.storage.contract import Round, Storage, StorageCorrupt, StorageFull, StorageReadOnly

if TYPE_CHECKING:
    import random

    from cluster.hosting.groups.lanes import MakeLane
    from history_store.raft import Ready
    from history_store.storage.contract import GroupLog

log = structlog.get_logger("storage")

# Puts something into a round; answers what is to be called once that is durable, or None: it was nothing.
Between = Callable[[Round], Callable[[], None] | None]


def _in_time() -> None:
    """A group without others has no lease."""


class Committer:
    """All groups of a node, and its one writer thread."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        inline: bool,
        on_broken: Callable[[BaseException], None],
        node_id: int = 1,
        send: Send | None = None,
        make_lane: MakeLane | None = None,
    ) -> None:
        self.loop = loop
        self.storage = storage
        self.node_id = node_id
        self._send = send
        self.groups: dict[int, Group] = {}
        self.images: Images | None = None
        self.damages: Repairs | None = None
        self.splits: Splits | None = None
        self.catch_up: Callable[[], None] = _in_time  # give the groups the ticks that are due
        self.refusal: ServiceError | None = None  # why new writes are refused
        self.rounds = 0
        self.entries = 0
        self._on_broken = on_broken
        # Groups that may have timers. Whatever wakes one comes by here; the clock takes out those that sleep.
        self.awake: dict[Group, None] = {}
        self._dirty: dict[Group, None] = {}  # in the order they came, the same in every run of a test
        self._busy = False
        self._failing: set[object] = set()  # the lanes (rounds, rows) that the disk refuses
        self._scheduled = False
        self._pumping = False
        self._began = 0.0  # when the round under way was handed to the thread
        self._longest_s = 0.0
        self.exclusive = False  # a round puts an image in a group's place: no rows are written beside it
        self._held: tuple[Round, list[tuple[Group, Ready]]] | None = None  # such a round, until rows are done
        self._between: list[Between] = []
        self._afters: list[Callable[[], None]] = []  # of the round under way
        self.running = False  # the lanes write, and nobody else may
        self.stopped = False
        make = make_lane or (lanes.inline if inline else lanes.threads(loop))
        self._lane = make("writer", storage.write, None)
        self.folder = Folder(self, make)

    def start(self) -> None:
        """Begin to write."""
        self.running = True
        self.folder.start()
        self._lane.start()

    def add(
        self, group: int, found: GroupLog | None, rng: random.Random, config: Config | None = None
    ) -> Group:
        """Open a group; its log has been loaded (None: it is new). A group without others leads at once."""
        if config is None:
            config = Config(node_id=self.node_id, voters=(self.node_id,))
        made = self.groups[group] = Group(self, group, self.storage, found, rng.randrange, config, self._send)
        self.awake[made] = None
        made.recover()
        if self.images is not None:
            self.images.opened(made)
        return made

    def drop(self, group: Group) -> None:
        """The node has this replica no more. Between two rounds: none has a Ready of it out."""
        assert not self._busy, "a round may have a Ready of it"
        del self.groups[group.id]
        self._dirty.pop(group, None)
        self.awake.pop(group, None)
        group.close()
        if self.images is not None:
            self.images.closed(group)

    def write_now(self, group: Group, ready: Ready) -> None:
        """Write a Ready at once: before anything else runs."""
        batch = Round()
        group.collect(batch, ready)
        self.storage.write(batch)

    # ---- forming rounds

    def mark(self, group: Group) -> None:
        """The group has something to write."""
        self._dirty[group] = self.awake[group] = None
        self._schedule()

    def _schedule(self) -> None:
        if not self._busy:
            if not self._scheduled:
                self._scheduled = True
                self.loop.call_soon(self._begin)
        elif self._send is not None and not self._pumping:
            self._pumping = True
            self.loop.call_soon(self._pump)

    def between(self, fill: Between) -> None:
        """Call it between two rounds, when no group has a Ready out, to put something into the next one."""
        self._between.append(fill)
        if not self._busy:
            self._schedule()

    def _pump(self) -> None:
        """While a round is being written: appends leave for other replicas, and what they have is told of.

        So a follower's sync overlaps ours, and an entry that a quorum of others has does not wait for ours.
        """
        self._pumping = False
        if self.stopped:
            return
        for group in list(self._dirty):
            group.note_loss()
            group.send(group.raft.take_messages())
            committed = group.raft.take_committed()
            if committed:
                group.apply(committed)
            group.tell()

    def _take_readies(self, batch: Round, readies: list[tuple[Group, Ready]]) -> None:
        """A Ready of each dirty group: what must be durable goes in the round, the rest is done here."""
        while self._dirty:
            dirty, self._dirty = self._dirty, {}
            for group in dirty:
                if not group.raft.has_ready():
                    continue
                ready = group.raft.ready()
                group.note_state(ready)
                if ready.messages:
                    group.send(ready.messages)
                if ready.must_sync:
                    group.collect(batch, ready)
                    readies.append((group, ready))
                    if ready.committed_entries:  # and durable before this Ready: they wait for no disk
                        group.apply(ready.committed_entries)
                    group.tell()
                else:
                    group.apply(ready.committed_entries)
                    group.apply(group.raft.advance(ready))
                    group.send(ready.messages_after)
                    self.awake[group] = None  # it may have others now
                    if group.raft.has_ready():
                        self._dirty[group] = None
                    group.tell()

    def _begin(self) -> None:
        self._scheduled = False
        if self._busy or self.stopped:
            return
        batch = Round()
        readies: list[tuple[Group, Ready]] = []
        between, self._between = self._between, []
        self._afters = [after for fill in between if (after := fill(batch)) is not None]
        self._take_readies(batch, readies)
        if not readies and not self._afters:
            self.folder.plan(self.groups.values())
            return
        self._busy = True
        self._began = self.loop.time()
        self.exclusive = bool(batch.applied)
        if self.exclusive and self.folder.busy:
            self._held = (batch, readies)
        else:
            self._give(batch, readies)

    def _give(self, batch: Round, readies: list[tuple[Group, Ready]]) -> None:
        self.rounds += 1
        self._lane.put(batch, partial(self._written, batch, readies))

    def folded(self) -> None:
        """The rows that were being written are written: a round that waited for that may go."""
        held, self._held = self._held, None
        if held is not None and not self.stopped:
            self._give(*held)

    def flush(self, waiter: Waiter) -> None:
        """Store the rows of everything committed so far, then call back."""
        self.folder.flush(waiter)

    def store(self, fill: Callable[[Round], None], done: Callable[[], None]) -> None:
        """Write rows that are no entry's (see `Folder.store`)."""
        self.folder.store(fill, done)

    @property
    def unsettled(self) -> list[Group]:
        """Groups that have proposed what is not committed yet."""
        return [group for group in self.groups.values() if group.proposed > group.committed]

    @property
    def visibility_pending(self) -> bool:
        """Whether a List would miss something that is committed."""
        if self.folder.projecting:
            return True
        return any(
            group.rows.visibility_pending or group.applied < group.committed for group in self.groups.values()
        )

    def longest_round_s(self) -> float:
        """The longest round since this was last asked, one that is still being written included."""
        longest, self._longest_s = self._longest_s, 0.0
        return max(longest, self.loop.time() - self._began if self._busy else 0.0)

    def _written(self, batch: Round, readies: list[tuple[Group, Ready]], error: BaseException | None) -> None:
        if error is not None:
            if self.failed(self, error) is not None:
                self.loop.call_later(folder.FULL_RETRY_S, self._retry, batch, readies)
            return
        self.succeeded(self)
        self._busy = self.exclusive = False
        self._longest_s = max(self._longest_s, self.loop.time() - self._began)
        for after in self._afters:
            after()
        for group, ready in readies:
            if ready.snapshot is not None:
                assert self.images is not None, "somebody installed it"
                self.images.installed(group)
            group.apply(group.raft.advance(ready))
            group.send(ready.messages_after)
            self.entries += len(ready.entries)
            self.awake[group] = None  # it may have others now
        for group, _ in readies:
            group.tell()
            if group.raft.has_ready():
                self._dirty[group] = None
        self.folder.plan([group for group, _ in readies])
        if self.folder.waits:
            self.folder.begin()
        if self._dirty or self._between:
            self._schedule()

    def _retry(self, batch: Round, readies: list[tuple[Group, Ready]]) -> None:
        if not self.stopped:
            self.rounds -= 1  # the same one again
            self._give(batch, readies)

    # ---- a disk that refuses, and one that fails

    def failed(self, lane: object, error: BaseException, told: Iterable[Waiter] = ()) -> ServiceError | None:
        """A lane could not write. What new writes are refused with until it can; None: the node stops."""
        if not isinstance(error, StorageFull | StorageReadOnly):
            self.stop_for(error, told)
            return None
        self._failing.add(lane)
        if self.refusal is None:
            reached("disk full")
            log.error("the disk takes no writes; refusing new ones until it does", error=str(error))
            self.refusal = ServiceError(Code.RESOURCE_EXHAUSTED, f"this node takes no writes: {error}")
            waits = Indefinite(f"the write waits for the disk and may still happen: {error}")
            for group in self.groups.values():
                group.fail_waiters(waits)
            if self.folder.waits:
                self.loop.call_soon(self.folder.begin)
        return self.refusal

    def succeeded(self, lane: object) -> None:
        """A lane could write."""
        if self._failing:
            self._failing.discard(lane)
            if not self._failing and not self.stopped:
                log.warning("the disk takes writes again")
                self.refusal = None

    def stop_for(self, error: BaseException, told: Iterable[Waiter] = ()) -> None:
        """The storage failed, and what it holds is unknown: stop; the log decides at the next start."""
        corrupt = isinstance(error, StorageCorrupt)
        advice = {"do": self.damages.advice} if corrupt and self.damages is not None else {}
        log.critical("the disk failed; stopping", error=str(error), **advice)
        self.stopped = True
        if corrupt and self.images is not None:
            self.storage.condemn(str(error))  # others have what it had; this is not to be met again
        self.refusal = Indefinite(f"this node's disk failed, and it stops: {error}")
        for group in self.groups.values():
            group.fail_waiters(self.refusal)
        for waiter in (*told, *self.folder.give_up()):
            notify(waiter, self.refusal)
        self._on_broken(error)

    def abandon(self) -> None:
        """Write what is being written, and no more: a start that comes to nothing."""
        self.halt()
        self.folder.stop()
        self._lane.stop()

    def halt(self) -> None:
        """Write nothing more: for one that plays a crash."""
        self.stopped = True
        self.folder.cancel()

    async def close(self) -> None:
        """Store everything committed, then stop the thread."""
        if not self.stopped and self.refusal is None:
            done: asyncio.Future[ServiceError | None] = self.loop.create_future()
            self.flush(done.set_result)
            await done
        self.stopped = True
        self.folder.stop()
        self._lane.stop()
