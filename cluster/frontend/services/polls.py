"""What workflow and activity polls share: the wait, and its end a little before the client's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.frontend.services.base import Services
from cluster.hosting.tasks.dispatch import Poll
from cluster.matching import QueueKey
from history_store.engine.errors import invalid

if TYPE_CHECKING:
    from cluster.frontend.contract import Call

STICKY = 2  # TaskQueueKind
MARGIN_FRACTION = 0.15  # of the client's wait, left for the answer's way back
MARGIN_MAX_S = 10.0


def wait_for_task(services: Services, call: Call, request: Any, kind: int) -> bytes | None:
    """Park the poll in its queue; it is answered by a task, or empty when its time is up."""
    namespace = services.namespace(request.namespace)
    now = services.loop.time()
    if call.deadline is None:
        raise invalid("Context timeout is not set.")
    left = call.deadline - now
    left -= min(MARGIN_MAX_S, max(0.05, left * MARGIN_FRACTION))
    left = min(left, services.long_poll_s)
    if left <= 0:
        return b""
    queue = QueueKey(namespace.id, kind, request.task_queue.name)
    poll = Poll(services.node, call, queue, request)
    if request.worker_instance_key and services.node.matching.is_shut_down(request.worker_instance_key):
        return b""
    poll.timer = services.loop.call_later(left, poll.expire)
    services.node.poll(poll, request.task_queue.kind == STICKY)
    return None
