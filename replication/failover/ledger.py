"""The ledger of a namespace: every version it ever had, and what may be told an operator about one of them.

Theory of operation. Rows are only ever added, and the truth is the row with the largest version. A version
names its owner, so rows from anywhere, in any order, any number of times, lead to the same truth; there is
nothing to lock and nothing to vote on. What this cannot do is tell two operators at once that only one of
them won. Hence the confirm rule: after a row was appended, the ledgers of the regions are read again.

Invariant: the truth never falls; of a version there is one row. Two rows for one version have the same
target; the one with the smaller HLC stands, so that all copies of the ledger agree on who asked and why.

Lineage: a grow-only set with a maximum; the confirm rule is ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from replication.failover.records import LedgerRow, Marker, Source
from replication.versions import owner_of

HISTORY_ROWS = 20  # of a namespace's past are shown: Temporal's failover history shows ten


class Ledger:
    """The rows of one namespace."""

    def __init__(self) -> None:
        self._rows: dict[int, LedgerRow] = {}

    def append(self, row: LedgerRow) -> bool:
        """Add a row; False: nothing changed. Raises ValueError for a target that does not own the version."""
        if row.target != owner_of(row.version):
            raise ValueError(
                f"version {row.version} belongs to region {owner_of(row.version)}, "
                f"and a ledger row gives it to region {row.target}"
            )
        known = self._rows.get(row.version)
        if known is not None and _rank(known) <= _rank(row):
            return False
        self._rows[row.version] = row
        return True

    @property
    def truth(self) -> int:
        """The largest version; 0: no row."""
        return max(self._rows, default=0)

    def row(self, version: int) -> LedgerRow | None:
        """The row of a version."""
        return self._rows.get(version)

    def history(self) -> list[LedgerRow]:
        """The last HISTORY_ROWS rows, the newest last."""
        return [self._rows[version] for version in sorted(self._rows)[-HISTORY_ROWS:]]


def _rank(row: LedgerRow) -> tuple[int, bytes]:
    return row.hlc, msgspec.msgpack.encode(row)


class Verdict(Enum):
    """What the operator of a failover is told."""

    CONFIRMED = "confirmed"  # every region was read, and none knows of a newer owner
    CONFIRMED_LOCALLY = "confirmed locally"  # as far as could be read
    LOST_RACE = "lost race"  # somebody else's failover is newer: this one is history


class Confirmation(NamedTuple):
    """The verdict, the largest version that was read, and the regions that could not be read."""

    verdict: Verdict
    truth: int
    unread: tuple[int, ...]


def confirm(version: int, own: int, others: Mapping[int, int | None]) -> Confirmation:
    """The confirm rule, for a version that was appended to the ledger.

    `own`: the truth of the ledger that was appended to, `others`: of the other regions of the namespace, None
    for one that could not be read; all read after the append. With LOST_RACE an operator who insists tries
    again with `truth` among the bases.
    """
    assert own >= version, f"the ledger was read before version {version} was appended to it: it says {own}"
    truth = max([own, *(read for read in others.values() if read is not None)])
    unread = tuple(sorted(region for region, read in others.items() if read is None))
    if truth > version and owner_of(truth) != owner_of(version):
        return Confirmation(Verdict.LOST_RACE, truth, unread)
    return Confirmation(Verdict.CONFIRMED_LOCALLY if unread else Verdict.CONFIRMED, truth, unread)


def digest_of(markers: Mapping[int, Marker]) -> bytes:
    """The digest of a cut: where each shard stood. Independent of the order of the mappings."""
    hasher = hashlib.blake2b(digest_size=16)
    for shard in sorted(markers):
        marker = markers[shard]
        points = [(Source(0, 0), marker.own), *sorted(marker.others.items(), key=lambda item: item[0])]
        hasher.update(shard.to_bytes(8, "big") + len(points).to_bytes(8, "big"))
        for source, point in points:
            for number in (*source, point.incarnation, point.seq):
                hasher.update(number.to_bytes(8, "big"))
    return hasher.digest()
