"""The code of the workflows that the kill suite runs: a pure function from a run's history to commands.

A signal says what the workflow has to do (`activity`, `timer`, `close`, or nothing at all), an update is
accepted and completed, or rejected when its input says so. No state is kept beside the history, so any worker
can take over any task.
"""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1.message_pb2 import (
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ProtocolMessageCommandAttributes,
    ScheduleActivityTaskCommandAttributes,
    StartTimerCommandAttributes,
)
from temporalio.api.common.v1.message_pb2 import ActivityType, Payload, Payloads
from temporalio.api.enums.v1.command_type_pb2 import CommandType
from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.failure.v1.message_pb2 import Failure
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.protocol.v1.message_pb2 import Message
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.update.v1.message_pb2 import Acceptance, Outcome, Rejection, Request, Response

ACTIVITY, TIMER, CLOSE, NOTHING = "activity", "timer", "close", "nothing"
WISHES = (ACTIVITY, TIMER, NOTHING)
REJECT = b"reject"
ACTIVITY_S = 2.0  # a started activity whose worker forgot it is tried again after this
TIMER_S = 0.1


def payloads(data: bytes) -> Payloads:
    """Wrap some bytes."""
    return Payloads(payloads=[Payload(metadata={"encoding": b"binary/plain"}, data=data)])


def seconds(value: float) -> Duration:
    """A duration of the wire."""
    made = Duration()
    made.FromNanoseconds(round(value * 1e9))
    return made


def decide(events: Iterable[HistoryEvent], messages: Iterable[Message], queue: str) -> tuple[
    list[Command], list[Message]
]:  # fmt: skip
    """What the workflow does next: commands and protocol messages."""
    wanted: dict[str, str] = {}  # name of a signal -> its wish
    begun: set[str] = set()
    for event in events:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                signal = event.workflow_execution_signaled_event_attributes
                wanted[signal.identity] = signal.signal_name
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                begun.add(event.activity_task_scheduled_event_attributes.activity_id)
            case EventType.EVENT_TYPE_TIMER_STARTED:
                begun.add(event.timer_started_event_attributes.timer_id)
            case _:
                pass
    commands: list[Command] = []
    answers: list[Message] = []
    for message in messages:
        _answer_update(message, commands, answers)
    for name, wish in wanted.items():
        if name in begun:
            continue
        if wish == ACTIVITY:
            commands.append(_activity(name, queue))
        elif wish == TIMER:
            commands.append(_timer(name))
    if CLOSE in wanted.values():
        commands = [each for each in commands if each.HasField("protocol_message_command_attributes")]
        kind = CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION
        attributes = CompleteWorkflowExecutionCommandAttributes(result=payloads(b"closed"))
        commands.append(Command(command_type=kind, complete_workflow_execution_command_attributes=attributes))
    return commands, answers


def pending(events: list[HistoryEvent]) -> str:
    """What a run still waits for, of all that ends by itself; empty if nothing."""
    begun: dict[str, str] = {}
    told = 0  # the last event a workflow task has to hear of
    heard = 0
    for event in events:
        match event.event_type:
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                begun[f"{event.event_id}"] = f"activity of event {event.event_id}"
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                begun.pop(f"{event.activity_task_completed_event_attributes.scheduled_event_id}", None)
                told = event.event_id
            case EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
                begun.pop(f"{event.activity_task_timed_out_event_attributes.scheduled_event_id}", None)
                told = event.event_id
            case EventType.EVENT_TYPE_TIMER_STARTED:
                timer = event.timer_started_event_attributes.timer_id
                begun[f"timer {timer}"] = f"timer {timer}"
            case EventType.EVENT_TYPE_TIMER_FIRED:
                begun.pop(f"timer {event.timer_fired_event_attributes.timer_id}", None)
                told = event.event_id
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                told = event.event_id
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
                told = event.event_id
            case EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                heard = event.workflow_task_completed_event_attributes.started_event_id
            case _:
                pass
    if told > heard:
        return f"a workflow task that hears of event {told}"
    return next(iter(begun.values()), "")


def _activity(name: str, queue: str) -> Command:
    attributes = ScheduleActivityTaskCommandAttributes(
        activity_id=name,
        activity_type=ActivityType(name="chaos"),
        task_queue=TaskQueue(name=queue),
        input=payloads(name.encode()),
        start_to_close_timeout=seconds(ACTIVITY_S),
    )
    kind = CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK
    return Command(command_type=kind, schedule_activity_task_command_attributes=attributes)


def _timer(name: str) -> Command:
    attributes = StartTimerCommandAttributes(timer_id=name, start_to_fire_timeout=seconds(TIMER_S))
    kind = CommandType.COMMAND_TYPE_START_TIMER
    return Command(command_type=kind, start_timer_command_attributes=attributes)


def _answer_update(message: Message, commands: list[Command], answers: list[Message]) -> None:
    request = Request()
    message.body.Unpack(request)
    if request.input.args.payloads[0].data == REJECT:
        rejected = Message(id=f"{message.id}/reject", protocol_instance_id=message.protocol_instance_id)
        rejected.body.Pack(
            Rejection(
                rejected_request_message_id=message.id,
                rejected_request_sequencing_event_id=message.event_id,
                rejected_request=request,
                failure=Failure(message="rejected, as its input asked for"),
            )
        )
        answers.append(rejected)
        return
    accepted = Message(id=f"{message.id}/accept", protocol_instance_id=message.protocol_instance_id)
    accepted.body.Pack(
        Acceptance(
            accepted_request_message_id=message.id,
            accepted_request_sequencing_event_id=message.event_id,
            accepted_request=request,
        )
    )
    completed = Message(id=f"{message.id}/complete", protocol_instance_id=message.protocol_instance_id)
    outcome = Outcome(success=payloads(request.meta.update_id.encode()))
    completed.body.Pack(Response(meta=request.meta, outcome=outcome))
    for each in (accepted, completed):
        answers.append(each)
        attributes = ProtocolMessageCommandAttributes(message_id=each.id)
        kind = CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE
        commands.append(Command(command_type=kind, protocol_message_command_attributes=attributes))
