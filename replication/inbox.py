"""The inbox: how a shard's leader reads another region's stream, gapless, in order, each entry once.

Theory of operation. Where a reader is, is a row of the reading shard (log/cursor.py). An `Inbox` is what the
leader has in memory: it begins at the cursor and is thrown away with the leadership, or when a batch that it
gave was not applied.

The next frame is the one whose first number is `want`. Whatever comes, from wherever, is seen in that light:
what is behind is a duplicate, what is ahead waits, and what is next is checked (digest, chain, format, kinds)
and then may be taken. "Not there" proves nothing, since rows come late, or never, in one region: a hole is
asked for at ever more places until it is filled (log/search.py). No number is ever passed because of time, or
because of what a head or an acknowledgement says.

The stream halts, and needs a snapshot, if
 * the source, when asked, has another incarnation than the one that was read (a doorbell may be from before
   the reader began: it is a reason to ask, and no more);
 * the source says that it keeps the next frame no more, and it is not in the log either, asked for after that
   through the region that wrote it;
 * the next frame is damaged, or gone, at both of these;
 * what comes next is whole, and follows another history than the one that was applied.
It halts, and needs a newer release, at a format or a kind that is not known. One damaged copy halts nothing.

Lineage: TCP's receiver with selective acknowledgement; Akka Persistence Cassandra's search for gaps, which
waits by time where this asks elsewhere. Invariant: what is taken is the sequence, once, without a gap.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

from replication.frames import (
    ChainBroken,
    Frame,
    FrameDamaged,
    FrameUnknown,
    Stream,
    check_follows,
    open_frame,
)
from replication.log.contract import READ_FRAMES_MAX, Head, Slice
from replication.log.cursor import Batch, Cursor, Opened
from replication.log.search import Limits as SearchLimits
from replication.log.search import Outcome, Place, Search
from replication.outbox import Doorbell, Pulled

# Who speaks for the source: where what they have follows another history, ours is not the source's.
_AUTHORITIES = (Place.OWN, Place.SOURCE, Place.PULL)


class Ask(NamedTuple):
    """A question for the shell to put, and to end with `answered` or `failed`, once."""

    # OWN, SOURCE: LogStore.read, a Slice. PULL: the source shard's leader, outbox.answer_pull, a Pulled.
    # THIRD: another region, what it has of the log, a Slice.
    place: Place
    want: int
    frames_max: int
    region: str  # OWN: none
    last: bool  # the source keeps `want` no more, as it said before this was asked


class Reason(StrEnum):
    """Why a stream halts."""

    UNKNOWN_INCARNATION = "unknown incarnation"
    BELOW_OLDEST = "below the oldest"
    DAMAGED = "damaged everywhere"
    OTHER_HISTORY = "other history"
    NEWER_RELEASE = "newer release"


class Halted(NamedTuple):
    """A stream that goes no further by itself."""

    reason: Reason
    detail: str

    @property
    def needs_snapshot(self) -> bool:
        """Whether a snapshot of the source helps; else this node needs a newer release."""
        return self.reason is not Reason.NEWER_RELEASE


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a reader holds, and how patient it is."""

    # Frames that may be taken and are not yet: some Raft entries' worth. When full, nothing is asked for.
    ready_bytes_max: int = 8 << 20
    # Frames that came before their turn. The farthest go first: they can be read again.
    early_bytes_max: int = 16 << 20
    early_frames_max: int = 2048
    # Frames of a poll of the own region while there is a hole: only to see whether it is filled.
    hole_frames_max: int = 8
    search: SearchLimits = field(default_factory=SearchLimits)


LIMITS = Limits()


class Inbox:
    """The reader of one stream. Time is a steady clock in milliseconds.

    `thirds` are the regions that are neither the source's nor ours.
    """

    __slots__ = (
        "_absent",
        "_bad",
        "_early",
        "_early_bytes",
        "_end",
        "_gone",
        "_known",
        "_limits",
        "_ready",
        "_ready_bytes",
        "_retired",
        "_search",
        "_stream",
        "counts",
        "halted",
    )

    def __init__(self, cursor: Cursor, thirds: Sequence[str], now: int, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._stream = cursor.stream
        self._retired = cursor.retired
        self._end = cursor.tail  # of what was checked
        self._known = cursor.seq  # numbers up to here exist
        self._ready: deque[Opened] = deque()
        self._ready_bytes = 0
        self._early: dict[int, tuple[Frame, Place]] = {}  # by first number
        self._early_bytes = 0
        self._search = Search(cursor.stream.region, thirds, now, limits.search)
        # Of the next frame:
        self._gone = False  # the source says that it keeps it no more
        self._absent = False  # and after that it was not in the source's log
        self._bad: set[Place] = set()  # where it is damaged
        self.halted: Halted | None = None
        # What happened, for metrics: frames taken by place, "duplicates", "damaged", "strange".
        self.counts: Counter[str] = Counter()

    @property
    def want(self) -> int:
        """The first number of the next frame."""
        return self._end.seq + 1

    @property
    def behind(self) -> int:
        """How many numbers are known to exist that were not checked yet."""
        return self._known - self._end.seq

    @property
    def missing_at(self) -> int | None:
        """Since when the next frame is known to exist and does not come; None if it is not."""
        return self._search.missing_at

    @property
    def _full(self) -> bool:
        return self._ready_bytes >= self._limits.ready_bytes_max

    # --------------------------------------------------------------------------------------------- what comes

    def doorbell(self, bell: Doorbell, now: int) -> None:
        """The source's leader rings."""
        if self.halted or self._is_strange(bell.stream):
            return
        if bell.stream != self._stream:
            self._search.doubted(now)
            return
        self._search.rang(now)
        self._known = max(self._known, bell.last_seq)
        if bell.frame is not None:
            self._offer([bell.frame], Place.DOORBELL, now)
        self._note(now)

    def head(self, head: Head, now: int) -> None:
        """What the source says in the log, maybe long ago. It moves nothing; it says where to look."""
        if self.halted or head.stream != self._stream:
            return  # a head is of the last writer, who may be a leader of before a restore: it proves nothing
        self._known = max(self._known, head.exported)
        self._note(now)
        self._heard_oldest(head.oldest, now)

    def _heard_oldest(self, oldest: int, now: int) -> None:
        if oldest > self.want and not self._gone:
            self._gone = True
            self._search.wake(now)

    def _is_strange(self, said: Stream) -> bool:
        """Whether it is another shard's, or from before what is read now."""
        strange = said[:2] != self._stream[:2] or said.incarnation in self._retired
        self.counts["strange"] += strange
        return strange

    def _is_ours(self, said: Stream) -> bool:
        if self._is_strange(said):
            return False
        if said != self._stream:
            self._halt(Reason.UNKNOWN_INCARNATION, f"{self._stream} has become {said.incarnation:x}")
        return said == self._stream

    def answered(self, ask: Ask, answer: Slice | Pulled, now: int) -> None:
        """An answer to a question. It may be about a number that is not wanted any more."""
        if self.halted:
            return
        outcome = Outcome.NOTHING
        assert isinstance(answer, Pulled) == (ask.place is Place.PULL)
        if isinstance(answer, Pulled):
            if self._is_ours(answer.stream):
                self._known = max(self._known, answer.last_seq)
                self._heard_oldest(answer.oldest, now)
            else:
                outcome = Outcome.FAILED
        else:
            self._known = max(self._known, answer.highest)
            self._absent |= (
                ask.last and ask.want == self.want and all(f.first_seq != self.want for f in answer.frames)
            )
        if outcome is Outcome.NOTHING and self._offer(answer.frames, ask.place, now):
            outcome = Outcome.FOUND
        self._note(now)
        self._end_question(ask, outcome, now, full=len(answer.frames) >= ask.frames_max)

    def failed(self, ask: Ask, now: int) -> None:
        """A question was not answered."""
        self._end_question(ask, Outcome.FAILED, now, full=False)

    def _end_question(self, ask: Ask, outcome: Outcome, now: int, *, full: bool) -> None:
        if ask.place is Place.OWN:
            self._search.polled(outcome, now, full=full and outcome is Outcome.FOUND)
        elif self._search.asked(ask.place, outcome, now, full=full and outcome is Outcome.FOUND):
            self._judge()

    def _judge(self) -> None:
        """All places were asked, and the next frame is at none of them: may it still come?"""
        kept_nowhere = self._gone or Place.PULL in self._bad
        logged_nowhere = self._absent or Place.SOURCE in self._bad
        if kept_nowhere and logged_nowhere:
            reason = Reason.DAMAGED if self._bad else Reason.BELOW_OLDEST
            self._halt(reason, f"{self._stream}: {self.want} is to be had nowhere")

    def _halt(self, reason: Reason, detail: str) -> None:
        if self.halted is None:
            self.halted = Halted(reason, detail)
        self._early.clear()
        self._early_bytes = 0

    def _note(self, now: int) -> None:
        self._search.note(self._known > self._end.seq and not self._full, now)

    # ------------------------------------------------------------------------------------------ what it means

    def _offer(self, frames: Iterable[Frame], place: Place, now: int) -> bool:
        """Take in what came. True if the next frame was among it."""
        before = self.want
        for frame in frames:
            if frame.last_seq < self.want:
                self.counts["duplicates"] += 1
            elif frame.first_seq > self.want or self._full:
                self._hold(frame, place)
            elif self._check(frame, place):
                self._drain()
        if self.want == before:
            return False
        self._gone = self._absent = False
        self._bad.clear()
        self._search.progressed(place, now)
        return True

    def _hold(self, frame: Frame, place: Place) -> None:
        """Keep a frame until its turn, if there is room or the farthest one can go for it."""
        early, first = self._early, frame.first_seq
        if first in early:
            self.counts["duplicates"] += 1
            return
        limits = self._limits
        early[first] = (frame, place)
        self._early_bytes += len(frame.content)
        while len(early) > limits.early_frames_max or self._early_bytes > limits.early_bytes_max:
            farthest, _ = early.pop(max(early))
            self._early_bytes -= len(farthest.content)

    def _drain(self) -> None:
        """Check what was held and is next now."""
        while self._early and not self._full and self.halted is None:
            held = self._early.pop(self.want, None)
            if held is None:
                return
            self._early_bytes -= len(held[0].content)
            if not self._check(*held):
                return

    def _check(self, frame: Frame, place: Place) -> bool:
        """Whether a frame that should be the next one is. Then it may be taken."""
        stream = self._stream
        try:
            try:
                entries = open_frame(stream, frame)
            except FrameUnknown:
                check_follows(stream, self._end, frame)  # else it is no concern of ours what it holds
                raise
            end = check_follows(stream, self._end, frame)
        except FrameDamaged:
            self.counts["damaged"] += 1
            self._bad.add(place)
            return False
        except FrameUnknown as error:
            self._halt(Reason.NEWER_RELEASE, str(error))
            return False
        except ChainBroken as error:
            self.counts["strange"] += 1
            if place in _AUTHORITIES:
                self._halt(Reason.OTHER_HISTORY, str(error))
            return False
        for first_seq in range(frame.first_seq, end.seq + 1) if self._early else ():
            held = self._early.pop(first_seq, None)
            if held is not None:
                self.counts["duplicates"] += 1
                self._early_bytes -= len(held[0].content)
        self._end = end
        self._known = max(self._known, end.seq)
        self._ready.append(Opened(frame, entries))
        self._ready_bytes += len(frame.content)
        self.counts[place] += 1
        return True

    # --------------------------------------------------------------------------------------------- what to do

    def asks(self, now: int) -> list[Ask]:
        """What to ask for now."""
        if self.halted or self._full:
            return []
        asks: list[Ask] = []
        for place, region in self._search.questions(now):
            waiting_for_one = place is Place.OWN and self._search.missing_at is not None
            frames_max = self._limits.hole_frames_max if waiting_for_one else READ_FRAMES_MAX
            last = place is Place.SOURCE and self._gone
            asks.append(Ask(place, self.want, frames_max, region, last))
        return asks

    def take(self, bytes_max: int, now: int) -> Batch | None:
        """Frames for one Raft entry, at least one if there is one, and the more while they are small."""
        taken: list[Opened] = []
        size = 0
        while self._ready and (not taken or size + len(self._ready[0].frame.content) <= bytes_max):
            opened = self._ready.popleft()
            size += len(opened.frame.content)
            taken.append(opened)
        if not taken:
            return None
        self._ready_bytes -= size
        before = self.want
        self._drain()
        if self.want != before:
            self._gone = self._absent = False
            self._bad.clear()
        self._note(now)
        return Batch(self._stream, tuple(taken))

    def timer(self) -> int | None:
        """When `asks` may have something that it has not now; None if only an event can change that."""
        return None if self.halted or self._full else self._search.timer()
