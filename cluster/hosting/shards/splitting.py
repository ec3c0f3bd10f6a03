"""A shard is split in two while it serves: its rows are brought over, and the other half comes into being.

Theory of operation (the rows: `history_store.shard.split`). The table names the coming shard, the child. Each
replica of the parent copies the child's rows under a generation of their own, a few a round, and from then
on stores twice what belongs there (`ready`). When enough of them are ready the steward asks the parent's
leader to propose the entry that splits the shard; it takes nothing else until that is applied.

Where it is applied, the parent sees no rows any more of the slots that it gave up, and the copy is exact as
of the entry. It becomes the child's replica as an image would that came from elsewhere (`Snapshots.take`). A
copy that is not complete by then goes on, since its rows do not change any more. A replica that the entry
reaches with an image of the parent has no rows to copy: its child is empty, and gets an image as well. Where
the parent is led the child stands for election at once.

What is left in the parent is deleted when the child has committed an entry, for then a majority has its rows.
Until then the parent's log keeps the entry, so that every replica that has it can still bring the rows over:
what was acknowledged before the split has at all times as many copies as it had.

A split that is not wanted any more is abandoned by an entry of the parent's, too. No leader proposes one of
the two entries while there may be another in its log, so one comes, and it decides. Where it is applied, what
was copied is thrown away.

Everything is in the book (replicas/generations.py), in the same rounds as what it speaks of: a crash finds
the copy as far as it was, or the entry applied and its rows still there, or the child. All steps are computed
from that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec
import structlog
from msgspec.structs import replace

from cluster.hosting.replicas.generations import (
    COPIED,
    PARTED,
    STAGED,
    Generations,
    Staged,
    decode_copy,
    decode_parting,
)
from history_store.engine.errors import ServiceError
from history_store.engine.keys import SPLIT
from history_store.raft import DATA, RaftError
from history_store.raft.roles import Role
from history_store.rare import reached
from history_store.shard import image, snapshot, split
from history_store.shard.snapshot import Progress
from history_store.shard.split import FIRST_INDEX, FIRST_TERM, Copy, Mirror, Parting, Ranges, Slots, Split
from history_store.storage.contract import StorageCorrupt

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.groups.committer import Committer
    from cluster.hosting.groups.group import Group, RowList
    from cluster.hosting.replicas.snapshots import Snapshots
    from history_store.storage.contract import Round, Storage

log = structlog.get_logger("splits")

# Of one round: some milliseconds of others' time.
COPIED_ROWS = 256
COPIED_BYTES = 128 << 10
CLEARED_ROWS = 128
LOOK_S = 0.5
STAND_S = 0.03  # until the other replicas of a new group are there to vote
STANDS_MAX = 100

_pack = msgspec.msgpack.Encoder().encode


class Asked(msgspec.Struct, frozen=True):
    """A split that the table wants."""

    parent: int
    child: int
    ranges: Ranges
    abandoned: bool = False


class Splitting:
    """Of one node. Made before the node opens the replicas of shards; `recover` after that."""

    def __init__(
        self,
        committer: Committer,
        snapshots: Snapshots,
        open_shard: Callable[[int], Group],
        on_disk: Callable[[int], bool],
        on_news: Callable[[], None],
    ) -> None:
        """`on_disk`: whether a replica is there or was. `on_news`: something is ready, split, or to open."""
        self.committer = committer
        self.snapshots = snapshots
        self.storage: Storage = committer.storage
        generations = self.generations = snapshots.generations
        self._open_shard = open_shard
        self._on_disk = on_disk
        self._on_news = on_news
        # (group, child, its slots) -> rows that are no slot's, which the child begins with
        self.heritage: Callable[[int, int, Ranges], RowList] = lambda *_: []
        self._asked: dict[int, Asked] = {}  # by child
        self._copies: dict[int, _CopyJob] = {}
        self._partings: dict[int, Parting] = {}
        self._children: dict[
            int, dict[int, Split]
        ] = {}  # of each group that is open: what it gave up, by child
        self._parents: dict[int, int] = {}  # of shards that began here since the start
        self._finishing: set[int] = set()
        self._clearing: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._recovered = self._closed = False
        for value in generations.book(PARTED):
            parting = decode_parting(value)
            self._partings[parting.split.child] = parting
        for value in generations.book(COPIED):
            copy = decode_copy(value)
            self._copies[copy.child] = _CopyJob(self, copy)
        committer.splits = self

    def recover(self) -> None:
        """Take up what was under way when the node ended. After `Snapshots.recover`."""
        self._recovered = True
        for job in self._copies.values():
            if not job.complete:
                self.generations.begin(job)
        for staged in self.snapshots.made_here():
            self._begin_child(staged)
        self._look()

    def close(self) -> None:
        """Begin no more; the next start goes on."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    # ---- what is wanted, and how far it is

    def ask(self, wanted: Iterable[Asked]) -> None:
        """The splits that the table wants now, and those that it wants no more and waits for."""
        self._asked = {asked.child: asked for asked in wanted}
        self._look()

    def ready(self) -> list[int]:
        """Children whose rows are brought over, as far as they are stored."""
        return sorted(
            child for child, job in self._copies.items() if job.complete and child not in self._partings
        )

    def parted(self) -> list[int]:
        """Children that groups led here have been split from, and that the table does not show yet."""
        return self._decided(abandoned=False)

    def abandoned(self) -> list[int]:
        """Those that groups led here will not be split from, where the table does not show that yet."""
        return self._decided(abandoned=True)

    def _decided(self, *, abandoned: bool) -> list[int]:
        found = ((child, self._said(asked.parent, child)) for child, asked in self._asked.items())
        return sorted(
            child
            for child, said in found
            if said is not None
            and said.abandoned is abandoned
            and self.committer.groups[self._asked[child].parent].leading
        )

    def _said(self, parent: int, child: int) -> Split | None:
        """What the parent's rows say of a child."""
        return self._children.get(parent, {}).get(child)

    def may_open(self, child: int, parent: int, *, serving: bool, wanted: bool) -> bool:
        """Whether a shard that was split from `parent` may be opened here by itself, empty if it is new.

        `serving`: the table says that it is split; `wanted`: that the parent has a replica here. Then the
        parent's rows have to say so, too, for this may be a replica that makes the child of them.
        """
        if self._on_disk(child):
            return True
        if parent not in self.committer.groups or not wanted:
            return serving and child not in self._partings
        said = self._said(parent, child)
        return said is not None and not said.abandoned and child not in self._partings

    def split(self, child: int) -> None:
        """Propose the entry, if the parent is led here and this is the time; the steward asks again."""
        asked, job = self._asked.get(child), self._copies.get(child)
        group = self._open(asked)
        if asked is None or asked.abandoned or group is None or job is None or not job.complete:
            return
        raft = group.raft
        if raft.conf_changes or raft.transferee:
            return
        said = Split(split.SPLIT, child, asked.ranges, raft.conf_bytes, raft.last_index + 1)
        if self._propose(group, said):
            reached("shard split")
            log.info("a shard is split", group=group.id, child=child, index=said.index)

    def abandon(self, child: int) -> None:
        """Propose that the parent stays whole, if it is led here; the steward asks again."""
        group = self._open(self._asked.get(child))
        if group is None:
            return
        if self._propose(group, split.abandonment(child, group.raft.last_index + 1)):
            reached("split abandoned")
            log.info("a split is abandoned", group=group.id, child=child)

    def _open(self, asked: Asked | None) -> Group | None:
        """The parent, if it is led here and its log has nothing yet of the child."""
        group = self.committer.groups.get(asked.parent) if asked is not None else None
        if asked is None or group is None or not group.leading or group.frozen:
            return None
        # A leader has applied all that was in its log before, and what it proposed itself freezes it.
        return group if self._said(group.id, asked.child) is None else None

    def _propose(self, group: Group, said: Split) -> bool:
        rows: RowList = [(split.key_of(said.child), split.encode(said))]
        heritage = self.heritage(group.id, said.child, said.ranges) if said.ranges else []
        if heritage:
            rows.append((split.heritage_key(said.child), split.encode_heritage(heritage)))
        try:
            leaving = Slots(said.ranges) if said.ranges else None
            group.propose_split(image.encode_split(rows), rows, leaving)
        except (RaftError, ServiceError) as error:
            log.info("a shard cannot be split now", group=group.id, child=said.child, why=str(error))
            return False
        return True

    def parent_of(self, child: int) -> Group | None:
        """The replica here of the shard that this one was split from a moment ago."""
        return self.committer.groups.get(self._parents.get(child, -1))

    def gone_from(self, group: Group, index: int) -> Ranges:
        """Slots whose rows storage has of the group, at that entry, although they are not its any more."""
        return tuple(
            pair
            for parting in self._of(group)
            if parting.split.index <= index
            for pair in parting.split.ranges
        )

    def heirs(self, slot: int, group: int) -> list[int]:
        """To which groups the slot went from this one, and on: as the logs say, before the table does."""
        for child, said in self._children.get(group, {}).items():
            if any(first <= slot <= last for first, last in said.ranges):
                return [child, *self.heirs(slot, child)]
        return []

    @property
    def busy(self) -> bool:
        """Whether rows are being brought over or cleared away."""
        return bool(self._copies or self._partings)

    # ---- what groups say (`group.Splits`)

    def opening(self, group: Group) -> None:
        """The node is making this replica: what it gave up is not seen, what is copied is stored twice."""
        self._read_children(group)
        for job in self._copies.values():
            if job.copy.parent == group.id and job.copy.source == group.rows.generation:
                group.rows.mirrors.append(job.mirror)
        self._hide(group)

    def applied(self, group: Group, said: Split) -> None:
        """From this entry on the slots are the child's; or it is certain that they will not be."""
        if said.child in self._children[group.id]:
            return  # said twice
        self._children[group.id][said.child] = said
        if said.abandoned:
            group.frozen = False
            self.committer.loop.call_soon(self._look)
            self.committer.loop.call_soon(self._on_news)
            return
        self._give(group)
        parting = Parting(group.id, group.rows.generation, said)
        self._partings[said.child] = parting
        group.rows.store_along(said.index, self.generations.key(PARTED, said.child), _pack(parting))
        if said.child not in self._copies and self._recovered and not self._on_disk(said.child):
            self._copy(Asked(group.id, said.child, said.ranges), group)
        job = self._copies.get(said.child)
        if job is not None:
            job.mirror.until = said.index
        self._hold(group)
        loop = self.committer.loop
        self.committer.flush(lambda _error: self._look())
        if group.leading:
            # Who waits for an entry before this one, of the same round, hears of it in this turn of the loop,
            # and may read: a worker's task with its history, say.
            loop.call_soon(self._part, group)
        else:
            self._hide(group)
        loop.call_soon(self._on_news)

    def _part(self, group: Group) -> None:
        """What was given up is not seen any more where the group is led."""
        self._hide(group)
        group.lead_anew()

    def replaced(self, group: Group) -> None:
        """An image takes the place of the group's rows: what was not brought over by now is not here."""
        group.rows.mirrors.clear()
        group.rows.gone = None
        group.hold_from = 0

    def installed(self, group: Group) -> None:
        """That is durable."""
        self._read_children(group)
        raft = group.raft
        for entry in raft.kept_entries():  # where only the rows were replaced, they may be older than the log
            again = group.stored.index < entry.index <= raft.handed and entry.kind == DATA
            if again and image.is_split(entry.data):
                for said in split.splits_in(image.decode(entry.data).rows):
                    self.applied(group, said)
        self.committer.loop.call_soon(self._on_news)
        self._look()

    def _read_children(self, group: Group) -> None:
        start = snapshot.prefix(group.rows.generation) + SPLIT
        found: list[Split] = []
        try:
            rows = self.storage.scan(start, start + b"\xff" * 5)
            found = split.splits_in((key[4:], value) for key, value in rows)
        except StorageCorrupt as error:
            group.damaged(error)
        self._children[group.id] = {said.child: said for said in found}
        self._give(group)

    def _give(self, group: Group) -> None:
        """What is asked for these slots from now on is refused, in the same moment in which they go."""
        ranges = [pair for said in self._children[group.id].values() for pair in said.ranges]
        group.given = Slots(ranges) if ranges else None

    def _of(self, group: Group) -> list[Parting]:
        return [
            parting
            for parting in self._partings.values()
            if parting.parent == group.id and parting.source == group.rows.generation
        ]

    def _hide(self, group: Group) -> None:
        """See to it that rows that are left are not seen."""
        ranges = [pair for parting in self._of(group) for pair in parting.split.ranges]
        group.rows.gone = Slots(ranges) if ranges else None
        self._hold(group)

    def _hold(self, group: Group) -> None:
        """See to it that the log keeps what others may need."""
        kept = [p.split.index for p in self._of(group) if p.split.child not in self._clearing]
        group.hold_from = min(kept, default=0)

    def _is_void(self, parent: int, source: int) -> bool:
        group = self.committer.groups.get(parent)
        return group is None or group.rows.generation != source

    # ---- the next steps, from what there is

    def _look(self) -> None:
        if self._closed or not self._recovered:
            return
        for child, job in list(self._copies.items()):
            said = self._said(job.copy.parent, child)
            if self._is_void(job.copy.parent, job.copy.source) or (said is not None and said.abandoned):
                self._give_up(child)
        for asked in self._asked.values():
            group = self.committer.groups.get(asked.parent)
            if (
                group is not None
                and group.raft.conf.voters
                and not asked.abandoned
                and asked.child not in self._copies
                and asked.child not in self._children[group.id]
                and not group.damage
                and not group.rows.records_wait  # or the copy's newer records would be written over
            ):
                self._copy(asked, group)
        for child, parting in list(self._partings.items()):
            self._go_on(child, parting)
        if self._timer is None and (self._asked or self._partings or self._copies):
            self._timer = self.committer.loop.call_later(LOOK_S, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self._look()

    def _go_on(self, child: int, parting: Parting) -> None:
        """One step of a split that is applied here."""
        group = self.committer.groups.get(parting.parent)
        if self._is_void(parting.parent, parting.source):
            self._forget(child)
            return
        assert group is not None, "it is not void"
        if group.stored.index < parting.split.index:
            return  # the flush tells
        half = self.committer.groups.get(child)
        job = self._copies.get(child)
        if job is not None:
            if job.complete and child not in self._finishing:
                self._finish(child, job, parting)
        elif any(one.group == child for one in self.snapshots.made_here()):
            pass  # it is being put in place
        elif half is None and not self._on_disk(child):
            self._copy(Asked(parting.parent, child, parting.split.ranges), group)
            self._copies[child].mirror.until = parting.split.index
        elif (half is None or half.committed > FIRST_INDEX) and child not in self._clearing:
            self._clearing.add(child)  # a majority has it, or it has left this node since
            self._hide(group)
            self.generations.begin(_ClearJob(self, parting))

    def _copy(self, asked: Asked, group: Group) -> None:
        target = self.generations.allocate()
        copy = Copy(asked.parent, asked.child, asked.ranges, group.rows.generation, target)
        job = self._copies[asked.child] = _CopyJob(self, copy)
        group.rows.mirrors.append(job.mirror)
        self.generations.begin(job)

    def copied(self, job: _CopyJob) -> None:
        """A copy is complete, or void."""
        child = job.copy.child
        if self._copies.get(child) is job and job.complete and not job.void:
            log.info("the rows of a coming shard are copied", group=job.copy.parent, child=child)
            self._on_news()
        self._look()

    def _give_up(self, child: int) -> None:
        """The rows that were copied are not the group's any more, or nobody will want them."""
        job = self._copies.pop(child)
        job.void = True
        self._mirror_no_more(job)
        rows: RowList = [(self.generations.key(COPIED, child), None)]
        if child in self._finishing:  # it is being made the child's image in this moment, or was
            rows.append((self.generations.key(STAGED, child), None))
        self.generations.drop(job.copy.target, child, rows)

    def _mirror_no_more(self, job: _CopyJob) -> None:
        group = self.committer.groups.get(job.copy.parent)
        if group is not None and job.mirror in group.rows.mirrors:
            group.rows.mirrors.remove(job.mirror)

    def _forget(self, child: int) -> None:
        """The rows that were to be cleared away are not there any more."""
        del self._partings[child]
        key = self.generations.key(PARTED, child)
        self.committer.store(lambda batch: batch.rows.append((key, None)), lambda: None)

    # ---- the child

    def _finish(self, child: int, job: _CopyJob, parting: Parting) -> None:
        """The copy is exact as of the entry: it is an image of the child, complete."""
        self._finishing.add(child)
        all_of_it = Progress(complete=True)
        conf = parting.split.conf
        staged = Staged(child, job.copy.target, 0, FIRST_INDEX, FIRST_TERM, conf, all_of_it, local=True)

        def fill(batch: Round) -> None:
            if not job.void:
                batch.rows.append(Generations.staged(staged))
                batch.rows.append((self.generations.key(COPIED, child), None))

        def done() -> None:
            self._finishing.discard(child)
            if job.void:
                return
            del self._copies[child]
            self._mirror_no_more(job)
            self._begin_child(staged)

        self.committer.store(fill, done)

    def _begin_child(self, staged: Staged) -> None:
        child = staged.group
        parting = self._partings.get(child)
        if parting is not None:
            self._parents[child] = parting.parent
        half = self.committer.groups.get(child) or self._open_shard(child)
        if half.committed >= FIRST_INDEX:
            self.generations.forget(staged)
            return
        self.snapshots.take(staged)
        log.info("the other half of a shard begins", child=child)
        self._stand(child, STANDS_MAX)

    def _stand(self, child: int, left: int) -> None:
        """Where the parent is led, the child is to be led first."""
        half, parent = self.committer.groups.get(child), self.parent_of(child)
        if (
            half is None
            or parent is None
            or not parent.leading
            or half.raft.leader
            or not left
            or self._closed
        ):
            return
        if half.raft.role is not Role.CANDIDATE and half.raft.campaign():
            self.committer.mark(half)
        self.committer.loop.call_later(STAND_S, self._stand, child, left - 1)

    def damaged(self, parent: int, error: StorageCorrupt) -> None:
        """Rows of a parent are not what was written."""
        group = self.committer.groups.get(parent)
        if group is not None:
            group.damaged(error)

    def cleared(self, parting: Parting, *, ended: bool) -> None:
        """Nothing is left in the parent; or it could not be read, and its next rows will be without."""
        child = parting.split.child
        self._clearing.discard(child)
        if ended and self._partings.get(child) is parting:
            del self._partings[child]
            group = self.committer.groups.get(parting.parent)
            if group is not None:
                self._hide(group)
            log.info("a shard has no rows of its other half any more", group=parting.parent, child=child)


class _CopyJob:
    """Rows of slots are copied from one generation to another."""

    def __init__(self, splitting: Splitting, copy: Copy) -> None:
        self._splitting = splitting
        self.copy = copy
        slots = Slots(copy.ranges)
        parting = splitting._partings.get(copy.child)
        self.mirror = Mirror(
            copy.child, copy.target, slots, parting.split.index if parting is not None else 0
        )
        self.void = False
        self._spans = split.spans(copy.ranges)

    @property
    def complete(self) -> bool:
        """Whether all rows are brought over."""
        return self.copy.span == len(self._spans)

    def fill(self, batch: Round) -> bool:
        """A few rows, before those that the round has of a flush: these may be newer."""
        if self.void:
            return True
        try:
            return self._fill(batch)
        except StorageCorrupt as error:  # other rows will come, and another copy
            self._splitting.damaged(self.copy.parent, error)
            self.void = True
            return True

    def _fill(self, batch: Round) -> bool:
        copy = self.copy
        source, target = snapshot.prefix(copy.source), snapshot.prefix(copy.target)
        have = self.mirror.slots.begin_with
        found: RowList = []
        span, after, rows, size = copy.span, copy.after, 0, 0
        while span < len(self._spans) and rows < COPIED_ROWS and size < COPIED_BYTES:
            start, end = self._spans[span]
            if after:
                start = after + b"\0"
            limit = COPIED_ROWS - rows
            ended = True
            for number, (full, value) in enumerate(
                self._splitting.storage.scan(source + start, source + end, limit), 1
            ):
                key = after = full[4:]
                rows += 1
                if have(key, value):
                    found.append((target + key, value))
                    size += len(key) + len(value)
                if size >= COPIED_BYTES or number == limit:
                    ended = False
                    break
            if ended:
                span, after = span + 1, b""
        self.copy = replace(copy, span=span, after=after)
        batch.rows[:0] = found
        batch.rows.append((self._splitting.generations.key(COPIED, copy.child), _pack(self.copy)))
        return self.complete

    def done(self) -> None:
        """All are on disk."""
        self._splitting.copied(self)


class _ClearJob:
    """Rows that were given to another shard are deleted."""

    def __init__(self, splitting: Splitting, parting: Parting) -> None:
        self._splitting = splitting
        self._parting = parting
        self._slots = Slots(parting.split.ranges)
        self._spans = split.spans(parting.split.ranges)
        self._after = b""
        self._ended = False

    def fill(self, batch: Round) -> bool:
        """A few rows."""
        try:
            return self._fill(batch)
        except StorageCorrupt as error:  # others will come, without these
            self._splitting.damaged(self._parting.parent, error)
            return True

    def _fill(self, batch: Round) -> bool:
        parting, splitting = self._parting, self._splitting
        key = splitting.generations.key(PARTED, parting.split.child)
        source = snapshot.prefix(parting.source)
        if splitting._is_void(parting.parent, parting.source):
            self._spans.clear()  # all of them went, or go
        looked = 0
        while self._spans and looked < CLEARED_ROWS:
            start, end = self._spans[0]
            if self._after:
                start = self._after + b"\0"
            limit = CLEARED_ROWS - looked
            found = list(splitting.storage.scan(source + start, source + end, limit))
            looked += len(found)
            gone = [(full, value) for full, value in found if self._slots.have(full[4:], value)]
            batch.visibility[:0] = splitting.generations.stale(parting.parent, gone, kept=False)
            batch.rows.extend((full, None) for full, _ in gone)
            if len(found) == limit:
                self._after = found[-1][0][4:]
            else:
                del self._spans[0]
                self._after = b""
        if self._spans:
            return False
        batch.rows.append((key, None))
        self._ended = True
        return True

    def done(self) -> None:
        """Nothing is left of them."""
        self._splitting.cleared(self._parting, ended=self._ended)
