"""A region whose nodes come and go while clients write: real processes, the command line, Temporal's client.

A fourth node joins, the first is removed, the second loses its disk and comes back as another; shards are
split. No call fails, and everything that was acknowledged is there in the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from cluster.local.ports import free_ports
from tests.live.patience import PATIENCE_S, faults

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]

HOLDFAST = Path(sys.executable).parent / "holdfast"
WRITERS = 8
ACKNOWLEDGED_MIN = 200  # fewer, and the run has tested little
NODES = ("cluster", "nodes")
SHARDS = ("shard", "list")


class Nodes:
    """Processes of `holdfast server start`, by name."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory = directory
        ports = free_ports(10, rng)
        self.grpc = {f"a/{i}": f"127.0.0.1:{ports[2 * i - 2]}" for i in range(1, 6)}
        self.peers = {f"a/{i}": f"127.0.0.1:{ports[2 * i - 1]}" for i in range(1, 6)}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def file(self, name: str) -> Path:
        return self.directory / f"{name[2:]}.toml"

    def log(self, name: str) -> str:
        return (self.directory / f"{name[2:]}.log").read_text()

    def first(self, name: str) -> None:
        """Configure one of the three that make the region."""
        members = [f"{one}={self.peers[one]}" for one in ("a/1", "a/2", "a/3")]
        self.file(name).write_text(
            f'[node]\nname = "{name}"\ndata_dir = "data{name[2:]}"\nmachine = "m{name[2:]}"\n'
            f'[region]\nname = "a"\nnodes = {json.dumps(members)}\n'
            f"[listen]\ngrpc = {self.grpc[name][10:]}\npeers = {self.peers[name][10:]}\n"
            '[log]\nformat = "text"\n'
        )

    def start(self, name: str) -> None:
        with (self.directory / f"{name[2:]}.log").open("wb") as log:
            self.running[name] = subprocess.Popen(
                [str(HOLDFAST), "server", "start", "--config", str(self.file(name))], stderr=log
            )

    async def ended(self, name: str) -> int:
        process = self.running.pop(name)
        return await asyncio.to_thread(process.wait, PATIENCE_S)

    def end(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()

    async def run(self, *arguments: str, ok: bool = True) -> Any:
        """A command, asked of a/3, which stays; what it printed as JSON, or its complaint."""
        environment = {**os.environ, "HOLDFAST_ADDRESS": self.grpc["a/3"]}
        command = await asyncio.create_subprocess_exec(
            str(HOLDFAST), *arguments, *["--json"] * ok, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        out, complaint = await asyncio.wait_for(command.communicate(), PATIENCE_S)
        assert (command.returncode == 0) is ok, complaint.decode()
        return json.loads(out) if ok else complaint.decode()

    async def until(self, wanted: Callable[[Any], bool], *arguments: str) -> Any:
        """Ask until the answer is the wanted one; who does not answer now may do so later."""
        told: Any = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    command = await asyncio.create_subprocess_exec(
                        str(HOLDFAST), *arguments, "--address", self.grpc["a/3"], "--json",
                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    )  # fmt: skip
                    out, _ = await command.communicate()
                    if out and wanted(told := json.loads(out)):
                        return told
                    await asyncio.sleep(0.2)
        except TimeoutError:
            pytest.fail(f"{arguments}: still {told}")

    async def well(self) -> None:
        """Wait until nothing is wrong."""
        await self.until(lambda told: not faults(told), "cluster", "health")


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    given: int | None = request.config.getoption("--seed")
    seed = given if given is not None else random.Random(os.environ["SIM_BASE_SEED"]).getrandbits(32)
    made = Nodes(tmp_path, random.Random(seed))
    yield made
    made.end()


class Load:
    """Clients that start and signal workflows, and remember what was acknowledged."""

    def __init__(self) -> None:
        self.signals: dict[str, int] = {}  # of each workflow that was started
        self.over = asyncio.Event()

    async def write(self, client: Client, number: int) -> None:
        count = 0
        while not self.over.is_set():
            name = f"w{number}-{count}"
            count += 1
            handle = await client.start_workflow("W", id=name, task_queue="q")
            self.signals[name] = 0
            for _ in range(2):
                await handle.signal("s")
                self.signals[name] += 1

    async def check(self, *clients: Client) -> None:
        assert len(self.signals) > ACKNOWLEDGED_MIN
        for number, (name, count) in enumerate(self.signals.items()):
            client = clients[number % len(clients)]
            history = await client.get_workflow_handle(name).fetch_history()
            kinds = [event.WhichOneof("attributes") for event in history.events]
            assert kinds[0] == "workflow_execution_started_event_attributes", name
            # A signal that was tried again may not be there twice.
            assert kinds.count("workflow_execution_signaled_event_attributes") == count, name


async def under_load(nodes: Nodes, scene: Callable[[Nodes, Load], Awaitable[None]]) -> tuple[Load, Client]:
    """A new region, and what happens in it while clients write."""
    for name in ("a/1", "a/2", "a/3"):
        nodes.first(name)
        nodes.start(name)
    await nodes.well()
    load = Load()
    # Through the node that stays: a client of a node that goes has to know another one.
    client = await Client.connect(nodes.grpc["a/3"])
    async with asyncio.TaskGroup() as group:
        for number in range(WRITERS):
            group.create_task(load.write(client, number))
        try:
            await scene(nodes, load)
        finally:
            load.over.set()
    return load, client


async def test_nodes_come_and_go_under_load(nodes: Nodes) -> None:
    load, client = await under_load(nodes, come_and_go)
    await load.check(client, await Client.connect(nodes.grpc["a/4"]))
    for name in ("a/3", "a/4"):
        assert "Traceback" not in nodes.log(name)
        assert "[error" not in nodes.log(name)


async def come_and_go(nodes: Nodes, _: Load) -> None:
    # A fourth joins, and gets its share.
    await nodes.run(
        "node", "add", "a/4", "--peers", nodes.peers["a/4"], "--grpc", nodes.grpc["a/4"], "--machine", "m4",
        "--data-dir", "data4", "--config-out", str(nodes.file("a/4")),
    )  # fmt: skip
    nodes.start("a/4")
    # Eight shards, three replicas, four nodes.
    shown = await nodes.until(lambda told: [one["replicas"] for one in told["nodes"]] == [6] * 4, *NODES)
    assert {one["name"]: one["id"] for one in shown["nodes"]}["a/4"] == 4
    await nodes.well()

    # The first is drained, and goes for good.
    await nodes.run("node", "drain", "a/1")
    await nodes.until(lambda told: told["nodes"][0]["leads"] == 0, *NODES)
    await nodes.run("node", "remove", "a/1")
    assert await nodes.ended("a/1") == 1
    assert "was removed" in nodes.log("a/1")
    nodes.start("a/1")
    assert await nodes.ended("a/1") == 1
    await nodes.well()
    assert "replicas would be 2 of 3" in await nodes.run("node", "remove", "a/2", ok=False)

    # The second loses its disk: it may not vote again for what it voted against.
    nodes.running["a/2"].send_signal(signal.SIGKILL)
    await nodes.ended("a/2")
    shutil.rmtree(nodes.directory / "data2")
    nodes.start("a/2")
    assert await nodes.ended("a/2") == 1
    assert "has lost its data" in nodes.log("a/2")

    assert "holdfast node replace a/2" in nodes.log("a/2")

    # It joins anew, with the same file, under its old name and another id.
    await nodes.until(lambda told: not {one["name"]: one["up"] for one in told["nodes"]}["a/2"], *NODES)
    await nodes.run("node", "replace", "a/2")
    nodes.start("a/2")
    shown = await nodes.until(lambda told: [one["replicas"] for one in told["nodes"]] == [8] * 3, *NODES)
    assert {one["name"]: one["id"] for one in shown["nodes"]}["a/2"] == 5
    await nodes.well()


async def split(nodes: Nodes, shard: Any) -> None:
    """Until it is known that it was asked for: its slot is said, so that asking again is harmless."""
    slot = str(sum(shard["slots"][0]) // 2)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await nodes.run("shard", "split", str(shard["id"]), "--at", slot, "--no-wait")
            except AssertionError:
                await asyncio.sleep(0.2)
            else:
                return


def dies(shard: Any) -> bool:
    """Whether it is led by a node whose death harms no client: they are connected to a/3."""
    return bool(shard["id"]) and shard["leader"] in ("a/1", "a/2")


def all_serve(shards: list[Any]) -> bool:
    """The meta group, the eight that were there at first, and three that came of splits."""
    return len(shards) >= 12 and all(one["state"] == "serving" for one in shards)


async def split_and_kill(nodes: Nodes, load: Load) -> None:
    for shard in ("1", "2"):
        await nodes.run("shard", "split", shard)
    shards = (await nodes.until(lambda told: any(map(dies, told["shards"])), *SHARDS))["shards"]
    mortal = next(filter(dies, shards))
    async with asyncio.TaskGroup() as group:
        group.create_task(split(nodes, mortal))
        await asyncio.sleep(random.Random(len(load.signals)).uniform(0.3, 0.6))
        nodes.running[mortal["leader"]].send_signal(signal.SIGKILL)
        await nodes.ended(mortal["leader"])
    nodes.start(mortal["leader"])
    shards = (await nodes.until(lambda told: all_serve(told["shards"]), *SHARDS))["shards"]
    assert sum(one["slot_count"] for one in shards) == 16_384
    await nodes.well()


async def test_shards_are_split_under_load_and_a_leader_dies_meanwhile(nodes: Nodes) -> None:
    load, client = await under_load(nodes, split_and_kill)
    await load.check(client, await Client.connect(nodes.grpc["a/1"]), await Client.connect(nodes.grpc["a/2"]))
    for name in nodes.running:
        assert "Traceback" not in nodes.log(name)
        assert "[error" not in nodes.log(name)
