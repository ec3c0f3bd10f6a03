"""Where the meta group is led: the next step of every handover, and of every version that rose.

Theory of operation. What is decided is in the meta group (shards/failover_meta.py); the pure rules
(`replication.failover`: handover, switching) say from it, and from what shards and regions answered, what to
propose, to send and to ask. This module does that when something is answered or committed, and every
PERIOD_S. Nothing is remembered but answers: who leads next asks again, and everything may be done twice.

Only what is committed is acted on. What this leader has proposed and is not committed yet is looked at where
something is proposed, so that it is not proposed again (`FailoverMeta.propose`).

Shards. A shard that answers a command says into which shards it was split before. So the shards that have to
follow are those that the table shows, and those that shards of it spoke of: a split that the table does not
show yet hides none. A shard that was split off behind its parent's fence is fenced by it, and says so.

Ledger. With the log that is embedded no ledger is shared: a row is in the meta groups of the regions that
were told of it, and rows to be written elsewhere (`WriteLedger`) count as written.

Invariant: nothing here decides; what is told to shards and regions is committed in the meta group.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from cluster.hosting.region.asking import Asking, Regions, Send
from cluster.hosting.region.failover_words import (
    Followed,
    Notice,
    Noticed,
    Ranges,
    RegionAnswer,
    ShardAnswer,
    Shared,
    Survey,
    Surveyed,
    Tell,
)
from cluster.hosting.region.standing import Surveyor
from cluster.hosting.shards.gates import Gates
from cluster.membership import ShardState
from history_store.engine.errors import ServiceError
from replication.failover import commands, handover, switching
from replication.failover.commands import Fence, Unfence
from replication.failover.gates import Answer
from replication.failover.handover import Ack, AskAcks, Propose
from replication.failover.handover import Send as SendShard
from replication.failover.readiness import RegionView, ShardLag
from replication.failover.records import NAMESPACES_MAX, Phase
from replication.failover.switching import Notify, Position, WriteLedger

if TYPE_CHECKING:
    import asyncio

    from cluster.hosting.node import Node
    from cluster.hosting.region.steward import Steward
    from cluster.hosting.replicas.replicas import Replicas
    from cluster.hosting.shards.failover_meta import FailoverMeta
    from cluster.hosting.shards.host import ShardHost
    from replication.failover.commands import MetaCommand, ShardCommand
    from replication.failover.records import Handover, LedgerRow, NamespaceRecord

log = structlog.get_logger("failover")

PERIOD_S = 0.25
SURVEY_S = 0.03  # between two surveys of the target while callers are parked
PREPARE_S = 0.5  # and while they are served
SILENT_S = 3.0  # a region that has not answered for so long cannot be reached
REFRESH_S = 60.0  # after so long other regions are told again how namespaces are configured
SHARED_MAX = 200  # namespaces in one notice


class Progress:
    """What this leader has been told about one handover."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.since_ns = 0
        self.times: dict[Phase, int] = {}  # when this leader first saw it in a phase
        self.answers: dict[int, Answer] = {}
        self.acks: dict[int, Ack] = {}
        self.unfenced: set[int] = set()
        self.heirs: set[int] = set()  # shards that were split off behind a fence
        self.lags: dict[int, ShardLag] = {}
        self.view = RegionView()
        self.surveyed_s = -1e9  # when the target was asked last
        self.answered_s: float | None = None
        self.surveying = False
        self.why = ""  # what it waits for


class Failover:
    """One per node; it does something only where the meta group is led."""

    def __init__(
        self,
        node: Node,
        meta: FailoverMeta,
        replicas: Replicas,
        steward: Steward,
        send: Send,
        regions: Regions,
    ) -> None:
        self.node = node
        self.meta = meta
        self.regions = regions
        self._replicas = replicas
        self._send = send
        self.asking = Asking(node, send, regions)
        self.asking.on_seen = self.saw
        self.surveyor = Surveyor(node, steward, self.asking, self.shards, self.spoke_of)
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None
        self._closed = False
        self._term = 0
        self._forget()
        meta.on_change.append(self.wake)

    def _forget(self) -> None:
        """Another may have led meanwhile: all answers are old."""
        self.progress: dict[int, Progress] = {}
        self.children: dict[int, Ranges] = {}  # of shards that spoke of them
        self.positions: dict[tuple[int, str], Position] = {}
        self.acknowledged: dict[int, dict[str, int]] = {}
        self.seen: dict[str, int] = {}
        self._written: dict[str, int] = {}
        self._configs: dict[int, dict[str, tuple[int, int]]] = {}  # region -> the pairs it has answered with
        self._refreshed_s = self.node.loop.time()
        self._telling: set[tuple[int, bytes]] = set()
        self._noticing: set[int] = set()

    def leads(self, shard: ShardHost) -> None:
        """A shard is led here from now on."""
        assert isinstance(shard.gates, Gates), "they come with the lead"
        shard.gates.on_seen = lambda namespace_id, version: self.saw({namespace_id: version})

    def start(self) -> None:
        """Begin."""
        self._turn()

    def close(self) -> None:
        """End."""
        self._closed = True
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()

    # ---- when

    def wake(self) -> None:
        """Something is new: look what is next, in this turn of the loop."""
        if self._soon is None and not self._closed:
            self._soon = self.node.loop.call_soon(self._look)

    def _turn(self) -> None:
        self._timer = self.node.loop.call_later(PERIOD_S, self._turn)
        self.asking.expire()
        self.wake()

    def _look(self) -> None:
        self._soon = None
        group = self.node.meta.group
        if not group.leading or self._closed:
            return
        if group.raft.term != self._term:
            self._term = group.raft.term
            self._forget()
        if self.node.loop.time() - self._refreshed_s >= REFRESH_S:
            self._refreshed_s = self.node.loop.time()
            self._configs.clear()
        state = self.meta.committed
        for record in list(state.handovers.values()):
            if not record.closed:
                self._step(record)
        for number in self.progress.keys() - state.handovers.keys():
            del self.progress[number]
        rows: dict[int, tuple[LedgerRow, ...]] = {}
        for action in switching.switching_steps(state, self._observed()):
            match action:
                case Propose():
                    self._propose(action.command)
                case SendShard():
                    self._tell(action.shard, action.command)
                case Notify():
                    rows[action.region] = action.rows
                case WriteLedger():
                    # Nobody shares a ledger: the regions have one each, and are told.
                    self._written.update({row.namespace_id: row.version for row in action.rows})
        for region in self.regions.others():
            self._notify(region, rows.get(region, ()))

    def _observed(self) -> switching.Observed:
        return switching.Observed(
            tuple(self.shards()), self.positions, self.acknowledged, self._written, self.seen
        )

    # ---- handovers

    def _step(self, record: Handover) -> None:
        now_ns = self.node.clock.now_ns()
        progress = self.progress.setdefault(record.number, Progress())
        if progress.phase is not record.phase:
            progress.phase, progress.since_ns = record.phase, now_ns
            progress.times[record.phase] = now_ns
        if record.phase is Phase.PREPARE:
            self._survey(record, progress, list(self.shards()), PREPARE_S)
        # Until when it waits is looked at every PERIOD_S.
        found = handover.steps(record, self._seen_of(record, progress, now_ns), now_ns)
        progress.why = found.why
        for action in found.actions:
            match action:
                case Propose():
                    self._propose(action.command)
                case SendShard():
                    self._tell(action.shard, action.command)
                case AskAcks():
                    self._survey(record, progress, list(action.markers), SURVEY_S)

    def _seen_of(self, record: Handover, progress: Progress, now_ns: int) -> handover.Observed:
        state = self.meta.committed
        decided = record.phase in (Phase.COMMITTED, Phase.DONE)
        shards = set(self.shards())
        if record.phase is not Phase.ABORTED:
            shards -= progress.heirs  # their parents' markers stand for them
        return handover.Observed(
            progress.since_ns,
            now_ns,
            progress.view,
            progress.lags,
            progress.answers,
            progress.acks,
            progress.unfenced,
            shards,
            [s.namespace_id for s in record.switches if state.truth(s.namespace_id) > s.base],
            decided and switching.settled_everywhere(state, record),
        )

    def _survey(self, record: Handover, progress: Progress, shards: list[int], every_s: float) -> None:
        """Ask the target what it has applied, unless it was asked a moment ago."""
        loop = self.node.loop
        if progress.answered_s is None:
            progress.answered_s = loop.time()  # it gets the time to answer once
        elif loop.time() - progress.answered_s > SILENT_S:
            progress.view = RegionView(reachable=False)
        wait_s = progress.surveyed_s + every_s - loop.time()
        if progress.surveying or wait_s > 0:
            if not progress.surveying:
                loop.call_later(wait_s, self.wake)
            return
        progress.surveying, progress.surveyed_s = True, loop.time()
        ranges = self._ranges(record, shards)
        bases = {switch.namespace_id: switch.base for switch in record.switches}

        def heard(answer: RegionAnswer | None) -> None:
            progress.surveying = False
            if isinstance(answer, Surveyed):
                self._surveyed(progress, answer)
            self.wake()

        self.asking.region(record.target, Survey(ranges, bases), heard)

    def _surveyed(self, progress: Progress, answer: Surveyed) -> None:
        progress.answered_s = self.node.loop.time()
        progress.view = RegionView(True, answer.healthy, answer.bootstrapping)
        for shard, applied in answer.shards.items():
            progress.lags[shard] = applied.lag
            dirty = applied.lag.parked + applied.lag.quarantined
            progress.acks[shard] = Ack(applied.marker, dirty, applied.newer)

    def _ranges(self, record: Handover, asked: list[int]) -> dict[int, Ranges]:
        """The slots of these shards when they were fenced: those that were split off since are part of them.

        Who reads such a slot here has it from its old shard's log, up to the marker. From DRAINING on a
        shard that is not one of the handover's was split off behind the fence of one that is.
        """
        shards, table = self.shards(), self._replicas.table.shards
        found = {shard: shards.get(shard, ()) for shard in asked}
        fenced = asked if record.phase is Phase.PREPARE else record.shards
        for heir, ranges in shards.items():
            ancestor = heir
            while ancestor and ancestor not in fenced:
                known = table.get(ancestor)
                ancestor = known.parent if known is not None else 0
            if ancestor != heir and ancestor in found:
                found[ancestor] += ranges
        return found

    # ---- shards

    def shards(self) -> dict[int, Ranges]:
        """All shards of this region, with those that a split has just made."""
        table = self._replicas.table.shards
        found = {shard.id: shard.ranges for shard in table.values() if shard.state is ShardState.SERVING}
        for child, ranges in self.children.items():
            known = table.get(child)
            if child not in found and (known is None or known.state is ShardState.PREPARING):
                found[child] = ranges
        return found

    def spoke_of(self, children: dict[int, Ranges]) -> None:
        """A shard said into which shards it was split."""
        self.children.update(children)

    def _tell(self, shard: int, command: ShardCommand) -> None:
        """Have a shard propose a command, unless it is on its way there."""
        body = commands.encode(command)
        if (shard, body) in self._telling:
            return
        telling, term = self._telling, self._term
        telling.add((shard, body))

        def heard(answer: ShardAnswer | None) -> None:
            if term != self._term:
                return
            if isinstance(answer, Followed):
                telling.discard((shard, body))
                self._followed(shard, command, answer)
                self.wake()
            else:  # it has no leader, or changes it: not at once again
                self.node.loop.call_later(PERIOD_S, telling.discard, (shard, body))

        self.asking.shard(shard, Tell(body), heard)

    def _followed(self, shard: int, command: ShardCommand, answer: Followed) -> None:
        self.spoke_of(answer.children)
        for name, version in answer.versions.items():
            cut = answer.cuts.get(name)
            known = self.positions.get((shard, name))
            if known is None or known.version <= version:
                self.positions[shard, name] = Position(version, cut)
        self.saw(answer.versions)
        if isinstance(command, Fence | Unfence):
            progress = self.progress.get(command.number)
            if progress is None:
                return
            if isinstance(command, Unfence):
                progress.unfenced.add(shard)
            elif answer.inherited:
                progress.heirs.add(shard)
            else:
                progress.answers[shard] = Answer(answer.marker, answer.versions, answer.cuts)

    # ---- versions

    def saw(self, versions: dict[str, int]) -> None:
        """Versions that were seen in entries, gates or calls; the meta group learns those that are news."""
        news = False
        for name, version in versions.items():
            if version > max(self.meta.committed.truth(name), self.seen.get(name, 0)):
                self.seen[name] = version
                news = True
        if not news:
            return
        leader = self.node.meta.group.raft.leader
        if leader == self.node.node_id:
            self.wake()
        elif leader:
            self.asking.tell_seen(leader, self.seen)
            self.seen = {}

    def _propose(self, command: MetaCommand) -> None:
        try:
            outcome = self.meta.propose(command)
        except ServiceError as error:  # the disk is full, or the lead moves: the next turn tries again
            log.info("the meta group takes no command of failover now", why=error.message)
            return
        if not outcome.accepted:
            log.debug("a command of failover came too late", command=type(command).__name__, why=outcome.why)

    # ---- other regions

    def _notify(self, region: int, rows: tuple[LedgerRow, ...]) -> None:
        """Tell a region what it may not know yet, unless a notice is on its way there."""
        if region in self._noticing:
            return
        known = self._configs.setdefault(region, {})
        shared = [
            record
            for record in self.meta.committed.namespaces.values()
            if (region in record.config.regions or record.id in known)
            and known.get(record.id) != pair_of(record)
        ][:SHARED_MAX]
        if not rows and not shared:
            return
        self._noticing.add(region)
        noticing, term = self._noticing, self._term

        def heard(answer: RegionAnswer | None) -> None:
            if term != self._term:
                return
            if isinstance(answer, Noticed):
                noticing.discard(region)
                self._noticed(region, answer)
                self.wake()
            else:
                self.node.loop.call_later(PERIOD_S, noticing.discard, region)

        words = tuple(self.shared(record, with_ledger=record.id not in known) for record in shared)
        self.asking.region(region, Notice(rows[:NAMESPACES_MAX], words), heard)

    def _noticed(self, region: int, answer: Noticed) -> None:
        truths = self.acknowledged.setdefault(region, {})
        for name, version in answer.truths.items():
            truths[name] = max(version, truths.get(name, 0))
        self.saw(answer.truths)
        self._configs.setdefault(region, {}).update(answer.configs)
        for word in answer.newer:
            self.take_shared(word)

    def shared(self, record: NamespaceRecord, *, with_ledger: bool) -> Shared:
        """A namespace, as other regions are told of it."""
        ledger = self.meta.committed.ledgers.get(record.id) if with_ledger else None
        return Shared(record.id, record.config, tuple(ledger.history()) if ledger is not None else ())

    def take_shared(self, word: Shared) -> None:
        """Take another region's configuration, if it is larger than ours."""
        try:
            self.meta.take_config(word.id, word.config, word.ledger)
        except ServiceError as error:
            log.info("a namespace's configuration cannot be taken now", why=error.message)

    def learn(self, rows: Iterable[LedgerRow]) -> None:
        """Learn rows of another region's ledger."""
        command = switching.plan_learn(self.meta.ahead, rows)
        if command is not None:
            self._propose(command)

    def reaches(self, region: int) -> bool:
        """Whether some node of a region can be talked to."""
        return bool(self.regions.nodes_up(region))


def pair_of(record: NamespaceRecord) -> tuple[int, int]:
    """What orders the configurations of a namespace."""
    return record.config.failover_version, record.config.config_version
