"""Cron schedules of workflows: when the next run begins.

The notation is the five-field standard one (minute, hour, day of month, month, day of week) with lists,
ranges, steps and English names; `?` is `*`; `@hourly` and its kin; `@every 1h30m`; and a leading
`CRON_TZ=Zone` (or `TZ=Zone`), UTC without it. When both day fields are restricted a day matches if either
does.

The search walks wall-clock time field by field, coarse to fine, as the Go library behind Temporal does,
because workflows observe its choices around changes of daylight saving time: a run whose wall-clock time is
skipped in spring does not happen that day, and an hour that occurs twice in autumn runs twice.

Everything here is a pure function; time zones are data (zoneinfo).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from history_store.engine.durations import INT64_MAX, NS_PER_HOUR, NS_PER_MINUTE, NS_PER_SECOND
from history_store.engine.errors import invalid

# An expression that finds no time in this many years ("30 February") is taken to have none.
SEARCH_YEARS_MAX = 5
# Where `validate` starts to search if it is not told the time: any moment does, for all but leap-day
# expressions in 2096..2103.
_VALIDATE_FROM_NS = 1_704_067_200 * NS_PER_SECOND

_MONTHS = {
    "jan": 1,
    "feb": 2,
    "mar": 3,
    "apr": 4,
    "may": 5,
    "jun": 6,
    "jul": 7,
    "aug": 8,
    "sep": 9,
    "oct": 10,
    "nov": 11,
    "dec": 12,
}
_WEEKDAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_NO_NAMES: Mapping[str, int] = {}
_NUMBER = re.compile(r"\+?[0-9]{1,9}", re.ASCII)
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": 1_000_000,
    "s": NS_PER_SECOND,
    "m": NS_PER_MINUTE,
    "h": NS_PER_HOUR,
}
_DESCRIPTORS: Final = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True, slots=True)
class Fields:
    """A parsed five-field expression. `any_*` says that the field was (or contained) a star."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    any_day: bool
    any_weekday: bool
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Every:
    """A constant interval, a whole number of seconds, at least one."""

    interval_ns: int


SHOWN_MAX = 100  # characters of an expression that an error repeats


class _Malformed(ValueError):
    """The text is no cron expression."""


def validate(expression: str, now_ns: int = _VALIDATE_FROM_NS) -> None:
    """INVALID_ARGUMENT if the expression is malformed or never comes true. Empty means no cron: good."""
    if not expression:
        return
    schedule = _parse(expression)
    if schedule is None:
        raise invalid(f"invalid CronSchedule. ({expression[:SHOWN_MAX]!r} is no cron expression)")
    if isinstance(schedule, Fields) and _next_second(schedule, now_ns // NS_PER_SECOND) is None:
        raise invalid("invalid CronSchedule, no time can be found to satisfy the schedule")


def first_backoff(expression: str, start_time_ns: int) -> int:
    """Nanoseconds from a start until the first run: whole seconds, rounded up; 0 without an expression."""
    backoff = next_backoff(expression, start_time_ns, start_time_ns)
    return max(0, backoff) if backoff is not None else 0


def next_backoff(expression: str, start_ns: int, close_ns: int) -> int | None:
    """Nanoseconds from the close of a run until the next one begins; None if there is none.

    `start_ns` is when the closed run was due (its start plus its own backoff): schedule times it outlived are
    skipped, and `@every` counts from it. The result is rounded up to whole seconds, so a run may begin up to
    a second late and never early.
    """
    schedule = _parse(expression) if expression else None
    if schedule is None:
        return None
    if close_ns < start_ns:
        due_ns: int | None = start_ns
    elif isinstance(schedule, Every):
        anchor_ns = start_ns - start_ns % NS_PER_SECOND
        steps = max(1, -(-(close_ns - anchor_ns) // schedule.interval_ns))
        due_ns = anchor_ns + steps * schedule.interval_ns
    else:
        # The first match at or after the close, and after the start.
        after = max(start_ns // NS_PER_SECOND, -(-close_ns // NS_PER_SECOND) - 1)
        second = _next_second(schedule, after)
        due_ns = None if second is None else second * NS_PER_SECOND
    if due_ns is None:
        return None
    return -(-(due_ns - close_ns) // NS_PER_SECOND) * NS_PER_SECOND


# ------------------------------------------------------------------------------------------------- parsing


@lru_cache(maxsize=1024)
def _parse(expression: str) -> Fields | Every | None:
    """The schedule, or None if the expression is malformed."""
    try:
        zone, text = _split_zone(expression)
        if text.startswith("@"):
            if text.startswith("@every "):
                return Every(_parse_interval(text[len("@every ") :]))
            if text not in _DESCRIPTORS:
                return None
            text = _DESCRIPTORS[text]
        return _parse_fields(text, zone)
    except _Malformed:
        return None


def _split_zone(expression: str) -> tuple[tzinfo, str]:
    if not expression.startswith(("TZ=", "CRON_TZ=")):
        return UTC, expression
    head, space, rest = expression.partition(" ")
    if not space:
        raise _Malformed("a time zone and nothing else")
    name = head.partition("=")[2]
    if name in ("", "UTC", "Local"):
        return UTC, rest.strip()
    try:
        return ZoneInfo(name), rest.strip()
    except (KeyError, ValueError, OSError):  # unknown, unsafe (a path), or a directory of the database
        raise _Malformed(name) from None


def _parse_fields(text: str, zone: tzinfo) -> Fields:
    parts = text.split()
    if len(parts) != 5:
        raise _Malformed(text)
    minutes, _ = _parse_field(parts[0], 0, 59, _NO_NAMES)
    hours, _ = _parse_field(parts[1], 0, 23, _NO_NAMES)
    days, any_day = _parse_field(parts[2], 1, 31, _NO_NAMES)
    months, _ = _parse_field(parts[3], 1, 12, _MONTHS)
    weekdays, any_weekday = _parse_field(parts[4], 0, 6, _WEEKDAYS)
    return Fields(minutes, hours, days, months, weekdays, any_day, any_weekday, zone)


def _parse_field(text: str, low: int, high: int, names: Mapping[str, int]) -> tuple[frozenset[int], bool]:
    """The values of a comma-separated list of ranges, and whether one of them is a plain star."""
    values: set[int] = set()
    star = False
    for item in text.split(","):
        if not item:
            continue  # "1,,2" and a trailing comma are accepted
        members, is_star = _parse_range(item, low, high, names)
        values.update(members)
        star = star or is_star
    return frozenset(values), star


def _parse_range(item: str, low: int, high: int, names: Mapping[str, int]) -> tuple[range, bool]:
    """number | number-number | * | ?, with an optional /step; "N/step" runs from N to the end."""
    bounds_text, *steps = item.split("/")
    bounds = bounds_text.split("-")
    star = bounds[0] in ("*", "?")
    if star:
        first, last = low, high
    elif len(bounds) > 2:
        raise _Malformed(item)
    else:
        first = _parse_value(bounds[0], names)
        last = _parse_value(bounds[1], names) if len(bounds) == 2 else first
    step = 1
    if len(steps) > 1:
        raise _Malformed(item)
    if steps:
        step = _parse_value(steps[0], _NO_NAMES)
        if len(bounds) == 1:
            last = high
        if step > 1:
            star = False  # "*/2" restricts the field, which matters where the two day fields meet
    if first < low or last > high or first > last or step == 0:
        raise _Malformed(item)
    return range(first, last + 1, step), star


def _parse_value(text: str, names: Mapping[str, int]) -> int:
    named = names.get(text.lower())
    if named is not None:
        return named
    if _NUMBER.fullmatch(text) is None:
        raise _Malformed(text)
    return int(text)


def _parse_interval(text: str) -> int:
    """A Go duration such as 1h30m or 90.5s, cut to whole seconds and at least one."""
    negative = text.startswith("-")
    body = text[1:] if text.startswith(("-", "+")) else text
    if body == "0":
        return NS_PER_SECOND
    total_ns = 0
    position = 0
    while position < len(body):
        part = _DURATION_PART.match(body, position)
        if part is None:
            raise _Malformed(text)
        whole, _, decimals = part[1].partition(".")
        unit_ns = _DURATION_UNITS_NS[part[2]]
        total_ns += int(whole or "0") * unit_ns
        if decimals:
            total_ns += int(decimals) * unit_ns // 10 ** len(decimals)
        position = part.end()
        if total_ns > INT64_MAX:
            raise _Malformed(text)
    if position == 0:
        raise _Malformed(text)
    if negative:
        total_ns = 0
    return max(NS_PER_SECOND, total_ns - total_ns % NS_PER_SECOND)


# -------------------------------------------------------------------------------------------------- search


def _next_second(fields: Fields, after: int) -> int | None:
    """The first matching Unix second later than `after`; None if no year in reach has one.

    Each step settles one field, coarse to fine; all start over when one overflows into a coarser one.
    """
    if not (fields.minutes and fields.hours and fields.months):
        return None  # a field of commas only; without this the search would try every minute of five years
    search = _Search(fields, after + 1)
    year_max = search.local().year + SEARCH_YEARS_MAX
    while search.local().year <= year_max:
        if search.settle_month() and search.settle_day() and search.settle_hour() and search.settle_minute():
            return search.second
    return None


class _Search:
    """A moment that moves forward until it matches."""

    def __init__(self, fields: Fields, second: int) -> None:
        self.fields = fields
        self.second = second
        # Whether the fields finer than a rejected one have been zeroed; done once, by the first rejection.
        self.aligned = False

    def local(self) -> datetime:
        """The wall clock in the schedule's zone."""
        return datetime.fromtimestamp(self.second, self.fields.zone)

    def settle_month(self) -> bool:
        """Move to a matching month; False if the year turned on the way."""
        now = self.local()
        while now.month not in self.fields.months:
            if not self.aligned:
                self.aligned = True
                now = self._move(now.year, now.month, 1, 0)
            month_index = now.year * 12 + now.month  # that of the next month, from 0
            now = self._move(month_index // 12, month_index % 12 + 1, now.day, now.hour)
            if now.month == 1:
                return False
        return True

    def settle_day(self) -> bool:
        """Move to a matching day; False if the month turned on the way."""
        now = self.local()
        while not self._day_matches(now):
            if not self.aligned:
                self.aligned = True
                now = self._move(now.year, now.month, now.day, 0)
            following = now.date() + timedelta(days=1)
            now = self._move(following.year, following.month, following.day, now.hour)
            if now.hour != 0:
                # Midnight does not exist on this day in this zone: go to the nearest edge of a day.
                self.second += (24 - now.hour if now.hour > 12 else -now.hour) * 3600
                now = self.local()
            if now.day == 1:
                return False
        return True

    def settle_hour(self) -> bool:
        """Move to a matching hour; False if the day turned on the way."""
        now = self.local()
        while now.hour not in self.fields.hours:
            if not self.aligned:
                self.aligned = True
                now = self._move(now.year, now.month, now.day, now.hour)
            self.second += 3600
            now = self.local()
            if now.hour == 0:
                return False
        return True

    def settle_minute(self) -> bool:
        """Move to second 0 of a matching minute; False if the hour turned on the way."""
        while True:
            now = self.local()
            if now.minute in self.fields.minutes and now.second == 0:
                return True
            self.aligned = True
            self.second += 60 - now.second
            if self.local().minute == 0:
                return False

    def _day_matches(self, now: datetime) -> bool:
        fields = self.fields
        day = now.day in fields.days
        weekday = now.isoweekday() % 7 in fields.weekdays
        return (day and weekday) if fields.any_day or fields.any_weekday else (day or weekday)

    def _move(self, year: int, month: int, day: int, hour: int) -> datetime:
        """Go to a wall-clock time; one that a clock change skips becomes a moment near it."""
        wall = (date(year, month, day).toordinal() - _EPOCH_ORDINAL) * 86400 + hour * 3600
        offset = self._offset(wall)
        if offset != 0:
            offset = self._offset(wall - offset)
        self.second = wall - offset
        return self.local()

    def _offset(self, second: int) -> int:
        shift = datetime.fromtimestamp(second, self.fields.zone).utcoffset()
        assert shift is not None, "every zone has an offset"
        return int(shift.total_seconds())


_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()
