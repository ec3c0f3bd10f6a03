"""The values behind the words: how a date, a duration, a double or a text becomes what the projection stores.

The projection stores only 64-bit integers and strings, so that every comparison is exact wherever it is
made (in an index, in JSON, in Python): a date is nanoseconds since the epoch, a double is an integer that
sorts as the double does, a text is its words. Filters and records go through the same functions, so they
cannot disagree.
"""

from __future__ import annotations

import datetime
import re
import struct
import unicodedata

INT64_MIN = -(1 << 63)
INT64_MAX = (1 << 63) - 1

_EPOCH_DAY = datetime.date(1970, 1, 1).toordinal()
_SECOND = 1_000_000_000
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:Z|([+-])(\d\d):(\d\d))", re.ASCII
)
_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # micro sign U+00B5
    "μs": 1_000,
    "ms": 1_000_000,
    "s": _SECOND,
    "m": 60 * _SECOND,
    "h": 3_600 * _SECOND,
    "d": 86_400 * _SECOND,
}
_DURATION_PART = re.compile(r"(\d*)(?:\.(\d*))?(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)
_CLOCK = re.compile(r"(\d{1,9}):(\d{1,2}):(\d{1,2})", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_WORD = re.compile(r"[^\W_]+")


def clamp(number: int) -> int:
    """The nearest number a 64-bit column can hold."""
    return INT64_MIN if number < INT64_MIN else min(number, INT64_MAX)


def parse_datetime(text: str) -> int:
    """Nanoseconds since the epoch of an RFC 3339 date; a date no int64 can hold becomes the nearest that can.

    ValueError if it is not one.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(text)
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    fraction, sign, offset_hours, offset_minutes = match.group(7, 8, 9, 10)
    if hour > 23 or minute > 59 or second > 59:
        raise ValueError(text)
    days = datetime.date(year or 1, month, day).toordinal() - _EPOCH_DAY
    seconds = days * 86_400 + hour * 3_600 + minute * 60 + second
    if sign is not None:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            raise ValueError(text)
        offset = int(offset_hours) * 3_600 + int(offset_minutes) * 60
        seconds -= offset if sign == "+" else -offset
    nanoseconds = int(fraction[:9].ljust(9, "0")) if fraction else 0
    return clamp(seconds * _SECOND + nanoseconds)


def parse_duration(text: str) -> int:
    """Nanoseconds of "300ms", "-1.5h", "2h45m", "1d", "01:02:03" or a plain number of nanoseconds.

    ValueError if it is none of them or does not fit 64 bits.
    """
    if _INTEGER.fullmatch(text):
        return _fitting(int(text), text)
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = map(int, clock.groups())
        if minutes > 59 or seconds > 59:
            raise ValueError(text)
        return _fitting((hours * 3_600 + minutes * 60 + seconds) * _SECOND, text)
    negative = text.startswith("-")
    rest = text[1:] if text[:1] in ("-", "+") else text
    if not rest or len(rest) > 200:
        raise ValueError(text)
    total = 0
    position = 0
    while position < len(rest):
        part = _DURATION_PART.match(rest, position)
        if part is None or not (part.group(1) or part.group(2)):
            raise ValueError(text)
        unit = _UNITS[part.group(3)]
        total += int(part.group(1) or 0) * unit
        if fraction := part.group(2):
            total += int(fraction) * unit // 10 ** len(fraction)
        position = part.end()
    return _fitting(-total if negative else total, text)


def _fitting(number: int, text: str) -> int:
    if not INT64_MIN <= number <= INT64_MAX:
        raise ValueError(text)
    return number


def sortable_double(number: float) -> int:
    """An integer that compares with its likes as the double does (infinities included; not NaN)."""
    bits: int = struct.unpack(">q", struct.pack(">d", number + 0.0))[0]  # + 0.0 turns -0.0 into 0.0
    return bits if bits >= 0 else bits ^ INT64_MAX


def storable_text(text: str) -> str:
    """The text as SQLite can index it and give it back: no NUL, no half surrogate (both become U+FFFD)."""
    if "\0" in text:
        text = text.replace("\0", "\ufffd")
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def words(text: str) -> list[str]:
    """The distinct words of a text, folded (no case, no diacritics), in order of appearance."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return list(dict.fromkeys(_WORD.findall(text.casefold())))
