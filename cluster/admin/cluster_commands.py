"""`holdfast cluster health`, `nodes` and `version`: is it well, who belongs to it, and what is it?"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import click

from cluster.admin.connection import CALL_TIMEOUT, Connection, connect, connection_options, run
from cluster.admin.output import Exit, Failure, Group, json_option, leave, moment, print_json
from cluster.admin.region import NotThere, Region

REGION_S = 4.0  # for the region's own view; without a leader nobody has one
HEALTH_SERVICE = "temporal.api.workflowservice.v1.WorkflowService"


@click.group(cls=Group)
def cluster() -> None:
    """Ask a region, or a server that is alone, how it is and what it is.

    \b
    Example:
      holdfast cluster health --address 127.0.0.1:7233
    """


@cluster.command()
@connection_options
@json_option
def health(connection: Connection, as_json: bool) -> None:
    """Ask whether all is well; exit 0 only if it is.

    Checks the gRPC health service, GetSystemInfo and the namespace given; and asks the region for
    nodes that are down or drained, shards without leader or majority, replicas that are missing or
    behind, disks that take no writes, and damage. Says which versions the nodes of a region run.

    \b
    Example:
      holdfast cluster health --json
    """
    problems, versions = run(find_problems(connection))
    if as_json:
        print_json({"ok": not problems, "problems": problems} | versions)
    else:
        for problem in problems:
            click.echo(f"{problem['where']}: {problem['what']}\n  do: {problem['do']}")
        for line in [*([] if problems else ["ok"]), *_runs(**versions)]:
            click.echo(line)
    leave(Exit.FAILED if problems else Exit.DONE)


Found = tuple[list[dict[str, Any]], dict[str, Any]]  # problems; and of a region: versions, formats


def _runs(versions: dict[str, list[str]] | None = None, formats: int = 0) -> list[str]:
    """Which versions there are, in lines."""
    told = dict(versions or {})
    unheard = told.pop("", [])  # it has never been there: the region is being made
    lines = [f"version {version}: {', '.join(names)}" for version, names in told.items()]
    if len(told) > 1:
        lines.append(f"an upgrade is under way; what the nodes write has format {formats}")
    if unheard:
        lines.append(f"not heard from yet: {', '.join(unheard)}")
    return lines


async def find_problems(connection: Connection) -> Found:
    """Everything that is wrong, as the contract of `cluster health --json` has it; and what runs."""
    from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
    from temporalio.service import RPCError

    now = moment(time.time_ns())
    try:
        server = await connect(connection)
    except Failure as failure:
        if failure.exit_code == Exit.USAGE:
            raise
        where = connection.address or "server"
        return [{"what": failure.message, "where": where, "since": now, "do": failure.do}], {}
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
    of_the_region, versions = await region_problems(replace(connection, address=server.address))
    return problems + of_the_region, versions


async def region_problems(connection: Connection) -> Found:
    """What is wrong with the region; if nobody can tell, what the node that is asked sees by itself."""
    region = Region(connection)
    try:
        answer = await region.do("health", timeout_s=REGION_S)
    except NotThere:
        return [], {}  # Temporal's own server, or an older one of ours
    except Failure as failure:
        try:
            answer = await region.do("health", here=True, timeout_s=REGION_S)
        except Failure:
            problem = {"what": failure.message, "where": connection.address or "server", "do": failure.do}
            answer = {"problems": [{**problem, "since_ns": time.time_ns()}]}
    problems = [
        {"what": one["what"], "where": one["where"], "since": moment(one["since_ns"]), "do": one["do"]}
        for one in answer["problems"]
    ]
    return problems, {name: answer[name] for name in ("versions", "formats") if name in answer}


@cluster.command()
@click.option("--all", "every", is_flag=True, help="Removed nodes, too.")
@connection_options
@json_option
def nodes(every: bool, connection: Connection, as_json: bool) -> None:
    """Show the nodes of the region: whether they are up, and what they lead and hold.

    \b
    Example:
      holdfast cluster nodes --json
    """
    from cluster.admin.node_commands import show_nodes

    show_nodes(connection, as_json, every)


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
        click.echo(f"holdfast {mine}\nserver   at {address}, with the API of Temporal {theirs}")


async def _server_version(connection: Connection) -> tuple[str, str]:
    from temporalio.api.workflowservice.v1 import GetSystemInfoRequest

    server = await connect(connection)
    info = await server.call(server.client.workflow_service.get_system_info, GetSystemInfoRequest())
    return info.server_version, server.address
