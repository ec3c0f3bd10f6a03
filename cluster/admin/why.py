"""Why a run does not go on: a pure function from what the server answers to sentences.

`digest` folds the event history into what was begun and not ended; `queues_involved` says which task
queues have to be looked at; `findings` puts it all together. Everything comes from public RPCs
(describe, history, describe task queue), so the answer is what any client could find out. Not here:
the RPCs themselves (workflow_commands.py), and any reading of the code that runs in the worker.

Rule: a run is never reported as "running" and nothing else; if nothing is pending, that is the finding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.enums.v1 import (
    EventType,
    NexusOperationCancellationState,
    PendingActivityState,
    PendingNexusOperationState,
    PendingWorkflowTaskState,
    TaskQueueKind,
    TaskQueueType,
    TimeoutType,
    WorkflowExecutionStatus,
    WorkflowTaskFailedCause,
)
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingActivityInfo, PendingNexusOperationInfo
from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse, DescribeWorkflowExecutionResponse

from cluster.admin.output import NANOSECONDS, in_words, moment

# A worker polls again at the latest when its long poll ends (60 s); later than that it is taken for gone.
POLLER_SILENT_NS = 75 * NANOSECONDS
FAILURE_WORDS_MAX = 400  # characters of somebody's error message worth repeating
QUEUES_MAX = 20  # task queues described for one answer


class Kind(StrEnum):
    """What a finding is about; the order is the order of telling."""

    CLOSED = "closed"
    WORKFLOW_PAUSED = "workflow_paused"
    NO_POLLER = "no_poller"
    WORKFLOW_TASK_FAILING = "workflow_task_failing"
    WORKFLOW_TASK_QUEUED = "workflow_task_queued"
    WORKFLOW_TASK_STARTED = "workflow_task_started"
    START_DELAYED = "start_delayed"
    ACTIVITY_PAUSED = "activity_paused"
    ACTIVITY_BACKOFF = "activity_backoff"
    ACTIVITY_CANCELING = "activity_canceling"
    ACTIVITY_QUEUED = "activity_queued"
    ACTIVITY_STARTED = "activity_started"
    NEXUS_OPERATION = "nexus_operation"
    CHILD = "child"
    SIGNAL_PENDING = "signal_pending"
    CANCEL_PENDING = "cancel_pending"
    UPDATE = "update"
    TIMER = "timer"
    IDLE = "idle"
    CANCEL_REQUESTED = "cancel_requested"
    TIMEOUT = "timeout"


ORDER = {kind: place for place, kind in enumerate(Kind)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing the run waits for. Times are nanoseconds since the epoch; 0 = not known."""

    kind: Kind
    subject: str  # the activity, timer, queue … by its id
    text: str
    do: str = ""  # what a person can do about it; empty where waiting is right
    since: int = 0
    due: int = 0

    def as_json(self) -> dict[str, object]:
        """For --json; times in RFC 3339, None where not known."""
        return {
            "kind": str(self.kind),
            "subject": self.subject,
            "text": self.text,
            "do": self.do,
            "since": moment(self.since) if self.since else None,
            "due": moment(self.due) if self.due else None,
        }


class Queue(NamedTuple):
    """A task queue as pollers see it: a name and a type."""

    name: str
    type: TaskQueueType.ValueType

    def __str__(self) -> str:
        """In words."""
        word = "activity" if self.type == TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY else "workflow"
        return f"{word} task queue {self.name!r}"


@dataclass(slots=True)
class Digest:
    """What a history began and did not end, by the id of the beginning event."""

    pending: dict[int, HistoryEvent] = field(default_factory=dict)
    started: HistoryEvent | None = None
    workflow_task: HistoryEvent | None = None  # the last WorkflowTaskScheduled, None once it was completed
    workflow_task_problem: HistoryEvent | None = None  # failed or timed out, since the last completed one
    last: HistoryEvent | None = None

    def open(self, *types: EventType.ValueType) -> Iterator[HistoryEvent]:
        """The beginnings of these types that have no end yet."""
        return (event for event in self.pending.values() if event.event_type in types)


BEGIN = frozenset(
    {
        EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
    }
)

# An ending event -> the attribute that holds the id of its beginning.
END = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "scheduled_event_id",
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: "scheduled_event_id",
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "scheduled_event_id",
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "scheduled_event_id",
    EventType.EVENT_TYPE_TIMER_FIRED: "started_event_id",
    EventType.EVENT_TYPE_TIMER_CANCELED: "started_event_id",
    EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED: "initiated_event_id",
    EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: "initiated_event_id",
    EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED: "initiated_event_id",
    EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: "initiated_event_id",
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: "initiated_event_id",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: "initiated_event_id",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: "initiated_event_id",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: "initiated_event_id",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: "initiated_event_id",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: "initiated_event_id",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED: "accepted_event_id",
}


def digest(events: Iterable[HistoryEvent]) -> Digest:
    """Fold a history (all of it, in order) into what is still open."""
    found = Digest()
    for event in events:
        found.last = event
        kind = event.event_type
        if kind in BEGIN:
            found.pending[event.event_id] = event
        elif kind in END:
            attributes = getattr(event, event.WhichOneof("attributes") or "")
            found.pending.pop(getattr(attributes, END[kind]), None)
        elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            found.started = event
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
            found.workflow_task = event
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
            found.workflow_task = found.workflow_task_problem = None
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
            waited = event.workflow_task_timed_out_event_attributes.timeout_type
            if waited == TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE:  # a sticky queue's time-out is no problem
                found.workflow_task_problem = event
        elif kind == EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            cause = event.workflow_task_failed_event_attributes.cause
            if cause not in HARMLESS_CAUSES:
                found.workflow_task_problem = event
    return found


# Workflow task failures that are part of ordinary work.
HARMLESS_CAUSES = frozenset(
    {
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_RESET_STICKY_TASK_QUEUE,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND,
        WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND,
    }
)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was asked for one answer. `queues` lacks what could not be described."""

    described: DescribeWorkflowExecutionResponse
    digest: Digest
    queues: dict[Queue, DescribeTaskQueueResponse]
    now: int


def is_open(described: DescribeWorkflowExecutionResponse) -> bool:
    """Whether the run can still go on."""
    return described.workflow_execution_info.status in (
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING,
        WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED,
    )


def queues_involved(described: DescribeWorkflowExecutionResponse, found: Digest, now: int) -> list[Queue]:
    """The task queues on which something of this run waits for a worker, at most QUEUES_MAX."""
    queues: dict[Queue, None] = {}
    if (
        described.pending_workflow_task.state
        == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
    ):
        queues[_workflow_queue(described)] = None
    names = _activity_queue_names(found)
    for activity in described.pending_activities:
        if _waits_for_worker(activity, now):
            queues[_activity_queue(activity, names, described)] = None
    return list(queues)[:QUEUES_MAX]


def findings(evidence: Evidence) -> list[Finding]:
    """What the run waits for, the things that need a person first. Never empty."""
    if not is_open(evidence.described):
        return [_closed(evidence)]
    found = [
        *_paused(evidence),
        *_workflow_task(evidence),
        *_start_delayed(evidence),
        *_activities(evidence),
        *_nexus_operations(evidence),
        *_children(evidence),
        *_externals(evidence),
        *_updates(evidence),
        *_timers(evidence),
    ]
    if not found:
        found.append(_idle(evidence))
    found += _notes(evidence)
    return sorted(_one_a_queue(found), key=lambda finding: ORDER[finding.kind])


def _one_a_queue(found: list[Finding]) -> list[Finding]:
    """Tell of a queue without pollers once, though it may hold up a hundred activities."""
    count = Counter(finding.subject for finding in found if finding.kind is Kind.NO_POLLER)
    told: set[str] = set()
    result: list[Finding] = []
    for finding in found:
        if finding.kind is Kind.NO_POLLER:
            if finding.subject in told:
                continue
            told.add(finding.subject)
            if count[finding.subject] > 1:
                finding = replace(finding, text=f"{finding.text}, and {count[finding.subject] - 1} more")
        result.append(finding)
    return result


def failure_in_words(failure: Failure) -> str:
    """A failure and its causes in one line: "TypeName: message, because …"."""
    parts: list[str] = []
    while True:
        kind = failure.application_failure_info.type
        parts.append(f"{kind}: {failure.message}" if kind else failure.message or "no message")
        if not failure.HasField("cause"):
            break
        failure = failure.cause
    words = " ".join(", because ".join(parts).split())
    return words if len(words) <= FAILURE_WORDS_MAX else words[: FAILURE_WORDS_MAX - 1] + "…"


# ------------------------------------------------------------------------------- closed, paused, idle


def _closed(evidence: Evidence) -> Finding:
    info = evidence.described.workflow_execution_info
    event = evidence.digest.last
    workflow_id = info.execution.workflow_id
    at = info.close_time.ToNanoseconds()
    status = WorkflowExecutionStatus.Name(info.status).removeprefix("WORKFLOW_EXECUTION_STATUS_").lower()
    text, do = f"closed: {status.replace('_', ' ')} at {moment(at)}", ""
    which = event.WhichOneof("attributes") if event is not None else None
    if event is not None and which == "workflow_execution_failed_event_attributes":
        text += f" with {failure_in_words(event.workflow_execution_failed_event_attributes.failure)}"
        do = f"see all of it: `temporal workflow show --workflow-id {workflow_id}`"
    elif event is not None and which == "workflow_execution_terminated_event_attributes":
        ended = event.workflow_execution_terminated_event_attributes
        text += f" by {ended.identity or 'an unnamed client'}" + (f": {ended.reason}" if ended.reason else "")
    elif event is not None and which == "workflow_execution_continued_as_new_event_attributes":
        new_run = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
        text += f"; it goes on in run {new_run}"
        do = f"ask for that run: `holdfast workflow why {workflow_id} --run {new_run}`"
    return Finding(Kind.CLOSED, workflow_id, text, do, since=at)


def _paused(evidence: Evidence) -> Iterator[Finding]:
    info = evidence.described.workflow_execution_info
    if info.status != WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED:
        return
    pause = evidence.described.workflow_extended_info.pause_info
    since = pause.paused_time.ToNanoseconds()
    text = f"the workflow is paused{_since(since)}"
    text += f" by {pause.identity}" if pause.identity else ""
    text += f": {pause.reason}" if pause.reason else ""
    workflow_id = info.execution.workflow_id
    yield Finding(
        Kind.WORKFLOW_PAUSED,
        workflow_id,
        text,
        f"let it go on: `temporal workflow unpause --workflow-id {workflow_id}`",
        since,
    )


def _idle(evidence: Evidence) -> Finding:
    info = evidence.described.workflow_execution_info
    workflow_id = info.execution.workflow_id
    since = evidence.digest.last.event_time.ToNanoseconds() if evidence.digest.last is not None else 0
    return Finding(
        Kind.IDLE,
        workflow_id,
        f"nothing is scheduled{_since(since)}: its code waits for a signal or an update, "
        "or for something that only these can change",
        f"see the line it waits at: `temporal workflow stack --workflow-id {workflow_id}` (needs a worker)",
        since,
    )


def _notes(evidence: Evidence) -> Iterator[Finding]:
    extended = evidence.described.workflow_extended_info
    workflow_id = evidence.described.workflow_execution_info.execution.workflow_id
    if extended.cancel_requested:
        yield Finding(
            Kind.CANCEL_REQUESTED,
            workflow_id,
            "cancellation was requested; its code has not ended because of it yet",
        )
    due = min(
        filter(None, map(_ns, (extended.run_expiration_time, extended.execution_expiration_time))), default=0
    )
    if due:
        yield Finding(Kind.TIMEOUT, workflow_id, f"it will be timed out {_due(due, evidence.now)}", due=due)


# -------------------------------------------------------------------------------------- workflow task


def _workflow_queue(described: DescribeWorkflowExecutionResponse) -> Queue:
    name = described.execution_config.task_queue.name or described.workflow_execution_info.task_queue
    return Queue(name, TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)


def _workflow_task(evidence: Evidence) -> Iterator[Finding]:
    task = evidence.described.pending_workflow_task
    if task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_UNSPECIFIED:
        return
    yield from _workflow_task_problem(evidence)
    queue = _workflow_queue(evidence.described)
    scheduled = (_ns(task.original_scheduled_time) if task.attempt <= 1 else 0) or _ns(task.scheduled_time)
    # A task that the history does not know was made for an update (or is a retry, which is told above).
    speculative = evidence.digest.workflow_task is None and task.attempt <= 1
    what = "a workflow task made for an update" if speculative else "a workflow task"
    if task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED:
        started = _ns(task.started_time)
        timeout = evidence.described.execution_config.default_workflow_task_timeout.ToNanoseconds()
        due = started + timeout if started and timeout else 0
        text = f"a worker has {what} in hand{_since(started)}, attempt {task.attempt}"
        text += f"; if the worker is gone, it is offered again {_due(due, evidence.now)}" if due else ""
        yield Finding(Kind.WORKFLOW_TASK_STARTED, queue.name, text, since=started, due=due)
        return
    yield from _queued(evidence, queue, what, scheduled, Kind.WORKFLOW_TASK_QUEUED, _sticky_words(evidence))


def _sticky_words(evidence: Evidence) -> str:
    event = evidence.digest.workflow_task
    if event is None:
        return ""
    queue = event.workflow_task_scheduled_event_attributes.task_queue
    if queue.kind != TaskQueueKind.TASK_QUEUE_KIND_STICKY:
        return ""
    return " (offered first to the worker that had the run last)"


def _workflow_task_problem(evidence: Evidence) -> Iterator[Finding]:
    task = evidence.described.pending_workflow_task
    event = evidence.digest.workflow_task_problem
    if event is None:
        if task.attempt > 1:
            text = f"the workflow task is at attempt {task.attempt}; the earlier ones failed or were lost"
            yield Finding(Kind.WORKFLOW_TASK_FAILING, _workflow_queue(evidence.described).name, text)
        return
    since = _ns(event.event_time)
    workflow_id = evidence.described.workflow_execution_info.execution.workflow_id
    if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
        yield Finding(
            Kind.WORKFLOW_TASK_FAILING,
            workflow_id,
            f"the workflow task times out{_since(since)}: a worker took it and did not answer "
            f"(attempt {task.attempt})",
            "look at the worker: blocked event loop, endless loop in workflow code, or killed for memory?",
            since,
        )
        return
    failed = event.workflow_task_failed_event_attributes
    cause = WorkflowTaskFailedCause.Name(failed.cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_").lower()
    do = "fix the workflow code and restart its workers: the run goes on where it is"
    if failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR:
        do = (
            "the code no longer fits the history: run workers with the old code or a patched() branch, "
            f"or go back to before the change: `temporal workflow reset --workflow-id {workflow_id}`"
        )
    yield Finding(
        Kind.WORKFLOW_TASK_FAILING,
        workflow_id,
        f"the workflow task fails{_since(since)} with {cause.replace('_', ' ')}: "
        f"{failure_in_words(failed.failure)} (attempt {task.attempt}, worker {failed.identity or 'unnamed'})",
        do,
        since,
    )


def _start_delayed(evidence: Evidence) -> Iterator[Finding]:
    started = evidence.digest.started
    task = evidence.described.pending_workflow_task
    only_event = evidence.digest.last is started
    if started is None or not only_event or task.state:
        return
    attributes = started.workflow_execution_started_event_attributes
    backoff = attributes.first_workflow_task_backoff.ToNanoseconds()
    if not backoff:
        return
    due = _ns(started.event_time) + backoff
    reason = "its start delay"
    if attributes.cron_schedule:
        reason = f"its cron schedule {attributes.cron_schedule!r}"
    elif attributes.attempt > 1:
        reason = f"the workflow's retry policy (attempt {attributes.attempt})"
        if attributes.HasField("continued_failure"):
            reason += f" after {failure_in_words(attributes.continued_failure)}"
    workflow_id = evidence.described.workflow_execution_info.execution.workflow_id
    text = f"it begins {_due(due, evidence.now)}, because of {reason}"
    yield Finding(Kind.START_DELAYED, workflow_id, text, since=_ns(started.event_time), due=due)


def _queued(
    evidence: Evidence, queue: Queue, what: str, since: int, kind: Kind, extra: str = ""
) -> Iterator[Finding]:
    """Something waits on a queue: is anybody there to take it?"""
    described = evidence.queues.get(queue)
    waits = f"{what} waits on {queue}{_since(since)}{extra}"
    if described is None:
        yield Finding(kind, queue.name, f"{waits}; the queue itself could not be described", since=since)
        return
    alive = [p for p in described.pollers if evidence.now - _ns(p.last_access_time) < POLLER_SILENT_NS]
    if alive:
        backlog = described.stats.approximate_backlog_count or described.task_queue_status.backlog_count_hint
        text = f"{waits}; {len(alive)} poller{'s' if len(alive) > 1 else ''}, backlog {backlog}"
        yield Finding(kind, queue.name, text, since=since)
        return
    last = max(described.pollers, key=lambda poller: _ns(poller.last_access_time), default=None)
    text = f"no worker polls {queue}"
    if last is not None:
        text += f"{_since(_ns(last.last_access_time))} (the last was {last.identity})"
    do = (
        f"start a worker that polls task queue {queue.name!r}, or look for a typing error in the queue's name"
    )
    yield Finding(Kind.NO_POLLER, str(queue), f"{text}; {waits}", do, since)


# ----------------------------------------------------------------------------------------- activities


def _activity_queue_names(found: Digest) -> dict[str, str]:
    scheduled = found.open(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    attributes = (event.activity_task_scheduled_event_attributes for event in scheduled)
    return {one.activity_id: one.task_queue.name for one in attributes}


def _activity_queue(
    activity: PendingActivityInfo, names: dict[str, str], described: DescribeWorkflowExecutionResponse
) -> Queue:
    name = activity.activity_options.task_queue.name or names.get(activity.activity_id, "")
    return Queue(name or _workflow_queue(described).name, TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)


def _next_attempt(activity: PendingActivityInfo) -> int:
    return _ns(activity.next_attempt_schedule_time) or _ns(activity.scheduled_time)


def _waits_for_worker(activity: PendingActivityInfo, now: int) -> bool:
    scheduled = activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    return scheduled and not activity.paused and _next_attempt(activity) <= now


def _attempt_in_words(activity: PendingActivityInfo) -> str:
    of = f" of {activity.maximum_attempts}" if activity.maximum_attempts else ""
    return f"attempt {activity.attempt or 1}{of}"


def _activities(evidence: Evidence) -> Iterator[Finding]:
    names = _activity_queue_names(evidence.digest)
    for activity in evidence.described.pending_activities:
        what = f"activity {activity.activity_type.name} (id {activity.activity_id})"
        paused_states = (
            PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED,
            PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED,
        )
        if activity.paused or activity.state in paused_states:
            yield _activity_paused(evidence, activity, what)
        elif _waits_for_worker(activity, evidence.now):
            queue = _activity_queue(activity, names, evidence.described)
            extra = f", {_attempt_in_words(activity)}" if activity.attempt > 1 else ""
            since = _next_attempt(activity)
            yield from _queued(
                evidence, queue, what, since, Kind.ACTIVITY_QUEUED, extra + _last_failure(activity)
            )
        elif activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED:
            yield _activity_backoff(evidence, activity, what)
        else:
            yield _activity_started(evidence, activity, what)


def _last_failure(activity: PendingActivityInfo) -> str:
    if not activity.HasField("last_failure"):
        return ""
    return f"; the attempt before failed with {failure_in_words(activity.last_failure)}"


def _activity_paused(evidence: Evidence, activity: PendingActivityInfo, what: str) -> Finding:
    pause = activity.pause_info
    since = _ns(pause.pause_time)
    text = f"{what} is paused{_since(since)}"
    if pause.manual.identity:
        text += f" by {pause.manual.identity}"
    reason = pause.manual.reason or pause.rule.reason
    text += f": {reason}" if reason else ""
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED:
        text += f"; {_attempt_in_words(activity)} still runs"
    workflow_id = evidence.described.workflow_execution_info.execution.workflow_id
    do = (
        "let it go on: "
        f"`temporal activity unpause --workflow-id {workflow_id} --activity-id {activity.activity_id}`"
    )
    return Finding(Kind.ACTIVITY_PAUSED, activity.activity_id, text + _last_failure(activity), do, since)


def _activity_backoff(evidence: Evidence, activity: PendingActivityInfo, what: str) -> Finding:
    due = _next_attempt(activity)
    if activity.attempt > 1:
        text = f"{what} is in backoff: {_attempt_in_words(activity)} {_due(due, evidence.now)}"
        if activity.HasField("last_failure"):
            failure = failure_in_words(activity.last_failure)
            text += f", because attempt {activity.attempt - 1} failed with {failure}"
    else:
        text = f"{what} is scheduled for {_due(due, evidence.now)}"
    do = ""
    if activity.attempt > 1 and due - evidence.now > 10 * NANOSECONDS:
        workflow_id = evidence.described.workflow_execution_info.execution.workflow_id
        do = (
            "if the cause is mended, try at once: "
            f"`temporal activity reset --workflow-id {workflow_id} --activity-id {activity.activity_id}`"
        )
    since = _ns(activity.last_attempt_complete_time)
    return Finding(Kind.ACTIVITY_BACKOFF, activity.activity_id, text, do, since, due)


def _activity_started(evidence: Evidence, activity: PendingActivityInfo, what: str) -> Finding:
    since = _ns(activity.last_started_time)
    worker = activity.last_worker_identity or "a worker"
    kind = Kind.ACTIVITY_STARTED
    text = f"{what} runs on {worker}{_since(since)}, {_attempt_in_words(activity)}"
    if activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED:
        kind = Kind.ACTIVITY_CANCELING
        text = f"{what} was asked to cancel; {worker} learns of it at its next heartbeat"
    heartbeat = _ns(activity.last_heartbeat_time)
    if heartbeat >= since and heartbeat:
        text += f"; last heartbeat {in_words(max(0, evidence.now - heartbeat))} ago"
    due = _ns(activity.expiration_time)
    return Finding(kind, activity.activity_id, text + _last_failure(activity), "", since, due)


# ------------------------------------------------------------------- other runs, messages, timers


def _nexus_operations(evidence: Evidence) -> Iterator[Finding]:
    for operation in evidence.described.pending_nexus_operations:
        due = _ns(operation.next_attempt_schedule_time)
        yield Finding(
            Kind.NEXUS_OPERATION,
            str(operation.scheduled_event_id),
            _nexus_operation_in_words(operation, evidence.now),
            since=_ns(operation.scheduled_time),
            due=due,
        )


def _nexus_operation_in_words(operation: PendingNexusOperationInfo, now: int) -> str:
    name = f"{operation.service}.{operation.operation} on endpoint {operation.endpoint!r}"
    text = f"Nexus operation {name}{_since(_ns(operation.scheduled_time))}"
    state = operation.state
    if state == PendingNexusOperationState.PENDING_NEXUS_OPERATION_STATE_STARTED:
        text += " was started there and has not completed"
    elif state == PendingNexusOperationState.PENDING_NEXUS_OPERATION_STATE_BACKING_OFF:
        due = _ns(operation.next_attempt_schedule_time)
        text += f" is in backoff: attempt {operation.attempt + 1} {_due(due, now)}"
        if operation.HasField("last_attempt_failure"):
            text += f", because the last failed with {failure_in_words(operation.last_attempt_failure)}"
    elif state == PendingNexusOperationState.PENDING_NEXUS_OPERATION_STATE_BLOCKED:
        text += f" is blocked: {operation.blocked_reason}"
    else:
        text += " has not been started there yet"
    canceling = operation.cancellation_info.state
    if canceling != NexusOperationCancellationState.NEXUS_OPERATION_CANCELLATION_STATE_UNSPECIFIED:
        text += "; its cancellation was requested"
    return text


def _children(evidence: Evidence) -> Iterator[Finding]:
    initiated = {
        event.event_id: _ns(event.event_time)
        for event in evidence.digest.open(EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED)
    }
    for child in evidence.described.pending_children:
        since = initiated.get(child.initiated_id, 0)
        state = f"runs as {child.run_id}" if child.run_id else "is not started yet"
        yield Finding(
            Kind.CHILD,
            child.workflow_id,
            f"child workflow {child.workflow_id} ({child.workflow_type_name}) {state}{_since(since)}",
            f"ask what the child waits for: `holdfast workflow why {child.workflow_id}`"
            if child.run_id
            else "",
            since,
        )


def _externals(evidence: Evidence) -> Iterator[Finding]:
    for event in evidence.digest.open(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED):
        signal = event.signal_external_workflow_execution_initiated_event_attributes
        to = signal.workflow_execution.workflow_id
        since = _ns(event.event_time)
        text = f"signal {signal.signal_name!r} to workflow {to} is not delivered yet{_since(since)}"
        yield Finding(Kind.SIGNAL_PENDING, to, text, since=since)
    for event in evidence.digest.open(
        EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED
    ):
        cancel = event.request_cancel_external_workflow_execution_initiated_event_attributes
        to = cancel.workflow_execution.workflow_id
        since = _ns(event.event_time)
        text = f"the cancel request to workflow {to} is not delivered yet{_since(since)}"
        yield Finding(Kind.CANCEL_PENDING, to, text, since=since)


def _updates(evidence: Evidence) -> Iterator[Finding]:
    for event in evidence.digest.open(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED):
        accepted = event.workflow_execution_update_accepted_event_attributes
        request = accepted.accepted_request
        update_id = request.meta.update_id or accepted.protocol_instance_id
        since = _ns(event.event_time)
        name = f"{request.input.name!r} " if request.input.name else ""
        text = f"update {name}(id {update_id}) was accepted and its handler has not returned{_since(since)}"
        yield Finding(Kind.UPDATE, update_id, text, since=since)


def _timers(evidence: Evidence) -> Iterator[Finding]:
    for event in evidence.digest.open(EventType.EVENT_TYPE_TIMER_STARTED):
        timer = event.timer_started_event_attributes
        since = _ns(event.event_time)
        due = since + timer.start_to_fire_timeout.ToNanoseconds()
        text = f"timer {timer.timer_id} fires {_due(due, evidence.now)}"
        if event.user_metadata.HasField("summary"):
            text += f" ({event.user_metadata.summary.data.decode(errors='replace')[:80]})"
        yield Finding(Kind.TIMER, timer.timer_id, text, since=since, due=due)


# ----------------------------------------------------------------------------------------------- times


def _ns(timestamp: Timestamp) -> int:
    return timestamp.ToNanoseconds()


def _since(nanoseconds: int) -> str:
    return f" since {moment(nanoseconds)}" if nanoseconds else ""


def _due(due: int, now: int) -> str:
    """When: "at … (in 3 s)", or that it is late."""
    if due >= now:
        return f"at {moment(due)} (in {in_words(due - now)})"
    return f"at {moment(due)} (late by {in_words(now - due)})"
