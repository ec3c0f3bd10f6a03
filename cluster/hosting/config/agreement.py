"""Whether the node.toml files of several nodes fit together: one region, no place taken twice.

Pure: it gets configurations that are right in themselves. A problem is a sentence that names the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from cluster.hosting.config.addresses import join_address
from cluster.hosting.config.node_config import NodeConfig
from cluster.hosting.config.reading import shown

EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound
RAFT_ALIKE = (
    "tick_ms",
    "election_ticks",
    "heartbeat_ticks",
)  # what followers and leaders expect of each other


def disagreements(configs: Sequence[NodeConfig]) -> list[str]:
    """Everything that keeps these nodes from being one region, as sentences."""
    found = [*_alike(configs), *_own(configs), *_ports(configs)]
    return found or list(_machines(configs))


def _alike(configs: Sequence[NodeConfig]) -> Iterator[str]:
    """What has to be the same in every file. Only the first files that differ are named."""
    first_members = [one for one in configs if one.region.nodes]
    with_cassandra = [one for one in configs if one.cassandra is not None]
    alike = [
        ("region", "name", configs),
        ("region", "cluster_name", configs),
        ("replication", "log", configs),
        ("cassandra", "keyspace", with_cassandra),
        *(("raft", key, configs) for key in RAFT_ALIKE),
        *(("region", key, first_members) for key in ("nodes", "index", "shards", "replicas")),
    ]
    for section, key, among in alike:
        values = [getattr(getattr(one, section), key) for one in among]
        other = next((index for index, value in enumerate(values) if value != values[0]), None)
        if other is not None:
            yield (
                f"{section}.{key} is {shown(values[0])} in {among[0].file} and {shown(values[other])} in "
                f"{among[other].file}: it has to be the same on all nodes. Make it so."
            )
    secured = [one for one in configs if one.tls.peers is not None]
    if secured and len(secured) < len(configs):
        plain = next(one for one in configs if one.tls.peers is None)
        yield (
            f"{secured[0].file} has [tls.peers] and {plain.file} has not: all nodes talk to each other "
            "with TLS, or none. Add it, or remove it everywhere."
        )


def _own(configs: Sequence[NodeConfig]) -> Iterator[str]:
    """What has to be each node's own."""
    own: list[tuple[str, Callable[[NodeConfig], str]]] = [
        ("node.name", lambda one: one.node.name),
        ("advertise.grpc", lambda one: one.advertise.grpc),
        ("advertise.peers", lambda one: one.advertise.peers),
    ]
    for key, value_of in own:
        yield from _twice(configs, key, value_of)
    for one, other in _pairs(configs):
        # Two machines may well use the same path; only one machine's directory can be shared by mistake.
        if one.node.data_dir == other.node.data_dir and _on_one_host(one, other):
            yield (
                f"node.data_dir is {shown(one.node.data_dir)} in {one.file} and in {other.file}, on one "
                "host: a directory belongs to one node. Give each its own."
            )


def _twice(configs: Sequence[NodeConfig], key: str, value_of: Callable[[NodeConfig], str]) -> Iterator[str]:
    values = [value_of(one) for one in configs]
    for index, value in enumerate(values):
        first = values.index(value)
        if first != index:
            yield (
                f"{key} is {shown(value)} in {configs[first].file} and in {configs[index].file}: every node "
                "has its own. Change one of them."
            )


def _ports(configs: Sequence[NodeConfig]) -> Iterator[str]:
    """Ports that two processes of one host would both want."""
    for one, other in _pairs(configs):
        if not _on_one_host(one, other):
            continue
        for key, port in _listens(one).items():
            for other_key, other_port in _listens(other).items():
                if port == other_port:
                    yield (
                        f"listen.{key} of {one.file} and listen.{other_key} of {other.file} are both "
                        f"port {port} at {join_address(other.listen.host, port)}, on one host. "
                        "Change one of them."
                    )


def _machines(configs: Sequence[NodeConfig]) -> Iterator[str]:
    """Replicas need machines of their own; says so only if the files of all first members are here."""
    members = {member.name for member in configs[0].members}
    labels = {one.node.machine for one in configs if one.node.name in members}
    replicas = configs[0].region.replicas
    if members and members <= {one.node.name for one in configs} and len(labels) < replicas:
        yield (
            f"the first members have {len(labels)} different node.machine ({shown(sorted(labels))}), and "
            f"region.replicas = {replicas} needs {replicas}, since two replicas are never on one machine. "
            "Give the nodes labels that differ, or take fewer replicas."
        )


def _pairs(configs: Sequence[NodeConfig]) -> Iterator[tuple[NodeConfig, NodeConfig]]:
    return ((one, other) for index, one in enumerate(configs) for other in configs[index + 1 :])


def _on_one_host(one: NodeConfig, other: NodeConfig) -> bool:
    """As far as files can tell: the same particular address, or the same machine label."""
    same = one.listen.host == other.listen.host and one.listen.host not in EVERYWHERE
    return same or one.node.machine == other.node.machine


def _listens(config: NodeConfig) -> dict[str, int]:
    ports = {"grpc": config.listen.grpc, "peers": config.listen.peers, "metrics": config.listen.metrics}
    return {key: port for key, port in ports.items() if port is not None}
