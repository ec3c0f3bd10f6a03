"""Update-with-start: each operation's own error is told, and the other one is said to be aborted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api import workflowservice
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure
from temporalio.api.failure.v1 import MultiOperationExecutionAborted

from cluster.frontend.validate import CHECKS, Limits
from history_store.engine.errors import Code, ServiceError

RUN_ID = "0190e1f4-9c5e-7d5a-8b1a-1234567890ab"
W: Any = workflowservice.v1


def multi_request() -> Any:
    request = W.ExecuteMultiOperationRequest(namespace="ns")
    start = request.operations.add().start_workflow
    start.workflow_id = "w"
    start.workflow_type.name = "T"
    start.task_queue.name = "q"
    update = request.operations.add().update_workflow
    update.workflow_execution.workflow_id = "w"
    update.request.meta.update_id = "u"
    update.request.input.name = "n"
    return request


def refusal(request: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        CHECKS["ExecuteMultiOperation"](request, Limits())
    return caught.value


@pytest.mark.parametrize(
    ("change", "code", "messages"),
    [
        (
            lambda start, update: setattr(start, "cron_schedule", "* * * * *"),
            Code.INVALID_ARGUMENT,
            ["CronSchedule is not allowed.", "Operation was aborted."],
        ),
        (
            lambda start, update: setattr(start, "request_eager_execution", True),
            Code.INVALID_ARGUMENT,
            ["RequestEagerExecution is not supported.", "Operation was aborted."],
        ),
        (
            lambda start, update: setattr(update.workflow_execution, "run_id", RUN_ID),
            Code.INVALID_ARGUMENT,
            ["Operation was aborted.", "RunId is not allowed."],
        ),
        (
            lambda start, update: setattr(update, "namespace", "other"),
            Code.INVALID_ARGUMENT,
            ["Operation was aborted.", "Operation namespace did not match request's namespace."],
        ),
        (
            lambda start, update: setattr(update.workflow_execution, "workflow_id", "v"),
            Code.INVALID_ARGUMENT,
            ["Operation was aborted.", "WorkflowId is not consistent with previous operation(s)."],
        ),
        (
            lambda start, update: setattr(update.wait_policy, "lifecycle_stage", 1),
            Code.PERMISSION_DENIED,
            [
                "Operation was aborted.",
                "UpdateWorkflowExecution issued asynchronously and waiting on update admitted "
                "is not supported.",
            ],
        ),
    ],
)
def test_update_with_start_tells_each_operations_error(
    change: Callable[[Any, Any], None], code: Code, messages: list[str]
) -> None:
    request = multi_request()
    change(request.operations[0].start_workflow, request.operations[1].update_workflow)
    error = refusal(request)
    assert (error.code, error.message) == (code, "Update-with-Start could not be executed.")
    assert isinstance(error.detail, MultiOperationExecutionFailure)
    assert [status.message for status in error.detail.statuses] == messages
    for status in error.detail.statuses:
        aborted = any(detail.Is(MultiOperationExecutionAborted.DESCRIPTOR) for detail in status.details)
        assert aborted == (status.code == Code.ABORTED)


def test_update_with_start_is_exactly_that() -> None:
    request = multi_request()
    del request.operations[1]
    assert refusal(request).message == ("Operations have to be exactly [Start, Update].")
