"""The supervisor of a local cluster: one small process that starts the nodes and starts them again.

    python -m cluster.local.supervisor DIRECTORY [OWNER]

It detaches itself (the command returns when it is ready to take orders), lives until `down`, and takes orders
on a Unix socket: one line of JSON in, one out. OWNER is the descriptor of a pipe whose other end the owner
holds; when the owner is gone, so is the cluster. life.py decides; here are processes, timers and files.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from cluster.local import logs
from cluster.local.cassandra.server import CQL_PORT, STORAGE_PORT, answers
from cluster.local.life import Effect, Life, Phase, Refused, Signal, Spawn
from cluster.local.plan import HOST, LocalError, LogPlan, NodePlan, Plan
from cluster.local.ports import is_free
from cluster.local.probe import serving
from cluster.local.processes import end, mark_of
from cluster.local.state import SUPERVISOR_LOCK, NodeState, RunState, locked, read_state

LOCK_MAX_S: Final = 5.0  # a former supervisor that is about to end
PROBE_EVERY_S: Final = 0.05
PROBE_TIMEOUT_S: Final = 1.0
ORDER_BYTES_MAX: Final = 65536
SOCKET_PATH_BYTES_MAX: Final = 103  # macOS; Linux has four more
LOG_BYTES_MAX: Final = (
    64 << 20
)  # looked at when a node is started: a longer log is put aside, the one before gone


class Supervised:
    """The life and the process of a node, or of one of the log between regions."""

    def __init__(self, plan: NodePlan | LogPlan, now: float) -> None:
        self.plan = plan
        self.life = Life(plan.name, now)
        self.process: asyncio.subprocess.Process | None = None
        self.mark: str | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()  # set, and replaced, at every change of the life


class Supervisor:
    """All nodes of one cluster. Runs inside one TaskGroup, which ends when the cluster is down."""

    def __init__(self, directory: Path, plan: Plan, listener: socket.socket) -> None:
        self.directory = directory
        self.plan = plan
        self.listener = listener
        self.loop = asyncio.get_running_loop()
        everything: list[NodePlan | LogPlan] = [*plan.logs, *plan.nodes]
        self.nodes = {one.name: Supervised(one, self.loop.time()) for one in everything}
        self.done = asyncio.Event()
        self._going_down = False
        self._mark = mark_of(os.getpid()) or ""
        self._tasks: asyncio.TaskGroup

    async def run(self, ready: int, owner: int | None) -> None:
        """Start all nodes, serve orders, return when everything is down.

        Where there is a log between regions to run, that alone: nodes want to find its tables, and are
        started by order when those are made.
        """
        server = await asyncio.start_unix_server(self._serve, sock=self.listener, limit=ORDER_BYTES_MAX)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.loop.add_signal_handler(number, self._go_down)
        if owner is not None:
            self.loop.add_reader(owner, self._owner_is_gone, owner)
        try:
            async with asyncio.TaskGroup() as self._tasks:
                for name in [one.name for one in self.plan.logs or self.plan.nodes]:
                    self._carry_out(self.nodes[name], self.nodes[name].life.start(self.loop.time()))
                self._write()
                os.write(ready, b"ready")
                os.close(ready)
                await self.done.wait()
        finally:
            for node in self.nodes.values():  # none is left, unless something here went wrong
                self._signal(node, signal.SIGKILL)
        server.close()
        await server.wait_closed()

    # ------------------------------------------------------------------------------------------ effects

    def _carry_out(self, node: Supervised, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Signal(number):
                    self._signal(node, number)
                case Spawn():
                    self._do(self._spawn(node))
        self._changed(node)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    def _signal(self, node: Supervised, number: int) -> None:
        # Our own child, not waited for yet: its id cannot be another's.
        if node.process is not None and node.process.returncode is None:
            node.process.send_signal(number)

    async def _spawn(self, node: Supervised) -> None:
        life = node.life
        try:
            process = await self._process(node.plan)
        except (OSError, ValueError) as error:  # its files were removed, or there is no room for a process
            print(f"{node.plan.name} cannot be started: {error}", file=sys.stderr, flush=True)  # noqa: T201 - our log
            self._carry_out(node, life.ended(1, self.loop.time()))
            return
        node.process = process
        node.mark = mark_of(process.pid)
        life.spawned(process.pid, self.loop.time())
        if life.phase is not Phase.STARTING:
            # An order came while the process was being made: what it asked for was sent to nobody.
            self._catch_up(node)
        self._changed(node)
        self._do(self._watch_start(node, process))
        code = await process.wait()
        node.process = node.mark = None
        self._carry_out(node, life.ended(code, self.loop.time()))

    async def _process(self, node: NodePlan | LogPlan) -> asyncio.subprocess.Process:
        if isinstance(node, LogPlan):
            command = json.loads(node.command(self.directory).read_text())
        else:
            command = [*self.plan.program, str(node.config(self.directory))]
        log = node.log(self.directory)
        _put_aside(log)
        with log.open("ab") as output:
            output.write(logs.begin(node.name, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())))
            output.flush()
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **self.plan.environment},
            )

    def _catch_up(self, node: Supervised) -> None:
        number = signal.SIGSTOP if node.life.phase is Phase.PAUSED else signal.SIGKILL
        self._signal(node, number)

    async def _watch_start(self, node: Supervised, process: asyncio.subprocess.Process) -> None:
        """Ask until it serves. Later it is not asked any more: whoever wants to know asks by himself."""
        while process.returncode is None and node.life.phase in (Phase.STARTING, Phase.PAUSED):
            if node.life.phase is Phase.STARTING and await asyncio.to_thread(_serves, node.plan):
                # Another process may have the port while ours fails to get it: ours must have lived on.
                if process.returncode is None:
                    node.life.serves(self.loop.time())
                    self._changed(node)
                return
            await asyncio.sleep(PROBE_EVERY_S)

    def _changed(self, node: Supervised) -> None:
        """After every change of a life: its timer, the file, and those who wait for it."""
        if node.timer is not None:
            node.timer.cancel()
        at = node.life.timer()
        node.timer = None if at is None else self.loop.call_at(at, self._due, node)
        self._write()
        node.changed.set()
        node.changed = asyncio.Event()
        if self._going_down and not any(one.life.alive for one in self.nodes.values()):
            self.done.set()

    def _due(self, node: Supervised) -> None:
        # A timer may fire a little early by its own clock; the life is asked for the moment it named.
        self._carry_out(node, node.life.due(max(self.loop.time(), node.life.timer() or 0.0)))

    def _write(self) -> None:
        offset = time.time_ns() - round(self.loop.time() * 1e9)  # the steady clock's zero on the wall clock

        def wall(at: float | None) -> int:
            return 0 if at is None else round(at * 1e9) + offset

        RunState(
            supervisor_pid=os.getpid(),
            supervisor_mark=self._mark,
            socket=self.listener.getsockname(),
            nodes=[
                NodeState(
                    name=name,
                    state=node.life.phase,
                    pid=node.life.pid,
                    mark=node.mark,
                    since_ns=wall(node.life.since),
                    started_ns=wall(node.life.spawned_at),
                    restarts=node.life.restarts,
                    exit_code=node.life.exit_code,
                    retry_ns=wall(node.life.retry_at) if node.life.retry_at is not None else None,
                )
                for name, node in self.nodes.items()
            ],
        ).write(self.directory)

    # ------------------------------------------------------------------------------------------- orders

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answer = await self._obey(json.loads(await reader.readline()))
        except Refused as refused:
            answer = {"refused": str(refused), "do": refused.do}
        except (ValueError, KeyError) as error:
            answer = {"refused": f"the order makes no sense: {error!r}", "do": "use `holdfast local`"}
        try:
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except ConnectionError:
            pass  # who asked does not wait for the answer
        finally:
            writer.close()

    async def _obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """One order; the answer comes when it is carried out, but does not wait for a node to serve."""
        now = self.loop.time()
        if order["do"] == "down":
            self._go_down(float(order["stop_max_s"]))
            return {}
        node = self.nodes[order["node"]]
        if self._going_down:
            raise Refused("the cluster is going down", "`holdfast local up` starts it again")
        match order["do"]:
            case "start":
                self._carry_out(node, node.life.start(now))
            case "kill":
                self._carry_out(node, node.life.kill(int(order["signal"]), now))
                await self._leaves(node, Phase.STOPPING)
            case "pause":
                self._carry_out(node, node.life.pause(now))
            case "resume":
                self._carry_out(node, node.life.resume(now))
            case "restart":
                self._carry_out(node, node.life.restart(now))
                await self._leaves(node, Phase.STOPPING)
            case other:
                raise ValueError(other)
        return {"state": node.life.phase, "pid": node.life.pid}

    async def _leaves(self, node: Supervised, phase: Phase) -> None:
        while node.life.phase is phase:
            await node.changed.wait()

    def _owner_is_gone(self, owner: int) -> None:
        self.loop.remove_reader(owner)
        self._go_down(0.0)

    def _go_down(self, stop_max_s: float | None = None) -> None:
        self._going_down = True
        for node in self.nodes.values():
            life = node.life
            given = {} if stop_max_s is None else {"stop_max_s": stop_max_s}
            self._carry_out(node, life.stop(self.loop.time(), **given))


def _serves(plan: NodePlan | LogPlan) -> bool:
    if isinstance(plan, LogPlan):
        return answers(plan.address, timeout_s=PROBE_TIMEOUT_S)
    return serving(HOST, plan.grpc, PROBE_TIMEOUT_S)


def _put_aside(log: Path) -> None:
    """Keep the log within bounds: at most this one and the one before."""
    try:
        if log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_name(f"{log.name}.1"))
    except FileNotFoundError:
        pass


def _end_orphans(directory: Path) -> None:
    """A supervisor that was killed leaves nodes behind; they hold the ports and the data."""
    state = read_state(directory)
    if state is None:
        return
    state.forget_socket()
    for node in state.nodes:
        if node.pid is not None and node.mark is not None:
            end(node.pid, node.mark)


def refuse_taken_ports(plan: Plan) -> None:
    """LocalError if somebody listens on a node's port: asked whether it serves, that would say yes."""
    for one in plan.logs:
        for host, port in ((one.address, CQL_PORT), (one.address, STORAGE_PORT), (HOST, one.jmx)):
            if not is_free(port, host):
                raise LocalError(
                    f"port {port} at {host}, which {one.name} is to have, is in use",
                    "`ss -ltnp` shows by whom: stop that; or `holdfast local down --delete` this cluster",
                )
    for node in plan.nodes:
        for port in (node.grpc, node.peers, node.metrics):
            if not is_free(port):
                raise LocalError(
                    f"port {port}, which {node.name} is to have, is in use",
                    "`ss -ltnp` shows by whom: stop that; or `holdfast local down --delete` this cluster, "
                    "and make it anew with another --port-base",
                )


def _place() -> str:
    """A new directory for our socket, whose path is short by law: no place for it is the user's directory.

    Nor may be the one that they have for temporary files.
    """
    place = tempfile.mkdtemp(prefix="holdfast-")
    if len(f"{place}/orders".encode()) > SOCKET_PATH_BYTES_MAX:
        Path(place).rmdir()
        place = tempfile.mkdtemp(prefix="holdfast-", dir="/tmp")
    return place


def _detach(directory: Path) -> int:
    """Fork. The parent waits until the child is ready, and ends; the child gets the descriptor to say so."""
    told, ready = os.pipe()
    if os.fork():
        os.close(ready)
        os._exit(0 if os.read(told, 16) else 1)
    os.close(told)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for target, source in ((0, nothing), (1, log), (2, log)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(log)
    return ready


def main(arguments: list[str]) -> int:
    """Become the supervisor of a directory that has a plan."""
    directory = Path(arguments[0])
    owner = int(arguments[1]) if len(arguments) > 1 else None
    try:
        plan = Plan.read(directory)
        taken = LocalError(f"another supervisor has {directory}", "`holdfast local status`")
        with locked(directory / SUPERVISOR_LOCK, LOCK_MAX_S, taken):
            _end_orphans(directory)
            refuse_taken_ports(plan)
            place = _place()
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{place}/orders")
            ready = _detach(directory)
            try:
                asyncio.run(_supervise(directory, plan, listener, ready, owner))
            finally:
                shutil.rmtree(place, ignore_errors=True)
    except LocalError as error:
        print(f"{error}\n{error.do}", file=sys.stderr)  # noqa: T201 - to whoever started this
        return 1
    return 0


async def _supervise(
    directory: Path, plan: Plan, listener: socket.socket, ready: int, owner: int | None
) -> None:
    await Supervisor(directory, plan, listener).run(ready, owner)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
