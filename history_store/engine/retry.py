"""Retry policies: their defaults, what makes one invalid, and when (and whether) the next attempt is made.

Pure arithmetic on the public RetryPolicy and Failure messages, the same for activities and for workflows.
Not here: who retries (the state machines), and the attempt counter (they keep it).
"""

from __future__ import annotations

import math
from collections.abc import Container

from temporalio.api.common.v1 import RetryPolicy
from temporalio.api.enums.v1 import RetryState, TimeoutType
from temporalio.api.failure.v1 import Failure

from history_store.engine.durations import (
    DURATION_SECONDS_MAX,
    INT64_MAX,
    NS_PER_SECOND,
    check_and_cap,
    from_ns,
    to_ns,
)
from history_store.engine.errors import invalid

INITIAL_INTERVAL_NS = NS_PER_SECOND
BACKOFF_COEFFICIENT = 2.0
MAXIMUM_INTERVAL_FACTOR = 100  # the default maximum interval, in initial intervals

IN_PROGRESS = int(RetryState.RETRY_STATE_IN_PROGRESS)
NON_RETRYABLE_FAILURE = int(RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE)
TIMEOUT = int(RetryState.RETRY_STATE_TIMEOUT)
MAXIMUM_ATTEMPTS_REACHED = int(RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED)
RETRY_POLICY_NOT_SET = int(RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET)

# Below the cap on durations by so much that it need not be looked at.
_PLAIN_NS_MAX = (DURATION_SECONDS_MAX - 1) * NS_PER_SECOND

# A policy names a timeout it does not want retried as "TemporalTimeout:StartToClose".
TIMEOUT_TYPE_PREFIX = "TemporalTimeout:"
_TIMEOUT_TYPE_NAMES = {
    int(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE): "StartToClose",
    int(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START): "ScheduleToStart",
    int(TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE): "ScheduleToClose",
    int(TimeoutType.TIMEOUT_TYPE_HEARTBEAT): "Heartbeat",
}
_TIMEOUT_TYPE_SPELLINGS = frozenset(
    spelling
    for number, short in _TIMEOUT_TYPE_NAMES.items()
    for spelling in (short, TimeoutType.Name(TimeoutType.ValueType(number)))
)
# Only an attempt that began can be tried again; schedule-to-* timeouts bound all attempts together.
_RETRIED_TIMEOUTS = frozenset(
    {int(TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE), int(TimeoutType.TIMEOUT_TYPE_HEARTBEAT)}
)


def complete(policy: RetryPolicy) -> None:
    """`fill_defaults` and `validate` in one pass: every scheduled activity comes through here."""
    initial, maximum = policy.initial_interval, policy.maximum_interval
    initial_ns = initial.seconds * NS_PER_SECOND + initial.nanos
    if initial_ns == 0:
        initial_ns = INITIAL_INTERVAL_NS
        initial.seconds = 1
        initial.nanos = 0
    maximum_ns = maximum.seconds * NS_PER_SECOND + maximum.nanos
    if maximum_ns == 0:
        maximum_ns = max(-INT64_MAX, min(initial_ns * MAXIMUM_INTERVAL_FACTOR, INT64_MAX))
        from_ns(maximum_ns, maximum)
    coefficient = policy.backoff_coefficient
    if coefficient == 0:
        coefficient = policy.backoff_coefficient = BACKOFF_COEFFICIENT
    # The second half of the condition leaves mixed signs and over-long intervals to the slow, exact way.
    if not (
        0 < initial_ns <= maximum_ns <= _PLAIN_NS_MAX
        and coefficient >= 1
        and policy.maximum_attempts >= 0
        and not policy.non_retryable_error_types
        and initial.nanos >= 0
        and maximum.nanos >= 0
    ):
        validate(policy)


def fill_defaults(policy: RetryPolicy) -> None:
    """Give every unset field its default: 1 s, doubling, at most 100 initial intervals, no last attempt."""
    if to_ns(policy.initial_interval) == 0:
        from_ns(INITIAL_INTERVAL_NS, policy.initial_interval)
    if to_ns(policy.maximum_interval) == 0:
        limit_ns = to_ns(policy.initial_interval) * MAXIMUM_INTERVAL_FACTOR
        from_ns(max(-INT64_MAX, min(limit_ns, INT64_MAX)), policy.maximum_interval)
    if policy.backoff_coefficient == 0:
        policy.backoff_coefficient = BACKOFF_COEFFICIENT


def check_finite(policy: RetryPolicy) -> None:
    """INVALID_ARGUMENT for a coefficient that is no number: a comparison alone lets it pass."""
    if not math.isfinite(policy.backoff_coefficient):
        raise invalid(f"BackoffCoefficient must be finite on retry policy. ({policy.backoff_coefficient})")


def validate(policy: RetryPolicy) -> None:
    """INVALID_ARGUMENT if the policy makes no sense. Over-long intervals are capped in place."""
    check_finite(policy)
    if policy.maximum_attempts == 1:
        return  # no retry at all, so the rest is never read
    problem = check_and_cap(policy.initial_interval) if policy.HasField("initial_interval") else None
    if problem is not None:
        raise invalid(f"invalid InitialInterval set on retry policy: {problem}")
    if policy.backoff_coefficient < 1:
        raise invalid("BackoffCoefficient cannot be less than 1 on retry policy.")
    problem = check_and_cap(policy.maximum_interval) if policy.HasField("maximum_interval") else None
    if problem is not None:
        raise invalid(f"invalid MaximumInterval set on retry policy: {problem}")
    if 0 < to_ns(policy.maximum_interval) < to_ns(policy.initial_interval):
        raise invalid("MaximumInterval cannot be less than InitialInterval on retry policy.")
    if policy.maximum_attempts < 0:
        raise invalid("MaximumAttempts cannot be negative on retry policy.")
    for error_type in policy.non_retryable_error_types:
        if error_type.startswith(TIMEOUT_TYPE_PREFIX):
            name = error_type[len(TIMEOUT_TYPE_PREFIX) :]
            if name not in _TIMEOUT_TYPE_SPELLINGS:
                raise invalid(f"Invalid timeout type value: {name}.")


def is_retryable(failure: Failure | None, non_retryable_types: Container[str]) -> bool:
    """Whether this failure permits another attempt. Wrappers and kinds not named here do."""
    if failure is None:
        return True
    kind = failure.WhichOneof("failure_info")
    if kind == "application_failure_info":
        application = failure.application_failure_info
        return not application.non_retryable and application.type not in non_retryable_types
    if kind == "timeout_failure_info":
        timeout_type = int(failure.timeout_failure_info.timeout_type)
        return (
            timeout_type in _RETRIED_TIMEOUTS
            and TIMEOUT_TYPE_PREFIX + _TIMEOUT_TYPE_NAMES[timeout_type] not in non_retryable_types
        )
    if kind == "server_failure_info":
        return not failure.server_failure_info.non_retryable
    return kind not in ("terminated_failure_info", "canceled_failure_info")


def requested_delay_ns(failure: Failure | None) -> int | None:
    """The delay the failing code asked for before the next attempt; None if it did not."""
    if failure is None or failure.WhichOneof("failure_info") != "application_failure_info":
        return None
    application = failure.application_failure_info
    return to_ns(application.next_retry_delay) if application.HasField("next_retry_delay") else None


def exponential_ns(initial_ns: int, coefficient: float, attempt: int) -> int:
    """The interval after attempt number `attempt` (from 1), never negative, never beyond int64."""
    try:
        interval = float(initial_ns) * math.pow(coefficient, attempt - 1)
    except OverflowError:
        return INT64_MAX
    if math.isnan(interval):
        return 0
    if interval >= INT64_MAX:
        return INT64_MAX
    return max(0, int(interval))


def next_backoff(
    policy: RetryPolicy | None,
    attempt: int,
    now_ns: int,
    expiration_ns: int,
    failure: Failure | None,
    next_retry_delay_ns: int | None = None,
) -> tuple[int | None, int]:
    """How long to wait after failed attempt `attempt` (from 1), or None and the RetryState that says why not.

    `expiration_ns` is the time after which no attempt may start (0: none). `next_retry_delay_ns` replaces the
    computed interval; where it is None the failure's own wish counts. Either way the policy's maximum
    interval holds.
    """
    if policy is None:
        return None, RETRY_POLICY_NOT_SET
    if not is_retryable(failure, policy.non_retryable_error_types):
        return None, NON_RETRYABLE_FAILURE
    attempt = max(attempt, 1)
    if 0 < policy.maximum_attempts <= attempt:
        return None, MAXIMUM_ATTEMPTS_REACHED
    interval_ns = next_retry_delay_ns if next_retry_delay_ns is not None else requested_delay_ns(failure)
    if interval_ns is None:
        interval_ns = exponential_ns(to_ns(policy.initial_interval), policy.backoff_coefficient, attempt)
    maximum_ns = to_ns(policy.maximum_interval)
    if maximum_ns == 0:
        if interval_ns <= 0:
            return None, TIMEOUT
    elif interval_ns <= 0 or interval_ns > maximum_ns:
        interval_ns = maximum_ns
    if expiration_ns != 0 and now_ns + interval_ns > expiration_ns:
        return None, TIMEOUT
    return interval_ns, IN_PROGRESS
