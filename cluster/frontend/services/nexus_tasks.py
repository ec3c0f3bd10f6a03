"""Nexus task polls. No Nexus task exists in this release, so a poll waits and ends empty.

Workers with Nexus handlers poll for them beside workflows and activities. If that call failed, such a worker
would stop a minute later, and a stopping one would wait that minute; so the wait itself is served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.frontend.services.base import Services, rpc
from cluster.frontend.services.polls import wait_for_task

if TYPE_CHECKING:
    from cluster.frontend.contract import Call

NEXUS = 3


@rpc(wire.PollNexusTaskQueueRequest)
def poll(services: Services, call: Call, request: wire.PollNexusTaskQueueRequest) -> bytes | None:
    """PollNexusTaskQueue."""
    return wait_for_task(services, call, request, NEXUS)
