"""Which stretches of the default order can hold what a query asks for.

Theory of operation. The default order goes by one integer, the order key (see `projection`): the close time
of what is closed, the start time plus an offset of what is open. Conditions on close time and status are
ranges of it. A condition on the start time is one for open executions only: a closed one may have started
long before it closed. But nearly all closed executions took no longer than REGULAR_NS, and for those a range
of start times is a range of close times that ends REGULAR_NS later. The few others, the irregular ones, have
an index of their own. So a page of `StartTime < x` is read from up to four stretches, one behind the other:

    open ones that started in range | irregular ones that closed after it | all that closed in it, or
    REGULAR_NS later | irregular ones that closed before it (clocks differ)

Every stretch is a range of one index, and no execution is in two. The conditions themselves are tested all
the same; the stretches only leave out what cannot fulfil them. Without them `StartTime < x` would look at
every execution since x.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from history_store.visibility.projection import OPEN_BASE, REGULAR_NS
from history_store.visibility.resolve import Leaf, Meaning

_CLOSED_MAX = OPEN_BASE - 1
KEY_MAX = 2 * OPEN_BASE - 1
OPEN_STATUSES = (1, 8)  # Running, Paused: exactly those without a close time


@dataclass(frozen=True, slots=True)
class Span:
    """A range of order keys, ends included."""

    low: int = 0
    high: int = KEY_MAX

    def __bool__(self) -> bool:
        return self.low <= self.high

    def __and__(self, other: Span) -> Span:
        return Span(max(self.low, other.low), min(self.high, other.high))


OPEN = Span(OPEN_BASE, KEY_MAX)
CLOSED = Span(0, _CLOSED_MAX)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the default order that has to be read."""

    span: Span
    irregular: bool = False  # only the irregular ones are wanted


def of_leaf(leaf: Meaning) -> tuple[Span, bool] | None:
    """The order keys a condition leaves, and whether that says all that it says."""
    if not isinstance(leaf, Leaf):
        return None
    if leaf.field.column == "close_time":
        return _close_time(leaf)
    if leaf.field.column == "status" and leaf.operator in ("=", "in"):
        if all(value in OPEN_STATUSES for value in leaf.values):
            return OPEN, False
        if not any(value in OPEN_STATUSES for value in leaf.values):
            return CLOSED, False
    return None


def whole(parts: Sequence[Meaning], last: int) -> Span:
    """The order keys of the rows that fulfil all parts and do not come before `last`."""
    span = Span(0, last)
    for part in parts:
        if (found := of_leaf(part)) is not None:
            span &= found[0]
    return span


def stretches(parts: Sequence[Meaning], last: int) -> list[Stretch]:
    """What has to be read of an index in the default order for the rows that `whole` is about."""
    span = whole(parts, last)
    earliest = latest = None  # start times
    for part in parts:
        if isinstance(part, Leaf) and part.field.column == "start_time":
            low, high = _range(part)
            earliest = low if earliest is None else earliest if low is None else max(earliest, low)
            latest = high if latest is None else latest if high is None else min(latest, high)
    if earliest is None and latest is None:
        return [Stretch(span)]
    started = Span(
        OPEN.low if earliest is None else OPEN_BASE + _cut(earliest),
        OPEN.high if latest is None else OPEN_BASE + _cut(latest),
    )
    low = 0 if earliest is None else _cut(earliest)
    high = _CLOSED_MAX if latest is None else _cut(latest + REGULAR_NS)
    found_in = (
        Stretch(started),
        Stretch(Span(high + 1, _CLOSED_MAX), irregular=True),
        Stretch(Span(low, high)),
        Stretch(Span(0, low - 1), irregular=True),
    )
    return [Stretch(cut, part.irregular) for part in found_in if (cut := part.span & span)]


def _cut(time: int) -> int:
    """A time as an order key has it (`projection.order_key`)."""
    return min(max(time, 0), _CLOSED_MAX)


def _close_time(leaf: Leaf) -> tuple[Span, bool] | None:
    """Order keys of closed executions are their close times, cut to the range of order keys."""
    if leaf.operator == "null":
        return OPEN, True
    if leaf.operator == "not null":
        return CLOSED, True
    if leaf.operator not in ("=", "<", "<=", ">", ">=", "between"):
        return None
    low, high = _range(leaf)
    ends = [_cut(end) for end in (low, high) if end is not None]
    exact = bool(ends) and all(0 < end < _CLOSED_MAX for end in ends)  # else: what was cut is there, too
    return Span(0 if low is None else _cut(low), _CLOSED_MAX if high is None else _cut(high)), exact


def _range(leaf: Leaf) -> tuple[int | None, int | None]:
    """The values that a condition on an integer leaves, ends included; None = no end."""
    values = [value for value in leaf.values if isinstance(value, int)]
    match leaf.operator, values:
        case "=", [value]:
            return value, value
        case "<", [value]:
            return None, value - 1
        case "<=", [value]:
            return None, value
        case ">", [value]:
            return value + 1, None
        case ">=", [value]:
            return value, None
        case "between", [first, second]:
            return first, second
        case _:
            return None, None
