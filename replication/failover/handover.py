"""A graceful handover, from the side that decides it: what the leader of the source's meta group does next.

    PREPARE ──► FENCING ──► DRAINING ──► COMMITTED ──► DONE
       │           │            │
       └───────────┴────────────┴──► ABORTED

Theory of operation. The record in the meta group says how far the handover is. Whoever leads the group
looks at the record and at what shards and target answer, and this module says what to propose and what to
send. All of it may be done again: a fence that is repeated answers with its marker, an acknowledgement is
asked for again, and a proposal that comes too late is refused by the log (meta.py). So a leader may die
anywhere, and the next one goes on from the record; nothing is remembered elsewhere.

Fenced shards are opened by the decision ABORT or not at all. There is no timer on their side: with clocks
that differ by a second, "open at my deadline" and "commit before the deadline" meet each other. COMMIT is
proposed when the target has acknowledged every marker, not when all shards are fenced: until then the
decision can be taken back, which is what happens at the deadline when the network is bad.

Clocks. A deadline is written by one leader and read by another, whose clock may be minutes away. A leader
therefore counts from when it began to look as well, and takes what ends earlier: a wrong clock can abort a
handover early, and cannot hold one up.

Invariant: nothing here decides. COMMIT and ABORT are proposals, and the first in the log is the decision.

Lineage: Temporal's namespace handover workflow, with its watermarks replaced by entries of the log and its
timers by a decision.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple, TypeAlias, assert_never

from replication.failover.commands import (
    Abort,
    Begin,
    Close,
    Commit,
    Drain,
    Fence,
    MetaCommand,
    ShardCommand,
    StartFencing,
    Unfence,
)
from replication.failover.gates import Answer
from replication.failover.meta import MetaState, switches_problem
from replication.failover.readiness import Refusal, RegionView, ShardLag, handover_unready, lag_of
from replication.failover.records import UNDECIDED, Handover, Limits, Marker, Phase, Switch
from replication.versions import next_version


class Propose(NamedTuple):
    """Propose a command to the meta group."""

    command: MetaCommand


class Send(NamedTuple):
    """Have a shard of this region propose a command to its own log, and keep its Answer."""

    shard: int
    command: ShardCommand


class AskAcks(NamedTuple):
    """Ask the target what it has applied of our shards (Ack), and to say so again at the markers.

    Of each of ours, all shards of the target answer that have keys which its log ever had, also those that
    parted from it since the fence: `meet` of what they applied.
    """

    target: int
    number: int
    markers: dict[int, Marker]
    versions: dict[str, int]  # namespace -> version that is given up


Action: TypeAlias = Propose | Send | AskAcks


class Ack(NamedTuple):
    """What a shard of the target has applied, durably: cursors that were written with what they count."""

    applied: Marker  # `own`: of the source's shard; `others`: of all other logs that they read
    dirty: int = 0  # runs parked or quarantined
    newer: Mapping[str, int] = {}  # namespaces of AskAcks whose gates are above the version given up


class Observed(NamedTuple):
    """What this leader has been told since it leads. Nothing of it is needed to be right, only to go on."""

    since_ns: int  # by this leader's clock: when it first saw the handover in its present phase
    hlc: int = 0  # of now: it goes into the rows of the ledger
    target: RegionView = RegionView()
    lags: Mapping[int, ShardLag] = {}
    answers: Mapping[int, Answer] = {}  # shard -> to the Fence of this handover
    acks: Mapping[int, Ack] = {}
    unfenced: Collection[int] = ()  # shards that have answered the Unfence of this handover
    # All of this region's by now, with those that a split is about to make. A shard that parted from its
    # parent before the fence is not fenced; one that did after it is, and would stay so after an abort.
    shards: Collection[int] = ()
    taken: Collection[str] = ()  # its namespaces that are above their base in the meta group
    followed: bool = False  # switching.settled_everywhere: the commit has been followed


class Steps(NamedTuple):
    """What to do now; the shell leaves out what is under way already. And when to look again without news."""

    actions: list[Action]
    until_ns: int  # by this leader's clock; 0: only when something is reported
    why: str  # what it waits for, for the operator


def plan_handover(
    state: MetaState,
    namespaces: Iterable[str],
    target: int,
    *,
    view: RegionView,
    shards: Iterable[int],
    now_ns: int,
    request_id: str,
    operator: str,
    reason: str = "",
    limits: Limits = Limits(),  # noqa: B008  frozen
) -> Begin | Refusal:
    """The command that begins a handover, or why it cannot begin. With a refusal nothing happened."""
    switches = [
        Switch(name, state.truth(name), next_version(target, state.truth(name))) for name in namespaces
    ]
    problem = switches_problem(state, target, switches)
    if problem:
        return Refusal(problem, "look at the failover status of the namespace")
    if not view.reachable:
        return Refusal(
            f"region {target} cannot be reached", "repair the connection, or force from the target"
        )
    if view.bootstrapping:
        return Refusal(f"region {target} is bootstrapping", "wait until it has copied everything")
    deadline_ns = now_ns + limits.wait_ns_max
    number = state.last_number + 1
    return Begin(
        number, target, tuple(switches), tuple(shards), request_id, operator, reason, limits, deadline_ns
    )


def steps(handover: Handover, observed: Observed, now_ns: int) -> Steps:
    """What the leader does next for one handover; `now_ns` by its own clock."""
    if handover.closed:
        return Steps([], 0, "nothing is left to do")
    match handover.phase:
        case Phase.PREPARE:
            return _prepare(handover, observed, now_ns)
        case Phase.FENCING:
            return _fencing(handover, observed, now_ns)
        case Phase.DRAINING:
            return _draining(handover, observed, now_ns)
        case Phase.COMMITTED:
            done = [Propose(Close(handover.number))] if observed.followed else []
            return Steps([*done], 0, "" if done else "the target and our shards have not all followed")
        case Phase.ABORTED:
            return _aborted(handover, observed)
        case Phase.DONE:
            return Steps([], 0, "nothing is left to do")
        case _:
            assert_never(handover.phase)


def plan_abort(handover: Handover, why: str) -> Abort | Refusal:
    """An operator's wish to abort. It may still come second, and is refused by the log then."""
    if handover.phase not in UNDECIDED:
        return Refusal(f"handover {handover.number} is {handover.phase.name}", "begin another one")
    return Abort(handover.number, why)


# ---- one function a phase


def _prepare(handover: Handover, observed: Observed, now_ns: int) -> Steps:
    lag = lag_of(_shards(handover, observed), observed.lags)
    missing = handover_unready(observed.target, lag, handover.limits)
    if not missing and not _all_taken(handover, observed):
        deadline_ns = now_ns + handover.limits.fence_ns_max
        return Steps([Propose(StartFencing(handover.number, deadline_ns))], 0, "")
    return _or_abort(handover, observed, now_ns, [], "; ".join(missing))


def _fencing(handover: Handover, observed: Observed, now_ns: int) -> Steps:
    shards = _shards(handover, observed)
    markers = {
        shard: answer.marker
        for shard, answer in observed.answers.items()
        if shard in shards and answer.marker is not None
    }
    unfenced = [shard for shard in shards if shard not in markers]
    if not unfenced:
        newer = _newer(handover, (answer.versions for answer in observed.answers.values()))
        return Steps([Propose(Drain(handover.number, markers, newer))], 0, "")
    fence = Fence(handover.number, handover.target, _versions(handover))
    sends: list[Action] = [Send(shard, fence) for shard in unfenced]
    return _or_abort(handover, observed, now_ns, sends, f"shards {unfenced} are not fenced")


def _draining(handover: Handover, observed: Observed, now_ns: int) -> Steps:
    late = [shard for shard in handover.shards if not _is_drained(handover, shard, observed.acks)]
    if not late:
        acks = {shard: observed.acks[shard].applied for shard in handover.shards}
        newer = _newer(handover, (ack.newer for ack in observed.acks.values()))
        return Steps([Propose(Commit(handover.number, acks, newer, observed.hlc))], 0, "")
    markers = {shard: handover.markers[shard] for shard in late}
    ask = AskAcks(handover.target, handover.number, markers, _versions(handover))
    return _or_abort(handover, observed, now_ns, [ask], f"the target has not applied shards {late}")


def _aborted(handover: Handover, observed: Observed) -> Steps:
    """Shards are told until each has answered: one that was not fenced has to know that it never will be."""
    late = [shard for shard in _shards(handover, observed) if shard not in observed.unfenced]
    if not late:
        return Steps([Propose(Close(handover.number))], 0, "")
    unfence = Unfence(handover.number, _versions(handover))
    return Steps([Send(shard, unfence) for shard in late], 0, f"shards {late} have not been unfenced")


# ---- what they ask


def _or_abort(handover: Handover, observed: Observed, now_ns: int, actions: list[Action], why: str) -> Steps:
    """Go on with these actions, or abort: it is the time, or there is nothing left to hand over."""
    if _all_taken(handover, observed):
        return Steps([Propose(Abort(handover.number, "newer versions took its namespaces"))], 0, "")
    limits = handover.limits
    allowed_ns = limits.wait_ns_max if handover.phase is Phase.PREPARE else limits.fence_ns_max
    until_ns = min(handover.deadline_ns, observed.since_ns + allowed_ns)
    if now_ns >= until_ns:
        return Steps([Propose(Abort(handover.number, f"the time is up: {why}"))], 0, "")
    return Steps(actions, until_ns, why)


def _all_taken(handover: Handover, observed: Observed) -> bool:
    newer = _newer(handover, (answer.versions for answer in observed.answers.values()))
    return all(s.namespace_id in observed.taken or s.namespace_id in newer for s in handover.switches)


def _is_drained(handover: Handover, shard: int, acks: Mapping[int, Ack]) -> bool:
    ack, marker = acks.get(shard), handover.markers[shard]
    if ack is None or not ack.applied.covers(marker, handover.regions):
        return False
    return not ack.dirty or handover.limits.allow_dirty


def _newer(handover: Handover, reported: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Of the versions that were reported, those above what the handover starts from."""
    base = _versions(handover)
    newer: dict[str, int] = {}
    for versions in reported:
        for name, version in versions.items():
            if name in base and version > max(base[name], newer.get(name, 0)):
                newer[name] = version
    return newer


def _shards(handover: Handover, observed: Observed) -> list[int]:
    return sorted({*handover.shards, *observed.shards})


def _versions(handover: Handover) -> dict[str, int]:
    return {switch.namespace_id: switch.base for switch in handover.switches}
