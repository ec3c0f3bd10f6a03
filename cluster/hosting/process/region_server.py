"""A node of a region: the process behind `holdfast server start`.

It opens its data, is a member of the region (region/member.py), serves the whole API, and ends when told to.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from cluster.frontend.services.deletion import Deletions
from cluster.hosting.clock import Clock
from cluster.hosting.config.addresses import join_address
from cluster.hosting.config.options import ServerOptions
from cluster.hosting.process import region_log
from cluster.hosting.process.server import Server, listening, run
from cluster.hosting.region.administration import Standing
from cluster.hosting.region.joining import (
    Asker,
    NotAdmitted,
    Place,
    draw_key,
    forget_key,
    has_joined,
    join,
    lost_data,
    mark_joined,
    stands,
)
from cluster.hosting.region.late_log import LateLog
from cluster.hosting.region.member import Founding, Member, Surroundings
from cluster.membership import FORMAT, FORMATS, NodeRecord, NodeState, initial_ids
from cluster.peers.contract import Identity
from cluster.peers.tcp import TcpNetwork
from cluster.peers.tls import load_tls
from history_store.storage.contract import StorageCorrupt
from history_store.storage.files import remove_data
from history_store.storage.sqlite import SqliteStorage
from replication.log.contract import LogDenied, LogRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client.registry import Collector

    from cluster.frontend.contract import Handler
    from cluster.hosting.config.node_config import NodeConfig
    from cluster.hosting.node import Node
    from cluster.hosting.region.exporting import Exporting
    from cluster.peers.contract import Address
    from history_store.engine.environment import EngineLimits
    from history_store.storage.contract import Storage

log = structlog.get_logger("region")

DATA_FILE = "node.db"
FIRST_LOOK_S = 15.0  # at the first start, for the log between regions to be found right or wrong
READY_S = 15.0  # between complaints that the region is not there yet
CLUSTER_IDS = uuid.UUID("6f0d2c1e-58d6-4a0e-9a0c-3f6b9e1f7a11")  # the space that cluster ids are named in


def serve(config: NodeConfig) -> int:
    """Run the node until SIGTERM or SIGINT. 0, or 1 if its disk failed.

    Raises StorageError, OSError, PeerError or NotAdmitted if it cannot start.
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
        self._rng = random.Random(secrets.randbits(64))
        self._place: Place | None = None  # of a node that joins
        self._log: LateLog | None = None  # the log between regions; None: there is none to open
        self._blank = False  # a first member's data was made by this start, and nobody has heard of it

    # ---- who we are

    async def start(self, on_broken: Any) -> None:
        """Open, recover, listen. OSError, StorageError, NotAdmitted, LogNotUsable."""
        try:
            await self._open_log()
            await self._start(on_broken)
        except BaseException:
            if self._log is not None:
                await self._log.close()
            raise

    async def _open_log(self) -> None:
        """Begin to open the log between regions.

        At the node's first start a log that cannot be used as it is described is refused: somebody has just
        written it down wrong. Later the node serves without it, tries again, and says so.
        """
        config = self.config
        if config.replication.log == "embedded":
            return
        self._log = LateLog(
            config.region.name,
            partial(region_log.open_log, config),
            asyncio.get_running_loop(),
            Clock().now_ns,
            self._rng,
        )
        self._log.start()
        if (self._directory() / DATA_FILE).exists():
            return
        await asyncio.wait([self._log.first], timeout=FIRST_LOOK_S)
        error = self._log.first.result() if self._log.first.done() else None
        if isinstance(error, LogRefused | LogDenied):
            raise region_log.explained(config, error)

    async def _start(self, on_broken: Any) -> None:
        directory = self._directory()
        if not (directory / DATA_FILE).exists():
            if not self._seeds and await self._comes_again():
                mark_joined(directory)
            key = self._key()
            if key:
                await self._join("", key)
        try:
            await super().start(on_broken)
        except StorageCorrupt as error:
            raise self._told_what_to_do(error) from error
        except NotAdmitted:
            if self._blank:  # it was made by this very start, and is in the way of the next
                remove_data(directory / DATA_FILE)
            raise

    def _directory(self) -> Path:
        directory = Path(self.config.node.data_dir)
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    async def _comes_again(self) -> bool:
        """Whether the region is made, and this first member is in it no more: then it joins. NotAdmitted."""
        config = self.config
        others = [(one.host, one.port) for one in config.members if one.name != config.node.name]
        asker = Asker(self._network(), cluster_id="", region=config.region.name, name=config.node.name)
        standing = await stands(asker, others, config.node.name)
        if standing is Standing.LOST:
            raise NotAdmitted(lost_data(config.node.name))
        return standing is Standing.NEW

    @property
    def _seeds(self) -> list[Address]:
        """Whom to ask to join, of a node that is no first member, or is none any more."""
        config = self.config
        if config.seeds or not has_joined(Path(config.node.data_dir)):
            return list(config.seeds)
        return [(one.host, one.port) for one in config.members if one.name != config.node.name]

    def _told_what_to_do(self, error: StorageCorrupt) -> StorageCorrupt:
        """A backup is no help in a region: it has forgotten what the others count on."""
        what, _, do = str(error).partition(". ")
        if "belongs to node" in what:
            return StorageCorrupt(
                f"{what}. Correct node.data_dir; or write region.nodes and region.cluster_name as they were "
                "when the region was made, since they say which cluster it is. A node that has another "
                "address now gives region.join, with addresses of the others, in the place of region.nodes"
            )
        if "backup" not in do:
            return error  # a file of a newer version
        return StorageCorrupt(
            f"{what}. Do not restore a backup: the other nodes count on what this one has promised since. "
            f"They have what it had: on one of them `holdfast node replace {self.config.node.name}`; then "
            f"move {self.config.node.data_dir} away, and start this node again: it joins by itself"
        )

    def _key(self) -> str:
        """What a process that has no data yet, and is no first member, asks to join with; or ""."""
        directory = Path(self.config.node.data_dir)
        if not self._seeds or (directory / DATA_FILE).exists():
            return ""
        return draw_key(directory, lambda: secrets.token_hex(8))

    async def _join(self, cluster_id: str, disk: str) -> None:
        """Be let into the region. NotAdmitted."""
        config = self.config
        asker = Asker(
            self._network(), cluster_id=cluster_id, region=config.region.name, name=config.node.name
        )
        log.info("asking to join the region", nodes=[join_address(*seed) for seed in self._seeds])
        self._place = await join(asker, self._seeds, self._record(0, disk), self._rng)
        log.info("this node has a place in the region", node=self._place.node_id)

    def _record(self, node_id: int, disk: str) -> NodeRecord:
        """What this node tells the region of itself."""
        config = self.config
        metrics = config.listen.metrics
        return NodeRecord(
            FORMAT, node_id, config.node.name, config.advertise.peers, config.advertise.grpc,
            join_address(config.listen.host, metrics) if metrics is not None else "", config.node.machine,
            NodeState.ACTIVE, 0, metadata.version("holdfast"), disk, FORMATS,
        )  # fmt: skip

    def _network(self) -> TcpNetwork:
        tls = self.config.tls.peers
        return TcpNetwork(load_tls(tls.cert, tls.key, tls.ca) if tls is not None else None)

    def _founding(self) -> tuple[str, int]:
        """Cluster id and node id of a first member: the same list gives the same ids on all of them."""
        region = self.config.region
        text = "\n".join((region.cluster_name, region.name, *sorted(region.nodes)))
        ids = initial_ids(member.name for member in self.config.members)
        return str(uuid.uuid5(CLUSTER_IDS, text)), ids[self.config.node.name]

    def _open_storage(self) -> Storage:
        directory = Path(self.config.node.data_dir)
        path = directory / DATA_FILE
        if not self._seeds:
            cluster_id, node_id = self._founding()
            return SqliteStorage(path, cluster_id=cluster_id, node_id=node_id)
        if self._place is None:
            storage = SqliteStorage(path)
        else:
            place = self._place
            storage = SqliteStorage(
                path, cluster_id=place.cluster_id, node_id=place.node_id, disk=self._key()
            )
        forget_key(directory)
        return storage

    # ---- the node and its peers

    def _make_node(self, storage: Storage, limits: EngineLimits, on_broken: Any) -> Node:
        assert isinstance(storage, SqliteStorage), "a node of a region keeps its data on disk"
        config, who = self.config, storage.identity
        around = Surroundings(
            asyncio.get_running_loop(),
            storage,
            self._network(),
            Clock(),
            self._rng,
            limits,
            config.raft,
            on_broken,
            log_store=self._log,
        )
        seeds = self._seeds
        members = {member.name: (member.host, member.port) for member in config.members if not seeds}
        incarnation = secrets.token_hex(8)
        self.member = Member(
            Identity(
                who.cluster_id, config.region.name, who.node_id, config.node.name, incarnation, who.disk,
                config.region.index if config.region.nodes else 0,
            ),
            Founding(members, config.region.shards, config.region.replicas),
            around,
            self._record(who.node_id, who.disk),
            seeds,
        )  # fmt: skip
        if self._log is not None:
            self.member.steward.log_failure = partial(_why, self._log)
        self._blank = self.member.node.is_blank and not seeds
        self.member.node.scrub.bytes_per_s = config.node.scrub_kib_s << 10
        return self.member.node

    def _collectors(self) -> list[Collector]:
        if self._log is None:
            return []
        from cluster.hosting.process.metrics import LogCollector  # as all of it, only if asked for

        return [LogCollector(self._log, self._exporting)]

    def _exporting(self) -> Mapping[int, Exporting]:
        return self.member.across.streaming.exporting()

    async def _become_ready(self) -> None:
        listen = self.config.listen
        self.node.meta.on_change.append(self.services.part(Deletions).resume)
        if self._seeds and self._place is None and self.member.replicas.table.region is None:
            # It ended after it had a place, and before it heard of the region.
            identity = self.member.identity
            await self._join(identity.cluster_id, identity.disk)
        peers = self._place.peers if self._place is not None else None
        try:
            with listening(listen.host, listen.peers):
                await self.member.start(listen.host, listen.peers, self.services.handlers(), peers)
            await self._wait_for_the_region()
        except BaseException:  # nobody waits any longer, or nobody will have us
            self.member.halt()
            await self.member.peers.close()
            raise

    async def _wait_for_the_region(self) -> None:
        while True:
            try:
                await asyncio.wait_for(asyncio.shield(self.member.ready), READY_S)
            except TimeoutError:
                log.warning("waiting for a majority of the region's nodes", reached=self.member.peers_up())
            else:
                return

    def _handlers(self) -> dict[str, Handler]:
        forward = self.member.forward
        return {
            name: forward.wrap(handler)
            for name, handler in forward.handlers.items()
            if not name.startswith("/holdfast.internal.")  # for peers alone
        }

    async def stop(self, *, graceful: bool) -> None:
        """Hand over what is led here, then as any server."""
        if graceful:
            await self.member.hand_over()
        self.member.halt()
        await super().stop(graceful=graceful)
        await self.member.peers.close()
        if self._log is not None:
            await self._log.close()


def _why(log: LateLog) -> str:
    """What a node tells of its log."""
    return log.failure.why if log.failure is not None else ""
