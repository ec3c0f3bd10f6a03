"""Options changed from outside while a run is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1 import message_pb2 as history

from history_store.engine.errors import failed_precondition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from temporalio.api.common.v1.message_pb2 import Callback, Link

    from history_store.engine.run import Run, Transaction

OPTIONS_UPDATED = event_type_pb2.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED


def attach(
    tx: Transaction,
    run: Run,
    identity: str,
    request_id: str,
    callbacks: Sequence[Callback],
    links: Sequence[Link],
) -> None:
    """A start request that found the run open leaves its request id, callbacks and links with it, once."""
    state = run.state
    if request_id in state.request_ids:
        return
    limit = tx.env.limits.callbacks_max
    if len(state.completion_callbacks) + len(callbacks) > limit:
        raise failed_precondition(
            f"cannot attach more than {limit} callbacks to a workflow "
            f"({len(state.completion_callbacks)} callbacks already attached)"
        )
    event = run.outside_event(
        OPTIONS_UPDATED,
        workflow_execution_options_updated_event_attributes=history.WorkflowExecutionOptionsUpdatedEventAttributes(
            attached_request_id=request_id, attached_completion_callbacks=callbacks, identity=identity
        ),
        links=links,
    )
    state.request_ids[request_id] = (OPTIONS_UPDATED, event.event_id)
    state.completion_callbacks += tuple(callback.SerializeToString() for callback in callbacks)
