"""A scene as text: what was done, what was answered, and the events that came of it."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message
from temporalio.api.common.v1.message_pb2 import WorkflowExecution
from temporalio.api.enums.v1 import workflow_pb2
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from tests.cluster.frontend.services.conftest import FakeCall, Refused
from tests.cluster.hosting.play import Play, line


class Story:
    """Tells a scene."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self._lines: list[str] = []
        self._runs: dict[str, str] = {}  # run id -> what the story calls it
        self._told: dict[str, int] = {}  # run id -> events told

    def text(self) -> str:
        """What was told, run ids by their names."""
        text = "\n".join(self._lines) + "\n"
        for run_id, name in self._runs.items():
            text = text.replace(run_id, name)
        return text

    def say(self, what: str) -> None:
        """A line."""
        self._lines.append(what)

    def title(self, what: str) -> None:
        """Something begins."""
        self._lines += ["", f"== {what}"]

    async def tell(self, workflow_id: str = "w", run_id: str = "", *, whole: bool = False) -> None:
        """The events of a run that have not been told yet."""
        found = await self.play.describe(workflow_id, run_id)
        run_id = found.workflow_execution_info.execution.run_id
        if run_id not in self._runs:
            count = sum(1 for name in self._runs.values() if name.startswith(f"<{workflow_id} "))
            self._runs[run_id] = f"<{workflow_id} {count + 1}>"
        status = workflow_pb2.WorkflowExecutionStatus.Name(found.workflow_execution_info.status)
        self.say(f"{self._runs[run_id]} {status.removeprefix('WORKFLOW_EXECUTION_STATUS_').lower()}")
        events = await self.play.events(workflow_id, run_id)
        first = 1 if whole else self._told.get(run_id, 0) + 1
        self._lines += ["  " + line(event) for event in events if event.event_id >= first]
        self._told[run_id] = len(events)

    async def ask(self, request: Message, **options: Any) -> Any:
        """A call whose answer is told: "ok", or the status."""
        call = self.play.begin(request, **options)
        await self.play.settle()
        self.answer(request, call)
        return call.answer.result() if call.done and call.answer.exception() is None else None

    def answer(self, request: Message, call: FakeCall) -> None:
        """What a call was told."""
        name = request.DESCRIPTOR.name.removesuffix("Request")
        if not call.done:
            self.say(f"{name}: waits")
            return
        error = call.answer.exception()
        if isinstance(error, Refused):
            kinds = [detail.TypeName().rpartition(".")[2] for detail in error.details]
            self.say(f"{name}: {error.code} {error.message}" + (f" {kinds}" if kinds else ""))
        else:
            self.say(f"{name}: ok")


def start(workflow_id: str = "w", request_id: str = "", **fields: Any) -> wire.StartWorkflowExecutionRequest:
    """StartWorkflowExecution."""
    request = wire.StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, request_id=request_id, **fields
    )
    request.workflow_type.name = "W"
    if not request.HasField("task_queue"):
        request.task_queue.name = "q"
    return request


def terminate(workflow_id: str = "w") -> wire.TerminateWorkflowExecutionRequest:
    """TerminateWorkflowExecution."""
    return wire.TerminateWorkflowExecutionRequest(
        namespace="default", reason="enough", workflow_execution=WorkflowExecution(workflow_id=workflow_id)
    )
