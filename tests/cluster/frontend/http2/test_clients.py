"""Foreign clients against a server process: h2spec, grpc-go, grpc-js, grpcurl, and the SDK's Rust core.

Tools are built into ~/.cache/holdfast-tools on first use; where Go, Node or the registries are missing, the
tests that need them are skipped, and say for want of what.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import temporalio.api.workflowservice.v1 as workflowservice
from temporalio.client import Client, TLSConfig
from temporalio.service import RPCError, RPCStatusCode

from tests.cluster.frontend.http2.test_front import certificate

TOOLS = Path(os.environ.get("HOLDFAST_TOOLS", Path.home() / ".cache" / "holdfast-tools"))
HERE = Path(__file__).parent
BUILD_TIMEOUT_S = 300


class Server(NamedTuple):
    pid: int
    plain: str
    secure: str
    certificate: Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    yield from run_server(tmp_path)


@pytest.fixture
def small_server(tmp_path: Path) -> Iterator[Server]:
    """One that takes Temporal's 4 MiB."""
    yield from run_server(tmp_path, "--message-bytes-max", str(4 << 20))


def run_server(tmp_path: Path, *arguments: str) -> Iterator[Server]:
    crt, key = certificate(tmp_path)
    command = [sys.executable, "-m", "tests.cluster.frontend.http2.server"]
    with subprocess.Popen(
        [*command, "--certificate", str(crt), "--key", str(key), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parents[3],
    ) as process:
        assert process.stdout is not None
        try:
            plain, secure = process.stdout.readline().split()
            yield Server(process.pid, f"127.0.0.1:{plain}", f"localhost:{secure}", crt)
        finally:
            process.terminate()
            assert process.wait(15) in (0, -signal.SIGTERM)  # it may have been asked twice


def go_tool(name: str, package: str) -> str:
    """A program from the Go module proxy."""
    found = TOOLS / "bin" / name
    if not found.exists():
        go = require("go")
        environment = {**os.environ, "GOBIN": str(TOOLS / "bin")}
        built = subprocess.run(
            [go, "install", package], env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
        )
        if built.returncode:
            pytest.skip(f"{name} cannot be built here: {built.stderr[-300:]}")
    return str(found)


def require(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def run(*command: str | Path, timeout_s: float = 120) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


@pytest.mark.live
@pytest.mark.tool("h2spec")
@pytest.mark.parametrize("tls", [False, True])
def test_h2spec(server: Server, tls: bool) -> None:
    h2spec = go_tool("h2spec", "github.com/summerwind/h2spec/cmd/h2spec@latest")
    port = (server.secure if tls else server.plain).rpartition(":")[2]
    out = run(h2spec, "--strict", "-o", "5", "-p", port, *(["-t", "-k"] if tls else []))
    assert "0 skipped, 0 failed" in out


@pytest.mark.live
@pytest.mark.tool("go")
def test_grpc_go(small_server: Server) -> None:
    go = require("go")
    program = TOOLS / "bin" / "frontcheck"
    built = subprocess.run(
        [go, "build", "-o", program, "."],
        cwd=HERE / "clients" / "go",
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT_S,
    )
    if built.returncode:
        pytest.skip(f"the Go client cannot be built here: {built.stderr[-300:]}")
    assert run(program, small_server.plain, small_server.secure, str(small_server.pid)) == "ok\n"


@pytest.mark.live
@pytest.mark.tool("node")
def test_grpc_js(server: Server) -> None:
    node, npm = require("node"), require("npm")
    home = TOOLS / "node"
    if not (home / "node_modules" / "@grpc" / "grpc-js").exists():
        home.mkdir(parents=True, exist_ok=True)
        installed = subprocess.run(
            [npm, "install", "--prefix", home, "@grpc/grpc-js@1"],
            capture_output=True,
            text=True,
            timeout=BUILD_TIMEOUT_S,
        )
        if installed.returncode:
            pytest.skip(f"@grpc/grpc-js cannot be installed here: {installed.stderr[-300:]}")
    shutil.copy(HERE / "clients" / "node" / "check.js", home / "check.js")
    assert run(node, home / "check.js", server.plain, server.secure, server.certificate) == "ok\n"


@pytest.mark.live
@pytest.mark.tool("grpcurl")
def test_grpcurl(server: Server) -> None:
    grpcurl = go_tool("grpcurl", "github.com/fullstorydev/grpcurl/cmd/grpcurl@latest")
    service = "temporal.api.workflowservice.v1.WorkflowService"
    services = run(grpcurl, "-plaintext", server.plain, "list").split()
    assert {"grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", service} <= set(services)
    assert f"{service}.GetSystemInfo" in run(grpcurl, "-plaintext", server.plain, "list", service)
    described = run(grpcurl, "-plaintext", server.plain, "describe", f"{service}.StartWorkflowExecution")
    assert "rpc StartWorkflowExecution" in described
    answer = run(grpcurl, "-plaintext", server.plain, f"{service}/GetSystemInfo")
    assert json.loads(answer)["server_version"] == "1.2.3"
    answer = run(grpcurl, "-cacert", server.certificate, server.secure, "grpc.health.v1.Health/Check")
    assert json.loads(answer) == {"status": "SERVING"}


@pytest.mark.parametrize("tls", [False, True])
async def test_the_sdks_core(server: Server, tls: bool) -> None:
    """tonic, through the Python SDK: gzip requests, its metadata, typed errors, deadlines, cancellation."""
    security = (
        TLSConfig(server_root_ca_cert=server.certificate.read_bytes(), domain="localhost") if tls else False
    )
    client = await Client.connect(
        server.secure if tls else server.plain, rpc_metadata={"x-custom": "value"}, tls=security
    )
    service = client.workflow_service
    info = await service.get_system_info(workflowservice.GetSystemInfoRequest())
    assert info.server_version == "1.2.3"
    described = await service.describe_namespace(
        workflowservice.DescribeNamespaceRequest(namespace="n" * 1000)
    )
    assert described.namespace_info.name == "n" * 1000
    with pytest.raises(RPCError) as caught:  # the name also travels as a header, and this one is too large
        await service.describe_namespace(workflowservice.DescribeNamespaceRequest(namespace="n" * 40_000))
    assert caught.value.status is RPCStatusCode.RESOURCE_EXHAUSTED
    assert caught.value.message == "request headers are larger than 16384 bytes"
    with pytest.raises(RPCError) as caught:
        await service.describe_namespace(workflowservice.DescribeNamespaceRequest(namespace="missing"))
    assert caught.value.status is RPCStatusCode.NOT_FOUND
    assert caught.value.message == "Namespace missing is not found. \u20ac 100%"
    assert [d.TypeName() for d in caught.value.grpc_status.details] == ["google.rpc.ErrorInfo"]
    polls = [
        service.poll_workflow_task_queue(workflowservice.PollWorkflowTaskQueueRequest()) for _ in range(200)
    ]
    assert len(await asyncio.gather(*polls)) == 200
    with pytest.raises(RPCError) as caught:
        await service.poll_workflow_task_queue(
            workflowservice.PollWorkflowTaskQueueRequest(), timeout=timedelta(milliseconds=100)
        )
    assert caught.value.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
    with pytest.raises(RPCError) as caught:
        await service.count_workflow_executions(workflowservice.CountWorkflowExecutionsRequest())
    assert caught.value.status is RPCStatusCode.UNIMPLEMENTED
