"""What the region suite writes down: what clients asked, what activities did, and what was read back.

Reading and recording only; what is right is said in region_judge.py.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.history.v1.message_pb2 import HistoryEvent

from chaos.live.history import RunState


class Want(StrEnum):
    """What leaves a trace in a workflow's events."""

    START = "start"
    SIGNAL = "signal"
    UPDATE = "update"
    FINISH = "finish"  # somebody was told that the run has completed


@dataclass(slots=True)
class Wish:
    """One operation; `acknowledged` = it was answered with success."""

    want: Want
    workflow_id: str
    name: str  # its own; of a start: the run that it made, once that is known
    acknowledged: bool = False
    refused: bool = False  # for certain: it must have left nothing


@dataclass(frozen=True, slots=True)
class Execution:
    """An activity's code ran."""

    run_id: str
    activity_id: str
    attempt: int


@dataclass(slots=True)
class Traces:
    """What one run's events show, beside their order."""

    state: RunState
    signals: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    completed: Counter[str] = field(default_factory=Counter)
    activities: Counter[str] = field(default_factory=Counter)  # completions by activity id
    attempts: dict[str, int] = field(default_factory=dict)  # activity id -> attempt of the last start


@dataclass(slots=True)
class RegionRecord:
    """Everything of one run of the suite."""

    wishes: list[Wish] = field(default_factory=list)
    executions: list[Execution] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)  # that a client saw which must not see any
    alarms: list[str] = field(default_factory=list)  # answers that are wrong by themselves

    def wish(self, want: Want, workflow_id: str, name: str = "") -> Wish:
        """A client is about to ask."""
        made = Wish(want, workflow_id, name)
        self.wishes.append(made)
        return made


def traces_of(state: RunState, events: list[HistoryEvent]) -> Traces:
    """What the events show."""
    found = Traces(state)
    ids: dict[int, str] = {}
    for event in events:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                signaled = event.workflow_execution_signaled_event_attributes
                found.signals[_text(signaled.input.payloads[0].data)] += 1
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
                accepted = event.workflow_execution_update_accepted_event_attributes
                found.accepted[accepted.protocol_instance_id] += 1
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED:
                completed = event.workflow_execution_update_completed_event_attributes
                found.completed[completed.meta.update_id] += 1
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                ids[event.event_id] = event.activity_task_scheduled_event_attributes.activity_id
            case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                started = event.activity_task_started_event_attributes
                found.attempts[ids[started.scheduled_event_id]] = started.attempt
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                done = event.activity_task_completed_event_attributes
                found.activities[ids[done.scheduled_event_id]] += 1
            case _:
                pass
    return found


def _text(data: bytes) -> str:
    """A JSON string without anything to escape in it."""
    return data.decode().strip('"')
