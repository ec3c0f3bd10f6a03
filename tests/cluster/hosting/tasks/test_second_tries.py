"""What is tried again after a leader was lost means the same thing, and what was denied stays denied."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.calls.run_names import name_run, names_no_run
from cluster.hosting.tasks import takeover
from cluster.hosting.tasks.dispatch import ACTIVITY
from cluster.hosting.tasks.takeover import SKEW_NS, Receipts
from tests.cluster.hosting.play import execution

NOW_NS = 1_000_000_000_000


class _Call:
    def __init__(self, request: Any) -> None:
        self.method = f"/temporal.api.workflowservice.v1.WorkflowService/{type(request).__name__[:-7]}"
        self.request = request.SerializeToString()


@pytest.mark.parametrize(
    ("asked", "run_id"),
    [
        (
            wire.TerminateWorkflowExecutionRequest(workflow_execution=execution("w")),
            "workflow_execution.run_id",
        ),
        (wire.SignalWorkflowExecutionRequest(workflow_execution=execution("w")), "workflow_execution.run_id"),
        (
            wire.RequestCancelWorkflowExecutionRequest(workflow_execution=execution("w")),
            "workflow_execution.run_id",
        ),
        (wire.UpdateWorkflowExecutionRequest(workflow_execution=execution("w")), "workflow_execution.run_id"),
        (wire.PauseActivityRequest(execution=execution("w")), "execution.run_id"),
        (wire.UpdateActivityOptionsRequest(execution=execution("w")), "execution.run_id"),
        (wire.RespondActivityTaskCompletedByIdRequest(workflow_id="w"), "run_id"),
        (wire.RecordActivityTaskHeartbeatByIdRequest(workflow_id="w"), "run_id"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_another_try_of_a_change_means_the_run_that_the_first_one_met(asked: Any, run_id: str) -> None:
    call: Any = _Call(asked)
    run_of = operator.attrgetter(run_id)
    assert names_no_run(call)
    for again in ("the first", "the second"):
        name_run(call, again)
        assert run_of(type(asked).FromString(call.request)) == "the first"
    assert not names_no_run(call)


def test_another_try_of_a_start_is_known_by_its_request_id() -> None:
    request = wire.StartWorkflowExecutionRequest(namespace="default", workflow_id="w")
    call: Any = _Call(request)
    name_run(call, "the first")
    assert call.request == request.SerializeToString()
    assert not names_no_run(call)


def test_another_try_of_a_read_means_the_newest_run() -> None:
    request = wire.DescribeWorkflowExecutionRequest(namespace="default", execution=execution("w"))
    call: Any = _Call(request)
    name_run(call, "the first")
    assert call.request == request.SerializeToString()
    assert not names_no_run(call)


def test_a_task_that_was_denied_is_handed_to_nobody_when_it_comes_after_all() -> None:
    receipts = Receipts(NOW_NS)
    after = NOW_NS + 2 * SKEW_NS
    given, denied, other = (("n", "w", "r", ACTIVITY, 1, ref) for ref in (5, 6, 7))
    assert receipts.give(given, after)
    assert receipts.deny([(given, after), (denied, after)]) == [denied]
    assert not receipts.give(denied, after)
    assert receipts.give(other, after)
    assert receipts.deny([(other, after)]) == []
    assert receipts.deny([(("n", "w", "r", ACTIVITY, 1, 8), NOW_NS)]) == [], "an earlier process may know"


def test_what_was_handed_over_too_long_ago_to_be_remembered_is_not_denied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(takeover, "REMEMBERED", 2)
    receipts = Receipts(NOW_NS)
    given = [("n", "w", "r", ACTIVITY, 1, ref) for ref in range(5)]
    after = NOW_NS + 2 * SKEW_NS
    for seconds, receipt in enumerate(given):
        assert receipts.give(receipt, after + seconds * 10**9)
    assert receipts.deny([(given[0], after), (given[2], after + 2 * 10**9)]) == []
    never: Any = ("n", "w", "r", ACTIVITY, 1, 9)
    assert receipts.deny([(never, after + 2 * 10**9)]) == [], "it may be one of those"
    assert receipts.deny([(never, after + 3 * 10**9 + SKEW_NS)]) == [never]
