"""A local region of real processes, and what can be done to its nodes from outside.

Between the nodes stands the proxy (proxy.py), and toxiproxy between that and each node, if there is one.
The data of one node lies on a small file system of its own, where the machine allows that: a tmpfs in a mount
namespace that this process was started in. All disks can be made slow (slow_disk.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import msgspec

from chaos.live.slow_disk import DELAY_FILE
from chaos.live.toxiproxy import Toxic, Toxiproxy
from cluster.local import LocalCluster
from cluster.local.plan import CLUSTER_FILE, HOST, Plan, node_toml, planned
from cluster.local.ports import free_ports
from cluster.local.state import replace

NODES: Final = 3
# -P as in cluster.local.plan
NODE_PROGRAM: Final = (sys.executable, "-P", "-m", "chaos.live.slow_disk", "server", "start", "--config")
REGION: Final = "a"
DISK_BYTES: Final = 384 << 20
NAMESPACE: Final = "HOLDFAST_CHAOS_NAMESPACE"  # set in the environment inside of one
ADMIN: Final = "/holdfast.admin.v1.AdminService/Do"
ORDER_S: Final = 5.0
PATIENCE_S: Final = 240.0  # of a busy machine: for processes that come up, and for the proxy
COMPLAINT: Final = re.compile(r"^Traceback|\[(error|critical) *\]|\[(ERROR|CRITICAL)\]")
EXPECTED: Final = "the disk takes no writes"  # of a node whose disk was filled
COMPLAINTS_MAX: Final = 5  # of a node
META: Final = 0  # the group that keeps the region's own metadata
MOUNT: Final = ("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs")


def enter_namespace(module: str) -> None:
    """Start this program once more in a mount namespace of its own, if the machine allows; else go on."""
    probe = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    if NAMESPACE in os.environ:
        return
    with suppress(FileNotFoundError):
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:  # noqa: S603
            os.environ[NAMESPACE] = "1"
            os.execvp("unshare", ["unshare", "-rm", sys.executable, "-m", module, *sys.argv[1:]])  # noqa: S606, S607


class RegionNodes:
    """The nodes. Calls that wait for processes are coroutines."""

    def __init__(self, directory: Path, rng: random.Random, nodes: int = NODES, toxiproxy: str = "") -> None:
        """`toxiproxy`: the program, if it is to be used."""
        self.directory = directory
        ports = free_ports(5 * nodes + 1, rng)
        plan = planned((REGION,), nodes, ports[: 3 * nodes], NODE_PROGRAM, {})
        names = [node.name for node in plan.nodes]
        self._fronts = dict(zip(names, ports[3 * nodes : 4 * nodes], strict=True))
        self._behind = {node.name: node.peers for node in plan.nodes}  # what stands behind our own proxy
        self.toxiproxy: Toxiproxy | None = None
        if toxiproxy:
            self._behind = dict(zip(names, ports[4 * nodes : 5 * nodes], strict=True))
            self.toxiproxy = Toxiproxy(toxiproxy, ports[-1], rng.getrandbits(31))
        self.disk: Path | None = None  # the small one
        self._filled = ""
        self.disk_node = plan.nodes[-1].name
        self._prepare(plan)
        self.cluster = LocalCluster(directory, ready_max_s=PATIENCE_S)
        self._proxy: asyncio.subprocess.Process | None = None
        self._channels: dict[str, grpc.aio.Channel] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """Where clients find each node."""
        return dict(zip(self.cluster.node_names(), self.cluster.endpoints(), strict=True))

    def _prepare(self, plan: Plan) -> None:
        """Write the files that `holdfast local up` would, with the proxy between the nodes."""
        members = [f"{name}={HOST}:{port}" for name, port in self._fronts.items()]
        for node in plan.nodes:
            here = node.config(self.directory)
            here.parent.mkdir(parents=True)
            settings: dict[str, dict[str, object]] = {
                "region": {"nodes": members},
                "log": {"level": "debug"},  # who leads what, and since when
                "advertise": {"peers": f"{HOST}:{self._fronts[node.name]}"},
            }
            here.write_text(node_toml(plan.regions[0], node, settings))
        replace(self.directory / CLUSTER_FILE, msgspec.json.encode(plan))
        if NAMESPACE in os.environ:
            disk = self.directory / self.disk_node / "data"
            disk.mkdir()
            subprocess.run([*MOUNT, str(disk)], check=True)  # noqa: S603
            self.disk = disk

    async def start(self) -> None:
        """Proxy and nodes are up when this returns. LocalError."""
        if self.toxiproxy is not None:
            peers = {node.name: node.peers for node in Plan.read(self.directory).nodes}
            await self.toxiproxy.start({name: (port, peers[name]) for name, port in self._behind.items()})
        places = [f"{name}={port}:{self._behind[name]}" for name, port in self._fronts.items()]
        self._proxy = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "chaos.live.proxy", *places,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        await self._proxy_says()
        await asyncio.to_thread(self.cluster.up, owned=True)
        for node, address in self.addresses.items():
            self._channels[node] = grpc.aio.insecure_channel(address)

    async def stop(self) -> None:
        """All processes have ended; files stay, but for what was on the small disk."""
        for channel in self._channels.values():
            await channel.close(None)
        with suppress(Exception):
            await asyncio.to_thread(self.cluster.down, stop_max_s=3.0)
        if self._proxy is not None:
            assert self._proxy.stdin is not None
            self._proxy.stdin.close()
            await self._proxy.wait()
        if self.toxiproxy is not None:
            await self.toxiproxy.stop()
        if self.disk is not None:
            await asyncio.to_thread(subprocess.run, ["umount", str(self.disk)], check=False)

    # ---- what the region says

    async def leaders(self, ask: str) -> dict[int, str]:
        """Group -> the node that leads it, as far as the node `ask` knows; empty if it cannot say."""
        call = self._channels[ask].unary_unary(ADMIN, request_serializer=bytes, response_deserializer=bytes)
        try:
            answer: dict[str, Any] = json.loads(await call(b'{"do":"shards"}', timeout=ORDER_S))
        except grpc.aio.AioRpcError:
            return {}
        return {shard["id"]: shard["leader"] for shard in answer["shards"] if shard["leader"]}

    def complaints(self) -> list[str]:
        """Errors and tracebacks in the nodes' logs."""
        found = []
        for node in self.cluster.node_names():
            log = self.cluster.log_file(node)
            lines = log.read_text(errors="replace").splitlines() if log.exists() else []
            wrong = [
                line.strip()
                for line in lines
                if COMPLAINT.search(line) and not (node == self._filled and EXPECTED in line)
            ]
            found += [f"{node}: {line}" for line in wrong[:COMPLAINTS_MAX]]
        return found

    # ---- faults

    async def kill(self, node: str) -> None:
        """SIGKILL; it stays dead."""
        await asyncio.to_thread(self.cluster.kill, node)

    async def restart(self, node: str) -> None:
        """SIGTERM if it lives; then start it, and wait until it serves."""
        await asyncio.to_thread(self.cluster.restart, node)

    async def pause(self, node: str) -> None:
        """SIGSTOP."""
        await asyncio.to_thread(self.cluster.pause, node)

    async def resume(self, node: str) -> None:
        """SIGCONT."""
        await asyncio.to_thread(self.cluster.resume, node)

    async def cut(self, *ways: tuple[str, str]) -> None:
        """What the first says does not reach the second; no ways = heal all."""
        assert self._proxy is not None
        assert self._proxy.stdin is not None
        self._proxy.stdin.write(json.dumps({"cut": ways}).encode() + b"\n")
        await self._proxy_says()

    async def _proxy_says(self) -> None:
        assert self._proxy is not None
        assert self._proxy.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            if not await self._proxy.stdout.readline():
                raise RuntimeError("the proxy has ended")

    async def poison(self, node: str, toxics: tuple[Toxic, ...]) -> None:
        """What toxiproxy does to all that others send to the node; no toxics = heal all."""
        assert self.toxiproxy is not None
        if toxics:
            await self.toxiproxy.poison(node, toxics)
        else:
            await self.toxiproxy.heal()

    def slow_disk(self, node: str, seconds: float) -> None:
        """Each write of the node takes so much longer; 0 = none does."""
        file = self.directory / node / DELAY_FILE
        if seconds:
            file.write_text(str(seconds))
        else:
            file.unlink()

    async def fill_disk(self) -> None:
        """Take all space of the small disk."""
        assert self.disk is not None
        self._filled = self.disk_node
        await asyncio.to_thread(_fill, self.disk / "filler")

    def free_disk(self) -> None:
        """Give it back."""
        assert self.disk is not None
        (self.disk / "filler").unlink()


def _fill(path: Path) -> None:
    with path.open("ab", buffering=0) as file:
        for size in (1 << 20, 4096):
            while True:
                try:
                    if file.write(bytes(size)) < size:
                        break
                except OSError:
                    break
