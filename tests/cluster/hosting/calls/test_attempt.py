"""One try of a call: what a client is told when an earlier one was lost, and what is left of it."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.hosting.calls.attempt import Attempt
from cluster.hosting.calls.remote import RemoteCall, RemoteConnection
from history_store.engine.errors import Code

SERVICE = "/temporal.api.workflowservice.v1.WorkflowService/"


class Waiter:
    """Of a call that is parked."""


@pytest.mark.parametrize("end", ["finish", "fail", "cancel"])
def test_a_try_that_is_over_is_freed_at_once_with_its_request(end: str) -> None:
    """Megabytes of requests would wait for the collector otherwise, which comes once in 50,000 objects."""
    waiters: list[weakref.ref[Waiter]] = []

    def park(attempt: Any) -> None:
        waiter = Waiter()
        waiters.append(weakref.ref(waiter))
        attempt.on_cancel = partial(lambda *_: None, waiter, attempt)

    forward: Any = SimpleNamespace(
        ended=lambda attempt: None, served={}, tell=lambda *_: None, node=SimpleNamespace(entered=None)
    )
    connection = RemoteConnection((2, 1), "client")
    call = RemoteCall(forward, 2, 1, SERVICE + "PollWorkflowTaskQueue", bytes(1000), None, connection)
    gc.collect()
    gc.disable()
    try:
        attempt = Attempt(forward, call, park, 0.0)
        attempt.run()
        assert waiters[0]() is not None
        if end == "finish":
            attempt.finish(b"")
        elif end == "fail":
            attempt.fail(int(Code.NOT_FOUND), "no")
        else:
            call.cancel()
        assert call.done
        del attempt
        assert waiters[0]() is None
    finally:
        gc.enable()


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
