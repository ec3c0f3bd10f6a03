"""What must hold of three regions when all is quiet: judges of the model, which change nothing.

They look at the events that the effects have put on the shelves, and ask the records as little as they can.
"""

from __future__ import annotations

from collections import Counter

from replication.merge import Buffer, Event, Events, History, Kind, Record, Settled, Tomb
from replication.merge.entries import CLOSING, ENDS_OF_ACTIVITIES
from replication.merge.history import contains, tip
from replication.merge.reapply import held, pending
from replication.merge.rows import from_rows, to_rows

from .model import Region, World
from .shelf import Shelf

UPDATES = frozenset({Kind.UPDATE_ADMITTED, Kind.UPDATE_ACCEPTED})


def check(world: World) -> None:
    settle_down(world)
    world.forget()
    settle_down(world)
    for name in world.names:
        converged({number: region.records[name] for number, region in world.regions.items()})
        for region in world.regions.values():
            little_is_kept(region.records[name])


def settle_down(world: World) -> None:
    for name in world.names:
        shelves = {number: region.shelves[name] for number, region in world.regions.items()}
        records = {number: region.records[name] for number, region in world.regions.items()}
        for number, record in records.items():
            effects_suffice(record, shelves[number])
            at_rest(record, world.regions[number])
            one_live_run(record)
            chains_are_whole(record)
            only_clients_close(world, record, shelves[number])
            nothing_twice(record, shelves[number])
            nothing_lost(world, name, record, shelves[number])
        agreed(records)
        one_sequence(shelves)


def paths(record: Record) -> dict[str, list[History]]:
    return {run.id: sorted(branch.history for branch in run.branches) for run in record.runs.values()}


def converged(records: dict[int, Record]) -> None:
    """When nobody remembers more than it needs, all remember the same."""
    first = records[1]
    for record in records.values():
        assert record.tombstones == first.tombstones, "tombstones differ"
        assert record.decisions == first.decisions, "decisions differ"
        assert record.waiting == first.waiting, "what waits differs"


def little_is_kept(record: Record) -> None:
    keys = {event.key for run in record.runs.values() for event in run.index}
    keys.update(waiting.event.key for waiting in record.waiting)
    assert all(keys.issuperset(decision.keys) for decision in record.decisions.values())
    assert len(record.tombstones) <= 1 + len(record.decisions)


def agreed(records: dict[int, Record]) -> None:
    first = records[1]
    for record in records.values():
        assert paths(record) == paths(first), "branches differ"
        for run in record.runs.values():
            assert run.branch.history == first.runs[run.id].branch.history, (
                f"{run.id}: current branches differ"
            )
            assert run.branch.key == first.runs[run.id].branch.key
        assert record.current == first.current, "current runs differ"
        assert record.zombies() == first.zombies()


def one_sequence(shelves: dict[int, Shelf]) -> None:
    seen: dict[tuple[str, int, int], Event] = {}
    for shelf in shelves.values():
        for run, branches in shelf.branches.items():
            for event in (event for events in branches.values() for event in events):
                known = seen.setdefault((run, event.id, event.version), event)
                assert known == event, f"I1: {run} {event.id}"


def effects_suffice(record: Record, shelf: Shelf) -> None:
    assert set(shelf.branches) == set(record.runs)
    for run in record.runs.values():
        stored = shelf.branches[run.id]
        assert set(stored) == {branch.number for branch in run.branches}
        for branch in run.branches:
            events = stored[branch.number]
            assert len(events) == tip(branch.history).event_id
            assert all(contains(branch.history, event.id, event.version) for event in events)
            assert branch.closed is (events[-1].kind in CLOSING)
    for run in record.runs.values():
        assert shelf.state[run.id] == shelf.branches[run.id][run.current], "the engine's state is another's"
    assert shelf.current == record.current
    assert shelf.zombies == record.zombies()
    assert shelf.buffer == {(waiting.run, waiting.event.key) for waiting in held(record)}
    assert from_rows(shelf.rows.items()) == record
    assert from_rows(to_rows(record)) == record


def at_rest(record: Record, region: Region) -> None:
    assert record.clean, "something is parked or isolated"
    # In every region: whoever is active next has nothing left to do.
    assert pending(record, region.version, region.world.policy) == (), "something is pending"


def one_live_run(record: Record) -> None:
    live = [run.id for run in record.runs.values() if not run.closed and not record.is_zombie(run.id)]
    assert len(live) <= 1
    keys = {run.branch.key: run.id for run in record.runs.values()}
    if keys and max(keys) > max((grave.key for grave in record.tombstones.values()), default=max(keys)):
        assert record.current == keys[max(keys)]
    if keys and not record.tombstones:
        assert record.current, "the workflow id is nobody's"
    for run in record.runs.values():
        for one in run.branches:
            others = (other for other in run.branches if other is not one)
            assert not any(contains(other.history, *tip(one.history)) for other in others), "not leaves"


def chains_are_whole(record: Record) -> None:
    """Predecessor closed <=> successor exists."""
    for run in record.runs.values():
        if run.previous is not None and run.previous.run in record.runs:
            place = (run.previous.event_id, run.previous.version)
            branches = record.runs[run.previous.run].branches
            assert any(contains(branch.history, *place) for branch in branches)


def leading(record: Record, shelf: Shelf, run_id: str) -> list[Event]:
    """The run's current branch, after what earlier (and older) runs did until they continued as it."""
    before = {
        events[-1].payload.decode(): (run, events)
        for run, branches in shelf.branches.items()
        for events in branches.values()
        if events[-1].kind is Kind.CONTINUED
    }
    newest = record.runs[run_id].branch.key
    events = list(shelf.branches[run_id][record.runs[run_id].current])
    while run_id in before:
        run_id, earlier = before[run_id]
        if record.runs[run_id].branch.key > newest:
            break
        events += earlier
    return events


def only_clients_close(world: World, record: Record, shelf: Shelf) -> None:
    """The run that has the workflow id is closed only if a client or the workflow closed it."""
    if record.current and record.runs[record.current].closed:
        last = shelf.branches[record.current][record.runs[record.current].current][-1]
        assert last.kind is Kind.CONTINUED or last.payload in world.closes, "closed by nobody"


def nothing_twice(record: Record, shelf: Shelf) -> None:
    """No input twice in a run's current branch, nor along the chain that led to it."""
    for run in record.runs.values():
        events = shelf.branches[run.id][run.current]
        ends = Counter(event.about for event in events if event.kind in ENDS_OF_ACTIVITIES)
        assert all(count == 1 for count in ends.values()), f"{run.id}: an activity ended twice"
        for event in events:
            if event.kind in ENDS_OF_ACTIVITIES:
                assert events[int(event.about) - 1].payload == event.payload, "another activity's end"
        if not record.is_zombie(run.id):
            events = leading(record, shelf, run.id)
        inputs = Counter(e.payload for e in events if e.kind is Kind.SIGNALED or e.kind in UPDATES)
        assert all(count == 1 for count in inputs.values()), f"{run.id}: twice {inputs.most_common(1)}"


def nothing_lost(world: World, name: str, record: Record, shelf: Shelf) -> None:
    counting = [
        event
        for run in record.runs.values()
        if not record.is_zombie(run.id)
        for event in leading(record, shelf, run.id)
    ]
    delivered = {event.payload for event in counting}
    for payload, (owner_name, _) in world.acknowledged.items():
        if owner_name == name and payload not in delivered:
            after = world.dropped.get(payload, [])
            if world.deletes:
                gone = bool(after) or payload in on_graves(world, name)
            else:  # the namespace wants no reset, and the run that had ended has
                gone = not world.policy.reset_closed and any(event in counting for event in after)
            assert gone, f"lost: {payload!r}"


def on_graves(world: World, name: str) -> set[bytes]:
    """Payloads that a deleted run had or has waited for, or that were on the path that led to it."""
    entries = [entry for region in world.regions.values() for owner, entry in region.log if owner == name]
    graves = {entry.run for entry in entries if isinstance(entry, Tomb)}
    before = {
        entry.successor.run: (entry.batch.run, entry.batch.history())
        for entry in entries
        if isinstance(entry, Events) and entry.successor is not None
    }
    led: dict[str, list[History]] = {}
    for run in graves:
        while run in before:
            run, path = before[run]
            led.setdefault(run, []).append(path)
    found: set[bytes] = set()
    for entry in entries:
        match entry:
            case Events(batch=batch, successor=successor):
                for each in (batch, successor):
                    if each is not None:
                        found.update(
                            event.payload
                            for event in each.events
                            if each.run in graves
                            or any(contains(path, event.id, event.version) for path in led.get(each.run, ()))
                        )
            case Buffer(run=run, inputs=inputs):
                if run in graves:
                    found.update(event.payload for event in inputs)
            case Tomb() | Settled():
                pass
    return found
