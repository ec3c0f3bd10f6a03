"""The RPCs that are not there yet: each answers UNIMPLEMENTED with a sentence that names its feature.

The list is what the services' descriptors have and no area has registered, so nothing is missed. A method
that is registered later takes its place back. An RPC of a newer API without a line here gets the general
sentence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.message_factory import GetMessageClass
from temporalio.api.operatorservice.v1 import service_pb2 as operator_service
from temporalio.api.workflowservice.v1 import service_pb2 as workflow_service

from cluster.frontend.services import everything
from cluster.frontend.services.base import (
    METHODS,
    OPERATOR_SERVICE,
    WORKFLOW_SERVICE,
    Method,
    Services,
    unimplemented,
)

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor

    from cluster.frontend.contract import Call

IMPLEMENTED: Final = "implemented"
LATER: Final = "later"

# The first pattern that is found in an RPC's name counts.
_REASONS: Final = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        ("Schedule", "schedules come with a later release"),
        ("BatchOperation", "batch operations come with a later release"),
        ("Nexus", "Nexus comes with a later release"),
        ("ActivityExecution", "standalone activities come with a later release"),
        ("WorkflowRule", "workflow rules come with a later release"),
        ("^(Pause|Unpause)WorkflowExecution$", "pausing a workflow comes with a later release"),
        (
            "^(Pause|Unpause|Reset)Activity$|^UpdateActivityOptions$",
            "pausing, resetting and changing a pending activity come with a later release",
        ),
        ("TaskQueueConfig", "rate limits and fairness weights of task queues come with a later release"),
        ("WorkerConfig", "reading and changing the configuration of workers comes with a later release"),
        ("WorkflowExecutionOptions", "changing the options of a run comes with a later release"),
        ("Deployment", "worker deployments come with a later release"),
        (
            "BuildIdCompatibility|VersioningRules|TaskReachability",
            "versioning by build id is superseded by worker deployments, which come with a later release",
        ),
        ("TimeSkipping", "time skipping comes with a later release"),
        ("RemoteCluster", "several clusters come with a later release"),
    )
)
_GENERAL: Final = "it belongs to a newer API"
_refusals: Final[dict[str, Method]] = {}


def reason(name: str) -> str:
    """Why an RPC is not there."""
    return next((why for pattern, why in _REASONS if pattern.search(name)), _GENERAL)


def _known() -> dict[str, MethodDescriptor]:
    """All RPCs of both services by their full names, in the order of their definition."""
    found: dict[str, MethodDescriptor] = {}
    for file, service in ((workflow_service, WORKFLOW_SERVICE), (operator_service, OPERATOR_SERVICE)):
        descriptor = file.DESCRIPTOR.services_by_name[service.rpartition(".")[2]]
        found.update((f"/{service}/{method.name}", method) for method in descriptor.methods)
    return found


def _refusal(name: str) -> Method:
    why = reason(name)

    def refuse(_services: Services, _call: Call, _request: Any) -> bytes:
        raise unimplemented(name, why)

    return refuse


def register() -> None:
    """Answer for what nobody has registered."""
    for full_name, method in _known().items():
        if full_name not in METHODS:
            refusal = _refusals[full_name] = _refusal(method.name)
            METHODS[full_name] = GetMessageClass(method.input_type), refusal


def states() -> list[tuple[str, str, str]]:
    """(RPC, "implemented" or "later", reason) of every RPC, for the compatibility page."""
    everything()
    table = []
    for full_name, method in _known().items():
        refused = METHODS[full_name][1] is _refusals.get(full_name)
        table.append((method.name, LATER, reason(method.name)) if refused else (method.name, IMPLEMENTED, ""))
    return table


register()
