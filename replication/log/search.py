"""The search: where a reader asks for the next frame, and when.

Theory of operation. The own region is polled: every `poll_ms_min` while something comes or a hole is new,
ever more seldom while nothing does. The places elsewhere are asked in turn, one question at a time:

    SOURCE   the log, through the region that wrote it
    PULL     the outbox of the source shard's leader
    THIRD    each other region

That begins when the next frame is known to exist and did not come for `hole_wait_ms`, when the own region
does not answer for as long, and when nothing was heard of the stream for `silent_ms` (a source says at least
BEAT every second). If somebody says that the stream is another one now, PULL is asked at once. As long as a
place has what is wanted it is asked again at once. When none has it, all are asked again after a pause, for
ever; soon, if something got better.

Time is a steady clock in milliseconds, given with every call. Not here: what the answers mean (inbox.py).
Lineage: TCP's fast retransmit, where evidence of a loss counts, and the timer is for silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


class Place(StrEnum):
    """Where frames come from."""

    DOORBELL = "doorbell"  # unasked
    OWN = "own"
    SOURCE = "source"
    PULL = "pull"
    THIRD = "third"


class Question(NamedTuple):
    """Which place to ask now; of THIRD, which region."""

    place: Place
    region: str


class Outcome(StrEnum):
    """What came of a question."""

    FOUND = "found"  # the next frame
    NOTHING = "nothing"
    FAILED = "failed"  # no answer


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient a reader is. Times in milliseconds."""

    # Polling of the own region while there is something; what an empty read doubles it to, at most, without
    # and with a doorbell that rings.
    poll_ms_min: int = 50
    poll_ms_max: int = 250
    poll_ms_max_idle: int = 1000
    # A doorbell, or a stream, that said nothing for so long is not what it should be: BEAT is every second.
    silent_ms: int = 3000
    # Rows written at once overtake each other, mostly by 2 to 7 ms; the most that was measured is 176.
    hole_wait_ms: int = 200
    # Between rounds through all places.
    round_ms_min: int = 200
    round_ms_max: int = 5000

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        assert 0 < self.poll_ms_min <= self.poll_ms_max <= self.poll_ms_max_idle
        assert 0 < self.round_ms_min <= self.round_ms_max


class Search:
    """The questions of one reader. Of OWN, and of all other places together, one is open at a time."""

    __slots__ = (
        "_again",
        "_asking",
        "_chasing",
        "_failing_at",
        "_heard_at",
        "_interval",
        "_limits",
        "_missing_at",
        "_next_at",
        "_pause",
        "_places",
        "_poll_at",
        "_polling",
        "_rang_at",
        "_turn",
    )

    def __init__(self, source: str, thirds: Sequence[str], now: int, limits: Limits) -> None:
        self._limits = limits
        self._places = [Question(Place.SOURCE, source), Question(Place.PULL, source)]
        self._places += [Question(Place.THIRD, third) for third in thirds]
        self._poll_at = now
        self._interval = limits.poll_ms_min
        self._polling = False  # OWN was asked and has not answered
        self._turn = 0  # which place elsewhere is asked next
        self._next_at = now  # not before
        self._asking = False  # a place elsewhere was asked and has not answered
        self._pause = limits.round_ms_min
        self._missing_at: int | None = None  # since when the next frame is known to exist and is not here
        self._failing_at: int | None = None  # since when OWN does not answer
        self._chasing = False  # the last frame was found elsewhere: the next may be there as well
        self._again = False  # an answer was as large as it may be: there is more
        self._heard_at = now  # when anything was last heard of the stream
        self._rang_at: int | None = None

    @property
    def missing_at(self) -> int | None:
        """Since when the next frame is known to exist and is not here."""
        return self._missing_at

    # -------------------------------------------------------------------------------------- what has happened

    def rang(self, now: int) -> None:
        """The doorbell."""
        if not self._rings(now):
            self.wake(now)
        self._rang_at = self._heard_at = now

    def doubted(self, now: int) -> None:
        """Somebody says that the stream is another one now. The source knows: ask it next."""
        if not self._asking:
            self._turn = self._places.index(Question(Place.PULL, self._places[0].region))
            self._heard_at = min(self._heard_at, now - self._limits.silent_ms)
            self.wake(now)

    def wake(self, now: int) -> None:
        """Something is better, or known better, than in the last round: do not wait for long."""
        self._pause = self._limits.round_ms_min
        self._next_at = min(self._next_at, now)

    def progressed(self, place: Place, now: int) -> None:
        """The next frame came; another one is the next now."""
        self._heard_at = now
        self._pause = self._limits.round_ms_min
        self._missing_at = None
        self._chasing = place not in (Place.OWN, Place.DOORBELL)
        self._next_at = now
        if not self._chasing:
            self._turn = 0

    def note(self, missing: bool, now: int) -> None:
        """Whether the next frame is known to exist and is not here."""
        if not missing:
            self._missing_at = None
        elif self._missing_at is None:
            self._missing_at = now
            self._poll_soon(now)

    def _poll_soon(self, now: int) -> None:
        self._interval = self._limits.poll_ms_min
        self._poll_at = min(self._poll_at, now)

    def polled(self, outcome: Outcome, now: int, *, full: bool = False) -> None:
        """What came of asking OWN. `full`: the answer was as large as it may be."""
        self._polling = False
        limits = self._limits
        if outcome is Outcome.FAILED:
            self._failing_at = now if self._failing_at is None else self._failing_at
        elif self._failing_at is not None:
            self._failing_at = None
            self.wake(now)
        missing_at = self._missing_at
        if outcome is Outcome.FOUND or (missing_at is not None and now < missing_at + limits.hole_wait_ms):
            self._interval = limits.poll_ms_min
        else:
            self._interval = min(self._interval * 2, self._poll_ms_max(now))
        self._poll_at = now if full else now + self._interval

    def _rings(self, now: int) -> bool:
        return self._rang_at is not None and now < self._rang_at + self._limits.silent_ms

    def _poll_ms_max(self, now: int) -> int:
        limits = self._limits
        idle = self._rings(now) and self._missing_at is None
        return limits.poll_ms_max_idle if idle else limits.poll_ms_max

    def asked(self, place: Place, outcome: Outcome, now: int, *, full: bool = False) -> bool:
        """What came of asking elsewhere. True if that was the last place of a round that found nothing."""
        self._asking = False
        self._again = full
        if outcome is Outcome.FOUND:
            return False
        self._chasing = False
        if place is Place.PULL and outcome is Outcome.NOTHING and self._missing_at is None:
            # The source itself says that there is no more.
            self._heard_at = now
            self._turn, self._next_at = 0, now + self._poll_ms_max(now)
            return False
        self._turn += 1
        self._next_at = now
        if self._turn < len(self._places):
            return False
        self._turn, self._next_at = 0, now + self._pause
        self._pause = min(self._pause * 2, self._limits.round_ms_max)
        return True

    # ----------------------------------------------------------------------------------------- what to do now

    def questions(self, now: int) -> list[Question]:
        """Whom to ask now. Each is open until `polled` or `asked`."""
        questions: list[Question] = []
        if not self._polling and now >= self._poll_at:
            self._polling = True
            questions.append(Question(Place.OWN, ""))
        due = self._elsewhere_at()
        if due is not None and now >= due:
            self._asking = True
            questions.append(self._places[self._turn])
        return questions

    def _elsewhere_at(self) -> int | None:
        if self._asking:
            return None
        limits = self._limits
        since = [self._heard_at + limits.silent_ms]
        if self._missing_at is not None:
            since.append(self._missing_at + (0 if self._chasing else limits.hole_wait_ms))
        if self._failing_at is not None:
            since.append(self._failing_at + limits.hole_wait_ms)
        if self._again:
            since.append(self._next_at)
        return max(min(since), self._next_at)

    def timer(self) -> int | None:
        """When `questions` may have some that it has not now; None while all are open."""
        times = [] if self._polling else [self._poll_at]
        due = self._elsewhere_at()
        if due is not None:
            times.append(due)
        return min(times, default=None)
