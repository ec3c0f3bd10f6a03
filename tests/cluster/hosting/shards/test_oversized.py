"""Answers of workers that are too large become failures: refused ones would only be sent again."""

from __future__ import annotations

from temporalio.api.enums.v1 import event_type_pb2

from tests.cluster.hosting.play import Play, activity


async def test_a_result_over_the_limit_fails_the_activity_for_good() -> None:
    play = Play()
    await play.start("w")
    await play.next(activity("a"))
    task = await play.activity()
    await play.activity_done(task.task_token, "x" * (2 << 20))
    last = [
        e for e in await play.events("w") if e.event_type == event_type_pb2.EVENT_TYPE_ACTIVITY_TASK_FAILED
    ]
    assert len(last) == 1
    failure = last[0].activity_task_failed_event_attributes.failure
    assert "exceeds size limit" in failure.message
    await play.close()
