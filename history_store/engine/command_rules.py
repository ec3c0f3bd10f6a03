"""Rules for a worker's commands: what each must say, and what Temporal fills in where it says nothing.

A command that breaks a rule does not fail the worker's call: it fails the workflow task, with a cause and a
message that end up in the history (`BadCommand`). Some offences, too large payloads above all, would come
back on every retry, so they end the workflow instead (`terminate`).

The functions complete the attributes in place exactly where Temporal does (activity timeouts, retry policies,
inherited task queues and types, over-long durations), so that what the event records is what holds.
Not here: namespaces, which search attributes exist, how much is already pending, and duplicate ids; the
engine knows those.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from google.protobuf.duration_pb2 import Duration
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.command.v1 import (
    CancelTimerCommandAttributes,
    CancelWorkflowExecutionCommandAttributes,
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
from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType, TaskQueueKind, WorkflowTaskFailedCause
from temporalio.api.workflowservice.v1 import StartActivityExecutionRequest

from history_store.engine import cron, field_rules, retry
from history_store.engine.durations import NS_PER_SECOND, check_and_cap, to_ns
from history_store.engine.errors import ServiceError, invalid
from history_store.engine.field_rules import byte_length, too_long
from history_store.engine.limits import CommandLimits

_CAUSE_PREFIX = "WORKFLOW_TASK_FAILED_CAUSE_"


def _cause(name: str) -> int:
    return int(WorkflowTaskFailedCause.Value(_CAUSE_PREFIX + name))


UNHANDLED_COMMAND = _cause("UNHANDLED_COMMAND")
BAD_ACTIVITY = _cause("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES")
BAD_CANCEL_ACTIVITY = _cause("BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES")
BAD_TIMER = _cause("BAD_START_TIMER_ATTRIBUTES")
BAD_CANCEL_TIMER = _cause("BAD_CANCEL_TIMER_ATTRIBUTES")
BAD_MARKER = _cause("BAD_RECORD_MARKER_ATTRIBUTES")
BAD_FAIL = _cause("BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES")
BAD_CANCEL = _cause("BAD_CANCEL_WORKFLOW_EXECUTION_ATTRIBUTES")
BAD_CANCEL_EXTERNAL = _cause("BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES")
BAD_SIGNAL_EXTERNAL = _cause("BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES")
BAD_CONTINUE_AS_NEW = _cause("BAD_CONTINUE_AS_NEW_ATTRIBUTES")
BAD_CHILD = _cause("BAD_START_CHILD_EXECUTION_ATTRIBUTES")
BAD_SEARCH_ATTRIBUTES = _cause("BAD_SEARCH_ATTRIBUTES")
BAD_PROPERTIES = _cause("BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES")
BAD_MESSAGE = _cause("BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE")

_NORMAL = TaskQueueKind.TASK_QUEUE_KIND_NORMAL

CLOSING = frozenset(
    {
        int(CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION),
        int(CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION),
        int(CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION),
        int(CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION),
    }
)
_KNOWN = frozenset(int(value) for value in CommandType.values() if value != 0)


class BadCommand(Exception):
    """A command that breaks a rule: the workflow task fails with this cause and message."""

    def __init__(self, cause: int, message: str, *, terminate: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.terminate = terminate  # the workflow ends, since a retry would do the same again

    @property
    def text(self) -> str:
        """The message as the history and the worker see it: "BadStartTimerAttributes: TimerId is not set"."""
        return f"{cause_name(self.cause)}: {self.message}" if self.message else cause_name(self.cause)


def cause_name(cause: int) -> str:
    """The cause as Temporal prints it, e.g. UnhandledCommand."""
    if cause not in WorkflowTaskFailedCause.values():
        return str(cause)
    name = WorkflowTaskFailedCause.Name(WorkflowTaskFailedCause.ValueType(cause))
    return "".join(part.capitalize() for part in name.removeprefix(_CAUSE_PREFIX).split("_"))


def check_sequence(commands: Sequence[Command]) -> None:
    """Nothing may follow a command that closes the run. INVALID_ARGUMENT: this one does fail the call."""
    closing = 0
    for command in commands:
        kind = int(command.command_type)
        if closing:
            names = ", ".join(command_name(int(each.command_type)) for each in commands)
            raise invalid(
                f"invalid command sequence: [{names}], "
                f"command {command_name(closing)} must be the last command.",
            )
        if kind not in _KNOWN:
            raise invalid(f"unknown command type: {command_name(kind)}")
        if kind in CLOSING:
            closing = kind


def command_name(kind: int) -> str:
    """The type of a command as Temporal prints it, e.g. StartTimer."""
    if kind not in CommandType.values():
        return str(kind)
    name = CommandType.Name(CommandType.ValueType(kind)).removeprefix("COMMAND_TYPE_")
    return "".join(part.capitalize() for part in name.split("_"))


# ---------------------------------------------------------------------------------- activities and timers


def check_schedule_activity(
    attributes: ScheduleActivityTaskCommandAttributes,
    limits: CommandLimits,
    run_timeout_ns: int,
    workflow_task_queue: str,
) -> None:
    """ScheduleActivityTask. Fills in timeouts that follow from others, and the retry policy's defaults."""
    activity_id = attributes.activity_id
    activity_type = attributes.activity_type.name
    try:
        if not attributes.HasField("task_queue"):
            raise BadCommand(BAD_ACTIVITY, "taskQueue is not set")
        field_rules.check_user_task_queue(attributes.task_queue, limits, workflow_task_queue)
        if not activity_id:
            raise BadCommand(BAD_ACTIVITY, "activityId is not set")
        if not activity_type:
            raise BadCommand(BAD_ACTIVITY, "activityType is not set")
        retry.complete(attributes.retry_policy)
        _check_activity_length("activityId", activity_id, limits)
        _check_activity_length("activityType", activity_type, limits)
        if attributes.HasField("priority"):
            _check_activity_priority(attributes)
        complete_activity_timeouts(attributes, run_timeout_ns, activity_id, activity_type)
    except ServiceError as error:
        raise BadCommand(BAD_ACTIVITY, error.message) from None
    if attributes.HasField("input") and attributes.input.ByteSize() > limits.blob_bytes_max:
        raise BadCommand(
            BAD_ACTIVITY, "ScheduleActivityTaskCommandAttributes.Input exceeds size limit.", terminate=True
        )


def _check_activity_length(label: str, value: str, limits: CommandLimits) -> None:
    if too_long(value, limits.id_bytes_max):
        raise invalid(
            f"{label} exceeds length limit. Length={byte_length(value)} Limit={limits.id_bytes_max}"
        )


def _check_activity_priority(attributes: ScheduleActivityTaskCommandAttributes) -> None:
    try:
        field_rules.check_priority(attributes.priority)
    except ServiceError as error:
        raise BadCommand(BAD_ACTIVITY, f"invalid priorities: {error.message}") from None


def complete_activity_timeouts(
    options: ScheduleActivityTaskCommandAttributes | ActivityOptions | StartActivityExecutionRequest,
    run_timeout_ns: int,
    activity_id: str,
    activity_type: str,
) -> None:
    """Check the four timeouts of an activity and derive the missing ones; INVALID_ARGUMENT if none bounds it.

    Schedule-to-close bounds the other two; without it the run's own timeout does. None may outlive the run,
    and no heartbeat interval is longer than an attempt. A run without a timeout has `run_timeout_ns` 0.
    Works on any message with the four fields (ActivityOptions too).
    """
    to_close, to_start = options.schedule_to_close_timeout, options.schedule_to_start_timeout
    attempt, heartbeat = options.start_to_close_timeout, options.heartbeat_timeout
    to_close_ns = _timeout_ns(to_close, "ScheduleToCloseTimeout")
    to_start_ns = _timeout_ns(to_start, "ScheduleToStartTimeout")
    attempt_ns = _timeout_ns(attempt, "StartToCloseTimeout")
    heartbeat_ns = _timeout_ns(heartbeat, "HeartbeatTimeout")
    if to_close_ns > 0:
        to_start_ns = min(to_start_ns or to_close_ns, to_close_ns)
        attempt_ns = min(attempt_ns or to_close_ns, to_close_ns)
    elif attempt_ns > 0:
        to_close_ns = run_timeout_ns
        to_start_ns = to_start_ns or run_timeout_ns
    else:
        raise invalid(
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            f"ActivityId={activity_id} ActivityType={activity_type}",
        )
    if run_timeout_ns > 0:
        to_close_ns = min(to_close_ns, run_timeout_ns)
        to_start_ns = min(to_start_ns, run_timeout_ns)
        attempt_ns = min(attempt_ns, run_timeout_ns)
    # Zeros are written too: some SDKs demand that schedule-to-start and schedule-to-close be present.
    _write(to_close, to_close_ns)
    _write(to_start, to_start_ns)
    _write(attempt, attempt_ns)
    _write(heartbeat, min(heartbeat_ns, attempt_ns))


def _timeout_ns(value: Duration, label: str) -> int:
    seconds, nanos = value.seconds, value.nanos
    if not seconds and not nanos:
        return 0
    problem = check_and_cap(value)
    if problem is not None:
        raise invalid(f"invalid {label}: {problem}")
    return to_ns(value)


def check_request_cancel_activity(attributes: RequestCancelActivityTaskCommandAttributes) -> None:
    """RequestCancelActivityTask."""
    if attributes.scheduled_event_id <= 0:
        raise BadCommand(
            BAD_CANCEL_ACTIVITY, "ScheduledEventId is not set on RequestCancelActivityTaskCommand."
        )


def check_start_timer(attributes: StartTimerCommandAttributes, limits: CommandLimits) -> None:
    """StartTimer."""
    _check_name(BAD_TIMER, "TimerId", "StartTimerCommand", attributes.timer_id, limits)
    if attributes.HasField("start_to_fire_timeout"):
        problem = check_and_cap(attributes.start_to_fire_timeout)
        if problem is not None:
            raise BadCommand(
                BAD_TIMER,
                "An invalid StartToFireTimeout is set on StartTimerCommand: "
                f"{problem}. TimerId={attributes.timer_id}",
            )


def check_cancel_timer(attributes: CancelTimerCommandAttributes, limits: CommandLimits) -> None:
    """CancelTimer."""
    _check_name(BAD_CANCEL_TIMER, "TimerId", "CancelTimerCommand", attributes.timer_id, limits)


def check_record_marker(attributes: RecordMarkerCommandAttributes, limits: CommandLimits) -> None:
    """RecordMarker."""
    _check_name(BAD_MARKER, "MarkerName", "RecordMarkerCommand", attributes.marker_name, limits)
    size = sum(len(name.encode()) + payloads.ByteSize() for name, payloads in attributes.details.items())
    if size > limits.blob_bytes_max:
        raise BadCommand(
            BAD_MARKER, "RecordMarkerCommandAttributes.Details exceeds size limit.", terminate=True
        )


def check_protocol_message(attributes: ProtocolMessageCommandAttributes) -> None:
    """ProtocolMessage. Whether the message is there is for the engine."""
    if not attributes.message_id:
        raise BadCommand(BAD_MESSAGE, "MessageID is not set on ProtocolMessageCommand.")


# ----------------------------------------------------------------------------------------- ends of a run


def check_complete_workflow(
    attributes: CompleteWorkflowExecutionCommandAttributes, limits: CommandLimits
) -> None:
    """CompleteWorkflowExecution."""
    if attributes.HasField("result") and attributes.result.ByteSize() > limits.blob_bytes_max:
        # Temporal reports this one under the cause for bad activities; so do we: histories are compared.
        raise BadCommand(
            BAD_ACTIVITY,
            "CompleteWorkflowExecutionCommandAttributes.Result exceeds size limit.",
            terminate=True,
        )


def check_fail_workflow(attributes: FailWorkflowExecutionCommandAttributes, limits: CommandLimits) -> None:
    """FailWorkflowExecution."""
    if not attributes.HasField("failure"):
        raise BadCommand(BAD_FAIL, "Failure is not set on FailWorkflowExecutionCommand.")
    if attributes.failure.ByteSize() > limits.blob_bytes_max:
        raise BadCommand(
            BAD_FAIL, "FailWorkflowExecutionCommandAttributes.Failure exceeds size limit.", terminate=True
        )


def check_cancel_workflow(
    attributes: CancelWorkflowExecutionCommandAttributes, limits: CommandLimits
) -> None:
    """CancelWorkflowExecution."""
    if attributes.HasField("details") and attributes.details.ByteSize() > limits.blob_bytes_max:
        raise BadCommand(
            BAD_CANCEL, "CancelWorkflowExecutionCommandAttributes.Details exceeds size limit.", terminate=True
        )


def check_continue_as_new(
    attributes: ContinueAsNewWorkflowExecutionCommandAttributes,
    limits: CommandLimits,
    workflow_type: str,
    task_queue: str,
) -> None:
    """ContinueAsNew. The next run inherits type and task queue (those given) where the command names none.

    Timeouts left at zero are the engine's to inherit: only it knows the run's.
    """
    if not attributes.workflow_type.name:
        attributes.workflow_type.name = workflow_type
    name = attributes.workflow_type.name
    if too_long(name, limits.id_bytes_max):
        raise BadCommand(
            BAD_CONTINUE_AS_NEW,
            "WorkflowType on ContinueAsNewWorkflowExecutionCommand exceeds length limit. "
            f"WorkflowType={name} Length={byte_length(name)} Limit={limits.id_bytes_max}",
        )
    where = "on ContinueAsNewWorkflowExecutionCommand"
    _inherit_task_queue(attributes, task_queue)
    about = f"WorkflowType={name} TaskQueue={attributes.task_queue.name}"
    _guard(
        BAD_CONTINUE_AS_NEW,
        "error validating ContinueAsNewWorkflowExecutionCommand TaskQueue",
        about,
        lambda: field_rules.check_user_task_queue(attributes.task_queue, limits, task_queue),
    )
    for label, value in (
        ("WorkflowRunTimeout", attributes.workflow_run_timeout),
        ("WorkflowTaskTimeout", attributes.workflow_task_timeout),
        ("BackoffStartInterval", attributes.backoff_start_interval),
    ):
        _check_timeout(BAD_CONTINUE_AS_NEW, value, f"Invalid {label} {where}", about)
    if attributes.HasField("retry_policy"):
        _guard(
            BAD_CONTINUE_AS_NEW,
            f"invalid WorkflowRetryPolicy {where}",
            about,
            lambda: retry.complete(attributes.retry_policy),
        )
    if attributes.HasField("search_attributes"):
        _check_attributes_count(attributes.search_attributes, limits, where, about)
    _check_new_run_sizes(
        attributes, limits, BAD_CONTINUE_AS_NEW, "ContinueAsNewWorkflowExecutionCommandAttributes. "
    )


# ------------------------------------------------------------------------------------- other workflows


def check_start_child(
    attributes: StartChildWorkflowExecutionCommandAttributes, limits: CommandLimits, parent_task_queue: str
) -> None:
    """StartChildWorkflowExecution. The child inherits the parent's task queue if none is named."""
    workflow_id, workflow_type = attributes.workflow_id, attributes.workflow_type.name
    namespace = attributes.namespace
    where = "StartChildWorkflowExecutionCommand"
    if not workflow_id:
        raise BadCommand(
            BAD_CHILD,
            f"Required field WorkflowId is not set on {where}. "
            f"WorkflowType={workflow_type} Namespace={namespace}",
        )
    if not workflow_type:
        raise BadCommand(
            BAD_CHILD,
            f"Required field WorkflowType is not set on {where}. "
            f"WorkflowId={workflow_id} Namespace={namespace}",
        )
    about = f"WorkflowId={workflow_id} WorkflowType={workflow_type} Namespace={namespace}"
    for label, value in (
        ("Namespace", namespace),
        ("WorkflowId", workflow_id),
        ("WorkflowType", workflow_type),
    ):
        if too_long(value, limits.id_bytes_max):
            raise BadCommand(
                BAD_CHILD,
                f"{label} on {where} exceeds length limit. {about} "
                f"Length={byte_length(value)} Limit={limits.id_bytes_max}",
            )
    _check_child_times(attributes, where, about)
    if attributes.HasField("search_attributes"):
        _check_attributes_count(attributes.search_attributes, limits, "on StartChildWorkflowCommand", about)
    if attributes.HasField("priority"):
        _guard(BAD_CHILD, "", "", lambda: field_rules.check_priority(attributes.priority))
    _inherit_task_queue(attributes, parent_task_queue)
    _guard(
        BAD_CHILD,
        f"invalid TaskQueue on {where}",
        f"{about} TaskQueue={attributes.task_queue.name}",
        lambda: field_rules.check_user_task_queue(attributes.task_queue, limits, parent_task_queue),
    )
    _check_new_run_sizes(attributes, limits, BAD_CHILD, "StartChildWorkflowExecutionCommandAttributes.")


def _check_child_times(
    attributes: StartChildWorkflowExecutionCommandAttributes, where: str, about: str
) -> None:
    for label, value in (
        ("WorkflowExecutionTimeout", attributes.workflow_execution_timeout),
        ("WorkflowRunTimeout", attributes.workflow_run_timeout),
        ("WorkflowTaskTimeout", attributes.workflow_task_timeout),
    ):
        _check_timeout(BAD_CHILD, value, f"Invalid {label} on {where}", about)
    if attributes.HasField("retry_policy"):
        _guard(
            BAD_CHILD,
            f"invalid WorkflowRetryPolicy on {where}",
            about,
            lambda: retry.complete(attributes.retry_policy),
        )
    if attributes.cron_schedule:
        _guard(
            BAD_CHILD,
            f"invalid CronSchedule on {where}",
            about,
            lambda: cron.validate(attributes.cron_schedule),
        )


def check_request_cancel_external(
    attributes: RequestCancelExternalWorkflowExecutionCommandAttributes,
    limits: CommandLimits,
    started_in_this_task: Container[str] = (),
) -> None:
    """RequestCancelExternalWorkflowExecution; not of a child whose start is in the same completion."""
    workflow_id, run_id, namespace = attributes.workflow_id, attributes.run_id, attributes.namespace
    where = "RequestCancelExternalWorkflowExecutionCommand"
    if not workflow_id:
        raise BadCommand(
            BAD_CANCEL_EXTERNAL, f"WorkflowId is not set on {where}. Namespace={namespace} RunId={run_id}"
        )
    about = f"WorkflowId={workflow_id} RunId={run_id} Namespace={namespace}"
    _check_target(BAD_CANCEL_EXTERNAL, where, about, namespace, workflow_id, run_id, limits)
    if workflow_id in started_in_this_task:
        raise BadCommand(
            BAD_CANCEL_EXTERNAL,
            f"Start and RequestCancel for child workflow is not allowed in same workflow task. {about}",
        )


def check_signal_external(
    attributes: SignalExternalWorkflowExecutionCommandAttributes, limits: CommandLimits
) -> None:
    """SignalExternalWorkflowExecution."""
    where = "SignalExternalWorkflowExecutionCommand"
    if not attributes.HasField("execution"):
        raise BadCommand(BAD_SIGNAL_EXTERNAL, f"Execution is not set on {where}.")
    workflow_id, run_id = attributes.execution.workflow_id, attributes.execution.run_id
    namespace, signal = attributes.namespace, attributes.signal_name
    if not workflow_id:
        raise BadCommand(
            BAD_SIGNAL_EXTERNAL,
            f"WorkflowId is not set on {where}. Namespace={namespace} RunId={run_id} SignalName={signal}",
        )
    about = f"WorkflowId={workflow_id} Namespace={namespace} RunId={run_id}"
    _check_target(
        BAD_SIGNAL_EXTERNAL, where, f"{about} SignalName={signal}", namespace, workflow_id, run_id, limits
    )
    if not signal:
        raise BadCommand(BAD_SIGNAL_EXTERNAL, f"SignalName is not set on {where}. {about}")
    if attributes.HasField("input") and attributes.input.ByteSize() > limits.blob_bytes_max:
        raise BadCommand(
            BAD_SIGNAL_EXTERNAL,
            "SignalExternalWorkflowExecutionCommandAttributes.Input exceeds size limit.",
            terminate=True,
        )


# -------------------------------------------------------------------------------- properties of the run


def check_upsert_search_attributes(
    attributes: UpsertWorkflowSearchAttributesCommandAttributes, limits: CommandLimits
) -> None:
    """UpsertWorkflowSearchAttributes. Sizes of the merged set are for the engine (`check_merged_...`)."""
    if not attributes.HasField("search_attributes"):
        raise BadCommand(
            BAD_SEARCH_ATTRIBUTES, "SearchAttributes is not set on UpsertWorkflowSearchAttributesCommand."
        )
    fields = attributes.search_attributes.indexed_fields
    if not fields:
        raise BadCommand(
            BAD_SEARCH_ATTRIBUTES, "IndexedFields is not set on UpsertWorkflowSearchAttributesCommand."
        )
    _guard(
        BAD_SEARCH_ATTRIBUTES,
        "",
        "",
        lambda: field_rules.check_search_attributes_count(attributes.search_attributes, limits),
    )
    if _map_bytes(fields) > limits.blob_bytes_max:
        raise BadCommand(
            BAD_SEARCH_ATTRIBUTES,
            "UpsertWorkflowSearchAttributesCommandAttributes exceeds size limit.",
            terminate=True,
        )


def check_merged_search_attributes(merged: SearchAttributes, limits: CommandLimits) -> None:
    """What a run would have after an upsert."""
    try:
        field_rules.check_search_attributes_size(merged, limits)
    except ServiceError as error:
        raise BadCommand(BAD_SEARCH_ATTRIBUTES, error.message, terminate=True) from None


def check_modify_properties(
    attributes: ModifyWorkflowPropertiesCommandAttributes, limits: CommandLimits
) -> None:
    """ModifyWorkflowProperties. The size of the merged memo is for the engine (`check_merged_memo`)."""
    if not attributes.HasField("upserted_memo"):
        raise BadCommand(BAD_PROPERTIES, "UpsertedMemo is not set on ModifyWorkflowPropertiesCommand.")
    fields = attributes.upserted_memo.fields
    if not fields:
        raise BadCommand(BAD_PROPERTIES, "UpsertedMemo.Fields is not set on ModifyWorkflowPropertiesCommand.")
    if _map_bytes(fields) > limits.blob_bytes_max:
        raise BadCommand(
            BAD_PROPERTIES, "ModifyWorkflowPropertiesCommandAttributes exceeds size limit.", terminate=True
        )


def check_merged_memo(memo_bytes: int, limits: CommandLimits) -> None:
    """The encoded size of the memo a run would have after a change."""
    if memo_bytes > limits.memo_bytes_max:
        raise BadCommand(
            BAD_PROPERTIES,
            "ModifyWorkflowPropertiesCommandAttributes. Memo exceeds size limit.",
            terminate=True,
        )


# --------------------------------------------------------------------------------------- shared by several


def _write(into: Duration, ns: int) -> None:
    into.seconds, into.nanos = divmod(ns, NS_PER_SECOND)


def _map_bytes(fields: Mapping[str, Payload]) -> int:
    """Names and contents of a map of payloads, as Temporal counts them: without metadata."""
    return sum(byte_length(name) + len(payload.data) for name, payload in fields.items())


def _check_name(cause: int, label: str, where: str, value: str, limits: CommandLimits) -> None:
    if not value:
        raise BadCommand(cause, f"{label} is not set on {where}.")
    if too_long(value, limits.id_bytes_max):
        raise BadCommand(
            cause,
            f"{label} on {where} exceeds length limit. "
            f"{label}={value} Length={byte_length(value)} Limit={limits.id_bytes_max}",
        )


def _check_target(
    cause: int, where: str, about: str, namespace: str, workflow_id: str, run_id: str, limits: CommandLimits
) -> None:
    """Another workflow, named by a command."""
    for label, value in (("Namespace", namespace), ("WorkflowId", workflow_id)):
        if too_long(value, limits.id_bytes_max):
            raise BadCommand(
                cause,
                f"{label} on {where} exceeds length limit. {about} "
                f"Length={byte_length(value)} Limit={limits.id_bytes_max}",
            )
    if run_id and not field_rules.is_uuid(run_id):
        raise BadCommand(cause, f"Invalid RunId set on {where}. {about}")


def _check_timeout(cause: int, value: Duration, complaint: str, about: str) -> None:
    problem = check_and_cap(value)
    if problem is not None:
        raise BadCommand(cause, f"{complaint}: {problem}. {about}")


def _check_attributes_count(
    attributes: SearchAttributes, limits: CommandLimits, where: str, about: str
) -> None:
    _guard(
        BAD_SEARCH_ATTRIBUTES,
        f"invalid SearchAttributes {where}",
        about,
        lambda: field_rules.check_search_attributes_count(attributes, limits),
    )


def _inherit_task_queue(
    attributes: ContinueAsNewWorkflowExecutionCommandAttributes
    | StartChildWorkflowExecutionCommandAttributes,
    task_queue: str,
) -> None:
    if not attributes.task_queue.name:
        attributes.task_queue.name = task_queue
    if attributes.task_queue.kind == 0:
        attributes.task_queue.kind = _NORMAL


def _check_new_run_sizes(
    attributes: ContinueAsNewWorkflowExecutionCommandAttributes
    | StartChildWorkflowExecutionCommandAttributes,
    limits: CommandLimits,
    cause: int,
    prefix: str,
) -> None:
    """Input, memo and search attributes that a new run begins with."""
    if attributes.HasField("input") and attributes.input.ByteSize() > limits.blob_bytes_max:
        raise BadCommand(cause, f"{prefix}Input exceeds size limit.", terminate=True)
    if attributes.HasField("memo") and attributes.memo.ByteSize() > limits.memo_bytes_max:
        raise BadCommand(cause, f"{prefix}Memo exceeds size limit.", terminate=True)
    if attributes.HasField("search_attributes"):
        try:
            field_rules.check_search_attributes_size(attributes.search_attributes, limits)
        except ServiceError as error:
            raise BadCommand(cause, error.message, terminate=True) from None


def _guard(cause: int, complaint: str, about: str, check: Callable[[], None]) -> None:
    """Run a rule for a field; what it objects to becomes a bad command."""
    try:
        check()
    except ServiceError as error:
        message = f"{complaint}: {error.message}. {about}" if complaint else error.message
        raise BadCommand(cause, message) from None
