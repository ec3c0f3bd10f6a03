"""`holdfast local`: a cluster of real node processes on this machine."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.admin.output import (
    NANOSECONDS,
    Exit,
    F,
    Failure,
    Group,
    in_words,
    json_option,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from cluster.local import LocalCluster

DIRECTORY_DEFAULT = Path(".holdfast")  # that of cluster.local, which is imported only when a command runs
SIGNALS = ("KILL", "TERM")
LINES_DEFAULT = 20


def directory_option(function: F) -> F:
    """Add --dir, as the parameter `directory`."""
    return click.option(
        "--dir",
        "directory",
        type=click.Path(path_type=Path, file_okay=False),
        default=DIRECTORY_DEFAULT,
        show_default=True,
        help="Directory of the cluster.",
    )(function)


def failures(function: F) -> F:
    """Turn a LocalError into words and an exit code."""

    @functools.wraps(function)
    def wrapped(*args: Any, **given: Any) -> Any:
        from cluster.local import LocalError

        try:
            return function(*args, **given)
        except LocalError as error:
            raise Failure(str(error), error.do, Exit.USAGE if error.usage else Exit.FAILED) from None

    return wrapped  # type: ignore[return-value]


@click.group(cls=Group)
def local() -> None:
    """Run a local cluster of real node processes.

    \b
    Example:
      holdfast local up && holdfast local kill a/2 && holdfast local status
    """


@local.command()
@directory_option
@click.option("--regions", help="Names of the regions, with commas; they know each other.  [default: a]")
@click.option("--nodes", type=int, help="Nodes of each region.  [default: 3]")
@click.option(
    "--log",
    type=click.Choice(["embedded", "cassandra"]),
    help="The log between regions: in the nodes, or on Cassandra, which is run as well.  [default: embedded]",
)
@click.option(
    "--port-base",
    type=int,
    help="The first node's ports are this (gRPC), +1 (peers) and +2 (metrics); the next one's begin at "
    "+10. Without: free ports.",
)
@json_option
@failures
def up(
    directory: Path,
    regions: str | None,
    nodes: int | None,
    log: str | None,
    port_base: int | None,
    as_json: bool,
) -> None:
    """Start a cluster on loopback and wait until every node serves.

    The nodes go on when the terminal is closed; a node that ends by itself is started again, and
    `holdfast local down` stops them all. In a directory that has a cluster, that cluster is
    started, on its data and its ports; if it runs already, that is said.

    The CLI finds the cluster in the current directory by itself; other Temporal clients with
    TEMPORAL_CONFIG_FILE=DIR/context.toml.

    \b
    Examples:
      holdfast local up
      holdfast local up --dir /tmp/five --nodes 5 --port-base 7300 --json
      holdfast local up --regions a,b --nodes 3
      holdfast local up --regions a,b --log cassandra
    """
    from cluster.local import LocalCluster

    names = None if regions is None else [name.strip() for name in regions.split(",")]
    cluster = LocalCluster(directory, regions=names, nodes=nodes, log=log, port_base=port_base)
    try:
        result = cluster.up(lambda words: click.echo(words, err=True))
    except KeyboardInterrupt:
        click.echo("not waiting any longer; the cluster goes on: `holdfast local status`", err=True)
        raise SystemExit(130) from None
    if as_json:
        print_json(result)
        return
    show(result, [("node", "name"), ("grpc", "grpc"), ("metrics", "metrics"), ("pid", "pid")])
    if len(result["regions"]) == 1:
        click.echo(f"clients: {result['regions'][0]['endpoint']}, or any other node", err=True)
    else:
        ends = ", ".join(f"{region['endpoint']} ({region['name']})" for region in result["regions"])
        click.echo(f"clients: {ends}, or any other node", err=True)


@local.command()
@directory_option
@json_option
@failures
def status(directory: Path, as_json: bool) -> None:
    """Show how every node does: its state, process, ports, restarts, and last errors.

    A state is one of running, starting, paused, killed (on request; stays so), failed (ended by
    itself; is started again), stopping, stopped. A running node is asked whether it serves.

    \b
    Example:
      holdfast local status --json
    """
    from cluster.local import LocalCluster

    result = LocalCluster(directory).status()
    if as_json:
        print_json(result)
        return
    for node in processes(result):
        node["uptime"] = "" if node["uptime_s"] is None else in_words(int(node["uptime_s"] * NANOSECONDS))
        if node["state"] == "running" and not node["serving"]:
            node["state"] = "running, not serving"
    columns = ("state", "pid", "uptime", "grpc", "peers", "metrics", "restarts")
    show(result, [("node", "name"), *((column, column) for column in columns)])
    for node in processes(result):
        if node["starts_again_in_s"] is not None:
            click.echo(
                f"{node['name']}: ended with {node['exit_code']}; starts again in "
                f"{node['starts_again_in_s']} s"
            )
        for line in node["errors"]:
            click.echo(f"{node['name']}: {line}")
    if not result["running"]:
        click.echo(f"the cluster in {result['dir']} is down: `holdfast local up` starts it", err=True)


@local.command()
@click.argument("node")
@directory_option
@click.option(
    "--signal", "name", type=click.Choice(SIGNALS), default="KILL", show_default=True, help="What it is sent."
)
@json_option
@failures
def kill(node: str, directory: Path, name: str, as_json: bool) -> None:
    """Kill a node; it stays dead until it is restarted.

    \b
    Example:
      holdfast local kill a/2
    """
    number = signal.Signals[f"SIG{name}"]
    _act(directory, node, as_json, lambda cluster: cluster.kill(node, number))


@local.command()
@click.argument("node")
@directory_option
@json_option
@failures
def pause(node: str, directory: Path, as_json: bool) -> None:
    """Hold a node with SIGSTOP: it keeps its connections and answers nothing.

    \b
    Example:
      holdfast local pause a/2
    """
    _act(directory, node, as_json, lambda cluster: cluster.pause(node))


@local.command()
@click.argument("node")
@directory_option
@json_option
@failures
def resume(node: str, directory: Path, as_json: bool) -> None:
    """Let a paused node go on.

    \b
    Example:
      holdfast local resume a/2
    """
    _act(directory, node, as_json, lambda cluster: cluster.resume(node))


@local.command()
@click.argument("node")
@directory_option
@json_option
@failures
def restart(node: str, directory: Path, as_json: bool) -> None:
    """Stop a node gracefully, if it lives, and start it; wait until it serves.

    \b
    Example:
      holdfast local restart a/2
    """
    _act(directory, node, as_json, lambda cluster: cluster.restart(node))


@local.command()
@click.argument("node")
@directory_option
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(min=0),
    default=LINES_DEFAULT,
    show_default=True,
    help="So many lines from the end.",
)
@json_option
@failures
def logs(node: str, directory: Path, follow: bool, lines: int, as_json: bool) -> None:
    """Show the end of a node's log.

    With --json one object with all lines; with --follow as well, one object a line.

    \b
    Example:
      holdfast local logs a/2 --follow
    """
    from cluster.local import LocalCluster
    from cluster.local import logs as reading

    file = LocalCluster(directory).log_file(node)
    if not follow:
        found = reading.tail(file, lines)
        if as_json:
            print_json({"node": node, "file": str(file), "lines": found})
        for line in [] if as_json else found:
            click.echo(line)
        return
    try:
        for line in reading.follow(file, lines):
            click.echo(json.dumps({"node": node, "line": line}) if as_json else line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


@local.command()
@directory_option
@click.option("--delete", is_flag=True, help="Remove data, logs and configuration, too.")
@json_option
@failures
def down(directory: Path, delete: bool, as_json: bool) -> None:
    """Stop all nodes and the supervisor; `up` starts them again on the same data.

    \b
    Example:
      holdfast local down --delete
    """
    from cluster.local import LocalCluster

    cluster = LocalCluster(directory)
    cluster.down(delete=delete)
    if as_json:
        print_json({"dir": str(cluster.directory), "deleted": delete})
    else:
        click.echo(f"the cluster in {cluster.directory} is down" + (", and removed" if delete else ""))


def _act(directory: Path, node: str, as_json: bool, act: Callable[[LocalCluster], None]) -> None:
    """Do something to a node, and tell how it is then."""
    from cluster.local import LocalCluster

    cluster = LocalCluster(directory)
    act(cluster)
    state = cluster.node_state(node)
    if as_json:
        print_json({"name": node, "state": str(state.state), "pid": state.pid})
    else:
        click.echo(f"{node} is {state.state}" + (f", process {state.pid}" if state.pid else ""))


def show(result: dict[str, Any], columns: list[tuple[str, str]]) -> None:
    """A table of all nodes."""
    rows = [
        ["" if node.get(key) is None else str(node[key]) for _, key in columns] for node in processes(result)
    ]
    print_table([heading for heading, _ in columns], rows)


def processes(result: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes, and those of the log between regions."""
    return [*(node for region in result["regions"] for node in region["nodes"]), *result["log"]["nodes"]]
