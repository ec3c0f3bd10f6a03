"""A set of keys kept in order: cheap to add to, cheap to cut a range from, whatever the mix.

Keys live in buckets of at most `_BUCKET_KEYS_MAX`; finding a bucket and a place in it are two bisections, and
an insertion moves at most one bucket's pointers. That keeps an insertion near a microsecond at a million
keys, where one long list would move megabytes.
Invariant: no bucket is empty, and `_firsts[i] == _buckets[i][0]`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort

_BUCKET_KEYS_MAX = 1024


class OrderedKeys:
    """The keys, ascending."""

    def __init__(self) -> None:
        self._buckets: list[list[bytes]] = []
        self._firsts: list[bytes] = []

    def add(self, key: bytes) -> None:
        """Add a key that is not there yet."""
        if not self._buckets:
            self._buckets.append([key])
            self._firsts.append(key)
            return
        at = max(bisect_right(self._firsts, key) - 1, 0)
        bucket = self._buckets[at]
        insort(bucket, key)
        self._firsts[at] = bucket[0]
        if len(bucket) > _BUCKET_KEYS_MAX:
            # ascending insertion is common (event batches), and then a full left half wastes nothing
            middle = len(bucket) - 64 if bucket[-1] == key else len(bucket) // 2
            upper = bucket[middle:]
            del bucket[middle:]
            self._buckets.insert(at + 1, upper)
            self._firsts.insert(at + 1, upper[0])

    def remove(self, key: bytes) -> None:
        """Remove a key that is there."""
        at = bisect_right(self._firsts, key) - 1
        bucket = self._buckets[at]
        place = bisect_left(bucket, key)
        assert bucket[place] == key, "a key that is removed must be there"
        del bucket[place]
        if bucket:
            self._firsts[at] = bucket[0]
        else:
            del self._buckets[at]
            del self._firsts[at]

    def between(self, start: bytes, end: bytes, limit: int, reverse: bool) -> list[bytes]:
        """Keys with start <= key < end; the first `limit` of them (0 = all), or the last, descending."""
        found: list[bytes] = []
        if start >= end or not self._buckets:
            return found
        first = max(bisect_right(self._firsts, start) - 1, 0)
        last = bisect_left(self._firsts, end)  # buckets from here on start at or after `end`
        order = range(last - 1, first - 1, -1) if reverse else range(first, last)
        for at in order:
            bucket = self._buckets[at]
            low, high = bisect_left(bucket, start), bisect_left(bucket, end)
            if reverse:
                low = max(low, high - limit + len(found)) if limit else low
                found.extend(reversed(bucket[low:high]))
            else:
                high = min(high, low + limit - len(found)) if limit else high
                found.extend(bucket[low:high])
            if limit and len(found) >= limit:
                break
        return found
