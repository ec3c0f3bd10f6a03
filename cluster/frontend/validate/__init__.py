"""What a request must say before anything else looks at it: one check per method, Temporal's codes and words.

`CHECKS[method](request, limits)` returns, or raises `ServiceError`. The caller has resolved the namespace
first, as Temporal does (an unknown namespace is the error that wins), and passes that namespace's limits.
Checks know nothing but the request: no namespace, no state, no clock. They do not change it either, except
where Temporal completes it before recording it: defaults of retry policies, timeouts of standalone
activities, and durations cut to a century.

Modules: `fields` (what many requests share), `start`, `workflow`, `update`, `worker`, `activity`,
`standalone`, `visibility`, `namespace`. The rules for a worker's commands are the engine's:
`history_store.engine.command_rules`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.frontend.validate import (
    activity,
    namespace,
    standalone,
    start,
    update,
    visibility,
    worker,
    workflow,
)
from history_store.engine.limits import Limits

__all__ = ["CHECKS", "Check", "Limits"]

# Each check takes its own request's type; a table of them can only say "any message".
Check = Callable[[Any, Limits], None]


def check_nothing(_request: object, _limits: Limits) -> None:
    """A request that cannot be wrong by itself."""


CHECKS: dict[str, Check] = {
    "GetSystemInfo": check_nothing,
    "GetClusterInfo": check_nothing,
    "GetSearchAttributes": check_nothing,
    "ListClusters": check_nothing,
    # namespaces, and the operator's calls
    "RegisterNamespace": namespace.check_register,
    "DescribeNamespace": namespace.check_describe_namespace,
    "ListNamespaces": namespace.check_list_namespaces,
    "UpdateNamespace": namespace.check_update_namespace,
    "DeprecateNamespace": namespace.check_deprecate_namespace,
    "DeleteNamespace": namespace.check_delete_namespace,
    "AddSearchAttributes": namespace.check_add_attributes,
    "RemoveSearchAttributes": namespace.check_remove_attributes,
    "ListSearchAttributes": namespace.check_list_attributes,
    "CreateNexusEndpoint": namespace.check_create_endpoint,
    "UpdateNexusEndpoint": namespace.check_update_endpoint,
    "DeleteNexusEndpoint": namespace.check_delete_endpoint,
    "GetNexusEndpoint": namespace.check_get_endpoint,
    "ListNexusEndpoints": namespace.check_list_endpoints,
    # workflows
    "StartWorkflowExecution": start.check_start,
    "SignalWithStartWorkflowExecution": start.check_signal_with_start,
    "ExecuteMultiOperation": start.check_multi_operation,
    "SignalWorkflowExecution": workflow.check_signal,
    "QueryWorkflow": workflow.check_query,
    "UpdateWorkflowExecution": update.check_update,
    "PollWorkflowExecutionUpdate": update.check_poll_update,
    "RequestCancelWorkflowExecution": workflow.check_cancel,
    "TerminateWorkflowExecution": workflow.check_terminate,
    "DeleteWorkflowExecution": workflow.check_delete,
    "ResetWorkflowExecution": workflow.check_reset,
    "DescribeWorkflowExecution": workflow.check_describe,
    "GetWorkflowExecutionHistory": workflow.check_history,
    "GetWorkflowExecutionHistoryReverse": workflow.check_history_reverse,
    "PauseWorkflowExecution": workflow.check_pause,
    "UnpauseWorkflowExecution": workflow.check_pause,
    "UpdateWorkflowExecutionOptions": workflow.check_options,
    "ResetStickyTaskQueue": workflow.check_reset_sticky,
    # workers and task queues
    "PollWorkflowTaskQueue": worker.check_poll_workflow,
    "PollActivityTaskQueue": worker.check_poll_activity,
    "PollNexusTaskQueue": worker.check_poll_nexus,
    "RespondWorkflowTaskCompleted": worker.check_workflow_task_completed,
    "RespondWorkflowTaskFailed": worker.check_workflow_task_failed,
    "RespondQueryTaskCompleted": worker.check_query_completed,
    "RespondNexusTaskCompleted": worker.check_nexus_completed,
    "RespondNexusTaskFailed": worker.check_nexus_failed,
    "ShutdownWorker": worker.check_shutdown,
    "RecordWorkerHeartbeat": worker.check_heartbeat,
    "ListWorkers": worker.check_list_workers,
    "CountWorkers": worker.check_list_workers,
    "DescribeWorker": worker.check_describe_worker,
    "DescribeTaskQueue": worker.check_describe_queue,
    "ListTaskQueuePartitions": worker.check_list_partitions,
    "UpdateTaskQueueConfig": worker.check_queue_config,
    # activities of a workflow
    "RespondActivityTaskCompleted": activity.check_completed,
    "RespondActivityTaskCompletedById": activity.check_by_id,
    "RespondActivityTaskCanceled": activity.check_completed,
    "RespondActivityTaskCanceledById": activity.check_by_id,
    "RespondActivityTaskFailed": activity.check_failed,
    "RespondActivityTaskFailedById": activity.check_failed_by_id,
    "RecordActivityTaskHeartbeat": activity.check_heartbeat,
    "RecordActivityTaskHeartbeatById": activity.check_by_id,
    "PauseActivity": activity.check_pause,
    "UnpauseActivity": activity.check_unpause,
    "ResetActivity": activity.check_unpause,
    "UpdateActivityOptions": activity.check_options,
    # standalone activities
    "StartActivityExecution": standalone.check_start,
    "DescribeActivityExecution": standalone.check_describe,
    "PollActivityExecution": standalone.check_poll,
    "DeleteActivityExecution": standalone.check_poll,
    "RequestCancelActivityExecution": standalone.check_end,
    "TerminateActivityExecution": standalone.check_end,
    "PauseActivityExecution": standalone.check_end,
    "UnpauseActivityExecution": standalone.check_unpause,
    "ResetActivityExecution": standalone.check_unpause,
    "UpdateActivityExecutionOptions": standalone.check_options,
    "ListActivityExecutions": check_nothing,
    "CountActivityExecutions": check_nothing,
    # visibility
    "ListWorkflowExecutions": visibility.check_list,
    "ScanWorkflowExecutions": visibility.check_list,
    "CountWorkflowExecutions": visibility.check_list,
    "ListOpenWorkflowExecutions": visibility.check_list_open,
    "ListClosedWorkflowExecutions": visibility.check_list_closed,
    "ListArchivedWorkflowExecutions": visibility.check_list_archived,
}
