"""The parts of the region's benchmark that judge: when throughput is back, and which calls took a detour."""

from __future__ import annotations

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    StartWorkflowExecutionRequest,
)

from benchmarks import raw_worker
from benchmarks.raw_client import serialize, workflow_path
from benchmarks.region_cases import Recorded, back_after, by_method, workflow_of
from cluster.hosting.tasks.tokens import ACTIVITY_TASK, TaskToken, encode

KILLED, UNTIL = 10.0, 15.0


def steady(begin: float, end: float, rate: float = 100.0) -> list[float]:
    """Ends of workflows at a constant rate."""
    return [begin + number / rate for number in range(round((end - begin) * rate))]


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        (steady(0, 15), 0.0),
        (steady(0, 10) + steady(10.8, 15), 0.7),  # a window that begins then has its 40 ends from 10.8 on
        # What was in flight ends after the kill, faster than ever; only then comes the gap.
        (steady(0, 10) + steady(10, 10.3, 300) + steady(11, 15), 0.9),
        (steady(0, 10) + steady(10, 15, 50), float("inf")),
        (steady(0, 10) + steady(10, 15, 85), 0.0),
        (steady(0, 10), float("inf")),
    ],
    ids=["no dip", "a gap", "a burst before the gap", "half for ever", "most for ever", "dead"],
)
def test_when_throughput_is_back(ends: list[float], expected: float) -> None:
    assert back_after(ends, KILLED, 100.0, UNTIL) == pytest.approx(expected, abs=0.021)


TOKEN = encode(TaskToken(ACTIVITY_TASK, "n", "w-1", "r", 5, 1))
EXECUTION = WorkflowExecution(workflow_id="w-1")


@pytest.mark.parametrize(
    ("path", "request_", "answer"),
    [
        (raw_worker.START, StartWorkflowExecutionRequest(workflow_id="w-1"), b""),
        (raw_worker.HISTORY, GetWorkflowExecutionHistoryRequest(execution=EXECUTION), b""),
        (
            raw_worker.POLL_WORKFLOW,
            None,
            serialize(PollWorkflowTaskQueueResponse(workflow_execution=EXECUTION)),
        ),
        (
            raw_worker.POLL_ACTIVITY,
            None,
            serialize(PollActivityTaskQueueResponse(workflow_execution=EXECUTION)),
        ),
        (raw_worker.COMPLETE_WORKFLOW_TASK, RespondWorkflowTaskCompletedRequest(task_token=TOKEN), b""),
        (raw_worker.COMPLETE_ACTIVITY, RespondActivityTaskCompletedRequest(task_token=TOKEN), b""),
    ],
    ids=["start", "history", "poll workflow", "poll activity", "complete workflow", "complete activity"],
)
def test_the_workflow_of_a_call(path: bytes, request_: object, answer: bytes) -> None:
    request = b"" if request_ is None else serialize(request_)
    assert workflow_of(Recorded(path, "a/1", request, answer, 0.001)) == "w-1"


def test_calls_by_method_and_by_the_way_they_took() -> None:
    start = serialize(StartWorkflowExecutionRequest(workflow_id="w-1"))
    calls = [
        Recorded(raw_worker.START, "a/1", start, b"", 0.001),
        Recorded(raw_worker.START, "a/2", start, b"", 0.002),
        Recorded(raw_worker.POLL_WORKFLOW, "a/2", b"", b"", 9.0),  # an empty poll is about no workflow
        Recorded(workflow_path("GetSystemInfo"), "a/1", b"", b"", 0.001),
    ]
    assert by_method(calls, lambda _: "a/1") == {"StartWorkflowExecution": ([1.0], [2.0])}
