"""What `holdfast workflow why` concludes: server's answers in, sentences out.

Time zero is 2026-01-01T00:00:00Z; every case says what is pending and reads the sentence.
"""

from __future__ import annotations

from typing import Any

from temporalio.api.enums.v1 import (
    EventType,
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
from temporalio.api.taskqueue.v1 import PollerInfo
from temporalio.api.workflow.v1 import PendingActivityInfo
from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse, DescribeWorkflowExecutionResponse

from cluster.admin.output import NANOSECONDS, in_words
from cluster.admin.why import (
    Evidence,
    Finding,
    Kind,
    Queue,
    digest,
    failure_in_words,
    findings,
    queues_involved,
)

ZERO = 1_767_225_600 * NANOSECONDS  # 2026-01-01T00:00:00Z
WORKFLOWS = Queue("orders", TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
ACTIVITIES = Queue("orders", TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)


def at(seconds: float) -> int:
    return ZERO + int(seconds * NANOSECONDS)


class Story:
    """A run as a test tells it: events and pending things, then the question."""

    def __init__(self) -> None:
        self.events: list[HistoryEvent] = []
        self.queues: dict[Queue, DescribeTaskQueueResponse] = {}
        self.described = DescribeWorkflowExecutionResponse()
        info = self.described.workflow_execution_info
        info.execution.workflow_id = "order-17"
        info.execution.run_id = "run-1"
        info.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
        self.described.execution_config.task_queue.name = "orders"
        self.described.execution_config.default_workflow_task_timeout.FromSeconds(10)

    def event(self, name: str, seconds: float = 0, **attributes: Any) -> HistoryEvent:
        event = HistoryEvent(event_id=len(self.events) + 1, event_type=EventType.Value(f"EVENT_TYPE_{name}"))
        event.event_time.FromNanoseconds(at(seconds))
        part = getattr(event, f"{name.lower()}_event_attributes")
        part.SetInParent()
        for key, value in attributes.items():
            set_field(part, key, value)
        self.events.append(event)
        return event

    def workflow_task(self, state: str, attempt: int = 1, scheduled: float = 0, started: float = 0) -> None:
        task = self.described.pending_workflow_task
        task.state = PendingWorkflowTaskState.Value(f"PENDING_WORKFLOW_TASK_STATE_{state}")
        task.attempt = attempt
        task.scheduled_time.FromNanoseconds(at(scheduled))
        task.original_scheduled_time.FromNanoseconds(at(scheduled))
        if started:
            task.started_time.FromNanoseconds(at(started))

    def activity(self, state: str, **fields: Any) -> PendingActivityInfo:
        activity = self.described.pending_activities.add(activity_id="5", attempt=1)
        activity.activity_type.name = "charge"
        activity.state = PendingActivityState.Value(f"PENDING_ACTIVITY_STATE_{state}")
        for key, value in fields.items():
            set_field(activity, key, value)
        return activity

    def poller(self, queue: Queue, seconds: float, identity: str = "worker-1") -> None:
        described = self.queues.setdefault(queue, DescribeTaskQueueResponse())
        poller = PollerInfo(identity=identity)
        poller.last_access_time.FromNanoseconds(at(seconds))
        described.pollers.append(poller)

    def why(self, seconds: float) -> list[Finding]:
        found = digest(self.events)
        for queue in queues_involved(self.described, found, at(seconds)):
            self.queues.setdefault(queue, DescribeTaskQueueResponse())
        return findings(Evidence(self.described, found, self.queues, at(seconds)))

    def only(self, seconds: float) -> Finding:
        (finding,) = self.why(seconds)
        return finding


def set_field(message: Any, key: str, value: Any) -> None:
    """Set a field; a number for a time is seconds from zero, and for a duration seconds."""
    part: Any = getattr(message, key)
    if hasattr(part, "FromDatetime"):
        part.FromNanoseconds(at(value))
    elif hasattr(part, "FromTimedelta"):
        part.FromNanoseconds(int(value * NANOSECONDS))
    elif hasattr(part, "CopyFrom"):
        part.CopyFrom(value)
    else:
        setattr(message, key, value)


def application_failure(kind: str, message: str, cause: Failure | None = None) -> Failure:
    failure = Failure(message=message)
    failure.application_failure_info.type = kind
    if cause is not None:
        failure.cause.CopyFrom(cause)
    return failure


# ---------------------------------------------------------------------------------------- workflow tasks


def test_nobody_polls_the_queue() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.workflow_task("SCHEDULED", scheduled=1)
    found = story.only(60)
    assert found.kind is Kind.NO_POLLER
    assert found.text == (
        "no worker polls workflow task queue 'orders'; "
        "a workflow task waits on workflow task queue 'orders' since 2026-01-01T00:00:01.000Z"
    )
    assert "start a worker that polls task queue 'orders'" in found.do
    assert found.since == at(1)


def test_the_worker_has_gone_silent() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 100)
    story.workflow_task("SCHEDULED", scheduled=100)
    story.poller(WORKFLOWS, 30, "older")
    story.poller(WORKFLOWS, 40, "7@host")
    found = story.only(200)
    assert found.kind is Kind.NO_POLLER
    assert "since 2026-01-01T00:00:40.000Z (the last was 7@host)" in found.text


def test_workers_are_there_but_busy() -> None:
    story = Story()
    scheduled = story.event("WORKFLOW_TASK_SCHEDULED", 1)
    scheduled.workflow_task_scheduled_event_attributes.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_STICKY
    story.workflow_task("SCHEDULED", scheduled=1)
    story.poller(WORKFLOWS, 1)
    story.queues[WORKFLOWS].stats.approximate_backlog_count = 12
    found = story.only(3)
    assert found.kind is Kind.WORKFLOW_TASK_QUEUED
    assert found.text.endswith("(offered first to the worker that had the run last); 1 poller, backlog 12")


def test_a_worker_has_the_task() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.event("WORKFLOW_TASK_STARTED", 2)
    story.workflow_task("STARTED", scheduled=1, started=2)
    found = story.only(4)
    assert found.kind is Kind.WORKFLOW_TASK_STARTED
    assert found.text == (
        "a worker has a workflow task in hand since 2026-01-01T00:00:02.000Z, attempt 1; "
        "if the worker is gone, it is offered again at 2026-01-01T00:00:12.000Z (in 8 s)"
    )


def test_the_workflow_code_raises() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.event(
        "WORKFLOW_TASK_FAILED",
        2,
        cause=WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
        failure=application_failure("KeyError", "'total'"),
        identity="7@host",
    )
    story.workflow_task("SCHEDULED", attempt=4, scheduled=9)
    story.poller(WORKFLOWS, 9)
    failing, queued = story.why(10)
    assert failing.kind is Kind.WORKFLOW_TASK_FAILING
    assert failing.text == (
        "the workflow task fails since 2026-01-01T00:00:02.000Z with workflow worker unhandled failure: "
        "KeyError: 'total' (attempt 4, worker 7@host)"
    )
    assert "restart its workers" in failing.do
    assert queued.kind is Kind.WORKFLOW_TASK_QUEUED


def test_the_code_does_not_fit_the_history() -> None:
    story = Story()
    cause = WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
    story.event("WORKFLOW_TASK_FAILED", 2, cause=cause, failure=Failure(message="no such command"))
    story.workflow_task("STARTED", attempt=2, started=3)
    failing, _ = story.why(4)
    assert "temporal workflow reset --workflow-id order-17" in failing.do


def test_a_completed_workflow_task_ends_the_trouble() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_FAILED", 2, failure=Failure(message="x"))
    story.event("WORKFLOW_TASK_SCHEDULED", 3)
    story.event("WORKFLOW_TASK_COMPLETED", 4)
    assert story.only(5).kind is Kind.IDLE


def test_the_worker_takes_the_task_and_never_answers() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.event("WORKFLOW_TASK_TIMED_OUT", 12, timeout_type=TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE)
    story.workflow_task("STARTED", attempt=2, started=13)
    failing, _ = story.why(14)
    assert "a worker took it and did not answer" in failing.text


def test_a_sticky_queue_that_times_out_is_no_trouble() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.event("WORKFLOW_TASK_TIMED_OUT", 6, timeout_type=TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START)
    story.event("WORKFLOW_TASK_SCHEDULED", 6)
    story.workflow_task("STARTED", started=6)
    assert story.only(7).kind is Kind.WORKFLOW_TASK_STARTED


def test_an_update_waits_for_a_worker() -> None:
    """The task made for an update is not in the history until the update is accepted."""
    story = Story()
    story.event("WORKFLOW_TASK_SCHEDULED", 1)
    story.event("WORKFLOW_TASK_COMPLETED", 2)
    story.workflow_task("SCHEDULED", scheduled=5)
    assert "a workflow task made for an update waits" in story.only(6).text


# -------------------------------------------------------------------------------------------- activities


def test_an_activity_in_backoff_says_until_when_and_because_of_what() -> None:
    story = Story()
    failure = application_failure("CardError", "declined", Failure(message="gateway said no"))
    story.activity(
        "SCHEDULED", attempt=3, maximum_attempts=5, next_attempt_schedule_time=90, last_failure=failure
    )
    found = story.only(30)
    assert found.kind is Kind.ACTIVITY_BACKOFF
    assert found.text == (
        "activity charge (id 5) is in backoff: attempt 3 of 5 at 2026-01-01T00:01:30.000Z (in 1 min), "
        "because attempt 2 failed with CardError: declined, because gateway said no"
    )
    assert found.due == at(90)
    assert "temporal activity reset --workflow-id order-17 --activity-id 5" in found.do


def test_an_activity_waits_on_the_queue_it_was_scheduled_on() -> None:
    story = Story()
    story.event(
        "ACTIVITY_TASK_SCHEDULED", 1, activity_id="5"
    ).activity_task_scheduled_event_attributes.task_queue.name = "gpu"
    story.activity("SCHEDULED", scheduled_time=1)
    found = story.only(20)
    assert found.kind is Kind.NO_POLLER
    assert found.text.startswith("no worker polls activity task queue 'gpu'; activity charge (id 5) waits")


def test_a_queue_without_pollers_is_told_once() -> None:
    story = Story()
    for _ in range(100):
        story.activity("SCHEDULED", scheduled_time=1)
    assert story.only(20).text.endswith(", and 99 more")


def test_an_activity_runs() -> None:
    story = Story()
    story.activity(
        "STARTED", last_started_time=10, last_worker_identity="7@host", last_heartbeat_time=14, attempt=2
    )
    found = story.only(16)
    assert found.text == (
        "activity charge (id 5) runs on 7@host since 2026-01-01T00:00:10.000Z, attempt 2; "
        "last heartbeat 2 s ago"
    )


def test_an_activity_is_asked_to_cancel() -> None:
    story = Story()
    story.activity("CANCEL_REQUESTED", last_started_time=10, last_worker_identity="7@host")
    found = story.only(16)
    assert found.kind is Kind.ACTIVITY_CANCELING
    assert "learns of it at its next heartbeat" in found.text


def test_an_activity_is_paused() -> None:
    story = Story()
    activity = story.activity("PAUSED", paused=True)
    activity.pause_info.pause_time.FromNanoseconds(at(5))
    activity.pause_info.manual.identity = "ann"
    activity.pause_info.manual.reason = "bank is down"
    found = story.only(16)
    assert found.kind is Kind.ACTIVITY_PAUSED
    assert (
        found.text == "activity charge (id 5) is paused since 2026-01-01T00:00:05.000Z by ann: bank is down"
    )
    assert "temporal activity unpause" in found.do


# ------------------------------------------------------------------------------ timers, children, messages


def test_a_timer_says_when_it_fires() -> None:
    story = Story()
    story.event("TIMER_STARTED", 0, timer_id="1", start_to_fire_timeout=7200)
    story.event("TIMER_STARTED", 0, timer_id="2", start_to_fire_timeout=60)
    story.event("TIMER_CANCELED", 1, started_event_id=1)
    found = story.only(10)
    assert found.kind is Kind.TIMER
    assert found.text == "timer 2 fires at 2026-01-01T00:01:00.000Z (in 50 s)"


def test_a_child_runs() -> None:
    story = Story()
    story.event("START_CHILD_WORKFLOW_EXECUTION_INITIATED", 3)
    story.described.pending_children.add(
        workflow_id="c-1", run_id="run-9", workflow_type_name="Ship", initiated_id=1
    )
    found = story.only(10)
    assert found.text == "child workflow c-1 (Ship) runs as run-9 since 2026-01-01T00:00:03.000Z"
    assert found.do.endswith("`holdfast workflow why c-1`")


def test_messages_to_other_runs_are_on_their_way() -> None:
    story = Story()
    signal = story.event("SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED", 3, signal_name="paid")
    attributes = signal.signal_external_workflow_execution_initiated_event_attributes
    attributes.workflow_execution.workflow_id = "b-1"
    story.event("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED", 3)
    story.event("REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED", 4)
    story.event("EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED", 5, initiated_event_id=2)
    first, second = story.why(10)
    assert first.text == "signal 'paid' to workflow b-1 is not delivered yet since 2026-01-01T00:00:03.000Z"
    assert second.kind is Kind.CANCEL_PENDING
    assert second.since == at(4)


def test_an_update_runs() -> None:
    story = Story()
    accepted = story.event("WORKFLOW_EXECUTION_UPDATE_ACCEPTED", 3)
    request = accepted.workflow_execution_update_accepted_event_attributes.accepted_request
    request.meta.update_id = "u-1"
    request.input.name = "add_item"
    assert "update 'add_item' (id u-1) was accepted" in story.only(5).text
    story.event("WORKFLOW_EXECUTION_UPDATE_COMPLETED", 6, accepted_event_id=1)
    assert story.only(7).kind is Kind.IDLE


def test_a_nexus_operation_is_in_backoff() -> None:
    story = Story()
    operation = story.described.pending_nexus_operations.add(
        endpoint="pay", service="Payments", operation="charge", scheduled_event_id=5, attempt=2
    )
    operation.state = PendingNexusOperationState.PENDING_NEXUS_OPERATION_STATE_BACKING_OFF
    operation.next_attempt_schedule_time.FromNanoseconds(at(20))
    operation.last_attempt_failure.message = "503"
    found = story.only(10)
    assert "Payments.charge on endpoint 'pay'" in found.text
    assert found.text.endswith(
        "is in backoff: attempt 3 at 2026-01-01T00:00:20.000Z (in 10 s), because the last failed with 503"
    )


# ------------------------------------------------------------------------- the run as a whole, and its end


def test_nothing_is_pending() -> None:
    story = Story()
    story.event("WORKFLOW_TASK_COMPLETED", 4)
    found = story.only(5)
    assert found.kind is Kind.IDLE
    assert "waits for a signal or an update" in found.text
    assert "temporal workflow stack" in found.do


def test_the_start_is_delayed_by_cron() -> None:
    story = Story()
    story.event(
        "WORKFLOW_EXECUTION_STARTED", 0, first_workflow_task_backoff=60, cron_schedule="* * * * *", attempt=1
    )
    found = story.only(10)
    assert found.kind is Kind.START_DELAYED
    assert (
        found.text
        == "it begins at 2026-01-01T00:01:00.000Z (in 50 s), because of its cron schedule '* * * * *'"
    )


def test_a_retry_of_the_workflow_waits() -> None:
    story = Story()
    story.event(
        "WORKFLOW_EXECUTION_STARTED",
        0,
        first_workflow_task_backoff=60,
        attempt=3,
        continued_failure=Failure(message="no stock"),
    )
    assert story.only(10).text.endswith("because of the workflow's retry policy (attempt 3) after no stock")


def test_a_paused_workflow_comes_first() -> None:
    story = Story()
    story.described.workflow_execution_info.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED
    pause = story.described.workflow_extended_info.pause_info
    pause.identity, pause.reason = "ann", "incident 4"
    pause.paused_time.FromNanoseconds(at(7))
    story.event("TIMER_STARTED", 0, timer_id="1", start_to_fire_timeout=60)
    first, second = story.why(10)
    assert first.text == "the workflow is paused since 2026-01-01T00:00:07.000Z by ann: incident 4"
    assert second.kind is Kind.TIMER


def test_a_requested_cancellation_and_a_timeout_are_noted_last() -> None:
    story = Story()
    story.described.workflow_extended_info.cancel_requested = True
    story.described.workflow_extended_info.run_expiration_time.FromNanoseconds(at(100))
    story.described.workflow_extended_info.execution_expiration_time.FromNanoseconds(at(200))
    kinds = [finding.kind for finding in story.why(10)]
    assert kinds == [Kind.IDLE, Kind.CANCEL_REQUESTED, Kind.TIMEOUT]
    assert story.why(10)[2].due == at(100)


def closed(status: str, name: str, **attributes: Any) -> Finding:
    story = Story()
    info = story.described.workflow_execution_info
    info.status = WorkflowExecutionStatus.Value(f"WORKFLOW_EXECUTION_STATUS_{status}")
    info.close_time.FromNanoseconds(at(9))
    story.event(name, 9, **attributes)
    return story.only(100)


def test_how_a_closed_run_ended() -> None:
    completed = closed("COMPLETED", "WORKFLOW_EXECUTION_COMPLETED")
    assert completed.text == "closed: completed at 2026-01-01T00:00:09.000Z"
    failed = closed("FAILED", "WORKFLOW_EXECUTION_FAILED", failure=application_failure("Bad", "it broke"))
    assert failed.text.endswith("with Bad: it broke")
    ended = closed("TERMINATED", "WORKFLOW_EXECUTION_TERMINATED", identity="ann", reason="test")
    assert ended.text.endswith("by ann: test")
    went_on = closed("CONTINUED_AS_NEW", "WORKFLOW_EXECUTION_CONTINUED_AS_NEW", new_execution_run_id="run-2")
    assert went_on.text.startswith("closed: continued as new at")
    assert went_on.do == "ask for that run: `holdfast workflow why order-17 --run run-2`"
    assert closed("TIMED_OUT", "WORKFLOW_EXECUTION_TIMED_OUT").text.startswith("closed: timed out at")


def test_a_long_failure_is_cut() -> None:
    words = failure_in_words(Failure(message="x" * 10_000))
    assert len(words) == 400
    assert words.endswith("…")


def test_durations_in_words() -> None:
    said = [
        in_words(int(seconds * NANOSECONDS)) for seconds in (0.25, 3, 59, 60, 185, 3600, 7800, 86400, 97200)
    ]
    assert said == ["0.25 s", "3 s", "59 s", "1 min", "3 min 5 s", "1 h", "2 h 10 min", "1 d", "1 d 3 h"]
