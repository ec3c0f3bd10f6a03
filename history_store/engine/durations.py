"""Durations and timestamps: protobuf's seconds and nanos to integer nanoseconds and back.

The engine counts in int nanoseconds, times since the epoch.
"""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND
NS_PER_HOUR = 60 * NS_PER_MINUTE
INT64_MAX = (1 << 63) - 1

# Longer durations are cut to 100 years of 365 days, Temporal's cap: every deadline then stays a date that
# any reader of the history can represent.
DURATION_SECONDS_MAX = 100 * 365 * 24 * 3600


def to_ns(value: Duration | Timestamp) -> int:
    """Nanoseconds of a duration, or since the epoch of a timestamp; an unset one is 0."""
    return value.seconds * NS_PER_SECOND + value.nanos


def from_ns(ns: int, into: Duration) -> None:
    """Write a duration. A negative one has both fields negative, as protobuf demands."""
    if ns >= 0:
        into.seconds, into.nanos = divmod(ns, NS_PER_SECOND)
    else:
        seconds, nanos = divmod(-ns, NS_PER_SECOND)
        into.seconds = -seconds
        into.nanos = -nanos


def timestamp_from_ns(ns: int, into: Timestamp) -> None:
    """Write a timestamp. Its nanos count forward even before the epoch."""
    into.seconds, into.nanos = divmod(ns, NS_PER_SECOND)


def duration(ns: int) -> Duration:
    """A new duration."""
    made = Duration()
    from_ns(ns, made)
    return made


def timestamp(ns: int) -> Timestamp:
    """A new timestamp."""
    seconds, nanos = divmod(ns, NS_PER_SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def check_and_cap(value: Duration) -> str | None:
    """What is wrong with a duration that must not be negative, or None; a too long one is cut in place."""
    seconds = value.seconds
    nanos = value.nanos
    if (seconds > 0 and nanos < 0) or (seconds < 0 and nanos > 0):
        return "duration has seconds and nanos with different signs"
    if seconds < 0 or nanos < 0:
        return "negative duration"
    if seconds >= DURATION_SECONDS_MAX:
        value.seconds = DURATION_SECONDS_MAX
        value.nanos = 0
    return None
