"""`holdfast node …`: nodes come to a region, step aside, and go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from cluster.admin.connection import Connection, connection_options, run
from cluster.admin.output import Exit, Failure, Group, json_option, leave, moment, print_json, print_table
from cluster.admin.region import Answer, Region, describe_moves, wait_options

SEEDS_MAX = 5  # addresses in a new node's file; one that answers is enough


@click.group(cls=Group)
def node() -> None:
    """Add, drain, remove and replace the nodes of a region.

    \b
    Example:
      holdfast node drain a/2
    """


def show_nodes(connection: Connection, as_json: bool, every: bool) -> None:
    """Print the nodes."""
    answer = run(Region(connection).seen("nodes", all=every))
    for one in answer["nodes"]:
        one["joined"] = moment(one.pop("joined_ns"))
    code = Exit.FAILED if "seen_by" in answer else Exit.DONE
    if as_json:
        print_json(answer)
        leave(code)
    rows = []
    for one in answer["nodes"]:
        state = one["state"] if one["up"] or one["state"] == "removed" else f"{one['state']}, down"
        held = str(one["replicas"])
        if one["wanted"] != one["replicas"]:
            held += f" of {one['wanted']}" if one["wanted"] > one["replicas"] else f", {one['wanted']} wanted"
        load = "" if one["load"] is None else f"{one['load']:.0%}"
        rows.append(
            [
                one["name"],
                state,
                str(one["leads"]),
                held,
                load,
                one["machine"],
                one["grpc"],
                one["peers"],
                one["version"],
            ]
        )
    print_table(["node", "state", "leads", "replicas", "load", "machine", "grpc", "peers", "version"], rows)
    leave(code)


@node.command("list")
@click.option("--all", "every", is_flag=True, help="Removed nodes, too.")
@connection_options
@json_option
def list_command(every: bool, connection: Connection, as_json: bool) -> None:
    """Show the nodes of the region: whether they are up, and what they lead and hold.

    \b
    Example:
      holdfast node list --json
    """
    show_nodes(connection, as_json, every)


@node.command()
@click.argument("name")
@click.option("--evacuate", is_flag=True, help="Move its replicas off, too: it is to come back empty-handed.")
@click.option("--force", is_flag=True, help="Even if groups lose replicas, or their only possible leader.")
@wait_options
@connection_options
@json_option
def drain(
    name: str, evacuate: bool, force: bool, wait: bool, timeout: float, connection: Connection, as_json: bool
) -> None:
    """Let others lead what a node leads; then it can be stopped without being noticed.

    It keeps its replicas, and leads nothing until `holdfast node resume`, restarts included.

    \b
    Example:
      holdfast node drain a/2 && systemctl restart holdfast
    """

    async def work() -> Answer:
        region = Region(connection)
        answer = await region.do("drain", changes=True, node=name, evacuate=evacuate, force=force)

        async def look() -> tuple[bool, str]:
            one = await region.node(name)
            held = evacuate and one["replicas"]
            progress = f"{one['name']} leads {one['leads']} groups"
            if evacuate:
                progress += f" and holds {one['replicas']} replicas"
            return not one["leads"] and not held, progress

        if wait:
            await region.wait(look, timeout)
            await _warn_of_others(region, name)
        return {"node": name, **answer, "done": wait}

    _tell(run(work()), as_json, f"{name} is drained")


async def _warn_of_others(region: Region, name: str) -> None:
    """Who drains a node is about to stop it. Two nodes away are one too many."""
    others = [one for one in (await region.nodes())["nodes"] if name not in (one["name"], str(one["id"]))]
    down = [one["name"] for one in others if not one["up"]]
    if down:
        click.echo(
            f"do not stop {name} yet: {', '.join(down)} {'is' if len(down) == 1 else 'are'} down, and shards "
            "could be left without a majority; see `holdfast cluster health`",
            err=True,
        )


@node.command()
@click.argument("name")
@connection_options
@json_option
def resume(name: str, connection: Connection, as_json: bool) -> None:
    """Let a drained node lead again; a node that is being removed stays.

    \b
    Example:
      holdfast node resume a/2
    """

    async def work() -> Answer:
        answer = await Region(connection).do("resume", changes=True, node=name)
        return {"node": name, **answer, "done": True}

    _tell(run(work()), as_json, f"{name} is active")


@node.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Even if groups are left with fewer replicas.")
@click.option("--dry-run", is_flag=True, help="Show what would move, and change nothing.")
@wait_options
@connection_options
@json_option
def remove(
    name: str, force: bool, dry_run: bool, wait: bool, timeout: float, connection: Connection, as_json: bool
) -> None:
    """Take a node out of the region for good, alive or dead. Its replicas go to other nodes.

    Its id is never given again, and its data directory is of no more use.

    \b
    Example:
      holdfast node remove a/2
    """

    async def work() -> Answer:
        region = Region(connection)
        answer = await region.do("remove", changes=not dry_run, node=name, force=force, dry_run=dry_run)
        if wait and not dry_run:
            await _wait_until_removed(region, name, timeout)
        return {"node": name, **answer, "done": wait and not dry_run}

    _tell(run(work()), as_json, f"{name} is removed")


@node.command()
@click.argument("old")
@click.argument("new", required=False, default="")
@click.option("--force", is_flag=True, help="Even if groups are left with fewer replicas.")
@click.option("--dry-run", is_flag=True, help="Show what would move, and change nothing.")
@wait_options
@connection_options
@json_option
def replace(
    old: str,
    new: str,
    force: bool,
    dry_run: bool,
    wait: bool,
    timeout: float,
    connection: Connection,
    as_json: bool,
) -> None:
    """Let node NEW take over what node OLD holds, and take OLD out of the region for good.

    NEW is in the region already; a new node joins first, see `holdfast node add`. Without NEW: the data
    of OLD, which is down, is lost. Start it again afterwards, with an empty data directory: it joins
    by itself, as another node of the same name, and is given copies of what it had.

    \b
    Example:
      holdfast node replace a/2 a/4
      holdfast node replace a/2
    """

    async def work() -> Answer:
        region = Region(connection)
        fields: dict[str, Any] = {"node": old, "to": new, "force": force, "dry_run": dry_run}
        node_id = (await region.node(old))["id"]
        answer = await region.do("replace", changes=not dry_run, **fields)
        if wait and not dry_run:
            await _wait_until_removed(region, str(node_id), timeout)
        return {"node": old, "replaced_by": new, **answer, "done": wait and not dry_run}

    again = f"{old} is removed; start it again with an empty data directory: it joins by itself"
    _tell(run(work()), as_json, f"{new} has taken over, and {old} is removed" if new else again)


async def _wait_until_removed(region: Region, name: str, timeout_s: float) -> None:
    async def look() -> tuple[bool, str]:
        one = await region.node(name)
        return one["state"] == "removed", f"{one['name']} still has {one['replicas']} replicas"

    await region.wait(look, timeout_s)


def _tell(answer: Answer, as_json: bool, done: str) -> None:
    if as_json:
        print_json(answer)
        return
    for line in describe_moves(answer):
        click.echo(line)
    if answer["done"]:
        click.echo(done)


# ------------------------------------------------------------------------------------------------ node add


@node.command()
@click.argument("name")
@click.option("--peers", required=True, metavar="HOST:PORT", help="Where the other nodes will reach it.")
@click.option("--grpc", metavar="HOST:PORT", help="Where clients will. [default: that host, port 7233]")
@click.option("--listen", metavar="HOST", help="What it listens on. [default: the host of --peers]")
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Serve Prometheus text there.")
@click.option("--machine", help="Label of what fails together. [default: the host's name]")
@click.option("--data-dir", default="data", help="Directory of its data. [default: data, beside the file]")
@click.option("--config-out", type=click.Path(path_type=Path, dir_okay=False), help="Write the file there.")
@connection_options
@json_option
def add(
    name: str,
    peers: str,
    grpc: str | None,
    listen: str | None,
    metrics_port: int | None,
    machine: str | None,
    data_dir: str,
    config_out: Path | None,
    connection: Connection,
    as_json: bool,
) -> None:
    """Make the configuration with which a new node joins the region.

    The file is printed, or written with --config-out. Start the node with it on its machine, with
    an empty data directory: it joins by itself, and gets its share of the replicas.

    \b
    Example:
      holdfast node add a/4 --peers 10.0.0.4:7301 --machine rack-4 --config-out node.toml
    """
    for flag, address in (("--peers", peers), ("--grpc", grpc)):
        if address is not None:
            _address(flag, address)
    answer = run(Region(connection).nodes())
    text = join_file(answer["nodes"], name, peers, grpc, listen, metrics_port, machine, data_dir)
    if config_out is not None:
        _write(config_out, text)
    if as_json:
        print_json({"node": name, "config": text, "file": str(config_out) if config_out else None})
    elif config_out is None:
        click.echo(text, nl=False)
    else:
        click.echo(f"{config_out}: now, on its machine: holdfast server start --config {config_out}")


def join_file(
    nodes: list[Answer],
    name: str,
    peers: str,
    grpc: str | None,
    listen: str | None,
    metrics_port: int | None,
    machine: str | None,
    data_dir: str,
) -> str:
    """The TOML text. Failure where it cannot fit this region."""
    taken = next((one for one in nodes if name == one["name"]), None)
    if taken is not None:
        raise Failure(
            f"{name} is in the region already, as node {taken['id']}", "give the new node another name"
        )
    taken = next((one for one in nodes if peers == one["peers"]), None)
    if taken is not None:
        raise Failure(f"{peers} is the address of {taken['name']}", "give the new node one of its own")
    region = nodes[0]["name"].partition("/")[0]
    if name.partition("/")[0] != region or not name.partition("/")[2]:
        raise Failure(f"{name!r} is no name in region {region!r}", f"write it like {region}/{len(nodes) + 1}")
    host, port = _address("--peers", peers)
    grpc_host, grpc_port = _address("--grpc", grpc or f"{host}:7233")
    seeds = [one["peers"] for one in nodes if one["up"]][:SEEDS_MAX]
    lines = ["[node]", f"name = {json.dumps(name)}", f"data_dir = {json.dumps(data_dir)}"]
    if machine:
        lines.append(f"machine = {json.dumps(machine)}")
    lines += ["", "[region]", f"name = {json.dumps(region)}", f"join = {json.dumps(seeds)}", "", "[listen]"]
    bare = (listen or host).strip("[]")
    lines += [f"host = {json.dumps(bare)}", f"grpc = {grpc_port}", f"peers = {port}"]
    if metrics_port is not None:
        lines.append(f"metrics = {metrics_port}")
    advertise = []
    if grpc_host != (listen or host):
        advertise.append(f"grpc = {json.dumps(f'{grpc_host}:{grpc_port}')}")
    if host != (listen or host):
        advertise.append(f"peers = {json.dumps(peers)}")
    if advertise:
        lines += ["", "[advertise]", *advertise]
    lines += ["", "# [tls.peers], [tls.grpc], [raft], [front] and [log]: as in the files of the other nodes."]
    return "\n".join(lines) + "\n"


def _address(flag: str, text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.UsageError(f"{flag} {text!r} is no address: write it like 10.0.0.4:7301")
    return host, int(port)


def _write(path: Path, text: str) -> None:
    """Write the file, and see that a node would take it."""
    from cluster.hosting.config.node_config import ConfigError, load

    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise Failure(f"{path} is there already", "name another file, or move it away") from None
    except OSError as error:
        raise Failure(f"{path} cannot be written: {error.strerror}", "name a file that can") from None
    try:
        load(path)
    except ConfigError as error:
        path.unlink()
        raise Failure(error.problems[0], "correct the flags") from None
