"""The dev server as a process: what the SDKs, scripts and people rely on when they start it."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from temporalio.testing import WorkflowEnvironment

pytestmark = pytest.mark.live

PROGRAM = Path(sys.executable).parent / "holdfast"
END_MAX_S = 300.0  # of a busy machine
SDK_PATIENCE_S = 5.0  # a quiet machine takes less than one
SDK_ATTEMPTS = 5


@contextmanager
def started(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The process, and its ready line."""
    command = [str(PROGRAM), "server", "start-dev", "--port", "0", "--json", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                _, errors = process.communicate()
                pytest.fail(f"holdfast ended with {process.returncode}: {errors}")
            yield process, json.loads(line)
        finally:
            process.kill()
            process.communicate()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=END_MAX_S, check=False)


async def test_the_sdk_starts_it_as_its_dev_server(tmp_path: Path) -> None:
    """As Temporal's SDKs do it: their flags, their patience, and SIGKILL at the end."""
    for attempt in range(1, SDK_ATTEMPTS + 1):
        try:
            environment = await WorkflowEnvironment.start_local(
                dev_server_existing_path=str(PROGRAM),
                dev_server_database_filename=str(tmp_path / f"{attempt}.db"),
                dev_server_extra_args=["--dynamic-config-value", "system.enableEagerWorkflowStart=true"],
                ui=True,
            )
        except RuntimeError:  # a busy machine wears out the SDK's patience
            began = time.monotonic()
            with started():
                took = time.monotonic() - began
            if attempt == SDK_ATTEMPTS and took < SDK_PATIENCE_S / 2:
                raise
        else:
            async with environment:
                assert await environment.client.service_client.check_health()
            return
    pytest.skip(f"too busy a machine: a start took {took:.1f} s, and the SDK waits {SDK_PATIENCE_S:g}")


def test_it_is_ready_and_says_where() -> None:
    with started("--namespace", "orders") as (_, ready):
        assert ready["namespaces"] == ["default", "orders"]
        assert ready["db_filename"] is None
        address = ready["address"]
        health = run("cluster", "health", "--address", address, "--namespace", "orders", "--json")
        assert json.loads(health.stdout) == {"ok": True, "problems": []}, health.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: signal.Signals) -> None:
    with started() as (process, _):
        process.send_signal(number)
        _, errors = process.communicate(timeout=END_MAX_S)
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


def test_it_has_no_children() -> None:
    with started() as (process, _):
        assert psutil.Process(process.pid).children(recursive=True) == []


def test_a_taken_port_is_an_error_that_says_what_to_do() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        results = [
            run("server", "start-dev", "--port", port),
            run("server", "start-dev", "--port", "0", "--metrics-port", port),
        ]
    for result in results:
        assert result.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}: " in result.stderr
        assert "--port" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_file_that_is_not_ours_is_refused_and_left_alone(tmp_path: Path) -> None:
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear Sir or Madam")
    result = run("server", "start-dev", "--port", "0", "--db-filename", str(letter))
    assert result.returncode == 1
    assert "is not a Holdfast data file" in result.stderr
    assert "Traceback" not in result.stderr
    assert letter.read_text() == "Dear Sir or Madam"


def test_a_second_server_on_the_same_file_is_refused(tmp_path: Path) -> None:
    with started("--db-filename", str(tmp_path / "x.db")) as (process, _):
        result = run("server", "start-dev", "--port", "0", "--db-filename", str(tmp_path / "x.db"))
        assert result.returncode == 1
        assert f"in use by process {process.pid}" in result.stderr
