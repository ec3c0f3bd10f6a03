"""How long a fault was felt: throughput and latency around it, from what clients saw. Pure.

Throughput is that of the steady load of clients whose node was not the victim: starts and ends, which come
at one pace whatever happens, so what is missing in a window was held up. It is back at the end of the last
window of WINDOW_S that had less than ENOUGH of what was before, if none has for CALM_S on end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chaos.live.region_workload import Mark

BEFORE_S = 2.0
WINDOW_S = 0.5
STEP_S = 0.05
CALM_S = 1.0
ENOUGH = 0.8
SHOWN_MAX = 4


@dataclass
class Felt:
    """One fault, as it was felt. Times of the loop in seconds, from `began` on in milliseconds."""

    fault: str
    victim: str
    leads: int  # groups that the victim led
    meta: bool  # whether that of the region's metadata was one of them
    began: float
    healed: float = 0.0
    ended: float = 0.0  # when the round was over
    before: float = 0.0  # marks a second
    recovery_ms: float | None = None  # None = not within the round
    latency_ms_max: float = 0.0  # of clients of the other nodes
    start_ms_max: float = 0.0  # of those, StartWorkflowExecution alone, which needs no worker
    latency_before_ms_max: float = 0.0
    errors: int = 0  # that SDK clients of the other nodes saw
    victim_errors: int = 0
    victim_back_ms: float | None = None  # from the healing to the first answer of a new call of its clients
    notes: list[str] = field(default_factory=list)  # the slowest answers that came during the round

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "fault": self.fault, "victim": self.victim, "leads": self.leads, "meta": self.meta,
            "before_per_s": round(self.before, 1), "recovery_ms": self.recovery_ms,
            "latency_ms_max": round(self.latency_ms_max, 1),
            "start_ms_max": round(self.start_ms_max, 1),
            "latency_before_ms_max": round(self.latency_before_ms_max, 1),
            "errors": self.errors, "victim_errors": self.victim_errors, "victim_back_ms": self.victim_back_ms,
            "notes": self.notes,
        }  # fmt: skip


def measure(felt: Felt, marks: Sequence[Mark], usual: float) -> None:
    """Fill in what the marks say; they are in the order of their times. `usual`: steady marks a second."""
    others = [mark for mark in marks if mark.node != felt.victim]
    paced = [mark.at for mark in others if mark.paced]
    # what a former victim's clients had to put off may come now, which is no pace to keep
    felt.before = min(_between(paced, felt.began - BEFORE_S, felt.began) / BEFORE_S, usual)
    felt.recovery_ms = _recovery_ms(paced, felt)
    near = [mark for mark in others if felt.began <= mark.at <= felt.ended]
    felt.latency_ms_max = 1e3 * max((mark.took for mark in near), default=0.0)
    felt.start_ms_max = 1e3 * max((m.took for m in near if m.what.startswith("Start")), default=0.0)
    slowest = sorted(near, key=lambda mark: mark.took, reverse=True)[:SHOWN_MAX]
    felt.notes = [
        f"{mark.what} by {mark.node}: {mark.took:.2f} s, from {mark.at - mark.took - felt.began:+.2f} s"
        for mark in slowest
    ]
    calm = [mark.took for mark in others if felt.began - BEFORE_S <= mark.at < felt.began]
    felt.latency_before_ms_max = 1e3 * max(calm, default=0.0)
    felt.errors = sum(bool(mark.error) for mark in near)
    victims = [mark for mark in marks if mark.node == felt.victim and felt.began <= mark.at <= felt.ended]
    felt.victim_errors = sum(bool(mark.error) for mark in victims)
    back = [
        mark.at
        for mark in victims
        if not mark.error and mark.at - mark.took >= felt.healed and not mark.paced
    ]
    felt.victim_back_ms = round(1e3 * (back[0] - felt.healed), 1) if back else None


def _between(times: Sequence[float], start: float, end: float) -> int:
    return bisect_left(times, end) - bisect_left(times, start)


def _recovery_ms(paced: Sequence[float], felt: Felt) -> float | None:
    enough = ENOUGH * felt.before * WINDOW_S
    back = felt.began  # the end of the last window that had too little
    end = felt.began + STEP_S  # what was held up comes all at once, so a longer outlook would hide a silence
    while end <= felt.ended:
        if _between(paced, end - WINDOW_S, end) < enough:
            back = end
        elif end - back >= CALM_S:
            return round(1e3 * (back - felt.began), 1)
        end += STEP_S
    return None


def spread(values: Sequence[float]) -> dict[str, float]:
    """p50 and max."""
    ordered = sorted(values)
    if not ordered:
        return {}
    return {"count": len(ordered), "p50": ordered[(len(ordered) - 1) // 2], "max": ordered[-1]}
