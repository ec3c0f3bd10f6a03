"""Where a call is served whose namespace several regions hold: here, where the namespace is active, or later.

What changes something, waits for something, or has to be the newest goes where the namespace is active, and
waits here while it has no owner. What only reads is answered from what this region has, and says how old
that is (`holdfast-…` in the answer's metadata); a caller who wants the newest says `x-consistency: strong`.

This is what the node knows of the namespace, by which a call need not find its shard first to be sent on;
polls and lists have none. The shard's gate has the last word on everything else (`Node.shard_of`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.hosting.calls.attempt import Attempt
from cluster.hosting.calls.remote import CONSISTENCY, STRONG, RemoteCall
from cluster.hosting.shards.gates import NotActive
from replication.failover.gates import Admission, Call, Verdict
from replication.failover.parking import GateView, Passage

if TYPE_CHECKING:
    from cluster.frontend.contract import Call as Rpc
    from cluster.hosting.node import Node
    from cluster.hosting.shards.host import ShardHost

POLLS = frozenset(("PollWorkflowTaskQueue", "PollActivityTaskQueue", "PollNexusTaskQueue"))
# Workers talk to the region where their polls wait, so only that one knows them and their queues.
NEWEST = frozenset(
    (
        "QueryWorkflow",
        "PollWorkflowExecutionUpdate",
        "DescribeTaskQueue",
        "DescribeWorker",
        "ListWorkers",
        "CountWorkers",
    )
)
READS = ("Describe", "Get", "List", "Count", "Scan")
HISTORY = "GetWorkflowExecutionHistory"


def wants_of(name: str) -> Call:
    """What a method wants of its namespace, whatever the request says."""
    if name in POLLS:
        return Call.POLL
    if name in NEWEST:
        return Call.STRONG_READ
    return Call.READ if name.startswith(READS) else Call.MUTATION


def enter(node: Node, call: Rpc, request: Any, namespace_id: str, wants: Call) -> None:
    """See to it that the call is served where it has to be. NotActive: not here, or not now."""
    entered = node.entered
    if entered is None:
        return  # of a server that knows of no other node
    view = node.passage(namespace_id)
    if wants is Call.READ and _wants_newest(call, request):
        wants = Call.STRONG_READ
    entered.wants = wants
    if view is None:
        return
    if wants is Call.READ:
        _stamp(node, call, namespace_id, view)
        return
    assert isinstance(call, Attempt), "what has entered is one"
    if isinstance(call.call, RemoteCall):
        return  # the node that has the client has asked, and the shard knows better than we do
    forward = node.forward
    assert forward is not None, "an attempt is one of its"
    behind = forward.parking.queues(namespace_id) and not call.released
    if behind or view.passage is Passage.PARKED:
        raise NotActive(namespace_id, Admission(Verdict.PARK, 0, view.version))
    if view.passage is Passage.FORWARD:
        raise NotActive(namespace_id, Admission(Verdict.FORWARD, view.region, view.version))


def _wants_newest(call: Rpc, request: Any) -> bool:
    """Whether a read is to see all that was answered before it, by whichever region."""
    if call.metadata.get(CONSISTENCY) == STRONG:
        return True
    if not call.method.endswith(HISTORY):
        return False
    if request.wait_new_event:
        return True
    # A worker that lacks a history reads it up to the task that it was given, by the active region.
    return isinstance(call, Attempt) and call.is_workers


def require_upto(node: Node, shard: ShardHost, namespace_id: str, have: int, end: int) -> None:
    """A page of a history goes up to `end`, which may be more than has come to this region. NotActive."""
    if have < end and node.entered is not None:
        admission = shard.gates.admit(namespace_id, Call.STRONG_READ)
        if admission.verdict is not Verdict.ALLOW:
            raise NotActive(namespace_id, admission)


def _stamp(node: Node, call: Rpc, namespace_id: str, view: GateView) -> None:
    """Say how old the answer may be."""
    regions = node.regions
    assert regions is not None, "who has a view of a namespace knows of regions"
    active = view.region if view.passage is Passage.FORWARD else regions.own
    said = [
        ("holdfast-region", regions.name_of(regions.own)),
        ("holdfast-active-region", regions.name_of(active)),
        ("holdfast-namespace-version", str(view.version)),
    ]

    def stamp(shard: int) -> None:
        lag = node.lag_ms(namespace_id, shard)
        call.set_metadata(initial=[*said, ("holdfast-lag-ms", str(lag))] if lag is not None else said)

    stamp(0)
    assert node.entered is not None, "looked at by `enter`"
    node.entered.stamp = stamp
