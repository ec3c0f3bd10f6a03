"""The region that is measured: a local cluster, its cost, and where its shards are led."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeNamespaceResponse

from benchmarks.raw_client import Connection, RpcError, connect, serialize, workflow_path
from benchmarks.raw_worker import NAMESPACE, Program, Starter, Worker
from benchmarks.server import cpu_seconds, rss_mib
from cluster.local import LocalCluster
from history_store.engine.keys import slot_of

ADMINISTRATION = b"/holdfast.admin.v1.AdminService/Do"
DESCRIBE_NAMESPACE = workflow_path("DescribeNamespace")
SPREAD_MAX_S = 60.0  # leaders spread within seconds; a thousand shards on a busy machine take longer


class Region:
    """A running cluster."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.names = cluster.node_names()
        self.addresses = dict(zip(self.names, cluster.endpoints(), strict=True))
        self._pids = {name: self._pid(name) for name in self.names}
        self._spent = 0.0  # CPU seconds of nodes that were killed

    def _pid(self, name: str) -> int:
        pid = self.cluster.pid(name)
        assert pid is not None, f"{name} does not run"
        return pid

    async def connect(self, name: str) -> Connection:
        """Open a connection to a node."""
        host, _, port = self.addresses[name].rpartition(":")
        return await connect(host, int(port))

    async def kill(self, name: str) -> None:
        """SIGKILL; it stays dead."""
        self._spent += cpu_seconds(self._pids.pop(name))
        await asyncio.to_thread(self.cluster.kill, name)

    def cpu(self) -> float:
        """CPU seconds of all nodes so far."""
        return self._spent + sum(map(cpu_seconds, self._pids.values()))

    def memory(self) -> list[float]:
        """Resident MiB of each node."""
        return [rss_mib(pid) for pid in self._pids.values()]

    async def shards(self) -> list[dict[str, Any]]:
        """All shards but the meta group, as the administration service tells of them."""
        connection = await self.connect(self.names[0])
        try:
            told = json.loads(await connection.call(ADMINISTRATION, b'{"do":"shards"}'))["shards"]
        finally:
            connection.close()
        return [shard for shard in told if shard["id"]]

    async def spread(self) -> None:
        """Wait until every shard is led, and leaders are spread as evenly as they can be. TimeoutError."""
        async with asyncio.timeout(SPREAD_MAX_S):
            while True:
                leaders = Counter(shard["leader"] for shard in await self.shards())
                each = [leaders[name] for name in self.names]
                if leaders[None] == 0 and max(each) - min(each) <= max(2, sum(each) // 10):
                    return
                await asyncio.sleep(0.2)

    async def leaders(self) -> Callable[[str], str]:
        """Who leads the shard of a workflow id, as it is now."""
        connection = await self.connect(self.names[0])
        request = DescribeNamespaceRequest(namespace=NAMESPACE)
        answer = await connection.call(DESCRIBE_NAMESPACE, serialize(request))
        connection.close()
        namespace_id = DescribeNamespaceResponse.FromString(answer).namespace_info.id
        led = {}
        for shard in await self.shards():
            for first, last in shard["slots"]:
                led.update(dict.fromkeys(range(first, last + 1), shard["leader"]))
        return lambda workflow_id: str(led[slot_of(namespace_id, workflow_id)])

    def counters(self) -> Counter[str]:
        """The nodes' counters, added up."""
        total: Counter[str] = Counter()
        for node in self.cluster.topology()["regions"][0]["nodes"]:
            with urllib.request.urlopen(f"http://{node['metrics']}/metrics", timeout=5) as page:
                for line in page.read().decode().splitlines():
                    name, _, value = line.rpartition(" ")
                    if name.endswith("_total") and not name.startswith("#"):
                        total[name] += int(float(value))
        return total


@asynccontextmanager
async def region(nodes: int, shards: int, where: str | None) -> AsyncIterator[Region]:
    """Run a fresh region for the length of a block; everything of it is gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="holdfast-bench-", dir=where))
    cluster = LocalCluster(directory / "region", nodes=nodes, settings={"region": {"shards": shards}})
    try:
        await asyncio.to_thread(cluster.up, owned=True)
        made = Region(cluster)
        await made.spread()
        yield made
    finally:
        if (directory / "region" / "cluster.json").exists():
            await asyncio.to_thread(cluster.down, delete=True, stop_max_s=0.0)
        shutil.rmtree(directory, ignore_errors=True)


Wrap = Callable[[str, Connection], Any]


@asynccontextmanager
async def worked(
    made: Region,
    program: Callable[[], Program],
    queue: str,
    names: Sequence[str] = (),
    wrap: Wrap = lambda _, connection: connection,
) -> AsyncIterator[list[Starter]]:
    """A starter and a worker on each of these nodes (all of them), each with a connection of its own.

    `wrap` may put something between them and a node's connection.
    """
    starters, workers, connections = [], [], []
    try:
        for name in names or made.names:
            here = [await made.connect(name) for _ in range(2)]
            connections += here
            starters.append(Starter(wrap(name, here[0]), queue))
            worker = Worker(wrap(name, here[1]), queue, program())
            worker.start()
            workers.append(worker)
        yield starters
    finally:
        for worker in workers:
            await worker.stop()
        for connection in connections:
            connection.close()


@dataclass
class Load:
    """What a closed loop over several starters did."""

    per_second: float
    server_cpu_ms: float  # a workflow, over all nodes
    client_cpu_ms: float
    latencies: list[float] = field(default_factory=list)  # ms, from the start until the end is known
    failed: int = 0  # calls that an SDK would have had to try again


async def load(made: Region, starters: Sequence[Starter], *, in_flight: int, seconds: float) -> Load:
    """Keep so many workflows going, spread over the starters, and wait for each one's end."""
    latencies: list[float] = []
    failed = 0
    deadline = time.perf_counter() + seconds

    async def again_and_again(starter: Starter) -> None:
        nonlocal failed
        while (began := time.perf_counter()) < deadline:
            try:
                await starter.run()
            except RpcError as error:
                failed += 1
                print(f"    a call failed: {error}", file=sys.stderr)
                continue
            latencies.append(1000 * (time.perf_counter() - began))

    began, server_cpu, client_cpu = time.perf_counter(), made.cpu(), time.process_time()
    async with asyncio.TaskGroup() as group:
        for number in range(in_flight):
            group.create_task(again_and_again(starters[number % len(starters)]))
    took, done = time.perf_counter() - began, len(latencies)
    return Load(
        done / took,
        1000 * (made.cpu() - server_cpu) / done,
        1000 * (time.process_time() - client_cpu) / done,
        latencies,
        failed,
    )
