"""The `temporal` command line, unmodified, against a real server: what it prints and how it exits.

A worker of the Python SDK runs in this process, so that there is something to look at. Every call of the
command line is one process with a home directory of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from chaos.live.server import Server
from tests.compat.sdks import programs

pytestmark = [pytest.mark.live, pytest.mark.timeout(400)]
CALL_S_MAX = 20.0


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@activity.defn
async def outside(mode: str) -> str:
    if mode == "failing":
        raise ApplicationError(f"attempt {activity.info().attempt}")
    if mode == "beating":
        activity.heartbeat("beat")
    activity.raise_complete_async()


@workflow.defn
class Counter:
    """Counts what it is sent, until it is told to finish."""

    def __init__(self) -> None:
        self.total = 0
        self.done = False

    @workflow.run
    async def run(self, start: int = 0) -> int:
        self.total += start
        await workflow.wait_condition(lambda: self.done)
        return self.total

    @workflow.signal
    def add(self, by: int) -> None:
        self.total += by

    @workflow.signal
    def finish(self) -> None:
        self.done = True

    @workflow.query(name="total")
    def read(self) -> int:
        return self.total

    @workflow.update
    async def plus(self, by: int) -> int:
        await workflow.sleep(0.01)
        self.total += by
        return self.total

    @plus.validator
    def positive(self, by: int) -> None:
        if by < 0:
            raise ApplicationError("negative")


@workflow.defn
class Parent:
    """Has a child, so that there is a tree to show."""

    @workflow.run
    async def run(self) -> str:
        return "parent of " + await workflow.execute_child_workflow(
            Child.run, id=f"{workflow.info().workflow_id}-child"
        )


@workflow.defn
class Child:
    @workflow.run
    async def run(self) -> str:
        return "child"


@workflow.defn
class Waiting:
    """Waits for one activity."""

    @workflow.run
    async def run(self, mode: str) -> str:
        answer: str = await workflow.execute_activity(
            outside,
            mode,
            activity_id="the-activity",
            start_to_close_timeout=timedelta(minutes=5),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1.0),
        )
        return answer


@dataclass
class Bench:
    """A server, a worker, and the command line that looks at them."""

    program: Path
    address: str
    home: Path
    queue: str

    async def __call__(self, *arguments: str, fails: bool = False) -> Said:
        process = await asyncio.create_subprocess_exec(
            str(self.program),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": os.environ["PATH"], "HOME": str(self.home), "TEMPORAL_ADDRESS": self.address},
        )
        try:
            async with asyncio.timeout(CALL_S_MAX):
                out, err = await process.communicate(b"y\n")  # versions differ in what they ask
        except TimeoutError:
            with suppress(ProcessLookupError):
                process.kill()
            raise AssertionError(f"temporal {' '.join(arguments)} took over {CALL_S_MAX} s") from None
        said = Said(process.returncode or 0, out.decode(), err.decode())
        assert (said.code != 0) == fails, f"temporal {' '.join(arguments)}: {said}"
        return said

    async def json(self, *arguments: str) -> Any:
        return (await self(*arguments, "-o", "json")).json

    async def start(self, kind: str, *more: str) -> str:
        workflow_id = f"cli-{uuid.uuid4()}"
        await self("workflow", "start", "--type", kind, "-t", self.queue, "-w", workflow_id, *more)
        return workflow_id

    async def pending(self, workflow_id: str, **wanted: object) -> dict[str, Any]:
        """The workflow's one pending activity, once it looks as wanted."""
        deadline = time.monotonic() + CALL_S_MAX
        while True:
            described = await self.json("workflow", "describe", "-w", workflow_id)
            for found in described.get("pendingActivities", []):
                if all(found.get(key) == value for key, value in wanted.items()):
                    assert isinstance(found, dict)
                    return found
            assert time.monotonic() < deadline, described.get("pendingActivities")
            await asyncio.sleep(0.05)


@pytest.fixture
async def cli(tmp_path: Path) -> AsyncIterator[Bench]:
    try:
        program = programs.cli()
    except programs.MissingError as missing:
        pytest.skip(str(missing))
    server = Server(tmp_path / "data.db")
    address = await server.start()
    home = tmp_path / "home"
    home.mkdir()
    queue = f"cli-{uuid.uuid4()}"
    heard = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
    worker = Worker(
        await Client.connect(address, runtime=heard),
        task_queue=queue,
        workflows=[Counter, Parent, Child, Waiting],
        activities=[outside],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )
    async with worker:
        yield Bench(program, address, home, queue)
    assert await server.stop() == 0, server.said()
    assert server.complaints() == []


async def test_the_life_of_a_workflow(cli: Bench) -> None:
    memo = ("--memo", 'a="b"', "--static-summary", "a summary")
    workflow_id = await cli.start("Counter", "--input", "1", *memo)
    which = ("-w", workflow_id)
    assert (await cli("workflow", "signal", *which, "--name", "add", "--input", "2")).code == 0
    assert (await cli.json("workflow", "query", *which, "--type", "total"))["queryResult"] == [3]
    assert "nothing" in (await cli("workflow", "query", *which, "--type", "nothing", fails=True)).err
    plus = ("workflow", "update", "execute", *which, "--name", "plus", "--input")
    assert (await cli.json(*plus, "4", "--update-id", "u"))["result"] == 7
    assert "negative" in (await cli(*plus, "-1", fails=True)).err
    started = ("workflow", "update", "start", *which, "--name", "plus", "--input", "1")
    await cli(*started, "--wait-for-stage", "accepted", "--update-id", "v")
    assert (await cli.json("workflow", "update", "result", *which, "--update-id", "v"))["result"] == 8
    described = await cli.json("workflow", "update", "describe", *which, "--update-id", "u")
    assert described["stage"] == "Completed"
    assert "File" in (await cli("workflow", "stack", *which)).out
    metadata = (await cli.json("workflow", "metadata", *which))["queryResult"][0]["definition"]
    assert [one["name"] for one in metadata["signalDefinitions"]] == ["add", "finish"]
    execution = (await cli.json("workflow", "describe", *which))["workflowExecutionInfo"]
    assert execution["status"] == "WORKFLOW_EXECUTION_STATUS_RUNNING"
    assert execution["memo"]["fields"] == {"a": "b"}
    await cli("workflow", "signal", *which, "--name", "finish")
    assert (await cli.json("workflow", "result", *which))["result"] == 8
    shown = (await cli.json("workflow", "show", *which))["events"]
    assert shown[-1]["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"
    assert "WorkflowExecutionCompleted" in (await cli("workflow", "show", *which)).out
    late = await cli("workflow", "signal", *which, "--name", "add", "--input", "2", fails=True)
    assert "workflow execution already completed" in late.err


async def test_execute_waits_and_shows(cli: Bench) -> None:
    execute = ("workflow", "execute", "-t", cli.queue)
    done = await cli.json(*execute, "--type", "Parent", "-w", "tree")
    assert (done["status"], done["result"]) == ("COMPLETED", "parent of child")
    traced = (await cli("workflow", "trace", "-w", "tree")).out
    assert "tree-child" in traced
    assert "Parent" in traced
    followed = (await cli("workflow", "show", "-w", "tree", "--follow")).out
    assert "ChildWorkflowExecutionCompleted" in followed
    late = await cli(*execute, "--type", "Counter", "-w", "late", "--execution-timeout", "1s", fails=True)
    assert "TimedOut" in late.out
    failed = await cli(*execute, "--type", "Waiting", "-w", "bad", "--input", "[", fails=True)
    assert "input" in failed.err


async def test_start_twice(cli: Bench) -> None:
    workflow_id = await cli.start("Counter")
    again = ("workflow", "start", "--type", "Counter", "-t", cli.queue, "-w", workflow_id)
    first = (await cli.json("workflow", "describe", "-w", workflow_id))["workflowExecutionInfo"]["execution"]
    assert (await cli.json(*again))["runId"] == first["runId"]
    assert "already running" in (await cli(*again, "--fail-existing", fails=True)).err
    replaced = await cli.json(*again, "--id-conflict-policy", "TerminateExisting")
    assert replaced["runId"] != first["runId"]
    both = ("workflow", "signal-with-start", "--type", "Counter", "-t", cli.queue, "-w", workflow_id)
    signalled = await cli.json(*both, "--signal-name", "add", "--signal-input", "1")
    assert signalled["runId"] == replaced["runId"]
    update = ("workflow", "execute-update-with-start", "--type", "Counter", "-t", cli.queue)
    named = ("--id-conflict-policy", "UseExisting", "--update-name", "plus", "--update-input", "2")
    assert (await cli.json(*update, "-w", workflow_id, *named))["updateResult"] == 3
    await cli("workflow", "terminate", "-w", workflow_id, "--reason", "enough")
    refused = await cli(*again, "--fail-existing", "--id-reuse-policy", "RejectDuplicate", fails=True)
    assert "already" in refused.err.lower()


async def test_cancel_terminate_reset_delete(cli: Bench) -> None:
    cancelled = await cli.start("Counter")
    await cli("workflow", "cancel", "-w", cancelled)
    assert (await cli("workflow", "result", "-w", cancelled, fails=True)).code == 1
    workflow_id = await cli.start("Counter")
    await cli("workflow", "signal", "-w", workflow_id, "--name", "add", "--input", "5")
    assert (await cli.json("workflow", "query", "-w", workflow_id, "--type", "total"))["queryResult"] == [5]
    await cli("workflow", "terminate", "-w", workflow_id, "--reason", "enough")
    assert "already completed" in (await cli("workflow", "terminate", "-w", workflow_id, fails=True)).err
    reset = ("workflow", "reset", "-w", workflow_id, "--reason", "a check", "--type")
    assert (await cli.json(*reset, "FirstWorkflowTask"))["runId"]
    assert (await cli.json("workflow", "query", "-w", workflow_id, "--type", "total"))["queryResult"] == [5]
    assert (await cli.json(*reset, "LastWorkflowTask"))["runId"]
    at = ("workflow", "reset", "-w", workflow_id, "--reason", "a check", "--event-id", "4")
    assert (await cli.json(*at, "--reapply-exclude", "Signal"))["runId"]
    assert (await cli.json("workflow", "query", "-w", workflow_id, "--type", "total"))["queryResult"] == [0]
    await cli("workflow", "delete", "-w", cancelled)
    await cli("workflow", "delete", "-w", workflow_id)
    for gone in (cancelled, workflow_id):
        await cli_until_gone(cli, gone)


async def cli_until_gone(cli: Bench, workflow_id: str) -> None:
    deadline = time.monotonic() + CALL_S_MAX
    listed = ("workflow", "count", "-q", f"WorkflowId = '{workflow_id}' AND ExecutionStatus = 'Running'")
    while (await cli.json(*listed)).get("count", "0") != "0":
        assert time.monotonic() < deadline, f"{workflow_id} is still there"


async def test_list_and_count(cli: Bench) -> None:
    await cli("operator", "search-attribute", "create", "--name", "Made", "--type", "Keyword")
    for value in "abc":
        await cli.start("Counter", "--search-attribute", f'Made="{value}"')
    assert (
        len(await cli.json("workflow", "list", "-q", "Made IN ('a', 'b') AND WorkflowType = 'Counter'")) == 2
    )
    assert len(await cli.json("workflow", "list", "--limit", "1")) == 1
    assert (await cli.json("workflow", "count", "-q", "Made = 'c'"))["count"] == "1"
    grouped = await cli.json("workflow", "count", "-q", "WorkflowType = 'Counter' GROUP BY ExecutionStatus")
    assert grouped["groups"][0]["count"] == "3"
    assert "invalid query" in (await cli("workflow", "list", "-q", "Bogus =", fails=True)).err
    assert "invalid search attribute: No" in (await cli("workflow", "list", "-q", "No = 1", fails=True)).err
    assert "not found for ID: absent" in (await cli("workflow", "describe", "-w", "absent", fails=True)).err


async def test_activities(cli: Bench) -> None:
    which = ("--activity-id", "the-activity", "-w")
    one = await cli.start("Waiting", "--input", '"complete"')
    await cli.pending(one, state="PENDING_ACTIVITY_STATE_STARTED")
    await cli("activity", "complete", *which, one, "--result", '"from outside"')
    assert (await cli.json("workflow", "result", "-w", one))["result"] == "from outside"
    two = await cli.start("Waiting", "--input", '"failing"')
    await cli("activity", "pause", *which, two)
    paused = await cli.pending(two, paused=True, state="PENDING_ACTIVITY_STATE_PAUSED")
    assert "attempt" in paused["lastFailure"]["message"]
    options = await cli.json(
        *("activity", "update-options", *which, two, "--start-to-close-timeout", "7m"),
        *("--retry-initial-interval", "30s", "--retry-maximum-interval", "60s"),
    )
    assert options["StartToCloseTimeout"] == 420e9
    assert options["InitialInterval"] == 30e9
    await cli("activity", "reset", *which, two, "--keep-paused")
    assert (await cli.pending(two, paused=True)).get("attempt", 1) == 1
    await cli("activity", "unpause", *which, two)
    await cli.pending(two, attempt=2)
    await cli("activity", "fail", *which, two, "--reason", "by hand", fails=True)
    three = await cli.start("Waiting", "--input", '"complete"')
    await cli.pending(three, state="PENDING_ACTIVITY_STATE_STARTED")
    await cli("activity", "fail", *which, three, "--reason", "by hand")
    assert "by hand" in (await cli("workflow", "show", "-w", three)).out + json.dumps(
        await cli.json("workflow", "show", "-w", three)
    )
    missing = await cli(
        "activity", "complete", "--activity-id", "none", "-w", two, "--result", "1", fails=True
    )
    assert "none" in missing.err


async def test_task_queue_and_workers(cli: Bench) -> None:
    await cli.start("Counter")
    described = (await cli("task-queue", "describe", "-t", cli.queue)).out
    assert "UNVERSIONED" in described
    assert f"{os.getpid()}@" in described
    assert f"{os.getpid()}@" in (await cli("task-queue", "describe", "-t", cli.queue, "--legacy-mode")).out
    assert cli.queue in (await cli("task-queue", "list-partition", "-t", cli.queue)).out
    deadline = time.monotonic() + CALL_S_MAX
    while not (workers := await cli.json("worker", "list", "-q", f"TaskQueue = '{cli.queue}'")):
        assert time.monotonic() < deadline, "the worker's heartbeat is not seen"
    assert len(workers) == 1
    key = workers[0]["workerHeartbeat"]["workerInstanceKey"]
    assert key in (await cli("worker", "describe", "--worker-instance-key", key)).out


async def test_operator(cli: Bench) -> None:
    assert "SERVING" in (await cli("operator", "cluster", "health")).out
    assert "holdfast" in (await cli("operator", "cluster", "describe", "--detail")).out
    assert (await cli.json("operator", "cluster", "system"))["serverVersion"]
    namespace = ("operator", "namespace")
    await cli(
        *namespace, "create", "-n", "made", "--description", "first", "--retention", "2d", "--data", "a=b"
    )
    assert "already exists" in (await cli(*namespace, "create", "-n", "made", fails=True)).err
    await cli(*namespace, "update", "-n", "made", "--description", "second", "--retention", "3d")
    made = await cli.json(*namespace, "describe", "-n", "made")
    assert made["namespaceInfo"]["description"] == "second"
    assert made["config"]["workflowExecutionRetentionTtl"] == "259200s"
    names = [one["namespaceInfo"]["name"] for one in await cli.json(*namespace, "list")]
    assert {"default", "made"} <= set(names)
    await cli("workflow", "start", "-n", "made", "--type", "Counter", "-t", "nobody", "-w", "there")
    assert len(await cli.json("workflow", "list", "-n", "made")) == 1
    assert await cli.json("workflow", "list") == []
    await cli(*namespace, "delete", "-n", "made", "--yes")
    assert "made is not found" in (await cli(*namespace, "describe", "-n", "made", fails=True)).err
    assert "Namespace nope is not found" in (await cli("workflow", "list", "-n", "nope", fails=True)).err


async def test_search_attributes(cli: Bench) -> None:
    attribute = ("operator", "search-attribute")
    kinds = ("Text", "Keyword", "KeywordList", "Int", "Double", "Bool", "Datetime")
    for kind in kinds:
        await cli(*attribute, "create", "--name", f"My{kind}", "--type", kind)
    await cli(*attribute, "create", "--name", "MyInt", "--type", "Int")
    other = await cli(*attribute, "create", "--name", "MyInt", "--type", "Bool", fails=True)
    assert "already exists" in other.err
    listed = (await cli(*attribute, "list")).out
    assert all(f"My{kind}" in listed for kind in kinds)
    await cli(*attribute, "remove", "--name", "MyText", "--yes")
    assert "MyText" not in (await cli(*attribute, "list")).out


async def test_environments_and_configuration(cli: Bench) -> None:
    await cli("env", "set", "--env", "here", "--key", "namespace", "--value", "nope")
    assert "nope" in (await cli("env", "get", "--env", "here")).out
    assert "here" in (await cli("env", "list")).out
    assert "nope is not found" in (await cli("workflow", "list", "--env", "here", fails=True)).err
    await cli("env", "delete", "--env", "here")
    await cli("config", "set", "--profile", "p", "--prop", "namespace", "--value", "nope")
    assert "nope" in (await cli("config", "get", "--profile", "p")).out
    assert "nope is not found" in (await cli("workflow", "list", "--profile", "p", fails=True)).err
    await cli("config", "delete-profile", "--profile", "p")


@pytest.mark.parametrize(
    "arguments",
    [
        ("schedule", "list"),
        ("batch", "list"),
        ("worker", "deployment", "list"),
        ("operator", "nexus", "endpoint", "list"),
        ("activity", "list"),
    ],
)
async def test_what_comes_later_says_so(cli: Bench, arguments: tuple[str, ...]) -> None:
    said = (await cli(*arguments, fails=True)).err
    assert "not part of this release" in said or "unknown command" in said
