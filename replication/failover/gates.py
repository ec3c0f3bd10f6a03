"""The shard's side: the gate of a namespace in a shard, moved only by entries of the shard's own log.

Theory of operation. A switch is a position in each shard's log, not a moment in time and not the content of a
cache. At every position the gate of a namespace is one of

    open               this region owns the version, was told to serve at it, and no handover fences it
    fenced(handover)   as open, and from the fence's position on nothing is changed
    inactive(version)  another region owns the version, or ours does and the shard has not been told to serve

    open --FENCE(h)--> fenced(h) --UNFENCE(h)--> open        UNFENCE: only the decision ABORT, never a timer
    any  --DEACTIVATE(v)--> inactive(v)                      v larger than the gate's version
    any  --ACTIVATE(v)--> open                               v not smaller, and ours

Commands arrive again, late and in any order. A version that is not the gate's or larger says nothing. Within
a version handovers are ordered by their numbers: one starts only after the one before was decided, so a fence
of a number that is not above every unfenced one is late and is ignored; otherwise nobody would ever take it
away. A repeated fence answers with the marker of the first.

The leader computes what a command does from the gates at its log position, and proposes the rows; since the
result depends on nothing else, a function does it here.

Invariant: a gate's version never falls; a gate that is fenced at a version is opened at that version by
UNFENCE only, and never without ACTIVATE.

Lineage: the fence is a marker as in Chandy and Lamport's snapshots, used as a barrier; Temporal's handover
state has the same effect through caches, without an exact cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple, assert_never

from msgspec.structs import replace

from replication.failover.commands import Activate, Deactivate, Fence, ShardCommand, Unfence
from replication.failover.records import FORMAT, Gate, Marker, Point, Source
from replication.versions import owner_of


class GateState(Enum):
    """What a gate is."""

    OPEN = "open"
    FENCED = "fenced"
    INACTIVE = "inactive"


def state_of(gate: Gate, region: int) -> GateState:
    """What a gate of that region is."""
    if owner_of(gate.version) != region or gate.activated != gate.version:
        return GateState.INACTIVE
    return GateState.FENCED if gate.fence else GateState.OPEN


class Answer(NamedTuple):
    """What the shard tells the coordinator when the command is durable. Repeated with a repeated command."""

    marker: (
        Marker | None
    )  # to FENCE: where the fence is; None: it was late, or all was taken by newer versions
    versions: dict[str, int]  # namespace -> the gate's version after the command
    cuts: dict[str, dict[Source, Point]]  # to ACTIVATE: namespace -> Gate.cut, of those activated


class Effect(NamedTuple):
    """What a command does at its position of the log."""

    gates: list[Gate]  # that changed, to be stored in the same transaction
    emits: Fence | Unfence | None  # the entry of the outgoing log, with the seq that was offered
    answer: Answer


def apply(
    gates: Mapping[str, Gate],
    command: ShardCommand,
    *,
    region: int,
    offered: Point,
    cursors: Mapping[Source, Point],
) -> Effect:
    """The effect of a command at a position of the shard's log.

    `gates`: of all namespaces at that position. `offered`: where the outgoing log would get its
    next entry. `cursors`: of each log that the shard reads, the last entry that is applied, at that position;
    of a log that never had a key of it, none (Marker.others).
    """
    match command:
        case Fence():
            return _fence(gates, command, Marker(offered, dict(cursors)))
        case Unfence():
            return _unfence(gates, command)
        case Activate():
            return _activate(gates, command, region, cursors)
        case Deactivate():
            changed = [
                raised(gate, version)
                for gate, version in _named(gates, command.versions)
                if version > gate.version
            ]
            return _effect(gates, command.versions, changed)
        case _:
            assert_never(command)


def raised(gate: Gate, version: int) -> Gate:
    """The gate after a larger version was seen: in a command, or in the header of a replicated entry."""
    assert version > gate.version, f"version {version} is not above {gate.version}"
    return replace(gate, version=version, fence=0, marker=None, ended=0, cut={})


def _fence(gates: Mapping[str, Gate], command: Fence, offered: Marker) -> Effect:
    changed: list[Gate] = []
    marker: Marker | None = None
    late = False
    for gate, version in _named(gates, command.versions):
        if version < gate.version:
            continue  # it was taken meanwhile: the answer says by which version
        at = gate if version == gate.version else raised(gate, version)
        if command.number <= at.ended or command.number < at.fence:
            late = True
        elif command.number == at.fence:
            marker = at.marker
        else:
            changed.append(replace(at, fence=command.number, marker=offered))
    if marker is not None:
        # Fenced before, all of them in one entry: what is new since can only be a late repetition's.
        return _effect(gates, command.versions, [], marker=marker)
    if late or not changed:
        return _effect(gates, command.versions, [])
    return _effect(gates, command.versions, changed, offered, replace(command, marker=offered))


def _unfence(gates: Mapping[str, Gate], command: Unfence) -> Effect:
    changed: list[Gate] = []
    emits = False
    for gate, version in _named(gates, command.versions):
        if version < gate.version:
            continue
        at = gate if version == gate.version else raised(gate, version)
        fenced = at.fence == command.number
        emits |= fenced
        after = replace(at, ended=max(at.ended, command.number))
        changed.append(replace(after, fence=0, marker=None) if fenced else after)
    known = [gate for gate in changed if gate != gates.get(gate.namespace_id)]
    return _effect(gates, command.versions, known, emits=command if emits else None)


def _activate(
    gates: Mapping[str, Gate], command: Activate, region: int, cursors: Mapping[Source, Point]
) -> Effect:
    changed: list[Gate] = []
    for gate, version in _named(gates, command.versions):
        assert owner_of(version) == region, f"region {region} was told to serve at version {version}"
        if version < gate.version or version == gate.activated:
            continue
        at = gate if version == gate.version else raised(gate, version)
        changed.append(replace(at, activated=version, cut=dict(cursors)))
    return _effect(gates, command.versions, changed)


def _named(gates: Mapping[str, Gate], versions: Mapping[str, int]) -> list[tuple[Gate, int]]:
    return [(gates.get(name) or Gate(FORMAT, name, 0), versions[name]) for name in sorted(versions)]


def _effect(
    gates: Mapping[str, Gate],
    named: Mapping[str, int],
    changed: list[Gate],
    marker: Marker | None = None,
    emits: Fence | Unfence | None = None,
) -> Effect:
    after = {name: gates[name] for name in named if name in gates}
    after.update((gate.namespace_id, gate) for gate in changed)
    versions = {name: gate.version for name, gate in after.items()}
    cuts = {name: gate.cut for name, gate in after.items() if gate.activated == gate.version}
    return Effect(changed, emits, Answer(marker, versions, cuts))


# ---- what passes


class Call(Enum):
    """What may want something of a namespace in a shard."""

    MUTATION = "mutation"  # of a caller: start, signal, completion, heartbeat, reset, delete …
    TASK = "task"  # the shard's own: a timer, a transfer, the start of a task that matching handed out
    POLL = "poll"
    READ = "read"  # stamped with the version it was read at
    STRONG_READ = "strong read"
    REPLICATION = "replication"  # entries of another region: stored, and applied as by any standby
    REAPPLY = "reapply"  # new events for inputs of a losing branch


class Verdict(Enum):
    """What becomes of it. Only what is allowed has any effect."""

    ALLOW = "allow"
    PARK = "park"  # its caller waits: soon there is an owner
    FORWARD = "forward"  # to the region that Admission names
    HOLD = "hold"  # nobody waits for it: it stays where it is, dormant


class Admission(NamedTuple):
    """The verdict, and by which version: a caller that knows a larger one knows better."""

    verdict: Verdict
    region: int  # FORWARD: where to; otherwise 0
    version: int  # 0: the shard has not heard of the namespace


_A, _P, _F, _H = Verdict.ALLOW, Verdict.PARK, Verdict.FORWARD, Verdict.HOLD

# What is waiting for an owner: fenced, or ours and not activated yet, or unknown here, or not to be served
# now.
_WAITING = {
    Call.MUTATION: _P,
    Call.TASK: _H,
    Call.POLL: _P,
    Call.READ: _A,
    Call.STRONG_READ: _P,
    Call.REPLICATION: _A,
    Call.REAPPLY: _H,
}
_ELSEWHERE = {
    Call.MUTATION: _F,
    Call.TASK: _H,
    Call.POLL: _F,
    Call.READ: _A,
    Call.STRONG_READ: _F,
    Call.REPLICATION: _A,
    Call.REAPPLY: _H,
}


def admit(gate: Gate | None, call: Call, *, region: int, serving: bool = True) -> Admission:
    """Whether a call may have an effect now.

    `gate`: as of the newest entry that was proposed, committed or not; a call admitted against an older one
    could slip behind a fence. `serving`: what isolation.serving said; without it no gate counts as open.
    """
    if gate is None:
        return Admission(_WAITING[call], 0, 0)
    state = state_of(gate, region)
    if state is GateState.OPEN and serving:
        return Admission(Verdict.ALLOW, 0, gate.version)
    owner = owner_of(gate.version)
    if owner == region:
        return Admission(_WAITING[call], 0, gate.version)
    verdict = _ELSEWHERE[call]
    return Admission(verdict, owner if verdict is Verdict.FORWARD else 0, gate.version)
