"""What a judge may say."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Only `ok` is a pass."""

    OK = "ok"
    BROKEN = "broken"
    UNKNOWN = "unknown"
