"""Retry policies and durations: defaults, refusals, which failures are retried, and the growing interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.enums.v1 import TimeoutType
from temporalio.api.failure.v1 import (
    ActivityFailureInfo,
    ApplicationFailureInfo,
    CanceledFailureInfo,
    ChildWorkflowExecutionFailureInfo,
    Failure,
    ServerFailureInfo,
    TerminatedFailureInfo,
    TimeoutFailureInfo,
)

from history_store.engine import durations, retry
from history_store.engine.durations import INT64_MAX, NS_PER_SECOND
from history_store.engine.errors import Code, ServiceError

S = NS_PER_SECOND


def policy(**fields: object) -> RetryPolicy:
    made = RetryPolicy(**fields)  # type: ignore[arg-type]
    retry.fill_defaults(made)
    return made


def application(**fields: object) -> Failure:
    return Failure(application_failure_info=ApplicationFailureInfo(**fields))  # type: ignore[arg-type]


def timeout(kind: TimeoutType.ValueType) -> Failure:
    return Failure(timeout_failure_info=TimeoutFailureInfo(timeout_type=kind))


def test_defaults() -> None:
    assert policy() == RetryPolicy(
        initial_interval=Duration(seconds=1), maximum_interval=Duration(seconds=100), backoff_coefficient=2.0
    )
    assert policy(initial_interval=Duration(seconds=2)).maximum_interval.seconds == 200
    assert policy(maximum_interval=Duration(seconds=7)).maximum_interval.seconds == 7
    assert policy(maximum_attempts=49).maximum_attempts == 49


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            RetryPolicy(initial_interval=Duration(seconds=-22)),
            "invalid InitialInterval set on retry policy: negative duration",
        ),
        (
            RetryPolicy(initial_interval=Duration(seconds=1, nanos=-1)),
            "invalid InitialInterval set on retry policy: "
            "duration has seconds and nanos with different signs",
        ),
        (
            RetryPolicy(backoff_coefficient=math.nan),
            "BackoffCoefficient must be finite on retry policy. (nan)",
        ),
        (
            RetryPolicy(backoff_coefficient=math.inf),
            "BackoffCoefficient must be finite on retry policy. (inf)",
        ),
        (
            RetryPolicy(backoff_coefficient=math.nan, maximum_attempts=1),
            "BackoffCoefficient must be finite on retry policy. (nan)",
        ),
        (RetryPolicy(backoff_coefficient=0.8), "BackoffCoefficient cannot be less than 1 on retry policy."),
        (
            RetryPolicy(backoff_coefficient=2, maximum_interval=Duration(seconds=-2)),
            "invalid MaximumInterval set on retry policy: negative duration",
        ),
        (
            RetryPolicy(
                backoff_coefficient=2,
                maximum_interval=Duration(seconds=5),
                initial_interval=Duration(seconds=10),
            ),
            "MaximumInterval cannot be less than InitialInterval on retry policy.",
        ),
        (
            RetryPolicy(backoff_coefficient=2, maximum_attempts=-3),
            "MaximumAttempts cannot be negative on retry policy.",
        ),
        (
            RetryPolicy(backoff_coefficient=1, non_retryable_error_types=["TemporalTimeout:Unspecified"]),
            "Invalid timeout type value: Unspecified.",
        ),
        (
            RetryPolicy(backoff_coefficient=1, non_retryable_error_types=["TemporalTimeout:unknown"]),
            "Invalid timeout type value: unknown.",
        ),
    ],
)
def test_refusals(bad: RetryPolicy, message: str) -> None:
    with pytest.raises(ServiceError) as caught:
        retry.validate(bad)
    assert (caught.value.code, caught.value.message) == (Code.INVALID_ARGUMENT, message)


intervals = st.one_of(
    st.none(),
    st.builds(Duration, seconds=st.integers(-3, 300), nanos=st.integers(-2, 2)),
    st.just(Duration(seconds=10**11)),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    intervals,
    intervals,
    st.sampled_from([0.0, 0.5, 1.0, 2.0, float("nan")]),
    st.integers(-1, 2),
    st.lists(st.sampled_from(["MyError", "TemporalTimeout:Heartbeat", "TemporalTimeout:nope"]), max_size=1),
)
def test_one_pass_does_what_two_do(
    initial: Duration | None, maximum: Duration | None, coefficient: float, attempts: int, types: list[str]
) -> None:
    def outcome(*steps: Callable[[RetryPolicy], None]) -> tuple[str, bytes]:
        made = RetryPolicy(
            initial_interval=initial,
            maximum_interval=maximum,
            backoff_coefficient=coefficient,
            maximum_attempts=attempts,
            non_retryable_error_types=types,
        )
        try:
            for step in steps:
                step(made)
        except ServiceError as error:
            return error.message, b""
        return "", made.SerializeToString(deterministic=True)

    assert outcome(retry.complete) == outcome(retry.fill_defaults, retry.validate)


def test_accepted() -> None:
    retry.validate(RetryPolicy(maximum_attempts=1, backoff_coefficient=0.5))
    retry.validate(
        RetryPolicy(
            backoff_coefficient=1,
            non_retryable_error_types=[
                "TemporalTimeout:StartToClose",
                "TemporalTimeout:TIMEOUT_TYPE_HEARTBEAT",
                "MyError",
            ],
        )
    )
    huge = RetryPolicy(backoff_coefficient=1, maximum_interval=Duration(seconds=10**11))
    retry.validate(huge)
    assert huge.maximum_interval.seconds == durations.DURATION_SECONDS_MAX
    untouched = RetryPolicy(backoff_coefficient=1)
    retry.validate(untouched)
    assert not untouched.HasField("initial_interval")


@pytest.mark.parametrize(
    ("failure", "excluded", "retried"),
    [
        (None, [], True),
        (Failure(), [], True),
        (Failure(terminated_failure_info=TerminatedFailureInfo()), [], False),
        (Failure(canceled_failure_info=CanceledFailureInfo()), [], False),
        (timeout(TimeoutType.TIMEOUT_TYPE_UNSPECIFIED), [], False),
        (timeout(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START), [], False),
        (timeout(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE), [], False),
        (timeout(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE), [], True),
        (timeout(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE), ["TemporalTimeout:StartToClose"], False),
        (timeout(TimeoutType.TIMEOUT_TYPE_HEARTBEAT), ["TemporalTimeout:StartToClose"], True),
        (timeout(TimeoutType.TIMEOUT_TYPE_HEARTBEAT), ["TemporalTimeout:Heartbeat"], False),
        (Failure(server_failure_info=ServerFailureInfo()), [], True),
        (Failure(server_failure_info=ServerFailureInfo(non_retryable=True)), [], False),
        (application(type="A"), [], True),
        (application(type="A", non_retryable=True), [], False),
        (application(type="A"), ["B"], True),
        (application(type="A"), ["B", "A"], False),
        (
            Failure(
                child_workflow_execution_failure_info=ChildWorkflowExecutionFailureInfo(),
                cause=application(non_retryable=True),
            ),
            [],
            True,
        ),
        (
            Failure(activity_failure_info=ActivityFailureInfo(), cause=application(non_retryable=True)),
            [],
            True,
        ),
    ],
)
def test_which_failures_are_retried(failure: Failure | None, excluded: list[str], retried: bool) -> None:
    assert retry.is_retryable(failure, excluded) is retried


def test_interval_doubles_up_to_the_maximum() -> None:
    found = [retry.next_backoff(policy(), attempt, 0, 0, None) for attempt in (0, 1, 2, 7, 8, 10_000)]
    seconds = [1, 1, 2, 64, 100, 100]
    assert found == [(s * S, retry.IN_PROGRESS) for s in seconds]


def test_the_last_attempt() -> None:
    assert retry.next_backoff(policy(maximum_attempts=2), 1, 0, 0, None) == (S, retry.IN_PROGRESS)
    assert retry.next_backoff(policy(maximum_attempts=2), 2, 0, 0, None) == (
        None,
        retry.MAXIMUM_ATTEMPTS_REACHED,
    )
    assert retry.next_backoff(None, 1, 0, 0, None) == (None, retry.RETRY_POLICY_NOT_SET)


def test_nothing_starts_after_the_expiration() -> None:
    assert retry.next_backoff(policy(), 1, 10 * S, 11 * S, None) == (S, retry.IN_PROGRESS)
    assert retry.next_backoff(policy(), 1, 10 * S, 11 * S - 1, None) == (None, retry.TIMEOUT)


def test_the_failing_code_may_ask_for_a_delay() -> None:
    failure = application(next_retry_delay=Duration(seconds=5))
    assert retry.next_backoff(policy(), 3, 0, 0, failure) == (5 * S, retry.IN_PROGRESS)
    assert retry.next_backoff(policy(), 3, 0, 0, failure, 7 * S) == (7 * S, retry.IN_PROGRESS)
    # The policy's maximum holds for it too, and stands in for a delay of zero.
    assert retry.next_backoff(policy(), 3, 0, 0, None, 700 * S) == (100 * S, retry.IN_PROGRESS)
    assert retry.next_backoff(policy(), 3, 0, 0, None, 0) == (100 * S, retry.IN_PROGRESS)
    never = application(next_retry_delay=Duration(seconds=5), non_retryable=True)
    assert retry.next_backoff(policy(), 3, 0, 0, never) == (None, retry.NON_RETRYABLE_FAILURE)


def test_without_an_interval_there_is_no_retry() -> None:
    assert retry.next_backoff(RetryPolicy(), 1, 0, 0, None) == (None, retry.TIMEOUT)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, INT64_MAX),
    st.one_of(st.floats(1, 1e300), st.just(float("nan")), st.just(float("inf"))),
    st.integers(1, 2**31 - 1),
)
def test_the_interval_stays_in_range(initial_ns: int, coefficient: float, attempt: int) -> None:
    interval = retry.exponential_ns(initial_ns, coefficient, attempt)
    assert 0 <= interval <= INT64_MAX
    limited = RetryPolicy(
        initial_interval=durations.duration(initial_ns),
        backoff_coefficient=coefficient,
        maximum_interval=Duration(seconds=100),
    )
    found, state = retry.next_backoff(limited, attempt, 0, 0, None)
    assert state == retry.IN_PROGRESS
    assert found is not None
    assert 0 < found <= 100 * S


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 10**12), st.floats(1, 10), st.integers(1, 60))
def test_the_interval_never_shrinks(initial_ns: int, coefficient: float, attempt: int) -> None:
    now = retry.exponential_ns(initial_ns, coefficient, attempt)
    assert now <= retry.exponential_ns(initial_ns, coefficient, attempt + 1)


@given(st.integers(-(10**18), 10**18))
def test_nanoseconds_survive_the_wire(value_ns: int) -> None:
    made = durations.duration(value_ns)
    assert durations.to_ns(made) == value_ns == made.ToNanoseconds()
    stamp = Timestamp()
    durations.timestamp_from_ns(value_ns, stamp)
    assert stamp == durations.timestamp(value_ns)
    assert durations.to_ns(stamp) == value_ns == stamp.ToNanoseconds()
    assert 0 <= stamp.nanos < S
