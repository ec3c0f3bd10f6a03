"""What a run remembers between transactions: plain structs, each one row.

`RunState` is the run's core row; every pending thing (activity, timer, child, external request, update,
buffered event) has a row of its own, so that a transaction writes what it changed and no more.
Times and durations are integer nanoseconds; 0 means not set. Protobuf messages are kept as their bytes.
Structs are arrays on the wire: a new field goes to the end, with a default, and old rows still decode.
"""

from __future__ import annotations

import msgspec

FIRST_EVENT_ID = 1
SECOND = 1_000_000_000

# WorkflowTask.kind
WFT_NORMAL = 1
WFT_SPECULATIVE = 2


class WorkflowTask(msgspec.Struct, array_like=True, gc=False):
    """The one pending workflow task of a run. Transient: attempt > 1 (no events until it completes)."""

    scheduled_id: int
    attempt: int
    kind: int
    scheduled_time: int
    original_scheduled_time: int  # of the first task of a heartbeat chain
    timeout: int  # start-to-close
    queue: str
    sticky: bool
    stamp: int  # tells this scheduling from every other of the run
    started_id: int = 0
    started_time: int = 0
    request_id: str = ""
    identity: str = ""
    suggest_continue_as_new: bool = False
    suggest_reasons: tuple[int, ...] = ()
    history_size_bytes: int = 0
    schedule_to_start: int = 0
    task_key: bytes = b""  # row of the task while it waits for a poller
    first_of_run: bool = False


class RunState(msgspec.Struct, array_like=True, gc=False):
    """The core row of one run."""

    namespace_id: str
    workflow_id: str
    run_id: str
    workflow_type: str
    task_queue: str
    status: int
    version: int  # failover version of the namespace when last written
    branch: int  # history branch; a reset run starts a new run, so 0 unless regions conflict
    first_run_id: str
    original_run_id: str
    start_request_id: str
    start_time: int
    execution_time: int
    execution_timeout: int
    run_timeout: int
    task_timeout: int
    execution_expiration: int
    run_expiration: int
    attempt: int
    # What a successor inherits
    retry_policy: bytes = b""
    cron_schedule: str = ""
    continued_from_run_id: str = ""
    parent_namespace: str = ""
    parent_namespace_id: str = ""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    parent_initiated_id: int = 0
    root_workflow_id: str = ""
    root_run_id: str = ""
    memo: bytes = b""
    search_attributes: bytes = b""
    priority: bytes = b""
    user_metadata: bytes = b""
    completion_callbacks: tuple[bytes, ...] = ()
    versioning_override: bytes = b""
    # History
    next_event_id: int = FIRST_EVENT_ID
    history_size_bytes: int = 0
    last_started_id: int = 0  # started event of the last completed workflow task (0: none yet)
    last_completed_id: int = 0  # completed event of it
    completion_batch_id: int = 0  # first event of the batch that closed the run
    close_time: int = 0
    transitions: int = 0
    # Workflow task
    task: WorkflowTask | None = None
    task_attempt: int = 1
    task_stamp: int = 0
    task_last_failure: bytes = b""  # failure of the last failed attempt, for describe
    task_last_cause: int = 0
    first_backoff_until: int = 0  # the first workflow task is scheduled then
    sticky_queue: str = ""
    sticky_timeout: int = 0
    # Inputs
    cancel_requested: bool = False
    cancel_request_id: str = ""
    signal_count: int = 0
    buffered_count: int = 0
    request_ids: dict[str, tuple[int, int]] = {}  # attached request id -> (event type, event id)
    update_count: int = 0  # accepted or completed in the run's life
    # Shard bookkeeping
    wake: int = 0  # due time of the run's wake row; 0: it has none
    successor_run_id: str = ""
    reset_points: bytes = b""
    reset_run_id: str = ""  # the run that a reset of this one made
    last_reset_time: int = 0
    original_start_time: int = 0
    child_counter: int = 0
    build_id: str = ""
    deployment: bytes = b""
    deleted: bool = False
    links: tuple[bytes, ...] = ()
    external_payload_bytes: int = 0
    external_payload_count: int = 0
    paused: bytes = b""
    worker_deployment_name: str = ""
    versioning_behavior: int = 0
    delete_after_close: bool = False
    earlier_starts: tuple[tuple[str, str], ...] = ()  # see CurrentRun
    # Of each failover version it was changed at, the last change that other regions were told of
    # (replication/shipment.Lineage)
    told: tuple[tuple[int, int], ...] = ()
    # The last of these changes that it was open at, before or after: of the runs of a workflow id the one
    # with the highest is current (replication/branches.py)
    rank: tuple[int, int] = (0, 0)
    zombie: bool = False  # it lost its workflow id to another region's run (see there)


class ActivityState(msgspec.Struct, array_like=True, gc=False):
    """A pending activity."""

    scheduled_id: int
    batch_id: int  # first event of the batch that holds the scheduled event
    activity_id: str
    activity_type: str
    task_queue: str
    scheduled_time: int  # of this attempt
    first_scheduled_time: int
    schedule_to_close: int
    schedule_to_start: int
    start_to_close: int
    heartbeat_timeout: int
    retry_policy: bytes
    priority: bytes
    attempt: int = 1
    stamp: int = 0  # changes when the attempt is rescheduled: older task rows are void
    started_id: int = 0  # 0: not started; the event is written when the attempt is the last one
    started_time: int = 0
    request_id: str = ""
    identity: str = ""
    heartbeat_time: int = 0
    heartbeat_details: bytes = b""
    last_failure: bytes = b""
    last_identity: str = ""
    last_complete_time: int = 0
    cancel_requested: bool = False
    cancel_requested_id: int = 0
    backoff_until: int = 0  # the next attempt is scheduled then; 0: not in backoff
    retry_interval: int = 0
    expiration: int = 0  # first_scheduled_time + schedule_to_close; 0: none
    paused: bool = False
    pause_time: int = 0
    pause_identity: str = ""
    pause_reason: str = ""
    task_key: bytes = b""
    reset_heartbeats: bool = False
    activity_reset: bool = False
    build_id: str = ""
    pause_request_id: str = ""


class TimerState(msgspec.Struct, array_like=True, gc=False):
    """A pending user timer."""

    timer_id: str
    started_id: int
    fire_time: int


class ChildState(msgspec.Struct, array_like=True, gc=False):
    """A child workflow that was initiated and has not ended."""

    initiated_id: int
    batch_id: int
    namespace: str
    namespace_id: str
    workflow_id: str
    workflow_type: str
    parent_close_policy: int
    request_id: str
    started_id: int = 0
    run_id: str = ""


class ExternalState(msgspec.Struct, array_like=True, gc=False):
    """A signal (kind 1) or cancel request (kind 2) to another workflow, not yet acknowledged."""

    initiated_id: int
    batch_id: int
    kind: int
    request_id: str


class UpdateState(msgspec.Struct, array_like=True, gc=False):
    """An update that history knows: admitted (by a reset), accepted, or completed."""

    update_id: str
    stage: int  # UpdateWorkflowExecutionLifecycleStage: 1 admitted, 2 accepted, 3 completed
    event_id: int  # of the event that brought it there
    batch_id: int
    accepted_id: int = 0
    request_message_id: str = ""


EXTERNAL_SIGNAL = 1
EXTERNAL_CANCEL = 2


# A lost answer is asked for again within seconds: more runs of one id do not begin and end meanwhile.
EARLIER_STARTS_MAX = 8


class CurrentRun(msgspec.Struct, array_like=True, gc=False):
    """Which run a workflow id means, and what start needs to know of it without loading it."""

    run_id: str
    status: int
    start_request_id: str
    start_time: int
    close_time: int = 0
    first_run_id: str = ""
    # (start request id, run id) of the runs that were current before, newest first: a start whose answer was
    # lost is known again when its run is over and another has taken its place.
    earlier_starts: tuple[tuple[str, str], ...] = ()

    def started_by(self, request_id: str) -> str:
        """The run that this start request began; "" if it began none that is still known."""
        if self.start_request_id == request_id:
            return self.run_id
        return next((run_id for known, run_id in self.earlier_starts if known == request_id), "")

    def passed_on(self) -> tuple[tuple[str, str], ...]:
        """What the next run of the workflow id knows of earlier starts."""
        return passed_on(self.start_request_id, self.run_id, self.earlier_starts)


def passed_on(
    request_id: str, run_id: str, before: tuple[tuple[str, str], ...]
) -> tuple[tuple[str, str], ...]:
    """`earlier_starts` of the run that follows this one."""
    return ((request_id, run_id), *before)[:EARLIER_STARTS_MAX]


class TaskRow(msgspec.Struct, array_like=True, gc=False):
    """A workflow or activity task that waits for a poller."""

    namespace_id: str
    workflow_id: str
    run_id: str
    kind: int  # TaskQueueType
    ref: int  # scheduled event id
    stamp: int
    created: int
    normal_queue: str = ""  # of a sticky task: where it goes if the sticky worker is gone


class WakeRow(msgspec.Struct, array_like=True, gc=False):
    """When a run wants to be looked at next."""

    namespace_id: str
    workflow_id: str
    run_id: str


class Action(msgspec.Struct, array_like=True, gc=False):
    """What a run asks of another run, done after its commit, at least once, idempotent by request id."""

    kind: str  # start_child | signal | cancel | child_closed | close_child | delete
    namespace_id: str
    workflow_id: str
    run_id: str
    event_id: int  # initiated event (or batch for child_closed)
    batch_id: int
    target_namespace_id: str = ""
    target_workflow_id: str = ""
    target_run_id: str = ""
    policy: int = 0
    payload: bytes = b""
    request_id: str = ""


CLOSED_STATUSES = frozenset((2, 3, 4, 5, 6, 7))
RUNNING = 1
COMPLETED = 2
FAILED = 3
CANCELED = 4
TERMINATED = 5
CONTINUED_AS_NEW = 6
TIMED_OUT = 7
