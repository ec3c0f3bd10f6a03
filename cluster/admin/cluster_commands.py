"""`holdfast cluster health` and `holdfast cluster version`: is it well, and what is it?"""

from __future__ import annotations

import time
from typing import Any

import click

from cluster.admin.connection import CALL_TIMEOUT, Connection, connect, connection_options, run
from cluster.admin.output import Exit, Failure, json_option, leave, moment, print_json

HEALTH_SERVICE = "temporal.api.workflowservice.v1.WorkflowService"


@click.group()
def cluster() -> None:
    """Ask a server how it is and what it is.

    \b
    Example:
      holdfast cluster health --address 127.0.0.1:7233
    """


@cluster.command()
@connection_options
@json_option
def health(connection: Connection, as_json: bool) -> None:
    """Ask whether the server serves; exit 0 only if all is well.

    Checks the gRPC health service, GetSystemInfo, and the namespace given.

    \b
    Example:
      holdfast cluster health --json
    """
    problems = run(find_problems(connection))
    if as_json:
        print_json({"ok": not problems, "problems": problems})
    elif problems:
        for problem in problems:
            click.echo(f"{problem['where']}: {problem['what']}\n  do: {problem['do']}")
    else:
        click.echo("ok")
    leave(Exit.FAILED if problems else Exit.DONE)


async def find_problems(connection: Connection) -> list[dict[str, Any]]:
    """Everything that is wrong, as the contract of `cluster health --json` has it."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
    from temporalio.service import RPCError

    now = moment(time.time_ns())
    try:
        server = await connect(connection)
    except Failure as failure:
        if failure.exit_code == Exit.USAGE:
            raise
        return [
            {"what": failure.message, "where": connection.address or "server", "since": now, "do": failure.do}
        ]
    problems: list[dict[str, Any]] = []

    def add(what: str, where: str, do: str) -> None:
        problems.append({"what": what, "where": where, "since": now, "do": do})

    try:
        if not await server.client.check_health(service=HEALTH_SERVICE, timeout=CALL_TIMEOUT):
            add(
                "the server runs but does not serve",
                server.address,
                "see its log: it says why it refuses work",
            )
    except RPCError as error:
        add(f"the health check failed: {error.message}", server.address, "see the server's log")
    service = server.client.workflow_service
    for where, method, request, do in (
        (server.address, service.get_system_info, GetSystemInfoRequest(), "see the server's log"),
        (
            f"namespace {server.namespace}",
            service.describe_namespace,
            DescribeNamespaceRequest(namespace=server.namespace),
            "`holdfast namespace list` shows what there is, `holdfast namespace create NAME` makes one",
        ),
    ):
        try:
            await server.call(method, request)
        except Failure as failure:
            add(failure.message, where, do)
    return problems


@cluster.command()
@connection_options
@json_option
def version(connection: Connection, as_json: bool) -> None:
    """Tell the version of this program and of the server it talks to.

    \b
    Example:
      holdfast cluster version
    """
    from importlib.metadata import version as version_of

    mine = version_of("holdfast")
    try:
        theirs, address = run(_server_version(connection))
    except Failure as failure:
        if as_json:
            print_json({"cli": mine, "server": None, "address": None})
        else:
            click.echo(f"holdfast {mine}")
        raise failure from None
    if as_json:
        print_json({"cli": mine, "server": theirs, "address": address})
    else:
        click.echo(f"holdfast {mine}\nserver   {theirs} at {address}")


async def _server_version(connection: Connection) -> tuple[str, str]:
    from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

    server = await connect(connection)
    info = await server.call(server.client.workflow_service.get_system_info, GetSystemInfoRequest())
    return info.server_version, server.address
