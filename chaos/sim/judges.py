"""The verdict on a run, besides that on the order of answers (chaos.checkers).

While it runs, `Watch` looks into the nodes: who leads, and which entries are committed. At the end the whole
truth is read back: each run's events by the API, and the rows of every replica. Judges only look.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any
from zlib import crc32

from temporalio.api.enums.v1.event_type_pb2 import EventType
from temporalio.api.history.v1.message_pb2 import HistoryEvent
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.sim import program
from chaos.sim.calls import Refused
from chaos.sim.clients import NAMESPACE, Caller

if TYPE_CHECKING:
    from chaos.sim.record import Notes
    from chaos.sim.world import Node, World
    from cluster.hosting.groups.group import Group

WATCH_S = 0.2
STEADY_S = 10.0
RECORDS = (
    "SELECT slot, run_id, workflow_id, workflow_type, start_time, status, order_key, execution_time, "
    "close_time, execution_duration, task_queue, history_length, history_size_bytes, state_transition_count, "
    "parent_workflow_id, parent_run_id, root_workflow_id, root_run_id, attributes, memo, search_attributes "
    "FROM visibility_executions"
)
CLOSERS = frozenset(
    (
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
    )
)


class Watch:
    """Raft's promises, as far as they can be seen: one leader a term, and what is committed stays."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._leaders: dict[tuple[int, int], str] = {}  # (group, term) -> node
        self._committed: dict[tuple[int, int], int] = {}  # (group, index) -> checksum
        self._looked: dict[tuple[str, int, int], int] = {}  # (node, life, group) -> up to where
        world.trace.on_log.append(self._logged)

    def _logged(self, name: str, line: dict[str, Any]) -> None:
        if line["event"] == "leads":
            self._leads(name, line["group"], line["term"])

    def _leads(self, name: str, group: int, term: int) -> None:
        before = self._leaders.setdefault((group, term), name)
        if before != name:
            self._world.trace.problem(f"{before} and {name} both lead group {group} in term {term}")

    async def run(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(WATCH_S)
            self.look()

    def look(self) -> None:
        """At all nodes."""
        for node in self._world.nodes.values():
            if node.serves:
                for group in node.groups().values():
                    self._look(node, group)

    def _look(self, node: Node, group: Group) -> None:
        raft = group.raft
        if raft.is_leader:
            self._leads(node.name, group.id, raft.term)
        key = (node.name, node.lives, group.id)
        low, high = self._looked.get(key, 0), raft.committed
        if low >= high:
            return
        self._looked[key] = high
        entries = raft.kept_entries()
        if not entries:
            return
        first = entries[0].index
        for entry in entries[max(low + 1 - first, 0) : max(high + 1 - first, 0)]:
            digest = crc32(entry.data, entry.term * 8 + entry.kind)
            if self._committed.setdefault((group.id, entry.index), digest) != digest:
                self._world.trace.problem(
                    f"entry {entry.index} of group {group.id} is committed with two contents; "
                    f"{node.name} has the second"
                )


async def compare_replicas(world: World) -> None:
    """All replicas have the same rows and records, once all have everything."""
    trace = world.trace
    for number in world.numbers():
        for _ in range(200):
            if len({node.groups()[number].committed for node in holders(world, number)}) == 1:
                break
            await asyncio.sleep(0.05)
        else:
            trace.problem(f"the replicas of group {number} do not reach the same entry")
    waits = []
    for node in world.nodes.values():
        flushed: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        node.call(node.member.node.committer.flush, flushed.set_result)
        waits.append(flushed)
    for flushed in waits:
        await flushed
    await asyncio.sleep(1.0)  # what an image brought is shown a little at a time
    if not await world.until_whole(STEADY_S):  # leaders are evened out: one may go to another in this moment
        trace.problem("the region does not stay whole")
        return
    records = {}
    for node in world.nodes.values():
        with_records = node.disk.visibility_connection()
        records[node.name] = sorted(with_records.execute(RECORDS).fetchall())
        with_records.close()
    table = world.table()
    assert table is not None, "the region is whole"
    for number in world.numbers():
        held = holders(world, number)
        images = {node.name: rows_of(node, number) for node in held}
        first, *others = images
        for other in others:
            if images[first] != images[other]:
                trace.problem(f"group {number}: {_difference(images[first], images[other], first, other)}")
        shown = {
            node.name: [row for row in records[node.name] if table.owners[row[0]] == number] for node in held
        }
        for other in others:
            if shown[first] != shown[other]:
                trace.problem(f"{first} and {other} list different executions of shard {number}")


def holders(world: World, number: int) -> list[Node]:
    """The nodes that are members of a group."""
    leader = world.leader(number)
    members = leader.groups()[number].raft.conf.members if leader is not None else ()
    return [node for node in world.nodes.values() if node.node_id in members and number in node.groups()]


def rows_of(node: Node, number: int) -> dict[bytes, bytes]:
    """The stored rows of a replica, without what differs by right: the number of its generation."""
    generation = node.groups()[number].rows.generation
    low, high = generation.to_bytes(4, "big"), (generation + 1).to_bytes(4, "big")
    return {key[4:]: value for key, value in node.disk.scan(low, high)}


def _difference(one: dict[bytes, bytes], two: dict[bytes, bytes], first: str, second: str) -> str:
    for key in sorted({*one, *two}):
        if one.get(key) != two.get(key):
            return f"{first} and {second} differ at row {key!r}: {one.get(key)!r} and {two.get(key)!r}"
    return "no difference"


async def list_runs(caller: Caller) -> dict[str, tuple[str, int]]:
    """Everything that List shows: run id -> (workflow id, status)."""
    found: dict[str, tuple[str, int]] = {}
    request = wire.ListWorkflowExecutionsRequest(namespace=NAMESPACE, page_size=100)
    while True:
        answer = await caller.again("ListWorkflowExecutions", request, wire.ListWorkflowExecutionsResponse)
        for each in answer.executions:
            found[each.execution.run_id] = (each.execution.workflow_id, each.status)
        if not answer.next_page_token:
            return found
        request.next_page_token = answer.next_page_token


async def read_back(caller: Caller, notes: Notes) -> dict[str, list[HistoryEvent]]:
    """Every run's events."""
    listed = await list_runs(caller)
    histories: dict[str, list[HistoryEvent]] = {}
    for run_id, workflow_id in sorted({**notes.runs, **{r: w for r, (w, _) in listed.items()}}.items()):
        if run_id not in listed:
            notes.trace.problem(f"run {run_id} of {workflow_id} is not listed")
        try:
            _, histories[run_id] = await caller.read_history(workflow_id, run_id)
        except Refused as refused:
            notes.trace.problem(f"run {run_id} of {workflow_id} cannot be read: {refused}")
    return histories


def judge_histories(notes: Notes, histories: dict[str, list[HistoryEvent]]) -> None:
    """What was acknowledged is there once, and every history is one that could be."""
    problem = notes.trace.problem
    signals: Counter[str] = Counter()
    twice: Counter[tuple[str, str]] = Counter()
    updates: dict[str, list[int]] = {}  # id -> the sums it made: tried again, it may reach the next run
    tasks: Counter[str] = Counter()
    activities: dict[str, tuple[str, str]] = {}
    for run_id, events in histories.items():
        _judge_shape(notes, run_id, events)
        value = 0
        accepted_here: set[str] = set()
        names: dict[int, str] = {}
        for event in events:
            match event.event_type:
                case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
                    name = event.workflow_execution_signaled_event_attributes.identity
                    signals[name] += 1
                    twice[run_id, name] += 1
                case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED:
                    accepted = event.workflow_execution_update_accepted_event_attributes
                    if accepted.protocol_instance_id in accepted_here:
                        problem(f"update {accepted.protocol_instance_id} was accepted twice by {run_id}")
                    accepted_here.add(accepted.protocol_instance_id)
                    value += int(program.text_of(accepted.accepted_request.input.args))
                    updates.setdefault(accepted.protocol_instance_id, []).append(value)
                case EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                    tasks[event.workflow_task_completed_event_attributes.identity] += 1
                case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                    names[event.event_id] = event.activity_task_scheduled_event_attributes.activity_id
                case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                    done = event.activity_task_completed_event_attributes
                    activities[done.identity] = (run_id, names[done.scheduled_event_id])
                case _:
                    pass
    for (run_id, name), times in twice.items():  # tried again, it may reach the next run as well
        if times > 1:
            problem(f"signal {name} is in {run_id} {times} times")
    for name in signals:
        if name not in notes.signals:
            problem(f"signal {name} was sent by nobody")
    for name, (workflow_id, acknowledged) in notes.signals.items():
        if acknowledged and not signals[name]:
            problem(f"signal {name} of {workflow_id} was acknowledged and is lost")
    for name, (workflow_id, told) in notes.updates.items():
        if told not in updates.get(name, ()):
            problem(
                f"update {name} of {workflow_id} was answered with {told}, "
                f"and the history says {updates.get(name)}"
            )
    for name, (run_id, _, must_show) in notes.task_answers.items():
        if must_show and tasks[name] != 1 and run_id in histories and not _was_closed(histories[run_id]):
            problem(f"workflow task answer {name} of {run_id} is there {tasks[name]} times")
    for name, where in notes.activity_answers.items():
        if activities.get(name) != where and not _was_closed(histories.get(where[0], [])):
            problem(f"the answer {name} for {where} was acknowledged; the history has {activities.get(name)}")


def _was_closed(events: list[HistoryEvent]) -> bool:
    """Whether the run was ended from outside: an answer that came too late is no loss."""
    return not events or events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED


def _judge_shape(notes: Notes, run_id: str, events: list[HistoryEvent]) -> None:
    """One history by itself: contiguous, nothing twice, closed at its end and nowhere else."""
    problem = notes.trace.problem
    if [event.event_id for event in events] != list(range(1, len(events) + 1)):
        problem(f"the event ids of {run_id} are not contiguous: {[event.event_id for event in events]}")
    begun: set[str] = set()
    over: set[str] = set()
    for event in events:
        if (name := _begins(event)) is not None:
            if name in begun:
                problem(f"{name} of {run_id} was begun twice")
            begun.add(name)
        if (name := _ends(event)) is not None:
            if name not in begun:
                problem(f"{name} of {run_id} ended before it began")
            if name in over:
                problem(f"{name} of {run_id} ended twice")
            over.add(name)
        if event.event_type in CLOSERS and event.event_id != len(events):
            problem(f"{run_id} has events after its end")
    if events and events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED and begun - over:
        problem(f"{run_id} completed although {sorted(begun - over)} were not over")


def _begins(event: HistoryEvent) -> str | None:
    match event.event_type:
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            return f"activity {event.event_id}"
        case EventType.EVENT_TYPE_TIMER_STARTED:
            return f"timer {event.timer_started_event_attributes.timer_id}"
        case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            return f"child {event.start_child_workflow_execution_initiated_event_attributes.workflow_id}"
        case _:
            return None


def _ends(event: HistoryEvent) -> str | None:
    match event.event_type:
        case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            return f"activity {event.activity_task_completed_event_attributes.scheduled_event_id}"
        case EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT:
            return f"activity {event.activity_task_timed_out_event_attributes.scheduled_event_id}"
        case EventType.EVENT_TYPE_TIMER_FIRED:
            return f"timer {event.timer_fired_event_attributes.timer_id}"
        case EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED:
            completed = event.child_workflow_execution_completed_event_attributes
            return f"child {completed.workflow_execution.workflow_id}"
        case _:
            return None
