"""A node of a region: the process behind `holdfast server start`.

It opens its data, is a member of the region (member.py), serves the whole API, and ends when told to.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cluster.frontend.services.deletion import Deletions
from cluster.hosting.clock import Clock
from cluster.hosting.member import Founding, Member, Surroundings
from cluster.hosting.options import ServerOptions
from cluster.hosting.server import Server, run
from cluster.membership import initial_ids
from cluster.peers.contract import Identity
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import load_tls
from history_store.storage.sqlite import SqliteStorage

if TYPE_CHECKING:
    from cluster.frontend.contract import Handler
    from cluster.hosting.config import NodeConfig
    from cluster.hosting.node import Node
    from history_store.engine.environment import EngineLimits
    from history_store.storage.contract import Storage

log = structlog.get_logger("region")

DATA_FILE = "node.db"
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
        self.member: Member

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
        config, who = self.config, storage.identity
        tls = config.tls.peers
        around = Surroundings(
            asyncio.get_running_loop(),
            storage,
            TcpNetwork(load_tls(tls.cert, tls.key, tls.ca) if tls is not None else None),
            Clock(),
            random.Random(secrets.randbits(64)),
            limits,
            config.raft,
            on_broken,
        )
        members = {member.name: (member.host, member.port) for member in config.members}
        self.member = Member(
            Identity(who.cluster_id, config.region.name, who.node_id, config.node.name, secrets.token_hex(8)),
            Founding(members, config.region.shards, config.region.replicas),
            around,
        )
        return self.member.node

    async def _become_ready(self) -> None:
        listen = self.config.listen
        self.node.meta.on_change.append(self.services.part(Deletions).resume)
        await self.member.start(listen.host, listen.peers, self.services.handlers())
        while True:
            try:
                await asyncio.wait_for(asyncio.shield(self.member.ready), READY_S)
            except TimeoutError:
                log.warning(
                    "waiting for a majority of the region's first nodes", peers=self.member.peers_up()
                )
            else:
                return

    def _handlers(self) -> dict[str, Handler]:
        forward = self.member.forward
        return {name: forward.wrap(handler) for name, handler in forward.handlers.items()}

    async def stop(self, *, graceful: bool) -> None:
        """Hand over what is led here, then as any server."""
        if graceful:
            await self.member.hand_over()
        self.member.halt()
        await super().stop(graceful=graceful)
        await self.member.peers.close()
