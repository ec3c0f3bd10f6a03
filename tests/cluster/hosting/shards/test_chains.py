"""What follows a run, and what its parent hears, event for event."""

from __future__ import annotations

import pytest
from temporalio.api.common.v1.message_pb2 import Memo, Payload
from temporalio.api.enums.v1 import event_type_pb2, workflow_pb2
from temporalio.api.history.v1.message_pb2 import HistoryEvent

from tests.cluster.hosting.play import Play, child, command, done, failed

E = event_type_pb2


def one(events: list[HistoryEvent], kind: int) -> HistoryEvent:
    found = [event for event in events if event.event_type == kind]
    assert len(found) == 1
    return found[0]


async def test_a_parent_hears_which_run_of_its_child_ended(play: Play) -> None:
    await play.first(child("child"))
    await play.settle()
    await play.next(command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", workflow_type={"name": "C"}), queue="cq")
    await play.next(done(), queue="cq")
    last = (await play.describe("child")).workflow_execution_info.execution.run_id
    events = await play.events("w")
    began = one(events, E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED)
    ended = one(events, E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED)
    first = began.child_workflow_execution_started_event_attributes.workflow_execution.run_id
    told = ended.child_workflow_execution_completed_event_attributes.workflow_execution.run_id
    assert told == last
    assert told != first


async def test_an_execution_out_of_time_is_not_followed(play: Play) -> None:
    await play.start("w", workflow_execution_timeout={"seconds": 5}, cron_schedule="@every 1s")
    await play.start("v", workflow_execution_timeout={"seconds": 5})
    await play.start("u", workflow_run_timeout={"seconds": 5})
    await play.advance(7)
    for name, state in (
        ("w", workflow_pb2.RETRY_STATE_TIMEOUT),
        ("v", workflow_pb2.RETRY_STATE_TIMEOUT),
        ("u", workflow_pb2.RETRY_STATE_RETRY_POLICY_NOT_SET),
    ):
        ended = one(await play.events(name), E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT)
        attributes = ended.workflow_execution_timed_out_event_attributes
        assert attributes.retry_state == state, name
        assert not attributes.new_execution_run_id


@pytest.mark.parametrize("how", ["retry", "cron"])
async def test_the_next_run_begins_with_the_memo_of_the_first(play: Play, how: str) -> None:
    started = Memo(fields={"a": Payload(data=b"1")})
    fields = {"retry_policy": {"maximum_attempts": 2}} if how == "retry" else {"cron_schedule": "@every 1s"}
    await play.start("w", memo=started, **fields)
    await play.advance(2)
    changed = command("MODIFY_WORKFLOW_PROPERTIES", upserted_memo=Memo(fields={"a": Payload(data=b"2")}))
    await play.next(changed, failed() if how == "retry" else done())
    event = (await play.events("w"))[0].workflow_execution_started_event_attributes
    assert event.continued_execution_run_id
    assert event.memo == started
