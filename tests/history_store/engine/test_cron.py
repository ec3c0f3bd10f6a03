"""Cron: the notation, the search (against a search minute by minute), clock changes, and backoffs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from history_store.engine import cron
from history_store.engine.durations import NS_PER_SECOND
from history_store.engine.errors import Code, ServiceError


def ns(text: str, zone: str = "UTC", fold: int = 0) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(moment.timestamp()) * NS_PER_SECOND


def next_text(expression: str, start: str, zone: str = "UTC") -> str:
    start_ns = ns(start, zone)
    due = (start_ns + cron.first_backoff(expression, start_ns)) // NS_PER_SECOND
    return datetime.fromtimestamp(due, ZoneInfo(zone)).replace(tzinfo=None).isoformat(" ", "minutes")


@pytest.mark.parametrize(
    ("expression", "start", "due"),
    [
        ("0/15 * * * *", "2012-07-09 14:45", "2012-07-09 15:00"),
        ("0/15 * * * *", "2012-07-09 14:59", "2012-07-09 15:00"),
        ("20-35/15 * * * *", "2012-07-09 15:45", "2012-07-09 16:20"),
        ("*/15 * * * *", "2012-12-31 23:46", "2013-01-01 00:00"),
        ("30 08 ? Jul Sun", "2012-07-15 08:30", "2012-07-22 08:30"),
        ("30 08 15 Jul ?", "2012-07-15 08:30", "2013-07-15 08:30"),
        ("30 08 15 jul,AUG ?", "2012-07-15 08:30", "2012-08-15 08:30"),
        # Both day fields restricted: either matches; a star (not a step over a star) makes it both.
        ("* * 1,15 * Sun", "2012-07-14 23:59", "2012-07-15 00:00"),
        ("0 0 13 * Fri", "2024-09-01 00:00", "2024-09-06 00:00"),
        ("0 0 */10 * Sun", "2024-09-01 00:00", "2024-09-08 00:00"),
        ("0 0 * * 1-5", "2024-09-06 12:00", "2024-09-09 00:00"),
        ("0 0 29 2 *", "2021-03-01 00:00", "2024-02-29 00:00"),
        ("1,,3 0 * * *", "2024-09-06 00:01", "2024-09-06 00:03"),
        ("58/1 * * * *", "2024-09-06 00:59", "2024-09-06 01:58"),
        ("@hourly", "2012-07-09 15:45", "2012-07-09 16:00"),
        ("@daily", "2012-07-09 15:45", "2012-07-10 00:00"),
        ("@midnight", "2012-07-09 15:45", "2012-07-10 00:00"),
        ("@weekly", "2012-07-09 15:45", "2012-07-15 00:00"),
        ("@monthly", "2012-07-09 15:45", "2012-08-01 00:00"),
        ("@yearly", "2012-07-09 15:45", "2013-01-01 00:00"),
        ("@annually", "2012-07-09 15:45", "2013-01-01 00:00"),
        ("@every 1h30m", "2012-07-09 15:45", "2012-07-09 17:15"),
        ("CRON_TZ=America/New_York 0 9 * * *", "2024-07-01 00:00", "2024-07-01 13:00"),
        ("TZ=Asia/Tokyo 0 9 * * *", "2024-07-01 00:30", "2024-07-02 00:00"),
        ("CRON_TZ=UTC   @daily", "2012-07-09 15:45", "2012-07-10 00:00"),
    ],
)
def test_next_time(expression: str, start: str, due: str) -> None:
    cron.validate(expression)
    assert next_text(expression, start) == due


@pytest.mark.parametrize(
    ("expression", "start", "due"),
    [
        # Spring forward on 2012-03-11: 02:30 does not exist, so that day has no run.
        ("30 2 11 Mar ?", "2012-03-11 00:00", "2013-03-11 02:30"),
        ("0 * * * *", "2012-03-11 01:00", "2012-03-11 03:00"),
        ("0 1 * * *", "2012-03-11 01:00", "2012-03-12 01:00"),
        ("0 3 * * *", "2012-03-11 00:00", "2012-03-11 03:00"),
        # Fall back on 2012-11-04.
        ("30 2 04 Nov ?", "2012-11-04 00:00", "2012-11-04 02:30"),
        ("45 1 04 Nov ?", "2012-11-04 01:30", "2012-11-04 01:45"),
    ],
)
def test_daylight_saving(expression: str, start: str, due: str) -> None:
    assert next_text(f"CRON_TZ=America/New_York {expression}", start, "America/New_York") == due


def test_an_hour_that_occurs_twice_runs_twice() -> None:
    expression = "CRON_TZ=America/New_York 0 1 * * *"
    first = ns("2012-11-04 01:00", "America/New_York")
    assert cron.first_backoff(expression, first) == 3600 * NS_PER_SECOND
    second = ns("2012-11-04 01:00", "America/New_York", fold=1)
    assert cron.first_backoff(expression, second) == 24 * 3600 * NS_PER_SECOND


def test_a_midnight_that_does_not_exist() -> None:
    # Sao Paulo skipped midnight on 2018-11-04: the search by days must not drift to the hour after it.
    expression = "CRON_TZ=America/Sao_Paulo 0 9 5 11 ?"
    assert next_text(expression, "2018-11-03 12:00", "America/Sao_Paulo") == "2018-11-05 09:00"


@pytest.mark.parametrize(
    "expression",
    [
        "x", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *",
        "* * * 13 *", "* * * * 7", "5-3 * * * *", "1-2-3 * * * *", "*/0 * * * *", "1/2/3 * * * *",
        "*/-1 * * * *", "-1 * * * *", "1_0 * * * *", "\u0661 * * * *", "* * * foo *", "* * * * * mon",
        "@nope", "@Daily", " @daily", "@daily ", "@every", "@every ", "@every 5", "@every 5x",
        "@every 1h 2m", "CRON_TZ=Nowhere/Else * * * * *", "CRON_TZ=UTC", "TZ=../../etc/passwd * * * * *",
        "TZ=America * * * * *",
    ],
)  # fmt: skip
def test_malformed(expression: str) -> None:
    with pytest.raises(ServiceError) as caught:
        cron.validate(expression)
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == f"invalid CronSchedule. ({expression!r} is no cron expression)"
    assert cron.next_backoff(expression, 0, 0) is None


@pytest.mark.parametrize(
    "expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", ", * * * *", "* , * * *", "* * * , *", "0 0 , * *"]
)
def test_never(expression: str) -> None:
    with pytest.raises(ServiceError, match="no time can be found to satisfy the schedule"):
        cron.validate(expression)
    assert cron.first_backoff(expression, 0) == 0
    assert cron.next_backoff(expression, 0, 0) is None


def test_no_schedule() -> None:
    cron.validate("")
    assert cron.first_backoff("", 5) == 0
    assert cron.next_backoff("", 0, 5) is None


@pytest.mark.parametrize(
    ("interval", "seconds"),
    [("1h", 3600), ("5m30s", 330), ("2s", 2), ("1.9s", 1), ("500ms", 1), ("-5h", 1), ("0", 1), (".5h", 1800),
     ("+90s", 90), ("1500000µs", 1)],
)  # fmt: skip
def test_every_interval(interval: str, seconds: int) -> None:
    assert cron.first_backoff(f"@every {interval}", 0) == seconds * NS_PER_SECOND


@pytest.mark.parametrize(
    ("expression", "start_s", "close_s", "backoff_s"),
    [
        ("@every 5s", 0, 0, 5),
        ("@every 5s", 0, 1, 4),
        ("@every 5s", 0, 5, 0),  # due exactly when the last run closed: at once
        ("@every 5s", 0, 5.5, 5),  # 4.5 s, rounded up
        ("@every 5s", 2.5, 1, 2),  # closed before it was due: the due time itself stands
        ("@every 5s", 0, 60, 0),
        ("@every 5s", 0, 61, 4),
        ("* * * * *", 0, 0, 60),
        ("* * * * *", 0, 59.5, 1),
        ("* * * * *", 0, 60, 0),
        ("* * * * *", 0, 3600 * 24 * 365 + 1, 59),
    ],
)
def test_backoff_skips_what_the_run_outlived(
    expression: str, start_s: float, close_s: float, backoff_s: int
) -> None:
    start_ns, close_ns = int(start_s * NS_PER_SECOND), int(close_s * NS_PER_SECOND)
    assert cron.next_backoff(expression, start_ns, close_ns) == backoff_s * NS_PER_SECOND


def field(low: int, high: int) -> st.SearchStrategy[tuple[str, frozenset[int]]]:
    """A field's text and what it means."""
    number = st.integers(low, high)

    def between(pair: tuple[int, int], step: int) -> tuple[str, frozenset[int]]:
        first, last = sorted(pair)
        return f"{first}-{last}/{step}", frozenset(range(first, last + 1, step))

    one = st.one_of(
        number.map(lambda value: (str(value), frozenset({value}))),
        st.builds(between, st.tuples(number, number), st.integers(1, 5)),
    )
    listed = st.lists(one, min_size=1, max_size=3).map(
        lambda items: (
            ",".join(text for text, _ in items),
            frozenset().union(*(values for _, values in items)),
        )
    )
    return st.one_of(st.just(("*", frozenset(range(low, high + 1)))), listed)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    field(0, 59),
    field(0, 23),
    field(1, 31),
    field(0, 6),
    st.integers(1_500_000_000, 1_900_000_000),
)
def test_agrees_with_a_search_minute_by_minute(
    minutes: tuple[str, frozenset[int]],
    hours: tuple[str, frozenset[int]],
    days: tuple[str, frozenset[int]],
    weekdays: tuple[str, frozenset[int]],
    start: int,
) -> None:
    expression = f"{minutes[0]} {hours[0]} {days[0]} * {weekdays[0]}"
    found = cron.next_backoff(expression, start * NS_PER_SECOND, start * NS_PER_SECOND)
    moment = datetime.fromtimestamp(start - start % 60, UTC)
    for _ in range(70 * 24 * 60):  # the 31st is at most 62 days away
        moment += timedelta(minutes=1)
        by_day, by_weekday = moment.day in days[1], moment.isoweekday() % 7 in weekdays[1]
        either = days[0] != "*" and weekdays[0] != "*"
        if (
            moment.minute in minutes[1]
            and moment.hour in hours[1]
            and ((by_day or by_weekday) if either else (by_day and by_weekday))
        ):
            assert found is not None
            assert start + found // NS_PER_SECOND == int(moment.timestamp())
            return
    # "31 and Friday" may be further off than we care to search; it must not be nearer.
    assert found is None or found > 69 * 24 * 3600 * NS_PER_SECOND


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(["UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu"]),
    st.sampled_from(
        ["* * * * *", "30 2 * * *", "0 0 * * 0", "15 1 1 * *", "*/7 3-5 * 3,10,11 *", "@every 13m"]
    ),
    st.integers(1_300_000_000, 1_900_000_000),
    st.integers(0, 10**9 - 1),
    st.integers(0, 3 * 86400 * 10**9),
)
def test_backoff_is_never_early_and_never_negative(
    zone: str, expression: str, start: int, nanos: int, ran_ns: int
) -> None:
    start_ns = start * NS_PER_SECOND + nanos
    close_ns = start_ns + ran_ns
    full = expression if expression.startswith("@") else f"CRON_TZ={zone} {expression}"
    backoff = cron.next_backoff(full, start_ns, close_ns)
    assert backoff is not None
    assert backoff >= 0
    assert backoff % NS_PER_SECOND == 0
    if not expression.startswith("@"):
        due = datetime.fromtimestamp((close_ns + backoff) // NS_PER_SECOND, ZoneInfo(zone))
        fields = expression.split()
        assert fields[0] in (str(due.minute), "*", "*/7")
