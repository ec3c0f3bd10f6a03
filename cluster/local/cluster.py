"""`LocalCluster`: real node processes on loopback, for `holdfast local`, tests, benchmarks and chaos.

    with LocalCluster(nodes=3) as cluster:      # a temporary directory; gone at the end, whatever happens
        client = await Client.connect(cluster.endpoints()[0])
        cluster.kill("a/2")
        cluster.restart("a/2")

Calls block: `kill`, `pause` and `resume` for some milliseconds, what waits for nodes for as long as they
take; inside an event loop use `asyncio.to_thread`. They may come from several threads and processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

from cluster.local import logs
from cluster.local.cassandra.installing import make_tables, planned_logs, prepare
from cluster.local.introducing import introduce
from cluster.local.life import BAD_CONFIG_EXIT, STOP_MAX_S, Phase
from cluster.local.plan import (
    CLUSTER_FILE,
    HOST,
    LOG_DIRECTORY,
    PROGRAM,
    LocalError,
    Plan,
    Settings,
    checked,
    context_toml,
    node_toml,
    planned,
    ports_from,
    topology,
)
from cluster.local.ports import free_ports
from cluster.local.processes import end, wait_until
from cluster.local.state import (
    COMMAND_LOCK,
    COMMAND_LOCK_MAX_S,
    STATE_FILE,
    SUPERVISOR_LOCK,
    NodeState,
    RunState,
    locked,
    read_state,
    replace,
)
from cluster.local.status import described, truth

DIRECTORY_DEFAULT: Final = ".holdfast"
REGIONS_DEFAULT: Final = ("a",)
NODES_DEFAULT: Final = 3
LOG_DEFAULT: Final = "embedded"
CONTEXT_FILE: Final = "context.toml"
READY_MAX_S: Final = 120.0  # three nodes take two seconds; a busy machine more
LOG_READY_MAX_S: Final = 300.0  # Cassandra takes ten seconds of a machine with nothing else to do
DEATHS_MAX: Final = 3  # a node that died so often while the cluster was coming up will not come up
ORDER_MAX_S: Final = 60.0  # an order waits for a process to end, not for one to serve
DOWN_ANSWER_MAX_S: Final = 5.0  # the supervisor only writes down what it will do
OUR_FILES: Final = (
    CLUSTER_FILE,
    STATE_FILE,
    CONTEXT_FILE,
    "supervisor.log",
    SUPERVISOR_LOCK,
    COMMAND_LOCK,
    ".gitignore",
)

Report = Callable[[str], None]


class LocalCluster:
    """One local cluster: a directory, which may be new, stopped, or running."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        regions: Sequence[str] | None = None,
        nodes: int | None = None,
        log: str | None = None,
        port_base: int | None = None,
        settings: Settings | None = None,
        environment: Mapping[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
        ready_max_s: float = READY_MAX_S,
    ) -> None:
        """Describe the cluster; `up`, or entering the context, starts it. `nodes`: of each region.

        `log`: the one between regions, embedded or cassandra. Without `directory`, a temporary one that
        `down` removes. None is the default (region a, three nodes, an embedded log, free ports) for a new
        cluster, and whatever there is for one that exists. `settings` are sections of node.toml for all
        nodes: {"raft": {"tick_ms": 20}}. `environment` is added to theirs. What a cluster has been made with
        it keeps: another shape is refused; `settings`, `environment` and `program` are not looked at again.
        """
        self._temporary = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="holdfast-local-")).absolute()
        self._regions = None if regions is None else tuple(regions)
        self._nodes = nodes
        self._log = log
        self._port_base = port_base
        self._settings = settings or {}
        self._environment = environment or {}
        self._program = program
        self._ready_max_s = ready_max_s
        self._owned: int | None = None  # the end of the pipe whose closing ends the cluster

    # -------------------------------------------------------------------------------------- up and down

    def up(self, report: Report | None = None, *, owned: bool = False) -> dict[str, Any]:
        """Start the cluster, or find it running; wait until all nodes serve, and the regions, if there are
        several, know each other. Returns `topology()`.

        `report` hears in words what happens. `owned`: the cluster ends when this process does. LocalError
        if a node does not come up; what this call started is then stopped again, and its files stay.
        """
        tell = report or (lambda _: None)
        checked(self._region_names(), self._node_count(), self._log or LOG_DEFAULT)
        self._make_directory()
        with locked(self.directory / COMMAND_LOCK, COMMAND_LOCK_MAX_S, self._busy()):
            plan = self._plan(tell)
            state = read_state(self.directory)
            running = state is not None and state.supervised
            if not running:
                self._check_configs(plan)
                prepare(self.directory, plan, tell)
                self._launch(owned)
            try:
                self._start_on_log(plan, tell, resumed=running)
                self._wait_all(self.node_names(), tell, self._ready_max_s, resumed=running)
                introduce(plan, self._ready_max_s, tell)
            except LocalError:
                if not running:
                    tell("stopping what was started")
                    self._end(STOP_MAX_S)
                raise
            if running:
                tell(f"the cluster in {self.directory} runs already")
            return self.topology()

    def down(self, *, delete: bool = False, stop_max_s: float = STOP_MAX_S) -> None:
        """Stop all nodes (SIGTERM; SIGKILL for those that run after `stop_max_s`) and the supervisor.

        `delete` also removes the data and the logs. LocalError if there is no cluster.
        """
        Plan.read(self.directory)
        with locked(self.directory / COMMAND_LOCK, COMMAND_LOCK_MAX_S, self._busy()):
            self._end(stop_max_s)
            if delete or self._temporary:
                self._delete()

    def __enter__(self) -> LocalCluster:
        """Start it, tied to this process."""
        try:
            self.up(owned=True)
        except BaseException:
            if self._temporary:
                shutil.rmtree(self.directory, ignore_errors=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it down; nothing that is still needed is in a temporary directory."""
        self.down(stop_max_s=0.0 if self._temporary else STOP_MAX_S)

    # ------------------------------------------------------------------------------------ to single nodes

    def kill(self, node: str, number: int = signal.SIGKILL) -> None:
        """End a node with this signal, and leave it dead until `restart`. Returns when it has ended."""
        self._order("kill", node, signal=int(number))

    def pause(self, node: str) -> None:
        """SIGSTOP: the node keeps its connections and answers nothing."""
        self._order("pause", node)

    def resume(self, node: str) -> None:
        """SIGCONT."""
        self._order("resume", node)

    def restart(self, node: str, *, wait: bool = True) -> None:
        """Stop a node gracefully if it lives, and start it; `wait` until it serves. LocalError if it dies."""
        self._order("restart", node)
        if wait:
            self.wait_serving(node, deaths_max=self.node_state(node).restarts + DEATHS_MAX)

    def wait_serving(
        self, node: str, timeout_s: float | None = None, *, deaths_max: int | None = None
    ) -> None:
        """Return when the node serves. LocalError if it does not in time, is dead, or died so often."""
        plan = Plan.read(self.directory).process(node)
        limit = self._ready_max_s if timeout_s is None else timeout_s
        if not wait_until(lambda: self._comes_up(node, deaths_max) is Phase.RUNNING, limit):
            raise self._not_up(plan.name, f"does not serve after {limit:g} s")

    # --------------------------------------------------------------------------------------- what there is

    def topology(self) -> dict[str, Any]:
        """`{"dir", "regions": [{"name", "endpoint", "http", "nodes": [{"name", "pid", "grpc", …}]}]}`."""
        state = read_state(self.directory)
        supervised = state is not None and state.supervised
        pids = {node.name: node.pid for node in state.nodes} if state is not None and supervised else {}
        return topology(self.directory, Plan.read(self.directory), pids)

    def endpoints(self) -> list[str]:
        """The gRPC address of every node, as host:port."""
        return [node.address for node in Plan.read(self.directory).nodes]

    def node_names(self) -> list[str]:
        """All nodes, like "a/1"."""
        return [node.name for node in Plan.read(self.directory).nodes]

    def pid(self, node: str) -> int | None:
        """The node's process; None if it has none."""
        return self.node_state(node).pid

    def node_state(self, node: str) -> NodeState:
        """What the supervisor last wrote about a node; stopped, if the cluster is down."""
        Plan.read(self.directory).process(node)
        state = read_state(self.directory)
        return NodeState(node) if state is None else truth(state, state.node(node))

    def log_file(self, node: str) -> Path:
        """Where the node's stdout and stderr go."""
        return Plan.read(self.directory).process(node).log(self.directory)

    def status(self) -> dict[str, Any]:
        """How every node does, for people and programs; asks each running one whether it serves."""
        plan, state = Plan.read(self.directory), read_state(self.directory)
        return described(self.directory, plan, state, self.topology())

    # -------------------------------------------------------------------------------------------- inside

    def _make_directory(self) -> None:
        here = self.directory
        try:
            here.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LocalError(
                f"{here} cannot be made: {error.strerror}", "name another with --dir", usage=True
            ) from None
        if not (here / CLUSTER_FILE).exists():
            ours = {*OUR_FILES, LOG_DIRECTORY, *self._region_names()}
            strange = sorted({path.name for path in here.iterdir()} - ours)
            if strange:
                raise LocalError(
                    f"{here} has other things in it ({strange[0]}) and no cluster",
                    "name a new directory with --dir",
                    usage=True,
                )

    def _plan(self, tell: Report) -> Plan:
        """The plan of the directory; made, with all its files, if there is none."""
        here = self.directory
        if (here / CLUSTER_FILE).exists():
            plan = Plan.read(here)
            self._same(plan)
            return plan
        regions = self._region_names()
        count = self._node_count() * len(regions)
        rng = random.Random(secrets.randbits(64))
        if self._port_base is not None:
            ports = ports_from(self._port_base, count)
        else:
            ports = free_ports(3 * count, rng)
        on = planned_logs(regions, rng) if self._log == "cassandra" else []
        plan = planned(regions, self._node_count(), ports, self._program, self._environment, on)
        (here / ".gitignore").write_text("*\n")
        for region in plan.regions:
            for node in region.nodes:
                node.config(here).parent.mkdir(parents=True, exist_ok=True)
                log = next((one for one in on if one.region == region.name), None)
                node.config(here).write_text(node_toml(region, node, self._settings, log))
        replace(here / CLUSTER_FILE, msgspec.json.format(msgspec.json.encode(plan)))
        tell(f"a new cluster in {here}: {len(plan.nodes)} nodes")
        return plan

    def _region_names(self) -> tuple[str, ...]:
        return REGIONS_DEFAULT if self._regions is None else self._regions

    def _node_count(self) -> int:
        return NODES_DEFAULT if self._nodes is None else self._nodes

    def _same(self, plan: Plan) -> None:
        """Refuse to give an existing cluster another shape."""
        names = tuple(region.name for region in plan.regions)
        base = plan.nodes[0].grpc
        for what, asked, there in (
            ("regions", None if self._regions is None else ",".join(self._regions), ",".join(names)),
            ("nodes", self._nodes, len(plan.regions[0].nodes)),
            ("log", self._log, "cassandra" if plan.logs else LOG_DEFAULT),
            ("port-base", self._port_base, base),
        ):
            if asked not in (None, there):
                raise LocalError(
                    f"the cluster in {self.directory} has --{what} {there}, not {asked}",
                    "leave the option out, take another --dir, or remove it: `holdfast local down --delete`",
                    usage=True,
                )

    def _check_configs(self, plan: Plan) -> None:
        """Refuse at once what a node would refuse: the files are for people to edit."""
        from cluster.hosting.config.agreement import disagreements
        from cluster.hosting.config.node_config import (  # the supervisor, which imports us, does without
            ConfigError,
            load,
        )

        problems, disagreed = [], []
        for region in plan.regions:
            configs = []
            for node in region.nodes:
                try:
                    config = load(node.config(self.directory))
                except ConfigError as error:
                    problems += str(error).splitlines()
                    continue
                configs.append(config)
                there = (config.node.name, config.listen.host, config.listen.grpc)
                if there != (node.name, HOST, node.grpc):
                    problems.append(f"{config.file}: it has to be node {node.name} at {node.address}")
            disagreed += disagreements(configs) if configs else []
        problems = problems or disagreed
        if problems:
            lines = "\n  ".join(problems)
            raise LocalError(
                f"the nodes' configuration cannot be used:\n  {lines}",
                "correct the files; `holdfast config check` looks at them",
                usage=True,
            )

    def _launch(self, owned: bool) -> None:
        """Start the supervisor; returns when it takes orders."""
        command = [sys.executable, "-P", "-m", "cluster.local.supervisor", str(self.directory)]
        inherited: list[int] = []
        if owned:
            theirs, self._owned = os.pipe()
            inherited = [theirs]
            command.append(str(theirs))
        try:
            result = subprocess.run(  # noqa: S603 - our own program
                command, capture_output=True, text=True, check=False, pass_fds=inherited
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        if result.returncode != 0:
            what, _, do = result.stderr.strip().partition("\n")
            log = self.directory / "supervisor.log"
            raise LocalError(
                f"the cluster cannot start: {what or 'its supervisor ended'}", do or f"see {log}"
            )
        replace(self.directory / CONTEXT_FILE, context_toml(Plan.read(self.directory)).encode())

    def _start_on_log(self, plan: Plan, tell: Report, *, resumed: bool) -> None:
        """Where there is a log between regions to run: its tables first, then the nodes that want them."""
        if not plan.logs:
            return
        if not resumed:
            tell(f"Cassandra starts, a node for each region: {', '.join(one.name for one in plan.logs)}")
        limit_s = max(self._ready_max_s, LOG_READY_MAX_S)
        self._wait_all([one.name for one in plan.logs], tell, limit_s, resumed=resumed)
        state = read_state(self.directory)
        assert state is not None, "its processes serve"
        stopped = [node.name for node in plan.nodes if state.node(node.name).state is Phase.STOPPED]
        if stopped:
            make_tables(self.directory, plan, limit_s, tell)
        for name in stopped:
            self._order("start", name)

    def _wait_all(self, names: Sequence[str], tell: Report, limit_s: float, *, resumed: bool) -> None:
        """Until all of these serve. `resumed`: the cluster runs already, so nobody is told."""
        waiting = list(names)
        deadline = time.monotonic() + limit_s
        while waiting:
            for name in list(waiting):
                phase = self._comes_up(name, deaths_max=DEATHS_MAX)
                if phase is Phase.RUNNING:
                    waiting.remove(name)
                    if not resumed:
                        tell(f"{name} serves")
            if waiting and time.monotonic() > deadline:
                raise self._not_up(waiting[0], f"does not serve after {limit_s:g} s")
            if waiting:
                time.sleep(0.02)  # noqa: TID251 - waits for other processes, which no clock of ours moves

    def _comes_up(self, name: str, deaths_max: int | None = None) -> Phase:
        """The node's phase, as long as it may still come up by itself. LocalError when it will not."""
        state = read_state(self.directory)
        if state is None or not state.supervised:
            raise LocalError(
                "the supervisor has ended",
                f"see {self.directory / 'supervisor.log'}, and `holdfast local up`",
            )
        node = state.node(name)
        if node.state in (Phase.KILLED, Phase.STOPPED):
            raise LocalError(f"{name} is {node.state}", f"`holdfast local restart {name}` starts it")
        if node.state is Phase.PAUSED:
            raise LocalError(f"{name} is paused", f"`holdfast local resume {name}` lets it go on")
        hopeless = deaths_max is not None and node.restarts >= deaths_max
        if node.state is Phase.FAILED and (node.retry_ns is None or hopeless):
            words = (
                "its configuration cannot be used" if node.exit_code == BAD_CONFIG_EXIT else "it ends again"
            )
            raise self._not_up(name, f"ended with {node.exit_code} ({words})")
        return node.state

    def _not_up(self, name: str, what: str) -> LocalError:
        log = self.log_file(name)
        tail = "\n  ".join(logs.errors(log) or logs.tail(log, 5))
        return LocalError(f"{name} {what}; its log ends with:\n  {tail}", f"see {log}")

    def _order(self, do: str, node: str, **more: Any) -> dict[str, Any]:
        """Have the supervisor do something. LocalError with its reason if it refuses."""
        Plan.read(self.directory).process(node)
        state = read_state(self.directory)
        if state is None or not state.supervised:
            raise LocalError(f"the cluster in {self.directory} is down", "`holdfast local up` starts it")
        answer = self._ask(state, {"do": do, "node": node, **more}, ORDER_MAX_S)
        if "refused" in answer:
            raise LocalError(answer["refused"], answer["do"])
        return answer

    def _ask(self, state: RunState, order: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(timeout_s)
                connection.connect(state.socket)
                connection.sendall(json.dumps(order).encode() + b"\n")
                with connection.makefile("rb") as answers:
                    answer: dict[str, Any] = json.loads(answers.readline())
                    return answer
        except (OSError, ValueError) as error:
            raise LocalError(
                f"the supervisor (process {state.supervisor_pid}) does not answer: {error or 'it ended'}",
                "`holdfast local status` tells how it is",
            ) from None

    def _end(self, stop_max_s: float) -> None:
        """Nodes and supervisor are gone when this returns, whatever state they were in."""
        before = read_state(self.directory)
        if before is not None and before.supervised:
            with contextlib.suppress(LocalError):  # it hangs, or has just ended; what is left is ended below
                self._ask(before, {"do": "down", "stop_max_s": stop_max_s}, DOWN_ANSWER_MAX_S)
                wait_until(lambda: not before.supervised, stop_max_s + DOWN_ANSWER_MAX_S)
        state = read_state(self.directory)
        if state is not None:
            end(state.supervisor_pid, state.supervisor_mark)
            state.forget_socket()
            for node in state.nodes:
                if node.pid is not None and node.mark is not None:
                    end(node.pid, node.mark)
                node.state, node.pid, node.mark, node.retry_ns = Phase.STOPPED, None, None, None
            state.write(self.directory)
        if self._owned is not None:
            os.close(self._owned)
            self._owned = None
        (self.directory / CONTEXT_FILE).unlink(missing_ok=True)

    def _delete(self) -> None:
        """Remove what is ours, and the directory if nothing else is in it."""
        plan = Plan.read(self.directory)
        for name in [*(region.name for region in plan.regions), *([LOG_DIRECTORY] if plan.logs else [])]:
            shutil.rmtree(self.directory / name, ignore_errors=True)
        for name in OUR_FILES:
            (self.directory / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # somebody keeps things there
            self.directory.rmdir()

    def _busy(self) -> LocalError:
        return LocalError(
            f"another `holdfast local` works on {self.directory}", "try again when it has ended"
        )
