"""Requests that are refused, with Temporal's code and words, and the like ones that pass.

Each case is a method, a good request, a change that spoils it, and the complaint. The good request is checked
as it is, too, so that no case fails for another reason than its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api import operatorservice, workflowservice
from temporalio.api.common.v1 import (
    Callback,
    Link,
    Payload,
    Payloads,
    RetryPolicy,
    SearchAttributes,
    WorkflowExecution,
    WorkflowType,
)
from temporalio.api.enums.v1 import (
    EventType,
    IndexedValueType,
    TaskQueueKind,
    UpdateWorkflowExecutionLifecycleStage,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.api.taskqueue.v1 import TaskQueue

from cluster.frontend.validate import CHECKS, Limits
from history_store.engine.durations import DURATION_SECONDS_MAX
from history_store.engine.errors import Code, ServiceError

RUN_ID = "0190e1f4-9c5e-7d5a-8b1a-1234567890ab"
LIMITS = Limits(blob_bytes_max=100, memo_bytes_max=50, search_attributes_max=2, search_attribute_bytes_max=10)
LONG = "x" * 1001
BIG = Payloads(payloads=[Payload(data=b"x" * 101)])
EXECUTION = WorkflowExecution(workflow_id="w", run_id=RUN_ID)
QUEUE = TaskQueue(name="q")
NEGATIVE = Duration(seconds=-1)

W: Any = workflowservice.v1
OP: Any = operatorservice.v1


def start_request(**more: Any) -> Any:
    return W.StartWorkflowExecutionRequest(
        namespace="ns", workflow_id="w", workflow_type=WorkflowType(name="T"), task_queue=QUEUE, **more
    )


def update_request() -> Any:
    request = W.UpdateWorkflowExecutionRequest(namespace="ns", workflow_execution={"workflow_id": "w"})
    request.request.meta.update_id = "u"
    request.request.input.name = "n"
    return request


def multi_request() -> Any:
    request = W.ExecuteMultiOperationRequest(namespace="ns")
    request.operations.add().start_workflow.CopyFrom(start_request())
    request.operations.add().update_workflow.CopyFrom(update_request())
    return request


def endpoint_request() -> Any:
    request = OP.CreateNexusEndpointRequest()
    request.spec.name = "my-endpoint"
    request.spec.target.worker.namespace = "ns"
    request.spec.target.worker.task_queue = "q"
    return request


GOOD: dict[str, Callable[[], Any]] = {
    "StartWorkflowExecution": start_request,
    "SignalWithStartWorkflowExecution": lambda: W.SignalWithStartWorkflowExecutionRequest(
        workflow_id="w", workflow_type=WorkflowType(name="T"), task_queue=QUEUE, signal_name="s"
    ),
    "ExecuteMultiOperation": multi_request,
    "SignalWorkflowExecution": lambda: W.SignalWorkflowExecutionRequest(
        workflow_execution=EXECUTION, signal_name="s"
    ),
    "QueryWorkflow": lambda: W.QueryWorkflowRequest(execution=EXECUTION, query={"query_type": "t"}),
    "UpdateWorkflowExecution": update_request,
    "PollWorkflowExecutionUpdate": lambda: W.PollWorkflowExecutionUpdateRequest(
        update_ref={"workflow_execution": EXECUTION, "update_id": "u"}
    ),
    "RequestCancelWorkflowExecution": lambda: W.RequestCancelWorkflowExecutionRequest(
        workflow_execution=EXECUTION
    ),
    "TerminateWorkflowExecution": lambda: W.TerminateWorkflowExecutionRequest(workflow_execution=EXECUTION),
    "DeleteWorkflowExecution": lambda: W.DeleteWorkflowExecutionRequest(workflow_execution=EXECUTION),
    "ResetWorkflowExecution": lambda: W.ResetWorkflowExecutionRequest(
        workflow_execution=EXECUTION, request_id="r", workflow_task_finish_event_id=4
    ),
    "DescribeWorkflowExecution": lambda: W.DescribeWorkflowExecutionRequest(execution=EXECUTION),
    "GetWorkflowExecutionHistory": lambda: W.GetWorkflowExecutionHistoryRequest(execution=EXECUTION),
    "GetWorkflowExecutionHistoryReverse": lambda: W.GetWorkflowExecutionHistoryReverseRequest(
        execution=EXECUTION
    ),
    "ResetStickyTaskQueue": lambda: W.ResetStickyTaskQueueRequest(execution=EXECUTION),
    "PauseWorkflowExecution": lambda: W.PauseWorkflowExecutionRequest(workflow_id="w"),
    "UnpauseWorkflowExecution": lambda: W.UnpauseWorkflowExecutionRequest(workflow_id="w", run_id=RUN_ID),
    "UpdateWorkflowExecutionOptions": lambda: W.UpdateWorkflowExecutionOptionsRequest(
        workflow_execution=EXECUTION,
        workflow_execution_options={"priority": {"priority_key": 1}},
        update_mask=FieldMask(paths=["priority.priority_key"]),
    ),
    "PollWorkflowTaskQueue": lambda: W.PollWorkflowTaskQueueRequest(task_queue=QUEUE),
    "PollActivityTaskQueue": lambda: W.PollActivityTaskQueueRequest(task_queue=QUEUE),
    "PollNexusTaskQueue": lambda: W.PollNexusTaskQueueRequest(task_queue=QUEUE),
    "RespondWorkflowTaskCompleted": lambda: W.RespondWorkflowTaskCompletedRequest(task_token=b"t"),
    "RespondWorkflowTaskFailed": lambda: W.RespondWorkflowTaskFailedRequest(task_token=b"t"),
    "RespondQueryTaskCompleted": lambda: W.RespondQueryTaskCompletedRequest(task_token=b"t"),
    "RespondNexusTaskCompleted": lambda: W.RespondNexusTaskCompletedRequest(task_token=b"t"),
    "RespondNexusTaskFailed": lambda: W.RespondNexusTaskFailedRequest(
        task_token=b"t", failure={"nexus_handler_failure_info": {}}
    ),
    "RespondActivityTaskCompleted": lambda: W.RespondActivityTaskCompletedRequest(task_token=b"t"),
    "RespondActivityTaskCanceled": lambda: W.RespondActivityTaskCanceledRequest(task_token=b"t"),
    "RespondActivityTaskFailed": lambda: W.RespondActivityTaskFailedRequest(
        task_token=b"t", failure=Failure(application_failure_info=ApplicationFailureInfo())
    ),
    "RecordActivityTaskHeartbeat": lambda: W.RecordActivityTaskHeartbeatRequest(task_token=b"t"),
    "RespondActivityTaskCompletedById": lambda: W.RespondActivityTaskCompletedByIdRequest(activity_id="a"),
    "RespondActivityTaskCanceledById": lambda: W.RespondActivityTaskCanceledByIdRequest(activity_id="a"),
    "RespondActivityTaskFailedById": lambda: W.RespondActivityTaskFailedByIdRequest(activity_id="a"),
    "RecordActivityTaskHeartbeatById": lambda: W.RecordActivityTaskHeartbeatByIdRequest(activity_id="a"),
    "PauseActivity": lambda: W.PauseActivityRequest(execution=EXECUTION, id="a"),
    "UnpauseActivity": lambda: W.UnpauseActivityRequest(execution=EXECUTION, unpause_all=True),
    "ResetActivity": lambda: W.ResetActivityRequest(execution=EXECUTION, type="T"),
    "UpdateActivityOptions": lambda: W.UpdateActivityOptionsRequest(
        execution=EXECUTION, id="a", activity_options={}, update_mask=FieldMask(paths=["priority"])
    ),
    "ShutdownWorker": lambda: W.ShutdownWorkerRequest(),
    "RecordWorkerHeartbeat": lambda: W.RecordWorkerHeartbeatRequest(),
    "ListWorkers": lambda: W.ListWorkersRequest(page_size=-1),
    "CountWorkers": lambda: W.CountWorkersRequest(),
    "DescribeWorker": lambda: W.DescribeWorkerRequest(worker_instance_key="k"),
    "DescribeTaskQueue": lambda: W.DescribeTaskQueueRequest(task_queue=QUEUE),
    "ListTaskQueuePartitions": lambda: W.ListTaskQueuePartitionsRequest(task_queue=QUEUE),
    "UpdateTaskQueueConfig": lambda: W.UpdateTaskQueueConfigRequest(task_queue="q", task_queue_type=2),
    "ListWorkflowExecutions": lambda: W.ListWorkflowExecutionsRequest(page_size=5000),
    "ScanWorkflowExecutions": lambda: W.ScanWorkflowExecutionsRequest(page_size=-5),
    "CountWorkflowExecutions": lambda: W.CountWorkflowExecutionsRequest(),
    "ListOpenWorkflowExecutions": lambda: W.ListOpenWorkflowExecutionsRequest(),
    "ListClosedWorkflowExecutions": lambda: W.ListClosedWorkflowExecutionsRequest(
        status_filter={"status": 2}
    ),
    "RegisterNamespace": lambda: W.RegisterNamespaceRequest(
        namespace="ns", workflow_execution_retention_period=Duration(seconds=86400)
    ),
    "UpdateNamespace": lambda: W.UpdateNamespaceRequest(namespace="ns", config={}),
    "DescribeNamespace": lambda: W.DescribeNamespaceRequest(namespace="ns"),
    "DeprecateNamespace": lambda: W.DeprecateNamespaceRequest(namespace="ns"),
    "ListNamespaces": lambda: W.ListNamespacesRequest(),
    "DeleteNamespace": lambda: OP.DeleteNamespaceRequest(namespace="ns"),
    "AddSearchAttributes": lambda: OP.AddSearchAttributesRequest(
        namespace="ns", search_attributes={"Mine": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD}
    ),
    "RemoveSearchAttributes": lambda: OP.RemoveSearchAttributesRequest(
        namespace="ns", search_attributes=["Mine"]
    ),
    "ListSearchAttributes": lambda: OP.ListSearchAttributesRequest(namespace="ns"),
    "CreateNexusEndpoint": endpoint_request,
    "UpdateNexusEndpoint": lambda: OP.UpdateNexusEndpointRequest(
        id=RUN_ID, version=1, spec=endpoint_request().spec
    ),
    "DeleteNexusEndpoint": lambda: OP.DeleteNexusEndpointRequest(id=RUN_ID, version=1),
    "GetNexusEndpoint": lambda: OP.GetNexusEndpointRequest(id=RUN_ID),
    "ListNexusEndpoints": lambda: OP.ListNexusEndpointsRequest(page_size=1000),
    "StartActivityExecution": lambda: W.StartActivityExecutionRequest(
        activity_id="a",
        activity_type={"name": "T"},
        task_queue=QUEUE,
        start_to_close_timeout=Duration(seconds=1),
    ),
    "DescribeActivityExecution": lambda: W.DescribeActivityExecutionRequest(activity_id="a", run_id=RUN_ID),
    "PollActivityExecution": lambda: W.PollActivityExecutionRequest(activity_id="a"),
    "DeleteActivityExecution": lambda: W.DeleteActivityExecutionRequest(activity_id="a"),
    "RequestCancelActivityExecution": lambda: W.RequestCancelActivityExecutionRequest(activity_id="a"),
    "TerminateActivityExecution": lambda: W.TerminateActivityExecutionRequest(activity_id="a"),
    "PauseActivityExecution": lambda: W.PauseActivityExecutionRequest(activity_id="a"),
    "UnpauseActivityExecution": lambda: W.UnpauseActivityExecutionRequest(activity_id="a"),
    "ResetActivityExecution": lambda: W.ResetActivityExecutionRequest(activity_id="a"),
    "UpdateActivityExecutionOptions": lambda: W.UpdateActivityExecutionOptionsRequest(
        activity_id="a",
        activity_options={"retry_policy": {"maximum_attempts": 3}},
        update_mask=FieldMask(paths=["retryPolicy.maximumAttempts"]),
    ),
    "GetSystemInfo": lambda: W.GetSystemInfoRequest(),
    "GetClusterInfo": lambda: W.GetClusterInfoRequest(),
    "GetSearchAttributes": lambda: W.GetSearchAttributesRequest(),
    "ListClusters": lambda: OP.ListClustersRequest(),
    "ListActivityExecutions": lambda: W.ListActivityExecutionsRequest(),
    "CountActivityExecutions": lambda: W.CountActivityExecutionsRequest(),
}
NEVER_GOOD = {"ListArchivedWorkflowExecutions"}  # there is no archive to list


def test_every_check_has_a_good_request() -> None:
    assert set(GOOD) | NEVER_GOOD == set(CHECKS)


@pytest.mark.parametrize("method", sorted(GOOD))
def test_accepted(method: str) -> None:
    CHECKS[method](GOOD[method](), LIMITS)


START = "StartWorkflowExecution"
SIGNAL_START = "SignalWithStartWorkflowExecution"
# method, what spoils the good request (fields set; None clears), complaint
BAD: list[tuple[str, dict[str, Any], str]] = [
    (START, {"workflow_id": None}, "WorkflowId is not set on request."),
    (START, {"workflow_id": LONG}, "WorkflowId exceeds maximum allowed length (1001/1000)"),
    (START, {"workflow_id": "é" * 501}, "WorkflowId exceeds maximum allowed length (1002/1000)"),
    (START, {"workflow_type": None}, "WorkflowType is not set on request."),
    (START, {"workflow_type": WorkflowType(name=LONG)}, "WorkflowType length exceeds limit. (1001/1000)"),
    (START, {"task_queue": None}, "taskQueue is not set"),
    (START, {"task_queue": TaskQueue()}, "missing task queue name"),
    (START, {"task_queue": TaskQueue(name=LONG)}, "taskQueue length exceeds limit"),
    (
        START,
        {"task_queue": TaskQueue(name="/_sys/q/1")},
        "task queue name cannot start with reserved prefix /_sys/",
    ),
    (
        START,
        {"task_queue": TaskQueue(name="temporal-sys-per-ns-tq")},
        "cannot use internal per-namespace task queue:temporal-sys-per-ns-tq",
    ),
    (
        START,
        {"workflow_execution_timeout": NEGATIVE},
        "An invalid WorkflowExecutionTimeoutSeconds is set on request. cause: negative duration",
    ),
    (
        START,
        {"workflow_run_timeout": NEGATIVE},
        "An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration",
    ),
    (
        START,
        {"workflow_task_timeout": NEGATIVE},
        "An invalid WorkflowTaskTimeoutSeconds is set on request. cause: negative duration",
    ),
    (
        START,
        {"workflow_start_delay": NEGATIVE},
        "An invalid WorkflowStartDelaySeconds is set on request. cause: negative duration",
    ),
    (
        START,
        {"workflow_start_delay": Duration(seconds=1), "cron_schedule": "* * * * *"},
        "CronSchedule and WorkflowStartDelay may not be used together.",
    ),
    (START, {"cron_schedule": "nope"}, "invalid CronSchedule. ('nope' is no cron expression)"),
    (START, {"request_id": LONG}, "RequestId length exceeds limit. (1001/1000)"),
    (
        START,
        {"retry_policy": RetryPolicy(backoff_coefficient=0.5)},
        "BackoffCoefficient cannot be less than 1 on retry policy.",
    ),
    (
        START,
        {
            "workflow_id_reuse_policy": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING,
            "workflow_id_conflict_policy": WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
        },
        "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING "
        "cannot be used together with a WorkflowIDConflictPolicy",
    ),
    (
        START,
        {
            "workflow_id_reuse_policy": WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
            "workflow_id_conflict_policy": (
                WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
            ),
        },
        "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used "
        "together with WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
    ),
    (START, {"workflow_id_reuse_policy": 99}, "unknown WorkflowIdReusePolicy: 99"),
    (START, {"workflow_id_conflict_policy": 99}, "unknown WorkflowIdConflictPolicy: 99"),
    (
        START,
        {"on_conflict_options": {"attach_completion_callbacks": True}},
        "attaching request ID is required for attaching completion callbacks",
    ),
    (
        START,
        {"search_attributes": SearchAttributes(indexed_fields=dict.fromkeys("abc", Payload()))},
        "number of search attributes 3 exceeds limit 2",
    ),
    (
        START,
        {"search_attributes": SearchAttributes(indexed_fields={"a": Payload(data=b"x" * 11)})},
        "search attribute a value size 11 exceeds size limit 10",
    ),
    (START, {"priority": {"priority_key": -1}}, "priority key can't be negative"),
    (START, {"priority": {"fairness_key": "x" * 65}}, "fairness key length exceeds limit"),
    (START, {"priority": {"fairness_weight": -1}}, "must be greater than zero"),
    (START, {"links": [Link()]}, "unsupported link variant"),
    (START, {"links": [Link()] * 11}, "cannot attach more than 10 links per request, got 11"),
    (
        START,
        {"links": [Link(workflow_event={"workflow_id": "w", "run_id": "r"})]},
        "workflow event link must not have an empty namespace field",
    ),
    (
        START,
        {
            "links": [
                Link(
                    workflow_event={
                        "namespace": "n",
                        "workflow_id": "w",
                        "run_id": "r",
                        "event_ref": {"event_id": 1},
                    }
                )
            ]
        },
        "workflow event link ref cannot have an unspecified event type and a non-zero event ID",
    ),
    (START, {"links": [Link(batch_job={})]}, "batch job link must not have an empty job ID"),
    (
        START,
        {"completion_callbacks": [Callback(nexus={"url": LONG})]},
        "invalid url: url length longer than max length allowed of 1000",
    ),
    (
        START,
        {"completion_callbacks": [Callback(nexus={"url": "u", "header": {"k": "x" * 9000}})]},
        "invalid header: header size longer than max allowed size of 8192",
    ),
    (START, {"input": BIG}, f"Blob data size exceeds limit. ({BIG.ByteSize()}/100)"),
    (START, {"memo": {"fields": {"k": Payload(data=b"x" * 60)}}}, "Memo size exceeds limit. (69/50)"),
    (
        START,
        {"versioning_override": {"pinned": {"behavior": 1}}},
        "must provide version if override is pinned.",
    ),
    (SIGNAL_START, {"signal_name": None}, "signal not set"),
    (SIGNAL_START, {"signal_name": LONG}, "signal name exceeds maximum allowed length (1001/1000)"),
    (SIGNAL_START, {"workflow_type": None}, "workflow type not set"),
    (SIGNAL_START, {"request_id": LONG}, "Request ID exceeds maximum allowed length (1001/1000)"),
    (SIGNAL_START, {"signal_input": BIG}, f"Blob data size exceeds limit. ({BIG.ByteSize()}/100)"),
    (
        SIGNAL_START,
        {"workflow_id_conflict_policy": WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL},
        "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL "
        "is not supported for this operation.",
    ),
    ("SignalWorkflowExecution", {"workflow_execution": None}, "Execution is not set on request."),
    (
        "SignalWorkflowExecution",
        {"workflow_execution": WorkflowExecution()},
        "WorkflowId is not set on request.",
    ),
    (
        "SignalWorkflowExecution",
        {"workflow_execution": WorkflowExecution(workflow_id="w", run_id="bad")},
        "Invalid RunId. ('bad' is no UUID)",
    ),
    ("SignalWorkflowExecution", {"signal_name": None}, "SignalName is not set on request."),
    ("SignalWorkflowExecution", {"signal_name": LONG}, "SignalName length exceeds limit. (1001/1000)"),
    ("SignalWorkflowExecution", {"request_id": LONG}, "RequestId length exceeds limit. (1001/1000)"),
    ("SignalWorkflowExecution", {"input": BIG}, f"Blob data size exceeds limit. ({BIG.ByteSize()}/100)"),
    ("QueryWorkflow", {"query": None}, "WorkflowQuery is not set on request."),
    ("QueryWorkflow", {"query": {}}, "QueryType is not set on request."),
    (
        "QueryWorkflow",
        {"query": {"query_type": "t", "query_args": BIG}},
        f"Blob data size exceeds limit. ({BIG.ByteSize()}/100)",
    ),
    ("UpdateWorkflowExecution", {"workflow_execution": None}, "Execution is not set on request."),
    ("UpdateWorkflowExecution", {"request": None}, "Update meta is not set on request."),
    (
        "UpdateWorkflowExecution",
        {"request": {"meta": {"update_id": LONG}, "input": {"name": "n"}}},
        "UpdateId length exceeds limit. (1001/1000)",
    ),
    ("UpdateWorkflowExecution", {"request": {"meta": {}}}, "Update input is not set on request."),
    ("UpdateWorkflowExecution", {"request": {"meta": {}, "input": {}}}, "Update name is not set on request."),
    ("PollWorkflowExecutionUpdate", {"update_ref": None}, "UpdateRef is not set on request."),
    ("ResetWorkflowExecution", {"request_id": None}, "RequestId is not set on request."),
    (
        "ResetWorkflowExecution",
        {"workflow_task_finish_event_id": None},
        "Workflow task finish ID must be > 1 && <= workflow last event ID.",
    ),
    ("PauseWorkflowExecution", {"reason": LONG}, "reason is too long."),
    ("UnpauseWorkflowExecution", {"request_id": LONG}, "request id is too long."),
    ("PauseWorkflowExecution", {"workflow_id": None}, "WorkflowId is not set on request."),
    ("UpdateWorkflowExecutionOptions", {"update_mask": None}, "UpdateMask is required"),
    (
        "UpdateWorkflowExecutionOptions",
        {"workflow_execution_options": None},
        "WorkflowExecutionOptions is required",
    ),
    (
        "UpdateWorkflowExecutionOptions",
        {"update_mask": FieldMask(paths=["nope"])},
        'error parsing UpdateMask: proto: invalid path "nope" for message '
        '"temporal.api.workflow.v1.WorkflowExecutionOptions"',
    ),
    (
        "UpdateWorkflowExecutionOptions",
        {"update_mask": FieldMask(paths=["versioning_override.behavior"])},
        "versioning_override fields must be updated together",
    ),
    (
        "UpdateWorkflowExecutionOptions",
        {"update_mask": FieldMask(paths=["versioning_override.pinned"])},
        "versioning_override doesn't support partial updates",
    ),
    ("RespondNexusTaskFailed", {"failure": None}, "request must contain error or failure"),
    (
        "RespondNexusTaskFailed",
        {"failure": Failure()},
        "request Failure must contain error or failure with NexusHandlerFailureInfo",
    ),
    (
        "RespondNexusTaskFailed",
        {"error": {"failure": {"details": b"{"}}},
        "failure details must be JSON serializable",
    ),
    (
        "RespondNexusTaskCompleted",
        {"response": {"start_operation": {"async_success": {}}}},
        "missing operation token in response",
    ),
    (
        "RespondNexusTaskCompleted",
        {"response": {"start_operation": {"async_success": {"operation_token": "x" * 4097}}}},
        "operation token length exceeds allowed limit (4097/4096)",
    ),
    ("PollWorkflowTaskQueue", {"task_queue": None}, "taskQueue is not set"),
    ("PollWorkflowTaskQueue", {"identity": LONG}, "Identity length exceeds limit. (1001/1000)"),
    (
        "PollWorkflowTaskQueue",
        {
            "task_queue": TaskQueue(name="s", kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY),
            "deployment_options": {},
        },
        "NormalName must be set on sticky queue when UseVersioning is true or DeploymentOptions are set.",
    ),
    (
        "PollActivityTaskQueue",
        {"deployment_options": {"worker_versioning_mode": 2, "deployment_name": "d"}},
        "Deployment name and build id must be set together.",
    ),
    (
        "PollActivityTaskQueue",
        {"deployment_options": {"worker_versioning_mode": 2, "deployment_name": "d:e", "build_id": "b"}},
        "worker deployment name cannot contain ':'",
    ),
    (
        "PollNexusTaskQueue",
        {"worker_version_capabilities": {"use_versioning": True}},
        "WorkerVersionStamp must be present if UseVersioning is true.",
    ),
    ("RespondWorkflowTaskCompleted", {"task_token": None}, "Task token not set on request."),
    (
        "RespondWorkflowTaskCompleted",
        {"versioning_behavior": 1},
        "versioning behavior cannot be specified without deployment options being set with versioned mode",
    ),
    (
        "RespondWorkflowTaskCompleted",
        {"commands": [{"command_type": 4}, {"command_type": 1}]},
        "invalid command sequence: [CompleteWorkflowExecution, ScheduleActivityTask], "
        "command CompleteWorkflowExecution must be the last command.",
    ),
    (
        "RespondWorkflowTaskCompleted",
        {"worker_version_stamp": {"build_id": "x" * 256}},
        "Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID.",
    ),
    ("RespondQueryTaskCompleted", {"task_token": None}, "Task token not set on request."),
    ("RespondActivityTaskCompleted", {"task_token": None}, "Task token not set on request."),
    ("RespondActivityTaskCompleted", {"identity": LONG}, "Identity length exceeds limit. (1001/1000)"),
    ("RespondActivityTaskFailed", {"failure": Failure()}, "Failure must have ApplicationFailureInfo."),
    (
        "RespondActivityTaskFailed",
        {"failure": Failure(application_failure_info={"next_retry_delay": Duration(seconds=1, nanos=-1)})},
        "NextRetryDelay is not a valid duration: proto: duration (seconds:1 nanos:-1) "
        "has seconds and nanos with different signs",
    ),
    ("RespondActivityTaskCompletedById", {"activity_id": None}, "ActivityId is not set on request."),
    ("RespondActivityTaskFailedById", {"activity_id": None}, "ActivityId is not set on request."),
    ("RecordActivityTaskHeartbeat", {"task_token": None}, "Task token not set on request."),
    ("PauseActivity", {"execution": None}, "WorkflowId is not set on request."),
    ("PauseActivity", {"id": None}, "Either Activity.Id or Activity.Type should be set on request."),
    ("ResetActivity", {"jitter": NEGATIVE}, "invalid jitter: negative duration"),
    (
        "UpdateActivityOptions",
        {"restore_original": True},
        "Both UpdateMask and RestoreOriginal are provided",
    ),
    ("UpdateActivityOptions", {"activity_options": None}, "ActivityOptions are not provided"),
    ("UpdateActivityOptions", {"update_mask": None}, "UpdateMask is not provided"),
    (
        "DescribeTaskQueue",
        {"api_mode": 1, "task_queue": TaskQueue(name="s", kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY)},
        "Enhanced DescribeTaskQueue is not valid for a sticky queue, "
        "use api_mode=UNSPECIFIED or a normal queue.",
    ),
    (
        "DescribeTaskQueue",
        {"api_mode": 1, "task_queue": TaskQueue(name="/_sys/q/1")},
        "Enhanced DescribeTaskQueue is not valid for non-root queue partitions, "
        "use api_mode=UNSPECIFIED or a normal queue root name.",
    ),
    (
        "UpdateTaskQueueConfig",
        {"task_queue_type": 1, "update_queue_rate_limit": {"rate_limit": {"requests_per_second": 1}}},
        "Setting rate limit on workflow task queues is not allowed.",
    ),
    (
        "UpdateTaskQueueConfig",
        {"set_fairness_weight_overrides": {"k": 1.0}, "unset_fairness_weight_overrides": ["k"]},
        'fairness weight override key "k" present in both set and unset lists',
    ),
    (
        "ListOpenWorkflowExecutions",
        {"start_time_filter": {"earliest_time": Timestamp(seconds=2), "latest_time": Timestamp(seconds=1)}},
        "EarliestTime in StartTimeFilter should not be larger than LatestTime.",
    ),
    (
        "ListClosedWorkflowExecutions",
        {"status_filter": {"status": 1}},
        "StatusFilter must be specified and must be not Running.",
    ),
    ("RegisterNamespace", {"namespace": None}, "Namespace not set on request."),
    ("RegisterNamespace", {"namespace": LONG}, "Namespace length exceeds limit. (1001/1000)"),
    (
        "RegisterNamespace",
        {"workflow_execution_retention_period": None},
        "A valid retention period is not set on request.",
    ),
    (
        "UpdateNamespace",
        {"config": {"workflow_execution_retention_ttl": NEGATIVE}},
        "A valid retention period is not set on request.",
    ),
    ("DeleteNamespace", {"namespace_id": "i"}, "Only one of namespace name or Id should be set on request."),
    ("AddSearchAttributes", {"search_attributes": None}, "SearchAttributes are not set on request."),
    (
        "AddSearchAttributes",
        {"search_attributes": {"WorkflowId": 1}},
        "Search attribute WorkflowId is reserved by system.",
    ),
    (
        "AddSearchAttributes",
        {"search_attributes": {"TemporalMine": 1}},
        "Search attribute TemporalMine is reserved by system.",
    ),
    ("AddSearchAttributes", {"search_attributes": {"Mine": 99}}, "Unknown search attribute type: 99."),
    ("ListSearchAttributes", {"namespace": None}, "Namespace is not set on request."),
    ("GetNexusEndpoint", {"id": None}, "endpoint ID not set"),
    ("DeleteNexusEndpoint", {"version": None}, "endpoint version is non-positive"),
    ("CreateNexusEndpoint", {"spec": None}, "endpoint name not set, empty target variant"),
    (
        "CreateNexusEndpoint",
        {"spec": {"name": "1", "target": {"external": {"url": "ftp://x"}}}},
        'endpoint name must match the regex: "^[a-zA-Z][a-zA-Z0-9\\\\-]*[a-zA-Z0-9]$", '
        'invalid target URL scheme: "ftp", expected http or https',
    ),
    ("ListNexusEndpoints", {"page_size": 1001}, "page_size exceeds limit of 1000"),
    ("StartActivityExecution", {"activity_id": None}, "activityId is not set"),
    (
        "StartActivityExecution",
        {"start_to_close_timeout": None},
        "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
        "ActivityId=a ActivityType=T",
    ),
    ("StartActivityExecution", {"input": BIG}, "input exceeds length limit"),
    (
        "StartActivityExecution",
        {"on_conflict_options": {"attach_request_id": True}},
        "on_conflict_options: attach_request_id requires at least one completion callback or link",
    ),
    ("DescribeActivityExecution", {"run_id": "bad"}, "invalid run id: must be a valid UUID"),
    ("PollActivityExecution", {"activity_id": None}, "activity ID is required"),
    (
        "UpdateActivityExecutionOptions",
        {"update_mask": FieldMask(paths=["nope"])},
        'unsupported update_mask path: "nope"',
    ),
    (
        "UpdateActivityExecutionOptions",
        {"activity_options": {"retry_policy": {"maximum_attempts": -1}}},
        "MaximumAttempts cannot be negative on retry policy.",
    ),
]


def spoil(method: str, changes: dict[str, Any]) -> Any:
    request = GOOD[method]()
    for field in changes:
        request.ClearField(field)
    request.MergeFrom(type(request)(**{name: value for name, value in changes.items() if value is not None}))
    return request


@pytest.mark.parametrize(
    ("method", "changes", "message"), BAD, ids=[f"{case[0]}-{'-'.join(case[1])}" for case in BAD]
)
def test_refused(method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        CHECKS[method](spoil(method, changes), LIMITS)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


def refusal(method: str, request: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        CHECKS[method](request, LIMITS)
    return caught.value


@pytest.mark.parametrize("method", [name for name, make in GOOD.items() if hasattr(make(), "execution")])
def test_run_ids_are_uuids(method: str) -> None:
    request = GOOD[method]()
    request.execution.run_id = "not-a-uuid"
    assert refusal(method, request).message == "Invalid RunId. ('not-a-uuid' is no UUID)"


@pytest.mark.parametrize(
    "run_id", [RUN_ID.upper(), f"urn:uuid:{RUN_ID}", f"{{{RUN_ID}}}", RUN_ID.replace("-", "")]
)
def test_unusual_spellings_of_a_uuid(run_id: str) -> None:
    CHECKS["DescribeWorkflowExecution"](
        W.DescribeWorkflowExecutionRequest(execution={"workflow_id": "w", "run_id": run_id}), LIMITS
    )


def test_other_codes() -> None:
    admitted = UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
    update = spoil("UpdateWorkflowExecution", {"wait_policy": {"lifecycle_stage": admitted}})
    assert refusal("UpdateWorkflowExecution", update).code is Code.PERMISSION_DENIED
    assert refusal(START, spoil(START, {"time_skipping_config": {}})).code is Code.UNIMPLEMENTED
    assert refusal(START, spoil(START, {"completion_callbacks": [Callback()]})).code is Code.UNIMPLEMENTED
    reset = spoil("ResetWorkflowExecution", {"reset_reapply_type": 99})
    assert refusal("ResetWorkflowExecution", reset).code is Code.INVALID_ARGUMENT


def test_the_archive_is_not_there() -> None:
    method = "ListArchivedWorkflowExecutions"
    assert refusal(method, W.ListArchivedWorkflowExecutionsRequest()).message == (
        "Cluster is not configured for visibility archival."
    )
    assert refusal(method, W.ListArchivedWorkflowExecutionsRequest(page_size=10_001)).message == (
        "PageSize is larger than allowed 10000."
    )


def test_a_start_is_completed_where_temporal_completes_it() -> None:
    request = start_request(
        retry_policy=RetryPolicy(maximum_attempts=3), workflow_run_timeout=Duration(seconds=10**11)
    )
    CHECKS[START](request, LIMITS)
    assert request.retry_policy.initial_interval.seconds == 1
    assert request.retry_policy.maximum_interval.seconds == 100
    assert request.workflow_run_timeout.seconds == DURATION_SECONDS_MAX
    plain = start_request()
    before = plain.SerializeToString(deterministic=True)
    CHECKS[START](plain, LIMITS)
    assert plain.SerializeToString(deterministic=True) == before


def test_a_link_in_the_request_and_in_its_callback_counts_once() -> None:
    def link(number: int) -> Link:
        return Link(
            workflow_event={
                "namespace": "n",
                "workflow_id": str(number),
                "run_id": "r",
                "event_ref": {"event_id": 1, "event_type": EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED},
            }
        )

    links = [link(number) for number in range(10)]
    callback = Callback(nexus={"url": "http://x"}, links=links[:3])
    CHECKS[START](start_request(links=links, completion_callbacks=[callback]), LIMITS)
    error = refusal(START, start_request(links=[*links, link(10)], completion_callbacks=[callback]))
    assert error.message == "cannot attach more than 10 links per request, got 11"
