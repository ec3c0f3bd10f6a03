"""Whoever waits for events or for the end hears of it, however commits fall together."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from history_store.storage.memory import MemoryStorage
from tests.cluster.hosting.play import Play

CLOSE = workflow_pb2.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT


@pytest.mark.parametrize("only_close", [False, True])
async def test_a_run_that_ends_in_the_round_in_which_it_was_looked_at(only_close: bool) -> None:
    play = Play(MemoryStorage(), shards=1)
    await play.start("w")
    signal = wire.SignalWorkflowExecutionRequest(namespace="default", signal_name="s")
    signal.workflow_execution.workflow_id = "w"
    end = wire.TerminateWorkflowExecutionRequest(namespace="default")
    end.workflow_execution.workflow_id = "w"
    look = wire.GetWorkflowExecutionHistoryRequest(namespace="default", wait_new_event=True)
    look.execution.workflow_id = "w"
    if only_close:
        look.history_event_filter_type = CLOSE
    else:
        first = await play.call(look)
        look.next_page_token = first.next_page_token
    play.begin(signal)  # one round: this, what the look sees ...
    waiting = play.begin(look)
    play.begin(end)  # ... and the end, which it does not
    found = await play.end(look, waiting)
    if not only_close:  # the signal first; then the end
        look.next_page_token = found.next_page_token
        found = await play.call(look)
    assert found.history.events[-1].event_type == 27  # WorkflowExecutionTerminated
    await play.close()
