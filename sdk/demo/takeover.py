"""What can be proved of a shard whose leader was killed. Pure, as evidence.py is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from temporalio.api.history.v1 import HistoryEvent

from sdk.demo.evidence import Check
from sdk.demo.waits import Call


@dataclass(frozen=True)
class Takeover:
    """What was seen of the run's shard, from before its leader's death until it had caught up."""

    shard: int
    killed: str  # node name
    led_before: str | None  # who led the shard just before, as its leader itself said
    led_after: str | None  # who said so first afterwards
    leaderless_s: float  # from the death until then
    calls: list[Call]  # of the clients that are connected to other nodes
    entries_at_death: int  # of the shard's log, that the killed node knew to be committed
    entries_without_it: int  # that the new leader had committed when the node came back
    entries_caught_up: int  # that the node then knew to be committed
    caught_up_s: float  # from the order to start it until then
    histories: Mapping[str, Sequence[HistoryEvent]]  # of the run, by the node that was asked

    @property
    def longest_wait_s(self) -> float:
        """The longest that any client waited for any call."""
        return max((call.seconds for call in self.calls), default=0.0)

    @property
    def errors(self) -> list[str]:
        """What clients were told instead of an answer."""
        return [call.error for call in self.calls if call.error]


def takeover_checks(takeover: Takeover, events: Sequence[HistoryEvent]) -> list[Check]:
    """Everything that has to be so after the death of the shard's leader."""
    differing = [name for name, told in takeover.histories.items() if list(told) != list(events)]
    errors = takeover.errors
    return [
        Check(
            "the killed node led the run's shard",
            takeover.led_before == takeover.killed,
            f"shard {takeover.shard} said so itself: {takeover.led_before}",
        ),
        Check(
            "the run went on under another leader",
            takeover.led_after not in (None, takeover.killed),
            f"{takeover.led_before} → {takeover.led_after}, after {takeover.leaderless_s:.2f} s",
        ),
        Check(
            "clients of the other nodes waited, and got no error",
            bool(takeover.calls) and not errors,
            f"{len(takeover.calls)} calls, the longest {takeover.longest_wait_s:.2f} s"
            + (f"; {len(errors)} failed: {errors[0]}" if errors else ", none failed"),
        ),
        Check(
            "the killed node caught up when it came back",
            takeover.entries_at_death < takeover.entries_without_it <= takeover.entries_caught_up,
            f"log entry {takeover.entries_at_death} when it died, {takeover.entries_without_it} without it, "
            f"{takeover.entries_caught_up} after {takeover.caught_up_s:.2f} s",
        ),
        Check(
            "every node tells the same history",
            takeover.killed in takeover.histories and len(takeover.histories) > 1 and not differing,
            f"{len(events)} events, read by way of {', '.join(takeover.histories)}"
            + (f"; differs: {', '.join(differing)}" if differing else ""),
        ),
    ]
