"""How every process of a local cluster does, for people and programs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.local import logs
from cluster.local.cassandra.server import answers
from cluster.local.life import Phase
from cluster.local.plan import HOST, LogPlan, NodePlan, Plan
from cluster.local.probe import serving
from cluster.local.processes import lives
from cluster.local.state import NodeState, RunState


def described(directory: Path, plan: Plan, state: RunState | None, result: dict[str, Any]) -> dict[str, Any]:
    """`result`, which is a topology, with how its processes do; each that runs is asked whether it serves."""
    supervised = state is not None and state.supervised
    result["running"] = supervised
    result["supervisor"] = state.supervisor_pid if state is not None and supervised else None
    for row in result["log"]["nodes"]:
        one = plan.process(row["name"])
        assert isinstance(one, LogPlan)
        row |= _row(directory, one, state)
        row["serving"] = row["state"] == Phase.RUNNING and answers(one.address)
    for region in result["regions"]:
        for row in region["nodes"]:
            node = plan.node(row["name"])
            row |= _row(directory, node, state)
            row["peers"] = f"{HOST}:{node.peers}"
            row["serving"] = row["state"] == Phase.RUNNING and serving(HOST, node.grpc)
    return result


def _row(directory: Path, one: NodePlan | LogPlan, state: RunState | None) -> dict[str, Any]:
    now_ns = time.time_ns()
    found = NodeState(one.name) if state is None else truth(state, state.node(one.name))
    waits_ns = None if found.retry_ns is None else found.retry_ns - now_ns
    return {
        "state": str(found.state),
        "pid": found.pid,
        "uptime_s": round((now_ns - found.started_ns) / 1e9, 1) if found.pid else None,
        "restarts": found.restarts,
        "exit_code": found.exit_code,
        "starts_again_in_s": None if waits_ns is None else max(round(waits_ns / 1e9, 1), 0.0),
        "log": str(one.log(directory)),
        "errors": logs.errors(one.log(directory), now=found.state is Phase.RUNNING),
    }


def truth(state: RunState, node: NodeState) -> NodeState:
    """What is known of a process if the supervisor is gone: whether it is still there."""
    if state.supervised or node.state in (Phase.KILLED, Phase.STOPPED):
        return node
    if lives(node.pid, node.mark):
        return node
    return NodeState(node.name, Phase.STOPPED, restarts=node.restarts, exit_code=node.exit_code)
