"""A member: a node among others, without its front. What it hears goes to the part it is for.

A node's share of the region is a `Node`; what makes it one of many is joined here: Raft groups
(replicas/), calls to other leaders (calls/forward.py), tasks and polls (tasks/exchange.py), what a new leader
asks (tasks/takeover.py), and who leads what (steward.py). Disk, network, clock and chance are given, so that
a whole region runs in one process under virtual time as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from msgspec.structs import replace

from cluster.hosting.calls.forward import Forward
from cluster.hosting.calls.remote import KINDS as CALLS
from cluster.hosting.clock import Identifiers
from cluster.hosting.config.addresses import join_address, split_address
from cluster.hosting.node import Membership, Node
from cluster.hosting.region.across import Across
from cluster.hosting.region.administration import INTERNAL_METHOD, Administration
from cluster.hosting.region.failover_words import KINDS as FAILOVER
from cluster.hosting.region.joining import Announcer, Asker, Doorkeeper, NotAdmitted
from cluster.hosting.region.regions import KINDS as REGIONS
from cluster.hosting.region.regions import Regions
from cluster.hosting.region.split_steps import SPLIT_NEVER, SPLIT_NOW, SPLITS, SplitSteps
from cluster.hosting.region.steward import CHOSEN, STATUS, Steward, cpu_s
from cluster.hosting.replicas.departures import ASK_MEMBER, NO_MEMBER, Departures
from cluster.hosting.replicas.repair import WANT_ROWS, replacing
from cluster.hosting.replicas.replicas import RAFT, Replicas
from cluster.hosting.replicas.snapshots import KINDS as IMAGES
from cluster.hosting.replicas.snapshots import Snapshots
from cluster.hosting.shards.meta import REGISTERED, Namespace, namespace_row
from cluster.hosting.shards.splitting import Splitting
from cluster.hosting.tasks.exchange import EXCHANGE, ExchangeHost
from cluster.hosting.tasks.takeover import ASK, DENY, Takeovers
from cluster.membership import FORMAT, NodeRecord, NodeState, Refusal, first_table, initial_ids
from cluster.membership.records import INDEX_DEFAULT
from cluster.peers.abroad import FIRST, home
from cluster.peers.stream import StreamPeers
from history_store.shard import image

if TYPE_CHECKING:
    import random

    from cluster.frontend.contract import Handler
    from cluster.hosting.clock import Clock
    from cluster.hosting.config.node_config import RaftSection
    from cluster.hosting.groups.lanes import MakeLane
    from cluster.peers.contract import Address, Identity, Network
    from history_store.engine.environment import EngineLimits
    from history_store.storage.contract import Storage
    from replication.log.contract import LogStore

log = structlog.get_logger("region")

HAND_OVER_S = 2.0
FOUND_WAIT_S = 3.0  # for all first members to say what machine they are on
FOUND_LOOK_S = 0.05
FIRST_NAMESPACE = "default"


class Founding(NamedTuple):
    """What the first members of a region agree on before there is a table."""

    members: dict[str, Address]  # by name: where peers find them
    shards: int
    replicas: int


class Virtual(NamedTuple):
    """For simulations: nothing is done beside the loop, and what the CPU is busy with is invented."""

    make_lane: MakeLane
    cpu_s: Callable[[], float]  # what the process has used


class Surroundings(NamedTuple):
    """What a member is given."""

    loop: asyncio.AbstractEventLoop
    storage: Storage
    network: Network
    clock: Clock
    rng: random.Random
    limits: EngineLimits
    raft: RaftSection
    on_broken: Callable[[BaseException], None]
    virtual: Virtual | None = None  # None: threads, and the process's own clock of its CPU
    log_store: LogStore | None = None  # the log between regions; None: frames come from their source


class Member:
    """One node of a region."""

    def __init__(
        self,
        identity: Identity,
        founding: Founding,
        around: Surroundings,
        record: NodeRecord | None = None,
        seeds: Sequence[Address] = (),
    ) -> None:
        """`record`: what the node tells the region of itself. `seeds`: whom it must be welcome to."""
        self.identity = identity
        self.founding = founding
        self.ready: asyncio.Future[None] = (
            around.loop.create_future()
        )  # the region is made, as far as we know
        node_id = identity.node_id
        virtual = around.virtual
        replicas = self.replicas = Replicas(node_id, around.raft, self.send)
        ids = tuple(sorted(initial_ids(founding.members).values()))
        replicas.founders, replicas.onlookers = ids[: founding.replicas], ids[founding.replicas :]
        self.doorkeeper = Doorkeeper(around.loop)
        self.peers = StreamPeers(identity, self, around.network, rng=around.rng, stranger=self.doorkeeper)
        self._on_broken = around.on_broken
        node = self.node = Node(
            around.loop, around.storage, around.clock, Identifiers(around.clock, around.rng), around.rng,
            around.limits, inline=False, shards=founding.shards, cluster_id=identity.cluster_id,
            on_broken=around.on_broken,
            member=Membership(
                node_id, replicas.config_of, replicas.send, self.peers_up, replicas.replicas_of
            ),
            make_lane=virtual.make_lane if virtual is not None else None,
        )  # fmt: skip
        self.forward = node.forward = Forward(node, self.send)
        self.tasks = ExchangeHost(node, self.forward, self.send)
        node.exchange = self.tasks.exchange
        self.takeovers = node.takeovers = Takeovers(node, self.send)
        self.steward = Steward(
            node, replicas, self.send, self.peers.is_up, virtual.cpu_s if virtual is not None else cpu_s
        )
        stranger = Asker(around.network, cluster_id="", region="", name=identity.name)
        self.regions = Regions(node, replicas, self.steward, self.peers, stranger, around.rng)
        self.administration = Administration(node, replicas, self.steward, self.regions)
        self._announcer: Announcer | None = None
        if record is not None:
            asker = Asker(
                around.network, cluster_id=identity.cluster_id, region=identity.region, name=identity.name
            )
            self._announcer = Announcer(
                record, self.doorkeeper, asker, self._others, seeds, self._is_made, self._written,
                self._refused, around.rng,
            )  # fmt: skip
        self.snapshots = Snapshots(node.committer, self.peers.send, around.rng, inline=virtual is not None)
        self.snapshots.chunk_bytes = around.raft.snapshot_chunk_bytes
        self.departures = Departures(node, replicas, self.snapshots, self.send)
        node.damages.images, node.damages.send = self.snapshots, self.send
        node.damages.is_up, node.damages.advice = self.peers.is_up, replacing(identity.name)
        splitting = Splitting(
            node.committer, self.snapshots, node.open_shard, self._had, lambda: self.splits.news()
        )
        self.splits = SplitSteps(node, replicas, self.steward, splitting, self.send)
        replicas.may_open = self.splits.may_open
        self.administration.splits = self.splits.waits
        node.meta.group.on_lead = self._meta_leads
        node.meta.group.on_image = self._meta_replaced
        self.across = Across(
            node, self.regions, replicas, self.steward, self.send, around.rng, around.log_store
        )
        self.administration.operations = self.across.operations
        splitting.heritage = self.across.streaming.heritage
        replicas.take(node)
        if node.meta.group.leading:  # alone, it leads from the first moment
            self._meta_leads()

    async def start(
        self,
        host: str,
        port: int,
        handlers: Mapping[str, Handler],
        peers: dict[int, Address] | None = None,
    ) -> None:
        """Talk to the others, and serve their calls with these handlers. OSError: cannot listen. NotAdmitted.

        `peers`: whom to hear of the region from, if this is no first member and knows of none yet.
        """
        if (refusal := self._other_index()) is not None:
            raise refusal
        internal = self.administration.internal_handlers()
        deeds = self.node.actions.deeds.handlers()
        self.forward.handlers = {**handlers, **self.administration.handlers(), **internal, **deeds}
        self.doorkeeper.handler = self.forward.wrap(internal[INTERNAL_METHOD])
        self.snapshots.recover()
        await self.peers.start(host, port)
        if self.replicas.table.region is None:
            ids = initial_ids(self.founding.members)
            first = {ids[name]: address for name, address in self.founding.members.items()}
            self.peers.set_peers(first or peers or {})
        else:
            self._table_changed()
        self.replicas.on_table.append(self._table_changed)
        self.node.meta.on_change.append(self._look_ready)
        self.replicas.start()
        self.steward.start()
        self.splits.start()
        self.departures.start()
        self.regions.start()
        self.across.start()
        self._look_ready()
        if self._announcer is not None:
            self._announcer.start()
            self.replicas.on_table.append(self._announcer.look)

    async def hand_over(self) -> None:
        """Let others lead before we go: their clients notice a round trip instead of an election."""
        self.steward.draining = True
        self.steward.report()
        until = self.node.loop.time() + HAND_OVER_S
        going = self.steward.hand_over()
        while any(group.leading for group in going) and self.node.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    def halt(self) -> None:
        """Take part in nothing any more; what is being written is written."""
        if self._announcer is not None:
            self._announcer.close()
        self.steward.close()
        self.across.close()
        self.splits.close()
        self.departures.close()
        self.regions.close()
        self.node.damages.close()
        self.node.scrub.close()
        self.replicas.close()
        self.snapshots.close()

    # ---- who is there

    def send(self, node_id: int, message: list[Any]) -> bool:
        """A message leaves with this turn's frame. False: it does not."""
        return self.peers.send(node_id, message)

    def _had(self, number: int) -> bool:
        """Whether this node has a replica of a shard, or has had one."""
        return number in self.node.committer.groups or self.node.holds(number) is not None

    def peers_up(self) -> list[int]:
        """Nodes of this region that can be reached now."""
        return [state.node_id for state in self.peers.states() if state.up and state.node_id < FIRST]

    def _table_changed(self) -> None:
        if (refusal := self._other_index()) is not None:
            self._refused(refusal)
            return
        present = self.replicas.table.present()
        addresses = {node.id: split_address(node.peers_address) for node in present}
        self.across.table_changed()
        self.peers.identity = replace(self.peers.identity, index=self.regions.own)
        self.peers.set_peers(
            addresses | self.regions.addresses(),
            {node.id: node.disk for node in present},
            self.regions.known(),
        )
        self._look_ready()

    def _other_index(self) -> NotAdmitted | None:
        """What is wrong if this node was told another index than the region was made with."""
        own, told = self.regions.own, self.identity.index
        if told in (0, own) or not own:
            return None
        return NotAdmitted(
            f"region.index is {told} here, and region {self.identity.region} was made with the index {own}: "
            f"write {own}, since what the region has written says so for ever"
        )

    def _written(self) -> NodeRecord | None:
        return self.replicas.table.nodes.get(self.node.node_id)

    def _others(self) -> list[Address]:
        return [
            state.address
            for state in self.peers.states()
            if state.node_id < FIRST and state.address is not None
        ]

    def _is_made(self) -> bool:
        return self.replicas.table.region is not None

    def _refused(self, error: NotAdmitted) -> None:
        """The region will not have this node: it must not go on as if it were one of it."""
        log.error("this node is not admitted to the region", why=str(error))
        if self.ready.done():
            self._on_broken(error)
        else:
            self.ready.set_exception(error)

    def _look_ready(self) -> None:
        # Namespaces came with the same entry. Which of them are left is for operators to say.
        if self.replicas.table.region is not None and not self.ready.done():
            self.ready.set_result(None)

    def _meta_replaced(self) -> None:
        """The meta group's rows were replaced by an image."""
        self.node.meta.load()
        self.replicas.reload()

    def _meta_leads(self) -> None:
        if not self._is_made():
            self._found_soon(self.node.loop.time() + FOUND_WAIT_S)

    def _found_soon(self, until: float) -> None:
        """Write down who belongs to the region once all have said what they are, or have had the time."""
        loop, group = self.node.loop, self.node.meta.group
        if not group.leading or self._is_made() or self.steward.changing:
            return
        silent = self.founding.members.keys() - self.administration.heard.keys()
        if self._announcer is None or not silent or loop.time() >= until:
            self._found()
        else:
            loop.call_later(FOUND_LOOK_S, self._found_soon, until)

    def _found(self) -> None:
        """This node is the first to lead the region: write down who belongs to it."""
        founding, who = self.founding, self.identity
        now = self.node.clock.now_ns()
        nodes = []
        for name, address in founding.members.items():
            said = self.administration.heard.get(name)
            if said is None:
                said = NodeRecord(FORMAT, 0, name, "", "", "", "", NodeState.ACTIVE, 0, "")
            nodes.append(replace(said, peers_address=join_address(*address), joined_ns=now))
        machines = {node.machine or node.name for node in nodes}
        if len(machines) < founding.replicas <= len(nodes):
            self._refused(
                NotAdmitted(
                    f"the region cannot be made, since {founding.replicas} replicas need as many machines "
                    f"and its first nodes are on {', '.join(sorted(machines))}: give each node.machine a "
                    "label of its own, or take fewer region.replicas"
                )
            )
            return
        plan = first_table(
            nodes,
            founding.shards,
            founding.replicas,
            who.cluster_id,
            who.region,
            now,
            who.index or INDEX_DEFAULT,
        )
        if isinstance(plan, Refusal):
            log.error("the region cannot be made", why=plan.why, do=plan.do)
            return
        first = Namespace(self.node.new_id(), FIRST_NAMESPACE, REGISTERED, now)
        rows = [*plan.rows, namespace_row(first)]
        self.node.meta.group.propose(image.encode(rows, []), rows, [])
        self.node.meta.hold(first)
        log.info("the region begins", nodes=len(nodes), shards=founding.shards)

    # ---- cluster.peers.Receiver

    def message(self, node_id: int, message: list[Any]) -> None:
        """From a peer."""
        kind = message[0]
        if node_id >= FIRST:
            self._abroad(node_id, message)
            return
        if kind == RAFT:
            self.replicas.received(node_id, message)
            return
        try:
            self._hand_on(kind, node_id, message)
        except Exception:  # what is wrong with one message must not cost the connection, and all others
            log.exception("a message of a peer could not be handled", node=node_id, kind=kind)

    def _hand_on(self, kind: int, node_id: int, message: list[Any]) -> None:
        if kind in CALLS:
            self.forward.received(node_id, message)
        elif kind == EXCHANGE:
            self.tasks.received(node_id, message)
        elif kind in (ASK, DENY):
            self.takeovers.received(node_id, message)
        elif kind in (ASK_MEMBER, NO_MEMBER):
            self.departures.received(node_id, message)
        elif kind in (SPLITS, SPLIT_NOW, SPLIT_NEVER):
            self.splits.received(node_id, message)
        elif kind == WANT_ROWS:
            self.node.damages.received(node_id, message)
        elif kind in IMAGES:
            self.snapshots.received(node_id, message)
        elif kind in FAILOVER:
            self.across.failover.asking.received(node_id, message)
        elif STATUS <= kind <= CHOSEN:
            self.steward.received(node_id, message)

    def _abroad(self, peer: int, message: list[Any]) -> None:
        """From a node of another region: it has no part in what the own nodes do."""
        index, node_id = home(peer)
        try:
            if message[0] in REGIONS:
                self.regions.received(index, node_id, message)
            else:
                self.across.message(index, node_id, message)
        except Exception:  # as of a peer's: one message must not cost the connection
            log.exception(
                "a message of another region could not be handled",
                region=index,
                node=node_id,
                kind=message[0],
            )

    def up(self, node_id: int, incarnation: str) -> None:
        """A peer can be talked to."""
        index, number = home(node_id)
        if index:
            log.info("node of another region is up", region=index, node=number, incarnation=incarnation)
            self.regions.up(index, number)
            self.across.up(index, number)
            return
        log.info("peer is up", node=node_id, incarnation=incarnation)
        self.replicas.up(node_id)
        self.tasks.up(node_id)
        self.takeovers.up(node_id)
        self.snapshots.up(node_id)

    def down(self, node_id: int) -> None:
        """A peer is gone."""
        index, number = home(node_id)
        if index:
            log.warning("node of another region is down", region=index, node=number)
            self.across.down(index, number)
            return
        log.warning("peer is down", node=node_id)
        for part in (self.tasks, self.forward, self.replicas, self.snapshots):
            try:
                part.down(node_id)
            except Exception:  # the others have their own work to hand over
                log.exception("what hung on a peer could not be handed over", node=node_id)
        if self._announcer is not None and not self.peers_up():
            self._announcer.start()  # if this node was removed, it hears so
