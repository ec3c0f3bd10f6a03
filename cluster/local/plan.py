"""What a local cluster consists of: directories, ports and configurations, decided before anything is done.

Pure but for `Plan.read`. All nodes are on loopback of this machine, each with a machine label of its own,
since replicas are never placed twice on one label. A directory holds

    cluster.json           the plan: names, ports, what is started
    state.json             how it goes; written by the supervisor only
    context.toml           for clients, in Temporal's client configuration format
    supervisor.log
    a/1/node.toml          may be edited between `down` and `up`
    a/1/node.log           stdout and stderr of the node, over all of its lives
    a/1/data/
    cassandra/a/           the log between regions, if it is on Cassandra, as region a has it: cassandra.yaml,
                           node.log, command.json (what starts it), and its data
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

FORMAT: Final = 1
HOST: Final = "127.0.0.1"
REPLICAS: Final = (1, 3, 5)  # an even number survives no more than the odd one below
NODES_MAX: Final = 32  # processes on one machine; three are 100 MB
PORTS_PER_NODE: Final = 10  # with --port-base: node n has base + 10 (n - 1), and the two ports after it
REGION_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
CLUSTER_FILE: Final = "cluster.json"
LOG_DIRECTORY: Final = "cassandra"

# -P: a directory `cluster` where the command is given is not ours.
PROGRAM: Final = (sys.executable, "-P", "-m", "cluster.admin.main", "server", "start", "--config")

Settings = Mapping[str, Mapping[str, object]]  # section of node.toml -> key -> value


class LocalError(Exception):
    """A local cluster that cannot do what was asked: what is wrong, and what to do."""

    def __init__(self, what: str, do: str, *, usage: bool = False) -> None:
        super().__init__(what)
        self.do = do
        self.usage = usage  # the request is wrong, rather than the cluster


class NodePlan(msgspec.Struct, frozen=True):
    """One node: where it is and where it listens, on 127.0.0.1."""

    name: str  # "a/1"
    grpc: int
    peers: int
    metrics: int

    @property
    def address(self) -> str:
        """Where clients find it."""
        return f"{HOST}:{self.grpc}"

    def config(self, directory: Path) -> Path:
        """Its node.toml."""
        return directory / self.name / "node.toml"

    def log(self, directory: Path) -> Path:
        """What it writes to stdout and stderr."""
        return directory / self.name / "node.log"


class LogPlan(msgspec.Struct, frozen=True):
    """A region's node of the log between regions, on an address of its own with the ordinary ports."""

    name: str  # "cassandra/a"
    region: str
    address: str  # of loopback
    jmx: int  # on 127.0.0.1

    def files(self, directory: Path) -> Path:
        """Where its files and its data are."""
        return directory / self.name

    def command(self, directory: Path) -> Path:
        """What starts it, as a list in JSON."""
        return self.files(directory) / "command.json"

    def log(self, directory: Path) -> Path:
        """What it writes to stdout and stderr."""
        return self.files(directory) / "node.log"


class RegionPlan(msgspec.Struct, frozen=True):
    """The nodes of one region."""

    name: str
    nodes: tuple[NodePlan, ...]
    index: int = 1  # its number among the regions


class Plan(msgspec.Struct, frozen=True):
    """The whole cluster. What is not in it is decided by node.toml."""

    regions: tuple[RegionPlan, ...]
    program: tuple[str, ...] = PROGRAM  # a node is started with this and the path of its node.toml
    environment: dict[str, str] = {}  # what the nodes' environment has besides the supervisor's
    format: int = FORMAT
    logs: tuple[LogPlan, ...] = ()  # the log between regions; none: it is embedded
    replicas: int = 0  # of each shard; 0: what follows from the number of nodes

    @property
    def nodes(self) -> tuple[NodePlan, ...]:
        """All nodes of all regions."""
        return tuple(node for region in self.regions for node in region.nodes)

    def node(self, name: str) -> NodePlan:
        """The node of this name. LocalError."""
        found = next((node for node in self.nodes if node.name == name), None)
        if found is None:
            names = ", ".join(node.name for node in self.nodes)
            raise LocalError(f"there is no node {name!r} in this cluster", f"name one of {names}", usage=True)
        return found

    def process(self, name: str) -> NodePlan | LogPlan:
        """The process of this name: a node, or one of the log between regions. LocalError."""
        found = next((one for one in self.logs if one.name == name), None)
        if found is None and self.logs and all(node.name != name for node in self.nodes):
            names = ", ".join([*(node.name for node in self.nodes), *(one.name for one in self.logs)])
            raise LocalError(f"there is no process {name!r} here", f"name one of {names}", usage=True)
        return found if found is not None else self.node(name)

    @staticmethod
    def read(directory: Path) -> Plan:
        """The plan of the cluster in this directory. LocalError."""
        file = directory / CLUSTER_FILE
        try:
            plan = msgspec.json.decode(file.read_bytes(), type=Plan)
        except FileNotFoundError:
            raise LocalError(
                f"there is no local cluster in {directory}",
                "`holdfast local up` makes one; --dir names the directory of another",
            ) from None
        except (OSError, msgspec.DecodeError) as error:
            raise LocalError(f"{file} cannot be read: {error}", "take another directory with --dir") from None
        if plan.format != FORMAT:
            raise LocalError(
                f"{file} is of format {plan.format}, this program's is {FORMAT}",
                "use the program that made it, or another directory with --dir",
            )
        return plan


def checked(regions: Sequence[str], nodes: int, log: str, replicas: int | None = None) -> None:
    """Refuse what this release does not have, and what never works. LocalError.

    `nodes`: of each region.
    """
    for name in regions:
        if not REGION_NAME.fullmatch(name):
            raise LocalError(
                f"{name!r} is no name of a region", "use lower-case letters, digits and -", usage=True
            )
    if log == "cassandra" and LOG_DIRECTORY in regions:
        raise LocalError(
            f"a region that is called {LOG_DIRECTORY} is in the way of the log's own directory",
            "give it another name",
            usage=True,
        )
    twice = next((name for name in regions if regions.count(name) > 1), None)
    if twice is not None or not regions:
        raise LocalError(
            f"two regions are called {twice}" if regions else "no regions",
            "give each a name of its own, like --regions a,b",
            usage=True,
        )
    if not 1 <= nodes <= NODES_MAX:
        raise LocalError(
            f"{nodes} nodes: a local region has from 1 to {NODES_MAX}",
            "three survive the loss of one",
            usage=True,
        )
    if nodes * len(regions) > NODES_MAX:
        raise LocalError(
            f"{len(regions)} regions of {nodes} nodes: a local cluster has at most {NODES_MAX} nodes",
            "take fewer regions, or fewer nodes for each",
            usage=True,
        )
    if replicas is not None and (replicas not in REPLICAS or replicas > nodes):
        raise LocalError(
            f"--replicas {replicas}: a shard has 1, 3 or 5 of them, each on a node of its own",
            f"give as many --nodes, or fewer replicas; {nodes} nodes have {replicas_of(nodes)} by themselves",
            usage=True,
        )


def ports_from(base: int, nodes: int) -> list[int]:
    """The three ports of each node from a base on: grpc, peers, metrics; then the next node's. LocalError."""
    last = base + PORTS_PER_NODE * (nodes - 1) + 2
    if base < 1024 or last > 65535:
        raise LocalError(
            f"--port-base {base}: {nodes} nodes need the ports {base} to {last}",
            "take a base from 1024 on, with 10 ports a node up to 65535",
            usage=True,
        )
    return [base + PORTS_PER_NODE * node + port for node in range(nodes) for port in range(3)]


def planned(
    regions: Sequence[str],
    nodes: int,
    ports: Sequence[int],
    program: Sequence[str],
    environment: Mapping[str, str],
    logs: Sequence[LogPlan] = (),
    replicas: int = 0,
) -> Plan:
    """A cluster: regions of so many nodes each, with the indices 1, 2, ...; three ports for each node."""
    assert len(ports) == 3 * nodes * len(regions)
    made = []
    for index, name in enumerate(regions, start=1):
        own = ports[3 * nodes * (index - 1) : 3 * nodes * index]
        plans = (NodePlan(f"{name}/{one + 1}", *own[3 * one : 3 * one + 3]) for one in range(nodes))
        made.append(RegionPlan(name, tuple(plans), index))
    return Plan(
        tuple(made),
        tuple(program),
        dict(environment),
        logs=tuple(logs),
        replicas=replicas or replicas_of(nodes),
    )


def replicas_of(nodes: int) -> int:
    """Replicas of each shard: three, if there are three nodes."""
    return 3 if nodes >= 3 else 1


def node_toml(
    region: RegionPlan, node: NodePlan, settings: Settings, log: LogPlan | None = None, replicas: int = 0
) -> str:
    """The node's configuration; `settings` come on top of what follows from the plan.

    `log`: the region's part of the log between regions, if it is not embedded.
    """
    number = node.name.partition("/")[2]
    tables: dict[str, dict[str, Any]] = {
        "node": {"name": node.name, "data_dir": "data", "machine": f"local-{number}"},
        "region": {
            "name": region.name,
            # An older program, which rolling upgrades are tried with, does not know the key.
            **({"index": region.index} if region.index != 1 else {}),
            "nodes": [f"{one.name}={HOST}:{one.peers}" for one in region.nodes],
            "replicas": replicas or replicas_of(len(region.nodes)),
        },
        "listen": {"host": HOST, "grpc": node.grpc, "peers": node.peers, "metrics": node.metrics},
        "log": {"level": "info", "format": "text"},
    }
    if log is not None:
        tables["replication"] = {"log": "cassandra"}
        tables["cassandra"] = {"contact_points": [log.address]}
    for section, keys in settings.items():
        tables.setdefault(section, {}).update(keys)
    return toml(tables, "Made by `holdfast local up`; `holdfast config show FILE` explains it.")


def context_toml(plan: Plan) -> str:
    """How clients find the cluster: a profile for each region, and the first region's as the default.

    Temporal's clients read one address of a profile; `holdfast` also knows the other nodes of its region.
    """
    tables: dict[str, dict[str, object]] = {
        f"profile.{name}": {"address": region.nodes[0].address, "namespace": "default"}
        for region in plan.regions
        for name in (["default"] if region is plan.regions[0] else []) + [region.name]
    }
    tables["holdfast.nodes"] = {
        region.name: [node.address for node in region.nodes] for region in plan.regions
    }
    return toml(tables, "For clients: export TEMPORAL_CONFIG_FILE=<this file>; a profile for each region.")


def toml(tables: Mapping[str, Mapping[str, object]], comment: str) -> str:
    """Sections of plain values as TOML."""
    lines = [f"# {comment}"]
    for section, keys in tables.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_value(value)}" for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    """JSON is TOML for strings, numbers, booleans and lists of them."""
    assert not isinstance(value, dict), "a section has no tables inside"
    return msgspec.json.encode(value).decode()


def topology(directory: Path, plan: Plan, pids: Mapping[str, int | None]) -> dict[str, Any]:
    """What `local up` prints: a format that scripts, tests and benchmarks rely on."""
    return {
        "dir": str(directory),
        "log": {
            "kind": "cassandra" if plan.logs else "embedded",
            "nodes": [
                {"name": one.name, "pid": pids.get(one.name), "address": one.address} for one in plan.logs
            ],
        },
        "regions": [
            {
                "name": region.name,
                "endpoint": region.nodes[0].address,
                "http": None,  # there is no HTTP gateway in this release
                "nodes": [
                    {
                        "name": node.name,
                        "pid": pids.get(node.name),
                        "grpc": node.address,
                        "http": None,
                        "metrics": f"{HOST}:{node.metrics}",
                    }
                    for node in region.nodes
                ],
            }
            for region in plan.regions
        ],
    }
