"""What can be proved of a run whose namespace changed its region. Pure, as evidence.py is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from sdk.demo.evidence import Check
from sdk.demo.waits import Call

REGIONS_MAX = 100  # a version names its region: the remainder is the region's index


@dataclass(frozen=True)
class Failover:
    """One change of region, as the command told it and clients felt it."""

    mode: str  # graceful, forced
    source: str
    target: str
    version: int  # that the events written from now on have
    began_ns: int  # when the command was given; of a forced one, when the last node of the source was dead
    ended_ns: int  # when the target served
    paused_s: float | None  # that writes were held, as the server measured it; graceful only
    lag_s: float | None  # how long ago the target had last known everything, as the server said before
    behind: int | None  # entries of the log that the target was known not to have
    before: list[HistoryEvent]  # the run as it was just before
    first_ns: int  # when a client's next signal was acknowledged

    @property
    def outage_s(self) -> float:
        """How long nothing could be written: as the server measured it, or since the source was dead."""
        if self.paused_s is not None:
            return self.paused_s
        return max(0, self.first_ns - self.began_ns) / 1e9


@dataclass(frozen=True)
class Beat:
    """A signal of the pulse."""

    number: int
    call: Call


@dataclass(frozen=True)
class Travels:
    """All that a run did between regions."""

    failovers: Sequence[Failover]
    names: Mapping[int, str]  # regions by their index
    beats: Sequence[Beat]
    pulse: Sequence[HistoryEvent]  # the history of the run that got the signals
    rpo_events: int  # of the run: acknowledged by the region that died, and not there afterwards
    rpo_beats: int  # of the pulse


def region_of(event: HistoryEvent, names: Mapping[int, str]) -> str:
    """Who wrote it; empty where there is one region."""
    return names.get(event.version % REGIONS_MAX, "?") if names else ""


def beats_in(pulse: Sequence[HistoryEvent]) -> Counter[int]:
    """The signals that a history has, by their number."""
    return Counter(
        int(event.workflow_execution_signaled_event_attributes.input.payloads[0].data)
        for event in pulse
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    )


def longest_wait_s(beats: Sequence[Beat], failover: Failover) -> float:
    """The longest that a signal waited that was under way during a failover."""
    under_way = [
        beat.call.seconds
        for beat in beats
        if beat.call.ended_ns >= failover.began_ns and beat.call.began_ns <= failover.ended_ns
    ]
    return max(under_way, default=0.0)


def failover_checks(travels: Travels, events: Sequence[HistoryEvent]) -> list[Check]:
    """Everything that has to be so after a run was served by several regions."""
    return [
        _written_by_who_served(travels, events),
        *(_took_nothing(each, events) for each in travels.failovers if each.mode == "graceful"),
        Check(
            "nothing acknowledged was lost with the region",
            travels.rpo_events == 0 and travels.rpo_beats == 0,
            f"of the run {travels.rpo_events} events, of the pulse {travels.rpo_beats} signals",
        ),
        _signals_once(travels),
        _nobody_refused(travels),
    ]


def _written_by_who_served(travels: Travels, events: Sequence[HistoryEvent]) -> Check:
    """Every event has the version that was the namespace's when it was written."""
    bounds = [(len(each.before), each) for each in travels.failovers]
    first = events[0].version
    wrong = []
    for event in events:
        served = [each.version for count, each in bounds if event.event_id > count]
        if event.version != (served[-1] if served else first):
            wrong.append(event.event_id)
    wrong += [
        each.version for _, each in bounds if travels.names.get(each.version % REGIONS_MAX) != each.target
    ]
    said = ", ".join(
        f"{travels.names.get(version % REGIONS_MAX, '?')}: version {version}"
        for version in dict.fromkeys(event.version for event in events)
    )
    return Check(
        "each event was written by the region that served then",
        not wrong and len(bounds) > 0,
        said + (f"; wrong: {wrong}" if wrong else ""),
    )


def _took_nothing(failover: Failover, events: Sequence[HistoryEvent]) -> Check:
    kept = list(events[: len(failover.before)]) == failover.before
    paused = f", writes were held for {failover.paused_s:.3f} s" if failover.paused_s is not None else ""
    return Check(
        f"the failover {failover.source} → {failover.target} took nothing from the history",
        kept and bool(failover.before),
        f"its {len(failover.before)} events from before are its beginning now{paused}",
    )


def _signals_once(travels: Travels) -> Check:
    """The pulse: what was acknowledged is there, and nothing is there twice."""
    there = beats_in(travels.pulse)
    missing = [beat.number for beat in travels.beats if not beat.call.error and not there[beat.number]]
    twice = [number for number, times in there.items() if times > 1]
    return Check(
        "every signal that was acknowledged on the way is there, once",
        bool(travels.beats) and not missing and not twice,
        f"{sum(there.values())} signals"
        + (f"; missing: {missing}" if missing else "")
        + (f"; twice: {twice}" if twice else ""),
    )


def _nobody_refused(travels: Travels) -> Check:
    """No error by a graceful failover; by a region's death only if that lasts longer than an SDK tries."""
    forced = [each for each in travels.failovers if each.mode == "forced"]
    errors = [
        beat.call.error
        for beat in travels.beats
        if beat.call.error
        and not any(
            beat.call.ended_ns >= each.began_ns and beat.call.began_ns <= each.ended_ns for each in forced
        )
    ]
    late = sum(bool(beat.call.error) for beat in travels.beats) - len(errors)
    waits = ", ".join(
        f"{each.source} → {each.target} {longest_wait_s(travels.beats, each):.2f} s"
        for each in travels.failovers
    )
    return Check(
        "clients waited for failovers, and got no error",
        not errors,
        f"longest waits: {waits}"
        + (f"; {late} gave up while no region served" if late else "")
        + (f"; {errors[0]}" if errors else ""),
    )
