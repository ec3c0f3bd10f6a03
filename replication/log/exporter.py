"""The exporter: which committed frames a leader writes to the replication log next, and how far it is.

Theory of operation. Frames are written when their Raft entry is committed, never before. Up to
`in_flight_max` are under way and may end in any order; one that failed, or of which nobody knows, is written
again, for ever: its row and bytes are always the same. `exported` covers the frames that are written without
a gap. It is proposed into the shard's state now and then (`mark`); a new leader begins there.

Frames that find no room in memory are read again from their rows when it is their turn (`wants`, `refill`),
so an outage of the log costs disk and no memory.

Lineage: TCP's window with selective acknowledgement. Not here: doorbells, which leave when a frame is
committed (outbox.ring), and trimming (outbox.trim). Invariant: `exported` never passes a frame whose write
did not return, unless the outbox gave it up by name.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from replication.frames import Frame
from replication.outbox import Tip

# The source of chance: `dice(n)` answers a number in [0, n).
Dice = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Limits:
    """How fast the log is written, and how patient the exporter is."""

    # Writes under way at once: enough for the log's throughput at one round trip each.
    in_flight_max: int = 16
    # Frames behind the first one that is not written yet: bounds what one stuck write lets run ahead.
    window_frames_max: int = 256
    # Frames in memory that wait for their turn; the others are read from their rows.
    waiting_frames_max: int = 256
    waiting_bytes_max: int = 8 << 20
    # Between tries while the log refuses.
    backoff_ms_min: int = 100
    backoff_ms_max: int = 5000
    # How often `exported` is proposed: a new leader writes as much again, at most.
    mark_ms: int = 1000
    mark_seqs: int = 1000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        assert 0 < self.in_flight_max <= self.window_frames_max
        assert 0 < self.backoff_ms_min <= self.backoff_ms_max


LIMITS = Limits()


class _Written(NamedTuple):
    frame: Frame
    done: bool


class Exporter:
    """What one leadership writes to the log: which frames next, and up to where they are written.

    Time is a steady clock in milliseconds. The shell calls `committed` for each new frame in order; while
    `wants` names a number, it gives `refill` the kept frames from there on; it writes what `ready` gives,
    and says for each how it went. It calls again when `timer` says.
    """

    __slots__ = (
        "_dice",
        "_exported",
        "_failures",
        "_in_flight",
        "_limits",
        "_marked",
        "_marked_at",
        "_next",
        "_resume_at",
        "_retries",
        "_tip",
        "_waiting",
        "_waiting_bytes",
        "_window",
        "retried",
    )

    def __init__(self, tip: Tip, now: int, dice: Dice, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._dice = dice
        self._exported = self._marked = tip.exported
        self._marked_at = now
        self._tip = tip.seq  # committed
        self._next = tip.exported + 1  # the first number that is neither waiting nor in the window
        self._waiting: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._window: dict[int, _Written] = {}  # first number -> handed out at least once; in order
        self._retries: deque[int] = deque()  # first numbers of the window to be written again
        self._in_flight: set[int] = set()
        self._failures = 0  # since the last success
        self._resume_at = now
        self.retried = 0

    @property
    def exported(self) -> int:
        """Every frame up to here is in the log."""
        return self._exported

    def committed(self, frame: Frame) -> None:
        """A frame's entry is committed."""
        assert frame.first_seq == self._tip + 1, "frames are committed in order"
        self._tip = frame.last_seq
        if frame.first_seq == self._next and self._has_room():
            self._take(frame)

    def lost(self, upto: int) -> None:
        """The outbox gave up what is not exported up to `upto` (`Tip.lost`)."""
        if upto <= self._exported:
            return
        for first in [first for first in self._window if first <= upto]:
            del self._window[first]
            self._in_flight.discard(first)
        self._retries = deque(first for first in self._retries if first > upto)
        while self._waiting and self._waiting[0].first_seq <= upto:
            self._waiting_bytes -= len(self._waiting.popleft().content)
        self._next = max(self._next, upto + 1)
        self._exported = upto
        self._advance()

    def wants(self) -> int | None:
        """From which number on kept frames are to be read for `refill`; None if there is no need."""
        behind = self._next <= self._tip
        return self._next if behind and len(self._waiting) < self._limits.in_flight_max else None

    def refill(self, frames: Iterable[Frame]) -> None:
        """Kept frames from `wants` on. Takes as many as there is room for, one at least."""
        for frame in frames:
            assert frame.first_seq == self._next, "a row of the outbox is missing"
            if self._waiting and not self._has_room():
                return
            self._take(frame)

    def _has_room(self) -> bool:
        limits = self._limits
        return (
            len(self._waiting) < limits.waiting_frames_max and self._waiting_bytes < limits.waiting_bytes_max
        )

    def _take(self, frame: Frame) -> None:
        self._waiting.append(frame)
        self._waiting_bytes += len(frame.content)
        self._next = frame.last_seq + 1

    def ready(self, now: int) -> list[Frame]:
        """Frames to write now. Each is under way until `wrote` or `failed`.

        After a failure one write at a time feels whether the log is back.
        """
        if self._failures and now < self._resume_at:
            return []
        limit = 1 if self._failures else self._limits.in_flight_max
        frames: list[Frame] = []
        while len(self._in_flight) < limit:
            if self._retries:
                frame = self._window[self._retries.popleft()].frame
                self.retried += 1
            elif self._waiting and len(self._window) < self._limits.window_frames_max:
                frame = self._waiting.popleft()
                self._waiting_bytes -= len(frame.content)
                self._window[frame.first_seq] = _Written(frame, False)
            else:
                break
            self._in_flight.add(frame.first_seq)
            frames.append(frame)
        return frames

    def wrote(self, first_seq: int) -> None:
        """A frame is in the log, durably, in the own region."""
        if first_seq not in self._in_flight:
            return  # given up meanwhile
        self._in_flight.remove(first_seq)
        self._failures = 0
        self._window[first_seq] = _Written(self._window[first_seq].frame, True)
        self._advance()

    def _advance(self) -> None:
        window = self._window
        while window:
            first = next(iter(window))
            written = window[first]
            assert first > self._exported
            if not written.done:
                return
            self._exported = written.frame.last_seq
            del window[first]

    def failed(self, first_seq: int, now: int) -> None:
        """A write failed, or nobody knows. It is tried again, for ever."""
        if first_seq not in self._in_flight:
            return
        self._in_flight.remove(first_seq)
        self._retries.append(first_seq)
        if not self._failures or now >= self._resume_at:  # the other writes of a moment tell nothing new
            self._failures += 1
            limits = self._limits
            wait = min(limits.backoff_ms_max, limits.backoff_ms_min << min(self._failures - 1, 30))
            self._resume_at = now + wait + self._dice(wait // 2 + 1)

    def mark(self, now: int) -> int | None:
        """What to propose as `exported` now, if it is time."""
        ahead = self._exported - self._marked
        limits = self._limits
        if not ahead or (ahead < limits.mark_seqs and now < self._marked_at + limits.mark_ms):
            return None
        self._marked, self._marked_at = self._exported, now
        return self._exported

    def timer(self) -> int | None:
        """When `ready` or `mark` may have something that they have not now; None if only events can tell."""
        times = []
        if self._exported > self._marked:
            times.append(self._marked_at + self._limits.mark_ms)
        if self._failures and not self._in_flight and (self._retries or self._waiting):
            times.append(self._resume_at)
        return min(times, default=None)
