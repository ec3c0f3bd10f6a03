"""Workers of the simulated region: they poll, run the program and the activities, and die now and then.

A worker keeps what it read of the runs that stick to it, as an SDK does, and reads the whole history where
it lacks something. An answer whose fate is not known is sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from temporalio.api.enums.v1.task_queue_pb2 import TaskQueueKind
from temporalio.api.failure.v1.message_pb2 import ApplicationFailureInfo, Failure
from temporalio.api.taskqueue.v1.message_pb2 import StickyExecutionAttributes, TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim import program
from chaos.sim.calls import Refused
from chaos.sim.clients import NAMESPACE, QUEUE, Caller
from chaos.sim.program import Reading
from history_store.engine.errors import Code

if TYPE_CHECKING:
    from chaos.sim.record import Notes
    from chaos.sim.world import World

POLL_S = 8.0
STICKY_S = 2.0  # a task that waits so long for its sticky worker goes to all
CACHED_RUNS_MAX = 20
FORGOTTEN = 0.02  # the share of activities whose worker hangs
FAILING = 0.1
TRY_AGAIN = Failure(message="try again", application_failure_info=ApplicationFailureInfo(type="passing"))


class Worker(Caller):
    """One process with pollers of each kind."""

    def __init__(self, world: World, notes: Notes, rng: random.Random, label: str) -> None:
        super().__init__(world, notes, rng, label)
        self._queue = TaskQueue(name=QUEUE, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
        self._sticky = TaskQueue(
            name=f"{QUEUE}-{label}", kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=QUEUE
        )
        self._sticks = rng.random() < 0.7
        self._readings: OrderedDict[str, Reading] = OrderedDict()
        self._tasks: dict[asyncio.Task[None], None] = {}  # in order, the same in every run
        self._numbers = 0
        self._stopping = False

    def start(self) -> None:
        """Begin to poll."""
        queues = [self._queue, self._queue] + ([self._sticky, self._sticky] if self._sticks else [])
        for queue in queues:
            self._begin(self._poll_workflows(queue))
        for _ in range(2):
            self._begin(self._poll_activities())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.notes.trace.problem(f"{self.label} failed: {error!r}")

    async def stop(self) -> None:
        """The process ends, and with it all it was doing."""
        self._stopping = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        self.hang_up()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _name(self, what: str) -> str:
        self._numbers += 1
        return f"{what}-{self.label}-{self._numbers}"

    # ---- workflow tasks

    async def _poll_workflows(self, queue: TaskQueue) -> None:
        poll = wire.PollWorkflowTaskQueueRequest(namespace=NAMESPACE, task_queue=queue, identity=self.label)
        while not self._stopping:
            try:
                found = await self.call(
                    "PollWorkflowTaskQueue", poll, wire.PollWorkflowTaskQueueResponse, POLL_S
                )
                task: wire.PollWorkflowTaskQueueResponse | None = found
                while task is not None and task.task_token:
                    task = await self._do(task)
            except Refused:
                self.move_on()
                await self.pause()

    async def _do(
        self, task: wire.PollWorkflowTaskQueueResponse
    ) -> wire.PollWorkflowTaskQueueResponse | None:
        """Answer a task; the next one, if the answer's answer brings one."""
        run_id = task.workflow_execution.run_id
        self.notes.runs.setdefault(run_id, task.workflow_execution.workflow_id)
        self.notes.handed(task.task_token, self._name("got"), f"a workflow task of {run_id}")
        reading = await self._read(task)
        commands, messages = program.decide(reading, task.messages, QUEUE)
        name = self._name("task")
        request = wire.RespondWorkflowTaskCompletedRequest(
            namespace=NAMESPACE, task_token=task.task_token, commands=commands, messages=messages,
            identity=name, return_new_workflow_task=True,
        )  # fmt: skip
        if self._sticks:
            request.sticky_attributes.CopyFrom(
                StickyExecutionAttributes(
                    worker_task_queue=self._sticky, schedule_to_start_timeout=program.seconds(STICKY_S)
                )
            )
        if self.rng.random() < 0.3:
            await asyncio.sleep(self.rng.uniform(0.0, 0.05))
        self._readings.pop(run_id, None)
        method = "RespondWorkflowTaskCompleted"
        try:
            answer = await self.again(method, request, wire.RespondWorkflowTaskCompletedResponse)
        except Refused as refused:
            if refused.code not in (Code.NOT_FOUND, Code.INVALID_ARGUMENT):
                await self.pause()
            return None
        must_show = bool(commands) or not task.messages
        self.notes.task_answers[name] = (run_id, task.started_event_id, must_show)
        if self._sticks and must_show:
            self._keep(run_id, reading)
        return answer.workflow_task if answer.HasField("workflow_task") else None

    async def _read(self, task: wire.PollWorkflowTaskQueueResponse) -> Reading:
        run_id = task.workflow_execution.run_id
        events = list(task.history.events)
        known = self._readings.get(run_id)
        first = events[0].event_id if events else 0
        if first == 1 and not task.next_page_token:
            reading = Reading()
        elif known is not None and first == known.last + 1 and not task.next_page_token:
            reading = known.copy()
        else:
            reading = Reading()
            execution = task.workflow_execution
            _, events = await self.read_history(execution.workflow_id, execution.run_id)
            events = [event for event in events if event.event_id <= task.started_event_id]
        self.notes.saw(run_id, events)
        reading.read(events)
        return reading

    def _keep(self, run_id: str, reading: Reading) -> None:
        self._readings[run_id] = reading
        if len(self._readings) > CACHED_RUNS_MAX:
            self._readings.popitem(last=False)

    # ---- activities

    async def _poll_activities(self) -> None:
        poll = wire.PollActivityTaskQueueRequest(
            namespace=NAMESPACE, task_queue=self._queue, identity=self.label
        )
        while not self._stopping:
            try:
                task = await self.call(
                    "PollActivityTaskQueue", poll, wire.PollActivityTaskQueueResponse, POLL_S
                )
                if task.task_token:
                    await self._work(task)
            except Refused:
                self.move_on()
                await self.pause()

    async def _work(self, task: wire.PollActivityTaskQueueResponse) -> None:
        rng = self.rng
        run_id = task.workflow_execution.run_id
        what = f"attempt {task.attempt} of activity {task.activity_id} of {run_id}"
        self.notes.handed(what, self._name("got"), what)
        await asyncio.sleep(rng.expovariate(1 / 0.1))
        dice = rng.random()
        if dice < FORGOTTEN:
            return
        name = self._name("did")
        if dice < FORGOTTEN + FAILING:
            failed = wire.RespondActivityTaskFailedRequest(
                namespace=NAMESPACE, task_token=task.task_token, identity=name, failure=TRY_AGAIN
            )
            await self.again("RespondActivityTaskFailed", failed, wire.RespondActivityTaskFailedResponse)
            return
        request = wire.RespondActivityTaskCompletedRequest(
            namespace=NAMESPACE, task_token=task.task_token, identity=name, result=program.payloads(name)
        )
        await self.again("RespondActivityTaskCompleted", request, wire.RespondActivityTaskCompletedResponse)
        self.notes.activity_answers[name] = (run_id, task.activity_id)
