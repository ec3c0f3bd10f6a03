"""The configuration of one node of a region: `node.toml`, checked as a whole before anything is started.

`load(path)` gives a `NodeConfig` or raises `ConfigError` with everything that is wrong, each a sentence that
names the key, its value, what is allowed, and what to do. The schema below is also what `holdfast config
show` and docs/configuration.md are made from (see reading.py).

Paths in the file are relative to the file's own directory; in the result they are absolute. Not here: whether
the files of several nodes agree (agreement.py), and whether ports are free or certificates valid,
which only the start can tell.
"""

from __future__ import annotations

import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from cluster.hosting.config import reading
from cluster.hosting.config.addresses import FORM as ADDRESS_FORM
from cluster.hosting.config.addresses import join_address, split_address
from cluster.hosting.config.fields import (
    ADDRESS,
    FILE_FORM,
    NODE_NAME,
    REGION_NAME,
    PemFile,
    Port,
    about,
    within,
)
from cluster.hosting.config.options import LOG_LEVELS, MESSAGE_BYTES_MAX_DEFAULT, SHARDS_MAX
from cluster.hosting.config.region_log import CASSANDRA_FILES, CassandraSection, ReplicationSection
from cluster.hosting.config.rules import RULES
from cluster.peers.abroad import INDEX_MAX

NODES_MAX: Final = 128  # in `region.nodes`: a region is made of a few nodes and grows by joining
SEEDS_MAX: Final = 128


class ConfigError(Exception):
    """A configuration that cannot be used: the file, and every problem as a sentence."""

    def __init__(self, file: Path, problems: list[str]) -> None:
        assert problems, "an error says what is wrong"
        super().__init__("\n".join(f"{file}: {problem}" for problem in problems))
        self.file = file
        self.problems = problems


class Member(Struct, frozen=True):
    """One of the first members of a region, and where its peers reach it."""

    name: str  # "a/1"
    host: str  # an IPv6 address has no brackets here
    port: int


class NodeSection(Struct, frozen=True, kw_only=True):
    """[node]: who this process is."""

    name: Annotated[
        str,
        about(
            "This node's name: the region's name, a slash, and a name of its own. It is written into the "
            "data directory and never changes.",
            bounds={"pattern": rf"^{NODE_NAME}\Z"},
            form='REGION/NAME, like "a/1"',
            example='"a/1"',
        ),
    ]
    data_dir: Annotated[
        str,
        about(
            "Directory of the node's data; made at the first start. One node, one directory.",
            bounds={"min_length": 1},
            form="the path of a directory on a local disk",
            example='"data"',
        ),
    ]
    machine: Annotated[
        str,
        about(
            "Label of what fails together: a machine, a rack, a zone. Two replicas of one shard are never "
            "placed on nodes with the same label.",
            bounds={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,254}\Z"},
            form="letters, digits and . _ : / - (at most 255)",
            default="the host's name",
        ),
    ] = ""
    scrub_kib_s: Annotated[
        int,
        about(
            "What is read of the data, slowly and all the time, to see whether it is still what was written. "
            "0 is never: then damage is found when it is met.",
            bounds=within(0, 1 << 20),
            unit="KiB a second",
        ),
    ] = 512


class RegionSection(Struct, frozen=True, kw_only=True):
    """[region]: which region the node belongs to, and how it finds the others."""

    name: Annotated[
        str,
        about(
            "The region's name.",
            bounds={"pattern": rf"^{REGION_NAME}\Z"},
            form="lower-case letters, digits and - (at most 32)",
            example='"a"',
        ),
    ]
    cluster_name: Annotated[
        str,
        about(
            "Name that clients are told (GetClusterInfo); the same on all nodes.",
            bounds={"pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"},
            form="letters, digits and . _ - (at most 64)",
        ),
    ] = "holdfast"
    nodes: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"^{NODE_NAME}={ADDRESS}\Z")], ...],
        about(
            "The first members and where their peers reach them, this node included; the same list, in "
            "the same order, in the file of each. The region is made by these nodes' first start; later "
            "the list is only compared with who made it. Either `nodes` or `join`.",
            bounds={"min_length": 1, "max_length": NODES_MAX},
            form=f'a list of at most {NODES_MAX} strings NAME=HOST:PORT, like "a/1=10.0.0.1:7301"',
            example='["a/1=127.0.0.1:7301", "a/2=127.0.0.1:7311", "a/3=127.0.0.1:7321"]',
        ),
    ] = ()
    join: Annotated[
        tuple[Annotated[str, Meta(pattern=rf"^{ADDRESS}\Z")], ...],
        about(
            "Peer addresses of a running region that this node joins; one that answers is enough. Either "
            "`nodes` or `join`.",
            bounds={"min_length": 1, "max_length": SEEDS_MAX},
            form=f"a list of at most {SEEDS_MAX} strings {ADDRESS_FORM}",
            example='["127.0.0.1:7301"]',
        ),
    ] = ()
    index: Annotated[
        int,
        about(
            "The region's number among regions that work together, each its own. It is in the version of all "
            "that the region writes, so it is given when the region is made and never changes, and is not "
            "used again when the region is gone. Only with `nodes`.",
            bounds=within(1, INDEX_MAX),
        ),
    ] = 1
    shards: Annotated[
        int,
        about(
            "History shards of a new region; each is a Raft group. Only with `nodes`: a region that is "
            "joined has its own. A running region's shards are split and moved by command.",
            bounds=within(1, SHARDS_MAX),
        ),
    ] = 8
    replicas: Annotated[
        Literal[1, 3, 5],
        about(
            "Replicas of each shard in a new region: 3 survive the loss of one node, 5 of two, 1 of none. "
            "Only with `nodes`.",
        ),
    ] = 3


class ListenSection(Struct, frozen=True, kw_only=True):
    """[listen]: where this process listens."""

    host: Annotated[
        str,
        about(
            "Address or name of this machine to listen on; 0.0.0.0 or :: is all of them.",
            bounds={"pattern": r"^([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|[A-Za-z0-9]([A-Za-z0-9._-]{0,252}))\Z"},
            form="an IP address or a host name",
        ),
    ] = "127.0.0.1"
    grpc: Annotated[
        Port,
        about(
            "Port of the gRPC API, for clients and workers.",
        ),
    ] = 7233
    peers: Annotated[
        Port,
        about(
            "Port for the other nodes of the region.",
        ),
    ] = 7301
    metrics: Annotated[
        Port | None,
        about(
            "Port of Prometheus text over HTTP, at /metrics.",
            default="not served",
        ),
    ] = None


class AdvertiseSection(Struct, frozen=True, kw_only=True):
    """[advertise]: where others reach this node, if that is not where it listens."""

    grpc: Annotated[
        Annotated[str, Meta(pattern=rf"^{ADDRESS}\Z")],
        about(
            "Where clients and other nodes reach the gRPC port.",
            form=ADDRESS_FORM,
            default="listen.host and listen.grpc",
        ),
    ] = ""
    peers: Annotated[
        Annotated[str, Meta(pattern=rf"^{ADDRESS}\Z")],
        about(
            "Where other nodes reach the peers' port.",
            form=ADDRESS_FORM,
            default="this node's address in region.nodes, else listen.host and listen.peers",
        ),
    ] = ""


class TlsPeersSection(Struct, frozen=True, kw_only=True):
    """[tls.peers]: mutual TLS between nodes; without the section they talk in the clear."""

    cert: Annotated[
        PemFile,
        about(
            "Certificate shown to other nodes.",
            form=FILE_FORM,
            example='"node.pem"',
        ),
    ]
    key: Annotated[
        PemFile,
        about(
            "Private key of `cert`.",
            form=FILE_FORM,
            example='"node.key"',
        ),
    ]
    ca: Annotated[
        PemFile,
        about(
            "Authority that has to have signed every node's certificate.",
            form=FILE_FORM,
            example='"ca.pem"',
        ),
    ]


class TlsGrpcSection(Struct, frozen=True, kw_only=True):
    """[tls.grpc]: TLS on the gRPC port; without the section it speaks in the clear."""

    cert: Annotated[
        PemFile,
        about(
            "Certificate shown to clients.",
            form=FILE_FORM,
            example='"grpc.pem"',
        ),
    ]
    key: Annotated[
        PemFile,
        about(
            "Private key of `cert`.",
            form=FILE_FORM,
            example='"grpc.key"',
        ),
    ]
    client_ca: Annotated[
        PemFile | None,
        about(
            "Authority that has to have signed the certificates of clients.",
            form=FILE_FORM,
            default="clients need no certificate",
        ),
    ] = None


class RaftSection(Struct, frozen=True, kw_only=True):
    """[raft]: timing and limits of consensus; the same on all nodes of a region."""

    tick_ms: Annotated[
        int,
        about(
            "Length of a tick.",
            bounds=within(10, 1000),
            unit="milliseconds",
        ),
    ] = 50
    election_ticks: Annotated[
        int,
        about(
            "A follower that hears nothing for this long, to twice this long, stands for election. More "
            "than twice raft.heartbeat_ticks.",
            bounds=within(4, 100),
            unit="ticks",
        ),
    ] = 10
    heartbeat_ticks: Annotated[
        int,
        about(
            "A leader is heard this often.",
            bounds=within(1, 20),
            unit="ticks",
        ),
    ] = 2
    append_bytes_max: Annotated[
        int,
        about(
            "Entries of one append message.",
            bounds=within(4 << 10, 64 << 20),
            unit="bytes",
        ),
    ] = 1 << 20
    inflight_bytes_max: Annotated[
        int,
        about(
            "Appends sent to one follower of one shard and not answered; at least raft.append_bytes_max.",
            bounds=within(64 << 10, 1 << 30),
            unit="bytes",
        ),
    ] = 16 << 20
    snapshot_chunk_bytes: Annotated[
        int,
        about(
            "One piece of a snapshot on its way to another node.",
            bounds=within(4 << 10, 16 << 20),
            unit="bytes",
        ),
    ] = 256 << 10
    log_bytes_max: Annotated[
        int,
        about(
            "A shard's log is compacted when it is longer; a follower that lags further gets a snapshot. "
            "It is held in memory.",
            bounds=within(256 << 10, 1 << 30),
            unit="bytes",
        ),
    ] = 4 << 20


class FrontSection(Struct, frozen=True, kw_only=True):
    """[front]: how the gRPC port is served."""

    kind: Annotated[
        Literal["http2", "grpcio"],
        about(
            "http2: our own front; grpcio: that of the grpcio package, which has to be installed.",
            form='"http2" or "grpcio"',
        ),
    ] = "http2"
    message_bytes_max: Annotated[
        int,
        about(
            "Largest gRPC message taken in; the ceiling is what one log entry holds.",
            bounds=within(64 << 10, MESSAGE_BYTES_MAX_DEFAULT),
            unit="bytes",
        ),
    ] = MESSAGE_BYTES_MAX_DEFAULT


class LogSection(Struct, frozen=True, kw_only=True):
    """[log]: what the process writes to standard error."""

    level: Annotated[
        Literal["debug", "info", "warn", "error", "never"],
        about(
            "Least level written.",
            form=", ".join(f'"{level}"' for level in LOG_LEVELS[:-1]) + f' or "{LOG_LEVELS[-1]}"',
        ),
    ] = "info"
    format: Annotated[
        Literal["pretty", "json", "text"],
        about(
            "pretty: with colours on a terminal; json: one object a line; text: without colours.",
            form='"pretty", "json" or "text"',
        ),
    ] = "pretty"


class DynamicConfigSection(Struct, frozen=True, kw_only=True):
    """[dynamic_config]: limits under Temporal's names."""

    path: Annotated[
        Annotated[str, Meta(min_length=1)] | None,
        about(
            'TOML file of Temporal\'s dynamic config keys, one a line: "limit.blobSize.error" = 2097152. '
            "Keys without a meaning here are warned of in the log.",
            form="the path of a TOML file",
            default="no such file",
        ),
    ] = None


class TlsSection(Struct, frozen=True, kw_only=True):
    """Both kinds of TLS; None = in the clear."""

    peers: TlsPeersSection | None = None
    grpc: TlsGrpcSection | None = None


SECTIONS: Final[dict[str, type[Struct]]] = {
    "node": NodeSection,
    "region": RegionSection,
    "listen": ListenSection,
    "advertise": AdvertiseSection,
    "tls.peers": TlsPeersSection,
    "tls.grpc": TlsGrpcSection,
    "raft": RaftSection,
    "front": FrontSection,
    "log": LogSection,
    "replication": ReplicationSection,
    "cassandra": CassandraSection,
    "dynamic_config": DynamicConfigSection,
}
OPTIONAL_SECTIONS: Final = frozenset({"tls.peers", "tls.grpc", "cassandra"})


class NodeConfig(Struct, frozen=True, kw_only=True):
    """One node's settings: complete (defaults are filled in), consistent, and with absolute paths."""

    file: Path
    given: frozenset[str]  # the keys that the file has, like "raft.tick_ms"; all others have their defaults
    node: NodeSection
    region: RegionSection
    listen: ListenSection
    advertise: AdvertiseSection
    tls: TlsSection
    raft: RaftSection
    front: FrontSection
    log: LogSection
    replication: ReplicationSection
    cassandra: CassandraSection | None  # None: the file has no such section
    dynamic_config: DynamicConfigSection
    dynamic_values: dict[str, object]  # what the file of dynamic_config.path says; key -> value

    @property
    def members(self) -> tuple[Member, ...]:
        """`region.nodes`, taken apart; empty if this node joins a running region."""
        return tuple(
            Member(text.partition("=")[0], *split_address(text.partition("=")[2]))
            for text in self.region.nodes
        )

    @property
    def seeds(self) -> tuple[tuple[str, int], ...]:
        """`region.join` as host and port."""
        return tuple(split_address(text) for text in self.region.join)


def settings() -> list[reading.Setting]:
    """Every key that a node.toml may have, for people."""
    return reading.settings(SECTIONS)


def load(path: Path | str) -> NodeConfig:
    """Read and check a node.toml. ConfigError."""
    file = Path(path)
    tables = _toml(file)
    values, problems = reading.read(SECTIONS, OPTIONAL_SECTIONS, tables)
    config = _config(file, values)
    wrong = tuple(problems)
    for keys, rule in RULES:
        # A rule can say nothing sensible about keys that are wrong in themselves.
        if not any(one == key or one.startswith(f"{key}.") for key in keys for one in wrong):
            for key, sentence in rule(config):
                problems.setdefault(key, sentence)
    if "dynamic_config.path" not in problems and config.dynamic_config.path is not None:
        try:
            config = msgspec.structs.replace(
                config, dynamic_values=_flat(_toml(Path(config.dynamic_config.path), "Correct the path"))
            )
        except ConfigError as error:
            path_given = config.dynamic_config.path
            problems["dynamic_config.path"] = f'dynamic_config.path = "{path_given}": {error.problems[0]}'
    if problems:
        order = list(SECTIONS)
        raise ConfigError(
            file, [problems[key] for key in sorted(problems, key=lambda key: _place(key, order))]
        )
    return config


# ------------------------------------------------------------------------------------------------ inside


def _toml(file: Path, missing: str = "`holdfast config show` lists what it may say") -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_bytes().decode())
    except FileNotFoundError:
        raise ConfigError(file, [f"there is no such file. {missing}."]) from None
    except IsADirectoryError:
        raise ConfigError(file, ["it is a directory. Name the file in it."]) from None
    except OSError as error:
        raise ConfigError(file, [f"it cannot be read: {error.strerror}. Mend its permissions."]) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            file, [f"byte {error.start} is not UTF-8, which TOML has to be. Save it as UTF-8."]
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(file, [f"it is not TOML: {error}. Correct it there."]) from None


def _flat(table: Mapping[str, Any], above: str = "") -> dict[str, object]:
    """Dotted keys, whether they were written in quotes or as tables."""
    result: dict[str, object] = {}
    for word, value in table.items():
        result |= _flat(value, f"{above}{word}.") if isinstance(value, dict) else {f"{above}{word}": value}
    return result


def _place(key: str, order: list[str]) -> tuple[int, str]:
    """Problems come in the order of the sections."""
    return next(
        (order.index(one) for one in order if key == one or key.startswith(f"{one}.")), len(order)
    ), key


def _config(file: Path, values: dict[str, dict[str, Any]]) -> NodeConfig:
    """The whole, with defaults filled in. What is missing or wrong is empty: the caller refuses it."""
    here = file.absolute().parent
    node = {"name": "", "data_dir": "", "machine": socket.gethostname(), **values["node"]}
    region = RegionSection(**{"name": "", **values["region"]})
    listen = ListenSection(**values["listen"])
    own = [text.partition("=")[2] for text in region.nodes if text.partition("=")[0] == node["name"]]
    advertise = {
        "grpc": join_address(listen.host, listen.grpc),
        "peers": own[0] if own else join_address(listen.host, listen.peers),
        **values["advertise"],
    }
    paths: dict[str, Any] = {"cert": "", "key": "", "ca": "", "client_ca": None}
    tls: dict[str, Any] = {}
    for name, schema in (("peers", TlsPeersSection), ("grpc", TlsGrpcSection)):
        if f"tls.{name}" in values:
            given = {key: str(here / value) for key, value in values[f"tls.{name}"].items()}
            tls[name] = schema(**{key: given.get(key, paths[key]) for key in schema.__struct_fields__})
    dynamic = values["dynamic_config"].get("path")
    return NodeConfig(
        file=file,
        given=frozenset(f"{section}.{key}" for section, keys in values.items() for key in keys),
        node=NodeSection(**{**node, "data_dir": str(here / node["data_dir"])}),
        region=region,
        listen=listen,
        advertise=AdvertiseSection(**advertise),
        tls=TlsSection(**tls),
        raft=RaftSection(**values["raft"]),
        front=FrontSection(**values["front"]),
        log=LogSection(**values["log"]),
        replication=ReplicationSection(**values["replication"]),
        cassandra=_cassandra(here, values.get("cassandra")),
        dynamic_config=DynamicConfigSection(path=str(here / dynamic) if dynamic else None),
        dynamic_values={},
    )


def _cassandra(here: Path, given: dict[str, Any] | None) -> CassandraSection | None:
    if given is None:
        return None
    paths = {key: str(here / given[key]) for key in CASSANDRA_FILES if key in given}
    values: dict[str, Any] = {"contact_points": (), **given, **paths}
    return CassandraSection(**values)
