"""A run that comes to another region while a worker holds its workflow task: what its history says."""

from __future__ import annotations

from functools import partial

from temporalio.api.enums.v1 import event_type_pb2, failed_cause_pb2

from history_store.engine import inputs, workflow_task
from history_store.engine import state as st
from history_store.engine.run import Run, Transaction
from tests.history_store.engine.world import NAMESPACE, World


class Moved(World):
    """A world that is another region's from some moment on."""

    version = 1

    def transact(self, change):  # type: ignore[no-untyped-def]
        tx = Transaction(self, self.now, NAMESPACE, self.version)
        result = change(tx)
        self.commit(tx)
        return result

    def told(self, run: Run, first: int = 1) -> list[str]:
        return [
            f"{event.event_id} {event_type_pb2.EventType.Name(event.event_type)[11:]} @{event.version}"
            for event in self.events(run)
            if event.event_id >= first
        ]

    def start_task(self, run: Run) -> None:
        self.transact(lambda tx: workflow_task.start(tx, tx.open(run), "r", "worker"))

    def fail_over(self, run: Run) -> None:
        self.version = 2
        self.transact(lambda tx: workflow_task.fail_over(tx, tx.open(run)))


def signal(tx: Transaction, run: Run, name: str) -> None:
    inputs.signal(tx, tx.open(run), name, None, None, "client", "", [])


def test_the_task_fails_what_waited_follows_and_another_is_scheduled_on_the_normal_queue() -> None:
    world = Moved()
    run = world.start()
    world.start_task(run)
    run.state.sticky_queue, run.state.sticky_timeout = "sticky", 5 * st.SECOND
    world.transact(partial(signal, run=run, name="first"))
    world.transact(partial(signal, run=run, name="second"))
    world.fail_over(run)
    assert world.told(run) == [
        "1 WORKFLOW_EXECUTION_STARTED @1",
        "2 WORKFLOW_TASK_SCHEDULED @1",
        "3 WORKFLOW_TASK_STARTED @1",
        "4 WORKFLOW_TASK_FAILED @2",
        "5 WORKFLOW_EXECUTION_SIGNALED @2",
        "6 WORKFLOW_EXECUTION_SIGNALED @2",
        "7 WORKFLOW_TASK_SCHEDULED @2",
    ]
    failed = world.events(run)[3].workflow_task_failed_event_attributes
    assert failed.scheduled_event_id == 2
    assert failed.started_event_id == 3
    assert failed.cause == failed_cause_pb2.WORKFLOW_TASK_FAILED_CAUSE_FAILOVER_CLOSE_COMMAND
    assert failed.identity == "history-service"
    assert not failed.HasField("failure")
    task = run.state.task
    assert task is not None
    assert (task.attempt, task.started_id, task.queue, task.sticky) == (1, 0, "q", False)
    assert run.state.version == 2
    world.restart()
    again = world.find("wf")
    assert again is not None
    assert again.state.version == 2
    assert not again.buffered


def test_a_task_in_a_later_attempt_fails_in_silence_and_the_next_is_a_first_one() -> None:
    world = Moved()
    run = world.start()
    world.start_task(run)
    world.transact(lambda tx: workflow_task.time_out(tx, tx.open(run)))
    world.start_task(run)
    assert run.state.task is not None
    assert run.state.task.attempt == 2
    world.fail_over(run)
    assert world.told(run, 4) == ["4 WORKFLOW_TASK_TIMED_OUT @1", "5 WORKFLOW_TASK_SCHEDULED @2"]
    assert run.state.task.attempt == 1


def test_events_carry_the_new_version_from_the_first_write_on() -> None:
    world = Moved()
    run = world.start()
    world.version = 2
    world.transact(partial(signal, run=run, name="s"))
    assert world.told(run, 2) == ["2 WORKFLOW_TASK_SCHEDULED @1", "3 WORKFLOW_EXECUTION_SIGNALED @2"]
    world.version = 1
    world.transact(partial(signal, run=run, name="s"))
    assert world.told(run, 4) == ["4 WORKFLOW_EXECUTION_SIGNALED @2"], "versions never fall"
