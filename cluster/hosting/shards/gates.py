"""The gates of a shard that is led here: whether it changes anything of a namespace.

Theory of operation. The rules are `replication.failover.gates`; this module has the gates of one shard in
memory, as of the newest entry that was proposed, and moves them by transactions of the shard. They are rows
of the shard (kind fg), loaded when it is led and forgotten with its `ShardHost`; a shard that was split from
another begins with that one's gates as they were at the entry.

A namespace without a gate here is one that only this region holds, and has always been served; or one that
other regions hold, and the shard has not heard of it yet: its callers wait. The node's registry tells the two
apart. A registry that lags cannot open anything: what has ever been fenced or activated has a gate.

Invariant: no gate moves but by a transaction of the shard's own log, and what is admitted is admitted by the
gate as of the newest one, committed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from history_store.engine import keys
from history_store.engine.errors import Code, ServiceError
from history_store.shard import split
from replication.failover import commands, gates, records
from replication.failover.gates import Admission, Answer, Call, GateState, Verdict
from replication.failover.records import FORMAT, Gate, Marker, Point, Row, Source
from replication.frames import Entry, Kind

if TYPE_CHECKING:
    from cluster.hosting.groups.group import Group, Waiter
    from history_store.engine.run import Transaction
    from history_store.shard.rows import Rows
    from history_store.shard.split import Ranges
    from replication.failover.commands import Fence, ShardCommand
    from replication.failover.readiness import ShardLag

Heard = Callable[[Answer | ServiceError], None]

ALLOWED = Admission(Verdict.ALLOW, 0, 0)


class NotActive(ServiceError):
    """The namespace is not served here now (definite: nothing happened).

    FORWARD: `region` serves it. PARK: soon somebody will.
    """

    def __init__(self, namespace_id: str, admission: Admission, message: str = "") -> None:
        where = (
            f"it is active in region {admission.region}" if admission.region else "it is being handed over"
        )
        super().__init__(Code.UNAVAILABLE, message or f"the namespace is not active here: {where}")
        self.namespace_id = namespace_id
        self.verdict = admission.verdict
        self.region = admission.region
        self.version = admission.version


class Streams(Protocol):
    """What the gates need of what the shard tells other regions, and of what it reads of them."""

    def offered(self) -> Point:
        """Where the outgoing log would get its next entry. No two shards have an incarnation in common."""

    def cursors(self) -> Mapping[Source, Point]:
        """Of each log that the shard reads, the last entry that is applied, proposed ones included."""

    def lag(self, source: Source) -> ShardLag:
        """What this shard lacks of another region's log."""

    def fences(self) -> Mapping[Source, Fence | None]:
        """Of each log that the shard reads, the newest fence that was applied; None: it has ended."""

    def has_all(self, namespace_id: str) -> bool:
        """Whether the runs that the namespace had before it was told of here have all come."""


class Shard(Protocol):
    """What the gates need of their ShardHost."""

    group: Group
    rows: Rows

    def begin_beside(self) -> Transaction:
        """A transaction on no run."""

    def commit(
        self, tx: Transaction, waiter: Waiter, *, patient: bool = False, told: Sequence[Entry] = ()
    ) -> None:
        """Propose it, with these entries for other regions in the same entry of the log."""


class Gates:
    """Of one led shard."""

    def __init__(self, shard: Shard, streams: Streams, region: int, shared: Collection[str]) -> None:
        """`shared`: ids of the namespaces that other regions hold as well, kept up to date by its owner."""
        self.region = region
        self.streams = streams  # what the shard tells other regions, and reads of them
        self._shard = shard
        self._shared = shared
        self._gates: dict[str, Gate] = {}
        self.on_moved: list[Callable[[list[Gate]], None]] = []  # these are other than before, and committed
        self.on_seen: Callable[[str, int], None] = _nothing  # a larger version was seen in an entry
        # Whether an open gate of that version is not believed: another region may own the namespace
        self.doubts: Callable[[str, int], bool] = _no
        self.load()

    def load(self) -> None:
        """Take the gates as the rows have them: at first, and when a transaction came to nothing."""
        self._gates.clear()
        for key, value in self._shard.rows.scan(records.GATE, keys.prefix_end(records.GATE)):
            gate = records.decode(key, value)
            assert isinstance(gate, Gate), "the kind of a row is in its key"
            self._gates[gate.namespace_id] = gate

    # ---- reading

    def admit(self, namespace_id: str, call: Call) -> Admission:
        """Whether something may have an effect now."""
        gate = self._gates.get(namespace_id)
        if gate is None and namespace_id not in self._shared:
            return ALLOWED
        serving = gate is None or not self.doubts(namespace_id, gate.version)
        return gates.admit(gate, call, region=self.region, serving=serving)

    def check(self, namespace_id: str, call: Call) -> None:
        """As `admit`, for what somebody waits for: raises NotActive."""
        admission = self.admit(namespace_id, call)
        if admission.verdict is not Verdict.ALLOW:
            raise NotActive(namespace_id, admission)

    def state(self, namespace_id: str) -> GateState:
        """What the gate is."""
        gate = self._gates.get(namespace_id)
        if gate is not None:
            return gates.state_of(gate, self.region)
        return GateState.INACTIVE if namespace_id in self._shared else GateState.OPEN

    def version(self, namespace_id: str) -> int:
        """The version that events carry which are written now; 0 where there is no gate."""
        gate = self._gates.get(namespace_id)
        return gate.version if gate is not None else 0

    def gate(self, namespace_id: str) -> Gate | None:
        """The gate itself."""
        return self._gates.get(namespace_id)

    def inherited(self, marker: Marker) -> bool:
        """Whether a fence is older than the shard: its parent's marker counts, and nothing came after it."""
        return marker.own.incarnation != self.streams.offered().incarnation

    def children(self) -> dict[int, Ranges]:
        """The shards that this one was split into so far, and their slots as they were then."""
        found = self._shard.rows.scan(keys.SPLIT, keys.prefix_end(keys.SPLIT))
        splits = [split.decode(value) for _, value in found]
        return {one.child: one.ranges for one in splits if not one.abandoned}

    def when_committed(self, waiter: Waiter) -> None:
        """Call back when all that these gates, and the cursors beside them, rest on is durable."""
        self._shard.group.when_committed(waiter)

    # ---- moving

    def command(self, command: ShardCommand, heard: Heard) -> None:
        """Do what a command says, in one transaction; `heard` when that is durable, or with why it is not."""
        streams = self.streams
        effect = gates.apply(
            self._gates, command, region=self.region, offered=streams.offered(), cursors=streams.cursors()
        )
        answer = effect.answer

        def done(error: ServiceError | None) -> None:
            if error is None:
                self._tell(effect.gates)
            heard(answer if error is None else error)

        try:
            if effect.gates or effect.emits is not None:
                self._propose(effect, done)
            else:
                self._shard.group.when_committed(done)  # what it answers may have been proposed a moment ago
        except ServiceError as error:
            heard(error)

    def _propose(self, effect: gates.Effect, done: Waiter) -> None:
        tx = self._shard.begin_beside()
        tx.rows.extend(records.row_of(gate) for gate in effect.gates)
        told = []
        if effect.emits is not None:
            kind = Kind.FENCE if isinstance(effect.emits, commands.Fence) else Kind.UNFENCE
            told.append(Entry(kind, payload=commands.encode(effect.emits)))
        self._shard.commit(tx, done, told=told)
        self._gates.update((gate.namespace_id, gate) for gate in effect.gates)

    def raised(self, namespace_id: str, version: int) -> list[Row]:
        """The rows to be written with a replicated entry whose header has this version; none if it is known.

        The gate moves at once: if the transaction comes to nothing, `load`.
        """
        gate = self._gates.get(namespace_id) or Gate(FORMAT, namespace_id, 0)
        if version <= gate.version:
            return []
        after = self._gates[namespace_id] = gates.raised(gate, version)
        self._shard.group.committer.loop.call_soon(self._tell_when_committed, after)  # it is proposed then
        self.on_seen(namespace_id, version)
        return [records.row_of(after)]

    def _tell_when_committed(self, gate: Gate) -> None:
        group = self._shard.group
        group.when_committed(lambda lost: None if lost else self._tell([gate]), patient=True)

    def _tell(self, moved: list[Gate]) -> None:
        if moved:
            for callback in self.on_moved:
                callback(moved)


def _no(namespace_id: str, version: int) -> bool:  # noqa: ARG001 - the signature of `Gates.doubts`
    return False


def _nothing(namespace_id: str, version: int) -> None:
    """Nobody wants to know."""
