"""A node of a region: the process behind `holdfast server start`.

It opens its data, talks to the other nodes, serves the whole API, and ends when told to. What makes it one of
many is in replicas.py (Raft groups), forward.py (calls to other leaders) and the matching room's exchange.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cluster.frontend.services.deletion import Deletions
from cluster.hosting.addresses import join_address, split_address
from cluster.hosting.clock import Clock, Identifiers
from cluster.hosting.exchange import EXCHANGE, ExchangeHost
from cluster.hosting.forward import KINDS as CALLS
from cluster.hosting.forward import Forward
from cluster.hosting.meta import REGISTERED, Namespace, namespace_row
from cluster.hosting.node import Membership, Node
from cluster.hosting.options import ServerOptions
from cluster.hosting.replicas import RAFT, Replicas
from cluster.hosting.server import Server, run
from cluster.hosting.steward import CHANGE, STATUS, Steward
from cluster.hosting.takeover import ASK, DENY, Takeovers
from cluster.membership import FORMAT, NodeRecord, NodeState, Refusal, first_table, initial_ids
from cluster.peers.contract import Identity
from cluster.peers.stream import StreamPeers
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import load_tls
from history_store.shard import image
from history_store.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    from cluster.frontend.contract import Handler
    from cluster.hosting.config import NodeConfig
    from cluster.peers.contract import Peers
    from history_store.engine.environment import EngineLimits
    from history_store.storage.contract import Storage

log = structlog.get_logger("region")

DATA_FILE = "node.db"
HAND_OVER_S = 2.0
READY_S = 120.0  # for a quorum of the region to be up
CLUSTER_IDS = uuid.UUID("6f0d2c1e-58d6-4a0e-9a0c-3f6b9e1f7a11")  # the space that cluster ids are named in


def serve(config: NodeConfig) -> int:
    """Run the node until SIGTERM or SIGINT. 0, or 1 if its disk failed.

    Raises StorageError, OSError or PeerError if it cannot start.
    """
    return run(RegionServer(config))


def options_of(config: NodeConfig) -> ServerOptions:
    """What the node has in common with a server that is alone."""
    tls = config.tls.grpc
    return ServerOptions(
        ip=config.listen.host,
        port=config.listen.grpc,
        db_path=str(Path(config.node.data_dir) / DATA_FILE),
        dynamic_config=dict(config.dynamic_values),
        log_level=config.log.level,
        log_format=config.log.format,
        front="grpcio" if config.front.kind == "grpcio" else "h2",
        shards=config.region.shards,
        metrics_port=config.listen.metrics,
        tls_cert=tls.cert if tls else None,
        tls_key=tls.key if tls else None,
        tls_ca=tls.client_ca if tls else None,
        message_bytes_max=config.front.message_bytes_max,
    )


class RegionServer(Server):
    """One node of a region with its front."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(options_of(config))
        self.config = config
        self.replicas: Replicas
        self.forward: Forward
        self.tasks: ExchangeHost
        self.takeovers: Takeovers
        self.peers: Peers
        self.steward: Steward
        self._ready: asyncio.Future[None]

    # ---- who we are

    def _founding(self) -> tuple[str, int]:
        """Cluster id and node id of a first member: the same list gives the same ids on all of them."""
        region = self.config.region
        text = "\n".join((region.cluster_name, region.name, *sorted(region.nodes)))
        ids = initial_ids(member.name for member in self.config.members)
        return str(uuid.uuid5(CLUSTER_IDS, text)), ids[self.config.node.name]

    def _open_storage(self) -> Storage:
        path = Path(self.config.node.data_dir)
        path.mkdir(parents=True, exist_ok=True)
        cluster_id, node_id = self._founding()
        return SqliteStorage(path / DATA_FILE, cluster_id=cluster_id, node_id=node_id)

    # ---- the node and its peers

    def _make_node(self, storage: Storage, limits: EngineLimits, on_broken: Any) -> Node:
        assert isinstance(storage, SqliteStorage), "a node of a region keeps its data on disk"
        loop = asyncio.get_running_loop()
        config, who = self.config, storage.identity
        rng = random.Random(secrets.randbits(64))
        clock = Clock()
        replicas = self.replicas = Replicas(who.node_id, config.raft, self._send)
        ids = tuple(sorted(initial_ids(member.name for member in config.members).values()))
        replicas.founders, replicas.onlookers = ids[: config.region.replicas], ids[config.region.replicas :]
        self._ready = loop.create_future()
        self.peers_identity = Identity(
            who.cluster_id, config.region.name, who.node_id, config.node.name, secrets.token_hex(8)
        )
        self.peers = self._make_peers(self.peers_identity)
        node = Node(
            loop, storage, clock, Identifiers(clock, rng), rng, limits,
            inline=False, shards=config.region.shards, cluster_id=who.cluster_id, on_broken=on_broken,
            member=Membership(who.node_id, replicas.config_of, replicas.send, self._peers_up),
        )  # fmt: skip
        self.forward = node.forward = Forward(node, self._send)
        self.tasks = ExchangeHost(node, self.forward, self._send)
        node.exchange = self.tasks.exchange
        self.takeovers = node.takeovers = Takeovers(node, self._send)
        self.steward = Steward(node, replicas, self._send, self.peers.is_up)
        node.meta.group.on_lead = self._meta_leads
        return node

    def _make_peers(self, identity: Identity) -> Peers:
        tls = self.config.tls.peers
        contexts = load_tls(tls.cert, tls.key, tls.ca) if tls is not None else None
        return StreamPeers(identity, self, TcpNetwork(contexts), rng=random.Random(secrets.randbits(64)))

    def _send(self, node_id: int, message: list[Any]) -> bool:
        return self.peers.send(node_id, message)

    def _peers_up(self) -> list[int]:
        return [state.node_id for state in self.peers.states() if state.up]

    def _table_changed(self) -> None:
        addresses = {}
        for node in self.replicas.table.present():
            addresses[node.id] = split_address(node.peers_address)
        self.peers.set_peers(addresses)
        self._look_ready()

    def _look_ready(self) -> None:
        known = self.replicas.table.region is not None and "default" in self.node.meta.by_name
        if known and not self._ready.done():
            self._ready.set_result(None)

    async def _become_ready(self) -> None:
        config = self.config
        self.forward.handlers = self.services.handlers()
        self.replicas.take(self.node)
        await self.peers.start(config.listen.host, config.listen.peers)
        if self.replicas.table.region is None:
            ids = initial_ids(member.name for member in config.members)
            self.peers.set_peers({ids[m.name]: (m.host, m.port) for m in config.members})
        else:
            self._table_changed()
        self.replicas.on_table.append(self._table_changed)
        self.node.meta.on_change.append(self.services.part(Deletions).resume)
        self.replicas.start()
        self.steward.start()
        self._look_ready()
        self.node.meta.on_change.append(self._look_ready)
        while True:
            try:
                await asyncio.wait_for(asyncio.shield(self._ready), READY_S)
            except TimeoutError:
                log.warning("waiting for a majority of the region's first nodes", peers=self._peers_up())
            else:
                return

    def _meta_leads(self) -> None:
        if self.replicas.table.region is None:
            self._found()

    def _found(self) -> None:
        """This node is the first to lead the region: write down who belongs to it."""
        config = self.config
        now = self.node.clock.now_ns()
        nodes = [
            NodeRecord(FORMAT, 0, m.name, join_address(m.host, m.port), "", "", "", NodeState.ACTIVE, now, "")
            for m in config.members
        ]
        cluster_id = self.peers_identity.cluster_id
        plan = first_table(
            nodes, config.region.shards, config.region.replicas, cluster_id, config.region.name, now
        )
        if isinstance(plan, Refusal):
            log.error("the region cannot be made", why=plan.why, do=plan.do)
            return
        default = Namespace(self.node.new_id(), "default", REGISTERED, now)
        rows = [*plan.rows, namespace_row(default)]
        group = self.node.meta.group
        group.propose(image.encode(rows, []), rows, [])
        self.node.meta.hold(default)
        log.info("the region begins", nodes=len(nodes), shards=config.region.shards)

    def _handlers(self) -> dict[str, Handler]:
        own: Mapping[str, Handler] = self.forward.handlers
        return {name: self.forward.wrap(handler) for name, handler in own.items()}

    async def _hand_over(self) -> None:
        """Let others lead before we go: their clients notice a round trip instead of an election."""
        self.steward.draining = True
        self.steward.report()
        until = self.node.loop.time() + HAND_OVER_S
        going = self.steward.hand_over()
        while any(group.leading for group in going) and self.node.loop.time() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    # ---- cluster.peers.Receiver

    def message(self, node_id: int, message: list[Any]) -> None:
        """From a peer."""
        kind = message[0]
        if kind == RAFT:
            self.replicas.received(node_id, message)
        elif kind in CALLS:
            self.forward.received(node_id, message)
        elif kind == EXCHANGE:
            self.tasks.received(node_id, message)
        elif kind in (ASK, DENY):
            self.takeovers.received(node_id, message)
        elif STATUS <= kind <= CHANGE:
            self.steward.received(node_id, message)

    def up(self, node_id: int, incarnation: str) -> None:
        """A peer can be talked to."""
        log.info("peer is up", node=node_id, incarnation=incarnation)
        self.tasks.up(node_id)

    def down(self, node_id: int) -> None:
        """A peer is gone."""
        log.warning("peer is down", node=node_id)
        self.tasks.down(node_id)
        self.forward.down(node_id)
        self.replicas.down(node_id)

    async def stop(self, *, graceful: bool) -> None:
        """Hand over what is led here, then as any server."""
        if graceful:
            await self._hand_over()
        self.steward.close()
        self.replicas.close()
        await super().stop(graceful=graceful)
        await self.peers.close()
