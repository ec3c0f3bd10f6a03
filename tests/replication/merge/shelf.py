"""What a region has stored of one workflow id, by the effects of merging alone."""

from __future__ import annotations

from replication.merge import Event
from replication.merge import effects as fx


class Shelf:
    """What a region has stored of one workflow id, by the effects alone."""

    def __init__(self) -> None:
        self.branches: dict[str, dict[int, list[Event]]] = {}
        self.buffer: set[tuple[str, str]] = set()  # run, key
        self.current = ""
        self.zombies: set[str] = set()
        self.state: dict[str, list[Event]] = {}  # what the engine has applied of each run
        self.rows: dict[bytes, bytes] = {}

    def take(self, effect: fx.Effect) -> None:
        match effect:
            case fx.CreateRun(run):
                assert run not in self.branches
                self.branches[run] = {}
                self.state[run] = []
            case fx.Fork(run, branch, base, at):
                assert branch not in self.branches[run]
                self.branches[run][branch] = self.branches[run][base][: at.event_id] if base else []
            case fx.Append(run, branch, events):
                events_before = self.branches[run][branch]
                assert [e.id for e in events] == [len(events_before) + 1 + i for i in range(len(events))]
                events_before.extend(events)
            case fx.Advance(run, events):
                self.state[run].extend(events)
            case fx.Rebuild(run, branch):
                self.state[run] = list(self.branches[run][branch])
            case fx.SetCurrent(run):
                self.current = run
            case fx.Suppress(run):
                assert run not in self.zombies
                self.zombies.add(run)
            case fx.Revive(run):
                self.zombies.remove(run)
            case fx.Hold(holder, inputs):
                for event in inputs:
                    assert (holder, event.key) not in self.buffer
                    self.buffer.add((holder, event.key))
            case fx.Release(holder, keys):
                for key in keys:
                    self.buffer.remove((holder, key))
            case fx.Delete(run):
                self.branches.pop(run, None)
                self.state.pop(run, None)
                self.zombies.discard(run)
                self.buffer = {(holder, key) for holder, key in self.buffer if holder != run}
            case _:
                pass

    def find(self, source: fx.Source) -> Event:
        for events in self.branches[source.run].values():
            if len(events) >= source.event_id and events[source.event_id - 1].version == source.version:
                return events[source.event_id - 1]
        raise AssertionError(f"{source} is nowhere")
