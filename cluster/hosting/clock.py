"""The one real clock, and identifiers made from it."""

from __future__ import annotations

import random
import time


class Clock:
    """Wall time that never runs backwards within the process (matching and timers rely on that)."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now_ns(self) -> int:
        """Nanoseconds since the epoch."""
        now = time.time_ns()
        if now < self._last:
            now = self._last
        self._last = now
        return now


class Identifiers:
    """UUIDs of version 7 (RFC 9562): time-ordered, so that rows of runs born together lie together."""

    __slots__ = ("_clock", "_draw")

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._draw = rng.getrandbits

    def new(self) -> str:
        """A fresh identifier in canonical form."""
        millis = self._clock.now_ns() // 1_000_000
        bits = self._draw(74)
        value = (
            (millis & 0xFFFFFFFFFFFF) << 80
            | 0x7 << 76
            | (bits >> 62) << 64
            | 0x2 << 62
            | bits & 0x3FFFFFFFFFFFFFFF
        )
        text = f"{value:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
