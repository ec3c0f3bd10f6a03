"""What a client is told of a call whose earlier try was lost: what may be that try's doing is no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.hosting.calls.attempt import Attempt
from history_store.engine.errors import Code

SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"


def told(method: str, code: Code, *, again: bool) -> Code:
    """The code that the client hears."""
    heard: list[int] = []
    call: Any = SimpleNamespace(
        deadline=None, method=SERVICE + method, fail=lambda code, *_: heard.append(code)
    )
    forward: Any = SimpleNamespace(ended=lambda attempt: None)
    attempt = Attempt(forward, call, lambda _: None, 0.0)
    attempt.again = again
    attempt.fail(int(code), "no")
    (code_heard,) = heard
    return Code(code_heard)


@pytest.mark.parametrize(
    "code", [Code.NOT_FOUND, Code.ALREADY_EXISTS, Code.FAILED_PRECONDITION, Code.RESOURCE_EXHAUSTED]
)
def test_a_refusal_after_a_try_that_was_lost_is_no_definite_one(code: Code) -> None:
    assert told("UpdateActivityOptions", code, again=True) is Code.UNAVAILABLE
    assert told("UpdateActivityOptions", code, again=False) is code
    assert told("DescribeWorkflowExecution", code, again=True) is code, "it changes nothing"


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED])
def test_what_is_wrong_with_the_request_was_wrong_before(code: Code) -> None:
    assert told("UpdateActivityOptions", code, again=True) is code
