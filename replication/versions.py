"""Failover versions: int64 numbers that say who may write a namespace's history, and whose write wins.

Theory of operation. A region R is given an initial number, 1 <= R < INC, once and for ever. It owns every
version v with v mod INC == R. A failover to R takes the smallest version >= the one known that R owns, so
the number alone names the owner, a later failover has the higher number, and two regions that fail over at
the same time without knowing of each other never choose the same number. Taking the maximum of all that was
chosen is then a join: it is idempotent and commutative, and everybody who has heard the same versions agrees
on the owner, without a lock.

Invariant: a version is >= 1. There is no version 0 and no local namespace.
Lineage: Temporal's and Cadence's cluster metadata (failover version increment, initial failover version).
"""

from __future__ import annotations

INC = 100
"""How many regions there can be, and one more; the same in every region, for ever."""


class VersionError(ValueError):
    """The caller's fault, definite: a number that is no region, or no version."""


def next_version(region: int, current: int, increment: int = INC) -> int:
    """The smallest version >= current that the region owns. 0 for current: nobody has owned it yet.

    Not strict: a region that owns `current` gets `current`. With INC 10 and regions A=1, B=2:
    create at A, to B, to A, to B: 1, 2, 11, 12. Raises VersionError.
    """
    _check_region(region, increment)
    if current < 0:
        raise VersionError(f"{current} is not a version")
    version = current // increment * increment + region
    return version if version >= current else version + increment


def bump_version(region: int, current: int, increment: int = INC) -> int:
    """The smallest version > current that the region owns.

    For a region that has lost committed history (restored from a backup, or recovered without a majority):
    its old version names a sequence of events that it does not have any more, and must not be used again.
    """
    return next_version(region, current + 1, increment)


def owner_of(version: int, increment: int = INC) -> int:
    """The region that owns the version. Raises VersionError if nobody can."""
    region = version % increment
    if version < 1 or region == 0:
        raise VersionError(f"{version} is not a version: no region owns it")
    return region


def _check_region(region: int, increment: int) -> None:
    if not 1 <= region < increment:
        raise VersionError(f"{region} is not the initial version of a region: 1 to {increment - 1}")
