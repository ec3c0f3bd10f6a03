"""A node: its shards, its task queues, its namespaces, and what connects them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping
from typing import TYPE_CHECKING, NamedTuple

import structlog

from cluster.hosting.calls.actions import Actions
from cluster.hosting.calls.coverage import ranges_by_group, within
from cluster.hosting.groups.committer import Committer
from cluster.hosting.groups.damage import data_loss
from cluster.hosting.groups.group import NotLeading, NotReadable, nobody
from cluster.hosting.replicas.repair import Damages
from cluster.hosting.replicas.scrubbing import Scrub
from cluster.hosting.shards.gates import NotActive
from cluster.hosting.shards.host import AllOpen, Gates, ShardHost
from cluster.hosting.shards.meta import RETENTION_DEFAULT, Meta, Settings
from cluster.hosting.shards.run_cache import NODE_BYTES_MAX, SHARD_BYTES_MIN
from cluster.hosting.tasks import activation
from cluster.hosting.tasks.dispatch import ORPHAN_GRACE_S, Holders, Orphans, Poll, ShardTask, task_of_row
from cluster.hosting.tasks.queries import Queries
from cluster.matching import Matching, QueueKey
from cluster.matching.workers import WorkerRegistry
from cluster.membership import META_GROUP
from cluster.membership.records import REGION
from history_store.engine.command_rules import BAD_SEARCH_ATTRIBUTES, BadCommand
from history_store.engine.errors import ServiceError
from history_store.engine.keys import SLOTS, slot_of
from history_store.raft import decode_configuration
from history_store.rare import reached
from history_store.shard import snapshot
from history_store.storage.contract import StorageError
from history_store.visibility import attributes as visibility_attributes
from replication.failover.gates import Verdict
from replication.failover.parking import GateView, Passage

if TYPE_CHECKING:
    import asyncio
    import random

    from temporalio.api.common.v1.message_pb2 import SearchAttributes

    from cluster.frontend.contract import Connection
    from cluster.hosting.calls.abroad import Regions
    from cluster.hosting.calls.attempt import Entered
    from cluster.hosting.calls.forward import Forward
    from cluster.hosting.clock import Clock, Identifiers
    from cluster.hosting.groups.group import Group, Send
    from cluster.hosting.groups.lanes import MakeLane
    from cluster.hosting.shards.failover_meta import FailoverMeta
    from cluster.hosting.tasks.takeover import Takeovers
    from cluster.matching.contract import Task
    from cluster.matching.exchange import Exchange
    from history_store.engine.environment import EngineLimits
    from history_store.engine.run import Run, TaskSpec
    from history_store.engine.state import Action
    from history_store.raft import Config
    from history_store.storage.contract import GroupLog, Storage
    from history_store.visibility.sql import Slots

log = structlog.get_logger("node")

ALLOW = Verdict.ALLOW  # a member of an enumeration is looked up slowly, and this is in the way of every call
FORGET_QUEUES_S = 60.0
BACKLOG_HINT_MAX = 10


class Membership(NamedTuple):
    """What a node is among others."""

    node_id: int
    config_of: Callable[[int], Config | None]  # how a group's replica here begins; None: it has no others
    send: Send | None  # Raft messages to other replicas
    peers: Callable[[], list[int]] = list  # other nodes that can be reached now
    replicas_of: Callable[[int], tuple[int, ...]] = lambda _: ()  # nodes that have a replica of a group


def nothing(shard: ShardHost) -> None:
    """Nobody wants to know."""


def alone(group: int) -> Config | None:  # noqa: ARG001 - the signature of `Membership.config_of`
    """Every group of a node without others."""
    return None


class Node:
    """One process's share of the region: the replicas it holds, and the shards it leads."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        storage: Storage,
        clock: Clock,
        ids: Identifiers,
        rng: random.Random,
        limits: EngineLimits,
        *,
        inline: bool,
        shards: int,
        cluster_id: str,
        on_broken: Callable[[BaseException], None],
        member: Membership | None = None,
        make_lane: MakeLane | None = None,
    ) -> None:
        self.loop = loop
        self.storage = storage
        self.clock = clock
        self.limits = limits
        self._ids = ids
        self._rng = rng
        self._cluster_id = cluster_id  # of a region; alone, the data says its own
        self._last_sequence = 0
        self._started = False
        self.leader_hints: dict[int, int] = {}  # of groups without a replica here
        self._member = member if member is not None else Membership(1, alone, None)
        self.node_id = self._member.node_id
        self.threads = make_lane is None  # whether long work may be done beside the loop
        self.committer = Committer(
            loop, storage, inline, on_broken, self._member.node_id, self._member.send, make_lane
        )
        self.damages = Damages(self)
        self.scrub = Scrub(self, self.damages)
        self._found = storage.load()
        self.led: dict[int, ShardHost] = {}  # by Raft group: the shards whose leader this node is
        self.on_shard_led: Callable[[ShardHost], None] = nothing  # before it takes anything up
        self.on_shard_lost: Callable[[ShardHost], None] = nothing
        self.entered: Entered | None = None  # what the call that is being handled has met
        self._groups_of_slots: list[int] = [META_GROUP] * SLOTS  # until the table is known
        self._ranges: dict[int, Slots] | None = None  # the same by group
        self.replicas_epoch = 0  # grows whenever a replica comes or goes
        self.meta = Meta(self._open(META_GROUP))
        self.meta.group.on_leader = lambda: self._hear_of_leader(self.meta.group)
        self.failover: FailoverMeta | None = None  # with other regions
        self.on_led: list[Callable[[ShardHost], None]] = []  # a shard is led here, and has gates
        self.forward: Forward | None = None  # with other nodes
        # Of other regions; without them every namespace is this one's alone.
        self.regions: Regions | None = None
        self.gates_of: Callable[[ShardHost], Gates] = lambda _: AllOpen()
        self.passage: Callable[[str], GateView | None] = lambda _: None  # None: of this region alone
        self.lag_ms: Callable[[str, int], int | None] = lambda *_: (
            None
        )  # of a namespace in a shard (0: in all)
        self.exchange: Exchange | None = None
        self.takeovers: Takeovers | None = None
        self.matching = Matching(_Source(self), clock, on_throttled=self._throttled)
        self.workers = WorkerRegistry(clock)
        self.queries = Queries()
        self._backlogs: dict[QueueKey, int] = {}
        self.holders = Holders()
        self.polls: dict[Poll, None] = {}  # those that wait, in the order in which they came
        self.actions = Actions(self)
        self._sweep: asyncio.TimerHandle | None = None
        if member is None:
            self._all_here(Settings(shards, cluster_id))

    def _open(self, group: int) -> Group:
        config = self._member.config_of(group)
        return self.committer.add(group, self._found.pop(group, None), self._rng, config)

    def _all_here(self, settings: Settings) -> None:
        """The node is the whole region: every shard is here, and led here."""
        if self.meta.settings is None:
            if not self.meta.group.leading or any(self.meta.group.rows.scan(REGION, bytes((REGION[0] + 1,)))):
                raise StorageError(
                    "the data file is that of a node of a region, and this server is alone. Start the node "
                    "with `holdfast server start --config`, or name another file"
                )
            self.meta.write_settings(settings, nobody)
        assert self.meta.settings is not None
        count = self.meta.settings.shards
        for group in range(1, count + 1):
            self.open_shard(group)
        self.own_slots([slot * count // SLOTS + 1 for slot in range(SLOTS)])

    # ---- shards come and go

    def open_shard(self, number: int) -> Group:
        """Hold a replica of the shard with this Raft group."""
        group = self._open(number)
        self.replicas_epoch += 1
        group.on_lead = lambda: self._lead(group)
        group.on_lose = lambda: self._lose(group)
        group.on_leader = lambda: self._hear_of_leader(group)
        if group.leading:
            self._lead(group)
        return group

    def close_shard(self, group: Group, left: GroupLog) -> None:
        """Hold that replica no more. `left`: what the disk has of it. Between two rounds."""
        self.committer.drop(group)
        self.replicas_epoch += 1
        self._found[group.id] = left

    def holds(self, number: int) -> bool | None:
        """Whether the disk has a replica of a shard that is not open; None: it has never had one."""
        found = self._found.get(number)
        if found is None or not (found.conf or found.entries or found.applied):
            return None
        _, conf = snapshot.unwrap_conf(number, found.conf)
        return not conf or bool(decode_configuration(conf).members)

    @property
    def is_blank(self) -> bool:
        """Whether the data is as it was made: no vote, no entry, nothing that anybody may count on."""
        raft = self.meta.group.raft
        return not (self._found or raft.term or raft.last_index)

    def own_slots(self, groups: list[int]) -> None:
        """Which group each slot belongs to."""
        assert len(groups) == SLOTS, "every slot has an owner"
        self._groups_of_slots = groups
        self._ranges = None

    def slots_changed(self) -> None:
        """Some have another owner: what is derived from them is old."""
        self._ranges = None

    def _lead(self, group: Group) -> None:
        shard = self.led[group.id] = ShardHost(self, group, self.clock, self.loop)
        self.on_shard_led(shard)
        shard.gates = self.gates_of(shard)
        for callback in self.on_led:
            callback(shard)
        self._backlogs.clear()  # it may have tasks of any queue
        if self._started:
            self._take_up(shard)

    def _lose(self, group: Group) -> None:
        shard = self.led.pop(group.id, None)
        if shard is not None:
            self.on_shard_lost(shard)
            shard.retire()
            self._backlogs.clear()
            self.holders.forget(shard)
            drop = self.exchange.drop_shard if self.exchange is not None else self.matching.drop
            drop(lambda task: getattr(task, "shard", None) is shard)
            for attempt in list(shard.attempts):
                attempt.lost()

    def _hear_of_leader(self, group: Group) -> None:
        if self.forward is not None:
            self.forward.leader_changed(group)

    def _take_up(self, shard: ShardHost) -> None:
        """Take up what was under way when the shard's last leader ended."""
        shard.recover()
        if self.takeovers is not None:
            self.takeovers.take_over(shard)
        orphans = Orphans(shard, self.clock.now_ns())
        self.loop.call_later(ORPHAN_GRACE_S, orphans.hand_over)
        self.matching.resync()

    @property
    def shards(self) -> list[ShardHost]:
        """The shards that this node leads."""
        return list(self.led.values())

    @property
    def cluster_id(self) -> str:
        """The identity of the data."""
        return self.meta.settings.cluster_id if self.meta.settings is not None else self._cluster_id

    def start(self) -> None:
        """Take up what the data says was under way."""
        self.committer.start()
        self.damages.start()
        self.scrub.start()
        self._started = True
        for shard in self.shards:
            self._take_up(shard)
        self._sweep = self.loop.call_later(FORGET_QUEUES_S, self._forget_queues)

    def _forget_queues(self) -> None:
        self._sweep = self.loop.call_later(FORGET_QUEUES_S, self._forget_queues)
        self.matching.forget_idle(self.clock.now_ns())
        self._backlogs = {queue: count for queue, count in self._backlogs.items() if count}
        for shard in self.shards:
            shard.cache.shrink()

    async def close(self) -> None:
        """Store everything and stop."""
        if self._sweep is not None:
            self._sweep.cancel()
        self.damages.close()
        self.scrub.close()
        for shard in self.shards:
            shard.close()
        await self.committer.close()
        self.storage.close()

    # ---- where things are

    def peers(self) -> list[int]:
        """Other nodes that can be reached now."""
        return self._member.peers()

    def choose(self, nodes: list[int]) -> int:
        """One of them, by chance."""
        return self._rng.choice(nodes)

    def shard_of(self, namespace_id: str, workflow_id: str) -> ShardHost:
        """The shard that owns the workflow id, if it is led here. NotLeading, NotReadable, NotActive.

        Whoever asks for a call is about to decide something by what the shard holds, which may be old where
        another region serves the namespace: so the gate is asked here.
        """
        slot = slot_of(namespace_id, workflow_id)
        number = self._groups_of_slots[slot]
        shard = self.led.get(number)
        if shard is None:
            if number == META_GROUP:
                raise NotLeading(0)  # the region has no table yet
            here = self.committer.groups.get(number)
            if here is not None and here.damage and not here.has_others:
                raise data_loss(here)
            raise NotLeading(self.leader_of(number), number)
        given, leaving = shard.group.given, shard.group.leaving
        if (given is not None and slot in given) or (leaving is not None and slot in leaving):
            raise NotLeading(0, number)  # the shard was split, which our table does not show yet
        entered = self.entered
        if entered is None:
            return shard
        entered.namespace_id = namespace_id
        entered.shards.append(shard)
        group = shard.group
        # A quorum's word is enough, once: a lease may be out of reach, where the network is slower than
        # leases are long, or for the rest of a term in which a hand-over came to nothing.
        if not group.raft.is_alone and group.read_index_now() is None and group not in entered.confirmed:
            reached("lease refused")
            raise NotReadable(group)
        admission = shard.gates.admit(namespace_id, entered.wants)
        if admission.verdict is not ALLOW:
            raise NotActive(namespace_id, admission)
        if entered.stamp is not None:
            entered.stamp(number)
        return shard

    def leader_of(self, number: int) -> int:
        """The node that leads a group as far as is known here; 0 if that is nobody.

        Of a group without a replica here: who was told to, or else one that has a replica, and knows.
        """
        group = self.committer.groups.get(number)
        wanted = self._member.replicas_of(number)
        stays = number == META_GROUP or self.node_id in wanted or not wanted
        # A replica that came a moment ago, or that is wanted here no longer, hears nothing of elections.
        if group is not None and stays and (group.raft.leader or self.node_id in group.raft.conf.voters):
            return group.raft.leader
        up = self.peers()
        hint = self.leader_hints.pop(number, 0)
        if hint in up:
            self.leader_hints[number] = hint
            return hint
        replicas = [node_id for node_id in wanted if node_id in up]
        return self._rng.choice(replicas) if replicas else 0

    def replicas_of(self, number: int) -> tuple[int, ...]:
        """The nodes that are to have a replica of a group."""
        return self._member.replicas_of(number)

    def has_no_others(self, groups: Container[int]) -> bool:
        """Whether the projection has records of these shards only."""
        committer = self.committer
        for number, group in committer.groups.items():
            if number != META_GROUP and number not in groups:
                return False
            # Records of slots that it gave to another shard are there until that one's replica here goes.
            given = group.given.ranges if group.given is not None else ()
            if any(owner not in groups for owner in within(self.ranges, given)):
                return False
        if committer.images is not None and committer.images.hiding(None):
            return False
        return all(self.holds(number) is False for number in self._found)

    @property
    def ranges(self) -> Mapping[int, Slots]:
        """The slots of each shard."""
        if self._ranges is None:
            self._ranges = ranges_by_group(self._groups_of_slots)
        return self._ranges

    @property
    def slot_owners(self) -> list[int]:
        """The group of each slot; META_GROUP until the region has a table."""
        return self._groups_of_slots

    @property
    def shard_count(self) -> int:
        """How many shards the region has."""
        return len(set(self._groups_of_slots))

    def version_of(self, namespace_id: str) -> int:
        """The failover version that the namespace's events carry, where no gate says another."""
        version = self.failover.version_of(namespace_id) if self.failover is not None else 0
        found = self.meta.by_id.get(namespace_id)
        return version or (found.version if found is not None else 0)

    @property
    def region(self) -> int:
        """Index of this region; 0 where there are no others."""
        return self.failover.region if self.failover is not None else 0

    # ---- namespaces that several regions hold

    def activated(self, shard: ShardHost, namespaces: Collection[str]) -> None:
        """A shard serves these namespaces from now on."""
        activation.activated(self, shard, namespaces)

    def deactivated(self, shard: ShardHost, namespaces: Collection[str]) -> None:
        """A shard does not serve these namespaces any more."""
        activation.deactivated(self, shard, namespaces)

    def passage_changed(self, namespace_id: str) -> None:
        """What `passage` says of a namespace is not what it said."""
        view = self.passage(namespace_id)
        if view is not None and view.passage is Passage.FORWARD:
            activation.try_polls_elsewhere(self, namespace_id)
        if self.forward is not None:
            self.forward.parking.look(namespace_id)

    # ---- what shards ask of their node

    def new_id(self) -> str:
        """A fresh UUID."""
        return self._ids.new()

    def run_bytes_max(self) -> int:
        """A shard's share of what this node holds of runs."""
        return max(NODE_BYTES_MAX // max(len(self.led), 1), SHARD_BYTES_MIN)

    def next_sequence(self) -> int:
        """Larger than every one before, across restarts: it follows the clock."""
        now = self.clock.now_ns()
        self._last_sequence = now if now > self._last_sequence else self._last_sequence + 1
        return self._last_sequence

    def retention_of(self, namespace_id: str) -> int:
        """Retention of closed runs, nanoseconds."""
        found = self.meta.by_id.get(namespace_id)
        return found.retention if found is not None else RETENTION_DEFAULT

    def namespace_id_of(self, name: str) -> str | None:
        """Id by name."""
        found = self.meta.by_name.get(name)
        return found.id if found is not None else None

    def namespace_name_of(self, namespace_id: str) -> str:
        """Name by id."""
        return self.meta.named(namespace_id)

    def check_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """Validate for a command and normalize."""
        if not attributes.indexed_fields:
            return
        try:
            self.validate_search_attributes(namespace_id, attributes)
        except ServiceError as error:
            raise BadCommand(BAD_SEARCH_ATTRIBUTES, error.message) from None

    def validate_search_attributes(self, namespace_id: str, attributes: SearchAttributes) -> None:
        """Validate for a request and normalize. INVALID_ARGUMENT where a name or value does not fit."""
        namespace = self.meta.by_id[namespace_id]
        visibility_attributes.validate(attributes, namespace.search_attributes, namespace.name)

    def acted(self, shard: ShardHost, key: bytes, action: Action) -> None:
        """An action is committed: do it."""
        self.actions.do(shard, key, action)

    def asked_after_end(self, run: Run, *, gone: bool) -> None:
        """The run closed (or is deleted) while questions waited for its next workflow task."""
        if gone:
            self.queries.refuse(run)
        else:
            self.queries.settle(run)

    def run_closed(self, run_id: str) -> None:
        """No worker holds a task of this run any more."""
        self.holders.done(run_id)

    # ---- task queues

    def offered(self, shard: ShardHost, spec: TaskSpec) -> None:
        """A new task."""
        state = spec.run.state
        queue = QueueKey(state.namespace_id, spec.kind, spec.queue)
        if spec.durable and queue in self._backlogs:
            self._backlogs[queue] += 1
        task = ShardTask(
            shard,
            queue,
            state.workflow_id,
            state.run_id,
            spec.ref,
            spec.stamp,
            spec.priority,
            spec.sequence,
            spec.created,
            spec.durable,
            spec.normal_queue,
            spec.key,
        )
        if spec.normal_queue and not self.matching.has_live_poller(queue):
            # The sticky worker is gone: do not wait for the sticky time-out.
            task.reroute()
        else:
            self.matching.offer(task)

    def withdrawn(self, namespace_id: str, kind: int, queue: str) -> None:
        """A waiting task is started or void; matching finds out when it tries to start it."""
        key = QueueKey(namespace_id, kind, queue)
        if key in self._backlogs:
            self._backlogs[key] -= 1

    def recount(self, namespaces: Collection[str]) -> None:
        """What is known of these namespaces' backlogs is not so any more."""
        self._backlogs = {
            queue: count for queue, count in self._backlogs.items() if queue.namespace_id not in namespaces
        }

    def backlog(self, queue: QueueKey) -> int:
        """How many tasks wait in a queue: counted once, then kept up to date."""
        known = self._backlogs.get(queue)
        if known is None:
            known = self._backlogs[queue] = sum(shard.count_tasks(queue) for shard in self.shards)
        return known

    def backlog_hint(self, queue: QueueKey) -> int:
        """A cheap hint for a poll's answer: what is known without counting."""
        return min(self._backlogs.get(queue, 0), BACKLOG_HINT_MAX)

    def poll(self, poll: Poll, sticky: bool) -> None:
        """A worker waits for work."""
        self.watch(poll.connection)
        poll.call.on_cancel = poll.gone
        self.polls[poll] = None
        self.matching.poll(poll.queue, poll, sticky)

    def _throttled(self, queue: QueueKey, wait_ns: int) -> None:
        self.loop.call_later(wait_ns / 1e9, self.matching.resume, queue)

    def end_polls(self) -> None:
        """The server stops: answer every parked poll with nothing."""
        for poll in list(self.polls):
            poll.expire()
        if self.forward is not None:
            self.forward.end_polls()

    def watch(self, connection: Connection) -> None:
        """See to it that a worker's death is noticed."""
        if self.holders.watch(connection):
            connection.on_close(lambda: self._connection_closed(connection))

    def _connection_closed(self, connection: Connection) -> None:
        for forget in (self.matching.connection_closed, self.queries.closed, self.holders.closed):
            try:
                forget(connection)
            except Exception:  # each has others' work to hand over
                log.exception("what hung on a closed connection could not be handed over")

    def run_of(self, namespace_id: str, workflow_id: str, run_id: str) -> tuple[ShardHost, Run | None]:
        """The shard of a workflow id, and the run if there is one."""
        shard = self.shard_of(namespace_id, workflow_id)
        run = shard.find(namespace_id, workflow_id, run_id)
        if run is not None and not run_id and self.entered is not None:
            self.entered.run_id = run.state.run_id
        return shard, run


class _Source:
    """The shards, as matching sees them."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def fetch(self, queue: QueueKey, limit: int) -> list[Task]:
        """The first waiting tasks of a queue over all shards."""
        found: list[ShardTask] = []
        for shard in self._node.shards:
            try:
                rows = list(shard.fetch_tasks(queue, limit))
            except ServiceError:
                continue  # its rows are damaged: in a moment it is not led here any more
            found.extend(task_of_row(shard, queue, key, row) for key, row in rows)
        found.sort(key=lambda task: (task.priority, task.sequence))
        return list(found[:limit])

    def count(self, queue: QueueKey) -> int:
        """How many wait."""
        return self._node.backlog(queue)
