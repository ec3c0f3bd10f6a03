"""A disk that fills up or fails under a working server: it says so, loses nothing, and goes on when it can.

The disk is a small tmpfs of the server's own mount namespace, reached from outside through /proc/PID/root.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from temporalio.api.common.v1.message_pb2 import WorkflowExecution, WorkflowType
from temporalio.api.taskqueue.v1.message_pb2 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as wire

from chaos.checkers.verdict import Verdict
from chaos.live.checker import judge
from chaos.live.client import Client, Refused
from chaos.live.history import History, Kind, Outcome
from chaos.live.program import payloads
from chaos.live.readback import read_everything, read_history, read_list
from chaos.live.server import PROGRAM, Server
from history_store.storage.files import DATA_SUFFIXES

DISK_BYTES = 40 << 20  # 16 MiB of it are the journal
RECOVERY_S_MAX = 240.0  # these three: of a busy machine
CALL_S_MAX = 120.0
END_S_MAX = 300.0
MOUNT = 'mount -t tmpfs -o size=$1 tmpfs "$2" && shift 2 && exec "$@"'


def can_mount() -> bool:
    command = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs tmpfs /mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


pytestmark = pytest.mark.live
needs_mount = pytest.mark.skipif(not can_mount(), reason="needs unshare and mount")


class Disk:
    """A server on a small disk, and a client that records what it was told."""

    def __init__(self, directory: Path, *, small: bool = True) -> None:
        mounted = directory / "disk"
        mounted.mkdir()
        wrapper = ("unshare", "-rm", "sh", "-c", MOUNT, "sh", str(DISK_BYTES), str(mounted)) if small else ()
        self.server = Server(mounted / "data.db", (*wrapper, *PROGRAM))
        self.server.log = directory / "stderr"
        self.history = History()
        self.client: Client
        self._numbers = 0

    @property
    def filler(self) -> Path:
        return Path(f"/proc/{self.server.pid}/root{self.server.database.parent}/filler")

    def fill(self) -> None:
        """Take all space that is left."""
        with self.filler.open("ab", buffering=0) as file:
            for size in (1 << 20, 4096):
                while True:
                    try:
                        if file.write(bytes(size)) < size:
                            break
                    except OSError:
                        break

    async def start_workflow(self, size: int = 100) -> Outcome:
        self._numbers += 1
        name = f"start-{self._numbers}"
        operation = self.history.invoke(name, Kind.START, f"workflow-{self._numbers}")
        request = wire.StartWorkflowExecutionRequest(
            namespace="default", workflow_id=operation.workflow_id, workflow_type=WorkflowType(name="x"),
            task_queue=TaskQueue(name="nobody"), identity=name, request_id=name, input=payloads(bytes(size)),
        )  # fmt: skip
        try:
            answer = await self.client.call(
                "StartWorkflowExecution", request, wire.StartWorkflowExecutionResponse, CALL_S_MAX
            )
        except Refused as refused:
            if refused.code not in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE):
                pytest.fail(f"a full disk was reported as {refused}")
            self.history.end(operation, refused.outcome, str(refused))
            return refused.outcome
        operation.run_id = answer.run_id
        self.history.end(operation, Outcome.OK)
        return Outcome.OK

    async def until(self, wanted: Outcome, size: int = 100) -> None:
        deadline = time.monotonic() + RECOVERY_S_MAX
        while await self.start_workflow(size) is not wanted:
            assert time.monotonic() < deadline, f"no start was {wanted} within {RECOVERY_S_MAX} s"

    async def judged(self) -> None:
        final = await read_everything(self.client, self.history)
        found = judge(self.history, final)
        assert found.verdict is Verdict.OK, found


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Disk]:
    made = Disk(tmp_path)
    made.client = Client(await made.server.start())
    yield made
    await made.client.close()
    await made.server.kill()


@needs_mount
async def test_it_refuses_reads_and_recovers(disk: Disk) -> None:
    for _ in range(20):
        assert await disk.start_workflow() is Outcome.OK
    assert len(await read_list(disk.client)) == 20
    disk.fill()
    # several at a time, so that some are under way when the space ends
    while Outcome.FAIL not in await asyncio.gather(*(disk.start_workflow(20_000) for _ in range(8))):
        pass
    for _ in range(10):
        assert await disk.start_workflow() is Outcome.FAIL, "while the disk is full every write is refused"
    refusal = disk.history.operations[-1].error
    assert "RESOURCE_EXHAUSTED" in refusal
    assert "no space left" in refusal
    for operation in disk.history.operations:
        if operation.acknowledged:
            await read_one(disk, operation.workflow_id)
    # List shows what the disk has. If that is not all that was acknowledged, it says so instead.
    acknowledged = {one.workflow_id for one in disk.history.operations if one.acknowledged}
    shown, refused = await list_or_refusal(disk)
    assert shown == acknowledged if refused is None else "no space left" in refused.message
    assert refused is None or refused.code is grpc.StatusCode.UNAVAILABLE
    disk.filler.unlink()
    await disk.until(Outcome.OK)
    for _ in range(20):
        assert await disk.start_workflow() is Outcome.OK
    await disk.judged()
    assert await disk.server.stop() == 0, disk.server.said()


async def list_or_refusal(disk: Disk) -> tuple[set[str], Refused | None]:
    """The workflow ids that List shows, or why it shows none."""
    try:
        return {workflow_id for workflow_id, _, _ in await read_list(disk.client)}, None
    except Refused as refused:
        return set(), refused


async def read_one(disk: Disk, workflow_id: str) -> None:
    execution = WorkflowExecution(workflow_id=workflow_id)
    request = wire.DescribeWorkflowExecutionRequest(namespace="default", execution=execution)
    await disk.client.call("DescribeWorkflowExecution", request, wire.DescribeWorkflowExecutionResponse)
    assert len(await read_history(disk.client, workflow_id)) == 2


@needs_mount
async def test_a_stop_while_it_is_full_is_clean_and_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    for _ in range(20):
        assert await disk.start_workflow() is Outcome.OK
    disk.fill()
    while Outcome.FAIL not in await asyncio.gather(*(disk.start_workflow(20_000) for _ in range(8))):
        pass
    disk.server.freeze()  # its disk dies with it, so what is on it has to be taken while it is there
    for suffix in DATA_SUFFIXES:
        there = disk.filler.with_name(f"data.db{suffix}")
        (tmp_path / f"data.db{suffix}").write_bytes(there.read_bytes())
    disk.server.thaw()
    await disk.client.close()
    assert await disk.server.stop() == 0, disk.server.said()
    elsewhere = Server(tmp_path / "data.db")
    disk.client = Client(await elsewhere.start())
    try:
        await disk.judged()
    finally:
        assert await elsewhere.stop() == 0, elsewhere.said()


@needs_mount
async def test_a_start_on_a_full_disk_says_so(tmp_path: Path) -> None:
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["unshare", "-rm", "sh", "-c", MOUNT, "sh", "4096", str(mounted), *PROGRAM]
    command += ["server", "start-dev", "--port", "0", "--db-filename", str(mounted / "data.db")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=END_S_MAX, check=False)
    assert result.returncode == 1, result.stderr
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr


@needs_mount
async def test_a_restart_on_a_full_disk_says_so(tmp_path: Path) -> None:
    whole = Server(tmp_path / "whole.db")
    await whole.start()
    assert await whole.stop() == 0, whole.said()
    mounted = tmp_path / "disk"
    mounted.mkdir()
    filled = MOUNT.replace("shift 2", 'cp "$3" "$2"/data.db; dd if=/dev/zero of="$2"/filler 2>&-; shift 3')
    command = ["unshare", "-rm", "sh", "-c", filled, "sh", "8m", str(mounted), str(whole.database), *PROGRAM]
    command += ["server", "start-dev", "--port", "0", "--db-filename", str(mounted / "data.db")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=END_S_MAX, check=False)
    assert result.returncode == 1, result.stderr
    assert "no space left" in result.stderr
    assert "Traceback" not in result.stderr


async def test_a_disk_error_ends_it_and_the_log_decides(tmp_path: Path) -> None:
    """A write that fails for another reason than space: the next start finds out what is on the disk."""
    disk = Disk(tmp_path, small=False)
    disk.client = Client(await disk.server.start())
    try:
        for _ in range(20):
            assert await disk.start_workflow() is Outcome.OK
        # the kernel fails writes beyond this size with EFBIG, which SQLite reports as an I/O error
        size = disk.server.database.with_name("data.db-wal").stat().st_size
        resource.prlimit(disk.server.pid, resource.RLIMIT_FSIZE, (size + 50_000, resource.RLIM_INFINITY))
        assert disk.server.process is not None
        async with asyncio.timeout(RECOVERY_S_MAX):
            while disk.server.running:
                await disk.start_workflow(20_000)
            assert await disk.server.process.wait() == 1
        assert "whether it was written is not known" in disk.server.said()
        await disk.client.close()
        disk.client = Client(await disk.server.start())
        assert await disk.start_workflow() is Outcome.OK
        await disk.judged()
        assert await disk.server.stop() == 0, disk.server.said()
    finally:
        await disk.client.close()
        await disk.server.kill()
