"""What was seen in a run, for the judges: the operations of clients, and what workers did and were shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from zlib import crc32

from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.history.v1.message_pb2 import HistoryEvent

from chaos.checkers.history import Recorder
from chaos.sim.calls import HUNG_UP
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from chaos.sim.calls import Refused
    from chaos.sim.trace import Trace

GRACE_S = 3.0  # after the region is whole again, for calls that met it before

# The workflow task under way at a history's end is not promised: it may be replaced.
_PASSING = frozenset(
    (EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED, EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)
)


class Notes:
    """Everything that was noted."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.recorder = Recorder()
        self.healthy_since: float | None = None  # virtual seconds: from here on nothing may fail
        self.runs: dict[str, str] = {}  # run id -> workflow id
        self.starts: dict[str, str] = {}  # request id -> run id
        self.signals: dict[str, tuple[str, bool]] = {}  # name -> (workflow id, acknowledged)
        self.updates: dict[str, tuple[str, int]] = {}  # id of an acknowledged one -> (workflow id, sum)
        self.tasks: dict[bytes | str, str] = {}  # what names an attempt -> who got it
        self.task_answers: dict[str, tuple[str, int, bool]] = {}  # name -> (run, started event, must show)
        self.activity_answers: dict[str, tuple[str, str]] = {}  # name -> (run id, activity id), acknowledged
        self._seen: dict[str, dict[int, int]] = {}  # run id -> event id -> checksum
        self.calls_failed_healthy = 0

    # ---- clients

    def started(self, workflow_id: str, run_id: str, request_id: str) -> None:
        """A start was acknowledged."""
        self.runs[run_id] = workflow_id
        before = self.starts.setdefault(request_id, run_id)
        if before != run_id:
            self.trace.problem(f"one start ({request_id}) made two runs: {before} and {run_id}")

    def signaled(self, workflow_id: str, name: str, *, acknowledged: bool) -> None:
        """A signal was sent."""
        self.signals[name] = (workflow_id, acknowledged)

    def updated(self, workflow_id: str, update_id: str, value: int) -> None:
        """An update's outcome was told."""
        self.updates[update_id] = (workflow_id, value)

    # ---- workers

    def handed(self, attempt: bytes | str, worker: str, what: str) -> None:
        """A task was handed to a worker."""
        before = self.tasks.setdefault(attempt, worker)
        if before != worker:
            self.trace.problem(f"{what} was handed to {before} and to {worker}, and no time-out was between")

    def saw(self, run_id: str, events: Iterable[HistoryEvent]) -> None:
        """Somebody was shown these events: what was shown once never changes."""
        events = list(events)
        while events and events[-1].event_type in _PASSING:
            events.pop()
        seen = self._seen.setdefault(run_id, {})
        for event in events:
            digest = crc32(event.SerializeToString(deterministic=True))
            if seen.setdefault(event.event_id, digest) != digest:
                kind = EventType.Name(event.event_type)
                self.trace.problem(f"event {event.event_id} of {run_id} changed; now it is {kind}")

    # ---- every call

    def excuses(self, method: str, refused: Refused) -> bool:
        """Whether an alarming answer is right here."""
        # A run wants to complete while something came that its code had not seen: the task is repeated.
        return method == "RespondWorkflowTaskCompleted" and "UnhandledCommand" in refused.message

    def judge_healthy(self, method: str, refused: Refused, host: str) -> None:
        """A call of a healthy region ended like this."""
        if refused.message == HUNG_UP:
            return  # its own doing
        if refused.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED):
            self.trace.problem(f"{method} by {host} of a healthy region ended with {refused}")
