"""The commands that talk to a server: what they print, and with which code they end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
import grpc
import pytest
from click.testing import Result
from temporalio.api.enums.v1 import (
    EventType,
    NamespaceState,
    PendingWorkflowTaskState,
    TaskQueueType,
    WorkflowExecutionStatus,
)
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.operatorservice.v1 import DeleteNamespaceRequest, DeleteNamespaceResponse
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceResponse,
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    RegisterNamespaceRequest,
    RegisterNamespaceResponse,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)

from cluster.admin.main import COMMANDS
from cluster.admin.main import holdfast as program

Run = Callable[..., Result]


def commands() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""

    def within(name: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        if not isinstance(command, click.Group):
            yield name, command
            return
        for below, one in command.commands.items():
            yield from within(f"{name} {below}", one)

    context = click.Context(program)
    for name in COMMANDS:
        command = program.get_command(context, name)
        assert command is not None
        yield from within(name, command)


@pytest.mark.parametrize("command", [pytest.param(command, id=name) for name, command in commands()])
def test_every_command_has_json_and_an_example(command: click.Command) -> None:
    assert any("--json" in parameter.opts for parameter in command.params)
    assert "Example" in (command.help or "")
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name


def test_the_outermost_help_tells_what_each_group_tells_of_itself(holdfast: Run) -> None:
    result = holdfast("--help")
    assert result.exit_code == 0
    for name, (_, words) in COMMANDS.items():
        assert name in result.stdout
        group = program.get_command(click.Context(program), name)
        assert group is not None
        assert (group.help or "").startswith(words.removesuffix("."))


def namespace(name: str, **fields: Any) -> DescribeNamespaceResponse:
    described = DescribeNamespaceResponse()
    described.namespace_info.name = name
    described.namespace_info.state = NamespaceState.NAMESPACE_STATE_REGISTERED
    for key, value in fields.items():
        setattr(described.namespace_info, key, value)
    described.config.workflow_execution_retention_ttl.FromSeconds(72 * 3600)
    return described


class TestHealth:
    def test_all_is_well(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DescribeNamespace"] = namespace("default")
        result = holdfast("cluster", "health", "--address", scripted.address, "--json")
        assert json.loads(result.stdout) == {"ok": True, "problems": []}
        assert result.exit_code == 0

    def test_nobody_listens(self, holdfast: Run) -> None:
        result = holdfast("cluster", "health", "--address", "127.0.0.1:1", "--json")
        answer = json.loads(result.stdout)
        assert result.exit_code == 1
        assert not answer["ok"]
        (problem,) = answer["problems"]
        assert problem.keys() == {"what", "where", "since", "do"}
        assert "connection refused" in problem["what"]
        assert "holdfast server start-dev" in problem["do"]

    def test_the_server_does_not_serve(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DescribeNamespace"] = namespace("default")
        scripted.answers["Check"] = b"\x08\x02"  # NOT_SERVING
        result = holdfast("cluster", "health", "--address", scripted.address)
        assert result.exit_code == 1
        assert "does not serve" in result.stdout

    def test_the_namespace_is_missing(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DescribeNamespace"] = (grpc.StatusCode.NOT_FOUND, "Namespace nope is not found.")
        result = holdfast("cluster", "health", "--address", scripted.address, "--namespace", "nope", "--json")
        (problem,) = json.loads(result.stdout)["problems"]
        assert problem["where"] == "namespace nope"
        assert "holdfast namespace create" in problem["do"]


class TestConnection:
    def test_our_variable_comes_before_temporals(
        self, holdfast: Run, scripted: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
        monkeypatch.setenv("HOLDFAST_ADDRESS", scripted.address)
        assert json.loads(holdfast("cluster", "version", "--json").stdout)["server"] == "1.29.0"

    def test_temporals_variables_are_enough(
        self, holdfast: Run, scripted: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEMPORAL_ADDRESS", scripted.address)
        monkeypatch.setenv("TEMPORAL_NAMESPACE", "orders")
        scripted.answers["DescribeNamespace"] = namespace("orders")
        assert holdfast("cluster", "health").exit_code == 0
        assert any(name == "DescribeNamespace" and b"orders" in body for name, body in scripted.asked)

    def test_the_client_configuration_file_is_read(
        self, holdfast: Run, scripted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
    ) -> None:
        file = tmp_path / "temporal.toml"
        file.write_text(f'[profile.default]\naddress = "{scripted.address}"\n')
        monkeypatch.setenv("TEMPORAL_CONFIG_FILE", str(file))
        assert holdfast("cluster", "version").exit_code == 0

    def test_an_address_without_a_port_is_a_usage_error(self, holdfast: Run) -> None:
        result = holdfast("cluster", "version", "--address", "localhost")
        assert result.exit_code == 2
        assert "host:port" in result.stderr

    def test_the_own_version_needs_no_server(self, holdfast: Run) -> None:
        result = holdfast("cluster", "version", "--address", "127.0.0.1:1")
        assert result.exit_code == 1
        assert result.stdout.startswith("holdfast ")


class TestNamespaces:
    def test_create(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["RegisterNamespace"] = RegisterNamespaceResponse()
        result = holdfast(
            "namespace", "create", "orders", "--retention", "1h30m", "--address", scripted.address
        )
        assert result.exit_code == 0
        request = scripted.request("RegisterNamespace", RegisterNamespaceRequest)
        assert request.namespace == "orders"
        assert request.workflow_execution_retention_period.seconds == 5400

    def test_create_with_a_refusal_is_a_failure(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["RegisterNamespace"] = (grpc.StatusCode.ALREADY_EXISTS, "Namespace already exists.")
        result = holdfast("namespace", "create", "orders", "--address", scripted.address)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "Namespace already exists." in result.stderr

    def test_create_with_a_lost_answer_is_indefinite(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["RegisterNamespace"] = (grpc.StatusCode.UNAVAILABLE, "the leader is gone")
        result = holdfast("namespace", "create", "orders", "--address", scripted.address)
        assert result.exit_code == 3
        assert "it may have happened" in result.stderr

    def test_a_retention_that_is_no_duration_is_a_usage_error(self, holdfast: Run) -> None:
        result = holdfast("namespace", "create", "orders", "--retention", "5 fortnights")
        assert result.exit_code == 2
        assert "write it like 72h" in result.stderr
        for arguments in (("create", "orders"), ("update", "orders")):
            result = holdfast("namespace", *arguments, "--retention", "59m")
            assert (result.exit_code, "at least 1h" in result.stderr) == (2, True)

    def test_list_follows_all_pages(self, holdfast: Run, scripted: Any) -> None:
        def page(request: bytes) -> ListNamespacesResponse:
            first = not ListNamespacesRequest.FromString(request).next_page_token
            names = ["default"] if first else ["orders"]
            return ListNamespacesResponse(
                namespaces=map(namespace, names), next_page_token=b"2" if first else b""
            )

        scripted.answers["ListNamespaces"] = page
        result = holdfast("namespace", "list", "--address", scripted.address, "--json")
        assert [one["name"] for one in json.loads(result.stdout)] == ["default", "orders"]
        result = holdfast("namespace", "list", "--address", scripted.address)
        assert [line.split() for line in result.stdout.splitlines()][2] == ["orders", "registered", "3", "d"]

    def test_describe(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DescribeNamespace"] = namespace("orders", owner_email="o@example.com")
        shown = json.loads(
            holdfast("namespace", "describe", "orders", "--address", scripted.address, "--json").stdout
        )
        assert shown["owner_email"] == "o@example.com"
        assert shown["retention_s"] == 72 * 3600

    def test_update_leaves_what_is_not_given(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DescribeNamespace"] = namespace("orders", owner_email="o@example.com")
        scripted.answers["UpdateNamespace"] = UpdateNamespaceResponse()
        result = holdfast(
            "namespace", "update", "orders", "--description", "x", "--address", scripted.address
        )
        assert result.exit_code == 0
        request = scripted.request("UpdateNamespace", UpdateNamespaceRequest)
        assert request.update_info.description == "x"
        assert request.update_info.owner_email == "o@example.com"
        assert not request.HasField("config")

    def test_update_with_nothing_is_a_usage_error(self, holdfast: Run) -> None:
        assert holdfast("namespace", "update", "orders").exit_code == 2

    def test_delete_wants_to_be_sure(self, holdfast: Run, scripted: Any) -> None:
        scripted.answers["DeleteNamespace"] = DeleteNamespaceResponse(deleted_namespace="orders-deleted-1")
        refused = holdfast("namespace", "delete", "orders", "--address", scripted.address)
        assert refused.exit_code == 2
        assert "--yes" in refused.stderr
        assert (
            holdfast("namespace", "delete", "orders", "--yes", "--address", scripted.address).exit_code == 0
        )
        assert scripted.request("DeleteNamespace", DeleteNamespaceRequest).namespace == "orders"


class TestWhy:
    """The thin client; what is concluded from the answers is test_why.py's matter."""

    def described(self) -> DescribeWorkflowExecutionResponse:
        described = DescribeWorkflowExecutionResponse()
        described.workflow_execution_info.execution.workflow_id = "order-17"
        described.workflow_execution_info.execution.run_id = "run-1"
        described.workflow_execution_info.type.name = "Order"
        described.workflow_execution_info.status = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
        described.execution_config.task_queue.name = "orders"
        return described

    def test_no_such_run(self, holdfast: Run, scripted: Any) -> None:
        words = "workflow not found for ID: order-17"
        scripted.answers["DescribeWorkflowExecution"] = (grpc.StatusCode.NOT_FOUND, words)
        result = holdfast("workflow", "why", "order-17", "--address", scripted.address)
        assert result.exit_code == 1
        assert words in result.stderr
        assert "namespace" in result.stderr

    def test_it_reads_every_page_and_the_queues_involved(self, holdfast: Run, scripted: Any) -> None:
        described = self.described()
        described.pending_workflow_task.state = PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
        described.pending_workflow_task.attempt = 1
        scripted.answers["DescribeWorkflowExecution"] = described
        scripted.answers["DescribeTaskQueue"] = DescribeTaskQueueResponse()

        def page(request: bytes) -> GetWorkflowExecutionHistoryResponse:
            asked = GetWorkflowExecutionHistoryRequest.FromString(request)
            assert asked.execution.run_id == "run-1"
            first = not asked.next_page_token
            kind = (
                EventType.EVENT_TYPE_TIMER_STARTED if first else EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED
            )
            answer = GetWorkflowExecutionHistoryResponse(next_page_token=b"2" if first else b"")
            answer.history.events.append(HistoryEvent(event_id=1 if first else 2, event_type=kind))
            return answer

        scripted.answers["GetWorkflowExecutionHistory"] = page
        result = holdfast("workflow", "why", "order-17", "--address", scripted.address, "--json")
        assert result.exit_code == 0, result.stderr
        answer = json.loads(result.stdout)
        assert answer["workflow_id"] == "order-17"
        assert answer["status"] == "running"
        assert [finding["kind"] for finding in answer["waits_for"]] == ["no_poller", "timer"]
        asked = scripted.request("DescribeTaskQueue", DescribeTaskQueueRequest)
        assert (asked.task_queue.name, asked.task_queue_type) == (
            "orders",
            TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
        )
        words = holdfast("workflow", "why", "order-17", "--address", scripted.address).stdout
        assert words.startswith(
            "order-17 (Order, run run-1) is running\n  - no worker polls workflow task queue"
        )
