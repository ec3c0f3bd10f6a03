"""What can be proved of a run afterwards: from its event history, the ledger, and the deaths the demo caused.

Pure: it judges what was recorded and touches nothing. The history is the server's account, the ledger the
workers', the deaths the director's; a check compares at least two of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from temporalio.api.enums.v1 import EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent

from sdk.demo.ledger import Entry, State, paid
from sdk.demo.messages import MODEL_CALLS

NANOSECONDS = 1_000_000_000

_STARTED = ("activity_task_started_event_attributes", "workflow_task_started_event_attributes")
_ENDED = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "completed",
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: "failed",
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "timed out",
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "canceled",
    EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED: "completed",
    EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED: "failed",
    EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT: "timed out",
}


@dataclass
class Step:
    """What belongs together: the events of one activity, of one workflow task, or a single event."""

    kind: str  # model call, tool, workflow task, event
    name: str
    events: list[int]  # ids
    begin_ns: int
    end_ns: int
    attempt: int = 0  # of activities and workflow tasks; the last one
    outcome: str = ""
    last_failure: str = ""  # of the attempt before the last
    versions: list[int] = field(default_factory=list)  # of its events, each once; they name the regions

    @property
    def seconds(self) -> float:
        """From its first event to its last: waiting, retries and all."""
        return (self.end_ns - self.begin_ns) / NANOSECONDS


@dataclass
class Death:
    """A SIGKILL, and what was known on both sides of it."""

    who: str  # worker, server, region
    pid: int
    killed_ns: int
    before: list[HistoryEvent]  # the history as read just before
    in_flight: list[str]  # activities started and not ended just before, by id
    successor: int = 0  # process id
    back_ns: int = 0  # when the successor was started (worker) or answered (server)
    node: str = ""  # of a region: which server; or which region

    @property
    def name(self) -> str:
        """As it is called in a sentence, without an article."""
        if self.who == "region":
            return f"region {self.node}"
        return f"node {self.node}" if self.node else self.who

    @property
    def the_name(self) -> str:
        """As it is called in a sentence."""
        return self.name if self.node else f"the {self.who}"


@dataclass(frozen=True)
class Check:
    """One thing that has to be so, and what was found."""

    what: str
    ok: bool
    found: str


@dataclass(frozen=True)
class Totals:
    """The sums at the end."""

    model_calls_paid: int
    model_activities: int
    model_calls_refused: int
    tokens: int
    retries: int  # of tools; those of model calls are the refused ones
    events: int
    duration_s: float
    lost_s: list[float]  # of each death: from the kill to the next event of the run


def moment(event: HistoryEvent) -> int:
    """When it happened, in nanoseconds since 1970."""
    return event.event_time.seconds * NANOSECONDS + event.event_time.nanos


def steps_of(events: Sequence[HistoryEvent]) -> list[Step]:
    """Sort a history into steps, in the order of their first events."""
    steps: list[Step] = []
    of_scheduled: dict[int, Step] = {}
    for event in events:
        attributes = getattr(event, str(event.WhichOneof("attributes")))
        scheduled = getattr(attributes, "scheduled_event_id", 0)
        step = of_scheduled.get(scheduled)
        if step is None:
            step = _new_step(event)
            step.versions.append(event.version)
            steps.append(step)
            of_scheduled[event.event_id] = step
            continue
        step.events.append(event.event_id)
        if event.version not in step.versions:
            step.versions.append(event.version)
        step.end_ns = moment(event)
        if event.WhichOneof("attributes") in _STARTED:
            if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                step.attempt = max(1, attributes.attempt)
                step.last_failure = reason(attributes.last_failure)
        elif event.event_type in _ENDED:
            step.outcome = _ENDED[event.event_type]
    return steps


def _new_step(event: HistoryEvent) -> Step:
    at = moment(event)
    if event.event_type == EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
        scheduled = event.activity_task_scheduled_event_attributes
        kind = "model call" if scheduled.activity_type.name in MODEL_CALLS else "tool"
        return Step(kind, scheduled.activity_id, [event.event_id], at, at)
    if event.event_type == EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
        attempt = max(1, event.workflow_task_scheduled_event_attributes.attempt)
        return Step("workflow task", "workflow task", [event.event_id], at, at, attempt)
    name = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_").replace("_", " ").lower()
    if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
        name += f": {event.workflow_execution_signaled_event_attributes.signal_name}"
    return Step("event", name, [event.event_id], at, at)


def reason(failure: Failure) -> str:
    """A failure in a few words; empty if there is none."""
    if failure.HasField("timeout_failure_info"):
        kind = {1: "start to close", 2: "schedule to start", 3: "schedule to close", 4: "heartbeat"}
        return f"{kind.get(failure.timeout_failure_info.timeout_type, 'unknown')} time-out"
    return failure.message


def totals_of(events: Sequence[HistoryEvent], entries: Sequence[Entry], deaths: Sequence[Death]) -> Totals:
    """Add up."""
    steps = steps_of(events)
    calls = [step for step in steps if step.kind == "model call"]
    return Totals(
        model_calls_paid=sum(paid(list(entries)).values()),
        model_activities=len(calls),
        tokens=sum(entry.tokens for entry in entries),
        model_calls_refused=sum(entry.state is State.REFUSED for entry in entries),
        retries=sum(step.attempt - 1 for step in steps if step.kind == "tool"),
        events=len(events),
        duration_s=(moment(events[-1]) - moment(events[0])) / NANOSECONDS,
        lost_s=[lost(events, death) for death in deaths],
    )


def lost(events: Sequence[HistoryEvent], death: Death) -> float:
    """From the kill to the next event of the run, in seconds."""
    later = [moment(event) for event in events if moment(event) > death.killed_ns]
    return (min(later) - death.killed_ns) / NANOSECONDS if later else 0.0


def checks_of(
    run_id: str, events: Sequence[HistoryEvent], entries: Sequence[Entry], deaths: Sequence[Death]
) -> list[Check]:
    """Everything that has to be so after the demo."""
    steps = steps_of(events)
    calls = [step for step in steps if step.kind == "model call"]
    processes = [death for death in deaths if death.who != "region"]
    return [
        _ended_well(events, steps),
        *_paid_once(run_id, calls, entries),
        *(_nothing_lost(events, death) for death in deaths),
        *(_only_free_things_in_flight(death, calls) for death in deaths),
        _repeated(steps, deaths),
        _finished(steps, deaths),
        _approved_once(events, deaths),
        Check(
            "others took over from the killed",
            len(processes) == 2 and all(death.successor not in (0, death.pid) for death in processes),
            ", ".join(f"{death.name} {death.pid} → {death.successor}" for death in processes),
        ),
    ]


def _ended_well(events: Sequence[HistoryEvent], steps: Sequence[Step]) -> Check:
    completed = events[-1].event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED
    # A workflow task whose server changed under it may have to wait for its time-out; that costs time only.
    waited = [step for step in steps if step.kind == "workflow task" and step.outcome == "timed out"]
    bad = [step.name for step in steps if step.outcome not in ("", "completed") and step not in waited]
    found = f"{len(events)} events, the last is {EventType.Name(events[-1].event_type)[11:].lower()}"
    found += f"; {len(waited)} workflow tasks waited for their time-outs" if waited else ""
    return Check("the run completed", completed and not bad, found + (f"; {bad}" if bad else ""))


def _paid_once(run_id: str, calls: Sequence[Step], entries: Sequence[Entry]) -> list[Check]:
    """The ledger against the history: as many calls, the same calls, none twice."""
    counted = paid(list(entries))
    twice = sorted(key for key, times in counted.items() if times > 1)
    wanted = {f"{run_id}/{step.name}" for step in calls if step.outcome == "completed"}
    refused = Counter(entry.key for entry in entries if entry.state is State.REFUSED)
    again = [step.name for step in calls if step.attempt != 1 + refused[f"{run_id}/{step.name}"]]
    return [
        Check(
            "no model call was paid twice",
            not twice,
            f"{sum(counted.values())} calls in the ledger, {len(counted)} idempotency keys"
            + (f"; twice: {twice}" if twice else ""),
        ),
        Check(
            "what was paid is what the history has",
            set(counted) == wanted and bool(wanted),
            f"{len(wanted)} completed model activities"
            + (f"; differs: {sorted(set(counted) ^ wanted)}" if set(counted) != wanted else ""),
        ),
        Check(
            "no model activity was tried again, but where the endpoint refused",
            not again,
            f"{sum(refused.values())} refused" + (f"; tried again: {again}" if again else ""),
        ),
    ]


def _nothing_lost(events: Sequence[HistoryEvent], death: Death) -> Check:
    kept = list(events[: len(death.before)]) == death.before
    return Check(
        f"{death.the_name}'s death took nothing from the history",
        kept and bool(death.before),
        f"its {len(death.before)} events from before are its beginning now, each equal",
    )


def _only_free_things_in_flight(death: Death, calls: Sequence[Step]) -> Check:
    paid_ones = sorted(set(death.in_flight) & {step.name for step in calls})
    return Check(
        f"no model call was in flight when {death.the_name} died",
        not paid_ones,
        f"in flight: {', '.join(death.in_flight) or 'nothing'}",
    )


def _repeated(steps: Sequence[Step], deaths: Sequence[Death]) -> Check:
    lost_ones = {name for death in deaths if death.who == "worker" for name in death.in_flight}
    repeated = {step.name: step.attempt for step in steps if step.name in lost_ones}
    return Check(
        "what the dead worker had in its hands was done again",
        bool(lost_ones) and set(repeated) == lost_ones and all(times > 1 for times in repeated.values()),
        ", ".join(f"{name}: attempt {times}" for name, times in repeated.items()),
    )


def _finished(steps: Sequence[Step], deaths: Sequence[Death]) -> Check:
    """A worker that lives through the server's death keeps its work and hands it to the successor."""
    held = {name for death in deaths if death.who != "worker" for name in death.in_flight}
    finished = {step.name: step.attempt for step in steps if step.name in held}
    return Check(
        "what the worker did while a server was dead was taken by its successor",
        bool(held) and set(finished) == held and all(times == 1 for times in finished.values()),
        ", ".join(f"{name}: attempt {times}" for name, times in finished.items()),
    )


def _approved_once(events: Sequence[HistoryEvent], deaths: Sequence[Death]) -> Check:
    """The human's answer is in the history once, though the server that acknowledged it is dead."""
    signals = [
        event.event_id
        for event in events
        if event.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    ]
    before = [len(death.before) for death in deaths if death.who == "server"]
    ok = len(signals) == 1 and len(before) == 1 and signals[0] <= before[0]
    return Check("the answer that the dead server acknowledged is there, once", ok, f"event {signals}")
