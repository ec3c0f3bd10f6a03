"""What the pure engine is given by whoever runs it: identifiers, an order for tasks, limits, old events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from temporalio.api.common.v1.message_pb2 import SearchAttributes
    from temporalio.api.history.v1.message_pb2 import HistoryEvent

    from history_store.engine.run import Run


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Limits the engine itself enforces; Temporal's defaults. Sizes in bytes, times in nanoseconds."""

    id_bytes_max: int = 1_000
    search_attributes_max: int = 100
    search_attribute_bytes_max: int = 2 << 10
    search_attributes_bytes_max: int = 40 << 10
    blob_bytes_max: int = 2 << 20
    memo_bytes_max: int = 2 << 20
    history_bytes_max: int = 50 << 20
    history_events_max: int = 51_200
    history_bytes_suggest: int = 4 << 20
    history_events_suggest: int = 4_096
    pending_activities_max: int = 2_000
    pending_children_max: int = 2_000
    pending_signals_max: int = 2_000
    pending_cancels_max: int = 2_000
    signals_max: int = 10_000
    updates_in_flight_max: int = 10
    updates_total_max: int = 2_000
    updates_suggest_fraction: float = 0.9
    buffered_events_max: int = 100
    reset_points_max: int = 20
    callbacks_max: int = 2_000
    workflow_task_timeout_default: int = 10_000_000_000
    workflow_task_timeout_max: int = 120_000_000_000
    workflow_task_retry_first: int = 5_000_000_000  # backoff of start-to-close growth after failures
    workflow_task_retry_max: int = 600_000_000_000
    speculative_timeout: int = 5_000_000_000


class Environment(Protocol):
    """The engine's world. Implementations must be deterministic given their own inputs."""

    limits: EngineLimits

    def new_id(self) -> str:
        """A fresh UUID, time-ordered (version 7)."""

    def next_sequence(self) -> int:
        """A number larger than every one before it, on this node and across its restarts."""

    def load_event(self, run: Run, batch_id: int, event_id: int) -> HistoryEvent:
        """An event already in history. KeyError if it is not there."""

    def retention(self, namespace_id: str) -> int:
        """How long a closed run of the namespace is kept, nanoseconds."""

    def check_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """Validate and normalize in place. BadCommand for an unknown name or a wrong type."""

    def namespace_id_of(self, name: str) -> str | None:
        """The id of a namespace by its name."""

    def namespace_name_of(self, namespace_id: str) -> str:
        """The name of a namespace by its id."""
