"""What handlers use beside the checks: page sizes, the deadline of a long poll, oversized results."""

from __future__ import annotations

import pytest

from cluster.frontend.validate import Limits, fields, visibility, worker, workflow
from history_store.engine import retry
from history_store.engine.errors import ServiceError


def test_page_sizes_out_of_range_are_the_largest() -> None:
    assert [workflow.history_page_size(asked, Limits()) for asked in (-1, 0, 1, 256, 257)] == [
        256,
        256,
        1,
        256,
        256,
    ]
    assert [visibility.page_size(asked, Limits()) for asked in (-1, 0, 7, 5000)] == [1000, 1000, 7, 1000]


def test_a_long_poll_needs_a_deadline() -> None:
    fields.check_long_poll(60.0)
    with pytest.raises(ServiceError, match="Context timeout is not set"):
        fields.check_long_poll(None)


def test_something_too_large_becomes_a_failure_that_is_not_retried() -> None:
    failure = worker.oversized_failure(worker.OVERSIZED_RESULT)
    assert failure.message == "Complete result exceeds size limit."
    assert not retry.is_retryable(failure, [])
