"""Quorum arithmetic: what a majority, or both majorities of a joint configuration, agree on.

Pure functions over tuples of node ids. An empty set of voters agrees with everything, which lets the ordinary
configuration be a joint one whose outgoing half is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum

# What a half without voters "agrees" to: it never holds the other half back.
UNBOUNDED = 1 << 62


class Verdict(Enum):
    """How an election stands."""

    PENDING = 0
    WON = 1
    LOST = 2


def majority_mark(voters: tuple[int, ...], mark: Callable[[int], int]) -> int:
    """The largest value that a majority of voters has reached."""
    count = len(voters)
    if count == 1:
        return mark(voters[0])
    if count == 0:
        return UNBOUNDED
    marks = sorted([mark(voter) for voter in voters])
    return marks[(count - 1) // 2]


def joint_mark(incoming: tuple[int, ...], outgoing: tuple[int, ...], mark: Callable[[int], int]) -> int:
    """The largest value that both halves have reached."""
    value = majority_mark(incoming, mark)
    if outgoing:
        value = min(value, majority_mark(outgoing, mark))
    return value


def majority_verdict(voters: tuple[int, ...], votes: Mapping[int, bool]) -> Verdict:
    """How an election stands among these voters."""
    if not voters:
        return Verdict.WON
    granted = sum([votes.get(voter) is True for voter in voters])
    refused = sum([votes.get(voter) is False for voter in voters])
    needed = len(voters) // 2 + 1
    if granted >= needed:
        return Verdict.WON
    return Verdict.LOST if len(voters) - refused < needed else Verdict.PENDING


def joint_verdict(incoming: tuple[int, ...], outgoing: tuple[int, ...], votes: Mapping[int, bool]) -> Verdict:
    """How an election stands that needs both halves."""
    first = majority_verdict(incoming, votes)
    second = majority_verdict(outgoing, votes)
    if first is Verdict.LOST or second is Verdict.LOST:
        return Verdict.LOST
    both = first is Verdict.WON and second is Verdict.WON
    return Verdict.WON if both else Verdict.PENDING
