"""The workflows that the region suite runs on the unmodified SDK, and the worker that runs them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.runtime import LoggingConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from chaos.live.region_record import Execution

QUEUE = "region"
# What the SDK warns of during a fault (each try of each call) is what it is there to bear.
QUIET = Runtime(
    telemetry=TelemetryConfig(
        logging=LoggingConfig(filter=TelemetryFilter(core_level="ERROR", other_level="ERROR"))
    )
)
ACTIVITY_S = 5.0  # an attempt whose worker or node was lost is tried again after this


@workflow.defn(name="counter")
class Counter:
    """Adds what updates say, and answers the sum; ends when it is told to."""

    def __init__(self) -> None:
        self._value = 0
        self._signals = 0
        self._closed = False

    @workflow.run
    async def run(self) -> int:
        """The last sum."""
        await workflow.wait_condition(lambda: self._closed)
        return self._value

    @workflow.signal
    def bump(self, name: str) -> None:  # noqa: ARG002 - the name is for the judge, who reads it in the event
        """Is counted."""
        self._signals += 1

    @workflow.signal
    def close(self, name: str) -> None:  # noqa: ARG002
        """Ends it."""
        self._signals += 1
        self._closed = True

    @workflow.update
    def add(self, by: int) -> int:
        """The new sum."""
        self._value += by
        return self._value

    @workflow.query
    def shown(self) -> list[int]:
        """Sum and number of signals."""
        return [self._value, self._signals]


@workflow.defn(name="once")
class Once:
    """One activity."""

    @workflow.run
    async def run(self, name: str) -> str:
        """What the activity said."""
        said: str = await workflow.execute_activity(
            "note", name, result_type=str, start_to_close_timeout=timedelta(seconds=ACTIVITY_S)
        )
        return said


def worker(client: Client, note: Callable[[Execution], None]) -> Worker:
    """A worker for both; `note` hears of every execution of the activity."""

    @activity.defn(name="note")
    async def noted(name: str) -> str:
        info = activity.info()
        note(Execution(info.workflow_run_id or "", info.activity_id, info.attempt))
        return name

    return Worker(
        client,
        task_queue=QUEUE,
        workflows=[Counter, Once],
        activities=[noted],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=200,
        graceful_shutdown_timeout=timedelta(0),
    )
