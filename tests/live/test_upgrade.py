"""A rolling upgrade under load: a region of the release before, node after node replaced by this one.

The release before is the commit that `RELEASE_BEFORE` names (another one: `HOLDFAST_UPGRADE_FROM=<commit>`),
raised with each release; a checkout without that history skips this by name. Clients come through a door
that leads to any node that takes them, as a load balancer does. They see no error, whichever nodes there are.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from cluster.local import LocalCluster
from tests.compat import doorway
from tests.live.patience import PATIENCE_S, faults

pytestmark = [pytest.mark.live, pytest.mark.timeout(1200)]

PROJECT = Path(__file__).resolve().parents[2]
RELEASE_BEFORE = "0e892b0e50df26df4c1f95ff4bdca540966b0cce"
SERVER = ("cluster", "history_store", "replication")
HOLDFAST = Path(sys.executable).parent / "holdfast"
CALLERS = 6
DONE_MIN = 30  # workflows, with each mixture of nodes

# A node runs what the file `tree` beside its configuration names.
LAUNCH = """
import os, pathlib, sys
tree = pathlib.Path(sys.argv[-1]).with_name("tree").read_text()
os.environ["PYTHONPATH"] = tree
program = [sys.executable, "-P", "-m", "cluster.admin.main", "server", "start", "--config", sys.argv[-1]]
os.execv(sys.executable, program)
"""


def git(*arguments: str) -> bytes:
    """What git says; a checkout that cannot tell has no history here."""
    try:
        return subprocess.run(["git", *arguments], cwd=PROJECT, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the repository's history: git {arguments[0]}: {error}")


def release_before(directory: Path) -> str:
    """Unpack it. Answers its commit."""
    commit = os.environ.get("HOLDFAST_UPGRADE_FROM", RELEASE_BEFORE)
    with tarfile.open(fileobj=io.BytesIO(git("archive", commit, *SERVER))) as archive:
        archive.extractall(directory, filter="data")
    return commit


@activity.defn(name="double")
async def double(number: int) -> int:
    return 2 * number


@workflow.defn(name="Order")
class Order:
    """Two activities, and a signal between them."""

    def __init__(self) -> None:
        self._paid = False

    @workflow.signal
    def pay(self) -> None:
        self._paid = True

    @workflow.run
    async def run(self, number: int) -> int:
        within = timedelta(seconds=60)
        first = await workflow.execute_activity(double, number, start_to_close_timeout=within)
        await workflow.wait_condition(lambda: self._paid)
        return await workflow.execute_activity(double, first, start_to_close_timeout=within)


class Load:
    """Callers that have orders done, one after the other; an error of any call is the test's."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.over = False
        self.done = 0

    async def call(self, caller: int) -> None:
        number = 0
        while not self.over:
            number += 1
            order = await self.client.start_workflow(
                Order.run, number, id=f"order-{caller}-{number}", task_queue="orders"
            )
            await order.signal(Order.pay)
            assert await order.result() == 4 * number
            self.done += 1

    async def more(self, callers: asyncio.Future[Any]) -> None:
        """Until so many more are done that every part of the region had its share."""
        until = self.done + DONE_MIN
        async with asyncio.timeout(PATIENCE_S):
            while self.done < until and not callers.done():
                await asyncio.sleep(0.05)


async def holdfast(address: str, *arguments: str) -> Any:
    """A command, asked of this node."""
    command = await asyncio.create_subprocess_exec(
        str(HOLDFAST),
        *arguments,
        "--address",
        address,
        "--json",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, complaint = await asyncio.wait_for(command.communicate(), PATIENCE_S)
    assert out, complaint.decode()
    return json.loads(out)


async def well(address: str) -> dict[str, Any]:
    """Wait until nothing is wrong."""
    told: dict[str, Any] = {}
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await holdfast(address, "cluster", "health")
                if not faults(told):
                    return told
                await asyncio.sleep(0.2)
    except TimeoutError:
        pytest.fail(f"it does not become well: {told}")


@pytest.fixture
async def region(tmp_path: Path) -> AsyncIterator[LocalCluster]:
    """Three nodes of the release before."""
    old, launch = tmp_path / "old", tmp_path / "launch.py"
    old.mkdir()
    print("the release before:", release_before(old))
    launch.write_text(LAUNCH)
    cluster = LocalCluster(
        tmp_path / "region", nodes=3, program=(sys.executable, str(launch)), ready_max_s=PATIENCE_S
    )
    for number in (1, 2, 3):
        place = tmp_path / "region" / "a" / str(number)
        place.mkdir(parents=True)
        (place / "tree").write_text(str(old))
    try:
        await asyncio.to_thread(lambda: cluster.up(owned=True))
        yield cluster
    finally:
        await asyncio.to_thread(lambda: cluster.down(stop_max_s=0.0))


def runs(region: LocalCluster, name: str) -> str:
    """Which tree the node's code is from."""
    return psutil.Process(region.pid(name)).environ()["PYTHONPATH"]


async def upgrade(region: LocalCluster, number: int) -> None:
    """One node: drained, stopped, started as what it is to be, and used again."""
    name, addresses = f"a/{number}", region.endpoints()
    other = addresses[number % 3]
    assert runs(region, name) != str(PROJECT)
    await holdfast(other, "node", "drain", name)
    (region.directory / name / "tree").write_text(str(PROJECT))
    await asyncio.to_thread(region.restart, name)
    assert runs(region, name) == str(PROJECT)
    await holdfast(other, "node", "resume", name)
    await well(other)


async def test_one_node_after_the_other_under_load(region: LocalCluster) -> None:
    await well(region.endpoints()[0])
    door = await doorway.opened(0, region.endpoints())
    port = door.sockets[0].getsockname()[1]
    client = await Client.connect(f"127.0.0.1:{port}")
    worker = Worker(
        await Client.connect(f"127.0.0.1:{port}"),
        task_queue="orders",
        workflows=[Order],
        activities=[double],
        workflow_runner=UnsandboxedWorkflowRunner(),
        graceful_shutdown_timeout=timedelta(0),
    )
    load = Load(client)
    async with worker:
        callers = asyncio.gather(*(load.call(number) for number in range(CALLERS)))
        try:
            for number in (1, 2, 3):
                await load.more(callers)
                await upgrade(region, number)
            await load.more(callers)
        finally:
            load.over = True
            await callers
    door.close()
    for node in ("a/1", "a/2", "a/3"):
        said = region.log_file(node).read_text()
        assert "Traceback" not in said, said[-3000:]
        assert "could not be handled" not in said, said[-3000:]
    told = await well(region.endpoints()[0])
    assert sorted(name for names in told["versions"].values() for name in names) == ["a/1", "a/2", "a/3"]
