"""Random lives of a few workflow ids in regions that part, fail over by force, and hear of each other again.

Clients and workers do what they may in every region that believes to serve. What a client was told is
accepted is noted; in the end the regions are healed, and judged.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from temporalio.api.enums.v1 import event_type_pb2
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from cluster.hosting.shards.workflow_rows import Sight, gather
from history_store.engine.state import RUNNING
from history_store.rare import reached
from replication import branches, inputs
from tests.cluster.frontend.services.conftest import Refused
from tests.cluster.hosting.play import accept, activity, command, done, respond, timer
from tests.cluster.hosting.region.several import Place, World

E = event_type_pb2
WORKFLOWS = ("w", "v")


@dataclass
class Client:
    """What clients were told."""

    signals: dict[str, str] = field(default_factory=dict)  # name -> workflow id
    starts: dict[str, str] = field(default_factory=dict)  # run id -> workflow id
    held: dict[int, list[Any]] = field(default_factory=dict)  # activity tasks, by region
    updates: dict[str, str] = field(default_factory=dict)  # update id -> workflow id, accepted ones


class Chances:
    """One random life."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.client = Client()
        self.count = 0
        self.calls: list[tuple[str, str, Any]] = []

    async def run(self, steps: int) -> None:
        """Do this many things."""
        for _ in range(steps):
            place = self.rng.choice([place for place in self.world.places if place.active])
            if self.rng.random() < 0.12:
                await self.upset()
            else:
                await self.act(place)
            if self.rng.random() < 0.3:
                await place.play.settle()

    async def upset(self) -> None:
        """The network, or who serves, changes."""
        rng, world = self.rng, self.world
        what = rng.random()
        if what < 0.45:
            one, other = rng.sample(world.places, 2)
            world.part(one, other)
        elif what < 0.8:
            rng.choice(world.places).take_over()
        else:
            world.heal()
            if rng.random() < 0.5:
                await world.same()

    async def act(self, place: Place) -> None:
        """A client or a worker does something."""
        rng = self.rng
        workflow_id = rng.choice(WORKFLOWS)
        deeds = (self.start, self.signal, self.work, self.end, self.cancel, self.update)
        try:
            await rng.choices(deeds, (3, 6, 8, 3, 0.4, 1.5))[0](place, workflow_id)
        except Refused:
            reached("a call is refused")

    async def start(self, place: Place, workflow_id: str) -> None:
        self.count += 1
        run_id = await self._start(place, workflow_id)
        self.client.starts[run_id] = workflow_id

    async def _start(self, place: Place, workflow_id: str) -> str:
        request = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id=workflow_id, request_id=f"start-{self.count}"
        )
        request.workflow_type.name = "W"
        request.task_queue.name = "q"
        run_id: str = (await place.play.call(request)).run_id
        return run_id

    async def signal(self, place: Place, workflow_id: str) -> None:
        self.count += 1
        name = f"s{self.count}"
        await place.play.signal(workflow_id, name, name if self.rng.random() < 0.5 else "")
        self.client.signals[name] = workflow_id

    async def cancel(self, place: Place, workflow_id: str) -> None:
        if self.rng.random() < 0.5:
            await place.play.cancel(workflow_id)
        else:
            await place.play.terminate(workflow_id)

    async def update(self, place: Place, workflow_id: str) -> None:
        self.count += 1
        name = f"u{self.count}"
        request = place.play.update_request(name, 2, workflow_id)
        self.calls.append((name, workflow_id, place.play.begin(request)))
        await place.play.settle()

    async def work(self, place: Place, workflow_id: str) -> None:
        """A worker answers whatever workflow task there is."""
        call = place.play.begin_poll()
        await place.play.settle()
        if not call.done:
            call.cancel()
            return
        task = wire.PollWorkflowTaskQueueResponse.FromString(call.answer.result())
        if self.rng.random() < 0.15:
            return  # and never answers
        self.count += 1
        fields: dict[str, Any] = {}
        sent = [message.protocol_instance_id for message in task.messages]
        if sent:
            fields["messages"] = [m for name in sent for m in (accept(name), respond(name))]
        await place.play.complete(task.task_token, *self.commands(), **fields)

    def commands(self) -> list[Any]:
        what = self.rng.random()
        if what < 0.35:
            return [activity(f"a{self.count}")]
        if what < 0.5:
            return [timer(f"t{self.count}", 3600)]
        if what < 0.62:
            return [done()]
        if what < 0.8:
            again = {"workflow_type": {"name": "W"}, "task_queue": {"name": "q"}}
            return [command("CONTINUE_AS_NEW_WORKFLOW_EXECUTION", **again)]
        return []

    async def end(self, place: Place, workflow_id: str) -> None:
        """A worker takes an activity, or ends one."""
        held = self.client.held.setdefault(place.index, [])
        if held and self.rng.random() < 0.6:
            await place.play.activity_done(held.pop().task_token)
            return
        call = place.play.begin_poll(kind="Activity")
        await place.play.settle()
        if call.done:
            held.append(wire.PollActivityTaskQueueResponse.FromString(call.answer.result()))
        else:
            call.cancel()

    # ---- the end

    async def judge(self) -> None:
        """All have the same; nothing that was accepted is lost, and nothing is there twice."""
        world = self.world
        world.heal()
        await world.same()
        left_out = sum(
            host.streams.conflicts.left_out
            for place in world.places
            for host in place.play.node.shards
            if host.streams is not None
        )
        assert not any(place.pending() for place in world.places), "no input waits for ever"
        lost = []
        for workflow_id in WORKFLOWS:
            seen, current = self.histories(world.serving, workflow_id)
            twice = [name for name, count in Counter(_signals(current)).items() if count > 1]
            assert not twice, f"{workflow_id}: twice in the current run: {twice}"
            names = {name for events in seen for name in _signals(events)}
            wanted = [name for name, w in self.client.signals.items() if w == workflow_id]
            lost += [name for name in wanted if name not in names]
        assert len(lost) <= left_out, f"accepted and lost: {lost}, left out {left_out}"

    def histories(
        self, place: Place, workflow_id: str
    ) -> tuple[list[list[HistoryEvent]], list[HistoryEvent]]:
        """The events of all runs that count, buffers included, and the current one's."""
        namespace_id = place.play.node.meta.by_name["default"].id
        host = place.play.node.shard_of(namespace_id, workflow_id)
        rows = gather(Sight(host.rows), namespace_id, workflow_id)
        held = branches.of_rows(namespace_id, workflow_id, rows)
        open_runs = [run_id for run_id, state in held.runs.items() if state.status == RUNNING]
        assert open_runs in ([], [held.current]), "one open run, and that is the current one"
        assert held.current or not held.runs
        seen = {run_id: list(inputs.events_in(held.rows[run_id].items())) for run_id in held.live()}
        return list(seen.values()), seen.get(held.current, [])


def _signals(events: list[HistoryEvent]) -> list[str]:
    return [
        event.workflow_execution_signaled_event_attributes.signal_name
        for event in events
        if event.event_type == E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
