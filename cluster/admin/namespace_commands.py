"""`holdfast namespace …`: the namespaces of a server, made, shown, changed and deleted."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from cluster.admin.connection import Connection, connect, connection_options, run
from cluster.admin.output import (
    NANOSECONDS,
    Duration,
    Failure,
    Group,
    in_words,
    json_option,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from temporalio.api.workflowservice.v1 import DescribeNamespaceResponse

RETENTION_DEFAULT_S = 72 * 3600.0
RETENTION_MIN_S = 3600.0
PAGE = 200


@click.group(cls=Group)
def namespace() -> None:
    """Create, show, change and delete namespaces, and fail them over to other regions.

    \b
    Example:
      holdfast namespace create orders --retention 7d
    """


def summary(described: DescribeNamespaceResponse) -> dict[str, object]:
    """What is worth showing of a namespace."""
    from temporalio.api.enums.v1 import NamespaceState

    info, config = described.namespace_info, described.config
    retention = config.workflow_execution_retention_ttl.ToNanoseconds()
    return {
        "name": info.name,
        "id": info.id,
        "state": NamespaceState.Name(info.state).removeprefix("NAMESPACE_STATE_").lower(),
        "description": info.description,
        "owner_email": info.owner_email,
        "retention_s": retention / NANOSECONDS,
        "data": dict(info.data),
    }


def _show(described: DescribeNamespaceResponse, as_json: bool) -> None:
    shown = summary(described)
    if as_json:
        print_json(shown)
        return
    retention = described.config.workflow_execution_retention_ttl.ToNanoseconds()
    rows = [[key, str(value)] for key, value in shown.items() if value and key != "retention_s"]
    print_table(["setting", "value"], [*rows, ["retention", in_words(retention)]])


def _check_retention(seconds: float) -> None:
    if seconds < RETENTION_MIN_S:
        raise click.BadParameter("at least 1h", param_hint="--retention")


async def _describe(connection: Connection, name: str) -> DescribeNamespaceResponse:
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

    server = await connect(connection)
    return await server.call(
        server.client.workflow_service.describe_namespace, DescribeNamespaceRequest(namespace=name)
    )


@namespace.command()
@click.argument("name")
@click.option(
    "--retention",
    type=Duration(),
    default=RETENTION_DEFAULT_S,
    help="Keep closed runs so long. [default: 72h]",
)
@click.option("--description", default="", help="What it is for.")
@click.option("--email", default="", help="Whom to ask about it.")
@connection_options
@json_option
def create(
    name: str, retention: float, description: str, email: str, connection: Connection, as_json: bool
) -> None:
    """Create a namespace.

    \b
    Example:
      holdfast namespace create orders --retention 7d --email orders@example.com
    """
    from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest

    _check_retention(retention)
    request = RegisterNamespaceRequest(namespace=name, description=description, owner_email=email)
    request.workflow_execution_retention_period.FromTimedelta(timedelta(seconds=retention))

    async def work() -> None:
        server = await connect(connection)
        await server.call(server.client.workflow_service.register_namespace, request, changes=True)

    run(work())
    if as_json:
        print_json({"name": name, "created": True})
    else:
        click.echo(f"namespace {name} created")


@namespace.command("list")
@connection_options
@json_option
def list_command(connection: Connection, as_json: bool) -> None:
    """Show all namespaces.

    \b
    Example:
      holdfast namespace list --json
    """
    shown = [summary(described) for described in run(_list(connection))]
    if as_json:
        print_json(shown)
        return
    rows = []
    for one in shown:
        retention = one["retention_s"]
        assert isinstance(retention, float)
        words = in_words(int(retention * NANOSECONDS))
        rows.append([str(one["name"]), str(one["state"]), words, str(one["description"])])
    print_table(["name", "state", "retention", "description"], rows)


async def _list(connection: Connection) -> list[DescribeNamespaceResponse]:
    from temporalio.api.workflowservice.v1 import ListNamespacesRequest

    server = await connect(connection)
    found: list[DescribeNamespaceResponse] = []
    token = b""
    while True:
        request = ListNamespacesRequest(page_size=PAGE, next_page_token=token)
        page = await server.call(server.client.workflow_service.list_namespaces, request)
        found += page.namespaces
        token = page.next_page_token
        if not token:
            return found


@namespace.command()
@click.argument("name")
@connection_options
@json_option
def describe(name: str, connection: Connection, as_json: bool) -> None:
    """Show one namespace.

    \b
    Example:
      holdfast namespace describe orders
    """
    _show(run(_describe(connection, name)), as_json)


@namespace.command()
@click.argument("name")
@click.option("--retention", type=Duration(), help="Keep closed runs so long from now on.")
@click.option("--description", help="What it is for.")
@click.option("--email", help="Whom to ask about it.")
@connection_options
@json_option
def update(
    name: str,
    retention: float | None,
    description: str | None,
    email: str | None,
    connection: Connection,
    as_json: bool,
) -> None:
    """Change settings of a namespace; what is not given stays.

    \b
    Example:
      holdfast namespace update orders --retention 30d
    """
    from temporalio.api.workflowservice.v1 import UpdateNamespaceRequest

    if retention is None and description is None and email is None:
        raise click.UsageError("nothing to change: give --retention, --description or --email")
    request = UpdateNamespaceRequest(namespace=name)
    if retention is not None:
        _check_retention(retention)
        request.config.workflow_execution_retention_ttl.FromTimedelta(timedelta(seconds=retention))

    async def work() -> DescribeNamespaceResponse:
        from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest

        server = await connect(connection)
        service = server.client.workflow_service
        asked = DescribeNamespaceRequest(namespace=name)
        if description is not None or email is not None:
            # The server takes description and owner together, so what is not given is read first.
            before = (await server.call(service.describe_namespace, asked)).namespace_info
            request.update_info.description = before.description if description is None else description
            request.update_info.owner_email = before.owner_email if email is None else email
        await server.call(service.update_namespace, request, changes=True)
        return await server.call(service.describe_namespace, asked)

    _show(run(work()), as_json)


@namespace.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@connection_options
@json_option
def delete(name: str, yes: bool, connection: Connection, as_json: bool) -> None:
    """Delete a namespace with everything in it. Cannot be undone.

    \b
    Example:
      holdfast namespace delete orders --yes
    """
    from temporalio.api.operatorservice.v1 import DeleteNamespaceRequest

    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"this deletes {name!r} and all of its runs for good: add --yes")
        typed: str = click.prompt(f"Type {name!r} to delete it and all of its runs", err=True)
        if typed != name:
            raise Failure("names differ; nothing was deleted")

    async def work() -> str:
        server = await connect(connection)
        request = DeleteNamespaceRequest(namespace=name)
        response = await server.call(server.client.operator_service.delete_namespace, request, changes=True)
        return response.deleted_namespace

    deleted_name = run(work())
    if as_json:
        print_json({"name": name, "deleted": True, "deleted_name": deleted_name})
    else:
        click.echo(f"namespace {name} deleted")
