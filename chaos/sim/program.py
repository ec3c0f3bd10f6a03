"""The code of the simulated workflows: a pure function from a run's history to what it does next.

A signal's name says what it wants: `activity`, `timer`, `child`, `nothing`, or `close`. Each wish is granted
once, under the name that its client gave it (the signal's identity). An update adds its number to the run's
value and is answered with the sum, or is rejected if it says so. A run that was asked to close does so when
all that it began is over.

Nothing is remembered beside the history, so any worker can take over any task; what has been read of it is
kept as a `Reading`, which later events are added to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1.message_pb2 import Command
from temporalio.api.common.v1.message_pb2 import Payload, Payloads
from temporalio.api.enums.v1.command_type_pb2 import CommandType
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.update.v1.message_pb2 import Acceptance, Outcome, Rejection, Request, Response

ACTIVITY, TIMER, CHILD, NOTHING, CLOSE = "activity", "timer", "child", "nothing", "close"
WISHES = (ACTIVITY, TIMER, CHILD, NOTHING)
REJECT = 0  # an update that adds nothing is not wanted
CHILD_TYPE = "child"
ACTIVITY_S = 3.0  # an attempt whose worker forgot it is tried again after this
TASK_S = 3.0
TIMER_S = 0.3
REJECTED = "not wanted"


def payloads(text: str) -> Payloads:
    """One value."""
    return Payloads(payloads=[Payload(metadata={"encoding": b"binary/plain"}, data=text.encode())])


def text_of(value: Payloads) -> str:
    """What `payloads` wrapped."""
    return value.payloads[0].data.decode()


def seconds(value: float) -> Duration:
    """A duration of the wire."""
    made = Duration()
    made.FromNanoseconds(round(value * 1e9))
    return made


@dataclass(slots=True)
class Reading:
    """What a run's events say, up to `last`."""

    last: int = 0
    value: int = 0
    wishes: dict[str, str] = field(default_factory=dict)  # name -> wish, not granted
    open: set[str] = field(default_factory=set)  # what was begun and is not over
    closing: bool = False
    child: bool = False
    closed: bool = False
    _of: dict[int, str] = field(default_factory=dict)  # scheduled event -> name

    def copy(self) -> Reading:
        """Another one that is read on by itself."""
        return Reading(
            self.last, self.value, dict(self.wishes), set(self.open), self.closing, self.child, self.closed,
            dict(self._of),
        )  # fmt: skip

    def read(self, events: Iterable[HistoryEvent]) -> None:
        """Go on; events that were read already are left out."""
        for event in events:
            if event.event_id > self.last:
                self.last = event.event_id
                self._take(event)

    def _take(self, event: HistoryEvent) -> None:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
                started = event.workflow_execution_started_event_attributes
                self.child = started.workflow_type.name == CHILD_TYPE
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                signal = event.workflow_execution_signaled_event_attributes
                if signal.signal_name == CLOSE:
                    self.closing = True
                elif signal.signal_name != NOTHING:
                    self.wishes[signal.identity] = signal.signal_name
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
                accepted = event.workflow_execution_update_accepted_event_attributes
                self.value += int(text_of(accepted.accepted_request.input.args))
            case _:
                self._take_work(event)

    def _take_work(self, event: HistoryEvent) -> None:
        match event.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                name = event.activity_task_scheduled_event_attributes.activity_id
                self._of[event.event_id] = name
                self._begin(name)
            case EventType.EVENT_TYPE_TIMER_STARTED:
                self._begin(event.timer_started_event_attributes.timer_id)
            case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
                attributes = event.start_child_workflow_execution_initiated_event_attributes
                self._begin(attributes.workflow_id)
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                self._end(self._of[event.activity_task_completed_event_attributes.scheduled_event_id])
            case EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
                self._end(self._of[event.activity_task_timed_out_event_attributes.scheduled_event_id])
            case EventType.EVENT_TYPE_TIMER_FIRED:
                self._end(event.timer_fired_event_attributes.timer_id)
            case EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED:
                completed = event.child_workflow_execution_completed_event_attributes
                self._end(completed.workflow_execution.workflow_id)
            case (
                EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED
                | EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED
            ):
                self.closed = True
            case _:
                pass

    def _begin(self, name: str) -> None:
        self.wishes.pop(name, None)
        self.open.add(name)

    def _end(self, name: str) -> None:
        self.open.discard(name)


def decide(reading: Reading, messages: Iterable[Message], queue: str) -> tuple[list[Command], list[Message]]:
    """What the workflow does next: commands and protocol messages."""
    commands: list[Command] = []
    answers: list[Message] = []
    value = reading.value
    for message in messages:
        value = _answer_update(message, value, commands, answers)
    if reading.child:
        commands.append(_complete("child"))
        return commands, answers
    for name, wish in reading.wishes.items():
        commands.append(_GRANT[wish](name, queue))
    if reading.closing and not reading.wishes and not reading.open:
        commands.append(_complete(str(value)))
    return commands, answers


def _command(kind: str, **fields: object) -> Command:
    made = Command(command_type=CommandType.Value(f"COMMAND_TYPE_{kind}"))
    attributes = getattr(made, f"{kind.lower()}_command_attributes")
    attributes.MergeFrom(type(attributes)(**fields))
    return made


def _activity(name: str, queue: str) -> Command:
    return _command(
        "SCHEDULE_ACTIVITY_TASK",
        activity_id=name,
        activity_type={"name": "work"},
        task_queue={"name": queue},
        input=payloads(name),
        start_to_close_timeout=seconds(ACTIVITY_S),
        retry_policy={"initial_interval": seconds(0.2), "backoff_coefficient": 1.0},
    )


def _timer(name: str, queue: str) -> Command:  # noqa: ARG001 - the signature of a grant
    return _command("START_TIMER", timer_id=name, start_to_fire_timeout=seconds(TIMER_S))


def _child(name: str, queue: str) -> Command:
    return _command(
        "START_CHILD_WORKFLOW_EXECUTION",
        workflow_id=name,
        workflow_type={"name": CHILD_TYPE},
        task_queue={"name": queue},
        workflow_task_timeout=seconds(TASK_S),
    )


_GRANT = {ACTIVITY: _activity, TIMER: _timer, CHILD: _child}


def _complete(text: str) -> Command:
    return _command("COMPLETE_WORKFLOW_EXECUTION", result=payloads(text))


def _answer_update(message: Message, value: int, commands: list[Command], answers: list[Message]) -> int:
    request = Request()
    message.body.Unpack(request)
    add = int(text_of(request.input.args))
    protocol = message.protocol_instance_id
    if add == REJECT:
        rejected = Message(id=f"{message.id}/reject", protocol_instance_id=protocol)
        rejected.body.Pack(
            Rejection(
                rejected_request_message_id=message.id,
                rejected_request_sequencing_event_id=message.event_id,
                rejected_request=request,
                failure=Failure(message=REJECTED),
            )
        )
        answers.append(rejected)
        return value
    value += add
    accepted = Message(id=f"{message.id}/accept", protocol_instance_id=protocol)
    accepted.body.Pack(
        Acceptance(
            accepted_request_message_id=message.id,
            accepted_request_sequencing_event_id=message.event_id,
            accepted_request=request,
        )
    )
    completed = Message(id=f"{message.id}/complete", protocol_instance_id=protocol)
    completed.body.Pack(Response(meta=request.meta, outcome=Outcome(success=payloads(str(value)))))
    for each in (accepted, completed):
        answers.append(each)
        commands.append(_command("PROTOCOL_MESSAGE", message_id=each.id))
    return value
