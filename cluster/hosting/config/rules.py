"""What has to hold between the keys of one node.toml, beyond what each key allows by itself.

A rule is a pure function, but for `_files_exist` and `_data_dir_is_usable`, which look at the disk. It yields
(key, sentence); it is asked only if none of the keys it looks at is wrong in itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cluster.hosting.config.addresses import split_address
from cluster.hosting.config.reading import complaint
from cluster.hosting.config.region_log import CASSANDRA_FILES

if TYPE_CHECKING:
    from cluster.hosting.config.node_config import NodeConfig


Problems = Iterator[tuple[str, str]]


def _name_is_of_the_region(config: NodeConfig) -> Problems:
    region, name = config.region.name, config.node.name
    if name.partition("/")[0] != region:
        do = f'Write name = "{region}/{name.partition("/")[2]}", or correct region.name'
        yield (
            "node.name",
            complaint("node.name", name, f'it has to begin with the region\'s name, "{region}/"', do),
        )


def _made_or_joined(config: NodeConfig) -> Problems:
    region = config.region
    if bool(region.nodes) == bool(region.join):
        both = (
            "region.nodes and region.join are both given" if region.nodes else "neither region.nodes nor join"
        )
        what = both if region.nodes else "region.nodes is missing, and so is region.join"
        yield (
            "region.nodes",
            f"{what}: it has to be one of them. Give nodes (the first members) to make a region, "
            "or join (addresses of a running one) to join it.",
        )
    elif region.join:
        for key in ("index", "shards", "replicas"):
            if f"region.{key}" in config.given:
                what = "it belongs to the making of a region, and the one that is joined has its own"
                yield f"region.{key}", complaint(f"region.{key}", getattr(region, key), what, "Remove it")


def _first_members(config: NodeConfig) -> Problems:
    key, region = "region.nodes", config.region
    if not region.nodes or region.join:
        return
    names = [text.partition("=")[0] for text in region.nodes]
    addresses = [text.partition("=")[2] for text in region.nodes]
    for text in region.nodes:
        try:
            split_address(text.partition("=")[2])
        except ValueError as error:
            yield key, complaint(key, text, str(error), "Correct the port")
            return
    for kind, given in (("name", names), ("address", addresses)):
        twice = next((one for one in given if given.count(one) > 1), None)
        if twice is not None:
            what = f"the {kind} {twice} is there more than once"
            yield key, complaint(key, region.nodes, what, f"Give every node a {kind} of its own")
            return
    strange = next((name for name in names if name.partition("/")[0] != region.name), None)
    if strange is not None:
        what = f'every name has to begin with "{region.name}/", and {strange} does not'
        yield key, complaint(key, region.nodes, what, "Correct the name, or region.name")
    elif config.node.name not in names:
        what = f"this node, {config.node.name}, is not in it"
        do = "Add it; or use region.join, if the region was made without it"
        yield key, complaint(key, region.nodes, what, do)
    elif len(names) < region.replicas:
        what = f"{region.replicas} replicas need as many nodes, and there are {len(names)}"
        yield (
            "region.replicas",
            complaint(
                "region.replicas", region.replicas, what, "Add nodes to region.nodes, or take fewer replicas"
            ),
        )


def _ports_differ(config: NodeConfig) -> Problems:
    taken: dict[int, str] = {}
    for name in ("grpc", "peers", "metrics"):
        port = getattr(config.listen, name)
        if port is not None and port in taken:
            what = f"listen.{taken[port]} has this port already"
            yield f"listen.{name}", complaint(f"listen.{name}", port, what, "Take another")
        elif port is not None:
            taken[port] = name


def _advertised(config: NodeConfig) -> Problems:
    for name in ("grpc", "peers"):
        key, text = f"advertise.{name}", getattr(config.advertise, name)
        try:
            host, port = split_address(text)
        except ValueError as error:
            if key in config.given:
                yield key, complaint(key, text, str(error), "Correct it")
            continue
        if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
            what = "nobody can connect to it" if key in config.given else "it follows from listen.host"
            do = f"Give {key} as the host and port that others reach this node by"
            yield key, complaint(key, text, f"{host} is no address of one machine; {what}", do)
            continue
        listed = next(
            (one.split("=")[1] for one in config.region.nodes if one.split("=")[0] == config.node.name), ""
        )
        if name == "peers" and key in config.given and listed not in ("", text):
            what = f"region.nodes says {listed} for this node"
            yield key, complaint(key, text, what, "Make them the same, or leave advertise.peers out")
        elif name == "peers" and key not in config.given and port != config.listen.peers:
            what = f"region.nodes has port {port} for this node"
            do = "Make them the same; or give advertise.peers, if the port is mapped on the way"
            yield "listen.peers", complaint("listen.peers", config.listen.peers, what, do)


def _files_exist(config: NodeConfig) -> Problems:
    files: list[tuple[str, str | None]] = []
    for name, section in (("peers", config.tls.peers), ("grpc", config.tls.grpc)):
        if section is not None:
            files += [(f"tls.{name}.{key}", getattr(section, key)) for key in section.__struct_fields__]
    if config.cassandra is not None:
        files += [(f"cassandra.{key}", getattr(config.cassandra, key)) for key in CASSANDRA_FILES]
    for key, path in files:
        if key in config.given and path and not Path(path).is_file():
            yield key, complaint(key, path, "there is no such file", "Correct the path, or make the file")


def _log_is_described(config: NodeConfig) -> Problems:
    """The log between regions: described if it is used, and what belongs together is there together."""
    used, cassandra = config.replication.log == "cassandra", config.cassandra
    if cassandra is None:
        if used:
            what = "it needs to know where Cassandra is, and there is no [cassandra]"
            do = 'Write [cassandra] with contact_points, or log = "embedded"'
            yield "replication.log", complaint("replication.log", config.replication.log, what, do)
        return
    if not used:
        what = '[cassandra] is not read unless replication.log is "cassandra"'
        yield "cassandra", f'{what}. Write log = "cassandra" below [replication], or remove [cassandra].'
    passwords = [key for key in ("password_file", "password_env") if getattr(cassandra, key) is not None]
    if cassandra.user is None and passwords:
        key = f"cassandra.{passwords[0]}"
        what = "a password without cassandra.user is nobody's"
        yield key, complaint(key, getattr(cassandra, passwords[0]), what, "Give user, or remove it")
    elif cassandra.user is not None and len(passwords) != 1:
        both = "and there are two" if passwords else "and there is none"
        do = "Give password_file or password_env, one of them"
        yield (
            "cassandra.user",
            complaint("cassandra.user", cassandra.user, f"it needs a password, {both}", do),
        )
    if (cassandra.tls_cert is None) != (cassandra.tls_key is None):
        there, missing = ("tls_cert", "tls_key") if cassandra.tls_key is None else ("tls_key", "tls_cert")
        value = getattr(cassandra, there)
        what = f"it belongs to cassandra.{missing}, which is not given"
        yield f"cassandra.{there}", complaint(f"cassandra.{there}", value, what, "Give both, or neither")
    elif cassandra.tls_cert is not None and cassandra.tls_ca is None:
        what = "without cassandra.tls_ca there is no TLS, and nobody to show a certificate to"
        yield (
            "cassandra.tls_cert",
            complaint("cassandra.tls_cert", cassandra.tls_cert, what, "Give tls_ca, or remove it"),
        )


def _data_dir_is_usable(config: NodeConfig) -> Problems:
    if Path(config.node.data_dir).is_file():
        what = "it has to be a directory, and it is a file"
        yield "node.data_dir", complaint("node.data_dir", config.node.data_dir, what, "Name another")


def _seeds_are_addresses(config: NodeConfig) -> Problems:
    for text in config.region.join:
        try:
            split_address(text)
        except ValueError as error:
            yield "region.join", complaint("region.join", text, str(error), "Correct it")
            return


def _elections_are_calm(config: NodeConfig) -> Problems:
    raft = config.raft
    if raft.election_ticks <= 2 * raft.heartbeat_ticks:
        what = f"it has to be more than twice raft.heartbeat_ticks ({raft.heartbeat_ticks})"
        do = f"Take at least {2 * raft.heartbeat_ticks + 1}, or fewer heartbeat_ticks"
        yield "raft.election_ticks", complaint("raft.election_ticks", raft.election_ticks, what, do)
    if raft.append_bytes_max > raft.inflight_bytes_max:
        what = f"it has to be at most raft.inflight_bytes_max ({raft.inflight_bytes_max})"
        do = "Take a smaller one, or a larger inflight_bytes_max"
        yield "raft.append_bytes_max", complaint("raft.append_bytes_max", raft.append_bytes_max, what, do)


# The keys that a rule looks at, and the rule.
RULES: Final[tuple[tuple[tuple[str, ...], Callable[[NodeConfig], Problems]], ...]] = (
    (("node.name", "region.name"), _name_is_of_the_region),
    (("region.nodes", "region.join", "region.index", "region.shards", "region.replicas"), _made_or_joined),
    (("node.name", "region.name", "region.nodes", "region.join", "region.replicas"), _first_members),
    (("region.join",), _seeds_are_addresses),
    (("listen.grpc", "listen.peers", "listen.metrics"), _ports_differ),
    (("node.name", "region.nodes", "listen.host", "listen.grpc", "listen.peers"), _advertised),
    (("tls.peers", "tls.grpc", "cassandra"), _files_exist),
    (("replication", "cassandra"), _log_is_described),
    (("node.data_dir",), _data_dir_is_usable),
    (("raft.election_ticks", "raft.heartbeat_ticks", "raft.append_bytes_max"), _elections_are_calm),
)
