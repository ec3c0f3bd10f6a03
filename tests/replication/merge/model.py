"""Three regions, clients, operators and a bad network, around the real merge.

A region here is what hosting will be: it keeps records, takes effects in order, writes what its engine would
write (through `write`), numbers that in its log, and reads the others' logs. The world does everything at
random: which region reads what and when, what clients ask of whoever believes to be active, forced failovers
that nobody coordinates. Then it heals: all versions become known, all logs are read. What must hold then
is in judges.py.

What the regions keep beside the records comes from effects alone (`Shelf`), so effects that do not
suffice show as a difference.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

from msgspec.structs import replace

from replication.merge import (
    Batch,
    Buffer,
    Entry,
    Environment,
    Event,
    Events,
    Heard,
    Kind,
    Origin,
    Outcome,
    Policy,
    Record,
    Refused,
    Settled,
    Tomb,
    activate,
    done_with,
    horizon,
    merge,
    prune,
    write,
)
from replication.merge import effects as fx
from replication.merge.entries import CLOSING, ENDS_OF_ACTIVITIES, key_of, origin_key, request_key, update_key
from replication.merge.history import tip
from replication.merge.reapply import INDEXED, covered, held, pending
from replication.merge.rows import changes, to_rows
from replication.versions import next_version, owner_of

from .shelf import Shelf

REGIONS = (1, 2, 3)


class Region:
    """One region: records, a log, cursors into the others' logs."""

    def __init__(self, number: int, world: World) -> None:
        self.number = number
        self.world = world
        self.version = 1
        self.records: dict[str, Record] = {name: Record() for name in world.names}
        self.shelves: dict[str, Shelf] = {name: Shelf() for name in world.names}
        self.log: list[tuple[str, Entry]] = []
        self.cursors = dict.fromkeys(REGIONS, 0)

    @property
    def active(self) -> bool:
        return owner_of(self.version) == self.number

    @property
    def env(self) -> Environment:
        return Environment(self.number, self.version, self.active)

    @property
    def origin(self) -> Origin:
        return Origin(self.number, 7, 1, len(self.log) + 1)

    # ---- what the shard does

    def store(self, name: str, outcome: Outcome, local: bool = False) -> None:
        shelf = self.shelves[name]
        for effect in outcome.effects:
            if isinstance(effect, fx.RaiseVersion):
                assert effect.version > self.version
                self.version = effect.version
            shelf.take(effect)
            local = local and not isinstance(effect, fx.Unpark)
            if local and isinstance(effect, fx.Append):  # the engine has that state already
                shelf.state[effect.run].extend(effect.events)
        for key, value in changes(self.records[name], outcome.record):
            if value is None:
                del shelf.rows[key]
            else:
                shelf.rows[key] = value
        self.records[name] = outcome.record
        for effect in outcome.effects:
            self.obey(name, effect)

    def obey(self, name: str, effect: fx.Effect) -> None:
        """What the engine has to do."""
        self.world.reached[type(effect).__name__] += 1
        shelf, record = self.shelves[name], self.records[name]
        match effect:
            case fx.Reapply(run, place, sources):
                assert self.active, "a standby was told to write"
                events = [self.again(name, source) for source in sources]
                self.world.reached[f"Reapply {place.name}"] += 1
                if events[-1].kind in CLOSING:
                    named = {event.key for event in events}
                    held = [event for event in self.buffered(name) if event.key not in named]
                    events[-1:] = [*held, events[-1]]
                if place is fx.Place.APPEND:
                    self.append(name, events)
                elif place is fx.Place.RESET:
                    self.reset(name, run, events)
                else:
                    assert record.current == "" or record.runs[run or record.current].closed
                    last = shelf.state[record.current][-1] if record.current else None
                    for event in events:
                        self.world.dropped.setdefault(event.payload, []).append(last)
            case fx.Salvage(run, ends):
                assert self.active
                assert self.append(name, [self.again(name, source) for source in ends])
            case fx.Settle(at, keys):
                assert self.propose(name, Settled(self.origin, self.world.tick(), self.version, at, keys))
            case fx.Fork(run, branch, 0, _) if branch > 1:
                self.world.reached["second root"] += 1
            case fx.Skip(_, why):
                self.world.reached[why] += 1
            case fx.Isolate(run, reason):
                raise AssertionError(f"run {run} is in quarantine: {reason}")
            case _:
                pass

    def again(self, name: str, source: fx.Source) -> Event:
        if source.event_id == 0:
            waiting = self.records[name].waiting
            payload = next(each.event.payload for each in waiting if each.event.key == source.key)
        else:
            payload = self.shelves[name].find(source).payload
        return Event(0, self.version, source.kind, payload, source.key, source.about)

    def buffered(self, name: str) -> list[Event]:
        record = self.records[name]
        return [waiting.event for waiting in held(record) if waiting.run == record.current]

    def propose(self, name: str, entry: Entry) -> bool:
        try:
            outcome = write(self.records[name], entry, self.env)
        except Refused:
            return False
        self.log.append((name, entry))
        self.store(name, outcome, local=True)
        return True

    def append(self, name: str, events: Iterable[Event], successor: Batch | None = None) -> bool:
        record = self.records[name]
        history = record.runs[record.current].branch.history
        last = tip(history).event_id
        numbered = tuple(
            replace(event, id=last + n, version=self.version) for n, event in enumerate(events, start=1)
        )
        batch = Batch(record.current, history, numbered)
        return self.propose(name, Events(self.origin, self.world.tick(), self.version, batch, successor))

    def start(self, name: str, run: str, events: Iterable[Event] = ()) -> bool:
        first = (Event(1, self.version, Kind.STARTED, f"{run}@{self.number}".encode()), *events)
        batch = Batch(run, (), first)
        return self.propose(name, Events(self.origin, self.world.tick(), self.version, batch))

    def reset(self, name: str, run: str, inputs: list[Event]) -> None:
        """A new run: the old one's events but for its close, their names kept; then the inputs."""
        old = self.shelves[name].branches[run][self.records[name].runs[run].current]
        assert old[-1].kind in CLOSING
        copies = [replace(e, key=key_of(run, e) if e.kind in INDEXED else e.key) for e in old[:-1]]
        rest = [Event(0, self.version, Kind.WORKFLOW_TASK), *inputs]
        more = [replace(e, id=len(copies) + n, version=self.version) for n, e in enumerate(rest, start=1)]
        batch = Batch(self.world.new_run(), (), (*copies, *more))
        assert self.propose(name, Events(self.origin, self.world.tick(), self.version, batch))

    # ---- what others do to it

    def fail_over(self) -> None:
        version = next_version(self.number, self.version)
        if version != self.version:
            self.version = version
            for name in self.world.names:
                self.store(name, activate(self.records[name], self.env, self.world.policy))

    def times(self) -> dict[tuple[int, int], int]:
        """How far every other log is applied; one that is applied to its end says BEAT."""
        others = [region for region in self.world.regions.values() if region is not self]
        return {
            (r.number, 7): self.world.hlc
            if self.cursors[r.number] == len(r.log)
            else ([0] + [entry.hlc for _, entry in r.log])[self.cursors[r.number]]
            for r in others
        }

    def say(self) -> None:
        self.world.heard[self.number] = Heard({7: self.world.tick()}, self.times())

    def prune(self) -> None:
        others = [number for number in REGIONS if number != self.number]
        until = horizon(self.number, self.times(), self.world.heard, others, keep_ms=0)
        for name in self.world.names:
            before = self.records[name]
            after = prune(before, until)
            if after is not before:
                self.world.reached["pruned"] += 1
                self.world.forgotten |= set(before.tombstones) - set(after.tombstones)
                self.world.unasked |= _decided(before) - _decided(after)
                assert pending(after, self.version, self.world.policy) == pending(
                    before, self.version, self.world.policy
                )
                self.store(name, Outcome(after, ()))

    def read(self, name: str, entry: Entry) -> None:
        before = self.records[name]
        frozen = to_rows(before) if self.world.paranoid else []
        outcome = merge(before, entry, self.env, self.world.policy)
        assert not self.world.paranoid or to_rows(before) == frozen, "merge changed what it was given"
        self.store(name, outcome)


def _decided(record: Record) -> set[str]:
    return {key for decision in record.decisions.values() for key in decision.keys}


class World:
    """Everything, made from one seed."""

    def __init__(
        self,
        rng: random.Random,
        names: int = 1,
        deletes: bool = False,
        steps: int = 45,
        lulls: float | None = None,
    ) -> None:
        self.rng = rng
        self.names = [f"w{i}" for i in range(names)]
        self.deletes = deletes
        self.policy = Policy(reset_closed=rng.random() < 0.65)
        self.paranoid = rng.random() < 0.1
        self.regions = {number: Region(number, self) for number in REGIONS}
        self.hlc = 0
        self.heard: dict[int, Heard] = {}
        self.forgotten: set[str] = set()  # deleted runs: of an event so old no child is made again
        self.unasked: set[str] = set()  # inputs decided on so long ago that no client asks again
        self.runs = 0
        self.inputs = 0
        # Of every signal and update that a client was told is accepted: its workflow id, and its key.
        self.acknowledged: dict[bytes, tuple[str, str]] = {}
        # Payload -> after which event it was dropped, each time; None: nobody had the workflow id.
        self.dropped: dict[bytes, list[Event | None]] = {}
        self.closes: set[bytes] = set()
        self.reached: Counter[str] = Counter()  # what happened, to know that it did
        self.versions = [(1, 1)]
        self.long = rng.random() < 0.5  # one long run that everybody knows, or many that nobody has heard of
        if self.long:
            for name in self.names:
                self.regions[1].start(name, self.new_run())
                self.regions[1].append(name, [self.input(Kind.ACTIVITY, name, False) for _ in range(3)])
            for number in (2, 3):
                self.deliver(self.regions[number], self.regions[1], 99)
        network = rng.choice((0.15, 0.35, 0.6))
        failovers = rng.choice((0.03, 0.1, 0.2))
        lulls = rng.choice((0, 0.05)) if lulls is None else lulls
        for _ in range(steps):
            if rng.random() < lulls:
                self.lull()
            dice = rng.random()
            if dice < failovers:
                self.pick().fail_over()
            elif dice < failovers + network:
                self.network()
            else:
                self.client()
        self.heal()

    def pick(self) -> Region:
        return self.regions[self.rng.choice(REGIONS)]

    def tick(self) -> int:
        self.hlc += 1
        return self.hlc

    def new_run(self) -> str:
        self.runs += 1
        return f"r{self.runs}"

    # ---- network

    def network(self) -> None:
        reader, source = self.pick(), self.pick()
        if reader is source:
            return
        for region in self.regions.values():
            region.prune()
            if self.rng.random() < 0.3:
                region.say()
        dice, cursor = self.rng.random(), reader.cursors[source.number]
        if dice < 0.1:
            reader.version = max(reader.version, source.version)
        elif dice < 0.2:  # fetched out of order, as a parked run's missing events are; read again later
            ahead = source.log[cursor : cursor + 4]
            if ahead:
                reader.read(*self.rng.choice(ahead))
        else:
            self.deliver(reader, source, self.rng.randrange(1, 5))

    def deliver(self, reader: Region, source: Region, count: int) -> bool:
        cursor = reader.cursors[source.number]
        new = source.log[cursor : cursor + count]
        for name, entry in new:
            reader.read(name, entry)
            reader.cursors[source.number] += 1
        return bool(new)

    def heal(self) -> None:
        """Everybody hears of everything; the newest owner writes what is to be made again."""
        version = max(region.version for region in self.regions.values())
        for region in self.regions.values():
            region.version = version
        pairs = [(a, b) for a in self.regions.values() for b in self.regions.values() if a is not b]
        moved = True
        while moved:
            self.rng.shuffle(pairs)
            moved = sum(self.deliver(a, b, self.rng.randrange(1, 9)) for a, b in pairs) > 0
            if not moved:  # workflow tasks end, and let go of what waits for that
                moved = sum(self.flush(r, name) for r in self.regions.values() for name in self.names) > 0

    def lull(self) -> None:
        """Everybody reads what there is, maybe without hearing who is active now, and can forget some."""
        self.rng.shuffle(pairs := [(a, b) for a in self.regions.values() for b in self.regions.values()])
        for reader, source in pairs:
            if reader is not source:
                self.deliver(reader, source, 99)
        self.forget()

    def forget(self) -> None:
        """Everybody says that everybody has everything."""
        for region in self.regions.values():
            region.say()
        self.tick()
        for region in self.regions.values():
            region.prune()

    # ---- clients

    def client(self) -> None:
        """Something that a client or the workflow asks of a region that takes itself for the active one."""
        region, name = self.pick(), self.rng.choice(self.names)
        if not region.active:
            return
        record = region.records[name]
        run = record.runs.get(record.current)
        if run is None or run.closed:
            if self.deletes and self.rng.random() < 0.3 and record.runs:
                self.delete(region, name)
            else:
                # The same run id in two regions: a child that is made again.
                again = self.rng.random() < 0.3 and f"{name}-child" not in self.forgotten
                region.start(name, f"{name}-child" if again else self.new_run())
            return
        actions = [self.signal] * 8 + [self.buffer] * 4 + [self.flush] * 2 + [self.update] * 2
        actions += [self.activity] * 3 + [self.cancel, self.retry, self.retry]
        if not self.long or self.rng.random() < 0.3:
            actions += [self.close, self.go_on, self.go_on, self.terminate]
        actions += [self.delete] if self.deletes else []
        self.rng.choice(actions)(region, name)

    def input(self, kind: Kind, name: str, named: bool) -> Event:
        self.inputs += 1
        payload = f"{kind.name} {self.inputs}".encode()
        return Event(0, 0, kind, payload, request_key(kind, f"q{self.inputs}") if named else "")

    def acknowledge(self, name: str, event: Event, key: str) -> None:
        self.acknowledged[event.payload] = (name, key)

    def signal(self, region: Region, name: str) -> None:
        event = self.input(Kind.SIGNALED, name, named=self.rng.random() < 0.5)
        record = region.records[name]
        where = tip(record.runs[record.current].branch.history).event_id + 1
        key = event.key or f"event/{record.current}/{where}/{region.version}"
        if region.append(name, [event]):
            self.acknowledge(name, event, key)

    def update(self, region: Region, name: str) -> None:
        record = region.records[name]
        self.inputs += 1
        about, payload = f"u{self.inputs}", f"UPDATE {self.inputs}".encode()
        key = update_key(record.current, about)
        kind = self.rng.choice((Kind.UPDATE_ADMITTED, Kind.UPDATE_ACCEPTED))
        event = Event(0, 0, kind, payload, key, about)
        if region.append(name, [event]):
            self.acknowledge(name, event, key)

    def buffer(self, region: Region, name: str) -> None:
        """A signal while a workflow task is in flight."""
        record, origin = region.records[name], region.origin
        event = self.input(Kind.SIGNALED, name, named=self.rng.random() < 0.5)
        event = replace(event, version=region.version, key=event.key or origin_key(origin, 0))
        history = record.runs[record.current].branch.history
        entry = Buffer(origin, self.tick(), region.version, record.current, history, (event,))
        if region.propose(name, entry):
            self.acknowledge(name, event, event.key)

    def flush(self, region: Region, name: str) -> bool:
        """The workflow task ends."""
        events = region.buffered(name) if region.active else []
        assert not events or region.append(name, events)
        return bool(events)

    def retry(self, region: Region, name: str) -> None:
        """A client that has had no answer asks again, in whatever region is active now."""
        mine = [
            (p, key)
            for p, (n, key) in self.acknowledged.items()
            if n == name and "request" in key and key not in self.unasked
        ]
        if not mine:
            return
        payload, key = self.rng.choice(mine)
        record = region.records[name]
        known = covered(record) | {waiting.event.key for waiting in record.waiting}
        if key not in known:
            region.append(name, [Event(0, 0, Kind.SIGNALED, payload, key)])

    def activity(self, region: Region, name: str) -> None:
        record, shelf = region.records[name], region.shelves[name]
        events = shelf.branches[record.current][record.runs[record.current].current]
        ended = {event.about for event in events if event.kind in ENDS_OF_ACTIVITIES}
        open_ones = [str(e.id) for e in events if e.kind is Kind.ACTIVITY and str(e.id) not in ended]
        if open_ones and self.rng.random() < 0.7:
            kind = self.rng.choice((Kind.ACTIVITY_COMPLETED, Kind.ACTIVITY_TIMED_OUT))
            about = self.rng.choice(open_ones)
            region.append(name, [Event(0, 0, kind, events[int(about) - 1].payload, about=about)])
        else:
            region.append(name, [self.input(Kind.ACTIVITY, name, named=False)])

    def cancel(self, region: Region, name: str) -> None:
        region.append(name, [self.input(Kind.CANCEL_REQUESTED, name, named=True)])

    def close(self, region: Region, name: str) -> None:
        end = self.input(Kind.CLOSED, name, named=False)
        self.closes.add(end.payload)
        assert region.append(name, [*region.buffered(name), end])

    def terminate(self, region: Region, name: str) -> None:
        end = self.input(Kind.TERMINATED, name, named=False)
        self.closes.add(end.payload)
        assert region.append(name, [*region.buffered(name), end])

    def go_on(self, region: Region, name: str) -> None:
        first = Event(1, region.version, Kind.STARTED, b"continued")
        successor = Batch(self.new_run(), (), (first,))
        end = Event(0, 0, Kind.CONTINUED, successor.run.encode())
        assert region.append(name, [*region.buffered(name), end], successor)

    def delete(self, region: Region, name: str) -> None:
        run = self.rng.choice(sorted(region.records[name].runs))
        keys = done_with(region.records[name], run)
        assert region.propose(name, Tomb(region.origin, self.tick(), region.version, run, keys))
