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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client

from cluster.local.ports import free_ports

pytestmark = [pytest.mark.live, pytest.mark.timeout(500)]

HOLDFAST = Path(sys.executable).parent / "holdfast"
PATIENCE_S = 60.0  # of a busy machine
WRITERS = 8
ACKNOWLEDGED_MIN = 200


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

    async def well(self) -> None:
        """Wait until nothing is wrong."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                command = await asyncio.create_subprocess_exec(
                    str(HOLDFAST),
                    "cluster",
                    "health",
                    "--address",
                    self.grpc["a/3"],
                    stdout=subprocess.DEVNULL,
                )
                if await command.wait() == 0:
                    return
                await asyncio.sleep(0.2)


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


async def test_nodes_come_and_go_under_load(nodes: Nodes) -> None:
    for name in ("a/1", "a/2", "a/3"):
        nodes.first(name)
        nodes.start(name)
    await nodes.well()
    load = Load()
    # Through the node that stays: a client of a node that goes has to know another one.
    client = await Client.connect(nodes.grpc["a/3"])
    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(load.write(client, number)) for number in range(WRITERS)]
        try:
            await come_and_go(nodes)
        finally:
            load.over.set()
        await asyncio.gather(*writers)
    await load.check(client, await Client.connect(nodes.grpc["a/4"]))
    for name in ("a/3", "a/4"):
        assert "Traceback" not in nodes.log(name)
        assert "[error" not in nodes.log(name)


async def come_and_go(nodes: Nodes) -> None:
    # A fourth joins, and gets its share.
    await nodes.run(
        "node", "add", "a/4", "--peers", nodes.peers["a/4"], "--grpc", nodes.grpc["a/4"], "--machine", "m4",
        "--data-dir", "data4", "--config-out", str(nodes.file("a/4")),
    )  # fmt: skip
    nodes.start("a/4")
    async with asyncio.timeout(PATIENCE_S):
        while len((await nodes.run("cluster", "nodes"))["nodes"]) < 4:
            await asyncio.sleep(0.2)
    await nodes.well()
    shown = {one["name"]: one for one in (await nodes.run("cluster", "nodes"))["nodes"]}
    assert {one["replicas"] for one in shown.values()} == {6}, "eight shards, three replicas, four nodes"
    assert shown["a/4"]["id"] == 4

    # The first is drained, and goes for good.
    await nodes.run("node", "drain", "a/1")
    assert (await nodes.run("cluster", "nodes"))["nodes"][0]["leads"] == 0
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
    async with asyncio.timeout(PATIENCE_S):
        while next(
            one["up"] for one in (await nodes.run("cluster", "nodes"))["nodes"] if one["name"] == "a/2"
        ):
            await asyncio.sleep(0.2)
    await nodes.run("node", "replace", "a/2")
    nodes.start("a/2")
    async with asyncio.timeout(PATIENCE_S):
        while len((await nodes.run("cluster", "nodes"))["nodes"]) < 3:
            await asyncio.sleep(0.2)
    await nodes.well()
    shown = {one["name"]: one for one in (await nodes.run("cluster", "nodes"))["nodes"]}
    assert shown["a/2"]["id"] == 5
    assert {one["replicas"] for one in shown.values()} == {8}


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


async def test_shards_are_split_under_load_and_a_leader_dies_meanwhile(nodes: Nodes) -> None:
    for name in ("a/1", "a/2", "a/3"):
        nodes.first(name)
        nodes.start(name)
    await nodes.well()
    load = Load()
    client = await Client.connect(nodes.grpc["a/3"])
    async with asyncio.TaskGroup() as group:
        writers = [group.create_task(load.write(client, number)) for number in range(WRITERS)]
        try:
            for shard in ("1", "2"):
                await nodes.run("shard", "split", shard)
            shards = (await nodes.run("shard", "list"))["shards"]
            mortal = next(one for one in shards if one["id"] and one["leader"] in ("a/1", "a/2"))
            splitting = group.create_task(split(nodes, mortal))
            await asyncio.sleep(random.Random(len(load.signals)).uniform(0.3, 0.6))
            nodes.running[mortal["leader"]].send_signal(signal.SIGKILL)
            await nodes.ended(mortal["leader"])
            await splitting
            nodes.start(mortal["leader"])
            async with asyncio.timeout(PATIENCE_S):
                while len(shards) < 12 or any(one["state"] != "serving" for one in shards):
                    await asyncio.sleep(0.2)
                    shards = (await nodes.run("shard", "list"))["shards"]
            await nodes.well()
        finally:
            load.over.set()
        await asyncio.gather(*writers)
    await load.check(client, await Client.connect(nodes.grpc["a/1"]), await Client.connect(nodes.grpc["a/2"]))
    assert sum(one["slot_count"] for one in shards) == 16_384
    for name in nodes.running:
        assert "Traceback" not in nodes.log(name)
        assert "[error" not in nodes.log(name)
