"""Rules for commands: what is refused with which cause and words, and what is filled in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import (
    CancelTimerCommandAttributes,
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ContinueAsNewWorkflowExecutionCommandAttributes,
    FailWorkflowExecutionCommandAttributes,
    ModifyWorkflowPropertiesCommandAttributes,
    ProtocolMessageCommandAttributes,
    RecordMarkerCommandAttributes,
    RequestCancelActivityTaskCommandAttributes,
    RequestCancelExternalWorkflowExecutionCommandAttributes,
    ScheduleActivityTaskCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes,
    StartTimerCommandAttributes,
    UpsertWorkflowSearchAttributesCommandAttributes,
)
from temporalio.api.common.v1 import Memo, Payload, Payloads, RetryPolicy, SearchAttributes, WorkflowType
from temporalio.api.enums.v1 import CommandType
from temporalio.api.failure.v1 import Failure

from history_store.engine import command_rules as rules
from history_store.engine.durations import DURATION_SECONDS_MAX, NS_PER_SECOND
from history_store.engine.errors import Code, ServiceError
from history_store.engine.limits import Limits

SMALL = Limits(id_bytes_max=10, blob_bytes_max=40, memo_bytes_max=30, search_attribute_bytes_max=8)
RUN_ID = "0190e1f4-9c5e-7d5a-8b1a-1234567890ab"
LONG = "x" * 11


def payloads(size: int) -> Payloads:
    return Payloads(payloads=[Payload(data=b"x" * size)])


def activity(**fields: object) -> ScheduleActivityTaskCommandAttributes:
    made = ScheduleActivityTaskCommandAttributes(
        activity_id="a", start_to_close_timeout=Duration(seconds=5), **fields
    )  # type: ignore[arg-type]
    made.activity_type.name = "T"
    made.task_queue.name = "q"
    return made


def child(**fields: object) -> StartChildWorkflowExecutionCommandAttributes:
    given = {"workflow_id": "w", "workflow_type": WorkflowType(name="T"), "namespace": "ns", **fields}
    return StartChildWorkflowExecutionCommandAttributes(**given)  # type: ignore[arg-type]


def schedule(attributes: ScheduleActivityTaskCommandAttributes) -> None:
    rules.check_schedule_activity(attributes, SMALL, 0, "wq")


def without(
    message: ScheduleActivityTaskCommandAttributes, field: str
) -> ScheduleActivityTaskCommandAttributes:
    message.ClearField(field)  # type: ignore[arg-type]
    return message


def named(queue: str) -> ScheduleActivityTaskCommandAttributes:
    made = activity()
    made.task_queue.name = queue
    return made


Check = Callable[[], None]
CASES: list[tuple[str, Check, int, str]] = [
    (
        "no queue",
        lambda: schedule(without(activity(), "task_queue")),
        rules.BAD_ACTIVITY,
        "taskQueue is not set",
    ),
    (
        "no id",
        lambda: schedule(without(activity(), "activity_id")),
        rules.BAD_ACTIVITY,
        "activityId is not set",
    ),
    (
        "no type",
        lambda: schedule(without(activity(), "activity_type")),
        rules.BAD_ACTIVITY,
        "activityType is not set",
    ),
    (
        "no timeout",
        lambda: schedule(without(activity(), "start_to_close_timeout")),
        rules.BAD_ACTIVITY,
        "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
        "ActivityId=a ActivityType=T",
    ),
    (
        "negative timeout",
        lambda: schedule(activity(heartbeat_timeout=Duration(seconds=-1))),
        rules.BAD_ACTIVITY,
        "invalid HeartbeatTimeout: negative duration",
    ),
    (
        "retry policy",
        lambda: schedule(activity(retry_policy=RetryPolicy(backoff_coefficient=0.5))),
        rules.BAD_ACTIVITY,
        "BackoffCoefficient cannot be less than 1 on retry policy.",
    ),
    (
        "reserved queue",
        lambda: schedule(named("/_sys/q/1")),
        rules.BAD_ACTIVITY,
        "task queue name cannot start with reserved prefix /_sys/",
    ),
    (
        "internal queue",
        lambda: rules.check_schedule_activity(named("temporal-sys-per-ns-tq"), Limits(), 0, "wq"),
        rules.BAD_ACTIVITY,
        "cannot use internal per-namespace task queue:temporal-sys-per-ns-tq "
        "(in parent component task queue: wq)",
    ),
    (
        "timer without id",
        lambda: rules.check_start_timer(StartTimerCommandAttributes(), SMALL),
        rules.BAD_TIMER,
        "TimerId is not set on StartTimerCommand.",
    ),
    (
        "timer id too long",
        lambda: rules.check_start_timer(StartTimerCommandAttributes(timer_id=LONG), SMALL),
        rules.BAD_TIMER,
        f"TimerId on StartTimerCommand exceeds length limit. TimerId={LONG} Length=11 Limit=10",
    ),
    (
        "negative timer",
        lambda: rules.check_start_timer(
            StartTimerCommandAttributes(timer_id="1", start_to_fire_timeout=Duration(seconds=-1)), SMALL
        ),
        rules.BAD_TIMER,
        "An invalid StartToFireTimeout is set on StartTimerCommand: negative duration. TimerId=1",
    ),
    (
        "cancel timer",
        lambda: rules.check_cancel_timer(CancelTimerCommandAttributes(), SMALL),
        rules.BAD_CANCEL_TIMER,
        "TimerId is not set on CancelTimerCommand.",
    ),
    (
        "cancel activity",
        lambda: rules.check_request_cancel_activity(RequestCancelActivityTaskCommandAttributes()),
        rules.BAD_CANCEL_ACTIVITY,
        "ScheduledEventId is not set on RequestCancelActivityTaskCommand.",
    ),
    (
        "marker",
        lambda: rules.check_record_marker(RecordMarkerCommandAttributes(), SMALL),
        rules.BAD_MARKER,
        "MarkerName is not set on RecordMarkerCommand.",
    ),
    (
        "fail without failure",
        lambda: rules.check_fail_workflow(FailWorkflowExecutionCommandAttributes(), SMALL),
        rules.BAD_FAIL,
        "Failure is not set on FailWorkflowExecutionCommand.",
    ),
    (
        "message",
        lambda: rules.check_protocol_message(ProtocolMessageCommandAttributes()),
        rules.BAD_MESSAGE,
        "MessageID is not set on ProtocolMessageCommand.",
    ),
    (
        "cancel external without id",
        lambda: rules.check_request_cancel_external(
            RequestCancelExternalWorkflowExecutionCommandAttributes(namespace="ns"), SMALL
        ),
        rules.BAD_CANCEL_EXTERNAL,
        "WorkflowId is not set on RequestCancelExternalWorkflowExecutionCommand. Namespace=ns RunId=",
    ),
    (
        "cancel of a child just started",
        lambda: rules.check_request_cancel_external(
            RequestCancelExternalWorkflowExecutionCommandAttributes(namespace="ns", workflow_id="w"),
            SMALL,
            {"w"},
        ),
        rules.BAD_CANCEL_EXTERNAL,
        "Start and RequestCancel for child workflow is not allowed in same workflow task. "
        "WorkflowId=w RunId= Namespace=ns",
    ),
    (
        "signal without execution",
        lambda: rules.check_signal_external(SignalExternalWorkflowExecutionCommandAttributes(), SMALL),
        rules.BAD_SIGNAL_EXTERNAL,
        "Execution is not set on SignalExternalWorkflowExecutionCommand.",
    ),
    (
        "signal without name",
        lambda: rules.check_signal_external(
            SignalExternalWorkflowExecutionCommandAttributes(
                namespace="ns",
                execution={"workflow_id": "w"},  # type: ignore[arg-type]
            ),
            SMALL,
        ),
        rules.BAD_SIGNAL_EXTERNAL,
        "SignalName is not set on SignalExternalWorkflowExecutionCommand. WorkflowId=w Namespace=ns RunId=",
    ),
    (
        "signal with a bad run id",
        lambda: rules.check_signal_external(
            SignalExternalWorkflowExecutionCommandAttributes(
                namespace="ns",
                execution={"workflow_id": "w", "run_id": "r"},  # type: ignore[arg-type]
                signal_name="s",
            ),
            SMALL,
        ),
        rules.BAD_SIGNAL_EXTERNAL,
        "Invalid RunId set on SignalExternalWorkflowExecutionCommand. "
        "WorkflowId=w Namespace=ns RunId=r SignalName=s",
    ),
    (
        "child without id",
        lambda: rules.check_start_child(child(workflow_id=""), SMALL, "wq"),
        rules.BAD_CHILD,
        "Required field WorkflowId is not set on StartChildWorkflowExecutionCommand. "
        "WorkflowType=T Namespace=ns",
    ),
    (
        "child with a negative timeout",
        lambda: rules.check_start_child(child(workflow_run_timeout=Duration(seconds=-1)), SMALL, "wq"),
        rules.BAD_CHILD,
        "Invalid WorkflowRunTimeout on StartChildWorkflowExecutionCommand: negative duration. "
        "WorkflowId=w WorkflowType=T Namespace=ns",
    ),
    (
        "child with a bad cron",
        lambda: rules.check_start_child(child(cron_schedule="nope"), SMALL, "wq"),
        rules.BAD_CHILD,
        "invalid CronSchedule on StartChildWorkflowExecutionCommand: invalid CronSchedule. "
        "('nope' is no cron expression). WorkflowId=w WorkflowType=T Namespace=ns",
    ),
    (
        "upsert nothing",
        lambda: rules.check_upsert_search_attributes(
            UpsertWorkflowSearchAttributesCommandAttributes(), SMALL
        ),
        rules.BAD_SEARCH_ATTRIBUTES,
        "SearchAttributes is not set on UpsertWorkflowSearchAttributesCommand.",
    ),
    (
        "upsert an empty set",
        lambda: rules.check_upsert_search_attributes(
            UpsertWorkflowSearchAttributesCommandAttributes(search_attributes=SearchAttributes()), SMALL
        ),
        rules.BAD_SEARCH_ATTRIBUTES,
        "IndexedFields is not set on UpsertWorkflowSearchAttributesCommand.",
    ),
    (
        "modify nothing",
        lambda: rules.check_modify_properties(ModifyWorkflowPropertiesCommandAttributes(), SMALL),
        rules.BAD_PROPERTIES,
        "UpsertedMemo is not set on ModifyWorkflowPropertiesCommand.",
    ),
]


@pytest.mark.parametrize(("check", "cause", "message"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_refused(check: Check, cause: int, message: str) -> None:
    with pytest.raises(rules.BadCommand) as caught:
        check()
    assert (caught.value.cause, caught.value.message) == (cause, message)
    assert not caught.value.terminate


BIG = Memo(fields={"k": Payload(data=b"x" * 50)})
TOO_LARGE: list[tuple[str, Check, int]] = [
    ("activity", lambda: schedule(activity(input=payloads(50))), rules.BAD_ACTIVITY),
    (
        "result",
        lambda: rules.check_complete_workflow(
            CompleteWorkflowExecutionCommandAttributes(result=payloads(50)), SMALL
        ),
        rules.BAD_ACTIVITY,
    ),
    (
        "failure",
        lambda: rules.check_fail_workflow(
            FailWorkflowExecutionCommandAttributes(failure=Failure(message="x" * 50)), SMALL
        ),
        rules.BAD_FAIL,
    ),
    (
        "marker",
        lambda: rules.check_record_marker(
            RecordMarkerCommandAttributes(marker_name="m", details={"d": payloads(50)}), SMALL
        ),
        rules.BAD_MARKER,
    ),
    ("child's memo", lambda: rules.check_start_child(child(memo=BIG), SMALL, "wq"), rules.BAD_CHILD),
    (
        "modified memo",
        lambda: rules.check_modify_properties(
            ModifyWorkflowPropertiesCommandAttributes(upserted_memo=BIG), SMALL
        ),
        rules.BAD_PROPERTIES,
    ),
    ("merged memo", lambda: rules.check_merged_memo(31, SMALL), rules.BAD_PROPERTIES),
    (
        "merged search attributes",
        lambda: rules.check_merged_search_attributes(
            SearchAttributes(indexed_fields={"k": Payload(data=b"x" * 9)}), SMALL
        ),
        rules.BAD_SEARCH_ATTRIBUTES,
    ),
]


@pytest.mark.parametrize(("check", "cause"), [c[1:] for c in TOO_LARGE], ids=[c[0] for c in TOO_LARGE])
def test_too_large_ends_the_workflow(check: Check, cause: int) -> None:
    with pytest.raises(rules.BadCommand, match="exceeds") as caught:
        check()
    assert caught.value.cause == cause
    assert caught.value.terminate


@pytest.mark.parametrize(
    ("given", "run_s", "expected"),
    [
        # schedule-to-close, schedule-to-start, start-to-close, heartbeat (seconds)
        ((10, 0, 0, 0), 0, (10, 10, 10, 0)),
        ((10, 20, 30, 40), 0, (10, 10, 10, 10)),
        ((10, 3, 4, 2), 0, (10, 3, 4, 2)),
        ((0, 0, 5, 0), 0, (0, 0, 5, 0)),
        ((0, 3, 5, 9), 0, (0, 3, 5, 5)),
        ((0, 0, 5, 0), 60, (60, 60, 5, 0)),
        ((0, 90, 90, 90), 60, (60, 60, 60, 60)),
        ((90, 0, 0, 0), 60, (60, 60, 60, 0)),
    ],
)
def test_timeouts_follow_from_each_other(
    given: tuple[int, int, int, int], run_s: int, expected: tuple[int, int, int, int]
) -> None:
    made = activity()
    fields = (
        made.schedule_to_close_timeout,
        made.schedule_to_start_timeout,
        made.start_to_close_timeout,
        made.heartbeat_timeout,
    )
    for field, seconds in zip(fields, given, strict=True):
        field.seconds = seconds
    rules.check_schedule_activity(made, Limits(), run_s * NS_PER_SECOND, "wq")
    assert tuple(field.seconds for field in fields) == expected
    assert made.HasField("schedule_to_close_timeout")
    assert made.HasField("schedule_to_start_timeout")
    assert made.retry_policy.backoff_coefficient == 2


def test_inherited_and_capped() -> None:
    attributes = ContinueAsNewWorkflowExecutionCommandAttributes(
        workflow_run_timeout=Duration(seconds=10**11), retry_policy=RetryPolicy()
    )
    rules.check_continue_as_new(attributes, Limits(), "T", "wq")
    assert (attributes.workflow_type.name, attributes.task_queue.name) == ("T", "wq")
    assert attributes.workflow_run_timeout.seconds == DURATION_SECONDS_MAX
    assert attributes.retry_policy.maximum_interval.seconds == 100
    assert not attributes.HasField("workflow_task_timeout")
    begun = child()
    rules.check_start_child(begun, Limits(), "wq")
    assert begun.task_queue.name == "wq"
    assert not begun.HasField("retry_policy")


def test_accepted() -> None:
    rules.check_request_cancel_external(
        RequestCancelExternalWorkflowExecutionCommandAttributes(workflow_id="w", run_id=RUN_ID), SMALL
    )
    rules.check_start_timer(StartTimerCommandAttributes(timer_id="1"), SMALL)
    rules.check_upsert_search_attributes(
        UpsertWorkflowSearchAttributesCommandAttributes(
            search_attributes=SearchAttributes(indexed_fields={"k": Payload(data=b"1")})
        ),
        SMALL,
    )


def test_nothing_follows_the_end() -> None:
    timer = Command(command_type=CommandType.COMMAND_TYPE_START_TIMER)
    end = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    rules.check_sequence([timer, end])
    with pytest.raises(ServiceError) as caught:
        rules.check_sequence([end, timer])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        "invalid command sequence: [CompleteWorkflowExecution, StartTimer], "
        "command CompleteWorkflowExecution must be the last command."
    )
    with pytest.raises(ServiceError, match="unknown command type: Unspecified"):
        rules.check_sequence([Command()])
    with pytest.raises(ServiceError, match="unknown command type: 999"):
        rules.check_sequence([Command(command_type=999)])  # type: ignore[arg-type]


def test_the_text_names_the_cause() -> None:
    assert rules.BadCommand(rules.BAD_TIMER, "TimerId").text == "BadStartTimerAttributes: TimerId"
    assert rules.BadCommand(rules.UNHANDLED_COMMAND, "").text == "UnhandledCommand"
